//! People who are warned, throttled or blocked know why, and what they can do about it.

use botledger_commands::{ListedAs, NewAccessEntry, WhichList, execute::execute};
use botledger_domain::{
    Reason, TurnId,
    access_list::{AccessDoor, AccessEffect},
    standing::{
        Offence, Scoring, Standing, StandingCommand,
        ladder::{LadderConfig, OffenceKind},
    },
    standing_stream,
};
use botledger_sim::Person;
use chrono::TimeDelta;
use sqlx::PgPool;
use uuid::Uuid;

use crate::world::{Held, Instance, World, system};

fn reason(text: &str) -> Reason {
    Reason::parse(text).unwrap()
}

fn english(number: i64) -> Person {
    Person { language_code: Some("en".to_owned()), ..Person::number(number) }
}

fn russian(number: i64) -> Person {
    Person { language_code: Some("ru".to_owned()), ..Person::number(number) }
}

/// As if a message of that kind had been scored.
async fn offend(world: &World, instance: &Instance, bot: &Held, person: &Person, kind: OffenceKind) {
    let subject = world.subject(instance, person);
    let oos_permille = (kind == OffenceKind::OffTopic).then_some(1_000);
    let scoring = Scoring {
        bot: bot.id,
        subject,
        turn: TurnId(Uuid::now_v7()),
        offences: vec![Offence { kind, oos_permille, intent: None, evidence: vec![] }],
        rules: LadderConfig::default(),
        policy_version: 1,
        model_version: String::new(),
        dry_run: false,
    };
    let stream = standing_stream(bot.id, subject).to_string();
    let command = StandingCommand::Score(Box::new(scoring));
    execute::<Standing>(&instance.app.core, &system(), &stream, command, |_| Ok(())).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn who_is_blocked_may_still_ask_why_and_ask_a_human(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "strict_bot").await;
    let person = english(1);
    world.ask(&bot, &person, "hello").await;
    let subject = world.subject(&instance, &person);
    instance.app.standings.block(&system(), bot.id, subject, reason("spam"), None).await.unwrap();
    let notice = world.ask(&bot, &person, "hello again").await;
    assert!(notice.starts_with("You cannot use this bot. Reason: spam"), "{notice}");
    assert!(notice.contains("/appeal"), "{notice}");
    // A chat of its own a command, so that the pacing of one chat does not hold the test up.
    for (number, command, begins) in [
        (2, "/help", "What I can do"),
        (3, "/privacy", "Your data"),
        (4, "/settings", "Settings"),
        (5, "/status", "You are blocked by a moderator. Reason: spam"),
        (6, "/appeal", "Tell me in the same message why"),
    ] {
        let person = english(number);
        let subject = world.subject(&instance, &person);
        instance.app.standings.block(&system(), bot.id, subject, reason("spam"), None).await.unwrap();
        let answer = world.ask(&bot, &person, command).await;
        assert!(answer.starts_with(begins), "{command}: {answer}");
    }
    let filed = world.ask(&bot, &person, "/appeal It was my sister's watch shop").await;
    assert!(filed.starts_with("Thank you. A human will look at it"), "{filed}");
    let again = world.ask(&bot, &person, "/appeal Please").await;
    assert_eq!(again, "Your appeal is waiting for a human to look at it.");
    let status = world.ask(&bot, &person, "/status").await;
    assert!(status.contains("Your appeal is waiting"), "{status}");
    assert_eq!(world.events("appeal_filed").await, 1);
    let open: i64 = sqlx::query_scalar("SELECT count(*) FROM events WHERE payload::text LIKE '%watch shop%'")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(open, 0, "what they wrote is sealed");
    // Everything else is refused, and they were told within the hour.
    world.say(&bot, &person, "/new");
    assert_eq!(world.ended(11).await["refused"], 2);

    instance.app.standings.grant_appeal(&system(), bot.id, subject, None).await.unwrap();
    let answer = world.ask(&bot, &person, "thank you").await;
    assert!(answer.starts_with("You wrote"), "{answer}");
    let nothing = world.ask(&bot, &person, "/appeal once more").await;
    assert!(nothing.starts_with("There is nothing to appeal against"), "{nothing}");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_status_says_in_words_why_somebody_is_blocked_and_until_when(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "explaining_bot").await;
    let (person, other) = (english(1), russian(2));
    let well = world.ask(&bot, &person, "/status").await;
    assert!(well.starts_with("All is well."), "{well}");
    world.ask(&bot, &other, "/status").await;
    for kind in [OffenceKind::OffTopic, OffenceKind::InjectionConfident, OffenceKind::Spam] {
        offend(&world, &instance, &bot, &person, kind).await;
    }
    let throttled = world.ask(&bot, &person, "/status").await;
    assert!(throttled.starts_with("You are answered less often for a while."), "{throttled}");
    for part in [
        "an attempt to change the bot's instructions: 30 points",
        "advertising: 20 points",
        "not what this bot is for: 10 points",
        "At 30 there is a warning, at 50 answers come less often, at 80 a block for a while",
        "If nothing is added, this ends at about ",
        "write /appeal",
    ] {
        assert!(throttled.contains(part), "{part}: {throttled}");
    }
    for _ in 0..3 {
        offend(&world, &instance, &bot, &other, OffenceKind::InjectionConfident).await;
    }
    let blocked = world.ask(&bot, &other, "/status").await;
    assert!(blocked.starts_with("Вы заблокированы до "), "{blocked}");
    assert!(blocked.contains("попытка изменить указания бота: 30 баллов"), "{blocked}");
    assert!(blocked.contains("(через 15 минут)"), "{blocked}");
    let notice = world.ask(&bot, &other, "привет").await;
    assert!(notice.starts_with("Бот не принимает от вас сообщения до "), "{notice}");
    assert!(notice.contains("/status") && notice.contains("/appeal"), "{notice}");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn one_severe_message_is_told_of_as_what_it_was(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "severe_bot").await;
    let person = english(1);
    world.ask(&bot, &person, "/help").await;
    offend(&world, &instance, &bot, &person, OffenceKind::CategorySevere).await;
    let notice = world.ask(&bot, &person, "hello").await;
    assert!(notice.starts_with("This bot takes no messages from you any more"), "{notice}");
    let status = world.ask(&bot, &person, "/status").await;
    assert!(status.starts_with("You are blocked: a message of yours was something"), "{status}");
    assert_eq!(world.model.served().len(), 0);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn who_is_on_a_deny_list_is_told_no_more_than_that(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "club_bot").await;
    let (denied, member, stranger) = (english(1), english(2), russian(3));
    let lists = &instance.app.access_lists;
    let list = WhichList { workspace: world.workspace, bot: Some(bot.id) };
    let entry = |person: &Person, effect, text: &str| NewAccessEntry {
        who: ListedAs::TelegramUser(person.id),
        effect,
        reason: reason(text),
        expires_at: None,
    };
    let until = instance.app.core.clock.now() + TimeDelta::hours(3);
    let entries = vec![
        NewAccessEntry { expires_at: Some(until), ..entry(&denied, AccessEffect::Deny, "owes us money") },
        entry(&member, AccessEffect::Allow, "pays"),
    ];
    lists.add(&system(), list, entries, None).await.unwrap();
    lists.close(&system(), list, AccessDoor::Messages, reason("members only"), None).await.unwrap();

    let notice = world.ask(&bot, &denied, "hello").await;
    assert!(
        notice.starts_with("You cannot use this bot until ") && notice.contains("(in 3 hours)"),
        "{notice}"
    );
    assert!(!notice.contains("money") && !notice.contains("/appeal"), "{notice}");
    let notice = world.ask(&bot, &stranger, "привет").await;
    assert!(notice.starts_with("Вы не можете пользоваться этим ботом."), "{notice}");
    let answer = world.ask(&bot, &member, "hello").await;
    assert!(answer.starts_with("You wrote"), "{answer}");
    world.say(&bot, &denied, "/help");
    assert_eq!(world.ended(4).await["refused"], 3);
    assert_eq!(world.model.served().len(), 1);
    instance.stop().await;
}
