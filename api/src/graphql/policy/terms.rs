//! What a policy says, as it is read and as it is written.

use std::collections::{BTreeMap, BTreeSet};

use async_graphql::{Enum, InputObject, SimpleObject};
use botledger_domain::{
    ModelName, policy as domain,
    standing::ladder::{self, LadderConfig},
};

use crate::graphql::{
    error::{ApiError, ApiResult, UserError},
    scalars::BigInt,
    standing::OffenceKind,
};

/// What becomes of a message with a certain finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "domain::Response")]
pub(crate) enum PolicyResponse {
    /// Nothing: no points, and it is answered.
    Ignore,
    /// Points, and it is answered.
    Score,
    /// Points, and it is not answered.
    Refuse,
}

/// What becomes of personal data and secrets in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "domain::DataRule")]
pub(crate) enum PolicyDataRule {
    /// The provider is sent what the person wrote.
    Pass,
    /// The provider is sent placeholders; the answer gets the values back.
    Mask,
    /// The message is not answered. It never costs points.
    Refuse,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "domain::Severity")]
pub(crate) enum PolicySeverity {
    Low,
    Medium,
    /// Blocks at once and goes to a human.
    Severe,
}

/// How soon the ladder acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "ladder::Preset")]
pub(crate) enum LadderPreset {
    /// Thresholds half as high again.
    Lenient,
    /// Thresholds as they are by default.
    Standard,
    /// Thresholds at seven tenths.
    Strict,
}

/// A kind of request the bot is there for.
#[derive(Clone, SimpleObject, InputObject)]
#[graphql(input_name = "PolicyIntentInput")]
pub(crate) struct PolicyIntent {
    /// 1 to 64 characters, unique in the policy.
    name: String,
    /// What people write when they want it; 3 or more, as unlike each other as can be.
    examples: Vec<String>,
}

/// A line through one content category.
#[derive(Clone, SimpleObject, InputObject)]
#[graphql(input_name = "PolicyCategoryInput")]
pub(crate) struct PolicyCategory {
    /// `S` sexual, `S3` sexual with minors, `H` hate, `H2` hate with threats, `HR` harassment, `V` violence,
    /// `V2` graphic violence, `SH` self-harm, `illicit` help with a crime.
    category: String,
    /// Score in thousandths from which it counts, 1 to 1,000.
    from_permille: u16,
    /// What a finding costs.
    severity: PolicySeverity,
    response: PolicyResponse,
}

/// A word or phrase people may not use.
#[derive(Clone, SimpleObject, InputObject)]
#[graphql(input_name = "PolicyBlockedWordInput")]
pub(crate) struct PolicyBlockedWord {
    /// 1 to 100 characters; `*` at an end stands for any ending.
    phrase: String,
    severity: PolicySeverity,
}

/// A moderation service to ask beside the detectors.
#[derive(Clone, SimpleObject, InputObject)]
#[graphql(input_name = "PolicyModerationInput")]
pub(crate) struct PolicyModeration {
    /// Name of a service in the installation's configuration.
    service: String,
    /// Without an answer: whether the message is refused or goes on without it.
    required: bool,
}

/// A number of the ladder, in the schema and in the ledger.
trait Figure: Sized {
    type Wire;
    fn wire(self) -> Self::Wire;
    fn read(wire: Self::Wire) -> Option<Self>;
}

impl Figure for u64 {
    type Wire = BigInt;
    fn wire(self) -> BigInt {
        BigInt(i64::try_from(self).unwrap_or(i64::MAX))
    }
    fn read(wire: BigInt) -> Option<Self> {
        Self::try_from(wire.0).ok()
    }
}

macro_rules! plain_figure {
    ($($kind:ty),+) => {
        $(impl Figure for $kind {
            type Wire = Self;
            fn wire(self) -> Self {
                self
            }
            fn read(wire: Self) -> Option<Self> {
                Some(wire)
            }
        })+
    };
}
plain_figure!(u16, u32);

/// Figures that are read as an object and written as an input whose absent fields keep the standard ones.
macro_rules! figures {
    (
        $(#[$doc:meta])* $name:ident, $(#[$input_doc:meta])* $input:ident of $domain:ty {
            $($(#[$field_doc:meta])* $field:ident: $kind:ty),+ $(,)?
        }
        and { $($(#[$more_doc:meta])* $more:ident: $more_kind:ty = $more_input:ty),* $(,)? }
    ) => {
        $(#[$doc])*
        #[derive(Clone, SimpleObject)]
        pub(crate) struct $name {
            $($(#[$field_doc])* $field: <$kind as Figure>::Wire,)+
            $($(#[$more_doc])* $more: $more_kind,)*
        }

        $(#[$input_doc])*
        #[derive(Clone, Default, InputObject)]
        pub(crate) struct $input {
            $($(#[$field_doc])* $field: Option<<$kind as Figure>::Wire>,)+
            $($(#[$more_doc])* $more: Option<$more_input>,)*
        }

        impl $input {
            fn figures(&self, mut figures: $domain) -> Result<$domain, UserError> {
                $(if let Some(given) = self.$field.clone() {
                    figures.$field = Figure::read(given).ok_or_else(|| {
                        invalid(format!("{} is no number from 0", stringify!($field)))
                    })?;
                })+
                Ok(figures)
            }
        }
    };
}

figures! {
    /// Milli-points an offence adds.
    LadderPoints,
    /// Milli-points an offence adds; what is not given is as in the standard ladder.
    LadderPointsInput of ladder::Points {
        /// For a message that is certainly off topic; less certain ones add their share of it.
        off_topic_max: u32,
        /// From where on, in thousandths of certainty, an off-topic message adds anything. Below 1,000.
        off_topic_from_permille: u16,
        flood: u32,
        injection_suspected: u32,
        spam: u32,
        injection_confident: u32,
        category_low: u32,
        category_medium: u32,
        /// For content that blocks at once.
        category_severe: u32,
    }
    and {}
}

figures! {
    /// Half-lives, thresholds, points and blocks. Thresholds and credits are milli-points, times are
    /// milliseconds.
    Ladder,
    /// A ladder of its own; what is not given is as in the standard one.
    LadderInput of LadderConfig {
        /// The drift lane halves in this time.
        drift_half_life_ms: u64,
        /// The violation lane halves in this time.
        violation_half_life_ms: u64,
        /// From this score on a person is warned.
        warn: u64,
        /// From this score on a person is throttled.
        throttle: u64,
        /// From this score on a person is blocked for a while.
        temp_block: u64,
        /// Below this score a warned person is ok again.
        warn_exit: u64,
        /// Below this score a throttled person is only warned.
        throttle_exit: u64,
        /// What the violation lane holds at most after a block for a while.
        after_block: u64,
        /// Events that added points before anybody is blocked for a while.
        min_events: u32,
        /// The first block for a while lasts this long.
        base_block_ms: u64,
        /// Each further one lasts this many times as long as the one before.
        block_factor: u32,
        /// No block for a while lasts longer.
        max_block_ms: u64,
        /// Blocks for a while count towards the next one for this long.
        ladder_window_ms: u64,
        /// The block for a while that becomes one without end, counted in the window.
        ladder_to_block: u32,
        /// What a clean message takes off the drift lane.
        credit_drift: u64,
        /// What a clean message takes off the violation lane.
        credit_violation: u64,
    }
    and {
        points: LadderPoints = LadderPointsInput,
        /// Offences that add to the violation lane; the others add to the drift lane.
        violation_kinds: Vec<OffenceKind> = Vec<OffenceKind>,
        /// Offences that block at once.
        severe_kinds: Vec<OffenceKind> = Vec<OffenceKind>,
    }
}

fn invalid(problem: String) -> UserError {
    let error = domain::PolicyError::Invalid { problem };
    UserError::new(botledger_domain::DomainError::code(&error), error.to_string())
}

fn kinds_wire(kinds: &BTreeSet<ladder::OffenceKind>) -> ApiResult<Vec<OffenceKind>> {
    kinds.iter().map(|kind| OffenceKind::read(kind.as_ref())).collect()
}

fn kinds_read(kinds: &[OffenceKind]) -> ApiResult<BTreeSet<ladder::OffenceKind>> {
    kinds.iter().map(|kind| kind.wire().parse().map_err(ApiError::broken)).collect()
}

impl Ladder {
    fn read(config: &LadderConfig) -> ApiResult<Self> {
        let points = &config.points;
        Ok(Self {
            drift_half_life_ms: config.drift_half_life_ms.wire(),
            violation_half_life_ms: config.violation_half_life_ms.wire(),
            warn: config.warn.wire(),
            throttle: config.throttle.wire(),
            temp_block: config.temp_block.wire(),
            warn_exit: config.warn_exit.wire(),
            throttle_exit: config.throttle_exit.wire(),
            after_block: config.after_block.wire(),
            min_events: config.min_events,
            base_block_ms: config.base_block_ms.wire(),
            block_factor: config.block_factor,
            max_block_ms: config.max_block_ms.wire(),
            ladder_window_ms: config.ladder_window_ms.wire(),
            ladder_to_block: config.ladder_to_block,
            credit_drift: config.credit_drift.wire(),
            credit_violation: config.credit_violation.wire(),
            points: LadderPoints {
                off_topic_max: points.off_topic_max,
                off_topic_from_permille: points.off_topic_from_permille,
                flood: points.flood,
                injection_suspected: points.injection_suspected,
                spam: points.spam,
                injection_confident: points.injection_confident,
                category_low: points.category_low,
                category_medium: points.category_medium,
                category_severe: points.category_severe,
            },
            violation_kinds: kinds_wire(&config.violation_kinds)?,
            severe_kinds: kinds_wire(&config.severe_kinds)?,
        })
    }
}

impl LadderInput {
    fn read(&self) -> ApiResult<Result<LadderConfig, UserError>> {
        let mut config = match self.figures(LadderConfig::default()) {
            Ok(config) => config,
            Err(error) => return Ok(Err(error)),
        };
        if let Some(points) = &self.points {
            config.points = match points.figures(config.points) {
                Ok(points) => points,
                Err(error) => return Ok(Err(error)),
            };
        }
        if let Some(kinds) = &self.violation_kinds {
            config.violation_kinds = kinds_read(kinds)?;
        }
        if let Some(kinds) = &self.severe_kinds {
            config.severe_kinds = kinds_read(kinds)?;
        }
        Ok(Ok(config))
    }
}

/// The whole of a policy.
#[derive(SimpleObject)]
pub(crate) struct PolicyTerms {
    /// What the bot is for; nothing is off topic without any.
    intents: Vec<PolicyIntent>,
    /// Examples of what it is not for, beside the background every model knows.
    not_this: Vec<String>,
    /// A message that fits no intent.
    off_topic: PolicyResponse,
    /// Model for embeddings; word and character n-grams when null.
    embedding_model: Option<String>,
    /// An attack that may be none.
    suspected_attack: PolicyResponse,
    /// An attack.
    confident_attack: PolicyResponse,
    spam: PolicyResponse,
    /// A category that is not named counts for nothing.
    categories: Vec<PolicyCategory>,
    personal_data: PolicyDataRule,
    secrets: PolicyDataRule,
    blocked_words: Vec<PolicyBlockedWord>,
    /// A message with a blocked word.
    blocked_word: PolicyResponse,
    /// Floods, repeated messages, probing.
    behaviour: PolicyResponse,
    moderation: Vec<PolicyModeration>,
    /// Whether detectors that fail refuse the message.
    fail_closed: bool,
    /// How strict the ladder is, where it has none of its own.
    preset: LadderPreset,
    /// Whether the ladder is its own rather than the preset's.
    own_ladder: bool,
    /// The ladder in force: its own, or the preset's.
    ladder: Ladder,
    /// Messages a minute for people who are throttled.
    throttled_per_minute: u32,
}

impl PolicyTerms {
    pub(super) fn read(terms: &domain::PolicyTerms) -> ApiResult<Self> {
        Ok(Self {
            intents: terms
                .intents
                .iter()
                .map(|intent| PolicyIntent { name: intent.name.clone(), examples: intent.examples.clone() })
                .collect(),
            not_this: terms.not_this.clone(),
            off_topic: terms.off_topic.into(),
            embedding_model: terms.embedding_model.clone().map(String::from),
            suspected_attack: terms.suspected_attack.into(),
            confident_attack: terms.confident_attack.into(),
            spam: terms.spam.into(),
            categories: terms
                .categories
                .iter()
                .map(|(category, rule)| PolicyCategory {
                    category: category.clone(),
                    from_permille: rule.from_permille,
                    severity: rule.severity.into(),
                    response: rule.response.into(),
                })
                .collect(),
            personal_data: terms.personal_data.into(),
            secrets: terms.secrets.into(),
            blocked_words: terms
                .blocked_words
                .iter()
                .map(|word| PolicyBlockedWord { phrase: word.phrase.clone(), severity: word.severity.into() })
                .collect(),
            blocked_word: terms.blocked_word.into(),
            behaviour: terms.behaviour.into(),
            moderation: terms
                .moderation
                .iter()
                .map(|rule| PolicyModeration { service: rule.service.clone(), required: rule.required })
                .collect(),
            fail_closed: terms.fail_closed,
            preset: terms.preset.into(),
            own_ladder: terms.ladder.is_some(),
            ladder: Ladder::read(&terms.ladder())?,
            throttled_per_minute: terms.throttled_per_minute,
        })
    }
}

/// The whole of a policy. What is not given is as in the policy that bots have without any; a list that
/// is given stands for all of it.
#[derive(Clone, InputObject)]
pub(crate) struct PolicyTermsInput {
    /// What the bot is for; at most 300. Nothing is off topic without any.
    intents: Option<Vec<PolicyIntent>>,
    /// Examples of what it is not for, beside the background every model knows.
    not_this: Option<Vec<String>>,
    /// A message that fits no intent.
    off_topic: Option<PolicyResponse>,
    /// Model for embeddings; word and character n-grams when null.
    embedding_model: Option<String>,
    /// An attack that may be none.
    suspected_attack: Option<PolicyResponse>,
    /// An attack.
    confident_attack: Option<PolicyResponse>,
    spam: Option<PolicyResponse>,
    /// A category that is not named counts for nothing.
    categories: Option<Vec<PolicyCategory>>,
    personal_data: Option<PolicyDataRule>,
    secrets: Option<PolicyDataRule>,
    /// At most 5,000.
    blocked_words: Option<Vec<PolicyBlockedWord>>,
    /// A message with a blocked word.
    blocked_word: Option<PolicyResponse>,
    /// Floods, repeated messages, probing.
    behaviour: Option<PolicyResponse>,
    moderation: Option<Vec<PolicyModeration>>,
    /// Whether detectors that fail refuse the message.
    fail_closed: Option<bool>,
    /// How strict the ladder is.
    preset: Option<LadderPreset>,
    /// A ladder of its own, where the preset does not fit.
    ladder: Option<LadderInput>,
    /// Messages a minute for people who are throttled, at least 1.
    throttled_per_minute: Option<u32>,
}

impl PolicyTermsInput {
    /// Whether it makes sense is the policy's own question.
    pub(super) fn read(self) -> ApiResult<Result<domain::PolicyTerms, UserError>> {
        let plain = domain::PolicyTerms::default();
        let ladder = match self.ladder.as_ref().map(LadderInput::read).transpose()?.transpose() {
            Ok(ladder) => ladder,
            Err(error) => return Ok(Err(error)),
        };
        let model = self.embedding_model.as_deref().map(ModelName::parse).transpose();
        let embedding_model = match model {
            Ok(model) => model,
            Err(error) => return Ok(Err(UserError::of("embeddingModel", &error))),
        };
        let categories = match self.categories.map(categories_read).transpose() {
            Ok(categories) => categories,
            Err(error) => return Ok(Err(error)),
        };
        let intents = self.intents.unwrap_or_default().into_iter();
        let words = self.blocked_words.unwrap_or_default().into_iter();
        let services = self.moderation.unwrap_or_default().into_iter();
        let response = |given: Option<PolicyResponse>, plain| given.map_or(plain, Into::into);
        Ok(Ok(domain::PolicyTerms {
            intents: intents.map(|one| domain::Intent { name: one.name, examples: one.examples }).collect(),
            not_this: self.not_this.unwrap_or_default(),
            off_topic: response(self.off_topic, plain.off_topic),
            embedding_model,
            suspected_attack: response(self.suspected_attack, plain.suspected_attack),
            confident_attack: response(self.confident_attack, plain.confident_attack),
            spam: response(self.spam, plain.spam),
            categories: categories.unwrap_or(plain.categories),
            personal_data: self.personal_data.map_or(plain.personal_data, Into::into),
            secrets: self.secrets.map_or(plain.secrets, Into::into),
            blocked_words: words
                .map(|word| domain::BlockedWord { phrase: word.phrase, severity: word.severity.into() })
                .collect(),
            blocked_word: response(self.blocked_word, plain.blocked_word),
            behaviour: response(self.behaviour, plain.behaviour),
            moderation: services
                .map(|one| domain::ModerationRule { service: one.service, required: one.required })
                .collect(),
            fail_closed: self.fail_closed.unwrap_or(plain.fail_closed),
            preset: self.preset.map_or(plain.preset, Into::into),
            ladder,
            throttled_per_minute: self.throttled_per_minute.unwrap_or(plain.throttled_per_minute),
        }))
    }
}

fn categories_read(given: Vec<PolicyCategory>) -> Result<BTreeMap<String, domain::CategoryRule>, UserError> {
    let mut categories = BTreeMap::new();
    for one in given {
        let rule = domain::CategoryRule {
            from_permille: one.from_permille,
            severity: one.severity.into(),
            response: one.response.into(),
        };
        if categories.insert(one.category.clone(), rule).is_some() {
            return Err(invalid(format!("two lines are drawn through category {}", one.category)));
        }
    }
    Ok(categories)
}
