//! `up`: start everything, say where it is, hold it until told to stop, and leave nothing behind.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use async_trait::async_trait;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::http;
use crate::layout::Layout;
use crate::progress::{Progress, framed, say};
use crate::services::{Environment, Given, Keeper, Origin, Services, Starter};
use crate::state::{self, Phase, UpState};
use crate::supervise::{self, Launch, Process};

const READY_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// How often it is looked whether a child was started again.
const LOOK: Duration = Duration::from_millis(500);

/// A program may drain for this long before it is stopped harder.
const PROGRAM_STOP: &[(Signal, Duration)] = &[(Signal::TERM, Duration::from_secs(20))];

/// A program that runs beside the services.
#[derive(Clone, Debug)]
pub struct Program {
    /// How to start it; its output must be a log file.
    pub launch: Launch,
    /// Its log file.
    pub log: PathBuf,
    /// `host:port` and path that answer 200 once it is ready; `None` when being alive is enough.
    pub ready: Option<(String, String)>,
}

/// What to run, and what to tell about it.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order of starting; each is ready before the next one starts.
    pub programs: Vec<Program>,
    /// Lines of the box: label and value.
    pub rows: Vec<(String, String)>,
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Stay until a signal comes.
    Hold,
    /// Stop everything and exit with this code.
    Exit(u8),
}

/// The product, as far as `up` has to know it.
#[async_trait]
pub trait Application: Send + Sync {
    /// Servers to use instead of private ones.
    fn given(&self) -> Given {
        Given::from_environment()
    }

    /// Which programs to run, now that the services answer and the database is migrated.
    ///
    /// # Errors
    /// When the configuration does not allow a plan.
    async fn plan(&self, environment: &Environment, progress: &Progress) -> Result<Plan>;

    /// Called when every program is ready; gives more lines for the box.
    ///
    /// # Errors
    /// Ends the run.
    async fn opened(&self, _environment: &Environment) -> Result<Vec<(String, String)>> {
        Ok(Vec::new())
    }

    /// Called after the box was printed; a demonstration plays here.
    ///
    /// # Errors
    /// Ends the run.
    async fn work(&self, _environment: &Environment) -> Result<Outcome> {
        Ok(Outcome::Hold)
    }
}

/// Only PostgreSQL and Redis, migrated: for working on the product itself.
#[derive(Clone, Copy, Debug)]
pub struct ServicesOnly;

#[async_trait]
impl Application for ServicesOnly {
    async fn plan(&self, environment: &Environment, _progress: &Progress) -> Result<Plan> {
        Ok(Plan {
            programs: Vec::new(),
            rows: vec![
                ("DATABASE_URL".to_owned(), environment.database_url.clone()),
                ("REDIS_URL".to_owned(), environment.redis_url.clone()),
            ],
        })
    }
}

/// Runs until a signal comes, a process cannot be kept alive, or the application says so. When the
/// run is already held by another process, waits until that one is ready and prints the same box.
/// Gives the exit code.
///
/// # Errors
/// When something does not start; nothing that was started is left running.
pub async fn up(layout: Layout, yes: bool, application: &dyn Application, progress: Progress) -> Result<u8> {
    layout.create()?;
    let Some(lock) = state::try_lock(&layout)? else { return join(&layout, &progress).await };
    if let Some(note) = layout.note() {
        progress.step(note);
    }
    let mut signals = Signals::listen()?;
    let result = tokio::select! {
        result = hold(layout.clone(), yes, application, progress) => result,
        name = signals.next() => {
            progress.step(format!("{name}: stopping"));
            Ok(0)
        }
    };
    let stopping = async {
        if let Ok(Some(mut told)) = state::read(&layout) {
            told.phase = Phase::Stopping;
            drop(state::write(&layout, &told));
        }
        // Newest first: programs, then Redis, then PostgreSQL.
        supervise::stop_everything().await;
    };
    tokio::select! {
        () = stopping => {}
        // A second signal: do not wait; the kernel tells the children when we are gone.
        name = signals.next() => progress.step(format!("{name} again: not waiting")),
    }
    std::fs::remove_file(state::state_path(&layout)).ok();
    drop(lock);
    if result.is_ok() {
        progress.step("stopped");
    }
    result
}

/// Dropped in the middle by a signal: the caller stops what was started.
async fn hold(layout: Layout, yes: bool, application: &dyn Application, progress: Progress) -> Result<u8> {
    let pid = std::process::id();
    let mut told = UpState {
        pid,
        birth_mark: supervise::birth_mark(pid),
        phase: Phase::Starting,
        title: "botledger".to_owned(),
        rows: Vec::new(),
        ready: None,
        children: Vec::new(),
    };
    state::write(&layout, &told)?;

    let (failures, mut failed) = mpsc::unbounded_channel();
    let services =
        Services::start(layout.clone(), application.given(), yes, &progress, failures.clone()).await?;
    let environment = &services.environment;
    let plan = application.plan(environment, &progress).await?;
    let mut keepers = Vec::new();
    for program in plan.programs {
        told.ready = program.ready.clone().or(told.ready);
        keepers.push(start(program, &progress, failures.clone()).await?);
    }
    told.title = format!("botledger is up ({:.1} s)", progress.seconds());
    told.rows = plan.rows;
    told.rows.extend(application.opened(environment).await?);
    told.rows.extend(places(environment));
    told.children = services.keepers.iter().chain(&keepers).map(Keeper::child).collect();
    told.phase = Phase::Ready;
    state::write(&layout, &told)?;
    say(framed(&told.title, &told.rows));

    let current =
        || -> Vec<(String, u32)> { services.keepers.iter().chain(&keepers).map(Keeper::child).collect() };
    let told = tell_of_restarts(&layout, told, current);
    let held = async {
        match application.work(environment).await? {
            Outcome::Exit(code) => Ok(code),
            Outcome::Hold => std::future::pending().await,
        }
    };
    tokio::select! {
        code = held => code,
        reason = failed.recv() => bail!(reason.unwrap_or_default()),
        error = told => bail!(error),
    }
}

/// Keeps `up.json` true while children are started again; ends only when it cannot be written.
async fn tell_of_restarts(
    layout: &Layout,
    mut told: UpState,
    current: impl Fn() -> Vec<(String, u32)>,
) -> anyhow::Error {
    loop {
        tokio::time::sleep(LOOK).await;
        let children = current();
        if children != told.children {
            told.children = children;
            if let Err(error) = state::write(layout, &told) {
                return error;
            }
        }
    }
}

fn places(environment: &Environment) -> Vec<(String, String)> {
    let layout = &environment.layout;
    let source = |origin: &Origin, name: &str, place: String| match origin {
        Origin::Given => format!("{name} from the environment"),
        Origin::Private(version) => format!("{name} {version} in {place}"),
    };
    vec![
        (
            "data".to_owned(),
            source(&environment.postgres, "PostgreSQL", layout.clusters.display().to_string()),
        ),
        ("cache".to_owned(), source(&environment.redis, "Redis", layout.run.display().to_string())),
        ("logs".to_owned(), layout.logs().display().to_string()),
        ("stop".to_owned(), "Ctrl-C here, or ops/down".to_owned()),
    ]
}

async fn start(
    program: Program,
    progress: &Progress,
    failures: mpsc::UnboundedSender<String>,
) -> Result<Keeper> {
    let name = program.launch.name;
    let process = start_ready(&program).await?;
    progress.step(format!("{name} is ready"));
    let log = program.log.clone();
    let program = Arc::new(program);
    let starter: Starter = Arc::new(move || {
        let program = Arc::clone(&program);
        Box::pin(async move { start_ready(&program).await })
    });
    Ok(Keeper::keep(process, starter, log, failures))
}

async fn start_ready(program: &Program) -> Result<Process> {
    let name = program.launch.name;
    let mut process = program.launch.clone().start()?;
    let Some((address, path)) = &program.ready else { return Ok(process) };
    let began = Instant::now();
    loop {
        if let Some(status) = process.ended() {
            bail!(
                "{name} ended ({status}); from {}:\n{}",
                program.log.display(),
                supervise::log_tail(&program.log, 12)
            );
        }
        let answer = http::get(address, path).await;
        if matches!(answer, Ok((200, _))) {
            return Ok(process);
        }
        if began.elapsed() > READY_PATIENCE {
            process.stop(PROGRAM_STOP).await;
            let last = match answer {
                Ok((status, body)) => format!("{status} {body}"),
                Err(error) => format!("{error:#}"),
            };
            bail!("{name} was not ready within {READY_PATIENCE:?}; http://{address}{path} last said: {last}");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Another process holds the run: wait until it is ready, then show what it shows.
async fn join(layout: &Layout, progress: &Progress) -> Result<u8> {
    let began = Instant::now();
    let mut said = false;
    loop {
        if !state::is_held(layout) {
            bail!("the other `up` ended before it was ready: see {}", layout.logs().display());
        }
        if let Some(told) = state::read(layout)?.filter(UpState::holder_is_alive) {
            let ready = match &told.ready {
                Some((address, path)) => matches!(http::get(address, path).await, Ok((200, _))),
                None => true,
            };
            if told.phase == Phase::Ready && ready {
                progress.step(format!("already running (pid {})", told.pid));
                say(framed(&told.title, &told.rows));
                return Ok(0);
            }
            if !said {
                progress.step(format!("already started (pid {}), waiting until it is ready", told.pid));
                said = true;
            }
            if began.elapsed() > READY_PATIENCE {
                bail!(
                    "pid {} holds this run but is not ready ({:?}): see {}, or stop it with `ops/down`",
                    told.pid,
                    told.phase,
                    layout.logs().display()
                );
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Requests to stop.
#[derive(Debug)]
pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// Not listened to under `nohup`.
    hangup: Option<tokio::signal::unix::Signal>,
}

impl Signals {
    /// From here on these signals no longer end the process by themselves.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// The name of the next one.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupt",
            _ = self.terminate.recv() => "terminate",
            () = received(&mut self.hangup) => "hang-up",
        }
    }
}

async fn received(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// `nohup` starts us with the signal ignored, and means it.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}
