use std::sync::Arc;

use async_trait::async_trait;
use botledger_domain::{
    BotId, RecordedEvent, WorkspaceId,
    access_list::{AccessDoor, AccessEntry, AccessList, AccessListEvent, AccessTarget, access_list_stream},
};
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    Page, Projection, ProjectionError,
    fold::{Rows, read_row},
    select::select_page,
    turns::decode_all,
};

read_row! {
    /// A workspace's list, or a bot's.
    AccessListRow in "access_lists"
    key { list_id: Uuid }
    values {
        workspace: Uuid,
        /// Absent in a workspace's own list.
        bot_id: Option<Uuid>,
        closed_to_messages: bool,
        closed_to_requests: bool,
        created_position: i64,
        updated_position: i64,
    }
}

read_row! {
    /// An entry of a list.
    AccessEntryRow in "access_entries"
    key { list_id: Uuid, target_kind: String, target: String }
    values {
        workspace: Uuid,
        bot_id: Option<Uuid>,
        /// `allow` or `deny`.
        effect: String,
        /// Of the last decision.
        reason: String,
        /// False once it was taken out; it may have run out as well.
        standing: bool,
        expires_at: Option<DateTime<Utc>>,
        changed_by: Uuid,
        changed_at: DateTime<Utc>,
        created_position: i64,
        updated_position: i64,
    }
}

/// One row a list and one a target. Reads `access_list` events; owns `access_lists` and `access_entries`.
pub struct AccessListsProjection;

type EntryKey = (Uuid, String, String);

fn entry_key(list: Uuid, target: &AccessTarget) -> EntryKey {
    (list, target.kind().to_owned(), target.to_string())
}

#[async_trait]
impl Projection for AccessListsProjection {
    fn name(&self) -> &'static str {
        "access_lists"
    }

    fn tables(&self) -> &'static [&'static str] {
        &["access_lists", "access_entries"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        let facts = decode_all::<AccessList>(page)?;
        let mut lists = Rows::<AccessListRow>::fetch(tx, facts.iter().map(|(_, id, _)| (*id,))).await?;
        let targets = facts.iter().filter_map(|(_, id, fact)| match fact {
            AccessListEvent::AccessEntryAdded { entry, .. } => Some(entry_key(*id, &entry.target)),
            AccessListEvent::AccessEntryRemoved { target, .. } => Some(entry_key(*id, target)),
            _ => None,
        });
        let mut entries = Rows::<AccessEntryRow>::fetch(tx, targets).await?;
        for (recorded, id, fact) in facts {
            let position = recorded.position.0;
            if let AccessListEvent::AccessEntryAdded { workspace, bot, .. }
            | AccessListEvent::AccessClosed { workspace, bot, .. } = &fact
            {
                lists.get_or_insert((id,), || AccessListRow {
                    list_id: id,
                    workspace: workspace.uuid(),
                    bot_id: bot.map(BotId::uuid),
                    closed_to_messages: false,
                    closed_to_requests: false,
                    created_position: position,
                    updated_position: position,
                });
            }
            if let Some(list) = lists.get_mut(&(id,)) {
                list.updated_position = position;
                match &fact {
                    AccessListEvent::AccessClosed { door, .. } => set_door(list, *door, true),
                    AccessListEvent::AccessOpened { door, .. } => set_door(list, *door, false),
                    _ => {}
                }
            }
            match fact {
                AccessListEvent::AccessEntryAdded { workspace, bot, entry, by, added_at } => {
                    let AccessEntry { target, effect, reason, expires_at } = entry;
                    let key = entry_key(id, &target);
                    let (_, target_kind, target) = key.clone();
                    let row = entries.get_or_insert(key, || AccessEntryRow {
                        list_id: id,
                        target_kind,
                        target,
                        workspace: workspace.uuid(),
                        bot_id: bot.map(BotId::uuid),
                        effect: String::new(),
                        reason: String::new(),
                        standing: true,
                        expires_at: None,
                        changed_by: by.uuid(),
                        changed_at: added_at,
                        created_position: position,
                        updated_position: position,
                    });
                    row.effect = effect.as_ref().to_owned();
                    row.reason = reason.into();
                    (row.standing, row.expires_at) = (true, expires_at);
                    (row.changed_by, row.changed_at, row.updated_position) = (by.uuid(), added_at, position);
                }
                AccessListEvent::AccessEntryRemoved { target, reason, by, removed_at } => {
                    if let Some(row) = entries.get_mut(&entry_key(id, &target)) {
                        row.reason = reason.into();
                        (row.standing, row.expires_at) = (false, None);
                        (row.changed_by, row.changed_at, row.updated_position) =
                            (by.uuid(), removed_at, position);
                    }
                }
                AccessListEvent::AccessClosed { .. } | AccessListEvent::AccessOpened { .. } => {}
            }
        }
        lists.store(tx).await?;
        Ok(entries.store(tx).await?)
    }
}

fn set_door(list: &mut AccessListRow, door: AccessDoor, closed: bool) {
    match door {
        AccessDoor::Messages => list.closed_to_messages = closed,
        AccessDoor::Requests => list.closed_to_requests = closed,
    }
}

/// A workspace's list, or a bot's; absent when nobody ever put anything into it.
///
/// # Errors
/// When the database fails.
pub async fn access_list(
    pool: &PgPool,
    workspace: WorkspaceId,
    bot: Option<BotId>,
) -> Result<Option<AccessListRow>, sqlx::Error> {
    sqlx::query_as("SELECT * FROM access_lists WHERE list_id = $1")
        .bind(access_list_stream(workspace, bot))
        .fetch_optional(pool)
        .await
}

/// Which entries.
#[derive(Clone, Debug, Default)]
pub struct AccessEntryFilter {
    /// Of this list only; of all of the workspace's lists when absent.
    pub list: Option<Uuid>,
    /// `person`, `chat` or `ip`.
    pub kind: Option<&'static str>,
    /// `allow` or `deny`.
    pub effect: Option<&'static str>,
    /// About this target, as it is written.
    pub target: Option<String>,
    /// Only those in force at this moment, as far as today's rows tell.
    pub in_force_at: Option<DateTime<Utc>>,
}

/// Entries of a workspace's lists.
///
/// # Errors
/// When the database fails.
pub async fn access_entries_page(
    pool: &PgPool,
    workspace: WorkspaceId,
    filter: &AccessEntryFilter,
    page: Page,
) -> Result<Vec<AccessEntryRow>, sqlx::Error> {
    select_page(pool, "access_entries", page, |query| {
        query.push(" AND workspace = ").push_bind(workspace.uuid());
        if let Some(list) = filter.list {
            query.push(" AND list_id = ").push_bind(list);
        }
        if let Some(kind) = filter.kind {
            query.push(" AND target_kind = ").push_bind(kind);
        }
        if let Some(effect) = filter.effect {
            query.push(" AND effect = ").push_bind(effect);
        }
        if let Some(target) = &filter.target {
            query.push(" AND target = ").push_bind(target.clone());
        }
        if let Some(moment) = filter.in_force_at {
            query.push(" AND standing AND (expires_at IS NULL OR expires_at > ").push_bind(moment).push(")");
        }
    })
    .await
}

/// Every entry that was not taken out, newest first, as a transaction sees them.
pub(crate) async fn access_entries_in(
    tx: &mut PgConnection,
    list: Uuid,
) -> Result<Vec<AccessEntryRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT * FROM access_entries WHERE list_id = $1 AND standing ORDER BY created_position DESC",
    )
    .bind(list)
    .fetch_all(tx)
    .await
}
