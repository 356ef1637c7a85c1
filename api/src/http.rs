//! GraphQL over HTTP, to the letter of its specification; our own, because the stock handler runs
//! mutations over GET, reads bodies without limit and lets documents through that kill the parser.

#![expect(
    clippy::result_large_err,
    reason = "a refusal is a whole answer, and there is one a request at most"
)]

mod execute;
mod shape;
mod sse;
mod ws;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_graphql::parser::types::OperationType;
use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, FromRequestParts, Query, Request, State, WebSocketUpgrade},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use botledger_commands::Origin;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    Services,
    admin::problem,
    auth::{self, AuthFailure, Identity},
    graphql::{self, ApiSchema, error::ApiError},
    rate_limit::{self, Told},
    serve::Server,
    shares::{Share, Shares, Who},
};
use execute::{Asked, Outcome};

/// A body must be complete within this time.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// Sockets and streams of a process.
const MOST_LASTING: usize = 2_000;
/// Of them an operator's, and those of a network that nobody introduced.
const LASTING_SHARE: usize = 64;
/// Bodies that are on their way from a network: who sends slowly holds up nobody else.
const BODIES_SHARE: usize = 64;
/// Running subscriptions of an operator; each looks at the whole ledger.
const SUBSCRIPTIONS_SHARE: usize = 100;
const RESPONSE_JSON: &str = "application/graphql-response+json";
const JSON: &str = "application/json";
/// The page sends its one form to this server and loads nothing from anywhere.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; \
                      form-action 'none'; frame-ancestors 'none'; base-uri 'none'";

/// What every handler shares.
pub(crate) struct Inner {
    pub(crate) schema: ApiSchema,
    pub(crate) services: Arc<Services>,
    in_flight: Arc<Semaphore>,
    lasting: Arc<Semaphore>,
    lasting_shares: Arc<Shares>,
    bodies: Arc<Shares>,
    subscriptions: Arc<Shares>,
}

impl Inner {
    pub(crate) fn new(services: Arc<Services>) -> Self {
        let in_flight = Arc::new(Semaphore::new(services.config.max_in_flight));
        let lasting = Arc::new(Semaphore::new(MOST_LASTING));
        Self {
            schema: graphql::schema(Arc::clone(&services)),
            services,
            in_flight,
            lasting,
            lasting_shares: Shares::new(LASTING_SHARE),
            bodies: Shares::new(BODIES_SHARE),
            subscriptions: Shares::new(SUBSCRIPTIONS_SHARE),
        }
    }
}

type Shared = State<Arc<Inner>>;

pub(crate) fn router(inner: Arc<Inner>) -> Router {
    let simulated = inner.services.config.simulated.join(", ");
    let simulated = (!simulated.is_empty()).then(|| HeaderValue::from_str(&simulated)).and_then(Result::ok);
    Router::new()
        .route("/graphql", get(read).post(write))
        .route("/", get(|| async { page(include_str!("pages/index.html")) }))
        .route("/activate", get(|| async { page(include_str!("pages/activate.html")) }))
        .route("/activate.js", get(activate_script))
        .fallback(async || problem(StatusCode::NOT_FOUND, "NOT_FOUND", "the API is at /graphql"))
        .method_not_allowed_fallback(async || {
            let mut response =
                problem(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "/graphql takes GET and POST");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, POST"));
            response
        })
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&inner), rate_limit::door))
        .with_state(inner)
        .layer(axum::middleware::map_response(move |mut response: Response| {
            let headers = response.headers_mut();
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
            if let Some(simulated) = &simulated {
                headers.insert("x-botledger-simulated", simulated.clone());
            }
            std::future::ready(response)
        }))
}

fn page(html: &'static str) -> Response {
    let mut response = Html(html).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

async fn activate_script() -> Response {
    let kind = [(header::CONTENT_TYPE, "text/javascript; charset=utf-8")];
    (kind, include_str!("pages/activate.js")).into_response()
}

/// What a client takes in answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    /// Request errors are 4xx.
    ResponseJson,
    /// Everything well-formed is 200.
    Json,
    /// A stream of events.
    Events,
}

/// The best the client takes of what we have; nothing when it takes neither.
fn takes(headers: &HeaderMap) -> Option<Takes> {
    let Some(accept) = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()) else {
        return Some(Takes::Json);
    };
    let mut best: Option<(f32, Takes)> = None;
    for part in accept.split(',') {
        let mut parameters = part.split(';').map(str::trim);
        let kind = match parameters.next().unwrap_or_default().to_ascii_lowercase().as_str() {
            RESPONSE_JSON | "application/*" => Takes::ResponseJson,
            JSON | "*/*" => Takes::Json,
            "text/event-stream" => Takes::Events,
            _ => continue,
        };
        let quality =
            parameters.find_map(|parameter| parameter.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
        if quality > 0.0 && best.is_none_or(|(known, _)| quality > known) {
            best = Some((quality, kind));
        }
    }
    best.map(|(_, kind)| kind)
}

/// Who asks, as far as headers tell: nobody without a token, an answer when the token is bad.
async fn identify(inner: &Inner, headers: &HeaderMap) -> Result<Option<Identity>, Response> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let token = value.to_str().ok().and_then(auth::bearer).unwrap_or_default();
    match auth::authenticate(&inner.services, token).await {
        Ok(identity) => Ok(Some(identity)),
        Err(AuthFailure::Refused) => {
            let mut response = problem(
                StatusCode::UNAUTHORIZED,
                "UNAUTHENTICATED",
                "the access token is not valid any more; refresh the session",
            );
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            Err(response)
        }
        Err(AuthFailure::Unavailable) => Err(busy()),
    }
}

/// Come back shortly.
pub(crate) fn busy() -> Response {
    let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "try again shortly");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Room for a request.
fn admit(inner: &Inner) -> Option<OwnedSemaphorePermit> {
    counted(Arc::clone(&inner.in_flight).try_acquire_owned().ok(), "in_flight")
}

/// Room for a socket or a stream, which may stay for hours: they take no request's place.
fn stay(inner: &Inner, who: Who) -> Option<Lasting> {
    let share = share(&inner.lasting_shares, who, "lasting_share")?;
    let room = counted(Arc::clone(&inner.lasting).try_acquire_owned().ok(), "lasting")?;
    Some(Lasting { _room: room, share })
}

fn share(shares: &Arc<Shares>, who: Who, reason: &'static str) -> Option<Share> {
    counted(shares.take(who), reason)
}

fn counted<T>(room: Option<T>, reason: &'static str) -> Option<T> {
    if room.is_none() {
        metrics::counter!("botledger_api_refused_total", "reason" => reason).increment(1);
    }
    room
}

/// The place of a socket or a stream.
struct Lasting {
    _room: OwnedSemaphorePermit,
    /// Whose it is; changes hands when a socket is introduced.
    share: Share,
}

/// Where a request comes from. A trusted proxy is believed where it got the request from.
pub(crate) fn peer(request: &Request, trusted: &[IpAddr]) -> Option<IpAddr> {
    let ConnectInfo(peer) = request.extensions().get::<ConnectInfo<SocketAddr>>()?;
    let told = request.headers().get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let told: Vec<&str> = told.flat_map(|value| value.split(',')).map(str::trim).collect();
    let mut from = peer.ip().to_canonical();
    // Everybody adds whom they heard it from; what comes before the first stranger may be made up.
    for hop in told.into_iter().rev() {
        match hop.parse::<IpAddr>() {
            Ok(hop) if trusted.contains(&from) => from = hop.to_canonical(),
            _ => break,
        }
    }
    Some(from)
}

/// The parameters of a POST.
#[derive(Deserialize)]
struct Parameters {
    query: Option<String>,
    #[serde(rename = "operationName")]
    operation_name: Option<String>,
    #[serde(default)]
    variables: Option<serde_json::Map<String, serde_json::Value>>,
}

/// The parameters of a GET: variables are JSON in a text.
#[derive(Deserialize)]
struct InQuery {
    query: Option<String>,
    #[serde(rename = "operationName")]
    operation_name: Option<String>,
    variables: Option<String>,
}

fn bad(detail: &str) -> Response {
    problem(StatusCode::BAD_REQUEST, "BAD_INPUT", detail)
}

async fn read(State(inner): Shared, request: Request) -> Response {
    let server = request.extensions().get::<Server>().cloned();
    let peer = peer(&request, &inner.services.config.trusted_proxies);
    let (mut parts, _) = request.into_parts();
    if parts.headers.contains_key(header::UPGRADE) {
        return match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
            Ok(upgrade) => ws::accept(inner, upgrade, &parts.headers, peer, server).await,
            Err(rejection) => rejection.into_response(),
        };
    }
    let Some(takes) = takes(&parts.headers) else { return not_acceptable() };
    let Ok(Query(parameters)) = Query::<InQuery>::try_from_uri(&parts.uri) else {
        return bad("the query string cannot be read");
    };
    let Some(query) = parameters.query else {
        return bad("query is missing; a person is better served at /");
    };
    // A page elsewhere can make a browser send a GET, but not with this header.
    if !parts.headers.contains_key(header::AUTHORIZATION) {
        return problem(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", "a GET needs an Authorization header");
    }
    let variables = match parameters.variables.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => match serde_json::from_str(text) {
            Ok(variables) => variables,
            Err(_) => return bad("variables are no JSON object"),
        },
        None => serde_json::Map::new(),
    };
    let parameters = Parameters {
        query: Some(query),
        operation_name: parameters.operation_name,
        variables: Some(variables),
    };
    let Some(permit) = admit(&inner) else { return busy() };
    answer(inner, &parts.headers, peer, server, parameters, takes, &Method::GET, permit).await
}

async fn write(State(inner): Shared, request: Request) -> Response {
    let server = request.extensions().get::<Server>().cloned();
    let peer = peer(&request, &inner.services.config.trusted_proxies);
    let (parts, body) = request.into_parts();
    let Some(takes) = takes(&parts.headers) else { return not_acceptable() };
    let kind =
        parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(JSON) {
        return problem(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "BAD_INPUT",
            "send the request as application/json",
        );
    }
    // Whatever takes time comes after this.
    let Some(permit) = admit(&inner) else { return busy() };
    let Some(coming) = share(&inner.bodies, Who::of(None, peer), "bodies_share") else { return busy() };
    let config = &inner.services.config;
    let patience = BODY_PATIENCE.min(config.request_timeout);
    let body = match body_of(body, config.max_body_bytes, patience).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    drop(coming);
    match serde_json::from_slice::<Parameters>(&body) {
        Ok(Parameters { query: None, .. }) => bad("query is missing"),
        Ok(parameters) => {
            answer(inner, &parts.headers, peer, server, parameters, takes, &Method::POST, permit).await
        }
        Err(_) => bad("the body is no JSON object with query, operationName and variables"),
    }
}

async fn body_of(body: Body, limit: usize, patience: Duration) -> Result<bytes::Bytes, Response> {
    match tokio::time::timeout(patience, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => {
            let detail = format!("a request has at most {limit} bytes");
            Err(problem(StatusCode::PAYLOAD_TOO_LARGE, "BAD_INPUT", &detail))
        }
        Err(_) => Err(problem(StatusCode::REQUEST_TIMEOUT, "BAD_INPUT", "the request came too slowly")),
    }
}

/// What the client calls itself, as the audit table keeps it.
fn user_agent(headers: &HeaderMap) -> Option<String> {
    let given = headers.get(header::USER_AGENT)?;
    Origin::user_agent(&String::from_utf8_lossy(given.as_bytes()))
}

fn not_acceptable() -> Response {
    problem(
        StatusCode::NOT_ACCEPTABLE,
        "BAD_INPUT",
        "answers are application/graphql-response+json, application/json or text/event-stream",
    )
}

#[expect(clippy::too_many_arguments, reason = "what is left of a request once it is taken apart")]
async fn answer(
    inner: Arc<Inner>,
    headers: &HeaderMap,
    peer: Option<IpAddr>,
    server: Option<Server>,
    parameters: Parameters,
    takes: Takes,
    method: &Method,
    permit: OwnedSemaphorePermit,
) -> Response {
    let identity = match identify(&inner, headers).await {
        Ok(identity) => identity,
        Err(response) => return response,
    };
    let now = || inner.services.app.core.clock.now();
    let limits = match &identity {
        Some(identity) => match rate_limit::serve(&inner.services, identity, peer).await {
            Ok(limits) => limits,
            Err(unserved) => return unserved.into_response(now()),
        },
        None => Vec::new(),
    };
    let who = Who::of(identity.as_ref(), peer);
    let asked = Asked {
        query: parameters.query.unwrap_or_default(),
        operation_name: parameters.operation_name,
        variables: parameters.variables.unwrap_or_default(),
        identity,
        ip: peer,
        user_agent: user_agent(headers),
    };
    let ready = match execute::prepare(&inner, asked) {
        // What only reads may be asked for by GET.
        Ok(ready)
            if method == Method::GET
                && (ready.kind == OperationType::Mutation
                    || ready.kind == OperationType::Subscription && takes != Takes::Events) =>
        {
            let error = ApiError::bad_input("a GET changes nothing and streams only text/event-stream");
            let refusal = Outcome { response: execute::failed(error, ready.request_id), request_error: true };
            let mut response = told(&refusal, takes, StatusCode::METHOD_NOT_ALLOWED);
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        ready => ready,
    };
    if takes == Takes::Events {
        // A stream is counted as one, and a single operation in it takes its own place.
        drop(permit);
        let mut response = match stay(&inner, who) {
            Some(lasting) => sse::answer(inner, ready, server, lasting),
            None => busy(),
        };
        response.extensions_mut().insert(Told(limits));
        return response;
    }
    let outcome = match ready {
        Ok(ready) => execute::once(&inner, ready).await,
        Err(response) => Outcome { response, request_error: true },
    };
    drop(permit);
    let away = execute::is_away(&outcome.response);
    let status = match takes {
        _ if away => StatusCode::SERVICE_UNAVAILABLE,
        Takes::ResponseJson if outcome.request_error => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    };
    let mut response = told(&outcome, takes, status);
    if away {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response.extensions_mut().insert(Told(limits));
    response
}

fn told(outcome: &Outcome, takes: Takes, status: StatusCode) -> Response {
    let kind = if takes == Takes::ResponseJson { RESPONSE_JSON } else { JSON };
    let body = serde_json::to_vec(&outcome.response).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, format!("{kind}; charset=utf-8"))], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(peer_address: &str, forwarded: &[&str], trusted: &[&str]) -> Option<String> {
        let mut request = Request::new(Body::empty());
        let address = SocketAddr::new(peer_address.parse().expect("an address"), 1);
        request.extensions_mut().insert(ConnectInfo(address));
        for value in forwarded {
            let value = HeaderValue::from_str(value).expect("a header");
            request.headers_mut().append("x-forwarded-for", value);
        }
        let trusted: Vec<IpAddr> = trusted.iter().map(|one| one.parse().expect("an address")).collect();
        peer(&request, &trusted).map(|found| found.to_string())
    }

    #[test]
    fn only_a_trusted_proxy_is_believed_where_a_request_is_from() {
        let is = |address: &str| Some(address.to_owned());
        assert_eq!(from("192.0.2.1", &["198.51.100.1"], &[]), is("192.0.2.1"));
        assert_eq!(from("192.0.2.1", &["198.51.100.1"], &["192.0.2.9"]), is("192.0.2.1"));
        assert_eq!(from("::ffff:192.0.2.9", &["198.51.100.1"], &["192.0.2.9"]), is("198.51.100.1"));
        // What the client itself wrote in front is not believed.
        let told = ["10.0.0.1, 198.51.100.1", "192.0.2.8"];
        assert_eq!(from("192.0.2.9", &told, &["192.0.2.9", "192.0.2.8"]), is("198.51.100.1"));
        assert_eq!(from("192.0.2.9", &["nonsense"], &["192.0.2.9"]), is("192.0.2.9"));
        assert_eq!(from("192.0.2.9", &[], &["192.0.2.9"]), is("192.0.2.9"));
    }

    fn accepting(accept: &str) -> Option<Takes> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_str(accept).expect("a header"));
        takes(&headers)
    }

    #[test]
    fn the_kind_of_answer_is_negotiated() {
        assert_eq!(takes(&HeaderMap::new()), Some(Takes::Json));
        assert_eq!(accepting("*/*"), Some(Takes::Json));
        assert_eq!(accepting("application/json"), Some(Takes::Json));
        assert_eq!(
            accepting("application/graphql-response+json; charset=utf-8, application/json; q=0.9"),
            Some(Takes::ResponseJson)
        );
        assert_eq!(
            accepting("application/graphql-response+json;q=0.5,application/json;q=0.9"),
            Some(Takes::Json)
        );
        assert_eq!(accepting("text/event-stream"), Some(Takes::Events));
        assert_eq!(accepting("text/html"), None);
        assert_eq!(accepting("application/json;q=0"), None);
    }
}
