//! A rebuild finds what was changed by hand, says which row, and repairs it.

use std::sync::Arc;

use botledger_domain::Position;
use botledger_projections::{
    PeopleProjection, Progress, Projection, QuotasProjection, TurnsProjection, replay, verify, wait_for,
};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::{
    once::{PATIENCE, run},
    support::{Desk, Tally, append_sessions, fold, journal, once, set_checkpoint},
};

async fn filled(pool: &PgPool, projection: &Arc<dyn Projection>) -> Position {
    let mut desk = Desk::new();
    let script: Vec<_> = (0..=255u8).map(|n| (n.wrapping_mul(7), n, n.wrapping_mul(31))).collect();
    desk.play(&script);
    desk.commit(&journal(pool)).await;
    let head = fold(pool, projection, Position(0), &[50]).await.unwrap();
    set_checkpoint(pool, projection.name(), head).await;
    head
}

#[sqlx::test(migrations = "../migrations")]
async fn a_row_changed_by_hand_is_found_named_and_repaired(pool: PgPool) {
    let turns: Arc<dyn Projection> = Arc::new(TurnsProjection);
    let head = filled(&pool, &turns).await;
    let report = verify(&pool, &turns, |_| {}).await.unwrap();
    assert_eq!((report.different, report.differences.len(), report.position), (0, 0, head));
    let rows = report.rows;
    assert!(rows > 3);

    let victim: uuid::Uuid = sqlx::query_scalar(
        "UPDATE read.turns SET conversation = gen_random_uuid()
         WHERE turn_id = (SELECT turn_id FROM read.turns ORDER BY created_position LIMIT 1) RETURNING turn_id",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    sqlx::query("UPDATE read.usage_day SET messages = messages + 1").execute(&pool).await.unwrap();
    let days: i64 = sqlx::query_scalar("SELECT count(*) FROM read.usage_day").fetch_one(&pool).await.unwrap();

    let report = verify(&pool, &turns, |_| {}).await.unwrap();
    assert_eq!((report.different, report.replaced), (1 + days, false));
    let found = report.differences.iter().find(|difference| difference.table == "turns").unwrap();
    let (live, replayed) = (found.live.as_ref().unwrap(), found.replayed.as_ref().unwrap());
    assert!(live.contains(&victim.to_string()) && replayed.contains(&victim.to_string()), "{found:?}");
    assert!(report.differences.iter().any(|difference| difference.table == "usage_day"));

    let repaired = replay(&pool, &turns, |_| {}).await.unwrap();
    assert_eq!((repaired.different, repaired.replaced, repaired.rows), (1 + days, true, rows));
    assert_eq!(verify(&pool, &turns, |_| {}).await.unwrap().different, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn rows_that_are_missing_or_too_many_are_found_too(pool: PgPool) {
    let quotas: Arc<dyn Projection> = Arc::new(QuotasProjection);
    filled(&pool, &quotas).await;
    sqlx::query(
        "INSERT INTO read.quotas SELECT gen_random_uuid(), workspace, gen_random_uuid(), plan, terms, meters,
            reserved_tokens, reserved_messages, reserved_money, overrides, warnings, refusals, 1000000, updated_position
         FROM read.quotas LIMIT 1",
    )
    .execute(&pool)
    .await
    .unwrap();
    sqlx::query(
        "DELETE FROM read.quotas WHERE created_position = (SELECT min(created_position) FROM read.quotas)",
    )
    .execute(&pool)
    .await
    .unwrap();
    let report = verify(&pool, &quotas, |_| {}).await.unwrap();
    let shape: Vec<_> =
        report.differences.iter().map(|found| (found.live.is_some(), found.replayed.is_some())).collect();
    assert!(
        shape.len() == 2 && shape.contains(&(true, false)) && shape.contains(&(false, true)),
        "{report:?}"
    );
    replay(&pool, &quotas, |_| {}).await.unwrap();
    assert_eq!(verify(&pool, &quotas, |_| {}).await.unwrap().different, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn live_rows_behind_the_head_are_compared_where_they_stand(pool: PgPool) {
    let tally: Arc<dyn Projection> = Tally::create(&pool).await;
    append_sessions(&journal(&pool), 9).await;
    fold(&pool, &tally, Position(0), &[4]).await.unwrap();
    sqlx::query("DELETE FROM read.tally WHERE position > 4").execute(&pool).await.unwrap();
    set_checkpoint(&pool, "tally", Position(4)).await;
    let mut seen = Vec::new();
    let report = verify(&pool, &tally, |progress| seen.push(progress)).await.unwrap();
    assert_eq!((report.position, report.different, report.rows), (Position(4), 0, 4), "{report:?}");
    assert_eq!(seen, [Progress { at: Position(9), head: Position(9) }]);
    let report = replay(&pool, &tally, |_| {}).await.unwrap();
    assert_eq!((report.position, report.rows), (Position(9), 9), "a replay goes on to the head");
    assert_eq!(Tally::counted(&pool).await, once(1..=9));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_read_model_that_never_ran_is_built_by_a_replay(pool: PgPool) {
    let people: Arc<dyn Projection> = Arc::new(PeopleProjection);
    let mut desk = Desk::new();
    desk.play(&[(7, 1, 3), (7, 2, 4), (3, 0, 1)]);
    let head = desk.commit(&journal(&pool)).await;
    let report = replay(&pool, &people, |_| {}).await.unwrap();
    assert_eq!((report.position, report.different), (head, report.rows));
    assert!(report.rows > 0);
    assert_eq!(verify(&pool, &people, |_| {}).await.unwrap().different, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn rebuilds_beside_a_running_projection_lose_and_double_nothing(pool: PgPool) {
    let tally: Arc<dyn Projection> = Tally::create(&pool).await;
    let cancel = CancellationToken::new();
    let runners = run(&pool, Arc::clone(&tally), &cancel).await;
    let appending = {
        let journal = journal(&pool);
        tokio::spawn(async move { append_sessions(&journal, 120).await })
    };
    while !appending.is_finished() {
        replay(&pool, &tally, |_| {}).await.unwrap();
        let report = verify(&pool, &tally, |_| {}).await.unwrap();
        assert_eq!(report.different, 0, "{report:?}");
    }
    let head = appending.await.unwrap();
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    assert_eq!(Tally::counted(&pool).await, once(1..=120));
    cancel.cancel();
    runners.join().await;
}
