//! `botledger projections …`: how read models keep up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use botledger_domain::{Actor, Position, Reason};
use botledger_journal::transfer::unfinished_import;
use botledger_local::progress::{Progress, say};
use botledger_projections::{
    CheckpointStatus, Decision, Projection, ReadPool, Rebuild as StoredRebuild, RecordedChange, all,
    cancel_rebuild, changes, decide, forget_previous, rebuilds, roll_back, start_rebuild, statuses, swap,
    work_on_rebuilds,
};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::replay::{chosen, difference_lines};
use crate::platform::answering_pool;

/// Between two looks at a rebuild that somebody waits for.
const LOOK: Duration = Duration::from_millis(200);
const BETWEEN_NEWS: Duration = Duration::from_secs(2);
/// States of rebuilds that something is kept of beside the live rows.
const KEPT: [&str; 4] = ["filling", "stopped", "ready", "swapped"];

#[derive(Clone, Debug, Subcommand)]
pub enum ProjectionsCommand {
    /// How far each is and which process runs it; exit with 1 when one is stopped or does not move
    #[command(visible_alias = "list")]
    Status {
        /// Print JSON: `[{"name", "version", "position", "status", "lag", "waiting_s", "stalled", "holder",
        /// "failed_position", "failed_type", "failed_stream", "error", "stopped_at", "rebuild"}]`
        #[arg(long)]
        json: bool,
    },
    /// Decide about the event that stopped one
    Decide(Decide),
    /// Make one anew beside the live rows, which are served meanwhile, and compare both; ends when it is ready
    Rebuild(Rebuild),
    /// Serve a ready rebuild instead of the live rows, which are kept
    Swap {
        #[command(flatten)]
        change: Change,
        /// Although rows differ: you have looked at them
        #[arg(long)]
        accept_differences: bool,
    },
    /// Serve the rows from before the last swap again
    Rollback(Change),
    /// Give an open rebuild up
    Cancel(Change),
    /// Let go of the rows from before the last swap
    Forget(Change),
    /// What was done to read models, by whom and why
    History {
        /// Only of this one
        name: Option<String>,
        /// Print JSON: `[{"name", "change", "position", "actor", "reason", "changed_at"}]`
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Debug, Args)]
pub struct Change {
    /// The read model
    name: String,
    /// Why; kept
    #[arg(long)]
    reason: String,
}

#[derive(Clone, Debug, Args)]
pub struct Rebuild {
    #[command(flatten)]
    change: Change,
    /// Swap as soon as it is ready and equal
    #[arg(long, conflicts_with = "detach")]
    swap: bool,
    /// Leave the work to running processes and end at once
    #[arg(long)]
    detach: bool,
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
                let (rows, rebuilds) = (statuses(&pool).await?, rebuilds(&pool).await?);
                let of = |row: &CheckpointStatus| rebuilds.iter().find(|rebuild| rebuild.name == row.name);
                if json {
                    let told: Vec<Value> = rows.iter().map(|row| as_json(row, of(row))).collect();
                    say(serde_json::to_string_pretty(&told)?);
                } else {
                    for row in &rows {
                        say(as_text(row));
                        if let Some(rebuild) =
                            of(row).filter(|rebuild| KEPT.contains(&rebuild.state.as_str()))
                        {
                            say(format!("  {}", rebuild_as_text(rebuild)));
                        }
                    }
                }
                Ok(u8::from(rows.iter().any(|row| row.trouble().is_some())))
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
            Self::Rebuild(wanted) => wanted.run(&pool).await,
            Self::Swap { change, accept_differences } => {
                let projection = change.projection()?;
                let reason = change.reason()?;
                swap(&pool, &projection, accept_differences, by(&reason)).await?;
                say(format!("{} is served from its rebuild; the rows before are kept", change.name));
                Ok(0)
            }
            Self::Rollback(change) => {
                let rebuild = roll_back(&pool, change.projection()?.name(), by(&change.reason()?)).await?;
                say(format!("{} is served from the rows before the swap", rebuild.name));
                Ok(0)
            }
            Self::Cancel(change) => {
                cancel_rebuild(&pool, change.projection()?.name(), by(&change.reason()?)).await?;
                say("given up; the live rows were not touched");
                Ok(0)
            }
            Self::Forget(change) => {
                forget_previous(&pool, change.projection()?.name(), by(&change.reason()?)).await?;
                say("the rows before the last swap are gone");
                Ok(0)
            }
            Self::History { name, json } => {
                let rows = changes(&pool, name.as_deref()).await?;
                if json {
                    say(serde_json::to_string_pretty(&rows.iter().map(change_as_json).collect::<Vec<_>>())?);
                } else {
                    for row in rows {
                        let at = row.changed_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
                        let (name, change) = (row.name, row.change);
                        say(format!(
                            "{at} {name:<14} {change:<11} at {} by {}: {}",
                            row.position, row.actor, row.reason
                        ));
                    }
                }
                Ok(0)
            }
        }
    }
}

/// Somebody with a shell on this machine.
const CLI: Actor = Actor::System("cli");

fn by(reason: &Reason) -> botledger_projections::Change<'_> {
    botledger_projections::Change { actor: &CLI, reason: reason.as_str() }
}

impl Change {
    fn projection(&self) -> Result<Arc<dyn Projection>> {
        Ok(chosen(all(), std::slice::from_ref(&self.name))?.remove(0))
    }

    fn reason(&self) -> Result<Reason> {
        Ok(Reason::parse(&self.reason)?)
    }
}

impl Rebuild {
    async fn run(self, pool: &ReadPool) -> Result<u8> {
        let (projection, reason) = (self.change.projection()?, self.change.reason()?);
        let mut rebuild = start_rebuild(pool, &projection, by(&reason)).await?;
        if self.detach {
            say(rebuild_as_text(&rebuild));
            return Ok(0);
        }
        // This process lends a hand: it may be the only one that knows this version.
        let cancel = CancellationToken::new();
        let work = work_on_rebuilds(pool.clone(), vec![Arc::clone(&projection)], cancel.clone());
        let work = tokio::spawn(work);
        let progress = Progress::begin();
        let mut told = Instant::now();
        while rebuild.state == "filling" {
            if told.elapsed() >= BETWEEN_NEWS {
                told = Instant::now();
                progress.step(rebuild_as_text(&rebuild));
            }
            tokio::time::sleep(LOOK).await;
            let now = rebuilds(pool).await?.into_iter().find(|one| one.name == rebuild.name);
            rebuild = now.context("the rebuild is gone")?;
        }
        cancel.cancel();
        work.await?;
        let equal = rebuild.comparison.as_ref().is_some_and(|found| found.different == 0);
        say(rebuild_as_text(&rebuild));
        for one in rebuild.comparison.iter().flat_map(|found| &found.differences) {
            for line in difference_lines(one) {
                say(line);
            }
        }
        if rebuild.state != "ready" {
            bail!("the live rows are untouched");
        }
        if self.swap && equal {
            swap(pool, &projection, false, by(&reason)).await?;
            say(format!("{} is served from its rebuild; the rows before are kept", self.change.name));
        }
        Ok(u8::from(!equal))
    }
}

fn rebuild_as_text(rebuild: &StoredRebuild) -> String {
    let name = &rebuild.name;
    match (rebuild.state.as_str(), &rebuild.comparison) {
        ("filling", _) => {
            let rate = rebuild.rate.map_or_else(String::new, |rate| format!(", {rate} a second"));
            let left = rebuild.left_s().map_or_else(String::new, |left| format!(", {left} s to go"));
            format!("{name}: rebuild at event {} of {}{rate}{left}", rebuild.position, rebuild.target)
        }
        ("stopped", _) => format!(
            "{name}: rebuild stopped at event {}: {}",
            rebuild.failed_position.unwrap_or(rebuild.position),
            rebuild.error.as_deref().unwrap_or_default(),
        ),
        ("ready", Some(found)) => format!(
            "{name}: rebuild ready, compared at event {}: {} rows, {} live, {} differ",
            found.position, found.rows, found.live_rows, found.different,
        ),
        ("swapped", _) => format!("{name}: swapped, the rows before are kept"),
        (state, _) => format!("{name}: rebuild {state}"),
    }
}

fn change_as_json(row: &RecordedChange) -> Value {
    json!({
        "name": row.name,
        "change": row.change,
        "position": row.position.0,
        "actor": row.actor,
        "reason": row.reason,
        "changed_at": row.changed_at,
    })
}

fn rebuild_as_json(rebuild: &StoredRebuild) -> Value {
    json!({
        "version": rebuild.version,
        "state": rebuild.state,
        "position": rebuild.position.0,
        "target": rebuild.target.0,
        "rate": rebuild.rate,
        "left_s": rebuild.left_s(),
        "failed_position": rebuild.failed_position.map(|position| position.0),
        "error": rebuild.error,
        "compared_position": rebuild.comparison.as_ref().map(|found| found.position.0),
        "rows": rebuild.comparison.as_ref().map(|found| found.rows),
        "live_rows": rebuild.comparison.as_ref().map(|found| found.live_rows),
        "different": rebuild.comparison.as_ref().map(|found| found.different),
        "started_at": rebuild.started_at,
        "updated_at": rebuild.updated_at,
    })
}

fn as_json(row: &CheckpointStatus, rebuild: Option<&StoredRebuild>) -> Value {
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
        "rebuild": rebuild.map(rebuild_as_json),
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
