//! Read models made anew while the product serves, with whoever does the work killed on the way.

use botledger_sim::Person;
use serde_json::Value;
use sqlx::PgPool;

use crate::house::{House, Partners, Running, until};

const BOT: &str = "renewed_bot";
const WHY: [&str; 2] = ["--reason", "a test"];

async fn projection(house: &House, name: &str) -> Value {
    let rows: Value = serde_json::from_str(&house.told(&["projections", "list", "--json"]).await).unwrap();
    rows.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone()
}

async fn reaches(house: &House, name: &str, state: &str) {
    until(&format!("the rebuild of {name} is {state}"), async || {
        projection(house, name).await["rebuild"]["state"] == state
    })
    .await;
}

/// Turns beyond what people said, so that a rebuild takes more than a moment: the events of one turn again
/// and again, as other turns.
async fn lengthen(house: &House, times: i32) -> i64 {
    let sql = format!(
        "INSERT INTO events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata,
            position, recorded_at, leaf_hash)
         SELECT t.aggregate_type, md5(t.aggregate_id || n)::uuid::text, t.sequence, t.event_type, t.event_version,
                t.payload, t.metadata,
                head.at + row_number() OVER (ORDER BY n, t.position), head.moment, sha256('')
         FROM generate_series(1, {times}) AS n,
              (SELECT max(position) AS at, max(recorded_at) AS moment FROM events) AS head,
              (SELECT * FROM events WHERE aggregate_type = 'turn') AS t"
    );
    sqlx::query(&sql).execute(&house.pool).await.unwrap();
    sqlx::query_scalar("SELECT max(position) FROM events").fetch_one(&house.pool).await.unwrap()
}

async fn caught_up(house: &House, name: &str, head: i64) {
    until(&format!("{name} is at {head}"), async || {
        projection(house, name).await["position"].as_i64().unwrap() >= head
    })
    .await;
}

async fn projector(house: &House, name: &str) -> Running {
    let named = ("BOTLEDGER_INSTANCE__NAME", name);
    house.role("project", &[named, ("BOTLEDGER_READ_MODELS__LEASE_TTL_S", "1")]).await
}

#[sqlx::test(migrations = "../migrations")]
async fn a_rebuild_survives_the_death_of_everybody_who_works_on_it(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let product = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    house.telegram.say(BOT, &Person::number(4), "hello there").unwrap();
    house.all_ended(1).await;
    product.stop().await;
    let head = lengthen(&house, 8_000).await;
    let mut worker = projector(&house, "worker 0").await;
    caught_up(&house, "turns", head).await;
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM read.turns").fetch_one(&house.pool).await.unwrap();

    house.told(&["projections", "rebuild", "turns", "--detach", WHY[0], WHY[1]]).await;
    let mut seen = 0;
    for n in 1.. {
        until("the rebuild moves", async || {
            let rebuild = projection(&house, "turns").await["rebuild"].clone();
            rebuild["position"].as_i64().unwrap() > seen || rebuild["state"] != "filling"
        })
        .await;
        let rebuild = projection(&house, "turns").await["rebuild"].clone();
        seen = rebuild["position"].as_i64().unwrap();
        worker.kill().await;
        let served: i64 =
            sqlx::query_scalar("SELECT count(*) FROM read.turns").fetch_one(&house.pool).await.unwrap();
        assert_eq!(served, rows, "the old rows are served");
        worker = projector(&house, &format!("worker {n}")).await;
        if rebuild["state"] == "ready" {
            break;
        }
    }
    reaches(&house, "turns", "ready").await;
    let rebuild = projection(&house, "turns").await["rebuild"].clone();
    assert_eq!((&rebuild["different"], &rebuild["rows"]), (&0.into(), &rebuild["live_rows"]), "{rebuild}");
    let told = house.told(&["projections", "list"]).await;
    assert!(told.contains("turns: rebuild ready") && told.contains("0 differ"), "{told}");

    house.told(&["projections", "swap", "turns", WHY[0], WHY[1]]).await;
    house.assert_replay_agrees().await;
    let head = lengthen(&house, 10).await;
    caught_up(&house, "turns", head).await;
    house.told(&["projections", "rollback", "turns", WHY[0], WHY[1]]).await;
    caught_up(&house, "turns", head).await;
    house.assert_replay_agrees().await;
    let history: Value =
        serde_json::from_str(&house.told(&["projections", "history", "turns", "--json"]).await).unwrap();
    let done: Vec<&str> =
        history.as_array().unwrap().iter().map(|row| row["change"].as_str().unwrap()).collect();
    assert_eq!(done, ["started", "swapped", "rolled_back"]);
    assert_eq!((&history[1]["actor"], &history[1]["reason"]), (&"system:cli".into(), &"a test".into()));
    worker.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn an_operator_rebuilds_alone_at_the_command_line(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let product = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    house.telegram.say(BOT, &Person::number(4), "hello there").unwrap();
    house.all_ended(1).await;
    product.stop().await;
    sqlx::query("UPDATE read.turns SET chat_kind = 'channel'").execute(&house.pool).await.unwrap();

    let differs = house.run(&["projections", "rebuild", "turns", "--swap", WHY[0], WHY[1]]).await;
    assert_eq!(differs.status.code(), Some(1), "it is not swapped unseen");
    let told = String::from_utf8(differs.stdout).unwrap();
    assert!(told.contains("1 differ") && told.contains("turns live:") && told.contains("private"), "{told}");
    let refused = house.run(&["projections", "swap", "turns", WHY[0], WHY[1]]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("1 rows differ"), "{refused:?}");
    house.told(&["projections", "swap", "turns", "--accept-differences", WHY[0], WHY[1]]).await;
    house.assert_replay_agrees().await;
    let told = house.told(&["projections", "rebuild", "turns", "--swap", WHY[0], WHY[1]]).await;
    assert!(told.contains("turns is served from its rebuild"), "{told}");
    house.told(&["projections", "forget", "turns", WHY[0], WHY[1]]).await;
    let gone = house.run(&["projections", "rollback", "turns", WHY[0], WHY[1]]).await;
    assert!(String::from_utf8_lossy(&gone.stderr).contains("no previous rows of turns are kept"), "{gone:?}");
    let unknown = house.run(&["projections", "rebuild", "nonsense", WHY[0], WHY[1]]).await;
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no read model nonsense"));
    house.assert_replay_agrees().await;
}
