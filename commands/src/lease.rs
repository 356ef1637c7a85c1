use std::time::Duration;

use botledger_domain::{
    BotId, InstanceId,
    bot::{BotError, BotStatus, LeaseEnd},
};
use botledger_journal::LeaseOutcome;

use crate::{Bots, Caller, CommandError, Fence};

/// What came of asking for a bot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// It is this process's.
    Granted(Fence),
    /// Another process runs it.
    Taken {
        /// Which.
        by: InstanceId,
        /// How long its lease still runs.
        time_left: Duration,
    },
}

impl Bots {
    /// Asks for a bot and records who got it. The epoch in PostgreSQL is what counts (L6); whoever
    /// asks often should look into Redis first.
    ///
    /// # Errors
    /// When the ledger cannot be used, or the bot is not meant to run.
    pub async fn acquire_lease(
        &self,
        caller: &Caller,
        bot: BotId,
        ttl: Duration,
    ) -> Result<Lease, CommandError<BotError>> {
        let core = self.core();
        let state = self.get(caller, bot).await?;
        if state.status != BotStatus::Running {
            return Err(CommandError::Refused(BotError::NotRunning));
        }
        match core.journal.acquire_lease(bot, core.instance, ttl).await? {
            LeaseOutcome::Held { instance, time_left, .. } => Ok(Lease::Taken { by: instance, time_left }),
            LeaseOutcome::Acquired { epoch, .. } => {
                // A holder that the ledger still knows never said that it let go.
                let lost = match state.holder {
                    Some(_) => {
                        self.lease_lost(caller, bot, state.lease_epoch, LeaseEnd::Expired).await.map(drop)
                    }
                    None => Ok(()),
                };
                let recorded = match lost {
                    Ok(()) => self.lease_acquired(caller, bot, epoch).await,
                    Err(error) => Err(error),
                };
                if recorded.is_err() {
                    // Somebody else may try at once, instead of after the lease has run out.
                    let _ = core.journal.release_lease(bot, epoch).await;
                }
                recorded.map(|_| Lease::Granted(Fence { epoch }))
            }
        }
    }

    /// Prolongs a lease from now; false when its epoch is over.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn renew_lease(
        &self,
        bot: BotId,
        fence: Fence,
        ttl: Duration,
    ) -> Result<bool, CommandError<BotError>> {
        Ok(self.core().journal.renew_lease(bot, fence.epoch, ttl).await?)
    }

    /// Gives a bot up, so that another process may take it at once.
    ///
    /// # Errors
    /// When the ledger cannot be used.
    pub async fn release_lease(
        &self,
        caller: &Caller,
        bot: BotId,
        fence: Fence,
    ) -> Result<(), CommandError<BotError>> {
        if self.core().journal.release_lease(bot, fence.epoch).await? {
            self.lease_lost(caller, bot, fence.epoch, LeaseEnd::Released).await?;
        }
        Ok(())
    }
}
