//! Answers that are shown while they are written, and answers that do not fit one message.

use std::time::Duration;

use botledger_domain::bot::{BotSettings, UpdateMode};
use botledger_sim::{Fault, FaultKind, LogEntry, OllamaConfig, Person};
use serde_json::Value;
use sqlx::PgPool;

use crate::world::{Held, Setup, World, group, until};

/// A model that needs about two and a half seconds for its answer.
fn slow() -> Setup {
    Setup {
        ollama: OllamaConfig { between_pieces: Duration::from_millis(120), ..OllamaConfig::default() },
        ..Setup::default()
    }
}

fn edits(world: &World, bot: &Held) -> Vec<LogEntry> {
    let log = world.sim.log(0).into_iter();
    log.filter(|entry| entry.bot == bot.sim.username && entry.what == "editMessageText").collect()
}

fn refuse(method: &str, code: u16, description: &str, retry_after: Option<u64>) -> Fault {
    Fault {
        method: Some(method.to_owned()),
        bot: None,
        chat: None,
        skip: 0,
        times: 1,
        fault: FaultKind::Status { code, description: description.to_owned(), retry_after },
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_slow_answer_grows_in_one_message(pool: PgPool) {
    let world = World::with(pool, slow()).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "stream_bot").await;
    let person = Person::number(1);
    world.say(&bot, &person, "a b c d e f g h");
    assert_eq!(world.ended(1).await["delivered"], 1);
    let shown = world.shown(&bot, person.id);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert!(shown[0].text.ends_with("answer at once."), "{}", shown[0].text);
    let sent = world.sent(&bot);
    assert_eq!(sent.len(), 1);
    let edits = edits(&world, &bot);
    assert!(!edits.is_empty() && edits.iter().all(|edit| edit.outcome == "ok"), "{edits:?}");
    let mut before = sent[0].text.clone().unwrap();
    for edit in &edits {
        let text = edit.text.clone().unwrap();
        assert!(text.len() > before.len() && text.starts_with(&before), "{before} then {text}");
        before = text;
    }
    assert_eq!(world.events("reply_started").await, 1);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_group_is_edited_no_more_often_than_its_interval(pool: PgPool) {
    let mut setup = slow();
    setup.bots.edit_interval_group = Duration::from_secs(60);
    let world = World::with(pool, setup).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "calm_bot").await;
    world.sim.say_in("calm_bot", &Person::number(1), group(-5), None, "@calm_bot a b c d").unwrap();
    assert_eq!(world.ended(1).await["delivered"], 1);
    assert_eq!(edits(&world, &bot).len(), 1, "only the final one");
    assert!(world.shown(&bot, -5)[0].text.ends_with("answer at once."));
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_bot_without_streaming_sends_once(pool: PgPool) {
    let world = World::with(pool, slow()).await;
    let instance = world.instance();
    let settings = BotSettings { streaming: false, ..BotSettings::default() };
    let bot = world.bot_with(&instance, "whole_bot", UpdateMode::Polling, settings).await;
    let person = Person::number(1);
    world.ask(&bot, &person, "hello").await;
    assert_eq!(world.ended(1).await["delivered"], 1);
    assert_eq!((world.sent(&bot).len(), edits(&world, &bot).len()), (1, 0));
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_refused_edit_ends_the_show_and_the_whole_answer_arrives_when_it_may(pool: PgPool) {
    let world = World::with(pool, slow()).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "flood_bot").await;
    let person = Person::number(1);
    world.sim.fault(refuse("editMessageText", 429, "Too Many Requests: retry after 2", Some(2)));
    world.say(&bot, &person, "a b c d e f g h");
    assert_eq!(world.ended(1).await["delivered"], 1);
    let edits = edits(&world, &bot);
    let outcomes: Vec<&str> = edits.iter().map(|edit| edit.outcome.as_str()).collect();
    assert_eq!(outcomes, ["429", "ok"]);
    assert!(world.sim.log(0).iter().all(|entry| !entry.during_retry_after));
    assert!(edits[1].at_ms - edits[0].at_ms >= 2_000, "it waited as long as told");
    let shown = world.shown(&bot, person.id);
    assert_eq!(shown.len(), 1);
    assert!(shown[0].text.ends_with("answer at once."));
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_shown_message_that_the_person_deleted_is_sent_anew(pool: PgPool) {
    let world = World::with(pool, slow()).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "deleted_bot").await;
    let person = Person::number(1);
    world.sim.fault(Fault {
        times: 100,
        ..refuse("editMessageText", 400, "Bad Request: message to edit not found", None)
    });
    world.say(&bot, &person, "a b c d e f g h");
    assert_eq!(world.ended(1).await["delivered"], 1);
    let sent = world.sent(&bot);
    assert_eq!(sent.len(), 2);
    assert!(sent[1].text.as_ref().unwrap().ends_with("answer at once."));
    instance.stop().await;
}

fn long_settings() -> BotSettings {
    BotSettings { context_tokens: 65_536, max_answer_tokens: 8_192, ..BotSettings::default() }
}

fn entity_texts(text: &str, entities: &Value, kind: &str) -> Vec<String> {
    let units: Vec<u16> = text.encode_utf16().collect();
    let list = entities.as_array().cloned().unwrap_or_default();
    list.iter()
        .filter(|entity| entity["type"] == kind)
        .map(|entity| {
            let (from, length) = (entity["offset"].as_u64().unwrap(), entity["length"].as_u64().unwrap());
            String::from_utf16(&units[from as usize..(from + length) as usize]).unwrap()
        })
        .collect()
}

#[sqlx::test(migrations = "../migrations")]
async fn a_long_answer_becomes_messages_with_their_entities_in_place(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot_with(&instance, "long_bot", UpdateMode::Polling, long_settings()).await;
    let person = Person::number(1);
    let prompt = format!("{} **bold 🙂 words** {}", "🙂".repeat(2_000), "🎉 ".repeat(1_030));
    assert!(prompt.chars().count() <= 4_096);
    world.say(&bot, &person, &prompt);
    assert_eq!(world.ended(1).await["delivered"], 1);
    let shown = world.shown(&bot, person.id);
    assert_eq!(shown.len(), 2);
    let lengths: Vec<usize> = shown.iter().map(|sent| sent.text.chars().count()).collect();
    assert!(lengths.iter().all(|length| *length <= 4_096), "{lengths:?}");
    let bold: Vec<String> =
        shown.iter().flat_map(|sent| entity_texts(&sent.text, &sent.entities, "bold")).collect();
    assert_eq!(bold, ["bold 🙂 words"]);
    assert!(shown[1].text.ends_with("answer at once."));
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn markup_that_telegram_does_not_take_is_sent_plain(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "plain_bot").await;
    let person = Person::number(1);
    world.sim.fault(refuse("sendMessage", 400, "Bad Request: can't parse entities: unsupported", None));
    let answer = world.ask(&bot, &person, "a **bold** word").await;
    assert!(answer.contains("a bold word"), "{answer}");
    assert!(world.shown(&bot, person.id)[0].entities.is_null());
    assert_eq!(world.ended(1).await["delivered"], 1);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn stop_ends_an_answer_and_keeps_what_was_written(pool: PgPool) {
    let world = World::with(pool, slow()).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "stop_bot").await;
    let person = Person::number(1);
    let words: Vec<String> = (0..60).map(|number| number.to_string()).collect();
    world.say(&bot, &person, &words.join(" "));
    until("the answer is shown", async || (world.shown(&bot, person.id).len() == 1).then_some(())).await;
    world.say(&bot, &person, "/stop");
    let texts = world.answers(&bot, person.id, 2).await;
    assert!(texts[0].starts_with("You wrote") && !texts[0].contains("59"), "{}", texts[0]);
    assert_eq!(texts[1], "Stopped.");
    world.ended(2).await;
    let finish: String = sqlx::query_scalar("SELECT finish FROM read.turns WHERE finish IS NOT NULL")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(finish, "cancelled");
    let quota = world.quota(&instance, &person).await;
    assert!(quota.used > 0 && quota.reserved == 0, "{quota:?}");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_first_piece_whose_outcome_is_unknown_ends_the_turn_and_is_never_sent_again(pool: PgPool) {
    let world = World::with(pool, slow()).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "unsure_bot").await;
    let kinds = [FaultKind::CutAfter, FaultKind::CutBefore, FaultKind::Garbage];
    for (number, kind) in (1..).zip(kinds) {
        let person = Person::number(number);
        let method = Some("sendMessage".to_owned());
        world.sim.fault(Fault { method, bot: None, chat: Some(person.id), skip: 0, times: 1, fault: kind });
        world.say(&bot, &person, "a b c d e f g h");
    }
    assert_eq!(world.ended(3).await, [("outcome_unknown".to_owned(), 3)].into());
    let tries = world.sim.log(0).into_iter().filter(|entry| entry.what == "sendMessage").count();
    assert_eq!(tries, 3, "one try each");
    // What the model had done by then is paid for, and it did not go on for nobody.
    let quota = world.quota(&instance, &Person::number(1)).await;
    assert!(quota.used > 0 && quota.reserved == 0, "{quota:?}");
    let finish: Vec<String> =
        sqlx::query_scalar("SELECT DISTINCT finish FROM read.turns").fetch_all(&world.pool).await.unwrap();
    assert_eq!(finish, ["cancelled"]);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_group_that_moves_while_an_answer_is_shown_gets_the_whole_of_it_at_the_new_place(pool: PgPool) {
    let world = World::with(pool, slow()).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "mover_bot").await;
    world.sim.say_in("mover_bot", &Person::number(1), group(-7), None, "@mover_bot a b c d").unwrap();
    until("the answer is shown", async || (world.shown(&bot, -7).len() == 1).then_some(())).await;
    world.sim.migrate("mover_bot", -7, -1_007);
    assert_eq!(world.ended(1).await["delivered"], 1);
    let shown = world.shown(&bot, -1_007);
    assert!(shown.last().unwrap().text.ends_with("answer at once."), "{shown:?}");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn stop_also_ends_questions_that_wait_for_their_turn(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "queue_bot").await;
    let person = Person::number(1);
    world.model.hold();
    world.say(&bot, &person, "one");
    until("the model was asked", async || (world.model.served().len() == 1).then_some(())).await;
    for text in ["two", "three", "/stop"] {
        world.say(&bot, &person, text);
    }
    let texts = world.answers(&bot, person.id, 4).await;
    assert_eq!(texts, ["(stopped)", "(stopped)", "(stopped)", "Stopped."]);
    assert_eq!(world.model.served().len(), 1, "nobody asked it for what was stopped before");
    world.ended(4).await;
    assert_eq!(world.quota(&instance, &person).await.reserved, 0);
    instance.stop().await;
}
