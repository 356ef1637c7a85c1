//! An auditor's hour: signed heads kept elsewhere, proofs that a program not ours verifies, and a
//! superuser at the tables.

use std::fs;
use std::process::Command;

use botledger_sim::Person;
use serde_json::Value;
use sqlx::PgPool;

use crate::house::{House, Partners, until};

const BOT: &str = "proven_bot";
const VERIFIER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/product/verify_export.py");

/// The verifier in Python, which shares no line with the product.
fn elsewhere(house: &House, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("python3");
    let output = command.arg(VERIFIER).args(arguments).current_dir(&house.folder).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[sqlx::test(migrations = "../migrations")]
async fn an_auditor_trusts_nobody_and_finds_what_a_superuser_changed(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let product = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    house.telegram.say(BOT, &Person::number(4), "hello there").unwrap();
    house.all_ended(1).await;
    until("a head was signed by the product itself", async || {
        let heads: i64 =
            sqlx::query_scalar("SELECT count(*) FROM log_checkpoints").fetch_one(&house.pool).await.unwrap();
        heads > 0
    })
    .await;
    let first = house.told(&["audit", "checkpoint"]).await;
    fs::write(house.folder.join("kept"), &first).unwrap();
    house.telegram.say(BOT, &Person::number(5), "hello again").unwrap();
    house.all_ended(2).await;
    product.stop().await;

    let second = house.told(&["audit", "checkpoint"]).await;
    let size = |note: &str| note.lines().nth(1).unwrap().to_owned();
    let (old, new) = (size(&first), size(&second));
    assert_ne!(old, new);
    assert!(second.starts_with("ledger.example\n"), "{second}");
    let consistency = house.told(&["audit", "consistency", &old, &new]).await;
    assert!(consistency.starts_with(&format!("old {old}\n")) && consistency.ends_with(&second));
    house.told(&["audit", "export", "out"]).await;
    for (position, under) in [("1", &new), ("7", &new), (&old, &old)] {
        let proof = house.told(&["audit", "prove", position, "--under", under]).await;
        fs::write(house.folder.join(format!("{position}.tlog-proof")), proof).unwrap();
    }
    let last = format!("{old}.tlog-proof");
    let verified = elsewhere(&house, &["out", "1.tlog-proof", "7.tlog-proof", &last]);
    assert_eq!(verified, Ok(format!("{new} events verified\n")));
    let told = house.told(&["audit", "verify", "--checkpoint", "kept"]).await;
    assert!(told.contains("nothing differs"), "{told}");

    let leaves = fs::read_to_string(house.folder.join("out/leaves.ndjson")).unwrap();
    fs::write(
        house.folder.join("out/leaves.ndjson"),
        leaves.replacen("hello", "hellO", 1).replacen("bot_", "boT_", 1),
    )
    .unwrap();
    assert!(elsewhere(&house, &["out"]).unwrap_err().contains("NOT verified"));

    let mut tx = house.pool.begin().await.unwrap();
    for statement in [
        "SET LOCAL session_replication_role = replica",
        "UPDATE events SET payload = replace(payload::text, ':', ': ')::json WHERE position = 5",
    ] {
        sqlx::query(statement).execute(&mut *tx).await.unwrap();
    }
    tx.commit().await.unwrap();
    let key = house.told(&["audit", "key"]).await;
    let found = house.run(&["audit", "verify", "--json", "--checkpoint", "kept", "--key", key.trim()]).await;
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let verdict: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(verdict["verdict"]["findings"][0], serde_json::json!({"kind": "changed", "position": 5}));
}
