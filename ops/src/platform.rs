//! What a process of the product stands on, opened from its configuration.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use botledger_bot::{BotConfig, Telegram};
use botledger_commands::{
    App, AppConfig, Caller, DetectorServices, GateDefaults, Ids, KeyRing, ModerationServices, RateDefaults,
    SystemClock, SystemIds,
};
use botledger_domain::bot::{BotRateLimits, RateLimit};
use botledger_domain::quota::PlanTerms;
use botledger_domain::rate_limit::RateRule;
use botledger_domain::{InstanceId, ModelName, PlanName};
use botledger_journal::JournalConfig;
use botledger_llm::{
    ChatProvider, GuardPrompt, LlamaGuard, Ollama, OllamaLimits, OpenAiModeration, OpenAiModerationConfig,
};
use botledger_projections::ReadPool;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use uuid::Uuid;

use crate::config::{Bucket, Config};

/// What is recorded as the provider of answers.
const PROVIDER: &str = "ollama";
/// How long the same person is not told the same refusal again.
const NOTICE_PAUSE: Duration = Duration::from_secs(60);
/// The same for a block.
const BLOCK_NOTICE_PAUSE: Duration = Duration::from_secs(3_600);

static INSTANCE: LazyLock<InstanceId> = LazyLock::new(|| InstanceId(SystemIds.next()));
static ERRAND: LazyLock<Uuid> = LazyLock::new(|| SystemIds.next());

/// This process, in whatever it writes.
#[must_use]
pub fn instance() -> InstanceId {
    *INSTANCE
}

/// One id for everything that follows from the command that this process was started with.
#[must_use]
pub fn errand() -> Uuid {
    *ERRAND
}

/// Use cases and the pools and clients they work with.
#[derive(Clone)]
pub struct Platform {
    /// Use cases.
    pub app: App,
    /// Pool of readers and writers.
    pub read: ReadPool,
    /// Reconnects by itself; absent answers are part of every use.
    pub redis: ConnectionManager,
    /// The Bot API.
    pub telegram: Telegram,
}

impl Platform {
    /// Opens everything; connections are made on first use.
    ///
    /// # Errors
    /// When a value of the configuration makes no sense.
    pub fn open(config: &Config) -> Result<Self> {
        let read = pool(config)?;
        let redis = redis(config)?;
        let call_timeout = Duration::from_secs(config.telegram.call_timeout_s);
        let telegram =
            Telegram::new(&config.telegram.api_url, call_timeout).context("TLS cannot be set up")?;
        let ids = Arc::new(SystemIds);
        let settings = AppConfig {
            journal: JournalConfig::default(),
            keys: key_ring(config)?,
            gate: gate(config)?,
            detectors: DetectorServices {
                moderation: moderation(config)?,
                embeddings: Some(ollama(config)?),
            },
            rates: rates(config),
            redis_patience: Duration::from_millis(config.redis.timeout_ms),
            instance: instance(),
        };
        let app = App::open(
            settings,
            read.clone(),
            Some(redis.clone()),
            Arc::new(telegram.clone()),
            Arc::new(SystemClock),
            ids,
        );
        Ok(Self { app, read, redis, telegram })
    }

    /// Somebody at the command line of this machine.
    #[must_use]
    pub fn caller(&self) -> Caller {
        Caller::system("cli", errand())
    }

    /// Writes what waits; afterwards nothing more can be written.
    pub async fn close(self) {
        self.app.core.journal.close().await;
        self.read.close().await;
    }
}

/// A pool for the running product's role.
///
/// # Errors
/// When `database.url` is not set or cannot be read.
pub fn pool(config: &Config) -> Result<ReadPool> {
    if config.database.url.is_empty() {
        return Err(anyhow!(
            "database.url is not set: start the product with ops/up first, or set BOTLEDGER_DATABASE__URL"
        ));
    }
    // The driver's error would show the URL, and the URL holds a password.
    let options = PgConnectOptions::from_str(config.database.url.expose())
        .map_err(|_| {
            anyhow!("database.url cannot be read: it is postgres://user:password@host:port/database")
        })?
        .application_name(&config.instance.name);
    Ok(PgPoolOptions::new()
        .max_connections(config.database.max_connections)
        .acquire_timeout(Duration::from_secs(config.database.acquire_timeout_s))
        .connect_lazy_with(options))
}

/// The same, after it was seen that the database answers.
///
/// # Errors
/// Also when it does not.
pub async fn answering_pool(config: &Config) -> Result<ReadPool> {
    let pool = pool(config)?;
    match pool.acquire().await {
        Ok(_) => Ok(pool),
        Err(error) => {
            Err(anyhow!(error).context("the database does not answer: start the product with ops/up"))
        }
    }
}

fn redis(config: &Config) -> Result<ConnectionManager> {
    let client = redis::Client::open(config.redis.url.expose())
        .map_err(|_| anyhow!("redis.url cannot be read: it is redis://:password@host:port"))?;
    let patience = Duration::from_millis(config.redis.timeout_ms);
    let settings = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(patience))
        .set_response_timeout(Some(patience))
        .set_max_delay(Duration::from_secs(2));
    ConnectionManager::new_lazy_with_config(client, settings).map_err(|_| anyhow!("Redis cannot be used"))
}

fn key_ring(config: &Config) -> Result<KeyRing> {
    let key = |name: &str, secret: &crate::config::Secret| {
        secret.key().map(zeroize::Zeroizing::new).map_err(|reason| anyhow!("{name} {reason}"))
    };
    let version =
        i32::try_from(config.keys.master_key_version).context("keys.master_key_version is too large")?;
    let previous = config.keys.previous().map_err(|reason| anyhow!("keys.previous_master_keys {reason}"))?;
    let mut master: BTreeMap<i32, _> = previous
        .into_iter()
        .map(|(version, key)| Ok((i32::try_from(version)?, zeroize::Zeroizing::new(key))))
        .collect::<Result<_>>()?;
    master.insert(version, key("keys.master_key", &config.keys.master_key)?);
    Ok(KeyRing { master, pseudonym: key("keys.pseudonym_key", &config.keys.pseudonym_key)? })
}

fn limit(bucket: Bucket) -> RateLimit {
    RateLimit { burst: bucket.burst, per_minute: bucket.per_minute }
}

fn rates(config: &Config) -> RateDefaults {
    let rule = |bucket| RateRule::requests(limit(bucket));
    let api = &config.rate_limits;
    RateDefaults {
        workspace: rule(config.limits.workspace),
        ip: rule(api.ip),
        operator: rule(api.operator),
        api: rule(api.workspace),
        processes: api.processes,
    }
}

fn gate(config: &Config) -> Result<GateDefaults> {
    Ok(GateDefaults {
        provider: PROVIDER.to_owned(),
        model: default_model(config)?,
        prices: config.prices.list().map_err(|part| anyhow!("prices.models holds {part}"))?,
        rate_limits: BotRateLimits::of_messages(
            limit(config.limits.user),
            limit(config.limits.chat),
            limit(config.limits.bot),
        ),
        context_exchanges: i64::from(config.bots.context_turns),
        notice_pause: NOTICE_PAUSE,
        block_notice_pause: BLOCK_NOTICE_PAUSE,
    })
}

fn default_model(config: &Config) -> Result<ModelName> {
    ModelName::parse(&config.ollama.default_model).context("ollama.default_model")
}

/// The plan of people to whom nobody assigned another.
///
/// # Errors
/// When name or period make no sense.
pub fn default_plan(config: &Config) -> Result<(PlanName, PlanTerms)> {
    let name = PlanName::parse(&config.quota.default_plan).context("quota.default_plan")?;
    let period = config.quota.period.parse().map_err(|_| anyhow!("quota.period makes no sense"))?;
    let warnings = config.quota.warnings().map_err(|part| anyhow!("quota.warn_at_percent holds {part}"))?;
    Ok((name, PlanTerms { warn_at_percent: warnings, ..PlanTerms::tokens(config.quota.tokens, period) }))
}

/// The model server.
///
/// # Errors
/// When TLS cannot be set up.
pub fn provider(config: &Config) -> Result<Arc<dyn ChatProvider>> {
    Ok(ollama(config)?)
}

/// Each use has a client of its own: a model that fails to embed or to judge is still asked for answers.
fn ollama(config: &Config) -> Result<Arc<Ollama>> {
    let ollama = &config.ollama;
    let http = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(ollama.connect_timeout_s))
        .tcp_nodelay(true)
        .build()
        .context("TLS cannot be set up")?;
    let limits = OllamaLimits {
        first_byte: Duration::from_secs(ollama.first_token_timeout_s),
        idle: Duration::from_secs(ollama.idle_timeout_s),
        max_answer_bytes: ollama.max_answer_bytes,
        retries: ollama.retries,
    };
    Ok(Arc::new(Ollama::new(&ollama.url, http, limits)))
}

/// Window a guard model is asked for, in tokens.
const GUARD_WINDOW: u32 = 8_192;
/// One attempt at a moderation endpoint.
const MODERATION_ATTEMPT: Duration = Duration::from_secs(2);

fn moderation(config: &Config) -> Result<ModerationServices> {
    let mut services = ModerationServices::new();
    let settings = &config.moderation;
    if !settings.openai_url.is_empty() {
        let key = Some(settings.openai_key.expose().to_owned()).filter(|key| !key.is_empty());
        let endpoint = OpenAiModerationConfig {
            base_url: settings.openai_url.clone(),
            key,
            model: settings.openai_model.clone(),
            timeout: MODERATION_ATTEMPT,
            retries: 1,
        };
        let http = reqwest::Client::builder()
            .connect_timeout(MODERATION_ATTEMPT)
            .build()
            .context("TLS cannot be set up")?;
        services.insert("openai".to_owned(), Arc::new(OpenAiModeration::new(endpoint, http)));
    }
    if !settings.guard_model.is_empty() {
        let model = settings.guard_model.clone();
        let prompt = GuardPrompt::for_model(&model);
        let guard = LlamaGuard::new(provider(config)?, model, prompt, GUARD_WINDOW);
        services.insert("guard".to_owned(), Arc::new(guard));
    }
    Ok(services)
}

/// How this process runs bots.
///
/// # Errors
/// When the default model has no possible name.
pub fn bots(config: &Config) -> Result<BotConfig> {
    let (telegram, bots) = (&config.telegram, &config.bots);
    Ok(BotConfig {
        poll_timeout: Duration::from_secs(telegram.poll_timeout_s),
        call_timeout: Duration::from_secs(telegram.call_timeout_s),
        webhook_base_url: match telegram.webhook_base_url.trim_end_matches('/') {
            "" => None,
            url => Some(url.to_owned()),
        },
        edit_interval_private: Duration::from_millis(telegram.edit_interval_private_ms),
        edit_interval_group: Duration::from_millis(telegram.edit_interval_group_ms),
        typing_interval: Duration::from_millis(telegram.typing_interval_ms),
        max_concurrent_turns: bots.max_concurrent_turns,
        max_bots: bots.max_bots,
        lease_ttl: Duration::from_secs(bots.lease_ttl_s),
        retry_max: Duration::from_secs(bots.retry_max_s),
        answer_deadline: Duration::from_secs(config.ollama.total_timeout_s),
        redis_patience: Duration::from_millis(config.redis.timeout_ms),
        drain: Duration::from_secs(config.instance.drain_timeout_s),
        default_model: default_model(config)?,
    })
}
