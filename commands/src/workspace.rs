use std::sync::Arc;

use botledger_domain::{
    PlanName, Reason, WorkspaceId,
    operator::Permission,
    quota::PlanTerms,
    workspace::{Workspace, WorkspaceCommand, WorkspaceError},
};

use crate::{
    Caller, CommandError, Core,
    execute::{Executed, execute},
};

/// Tenants and their plans.
#[derive(Clone)]
pub struct Workspaces {
    core: Arc<Core>,
}

type Outcome = Result<Executed<Workspace>, CommandError<WorkspaceError>>;

impl Workspaces {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Makes a tenant with its first plan; only the platform itself may.
    ///
    /// # Errors
    /// When an operator asks, or name and plan are not valid.
    pub async fn create(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        name: String,
        plan: PlanName,
        terms: PlanTerms,
    ) -> Outcome {
        if caller.role.is_some() {
            return Err(CommandError::Forbidden { permission: Permission::ManageOperators });
        }
        let command = WorkspaceCommand::Create { name, plan, terms };
        execute(&self.core, caller, &workspace.to_string(), command, |_| Ok(())).await
    }

    /// Gives another name.
    ///
    /// # Errors
    /// Without the permission; when the name is not valid.
    pub async fn rename(&self, caller: &Caller, workspace: WorkspaceId, name: String) -> Outcome {
        self.run(caller, workspace, Permission::ManageBots, WorkspaceCommand::Rename { name }).await
    }

    /// Adds a plan or changes its terms.
    ///
    /// # Errors
    /// Without the permission; when the plan grants nothing.
    pub async fn define_plan(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        plan: PlanName,
        terms: PlanTerms,
    ) -> Outcome {
        self.run(caller, workspace, Permission::ManageQuotas, WorkspaceCommand::DefinePlan { plan, terms })
            .await
    }

    /// Says which plan newcomers get.
    ///
    /// # Errors
    /// Without the permission; when there is no such plan.
    pub async fn set_default_plan(&self, caller: &Caller, workspace: WorkspaceId, plan: PlanName) -> Outcome {
        self.run(caller, workspace, Permission::ManageQuotas, WorkspaceCommand::SetDefaultPlan { plan }).await
    }

    /// Takes a plan out of the list.
    ///
    /// # Errors
    /// Without the permission; when it is the default.
    pub async fn retire_plan(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        plan: PlanName,
        reason: Reason,
    ) -> Outcome {
        self.run(caller, workspace, Permission::ManageQuotas, WorkspaceCommand::RetirePlan { plan, reason })
            .await
    }

    async fn run(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        permission: Permission,
        command: WorkspaceCommand,
    ) -> Outcome {
        caller.require(permission)?;
        if !caller.sees(Some(workspace)) {
            return Err(CommandError::NotFound { what: "workspace" });
        }
        execute(&self.core, caller, &workspace.to_string(), command, |_| Ok(())).await
    }
}
