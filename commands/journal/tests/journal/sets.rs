//! L2: a set is all or nothing, and fails alone. Keys: asked twice, done once.

use botledger_domain::{Position, chat_session::ChatSession};
use botledger_journal::{AppendError, AppendSet, Receipt};
use futures::future::join_all;
use sqlx::PgPool;

use crate::support::{
    assert_whole, journal, keyed, length, metadata, new_body, push, set_on, set_with, stream,
};

async fn bodies(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM message_bodies").fetch_one(pool).await.unwrap()
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_set_over_several_streams_with_bodies_stands_together(pool: PgPool) {
    let journal = journal(&pool);
    let (a, b, c) = (stream(), stream(), stream());
    let mut set = AppendSet::new(metadata());
    push(&mut set, a, 0, 2);
    push(&mut set, b, 0, 1);
    push(&mut set, c, 0, 3);
    let body = new_body();
    set.body(body.clone());
    let receipt = journal.append(set).await.unwrap();
    assert_eq!(receipt.event_positions, [1, 2, 3, 4, 5, 6].map(Position));
    let versions: Vec<_> = receipt.streams.iter().map(|s| (s.aggregate_id.clone(), s.version)).collect();
    assert_eq!(versions, [(a.to_string(), 2), (b.to_string(), 1), (c.to_string(), 3)]);
    let stored = journal.body(body.body_id).await.unwrap().unwrap();
    assert_eq!(
        (stored.position, stored.ciphertext, stored.nonce),
        (Position(1), body.ciphertext, body.nonce)
    );
    assert_whole(&pool).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn one_stale_stream_fails_its_set_and_no_other(pool: PgPool) {
    let journal = journal(&pool);
    let (taken, free) = (stream(), stream());
    journal.append(set_on(taken, 0, 2)).await.unwrap();

    // While the lock is held everything queues up, and then shares a batch.
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(7209065211)").execute(&mut *lock).await.unwrap();
    let mut stale = AppendSet::new(metadata());
    push(&mut stale, free, 0, 1);
    push(&mut stale, taken, 1, 1);
    stale.body(new_body());
    let sets = vec![set_on(stream(), 0, 1), set_on(stream(), 0, 1), stale, set_on(stream(), 0, 2)];
    let appending = {
        let journal = journal.clone();
        tokio::spawn(async move { journal.append_all(sets).await })
    };
    crate::support::until("the writer waits", async || {
        crate::support::waiting_for_the_lock(&pool).await == 1
    })
    .await;
    lock.commit().await.unwrap();

    let results = appending.await.unwrap();
    assert!(results[0].is_ok() && results[1].is_ok() && results[3].is_ok(), "{results:?}");
    match &results[2] {
        Err(AppendError::Conflict { aggregate_id, expected: 1, actual: 2, .. }) => {
            assert_eq!(*aggregate_id, taken.to_string());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((length(&pool, free).await, bodies(&pool).await), (0, 0), "nothing of the stale set is there");
    assert_eq!(assert_whole(&pool).await.len(), 6);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_set_falls_when_a_stream_it_rests_on_has_moved_and_shares_it_with_others_until_then(pool: PgPool) {
    let journal = journal(&pool);
    let ground = stream();
    let resting = async || {
        let mut set = set_on(stream(), 0, 1);
        set.rests_on(&journal.load::<ChatSession>(&ground.to_string()).await.unwrap());
        set
    };
    let on_nothing = [resting().await, resting().await, resting().await];
    let [first, second, late] = on_nothing;
    let sets = vec![first, second, set_on(ground, 0, 1), late];
    let results = journal.append_all(sets).await;
    assert!(results[..3].iter().all(Result::is_ok), "{results:?}");
    match &results[3] {
        Err(AppendError::Conflict { aggregate_id, expected: 0, actual: 1, .. }) => {
            assert_eq!(*aggregate_id, ground.to_string());
        }
        other => panic!("{other:?}"),
    }
    // What it moves itself it need not rest on.
    let mut both = AppendSet::new(metadata());
    push(&mut both, ground, 1, 2);
    both.rests_on(&journal.load::<ChatSession>(&ground.to_string()).await.unwrap());
    assert!(journal.append(both).await.is_ok());
    assert!(journal.append(resting().await).await.is_ok());
    assert_eq!(assert_whole(&pool).await.len(), 6);
}

#[sqlx::test(migrations = "../../migrations")]
async fn of_two_sets_on_one_version_never_both_win(pool: PgPool) {
    let journals = [journal(&pool), journal(&pool)];
    let target = stream();
    for version in 0..15 {
        let rivals = (0..6).map(|n| journals[n % 2].append(set_on(target, version, 1)));
        let results = join_all(rivals).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        for lost in results.into_iter().filter_map(Result::err) {
            assert!(matches!(lost, AppendError::Conflict { .. }), "{lost:?}");
        }
    }
    assert_eq!(assert_whole(&pool).await.len(), 15);
}

#[sqlx::test(migrations = "../../migrations")]
async fn sets_on_one_stream_handed_in_together_keep_their_order(pool: PgPool) {
    let journal = journal(&pool);
    let target = stream();
    let results = journal.append_all((0..8).map(|version| set_on(target, version, 1)).collect()).await;
    let positions: Vec<_> = results.into_iter().map(|result| result.unwrap().position.0).collect();
    assert_eq!(positions, (1..=8).collect::<Vec<_>>());
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_set_too_large_for_a_batch_makes_one_of_its_own(pool: PgPool) {
    let config = botledger_journal::JournalConfig { max_batch_events: 4, ..Default::default() };
    let journal = botledger_journal::Journal::open(pool.clone(), config);
    let sets = [3, 9, 1, 4, 2].map(|events| set_on(stream(), 0, events)).into();
    assert!(journal.append_all(sets).await.iter().all(Result::is_ok));
    assert_eq!(assert_whole(&pool).await.len(), 19);
}

#[sqlx::test(migrations = "../../migrations")]
async fn the_same_key_gives_the_same_receipt_over_two_instances_at_once(pool: PgPool) {
    let journals = [journal(&pool), journal(&pool)];
    for round in 0..5 {
        let target = stream();
        let key = format!("workspace/{round}");
        let calls = (0..8).map(|n| journals[n % 2].append(set_with(keyed(&key), target, 0, 2)));
        let receipts: Vec<Receipt> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(receipts.iter().filter(|receipt| !receipt.duplicate).count(), 1);
        assert!(receipts.iter().all(|receipt| receipt.event_positions == receipts[0].event_positions));
        assert_eq!(length(&pool, target).await, 2);
        let found = journals[0].find_receipt(&key).await.unwrap().unwrap();
        assert_eq!((found.event_positions, found.duplicate), (receipts[0].event_positions.clone(), true));
    }
    assert_eq!(journals[0].find_receipt("workspace/never").await.unwrap(), None);
    assert_whole(&pool).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_known_key_is_an_answer_even_where_the_streams_moved_on(pool: PgPool) {
    let journal = journal(&pool);
    let target = stream();
    let first = journal.append(set_with(keyed("k"), target, 0, 1)).await.unwrap();
    journal.append(set_on(target, 1, 1)).await.unwrap();
    let again = journal.append(set_with(keyed("k"), target, 0, 1)).await.unwrap();
    assert_eq!((again.duplicate, again.event_positions), (true, first.event_positions));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_body_that_is_there_already_refuses_its_set_for_good(pool: PgPool) {
    let journal = journal(&pool);
    let body = new_body();
    let mut first = set_on(stream(), 0, 1);
    first.body(body.clone());
    journal.append(first).await.unwrap();
    let mut again = set_on(stream(), 0, 1);
    again.body(body);
    let results = journal.append_all(vec![set_on(stream(), 0, 1), again, set_on(stream(), 0, 1)]).await;
    assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
    assert!(matches!(results[1], Err(AppendError::Invalid { .. })), "{results:?}");
    assert_eq!(assert_whole(&pool).await.len(), 3);
}

#[sqlx::test(migrations = "../../migrations")]
async fn closing_writes_what_waits_and_takes_nothing_more(pool: PgPool) {
    let journal = journal(&pool);
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let journal = journal.clone();
            tokio::spawn(async move { journal.append(set_on(stream(), 0, 1)).await })
        })
        .collect();
    let results = join_all(waiting).await;
    assert!(results.into_iter().all(|result| result.unwrap().is_ok()));
    journal.close().await;
    assert!(matches!(journal.append(set_on(stream(), 0, 1)).await, Err(AppendError::Closed)));
    journal.close().await;
    assert_eq!(assert_whole(&pool).await.len(), 20);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_load_is_as_fresh_as_the_ledger(pool: PgPool) {
    let (journal, other) = (journal(&pool), journal(&pool));
    let target = stream();
    journal.append(set_on(target, 0, 2)).await.unwrap();
    assert_eq!(journal.load::<ChatSession>(&target.to_string()).await.unwrap().version, 2);
    other.append(set_on(target, 2, 3)).await.unwrap();
    let loaded = journal.load::<ChatSession>(&target.to_string()).await.unwrap();
    assert_eq!((loaded.version, loaded.state.current().unwrap().0), (5, 5));
    assert_eq!(journal.load::<ChatSession>("nobody").await.unwrap().version, 0);
}
