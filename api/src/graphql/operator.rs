//! Operators: the people who run the platform.

use async_graphql::{Context, Enum, ID, InputObject, Object, SimpleObject, connection::EmptyFields};
use botledger_domain::{
    OperatorId,
    operator::{Login, Permission, Role as DomainRole},
};
use botledger_projections::{OperatorRow, operator_as_of, operators_page};
use chrono::{DateTime, Utc};

use super::{
    Acts, AsOf, Conditions, Needs, Scope,
    error::{ApiError, ApiResult, UserError, outcome, reason},
    or_refused,
    page::{List, Slice},
    payload,
    scalars::{At, NodeKind, wire_enum},
};

/// What an operator may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "DomainRole")]
pub(crate) enum Role {
    /// Everything, operators included.
    Owner,
    /// Everything but operators.
    Admin,
    /// Block and unblock; read conversations.
    Moderator,
    /// Read everything but personal text; change nothing.
    Auditor,
    /// Read usage figures.
    Analyst,
    /// Read the own profile.
    Member,
}

wire_enum! {
    /// Where an operator's account stands.
    OperatorStatus {
        /// Has not used the link yet.
        Invited = "invited",
        Active = "active",
        /// Shut out.
        Disabled = "disabled",
    }
}

pub(crate) struct Operator(pub(crate) OperatorRow);

/// An account.
#[Object]
impl Operator {
    /// `operator:…`
    pub(super) async fn id(&self) -> ID {
        NodeKind::Operator.id(self.0.operator_id)
    }

    async fn login(&self) -> &str {
        &self.0.login
    }

    async fn role(&self) -> ApiResult<Role> {
        self.0.role.parse::<DomainRole>().map(Role::from).map_err(ApiError::unavailable)
    }

    async fn status(&self) -> ApiResult<OperatorStatus> {
        OperatorStatus::read(&self.0.status)
    }

    /// Until when an auditor may read personal text; null where nobody let them, or not any more.
    #[graphql(complexity = 5)]
    async fn reads_personal_until(&self, ctx: &Context<'_>) -> ApiResult<Option<DateTime<Utc>>> {
        let scope = Scope::of(ctx)?;
        let operators = &scope.services.app.operators;
        let standing =
            operators.standing(OperatorId(self.0.operator_id)).await.map_err(ApiError::unavailable)?;
        let now = scope.services.app.core.clock.now();
        Ok(standing.filter(|operator| operator.reads_personal(now)).and_then(|it| it.reads_personal_until))
    }

    /// Null for the first one.
    async fn invited_by(&self) -> Option<ID> {
        self.0.invited_by.map(|id| NodeKind::Operator.id(id))
    }

    async fn invited_at(&self) -> DateTime<Utc> {
        self.0.invited_at
    }

    async fn changed_at(&self) -> DateTime<Utc> {
        self.0.changed_at
    }

    /// Of its last event.
    async fn position(&self) -> At {
        self.0.updated_position.into()
    }
}

pub(super) async fn find(scope: &Scope<'_>, operator: OperatorId) -> ApiResult<Option<Operator>> {
    let workspace = scope.identity()?.workspace.uuid();
    let read = &scope.services.read;
    let row = match scope.moment {
        None => botledger_projections::operator(read, operator).await?,
        Some(moment) => operator_as_of(read, operator, moment.position).await?,
    };
    Ok(row.filter(|row| row.workspace == workspace).map(Operator))
}

#[derive(Default)]
pub(crate) struct OperatorQuery;

#[Object]
impl OperatorQuery {
    /// The caller.
    #[graphql(guard = "Needs(Permission::ReadSelf)")]
    async fn me(&self, ctx: &Context<'_>) -> ApiResult<Option<Operator>> {
        let scope = Scope::of(ctx)?;
        find(&scope, scope.identity()?.operator).await
    }

    /// One operator; with `asOf` as they were then.
    #[graphql(guard = "Needs(Permission::ReadLedger)")]
    async fn operator(
        &self,
        ctx: &Context<'_>,
        id: ID,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<Operator>> {
        let scope = Scope::then(ctx, as_of).await?;
        let operator = NodeKind::Operator.parse(&id)?;
        scope.at_least("directory", min_position).await?;
        find(&scope, operator).await
    }

    /// All operators, newest first; with `asOf` as they were then.
    #[graphql(
        guard = "Needs(Permission::ReadLedger)",
        complexity = "super::past_cost(as_of.is_some()) + super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the moment and the position")]
    async fn operators(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<List<Operator>> {
        let scope = Scope::then(ctx, as_of).await?;
        let paging = Slice { first, after, last, before }.of("operators")?;
        scope.at_least("directory", min_position).await?;
        let rows =
            operators_page(&scope.read("directory").await?, scope.identity()?.workspace, paging.page).await?;
        Ok(paging.connect(rows, EmptyFields, |row| row.created_position, Operator))
    }
}

payload! {
    /// Answer of a mutation of an operator.
    OperatorPayload {
        /// As they are now.
        operator: Operator
    }
}

/// Answer of an invitation.
#[derive(SimpleObject)]
pub(crate) struct OperatorInvitePayload {
    /// The new account; null when its read model is late.
    operator: Option<Operator>,
    /// Link for its owner: shown once, good once, for 24 hours.
    link: Option<String>,
    /// Of the last event.
    position: Option<At>,
    /// Why nothing was done.
    user_errors: Vec<UserError>,
}

impl OperatorInvitePayload {
    fn refused(error: UserError) -> Self {
        Self { operator: None, link: None, position: None, user_errors: vec![error] }
    }
}

/// Somebody to let in.
#[derive(InputObject)]
struct OperatorInviteInput {
    /// 3 to 64 of `a-z 0-9 . - _`.
    login: String,
    role: Role,
    conditions: Option<Conditions>,
}

/// Another role.
#[derive(InputObject)]
struct OperatorChangeRoleInput {
    operator_id: ID,
    role: Role,
    conditions: Option<Conditions>,
}

/// To whom, how long and why.
#[derive(InputObject)]
struct OperatorGrantPersonalAccessInput {
    /// An auditor.
    operator_id: ID,
    /// Within 30 days.
    until: DateTime<Utc>,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    conditions: Option<Conditions>,
}

/// Whom, and why.
#[derive(InputObject)]
struct OperatorDisableInput {
    operator_id: ID,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    conditions: Option<Conditions>,
}

type Executed = botledger_commands::execute::Executed<botledger_domain::operator::Operator>;

async fn done(scope: &Scope<'_>, operator: OperatorId, executed: &Executed) -> ApiResult<OperatorPayload> {
    let position = executed.receipt.position;
    let thing = scope.written("directory", position, find(scope, operator)).await;
    Ok(OperatorPayload::done(thing, position))
}

#[derive(Default)]
pub(crate) struct OperatorMutation;

#[Object]
impl OperatorMutation {
    /// Makes an account and a one-time link with which its owner sets a password. While there is none,
    /// the same login and role give a new link, and earlier ones end.
    #[graphql(guard = "Acts(Permission::ManageOperators)")]
    async fn operator_invite(
        &self,
        ctx: &Context<'_>,
        input: OperatorInviteInput,
    ) -> ApiResult<OperatorInvitePayload> {
        let scope = Scope::of(ctx)?;
        let caller = scope.caller(input.conditions)?;
        let login = Login::parse(&input.login).map_err(|error| UserError::of("login", &error));
        let login = or_refused!(OperatorInvitePayload, login);
        let workspace = scope.identity()?.workspace;
        let invited = scope.services.app.operators.invite(&caller, workspace, login, input.role.into()).await;
        let (operator, executed, secret) =
            or_refused!(OperatorInvitePayload, outcome(&scope, "operator.invite", invited).await?);
        let position = executed.receipt.position;
        Ok(OperatorInvitePayload {
            operator: scope.written("directory", position, find(&scope, operator)).await,
            link: Some(crate::activation_link(&scope.services.config.public_url, &secret)),
            position: Some(position.into()),
            user_errors: Vec::new(),
        })
    }

    /// Gives somebody else another role.
    #[graphql(guard = "Acts(Permission::ManageOperators)")]
    async fn operator_change_role(
        &self,
        ctx: &Context<'_>,
        input: OperatorChangeRoleInput,
    ) -> ApiResult<OperatorPayload> {
        let scope = Scope::of(ctx)?;
        let operator: OperatorId = NodeKind::Operator.parse(&input.operator_id)?;
        let caller = scope.caller(input.conditions)?;
        let changed = scope.services.app.operators.change_role(&caller, operator, input.role.into()).await;
        let executed = or_refused!(OperatorPayload, outcome(&scope, "operator.change_role", changed).await?);
        done(&scope, operator, &executed).await
    }

    /// Shuts somebody else out; their requests are refused from now on.
    #[graphql(guard = "Acts(Permission::ManageOperators)")]
    async fn operator_disable(
        &self,
        ctx: &Context<'_>,
        input: OperatorDisableInput,
    ) -> ApiResult<OperatorPayload> {
        let scope = Scope::of(ctx)?;
        let operator: OperatorId = NodeKind::Operator.parse(&input.operator_id)?;
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(OperatorPayload, reason(&input.reason));
        let disabled = scope.services.app.operators.disable(&caller, operator, reason).await;
        let executed = or_refused!(OperatorPayload, outcome(&scope, "operator.disable", disabled).await?);
        done(&scope, operator, &executed).await
    }

    /// Lets an auditor read personal text for a time. Each reading is noted in the audit table.
    #[graphql(guard = "Acts(Permission::ManageOperators)")]
    async fn operator_grant_personal_access(
        &self,
        ctx: &Context<'_>,
        input: OperatorGrantPersonalAccessInput,
    ) -> ApiResult<OperatorPayload> {
        let scope = Scope::of(ctx)?;
        let operator: OperatorId = NodeKind::Operator.parse(&input.operator_id)?;
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(OperatorPayload, reason(&input.reason));
        let operators = &scope.services.app.operators;
        let granted = operators.grant_personal_access(&caller, operator, input.until, reason).await;
        let action = "operator.grant_personal_access";
        let executed = or_refused!(OperatorPayload, outcome(&scope, action, granted).await?);
        done(&scope, operator, &executed).await
    }

    /// Ends that early.
    #[graphql(guard = "Acts(Permission::ManageOperators)")]
    async fn operator_revoke_personal_access(
        &self,
        ctx: &Context<'_>,
        input: OperatorDisableInput,
    ) -> ApiResult<OperatorPayload> {
        let scope = Scope::of(ctx)?;
        let operator: OperatorId = NodeKind::Operator.parse(&input.operator_id)?;
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(OperatorPayload, reason(&input.reason));
        let revoked = scope.services.app.operators.revoke_personal_access(&caller, operator, reason).await;
        let action = "operator.revoke_personal_access";
        let executed = or_refused!(OperatorPayload, outcome(&scope, action, revoked).await?);
        done(&scope, operator, &executed).await
    }

    /// Lets somebody in again.
    #[graphql(guard = "Acts(Permission::ManageOperators)")]
    async fn operator_enable(
        &self,
        ctx: &Context<'_>,
        input: OperatorDisableInput,
    ) -> ApiResult<OperatorPayload> {
        let scope = Scope::of(ctx)?;
        let operator: OperatorId = NodeKind::Operator.parse(&input.operator_id)?;
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(OperatorPayload, reason(&input.reason));
        let enabled = scope.services.app.operators.enable(&caller, operator, reason).await;
        let executed = or_refused!(OperatorPayload, outcome(&scope, "operator.enable", enabled).await?);
        done(&scope, operator, &executed).await
    }
}
