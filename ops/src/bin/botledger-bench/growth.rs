//! What a longer ledger costs: the same measurements at a hundred thousand events, a million and, where asked
//! for, ten millions, against those at the first size.

use anyhow::Result;
use botledger_projections::LogReader;
use sqlx::PgPool;

use crate::{Effort, Row, append, load, rebuild, subscribers, told};

const SIZES: [(i64, &str); 3] = [(100_000, "10^5"), (1_000_000, "10^6"), (10_000_000, "10^7")];
/// Of the load: many callers with one event each.
const WRITERS: usize = 64;

/// `large` goes on to the last size, which takes minutes and gigabytes.
pub(crate) async fn rows(pool: &PgPool, effort: Effort, large: bool) -> Result<Vec<Row>> {
    let log = LogReader::new(pool.clone());
    let stream = append::stream(pool, load::EVENTS).await?;
    let mut rows = Vec::new();
    let mut first: Option<[f64; 4]> = None;
    for (events, size) in SIZES {
        if events > 1_000_000 && !large {
            continue;
        }
        while log.head().await?.0 < events {
            append::fill(pool).await?;
        }
        told(format!("{size} events"));
        // What a server does now and then by itself.
        sqlx::query("VACUUM ANALYZE events").execute(pool).await?;
        let found = [
            append::rate(pool, WRITERS, 1, effort.round).await?,
            load::load(pool, &stream, effort.round).await?,
            rebuild::read(&log).await?,
            subscribers::latency(pool, 1, effort.round).await?.p99,
        ];
        let base = *first.get_or_insert(found);
        let [appends, loads, replay, latency] = found;
        let row = |what: &str, ours: String, base: String, ratio| {
            let what = format!("at {size} events: {what}");
            Row { what, ours, base: format!("{base} at 10^5"), ratio, aim: "" }
        };
        rows.extend([
            row(
                &format!("append, {}", append::load(WRITERS, 1)),
                format!("{appends:.0} events/s"),
                format!("{:.0} events/s", base[0]),
                appends / base[0],
            ),
            row(
                "loading a stream of 100 events",
                format!("{loads:.0} loads/s"),
                format!("{:.0} loads/s", base[1]),
                loads / base[1],
            ),
            row(
                "reading the log",
                format!("{replay:.0} events/s"),
                format!("{:.0} events/s", base[2]),
                replay / base[2],
            ),
            row(
                "append → subscriber, p99",
                format!("{latency:.1} ms"),
                format!("{:.1} ms", base[3]),
                latency / base[3],
            ),
        ]);
    }
    Ok(rows)
}
