use std::{any::Any, collections::HashMap, sync::Arc};

use botledger_domain::{BotId, Decide, EventMetadata, Position};
use chrono::{DateTime, Utc};
use cqrs_es::DomainEvent;

use crate::{Loaded, NewBody};

/// Events of one or more streams, sealed bodies and a fence that stand or fall together.
#[derive(Clone, Debug)]
pub struct AppendSet {
    pub(crate) metadata: EventMetadata,
    pub(crate) events: Vec<NewEvent>,
    /// Version each stream must have before the set, by type and id.
    pub(crate) expected: HashMap<(&'static str, String), i64>,
    /// Version each stream must have that the set only rests on.
    pub(crate) seen: HashMap<(&'static str, String), i64>,
    pub(crate) bodies: Vec<NewBody>,
    pub(crate) fence: Option<(BotId, i64)>,
    kept: Vec<Kept>,
}

/// Something that lives as long as a set.
#[derive(Clone)]
struct Kept(#[expect(dead_code, reason = "only its end means something")] Arc<dyn Any + Send + Sync>);

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kept")
    }
}

/// One event on its way in; texts exactly as they will stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewEvent {
    pub(crate) aggregate_type: &'static str,
    pub(crate) aggregate_id: String,
    pub(crate) sequence: i64,
    pub(crate) event_type: String,
    pub(crate) event_version: String,
    pub(crate) payload: String,
    pub(crate) metadata: String,
}

impl AppendSet {
    /// An empty set; every event in it will carry this metadata.
    #[must_use]
    pub fn new(metadata: EventMetadata) -> Self {
        Self {
            metadata,
            events: Vec::new(),
            expected: HashMap::new(),
            seen: HashMap::new(),
            bodies: Vec::new(),
            fence: None,
            kept: Vec::new(),
        }
    }

    /// Decides on a loaded aggregate, applies the events to it and queues them under its version.
    /// May be called again on the same aggregate, and on several aggregates.
    ///
    /// # Errors
    /// The refusal; then nothing is queued and the aggregate is untouched.
    pub fn decide<A: Decide>(
        &mut self,
        loaded: &mut Loaded<A>,
        command: A::Command,
        now: DateTime<Utc>,
    ) -> Result<Vec<A::Event>, A::Error>
    where
        A::Event: Clone,
    {
        let events = loaded.state.decide(command, now)?;
        for event in &events {
            self.push_event::<A>(&loaded.id, loaded.version, event);
            loaded.version += 1;
            loaded.state.apply(event.clone());
        }
        Ok(events)
    }

    fn push_event<A: Decide>(&mut self, id: &str, version: i64, event: &A::Event) {
        let payload =
            serde_json::to_string(event).expect("domain events have string keys and no failing fields");
        self.push(A::TYPE, id, version, event.event_type(), event.event_version(), payload);
    }

    /// Queues an event whose texts are ready; `version` is that of the stream before it.
    pub(crate) fn push(
        &mut self,
        aggregate_type: &'static str,
        id: &str,
        version: i64,
        event_type: String,
        event_version: String,
        payload: String,
    ) {
        self.expected.entry((aggregate_type, id.to_owned())).or_insert(version);
        let metadata = serde_json::to_string(&self.metadata).expect("metadata is an object of texts");
        self.events.push(NewEvent {
            aggregate_type,
            aggregate_id: id.to_owned(),
            sequence: version + 1,
            event_type,
            event_version,
            payload,
            metadata,
        });
    }

    /// Lets the set through only while an aggregate that it adds nothing to is as it was loaded: what was
    /// decided rests on it. Sets that rest on the same stream do not wait for each other.
    pub fn rests_on<A: Decide>(&mut self, loaded: &Loaded<A>) {
        self.seen.entry((A::TYPE, loaded.id.clone())).or_insert(loaded.version);
    }

    /// Streams it only rests on, with their versions.
    pub(crate) fn only_seen(&self) -> impl Iterator<Item = (&(&'static str, String), &i64)> {
        self.seen.iter().filter(|(stream, _)| !self.expected.contains_key(*stream))
    }

    /// Adds a sealed body that is stored with the events.
    pub fn body(&mut self, body: NewBody) {
        self.bodies.push(body);
    }

    /// Lets the set through only while this epoch is the bot's present one.
    pub fn fence(&mut self, bot: BotId, epoch: i64) {
        self.fence = Some((bot, epoch));
    }

    /// Keeps something until the set was answered or given up, for example the right to be the only one in
    /// this process who decides about a stream.
    pub fn keep(&mut self, thing: impl Any + Send + Sync) {
        self.kept.push(Kept(Arc::new(thing)));
    }

    /// Whether there is anything to append.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(crate) fn idempotency_key(&self) -> Option<&str> {
        self.metadata.idempotency_key.as_deref()
    }

    pub(crate) fn versions_after(&self) -> Vec<StreamVersion> {
        let mut after: Vec<StreamVersion> = Vec::with_capacity(self.expected.len());
        for event in &self.events {
            match after
                .iter_mut()
                .find(|s| s.aggregate_type == event.aggregate_type && s.aggregate_id == event.aggregate_id)
            {
                Some(stream) => stream.version = event.sequence,
                None => after.push(StreamVersion {
                    aggregate_type: event.aggregate_type.to_owned(),
                    aggregate_id: event.aggregate_id.clone(),
                    version: event.sequence,
                }),
            }
        }
        after
    }
}

/// A stream and the version it has after an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamVersion {
    /// `Aggregate::TYPE`.
    pub aggregate_type: String,
    /// The stream's id.
    pub aggregate_id: String,
    /// Sequence of its last event.
    pub version: i64,
}

/// Proof that a set is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Position of the set's last event; 0 for an empty set.
    pub position: Position,
    /// Positions of its events, in order.
    pub event_positions: Vec<Position>,
    /// The streams it moved, in order of first event. Empty for a duplicate.
    pub streams: Vec<StreamVersion>,
    /// Whether the idempotency key was known: then this is the earlier set's receipt.
    pub duplicate: bool,
}

impl Receipt {
    pub(crate) fn empty() -> Self {
        Self { position: Position(0), event_positions: vec![], streams: vec![], duplicate: false }
    }

    pub(crate) fn of_range(first: i64, count: i32, streams: Vec<StreamVersion>, duplicate: bool) -> Self {
        let event_positions: Vec<_> = (first..first + i64::from(count)).map(Position).collect();
        let position = event_positions.last().copied().unwrap_or_default();
        Self { position, event_positions, streams, duplicate }
    }
}

/// Why a set was not appended. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Somebody else moved a stream: load, decide and try again.
    #[error("stream {aggregate_type} {aggregate_id} is at {actual}, not at {expected}")]
    Conflict {
        /// Its type.
        aggregate_type: String,
        /// Its id.
        aggregate_id: String,
        /// What the set was decided on.
        expected: i64,
        /// Where the stream stands.
        actual: i64,
    },
    /// The bot is run by somebody else by now: stop.
    #[error("epoch {epoch} of bot {bot} is over")]
    Fenced {
        /// The bot.
        bot: BotId,
        /// The epoch the set carried.
        epoch: i64,
    },
    /// The database cannot be reached or did not answer in time. Whether the set was written is not
    /// known: load again before repeating, or repeat with the same idempotency key.
    #[error("the ledger is not available")]
    Unavailable {
        /// What the driver said.
        #[source]
        source: sqlx::Error,
    },
    /// The database refused the set itself.
    #[error("the ledger refused the events")]
    Invalid {
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// The journal was closed.
    #[error("the ledger's writer has stopped")]
    Closed,
}
