use std::sync::Arc;

use async_trait::async_trait;
use botledger_domain::{
    BotId, RecordedEvent, WorkspaceId,
    bot::{Bot, BotEvent, BotStatus},
};
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    Page, Projection, ProjectionError,
    fold::{Rows, read_row},
    select::select_page,
};

read_row! {
    /// One bot of the fleet.
    BotRow in "bots"
    key { bot_id: Uuid }
    values {
        workspace: Uuid,
        username: String,
        telegram_id: i64,
        /// `polling` or `webhook`.
        mode: String,
        /// `stopped`, `running`, `faulted`, `archived`.
        status: String,
        status_reason: Option<String>,
        /// As `BotSettings`.
        settings: serde_json::Value,
        /// Instance that runs it.
        holder: Option<Uuid>,
        lease_epoch: i64,
        registered_at: DateTime<Utc>,
        changed_at: DateTime<Utc>,
        created_position: i64,
        updated_position: i64,
    }
}

/// One row a bot. Reads `bot` events; owns `bots`.
pub struct BotsProjection;

#[async_trait]
impl Projection for BotsProjection {
    fn name(&self) -> &'static str {
        "bots"
    }

    fn tables(&self) -> &'static [&'static str] {
        &["bots"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        let facts = crate::turns::decode_all::<Bot>(page)?;
        let mut rows = Rows::<BotRow>::fetch(tx, facts.iter().map(|(_, id, _)| (*id,))).await?;
        for (recorded, id, fact) in facts {
            let position = recorded.position.0;
            if let BotEvent::BotRegistered {
                workspace,
                username,
                telegram_id,
                mode,
                settings,
                registered_at,
                ..
            } = fact
            {
                rows.insert(BotRow {
                    bot_id: id,
                    workspace: workspace.uuid(),
                    username: username.into(),
                    telegram_id,
                    mode: mode.as_ref().to_owned(),
                    status: BotStatus::Stopped.as_ref().to_owned(),
                    status_reason: None,
                    settings: serde_json::to_value(settings).unwrap_or_default(),
                    holder: None,
                    lease_epoch: 0,
                    registered_at,
                    changed_at: registered_at,
                    created_position: position,
                    updated_position: position,
                });
                continue;
            }
            let row = rows.get_mut(&(id,)).ok_or(ProjectionError::Inconsistent {
                position: recorded.position,
                problem: "its bot was never registered",
            })?;
            row.updated_position = position;
            let set_status = |row: &mut BotRow, status: BotStatus, reason: Option<String>, at| {
                row.status = status.as_ref().to_owned();
                row.status_reason = reason;
                row.changed_at = at;
            };
            match fact {
                BotEvent::BotRegistered { .. } => {}
                BotEvent::BotTokenRotated { status, rotated_at, .. } => {
                    set_status(row, status, None, rotated_at)
                }
                BotEvent::BotConfigured { settings, mode, configured_at } => {
                    row.settings = serde_json::to_value(settings).unwrap_or_default();
                    row.mode = mode.as_ref().to_owned();
                    row.changed_at = configured_at;
                }
                BotEvent::BotStarted { started_at } => set_status(row, BotStatus::Running, None, started_at),
                BotEvent::BotStopped { reason, stopped_at } => {
                    set_status(row, BotStatus::Stopped, Some(reason.into()), stopped_at);
                }
                BotEvent::BotFaulted { code, detail, faulted_at } => {
                    set_status(row, BotStatus::Faulted, Some(format!("{code}: {detail}")), faulted_at);
                }
                BotEvent::BotLeaseAcquired { instance, epoch, .. } => {
                    row.holder = Some(instance.uuid());
                    row.lease_epoch = epoch;
                }
                BotEvent::BotLeaseLost { .. } => row.holder = None,
                BotEvent::BotArchived { reason, archived_at } => {
                    set_status(row, BotStatus::Archived, Some(reason.into()), archived_at);
                }
            }
        }
        Ok(rows.store(tx).await?)
    }
}

/// One bot.
///
/// # Errors
/// When the database fails.
pub async fn bot(pool: &PgPool, id: BotId) -> Result<Option<BotRow>, sqlx::Error> {
    Ok(bots_by_ids(pool, &[id.uuid()]).await?.pop())
}

/// Bots by id, in no order; absent ones are left out.
///
/// # Errors
/// When the database fails.
pub async fn bots_by_ids(pool: &PgPool, ids: &[Uuid]) -> Result<Vec<BotRow>, sqlx::Error> {
    sqlx::query_as!(BotRow, "SELECT * FROM bots WHERE bot_id = ANY($1)", ids).fetch_all(pool).await
}

/// Bots of a workspace.
///
/// # Errors
/// When the database fails.
pub async fn bots_page(
    pool: &PgPool,
    workspace: WorkspaceId,
    page: Page,
) -> Result<Vec<BotRow>, sqlx::Error> {
    select_page(pool, "bots", page, |query| {
        query.push(" AND workspace = ").push_bind(workspace.uuid());
    })
    .await
}

/// Ids of all bots of a workspace.
///
/// # Errors
/// When the database fails.
pub async fn bot_ids(pool: &PgPool, workspace: WorkspaceId) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar("SELECT bot_id FROM bots WHERE workspace = $1")
        .bind(workspace.uuid())
        .fetch_all(pool)
        .await
}

/// Ids of all bots that somebody should be running, over all workspaces.
///
/// # Errors
/// When the database fails.
pub async fn running_bots(pool: &PgPool) -> Result<Vec<BotId>, sqlx::Error> {
    let ids =
        sqlx::query_scalar!("SELECT bot_id FROM bots WHERE status = 'running' ORDER BY created_position")
            .fetch_all(pool)
            .await?;
    Ok(ids.into_iter().map(BotId).collect())
}
