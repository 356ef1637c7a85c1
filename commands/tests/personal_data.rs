//! What is personal or secret leaves the process sealed only, and opens where it belongs only.
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod support;

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use botledger_commands::{
    BodyContent, Caller, Decision, IncomingKind, IncomingUpdate, KeyRing, NewBot, Origin, PersonFacts, Vault,
    VaultError,
};
use botledger_domain::{
    BodyId, BotId, ConversationId, KeyPurpose, Sealed, TurnId,
    bot::UpdateMode,
    operator::{Login, Role},
    turn::{Ask, ChatKind, Lane, ReplySource},
};
use botledger_journal::{NewBody, StoredBody};
use proptest::prelude::*;
use sqlx::PgPool;
use support::{TestClock, World, by_model, keys, noon, redis_client, roomy, system};
use uuid::Uuid;
use zeroize::Zeroizing;

fn vault(pool: &PgPool, ring: &KeyRing) -> Vault {
    Vault::new(pool.clone(), TestClock::at(noon()), ring.clone())
}

fn stored(body: NewBody) -> StoredBody {
    StoredBody {
        body_id: body.body_id,
        owner: body.owner,
        purpose: body.purpose,
        key_version: body.key_version,
        nonce: body.nonce,
        ciphertext: body.ciphertext,
        turn_id: body.turn_id,
        position: botledger_domain::Position(1),
        place: body.place,
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn what_is_sealed_opens_to_the_same_bytes(pool: PgPool) {
    let (vault, other) = {
        let ring = keys();
        (vault(&pool, &ring), vault(&pool, &ring))
    };
    let purposes = [KeyPurpose::Profile, KeyPurpose::Messages, KeyPurpose::Credentials];
    let cases = (prop::collection::vec(any::<u8>(), 0..300), 0u128..4, 0usize..3);
    let mut runner = proptest::test_runner::TestRunner::default();
    for _ in 0..60 {
        let tree = cases.new_tree(&mut runner).unwrap();
        let (plaintext, owner, purpose) = proptest::strategy::ValueTree::current(&tree);
        let sealed = vault.seal(Uuid::from_u128(owner), purposes[purpose], &plaintext).await.unwrap();
        assert_eq!(other.open(&sealed).await.unwrap().as_slice(), plaintext);
        let again = vault.seal(Uuid::from_u128(owner), purposes[purpose], &plaintext).await.unwrap();
        assert_ne!(sealed.ciphertext, again.ciphertext, "equal texts do not show as equal");
    }
    let keys: i64 = sqlx::query_scalar("SELECT count(*) FROM keys.data_keys").fetch_one(&pool).await.unwrap();
    assert!(keys <= 12, "one key an owner and purpose");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_ciphertext_opens_only_where_it_was_sealed(pool: PgPool) {
    let vault = vault(&pool, &keys());
    let [anna, boris] = [1, 2].map(Uuid::from_u128);
    for owner in [anna, boris] {
        for purpose in [KeyPurpose::Profile, KeyPurpose::Credentials, KeyPurpose::Messages] {
            vault.seal(owner, purpose, b"to have the keys").await.unwrap();
        }
    }
    // Even under one and the same key: the place is part of it.
    sqlx::query("INSERT INTO keys.data_keys SELECT owner, purpose, 2, wrapped, master_version, created_at FROM keys.data_keys WHERE owner = $1 AND purpose = 'profile'")
        .bind(anna)
        .execute(&pool)
        .await
        .unwrap();
    let sealed = vault.seal(anna, KeyPurpose::Profile, b"Anna").await.unwrap();
    let mut flipped = hex::decode(&sealed.ciphertext).unwrap();
    flipped[0] ^= 1;
    for moved in [
        Sealed { owner: boris, ..sealed.clone() },
        Sealed { purpose: KeyPurpose::Credentials, ..sealed.clone() },
        Sealed { key_version: 2, ..sealed.clone() },
        Sealed { ciphertext: hex::encode(flipped), ..sealed.clone() },
        Sealed { nonce: "00".repeat(24), ..sealed.clone() },
        Sealed { nonce: "00".repeat(23), ..sealed.clone() },
        Sealed { ciphertext: "no hex".to_owned(), ..sealed.clone() },
        Sealed { ciphertext: String::new(), ..sealed.clone() },
    ] {
        let opened = vault.open(&moved).await;
        assert!(matches!(opened, Err(VaultError::Tampered)), "{moved:?}: {opened:?}");
    }
    assert_eq!(vault.open(&sealed).await.unwrap().as_slice(), b"Anna");

    let content = BodyContent::Reply { text: "hello".to_owned() };
    let turn = TurnId(Uuid::now_v7());
    let (row, reference) = vault.seal_body(BodyId(Uuid::now_v7()), anna, turn, &content, None).await.unwrap();
    let body = stored(row);
    assert_eq!(reference.bytes as usize, serde_json::to_vec(&content).unwrap().len());
    assert_eq!(vault.open_body(&body).await.unwrap(), content);
    for moved in [
        StoredBody { body_id: BodyId(Uuid::now_v7()), ..body.clone() },
        StoredBody { owner: boris, ..body.clone() },
        StoredBody { purpose: KeyPurpose::Profile, ..body.clone() },
    ] {
        let opened = vault.open_body(&moved).await;
        assert!(matches!(opened, Err(VaultError::Tampered)), "{opened:?}");
    }
    // A body is no small value, though owner, purpose and key are the same.
    let as_value = Sealed {
        owner: anna,
        purpose: body.purpose,
        key_version: body.key_version,
        nonce: hex::encode(body.nonce),
        ciphertext: hex::encode(&body.ciphertext),
    };
    assert!(matches!(vault.open(&as_value).await, Err(VaultError::Tampered)));
}

#[sqlx::test(migrations = "../migrations")]
async fn data_keys_are_wrapped_anew_and_the_old_master_key_may_go(pool: PgPool) {
    let mut ring = keys();
    let first = vault(&pool, &ring);
    let mut sealed = Vec::new();
    for owner in 1..=600 {
        let owner = Uuid::from_u128(owner);
        sealed.push(first.seal(owner, KeyPurpose::Profile, owner.as_bytes()).await.unwrap());
    }
    ring.master.insert(2, Zeroizing::new(rand::random()));
    assert_eq!(first.rewrap().await.unwrap(), 0, "nothing to do under one key");
    assert_eq!(vault(&pool, &ring).rewrap().await.unwrap(), 600);
    assert_eq!(vault(&pool, &ring).rewrap().await.unwrap(), 0);
    ring.master.remove(&1);
    let later = vault(&pool, &ring);
    for value in &sealed {
        assert_eq!(later.open(value).await.unwrap().as_slice(), value.owner.as_bytes());
    }
    let old = later.seal(Uuid::from_u128(1), KeyPurpose::Profile, b"more").await.unwrap();
    assert_eq!(old.key_version, 1, "the data key is the same");
    let forgetful = vault(&pool, &KeyRing { master: [(3, Zeroizing::new(rand::random()))].into(), ..ring });
    let stuck = forgetful.rewrap().await;
    assert!(matches!(stuck, Err(VaultError::MissingMasterKey { version: 2 })), "{stuck:?}");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_missing_key_is_an_erasure_and_a_missing_master_key_is_named(pool: PgPool) {
    let mut ring = keys();
    let owner = Uuid::from_u128(1);
    let old = vault(&pool, &ring).seal(owner, KeyPurpose::Profile, b"old").await.unwrap();
    ring.master.insert(7, Zeroizing::new(rand::random()));
    let rotated = vault(&pool, &ring);
    assert_eq!(rotated.open(&old).await.unwrap().as_slice(), b"old", "older master keys still open");
    let new = rotated.seal(Uuid::from_u128(2), KeyPurpose::Profile, b"new").await.unwrap();
    let version: i32 = sqlx::query_scalar("SELECT master_version FROM keys.data_keys WHERE owner = $1")
        .bind(new.owner)
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(version, 7, "the highest wraps new keys");
    ring.master.remove(&1);
    let forgetful = vault(&pool, &ring);
    assert!(matches!(forgetful.open(&old).await, Err(VaultError::MissingMasterKey { version: 1 })));
    let sealed = forgetful.seal(owner, KeyPurpose::Profile, b"more").await;
    assert!(matches!(sealed, Err(VaultError::MissingMasterKey { version: 1 })), "{sealed:?}");
    let wrong = KeyRing { master: [(1, Zeroizing::new(rand::random()))].into(), ..ring.clone() };
    assert!(matches!(vault(&pool, &wrong).open(&old).await, Err(VaultError::Tampered)));
    sqlx::query("DELETE FROM keys.data_keys WHERE owner = $1").bind(new.owner).execute(&pool).await.unwrap();
    assert!(matches!(vault(&pool, &ring).open(&new).await, Err(VaultError::Shredded)));
}

#[sqlx::test(migrations = "../migrations")]
async fn two_processes_that_make_a_key_at_once_use_one(pool: PgPool) {
    let ring = keys();
    for owner in 1..=5 {
        let vaults: Vec<_> = (0..4).map(|_| vault(&pool, &ring)).collect();
        let seals =
            vaults.iter().map(|vault| vault.seal(Uuid::from_u128(owner), KeyPurpose::Profile, b"same"));
        for sealed in futures::future::join_all(seals).await {
            assert_eq!(vaults[0].open(&sealed.unwrap()).await.unwrap().as_slice(), b"same");
        }
    }
}

/// Everything that was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How a text may hide: as it is, in hex, or in base64 at any of the three places within a group.
fn disguises(canary: &str) -> Vec<String> {
    let mut all = vec![canary.to_lowercase(), hex::encode(canary), hex::encode(hex::encode(canary))];
    for shift in 0..3 {
        let shifted = [vec![b'x'; shift], canary.as_bytes().to_vec()].concat();
        let encoded = STANDARD_NO_PAD.encode(shifted);
        // The letters that the neighbours take part in are left out.
        let inner = &encoded[(shift * 4).div_ceil(3)..encoded.len() - 1];
        all.push(inner.to_lowercase());
        all.push(inner.replace('+', "-").replace('/', "_").to_lowercase());
    }
    all
}

fn flatten(value: &redis::Value, text: &mut Vec<u8>) {
    match value {
        redis::Value::BulkString(bytes) => text.extend(bytes),
        redis::Value::SimpleString(line) => text.extend(line.as_bytes()),
        redis::Value::Array(values) | redis::Value::Set(values) => {
            values.iter().for_each(|v| flatten(v, text))
        }
        redis::Value::Map(pairs) => pairs.iter().for_each(|(k, v)| {
            flatten(k, text);
            flatten(v, text);
        }),
        other => text.extend(format!("{other:?}").as_bytes()),
    }
    text.push(b'\n');
}

async fn everything_in_redis() -> String {
    let mut redis = redis_client().get_multiplexed_async_connection().await.unwrap();
    let mut text = Vec::new();
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
    assert!(!keys.is_empty(), "the rate limits leave keys");
    for key in keys {
        text.extend(&key);
        text.push(b'\n');
        let kind: String = redis::cmd("TYPE").arg(&key).query_async(&mut redis).await.unwrap();
        let mut read = match kind.as_str() {
            "string" => redis::cmd("GET"),
            "hash" => redis::cmd("HGETALL"),
            "list" => redis::cmd("LRANGE"),
            "set" => redis::cmd("SMEMBERS"),
            "zset" => redis::cmd("ZRANGE"),
            "stream" => redis::cmd("XRANGE"),
            // Run out meanwhile.
            "none" => continue,
            other => panic!("no way to read a {other}"),
        };
        read.arg(&key);
        match kind.as_str() {
            "list" | "zset" => read.arg(0).arg(-1),
            "stream" => read.arg("-").arg("+"),
            _ => &mut read,
        };
        flatten(&read.query_async(&mut redis).await.unwrap(), &mut text);
    }
    String::from_utf8_lossy(&text).to_lowercase()
}

/// Every row of every table as text, bytes in hex.
async fn everything_in_the_database(pool: &PgPool) -> Vec<(String, String)> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables
         WHERE table_schema NOT IN ('pg_catalog', 'information_schema') AND table_type = 'BASE TABLE'",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert!(tables.len() > 15, "{tables:?}");
    let mut rows = Vec::new();
    for table in tables {
        let texts: Vec<String> =
            sqlx::query_scalar(&format!("SELECT t::text FROM {table} t")).fetch_all(pool).await.unwrap();
        rows.extend(texts.into_iter().map(|text| (table.clone(), text.to_lowercase())));
    }
    rows
}

#[sqlx::test(migrations = "../migrations")]
async fn no_plaintext_is_left_in_the_database_in_redis_or_in_the_log(pool: PgPool) {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let world = World::new(pool.clone()).await;
    let (app, workspace) = (&world.app, world.workspace);
    // Long and odd enough to be met by chance nowhere.
    let (user, chat) = (987_654_321_012_345_i64, -100_987_654_321_678_i64);
    let canary = |what: &str| format!("canary-{what}-Zq7Kx");
    let token = "4242:canary-token-Zq7Kx";
    let new = NewBot {
        workspace,
        token: Zeroizing::new(token.to_owned()),
        mode: UpdateMode::Polling,
        settings: roomy(),
    };
    let bot: BotId = app.bots.register(&system(), new).await.unwrap().0;
    let rotated = Zeroizing::new("4242:canary-rotated-Zq7Kx".to_owned());
    app.bots.rotate_token(&system(), bot, rotated).await.unwrap();
    app.bots.start(&system(), bot).await.unwrap();
    let fence = world.hold(app, bot).await;
    let facts = PersonFacts {
        telegram_id: user,
        first_name: canary("first"),
        last_name: Some(canary("last")),
        username: Some(canary("username")),
        language_tag: Some("en".to_owned()),
    };
    let message = |update_id: i64, text: String| IncomingUpdate {
        update_id: Some(update_id),
        date: noon(),
        raw: format!("{{\"text\": \"{text}\", \"raw\": \"{}\"}}", canary("raw")),
        kind: IncomingKind::Message {
            user: facts.clone(),
            chat_id: chat,
            thread_id: None,
            chat_kind: ChatKind::Supergroup,
            ask: Ask::Text,
            lane: Lane::Normal,
            text: Some(text),
        },
    };
    let odd = |update_id, kind| IncomingUpdate {
        update_id: Some(update_id),
        date: noon(),
        raw: canary("odd"),
        kind,
    };
    let batch = vec![
        message(1, canary("prompt")),
        message(2, canary("second")),
        odd(3, IncomingKind::Other { update_kind: "poll".to_owned(), user: Some(facts.clone()) }),
        odd(4, IncomingKind::Unreadable { problem: "no content".to_owned() }),
    ];
    let received = app.turns.receive_batch(&system(), bot, fence, batch.clone()).await.unwrap();
    app.turns.receive_batch(&system(), bot, fence, batch).await.unwrap();
    for (n, one) in received[..2].iter().enumerate() {
        let decision = app.gate.decide(&system(), one.turn, fence).await.unwrap();
        assert!(matches!(decision, Decision::Admitted(_)));
        app.turns.answer(&system(), one.turn, fence, by_model(4, 5), &canary("reply"), 1).await.unwrap();
        app.turns.start_delivery(&system(), one.turn, fence, 5).await.unwrap();
        match n {
            0 => app.turns.deliver(&system(), one.turn, fence, vec![5]).await.unwrap(),
            _ => app.turns.give_up(&system(), one.turn, fence, "blocked", 403, "Forbidden").await.unwrap(),
        };
    }
    let third =
        app.turns.receive_batch(&system(), bot, fence, vec![message(5, canary("command"))]).await.unwrap();
    let source = ReplySource::Platform;
    app.turns.answer(&system(), third[0].turn, fence, source, &canary("platform"), 1).await.unwrap();
    let conversation = ConversationId::of_chat(bot, app.core.vault.chat_pseudonym(bot, chat), None);
    let subject = world.subject(user);
    app.sessions.rename(&system(), conversation, subject, 1, &canary("title")).await.unwrap();
    assert_eq!(app.histories.search(conversation, &canary("prompt"), None, 5).await.unwrap().said.len(), 1);
    assert_eq!(app.subjects.profile(subject).await.unwrap().unwrap().first_name, canary("first"));

    let owner = Caller { ..world.operator(Role::Owner) };
    let login = Login::parse("anna").unwrap();
    let (_, _, link) = app.operators.invite(&owner, workspace, login, Role::Admin).await.unwrap();
    let password = canary("password");
    let session = app.operators.activate(&link.0, &password, Origin::default()).await.unwrap();
    let next = app.operators.refresh(&session.refresh_token.0, Origin::default()).await.unwrap();
    assert!(app.operators.login("anna", &canary("mistyped"), Origin::default()).await.is_err());
    assert!(app.operators.login(&canary("login"), &password, Origin::default()).await.is_err());
    let secret = app.bots.webhook_secret(bot).await.unwrap();
    app.core.journal.close().await;

    let canaries = ["canary-", "Zq7Kx", &link.0, &session.refresh_token.0, &next.refresh_token.0, &secret]
        .map(str::to_owned)
        .into_iter()
        .chain([user.to_string(), chat.to_string()[1..].to_owned()])
        .collect::<Vec<_>>();
    let rows = everything_in_the_database(&pool).await;
    let redis = tokio::time::timeout(Duration::from_secs(30), everything_in_redis()).await.unwrap();
    let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).to_lowercase();
    assert!(logged.contains("registered bot"), "the log was captured");
    for canary in &canaries {
        for disguise in disguises(canary) {
            for (table, row) in &rows {
                assert!(!row.contains(&disguise), "{canary} stands in {table}: {row}");
            }
            assert!(!redis.contains(&disguise), "{canary} stands in Redis");
            if let Some(at) = logged.find(&disguise) {
                let line = logged[..at].rfind('\n').map_or(0, |start| start + 1);
                panic!("{canary} stands in the log: {}", logged[line..].lines().next().unwrap_or_default());
            }
        }
    }
    // The search itself finds what is there.
    for (hidden, canary) in
        [("6875736b792d63616e617279", "husky-canary"), ("xx aHVza3ktY2FuYXJ5", "husky-canary")]
    {
        let hidden = hidden.to_lowercase();
        assert!(disguises(canary).iter().any(|disguise| hidden.contains(disguise)), "{hidden}");
    }
}
