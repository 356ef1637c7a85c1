use std::sync::Arc;

use botledger_domain::{
    OperatorId, PlanName, Reason, SubjectId, WorkspaceId,
    operator::Permission,
    quota::{Quota, QuotaCommand, QuotaError, QuotaLeft},
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
        let terms = *tenant.state.plans.get(plan).ok_or(CommandError::NotFound { what: "plan" })?;
        let command = QuotaCommand::AssignPlan {
            workspace,
            subject,
            plan: plan.clone(),
            terms,
            by: caller.operator_id(),
        };
        execute(&self.core, caller, &quota_stream(workspace, subject).to_string(), command, |_| Ok(())).await
    }

    /// Extra tokens until a moment.
    ///
    /// # Errors
    /// Without the permission; when the person does not exist there; when nothing is granted.
    pub async fn grant_override(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        subject: SubjectId,
        tokens: u64,
        expires_at: DateTime<Utc>,
        reason: Reason,
    ) -> Result<Executed<Quota>, CommandError<QuotaError>> {
        self.check(caller, workspace, subject).await?;
        self.ensure_plan(caller, workspace, subject).await?;
        let by = caller.operator_id().unwrap_or(OperatorId(uuid::Uuid::nil()));
        let command = QuotaCommand::GrantOverride { tokens, expires_at, reason, by };
        execute(&self.core, caller, &quota_stream(workspace, subject).to_string(), command, |_| Ok(())).await
    }

    /// What a person has left; what the default plan would give when nothing is recorded yet.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn left(
        &self,
        workspace: WorkspaceId,
        subject: SubjectId,
    ) -> Result<Option<QuotaLeft>, CommandError<QuotaError>> {
        let now = self.core.clock.now();
        let quota = self.core.journal.load::<Quota>(&quota_stream(workspace, subject).to_string()).await?;
        if let Some(left) = quota.state.left_at(now) {
            return Ok(Some(left));
        }
        let tenant = self.core.journal.load::<Workspace>(&workspace.to_string()).await?;
        Ok(tenant.state.default_terms().map(|(_, terms)| QuotaLeft {
            limit: terms.tokens,
            used: 0,
            reserved: 0,
            remaining: terms.tokens,
            resets_at: terms.period.window(now).1,
        }))
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
        let command =
            QuotaCommand::AssignPlan { workspace, subject, plan: plan.clone(), terms: *terms, by: None };
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
