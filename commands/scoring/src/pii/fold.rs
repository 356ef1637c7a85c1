//! A text as the recognisers read it: other scripts' digits, wide letters, odd dashes and spaces as their
//! ASCII twins, invisible characters gone, what is masked already behind one opaque character.

use std::{ops::Range, sync::LazyLock};

use regex::Regex;

use super::PiiKind;

/// Stands for a stretch that is masked already: no letter, no digit, no separator, so nothing reaches
/// across it.
pub(super) const OPAQUE: char = '\u{FFFC}';

/// `<CREDIT_CARD>`, `<CREDIT_CARD_12>`, `<CREDIT_CARD ***1111>`, `<CREDIT_CARD#…>`. Tight enough that no
/// personal data fits into one: at most five digits, or four characters, or sixteen letters of sixteen.
static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"<([A-Z][A-Z_]{1,30}?)(?:_[0-9]{1,5}| \*\*\*[^\s<>]{1,4}|#[a-p]{16})?>")
        .expect("a valid pattern")
});

/// Where placeholders of ours, or what looks like one, stand in a text, in bytes.
pub(super) fn placeholders(text: &str) -> impl Iterator<Item = Range<usize>> {
    PLACEHOLDER
        .captures_iter(text)
        .filter(|found| PiiKind::parse(&found[1]).is_some())
        .map(|found| found.get(0).expect("group 0 is the match").range())
}

/// The folded text and the way back.
pub(super) struct Folded {
    pub(super) text: String,
    /// For each byte of `text`: the first code point of the original its character stands for.
    starts: Vec<u32>,
    /// And the one after the last.
    ends: Vec<u32>,
}

impl Folded {
    pub(super) fn new(text: &str) -> Self {
        let mut folded = Self {
            text: String::with_capacity(text.len()),
            starts: Vec::with_capacity(text.len()),
            ends: Vec::with_capacity(text.len()),
        };
        let mut masked = placeholders(text).peekable();
        let mut opaque_since = None;
        for (point, (at, letter)) in (0u32..).zip(text.char_indices()) {
            if let Some(range) = masked.next_if(|range| range.end <= at) {
                folded.push(OPAQUE, opaque_since.take().unwrap_or(point), point);
                debug_assert!(range.end <= at);
            }
            if masked.peek().is_some_and(|range| range.contains(&at)) {
                opaque_since.get_or_insert(point);
                continue;
            }
            if let Some(letter) = fold(letter) {
                folded.push(letter, point, point + 1);
            }
        }
        if let Some(since) = opaque_since {
            let points = u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
            folded.push(OPAQUE, since, points);
        }
        folded
    }

    fn push(&mut self, letter: char, start: u32, end: u32) {
        self.text.push(letter);
        self.starts.resize(self.text.len(), start);
        self.ends.resize(self.text.len(), end);
    }

    /// The stretch of the original behind a stretch of folded bytes that is not empty.
    pub(super) fn points(&self, bytes: &Range<usize>) -> Range<u32> {
        self.starts[bytes.start]..self.ends[bytes.end - 1]
    }

    /// The same text with these stretches (in order, apart) behind [`OPAQUE`].
    pub(super) fn hide(&self, stretches: &[Range<usize>]) -> Self {
        let mut folded = Self { text: String::new(), starts: Vec::new(), ends: Vec::new() };
        let mut at = 0;
        for stretch in stretches {
            folded.copy(self, at..stretch.start);
            let points = self.points(stretch);
            folded.push(OPAQUE, points.start, points.end);
            at = stretch.end;
        }
        folded.copy(self, at..self.text.len());
        folded
    }

    fn copy(&mut self, from: &Self, bytes: Range<usize>) {
        self.text.push_str(&from.text[bytes.clone()]);
        self.starts.extend_from_slice(&from.starts[bytes.clone()]);
        self.ends.extend_from_slice(&from.ends[bytes]);
    }

    /// The character before a byte.
    pub(super) fn before(&self, at: usize) -> Option<char> {
        self.text[..at].chars().next_back()
    }

    /// The character from a byte on.
    pub(super) fn after(&self, at: usize) -> Option<char> {
        self.text[at..].chars().next()
    }

    /// Whether a stretch is a word of its own: no letter, digit or `_` touches it.
    pub(super) fn stands_alone(&self, bytes: &Range<usize>) -> bool {
        !self.before(bytes.start).is_some_and(is_word) && !self.after(bytes.end).is_some_and(is_word)
    }
}

/// Letters, digits and `_`.
pub(super) fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// One character for one, or none for those nobody sees.
fn fold(letter: char) -> Option<char> {
    if letter.is_ascii() {
        return Some(letter);
    }
    let code = u32::from(letter);
    Some(match letter {
        '\u{AD}' | '\u{34F}' | '\u{61C}' | '\u{180E}' | '\u{FEFF}' => return None,
        '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{2064}' => return None,
        '\u{2066}'..='\u{206F}' | '\u{FE00}'..='\u{FE0F}' | '\u{E0000}'..='\u{E007F}' => return None,
        '\u{A0}' | '\u{1680}' | '\u{2000}'..='\u{200A}' | '\u{202F}' | '\u{205F}' | '\u{3000}' => ' ',
        '\u{2028}' | '\u{2029}' | '\u{85}' => '\n',
        '‐' | '‑' | '‒' | '–' | '—' | '―' | '−' | '﹣' => '-',
        '’' | '‘' | 'ʼ' => '\'',
        // The full-width twins of ASCII stand in its order.
        '\u{FF01}'..='\u{FF5E}' => char::from_u32(code - 0xFEE0).unwrap_or(letter),
        '٠'..='٩' => ascii_digit(code - 0x660),
        '۰'..='۹' => ascii_digit(code - 0x6F0),
        '०'..='९' => ascii_digit(code - 0x966),
        '০'..='৯' => ascii_digit(code - 0x9E6),
        '๐'..='๙' => ascii_digit(code - 0xE50),
        '\u{1D7CE}'..='\u{1D7FF}' => ascii_digit((code - 0x1D7CE) % 10),
        _ => letter,
    })
}

fn ascii_digit(value: u32) -> char {
    char::from_digit(value, 10).unwrap_or('0')
}
