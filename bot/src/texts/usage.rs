//! What is used and what is left, limit by limit.

use botledger_domain::{
    Language,
    account::{LimitLeft, Period, Unit},
};
use chrono::{DateTime, Utc};

use super::{grouped, moment, pick, plural, tokens};

fn unit(language: Language, unit: Unit) -> &'static str {
    match unit {
        Unit::Tokens => pick(language, "Tokens", "Токены"),
        Unit::Messages => pick(language, "Messages", "Сообщения"),
        Unit::Money => pick(language, "Money", "Деньги"),
    }
}

/// After the noun: tokens a day, токены за день.
fn period(language: Language, period: Period) -> &'static str {
    match period {
        Period::Minute => pick(language, "a minute", "за минуту"),
        Period::Hour => pick(language, "an hour", "за час"),
        Period::Day => pick(language, "a day", "за день"),
        Period::Week => pick(language, "a week", "за неделю"),
        Period::Month => pick(language, "a month", "за месяц"),
    }
}

/// Money comes in millionths and is shown exactly, with two places at least.
fn number(language: Language, of: Unit, amount: u64) -> String {
    let (separator, point) = match language {
        Language::En => (',', '.'),
        Language::Ru => ('\u{a0}', ','),
    };
    if of != Unit::Money {
        return grouped(amount, separator);
    }
    let (whole, rest) = (amount / 1_000_000, format!("{:06}", amount % 1_000_000));
    let places = rest.trim_end_matches('0').len().max(2);
    format!("{}{point}{}", grouped(whole, separator), &rest[..places])
}

/// An amount with its unit.
pub(super) fn amount(language: Language, unit: Unit, amount: u64) -> String {
    match (unit, language) {
        (Unit::Tokens, _) => tokens(language, amount),
        (Unit::Messages, Language::En) if amount == 1 => "1 message".to_owned(),
        (Unit::Messages, Language::En) => format!("{} messages", number(language, unit, amount)),
        (Unit::Messages, Language::Ru) => {
            let noun = plural(amount, "сообщение", "сообщения", "сообщений");
            format!("{} {noun}", number(language, unit, amount))
        }
        (Unit::Money, Language::En) => format!("money worth {}", number(language, unit, amount)),
        (Unit::Money, Language::Ru) => format!("денег на {}", number(language, unit, amount)),
    }
}

/// One limit, with what is held and what came over.
fn line(language: Language, left: &LimitLeft, now: DateTime<Utc>) -> String {
    let number = |amount| number(language, left.unit, amount);
    let (what, when) = (unit(language, left.unit), period(language, left.period));
    let (used, limit, remaining) = (number(left.used), number(left.limit), number(left.remaining));
    let resets = moment(language, left.resets_at, now);
    let mut text = match language {
        Language::En => {
            format!("- {what} {when}: {used} of {limit} used, {remaining} left. Resets at {resets}.")
        }
        Language::Ru => format!(
            "- {what} {when}: израсходовано {used} из {limit}, осталось {remaining}. Обновится в {resets}."
        ),
    };
    if left.reserved > 0 {
        text.push(' ');
        text.push_str(pick(
            language,
            "Held by answers being written: ",
            "Отложено на ответы, которые пишутся: ",
        ));
        text.push_str(&number(left.reserved));
        text.push('.');
    }
    if left.carried > 0 {
        text.push(' ');
        text.push_str(pick(language, "Came over from before: ", "Перенесено с прошлого раза: "));
        text.push_str(&number(left.carried));
        text.push('.');
    }
    text
}

/// Every limit of a person's plan.
pub(crate) fn usage(language: Language, limits: &[LimitLeft], now: DateTime<Utc>) -> String {
    if limits.is_empty() {
        return none(language);
    }
    let lines: Vec<String> = limits.iter().map(|left| line(language, left, now)).collect();
    format!("{}\n\n{}", pick(language, "**Your usage**", "**Ваш расход**"), lines.join("\n"))
}

/// The limit that is nearest to its end, in short.
pub(crate) fn tightest(language: Language, limits: &[LimitLeft], now: DateTime<Utc>) -> String {
    // a/b < c/d without dividing.
    let share = |left: &LimitLeft, other: &LimitLeft| u128::from(left.remaining) * u128::from(other.limit);
    let Some(left) = limits.iter().min_by(|one, other| share(one, other).cmp(&share(other, one))) else {
        return none(language);
    };
    let number = |amount| number(language, left.unit, amount);
    let (what, when) = (unit(language, left.unit).to_lowercase(), period(language, left.period));
    let (remaining, limit) = (number(left.remaining), number(left.limit));
    let resets = moment(language, left.resets_at, now);
    match language {
        Language::En => format!("{remaining} left of {limit} ({what} {when}). Resets at {resets}."),
        Language::Ru => format!("осталось {remaining} из {limit} ({what} {when}). Обновится в {resets}."),
    }
}

fn none(language: Language) -> String {
    pick(language, "No quota is set up yet.", "Квота ещё не назначена.").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-11-24T10:00:00Z".parse().expect("a time")
    }

    fn left(unit: Unit, period: Period, limit: u64, used: u64, reserved: u64) -> LimitLeft {
        let resets_at = period.window(now()).end;
        LimitLeft {
            unit,
            period,
            limit,
            carried: 0,
            used,
            reserved,
            remaining: limit - used - reserved,
            resets_at,
        }
    }

    #[test]
    fn every_limit_is_told_by_itself() {
        let limits = [
            left(Unit::Tokens, Period::Day, 50_000, 46, 200),
            LimitLeft { carried: 5, ..left(Unit::Messages, Period::Hour, 25, 3, 0) },
            left(Unit::Money, Period::Month, 5_000_000, 123_400, 0),
        ];
        let text = usage(Language::En, &limits, now());
        for part in [
            "Tokens a day: 46 of 50,000 used, 49,754 left. Resets at 2026-11-25 00:00 UTC (in 14 hours). Held by answers being written: 200.",
            "Messages an hour: 3 of 25 used, 22 left. Resets at 11:00 UTC (in 60 minutes). Came over from before: 5.",
            "Money a month: 0.1234 of 5.00 used, 4.8766 left.",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let russian = usage(Language::Ru, &limits, now());
        assert!(russian.contains("Токены за день: израсходовано 46 из 50\u{a0}000"), "{russian}");
        assert!(russian.contains("Деньги за месяц: израсходовано 0,1234 из 5,00"), "{russian}");
    }

    #[test]
    fn in_short_the_limit_nearest_to_its_end_is_told() {
        let limits = [
            left(Unit::Tokens, Period::Day, 50_000, 40_000, 0),
            left(Unit::Messages, Period::Hour, 20, 19, 0),
        ];
        assert!(tightest(Language::En, &limits, now()).starts_with("1 left of 20 (messages an hour)."));
        assert!(tightest(Language::Ru, &limits, now()).starts_with("осталось 1 из 20 (сообщения за час)."));
        assert_eq!(tightest(Language::En, &[], now()), "No quota is set up yet.");
    }
}
