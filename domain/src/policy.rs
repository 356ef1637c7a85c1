//! What a bot is for, and what becomes of a message that is not: the task's intents, the lines that
//! are drawn through the detectors' findings, and the ladder a person climbs by crossing them.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, EnumString, IntoStaticStr};

use crate::{
    BotId, Decide, DomainError, ModelName, OperatorId, Reason, WorkspaceId,
    aggregate::aggregate,
    signal::{Detector, Findings, Signal, SignalLevel},
    standing::{
        Evidence, Offence,
        ladder::{LadderConfig, OffenceKind, Preset},
    },
    text::is_prose,
};

/// How long a new policy only watches, unless its owner says otherwise.
pub const TRIAL: TimeDelta = TimeDelta::days(7);

/// What becomes of a message with a certain finding.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, AsRefStr, EnumString, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Response {
    /// Nothing: no points, and it is answered.
    Ignore,
    /// Points, and it is answered.
    Score,
    /// Points, and it is not answered.
    Refuse,
}

/// What becomes of personal data and secrets in a message.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, AsRefStr, EnumString, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum DataRule {
    /// The provider is sent what the person wrote.
    Pass,
    /// The provider is sent placeholders; the answer gets the values back.
    Mask,
    /// The message is not answered. It never costs points.
    Refuse,
}

/// How bad a content category is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, AsRefStr, EnumString, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Severity {
    Low,
    Medium,
    /// Blocks at once and goes to a human.
    Severe,
}

/// A line through one content category.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CategoryRule {
    /// Score in thousandths from which the category counts, 1-1000. A detector's own severe finding
    /// counts whatever its score.
    pub from_permille: u16,
    /// What a finding costs.
    pub severity: Severity,
    pub response: Response,
}

/// A kind of request the bot is there for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// 1-64 characters, unique in the policy.
    pub name: String,
    /// What people write when they want it; 3 or more, as unlike each other as can be.
    pub examples: Vec<String>,
}

/// A word or phrase people may not use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlockedWord {
    /// 1-100 characters; `*` at an end stands for any ending.
    pub phrase: String,
    pub severity: Severity,
}

/// A moderation service to ask beside the detectors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModerationRule {
    /// Name of a service in the installation's configuration.
    pub service: String,
    /// Without an answer: whether the message is refused (fail closed) or goes on without it.
    pub required: bool,
}

/// The whole of a policy; every version carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyTerms {
    /// What the bot is for; nothing is off topic without any.
    pub intents: Vec<Intent>,
    /// Examples of what it is not for, beside the background every model knows.
    pub not_this: Vec<String>,
    /// A message that fits no intent.
    pub off_topic: Response,
    /// Model for embeddings, where the installation offers one; word and character n-grams without.
    pub embedding_model: Option<ModelName>,
    /// An attack that may be none.
    pub suspected_attack: Response,
    /// An attack.
    pub confident_attack: Response,
    pub spam: Response,
    /// Lines by category name; a category that is not named counts for nothing.
    pub categories: BTreeMap<String, CategoryRule>,
    pub personal_data: DataRule,
    pub secrets: DataRule,
    pub blocked_words: Vec<BlockedWord>,
    /// A message with a blocked word.
    pub blocked_word: Response,
    /// Floods, repeated messages, probing.
    pub behaviour: Response,
    pub moderation: Vec<ModerationRule>,
    /// Whether detectors that fail refuse the message; an event says so either way.
    pub fail_closed: bool,
    /// How strict the ladder is.
    pub preset: Preset,
    /// The ladder itself, where the preset does not fit.
    pub ladder: Option<LadderConfig>,
    /// Messages a minute for people who are throttled, at least 1.
    pub throttled_per_minute: u32,
}

impl Default for PolicyTerms {
    fn default() -> Self {
        use Response::{Ignore, Refuse, Score};
        let rule = |from_permille, severity, response| CategoryRule { from_permille, severity, response };
        let categories = [
            ("S", rule(900, Severity::Low, Score)),
            ("S3", rule(500, Severity::Severe, Refuse)),
            ("H", rule(900, Severity::Medium, Score)),
            ("H2", rule(900, Severity::Medium, Refuse)),
            ("HR", rule(900, Severity::Low, Score)),
            ("V", rule(950, Severity::Low, Score)),
            ("V2", rule(950, Severity::Low, Score)),
            // People in need are answered, not punished.
            ("SH", rule(800, Severity::Low, Ignore)),
            ("illicit", rule(800, Severity::Medium, Refuse)),
        ];
        Self {
            intents: vec![],
            not_this: vec![],
            off_topic: Score,
            embedding_model: None,
            suspected_attack: Score,
            confident_attack: Refuse,
            spam: Refuse,
            categories: categories.into_iter().map(|(name, rule)| (name.to_owned(), rule)).collect(),
            personal_data: DataRule::Mask,
            secrets: DataRule::Mask,
            blocked_words: vec![],
            blocked_word: Refuse,
            behaviour: Score,
            moderation: vec![],
            fail_closed: false,
            preset: Preset::Standard,
            ladder: None,
            throttled_per_minute: 1,
        }
    }
}

/// Names of the content categories, as detectors and moderation services give them: S sexual, S3 sexual
/// with minors, H hate, H2 hate with threats, HR harassment, V violence, V2 graphic violence, SH
/// self-harm, and `illicit` for help with a crime.
pub const CATEGORIES: [&str; 9] = ["S", "S3", "H", "H2", "HR", "V", "V2", "SH", "illicit"];

/// Intents at most.
const MOST_INTENTS: usize = 300;
/// Examples of all intents at most; training stays within seconds.
const MOST_EXAMPLES: usize = 20_000;
/// Characters of an example at most.
const LONGEST_EXAMPLE: usize = 1_000;
/// Blocked words at most.
const MOST_BLOCKED_WORDS: usize = 5_000;
/// Examples an intent needs.
const FEWEST_EXAMPLES: usize = 3;

impl PolicyTerms {
    /// The ladder in force.
    #[must_use]
    pub fn ladder(&self) -> LadderConfig {
        self.ladder.clone().unwrap_or_else(|| LadderConfig::preset(self.preset))
    }

    /// Whether the terms make sense together.
    ///
    /// # Errors
    /// The first thing that does not, in words for its author.
    pub fn check(&self) -> Result<(), PolicyError> {
        let invalid = |problem: String| Err(PolicyError::Invalid { problem });
        if self.intents.len() > MOST_INTENTS {
            return invalid(format!("it names {} intents, at most {MOST_INTENTS} fit", self.intents.len()));
        }
        let mut names = BTreeSet::new();
        for intent in &self.intents {
            let name = &intent.name;
            if name.trim() != name || name.is_empty() || name.chars().count() > 64 || !is_prose(name) {
                return invalid(format!(
                    "an intent's name has 1 to 64 characters, without spaces at its ends: {name:?}"
                ));
            }
            if name == "oos" {
                return invalid("no intent can be named oos: that is the name of everything else".to_owned());
            }
            if !names.insert(name) {
                return invalid(format!("two intents are named {name}"));
            }
            let distinct: BTreeSet<String> =
                intent.examples.iter().map(|example| example.trim().to_lowercase()).collect();
            if distinct.len() < FEWEST_EXAMPLES {
                return invalid(format!("intent {name} needs {FEWEST_EXAMPLES} different examples or more"));
            }
        }
        let examples =
            self.intents.iter().map(|intent| intent.examples.len()).sum::<usize>() + self.not_this.len();
        if examples > MOST_EXAMPLES {
            return invalid(format!("it gives {examples} examples, at most {MOST_EXAMPLES} fit"));
        }
        let texts = self.intents.iter().flat_map(|intent| &intent.examples).chain(&self.not_this);
        for text in texts {
            let length = text.chars().count();
            if text.trim().is_empty() || length > LONGEST_EXAMPLE || !is_prose(text) {
                return invalid(format!(
                    "an example has 1 to {LONGEST_EXAMPLE} printable characters, not {length}"
                ));
            }
        }
        for (name, rule) in &self.categories {
            if !CATEGORIES.contains(&name.as_str()) {
                return invalid(format!("there is no category {name}; there are {}", CATEGORIES.join(", ")));
            }
            if !(1..=1_000).contains(&rule.from_permille) {
                return invalid(format!(
                    "category {name} counts from 1 to 1000 thousandths, not from {}",
                    rule.from_permille
                ));
            }
        }
        if self.blocked_words.len() > MOST_BLOCKED_WORDS {
            return invalid(format!(
                "it blocks {} words, at most {MOST_BLOCKED_WORDS} fit",
                self.blocked_words.len()
            ));
        }
        for word in &self.blocked_words {
            let letters = word.phrase.chars().filter(|c| c.is_alphanumeric()).count();
            if letters == 0 || word.phrase.chars().count() > 100 || !is_prose(&word.phrase) {
                return invalid(format!(
                    "a blocked word has 1 to 100 characters and a letter or digit: {:?}",
                    word.phrase
                ));
            }
        }
        let mut services = BTreeSet::new();
        for rule in &self.moderation {
            if rule.service.is_empty() || !services.insert(&rule.service) {
                return invalid(format!("moderation services are named once each: {:?}", rule.service));
            }
        }
        if self.throttled_per_minute == 0 {
            return invalid("a throttled person may write at least one message a minute".to_owned());
        }
        self.ladder().check().map_err(|problem| PolicyError::Invalid { problem: problem.to_string() })
    }

    /// What the findings come to under these terms. Pure: the same findings, the same judgement, today
    /// and in a replay.
    #[must_use]
    pub fn judge(&self, findings: &Findings) -> Judgement {
        let mut judgement = Judgement::default();
        self.judge_attacks(findings, &mut judgement);
        self.judge_signals(findings, Detector::Spam, OffenceKind::Spam, self.spam, &mut judgement);
        self.judge_categories(findings, &mut judgement);
        self.judge_strange_categories(findings, &mut judgement);
        self.judge_words(findings, &mut judgement);
        self.judge_signals(findings, Detector::Behaviour, OffenceKind::Flood, self.behaviour, &mut judgement);
        judge_data(findings, Detector::PersonalData, self.personal_data, &mut judgement);
        judge_data(findings, Detector::Secret, self.secrets, &mut judgement);
        // What attacks or offends is seldom on topic: one message, one fault.
        if judgement.offences.is_empty() {
            self.judge_topic(findings, &mut judgement);
        }
        if self.fail_closed && !findings.unavailable.is_empty() || self.misses_a_required_service(findings) {
            judgement.refuse(Refusal::Unscored);
        }
        judgement
    }

    fn misses_a_required_service(&self, findings: &Findings) -> bool {
        self.moderation.iter().any(|rule| rule.required && findings.unavailable.contains(&rule.service))
    }

    fn judge_attacks(&self, findings: &Findings, judgement: &mut Judgement) {
        let confident = findings.of(Detector::Attack).any(|signal| signal.level >= SignalLevel::Confident);
        let (kind, response) = if confident {
            (OffenceKind::InjectionConfident, self.confident_attack)
        } else {
            (OffenceKind::InjectionSuspected, self.suspected_attack)
        };
        self.judge_signals(findings, Detector::Attack, kind, response, judgement);
    }

    fn judge_signals(
        &self,
        findings: &Findings,
        detector: Detector,
        kind: OffenceKind,
        response: Response,
        judgement: &mut Judgement,
    ) {
        let evidence: Vec<Evidence> = findings.of(detector).map(evidence).collect();
        if response == Response::Ignore || evidence.is_empty() {
            return;
        }
        if response == Response::Refuse {
            judgement.refuse(Refusal::Content { detector, rule: evidence[0].rule.clone() });
        }
        judgement.offences.push(Offence { kind, oos_permille: None, intent: None, evidence });
    }

    /// One offence for the worst category that counts.
    fn judge_categories(&self, findings: &Findings, judgement: &mut Judgement) {
        let mut worst: Option<(Severity, Vec<Evidence>)> = None;
        for (name, rule) in &self.categories {
            let signals: Vec<&Signal> = findings
                .signals
                .iter()
                .filter(|signal| matches!(signal.detector, Detector::Category | Detector::Moderation))
                .filter(|signal| signal.rule == *name)
                .collect();
            let severe = signals.iter().any(|signal| signal.level == SignalLevel::Severe);
            let score =
                signals.iter().map(|signal| signal.score_permille).chain(self.score_of(findings, name)).max();
            let counts = severe || score.is_some_and(|score| score >= rule.from_permille);
            if !counts || rule.response == Response::Ignore {
                continue;
            }
            let severity = if severe { Severity::Severe } else { rule.severity };
            if rule.response == Response::Refuse || severe {
                let detector = signals.first().map_or(Detector::Category, |signal| signal.detector);
                judgement.refuse(Refusal::Content { detector, rule: name.clone() });
            }
            let mut found: Vec<Evidence> = signals.into_iter().map(evidence).collect();
            if found.is_empty() {
                found.push(Evidence {
                    detector: Detector::Category.as_ref().to_owned(),
                    rule: name.clone(),
                    spans: vec![],
                });
            }
            match &mut worst {
                Some((worst, all)) => {
                    *worst = (*worst).max_by_harm(severity);
                    all.append(&mut found);
                }
                None => worst = Some((severity, found)),
            }
        }
        if let Some((severity, evidence)) = worst {
            judgement.offences.push(Offence {
                kind: severity.offence(),
                oos_permille: None,
                intent: None,
                evidence,
            });
        }
    }

    /// What a service flags under a name that no line is drawn for. Where a service has to be asked, its "no"
    /// is one; it costs nothing, because nobody said how bad it is.
    fn judge_strange_categories(&self, findings: &Findings, judgement: &mut Judgement) {
        let strange =
            findings.of(Detector::Moderation).find(|signal| !CATEGORIES.contains(&signal.rule.as_str()));
        if let Some(signal) = strange
            && self.moderation.iter().any(|rule| rule.required)
        {
            let (detector, rule) = (Detector::Moderation, signal.rule.clone());
            judgement.refuse(Refusal::Content { detector, rule });
        }
    }

    /// The highest score that a category got, of the detectors here or of a service the policy asks.
    fn score_of(&self, findings: &Findings, category: &str) -> Option<u16> {
        let of_services =
            self.moderation.iter().map(|rule| findings.scores.get(&format!("{}.{category}", rule.service)));
        of_services.chain([findings.scores.get(category)]).flatten().copied().max()
    }

    fn judge_words(&self, findings: &Findings, judgement: &mut Judgement) {
        if self.blocked_word == Response::Ignore {
            return;
        }
        let mut worst: Option<Severity> = None;
        let mut found = Vec::new();
        for signal in findings.of(Detector::BlockedWord) {
            let entry = signal
                .rule
                .parse::<usize>()
                .ok()
                .and_then(|number| self.blocked_words.get(number.checked_sub(1)?));
            // A word of another version of the policy is none of this one.
            let Some(entry) = entry else { continue };
            worst = Some(worst.map_or(entry.severity, |worst| worst.max_by_harm(entry.severity)));
            found.push(evidence(signal));
        }
        let Some(severity) = worst else { return };
        if self.blocked_word == Response::Refuse || severity == Severity::Severe {
            judgement
                .refuse(Refusal::Content { detector: Detector::BlockedWord, rule: found[0].rule.clone() });
        }
        judgement.offences.push(Offence {
            kind: severity.offence(),
            oos_permille: None,
            intent: None,
            evidence: found,
        });
    }

    /// Whether there is something to mask.
    fn judge_topic(&self, findings: &Findings, judgement: &mut Judgement) {
        let Some(found) = &findings.intent else { return };
        let from = self.ladder().points.off_topic_from_permille;
        if self.off_topic == Response::Ignore || u64::from(found.oos_permille) <= u64::from(from) {
            return;
        }
        if self.off_topic == Response::Refuse {
            judgement.refuse(Refusal::OffTopic);
        }
        judgement.offences.push(Offence {
            kind: OffenceKind::OffTopic,
            oos_permille: Some(found.oos_permille),
            intent: Some(found.intent.clone()),
            evidence: vec![],
        });
    }
}

fn evidence(signal: &Signal) -> Evidence {
    Evidence {
        detector: signal.detector.as_ref().to_owned(),
        rule: signal.rule.clone(),
        spans: signal.spans.iter().map(|span| (span.start, span.end)).collect(),
    }
}

impl Severity {
    fn offence(self) -> OffenceKind {
        match self {
            Self::Low => OffenceKind::CategoryLow,
            Self::Medium => OffenceKind::CategoryMedium,
            Self::Severe => OffenceKind::CategorySevere,
        }
    }

    fn max_by_harm(self, other: Self) -> Self {
        if (self as u8) < (other as u8) { other } else { self }
    }
}

/// Why a message is not answered, before any points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A finding whose response is to refuse.
    Content { detector: Detector, rule: String },
    /// It fits no intent.
    OffTopic,
    /// A detector that has to be asked gave no answer.
    Unscored,
}

/// What findings come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// What the person is charged with; nothing means a clean message.
    pub offences: Vec<Offence>,
    /// Why it is not answered.
    pub refusal: Option<Refusal>,
}

/// Data costs nobody points: it is let through, masked where the text leaves, or not answered.
fn judge_data(findings: &Findings, detector: Detector, rule: DataRule, judgement: &mut Judgement) {
    if rule == DataRule::Refuse
        && let Some(first) = findings.of(detector).next()
    {
        judgement.refuse(Refusal::Content { detector, rule: first.rule.clone() });
    }
}

impl Judgement {
    /// The first reason stands: they come in the order of their weight.
    fn refuse(&mut self, refusal: Refusal) {
        self.refusal.get_or_insert(refusal);
    }
}

/// Whose policy judged a message.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum PolicyOwner {
    /// Nobody published any: the detectors watch and mask, and nobody is punished.
    #[default]
    BuiltIn,
    /// The workspace's.
    Workspace,
    /// The bot's own.
    Bot,
}

/// Which policy, in which version, judged a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyRef {
    pub owner: PolicyOwner,
    /// Of that owner's policy, from 1; 0 for the built-in one.
    pub version: u32,
    /// Whether it only watched.
    pub dry_run: bool,
}

/// Whether a published version acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyMode {
    /// As before; a week of watching where there was nothing before.
    Keep,
    /// From now on.
    Live,
    /// Watch until then, or until another version when absent.
    DryRun { until: Option<DateTime<Utc>> },
}

/// The version in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PublishedPolicy {
    /// From 1.
    pub version: u32,
    pub terms: PolicyTerms,
    pub trial: Trial,
}

/// Whether a policy only watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Trial {
    /// It acts.
    Live,
    /// It watches until then, and acts from then on; without an end it watches until another version.
    DryRun { until: Option<DateTime<Utc>> },
}

impl Trial {
    /// Whether it only watches at a moment.
    #[must_use]
    pub fn is_dry_run(self, now: DateTime<Utc>) -> bool {
        match self {
            Self::Live => false,
            Self::DryRun { until } => until.is_none_or(|until| now < until),
        }
    }
}

/// The policy of a bot or of a workspace. Invariant: versions count up from 1 and never change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Absent before the first, and after it was withdrawn.
    pub current: Option<PublishedPolicy>,
    /// The newest version there ever was; 0 before the first.
    pub last_version: u32,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum PolicyCommand {
    /// Make these terms the next version.
    Publish {
        workspace: WorkspaceId,
        bot: Option<BotId>,
        terms: Box<PolicyTerms>,
        mode: PolicyMode,
        note: Option<Reason>,
        by: Option<OperatorId>,
    },
    /// Go back to what stands behind it: the workspace's policy, or the built-in one.
    Withdraw { reason: Reason, by: Option<OperatorId> },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum PolicyEvent {
    /// These terms are in force.
    PolicyPublished {
        workspace: WorkspaceId,
        /// Absent for the workspace's own policy.
        bot: Option<BotId>,
        version: u32,
        terms: Box<PolicyTerms>,
        trial: Trial,
        note: Option<Reason>,
        by: Option<OperatorId>,
        published_at: DateTime<Utc>,
    },
    /// No policy of this owner is in force.
    PolicyWithdrawn { version: u32, reason: Reason, by: Option<OperatorId>, withdrawn_at: DateTime<Utc> },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The terms do not make sense.
    #[error("the policy cannot be published: {problem}")]
    Invalid {
        /// What is wrong, in words.
        problem: String,
    },
    /// The end of the dry run lies before now.
    #[error("a dry run ends in the future, by the year 9999")]
    DryRunEnd,
}

impl DomainError for PolicyError {
    fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "POLICY_INVALID",
            Self::DryRunEnd => "POLICY_DRY_RUN_END",
        }
    }
}

impl Policy {
    /// The version in force, if any.
    #[must_use]
    pub fn in_force(&self) -> Option<&PublishedPolicy> {
        self.current.as_ref()
    }

    fn trial(&self, mode: PolicyMode, now: DateTime<Utc>) -> Result<Trial, PolicyError> {
        match mode {
            PolicyMode::Live => Ok(Trial::Live),
            PolicyMode::DryRun { until }
                if until.is_some_and(|until| until <= now || !crate::clock::is_writable(until)) =>
            {
                Err(PolicyError::DryRunEnd)
            }
            PolicyMode::DryRun { until } => Ok(Trial::DryRun { until }),
            PolicyMode::Keep => Ok(match &self.current {
                Some(current) if !current.trial.is_dry_run(now) => Trial::Live,
                Some(current) => current.trial,
                None => Trial::DryRun { until: Some(now + TRIAL) },
            }),
        }
    }

    fn record(&mut self, event: PolicyEvent) {
        match event {
            PolicyEvent::PolicyPublished { version, terms, trial, .. } => {
                self.current = Some(PublishedPolicy { version, terms: *terms, trial });
                self.last_version = version;
            }
            PolicyEvent::PolicyWithdrawn { .. } => self.current = None,
        }
    }
}

impl Decide for Policy {
    fn decide(&self, command: PolicyCommand, now: DateTime<Utc>) -> Result<Vec<PolicyEvent>, PolicyError> {
        match command {
            PolicyCommand::Publish { workspace, bot, terms, mode, note, by } => {
                terms.check()?;
                let trial = self.trial(mode, now)?;
                let same = |current: &PublishedPolicy| current.terms == *terms && current.trial == trial;
                if self.current.as_ref().is_some_and(same) {
                    return Ok(vec![]);
                }
                Ok(vec![PolicyEvent::PolicyPublished {
                    workspace,
                    bot,
                    version: self.last_version + 1,
                    terms,
                    trial,
                    note,
                    by,
                    published_at: now,
                }])
            }
            PolicyCommand::Withdraw { reason, by } => match &self.current {
                None => Ok(vec![]),
                Some(current) => Ok(vec![PolicyEvent::PolicyWithdrawn {
                    version: current.version,
                    reason,
                    by,
                    withdrawn_at: now,
                }]),
            },
        }
    }
}

aggregate!(Policy, "policy", PolicyCommand, PolicyEvent, PolicyError);

#[cfg(test)]
mod tests;
