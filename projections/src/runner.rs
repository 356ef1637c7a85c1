//! Runs projections: pages of events in, rows and checkpoint out, in one transaction each.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use botledger_domain::{DecodeError, Position, RecordedEvent};
use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Tail;

/// Why a page could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ProjectionError {
    /// An event does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The database refused a row or cannot be reached.
    #[error("the read model cannot be written")]
    Database(#[from] sqlx::Error),
    /// An event that cannot follow from the ones before it.
    #[error("event {position} does not follow: {problem}")]
    Inconsistent {
        /// Where it stands.
        position: Position,
        /// What is missing.
        problem: &'static str,
    },
}

impl ProjectionError {
    /// Whether the event is to blame, and not the moment.
    fn blames_event(&self) -> bool {
        match self {
            Self::Decode(_) | Self::Inconsistent { .. } => true,
            // Class 22 and 23: a value that does not fit a column.
            Self::Database(sqlx::Error::Database(refusal)) => {
                refusal.code().is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
            }
            Self::Database(_) => false,
        }
    }
}

/// A read model's writer. Deterministic: no clock, no randomness, no floats in sums.
#[async_trait]
pub trait Projection: Send + Sync {
    /// Key of the checkpoint; never renamed.
    fn name(&self) -> &'static str;
    /// Raised when the rows would come out differently: the read model is then rebuilt.
    fn version(&self) -> i32 {
        1
    }
    /// Tables it owns, without schema.
    fn tables(&self) -> &'static [&'static str];
    /// Folds a page into rows. Events come in order, each once.
    ///
    /// # Errors
    /// See [`ProjectionError`]; then nothing of the page is kept.
    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError>;
}

/// How runners work.
#[derive(Clone, Copy, Debug)]
pub struct RunnerConfig {
    /// Events a transaction at most.
    pub page: usize,
    /// Pause after a small page, so that events of the same moment share a transaction.
    pub gather: Duration,
    /// Pause before trying again after a failure, or when another process holds the projection.
    pub retry: Duration,
}

impl Default for RunnerConfig {
    fn default() -> Self {
        Self { page: 1_000, gather: Duration::from_millis(10), retry: Duration::from_millis(500) }
    }
}

/// The running projections of a process.
pub struct Runners {
    tasks: Vec<JoinHandle<()>>,
}

impl Runners {
    /// Starts one task a projection, until cancelled.
    #[must_use]
    pub fn start(
        pool: &PgPool,
        tail: &Tail,
        projections: Vec<Arc<dyn Projection>>,
        config: RunnerConfig,
        cancel: &CancellationToken,
    ) -> Self {
        let tasks = projections
            .into_iter()
            .map(|projection| {
                let runner = Runner {
                    pool: pool.clone(),
                    tail: tail.clone(),
                    projection,
                    config,
                    cancel: cancel.clone(),
                };
                tokio::spawn(runner.run())
            })
            .collect();
        Self { tasks }
    }

    /// Waits until all have stopped.
    pub async fn join(self) {
        for task in self.tasks {
            // A panic was reported by the runtime; the others are waited for all the same.
            let _ = task.await;
        }
    }
}

struct Runner {
    pool: PgPool,
    tail: Tail,
    projection: Arc<dyn Projection>,
    config: RunnerConfig,
    cancel: CancellationToken,
}

enum Step {
    /// Up to date with the tail.
    Idle(Position),
    /// Applied this many events.
    Applied(usize, Position),
    /// Another process holds it, or it is stopped.
    Away,
}

impl Runner {
    async fn run(self) {
        let mut head = self.tail.watch_head();
        while !self.cancel.is_cancelled() {
            head.borrow_and_update();
            let pause = match self.step().await {
                Ok(Step::Applied(events, at)) => {
                    self.report(at);
                    if events >= self.config.page { continue } else { self.config.gather }
                }
                Ok(Step::Idle(at)) => {
                    self.report(at);
                    tokio::select! {
                        () = self.cancel.cancelled() => return,
                        changed = head.changed() => if changed.is_err() { return },
                    }
                    continue;
                }
                Ok(Step::Away) => self.config.retry,
                Err(error) => {
                    tracing::warn!(projection = self.projection.name(), error = %error, "a page could not be applied; trying again");
                    self.config.retry
                }
            };
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn report(&self, at: Position) {
        let name = self.projection.name();
        metrics::gauge!("botledger_projection_position", "projection" => name).set(at.0 as f64);
        let lag = self.tail.head().0.saturating_sub(at.0).max(0);
        metrics::gauge!("botledger_projection_lag_events", "projection" => name).set(lag as f64);
    }

    async fn step(&self) -> Result<Step, ProjectionError> {
        let name = self.projection.name();
        let mut connection = self.pool.acquire().await?;
        let mut tx = connection.begin().await?;
        // Rows and checkpoint vanish together if the server loses this commit; the events stand.
        sqlx::query!("SET LOCAL synchronous_commit = off").execute(&mut *tx).await?;
        let Some(checkpoint) = lock_checkpoint(&mut tx, name, self.projection.version()).await? else {
            return Ok(Step::Away);
        };
        let mut after = Position(checkpoint.position);
        if checkpoint.status == "stopped" {
            match pending_decision(&mut tx, name, &checkpoint).await? {
                None => return Ok(Step::Away),
                Some(PoisonDecision::Retry) => {}
                Some(PoisonDecision::Skip(position)) => after = position,
            }
        }
        let page = self.tail.page(&mut *tx, after, self.config.page).await?;
        let Some(last) = page.last().map(|event| event.position) else {
            if checkpoint.status == "stopped" {
                set_checkpoint(&mut tx, name, after).await?;
                tx.commit().await?;
            }
            return Ok(Step::Idle(after));
        };
        let started = std::time::Instant::now();
        match self.projection.apply(&mut tx, &page).await {
            Ok(()) => {
                set_checkpoint(&mut tx, name, last).await?;
                tx.commit().await?;
                metrics::histogram!("botledger_projection_apply_seconds", "projection" => name)
                    .record(started.elapsed().as_secs_f64());
                if let Some(oldest) = page.first() {
                    let lag =
                        (page.last().unwrap_or(oldest).recorded_at - oldest.recorded_at).num_milliseconds();
                    metrics::gauge!("botledger_projection_page_span_seconds", "projection" => name)
                        .set(lag as f64 / 1_000.0);
                }
                Ok(Step::Applied(page.len(), last))
            }
            Err(error) if error.blames_event() => {
                tx.rollback().await?;
                self.narrow(&mut connection, Position(checkpoint.position), after, &page).await
            }
            Err(error) => Err(error),
        }
    }

    /// A page failed because of one of its events: applies the ones before it and stops there. `at` is
    /// where the checkpoint stood: the lock was let go with the page, so another process may have come
    /// here meanwhile, and then all is done.
    async fn narrow(
        &self,
        connection: &mut PgConnection,
        mut at: Position,
        after: Position,
        page: &[Arc<RecordedEvent>],
    ) -> Result<Step, ProjectionError> {
        let name = self.projection.name();
        let mut good = after;
        for event in page {
            let mut tx = connection.begin().await?;
            match lock_checkpoint(&mut tx, name, self.projection.version()).await? {
                Some(checkpoint) if checkpoint.position == at.0 => {}
                _ => return Ok(Step::Away),
            }
            let mut attempt = tx.begin().await?;
            match self.projection.apply(&mut attempt, std::slice::from_ref(event)).await {
                Ok(()) => {
                    attempt.commit().await?;
                    set_checkpoint(&mut tx, name, event.position).await?;
                    tx.commit().await?;
                    (at, good) = (event.position, event.position);
                }
                Err(error) if error.blames_event() => {
                    attempt.rollback().await?;
                    let text = chain(&error);
                    stop(&mut tx, name, good, event.position, &text).await?;
                    tx.commit().await?;
                    tracing::error!(
                        projection = name,
                        position = event.position.0,
                        error = text,
                        "projection {name} stopped at event {}; an operator must decide",
                        event.position
                    );
                    metrics::counter!("botledger_projection_poisoned_total", "projection" => name)
                        .increment(1);
                    return Ok(Step::Away);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Step::Applied(page.len(), good))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

pub(crate) struct Checkpoint {
    pub(crate) position: i64,
    status: String,
    failed_position: Option<i64>,
    updated_at: DateTime<Utc>,
}

/// Locks the checkpoint for this transaction; absent when another process has it, or when the rows
/// were made by another version of the projection.
pub(crate) async fn lock_checkpoint(
    tx: &mut PgConnection,
    name: &str,
    version: i32,
) -> Result<Option<Checkpoint>, sqlx::Error> {
    let locked = sqlx::query_as!(
        Checkpoint,
        "SELECT position, status, failed_position, updated_at FROM projection_checkpoints
         WHERE name = $1 AND version = $2 FOR UPDATE SKIP LOCKED",
        name,
        version,
    )
    .fetch_optional(&mut *tx)
    .await?;
    if locked.is_some() {
        return Ok(locked);
    }
    let made = sqlx::query!(
        "INSERT INTO projection_checkpoints (name, version) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        name,
        version,
    )
    .execute(&mut *tx)
    .await?;
    if made.rows_affected() == 0 {
        return Ok(None);
    }
    sqlx::query_as!(
        Checkpoint,
        "SELECT position, status, failed_position, updated_at FROM projection_checkpoints
         WHERE name = $1 AND version = $2 FOR UPDATE SKIP LOCKED",
        name,
        version,
    )
    .fetch_optional(&mut *tx)
    .await
}

pub(crate) async fn set_checkpoint(
    tx: &mut PgConnection,
    name: &str,
    position: Position,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE projection_checkpoints
         SET position = $2, status = 'running', failed_position = NULL, error = NULL, updated_at = now()
         WHERE name = $1",
        name,
        position.0,
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn stop(
    connection: &mut PgConnection,
    name: &str,
    good: Position,
    failed: Position,
    error: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE projection_checkpoints
         SET position = $2, status = 'stopped', failed_position = $3, error = $4, updated_at = now()
         WHERE name = $1",
        name,
        good.0,
        failed.0,
        error,
    )
    .execute(connection)
    .await?;
    Ok(())
}

enum PoisonDecision {
    Retry,
    Skip(Position),
}

async fn pending_decision(
    tx: &mut PgConnection,
    name: &str,
    checkpoint: &Checkpoint,
) -> Result<Option<PoisonDecision>, sqlx::Error> {
    let failed = checkpoint.failed_position.unwrap_or(checkpoint.position + 1);
    let decision = sqlx::query_scalar!(
        "SELECT decision FROM projection_decisions
         WHERE name = $1 AND position = $2 AND (decision = 'skip' OR decided_at > $3) ORDER BY id DESC LIMIT 1",
        name,
        failed,
        checkpoint.updated_at,
    )
    .fetch_optional(tx)
    .await?;
    Ok(decision.map(|decision| match decision.as_str() {
        "skip" => PoisonDecision::Skip(Position(failed)),
        _ => PoisonDecision::Retry,
    }))
}

/// What an operator decides about an event that stopped a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::AsRefStr)]
#[strum(serialize_all = "snake_case")]
pub enum Decision {
    /// Try it again, for example after an update of the product.
    Retry,
    /// Leave it out, for ever, also when rebuilding.
    Skip,
}

/// Records what is to happen with the event a projection stopped at; the runner obeys within a
/// moment. False when the projection is not stopped at that event.
///
/// # Errors
/// When the database fails.
pub async fn decide(
    pool: &PgPool,
    name: &str,
    position: Position,
    decision: Decision,
    reason: &str,
    operator: Option<Uuid>,
) -> Result<bool, sqlx::Error> {
    let recorded = sqlx::query!(
        "INSERT INTO projection_decisions (name, position, decision, reason, operator_id)
         SELECT $1, $2, $3, $4, $5 FROM projection_checkpoints
         WHERE name = $1 AND status = 'stopped' AND failed_position = $2",
        name,
        position.0,
        decision.as_ref(),
        reason,
        operator,
    )
    .execute(pool)
    .await?;
    Ok(recorded.rows_affected() == 1)
}

/// Positions an operator decided to leave out, live, when rebuilding and when looking back.
pub(crate) async fn skipped(connection: &mut PgConnection, name: &str) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar!(
        "SELECT position FROM projection_decisions WHERE name = $1 AND decision = 'skip'",
        name
    )
    .fetch_all(connection)
    .await
}

/// Locks the checkpoint for a rebuild, waiting for the runner to finish its page. How far the live
/// rows are; 0 when there are none of this projection yet.
pub(crate) async fn lock_for_rebuild(
    tx: &mut PgConnection,
    name: &str,
    version: i32,
) -> Result<Position, sqlx::Error> {
    sqlx::query!(
        "INSERT INTO projection_checkpoints (name, version) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        name,
        version,
    )
    .execute(&mut *tx)
    .await?;
    let position =
        sqlx::query_scalar!("SELECT position FROM projection_checkpoints WHERE name = $1 FOR UPDATE", name)
            .fetch_one(tx)
            .await?;
    Ok(Position(position))
}

/// Says that the live rows are those of this version at this position.
pub(crate) async fn finish_rebuild(
    tx: &mut PgConnection,
    name: &str,
    version: i32,
    position: Position,
) -> Result<(), sqlx::Error> {
    sqlx::query!("UPDATE projection_checkpoints SET version = $2 WHERE name = $1", name, version)
        .execute(&mut *tx)
        .await?;
    set_checkpoint(tx, name, position).await
}

/// How a projection stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointStatus {
    pub name: String,
    pub version: i32,
    pub position: Position,
    /// `running` or `stopped`.
    pub status: String,
    pub failed_position: Option<Position>,
    pub error: Option<String>,
    /// Events behind the head of the ledger.
    pub lag: i64,
}

/// How all projections stand.
///
/// # Errors
/// When the database fails.
pub async fn statuses(pool: &PgPool) -> Result<Vec<CheckpointStatus>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT name, version, position, status, failed_position, error,
                  (SELECT coalesce(max(e.position), 0) FROM events e) - position AS "lag!"
           FROM projection_checkpoints ORDER BY name"#
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| CheckpointStatus {
            name: row.name,
            version: row.version,
            position: Position(row.position),
            status: row.status,
            failed_position: row.failed_position.map(Position),
            error: row.error,
            lag: row.lag,
        })
        .collect())
}

/// Waits until a projection has applied a position; false when the time is up.
///
/// # Errors
/// When the database fails.
pub async fn wait_for(
    pool: &PgPool,
    name: &str,
    position: Position,
    patience: Duration,
) -> Result<bool, sqlx::Error> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let at = sqlx::query_scalar!("SELECT position FROM projection_checkpoints WHERE name = $1", name)
            .fetch_optional(pool)
            .await?;
        if at.unwrap_or(0) >= position.0 {
            return Ok(true);
        }
        if tokio::time::Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Tells the metrics recorder what the projections' metrics mean.
pub fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_gauge!("botledger_projection_position", Unit::Count, "Position a projection has applied");
    describe_gauge!(
        "botledger_projection_lag_events",
        Unit::Count,
        "Events between a projection and the tail's head"
    );
    describe_gauge!(
        "botledger_projection_page_span_seconds",
        Unit::Seconds,
        "Time between first and last event of the last page: how far behind in time a projection works"
    );
    describe_histogram!(
        "botledger_projection_apply_seconds",
        Unit::Seconds,
        "Applying one page, commit included"
    );
    describe_counter!("botledger_projection_poisoned_total", Unit::Count, "Events that stopped a projection");
    describe_gauge!("botledger_past_copies", Unit::Count, "Read models of the past that are kept");
    describe_gauge!("botledger_past_bytes", Unit::Bytes, "What they take in temporary tables");
    describe_counter!(
        "botledger_past_builds_total",
        Unit::Count,
        "Read models of the past: built, failed, or refused because too many were being made"
    );
    describe_histogram!(
        "botledger_past_build_seconds",
        Unit::Seconds,
        "Making a read model of the past, waiting included"
    );
    describe_counter!(
        "botledger_tail_gaps_total",
        Unit::Count,
        "Missing positions seen; every one is an incident"
    );
}
