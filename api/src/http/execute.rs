//! One way in for all transports: guard, parse, check, execute, and errors as clients may see them.

use std::time::Instant;

use async_graphql::{
    PathSegment, Request, Response, ServerError, Value, Variables, parser::types::OperationType,
};
use axum::http::Method;
use futures::{Stream, StreamExt, stream};

use super::Inner;
use crate::{
    auth::Identity,
    document::{self, Prepared},
    graphql::{RequestContext, error::ApiError},
};

/// Errors of one answer, at most.
const MOST_ERRORS: usize = 5;
/// Characters of a message, at most.
const MOST_MESSAGE: usize = 200;

/// What somebody asks for.
pub(super) struct Asked {
    pub(super) query: String,
    pub(super) operation_name: Option<String>,
    pub(super) variables: serde_json::Map<String, serde_json::Value>,
    pub(super) identity: Option<Identity>,
    pub(super) ip: Option<String>,
}

/// An answer and how the request was.
pub(super) struct Outcome {
    pub(super) response: Response,
    /// Nothing was executed.
    pub(super) request_error: bool,
    /// A GET asked for more than a query.
    pub(super) method_refused: bool,
}

/// A request that may be executed.
pub(super) struct Ready {
    pub(super) kind: OperationType,
    pub(super) request_id: uuid::Uuid,
    pub(super) request: Request,
}

pub(super) fn failed(error: ApiError, request_id: uuid::Uuid) -> Response {
    let error: async_graphql::Error = error.into();
    polish(Response::from_errors(vec![error.into_server_error(async_graphql::Pos::default())]), request_id)
}

/// Everything that can be said before execution.
pub(super) fn prepare(inner: &Inner, asked: Asked) -> Result<Ready, Response> {
    let request_id = inner.services.app.core.ids.next();
    let prepared = check(&asked).map_err(|error| failed(error, request_id))?;
    let Prepared { document, kind, .. } = prepared;
    let mut request = Request::new(asked.query)
        .variables(Variables::from_json(serde_json::Value::Object(asked.variables)))
        .data(RequestContext { id: request_id, identity: asked.identity, ip: asked.ip });
    if let Some(name) = asked.operation_name.filter(|name| !name.is_empty()) {
        request = request.operation_name(name);
    }
    request.set_parsed_query(document);
    Ok(Ready { kind, request_id, request })
}

fn check(asked: &Asked) -> Result<Prepared, ApiError> {
    document::check_variables(&serde_json::Value::Object(asked.variables.clone()))?;
    let prepared = document::prepare(&asked.query, asked.operation_name.as_deref())?;
    document::check_introspection(&prepared, asked.identity.as_ref().map(|identity| identity.role))?;
    Ok(prepared)
}

/// Executes a query or a mutation.
pub(super) async fn once(inner: &Inner, asked: Asked, method: &Method) -> Outcome {
    let ready = match prepare(inner, asked) {
        Ok(ready) => ready,
        Err(response) => return Outcome { response, request_error: true, method_refused: false },
    };
    if method == Method::GET && ready.kind != OperationType::Query {
        let error = ApiError::bad_input("only queries may be asked for by GET; use POST");
        return Outcome {
            response: failed(error, ready.request_id),
            request_error: true,
            method_refused: true,
        };
    }
    if ready.kind == OperationType::Subscription {
        let error = ApiError::bad_input("subscriptions come over a WebSocket or as text/event-stream");
        return Outcome {
            response: failed(error, ready.request_id),
            request_error: true,
            method_refused: false,
        };
    }
    let response = within(inner, ready).await;
    let request_error = is_request_error(&response);
    Outcome { response, request_error, method_refused: false }
}

async fn within(inner: &Inner, ready: Ready) -> Response {
    let begun = Instant::now();
    let id = ready.request_id;
    let timeout = inner.services.config.request_timeout;
    let response = match tokio::time::timeout(timeout, inner.schema.execute(ready.request)).await {
        Ok(response) => polish(response, id),
        Err(_) => failed(ApiError::away(), id),
    };
    metrics::histogram!("botledger_api_request_seconds").record(begun.elapsed().as_secs_f64());
    let outcome = if response.errors.is_empty() { "ok" } else { "error" };
    metrics::counter!("botledger_api_requests_total", "outcome" => outcome).increment(1);
    response
}

/// Executes anything, as a stream of answers.
pub(super) fn stream(inner: std::sync::Arc<Inner>, ready: Ready) -> impl Stream<Item = Response> + Send {
    let id = ready.request_id;
    if ready.kind != OperationType::Subscription {
        return stream::once(async move { within(&inner, ready).await }).boxed();
    }
    let running = Running::begin();
    inner
        .schema
        .execute_stream(ready.request)
        .map(move |response| {
            let _counted = &running;
            polish(response, id)
        })
        .boxed()
}

/// Counts a running subscription.
struct Running;

impl Running {
    fn begin() -> Self {
        metrics::gauge!("botledger_api_streams").increment(1.0);
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        metrics::gauge!("botledger_api_streams").decrement(1.0);
    }
}

/// Nothing was executed: no data, and no error belongs to a field.
pub(super) fn is_request_error(response: &Response) -> bool {
    !response.errors.is_empty()
        && response.data == Value::Null
        && response.errors.iter().all(|error| error.path.is_empty())
}

/// Every error gets a code, whether trying again helps, and the request's id; few and short ones.
fn polish(mut response: Response, request_id: uuid::Uuid) -> Response {
    response.errors.truncate(MOST_ERRORS);
    for error in &mut response.errors {
        shorten(error);
        let extensions = error.extensions.get_or_insert_default();
        let code = match extensions.get("code") {
            Some(Value::String(code)) => code.clone(),
            // What the library finds wrong is wrong with the document.
            _ => {
                extensions.set("code", "BAD_INPUT");
                "BAD_INPUT".to_owned()
            }
        };
        extensions.set("retryable", ApiError::retryable(&code));
        extensions.set("requestId", request_id.as_hyphenated().to_string());
    }
    response
}

fn shorten(error: &mut ServerError) {
    if error.message.chars().count() > MOST_MESSAGE {
        error.message = error.message.chars().take(MOST_MESSAGE - 1).chain(['…']).collect();
    }
    // Aliases are the client's own words; a long one is not repeated.
    error.path.retain(|segment| !matches!(segment, PathSegment::Field(name) if name.len() > 128));
}
