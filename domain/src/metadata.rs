use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Version of the metadata object itself.
pub const SCHEMA_VERSION: &str = "1";

/// Who caused an event. Written as one text: `operator:<id>`, `subject:<id>`, `bot:<id>`, `system:<part>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// An operator, by id.
    Operator(Uuid),
    /// A Telegram user, by pseudonym.
    Subject(Uuid),
    /// A part of the platform itself, for example `poller` or `cli`.
    System(&'static str),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator(id) => write!(f, "operator:{id}"),
            Self::Subject(id) => write!(f, "subject:{id}"),
            Self::System(part) => write!(f, "system:{part}"),
        }
    }
}

/// Who, why and from where: stored with every event. All values are text, the shape cqrs-es reads
/// (`HashMap<String, String>`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventMetadata {
    /// See [`Actor`].
    pub actor: String,
    /// One id for everything that follows from one cause outside (an update, an API request).
    pub correlation_id: String,
    /// What directly caused this event: a command's or an event's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<String>,
    /// Same key twice: same answer, no second event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// The process that wrote it.
    pub instance: String,
    /// Where the command came from: `telegram`, `graphql`, `cli`, `recovery`.
    pub source: String,
    /// [`SCHEMA_VERSION`].
    pub schema_version: String,
}

impl EventMetadata {
    /// Metadata of a command without causation or idempotency key.
    #[must_use]
    pub fn new(actor: &Actor, correlation_id: Uuid, instance: Uuid, source: &str) -> Self {
        Self {
            actor: actor.to_string(),
            correlation_id: correlation_id.to_string(),
            causation_id: None,
            idempotency_key: None,
            instance: instance.to_string(),
            source: source.to_owned(),
            schema_version: SCHEMA_VERSION.to_owned(),
        }
    }

    /// The same with an idempotency key.
    #[must_use]
    pub fn with_idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// The same with the id of what directly caused it.
    #[must_use]
    pub fn caused_by(mut self, id: impl fmt::Display) -> Self {
        self.causation_id = Some(id.to_string());
        self
    }
}
