//! A platform with people, made anew for every test.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use botledger_bot::{BotConfig, BotRuntime, Telegram, Webhooks};
use botledger_commands::{
    App, AppConfig, Caller, DetectorServices, GateDefaults, Ids, KeyRing, NewBot, RateDefaults, SystemClock,
    SystemIds,
};
use botledger_domain::{
    BotId, InstanceId, ModelName, PlanName, SubjectId, WorkspaceId,
    account::LimitLeft,
    bot::{BotRateLimits, BotSettings, RateLimit, UpdateMode},
    price::PriceList,
    quota::{Period, PlanTerms},
};
use botledger_journal::JournalConfig;
use botledger_llm::{Ollama, OllamaLimits};
use botledger_projections::{RunnerConfig, Runners, Tail};
use botledger_sim::{
    LogEntry, OllamaConfig, OllamaSim, Person, SentMessage, SimBot, TelegramConfig, TelegramSim,
};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use serde_json::Value;
use sqlx::{
    PgPool, Row,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use zeroize::Zeroizing;

/// Longest that anything may take; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until there is something.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a test wants to be different.
pub(crate) struct Setup {
    pub(crate) telegram: TelegramConfig,
    pub(crate) ollama: OllamaConfig,
    pub(crate) llm: OllamaLimits,
    pub(crate) terms: PlanTerms,
    pub(crate) bots: BotConfig,
    pub(crate) notice_pause: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            telegram: TelegramConfig {
                webhook_pause: Duration::from_millis(50),
                ..TelegramConfig::default()
            },
            ollama: OllamaConfig::default(),
            llm: OllamaLimits {
                first_byte: Duration::from_secs(20),
                idle: Duration::from_secs(20),
                retries: 1,
                ..OllamaLimits::default()
            },
            terms: PlanTerms::tokens(100_000_000, Period::Day),
            bots: BotConfig {
                poll_timeout: Duration::from_secs(5),
                call_timeout: Duration::from_secs(5),
                webhook_base_url: None,
                edit_interval_private: Duration::from_millis(50),
                edit_interval_group: Duration::from_millis(50),
                typing_interval: Duration::from_secs(4),
                max_concurrent_turns: 64,
                max_bots: 100,
                lease_ttl: Duration::from_secs(10),
                retry_max: Duration::from_secs(1),
                answer_deadline: Duration::from_secs(20),
                redis_patience: Duration::from_millis(200),
                drain: Duration::from_millis(300),
                default_model: ModelName::parse("simulated").unwrap(),
            },
            notice_pause: Duration::from_secs(60),
        }
    }
}

/// The stand-ins, the database and the keys; processes of the product are [`Instance`]s.
pub(crate) struct World {
    pub(crate) sim: TelegramSim,
    pub(crate) model: OllamaSim,
    pub(crate) pool: PgPool,
    pub(crate) setup: Setup,
    pub(crate) workspace: WorkspaceId,
    options: PgConnectOptions,
    keys: KeyRing,
    _projections: DropGuard,
}

/// A bot of the fleet.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) id: BotId,
    pub(crate) sim: SimBot,
}

/// One process of the product.
pub(crate) struct Instance {
    pub(crate) app: App,
    pub(crate) webhooks: Webhooks,
    runtime: Option<BotRuntime>,
    /// Its own threads, when it is to die without a word.
    threads: Option<tokio::runtime::Runtime>,
}

/// How an instance reaches what it stands on.
pub(crate) struct Routes {
    pub(crate) database: PgConnectOptions,
    pub(crate) redis: Option<String>,
    pub(crate) telegram: String,
}

fn pool_on(options: &PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(16)
        .acquire_timeout(Duration::from_secs(1))
        .connect_lazy_with(options.clone())
}

pub(crate) fn system() -> Caller {
    Caller::system("test", SystemIds.next())
}

pub(crate) fn redis_url() -> String {
    std::env::var("REDIS_URL").expect("REDIS_URL names a Redis; run under botledger-services")
}

impl World {
    pub(crate) async fn new(pool: PgPool) -> Self {
        Self::with(pool, Setup::default()).await
    }

    pub(crate) async fn with(given: PgPool, setup: Setup) -> Self {
        let options = PgConnectOptions::clone(&given.connect_options());
        given.close().await;
        let pool = pool_on(&options);
        let cancel = CancellationToken::new();
        let tail = Tail::start(pool.clone(), cancel.clone()).await.unwrap();
        let runners = RunnerConfig {
            gather: Duration::from_millis(2),
            retry: Duration::from_millis(50),
            ..RunnerConfig::default()
        };
        drop(Runners::start(
            &pool,
            &tail,
            InstanceId(SystemIds.next()),
            botledger_projections::all(),
            runners,
            &cancel,
        ));
        let keys = KeyRing {
            master: [(1, Zeroizing::new([7; 32]))].into(),
            // Ids of bots follow from it, and keys in Redis from those: no two tests meet there.
            pseudonym: Zeroizing::new(rand::random()),
        };
        let world = Self {
            sim: TelegramSim::start(setup.telegram.clone()).await.unwrap(),
            model: OllamaSim::start(setup.ollama.clone()).await.unwrap(),
            pool,
            workspace: WorkspaceId(SystemIds.next()),
            setup,
            options,
            keys,
            _projections: cancel.drop_guard(),
        };
        let app = world.app(&world.routes());
        let plan = PlanName::parse("standard").unwrap();
        app.workspaces
            .create(&system(), world.workspace, "Test".to_owned(), plan, world.setup.terms.clone())
            .await
            .unwrap();
        world
    }

    pub(crate) fn routes(&self) -> Routes {
        Routes { database: self.options.clone(), redis: Some(redis_url()), telegram: self.sim.url() }
    }

    fn app(&self, routes: &Routes) -> App {
        self.open(routes).0
    }

    fn open(&self, routes: &Routes) -> (App, PgPool, Telegram, Option<ConnectionManager>) {
        let pool = pool_on(&routes.database);
        let patience = self.setup.bots.redis_patience;
        let redis = routes.redis.as_ref().map(|url| {
            let settings = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(patience))
                .set_response_timeout(Some(patience))
                .set_max_delay(Duration::from_millis(200));
            let client = redis::Client::open(url.as_str()).unwrap();
            ConnectionManager::new_lazy_with_config(client, settings).unwrap()
        });
        let telegram = Telegram::new(&routes.telegram, self.setup.bots.call_timeout).unwrap();
        let often = RateLimit { burst: 1_000, per_minute: 60_000 };
        let config = AppConfig {
            journal: JournalConfig { timeout: Duration::from_secs(3), ..JournalConfig::default() },
            keys: self.keys.clone(),
            gate: GateDefaults {
                provider: "ollama".to_owned(),
                model: self.setup.bots.default_model.clone(),
                prices: PriceList::default(),
                rate_limits: BotRateLimits::of_messages(often, often, often),
                context_exchanges: 20,
                notice_pause: self.setup.notice_pause,
                block_notice_pause: self.setup.notice_pause,
            },
            detectors: DetectorServices::default(),
            rates: RateDefaults::default(),
            redis_patience: patience,
            instance: InstanceId(SystemIds.next()),
        };
        let (clock, ids) = (Arc::new(SystemClock), Arc::new(SystemIds));
        let app = App::open(config, pool.clone(), redis.clone(), Arc::new(telegram.clone()), clock, ids);
        (app, pool, telegram, redis)
    }

    /// A process of the product.
    pub(crate) fn instance(&self) -> Instance {
        self.instance_by(&self.routes())
    }

    pub(crate) fn instance_by(&self, routes: &Routes) -> Instance {
        let (app, pool, telegram, redis) = self.open(routes);
        let http = reqwest::Client::builder().tcp_nodelay(true).build().unwrap();
        let provider = Arc::new(Ollama::new(&self.model.url(), http, self.setup.llm));
        let runtime =
            BotRuntime::start(self.setup.bots.clone(), app.clone(), pool, telegram, provider, redis);
        Instance { app, webhooks: runtime.webhooks(), runtime: Some(runtime), threads: None }
    }

    /// A process that can be killed.
    pub(crate) fn mortal(&self) -> Instance {
        let threads =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut instance = {
            let _inside = threads.enter();
            self.instance()
        };
        instance.threads = Some(threads);
        instance
    }

    /// A polling bot of the fleet, started.
    pub(crate) async fn bot(&self, instance: &Instance, username: &str) -> Held {
        self.bot_with(instance, username, UpdateMode::Polling, BotSettings::default()).await
    }

    pub(crate) async fn bot_with(
        &self,
        instance: &Instance,
        username: &str,
        mode: UpdateMode,
        settings: BotSettings,
    ) -> Held {
        let sim = self.sim.add_bot(username).unwrap();
        let new =
            NewBot { workspace: self.workspace, token: Zeroizing::new(sim.token.clone()), mode, settings };
        let (id, _) = instance.app.bots.register(&system(), new).await.unwrap();
        instance.app.bots.start(&system(), id).await.unwrap();
        Held { id, sim }
    }

    pub(crate) fn say(&self, bot: &Held, person: &Person, text: &str) -> i64 {
        self.sim.say(&bot.sim.username, person, text).unwrap()
    }

    pub(crate) fn shown(&self, bot: &Held, chat: i64) -> Vec<SentMessage> {
        self.sim.messages(&bot.sim.username, chat)
    }

    /// Waits until a chat shows that many messages of the bot.
    pub(crate) async fn answers(&self, bot: &Held, chat: i64, count: usize) -> Vec<String> {
        until(&format!("{count} answers are in chat {chat}"), async || {
            let texts: Vec<String> = self.shown(bot, chat).into_iter().map(|sent| sent.text).collect();
            (texts.len() >= count).then_some(texts)
        })
        .await
    }

    /// Says something and waits for the next message of the bot in that chat.
    pub(crate) async fn ask(&self, bot: &Held, person: &Person, text: &str) -> String {
        let before = self.shown(bot, person.id).len();
        self.say(bot, person, text);
        self.answers(bot, person.id, before + 1).await.pop().unwrap()
    }

    /// Messages that arrived, from the stand-in's log.
    pub(crate) fn sent(&self, bot: &Held) -> Vec<LogEntry> {
        let arrived = |entry: &LogEntry| {
            entry.bot == bot.sim.username
                && entry.what == "sendMessage"
                && matches!(entry.outcome.as_str(), "ok" | "cut_after")
        };
        self.sim.log(0).into_iter().filter(arrived).collect()
    }

    /// Waits until that many turns have come and all of them have ended; how many ended how.
    pub(crate) async fn ended(&self, turns: i64) -> BTreeMap<String, i64> {
        until(&format!("{turns} turns have ended"), async || {
            let rows = sqlx::query("SELECT phase, count(*), bool_or(open) FROM read.turns GROUP BY phase")
                .fetch_all(&self.pool)
                .await
                .ok()?;
            let phases: BTreeMap<String, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            let open = rows.iter().any(|row| row.get(2));
            (!open && phases.values().sum::<i64>() >= turns).then_some(phases)
        })
        .await
    }

    /// How many events of a type the ledger holds.
    pub(crate) async fn events(&self, event_type: &str) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM public.events WHERE event_type = $1")
            .bind(event_type)
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// Makes the oldest message's body impossible to open, and takes the newest one's away.
    pub(crate) async fn damage_bodies(&self) {
        let mut connection = self.pool.acquire().await.unwrap();
        for statement in [
            "SET session_replication_role = replica",
            "UPDATE public.message_bodies SET ciphertext = set_byte(ciphertext, 0, get_byte(ciphertext, 0) # 255)
             WHERE body_id = (SELECT body_id FROM public.message_bodies ORDER BY body_id LIMIT 1)",
            "DELETE FROM public.message_bodies
             WHERE body_id = (SELECT body_id FROM public.message_bodies ORDER BY body_id DESC LIMIT 1)",
            "SET session_replication_role = origin",
        ] {
            assert!(sqlx::query(statement).execute(&mut *connection).await.is_ok(), "{statement}");
        }
    }

    /// Status of a bot and why, once it is as wanted.
    pub(crate) async fn status(&self, bot: &Held, wanted: &str) -> Option<String> {
        until(&format!("the bot is {wanted}"), async || {
            let row = botledger_projections::bot(&self.pool, bot.id).await.unwrap()?;
            (row.status == wanted).then_some(row.status_reason)
        })
        .await
    }

    pub(crate) fn subject(&self, instance: &Instance, person: &Person) -> SubjectId {
        instance.app.core.vault.subject_id(self.workspace, person.id)
    }

    pub(crate) async fn quota(&self, instance: &Instance, person: &Person) -> LimitLeft {
        let subject = self.subject(instance, person);
        instance.app.quotas.left(self.workspace, subject).await.unwrap().remove(0)
    }

    /// Waits until somebody polls for the bot.
    pub(crate) async fn polled(&self, bot: &Held) {
        until("the bot is polled for", async || {
            self.sim.delivery(&bot.sim.username).is_some_and(|delivery| delivery.polling).then_some(())
        })
        .await;
    }
}

impl Instance {
    /// Stops in order.
    pub(crate) async fn stop(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.stop().await;
        }
    }

    /// Stops without a word to anybody, wherever it stands.
    pub(crate) fn kill(mut self) {
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // A runtime may not be dropped where others run.
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

/// Texts that the bot's messages to a chat had when they were sent, in order.
pub(crate) fn texts(entries: &[LogEntry], chat: i64) -> Vec<String> {
    entries.iter().filter(|entry| entry.chat == Some(chat)).filter_map(|entry| entry.text.clone()).collect()
}

pub(crate) fn group(id: i64) -> Value {
    serde_json::json!({"id": id, "type": "supergroup", "title": "Group"})
}

/// A way to a server that can be closed and opened again.
pub(crate) struct Gateway {
    port: u16,
    open: watch::Sender<bool>,
    listening: Arc<Mutex<Option<CancellationToken>>>,
    to: Arc<To>,
}

#[derive(Debug)]
enum To {
    Address(String),
    Socket(PathBuf),
}

impl Gateway {
    async fn start(to: To, open: bool) -> Self {
        // The port stays the same over all closings, so it is found once.
        let probe = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        let gateway =
            Self { port, open: watch::Sender::new(open), listening: Arc::default(), to: Arc::new(to) };
        if open {
            gateway.open().await;
        }
        gateway
    }

    /// In front of a stand-in.
    pub(crate) async fn to_url(url: &str, open: bool) -> Self {
        Self::start(To::Address(url.trim_start_matches("http://").to_owned()), open).await
    }

    /// In front of the test's Redis; gives the URL to use.
    pub(crate) async fn to_redis(open: bool) -> (Self, String) {
        let url = reqwest::Url::parse(&redis_url()).unwrap();
        let (to, password) = if url.scheme().ends_with("unix") || url.scheme() == "unix" {
            let password =
                url.query_pairs().find(|(name, _)| name == "pass").map(|(_, pass)| pass.to_string());
            (To::Socket(url.path().into()), password)
        } else {
            let address = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(6_379));
            (To::Address(address), url.password().map(str::to_owned))
        };
        let gateway = Self::start(to, open).await;
        let login = password.map_or_else(String::new, |password| format!(":{password}@"));
        let url = format!("redis://{login}127.0.0.1:{}", gateway.port);
        (gateway, url)
    }

    /// In front of the test's PostgreSQL; gives the options to use.
    pub(crate) async fn to_database(world: &World) -> (Self, PgConnectOptions) {
        let options = world.options.clone();
        let to = match options.get_socket() {
            Some(folder) => To::Socket(folder.join(format!(".s.PGSQL.{}", options.get_port()))),
            None => To::Address(format!("{}:{}", options.get_host(), options.get_port())),
        };
        let gateway = Self::start(to, true).await;
        // A socket in the options would win over host and port.
        let mut url = reqwest::Url::parse(&std::env::var("DATABASE_URL").unwrap()).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(gateway.port)).unwrap();
        let through: PgConnectOptions = url.as_str().parse().unwrap();
        (gateway, through.database(options.get_database().unwrap()))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Connections are refused, those that are there end.
    pub(crate) fn close(&self) {
        self.open.send_replace(false);
        if let Some(listening) = self.listening.lock().unwrap().take() {
            listening.cancel();
        }
    }

    pub(crate) async fn open(&self) {
        let listener =
            until("the port is free again", async || TcpListener::bind(("127.0.0.1", self.port)).await.ok())
                .await;
        self.open.send_replace(true);
        let cancel = CancellationToken::new();
        *self.listening.lock().unwrap() = Some(cancel.clone());
        let to = Arc::clone(&self.to);
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = cancel.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((from, _)) = accepted else { return };
                let (cancel, to) = (cancel.clone(), Arc::clone(&to));
                tokio::spawn(async move {
                    tokio::select! {
                        () = cancel.cancelled() => {}
                        () = forward(from, &to) => {}
                    }
                });
            }
        });
    }
}

async fn forward(from: TcpStream, to: &To) {
    // An end that broke is what a closed gateway is about.
    match to {
        To::Address(address) => {
            if let Ok(target) = TcpStream::connect(address).await {
                copy(from, target).await;
            }
        }
        To::Socket(path) => {
            if let Ok(target) = UnixStream::connect(path).await {
                copy(from, target).await;
            }
        }
    }
}

async fn copy(mut from: TcpStream, mut target: impl AsyncRead + AsyncWrite + Unpin) {
    drop(tokio::io::copy_bidirectional(&mut from, &mut target).await);
}
