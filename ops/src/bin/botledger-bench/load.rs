//! Loading a stream of a hundred events, decoded and folded, against the bare `SELECT` of its rows.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use botledger_domain::bot::Bot;
use botledger_journal::{Journal, JournalConfig};
use sqlx::PgPool;

use crate::{Effort, Row, append, median, told};

/// Events of the stream.
pub(crate) const EVENTS: usize = 100;

pub(crate) async fn rows(pool: &PgPool, effort: Effort) -> Result<Vec<Row>> {
    let stream = append::stream(pool, EVENTS).await?;
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        base.push(select(pool, &stream, effort.round).await?);
        ours.push(load(pool, &stream, effort.round).await?);
    }
    let (ours, base) = (median(ours), median(base));
    told(format!("load of {EVENTS} events: {ours:.0}/s, bare SELECT {base:.0}/s"));
    Ok(vec![Row {
        what: format!("loading a stream of {EVENTS} events"),
        ours: format!("{ours:.0} loads/s"),
        base: format!("{base:.0} loads/s, SELECT through sqlx"),
        ratio: ours / base,
        aim: "≥ 0.85 ×",
    }])
}

/// Loads a second through a journal that remembers nothing.
pub(crate) async fn load(pool: &PgPool, stream: &str, time: Duration) -> Result<f64> {
    let journal =
        Journal::open(pool.clone(), JournalConfig { cache_capacity: 0, ..JournalConfig::default() });
    let began = Instant::now();
    let mut loads = 0;
    while began.elapsed() < time {
        let version = journal.load::<Bot>(stream).await?.version;
        if version != EVENTS as i64 {
            bail!("{version} of {EVENTS} events came back");
        }
        loads += 1;
    }
    let rate = f64::from(loads) / began.elapsed().as_secs_f64();
    journal.close().await;
    Ok(rate)
}

async fn select(pool: &PgPool, stream: &str, time: Duration) -> Result<f64> {
    let began = Instant::now();
    let mut loads = 0;
    while began.elapsed() < time {
        let rows = sqlx::query(
            "SELECT sequence, event_type, event_version, payload::text, leaf_hash FROM events
             WHERE aggregate_type = 'bot' AND aggregate_id = $1 ORDER BY sequence",
        )
        .bind(stream)
        .fetch_all(pool)
        .await?;
        if rows.len() != EVENTS {
            bail!("{} of {EVENTS} rows came back", rows.len());
        }
        loads += 1;
    }
    Ok(f64::from(loads) / began.elapsed().as_secs_f64())
}
