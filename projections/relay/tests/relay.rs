//! The relay against a server that speaks the true protocol, fails on purpose and keeps its own books.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use botledger_domain::{
    Actor, BotId, ConversationId, EventMetadata, InstanceId, Position, SubjectId,
    chat_session::{ChatSession, ChatSessionCommand},
    leaf::Leaf,
};
use botledger_journal::{AppendSet, Journal, JournalConfig, Loaded};
use botledger_projections::{LeaseConfig, Tail};
use botledger_relay::{Relay, RelayConfig, RelayStatus, TargetConfig, event_id, statuses};
use botledger_sim::{EventStoreConfig, EventStoreSim, StoreFault, StoredEvent};
use chrono::{DateTime, TimeZone, Utc};
use serde_json::Value;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const STREAM: &str = "ledger";

/// Waits until something holds; panics after long enough to call it never.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait)
        .await
        .unwrap_or_else(|_| panic!("never happened: {what}"));
}

fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 25, 12, 0, 0).unwrap()
}

/// Somebody who talks: every `say` is one event in a set of its own.
struct Desk {
    journal: Journal,
    chat: Loaded<ChatSession>,
    conversation: Uuid,
}

impl Desk {
    fn new(pool: &PgPool) -> Self {
        let conversation = Uuid::now_v7();
        Self {
            journal: Journal::open(pool.clone(), JournalConfig::default()),
            chat: Loaded::empty(conversation.to_string()),
            conversation,
        }
    }

    async fn say(&mut self, events: usize) -> Position {
        let mut last = Position(0);
        for _ in 0..events {
            let actor = Actor::System("test");
            let mut set = AppendSet::new(EventMetadata::new(&actor, Uuid::now_v7(), Uuid::nil(), "test"));
            let command = ChatSessionCommand::Open {
                conversation: ConversationId(self.conversation),
                bot: BotId(Uuid::nil()),
                subject: SubjectId(Uuid::nil()),
            };
            set.decide(&mut self.chat, command, noon()).unwrap();
            last = self.journal.append(set).await.unwrap().position;
        }
        last
    }
}

fn config(server: &EventStoreSim) -> RelayConfig {
    RelayConfig {
        target: TargetConfig {
            url: server.url(),
            user: String::new(),
            password: String::new(),
            ca_file: None,
            timeout: Duration::from_secs(2),
        },
        stream: STREAM.to_owned(),
        batch_events: 20,
        batch_bytes: 64 * 1024,
        retry_max: Duration::from_millis(300),
        lease: LeaseConfig { ttl: Duration::from_secs(1), beat: Duration::from_millis(100) },
    }
}

/// One process that relays.
struct Process {
    cancel: CancellationToken,
    relay: Relay,
}

impl Process {
    async fn start(pool: &PgPool, config: RelayConfig) -> Self {
        let cancel = CancellationToken::new();
        let tail = Tail::start(pool.clone(), cancel.clone()).await.unwrap();
        let relay = Relay::start(pool, &tail, InstanceId(Uuid::now_v7()), config, &cancel).unwrap();
        Self { cancel, relay }
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.relay.join().await;
    }
}

async fn server(config: EventStoreConfig) -> EventStoreSim {
    EventStoreSim::start(config).await.unwrap()
}

async fn status(pool: &PgPool) -> Option<RelayStatus> {
    statuses(pool).await.unwrap().into_iter().find(|status| status.stream == STREAM)
}

/// Waits until the relay refuses, and gives what it says.
async fn refusal(pool: &PgPool) -> RelayStatus {
    let mut refused = None;
    until("it refuses", async || {
        refused = status(pool).await.filter(|status| status.state == "refused");
        refused.is_some()
    })
    .await;
    refused.unwrap()
}

async fn installation(pool: &PgPool) -> Uuid {
    sqlx::query_scalar("SELECT id FROM installation").fetch_one(pool).await.unwrap()
}

/// The server's books against the ledger: every position once, in order, letter by letter.
async fn assert_is_the_ledger(pool: &PgPool, stored: &[StoredEvent]) {
    type Row = (i64, DateTime<Utc>, String, String, i64, String, String, String, String, Vec<u8>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT position, recorded_at, aggregate_type, aggregate_id, sequence, event_type, event_version,
                payload::text, metadata::text, leaf_hash FROM events ORDER BY position",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let installation = installation(pool).await;
    assert_eq!(stored.len(), rows.len());
    for (place, (event, row)) in (0_u64..).zip(stored.iter().zip(rows)) {
        assert_eq!(event.revision, place);
        assert_eq!(row.0, i64::try_from(place).unwrap() + 1);
        assert_eq!(event.id, event_id(installation, Position(row.0)));
        assert_eq!((event.event_type.as_str(), event.content_type.as_str()), (&*row.5, "application/json"));
        assert_eq!(std::str::from_utf8(&event.data).unwrap(), row.7);
        let beside: Value = serde_json::from_slice(&event.metadata).unwrap();
        let text = |key: &str| beside[key].as_str().unwrap();
        assert!(std::str::from_utf8(&event.metadata).unwrap().contains(&row.8), "metadata letter by letter");
        assert_eq!(beside["metadata"]["correlation_id"], beside["$correlationId"]);
        // Whoever has only the target can take the leaf hash again.
        let leaf = Leaf {
            position: beside["position"].as_i64().unwrap(),
            recorded_at_micros: text("recorded_at").parse::<DateTime<Utc>>().unwrap().timestamp_micros(),
            aggregate_type: text("aggregate_type"),
            aggregate_id: text("aggregate_id"),
            sequence: beside["sequence"].as_i64().unwrap(),
            event_type: &event.event_type,
            event_version: text("event_version"),
            payload: std::str::from_utf8(&event.data).unwrap(),
            metadata: &row.8,
        };
        assert_eq!(leaf.hash().as_slice(), row.9);
        assert_eq!(text("leaf_hash").len(), 64);
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn every_event_arrives_once_in_order_and_can_be_checked_there(pool: PgPool) {
    let server = server(EventStoreConfig::default()).await;
    let mut desk = Desk::new(&pool);
    desk.say(45).await;
    let process = Process::start(&pool, config(&server)).await;
    until("what was there arrives", async || server.count(STREAM) == 45).await;
    desk.say(30).await;
    until("what comes arrives", async || server.count(STREAM) == 75).await;
    until("the row says so", async || {
        status(&pool).await.is_some_and(|status| status.position == Position(75))
    })
    .await;
    let status = status(&pool).await.unwrap();
    assert_eq!((status.state.as_str(), status.lag_events, status.lag_s), ("relaying", 0, 0));
    assert!(status.holder.is_some() && !status.needs_somebody());
    assert_is_the_ledger(&pool, &server.stored(STREAM)).await;
    process.stop().await;
    assert!(statuses(&pool).await.unwrap()[0].holder.is_none(), "the lease was given back");
}

#[sqlx::test(migrations = "../../migrations")]
async fn answers_that_never_come_make_nothing_twice_and_lose_nothing(pool: PgPool) {
    let server = server(EventStoreConfig::default()).await;
    let slow = StoreFault::Slow(Duration::from_millis(50));
    let all = [StoreFault::CutAfter, StoreFault::CutBefore, StoreFault::Unavailable, slow, StoreFault::Twice];
    server.storm(2, &all);
    let mut desk = Desk::new(&pool);
    let process = Process::start(&pool, config(&server)).await;
    desk.say(300).await;
    until("all arrives", async || server.count(STREAM) == 300).await;
    until("it has recovered", async || {
        status(&pool)
            .await
            .is_some_and(|status| status.position == Position(300) && status.state == "relaying")
    })
    .await;
    assert_is_the_ledger(&pool, &server.stored(STREAM)).await;
    process.stop().await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn an_answer_later_than_anybody_waits_is_found_in_the_stream(pool: PgPool) {
    let server = server(EventStoreConfig::default()).await;
    // Beyond the client's own patience with a server that overlooks its deadline.
    server.fail_next([StoreFault::Slow(Duration::from_secs(6))]);
    let mut desk = Desk::new(&pool);
    desk.say(10).await;
    let mut impatient = config(&server);
    impatient.target.timeout = Duration::from_millis(100);
    let process = Process::start(&pool, impatient).await;
    until("all arrives", async || server.count(STREAM) == 10).await;
    desk.say(10).await;
    until("it goes on", async || server.count(STREAM) == 20).await;
    until("the late one has come as well", async || server.late() == 0).await;
    assert_is_the_ledger(&pool, &server.stored(STREAM)).await;
    process.stop().await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn where_to_go_on_is_read_off_the_stream_and_not_off_the_row(pool: PgPool) {
    let server = server(EventStoreConfig::default()).await;
    let mut desk = Desk::new(&pool);
    desk.say(30).await;
    let process = Process::start(&pool, config(&server)).await;
    until("all arrives", async || server.count(STREAM) == 30).await;
    process.stop().await;
    // As after a crash between the append and the row, and as after one that took back the row.
    for position in [0, 30, 7] {
        sqlx::query("UPDATE relay_progress SET position = $1").bind(position).execute(&pool).await.unwrap();
        let (there, appends) = (server.count(STREAM), server.appends());
        desk.say(5).await;
        let process = Process::start(&pool, config(&server)).await;
        until("the rest arrives", async || server.count(STREAM) == there + 5).await;
        process.stop().await;
        assert_eq!(server.appends(), appends + 1, "nothing is sent again");
    }
    assert_is_the_ledger(&pool, &server.stored(STREAM)).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn one_of_two_processes_relays_and_the_other_takes_over(pool: PgPool) {
    let server = server(EventStoreConfig::default()).await;
    let mut desk = Desk::new(&pool);
    let one = Process::start(&pool, config(&server)).await;
    let other = Process::start(&pool, config(&server)).await;
    desk.say(50).await;
    until("all arrives", async || server.count(STREAM) == 50).await;
    one.stop().await;
    desk.say(50).await;
    until("the other goes on", async || server.count(STREAM) == 100).await;
    other.stop().await;
    assert_is_the_ledger(&pool, &server.stored(STREAM)).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_stream_that_holds_something_else_is_refused_with_what_it_holds(pool: PgPool) {
    let server = server(EventStoreConfig::default()).await;
    let mut desk = Desk::new(&pool);
    desk.say(3).await;
    server.put(STREAM, "OrderPlaced", "{}", "{}");
    let process = Process::start(&pool, config(&server)).await;
    let refused = refusal(&pool).await;
    let reason = refused.reason.clone().unwrap();
    assert!(reason.contains("OrderPlaced") && reason.contains("not of a relay"), "{reason}");
    assert!(refused.needs_somebody());
    assert_eq!((server.count(STREAM), refused.lag_events), (1, 3));
    process.stop().await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn another_ledgers_stream_is_refused(pool: PgPool) {
    let server = server(EventStoreConfig::default()).await;
    let mut desk = Desk::new(&pool);
    desk.say(3).await;
    let process = Process::start(&pool, config(&server)).await;
    until("all arrives", async || server.count(STREAM) == 3).await;
    process.stop().await;
    sqlx::query("UPDATE installation SET id = gen_random_uuid()").execute(&pool).await.unwrap();
    desk.say(1).await;
    let process = Process::start(&pool, config(&server)).await;
    let reason = refusal(&pool).await.reason.unwrap();
    assert!(reason.contains(&installation(&pool).await.to_string()), "{reason}");
    assert_eq!(server.count(STREAM), 3);
    process.stop().await;
}

/// Lets a superuser change what nobody may.
async fn tamper(pool: &PgPool, statement: &str) {
    let mut tx = pool.begin().await.unwrap();
    sqlx::query("SET LOCAL session_replication_role = replica").execute(&mut *tx).await.unwrap();
    sqlx::query(statement).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_ledger_restored_from_an_older_backup_is_refused_before_and_after_it_goes_on(pool: PgPool) {
    let server = server(EventStoreConfig::default()).await;
    let mut desk = Desk::new(&pool);
    desk.say(10).await;
    let process = Process::start(&pool, config(&server)).await;
    until("all arrives", async || server.count(STREAM) == 10).await;
    process.stop().await;
    tamper(&pool, "DELETE FROM events WHERE position > 6").await;
    let process = Process::start(&pool, config(&server)).await;
    let reason = refusal(&pool).await.reason.unwrap();
    assert!(reason.contains("position 10") && reason.contains("older"), "{reason}");
    Desk::new(&pool).say(8).await;
    until("it sees another history", async || {
        let reason = refusal(&pool).await.reason.unwrap();
        reason.contains("another event than the ledger's at position 10")
    })
    .await;
    assert_eq!(server.count(STREAM), 10);
    process.stop().await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn an_event_that_somebody_changed_in_the_database_does_not_leave(pool: PgPool) {
    let server = server(EventStoreConfig::default()).await;
    let mut desk = Desk::new(&pool);
    desk.say(10).await;
    tamper(&pool, "UPDATE events SET payload = '{\"type\":\"forged\"}' WHERE position = 4").await;
    let mut one_by_one = config(&server);
    one_by_one.batch_events = 1;
    let process = Process::start(&pool, one_by_one).await;
    let refused = refusal(&pool).await;
    assert_eq!(refused.failed_position, Some(Position(4)));
    assert!(refused.reason.unwrap().contains("leaf hash"));
    assert_eq!((server.count(STREAM), refused.position), (3, Position(3)));
    process.stop().await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_deleted_stream_counts_on_and_a_tombstone_is_for_ever_and_both_are_refused(pool: PgPool) {
    let server = server(EventStoreConfig::default()).await;
    let mut desk = Desk::new(&pool);
    desk.say(5).await;
    let process = Process::start(&pool, config(&server)).await;
    until("all arrives", async || server.count(STREAM) == 5).await;
    server.delete(STREAM);
    process.stop().await;
    let process = Process::start(&pool, config(&server)).await;
    let reason = refusal(&pool).await.reason.unwrap();
    assert!(reason.contains("deleted"), "{reason}");
    server.tombstone(STREAM);
    until("it is told", async || refusal(&pool).await.reason.unwrap().contains("tombstoned")).await;
    process.stop().await;
    let mut elsewhere = config(&server);
    elsewhere.stream = "ledger-2".to_owned();
    let process = Process::start(&pool, elsewhere).await;
    until("another stream will do", async || server.count("ledger-2") == 5).await;
    process.stop().await;
    assert_is_the_ledger(&pool, &server.stored("ledger-2")).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn appends_stay_within_their_bounds_and_are_divided_where_the_server_takes_less(pool: PgPool) {
    let mut desk = Desk::new(&pool);
    desk.say(200).await;
    let roomy = server(EventStoreConfig::default()).await;
    let mut small = config(&roomy);
    (small.batch_events, small.batch_bytes) = (1_000, 20_000);
    let process = Process::start(&pool, small).await;
    until("all arrives", async || roomy.count(STREAM) == 200).await;
    process.stop().await;
    assert!((5_000..=20_000).contains(&roomy.largest_append()), "{}", roomy.largest_append());

    let narrow = server(EventStoreConfig { max_append_bytes: 6_000, ..EventStoreConfig::default() }).await;
    let mut elsewhere = config(&narrow);
    elsewhere.stream = "narrow".to_owned();
    let process = Process::start(&pool, elsewhere).await;
    until("all arrives in pieces", async || narrow.count("narrow") == 200).await;
    process.stop().await;
    assert_is_the_ledger(&pool, &narrow.stored("narrow")).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn one_event_that_the_server_will_never_take_is_named(pool: PgPool) {
    let mut desk = Desk::new(&pool);
    desk.say(4).await;
    let server = server(EventStoreConfig { max_append_bytes: 100, ..EventStoreConfig::default() }).await;
    let process = Process::start(&pool, config(&server)).await;
    let refused = refusal(&pool).await;
    assert_eq!(refused.failed_position, Some(Position(1)));
    assert!(refused.reason.unwrap().contains("Maximum Append Size of 100"));
    process.stop().await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn who_asks_must_be_let_in_and_is_sent_to_the_leader(pool: PgPool) {
    let mut desk = Desk::new(&pool);
    desk.say(4).await;
    // The crate takes a password out of a connection string without decoding it; ours does not go there.
    let user = Some(("relay".to_owned(), "p@ss wörd/%41".to_owned()));
    let leader = server(EventStoreConfig { user: user.clone(), ..EventStoreConfig::default() }).await;
    let follower = EventStoreConfig { user, leader: Some(leader.address()), ..EventStoreConfig::default() };
    let follower = server(follower).await;
    let mut wrong = config(&follower);
    (wrong.target.user, wrong.target.password) = ("relay".to_owned(), "guess".to_owned());
    let process = Process::start(&pool, wrong.clone()).await;
    let reason = refusal(&pool).await.reason.unwrap();
    assert!(reason.contains("user, password") && !reason.contains("guess"), "{reason}");
    process.stop().await;
    let mut right = wrong;
    right.target.password = "p@ss wörd/%41".to_owned();
    let process = Process::start(&pool, right).await;
    until("all arrives at the leader", async || leader.count(STREAM) == 4).await;
    process.stop().await;
    assert_eq!(follower.count(STREAM), 0);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_target_that_is_away_is_waited_for_and_lag_is_told(pool: PgPool) {
    let server = server(EventStoreConfig::default()).await;
    server.set_stopped(true);
    let mut desk = Desk::new(&pool);
    desk.say(8).await;
    let process = Process::start(&pool, config(&server)).await;
    until("it tries again", async || {
        status(&pool).await.is_some_and(|status| status.state == "retrying" && status.lag_events == 8)
    })
    .await;
    until("time passes", async || status(&pool).await.unwrap().lag_s >= 1).await;
    assert!(!status(&pool).await.unwrap().needs_somebody(), "time may heal it");
    server.set_stopped(false);
    until("all arrives", async || server.count(STREAM) == 8).await;
    process.stop().await;
}
