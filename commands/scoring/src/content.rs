//! Content a policy may not want: what it is about, how bad it is, and where.
//!
//! Categories carry the names of the OpenAI moderation set: `S` sexual, `S3` sexual with minors, `H` hate,
//! `H2` hate with a threat, `V` violence, `V2` graphic violence, `HR` harassment, `SH` self-harm; and `illicit`
//! for a plainly harmful request. Lexicon and model are *signals*: whether they count is a policy's decision.
//! Severe, which blocks at once and calls a human, comes from rules of high precision only, never from the
//! model. Somebody who speaks of hurting himself is not an offender: `support` asks for a message that helps.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

use sha2::{Digest, Sha256};

use crate::Normalised;
use crate::cued::{Balance, CuedModel, Cues, Example};
pub use crate::evidence::Evidence;
use crate::features::{Counts, Hashed, SparseVector, Symbols};
use crate::lexicon::{Concepts, Sightings};
use crate::linear::Training;
use crate::model_file::{Damage, Kind, Reader, Writer};

mod rules;

use rules::RULES;

/// All categories, in order.
pub const CATEGORIES: [&str; 9] = ["H", "H2", "HR", "S", "S3", "SH", "V", "V2", "illicit"];

/// From here on a category is flagged.
pub const FLAG_POINTS: f32 = 4.0;

const MOST_MODEL_POINTS: f32 = 5.0;

/// Margin between "the model says nothing" and "the model flags".
const MODEL_REACH: f32 = 1.0;

const BALANCE: Balance = Balance { wording: 1.0, cue: 0.3 };

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Low,
    Medium,
    /// Block at once and let a human look.
    Severe,
}

impl Severity {
    /// Its name in files and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::Severe => "severe",
        }
    }
}

/// A category that was flagged.
#[derive(Clone, Debug, PartialEq)]
pub struct Flag {
    pub category: &'static str,
    pub severity: Severity,
    /// Strongest first.
    pub evidence: Vec<Evidence>,
}

/// The verdict on one text.
#[derive(Clone, Debug, PartialEq)]
pub struct ContentScore {
    /// Every category's score, 0 to 1, one half where it is flagged.
    pub categories: BTreeMap<&'static str, f64>,
    /// In order of [`CATEGORIES`].
    pub flagged: Vec<Flag>,
    /// Somebody may be about to hurt himself: answer with help, not with a block.
    pub support: bool,
}

impl ContentScore {
    /// The worst severity.
    #[must_use]
    pub fn severity(&self) -> Option<Severity> {
        self.flagged.iter().map(|flag| flag.severity).max()
    }
}

/// A labelled text of an operator. A category without a label is unknown and not learned from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabelledText {
    pub text: String,
    pub labels: BTreeMap<String, bool>,
}

/// A trained detector.
#[derive(Clone, Debug)]
pub struct ContentModel {
    /// One question per category that had examples of both answers, in order of [`CATEGORIES`].
    questions: Vec<Question>,
    version: String,
}

#[derive(Clone, Debug)]
struct Question {
    category: usize,
    threshold: f32,
    model: CuedModel,
    /// A text is the same vector as for the question before, which is so where both had the same examples.
    reads_like_previous: bool,
}

impl Question {
    /// A question that comes after others.
    fn after(others: &[Self], category: usize, threshold: f32, model: CuedModel) -> Self {
        let reads_like_previous = others.last().is_some_and(|previous| model.reads_like(&previous.model));
        Self { category, threshold, model, reads_like_previous }
    }
}

fn concepts() -> &'static Concepts {
    static CONCEPTS: LazyLock<Concepts> = LazyLock::new(|| {
        Concepts::parse(include_str!("../data/content_lexicon.txt"))
            .expect("the shipped lexicon is read in a test")
    });
    &CONCEPTS
}

/// Concepts and rules of a text.
struct Reading {
    sightings: Sightings,
    matches: Vec<(usize, Range<usize>)>,
}

impl Reading {
    fn of(text: &Normalised) -> Self {
        let sightings = concepts().find(text);
        let present = |name: &str| concepts().id(name).is_ok_and(|concept| !sightings.of(concept).is_empty());
        let matches = RULES
            .iter()
            .zip(rules::PATTERNS.iter())
            .enumerate()
            .filter(|(_, (rule, _))| !rule.unless.is_some_and(present))
            .filter_map(|(index, (_, pattern))| {
                let found = pattern.find(&sightings)?;
                Some((index, found.start..found.end))
            })
            .collect();
        Self { sightings, matches }
    }

    fn cues(&self) -> Cues {
        let concept_count = concepts().names().len();
        let seen = (0..concept_count).filter(|concept| {
            let id = u16::try_from(*concept).expect("concepts are few");
            !self.sightings.of(id).is_empty()
        });
        let rules = self.matches.iter().map(|(rule, _)| concept_count + rule);
        seen.chain(rules).map(|cue| u32::try_from(cue).expect("concepts and rules are few")).collect()
    }

    fn rule_points(&self, category: &str) -> f32 {
        self.matches
            .iter()
            .map(|(rule, _)| &RULES[*rule])
            .filter(|rule| rule.category == category)
            .map(|r| r.points)
            .sum()
    }
}

fn cue_count() -> usize {
    concepts().names().len() + RULES.len()
}

impl ContentModel {
    /// The detector without any operator's data, trained once per process from the shipped seeds.
    pub fn shipped() -> &'static Self {
        static SHIPPED: LazyLock<ContentModel> = LazyLock::new(|| ContentModel::train(&[]));
        &SHIPPED
    }

    /// Trains on an operator's texts together with the shipped seeds.
    #[must_use]
    pub fn train(rows: &[LabelledText]) -> Self {
        let mut texts = seeds();
        texts.extend(rows.iter().cloned());
        texts.sort();
        texts.dedup();
        let read: Vec<(Counts, Cues)> = texts
            .iter()
            .map(|row| {
                let text = Normalised::of(&row.text);
                (Counts::of_text(&text, Symbols::Ignored), Reading::of(&text).cues())
            })
            .collect();
        let mut hash = Sha256::new();
        hash.update(include_str!("../data/content_lexicon.txt"));
        for rule in RULES {
            hash.update(rule.pattern);
            hash.update(rule.points.to_le_bytes());
        }
        for row in &texts {
            for (category, label) in &row.labels {
                hash.update(category);
                hash.update([u8::from(*label)]);
            }
            hash.update(u64::try_from(row.text.len()).unwrap_or(u64::MAX).to_le_bytes());
            hash.update(&row.text);
        }
        let mut questions = Vec::new();
        for (category, name) in CATEGORIES.iter().enumerate() {
            let examples: Vec<Example> = texts
                .iter()
                .zip(&read)
                .filter_map(|(row, (counts, cues))| {
                    let positive = *row.labels.get(*name)?;
                    Some(Example { counts: counts.clone(), cues: cues.clone(), positive })
                })
                .collect();
            let positives = examples.iter().filter(|example| example.positive).count();
            if positives == 0 || positives == examples.len() {
                continue;
            }
            let training = Training { positive_weight: 2.0, ..Training::default() };
            let model =
                CuedModel::train(&examples.iter().collect::<Vec<_>>(), cue_count(), BALANCE, training);
            questions.push(Question::after(&questions, category, threshold(name), model));
        }
        Self { questions, version: hex::encode(&hash.finalize()[..8]) }
    }

    /// A hash of everything the verdicts depend on.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The model as a file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Category);
        writer.text(&self.version);
        writer.length(self.questions.len());
        for question in &self.questions {
            writer.text(CATEGORIES[question.category]);
            writer.f32(question.threshold);
            question.model.write(&mut writer);
        }
        writer.finish()
    }

    /// Reads what [`ContentModel::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Damage`] when the file is no content model of this program's rules.
    pub fn from_bytes(file: &[u8]) -> Result<Self, Damage> {
        let mut reader = Reader::open_kind(file, Kind::Category)?;
        let version = reader.text()?;
        let mut questions = Vec::new();
        for _ in 0..reader.length(1)? {
            let name = reader.text()?;
            let category = CATEGORIES
                .iter()
                .position(|known| *known == name)
                .ok_or(Damage::Inconsistent("a category"))?;
            let threshold = reader.f32()?;
            let model = CuedModel::read(&mut reader, cue_count())?;
            questions.push(Question::after(&questions, category, threshold, model));
        }
        reader.finish()?;
        Ok(Self { questions, version })
    }

    /// Judges a text.
    #[must_use]
    pub fn score(&self, text: &Normalised) -> ContentScore {
        let reading = Reading::of(text);
        let cues = reading.cues();
        let hashed = Hashed::of(text, Symbols::Ignored);
        let mut model_points = [0.0_f32; CATEGORIES.len()];
        if !hashed.is_empty() {
            let mut vector = SparseVector::default();
            for question in &self.questions {
                if !question.reads_like_previous {
                    vector = question.model.vector_of_words(&hashed, 0..text.words().len(), &cues);
                }
                let margin = question.model.margin_of(&vector);
                model_points[question.category] = (FLAG_POINTS
                    * (1.0 + (margin - question.threshold) / MODEL_REACH))
                    .clamp(0.0, MOST_MODEL_POINTS);
            }
        }
        let mut categories = BTreeMap::new();
        let mut flagged = Vec::new();
        for (category, name) in CATEGORIES.iter().enumerate() {
            let rules = reading.rule_points(name);
            let total = rules + model_points[category];
            categories.insert(*name, f64::from(total / (total + FLAG_POINTS)));
            if total < FLAG_POINTS {
                continue;
            }
            let mut severity = Severity::Low;
            let mut evidence = Vec::new();
            for (rule, bytes) in &reading.matches {
                let rule = &RULES[*rule];
                if rule.category == *name {
                    severity = severity.max(rule.severity);
                    evidence.push(Evidence {
                        rule: rule.id,
                        span: text.span_of(bytes.clone()),
                        points: rule.points,
                    });
                }
            }
            if model_points[category] > 0.0 {
                let span = text.span_of_words(0..text.words().len());
                evidence.push(Evidence { rule: "model", span, points: model_points[category] });
            }
            evidence.sort_by(|a, b| b.points.total_cmp(&a.points).then(a.span.cmp(&b.span)));
            flagged.push(Flag { category: name, severity, evidence });
        }
        let support = flagged.iter().any(|flag| flag.category == "SH");
        ContentScore { categories, flagged, support }
    }
}

/// The margin at which the model alone flags. Plain harmful requests have little in common but their form, so
/// that the model's doubt weighs more there; everyday talk of killing and shooting is common, so that it
/// weighs less.
fn threshold(category: &str) -> f32 {
    match category {
        "illicit" => -0.25,
        "V" => 0.15,
        _ => 0.0,
    }
}

/// The shipped seeds: every category labelled.
fn seeds() -> Vec<LabelledText> {
    let labelled = include_str!("../data/content_seeds.txt")
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(|line| line.split_once('|'))
        .map(|(labels, text)| (labels.split(',').collect::<Vec<_>>(), text));
    let ordinary = [
        include_str!("../data/background_en.txt"),
        include_str!("../data/background_ru.txt"),
        include_str!("../data/benign_seeds_en.txt"),
        include_str!("../data/benign_seeds_ru.txt"),
    ]
    .into_iter()
    .flat_map(str::lines)
    .map(str::trim)
    .filter(|line| !line.is_empty() && !line.starts_with('#'))
    .map(|text| (Vec::new(), text));
    labelled
        .chain(ordinary)
        .map(|(labels, text)| LabelledText {
            text: text.to_owned(),
            // No seed speaks of minors: that category is the rules' alone until an operator trains it.
            labels: CATEGORIES
                .iter()
                .filter(|name| **name != "S3")
                .map(|name| ((*name).to_owned(), labels.contains(name)))
                .collect(),
        })
        .collect()
}
