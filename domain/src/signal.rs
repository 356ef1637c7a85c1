//! What the detectors saw in a message: facts for a policy to judge, recorded so that a replay never
//! asks a detector again.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, EnumString, IntoStaticStr};

/// A stretch of the message in code points, end exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct TextSpan {
    pub start: u32,
    pub end: u32,
}

/// Who saw it.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Detector {
    /// Prompt injection and jailbreaks; rules by name, or `model`.
    Attack,
    /// Advertising nobody asked for.
    Spam,
    /// Content categories; the rule is the category, for example `H2`.
    Category,
    /// Personal data; the rule is its type, for example `EMAIL_ADDRESS`.
    PersonalData,
    /// Keys, tokens and passwords; the rule is its type, for example `SECRET`.
    Secret,
    /// Words the policy does not allow; the rule is the entry's number, from 1.
    BlockedWord,
    /// How messages come rather than what they say: `flood`, `duplicate`, `probing`.
    Behaviour,
    /// A moderation service or guard model; the rule is the category.
    Moderation,
}

/// How sure the detector is, or how bad it is.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum SignalLevel {
    /// It may be.
    Suspected,
    /// It is, as far as a detector can know.
    Confident,
    /// Beyond doubt and so bad that a human has to look.
    Severe,
}

/// One thing a detector saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Signal {
    pub detector: Detector,
    /// Which of the detector's rules; see [`Detector`].
    pub rule: String,
    pub level: SignalLevel,
    /// The detector's score in thousandths.
    pub score_permille: u16,
    /// Where in the message; empty when it is the whole of it.
    #[serde(default)]
    pub spans: Vec<TextSpan>,
}

/// Which of a policy's intents a message comes nearest to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IntentFinding {
    /// The nearest intent, in scope or not.
    pub intent: String,
    /// Calibrated probability, in thousandths, that the message is none of them.
    pub oos_permille: u16,
    /// `ngram`, or `embedding` with the model that was asked.
    pub method: String,
}

/// Everything the detectors said about one message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Findings {
    /// Absent when the policy names no intents.
    pub intent: Option<IntentFinding>,
    pub signals: Vec<Signal>,
    /// Scores in thousandths by detector or category, also of what raised no signal: another policy
    /// may draw its lines elsewhere.
    #[serde(default)]
    pub scores: BTreeMap<String, u16>,
    /// Versions of the models that were asked, by detector.
    #[serde(default)]
    pub models: BTreeMap<String, String>,
    /// Detectors the policy wanted and that gave no answer.
    #[serde(default)]
    pub unavailable: Vec<String>,
}

impl Findings {
    /// The signals of one detector.
    pub fn of(&self, detector: Detector) -> impl Iterator<Item = &Signal> {
        self.signals.iter().filter(move |signal| signal.detector == detector)
    }

    /// The detectors that saw something, each once.
    #[must_use]
    pub fn detectors(&self) -> BTreeSet<Detector> {
        self.signals.iter().map(|signal| signal.detector).collect()
    }
}
