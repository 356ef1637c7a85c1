//! Whole read models as they were at a position. A copy is a connection of its own whose temporary
//! tables the projection filled from the ledger up to there: the same code as live, so the same rows,
//! found by the same queries, for PostgreSQL looks into temporary tables first. Nothing of a copy is
//! ever stored; one that was dropped is made again when somebody asks (`ops/decisions/0015`).

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use botledger_domain::Position;
use futures::TryStreamExt;
use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::{Semaphore, watch};

use crate::{LogReader, Projection, ProjectionError, runner};

/// Events folded at once.
const PAGE: i64 = 5_000;
/// Pages between two looks at how large a copy has become.
const LOOK_AT_SIZE: usize = 20;

/// What copies may cost.
#[derive(Clone, Copy, Debug)]
pub struct PastConfig {
    /// Copies kept; each holds a connection to the database.
    pub copies: usize,
    /// Bytes of all copies together, and of any one of them.
    pub bytes: u64,
    /// Copies made at once.
    pub builds: usize,
    /// Copies that wait for others to be made; more are refused.
    pub waiting: usize,
}

impl Default for PastConfig {
    fn default() -> Self {
        Self { copies: 16, bytes: 2 << 30, builds: 2, waiting: 16 }
    }
}

/// Why there is no copy to read from.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PastError {
    /// Nobody owns rows of that name.
    #[error("there is no read model {name}")]
    Unknown {
        /// As it was asked for.
        name: String,
    },
    /// It is being made, and goes on being made.
    #[error(
        "read model {name} as of {upto} is being made from the ledger: {at} of {upto} events; ask again shortly"
    )]
    Building {
        /// The read model.
        name: &'static str,
        /// Folded so far.
        at: Position,
        /// To be folded.
        upto: Position,
    },
    /// Too many others are being made.
    #[error("too many read models of the past are being made; ask again shortly")]
    Busy,
    /// It would be larger than all copies may be.
    #[error("read model {name} as of {upto} takes more than {most} bytes; ask for single things instead")]
    TooLarge {
        /// The read model.
        name: &'static str,
        /// As of.
        upto: Position,
        /// Allowed.
        most: u64,
    },
    /// An event cannot be applied and nobody decided to skip it, or the database failed.
    #[error("read model {name} cannot be made as of {upto}")]
    Failed {
        /// The read model.
        name: &'static str,
        /// As of.
        upto: Position,
        /// Why; shared by all who wait for it.
        #[source]
        source: Arc<ProjectionError>,
    },
}

/// Read models of the past, made when they are asked for and kept while they are used. Cheap to clone.
#[derive(Clone)]
pub struct Past {
    shared: Arc<Shared>,
}

struct Shared {
    pool: PgPool,
    log: LogReader,
    projections: Vec<Arc<dyn Projection>>,
    config: PastConfig,
    builds: Semaphore,
    copies: Mutex<Copies>,
}

type Key = (&'static str, Position);

#[derive(Default)]
struct Copies {
    known: BTreeMap<Key, Known>,
    /// Counts askings: who was asked for last has the highest.
    asked: u64,
}

struct Known {
    asked: u64,
    state: watch::Receiver<State>,
}

#[derive(Clone)]
enum State {
    Building(Position),
    Ready(Copy),
    Failed(PastError),
}

/// A pool of one connection, whose temporary tables are the copy.
#[derive(Clone)]
struct Copy {
    pool: PgPool,
    bytes: u64,
    /// Connections made so far. A second one has nothing of the first.
    connections: Arc<AtomicU32>,
}

impl Copy {
    fn is_lost(&self) -> bool {
        self.connections.load(Ordering::Acquire) > 1
    }
}

impl Past {
    /// Copies of these projections' read models, from the ledger in this pool's database.
    #[must_use]
    pub fn new(pool: &PgPool, projections: Vec<Arc<dyn Projection>>, config: PastConfig) -> Self {
        let shared = Shared {
            pool: pool.clone(),
            log: LogReader::new(pool.clone()),
            projections,
            config,
            builds: Semaphore::new(config.builds.max(1)),
            copies: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A pool that reads a read model's tables, and no others, as they were at a position. Waits until
    /// they are made, at most so long; they go on being made afterwards.
    ///
    /// # Errors
    /// See [`PastError`].
    pub async fn at(
        &self,
        read_model: &str,
        position: Position,
        patience: Duration,
    ) -> Result<PgPool, PastError> {
        let (key, mut state) = self.shared.find_or_begin(read_model, position)?;
        let settled = async {
            let settled = state.wait_for(|state| !matches!(state, State::Building(_))).await;
            settled.map(|state| state.clone())
        };
        let seen = match tokio::time::timeout(patience, settled).await {
            Ok(Ok(settled)) => settled,
            // Whoever made it is gone without a word: the next one who asks begins anew.
            Ok(Err(_)) => {
                self.shared.lock().known.remove(&key);
                return Err(PastError::Busy);
            }
            Err(_) => state.borrow().clone(),
        };
        match seen {
            State::Ready(copy) => Ok(copy.pool),
            State::Failed(error) => Err(error),
            State::Building(at) => Err(PastError::Building { name: key.0, at, upto: position }),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find_or_begin(
        self: &Arc<Self>,
        read_model: &str,
        position: Position,
    ) -> Result<(Key, watch::Receiver<State>), PastError> {
        let projection = self.projections.iter().find(|projection| projection.name() == read_model);
        let projection = projection.ok_or_else(|| PastError::Unknown { name: read_model.to_owned() })?;
        let key = (projection.name(), position);
        let mut copies = self.lock();
        copies.asked += 1;
        let asked = copies.asked;
        copies
            .known
            .retain(|_, known| !matches!(&*known.state.borrow(), State::Ready(copy) if copy.is_lost()));
        if let Some(known) = copies.known.get_mut(&key) {
            known.asked = asked;
            return Ok((key, known.state.clone()));
        }
        let building =
            copies.known.values().filter(|known| matches!(&*known.state.borrow(), State::Building(_)));
        if building.count() >= self.config.builds.max(1) + self.config.waiting {
            metrics::counter!("botledger_past_builds_total", "read_model" => key.0, "outcome" => "refused")
                .increment(1);
            return Err(PastError::Busy);
        }
        let (told, state) = watch::channel(State::Building(Position(0)));
        copies.known.insert(key, Known { asked, state: state.clone() });
        tokio::spawn(Arc::clone(self).make(Arc::clone(projection), position, told));
        Ok((key, state))
    }

    async fn make(
        self: Arc<Self>,
        projection: Arc<dyn Projection>,
        position: Position,
        told: watch::Sender<State>,
    ) {
        let key = (projection.name(), position);
        let begun = Instant::now();
        let built = match self.builds.acquire().await {
            Ok(_permit) => self.build(projection.as_ref(), position, &told).await,
            Err(_) => Err(PastError::Busy),
        };
        let outcome = if built.is_ok() { "built" } else { "failed" };
        metrics::counter!("botledger_past_builds_total", "read_model" => key.0, "outcome" => outcome)
            .increment(1);
        metrics::histogram!("botledger_past_build_seconds", "read_model" => key.0)
            .record(begun.elapsed().as_secs_f64());
        let mut copies = self.lock();
        match built {
            Ok(copy) => {
                told.send_replace(State::Ready(copy));
                shed(&mut copies, key, self.config);
            }
            Err(error) => {
                tracing::warn!(read_model = key.0, position = position.0, error = %error, "a copy of the past was not made");
                // Whoever waits is told; whoever asks later begins anew.
                told.send_replace(State::Failed(error));
                copies.known.remove(&key);
            }
        }
        let (mut ready, mut bytes) = (0.0, 0.0);
        for known in copies.known.values() {
            if let State::Ready(copy) = &*known.state.borrow() {
                (ready, bytes) = (ready + 1.0, bytes + copy.bytes as f64);
            }
        }
        metrics::gauge!("botledger_past_copies").set(ready);
        metrics::gauge!("botledger_past_bytes").set(bytes);
    }

    async fn build(
        &self,
        projection: &dyn Projection,
        upto: Position,
        told: &watch::Sender<State>,
    ) -> Result<Copy, PastError> {
        let name = projection.name();
        let failed = |error: ProjectionError| PastError::Failed { name, upto, source: Arc::new(error) };
        let (pool, connections) =
            self.own_pool().await.map_err(|error| failed(ProjectionError::Database(error)))?;
        let bytes = self.fill(&pool, projection, upto, told).await.map_err(failed)?;
        let bytes = bytes.ok_or(PastError::TooLarge { name, upto, most: self.config.bytes })?;
        Ok(Copy { pool, bytes, connections })
    }

    async fn own_pool(&self) -> Result<(PgPool, Arc<AtomicU32>), sqlx::Error> {
        let connections = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&connections);
        // Live read models are out of sight: a table that is not in the copy is an error, never an
        // answer from today.
        let options = PgConnectOptions::clone(&self.pool.connect_options())
            .application_name("botledger-past")
            .options([("search_path", "public"), ("synchronous_commit", "off")]);
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(move |_, _| {
                counted.fetch_add(1, Ordering::AcqRel);
                Box::pin(async { Ok(()) })
            })
            .connect_with(options)
            .await?;
        Ok((pool, connections))
    }

    /// Makes the tables; their bytes, or nothing when they become too large.
    async fn fill(
        &self,
        pool: &PgPool,
        projection: &dyn Projection,
        upto: Position,
        told: &watch::Sender<State>,
    ) -> Result<Option<u64>, ProjectionError> {
        let mut connection = pool.acquire().await?;
        let skipped = runner::skipped(&mut connection, projection.name()).await?;
        for table in projection.tables() {
            sqlx::query(&format!("CREATE TEMPORARY TABLE {table} (LIKE read.{table} INCLUDING ALL)"))
                .execute(&mut *connection)
                .await?;
        }
        let mut at = Position(0);
        if let Some((earlier, source)) = self.nearest(projection.name(), upto) {
            let mut source = source.acquire().await?;
            for table in projection.tables() {
                copy_rows(&mut source, &mut connection, table).await?;
            }
            at = earlier;
        }
        let mut pages = 0;
        let mut events = self.log.after(at, PAGE.min(upto.0 - at.0)).await?;
        while let Some(last) = events.last().map(|event| event.position) {
            let kept = events.into_iter().filter(|event| !skipped.contains(&event.position.0));
            let page: Vec<_> = kept.map(Arc::new).collect();
            let left = PAGE.min(upto.0 - last.0);
            let apply = async {
                let mut tx = connection.begin().await?;
                projection.apply(&mut tx, &page).await?;
                Ok::<_, ProjectionError>(tx.commit().await?)
            };
            // The next page is read while this one is applied.
            let (applied, read) = tokio::join!(apply, self.log.after(last, left));
            applied?;
            events = read?;
            told.send_replace(State::Building(last));
            pages += 1;
            if pages % LOOK_AT_SIZE == 0 && bytes(&mut connection).await? > self.config.bytes {
                return Ok(None);
            }
        }
        // Nobody else looks after temporary tables.
        for table in projection.tables() {
            sqlx::query(&format!("ANALYZE pg_temp.{table}")).execute(&mut *connection).await?;
        }
        Ok(Some(bytes(&mut connection).await?).filter(|bytes| *bytes <= self.config.bytes))
    }

    /// The copy of the same read model that is nearest before a position.
    fn nearest(&self, name: &'static str, upto: Position) -> Option<(Position, PgPool)> {
        let copies = self.lock();
        copies.known.range((name, Position(0))..(name, upto)).rev().find_map(|((_, position), known)| {
            match &*known.state.borrow() {
                State::Ready(copy) if !copy.is_lost() => Some((*position, copy.pool.clone())),
                _ => None,
            }
        })
    }
}

/// Drops the copies that nobody asked for for longest until the rest may stay. Who reads from one goes
/// on: its connection ends with its last reader.
fn shed(copies: &mut Copies, newest: Key, config: PastConfig) {
    loop {
        let (mut ready, mut bytes) = (0, 0);
        let mut oldest: Option<(u64, Key)> = None;
        for (key, known) in &copies.known {
            if let State::Ready(copy) = &*known.state.borrow() {
                (ready, bytes) = (ready + 1, bytes + copy.bytes);
                if *key != newest {
                    oldest = [oldest, Some((known.asked, *key))].into_iter().flatten().min();
                }
            }
        }
        match oldest {
            Some((_, key)) if ready > config.copies || bytes > config.bytes => copies.known.remove(&key),
            _ => return,
        };
    }
}

async fn copy_rows(from: &mut PgConnection, to: &mut PgConnection, table: &str) -> Result<(), sqlx::Error> {
    let mut rows = from.copy_out_raw(&format!("COPY pg_temp.{table} TO STDOUT (FORMAT binary)")).await?;
    let mut into = to.copy_in_raw(&format!("COPY pg_temp.{table} FROM STDIN (FORMAT binary)")).await?;
    while let Some(part) = rows.try_next().await? {
        into.send(part).await?;
    }
    into.finish().await?;
    Ok(())
}

async fn bytes(connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let bytes = sqlx::query_scalar!(
        r#"SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint AS "bytes!" FROM pg_class
           WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r'"#
    )
    .fetch_one(connection)
    .await?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}
