//! Services for one command: a PostgreSQL that trades safety for speed and a Redis, both gone when
//! the command ends.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::layout::{self, Layout};
use crate::postgres::{Cluster, SUPERUSER};
use crate::progress::Progress;
use crate::redis::Server;
use crate::run_as::RunAs;
use crate::secrets::random_secret;
use crate::supervise::{self, Launch, Output};
use crate::up::Signals;
use crate::{install, migrate, services};

const DATABASE: &str = "botledger_throwaway";
const PREFIX: &str = "services-";

/// What a command on throwaway services asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// The database has the current schema.
    pub migrated: bool,
    /// PostgreSQL flushes as a production server does; benchmarks without that would lie.
    pub durable: bool,
    /// Go and the packages that verify proofs are here.
    pub go: bool,
    /// Missing programs may be installed without asking.
    pub yes: bool,
}

/// Starts PostgreSQL and Redis, runs the command with `DATABASE_URL` and `REDIS_URL` (the database
/// belongs to a superuser, so that tests may create more) and `PG_BIN` (where `pgbench` is), stops
/// both, and gives the command's exit code; 128 + signal when a signal ended it.
///
/// # Errors
/// When a service does not start or the command cannot be run.
pub async fn with_services(
    layout: &Layout,
    command: &[OsString],
    wishes: Wishes,
    progress: &Progress,
) -> Result<u8> {
    let mut signals = Signals::listen()?;
    let place = Place::create(layout)?;
    let result = tokio::select! {
        result = run(layout, &place, command, wishes, progress) => result,
        name = signals.next() => {
            progress.step(format!("{name}: stopping"));
            Ok(130)
        }
    };
    supervise::stop_everything().await;
    place.remove();
    result
}

async fn run(
    layout: &Layout,
    place: &Place,
    command: &[OsString],
    wishes: Wishes,
    progress: &Progress,
) -> Result<u8> {
    let Some((program, arguments)) = command.split_first() else { bail!("no command to run") };
    if wishes.go {
        install::have_go(wishes.yes, &layout.logs(), progress).await?;
    }
    let (binaries, binary) = services::programs(layout, true, true, wishes.yes, progress).await?;
    let cluster = Cluster {
        binaries: binaries.context("PostgreSQL was wanted and not missing")?,
        data: place.data.join("pg"),
        run: place.run.clone(),
        log: place.data.join("postgres.log"),
        run_as: layout.run_as,
        password: random_secret(),
        durable: wishes.durable,
    };
    let server = Server {
        binary: binary.context("Redis was wanted and not missing")?,
        run: place.run.clone(),
        log: place.data.join("redis.log"),
        run_as: layout.run_as,
        password: random_secret(),
    };
    let database = async {
        cluster.create().await?;
        cluster.start().await?;
        cluster.create_database(DATABASE).await
    };
    let cache = async { server.start().await.map(drop) };
    tokio::try_join!(database, cache)?;
    let url = cluster.url(SUPERUSER, &cluster.password, DATABASE);
    if wishes.migrated {
        migrate::migrate(&url).await?;
    }
    progress.step(format!(
        "throwaway PostgreSQL {} and Redis {} are up",
        cluster.binaries.version, server.binary.version
    ));
    let mut launch = Launch::new("command", PathBuf::from(program), Output::Inherit).args(arguments);
    launch.env = vec![
        ("DATABASE_URL".to_owned(), url.into()),
        ("REDIS_URL".to_owned(), server.url().into()),
        ("PG_BIN".to_owned(), cluster.binaries.bin.clone().into()),
    ];
    let status = launch.start()?.wait().await;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(1))
}

/// The folders of one throwaway run.
struct Place {
    data: PathBuf,
    run: PathBuf,
}

impl Place {
    fn create(layout: &Layout) -> Result<Self> {
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| layout.root.join("target"), PathBuf::from);
        // Services that run as another user need a way in.
        let parent = [target, std::env::temp_dir(), PathBuf::from("/tmp")]
            .into_iter()
            .find(|folder| folder.is_dir() && layout.run_as.barred_at(folder).is_none())
            .context("no folder that the services may enter: tried target, TMPDIR and /tmp")?;
        remove_leftovers(&parent, PREFIX);
        let name = format!("{PREFIX}{}", std::process::id());
        let data = parent.join(&name);
        fs::DirBuilder::new()
            .mode(0o711)
            .create(&data)
            .with_context(|| format!("could not create {}", data.display()))?;
        let run = layout::runtime_folder(&format!("{}-{name}", layout::short_hash(&parent)), layout.run_as)?;
        if let Some(folder) = run.parent() {
            remove_leftovers(folder, "botledger-");
        }
        create_run(&run, layout.run_as)?;
        Ok(Self { data, run })
    }

    fn remove(&self) {
        fs::remove_dir_all(&self.data).ok();
        fs::remove_dir_all(&self.run).ok();
    }
}

fn create_run(run: &Path, run_as: RunAs) -> Result<()> {
    if run.exists() {
        fs::remove_dir_all(run).ok();
    }
    layout::create_runtime_folder(run, run_as)
}

/// A run that was killed could not tidy up: its folders begin with `start` and end in `services-` and
/// the id of a process that is gone.
fn remove_leftovers(parent: &Path, start: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(start)) else { continue };
        let pid = name.rsplit_once(PREFIX).and_then(|(_, pid)| pid.parse::<u32>().ok());
        if let Some(pid) = pid
            && !supervise::is_alive(pid)
        {
            // In a shared /tmp those of other users stay: we may not remove them.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}
