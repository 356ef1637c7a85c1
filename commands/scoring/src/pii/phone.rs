//! Telephone numbers. With a `+` the country's numbering plan decides; without one Russian and North
//! American forms stand for themselves and everything else needs a word beside it.

use std::{collections::BTreeMap, net::Ipv4Addr, ops::RangeInclusive, sync::LazyLock};

use super::{
    Candidate, FIRM, PiiKind,
    context::Denial,
    numbers::{Chain, begins, ends},
};

/// Digits of a national number by calling code.
static PLANS: LazyLock<BTreeMap<u32, RangeInclusive<usize>>> = LazyLock::new(|| {
    let numbers =
        include_str!("../../data/pii_calling_codes.txt").lines().filter(|line| !line.starts_with('#'));
    numbers
        .flat_map(|line| line.split(", "))
        .map(|plan| {
            let (code, lengths) = plan.split_once(' ').expect("code, space, lengths");
            let (fewest, most) = lengths.split_once('-').expect("fewest, hyphen, most");
            let number = |text: &str| text.parse::<usize>().expect("a number");
            (number(code) as u32, number(fewest)..=number(most))
        })
        .collect()
});

/// Most groups of a telephone number, and most digits with the prefixes people dial.
const MAX_GROUPS: usize = 9;
const MAX_DIGITS: usize = 17;

/// What a run of groups may be.
enum Form {
    /// By a numbering plan.
    Plan,
    /// As a number is written in its country, without the country's code.
    Written,
    /// Digits in groups.
    Plain,
}

pub(super) fn propose(chain: &Chain<'_>, candidates: &mut Vec<Candidate>) {
    let mut first = 0;
    while first < chain.groups.len() {
        if begins_with_date(chain, first) {
            first += 3;
            continue;
        }
        match longest(chain, first) {
            Some((last, candidate)) => {
                candidates.push(candidate);
                first = last + 1;
            }
            None => first += 1,
        }
    }
}

/// The longest number that begins with this group, the surest form first.
fn longest(chain: &Chain<'_>, first: usize) -> Option<(usize, Candidate)> {
    let folded = chain.folded;
    let text = folded.text.as_bytes();
    let digits_from = chain.groups[first].start;
    let mut start = digits_from;
    let bracket = |at: usize| at > 0 && text[at - 1] == b'(';
    if bracket(start) {
        start -= 1;
    }
    let plus = start > 0 && text[start - 1] == b'+';
    if plus {
        start -= 1;
        if bracket(start) {
            start -= 1;
        }
    }
    if !begins(folded, start) || first > 0 && !plus && chain.gap(first - 1) == "/" {
        return None;
    }
    let mut digits = Vec::with_capacity(MAX_DIGITS);
    let mut best: Option<(u8, usize, Form)> = None;
    for last in first..chain.groups.len().min(first + MAX_GROUPS) {
        let group = &chain.groups[last];
        if digits.len() + group.len() > MAX_DIGITS {
            break;
        }
        // A slash parts two numbers.
        if last > first && chain.gap(last - 1).contains('/') {
            break;
        }
        digits.extend(text[group.clone()].iter().map(|byte| byte - b'0'));
        if !ends(folded, group.end) && extension(&folded.text[group.end..]).is_none() {
            continue;
        }
        let lengths: Vec<usize> = chain.groups[first..=last].iter().map(ExactSizeIterator::len).collect();
        let form = if plus {
            international(&digits, &lengths)
        } else {
            domestic(chain, first, last, &digits, &lengths)
        };
        let Some(form) = form else { continue };
        let rank = match form {
            Form::Plan => 2,
            Form::Written => 1,
            Form::Plain => 0,
        };
        // "123-45-67 2 times": what was joined by hyphens so far ends at a blank.
        if let Some((0, known, _)) = best
            && known > first
            && (first..known).all(|group| matches!(chain.gap(group), "-" | "."))
            && (known..last).any(|group| chain.gap(group).contains(' '))
            && rank == 0
        {
            break;
        }
        if best.as_ref().is_none_or(|(known, ..)| rank >= *known) {
            best = Some((rank, last, form));
        }
    }
    let (_, last, form) = best?;
    let mut end = chain.groups[last].end;
    end += extension(&folded.text[end..]).unwrap_or(0);
    // A bracket that opened before the number and closed inside it belongs to it; one that encloses the
    // whole number does not.
    let inside = &folded.text[digits_from..end];
    if start < digits_from && !inside.contains(')') {
        start = digits_from - usize::from(plus);
    }
    let candidate = match form {
        Form::Plan if plus => Candidate::certain(start..end, PiiKind::PhoneNumber),
        Form::Plan | Form::Written => Candidate {
            bytes: start..end,
            kind: PiiKind::PhoneNumber,
            form: FIRM,
            proven: true,
            denial: Denial::Number,
        },
        Form::Plain => Candidate::needs_word(start..end, PiiKind::PhoneNumber),
    };
    Some((last, candidate))
}

/// With the country's code.
fn international(digits: &[u8], lengths: &[usize]) -> Option<Form> {
    if !(7..=MAX_DIGITS).contains(&digits.len()) || digits[0] == 0 {
        return None;
    }
    let (code_length, plan) = plan(digits)?;
    let mut national = digits.len() - code_length;
    // "+46 (0)8 …": the zero is dialled inside the country only.
    let mut place = 0;
    for length in lengths {
        if *length == 1 && place == code_length && digits[place] == 0 {
            national -= 1;
        }
        place += length;
    }
    Some(if plan.contains(&national) { Form::Plan } else { Form::Plain })
}

/// The calling code a number begins with: codes are prefix-free.
fn plan(digits: &[u8]) -> Option<(usize, &'static RangeInclusive<usize>)> {
    if digits.first() == Some(&0) {
        return None;
    }
    (1..=3).find_map(|length| {
        let code = digits.get(..length)?.iter().fold(0, |sum, digit| sum * 10 + u32::from(*digit));
        Some((length, PLANS.get(&code)?))
    })
}

/// Without the country's code, or with 00 or 011 before it.
fn domestic(chain: &Chain<'_>, first: usize, last: usize, digits: &[u8], lengths: &[usize]) -> Option<Form> {
    if !(6..=MAX_DIGITS).contains(&digits.len()) {
        return None;
    }
    let solid = lengths.len() == 1;
    if let [0, 0, number @ ..] | [0, 1, 1, number @ ..] = digits
        && let Some((code, plan)) = plan(number)
        && plan.contains(&(number.len() - code))
    {
        // Numbers of other things begin with zeros too; in one piece they need a word.
        return Some(if solid { Form::Plain } else { Form::Plan });
    }
    let gaps = || (first..last).map(|group| chain.gap(group));
    let spaces_only = gaps().all(|gap| gap == " ");
    match (digits, lengths) {
        // Russia and Kazakhstan: 8 or 7 and ten digits.
        (
            [7 | 8, 3 | 4 | 7 | 8 | 9, rest @ ..],
            [1, 3, 7] | [1, 3, 3, 4] | [1, 3, 3, 2, 2] | [1, 3, 2, 2, 3],
        ) if rest.len() == 9 => {
            return Some(Form::Written);
        }
        ([7 | 8, 9, rest @ ..], [11] | [4, 3, 4] | [4, 7] | [4, 3, 2, 2]) if rest.len() == 9 => {
            return Some(Form::Written);
        }
        // North America: 3-3-4, area and exchange begin with 2 to 9. With spaces only it needs a word.
        ([2..=9, _, _, 2..=9, ..], [3, 3, 4]) | ([1, 2..=9, _, _, 2..=9, ..], [1, 3, 3, 4])
            if !spaces_only =>
        {
            return Some(Form::Written);
        }
        _ => {}
    }
    // Digits in groups are a number when they are all of it: "2024-03" of a date is not, nor is "123456" alone.
    let joined = |gap: &str| !gap.contains(' ');
    if first > 0 && joined(chain.gap(first - 1))
        || last + 1 < chain.groups.len() && joined(chain.gap(last))
        || solid && digits.len() < 7
        || chain.folded.text[chain.groups[first].start..chain.groups[last].end].parse::<Ipv4Addr>().is_ok()
    {
        return None;
    }
    if digits.len() > 13 || digits.iter().all(|digit| *digit == digits[0]) || looks_like_date(digits, lengths)
    {
        return None;
    }
    Some(Form::Plain)
}

/// Whether three groups are a day with a year of four digits: a table of dates is no list of numbers.
fn begins_with_date(chain: &Chain<'_>, first: usize) -> bool {
    let Some(groups) = chain.groups.get(first..first + 3) else { return false };
    let lengths: Vec<usize> = groups.iter().map(ExactSizeIterator::len).collect();
    let text = chain.folded.text.as_bytes();
    let plus = groups[0].start > 0 && text[groups[0].start - 1] == b'+';
    let digits =
        || groups.iter().flat_map(|group| &text[group.clone()]).map(|byte| byte - b'0').collect::<Vec<_>>();
    !plus && lengths.contains(&4) && looks_like_date(&digits(), &lengths)
}

/// 2024-03-17, 17.03.2024, 03/17/24: not to be called, whatever stands beside it.
fn looks_like_date(digits: &[u8], lengths: &[usize]) -> bool {
    let value = |range: std::ops::Range<usize>| {
        digits[range].iter().fold(0, |sum, digit| sum * 10 + u32::from(*digit))
    };
    match lengths {
        [4, 2, 2] => (1900..=2100).contains(&value(0..4)) && value(4..6) <= 12 && value(6..8) <= 31,
        [2, 2, 4] => value(0..2) <= 31 && value(2..4) <= 31 && (1900..=2100).contains(&value(4..8)),
        [2, 2, 2] => value(0..2) <= 31 && value(2..4) <= 31 && (value(0..2) <= 12 || value(2..4) <= 12),
        _ => false,
    }
}

/// Length of "x123", " ext. 12", ", доб. 7" at the beginning of what follows a number.
fn extension(rest: &str) -> Option<usize> {
    let trimmed = rest.trim_start_matches([' ', ',']);
    if rest.len() - trimmed.len() > 2 {
        return None;
    }
    let word = ["extension", "ext.", "ext", "x.", "x", "доб.", "доб"]
        .iter()
        .find(|word| trimmed.get(..word.len()).is_some_and(|start| start.to_lowercase() == **word))?;
    let number = trimmed[word.len()..].trim_start_matches(' ');
    if trimmed.len() - word.len() - number.len() > 1 {
        return None;
    }
    let digits = number.bytes().take_while(u8::is_ascii_digit).take(8).count();
    let end = rest.len() - number.len() + digits;
    let closed = !rest[end..].chars().next().is_some_and(super::fold::is_word);
    ((1..=7).contains(&digits) && closed).then_some(end)
}
