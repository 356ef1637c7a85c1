//! The words beside a candidate: what raises and what lowers the belief in it.

use std::{ops::Range, sync::LazyLock};

use strum::EnumCount;

use super::{
    PiiKind,
    fold::{Folded, OPAQUE, is_word},
};

/// Words that are looked at on either side.
const REACH: usize = 5;
/// Words before a number that may say it is something else.
const DENIAL_REACH: usize = 3;
/// Letters of a word that are compared; longer ones are no context word.
const MAX_WORD: usize = 32;

/// Words in order.
struct Phrase {
    /// Each with whether any ending is allowed.
    words: Vec<(String, bool)>,
    /// Whether it must stand next to the number.
    adjacent: bool,
}

struct Lists {
    speaks_for: [Vec<Phrase>; PiiKind::COUNT],
    number_denials: Vec<Phrase>,
    address_denials: Vec<Phrase>,
    secret_denials: Vec<Phrase>,
    units: Vec<Phrase>,
}

static LISTS: LazyLock<Lists> = LazyLock::new(|| {
    let mut lists = Lists {
        speaks_for: [const { Vec::new() }; PiiKind::COUNT],
        number_denials: Vec::new(),
        address_denials: Vec::new(),
        secret_denials: Vec::new(),
        units: Vec::new(),
    };
    for line in include_str!("../../data/pii_context.txt").lines() {
        let Some((name, phrases)) = line.split_once(": ").filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let phrases = phrases.split(", ").map(|phrase| {
            let (adjacent, phrase) =
                phrase.strip_prefix('=').map_or((false, phrase), |phrase| (true, phrase));
            let words = phrase.split(' ').map(|word| match word.strip_suffix('*') {
                Some(stem) => (stem.to_owned(), true),
                None => (word.to_owned(), false),
            });
            Phrase { words: words.collect(), adjacent }
        });
        match name {
            "!NUMBER" => &mut lists.number_denials,
            "!IP_ADDRESS" => &mut lists.address_denials,
            "!SECRET" => &mut lists.secret_denials,
            "!UNIT" => &mut lists.units,
            kind => {
                &mut lists.speaks_for[PiiKind::parse(kind).expect("the file names kinds of ours") as usize]
            }
        }
        .extend(phrases);
    }
    lists
});

/// What can speak against a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// Nothing: its form alone leaves no doubt.
    None,
    /// Words of orders, parcels, tickets.
    Number,
    /// Words of releases.
    Address,
    /// Words of hashes and commits.
    Secret,
}

/// What the words beside a stretch say.
pub(super) struct Words {
    /// That it is of the kind.
    pub(super) speak_for: bool,
    /// That it is something else.
    pub(super) deny: bool,
}

/// Weighs the words beside a stretch. A word that denies counts when it stands shortly before and nothing
/// comes between: in "order 17, card 4111…" it is about another number, in "order by card 4111…" the card is
/// nearer. A unit right after a number denies it too.
pub(super) fn weigh(folded: &Folded, bytes: &Range<usize>, kind: PiiKind, denial: Denial) -> Words {
    let phrases = &LISTS.speaks_for[kind as usize];
    let mut before = words_before(folded, bytes.start, REACH);
    before.reverse();
    let after = words_after(folded, bytes.end, REACH);
    let nearest = nearest(&before, phrases, Side::Before);
    let speak_for = nearest.is_some() || self::nearest(&after, phrases, Side::After).is_some();
    let denials = match denial {
        Denial::None => return Words { speak_for, deny: false },
        Denial::Number => &LISTS.number_denials,
        Denial::Address => &LISTS.address_denials,
        Denial::Secret => &LISTS.secret_denials,
    };
    let number = |word: &String| word.starts_with(OPAQUE) || word.bytes().all(|byte| byte.is_ascii_digit());
    let from = before
        .iter()
        .rposition(number)
        .map_or(0, |place| place + 1)
        .max(nearest.unwrap_or(0))
        .max(before.len().saturating_sub(DENIAL_REACH));
    let measured = denial == Denial::Number
        && (self::nearest(&after, &LISTS.units, Side::After).is_some()
            || folded.before(bytes.start).is_some_and(|sign| "$€£₽¥".contains(sign))
            || folded.text[bytes.end..]
                .trim_start_matches(' ')
                .starts_with(['$', '€', '£', '₽', '¥', '%', '°']));
    Words { speak_for, deny: measured || self::nearest(&before[from..], denials, Side::Before).is_some() }
}

/// Where words stand.
#[derive(Clone, Copy)]
enum Side {
    Before,
    After,
}

/// The place after the last of these phrases among the words, if there is one.
fn nearest(words: &[String], phrases: &[Phrase], side: Side) -> Option<usize> {
    let end = |phrase: &Phrase| {
        let length = phrase.words.len();
        let last = words.len().checked_sub(length)?;
        let mut places = match (phrase.adjacent, side) {
            (false, _) => 0..=last,
            (true, Side::Before) => last..=last,
            (true, Side::After) => 0..=0,
        };
        let place = places.rfind(|place| {
            let stretch = &words[*place..place + length];
            stretch.iter().zip(&phrase.words).all(|(word, (stem, open))| {
                if *open { word.starts_with(stem.as_str()) } else { word == stem }
            })
        });
        place.map(|place| place + length)
    };
    phrases.iter().filter_map(end).max()
}

/// The nearest words first.
fn words_before(folded: &Folded, start: usize, reach: usize) -> Vec<String> {
    let mut words: Vec<String> = Vec::with_capacity(reach);
    let mut word = String::new();
    let mut close = |word: &mut String| {
        if !word.is_empty() {
            words.push(word.chars().rev().collect());
            word.clear();
        }
        words.len() == reach
    };
    // Bounded: a text without spaces must not be walked from each of its places.
    for letter in folded.text[..start].chars().rev().take(reach * MAX_WORD * 2) {
        if is_word(letter) && letter != '_' {
            word.extend(lower(letter));
        } else {
            if close(&mut word) {
                return words;
            }
            if letter == OPAQUE {
                word.push(OPAQUE);
                if close(&mut word) {
                    return words;
                }
            }
        }
    }
    close(&mut word);
    words
}

/// To the end of the line, the next number or the next masked stretch: what follows those is about them.
fn words_after(folded: &Folded, end: usize, reach: usize) -> Vec<String> {
    let mut words = Vec::with_capacity(reach);
    let mut word = String::new();
    for letter in folded.text[end..].chars().take(reach * MAX_WORD) {
        if letter == '\n' || letter == OPAQUE || letter.is_ascii_digit() {
            break;
        }
        if is_word(letter) && letter != '_' {
            word.extend(lower(letter));
        } else if !word.is_empty() {
            words.push(std::mem::take(&mut word));
            if words.len() == reach {
                return words;
            }
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

fn lower(letter: char) -> impl Iterator<Item = char> {
    letter.to_lowercase().map(|letter| if letter == 'ё' { 'е' } else { letter })
}
