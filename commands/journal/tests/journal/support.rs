//! Sets of the simplest events there are (sessions opened), and a look at the whole ledger.

use std::{collections::BTreeMap, time::Duration};

use botledger_domain::{
    Actor, BodyId, BotId, ConversationId, EventMetadata, KeyPurpose, SubjectId, TurnId,
    chat_session::{ChatSession, ChatSessionCommand},
    leaf::Leaf,
};
use botledger_journal::{AppendSet, Journal, JournalConfig, Loaded, NewBody};
use chrono::{DateTime, TimeZone, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

pub(crate) fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 24, 12, 0, 0).unwrap()
}

pub(crate) fn metadata() -> EventMetadata {
    EventMetadata::new(&Actor::System("test"), Uuid::now_v7(), Uuid::nil(), "test")
}

pub(crate) fn keyed(key: &str) -> EventMetadata {
    metadata().with_idempotency_key(key)
}

pub(crate) fn journal(pool: &PgPool) -> Journal {
    Journal::open(pool.clone(), JournalConfig::default())
}

pub(crate) fn stream() -> Uuid {
    Uuid::now_v7()
}

pub(crate) fn open_session(stream: Uuid) -> ChatSessionCommand {
    ChatSessionCommand::Open {
        conversation: ConversationId(stream),
        bot: BotId(Uuid::nil()),
        subject: SubjectId(Uuid::nil()),
    }
}

/// Adds events to a set, decided on the stream as it is at a version.
pub(crate) fn push(set: &mut AppendSet, stream: Uuid, version: i64, events: usize) {
    let mut chat = Loaded::<ChatSession>::empty(stream.to_string());
    let mut past = AppendSet::new(metadata());
    while chat.version < version {
        past.decide(&mut chat, open_session(stream), noon()).unwrap();
    }
    for _ in 0..events {
        set.decide(&mut chat, open_session(stream), noon()).unwrap();
    }
}

pub(crate) fn set_with(metadata: EventMetadata, stream: Uuid, version: i64, events: usize) -> AppendSet {
    let mut set = AppendSet::new(metadata);
    push(&mut set, stream, version, events);
    set
}

pub(crate) fn set_on(stream: Uuid, version: i64, events: usize) -> AppendSet {
    set_with(metadata(), stream, version, events)
}

pub(crate) fn new_body() -> NewBody {
    NewBody {
        body_id: BodyId(Uuid::now_v7()),
        owner: Uuid::now_v7(),
        purpose: KeyPurpose::Messages,
        key_version: 1,
        nonce: [7; 24],
        ciphertext: vec![1, 2, 3],
        turn_id: TurnId(Uuid::now_v7()),
        place: None,
    }
}

/// Appends one event on an empty stream through the SQL function, in the caller's transaction; the
/// stream's id is its idempotency key.
pub(crate) async fn append_in(connection: &mut PgConnection, stream: Uuid) -> Result<i64, sqlx::Error> {
    let id = stream.to_string();
    sqlx::query_scalar(
        "SELECT first_position FROM journal_append(
            ARRAY[1], ARRAY['chat_session'], ARRAY[$1], ARRAY[1::bigint], ARRAY['session_opened'], ARRAY['1.0'],
            ARRAY['{\"by\":\"hand\"}'], ARRAY['{}'], ARRAY[1], ARRAY['chat_session'], ARRAY[$1], ARRAY[0::bigint],
            ARRAY[$1], ARRAY[NULL]::uuid[], ARRAY[NULL]::bigint[], '{}', '{}', '{}', '{}', '{}', '{}',
            '{}', '{}', '{}', '{}', '{}', '{}')",
    )
    .bind(id)
    .fetch_one(connection)
    .await
}

/// Waits until something holds; panics after long enough to call it never.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap_or_else(|_| panic!("never happened: {what}"));
}

/// Connections that wait for the ledger's lock.
pub(crate) async fn waiting_for_the_lock(pool: &PgPool) -> i64 {
    sqlx::query_scalar(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}

#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Stored {
    pub(crate) position: i64,
    pub(crate) recorded_at: DateTime<Utc>,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    pub(crate) sequence: i64,
    pub(crate) event_type: String,
    pub(crate) event_version: String,
    pub(crate) payload: String,
    pub(crate) metadata: String,
    pub(crate) leaf_hash: Vec<u8>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) set_size: Option<i32>,
}

impl Stored {
    pub(crate) fn leaf(&self) -> Leaf<'_> {
        Leaf {
            position: self.position,
            recorded_at_micros: self.recorded_at.timestamp_micros(),
            aggregate_type: &self.aggregate_type,
            aggregate_id: &self.aggregate_id,
            sequence: self.sequence,
            event_type: &self.event_type,
            event_version: &self.event_version,
            payload: &self.payload,
            metadata: &self.metadata,
        }
    }
}

pub(crate) async fn ledger(pool: &PgPool) -> Vec<Stored> {
    sqlx::query_as(
        "SELECT position, recorded_at, aggregate_type, aggregate_id, sequence, event_type, event_version,
            payload::text AS payload, metadata::text AS metadata, leaf_hash, idempotency_key, set_size
         FROM events ORDER BY position",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

/// Events of one stream.
pub(crate) async fn length(pool: &PgPool, stream: Uuid) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM events WHERE aggregate_id = $1")
        .bind(stream.to_string())
        .fetch_one(pool)
        .await
        .unwrap()
}

/// What must hold of every ledger: dense positions, dense streams in the order of positions, sets
/// in one piece, leaf hashes over what is stored.
pub(crate) async fn assert_whole(pool: &PgPool) -> Vec<Stored> {
    let events = ledger(pool).await;
    let mut streams: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    let mut left_of_set = 0;
    let mut set_metadata = "";
    for (event, expected) in events.iter().zip(1..) {
        assert_eq!(event.position, expected, "positions are dense");
        let sequence = streams.entry((&event.aggregate_type, &event.aggregate_id)).or_default();
        *sequence += 1;
        assert_eq!(event.sequence, *sequence, "stream {} at {expected}", event.aggregate_id);
        if let Some(size) = event.set_size {
            assert_eq!(left_of_set, 0, "a set begins inside another at {expected}");
            (left_of_set, set_metadata) = (size, &event.metadata);
        }
        assert_eq!(event.metadata, set_metadata, "a set is one piece at {expected}");
        left_of_set -= 1;
        assert!(event.idempotency_key.is_none() || event.set_size.is_some(), "keys stand on first events");
        assert_eq!(event.leaf_hash, event.leaf().hash(), "leaf at {expected}");
    }
    assert_eq!(left_of_set, 0, "the last set is whole");
    events
}

/// What a crash of the server does to commits that were not flushed.
pub(crate) async fn take_back(pool: &PgPool, above: i64) {
    let mut tx = pool.begin().await.unwrap();
    sqlx::query("SET LOCAL session_replication_role = replica").execute(&mut *tx).await.unwrap();
    sqlx::query("DELETE FROM events WHERE position > $1").bind(above).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
}
