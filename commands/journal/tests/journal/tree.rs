//! Signed heads, proofs, and what is found after somebody with every right has been at the tables.

use botledger_domain::merkle;
use botledger_journal::audit::{
    Algorithm, Checkpoint, Finding, InclusionProof, LogTree, Signed, SignedNote, Signer, StoredCheckpoint,
    TreeError, Verdict, Witnessed, consistency_text,
};
use sqlx::{PgConnection, PgPool};

use crate::support::{journal, ledger, noon, set_on, stream, take_back};

const ORIGIN: &str = "ledger.example";

fn signer() -> Signer {
    Signer::new(ORIGIN, &[42; 32], Algorithm::Ed25519).unwrap()
}

async fn append(pool: &PgPool, events: usize) {
    let journal = journal(pool);
    journal.append(set_on(stream(), 0, events)).await.unwrap();
    journal.close().await;
}

async fn sign(pool: &PgPool) -> StoredCheckpoint {
    match LogTree::new(pool.clone()).sign(&signer(), noon()).await.unwrap() {
        Signed::New(stored) => stored,
        other => panic!("nothing was signed: {other:?}"),
    }
}

async fn verify(pool: &PgPool, kept: &[&StoredCheckpoint]) -> Verdict {
    let keys = [signer().verifier().clone()];
    let kept = kept.iter().map(|stored| Witnessed {
        checkpoint: stored.checkpoint.clone(),
        kept: "the auditor's copy".to_owned(),
    });
    let tree = LogTree::new(pool.clone());
    tree.verify(&keys, Some(ORIGIN), kept.collect(), |_, _| {}).await.unwrap()
}

/// What a superuser can do: no trigger fires.
async fn tamper(pool: &PgPool, statements: &[&str]) {
    let mut tx = pool.begin().await.unwrap();
    let connection: &mut PgConnection = &mut tx;
    sqlx::query("SET LOCAL session_replication_role = replica").execute(&mut *connection).await.unwrap();
    for statement in statements {
        sqlx::query(statement).execute(&mut *connection).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// Makes the stored leaf hashes those of the bytes.
const REHASH: &str = "UPDATE events SET leaf_hash = event_leaf_hash(position,
    (extract(epoch FROM recorded_at) * 1000000)::bigint, sequence, aggregate_type, aggregate_id, event_type,
    event_version, payload::text, metadata::text)";

#[sqlx::test(migrations = "../../migrations")]
async fn heads_follow_the_ledger_and_what_they_say_can_be_proved(pool: PgPool) {
    let tree = LogTree::new(pool.clone());
    assert!(matches!(tree.sign(&signer(), noon()).await.unwrap(), Signed::Unchanged(None)));
    let mut heads = Vec::new();
    for events in [1, 254, 1, 1, 300] {
        append(&pool, events).await;
        heads.push(sign(&pool).await);
        assert!(matches!(tree.sign(&signer(), noon()).await.unwrap(), Signed::Unchanged(Some(_))));
    }
    let newest = tree.newest().await.unwrap().unwrap();
    assert_eq!(newest.checkpoint.size, 557);
    let keys = [signer().verifier().clone()];
    let events = ledger(&pool).await;
    for position in [1, 2, 255, 256, 257, 512, 513, 557] {
        let proof = tree.prove(position, &newest).await.unwrap();
        let read: InclusionProof = proof.to_string().parse().unwrap();
        assert_eq!(read.checkpoint.verify(&keys).unwrap()[0].name, ORIGIN);
        assert!(read.holds(&events[position as usize - 1].leaf().hash()).unwrap(), "{position}");
        assert!(!read.holds(&events[position as usize % 557].leaf().hash()).unwrap(), "{position}");
    }
    for old in &heads {
        let hashes = tree.consistency(&old.checkpoint, &newest.checkpoint).await.unwrap();
        let Checkpoint { size, root, .. } = &newest.checkpoint;
        assert!(merkle::verify_consistency(old.checkpoint.size, &old.checkpoint.root, *size, root, &hashes));
        assert!(consistency_text(old.checkpoint.size, &hashes, &newest.note).starts_with("old "));
    }
    for position in [0, 558] {
        assert!(matches!(tree.prove(position, &newest).await, Err(TreeError::NoSuchEvent { .. })));
    }
    let verdict = verify(&pool, &[&heads[0]]).await;
    assert!(verdict.holds(), "{verdict:?}");
    assert_eq!((verdict.events, verdict.checkpoints), (557, 6));
}

#[sqlx::test(migrations = "../../migrations")]
async fn one_changed_byte_is_found_at_its_position(pool: PgPool) {
    append(&pool, 300).await;
    sign(&pool).await;
    tamper(
        &pool,
        &["UPDATE events SET metadata = replace(metadata::text, '\"test\"', '\"tesT\"')::json WHERE position = 77"],
    )
    .await;
    assert_eq!(verify(&pool, &[]).await.findings, [Finding::Changed { position: 77 }]);
}

#[sqlx::test(migrations = "../../migrations")]
async fn two_swapped_events_are_found_with_and_without_their_hashes(pool: PgPool) {
    // The events at 10 and 20 are streams of their own.
    for events in [9, 1, 9, 1, 280] {
        append(&pool, events).await;
    }
    sign(&pool).await;
    let swap = [
        "UPDATE events SET position = 1000000 WHERE position = 10",
        "UPDATE events SET position = 10 WHERE position = 20",
        "UPDATE events SET position = 20 WHERE position = 1000000",
    ];
    tamper(&pool, &swap).await;
    assert_eq!(
        verify(&pool, &[]).await.findings[..2],
        [Finding::Changed { position: 10 }, Finding::Changed { position: 20 }]
    );
    tamper(&pool, &[REHASH]).await;
    let verdict = verify(&pool, &[]).await;
    assert!(matches!(verdict.findings[..], [Finding::Rewritten { from: 10, upto: 10, .. }]), "{verdict:?}");
}

#[sqlx::test(migrations = "../../migrations")]
async fn history_written_anew_is_found_by_the_tree_or_between_two_heads(pool: PgPool) {
    append(&pool, 280).await;
    sign(&pool).await;
    append(&pool, 10).await;
    let kept = sign(&pool).await;
    let rewrite = "UPDATE events SET event_version = '1.1' WHERE position = 285";
    tamper(&pool, &[rewrite, REHASH]).await;
    let verdict = verify(&pool, &[]).await;
    assert!(matches!(verdict.findings[..], [Finding::Rewritten { from: 281, upto: 290, .. }]), "{verdict:?}");
    append(&pool, 1).await;
    let tree = LogTree::new(pool.clone());
    assert!(matches!(tree.sign(&signer(), noon()).await, Err(TreeError::Rewritten { size: 290 })));
    assert!(matches!(tree.prove(1, &kept).await, Err(TreeError::Rewritten { .. })));
    // With the heads and tiles gone as well, and new ones signed, only a copy elsewhere knows better.
    tamper(&pool, &["DELETE FROM log_checkpoints", "DELETE FROM log_tiles"]).await;
    sign(&pool).await;
    assert!(verify(&pool, &[]).await.holds());
    let verdict = verify(&pool, &[&kept]).await;
    assert!(
        matches!(&verdict.findings[..], [Finding::Rewritten { from: 1, upto: 290, signed }] if signed.contains("auditor")),
        "{verdict:?}"
    );
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_ledger_that_was_cut_off_or_has_a_hole_is_found(pool: PgPool) {
    append(&pool, 20).await;
    let kept = sign(&pool).await;
    take_back(&pool, 15).await;
    let verdict = verify(&pool, &[]).await;
    assert!(matches!(verdict.findings[..], [Finding::Truncated { head: 15, size: 20, .. }]), "{verdict:?}");
    let tree = LogTree::new(pool.clone());
    let refused = tree.sign(&signer(), noon()).await;
    assert!(matches!(refused, Err(TreeError::Truncated { head: 15, size: 20 })), "{refused:?}");
    tamper(&pool, &["DELETE FROM log_checkpoints"]).await;
    assert!(verify(&pool, &[]).await.holds());
    assert!(!verify(&pool, &[&kept]).await.holds());
    tamper(&pool, &["DELETE FROM events WHERE position = 7"]).await;
    assert_eq!(verify(&pool, &[]).await.findings, [Finding::Gap { position: 7, next: 8 }]);
    assert!(matches!(tree.sign(&signer(), noon()).await, Err(TreeError::Missing { level: 0, number: 6 })));
}

#[sqlx::test(migrations = "../../migrations")]
async fn heads_of_another_key_and_a_damaged_tree_are_told_apart_from_the_ledger(pool: PgPool) {
    append(&pool, 600).await;
    let stored = sign(&pool).await;
    let refused = sqlx::query("DELETE FROM log_checkpoints").execute(&pool).await.unwrap_err();
    assert!(refused.to_string().contains("append-only"), "{refused}");

    let thief = Signer::new(ORIGIN, &[43; 32], Algorithm::Ed25519).unwrap();
    let forged = SignedNote::sign(stored.checkpoint.to_string(), &thief, 0).unwrap();
    tamper(&pool, &[&format!("UPDATE log_checkpoints SET note = '{forged}'")]).await;
    let verdict = verify(&pool, &[]).await;
    assert!(matches!(verdict.findings[..], [Finding::Checkpoint { size: 600, .. }]), "{verdict:?}");

    tamper(&pool, &[&format!("UPDATE log_checkpoints SET note = '{}'", stored.note)]).await;
    tamper(
        &pool,
        &["UPDATE log_tiles SET leaves = set_byte(leaves, 40, get_byte(leaves, 40) # 1) WHERE number = 1"],
    )
    .await;
    assert_eq!(verify(&pool, &[]).await.findings, [Finding::Tile { level: 0, position: 258 }]);
    tamper(&pool, &["DELETE FROM log_tiles"]).await;
    let tree = LogTree::new(pool.clone());
    assert!(matches!(tree.prove(1, &stored).await, Err(TreeError::Missing { level: 1, .. })));
    tree.sign(&signer(), noon()).await.unwrap();
    assert!(tree.prove(1, &stored).await.is_ok(), "the tree is filled again");
    tamper(&pool, &["UPDATE log_tiles SET root = set_byte(root, 0, get_byte(root, 0) # 1) WHERE number = 1"])
        .await;
    assert_eq!(verify(&pool, &[]).await.findings, [Finding::Tile { level: 0, position: 257 }]);

    let renamed = Signer::new("other.example", &[42; 32], Algorithm::Ed25519).unwrap();
    assert!(matches!(tree.sign(&renamed, noon()).await, Err(TreeError::OtherOrigin { .. })));
}
