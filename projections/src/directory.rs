use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use botledger_domain::{
    OperatorId, RecordedEvent, WorkspaceId,
    operator::{Operator, OperatorEvent, OperatorStatus},
    quota::PlanTerms,
    workspace::{Workspace, WorkspaceEvent},
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
    /// One operator.
    OperatorRow in "operators"
    key { operator_id: Uuid }
    values {
        workspace: Uuid,
        login: String,
        /// As `Role`.
        role: String,
        /// `invited`, `active`, `disabled`.
        status: String,
        invited_by: Option<Uuid>,
        invited_at: DateTime<Utc>,
        changed_at: DateTime<Utc>,
        created_position: i64,
        updated_position: i64,
    }
}

read_row! {
    /// One tenant.
    WorkspaceRow in "workspaces"
    key { workspace: Uuid }
    values {
        name: String,
        default_plan: Option<String>,
        /// `PlanTerms` by name of the plan.
        plans: serde_json::Value,
        created_at: DateTime<Utc>,
        changed_at: DateTime<Utc>,
        created_position: i64,
        updated_position: i64,
    }
}

impl WorkspaceRow {
    /// The plans by name.
    #[must_use]
    pub fn plans(&self) -> BTreeMap<String, PlanTerms> {
        serde_json::from_value(self.plans.clone()).unwrap_or_default()
    }
}

/// One row an operator and one a workspace. Reads their events; owns `operators` and `workspaces`.
pub struct DirectoryProjection;

#[async_trait]
impl Projection for DirectoryProjection {
    fn name(&self) -> &'static str {
        "directory"
    }

    fn version(&self) -> i32 {
        2
    }

    fn tables(&self) -> &'static [&'static str] {
        &["operators", "workspaces"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        apply_operators(tx, page).await?;
        apply_workspaces(tx, page).await
    }
}

async fn apply_operators(tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
    let facts = decode_all::<Operator>(page)?;
    let mut rows = Rows::<OperatorRow>::fetch(tx, facts.iter().map(|(_, id, _)| (*id,))).await?;
    for (recorded, id, fact) in facts {
        let position = recorded.position.0;
        if let OperatorEvent::OperatorInvited { workspace, login, role, by, invited_at } = fact {
            rows.insert(OperatorRow {
                operator_id: id,
                workspace: workspace.uuid(),
                login: login.into(),
                role: role.as_ref().to_owned(),
                status: OperatorStatus::Invited.as_ref().to_owned(),
                invited_by: by.map(OperatorId::uuid),
                invited_at,
                changed_at: invited_at,
                created_position: position,
                updated_position: position,
            });
            continue;
        }
        let row = rows.get_mut(&(id,)).ok_or(ProjectionError::Inconsistent {
            position: recorded.position,
            problem: "its operator was never invited",
        })?;
        row.updated_position = position;
        let (status, at) = match fact {
            OperatorEvent::OperatorInvited { .. } => continue,
            OperatorEvent::OperatorActivated { activated_at } => (Some(OperatorStatus::Active), activated_at),
            OperatorEvent::OperatorRoleChanged { role, changed_at, .. } => {
                row.role = role.as_ref().to_owned();
                (None, changed_at)
            }
            OperatorEvent::OperatorDisabled { disabled_at, .. } => {
                (Some(OperatorStatus::Disabled), disabled_at)
            }
            OperatorEvent::OperatorEnabled { enabled_at, .. } => (Some(OperatorStatus::Active), enabled_at),
            OperatorEvent::PersonalAccessGranted { granted_at, .. } => (None, granted_at),
            OperatorEvent::PersonalAccessRevoked { revoked_at, .. } => (None, revoked_at),
        };
        row.changed_at = at;
        if let Some(status) = status {
            row.status = status.as_ref().to_owned();
        }
    }
    Ok(rows.store(tx).await?)
}

async fn apply_workspaces(tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
    let facts = decode_all::<Workspace>(page)?;
    let mut rows = Rows::<WorkspaceRow>::fetch(tx, facts.iter().map(|(_, id, _)| (*id,))).await?;
    for (recorded, id, fact) in facts {
        let position = recorded.position.0;
        if let WorkspaceEvent::WorkspaceCreated { name, created_at } = fact {
            rows.insert(WorkspaceRow {
                workspace: id,
                name,
                default_plan: None,
                plans: serde_json::json!({}),
                created_at,
                changed_at: created_at,
                created_position: position,
                updated_position: position,
            });
            continue;
        }
        let row = rows.get_mut(&(id,)).ok_or(ProjectionError::Inconsistent {
            position: recorded.position,
            problem: "its workspace was never created",
        })?;
        row.updated_position = position;
        row.changed_at = match fact {
            WorkspaceEvent::WorkspaceCreated { .. } => continue,
            WorkspaceEvent::WorkspaceRenamed { name, renamed_at } => {
                row.name = name;
                renamed_at
            }
            WorkspaceEvent::PlanDefined { plan, terms, defined_at } => {
                row.plans[plan.as_str()] = serde_json::to_value(terms).unwrap_or_default();
                defined_at
            }
            WorkspaceEvent::DefaultPlanSet { plan, set_at } => {
                row.default_plan = Some(plan.into());
                set_at
            }
            WorkspaceEvent::PlanRetired { plan, retired_at, .. } => {
                if let Some(plans) = row.plans.as_object_mut() {
                    plans.remove(plan.as_str());
                }
                retired_at
            }
        };
    }
    Ok(rows.store(tx).await?)
}

/// One operator.
///
/// # Errors
/// When the database fails.
pub async fn operator(pool: &PgPool, id: OperatorId) -> Result<Option<OperatorRow>, sqlx::Error> {
    sqlx::query_as!(OperatorRow, "SELECT * FROM operators WHERE operator_id = $1", id.uuid())
        .fetch_optional(pool)
        .await
}

/// Operators of a workspace.
///
/// # Errors
/// When the database fails.
pub async fn operators_page(
    pool: &PgPool,
    workspace: WorkspaceId,
    page: Page,
) -> Result<Vec<OperatorRow>, sqlx::Error> {
    select_page(pool, "operators", page, |query| {
        query.push(" AND workspace = ").push_bind(workspace.uuid());
    })
    .await
}

/// One workspace.
///
/// # Errors
/// When the database fails.
pub async fn workspace(pool: &PgPool, id: WorkspaceId) -> Result<Option<WorkspaceRow>, sqlx::Error> {
    sqlx::query_as!(WorkspaceRow, "SELECT * FROM workspaces WHERE workspace = $1", id.uuid())
        .fetch_optional(pool)
        .await
}

/// All workspaces, oldest first.
///
/// # Errors
/// When the database fails.
pub async fn workspaces_page(pool: &PgPool, page: Page) -> Result<Vec<WorkspaceRow>, sqlx::Error> {
    select_page(pool, "workspaces", page, |_| {}).await
}
