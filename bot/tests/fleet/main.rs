//! The fleet as it runs: the real runtime, use cases, projections and tail on a database of its own,
//! between the stand-ins for Telegram and Ollama. What was sent is told by the stand-in's log.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answers;
mod commands;
mod failover;
mod model_faults;
mod redelivery;
mod redis_away;
mod refusals;
mod standing;
mod streaming;
mod telegram_faults;
mod updates;
mod webhooks;
mod world;
