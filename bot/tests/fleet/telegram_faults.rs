//! Telegram's trouble: what may be repeated is repeated, what may not is recorded.

use std::time::Duration;

use botledger_domain::bot::{BotSettings, UpdateMode};
use botledger_sim::{Fault, FaultKind, Person};
use serde_json::json;
use sqlx::PgPool;
use zeroize::Zeroizing;

use crate::world::{Gateway, Routes, Setup, World, group, system, texts, until};

fn fault(method: &str, times: u32, fault: FaultKind) -> Fault {
    Fault { method: Some(method.to_owned()), bot: None, chat: None, skip: 0, times, fault }
}

fn status(code: u16, description: &str, retry_after: Option<u64>) -> FaultKind {
    FaultKind::Status { code, description: description.to_owned(), retry_after }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_revoked_token_stops_the_bot_with_a_reason_and_a_new_one_revives_it(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "revoked_bot").await;
    let other = world.bot(&instance, "other_bot").await;
    let person = Person::number(1);
    world.ask(&bot, &person, "hello").await;
    let token = world.sim.revoke_token("revoked_bot").unwrap();
    let reason = world.status(&bot, "faulted").await.unwrap();
    assert!(reason.starts_with("TOKEN_REVOKED: Telegram answered 401"), "{reason}");
    let detail: String =
        sqlx::query_scalar("SELECT payload->>'detail' FROM public.events WHERE event_type = 'bot_faulted'")
            .fetch_one(&world.pool)
            .await
            .unwrap();
    assert_eq!(detail, "Telegram answered 401 Unauthorized; set a new token");
    world.say(&bot, &person, "are you there");
    let answer = world.ask(&other, &person, "and you").await;
    assert!(answer.contains("and you"), "another bot's token is another matter: {answer}");
    instance.app.bots.rotate_token(&system(), bot.id, Zeroizing::new(token)).await.unwrap();
    world.status(&bot, "running").await;
    let texts = world.answers(&bot, person.id, 2).await;
    assert!(texts[1].contains("are you there"), "{texts:?}");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn an_answer_ready_when_the_token_dies_goes_out_under_the_new_one(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "reborn_bot").await;
    let person = Person::number(1);
    world.model.hold();
    world.say(&bot, &person, "hello");
    until("the model was asked", async || (world.model.served().len() == 1).then_some(())).await;
    let token = world.sim.revoke_token("reborn_bot").unwrap();
    world.model.release();
    world.status(&bot, "faulted").await;
    assert!(world.shown(&bot, person.id).is_empty());
    instance.app.bots.rotate_token(&system(), bot.id, Zeroizing::new(token)).await.unwrap();
    world.answers(&bot, person.id, 1).await;
    assert_eq!(world.ended(1).await["delivered"], 1);
    assert_eq!(world.sent(&bot).len(), 1);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn who_blocked_the_bot_is_left_alone(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "blocked_bot").await;
    let person = Person::number(1);
    world.sim.block("blocked_bot", person.id, true);
    world.say(&bot, &person, "hello");
    assert_eq!(world.ended(1).await["undeliverable"], 1);
    let tries = world.sim.log(0).iter().filter(|entry| entry.what == "sendMessage").count();
    assert_eq!(tries, 1, "a refusal is not argued with");
    assert_eq!(world.quota(&instance, &person).await.reserved, 0);
    world.sim.block("blocked_bot", person.id, false);
    world.ask(&bot, &person, "I am back").await;
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_second_poller_is_outlived(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "contested_bot").await;
    world.polled(&bot).await;
    let url = format!("{}/bot{}/getUpdates", world.sim.url(), bot.sim.token);
    let stranger = reqwest::Client::new().post(&url).json(&json!({"timeout": 0})).send().await.unwrap();
    assert_eq!(stranger.status(), 200);
    let conflict = |entry: &botledger_sim::LogEntry| entry.what == "getUpdates" && entry.outcome == "409";
    until("ours was told", async || world.sim.log(0).iter().any(conflict).then_some(())).await;
    let answer = world.ask(&bot, &Person::number(1), "still ours?").await;
    assert!(answer.contains("still ours?"), "{answer}");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_webhook_that_somebody_set_is_taken_away(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "hijacked_bot").await;
    world.polled(&bot).await;
    let url = format!("{}/bot{}/setWebhook", world.sim.url(), bot.sim.token);
    reqwest::Client::new().post(&url).json(&json!({"url": "http://127.0.0.1:9/"})).send().await.unwrap();
    let answer = world.ask(&bot, &Person::number(1), "hello").await;
    assert!(answer.contains("hello"), "{answer}");
    assert_eq!(world.sim.delivery("hijacked_bot").unwrap().webhook, None);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_chat_told_to_wait_waits_and_no_other_does(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "told_bot").await;
    let (told, other) = (Person::number(1), Person::number(2));
    let wait = status(429, "Too Many Requests: retry after 2", Some(2));
    world.sim.fault(Fault { chat: Some(told.id), ..fault("sendMessage", 1, wait) });
    world.say(&bot, &told, "hello");
    until("it was told", async || world.sim.log(0).iter().any(|entry| entry.outcome == "429").then_some(()))
        .await;
    world.ask(&bot, &other, "quick").await;
    assert!(world.shown(&bot, told.id).is_empty());
    world.answers(&bot, told.id, 1).await;
    assert_eq!(world.ended(2).await["delivered"], 2);
    let log = world.sim.log(0);
    assert!(log.iter().all(|entry| !entry.during_retry_after));
    assert_eq!(log.iter().filter(|entry| entry.outcome == "429").count(), 1);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn telegrams_own_failures_are_sat_out(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "storm_bot").await;
    world.polled(&bot).await;
    for method in ["sendMessage", "getUpdates", "sendChatAction"] {
        world.sim.fault(fault(method, 2, status(502, "Bad Gateway", None)));
    }
    world.sim.fault(fault("getUpdates", 1, FaultKind::Garbage));
    world.sim.fault(fault("getUpdates", 1, FaultKind::CutBefore));
    world.sim.fault(fault("getUpdates", 1, FaultKind::CutAfter));
    world.ask(&bot, &Person::number(1), "hello").await;
    assert_eq!(world.ended(1).await["delivered"], 1);
    assert_eq!(world.sent(&bot).len(), 1);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_send_whose_outcome_is_unknown_is_never_repeated(pool: PgPool) {
    let mut setup = Setup::default();
    setup.bots.call_timeout = Duration::from_millis(500);
    let world = World::with(pool, setup).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "lost_bot").await;
    let kinds = [FaultKind::CutAfter, FaultKind::CutBefore, FaultKind::Hang, FaultKind::Garbage];
    let count = kinds.len() as i64;
    for (number, kind) in kinds.into_iter().enumerate() {
        let person = Person::number(number as i64);
        world.sim.fault(Fault { chat: Some(person.id), ..fault("sendMessage", 1, kind) });
        world.say(&bot, &person, "hello");
    }
    let phases = world.ended(count).await;
    assert_eq!(phases, [("outcome_unknown".to_owned(), count)].into());
    let sends = world.sim.log(0).into_iter().filter(|entry| entry.what == "sendMessage").count();
    assert_eq!(sends, 4, "one try each");
    // The next message of the same person is answered as ever.
    world.ask(&bot, &Person::number(1), "and now").await;
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn what_never_left_is_sent_when_telegram_is_back(pool: PgPool) {
    let world = World::new(pool).await;
    let gateway = Gateway::to_url(&world.sim.url(), true).await;
    let instance = world.instance_by(&Routes { telegram: gateway.url(), ..world.routes() });
    let bot = world.bot(&instance, "offline_bot").await;
    let person = Person::number(1);
    world.model.hold();
    world.say(&bot, &person, "hello");
    until("the model was asked", async || (world.model.served().len() == 1).then_some(())).await;
    gateway.close();
    world.model.release();
    until("the answer is in the ledger", async || (world.events("reply_generated").await == 1).then_some(()))
        .await;
    assert!(world.shown(&bot, person.id).is_empty());
    gateway.open().await;
    world.answers(&bot, person.id, 1).await;
    assert_eq!(world.ended(1).await["delivered"], 1);
    assert_eq!(world.sent(&bot).len(), 1);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_group_that_moved_gets_its_answer_at_the_new_place(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "moving_bot").await;
    world.model.hold();
    world.sim.say_in("moving_bot", &Person::number(1), group(-7), None, "@moving_bot hello").unwrap();
    until("the model was asked", async || (world.model.served().len() == 1).then_some(())).await;
    world.sim.migrate("moving_bot", -7, -1_007);
    world.model.release();
    assert_eq!(world.ended(1).await["delivered"], 1);
    let sent = world.sent(&bot);
    assert_eq!((sent.len(), texts(&sent, -1_007).len()), (1, 1));
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn polls_and_beginnings_wait_as_long_as_they_are_told(pool: PgPool) {
    let world = World::new(pool).await;
    let wait = || status(429, "Too Many Requests: retry after 1", Some(1));
    for method in ["getUpdates", "deleteWebhook"] {
        world.sim.fault(fault(method, 1, wait()));
        world.sim.fault(fault(method, 1, status(500, "Internal Server Error", None)));
    }
    let instance = world.instance();
    let bot = world.bot(&instance, "obedient_bot").await;
    world.ask(&bot, &Person::number(1), "hello").await;
    for method in ["getUpdates", "deleteWebhook"] {
        let at: Vec<i64> =
            world.sim.log(0).iter().filter(|entry| entry.what == method).map(|entry| entry.at_ms).collect();
        assert!(at[1] - at[0] >= 1_000, "{method}: {at:?}");
    }
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_chat_that_has_to_wait_leaves_its_place_to_others(pool: PgPool) {
    let mut setup = Setup::default();
    setup.bots.max_concurrent_turns = 1;
    let world = World::with(pool, setup).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "patient_bot").await;
    let (told, exiled, other) = (Person::number(1), Person::number(2), Person::number(3));
    for (person, seconds) in [(&told, 2), (&exiled, 7_200)] {
        let wait = status(429, "Too Many Requests", Some(seconds));
        world.sim.fault(Fault { chat: Some(person.id), ..fault("sendMessage", 1, wait) });
        world.say(&bot, person, "hello");
    }
    let refused = |entry: &&botledger_sim::LogEntry| entry.outcome == "429";
    until("both were told", async || (world.sim.log(0).iter().filter(refused).count() == 2).then_some(()))
        .await;
    world.ask(&bot, &other, "quick").await;
    assert!(world.shown(&bot, told.id).is_empty(), "the only place was free");
    world.answers(&bot, told.id, 1).await;
    assert!(world.sim.log(0).iter().all(|entry| !entry.during_retry_after));
    // Two hours are no reason to throw an answer away.
    assert_eq!(world.events("reply_undeliverable").await, 0);
    assert_eq!(world.events("reply_generated").await, 3);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn an_answer_that_had_to_wait_in_its_middle_goes_on_where_it_was(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let settings = BotSettings { context_tokens: 65_536, max_answer_tokens: 8_192, ..BotSettings::default() };
    let bot = world.bot_with(&instance, "middle_bot", UpdateMode::Polling, settings).await;
    let person = Person::number(1);
    let wait = status(429, "Too Many Requests: retry after 2", Some(2));
    world.sim.fault(Fault { skip: 1, ..fault("sendMessage", 1, wait) });
    world.say(&bot, &person, &"🎉 ".repeat(2_040));
    assert_eq!(world.ended(1).await["delivered"], 1);
    let sent = world.sent(&bot);
    assert_eq!(sent.len(), 2, "the first half is not sent twice");
    let outcomes = world.sim.log(0).into_iter().filter(|entry| entry.what == "sendMessage");
    assert_eq!(outcomes.map(|entry| entry.outcome).collect::<Vec<_>>(), ["ok", "429", "ok"]);
    instance.stop().await;
}
