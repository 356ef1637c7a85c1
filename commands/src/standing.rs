use std::sync::Arc;

use botledger_domain::{
    BotId, OperatorId, Reason, SubjectId,
    operator::Permission,
    standing::{Standing, StandingCommand, StandingError},
    standing_stream,
};
use chrono::{DateTime, Utc};

use crate::{
    Bots, Caller, CommandError, Core,
    execute::{Executed, execute},
};

/// Blocks and their end.
#[derive(Clone)]
pub struct Standings {
    core: Arc<Core>,
}

impl Standings {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Refuses a person's messages to a bot, until a moment or until lifted.
    ///
    /// # Errors
    /// Without the permission; when the bot is not the caller's; when the end lies in the past.
    pub async fn block(
        &self,
        caller: &Caller,
        bot: BotId,
        subject: SubjectId,
        reason: Reason,
        until: Option<DateTime<Utc>>,
    ) -> Result<Executed<Standing>, CommandError<StandingError>> {
        let by = self.moderator(caller, bot).await?;
        let command = StandingCommand::Block { bot, subject, by, reason, until };
        execute(&self.core, caller, &standing_stream(bot, subject).to_string(), command, |_| Ok(())).await
    }

    /// Takes a person's messages again.
    ///
    /// # Errors
    /// Without the permission; when the bot is not the caller's.
    pub async fn unblock(
        &self,
        caller: &Caller,
        bot: BotId,
        subject: SubjectId,
        reason: Reason,
    ) -> Result<Executed<Standing>, CommandError<StandingError>> {
        let by = self.moderator(caller, bot).await?;
        let command = StandingCommand::Unblock { by, reason };
        execute(&self.core, caller, &standing_stream(bot, subject).to_string(), command, |_| Ok(())).await
    }

    async fn moderator(
        &self,
        caller: &Caller,
        bot: BotId,
    ) -> Result<OperatorId, CommandError<StandingError>> {
        caller.require(Permission::Moderate)?;
        if !Bots::exists_for(&self.core, caller, bot).await? {
            return Err(CommandError::NotFound { what: "bot" });
        }
        Ok(caller.operator_id().unwrap_or(OperatorId(uuid::Uuid::nil())))
    }
}
