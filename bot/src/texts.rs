//! What people read, in English and Russian. Texts are Markdown; personal words are put in by the
//! caller and escaped here.

pub(crate) mod standing;
pub(crate) mod usage;

use botledger_commands::Found;
use botledger_domain::{
    Language, account::Holder, signal::Detector, standing::Explanation, turn::RefusalReason,
};
use chrono::{DateTime, Utc};

use crate::commands::Command;

fn pick<'a>(language: Language, en: &'a str, ru: &'a str) -> &'a str {
    match language {
        Language::En => en,
        Language::Ru => ru,
    }
}

/// The form of a Russian noun after a number: one, few, many.
fn plural<'a>(number: u64, one: &'a str, few: &'a str, many: &'a str) -> &'a str {
    match (number % 10, number % 100) {
        (1, rest) if rest != 11 => one,
        (2..=4, rest) if !(12..=14).contains(&rest) => few,
        _ => many,
    }
}

pub(crate) fn tokens(language: Language, amount: u64) -> String {
    match language {
        Language::En if amount == 1 => "1 token".to_owned(),
        Language::En => format!("{} tokens", grouped(amount, ',')),
        Language::Ru => {
            format!("{} {}", grouped(amount, '\u{a0}'), plural(amount, "токен", "токена", "токенов"))
        }
    }
}

fn grouped(amount: u64, separator: char) -> String {
    let digits = amount.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(separator);
        }
        text.push(digit);
    }
    text
}

/// A moment and how far away it is, for example `15:30 UTC (in 12 minutes)`.
pub(crate) fn moment(language: Language, at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let clock = if at.date_naive() == now.date_naive() {
        at.format("%H:%M UTC")
    } else {
        at.format("%Y-%m-%d %H:%M UTC")
    };
    let seconds = u64::try_from((at - now).num_seconds().max(1)).unwrap_or(1);
    let (amount, unit) = match seconds {
        0..120 => (seconds, 0),
        120..7_200 => (seconds.div_ceil(60), 1),
        7_200..172_800 => (seconds.div_ceil(3_600), 2),
        _ => (seconds.div_ceil(86_400), 3),
    };
    match language {
        Language::En => {
            let unit = ["second", "minute", "hour", "day"][unit];
            format!("{clock} (in {amount} {unit}{})", if amount == 1 { "" } else { "s" })
        }
        Language::Ru => {
            let unit = match unit {
                0 => plural(amount, "секунду", "секунды", "секунд"),
                1 => plural(amount, "минуту", "минуты", "минут"),
                2 => plural(amount, "час", "часа", "часов"),
                _ => plural(amount, "день", "дня", "дней"),
            };
            format!("{clock} (через {amount} {unit})")
        }
    }
}

/// Words of other people, so that nothing in them acts as Markdown.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_punctuation() {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

pub(crate) fn welcome(language: Language, name: &str) -> String {
    match language {
        Language::En => format!(
            "Hello, {}! Write me anything and I will answer.\n\n/help shows what else I can do.",
            escape(name)
        ),
        Language::Ru => format!(
            "Здравствуйте, {}! Напишите мне что угодно, и я отвечу.\n\n/help покажет, что ещё я умею.",
            escape(name)
        ),
    }
}

pub(crate) fn help(language: Language) -> String {
    let mut text = pick(language, "**What I can do**\n\n", "**Что я умею**\n\n").to_owned();
    for command in Command::ALL {
        text.push_str(&format!("/{} — {}\n", command.name(), command.summary(language)));
    }
    text.push_str(pick(
        language,
        "\nAnything else you write goes to the model. /stop ends an answer that is being written.",
        "\nВсё остальное, что вы напишете, читает модель. /stop прерывает ответ, который пишется.",
    ));
    text
}

pub(crate) fn unknown_command(language: Language) -> String {
    pick(
        language,
        "I do not know this command. /help lists the ones I know.",
        "Такой команды нет. Список — в /help.",
    )
    .to_owned()
}

pub(crate) fn unsupported(language: Language) -> String {
    pick(
        language,
        "I can read text only for now. Please write what you would like to know.",
        "Пока я понимаю только текст. Напишите, пожалуйста, что вы хотите узнать.",
    )
    .to_owned()
}

pub(crate) fn status(
    language: Language,
    standing: &Explanation,
    quota: &str,
    session: Option<u32>,
    model: &str,
    now: DateTime<Utc>,
) -> String {
    let well = pick(language, "**All is well.**", "**Всё в порядке.**");
    let explained = standing::standing(language, standing, now);
    let heading = match (standing::is_good(standing), explained.as_str()) {
        (true, "") => well.to_owned(),
        (true, explained) => format!("{well}\n\n{explained}"),
        (false, explained) => explained.to_owned(),
    };
    let session = session.map_or_else(|| "—".to_owned(), |number| number.to_string());
    let model = escape(model);
    match language {
        Language::En => {
            format!("{heading}\n\n- quota: {quota}\n- session: {session} (/sessions)\n- model: {model}")
        }
        Language::Ru => {
            format!("{heading}\n\n- квота: {quota}\n- беседа: {session} (/sessions)\n- модель: {model}")
        }
    }
}

pub(crate) fn no_history(language: Language) -> String {
    pick(language, "Nothing has been said in this session yet.", "В этой беседе пока ничего не сказано.")
        .to_owned()
}

pub(crate) fn history_heading(language: Language) -> &'static str {
    match language {
        Language::En => "**The last messages of this session**",
        Language::Ru => "**Последние сообщения этой беседы**",
    }
}

pub(crate) fn search_usage(language: Language) -> String {
    pick(
        language,
        "Tell me what to look for, for example: /search holiday plans",
        "Напишите, что искать, например: /search планы на отпуск",
    )
    .to_owned()
}

/// What heads the matches of a search. Where it did not look at everything, it says so.
pub(crate) fn found(language: Language, found: &Found, words: &str) -> String {
    let number = found.said.len();
    let heading = matches(language, number, words);
    let (scanned, count) = (found.scanned, u64::try_from(found.scanned).unwrap_or(u64::MAX));
    match (language, found.resume) {
        (_, None) => heading,
        (Language::En, Some(_)) => {
            let noun = if scanned == 1 { "exchange" } else { "exchanges" };
            format!("{heading}\nI looked at the newest {scanned} {noun}; there are older ones.")
        }
        (Language::Ru, Some(_)) => {
            let noun = plural(count, "обмен репликами", "обмена репликами", "обменов репликами");
            format!("{heading}\nПросмотрено с конца: {scanned} {noun}; есть и более ранние.")
        }
    }
}

fn matches(language: Language, number: usize, words: &str) -> String {
    let words = escape(words);
    match (language, number) {
        (Language::En, 0) => format!("Nothing found for “{words}”."),
        (Language::En, 1) => format!("**1 match for “{words}”**"),
        (Language::En, _) => format!("**{number} matches for “{words}”, newest first**"),
        (Language::Ru, 0) => format!("По запросу «{words}» ничего не найдено."),
        (Language::Ru, _) => {
            let count = u64::try_from(number).unwrap_or(u64::MAX);
            let noun = plural(count, "совпадение", "совпадения", "совпадений");
            format!("**{number} {noun} по запросу «{words}», сначала новые**")
        }
    }
}

/// One exchange, shortened, as `/history` and `/search` show it.
pub(crate) fn exchange(language: Language, session: u32, prompt: Option<&str>, reply: &str) -> String {
    let gone = pick(language, "(erased)", "(удалено)");
    let label = pick(language, "session", "беседа");
    format!(
        "*{label} {session}*\n**—** {}\n**🤖** {}",
        escape(&shortened(prompt.unwrap_or(gone), 300)),
        escape(&shortened(reply, 500))
    )
}

pub(crate) fn shortened(text: &str, limit: usize) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() <= limit {
        return text;
    }
    text.chars().take(limit.saturating_sub(1)).chain(['…']).collect()
}

pub(crate) fn session_opened(language: Language, number: u32) -> String {
    match language {
        Language::En => {
            format!("Session {number} begins. I start afresh; /sessions takes you back to earlier ones.")
        }
        Language::Ru => {
            format!("Начата беседа {number}. Начинаем с чистого листа; к прежним вернёт /sessions.")
        }
    }
}

pub(crate) fn too_many_sessions(language: Language) -> String {
    pick(
        language,
        "This chat has as many sessions as it can hold. /sessions takes you back to one of them.",
        "В этом чате уже наибольшее число бесед. К любой из них вернёт /sessions.",
    )
    .to_owned()
}

pub(crate) fn sessions_heading(language: Language) -> &'static str {
    match language {
        Language::En => "**Your sessions.** The marked one is open; press another to go back to it.",
        Language::Ru => "**Ваши беседы.** Отмеченная открыта; нажмите на другую, чтобы вернуться к ней.",
    }
}

pub(crate) fn no_sessions(language: Language) -> String {
    pick(
        language,
        "No session yet: write something and the first one begins.",
        "Бесед пока нет: напишите что-нибудь, и начнётся первая.",
    )
    .to_owned()
}

pub(crate) fn session_label(language: Language, number: u32, title: Option<&str>) -> String {
    match (title, language) {
        (Some(title), _) => format!("{number}. {}", shortened(title, 40)),
        (None, Language::En) => format!("Session {number}"),
        (None, Language::Ru) => format!("Беседа {number}"),
    }
}

pub(crate) fn session_switched(language: Language, number: u32) -> String {
    match language {
        Language::En => format!("You are back in session {number}."),
        Language::Ru => format!("Вы снова в беседе {number}."),
    }
}

pub(crate) fn settings(language: Language) -> String {
    pick(
        language,
        "**Settings**\n\nThe language I speak to you. Answers of the model follow the language of your question.",
        "**Настройки**\n\nНа каком языке я с вами говорю. Модель отвечает на языке вопроса.",
    )
    .to_owned()
}

pub(crate) fn language_chosen(language: Language) -> String {
    pick(language, "I will speak English with you.", "Буду говорить с вами по-русски.").to_owned()
}

pub(crate) fn stale_button(language: Language) -> String {
    pick(language, "This button is no longer of use.", "Эта кнопка больше не действует.").to_owned()
}

pub(crate) fn stopped(language: Language, something_ran: bool) -> String {
    match (something_ran, language) {
        (true, Language::En) => "Stopped.",
        (true, Language::Ru) => "Остановлено.",
        (false, Language::En) => "There is no answer being written right now.",
        (false, Language::Ru) => "Сейчас никакой ответ не пишется.",
    }
    .to_owned()
}

/// In place of an answer that was stopped before its first word.
pub(crate) fn stopped_before_first_word(language: Language) -> &'static str {
    match language {
        Language::En => "(stopped)",
        Language::Ru => "(остановлено)",
    }
}

pub(crate) fn privacy(language: Language) -> String {
    pick(
        language,
        "**Your data**\n\n- Messages are stored encrypted, each person under a key of their own.\n\
         - In the ledger you stand under a pseudonym, not under your Telegram id.\n\
         - Your messages go to the model that answers them and to nobody else.\n\
         - The people who run this bot can read conversations where moderation needs it; each such right is a recorded role.\n\n\
         To have your data erased, write to whoever runs this bot: deleting your key makes everything you wrote unreadable for ever.",
        "**Ваши данные**\n\n- Сообщения хранятся зашифрованными, у каждого человека свой ключ.\n\
         - В журнале вы записаны под псевдонимом, а не под номером Telegram.\n\
         - Ваши сообщения получает модель, которая на них отвечает, и больше никто.\n\
         - Те, кто управляет ботом, могут читать беседы, когда этого требует модерация; каждое такое право — записанная роль.\n\n\
         Чтобы удалить свои данные, напишите тем, кто управляет ботом: удаление вашего ключа навсегда делает всё написанное нечитаемым.",
    )
    .to_owned()
}

/// What a refused person is told: what happened, and when or how it gets better.
pub(crate) fn refusal(language: Language, reason: &RefusalReason, now: DateTime<Utc>) -> String {
    let at = |moment_of: DateTime<Utc>| moment(language, moment_of, now);
    match (reason, language) {
        (RefusalReason::Blocked { reason, until }, Language::En) => {
            let until = until.map_or_else(String::new, |until| format!(" until {}", at(until)));
            appealable(
                language,
                &format!("You cannot use this bot{until}. Reason: {}", escape(reason.as_str())),
            )
        }
        (RefusalReason::Blocked { reason, until }, Language::Ru) => {
            let until = until.map_or_else(String::new, |until| format!(" до {}", at(until)));
            appealable(
                language,
                &format!("Вы не можете пользоваться этим ботом{until}. Причина: {}", escape(reason.as_str())),
            )
        }
        (RefusalReason::TemporarilyBlocked { until }, Language::En) => appealable(
            language,
            &format!(
                "This bot takes no messages from you until {}: your last ones added up to a block. /status says which they \
                 were.",
                at(*until)
            ),
        ),
        (RefusalReason::TemporarilyBlocked { until }, Language::Ru) => appealable(
            language,
            &format!(
                "Бот не принимает от вас сообщения до {}: последние довели до блокировки. Какие именно — в /status.",
                at(*until)
            ),
        ),
        (RefusalReason::BlockedUntilAppeal { severe: true }, _) => appealable(
            language,
            pick(
                language,
                "This bot takes no messages from you any more: one of them was something it never answers. A human looks \
                 at such messages.",
                "Бот больше не принимает от вас сообщения: одно из них было таким, на какие он не отвечает никогда. Такие \
                 сообщения смотрит человек.",
            ),
        ),
        (RefusalReason::BlockedUntilAppeal { severe: false }, _) => appealable(
            language,
            pick(
                language,
                "This bot takes no messages from you until a human decides otherwise: you were blocked several times \
                 already. /status says what for.",
                "Бот не принимает от вас сообщения, пока человек не решит иначе: вы уже несколько раз были заблокированы. \
                 За что — в /status.",
            ),
        ),
        (RefusalReason::Throttled { retry_at }, Language::En) => format!(
            "For a while this bot answers you less often. Please write again at {}. /status says why.",
            at(*retry_at)
        ),
        (RefusalReason::Throttled { retry_at }, Language::Ru) => format!(
            "Какое-то время бот отвечает вам реже. Напишите, пожалуйста, снова в {}. Почему так — в /status.",
            at(*retry_at)
        ),
        (RefusalReason::Denied { until: None }, _) => pick(
            language,
            "You cannot use this bot. Whoever runs it decides who can.",
            "Вы не можете пользоваться этим ботом. Кто может, решают те, кто им управляет.",
        )
        .to_owned(),
        (RefusalReason::Denied { until: Some(until) }, Language::En) => {
            format!("You cannot use this bot until {}. Whoever runs it decides who can.", at(*until))
        }
        (RefusalReason::Denied { until: Some(until) }, Language::Ru) => format!(
            "Вы не можете пользоваться этим ботом до {}. Кто может, решают те, кто им управляет.",
            at(*until)
        ),
        (RefusalReason::Content { detector, .. }, _) => content(language, *detector).to_owned(),
        (RefusalReason::OffTopic, _) => pick(
            language,
            "This is not what this bot is for. /help says what it can do.",
            "Этот бот не для этого. /help расскажет, что он умеет.",
        )
        .to_owned(),
        (RefusalReason::Unscored, _) => pick(
            language,
            "Your message could not be checked just now, so it was not answered. Please try again in a minute.",
            "Сейчас не получилось проверить ваше сообщение, поэтому ответа нет. Попробуйте, пожалуйста, через минуту.",
        )
        .to_owned(),
        (RefusalReason::Unpriced { .. }, _) => pick(
            language,
            "This bot cannot answer before its operators finish setting it up; it is nothing that you did.",
            "Бот сможет отвечать, когда его настроят до конца; вы тут ни при чём.",
        )
        .to_owned(),
        (RefusalReason::RateLimited { scope, retry_at }, _) => format!(
            "{} {}.",
            match scope.as_str() {
                "chat" => pick(
                    language,
                    "This chat is writing a little fast. Please go on at",
                    "В этом чате пишут слишком быстро. Продолжите, пожалуйста, в",
                ),
                "bot" | "workspace" => pick(
                    language,
                    "Many people are writing to this bot right now. Please try again at",
                    "Сейчас боту пишет очень много людей. Попробуйте, пожалуйста, в",
                ),
                _ => pick(
                    language,
                    "That was a little fast. Please write again at",
                    "Слишком быстро. Напишите, пожалуйста, снова в",
                ),
            },
            at(*retry_at)
        ),
        (RefusalReason::QuotaExceeded { unit, remaining, resets_at, .. }, Language::En) => format!(
            "Your quota is not enough for this answer: {} left. It resets at {}. /usage shows the details.",
            usage::amount(language, *unit, *remaining),
            at(*resets_at)
        ),
        (RefusalReason::QuotaExceeded { unit, remaining, resets_at, .. }, Language::Ru) => format!(
            "Квоты не хватает на этот ответ: осталось {}. Она обновится в {}. Подробности — в /usage.",
            usage::amount(language, *unit, *remaining),
            at(*resets_at)
        ),
        (RefusalReason::BudgetExhausted { holder, resets_at, .. }, Language::En) => {
            let whose = if matches!(holder, Holder::Bot(_)) { "This bot has" } else { "Those who run this bot have" };
            format!(
                "{whose} used up what was set aside for answers; it is nothing that you did. Please write again after {}.",
                at(*resets_at)
            )
        }
        (RefusalReason::BudgetExhausted { holder, resets_at, .. }, Language::Ru) => {
            let whose = if matches!(holder, Holder::Bot(_)) { "У бота" } else { "У тех, кто управляет ботом," };
            format!(
                "{whose} закончились средства, отложенные на ответы; от вас это не зависит. Напишите, пожалуйста, после {}.",
                at(*resets_at)
            )
        }
        (RefusalReason::TooLong { .. }, Language::En) => {
            "This message is longer than the model can read. Please shorten it or send it in parts."
                .to_owned()
        }
        (RefusalReason::TooLong { .. }, Language::Ru) => {
            "Сообщение длиннее, чем модель может прочитать. Сократите его или пришлите частями.".to_owned()
        }
        (RefusalReason::Overloaded { retry_at }, Language::En) => {
            format!(
                "There are too many questions at the moment. Please try again at {}.",
                moment(language, *retry_at, now)
            )
        }
        (RefusalReason::Overloaded { retry_at }, Language::Ru) => {
            format!(
                "Сейчас слишком много вопросов. Попробуйте, пожалуйста, в {}.",
                moment(language, *retry_at, now)
            )
        }
    }
}

/// With what people can do against it.
fn appealable(language: Language, text: &str) -> String {
    format!("{text}\n\n{}", standing::appeal_hint(language))
}

/// What is in a message that is not answered.
fn content(language: Language, detector: Detector) -> &'static str {
    match detector {
        Detector::Attack => pick(
            language,
            "This looks like an attempt to change the bot's instructions, and it does not answer that. Please put it \
             another way.",
            "Это похоже на попытку изменить указания бота, на такое он не отвечает. Напишите, пожалуйста, иначе.",
        ),
        Detector::Spam => {
            pick(language, "This bot does not answer advertising.", "На рекламу этот бот не отвечает.")
        }
        Detector::PersonalData => pick(
            language,
            "Your message holds personal data, which this bot does not pass on. Please leave it out.",
            "В вашем сообщении личные данные, бот их не передаёт. Напишите, пожалуйста, без них.",
        ),
        Detector::Secret => pick(
            language,
            "Your message holds a key or a password. It was not passed on; please leave it out, and change it if \
             others could have seen it.",
            "В вашем сообщении ключ или пароль. Он никуда не передан; напишите, пожалуйста, без него и смените его, если его \
             мог увидеть кто-то ещё.",
        ),
        Detector::BlockedWord => pick(
            language,
            "Your message holds words that this bot does not answer. Please put it another way.",
            "В вашем сообщении слова, на которые этот бот не отвечает. Напишите, пожалуйста, иначе.",
        ),
        Detector::Behaviour => pick(
            language,
            "These are too many messages at once, or the same again. Please slow down a little.",
            "Слишком много сообщений сразу или повторы. Пишите, пожалуйста, чуть медленнее.",
        ),
        Detector::Category | Detector::Moderation => pick(
            language,
            "This bot does not answer such messages. Please put it another way.",
            "На такие сообщения этот бот не отвечает. Напишите, пожалуйста, иначе.",
        ),
    }
}

/// What a person is told when the model gave no answer.
pub(crate) fn failure(language: Language, code: &str) -> String {
    let unused = pick(language, " Nothing was taken from your quota.", " С вашей квоты ничего не списано.");
    let text = match code {
        "LLM_MODEL_NOT_FOUND" => pick(
            language,
            "The model this bot should use is not there. Whoever runs the bot has to look into it.",
            "Модели, с которой должен работать бот, нет. Это должны исправить те, кто им управляет.",
        ),
        "LLM_CONTEXT_TOO_LONG" => pick(
            language,
            "The conversation has grown too long for the model. /new begins a fresh session.",
            "Беседа стала слишком длинной для модели. /new начнёт новую.",
        ),
        "BOT_STOPPED" => pick(
            language,
            "The bot was stopped before it could answer. Please ask again.",
            "Бот был остановлен, не успев ответить. Спросите, пожалуйста, ещё раз.",
        ),
        "HOLD_OUTGROWN" => pick(
            language,
            "The bot was set up anew before it could answer. Please ask again.",
            "Бота перенастроили, прежде чем он успел ответить. Спросите, пожалуйста, ещё раз.",
        ),
        "LLM_DEADLINE_EXCEEDED" | "LLM_IDLE_TIMEOUT" => pick(
            language,
            "The model took too long to answer. Please try again in a moment.",
            "Модель отвечала слишком долго. Попробуйте, пожалуйста, ещё раз чуть позже.",
        ),
        "LLM_INTERRUPTED" => pick(
            language,
            "The answer broke off before it was complete. Please ask again.",
            "Ответ оборвался на середине. Спросите, пожалуйста, ещё раз.",
        ),
        _ => pick(
            language,
            "The model cannot answer right now. Please try again in a minute.",
            "Модель сейчас не может ответить. Попробуйте, пожалуйста, через минуту.",
        ),
    };
    // In the midst of an answer, what the model has read and written is paid for.
    let midway = matches!(
        code,
        "LLM_DEADLINE_EXCEEDED"
            | "LLM_IDLE_TIMEOUT"
            | "LLM_INTERRUPTED"
            | "LLM_MALFORMED"
            | "LLM_ANSWER_TOO_LARGE"
    );
    format!("⚠️ {text}{}", if midway { "" } else { unused })
}

#[cfg(test)]
mod tests {
    use botledger_domain::standing::Standing;

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    #[test]
    fn russian_numbers_take_the_right_noun() {
        let shown: Vec<_> = [1, 2, 5, 11, 21, 22, 1_000].map(|amount| tokens(Language::Ru, amount)).into();
        assert_eq!(
            shown,
            ["1 токен", "2 токена", "5 токенов", "11 токенов", "21 токен", "22 токена", "1\u{a0}000 токенов"]
        );
        assert_eq!(tokens(Language::En, 1_234_567), "1,234,567 tokens");
    }

    #[test]
    fn a_search_says_so_when_it_did_not_look_at_everything() {
        let looked = |resume| Found { said: Vec::new(), scanned: 5_000, resume };
        assert_eq!(found(Language::En, &looked(None), "moon"), "Nothing found for “moon”.");
        let cut = looked(Some(botledger_domain::Position(7)));
        assert!(found(Language::En, &cut, "moon").ends_with("newest 5000 exchanges; there are older ones."));
        assert!(found(Language::Ru, &cut, "луна").ends_with("5000 обменов репликами; есть и более ранние."));
    }

    #[test]
    fn a_moment_says_how_far_away_it_is() {
        let now = at("2026-11-24T10:00:00Z");
        assert_eq!(moment(Language::En, at("2026-11-24T10:05:00Z"), now), "10:05 UTC (in 5 minutes)");
        assert_eq!(
            moment(Language::Ru, at("2026-11-26T10:00:01Z"), now),
            "2026-11-26 10:00 UTC (через 3 дня)"
        );
    }

    #[test]
    fn strange_words_do_not_act_as_markup() {
        let formatted = crate::markup::format(&escape("**not bold** [x](https://e.org) <b>"));
        assert_eq!(
            (formatted.text.as_str(), formatted.entities.len()),
            ("**not bold** [x](https://e.org) <b>", 0)
        );
    }

    #[test]
    fn every_text_speaks_both_languages() {
        let now = at("2026-11-24T10:00:00Z");
        let all = |language| {
            vec![
                welcome(language, "A"),
                help(language),
                unknown_command(language),
                unsupported(language),
                status(language, &Standing::default().explain(now), "q", Some(1), "m", now),
                privacy(language),
                settings(language),
                stopped(language, true),
                session_opened(language, 2),
                failure(language, "LLM_UNAVAILABLE"),
            ]
        };
        for (english, russian) in all(Language::En).into_iter().zip(all(Language::Ru)) {
            assert!(russian.chars().any(|c| ('а'..='я').contains(&c)), "{russian}");
            assert!(!english.chars().any(|c| ('а'..='я').contains(&c)), "{english}");
        }
    }
}
