//! What somebody wants from a bot, and whether the bot is there for it.
//!
//! A bot's owner gives each intent a few examples; [`IntentModel::train`] makes a model of them within
//! milliseconds. Out of scope is what lies far from every intent, close to no example, uses words no
//! example has, and resembles the ordinary messages of [`background`].

pub mod background;
mod embedded;
mod training;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Normalised;
use crate::calibrate::Platt;
use crate::features::{Counts, Symbols, Vocabulary};
use crate::model_file::{self, Damage, Kind, Reader, Writer};

pub use embedded::{EmbeddedIntents, Material};

/// The label of texts that belong to no intent, in files and in [`Example::intent`].
pub const OUT_OF_SCOPE: &str = "oos";

/// Most examples of a model, negatives included.
pub const MOST_EXAMPLES: usize = 100_000;

/// Most intents of a model.
pub const MOST_INTENTS: usize = 1_000;

/// A text an owner wrote for an intent; with [`OUT_OF_SCOPE`], one that is none of the bot's business.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Example {
    pub text: String,
    pub intent: String,
}

/// How a model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Share of in-scope messages that may be taken for out of scope, in thousandths.
    pub false_rejection_permille: u16,
    /// Whether the shipped [`background`] takes part.
    pub background: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { false_rejection_permille: 50, background: true }
    }
}

/// Why no model can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrainingError {
    #[error("there is no intent to learn: give examples whose intent is not \"{OUT_OF_SCOPE}\"")]
    NoIntents,
    #[error("example {number} (counted from 1) has no letters or digits")]
    EmptyExample { number: usize },
    #[error("example {number} (counted from 1) names no intent")]
    UnnamedIntent { number: usize },
    #[error("there are {found} examples; a model takes at most {MOST_EXAMPLES}")]
    TooManyExamples { found: usize },
    #[error("there are {found} intents; a model takes at most {MOST_INTENTS}")]
    TooManyIntents { found: usize },
    #[error(
        "vector {number} (counted from 1) has {found} numbers instead of {expected}, or not only numbers"
    )]
    UnfitVector { number: usize, found: usize, expected: usize },
}

/// What a model says about a text.
#[derive(Clone, Debug, PartialEq)]
pub struct IntentScore {
    /// The best intent, given even for texts that are out of scope.
    pub intent: String,
    /// Out-of-scope probability, 0 to 1, for an even prior. Approximate: see the guide.
    pub oos_score: f64,
    /// The same in whole thousandths, for events.
    pub oos_permille: u16,
    /// The model's own decision: the score is above what all but a few of its examples reach. The same as
    /// `oos_score > 0.5`.
    pub oos: bool,
    /// Probability that the text asks for exactly this intent, 0 to 1.
    pub confidence: f64,
    /// What the decision was made from.
    pub signals: Signals,
}

/// The parts of the out-of-scope score, for explanations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signals {
    /// Distance inside the best intent; negative outside of all.
    pub margin: f32,
    /// Likeness to the closest example, 0 to 1.
    pub cosine: f32,
    /// Share of words that no example has, 0 to 1; 0 for embeddings.
    pub unseen: f32,
    /// The same with each word weighed by how rare it is: above `unseen` where what is unknown is what the
    /// text is about. 0 for embeddings.
    pub unseen_rare: f32,
    /// Distance inside the background class; 0 without one.
    pub background: f32,
}

impl Signals {
    /// Larger is farther out of scope. The weights are a logistic regression's over policies of 15 intents
    /// drawn from CLINC150's training rows and from HWU64, rounded; either set alone gives about the same.
    #[must_use]
    pub fn score(self) -> f64 {
        let Self { margin, cosine, unseen, unseen_rare, background } = self;
        f64::from(-margin - 0.3 * cosine + 1.9 * unseen_rare - 1.7 * unseen + 0.1 * background)
    }
}

/// How different the examples of an intent are from one another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diversity {
    pub intent: String,
    /// Different examples.
    pub examples: u32,
    /// Mean distance of an example from its closest neighbour, in thousandths: 0 is copies of one text,
    /// 1000 texts without anything in common. Below [`Diversity::LOW`] the examples are paraphrases of one
    /// another, and the model will reject what people really write.
    pub permille: u16,
}

impl Diversity {
    /// Below this an owner should be asked for other wordings.
    pub const LOW: u16 = 350;
}

/// How varied the examples of each intent are, by name; an owner is shown it before customers are.
/// [`OUT_OF_SCOPE`] is no intent and is left out. Takes time in the square of an intent's examples.
#[must_use]
pub fn diversity(examples: &[Example]) -> Vec<Diversity> {
    let mut by_intent: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for example in examples.iter().filter(|example| example.intent != OUT_OF_SCOPE) {
        by_intent.entry(&example.intent).or_default().insert(&example.text);
    }
    let read: Vec<(&str, Vec<Counts>)> = by_intent
        .into_iter()
        .map(|(intent, texts)| {
            let count = |text| Counts::of_text(&Normalised::of(text), Symbols::Ignored);
            (intent, texts.into_iter().map(count).collect())
        })
        .collect();
    let vocabulary = Vocabulary::learn(read.iter().flat_map(|(_, texts)| texts));
    read.into_iter()
        .map(|(intent, texts)| {
            let vectors: Vec<_> = texts.iter().map(|text| vocabulary.weigh(text)).collect();
            let distances = vectors.iter().enumerate().map(|(at, vector)| {
                let others = vectors.iter().enumerate().filter(|(other, _)| *other != at);
                let closest = others.map(|(_, other)| vector.dot(other)).fold(0.0_f32, f32::max);
                f64::from(1.0 - closest.min(1.0))
            });
            let mean = distances.sum::<f64>() / vectors.len().max(1) as f64;
            Diversity {
                intent: intent.to_owned(),
                examples: u32::try_from(vectors.len()).unwrap_or(u32::MAX),
                permille: (mean * 1000.0).round() as u16,
            }
        })
        .collect()
}

/// What decides after the classifier: shared by n-grams and embeddings.
#[derive(Clone, Debug, PartialEq)]
struct Head {
    intents: Vec<String>,
    /// From the score to the out-of-scope probability; one half is the decision.
    oos: Platt,
    /// From the distance between the best two margins to the probability that the best is right.
    right: Platt,
}

impl Head {
    fn judge(&self, look: training::Look) -> IntentScore {
        self.judge_by(look.signals.score(), look)
    }

    fn judge_by(&self, score: f64, look: training::Look) -> IntentScore {
        let oos_score = self.oos.probability(score);
        let in_scope = 1.0 - oos_score;
        IntentScore {
            intent: self.intents[look.best].clone(),
            oos_score,
            oos_permille: (oos_score * 1000.0).round() as u16,
            oos: oos_score > 0.5,
            confidence: in_scope * self.right.probability(look.lead),
            signals: look.signals,
        }
    }
}

/// A bot's intents by words and character sequences: needs nothing but the examples.
#[derive(Clone, Debug, PartialEq)]
pub struct IntentModel {
    version: String,
    separator: training::Separator,
    head: Head,
}

impl IntentModel {
    /// Trains a model. The order of examples and their repetition change nothing.
    ///
    /// `examples` are the owner's, of which those with [`OUT_OF_SCOPE`] are negatives: "not this".
    ///
    /// # Errors
    /// When there is no intent, an example is empty, or there are too many.
    pub fn train(examples: &[Example], options: Options) -> Result<Self, TrainingError> {
        let (own, intents) = sorted(examples)?;
        let texts: Vec<Normalised> = own.iter().map(|example| Normalised::of(&example.text)).collect();
        let lines = if options.background { background::for_texts(&texts) } else { Vec::new() };
        let version = version_of(&own, &lines, options);
        let mut classes: Vec<usize> = own.iter().map(|example| class_of(&example.intent, &intents)).collect();
        classes.extend(lines.iter().map(|_| intents.len() + 1));
        let counts = texts.iter().map(|text| Counts::of_text(text, Symbols::Ignored));
        let lines = lines.iter().map(|line| Counts::of_text(&Normalised::of(line), Symbols::Ignored));
        let texts: Vec<Counts> = counts.chain(lines).collect();
        let rejection = f64::from(options.false_rejection_permille) / 1000.0;
        let outcome = training::train(&texts, &classes, intents.len(), rejection);
        let head = Head { intents, oos: outcome.oos, right: outcome.right };
        Ok(Self { version, separator: outcome.separator, head })
    }

    /// What a text asks for. A text without letters and digits is out of scope like one of unknown words.
    #[must_use]
    pub fn predict(&self, text: &Normalised) -> IntentScore {
        let counts = Counts::of_text(text, Symbols::Ignored);
        self.head.judge(self.separator.look(&self.separator.encode_text(&counts)))
    }

    /// The names of the intents, ascending.
    #[must_use]
    pub fn intents(&self) -> &[String] {
        &self.head.intents
    }

    /// SHA-256 in hexadecimal of what the model is made from: examples, background, options and format.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The model as a file; [`model_file`] says how it is framed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Intent);
        writer.text(&self.version);
        writer.length(self.head.intents.len());
        for intent in &self.head.intents {
            writer.text(intent);
        }
        for platt in [self.head.oos, self.head.right] {
            writer.f64(platt.slope);
            writer.f64(platt.offset);
        }
        self.separator.write(&mut writer);
        writer.finish()
    }

    /// Reads what [`IntentModel::to_bytes`] gave.
    ///
    /// # Errors
    /// When the file is none, damaged, or of another kind or format.
    pub fn from_bytes(file: &[u8]) -> Result<Self, Damage> {
        let mut reader = Reader::open_kind(file, Kind::Intent)?;
        let version = reader.text()?;
        let count = reader.length(4)?;
        let intents: Vec<String> = (0..count).map(|_| reader.text()).collect::<Result<_, _>>()?;
        if intents.is_empty() || intents.len() > MOST_INTENTS {
            return Err(Damage::Inconsistent("the intents"));
        }
        let mut platt = || Ok(Platt { slope: reader.f64()?, offset: reader.f64()? });
        let (oos, right) = (platt()?, platt()?);
        let separator = training::Separator::read(&mut reader, intents.len())?;
        reader.finish()?;
        Ok(Self { version, separator, head: Head { intents, oos, right } })
    }
}

/// Examples without repetitions in an order of their own, and the names of the intents.
fn sorted(examples: &[Example]) -> Result<(Vec<&Example>, Vec<String>), TrainingError> {
    if examples.len() > MOST_EXAMPLES {
        return Err(TrainingError::TooManyExamples { found: examples.len() });
    }
    for (at, example) in examples.iter().enumerate() {
        if !example.text.chars().any(char::is_alphanumeric) {
            return Err(TrainingError::EmptyExample { number: at + 1 });
        }
        if example.intent.trim().is_empty() {
            return Err(TrainingError::UnnamedIntent { number: at + 1 });
        }
    }
    let mut own: Vec<&Example> = examples.iter().collect();
    own.sort();
    own.dedup();
    // File order is alphabetical now; neighbours are alike, and would all be in different folds.
    own.sort_by_cached_key(|example| Sha256::digest(&example.text).to_vec());
    let mut intents: Vec<String> = own.iter().map(|example| example.intent.clone()).collect();
    intents.sort();
    intents.dedup();
    intents.retain(|intent| intent != OUT_OF_SCOPE);
    if intents.is_empty() {
        return Err(TrainingError::NoIntents);
    }
    if intents.len() > MOST_INTENTS {
        return Err(TrainingError::TooManyIntents { found: intents.len() });
    }
    Ok((own, intents))
}

fn class_of(intent: &str, intents: &[String]) -> usize {
    intents.binary_search_by(|other| other.as_str().cmp(intent)).unwrap_or(intents.len())
}

fn version_of(examples: &[&Example], background: &[&str], options: Options) -> String {
    let mut digest = Sha256::new();
    // Every part is preceded by its length, so that no two contents give the same bytes.
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    part(b"botledger intent model");
    part(&model_file::FORMAT.to_le_bytes());
    part(&options.false_rejection_permille.to_le_bytes());
    for example in examples {
        part(example.intent.as_bytes());
        part(example.text.as_bytes());
    }
    part(b"background");
    for line in background {
        part(line.as_bytes());
    }
    hex::encode(digest.finalize())
}
