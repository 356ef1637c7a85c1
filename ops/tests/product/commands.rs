//! The command line: what it prints, and what it says about bad input.

use std::fs;

use botledger_sim::Person;
use serde_json::Value;
use sqlx::PgPool;

use crate::house::{House, Partners, until};

const BOT: &str = "spoken_bot";

fn refusal(output: &std::process::Output) -> String {
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[sqlx::test(migrations = "../migrations")]
async fn read_commands_speak_json(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let product = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    house.telegram.say(BOT, &Person::number(4), "hello there").unwrap();
    house.all_ended(1).await;

    let bots: Value = serde_json::from_str(&house.told(&["bot", "list", "--json"]).await).unwrap();
    assert_eq!((&bots[0]["username"], &bots[0]["status"]), (&BOT.into(), &"running".into()));
    let status: Value =
        serde_json::from_str(&house.told(&["projections", "status", "--json"]).await).unwrap();
    assert!(status.as_array().unwrap().iter().all(|row| row["status"] == "running"), "{status}");
    let events = house.told(&["events", "--stream", "turn", "--json", "--limit", "0"]).await;
    let types: Vec<String> = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        types,
        ["message_received", "message_scored", "turn_admitted", "reply_generated", "reply_delivered"]
    );
    let newest = house.told(&["events", "--newest", "--limit", "1", "--type", "reply_delivered"]).await;
    assert!(newest.contains("reply_delivered") && newest.lines().count() == 1, "{newest}");
    house.told(&["bot", "stop", BOT, "--reason", "a test"]).await;
    until("the stop is shown", async || {
        let bots: Value = serde_json::from_str(&house.told(&["bot", "list", "--json"]).await).unwrap();
        bots[0]["status"] == "stopped"
    })
    .await;
    product.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_changed_row_is_found_and_repaired_by_replay(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let product = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    house.telegram.say(BOT, &Person::number(4), "hello there").unwrap();
    house.all_ended(1).await;
    house.assert_replay_agrees().await;
    sqlx::query("UPDATE read.quotas SET reserved_money = reserved_money + 1")
        .execute(&house.pool)
        .await
        .unwrap();
    let verified = house.run(&["replay", "quotas", "--verify"]).await;
    assert_eq!(verified.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&verified.stdout).contains("1 rows DIFFER"), "{verified:?}");
    house.told(&["replay", "quotas"]).await;
    house.assert_replay_agrees().await;
    product.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn sim_say_shows_the_answer_and_sim_feed_names_a_bad_line(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let product = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    let answer = house.told(&["sim", "say", BOT, "how are you"]).await;
    assert!(answer.contains("You wrote: \"how are you\""), "{answer}");
    let file = house.folder.join("feed.jsonl");
    fs::write(&file, "{\"text\":\"one\"}\n{\"nothing\":1}\n").unwrap();
    let error = refusal(&house.run(&["sim", "feed", file.to_str().unwrap()]).await);
    assert!(error.contains("feed.jsonl line 2") && error.contains("neither an update nor a text"), "{error}");
    fs::write(&file, "{\"text\":\"one\"}\n{\"text\":\"two\"}\n").unwrap();
    let told: Value =
        serde_json::from_str(&house.told(&["sim", "feed", file.to_str().unwrap(), "--json"]).await).unwrap();
    assert_eq!(told, serde_json::json!({"texts": 2, "updates": 0}));
    house.all_ended(3).await;
    product.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn an_address_is_let_in_and_given_a_pace(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let product = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    let told = house.told(&["address", "allow", "192.0.2.77/24", "--reason", "the office moved"]).await;
    assert!(told.starts_with("192.0.2.0/24 is let into workspace "), "{told}");
    let pace = ["address", "pace", "2001:db8::9", "--burst", "5", "--per-minute", "60", "--hours", "1"];
    let told = house.told(&pace).await;
    assert_eq!(told.trim(), "2001:db8:: may ask 5 times at once and 60 times a minute");
    let told = house.told(&["address", "pace", "2001:db8::9", "--ordinary"]).await;
    assert_eq!(told.trim(), "2001:db8:: may ask as often as everybody");
    let recorded = house.told(&["events", "--json", "--limit", "0", "--stream", "rate_override"]).await;
    assert_eq!(recorded.lines().count(), 2, "{recorded}");
    for (arguments, says) in [
        (&["address", "allow", "nowhere"][..], "the network may hold only an address"),
        (&["address", "allow", "192.0.2.1", "--workspace", "mine"], "--workspace is no id"),
        (&["address", "pace", "192.0.2.1", "--burst", "0", "--per-minute", "1"], "out of range"),
        (&["address", "pace", "192.0.2.1"], "--burst"),
    ] {
        let error = refusal(&house.run(arguments).await);
        assert!(error.contains(says), "{arguments:?}: {error}");
    }
    product.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_bad_token_and_an_unknown_bot_are_named(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let product = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    let file = house.folder.join("token");
    for (token, says) in [
        ("nonsense", "not the shape of a bot token"),
        ("123456789:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "does not accept this token"),
    ] {
        fs::write(&file, token).unwrap();
        let error = refusal(&house.run(&["bot", "register", "--token-file", file.to_str().unwrap()]).await);
        assert!(error.contains(says) && !error.contains(token), "{error}");
    }
    let error = refusal(&house.run(&["bot", "start", "nobody_bot"]).await);
    assert!(error.contains("there is no bot nobody_bot"), "{error}");
    let error = refusal(&house.run(&["replay", "nothing"]).await);
    assert!(error.contains("there is no read model nothing; there are access_lists, bots"), "{error}");
    let error = refusal(&house.run(&["events", "--stream", "nothing"]).await);
    assert!(error.contains("there are no streams of type nothing"), "{error}");
    let error = refusal(&house.run(&["events", "--type", "nothing_happened"]).await);
    assert!(error.contains("there are no events of type nothing_happened"), "{error}");
    product.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_wrong_setting_or_a_foreign_database_stops_the_start(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let ends = async |extra: &[(&str, &str)]| {
        let mut product = house.start(extra);
        assert!(!product.ended().await.success());
        let log = house.log();
        assert!(!log.contains("panicked") && !log.contains("only-for-tests"), "{log}");
        log
    };
    let log = ends(&[("BOTLEDGER_HTTP__LISTENS", "127.0.0.1:1")]).await;
    assert!(log.contains("http.listens") && log.contains("http.listen"), "{log}");
    let log = ends(&[("BOTLEDGER_TELEGRAM__POLL_TIMEOUT_S", "51")]).await;
    assert!(log.contains("telegram.poll_timeout_s is 51, must be 0 to 50"), "{log}");
    let log = ends(&[("BOTLEDGER_KEYS__MASTER_KEY", "short")]).await;
    assert!(log.contains("keys.master_key is not"), "{log}");
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99990101000000, 'from the future', true, '', 0)",
    )
    .execute(&house.pool)
    .await
    .unwrap();
    let log = ends(&[]).await;
    assert!(log.contains("migrated by a newer botledger"), "{log}");
}
