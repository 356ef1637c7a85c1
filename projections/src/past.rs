//! Whole read models as they were at a position. A copy is a connection of its own whose temporary
//! tables the projection filled from the ledger up to there: the same code as live, so the same rows,
//! found by the same queries, for PostgreSQL looks into temporary tables first. Nothing of a copy is
//! ever stored; one that was dropped is made again when somebody asks (`ops/decisions/0015`).

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use botledger_domain::{Position, WorkspaceId};
use futures::TryStreamExt;
use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{
    sync::{Semaphore, watch},
    time::sleep,
};

use crate::{LogReader, Projection, ProjectionError, runner};

/// Events folded at once.
const PAGE: i64 = 5_000;
/// Pages between two looks at how large a small copy has become; one that is over a tenth of what all may
/// take is looked at after every page.
const LOOK_AT_SIZE: usize = 20;
/// How long it is remembered that a read model was too large.
const TOO_LARGE_FOR: Duration = Duration::from_secs(600);

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
    /// Of those that are made or wait for it, how many one workspace may have asked for.
    pub share: usize,
    /// A copy goes when nobody asked for it for so long.
    pub idle: Duration,
    /// And after so long however often it is asked for: temporary tables are out of autovacuum's reach, so
    /// as long as they live the database's transaction ids are not freed.
    pub age: Duration,
    /// One that is being made, or waits for it, is given up when nobody asked for it for so long.
    pub wanted: Duration,
}

impl Default for PastConfig {
    fn default() -> Self {
        Self {
            copies: 16,
            bytes: 2 << 30,
            builds: 2,
            waiting: 16,
            share: 6,
            idle: Duration::from_secs(15 * 60),
            age: Duration::from_secs(6 * 3_600),
            wanted: Duration::from_secs(120),
        }
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
    /// Read models that were larger than all may be: as of which position, and when that was seen.
    too_large: BTreeMap<&'static str, (Position, Instant)>,
    /// Counts askings: who was asked for last has the highest.
    asked: u64,
}

struct Known {
    /// Who asked for it first.
    whose: WorkspaceId,
    asked: u64,
    /// When somebody asked for it last.
    asked_at: Instant,
    /// Of its tables, as last looked at; counted from the first page on.
    bytes: Arc<AtomicU64>,
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
    made_at: Instant,
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
    /// they are made, at most so long; they go on being made afterwards, as long as somebody asks for them
    /// now and then. A workspace that has its share of what is being made is refused.
    ///
    /// # Errors
    /// See [`PastError`].
    pub async fn at(
        &self,
        workspace: WorkspaceId,
        read_model: &str,
        position: Position,
        patience: Duration,
    ) -> Result<PgPool, PastError> {
        let (key, mut state) = self.shared.find_or_begin(workspace, read_model, position)?;
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
        workspace: WorkspaceId,
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
            known.asked_at = Instant::now();
            return Ok((key, known.state.clone()));
        }
        copies.too_large.retain(|_, (_, seen)| seen.elapsed() < TOO_LARGE_FOR);
        if copies.too_large.get(key.0).is_some_and(|(upto, _)| *upto <= position) {
            return Err(PastError::TooLarge { name: key.0, upto: position, most: self.config.bytes });
        }
        let building = |known: &&Known| matches!(&*known.state.borrow(), State::Building(_));
        let building: Vec<&Known> = copies.known.values().filter(building).collect();
        let theirs = building.iter().filter(|known| known.whose == workspace).count();
        if building.len() >= self.config.builds.max(1) + self.config.waiting
            || theirs >= self.config.share.max(1)
        {
            metrics::counter!("botledger_past_builds_total", "read_model" => key.0, "outcome" => "refused")
                .increment(1);
            return Err(PastError::Busy);
        }
        let (told, state) = watch::channel(State::Building(Position(0)));
        let bytes = Arc::<AtomicU64>::default();
        let known = Known {
            whose: workspace,
            asked,
            asked_at: Instant::now(),
            bytes: Arc::clone(&bytes),
            state: state.clone(),
        };
        copies.known.insert(key, known);
        tokio::spawn(Arc::clone(self).make(Arc::clone(projection), position, told, bytes));
        Ok((key, state))
    }

    async fn make(
        self: Arc<Self>,
        projection: Arc<dyn Projection>,
        position: Position,
        told: watch::Sender<State>,
        bytes: Arc<AtomicU64>,
    ) {
        let key = (projection.name(), position);
        let begun = Instant::now();
        let built = match self.builds.acquire().await {
            Ok(_permit) if self.is_wanted(key, &told) => {
                self.build(projection.as_ref(), position, &told, &bytes).await
            }
            _ => Err(PastError::Busy),
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
                tokio::spawn(end_in_time(Arc::downgrade(&self), key));
            }
            Err(error) => {
                tracing::warn!(read_model = key.0, position = position.0, error = %error, "a copy of the past was not made");
                if let PastError::TooLarge { name, upto, .. } = error {
                    copies.too_large.insert(name, (upto, Instant::now()));
                }
                // Whoever waits is told; whoever asks later begins anew.
                told.send_replace(State::Failed(error));
                copies.known.remove(&key);
            }
        }
        copies.measure();
    }

    /// Whether somebody waits for one that is being made, or asked for it lately.
    fn is_wanted(&self, key: Key, told: &watch::Sender<State>) -> bool {
        // One receiver is ours.
        let copies = self.lock();
        told.receiver_count() > 1
            || copies.known.get(&key).is_some_and(|known| known.asked_at.elapsed() < self.config.wanted)
    }

    /// Makes room for one that is being made and takes so much now.
    fn has_room(&self, key: Key, bytes: u64) -> Result<(), PastError> {
        if bytes > self.config.bytes {
            return Err(PastError::TooLarge { name: key.0, upto: key.1, most: self.config.bytes });
        }
        let mut copies = self.lock();
        shed(&mut copies, key, self.config);
        match copies.bytes() > self.config.bytes {
            // What is left is being made too.
            true => Err(PastError::Busy),
            false => Ok(()),
        }
    }

    async fn build(
        &self,
        projection: &dyn Projection,
        upto: Position,
        told: &watch::Sender<State>,
        taken: &AtomicU64,
    ) -> Result<Copy, PastError> {
        let name = projection.name();
        let failed = |error: ProjectionError| PastError::Failed { name, upto, source: Arc::new(error) };
        let (pool, connections) =
            self.own_pool().await.map_err(|error| failed(ProjectionError::Database(error)))?;
        self.fill(&pool, projection, upto, told, taken).await.map_err(failed)??;
        Ok(Copy { pool, made_at: Instant::now(), connections })
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

    /// Makes the tables; within, why it was given up.
    async fn fill(
        &self,
        pool: &PgPool,
        projection: &dyn Projection,
        upto: Position,
        told: &watch::Sender<State>,
        taken: &AtomicU64,
    ) -> Result<Result<(), PastError>, ProjectionError> {
        let key = (projection.name(), upto);
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
            if !self.is_wanted(key, told) {
                return Ok(Err(PastError::Busy));
            }
            if pages % LOOK_AT_SIZE == 0 || taken.load(Ordering::Relaxed) > self.config.bytes / 10 {
                let bytes = bytes(&mut connection).await?;
                taken.store(bytes, Ordering::Relaxed);
                if let Err(full) = self.has_room(key, bytes) {
                    return Ok(Err(full));
                }
            }
        }
        // Nobody else looks after temporary tables. Frozen rows name no transaction any more.
        for table in projection.tables() {
            sqlx::query(&format!("VACUUM (FREEZE, ANALYZE) pg_temp.{table}"))
                .execute(&mut *connection)
                .await?;
        }
        let bytes = bytes(&mut connection).await?;
        taken.store(bytes, Ordering::Relaxed);
        Ok(self.has_room(key, bytes))
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

impl Copies {
    /// Of all, also of those that are being made.
    fn bytes(&self) -> u64 {
        self.known.values().map(|known| known.bytes.load(Ordering::Relaxed)).sum()
    }

    fn measure(&self) {
        let is_ready = |known: &&Known| matches!(&*known.state.borrow(), State::Ready(_));
        let ready = self.known.values().filter(is_ready).count();
        metrics::gauge!("botledger_past_copies").set(ready as f64);
        metrics::gauge!("botledger_past_bytes").set(self.bytes() as f64);
    }
}

/// Drops the copies that nobody asked for for longest until the rest may stay. Who reads from one goes
/// on: its connection ends with its last reader.
fn shed(copies: &mut Copies, newest: Key, config: PastConfig) {
    loop {
        let mut ready = 0;
        let mut oldest: Option<(u64, Key)> = None;
        for (key, known) in &copies.known {
            if matches!(&*known.state.borrow(), State::Ready(_)) {
                ready += 1;
                if *key != newest {
                    oldest = [oldest, Some((known.asked, *key))].into_iter().flatten().min();
                }
            }
        }
        match oldest {
            Some((_, key)) if ready > config.copies || copies.bytes() > config.bytes => {
                copies.known.remove(&key)
            }
            _ => return,
        };
    }
}

/// Waits for the time of one copy to be over, and drops it. One that was dropped meanwhile, and was made
/// again, has somebody of its own who waits.
async fn end_in_time(shared: Weak<Shared>, key: Key) {
    let mut copy_of = None;
    loop {
        let left = {
            let Some(shared) = shared.upgrade() else { return };
            let mut copies = shared.lock();
            let Some(known) = copies.known.get(&key) else { return };
            let made_at = match &*known.state.borrow() {
                State::Ready(copy) => copy.made_at,
                _ => return,
            };
            if *copy_of.get_or_insert(made_at) != made_at {
                return;
            }
            let idle = shared.config.idle.saturating_sub(known.asked_at.elapsed());
            let left = idle.min(shared.config.age.saturating_sub(made_at.elapsed()));
            if left.is_zero() {
                copies.known.remove(&key);
                copies.measure();
                return;
            }
            left
        };
        sleep(left).await;
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
