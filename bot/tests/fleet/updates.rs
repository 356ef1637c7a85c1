//! Whatever Telegram sends is in the ledger, and nothing of it makes the bot fall over.

use botledger_sim::{LogEntry, Person};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::world::{Gateway, Routes, World, until};

#[sqlx::test(migrations = "../migrations")]
async fn every_real_update_is_kept_and_none_is_lost(pool: PgPool) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/telegram/updates-nutgram.jsonl");
    let Ok(lines) = std::fs::read_to_string(path) else {
        println!("skipped: {path} is not there");
        return;
    };
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "museum_bot").await;
    world.polled(&bot).await;
    let mut sent = 0;
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        world.sim.inject("museum_bot", line["update"].clone()).unwrap();
        sent += 1;
    }
    assert!(sent > 100, "{sent}");
    until("all are in the ledger", async || {
        let kept = world.events("message_received").await
            + world.events("update_recorded").await
            + world.events("update_unreadable").await;
        (kept == sent).then_some(())
    })
    .await;
    assert_eq!(world.events("update_unreadable").await, 0);
    let arrived =
        world.sim.log(0).iter().filter(|entry| entry.what == "update" && entry.outcome == "ok").count();
    assert_eq!(i64::try_from(arrived).unwrap(), sent, "the bot had asked for every kind");
    // The bot is as alive as before.
    let answer = world.ask(&bot, &Person::number(2), "still there?").await;
    assert!(answer.contains("still there?"), "{answer}");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn what_cannot_be_read_is_kept_as_it_came(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "rubbish_bot").await;
    world.polled(&bot).await;
    for raw in [
        json!({"update_id": 1_900_000_001, "message": {"text": 5}}),
        json!({"update_id": 1_900_000_002}),
        json!({"update_id": 1_900_000_003, "message_reaction": {"chat": {"id": 1, "type": "private"}, "date": 1_700_000_000}}),
        json!({"no": "id"}),
        json!([1, 2]),
        json!("a text"),
    ] {
        world.sim.inject_raw("rubbish_bot", raw).unwrap();
    }
    until("the unreadable are kept", async || (world.events("update_unreadable").await == 5).then_some(()))
        .await;
    until("the other is kept", async || (world.events("update_recorded").await == 1).then_some(())).await;
    world.say(&bot, &Person::number(1), "hello");
    world.answers(&bot, Person::number(1).id, 1).await;
    // Those without an id come with every poll, and are stored once each all the same.
    assert_eq!(world.events("update_unreadable").await, 5);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn nothing_is_confirmed_to_telegram_while_the_database_is_away(pool: PgPool) {
    let world = World::new(pool).await;
    let (gateway, database) = Gateway::to_database(&world).await;
    let instance = world.instance_by(&Routes { database, ..world.routes() });
    let bot = world.bot(&instance, "careful_bot").await;
    world.polled(&bot).await;
    gateway.close();
    let person = Person::number(1);
    world.say(&bot, &person, "into the dark");
    world.say(&bot, &person, "and another");
    // Kept by Telegram, and fetched again, as long as nobody can store it.
    let fetched = |entry: &LogEntry| entry.what == "getUpdates" && entry.outcome == "ok";
    until("it was fetched again", async || {
        (world.sim.log(0).into_iter().filter(fetched).count() >= 3).then_some(())
    })
    .await;
    assert_eq!(world.sim.delivery("careful_bot").unwrap().pending, 2);
    gateway.open().await;
    let texts = world.answers(&bot, person.id, 2).await;
    assert!(texts[0].contains("into the dark") && texts[1].contains("and another"), "{texts:?}");
    assert_eq!(world.ended(2).await["delivered"], 2);
    assert_eq!(world.sent(&bot).len(), 2);
    instance.stop().await;
}
