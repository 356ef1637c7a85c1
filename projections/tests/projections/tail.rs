//! The tail: every event once, in order, to each follower, and none that a crash could take back.

use std::time::Duration;

use botledger_domain::Position;
use botledger_projections::{Tail, TailError};
use futures::{StreamExt, TryStreamExt};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::support::{append_sessions, journal, until};

async fn start(pool: &PgPool) -> (Tail, CancellationToken) {
    let cancel = CancellationToken::new();
    (Tail::start(pool.clone(), cancel.clone()).await.unwrap(), cancel)
}

/// Puts events into the table beside the journal, so that nobody is notified.
async fn insert_silently(pool: &PgPool, from: i64, until: i64) {
    sqlx::query(
        "INSERT INTO events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata,
            position, recorded_at, leaf_hash)
         SELECT 'silent', 'one', n, 'said_nothing', '1.0', '{}', '{}', n, now(), sha256('')
         FROM generate_series($1::bigint, $2::bigint) n",
    )
    .bind(from)
    .bind(until)
    .execute(pool)
    .await
    .unwrap();
}

async fn follow(tail: Tail, after: i64, until: i64) {
    let events = tail.follow(Position(after)).take(usize::try_from(until - after).unwrap());
    let positions: Vec<i64> = events.map_ok(|event| event.position.0).try_collect().await.unwrap();
    assert_eq!(positions, (after + 1..=until).collect::<Vec<_>>());
}

async fn follow_in_time(tail: Tail, after: i64, until: i64) {
    tokio::time::timeout(Duration::from_secs(30), follow(tail, after, until)).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn fifty_followers_each_get_every_event_once_and_in_order(pool: PgPool) {
    let journal = journal(&pool);
    append_sessions(&journal, 10).await;
    let (tail, cancel) = start(&pool).await;
    assert_eq!(tail.head(), Position(10));
    // Some begin before the tail did, some with it, some ahead of what there is.
    let followers: Vec<_> = (0..50).map(|n| tokio::spawn(follow(tail.clone(), n % 20, 90))).collect();
    let (a, b) = tokio::join!(append_sessions(&journal, 40), append_sessions(&journal, 40));
    assert_eq!(a.max(b), Position(90));
    for follower in followers {
        tokio::time::timeout(Duration::from_secs(30), follower).await.unwrap().unwrap();
    }
    // Who was away goes on where it stopped.
    follow(tail, 37, 90).await;
    cancel.cancel();
}

#[sqlx::test(migrations = "../migrations")]
async fn an_event_nobody_was_notified_of_arrives_all_the_same(pool: PgPool) {
    let journal = journal(&pool);
    let (tail, cancel) = start(&pool).await;
    append_sessions(&journal, 1).await;
    // The first may ride on a notice that is still on its way, the second on nothing.
    for silent in [2, 3] {
        follow_in_time(tail.clone(), silent - 2, silent - 1).await;
        insert_silently(&pool, silent, silent).await;
    }
    follow_in_time(tail, 2, 3).await;
    cancel.cancel();
}

#[sqlx::test(migrations = "../migrations")]
async fn a_listener_that_is_cut_off_listens_again(pool: PgPool) {
    let journal = journal(&pool);
    let (tail, cancel) = start(&pool).await;
    for round in 1..=3 {
        until("somebody listens, and is cut off", async || {
            let cut: Vec<bool> = sqlx::query_scalar(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND query ILIKE 'LISTEN %'",
            )
            .fetch_all(&pool)
            .await
            .unwrap();
            !cut.is_empty()
        })
        .await;
        append_sessions(&journal, 5).await;
        follow_in_time(tail.clone(), (round - 1) * 5, round * 5).await;
    }
    cancel.cancel();
}

#[sqlx::test(migrations = "../migrations")]
async fn who_falls_out_of_the_ring_reads_on_from_the_table(pool: PgPool) {
    const EVENTS: i64 = 66_600;
    insert_silently(&pool, 1, 500).await;
    let (tail, cancel) = start(&pool).await;
    let slow = tail.follow(Position(100));
    insert_silently(&pool, 501, EVENTS).await;
    until("the tail has passed its ring", async || tail.head() == Position(EVENTS)).await;
    let mut next = 101;
    let mut slow = std::pin::pin!(slow);
    while next <= EVENTS {
        assert_eq!(slow.next().await.unwrap().unwrap().position.0, next);
        next += 1;
    }
    let page = tail.page(&pool, Position(EVENTS - 3), 10).await.unwrap();
    assert_eq!(page.len(), 3);
    cancel.cancel();
}

#[sqlx::test(migrations = "../migrations")]
async fn nothing_is_handed_out_before_it_is_on_the_disk(pool: PgPool) {
    for statement in [
        "CREATE TABLE noted (position bigint PRIMARY KEY, lsn pg_lsn NOT NULL)",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO public.noted VALUES (NEW.position, pg_current_wal_insert_lsn());
            PERFORM pg_notify('botledger_events', '');
            RETURN NULL;
         END $$",
        "CREATE TRIGGER note AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION note()",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    let flushed = async |position: i64| -> bool {
        sqlx::query_scalar("SELECT pg_current_wal_flush_lsn() > lsn FROM noted WHERE position = $1")
            .bind(position)
            .fetch_one(&pool)
            .await
            .unwrap()
    };
    let (tail, cancel) = start(&pool).await;
    let mut live = std::pin::pin!(tail.follow(Position(0)));
    for position in 1..=5 {
        // The throwaway server commits without a flush; a journal would be flushing by now.
        insert_silently(&pool, position, position).await;
        assert_eq!(live.next().await.unwrap().unwrap().position.0, position);
        assert!(flushed(position).await, "event {position} left before it was durable");
    }
    insert_silently(&pool, 6, 6).await;
    let late = Tail::start(pool.clone(), cancel.clone()).await.unwrap();
    assert_eq!(late.head(), Position(6));
    assert!(flushed(6).await, "a tail that begins with it would hand it out");
    cancel.cancel();
}

#[sqlx::test(migrations = "../migrations")]
async fn followers_end_when_the_tail_does(pool: PgPool) {
    let journal = journal(&pool);
    append_sessions(&journal, 2).await;
    let (tail, cancel) = start(&pool).await;
    let mut waiting = std::pin::pin!(tail.follow(Position(0)));
    assert!(waiting.next().await.unwrap().is_ok() && waiting.next().await.unwrap().is_ok());
    cancel.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(30), waiting.next()).await.unwrap().unwrap();
    assert!(matches!(ended, Err(TailError::Stopped)), "{ended:?}");
    assert!(waiting.next().await.is_none());
}
