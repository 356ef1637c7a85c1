//! The `local` subcommands.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use rustix::process::Signal;
use serde_json::json;

use crate::doctor;
use crate::layout::Layout;
use crate::progress::{Progress, framed, say};
use crate::state::{self, Phase, UpState};
use crate::throwaway::Wishes;
use crate::up::{self, Application, ServicesOnly};
use crate::{http, supervise, throwaway};

const DOWN_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Which local run a command is about.
#[derive(Clone, Debug, Args)]
pub struct Where {
    /// The project folder whose `.local` is meant [default: the one we are in]
    #[arg(long, value_name = "FOLDER", global = true)]
    pub root: Option<PathBuf>,
}

impl Where {
    /// The folders of that run.
    ///
    /// # Errors
    /// When the folder does not exist, or nothing suitable for sockets is found.
    pub fn layout(&self) -> Result<Layout> {
        Layout::discover(self.root.as_deref())
    }
}

/// `botledger local …`
#[derive(Clone, Debug, Subcommand)]
pub enum LocalCommand {
    /// Start the private PostgreSQL and Redis, migrated, and hold them until Ctrl-C
    Services {
        #[command(flatten)]
        place: Where,
        /// Install what is missing without asking
        #[arg(long)]
        yes: bool,
        /// Bring the throwaway database to the current schema first
        #[arg(long)]
        migrate: bool,
        /// Let the throwaway PostgreSQL flush as a production server does
        #[arg(long)]
        durable: bool,
        /// Have Go and golang.org/x/mod too, with which tests verify what auditors are given
        #[arg(long)]
        go: bool,
        /// Run this command on throwaway services instead, and exit with its code
        #[arg(last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Stop the running `up`
    Down {
        #[command(flatten)]
        place: Where,
    },
    /// Say what is running here
    Status {
        #[command(flatten)]
        place: Where,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete everything under .local: database, secrets, logs
    Reset {
        #[command(flatten)]
        place: Where,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Look for what could keep this from running, each with its fix
    Doctor {
        #[command(flatten)]
        place: Where,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs a subcommand and gives its exit code: 0 done, 1 not so (nothing is running, a finding is
/// serious).
///
/// # Errors
/// When it cannot be carried out.
pub async fn run(command: LocalCommand) -> Result<u8> {
    match command {
        LocalCommand::Services { place, yes, migrate, durable, go, command } if command.is_empty() => {
            if migrate || durable || go {
                bail!("--migrate, --durable and --go are for a command on throwaway services");
            }
            up(place, yes, &ServicesOnly).await
        }
        LocalCommand::Services { place, yes, migrate, durable, go, command } => {
            let wishes = Wishes { migrated: migrate, durable, go, yes };
            throwaway::with_services(&place.layout()?, &command, wishes, &Progress::begin()).await
        }
        LocalCommand::Down { place } => down(&place.layout()?).await,
        LocalCommand::Status { place, json } => status(&place.layout()?, json).await,
        LocalCommand::Reset { place, yes } => reset(&place.layout()?, yes),
        LocalCommand::Doctor { place, json } => doctor::doctor(place.root.as_deref(), json).await,
    }
}

/// Starts and holds an application with its services; see [`up::up`].
///
/// # Errors
/// When something does not start.
pub async fn up(place: Where, yes: bool, application: &dyn Application) -> Result<u8> {
    up::up(place.layout()?, yes, application, Progress::begin()).await
}

async fn down(layout: &Layout) -> Result<u8> {
    let progress = Progress::begin();
    if !state::is_held(layout) {
        progress.step("nothing is running here");
        return Ok(0);
    }
    let began = Instant::now();
    // The holder writes its state right after it took the lock.
    let told = loop {
        if let Some(told) = state::read(layout)? {
            break told;
        }
        if began.elapsed() > Duration::from_secs(5) {
            bail!("something holds {} but does not say who it is", layout.home.join("lock").display());
        }
        tokio::time::sleep(POLL).await;
    };
    if !told.holder_is_alive() {
        bail!(
            "pid {} is not the process that wrote {}: not touching it",
            told.pid,
            state::state_path(layout).display()
        );
    }
    progress.step(format!("stopping pid {}", told.pid));
    supervise::signal_pid(told.pid, Signal::TERM);
    while state::is_held(layout) {
        if began.elapsed() > DOWN_PATIENCE {
            bail!("pid {} did not stop within {DOWN_PATIENCE:?}: see {}", told.pid, layout.logs().display());
        }
        tokio::time::sleep(POLL).await;
    }
    progress.step("stopped");
    Ok(0)
}

async fn status(layout: &Layout, as_json: bool) -> Result<u8> {
    // A killed holder left its state behind; the next one has not written its own yet.
    let told = if state::is_held(layout) { state::read(layout)? } else { None };
    let told = told.filter(UpState::holder_is_alive);
    let ready = match &told {
        Some(UpState { ready: Some((address, path)), .. }) => {
            matches!(http::get(address, path).await, Ok((200, _)))
        }
        Some(told) => told.phase == Phase::Ready,
        None => false,
    };
    if as_json {
        let children = told.iter().flat_map(|told| &told.children);
        let children: Vec<_> = children
            .map(|(name, pid)| json!({ "name": name, "pid": pid, "alive": supervise::is_alive(*pid) }))
            .collect();
        say(serde_json::to_string_pretty(&json!({
            "running": told.is_some(),
            "ready": ready,
            "pid": told.as_ref().map(|told| told.pid),
            "phase": told.as_ref().map(|told| told.phase),
            "children": children,
            "folder": layout.home,
        }))?);
    } else if let Some(told) = &told {
        say(format!("{} (pid {})", if ready { "running and ready" } else { "running, not ready" }, told.pid));
        if told.phase == Phase::Ready {
            say(framed(&told.title, &told.rows));
        }
    } else {
        say("not running; start it with ops/up");
    }
    Ok(u8::from(!ready))
}

fn reset(layout: &Layout, yes: bool) -> Result<u8> {
    let progress = Progress::begin();
    if !layout.home.exists() {
        progress.step(format!("nothing to delete: {} does not exist", layout.home.display()));
        return Ok(0);
    }
    let Some(_lock) = state::try_lock(layout)? else { bail!("it is running: stop it first with ops/down") };
    let keys = layout.secrets().join("master_key");
    if keys.is_file() && crate::postgres::existing_majors(&layout.clusters).is_empty() {
        bail!(
            "{} opens what is sealed in a database that is not kept here (DATABASE_URL); without it every message \
             and token there is lost. Move {} to a safe place, then repeat",
            keys.display(),
            layout.secrets().display()
        );
    }
    let mut doomed = vec![layout.home.clone(), layout.run.clone()];
    if layout.clusters != layout.home {
        doomed.push(layout.clusters.clone());
    }
    doomed.retain(|folder| folder.exists());
    if !yes {
        let list = doomed.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
        if !confirmed(&list)? {
            progress.step("nothing was deleted");
            return Ok(1);
        }
    }
    for folder in doomed {
        std::fs::remove_dir_all(&folder)
            .map_err(|error| anyhow::anyhow!("could not delete {}: {error}", folder.display()))?;
        progress.step(format!("deleted {}", folder.display()));
    }
    Ok(0)
}

fn confirmed(what: &str) -> Result<bool> {
    use std::io::{IsTerminal, Write};
    if !std::io::stdin().is_terminal() {
        bail!("this deletes {what} for good and there is no terminal to ask on: add --yes if that is meant");
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "This deletes {what} for good: every event, every key. Type `reset` to go on: ")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == "reset")
}
