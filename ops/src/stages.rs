//! Latencies of turns by stage, read back from the product's own `/metrics`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

const METRIC: &str = "botledger_turn_stage_seconds_bucket";
/// In the order in which a turn passes them.
const ORDER: [&str; 7] = ["intake", "queue", "gate", "first_text", "generate", "deliver", "total"];

/// One stage since the process began.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// For example `gate`.
    pub name: String,
    /// Turns seen.
    pub count: u64,
    /// Seconds, interpolated within a bucket.
    pub p50: f64,
    /// Seconds, interpolated within a bucket.
    pub p99: f64,
}

/// Asks the admin port at `host:port`.
///
/// # Errors
/// When it does not answer.
pub async fn stages(admin: &str) -> Result<Vec<Stage>> {
    let answer = reqwest::get(format!("http://{admin}/metrics")).await.context("/metrics gives no answer")?;
    Ok(parse(&answer.text().await?))
}

/// Bucket borders and how many were at or below them, ascending.
type Buckets = Vec<(f64, u64)>;

fn parse(text: &str) -> Vec<Stage> {
    let mut by_stage: BTreeMap<String, Buckets> = BTreeMap::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(METRIC) else { continue };
        let label = |name: &str| {
            let from = rest.find(&format!("{name}=\""))? + name.len() + 2;
            Some(&rest[from..from + rest[from..].find('"')?])
        };
        let count = rest.rsplit(' ').next().and_then(|count| count.parse().ok());
        if let (Some(stage), Some(border), Some(count)) = (label("stage"), label("le"), count) {
            let border = border.parse().unwrap_or(f64::INFINITY);
            by_stage.entry(stage.to_owned()).or_default().push((border, count));
        }
    }
    ORDER
        .iter()
        .filter_map(|name| {
            let mut buckets = by_stage.remove(*name)?;
            buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
            Some(Stage {
                name: (*name).to_owned(),
                count: buckets.last()?.1,
                p50: quantile(&buckets, 0.5),
                p99: quantile(&buckets, 0.99),
            })
        })
        .collect()
}

fn quantile(buckets: &[(f64, u64)], q: f64) -> f64 {
    let total = buckets.last().map_or(0, |(_, count)| *count);
    let rank = q * total as f64;
    let mut below = (0.0, 0);
    for &(border, count) in buckets {
        if count as f64 >= rank && count > below.1 {
            if border.is_infinite() {
                return below.0;
            }
            let share = (rank - below.1 as f64) / (count - below.1) as f64;
            return below.0 + (border - below.0) * share;
        }
        below = (border, count);
    }
    below.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated_within_their_bucket() {
        let text = "# TYPE botledger_turn_stage_seconds histogram
botledger_turn_stage_seconds_bucket{stage=\"gate\",le=\"0.001\"} 0
botledger_turn_stage_seconds_bucket{stage=\"gate\",le=\"0.002\"} 50
botledger_turn_stage_seconds_bucket{stage=\"gate\",le=\"0.004\"} 100
botledger_turn_stage_seconds_bucket{stage=\"gate\",le=\"+Inf\"} 100
botledger_turn_stage_seconds_sum{stage=\"gate\"} 0.2
botledger_turn_stage_seconds_count{stage=\"gate\"} 100
";
        let stages = parse(text);
        assert_eq!(stages.len(), 1);
        assert_eq!((stages[0].name.as_str(), stages[0].count), ("gate", 100));
        assert!((stages[0].p50 - 0.002).abs() < 1e-9, "{stages:?}");
        assert!((stages[0].p99 - 0.003_96).abs() < 1e-9, "{stages:?}");
    }

    #[test]
    fn nothing_counted_is_nothing_told() {
        assert_eq!(parse(""), []);
    }
}
