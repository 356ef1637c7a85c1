//! Dates of birth; when asked for, any date, and postal codes.

use std::sync::LazyLock;

use regex::Regex;

use super::{Candidate, FIRM, PiiKind, PiiKinds, context::Denial, fold::Folded};

/// Days with a year, in the orders people write them.
static DATE: LazyLock<Regex> = LazyLock::new(|| {
    let month = "(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?\
        |oct(?:ober)?|nov(?:ember)?|dec(?:ember)?|январ[яь]|феврал[яь]|марта?|апрел[яь]|ма[яй]|июн[яь]|июл[яь]\
        |августа?|сентябр[яь]|октябр[яь]|ноябр[яь]|декабр[яь])";
    let forms = [
        // 2000-04-16, 2000/4/16, 2000.04.16
        r"(?:1[89]|20)[0-9]{2}(?:-[01]?[0-9]-[0-3]?[0-9]|/[01]?[0-9]/[0-3]?[0-9]|\.[01]?[0-9]\.[0-3]?[0-9])"
            .to_owned(),
        // 16.04.2000, 4/16/2000, 16-04-00
        r"[0-3]?[0-9](?:\.[0-3]?[0-9]\.|/[0-3]?[0-9]/|-[0-3]?[0-9]-)(?:(?:1[89]|20)[0-9]{2}|[0-9]{2})"
            .to_owned(),
        // 16 April 2000, 16-го апреля 2000, April 16th, 2000
        format!(r"[0-3]?[0-9](?:st|nd|rd|th|-?го|-?е)? (?:of )?{month}\.?,? (?:1[89]|20)[0-9]{{2}}"),
        format!(r"{month}\.? [0-3]?[0-9](?:st|nd|rd|th)?,? (?:1[89]|20)[0-9]{{2}}"),
    ];
    Regex::new(&format!("(?i)(?:{})", forms.join("|"))).expect("valid patterns")
});

/// What is a time without being a date of birth: times, days of the week, months, years beside their word.
static TIME: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?xi) \b(?: (?:mon|tues|wednes|thurs|fri|satur|sun)day
          | понедельник[а-я]{0,2} | вторник[а-я]{0,2} | сред[аыеу] | четверг[а-я]{0,2} | пятниц[а-я]{1,2} | суббот[а-я]{1,2} | воскресень[а-я]
          | [0-2]?[0-9]:[0-5][0-9](?::[0-5][0-9])?(?:\ ?[ap]\.?m\b)?
          | [01]?[0-9]\ ?[ap]m
          | today | tomorrow | yesterday | tonight | сегодня | завтра | вчера )\b",
    )
    .expect("a valid pattern")
});

/// "in 1977", "с 2014 года".
static YEAR: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?i)\b(?:in|since|by|of|from|until|before|after|year|в|с|до|по|от|около)\s((?:1[89]|20)[0-9]{2})\b",
    )
    .expect("a valid pattern")
});

/// A time after a date belongs to it.
static CLOCK: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^(?:T|,? )[0-2]?[0-9]:[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,9})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2}| ?[ap]m)?").expect("a valid pattern")
});

pub(super) fn propose(folded: &Folded, kinds: PiiKinds, candidates: &mut Vec<Candidate>) {
    let any_date = kinds.contains(PiiKind::DateTime);
    for found in DATE.find_iter(&folded.text) {
        if !super::numbers::begins(folded, found.start())
            || !super::numbers::ends(folded, found.end()) && !ends_with_clock(folded, found.end())
        {
            continue;
        }
        if !is_day(found.as_str()) {
            continue;
        }
        let mut bytes = found.range();
        candidates.push(Candidate {
            bytes: bytes.clone(),
            kind: PiiKind::DateOfBirth,
            form: FIRM,
            proven: false,
            denial: Denial::None,
        });
        if any_date {
            bytes.end += CLOCK.find(&folded.text[bytes.end..]).map_or(0, |clock| clock.len());
            candidates.push(Candidate::certain(bytes, PiiKind::DateTime));
        }
    }
    if any_date {
        let years = YEAR.captures_iter(&folded.text).filter_map(|found| found.get(1));
        for found in TIME.find_iter(&folded.text).chain(years) {
            candidates.push(Candidate::certain(found.range(), PiiKind::DateTime));
        }
    }
    if kinds.contains(PiiKind::ZipCode) {
        postal_codes(folded, candidates);
    }
}

/// Whether day and month of a date in digits are some; the order of the two is anybody's.
fn is_day(date: &str) -> bool {
    let parts: Vec<u32> = date.split(['-', '/', '.']).map_while(|part| part.parse().ok()).collect();
    let [a, b, c] = parts[..] else { return true };
    let (day, month) = if a > 31 { (b, c) } else { (a, b) };
    day.min(month) >= 1 && day.min(month) <= 12 && day.max(month) <= 31
}

fn ends_with_clock(folded: &Folded, end: usize) -> bool {
    CLOCK.is_match(&folded.text[end..])
}

/// Beside their word, after an American state, or alone on a line of an address.
fn postal_codes(folded: &Folded, candidates: &mut Vec<Candidate>) {
    static CODE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?x) [0-9]{5}-[0-9]{4} | [0-9]{2,3}-[0-9]{3,4} | [0-9]{3}\ [0-9]{2} | [0-9]{3,6}
            | [A-Z][0-9][A-Z]\ ?[0-9][A-Z][0-9] | [A-Z]{1,2}[0-9][A-Z0-9]?\ ?[0-9][A-Z]{2} | [0-9]{4}\ ?[A-Z]{2}")
        .expect("a valid pattern")
    });
    static ADDRESS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?i)\b(?:address|адрес)").expect("a valid pattern"));
    let text = &folded.text;
    let address = ADDRESS.is_match(text);
    for found in CODE.find_iter(text) {
        let bytes = found.range();
        if !super::numbers::begins(folded, bytes.start) || !super::numbers::ends(folded, bytes.end) {
            continue;
        }
        let before = text[..bytes.start].rsplit('\n').next().unwrap_or_default();
        let after = text[bytes.end..].split('\n').next().unwrap_or_default();
        let alone =
            address && before.len() < bytes.start && before.trim().is_empty() && after.trim().is_empty();
        let state = found.len() >= 5 && {
            let word = before.trim_end().rsplit([' ', ',']).next().unwrap_or_default();
            word.len() == 2
                && word.bytes().all(|byte| byte.is_ascii_uppercase())
                && before.ends_with(' ')
                && before.contains(',')
        };
        if alone || state {
            candidates.push(Candidate::certain(bytes, PiiKind::ZipCode));
        } else if found.len() >= 4 {
            candidates.push(Candidate::needs_word(bytes, PiiKind::ZipCode));
        }
    }
}
