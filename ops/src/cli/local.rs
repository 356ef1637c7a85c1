//! `botledger local …`: the product and its private services on this machine.

use anyhow::Result;
use botledger_local::LocalCommand;
use clap::Subcommand;

use super::Settings;
use super::up::Up;

#[derive(Clone, Debug, Subcommand)]
pub enum Local {
    /// Start everything on this machine and hold it until Ctrl-C
    Up(Up),
    #[command(flatten)]
    Other(LocalCommand),
}

impl Local {
    /// Runs the subcommand and gives its exit code.
    ///
    /// # Errors
    /// When it cannot be carried out.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        match self {
            Self::Up(up) => up.run(settings).await,
            Self::Other(command) => botledger_local::run(command).await,
        }
    }
}
