use botledger_domain::{DomainError, TextError, operator::Permission};
use botledger_journal::{AppendError, JournalError};

use crate::{VaultError, bot::ProbeError};

/// Why a use case did not do what was asked. Nothing was recorded.
#[derive(Debug, thiserror::Error)]
pub enum CommandError<E: DomainError> {
    /// The aggregate said no, in business words.
    #[error(transparent)]
    Refused(E),
    /// The caller's role does not allow it.
    #[error("this needs the permission {}", permission.as_ref())]
    Forbidden {
        /// The missing one.
        permission: Permission,
    },
    /// Absent, or somebody else's.
    #[error("there is no such {what}")]
    NotFound {
        /// A noun, for example `bot`.
        what: &'static str,
    },
    /// Others were faster three times in a row, or the expected version is not the present one.
    #[error("it was changed by somebody else meanwhile; look again and repeat")]
    Conflict,
    /// An argument is not what it has to be.
    #[error("{message}")]
    Invalid {
        /// A stable code, for example `BOT_TOKEN_IN_USE`.
        code: &'static str,
        /// What was wrong and what to do.
        message: String,
    },
    /// Telegram would not confirm the token.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The ledger, the keys or the database cannot be used now.
    #[error("the platform cannot do this right now; try again shortly")]
    Unavailable {
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What is stored does not open, decode or go into the ledger. Trying again does not help.
    #[error("the stored content is broken")]
    Broken {
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl<E: DomainError> CommandError<E> {
    /// The stable code for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Forbidden { .. } => "FORBIDDEN",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::Conflict => "CONFLICT",
            Self::Invalid { code, .. } => code,
            Self::Probe(error) => error.code(),
            Self::Unavailable { .. } => "UNAVAILABLE",
            Self::Broken { .. } => "BROKEN_CONTENT",
        }
    }

    /// The same error of a use case that is a part of another one. What the part's aggregate refuses
    /// is not for the caller to mend.
    pub(crate) fn within<F: DomainError>(self) -> CommandError<F> {
        match self {
            Self::Refused(refusal) => CommandError::broken(refusal),
            Self::Forbidden { permission } => CommandError::Forbidden { permission },
            Self::NotFound { what } => CommandError::NotFound { what },
            Self::Conflict => CommandError::Conflict,
            Self::Invalid { code, message } => CommandError::Invalid { code, message },
            Self::Probe(error) => CommandError::Probe(error),
            Self::Unavailable { source } => CommandError::Unavailable { source },
            Self::Broken { source } => CommandError::Broken { source },
        }
    }

    pub(crate) fn unavailable(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Unavailable { source: Box::new(source) }
    }

    pub(crate) fn broken(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Broken { source: Box::new(source) }
    }
}

impl<E: DomainError> From<JournalError> for CommandError<E> {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Decode { .. } | JournalError::MalformedBody { .. } => Self::broken(error),
            JournalError::Database(_) | JournalError::LeaseTime => Self::unavailable(error),
        }
    }
}

impl<E: DomainError> From<VaultError> for CommandError<E> {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::Shredded => Self::NotFound { what: "content" },
            VaultError::Tampered | VaultError::Malformed => Self::broken(error),
            // A forgotten master key can be given back: until then nothing is lost.
            VaultError::MissingMasterKey { .. } | VaultError::Random | VaultError::Database(_) => {
                Self::unavailable(error)
            }
        }
    }
}

impl<E: DomainError> From<sqlx::Error> for CommandError<E> {
    fn from(error: sqlx::Error) -> Self {
        Self::unavailable(error)
    }
}

impl<E: DomainError> From<AppendError> for CommandError<E> {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Conflict { .. } => Self::Conflict,
            AppendError::Invalid { .. } => Self::broken(error),
            AppendError::Fenced { .. } | AppendError::Unavailable { .. } | AppendError::Closed => {
                Self::unavailable(error)
            }
        }
    }
}

impl<E: DomainError> From<TextError> for CommandError<E> {
    fn from(error: TextError) -> Self {
        Self::Invalid { code: "BAD_INPUT", message: error.to_string() }
    }
}
