//! The tail of a process: one reader of new events, a ring of recent ones, any number of followers.
//! Nobody gets an event from it that a crash of the server could still take back
//! (`ops/decisions/0008`).

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use botledger_domain::{Position, RecordedEvent};
use futures::{Stream, stream};
use sqlx::{PgExecutor, PgPool, postgres::PgListener};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::LogReader;

/// Recent events kept in memory.
const RING: usize = 65_536;
/// Events read from the database at once.
const PAGE: i64 = 1_000;
/// `NOTIFY` is fast, this is correct.
const POLL: Duration = Duration::from_secs(1);

/// Between two looks at whether the disk has what was read. Its writer is flushing at that moment.
const FLUSH_POLL: Duration = Duration::from_millis(1);

/// Why a follower's stream ended.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The database failed; resume from the last position received.
    #[error("the ledger cannot be read")]
    Database(#[from] sqlx::Error),
    /// The process is shutting down.
    #[error("the tail has stopped")]
    Stopped,
}

/// Follows the ledger. Cheap to clone.
#[derive(Clone)]
pub struct Tail {
    shared: Arc<Shared>,
}

struct Shared {
    reader: LogReader,
    ring: Mutex<VecDeque<Arc<RecordedEvent>>>,
    /// Position of the newest event in the ring, or where the tail began. Everything up to it is durable.
    head: watch::Sender<Position>,
    cancel: CancellationToken,
}

impl Tail {
    /// Starts following at the present end of the ledger, until cancelled.
    ///
    /// # Errors
    /// When the database fails at the start; later failures are retried.
    pub async fn start(pool: PgPool, cancel: CancellationToken) -> Result<Self, sqlx::Error> {
        let reader = LogReader::new(pool.clone());
        let (head, _) = watch::channel(reader.head().await?);
        reader.flushed().await?;
        let tail = Self { shared: Arc::new(Shared { reader, ring: Mutex::default(), head, cancel }) };
        tokio::spawn(Arc::clone(&tail.shared).follow(pool));
        Ok(tail)
    }

    /// The newest position the tail has seen.
    #[must_use]
    pub fn head(&self) -> Position {
        *self.shared.head.borrow()
    }

    /// Tells of every new head.
    #[must_use]
    pub fn watch_head(&self) -> watch::Receiver<Position> {
        self.shared.head.subscribe()
    }

    /// All events after a position, each once and in order: first what the database holds, then as
    /// they come.
    pub fn follow(
        &self,
        after: Position,
    ) -> impl Stream<Item = Result<Arc<RecordedEvent>, TailError>> + Send + use<> {
        let follower = Follower {
            shared: Arc::clone(&self.shared),
            head: self.watch_head(),
            last: after,
            ready: VecDeque::new(),
        };
        stream::try_unfold(
            follower,
            |mut follower| async move { Ok(Some((follower.next().await?, follower))) },
        )
    }

    /// The next events after a position, at most `limit`; from memory where it reaches that far, else
    /// over the connection in hand.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn page(
        &self,
        connection: impl PgExecutor<'_>,
        after: Position,
        limit: usize,
    ) -> Result<Vec<Arc<RecordedEvent>>, sqlx::Error> {
        self.shared.page(connection, after, limit).await
    }
}

struct Follower {
    shared: Arc<Shared>,
    head: watch::Receiver<Position>,
    last: Position,
    ready: VecDeque<Arc<RecordedEvent>>,
}

impl Follower {
    async fn next(&mut self) -> Result<Arc<RecordedEvent>, TailError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.last = event.position;
                return Ok(event);
            }
            // Seen before the page is read: a head that moves meanwhile wakes the wait below.
            self.head.borrow_and_update();
            let limit = usize::try_from(PAGE).unwrap_or(1_000);
            self.ready = self.shared.page(self.shared.reader.pool(), self.last, limit).await?.into();
            if self.ready.is_empty() {
                tokio::select! {
                    () = self.shared.cancel.cancelled() => return Err(TailError::Stopped),
                    changed = self.head.changed() => changed.map_err(|_| TailError::Stopped)?,
                }
            }
        }
    }
}

impl Shared {
    fn recent(&self, after: Position, limit: usize) -> Option<Vec<Arc<RecordedEvent>>> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let first = ring.front()?.position;
        if after.0 + 1 < first.0 {
            return None;
        }
        // Positions are dense, so the place in the ring is arithmetic.
        let skip = usize::try_from(after.0 + 1 - first.0).ok()?;
        Some(ring.iter().skip(skip).take(limit).cloned().collect())
    }

    async fn page(
        &self,
        connection: impl PgExecutor<'_>,
        after: Position,
        limit: usize,
    ) -> Result<Vec<Arc<RecordedEvent>>, sqlx::Error> {
        let head = *self.head.borrow();
        if after >= head {
            return Ok(Vec::new());
        }
        if let Some(recent) = self.recent(after, limit) {
            return Ok(recent);
        }
        // The table holds more than is known to be durable.
        let limit = i64::try_from(limit).unwrap_or(PAGE).min(head.0 - after.0);
        let events = LogReader::after_in(connection, after, limit).await?;
        Ok(events.into_iter().map(Arc::new).collect())
    }

    async fn follow(self: Arc<Self>, pool: PgPool) {
        let mut listener: Option<PgListener> = None;
        loop {
            if listener.is_none() {
                listener = listen(&pool).await;
            }
            let pulled = tokio::select! {
                () = self.cancel.cancelled() => return,
                pulled = self.pull() => pulled,
            };
            match pulled {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(error = %error, "the tail cannot read the ledger; trying again");
                    listener = None;
                }
            }
            let woken = async {
                match listener.as_mut() {
                    // One notice is as good as many: what it says is read from the table.
                    Some(notices) => notices.recv().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.cancel.cancelled() => return,
                woken = tokio::time::timeout(POLL, woken) => {
                    if woken == Ok(false) {
                        listener = None;
                    }
                }
            }
        }
    }

    async fn pull(&self) -> Result<(), sqlx::Error> {
        loop {
            let last = *self.head.borrow();
            let events = self.reader.after(last, PAGE).await?;
            let Some(newest) = events.last().map(|event| event.position) else { return Ok(()) };
            let mut expected = last.0 + 1;
            for event in &events {
                if event.position.0 != expected {
                    metrics::counter!("botledger_tail_gaps_total").increment(1);
                    tracing::error!(
                        expected,
                        found = event.position.0,
                        "the ledger has a gap: this must not happen"
                    );
                    expected = event.position.0;
                }
                expected += 1;
            }
            self.reader.flushed().await?;
            {
                let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
                ring.extend(events.into_iter().map(Arc::new));
                let surplus = ring.len().saturating_sub(RING);
                ring.drain(..surplus);
            }
            self.head.send_replace(newest);
        }
    }
}

impl LogReader {
    /// Waits until all that is committed by now would survive a crash of the server: before anybody is
    /// shown what was read. A batch commits before it is flushed; whoever wrote it is flushing it, and
    /// else the server does within a moment.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn flushed(&self) -> Result<(), sqlx::Error> {
        let written = sqlx::query_scalar!(r#"SELECT pg_current_wal_insert_lsn()::text AS "written!""#)
            .fetch_one(self.pool())
            .await?;
        loop {
            let flushed = sqlx::query_scalar!(
                r#"SELECT pg_current_wal_flush_lsn() >= $1::text::pg_lsn AS "flushed!""#,
                written,
            )
            .fetch_one(self.pool())
            .await?;
            if flushed {
                return Ok(());
            }
            tokio::time::sleep(FLUSH_POLL).await;
        }
    }
}

async fn listen(pool: &PgPool) -> Option<PgListener> {
    let mut listener = PgListener::connect_with(pool).await.ok()?;
    listener.listen("botledger_events").await.ok()?;
    Some(listener)
}
