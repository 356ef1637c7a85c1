//! One way in for all transports: guard, parse, check, execute, and errors as clients may see them.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use async_graphql::{
    PathSegment, Request, Response, ServerError, Value, Variables, parser::types::OperationType,
};
use botledger_commands::{AuditEntry, Origin};
use futures::{Stream, StreamExt, stream};

use super::{Inner, SUBSCRIPTIONS_SHARE, admit, shape::Shape, share};
use crate::{
    auth::Identity,
    document::{self, Prepared},
    graphql::{self, Noted, RequestContext, error::ApiError, moment::Moments},
    shares::{Share, Who},
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
    pub(super) ip: Option<IpAddr>,
    /// What the client calls itself.
    pub(super) user_agent: Option<String>,
}

/// An answer and how the request was.
pub(super) struct Outcome {
    pub(super) response: Response,
    /// Nothing was executed.
    pub(super) request_error: bool,
}

/// A request that may be executed.
pub(super) struct Ready {
    pub(super) kind: OperationType,
    pub(super) request_id: uuid::Uuid,
    pub(super) request: Request,
    who: Who,
    shape: Option<Shape>,
    attempt: Option<Attempt>,
}

/// A mutation of somebody known: it leaves a row in the audit table whatever becomes of it. Use cases write theirs;
/// here is written what never reached one, or did not end in time.
struct Attempt {
    identity: Identity,
    origin: Origin,
    /// Mutations asked for; what is about sessions is noted where sessions are.
    fields: Vec<String>,
    noted: Arc<Noted>,
}

impl Attempt {
    async fn settle(self, inner: &Inner, id: uuid::Uuid, response: &Response, in_time: bool) {
        let nothing_tried = in_time && is_request_error(response);
        if nothing_tried || self.noted.rows.load(Ordering::Relaxed) >= self.fields.len() {
            return;
        }
        let code = response.errors.iter().find_map(|error| match error.extensions.as_ref()?.get("code")? {
            Value::String(code) => Some(code.as_str()),
            _ => None,
        });
        let code = code.unwrap_or("BAD_INPUT");
        let outcome = match code {
            "UNAVAILABLE" | "INTERNAL" => "failed",
            "FORBIDDEN" => "forbidden",
            _ => "refused",
        };
        let (action, detail) = match &self.fields[..] {
            [field] => (field.clone(), serde_json::json!({ "code": code })),
            fields => ("api.request".to_owned(), serde_json::json!({ "code": code, "fields": fields })),
        };
        let entry = AuditEntry {
            operator_id: Some(self.identity.operator),
            workspace: Some(self.identity.workspace),
            action,
            outcome,
            detail,
            source: "graphql",
            origin: self.origin,
            correlation_id: Some(id),
        };
        inner.services.app.audit.record(entry).await;
    }
}

pub(super) fn failed(error: ApiError, request_id: uuid::Uuid) -> Response {
    let error: async_graphql::Error = error.into();
    polish(Response::from_errors(vec![error.into_server_error(async_graphql::Pos::default())]), request_id)
}

/// Everything that can be said before execution.
pub(super) fn prepare(inner: &Inner, asked: Asked) -> Result<Ready, Response> {
    let request_id = inner.services.app.core.ids.next();
    let prepared = check(&asked).map_err(|error| failed(error, request_id))?;
    let Prepared { document, kind, mut roots } = prepared;
    let who = Who::of(asked.identity.as_ref(), asked.ip);
    let shape = Shape::of(&document, asked.operation_name.as_deref(), &asked.variables);
    let origin = Origin { ip: asked.ip.map(|ip| ip.to_string()), user_agent: asked.user_agent };
    let noted = Arc::new(Noted::default());
    roots.retain(|field| !field.starts_with("session"));
    let known = asked.identity.clone().filter(|_| kind == OperationType::Mutation);
    let attempt = known.map(|identity| Attempt {
        identity,
        origin: origin.clone(),
        fields: roots,
        noted: Arc::clone(&noted),
    });
    let mut request = Request::new(asked.query)
        .variables(Variables::from_json(serde_json::Value::Object(asked.variables)))
        .data(RequestContext {
            id: request_id,
            identity: asked.identity,
            ip: asked.ip,
            moments: Moments::default(),
            origin,
            noted,
        });
    if let Some(name) = asked.operation_name.filter(|name| !name.is_empty()) {
        request = request.operation_name(name);
    }
    request.set_parsed_query(document);
    Ok(Ready { kind, request_id, request, who, shape, attempt })
}

fn check(asked: &Asked) -> Result<Prepared, ApiError> {
    document::check_variables(&serde_json::Value::Object(asked.variables.clone()))?;
    let prepared = document::prepare(&asked.query, asked.operation_name.as_deref())?;
    document::check_introspection(&prepared, asked.identity.as_ref().map(|identity| identity.role))?;
    Ok(prepared)
}

/// Executes a query or a mutation that has its place.
pub(super) async fn once(inner: &Inner, ready: Ready) -> Outcome {
    if ready.kind == OperationType::Subscription {
        let error = ApiError::bad_input("subscriptions come over a WebSocket or as text/event-stream");
        return Outcome { response: failed(error, ready.request_id), request_error: true };
    }
    let response = within(inner, ready).await;
    let request_error = is_request_error(&response);
    Outcome { response, request_error }
}

async fn within(inner: &Inner, ready: Ready) -> Response {
    let begun = Instant::now();
    let id = ready.request_id;
    let timeout = inner.services.config.request_timeout;
    let (response, in_time) = match tokio::time::timeout(timeout, inner.schema.execute(ready.request)).await {
        Ok(response) => (polish(shaped(ready.shape.as_ref(), response), id), true),
        Err(_) => (failed(ApiError::away(), id), false),
    };
    if let Some(attempt) = ready.attempt {
        attempt.settle(inner, id, &response, in_time).await;
    }
    metrics::histogram!("botledger_api_request_seconds").record(begun.elapsed().as_secs_f64());
    let outcome = if response.errors.is_empty() { "ok" } else { "error" };
    metrics::counter!("botledger_api_requests_total", "outcome" => outcome).increment(1);
    response
}

/// Executes anything, as a stream of answers. A query or a mutation takes a request's place, a
/// subscription one of its operator's share.
pub(super) fn stream(inner: Arc<Inner>, ready: Ready) -> impl Stream<Item = Response> + Send {
    let id = ready.request_id;
    if ready.kind != OperationType::Subscription {
        let single = async move {
            match admit(&inner) {
                Some(_permit) => within(&inner, ready).await,
                None => failed(ApiError::away(), id),
            }
        };
        return stream::once(single).boxed();
    }
    let Some(share) = share(&inner.subscriptions, ready.who, "subscriptions_share") else {
        let refusal = failed(ApiError::too_many_subscriptions(SUBSCRIPTIONS_SHARE), id);
        return stream::iter([refusal]).boxed();
    };
    let running = Running::begin(share);
    inner
        .schema
        .execute_stream(ready.request)
        .map(move |response| {
            let _counted = &running;
            polish(shaped(ready.shape.as_ref(), response), id)
        })
        .boxed()
}

fn shaped(shape: Option<&Shape>, response: Response) -> Response {
    match shape {
        Some(shape) => shape.apply(response),
        None => response,
    }
}

/// Counts a running subscription.
struct Running {
    _share: Share,
}

impl Running {
    fn begin(share: Share) -> Self {
        metrics::gauge!("botledger_api_streams").increment(1.0);
        Self { _share: share }
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

/// Nothing could be told because something that the platform stands on is away.
pub(super) fn is_away(response: &Response) -> bool {
    let empty = match &response.data {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(|field| *field == Value::Null),
        _ => false,
    };
    let away = Value::from("UNAVAILABLE");
    empty
        && response.errors.iter().any(|error| {
            error.extensions.as_ref().and_then(|extensions| extensions.get("code")) == Some(&away)
        })
}

/// Every error gets a code, whether trying again helps, and the request's id; few and short ones.
fn polish(mut response: Response, request_id: uuid::Uuid) -> Response {
    response.errors.truncate(MOST_ERRORS);
    for error in &mut response.errors {
        // What has no place in the document has no location.
        error.locations.retain(|place| place.line > 0);
        let extensions = error.extensions.get_or_insert_default();
        let code = match extensions.get("code") {
            Some(Value::String(code)) => code.clone(),
            // What the library finds wrong is wrong with the document.
            _ => {
                extensions.set("code", "BAD_INPUT");
                error.message = discreet(&error.message);
                "BAD_INPUT".to_owned()
            }
        };
        extensions.set("retryable", ApiError::retryable(&code));
        extensions.set("requestId", request_id.as_hyphenated().to_string());
        shorten(error);
    }
    response
}

/// What the library says, without the client's own words: names that are not in the schema and
/// values, which may be secrets, go.
fn discreet(message: &str) -> String {
    let message = message.split_once(", found ").map_or(message, |(before, _)| before);
    // The one place where the library does not quote a name.
    if message.starts_with("Variable ") && message.ends_with(" is not defined.") {
        return "Variable is not defined.".to_owned();
    }
    let names = graphql::names();
    let mut told = String::with_capacity(message.len());
    for (index, part) in message.split('"').enumerate() {
        let quoted = index % 2 == 1;
        let words =
            || part.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty());
        let known =
            !quoted || words().all(|word| names.contains(word) || word.bytes().all(|b| b.is_ascii_digit()));
        if index > 0 {
            told.push('"');
        }
        told.push_str(if known { part } else { "…" });
    }
    told
}

fn shorten(error: &mut ServerError) {
    if error.message.chars().count() > MOST_MESSAGE {
        error.message = error.message.chars().take(MOST_MESSAGE - 1).chain(['…']).collect();
    }
    // Aliases are the client's own words; a long one is not repeated.
    error.path.retain(|segment| !matches!(segment, PathSegment::Field(name) if name.len() > 128));
}
