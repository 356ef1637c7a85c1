//! People who are refused know why and until when.

use std::time::Duration;

use botledger_domain::{
    Reason,
    bot::{BotRateLimits, BotSettings, RateLimit, UpdateMode},
    quota::{Period, PlanTerms},
};
use botledger_sim::Person;
use sqlx::PgPool;

use crate::world::{Setup, World, system, until};

#[sqlx::test(migrations = "../migrations")]
async fn who_writes_too_fast_is_told_once_when_to_come_back(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let often = RateLimit { burst: 100, per_minute: 6_000 };
    let limits = BotRateLimits::of_messages(RateLimit { burst: 2, per_minute: 1 }, often, often);
    let settings = BotSettings { rate_limits: Some(limits), ..BotSettings::default() };
    let bot = world.bot_with(&instance, "limit_bot", UpdateMode::Polling, settings).await;
    let person = Person::number(1);
    for number in 0..5 {
        world.say(&bot, &person, &format!("number {number}"));
    }
    let phases = world.ended(5).await;
    assert_eq!(phases, [("delivered".to_owned(), 2), ("refused".to_owned(), 3)].into());
    let texts = world.answers(&bot, person.id, 3).await;
    assert_eq!(texts.len(), 3, "one notice, not three: {texts:?}");
    assert!(texts[2].contains("Please write again at") && texts[2].contains("UTC (in "), "{}", texts[2]);
    let other = world.ask(&bot, &Person::number(2), "hello").await;
    assert!(other.starts_with("You wrote"), "others are not held up: {other}");
    assert_eq!(world.model.served().len(), 3);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn who_has_used_the_quota_up_is_told_when_it_resets(pool: PgPool) {
    let setup = Setup { terms: PlanTerms::tokens(300, Period::Day), ..Setup::default() };
    let world = World::with(pool, setup).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "quota_bot").await;
    let person = Person { language_code: Some("ru".to_owned()), ..Person::number(1) };
    let mut answers = Vec::new();
    for _ in 0..30 {
        let answer = world.ask(&bot, &person, &"слово ".repeat(10)).await;
        let refused = answer.contains("Квоты не хватает");
        answers.push(answer);
        if refused {
            break;
        }
    }
    assert!(answers.len() > 1 && answers[0].starts_with("Вы написали"), "{answers:?}");
    let notice = answers.pop().unwrap();
    assert!(notice.contains("Она обновится в ") && notice.contains("UTC (через "), "{notice}");
    let left = world.quota(&instance, &person).await;
    assert!(left.used <= left.limit && left.reserved == 0, "{left:?}");
    // Commands still work without a quota.
    let help = world.ask(&bot, &person, "/help").await;
    assert!(help.starts_with("Что я умею"), "{help}");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn who_is_blocked_is_told_why_once_and_comes_back_when_unblocked(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "strict_bot").await;
    let person = Person::number(1);
    world.ask(&bot, &person, "hello").await;
    let subject = world.subject(&instance, &person);
    let reason = |text: &str| Reason::parse(text).unwrap();
    let until_when = instance.app.core.clock.now() + Duration::from_secs(3_600);
    let standings = &instance.app.standings;
    standings.block(&system(), bot.id, subject, reason("spam"), Some(until_when)).await.unwrap();
    for text in ["buy", "my", "/new"] {
        world.say(&bot, &person, text);
    }
    assert_eq!(world.ended(4).await["refused"], 3);
    let texts = world.answers(&bot, person.id, 2).await;
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(
        texts[1].starts_with("You cannot use this bot until") && texts[1].contains("Reason: spam"),
        "{}",
        texts[1]
    );
    standings.unblock(&system(), bot.id, subject, reason("talked")).await.unwrap();
    let answer = world.ask(&bot, &person, "thank you").await;
    assert!(answer.starts_with("You wrote"), "{answer}");
    until("only those were answered by the model", async || (world.model.served().len() == 2).then_some(()))
        .await;
    instance.stop().await;
}
