use botledger_domain::{
    Actor, DomainError, EventMetadata, InstanceId, OperatorId, SubjectId, TurnId, WorkspaceId,
    operator::{Permission, Role},
};
use uuid::Uuid;

use crate::CommandError;

/// Who asks, from where, and under which conditions.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Recorded in every event.
    pub actor: Actor,
    /// An operator's role; absent for the platform itself, which may do everything, and for a person, who
    /// comes only to what a bot offers.
    pub role: Option<Role>,
    /// An operator's workspace: nothing outside it exists for the caller.
    pub workspace: Option<WorkspaceId>,
    /// One id for everything that follows.
    pub correlation_id: Uuid,
    /// What directly caused the request, where it is not the request itself.
    pub causation_id: Option<Uuid>,
    /// `telegram`, `graphql`, or the part of the platform.
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
            causation_id: None,
            source: part,
            idempotency_key: None,
            expected_version: None,
        }
    }

    /// A person, by the message they wrote.
    #[must_use]
    pub fn subject(subject: SubjectId, turn: TurnId) -> Self {
        Self {
            actor: Actor::Subject(subject.uuid()),
            role: None,
            workspace: None,
            correlation_id: turn.uuid(),
            causation_id: Some(turn.uuid()),
            source: "telegram",
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
            causation_id: None,
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

    /// The same caller at a step of a turn: all steps of a turn carry its id, and what made the caller
    /// take this one stays known.
    pub(crate) fn at(&self, turn: TurnId) -> Self {
        let causation_id = Some(self.causation_id.unwrap_or(self.correlation_id));
        Self { correlation_id: turn.uuid(), causation_id, ..self.clone() }
    }

    pub(crate) fn metadata(&self, instance: InstanceId) -> EventMetadata {
        let mut metadata = EventMetadata::new(&self.actor, self.correlation_id, instance.uuid(), self.source);
        if let Some(cause) = self.causation_id {
            metadata = metadata.caused_by(cause);
        }
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
