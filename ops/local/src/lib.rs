//! What `ops/up` stands on: a private PostgreSQL cluster and a private Redis under `.local/`, their
//! supervision, and the commands around them (`up`, `down`, `status`, `reset`, `doctor`, `services`).
//!
//! Here: finding, installing, starting, holding and stopping local services and the processes of an
//! [`Application`]; the embedded migrations. Never here: anything about bots, events or configuration
//! of the product; a query macro (this crate has to compile before a database exists, because it
//! starts the one that the others' queries are checked against); a process started outside [`supervise`] (it would outlive a killed parent).
//!
//! To add one more service: a file like `redis.rs` that says how to find, launch and probe it, a
//! [`supervise::Launch`] in `services.rs`, and a finding in `doctor.rs`.

pub mod cli;
pub mod doctor;
pub mod http;
pub mod install;
pub mod layout;
pub mod migrate;
pub mod npm;
pub mod postgres;
pub mod progress;
pub mod redis;
pub mod run_as;
pub mod secrets;
pub mod services;
pub mod state;
pub mod supervise;
pub mod throwaway;
pub mod up;

pub use cli::{LocalCommand, run};
pub use layout::Layout;
pub use services::{Environment, Given};
pub use up::{Application, Outcome, Plan, Program};
