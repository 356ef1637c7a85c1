//! Bringing stored payloads to the newest version of their event.
//!
//! An upcaster works on raw JSON, by event type and stored version. None is needed yet: every event
//! stands at 1.0. A stored version without a path is an error, never a guess.

use serde::de::{DeserializeOwned, Error};

/// Decodes a stored payload, straight from text to the domain type.
///
/// # Errors
/// When the version has no path to the present one, or the payload does not fit.
pub fn decode<E: DeserializeOwned>(
    event_type: &str,
    version: &str,
    payload: &str,
) -> Result<E, serde_json::Error> {
    match version {
        "1.0" => serde_json::from_str(payload),
        other => Err(serde_json::Error::custom(format!("no upcaster from {event_type} {other}"))),
    }
}
