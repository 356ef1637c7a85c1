//! The blocked words of a policy, found also where somebody disguised them.

use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use crate::normalise::WordKind;
use crate::{Normalised, Span};

/// Most words a list may have.
pub const MOST_WORDS: usize = 10_000;

/// Longest word or phrase, in code points.
pub const LONGEST_WORD: usize = 100;

/// Shortest word that is also looked for inside spelled or disguised writing, in code points: two letters
/// stand side by side too often.
const SHORTEST_DISGUISED: usize = 4;

/// A list of blocked words, ready to be looked for.
///
/// `casino` is that word alone; `casin*` also begins longer words, `*coin` ends them, `*bet*` stands anywhere;
/// `free money` is a phrase, whatever space or punctuation parts its words. Case, look-alike letters, invisible
/// characters, letters spelled one by one (`c a s i n o`) and digits for letters (`c4s1n0`) make no difference.
#[derive(Clone, Debug)]
pub struct BlockedWords {
    automaton: AhoCorasick,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    written: String,
    begins_word: bool,
    ends_word: bool,
    letters: usize,
}

/// A blocked word and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockedHit {
    /// Code points of the original.
    pub span: Span,
    /// As the list has it.
    pub word: String,
}

/// Why a list cannot be used. Positions count from one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockedWordsError {
    #[error("the list has {0} words, at most {MOST_WORDS} are allowed")]
    TooMany(usize),
    #[error("word {position} is longer than {LONGEST_WORD} characters")]
    TooLong { position: usize },
    #[error("word {position} has neither a letter nor a digit")]
    Empty { position: usize },
    #[error("word {position} has a * inside; only the beginning and the end may be open")]
    InnerWildcard { position: usize },
    #[error("word {position} is open and has a single letter, which would block nearly everything")]
    TooOpen { position: usize },
    #[error("the list is too large")]
    TooLarge,
}

impl BlockedWords {
    /// Reads a list. Words that are the same after folding are kept once.
    ///
    /// # Errors
    /// [`BlockedWordsError`] with the position of the first word that cannot be used.
    pub fn compile<S: AsRef<str>>(words: &[S]) -> Result<Self, BlockedWordsError> {
        if words.len() > MOST_WORDS {
            return Err(BlockedWordsError::TooMany(words.len()));
        }
        let mut shapes = Vec::with_capacity(words.len());
        let mut entries = Vec::with_capacity(words.len());
        for (index, word) in words.iter().enumerate() {
            let position = index + 1;
            let written = word.as_ref().trim();
            if written.chars().count() > LONGEST_WORD {
                return Err(BlockedWordsError::TooLong { position });
            }
            let inner = written.trim_matches('*');
            if inner.contains('*') {
                return Err(BlockedWordsError::InnerWildcard { position });
            }
            let shape = squeeze(&Normalised::of(inner)).text;
            let shape = shape.trim();
            let letters = shape.chars().filter(|c| c.is_alphanumeric()).count();
            if letters == 0 {
                return Err(BlockedWordsError::Empty { position });
            }
            let entry = Entry {
                written: written.to_owned(),
                begins_word: !written.starts_with('*'),
                ends_word: !written.ends_with('*'),
                letters,
            };
            if letters == 1 && !(entry.begins_word && entry.ends_word) {
                return Err(BlockedWordsError::TooOpen { position });
            }
            shapes.push(shape.to_owned());
            entries.push(entry);
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(&shapes)
            .map_err(|_| BlockedWordsError::TooLarge)?;
        Ok(Self { automaton, entries })
    }

    /// How many words the list has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the list has no word.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every blocked word in a text, in order, each place once per word.
    #[must_use]
    pub fn find(&self, text: &Normalised) -> Vec<BlockedHit> {
        if self.entries.is_empty() {
            return Vec::new();
        }
        let mut hits = Vec::new();
        let plain = squeeze(text);
        self.look(&plain, text, 1, &mut hits);
        if let Some(disguised) = undisguise(text) {
            self.look(&disguised, text, SHORTEST_DISGUISED, &mut hits);
        }
        if let Some(spelled) = spell(text) {
            self.look(&spelled, text, SHORTEST_DISGUISED, &mut hits);
        }
        hits.sort();
        hits.dedup();
        hits
    }

    fn look(&self, writing: &Writing, text: &Normalised, fewest_letters: usize, hits: &mut Vec<BlockedHit>) {
        for found in self.automaton.find_overlapping_iter(&writing.text) {
            let entry = &self.entries[found.pattern().as_usize()];
            let whole = (!entry.begins_word || !super::inside_word_at(&writing.text, found.start()))
                && (!entry.ends_word || !super::inside_word_at(&writing.text, found.end()));
            if entry.letters < fewest_letters || !whole {
                continue;
            }
            if let Some(bytes) = writing.bytes(found.range()) {
                hits.push(BlockedHit { span: text.span_of(bytes), word: entry.written.clone() });
            }
        }
    }
}

/// A way of reading a text, with the way back to its folded bytes.
struct Writing {
    text: String,
    /// Byte in `text` and the folded bytes it was made from, ascending.
    parts: Vec<(usize, Range<usize>)>,
}

impl Writing {
    fn new() -> Self {
        Self { text: String::new(), parts: Vec::new() }
    }

    fn push(&mut self, read: char, from: Range<usize>) {
        self.parts.push((self.text.len(), from));
        self.text.push(read);
    }

    fn bytes(&self, range: Range<usize>) -> Option<Range<usize>> {
        let first = self.parts.partition_point(|(start, _)| *start < range.start);
        let last = self.parts.partition_point(|(start, _)| *start < range.end).checked_sub(1)?;
        Some(self.parts.get(first)?.1.start..self.parts.get(last)?.1.end)
    }
}

/// Words with one space between them and no signs: what parts the words of a phrase is all the same.
fn squeeze(text: &Normalised) -> Writing {
    let mut writing = Writing::new();
    for word in text.words().iter().filter(|word| word.kind != WordKind::Symbol) {
        if let Some((_, last)) = writing.parts.last() {
            let gap = last.end..word.range.start;
            if !gap.is_empty() {
                writing.push(' ', gap);
            }
        }
        push_word(text, word.range.clone(), &mut writing, |letter| letter);
    }
    writing
}

fn push_word(text: &Normalised, range: Range<usize>, writing: &mut Writing, read: impl Fn(char) -> char) {
    for (offset, letter) in text.folded()[range.clone()].char_indices() {
        let start = range.start + offset;
        writing.push(read(letter), start..start + letter.len_utf8());
    }
}

/// Digits and signs read as letters in tokens that also have letters; signs inside a token (`c.a.s-ino`) left
/// out. Nothing when no token is so written.
fn undisguise(text: &Normalised) -> Option<Writing> {
    let mut writing = Writing::new();
    let mut any = false;
    let mut offset = 0;
    for token in text.folded().split_inclusive(char::is_whitespace) {
        let start = offset;
        offset += token.len();
        let written = token.trim_end();
        let letters = written.chars().filter(|c| c.is_alphabetic()).count();
        let address = written.contains("://") || written.contains('@') && written.contains('.');
        let disguised = letters > 0
            && !address
            && written.char_indices().any(|(at, c)| {
                !c.is_alphabetic() && at > 0 && at + c.len_utf8() < written.len()
                    || super::letter_of(c).is_some() && c != '!'
            });
        for (at, character) in written.char_indices() {
            let from = start + at..start + at + character.len_utf8();
            if character.is_alphabetic() || !disguised {
                writing.push(character, from);
            } else if let Some(letter) = super::letter_of(character) {
                any = true;
                writing.push(letter, from);
            } else if character.is_numeric() {
                writing.push(character, from);
            } else {
                any = true;
            }
        }
        if token.len() > written.len() {
            writing.push(' ', start + written.len()..offset);
        }
    }
    any.then_some(writing)
}

/// Single letters joined to words; nothing when fewer than [`SHORTEST_DISGUISED`] stand in a row.
fn spell(text: &Normalised) -> Option<Writing> {
    let mut writing = Writing::new();
    let mut run: Vec<Range<usize>> = Vec::new();
    let mut any = false;
    let finish = |run: &mut Vec<Range<usize>>, writing: &mut Writing| {
        if run.len() >= SHORTEST_DISGUISED {
            let usual = run.windows(2).map(|pair| pair[1].start - pair[0].end).min().unwrap_or(1);
            for (index, letter) in run.iter().enumerate() {
                if index > 0 && letter.start - run[index - 1].end > usual {
                    writing.push(' ', run[index - 1].end..letter.start);
                }
                push_word(text, letter.clone(), writing, |letter| letter);
            }
            writing.push(' ', run[run.len() - 1].end..run[run.len() - 1].end);
        }
        let long = run.len() >= SHORTEST_DISGUISED;
        run.clear();
        long
    };
    for word in text.words() {
        let single = text.word(word).chars().count() == 1;
        match word.kind {
            WordKind::Symbol => {}
            _ if single && run.last().is_none_or(|last| word.range.start - last.end <= 4) => {
                run.push(word.range.clone());
            }
            _ => {
                any |= finish(&mut run, &mut writing);
                if single {
                    run.push(word.range.clone());
                }
            }
        }
    }
    any |= finish(&mut run, &mut writing);
    any.then_some(writing)
}
