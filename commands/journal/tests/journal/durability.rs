//! A caller is answered only after the durable mark. The database notes where its log stood when an
//! event was written; a flush beyond that is what an answer must have waited for.

use botledger_journal::{AppendError, AppendSet};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::{append_in, journal, metadata, set_on, stream};

async fn note_where_the_log_stands(pool: &PgPool) {
    for statement in [
        "CREATE TABLE noted (position bigint PRIMARY KEY, lsn pg_lsn NOT NULL)",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO public.noted VALUES (NEW.position, pg_current_wal_insert_lsn()); RETURN NULL;
         END $$",
        "CREATE TRIGGER note AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION note()",
    ] {
        sqlx::query(statement).execute(pool).await.unwrap();
    }
}

async fn flushed(pool: &PgPool, position: i64) -> bool {
    sqlx::query_scalar("SELECT pg_current_wal_flush_lsn() > lsn FROM noted WHERE position = $1")
        .bind(position)
        .fetch_one(pool)
        .await
        .unwrap()
}

/// Commits an event that the server may take its time to flush.
async fn append_lazily(pool: &PgPool, target: Uuid) -> i64 {
    let mut tx = pool.begin().await.unwrap();
    sqlx::query("SET LOCAL synchronous_commit = off").execute(&mut *tx).await.unwrap();
    let position = append_in(&mut tx, target).await.unwrap();
    tx.commit().await.unwrap();
    position
}

#[sqlx::test(migrations = "../../migrations")]
async fn whoever_is_told_appended_was_flushed(pool: PgPool) {
    note_where_the_log_stands(&pool).await;
    let journal = journal(&pool);
    for _ in 0..30 {
        let receipt = journal.append(set_on(stream(), 0, 1)).await.unwrap();
        assert!(flushed(&pool, receipt.position.0).await, "event {} was not", receipt.position);
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_refusal_waits_for_what_it_rests_on(pool: PgPool) {
    note_where_the_log_stands(&pool).await;
    let journal = journal(&pool);
    journal.append(set_on(stream(), 0, 1)).await.unwrap();
    for _ in 0..10 {
        let target = stream();
        let position = append_lazily(&pool, target).await;
        let refused = journal.append(set_on(target, 0, 1)).await;
        assert!(matches!(refused, Err(AppendError::Conflict { actual: 1, .. })), "{refused:?}");
        assert!(flushed(&pool, position).await, "event {position} was not");
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn so_does_an_already_so(pool: PgPool) {
    note_where_the_log_stands(&pool).await;
    let journal = journal(&pool);
    for _ in 0..10 {
        let position = append_lazily(&pool, stream()).await;
        let receipt = journal.append(AppendSet::new(metadata())).await.unwrap();
        assert_eq!((receipt.position.0, receipt.event_positions.len()), (0, 0));
        assert!(flushed(&pool, position).await, "event {position} was not");
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn and_so_does_the_receipt_of_a_known_key(pool: PgPool) {
    note_where_the_log_stands(&pool).await;
    let journal = journal(&pool);
    for _ in 0..10 {
        let target = stream();
        let position = append_lazily(&pool, target).await;
        let receipt = journal.find_receipt(&target.to_string()).await.unwrap().unwrap();
        assert_eq!(receipt.position.0, position);
        assert!(flushed(&pool, position).await, "event {position} was not");
    }
}
