//! Quotas: what people may use and have used.

use async_graphql::{Context, ID, InputObject, Object, SimpleObject, connection::EmptyFields};
use botledger_domain::{
    PlanName, SubjectId,
    operator::Permission,
    quota::{Override, Period as DomainPeriod},
};
use botledger_projections::{QuotaRow, quota_as_of, quota_of, quotas_page};
use chrono::{DateTime, Utc};

use super::{
    Acts, AsOf, Conditions, Needs, Scope,
    error::{ApiError, ApiResult, UserError, outcome, reason},
    or_refused,
    page::{List, Slice},
    payload,
    scalars::{At, BigInt, NodeKind, wire_enum},
};

wire_enum! {
    /// How long a plan's tokens last. Periods begin on the clock, in UTC.
    Period {
        Minute = "minute",
        Hour = "hour",
        Day = "day",
        /// From Monday.
        Week = "week",
        Month = "month",
    }
}

impl From<Period> for DomainPeriod {
    fn from(period: Period) -> Self {
        match period {
            Period::Minute => Self::Minute,
            Period::Hour => Self::Hour,
            Period::Day => Self::Day,
            Period::Week => Self::Week,
            Period::Month => Self::Month,
        }
    }
}

impl From<DomainPeriod> for Period {
    fn from(period: DomainPeriod) -> Self {
        match period {
            DomainPeriod::Minute => Self::Minute,
            DomainPeriod::Hour => Self::Hour,
            DomainPeriod::Day => Self::Day,
            DomainPeriod::Week => Self::Week,
            DomainPeriod::Month => Self::Month,
        }
    }
}

/// Extra tokens until a moment.
#[derive(SimpleObject)]
pub(crate) struct QuotaOverride {
    tokens: BigInt,
    expires_at: DateTime<Utc>,
}

pub(crate) struct Quota(pub(crate) QuotaRow);

/// A person's quota, as of its last event: a window may have ended since.
#[Object]
impl Quota {
    /// `quota:…`
    async fn id(&self) -> ID {
        NodeKind::Quota.id(self.0.quota_id)
    }

    /// Whose it is.
    async fn person_id(&self) -> ID {
        NodeKind::Person.id(self.0.subject)
    }

    /// Name of the plan.
    async fn plan(&self) -> &str {
        &self.0.plan
    }

    /// Tokens a period.
    async fn plan_tokens(&self) -> BigInt {
        BigInt(self.0.plan_tokens)
    }

    /// The plan's period.
    async fn period(&self) -> ApiResult<Period> {
        Period::read(&self.0.period)
    }

    /// Beginning of the present window.
    async fn window_start(&self) -> DateTime<Utc> {
        self.0.window_start
    }

    /// When it resets.
    async fn window_end(&self) -> DateTime<Utc> {
        self.0.window_end
    }

    /// Tokens used in the window.
    async fn used(&self) -> BigInt {
        BigInt(self.0.used)
    }

    /// Tokens held for turns that are open.
    async fn reserved(&self) -> BigInt {
        BigInt(self.0.reserved)
    }

    /// Extra tokens, with their ends.
    async fn overrides(&self) -> Vec<QuotaOverride> {
        let overrides: Vec<Override> = serde_json::from_value(self.0.overrides.clone()).unwrap_or_default();
        let shown = overrides.into_iter().map(|one| QuotaOverride {
            tokens: BigInt(i64::try_from(one.tokens).unwrap_or(i64::MAX)),
            expires_at: one.expires_at,
        });
        shown.collect()
    }

    /// Times the person was refused for it.
    async fn refusals(&self) -> BigInt {
        BigInt(self.0.refusals)
    }

    /// Of its last event.
    async fn position(&self) -> At {
        self.0.updated_position.into()
    }
}

async fn find(scope: &Scope<'_>, subject: SubjectId) -> ApiResult<Option<Quota>> {
    let workspace = scope.identity()?.workspace.uuid();
    let row = quota_of(&scope.services.read, subject).await?;
    Ok(row.filter(|row| row.workspace == workspace).map(Quota))
}

#[derive(Default)]
pub(crate) struct QuotaQuery;

#[Object]
impl QuotaQuery {
    /// A person's quota; with `asOf` as it was then.
    #[graphql(guard = "Needs(Permission::ReadOperations)")]
    async fn quota(
        &self,
        ctx: &Context<'_>,
        person_id: ID,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<Quota>> {
        let scope = Scope::of(ctx)?;
        let subject: SubjectId = NodeKind::Person.parse(&person_id)?;
        scope.at_least("quotas", min_position).await?;
        let Some(as_of) = as_of else { return find(&scope, subject).await };
        let upto = scope.position(as_of).await?;
        let workspace = scope.identity()?.workspace;
        Ok(quota_as_of(&scope.services.read, workspace, subject, upto).await?.map(Quota))
    }

    /// All quotas, newest first.
    #[graphql(
        guard = "Needs(Permission::ReadOperations)",
        complexity = "super::page_cost(first, last) * child_complexity"
    )]
    async fn quotas(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        min_position: Option<At>,
    ) -> ApiResult<List<Quota>> {
        let scope = Scope::of(ctx)?;
        let paging = Slice { first, after, last, before }.of("quotas")?;
        scope.at_least("quotas", min_position).await?;
        let rows = quotas_page(&scope.services.read, scope.identity()?.workspace, paging.page).await?;
        Ok(paging.connect(rows, EmptyFields, |row| row.created_position, Quota))
    }
}

payload! {
    /// Answer of a mutation of a quota.
    QuotaPayload {
        /// As it is now.
        quota: Quota
    }
}

/// A plan for a person.
#[derive(InputObject)]
struct QuotaAssignPlanInput {
    person_id: ID,
    /// One of the workspace's plans.
    plan: String,
    conditions: Option<Conditions>,
}

/// Extra tokens for a person.
#[derive(InputObject)]
struct QuotaGrantOverrideInput {
    person_id: ID,
    /// At least 1.
    tokens: BigInt,
    /// Must be ahead.
    expires_at: DateTime<Utc>,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    conditions: Option<Conditions>,
}

#[derive(Default)]
pub(crate) struct QuotaMutation;

#[Object]
impl QuotaMutation {
    /// Puts a person on a plan; what was used stays used unless the plan's window is another one.
    #[graphql(guard = "Acts(Permission::ManageQuotas)")]
    async fn quota_assign_plan(
        &self,
        ctx: &Context<'_>,
        input: QuotaAssignPlanInput,
    ) -> ApiResult<QuotaPayload> {
        let scope = Scope::of(ctx)?;
        let subject: SubjectId = NodeKind::Person.parse(&input.person_id)?;
        let caller = scope.caller(input.conditions)?;
        let plan = or_refused!(
            QuotaPayload,
            PlanName::parse(&input.plan).map_err(|error| UserError::of("plan", &error))
        );
        let workspace = scope.identity()?.workspace;
        let assigned = scope.services.app.quotas.assign_plan(&caller, workspace, subject, &plan).await;
        let executed = or_refused!(QuotaPayload, outcome(&scope, "quota.assign_plan", assigned).await?);
        let position = executed.receipt.position;
        let thing = scope.written("quotas", position, find(&scope, subject)).await;
        Ok(QuotaPayload::done(thing, position))
    }

    /// Gives a person extra tokens until a moment.
    #[graphql(guard = "Acts(Permission::ManageQuotas)")]
    async fn quota_grant_override(
        &self,
        ctx: &Context<'_>,
        input: QuotaGrantOverrideInput,
    ) -> ApiResult<QuotaPayload> {
        let scope = Scope::of(ctx)?;
        let subject: SubjectId = NodeKind::Person.parse(&input.person_id)?;
        let caller = scope.caller(input.conditions)?;
        let tokens =
            u64::try_from(input.tokens.0).map_err(|_| ApiError::bad_input("tokens are at least 1"))?;
        let reason = or_refused!(QuotaPayload, reason(&input.reason));
        let workspace = scope.identity()?.workspace;
        let quotas = &scope.services.app.quotas;
        let granted =
            quotas.grant_override(&caller, workspace, subject, tokens, input.expires_at, reason).await;
        let executed = or_refused!(QuotaPayload, outcome(&scope, "quota.grant_override", granted).await?);
        let position = executed.receipt.position;
        let thing = scope.written("quotas", position, find(&scope, subject)).await;
        Ok(QuotaPayload::done(thing, position))
    }
}
