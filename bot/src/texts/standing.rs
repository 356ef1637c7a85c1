//! How somebody stands with a bot, in words: why, what it comes to, when it ends, what they can do.

use botledger_commands::CommandError;
use botledger_domain::{
    Language,
    standing::{
        Appealable, Ban, BlockCause, Explanation, LiveContribution, StandingError, Verdict,
        ladder::{LadderState, Lane, OffenceKind},
    },
    turn::Notice,
};
use chrono::{DateTime, TimeDelta, Utc};

use super::{escape, moment, pick, plural};

/// What was wrong with a message, as a phrase.
fn offence(language: Language, kind: OffenceKind) -> &'static str {
    match kind {
        OffenceKind::Clean => pick(language, "nothing", "ничего"),
        OffenceKind::OffTopic => pick(language, "not what this bot is for", "не то, для чего этот бот"),
        OffenceKind::Flood => {
            pick(language, "too many messages, or the same again", "слишком много сообщений или повторы")
        }
        OffenceKind::InjectionSuspected => pick(
            language,
            "looked like an attempt to change the bot's instructions",
            "похоже на попытку изменить указания бота",
        ),
        OffenceKind::InjectionConfident => {
            pick(language, "an attempt to change the bot's instructions", "попытка изменить указания бота")
        }
        OffenceKind::Spam => pick(language, "advertising", "реклама"),
        OffenceKind::CategoryLow => {
            pick(language, "unwelcome content, mild", "нежелательное содержание, мягкое")
        }
        OffenceKind::CategoryMedium => pick(language, "unwelcome content", "нежелательное содержание"),
        OffenceKind::CategorySevere => {
            pick(language, "content that is never answered", "содержание, на которое не отвечают никогда")
        }
    }
}

/// Milli-points as people read them, with one place behind the point where there is something.
fn points(language: Language, milli: u64) -> String {
    // Rounded up: what is left is never shown as nothing.
    let tenths = milli.div_ceil(100);
    match (tenths % 10, language) {
        (0, _) => (tenths / 10).to_string(),
        (rest, Language::En) => format!("{}.{rest}", tenths / 10),
        (rest, Language::Ru) => format!("{},{rest}", tenths / 10),
    }
}

/// A number of points with its noun.
fn counted(language: Language, milli: u64) -> String {
    let number = points(language, milli);
    let whole = milli.div_ceil(100).is_multiple_of(10);
    let noun = match language {
        Language::En if milli.div_ceil(100) == 10 => "point",
        Language::En => "points",
        Language::Ru if whole => plural(milli.div_ceil(1_000), "балл", "балла", "баллов"),
        Language::Ru => "балла",
    };
    format!("{number} {noun}")
}

/// What people can do against a restriction.
pub(crate) fn appeal_hint(language: Language) -> &'static str {
    pick(
        language,
        "If you think this is wrong, write /appeal and, in the same message, why. A human will look at it.",
        "Если вы считаете это ошибкой, напишите /appeal и в том же сообщении — почему. Это посмотрит человек.",
    )
}

/// The same where it is known whether they may.
pub(crate) fn appeal(language: Language, appeal: Appealable, now: DateTime<Utc>) -> String {
    match appeal {
        Appealable::Now => appeal_hint(language).to_owned(),
        Appealable::Pending => pick(
            language,
            "Your appeal is waiting for a human to look at it.",
            "Ваше обращение ждёт, пока его посмотрит человек.",
        )
        .to_owned(),
        Appealable::From(from) => {
            let from = moment(language, from, now);
            match language {
                Language::En => format!("Your last appeal was denied; you can write another at {from}."),
                Language::Ru => format!("Прошлое обращение отклонено; новое можно подать в {from}."),
            }
        }
    }
}

fn banned(language: Language, ban: &Ban, now: DateTime<Utc>) -> String {
    let until = ban.until.map(|until| moment(language, until, now));
    let reason = ban.reason.as_ref().map(|reason| escape(reason.as_str()));
    let mut text = match (language, &ban.cause, until) {
        (Language::En, BlockCause::Severe, _) => {
            "**You are blocked**: a message of yours was something this bot never answers. A human looks at such messages."
                .to_owned()
        }
        (Language::Ru, BlockCause::Severe, _) => {
            "**Вы заблокированы**: одно из сообщений было таким, на какие этот бот не отвечает никогда. Такие сообщения смотрит человек."
                .to_owned()
        }
        (Language::En, _, Some(until)) => format!("**You are blocked** until {until}."),
        (Language::Ru, _, Some(until)) => format!("**Вы заблокированы** до {until}."),
        (Language::En, BlockCause::Moderator, None) => "**You are blocked** by a moderator.".to_owned(),
        (Language::Ru, BlockCause::Moderator, None) => "**Вы заблокированы** модератором.".to_owned(),
        (Language::En, BlockCause::Score, None) => {
            "**You are blocked** until a human decides otherwise: it was not the first time.".to_owned()
        }
        (Language::Ru, BlockCause::Score, None) => {
            "**Вы заблокированы**, пока человек не решит иначе: это не первый раз.".to_owned()
        }
    };
    if let Some(reason) = reason {
        text.push(' ');
        text.push_str(pick(language, "Reason: ", "Причина: "));
        text.push_str(&reason);
    }
    text
}

/// When somebody comes off a rung of the ladder if they write nothing, to the minute; nothing where time
/// alone does not do it within two months.
fn calm_at(explanation: &Explanation, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let rules = &explanation.rules;
    let exit = match explanation.state {
        LadderState::Warned => rules.warn_exit,
        LadderState::Throttled => rules.throttle_exit,
        LadderState::Ok | LadderState::TempBlocked | LadderState::Blocked => return None,
    };
    let score_at = |minutes: i64| {
        let (from, to) = (now.timestamp_millis(), (now + TimeDelta::minutes(minutes)).timestamp_millis());
        rules.faded(Lane::Drift, explanation.drift, from, to)
            + rules.faded(Lane::Violation, explanation.violation, from, to)
    };
    let (mut early, mut late) = (0, 60 * 24 * 60);
    if score_at(late) >= exit {
        return None;
    }
    while early < late {
        let middle = (early + late) / 2;
        if score_at(middle) < exit { late = middle } else { early = middle + 1 }
    }
    Some(now + TimeDelta::minutes(late))
}

fn contribution(language: Language, one: &LiveContribution) -> String {
    let scored = &one.contribution;
    let day = scored.scored_at.format("%Y-%m-%d %H:%M UTC");
    let (earned, left) = (counted(language, scored.offence.points), points(language, one.live));
    let what = offence(language, scored.offence.kind);
    match language {
        Language::En => format!("- {day}, {what}: {earned}, {left} left"),
        Language::Ru => format!("- {day}, {what}: {earned}, осталось {left}"),
    }
}

/// How long half of the points takes to fade.
fn half_life(language: Language, milliseconds: u64) -> String {
    let hours = milliseconds.div_ceil(3_600_000);
    let (amount, unit) = if hours >= 48 { (hours.div_ceil(24), 1) } else { (hours, 0) };
    match (language, unit) {
        (Language::En, 0) => format!("{amount} {}", if amount == 1 { "hour" } else { "hours" }),
        (Language::En, _) => format!("{amount} days"),
        (Language::Ru, 0) => format!("{amount} {}", plural(amount, "час", "часа", "часов")),
        (Language::Ru, _) => format!("{amount} {}", plural(amount, "день", "дня", "дней")),
    }
}

/// Whether there is nothing to explain.
pub(crate) fn is_good(explanation: &Explanation) -> bool {
    explanation.verdict == Verdict::Clear && explanation.state == LadderState::Ok
}

/// "Why was I blocked?" Paragraphs; empty when nothing was ever held against somebody.
pub(crate) fn standing(language: Language, explanation: &Explanation, now: DateTime<Utc>) -> String {
    let score = explanation.drift + explanation.violation;
    let rules = &explanation.rules;
    let mut parts = Vec::new();
    match (&explanation.verdict, explanation.state) {
        (Verdict::Blocked(ban), _) => parts.push(banned(language, ban, now)),
        (_, LadderState::Throttled) => parts.push(
            pick(
                language,
                "**You are answered less often** for a while.",
                "**Какое-то время вам отвечают реже.**",
            )
            .to_owned(),
        ),
        (_, LadderState::Warned) => parts.push(
            pick(
                language,
                "**You have been warned.** You are answered as usual.",
                "**Вы предупреждены.** Вам отвечают как обычно.",
            )
            .to_owned(),
        ),
        _ if explanation.contributions.is_empty() => return String::new(),
        _ => {}
    }
    if !explanation.contributions.is_empty() {
        let mut why = pick(language, "What counts most:", "Что весит больше всего:").to_owned();
        for one in &explanation.contributions {
            why.push('\n');
            why.push_str(&contribution(language, one));
        }
        parts.push(why);
        let (now_at, warn) = (counted(language, score), points(language, rules.warn));
        let (throttle, block) = (points(language, rules.throttle), points(language, rules.temp_block));
        let (drift, violation) = (
            half_life(language, rules.drift_half_life_ms),
            half_life(language, rules.violation_half_life_ms),
        );
        parts.push(match language {
            Language::En => format!(
                "Together: {now_at}. At {warn} there is a warning, at {throttle} answers come less often, at {block} a \
                 block for a while. Points fade: half of those for going off topic in {drift}, of the others in \
                 {violation}; ordinary messages take some off, too."
            ),
            Language::Ru => format!(
                "Всего: {now_at}. От {warn} — предупреждение, от {throttle} ответы приходят реже, от {block} — временная \
                 блокировка. Баллы тают: за отход от темы — наполовину за {drift}, остальные — за {violation}; обычные \
                 сообщения тоже их уменьшают."
            ),
        });
    }
    if let Some(calm) =
        calm_at(explanation, now).filter(|_| !matches!(explanation.verdict, Verdict::Blocked(_)))
    {
        let calm = moment(language, calm, now);
        parts.push(match language {
            Language::En => format!("If nothing is added, this ends at about {calm}."),
            Language::Ru => format!("Если ничего не добавится, это кончится примерно в {calm}."),
        });
    }
    if let Some(appeal) = explanation.appeal {
        parts.push(self::appeal(language, appeal, now));
    }
    parts.join("\n\n")
}

/// What stands under an answer: that something was held against them, or that a limit is near.
pub(crate) fn notices(language: Language, notices: &[Notice], now: DateTime<Utc>) -> Option<String> {
    let told: Vec<String> = notices.iter().map(|one| notice(language, one, now)).collect();
    (!told.is_empty()).then(|| told.join("\n\n"))
}

fn notice(language: Language, notice: &Notice, now: DateTime<Utc>) -> String {
    match (notice, language) {
        (Notice::Warned { offence: kind }, Language::En) => format!(
            "⚠️ Please mind what this bot is for. Your messages have added up to a warning; the last reason: {}. /status \
             explains it.",
            offence(language, *kind)
        ),
        (Notice::Warned { offence: kind }, Language::Ru) => format!(
            "⚠️ Помните, пожалуйста, для чего этот бот. Ваши сообщения довели до предупреждения; последняя причина: {}. \
             Подробности — в /status.",
            offence(language, *kind)
        ),
        (Notice::Throttled { per_minute }, Language::En) => {
            let messages = if *per_minute == 1 { "message" } else { "messages" };
            format!(
                "⚠️ From now on you are answered less often: {per_minute} {messages} a minute. /status explains why and until \
                 when."
            )
        }
        (Notice::Throttled { per_minute }, Language::Ru) => {
            let number = u64::from(*per_minute);
            let messages = plural(number, "сообщение", "сообщения", "сообщений");
            format!(
                "⚠️ Теперь вам отвечают реже: {per_minute} {messages} в минуту. Почему и до каких пор — в /status."
            )
        }
        (Notice::LimitNear { holder, percent, resets_at, .. }, _) => {
            let whose = match (holder.as_str(), language) {
                ("bot", Language::En) => "This bot has",
                ("bot", Language::Ru) => "Этот бот уже израсходовал",
                ("workspace", Language::En) => "Those who run this bot have",
                ("workspace", Language::Ru) => "Те, кто управляет ботом, уже израсходовали",
                (_, Language::En) => "You have",
                (_, Language::Ru) => "Вы уже израсходовали",
            };
            let resets = moment(language, *resets_at, now);
            match language {
                Language::En => format!(
                    "ℹ️ {whose} used {percent} % of the limit. It resets at {resets}. /usage shows it."
                ),
                Language::Ru => {
                    format!("ℹ️ {whose} {percent} % лимита. Он обновится в {resets}. Подробности — в /usage.")
                }
            }
        }
    }
}

pub(crate) fn appeal_usage(language: Language) -> String {
    pick(
        language,
        "Tell me in the same message why this is wrong, for example: /appeal I asked about my own order",
        "Напишите в том же сообщении, почему это ошибка, например: /appeal Я спрашивал о своём заказе",
    )
    .to_owned()
}

pub(crate) fn appeal_filed(language: Language) -> String {
    pick(
        language,
        "Thank you. A human will look at it; until then everything stays as it is. /status shows how things stand.",
        "Спасибо. Это посмотрит человек, до тех пор всё остаётся как есть. /status покажет, как обстоят дела.",
    )
    .to_owned()
}

/// Why an appeal was not taken; nothing when it is not for the person to mend.
pub(crate) fn appeal_refused(
    language: Language,
    error: &CommandError<StandingError>,
    now: DateTime<Utc>,
) -> Option<String> {
    Some(match error {
        CommandError::Refused(StandingError::NotRestricted) => pick(
            language,
            "There is nothing to appeal against: you are answered as usual.",
            "Обжаловать нечего: вам отвечают как обычно.",
        )
        .to_owned(),
        CommandError::Refused(StandingError::AppealOpen) => appeal(language, Appealable::Pending, now),
        CommandError::Refused(StandingError::AppealTooSoon { from }) => {
            appeal(language, Appealable::From(*from), now)
        }
        CommandError::Invalid { .. } => pick(
            language,
            "This is too long for an appeal. Please put it shorter.",
            "Для обращения это слишком длинно. Напишите, пожалуйста, короче.",
        )
        .to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use botledger_domain::{
        TurnId,
        standing::{Contribution, ScoredOffence, Standing, ladder::LadderConfig},
    };
    use uuid::Uuid;

    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-11-24T10:00:00Z".parse().expect("a time")
    }

    fn explained(state: LadderState, milli: u64) -> Explanation {
        let offence = ScoredOffence {
            kind: OffenceKind::OffTopic,
            points: milli,
            lane: Lane::Drift,
            oos_permille: Some(950),
            intent: None,
            evidence: vec![],
        };
        let contribution = Contribution {
            turn: TurnId(Uuid::nil()),
            scored_at: now(),
            offence,
            policy_version: 1,
            model_version: String::new(),
        };
        Explanation {
            state,
            drift: milli,
            contributions: vec![LiveContribution { contribution, live: milli }],
            rules: LadderConfig::default(),
            ..Standing::default().explain(now())
        }
    }

    #[test]
    fn who_has_done_nothing_is_explained_nothing() {
        let clean = Standing::default().explain(now());
        assert!(is_good(&clean));
        assert_eq!(standing(Language::En, &clean, now()), "");
    }

    #[test]
    fn a_warning_says_what_it_is_for_how_much_it_is_and_when_it_ends() {
        let warned = explained(LadderState::Warned, 31_500);
        let text = standing(Language::En, &warned, now());
        for part in [
            "You have been warned",
            "not what this bot is for: 31.5 points, 31.5 left",
            "At 30 there is a warning",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // A warning ends below 15 points; drift halves in a day.
        assert!(text.contains("this ends at about 2026-11-25 11:"), "{text}");
        let russian = standing(Language::Ru, &warned, now());
        assert!(russian.contains("31,5 балла, осталось 31,5"), "{russian}");
    }

    #[test]
    fn time_is_not_promised_to_end_what_a_human_decides() {
        let mut blocked = explained(LadderState::Blocked, 90_000);
        let ban = |cause, until| Ban { cause, reason: None, until, appeal: Appealable::Now };
        blocked.verdict = Verdict::Blocked(ban(BlockCause::Score, None));
        blocked.appeal = Some(Appealable::Now);
        let text = standing(Language::En, &blocked, now());
        assert!(text.contains("until a human decides") && text.contains("/appeal"), "{text}");
        assert!(!text.contains("this ends at"), "{text}");
        blocked.verdict = Verdict::Blocked(ban(BlockCause::Score, Some(now() + TimeDelta::minutes(15))));
        assert!(standing(Language::Ru, &blocked, now()).contains("до 10:15 UTC (через 15 минут)"));
        blocked.appeal = Some(Appealable::Pending);
        assert!(standing(Language::En, &blocked, now()).ends_with("waiting for a human to look at it."));
    }

    #[test]
    fn points_take_the_right_noun() {
        let shown = |milli| (counted(Language::En, milli), counted(Language::Ru, milli));
        let is = |en: &str, ru: &str| (en.to_owned(), ru.to_owned());
        assert_eq!(shown(1_000), is("1 point", "1 балл"));
        assert_eq!(shown(22_000), is("22 points", "22 балла"));
        assert_eq!(shown(11_000), is("11 points", "11 баллов"));
        assert_eq!(shown(50), is("0.1 points", "0,1 балла"));
    }

    #[test]
    fn every_phrase_speaks_both_languages() {
        use botledger_domain::standing::ladder::OffenceKind as Kind;
        let kinds = [
            Kind::Clean,
            Kind::OffTopic,
            Kind::Flood,
            Kind::InjectionSuspected,
            Kind::Spam,
            Kind::InjectionConfident,
            Kind::CategoryLow,
            Kind::CategoryMedium,
            Kind::CategorySevere,
        ];
        let until = now() + TimeDelta::days(3);
        let near = |holder: &str| Notice::LimitNear {
            holder: holder.to_owned(),
            unit: "tokens".to_owned(),
            percent: 80,
            resets_at: until,
        };
        let told = [
            Notice::Warned { offence: Kind::Spam },
            Notice::Throttled { per_minute: 2 },
            near("person"),
            near("bot"),
            near("workspace"),
        ];
        let all = |language| {
            let mut texts: Vec<String> = kinds.map(|kind| offence(language, kind).to_owned()).into();
            texts.extend(told.iter().map(|one| notice(language, one, now())));
            texts.extend(
                [Appealable::Now, Appealable::Pending, Appealable::From(until)]
                    .map(|one| appeal(language, one, now())),
            );
            for cause in [BlockCause::Moderator, BlockCause::Score, BlockCause::Severe] {
                for until in [None, Some(until)] {
                    let ban = Ban { cause, reason: None, until, appeal: Appealable::Now };
                    texts.push(banned(language, &ban, now()));
                }
            }
            texts.extend([appeal_usage(language), appeal_filed(language)]);
            texts
        };
        for (english, russian) in all(Language::En).into_iter().zip(all(Language::Ru)) {
            assert!(russian.chars().any(|c| ('а'..='я').contains(&c)), "{russian}");
            assert!(!english.chars().any(|c| ('а'..='я').contains(&c)), "{english}");
        }
    }
}
