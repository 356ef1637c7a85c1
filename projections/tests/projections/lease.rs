//! Processes share the projections; what a process that lost one still writes is refused.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use async_trait::async_trait;
use botledger_domain::{InstanceId, RecordedEvent};
use botledger_projections::{
    LeaseConfig, Leases, Projection, ProjectionError, RunnerConfig, Runners, Tail, all, statuses, verify,
    wait_for,
};
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, postgres::PgPoolOptions};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    once::{PATIENCE, QUICK, run},
    support::{Desk, Tally, append_sessions, journal, once, process, until},
};

/// One process of the product, as far as projections go.
struct Process {
    instance: InstanceId,
    cancel: CancellationToken,
    runners: Runners,
}

impl Process {
    async fn start(pool: &PgPool) -> Self {
        let (instance, cancel) = (process(), CancellationToken::new());
        let tail = Tail::start(pool.clone(), cancel.clone()).await.unwrap();
        let runners = Runners::start(pool, &tail, instance, all(), QUICK, &cancel);
        Self { instance, cancel, runners }
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.runners.join().await;
    }
}

/// How many projections each process runs.
async fn loads(pool: &PgPool) -> BTreeMap<Uuid, usize> {
    let mut loads = BTreeMap::new();
    for holder in statuses(pool).await.unwrap().into_iter().filter_map(|status| status.holder) {
        *loads.entry(holder).or_default() += 1;
    }
    loads
}

/// Waits until these processes run everything, none more than one more than another.
async fn shared_by(pool: &PgPool, processes: &[&Process]) {
    until(&format!("{} processes share the work", processes.len()), async || {
        let loads = loads(pool).await;
        let of = |process: &&Process| loads.get(&process.instance.uuid()).copied().unwrap_or_default();
        let counts: Vec<usize> = processes.iter().map(of).collect();
        counts.iter().sum::<usize>() == all().len()
            && counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1
    })
    .await;
}

#[sqlx::test(migrations = "../migrations")]
async fn processes_come_and_go_and_the_others_share_the_work(pool: PgPool) {
    let (mut desk, journal) = (Desk::new(), journal(&pool));
    let mut feed = async |round: u8| {
        let script: Vec<_> =
            (0..60u8).map(|n| (n.wrapping_mul(7).wrapping_add(round), n ^ round, n)).collect();
        desk.play(&script);
        desk.commit(&journal).await
    };
    let first = Process::start(&pool).await;
    feed(0).await;
    shared_by(&pool, &[&first]).await;
    let second = Process::start(&pool).await;
    let third = Process::start(&pool).await;
    feed(1).await;
    shared_by(&pool, &[&first, &second, &third]).await;
    first.stop().await;
    feed(2).await;
    shared_by(&pool, &[&second, &third]).await;
    second.stop().await;
    let head = feed(3).await;
    shared_by(&pool, &[&third]).await;
    for projection in all() {
        assert!(wait_for(&pool, projection.name(), head, PATIENCE).await.unwrap(), "{}", projection.name());
        let report = verify(&pool, &projection, |_| {}).await.unwrap();
        assert_eq!((report.position, report.different), (head, 0), "{:?}", report.differences);
    }
    third.stop().await;
    assert_eq!(loads(&pool).await, BTreeMap::new(), "everything was given back");
}

/// Stops in the middle of a page, with its whole process, until it is told to go on.
struct Stuck {
    tally: Arc<Tally>,
    reached: mpsc::Sender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

#[async_trait]
impl Projection for Stuck {
    fn name(&self) -> &'static str {
        self.tally.name()
    }

    fn tables(&self) -> &'static [&'static str] {
        self.tally.tables()
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        self.tally.apply(tx, page).await?;
        self.reached.send(()).unwrap();
        // Not async on purpose: nothing else of its process goes on either.
        self.go_on.lock().unwrap().recv().unwrap();
        Ok(())
    }
}

/// A process in the middle of a page of the tally.
struct Paused {
    cancel: CancellationToken,
    go_on: mpsc::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Paused {
    async fn start(pool: &PgPool, tally: &Arc<Tally>, config: RunnerConfig) -> Self {
        let (reached, reaches) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let stuck = Arc::new(Stuck { tally: tally.clone(), reached, go_on: goes_on.into() });
        let (options, cancel) = ((*pool.connect_options()).clone(), CancellationToken::new());
        let thread = std::thread::spawn({
            let cancel = cancel.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let pool = PgPoolOptions::new().connect_with(options).await.unwrap();
                    let tail = Tail::start(pool.clone(), cancel.clone()).await.unwrap();
                    Runners::start(&pool, &tail, process(), vec![stuck], config, &cancel).join().await;
                    pool.close().await;
                });
            }
        });
        tokio::task::spawn_blocking(move || reaches.recv().unwrap()).await.unwrap();
        Self { cancel, go_on, thread }
    }

    /// Lets it go on with its page and end afterwards.
    async fn go_on_and_end(self) {
        self.cancel.cancel();
        self.go_on.send(()).unwrap();
        tokio::task::spawn_blocking(move || self.thread.join().unwrap()).await.unwrap();
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_page_of_a_process_that_lost_its_lease_is_given_up(pool: PgPool) {
    let tally = Tally::create(&pool).await;
    let head = append_sessions(&journal(&pool), 5).await;
    // The server does not end its transaction, so only the fence is in the way of its commit.
    let lease = LeaseConfig { ttl: Duration::from_secs(3_600), ..QUICK.lease };
    let paused = Paused::start(&pool, &tally, RunnerConfig { lease, ..QUICK }).await;
    sqlx::query("UPDATE work_leases SET epoch = epoch + 1, holder = gen_random_uuid()")
        .execute(&pool)
        .await
        .unwrap();
    paused.go_on_and_end().await;
    assert_eq!(Tally::counted(&pool).await, [], "its rows were rolled back");

    sqlx::query("UPDATE work_leases SET expires_at = now()").execute(&pool).await.unwrap();
    let cancel = CancellationToken::new();
    let runners = run(&pool, tally, &cancel).await;
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    assert_eq!(Tally::counted(&pool).await, once(1..=head.0));
    cancel.cancel();
    runners.join().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_process_paused_in_the_middle_of_a_page_holds_nobody_up(pool: PgPool) {
    let tally = Tally::create(&pool).await;
    let head = append_sessions(&journal(&pool), 5).await;
    let paused = Paused::start(&pool, &tally, QUICK).await;
    let cancel = CancellationToken::new();
    let other = run(&pool, tally, &cancel).await;
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap(), "the paused one still has its locks");
    assert_eq!(Tally::counted(&pool).await, once(1..=head.0));
    paused.go_on_and_end().await;
    assert_eq!(Tally::counted(&pool).await, once(1..=head.0), "what it had in hand was not written");
    cancel.cancel();
    other.join().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn leases_know_any_work_and_a_higher_epoch_follows_every_change_of_hands(pool: PgPool) {
    let config = LeaseConfig { ttl: Duration::from_secs(1), beat: Duration::from_millis(10) };
    let relay = |cancel: &CancellationToken| {
        let mut leases = Leases::new(pool.clone(), "relays", process(), config);
        let held = leases.offer("relay:eventstore".to_owned());
        (held, tokio::spawn(leases.keep(cancel.clone())))
    };
    let (first_ends, second_ends) = (CancellationToken::new(), CancellationToken::new());
    let (mut first, first_task) = relay(&first_ends);
    let fence = first.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let (mut second, second_task) = relay(&second_ends);
    let holds = async |fence: &botledger_projections::Fence| {
        let mut tx = pool.begin().await.unwrap();
        fence.holds(&mut tx).await.unwrap()
    };
    assert!(holds(&fence).await);
    first_ends.cancel();
    first_task.await.unwrap();
    let next = second.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(next.epoch() > fence.epoch());
    assert!(!holds(&fence).await && holds(&next).await);

    // As long as a transaction that looked is open, nobody takes the work from under it.
    let mut tx = pool.begin().await.unwrap();
    assert!(next.holds(&mut tx).await.unwrap());
    let taken = sqlx::query("UPDATE work_leases SET epoch = epoch + 1").execute(&pool);
    assert!(tokio::time::timeout(Duration::from_millis(200), taken).await.is_err(), "it has to wait");
    tx.rollback().await.unwrap();
    second_ends.cancel();
    second_task.await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn a_projection_that_nobody_runs_is_seen_to_wait(pool: PgPool) {
    let tally = Tally::create(&pool).await;
    let cancel = CancellationToken::new();
    let runners = run(&pool, tally, &cancel).await;
    let head = append_sessions(&journal(&pool), 3).await;
    assert!(wait_for(&pool, "tally", head, PATIENCE).await.unwrap());
    let status = async || statuses(&pool).await.unwrap().remove(0);
    let running = status().await;
    assert!(running.holder.is_some() && running.waiting_s.is_none() && running.trouble().is_none());
    cancel.cancel();
    runners.join().await;

    append_sessions(&journal(&pool), 2).await;
    until("it is seen to wait", async || status().await.waiting_s >= Some(1)).await;
    let mut waiting = status().await;
    assert_eq!((waiting.lag, waiting.holder, waiting.is_stalled()), (2, None, false));
    waiting.waiting_s = Some(30);
    assert_eq!(waiting.trouble().unwrap(), "tally has applied nothing for 30 s: no process holds it");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_process_slower_than_its_lease_does_not_take_its_work_from_itself(pool: PgPool) {
    let config = LeaseConfig { ttl: Duration::from_millis(1), beat: Duration::from_millis(20) };
    let mut leases = Leases::new(pool.clone(), "relays", process(), config);
    let mut held = leases.offer("relay:slow".to_owned());
    let cancel = CancellationToken::new();
    let keeping = tokio::spawn(leases.keep(cancel.clone()));
    let fence = held.wait_for(Option::is_some).await.unwrap().clone();
    for _ in 0..5 {
        let seen = async || -> DateTime<Utc> {
            sqlx::query_scalar("SELECT seen_at FROM work_processes").fetch_one(&pool).await.unwrap()
        };
        let last = seen().await;
        until("it beats again", async || seen().await > last).await;
    }
    assert_eq!(*held.borrow(), fence, "the same epoch, although it ran out between the heartbeats");
    cancel.cancel();
    keeping.await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn work_whose_doer_has_died_goes_to_another_process(pool: PgPool) {
    let config = LeaseConfig { ttl: Duration::from_secs(600), beat: Duration::from_millis(20) };
    let cancel = CancellationToken::new();
    let relay = || {
        let mut leases = Leases::new(pool.clone(), "relays", process(), config);
        let held = leases.offer("relay:mortal".to_owned());
        (held, tokio::spawn(leases.keep(cancel.clone())))
    };
    let (mut first, first_task) = relay();
    let fence = first.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let (second, second_task) = relay();
    drop(first);
    until("the other process has it", async || second.borrow().is_some()).await;
    assert!(second.borrow().as_ref().unwrap().epoch() > fence.epoch());
    cancel.cancel();
    first_task.await.unwrap();
    second_task.await.unwrap();
}
