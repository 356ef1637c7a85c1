use std::sync::Arc;

use botledger_domain::{Decide, Position, upcast};

use crate::{Journal, JournalError};

/// An aggregate as its events make it.
#[derive(Clone, Debug)]
pub struct Loaded<A> {
    /// The stream's id.
    pub id: String,
    /// Sequence of the last event; 0 when the stream is empty.
    pub version: i64,
    /// The state.
    pub state: A,
}

impl<A: Default> Loaded<A> {
    /// A stream that is known to be empty, for example because its id was made just now.
    #[must_use]
    pub fn empty(id: String) -> Self {
        Self { id, version: 0, state: A::default() }
    }
}

/// A state kept in memory, and which event it ends with.
#[derive(Clone)]
struct Known<A> {
    loaded: Loaded<A>,
    /// Leaf hash of the last event; empty when there is none.
    leaf: Vec<u8>,
}

impl<A: Default> Known<A> {
    fn nothing(id: &str) -> Self {
        Self { loaded: Loaded::empty(id.to_owned()), leaf: Vec::new() }
    }
}

impl<A: Decide> Known<A> {
    fn fold(&mut self, rows: impl IntoIterator<Item = EventRow>) -> Result<(), JournalError> {
        for row in rows {
            self.loaded.state.apply(row.decode::<A>()?);
            self.loaded.version = row.sequence;
            self.leaf = row.leaf_hash;
        }
        Ok(())
    }
}

struct EventRow {
    sequence: i64,
    position: i64,
    event_type: String,
    event_version: String,
    payload: String,
    leaf_hash: Vec<u8>,
}

impl EventRow {
    fn decode<A: Decide>(&self) -> Result<A::Event, JournalError> {
        upcast::decode::<A::Event>(&self.event_type, &self.event_version, &self.payload)
            .map_err(|source| JournalError::Decode { position: Position(self.position), source })
    }
}

impl Journal {
    /// An aggregate by id. A state once loaded stays in memory, and only the events after it are
    /// read: the answer is as fresh as a full load, because the rest of the stream is asked for
    /// every time. So is the event the state ends with: a crash of the database may take back
    /// commits that were seen and not yet durable, and a restore takes back more.
    ///
    /// # Errors
    /// When the database fails or an event does not decode.
    pub async fn load<A: Decide + Clone + 'static>(&self, id: &str) -> Result<Loaded<A>, JournalError> {
        let key = (A::TYPE, id.to_owned());
        let cached = self.cache().get(&key).and_then(|entry| entry.downcast::<Known<A>>().ok());
        let mut known = cached.as_deref().cloned().unwrap_or_else(|| Known::nothing(id));
        let version = known.loaded.version;
        let mut rows = self.events::<A>(id, version).await?.into_iter().peekable();
        if version > 0 {
            let stands = rows.next_if(|row| row.sequence == version && row.leaf_hash == known.leaf).is_some();
            if !stands {
                known = Known::nothing(id);
                rows = self.events::<A>(id, 0).await?.into_iter().peekable();
            }
        }
        let before = known.loaded.version;
        known.fold(rows)?;
        if known.loaded.version != before {
            self.cache().insert(key, Arc::new(known.clone()));
        }
        Ok(known.loaded)
    }

    /// Everything that happened to an aggregate, oldest first: for what its state no longer holds.
    ///
    /// # Errors
    /// As [`Journal::load`].
    pub async fn facts<A: Decide>(&self, id: &str) -> Result<Vec<A::Event>, JournalError> {
        let rows = self.events::<A>(id, 0).await?;
        rows.into_iter().map(|row| row.decode::<A>()).collect()
    }

    /// The events of a stream from a sequence on, it included.
    async fn events<A: Decide>(&self, id: &str, from: i64) -> Result<Vec<EventRow>, JournalError> {
        Ok(sqlx::query_as!(
            EventRow,
            r#"SELECT sequence, position, event_type, event_version, payload::text AS "payload!", leaf_hash
               FROM events
               WHERE aggregate_type = $1 AND aggregate_id = $2 AND sequence >= $3
               ORDER BY sequence"#,
            A::TYPE,
            id,
            from,
        )
        .fetch_all(self.pool())
        .await?)
    }
}
