use std::sync::Arc;

use async_trait::async_trait;
use botledger_domain::{
    RecordedEvent, SubjectId, WorkspaceId,
    quota::{Override, Quota, QuotaEvent},
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
    /// One person's quota in a workspace, as of the last event; a window may have ended since.
    QuotaRow in "quotas"
    key { quota_id: Uuid }
    values {
        workspace: Uuid,
        subject: Uuid,
        plan: String,
        plan_tokens: i64,
        /// `minute`, `hour`, `day`, `week`, `month`.
        period: String,
        window_start: DateTime<Utc>,
        window_end: DateTime<Utc>,
        used: i64,
        reserved: i64,
        /// A list of `Override`; those that ran out leave it when a window begins.
        overrides: serde_json::Value,
        /// Times the person was refused for it.
        refusals: i64,
        created_position: i64,
        updated_position: i64,
    }
}

fn tokens(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

/// One row a quota. Reads `quota` events; owns `quotas`.
pub struct QuotasProjection;

#[async_trait]
impl Projection for QuotasProjection {
    fn name(&self) -> &'static str {
        "quotas"
    }

    fn tables(&self) -> &'static [&'static str] {
        &["quotas"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        let facts = decode_all::<Quota>(page)?;
        let mut rows = Rows::<QuotaRow>::fetch(tx, facts.iter().map(|(_, id, _)| (*id,))).await?;
        for (recorded, id, fact) in facts {
            let position = recorded.position.0;
            if let QuotaEvent::PlanAssigned { workspace, subject, plan, terms, window, used, .. } = fact {
                let row = rows.get_or_insert((id,), || QuotaRow {
                    quota_id: id,
                    workspace: workspace.uuid(),
                    subject: subject.uuid(),
                    plan: String::new(),
                    plan_tokens: 0,
                    period: String::new(),
                    window_start: window.start,
                    window_end: window.end,
                    used: 0,
                    reserved: 0,
                    overrides: serde_json::json!([]),
                    refusals: 0,
                    created_position: position,
                    updated_position: position,
                });
                row.plan = plan.into();
                row.plan_tokens = tokens(terms.tokens);
                row.period = terms.period.as_ref().to_owned();
                (row.window_start, row.window_end) = (window.start, window.end);
                row.used = tokens(used);
                row.updated_position = position;
                continue;
            }
            let row = rows.get_mut(&(id,)).ok_or(ProjectionError::Inconsistent {
                position: recorded.position,
                problem: "its quota has no plan",
            })?;
            row.updated_position = position;
            match fact {
                QuotaEvent::PlanAssigned { .. } => {}
                QuotaEvent::PeriodRolled { window, used, reserved, rolled_at } => {
                    (row.window_start, row.window_end) = (window.start, window.end);
                    (row.used, row.reserved) = (tokens(used), tokens(reserved));
                    let running = |grant: &serde_json::Value| {
                        serde_json::from_value::<Override>(grant.clone())
                            .is_ok_and(|grant| rolled_at < grant.expires_at)
                    };
                    if let Some(list) = row.overrides.as_array_mut() {
                        list.retain(running);
                    }
                }
                QuotaEvent::TokensReserved { used, reserved, .. }
                | QuotaEvent::TokensSettled { used, reserved, .. }
                | QuotaEvent::TokensReleased { used, reserved, .. } => {
                    (row.used, row.reserved) = (tokens(used), tokens(reserved));
                }
                QuotaEvent::QuotaExceeded { .. } => row.refusals += 1,
                QuotaEvent::OverrideGranted { tokens, expires_at, .. } => {
                    let grant = serde_json::to_value(Override { tokens, expires_at }).unwrap_or_default();
                    if let Some(list) = row.overrides.as_array_mut() {
                        list.push(grant);
                    }
                }
            }
        }
        Ok(rows.store(tx).await?)
    }
}

/// A person's quota.
///
/// # Errors
/// When the database fails.
pub async fn quota_of(pool: &PgPool, subject: SubjectId) -> Result<Option<QuotaRow>, sqlx::Error> {
    Ok(quotas_of(pool, &[subject.uuid()]).await?.pop())
}

/// Quotas of people, in no order; absent ones are left out.
///
/// # Errors
/// When the database fails.
pub async fn quotas_of(pool: &PgPool, subjects: &[Uuid]) -> Result<Vec<QuotaRow>, sqlx::Error> {
    sqlx::query_as!(QuotaRow, "SELECT * FROM quotas WHERE subject = ANY($1)", subjects).fetch_all(pool).await
}

/// Quotas of a workspace.
///
/// # Errors
/// When the database fails.
pub async fn quotas_page(
    pool: &PgPool,
    workspace: WorkspaceId,
    page: Page,
) -> Result<Vec<QuotaRow>, sqlx::Error> {
    select_page(pool, "quotas", page, |query| {
        query.push(" AND workspace = ").push_bind(workspace.uuid());
    })
    .await
}
