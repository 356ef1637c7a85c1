//! The audit table: who asked for what, from where, how it ended, and what it changed.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, Json, Object, connection::EmptyFields};
use botledger_domain::{OperatorId, RecordedEvent, operator::Permission};
use botledger_projections::{AuditFilter, AuditRow, acts_of, audit_page};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Needs, Scope,
    error::{ApiError, ApiResult},
    event::{Event, is_own},
    page::{List, Slice},
    scalars::{NodeKind, wire_enum},
};

/// Events of one call that are shown: a call that causes more is a bulk, and `events` pages through it.
const MOST_CHANGES: i64 = 100;

wire_enum! {
    /// How a call ended.
    AuditOutcome {
        /// It was done, or was so already.
        Ok = "ok",
        /// A rule said no.
        Refused = "refused",
        /// The caller may not.
        Forbidden = "forbidden",
        /// Something was away; it may have been done.
        Failed = "failed",
    }
}

pub(crate) struct AuditEntry(AuditRow);

/// A call of an operator.
#[Object]
impl AuditEntry {
    async fn happened_at(&self) -> DateTime<Utc> {
        self.0.happened_at
    }

    /// `operator:…`
    async fn operator_id(&self) -> Option<ID> {
        self.0.operator_id.map(|id| NodeKind::Operator.id(id))
    }

    /// What was asked for, for example `operator.invite`, or the field that was forbidden.
    async fn action(&self) -> &str {
        &self.0.action
    }

    async fn outcome(&self) -> ApiResult<AuditOutcome> {
        AuditOutcome::read(&self.0.outcome)
    }

    /// Codes and ids: why it was refused, whose text was read.
    async fn detail(&self) -> Json<serde_json::Value> {
        Json(self.0.detail.clone())
    }

    /// `graphql` or `cli`.
    async fn source(&self) -> &str {
        &self.0.source
    }

    /// The address that asked.
    async fn source_ip(&self) -> Option<&str> {
        self.0.source_ip.as_deref()
    }

    /// What the client called itself.
    async fn user_agent(&self) -> Option<&str> {
        self.0.user_agent.as_deref()
    }

    /// The process that was asked.
    async fn instance(&self) -> Option<String> {
        self.0.instance.map(|id| id.to_string())
    }

    /// The request; events that it caused carry the same.
    async fn correlation_id(&self) -> Option<String> {
        self.0.correlation_id.map(|id| id.to_string())
    }

    /// What the request changed, in order; at most 100.
    #[graphql(complexity = "10 + 10 * child_complexity")]
    async fn changes(&self, ctx: &Context<'_>) -> ApiResult<Vec<AuditChange>> {
        let Some(request) = self.0.correlation_id else { return Ok(Vec::new()) };
        let scope = Scope::of(ctx)?;
        let mut own = Vec::new();
        for act in acts_of(&scope.services.read, request, MOST_CHANGES).await? {
            if is_own(scope.services, scope.request, &act.event).await? {
                own.push(AuditChange { event: Arc::new(act.event), before: act.before });
            }
        }
        scope.services.log.flushed().await?;
        Ok(own)
    }
}

pub(crate) struct AuditChange {
    event: Arc<RecordedEvent>,
    before: Option<String>,
}

/// One event that a call caused.
#[Object]
impl AuditChange {
    /// Its payload is what is so afterwards.
    async fn event(&self) -> Event {
        Event(Arc::clone(&self.event))
    }

    /// Payload of the event of the same type before it in the same stream: what was so before; null where there
    /// was none.
    async fn before(&self) -> ApiResult<Option<Json<serde_json::Value>>> {
        let before = self.before.as_deref().map(serde_json::from_str).transpose();
        Ok(before.map_err(ApiError::unavailable)?.map(Json))
    }
}

/// Which calls; everything given must hold.
#[derive(Default, InputObject)]
struct AuditFilterInput {
    operator_id: Option<ID>,
    /// For example `operator.invite`.
    action: Option<String>,
    /// Any of these.
    outcomes: Option<Vec<AuditOutcome>>,
    /// Of one request.
    correlation_id: Option<String>,
    /// At or after.
    from: Option<DateTime<Utc>>,
    /// Before.
    until: Option<DateTime<Utc>>,
}

#[derive(Default)]
pub(crate) struct AuditQuery;

#[Object]
impl AuditQuery {
    /// What the operators of the workspace asked for, newest first: done, refused, forbidden and failed.
    #[graphql(
        guard = "Needs(Permission::ReadLedger)",
        complexity = "super::page_cost(first, last) * child_complexity"
    )]
    async fn audit_entries(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<AuditFilterInput>,
    ) -> ApiResult<List<AuditEntry>> {
        let scope = Scope::of(ctx)?;
        let paging = Slice { first, after, last, before }.of("audit")?;
        let given = filter.unwrap_or_default();
        let correlation_id = given.correlation_id.as_deref().map(Uuid::parse_str).transpose();
        let filter = AuditFilter {
            workspace: Some(scope.identity()?.workspace),
            operator: given.operator_id.map(|id| NodeKind::Operator.parse::<OperatorId>(&id)).transpose()?,
            action: given.action,
            outcomes: given
                .outcomes
                .map(|outcomes| outcomes.into_iter().map(|one| one.wire().to_owned()).collect()),
            correlation_id: correlation_id.map_err(|_| ApiError::bad_input("a correlationId is a UUID"))?,
            from: given.from,
            until: given.until,
        };
        let rows = audit_page(&scope.services.read, &filter, paging.page).await?;
        Ok(paging.connect(rows, EmptyFields, |row| row.id, AuditEntry))
    }
}
