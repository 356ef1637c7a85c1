//! What operators and shells did and tried, as a file for people who keep files.

use std::fs;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use uuid::Uuid;

use crate::house::{House, Partners};

const BOT: &str = "watched_bot";

/// Everything so far happened an hour earlier: a report is of what is over.
async fn an_hour_passes(pool: &PgPool) {
    let mut tx = pool.begin().await.unwrap();
    for statement in [
        "SET LOCAL session_replication_role = replica",
        "UPDATE events SET recorded_at = recorded_at - interval '1 hour'",
        "UPDATE audit_log SET happened_at = happened_at - interval '1 hour'",
    ] {
        sqlx::query(statement).execute(&mut *tx).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// The cells of a line that RFC 4180 quotes nothing unusual in.
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut cell, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => cell.extend(letters.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(std::mem::take(&mut cell)),
            other => cell.push(other),
        }
    }
    cells.push(cell);
    cells
}

#[sqlx::test(migrations = "../migrations")]
async fn a_report_tells_who_did_and_tried_what_and_is_the_same_for_ever(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let product = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    house.told(&["bot", "stop", BOT, "--reason", "a test, \"quoted\""]).await;
    assert!(!house.run(&["bot", "start", "nobody_bot"]).await.status.success());
    let login = "mutation { sessionLogin(input: {login: \"owner\", password: \"guessed it\"}) { userErrors { code } } }";
    let api = format!("http://{}/graphql", house.listen);
    let link: Value = serde_json::from_str(&house.told(&["link", "--json"]).await).unwrap();
    let secret = link["link"].as_str().unwrap().split_once('#').unwrap().1;
    let activate = "mutation a($secret: String!) { sessionActivate(input: {secret: $secret, password: \"correct horse battery\"}) {
        userErrors { code } } }";
    let body = json!({ "query": activate, "variables": { "secret": secret } });
    let answer = reqwest::Client::new().post(&api).json(&body).send().await.unwrap().text().await.unwrap();
    assert!(answer.contains("\"userErrors\":[]"), "{answer}");
    let answer = reqwest::Client::new()
        .post(&api)
        .header("user-agent", "=HYPERLINK(\"http://evil.example\")")
        .json(&json!({ "query": login }))
        .send()
        .await
        .unwrap();
    assert!(answer.text().await.unwrap().contains("BAD_CREDENTIALS"));
    product.stop().await;
    an_hour_passes(&house.pool).await;

    let (from, to): (String, String) = sqlx::query_as(
        "SELECT to_char(t - interval '2 hours', f), to_char(t - interval '10 minutes', f)
         FROM (SELECT now() AT TIME ZONE 'UTC' AS t, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"' AS f) AS now",
    )
    .fetch_one(&house.pool)
    .await
    .unwrap();
    let report = async |format: &str, name: &str| {
        let period = ["audit", "report", "--all", "--from", &from, "--to", &to];
        let arguments = [&period[..], &["--format", format, "--out", name]].concat();
        house.told(&arguments).await;
        let text = fs::read_to_string(house.folder.join(name)).unwrap();
        let manifest = fs::read_to_string(house.folder.join(format!("{name}.manifest.json"))).unwrap();
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!(manifest["sha256"], hex::encode(Sha256::digest(&text)));
        (text, manifest)
    };
    let (csv, told) = report("csv", "one.csv").await;
    let (again, told_again) = report("csv", "two.csv").await;
    assert!(csv == again && told == told_again, "what is asked later is no part of the period");
    let mut rows = csv.split_terminator("\r\n").map(cells);
    let header = rows.next().unwrap();
    let rows: Vec<Vec<String>> = rows.collect();
    assert!(rows.iter().all(|row| row.len() == header.len()), "{csv}");
    let column = |name: &str| header.iter().position(|column| column == name).unwrap();
    let find = |kind: &str, what: &str| {
        let found = rows.iter().find(|row| row[column("kind")] == kind && row[column("what")] == what);
        found.unwrap_or_else(|| panic!("no {kind} {what} in {csv}"))
    };
    let (event, call) = (find("event", "bot_stopped"), find("call", "bot.stop"));
    assert_eq!((&*event[column("who")], &*event[column("outcome")]), ("system:cli", "done"));
    assert!(event[column("after")].contains("a test, \\\"quoted\\\""), "{event:?}");
    assert_eq!((&*call[column("who")], &*call[column("outcome")]), ("system:cli", "ok"));
    for shared in ["correlation_id", "instance"] {
        assert_eq!(event[column(shared)], call[column(shared)], "one errand of one process: {shared}");
    }
    assert!(call[column("after")].contains("\"uid\":"), "{call:?}");
    assert_eq!(find("call", "bot.start")[column("outcome")], "failed");
    let guess = find("call", "session.login");
    assert_eq!(guess[column("outcome")], "refused");
    assert_eq!(guess[column("user_agent")], "'=HYPERLINK(\"http://evil.example\")", "no formula");

    let (ndjson, told) = report("ndjson", "one.ndjson").await;
    let lines: Vec<Value> = ndjson.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), rows.len());
    let kinds = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).count();
    assert_eq!(
        (told["events"].as_u64(), told["calls"].as_u64()),
        (Some(kinds("event") as u64), Some(kinds("call") as u64))
    );
    assert!(lines.is_sorted_by_key(|line| line["time"].as_str().unwrap().to_owned()));
    for (from, to, says) in [
        (&*from, "2100-01-01T00:00:00Z", "--to has to be a minute ago or more"),
        (&*to, &*from, "--from has to be before --to"),
    ] {
        let output =
            house.run(&["audit", "report", "--all", "--from", from, "--to", to, "--out", "no.csv"]).await;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(says), "{error}");
    }
    assert!(!house.folder.join("no.csv").exists());
    let output =
        house.run(&["audit", "report", "--all", "--from", &from, "--to", &to, "--out", "one.csv"]).await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("one.csv is there already"), "{output:?}");
    assert!(fs::read_to_string(house.folder.join("one.csv")).unwrap() == csv);

    // One workspace's: its operators, and no shell.
    let (workspace, operator): (Uuid, Uuid) =
        sqlx::query_as("SELECT workspace, operator_id FROM operator_logins")
            .fetch_one(&house.pool)
            .await
            .unwrap();
    let of_one = async |id: &str, name: &str| -> Vec<Value> {
        let arguments =
            ["audit", "report", "--workspace", id, "--from", &from, "--to", &to, "--format", "ndjson"];
        house.told(&[&arguments[..], &["--out", name]].concat()).await;
        let text = fs::read_to_string(house.folder.join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let own = of_one(&format!("workspace:{workspace}"), "own.ndjson").await;
    assert!(own.iter().any(|row| row["kind"] == "event") && own.iter().any(|row| row["kind"] == "call"));
    for row in &own {
        assert_eq!(
            (&row["workspace"], &row["who"]),
            (&json!(workspace), &json!(format!("operator:{operator}")))
        );
    }
    assert!(of_one(&Uuid::now_v7().to_string(), "nobody.ndjson").await.is_empty());

    // What carries something off is noted before it begins, and again when it has ended.
    let noted: Vec<(String, Value)> = sqlx::query_as(
        "SELECT outcome, detail FROM audit_log WHERE action = 'audit.report' ORDER BY id LIMIT 2",
    )
    .fetch_all(&house.pool)
    .await
    .unwrap();
    assert_eq!((&*noted[0].0, &*noted[1].0), ("begun", "ok"));
    assert_eq!(noted[1].1["sha256"], hex::encode(Sha256::digest(&csv)));
}
