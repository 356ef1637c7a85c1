use std::{sync::Arc, time::Duration};

use botledger_commands::App;
use botledger_domain::ModelName;
use botledger_llm::ChatProvider;
use botledger_projections::ReadPool;
use redis::aio::ConnectionManager;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    Telegram, Webhooks,
    fleet::{Deps, Fleet},
};

/// How a process runs bots.
#[derive(Clone, Debug)]
pub struct BotConfig {
    /// How long one `getUpdates` waits, at most 50 s.
    pub poll_timeout: Duration,
    /// Longest wait for any other call.
    pub call_timeout: Duration,
    /// Public base of webhooks, without a slash at the end.
    pub webhook_base_url: Option<String>,
    /// Least time between edits of a streamed answer in a private chat.
    pub edit_interval_private: Duration,
    /// The same in groups.
    pub edit_interval_group: Duration,
    /// How often the typing action is repeated.
    pub typing_interval: Duration,
    /// Turns of all bots answered by models at the same time.
    pub max_concurrent_turns: usize,
    /// Bots held at most.
    pub max_bots: usize,
    /// How long a bot stays with a process that is no longer heard of.
    pub lease_ttl: Duration,
    /// Longest pause between tries to run a bot that fails.
    pub retry_max: Duration,
    /// Longest time for a whole answer of a model.
    pub answer_deadline: Duration,
    /// How long Redis may take before it counts as away.
    pub redis_patience: Duration,
    /// How long turns may go on when a bot is let go of.
    pub drain: Duration,
    /// Model of bots that name none; shown by `/status`.
    pub default_model: ModelName,
}

/// The running fleet of a process.
pub struct BotRuntime {
    cancel: CancellationToken,
    fleet: JoinHandle<()>,
    webhooks: Webhooks,
}

impl BotRuntime {
    /// Begins to hold bots.
    #[must_use]
    pub fn start(
        config: BotConfig,
        app: App,
        read: ReadPool,
        telegram: Telegram,
        provider: Arc<dyn ChatProvider>,
        redis: Option<ConnectionManager>,
    ) -> Self {
        let deps = Arc::new(Deps::new(app, read, telegram, provider, redis, config));
        let fleet = Fleet::new(Arc::clone(&deps));
        let webhooks = Webhooks::new(deps, fleet.clone());
        let cancel = CancellationToken::new();
        Self { fleet: tokio::spawn(fleet.run(cancel.clone())), cancel, webhooks }
    }

    /// Where webhook calls go.
    #[must_use]
    pub fn webhooks(&self) -> Webhooks {
        self.webhooks.clone()
    }

    /// Takes nothing in any more, lets turns end within the drain time, and gives all bots back.
    pub async fn stop(self) {
        self.cancel.cancel();
        // A panic was reported by the runtime.
        let _ = self.fleet.await;
    }
}

/// Tells the metrics recorder what the fleet's metrics mean.
pub fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_gauge!("botledger_bots_held", Unit::Count, "Bots run by this process");
    describe_gauge!("botledger_turns_open", Unit::Count, "Turns of a bot that wait or are worked on");
    describe_gauge!("botledger_queue_depth", Unit::Count, "Entries in a bot's queue in Redis, by lane");
    describe_gauge!(
        "botledger_queue_age_seconds",
        Unit::Seconds,
        "Age of the oldest entry in a bot's queue, by lane"
    );
    describe_counter!(
        "botledger_queue_failures_total",
        Unit::Count,
        "Times Redis did not take turns into the queue"
    );
    describe_counter!(
        "botledger_queue_recovered_total",
        Unit::Count,
        "Turns found in the ledger and put back in line"
    );
    describe_counter!("botledger_updates_total", Unit::Count, "Updates taken in, by outcome");
    describe_counter!(
        "botledger_poll_conflicts_total",
        Unit::Count,
        "Times somebody else polled for a bot of ours"
    );
    describe_counter!("botledger_telegram_calls_total", Unit::Count, "Bot API calls by method and outcome");
    describe_histogram!(
        "botledger_telegram_call_seconds",
        Unit::Seconds,
        "Bot API calls but getUpdates, by method"
    );
    describe_histogram!(
        "botledger_pacer_wait_seconds",
        Unit::Seconds,
        "Sends held back to keep a chat's limit"
    );
    describe_histogram!(
        "botledger_turn_stage_seconds",
        Unit::Seconds,
        "Turns by stage: intake, queue, gate, first_text, generate, deliver, total"
    );
}
