//! Replay: the log read through our reader, and read models made again, against a bare `SELECT`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use botledger_domain::{Actor, Position};
use botledger_projections::{
    Change, LogReader, Projection, all, rebuilds, replay, start_rebuild, swap, work_on_rebuilds,
};
use sqlx::{PgPool, Row as _};
use tokio_util::sync::CancellationToken;

use crate::{Effort, Row, append, median, told};

/// Events that a rebuild is measured over, at least.
const EVENTS: i64 = 200_000;
const PAGE: i64 = 5_000;

pub(crate) async fn rows(pool: &PgPool, effort: Effort) -> Result<Vec<Row>> {
    let log = LogReader::new(pool.clone());
    while log.head().await?.0 < EVENTS {
        append::fill(pool).await?;
    }
    let head = log.head().await?;
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        base.push(select(pool).await?);
        ours.push(read(&log).await?);
    }
    let (read, bare) = (median(ours), median(base));
    told(format!("replay of {head} events: {read:.0}/s, bare SELECT {bare:.0}/s"));
    let mut rows = vec![Row {
        what: format!("reading the log, {head} events"),
        ours: format!("{read:.0} events/s"),
        base: format!("{bare:.0} events/s, SELECT through sqlx"),
        ratio: read / bare,
        aim: "≥ 0.6 ×",
    }];
    for (name, aim) in [("bots", "≥ 200,000/s"), ("turns", "≥ 50,000/s")] {
        let projection = all().into_iter().find(|projection| projection.name() == name);
        let Some(projection) = projection else { continue };
        let mut rates = Vec::new();
        for _ in 0..effort.rounds {
            rates.push(rebuild(pool, &projection, head).await?);
        }
        let rate = median(rates);
        told(format!("rebuild of {name}: {rate:.0}/s"));
        rows.push(Row {
            what: format!("rebuild of read model {name}"),
            ours: format!("{rate:.0} events/s"),
            base: format!("{bare:.0} events/s, SELECT through sqlx"),
            ratio: rate / bare,
            aim,
        });
    }
    if let Some(projection) = all().into_iter().find(|projection| projection.name() == "turns") {
        let mut rates = Vec::new();
        for _ in 0..effort.rounds {
            rates.push(beside(pool, &projection, head).await?);
        }
        let rate = median(rates);
        told(format!("rebuild of turns beside the live rows, compared: {rate:.0}/s"));
        rows.push(Row {
            what: "rebuild of read model turns beside the live rows, compared and swapped".to_owned(),
            ours: format!("{rate:.0} events/s"),
            base: format!("{bare:.0} events/s, SELECT through sqlx"),
            ratio: rate / bare,
            aim: "≥ 50,000/s",
        });
    }
    Ok(rows)
}

/// From asking for it to serving it.
async fn beside(pool: &PgPool, projection: &Arc<dyn Projection>, head: Position) -> Result<f64> {
    let change = Change { actor: &Actor::System("bench"), reason: "measured" };
    let began = Instant::now();
    start_rebuild(pool, projection, change).await?;
    let cancel = CancellationToken::new();
    let work = work_on_rebuilds(pool.clone(), vec![Arc::clone(projection)], cancel.clone());
    let work = tokio::spawn(work);
    loop {
        let open = rebuilds(pool).await?.into_iter().find(|rebuild| rebuild.name == projection.name());
        match open.map(|rebuild| rebuild.state).as_deref() {
            Some("filling") => tokio::time::sleep(Duration::from_millis(5)).await,
            Some("ready") => break,
            other => bail!("the rebuild is {other:?}"),
        }
    }
    swap(pool, projection, false, change).await?;
    let rate = head.0 as f64 / began.elapsed().as_secs_f64();
    cancel.cancel();
    work.await?;
    Ok(rate)
}

pub(crate) async fn read(log: &LogReader) -> Result<f64> {
    let began = Instant::now();
    let mut at = Position(0);
    let mut events = 0;
    loop {
        let page = log.after(at, PAGE).await?;
        let Some(last) = page.last() else { break };
        at = last.position;
        events += page.len();
    }
    Ok(events as f64 / began.elapsed().as_secs_f64())
}

/// The least that anybody has to do: the same pages, looked at and thrown away.
pub(crate) async fn select(pool: &PgPool) -> Result<f64> {
    let began = Instant::now();
    let mut at = 0_i64;
    let mut events = 0;
    loop {
        let page = sqlx::query(
            "SELECT position, recorded_at, aggregate_type, aggregate_id, sequence, event_type, event_version,
                    payload::text, metadata::text
             FROM events WHERE position > $1 ORDER BY position LIMIT $2",
        )
        .bind(at)
        .bind(PAGE)
        .fetch_all(pool)
        .await?;
        let Some(last) = page.last() else { break };
        at = last.get(0);
        events += page.len();
    }
    Ok(events as f64 / began.elapsed().as_secs_f64())
}

async fn rebuild(pool: &PgPool, projection: &Arc<dyn Projection>, head: Position) -> Result<f64> {
    let began = Instant::now();
    replay(pool, projection, |_| {}).await?;
    Ok(head.0 as f64 / began.elapsed().as_secs_f64())
}
