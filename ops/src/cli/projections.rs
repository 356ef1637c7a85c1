//! `botledger projections …`: how read models keep up.

use anyhow::{Result, bail};
use botledger_domain::{Position, Reason};
use botledger_local::progress::say;
use botledger_projections::{CheckpointStatus, Decision, decide, statuses};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::Settings;
use crate::platform::answering_pool;

#[derive(Clone, Debug, Subcommand)]
pub enum ProjectionsCommand {
    /// How far each is and which process runs it; exit with 1 when one is stopped or does not move
    #[command(visible_alias = "list")]
    Status {
        /// Print JSON: `[{"name", "version", "position", "status", "lag", "waiting_s", "stalled", "holder",
        /// "failed_position", "failed_type", "failed_stream", "error", "stopped_at"}]`
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
                Ok(u8::from(rows.iter().any(|row| row.trouble().is_some())))
            }
            Self::Decide(wanted) => {
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
        "waiting_s": row.waiting_s,
        "stalled": row.is_stalled(),
        "holder": row.holder_name,
        "failed_position": row.failed_position.map(|position| position.0),
        "failed_type": row.failed_type,
        "failed_stream": row.failed_stream,
        "error": row.error,
        "stopped_at": row.stopped_at,
    })
}

fn as_text(row: &CheckpointStatus) -> String {
    let holder = row.holder_name.as_deref().unwrap_or("no process");
    let mut line = format!(
        "{:<14} {:<8} v{} at {} ({} behind), held by {holder}",
        row.name, row.status, row.version, row.position, row.lag
    );
    if let (Some(position), Some(error), Some(since)) = (row.failed_position, &row.error, row.stopped_at) {
        let (kind, stream) = (&row.failed_type, &row.failed_stream);
        line.push_str(&format!(
            "; stopped at event {position} ({} of {}) since {}: {error}",
            kind.as_deref().unwrap_or("unknown"),
            stream.as_deref().unwrap_or("an unknown stream"),
            since.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        ));
    } else if row.is_stalled() {
        line.push_str(&format!("; STALLED: nothing applied for {} s", row.waiting_s.unwrap_or_default()));
    }
    line
}
