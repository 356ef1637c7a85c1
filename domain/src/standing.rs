//! A person's standing with one bot: blocked or not, by a moderator's decision.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

pub mod ladder;

use crate::{
    BotId, Decide, DomainError, OperatorId, Reason, SubjectId, aggregate::aggregate, clock::is_writable,
};

/// Whether a person may talk to a bot. Invariant: at most one block stands at a time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The block that stands, if any. It may have run out: see [`Standing::blocked_at`].
    pub block: Option<Block>,
}

/// A moderator's block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Block {
    /// Why.
    pub reason: Reason,
    /// When it ends; open-ended when absent.
    pub until: Option<DateTime<Utc>>,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum StandingCommand {
    /// Refuse this person's messages.
    Block { bot: BotId, subject: SubjectId, by: OperatorId, reason: Reason, until: Option<DateTime<Utc>> },
    /// Take messages again.
    Unblock { by: OperatorId, reason: Reason },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum StandingEvent {
    /// Messages are refused until `until`, or until a moderator lifts it.
    Blocked {
        bot: BotId,
        subject: SubjectId,
        by: OperatorId,
        reason: Reason,
        until: Option<DateTime<Utc>>,
        blocked_at: DateTime<Utc>,
    },
    /// Messages are taken again.
    Unblocked { by: OperatorId, reason: Reason, unblocked_at: DateTime<Utc> },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StandingError {
    /// The end lies before now.
    #[error("the block would end before it begins")]
    EndsInThePast,
    /// The end cannot be written everywhere.
    #[error("a block ends by the year 9999; leave the end out to make it open-ended")]
    EndsTooLate,
}

impl DomainError for StandingError {
    fn code(&self) -> &'static str {
        match self {
            Self::EndsInThePast => "STANDING_BLOCK_ENDS_IN_THE_PAST",
            Self::EndsTooLate => "STANDING_BLOCK_ENDS_TOO_LATE",
        }
    }
}

impl Standing {
    /// The block in force at a moment.
    #[must_use]
    pub fn blocked_at(&self, now: DateTime<Utc>) -> Option<&Block> {
        self.block.as_ref().filter(|block| block.until.is_none_or(|until| now < until))
    }

    fn record(&mut self, event: StandingEvent) {
        self.block = match event {
            StandingEvent::Blocked { reason, until, .. } => Some(Block { reason, until }),
            StandingEvent::Unblocked { .. } => None,
        };
    }
}

impl Decide for Standing {
    fn decide(
        &self,
        command: StandingCommand,
        now: DateTime<Utc>,
    ) -> Result<Vec<StandingEvent>, StandingError> {
        match command {
            StandingCommand::Block { bot, subject, by, reason, until } => {
                if until.is_some_and(|until| until <= now) {
                    return Err(StandingError::EndsInThePast);
                }
                if until.is_some_and(|until| !is_writable(until)) {
                    return Err(StandingError::EndsTooLate);
                }
                if self.blocked_at(now).is_some_and(|block| block.reason == reason && block.until == until) {
                    return Ok(vec![]);
                }
                Ok(vec![StandingEvent::Blocked { bot, subject, by, reason, until, blocked_at: now }])
            }
            StandingCommand::Unblock { by, reason } => match self.blocked_at(now) {
                None => Ok(vec![]),
                Some(_) => Ok(vec![StandingEvent::Unblocked { by, reason, unblocked_at: now }]),
            },
        }
    }
}

aggregate!(Standing, "standing", StandingCommand, StandingEvent, StandingError);

#[cfg(test)]
mod tests;
