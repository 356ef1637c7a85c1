//! A person who runs the platform: invited, active, disabled. Passwords and links are no events.

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, EnumString, IntoStaticStr};

use crate::{Decide, DomainError, OperatorId, Reason, TextError, WorkspaceId, aggregate::aggregate};

/// What an operator may do. Ordered by power only in the eyes of [`Role::may`].
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Role {
    /// Everything, operators included.
    Owner,
    /// Bots, plans, quotas.
    Admin,
    /// People: block, unblock, read conversations.
    Moderator,
    /// Reads everything, changes nothing.
    Auditor,
    /// Reads numbers.
    Analyst,
    /// Reads the own profile.
    Member,
}

/// A kind of action that roles are allowed or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, AsRefStr, EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Permission {
    /// Invite, change and disable operators.
    ManageOperators,
    /// Register, configure, start, stop, archive bots; workspace settings.
    ManageBots,
    /// Plans, assignments, overrides.
    ManageQuotas,
    /// Publish and withdraw policies; access lists.
    ManagePolicies,
    /// Block and unblock people, decide appeals.
    Moderate,
    /// Read the text of conversations and names of people.
    ReadPersonal,
    /// Read the event log and the audit table.
    ReadLedger,
    /// Read bots, turns, quotas, people by pseudonym.
    ReadOperations,
    /// Read usage figures.
    ReadUsage,
    /// Read the own profile.
    ReadSelf,
}

impl Role {
    /// Deny by default: true only where listed.
    #[must_use]
    pub fn may(self, permission: Permission) -> bool {
        use Permission as P;
        match self {
            Self::Owner => true,
            Self::Admin => permission != P::ManageOperators,
            Self::Moderator => {
                matches!(
                    permission,
                    P::Moderate | P::ReadPersonal | P::ReadOperations | P::ReadUsage | P::ReadSelf
                )
            }
            Self::Auditor => {
                matches!(permission, P::ReadLedger | P::ReadOperations | P::ReadUsage | P::ReadSelf)
            }
            Self::Analyst => matches!(permission, P::ReadUsage | P::ReadSelf),
            Self::Member => permission == P::ReadSelf,
        }
    }
}

/// A login name: 3-64 of `a-z 0-9 . - _`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Login(String);

impl Login {
    /// Lower-cases and checks.
    ///
    /// # Errors
    /// When too short, too long or outside the allowed characters.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        const WHAT: &str = "the login";
        let text = text.trim().to_ascii_lowercase();
        let length = text.chars().count();
        if length < 3 {
            return Err(TextError::TooShort { what: WHAT, actual: length, least: 3 });
        }
        if length > 64 {
            return Err(TextError::TooLong { what: WHAT, actual: length, limit: 64 });
        }
        if !text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_'))
        {
            return Err(TextError::Characters { what: WHAT, allowed: "a-z, 0-9, '.', '-' and '_'" });
        }
        Ok(Self(text))
    }
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Login {
    type Error = TextError;
    fn try_from(text: String) -> Result<Self, TextError> {
        Self::parse(&text)
    }
}

impl From<Login> for String {
    fn from(login: Login) -> String {
        login.0
    }
}

/// Where an operator stands.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum OperatorStatus {
    /// Nobody.
    #[default]
    Unknown,
    /// Holds a one-time link, has no password yet.
    Invited,
    /// May log in.
    Active,
    /// May not.
    Disabled,
}

/// An operator of one workspace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Operator {
    /// See [`OperatorStatus`].
    pub status: OperatorStatus,
    /// Present once invited.
    pub workspace: Option<WorkspaceId>,
    /// Present once invited.
    pub login: Option<Login>,
    /// Present once invited.
    pub role: Option<Role>,
    /// Until when an auditor may read personal text; absent where nobody let them.
    pub reads_personal_until: Option<DateTime<Utc>>,
}

impl Operator {
    /// Whether an auditor was let read personal text, and still is.
    #[must_use]
    pub fn reads_personal(&self, now: DateTime<Utc>) -> bool {
        self.role == Some(Role::Auditor) && self.reads_personal_until.is_some_and(|until| now < until)
    }
}

/// Personal text is opened to an auditor for so long at most.
pub const LONGEST_PERSONAL_ACCESS: TimeDelta = TimeDelta::days(30);

/// What can be asked.
#[derive(Clone, Debug)]
pub enum OperatorCommand {
    /// Make an account that a one-time link activates. `by` is absent for the first one. The same once
    /// more is "already so": its link may be lost.
    Invite { workspace: WorkspaceId, login: Login, role: Role, by: Option<OperatorId> },
    /// The link was used and a password set.
    Activate,
    /// Give another role.
    ChangeRole { role: Role, by: OperatorId },
    /// Shut out.
    Disable { reason: Reason, by: OperatorId },
    /// Let in again.
    Enable { reason: Reason, by: OperatorId },
    /// Let an auditor read personal text until a moment.
    GrantPersonalAccess { until: DateTime<Utc>, reason: Reason, by: OperatorId },
    /// End that early.
    RevokePersonalAccess { reason: Reason, by: OperatorId },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum OperatorEvent {
    /// An account was made.
    OperatorInvited {
        workspace: WorkspaceId,
        login: Login,
        role: Role,
        by: Option<OperatorId>,
        invited_at: DateTime<Utc>,
    },
    /// A password was set through the one-time link.
    OperatorActivated { activated_at: DateTime<Utc> },
    /// Another role.
    OperatorRoleChanged { role: Role, by: OperatorId, changed_at: DateTime<Utc> },
    /// Shut out.
    OperatorDisabled { reason: Reason, by: OperatorId, disabled_at: DateTime<Utc> },
    /// Let in again.
    OperatorEnabled { reason: Reason, by: OperatorId, enabled_at: DateTime<Utc> },
    /// An auditor may read personal text until then. Another role, or being shut out, ends it too.
    PersonalAccessGranted { until: DateTime<Utc>, reason: Reason, by: OperatorId, granted_at: DateTime<Utc> },
    /// That ended early.
    PersonalAccessRevoked { reason: Reason, by: OperatorId, revoked_at: DateTime<Utc> },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// No such operator.
    #[error("there is no such operator")]
    Unknown,
    /// The account exists, and is another one.
    #[error("the operator already exists, with another role or login")]
    AlreadyInvited,
    /// Disabled operators stay out until enabled.
    #[error("the operator is disabled")]
    Disabled,
    /// Nobody may lock the own door.
    #[error("operators cannot disable themselves or change their own role")]
    OwnAccount,
    /// What others may read follows from their role alone.
    #[error("personal text is opened for a time to auditors only; other roles read it always, or never")]
    NotAuditor,
    /// Too long, or over already.
    #[error("personal text is opened until a moment that is to come, within 30 days")]
    PersonalAccessTime,
}

impl DomainError for OperatorError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "OPERATOR_UNKNOWN",
            Self::AlreadyInvited => "OPERATOR_ALREADY_INVITED",
            Self::Disabled => "OPERATOR_DISABLED",
            Self::OwnAccount => "OPERATOR_OWN_ACCOUNT",
            Self::NotAuditor => "OPERATOR_NOT_AUDITOR",
            Self::PersonalAccessTime => "OPERATOR_PERSONAL_ACCESS_TIME",
        }
    }
}

impl Decide for Operator {
    fn decide(
        &self,
        command: OperatorCommand,
        now: DateTime<Utc>,
    ) -> Result<Vec<OperatorEvent>, OperatorError> {
        match (command, self.status) {
            (OperatorCommand::Invite { workspace, login, role, by }, OperatorStatus::Unknown) => {
                Ok(vec![OperatorEvent::OperatorInvited { workspace, login, role, by, invited_at: now }])
            }
            (OperatorCommand::Invite { workspace, login, role, .. }, _)
                if (self.workspace, self.login.as_ref(), self.role)
                    == (Some(workspace), Some(&login), Some(role)) =>
            {
                Ok(vec![])
            }
            (OperatorCommand::Invite { .. }, _) => Err(OperatorError::AlreadyInvited),
            (_, OperatorStatus::Unknown) => Err(OperatorError::Unknown),
            (OperatorCommand::Activate, OperatorStatus::Disabled) => Err(OperatorError::Disabled),
            (OperatorCommand::Activate, OperatorStatus::Active) => Ok(vec![]),
            (OperatorCommand::Activate, OperatorStatus::Invited) => {
                Ok(vec![OperatorEvent::OperatorActivated { activated_at: now }])
            }
            (OperatorCommand::ChangeRole { role, .. }, _) if self.role == Some(role) => Ok(vec![]),
            (OperatorCommand::ChangeRole { role, by }, _) => {
                Ok(vec![OperatorEvent::OperatorRoleChanged { role, by, changed_at: now }])
            }
            (OperatorCommand::Disable { .. }, OperatorStatus::Disabled) => Ok(vec![]),
            (OperatorCommand::Disable { reason, by }, _) => {
                Ok(vec![OperatorEvent::OperatorDisabled { reason, by, disabled_at: now }])
            }
            (OperatorCommand::Enable { reason, by }, OperatorStatus::Disabled) => {
                Ok(vec![OperatorEvent::OperatorEnabled { reason, by, enabled_at: now }])
            }
            (OperatorCommand::Enable { .. }, _) => Ok(vec![]),
            (OperatorCommand::GrantPersonalAccess { .. }, OperatorStatus::Disabled) => {
                Err(OperatorError::Disabled)
            }
            (OperatorCommand::GrantPersonalAccess { until, reason, by }, _) => {
                if self.role != Some(Role::Auditor) {
                    return Err(OperatorError::NotAuditor);
                }
                if until <= now || until > now + LONGEST_PERSONAL_ACCESS {
                    return Err(OperatorError::PersonalAccessTime);
                }
                if self.reads_personal_until == Some(until) {
                    return Ok(vec![]);
                }
                Ok(vec![OperatorEvent::PersonalAccessGranted { until, reason, by, granted_at: now }])
            }
            (OperatorCommand::RevokePersonalAccess { reason, by }, _) if self.reads_personal(now) => {
                Ok(vec![OperatorEvent::PersonalAccessRevoked { reason, by, revoked_at: now }])
            }
            (OperatorCommand::RevokePersonalAccess { .. }, _) => Ok(vec![]),
        }
    }
}

impl Operator {
    fn record(&mut self, event: OperatorEvent) {
        match event {
            OperatorEvent::OperatorInvited { workspace, login, role, .. } => {
                self.status = OperatorStatus::Invited;
                self.workspace = Some(workspace);
                self.login = Some(login);
                self.role = Some(role);
            }
            OperatorEvent::OperatorActivated { .. } | OperatorEvent::OperatorEnabled { .. } => {
                self.status = OperatorStatus::Active;
            }
            OperatorEvent::OperatorRoleChanged { role, .. } => {
                self.role = Some(role);
                self.reads_personal_until = None;
            }
            OperatorEvent::OperatorDisabled { .. } => {
                self.status = OperatorStatus::Disabled;
                self.reads_personal_until = None;
            }
            OperatorEvent::PersonalAccessGranted { until, .. } => self.reads_personal_until = Some(until),
            OperatorEvent::PersonalAccessRevoked { .. } => self.reads_personal_until = None,
        }
    }
}

aggregate!(Operator, "operator", OperatorCommand, OperatorEvent, OperatorError);

#[cfg(test)]
mod tests;
