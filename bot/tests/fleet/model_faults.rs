//! The model's trouble: people are told, pay for no more than it did, and nothing stays held.

use std::time::Duration;

use botledger_domain::bot::{BotSettings, UpdateMode};
use botledger_llm::OllamaLimits;
use botledger_sim::{ModelFault, OllamaConfig, Person};
use sqlx::PgPool;

use crate::world::{Setup, World};

fn impatient() -> Setup {
    let mut setup = Setup {
        llm: OllamaLimits {
            first_byte: Duration::from_millis(300),
            idle: Duration::from_millis(300),
            retries: 0,
            ..OllamaLimits::default()
        },
        // What is cut after some pieces has sent those pieces.
        ollama: OllamaConfig { between_pieces: Duration::from_millis(5), ..OllamaConfig::default() },
        ..Setup::default()
    };
    setup.bots.answer_deadline = Duration::from_secs(2);
    setup
}

#[sqlx::test(migrations = "../migrations")]
async fn every_failure_is_told_and_costs_what_the_model_did(pool: PgPool) {
    let world = World::with(pool, impatient()).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "unlucky_bot").await;
    let status = |code, message: &str| ModelFault::Status { code, message: message.to_owned() };
    let cases = [
        (status(503, "server busy"), "cannot answer right now", true),
        (status(404, "model not found"), "is not there", true),
        (ModelFault::Cut, "cannot answer right now", true),
        (ModelFault::CutAfter { pieces: 2 }, "broke off", false),
        (ModelFault::ErrorAfter { pieces: 2, message: "out of memory".to_owned() }, "broke off", false),
        (ModelFault::GarbageAfter { pieces: 2 }, "", false),
        (ModelFault::HangAfter { pieces: 0 }, "took too long", false),
        (ModelFault::HangAfter { pieces: 2 }, "took too long", false),
    ];
    let free: Vec<bool> = cases.iter().map(|(_, _, free)| *free).collect();
    let count = cases.len();
    for (number, (fault, words, free)) in cases.into_iter().enumerate() {
        let person = Person { language_code: Some("en".to_owned()), ..Person::number(number as i64) };
        let name = format!("{fault:?}");
        world.model.fault(fault);
        let answer = world.ask(&bot, &person, "hello").await;
        assert!(answer.starts_with('⚠') && answer.contains(words), "{name}: {answer}");
        assert_eq!(answer.contains("Nothing was taken from your quota"), free, "{name}: {answer}");
        // The model is well in between: failures in a row would open the circuit breaker.
        world.ask(&bot, &Person::number(100 + number as i64), "hello").await;
    }
    let phases = world.ended(2 * count as i64).await;
    assert_eq!(phases["failed"], count as i64, "{phases:?}");
    for (number, free) in free.into_iter().enumerate() {
        let left = world.quota(&instance, &Person::number(number as i64)).await;
        assert_eq!((left.used == 0, left.reserved), (free, 0), "case {number}");
    }
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_failure_before_the_first_word_is_tried_again_unseen(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "again_bot").await;
    world.model.fault(ModelFault::Cut);
    let answer = world.ask(&bot, &Person::number(1), "hello").await;
    assert!(answer.starts_with("You wrote"), "{answer}");
    assert_eq!(world.model.served().len(), 2);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn an_answer_that_broke_off_while_shown_becomes_the_notice(pool: PgPool) {
    let mut setup = impatient();
    setup.ollama = OllamaConfig { between_pieces: Duration::from_millis(150), ..OllamaConfig::default() };
    setup.bots.answer_deadline = Duration::from_secs(10);
    let world = World::with(pool, setup).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "broken_bot").await;
    let person = Person::number(1);
    world.model.fault(ModelFault::CutAfter { pieces: 10 });
    world.say(&bot, &person, "a b c d e f g h");
    assert_eq!(world.ended(1).await["failed"], 1);
    let shown = world.shown(&bot, person.id);
    assert_eq!(shown.len(), 1, "the half answer does not stay: {shown:?}");
    assert!(shown[0].text.contains("broke off"), "{}", shown[0].text);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn an_answer_that_takes_longer_than_the_deadline_is_ended(pool: PgPool) {
    let mut setup = Setup {
        ollama: OllamaConfig { between_pieces: Duration::from_millis(100), ..OllamaConfig::default() },
        ..Setup::default()
    };
    setup.bots.answer_deadline = Duration::from_millis(500);
    let world = World::with(pool, setup).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "deadline_bot").await;
    let answer = world.ask(&bot, &Person::number(1), "hello").await;
    assert!(answer.contains("took too long"), "{answer}");
    assert_eq!(world.ended(1).await["failed"], 1);
    assert_eq!(world.quota(&instance, &Person::number(1)).await.reserved, 0);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn what_is_longer_than_the_window_is_refused_with_advice(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let settings = BotSettings { context_tokens: 512, max_answer_tokens: 128, ..BotSettings::default() };
    let bot = world.bot_with(&instance, "short_bot", UpdateMode::Polling, settings).await;
    let person = Person::number(1);
    let answer = world.ask(&bot, &person, &"word ".repeat(800)).await;
    assert!(answer.contains("longer than the model can read"), "{answer}");
    assert_eq!(world.ended(1).await["refused"], 1);
    assert_eq!(world.model.served().len(), 0);
    // A conversation that outgrows the window goes on with less of it.
    for _ in 0..3 {
        let answer = world.ask(&bot, &person, &"word ".repeat(20)).await;
        assert!(answer.starts_with("You wrote"), "{answer}");
    }
    assert_eq!(world.quota(&instance, &person).await.reserved, 0);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_model_that_fails_again_and_again_is_left_alone_and_people_are_told(pool: PgPool) {
    let world = World::with(pool, impatient()).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "breaker_bot").await;
    for number in 0..8 {
        world.model.fault(ModelFault::Cut);
        let answer = world.ask(&bot, &Person::number(4 * number), "hello").await;
        assert!(answer.contains("cannot answer right now"), "{answer}");
    }
    assert!(world.model.served().len() < 8, "the last were not asked any more");
    let phases = world.ended(8).await;
    assert_eq!(phases, [("failed".to_owned(), 8)].into());
    instance.stop().await;
}
