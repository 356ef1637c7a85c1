//! `botledger serve`, `worker`, `project` and `relay run`: the product in one process, or a part of it in each
//! of many.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use async_trait::async_trait;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use botledger_api::{AdminState, Api, ApiConfig, ApiContext, Check, Readiness, admin_router, serve};
use botledger_bot::{BotRuntime, Webhooks};
use botledger_commands::{Ids, SystemIds};
use botledger_domain::InstanceId;
use botledger_journal::transfer::{Presence, TransferError};
use botledger_local::migrate::{Schema, compare};
use botledger_local::up::Signals;
use botledger_projections::{
    CheckpointStatus, LeaseConfig, LogReader, PastConfig, ReadPool, RunnerConfig, Runners, Tail, all,
    statuses,
};
use botledger_relay::{Relay, statuses as relays};
use clap::Args;
use redis::aio::ConnectionManager;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Settings;
use crate::config::{Config, problems};
use crate::heads::Heads;
use crate::platform::{self, Platform};
use crate::telemetry::{describe_metrics, start_logging, start_metrics};

/// Telegram's updates are far smaller; whoever sends more is not Telegram.
const WEBHOOK_BODY: usize = 1024 * 1024;
/// A readiness check that takes longer counts as failed.
const CHECK_PATIENCE: Duration = Duration::from_secs(2);
/// Events a read model may be behind while the process still counts as ready.
const READY_LAG: i64 = 100_000;
/// Pause between looks at a database that does not answer yet.
const DATABASE_PAUSE: Duration = Duration::from_millis(500);
/// How often the metrics recorder tidies up and pools are looked at.
const UPKEEP: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// Only API and webhooks; `worker` and `project` do the rest elsewhere
    #[arg(long)]
    only_api: bool,
}

/// Only bots: asks Telegram, answers people.
#[derive(Clone, Debug, Args)]
pub struct Worker {}

/// Only read models: needs the database and no key.
#[derive(Clone, Debug, Args)]
pub struct Project {}

impl Serve {
    /// Runs until a signal comes, then finishes what it began. A second signal does not wait.
    ///
    /// # Errors
    /// When the configuration makes no sense, an address is taken, or the database is not of this
    /// build.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let rest = !self.only_api;
        run(settings, Roles { api: true, bots: rest, read_models: rest, relay: rest }).await
    }
}

impl Worker {
    /// As [`Serve::run`].
    ///
    /// # Errors
    /// As [`Serve::run`].
    pub async fn run(self, settings: Settings) -> Result<u8> {
        run(settings, Roles { bots: true, ..Roles::default() }).await
    }
}

impl Project {
    /// As [`Serve::run`].
    ///
    /// # Errors
    /// As [`Serve::run`].
    pub async fn run(self, settings: Settings) -> Result<u8> {
        run(settings, Roles { read_models: true, ..Roles::default() }).await
    }
}

/// Only the relay: needs the database and the target.
///
/// # Errors
/// As [`Serve::run`], and when `relay.url` is not set.
pub(super) async fn run_relay(settings: Settings) -> Result<u8> {
    run(settings, Roles { relay: true, ..Roles::default() }).await
}

/// What a process does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Roles {
    /// API and webhooks.
    api: bool,
    bots: bool,
    read_models: bool,
    relay: bool,
}

impl Roles {
    /// Without what the configuration does not ask for.
    fn wanted(mut self, config: &Config) -> Result<Self> {
        let alone = self == Self { relay: true, ..Self::default() };
        if alone && config.relay.url.is_empty() {
            bail!("relay.url is not set: there is nowhere to relay to");
        }
        self.relay &= !config.relay.url.is_empty() && (alone || config.relay.in_serve);
        Ok(self)
    }

    /// Whether it opens what is sealed, logs people in or asks partners. Folding rows needs none of that.
    fn need_platform(self) -> bool {
        self.api || self.bots
    }
}

async fn run(settings: Settings, roles: Roles) -> Result<u8> {
    let config = settings.load()?.config;
    let roles = roles.wanted(&config)?;
    let wrong = problems(&config, roles.need_platform());
    if !wrong.is_empty() {
        bail!("the configuration does not do for serving: {}", wrong.join("; "));
    }
    start_logging(&config.log)?;
    let metrics = start_metrics()?;
    describe_metrics();
    let mut signals = Signals::listen()?;
    let public = match roles.api {
        true => Some(listen("http.listen", &config.http.listen).await?),
        false => None,
    };
    let admin = listen("http.admin_listen", &config.http.admin_listen).await?;
    let platform = if roles.need_platform() { Some(Platform::open(&config)?) } else { None };
    let (read, instance) = match &platform {
        Some(platform) => (platform.read.clone(), platform.app.core.instance),
        None => (platform::pool(&config)?, InstanceId(SystemIds.next())),
    };
    if let Some(platform) = platform.as_ref().filter(|_| roles.bots) {
        platform.app.gate.warm_up();
    }

    let (admin_stop, stopping) = (CancellationToken::new(), CancellationToken::new());
    let render = metrics.clone();
    let state = AdminState {
        ready: Arc::new(Ready {
            read: read.clone(),
            redis: platform.as_ref().map(|platform| platform.redis.clone()),
            read_models: roles.need_platform() || roles.read_models,
            relay: roles.relay.then(|| config.relay.stream.clone()),
            stopping: stopping.clone(),
        }),
        metrics: Arc::new(move || render.render()),
    };
    let drain = Duration::from_secs(config.instance.drain_timeout_s);
    let admin = tokio::spawn(serve(admin, admin_router(state), admin_stop.clone(), drain));
    let upkeep = tokio::spawn(keep_up(metrics, read.clone()));

    let mut presence = tokio::select! {
        there = move_in(&read) => there?,
        name = signals.next() => {
            tracing::info!("{name}: stopping before the start");
            return Ok(0);
        }
    };
    let running = Running::start(&config, roles, &read, instance, platform.as_ref(), public).await?;
    tracing::info!(
        instance.name = config.instance.name,
        instance.id = %instance,
        "{}",
        match (roles.api, roles.bots) {
            (true, _) => format!("serving on {}", config.http.listen),
            (false, true) => "running bots".to_owned(),
            (false, false) if roles.read_models => "applying read models".to_owned(),
            (false, false) => "relaying the ledger".to_owned(),
        }
    );
    let evicted = tokio::select! {
        name = signals.next() => {
            tracing::info!("{name}: finishing what was begun");
            None
        }
        why = presence.lost(&read) => {
            tracing::error!("stopping: {why}");
            Some(why)
        }
    };
    stopping.cancel();
    tokio::select! {
        () = running.stop() => {}
        name = signals.next() => {
            tracing::warn!("{name} again: not waiting");
            return Ok(1);
        }
    }
    match platform {
        Some(platform) => platform.close().await,
        None => read.close().await,
    }
    admin_stop.cancel();
    upkeep.abort();
    // It ends with the token; what it was doing is not worth an error now.
    let _ = admin.await;
    tracing::info!("stopped");
    match evicted {
        Some(why) => Err(anyhow!(why)),
        None => Ok(0),
    }
}

async fn listen(key: &str, address: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: change {key}, or stop what listens there"))
}

/// Waits for a database that does not answer; refuses one that is not of this build, or holds half a ledger. What
/// it gives keeps imports out.
async fn move_in(pool: &ReadPool) -> Result<Presence> {
    let mut said = false;
    loop {
        match compare(pool).await {
            Ok(Schema::InStep) => match Presence::begin(pool).await {
                Ok(presence) => return Ok(presence),
                Err(TransferError::Refused(why)) => bail!(why),
                // It answered a moment ago.
                Err(_) => {}
            },
            Ok(Schema::Foreign(why)) => bail!(why),
            Err(error) if !said => {
                tracing::warn!(error = %error, "the database does not answer yet; waiting for it");
                said = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(DATABASE_PAUSE).await;
    }
}

/// Everything that works.
struct Running {
    http: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
    stop_http: CancellationToken,
    bots: Option<BotRuntime>,
    runners: Option<Runners>,
    heads: Option<Heads>,
    relay: Option<Relay>,
    stop_reading: CancellationToken,
}

impl Running {
    async fn start(
        config: &Config,
        roles: Roles,
        read: &ReadPool,
        instance: InstanceId,
        platform: Option<&Platform>,
        listener: Option<TcpListener>,
    ) -> Result<Self> {
        let mut running = Self {
            http: None,
            stop_http: CancellationToken::new(),
            bots: None,
            runners: None,
            heads: None,
            relay: None,
            stop_reading: CancellationToken::new(),
        };
        let tail = match roles.api || roles.read_models || roles.relay {
            true => Some(
                Tail::start(read.clone(), running.stop_reading.clone())
                    .await
                    .context("the ledger cannot be followed")?,
            ),
            false => None,
        };
        if let Some(tail) = tail.as_ref().filter(|_| roles.read_models) {
            let ttl = Duration::from_secs(config.read_models.lease_ttl_s);
            let runner =
                RunnerConfig { lease: LeaseConfig { ttl, beat: ttl / 5 }, ..RunnerConfig::default() };
            running.runners =
                Some(Runners::start(read, tail, instance, all(), runner, &running.stop_reading));
        }
        running.heads = Some(Heads::start(config, read, &running.stop_reading)?);
        let plan = config.relay.plan().filter(|_| roles.relay);
        if let (Some(tail), Some(plan)) = (&tail, plan) {
            let relay = Relay::start(read, tail, instance, plan, &running.stop_reading)
                .context("the ledger cannot be relayed: relay.url")?;
            running.relay = Some(relay);
        }
        let Some(platform) = platform else { return Ok(running) };
        let mut bots = platform::bots(config)?;
        if !roles.bots {
            // Webhook calls for bots that others hold are taken in all the same.
            bots.max_bots = 0;
        }
        let bots = BotRuntime::start(
            bots,
            platform.app.clone(),
            read.clone(),
            platform.telegram.clone(),
            platform::provider(config)?,
            Some(platform.redis.clone()),
        );
        if let (Some(tail), Some(listener)) = (tail, listener) {
            let api = ApiConfig {
                access_ttl: Duration::from_secs(config.auth.access_ttl_s),
                jwt_key: config.auth.jwt_key.key().map_err(|reason| anyhow!("auth.jwt_key {reason}"))?,
                public_url: config.public_url(),
                max_body_bytes: config.http.max_body_bytes,
                request_timeout: Duration::from_secs(config.http.request_timeout_s),
                max_in_flight: config.http.max_in_flight,
                past: PastConfig {
                    copies: config.http.past_copies,
                    bytes: config.http.past_megabytes << 20,
                    ..PastConfig::default()
                },
                trusted_proxies: config
                    .trusted_proxies()
                    .map_err(|part| anyhow!("{part} is no IP address"))?,
                simulated: simulated(config).await,
            };
            let context = ApiContext { app: platform.app.clone(), read: read.clone(), tail };
            let router = Api::new(api, context).router().merge(webhooks(bots.webhooks()));
            let drain = Duration::from_secs(config.instance.drain_timeout_s);
            running.http = Some(tokio::spawn(serve(listener, router, running.stop_http.clone(), drain)));
        }
        running.bots = Some(bots);
        Ok(running)
    }

    /// Takes nothing new in and ends what was begun. Read models go on where they are at the next start.
    async fn stop(self) {
        self.stop_http.cancel();
        let http = async {
            if let Some(http) = self.http {
                // Connections that did not end in time are cut; there is nobody to tell.
                let _ = http.await;
            }
        };
        let bots = async {
            if let Some(bots) = self.bots {
                bots.stop().await;
            }
        };
        tokio::join!(http, bots);
        self.stop_reading.cancel();
        if let Some(runners) = self.runners {
            runners.join().await;
        }
        if let Some(heads) = self.heads {
            heads.join().await;
        }
        if let Some(relay) = self.relay {
            relay.join().await;
        }
    }
}

/// Where Telegram delivers: `POST /telegram/<bot id>`.
fn webhooks(webhooks: Webhooks) -> Router {
    Router::new()
        .route("/telegram/{bot}", post(deliver))
        .layer(DefaultBodyLimit::max(WEBHOOK_BODY))
        .with_state(webhooks)
}

async fn deliver(
    State(webhooks): State<Webhooks>,
    Path(bot): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let secret = headers.get("x-telegram-bot-api-secret-token").and_then(|value| value.to_str().ok());
    let answer = webhooks.receive(&bot, secret, &body).await;
    let mut response =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response();
    if let Some(seconds) = answer.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Which partners are played: a stand-in of ours says so itself.
async fn simulated(config: &Config) -> Vec<String> {
    let mut played = Vec::new();
    for (partner, url) in [("telegram", &config.telegram.api_url), ("model", &config.ollama.url)] {
        let local = url.starts_with("http://");
        if local && says_it_is_a_stand_in(url).await {
            tracing::warn!("{partner} is SIMULATED: {url} is a stand-in of botledger");
            played.push(partner.to_owned());
        }
    }
    played
}

async fn says_it_is_a_stand_in(url: &str) -> bool {
    let Ok(client) = reqwest::Client::builder().timeout(Duration::from_secs(1)).build() else {
        return false;
    };
    let answer = client.get(format!("{}/_sim/health", url.trim_end_matches('/'))).send().await;
    match answer {
        Ok(answer) if answer.status().is_success() => {
            answer.json::<serde_json::Value>().await.is_ok_and(|body| body["simulated"].is_string())
        }
        _ => false,
    }
}

async fn keep_up(metrics: metrics_exporter_prometheus::PrometheusHandle, pool: ReadPool) {
    let mut tick = tokio::time::interval(UPKEEP);
    loop {
        tick.tick().await;
        metrics.run_upkeep();
        metrics::gauge!("botledger_database_connections").set(f64::from(pool.size()));
        metrics::gauge!("botledger_database_connections_idle").set(pool.num_idle() as f64);
    }
}

/// Knows whether this process can work.
struct Ready {
    read: ReadPool,
    redis: Option<ConnectionManager>,
    read_models: bool,
    /// The stream, in a process that relays.
    relay: Option<String>,
    stopping: CancellationToken,
}

#[async_trait]
impl Readiness for Ready {
    async fn check(&self) -> Vec<Check> {
        let (database, redis, projections, relay) =
            tokio::join!(self.database(), self.redis(), self.projections(), self.relay());
        [Some(self.process()), Some(database), redis, projections, relay].into_iter().flatten().collect()
    }
}

impl Ready {
    fn process(&self) -> Check {
        let ok = !self.stopping.is_cancelled();
        let detail = if ok { "it takes work" } else { "it is stopping and takes nothing new" };
        Check { name: "process", ok, detail: detail.to_owned() }
    }

    async fn database(&self) -> Check {
        let log = LogReader::new(self.read.clone());
        let (ok, detail) = match tokio::time::timeout(CHECK_PATIENCE, log.head()).await {
            Ok(Ok(head)) => (true, format!("the ledger is at position {head}")),
            Ok(Err(_)) => (false, "the database refuses or is not there".to_owned()),
            Err(_) => (false, "the database does not answer".to_owned()),
        };
        Check { name: "database", ok, detail }
    }

    /// Redis may be away: it costs time, not facts.
    async fn redis(&self) -> Option<Check> {
        let mut redis = self.redis.clone()?;
        let ping = async { redis::cmd("PING").query_async::<String>(&mut redis).await };
        let there = matches!(tokio::time::timeout(CHECK_PATIENCE, ping).await, Ok(Ok(_)));
        let detail = if there { "it answers" } else { "it is away; working without it, more slowly" };
        Some(Check { name: "redis", ok: true, detail: detail.to_owned() })
    }

    /// A target that is away or refused costs its readers time; this process works all the same.
    async fn relay(&self) -> Option<Check> {
        let stream = self.relay.as_ref()?;
        let detail = match tokio::time::timeout(CHECK_PATIENCE, relays(&self.read)).await {
            Ok(Ok(all)) => match all.iter().find(|status| status.stream == *stream) {
                Some(status) => super::relay::as_text(status),
                None => "it has not begun yet".to_owned(),
            },
            _ => "its state cannot be read".to_owned(),
        };
        Some(Check { name: "relay", ok: true, detail })
    }

    async fn projections(&self) -> Option<Check> {
        if !self.read_models {
            return None;
        }
        let log = LogReader::new(self.read.clone());
        let look = async { tokio::try_join!(statuses(&self.read), log.head()) };
        let (ok, detail) = match tokio::time::timeout(CHECK_PATIENCE, look).await {
            Ok(Ok((rows, head))) => keeping_up(&rows, head.0),
            _ => (false, "checkpoints cannot be read".to_owned()),
        };
        Some(Check { name: "read_models", ok, detail })
    }
}

/// One that is stopped waits for an operator, and must not keep the API away from that operator; one
/// that is far behind would show the past as the present.
fn keeping_up(rows: &[CheckpointStatus], head: i64) -> (bool, String) {
    let mut behind = false;
    let mut told = Vec::new();
    for projection in all() {
        let name = projection.name();
        let row = rows.iter().find(|row| row.name == name);
        let lag = row.map_or(head, |row| row.lag);
        let trouble = row.and_then(CheckpointStatus::trouble);
        if row.is_some_and(|row| row.status == "stopped") {
            told.extend(trouble);
        } else if lag > READY_LAG {
            told.push(format!("{name} is {lag} events behind"));
            behind = true;
        } else {
            told.extend(trouble);
        }
    }
    let detail = if told.is_empty() { "all read models keep up".to_owned() } else { told.join("; ") };
    (!behind, detail)
}

#[cfg(test)]
mod tests {
    use botledger_domain::Position;
    use botledger_projections::STALLED_AFTER_S;

    use super::*;

    fn row(name: &str, status: &str, lag: i64) -> CheckpointStatus {
        CheckpointStatus {
            name: name.to_owned(),
            version: 1,
            position: Position(1),
            status: status.to_owned(),
            failed_position: None,
            failed_type: None,
            failed_stream: None,
            error: None,
            stopped_at: None,
            lag,
            waiting_s: (lag > 0).then_some(1),
            holder: None,
            holder_name: None,
        }
    }

    #[test]
    fn a_stopped_read_model_is_told_but_the_process_is_ready() {
        let (ready, detail) = keeping_up(&[row("turns", "stopped", READY_LAG + 1)], 0);
        assert!(ready && detail.contains("turns is stopped"), "{detail}");
    }

    #[test]
    fn a_read_model_that_does_not_move_is_told_with_who_holds_it() {
        let mut row = row("turns", "running", 3);
        assert_eq!(keeping_up(&[row.clone()], 0).1, "all read models keep up");
        row.waiting_s = Some(STALLED_AFTER_S);
        let (ready, detail) = keeping_up(&[row.clone()], 0);
        assert!(
            ready && detail.contains("turns has applied nothing for 30 s: no process holds it"),
            "{detail}"
        );
        row.holder_name = Some("second".to_owned());
        assert!(keeping_up(&[row], 0).1.ends_with("held by second"));
    }

    #[test]
    fn a_read_model_far_behind_or_not_begun_is_not_ready() {
        assert!(keeping_up(&[], READY_LAG).0, "an empty or short ledger is caught up with in a moment");
        assert!(!keeping_up(&[], READY_LAG + 1).0);
        assert!(!keeping_up(&[row("turns", "running", READY_LAG + 1)], 0).0);
    }
}
