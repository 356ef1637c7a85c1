//! One reading of a text for all detectors: compatibility forms resolved, invisible characters gone, lower
//! case, letters borrowed from another script put back, and a way to the original for every character.
//!
//! Look-alikes are folded only *inside* words that mix scripts, because a general fold to Latin destroys
//! every Russian word. Work is bounded: of a long text only the beginning and the end are read.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use unicode_normalization::char::{canonical_combining_class, decompose_compatible};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfkc_quick};

/// Code points read at the beginning of a long text, and as many at its end.
pub const READ_EACH_END: usize = 4_000;

/// Most folded code points an end gives; one ligature may stand for eighteen letters.
const FOLDED_EACH_END: usize = 2 * READ_EACH_END;

/// Words of a window; see [`Normalised::windows`].
pub const WINDOW_WORDS: usize = 60;

/// Words between the beginnings of two windows: they overlap, so that no phrase falls between two.
const WINDOW_STEP: usize = 45;

/// A stretch of the original text in code points, end exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

/// What a word is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordKind {
    /// Letters, perhaps with digits and inner apostrophes.
    Letters,
    /// Digits only.
    Number,
    /// The same character that is neither letter, digit nor space, once or several times.
    Symbol,
}

/// A word or a run of one symbol in the folded text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Where in [`Normalised::folded`], in bytes.
    pub range: Range<usize>,
    pub kind: WordKind,
    /// Its letters came from more than one script before folding.
    pub mixed: bool,
    /// It was written in capitals only, two letters or more.
    pub shouted: bool,
}

/// A text as the detectors read it, with the way back to the original.
///
/// In the folded text letters are lower case, `ё` is `е`, typographic quotes and dashes are the ASCII
/// ones, and combining marks that compose with nothing (stress marks, "zalgo") are left out.
#[derive(Clone, Debug)]
pub struct Normalised {
    folded: String,
    /// First byte of each folded code point.
    starts: Vec<u32>,
    /// What each folded code point was made from.
    origins: Vec<Span>,
    words: Vec<Word>,
    hidden: u32,
    skipped: Option<Span>,
}

/// A folded code point before the text is put together.
struct Glyph {
    letter: char,
    origin: Span,
    capital: bool,
}

impl Normalised {
    /// Reads a text. Never fails; of more than twice [`READ_EACH_END`] code points the middle is skipped.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let room = text.len().min(2 * READ_EACH_END + 1);
        let mut reading = Reading { glyphs: Vec::with_capacity(room), hidden: 0 };
        // Bytes are an upper bound of code points, so that short texts are not counted first.
        let length = if text.len() <= 2 * READ_EACH_END { 0 } else { text.chars().count() };
        let mut skipped = None;
        if length <= 2 * READ_EACH_END {
            reading.read(text, 0);
        } else {
            let tail = length - READ_EACH_END;
            let head_end = byte_of(text, READ_EACH_END);
            let tail_start = head_end + byte_of(&text[head_end..], tail - READ_EACH_END);
            let gap = Span { start: position(READ_EACH_END), end: position(tail) };
            reading.read(&text[..head_end], 0);
            reading.glyphs.push(Glyph { letter: '\n', origin: gap, capital: false });
            reading.read(&text[tail_start..], tail);
            skipped = Some(gap);
        }
        reading.finish(skipped)
    }

    /// The text detectors match against.
    #[must_use]
    pub fn folded(&self) -> &str {
        &self.folded
    }

    /// Words and symbols in order. Spaces are in none of them.
    #[must_use]
    pub fn words(&self) -> &[Word] {
        &self.words
    }

    /// The folded text of a word.
    #[must_use]
    pub fn word(&self, word: &Word) -> &str {
        &self.folded[word.range.clone()]
    }

    /// Words written with letters of several scripts.
    #[must_use]
    pub fn mixed_words(&self) -> usize {
        self.words.iter().filter(|word| word.mixed).count()
    }

    /// Invisible characters that were taken out; those that build emoji are not counted.
    #[must_use]
    pub fn hidden(&self) -> u32 {
        self.hidden
    }

    /// The middle of a long text, which was not read.
    #[must_use]
    pub fn skipped(&self) -> Option<Span> {
        self.skipped
    }

    /// Where a byte range of the folded text stands in the original. An empty range gives the empty span
    /// before the character it stands at. Ranges need not fall on character borders.
    #[must_use]
    pub fn span_of(&self, range: Range<usize>) -> Span {
        let first = self.starts.partition_point(|start| (*start as usize) < range.start);
        let first = if self.starts.get(first).is_some_and(|start| *start as usize == range.start) {
            first
        } else {
            // Inside a character, or at the end of the text.
            first.saturating_sub(usize::from(range.start < self.folded.len()))
        };
        let last = self.starts.partition_point(|start| (*start as usize) < range.end);
        let end_of_text = self.origins.last().map_or(0, |origin| origin.end);
        let start = self.origins.get(first).map_or(end_of_text, |origin| origin.start);
        if range.is_empty() || last <= first {
            return Span { start, end: start };
        }
        Span { start, end: self.origins[last - 1].end.max(start) }
    }

    /// The text in overlapping windows of [`WINDOW_WORDS`], as ranges of [`Normalised::words`]. A text of
    /// up to one and a half windows is one window; an empty text has none.
    pub fn windows(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let words = self.words.len();
        let single = words <= WINDOW_WORDS + WINDOW_WORDS / 2;
        let count = match words {
            0 => 0,
            _ if single => 1,
            _ => 1 + (words - WINDOW_WORDS).div_ceil(WINDOW_STEP),
        };
        (0..count).map(move |window| {
            let start = window * WINDOW_STEP;
            start..if single { words } else { (start + WINDOW_WORDS).min(words) }
        })
    }

    /// Where a range of words stands in the original.
    #[must_use]
    pub fn span_of_words(&self, words: Range<usize>) -> Span {
        match self.words.get(words) {
            Some([first, .., last]) => self.span_of(first.range.start..last.range.end),
            Some([only]) => self.span_of(only.range.clone()),
            _ => Span { start: 0, end: 0 },
        }
    }
}

fn byte_of(text: &str, code_point: usize) -> usize {
    text.char_indices().nth(code_point).map_or(text.len(), |(byte, _)| byte)
}

fn position(code_point: usize) -> u32 {
    u32::try_from(code_point).unwrap_or(u32::MAX)
}

struct Reading {
    glyphs: Vec<Glyph>,
    hidden: u32,
}

impl Reading {
    /// Reads one end of the text, which begins at the code point `offset` of the original.
    fn read(&mut self, text: &str, offset: usize) {
        let limit = self.glyphs.len() + FOLDED_EACH_END;
        // Characters that may change one another: composed together, they share an origin.
        let mut cluster = String::new();
        let mut origin = Span { start: position(offset), end: position(offset) };
        for (index, character) in text.chars().enumerate() {
            if self.glyphs.len() >= limit {
                return;
            }
            let at = position(offset + index);
            if is_invisible(character) {
                self.hidden += u32::from(!builds_emoji(character));
                continue;
            }
            if !cluster.is_empty() && starts_cluster(character) {
                self.fold_cluster(&cluster, origin);
                cluster.clear();
            }
            if cluster.is_empty() {
                origin.start = at;
            }
            cluster.push(character);
            origin.end = at.saturating_add(1);
        }
        self.fold_cluster(&cluster, origin);
    }

    fn fold_cluster(&mut self, cluster: &str, origin: Span) {
        if let &[byte] = cluster.as_bytes() {
            let letter = char::from(byte.to_ascii_lowercase());
            self.glyphs.push(Glyph { letter, origin, capital: byte.is_ascii_uppercase() });
            return;
        }
        if let Some(letter @ 'А'..='я') = cluster.chars().next()
            && cluster.len() == letter.len_utf8()
        {
            // As the general way below would have it, which takes a third of the time of a Russian text.
            let capital = letter <= 'Я';
            let small =
                if capital { char::from_u32(u32::from(letter) + 0x20).unwrap_or(letter) } else { letter };
            self.glyphs.push(Glyph { letter: small, origin, capital });
            return;
        }
        for character in cluster.nfkc() {
            let character = plain(character);
            for letter in character.to_lowercase() {
                if ('\u{300}'..='\u{36f}').contains(&letter) {
                    continue;
                }
                self.glyphs.push(Glyph {
                    letter: if letter == 'ё' { 'е' } else { letter },
                    origin,
                    capital: character.is_uppercase(),
                });
            }
        }
    }

    fn finish(mut self, skipped: Option<Span>) -> Normalised {
        let found = self.find_words();
        let text_script = self.text_script(&found);
        let mut traits = Vec::with_capacity(found.len());
        for (glyphs, kind) in &found {
            let mixed = *kind == WordKind::Letters && self.unmix(glyphs.clone(), text_script);
            let word = &self.glyphs[glyphs.clone()];
            let shouted =
                *kind == WordKind::Letters && word.len() > 1 && word.iter().all(|glyph| glyph.capital);
            traits.push((mixed, shouted));
        }
        let mut folded = String::with_capacity(self.glyphs.len() + self.glyphs.len() / 4);
        let mut starts = Vec::with_capacity(self.glyphs.len());
        let mut origins = Vec::with_capacity(self.glyphs.len());
        for glyph in &self.glyphs {
            starts.push(position(folded.len()));
            origins.push(glyph.origin);
            folded.push(glyph.letter);
        }
        let byte = |glyph: usize| starts.get(glyph).map_or(folded.len(), |start| *start as usize);
        let words = found
            .into_iter()
            .zip(traits)
            .map(|((glyphs, kind), (mixed, shouted))| Word {
                range: byte(glyphs.start)..byte(glyphs.end),
                kind,
                mixed,
                shouted,
            })
            .collect();
        Normalised { folded, starts, origins, words, hidden: self.hidden, skipped }
    }

    fn find_words(&self) -> Vec<(Range<usize>, WordKind)> {
        let letter_at = |at: usize| self.glyphs.get(at).map_or(' ', |glyph| glyph.letter);
        let mut words = Vec::with_capacity(self.glyphs.len() / 4);
        let mut at = 0;
        while at < self.glyphs.len() {
            let first = letter_at(at);
            let start = at;
            at += 1;
            if first.is_whitespace() || first.is_control() {
                continue;
            }
            if !is_letter_or_digit(first) {
                while at < self.glyphs.len() && letter_at(at) == first {
                    at += 1;
                }
                words.push((start..at, WordKind::Symbol));
                continue;
            }
            let mut only_digits = first.is_numeric();
            loop {
                let next = letter_at(at);
                let inner =
                    next == '\'' && letter_at(at - 1).is_alphabetic() && letter_at(at + 1).is_alphabetic();
                if !inner && !is_letter_or_digit(next) {
                    break;
                }
                only_digits &= next.is_numeric();
                at += 1;
            }
            words.push((start..at, if only_digits { WordKind::Number } else { WordKind::Letters }));
        }
        words
    }

    /// The script most letters of the text belong to, for words that are half and half.
    fn text_script(&self, words: &[(Range<usize>, WordKind)]) -> Script {
        let mut letters = [0_usize; 3];
        for (glyphs, _) in words {
            for glyph in &self.glyphs[glyphs.clone()] {
                if let Some(script) = script_of(glyph.letter) {
                    letters[script as usize] += 1;
                }
            }
        }
        majority(letters, Script::Latin)
    }

    /// Puts borrowed letters of a word back into its own script; whether the word mixed scripts.
    fn unmix(&mut self, glyphs: Range<usize>, text_script: Script) -> bool {
        let word = &mut self.glyphs[glyphs];
        let mut letters = [0_usize; 3];
        let mut distinctive = [0_usize; 3];
        for glyph in word.iter() {
            if let Some(script) = script_of(glyph.letter) {
                letters[script as usize] += 1;
                distinctive[script as usize] += usize::from(!resembles_another(glyph.letter, script));
            }
        }
        if letters.iter().filter(|count| **count > 0).count() < 2 {
            return false;
        }
        // A letter that looks like no other is what the writer could not replace, so it decides before
        // the number does: of six letters of a disguised "paypal" four may be Cyrillic.
        let script = if distinctive.iter().filter(|count| **count > 0).count() == 1 {
            majority(distinctive, text_script)
        } else {
            majority(letters, text_script)
        };
        for glyph in word {
            glyph.letter = match script {
                Script::Latin => as_latin(glyph.letter),
                Script::Cyrillic => as_cyrillic(glyph.letter, glyph.capital),
                Script::Greek => glyph.letter,
            };
        }
        true
    }
}

/// The script with most letters; `preferred` where two have as many.
fn majority(letters: [usize; 3], preferred: Script) -> Script {
    [Script::Latin, Script::Cyrillic, Script::Greek]
        .into_iter()
        .max_by_key(|script| (letters[*script as usize], *script == preferred))
        .unwrap_or(preferred)
}

/// Scripts whose letters pass for one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    Latin,
    Cyrillic,
    Greek,
}

/// As [`char::is_alphanumeric`], without a look into its tables for letters most texts are made of.
pub(crate) fn is_letter_or_digit(character: char) -> bool {
    matches!(character, 'a'..='z' | 'а'..='я' | '0'..='9') || character.is_alphanumeric()
}

fn script_of(letter: char) -> Option<Script> {
    match letter {
        'a'..='z' => Some(Script::Latin),
        'а'..='я' => Some(Script::Cyrillic),
        'ª' | 'º' | '\u{c0}'..='\u{24f}' | '\u{250}'..='\u{2af}' | '\u{1e00}'..='\u{1eff}' => {
            letter.is_alphabetic().then_some(Script::Latin)
        }
        '\u{370}'..='\u{3ff}' | '\u{1f00}'..='\u{1fff}' => letter.is_alphabetic().then_some(Script::Greek),
        '\u{400}'..='\u{52f}'
        | '\u{1c80}'..='\u{1c8f}'
        | '\u{2de0}'..='\u{2dff}'
        | '\u{a640}'..='\u{a69f}' => letter.is_alphabetic().then_some(Script::Cyrillic),
        _ => None,
    }
}

fn resembles_another(letter: char, script: Script) -> bool {
    match script {
        Script::Latin => as_cyrillic(letter, false) != letter || as_cyrillic(letter, true) != letter,
        Script::Cyrillic | Script::Greek => as_latin(letter) != letter,
    }
}

/// The Latin letter a lower-case look-alike stands for, in either case of the original.
fn as_latin(letter: char) -> char {
    match letter {
        'а' | 'α' => 'a',
        'в' | 'β' | 'ь' => 'b',
        'с' | 'ϲ' => 'c',
        'ԁ' | 'δ' => 'd',
        'е' | 'є' | 'ε' => 'e',
        'ԍ' => 'g',
        'н' | 'һ' => 'h',
        'і' | 'ї' | 'ι' => 'i',
        'ј' | 'ϳ' => 'j',
        'к' | 'κ' => 'k',
        'ӏ' => 'l',
        'м' | 'μ' => 'm',
        'п' | 'η' => 'n',
        'о' | 'ο' | 'σ' | '0' => 'o',
        'р' | 'ρ' => 'p',
        'ԛ' => 'q',
        'г' => 'r',
        'ѕ' => 's',
        'т' | 'τ' => 't',
        'и' | 'υ' => 'u',
        'ѵ' | 'ν' => 'v',
        'ш' | 'ԝ' | 'ω' => 'w',
        'х' | 'χ' => 'x',
        'у' | 'ү' | 'γ' => 'y',
        'ζ' => 'z',
        other => other,
    }
}

/// The Cyrillic letter a lower-case look-alike stands for; `capital` says how it was written.
fn as_cyrillic(letter: char, capital: bool) -> char {
    match letter {
        'a' | 'α' => 'а',
        'b' if capital => 'в',
        'b' => 'ь',
        'β' => 'в',
        'c' | 'ϲ' => 'с',
        'e' | 'ε' => 'е',
        'h' => 'н',
        'k' | 'κ' => 'к',
        'm' | 'μ' => 'м',
        'n' | 'η' => 'п',
        'o' | 'ο' | '0' => 'о',
        'p' | 'ρ' => 'р',
        'r' => 'г',
        's' if capital => 'ѕ',
        't' | 'τ' => 'т',
        'u' => 'и',
        'x' | 'χ' => 'х',
        'y' | 'γ' => 'у',
        'i' | 'ι' => 'і',
        'j' => 'ј',
        'w' => 'ш',
        '3' => 'з',
        '4' => 'ч',
        '6' => 'б',
        other => other,
    }
}

/// Letters and signs that no compatibility form resolves although everybody reads them as the plain one.
fn plain(character: char) -> char {
    match character {
        '\u{2018}' | '\u{2019}' | '\u{201b}' | '\u{2032}' | '\u{2bc}' | '`' | '\u{b4}' => '\'',
        '\u{201c}' | '\u{201d}' | '\u{201e}' | '\u{201f}' | '«' | '»' | '\u{2033}' => '"',
        '\u{2010}'..='\u{2015}' | '\u{2212}' => '-',
        // Small capitals, which are letters of their own to Unicode.
        'ᴀ' => 'a',
        'ʙ' => 'b',
        'ᴄ' => 'c',
        'ᴅ' => 'd',
        'ᴇ' => 'e',
        'ꜰ' => 'f',
        'ɢ' => 'g',
        'ʜ' => 'h',
        'ɪ' => 'i',
        'ᴊ' => 'j',
        'ᴋ' => 'k',
        'ʟ' => 'l',
        'ᴍ' => 'm',
        'ɴ' => 'n',
        'ᴏ' => 'o',
        'ᴘ' => 'p',
        'ʀ' => 'r',
        'ꜱ' => 's',
        'ᴛ' => 't',
        'ᴜ' => 'u',
        'ᴠ' => 'v',
        'ᴡ' => 'w',
        'ʏ' => 'y',
        'ᴢ' => 'z',
        // White letters in black circles and squares.
        '\u{1f150}'..='\u{1f169}' => alphabet(u32::from(character) - 0x1f150),
        '\u{1f170}'..='\u{1f189}' => alphabet(u32::from(character) - 0x1f170),
        other => other,
    }
}

fn alphabet(index: u32) -> char {
    char::from(b'a' + u8::try_from(index % 26).expect("a remainder of 26 fits"))
}

/// Zero-width, direction and other characters that show nothing.
fn is_invisible(character: char) -> bool {
    match character {
        '\t' | '\n' | '\r' => false,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{84}' | '\u{86}'..='\u{9f}' => true,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' => true,
        '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' => true,
        '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' => true,
        '\u{fff0}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}' => true,
        _ => false,
    }
}

/// Invisible characters that every phone puts between and behind emoji, and that typesetting leaves.
fn builds_emoji(character: char) -> bool {
    matches!(character, '\u{200d}' | '\u{fe00}'..='\u{fe0f}' | '\u{ad}' | '\u{feff}')
}

/// No normalisation joins this character to the one before it.
fn starts_cluster(character: char) -> bool {
    if character.is_ascii() || ('\u{410}'..='\u{44f}').contains(&character) {
        return true;
    }
    let mut first = None;
    decompose_compatible(character, |part| {
        first.get_or_insert(part);
    });
    first.is_some_and(|part| {
        canonical_combining_class(part) == 0 && is_nfkc_quick(std::iter::once(part)) == IsNormalized::Yes
    })
}
