//! Webhook delivery: one update in flight a chat, many chats at once, again until it is taken.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use serde_json::Value;
use tokio::{task::JoinSet, time::Instant};

use super::{LogEntry, state::Shared};

const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(30);
/// How often waiting chats are looked at.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
pub(super) struct Webhook {
    pub(super) url: String,
    pub(super) secret: String,
    /// Tells a webhook that was set again from the one before.
    pub(super) generation: u64,
    pub(super) connections: usize,
}

/// How a chat's delivery goes.
#[derive(Clone, Copy)]
struct Lane {
    in_flight: bool,
    failures: u32,
    not_before: Instant,
}

struct Delivered {
    lane: Option<i64>,
    id: Option<i64>,
    result: Result<(), (String, Option<Duration>)>,
}

/// Delivers until another webhook is set or this one is taken away.
pub(super) async fn deliver(shared: Arc<Shared>, username: String, generation: u64) {
    let mut lanes: HashMap<Option<i64>, Lane> = HashMap::new();
    let mut flights: JoinSet<Delivered> = JoinSet::new();
    loop {
        let arrived = {
            let mut state = shared.lock();
            let Some(bot) = state.bot(&username) else { return };
            let Some(webhook) = bot.webhook.clone().filter(|webhook| webhook.generation == generation) else {
                return;
            };
            let now = Instant::now();
            let mut seen = HashSet::new();
            for pending in &bot.pending {
                // Only the oldest update of a chat may fly.
                if flights.len() >= webhook.connections || !seen.insert(pending.chat) {
                    continue;
                }
                let lane = lanes.entry(pending.chat).or_insert(Lane {
                    in_flight: false,
                    failures: 0,
                    not_before: now,
                });
                if lane.in_flight || now < lane.not_before {
                    continue;
                }
                lane.in_flight = true;
                let (webhook, update) = (webhook.clone(), pending.update.clone());
                flights.spawn(post(shared.http.clone(), webhook, pending.chat, pending.id, update));
            }
            Arc::clone(&bot.arrived)
        };
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            () = arrived.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
            Some(Ok(delivered)) = flights.join_next() => settle(&shared, &username, &mut lanes, delivered),
        }
    }
}

async fn post(
    http: reqwest::Client,
    webhook: Webhook,
    lane: Option<i64>,
    id: Option<i64>,
    update: Value,
) -> Delivered {
    let request = http
        .post(&webhook.url)
        .header(CONTENT_TYPE, "application/json")
        .header("X-Telegram-Bot-Api-Secret-Token", &webhook.secret)
        .timeout(PATIENCE)
        .body(update.to_string());
    let result = match request.send().await {
        Ok(response) if response.status().is_success() => Ok(()),
        Ok(response) => {
            let pause =
                response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let error = format!("Wrong response from the webhook: {}", response.status());
            Err((error, pause.map(Duration::from_secs)))
        }
        Err(_) => Err(("Connection refused or broken".to_owned(), None)),
    };
    Delivered { lane, id, result }
}

fn settle(shared: &Shared, username: &str, lanes: &mut HashMap<Option<i64>, Lane>, delivered: Delivered) {
    let mut state = shared.lock();
    let outcome = match &delivered.result {
        Ok(()) => "ok",
        Err(_) => "refused",
    };
    if let Some(bot) = state.bot(username) {
        match delivered.result {
            Ok(()) => {
                lanes.remove(&delivered.lane);
                let place = bot
                    .pending
                    .iter()
                    .position(|pending| pending.chat == delivered.lane && pending.id == delivered.id);
                if let Some(place) = place {
                    bot.pending.remove(place);
                }
                bot.last_error = None;
            }
            Err((error, pause)) => {
                if let Some(lane) = lanes.get_mut(&delivered.lane) {
                    lane.in_flight = false;
                    lane.failures += 1;
                    let doubled = shared.webhook_pause * 2u32.pow(lane.failures.min(10) - 1);
                    lane.not_before = Instant::now() + pause.unwrap_or(doubled.min(LONGEST_PAUSE));
                }
                bot.last_error = Some(error);
            }
        }
    }
    state.note(LogEntry {
        number: 0,
        at_ms: 0,
        bot: username.to_owned(),
        what: "webhook".to_owned(),
        outcome: outcome.to_owned(),
        chat: delivered.lane,
        id: delivered.id,
        text: None,
        during_retry_after: false,
    });
}
