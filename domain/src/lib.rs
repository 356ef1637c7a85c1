//! The decisions of botledger and the facts they leave behind.
//!
//! Here live the aggregates (one file each), their commands, events and errors, the value objects
//! they are made of, the shape of a stored event and the bytes its leaf hash is taken over.
//! Here never live I/O, SQL, HTTP, Telegram, the current time or randomness: a decision is a pure
//! function of state, command, time and ids, so that a replay never asks anybody anything again.
//!
//! To add an aggregate: a file `noun.rs` read top to bottom as value objects, state, commands,
//! events, errors, `decide`, `apply`, wired by `aggregate!`; a line in [`catalog`]; golden files
//! under `tests/golden/`. To add an event: a variant, its arm in `apply`, a golden payload.

pub mod access_list;
pub mod account;
mod aggregate;
pub mod bot;
pub mod budget;
pub mod budget_share;
pub mod catalog;
pub mod chat_session;
mod clock;
mod ids;
#[cfg(test)]
mod laws;
pub mod leaf;
pub mod merkle;
mod metadata;
pub mod operator;
pub mod policy;
pub mod price;
pub mod quota;
pub mod rate_limit;
mod recorded;
mod sealed;
pub mod signal;
pub mod standing;
pub mod subject;
#[cfg(test)]
mod test_support;
mod text;
pub mod turn;
pub mod upcast;
pub mod workspace;

pub use aggregate::{Decide, DomainError};
pub use clock::{Clock, FixedClock, SharedClock};
pub use ids::{
    BodyId, BotId, ConversationId, InstanceId, OperatorId, Position, ReservationId, SubjectId, TurnId,
    WorkspaceId, budget_share_stream, budget_stream, policy_stream, quota_stream, standing_stream,
};
pub use metadata::{Actor, EventMetadata, SCHEMA_VERSION};
pub use recorded::{DecodeError, RecordedEvent};
pub use sealed::{BodyRef, KeyPurpose, Sealed};
pub use text::{Language, ModelName, PlanName, Reason, TextError};
