//! A platform on a database of its own, with a clock that stands still and a Telegram that knows
//! every token of the right shape.
#![allow(dead_code, clippy::unwrap_used, reason = "each test binary uses a part of it, and tests may unwrap")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use botledger_commands::{
    App, AppConfig, BotIdentity, Caller, Decision, DetectorServices, Fence, GateDefaults, GateError,
    IncomingKind, IncomingUpdate, KeyRing, Lease, NewBot, PersonFacts, ProbeError, RateDefaults, SystemIds,
    TelegramProbe,
};
use botledger_domain::{
    BotId, Clock, Decide, InstanceId, ModelName, PlanName, Reason, SubjectId, TurnId, WorkspaceId,
    account::{Amounts, Meter, PlanTerms, Raise},
    bot::{Bot, BotRateLimits, BotSettings, RateLimit, UpdateMode},
    budget::{Budget, BudgetEvent},
    budget_share::{BudgetShare, BudgetShareEvent},
    chat_session::ChatSession,
    operator::{Operator, Role},
    price::{Price, PriceList},
    quota::{Period, Quota, QuotaEvent},
    quota_stream,
    standing::Standing,
    subject::Subject,
    turn::{Ask, ChatKind, Lane, ReplySource, Turn},
    workspace::Workspace,
};
use botledger_journal::{Journal, JournalConfig};
use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use sqlx::{PgPool, postgres::PgPoolOptions};
use uuid::Uuid;
use zeroize::Zeroizing;

/// A clock that moves when told.
#[derive(Debug)]
pub(crate) struct TestClock(Mutex<DateTime<Utc>>);

impl TestClock {
    pub(crate) fn at(moment: DateTime<Utc>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(moment)))
    }

    pub(crate) fn advance(&self, by: TimeDelta) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for TestClock {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock().unwrap()
    }
}

/// `<id>:<anything>` is the token of bot `<id>`, unless that is `revoked`.
pub(crate) struct Probe;

#[async_trait]
impl TelegramProbe for Probe {
    async fn get_me(&self, token: &str) -> Result<BotIdentity, ProbeError> {
        let (id, secret) = token.split_once(':').ok_or(ProbeError::Malformed)?;
        if secret == "revoked" {
            return Err(ProbeError::Rejected);
        }
        let telegram_id = id.parse().map_err(|_| ProbeError::Malformed)?;
        Ok(BotIdentity { telegram_id, username: format!("bot_{id}") })
    }
}

pub(crate) fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 24, 12, 0, 0).unwrap()
}

pub(crate) fn reason(text: &str) -> Reason {
    Reason::parse(text).unwrap()
}

pub(crate) fn plan(name: &str) -> PlanName {
    PlanName::parse(name).unwrap()
}

pub(crate) fn daily(tokens: u64) -> PlanTerms {
    PlanTerms::tokens(tokens, Period::Day)
}

pub(crate) fn limits(user: u32, chat: u32, bot: u32) -> BotRateLimits {
    let limit = |burst| RateLimit { burst, per_minute: 1 };
    BotRateLimits::of_messages(limit(user), limit(chat), limit(bot))
}

/// Settings under which nobody is too fast.
pub(crate) fn roomy() -> BotSettings {
    BotSettings { rate_limits: Some(limits(100_000, 100_000, 100_000)), ..BotSettings::default() }
}

pub(crate) fn system() -> Caller {
    Caller::system("test", Uuid::now_v7())
}

pub(crate) fn keys() -> KeyRing {
    let master = BTreeMap::from([(1, Zeroizing::new(rand::random()))]);
    KeyRing { master, pseudonym: Zeroizing::new(rand::random()) }
}

pub(crate) fn redis_client() -> redis::Client {
    redis::Client::open(std::env::var("REDIS_URL").expect("REDIS_URL names a Redis for tests")).unwrap()
}

pub(crate) fn redis_at(client: redis::Client) -> ConnectionManager {
    let patience = Some(Duration::from_millis(200));
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(patience)
        .set_response_timeout(patience)
        .set_max_delay(Duration::from_millis(50));
    ConnectionManager::new_lazy_with_config(client, config).unwrap()
}

/// Another process on the same database. It works under the role of the running product, so that a
/// right that is missing shows.
pub(crate) fn instance_of(pool: &PgPool, clock: Arc<dyn Clock>, keys: KeyRing) -> App {
    priced_instance(pool, clock, keys, PriceList::default())
}

fn priced_instance(pool: &PgPool, clock: Arc<dyn Clock>, keys: KeyRing, prices: PriceList) -> App {
    instance_with(pool, clock, keys, prices, DetectorServices::default())
}

fn instance_with(
    pool: &PgPool,
    clock: Arc<dyn Clock>,
    keys: KeyRing,
    prices: PriceList,
    detectors: DetectorServices,
) -> App {
    let options = pool.connect_options().as_ref().clone().options([("role", "botledger_writer")]);
    let pool = PgPoolOptions::new().max_connections(4).connect_lazy_with(options);
    let config = AppConfig {
        journal: JournalConfig::default(),
        keys,
        gate: GateDefaults {
            provider: "test".to_owned(),
            model: ModelName::parse("model:1b").unwrap(),
            prices,
            rate_limits: limits(3, 100, 1_000),
            context_exchanges: 20,
            notice_pause: Duration::from_secs(600),
            block_notice_pause: Duration::from_secs(600),
        },
        detectors,
        rates: RateDefaults::default(),
        redis_patience: Duration::from_secs(2),
        instance: InstanceId(Uuid::now_v7()),
    };
    App::open(config, pool, Some(redis_at(redis_client())), Arc::new(Probe), clock, Arc::new(SystemIds))
}

/// A workspace with a plan, a running bot and the right to write for it.
pub(crate) struct World {
    pub(crate) pool: PgPool,
    pub(crate) app: App,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) keys: KeyRing,
    pub(crate) workspace: WorkspaceId,
    pub(crate) bot: BotId,
    pub(crate) fence: Fence,
}

impl World {
    /// A generous plan, and nobody too fast.
    pub(crate) async fn new(pool: PgPool) -> Self {
        Self::with(pool, daily(1_000_000), roomy()).await
    }

    pub(crate) async fn with(pool: PgPool, terms: PlanTerms, settings: BotSettings) -> Self {
        let (clock, keys) = (TestClock::at(noon()), keys());
        let app = instance_of(&pool, clock.clone(), keys.clone());
        let workspace = WorkspaceId(Uuid::now_v7());
        app.workspaces.create(&system(), workspace, "Test".to_owned(), plan("free"), terms).await.unwrap();
        let mut world =
            Self { pool, app, clock, keys, workspace, bot: BotId(Uuid::nil()), fence: Fence { epoch: 0 } };
        (world.bot, world.fence) = world.run_bot(100, settings).await;
        world
    }

    /// The same with a model that costs so much, in millionths for a million tokens.
    pub(crate) fn with_price(self, prompt_per_million: u64, completion_per_million: u64) -> Self {
        let mut prices = PriceList::default();
        let price = Price { prompt_per_million, completion_per_million, version: "1".to_owned() };
        prices.set("test", None, price);
        Self { app: priced_instance(&self.pool, self.clock.clone(), self.keys.clone(), prices), ..self }
    }

    /// The same with services that policies may name.
    pub(crate) fn with_detectors(self, services: DetectorServices) -> Self {
        let (clock, keys) = (self.clock.clone(), self.keys.clone());
        Self { app: instance_with(&self.pool, clock, keys, PriceList::default(), services), ..self }
    }

    /// Registers, starts and holds one more bot.
    pub(crate) async fn run_bot(&self, telegram_id: i64, settings: BotSettings) -> (BotId, Fence) {
        let bot = self.register(&system(), telegram_id, settings).await;
        self.app.bots.start(&system(), bot).await.unwrap();
        (bot, self.hold(&self.app, bot).await)
    }

    pub(crate) async fn register(&self, caller: &Caller, telegram_id: i64, settings: BotSettings) -> BotId {
        let new = NewBot {
            workspace: self.workspace,
            token: Zeroizing::new(format!("{telegram_id}:secret")),
            mode: UpdateMode::Polling,
            settings,
        };
        self.app.bots.register(caller, new).await.unwrap().0
    }

    pub(crate) async fn hold(&self, app: &App, bot: BotId) -> Fence {
        let lease = app.bots.acquire_lease(&system(), bot, Duration::from_secs(600)).await.unwrap();
        let Lease::Granted(fence) = lease else { panic!("{lease:?}") };
        fence
    }

    /// Takes the bot over, so that the fence of before is an old one.
    pub(crate) async fn change_hands(&self) -> Fence {
        self.app.core.journal.release_lease(self.bot, self.fence.epoch).await.unwrap();
        self.hold(&self.app, self.bot).await
    }

    pub(crate) fn second_instance(&self) -> App {
        instance_of(&self.pool, self.clock.clone(), self.keys.clone())
    }

    pub(crate) fn operator(&self, role: Role) -> Caller {
        Caller::operator(Uuid::now_v7().into(), role, self.workspace, Uuid::now_v7())
    }

    pub(crate) fn subject(&self, user: i64) -> SubjectId {
        self.app.core.vault.subject_id(self.workspace, user)
    }

    pub(crate) async fn receive(&self, update: IncomingUpdate) -> TurnId {
        let received =
            self.app.turns.receive_batch(&system(), self.bot, self.fence, vec![update]).await.unwrap();
        received[0].turn
    }

    pub(crate) async fn quota(&self, user: i64) -> Quota {
        let stream = quota_stream(self.workspace, self.subject(user)).to_string();
        self.app.core.journal.load::<Quota>(&stream).await.unwrap().state
    }

    /// A message of a person in their private chat, let through and answered.
    pub(crate) async fn exchange(&self, update_id: i64, user: i64, prompt: &str, reply: &str) -> TurnId {
        let turn = self.receive(message(update_id, user, prompt)).await;
        let decision = self.app.gate.decide(&system(), turn, self.fence).await.unwrap();
        assert!(matches!(decision, Decision::Admitted(_)), "{decision:?}");
        self.app.turns.answer(&system(), turn, self.fence, by_model(10, 10), reply, 5).await.unwrap();
        turn
    }
}

pub(crate) fn person(telegram_id: i64) -> PersonFacts {
    PersonFacts {
        telegram_id,
        first_name: format!("Name {telegram_id}"),
        last_name: None,
        username: None,
        language_tag: Some("en".to_owned()),
    }
}

pub(crate) fn message(update_id: i64, user: i64, text: &str) -> IncomingUpdate {
    message_in(update_id, user, user, text)
}

pub(crate) fn message_in(update_id: i64, user: i64, chat_id: i64, text: &str) -> IncomingUpdate {
    IncomingUpdate {
        update_id: Some(update_id),
        date: noon(),
        raw: serde_json::json!({ "update_id": update_id, "message": { "text": text } }).to_string(),
        kind: IncomingKind::Message {
            user: person(user),
            chat_id,
            thread_id: None,
            chat_kind: ChatKind::Private,
            ask: Ask::Text,
            lane: Lane::Normal,
            text: Some(text.to_owned()),
        },
    }
}

pub(crate) fn by_model(prompt_tokens: u64, completion_tokens: u64) -> ReplySource {
    ReplySource::Model {
        provider: "test".to_owned(),
        model: ModelName::parse("model:1b").unwrap(),
        prompt_tokens,
        completion_tokens,
        estimated: false,
        finish: "stop".to_owned(),
        attempts: 1,
    }
}

/// Decides as a worker does: a conflict is tried again.
pub(crate) async fn decide_insistently(app: &App, turn: TurnId, fence: Fence) -> Result<Decision, GateError> {
    for _ in 0..200 {
        match app.gate.decide(&system(), turn, fence).await {
            Err(GateError::Conflict) => tokio::task::yield_now().await,
            other => return other,
        }
    }
    panic!("two hundred conflicts in a row");
}

pub(crate) async fn event_count(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM events").fetch_one(pool).await.unwrap()
}

/// Types of a stream's events, in order.
pub(crate) async fn event_types(pool: &PgPool, aggregate_type: &str, id: &str) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT event_type FROM events WHERE aggregate_type = $1 AND aggregate_id = $2 ORDER BY sequence",
    )
    .bind(aggregate_type)
    .bind(id)
    .fetch_all(pool)
    .await
    .unwrap()
}

/// What a test with one limit of tokens wants to know.
pub(crate) trait Tokens {
    fn used(&self) -> u64;
    fn held(&self) -> u64;
}

impl Tokens for Quota {
    fn used(&self) -> u64 {
        self.account.meters[0].used
    }

    fn held(&self) -> u64 {
        self.reserved().tokens
    }
}

/// Limits as an auditor counts: by what each event says, and by nothing that was decided on.
#[derive(Default)]
struct Books {
    terms: Option<PlanTerms>,
    meters: Vec<Meter>,
    charges: Vec<(DateTime<Utc>, Amounts)>,
    held: BTreeMap<Uuid, Amounts>,
    raises: Vec<Raise>,
}

impl Books {
    fn hold(&mut self, reservation: Uuid, amounts: Amounts, at: DateTime<Utc>) {
        assert!(self.held.insert(reservation, amounts).is_none(), "{reservation} holds twice");
        let terms = self.terms.as_ref().expect("nobody holds what nobody granted");
        for (limit, meter) in terms.limits.iter().zip(&self.meters) {
            assert!(at < meter.window.end, "held in a window that is over");
            let running =
                self.raises.iter().filter(|raise| raise.unit == limit.unit && at < raise.expires_at);
            let granted = limit.amount + meter.carried + running.map(|raise| raise.amount).sum::<u64>();
            let held: u64 = self.held.values().map(|amounts| amounts.of(limit.unit)).sum();
            let used = self.charged_in(meter.window.start).of(limit.unit);
            assert!(
                used + held <= granted,
                "{limit:?} is overshot: {used} used, {held} held, {granted} granted"
            );
        }
    }

    fn charged_in(&self, start: DateTime<Utc>) -> Amounts {
        Amounts::sum(self.charges.iter().filter(|(at, _)| *at >= start).map(|(_, amounts)| amounts))
    }

    fn settle(&mut self, reservation: Uuid, charged: Amounts, at: DateTime<Utc>) {
        let held = self.held.remove(&reservation).expect("settles a hold");
        assert!(held.covers(charged), "charged above the hold");
        self.charges.push((at, charged));
    }

    fn release(&mut self, reservation: Uuid, held: Amounts) {
        assert_eq!(self.held.remove(&reservation), Some(held));
    }

    fn sum_held(&self) -> Amounts {
        Amounts::sum(self.held.values())
    }
}

/// L5 of people at every prefix of the log: no reservation ever stood above what was granted. Gives the
/// tokens that are held in the end, over all.
pub(crate) async fn audit_quotas(pool: &PgPool) -> u64 {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT aggregate_id, payload::text FROM events WHERE aggregate_type = 'quota' ORDER BY position",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut people: BTreeMap<String, Books> = BTreeMap::new();
    for (id, payload) in rows {
        let books = people.entry(id).or_default();
        let reported = match serde_json::from_str(&payload).unwrap() {
            QuotaEvent::PlanAssigned { terms, meters, .. } => {
                (books.terms, books.meters) = (Some(terms), meters);
                continue;
            }
            QuotaEvent::PeriodRolled { meters, reserved, .. } => {
                books.meters = meters;
                reserved
            }
            QuotaEvent::TokensReserved { reservation, held, reserved, reserved_at } => {
                books.hold(reservation.uuid(), held, reserved_at);
                reserved
            }
            QuotaEvent::TokensSettled { reservation, charged, used, reserved, settled_at, .. } => {
                books.settle(reservation.uuid(), charged, settled_at);
                for (meter, used) in books.meters.iter().zip(used) {
                    assert_eq!(books.charged_in(meter.window.start).of(meter.unit), used, "{payload}");
                }
                reserved
            }
            QuotaEvent::TokensReleased { reservation, held, reserved, .. } => {
                books.release(reservation.uuid(), held);
                reserved
            }
            QuotaEvent::OverrideGranted { unit, amount, expires_at, .. } => {
                books.raises.push(Raise { unit, amount, expires_at });
                continue;
            }
            QuotaEvent::QuotaExceeded { .. } | QuotaEvent::QuotaWarned { .. } => continue,
        };
        assert_eq!(reported, books.sum_held(), "{payload}");
    }
    people.values().map(|books| books.sum_held().tokens).sum()
}

/// L5 of budgets at every prefix of the log, over all their shares. Gives what is held and what was ever
/// charged, over all.
pub(crate) async fn audit_budgets(pool: &PgPool) -> (Amounts, Amounts) {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT aggregate_type, aggregate_id, payload::text FROM events
         WHERE aggregate_type IN ('budget', 'budget_share') ORDER BY position",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut budgets: BTreeMap<String, Books> = BTreeMap::new();
    for (kind, id, payload) in rows {
        if kind == "budget" {
            let books = budgets.entry(id).or_default();
            match serde_json::from_str(&payload).unwrap() {
                BudgetEvent::BudgetSet { terms, meters, .. } => {
                    (books.terms, books.meters) = (Some(terms), meters);
                }
                BudgetEvent::BudgetRolled { meters, .. } => books.meters = meters,
                BudgetEvent::BudgetRaised { unit, amount, expires_at, .. } => {
                    books.raises.push(Raise { unit, amount, expires_at });
                }
                _ => {}
            }
            continue;
        }
        match serde_json::from_str(&payload).unwrap() {
            BudgetShareEvent::MoneyReserved { budget, reservation, held, reserved_at, .. } => {
                budgets.entry(budget.to_string()).or_default().hold(reservation.uuid(), held, reserved_at);
            }
            BudgetShareEvent::MoneySettled { budget, reservation, charged, settled_at, .. } => {
                budgets.get_mut(&budget.to_string()).unwrap().settle(reservation.uuid(), charged, settled_at);
            }
            BudgetShareEvent::MoneyReleased { budget, reservation, held, .. } => {
                budgets.get_mut(&budget.to_string()).unwrap().release(reservation.uuid(), held);
            }
            BudgetShareEvent::ShareGranted { .. } | BudgetShareEvent::ShareReported { .. } => {}
        }
    }
    let held = budgets.values().map(Books::sum_held).fold(Amounts::default(), Amounts::plus);
    let charged = budgets.values().flat_map(|books| &books.charges).map(|(_, amounts)| amounts);
    (held, Amounts::sum(charged))
}

/// Every stream of the ledger, read anew, makes the state this process has in memory.
pub(crate) async fn replays_to_the_same(app: &App, pool: &PgPool) {
    async fn same<A: Decide + Clone + PartialEq + std::fmt::Debug + 'static>(
        app: &App,
        anew: &Journal,
        id: &str,
    ) {
        let kept = app.core.journal.load::<A>(id).await.unwrap();
        let replayed = anew.load::<A>(id).await.unwrap();
        assert_eq!((kept.version, &kept.state), (replayed.version, &replayed.state), "{} {id}", A::TYPE);
    }
    let streams: Vec<(String, String)> =
        sqlx::query_as("SELECT DISTINCT aggregate_type, aggregate_id FROM events")
            .fetch_all(pool)
            .await
            .unwrap();
    assert!(!streams.is_empty());
    let anew = Journal::open(pool.clone(), JournalConfig::default());
    for (aggregate_type, id) in streams {
        match aggregate_type.as_str() {
            "access_list" => same::<botledger_domain::access_list::AccessList>(app, &anew, &id).await,
            "budget" => same::<Budget>(app, &anew, &id).await,
            "budget_share" => same::<BudgetShare>(app, &anew, &id).await,
            "bot" => same::<Bot>(app, &anew, &id).await,
            "chat_session" => same::<ChatSession>(app, &anew, &id).await,
            "operator" => same::<Operator>(app, &anew, &id).await,
            "policy" => same::<botledger_domain::policy::Policy>(app, &anew, &id).await,
            "quota" => same::<Quota>(app, &anew, &id).await,
            "rate_override" => same::<botledger_domain::rate_limit::RateOverride>(app, &anew, &id).await,
            "standing" => same::<Standing>(app, &anew, &id).await,
            "subject" => same::<Subject>(app, &anew, &id).await,
            "turn" => same::<Turn>(app, &anew, &id).await,
            "workspace" => same::<Workspace>(app, &anew, &id).await,
            other => panic!("no replay of {other}"),
        }
    }
}
