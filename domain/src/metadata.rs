use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Version of the metadata object itself.
pub const SCHEMA_VERSION: &str = "1";

/// Who caused an event. Written as one text: `operator:<id>`, `subject:<id>`, `system:<part>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// An operator, by id.
    Operator(Uuid),
    /// A Telegram user, by pseudonym: wrote a message, or asked for something with one.
    Subject(Uuid),
    /// A part of the platform itself: `intake`, `webhook`, `worker`, `fleet`, `api`; or `cli`, somebody
    /// with a shell on the machine.
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
    /// One id for everything that follows from one cause outside: an update (then it is its turn's id),
    /// an API request, a command at the shell.
    pub correlation_id: String,
    /// What directly caused this event, where that is known: the id of the turn whose message asked for
    /// it, or of the API request that interfered with a turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<String>,
    /// Same key twice: same answer, no second event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// The process that wrote it.
    pub instance: String,
    /// Where the command came from: `telegram` for what people write, `graphql` for what operators ask,
    /// otherwise the part of the platform that acted, as in [`Actor::System`].
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
