//! Signed heads, proofs, and what is found after somebody with every right has been at the tables.

use botledger_domain::merkle;
use botledger_journal::audit::{
    Algorithm, Checkpoint, ConsistencyProof, Finding, InclusionProof, LogKeys, LogTree, Signed, SignedNote,
    Signer, StoredCheckpoint, TreeError, Verdict, VerifierKey, Witnessed,
};
use sqlx::{PgConnection, PgPool};

use crate::support::{journal, ledger, metadata, noon, set_on, set_with, stream, take_back};

const ORIGIN: &str = "ledger.example";

fn signer() -> Signer {
    Signer::new(ORIGIN, &[42; 32], Algorithm::Ed25519).unwrap()
}

fn keys() -> LogKeys {
    LogKeys::new(signer(), Vec::new()).unwrap()
}

async fn try_to_sign(pool: &PgPool, keys: &LogKeys) -> Result<Signed, TreeError> {
    LogTree::new(pool.clone()).sign(keys, None, noon()).await
}

async fn append(pool: &PgPool, events: usize) {
    let journal = journal(pool);
    journal.append(set_on(stream(), 0, events)).await.unwrap();
    journal.close().await;
}

async fn sign(pool: &PgPool) -> StoredCheckpoint {
    match try_to_sign(pool, &keys()).await.unwrap() {
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
    assert!(matches!(tree.sign(&keys(), None, noon()).await.unwrap(), Signed::Unchanged(None)));
    let mut heads = Vec::new();
    for events in [1, 254, 1, 1, 300] {
        append(&pool, events).await;
        heads.push(sign(&pool).await);
        assert!(matches!(tree.sign(&keys(), None, noon()).await.unwrap(), Signed::Unchanged(Some(_))));
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
        let proof = tree.consistency(&old.checkpoint, &newest).await.unwrap();
        let Checkpoint { size, root, .. } = &newest.checkpoint;
        let ConsistencyProof { old: from, hashes, .. } = proof.to_string().parse().unwrap();
        assert!(merkle::verify_consistency(from, &old.checkpoint.root, *size, root, &hashes));
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
    // A hash that was changed beside bytes that were not: the head is still that of the bytes.
    tamper(&pool, &["UPDATE events SET leaf_hash = sha256('') WHERE position = 299"]).await;
    assert_eq!(verify(&pool, &[]).await.findings, [Finding::Changed { position: 299 }]);
    tamper(&pool, &[REHASH]).await;
    tamper(
        &pool,
        &["UPDATE events SET metadata = replace(metadata::text, '\"test\"', '\"tesT\"')::json WHERE position = 77"],
    )
    .await;
    assert_eq!(verify(&pool, &[]).await.findings, [Finding::Changed { position: 77 }]);
    // Where no tile is full yet as well.
    tamper(&pool, &["UPDATE events SET event_version = '1.1' WHERE position = 290"]).await;
    let changed = [77, 290].map(|position| Finding::Changed { position });
    assert_eq!(verify(&pool, &[]).await.findings, changed);
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
    assert!(matches!(tree.sign(&keys(), None, noon()).await, Err(TreeError::Rewritten { size: 290 })));
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
    append(&pool, 15).await;
    append(&pool, 5).await;
    let kept = sign(&pool).await;
    take_back(&pool, 15).await;
    let verdict = verify(&pool, &[]).await;
    assert!(matches!(verdict.findings[..], [Finding::Truncated { head: 15, size: 20, .. }]), "{verdict:?}");
    let tree = LogTree::new(pool.clone());
    let refused = tree.sign(&keys(), None, noon()).await;
    assert!(matches!(refused, Err(TreeError::Truncated { head: 15, size: 20 })), "{refused:?}");
    tamper(&pool, &["DELETE FROM log_checkpoints"]).await;
    assert!(verify(&pool, &[]).await.holds());
    assert!(!verify(&pool, &[&kept]).await.holds());
    tamper(&pool, &["DELETE FROM events WHERE position = 7"]).await;
    // And the stream that lost an event says so too.
    let findings = verify(&pool, &[]).await.findings;
    assert!(
        matches!(findings[..], [Finding::Gap { position: 7, next: 8 }, Finding::Stream { position: 8, .. }]),
        "{findings:?}"
    );
    assert!(matches!(
        tree.sign(&keys(), None, noon()).await,
        Err(TreeError::Missing { level: 0, number: 6 })
    ));
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
    tree.sign(&keys(), None, noon()).await.unwrap();
    assert!(tree.prove(1, &stored).await.is_ok(), "the tree is filled again");
    tamper(&pool, &["UPDATE log_tiles SET root = set_byte(root, 0, get_byte(root, 0) # 1) WHERE number = 1"])
        .await;
    assert_eq!(verify(&pool, &[]).await.findings, [Finding::Tile { level: 0, position: 257 }]);

    let renamed = Signer::new("other.example", &[42; 32], Algorithm::Ed25519).unwrap();
    let renamed = LogKeys::new(renamed, Vec::new()).unwrap();
    assert!(matches!(try_to_sign(&pool, &renamed).await, Err(TreeError::OtherOrigin { .. })));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_new_key_goes_on_only_when_it_knows_the_old_one(pool: PgPool) {
    append(&pool, 10).await;
    sign(&pool).await;
    append(&pool, 10).await;
    let next = |previous: Vec<VerifierKey>| {
        LogKeys::new(Signer::new(ORIGIN, &[44; 32], Algorithm::Ed25519).unwrap(), previous).unwrap()
    };
    let refused = try_to_sign(&pool, &next(Vec::new())).await;
    assert!(matches!(refused, Err(TreeError::Forged { size: 10, .. })), "{refused:?}");
    let keys = next(vec![signer().verifier().clone()]);
    assert!(matches!(try_to_sign(&pool, &keys).await.unwrap(), Signed::New(_)));
    let tree = LogTree::new(pool.clone());
    let verify = async |keys: &[VerifierKey]| {
        tree.verify(keys, Some(ORIGIN), Vec::new(), |_, _| {}).await.unwrap().findings
    };
    assert_eq!(verify(keys.known()).await, []);
    assert!(matches!(verify(&keys.known()[..1]).await[..], [Finding::Checkpoint { size: 10, .. }]));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_forged_head_over_another_history_gets_no_follower(pool: PgPool) {
    append(&pool, 300).await;
    let seen = sign(&pool).await.checkpoint;
    let rewrite = "UPDATE events SET event_version = '1.1' WHERE position = 7";
    tamper(&pool, &[rewrite, REHASH, "DELETE FROM log_tiles", "DELETE FROM log_checkpoints"]).await;
    // Somebody with all rights and a key of their own makes a head that fits the new history.
    let thief = Signer::new(ORIGIN, &[43; 32], Algorithm::Ed25519).unwrap();
    let thief = LogKeys::new(thief, Vec::new()).unwrap();
    assert!(matches!(try_to_sign(&pool, &thief).await.unwrap(), Signed::New(_)));
    append(&pool, 1).await;
    let refused = try_to_sign(&pool, &keys()).await;
    assert!(matches!(refused, Err(TreeError::Forged { size: 300, .. })), "{refused:?}");
    // And a process that has a head in mind is not deceived by tables that have none.
    tamper(&pool, &["DELETE FROM log_tiles", "DELETE FROM log_checkpoints"]).await;
    let tree = LogTree::new(pool.clone());
    let refused = tree.sign(&keys(), Some(&seen), noon()).await;
    assert!(matches!(refused, Err(TreeError::Rewritten { size: 300 })), "{refused:?}");
    take_back(&pool, 200).await;
    let refused = tree.sign(&keys(), Some(&seen), noon()).await;
    assert!(matches!(refused, Err(TreeError::Truncated { head: 200, size: 300 })), "{refused:?}");
}

#[sqlx::test(migrations = "../../migrations")]
async fn of_many_that_sign_at_once_each_head_is_signed_once(pool: PgPool) {
    append(&pool, 600).await;
    let keys = keys();
    let tree = LogTree::new(pool.clone());
    let tries = (0..8).map(|_| tree.sign(&keys, None, noon()));
    let signed = futures::future::join_all(tries).await.into_iter().map(Result::unwrap);
    assert_eq!(signed.filter(|signed| matches!(signed, Signed::New(_))).count(), 1);
    assert!(verify(&pool, &[]).await.holds());
}

#[sqlx::test(migrations = "../../migrations")]
async fn what_witnesses_said_stands_under_the_head(pool: PgPool) {
    append(&pool, 3).await;
    let stored = sign(&pool).await;
    let tree = LogTree::new(pool.clone());
    assert!(tree.newest_cosigned("witness.example/w1").await.unwrap().is_none());
    let witness = Signer::new("witness.example/w1", &[45; 32], Algorithm::Cosignature).unwrap();
    let line = stored.note.signature_line(&witness, 7) + "\n";
    tree.keep_cosignature(3, "witness.example/w1", &line).await.unwrap();
    tree.keep_cosignature(3, "witness.example/w1", "another\n").await.unwrap();
    tree.keep_cosignature(3, "nonsense", "no line").await.unwrap();
    let cosigned = tree.newest_cosigned("witness.example/w1").await.unwrap().unwrap();
    let known = [signer().verifier().clone(), witness.verifier().clone()];
    assert_eq!(cosigned.note.verify(&known).unwrap().len(), 2);
    assert!(tree.keep_cosignature(4, "witness.example/w1", &line).await.is_err(), "there is no such head");
    assert!(verify(&pool, &[]).await.holds());
}

#[sqlx::test(migrations = "../../migrations")]
async fn what_no_leaf_holds_is_compared_with_what_leaves_say(pool: PgPool) {
    let journal = journal(&pool);
    let keyed = metadata().with_idempotency_key("here/first");
    journal.append(set_with(keyed, stream(), 0, 3)).await.unwrap();
    journal.append(set_on(stream(), 0, 4)).await.unwrap();
    journal.close().await;
    sign(&pool).await;
    assert_eq!(verify(&pool, &[]).await.findings, []);
    let copy = |position, column| Finding::Copy { position, column };
    for (change, back, found) in [
        (
            "idempotency_key = 'here/other' WHERE position = 1",
            "idempotency_key = 'here/first' WHERE position = 1",
            vec![copy(1, "idempotency_key")],
        ),
        (
            "idempotency_key = NULL WHERE position = 1",
            "idempotency_key = 'here/first' WHERE position = 1",
            vec![copy(1, "idempotency_key")],
        ),
        (
            "idempotency_key = 'here/more' WHERE position = 2",
            "idempotency_key = NULL WHERE position = 2",
            vec![copy(2, "idempotency_key")],
        ),
        ("set_size = 2 WHERE position = 1", "set_size = 3 WHERE position = 1", vec![copy(3, "set_size")]),
        ("set_size = 4 WHERE position = 1", "set_size = 3 WHERE position = 1", vec![copy(4, "set_size")]),
        (
            "set_size = NULL WHERE position = 4",
            "set_size = 4 WHERE position = 4",
            (4..8).map(|at| copy(at, "set_size")).collect(),
        ),
    ] {
        tamper(&pool, &[&format!("UPDATE events SET {change}")]).await;
        assert_eq!(verify(&pool, &[]).await.findings, found, "{change}");
        tamper(&pool, &[&format!("UPDATE events SET {back}")]).await;
    }
    // An append set commits whole, so its first event tells when the last ones are gone, signed or not.
    take_back(&pool, 6).await;
    tamper(&pool, &["DELETE FROM log_checkpoints"]).await;
    let findings = verify(&pool, &[]).await.findings;
    assert!(matches!(findings[..], [Finding::Truncated { head: 6, size: 7, .. }]), "{findings:?}");
}

#[sqlx::test(migrations = "../../migrations")]
async fn events_that_hide_from_readers_by_position_are_found(pool: PgPool) {
    append(&pool, 20).await;
    sign(&pool).await;
    let copied = |position: &str, sequence: &str| {
        format!(
            "INSERT INTO events SELECT aggregate_type, aggregate_id, {sequence}, event_type, event_version, payload,
                metadata, {position}, recorded_at, leaf_hash, idempotency_key, NULL FROM events WHERE position = 20"
        )
    };
    tamper(
        &pool,
        &[
            "ALTER TABLE events DROP CONSTRAINT events_position_check, ALTER COLUMN position DROP NOT NULL",
            "DROP INDEX events_position_key",
            &copied("-5", "21"),
            &copied("NULL", "22"),
            &copied("20", "23"),
        ],
    )
    .await;
    let findings = verify(&pool, &[]).await.findings;
    let [
        Finding::Outside { position: Some(-5), sequence: 21, .. },
        Finding::Outside { position: None, sequence: 22, .. },
        Finding::Double { position: 20 },
    ] = findings[..]
    else {
        panic!("{findings:?}")
    };
}

#[sqlx::test(migrations = "../../migrations")]
async fn what_stands_in_tiles_is_never_signed_unless_events_give_it(pool: PgPool) {
    append(&pool, 300).await;
    sign(&pool).await;
    let tile = |number: &str| {
        format!(
            "INSERT INTO log_tiles VALUES (0, {number}, sha256('garbage'), decode(repeat('ab', 8192), 'hex'))"
        )
    };
    let mut tx = pool.begin().await.unwrap();
    sqlx::query("SET LOCAL ROLE botledger_writer").execute(&mut *tx).await.unwrap();
    let refused = sqlx::query(&tile("1")).execute(&mut *tx).await.unwrap_err();
    assert!(refused.to_string().contains("permission denied"), "{refused}");
    tx.rollback().await.unwrap();
    let refused =
        sqlx::query("SELECT * FROM log_tiles_fill(0::smallint, 1, 2)").execute(&pool).await.unwrap_err();
    assert!(refused.to_string().contains("not complete"), "{refused}");

    // Of the superuser's tiles one stands in the way, and one far away does not.
    tamper(&pool, &[&tile("1"), &tile("1099511627776")]).await;
    append(&pool, 220).await;
    let refused = try_to_sign(&pool, &keys()).await;
    assert!(matches!(refused, Err(TreeError::Tile { level: 0, number: 1 })), "{refused:?}");
    tamper(&pool, &["DELETE FROM log_tiles WHERE number = 1"]).await;
    assert_eq!(sign(&pool).await.checkpoint.size, 520);
    append(&pool, 300).await;
    let newest = sign(&pool).await;
    assert!(verify(&pool, &[]).await.holds());
    let tree = LogTree::new(pool.clone());
    assert!(tree.prove(300, &newest).await.unwrap().holds(&ledger(&pool).await[299].leaf().hash()).unwrap());
}

#[sqlx::test(migrations = "../../migrations")]
async fn rows_that_the_log_has_not_signed_do_not_stop_it(pool: PgPool) {
    append(&pool, 10).await;
    let stored = sign(&pool).await;
    let junk = stored.note.to_string().replacen("\n10\n", "\n4611686018427387904\n", 1);
    sqlx::query(
        "INSERT INTO log_checkpoints SELECT 4611686018427387904, root, $1, signed_at FROM log_checkpoints",
    )
    .bind(&junk)
    .execute(&pool)
    .await
    .unwrap();
    // A line in the log's own name, and one that hides it behind a witness's.
    let tree = LogTree::new(pool.clone());
    let own = stored.note.to_string().lines().last().unwrap().to_owned();
    let (end, other) = (own.len() - 4, if own.ends_with("AA==") { "BB==" } else { "AA==" });
    let wrong = format!("{}{other}\n", &own[..end]);
    tree.keep_cosignature(10, ORIGIN, &wrong).await.unwrap();
    tree.keep_cosignature(10, "w", &format!("\u{2014} w AAAAAAAA\n{wrong}")).await.unwrap();
    assert!(tree.at(10).await.unwrap().unwrap().note.verify(&[signer().verifier().clone()]).is_ok());
    append(&pool, 5).await;
    assert_eq!(sign(&pool).await.checkpoint.size, 15);
    assert_eq!(tree.newest().await.unwrap().unwrap().checkpoint.size, 15);
    let findings = verify(&pool, &[]).await.findings;
    let [Finding::Checkpoint { size: 4_611_686_018_427_387_904, .. }] = findings[..] else {
        panic!("{findings:?}")
    };
    // One in the place of the next head costs that head, not those after it.
    sqlx::query(
        "INSERT INTO log_checkpoints SELECT 16, root, 'none', signed_at FROM log_checkpoints WHERE size = 10",
    )
    .execute(&pool)
    .await
    .unwrap();
    append(&pool, 1).await;
    assert!(matches!(try_to_sign(&pool, &keys()).await, Err(TreeError::Taken { size: 16 })));
    append(&pool, 1).await;
    assert_eq!(sign(&pool).await.checkpoint.size, 17);
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_new_log_begins_only_when_it_is_told_to_and_once(pool: PgPool) {
    append(&pool, 10).await;
    sign(&pool).await;
    append(&pool, 10).await;
    let tree = LogTree::new(pool.clone());
    assert!(matches!(tree.begin(&keys(), noon()).await, Err(TreeError::Begun { size: 10 })));
    let renamed = Signer::new("other.example", &[42; 32], Algorithm::Ed25519).unwrap();
    let renamed = LogKeys::new(renamed, Vec::new()).unwrap();
    assert!(matches!(try_to_sign(&pool, &renamed).await, Err(TreeError::OtherOrigin { .. })));
    assert!(matches!(tree.begin(&renamed, noon()).await.unwrap(), Signed::New(_)));
    append(&pool, 10).await;
    assert!(matches!(try_to_sign(&pool, &renamed).await.unwrap(), Signed::New(_)));
    let verdict = tree.verify(renamed.known(), Some("other.example"), Vec::new(), |_, _| {}).await.unwrap();
    assert_eq!((verdict.findings, verdict.checkpoints), (Vec::new(), 2));
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_ledger_that_grows_while_it_is_verified_is_whole(pool: PgPool) {
    append(&pool, 200).await;
    sign(&pool).await;
    let tree = LogTree::new(pool.clone());
    let keys = keys();
    // With connections of its own: this thread waits for it.
    let grow = || {
        let options = (*pool.connect_options()).clone();
        let grown = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let pool = PgPool::connect_with(options).await.unwrap();
                append(&pool, 400).await;
                sign(&pool).await;
                pool.close().await;
            });
        });
        grown.join().unwrap();
    };
    let verdict = tree.verify(keys.known(), Some(ORIGIN), Vec::new(), |_, _| grow()).await.unwrap();
    assert_eq!((verdict.findings, verdict.events, verdict.checkpoints), (Vec::new(), 200, 1));
    assert_eq!(tree.newest().await.unwrap().unwrap().checkpoint.size, 600);
}
