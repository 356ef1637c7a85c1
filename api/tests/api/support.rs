//! A platform on a free port: use cases, read models, tail and API, with a Telegram that knows every
//! token of the right shape.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use botledger_api::{Api, ApiConfig, ApiContext};
use botledger_commands::{
    App, AppConfig, BotIdentity, Caller, Decision, DetectorServices, Fence, GateDefaults, IncomingKind,
    IncomingUpdate, KeyRing, Lease, NewBot, PersonFacts, ProbeError, RateDefaults, StepOutcome, SystemClock,
    SystemIds, TelegramProbe, execute::execute,
};
use botledger_domain::{
    BotId, Clock, InstanceId, ModelName, OperatorId, PlanName, Position, SubjectId, TurnId, WorkspaceId,
    bot::{BotRateLimits, BotSettings, RateLimit, UpdateMode},
    operator::{Login, OperatorCommand, Role},
    price::{Price, PriceList},
    quota::{Period, PlanTerms},
    turn::{Ask, ChatKind, Lane, ReplySource},
};
use botledger_projections::{RunnerConfig, Runners, Tail};
use chrono::{DateTime, TimeDelta, Utc};
use futures::{SinkExt, StreamExt};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const SEED: [u8; 32] = [7; 32];
/// Longest wait for something that comes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Telegram, as far as registering a bot goes.
struct Telegram;

#[async_trait]
impl TelegramProbe for Telegram {
    async fn get_me(&self, token: &str) -> Result<BotIdentity, ProbeError> {
        let telegram_id: i64 =
            token.split_once(':').and_then(|(id, _)| id.parse().ok()).ok_or(ProbeError::Malformed)?;
        match telegram_id {
            404 => Err(ProbeError::Rejected),
            500 => Err(ProbeError::Unreachable),
            _ => Ok(BotIdentity { telegram_id, username: format!("number_{telegram_id}_bot") }),
        }
    }
}

/// The computer's clock, some time ahead.
#[derive(Default)]
struct Ahead(AtomicI64);

impl Clock for Ahead {
    fn now(&self) -> DateTime<Utc> {
        SystemClock.now() + TimeDelta::seconds(self.0.load(Ordering::Relaxed))
    }
}

/// A token that the stand-in knows.
pub(crate) fn bot_token(telegram_id: i64) -> String {
    format!("{telegram_id}:{}", "A".repeat(35))
}

/// A running platform.
pub(crate) struct Platform {
    pub(crate) app: App,
    pub(crate) pool: PgPool,
    pub(crate) address: SocketAddr,
    pub(crate) http: reqwest::Client,
    clock: Arc<Ahead>,
    pub(crate) stop: CancellationToken,
    pub(crate) served: tokio::task::JoinHandle<std::io::Result<()>>,
}

/// A workspace with an owner.
#[derive(Clone)]
pub(crate) struct Tenant {
    pub(crate) workspace: WorkspaceId,
    pub(crate) owner: OperatorId,
    /// The owner's access token.
    pub(crate) token: String,
}

/// An HTTP answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {} {}", self.status, self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Code of the only error.
    pub(crate) fn code(&self) -> String {
        code_of(&self.json())
    }
}

/// Code of an answer's first error.
pub(crate) fn code_of(answer: &Value) -> String {
    answer["errors"][0]["extensions"]["code"]
        .as_str()
        .unwrap_or_else(|| panic!("no error in {answer}"))
        .to_owned()
}

pub(crate) fn system() -> Caller {
    Caller::system("test", Uuid::now_v7())
}

impl Platform {
    pub(crate) async fn open(pool: PgPool) -> Self {
        Self::with(pool, |_| {}).await
    }

    pub(crate) async fn with(pool: PgPool, configure: impl FnOnce(&mut ApiConfig)) -> Self {
        Self::paced(pool, RateDefaults::default(), configure).await
    }

    /// Where requests are limited, too.
    pub(crate) async fn paced(
        pool: PgPool,
        rates: RateDefaults,
        configure: impl FnOnce(&mut ApiConfig),
    ) -> Self {
        let generous = RateLimit { burst: 1_000, per_minute: 60_000 };
        let mut prices = PriceList::default();
        prices.set("ollama", None, Price { version: "1".to_owned(), ..Price::default() });
        let config = AppConfig {
            journal: Default::default(),
            keys: KeyRing { master: BTreeMap::from([(1, [1; 32].into())]), pseudonym: [2; 32].into() },
            gate: GateDefaults {
                provider: "ollama".to_owned(),
                model: ModelName::parse("llama3.2").unwrap(),
                prices,
                rate_limits: BotRateLimits::of_messages(generous, generous, generous),
                context_exchanges: 20,
                notice_pause: Duration::from_secs(60),
                block_notice_pause: Duration::from_secs(60),
            },
            detectors: DetectorServices::default(),
            rates,
            redis_patience: Duration::from_millis(100),
            instance: InstanceId(Uuid::now_v7()),
        };
        // The test's own pool is small and keeps no connection.
        let options = (*pool.connect_options()).clone();
        let pool =
            sqlx::postgres::PgPoolOptions::new().max_connections(16).connect_with(options).await.unwrap();
        let clock = Arc::new(Ahead::default());
        let shared = Arc::clone(&clock) as botledger_domain::SharedClock;
        let app = App::open(config, pool.clone(), None, Arc::new(Telegram), shared, Arc::new(SystemIds));
        let stop = CancellationToken::new();
        let tail = Tail::start(pool.clone(), stop.clone()).await.unwrap();
        let runners = RunnerConfig { gather: Duration::from_millis(1), ..RunnerConfig::default() };
        let _running = Runners::start(&pool, &tail, botledger_projections::all(), runners, &stop);
        let mut config = ApiConfig {
            access_ttl: Duration::from_secs(900),
            jwt_key: SEED,
            public_url: "https://bots.example.org".to_owned(),
            max_body_bytes: 64 * 1_024,
            request_timeout: Duration::from_secs(10),
            max_in_flight: 64,
            trusted_proxies: Vec::new(),
            simulated: Vec::new(),
        };
        configure(&mut config);
        let api = Api::new(config, ApiContext { app: app.clone(), read: pool.clone(), tail });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = botledger_api::serve(listener, api.router(), stop.clone(), Duration::from_secs(5));
        let served = tokio::spawn(served);
        Self { app, pool, address, http: reqwest::Client::new(), clock, stop, served }
    }

    /// Time passes for the platform; the database's clock stays.
    pub(crate) fn pass(&self, seconds: i64) {
        self.clock.0.fetch_add(seconds, Ordering::Relaxed);
    }

    /// A workspace of that name with an owner.
    pub(crate) async fn tenant(&self, name: &str) -> Tenant {
        let workspace = WorkspaceId(Uuid::now_v7());
        let terms = PlanTerms::tokens(100_000, Period::Day);
        let plan = PlanName::parse("free").unwrap();
        self.app.workspaces.create(&system(), workspace, name.to_owned(), plan, terms).await.unwrap();
        let owner = self.operator(workspace, &format!("{name}-owner"), Role::Owner).await;
        Tenant { workspace, owner, token: self.token(owner) }
    }

    /// An active operator, without the slow password.
    pub(crate) async fn operator(&self, workspace: WorkspaceId, login: &str, role: Role) -> OperatorId {
        let operator = OperatorId(Uuid::now_v7());
        let login = Login::parse(login).unwrap();
        for command in
            [OperatorCommand::Invite { workspace, login, role, by: None }, OperatorCommand::Activate]
        {
            let id = operator.to_string();
            execute::<botledger_domain::operator::Operator>(&self.app.core, &system(), &id, command, |_| {
                Ok(())
            })
            .await
            .unwrap();
        }
        operator
    }

    /// An access token as the API gives them out.
    pub(crate) fn token(&self, operator: OperatorId) -> String {
        self.token_until(operator, 900)
    }

    pub(crate) fn token_until(&self, operator: OperatorId, seconds: i64) -> String {
        let pkcs8 = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        let key = jsonwebtoken::EncodingKey::from_ed_der(&[pkcs8.as_slice(), &SEED].concat());
        let now = self.app.core.clock.now().timestamp();
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
        header.typ = Some("at+jwt".to_owned());
        let claims = json!({
            "iss": "botledger", "aud": "botledger-api", "sub": operator.uuid(), "iat": now, "nbf": now,
            "exp": now + seconds, "jti": Uuid::now_v7(),
        });
        jsonwebtoken::encode(&header, &claims, &key).unwrap()
    }

    /// A token of a new operator of that role.
    pub(crate) async fn token_as(&self, tenant: &Tenant, role: Role) -> String {
        let login = format!("{:?}-{}", role, Uuid::now_v7().simple()).to_lowercase();
        let operator = self.operator(tenant.workspace, &login, role).await;
        self.token(operator)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/graphql", self.address)
    }

    /// Any request to `/graphql`.
    pub(crate) async fn request(
        &self,
        build: impl FnOnce(&reqwest::Client, String) -> reqwest::RequestBuilder,
    ) -> Answer {
        let response = build(&self.http, self.url()).send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        Answer { status, headers, text: response.text().await.unwrap() }
    }

    /// A POST as most clients send it.
    pub(crate) async fn post(&self, token: Option<&str>, query: &str, variables: Value) -> Answer {
        self.request(|http, url| {
            let request =
                http.request(Method::POST, url).json(&json!({"query": query, "variables": variables}));
            match token {
                Some(token) => request.bearer_auth(token),
                None => request,
            }
        })
        .await
    }

    /// The data of a query or mutation that must go well.
    pub(crate) async fn data(&self, token: &str, query: &str, variables: Value) -> Value {
        let answer = self.post(Some(token), query, variables).await;
        let mut json = answer.json();
        assert!(json.get("errors").is_none(), "{query}: {}", answer.text);
        json["data"].take()
    }

    /// The code of a query's error.
    pub(crate) async fn refusal(&self, token: Option<&str>, query: &str, variables: Value) -> String {
        self.post(token, query, variables).await.code()
    }

    /// A running bot and what its holder writes under.
    pub(crate) async fn bot(&self, tenant: &Tenant, telegram_id: i64) -> (BotId, Fence) {
        let new = NewBot {
            workspace: tenant.workspace,
            token: bot_token(telegram_id).into(),
            mode: UpdateMode::Polling,
            settings: BotSettings::default(),
        };
        let (bot, _) = self.app.bots.register(&system(), new).await.unwrap();
        self.app.bots.start(&system(), bot).await.unwrap();
        let lease = self.app.bots.acquire_lease(&system(), bot, Duration::from_secs(600)).await.unwrap();
        let Lease::Granted(fence) = lease else { panic!("nobody else runs it") };
        (bot, fence)
    }

    /// A message of a person, received and not yet decided.
    pub(crate) async fn message(
        &self,
        bot: (BotId, Fence),
        update_id: i64,
        person: i64,
        text: &str,
    ) -> TurnId {
        let update = IncomingUpdate {
            update_id: Some(update_id),
            date: self.app.core.clock.now(),
            raw: json!({"update_id": update_id}).to_string(),
            kind: IncomingKind::Message {
                user: PersonFacts {
                    telegram_id: person,
                    first_name: "Ada".to_owned(),
                    last_name: None,
                    username: Some(format!("ada_{person}")),
                    language_tag: Some("en".to_owned()),
                },
                chat_id: person,
                thread_id: None,
                chat_kind: ChatKind::Private,
                ask: Ask::Text,
                lane: Lane::Normal,
                text: Some(text.to_owned()),
            },
        };
        let received = self.app.turns.receive_batch(&system(), bot.0, bot.1, vec![update]).await.unwrap();
        received[0].turn
    }

    pub(crate) async fn admit(&self, fence: Fence, turn: TurnId) -> Decision {
        self.app.gate.decide(&system(), turn, fence).await.unwrap()
    }

    pub(crate) async fn answer(&self, fence: Fence, turn: TurnId, text: &str) -> Position {
        let source = ReplySource::Model {
            provider: "ollama".to_owned(),
            model: ModelName::parse("llama3.2").unwrap(),
            prompt_tokens: 11,
            completion_tokens: 7,
            estimated: false,
            finish: "stop".to_owned(),
            attempts: 1,
        };
        position(self.app.turns.answer(&system(), turn, fence, source, text, 42).await.unwrap())
    }

    /// A message with its answer, delivered.
    pub(crate) async fn talk(&self, bot: (BotId, Fence), update_id: i64, person: i64, text: &str) -> TurnId {
        let turn = self.message(bot, update_id, person, text).await;
        assert!(matches!(self.admit(bot.1, turn).await, Decision::Admitted(_)));
        self.answer(bot.1, turn, "You said something.").await;
        position(self.app.turns.deliver(&system(), turn, bot.1, vec![update_id + 1]).await.unwrap());
        turn
    }

    /// Who wrote a turn's message.
    pub(crate) async fn person_of(&self, turn: TurnId) -> SubjectId {
        self.app.turns.load(turn).await.unwrap().state.message.unwrap().subject
    }

    /// The ledger's last position.
    pub(crate) async fn head(&self) -> i64 {
        sqlx::query_scalar("SELECT coalesce(max(position), 0) FROM events")
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// Waits until every read model shows everything.
    pub(crate) async fn settle(&self) -> i64 {
        let head = self.head().await;
        for projection in botledger_projections::all() {
            let there =
                botledger_projections::wait_for(&self.pool, projection.name(), Position(head), PATIENCE)
                    .await;
            assert!(there.unwrap(), "{} does not keep up", projection.name());
        }
        head
    }

    /// A WebSocket that speaks `graphql-transport-ws`.
    pub(crate) async fn socket(&self) -> Socket {
        self.socket_with(&[("sec-websocket-protocol", "graphql-transport-ws")]).await.unwrap()
    }

    pub(crate) async fn socket_with(
        &self,
        headers: &[(&'static str, &str)],
    ) -> Result<Socket, tokio_tungstenite::tungstenite::Error> {
        let mut request = format!("ws://{}/graphql", self.address).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let (stream, _) = tokio_tungstenite::connect_async(request).await?;
        Ok(Socket { stream })
    }

    /// The same, introduced.
    pub(crate) async fn introduced(&self, token: &str) -> Socket {
        let mut socket = self.socket().await;
        let payload = json!({"Authorization": format!("Bearer {token}")});
        socket.send(json!({"type": "connection_init", "payload": payload})).await;
        assert_eq!(socket.next().await["type"], "connection_ack");
        socket
    }
}

impl Drop for Platform {
    /// The database is dropped next, and waits for connections that are still open.
    fn drop(&mut self) {
        self.stop.cancel();
        let pool = self.pool.clone();
        tokio::spawn(async move { pool.close().await });
    }
}

fn position(step: StepOutcome) -> Position {
    match step {
        StepOutcome::Done(receipt) => receipt.position,
        StepOutcome::AlreadyPast(phase) => panic!("already {phase:?}"),
    }
}

/// A client's end of a WebSocket.
pub(crate) struct Socket {
    pub(crate) stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Socket {
    pub(crate) async fn send(&mut self, message: Value) {
        self.stream.send(Message::text(message.to_string())).await.unwrap();
    }

    pub(crate) async fn subscribe(&mut self, id: &str, query: &str, variables: Value) {
        let payload = json!({"query": query, "variables": variables});
        self.send(json!({"id": id, "type": "subscribe", "payload": payload})).await;
    }

    async fn message(&mut self) -> Message {
        let message = tokio::time::timeout(PATIENCE, self.stream.next()).await.expect("nothing came");
        message.expect("the socket ended").unwrap()
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> Value {
        loop {
            match self.message().await {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Close(frame) => panic!("closed: {frame:?}"),
                _ => {}
            }
        }
    }

    /// The code the server closes with.
    pub(crate) async fn close_code(&mut self) -> u16 {
        loop {
            if let Message::Close(frame) = self.message().await {
                return frame.expect("a reason").code.into();
            }
        }
    }
}
