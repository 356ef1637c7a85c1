//! Taking updates in: stored in the ledger first, confirmed to Telegram afterwards, put in line last.

use std::{collections::HashSet, sync::Arc, time::Duration};

use botledger_commands::{Caller, CommandError, IncomingKind, IncomingUpdate, ReceivedOutcome};
use botledger_domain::turn::{Ask, TurnError};
use serde_json::{json, value::RawValue};
use tokio::time::Instant;

use crate::{
    commands::Command,
    crash,
    dispatcher::Work,
    fleet::{Fault, HeldBot},
    telegram::{CallError, ErrorClass},
    update::read_update,
};

/// Everything the Bot API 10.3 can send: what is not named would be lost.
pub(crate) const ALLOWED_UPDATES: &[&str] = &[
    "message",
    "edited_message",
    "channel_post",
    "edited_channel_post",
    "business_connection",
    "business_message",
    "edited_business_message",
    "deleted_business_messages",
    "guest_message",
    "message_reaction",
    "message_reaction_count",
    "inline_query",
    "chosen_inline_result",
    "callback_query",
    "shipping_query",
    "pre_checkout_query",
    "purchased_paid_media",
    "poll",
    "poll_answer",
    "my_chat_member",
    "chat_member",
    "chat_join_request",
    "chat_boost",
    "removed_chat_boost",
    "managed_bot",
    "subscription",
    "stopped_message_generation",
];

/// Turns that may wait before a bot stops asking for more.
pub(crate) const MOST_WAITING: usize = 5_000;
/// After this long without updates every id Telegram had is gone, and ids may begin anew below the
/// old ones: asking with the old offset would throw them away.
const FORGET_OFFSET: Duration = Duration::from_secs(25 * 3_600);

fn asks_to_stop(update: &IncomingUpdate) -> bool {
    matches!(&update.kind, IncomingKind::Message { ask: Ask::Command { name }, .. } if name == Command::Stop.name())
}

/// Stores a batch and puts what wants an answer in line. Nothing may be confirmed before this is done.
///
/// # Errors
/// When the batch could not be stored; then nothing of it may be confirmed.
pub(crate) async fn take_in(
    bot: &Arc<HeldBot>,
    updates: Vec<IncomingUpdate>,
) -> Result<(), CommandError<TurnError>> {
    let begun = Instant::now();
    let stops: Vec<bool> = updates.iter().map(asks_to_stop).collect();
    let caller = Caller::system("intake", bot.deps.app.core.ids.next());
    let received = bot.deps.app.turns.receive_batch(&caller, bot.id, bot.fence, updates).await?;
    crash::point("intake_stored");
    for one in &received {
        let outcome = match one.outcome {
            ReceivedOutcome::Accepted => "accepted",
            ReceivedOutcome::Recorded => "recorded",
            ReceivedOutcome::Duplicate => "duplicate",
        };
        metrics::counter!("botledger_updates_total", "outcome" => outcome).increment(1);
    }
    let works = received
        .iter()
        .zip(stops)
        .filter_map(|(one, stops)| {
            let (conversation, lane) = one.queued?;
            Some(Work { turn: one.turn, conversation, lane, stops, entry: None })
        })
        .collect();
    bot.enqueue(works).await;
    crash::point("queued");
    metrics::histogram!("botledger_turn_stage_seconds", "stage" => "intake")
        .record(begun.elapsed().as_secs_f64());
    Ok(())
}

/// Polls until the bot is told to stop taking in.
pub(crate) async fn poll(bot: Arc<HeldBot>) {
    let mut poller =
        Poller { bot: &bot, offset: 0, last_update: Instant::now(), without_id: HashSet::new(), failures: 0 };
    loop {
        tokio::select! {
            () = bot.closing.cancelled() => return,
            pause = poller.once() => {
                if !pause.is_zero() {
                    tokio::select! {
                        () = bot.closing.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }
}

struct Poller<'a> {
    bot: &'a Arc<HeldBot>,
    offset: i64,
    last_update: Instant,
    /// Updates without id that the last answer held: they cannot be confirmed and come again and again.
    without_id: HashSet<String>,
    failures: u32,
}

impl Poller<'_> {
    /// One poll; how long to pause before the next.
    async fn once(&mut self) -> Duration {
        if self.bot.dispatcher.waiting() > MOST_WAITING {
            return Duration::from_millis(100);
        }
        if self.last_update.elapsed() > FORGET_OFFSET {
            self.offset = 0;
        }
        let timeout = self.bot.deps.config.poll_timeout;
        let parameters = json!({
            "offset": self.offset,
            "limit": 100,
            "timeout": timeout.as_secs(),
            "allowed_updates": ALLOWED_UPDATES,
        });
        let patience = timeout + Duration::from_secs(15);
        let answer: Result<Vec<Box<RawValue>>, CallError> =
            self.bot.deps.telegram.call_within(&self.bot.token, "getUpdates", &parameters, patience).await;
        match answer {
            Ok(raws) if raws.is_empty() => {
                self.failures = 0;
                Duration::ZERO
            }
            Ok(raws) => self.store(&raws).await,
            Err(error) => self.endure(&error).await,
        }
    }

    async fn store(&mut self, raws: &[Box<RawValue>]) -> Duration {
        crash::point("intake_fetched");
        let mut updates: Vec<_> = raws.iter().map(|raw| read_update(raw, &self.bot.viewer)).collect();
        let without_id = updates.iter().filter(|update| update.update_id.is_none());
        let without_id: HashSet<String> = without_id.map(|update| update.raw.clone()).collect();
        updates.retain(|update| update.update_id.is_some() || !self.without_id.contains(&update.raw));
        if updates.is_empty() {
            return Duration::from_secs(1);
        }
        let highest = updates.iter().filter_map(|update| update.update_id).max();
        match take_in(self.bot, updates).await {
            Ok(()) => {
                self.failures = 0;
                self.last_update = Instant::now();
                self.without_id = without_id;
                if let Some(highest) = highest {
                    self.offset = highest + 1;
                }
                Duration::ZERO
            }
            Err(error) => {
                tracing::warn!(bot.id = %self.bot.id, error = %error, "updates could not be stored and will be fetched again");
                self.back_off()
            }
        }
    }

    async fn endure(&mut self, error: &CallError) -> Duration {
        let CallError::Refused(refusal) = error else {
            tracing::debug!(bot.id = %self.bot.id, error = %error, "a poll failed");
            return self.back_off();
        };
        match refusal.class {
            ErrorClass::Credential => {
                self.bot.fault(Fault::token(refusal));
                Duration::from_secs(60)
            }
            // Told to a poll that begins ("webhook is active") and to one that waited ("setWebhook").
            ErrorClass::Conflict if refusal.description.to_ascii_lowercase().contains("webhook") => {
                tracing::warn!(bot.id = %self.bot.id, "somebody set a webhook for a polling bot; removing it");
                let _ = self
                    .bot
                    .deps
                    .telegram
                    .call::<bool>(&self.bot.token, "deleteWebhook", &json!({"drop_pending_updates": false}))
                    .await;
                Duration::from_secs(1)
            }
            ErrorClass::Conflict => {
                // Somebody else polls with this token. If it is another process of ours, the lease
                // tells; if not, the two would go on stealing each other's turn.
                tracing::warn!(bot.id = %self.bot.id, "somebody else polls for this bot");
                metrics::counter!("botledger_poll_conflicts_total").increment(1);
                Duration::from_secs(3)
            }
            ErrorClass::Rate => refusal.retry_after.unwrap_or(Duration::from_secs(5)),
            _ => self.back_off(),
        }
    }

    fn back_off(&mut self) -> Duration {
        self.failures += 1;
        let pause = Duration::from_millis(200) * 2u32.saturating_pow(self.failures.min(8));
        pause.min(Duration::from_secs(30)).mul_f64(rand::random_range(0.5..1.0))
    }
}

/// Stores an update for a bot that another process holds, and tells that one through the queue; when
/// Redis is away it finds the turn in the ledger.
///
/// # Errors
/// When the update could not be stored.
pub(crate) async fn hand_over(
    deps: &crate::fleet::Deps,
    bot: botledger_domain::BotId,
    fence: botledger_commands::Fence,
    update: IncomingUpdate,
) -> Result<(), CommandError<TurnError>> {
    let stops = asks_to_stop(&update);
    let caller = Caller::system("webhook", deps.app.core.ids.next());
    let received = deps.app.turns.receive_batch(&caller, bot, fence, vec![update]).await?;
    let works: Vec<Work> = received
        .iter()
        .filter_map(|one| {
            let (conversation, lane) = one.queued?;
            Some(Work { turn: one.turn, conversation, lane, stops, entry: None })
        })
        .collect();
    if !works.is_empty() && !deps.queue(bot).push(&works).await {
        // Stored it is: its holder finds it in the ledger, which has the order of the conversation.
        tracing::warn!(bot.id = %bot, "a turn of bot {bot} waits for the sweeper: the queue took nothing");
    }
    Ok(())
}
