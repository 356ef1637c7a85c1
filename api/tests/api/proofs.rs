//! Proofs by GraphQL: the files that the command line prints, for events of the own workspace only.

use botledger_domain::{merkle, operator::Role};
use botledger_journal::audit::{
    Algorithm, ConsistencyProof, InclusionProof, LogKeys, Signed, SignedNote, Signer, StoredCheckpoint,
};
use chrono::DateTime;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Platform, code_of};

fn keys() -> LogKeys {
    LogKeys::new(Signer::new("ledger.example", &[42; 32], Algorithm::Ed25519).unwrap(), Vec::new()).unwrap()
}

async fn sign(platform: &Platform) -> StoredCheckpoint {
    match platform.app.tree.sign(&keys(), None, DateTime::UNIX_EPOCH).await.unwrap() {
        Signed::New(stored) => stored,
        other => panic!("nothing was signed: {other:?}"),
    }
}

const INCLUSION: &str = "query($at: Position!, $size: Position) {
    event(position: $at) { leafHash } inclusionProof(position: $at, size: $size) { leafIndex hashes text checkpoint { size } } }";

#[sqlx::test(migrations = "../migrations")]
async fn proofs_hold_and_are_those_of_the_own_workspace(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (one, other) = (platform.tenant("one").await, platform.tenant("other").await);
    let auditor = platform.token_as(&one, Role::Auditor).await;
    let none = platform.data(&auditor, "{ checkpoint { size } }", Value::Null).await;
    assert_eq!(none, json!({"checkpoint": null}));
    platform.bot(&one, 1).await;
    let old = sign(&platform).await;
    platform.bot(&other, 2).await;
    platform.bot(&one, 3).await;
    platform.settle().await;
    let new = sign(&platform).await;
    let (from, to) = (old.checkpoint.size.to_string(), new.checkpoint.size.to_string());

    let told =
        platform.data(&auditor, "{ checkpoint { origin size rootHash note signedAt } }", Value::Null).await;
    let note: SignedNote = told["checkpoint"]["note"].as_str().unwrap().parse().unwrap();
    assert!(note == new.note && note.verify(keys().known()).is_ok());
    assert_eq!(told["checkpoint"]["rootHash"], hex::encode(new.checkpoint.root));
    assert_eq!(
        (&told["checkpoint"]["origin"], &told["checkpoint"]["size"]),
        (&json!("ledger.example"), &json!(to))
    );

    let own: Vec<i64> = sqlx::query_scalar(
        "SELECT position FROM events WHERE payload->>'workspace' = $1 AND event_type = 'bot_registered'",
    )
    .bind(one.workspace.to_string())
    .fetch_all(&platform.pool)
    .await
    .unwrap();
    for at in &own {
        let told = platform.data(&auditor, INCLUSION, json!({"at": at.to_string()})).await;
        let proof: InclusionProof = told["inclusionProof"]["text"].as_str().unwrap().parse().unwrap();
        let leaf: Vec<u8> = hex::decode(told["event"]["leafHash"].as_str().unwrap()).unwrap();
        assert!(proof.holds(&leaf.try_into().unwrap()).unwrap());
        assert_eq!(told["inclusionProof"]["leafIndex"], (at - 1).to_string());
        assert_eq!(told["inclusionProof"]["checkpoint"]["size"], to);
    }
    let theirs: i64 = sqlx::query_scalar(
        "SELECT position FROM events WHERE payload->>'workspace' = $1 AND event_type = 'bot_registered'",
    )
    .bind(other.workspace.to_string())
    .fetch_one(&platform.pool)
    .await
    .unwrap();
    let beyond = new.checkpoint.size + 1;
    for (at, size, code) in [
        (theirs.to_string(), Value::Null, "NOT_FOUND"),
        (beyond.to_string(), Value::Null, "NOT_FOUND"),
        ("0".to_owned(), Value::Null, "NOT_FOUND"),
        (own[0].to_string(), json!("3000"), "NOT_FOUND"),
        (own[1].to_string(), json!(from), "BAD_INPUT"),
    ] {
        let answer = platform.post(Some(&auditor), INCLUSION, json!({"at": at, "size": size})).await;
        assert_eq!(code_of(&answer.json()), code, "event {at} under {size}");
    }

    let query = "query($from: Position!, $to: Position) {
        consistencyProof(from: $from, to: $to) { hashes text old { size } new { size } } }";
    let told = platform.data(&auditor, query, json!({"from": from})).await;
    let proof: ConsistencyProof = told["consistencyProof"]["text"].as_str().unwrap().parse().unwrap();
    assert!(merkle::verify_consistency(
        old.checkpoint.size,
        &old.checkpoint.root,
        new.checkpoint.size,
        &new.checkpoint.root,
        &proof.hashes,
    ));
    assert_eq!(told["consistencyProof"]["old"]["size"], from);
    let backwards = platform.post(Some(&auditor), query, json!({"from": to, "to": from})).await;
    assert_eq!(code_of(&backwards.json()), "BAD_INPUT");
}
