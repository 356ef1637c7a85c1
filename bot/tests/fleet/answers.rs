//! A text comes, an answer goes: to the right place, once, in order, beside others.

use std::collections::BTreeMap;

use botledger_domain::bot::{BotSettings, UpdateMode};
use botledger_sim::{ModelFault, Person};
use sqlx::PgPool;

use crate::world::{World, group, texts, until};

#[sqlx::test(migrations = "../migrations")]
async fn a_text_is_answered_under_the_typing_sign(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "answer_bot").await;
    let person = Person::number(1);
    let answer = world.ask(&bot, &person, "how are you").await;
    assert!(answer.starts_with("You wrote: \"how are you\"."), "{answer}");
    let phases = world.ended(1).await;
    assert_eq!(phases["delivered"], 1, "{phases:?}");
    let typed = world.sim.log(0).iter().any(|entry| {
        entry.what == "sendChatAction" && entry.chat == Some(person.id) && entry.outcome == "ok"
    });
    assert!(typed, "the typing action was shown");
    let quota = world.quota(&instance, &person).await;
    assert!(quota.used > 0 && quota.reserved == 0, "{quota:?}");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn an_answer_goes_into_its_topic_and_names_its_question_in_a_group(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "topic_bot").await;
    let person = Person::number(1);
    let asked = world
        .sim
        .say_in("topic_bot", &person, group(-1_001), Some(77), "@topic_bot what is in this topic")
        .unwrap();
    world.sim.say_in("topic_bot", &person, group(-1_001), Some(77), "not for the bot").unwrap();
    let elsewhere =
        world.sim.say_in("topic_bot", &person, group(-1_001), None, "@topic_bot and outside").unwrap();
    until("both answers are there", async || (world.shown(&bot, -1_001).len() == 2).then_some(())).await;
    let places: BTreeMap<Option<i64>, Option<i64>> =
        world.shown(&bot, -1_001).into_iter().map(|sent| (sent.thread, sent.reply_to)).collect();
    assert_eq!(places, [(Some(77), Some(asked)), (None, Some(elsewhere))].into());
    // What was not for the bot is kept all the same.
    until("it is recorded", async || (world.events("update_recorded").await == 1).then_some(())).await;
    assert_eq!(world.ended(2).await["delivered"], 2);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn fifty_people_and_three_bots_get_one_answer_a_message_in_their_order(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let mut bots = Vec::new();
    for username in ["first_bot", "second_bot", "third_bot"] {
        bots.push(world.bot(&instance, username).await);
    }
    let people: Vec<Person> = (1..=50).map(Person::number).collect();
    for person in &people {
        for bot in &bots {
            world.say(bot, person, &format!("one by {}", person.id));
        }
        world.say(&bots[0], person, &format!("two by {}", person.id));
    }
    let phases = world.ended(200).await;
    assert_eq!(phases, [("delivered".to_owned(), 200)].into());
    for (bot, rounds) in bots.iter().zip([&["one", "two"][..], &["one"], &["one"]]) {
        let sent = world.sent(bot);
        assert!(sent.iter().all(|entry| !entry.during_retry_after));
        for person in &people {
            let said = texts(&sent, person.id);
            assert_eq!(said.len(), rounds.len(), "{said:?}");
            for (text, round) in said.iter().zip(rounds) {
                assert!(text.contains(&format!("{round} by {}", person.id)), "{text}");
            }
        }
    }
    let refused = world.sim.log(0).iter().filter(|entry| entry.outcome == "429").count();
    assert_eq!(refused, 0, "Telegram never had cause to refuse");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_command_does_not_overtake_the_text_before_it(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "order_bot").await;
    // All of it waits before the bot begins, so it comes in one batch.
    let people: Vec<Person> = (1..=20).map(Person::number).collect();
    for person in &people {
        world.say(&bot, person, "remember this");
        world.say(&bot, person, "/history");
    }
    world.ended(40).await;
    let sent = world.sent(&bot);
    for person in &people {
        let said = texts(&sent, person.id);
        assert_eq!(said.len(), 2);
        assert!(said[1].contains("remember this") && said[0] != said[1], "{said:?}");
        assert!(said[0].starts_with("You wrote") || said[0].starts_with("Вы написали"), "{said:?}");
    }
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_slow_chat_holds_up_no_other(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "patient_bot").await;
    let slow = Person::number(1);
    world.model.fault(ModelFault::HangAfter { pieces: 0 });
    world.say(&bot, &slow, "this one takes for ever");
    until("the model was asked", async || (world.model.served().len() == 1).then_some(())).await;
    for _ in 0..25 {
        world.say(&bot, &slow, "and this waits behind it");
    }
    for number in 2..=10 {
        world.say(&bot, &Person::number(number), "quick");
    }
    for number in 2..=10 {
        world.answers(&bot, Person::number(number).id, 1).await;
    }
    assert_eq!(world.shown(&bot, slow.id).len(), 0);
    // The person can end it.
    world.say(&bot, &slow, "/stop");
    let answer = world.answers(&bot, slow.id, 1).await.remove(0);
    assert_eq!(answer, "(stopped)");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn the_conversation_and_the_bots_own_settings_reach_the_model(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let settings = BotSettings {
        system_prompt: Some("Be brief.".to_owned()),
        max_answer_tokens: 16,
        ..BotSettings::default()
    };
    let bot = world.bot_with(&instance, "settings_bot", UpdateMode::Polling, settings).await;
    let person = Person::number(1);
    world.ask(&bot, &person, "first").await;
    world.ask(&bot, &person, "second").await;
    let served = world.model.served();
    assert_eq!(
        served.iter().map(|chat| chat.messages).collect::<Vec<_>>(),
        [2, 4],
        "system, history, question"
    );
    assert_eq!(served[1].options["num_predict"], 16);
    assert_eq!(served[1].truncate, false);
    world.ask(&bot, &person, "/new").await;
    world.ask(&bot, &person, "third").await;
    assert_eq!(world.model.served()[2].messages, 2, "a new session begins afresh");
    instance.stop().await;
}
