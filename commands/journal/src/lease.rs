use std::time::Duration;

use botledger_domain::{BotId, InstanceId};
use sqlx::postgres::types::PgInterval;

use crate::{Journal, JournalError};

/// What came of asking for a bot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseOutcome {
    /// It is ours, under this epoch.
    Acquired {
        /// The fencing token; higher than every one before.
        epoch: i64,
        /// Who held it before and let it run out or gave it up, if anybody.
        previous: Option<InstanceId>,
    },
    /// Somebody else holds it.
    Held {
        /// Who.
        instance: InstanceId,
        /// Under which epoch.
        epoch: i64,
        /// How long it still runs.
        time_left: Duration,
    },
}

fn interval(ttl: Duration) -> Result<PgInterval, JournalError> {
    PgInterval::try_from(ttl).map_err(|_| JournalError::LeaseTime)
}

impl Journal {
    /// Asks for a bot. Granted when nobody holds it or the holder's time has run out, by the
    /// database's clock. Record it with `BotCommand::AcquireLease` in a set fenced by the epoch.
    ///
    /// # Errors
    /// When the database fails, or the time has fractions of a microsecond.
    pub async fn acquire_lease(
        &self,
        bot: BotId,
        instance: InstanceId,
        ttl: Duration,
    ) -> Result<LeaseOutcome, JournalError> {
        let row = sqlx::query!(
            r#"SELECT granted AS "granted!", holder AS "holder!", lease_epoch AS "epoch!",
                      extract(epoch FROM time_left)::float8 AS "seconds_left!", previous
               FROM bot_lease_acquire($1, $2, $3)"#,
            bot.uuid(),
            instance.uuid(),
            interval(ttl)?,
        )
        .fetch_one(self.pool())
        .await?;
        Ok(if row.granted {
            LeaseOutcome::Acquired { epoch: row.epoch, previous: row.previous.map(InstanceId) }
        } else {
            LeaseOutcome::Held {
                instance: InstanceId(row.holder),
                epoch: row.epoch,
                time_left: Duration::try_from_secs_f64(row.seconds_left).unwrap_or_default(),
            }
        })
    }

    /// Prolongs a lease from now; false when the epoch is over.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn renew_lease(&self, bot: BotId, epoch: i64, ttl: Duration) -> Result<bool, JournalError> {
        let renewed = sqlx::query_scalar!(
            r#"SELECT bot_lease_renew($1, $2, $3) AS "renewed!""#,
            bot.uuid(),
            epoch,
            interval(ttl)?,
        )
        .fetch_one(self.pool())
        .await?;
        Ok(renewed)
    }

    /// Gives a lease up; false when the epoch was over before.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn release_lease(&self, bot: BotId, epoch: i64) -> Result<bool, JournalError> {
        let released =
            sqlx::query_scalar!(r#"SELECT bot_lease_release($1, $2) AS "released!""#, bot.uuid(), epoch)
                .fetch_one(self.pool())
                .await?;
        Ok(released)
    }
}
