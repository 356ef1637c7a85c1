//! What it costs that history proves itself: heads, proofs and the comparison of everything, against
//! appends and bare look-ups in the same run.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use botledger_commands::SystemClock;
use botledger_domain::Clock;
use botledger_journal::audit::{Algorithm, LogKeys, LogTree, Signed, Signer, StoredCheckpoint};
use sqlx::PgPool;

use crate::{Effort, Row, append, median, told};

/// Events that proofs are measured over, at least.
const EVENTS: i64 = 200_000;
/// Proofs and look-ups in a round.
const PROOFS: i64 = 200;

pub(crate) async fn rows(pool: &PgPool, effort: Effort) -> Result<Vec<Row>> {
    let signer = Signer::new("bench.example", &[7; 32], Algorithm::Ed25519)?;
    let keys = LogKeys::new(signer, Vec::new())?;
    let tree = LogTree::new(pool.clone());
    let mut newest = None;
    let (mut upkeep, mut appends, mut alone, mut commits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0.. {
        let before = head(pool).await?;
        let began = Instant::now();
        append::fill(pool).await?;
        let (events, spent) = (head(pool).await? - before, began.elapsed());
        let signed = sign(&tree, &keys, &mut newest).await?;
        appends.push(spent.as_secs_f64() / events as f64);
        upkeep.push(signed / events as f64);
        // And what an idle log pays for a head: one event more, and a commit of one row beside it.
        append::one(pool).await?;
        alone.push(sign(&tree, &keys, &mut newest).await?);
        commits.push(commit(pool).await?);
        if round + 1 >= effort.rounds && head(pool).await? >= EVENTS {
            break;
        }
    }
    let newest = newest.context("a head was signed")?;
    let head = i64::try_from(newest.checkpoint.size)?;
    let (mut proofs, mut lookups, mut walks, mut reads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let began = Instant::now();
        for place in 0..PROOFS {
            tree.prove((1 + place * (head - 1) / PROOFS).unsigned_abs(), &newest).await?;
        }
        proofs.push(began.elapsed().as_secs_f64() / PROOFS as f64);
        let began = Instant::now();
        for place in 0..PROOFS {
            sqlx::query("SELECT leaf_hash FROM events WHERE position = $1")
                .bind(1 + place * (head - 1) / PROOFS)
                .fetch_one(pool)
                .await?;
        }
        lookups.push(began.elapsed().as_secs_f64() / PROOFS as f64);
        let began = Instant::now();
        let verdict = tree.verify(keys.known(), Some(keys.origin()), Vec::new(), |_, _| {}).await?;
        if !verdict.holds() {
            bail!("the ledger of the benchmark does not hold: {:?}", verdict.findings);
        }
        walks.push(verdict.events as f64 / began.elapsed().as_secs_f64());
        reads.push(crate::rebuild::select(pool).await?);
    }
    let row = |what: String, (ours, unit): (f64, &str), (base, of): (f64, &str), aim| {
        told(format!("{what}: {ours:.2} {unit}"));
        let (ours_told, base_told) = (format!("{ours:.2} {unit}"), format!("{base:.2} {unit}, {of}"));
        Row { what, ours: ours_told, base: base_told, ratio: ours / base, aim }
    };
    let micros = |values| median(values) * 1e6;
    Ok(vec![
        row(
            "tree and signed head, per event under load".to_owned(),
            (micros(upkeep), "µs"),
            (micros(appends), "append of 10 by 256 writers"),
            "≤ 0.1 ×",
        ),
        row(
            "signed head over one new event".to_owned(),
            (micros(alone), "µs"),
            (micros(commits), "commit of one row"),
            "–",
        ),
        row(
            format!("inclusion proof among {head} events"),
            (micros(proofs), "µs"),
            (micros(lookups), "look-up of one event"),
            "–",
        ),
        row(
            format!("audit verify of {head} events"),
            (median(walks), "events/s"),
            (median(reads), "bare SELECT"),
            "–",
        ),
    ])
}

async fn head(pool: &PgPool) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT coalesce(max(position), 0) FROM events").fetch_one(pool).await?)
}

/// Seconds of one head.
async fn sign(tree: &LogTree, keys: &LogKeys, newest: &mut Option<StoredCheckpoint>) -> Result<f64> {
    let began = Instant::now();
    let seen = newest.as_ref().map(|newest| &newest.checkpoint);
    let Signed::New(stored) = tree.sign(keys, seen, SystemClock.now()).await? else {
        bail!("nothing was signed")
    };
    *newest = Some(stored);
    Ok(began.elapsed().as_secs_f64())
}

/// Seconds of a commit of one row.
async fn commit(pool: &PgPool) -> Result<f64> {
    sqlx::query("CREATE TABLE IF NOT EXISTS bench_rows (at timestamptz NOT NULL)").execute(pool).await?;
    let began = Instant::now();
    sqlx::query("INSERT INTO bench_rows VALUES (now())").execute(pool).await?;
    Ok(began.elapsed().as_secs_f64())
}
