//! `ops/bench`: ours against the raw limit of the same machine, in the same run.
//!
//! Every figure is the median of several rounds in which both sides take turns, so that a machine
//! that slows down slows both. To add a measurement: a file with a function that gives [`Row`]s.

mod append;
mod budget;
mod growth;
mod limits;
mod load;
mod peers;
mod rebuild;
mod scoring;
mod subscribers;
mod tree;
mod turns;

use std::io::Write;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

/// A line of the table.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) ours: String,
    pub(crate) base: String,
    /// Ours by base.
    pub(crate) ratio: f64,
    pub(crate) aim: &'static str,
}

/// How long and how often.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    /// Of one round of one side.
    pub(crate) round: Duration,
    pub(crate) rounds: usize,
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn told(text: impl AsRef<str>) {
    drop(writeln!(std::io::stderr(), "{}", text.as_ref()));
}

/// What can be measured; all of it where nothing is named, except how things grow.
const PARTS: [&str; 11] = [
    "append",
    "peers",
    "load",
    "subscribers",
    "growth",
    "limits",
    "budget",
    "scoring",
    "turns",
    "rebuild",
    "tree",
];

#[tokio::main]
async fn main() -> Result<()> {
    let mut effort = Effort { round: Duration::from_secs(4), rounds: 3 };
    let (mut parts, mut large) = (Vec::new(), false);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--quick" => effort = Effort { round: Duration::from_secs(1), rounds: 1 },
            "--large" => large = true,
            part if PARTS.contains(&part) => parts.push(argument),
            other => bail!("{other} is not known: ops/bench [--quick] [--large] [{} ...]", PARTS.join("|")),
        }
    }
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    let url = std::env::var("DATABASE_URL").context("run it as ops/bench, which starts what it needs")?;
    let pool =
        PgPoolOptions::new().max_connections(80).connect_with(PgConnectOptions::from_str(&url)?).await?;
    let mut rows = Vec::new();
    if wanted("append") {
        rows.extend(append::rows(&pool, &url, effort).await?);
    }
    if wanted("peers") {
        rows.extend(peers::rows(&pool, &url, effort).await?);
    }
    if wanted("load") {
        rows.extend(load::rows(&pool, effort).await?);
    }
    if wanted("subscribers") {
        rows.extend(subscribers::rows(&pool, effort).await?);
    }
    if parts.iter().any(|part| part == "growth") {
        rows.extend(growth::rows(&pool, effort, large).await?);
    }
    if wanted("limits") {
        rows.extend(limits::rows(effort).await?);
    }
    if wanted("budget") {
        rows.extend(budget::rows(&pool, effort).await?);
    }
    if wanted("scoring") {
        rows.extend(scoring::rows(effort)?);
    }
    if wanted("turns") {
        rows.extend(turns::rows(&pool, &url, effort).await?);
    }
    if wanted("rebuild") {
        rows.extend(rebuild::rows(&pool, effort).await?);
    }
    if wanted("tree") {
        rows.extend(tree::rows(&pool, effort).await?);
    }
    print(&pool, &rows).await
}

async fn print(pool: &PgPool, rows: &[Row]) -> Result<()> {
    let version: String = sqlx::query_scalar("SHOW server_version").fetch_one(pool).await?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut out = std::io::stdout();
    writeln!(out, "PostgreSQL {version}, fsync on, {cores} cores, all processes on one machine\n")?;
    writeln!(out, "| what | ours | base | ratio | aim |\n| --- | --- | --- | --- | --- |")?;
    for row in rows {
        writeln!(out, "| {} | {} | {} | {:.2} × | {} |", row.what, row.ours, row.base, row.ratio, row.aim)?;
    }
    Ok(())
}
