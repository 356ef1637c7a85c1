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
    assert_whole, journal, keyed, length, metadata, noon, open_session, set_on, set_with, stream, take_back,
    until, waiting_for_the_lock,
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

/// From here on no mark gets through while somebody holds the gate: a function of the same name, ahead
/// of the server's own on the path of every connection opened from now on.
async fn gate_the_marks(pool: &PgPool) {
    for statement in [
        "CREATE FUNCTION pg_logical_emit_message(boolean, text, text) RETURNS pg_lsn LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_advisory_xact_lock_shared(1);
            RETURN pg_catalog.pg_logical_emit_message($1, $2, $3);
         END $$",
        "DO $$ BEGIN
            EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database());
         END $$",
    ] {
        sqlx::query(statement).execute(pool).await.unwrap();
    }
}

/// A crash of the server while the marks wait at the gate, and its return. What it takes back is gone before
/// the connections are: whoever connects again meets a server that has come back.
async fn crash(pool: &PgPool, gate: sqlx::Transaction<'_, sqlx::Postgres>, above: i64) {
    take_back(pool, above).await;
    assert!(kill_the_writers_connections(pool).await > 1);
    gate.commit().await.unwrap();
}

#[sqlx::test(migrations = "../../migrations")]
async fn what_a_crash_takes_back_is_not_acknowledged_by_a_mark_of_the_next_run(pool: PgPool) {
    gate_the_marks(&pool).await;
    let journal = journal(&pool);
    journal.append(set_on(stream(), 0, 1)).await.unwrap();
    let mut gate = pool.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(1)").execute(&mut *gate).await.unwrap();
    let appending = |set: AppendSet| {
        let journal = journal.clone();
        tokio::spawn(async move { journal.append(set).await })
    };
    let (first, second, third) = (stream(), stream(), stream());
    // Beside something that waits for a mark nothing is alone, and takes the way of many.
    let nothing = appending(AppendSet::new(metadata()));
    until("nothing waits for its mark", async || waiting_for_the_lock(&pool).await == 1).await;
    let marked = appending(set_on(first, 0, 1));
    until("the first waits behind it", async || length(&pool, first).await == 1).await;
    let waits = appending(set_on(second, 0, 1));
    until("the second waits too", async || length(&pool, second).await == 1).await;
    let later = {
        let (journal, sets) = (journal.clone(), vec![set_on(second, 0, 1), set_on(third, 0, 1)]);
        tokio::spawn(async move { journal.append_all(sets).await })
    };
    until("and so does what comes after a refusal", async || length(&pool, third).await == 1).await;

    crash(&pool, gate, 1).await;
    let mut answers = vec![nothing.await.unwrap(), marked.await.unwrap(), waits.await.unwrap()];
    answers.append(&mut later.await.unwrap());
    for answer in answers {
        assert!(matches!(answer, Err(AppendError::Unavailable { .. })), "{answer:?}");
    }
    assert_eq!(journal.append(set_on(second, 0, 1)).await.unwrap().position, Position(2));
    let conflict = journal.append(set_on(second, 0, 1)).await;
    assert!(matches!(conflict, Err(AppendError::Conflict { .. })), "refusals are told again: {conflict:?}");
    assert_whole(&pool).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_refusal_that_rests_on_what_a_crash_takes_back_is_not_told(pool: PgPool) {
    gate_the_marks(&pool).await;
    let (writes, is_refused) = (journal(&pool), journal(&pool));
    for journal in [&writes, &is_refused] {
        journal.append(set_on(stream(), 0, 1)).await.unwrap();
    }
    let mut gate = pool.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(1)").execute(&mut *gate).await.unwrap();
    let target = stream();
    let mut answers = Vec::new();
    for (journal, waiting) in [(writes, 1), (is_refused, 2)] {
        let mut append = |sets: Vec<AppendSet>| {
            let journal = journal.clone();
            answers.push(tokio::spawn(async move { journal.append_all(sets).await }));
        };
        // Beside something that waits for a mark nothing is alone, and takes the way of many.
        append(vec![AppendSet::new(metadata())]);
        until("nothing waits for its mark", async || waiting_for_the_lock(&pool).await == waiting).await;
        let behind = stream();
        append(vec![set_on(target, 0, 1), set_on(behind, 0, 1)]);
        until("and so is what comes behind it", async || length(&pool, behind).await == 1).await;
    }
    crash(&pool, gate, 2).await;
    for answers in answers {
        for answer in answers.await.unwrap() {
            assert!(matches!(answer, Err(AppendError::Unavailable { .. })), "{answer:?}");
        }
    }
}
