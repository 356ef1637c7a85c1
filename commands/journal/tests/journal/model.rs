//! Random sets against a model in memory: versions, keys, and nothing else.

use std::collections::HashMap;

use botledger_domain::Position;
use botledger_journal::{AppendError, AppendSet, Journal, JournalConfig};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::{assert_whole, keyed, metadata, push, stream};

const STREAMS: usize = 4;

#[derive(Clone, Debug)]
struct Wanted {
    /// Stream, how far beside its version the set is decided, and how many events.
    parts: Vec<(usize, i64, usize)>,
    key: Option<u8>,
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let beside = prop_oneof![6 => Just(0i64), 1 => Just(-1), 1 => Just(1)];
    let part = (0..STREAMS, beside, 1..3usize);
    let key = prop_oneof![2 => Just(None), 1 => (0..3u8).prop_map(Some)];
    (prop::collection::vec(part, 0..4), key).prop_map(|(mut parts, key)| {
        parts.sort_by_key(|part| part.0);
        parts.dedup_by_key(|part| part.0);
        Wanted { parts, key }
    })
}

#[derive(Default)]
struct Model {
    versions: [i64; STREAMS],
    keys: HashMap<String, usize>,
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Nothing,
    Appended { events: usize },
    Duplicate { of: usize },
    Conflict,
}

impl Model {
    fn append(&mut self, wanted: &Wanted, key: Option<&String>, number: usize) -> Outcome {
        if wanted.parts.is_empty() {
            return Outcome::Nothing;
        }
        if let Some(of) = key.and_then(|key| self.keys.get(key)) {
            return Outcome::Duplicate { of: *of };
        }
        if wanted
            .parts
            .iter()
            .any(|(stream, beside, _)| (self.versions[*stream] + beside).max(0) != self.versions[*stream])
        {
            return Outcome::Conflict;
        }
        for (stream, _, events) in &wanted.parts {
            self.versions[*stream] += *events as i64;
        }
        if let Some(key) = key {
            self.keys.insert(key.clone(), number);
        }
        Outcome::Appended { events: wanted.parts.iter().map(|part| part.2).sum() }
    }
}

async fn compare(journal: &Journal, rounds: Vec<Vec<Wanted>>) {
    let streams: [Uuid; STREAMS] = std::array::from_fn(|_| stream());
    let mut model = Model::default();
    let mut positions: Vec<Vec<Position>> = Vec::new();
    for round in rounds {
        let (mut sets, mut expected) = (Vec::new(), Vec::new());
        for wanted in &round {
            let key = wanted.key.map(|key| format!("{}/{key}", streams[0]));
            let mut set = AppendSet::new(key.as_deref().map_or_else(metadata, keyed));
            for (stream, beside, events) in &wanted.parts {
                let version = (model.versions[*stream] + beside).max(0);
                push(&mut set, streams[*stream], version, *events);
            }
            expected.push(model.append(wanted, key.as_ref(), positions.len() + sets.len()));
            sets.push(set);
        }
        for (result, expected) in journal.append_all(sets).await.into_iter().zip(expected) {
            let (outcome, at) = match result {
                Ok(receipt) if receipt.event_positions.is_empty() => (Outcome::Nothing, vec![]),
                Ok(receipt) if receipt.duplicate => {
                    let Outcome::Duplicate { of } = expected else { panic!("{receipt:?}, not {expected:?}") };
                    assert_eq!(receipt.event_positions, positions[of]);
                    (Outcome::Duplicate { of }, receipt.event_positions)
                }
                Ok(receipt) => {
                    let events = receipt.event_positions.len();
                    assert!(receipt.event_positions.is_sorted_by(|a, b| a.0 + 1 == b.0));
                    (Outcome::Appended { events }, receipt.event_positions)
                }
                Err(AppendError::Conflict { .. }) => (Outcome::Conflict, vec![]),
                Err(other) => panic!("{other:?}"),
            };
            assert_eq!(outcome, expected);
            positions.push(at);
        }
    }
    for (stream, version) in streams.iter().zip(model.versions) {
        let loaded =
            journal.load::<botledger_domain::chat_session::ChatSession>(&stream.to_string()).await.unwrap();
        assert_eq!(loaded.version, version);
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn any_sequence_of_sets_ends_as_the_model_says(pool: PgPool) {
    let config = JournalConfig { max_batch_events: 5, ..JournalConfig::default() };
    let journal = Journal::open(pool.clone(), config);
    let runtime = tokio::runtime::Handle::current();
    // The ledger only grows, so cases share one: each has streams and keys of its own.
    let cases = tokio::task::spawn_blocking(move || {
        let config = Config { cases: 32, failure_persistence: None, ..Config::default() };
        let rounds = prop::collection::vec(prop::collection::vec(wanted(), 1..7), 1..6);
        TestRunner::new(config).run(&rounds, |rounds| {
            runtime.block_on(compare(&journal, rounds));
            Ok(())
        })
    });
    cases.await.unwrap().unwrap();
    assert_whole(&pool).await;
}
