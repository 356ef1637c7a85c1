//! The caller's workspace and its plans.

use async_graphql::{Context, ID, InputObject, Object, SimpleObject};
use botledger_domain::{
    PlanName,
    account::{PlanTerms, Unit},
    operator::Permission,
};
use botledger_projections::{WorkspaceRow, workspace_as_of};
use chrono::{DateTime, Utc};

use super::{
    Acts, AsOf, Conditions, Needs, Scope,
    error::{ApiError, ApiResult, UserError, outcome, reason},
    limit::{self, LimitInput, Period, PlanLimit, big, percents},
    or_refused, payload,
    scalars::{At, BigInt, NodeKind},
};

/// What a plan gives.
#[derive(SimpleObject)]
pub(crate) struct Plan {
    name: String,
    /// All hold at once.
    limits: Vec<PlanLimit>,
    /// Percent of a limit at which people are warned.
    warn_at_percent: Vec<i32>,
    /// Tokens a period, of the first limit of tokens.
    #[graphql(deprecation = "use limits")]
    tokens: Option<BigInt>,
    /// Its period.
    #[graphql(deprecation = "use limits")]
    period: Option<Period>,
}

pub(crate) struct Workspace(pub(crate) WorkspaceRow);

/// A tenant: everything belongs to one.
#[Object]
impl Workspace {
    /// `workspace:…`
    pub(super) async fn id(&self) -> ID {
        NodeKind::Workspace.id(self.0.workspace)
    }

    async fn name(&self) -> &str {
        &self.0.name
    }

    /// Plan of people nobody assigned one.
    async fn default_plan(&self) -> Option<&str> {
        self.0.default_plan.as_deref()
    }

    /// By name.
    async fn plans(&self) -> Vec<Plan> {
        let plans = self.0.plans().into_iter().map(|(name, terms)| {
            let tokens = terms.limits.iter().find(|limit| limit.unit == Unit::Tokens);
            Plan {
                name,
                tokens: tokens.map(|limit| big(limit.amount)),
                period: tokens.map(|limit| limit.period.into()),
                limits: PlanLimit::all(&terms),
                warn_at_percent: percents(&terms),
            }
        });
        plans.collect()
    }

    async fn created_at(&self) -> DateTime<Utc> {
        self.0.created_at
    }

    async fn changed_at(&self) -> DateTime<Utc> {
        self.0.changed_at
    }

    /// Of its last event.
    async fn position(&self) -> At {
        self.0.updated_position.into()
    }
}

/// The caller's own.
pub(super) async fn own(scope: &Scope<'_>) -> ApiResult<Option<Workspace>> {
    let (read, workspace) = (&scope.services.read, scope.identity()?.workspace);
    let row = match scope.moment {
        None => botledger_projections::workspace(read, workspace).await?,
        Some(moment) => workspace_as_of(read, workspace, moment.position).await?,
    };
    Ok(row.map(Workspace))
}

#[derive(Default)]
pub(crate) struct WorkspaceQuery;

#[Object]
impl WorkspaceQuery {
    /// The caller's workspace; with `asOf` as it was then.
    #[graphql(guard = "Needs(Permission::ReadSelf)")]
    async fn workspace(
        &self,
        ctx: &Context<'_>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<Workspace>> {
        let scope = Scope::then(ctx, as_of).await?;
        scope.at_least("directory", min_position).await?;
        own(&scope).await
    }
}

payload! {
    /// Answer of a mutation of the workspace.
    WorkspacePayload {
        /// As it is now.
        workspace: Workspace
    }
}

/// Another name.
#[derive(InputObject)]
struct WorkspaceRenameInput {
    /// 1 to 100 characters.
    name: String,
    conditions: Option<Conditions>,
}

/// A plan, new or changed.
#[derive(InputObject)]
struct PlanDefineInput {
    /// 1 to 64 of `a-z 0-9 - _`.
    plan: String,
    /// All hold at once; no two of one unit and period.
    limits: Option<Vec<LimitInput>>,
    /// Percent of a limit at which people are warned, 1 to 99.
    warn_at_percent: Option<Vec<i32>>,
    /// With `period` the same as one limit of tokens.
    tokens: Option<BigInt>,
    /// With `tokens`.
    period: Option<Period>,
    conditions: Option<Conditions>,
}

/// Which plan.
#[derive(InputObject)]
struct PlanSetDefaultInput {
    plan: String,
    conditions: Option<Conditions>,
}

/// Which plan, and why.
#[derive(InputObject)]
struct PlanRetireInput {
    plan: String,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    conditions: Option<Conditions>,
}

type Executed = botledger_commands::execute::Executed<botledger_domain::workspace::Workspace>;

async fn done(scope: &Scope<'_>, executed: &Executed) -> ApiResult<WorkspacePayload> {
    let position = executed.receipt.position;
    let thing = scope.written("directory", position, own(scope)).await;
    Ok(WorkspacePayload::done(thing, position))
}

fn plan_name(text: &str) -> Result<PlanName, UserError> {
    PlanName::parse(text).map_err(|error| UserError::of("plan", &error))
}

#[derive(Default)]
pub(crate) struct WorkspaceMutation;

#[Object]
impl WorkspaceMutation {
    /// Gives the workspace another name.
    #[graphql(guard = "Acts(Permission::ManageBots)")]
    async fn workspace_rename(
        &self,
        ctx: &Context<'_>,
        input: WorkspaceRenameInput,
    ) -> ApiResult<WorkspacePayload> {
        let scope = Scope::of(ctx)?;
        let caller = scope.caller(input.conditions)?;
        let workspace = scope.identity()?.workspace;
        let renamed = scope.services.app.workspaces.rename(&caller, workspace, input.name).await;
        let executed = or_refused!(WorkspacePayload, outcome(&scope, "workspace.rename", renamed).await?);
        done(&scope, &executed).await
    }

    /// Adds a plan or changes its terms. People on it get the new terms when it is assigned again.
    #[graphql(guard = "Acts(Permission::ManageQuotas)")]
    async fn plan_define(&self, ctx: &Context<'_>, input: PlanDefineInput) -> ApiResult<WorkspacePayload> {
        let scope = Scope::of(ctx)?;
        let caller = scope.caller(input.conditions)?;
        let plan = or_refused!(WorkspacePayload, plan_name(&input.plan));
        let terms = match (input.limits, input.tokens, input.period) {
            (Some(limits), None, None) => limit::terms(limits, input.warn_at_percent)?,
            (None, Some(tokens), Some(period)) => {
                let tokens =
                    u64::try_from(tokens.0).map_err(|_| ApiError::bad_input("tokens are at least 1"))?;
                let one = PlanTerms::tokens(tokens, period.into());
                PlanTerms { warn_at_percent: limit::warnings(input.warn_at_percent)?, ..one }
            }
            _ => return Err(ApiError::bad_input("give either limits, or tokens and a period")),
        };
        let workspace = scope.identity()?.workspace;
        let defined = scope.services.app.workspaces.define_plan(&caller, workspace, plan, terms).await;
        let executed = or_refused!(WorkspacePayload, outcome(&scope, "plan.define", defined).await?);
        done(&scope, &executed).await
    }

    /// Chooses the plan of new people.
    #[graphql(guard = "Acts(Permission::ManageQuotas)")]
    async fn plan_set_default(
        &self,
        ctx: &Context<'_>,
        input: PlanSetDefaultInput,
    ) -> ApiResult<WorkspacePayload> {
        let scope = Scope::of(ctx)?;
        let caller = scope.caller(input.conditions)?;
        let plan = or_refused!(WorkspacePayload, plan_name(&input.plan));
        let workspace = scope.identity()?.workspace;
        let set = scope.services.app.workspaces.set_default_plan(&caller, workspace, plan).await;
        let executed = or_refused!(WorkspacePayload, outcome(&scope, "plan.set_default", set).await?);
        done(&scope, &executed).await
    }

    /// Takes a plan out of the list; people on it keep it.
    #[graphql(guard = "Acts(Permission::ManageQuotas)")]
    async fn plan_retire(&self, ctx: &Context<'_>, input: PlanRetireInput) -> ApiResult<WorkspacePayload> {
        let scope = Scope::of(ctx)?;
        let caller = scope.caller(input.conditions)?;
        let plan = or_refused!(WorkspacePayload, plan_name(&input.plan));
        let reason = or_refused!(WorkspacePayload, reason(&input.reason));
        let workspace = scope.identity()?.workspace;
        let retired = scope.services.app.workspaces.retire_plan(&caller, workspace, plan, reason).await;
        let executed = or_refused!(WorkspacePayload, outcome(&scope, "plan.retire", retired).await?);
        done(&scope, &executed).await
    }
}
