//! Other event stores on PostgreSQL, under the load that `ops/bench` puts on ours: callers that each append to
//! streams of their own, one set after the other, every one durable before the next.
//!
//! `botledger-bench-peers STORE append WRITERS EVENTS SECONDS` prints events a second, `… STORE load EVENTS
//! SECONDS` loads a second of a stream of so many events. STORE is `postgres-es` or `disintegrate`.
//! `DATABASE_URL` names a database; each store gets tables of its own there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use cqrs_es::{
    Aggregate, DomainEvent,
    event_sink::EventSink,
    persist::{PersistedEventRepository, SerializedEvent},
};
use disintegrate::{Event, EventStore, StreamItem, query};
use disintegrate_postgres::PgEventStore;
use disintegrate_serde::serde::json::Json;
use futures::StreamExt;
use postgres_es::PostgresEventRepository;
use serde::{Deserialize, Serialize};
use sqlx::{PgPool, postgres::PgPoolOptions};
use uuid::Uuid;

/// As large as the events that `ops/bench` appends to ours.
const FILLER: usize = 290;
const TABLE: &str = "bench_postgres_es";

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().with_context(|| format!("{text} is no number"));
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL names the database to measure in")?;
    let pool = PgPoolOptions::new().max_connections(64).connect(&url).await?;
    let rate = match words[..] {
        [store, "append", writers, events, seconds] => {
            let store = Store::open(store, pool).await?;
            append(store, number(writers)?, number(events)?, Duration::from_secs(number(seconds)?)).await?
        }
        [store, "load", events, seconds] => {
            let store = Store::open(store, pool).await?;
            load(store, number(events)?, Duration::from_secs(number(seconds)?)).await?
        }
        _ => bail!("botledger-bench-peers STORE append WRITERS EVENTS SECONDS | STORE load EVENTS SECONDS"),
    };
    println!("{rate:.1}");
    Ok(())
}

#[derive(Clone)]
enum Store {
    PostgresEs(Arc<PostgresEventRepository>),
    Disintegrate(PgEventStore<Noted, Json<Noted>>),
}

/// Where a stream stands, as each store counts it.
#[derive(Default)]
struct Place {
    stream: String,
    at: i64,
}

impl Store {
    async fn open(name: &str, pool: PgPool) -> Result<Self> {
        match name {
            "postgres-es" => {
                // The table of its own documentation, under a name that leaves ours alone.
                let table = format!(
                    "CREATE TABLE IF NOT EXISTS {TABLE} (
                         aggregate_type text NOT NULL, aggregate_id text NOT NULL,
                         sequence bigint NOT NULL CHECK (sequence >= 0), event_type text NOT NULL,
                         event_version text NOT NULL, payload json NOT NULL, metadata json NOT NULL,
                         PRIMARY KEY (aggregate_type, aggregate_id, sequence))"
                );
                sqlx::query(&table).execute(&pool).await?;
                let repository = PostgresEventRepository::new(pool).with_tables(TABLE, "bench_no_snapshots");
                Ok(Self::PostgresEs(Arc::new(repository)))
            }
            "disintegrate" => Ok(Self::Disintegrate(PgEventStore::try_new(pool, Json::default()).await?)),
            other => bail!("{other} is not known: postgres-es or disintegrate"),
        }
    }

    async fn append(&self, place: &mut Place, events: u64) -> Result<()> {
        match self {
            Self::PostgresEs(repository) => {
                let metadata = serde_json::json!({
                    "actor": "system:bench", "correlation_id": Uuid::new_v4().to_string(),
                    "causation_id": Uuid::new_v4().to_string(), "instance": "bench",
                });
                let serialized: Vec<SerializedEvent> = (1..=events as i64)
                    .map(|n| {
                        let payload = serde_json::json!({ "Noted": Fact::new() });
                        let sequence = usize::try_from(place.at + n).expect("sequences are positive");
                        SerializedEvent::new(
                            place.stream.clone(),
                            sequence,
                            Bench::TYPE.to_owned(),
                            "noted".to_owned(),
                            "1.0".to_owned(),
                            payload,
                            metadata.clone(),
                        )
                    })
                    .collect();
                repository.persist::<Bench>(&serialized, None).await?;
                place.at += events as i64;
            }
            Self::Disintegrate(store) => {
                let noted = || Noted::Noted { stream_id: place.stream.clone(), fact: Fact::new() };
                let facts: Vec<Noted> = (0..events).map(|_| noted()).collect();
                let query = query!(Noted; stream_id == place.stream.clone());
                loop {
                    // Its check is a serialisable transaction, which may fail without a conflict of ours.
                    match store.append(facts.clone(), query.clone(), place.at).await {
                        Ok(persisted) => {
                            place.at = persisted.last().map_or(place.at, |event| event.id());
                            break;
                        }
                        Err(disintegrate_postgres::Error::Concurrency) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        Ok(())
    }

    /// Events of a stream, decoded.
    async fn load(&self, stream: &str) -> Result<usize> {
        match self {
            Self::PostgresEs(repository) => {
                let events = repository.get_events::<Bench>(stream).await?;
                let decoded: Result<Vec<BenchEvent>, _> =
                    events.into_iter().map(|event| serde_json::from_value(event.payload)).collect();
                Ok(decoded?.len())
            }
            Self::Disintegrate(store) => {
                let query = query!(Noted; stream_id == stream.to_owned());
                let mut items = store.stream(&query);
                let mut count = 0;
                while let Some(item) = items.next().await {
                    count += usize::from(matches!(item?, StreamItem::Event(_)));
                }
                Ok(count)
            }
        }
    }
}

async fn append(store: Store, writers: u64, events: u64, time: Duration) -> Result<f64> {
    let appended = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|_| {
            let (store, appended) = (store.clone(), Arc::clone(&appended));
            tokio::spawn(async move {
                let mut place = Place { stream: Uuid::new_v4().to_string(), at: 0 };
                while began.elapsed() < time {
                    store.append(&mut place, events).await?;
                    appended.fetch_add(events, Ordering::Relaxed);
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(appended.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

async fn load(store: Store, events: u64, time: Duration) -> Result<f64> {
    let mut place = Place { stream: Uuid::new_v4().to_string(), at: 0 };
    store.append(&mut place, events).await?;
    let began = Instant::now();
    let mut loads = 0_u32;
    while began.elapsed() < time {
        let found = store.load(&place.stream).await?;
        if found as u64 != events {
            bail!("{found} of {events} events came back");
        }
        loads += 1;
    }
    Ok(f64::from(loads) / began.elapsed().as_secs_f64())
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Fact {
    filler: String,
}

impl Fact {
    fn new() -> Self {
        Self { filler: "x".repeat(FILLER) }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
enum Noted {
    Noted {
        #[id]
        stream_id: String,
        fact: Fact,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum BenchEvent {
    Noted(Fact),
}

impl DomainEvent for BenchEvent {
    fn event_type(&self) -> String {
        "noted".to_owned()
    }

    fn event_version(&self) -> String {
        "1.0".to_owned()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("never")]
struct Never;

/// Only its name and its events matter here.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Bench;

impl Aggregate for Bench {
    type Command = ();
    type Event = BenchEvent;
    type Error = Never;
    type Services = ();

    const TYPE: &'static str = "bench";

    async fn handle(&mut self, (): (), (): &(), _: &EventSink<Self>) -> Result<(), Never> {
        Ok(())
    }

    fn apply(&mut self, _: BenchEvent) {}
}
