//! `botledger relay …`: the ledger's way to another event store.

use anyhow::Result;
use botledger_local::progress::say;
use botledger_relay::{RelayStatus, statuses};
use clap::Subcommand;
use serde_json::{Value, json};

use super::Settings;
use crate::platform::answering_pool;

#[derive(Clone, Debug, Subcommand)]
pub enum RelayCommand {
    /// Relay, and nothing else; of as many of these as you like one works at a time
    Run,
    /// How far it is, what holds it up and which process does it; exit with 1 when somebody should look
    Status {
        /// Print JSON: `[{"stream", "target", "position", "state", "reason", "failed_position", "since",
        /// "lag_events", "lag_s", "holder"}]`
        #[arg(long)]
        json: bool,
    },
}

impl RelayCommand {
    /// # Errors
    /// When the database does not answer; `run` as `botledger serve`.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let json = match self {
            Self::Run => return super::serve::run_relay(settings).await,
            Self::Status { json } => json,
        };
        let pool = answering_pool(&settings.load_running()?.config).await?;
        let all = statuses(&pool).await?;
        if json {
            say(serde_json::to_string_pretty(&all.iter().map(as_json).collect::<Vec<_>>())?);
        } else if all.is_empty() {
            say("nothing has been relayed yet; relay.url says where to");
        } else {
            all.iter().map(as_text).for_each(say);
        }
        Ok(u8::from(all.iter().any(RelayStatus::needs_somebody)))
    }
}

fn as_json(status: &RelayStatus) -> Value {
    json!({
        "stream": status.stream,
        "target": status.target,
        "position": status.position.0,
        "state": status.state,
        "reason": status.reason,
        "failed_position": status.failed_position.map(|position| position.0),
        "since": status.since,
        "lag_events": status.lag_events,
        "lag_s": status.lag_s,
        "holder": status.holder,
    })
}

pub(super) fn as_text(status: &RelayStatus) -> String {
    let RelayStatus { stream, target, position, state, lag_events, lag_s, .. } = status;
    let holder = status.holder.as_deref().unwrap_or("no process");
    let since = status.since.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let why = status.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!(
        "{stream} on {target}: at {position} ({lag_events} events and {lag_s} s behind), held by {holder}, \
         {state} since {since}{why}"
    )
}
