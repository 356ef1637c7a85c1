//! Connections that break, and a database that forgets: nothing acknowledged is lost, nothing with a
//! key is there twice, nobody is told a conflict with himself.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use botledger_domain::{Position, chat_session::ChatSession};
use botledger_journal::{AppendError, AppendSet, Journal, JournalConfig};
use chrono::TimeDelta;
use sqlx::PgPool;

use crate::support::{
    assert_whole, journal, keyed, length, metadata, noon, open_session, set_on, set_with, stream, until,
    waiting_for_the_lock,
};

async fn kill_the_writers_connections(pool: &PgPool) -> usize {
    sqlx::query_scalar::<_, bool>(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'botledger-writer'",
    )
    .fetch_all(pool)
    .await
    .unwrap()
    .len()
}

#[sqlx::test(migrations = "../../migrations")]
async fn connections_killed_in_the_middle_of_load_lose_and_double_nothing(pool: PgPool) {
    const CALLERS: usize = 12;
    const SETS: usize = 20;
    let journals = [journal(&pool), journal(&pool)];
    let (acknowledgements, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let killer = {
        let (pool, acknowledgements, done) = (pool.clone(), Arc::clone(&acknowledgements), Arc::clone(&done));
        tokio::spawn(async move {
            let (mut killed, mut next) = (0, 1);
            while !done.load(Ordering::SeqCst) {
                let acknowledged = acknowledgements.load(Ordering::SeqCst);
                if acknowledged >= next {
                    killed += kill_the_writers_connections(&pool).await;
                    next = acknowledged + 20;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            killed
        })
    };
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (journal, acknowledgements) = (journals[caller % 2].clone(), Arc::clone(&acknowledgements));
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for n in 0..SETS {
                    let (key, target) = (format!("{caller}/{n}"), stream());
                    loop {
                        match journal.append(set_with(keyed(&key), target, 0, 2)).await {
                            Ok(receipt) => {
                                acknowledged.push((key, target, receipt));
                                acknowledgements.fetch_add(1, Ordering::SeqCst);
                                break;
                            }
                            Err(AppendError::Unavailable { .. }) => {}
                            Err(other) => panic!("nobody else writes to this stream: {other:?}"),
                        }
                    }
                    let target = stream();
                    match journal.append(set_on(target, 0, 1)).await {
                        Ok(receipt) => acknowledged.push((String::new(), target, receipt)),
                        Err(AppendError::Unavailable { .. }) => {}
                        Err(other) => panic!("nobody else writes to this stream: {other:?}"),
                    }
                }
                acknowledged
            })
        })
        .collect();
    let mut acknowledged = Vec::new();
    for caller in callers {
        acknowledged.extend(caller.await.unwrap());
    }
    done.store(true, Ordering::SeqCst);
    assert!(killer.await.unwrap() > 4, "connections were killed");

    let events = assert_whole(&pool).await;
    let by_position: BTreeMap<i64, _> = events.iter().map(|event| (event.position, event)).collect();
    for (key, target, receipt) in &acknowledged {
        for position in &receipt.event_positions {
            assert_eq!(by_position[&position.0].aggregate_id, target.to_string(), "{key} at {position}");
        }
    }
    let keys = events.iter().filter_map(|event| event.idempotency_key.as_ref()).count();
    assert_eq!(keys, CALLERS * SETS, "each key once");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_statement_that_outlives_its_connection_is_no_conflict_with_itself(pool: PgPool) {
    let timeout = Duration::from_millis(1_000);
    let journal = Journal::open(pool.clone(), JournalConfig { timeout, ..JournalConfig::default() });
    let target = stream();
    // Opens both connections before the clock matters.
    journal.append(set_on(stream(), 0, 1)).await.unwrap();
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(7209065211)").execute(&mut *lock).await.unwrap();
    let appending = {
        let journal = journal.clone();
        tokio::spawn(async move { journal.append(set_on(target, 0, 1)).await })
    };
    until("the given-up statement and its repetition wait", async || waiting_for_the_lock(&pool).await == 2)
        .await;
    lock.commit().await.unwrap();
    let receipt = appending.await.unwrap().unwrap();
    assert_eq!((receipt.position, receipt.duplicate, receipt.streams[0].version), (Position(2), false, 1));
    assert_eq!(length(&pool, target).await, 1);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_ledger_out_of_reach_is_said_to_be_and_comes_back(pool: PgPool) {
    let timeout = Duration::from_millis(100);
    let journal = Journal::open(pool.clone(), JournalConfig { timeout, ..JournalConfig::default() });
    let target = stream();
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(7209065211)").execute(&mut *lock).await.unwrap();
    let refused = journal.append(set_with(keyed("k"), target, 0, 1)).await;
    assert!(matches!(refused, Err(AppendError::Unavailable { .. })), "{refused:?}");
    lock.commit().await.unwrap();
    until("the key is accepted", async || journal.append(set_with(keyed("k"), target, 0, 1)).await.is_ok())
        .await;
    assert_eq!(length(&pool, target).await, 1);
}

/// What a crash of the server does to commits that were not flushed.
async fn take_back(pool: &PgPool, above: i64) {
    let mut tx = pool.begin().await.unwrap();
    sqlx::query("SET LOCAL session_replication_role = replica").execute(&mut *tx).await.unwrap();
    sqlx::query("DELETE FROM events WHERE position > $1").bind(above).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_state_in_memory_does_not_outlive_its_events(pool: PgPool) {
    let (journal, other) = (journal(&pool), journal(&pool));
    let target = stream();
    let id = target.to_string();
    journal.append(set_on(target, 0, 1)).await.unwrap();
    assert_eq!(journal.load::<ChatSession>(&id).await.unwrap().version, 1);
    journal.append(set_on(target, 1, 2)).await.unwrap();
    assert_eq!(journal.load::<ChatSession>(&id).await.unwrap().version, 3);

    take_back(&pool, 1).await;
    assert_eq!(journal.load::<ChatSession>(&id).await.unwrap().version, 1, "the events are gone");

    assert_eq!(journal.append(set_on(target, 1, 2)).await.unwrap().position, Position(3));
    assert_eq!(journal.load::<ChatSession>(&id).await.unwrap().version, 3);
    take_back(&pool, 1).await;
    // The same places, another story in them.
    let mut chat = other.load::<ChatSession>(&id).await.unwrap();
    let mut set = AppendSet::new(metadata());
    for hours in 1..=2 {
        set.decide(&mut chat, open_session(target), noon() + TimeDelta::hours(hours)).unwrap();
    }
    assert_eq!(other.append(set).await.unwrap().position, Position(3));
    let (ours, theirs) =
        (journal.load::<ChatSession>(&id).await.unwrap(), other.load::<ChatSession>(&id).await.unwrap());
    assert_eq!((ours.version, ours.state), (theirs.version, theirs.state));
    assert_whole(&pool).await;
}
