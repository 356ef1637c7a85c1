//! The journal and postgres-es through the same trait of cqrs-es, and each reading the other's rows.

use std::{collections::HashMap, sync::Arc};

use botledger_domain::{
    EventMetadata, FixedClock, PlanName, SharedClock,
    quota::{Period, PlanTerms},
    workspace::{Workspace, WorkspaceCommand},
};
use botledger_journal::JournalRepository;
use cqrs_es::{
    AggregateError, CqrsFramework,
    persist::{PersistedEventRepository, PersistedEventStore, PersistenceError, SerializedEvent},
};
use postgres_es::PostgresEventRepository;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::{assert_whole, journal, metadata, noon};

fn renamed(id: Uuid, sequence: usize, metadata: &EventMetadata) -> SerializedEvent {
    SerializedEvent::new(
        id.to_string(),
        sequence,
        "workspace".to_owned(),
        "workspace_renamed".to_owned(),
        "1.0".to_owned(),
        json!({ "type": "workspace_renamed", "name": format!("имя {sequence}"), "renamed_at": "2026-11-24T12:00:00Z" }),
        serde_json::to_value(metadata).unwrap(),
    )
}

fn told(events: &[SerializedEvent]) -> Vec<(String, usize, String, String, String, Value, Value)> {
    events
        .iter()
        .cloned()
        .map(|e| {
            (
                e.aggregate_id,
                e.sequence,
                e.aggregate_type,
                e.event_type,
                e.event_version,
                e.payload,
                e.metadata,
            )
        })
        .collect()
}

/// What cqrs-es expects of a repository.
async fn conforms(repository: &impl PersistedEventRepository) {
    let (id, other) = (Uuid::now_v7(), Uuid::now_v7());
    let text = id.to_string();
    assert!(repository.get_events::<Workspace>(&text).await.unwrap().is_empty());
    assert!(repository.get_snapshot::<Workspace>(&text).await.unwrap().is_none());
    repository.persist::<Workspace>(&[], None).await.unwrap();

    let metadata = metadata();
    let all: Vec<_> = (1..=5).map(|sequence| renamed(id, sequence, &metadata)).collect();
    repository.persist::<Workspace>(&all[..2], None).await.unwrap();
    repository.persist::<Workspace>(&all[2..], None).await.unwrap();
    repository.persist::<Workspace>(&[renamed(other, 1, &metadata)], None).await.unwrap();
    assert_eq!(told(&repository.get_events::<Workspace>(&text).await.unwrap()), told(&all));
    assert_eq!(told(&repository.get_last_events::<Workspace>(&text, 3).await.unwrap()), told(&all[3..]));
    assert!(repository.get_last_events::<Workspace>(&text, 5).await.unwrap().is_empty());

    // The second of these is free, the first is taken: neither is stored.
    let late = [renamed(id, 5, &metadata), renamed(id, 6, &metadata)];
    let refused = repository.persist::<Workspace>(&late, None).await.unwrap_err();
    assert!(matches!(refused, PersistenceError::OptimisticLockError), "{refused:?}");
    assert!(matches!(
        AggregateError::<botledger_domain::workspace::WorkspaceError>::from(refused),
        AggregateError::AggregateConflict
    ));
    assert_eq!(repository.get_events::<Workspace>(&text).await.unwrap().len(), 5);

    let mut stream = repository.stream_events::<Workspace>(&text).await.unwrap();
    let mut seen = Vec::new();
    while let Some(envelope) = stream.next::<Workspace>(&[]).await {
        let envelope = envelope.unwrap();
        assert_eq!(envelope.aggregate_id, text);
        seen.push(envelope.sequence);
    }
    assert_eq!(seen, [1, 2, 3, 4, 5]);
}

async fn reference(pool: &PgPool) -> PostgresEventRepository {
    for statement in [
        "CREATE SCHEMA reference",
        "CREATE TABLE reference.events (
            aggregate_type text NOT NULL, aggregate_id text NOT NULL, sequence bigint NOT NULL,
            event_type text NOT NULL, event_version text NOT NULL, payload json NOT NULL, metadata json NOT NULL,
            PRIMARY KEY (aggregate_type, aggregate_id, sequence))",
        "CREATE TABLE reference.snapshots (
            aggregate_type text NOT NULL, aggregate_id text NOT NULL, last_sequence bigint NOT NULL,
            current_snapshot bigint NOT NULL, payload json NOT NULL,
            PRIMARY KEY (aggregate_type, aggregate_id, last_sequence))",
    ] {
        sqlx::query(statement).execute(pool).await.unwrap();
    }
    PostgresEventRepository::new(pool.clone()).with_tables("reference.events", "reference.snapshots")
}

#[sqlx::test(migrations = "../../migrations")]
async fn the_reference_passes_the_suite(pool: PgPool) {
    conforms(&reference(&pool).await).await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn the_journal_passes_the_same_suite(pool: PgPool) {
    let repository = JournalRepository::new(journal(&pool));
    conforms(&repository).await;
    assert_whole(&pool).await;

    let mut stream = repository.stream_all_events::<Workspace>().await.unwrap();
    let mut seen = 0;
    while let Some(envelope) = stream.next::<Workspace>(&[]).await {
        envelope.unwrap();
        seen += 1;
    }
    assert_eq!(seen, 6, "all streams of the type");
    let snapshot = Some(("id".to_owned(), json!({}), 1));
    let refused = repository.persist::<Workspace>(&[renamed(Uuid::now_v7(), 1, &metadata())], snapshot).await;
    assert!(matches!(refused, Err(PersistenceError::UnknownError(_))), "snapshots are refused, not dropped");
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_stream_that_breaks_off_says_so(pool: PgPool) {
    let repository = JournalRepository::new(journal(&pool));
    repository.persist::<Workspace>(&[renamed(Uuid::now_v7(), 1, &metadata())], None).await.unwrap();
    pool.close().await;
    let mut stream = repository.stream_all_events::<Workspace>().await.unwrap();
    assert!(stream.next::<Workspace>(&[]).await.is_some_and(|event| event.is_err()));
}

#[sqlx::test(migrations = "../../migrations")]
async fn cqrs_es_works_on_the_journal_and_postgres_es_reads_what_it_wrote(pool: PgPool) {
    let repository = JournalRepository::new(journal(&pool));
    let clock: SharedClock = Arc::new(FixedClock(noon()));
    let store = PersistedEventStore::<_, Workspace>::new_event_store(repository.clone());
    let framework = CqrsFramework::new(store, vec![], clock);
    let id = Uuid::now_v7().to_string();
    let told_by: HashMap<String, String> =
        serde_json::from_value(serde_json::to_value(metadata()).unwrap()).unwrap();
    let plan = PlanName::parse("free").unwrap();
    let terms = PlanTerms::tokens(10, Period::Day);
    let create = WorkspaceCommand::Create { name: "Ателье".to_owned(), plan, terms };
    framework.execute_with_metadata(&id, create, told_by.clone()).await.unwrap();
    let rename = |name: &str| WorkspaceCommand::Rename { name: name.to_owned() };
    framework.execute_with_metadata(&id, rename("Atelier"), told_by.clone()).await.unwrap();
    let refused = framework.execute_with_metadata(&id, rename(""), told_by).await;
    assert!(matches!(refused, Err(AggregateError::UserError(_))), "{refused:?}");

    let ours = repository.get_events::<Workspace>(&id).await.unwrap();
    let theirs = PostgresEventRepository::new(pool.clone()).get_events::<Workspace>(&id).await.unwrap();
    assert_eq!(told(&ours), told(&theirs));
    assert_eq!(ours.last().unwrap().event_type, "workspace_renamed");
    let written = PostgresEventRepository::new(pool.clone())
        .persist::<Workspace>(&[renamed(Uuid::now_v7(), 1, &metadata())], None)
        .await;
    assert!(written.is_err(), "its writes have no way in");
    assert_whole(&pool).await;
}
