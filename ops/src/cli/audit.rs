//! `botledger audit`

pub mod report;

use anyhow::Result;
use clap::Subcommand;

use super::Settings;
use super::shell::Told;

#[derive(Clone, Debug, Subcommand)]
pub enum AuditCommand {
    /// What operators and shells did and tried in a period, as a file with its hash
    Report(report::Report),
}

impl AuditCommand {
    /// # Errors
    /// See [`report::Report::run`].
    pub async fn run(self, settings: Settings, told: &mut Told) -> Result<u8> {
        match self {
            Self::Report(report) => report.run(settings, told).await,
        }
    }
}
