//! `botledger history` and `botledger diff`: one thing through time, for auditors with a shell.

use anyhow::{Context, Result, bail};
use botledger_domain::Position;
use botledger_local::progress::say;
use botledger_projections::{LogReader, Page, Step, Story, ValueChange, changes_between};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use serde_json::{Value, json};

use super::Settings;
use crate::platform::answering_pool;

/// Steps told at once.
const PAGE: i64 = 5_000;
/// Characters of a value that is shown to people.
const SHOWN: usize = 120;

/// What is told about.
#[derive(Clone, Debug, Args)]
struct Thing {
    /// A stream, for example `quota/0190…` or `bot/0190…`; `botledger events` names them
    #[arg(value_name = "TYPE/ID")]
    thing: String,
}

impl Thing {
    fn parts(&self) -> Result<(&str, &str)> {
        let parts = self.thing.split_once('/').or_else(|| self.thing.split_once(':'));
        let (kind, id) = parts.context("name a stream as TYPE/ID, for example quota/0190…")?;
        let known: Vec<&str> =
            botledger_domain::catalog::aggregates().iter().map(|kind| kind.aggregate_type).collect();
        if !known.contains(&kind) {
            bail!("there are no streams of type {kind}; there are {}", known.join(", "));
        }
        Ok((kind, id))
    }
}

/// A place in the ledger: a position, or a time.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Position(i64),
    Time(DateTime<Utc>),
}

fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(position) = text.parse::<i64>() {
        return Ok(Moment::Position(position));
    }
    let time = DateTime::parse_from_rfc3339(text).map_err(|_| "give a position, or a time as RFC 3339")?;
    Ok(Moment::Time(time.to_utc()))
}

impl Moment {
    async fn position(self, log: &LogReader) -> Result<Position> {
        let (position, head) = match self {
            Self::Position(position) => (Position(position), log.head().await?),
            Self::Time(time) if time <= log.now().await? => return Ok(log.position_at(time).await?),
            Self::Time(time) => bail!("{time} is in the future"),
        };
        if position.0 < 0 || position > head {
            bail!("the ledger ends at {head}; there is no position {position}");
        }
        Ok(position)
    }
}

#[derive(Clone, Debug, Args)]
pub struct History {
    #[command(flatten)]
    thing: Thing,
    /// As it was at a position or a time (RFC 3339) [default: now]
    #[arg(long, value_name = "MOMENT", value_parser = moment)]
    as_of: Option<Moment>,
    /// Steps at most; 0 for all
    #[arg(long, default_value_t = 50)]
    limit: u64,
    /// Newest first
    #[arg(long)]
    newest: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl History {
    /// Tells a stream step by step.
    ///
    /// # Errors
    /// When there are no such streams or the database does not answer.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let (kind, id) = self.thing.parts()?;
        let log = LogReader::new(answering_pool(&settings.load_running()?.config).await?);
        let upto = match self.as_of {
            Some(moment) => moment.position(&log).await?,
            None => log.head().await?,
        };
        let mut story = Story::of(kind, id, upto).context("every kind of stream can be told")?;
        let mut left = if self.limit == 0 { u64::MAX } else { self.limit };
        let mut page = if self.newest { Page::newest(PAGE) } else { Page::oldest(PAGE) };
        while left > 0 {
            page.limit = PAGE.min(i64::try_from(left).unwrap_or(PAGE));
            let steps = story.page(&log, page).await?;
            let Some(last) = steps.last() else { break };
            page.after = Some(last.event.position);
            left -= steps.len() as u64;
            for step in &steps {
                if self.json {
                    say(serde_json::to_string(&as_json(step)?)?);
                } else {
                    as_text(step)?.into_iter().for_each(say);
                }
            }
        }
        if page.after.is_none() {
            say(format!("nothing is recorded of {kind}/{id}"));
            return Ok(1);
        }
        Ok(0)
    }
}

fn as_json(step: &Step) -> Result<Value> {
    let event = &step.event;
    let metadata = event.decode_metadata()?;
    Ok(json!({
        "position": event.position, "recorded_at": event.recorded_at, "event": event.event_type,
        "sequence": event.sequence, "actor": metadata.actor, "source": metadata.source,
        "correlation_id": metadata.correlation_id, "changes": step.changes,
    }))
}

fn as_text(step: &Step) -> Result<Vec<String>> {
    let event = &step.event;
    let metadata = event.decode_metadata()?;
    let mut lines = vec![format!(
        "{:>8}  {}  {}  by {} from {}",
        event.position.0,
        event.recorded_at.to_rfc3339_opts(SecondsFormat::Millis, true),
        event.event_type,
        metadata.actor,
        metadata.source,
    )];
    lines.extend(step.changes.iter().map(line));
    Ok(lines)
}

fn line(change: &ValueChange) -> String {
    let shown = |value: &Option<Value>| match value {
        None => "nothing".to_owned(),
        Some(value) => {
            let text = value.to_string();
            match text.char_indices().nth(SHOWN) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        }
    };
    format!("          {}: {} -> {}", change.path, shown(&change.before), shown(&change.after))
}

#[derive(Clone, Debug, Args)]
pub struct Diff {
    #[command(flatten)]
    thing: Thing,
    /// A position or a time (RFC 3339)
    #[arg(long, value_name = "MOMENT", value_parser = moment)]
    from: Moment,
    /// A position or a time (RFC 3339) [default: now]
    #[arg(long, value_name = "MOMENT", value_parser = moment)]
    to: Option<Moment>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Diff {
    /// Tells what lies between two moments of a stream.
    ///
    /// # Errors
    /// When there are no such streams, the moments make no sense, or the database does not answer.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let (kind, id) = self.thing.parts()?;
        let log = LogReader::new(answering_pool(&settings.load_running()?.config).await?);
        let from = self.from.position(&log).await?;
        let to = match self.to {
            Some(to) => to.position(&log).await?,
            None => log.head().await?,
        };
        if to < from {
            bail!("--from lies after --to");
        }
        let between = changes_between(&log, kind, id, from, to).await?;
        let between = between.context("there are no such streams")?;
        if self.json {
            let shown = json!({"from": from, "to": to, "events": between.events, "changes": between.changes});
            say(serde_json::to_string_pretty(&shown)?);
            return Ok(0);
        }
        say(format!(
            "{kind}/{id} from {from} to {to}: {} events, {} values differ",
            between.events,
            between.changes.len()
        ));
        between.changes.iter().map(line).for_each(say);
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_position_or_a_time() {
        assert!(matches!(moment("12"), Ok(Moment::Position(12))));
        assert!(matches!(moment("2026-01-02T03:04:05Z"), Ok(Moment::Time(_))));
        assert!(moment("yesterday").is_err());
    }
}
