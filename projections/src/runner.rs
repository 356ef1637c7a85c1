//! Runs projections: pages of events in, rows and checkpoint out, in one transaction each.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use botledger_domain::{DecodeError, InstanceId, Position, RecordedEvent};
use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection, PgPool, PgTransaction};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    Tail,
    blue_green::work_on_rebuilds,
    lease::{Fence, LeaseConfig, Leases},
};

/// What the processes that run projections share.
const KIND: &str = "projections";
/// How often every process looks how the projections stand, whoever runs them.
const WATCH: Duration = Duration::from_secs(1);

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
    pub(crate) fn blames_event(&self) -> bool {
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
    /// Pause before trying again after a failure, or when the projection is stopped.
    pub retry: Duration,
    /// How the processes share the projections.
    pub lease: LeaseConfig,
}

impl Default for RunnerConfig {
    fn default() -> Self {
        Self {
            page: 1_000,
            gather: Duration::from_millis(10),
            retry: Duration::from_millis(500),
            lease: LeaseConfig::default(),
        }
    }
}

/// The running projections of a process.
pub struct Runners {
    all: JoinHandle<()>,
}

impl Runners {
    /// Takes this process's share of the projections and runs each in a task of its own, until cancelled.
    #[must_use]
    pub fn start(
        pool: &PgPool,
        tail: &Tail,
        instance: InstanceId,
        projections: Vec<Arc<dyn Projection>>,
        config: RunnerConfig,
        cancel: &CancellationToken,
    ) -> Self {
        let mut leases = Leases::new(pool.clone(), KIND, instance, config.lease);
        let rebuilds = work_on_rebuilds(pool.clone(), projections.clone(), config.lease.ttl, cancel.clone());
        let mut tasks =
            vec![tokio::spawn(watch_statuses(pool.clone(), cancel.clone())), tokio::spawn(rebuilds)];
        tasks.extend(projections.into_iter().map(|projection| {
            let runner = Runner {
                pool: pool.clone(),
                tail: tail.clone(),
                lease: leases.offer(lease_name(projection.name(), projection.version())),
                projection,
                config,
                cancel: cancel.clone(),
            };
            tokio::spawn(runner.run())
        }));
        // Leases are kept until the last page under them is committed.
        let idle = CancellationToken::new();
        let keeping = tokio::spawn(leases.keep(idle.clone()));
        let all = tokio::spawn(async move {
            for task in tasks {
                // A panic was reported by the runtime; the others are waited for all the same.
                let _ = task.await;
            }
            idle.cancel();
            let _ = keeping.await;
        });
        Self { all }
    }

    /// Waits until all have stopped and what they held is given back.
    pub async fn join(self) {
        // It waits for others only.
        let _ = self.all.await;
    }
}

/// The lease of a projection. Versions are work of their own: processes of two releases run beside each
/// other while one replaces the other.
fn lease_name(name: &str, version: i32) -> String {
    format!("projection:{name}@{version}")
}

struct Runner {
    pool: PgPool,
    tail: Tail,
    lease: watch::Receiver<Option<Fence>>,
    projection: Arc<dyn Projection>,
    config: RunnerConfig,
    cancel: CancellationToken,
}

enum Step {
    /// Up to date with the tail.
    Idle,
    /// Applied this many events.
    Applied(usize),
    /// It is stopped, or another process has its rows in hand.
    Away,
}

impl Runner {
    async fn run(mut self) {
        let mut head = self.tail.watch_head();
        let held = metrics::gauge!("botledger_projection_held", "projection" => self.projection.name());
        while !self.cancel.is_cancelled() {
            head.borrow_and_update();
            let fence = self.lease.borrow_and_update().clone();
            held.set(if fence.is_some() { 1.0 } else { 0.0 });
            let Some(fence) = fence else {
                tokio::select! {
                    () = self.cancel.cancelled() => break,
                    changed = self.lease.changed() => if changed.is_err() { break },
                }
                continue;
            };
            let pause = match self.step(&fence).await {
                Ok(Step::Applied(events)) => {
                    if events >= self.config.page {
                        continue;
                    } else {
                        self.config.gather
                    }
                }
                Ok(Step::Idle) => {
                    tokio::select! {
                        () = self.cancel.cancelled() => break,
                        changed = head.changed() => if changed.is_err() { break },
                        changed = self.lease.changed() => if changed.is_err() { break },
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
                () = self.cancel.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        held.set(0.0);
    }

    async fn step(&self, fence: &Fence) -> Result<Step, ProjectionError> {
        let name = self.projection.name();
        let mut connection = self.pool.acquire().await?;
        let mut tx = self.begin(&mut connection).await?;
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
                if !still_ours(fence, &mut tx, name).await? {
                    return Ok(Step::Away);
                }
                set_checkpoint(&mut tx, name, after).await?;
                tx.commit().await?;
            }
            return Ok(Step::Idle);
        };
        let started = std::time::Instant::now();
        match self.projection.apply(&mut tx, &page).await {
            Ok(()) => {
                if !still_ours(fence, &mut tx, name).await? {
                    return Ok(Step::Away);
                }
                set_checkpoint(&mut tx, name, last).await?;
                tx.commit().await?;
                applied(name, page.len());
                metrics::histogram!("botledger_projection_apply_seconds", "projection" => name)
                    .record(started.elapsed().as_secs_f64());
                if let Some(oldest) = page.first() {
                    let lag =
                        (page.last().unwrap_or(oldest).recorded_at - oldest.recorded_at).num_milliseconds();
                    metrics::gauge!("botledger_projection_page_span_seconds", "projection" => name)
                        .set(lag as f64 / 1_000.0);
                }
                Ok(Step::Applied(page.len()))
            }
            Err(error) if error.blames_event() => {
                tx.rollback().await?;
                self.narrow(fence, &mut connection, Position(checkpoint.position), after, &page).await
            }
            Err(error) => Err(error),
        }
    }

    /// A transaction whose locks are let go when this process is paused or cut off in the middle of it.
    async fn begin<'a>(&self, connection: &'a mut PgConnection) -> Result<PgTransaction<'a>, sqlx::Error> {
        let mut tx = connection.begin().await?;
        // Rows and checkpoint vanish together if the server loses this commit; the events stand.
        sqlx::query!(
            "SELECT set_config('synchronous_commit', 'off', true) AS durability,
                    set_config('idle_in_transaction_session_timeout', $1, true) AS patience",
            self.config.lease.ttl.as_millis().to_string(),
        )
        .fetch_one(&mut *tx)
        .await?;
        Ok(tx)
    }

    /// A page failed because of one of its events: applies the ones before it and stops there. `at` is
    /// where the checkpoint stood: the lock was let go with the page, so another process may have come
    /// here meanwhile, and then all is done.
    async fn narrow(
        &self,
        fence: &Fence,
        connection: &mut PgConnection,
        mut at: Position,
        after: Position,
        page: &[Arc<RecordedEvent>],
    ) -> Result<Step, ProjectionError> {
        let name = self.projection.name();
        let mut good = after;
        for event in page {
            let mut tx = self.begin(connection).await?;
            match lock_checkpoint(&mut tx, name, self.projection.version()).await? {
                Some(checkpoint) if checkpoint.position == at.0 => {}
                _ => return Ok(Step::Away),
            }
            let mut attempt = tx.begin().await?;
            match self.projection.apply(&mut attempt, std::slice::from_ref(event)).await {
                Ok(()) => {
                    attempt.commit().await?;
                    if !still_ours(fence, &mut tx, name).await? {
                        return Ok(Step::Away);
                    }
                    set_checkpoint(&mut tx, name, event.position).await?;
                    tx.commit().await?;
                    applied(name, 1);
                    (at, good) = (event.position, event.position);
                }
                Err(error) if error.blames_event() => {
                    attempt.rollback().await?;
                    if !still_ours(fence, &mut tx, name).await? {
                        return Ok(Step::Away);
                    }
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
        Ok(Step::Applied(page.len()))
    }
}

fn applied(name: &'static str, events: usize) {
    metrics::counter!("botledger_projection_events_total", "projection" => name)
        .increment(u64::try_from(events).unwrap_or_default());
}

/// Whether the page may be committed. Its rows are given up when not: somebody else applies them.
async fn still_ours(fence: &Fence, tx: &mut PgConnection, name: &'static str) -> Result<bool, sqlx::Error> {
    let ours = fence.holds(tx).await?;
    if !ours {
        metrics::counter!("botledger_projection_fenced_total", "projection" => name).increment(1);
        tracing::warn!(
            projection = name,
            epoch = fence.epoch(),
            "a page of {name} was given up: another process has the read model now"
        );
    }
    Ok(ours)
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
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
    /// Type of the event it stopped at.
    pub failed_type: Option<String>,
    /// Stream of that event, as `type/id`.
    pub failed_stream: Option<String>,
    pub error: Option<String>,
    /// When it stopped.
    pub stopped_at: Option<DateTime<Utc>>,
    /// Events behind the head of the ledger.
    pub lag: i64,
    /// How long the next event has been waiting for it, or how long nothing was applied if that is
    /// shorter, in seconds. Absent when there is no next event.
    pub waiting_s: Option<i64>,
    /// The process that runs it, by instance; absent when none does.
    pub holder: Option<Uuid>,
    /// That process's name.
    pub holder_name: Option<String>,
}

/// A projection with events before it that applies none for this long has stalled, seconds.
pub const STALLED_AFTER_S: i64 = 30;

impl CheckpointStatus {
    /// Whether it should be moving and is not. One that is stopped waits for a decision instead.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.status == "running" && self.waiting_s.is_some_and(|waiting| waiting >= STALLED_AFTER_S)
    }

    /// What keeps it, in words for operators; nothing when it keeps up.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let name = &self.name;
        if self.status == "stopped" {
            let at = self.failed_position.unwrap_or(self.position);
            return Some(format!("{name} is stopped at event {at} and waits for a decision"));
        }
        let waiting = self.waiting_s.filter(|_| self.is_stalled())?;
        Some(match &self.holder_name {
            Some(holder) => format!("{name} has applied nothing for {waiting} s, held by {holder}"),
            None => format!("{name} has applied nothing for {waiting} s: no process holds it"),
        })
    }
}

/// How all projections stand.
///
/// # Errors
/// When the database fails.
pub async fn statuses(pool: &PgPool) -> Result<Vec<CheckpointStatus>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT c.name, c.version, c.position, c.status, c.failed_position, c.error, c.updated_at,
                  head.at - c.position AS "lag!",
                  extract(epoch FROM clock_timestamp() - greatest(c.updated_at, next.recorded_at))::bigint
                      AS waiting_s,
                  next.recorded_at IS NOT NULL AS "waiting!",
                  failed.event_type AS "failed_type?",
                  failed.aggregate_type || '/' || failed.aggregate_id AS failed_stream,
                  held.holder AS "holder?", process.label AS "holder_name?"
           FROM projection_checkpoints c
           CROSS JOIN (SELECT coalesce(max(position), 0) AS at FROM events) AS head
           LEFT JOIN events AS next ON next.position = c.position + 1
           LEFT JOIN events AS failed ON failed.position = c.failed_position
           LEFT JOIN work_leases AS held
               ON held.name = 'projection:' || c.name || '@' || c.version AND held.expires_at > clock_timestamp()
           LEFT JOIN work_processes AS process ON process.instance = held.holder AND process.kind = $1
           ORDER BY c.name"#,
        KIND,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| CheckpointStatus {
            name: row.name,
            version: row.version,
            position: Position(row.position),
            stopped_at: (row.status == "stopped").then_some(row.updated_at),
            status: row.status,
            failed_position: row.failed_position.map(Position),
            failed_type: row.failed_type,
            failed_stream: row.failed_stream,
            error: row.error,
            lag: row.lag,
            waiting_s: row.waiting_s.filter(|_| row.waiting).map(|seconds| seconds.max(0)),
            holder: row.holder,
            holder_name: row.holder_name,
        })
        .collect())
}

/// Tells metrics and log how the projections stand. Every process does, also of those that others run:
/// one that nobody runs is the one to hear of.
async fn watch_statuses(pool: PgPool, cancel: CancellationToken) {
    let mut troubled: BTreeSet<String> = BTreeSet::new();
    while !cancel.is_cancelled() {
        // When the database is away there is nothing to say that others do not say.
        for row in statuses(&pool).await.unwrap_or_default() {
            let name = row.name.clone();
            let gauge = |metric: &'static str, value: f64| {
                metrics::gauge!(metric, "projection" => name.clone()).set(value);
            };
            gauge("botledger_projection_position", row.position.0 as f64);
            gauge("botledger_projection_lag_events", row.lag.max(0) as f64);
            gauge("botledger_projection_stopped", f64::from(u8::from(row.status == "stopped")));
            gauge("botledger_projection_stalled", f64::from(u8::from(row.is_stalled())));
            match (row.trouble(), troubled.contains(&name)) {
                (Some(trouble), false) => {
                    tracing::warn!(projection = name, "{trouble}");
                    troubled.insert(name);
                }
                (None, true) => {
                    tracing::info!(projection = name, "{name} goes on");
                    troubled.remove(&name);
                }
                _ => {}
            }
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(WATCH) => {}
        }
    }
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
        "Events between a projection and the ledger's head"
    );
    describe_gauge!("botledger_projection_held", Unit::Count, "1 while this process runs the projection");
    describe_gauge!("botledger_projection_stopped", Unit::Count, "1 while an event waits for a decision");
    describe_gauge!(
        "botledger_projection_stalled",
        Unit::Count,
        "1 while a projection has events before it and applies none"
    );
    describe_gauge!("botledger_rebuild_position", Unit::Count, "Position a rebuild has filled its copy to");
    describe_gauge!("botledger_rebuild_target", Unit::Count, "Position a rebuild is on its way to");
    describe_counter!("botledger_projection_events_total", Unit::Count, "Events applied by this process");
    describe_counter!(
        "botledger_projection_fenced_total",
        Unit::Count,
        "Pages given up because another process had taken the projection"
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
    describe_counter!(
        "botledger_tail_gaps_total",
        Unit::Count,
        "Missing positions seen; every one is an incident"
    );
}
