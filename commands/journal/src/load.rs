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

struct EventRow {
    sequence: i64,
    position: i64,
    event_type: String,
    event_version: String,
    payload: String,
}

impl Journal {
    /// An aggregate by id. A state once loaded stays in memory, and only the events after it are
    /// read: the answer is as fresh as a full load, because the rest of the stream is asked for
    /// every time.
    ///
    /// # Errors
    /// When the database fails or an event does not decode.
    pub async fn load<A: Decide + Clone + 'static>(&self, id: &str) -> Result<Loaded<A>, JournalError> {
        let key = (A::TYPE, id.to_owned());
        let cached = self.cache().get(&key).and_then(|entry| entry.downcast::<Loaded<A>>().ok());
        let mut loaded = cached.as_deref().cloned().unwrap_or_else(|| Loaded::empty(id.to_owned()));
        let known = loaded.version;
        self.fold(&mut loaded, None).await?;
        if loaded.version != known {
            self.cache().insert(key, Arc::new(loaded.clone()));
        }
        Ok(loaded)
    }

    /// An aggregate as it was right after a position.
    ///
    /// # Errors
    /// When the database fails or an event does not decode.
    pub async fn load_at<A: Decide + Clone + 'static>(
        &self,
        id: &str,
        upto: Position,
    ) -> Result<Loaded<A>, JournalError> {
        let mut loaded = Loaded::empty(id.to_owned());
        self.fold(&mut loaded, Some(upto)).await?;
        Ok(loaded)
    }

    async fn fold<A: Decide>(
        &self,
        loaded: &mut Loaded<A>,
        upto: Option<Position>,
    ) -> Result<(), JournalError> {
        let rows = sqlx::query_as!(
            EventRow,
            r#"SELECT sequence, position, event_type, event_version, payload::text AS "payload!"
               FROM events
               WHERE aggregate_type = $1 AND aggregate_id = $2 AND sequence > $3 AND position <= $4
               ORDER BY sequence"#,
            A::TYPE,
            loaded.id,
            loaded.version,
            upto.map_or(i64::MAX, |position| position.0),
        )
        .fetch_all(self.pool())
        .await?;
        for row in rows {
            let event = upcast::decode::<A::Event>(&row.event_type, &row.event_version, &row.payload)
                .map_err(|source| JournalError::Decode { position: Position(row.position), source })?;
            loaded.state.apply(event);
            loaded.version = row.sequence;
        }
        Ok(())
    }
}
