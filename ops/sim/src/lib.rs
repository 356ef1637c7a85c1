//! Stand-ins for the Telegram Bot API, for Ollama, for OpenAI's moderation endpoint and for KurrentDB: the
//! partners this product cannot have in a test or on a machine without network.
//!
//! They speak the true protocols over HTTP, keep the true rules (tokens, offsets, one poller a bot,
//! webhook retries, flood limits, NDJSON), fail on demand, and write a log of their own, which is an
//! independent witness of what was sent. `/_sim/…` is their remote control; the same functions are
//! there for tests in the same process. Here never lives anything of the product.
//!
//! To add a Bot API method: a line in [`methods`], its behaviour in `telegram/answer.rs`.

mod event_store;
mod feed;
pub mod methods;
mod moderation;
mod ollama;
mod server;
mod telegram;

pub use event_store::{EventStoreConfig, EventStoreSim, StoreFault, StoredEvent};
pub use feed::{Fed, FeedConfig, FeedError, feed};
pub use moderation::{ModerationConfig, ModerationFault, ModerationSim};
pub use ollama::{EmbedFault, ModelFault, OllamaConfig, OllamaSim, Served};
pub use telegram::{
    Behaviour, Delivery, Fault, FaultKind, Limits, LogEntry, Person, SentMessage, SimBot, TelegramConfig,
    TelegramSim, token_of,
};
