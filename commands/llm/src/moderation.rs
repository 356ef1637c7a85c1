//! What others' models say about a text's content: a moderation endpoint, a model of Llama Guard's kind.
//!
//! Answers come in the product's categories; what has no name there is handed on under the provider's own,
//! so that nothing a provider flags gets lost. To add a provider: a file under `moderation/` that implements
//! [`ModerationProvider`], its mapping as a table, and a test against a stand-in.

mod llama_guard;
mod openai;

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;

use crate::LlmError;

pub use llama_guard::{GuardPrompt, LlamaGuard};
pub use openai::{OpenAiModeration, OpenAiModerationConfig};

/// What a text may contain. Names are those of OpenAI's evaluation set, and `illicit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ModerationCategory {
    /// `S`: sexual content.
    Sexual,
    /// `H`: hate against a group.
    Hate,
    /// `V`: violence.
    Violence,
    /// `HR`: harassment of a person.
    Harassment,
    /// `SH`: self-harm.
    SelfHarm,
    /// `S3`: sexual content with minors.
    SexualMinors,
    /// `H2`: hate with threats.
    HateThreatening,
    /// `V2`: violence in graphic detail.
    ViolenceGraphic,
    /// `illicit`: help with wrongdoing.
    Illicit,
}

impl ModerationCategory {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Sexual,
        Self::Hate,
        Self::Violence,
        Self::Harassment,
        Self::SelfHarm,
        Self::SexualMinors,
        Self::HateThreatening,
        Self::ViolenceGraphic,
        Self::Illicit,
    ];

    /// `S`, `H`, `V`, `HR`, `SH`, `S3`, `H2`, `V2` or `illicit`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sexual => "S",
            Self::Hate => "H",
            Self::Violence => "V",
            Self::Harassment => "HR",
            Self::SelfHarm => "SH",
            Self::SexualMinors => "S3",
            Self::HateThreatening => "H2",
            Self::ViolenceGraphic => "V2",
            Self::Illicit => "illicit",
        }
    }
}

/// How much of a category a provider sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CategoryVerdict {
    /// From 0 to 1000. A provider that only says yes or no gives 1000 or nothing.
    pub score_permille: u16,
    /// The provider's own decision; it may lie at any score.
    pub flagged: bool,
}

/// What a provider says about a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModerationVerdict {
    /// Every category the provider gave a score.
    pub categories: BTreeMap<ModerationCategory, CategoryVerdict>,
    /// What the provider flagged that is none of ours, under its own names, in order and once each:
    /// `S6` (specialised advice) of Llama Guard for example. `unspecified` when it flagged without a name.
    pub others: Vec<String>,
    /// As the provider names it.
    pub model: String,
    /// From the question to the verdict, retries included.
    pub latency: Duration,
}

impl ModerationVerdict {
    /// The categories of ours that the provider flagged, in order.
    pub fn flagged(&self) -> impl Iterator<Item = (ModerationCategory, u16)> {
        let flagged = self.categories.iter().filter(|(_, verdict)| verdict.flagged);
        flagged.map(|(category, verdict)| (*category, verdict.score_permille))
    }

    /// Whether the provider flagged anything, be it a category of ours or not.
    #[must_use]
    pub fn is_flagged(&self) -> bool {
        self.flagged().next().is_some() || !self.others.is_empty()
    }
}

/// Something that judges the content of a text.
#[async_trait]
pub trait ModerationProvider: Send + Sync {
    /// The name recorded in events, for example `openai`.
    fn name(&self) -> &'static str;

    /// What a text contains. Not finding out is an error and never "nothing": what follows from it is the
    /// caller's policy.
    ///
    /// # Errors
    /// See [`LlmError`].
    async fn moderate(&self, text: &str, deadline: Instant) -> Result<ModerationVerdict, LlmError>;
}

/// Categories and foreign names while they are collected.
#[derive(Default)]
struct Findings {
    categories: BTreeMap<ModerationCategory, CategoryVerdict>,
    others: Vec<String>,
}

impl Findings {
    /// Several of a provider's categories may be one of ours: the highest score and any flag count.
    fn add(&mut self, category: ModerationCategory, score_permille: u16, flagged: bool) {
        let verdict = self.categories.entry(category).or_default();
        verdict.score_permille = verdict.score_permille.max(score_permille);
        verdict.flagged |= flagged;
    }

    fn add_other(&mut self, name: &str) {
        self.others.push(name.to_owned());
    }

    fn is_flagged(&self) -> bool {
        !self.others.is_empty() || self.categories.values().any(|verdict| verdict.flagged)
    }

    fn verdict(mut self, model: String, asked: Instant) -> ModerationVerdict {
        self.others.sort_unstable();
        self.others.dedup();
        ModerationVerdict {
            categories: self.categories,
            others: self.others,
            model,
            latency: asked.elapsed(),
        }
    }
}

/// Counts a call and its time.
fn measure<T>(provider: &'static str, asked: Instant, outcome: &Result<T, LlmError>) {
    let outcome = outcome.as_ref().map_or_else(LlmError::code, |_| "answered");
    metrics::counter!("botledger_moderation_requests_total", "provider" => provider, "outcome" => outcome)
        .increment(1);
    metrics::histogram!("botledger_moderation_seconds", "provider" => provider)
        .record(asked.elapsed().as_secs_f64());
}

/// Tells the metrics recorder what the metrics of moderation mean.
pub(crate) fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_histogram};
    describe_counter!(
        "botledger_moderation_requests_total",
        Unit::Count,
        "Questions about a text's content by provider and outcome"
    );
    describe_histogram!("botledger_moderation_seconds", Unit::Seconds, "Such questions, retries included");
}
