//! What clients are told when something does not work.

use std::sync::atomic::Ordering;

use async_graphql::{ErrorExtensions, SimpleObject};
use botledger_commands::{AuditEntry, CommandError, ProbeError};
use botledger_domain::{DomainError, Reason, TextError};
use botledger_projections::{ProjectionError, ReadError};

use super::Scope;

/// A top-level error. Has no `Display` on purpose: async-graphql would turn anything displayable into
/// a message for clients.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    code: &'static str,
    message: String,
    retry_after_ms: Option<u64>,
}

/// What a resolver gives.
pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_ms: None }
    }

    pub(crate) fn bad_input(message: impl Into<String>) -> Self {
        Self::new("BAD_INPUT", message)
    }

    pub(crate) fn unauthenticated() -> Self {
        Self::new("UNAUTHENTICATED", "log in first: sessionLogin gives an access token")
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new("FORBIDDEN", message)
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new("NOT_FOUND", format!("there is no such {what}"))
    }

    pub(crate) fn rate_limited(retry_after_ms: u64) -> Self {
        Self {
            retry_after_ms: Some(retry_after_ms),
            ..Self::new("RATE_LIMITED", "too many attempts; wait a while")
        }
    }

    /// Within a rate limit again after so long.
    pub(crate) fn too_fast(message: impl Into<String>, retry_after_ms: u64) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..Self::new("RATE_LIMITED", message) }
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new("CONFLICT", message)
    }

    /// They have as many as anybody gets.
    pub(crate) fn too_many_subscriptions(most: usize) -> Self {
        let message = format!("at most {most} subscriptions of an operator run at once; end one");
        Self { retry_after_ms: Some(1_000), ..Self::new("RATE_LIMITED", message) }
    }

    pub(crate) fn internal() -> Self {
        Self::new("INTERNAL", "something went wrong; it was logged under the requestId")
    }

    /// Logs what failed and tells the client to come back.
    pub(crate) fn unavailable(source: impl std::error::Error) -> Self {
        log(&source);
        Self::away()
    }

    /// Logs what is broken; coming back would not help.
    pub(crate) fn broken(source: impl std::error::Error) -> Self {
        log(&source);
        Self::internal()
    }

    pub(crate) fn away() -> Self {
        let message = "the platform cannot do this right now; try again shortly";
        Self { retry_after_ms: Some(1_000), ..Self::new("UNAVAILABLE", message) }
    }

    /// What is asked for is being made.
    pub(crate) fn not_yet(message: impl Into<String>) -> Self {
        Self { retry_after_ms: Some(1_000), ..Self::new("UNAVAILABLE", message) }
    }

    #[cfg(test)]
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn retryable(code: &str) -> bool {
        matches!(code, "UNAVAILABLE" | "RATE_LIMITED" | "CONFLICT")
    }
}

fn log(source: &dyn std::error::Error) {
    let mut chain = source.to_string();
    let mut cause = source.source();
    while let Some(error) = cause {
        chain.push_str(": ");
        chain.push_str(&error.to_string());
        cause = error.source();
    }
    tracing::error!(error = chain, "a request failed");
}

impl From<ApiError> for async_graphql::Error {
    fn from(error: ApiError) -> Self {
        Self::new(error.message.clone()).extend_with(|_, extensions| {
            extensions.set("code", error.code);
            if let Some(millis) = error.retry_after_ms {
                extensions.set("retryAfterMs", millis);
            }
        })
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        Self::unavailable(error)
    }
}

impl From<ProjectionError> for ApiError {
    fn from(error: ProjectionError) -> Self {
        Self::unavailable(error)
    }
}

/// An expected refusal, as data.
#[derive(Clone, Debug, SimpleObject)]
pub(crate) struct UserError {
    /// Stable, for example `BOT_ALREADY_REGISTERED`.
    code: String,
    /// What was wrong and what to do.
    message: String,
    /// Name of the input's field, where one is to blame.
    field: Option<String>,
}

impl UserError {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), field: None }
    }

    pub(crate) fn of(field: &str, error: &TextError) -> Self {
        Self { field: Some(field.to_owned()), ..Self::new("BAD_INPUT", error.to_string()) }
    }
}

/// Why somebody does something, as they gave it in the field `reason`.
pub(crate) fn reason(given: &str) -> Result<Reason, UserError> {
    Reason::parse(given).map_err(|error| UserError::of("reason", &error))
}

/// A refusal where no payload could carry it.
impl From<UserError> for ApiError {
    fn from(error: UserError) -> Self {
        Self::bad_input(error.message)
    }
}

/// A failure of one thing among many.
impl From<ApiError> for UserError {
    fn from(error: ApiError) -> Self {
        Self::new(error.code, error.message)
    }
}

/// A use case's answer: done, or refused in a way that is data. Every call of an operator is noted in the
/// audit table, with what became of it.
pub(crate) async fn outcome<T, E: DomainError>(
    scope: &Scope<'_>,
    action: &'static str,
    result: Result<T, CommandError<E>>,
) -> ApiResult<Result<T, UserError>> {
    if result.is_ok() {
        note(scope, action, "ok", serde_json::json!({})).await;
    }
    looked(scope, action, result).await
}

/// The same for what a use case looks at before it acts: that it was found is not worth a note.
pub(crate) async fn looked<T, E: DomainError>(
    scope: &Scope<'_>,
    action: &'static str,
    result: Result<T, CommandError<E>>,
) -> ApiResult<Result<T, UserError>> {
    let error = match result {
        Ok(done) => return Ok(Ok(done)),
        Err(error) => error,
    };
    let code = error.code();
    let told = match error {
        CommandError::Unavailable { source } => Err(ApiError::unavailable(source.as_ref())),
        CommandError::Broken { source } => Err(ApiError::broken(source.as_ref())),
        CommandError::Probe(ProbeError::Unreachable) => Err(ApiError::away()),
        CommandError::Forbidden { .. } => Err(ApiError::forbidden(error.to_string())),
        CommandError::NotFound { what } => Err(ApiError::not_found(what)),
        CommandError::Conflict => Err(ApiError::conflict(error.to_string())),
        CommandError::Refused(_) | CommandError::Invalid { .. } | CommandError::Probe(_) => {
            Ok(Err(UserError::new(code, error.to_string())))
        }
    };
    let kind = match &told {
        Err(error) if error.code == "FORBIDDEN" => "forbidden",
        // Nobody decided against it, and it may have been carried out.
        Err(error) if matches!(error.code, "UNAVAILABLE" | "INTERNAL") => "failed",
        _ => "refused",
    };
    note(scope, action, kind, serde_json::json!({ "code": code })).await;
    told
}

/// Writes a row of the audit table.
pub(crate) async fn note(scope: &Scope<'_>, action: &str, outcome: &'static str, detail: serde_json::Value) {
    scope.request.noted.rows.fetch_add(1, Ordering::Relaxed);
    scope.services.app.audit.record(row(scope, action, outcome, detail)).await;
}

/// A row about this request.
pub(super) fn row(
    scope: &Scope<'_>,
    action: &str,
    outcome: &'static str,
    detail: serde_json::Value,
) -> AuditEntry {
    AuditEntry {
        operator_id: scope.request.identity.as_ref().map(|identity| identity.operator),
        workspace: scope.request.identity.as_ref().map(|identity| identity.workspace),
        action: action.to_owned(),
        outcome,
        detail,
        source: "graphql",
        origin: scope.request.origin.clone(),
        correlation_id: Some(scope.request.id),
    }
}
