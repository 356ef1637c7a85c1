//! Rows and checkpoint move together: each event is applied once, whatever fails in between.

use std::{sync::Arc, time::Duration};

use botledger_domain::Position;
use botledger_projections::{
    LeaseConfig, Projection, RunnerConfig, Runners, Tail, all, statuses, verify, wait_for,
};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::support::{Desk, Tally, append_sessions, journal, once, process, until};

pub(crate) const QUICK: RunnerConfig = RunnerConfig {
    page: 10,
    gather: Duration::from_millis(1),
    retry: Duration::from_millis(10),
    lease: LeaseConfig { ttl: Duration::from_secs(1), beat: Duration::from_millis(20) },
};

pub(crate) async fn run(
    pool: &PgPool,
    projection: Arc<dyn Projection>,
    cancel: &CancellationToken,
) -> Runners {
    let tail = Tail::start(pool.clone(), cancel.clone()).await.unwrap();
    Runners::start(pool, &tail, process(), vec![projection], QUICK, cancel)
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

#[sqlx::test(migrations = "../migrations")]
async fn every_projection_of_the_product_follows_the_ledger(pool: PgPool) {
    let cancel = CancellationToken::new();
    let tail = Tail::start(pool.clone(), cancel.clone()).await.unwrap();
    let runners = Runners::start(&pool, &tail, process(), all(), QUICK, &cancel);
    let journal = journal(&pool);
    let mut desk = Desk::new();
    let mut head = Position(0);
    for round in 0..6u8 {
        let script: Vec<_> = (0..40u8)
            .map(|n| (n.wrapping_mul(7).wrapping_add(round), n ^ round, n.wrapping_mul(31)))
            .collect();
        desk.play(&script);
        head = desk.commit(&journal).await;
    }
    for projection in all() {
        assert!(wait_for(&pool, projection.name(), head, PATIENCE).await.unwrap(), "{}", projection.name());
        let report = verify(&pool, &projection, |_| {}).await.unwrap();
        assert_eq!((report.position, report.different), (head, 0), "{:?}", report.differences);
    }
    assert!(
        statuses(&pool).await.unwrap().iter().all(|status| status.lag == 0 && status.status == "running")
    );
    cancel.cancel();
    runners.join().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_commit_that_fails_takes_the_rows_with_it(pool: PgPool) {
    let tally = Tally::create(&pool).await;
    // The commit itself fails, after everything was applied: a deferred trigger refuses it.
    for statement in [
        "CREATE TABLE crash (armed boolean)",
        "CREATE SEQUENCE crashes",
        "CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.position > 0 AND (SELECT armed FROM public.crash) THEN
                PERFORM nextval('public.crashes');
                RAISE EXCEPTION 'the server dies here' USING ERRCODE = '57P01';
            END IF;
            RETURN NULL;
         END $$",
        "INSERT INTO crash VALUES (true)",
        "CREATE CONSTRAINT TRIGGER crash AFTER UPDATE ON projection_checkpoints DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION crash()",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    let cancel = CancellationToken::new();
    let runners = run(&pool, tally, &cancel).await;
    let head = append_sessions(&journal(&pool), 25).await;
    until("the page was applied again", async || {
        let crashes: i64 =
            sqlx::query_scalar("SELECT last_value FROM crashes").fetch_one(&pool).await.unwrap();
        crashes >= 3
    })
    .await;
    assert_eq!(Tally::counted(&pool).await, [], "no row without its checkpoint");
    sqlx::query("UPDATE crash SET armed = false").execute(&pool).await.unwrap();
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    assert_eq!(Tally::counted(&pool).await, once(1..=head.0));
    cancel.cancel();
    runners.join().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn two_processes_on_one_projection_apply_nothing_twice(pool: PgPool) {
    let tally = Tally::create(&pool).await;
    let cancel = CancellationToken::new();
    let (one, two) = (run(&pool, tally.clone(), &cancel).await, run(&pool, tally.clone(), &cancel).await);
    let journal = journal(&pool);
    let (a, b) = tokio::join!(append_sessions(&journal, 60), append_sessions(&journal, 60));
    let head = a.max(b);
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    assert_eq!(Tally::counted(&pool).await, once(1..=120));
    cancel.cancel();
    one.join().await;
    two.join().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn rows_of_another_version_are_left_alone_until_they_are_rebuilt(pool: PgPool) {
    let first: Arc<dyn Projection> = Tally::create(&pool).await;
    let cancel = CancellationToken::new();
    let runners = run(&pool, first, &cancel).await;
    let journal = journal(&pool);
    let head = append_sessions(&journal, 3).await;
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    cancel.cancel();
    runners.join().await;

    let second: Arc<dyn Projection> = Tally::of_version(2);
    let cancel = CancellationToken::new();
    let runners = run(&pool, Arc::clone(&second), &cancel).await;
    let head = append_sessions(&journal, 3).await;
    let report = verify(&pool, &second, |_| {}).await.unwrap();
    assert_eq!((report.position, report.different), (Position(3), 0), "it waits where version 1 stopped");
    let report = botledger_projections::replay(&pool, &second, |_| {}).await.unwrap();
    assert_eq!((report.position, report.replaced), (head, true));
    let head = append_sessions(&journal, 3).await;
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    assert_eq!(Tally::counted(&pool).await, once(1..=9));
    assert_eq!(statuses(&pool).await.unwrap()[0].version, 2);
    cancel.cancel();
    runners.join().await;
}
