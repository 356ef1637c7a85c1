//! Subcommands, one file each.
//!
//! Exit codes: 0 done; 1 an error, or the answer is "no" (a check failed, nothing is running); 2 the
//! command line cannot be read. Results go to stdout, progress and errors to stderr.

pub mod config;
pub mod local;
pub mod migrate;
pub mod up;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::config::{Loaded, Sources};

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
        Ok(Sources::of_process(self.config, self.set).read()?)
    }
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Bring the database to this build's schema
    Migrate(migrate::Migrate),
    /// Look at the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Run on this machine, with private services where none are given
    #[command(subcommand)]
    Local(local::Local),
}

impl Cli {
    /// Runs the subcommand and gives its exit code.
    ///
    /// # Errors
    /// When it cannot be carried out.
    pub async fn run(self) -> Result<u8> {
        match self.command {
            Command::Migrate(migrate) => migrate.run(self.settings).await,
            Command::Config(command) => command.run(self.settings),
            Command::Local(command) => command.run(self.settings).await,
        }
    }
}
