//! Read models of the past are what the live ones were, however they were made.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use botledger_domain::{Position, WorkspaceId};
use botledger_projections::{BotsProjection, Past, PastConfig, PastError, Projection};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::{Desk, Tally, append_sessions, fold, journal, once, until};

const PATIENCE: Duration = Duration::from_secs(30);
const WORKSPACE: WorkspaceId = WorkspaceId(Uuid::from_u128(1));

async fn rows(pool: &PgPool, projection: &Arc<dyn Projection>, schema: &str) -> Vec<String> {
    let mut all = Vec::new();
    for table in projection.tables() {
        let rows: Vec<String> =
            sqlx::query_scalar(&format!("SELECT '{table} ' || t::text FROM {schema}{table} AS t ORDER BY 1"))
                .fetch_all(pool)
                .await
                .unwrap();
        all.extend(rows);
    }
    all
}

fn past(pool: &PgPool, config: PastConfig) -> Past {
    Past::new(pool, botledger_projections::all(), config)
}

async fn connections(pool: &PgPool) -> i64 {
    sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'botledger-past'",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn every_read_model_is_at_every_position_what_it_was_live(pool: PgPool) {
    let journal = journal(&pool);
    let mut desk = Desk::new();
    let mut recorded: BTreeMap<(&'static str, Position), Vec<String>> = BTreeMap::new();
    let mut at = Position(0);
    for part in 0..4u8 {
        let script: Vec<_> =
            (0..60u8).map(|n| (n.wrapping_mul(7).wrapping_add(part * 60), n, n.wrapping_mul(31))).collect();
        desk.play(&script);
        desk.commit(&journal).await;
        let mut end = at;
        for projection in botledger_projections::all() {
            end = fold(&pool, &projection, at, &[7, 50]).await.unwrap();
            recorded.insert((projection.name(), end), rows(&pool, &projection, "read.").await);
        }
        at = end;
    }
    let filled = |rows: &&Vec<String>| !rows.is_empty();
    assert!(recorded.values().filter(filled).count() > 30, "a comparison of nothing proves nothing");
    let projections: BTreeMap<_, _> =
        botledger_projections::all().into_iter().map(|one| (one.name(), one)).collect();
    // Backwards each is made from the beginning, forwards from the one before it; few may stay.
    let few = PastConfig { copies: 3, ..PastConfig::default() };
    for (past, forwards) in [(past(&pool, few), true), (past(&pool, few), false)] {
        let mut asked: Vec<_> = recorded.iter().collect();
        if !forwards {
            asked.reverse();
        }
        for ((name, position), then) in asked {
            let copy = past.at(WORKSPACE, name, *position, PATIENCE).await.unwrap();
            assert_eq!(&rows(&copy, &projections[name], "").await, then, "{name} as of {position}");
        }
        until("those nobody asks for go", async || connections(&pool).await <= 3).await;
        drop(past);
        until("all go with the last who knows them", async || connections(&pool).await == 0).await;
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn many_who_ask_the_same_wait_for_one_copy_and_what_is_lost_is_made_again(pool: PgPool) {
    let tally = Tally::create(&pool).await;
    let head = append_sessions(&journal(&pool), 300).await;
    let past = Past::new(&pool, vec![tally], PastConfig::default());
    let asked: Vec<_> = (0..8).map(|_| past.at(WORKSPACE, "tally", head, PATIENCE)).collect();
    for copy in futures::future::join_all(asked).await {
        let copy = copy.unwrap();
        let counted: Vec<(i64, i64)> = sqlx::query_as("SELECT position, times FROM tally ORDER BY position")
            .fetch_all(&copy)
            .await
            .unwrap();
        assert_eq!(counted, once(1..=head.0));
        // Nothing but the copy is in sight.
        assert!(sqlx::query("SELECT 1 FROM bots").fetch_optional(&copy).await.is_err());
    }
    assert_eq!(connections(&pool).await, 1);

    sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'botledger-past'",
    )
    .execute(&pool)
    .await
    .unwrap();
    // Whoever reads from the lost one gets an error, never today's rows; the next one gets a new copy.
    let mut tries = 0;
    let counted = loop {
        let copy = past.at(WORKSPACE, "tally", head, PATIENCE).await.unwrap();
        match sqlx::query_scalar::<_, i64>("SELECT count(*) FROM tally").fetch_one(&copy).await {
            Ok(counted) => break counted,
            Err(_) => tries += 1,
        }
        assert!(tries < 10, "a lost copy stays lost");
    };
    assert_eq!(counted, head.0);
}

#[sqlx::test(migrations = "../migrations")]
async fn too_large_poisoned_and_unknown_ones_are_refused_with_the_reason(pool: PgPool) {
    let tally = Tally::create(&pool).await;
    let head = append_sessions(&journal(&pool), 30).await;
    let small = PastConfig { bytes: 1, ..PastConfig::default() };
    let small = Past::new(&pool, vec![tally.clone()], small);
    let refused = small.at(WORKSPACE, "tally", Position(20), PATIENCE).await;
    assert!(matches!(refused, Err(PastError::TooLarge { most: 1, .. })), "{refused:?}");
    // It is not made once more to be refused once more; nobody has to wait for that.
    let again = small.at(WORKSPACE, "tally", head, Duration::ZERO).await;
    assert!(matches!(again, Err(PastError::TooLarge { upto, .. }) if upto == head), "{again:?}");
    let earlier = small.at(WORKSPACE, "tally", Position(10), Duration::ZERO).await;
    assert!(matches!(earlier, Err(PastError::Building { .. })), "an earlier one may be smaller: {earlier:?}");

    let past = Past::new(&pool, vec![tally.clone()], PastConfig::default());
    assert!(matches!(past.at(WORKSPACE, "nothing", head, PATIENCE).await, Err(PastError::Unknown { .. })));
    tally.poison([7]);
    assert!(matches!(past.at(WORKSPACE, "tally", head, PATIENCE).await, Err(PastError::Failed { .. })));
    assert!(past.at(WORKSPACE, "tally", Position(6), PATIENCE).await.is_ok(), "what lies before is there");
    sqlx::query("INSERT INTO projection_decisions (name, position, decision, reason) VALUES ('tally', 7, 'skip', 'bad')")
        .execute(&pool)
        .await
        .unwrap();
    let copy = past.at(WORKSPACE, "tally", head, PATIENCE).await.unwrap();
    let counted: i64 = sqlx::query_scalar("SELECT count(*) FROM tally").fetch_one(&copy).await.unwrap();
    assert_eq!(counted, head.0 - 1, "what an operator left out is left out");
}

#[sqlx::test(migrations = "../migrations")]
async fn one_that_is_being_made_says_how_far_it_is_and_too_many_are_refused(pool: PgPool) {
    let head = append_sessions(&journal(&pool), 20).await;
    let config = PastConfig { builds: 1, waiting: 1, ..PastConfig::default() };
    let bots: Arc<dyn Projection> = Arc::new(BotsProjection);
    let past = Past::new(&pool, vec![bots], config);
    let at_once = |position: i64| past.at(WORKSPACE, "bots", Position(position), Duration::ZERO);
    // Nothing runs between these: the builders wait for this task to wait.
    let asked = futures::future::join_all([at_once(1), at_once(2), at_once(3)]).await;
    assert!(matches!(asked[0], Err(PastError::Building { upto: Position(1), .. })), "{asked:?}");
    assert!(matches!(asked[1], Err(PastError::Building { upto: Position(2), .. })), "{asked:?}");
    assert!(matches!(asked[2], Err(PastError::Busy)), "{asked:?}");
    assert!(past.at(WORKSPACE, "bots", Position(1), PATIENCE).await.is_ok(), "it went on being made");
    assert!(past.at(WORKSPACE, "bots", head, PATIENCE).await.is_ok());
}

#[sqlx::test(migrations = "../migrations")]
async fn one_that_nobody_asks_for_ends_by_itself_and_so_does_an_old_one(pool: PgPool) {
    let head = append_sessions(&journal(&pool), 20).await;
    let bots: Arc<dyn Projection> = Arc::new(BotsProjection);
    let idle = PastConfig { idle: Duration::from_millis(300), ..PastConfig::default() };
    let past = Past::new(&pool, vec![Arc::clone(&bots)], idle);
    drop(past.at(WORKSPACE, "bots", head, PATIENCE).await.unwrap());
    until("it goes without another that takes its place", async || connections(&pool).await == 0).await;

    let old = PastConfig { age: Duration::from_millis(300), ..PastConfig::default() };
    let past = Past::new(&pool, vec![bots], old);
    let reader = past.at(WORKSPACE, "bots", head, PATIENCE).await.unwrap();
    let asked = async || {
        // It is asked for all the time.
        let copy = past.at(WORKSPACE, "bots", head, PATIENCE).await.unwrap();
        copy.connect_options().get_application_name() == Some("botledger-past")
            && connections(&pool).await == 2
    };
    until("another one is made while the old one is read", asked).await;
    sqlx::query("SELECT count(*) FROM bots").execute(&reader).await.expect("who reads goes on");
}

#[sqlx::test(migrations = "../migrations")]
async fn one_that_nobody_waits_for_any_more_is_given_up(pool: PgPool) {
    append_sessions(&journal(&pool), 20).await;
    let bots: Arc<dyn Projection> = Arc::new(BotsProjection);
    let config = PastConfig { builds: 1, waiting: 1, wanted: Duration::ZERO, ..PastConfig::default() };
    let past = Past::new(&pool, vec![bots], config);
    let at_once = |position: i64| past.at(WORKSPACE, "bots", Position(position), Duration::ZERO);
    // Both are asked for and left alone before a builder runs.
    let asked = futures::future::join_all([at_once(1), at_once(2)]).await;
    assert!(asked.iter().all(|one| matches!(one, Err(PastError::Building { .. }))), "{asked:?}");
    until("there is place again", async || !matches!(at_once(3).await, Err(PastError::Busy))).await;
    assert!(past.at(WORKSPACE, "bots", Position(4), PATIENCE).await.is_ok(), "who waits gets one");
}

#[sqlx::test(migrations = "../migrations")]
async fn one_workspace_gets_its_share_of_what_is_made_and_no_more(pool: PgPool) {
    append_sessions(&journal(&pool), 20).await;
    let bots: Arc<dyn Projection> = Arc::new(BotsProjection);
    let config = PastConfig { builds: 1, waiting: 3, share: 2, ..PastConfig::default() };
    let past = Past::new(&pool, vec![bots], config);
    let ask = |workspace: u128, position: i64| {
        past.at(WorkspaceId(Uuid::from_u128(workspace)), "bots", Position(position), Duration::ZERO)
    };
    let asked = futures::future::join_all([ask(1, 1), ask(1, 2), ask(1, 3), ask(2, 4), ask(1, 4)]).await;
    let busy: Vec<bool> = asked.iter().map(|one| matches!(one, Err(PastError::Busy))).collect();
    assert_eq!(
        busy,
        [false, false, true, false, false],
        "what others have asked for is no new one: {asked:?}"
    );
}
