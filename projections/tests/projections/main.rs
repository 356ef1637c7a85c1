//! The log's readers and the read models against PostgreSQL. Events come from the aggregates'
//! own decisions and the real journal; see `support`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod blue_green;
mod budgets;
mod history;
mod lease;
mod limits;
mod log;
mod moderation;
mod once;
mod past;
mod plan_what_if;
mod poison;
mod policies;
mod rebuild;
mod rows;
mod support;
mod tail;
mod what_if;
