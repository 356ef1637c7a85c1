//! Webhook calls: taken only with the right secret, and confirmed only when they are in the ledger.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
    routing::post,
};
use botledger_bot::Webhooks;
use botledger_domain::bot::{BotSettings, UpdateMode};
use botledger_sim::Person;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::task::JoinHandle;

use crate::world::{Gateway, Held, Instance, Routes, Setup, World, until};

/// A public address whose calls go to one instance, or to another.
struct Front {
    base: String,
    target: Arc<Mutex<Option<Webhooks>>>,
    served: JoinHandle<std::io::Result<()>>,
}

impl Drop for Front {
    fn drop(&mut self) {
        // What it leads to holds connections to the test's database.
        self.served.abort();
    }
}

async fn call(
    State(target): State<Arc<Mutex<Option<Webhooks>>>>,
    Path(bot): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let target = target.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(webhooks) = target else { return StatusCode::BAD_GATEWAY.into_response() };
    let secret = headers.get("x-telegram-bot-api-secret-token").and_then(|value| value.to_str().ok());
    let answer = webhooks.receive(&bot, secret, &body).await;
    let status = StatusCode::from_u16(answer.status).unwrap();
    match answer.retry_after {
        Some(seconds) => (status, [(RETRY_AFTER, seconds.to_string())]).into_response(),
        None => status.into_response(),
    }
}

impl Front {
    async fn open() -> Self {
        let target = Arc::new(Mutex::new(None));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().route("/telegram/{bot}", post(call)).with_state(Arc::clone(&target));
        let served = tokio::spawn(async move { axum::serve(listener, app).await });
        Self { base, target, served }
    }

    fn lead_to(&self, instance: &Instance) {
        *self.target.lock().unwrap() = Some(instance.webhooks.clone());
    }

    fn setup(&self) -> Setup {
        let mut setup = Setup::default();
        setup.bots.webhook_base_url = Some(self.base.clone());
        setup
    }
}

async fn hooked(world: &World, instance: &Instance, username: &str) -> Held {
    let bot = world.bot_with(instance, username, UpdateMode::Webhook, BotSettings::default()).await;
    until("the webhook is set", async || world.sim.delivery(username)?.webhook).await;
    bot
}

fn update(id: i64, text: &str) -> Value {
    json!({"update_id": id, "message": {
        "message_id": id, "date": 1_700_000_000, "text": text,
        "chat": {"id": 5, "type": "private", "first_name": "A"},
        "from": {"id": 5, "is_bot": false, "first_name": "A", "language_code": "en"},
    }})
}

#[sqlx::test(migrations = "../migrations")]
async fn a_webhook_bot_is_called_and_answers(pool: PgPool) {
    let front = Front::open().await;
    let world = World::with(pool, front.setup()).await;
    let instance = world.instance();
    front.lead_to(&instance);
    let bot = hooked(&world, &instance, "hook_bot").await;
    for number in 1..=20 {
        world.say(&bot, &Person::number(number), &format!("hello {number}"));
        world.say(&bot, &Person::number(number), "/help");
    }
    assert_eq!(world.ended(40).await, [("delivered".to_owned(), 40)].into());
    assert_eq!(world.sent(&bot).len(), 40);
    let delivery = world.sim.delivery("hook_bot").unwrap();
    assert_eq!((delivery.pending, delivery.last_error), (0, None));
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn only_the_right_secret_opens_and_nothing_tells_bots_apart(pool: PgPool) {
    let front = Front::open().await;
    let world = World::with(pool, front.setup()).await;
    let instance = world.instance();
    front.lead_to(&instance);
    let bot = hooked(&world, &instance, "secret_bot").await;
    let secret = instance.app.bots.webhook_secret(bot.id).await.unwrap();
    let unknown = botledger_domain::BotId(uuid::Uuid::now_v7());
    let call = async |bot: String, secret: Option<&str>, body: Vec<u8>| {
        let mut request = reqwest::Client::new().post(format!("{}/telegram/{bot}", front.base)).body(body);
        if let Some(secret) = secret {
            request = request.header("X-Telegram-Bot-Api-Secret-Token", secret);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let good = update(1, "hello").to_string().into_bytes();
    let refused = call(bot.id.to_string(), None, good.clone()).await;
    assert_eq!(refused.0, 404);
    let mut almost = secret.to_string();
    almost.pop();
    for (id, secret) in [
        (bot.id.to_string(), Some(almost.as_str())),
        (bot.id.to_string(), Some("")),
        (unknown.to_string(), Some(secret.as_str())),
        ("no-id".to_owned(), Some(secret.as_str())),
    ] {
        assert_eq!(call(id, secret, good.clone()).await, refused);
    }
    assert_eq!(world.events("message_received").await, 0);

    let secret = Some(secret.as_str());
    assert_eq!(call(bot.id.to_string(), secret, good.clone()).await.0, 200);
    assert_eq!(world.events("message_received").await, 1, "stored before it is confirmed");
    assert_eq!(call(bot.id.to_string(), secret, good).await.0, 200, "known, and confirmed again");
    assert_eq!(world.events("message_received").await, 1);
    for rubbish in [b"{not json".to_vec(), b"\xff\xfe".to_vec(), Vec::new(), b"[]".to_vec()] {
        assert_eq!(call(bot.id.to_string(), secret, rubbish).await.0, 200);
    }
    assert_eq!(world.events("update_unreadable").await, 4, "kept as they came");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn while_the_database_is_away_nothing_is_confirmed_and_nothing_is_lost(pool: PgPool) {
    let front = Front::open().await;
    let world = World::with(pool, front.setup()).await;
    let (gateway, database) = Gateway::to_database(&world).await;
    let instance = world.instance_by(&Routes { database, ..world.routes() });
    front.lead_to(&instance);
    let bot = hooked(&world, &instance, "dark_bot").await;
    gateway.close();
    world.say(&bot, &Person::number(1), "into the dark");
    until("Telegram was sent away", async || world.sim.delivery("dark_bot")?.last_error).await;
    assert_eq!(
        world.sim.delivery("dark_bot").unwrap().last_error.unwrap(),
        "Wrong response from the webhook: 503 Service Unavailable"
    );
    assert_eq!(world.events("message_received").await, 0);
    gateway.open().await;
    world.answers(&bot, Person::number(1).id, 1).await;
    assert_eq!(world.ended(1).await["delivered"], 1);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_call_may_come_to_an_instance_that_does_not_hold_the_bot(pool: PgPool) {
    let front = Front::open().await;
    let world = World::with(pool, front.setup()).await;
    let holder = world.instance();
    let bot = hooked(&world, &holder, "relay_bot").await;
    let other = world.instance();
    front.lead_to(&other);
    for number in 1..=5 {
        world.say(&bot, &Person::number(number), "hello");
    }
    assert_eq!(world.ended(5).await["delivered"], 5);
    // A stop that comes there reaches the answer that is written here.
    world.model.hold();
    world.say(&bot, &Person::number(1), "a long one");
    until("the model was asked", async || (world.model.served().len() == 6).then_some(())).await;
    world.say(&bot, &Person::number(1), "/stop");
    assert_eq!(world.answers(&bot, Person::number(1).id, 3).await[1..], ["(stopped)", "Stopped."]);
    other.stop().await;
    holder.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_bot_changes_between_polling_and_webhook_without_losing_a_message(pool: PgPool) {
    let front = Front::open().await;
    let mut setup = front.setup();
    setup.bots.lease_ttl = std::time::Duration::from_secs(1);
    let world = World::with(pool, setup).await;
    let instance = world.instance();
    front.lead_to(&instance);
    let bot = world.bot(&instance, "moody_bot").await;
    let person = Person::number(1);
    world.ask(&bot, &person, "by polling").await;
    let configure = async |mode| {
        let system = crate::world::system();
        instance.app.bots.configure(&system, bot.id, BotSettings::default(), mode).await.unwrap();
    };
    configure(UpdateMode::Webhook).await;
    world.say(&bot, &person, "in between");
    until("the webhook is set", async || world.sim.delivery("moody_bot")?.webhook).await;
    world.answers(&bot, person.id, 2).await;
    configure(UpdateMode::Polling).await;
    world.polled(&bot).await;
    world.ask(&bot, &person, "by polling again").await;
    assert_eq!(world.ended(3).await["delivered"], 3);
    assert_eq!(world.sent(&bot).len(), 3);
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn without_redis_the_ledger_alone_tells_the_holder_also_to_stop(pool: PgPool) {
    let front = Front::open().await;
    let world = World::with(pool, front.setup()).await;
    let holder = world.instance_by(&Routes { redis: None, ..world.routes() });
    let bot = hooked(&world, &holder, "quiet_bot").await;
    let other = world.instance_by(&Routes { redis: None, ..world.routes() });
    front.lead_to(&other);
    world.model.hold();
    world.say(&bot, &Person::number(1), "a long one");
    until("the model was asked", async || (world.model.served().len() == 1).then_some(())).await;
    world.say(&bot, &Person::number(1), "/stop");
    assert_eq!(world.answers(&bot, Person::number(1).id, 2).await, ["(stopped)", "Stopped."]);
    assert_eq!(world.ended(2).await["delivered"], 2);
    other.stop().await;
    holder.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_webhook_bot_without_a_public_address_stops_with_a_reason_and_polling_revives_it(pool: PgPool) {
    let world = World::new(pool).await;
    let instance = world.instance();
    let settings = BotSettings::default();
    let bot = world.bot_with(&instance, "homeless_bot", UpdateMode::Webhook, settings.clone()).await;
    let reason = world.status(&bot, "faulted").await.unwrap();
    let expected = "WEBHOOK_BASE_URL_MISSING: set telegram.webhook_base_url or switch the bot to polling";
    assert_eq!(reason, expected);
    until("it was let go of", async || (world.events("bot_lease_lost").await == 1).then_some(())).await;
    let system = crate::world::system();
    instance.app.bots.configure(&system, bot.id, settings, UpdateMode::Polling).await.unwrap();
    instance.app.bots.start(&system, bot.id).await.unwrap();
    let answer = world.ask(&bot, &Person::number(1), "hello").await;
    assert!(answer.contains("hello"), "{answer}");
    assert_eq!(world.events("bot_lease_acquired").await, 2, "it was not tried over and over");
    instance.stop().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_bot_with_too_much_in_line_sends_calls_away_until_it_has_caught_up(pool: PgPool) {
    let front = Front::open().await;
    let world = World::with(pool, front.setup()).await;
    let holder = world.instance();
    front.lead_to(&holder);
    let bot = hooked(&world, &holder, "crowded_bot").await;
    let secret = holder.app.bots.webhook_secret(bot.id).await.unwrap();
    let other = world.instance();
    world.model.hold();
    world.say(&bot, &Person::number(1), "hello");
    until("the model was asked", async || (world.model.served().len() == 1).then_some(())).await;
    // The read model may be a moment behind the model that was asked.
    let row = until("the turn is shown", async || {
        let (filter, page) =
            (botledger_projections::TurnFilter::default(), botledger_projections::Page::newest(1));
        botledger_projections::turns_page(&world.pool, &filter, page).await.unwrap().pop()
    })
    .await;
    // Entries of turns that do not exist, in a conversation that is busy: they stand in line and cost
    // nothing when their time comes.
    let client = redis::Client::open(crate::world::redis_url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let mut pipe = redis::pipe();
    for _ in 0..5_001 {
        let fields = [("t", uuid::Uuid::now_v7().to_string()), ("c", row.conversation.to_string())];
        pipe.xadd(format!("bl:queue:{{{}}}:normal", bot.id), "*", &fields).ignore();
    }
    pipe.query_async::<()>(&mut redis).await.unwrap();
    let call = async |instance: &Instance, id: i64| {
        let body = update(id, "hello").to_string();
        instance.webhooks.receive(&bot.id.to_string(), Some(&secret), body.as_bytes()).await.status
    };
    let mut id = 0;
    for (who, instance) in [("the holder", &holder), ("one that was told", &other)] {
        until(&format!("{who} sends calls away"), async || {
            id += 1;
            (call(instance, id).await == 503).then_some(())
        })
        .await;
    }
    world.model.release();
    for instance in [&holder, &other] {
        until("it takes calls again", async || (call(instance, 100_000).await == 200).then_some(())).await;
    }
    other.stop().await;
    holder.stop().await;
}
