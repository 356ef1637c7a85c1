//! Many processes of every role against one database: any of them may die.

use std::collections::BTreeMap;

use botledger_sim::Person;
use serde_json::Value;
use sqlx::PgPool;

use crate::house::{House, Partners, Running, until};

const BOT: &str = "shared_bot";

/// Which processes run read models, by name, and how many each.
async fn holders(house: &House) -> BTreeMap<String, usize> {
    let status: Value =
        serde_json::from_str(&house.told(&["projections", "status", "--json"]).await).unwrap();
    let mut holders = BTreeMap::new();
    for holder in status.as_array().unwrap().iter().filter_map(|row| row["holder"].as_str()) {
        *holders.entry(holder.to_owned()).or_default() += 1;
    }
    holders
}

async fn shared_by(house: &House, names: &[&str]) {
    until(&format!("{names:?} share the read models"), async || {
        let holders = holders(house).await;
        holders.len() == names.len()
            && names.iter().all(|name| holders.contains_key(*name))
            && holders.values().max().unwrap() - holders.values().min().unwrap() <= 1
    })
    .await;
}

/// A process that only keeps read models. It is given no key.
async fn projector(house: &House, name: &str) -> Running {
    house
        .role(
            "project",
            &[
                ("BOTLEDGER_INSTANCE__NAME", name),
                ("BOTLEDGER_READ_MODELS__LEASE_TTL_S", "1"),
                ("BOTLEDGER_KEYS__MASTER_KEY", ""),
                ("BOTLEDGER_KEYS__PSEUDONYM_KEY", ""),
                ("BOTLEDGER_AUTH__JWT_KEY", ""),
            ],
        )
        .await
}

fn say(house: &House, people: std::ops::Range<i64>) -> Vec<(Person, String)> {
    let said: Vec<(Person, String)> = people.map(|n| (Person::number(n * 4), format!("text {n}"))).collect();
    for (person, text) in &said {
        house.telegram.say(BOT, person, text).unwrap();
    }
    said
}

#[sqlx::test(migrations = "../migrations")]
async fn read_models_survive_the_death_of_those_who_keep_them(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let api = house.role("serve --only-api", &[]).await;
    let worker = house.role("worker", &[]).await;
    let first = projector(&house, "first").await;
    house.open_with_bot(BOT).await;
    let second = projector(&house, "second").await;
    let third = projector(&house, "third").await;
    shared_by(&house, &["first", "second", "third"]).await;

    let mut said = say(&house, 1..25);
    house.all_ended(8).await;
    first.kill().await;
    said.extend(say(&house, 25..50));
    shared_by(&house, &["second", "third"]).await;
    // Paused and not dead: it goes on later, with what it thinks it still holds.
    second.signal("STOP");
    said.extend(say(&house, 50..75));
    shared_by(&house, &["third"]).await;
    house.all_ended(said.len() as i64).await;
    house.assert_replay_agrees().await;
    second.signal("CONT");
    said.extend(say(&house, 75..100));
    shared_by(&house, &["second", "third"]).await;
    third.kill().await;
    house.all_ended(said.len() as i64).await;
    shared_by(&house, &["second"]).await;

    for (text, messages) in house.answers(BOT, &said) {
        assert_eq!(messages.len(), 1, "{text}");
    }
    let turns: i64 =
        sqlx::query_scalar("SELECT count(*) FROM read.turns").fetch_one(&house.pool).await.unwrap();
    assert_eq!(turns, said.len() as i64);
    house.assert_ledger_is_gapless().await;
    house.assert_replay_agrees().await;
    second.stop().await;
    assert_eq!(holders(&house).await, BTreeMap::new(), "what is stopped gives back what it held");
    worker.stop().await;
    api.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_worker_answers_for_another_that_died(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let projector = projector(&house, "first").await;
    let first = house.role("worker", &[]).await;
    house.open_with_bot(BOT).await;
    let second = house.role("worker", &[]).await;
    let mut said = say(&house, 1..20);
    until("some answers are out", async || house.sends().len() > 3).await;
    first.kill().await;
    said.extend(say(&house, 20..40));
    house.all_ended(said.len() as i64).await;
    for (text, messages) in house.answers(BOT, &said) {
        assert!((1..=2).contains(&messages.len()), "{text}: {}", messages.len());
    }
    house.assert_ledger_is_gapless().await;
    house.assert_replay_agrees().await;
    second.stop().await;
    projector.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn each_role_listens_for_what_it_does_and_no_more(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let projector = projector(&house, "first").await;
    let worker = house.role("worker", &[]).await;
    let ready: Value =
        reqwest::get(format!("http://{}/readyz", projector.admin)).await.unwrap().json().await.unwrap();
    let names: Vec<&str> =
        ready["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["process", "database", "read_models"], "a projector has nothing to do with Redis");
    assert!(reqwest::get(format!("http://{}/", house.listen)).await.is_err(), "nobody serves the API");
    let metrics = async || {
        reqwest::get(format!("http://{}/metrics", projector.admin)).await.unwrap().text().await.unwrap()
    };
    until("it is told what it holds", async || {
        metrics().await.contains("botledger_projection_held{projection=\"turns\"} 1")
    })
    .await;
    let api = house.role("serve --only-api", &[]).await;
    assert_eq!(reqwest::get(format!("http://{}/", house.listen)).await.unwrap().status(), 200);
    for process in [api, worker, projector] {
        process.stop().await;
    }
}
