//! Words and character sequences of a text as numbers a linear model can weigh.
//!
//! A feature is the hash of a word, of two neighbouring words, or of two to five neighbouring characters
//! within a word; its bucket is one of [`BUCKETS`]. Buckets that never occurred in training carry no
//! weight. Hashes are part of every stored model: changing one is a new [`crate::model_file::FORMAT`].

use std::ops::Range;

use crate::model_file::{Damage, Reader, Writer};
use crate::normalise::{Normalised, WordKind};

/// Number of buckets features are hashed into.
pub const BUCKETS: u32 = 1 << 18;

/// Longest word whose character sequences are all counted; of longer ones the beginning is.
const WORD_CHARACTERS: usize = 40;

const LONGEST_SEQUENCE: usize = 5;

/// What is counted besides letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symbols {
    /// Punctuation and emoji are features: they mark advertising and prompt templates.
    Counted,
    /// Only words and numbers: in what somebody wants, a question mark says nothing.
    Ignored,
}

/// How often each bucket occurs in a text, in ascending order of buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Words and pairs of words.
    words: Vec<(u32, u32)>,
    /// Character sequences.
    characters: Vec<(u32, u32)>,
    /// The buckets of single words, once per occurrence.
    singles: Vec<u32>,
}

/// A sparse vector: columns in ascending order, without duplicates, and their values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SparseVector {
    pub columns: Vec<u32>,
    pub values: Vec<f32>,
}

impl SparseVector {
    /// The sum of products over the columns both have.
    #[must_use]
    pub fn dot(&self, other: &Self) -> f32 {
        let (mut left, mut right, mut sum) = (0, 0, 0.0);
        while let (Some(a), Some(b)) = (self.columns.get(left), other.columns.get(right)) {
            match a.cmp(b) {
                std::cmp::Ordering::Less => left += 1,
                std::cmp::Ordering::Greater => right += 1,
                std::cmp::Ordering::Equal => {
                    sum += self.values[left] * other.values[right];
                    left += 1;
                    right += 1;
                }
            }
        }
        sum
    }
}

impl Counts {
    /// Counts the features of a range of [`Normalised::words`]; `0..words().len()` is the whole text.
    #[must_use]
    pub fn of(text: &Normalised, words: Range<usize>, symbols: Symbols) -> Self {
        Self::of_hashed(&Hashed::of(text, symbols), words)
    }

    /// Counts the features of a range of words that are hashed already.
    #[must_use]
    pub fn of_hashed(hashed: &Hashed, words: Range<usize>) -> Self {
        let words = hashed.range(words);
        let mut singles: Vec<u32> = words.clone().map(|word| word.single).collect();
        singles.sort_unstable();
        Self {
            words: tally(hashed.singles_and_pairs(words.clone()).collect()),
            characters: tally(hashed.sequences_of(words).to_vec()),
            singles,
        }
    }

    /// Counts the features of a whole text.
    #[must_use]
    pub fn of_text(text: &Normalised, symbols: Symbols) -> Self {
        Self::of(text, 0..text.words().len(), symbols)
    }

    /// The buckets of single words, ascending, once per occurrence.
    #[must_use]
    pub fn single_words(&self) -> &[u32] {
        &self.singles
    }

    /// Whether there is nothing to judge by.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

/// The features of every word of a text, hashed once however many windows share the word.
#[derive(Clone, Debug, Default)]
pub struct Hashed {
    /// The words that are counted.
    words: Vec<HashedWord>,
    /// For each of [`Normalised::words`] and one more, how many before it are counted.
    counted: Vec<u32>,
    /// Buckets of character sequences, word after word.
    sequences: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct HashedWord {
    single: u32,
    /// Together with the counted word before it; of the first word nothing.
    pair: u32,
    /// How many sequences stand before those of this word.
    before: u32,
}

impl Hashed {
    /// Hashes a whole text.
    #[must_use]
    pub fn of(text: &Normalised, symbols: Symbols) -> Self {
        let mut hashed = Self {
            words: Vec::with_capacity(text.words().len()),
            counted: Vec::with_capacity(text.words().len() + 1),
            sequences: Vec::with_capacity(4 * text.folded().len()),
        };
        let mut previous = 0;
        for word in text.words() {
            hashed.counted.push(number(hashed.words.len()));
            if word.kind == WordKind::Symbol && symbols == Symbols::Ignored {
                continue;
            }
            let content = text.word(word);
            let whole = content.bytes().fold(WORD, |hash, byte| step(hash, digitless(byte)));
            hashed.words.push(HashedWord {
                single: bucket(whole),
                pair: bucket(step(previous, b' ') ^ whole.rotate_left(17)),
                before: number(hashed.sequences.len()),
            });
            previous = whole;
            sequences(content, &mut hashed.sequences);
        }
        hashed.counted.push(number(hashed.words.len()));
        hashed
    }

    /// Whether there is nothing to judge by.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The counted ones among a range of [`Normalised::words`].
    fn range(&self, words: Range<usize>) -> std::slice::Iter<'_, HashedWord> {
        let place = |word: usize| self.counted.get(word).map_or(self.words.len(), |place| *place as usize);
        self.words.get(place(words.start)..place(words.end)).unwrap_or_default().iter()
    }

    /// Buckets of words and of neighbours within the range.
    fn singles_and_pairs<'w>(
        &self,
        words: std::slice::Iter<'w, HashedWord>,
    ) -> impl Iterator<Item = u32> + use<'w> {
        words.clone().map(|word| word.single).chain(words.skip(1).map(|word| word.pair))
    }

    fn sequences_of(&self, words: std::slice::Iter<'_, HashedWord>) -> &[u32] {
        let words = words.as_slice();
        let Some(first) = words.first() else { return &[] };
        // The words of a range lie in `self.words`, so the one behind the last tells where its sequences end.
        let behind = self.words.partition_point(|word| word.before <= words[words.len() - 1].before);
        let end = self.words.get(behind).map_or(self.sequences.len(), |word| word.before as usize);
        &self.sequences[first.before as usize..end]
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Start values of the two families, so that a word and an equal character sequence are two features.
const WORD: u64 = 0xcbf2_9ce4_8422_2325;
const SEQUENCE: u64 = 0x9e37_79b9_7f4a_7c15;

/// One step of FNV-1a, 64 bits.
fn step(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
}

/// Finishes a hash with the mixer of MurmurHash3 and takes the upper bits.
fn bucket(hash: u64) -> u32 {
    let mut mixed = hash ^ (hash >> 33);
    mixed = mixed.wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^= mixed >> 33;
    mixed = mixed.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    u32::try_from(mixed >> (64 - BUCKETS.trailing_zeros())).expect("18 bits fit")
}

/// All digits are one: amounts and dates differ in every message and mean the same.
fn digitless(byte: u8) -> u8 {
    if byte.is_ascii_digit() { b'0' } else { byte }
}

/// Character sequences of a word that begins and ends with a border.
fn sequences(word: &str, into: &mut Vec<u32>) {
    const MOST: usize = WORD_CHARACTERS + 2;
    let mut bytes = [b' '; 4 * WORD_CHARACTERS + 2];
    // Where each letter begins, the border before the word being the first, and where the last one ends.
    let mut starts = [0_u8; MOST + 1];
    let mut letters = 1;
    let mut length = 1;
    for (letter, (at, character)) in word.char_indices().take(WORD_CHARACTERS).enumerate() {
        starts[letter + 1] = u8::try_from(length).expect("forty characters of four bytes");
        for byte in &word.as_bytes()[at..at + character.len_utf8()] {
            bytes[length] = digitless(*byte);
            length += 1;
        }
        letters += 1;
    }
    starts[letters] = u8::try_from(length).expect("forty characters of four bytes");
    bytes[length] = b' ';
    letters += 1;
    starts[letters] = u8::try_from(length + 1).expect("forty characters of four bytes");
    for start in 0..letters {
        let ends = &starts[start + 1..=letters.min(start + LONGEST_SEQUENCE)];
        let mut from = usize::from(starts[start]);
        let mut hash = SEQUENCE;
        for (index, end) in ends.iter().enumerate() {
            let end = usize::from(*end);
            hash = bytes[from..end].iter().fold(hash, |hash, byte| step(hash, *byte));
            from = end;
            if index > 0 {
                into.push(bucket(hash));
            }
        }
    }
}

/// How often each number occurs, in ascending order.
fn tally(mut buckets: Vec<u32>) -> Vec<(u32, u32)> {
    sort(&mut buckets);
    let mut counts: Vec<(u32, u32)> = Vec::with_capacity(buckets.len());
    for bucket in buckets {
        match counts.last_mut() {
            Some((last, count)) if *last == bucket => *count += 1,
            _ => counts.push((bucket, 1)),
        }
    }
    counts
}

/// Fewer buckets are sorted sooner by comparing them.
const WORTH_DEALING: usize = 200;

/// Sorts buckets by dealing them twice, by the lower and the upper half of their bits: of a long text that
/// takes a third of the time that comparing takes, and sorting was most of what a long text cost.
fn sort(buckets: &mut Vec<u32>) {
    const HALF: u32 = BUCKETS.trailing_zeros() / 2;
    if buckets.len() < WORTH_DEALING {
        return buckets.sort_unstable();
    }
    let mut dealt = vec![0; buckets.len()];
    for shift in [0, HALF] {
        let pile = |bucket: u32| ((bucket >> shift) & ((1 << HALF) - 1)) as usize;
        let mut places = [0_usize; 1 << HALF];
        for bucket in buckets.iter() {
            places[pile(*bucket)] += 1;
        }
        let mut next = 0;
        for place in &mut places {
            next += std::mem::replace(place, next);
        }
        for bucket in buckets.iter() {
            let place = &mut places[pile(*bucket)];
            dealt[*place] = *bucket;
            *place += 1;
        }
        std::mem::swap(buckets, &mut dealt);
    }
}

/// The buckets seen in training, with the weight of each: the rarer, the heavier.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vocabulary {
    /// Ascending; the place of a bucket is its column.
    buckets: Vec<u32>,
    /// Inverse document frequency, `ln((1 + texts) / (1 + texts with it)) + 1`.
    weights: Vec<f32>,
    /// Where to look for a bucket: a page for each [`PAGE`] of them.
    pages: Vec<Page>,
}

/// Buckets a page of the index covers.
const PAGE: u32 = u64::BITS;

/// Some neighbouring buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Page {
    /// Which of them are known, a bit for each.
    known: u64,
    /// How many known ones lie below the page.
    below: u32,
}

impl Vocabulary {
    /// Learns which buckets texts have. Their order does not matter.
    #[must_use]
    pub fn learn<'a>(texts: impl IntoIterator<Item = &'a Counts>) -> Self {
        let mut texts_with = vec![0_u32; BUCKETS as usize];
        let mut total = 0_u32;
        for text in texts {
            total += 1;
            let (mut words, mut characters) =
                (text.words.iter().peekable(), text.characters.iter().peekable());
            // A bucket that both families share counts once.
            loop {
                let next = match (words.peek(), characters.peek()) {
                    (Some((word, _)), Some((sequence, _))) => *word.min(sequence),
                    (Some((one, _)), None) | (None, Some((one, _))) => *one,
                    (None, None) => break,
                };
                words.next_if(|(bucket, _)| *bucket == next);
                characters.next_if(|(bucket, _)| *bucket == next);
                texts_with[next as usize] += 1;
            }
        }
        let seen = || (0..BUCKETS).zip(&texts_with).filter(|(_, count)| **count > 0);
        let weight = |count: u32| (((1.0 + f64::from(total)) / (1.0 + f64::from(count))).ln() + 1.0) as f32;
        Self::new(
            seen().map(|(bucket, _)| bucket).collect(),
            seen().map(|(_, count)| weight(*count)).collect(),
        )
    }

    fn new(buckets: Vec<u32>, weights: Vec<f32>) -> Self {
        let mut pages = vec![Page::default(); (BUCKETS / PAGE) as usize];
        for bucket in &buckets {
            pages[(bucket / PAGE) as usize].known |= 1 << (bucket % PAGE);
        }
        let mut below = 0;
        for page in &mut pages {
            page.below = below;
            below += page.known.count_ones();
        }
        Self { buckets, weights, pages }
    }

    /// Number of columns of a vector.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.buckets.len()
    }

    fn column(&self, bucket: u32) -> Option<u32> {
        let page = self.pages.get((bucket / PAGE) as usize)?;
        let bit = 1_u64 << (bucket % PAGE);
        (page.known & bit != 0).then(|| page.below + (page.known & (bit - 1)).count_ones())
    }

    /// How rare a bucket is: `ln((1 + texts) / (1 + texts with it))`; none for one that never occurred.
    #[must_use]
    pub fn rarity(&self, bucket: u32) -> Option<f32> {
        Some(self.weights[self.column(bucket)? as usize] - 1.0)
    }

    /// Sublinear TF-IDF. Words and character sequences are each scaled to length one first, so that
    /// neither outweighs the other; then the whole is. Unknown buckets are left out.
    #[must_use]
    pub fn weigh(&self, text: &Counts) -> SparseVector {
        let known = |counts: &[(u32, u32)]| {
            counts.iter().filter_map(|(bucket, count)| Some((self.column(*bucket)?, *count))).collect()
        };
        self.weigh_families(known(&text.words), known(&text.characters))
    }

    /// As [`Vocabulary::weigh`], of a range of [`Normalised::words`]: what is unknown is not even sorted.
    #[must_use]
    pub fn weigh_words(&self, text: &Hashed, words: Range<usize>) -> SparseVector {
        let words = text.range(words);
        // Columns are in the order of their buckets.
        let known = |buckets: &mut dyn Iterator<Item = u32>, most: usize| {
            let mut columns = Vec::with_capacity(most);
            buckets.for_each(|bucket| columns.extend(self.column(bucket)));
            tally(columns)
        };
        let sequences = text.sequences_of(words.clone());
        self.weigh_families(
            known(&mut text.singles_and_pairs(words.clone()), 2 * words.len()),
            known(&mut sequences.iter().copied(), sequences.len()),
        )
    }

    fn weigh_families(&self, words: Vec<(u32, u32)>, characters: Vec<(u32, u32)>) -> SparseVector {
        let words = self.weigh_family(&words);
        let characters = self.weigh_family(&characters);
        let room = words.columns.len() + characters.columns.len();
        let mut vector = SparseVector { columns: Vec::with_capacity(room), values: Vec::with_capacity(room) };
        let (mut word, mut sequence) = (0, 0);
        while word < words.columns.len() || sequence < characters.columns.len() {
            let next_word = words.columns.get(word).copied().unwrap_or(u32::MAX);
            let next_sequence = characters.columns.get(sequence).copied().unwrap_or(u32::MAX);
            let mut value = 0.0;
            if next_word <= next_sequence {
                value += words.values[word];
                word += 1;
            }
            if next_sequence <= next_word {
                value += characters.values[sequence];
                sequence += 1;
            }
            vector.columns.push(next_word.min(next_sequence));
            vector.values.push(value);
        }
        scale_to_one(&mut vector.values);
        vector
    }

    /// One family alone, by column.
    fn weigh_family(&self, counts: &[(u32, u32)]) -> SparseVector {
        let mut family = SparseVector {
            columns: Vec::with_capacity(counts.len()),
            values: Vec::with_capacity(counts.len()),
        };
        for (column, count) in counts {
            let often = if *count == 1 { 1.0 } else { 1.0 + (*count as f32).ln() };
            family.columns.push(*column);
            family.values.push(often * self.weights[*column as usize]);
        }
        scale_to_one(&mut family.values);
        family
    }

    /// As [`Vocabulary::unseen_share`], of a range of [`Normalised::words`].
    #[must_use]
    pub fn unseen_share_of_words(&self, text: &Hashed, words: Range<usize>) -> f32 {
        let words = text.range(words);
        let all = words.len();
        if all == 0 {
            return 1.0;
        }
        words.filter(|word| self.column(word.single).is_none()).count() as f32 / all as f32
    }

    /// Share of the text's single words that never occurred in training, 0 to 1; 1 for an empty text.
    #[must_use]
    pub fn unseen_share(&self, text: &Counts) -> f32 {
        if text.singles.is_empty() {
            return 1.0;
        }
        let unseen = text.singles.iter().filter(|bucket| self.column(**bucket).is_none()).count();
        unseen as f32 / text.singles.len() as f32
    }

    /// Appends the vocabulary to a model file.
    pub fn write(&self, to: &mut Writer) {
        to.u32s(&self.buckets);
        to.f32s(&self.weights);
    }

    /// Reads what [`Vocabulary::write`] wrote.
    ///
    /// # Errors
    /// When it is cut short, out of order or holds values that are no numbers.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, Damage> {
        let buckets = from.u32s()?;
        let weights = from.f32s()?;
        let ascending =
            buckets.is_sorted_by(|a, b| a < b) && buckets.last().is_none_or(|last| *last < BUCKETS);
        if !ascending || weights.len() != buckets.len() {
            return Err(Damage::Inconsistent("the vocabulary"));
        }
        Ok(Self::new(buckets, weights))
    }
}

fn scale_to_one(values: &mut [f32]) {
    let length = values.iter().map(|value| *value * *value).sum::<f32>().sqrt();
    if length > 0.0 {
        for value in values {
            *value /= length;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn dealing_sorts_as_comparing_does(buckets in prop::collection::vec(0..BUCKETS, 0..600)) {
            let mut dealt = buckets.clone();
            sort(&mut dealt);
            let mut compared = buckets;
            compared.sort_unstable();
            prop_assert_eq!(dealt, compared);
        }
    }
}
