//! Reading the ledger: by moments, and over a pool that has no connection to spare.

use std::time::Duration;

use botledger_domain::{BotId, Position};
use botledger_projections::{EventFilter, LogReader, Page, Runners, Tail, bot_as_of, wait_for};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio_util::sync::CancellationToken;

use crate::{
    once::{PATIENCE, QUICK},
    support::{Desk, Tally, append_sessions, id, journal, noon, once, process},
};

/// Events on the stream of nobody, recorded at these seconds after noon.
async fn record(pool: &PgPool, seconds: &[i64]) {
    let moments: Vec<DateTime<Utc>> = seconds.iter().map(|s| noon() + TimeDelta::seconds(*s)).collect();
    sqlx::query(
        "INSERT INTO events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata,
            position, recorded_at, leaf_hash)
         SELECT 'silent', 'one', n, 'said_nothing', '1.0', '{}', '{}', n, moment, sha256('')
         FROM unnest($1::timestamptz[]) WITH ORDINALITY AS u (moment, n)",
    )
    .bind(moments)
    .execute(pool)
    .await
    .unwrap();
}

/// The same database through a pool of this many connections.
async fn narrow(pool: &PgPool, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_millis(500))
        .connect_with((*pool.connect_options()).clone())
        .await
        .unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn a_moment_is_the_last_position_recorded_by_then(pool: PgPool) {
    let log = LogReader::new(pool.clone());
    assert_eq!(log.position_at(noon()).await.unwrap(), Position(0), "nothing was recorded yet");
    let seconds = [0, 0, 3, 3, 3, 4, 9, 9, 20];
    record(&pool, &seconds).await;
    for moment in -1..=22 {
        let at = noon() + TimeDelta::seconds(moment);
        let expected = seconds.iter().filter(|recorded| **recorded <= moment).count();
        assert_eq!(log.position_at(at).await.unwrap().0, expected as i64, "{moment}");
        for length in [0, 1, 4, 22] {
            let filter = EventFilter {
                recorded_from: Some(at),
                recorded_until: Some(at + TimeDelta::seconds(length)),
                upto: Some(Position(8)),
                ..EventFilter::default()
            };
            let found = log.page(&filter, Page::oldest(100)).await.unwrap();
            let inside = |n: usize| (moment..moment + length).contains(&seconds[n]);
            let expected: Vec<i64> = (0..8).filter(|n| inside(*n)).map(|n| n as i64 + 1).collect();
            assert_eq!(found.iter().map(|event| event.position.0).collect::<Vec<_>>(), expected);
            assert_eq!(log.count(&filter).await.unwrap(), expected.len() as i64);
        }
    }
    // A ledger with a hole is an incident, and no reason to answer nothing.
    let mut tx = pool.begin().await.unwrap();
    sqlx::query("SET LOCAL session_replication_role = replica").execute(&mut *tx).await.unwrap();
    sqlx::query("DELETE FROM events WHERE position = 5").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    let at = log.position_at(noon() + TimeDelta::seconds(4)).await.unwrap();
    assert_eq!(at, Position(6));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_moment_long_ago_is_found_without_walking_there(pool: PgPool) {
    let pool = narrow(&pool, 1).await;
    record(&pool, &(0..5_000).collect::<Vec<_>>()).await;
    let read = async || -> i64 {
        sqlx::query("SELECT pg_stat_force_next_flush()").execute(&pool).await.unwrap();
        sqlx::query_scalar(
            "SELECT coalesce(idx_tup_fetch, 0) + seq_tup_read FROM pg_stat_user_tables WHERE relname = 'events'",
        )
        .fetch_one(&pool)
        .await
        .unwrap()
    };
    sqlx::query("ANALYZE events").execute(&pool).await.unwrap();
    let log = LogReader::new(pool.clone());
    let early = noon() + TimeDelta::seconds(5);
    let filter = EventFilter { recorded_until: Some(early), ..EventFilter::default() };
    let before = read().await;
    assert_eq!(log.position_at(early).await.unwrap(), Position(6));
    assert_eq!(log.page(&filter, Page::newest(3)).await.unwrap()[0].position, Position(5));
    assert_eq!(log.count(&filter).await.unwrap(), 5);
    let rows = read().await - before;
    assert!(rows < 200, "{rows} rows were read");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_look_back_leaves_out_what_was_left_out_live(pool: PgPool) {
    let mut desk = Desk::new();
    // A bot is registered, and started.
    desk.play(&[(2, 0, 0), (2, 0, 2)]);
    let last = desk.commit(&journal(&pool)).await;
    let bot = &desk.bots[0];
    let status = async || bot_as_of(&pool, id(bot), last).await.unwrap().unwrap().status;
    assert_eq!(status().await, "running");
    sqlx::query(
        "INSERT INTO projection_decisions (name, position, decision, reason) VALUES ('bots', $1, 'skip', 'a test')",
    )
    .bind(last.0)
    .execute(&pool)
    .await
    .unwrap();
    assert_eq!(status().await, "stopped");
}

#[sqlx::test(migrations = "../migrations")]
async fn one_connection_is_enough_to_look_back(pool: PgPool) {
    let head = append_sessions(&journal(&pool), 3).await;
    let narrow = narrow(&pool, 1).await;
    let looked = bot_as_of(&narrow, BotId(uuid::Uuid::now_v7()), head).await;
    assert_eq!(looked.unwrap(), None);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_runner_holds_one_connection_and_waits_for_no_other(pool: PgPool) {
    let tally = Tally::create(&pool).await;
    // Before the tail begins: nothing of it is in memory.
    let head = append_sessions(&journal(&pool), 35).await;
    let narrow = narrow(&pool, 1).await;
    // A tail that is over listens no longer, which takes a connection too, and still gives out pages.
    let (over, cancel) = (CancellationToken::new(), CancellationToken::new());
    over.cancel();
    let tail = Tail::start(narrow.clone(), over).await.unwrap();
    let runners = Runners::start(&narrow, &tail, process(), vec![tally], QUICK, &cancel);
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    assert_eq!(Tally::counted(&pool).await, once(1..=head.0));
    cancel.cancel();
    runners.join().await;
}
