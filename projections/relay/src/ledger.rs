//! The ledger's side: batches of what is to leave, each event proven to be what was recorded.

use botledger_domain::{Position, RecordedEvent, leaf::Leaf};
use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use crate::outgoing::Outgoing;

/// What an event weighs beside payload and metadata, in bytes: names, ids, hashes and their wrapping.
const ENVELOPE: i64 = 1_024;

/// Why a batch cannot be put together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error("the ledger cannot be read")]
    Database(#[from] sqlx::Error),
    #[error("event {0} is not what was recorded: its leaf hash does not fit")]
    Altered(Position),
    #[error("position {0} is missing from the ledger")]
    Missing(Position),
    #[error("event {position} cannot be put into JSON")]
    Unfit {
        position: Position,
        #[source]
        source: serde_json::Error,
    },
}

/// How much leaves at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchLimit {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

pub(crate) struct Ledger {
    pool: PgPool,
    installation: Uuid,
}

struct Row {
    position: i64,
    recorded_at: DateTime<Utc>,
    aggregate_type: String,
    aggregate_id: String,
    sequence: i64,
    event_type: String,
    event_version: String,
    payload: String,
    metadata: String,
    leaf_hash: Vec<u8>,
}

impl Ledger {
    pub(crate) async fn open(pool: PgPool) -> Result<Self, sqlx::Error> {
        let installation =
            sqlx::query_scalar!("SELECT id FROM installation WHERE one").fetch_one(&pool).await?;
        Ok(Self { pool, installation })
    }

    pub(crate) fn installation(&self) -> Uuid {
        self.installation
    }

    /// The leaf hash at a position; nothing beyond the end.
    pub(crate) async fn leaf(&self, position: Position) -> Result<Option<Vec<u8>>, sqlx::Error> {
        sqlx::query_scalar!("SELECT leaf_hash FROM events WHERE position = $1", position.0)
            .fetch_optional(&self.pool)
            .await
    }

    /// The next events after a position and up to another, which must be durable. As many as the limit
    /// allows, but one at least: one that is too large by itself is for the target to refuse.
    pub(crate) async fn batch(
        &self,
        after: Position,
        upto: Position,
        limit: BatchLimit,
    ) -> Result<Vec<Outgoing>, LedgerError> {
        let rows = sqlx::query_as!(
            Row,
            r#"SELECT position, recorded_at, aggregate_type, aggregate_id, sequence, event_type, event_version,
                      payload AS "payload!", metadata AS "metadata!", leaf_hash
               FROM (
                   SELECT position, recorded_at, aggregate_type, aggregate_id, sequence, event_type,
                          event_version, payload::text AS payload, metadata::text AS metadata, leaf_hash,
                          sum(octet_length(payload::text) + octet_length(metadata::text) + $5::bigint)
                              OVER (ORDER BY position) AS bytes
                   FROM events WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3
               ) AS next
               WHERE bytes <= $4::bigint OR position = $1 + 1 ORDER BY position"#,
            after.0,
            upto.0,
            i64::try_from(limit.events).unwrap_or(i64::MAX),
            i64::try_from(limit.bytes).unwrap_or(i64::MAX),
            ENVELOPE,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut expected = after.0;
        let mut batch = Vec::with_capacity(rows.len());
        for row in rows {
            expected += 1;
            if row.position != expected {
                return Err(LedgerError::Missing(Position(expected)));
            }
            batch.push(self.outgoing(row)?);
        }
        if batch.is_empty() && upto > after {
            return Err(LedgerError::Missing(Position(expected + 1)));
        }
        Ok(batch)
    }

    fn outgoing(&self, row: Row) -> Result<Outgoing, LedgerError> {
        let leaf = Leaf {
            position: row.position,
            recorded_at_micros: row.recorded_at.timestamp_micros(),
            aggregate_type: &row.aggregate_type,
            aggregate_id: &row.aggregate_id,
            sequence: row.sequence,
            event_type: &row.event_type,
            event_version: &row.event_version,
            payload: &row.payload,
            metadata: &row.metadata,
        };
        let position = Position(row.position);
        // Nobody takes back what has left, so what somebody has changed in the database does not leave.
        if leaf.hash().as_slice() != row.leaf_hash {
            return Err(LedgerError::Altered(position));
        }
        let event = RecordedEvent {
            position,
            recorded_at: row.recorded_at,
            aggregate_type: row.aggregate_type,
            aggregate_id: row.aggregate_id,
            sequence: row.sequence,
            event_type: row.event_type,
            event_version: row.event_version,
            payload: row.payload,
            metadata: row.metadata,
        };
        Outgoing::new(self.installation, &event, &row.leaf_hash)
            .map_err(|source| LedgerError::Unfit { position, source })
    }
}
