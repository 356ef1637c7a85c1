//! Whoever works in an installation keeps imports out, and an import keeps everybody else out.

use std::time::Duration;

use sqlx::{Connection, PgConnection, PgPool};

use super::{TransferError, unfinished_import};

/// Key of the lock: shared by all who work, exclusively the import's; appends have another.
const LOCK: i64 = 7_209_065_217;
/// How often is looked whether the database still knows of it, and how long an answer may take.
const LOOK: Duration = Duration::from_secs(5);
/// How long an import waits for sessions whose process has ended: the database may learn of it a little later.
const GRACE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(100);

/// As long as it is held no import begins here. Held by a session of its own, so that it ends with the process
/// however that ends.
#[derive(Debug)]
pub struct Presence {
    session: PgConnection,
}

impl Presence {
    /// # Errors
    /// [`TransferError::Refused`] while an import is running, and when one has begun and not finished.
    pub async fn begin(pool: &PgPool) -> Result<Self, TransferError> {
        let mut session = pool.acquire().await?.detach();
        let there = sqlx::query_scalar!(r#"SELECT pg_try_advisory_lock_shared($1) AS "there!""#, LOCK)
            .fetch_one(&mut session)
            .await?;
        if !there {
            return Err(TransferError::Refused(
                "a ledger is being imported here: wait until that has finished".to_owned(),
            ));
        }
        match unfinished_import(&mut session).await? {
            Some(why) => Err(TransferError::Refused(why)),
            None => Ok(Self { session }),
        }
    }

    /// Holds it beyond failures of the database. Returns, with the reason, only when an import has begun while
    /// the database did not know of it.
    pub async fn lost(&mut self, pool: &PgPool) -> String {
        loop {
            tokio::time::sleep(LOOK).await;
            if matches!(tokio::time::timeout(LOOK, self.session.ping()).await, Ok(Ok(()))) {
                continue;
            }
            match Self::begin(pool).await {
                Ok(again) => *self = again,
                Err(TransferError::Refused(why)) => return why,
                // It is away still.
                Err(_) => {}
            }
        }
    }
}

/// The import's side of it: a session that keeps everybody else out.
pub(super) async fn alone(pool: &PgPool) -> Result<PgConnection, TransferError> {
    let mut session = pool.acquire().await?.detach();
    let began = tokio::time::Instant::now();
    loop {
        let alone = sqlx::query_scalar!(r#"SELECT pg_try_advisory_lock($1) AS "alone!""#, LOCK)
            .fetch_one(&mut session)
            .await?;
        if alone {
            return Ok(session);
        }
        if began.elapsed() >= GRACE {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let holders = sqlx::query_scalar!(
        r#"SELECT format('process %s of the database, %s', l.pid, coalesce(nullif(a.application_name, ''), 'unnamed'))
                  AS "holder!"
           FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
           WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
             AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
             AND (l.classid::bigint << 32) + l.objid::bigint = $1
           ORDER BY l.pid"#,
        LOCK
    )
    .fetch_all(&mut session)
    .await?;
    Err(TransferError::Refused(format!(
        "somebody works in this installation, or another import is running ({}): stop that first",
        holders.join("; ")
    )))
}
