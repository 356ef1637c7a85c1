//! Which workspace a stream belongs to: nobody sees events of another one.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use botledger_commands::App;
use botledger_domain::{RecordedEvent, WorkspaceId, bot::Bot};
use botledger_projections::{EventFilter, LogReader, Page};
use serde::Deserialize;
use uuid::Uuid;

use crate::graphql::error::ApiError;

/// Streams remembered before all are forgotten.
const REMEMBERED: usize = 100_000;

/// Knows the owner of every stream; it never changes, so it is asked for once.
pub(crate) struct Owners {
    log: LogReader,
    known: Mutex<HashMap<String, WorkspaceId>>,
}

/// The first event of every stream names its workspace or its bot.
#[derive(Deserialize)]
struct Beginning {
    workspace: Option<Uuid>,
    bot: Option<Uuid>,
}

impl Owners {
    pub(crate) fn new(log: LogReader) -> Self {
        Self { log, known: Mutex::default() }
    }

    /// The workspace of an event's stream; nothing when it cannot be told, and then nobody sees it.
    pub(crate) async fn of(&self, app: &App, event: &RecordedEvent) -> Result<Option<WorkspaceId>, ApiError> {
        if event.aggregate_type == "workspace" {
            return Ok(WorkspaceId::parse(&event.aggregate_id).ok());
        }
        let key = format!("{}/{}", event.aggregate_type, event.aggregate_id);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if known.is_some() {
            return Ok(known);
        }
        let payload =
            if event.sequence == 1 { Some(event.payload.clone()) } else { self.first(event).await? };
        let beginning = payload.and_then(|payload| serde_json::from_str::<Beginning>(&payload).ok());
        let owner = match beginning {
            Some(Beginning { workspace: Some(workspace), .. }) => Some(WorkspaceId(workspace)),
            Some(Beginning { bot: Some(bot), .. }) => self.of_bot(app, bot).await?,
            _ => None,
        };
        if let Some(owner) = owner {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert(key, owner);
        }
        Ok(owner)
    }

    async fn first(&self, event: &RecordedEvent) -> Result<Option<String>, ApiError> {
        let stream = EventFilter {
            aggregate_type: Some(event.aggregate_type.clone()),
            aggregate_id: Some(event.aggregate_id.clone()),
            ..EventFilter::default()
        };
        Ok(self.log.page(&stream, Page::oldest(1)).await?.pop().map(|first| first.payload))
    }

    async fn of_bot(&self, app: &App, bot: Uuid) -> Result<Option<WorkspaceId>, ApiError> {
        let loaded = app.core.journal.load::<Bot>(&bot.as_hyphenated().to_string()).await;
        Ok(loaded.map_err(ApiError::unavailable)?.state.workspace)
    }
}
