//! The real binary against a real PostgreSQL, a real Redis and the stand-ins, from outside.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod audit;
mod audit_report;
mod budget;
mod canary;
mod client;
mod commands;
mod crash;
mod drift;
mod house;
mod operation;
mod policies;
mod rebuilds;
mod relay;
mod roles;
mod transfer;
