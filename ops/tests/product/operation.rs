//! Starting, stopping, health, metrics and what happens when a partner is away.

use botledger_ops::cli::up::free_address;
use botledger_sim::Person;
use sqlx::PgPool;

use crate::house::{House, Partners, until};

const BOT: &str = "steady_bot";

#[sqlx::test(migrations = "../migrations")]
async fn a_stopped_product_finishes_what_it_began_and_goes_on_later(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let mut product = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    let said: Vec<(Person, String)> =
        (1..=40).map(|n| (Person::number(n * 4), format!("text {n}"))).collect();
    for (person, text) in &said {
        house.telegram.say(BOT, person, text).unwrap();
    }
    until("some answers are out", async || house.sends().len() > 3).await;
    product.signal("TERM");
    // Whoever sends people here learns that it takes nothing new; or it was faster than we could ask.
    let url = format!("http://{}/readyz", house.admin);
    until("it is not ready any more", async || {
        !reqwest::get(&url).await.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    assert!(product.ended().await.success());
    let log = house.log();
    assert!(log.contains("finishing what was begun") && log.contains("stopped"), "{log}");

    let product = house.serve(&[]).await;
    house.all_ended(said.len() as i64).await;
    for (text, messages) in house.answers(BOT, &said) {
        assert_eq!(messages.len(), 1, "{text}");
    }
    product.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn health_and_metrics_are_told_on_the_admin_port_only(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let product = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    house.telegram.say(BOT, &Person::number(4), "hello").unwrap();
    house.all_ended(1).await;

    let admin = |path: &str| format!("http://{}{path}", house.admin);
    let alive = reqwest::get(admin("/livez")).await.unwrap();
    assert_eq!(alive.status(), 200);
    let ready: serde_json::Value = reqwest::get(admin("/readyz")).await.unwrap().json().await.unwrap();
    assert_eq!(ready["ready"], true);
    let metrics = async || reqwest::get(admin("/metrics")).await.unwrap().text().await.unwrap();
    for metric in [
        "botledger_updates_total{outcome=\"accepted\"} 1",
        "botledger_turn_stage_seconds_bucket{stage=\"gate\"",
        "botledger_turn_stage_seconds_count{stage=\"total\"} 1",
        "botledger_journal_appended_total",
        "botledger_projection_lag_events",
        "botledger_queue_depth",
        "botledger_gate_decisions_total",
    ] {
        // Some are looked at every few seconds only.
        until(&format!("{metric} is told"), async || metrics().await.contains(metric)).await;
    }
    let metrics = metrics().await;
    // Prometheus' own rules: every family says what it means, counters end in _total.
    for line in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(metrics.contains(&format!("# HELP {name} ")), "{name} does not say what it means");
        assert!(kind != "counter" || name.ends_with("_total"), "{name} is a counter");
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        let public = reqwest::get(format!("http://{}{path}", house.listen)).await.unwrap();
        assert_eq!(public.status(), 404, "{path} is not for the public");
    }
    let page = reqwest::get(format!("http://{}/", house.listen)).await.unwrap();
    assert_eq!(page.headers()["x-botledger-simulated"], "telegram, model", "the product says what is played");
    product.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn log_lines_carry_correlation_ids_as_json(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let product = house.serve(&[("BOTLEDGER_LOG__FORMAT", "json")]).await;
    house.open_with_bot(BOT).await;
    product.stop().await;
    let log = house.log();
    for line in log.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(line["timestamp"].is_string() && line["level"].is_string() && line["message"].is_string());
    }
    assert!(log.contains("\"bot.id\""), "{log}");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_lost_redis_costs_time_and_no_answer(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    // Nobody listens there: the product has to do without from the start.
    let away = ("BOTLEDGER_REDIS__URL", "redis://127.0.0.1:1");
    let product = house.serve(&[away]).await;
    house.open_with_bot(BOT).await;
    let said: Vec<(Person, String)> =
        (1..=10).map(|n| (Person::number(n * 4), format!("text {n}"))).collect();
    for (person, text) in &said {
        house.telegram.say(BOT, person, text).unwrap();
    }
    house.all_ended(10).await;
    for (text, messages) in house.answers(BOT, &said) {
        assert_eq!(messages.len(), 1, "{text}");
    }
    let url = format!("http://{}/readyz", house.admin);
    let ready: serde_json::Value = reqwest::get(url).await.unwrap().json().await.unwrap();
    assert!(ready.to_string().contains("it is away"), "{ready}");
    product.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn two_products_share_the_fleet_and_one_takes_over(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let first = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    let (listen, admin) = (free_address().unwrap(), free_address().unwrap());
    let second =
        house.start(&[("BOTLEDGER_HTTP__LISTEN", &listen), ("BOTLEDGER_HTTP__ADMIN_LISTEN", &admin)]);
    until("the second is ready", async || {
        reqwest::get(format!("http://{admin}/readyz")).await.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    let said: Vec<(Person, String)> =
        (1..=30).map(|n| (Person::number(n * 4), format!("text {n}"))).collect();
    for (person, text) in &said[..15] {
        house.telegram.say(BOT, person, text).unwrap();
    }
    until("some answers are out", async || house.sends().len() > 3).await;
    first.kill().await;
    for (person, text) in &said[15..] {
        house.telegram.say(BOT, person, text).unwrap();
    }
    house.all_ended(30).await;
    for (text, messages) in house.answers(BOT, &said) {
        assert!((1..=2).contains(&messages.len()), "{text}: {}", messages.len());
    }
    house.assert_replay_agrees().await;
    second.stop().await;
}
