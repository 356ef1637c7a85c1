//! Commands and buttons, each in the language of whoever gives them.

use botledger_sim::Person;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::world::{World, until};

const COMMANDS: [&str; 12] = [
    "start", "help", "new", "sessions", "history", "search", "usage", "status", "settings", "stop", "appeal",
    "privacy",
];

fn is_russian(text: &str) -> bool {
    text.chars().any(|c| matches!(c, 'а'..='я' | 'А'..='Я'))
}

fn buttons(markup: &Value) -> Vec<(String, String)> {
    let rows = markup["inline_keyboard"].as_array().cloned().unwrap_or_default();
    let cells = rows.iter().flat_map(|row| row.as_array().cloned().unwrap_or_default());
    cells
        .map(|cell| {
            (cell["text"].as_str().unwrap().to_owned(), cell["callback_data"].as_str().unwrap().to_owned())
        })
        .collect()
}

#[sqlx::test(migrations = "../migrations")]
async fn every_command_is_answered_in_the_persons_language(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "polyglot_bot").await;
    // A chat of its own a command, so that the pacing of one chat does not hold the test up.
    let mut asked = Vec::new();
    for (place, command) in COMMANDS.iter().chain(&["nosuchcommand", "search moon"]).enumerate() {
        for language in ["en", "ru"] {
            let number = i64::try_from(place).unwrap() * 2 + i64::from(language == "ru");
            let person = Person {
                language_code: Some(language.to_owned()),
                first_name: "X".to_owned(),
                ..Person::number(100 + number)
            };
            world.say(&bot, &person, &format!("/{command}"));
            asked.push((person.id, command, language));
        }
    }
    let mut seen = Vec::new();
    for (chat, command, language) in asked {
        let answer = world.answers(&bot, chat, 1).await.remove(0);
        assert_eq!(is_russian(&answer), language == "ru", "/{command} in {language}: {answer}");
        assert!(!seen.contains(&answer), "/{command} has an answer of its own: {answer}");
        seen.push(answer);
    }
    let phases = world.ended(28).await;
    assert_eq!(phases, [("delivered".to_owned(), 28)].into());
    assert_eq!(world.model.served().len(), 0, "no model was asked");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn the_menu_is_registered_in_both_languages(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "menu_bot").await;
    world.polled(&bot).await;
    for (language, russian) in [("", false), ("ru", true)] {
        let menu = world.sim.commands("menu_bot", language).unwrap();
        let menu = menu.as_array().unwrap();
        let names: Vec<&str> = menu.iter().map(|command| command["command"].as_str().unwrap()).collect();
        assert_eq!(names.len(), COMMANDS.len());
        assert!(COMMANDS.iter().all(|name| names.contains(name)), "{names:?}");
        assert!(menu.iter().all(|command| is_russian(command["description"].as_str().unwrap()) == russian));
    }
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn sessions_are_listed_and_a_button_goes_back(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "session_bot").await;
    let person = Person::number(1);
    world.ask(&bot, &person, "about apples").await;
    let opened = world.ask(&bot, &person, "/new holiday plans").await;
    assert!(opened.starts_with("Session 2 begins"), "{opened}");
    world.ask(&bot, &person, "/sessions").await;
    let list = world.shown(&bot, person.id).pop().unwrap();
    let listed = buttons(&list.reply_markup);
    assert_eq!(listed.len(), 2);
    assert!(listed[0].0.contains('●') && listed[0].0.contains("holiday plans"), "{listed:?}");
    let back = &listed[1].1;
    world.sim.press("session_bot", &person, list.id, back).unwrap();
    let answer = world.answers(&bot, person.id, 4).await.pop().unwrap();
    assert_eq!(answer, "You are back in session 1.");
    let history = world.ask(&bot, &person, "/history").await;
    assert!(history.contains("about apples"), "{history}");
    let acknowledged =
        world.sim.log(0).iter().any(|entry| entry.what == "answerCallbackQuery" && entry.outcome == "ok");
    assert!(acknowledged, "the button's spinner ended");
    assert_eq!(world.ended(5).await["delivered"], 5);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_language_button_changes_the_language_and_a_stale_one_says_so(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "language_bot").await;
    let person = Person::number(1);
    world.ask(&bot, &person, "/settings").await;
    let settings = world.shown(&bot, person.id).pop().unwrap();
    let russian =
        buttons(&settings.reply_markup).into_iter().find(|(label, _)| label == "Русский").unwrap().1;
    world.sim.press("language_bot", &person, settings.id, &russian).unwrap();
    let answer = world.answers(&bot, person.id, 2).await.pop().unwrap();
    assert_eq!(answer, "Буду говорить с вами по-русски.");
    let by: String =
        sqlx::query_scalar("SELECT metadata ->> 'actor' FROM events WHERE event_type = 'language_chosen'")
            .fetch_one(&world.pool)
            .await
            .unwrap();
    assert!(by.starts_with("subject:"), "the person chose: {by}");
    assert!(is_russian(&world.ask(&bot, &person, "/help").await));
    let other = Person::number(2);
    world.ask(&bot, &other, "/help").await;
    world.sim.press("language_bot", &other, 1, "no such button").unwrap();
    let answer = world.answers(&bot, other.id, 2).await.pop().unwrap();
    assert_eq!(answer, "This button is no longer of use.");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn history_and_search_find_what_was_said(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "memory_bot").await;
    let person = Person::number(1);
    world.ask(&bot, &person, "where do penguins live").await;
    world.ask(&bot, &person, "what do *bears* eat").await;
    let found = world.ask(&bot, &person, "/search PENGUINS").await;
    assert!(found.contains("1 match") && found.contains("where do penguins live"), "{found}");
    assert!(!found.contains("bears"), "{found}");
    let other = Person::number(2);
    world.ask(&bot, &other, "/search penguins").await;
    let theirs = world.shown(&bot, other.id).pop().unwrap().text;
    assert!(theirs.starts_with("Nothing found"), "other people's words stay theirs: {theirs}");
    let history = world.ask(&bot, &person, "/history 1").await;
    assert!(history.contains("what do *bears* eat") && !history.contains("penguins"), "{history}");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn usage_and_status_tell_what_is_left(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "usage_bot").await;
    let person = Person::number(1);
    world.ask(&bot, &person, "hello").await;
    world.ended(1).await;
    let left = world.quota(&instance, &person).await;
    let usage = world.ask(&bot, &person, "/usage").await;
    assert!(usage.contains(&format!(": {} of ", left.used)), "{usage}");
    let status = world.ask(&bot, &person, "/status").await;
    assert!(status.contains("simulated") && status.contains("session: 1"), "{status}");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn photos_stickers_and_voices_get_a_sensible_answer(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "media_bot").await;
    for (number, (content, value)) in [
        ("photo", json!([{"file_id": "f", "file_unique_id": "u", "width": 1, "height": 1}])),
        ("sticker", json!({"file_id": "f", "file_unique_id": "u"})),
        ("voice", json!({"file_id": "f", "file_unique_id": "u", "duration": 1})),
    ]
    .into_iter()
    .enumerate()
    {
        let person = Person::number(10 + i64::try_from(number).unwrap() * 4);
        let mut message = json!({
            "message_id": 1, "date": 1,
            "chat": {"id": person.id, "type": "private", "first_name": "G"},
            "from": {"id": person.id, "is_bot": false, "first_name": "G", "language_code": "en"},
        });
        message[content] = value;
        world.sim.inject("media_bot", json!({ "message": message })).unwrap();
        let answer = world.answers(&bot, person.id, 1).await.remove(0);
        assert!(answer.starts_with("I can read text only"), "{answer}");
    }
    assert_eq!(world.ended(3).await["delivered"], 3);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn stop_with_nothing_to_stop_says_so(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "idle_bot").await;
    let answer = world.ask(&bot, &Person::number(1), "/stop").await;
    assert_eq!(answer, "There is no answer being written right now.");
    until("it is recorded", async || (world.events("reply_delivered").await == 1).then_some(())).await;
    instance.stop().await;
}
