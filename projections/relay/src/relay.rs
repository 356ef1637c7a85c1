//! The loop between ledger and target.
//!
//! What is true about the target is its stream: positions are dense and begin with 1, revisions are dense
//! and begin with 0, so the event at revision r is position r + 1, and where to go on is read off the last
//! event, whatever a crash left behind:
//!
//! ```text
//! append r..r+n ──> stored ──> answered ──> row written        the row is for people
//!        │             │           └─ crash: the row is old, the stream is not
//!        │             └─ crash or cut: the stream is read again and goes on at r + n
//!        └─ crash or cut: the stream is read again and goes on at r
//! ```
//!
//! An append that was given up may still arrive after the stream was read. Then the next one, which
//! expects the revision before it, finds its own ids there and is answered with success, or is refused
//! and the stream is read again. The same holds for a second relay that does not know it lost its lease.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use botledger_domain::{InstanceId, Position};
use botledger_projections::{Fence, LeaseConfig, Leases, Tail};
use eventstore::EventData;
use sqlx::PgPool;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    TargetConfig, TargetProblem,
    ledger::{BatchLimit, Ledger, LedgerError},
    outgoing::{Outgoing, event_id},
    progress::{self, State, lease_name, statuses},
    target::{Target, TargetError},
};

/// What the processes that relay share.
const KIND: &str = "relay";
/// Pause after the first failure; doubled with each further one.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// How often lag is measured.
const WATCH: Duration = Duration::from_secs(1);

/// How to relay.
#[derive(Clone)]
pub struct RelayConfig {
    /// Where to.
    pub target: TargetConfig,
    /// Name of the stream there.
    pub stream: String,
    /// Events in one append, at most.
    pub batch_events: usize,
    /// Bytes in one append, at most; one event that is larger goes by itself.
    pub batch_bytes: usize,
    /// Longest pause between tries.
    pub retry_max: Duration,
    /// How processes share the work: one of them does it.
    pub lease: LeaseConfig,
}

/// The relay of a process: works while it holds the lease.
pub struct Relay {
    all: JoinHandle<()>,
}

impl Relay {
    /// Takes part, until cancelled.
    ///
    /// # Errors
    /// When the settings of the target cannot work.
    pub fn start(
        pool: &PgPool,
        tail: &Tail,
        instance: InstanceId,
        config: RelayConfig,
        cancel: &CancellationToken,
    ) -> Result<Self, TargetProblem> {
        let hosts = config.target.hosts()?;
        let mut leases = Leases::new(pool.clone(), KIND, instance, config.lease);
        let lease = leases.offer(lease_name(&config.stream));
        let watching = tokio::spawn(watch_lag(pool.clone(), config.stream.clone(), cancel.clone()));
        let worker = Worker {
            pool: pool.clone(),
            head: tail.watch_head(),
            lease,
            limit: BatchLimit { events: config.batch_events, bytes: config.batch_bytes },
            config: Arc::new(config),
            hosts,
            told: None,
            failures: 0,
            cancel: cancel.clone(),
        };
        let working = tokio::spawn(worker.run());
        // The lease is kept until nothing is sent under it any more.
        let idle = CancellationToken::new();
        let keeping = tokio::spawn(leases.keep(idle.clone()));
        let all = tokio::spawn(async move {
            // A panic was reported by the runtime; the lease is given back all the same.
            let _ = working.await;
            let _ = watching.await;
            idle.cancel();
            let _ = keeping.await;
        });
        Ok(Self { all })
    }

    /// Waits until it has stopped and given back what it held.
    pub async fn join(self) {
        // It waits for others only.
        let _ = self.all.await;
    }
}

/// Why it cannot go on at this moment.
#[derive(Debug)]
enum Failure {
    /// Time may heal it.
    Database(sqlx::Error),
    /// Time may heal it, most of it.
    Target(TargetError),
    /// A person has to look.
    Refused { reason: String, position: Option<Position> },
}

impl From<TargetError> for Failure {
    fn from(error: TargetError) -> Self {
        match error {
            TargetError::Tombstoned | TargetError::AccessDenied => {
                Self::Refused { reason: error.to_string(), position: None }
            }
            error => Self::Target(error),
        }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        let position = match &error {
            LedgerError::Altered(position)
            | LedgerError::Missing(position)
            | LedgerError::Unfit { position, .. } => *position,
            LedgerError::Database(_) => Position(0),
        };
        match error {
            LedgerError::Database(error) => Self::Database(error),
            error => Self::Refused { reason: error.to_string(), position: Some(position) },
        }
    }
}

impl Failure {
    fn state(&self) -> State {
        match self {
            Self::Database(error) => {
                State::Retrying { reason: format!("the ledger cannot be read: {error}") }
            }
            Self::Target(error) => State::Retrying { reason: error.to_string() },
            Self::Refused { reason, position } => {
                State::Refused { reason: reason.clone(), position: *position }
            }
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Database(_) => "ledger",
            Self::Target(error) => error.kind(),
            Self::Refused { .. } => "refused",
        }
    }

    fn spares_session(&self) -> bool {
        matches!(self, Self::Target(error) if error.spares_session())
    }
}

/// Why work ended without a failure.
enum Rest {
    /// It was cancelled, or the lease has changed hands.
    Over,
    /// The database says that the lease is another's, before this process has heard of it.
    Lost,
}

struct Worker {
    pool: PgPool,
    head: watch::Receiver<Position>,
    lease: watch::Receiver<Option<Fence>>,
    config: Arc<RelayConfig>,
    /// What goes at once at the moment: less after an append that was too large.
    limit: BatchLimit,
    hosts: String,
    /// What the log was told last.
    told: Option<State>,
    failures: u32,
    cancel: CancellationToken,
}

impl Worker {
    async fn run(mut self) {
        let held = metrics::gauge!("botledger_relay_held");
        let mut session = None;
        while !self.cancel.is_cancelled() {
            let fence = self.lease.borrow_and_update().clone();
            held.set(if fence.is_some() { 1.0 } else { 0.0 });
            let Some(fence) = fence else {
                session = None;
                tokio::select! {
                    () = self.cancel.cancelled() => break,
                    changed = self.lease.changed() => if changed.is_err() { break },
                }
                continue;
            };
            let pause = match self.work(&fence, &mut session).await {
                Ok(Rest::Over) => continue,
                Ok(Rest::Lost) => self.config.lease.beat,
                Err(failure) => {
                    self.failures = self.failures.saturating_add(1);
                    metrics::counter!("botledger_relay_failures_total", "kind" => failure.kind())
                        .increment(1);
                    if !failure.spares_session() {
                        session = None;
                    }
                    self.tell(&fence, failure.state()).await;
                    self.pause(&failure)
                }
            };
            tokio::select! {
                () = self.cancel.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
                changed = self.lease.changed() => if changed.is_err() { break },
            }
        }
        held.set(0.0);
    }

    fn pause(&self, failure: &Failure) -> Duration {
        if matches!(failure, Failure::Refused { .. }) {
            return self.config.retry_max;
        }
        let doubled = RETRY_FIRST.saturating_mul(1 << self.failures.saturating_sub(1).min(20));
        doubled.min(self.config.retry_max)
    }

    /// Sends until something is in the way. Never more than two batches are in memory: the one that is
    /// under way, and the next.
    async fn work(&mut self, fence: &Fence, session: &mut Option<Target>) -> Result<Rest, Failure> {
        let config = Arc::clone(&self.config);
        let ledger = Ledger::open(self.pool.clone()).await?;
        let target = match session {
            Some(target) => target,
            None => session.insert(Target::open(&config.target, &config.stream)?),
        };
        let mut at = resume(&ledger, target, &config.stream).await?;
        if !self.record(fence, at).await? {
            return Ok(Rest::Lost);
        }
        let mut ready = Vec::new();
        loop {
            if self.cancel.is_cancelled() || self.lease.borrow().as_ref() != Some(fence) {
                return Ok(Rest::Over);
            }
            let batch = match std::mem::take(&mut ready) {
                batch if batch.is_empty() => self.batch(&ledger, at).await?,
                batch => batch,
            };
            let Some(last) = batch.last().map(|event| event.position) else {
                self.failures = 0;
                tokio::select! {
                    () = self.cancel.cancelled() => {}
                    changed = self.lease.changed() => if changed.is_err() { return Ok(Rest::Over) },
                    changed = self.head.changed() => if changed.is_err() { return Ok(Rest::Over) },
                }
                continue;
            };
            let count = batch.len();
            let events: Vec<EventData> = batch.into_iter().map(|event| event.data).collect();
            let started = Instant::now();
            let (answer, next) = tokio::select! {
                // What becomes of the append is seen by whoever reads the stream next.
                () = self.cancel.cancelled() => return Ok(Rest::Over),
                both = async {
                    tokio::join!(target.append(at.0.unsigned_abs(), events), self.batch(&ledger, last))
                } => both,
            };
            match answer {
                Ok(revision) if revision + 1 == last.0.unsigned_abs() => {}
                Ok(revision) => return Err(renumbered(&config.stream, last, revision)),
                Err(TargetError::TooLarge(_)) if count > 1 => {
                    self.limit.events = count / 2;
                    continue;
                }
                Err(TargetError::TooLarge(said)) => {
                    let reason = format!(
                        "event {last} by itself is larger than the target accepts ({said}): raise its limit"
                    );
                    return Err(Failure::Refused { reason, position: Some(last) });
                }
                Err(error) => return Err(error.into()),
            }
            metrics::histogram!("botledger_relay_append_seconds").record(started.elapsed().as_secs_f64());
            metrics::histogram!("botledger_relay_batch_events").record(count as f64);
            metrics::counter!("botledger_relay_events_total").increment(count as u64);
            at = last;
            self.failures = 0;
            self.limit.events = (self.limit.events * 2).min(config.batch_events);
            if !self.record(fence, at).await? {
                return Ok(Rest::Lost);
            }
            ready = next?;
        }
    }

    /// The next events that a crash of the database's server could not take back.
    async fn batch(&self, ledger: &Ledger, after: Position) -> Result<Vec<Outgoing>, LedgerError> {
        let upto = *self.head.borrow();
        if upto <= after {
            return Ok(Vec::new());
        }
        ledger.batch(after, upto, self.limit).await
    }

    /// Says that everything up to a position is there. False when the lease is another's.
    async fn record(&mut self, fence: &Fence, at: Position) -> Result<bool, sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        let (stream, state) = (&self.config.stream, State::Relaying);
        let ours = progress::record(&mut connection, fence, stream, &self.hosts, Some(at), &state).await?;
        if ours && self.told.as_ref() != Some(&state) {
            tracing::info!(relay = stream, position = at.0, "relaying to {}, at position {at}", self.hosts);
            self.told = Some(state);
        }
        Ok(ours)
    }

    /// Says why it does not go on, once for each reason.
    async fn tell(&mut self, fence: &Fence, state: State) {
        let stream = &self.config.stream;
        if self.told.as_ref() != Some(&state) {
            match &state {
                State::Refused { reason, .. } => {
                    tracing::error!(relay = stream, "the relay to {} refuses to go on: {reason}", self.hosts);
                }
                State::Retrying { reason } => {
                    tracing::warn!(relay = stream, "the relay to {} tries again: {reason}", self.hosts);
                }
                State::Relaying => {}
            }
        }
        let written = async {
            let mut connection = self.pool.acquire().await?;
            progress::record(&mut connection, fence, stream, &self.hosts, None, &state).await
        };
        if let Err(error) = written.await {
            tracing::debug!(relay = stream, error = %error, "the state of the relay could not be written");
        }
        self.told = Some(state);
    }
}

/// Where to go on, by the target's own last event; refused where that is not ours.
async fn resume(ledger: &Ledger, target: &Target, stream: &str) -> Result<Position, Failure> {
    let Some(last) = target.last().await? else { return Ok(Position(0)) };
    let refused = |why: String, position| {
        let (revision, kind) = (last.revision, &last.event_type);
        let reason = format!("the last event of stream {stream} (revision {revision}, {kind}) {why}");
        Err(Failure::Refused { reason, position })
    };
    let Some(mark) = &last.mark else {
        return refused("is not of a relay: somebody else writes to this stream".to_owned(), None);
    };
    if mark.installation != ledger.installation() {
        let (theirs, ours) = (mark.installation, ledger.installation());
        return refused(format!("is of installation {theirs}, and this one is {ours}"), None);
    }
    let position = Position(mark.position);
    let place = i64::try_from(last.revision).map_or(0, |revision| revision.saturating_add(1));
    if mark.position != place || last.id != event_id(ledger.installation(), position) {
        let why = format!("says it is position {position}: the stream was deleted and begun anew, or edited");
        return refused(why, Some(position));
    }
    match ledger.leaf(position).await? {
        Some(leaf) if hex::encode(&leaf) == mark.leaf_hash => Ok(position),
        Some(_) => refused(
            format!(
                "is another event than the ledger's at position {position}: one of both was changed, or the ledger was restored from a backup and went on"
            ),
            Some(position),
        ),
        None => refused(
            format!(
                "is position {position}, which the ledger does not have: it is older than the target, as after restoring a backup"
            ),
            Some(position),
        ),
    }
}

fn renumbered(stream: &str, last: Position, revision: u64) -> Failure {
    Failure::Refused {
        reason: format!(
            "stream {stream} gave position {last} the revision {revision}: it was deleted before and counts on; \
             relay to another stream"
        ),
        position: Some(last),
    }
}

/// Every process that takes part tells how the relay stands, whoever does it.
async fn watch_lag(pool: PgPool, stream: String, cancel: CancellationToken) {
    loop {
        if let Ok(all) = statuses(&pool).await
            && let Some(status) = all.into_iter().find(|status| status.stream == stream)
        {
            metrics::gauge!("botledger_relay_position").set(status.position.0 as f64);
            metrics::gauge!("botledger_relay_lag_events").set(status.lag_events as f64);
            metrics::gauge!("botledger_relay_lag_seconds").set(status.lag_s as f64);
            metrics::gauge!("botledger_relay_refused").set(if status.state == "refused" { 1.0 } else { 0.0 });
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(WATCH) => {}
        }
    }
}
