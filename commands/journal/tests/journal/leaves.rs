//! The SQL function and the domain agree about every leaf.

use botledger_domain::leaf::Leaf;
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use sqlx::PgPool;

use crate::support::{assert_whole, journal, keyed, set_with, stream};

#[sqlx::test(migrations = "../../migrations")]
async fn sql_and_domain_take_the_same_hash(pool: PgPool) {
    // PostgreSQL holds every text but NUL.
    let text = || {
        prop_oneof![Just(String::new()), "[a-z]{1,12}", "[^\\x00]{0,40}", "[Ё-ӿ😀-😎\\u{200d}\"\\\\]{1,20}"]
    };
    let numbers = (any::<i64>(), any::<i64>(), any::<i64>());
    let strategy = (numbers, [text(), text(), text(), text(), text(), text()]);
    let mut runner = TestRunner::new(Config::default());
    for _ in 0..256 {
        let ((position, micros, sequence), texts) = strategy.new_tree(&mut runner).unwrap().current();
        let [aggregate_type, aggregate_id, event_type, event_version, payload, metadata] = &texts;
        let mut query =
            sqlx::query_scalar::<_, Vec<u8>>("SELECT event_leaf_hash($1, $2, $3, $4, $5, $6, $7, $8, $9)")
                .bind(position)
                .bind(micros)
                .bind(sequence);
        for text in &texts {
            query = query.bind(text);
        }
        let stored = query.fetch_one(&pool).await.unwrap();
        let leaf = Leaf {
            position,
            recorded_at_micros: micros,
            aggregate_type,
            aggregate_id,
            sequence,
            event_type,
            event_version,
            payload,
            metadata,
        };
        assert_eq!(stored, leaf.hash(), "{leaf:?}");
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn what_is_stored_hashes_to_the_stored_leaf(pool: PgPool) {
    let journal = journal(&pool);
    for key in ["plain", "ключ", "\"quoted\\\"", "😀\u{200d}", "a\u{1}b"] {
        journal.append(set_with(keyed(key), stream(), 0, 2)).await.unwrap();
    }
    let events = assert_whole(&pool).await;
    assert_eq!(events.len(), 10);
    assert!(events.iter().any(|event| event.metadata.contains("ключ")), "texts stand letter by letter");
}
