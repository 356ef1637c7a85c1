//! A read model made anew beside the live one, compared with it, and traded for it in one transaction
//! (`ops/decisions/0020`). The live one is served until then, and kept afterwards until somebody lets go
//! of it.
//!
//! The copy's tables stand in schema `read_next`; where they are filled, that schema takes the place of
//! `read` in the search path, so the projection fills them without knowing. Each page commits its rows and
//! the copy's position in one transaction: whoever comes after a crash goes on from there.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use botledger_domain::{Actor, Position, RecordedEvent};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection, PgPool, PgTransaction, types::Json};
use tokio::{task::JoinSet, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{LogReader, Projection, ProjectionError, rebuild, runner};

/// Events folded at once.
const PAGE: i64 = 5_000;
/// After this long in the middle of a page a process counts as paused: the server ends its transaction, so
/// that another can go on.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between looks for work.
const LOOK: Duration = Duration::from_secs(1);
/// A copy this many events behind is not traded yet: it would have to catch up while the live one waits.
const CLOSE: i64 = 20_000;
/// How long readers may have to wait for a trade that waits for other readers. Below the server's
/// `deadlock_timeout`, so that a trade gives way before anybody's query is ended for it.
const LOCK_PATIENCE: &str = "200ms";
/// Tries to trade before somebody is told that readers never make room.
const TRIES: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// A read model being made anew, or made anew lately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuild {
    pub id: i64,
    pub name: String,
    /// Of the projection that fills it.
    pub version: i32,
    /// `filling`, `stopped` at an event, `ready` to be traded, `swapped` with the previous rows kept, `done`,
    /// `rolled_back`, `cancelled`.
    pub state: String,
    /// Events done.
    pub position: Position,
    /// Events there are to do; moves on with the ledger.
    pub target: Position,
    /// Events a second over its last page.
    pub rate: Option<i64>,
    /// The event it stopped at.
    pub failed_position: Option<Position>,
    /// Why it stopped.
    pub error: Option<String>,
    /// Absent until it has caught up with the live rows.
    pub comparison: Option<Comparison>,
    pub started_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// How the copy differs from the live rows, both at the same position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    pub position: Position,
    /// Rows of the copy, over all tables.
    pub rows: i64,
    /// Rows of the live tables.
    pub live_rows: i64,
    /// Rows that are not byte for byte the same in both.
    pub different: i64,
    /// Some of them.
    pub differences: Vec<rebuild::Difference>,
}

impl Rebuild {
    /// Seconds until it has caught up at its present rate; absent while that is unknown or nothing is left.
    #[must_use]
    pub fn left_s(&self) -> Option<i64> {
        let left = (self.target.0 - self.position.0).max(0);
        let rate = self.rate.filter(|rate| *rate > 0)?;
        (self.state == "filling" && left > 0).then(|| left.div_euclid(rate) + 1)
    }
}

/// Why a read model was not changed. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("no rebuild of {0} is open: start one")]
    NotOpen(String),
    #[error(
        "the rebuild is by version {open} of the projection, this program has {ours}: cancel it, or go on with its program"
    )]
    OtherVersion { open: i32, ours: i32 },
    #[error("the rebuild is {0} and not ready")]
    NotReady(String),
    #[error("the rebuild still has {0} events to catch up")]
    Behind(i64),
    #[error("{0} rows differ from the live ones: look at them, then accept the differences or cancel")]
    Different(i64),
    #[error("no previous rows of {0} are kept")]
    NothingKept(String),
    #[error("a rebuild of {0} is open: cancel it first")]
    Open(String),
    #[error("{0}")]
    Changed(String),
    #[error("readers did not let go of the tables: try again")]
    Busy,
    #[error("the rebuild cannot catch up")]
    Projection(#[from] ProjectionError),
    #[error("the database cannot be used")]
    Database(#[from] sqlx::Error),
}

impl ChangeError {
    /// Stable, for programs; none for faults.
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotOpen(_) => "REBUILD_NOT_OPEN",
            Self::OtherVersion { .. } => "REBUILD_OTHER_VERSION",
            Self::NotReady(_) | Self::Behind(_) => "REBUILD_NOT_READY",
            Self::Different(_) => "REBUILD_DIFFERENT",
            Self::NothingKept(_) => "REBUILD_NOTHING_KEPT",
            Self::Open(_) => "REBUILD_OPEN",
            Self::Changed(_) => "REBUILD_TABLES_CHANGED",
            Self::Busy => "REBUILD_BUSY",
            Self::Projection(_) | Self::Database(_) => return None,
        })
    }
}

/// Who changes a read model, and why.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    pub actor: &'a Actor,
    pub reason: &'a str,
}

impl Change<'_> {
    async fn record(
        self,
        tx: &mut PgConnection,
        rebuild: &Row,
        what: &'static str,
        position: i64,
    ) -> Result<(), sqlx::Error> {
        sqlx::query!(
            "INSERT INTO projection_changes (rebuild_id, name, change, position, actor, reason)
             VALUES ($1, $2, $3, $4, $5, $6)",
            rebuild.id,
            rebuild.name,
            what,
            position,
            self.actor.to_string(),
            self.reason,
        )
        .execute(tx)
        .await?;
        Ok(())
    }
}

/// What was done to a read model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedChange {
    pub id: i64,
    pub rebuild: i64,
    pub name: String,
    /// `started`, `resumed`, `swapped`, `rolled_back`, `cancelled`, `forgotten`.
    pub change: String,
    /// Where the rows stood.
    pub position: Position,
    /// As events name actors, for example `operator:<id>` or `system:cli`.
    pub actor: String,
    pub reason: String,
    pub changed_at: DateTime<Utc>,
}

#[derive(Clone, Debug)]
struct Row {
    id: i64,
    name: String,
    version: i32,
    tables: Vec<String>,
    state: String,
    position: i64,
    target: i64,
    rate: Option<i64>,
    failed_position: Option<i64>,
    error: Option<String>,
    compared_position: Option<i64>,
    rows: Option<i64>,
    live_rows: Option<i64>,
    different: Option<i64>,
    differences: Option<Json<Vec<Shown>>>,
    previous_version: Option<i32>,
    previous_position: Option<i64>,
    started_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Shown {
    table: String,
    live: Option<String>,
    replayed: Option<String>,
}

impl From<Row> for Rebuild {
    fn from(row: Row) -> Self {
        let comparison = row.compared_position.map(|position| Comparison {
            position: Position(position),
            rows: row.rows.unwrap_or_default(),
            live_rows: row.live_rows.unwrap_or_default(),
            different: row.different.unwrap_or_default(),
            differences: row
                .differences
                .map(|shown| shown.0)
                .unwrap_or_default()
                .into_iter()
                .map(Into::into)
                .collect(),
        });
        Self {
            id: row.id,
            name: row.name,
            version: row.version,
            state: row.state,
            position: Position(row.position),
            target: Position(row.target),
            rate: row.rate,
            failed_position: row.failed_position.map(Position),
            error: row.error,
            comparison,
            started_at: row.started_at,
            updated_at: row.updated_at,
        }
    }
}

impl From<Shown> for rebuild::Difference {
    fn from(shown: Shown) -> Self {
        Self { table: shown.table, live: shown.live, replayed: shown.replayed }
    }
}

/// The last rebuild of every read model that ever had one: the open one, else the newest.
///
/// # Errors
/// When the database fails.
pub async fn rebuilds(pool: &PgPool) -> Result<Vec<Rebuild>, sqlx::Error> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT DISTINCT ON (name) id, name, version, tables, state, position, target, rate, failed_position, error,
                  compared_position, rows, live_rows, different, differences AS "differences: Json<Vec<Shown>>",
                  previous_version, previous_position, started_at, updated_at
           FROM projection_rebuilds ORDER BY name, id DESC"#
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(Rebuild::from).collect())
}

/// What was done to read models, oldest first; of one of them, or of all.
///
/// # Errors
/// When the database fails.
pub async fn changes(pool: &PgPool, name: Option<&str>) -> Result<Vec<RecordedChange>, sqlx::Error> {
    let rows = sqlx::query!(
        "SELECT id, rebuild_id, name, change, position, actor, reason, changed_at FROM projection_changes
         WHERE $1::text IS NULL OR name = $1 ORDER BY id",
        name,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| RecordedChange {
            id: row.id,
            rebuild: row.rebuild_id,
            name: row.name,
            change: row.change,
            position: Position(row.position),
            actor: row.actor,
            reason: row.reason,
            changed_at: row.changed_at,
        })
        .collect())
}

async fn row(connection: &mut PgConnection, id: i64) -> Result<Row, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"SELECT id, name, version, tables, state, position, target, rate, failed_position, error, compared_position,
                  rows, live_rows, different, differences AS "differences: Json<Vec<Shown>>", previous_version,
                  previous_position, started_at, updated_at
           FROM projection_rebuilds WHERE id = $1"#,
        id,
    )
    .fetch_one(connection)
    .await
}

/// Locks the open rebuild, or the one whose previous rows are kept. Whoever changes a read model has locked
/// its checkpoint before, so there is one at a time.
async fn lock_of(tx: &mut PgConnection, name: &str, states: &[&str]) -> Result<Option<Row>, sqlx::Error> {
    let states: Vec<String> = states.iter().map(|&state| state.to_owned()).collect();
    let id = sqlx::query_scalar!(
        "SELECT id FROM projection_rebuilds WHERE name = $1 AND state = ANY($2) FOR UPDATE",
        name,
        &states,
    )
    .fetch_optional(&mut *tx)
    .await?;
    match id {
        Some(id) => Ok(Some(row(tx, id).await?)),
        None => Ok(None),
    }
}

const OPEN: [&str; 3] = ["filling", "stopped", "ready"];

async fn set_state(tx: &mut PgConnection, id: i64, state: &str) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE projection_rebuilds SET state = $2, updated_at = clock_timestamp() WHERE id = $1",
        id,
        state,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Begins to make a read model anew, or goes on with a rebuild that stopped at an event. One that is on its
/// way already is a success. Any process of this version that runs projections does the work.
///
/// # Errors
/// See [`ChangeError`].
pub async fn start_rebuild(
    pool: &PgPool,
    projection: &Arc<dyn Projection>,
    change: Change<'_>,
) -> Result<Rebuild, ChangeError> {
    let (name, version) = (projection.name(), projection.version());
    let mut tx = pool.begin().await?;
    let live = runner::lock_for_rebuild(&mut tx, name, version).await?;
    let row = match lock_of(&mut tx, name, &OPEN).await? {
        Some(open) if open.version != version => {
            return Err(ChangeError::OtherVersion { open: open.version, ours: version });
        }
        Some(open) if open.state == "stopped" => {
            let state = if open.compared_position.is_some() { "ready" } else { "filling" };
            sqlx::query!(
                "UPDATE projection_rebuilds
                 SET state = $2, failed_position = NULL, error = NULL, updated_at = clock_timestamp() WHERE id = $1",
                open.id,
                state,
            )
            .execute(&mut *tx)
            .await?;
            change.record(&mut tx, &open, "resumed", open.position).await?;
            row(&mut tx, open.id).await?
        }
        Some(open) => open,
        None => {
            let tables: Vec<String> = projection.tables().iter().map(|&table| table.to_owned()).collect();
            sqlx::query!("SELECT read_model_prepare($1)", &tables).execute(&mut *tx).await?;
            let id = sqlx::query_scalar!(
                "INSERT INTO projection_rebuilds (name, version, tables, target) VALUES ($1, $2, $3, $4) RETURNING id",
                name,
                version,
                &tables,
                live.0,
            )
            .fetch_one(&mut *tx)
            .await?;
            let begun = row(&mut tx, id).await?;
            change.record(&mut tx, &begun, "started", 0).await?;
            begun
        }
    };
    tx.commit().await?;
    Ok(row.into())
}

/// Makes the copy the live read model, in one transaction: readers see the old rows until it commits and
/// the new ones from then on. The old ones are kept.
///
/// # Errors
/// See [`ChangeError`].
pub async fn swap(
    pool: &PgPool,
    projection: &Arc<dyn Projection>,
    accept_differences: bool,
    change: Change<'_>,
) -> Result<Rebuild, ChangeError> {
    let (name, version) = (projection.name(), projection.version());
    let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
    let mut tx = connection.begin().await?;
    beside(&mut tx, PATIENCE).await?;
    let live = runner::lock_for_rebuild(&mut tx, name, version).await?;
    let open = lock_of(&mut tx, name, &OPEN).await?.ok_or_else(|| ChangeError::NotOpen(name.to_owned()))?;
    if open.version != version {
        return Err(ChangeError::OtherVersion { open: open.version, ours: version });
    }
    if open.state != "ready" {
        return Err(ChangeError::NotReady(open.state));
    }
    let different = open.different.unwrap_or_default();
    if different > 0 && !accept_differences {
        return Err(ChangeError::Different(different));
    }
    if live.0 - open.position > CLOSE {
        return Err(ChangeError::Behind(live.0 - open.position));
    }
    let position = fold(&mut tx, projection, Position(open.position), live).await?;
    let previous = sqlx::query_scalar!("SELECT version FROM projection_checkpoints WHERE name = $1", name)
        .fetch_one(&mut *tx)
        .await?;
    // Of a trade before this one only the newest previous rows are kept.
    if let Some(kept) = lock_of(&mut tx, name, &["swapped"]).await? {
        set_state(&mut tx, kept.id, "done").await?;
    }
    runner::finish_rebuild(&mut tx, name, version, position).await?;
    sqlx::query!(
        "UPDATE projection_rebuilds
         SET state = 'swapped', position = $2, target = $2, previous_version = $3, previous_position = $4,
             updated_at = clock_timestamp()
         WHERE id = $1",
        open.id,
        position.0,
        previous,
        live.0,
    )
    .execute(&mut *tx)
    .await?;
    change.record(&mut tx, &open, "swapped", position.0).await?;
    let done = row(&mut tx, open.id).await?;
    // Last: from here until the commit nobody can read.
    trade(&mut tx, "read_next", &open.tables).await?;
    tx.commit().await?;
    tracing::info!(projection = name, version, "{name} is served from its rebuild, as of event {position}");
    Ok(done.into())
}

/// Takes a swap back: the rows before it are live again, as they were then, and catch up from there when a
/// process of their version runs. The rows that were live are gone.
///
/// # Errors
/// See [`ChangeError`].
pub async fn roll_back(pool: &PgPool, name: &str, change: Change<'_>) -> Result<Rebuild, ChangeError> {
    let mut tx = pool.begin().await?;
    lock_checkpoint(&mut tx, name).await?;
    let kept = lock_of(&mut tx, name, &["swapped"])
        .await?
        .ok_or_else(|| ChangeError::NothingKept(name.to_owned()))?;
    if lock_of(&mut tx, name, &OPEN).await?.is_some() {
        return Err(ChangeError::Open(name.to_owned()));
    }
    let (Some(version), Some(position)) = (kept.previous_version, kept.previous_position) else {
        return Err(ChangeError::NothingKept(name.to_owned()));
    };
    runner::finish_rebuild(&mut tx, name, version, Position(position)).await?;
    set_state(&mut tx, kept.id, "rolled_back").await?;
    change.record(&mut tx, &kept, "rolled_back", position).await?;
    let done = row(&mut tx, kept.id).await?;
    trade(&mut tx, "read_previous", &kept.tables).await?;
    tx.commit().await?;
    tracing::info!(
        projection = name,
        version,
        "{name} is served from its previous rows, as of event {position}"
    );
    Ok(done.into())
}

/// Gives an open rebuild up. The live rows are not touched.
///
/// # Errors
/// See [`ChangeError`].
pub async fn cancel_rebuild(pool: &PgPool, name: &str, change: Change<'_>) -> Result<Rebuild, ChangeError> {
    drop_copy(pool, name, &OPEN, "read_next", ("cancelled", "cancelled"), change).await
}

/// Lets go of the rows before the last swap, which can then not be taken back.
///
/// # Errors
/// See [`ChangeError`].
pub async fn forget_previous(pool: &PgPool, name: &str, change: Change<'_>) -> Result<Rebuild, ChangeError> {
    drop_copy(pool, name, &["swapped"], "read_previous", ("done", "forgotten"), change).await
}

async fn drop_copy(
    pool: &PgPool,
    name: &str,
    states: &[&str],
    place: &'static str,
    (state, recorded): (&'static str, &'static str),
    change: Change<'_>,
) -> Result<Rebuild, ChangeError> {
    let mut tx = pool.begin().await?;
    lock_checkpoint(&mut tx, name).await?;
    let Some(found) = lock_of(&mut tx, name, states).await? else {
        return Err(match place {
            "read_next" => ChangeError::NotOpen(name.to_owned()),
            _ => ChangeError::NothingKept(name.to_owned()),
        });
    };
    sqlx::query!("SELECT read_model_drop($1, $2)", place, &found.tables).execute(&mut *tx).await?;
    set_state(&mut tx, found.id, state).await?;
    change.record(&mut tx, &found, recorded, found.position).await?;
    let done = row(&mut tx, found.id).await?;
    tx.commit().await?;
    Ok(done.into())
}

async fn lock_checkpoint(tx: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
    sqlx::query_scalar!("SELECT position FROM projection_checkpoints WHERE name = $1 FOR UPDATE", name)
        .fetch_optional(tx)
        .await?;
    Ok(())
}

/// Trades tables, giving way to readers as often as it must.
async fn trade(tx: &mut PgTransaction<'_>, place: &str, tables: &[String]) -> Result<(), ChangeError> {
    sqlx::query!("SELECT set_config('lock_timeout', $1, true)", LOCK_PATIENCE).fetch_one(&mut **tx).await?;
    for _ in 0..TRIES {
        let mut attempt = tx.begin().await?;
        let traded =
            sqlx::query!("SELECT read_model_trade($1, $2)", place, tables).execute(&mut *attempt).await;
        match traded {
            Ok(_) => {
                attempt.commit().await?;
                return Ok(());
            }
            Err(sqlx::Error::Database(refusal)) => {
                attempt.rollback().await?;
                match refusal.code().as_deref() {
                    Some("55P03") => tokio::time::sleep(BETWEEN_TRIES).await,
                    Some("55000" | "0A000") => {
                        return Err(ChangeError::Changed(refusal.message().to_owned()));
                    }
                    _ => return Err(sqlx::Error::Database(refusal).into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(ChangeError::Busy)
}

/// Until the end of the transaction the copies stand where projections look for their tables, and the
/// server ends the transaction when this process is paused in the middle of it.
async fn beside(tx: &mut PgConnection, patience: Duration) -> Result<(), sqlx::Error> {
    let patience = patience.as_millis().to_string();
    sqlx::query!(
        "SELECT set_config('search_path', 'public, read_next', true) AS place,
                set_config('idle_in_transaction_session_timeout', $1, true) AS patience",
        patience,
    )
    .fetch_one(tx)
    .await?;
    Ok(())
}

async fn fold(
    tx: &mut PgConnection,
    projection: &Arc<dyn Projection>,
    mut at: Position,
    until: Position,
) -> Result<Position, ProjectionError> {
    let skipped = runner::skipped(tx, projection.name()).await?;
    while at < until {
        let events = LogReader::after_in(&mut *tx, at, PAGE.min(until.0 - at.0)).await?;
        let Some(last) = events.last().map(|event| event.position) else { break };
        projection.apply(tx, &rebuild::without(events, &skipped)).await?;
        at = last;
    }
    Ok(at)
}

/// Works on rebuilds of these projections until cancelled; those of other versions are left to processes
/// that know them.
pub async fn work_on_rebuilds(
    pool: PgPool,
    projections: Vec<Arc<dyn Projection>>,
    cancel: CancellationToken,
) {
    let most = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    // Whether each is filling: only those are work. Following the ledger is a page now and then.
    let mut working: BTreeMap<i64, bool> = BTreeMap::new();
    let mut tasks: JoinSet<bool> = JoinSet::new();
    let mut fillers: BTreeMap<tokio::task::Id, i64> = BTreeMap::new();
    let mut failing = false;
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(ended) = tasks.join_next_with_id() => {
                let (task, moved) = match ended {
                    Ok((task, moved)) => (task, Ok(moved)),
                    Err(error) => (error.id(), Err(error)),
                };
                let Some(id) = fillers.remove(&task) else { continue };
                let filling = working.remove(&id) == Some(true);
                match moved {
                    Ok(true) if filling => look.reset_immediately(),
                    Ok(_) => {}
                    // It would panic again: somebody has to look at it.
                    Err(panic) => {
                        if let Err(error) = stop(&pool, id, &panic.to_string()).await {
                            tracing::warn!(error = %error, "a rebuild that panicked could not be stopped; trying again");
                        }
                    }
                }
                continue;
            }
            _ = look.tick() => {}
        }
        let rebuilds = match open(&pool).await {
            Ok(rebuilds) => rebuilds,
            Err(error) => {
                if !failing {
                    tracing::warn!(error = %error, "rebuilds cannot be looked for; trying again");
                }
                failing = true;
                continue;
            }
        };
        failing = false;
        for Open { id, name, version, filling } in rebuilds {
            let projection = projections.iter().find(|one| one.name() == name && one.version() == version);
            let Some(projection) = projection else { continue };
            let full = filling && working.values().filter(|filling| **filling).count() >= most;
            if full || working.contains_key(&id) {
                continue;
            }
            let filler =
                Filler { pool: pool.clone(), id, projection: Arc::clone(projection), cancel: cancel.clone() };
            working.insert(id, filling);
            let task = tasks.spawn(async move {
                let error = match filler.run().await {
                    Ok(moved) => return moved,
                    Err(error) => error,
                };
                if misfits(&error) {
                    let text = format!(
                        "the tables were changed by a migration: cancel the rebuild and start again ({})",
                        runner::chain(&error)
                    );
                    match stop(&filler.pool, id, &text).await {
                        Ok(()) => tracing::error!(projection = name, "the rebuild of {name} stopped: {text}"),
                        Err(error) => tracing::warn!(
                            projection = name,
                            error = %error,
                            "the rebuild of {name} could not be stopped; trying again"
                        ),
                    }
                } else {
                    tracing::warn!(
                        projection = name,
                        error = %error,
                        "the rebuild of {name} was interrupted; trying again"
                    );
                }
                false
            });
            fillers.insert(task.id(), id);
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// A rebuild that there may be work on.
struct Open {
    id: i64,
    name: String,
    version: i32,
    filling: bool,
}

async fn open(pool: &PgPool) -> Result<Vec<Open>, sqlx::Error> {
    sqlx::query_as!(
        Open,
        r#"SELECT id, name, version, state = 'filling' AS "filling!" FROM projection_rebuilds
           WHERE state IN ('filling', 'ready') ORDER BY id"#
    )
    .fetch_all(pool)
    .await
}

/// Leaves a rebuild until somebody cancels it or goes on with it.
async fn stop(pool: &PgPool, id: i64, error: &str) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE projection_rebuilds SET state = 'stopped', error = $2, updated_at = clock_timestamp()
         WHERE id = $1 AND state IN ('filling', 'ready')",
        id,
        error,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Whether the copy lacks what the projection or the live tables have: trying again does not help.
fn misfits(error: &ProjectionError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let code = error
            .downcast_ref::<sqlx::Error>()
            .and_then(sqlx::Error::as_database_error)
            .and_then(|refusal| refusal.code().map(std::borrow::Cow::into_owned));
        // No such column, no such table, another type.
        if code.is_some_and(|code| matches!(code.as_str(), "42703" | "42P01" | "42804")) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Fills one copy.
struct Filler {
    pool: PgPool,
    id: i64,
    projection: Arc<dyn Projection>,
    cancel: CancellationToken,
}

/// Events read before they were asked for.
#[derive(Default)]
struct Ahead {
    after: Position,
    events: Vec<RecordedEvent>,
}

impl Ahead {
    /// All of them when they are what comes next and none is too much.
    fn take(&mut self, after: Position, target: Position) -> Option<Vec<RecordedEvent>> {
        let events = std::mem::take(&mut self.events);
        let last = events.last()?.position;
        (self.after == after && last <= target).then_some(events)
    }
}

enum Step {
    Applied,
    /// Has caught up with the live rows, to which it was not compared yet.
    Uncompared,
    /// Has caught up.
    Idle,
    /// Another process works on it, or it is open no longer.
    Away,
}

impl Filler {
    /// Works until nothing is left to do for now. Whether anything was done.
    async fn run(&self) -> Result<bool, ProjectionError> {
        let mut moved = false;
        let mut ahead = Ahead::default();
        while !self.cancel.is_cancelled() {
            match self.step(&mut ahead).await? {
                Step::Applied => moved = true,
                Step::Uncompared if self.compare().await? => moved = true,
                Step::Uncompared | Step::Idle | Step::Away => break,
            }
        }
        Ok(moved)
    }

    /// The copy's row, locked: whoever has the lock fills, from the position that stands there.
    async fn lock(&self, tx: &mut PgConnection) -> Result<Option<(Position, bool)>, sqlx::Error> {
        let row = sqlx::query!(
            r#"SELECT position, compared_position IS NOT NULL AS "compared!" FROM projection_rebuilds
               WHERE id = $1 AND state IN ('filling', 'ready') FOR UPDATE SKIP LOCKED"#,
            self.id,
        )
        .fetch_optional(tx)
        .await?;
        Ok(row.map(|row| (Position(row.position), row.compared)))
    }

    async fn step(&self, ahead: &mut Ahead) -> Result<Step, ProjectionError> {
        let name = self.projection.name();
        let began = Instant::now();
        let mut connection = self.pool.acquire().await?;
        let mut tx = connection.begin().await?;
        sqlx::query!("SET LOCAL synchronous_commit = off").execute(&mut *tx).await?;
        beside(&mut tx, PATIENCE).await?;
        let Some((after, compared)) = self.lock(&mut tx).await? else { return Ok(Step::Away) };
        // Not past the live rows until both were compared: there they can be compared.
        let target = sqlx::query_scalar!(
            r#"SELECT CASE WHEN $2 THEN (SELECT max(position) FROM events)
                      ELSE (SELECT position FROM projection_checkpoints WHERE name = $1) END"#,
            name,
            compared,
        )
        .fetch_one(&mut *tx)
        .await?;
        let target = Position(target.unwrap_or_default());
        if after >= target {
            return Ok(if compared { Step::Idle } else { Step::Uncompared });
        }
        let skipped = runner::skipped(&mut tx, name).await?;
        let events = match ahead.take(after, target) {
            Some(events) => events,
            None => LogReader::after_in(&mut *tx, after, PAGE.min(target.0 - after.0)).await?,
        };
        let Some(last) = events.last().map(|event| event.position) else { return Ok(Step::Idle) };
        let page = rebuild::without(events, &skipped);
        let (applied, next) = tokio::join!(self.projection.apply(&mut tx, &page), self.read(last, target));
        *ahead = Ahead { after: last, events: next };
        match applied {
            Ok(()) => {
                let events = (last.0 - after.0) as f64;
                let rate = events / began.elapsed().as_secs_f64().max(0.000_001);
                self.advance(&mut tx, last, target, rate).await?;
                tx.commit().await?;
                Ok(Step::Applied)
            }
            Err(error) if error.blames_event() => {
                tx.rollback().await?;
                self.narrow(&mut connection, after, target, &page).await
            }
            Err(error) => Err(error),
        }
    }

    /// The page after the one in hand, read meanwhile: over a connection that nobody wants, or not at all.
    async fn read(&self, after: Position, target: Position) -> Vec<RecordedEvent> {
        let limit = PAGE.min(target.0 - after.0);
        match self.pool.try_acquire() {
            // What cannot be read now is read again in its turn, and then the error counts.
            Some(mut spare) if limit > 0 => {
                LogReader::after_in(&mut *spare, after, limit).await.unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }

    async fn advance(
        &self,
        tx: &mut PgConnection,
        position: Position,
        target: Position,
        rate: f64,
    ) -> Result<(), sqlx::Error> {
        let name = self.projection.name();
        metrics::gauge!("botledger_rebuild_position", "projection" => name).set(position.0 as f64);
        metrics::gauge!("botledger_rebuild_target", "projection" => name).set(target.0 as f64);
        sqlx::query!(
            "UPDATE projection_rebuilds SET position = $2, target = $3, rate = $4, updated_at = clock_timestamp()
             WHERE id = $1",
            self.id,
            position.0,
            target.0,
            rate as i64,
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    /// A page failed because of one of its events: applies the ones before it and stops there.
    async fn narrow(
        &self,
        connection: &mut PgConnection,
        after: Position,
        target: Position,
        page: &[Arc<RecordedEvent>],
    ) -> Result<Step, ProjectionError> {
        let name = self.projection.name();
        let mut tx = connection.begin().await?;
        beside(&mut tx, PATIENCE).await?;
        if self.lock(&mut tx).await?.map(|(position, _)| position) != Some(after) {
            return Ok(Step::Away);
        }
        let mut good = after;
        for event in page {
            let mut attempt = tx.begin().await?;
            match self.projection.apply(&mut attempt, std::slice::from_ref(event)).await {
                Ok(()) => {
                    attempt.commit().await?;
                    good = event.position;
                }
                Err(error) if error.blames_event() => {
                    attempt.rollback().await?;
                    let text = runner::chain(&error);
                    sqlx::query!(
                        "UPDATE projection_rebuilds
                         SET position = $2, target = $3, state = 'stopped', failed_position = $4, error = $5,
                             updated_at = clock_timestamp()
                         WHERE id = $1",
                        self.id,
                        event.position.0 - 1,
                        target.0,
                        event.position.0,
                        text,
                    )
                    .execute(&mut *tx)
                    .await?;
                    tx.commit().await?;
                    tracing::error!(
                        projection = name,
                        position = event.position.0,
                        error = text,
                        "the rebuild of {name} stopped at event {}; the live read model goes on",
                        event.position
                    );
                    return Ok(Step::Away);
                }
                Err(error) => return Err(error),
            }
        }
        // One by one all of them could be applied.
        self.advance(&mut tx, good, target, 0.0).await?;
        tx.commit().await?;
        Ok(Step::Applied)
    }

    /// Compares the copy with the live rows, both at the same position and without holding the live ones
    /// up: they stand still for a last short page, and the comparison looks at what one snapshot shows.
    /// False when another process is at it.
    async fn compare(&self) -> Result<bool, ProjectionError> {
        let name = self.projection.name();
        let options = self.pool.connect_options();
        let mut looking = PgConnection::connect_with(&options).await?;
        let alone = sqlx::query_scalar!(
            r#"SELECT pg_try_advisory_lock(hashtext('botledger rebuild'), $1) AS "alone!""#,
            i32::try_from(self.id).unwrap_or_default(),
        )
        .fetch_one(&mut looking)
        .await?;
        if !alone {
            return Ok(false);
        }
        let mut holding = PgConnection::connect_with(&options).await?;
        let mut held = holding.begin().await?;
        beside(&mut held, PATIENCE).await?;
        let live = sqlx::query_scalar!(
            "SELECT position FROM projection_checkpoints WHERE name = $1 FOR UPDATE",
            name
        )
        .fetch_optional(&mut *held)
        .await?;
        let live = Position(live.unwrap_or_default());
        let mut tx = looking.begin().await?;
        beside(&mut tx, PATIENCE).await?;
        let Some((after, false)) = self.lock(&mut tx).await? else { return Ok(true) };
        let at = fold(&mut tx, &self.projection, after, live).await?;
        self.advance(&mut tx, at, live, 0.0).await?;
        tx.commit().await?;

        let mut snapshot = looking.begin().await?;
        sqlx::query!("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *snapshot).await?;
        beside(&mut snapshot, PATIENCE).await?;
        // The snapshot is taken; whatever the live rows become now is not in it. If the server has ended the
        // hold meanwhile, this fails and the comparison is made again.
        held.rollback().await?;
        let mut report = rebuild::RebuildReport::empty(name, at);
        let mut live_rows = 0;
        for table in self.projection.tables() {
            rebuild::compare(&mut snapshot, "read_next", table, &mut report).await?;
            live_rows += sqlx::query_scalar::<_, i64>(&format!("SELECT count(*) FROM read.{table}"))
                .fetch_one(&mut *snapshot)
                .await?;
        }
        snapshot.commit().await?;
        let differences: Vec<Shown> = report
            .differences
            .into_iter()
            .map(|one| Shown { table: one.table, live: one.live, replayed: one.replayed })
            .collect();
        sqlx::query!(
            "UPDATE projection_rebuilds
             SET state = 'ready', compared_position = $2, rows = $3, live_rows = $4, different = $5, differences = $6,
                 updated_at = clock_timestamp()
             WHERE id = $1 AND state = 'filling'",
            self.id,
            at.0,
            report.rows,
            live_rows,
            report.different,
            Json(differences) as _,
        )
        .execute(&mut looking)
        .await?;
        tracing::info!(
            projection = name,
            different = report.different,
            "the rebuild of {name} was compared at event {at}: {} rows, {} differ",
            report.rows,
            report.different
        );
        // Closing lets go of the advisory lock; the server does so too when this fails.
        let _ = looking.close().await;
        Ok(true)
    }
}
