use std::sync::Arc;

use botledger_domain::{
    OperatorId, PlanName, Reason, SubjectId, WorkspaceId,
    account::{Account, LimitLeft, Unit},
    operator::Permission,
    quota::{Quota, QuotaCommand, QuotaError},
    quota_stream,
    subject::Subject,
    workspace::Workspace,
};
use chrono::{DateTime, Utc};

use crate::{
    Caller, CommandError, Core,
    execute::{Executed, execute},
};

/// Plans of people.
#[derive(Clone)]
pub struct Quotas {
    core: Arc<Core>,
}

impl Quotas {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Puts a person on a plan of the caller's workspace.
    ///
    /// # Errors
    /// Without the permission; when person or plan do not exist there.
    pub async fn assign_plan(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        subject: SubjectId,
        plan: &PlanName,
    ) -> Result<Executed<Quota>, CommandError<QuotaError>> {
        self.check(caller, workspace, subject).await?;
        let tenant = self.core.journal.load::<Workspace>(&workspace.to_string()).await?;
        let terms = tenant.state.plans.get(plan).cloned().ok_or(CommandError::NotFound { what: "plan" })?;
        let command = QuotaCommand::AssignPlan {
            workspace,
            subject,
            plan: plan.clone(),
            terms,
            by: caller.operator_id(),
        };
        execute(&self.core, caller, &quota_stream(workspace, subject).to_string(), command, |_| Ok(())).await
    }

    /// More of a unit until a moment.
    ///
    /// # Errors
    /// Without the permission; when the person does not exist there; when nothing is granted, or their
    /// plan does not count the unit.
    #[expect(clippy::too_many_arguments, reason = "what is granted has that many parts")]
    pub async fn grant_override(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        subject: SubjectId,
        unit: Unit,
        amount: u64,
        expires_at: DateTime<Utc>,
        reason: Reason,
    ) -> Result<Executed<Quota>, CommandError<QuotaError>> {
        self.check(caller, workspace, subject).await?;
        self.ensure_plan(caller, workspace, subject).await?;
        let by = caller.operator_id().unwrap_or(OperatorId(uuid::Uuid::nil()));
        let command = QuotaCommand::GrantOverride { unit, amount, expires_at, reason, by };
        execute(&self.core, caller, &quota_stream(workspace, subject).to_string(), command, |_| Ok(())).await
    }

    /// What a person has left under each limit of their plan; what the default plan would give when
    /// nothing is recorded yet. Empty when there is no plan at all.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn left(
        &self,
        workspace: WorkspaceId,
        subject: SubjectId,
    ) -> Result<Vec<LimitLeft>, CommandError<QuotaError>> {
        let now = self.core.clock.now();
        let quota = self.core.journal.load::<Quota>(&quota_stream(workspace, subject).to_string()).await?;
        if quota.state.plan.is_some() {
            return Ok(quota.state.left_at(now));
        }
        let tenant = self.core.journal.load::<Workspace>(&workspace.to_string()).await?;
        let Some((_, terms)) = tenant.state.default_terms() else { return Ok(vec![]) };
        let meters = Account::<()>::default().reset(terms, now);
        Ok(Account::<()> { terms: terms.clone(), meters, ..Account::default() }.left_at(now))
    }

    async fn ensure_plan(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        subject: SubjectId,
    ) -> Result<(), CommandError<QuotaError>> {
        let stream = quota_stream(workspace, subject).to_string();
        if self.core.journal.load::<Quota>(&stream).await?.state.plan.is_some() {
            return Ok(());
        }
        let tenant = self.core.journal.load::<Workspace>(&workspace.to_string()).await?;
        let (plan, terms) = tenant.state.default_terms().ok_or(CommandError::NotFound { what: "plan" })?;
        let command = QuotaCommand::AssignPlan {
            workspace,
            subject,
            plan: plan.clone(),
            terms: terms.clone(),
            by: None,
        };
        // The caller's key and version belong to what was asked for, not to this first step.
        let caller = Caller { idempotency_key: None, expected_version: None, ..caller.clone() };
        execute::<Quota>(&self.core, &caller, &stream, command, |_| Ok(())).await?;
        Ok(())
    }

    async fn check(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        subject: SubjectId,
    ) -> Result<(), CommandError<QuotaError>> {
        caller.require(Permission::ManageQuotas)?;
        let person = self.core.journal.load::<Subject>(&subject.to_string()).await?;
        if !caller.sees(Some(workspace)) || person.state.workspace != Some(workspace) {
            return Err(CommandError::NotFound { what: "person" });
        }
        Ok(())
    }
}
