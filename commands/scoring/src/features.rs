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
        let mut pairs = Vec::new();
        let mut characters = Vec::new();
        let mut singles = Vec::new();
        let mut previous: Option<u64> = None;
        for word in text.words().get(words).unwrap_or_default() {
            if word.kind == WordKind::Symbol && symbols == Symbols::Ignored {
                continue;
            }
            let content = text.word(word);
            let whole = content.bytes().fold(WORD, |hash, byte| step(hash, digitless(byte)));
            singles.push(bucket(whole));
            pairs.push(bucket(whole));
            if let Some(before) = previous {
                pairs.push(bucket(step(before, b' ') ^ whole.rotate_left(17)));
            }
            previous = Some(whole);
            sequences(content, &mut characters);
        }
        singles.sort_unstable();
        Self { words: tally(pairs), characters: tally(characters), singles }
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
    let mut letters = ['\u{0}'; WORD_CHARACTERS + 2];
    letters[0] = ' ';
    let mut length = 1;
    for letter in word.chars().take(WORD_CHARACTERS) {
        letters[length] = letter;
        length += 1;
    }
    letters[length] = ' ';
    let letters = &letters[..=length];
    for start in 0..letters.len() {
        let mut hash = SEQUENCE;
        for (index, letter) in letters[start..].iter().take(LONGEST_SEQUENCE).enumerate() {
            let mut buffer = [0; 4];
            hash =
                letter.encode_utf8(&mut buffer).bytes().fold(hash, |hash, byte| step(hash, digitless(byte)));
            if index > 0 {
                into.push(bucket(hash));
            }
        }
    }
}

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
    /// Where to look for a bucket: the number of buckets below each multiple of [`PAGE`].
    pages: Vec<u32>,
}

/// Buckets a page of the index covers.
const PAGE: u32 = 64;

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
        let pages = (0..=BUCKETS / PAGE)
            .map(|page| {
                u32::try_from(buckets.partition_point(|bucket| *bucket < page * PAGE)).unwrap_or(u32::MAX)
            })
            .collect();
        Self { buckets, weights, pages }
    }

    /// Number of columns of a vector.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.buckets.len()
    }

    fn column(&self, bucket: u32) -> Option<u32> {
        let page = (bucket / PAGE) as usize;
        let (from, to) = (*self.pages.get(page)?, *self.pages.get(page + 1)?);
        let place = self.buckets[from as usize..to as usize].binary_search(&bucket).ok()?;
        Some(from + u32::try_from(place).expect("a page has few buckets"))
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
        let words = self.weigh_family(&text.words);
        let characters = self.weigh_family(&text.characters);
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

    fn weigh_family(&self, counts: &[(u32, u32)]) -> SparseVector {
        let mut family = SparseVector {
            columns: Vec::with_capacity(counts.len()),
            values: Vec::with_capacity(counts.len()),
        };
        for (bucket, count) in counts {
            let Some(column) = self.column(*bucket) else { continue };
            let often = if *count == 1 { 1.0 } else { 1.0 + (*count as f32).ln() };
            family.columns.push(column);
            family.values.push(often * self.weights[column as usize]);
        }
        scale_to_one(&mut family.values);
        family
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
