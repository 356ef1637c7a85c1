use std::sync::Arc;

use async_trait::async_trait;
use botledger_domain::{
    RecordedEvent, WorkspaceId,
    rate_limit::{RateOverride, RateOverrideEvent, RateSubject, rate_override_stream},
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
    /// What an operator said about the pace of a subject.
    RateOverrideRow in "rate_overrides"
    key { override_id: Uuid }
    values {
        workspace: Uuid,
        /// As `RateSubjectKind`.
        subject_kind: String,
        subject_id: String,
        /// As `RateRule`.
        rule: serde_json::Value,
        /// Of the last decision.
        reason: String,
        /// False once it was removed; it may have run out as well.
        standing: bool,
        expires_at: Option<DateTime<Utc>>,
        changed_by: Uuid,
        changed_at: DateTime<Utc>,
        created_position: i64,
        updated_position: i64,
    }
}

/// One row a subject that ever had an override. Reads `rate_override` events; owns `rate_overrides`.
pub struct RateOverridesProjection;

#[async_trait]
impl Projection for RateOverridesProjection {
    fn name(&self) -> &'static str {
        "rate_overrides"
    }

    fn tables(&self) -> &'static [&'static str] {
        &["rate_overrides"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        let facts = decode_all::<RateOverride>(page)?;
        let mut rows = Rows::<RateOverrideRow>::fetch(tx, facts.iter().map(|(_, id, _)| (*id,))).await?;
        for (recorded, id, fact) in facts {
            let position = recorded.position.0;
            match fact {
                RateOverrideEvent::RateOverrideSet {
                    workspace,
                    subject,
                    rule,
                    reason,
                    expires_at,
                    by,
                    set_at,
                } => {
                    let row = rows.get_or_insert((id,), || RateOverrideRow {
                        override_id: id,
                        workspace: workspace.uuid(),
                        subject_kind: subject.kind().as_ref().to_owned(),
                        subject_id: subject.id().to_owned(),
                        rule: serde_json::Value::Null,
                        reason: String::new(),
                        standing: true,
                        expires_at: None,
                        changed_by: by.uuid(),
                        changed_at: set_at,
                        created_position: position,
                        updated_position: position,
                    });
                    row.rule = serde_json::to_value(rule).unwrap_or_default();
                    row.reason = reason.into();
                    (row.standing, row.expires_at) = (true, expires_at);
                    (row.changed_by, row.changed_at, row.updated_position) = (by.uuid(), set_at, position);
                }
                RateOverrideEvent::RateOverrideRemoved { reason, by, removed_at } => {
                    if let Some(row) = rows.get_mut(&(id,)) {
                        row.reason = reason.into();
                        (row.standing, row.expires_at) = (false, None);
                        (row.changed_by, row.changed_at, row.updated_position) =
                            (by.uuid(), removed_at, position);
                    }
                }
            }
        }
        Ok(rows.store(tx).await?)
    }
}

/// The override of a subject; absent when there never was one.
///
/// # Errors
/// When the database fails.
pub async fn rate_override(
    pool: &PgPool,
    workspace: WorkspaceId,
    subject: &RateSubject,
) -> Result<Option<RateOverrideRow>, sqlx::Error> {
    sqlx::query_as("SELECT * FROM rate_overrides WHERE override_id = $1")
        .bind(rate_override_stream(workspace, subject))
        .fetch_optional(pool)
        .await
}

/// Overrides of a workspace. With a moment only those in force then, as far as today's rows tell.
///
/// # Errors
/// When the database fails.
pub async fn rate_overrides_page(
    pool: &PgPool,
    workspace: WorkspaceId,
    in_force_at: Option<DateTime<Utc>>,
    page: Page,
) -> Result<Vec<RateOverrideRow>, sqlx::Error> {
    select_page(pool, "rate_overrides", page, |query| {
        query.push(" AND workspace = ").push_bind(workspace.uuid());
        if let Some(moment) = in_force_at {
            query.push(" AND standing AND (expires_at IS NULL OR expires_at > ").push_bind(moment).push(")");
        }
    })
    .await
}
