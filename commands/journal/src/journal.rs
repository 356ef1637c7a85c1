use std::{any::Any, sync::Arc};

use botledger_domain::{BodyId, Position};
use moka::sync::Cache;
use sqlx::PgPool;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::{AppendError, AppendSet, Receipt, writer};

/// How the writer works.
#[derive(Clone, Copy, Debug)]
pub struct JournalConfig {
    /// Events in one batch at most; a larger set makes a batch of its own.
    pub max_batch_events: usize,
    /// Append sets that may wait before callers do.
    pub queue: usize,
    /// Aggregates kept in memory.
    pub cache_capacity: u64,
    /// Longest a batch may take before its callers are told that the ledger is not available.
    pub timeout: std::time::Duration,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            max_batch_events: 512,
            queue: 4_096,
            cache_capacity: 50_000,
            timeout: std::time::Duration::from_secs(10),
        }
    }
}

/// A ledger that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database failed.
    #[error("the ledger cannot be read")]
    Database(#[from] sqlx::Error),
    /// A stored event does not fit its type and version.
    #[error("the event at position {position} does not decode")]
    Decode {
        /// Where it stands.
        position: Position,
        /// What the decoder said.
        #[source]
        source: serde_json::Error,
    },
    /// A body row holds values no writer of ours stores.
    #[error("message body {body_id} is malformed")]
    MalformedBody {
        /// Which.
        body_id: BodyId,
    },
    /// A lease time PostgreSQL cannot hold.
    #[error("a lease time must be whole microseconds")]
    LeaseTime,
}

type CacheKey = (&'static str, String);
type CacheEntry = Arc<dyn Any + Send + Sync>;

/// The ledger as its writers see it. Cheap to clone; all clones share one writer task.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

struct Shared {
    pool: PgPool,
    cache: Cache<CacheKey, CacheEntry>,
    queue: mpsc::Sender<writer::Request>,
    writer: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Journal {
    /// Starts the writer. It opens two connections of its own beside the pool, on first use, and
    /// opens them again when they break.
    #[must_use]
    pub fn open(pool: PgPool, config: JournalConfig) -> Self {
        let (queue, requests) = mpsc::channel(config.queue);
        let writer = tokio::spawn(writer::run(pool.connect_options(), config, requests));
        let cache = Cache::new(config.cache_capacity);
        Self { shared: Arc::new(Shared { pool, cache, queue, writer: Mutex::new(Some(writer)) }) }
    }

    /// Appends one set and waits until it is durable. An empty set succeeds without being written,
    /// once everything that was seen before it is durable: "already so" may rest on another's commit.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing of the set was written, except that after
    /// [`AppendError::Unavailable`] nobody knows.
    pub async fn append(&self, set: AppendSet) -> Result<Receipt, AppendError> {
        let answer = self.submit(set).await?;
        answer.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Appends several independent sets; they share a batch where they can. Answers in order.
    pub async fn append_all(&self, sets: Vec<AppendSet>) -> Vec<Result<Receipt, AppendError>> {
        let mut answers = Vec::with_capacity(sets.len());
        for set in sets {
            answers.push(self.submit(set).await);
        }
        let mut results = Vec::with_capacity(answers.len());
        for answer in answers {
            results.push(match answer {
                Ok(answer) => answer.await.unwrap_or(Err(AppendError::Closed)),
                Err(error) => Err(error),
            });
        }
        results
    }

    async fn submit(
        &self,
        set: AppendSet,
    ) -> Result<oneshot::Receiver<Result<Receipt, AppendError>>, AppendError> {
        let (reply, answer) = oneshot::channel();
        let request = writer::Request::new(set, reply);
        self.shared.queue.send(request).await.map_err(|_| AppendError::Closed)?;
        metrics::gauge!("botledger_journal_queue_depth")
            .set((self.shared.queue.max_capacity() - self.shared.queue.capacity()) as f64);
        Ok(answer)
    }

    /// The receipt of an earlier set by its idempotency key; durable, as every receipt.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_receipt(&self, idempotency_key: &str) -> Result<Option<Receipt>, JournalError> {
        let row = sqlx::query!(
            r#"SELECT position, set_size AS "set_size!" FROM events WHERE idempotency_key = $1"#,
            idempotency_key,
        )
        .fetch_optional(self.pool())
        .await?;
        if row.is_some() {
            // Seen is not flushed yet: an empty set is answered behind everything that was seen.
            self.append(writer::nothing()).await.map_err(|error| match error {
                AppendError::Unavailable { source } | AppendError::Invalid { source } => source,
                _ => sqlx::Error::PoolClosed,
            })?;
        }
        Ok(row.map(|row| Receipt::of_range(row.position, row.set_size, vec![], true)))
    }

    /// The position of the newest event; 0 in an empty ledger.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn head(&self) -> Result<Position, JournalError> {
        let head = sqlx::query_scalar!(r#"SELECT coalesce(max(position), 0) AS "head!" FROM events"#)
            .fetch_one(self.pool())
            .await?;
        Ok(Position(head))
    }

    /// Stops taking sets, writes what waits, and returns when it is durable.
    pub async fn close(&self) {
        let writer = self.shared.writer.lock().await.take();
        if let Some(writer) = writer {
            let (reply, _) = oneshot::channel();
            // The writer ends after the set that is marked as the last one.
            let last = writer::Request::last(reply);
            if self.shared.queue.send(last).await.is_ok() {
                let _ = writer.await;
            }
        }
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.shared.pool
    }

    pub(crate) fn cache(&self) -> &Cache<CacheKey, CacheEntry> {
        &self.shared.cache
    }
}

/// Tells the metrics recorder what the journal's metrics mean.
pub fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_histogram!(
        "botledger_journal_append_seconds",
        Unit::Seconds,
        "From handing in an append set to its durable receipt"
    );
    describe_histogram!("botledger_journal_batch_events", Unit::Count, "Events written by one batch");
    describe_counter!("botledger_journal_appended_total", Unit::Count, "Events written");
    describe_counter!(
        "botledger_journal_batches_apart_total",
        Unit::Count,
        "Batches in which a set had to be refused or was known already"
    );
    describe_counter!(
        "botledger_journal_conflicts_total",
        Unit::Count,
        "Append sets refused for a stale version"
    );
    describe_counter!(
        "botledger_journal_fenced_total",
        Unit::Count,
        "Append sets refused for an old lease epoch"
    );
    describe_counter!("botledger_journal_failures_total", Unit::Count, "Batches that failed, by cause");
    describe_gauge!("botledger_journal_queue_depth", Unit::Count, "Append sets waiting for the writer");
}
