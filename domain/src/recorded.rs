use chrono::{DateTime, Utc};
use cqrs_es::Aggregate;

use crate::{EventMetadata, Position, upcast};

/// One event as it stands in the ledger.
#[derive(Clone, Debug)]
pub struct RecordedEvent {
    /// Global place, dense from 1.
    pub position: Position,
    /// When the batch that carried it was written, by the database's clock. Order by position, not by this.
    pub recorded_at: DateTime<Utc>,
    /// `Aggregate::TYPE`.
    pub aggregate_type: String,
    /// The stream's id.
    pub aggregate_id: String,
    /// Place in the stream, from 1.
    pub sequence: i64,
    /// Wire name, snake_case past tense.
    pub event_type: String,
    /// Wire version, for example `1.0`.
    pub event_version: String,
    /// The stored JSON text, never re-serialised.
    pub payload: String,
    /// The stored JSON text of [`EventMetadata`], never re-serialised.
    pub metadata: String,
}

/// A stored event that does not fit its declared type and version.
#[derive(Debug, thiserror::Error)]
#[error("event {position} ({event_type} {event_version}) does not decode")]
pub struct DecodeError {
    /// Where it stands.
    pub position: Position,
    /// Its stored type.
    pub event_type: String,
    /// Its stored version.
    pub event_version: String,
    /// What the decoder said.
    #[source]
    pub source: serde_json::Error,
}

impl RecordedEvent {
    /// The event, if it belongs to aggregate `A`; brought to the newest version first.
    ///
    /// # Errors
    /// When the payload does not fit its declared type and version.
    pub fn decode<A: Aggregate>(&self) -> Result<Option<A::Event>, DecodeError> {
        if self.aggregate_type != A::TYPE {
            return Ok(None);
        }
        upcast::decode::<A::Event>(&self.event_type, &self.event_version, &self.payload)
            .map(Some)
            .map_err(|source| self.decode_error(source))
    }

    /// Who, why and from where.
    ///
    /// # Errors
    /// When the stored metadata is not the object it should be.
    pub fn decode_metadata(&self) -> Result<EventMetadata, DecodeError> {
        serde_json::from_str(&self.metadata).map_err(|source| self.decode_error(source))
    }

    fn decode_error(&self, source: serde_json::Error) -> DecodeError {
        DecodeError {
            position: self.position,
            event_type: self.event_type.clone(),
            event_version: self.event_version.clone(),
            source,
        }
    }
}
