//! OpenAI's `/v1/moderations`, and servers that copy it.

use std::{collections::BTreeMap, fmt, time::Duration};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::{Findings, ModerationCategory as Category, ModerationProvider, ModerationVerdict, measure};
use crate::{LlmError, breaker::Breaker, json_call::JsonCall};

/// Bytes of one answer: some thirty scores.
const MAX_ANSWER: usize = 1 << 20;

/// The endpoint's names and ours.
const NAMES: [(&str, Category); 13] = [
    ("sexual", Category::Sexual),
    ("sexual/minors", Category::SexualMinors),
    ("hate", Category::Hate),
    ("hate/threatening", Category::HateThreatening),
    ("harassment", Category::Harassment),
    ("harassment/threatening", Category::Harassment),
    ("self-harm", Category::SelfHarm),
    ("self-harm/intent", Category::SelfHarm),
    ("self-harm/instructions", Category::SelfHarm),
    ("violence", Category::Violence),
    ("violence/graphic", Category::ViolenceGraphic),
    ("illicit", Category::Illicit),
    ("illicit/violent", Category::Illicit),
];

/// Where the endpoint is and how it is asked.
#[derive(Clone)]
pub struct OpenAiModerationConfig {
    /// Up to and without `/moderations`, for example `https://api.openai.com/v1`.
    pub base_url: String,
    /// Sent as a bearer token; servers of one's own may need none.
    pub key: Option<String>,
    /// For example `omni-moderation-latest`.
    pub model: String,
    /// Of one attempt, whole.
    pub timeout: Duration,
    /// Attempts after the first one.
    pub retries: u32,
}

impl fmt::Debug for OpenAiModerationConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("OpenAiModerationConfig")
            .field("base_url", &self.base_url)
            .field("key", &self.key.as_ref().map(|_| "(set)"))
            .field("model", &self.model)
            .field("timeout", &self.timeout)
            .field("retries", &self.retries)
            .finish()
    }
}

/// A moderation endpoint.
pub struct OpenAiModeration {
    config: OpenAiModerationConfig,
    url: String,
    http: reqwest::Client,
    breaker: Breaker,
}

impl OpenAiModeration {
    /// The client should set a connect timeout and no total one.
    #[must_use]
    pub fn new(config: OpenAiModerationConfig, http: reqwest::Client) -> Self {
        let url = format!("{}/moderations", config.base_url.trim_end_matches('/'));
        Self { config, url, http, breaker: Breaker::default() }
    }

    async fn ask(
        &self,
        text: &str,
        asked: Instant,
        deadline: Instant,
    ) -> Result<ModerationVerdict, LlmError> {
        let answer: Answer = JsonCall {
            http: &self.http,
            url: &self.url,
            bearer: self.config.key.as_deref(),
            body: &json!({"model": self.config.model, "input": text}),
            model: &self.config.model,
            breaker: &self.breaker,
            timeout: self.config.timeout,
            retries: self.config.retries,
            max_bytes: MAX_ANSWER,
            deadline,
        }
        .run()
        .await?;
        // One text was sent: another number of results is about something else.
        let [result] = &answer.results[..] else { return Err(LlmError::Malformed) };
        let findings = result.findings()?;
        Ok(findings.verdict(answer.model.unwrap_or_else(|| self.config.model.clone()), asked))
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    model: Option<String>,
    results: Vec<Outcome>,
}

/// Maps rather than fields: models differ in their categories, older ones give `null` for newer ones.
#[derive(Deserialize)]
struct Outcome {
    flagged: bool,
    categories: BTreeMap<String, Option<bool>>,
    category_scores: BTreeMap<String, Option<f64>>,
}

impl Outcome {
    fn findings(&self) -> Result<Findings, LlmError> {
        let mut findings = Findings::default();
        for (name, category) in NAMES {
            let flagged = self.categories.get(name).copied().flatten();
            let score = self.category_scores.get(name).copied().flatten();
            if flagged.is_none() && score.is_none() {
                continue;
            }
            let flagged = flagged.unwrap_or(false);
            let score_permille = match score {
                Some(score) if (0.0..=1.0).contains(&score) => (score * 1_000.0).round() as u16,
                Some(_) => return Err(LlmError::Malformed),
                None => u16::from(flagged) * 1_000,
            };
            findings.add(category, score_permille, flagged);
        }
        let known = |name: &str| NAMES.iter().any(|(known, _)| *known == name);
        for (name, _) in
            self.categories.iter().filter(|(name, flagged)| **flagged == Some(true) && !known(name))
        {
            findings.add_other(name);
        }
        if self.flagged && !findings.is_flagged() {
            findings.add_other("unspecified");
        }
        Ok(findings)
    }
}

#[async_trait]
impl ModerationProvider for OpenAiModeration {
    fn name(&self) -> &'static str {
        "openai"
    }

    async fn moderate(&self, text: &str, deadline: Instant) -> Result<ModerationVerdict, LlmError> {
        let asked = Instant::now();
        let verdict = self.ask(text, asked, deadline).await;
        measure(self.name(), asked, &verdict);
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Categories with score and flag, and foreign names.
    type Found = (Vec<(&'static str, u16, bool)>, Vec<String>);

    fn findings(outcome: serde_json::Value) -> Result<Found, LlmError> {
        let outcome: Outcome = serde_json::from_value(outcome).map_err(|_| LlmError::Malformed)?;
        let findings = outcome.findings()?;
        let categories = findings.categories.iter();
        let categories =
            categories.map(|(kind, verdict)| (kind.as_str(), verdict.score_permille, verdict.flagged));
        Ok((categories.collect(), findings.others))
    }

    #[test]
    fn several_of_their_categories_are_one_of_ours() {
        let outcome = json!({
            "flagged": true,
            "categories": {"self-harm": false, "self-harm/intent": true, "hate": false, "illicit": null},
            "category_scores": {"self-harm": 0.9996, "self-harm/intent": 0.5, "hate": 1e-9, "illicit": null},
        });
        assert_eq!(findings(outcome), Ok((vec![("H", 0, false), ("SH", 1_000, true)], vec![])));
    }

    #[test]
    fn what_is_flagged_and_unknown_is_handed_on() {
        let scores = json!({"new": 0.9});
        let outcome = json!({"flagged": true, "categories": {"new": true}, "category_scores": scores});
        assert_eq!(findings(outcome), Ok((vec![], vec!["new".to_owned()])));
        let outcome = json!({"flagged": true, "categories": {}, "category_scores": {}});
        assert_eq!(findings(outcome), Ok((vec![], vec!["unspecified".to_owned()])));
        let outcome = json!({"flagged": false, "categories": {"sexual": true}, "category_scores": {}});
        assert_eq!(findings(outcome), Ok((vec![("S", 1_000, true)], vec![])));
    }

    #[test]
    fn scores_that_are_none_are_an_error() {
        for score in [json!(1.5), json!(-0.1), json!("high")] {
            let outcome =
                json!({"flagged": false, "categories": {"hate": false}, "category_scores": {"hate": score}});
            assert_eq!(findings(outcome), Err(LlmError::Malformed));
        }
    }

    #[test]
    fn a_key_is_not_printed() {
        let config = OpenAiModerationConfig {
            base_url: "http://localhost".to_owned(),
            key: Some("sesame".to_owned()),
            model: "m".to_owned(),
            timeout: Duration::from_secs(1),
            retries: 0,
        };
        assert!(!format!("{config:?}").contains("sesame"));
    }
}
