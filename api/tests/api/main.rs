//! The API as clients meet it: over real HTTP, against the real schema and a database of its own for
//! every test.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod access;
mod access_lists;
mod audit;
mod budgets;
mod http;
mod moderation;
mod mutations;
mod past;
mod policies;
mod proofs;
mod queries;
mod rate_limits;
mod read_models;
mod schema;
mod sessions;
mod sockets;
mod subscriptions;
mod support;
mod tenants;
