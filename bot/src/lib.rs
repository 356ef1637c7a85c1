//! The Telegram side: bots are held, updates taken in, turns worked off, answers delivered.
//!
//! Here live the Bot API client, intake (long polling and webhooks), the queue in Redis, the order
//! of turns per chat, the worker that takes a turn from received to delivered, pacing and the texts
//! people see. Here never live SQL, business rules or quotas: those are `commands` and `domain`.
//!
//! ```text
//! Telegram ──poll/webhook──► intake ──receive_batch──► ledger
//!                              └──► queue (Redis) ──► dispatcher (per chat) ──► worker ──► Telegram
//!                 ledger ──open turns (sweeper)──────────┘
//! ```
//!
//! To add a command: its name in `commands.rs`, its texts in `texts.rs`. To answer another kind of
//! update: its arm in `update.rs`, its handling in `worker.rs`.

mod commands;
mod crash;
mod dispatcher;
mod fleet;
mod intake;
mod markup;
mod pacer;
mod queue;
mod runtime;
mod stranded;
mod telegram;
mod texts;
mod update;
mod webhook;
mod worker;

pub use crash::CRASH_POINTS;
pub use runtime::{BotConfig, BotRuntime, describe_metrics};
pub use telegram::{CallError, ErrorClass, Refusal, Telegram};
pub use update::{Viewer, read_update};
pub use webhook::{WebhookAnswer, Webhooks};
