//! The relay as processes of the binary: killed at random under load while the server cuts, with the
//! server's own books as the witness.

use std::collections::BTreeSet;
use std::time::Duration;

use botledger_domain::chat_session::{ChatSession, ChatSessionCommand};
use botledger_domain::{Actor, BotId, ConversationId, EventMetadata, Position, SubjectId};
use botledger_journal::{AppendSet, Journal, JournalConfig, Loaded};
use botledger_relay::event_id;
use botledger_sim::{EventStoreConfig, EventStoreSim, StoreFault};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::house::{House, Partners, Running, until};

const STREAM: &str = "botledger";
/// Events that are recorded while relays die.
const EVENTS: i64 = 4_000;
/// People who talk at the same time.
const WRITERS: i64 = 4;
const DEATHS: u32 = 8;

async fn talk(journal: Journal, events: i64) {
    let conversation = Uuid::now_v7();
    let mut chat = Loaded::<ChatSession>::empty(conversation.to_string());
    for _ in 0..events {
        let mut set =
            AppendSet::new(EventMetadata::new(&Actor::System("test"), Uuid::now_v7(), Uuid::nil(), "test"));
        let command = ChatSessionCommand::Open {
            conversation: ConversationId(conversation),
            bot: BotId(Uuid::nil()),
            subject: SubjectId(Uuid::nil()),
        };
        set.decide(&mut chat, command, chrono::DateTime::UNIX_EPOCH).unwrap();
        journal.append(set).await.unwrap();
        // Spread over the deaths: appends by themselves would be done before the first one.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn relay(house: &House, server: &EventStoreSim, name: &str) -> Running {
    house
        .role(
            "relay run",
            &[
                ("BOTLEDGER_INSTANCE__NAME", name),
                ("BOTLEDGER_RELAY__URL", &server.url()),
                ("BOTLEDGER_RELAY__BATCH_EVENTS", "30"),
                ("BOTLEDGER_RELAY__TIMEOUT_S", "1"),
                ("BOTLEDGER_RELAY__RETRY_MAX_S", "1"),
                ("BOTLEDGER_RELAY__LEASE_TTL_S", "1"),
                ("BOTLEDGER_KEYS__MASTER_KEY", ""),
                ("BOTLEDGER_KEYS__PSEUDONYM_KEY", ""),
                ("BOTLEDGER_AUTH__JWT_KEY", ""),
            ],
        )
        .await
}

/// By the server's books: every position once, in order, and what was recorded there.
async fn assert_witnessed(pool: &PgPool, server: &EventStoreSim) {
    let installation: Uuid = sqlx::query_scalar("SELECT id FROM installation").fetch_one(pool).await.unwrap();
    let recorded: Vec<(i64, String, Vec<u8>)> =
        sqlx::query_as("SELECT position, payload::text, leaf_hash FROM events ORDER BY position")
            .fetch_all(pool)
            .await
            .unwrap();
    let stored = server.stored(STREAM);
    assert_eq!(stored.len(), recorded.len());
    assert_eq!(stored.iter().map(|event| event.id).collect::<BTreeSet<_>>().len(), stored.len());
    for (event, (position, payload, leaf)) in stored.iter().zip(recorded) {
        assert_eq!(event.id, event_id(installation, Position(position)));
        assert_eq!(event.revision + 1, position.unsigned_abs());
        assert_eq!(event.data, payload.as_bytes());
        let beside: Value = serde_json::from_slice(&event.metadata).unwrap();
        assert_eq!(beside["leaf_hash"], hex::encode(leaf));
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn relays_that_die_and_sleep_while_the_server_cuts_leave_every_event_once(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let server = EventStoreSim::start(EventStoreConfig::default()).await.unwrap();
    let slow = StoreFault::Slow(Duration::from_millis(20));
    let faults =
        [StoreFault::CutAfter, StoreFault::Twice, StoreFault::CutBefore, slow, StoreFault::Unavailable];
    server.storm(5, &faults);
    let journal = Journal::open(house.pool.clone(), JournalConfig::default());
    let talking: Vec<_> =
        (0..WRITERS).map(|_| tokio::spawn(talk(journal.clone(), EVENTS / WRITERS))).collect();

    let mut working = relay(&house, &server, "relay-0").await;
    for death in 1..=DEATHS {
        // Somewhere in its work: no two deaths fall after the same number of appends.
        let seen = server.appends();
        until("it is at work", async || server.appends() > seen + u64::from(death * 7 % 5)).await;
        let next = relay(&house, &server, &format!("relay-{death}")).await;
        if death % 3 == 0 {
            // It sleeps in the middle of its work, wakes after another has taken over, and does not know.
            working.signal("STOP");
            let seen = server.appends();
            until("another works", async || server.appends() > seen + 3).await;
            working.signal("CONT");
            working.stop().await;
        } else {
            working.kill().await;
        }
        working = next;
    }
    for one in talking {
        one.await.unwrap();
    }
    server.storm(0, &[]);
    until("all arrives", async || server.count(STREAM) as i64 >= EVENTS).await;
    assert_witnessed(&house.pool, &server).await;
    until("it says so", async || {
        let status = house.run(&["relay", "status", "--json"]).await;
        let told: Value = serde_json::from_slice(&status.stdout).unwrap();
        status.status.success() && told[0]["lag_events"] == 0 && told[0]["state"] == "relaying"
    })
    .await;
    working.stop().await;
    let status = house.run(&["relay", "status"]).await;
    assert!(!status.status.success(), "nobody relays any more");
    assert!(String::from_utf8_lossy(&status.stdout).contains("no process"));
}

#[sqlx::test(migrations = "../migrations")]
async fn serve_relays_where_it_is_told_to_and_tells_of_it(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let nowhere = house.run(&["relay", "run"]).await;
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("relay.url is not set"));
    let server = EventStoreSim::start(EventStoreConfig::default()).await.unwrap();
    let url = server.url();
    let aside = [("BOTLEDGER_RELAY__URL", url.as_str()), ("BOTLEDGER_RELAY__IN_SERVE", "false")];
    let product = house.serve(&aside).await;
    house.told(&["link"]).await;
    let ready = async |product: &Running| -> Value {
        reqwest::get(format!("http://{}/readyz", product.admin)).await.unwrap().json().await.unwrap()
    };
    assert!(!ready(&product).await.to_string().contains("relay"));
    product.stop().await;
    assert_eq!(server.appends(), 0);

    let product = house.serve(&aside[..1]).await;
    until("what was there arrives", async || server.count(STREAM) > 0).await;
    house.told(&["link"]).await;
    until("what comes arrives", async || {
        let head: i64 =
            sqlx::query_scalar("SELECT max(position) FROM events").fetch_one(&house.pool).await.unwrap();
        server.count(STREAM) as i64 == head
    })
    .await;
    assert_witnessed(&house.pool, &server).await;
    until("it is told", async || ready(&product).await.to_string().contains("relaying since")).await;
    let metrics = async || {
        reqwest::get(format!("http://{}/metrics", product.admin)).await.unwrap().text().await.unwrap()
    };
    until("it is counted", async || {
        let text = metrics().await;
        text.contains("botledger_relay_held 1") && text.contains("botledger_relay_lag_events 0")
    })
    .await;
    product.stop().await;
}
