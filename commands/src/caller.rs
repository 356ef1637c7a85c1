use botledger_domain::{
    Actor, DomainError, EventMetadata, InstanceId, OperatorId, WorkspaceId,
    operator::{Permission, Role},
};
use uuid::Uuid;

use crate::CommandError;

/// Who asks, from where, and under which conditions.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Recorded in every event.
    pub actor: Actor,
    /// An operator's role; absent for the platform itself, which may do everything.
    pub role: Option<Role>,
    /// An operator's workspace: nothing outside it exists for the caller.
    pub workspace: Option<WorkspaceId>,
    /// One id for everything that follows.
    pub correlation_id: Uuid,
    /// `graphql`, `cli`, `telegram`, `recovery`.
    pub source: &'static str,
    /// Same key twice: same answer, no second event.
    pub idempotency_key: Option<String>,
    /// Only if the aggregate stands at this version.
    pub expected_version: Option<i64>,
}

impl Caller {
    /// A part of the platform.
    #[must_use]
    pub fn system(part: &'static str, correlation_id: Uuid) -> Self {
        Self {
            actor: Actor::System(part),
            role: None,
            workspace: None,
            correlation_id,
            source: part,
            idempotency_key: None,
            expected_version: None,
        }
    }

    /// An operator over GraphQL.
    #[must_use]
    pub fn operator(operator: OperatorId, role: Role, workspace: WorkspaceId, correlation_id: Uuid) -> Self {
        Self {
            actor: Actor::Operator(operator.uuid()),
            role: Some(role),
            workspace: Some(workspace),
            correlation_id,
            source: "graphql",
            idempotency_key: None,
            expected_version: None,
        }
    }

    /// The operator's id; absent for the platform.
    #[must_use]
    pub fn operator_id(&self) -> Option<OperatorId> {
        match self.actor {
            Actor::Operator(id) => Some(OperatorId(id)),
            _ => None,
        }
    }

    /// Deny by default.
    ///
    /// # Errors
    /// [`CommandError::Forbidden`].
    pub fn require<E: DomainError>(&self, permission: Permission) -> Result<(), CommandError<E>> {
        match self.role {
            Some(role) if !role.may(permission) => Err(CommandError::Forbidden { permission }),
            _ => Ok(()),
        }
    }

    /// Whether something of that workspace exists for the caller.
    #[must_use]
    pub fn sees(&self, workspace: Option<WorkspaceId>) -> bool {
        self.workspace.is_none() || self.workspace == workspace
    }

    pub(crate) fn metadata(&self, instance: InstanceId) -> EventMetadata {
        let metadata = EventMetadata::new(&self.actor, self.correlation_id, instance.uuid(), self.source);
        match &self.idempotency_key {
            // Keys of different workspaces never meet.
            Some(key) => {
                let scope =
                    self.workspace.map_or_else(|| "platform".to_owned(), |workspace| workspace.to_string());
                metadata.with_idempotency_key(format!("{scope}/{key}"))
            }
            None => metadata,
        }
    }
}
