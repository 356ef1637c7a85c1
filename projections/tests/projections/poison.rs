//! An event that cannot be applied stops its projection and no other, until an operator decides.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
    mpsc,
};

use async_trait::async_trait;
use botledger_domain::{Position, RecordedEvent};
use botledger_projections::{
    CheckpointStatus, Decision, PeopleProjection, Projection, ProjectionError, RebuildError, Runners, Tail,
    decide, replay, statuses, verify, wait_for,
};
use sqlx::{PgConnection, PgPool, postgres::PgPoolOptions};
use tokio_util::sync::CancellationToken;

use crate::{
    once::{PATIENCE, QUICK, run},
    support::{Tally, append_sessions, journal, once, process, until},
};

async fn status(pool: &PgPool) -> CheckpointStatus {
    statuses(pool).await.unwrap().into_iter().find(|status| status.name == "tally").unwrap()
}

async fn stopped_at(pool: &PgPool, position: i64) -> CheckpointStatus {
    until("the projection stops", async || {
        let all = statuses(pool).await.unwrap();
        all.iter().any(|status| status.failed_position == Some(Position(position)))
    })
    .await;
    status(pool).await
}

/// How often the projection was stopped: each stop writes the row anew.
async fn stops(pool: &PgPool) -> String {
    sqlx::query_scalar("SELECT updated_at::text FROM projection_checkpoints WHERE name = 'tally'")
        .fetch_one(pool)
        .await
        .unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn poison_stops_its_projection_alone_and_is_named(pool: PgPool) {
    let tally = Tally::create(&pool).await;
    tally.poison([5]);
    let cancel = CancellationToken::new();
    let tail = Tail::start(pool.clone(), cancel.clone()).await.unwrap();
    let projections: Vec<Arc<dyn Projection>> = vec![tally.clone(), Arc::new(PeopleProjection)];
    let runners = Runners::start(&pool, &tail, process(), projections, QUICK, &cancel);
    let head = append_sessions(&journal(&pool), 12).await;

    let stopped = stopped_at(&pool, 5).await;
    assert_eq!((stopped.position, stopped.status.as_str(), stopped.lag), (Position(4), "stopped", 8));
    assert_eq!(stopped.error.unwrap(), "event 5 does not follow: it is poison");
    assert_eq!(Tally::counted(&pool).await, once(1..=4), "what came before it is applied");
    assert!(wait_for(&pool, "people", head, PATIENCE).await.unwrap(), "the other goes on");

    let decided = async |position, decision| {
        decide(&pool, "tally", Position(position), decision, "a test", None).await.unwrap()
    };
    assert!(!decided(4, Decision::Skip).await, "it is not stopped there");
    assert!(!decide(&pool, "people", Position(5), Decision::Skip, "a test", None).await.unwrap());

    // A retry that meets the same poison stops again, once.
    let before = stops(&pool).await;
    assert!(decided(5, Decision::Retry).await);
    until("it stopped again", async || stops(&pool).await != before).await;
    assert_eq!(status(&pool).await.failed_position, Some(Position(5)));

    tally.poison([]);
    assert!(decided(5, Decision::Retry).await);
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    assert_eq!(Tally::counted(&pool).await, once(1..=12));
    assert_eq!((status(&pool).await.status.as_str(), status(&pool).await.error), ("running", None));
    cancel.cancel();
    runners.join().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_skip_is_obeyed_also_by_a_rebuild(pool: PgPool) {
    let tally = Tally::create(&pool).await;
    tally.poison([5, 6, 12]);
    let as_projection: Arc<dyn Projection> = tally.clone();
    let cancel = CancellationToken::new();
    let runners = run(&pool, tally.clone(), &cancel).await;
    let head = append_sessions(&journal(&pool), 12).await;

    stopped_at(&pool, 5).await;
    match verify(&pool, &as_projection, |_| {}).await {
        Err(RebuildError::Projection { name: "tally", source }) => {
            assert!(source.to_string().contains("event 5"), "{source}");
        }
        other => panic!("nobody decided to leave it out: {other:?}"),
    }
    for position in [5, 6, 12] {
        stopped_at(&pool, position).await;
        assert!(decide(&pool, "tally", Position(position), Decision::Skip, "broken", None).await.unwrap());
    }
    assert!(
        wait_for(&pool, "tally", head, PATIENCE).await.unwrap(),
        "also where the skipped one is the last"
    );
    let without = once([1, 2, 3, 4, 7, 8, 9, 10, 11]);
    assert_eq!(Tally::counted(&pool).await, without);
    let report = verify(&pool, &as_projection, |_| {}).await.unwrap();
    assert_eq!((report.position, report.different), (head, 0), "{:?}", report.differences);
    replay(&pool, &as_projection, |_| {}).await.unwrap();
    assert_eq!(Tally::counted(&pool).await, without);
    cancel.cancel();
    runners.join().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn two_processes_that_meet_poison_together_apply_nothing_twice(pool: PgPool) {
    let tally = Tally::create(&pool).await;
    let poison: Vec<i64> = (1..=8).map(|n| n * 9).collect();
    tally.poison(poison.clone());
    let cancel = CancellationToken::new();
    let mut processes = Vec::new();
    for _ in 0..4 {
        processes.push(run(&pool, tally.clone(), &cancel).await);
    }
    let head = append_sessions(&journal(&pool), 80).await;
    for position in &poison {
        stopped_at(&pool, *position).await;
        assert!(decide(&pool, "tally", Position(*position), Decision::Skip, "a test", None).await.unwrap());
    }
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    assert_eq!(Tally::counted(&pool).await, once((1..=80).filter(|position| position % 9 != 0)));
    cancel.cancel();
    for process in processes {
        process.join().await;
    }
}

/// Pauses a runner between a page that failed and the search for the event that is to blame.
struct Paused {
    tally: Arc<Tally>,
    failed: AtomicBool,
    reached: mpsc::Sender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

#[async_trait]
impl Projection for Paused {
    fn name(&self) -> &'static str {
        self.tally.name()
    }

    fn version(&self) -> i32 {
        if self.failed.swap(false, Ordering::SeqCst) {
            self.reached.send(()).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
        }
        self.tally.version()
    }

    fn tables(&self) -> &'static [&'static str] {
        self.tally.tables()
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        let result = self.tally.apply(tx, page).await;
        self.failed.store(result.is_err(), Ordering::SeqCst);
        result
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_process_overtaken_while_it_looks_for_the_poison_applies_nothing_again(pool: PgPool) {
    let tally = Tally::create(&pool).await;
    tally.poison([9]);
    let head = append_sessions(&journal(&pool), 12).await;

    let (reached, reaches) = mpsc::channel();
    let (go, go_on) = mpsc::channel();
    let paused = Arc::new(Paused {
        tally: tally.clone(),
        failed: AtomicBool::new(false),
        reached,
        go_on: Mutex::new(go_on),
    });
    let stop_first = CancellationToken::new();
    let first = {
        // A process of its own, as far as that goes: it is stopped in the middle, with its runtime.
        let (options, stop) = ((*pool.connect_options()).clone(), stop_first.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let pool = PgPoolOptions::new().connect_with(options).await.unwrap();
                run(&pool, paused, &stop).await.join().await;
                pool.close().await;
            });
        })
    };
    tokio::task::spawn_blocking(move || reaches.recv().unwrap()).await.unwrap();

    let stop_second = CancellationToken::new();
    let second = run(&pool, tally.clone(), &stop_second).await;
    assert_eq!(stopped_at(&pool, 9).await.position, Position(8));
    stop_first.cancel();
    go.send(()).unwrap();
    tokio::task::spawn_blocking(move || first.join().unwrap()).await.unwrap();
    assert_eq!(Tally::counted(&pool).await, once(1..=8));

    assert!(decide(&pool, "tally", Position(9), Decision::Skip, "a test", None).await.unwrap());
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    assert_eq!(Tally::counted(&pool).await, once((1..=12).filter(|position| *position != 9)));
    stop_second.cancel();
    second.join().await;
}
