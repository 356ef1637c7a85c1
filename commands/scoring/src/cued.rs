//! A linear question over the wording of a text and over cues a detector found in it.

use std::ops::Range;

use crate::features::{Counts, Hashed, SparseVector, Vocabulary};
use crate::linear::{Linear, Training};
use crate::model_file::{Damage, Kind, Reader, Writer};

/// Cues of a text, by number: concepts, rules, marks. Ascending, without duplicates.
pub(crate) type Cues = Vec<u32>;

/// How wording and cues are weighed against each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Balance {
    /// Length of the part of a vector that holds words and characters.
    pub(crate) wording: f32,
    /// Value of a cue that is present.
    pub(crate) cue: f32,
}

/// One example: what is counted, the cues, and the answer.
pub(crate) struct Example {
    pub(crate) counts: Counts,
    pub(crate) cues: Cues,
    pub(crate) positive: bool,
}

/// A trained yes-or-no question.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CuedModel {
    vocabulary: Vocabulary,
    linear: Linear,
    cues: usize,
    balance: Balance,
}

impl CuedModel {
    /// Trains on examples whose cues are below `cues`.
    pub(crate) fn train(examples: &[&Example], cues: usize, balance: Balance, training: Training) -> Self {
        let vocabulary = Vocabulary::learn(examples.iter().map(|example| &example.counts));
        let mut model = Self { vocabulary, linear: Linear::default(), cues, balance };
        let vectors: Vec<SparseVector> =
            examples.iter().map(|example| model.vector(&example.counts, &example.cues)).collect();
        let positive: Vec<bool> = examples.iter().map(|example| example.positive).collect();
        model.linear = Linear::train_binary(&vectors, &positive, model.columns(), training);
        model
    }

    fn columns(&self) -> usize {
        self.vocabulary.columns() + self.cues
    }

    fn vector(&self, counts: &Counts, cues: &[u32]) -> SparseVector {
        self.with_cues(self.vocabulary.weigh(counts), cues)
    }

    /// Some words of a text and its cues, as [`CuedModel::margin_of`] takes them.
    pub(crate) fn vector_of_words(&self, text: &Hashed, words: Range<usize>, cues: &[u32]) -> SparseVector {
        self.with_cues(self.vocabulary.weigh_words(text, words), cues)
    }

    /// Wording first, then one column per cue behind the vocabulary's.
    fn with_cues(&self, mut vector: SparseVector, cues: &[u32]) -> SparseVector {
        for value in &mut vector.values {
            *value *= self.balance.wording;
        }
        let base = u32::try_from(self.vocabulary.columns()).expect("a vocabulary has at most 2^18 columns");
        for cue in cues.iter().filter(|cue| (**cue as usize) < self.cues) {
            vector.columns.push(base + cue);
            vector.values.push(self.balance.cue);
        }
        vector
    }

    /// Whether a text is the same vector for both.
    pub(crate) fn reads_like(&self, other: &Self) -> bool {
        self.balance == other.balance && self.cues == other.cues && self.vocabulary == other.vocabulary
    }

    /// Signed distance from the border; positive is yes.
    pub(crate) fn margin_of(&self, vector: &SparseVector) -> f32 {
        self.linear.margins(vector).first().copied().unwrap_or(0.0)
    }

    /// As [`CuedModel::margin_of`], for an example.
    fn margin(&self, example: &Example) -> f32 {
        self.margin_of(&self.vector(&example.counts, &example.cues))
    }

    /// Share of words that training never saw.
    pub(crate) fn unseen_share(&self, text: &Hashed, words: Range<usize>) -> f32 {
        self.vocabulary.unseen_share_of_words(text, words)
    }

    /// Appends the model to a file.
    pub(crate) fn write(&self, to: &mut Writer) {
        to.length(self.cues);
        to.f32(self.balance.wording);
        to.f32(self.balance.cue);
        self.vocabulary.write(to);
        self.linear.write(to);
    }

    /// Reads what [`CuedModel::write`] wrote, for so many cues.
    pub(crate) fn read(from: &mut Reader<'_>, cues: usize) -> Result<Self, Damage> {
        if from.u32()? as usize != cues {
            // Other rules or another lexicon than the model was trained with.
            return Err(Damage::Inconsistent("its cues"));
        }
        let balance = Balance { wording: from.f32()?, cue: from.f32()? };
        let vocabulary = Vocabulary::read(from)?;
        let linear = Linear::read(from, vocabulary.columns() + cues)?;
        Ok(Self { vocabulary, linear, cues, balance })
    }
}

/// A detector that asks one question, as a file: its version, the margin from which the model alone speaks,
/// and the model.
pub(crate) fn to_file(kind: Kind, version: &str, threshold: f32, model: &CuedModel) -> Vec<u8> {
    let mut writer = Writer::new(kind);
    writer.text(version);
    writer.f32(threshold);
    model.write(&mut writer);
    writer.finish()
}

/// Version, threshold and model from what [`to_file`] wrote, for so many cues.
pub(crate) fn from_file(file: &[u8], kind: Kind, cues: usize) -> Result<(String, f32, CuedModel), Damage> {
    let mut reader = Reader::open_kind(file, kind)?;
    let parts = (reader.text()?, reader.f32()?, CuedModel::read(&mut reader, cues)?);
    reader.finish()?;
    Ok(parts)
}

/// The margins of every example from models that did not see its group: `folds` models, each trained without
/// a share of the examples. Examples with the same `group` are never parted.
pub(crate) fn out_of_fold_margins(
    examples: &[Example],
    groups: &[usize],
    folds: usize,
    cues: usize,
    balance: Balance,
    training: Training,
) -> Vec<f32> {
    let mut margins = vec![0.0; examples.len()];
    for fold in 0..folds {
        let kept: Vec<&Example> = examples
            .iter()
            .zip(groups)
            .filter(|(_, group)| *group % folds != fold)
            .map(|(example, _)| example)
            .collect();
        let model = CuedModel::train(&kept, cues, balance, training);
        for (index, example) in examples.iter().enumerate() {
            if groups[index] % folds == fold {
                margins[index] = model.margin(example);
            }
        }
    }
    margins
}
