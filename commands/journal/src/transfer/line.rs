//! One event, body or row as one line.

use base64::{Engine, prelude::BASE64_STANDARD};
use botledger_domain::{EventMetadata, leaf::Leaf, merkle::Hash};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{as_base64, as_hex};

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// Every column of the ledger under its own name; payload and metadata as strings, letter by letter.
    Ndjson,
    /// CloudEvents 1.0 in structured mode, one a line; payload as data.
    Cloudevents,
}

impl std::fmt::Display for Encoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ndjson => "ndjson",
            Self::Cloudevents => "cloudevents",
        })
    }
}

/// An event with every column that is stored. Fields of the leaf first and in its order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventLine {
    pub(super) position: i64,
    pub(super) recorded_at_micros: i64,
    pub(super) sequence: i64,
    pub(super) aggregate_type: String,
    pub(super) aggregate_id: String,
    pub(super) event_type: String,
    pub(super) event_version: String,
    pub(super) payload: String,
    pub(super) metadata: String,
    #[serde(with = "as_hex")]
    pub(super) leaf_hash: Hash,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) idempotency_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) set_size: Option<i32>,
}

impl EventLine {
    /// Whether the stored hash is that of the other fields.
    pub(super) fn is_whole(&self) -> bool {
        let leaf = Leaf {
            position: self.position,
            recorded_at_micros: self.recorded_at_micros,
            aggregate_type: &self.aggregate_type,
            aggregate_id: &self.aggregate_id,
            sequence: self.sequence,
            event_type: &self.event_type,
            event_version: &self.event_version,
            payload: &self.payload,
            metadata: &self.metadata,
        };
        leaf.hash() == self.leaf_hash
    }

    pub(super) fn encode(&self, encoding: Encoding, ledger: &Hash) -> Vec<u8> {
        match encoding {
            Encoding::Ndjson => as_line(self),
            Encoding::Cloudevents => as_line(&CloudEvent::of(self, ledger)),
        }
    }

    /// Reads a line back. What comes out gives the same line again, so nothing in it was overlooked.
    pub(super) fn decode(line: &[u8], encoding: Encoding, ledger: &Hash) -> Result<Self, String> {
        let event = match encoding {
            Encoding::Ndjson => serde_json::from_slice(line).map_err(|error| error.to_string())?,
            Encoding::Cloudevents => {
                serde_json::from_slice::<CloudEvent>(line).map_err(|error| error.to_string())?.into_event()?
            }
        };
        if event.encode(encoding, ledger) != line {
            return Err("is not written as an export writes it".to_owned());
        }
        Ok(event)
    }
}

pub(super) fn as_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("lines are objects of texts and numbers");
    line.push(b'\n');
    line
}

/// A line of any other kind, with the same strictness.
pub(super) fn from_line<T: Serialize + DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    let value: T = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if as_line(&value) != line {
        return Err("is not written as an export writes it".to_owned());
    }
    Ok(value)
}

/// CloudEvents 1.0.2, JSON format, structured mode. Extensions carry the rest of the row: `sequence` and
/// `correlationid`, `causationid` as the documented extensions of these names define them, 64-bit numbers
/// as texts (an Integer has 32 bits there), names of at most 20 lower-case letters.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CloudEvent {
    specversion: String,
    /// The position: unique in a ledger, and `source` names the ledger.
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    subject: String,
    time: String,
    datacontenttype: String,
    /// The position again, filled up with zeros: it sorts as a text.
    sequence: String,
    streamversion: String,
    dataversion: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    actor: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlationid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    causationid: Option<String>,
    metadata: String,
    leafhash: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    setkey: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    setsize: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    /// A payload that would not survive on one line letter by letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

const TYPE_PREFIX: &str = "botledger.";

impl CloudEvent {
    fn of(event: &EventLine, ledger: &Hash) -> Self {
        let metadata: Option<EventMetadata> = serde_json::from_str(&event.metadata).ok();
        let time = DateTime::<Utc>::from_timestamp_micros(event.recorded_at_micros).unwrap_or_default();
        let plain = RawValue::from_string(event.payload.clone()).ok().filter(|raw| {
            raw.get() == event.payload && raw.get() != "null" && !event.payload.contains(char::is_control)
        });
        let data_base64 = plain.is_none().then(|| BASE64_STANDARD.encode(&event.payload));
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let (actor, correlationid, causationid) = match metadata {
            Some(known) => (some(known.actor), some(known.correlation_id), known.causation_id.and_then(some)),
            None => (None, None, None),
        };
        Self {
            specversion: "1.0".to_owned(),
            id: event.position.to_string(),
            source: format!("urn:botledger:{}", hex::encode(ledger)),
            kind: format!("{TYPE_PREFIX}{}.{}", event.aggregate_type, event.event_type),
            subject: format!("{}/{}", event.aggregate_type, event.aggregate_id),
            time: time.to_rfc3339_opts(SecondsFormat::Micros, true),
            datacontenttype: "application/json".to_owned(),
            sequence: format!("{:019}", event.position),
            streamversion: event.sequence.to_string(),
            dataversion: event.event_version.clone(),
            actor,
            correlationid,
            causationid,
            metadata: event.metadata.clone(),
            leafhash: hex::encode(event.leaf_hash),
            setkey: event.idempotency_key.clone(),
            setsize: event.set_size,
            data: plain,
            data_base64,
        }
    }

    fn into_event(self) -> Result<EventLine, String> {
        let number = |name: &str, text: &str| text.parse().map_err(|_| format!("{name} is no number"));
        let (aggregate_type, aggregate_id) = self.subject.split_once('/').ok_or("subject names no stream")?;
        let event_type = self
            .kind
            .strip_prefix(TYPE_PREFIX)
            .and_then(|rest| rest.strip_prefix(aggregate_type)?.strip_prefix('.'))
            .ok_or("type does not fit subject")?;
        let time: DateTime<Utc> = self.time.parse().map_err(|_| "time is no time")?;
        let payload = match (self.data, self.data_base64) {
            (Some(raw), None) => raw.get().to_owned(),
            (None, Some(encoded)) => BASE64_STANDARD
                .decode(encoded)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or("data_base64 is no text")?,
            _ => return Err("holds no data, or two".to_owned()),
        };
        Ok(EventLine {
            position: number("id", &self.id)?,
            recorded_at_micros: time.timestamp_micros(),
            sequence: number("streamversion", &self.streamversion)?,
            aggregate_type: aggregate_type.to_owned(),
            aggregate_id: aggregate_id.to_owned(),
            event_type: event_type.to_owned(),
            event_version: self.dataversion,
            payload,
            metadata: self.metadata,
            leaf_hash: super::parse_hash(&self.leafhash)
                .map_err(|problem| format!("leafhash is {problem}"))?,
            idempotency_key: self.setkey,
            set_size: self.setsize,
        })
    }
}

/// A sealed body, as it is stored: nobody can read it without the keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BodyLine {
    pub(super) body_id: Uuid,
    pub(super) owner: Uuid,
    pub(super) purpose: String,
    pub(super) key_version: i32,
    #[serde(with = "as_base64")]
    pub(super) nonce: Vec<u8>,
    #[serde(with = "as_base64")]
    pub(super) ciphertext: Vec<u8>,
    pub(super) turn_id: Uuid,
    pub(super) position: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) conversation: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) session: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) context_epoch: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) prompt_body: Option<Uuid>,
}

/// What beside the events decides how things go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum StateLine {
    /// About an event that stopped a read model: a rebuild obeys it.
    Decision {
        name: String,
        position: i64,
        decision: String,
        reason: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        operator_id: Option<Uuid>,
        decided_at_micros: i64,
    },
    /// The next epoch of this bot has to be higher.
    BotEpoch { bot_id: Uuid, epoch: i64 },
}

/// What only moving house needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum HouseLine {
    /// A person's or a bot's data key, wrapped by a master key.
    DataKey {
        owner: Uuid,
        purpose: String,
        version: i32,
        #[serde(with = "as_base64")]
        wrapped: Vec<u8>,
        master_version: i32,
        created_at_micros: i64,
    },
    /// How an operator gets in.
    Login {
        login: String,
        operator_id: Uuid,
        workspace: Uuid,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        password_hash: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEDGER: Hash = [7; 32];

    fn event(payload: &str, metadata: &str) -> EventLine {
        EventLine {
            position: 9_007_199_254_740_993,
            recorded_at_micros: 1_795_000_000_000_001,
            sequence: 3,
            aggregate_type: "turn".to_owned(),
            aggregate_id: "a/b".to_owned(),
            event_type: "message_received".to_owned(),
            event_version: "1.0".to_owned(),
            payload: payload.to_owned(),
            metadata: metadata.to_owned(),
            leaf_hash: [1; 32],
            idempotency_key: Some("w/k".to_owned()),
            set_size: Some(2),
        }
    }

    proptest! {
        #[test]
        fn every_event_comes_back_letter_by_letter_from_one_line(
            payload in prop_oneof![
                Just("null".to_owned()), Just(" {\"a\" : 1}\n".to_owned()), Just("{\"z\":1e400}".to_owned()),
                "\\{\"[a-zЁ-ӿ😀-😎]{0,9}\": ?[0-9]{1,30}\\}", "[^\\x00]{0,30}",
            ],
            metadata in "[^\\x00]{0,30}",
        ) {
            let event = event(&payload, &metadata);
            for encoding in [Encoding::Ndjson, Encoding::Cloudevents] {
                let line = event.encode(encoding, &LEDGER);
                prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
                prop_assert_eq!(EventLine::decode(&line, encoding, &LEDGER), Ok(event.clone()));
            }
        }
    }

    #[test]
    fn a_cloud_event_says_what_the_specification_asks_for() {
        let metadata = r#"{"actor":"subject:1","correlation_id":"c","instance":"i","source":"telegram","schema_version":"1"}"#;
        let line =
            event(r#"{"type":"message_received","n":1.50}"#, metadata).encode(Encoding::Cloudevents, &LEDGER);
        let text = String::from_utf8(line).unwrap();
        assert!(text.contains(r#""data":{"type":"message_received","n":1.50}"#), "{text}");
        let said: serde_json::Value = serde_json::from_str(&text).unwrap();
        let attributes = said.as_object().unwrap();
        for (name, value) in [
            ("specversion", "1.0"),
            ("id", "9007199254740993"),
            ("type", "botledger.turn.message_received"),
            ("subject", "turn/a/b"),
            ("time", "2026-11-18T11:06:40.000001Z"),
            ("datacontenttype", "application/json"),
            ("sequence", "0009007199254740993"),
            ("correlationid", "c"),
        ] {
            assert_eq!(attributes[name], value, "{name}");
        }
        let lawful = |name: &&String| {
            name.len() <= 20 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        assert!(attributes.keys().all(|name| lawful(&name)), "{attributes:?}");
    }

    #[test]
    fn a_line_that_says_more_or_otherwise_is_refused() {
        let line = String::from_utf8(event("{}", "{}").encode(Encoding::Ndjson, &LEDGER)).unwrap();
        let refused = |line: &str| EventLine::decode(line.as_bytes(), Encoding::Ndjson, &LEDGER).unwrap_err();
        assert!(refused(&line.replacen('{', "{\"more\":1,", 1)).contains("unknown field"));
        assert!(refused(&line.replacen("\":", "\": ", 1)).contains("not written as an export"));
        assert!(refused("\n").contains("EOF"));
        let cloud = String::from_utf8(event("{}", "{}").encode(Encoding::Cloudevents, &LEDGER)).unwrap();
        let elsewhere = EventLine::decode(cloud.as_bytes(), Encoding::Cloudevents, &[8; 32]);
        assert!(elsewhere.is_err(), "another ledger's event");
    }
}
