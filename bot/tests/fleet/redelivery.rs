//! Telegram repeats and reorders; people get one answer a message.

use std::collections::BTreeMap;

use botledger_sim::{Behaviour, Person};
use sqlx::PgPool;

use crate::world::World;

#[sqlx::test(migrations = "../migrations")]
async fn duplicates_and_disorder_double_and_lose_nothing(pool: PgPool) {
    let world = World::new(pool).await;
    world.sim.behave(Behaviour { duplicate_every: 2, reorder: true });
    let instance = world.instance();
    let bot = world.bot(&instance, "echo_bot").await;
    for number in 1..=40 {
        world.say(&bot, &Person::number(number), &format!("first of {number}"));
    }
    for number in 1..=40 {
        world.answers(&bot, Person::number(number).id, 1).await;
        world.say(&bot, &Person::number(number), &format!("second of {number}"));
    }
    let phases = world.ended(80).await;
    assert_eq!(phases, [("delivered".to_owned(), 80)].into());
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for entry in world.sent(&bot) {
        *count.entry(entry.text.unwrap()).or_default() += 1;
    }
    assert!(count.len() == 80 && count.values().all(|times| *times == 1), "{count:?}");
    instance.stop().await;
}
