use std::{any::Any, sync::Arc};

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

pub struct EventRow {
    sequence: i64,
    position: i64,
    event_type: String,
    event_version: String,
    payload: String,
    leaf_hash: Vec<u8>,
}

/// An aggregate that is to be loaded together with others, and afterwards is.
#[derive(Clone)]
pub struct Wanted<A> {
    known: Known<A>,
    /// The version that was in memory.
    remembered: i64,
}

impl<A: Default> Wanted<A> {
    /// The aggregate with this id.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        Self { known: Known::nothing(&id.into()), remembered: 0 }
    }

    /// What was loaded; an empty stream before.
    #[must_use]
    pub fn loaded(self) -> Loaded<A> {
        self.known.loaded
    }
}

/// Any [`Wanted`].
pub trait Load: sealed::Load {}
impl<L: sealed::Load> Load for L {}

mod sealed {
    use std::any::Any;

    use super::{EventRow, JournalError};

    pub trait Load: Send + Sync {
        fn stream(&self) -> (&'static str, &str);
        /// Takes what is in memory; gives the version that has to be read from, it included.
        fn remember(&mut self, entry: Option<std::sync::Arc<dyn Any + Send + Sync>>) -> i64;
        /// Takes the rows from that version on. False when what was in memory is not what stands there.
        fn fold(&mut self, rows: Vec<EventRow>) -> Result<bool, JournalError>;
        /// What to keep in memory, if it moved.
        fn entry(&self) -> Option<std::sync::Arc<dyn Any + Send + Sync>>;
    }
}

impl<A: Decide + Clone + 'static> sealed::Load for Wanted<A> {
    fn stream(&self) -> (&'static str, &str) {
        (A::TYPE, &self.known.loaded.id)
    }

    fn remember(&mut self, entry: Option<Arc<dyn Any + Send + Sync>>) -> i64 {
        let known = entry.and_then(|entry| entry.downcast::<Known<A>>().ok());
        self.known = known
            .as_deref()
            .cloned()
            .unwrap_or_else(|| Known::nothing(&std::mem::take(&mut self.known.loaded.id)));
        self.remembered = self.known.loaded.version;
        self.remembered
    }

    fn fold(&mut self, rows: Vec<EventRow>) -> Result<bool, JournalError> {
        let mut rows = rows.into_iter().peekable();
        if self.remembered > 0 {
            let (version, leaf) = (self.remembered, &self.known.leaf);
            if rows.next_if(|row| row.sequence == version && row.leaf_hash == *leaf).is_none() {
                return Ok(false);
            }
        }
        self.known.fold(rows)?;
        Ok(true)
    }

    fn entry(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        let moved = self.known.loaded.version != self.remembered;
        moved.then(|| Arc::new(self.known.clone()) as Arc<dyn Any + Send + Sync>)
    }
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

    /// Several aggregates, of different types, by one statement: all of them as they stood at the same
    /// moment, each as [`Journal::load`] gives it.
    ///
    /// # Errors
    /// When the database fails or an event does not decode.
    pub async fn load_together(&self, wanted: &mut [&mut dyn Load]) -> Result<(), JournalError> {
        let mut trust_memory = true;
        loop {
            let mut since = Vec::with_capacity(wanted.len());
            for one in wanted.iter_mut() {
                let (kind, id) = one.stream();
                let key = (kind, id.to_owned());
                let entry = if trust_memory { self.cache().get(&key) } else { None };
                since.push(one.remember(entry));
            }
            let mut rows = self.events_of(wanted, &since).await?;
            let mut all_stand = true;
            for (one, rows) in wanted.iter_mut().zip(&mut rows) {
                all_stand &= one.fold(std::mem::take(rows))?;
            }
            if all_stand {
                break;
            }
            // Memory that the ledger went back behind: all anew, so that it is one moment again.
            trust_memory = false;
        }
        for one in wanted.iter() {
            if let Some(entry) = one.entry() {
                let (kind, id) = one.stream();
                self.cache().insert((kind, id.to_owned()), entry);
            }
        }
        Ok(())
    }

    async fn events_of(
        &self,
        wanted: &[&mut dyn Load],
        since: &[i64],
    ) -> Result<Vec<Vec<EventRow>>, JournalError> {
        let (kinds, ids): (Vec<String>, Vec<String>) = wanted
            .iter()
            .map(|one| {
                let (kind, id) = one.stream();
                (kind.to_owned(), id.to_owned())
            })
            .unzip();
        let found = sqlx::query!(
            r#"SELECT w.place AS "place!", e.sequence, e.position, e.event_type, e.event_version,
                      e.payload::text AS "payload!", e.leaf_hash
               FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY AS w (kind, id, since, place)
               CROSS JOIN LATERAL (
                   SELECT sequence, position, event_type, event_version, payload, leaf_hash
                   FROM events
                   WHERE aggregate_type = w.kind AND aggregate_id = w.id AND sequence >= w.since
                   ORDER BY sequence
               ) AS e
               ORDER BY w.place, e.sequence"#,
            &kinds,
            &ids,
            since,
        )
        .fetch_all(self.pool())
        .await?;
        let mut rows: Vec<Vec<EventRow>> = wanted.iter().map(|_| Vec::new()).collect();
        for row in found {
            let place = usize::try_from(row.place - 1).ok().and_then(|place| rows.get_mut(place));
            place.expect("places are those of the arrays handed in").push(EventRow {
                sequence: row.sequence,
                position: row.position,
                event_type: row.event_type,
                event_version: row.event_version,
                payload: row.payload,
                leaf_hash: row.leaf_hash,
            });
        }
        Ok(rows)
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
