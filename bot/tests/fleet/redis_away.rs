//! Redis may be lost at any moment: every open turn is answered all the same.

use botledger_sim::Person;
use sqlx::PgPool;

use crate::world::{Gateway, Held, Routes, World, until};

/// Ten people who have not written yet: a chat that has had its burst would be paced.
fn crowd(world: &World, bot: &Held, words: &str) {
    let already = world.sim.log(0).iter().filter(|entry| entry.what == "update").count();
    for number in 1..=10 {
        world.say(bot, &Person::number(number + i64::try_from(already).unwrap()), words);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn without_redis_from_the_start_people_are_answered(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance_by(&Routes { redis: None, ..world.routes() });
    let bot = world.bot(&instance, "spartan_bot").await;
    crowd(&world, &bot, "hello");
    assert_eq!(world.ended(10).await["delivered"], 10);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn redis_that_comes_later_goes_and_comes_back_loses_no_answer(pool: PgPool) {
    let world = World::new(pool).await;
    let (gateway, redis) = Gateway::to_redis(false).await;
    let instance = world.instance_by(&Routes { redis: Some(redis), ..world.routes() });
    let bot = world.bot(&instance, "wobbly_bot").await;
    crowd(&world, &bot, "before redis");
    world.ended(10).await;
    gateway.open().await;
    crowd(&world, &bot, "with redis");
    world.ended(20).await;
    // In the middle of everything: turns are in line, one is being answered.
    world.model.hold();
    crowd(&world, &bot, "under way");
    until("the model was asked", async || (world.model.served().len() > 20).then_some(())).await;
    gateway.close();
    crowd(&world, &bot, "without redis");
    world.model.release();
    world.ended(40).await;
    gateway.open().await;
    crowd(&world, &bot, "and back");
    let phases = world.ended(50).await;
    assert_eq!(phases, [("delivered".to_owned(), 50)].into());
    assert_eq!(world.sent(&bot).len(), 50, "and none twice");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_queue_that_redis_forgot_is_found_in_the_ledger(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let bot = world.bot(&instance, "forgetful_bot").await;
    world.model.hold();
    crowd(&world, &bot, "one");
    until("the model was asked", async || (world.model.served().len() == 10).then_some(())).await;
    crowd(&world, &bot, "two");
    until("all are in the ledger", async || (world.events("message_received").await == 20).then_some(()))
        .await;
    let client = redis::Client::open(crate::world::redis_url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<String> =
        redis::cmd("KEYS").arg(format!("bl:*{{{}}}*", bot.id)).query_async(&mut redis).await.unwrap();
    assert!(!keys.is_empty());
    redis::cmd("DEL").arg(&keys).query_async::<()>(&mut redis).await.unwrap();
    world.model.release();
    assert_eq!(world.ended(20).await["delivered"], 20);
    assert_eq!(world.sent(&bot).len(), 20);
    instance.stop().await;
}
