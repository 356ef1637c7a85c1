//! Relays the ledger to a KurrentDB (EventStoreDB) cluster: every event once, in order, into one stream.
//!
//! Here live what an event looks like there, the session with the target and the loop between both. Here
//! never live commands or read models. The crate is one of its own because of what it pulls in: nobody
//! else's build waits for gRPC (`ops/decisions/0021`).

mod ledger;
mod outgoing;
mod progress;
mod relay;
mod target;

pub use outgoing::event_id;
pub use progress::{RelayStatus, statuses};
pub use relay::{Relay, RelayConfig};
pub use target::{TargetConfig, TargetProblem};

/// Says what every metric of the relay means; Prometheus' tools ask for it.
pub fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_gauge!("botledger_relay_held", Unit::Count, "1 in the process that relays, else 0");
    describe_gauge!("botledger_relay_position", Unit::Count, "Last position that the target has confirmed");
    describe_gauge!("botledger_relay_lag_events", Unit::Count, "Events that the target does not have yet");
    describe_gauge!(
        "botledger_relay_lag_seconds",
        Unit::Seconds,
        "Age of the oldest of them; 0 when it has all"
    );
    describe_gauge!(
        "botledger_relay_refused",
        Unit::Count,
        "1 while the relay refuses to go on and waits for a person"
    );
    describe_counter!(
        "botledger_relay_events_total",
        Unit::Count,
        "Events that the target has confirmed to this process"
    );
    describe_counter!("botledger_relay_failures_total", Unit::Count, "Tries that failed, by what failed");
    describe_histogram!(
        "botledger_relay_append_seconds",
        Unit::Seconds,
        "One append to the target, with its answer"
    );
    describe_histogram!("botledger_relay_batch_events", Unit::Count, "Events in one append");
}
