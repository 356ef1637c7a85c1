//! What leaves: one event of the ledger as one event of the target.

use botledger_domain::{Position, RecordedEvent};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use eventstore::EventData;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

/// The id of an event in the target: the same for the same position of the same installation, whoever
/// relays it and however often, so that the target recognises a repetition.
#[must_use]
pub fn event_id(installation: Uuid, position: Position) -> Uuid {
    Uuid::new_v5(&installation, format!("position/{position}").as_bytes())
}

/// An event on its way.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) position: Position,
    pub(crate) data: EventData,
}

/// What stands beside the payload: everything that the leaf hash is taken over, so that whoever reads the
/// target can take it again.
#[derive(Serialize)]
struct Envelope<'a> {
    installation: Uuid,
    position: i64,
    recorded_at: String,
    aggregate_type: &'a str,
    aggregate_id: &'a str,
    sequence: i64,
    event_version: &'a str,
    leaf_hash: String,
    /// As stored, letter by letter.
    metadata: &'a RawValue,
    /// The target's own projections group by these.
    #[serde(rename = "$correlationId", skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(rename = "$causationId", skip_serializing_if = "Option::is_none")]
    causation_id: Option<String>,
}

/// What is read back of it.
#[derive(Debug, Deserialize)]
pub(crate) struct Mark {
    pub(crate) installation: Uuid,
    pub(crate) position: i64,
    pub(crate) leaf_hash: String,
}

impl Mark {
    /// Nothing where the event is not of a relay.
    pub(crate) fn read(metadata: &[u8]) -> Option<Self> {
        serde_json::from_slice(metadata).ok()
    }
}

impl Outgoing {
    /// # Errors
    /// When payload or metadata are no JSON.
    pub(crate) fn new(
        installation: Uuid,
        event: &RecordedEvent,
        leaf_hash: &[u8],
    ) -> Result<Self, serde_json::Error> {
        let payload: &RawValue = serde_json::from_str(&event.payload)?;
        let metadata: &RawValue = serde_json::from_str(&event.metadata)?;
        // What does not decode here is relayed all the same; only the groups lack it.
        let known = event.decode_metadata().ok();
        let envelope = Envelope {
            installation,
            position: event.position.0,
            recorded_at: micros(event.recorded_at),
            aggregate_type: &event.aggregate_type,
            aggregate_id: &event.aggregate_id,
            sequence: event.sequence,
            event_version: &event.event_version,
            leaf_hash: hex::encode(leaf_hash),
            metadata,
            correlation_id: known.as_ref().map(|known| known.correlation_id.clone()),
            causation_id: known.and_then(|known| known.causation_id),
        };
        let data = EventData::json(&event.event_type, &payload)?
            .id(event_id(installation, event.position))
            .metadata(Bytes::from(serde_json::to_vec(&envelope)?));
        Ok(Self { position: event.position, data })
    }
}

/// RFC 3339 in UTC with the database's resolution.
fn micros(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_events_id_is_a_function_of_installation_and_position() {
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(event_id(one, Position(7)), event_id(one, Position(7)));
        assert_ne!(event_id(one, Position(7)), event_id(one, Position(8)));
        assert_ne!(event_id(one, Position(7)), event_id(other, Position(7)));
        // Written down, because it must never change: targets hold it.
        assert_eq!(event_id(one, Position(7)).to_string(), "de9f4de7-8c24-586b-a121-d6e8c170f421");
    }
}
