//! The writer's side of the ledger: append sets, group commit, loading of aggregates, leases, and the
//! signed tree over what was written ([`audit`]).
//!
//! Here lives everything that puts events into PostgreSQL, and the loading of single streams that a
//! decision needs. Here never live business rules, read models or the reading of the whole log
//! (that is `projections`). There is one way in: the SQL function `journal_append`
//! (`migrations/20261124110000_create_journal_append.sql`); see `ops/decisions/0001`.
//!
//! To write something new together with events (as message bodies are), give the function one more
//! group of arrays, [`AppendSet`] one more method and the batch one more column set.

mod append;
pub mod audit;
mod body;
mod journal;
mod lease;
mod load;
mod repository;
pub mod transfer;
mod writer;

pub use append::{AppendError, AppendSet, Receipt, StreamVersion};
pub use body::{Exchange, NewBody, Place, StoredBody};
pub use journal::{Journal, JournalConfig, JournalError, describe_metrics};
pub use lease::LeaseOutcome;
pub use load::{Load, Loaded, Wanted};
pub use repository::JournalRepository;
