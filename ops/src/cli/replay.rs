//! `botledger replay`: read models made again from the ledger.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use botledger_journal::transfer::unfinished_import;
use botledger_local::progress::{Progress, say};
use botledger_projections::{Difference, Projection, ReadPool, RebuildReport, all, replay, verify};
use clap::Args;
use serde_json::{Value, json};

use super::Settings;
use crate::platform::answering_pool;

#[derive(Clone, Debug, Args)]
pub struct Replay {
    /// Names of read models, for example `turns`
    #[arg(value_name = "NAME", required_unless_present_any = ["all", "list"])]
    names: Vec<String>,
    /// Every read model
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Only compare; exit with 1 when a row differs
    #[arg(long)]
    verify: bool,
    /// Print the names and end
    #[arg(long)]
    list: bool,
    /// Print JSON: `[{"name", "position", "rows", "different", "replaced", "differences": […]}]`
    #[arg(long)]
    json: bool,
}

impl Replay {
    /// Whether live rows are replaced.
    #[must_use]
    pub fn acts(&self) -> bool {
        !self.verify && !self.list
    }

    /// Gives 1 when `--verify` found a difference.
    ///
    /// # Errors
    /// When a name is unknown, the database does not answer, or an event cannot be applied.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let known = all();
        if self.list {
            for projection in &known {
                say(projection.name());
            }
            return Ok(0);
        }
        let chosen = if self.all { known } else { chosen(known, &self.names)? };
        let pool = answering_pool(&settings.load_running()?.config).await?;
        if let Some(why) = unfinished_import(&pool).await? {
            bail!(why);
        }
        let progress = if self.json { Progress::silent() } else { Progress::begin() };
        let reports = rebuilt(&pool, &chosen, self.verify, progress).await?;
        if self.json {
            say(serde_json::to_string_pretty(&reports.iter().map(as_json).collect::<Vec<_>>())?);
        } else {
            for report in &reports {
                for line in lines(report, self.verify) {
                    say(line);
                }
            }
        }
        Ok(u8::from(self.verify && reports.iter().any(|report| report.different > 0)))
    }
}

/// The read models of these names.
///
/// # Errors
/// When there is none of one of them.
pub fn chosen(known: Vec<Arc<dyn Projection>>, names: &[String]) -> Result<Vec<Arc<dyn Projection>>> {
    if let Some(unknown) = names.iter().find(|name| known.iter().all(|one| one.name() != *name)) {
        let names: Vec<&str> = known.iter().map(|projection| projection.name()).collect();
        bail!("there is no read model {unknown}; there are {}", names.join(", "));
    }
    Ok(known.into_iter().filter(|one| names.iter().any(|name| name == one.name())).collect())
}

/// Rebuilds (or only compares) one after the other, saying how far it is.
///
/// # Errors
/// When the database does not answer, or an event cannot be applied.
pub async fn rebuilt(
    pool: &ReadPool,
    projections: &[Arc<dyn Projection>],
    only_verify: bool,
    progress: Progress,
) -> Result<Vec<RebuildReport>> {
    let mut reports = Vec::with_capacity(projections.len());
    for projection in projections {
        let name = projection.name();
        let began = std::time::Instant::now();
        let mut told = std::time::Instant::now();
        let tell = |at: botledger_projections::Progress| {
            if told.elapsed().as_secs() >= 2 {
                told = std::time::Instant::now();
                let rate = at.at.0 as f64 / began.elapsed().as_secs_f64();
                let left = (at.head.0 - at.at.0).max(0) as f64 / rate.max(1.0);
                progress.step(format!(
                    "{name}: event {} of {}, {rate:.0} a second, {left:.0} s to go",
                    at.at, at.head
                ));
            }
        };
        let report = if only_verify {
            verify(pool, projection, tell).await
        } else {
            replay(pool, projection, tell).await
        };
        reports.push(
            report.with_context(|| format!("the replay of {name} ended early; live rows are untouched"))?,
        );
    }
    Ok(reports)
}

fn as_json(report: &RebuildReport) -> Value {
    let differences: Vec<Value> = report
        .differences
        .iter()
        .map(|one| json!({ "table": one.table, "live": one.live, "replayed": one.replayed }))
        .collect();
    json!({
        "name": report.name,
        "position": report.position.0,
        "rows": report.rows,
        "different": report.different,
        "replaced": report.replaced,
        "differences": differences,
    })
}

fn lines(report: &RebuildReport, only_verify: bool) -> Vec<String> {
    let found = match (report.different, only_verify) {
        (0, true) => "equal".to_owned(),
        (0, false) => "replaced; it was equal before".to_owned(),
        (rows, true) => format!("{rows} rows DIFFER"),
        (rows, false) => format!("replaced; {rows} rows differed before"),
    };
    let mut lines =
        vec![format!("{}: {} rows at event {}: {found}", report.name, report.rows, report.position)];
    lines.extend(report.differences.iter().flat_map(difference_lines));
    lines
}

/// A row that differs, for people.
#[must_use]
pub fn difference_lines(one: &Difference) -> [String; 2] {
    let side = |row: &Option<String>| row.clone().unwrap_or_else(|| "no such row".to_owned());
    [
        format!("  {} live:     {}", one.table, side(&one.live)),
        format!("  {} replayed: {}", one.table, side(&one.replayed)),
    ]
}
