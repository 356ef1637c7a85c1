//! Budgets: what bots and the workspace as a whole may use.

use async_graphql::{Context, ID, InputObject, Object, OneofObject, connection::EmptyFields};
use botledger_domain::{BotId, Reason, WorkspaceId, account::Holder, operator::Permission};
use botledger_projections::{BudgetRow, budgets_page};
use chrono::{DateTime, Utc};

use super::{
    Acts, AsOf, Conditions, Needs, Scope,
    error::{ApiError, ApiResult, UserError, outcome},
    limit::{
        ExhaustedLimit, LimitInput, LimitLeft, LimitUnit, LimitWarning, PlanLimit, Raise, percents, terms,
    },
    or_refused,
    page::{List, Slice},
    payload,
    scalars::{At, BigInt, NodeKind, wire_enum},
};

wire_enum! {
    /// What has a budget.
    HolderKind {
        Bot = "bot",
        Workspace = "workspace",
        Team = "team",
        /// To the API.
        Key = "key",
    }
}

/// Whose budget: exactly one of these.
#[derive(OneofObject)]
pub(crate) enum HolderInput {
    /// A bot of the workspace.
    BotId(ID),
    /// The caller's workspace as a whole.
    WorkspaceId(ID),
}

impl HolderInput {
    fn holder(&self) -> ApiResult<Holder> {
        Ok(match self {
            Self::BotId(id) => Holder::Bot(NodeKind::Bot.parse::<BotId>(id)?),
            Self::WorkspaceId(id) => Holder::Workspace(NodeKind::Workspace.parse::<WorkspaceId>(id)?),
        })
    }
}

pub(crate) struct Budget {
    row: BudgetRow,
    now: DateTime<Utc>,
}

impl Budget {
    fn of(scope: &Scope<'_>, row: BudgetRow) -> Self {
        Self { row, now: scope.now() }
    }
}

/// What a bot or the workspace may use, all its turns together.
#[Object]
impl Budget {
    /// `budget:…`
    async fn id(&self) -> ID {
        NodeKind::Budget.id(self.row.head.budget_id)
    }

    async fn holder_kind(&self) -> ApiResult<HolderKind> {
        HolderKind::read(&self.row.head.holder_kind)
    }

    /// `bot:…` or `workspace:…`; of other holders their bare id.
    async fn holder_id(&self) -> ID {
        match self.row.head.holder_kind.as_str() {
            "bot" => NodeKind::Bot.id(self.row.head.holder_id),
            "workspace" => NodeKind::Workspace.id(self.row.head.holder_id),
            _ => ID(self.row.head.holder_id.to_string()),
        }
    }

    /// Whether it limits its holder; false when it was removed.
    async fn in_force(&self) -> bool {
        self.row.head.in_force
    }

    /// What it grants.
    async fn limits(&self) -> Vec<PlanLimit> {
        PlanLimit::all(&self.row.terms())
    }

    /// Percent of a limit at which operators are warned.
    async fn warn_at_percent(&self) -> Vec<i32> {
        percents(&self.row.terms())
    }

    /// How far each limit is used now, in the order of `limits`.
    async fn left(&self) -> Vec<LimitLeft> {
        self.row.left_at(self.now).into_iter().map(LimitLeft).collect()
    }

    /// What was granted on top, with its ends.
    async fn raises(&self) -> Vec<Raise> {
        self.row.raises().into_iter().map(Raise::from).collect()
    }

    /// Given in the present periods.
    async fn warnings(&self) -> Vec<LimitWarning> {
        self.row.warnings().into_iter().map(LimitWarning::from).collect()
    }

    /// Since when there is a limit that does not cover what turns ask for; absent when all do.
    async fn exhausted_at(&self) -> Option<DateTime<Utc>> {
        self.row.exhausted_at(self.now).into_iter().map(|exhausted| exhausted.since).min()
    }

    /// Limits that did not cover a turn in their present period.
    async fn exhausted(&self) -> Vec<ExhaustedLimit> {
        self.row.exhausted_at(self.now).into_iter().map(ExhaustedLimit::from).collect()
    }

    /// How many turns may reserve at the same moment without waiting for each other.
    async fn shares(&self) -> i32 {
        i32::try_from(self.row.head.shares).unwrap_or(i32::MAX)
    }

    /// Of the last event about it or one of its shares.
    async fn position(&self) -> At {
        self.row.moved_position.into()
    }
}

async fn find(scope: &Scope<'_>, holder: Holder) -> ApiResult<Option<Budget>> {
    let workspace = scope.identity()?.workspace;
    let row = botledger_projections::budget(&scope.read("budgets").await?, workspace, holder).await?;
    Ok(row.map(|row| Budget::of(scope, row)))
}

#[derive(Default)]
pub(crate) struct BudgetQuery;

#[Object]
impl BudgetQuery {
    /// The budget of a holder; with `asOf` as it was then. Null when it never had one.
    #[graphql(guard = "Needs(Permission::ReadOperations)")]
    async fn budget(
        &self,
        ctx: &Context<'_>,
        holder: HolderInput,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<Budget>> {
        let scope = Scope::then(ctx, as_of).await?;
        let holder = holder.holder()?;
        scope.at_least("budgets", min_position).await?;
        find(&scope, holder).await
    }

    /// All budgets, newest first; those that were removed among them. With `asOf` as they were then.
    #[graphql(
        guard = "Needs(Permission::ReadOperations)",
        complexity = "super::past_cost(as_of.is_some()) + super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the moment and the position")]
    async fn budgets(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<List<Budget>> {
        let scope = Scope::then(ctx, as_of).await?;
        let paging = Slice { first, after, last, before }.of("budgets")?;
        scope.at_least("budgets", min_position).await?;
        let rows =
            budgets_page(&scope.read("budgets").await?, scope.identity()?.workspace, paging.page).await?;
        Ok(paging.connect(rows, EmptyFields, |row| row.head.created_position, |row| Budget::of(&scope, row)))
    }
}

payload! {
    /// Answer of a mutation of a budget.
    BudgetPayload {
        /// As it is now.
        budget: Budget
    }
}

/// A budget, new or changed.
#[derive(InputObject)]
struct BudgetSetInput {
    holder: HolderInput,
    /// All hold at once; no two of one unit and period.
    limits: Vec<LimitInput>,
    /// Percent of a limit at which operators are warned, 1 to 99.
    warn_at_percent: Option<Vec<i32>>,
    /// How many turns may reserve at the same moment without waiting for each other, 1 to 64; 16 when it
    /// is left out, or as many as there are.
    shares: Option<i32>,
    conditions: Option<Conditions>,
}

/// More for a while.
#[derive(InputObject)]
struct BudgetRaiseInput {
    holder: HolderInput,
    unit: LimitUnit,
    /// At least 1; money in millionths.
    amount: BigInt,
    /// Must be ahead.
    expires_at: DateTime<Utc>,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    conditions: Option<Conditions>,
}

/// Which budget, and why.
#[derive(InputObject)]
struct BudgetRemoveInput {
    holder: HolderInput,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    conditions: Option<Conditions>,
}

type Executed = botledger_commands::execute::Executed<botledger_domain::budget::Budget>;

async fn done(scope: &Scope<'_>, executed: &Executed, holder: Holder) -> ApiResult<BudgetPayload> {
    let position = executed.receipt.position;
    let thing = scope.written("budgets", position, find(scope, holder)).await;
    Ok(BudgetPayload::done(thing, position))
}

#[derive(Default)]
pub(crate) struct BudgetMutation;

#[Object]
impl BudgetMutation {
    /// Gives a holder a budget or changes it. A limit of the same unit and period as before goes on
    /// counting; a lower one holds from this moment on.
    #[graphql(guard = "Acts(Permission::ManageQuotas)")]
    async fn budget_set(&self, ctx: &Context<'_>, input: BudgetSetInput) -> ApiResult<BudgetPayload> {
        let scope = Scope::of(ctx)?;
        let holder = input.holder.holder()?;
        let caller = scope.caller(input.conditions)?;
        let terms = terms(input.limits, input.warn_at_percent)?;
        let shares = input.shares.map(u16::try_from).transpose();
        let shares = shares.map_err(|_| ApiError::bad_input("a budget has 1 to 64 shares"))?;
        let workspace = scope.identity()?.workspace;
        let set = scope.services.app.budgets.set(&caller, workspace, holder, terms, shares).await;
        let executed = or_refused!(BudgetPayload, outcome(&scope, "budget.set", set).await?);
        done(&scope, &executed, holder).await
    }

    /// Grants a budget more until a moment.
    #[graphql(guard = "Acts(Permission::ManageQuotas)")]
    async fn budget_raise(&self, ctx: &Context<'_>, input: BudgetRaiseInput) -> ApiResult<BudgetPayload> {
        let scope = Scope::of(ctx)?;
        let holder = input.holder.holder()?;
        let caller = scope.caller(input.conditions)?;
        let amount =
            u64::try_from(input.amount.0).map_err(|_| ApiError::bad_input("the amount is at least 1"))?;
        let reason = Reason::parse(&input.reason).map_err(|error| UserError::of("reason", &error));
        let reason = or_refused!(BudgetPayload, reason);
        let (workspace, unit) = (scope.identity()?.workspace, input.unit.into());
        let budgets = &scope.services.app.budgets;
        let raised = budgets.raise(&caller, workspace, holder, unit, amount, input.expires_at, reason).await;
        let executed = or_refused!(BudgetPayload, outcome(&scope, "budget.raise", raised).await?);
        done(&scope, &executed, holder).await
    }

    /// Takes a budget away: nothing limits its holder any more. Doing it twice is a success.
    #[graphql(guard = "Acts(Permission::ManageQuotas)")]
    async fn budget_remove(&self, ctx: &Context<'_>, input: BudgetRemoveInput) -> ApiResult<BudgetPayload> {
        let scope = Scope::of(ctx)?;
        let holder = input.holder.holder()?;
        let caller = scope.caller(input.conditions)?;
        let reason = Reason::parse(&input.reason).map_err(|error| UserError::of("reason", &error));
        let reason = or_refused!(BudgetPayload, reason);
        let workspace = scope.identity()?.workspace;
        let removed = scope.services.app.budgets.remove(&caller, workspace, holder, reason).await;
        let executed = or_refused!(BudgetPayload, outcome(&scope, "budget.remove", removed).await?);
        done(&scope, &executed, holder).await
    }
}
