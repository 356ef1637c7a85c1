//! The platform's face for operators and software: GraphQL over HTTP, WebSocket and SSE, and the
//! admin port's health and metrics.
//!
//! Here live the schema (`graphql/`, one file a noun), our own HTTP and `graphql-transport-ws`
//! handlers, the guard that reads documents before the parser does, access tokens and the accept
//! loop. Here never live SQL, decisions or anything that knows Telegram: a resolver parses, calls
//! one use case or one reader, and maps. To add a field: a method in the file of its noun with a
//! `guard`, a line in `tests/api/access.rs`, and `BOTLEDGER_BLESS=1` to renew `schema.graphql`.

mod admin;
mod attempts;
mod auth;
mod document;
mod graphql;
mod http;
mod owners;
mod rate_limit;
mod serve;
mod shares;

use std::{net::IpAddr, sync::Arc, time::Duration};

use botledger_commands::{App, OneTimeSecret};
use botledger_projections::{LogReader, Past, PastConfig, ReadPool, Tail};

pub use admin::{AdminState, Check, Readiness, admin_router};
pub use serve::serve;

/// How the API works.
#[derive(Clone)]
pub struct ApiConfig {
    /// Life of an access token.
    pub access_ttl: Duration,
    /// Ed25519 seed that signs access tokens; processes that share it accept each other's.
    pub jwt_key: [u8; 32],
    /// Where people reach this API, for example `https://bots.example.org`; links are built on it.
    pub public_url: String,
    /// Largest request body, bytes.
    pub max_body_bytes: usize,
    /// How long a query or mutation may take.
    pub request_timeout: Duration,
    /// Requests worked on at once; more are told to come back.
    pub max_in_flight: usize,
    /// What read models of the past may cost.
    pub past: PastConfig,
    /// Proxies in front: what they say in `X-Forwarded-For` is where a request comes from.
    pub trusted_proxies: Vec<IpAddr>,
    /// Stand-ins in use, for example `telegram` and `model`: every answer says so.
    pub simulated: Vec<String>,
}

/// What the API stands on.
#[derive(Clone)]
pub struct ApiContext {
    /// Use cases.
    pub app: App,
    /// Pool of the readers.
    pub read: ReadPool,
    /// Follows the ledger, for subscriptions.
    pub tail: Tail,
}

/// What resolvers and handlers share.
pub(crate) struct Services {
    pub(crate) app: App,
    pub(crate) read: ReadPool,
    pub(crate) tail: Tail,
    pub(crate) log: LogReader,
    pub(crate) past: Past,
    pub(crate) edges: Arc<graphql::edges::Edges>,
    pub(crate) tokens: auth::Tokens,
    pub(crate) owners: owners::Owners,
    pub(crate) attempts: attempts::Attempts,
    pub(crate) config: ApiConfig,
}

/// The GraphQL API of a process. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    inner: Arc<http::Inner>,
}

impl Api {
    /// Wires schema and handlers.
    ///
    /// # Panics
    /// Never for a seed of 32 bytes.
    #[must_use]
    pub fn new(config: ApiConfig, context: ApiContext) -> Self {
        let log = LogReader::new(context.read.clone());
        let services = Arc::new(Services {
            tokens: auth::Tokens::new(&config.jwt_key, config.access_ttl),
            owners: owners::Owners::new(log.clone()),
            attempts: attempts::Attempts::default(),
            past: Past::new(&context.read, botledger_projections::all(), config.past),
            edges: Arc::new(graphql::edges::Edges::new(context.read.clone())),
            app: context.app,
            read: context.read,
            tail: context.tail,
            log,
            config,
        });
        Self { inner: Arc::new(http::Inner::new(services)) }
    }

    /// `/graphql` (POST, GET, WebSocket, SSE) and a page at `/` that says where it is.
    pub fn router(&self) -> axum::Router {
        http::router(Arc::clone(&self.inner))
    }

    /// The schema, as committed in `api/schema.graphql`.
    #[must_use]
    pub fn sdl() -> String {
        graphql::sdl()
    }
}

/// Where the owner of a one-time secret sets a password. The secret stands behind `#`, where no server
/// sees it.
#[must_use]
pub fn activation_link(public_url: &str, secret: &OneTimeSecret) -> String {
    format!("{}/activate#{}", public_url.trim_end_matches('/'), secret.0.as_str())
}

/// Tells the metrics recorder what the API's metrics mean.
pub fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("botledger_api_requests_total", Unit::Count, "Queries and mutations by outcome");
    describe_histogram!("botledger_api_request_seconds", Unit::Seconds, "Queries and mutations, whole");
    describe_counter!(
        "botledger_api_refused_total",
        Unit::Count,
        "Requests refused before execution, by reason"
    );
    describe_gauge!("botledger_api_sockets", Unit::Count, "Open WebSockets");
    describe_gauge!("botledger_api_streams", Unit::Count, "Running subscriptions over all transports");
}
