use std::time::Duration;

use crate::Usage;

/// Why a model gave no whole answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LlmError {
    /// No connection, or the provider failed before answering.
    #[error("the model server cannot be reached")]
    Unavailable,
    /// The provider asked to come back later.
    #[error("the model server is overloaded")]
    Overloaded {
        /// When it said to come back.
        retry_after: Option<Duration>,
    },
    /// The circuit breaker is open after repeated failures.
    #[error("the model server failed repeatedly and is left alone for a while")]
    CircuitOpen {
        /// Time until the next trial.
        retry_after: Duration,
    },
    /// No such model there.
    #[error("the model server has no such model")]
    ModelNotFound,
    /// The provider found the conversation too long.
    #[error("the conversation does not fit the model's window")]
    ContextTooLong,
    /// Any other refusal.
    #[error("the model server refused the request with status {status}")]
    Rejected {
        /// HTTP status.
        status: u16,
    },
    /// The stream broke or reported an error after it began.
    #[error("the answer broke off")]
    Interrupted,
    /// Something that is not the protocol.
    #[error("the model server's answer cannot be read")]
    Malformed,
    /// The caller's deadline passed.
    #[error("the model did not answer in time")]
    DeadlineExceeded,
    /// Nothing came for too long.
    #[error("the model stopped sending")]
    IdleTimeout,
    /// More text than allowed.
    #[error("the answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
}

/// The end of a call that gave no whole answer, and what it took all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct LlmFailure {
    /// Why.
    pub error: LlmError,
    /// Tokens of the last attempt, estimated; absent when the model did nothing: it was not reached,
    /// or refused before it read the prompt.
    pub used: Option<Usage>,
}

impl From<LlmError> for LlmFailure {
    fn from(error: LlmError) -> Self {
        Self { error, used: None }
    }
}

impl LlmError {
    /// A stable code for events and metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unavailable => "LLM_UNAVAILABLE",
            Self::Overloaded { .. } => "LLM_OVERLOADED",
            Self::CircuitOpen { .. } => "LLM_CIRCUIT_OPEN",
            Self::ModelNotFound => "LLM_MODEL_NOT_FOUND",
            Self::ContextTooLong => "LLM_CONTEXT_TOO_LONG",
            Self::Rejected { .. } => "LLM_REJECTED",
            Self::Interrupted => "LLM_INTERRUPTED",
            Self::Malformed => "LLM_MALFORMED",
            Self::DeadlineExceeded => "LLM_DEADLINE_EXCEEDED",
            Self::IdleTimeout => "LLM_IDLE_TIMEOUT",
            Self::TooLarge { .. } => "LLM_ANSWER_TOO_LARGE",
        }
    }

    /// Whether the same request may succeed a little later, as long as no text has come.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable | Self::Overloaded { .. } | Self::Interrupted | Self::IdleTimeout)
    }
}
