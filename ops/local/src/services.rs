//! The services of a local run: found or started, migrated, and kept alive until told to stop.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::install::{self, Missing};
use crate::layout::Layout;
use crate::postgres::{self, Binaries, Cluster};
use crate::progress::Progress;
use crate::redis::{self, Binary, Server};
use crate::secrets::Secrets;
use crate::supervise::Process;
use crate::{migrate, npm, supervise};

/// Before each restart within [`RESTART_WINDOW`]; when they are used up the process is given up.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(10),
];
const RESTART_WINDOW: Duration = Duration::from_secs(60);

/// Where a service comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Given by the environment; not ours to start or stop.
    Given,
    /// Started here, of this version.
    Private(String),
}

/// What programs of a local run need to know.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The folders.
    pub layout: Layout,
    /// Connection of the running product.
    pub database_url: String,
    /// Connection of the owner, who migrates.
    pub migrate_url: String,
    /// Connection to Redis.
    pub redis_url: String,
    /// Where PostgreSQL comes from.
    pub postgres: Origin,
    /// Where Redis comes from.
    pub redis: Origin,
    /// Generated secrets (`master_key`, …).
    pub secrets: Secrets,
}

/// Servers that are there already and are to be used instead of private ones.
#[derive(Clone, Default)]
pub struct Given {
    /// The product's connection.
    pub database_url: Option<String>,
    /// The owner's connection; the product's when `None`.
    pub migrate_url: Option<String>,
    /// Redis.
    pub redis_url: Option<String>,
}

impl Given {
    /// From `BOTLEDGER_DATABASE__URL` or `DATABASE_URL`, `BOTLEDGER_DATABASE__MIGRATE_URL`,
    /// `BOTLEDGER_REDIS__URL` or `REDIS_URL`. Empty variables count as absent.
    pub fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|url| !url.is_empty());
        Self {
            database_url: variable("BOTLEDGER_DATABASE__URL").or_else(|| variable("DATABASE_URL")),
            migrate_url: variable("BOTLEDGER_DATABASE__MIGRATE_URL"),
            redis_url: variable("BOTLEDGER_REDIS__URL").or_else(|| variable("REDIS_URL")),
        }
    }
}

type Starting = Pin<Box<dyn Future<Output = Result<Process>> + Send>>;

/// Starts a process again after it ended by itself.
pub type Starter = Arc<dyn Fn() -> Starting + Send + Sync>;

/// A process that is restarted when it ends, for as long as this value lives. Dropping it does not
/// stop the process: [`supervise::stop_everything`] does.
#[derive(Debug)]
pub struct Keeper {
    name: &'static str,
    pid: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Takes care of `process`. A process that ends by itself is started again with a growing pause;
    /// after five times in a minute the reason goes to `failures` and it is left alone.
    pub fn keep(
        process: Process,
        starter: Starter,
        log: PathBuf,
        failures: mpsc::UnboundedSender<String>,
    ) -> Self {
        let pid = Arc::new(AtomicU32::new(process.pid));
        let name = process.name;
        let task = tokio::spawn(watch(process, starter, log, failures, Arc::clone(&pid)));
        Self { name, pid, task }
    }

    /// Name and current process id.
    pub fn child(&self) -> (String, u32) {
        (self.name.to_owned(), self.pid.load(Ordering::Relaxed))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(
    mut process: Process,
    starter: Starter,
    log: PathBuf,
    failures: mpsc::UnboundedSender<String>,
    pid: Arc<AtomicU32>,
) {
    let name = process.name;
    let mut restarts: Vec<Instant> = Vec::new();
    loop {
        let mut reason = format!("{name} ended by itself ({})", process.wait().await);
        process = loop {
            restarts.retain(|at| at.elapsed() < RESTART_WINDOW);
            let Some(pause) = PAUSES.get(restarts.len()) else {
                let tail = supervise::log_tail(&log, 12);
                drop(failures.send(format!("{reason} again and again; from {}:\n{tail}", log.display())));
                return;
            };
            restarts.push(Instant::now());
            tracing::warn!(process.name = name, "{reason}; starting it again in {pause:?}");
            tokio::time::sleep(*pause).await;
            match starter().await {
                Ok(next) => break next,
                Err(error) => reason = format!("{name} could not be started again ({error:#})"),
            }
        };
        pid.store(process.pid, Ordering::Relaxed);
    }
}

/// Services that answer, and those of them that we hold.
#[derive(Debug)]
pub struct Services {
    /// What programs need to know.
    pub environment: Environment,
    /// Ours, in the order of starting.
    pub keepers: Vec<Keeper>,
}

impl Services {
    /// Finds or starts PostgreSQL and Redis and migrates the database. The caller holds the run's lock
    /// and has created the layout.
    ///
    /// # Errors
    /// When something is missing and may not be installed, or does not start, or the database cannot
    /// be migrated. What was started is left to [`supervise::stop_everything`].
    pub async fn start(
        layout: Layout,
        given: Given,
        yes: bool,
        progress: &Progress,
        failures: mpsc::UnboundedSender<String>,
    ) -> Result<Self> {
        let secrets = Secrets::open(layout.secrets())?;
        let (postgres, redis) =
            programs(&layout, given.database_url.is_none(), given.redis_url.is_none(), yes, progress).await?;
        let database = database(&layout, &given, postgres, &secrets, progress, &failures);
        let cache = cache(&layout, &given, redis, &secrets, progress, &failures);
        let (database, cache) = tokio::try_join!(database, cache)?;
        let environment = Environment {
            layout,
            database_url: database.app_url,
            migrate_url: database.owner_url,
            redis_url: cache.url,
            postgres: database.origin,
            redis: cache.origin,
            secrets,
        };
        Ok(Self { environment, keepers: database.keeper.into_iter().chain(cache.keeper).collect() })
    }
}

/// Finds the programs that are needed, installing what is missing where that is allowed.
///
/// # Errors
/// When something is missing and may not be installed, or is too old.
pub async fn programs(
    layout: &Layout,
    want_postgres: bool,
    want_redis: bool,
    yes: bool,
    progress: &Progress,
) -> Result<(Option<Binaries>, Option<Binary>)> {
    let existing = postgres::existing_majors(&layout.clusters);
    let look = || -> Result<_> {
        let postgres = if want_postgres {
            let found = Binaries::find_all(&npm::installed(&layout.clusters));
            // Data of a version that is not here: that version can be installed, like nothing at all.
            match postgres::choose(&found, &existing) {
                Ok(choice) => choice,
                Err(error) if found.iter().any(|binaries| existing.contains(&binaries.major)) => {
                    return Err(error);
                }
                Err(error) if existing.is_empty() => return Err(error),
                Err(_) => None,
            }
        } else {
            None
        };
        Ok((postgres, if want_redis { Binary::find()? } else { None }))
    };
    let (postgres, redis) = look()?;
    let mut missing = Vec::new();
    if want_postgres && postgres.is_none() {
        missing.push(Missing::Postgres(existing.last().copied()));
    }
    if want_redis && redis.is_none() {
        missing.push(Missing::Redis);
    }
    if missing.is_empty() {
        return Ok((postgres, redis));
    }
    let unreadable = || postgres::choose(&Binaries::find_all(&npm::installed(&layout.clusters)), &existing);
    let npm_would_do = npm::is_possible() && existing.last().is_none_or(|major| *major == npm::MAJOR);
    if missing.contains(&Missing::Postgres(existing.last().copied()))
        && !install::is_possible(yes)
        && npm_would_do
    {
        npm::install(&layout.clusters, yes, &layout.logs(), progress).await?;
        missing.retain(|missing| *missing == Missing::Redis);
    }
    if !missing.is_empty()
        && let Err(error) = install::install(&missing, yes, &layout.logs(), progress).await
    {
        // When data is there, the better message names it.
        unreadable()?;
        return Err(error);
    }
    let (postgres, redis) = look()?;
    if want_postgres && postgres.is_none() {
        bail!(
            "PostgreSQL was installed but is not found: name the folder of `postgres` and `initdb` in PG_BIN"
        );
    }
    if want_redis && redis.is_none() {
        bail!("Redis was installed but is not found: name the server program in REDIS_BIN");
    }
    Ok((postgres, redis))
}

struct Database {
    app_url: String,
    owner_url: String,
    origin: Origin,
    keeper: Option<Keeper>,
}

async fn database(
    layout: &Layout,
    given: &Given,
    binaries: Option<Binaries>,
    secrets: &Secrets,
    progress: &Progress,
    failures: &mpsc::UnboundedSender<String>,
) -> Result<Database> {
    let Some(binaries) = binaries else {
        let app_url = given.database_url.clone().context("neither DATABASE_URL nor PostgreSQL programs")?;
        let owner_url = given.migrate_url.clone().unwrap_or_else(|| app_url.clone());
        let migrated = migrate::migrate(&owner_url).await?;
        progress.step(format!("PostgreSQL from DATABASE_URL, {}", told(migrated)));
        return Ok(Database { app_url, owner_url, origin: Origin::Given, keeper: None });
    };
    let cluster = Cluster {
        data: layout.clusters.join(format!("pg{}", binaries.major)),
        run: layout.run.clone(),
        log: layout.logs().join("postgres.log"),
        run_as: layout.run_as,
        password: secrets.get_or_create("postgres_superuser")?,
        durable: true,
        binaries,
    };
    if cluster.create().await? {
        progress.step(format!("made a private PostgreSQL cluster in {}", cluster.data.display()));
    } else {
        cluster.close_to_others()?;
    }
    let process = cluster.start().await?;
    let owner_password = secrets.get_or_create("postgres_owner")?;
    let app_password = secrets.get_or_create("postgres_app")?;
    cluster.ensure_database(&owner_password).await?;
    let owner_url = cluster.url(postgres::OWNER, &owner_password, postgres::DATABASE);
    let migrated = migrate::migrate(&owner_url).await?;
    cluster.ensure_app_role(&app_password).await?;
    progress.step(format!("PostgreSQL {} is up, {}", cluster.binaries.version, told(migrated)));
    let app_url = cluster.url(postgres::APP, &app_password, postgres::DATABASE);
    let origin = Origin::Private(cluster.binaries.version.clone());
    let log = cluster.log.clone();
    let starter: Starter = Arc::new(move || {
        let cluster = cluster.clone();
        Box::pin(async move { cluster.start().await })
    });
    let keeper = Keeper::keep(process, starter, log, failures.clone());
    Ok(Database { app_url, owner_url, origin, keeper: Some(keeper) })
}

fn told(migrated: migrate::Migrated) -> String {
    match migrated.applied {
        0 => format!("schema in step ({} migrations)", migrated.total),
        applied => format!("{applied} of {} migrations applied", migrated.total),
    }
}

struct Cache {
    url: String,
    origin: Origin,
    keeper: Option<Keeper>,
}

async fn cache(
    layout: &Layout,
    given: &Given,
    binary: Option<Binary>,
    secrets: &Secrets,
    progress: &Progress,
    failures: &mpsc::UnboundedSender<String>,
) -> Result<Cache> {
    let Some(binary) = binary else {
        let url = given.redis_url.clone().context("neither REDIS_URL nor a Redis program")?;
        redis::ping(&url).await.context("REDIS_URL is set, but Redis does not answer there")?;
        progress.step("Redis from REDIS_URL");
        return Ok(Cache { url, origin: Origin::Given, keeper: None });
    };
    let server = Server {
        run: layout.run.clone(),
        log: layout.logs().join("redis.log"),
        run_as: layout.run_as,
        password: secrets.get_or_create("redis")?,
        binary,
    };
    let process = server.start().await?;
    progress.step(format!("Redis {} is up", server.binary.version));
    let url = server.url();
    let origin = Origin::Private(server.binary.version.clone());
    let log = server.log.clone();
    let starter: Starter = Arc::new(move || {
        let server = server.clone();
        Box::pin(async move { server.start().await })
    });
    let keeper = Keeper::keep(process, starter, log, failures.clone());
    Ok(Cache { url, origin, keeper: Some(keeper) })
}
