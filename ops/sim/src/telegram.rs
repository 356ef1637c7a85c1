//! The Telegram Bot API: many bots, their people, and a log of everything that was asked.

mod answer;
mod control;
mod limits;
mod state;
mod webhook;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::server;
use state::Shared;

pub use limits::Limits;
pub use state::token_of;

/// How the stand-in runs.
#[derive(Clone, Debug)]
pub struct TelegramConfig {
    /// `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Flood limits; none for benchmarks.
    pub limits: Option<Limits>,
    /// The log is also appended to this file, one JSON object a line.
    pub log: Option<PathBuf>,
    /// First pause after a failed webhook delivery; doubles up to a minute.
    pub webhook_pause: Duration,
}

impl Default for TelegramConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".to_owned(),
            limits: Some(Limits::default()),
            log: None,
            webhook_pause: Duration::from_secs(1),
        }
    }
}

/// Somebody who writes to bots.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Person {
    /// Telegram's id, up to 52 bits; also the id of their private chats.
    pub id: i64,
    /// Shown name.
    pub first_name: String,
    /// Without `@`.
    #[serde(default)]
    pub username: Option<String>,
    /// IETF tag of their client.
    #[serde(default)]
    pub language_code: Option<String>,
}

impl Person {
    /// Person number n, made up: English, every fourth Russian.
    #[must_use]
    pub fn number(n: i64) -> Self {
        let russian = n % 4 == 3;
        Self {
            id: 5_000_000_000 + n,
            first_name: if russian { format!("Гость{n}") } else { format!("Guest{n}") },
            username: Some(format!("guest_{n}")),
            language_code: Some(if russian { "ru" } else { "en" }.to_owned()),
        }
    }
}

/// A bot of the stand-in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SimBot {
    /// Telegram's id.
    pub id: i64,
    /// Without `@`.
    pub username: String,
    /// What @BotFather would have given out.
    pub token: String,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FaultKind {
    /// An error answer.
    Status {
        /// `error_code` and HTTP status.
        code: u16,
        /// `description`.
        description: String,
        /// `parameters.retry_after`, seconds.
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// The connection ends before anything was done.
    CutBefore,
    /// It is carried out, then the connection ends without an answer.
    CutAfter,
    /// No answer at all for ten minutes.
    Hang,
    /// 200 with a page instead of JSON, nothing done.
    Garbage,
    /// Carried out after a pause.
    Delay {
        /// Milliseconds.
        millis: u64,
    },
}

/// A fault that waits for its call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// Only this method.
    #[serde(default)]
    pub method: Option<String>,
    /// Only this bot, by username.
    #[serde(default)]
    pub bot: Option<String>,
    /// Only this chat.
    #[serde(default)]
    pub chat: Option<i64>,
    /// Fitting calls that pass first.
    #[serde(default)]
    pub skip: u32,
    /// How often it strikes.
    #[serde(default = "once")]
    pub times: u32,
    /// What goes wrong.
    #[serde(flatten)]
    pub fault: FaultKind,
}

fn once() -> u32 {
    1
}

/// What the real service does now and then, on demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Behaviour {
    /// Every n-th confirmed update is delivered once more later; 0 for never.
    pub duplicate_every: u32,
    /// Batches come in any order.
    pub reorder: bool,
}

/// A line of the log. Holds no token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogEntry {
    /// From 1, without gaps.
    pub number: u64,
    /// Unix time in milliseconds.
    pub at_ms: i64,
    /// Username of the bot.
    pub bot: String,
    /// `sendMessage`, `update` for something a person did, `confirmed` for what the bot took.
    pub what: String,
    /// `ok`, an error code, `cut_before`, `cut_after`, `hang`, `garbage`.
    pub outcome: String,
    /// Which chat.
    #[serde(default)]
    pub chat: Option<i64>,
    /// Message or update id.
    #[serde(default)]
    pub id: Option<i64>,
    /// What was written.
    #[serde(default)]
    pub text: Option<String>,
    /// Whether it came while the bot had been told to wait.
    #[serde(default)]
    pub during_retry_after: bool,
}

/// A message as a chat shows it now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SentMessage {
    /// `message_id`.
    pub id: i64,
    /// Chat.
    pub chat: i64,
    /// Forum topic.
    pub thread: Option<i64>,
    /// Present text.
    pub text: String,
    /// Present entities.
    pub entities: Value,
    /// Present keyboard.
    pub reply_markup: Value,
    /// Which message it answers.
    pub reply_to: Option<i64>,
    /// How often it was edited.
    pub edits: u32,
}

/// How a bot gets its updates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Waiting to be taken.
    pub pending: usize,
    /// Set webhook, without the secret.
    pub webhook: Option<String>,
    /// Last failure of a delivery.
    pub last_error: Option<String>,
    /// A `getUpdates` waits now.
    pub polling: bool,
}

/// A running stand-in for the Bot API. Ends when dropped.
pub struct TelegramSim {
    shared: Arc<Shared>,
    address: SocketAddr,
    _stop: DropGuard,
    served: JoinHandle<()>,
}

impl TelegramSim {
    /// Starts it.
    ///
    /// # Errors
    /// When the address cannot be listened on or the log file not be opened.
    pub async fn start(config: TelegramConfig) -> std::io::Result<Self> {
        let listener = TcpListener::bind(&config.listen).await?;
        let address = listener.local_addr()?;
        let cancel = CancellationToken::new();
        let shared = Arc::new(Shared::new(&config, cancel.clone())?);
        let router = answer::router(Arc::clone(&shared)).merge(control::router(Arc::clone(&shared)));
        let served = tokio::spawn(server::run(listener, router, cancel.clone()));
        Ok(Self { shared, address, _stop: cancel.drop_guard(), served })
    }

    /// `http://host:port`, what `telegram.api_url` is set to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Serves until the process ends.
    pub async fn run(self) {
        let Self { served, _stop, .. } = self;
        // It ends only when cancelled.
        let _ = served.await;
    }

    /// Makes a bot, or tells of the one that is there. The token follows from the username, so it is
    /// the same after a restart.
    ///
    /// # Errors
    /// When the username is none.
    pub fn add_bot(&self, username: &str) -> Result<SimBot, String> {
        self.shared.add_bot(username)
    }

    /// @BotFather revokes the token; the new one is given back.
    pub fn revoke_token(&self, username: &str) -> Option<String> {
        self.shared.revoke_token(username)
    }

    /// Somebody writes to a bot in private; the id of their message.
    ///
    /// # Errors
    /// When there is no such bot.
    pub fn say(&self, bot: &str, person: &Person, text: &str) -> Result<i64, String> {
        self.shared.say(bot, person, None, None, text)
    }

    /// Somebody writes in a chat of any kind, in a topic of a forum when one is named; the id of their
    /// message.
    ///
    /// # Errors
    /// When there is no such bot.
    pub fn say_in(
        &self,
        bot: &str,
        person: &Person,
        chat: Value,
        topic: Option<i64>,
        text: &str,
    ) -> Result<i64, String> {
        self.shared.say(bot, person, Some(chat), topic, text)
    }

    /// A group becomes a supergroup with another id: sending to the old one tells the new one.
    pub fn migrate(&self, bot: &str, from: i64, to: i64) {
        self.shared.migrate(bot, from, to);
    }

    /// Somebody presses a button under a message.
    ///
    /// # Errors
    /// When there is no such bot.
    pub fn press(&self, bot: &str, person: &Person, message: i64, data: &str) -> Result<(), String> {
        self.shared.press(bot, person, message, data)
    }

    /// An update of any kind arrives, with a fresh id and date.
    ///
    /// # Errors
    /// When there is no such bot.
    pub fn inject(&self, bot: &str, update: Value) -> Result<i64, String> {
        self.shared.inject(bot, update)
    }

    /// Anything at all arrives in the place of an update, as it is.
    ///
    /// # Errors
    /// When there is no such bot.
    pub fn inject_raw(&self, bot: &str, update: Value) -> Result<(), String> {
        self.shared.inject_raw(bot, update)
    }

    /// Lets something go wrong.
    pub fn fault(&self, fault: Fault) {
        self.shared.fault(fault);
    }

    /// Duplicates and disorder from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.shared.lock().behaviour = behaviour;
    }

    /// A person blocks or unblocks a bot.
    pub fn block(&self, bot: &str, chat: i64, blocked: bool) {
        self.shared.block(bot, chat, blocked);
    }

    /// How a bot gets its updates.
    #[must_use]
    pub fn delivery(&self, bot: &str) -> Option<Delivery> {
        self.shared.delivery(bot)
    }

    /// The log from an entry on.
    #[must_use]
    pub fn log(&self, after: u64) -> Vec<LogEntry> {
        self.shared.log_after(after, usize::MAX)
    }

    /// Every message of a bot in a chat as it is shown now.
    #[must_use]
    pub fn messages(&self, bot: &str, chat: i64) -> Vec<SentMessage> {
        self.shared.messages(bot, Some(chat))
    }

    /// The registered commands of a language; the empty text is the default.
    #[must_use]
    pub fn commands(&self, bot: &str, language: &str) -> Option<Value> {
        self.shared.commands(bot, language)
    }
}
