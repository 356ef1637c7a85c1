//! Quotas: what people may use and have used.

mod what_if;

use async_graphql::{Context, ID, InputObject, Object, SimpleObject, connection::EmptyFields};
use botledger_domain::{
    PlanName, SubjectId,
    account::{LimitLeft, Unit},
    operator::Permission,
};
use botledger_projections::{QuotaRow, quota_as_of, quota_of, quotas_page};
use chrono::{DateTime, Utc};

pub(crate) use self::what_if::PlanWhatIfQuery;
use super::{
    Acts, AsOf, Conditions, Needs, Scope,
    error::{ApiError, ApiResult, UserError, outcome, reason},
    limit::{self, LimitUnit, LimitWarning, Period, PlanLimit, big, percents},
    or_refused,
    page::{List, Slice},
    payload,
    scalars::{At, BigInt, NodeKind},
};

/// Extra tokens until a moment.
#[derive(SimpleObject)]
pub(crate) struct QuotaOverride {
    unit: LimitUnit,
    /// Added to every limit of the unit.
    amount: BigInt,
    /// The amount of an override of tokens; null of others.
    #[graphql(deprecation = "use unit and amount")]
    tokens: Option<BigInt>,
    expires_at: DateTime<Utc>,
}

pub(crate) struct Quota(pub(crate) QuotaRow);

impl Quota {
    fn tokens(&self) -> Option<LimitLeft> {
        self.0.left().into_iter().find(|left| left.unit == Unit::Tokens)
    }
}

/// A person's quota, as of its last event: a period may have ended since.
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

    /// What the plan grants; all limits hold at once.
    async fn limits(&self) -> Vec<PlanLimit> {
        PlanLimit::all(&self.0.terms())
    }

    /// Percent of a limit at which the person is warned.
    async fn warn_at_percent(&self) -> Vec<i32> {
        percents(&self.0.terms())
    }

    /// How far each limit is used, in the order of `limits`.
    async fn left(&self) -> Vec<limit::LimitLeft> {
        self.0.left().into_iter().map(limit::LimitLeft).collect()
    }

    /// Given in the present periods.
    async fn warnings(&self) -> Vec<LimitWarning> {
        self.0.warnings().into_iter().map(LimitWarning::from).collect()
    }

    /// Tokens a period, of the first limit of tokens.
    #[graphql(deprecation = "use limits")]
    async fn plan_tokens(&self) -> Option<BigInt> {
        let terms = self.0.terms();
        terms.limits.iter().find(|limit| limit.unit == Unit::Tokens).map(|limit| big(limit.amount))
    }

    /// Its period.
    #[graphql(deprecation = "use limits")]
    async fn period(&self) -> Option<Period> {
        self.tokens().map(|left| left.period.into())
    }

    /// Beginning of its present period.
    #[graphql(deprecation = "use left")]
    async fn window_start(&self) -> Option<DateTime<Utc>> {
        let meters = self.0.meters();
        meters.iter().find(|meter| meter.unit == Unit::Tokens).map(|meter| meter.window.start)
    }

    /// When it resets.
    #[graphql(deprecation = "use left")]
    async fn window_end(&self) -> Option<DateTime<Utc>> {
        self.tokens().map(|left| left.resets_at)
    }

    /// Tokens used in it.
    #[graphql(deprecation = "use left")]
    async fn used(&self) -> Option<BigInt> {
        self.tokens().map(|left| big(left.used))
    }

    /// Tokens held for turns that are open.
    async fn reserved(&self) -> BigInt {
        BigInt(self.0.reserved_tokens)
    }

    /// What was granted on top, with its ends.
    async fn overrides(&self) -> Vec<QuotaOverride> {
        let shown = self.0.overrides().into_iter().map(|one| QuotaOverride {
            unit: one.unit.into(),
            amount: big(one.amount),
            tokens: (one.unit == Unit::Tokens).then(|| big(one.amount)),
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
    let (read, workspace) = (&scope.services.read, scope.identity()?.workspace);
    let row = match scope.moment {
        None => quota_of(read, subject).await?,
        Some(moment) => quota_as_of(read, workspace, subject, moment.position).await?,
    };
    Ok(row.filter(|row| row.workspace == workspace.uuid()).map(Quota))
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
        let scope = Scope::then(ctx, as_of).await?;
        let subject: SubjectId = NodeKind::Person.parse(&person_id)?;
        scope.at_least("quotas", min_position).await?;
        find(&scope, subject).await
    }

    /// All quotas, newest first; with `asOf` as they were then.
    #[graphql(
        guard = "Needs(Permission::ReadOperations)",
        complexity = "super::past_cost(as_of.is_some()) + super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the moment and the position")]
    async fn quotas(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<List<Quota>> {
        let scope = Scope::then(ctx, as_of).await?;
        let paging = Slice { first, after, last, before }.of("quotas")?;
        scope.at_least("quotas", min_position).await?;
        let rows =
            quotas_page(&scope.read("quotas").await?, scope.identity()?.workspace, paging.page).await?;
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

/// More of a unit for a person.
#[derive(InputObject)]
struct QuotaGrantOverrideInput {
    person_id: ID,
    /// Of what, with `amount`.
    unit: Option<LimitUnit>,
    /// At least 1; money in millionths.
    amount: Option<BigInt>,
    /// The same as an amount of tokens.
    tokens: Option<BigInt>,
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

    /// Gives a person more of what their plan limits, until a moment.
    #[graphql(guard = "Acts(Permission::ManageQuotas)")]
    async fn quota_grant_override(
        &self,
        ctx: &Context<'_>,
        input: QuotaGrantOverrideInput,
    ) -> ApiResult<QuotaPayload> {
        let scope = Scope::of(ctx)?;
        let subject: SubjectId = NodeKind::Person.parse(&input.person_id)?;
        let caller = scope.caller(input.conditions)?;
        let (unit, amount) = match (input.unit, input.amount, input.tokens) {
            (Some(unit), Some(amount), None) => (unit, amount),
            (None, None, Some(tokens)) => (LimitUnit::Tokens, tokens),
            _ => return Err(ApiError::bad_input("give either a unit and an amount, or tokens")),
        };
        let amount = u64::try_from(amount.0).map_err(|_| ApiError::bad_input("an amount is at least 1"))?;
        let reason = or_refused!(QuotaPayload, reason(&input.reason));
        let workspace = scope.identity()?.workspace;
        let quotas = &scope.services.app.quotas;
        let granted = quotas
            .grant_override(&caller, workspace, subject, unit.into(), amount, input.expires_at, reason)
            .await;
        let executed = or_refused!(QuotaPayload, outcome(&scope, "quota.grant_override", granted).await?);
        let position = executed.receipt.position;
        let thing = scope.written("quotas", position, find(&scope, subject)).await;
        Ok(QuotaPayload::done(thing, position))
    }
}
