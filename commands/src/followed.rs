//! All aggregates of a type that has few of them, kept in memory and at most a moment old: for what
//! every message asks and operators rarely change.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use botledger_domain::{Decide, Position, upcast};
use botledger_journal::JournalError;
use sqlx::PgPool;

/// A state of this age is used as it is.
const FRESH: Duration = Duration::from_millis(500);
/// A state beyond this age is not used before the ledger was asked: what somebody decides in another
/// process is in force here after that, and the time a query takes.
const STALE: Duration = Duration::from_secs(1);

struct Seen<A> {
    states: HashMap<String, Arc<A>>,
    /// The ledger's head when it was read, and that event's leaf hash.
    upto: Position,
    leaf: Vec<u8>,
    read_at: Option<Instant>,
}

/// Follows the streams of one aggregate type. Cheap to clone.
pub(crate) struct Followed<A> {
    pool: PgPool,
    seen: Arc<RwLock<Seen<A>>>,
    reading: Arc<tokio::sync::Mutex<()>>,
}

impl<A> Clone for Followed<A> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), seen: Arc::clone(&self.seen), reading: Arc::clone(&self.reading) }
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    head: i64,
    head_leaf: Option<Vec<u8>>,
    known_leaf: Option<Vec<u8>>,
    aggregate_id: Option<String>,
    position: Option<i64>,
    event_type: Option<String>,
    event_version: Option<String>,
    payload: Option<String>,
}

impl<A: Decide + Clone + 'static> Followed<A> {
    pub(crate) fn new(pool: PgPool) -> Self {
        let seen =
            Seen { states: HashMap::new(), upto: Position::default(), leaf: Vec::new(), read_at: None };
        Self { pool, seen: Arc::new(RwLock::new(seen)), reading: Arc::default() }
    }

    /// An aggregate by its stream; nothing when nothing ever happened in it. While the database is away
    /// the last known state stands.
    ///
    /// # Errors
    /// When the ledger was never read yet and cannot be read now.
    pub(crate) async fn find(&self, stream: &str) -> Result<Option<Arc<A>>, JournalError> {
        self.be_fresh().await?;
        Ok(self.seen.read().unwrap_or_else(PoisonError::into_inner).states.get(stream).cloned())
    }

    async fn be_fresh(&self) -> Result<(), JournalError> {
        let age = |seen: &Seen<A>| seen.read_at.map(|at| at.elapsed());
        let known = age(&self.seen.read().unwrap_or_else(PoisonError::into_inner));
        let _reading = match known {
            Some(age) if age <= FRESH => return Ok(()),
            // Somebody asks already, and what is here is young enough meanwhile.
            Some(age) if age <= STALE => match self.reading.try_lock() {
                Ok(reading) => reading,
                Err(_) => return Ok(()),
            },
            _ => self.reading.lock().await,
        };
        let known = age(&self.seen.read().unwrap_or_else(PoisonError::into_inner));
        if known.is_some_and(|age| age <= FRESH) {
            return Ok(());
        }
        let read = match known {
            // What is known is good enough not to wait for a database that hangs.
            Some(_) => tokio::time::timeout(STALE, self.read())
                .await
                .unwrap_or_else(|_| Err(JournalError::Database(sqlx::Error::PoolTimedOut))),
            None => self.read().await,
        };
        match read {
            Err(error) if known.is_some() => {
                tracing::warn!(aggregate = A::TYPE, error = %error, "the ledger does not answer, what was known stands");
                let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
                // Asked again after a while, not by every message.
                seen.read_at = Some(Instant::now());
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Reads what is new at once: for who has just written.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub(crate) async fn refresh(&self) -> Result<(), JournalError> {
        let _reading = self.reading.lock().await;
        self.read().await
    }

    /// Called by one at a time.
    async fn read(&self) -> Result<(), JournalError> {
        let begun = Instant::now();
        let (upto, leaf) = {
            let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
            (seen.upto, seen.leaf.clone())
        };
        let mut rows = self.rows(upto).await?;
        // A crash of the database may take back commits that were seen, and a restore takes back more.
        let stands = upto.0 == 0 || rows.first().is_some_and(|row| row.known_leaf.as_deref() == Some(&leaf));
        if !stands {
            rows = self.rows(Position::default()).await?;
        }
        let mut states = HashMap::new();
        let (mut head, mut head_leaf) = (upto, leaf);
        for row in rows {
            head = Position(row.head);
            head_leaf = row.head_leaf.unwrap_or_default();
            let (Some(id), Some(position), Some(event_type), Some(version), Some(payload)) =
                (row.aggregate_id, row.position, row.event_type, row.event_version, row.payload)
            else {
                continue;
            };
            let event = upcast::decode::<A::Event>(&event_type, &version, &payload)
                .map_err(|source| JournalError::Decode { position: Position(position), source })?;
            let state = states.entry(id).or_insert_with_key(|id| {
                let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
                seen.states.get(id).filter(|_| stands).map_or_else(A::default, |known| A::clone(known))
            });
            state.apply(event);
        }
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        if !stands {
            seen.states.clear();
        }
        seen.states.extend(states.into_iter().map(|(id, state)| (id, Arc::new(state))));
        (seen.upto, seen.leaf, seen.read_at) = (head, head_leaf, Some(begun));
        Ok(())
    }

    /// At least one row: the head stands in all of them.
    async fn rows(&self, after: Position) -> Result<Vec<Row>, JournalError> {
        Ok(sqlx::query_as::<_, Row>(
            "SELECT h.position AS head, h.leaf_hash AS head_leaf, k.leaf_hash AS known_leaf,
                    e.aggregate_id, e.position, e.event_type, e.event_version, e.payload::text AS payload
             FROM (SELECT 1) AS one
             LEFT JOIN (SELECT position, leaf_hash FROM events ORDER BY position DESC LIMIT 1) h ON true
             LEFT JOIN events k ON k.position = $2
             LEFT JOIN events e ON e.aggregate_type = $1 AND e.position > $2
             WHERE h.position IS NOT NULL
             ORDER BY e.position",
        )
        .bind(A::TYPE)
        .bind(after.0)
        .fetch_all(&self.pool)
        .await?)
    }
}
