//! Other event stores under the same load: `ops/bench-peers`, built apart.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use sqlx::PgPool;
use tokio::process::Command;

use crate::{Effort, Row, append, load, median, told};

const STORES: [(&str, &str, &str); 2] =
    [("postgres-es", "postgres-es 0.5", "≥ 6 ×"), ("disintegrate", "disintegrate-postgres 4.0", "")];

pub(crate) async fn rows(pool: &PgPool, url: &str, effort: Effort) -> Result<Vec<Row>> {
    let program = std::env::var_os("BENCH_PEERS").context("ops/bench builds what it compares with")?;
    let peers = Peers { program: program.into(), url: url.to_owned() };
    let stream = append::stream(pool, load::EVENTS).await?;
    let mut rows = Vec::new();
    for (store, name, aim) in STORES {
        for (writers, events) in [(1, 1), (64, 1), (64, 10)] {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..effort.rounds {
                theirs.push(peers.append(store, writers, events, effort.round).await?);
                ours.push(append::rate(pool, writers, events, effort.round).await?);
            }
            let (ours, theirs) = (median(ours), median(theirs));
            told(format!("append: {writers} writers, {events} events: {ours:.0}/s, {name} {theirs:.0}/s"));
            rows.push(Row {
                what: format!("append, {}, against {name}", append::load(writers, events)),
                ours: format!("{ours:.0} events/s"),
                base: format!("{theirs:.0} events/s"),
                ratio: ours / theirs,
                aim: if (writers, events) == (64, 1) { aim } else { "" },
            });
        }
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            theirs.push(peers.load(store, load::EVENTS, effort.round).await?);
            ours.push(load::load(pool, &stream, effort.round).await?);
        }
        let (ours, theirs) = (median(ours), median(theirs));
        rows.push(Row {
            what: format!("loading a stream of {} events, against {name}", load::EVENTS),
            ours: format!("{ours:.0} loads/s"),
            base: format!("{theirs:.0} loads/s"),
            ratio: ours / theirs,
            aim: "",
        });
    }
    Ok(rows)
}

struct Peers {
    program: PathBuf,
    url: String,
}

impl Peers {
    async fn append(&self, store: &str, writers: usize, events: usize, time: Duration) -> Result<f64> {
        self.run([store, "append", &writers.to_string(), &events.to_string()], time).await
    }

    async fn load(&self, store: &str, events: usize, time: Duration) -> Result<f64> {
        self.run([store, "load", &events.to_string()], time).await
    }

    async fn run<const N: usize>(&self, arguments: [&str; N], time: Duration) -> Result<f64> {
        let output = Command::new(&self.program)
            .args(arguments)
            .arg(time.as_secs().max(1).to_string())
            .env("DATABASE_URL", &self.url)
            .output()
            .await?;
        if !output.status.success() {
            bail!("{arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        String::from_utf8_lossy(&output.stdout).trim().parse().context("it tells no rate")
    }
}
