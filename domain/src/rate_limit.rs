//! How fast somebody may go, and an operator's exceptions to it.
//!
//! What a subject has used lately is no event: it is forgotten within minutes and kept where that is
//! cheap. What an operator decides about a subject is one, with reason and end.

use std::{fmt, net::IpAddr};

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, EnumString, IntoStaticStr};
use uuid::Uuid;

use crate::{
    BotId, ConversationId, Decide, DomainError, OperatorId, Reason, SubjectId, TextError, WorkspaceId,
    aggregate::aggregate, clock::is_writable,
};

/// Largest burst, and largest rate a minute: up to here a bucket is exact to the last token.
pub const MOST_OF_A_RATE: u32 = 100_000_000;
/// Most parallel calls a rule may name.
pub const MOST_PARALLEL: u32 = 100_000;

/// A bucket: `burst` at once, refilled at `per_minute`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RateLimit {
    /// Messages or tokens at once, at least 1.
    pub burst: u32,
    /// Messages or tokens a minute in the long run, at least 1.
    pub per_minute: u32,
}

impl RateLimit {
    /// Whether both numbers are within 1 and [`MOST_OF_A_RATE`].
    #[must_use]
    pub fn is_fit(self) -> bool {
        (1..=MOST_OF_A_RATE).contains(&self.burst) && (1..=MOST_OF_A_RATE).contains(&self.per_minute)
    }
}

/// What is counted of a subject; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RateRule {
    /// Messages or API requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<RateLimit>,
    /// Model tokens, of prompt and answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<RateLimit>,
    /// Calls under way at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
}

impl RateRule {
    /// A rule about requests only.
    #[must_use]
    pub const fn requests(limit: RateLimit) -> Self {
        Self { requests: Some(limit), tokens: None, parallel: None }
    }

    /// This rule where it says something, the other one where it does not.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            requests: self.requests.or(other.requests),
            tokens: self.tokens.or(other.tokens),
            parallel: self.parallel.or(other.parallel),
        }
    }

    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// The kinds of subjects that can be limited.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RateSubjectKind {
    /// A person with a bot.
    User,
    /// A chat with a bot.
    Chat,
    /// A bot.
    Bot,
    /// A tenant: messages to all its bots.
    Workspace,
    /// A tenant's requests to the API.
    Api,
    /// A network address: an IPv4 address, or an IPv6 network of 64 bits.
    Ip,
    /// A person who runs the platform.
    Operator,
    /// A key of other software.
    ApiKey,
    /// A part of a tenant.
    Team,
}

/// Whose pace is measured. The id has 1 to 100 of `A-Z a-z 0-9 . _ - : /`, and is unique within its
/// kind and workspace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct RateSubject {
    kind: RateSubjectKind,
    id: String,
}

impl RateSubject {
    /// Any subject by kind and id.
    ///
    /// # Errors
    /// When the id is empty, too long or has other characters.
    pub fn parse(kind: RateSubjectKind, id: &str) -> Result<Self, TextError> {
        const WHAT: &str = "the subject's id";
        let length = id.chars().count();
        if length == 0 {
            return Err(TextError::Empty { what: WHAT });
        }
        if length > 100 {
            return Err(TextError::TooLong { what: WHAT, actual: length, limit: 100 });
        }
        if !id.chars().all(|c| c.is_ascii_alphanumeric() || "._-:/".contains(c)) {
            return Err(TextError::Characters { what: WHAT, allowed: "A-Z, a-z, 0-9 and . _ - : /" });
        }
        Ok(Self { kind, id: id.to_owned() })
    }

    /// A person with a bot.
    #[must_use]
    pub fn user(bot: BotId, person: SubjectId) -> Self {
        Self { kind: RateSubjectKind::User, id: format!("{bot}/{person}") }
    }

    /// A person with a bot, while their standing has them throttled.
    #[must_use]
    pub fn throttled(bot: BotId, person: SubjectId) -> Self {
        Self { kind: RateSubjectKind::User, id: format!("{bot}/{person}/throttled") }
    }

    /// A chat with a bot.
    #[must_use]
    pub fn chat(chat: ConversationId) -> Self {
        Self { kind: RateSubjectKind::Chat, id: chat.to_string() }
    }

    /// A bot.
    #[must_use]
    pub fn bot(bot: BotId) -> Self {
        Self { kind: RateSubjectKind::Bot, id: bot.to_string() }
    }

    /// A tenant's requests to the API.
    #[must_use]
    pub fn api(workspace: WorkspaceId) -> Self {
        Self { kind: RateSubjectKind::Api, id: workspace.to_string() }
    }

    /// A tenant's messages.
    #[must_use]
    pub fn workspace(workspace: WorkspaceId) -> Self {
        Self { kind: RateSubjectKind::Workspace, id: workspace.to_string() }
    }

    /// What one household has: an IPv4 address, or the /64 in which it may choose its IPv6 addresses.
    #[must_use]
    pub fn ip(address: IpAddr) -> Self {
        let network = match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
            address @ IpAddr::V4(_) => address,
        };
        Self { kind: RateSubjectKind::Ip, id: network.to_string() }
    }

    /// A person who runs the platform.
    #[must_use]
    pub fn operator(operator: OperatorId) -> Self {
        Self { kind: RateSubjectKind::Operator, id: operator.to_string() }
    }

    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> RateSubjectKind {
        self.kind
    }

    /// Which one of its kind.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for RateSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.as_ref(), self.id)
    }
}

/// An operator's exception for one subject of a workspace. Invariant: at most one stands at a time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RateOverride {
    /// Whose workspace; absent before the first decision.
    pub workspace: Option<WorkspaceId>,
    /// Whose pace; absent before the first decision.
    pub subject: Option<RateSubject>,
    /// What stands, if anything. It may have run out: see [`RateOverride::rule_at`].
    pub standing: Option<StandingOverride>,
}

/// What an operator set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StandingOverride {
    /// Takes the place of the ordinary rule where it says something.
    pub rule: RateRule,
    /// Why.
    pub reason: Reason,
    /// When it ends; open-ended when absent.
    pub expires_at: Option<DateTime<Utc>>,
}

impl RateOverride {
    /// The rule in force at a moment.
    #[must_use]
    pub fn rule_at(&self, now: DateTime<Utc>) -> Option<RateRule> {
        let standing = self.standing.as_ref()?;
        standing.expires_at.is_none_or(|end| now < end).then_some(standing.rule)
    }
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum RateOverrideCommand {
    /// Let a subject go faster or slower.
    Set {
        workspace: WorkspaceId,
        subject: RateSubject,
        rule: RateRule,
        reason: Reason,
        expires_at: Option<DateTime<Utc>>,
        by: OperatorId,
    },
    /// Back to the ordinary rule.
    Remove { reason: Reason, by: OperatorId },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RateOverrideEvent {
    /// Another rule until `expires_at`, or until it is removed.
    RateOverrideSet {
        workspace: WorkspaceId,
        subject: RateSubject,
        rule: RateRule,
        reason: Reason,
        expires_at: Option<DateTime<Utc>>,
        by: OperatorId,
        set_at: DateTime<Utc>,
    },
    /// The ordinary rule again.
    RateOverrideRemoved { reason: Reason, by: OperatorId, removed_at: DateTime<Utc> },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateOverrideError {
    /// A rule that says nothing.
    #[error("say at least one of requests, tokens and parallel")]
    Empty,
    /// A number nobody can work with.
    #[error("{field} is out of range: rates have 1 to {MOST_OF_A_RATE}, parallel calls 1 to {MOST_PARALLEL}")]
    OutOfRange {
        /// Which part of the rule.
        field: &'static str,
    },
    /// The end lies before now.
    #[error("the override would end before it begins")]
    EndsInThePast,
    /// The end cannot be written everywhere.
    #[error("an override ends by the year 9999; leave the end out to make it open-ended")]
    EndsTooLate,
}

impl DomainError for RateOverrideError {
    fn code(&self) -> &'static str {
        match self {
            Self::Empty => "RATE_OVERRIDE_EMPTY",
            Self::OutOfRange { .. } => "RATE_OVERRIDE_OUT_OF_RANGE",
            Self::EndsInThePast => "RATE_OVERRIDE_ENDS_IN_THE_PAST",
            Self::EndsTooLate => "RATE_OVERRIDE_ENDS_TOO_LATE",
        }
    }
}

/// The stream of the overrides of a workspace's subject.
#[must_use]
pub fn rate_override_stream(workspace: WorkspaceId, subject: &RateSubject) -> Uuid {
    crate::ids::derived(&format!("rate_override:{workspace}:{subject}"))
}

impl RateRule {
    pub(crate) fn check(self) -> Result<(), RateOverrideError> {
        if self.is_empty() {
            return Err(RateOverrideError::Empty);
        }
        let wrong = |field| Err(RateOverrideError::OutOfRange { field });
        if self.requests.is_some_and(|limit| !limit.is_fit()) {
            return wrong("requests");
        }
        if self.tokens.is_some_and(|limit| !limit.is_fit()) {
            return wrong("tokens");
        }
        if self.parallel.is_some_and(|calls| !(1..=MOST_PARALLEL).contains(&calls)) {
            return wrong("parallel");
        }
        Ok(())
    }
}

impl Decide for RateOverride {
    fn decide(
        &self,
        command: RateOverrideCommand,
        now: DateTime<Utc>,
    ) -> Result<Vec<RateOverrideEvent>, RateOverrideError> {
        match command {
            RateOverrideCommand::Set { workspace, subject, rule, reason, expires_at, by } => {
                rule.check()?;
                if expires_at.is_some_and(|end| end <= now) {
                    return Err(RateOverrideError::EndsInThePast);
                }
                if expires_at.is_some_and(|end| !is_writable(end)) {
                    return Err(RateOverrideError::EndsTooLate);
                }
                let wanted = StandingOverride { rule, reason, expires_at };
                if self.standing.as_ref() == Some(&wanted) {
                    return Ok(vec![]);
                }
                let StandingOverride { rule, reason, expires_at } = wanted;
                Ok(vec![RateOverrideEvent::RateOverrideSet {
                    workspace,
                    subject,
                    rule,
                    reason,
                    expires_at,
                    by,
                    set_at: now,
                }])
            }
            RateOverrideCommand::Remove { reason, by } => match self.rule_at(now) {
                None => Ok(vec![]),
                Some(_) => Ok(vec![RateOverrideEvent::RateOverrideRemoved { reason, by, removed_at: now }]),
            },
        }
    }
}

impl RateOverride {
    fn record(&mut self, event: RateOverrideEvent) {
        match event {
            RateOverrideEvent::RateOverrideSet { workspace, subject, rule, reason, expires_at, .. } => {
                self.workspace = Some(workspace);
                self.subject = Some(subject);
                self.standing = Some(StandingOverride { rule, reason, expires_at });
            }
            RateOverrideEvent::RateOverrideRemoved { .. } => self.standing = None,
        }
    }
}

aggregate!(RateOverride, "rate_override", RateOverrideCommand, RateOverrideEvent, RateOverrideError);

#[cfg(test)]
mod tests;
