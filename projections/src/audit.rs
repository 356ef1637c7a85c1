//! What operators and shells did and tried: rows of the audit table, and the events they caused.

use botledger_domain::{OperatorId, Position, RecordedEvent, WorkspaceId};
use chrono::{DateTime, Utc};
use sqlx::{PgPool, Postgres, QueryBuilder};
use uuid::Uuid;

use crate::{
    log::LogRow,
    select::{Page, push_page},
};

/// A row of the audit table.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct AuditRow {
    /// Rises with every row.
    pub id: i64,
    /// By the clock of the process that wrote it.
    pub happened_at: DateTime<Utc>,
    /// Absent where nobody was recognised, and for a shell.
    pub operator_id: Option<Uuid>,
    /// What was tried, for example `operator.invite`.
    pub action: String,
    /// `ok`, `refused`, `forbidden`, `failed`.
    pub outcome: String,
    /// Codes and ids.
    pub detail: serde_json::Value,
    /// The peer's address.
    pub source_ip: Option<String>,
    /// What the client called itself.
    pub user_agent: Option<String>,
    /// The process that was asked.
    pub instance: Option<Uuid>,
    /// `graphql` or `cli`.
    pub source: String,
    /// The request: events that it caused carry the same.
    pub correlation_id: Option<Uuid>,
    /// Whose; absent where nobody was recognised, and for a shell, which belongs to no workspace.
    pub workspace: Option<Uuid>,
}

/// Which rows; everything given must hold.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Of one workspace.
    pub workspace: Option<WorkspaceId>,
    /// Of one operator.
    pub operator: Option<OperatorId>,
    /// One action.
    pub action: Option<String>,
    /// Any of these outcomes.
    pub outcomes: Option<Vec<String>>,
    /// Of one request.
    pub correlation_id: Option<Uuid>,
    /// At or after.
    pub from: Option<DateTime<Utc>>,
    /// Before.
    pub until: Option<DateTime<Utc>>,
}

impl AuditFilter {
    fn push(&self, query: &mut QueryBuilder<'_, Postgres>) {
        if let Some(value) = self.workspace {
            query.push(" AND workspace = ").push_bind(value.uuid());
        }
        if let Some(value) = self.operator {
            query.push(" AND operator_id = ").push_bind(value.uuid());
        }
        if let Some(value) = &self.action {
            query.push(" AND action = ").push_bind(value.clone());
        }
        if let Some(values) = &self.outcomes {
            query.push(" AND outcome = ANY(").push_bind(values.clone()).push(")");
        }
        if let Some(value) = self.correlation_id {
            query.push(" AND correlation_id = ").push_bind(value);
        }
        if let Some(value) = self.from {
            query.push(" AND happened_at >= ").push_bind(value);
        }
        if let Some(value) = self.until {
            query.push(" AND happened_at < ").push_bind(value);
        }
    }
}

/// A page of the audit table, by id.
///
/// # Errors
/// When the database fails.
pub async fn audit_page(
    pool: &PgPool,
    filter: &AuditFilter,
    page: Page,
) -> Result<Vec<AuditRow>, sqlx::Error> {
    let mut query = QueryBuilder::new(
        "SELECT id, happened_at, operator_id, action, outcome, detail, source_ip, user_agent, instance, source,
                correlation_id, workspace
         FROM audit_log WHERE true",
    );
    filter.push(&mut query);
    push_page(&mut query, "id", page);
    Ok(page.in_order(query.build_query_as().fetch_all(pool).await?))
}

/// Rows of a period, of one workspace or of all, by time, then id: the order of a report. `after` is the last row
/// of the page before.
///
/// # Errors
/// When the database fails.
pub async fn audit_between(
    pool: &PgPool,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
    workspace: Option<Uuid>,
    after: Option<(DateTime<Utc>, i64)>,
    limit: i64,
) -> Result<Vec<AuditRow>, sqlx::Error> {
    // Ids begin at 1.
    let (time, id) = after.unwrap_or((from, 0));
    sqlx::query_as!(
        AuditRow,
        "SELECT id, happened_at, operator_id, action, outcome, detail, source_ip, user_agent, instance, source,
                correlation_id, workspace
         FROM audit_log
         WHERE happened_at < $1 AND (happened_at, id) > ($2, $3) AND ($5::uuid IS NULL OR workspace = $5)
         ORDER BY happened_at, id LIMIT $4",
        until,
        time,
        id,
        limit,
        workspace,
    )
    .fetch_all(pool)
    .await
}

/// An event that an operator or a shell caused, and the value that it replaced.
#[derive(Clone, Debug)]
pub struct AdminAct {
    /// The event: its payload is what is so afterwards.
    pub event: RecordedEvent,
    /// Payload of the event of the same type before it in its stream: what was so before.
    pub before: Option<String>,
    /// Of the operator; absent for a shell, which belongs to no workspace.
    pub workspace: Option<Uuid>,
}

#[derive(sqlx::FromRow)]
struct ActRow {
    #[sqlx(flatten)]
    event: LogRow,
    before: Option<String>,
    workspace: Option<Uuid>,
}

/// What operators of one workspace, or of all and shells, did after a position and up to another, in order.
///
/// # Errors
/// When the database fails.
pub async fn admin_acts(
    pool: &PgPool,
    after: Position,
    upto: Position,
    workspace: Option<Uuid>,
    limit: i64,
) -> Result<Vec<AdminAct>, sqlx::Error> {
    acts(pool, |query| {
        query.push("(e.metadata ->> 'actor' LIKE 'operator:%' OR e.metadata ->> 'actor' = 'system:cli')");
        query.push(" AND e.position > ").push_bind(after.0);
        query.push(" AND e.position <= ").push_bind(upto.0);
        if let Some(workspace) = workspace {
            query.push(" AND who.workspace = ").push_bind(workspace);
        }
        query.push(" ORDER BY e.position LIMIT ").push_bind(limit);
    })
    .await
}

/// What one request caused, in order.
///
/// # Errors
/// When the database fails.
pub async fn acts_of(pool: &PgPool, correlation_id: Uuid, limit: i64) -> Result<Vec<AdminAct>, sqlx::Error> {
    acts(pool, |query| {
        query.push("e.metadata ->> 'correlation_id' = ").push_bind(correlation_id.to_string());
        query.push(" ORDER BY e.position LIMIT ").push_bind(limit);
    })
    .await
}

async fn acts(
    pool: &PgPool,
    which: impl FnOnce(&mut QueryBuilder<'_, Postgres>),
) -> Result<Vec<AdminAct>, sqlx::Error> {
    let mut query = QueryBuilder::new(
        "SELECT e.position, e.recorded_at, e.aggregate_type, e.aggregate_id, e.sequence, e.event_type,
                e.event_version, e.payload::text AS payload, e.metadata::text AS metadata, (
                    SELECT p.payload::text FROM events p
                    WHERE p.aggregate_type = e.aggregate_type AND p.aggregate_id = e.aggregate_id
                      AND p.sequence < e.sequence AND p.event_type = e.event_type
                    ORDER BY p.sequence DESC LIMIT 1
                ) AS before, who.workspace
         FROM events e
         LEFT JOIN operator_logins who ON 'operator:' || who.operator_id = e.metadata ->> 'actor'
         WHERE ",
    );
    which(&mut query);
    let rows: Vec<ActRow> = query.build_query_as().fetch_all(pool).await?;
    Ok(rows
        .into_iter()
        .map(|row| AdminAct { event: row.event.into(), before: row.before, workspace: row.workspace })
        .collect())
}
