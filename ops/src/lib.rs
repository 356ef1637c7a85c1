//! The `botledger` binary: configuration, telemetry, and the wiring of every other crate.
//!
//! Here: what to run and with which settings. Never here: a business rule, SQL, or anything another
//! crate would want to reuse.
//!
//! To add a subcommand: a file under `cli/` with a clap type and `run`, and a variant in `cli.rs`. It
//! gives an exit code, has `--json` when it reads, and appears only once it works.

pub mod cli;
pub mod config;
pub mod demo;
pub mod heads;
pub mod local_run;
pub mod platform;
pub mod stages;
pub mod telemetry;
