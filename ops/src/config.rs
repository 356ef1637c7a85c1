//! Everything that can be set, in one documented value.
//!
//! Rising priority: the defaults below, a TOML file (`--config`, else `./botledger.toml` if there is
//! one), environment variables `BOTLEDGER_<SECTION>__<KEY>`, flags `--set section.key=value`.
//! `DATABASE_URL` and `REDIS_URL` count as `database.url` and `redis.url` where nothing above the file
//! says otherwise. Unknown keys are refused with the nearest known one. Secrets come from the
//! environment or from a file named by their `…_file` twin, never from the TOML file or a flag.
//!
//! To add a setting: a documented field with a default here, a rule in `config/check.rs` if not every
//! value makes sense. Names end in their unit (`_s`, `_ms`, `_tokens`).

mod check;
mod load;
mod secret;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use botledger_domain::{
    ModelName,
    price::{Price, PriceList},
};
use botledger_journal::audit::{Algorithm, VerifierKey};
use botledger_projections::LeaseConfig;
use botledger_relay::{RelayConfig, TargetConfig};
use serde::{Deserialize, Serialize};

pub use check::problems;
pub use load::{ConfigError, Effective, Loaded, Origin, Sources};
pub use secret::Secret;

/// The whole configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub instance: Instance,
    pub database: Database,
    pub redis: Redis,
    pub http: Http,
    pub telegram: Telegram,
    pub ollama: Ollama,
    pub moderation: Moderation,
    pub limits: Limits,
    pub rate_limits: RateLimits,
    pub quota: Quota,
    pub prices: Prices,
    pub keys: Keys,
    pub auth: Auth,
    pub audit: Audit,
    pub bots: Bots,
    pub read_models: ReadModels,
    pub relay: Relay,
    pub log: Log,
}

/// This process among others.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Instance {
    /// Shown in logs and metrics; 1-64 characters. The id that fences is made anew at every start.
    pub name: String,
    /// How long a stopping process may finish what it began, in seconds.
    pub drain_timeout_s: u64,
}

/// PostgreSQL.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// `postgres://…` of the running product's role (a member of `botledger_writer`). Secret.
    pub url: Secret,
    /// File that holds `url`.
    pub url_file: Option<PathBuf>,
    /// `postgres://…` of the owner, used by `migrate` only; `url` when empty. Secret.
    pub migrate_url: Secret,
    /// File that holds `migrate_url`.
    pub migrate_url_file: Option<PathBuf>,
    /// Connections of this process, 4-1000.
    pub max_connections: u32,
    /// Longest wait for a free connection, in seconds; then the caller gets 503.
    pub acquire_timeout_s: u64,
}

/// Redis. All it holds may vanish at any moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Redis {
    /// `redis://…`, `rediss://…` or `redis+unix://…`. Secret.
    pub url: Secret,
    /// File that holds `url`.
    pub url_file: Option<PathBuf>,
    /// Longest wait for an answer, in milliseconds; then the fallback without Redis is taken.
    pub timeout_ms: u64,
}

/// What listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// `host:port` of the API and the webhooks.
    pub listen: String,
    /// `host:port` of `/livez`, `/readyz` and `/metrics`: not for the public.
    pub admin_listen: String,
    /// Where people reach `listen` from outside, for links; made from `listen` when empty.
    pub public_url: String,
    /// Addresses of proxies in front of `listen`, separated by commas: what one of them says in
    /// `X-Forwarded-For` is who asks. Empty when people connect directly.
    pub trusted_proxies: String,
    /// Largest accepted request body, in bytes.
    pub max_body_bytes: usize,
    /// Longest time a request may take, in seconds.
    pub request_timeout_s: u64,
    /// Requests served at the same time.
    pub max_in_flight: usize,
    /// Read models of the past that are kept; each holds a connection to the database.
    pub past_copies: usize,
    /// What they may take together in temporary tables of the database, in MiB.
    pub past_megabytes: u64,
}

/// The Telegram Bot API.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telegram {
    /// Base URL of the Bot API server, without the token.
    pub api_url: String,
    /// How long one `getUpdates` waits, in seconds, 0-50.
    pub poll_timeout_s: u64,
    /// Public https base of webhooks; bots poll when empty.
    pub webhook_base_url: String,
    /// Longest wait for any other call, in seconds.
    pub call_timeout_s: u64,
    /// Least time between edits of a streamed answer in a private chat, in milliseconds.
    pub edit_interval_private_ms: u64,
    /// The same in a group, where 20 edits and sends a minute are the limit.
    pub edit_interval_group_ms: u64,
    /// How often the typing action is repeated; it lasts 5 s.
    pub typing_interval_ms: u64,
}

/// The model server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ollama {
    /// Base URL.
    pub url: String,
    /// Model of bots that name none.
    pub default_model: String,
    /// Longest wait for a connection, in seconds.
    pub connect_timeout_s: u64,
    /// Longest wait for the first piece of an answer, in seconds; a model may have to be loaded.
    pub first_token_timeout_s: u64,
    /// Longest pause between pieces, in seconds.
    pub idle_timeout_s: u64,
    /// Longest time for a whole answer, in seconds.
    pub total_timeout_s: u64,
    /// Further tries when nothing was received yet.
    pub retries: u32,
    /// Largest answer that is read, in bytes.
    pub max_answer_bytes: usize,
}

/// Moderation services that policies may name beside the detectors of this process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Moderation {
    /// An endpoint like OpenAI's, up to and without `/moderations`; policies name it `openai`. None when
    /// empty.
    pub openai_url: String,
    /// Model that it is asked for.
    pub openai_model: String,
    /// Its key; servers of one's own may need none. Secret.
    pub openai_key: Secret,
    /// File that holds `openai_key`.
    pub openai_key_file: Option<PathBuf>,
    /// Guard model at the model server, for example `llama-guard3:1b`; policies name it `guard`. None when
    /// empty.
    pub guard_model: String,
}

/// Token buckets for incoming messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Per person and bot.
    pub user: Bucket,
    /// Per chat and bot.
    pub chat: Bucket,
    /// Per bot.
    pub bot: Bucket,
    /// All bots of a workspace.
    pub workspace: Bucket,
}

/// Token buckets for requests to the API. `/livez`, `/readyz`, `/metrics` and webhooks are not limited.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimits {
    /// Per network address (of IPv6: per /64), before anything is read.
    pub ip: Bucket,
    /// Per operator.
    pub operator: Bucket,
    /// All operators of a workspace.
    pub workspace: Bucket,
    /// Processes that serve: while Redis is away each lets through its part of what none of them holds
    /// alone, so that all of them keep the limit together.
    pub processes: u32,
}

/// A token bucket: so many at once, refilled evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Messages or requests at once, at least 1.
    pub burst: u32,
    /// Messages or requests a minute in the long run, at least 1.
    pub per_minute: u32,
}

/// What a person gets before anyone assigned something else.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Name of the plan of new people.
    pub default_plan: String,
    /// Its tokens a period.
    pub tokens: u64,
    /// Its period: `minute`, `hour`, `day`, `week` or `month`, of UTC.
    pub period: String,
    /// When people on it are warned: percent of a limit, 1-99, separated by commas; empty for never.
    pub warn_at_percent: String,
}

/// What models cost; one on one's own machine is listed with a price of zero. What is not listed is not
/// asked where a limit of money holds. A turn is settled at the price it was admitted at, whatever stands here later.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prices {
    /// What all money of this installation is in, for people to read: a code such as `USD`. Limits and
    /// charges are in millionths of it; changing it converts nothing.
    pub currency: String,
    /// Recorded with every price, so that books can tell one list from the next: 1-64 characters.
    pub version: String,
    /// `provider/model=prompt:completion`, separated by commas, in millionths of the currency for a million
    /// tokens; `*` stands for every model of a provider that is not listed itself. For example
    /// `ollama/llama3.2=150000:600000, ollama/*=0:0`.
    pub models: String,
}

/// Keys that are not in the database. Each is 32 bytes as 64 hex digits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    /// Wraps the data keys of people and bots. Secret.
    pub master_key: Secret,
    /// File that holds `master_key`.
    pub master_key_file: Option<PathBuf>,
    /// Number of `master_key`, raised when it is replaced.
    pub master_key_version: u32,
    /// Earlier master keys, one a line, each `version key`: what they wrap stays readable until
    /// `botledger keys rewrap` has wrapped it under `master_key`. Secret.
    pub previous_master_keys: Secret,
    /// File that holds `previous_master_keys`.
    pub previous_master_keys_file: Option<PathBuf>,
    /// Turns Telegram ids into pseudonyms and secrets into fingerprints; changing it makes everyone a new
    /// person. Secret.
    pub pseudonym_key: Secret,
    /// File that holds `pseudonym_key`.
    pub pseudonym_key_file: Option<PathBuf>,
}

/// Logins of operators.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// Signs access tokens; 32 bytes as 64 hex digits. Secret.
    pub jwt_key: Secret,
    /// File that holds `jwt_key`.
    pub jwt_key_file: Option<PathBuf>,
    /// Life of an access token, in seconds, 60-3600.
    pub access_ttl_s: u64,
}

/// The signed Merkle tree over the ledger.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// Signs heads of the tree with Ed25519; 32 bytes as 64 hex digits. Nothing is signed when empty.
    /// Secret.
    pub signing_key: Secret,
    /// File that holds `signing_key`.
    pub signing_key_file: Option<PathBuf>,
    /// File that keeps the newest signed head where no superuser of the database reaches it. When it is set,
    /// nothing is signed that does not begin with that head, nor without the file once there is a head.
    pub kept_head: Option<PathBuf>,
    /// Name of this ledger to everybody outside, and of the key: best a domain of yours with a path, for
    /// example `example.org/ledger`. It stays: a new name is a new log.
    pub origin: String,
    /// Public keys that this log signed with before, separated by commas, each as `botledger audit key`
    /// told it: its older heads are known by them. Add the old one when `signing_key` changes.
    pub previous_keys: String,
    /// Witnesses that heads are shown to, separated by commas: each is its public key, a space, and where
    /// its `add-checkpoint` (C2SP tlog-witness) is found.
    pub witnesses: String,
    /// How often a serving process looks whether there is something new to sign, in seconds, 1-3600.
    pub checkpoint_interval_s: u64,
}

/// The fleet.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bots {
    /// Turns of all bots answered at the same time by this process.
    pub max_concurrent_turns: usize,
    /// Bots this process runs at most.
    pub max_bots: usize,
    /// How long a bot stays with a process that is no longer heard of, in seconds.
    pub lease_ttl_s: u64,
    /// Longest pause between tries to run a bot that fails, in seconds.
    pub retry_max_s: u64,
    /// Turns of a session that are given to the model as context, at most.
    pub context_turns: u32,
}

/// The read models.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadModels {
    /// How long a read model stays with a process that is no longer heard of, in seconds.
    pub lease_ttl_s: u64,
}

/// The relay of the ledger to a KurrentDB (EventStoreDB) cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Relay {
    /// Connection string such as `esdb://node1:2113,node2:2113,node3:2113`, with its parameters, without user and
    /// password. Nothing is relayed when empty.
    pub url: String,
    /// Stream there that the ledger becomes; one for each installation, and nobody else's.
    pub stream: String,
    /// Who writes to it; anonymous when empty.
    pub user: String,
    /// Their password. Secret.
    pub password: Secret,
    /// File that holds `password`.
    pub password_file: Option<PathBuf>,
    /// PEM file of the authorities that the servers' certificates may be of; the system's when empty.
    pub ca_path: String,
    /// Whether `serve` relays too; else only `botledger relay run` does.
    pub in_serve: bool,
    /// Events in one append, at most, 1-10000.
    pub batch_events: usize,
    /// Bytes in one append, at most; has to be below the servers' `MaxAppendSize`.
    pub batch_bytes: usize,
    /// Longest wait for an answer, in seconds.
    pub timeout_s: u64,
    /// Longest pause between tries, and between looks at what it refused, in seconds.
    pub retry_max_s: u64,
    /// How long the relay stays with a process that is no longer heard of, in seconds.
    pub lease_ttl_s: u64,
}

/// Logs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A filter such as `info` or `info,botledger_bot=debug`.
    pub level: String,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Instance {
    fn default() -> Self {
        Self { name: "botledger".to_owned(), drain_timeout_s: 15 }
    }
}

impl Default for Database {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            url_file: None,
            migrate_url: Secret::default(),
            migrate_url_file: None,
            max_connections: 32,
            acquire_timeout_s: 5,
        }
    }
}

impl Default for Redis {
    fn default() -> Self {
        Self { url: Secret::default(), url_file: None, timeout_ms: 500 }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8087".to_owned(),
            admin_listen: "127.0.0.1:8088".to_owned(),
            public_url: String::new(),
            trusted_proxies: String::new(),
            max_body_bytes: 64 * 1024,
            request_timeout_s: 30,
            max_in_flight: 512,
            past_copies: 16,
            past_megabytes: 2_048,
        }
    }
}

impl Default for Telegram {
    fn default() -> Self {
        Self {
            api_url: "https://api.telegram.org".to_owned(),
            poll_timeout_s: 50,
            webhook_base_url: String::new(),
            call_timeout_s: 30,
            edit_interval_private_ms: 1_500,
            edit_interval_group_ms: 4_000,
            typing_interval_ms: 4_000,
        }
    }
}

impl Default for Ollama {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:11434".to_owned(),
            default_model: "llama3.2".to_owned(),
            connect_timeout_s: 5,
            first_token_timeout_s: 120,
            idle_timeout_s: 30,
            total_timeout_s: 300,
            retries: 2,
            max_answer_bytes: 1024 * 1024,
        }
    }
}

impl Default for Moderation {
    fn default() -> Self {
        Self {
            openai_url: String::new(),
            openai_model: "omni-moderation-latest".to_owned(),
            openai_key: Secret::default(),
            openai_key_file: None,
            guard_model: String::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            user: Bucket { burst: 5, per_minute: 20 },
            chat: Bucket { burst: 10, per_minute: 40 },
            bot: Bucket { burst: 200, per_minute: 6_000 },
            workspace: Bucket { burst: 20_000, per_minute: 600_000 },
        }
    }
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            ip: Bucket { burst: 600, per_minute: 6_000 },
            operator: Bucket { burst: 600, per_minute: 6_000 },
            workspace: Bucket { burst: 3_000, per_minute: 60_000 },
            processes: 1,
        }
    }
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            default_plan: "free".to_owned(),
            tokens: 50_000,
            period: "day".to_owned(),
            warn_at_percent: "80,95".to_owned(),
        }
    }
}

impl Default for Prices {
    fn default() -> Self {
        Self { currency: "USD".to_owned(), version: "1".to_owned(), models: String::new() }
    }
}

impl Quota {
    /// When people are warned, percent.
    ///
    /// # Errors
    /// The part that is no such number.
    pub fn warnings(&self) -> Result<Vec<u8>, String> {
        let parts = self.warn_at_percent.split(',').map(str::trim).filter(|part| !part.is_empty());
        let percent = |part: &str| {
            let number = part.parse().ok().filter(|percent| (1..=99).contains(percent));
            number.ok_or_else(|| part.to_owned())
        };
        parts.map(percent).collect()
    }
}

impl Prices {
    /// The prices by provider and model.
    ///
    /// # Errors
    /// The part that is no price.
    pub fn list(&self) -> Result<PriceList, String> {
        let mut list = PriceList::default();
        for part in self.models.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let price = self.price(part).ok_or_else(|| part.to_owned())?;
            list.set(price.0, price.1, price.2);
        }
        Ok(list)
    }

    fn price(&self, part: &str) -> Option<(String, Option<ModelName>, Price)> {
        let (what, price) = part.rsplit_once('=')?;
        let (provider, model) = what.trim().split_once('/')?;
        let (prompt, completion) = price.split_once(':')?;
        let model = match model {
            "*" => None,
            name => Some(ModelName::parse(name).ok()?),
        };
        let price = Price {
            prompt_per_million: prompt.trim().parse().ok()?,
            completion_per_million: completion.trim().parse().ok()?,
            version: self.version.clone(),
        };
        (!provider.is_empty()).then(|| (provider.to_owned(), model, price))
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            master_key: Secret::default(),
            master_key_file: None,
            master_key_version: 1,
            previous_master_keys: Secret::default(),
            previous_master_keys_file: None,
            pseudonym_key: Secret::default(),
            pseudonym_key_file: None,
        }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Self { jwt_key: Secret::default(), jwt_key_file: None, access_ttl_s: 900 }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            signing_key: Secret::default(),
            signing_key_file: None,
            kept_head: None,
            origin: "botledger".to_owned(),
            previous_keys: String::new(),
            witnesses: String::new(),
            checkpoint_interval_s: 1,
        }
    }
}

impl Default for Bots {
    fn default() -> Self {
        Self {
            max_concurrent_turns: 64,
            max_bots: 1_000,
            lease_ttl_s: 15,
            retry_max_s: 300,
            context_turns: 20,
        }
    }
}

impl Default for ReadModels {
    fn default() -> Self {
        Self { lease_ttl_s: 5 }
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            url: String::new(),
            stream: "botledger".to_owned(),
            user: String::new(),
            password: Secret::default(),
            password_file: None,
            ca_path: String::new(),
            in_serve: true,
            batch_events: 500,
            batch_bytes: 512 * 1024,
            timeout_s: 10,
            retry_max_s: 30,
            lease_ttl_s: 5,
        }
    }
}

impl Relay {
    /// Where to relay to and how; nothing when nothing is to be relayed.
    pub fn plan(&self) -> Option<RelayConfig> {
        let ttl = Duration::from_secs(self.lease_ttl_s);
        (!self.url.is_empty()).then(|| RelayConfig {
            target: TargetConfig {
                url: self.url.clone(),
                user: self.user.clone(),
                password: self.password.expose().to_owned(),
                ca_file: (!self.ca_path.is_empty()).then(|| PathBuf::from(&self.ca_path)),
                timeout: Duration::from_secs(self.timeout_s),
            },
            stream: self.stream.clone(),
            batch_events: self.batch_events,
            batch_bytes: self.batch_bytes,
            retry_max: Duration::from_secs(self.retry_max_s),
            lease: LeaseConfig { ttl, beat: ttl / 5 },
        })
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// Media type of a tree's size in answers of witnesses.
pub const SIZE_TYPE: &str = "text/x.tlog.size";

/// A witness, and where it is found.
#[derive(Clone, Debug)]
pub struct WitnessAddress {
    /// Its public key.
    pub key: VerifierKey,
    /// `/add-checkpoint` goes behind it.
    pub url: String,
}

impl Audit {
    /// `previous_keys`, read.
    ///
    /// # Errors
    /// Says which one is no public key of this log.
    pub fn previous_keys(&self) -> Result<Vec<VerifierKey>, String> {
        let read = |part: &str| {
            let key: VerifierKey = part.parse().map_err(|reason| format!("holds {part}: {reason}"))?;
            if key.name() != self.origin || key.algorithm() != Algorithm::Ed25519 {
                return Err(format!("holds {part}, which is no key of {}", self.origin));
            }
            Ok(key)
        };
        parts(&self.previous_keys).map(read).collect()
    }

    /// `witnesses`, read.
    ///
    /// # Errors
    /// Says which one is not a witness's key and an address, or stands there twice.
    pub fn witnesses(&self) -> Result<Vec<WitnessAddress>, String> {
        let mut read: Vec<WitnessAddress> = Vec::new();
        for part in parts(&self.witnesses) {
            let (key, url) =
                part.split_once(' ').ok_or(format!("holds {part}: it is a key, a space and a URL"))?;
            let key: VerifierKey = key.parse().map_err(|reason| format!("holds {part}: {reason}"))?;
            if key.algorithm() != Algorithm::Cosignature {
                return Err(format!("holds {part}, which is no key of a witness"));
            }
            let url = url.trim();
            let fits = reqwest::Url::parse(url).is_ok_and(|parsed| {
                ["http", "https"].contains(&parsed.scheme()) && parsed.has_host() && parsed.query().is_none()
            });
            if !fits {
                return Err(format!("holds {url}, which is no URL of http or https without a query"));
            }
            if read.iter().any(|other| other.key.name() == key.name()) {
                return Err(format!("holds {} twice", key.name()));
            }
            read.push(WitnessAddress { key, url: url.to_owned() });
        }
        Ok(read)
    }
}

/// Refuses a file with a signing key that others on the machine can read.
///
/// # Errors
/// Says what to do.
pub fn refuse_open_key(path: &Path) -> Result<(), String> {
    let found = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    if found.permissions().mode() & 0o077 != 0 {
        return Err("is open to others than its owner: `chmod 600` it".to_owned());
    }
    Ok(())
}

/// What stands between commas.
fn parts(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|part| !part.is_empty())
}

impl Keys {
    /// `previous_master_keys`, by version.
    ///
    /// # Errors
    /// Says what is wrong with which line, without showing it.
    pub fn previous(&self) -> Result<BTreeMap<u32, [u8; 32]>, String> {
        let mut keys = BTreeMap::new();
        for (number, line) in (1..).zip(self.previous_master_keys.expose().lines()) {
            if line.trim().is_empty() {
                continue;
            }
            let (version, key) = line.trim().split_once(char::is_whitespace).unwrap_or_default();
            let Some(version) = version.parse().ok().filter(|version| *version > 0) else {
                return Err(format!("line {number} is not a version, a space and a key"));
            };
            if version >= self.master_key_version {
                return Err(format!("line {number} is not earlier than keys.master_key_version"));
            }
            let key = Secret::new(key).key().map_err(|reason| format!("line {number}: the key {reason}"))?;
            if keys.insert(version, key).is_some() {
                return Err(format!("line {number} repeats version {version}"));
            }
        }
        Ok(keys)
    }
}

impl Config {
    /// The owner's connection: `database.migrate_url`, or `database.url` where that is empty.
    pub fn migrate_url(&self) -> &Secret {
        if self.database.migrate_url.is_empty() { &self.database.url } else { &self.database.migrate_url }
    }

    /// `http.trusted_proxies`, read.
    ///
    /// # Errors
    /// The part that is no address.
    pub fn trusted_proxies(&self) -> Result<Vec<IpAddr>, String> {
        parts(&self.http.trusted_proxies).map(|part| part.parse().map_err(|_| part.to_owned())).collect()
    }

    /// Where people reach the API: `http.public_url`, or made from `http.listen`. Without a slash at
    /// the end.
    pub fn public_url(&self) -> String {
        match self.http.public_url.trim_end_matches('/') {
            "" => format!("http://{}", self.http.listen),
            url => url.to_owned(),
        }
    }
}
