//! L1: position order is commit order, without gaps.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use botledger_domain::{Position, chat_session::ChatSession};
use botledger_journal::{AppendError, AppendSet};
use sqlx::PgPool;

use crate::support::{
    append_in, assert_whole, journal, keyed, ledger, metadata, open_session, set_on, set_with, stream, until,
    waiting_for_the_lock,
};

#[sqlx::test(migrations = "../../migrations")]
async fn whoever_comes_second_waits_for_the_first_to_commit(pool: PgPool) {
    let journal = journal(&pool);
    let mut first = pool.begin().await.unwrap();
    assert_eq!(append_in(&mut first, stream()).await.unwrap(), 1);

    let later = journal.clone();
    let second = tokio::spawn(async move { later.append(set_on(stream(), 0, 1)).await });
    until("the second waits for the lock", async || waiting_for_the_lock(&pool).await == 1).await;
    assert!(!second.is_finished());
    assert_eq!(journal.head().await.unwrap(), Position(0), "a reader sees neither");

    first.commit().await.unwrap();
    assert_eq!(second.await.unwrap().unwrap().position, Position(2));
    assert_whole(&pool).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_rolled_back_append_leaves_no_hole(pool: PgPool) {
    let journal = journal(&pool);
    let mut first = pool.begin().await.unwrap();
    assert_eq!(append_in(&mut first, stream()).await.unwrap(), 1);
    let later = journal.clone();
    let second = tokio::spawn(async move { later.append(set_on(stream(), 0, 2)).await });
    until("the second waits for the lock", async || waiting_for_the_lock(&pool).await == 1).await;
    first.rollback().await.unwrap();
    assert_eq!(second.await.unwrap().unwrap().event_positions, [Position(1), Position(2)]);
    assert_whole(&pool).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_reader_past_a_position_never_finds_anything_new_below_it(pool: PgPool) {
    const WRITERS: usize = 12;
    const SETS: usize = 12;
    let journals = [journal(&pool), journal(&pool)];
    let streams: Arc<Vec<_>> = Arc::new((0..5).map(|_| stream()).collect());

    let done = Arc::new(AtomicBool::new(false));
    let reader = {
        let (pool, done) = (pool.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let mut last = 0i64;
            loop {
                let finished = done.load(Ordering::SeqCst);
                let seen: Vec<i64> =
                    sqlx::query_scalar("SELECT position FROM events WHERE position > $1 ORDER BY position")
                        .bind(last)
                        .fetch_all(&pool)
                        .await
                        .unwrap();
                for position in seen {
                    assert_eq!(position, last + 1, "the reader would have passed a gap");
                    last = position;
                }
                if finished {
                    return last;
                }
            }
        })
    };
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (journal, streams) = (journals[writer % 2].clone(), Arc::clone(&streams));
            tokio::spawn(async move {
                for round in 0..SETS {
                    if round % 4 == 3 {
                        // PostgreSQL holds no NUL: this set fails its batch, which is then written one by one.
                        let refused = journal.append(set_with(keyed("nul\0"), stream(), 0, 1)).await;
                        assert!(matches!(refused, Err(AppendError::Invalid { .. })), "{refused:?}");
                    }
                    let target = streams[(writer + round) % streams.len()];
                    loop {
                        let mut chat = journal.load::<ChatSession>(&target.to_string()).await.unwrap();
                        let mut set = AppendSet::new(metadata());
                        for _ in 0..=(round % 3) {
                            set.decide(&mut chat, open_session(target), crate::support::noon()).unwrap();
                        }
                        match journal.append(set).await {
                            Ok(_) => break,
                            Err(error) => assert!(matches!(error, AppendError::Conflict { .. }), "{error:?}"),
                        }
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    done.store(true, Ordering::SeqCst);
    let events = assert_whole(&pool).await;
    assert_eq!(events.len(), WRITERS * SETS * 2, "1, 2 and 3 events a set in turn");
    assert_eq!(reader.await.unwrap(), events.len() as i64);
    assert_eq!(ledger(&pool).await.len(), events.len());
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_clock_set_back_sets_no_recorded_time_back(pool: PgPool) {
    let journal = journal(&pool);
    journal.append(set_on(stream(), 0, 1)).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    for statement in [
        "SET LOCAL session_replication_role = replica",
        "UPDATE events SET recorded_at = recorded_at + interval '1 hour'",
    ] {
        sqlx::query(statement).execute(&mut *tx).await.unwrap();
    }
    tx.commit().await.unwrap();
    for _ in 0..2 {
        journal.append(set_on(stream(), 0, 2)).await.unwrap();
    }
    let events = ledger(&pool).await;
    assert_eq!(events.len(), 5);
    assert!(events.is_sorted_by_key(|event| event.recorded_at), "{events:?}");
    assert!(events[1..].iter().all(|event| event.leaf_hash == event.leaf().hash()));
}
