//! Subcommands, one file each.
//!
//! Exit codes: 0 done; 1 an error, or the answer is "no" (a check failed, nothing is running); 2 the
//! command line cannot be read. Results go to stdout, progress and errors to stderr.

pub mod address;
pub mod audit;
pub mod bot;
pub mod budget;
pub mod config;
pub mod events;
pub mod export;
pub mod history;
pub mod import;
pub mod keys;
pub mod link;
pub mod local;
pub mod migrate;
pub mod policy;
pub mod projections;
pub mod relay;
pub mod replay;
pub mod score;
pub mod sdl;
pub mod serve;
pub mod shell;
pub mod sim;
pub mod up;
pub mod what_if;
pub mod witness;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::config::{Loaded, Sources};
use crate::local_run;
use shell::Told;

/// Runs a fleet of Telegram AI bots and keeps an exact ledger of everything they do.
#[derive(Clone, Debug, Parser)]
#[command(name = "botledger", version, about)]
pub struct Cli {
    #[command(flatten)]
    pub settings: Settings,
    #[command(subcommand)]
    pub command: Command,
}

/// Where settings come from; see `config.rs`.
#[derive(Clone, Debug, Default, Args)]
pub struct Settings {
    /// Settings file [default: ./botledger.toml if there is one]
    #[arg(long, value_name = "FILE", env = "BOTLEDGER_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Override one setting, e.g. --set http.listen=127.0.0.1:9000
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    pub set: Vec<String>,
}

impl Settings {
    /// The same settings as arguments for another process of this program.
    pub fn arguments(&self) -> Vec<OsString> {
        let config = self.config.iter().flat_map(|file| ["--config".into(), file.clone().into_os_string()]);
        config.chain(self.set.iter().flat_map(|set| ["--set".into(), set.into()])).collect()
    }

    /// Reads the configuration of this process.
    ///
    /// # Errors
    /// When it cannot be read; whether values make sense is `config::problems`' question.
    pub fn load(self) -> Result<Loaded> {
        Ok(self.sources().read()?)
    }

    /// Where this process's configuration is from.
    #[must_use]
    pub fn sources(self) -> Sources {
        Sources::of_process(self.config, self.set)
    }

    /// Reads the configuration of this process; where it names no database, that of the local run.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn load_running(self) -> Result<Loaded> {
        let mut sources = self.sources();
        let loaded = sources.clone().read()?;
        if !loaded.config.database.url.is_empty() {
            return Ok(loaded);
        }
        for (name, value) in local_run::recall(None)? {
            if sources.environment.iter().all(|(given, _)| *given != name) {
                sources.environment.push((name, value));
            }
        }
        Ok(sources.read()?)
    }
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the product: API, webhooks, bots and read models in one process
    Serve(serve::Serve),
    /// Run only bots; as many of these as you like
    Worker(serve::Worker),
    /// Keep only read models up to date; as many of these as you like
    Project(serve::Project),
    /// Bring the database to this build's schema
    Migrate(migrate::Migrate),
    /// Look at the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print the one-time link that lets the first owner in
    Link(link::Link),
    /// The keys of people and bots
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// The bots of the fleet
    #[command(subcommand)]
    Bot(bot::BotCommand),
    /// What bots and workspaces may use
    #[command(subcommand)]
    Budget(budget::BudgetCommand),
    /// Policies: what bots are for, what becomes of other messages, and what would have
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Decide what was decided again, by another policy or plan: who would have fared differently
    WhatIf(what_if::TryRules),
    /// Addresses that ask the API: let one in, set its pace
    #[command(subcommand)]
    Address(address::AddressCommand),
    /// Prove that the ledger was not changed, or find where it was
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Read the ledger
    Events(events::Events),
    /// One thing through time: every event with what it changed
    History(history::History),
    /// What changed in one thing between two moments
    Diff(history::Diff),
    /// Write the ledger into files: for other software, for safe keeping, for moving house
    #[command(subcommand)]
    Export(export::ExportCommand),
    /// Bring an exported ledger into an empty installation
    Import(import::Import),
    /// How the read models keep up, and what becomes of an event that stopped one
    #[command(subcommand)]
    Projections(projections::ProjectionsCommand),
    /// The relay of the ledger to a KurrentDB (EventStoreDB) cluster
    #[command(subcommand)]
    Relay(relay::RelayCommand),
    /// Make read models again from the ledger, or compare them with it
    Replay(replay::Replay),
    /// The detectors by themselves: train a model, judge texts, measure on labelled files
    #[command(subcommand)]
    Score(score::Score),
    /// Print the GraphQL schema
    Sdl(sdl::Sdl),
    /// Stand-ins for Telegram and the model server
    #[command(subcommand)]
    Sim(sim::Sim),
    /// Run on this machine, with private services where none are given
    #[command(subcommand)]
    Local(local::Local),
}

impl Command {
    /// What the audit table calls it; nothing for what only looks, and for what acts in its own name while it
    /// runs.
    fn action(&self) -> Option<&'static str> {
        Some(match self {
            Self::Link(_) => "session.link",
            Self::Keys(keys::KeysCommand::Rewrap { .. }) => "keys.rewrap",
            Self::Bot(bot::BotCommand::Register(_)) => "bot.register",
            Self::Bot(bot::BotCommand::Start(_)) => "bot.start",
            Self::Bot(bot::BotCommand::Stop { .. }) => "bot.stop",
            Self::Budget(budget::BudgetCommand::Set(_)) => "budget.set",
            Self::Budget(budget::BudgetCommand::Raise(_)) => "budget.raise",
            Self::Budget(budget::BudgetCommand::Remove { .. }) => "budget.remove",
            Self::Policy(policy::PolicyCommand::Publish { .. }) => "policy.publish",
            Self::Policy(policy::PolicyCommand::Withdraw { .. }) => "policy.withdraw",
            Self::Policy(policy::PolicyCommand::Restore { .. }) => "policy.restore",
            Self::Address(address::AddressCommand::Allow(_)) => "access_list.add",
            Self::Address(address::AddressCommand::Pace(_)) => "rate_override.set",
            Self::Projections(projections::ProjectionsCommand::Decide(_)) => "projection.decide",
            Self::Projections(projections::ProjectionsCommand::Rebuild(_)) => "projection.rebuild",
            Self::Projections(projections::ProjectionsCommand::Swap { .. }) => "projection.swap",
            Self::Projections(projections::ProjectionsCommand::Rollback(_)) => "projection.roll_back",
            Self::Projections(projections::ProjectionsCommand::Cancel(_)) => "projection.cancel_rebuild",
            Self::Projections(projections::ProjectionsCommand::Forget(_)) => "projection.forget_previous",
            Self::Replay(replay) if replay.acts() => "replay",
            Self::Audit(audit::AuditCommand::Report(_)) => "audit.report",
            Self::Export(export::ExportCommand::Log(log)) => log.action(),
            Self::Import(import) if import.acts() => "log.import",
            Self::Audit(audit::AuditCommand::Checkpoint { cosigned_by: None, .. }) => "audit.checkpoint",
            Self::Audit(_) | Self::Bot(_) | Self::Budget(_) | Self::Policy(_) | Self::Projections(_) => {
                return None;
            }
            Self::Replay(_) | Self::Import(_) | Self::Serve(_) | Self::Worker(_) | Self::Project(_) => {
                return None;
            }
            Self::Config(_) | Self::Events(_) | Self::History(_) | Self::Diff(_) | Self::WhatIf(_) => {
                return None;
            }
            Self::Migrate(_) | Self::Relay(_) | Self::Score(_) | Self::Sdl(_) => return None,
            Self::Sim(_) | Self::Local(_) => return None,
        })
    }
}

/// Whether something leaves that nobody can bring back: then the audit table knows of it before it begins.
fn carries_off(action: &str) -> bool {
    matches!(action, "session.link" | "keys.rewrap" | "audit.report" | "log.export" | "log.export_with_keys")
}

impl Cli {
    /// Runs the subcommand and gives its exit code.
    ///
    /// # Errors
    /// When it cannot be carried out.
    pub async fn run(self) -> Result<u8> {
        let mut told = Told::new();
        let Some(action) = self.command.action() else { return self.carry_out(&mut told).await };
        let settings = self.settings.clone();
        // An import keeps everybody else out by itself.
        let _present = match self.command {
            Command::Import(_) => None,
            _ => shell::present(settings.clone()).await?,
        };
        if carries_off(action) {
            shell::begun(settings.clone(), action).await?;
        }
        let done = self.carry_out(&mut told).await;
        shell::note(settings, action, &done, told).await;
        done
    }

    async fn carry_out(self, told: &mut Told) -> Result<u8> {
        match self.command {
            Command::Serve(serve) => serve.run(self.settings).await,
            Command::Worker(worker) => worker.run(self.settings).await,
            Command::Project(project) => project.run(self.settings).await,
            Command::Link(link) => link.run(self.settings).await,
            Command::Keys(command) => command.run(self.settings).await,
            Command::Bot(command) => command.run(self.settings).await,
            Command::Budget(command) => command.run(self.settings).await,
            Command::Policy(command) => command.run(self.settings).await,
            Command::WhatIf(question) => question.run(self.settings).await,
            Command::Address(command) => command.run(self.settings).await,
            Command::Audit(command) => command.run(self.settings, told).await,
            Command::Events(events) => events.run(self.settings).await,
            Command::History(history) => history.run(self.settings).await,
            Command::Diff(diff) => diff.run(self.settings).await,
            Command::Export(command) => command.run(self.settings, told).await,
            Command::Import(import) => import.run(self.settings).await,
            Command::Projections(command) => command.run(self.settings).await,
            Command::Relay(command) => command.run(self.settings).await,
            Command::Replay(replay) => replay.run(self.settings).await,
            Command::Score(command) => command.run(),
            Command::Sdl(sdl) => Ok(sdl.run()),
            Command::Sim(command) => command.run(self.settings).await,
            Command::Migrate(migrate) => migrate.run(self.settings).await,
            Command::Config(command) => command.run(self.settings),
            Command::Local(command) => command.run(self.settings).await,
        }
    }
}
