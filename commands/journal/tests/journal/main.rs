//! The journal against PostgreSQL. `botledger test` starts one; see `support` for what tests share.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conformance;
mod door;
mod durability;
mod leaves;
mod loss;
mod model;
mod order;
mod sets;
mod support;
mod together;
mod transfer;
mod tree;
