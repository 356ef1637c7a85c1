use std::collections::HashMap;

use botledger_domain::EventMetadata;
use cqrs_es::{
    Aggregate,
    persist::{
        PersistedEventRepository, PersistenceError, ReplayStream, SerializedEvent, SerializedSnapshot,
    },
};
use futures::TryStreamExt;
use serde_json::Value;

use crate::{AppendError, AppendSet, Journal, JournalError};

/// The journal as cqrs-es's repository: what `PersistedEventStore::new_event_store` works on. It
/// passes the same conformance tests as postgres-es. There are no snapshots: cqrs-es 0.5 applies
/// events twice when it takes them.
#[derive(Clone)]
pub struct JournalRepository {
    journal: Journal,
}

impl JournalRepository {
    /// A repository over this journal.
    #[must_use]
    pub fn new(journal: Journal) -> Self {
        Self { journal }
    }
}

struct StoredRow {
    aggregate_id: String,
    sequence: i64,
    event_type: String,
    event_version: String,
    payload: Value,
    metadata: Value,
}

impl StoredRow {
    fn into_event(self, aggregate_type: &str) -> SerializedEvent {
        SerializedEvent {
            aggregate_id: self.aggregate_id,
            sequence: usize::try_from(self.sequence).unwrap_or(usize::MAX),
            aggregate_type: aggregate_type.to_owned(),
            event_type: self.event_type,
            event_version: self.event_version,
            payload: self.payload,
            metadata: self.metadata,
        }
    }
}

fn unknown(error: impl std::error::Error + Send + Sync + 'static) -> PersistenceError {
    PersistenceError::UnknownError(Box::new(error))
}

fn of_append(error: AppendError) -> PersistenceError {
    match error {
        AppendError::Conflict { .. } => PersistenceError::OptimisticLockError,
        AppendError::Unavailable { .. } | AppendError::Closed => {
            PersistenceError::ConnectionError(Box::new(error))
        }
        other => unknown(other),
    }
}

fn of_database(error: sqlx::Error) -> PersistenceError {
    PersistenceError::ConnectionError(Box::new(JournalError::from(error)))
}

impl PersistedEventRepository for JournalRepository {
    async fn get_events<A: Aggregate>(
        &self,
        aggregate_id: &str,
    ) -> Result<Vec<SerializedEvent>, PersistenceError> {
        self.get_last_events::<A>(aggregate_id, 0).await
    }

    async fn get_last_events<A: Aggregate>(
        &self,
        aggregate_id: &str,
        last_sequence: usize,
    ) -> Result<Vec<SerializedEvent>, PersistenceError> {
        let rows = sqlx::query_as!(
            StoredRow,
            "SELECT aggregate_id, sequence, event_type, event_version, payload, metadata FROM events
             WHERE aggregate_type = $1 AND aggregate_id = $2 AND sequence > $3 ORDER BY sequence",
            A::TYPE,
            aggregate_id,
            i64::try_from(last_sequence).map_err(unknown)?,
        )
        .fetch_all(self.journal.pool())
        .await
        .map_err(of_database)?;
        Ok(rows.into_iter().map(|row| row.into_event(A::TYPE)).collect())
    }

    async fn get_snapshot<A: Aggregate>(
        &self,
        _aggregate_id: &str,
    ) -> Result<Option<SerializedSnapshot>, PersistenceError> {
        Ok(None)
    }

    async fn persist<A: Aggregate>(
        &self,
        events: &[SerializedEvent],
        snapshot_update: Option<(String, Value, usize)>,
    ) -> Result<(), PersistenceError> {
        if snapshot_update.is_some() {
            return Err(PersistenceError::UnknownError("the ledger keeps no snapshots of cqrs-es".into()));
        }
        let Some(first) = events.first() else { return Ok(()) };
        let metadata: HashMap<String, String> = serde_json::from_value(first.metadata.clone())?;
        let metadata: EventMetadata = serde_json::from_value(serde_json::to_value(metadata)?)?;
        let mut set = AppendSet::new(metadata);
        for event in events {
            let before = i64::try_from(event.sequence).map_err(unknown)? - 1;
            set.push(
                A::TYPE,
                &event.aggregate_id,
                before,
                event.event_type.clone(),
                event.event_version.clone(),
                event.payload.to_string(),
            );
        }
        self.journal.append(set).await.map_err(of_append)?;
        Ok(())
    }

    async fn stream_events<A: Aggregate>(
        &self,
        aggregate_id: &str,
    ) -> Result<ReplayStream, PersistenceError> {
        let (mut feed, stream) = ReplayStream::new(STREAM_AHEAD);
        let (pool, id) = (self.journal.pool().clone(), aggregate_id.to_owned());
        tokio::spawn(async move {
            let mut rows = sqlx::query_as!(
                StoredRow,
                "SELECT aggregate_id, sequence, event_type, event_version, payload, metadata FROM events
                 WHERE aggregate_type = $1 AND aggregate_id = $2 ORDER BY sequence",
                A::TYPE,
                id,
            )
            .fetch(&pool);
            feed_all(&mut feed, A::TYPE, &mut rows).await;
        });
        Ok(stream)
    }

    async fn stream_all_events<A: Aggregate>(&self) -> Result<ReplayStream, PersistenceError> {
        let (mut feed, stream) = ReplayStream::new(STREAM_AHEAD);
        let pool = self.journal.pool().clone();
        tokio::spawn(async move {
            let mut rows = sqlx::query_as!(
                StoredRow,
                "SELECT aggregate_id, sequence, event_type, event_version, payload, metadata FROM events
                 WHERE aggregate_type = $1 ORDER BY position",
                A::TYPE,
            )
            .fetch(&pool);
            feed_all(&mut feed, A::TYPE, &mut rows).await;
        });
        Ok(stream)
    }
}

/// Events read ahead of a slow consumer.
const STREAM_AHEAD: usize = 200;

/// Feeds rows until the end, or until a failure, which the consumer gets to see: a stream that just
/// ended would look complete.
async fn feed_all(
    feed: &mut cqrs_es::persist::ReplayFeed,
    aggregate_type: &'static str,
    rows: &mut (impl futures::Stream<Item = Result<StoredRow, sqlx::Error>> + Unpin + Send),
) {
    loop {
        let item = match rows.try_next().await {
            Ok(Some(row)) => Ok(row.into_event(aggregate_type)),
            Ok(None) => return,
            Err(error) => Err(of_database(error)),
        };
        let failed = item.is_err();
        if feed.push(item).await.is_err() || failed {
            return;
        }
    }
}
