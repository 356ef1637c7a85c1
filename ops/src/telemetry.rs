//! Logs and metrics of a process: set up once, at the start of `main`.

use anyhow::{Context, Result};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::config::{Log, LogFormat};

/// Bounds of latencies, in seconds: fine around the aims (10 ms a turn, 20 ms to a subscriber), wide
/// enough for a model that thinks for minutes.
const SECONDS: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.25, 2.5, 5.0, 10.0, 30.0,
    60.0, 120.0, 300.0,
];
/// Bounds of counts (batch sizes, queue depths).
const COUNTS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 5_000.0];
/// Bounds of sizes, in bytes.
const BYTES: &[f64] = &[256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0];

/// Begins logging to stderr. `log.level` is the filter; `RUST_LOG` is not looked at, so that there is
/// one place to ask for what is in force.
///
/// # Errors
/// When the filter cannot be read, or logging was set up before.
pub fn start_logging(log: &Log) -> Result<()> {
    let filter = EnvFilter::builder().parse(&log.level).context("log.level is no filter")?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE)
        .with_target(true);
    let done = match log.format {
        LogFormat::Json => {
            builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
        }
        LogFormat::Text => {
            let colours = std::env::var_os("NO_COLOR").is_none()
                && std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.compact().with_ansi(colours).try_init()
        }
    };
    done.map_err(|error| anyhow::anyhow!("logging was already set up: {error}"))
}

/// Begins counting. The handle renders what `/metrics` answers. Histograms end in their unit:
/// `…_seconds`, `…_bytes`, and everything else is a count.
///
/// # Errors
/// When a recorder was installed before.
pub fn start_metrics() -> Result<PrometheusHandle> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), BYTES)?
        .set_buckets(COUNTS)?
        .install_recorder()
        .context("metrics were already set up")
}

/// Says what every metric of the product means; Prometheus' tools ask for it.
pub fn describe_metrics() {
    use metrics::{Unit, describe_gauge};
    botledger_commands::describe_metrics();
    botledger_projections::describe_metrics();
    botledger_relay::describe_metrics();
    botledger_api::describe_metrics();
    botledger_bot::describe_metrics();
    crate::heads::describe_metrics();
    describe_gauge!("botledger_database_connections", Unit::Count, "Connections of the pool");
    describe_gauge!("botledger_database_connections_idle", Unit::Count, "Those of them that wait for work");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_have_buckets_of_their_unit() {
        let handle = start_metrics().unwrap();
        metrics::histogram!("turn_stage_seconds").record(0.003);
        metrics::histogram!("journal_batch_events").record(3.0);
        let text = handle.render();
        assert!(text.contains("turn_stage_seconds_bucket{le=\"0.005\"} 1"), "{text}");
        assert!(text.contains("journal_batch_events_bucket{le=\"5\"} 1"), "{text}");
    }
}
