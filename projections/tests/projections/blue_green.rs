//! Read models made anew beside the live ones: equal to them, traded at one stroke, and back again.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use botledger_domain::{Actor, Position, RecordedEvent};
use botledger_projections::{
    Change, ChangeError, Decision, Projection, ProjectionError, Rebuild, Runners, Tail, all, cancel_rebuild,
    changes, decide, forget_previous, rebuilds, roll_back, start_rebuild, statuses, swap, verify, wait_for,
    work_on_rebuilds,
};
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

use crate::{
    once::{PATIENCE, QUICK, run},
    support::{Desk, Tally, append_sessions, journal, once, process, until},
};

const OPERATOR: Actor = Actor::System("test");
const WHY: Change<'_> = Change { actor: &OPERATOR, reason: "a test" };

async fn rebuild_of(pool: &PgPool, name: &str) -> Rebuild {
    rebuilds(pool).await.unwrap().into_iter().find(|rebuild| rebuild.name == name).unwrap()
}

async fn reaches(pool: &PgPool, name: &str, state: &str) -> Rebuild {
    until(&format!("the rebuild of {name} is {state}"), async || rebuild_of(pool, name).await.state == state)
        .await;
    rebuild_of(pool, name).await
}

async fn indexes(pool: &PgPool) -> Vec<(String, String)> {
    sqlx::query_as("SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'read' ORDER BY 1, 2")
        .fetch_all(pool)
        .await
        .unwrap()
        .into_iter()
        .map(|(table, definition): (String, String)| (table, definition))
        .collect()
}

async fn grants(pool: &PgPool) -> Vec<(String, String, String)> {
    sqlx::query_as(
        "SELECT table_name::text, grantee::text, privilege_type::text FROM information_schema.table_privileges
         WHERE table_schema = 'read' ORDER BY 1, 2, 3",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn every_read_model_is_rebuilt_equal_swapped_and_taken_back_while_events_come(pool: PgPool) {
    let cancel = CancellationToken::new();
    let tail = Tail::start(pool.clone(), cancel.clone()).await.unwrap();
    let runners = Runners::start(&pool, &tail, process(), all(), QUICK, &cancel);
    let journal = journal(&pool);
    let mut desk = Desk::new();
    let feed = async |desk: &mut Desk, round: u8| {
        let script: Vec<_> = (0..40u8)
            .map(|n| (n.wrapping_mul(7).wrapping_add(round), n ^ round, n.wrapping_mul(31)))
            .collect();
        desk.play(&script);
        desk.commit(&journal).await
    };
    let head = feed(&mut desk, 0).await;
    let (named, granted) = (indexes(&pool).await, grants(&pool).await);
    for projection in all() {
        assert!(wait_for(&pool, projection.name(), head, PATIENCE).await.unwrap());
        start_rebuild(&pool, &projection, WHY).await.unwrap();
    }
    feed(&mut desk, 1).await;
    for projection in all() {
        let ready = reaches(&pool, projection.name(), "ready").await;
        let found = ready.comparison.unwrap();
        assert_eq!((found.different, found.rows), (0, found.live_rows), "{:?}", found.differences);
    }
    feed(&mut desk, 2).await;
    for projection in all() {
        let done = swap(&pool, &projection, false, WHY).await.unwrap();
        assert_eq!(done.state, "swapped");
    }
    assert_eq!(indexes(&pool).await, named, "indexes keep their names");
    assert_eq!(grants(&pool).await, granted, "and whoever could read still can");
    let equal = async |head| {
        for projection in all() {
            let name = projection.name();
            assert!(wait_for(&pool, name, head, PATIENCE).await.unwrap(), "{name}");
            let report = verify(&pool, &projection, |_| {}).await.unwrap();
            assert_eq!(report.different, 0, "{name}: {:?}", report.differences);
        }
    };
    equal(feed(&mut desk, 3).await).await;
    for projection in all() {
        roll_back(&pool, projection.name(), WHY).await.unwrap();
    }
    equal(feed(&mut desk, 4).await).await;
    assert_eq!(indexes(&pool).await, named);
    let left: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_tables WHERE schemaname IN ('read_next', 'read_previous')",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(left, 0, "nothing is left lying about");
    cancel.cancel();
    runners.join().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn differences_are_reported_and_only_swapped_when_accepted(pool: PgPool) {
    let tally: Arc<dyn Projection> = Tally::create(&pool).await;
    let cancel = CancellationToken::new();
    let runners = run(&pool, Arc::clone(&tally), &cancel).await;
    let head = append_sessions(&journal(&pool), 25).await;
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    sqlx::query("UPDATE read.tally SET times = 7 WHERE position = 3").execute(&pool).await.unwrap();
    sqlx::query("DELETE FROM read.tally WHERE position = 4").execute(&pool).await.unwrap();

    assert!(matches!(swap(&pool, &tally, false, WHY).await, Err(ChangeError::NotOpen(_))));
    let begun = start_rebuild(&pool, &tally, WHY).await.unwrap();
    assert_eq!(start_rebuild(&pool, &tally, WHY).await.unwrap().id, begun.id, "it is on its way already");
    let found = reaches(&pool, "tally", "ready").await.comparison.unwrap();
    assert_eq!((found.different, found.rows, found.live_rows), (2, 25, 24));
    assert!(found.differences.iter().any(|one| one.live.as_deref() == Some("(3,7)")), "{found:?}");
    assert!(matches!(swap(&pool, &tally, false, WHY).await, Err(ChangeError::Different(2))));
    assert_eq!(Tally::counted(&pool).await.len(), 24, "the live rows are served until the swap");
    swap(&pool, &tally, true, WHY).await.unwrap();
    assert_eq!(Tally::counted(&pool).await, once(1..=25));

    assert!(matches!(cancel_rebuild(&pool, "tally", WHY).await, Err(ChangeError::NotOpen(_))));
    roll_back(&pool, "tally", WHY).await.unwrap();
    assert_eq!(Tally::counted(&pool).await.len(), 24, "the rows before, as they were");
    assert!(matches!(roll_back(&pool, "tally", WHY).await, Err(ChangeError::NothingKept(_))));

    start_rebuild(&pool, &tally, WHY).await.unwrap();
    cancel_rebuild(&pool, "tally", WHY).await.unwrap();
    start_rebuild(&pool, &tally, WHY).await.unwrap();
    reaches(&pool, "tally", "ready").await;
    swap(&pool, &tally, true, WHY).await.unwrap();
    start_rebuild(&pool, &tally, WHY).await.unwrap();
    assert!(matches!(roll_back(&pool, "tally", WHY).await, Err(ChangeError::Open(_))));
    cancel_rebuild(&pool, "tally", WHY).await.unwrap();
    forget_previous(&pool, "tally", WHY).await.unwrap();
    assert!(matches!(roll_back(&pool, "tally", WHY).await, Err(ChangeError::NothingKept(_))));
    let head = append_sessions(&journal(&pool), 3).await;
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    assert_eq!(Tally::counted(&pool).await, once(1..=28));

    let done: Vec<String> =
        changes(&pool, Some("tally")).await.unwrap().into_iter().map(|change| change.change).collect();
    let expected = [
        "started",
        "swapped",
        "rolled_back",
        "started",
        "cancelled",
        "started",
        "swapped",
        "started",
        "cancelled",
        "forgotten",
    ];
    assert_eq!(done, expected);
    let change = changes(&pool, None).await.unwrap().remove(0);
    assert_eq!((change.actor.as_str(), change.reason.as_str()), ("system:test", "a test"));
    cancel.cancel();
    runners.join().await;
}

/// The tally as a later release makes it: it counts tenfold.
struct Tenfold(Arc<Tally>);

#[async_trait]
impl Projection for Tenfold {
    fn name(&self) -> &'static str {
        "tally"
    }

    fn version(&self) -> i32 {
        2
    }

    fn tables(&self) -> &'static [&'static str] {
        &["tally"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        self.0.apply(tx, page).await?;
        let positions: Vec<i64> = page.iter().map(|event| event.position.0).collect();
        sqlx::query("UPDATE tally SET times = 10 * times WHERE position = ANY($1)")
            .bind(positions)
            .execute(tx)
            .await?;
        Ok(())
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_new_version_fills_beside_the_old_one_and_each_release_keeps_its_own(pool: PgPool) {
    let (old, new) = (Tally::create(&pool).await, Arc::new(Tenfold(Tally::of_version(2))));
    let new: Arc<dyn Projection> = new;
    let cancel = CancellationToken::new();
    let (old_runs, new_runs) = (run(&pool, old, &cancel).await, run(&pool, Arc::clone(&new), &cancel).await);
    let journal = journal(&pool);
    let head = append_sessions(&journal, 40).await;
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    start_rebuild(&pool, &new, WHY).await.unwrap();
    let ready = reaches(&pool, "tally", "ready").await;
    assert_eq!((ready.version, ready.comparison.unwrap().different), (2, 40));
    let head = append_sessions(&journal, 10).await;
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap(), "the old release goes on");
    assert_eq!(Tally::counted(&pool).await, once(1..=50));

    swap(&pool, &new, true, WHY).await.unwrap();
    let head = append_sessions(&journal, 10).await;
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap(), "the new release goes on");
    assert_eq!(statuses(&pool).await.unwrap()[0].version, 2);
    let tenfold: Vec<(i64, i64)> = (1..=60).map(|position| (position, 10)).collect();
    assert_eq!(Tally::counted(&pool).await, tenfold);

    roll_back(&pool, "tally", WHY).await.unwrap();
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap(), "the old release catches up");
    assert_eq!(Tally::counted(&pool).await, once(1..=60));
    cancel.cancel();
    old_runs.join().await;
    new_runs.join().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_rebuild_that_is_killed_again_and_again_loses_and_doubles_nothing(pool: PgPool) {
    let tally: Arc<dyn Projection> = Tally::create(&pool).await;
    let stop = CancellationToken::new();
    let runners = run(&pool, Arc::clone(&tally), &stop).await;
    // More than a page.
    let mut head = Position(0);
    for _ in 0..60 {
        head = append_sessions(&journal(&pool), 100).await;
    }
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    stop.cancel();
    runners.join().await;
    start_rebuild(&pool, &tally, WHY).await.unwrap();
    let mut killed = 0;
    while rebuild_of(&pool, "tally").await.state == "filling" {
        let worker = tokio::spawn(work_on_rebuilds(
            pool.clone(),
            vec![Arc::clone(&tally)],
            Duration::from_secs(1),
            CancellationToken::new(),
        ));
        tokio::time::sleep(Duration::from_millis(100 + 150 * killed)).await;
        // Dropped with whatever it had in hand: the server rolls that back.
        worker.abort();
        killed += 1;
    }
    assert!(killed > 1, "it was killed on its way");
    let found = rebuild_of(&pool, "tally").await.comparison.unwrap();
    assert_eq!((found.different, found.rows), (0, head.0));
    swap(&pool, &tally, false, WHY).await.unwrap();
    assert_eq!(Tally::counted(&pool).await, once(1..=head.0));
}

#[sqlx::test(migrations = "../migrations")]
async fn poison_stops_the_rebuild_and_not_the_live_read_model(pool: PgPool) {
    let tally = Tally::create(&pool).await;
    tally.poison([5]);
    let as_projection: Arc<dyn Projection> = tally.clone();
    let cancel = CancellationToken::new();
    let runners = run(&pool, tally.clone(), &cancel).await;
    let head = append_sessions(&journal(&pool), 12).await;
    until("the live one stops", async || {
        statuses(&pool).await.unwrap().iter().any(|s| s.status == "stopped")
    })
    .await;
    assert!(decide(&pool, "tally", Position(5), Decision::Skip, "broken", None).await.unwrap());
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    let without = once((1..=12).filter(|position| *position != 5));

    // What the live one applied, the rebuild cannot.
    tally.poison([8]);
    start_rebuild(&pool, &as_projection, WHY).await.unwrap();
    let stopped = reaches(&pool, "tally", "stopped").await;
    assert_eq!((stopped.failed_position, stopped.position), (Some(Position(8)), Position(7)));
    assert_eq!(stopped.error.unwrap(), "event 8 does not follow: it is poison");
    assert!(matches!(swap(&pool, &as_projection, true, WHY).await, Err(ChangeError::NotReady(_))));
    let skip = decide(&pool, "tally", Position(8), Decision::Skip, "broken", None).await.unwrap();
    assert!(!skip, "the live rows hold it: leaving it out would make them wrong");
    tally.poison([]);
    start_rebuild(&pool, &as_projection, WHY).await.unwrap();
    let ready = reaches(&pool, "tally", "ready").await;
    assert_eq!(ready.comparison.unwrap().different, 0, "the skipped event is left out of the rebuild too");
    swap(&pool, &as_projection, false, WHY).await.unwrap();
    assert_eq!(Tally::counted(&pool).await, without);
    cancel.cancel();
    runners.join().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn views_follow_readers_are_given_way_and_changed_tables_are_refused(pool: PgPool) {
    let tally: Arc<dyn Projection> = Tally::create(&pool).await;
    let cancel = CancellationToken::new();
    let runners = run(&pool, Arc::clone(&tally), &cancel).await;
    let head = append_sessions(&journal(&pool), 5).await;
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    for statement in [
        "CREATE VIEW public.seen WITH (security_barrier = true) AS SELECT position FROM read.tally",
        "CREATE VIEW public.seen_twice AS SELECT position FROM public.seen",
        "UPDATE read.tally SET times = 0",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    start_rebuild(&pool, &tally, WHY).await.unwrap();
    reaches(&pool, "tally", "ready").await;
    // A reader in the middle of a long look.
    let mut reader = pool.begin().await.unwrap();
    sqlx::query("SELECT * FROM read.tally").execute(&mut *reader).await.unwrap();
    let swapping = tokio::spawn({
        let (pool, tally) = (pool.clone(), Arc::clone(&tally));
        async move { swap(&pool, &tally, true, WHY).await }
    });
    for _ in 0..20 {
        let look = sqlx::query("SELECT * FROM read.tally").execute(&pool);
        tokio::time::timeout(Duration::from_secs(5), look).await.expect("readers are not held up").unwrap();
    }
    assert!(!swapping.is_finished());
    reader.rollback().await.unwrap();
    swapping.await.unwrap().unwrap();
    let head = append_sessions(&journal(&pool), 3).await;
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    let seen: i64 =
        sqlx::query_scalar("SELECT count(*) FROM public.seen_twice").fetch_one(&pool).await.unwrap();
    assert_eq!(seen, 8, "the views show the new rows");
    let options: Option<Vec<String>> =
        sqlx::query_scalar("SELECT reloptions FROM pg_class WHERE relname = 'seen'")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(options, Some(vec!["security_barrier=true".to_owned()]));

    // A migration comes between.
    sqlx::query("ALTER TABLE read.tally ADD COLUMN note text").execute(&pool).await.unwrap();
    assert!(matches!(roll_back(&pool, "tally", WHY).await, Err(ChangeError::Changed(_))));
    assert_eq!(Tally::counted(&pool).await.len(), 8);
    cancel.cancel();
    runners.join().await;
}
