//! Words and phrases looked for in a normalised text: the concepts the detectors share, sequences of
//! concepts as rules, and the blocked words of a policy.
//!
//! A **concept** is a named group of words and phrases that mean one thing in every language this project
//! writes for (`[override]` holds *ignore*, *vergiss*, *забудь*). A **pattern** is a sequence of concepts
//! with a bounded number of words between them, which makes a rule hold in all those languages at once and
//! keeps its cost linear: there is no backtracking and no regular expression here.

use std::collections::BTreeMap;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use crate::normalise::{WordKind, is_letter_or_digit};
use crate::{Normalised, Span};

mod blocked;

pub use blocked::{BlockedHit, BlockedWords, BlockedWordsError, LONGEST_WORD, MOST_WORDS};

/// Concepts compiled into one automaton, so that a text is read once however many words there are.
#[derive(Clone, Debug)]
pub struct Concepts {
    automaton: AhoCorasick,
    entries: Vec<Entry>,
    names: Vec<String>,
}

#[derive(Clone, Debug)]
struct Entry {
    concepts: Vec<u16>,
    /// `false` for `ignor*`: the word may go on.
    ends_word: bool,
    /// `false` for `*ware`: the word may have begun before.
    begins_word: bool,
}

/// Why a lexicon cannot be read. The shipped ones are compiled in a test.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LexiconError {
    #[error("line {line}: an entry before the first [concept]")]
    NoConcept { line: usize },
    #[error("line {line}: an entry without a letter or digit")]
    Empty { line: usize },
    #[error("no concept named {0}")]
    Unknown(String),
    #[error("pattern {0}: {1}")]
    Pattern(String, &'static str),
    #[error("the lexicon is too large")]
    TooLarge,
}

impl Concepts {
    /// Reads a lexicon: `[name]` opens a concept, entries follow separated by commas and line ends, `#` opens
    /// a comment line. `ignor*` also holds longer words; `a b` is a phrase across white space; an entry in
    /// `"quotes"` may hold any character.
    ///
    /// # Errors
    /// [`LexiconError`] with the line.
    pub fn parse(text: &str) -> Result<Self, LexiconError> {
        let mut names: Vec<String> = Vec::new();
        let mut by_shape: BTreeMap<(String, bool, bool), Vec<u16>> = BTreeMap::new();
        let mut current = None;
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                let position = names.iter().position(|known| known == name).unwrap_or_else(|| {
                    names.push(name.to_owned());
                    names.len() - 1
                });
                current = Some(u16::try_from(position).map_err(|_| LexiconError::TooLarge)?);
                continue;
            }
            let Some(concept) = current else { return Err(LexiconError::NoConcept { line: line_number }) };
            for item in line.split(',').map(str::trim).filter(|item| !item.is_empty()) {
                let (item, begins_word, ends_word) = match item.strip_prefix('"') {
                    // Marks of a chat template stand anywhere, also inside what looks like a word.
                    Some(quoted) => (quoted.trim_end_matches('"'), false, false),
                    None => (item.trim_matches('*'), !item.starts_with('*'), !item.ends_with('*')),
                };
                let text = Normalised::of(item);
                let folded = text.folded().trim();
                if folded.is_empty() {
                    return Err(LexiconError::Empty { line: line_number });
                }
                let concepts = by_shape.entry((folded.to_owned(), begins_word, ends_word)).or_default();
                if !concepts.contains(&concept) {
                    concepts.push(concept);
                }
            }
        }
        let (shapes, entries): (Vec<String>, Vec<Entry>) = by_shape
            .into_iter()
            .map(|((word, begins_word, ends_word), concepts)| {
                (word, Entry { concepts, ends_word, begins_word })
            })
            .unzip();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(&shapes)
            .map_err(|_| LexiconError::TooLarge)?;
        Ok(Self { automaton, entries, names })
    }

    /// The number of a concept in [`Sightings`].
    ///
    /// # Errors
    /// [`LexiconError::Unknown`].
    pub fn id(&self, name: &str) -> Result<u16, LexiconError> {
        self.names
            .iter()
            .position(|known| known == name)
            .and_then(|position| u16::try_from(position).ok())
            .ok_or_else(|| LexiconError::Unknown(name.to_owned()))
    }

    /// The names by number.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Every word and phrase of the lexicon in a text, by concept and in order.
    #[must_use]
    pub fn find(&self, text: &Normalised) -> Sightings {
        let folded = text.folded();
        let words = Words::of(text);
        let mut by_concept = vec![Vec::new(); self.names.len()];
        for found in self.automaton.find_overlapping_iter(folded) {
            let entry = &self.entries[found.pattern().as_usize()];
            let (start, end) = (found.start(), found.end());
            if entry.begins_word && inside_word_at(folded, start)
                || entry.ends_word && inside_word_at(folded, end)
            {
                continue;
            }
            // An open end shows the whole word.
            let start = start - word_before(folded, start);
            let end = end + word_after(folded, end);
            let sighting = Sighting { first_word: words.at(start), last_word: words.at(end - 1), start, end };
            for &concept in &entry.concepts {
                by_concept[usize::from(concept)].push(sighting);
            }
        }
        for sightings in &mut by_concept {
            sightings.sort_by_key(|sighting| (sighting.first_word, sighting.last_word));
        }
        Sightings { by_concept, words }
    }
}

/// The letter a digit or sign stands for in disguised writing.
pub(crate) fn letter_of(character: char) -> Option<char> {
    Some(match character {
        '0' => 'o',
        '1' | '!' | '|' => 'i',
        '3' => 'e',
        '4' | '@' => 'a',
        '5' | '$' => 's',
        '7' | '+' => 't',
        '8' => 'b',
        '9' => 'g',
        _ => return None,
    })
}

/// Whether a word goes on across this byte position.
fn inside_word_at(text: &str, position: usize) -> bool {
    let before = text[..position].chars().next_back().is_some_and(is_word);
    let after = text[position..].chars().next().is_some_and(is_word);
    before && after
}

/// Most characters a span is widened by to show a whole word; text without spaces has no end.
const LONGEST_SHOWN: usize = 40;

/// Bytes of the word that goes on before a position; none where no word goes on across it.
fn word_before(text: &str, position: usize) -> usize {
    if !inside_word_at(text, position) {
        return 0;
    }
    text[..position]
        .chars()
        .rev()
        .take(LONGEST_SHOWN)
        .take_while(|character| is_word(*character))
        .map(char::len_utf8)
        .sum()
}

/// The same after a position.
fn word_after(text: &str, position: usize) -> usize {
    if !inside_word_at(text, position) {
        return 0;
    }
    text[position..]
        .chars()
        .take(LONGEST_SHOWN)
        .take_while(|character| is_word(*character))
        .map(char::len_utf8)
        .sum()
}

fn is_word(character: char) -> bool {
    is_letter_or_digit(character) || character == '_'
}

/// One word or phrase of a concept: its place in words and in bytes of the folded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    pub first_word: u32,
    pub last_word: u32,
    pub start: usize,
    pub end: usize,
}

/// All sightings in one text.
#[derive(Clone, Debug)]
pub struct Sightings {
    by_concept: Vec<Vec<Sighting>>,
    pub words: Words,
}

impl Sightings {
    /// Sightings of one concept, in order.
    pub fn of(&self, concept: u16) -> &[Sighting] {
        self.by_concept.get(usize::from(concept)).map_or(&[], Vec::as_slice)
    }
}

/// Where words and sentences begin in a folded text. Symbols are no words here.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// First byte of every word.
    starts: Vec<usize>,
    /// The number of the sentence each word stands in. Quotes, brackets and colons also end one: what
    /// follows is somebody else's speech or a list.
    sentences: Vec<u32>,
}

impl Words {
    fn of(text: &Normalised) -> Self {
        let mut words = Self::default();
        let mut sentence = 0;
        let mut breaks = false;
        let mut last_end = 0;
        for word in text.words() {
            breaks |= text.folded()[last_end..word.range.start].contains('\n');
            last_end = word.range.end;
            if word.kind == WordKind::Symbol {
                breaks |= text
                    .word(word)
                    .starts_with(['.', '!', '?', ';', ':', '…', '。', '[', '(', '"', '{', '|', '<']);
                continue;
            }
            sentence += u32::from(std::mem::take(&mut breaks) && !words.starts.is_empty());
            words.starts.push(word.range.start);
            words.sentences.push(sentence);
        }
        words
    }

    /// The number of the word at or before a byte position.
    pub fn at(&self, position: usize) -> u32 {
        let after = self.starts.partition_point(|start| *start <= position);
        u32::try_from(after.saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// The sentence of a word.
    pub fn sentence(&self, word: u32) -> u32 {
        self.sentences.get(word as usize).copied().unwrap_or(0)
    }

    /// Whether a word opens its sentence.
    pub fn opens_sentence(&self, word: u32) -> bool {
        word == 0 || self.sentence(word) != self.sentence(word - 1)
    }
}

/// A sequence of concepts: `override <4 prior|all <3 order`. Between two steps stands how many words may lie
/// between them, in one sentence; `<<n` may cross sentences; nothing means none. `^` before the first step
/// asks for the beginning of a sentence, words of the concept `lead_in` (*please*, *now*) not counted.
#[derive(Clone, Debug)]
pub struct Pattern {
    steps: Vec<Step>,
    opens: bool,
    lead_in: Option<u16>,
}

#[derive(Clone, Debug)]
struct Step {
    concepts: Vec<u16>,
    gap: u32,
    crosses: bool,
}

/// Where a pattern was found, in bytes of the folded text and in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub start: usize,
    pub end: usize,
    pub first_word: u32,
    pub last_word: u32,
}

impl Pattern {
    /// # Errors
    /// [`LexiconError`] for a concept that does not exist or a malformed gap.
    pub fn parse(text: &str, concepts: &Concepts) -> Result<Self, LexiconError> {
        let mut steps: Vec<Step> = Vec::new();
        let mut gap = 0;
        let mut crosses = false;
        let (opens, body) = match text.strip_prefix('^') {
            Some(body) => (true, body),
            None => (false, text),
        };
        for token in body.split_whitespace() {
            if let Some(count) = token.strip_prefix('<') {
                crosses = count.starts_with('<');
                gap =
                    count.trim_start_matches('<').parse().ok().filter(|gap| *gap <= 60).ok_or_else(|| {
                        LexiconError::Pattern(text.to_owned(), "a gap is a number of words up to 60")
                    })?;
                continue;
            }
            let alternatives = token.split('|').map(|name| concepts.id(name)).collect::<Result<_, _>>()?;
            steps.push(Step { concepts: alternatives, gap, crosses });
            (gap, crosses) = (0, false);
        }
        if steps.is_empty() {
            return Err(LexiconError::Pattern(text.to_owned(), "no concept in it"));
        }
        Ok(Self { steps, opens, lead_in: concepts.id("lead_in").ok() })
    }

    /// The first place where the sequence stands, or none.
    pub fn find(&self, sightings: &Sightings) -> Option<Found> {
        self.find_all(sightings, 1).pop()
    }

    /// Up to `limit` places, in order of their beginning, by alternative of the first step.
    pub fn find_all(&self, sightings: &Sightings, limit: usize) -> Vec<Found> {
        let mut found = Vec::new();
        for &concept in &self.steps[0].concepts {
            for first in sightings.of(concept) {
                if found.len() >= limit {
                    return found;
                }
                if self.opens && !self.at_opening(first.first_word, sightings) {
                    continue;
                }
                if let Some(last) = self.follow(1, *first, sightings) {
                    found.push(Found {
                        start: first.start,
                        end: last.end.max(first.end),
                        first_word: first.first_word,
                        last_word: last.last_word,
                    });
                }
            }
        }
        found
    }

    /// Goes on with the nearest sighting of the next step. Taking the nearest only keeps the work at one look
    /// per step: what a farther one could reach, a nearer one with the same gap usually reaches as well.
    fn follow(&self, step: usize, from: Sighting, sightings: &Sightings) -> Option<Sighting> {
        let Some(next) = self.steps.get(step) else { return Some(from) };
        let last_allowed = from.last_word.saturating_add(next.gap).saturating_add(1);
        next.concepts
            .iter()
            .filter_map(|&concept| {
                let candidates = sightings.of(concept);
                let begin = candidates.partition_point(|candidate| candidate.first_word <= from.last_word);
                candidates[begin..]
                    .iter()
                    .take_while(|candidate| candidate.first_word <= last_allowed)
                    .take_while(|candidate| {
                        next.crosses
                            || sightings.words.sentence(candidate.first_word)
                                == sightings.words.sentence(from.last_word)
                    })
                    // Of the phrases that begin together the longest is meant.
                    .find_map(|candidate| self.follow(step + 1, *candidate, sightings))
            })
            .min_by_key(|last| last.end)
    }

    fn at_opening(&self, word: u32, sightings: &Sightings) -> bool {
        let mut word = word;
        // Four lead-ins are as many as anyone writes ("so now please just …").
        for _ in 0..=4 {
            if sightings.words.opens_sentence(word) {
                return true;
            }
            let Some(lead_in) = self.lead_in else { return false };
            let Some(before) = sightings.of(lead_in).iter().find(|sighting| sighting.last_word + 1 == word)
            else {
                return false;
            };
            word = before.first_word;
        }
        false
    }
}

impl Found {
    /// The place in code points of the original.
    pub fn span(&self, text: &Normalised) -> Span {
        text.span_of(self.start..self.end)
    }
}
