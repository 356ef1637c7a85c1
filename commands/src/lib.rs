//! Use cases: what people and the platform may ask for, who may ask, and how it gets into the ledger.
//!
//! Here live the use cases (one file a noun), authorisation, the sealing of personal data, rate
//! limits and the gate. Here never live business rules (those are `domain`), read models or
//! anything that knows Telegram or GraphQL. To add a use case: a method named with the verb of its
//! command in the file of its noun, going through [`execute`] or an append set.

mod access_list;
mod app;
mod audit;
mod behaviour;
mod body;
mod bot;
mod budget;
mod caller;
mod clock;
mod credentials;
mod error;
pub mod execute;
mod followed;
mod gate;
mod history;
mod holds;
mod ids;
mod lease;
mod operator;
mod policy;
mod quota;
mod rate_limit;
mod scorer;
mod session;
mod standing;
mod subject;
mod turn;
mod vault;
mod workspace;

pub use access_list::{Access, AccessLists, ListedAs, NewAccessEntry, WhichList};
pub use app::{App, AppConfig, Core, describe_metrics};
pub use audit::{Audit, AuditEntry, Origin};
pub use body::BodyContent;
pub use bot::{BotIdentity, Bots, NewBot, ProbeError, TelegramProbe};
pub use botledger_journal::audit::{InclusionProof, LogTree, StoredCheckpoint, TreeError};
pub use budget::{BudgetLeft, Budgets};
pub use caller::Caller;
pub use clock::SystemClock;
pub use credentials::{OneTimeSecret, Session, SessionError};
pub use error::CommandError;
pub use gate::{AdmittedTurn, Decision, Fence, Gate, GateDefaults, GateError};
pub use history::{Found, Histories, Said};
pub use ids::{Ids, SharedIds, SystemIds};
pub use lease::Lease;
pub use operator::Operators;
pub use policy::{EffectivePolicy, POLICY_DELAY, Policies, PolicyScope};
pub use quota::Quotas;
pub use rate_limit::{
    KeptCall, LimitState, RateCall, RateDefaults, RateLimiter, RateLimits, RateRefusal, RateUnit, Taken,
};
pub use scorer::{DetectorServices, ModerationServices};
pub use session::Sessions;
pub use standing::{Decided, ModeratorDecision, Standings};
pub use subject::{PersonFacts, Profile, Subjects};
pub use turn::{IncomingKind, IncomingUpdate, Received, ReceivedOutcome, StepOutcome, TurnFailure, Turns};
pub use vault::{KeyRing, Vault, VaultError};
pub use workspace::Workspaces;
