//! The one door: nobody changes what stands, nobody writes beside the function, fences hold.

use std::time::Duration;

use botledger_domain::{BotId, InstanceId, Position};
use botledger_journal::{AppendError, AppendSet, Journal, JournalConfig, LeaseOutcome};
use sqlx::{PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

use crate::support::{assert_whole, journal, keyed, metadata, push, set_on, set_with, stream};

async fn refusal(pool: &PgPool, role: Option<&str>, statement: &str) -> String {
    let mut tx = pool.begin().await.unwrap();
    if let Some(role) = role {
        sqlx::query(&format!("SET LOCAL ROLE {role}")).execute(&mut *tx).await.unwrap();
    }
    match sqlx::query(statement).execute(&mut *tx).await {
        Ok(_) => panic!("not refused: {statement}"),
        Err(error) => error.as_database_error().unwrap().code().unwrap().into_owned(),
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn not_even_the_owner_changes_the_ledger(pool: PgPool) {
    journal(&pool).append(set_on(stream(), 0, 3)).await.unwrap();
    let before = assert_whole(&pool).await;
    for statement in [
        "UPDATE events SET payload = '{}'",
        "UPDATE events SET payload = '{}' WHERE position = 2",
        "DELETE FROM events WHERE position = 3",
        "DELETE FROM events",
        "TRUNCATE events",
        "INSERT INTO events SELECT * FROM events WHERE position = 1
         ON CONFLICT (position) DO UPDATE SET metadata = '{}'",
    ] {
        assert_eq!(refusal(&pool, None, statement).await, "23001", "{statement}");
    }
    let after = assert_whole(&pool).await;
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
}

#[sqlx::test(migrations = "../../migrations")]
async fn the_products_role_has_no_other_way_in(pool: PgPool) {
    journal(&pool).append(set_on(stream(), 0, 1)).await.unwrap();
    for statement in [
        "INSERT INTO events SELECT * FROM events",
        "UPDATE events SET payload = '{}'",
        "DELETE FROM events",
        "TRUNCATE events",
        "ALTER TABLE events DISABLE TRIGGER ALL",
        "DROP TRIGGER events_are_immutable ON events",
        "SET session_replication_role = replica",
        "INSERT INTO message_bodies SELECT * FROM message_bodies",
        "UPDATE message_bodies SET ciphertext = ''",
        "INSERT INTO bot_leases VALUES (gen_random_uuid(), gen_random_uuid(), 1, now())",
        "UPDATE bot_leases SET epoch = 99",
        "CREATE TABLE public.beside (n integer)",
        "CREATE OR REPLACE FUNCTION public.event_leaf_hash(bigint, bigint, bigint, text, text, text, text, text, text)
         RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea'",
    ] {
        assert_eq!(refusal(&pool, Some("botledger_writer"), statement).await, "42501", "{statement}");
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn the_products_role_is_enough_for_all_the_journal_does(pool: PgPool) {
    let options = (*pool.connect_options()).clone().options([("role", "botledger_writer")]);
    let humble = PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
    let journal = Journal::open(humble.clone(), JournalConfig::default());
    let bot = BotId(Uuid::now_v7());
    let lease =
        journal.acquire_lease(bot, InstanceId(Uuid::now_v7()), Duration::from_secs(60)).await.unwrap();
    assert_eq!(lease, LeaseOutcome::Acquired { epoch: 1, previous: None });
    let mut set = set_with(keyed("k"), stream(), 0, 2);
    set.fence(bot, 1);
    let body = crate::support::new_body();
    set.body(body.clone());
    journal.append(set).await.unwrap();
    assert!(journal.body(body.body_id).await.unwrap().is_some());
    assert!(journal.find_receipt("k").await.unwrap().is_some());
    assert!(journal.renew_lease(bot, 1, Duration::from_secs(60)).await.unwrap());
    assert!(journal.release_lease(bot, 1).await.unwrap());
    let role: String = sqlx::query_scalar("SELECT current_user::text").fetch_one(&humble).await.unwrap();
    assert_eq!(role, "botledger_writer");
    humble.close().await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_set_of_an_old_epoch_is_refused(pool: PgPool) {
    let journal = journal(&pool);
    let bot = BotId(Uuid::now_v7());
    let (one, two) = (InstanceId(Uuid::now_v7()), InstanceId(Uuid::now_v7()));
    let minute = Duration::from_secs(60);
    let fenced = |epoch| {
        let mut set = AppendSet::new(metadata());
        push(&mut set, stream(), 0, 1);
        set.fence(bot, epoch);
        set
    };

    let never = journal.append(fenced(1)).await;
    assert!(matches!(never, Err(AppendError::Fenced { epoch: 1, .. })), "nobody holds it: {never:?}");
    assert_eq!(
        journal.acquire_lease(bot, one, minute).await.unwrap(),
        LeaseOutcome::Acquired { epoch: 1, previous: None }
    );
    journal.append(fenced(1)).await.unwrap();
    let held = journal.acquire_lease(bot, two, minute).await.unwrap();
    assert!(
        matches!(held, LeaseOutcome::Held { instance, epoch: 1, time_left } if instance == one && time_left <= minute)
    );

    assert!(journal.release_lease(bot, 1).await.unwrap());
    assert!(!journal.renew_lease(bot, 1, minute).await.unwrap(), "a late heartbeat takes nothing back");
    assert_eq!(
        journal.acquire_lease(bot, two, minute).await.unwrap(),
        LeaseOutcome::Acquired { epoch: 2, previous: Some(one) }
    );
    let results = journal.append_all(vec![fenced(2), fenced(1), set_on(stream(), 0, 1), fenced(3)]).await;
    assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
    assert!(matches!(results[1], Err(AppendError::Fenced { epoch: 1, .. })), "{results:?}");
    assert!(matches!(results[3], Err(AppendError::Fenced { epoch: 3, .. })), "{results:?}");
    assert!(!journal.renew_lease(bot, 1, minute).await.unwrap(), "the old holder keeps nothing");
    assert!(!journal.release_lease(bot, 1).await.unwrap());
    assert_eq!(assert_whole(&pool).await.len(), 3, "refused sets leave no hole");
}

#[sqlx::test(migrations = "../../migrations")]
async fn the_answer_to_a_known_key_passes_the_fence(pool: PgPool) {
    let journal = journal(&pool);
    let bot = BotId(Uuid::now_v7());
    let target = stream();
    let set = || {
        let mut set = set_with(keyed("once"), target, 0, 1);
        set.fence(bot, 1);
        set
    };
    journal.acquire_lease(bot, InstanceId(Uuid::now_v7()), Duration::from_secs(60)).await.unwrap();
    journal.append(set()).await.unwrap();
    journal.release_lease(bot, 1).await.unwrap();
    journal.acquire_lease(bot, InstanceId(Uuid::now_v7()), Duration::from_secs(60)).await.unwrap();
    let again = journal.append(set()).await.unwrap();
    assert_eq!((again.duplicate, again.position), (true, Position(1)));
}
