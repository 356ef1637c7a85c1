//! From the call that appends an event until a subscriber has it, commit and flush included, at a thousand
//! events a second.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use botledger_domain::Position;
use botledger_journal::{Journal, JournalConfig};
use botledger_projections::Tail;
use futures::StreamExt;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{Effort, Row, append, told};

/// Events a second.
const RATE: u64 = 1_000;
/// Subscribers that each get all of them.
const MANY: usize = 1_000;

pub(crate) async fn rows(pool: &PgPool, effort: Effort) -> Result<Vec<Row>> {
    let alone = latency(pool, 1, effort.round).await?;
    let many = latency(pool, MANY, effort.round).await?;
    let row = |subscribers: usize, latency: &Latency, base: &Latency, aim| Row {
        what: format!("append → subscriber, {RATE} events/s, {subscribers} subscribers"),
        ours: format!("p50 {:.1} ms, p99 {:.1} ms", latency.p50, latency.p99),
        base: format!("p99 {:.1} ms, 1 subscriber", base.p99),
        ratio: latency.p99 / base.p99,
        aim,
    };
    Ok(vec![row(1, &alone, &alone, ""), row(MANY, &many, &alone, "p99 ≤ 20 ms")])
}

/// In milliseconds.
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

pub(crate) async fn latency(pool: &PgPool, subscribers: usize, time: Duration) -> Result<Latency> {
    let cancel = CancellationToken::new();
    let tail = Tail::start(pool.clone(), cancel.clone()).await?;
    let (began, after) = (Instant::now(), tail.head());
    let count = RATE * time.as_secs().max(1);
    let followers: Vec<_> =
        (0..subscribers).map(|_| tokio::spawn(follow(tail.clone(), after, began, count))).collect();
    let journal = Journal::open(pool.clone(), JournalConfig::default());
    let (mut appending, run) = (Vec::new(), Uuid::new_v4().as_u64_pair().0);
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / RATE));
    for _ in 0..count {
        ticks.tick().await;
        // The moment of the call travels in the stream's id.
        let sent = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let (journal, stream) = (journal.clone(), Uuid::from_u64_pair(run, sent));
        appending.push(tokio::spawn(async move { append::begin(&journal, stream).await }));
    }
    for one in appending {
        one.await??;
    }
    let mut latencies = Vec::new();
    for follower in followers {
        latencies.extend(follower.await??);
    }
    cancel.cancel();
    journal.close().await;
    latencies.sort_unstable();
    let at = |share: usize| latencies.get(latencies.len() * share / 100).copied().context("nothing came");
    let (p50, p99) = (f64::from(at(50)?) / 1e3, f64::from(at(99)?) / 1e3);
    told(format!("append → {subscribers} subscribers: p50 {p50:.1} ms, p99 {p99:.1} ms"));
    Ok(Latency { p50, p99 })
}

/// Microseconds that each event took.
async fn follow(tail: Tail, after: Position, began: Instant, count: u64) -> Result<Vec<u32>> {
    let mut events = std::pin::pin!(tail.follow(after));
    let mut latencies = Vec::new();
    while (latencies.len() as u64) < count {
        let event = events.next().await.context("the tail ended")??;
        let sent = Uuid::try_parse(&event.aggregate_id).context("a stream of ours")?.as_u64_pair().1;
        let taken = began.elapsed().as_nanos().saturating_sub(u128::from(sent)) / 1_000;
        latencies.push(u32::try_from(taken).unwrap_or(u32::MAX));
    }
    Ok(latencies)
}
