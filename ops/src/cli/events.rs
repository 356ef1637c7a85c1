//! `botledger events`: the ledger as it stands, for auditors with a shell.

use anyhow::{Context, Result, bail};
use botledger_domain::{Position, RecordedEvent};
use botledger_local::progress::say;
use botledger_projections::{EventFilter, LogReader, Page};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::Settings;
use crate::platform::answering_pool;

/// Events fetched at once.
const PAGE: i64 = 1_000;

#[derive(Clone, Debug, Args)]
pub struct Events {
    /// One kind of stream, or one stream, for example `turn` or `bot/0190…`
    #[arg(long, value_name = "TYPE[/ID]")]
    stream: Option<String>,
    /// Only these events, by wire name; may be given several times
    #[arg(long = "type", value_name = "NAME")]
    types: Vec<String>,
    /// For example `operator:0190…` or `system:worker`
    #[arg(long)]
    actor: Option<String>,
    /// Everything that followed from one cause
    #[arg(long, value_name = "ID")]
    correlation: Option<String>,
    /// Recorded at or after this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    from: Option<DateTime<Utc>>,
    /// Recorded before this time
    #[arg(long, value_name = "TIME")]
    until: Option<DateTime<Utc>>,
    /// Positions above this one
    #[arg(long, value_name = "POSITION")]
    after: Option<i64>,
    /// Positions up to this one
    #[arg(long, value_name = "POSITION")]
    upto: Option<i64>,
    /// Events at most; 0 for all
    #[arg(long, default_value_t = 50)]
    limit: u64,
    /// Newest first
    #[arg(long)]
    newest: bool,
    /// One JSON object a line, payload and metadata as they are stored
    #[arg(long)]
    json: bool,
}

impl Events {
    /// # Errors
    /// When the database does not answer.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let pool = answering_pool(&settings.load_running()?.config).await?;
        let log = LogReader::new(pool);
        let (aggregate_type, aggregate_id) = match self.stream.as_deref().map(|text| text.split_once('/')) {
            Some(Some((kind, id))) => (Some(kind.to_owned()), Some(id.to_owned())),
            Some(None) => (self.stream.clone(), None),
            None => (None, None),
        };
        let known: Vec<&str> =
            botledger_domain::catalog::aggregates().iter().map(|kind| kind.aggregate_type).collect();
        if let Some(kind) = aggregate_type.as_deref().filter(|kind| !known.contains(kind)) {
            bail!("there are no streams of type {kind}; there are {}", known.join(", "));
        }
        let known = event_types();
        if let Some(name) = self.types.iter().find(|name| !known.contains(*name)) {
            bail!("there are no events of type {name}; there are {}", known.join(", "));
        }
        let filter = EventFilter {
            aggregate_type,
            aggregate_id,
            event_types: (!self.types.is_empty()).then(|| self.types.clone()),
            actor: self.actor,
            correlation_id: self.correlation,
            recorded_from: self.from,
            recorded_until: self.until,
            after: self.after.map(Position),
            upto: self.upto.map(Position),
        };
        let mut left = if self.limit == 0 { u64::MAX } else { self.limit };
        let mut page = if self.newest { Page::newest(PAGE) } else { Page::oldest(PAGE) };
        while left > 0 {
            page.limit = PAGE.min(i64::try_from(left).unwrap_or(PAGE));
            let events = log.page(&filter, page).await.context("the ledger cannot be read")?;
            let Some(last) = events.last() else { break };
            page.after = Some(last.position);
            left -= events.len() as u64;
            for event in &events {
                say(if self.json { as_json(event)? } else { as_text(event) });
            }
        }
        Ok(0)
    }
}

/// The wire names of all events, from their schemas.
fn event_types() -> Vec<String> {
    let mut names = Vec::new();
    for kind in botledger_domain::catalog::aggregates() {
        let schema = (kind.event_schema)().to_value();
        for variant in schema["oneOf"].as_array().into_iter().flatten() {
            names.extend(variant["properties"]["type"]["const"].as_str().map(str::to_owned));
        }
    }
    names.sort_unstable();
    names
}

fn as_json(event: &RecordedEvent) -> Result<String> {
    // The stored texts go out letter by letter: they are what the leaf hash is taken over.
    let stored = |text: &str| RawValue::from_string(text.to_owned()).context("a stored text is no JSON");
    #[derive(serde::Serialize)]
    struct Line<'a> {
        position: i64,
        recorded_at: DateTime<Utc>,
        stream: String,
        sequence: i64,
        #[serde(rename = "type")]
        event_type: &'a str,
        version: &'a str,
        payload: Box<RawValue>,
        metadata: Box<RawValue>,
    }
    Ok(serde_json::to_string(&Line {
        position: event.position.0,
        recorded_at: event.recorded_at,
        stream: format!("{}/{}", event.aggregate_type, event.aggregate_id),
        sequence: event.sequence,
        event_type: &event.event_type,
        version: &event.event_version,
        payload: stored(&event.payload)?,
        metadata: stored(&event.metadata)?,
    })?)
}

fn as_text(event: &RecordedEvent) -> String {
    let metadata: Value = serde_json::from_str(&event.metadata).unwrap_or_else(|_| json!({}));
    format!(
        "{:>9}  {}  {:<22}  {}/{} #{}  by {}",
        event.position,
        event.recorded_at.to_rfc3339_opts(SecondsFormat::Millis, true),
        event.event_type,
        event.aggregate_type,
        event.aggregate_id,
        event.sequence,
        metadata["actor"].as_str().unwrap_or("?"),
    )
}

#[cfg(test)]
mod tests {
    use super::event_types;

    #[test]
    fn every_kind_of_event_is_known_by_its_wire_name() {
        let names = event_types();
        for name in ["bot_registered", "message_received", "tokens_reserved", "blocked", "workspace_created"]
        {
            assert!(names.iter().any(|known| known == name), "{name} is missing in {names:?}");
        }
    }
}
