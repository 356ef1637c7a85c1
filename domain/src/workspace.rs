//! A tenant: its name, its quota plans and which plan newcomers get.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::{
    Decide, DomainError, PlanName, Reason,
    account::{PlanTerms, TermsError},
    aggregate::aggregate,
};

/// A tenant. Invariant: the default plan is one of the plans.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Workspace {
    /// Display name; absent before creation.
    pub name: Option<String>,
    /// Plans by name.
    pub plans: BTreeMap<PlanName, PlanTerms>,
    /// What a person without an assignment gets.
    pub default_plan: Option<PlanName>,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum WorkspaceCommand {
    /// Make the tenant with its first plan, which becomes the default.
    Create { name: String, plan: PlanName, terms: PlanTerms },
    /// Rename it.
    Rename { name: String },
    /// Add a plan or change its terms. People on it keep theirs until assigned anew.
    DefinePlan { plan: PlanName, terms: PlanTerms },
    /// Which plan newcomers get.
    SetDefaultPlan { plan: PlanName },
    /// Take a plan out of the list.
    RetirePlan { plan: PlanName, reason: Reason },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum WorkspaceEvent {
    /// A tenant came to be.
    WorkspaceCreated { name: String, created_at: DateTime<Utc> },
    /// Another name.
    WorkspaceRenamed { name: String, renamed_at: DateTime<Utc> },
    /// A plan with these terms.
    PlanDefined { plan: PlanName, terms: PlanTerms, defined_at: DateTime<Utc> },
    /// Newcomers get this plan.
    DefaultPlanSet { plan: PlanName, set_at: DateTime<Utc> },
    /// A plan left the list.
    PlanRetired { plan: PlanName, reason: Reason, retired_at: DateTime<Utc> },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkspaceError {
    /// No such tenant.
    #[error("there is no such workspace")]
    Unknown,
    /// The id is taken.
    #[error("the workspace already exists")]
    AlreadyCreated,
    /// Empty, over 100 characters, or with characters nobody can see.
    #[error("a workspace name has 1 to 100 printable characters")]
    InvalidName,
    /// Not in the list.
    #[error("the workspace has no plan {plan}")]
    UnknownPlan {
        /// Its name.
        plan: String,
    },
    /// The default cannot be retired.
    #[error("plan {plan} is the default; set another default first")]
    DefaultPlan {
        /// Its name.
        plan: String,
    },
    /// Terms that make no sense.
    #[error(transparent)]
    Terms(TermsError),
}

impl DomainError for WorkspaceError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "WORKSPACE_UNKNOWN",
            Self::AlreadyCreated => "WORKSPACE_ALREADY_CREATED",
            Self::InvalidName => "WORKSPACE_INVALID_NAME",
            Self::UnknownPlan { .. } => "WORKSPACE_UNKNOWN_PLAN",
            Self::DefaultPlan { .. } => "WORKSPACE_DEFAULT_PLAN",
            Self::Terms(TermsError::Empty) => "WORKSPACE_EMPTY_PLAN",
            Self::Terms(_) => "WORKSPACE_UNFIT_PLAN",
        }
    }
}

fn checked_name(name: &str) -> Result<String, WorkspaceError> {
    let name = name.trim();
    match name.chars().count() {
        1..=100 if !name.contains(char::is_control) => Ok(name.to_owned()),
        _ => Err(WorkspaceError::InvalidName),
    }
}

impl Decide for Workspace {
    fn decide(
        &self,
        command: WorkspaceCommand,
        now: DateTime<Utc>,
    ) -> Result<Vec<WorkspaceEvent>, WorkspaceError> {
        if let WorkspaceCommand::Create { name, plan, terms } = command {
            if self.name.is_some() {
                return Err(WorkspaceError::AlreadyCreated);
            }
            let terms = terms.checked().map_err(WorkspaceError::Terms)?;
            return Ok(vec![
                WorkspaceEvent::WorkspaceCreated { name: checked_name(&name)?, created_at: now },
                WorkspaceEvent::PlanDefined { plan: plan.clone(), terms, defined_at: now },
                WorkspaceEvent::DefaultPlanSet { plan, set_at: now },
            ]);
        }
        if self.name.is_none() {
            return Err(WorkspaceError::Unknown);
        }
        match command {
            WorkspaceCommand::Create { .. } => Err(WorkspaceError::AlreadyCreated),
            WorkspaceCommand::Rename { name } => {
                let name = checked_name(&name)?;
                if self.name.as_ref() == Some(&name) {
                    return Ok(vec![]);
                }
                Ok(vec![WorkspaceEvent::WorkspaceRenamed { name, renamed_at: now }])
            }
            WorkspaceCommand::DefinePlan { plan, terms } => {
                let terms = terms.checked().map_err(WorkspaceError::Terms)?;
                if self.plans.get(&plan) == Some(&terms) {
                    return Ok(vec![]);
                }
                Ok(vec![WorkspaceEvent::PlanDefined { plan, terms, defined_at: now }])
            }
            WorkspaceCommand::SetDefaultPlan { plan } => {
                if !self.plans.contains_key(&plan) {
                    return Err(WorkspaceError::UnknownPlan { plan: plan.into() });
                }
                if self.default_plan.as_ref() == Some(&plan) {
                    return Ok(vec![]);
                }
                Ok(vec![WorkspaceEvent::DefaultPlanSet { plan, set_at: now }])
            }
            WorkspaceCommand::RetirePlan { plan, reason } => {
                if self.default_plan.as_ref() == Some(&plan) {
                    return Err(WorkspaceError::DefaultPlan { plan: plan.into() });
                }
                if !self.plans.contains_key(&plan) {
                    return Ok(vec![]);
                }
                Ok(vec![WorkspaceEvent::PlanRetired { plan, reason, retired_at: now }])
            }
        }
    }
}

impl Workspace {
    fn record(&mut self, event: WorkspaceEvent) {
        match event {
            WorkspaceEvent::WorkspaceCreated { name, .. } | WorkspaceEvent::WorkspaceRenamed { name, .. } => {
                self.name = Some(name);
            }
            WorkspaceEvent::PlanDefined { plan, terms, .. } => {
                self.plans.insert(plan, terms);
            }
            WorkspaceEvent::DefaultPlanSet { plan, .. } => self.default_plan = Some(plan),
            WorkspaceEvent::PlanRetired { plan, .. } => {
                self.plans.remove(&plan);
            }
        }
    }

    /// The default plan and its terms; present in every created workspace.
    #[must_use]
    pub fn default_terms(&self) -> Option<(&PlanName, &PlanTerms)> {
        self.plans.get_key_value(self.default_plan.as_ref()?)
    }
}

aggregate!(
    Workspace, "workspace", WorkspaceCommand, WorkspaceEvent, WorkspaceError,
    "plan_defined" => "2.0",
);

#[cfg(test)]
mod tests;
