//! `botledger projections …`: how read models keep up.

use anyhow::{Result, bail};
use botledger_domain::{Position, Reason};
use botledger_journal::transfer::unfinished_import;
use botledger_local::progress::say;
use botledger_projections::{CheckpointStatus, Decision, decide, statuses};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::Settings;
use crate::platform::answering_pool;

#[derive(Clone, Debug, Subcommand)]
pub enum ProjectionsCommand {
    /// How far each is; exit with 1 when one is stopped
    Status {
        /// Print JSON: `[{"name", "version", "position", "status", "lag", "failed_position", "error"}]`
        #[arg(long)]
        json: bool,
    },
    /// Decide about the event that stopped one
    Decide(Decide),
}

#[derive(Clone, Debug, Args)]
pub struct Decide {
    /// The read model
    name: String,
    /// Position of the event it stopped at
    position: i64,
    /// What is to happen with it
    #[arg(value_enum)]
    decision: Choice,
    /// Why; kept
    #[arg(long)]
    reason: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Choice {
    /// Try it again, for example after an update.
    Retry,
    /// Leave it out for ever, also when rebuilding.
    Skip,
}

impl ProjectionsCommand {
    /// # Errors
    /// When the database does not answer, or the read model is not stopped at that event.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let pool = answering_pool(&settings.load_running()?.config).await?;
        match self {
            Self::Status { json } => {
                let rows = statuses(&pool).await?;
                if json {
                    say(serde_json::to_string_pretty(&rows.iter().map(as_json).collect::<Vec<_>>())?);
                } else {
                    for row in &rows {
                        say(as_text(row));
                    }
                }
                Ok(u8::from(rows.iter().any(|row| row.status == "stopped")))
            }
            Self::Decide(wanted) => {
                if let Some(why) = unfinished_import(&pool).await? {
                    bail!(why);
                }
                let reason = Reason::parse(&wanted.reason)?;
                let decision = match wanted.decision {
                    Choice::Retry => Decision::Retry,
                    Choice::Skip => Decision::Skip,
                };
                let position = Position(wanted.position);
                if !decide(&pool, &wanted.name, position, decision, reason.as_str(), None).await? {
                    bail!("{} is not stopped at event {position}", wanted.name);
                }
                say("recorded; the read model obeys within a moment");
                Ok(0)
            }
        }
    }
}

fn as_json(row: &CheckpointStatus) -> Value {
    json!({
        "name": row.name,
        "version": row.version,
        "position": row.position.0,
        "status": row.status,
        "lag": row.lag,
        "failed_position": row.failed_position.map(|position| position.0),
        "error": row.error,
    })
}

fn as_text(row: &CheckpointStatus) -> String {
    let mut line = format!("{:<14} {:<8} at {} ({} behind)", row.name, row.status, row.position, row.lag);
    if let (Some(position), Some(error)) = (row.failed_position, &row.error) {
        line.push_str(&format!("; stopped at event {position}: {error}"));
    }
    line
}
