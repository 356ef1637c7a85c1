//! `botledger audit report`: what operators and shells did and tried in a period, for people who file it.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use botledger_commands::SystemClock;
use botledger_domain::{Clock, EventMetadata, leaf::Leaf};
use botledger_journal::transfer::private_file;
use botledger_local::progress::say;
use botledger_projections::{AdminAct, AuditRow, LogReader, ReadPool, admin_acts, audit_between};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::cli::Settings;
use crate::cli::shell::Told;
use crate::platform::answering_pool;

/// Rows fetched at once.
const PAGE: i64 = 500;
/// A row may be written a little after what it tells about; a report waits for it, so that the same period
/// gives the same bytes for ever.
const SETTLED: TimeDelta = TimeDelta::minutes(1);

#[derive(Clone, Debug, Args)]
pub struct Report {
    /// What happened at or after this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    from: DateTime<Utc>,
    /// What happened before this time, which is a minute ago or more
    #[arg(long, value_name = "TIME")]
    to: DateTime<Utc>,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Format::Csv)]
    format: Format,
    /// Of one workspace: calls and changes of its operators. What was done at a shell belongs to none
    #[arg(long, value_name = "ID", value_parser = workspace, required_unless_present = "all")]
    workspace: Option<Uuid>,
    /// Of all workspaces, and what was done at a shell
    #[arg(long, conflicts_with = "workspace")]
    all: bool,
    /// File that is not there yet; beside it appears FILE.manifest.json with its SHA-256
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print JSON: what stands in the manifest
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    /// RFC 4180; no cell is a formula to a spreadsheet
    Csv,
    /// One JSON object a line
    Ndjson,
}

/// An id as the API gives it, or without its kind.
fn workspace(text: &str) -> Result<Uuid, uuid::Error> {
    text.strip_prefix("workspace:").unwrap_or(text).parse()
}

/// One row of a report. What was done is told by the ledger (`kind` `event`), everything that was asked by
/// the audit table (`kind` `call`); both carry the id of the request.
#[derive(Debug, Serialize)]
struct Row {
    time: String,
    kind: &'static str,
    /// Of whoever did it; empty for a shell, and where nobody was recognised.
    workspace: Option<String>,
    /// `operator:<id>`, `system:cli`; empty where nobody was recognised.
    who: String,
    what: String,
    /// `done` for an event; `ok`, `refused`, `forbidden`, `failed` for a call.
    outcome: String,
    /// `type/id` of what was changed.
    about: Option<String>,
    before: Option<String>,
    /// Of a call its codes and ids.
    after: Option<String>,
    source: String,
    source_ip: Option<String>,
    user_agent: Option<String>,
    instance: Option<String>,
    correlation_id: Option<String>,
    position: Option<i64>,
    /// Of the event: a proof of it proves this row.
    leaf_hash: Option<String>,
}

const COLUMNS: [&str; 16] = [
    "time",
    "kind",
    "workspace",
    "who",
    "what",
    "outcome",
    "about",
    "before",
    "after",
    "source",
    "source_ip",
    "user_agent",
    "instance",
    "correlation_id",
    "position",
    "leaf_hash",
];

impl Row {
    fn of_event(act: AdminAct) -> Self {
        let event = act.event;
        let leaf = Leaf {
            position: event.position.0,
            recorded_at_micros: event.recorded_at.timestamp_micros(),
            aggregate_type: &event.aggregate_type,
            aggregate_id: &event.aggregate_id,
            sequence: event.sequence,
            event_type: &event.event_type,
            event_version: &event.event_version,
            payload: &event.payload,
            metadata: &event.metadata,
        };
        let leaf_hash = Some(hex::encode(leaf.hash()));
        let metadata = event.decode_metadata().ok();
        let of = |part: fn(EventMetadata) -> String| metadata.clone().map(part);
        Self {
            time: moment(event.recorded_at),
            kind: "event",
            workspace: act.workspace.map(|id| id.to_string()),
            who: of(|metadata| metadata.actor).unwrap_or_default(),
            outcome: "done".to_owned(),
            about: Some(format!("{}/{}", event.aggregate_type, event.aggregate_id)),
            before: act.before,
            source: of(|metadata| metadata.source).unwrap_or_default(),
            source_ip: None,
            user_agent: None,
            instance: of(|metadata| metadata.instance),
            correlation_id: of(|metadata| metadata.correlation_id),
            position: Some(event.position.0),
            leaf_hash,
            what: event.event_type,
            after: Some(event.payload),
        }
    }

    fn of_call(row: AuditRow) -> Self {
        let who = match (row.operator_id, row.source.as_str()) {
            (Some(id), _) => format!("operator:{id}"),
            (None, "cli") => "system:cli".to_owned(),
            (None, _) => String::new(),
        };
        let says_something = row.detail.as_object().is_some_and(|detail| !detail.is_empty());
        Self {
            time: moment(row.happened_at),
            kind: "call",
            workspace: row.workspace.map(|id| id.to_string()),
            who,
            what: row.action,
            outcome: row.outcome,
            about: None,
            before: None,
            after: says_something.then(|| row.detail.to_string()),
            source: row.source,
            source_ip: row.source_ip,
            user_agent: row.user_agent,
            instance: row.instance.map(|id| id.to_string()),
            correlation_id: row.correlation_id.map(|id| id.to_string()),
            position: None,
            leaf_hash: None,
        }
    }

    fn as_csv(&self) -> String {
        let position = self.position.map(|position| position.to_string());
        let cells = [
            Some(self.time.as_str()),
            Some(self.kind),
            self.workspace.as_deref(),
            Some(&self.who),
            Some(&self.what),
            Some(&self.outcome),
            self.about.as_deref(),
            self.before.as_deref(),
            self.after.as_deref(),
            Some(&self.source),
            self.source_ip.as_deref(),
            self.user_agent.as_deref(),
            self.instance.as_deref(),
            self.correlation_id.as_deref(),
            position.as_deref(),
            self.leaf_hash.as_deref(),
        ];
        csv_line(&cells.map(Option::unwrap_or_default))
    }
}

fn moment(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A line of RFC 4180, every cell quoted and without control characters. A cell in which a spreadsheet could find a
/// formula, also one that takes another separator for granted, begins with an apostrophe.
fn csv_line(cells: &[&str]) -> String {
    let mut line = String::new();
    for (number, cell) in cells.iter().enumerate() {
        if number > 0 {
            line.push(',');
        }
        let formula = |part: &str| {
            part.trim_start_matches(|letter: char| letter.is_whitespace() || letter == '"')
                .starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠'])
        };
        line.push('"');
        if cell.split([';', ',', '\t', '|', '\r', '\n']).any(formula) {
            line.push('\'');
        }
        for letter in cell.chars().filter(|letter| !letter.is_control()) {
            if letter == '"' {
                line.push('"');
            }
            line.push(letter);
        }
        line.push('"');
    }
    line.push_str("\r\n");
    line
}

impl Report {
    /// The same period gives the same bytes, whenever it is asked.
    ///
    /// # Errors
    /// When the period is not over, the database does not answer, or the file is there already or cannot be
    /// written.
    pub async fn run(self, settings: Settings, told: &mut Told) -> Result<u8> {
        if self.from >= self.to {
            bail!("--from has to be before --to");
        }
        if self.to > SystemClock.now() - SETTLED {
            bail!("--to has to be a minute ago or more: a report must not change any more");
        }
        let path = beside(&self.out, "manifest.json");
        for path in [&self.out, &path] {
            if path.symlink_metadata().is_ok() {
                bail!("{} is there already: name another file", path.display());
            }
        }
        let pool = answering_pool(&settings.load_running()?.config).await?;
        let part = beside(&self.out, "part");
        let file = private_file(&part).with_context(|| format!("{} cannot be written", part.display()))?;
        let mut out = Hashing { out: BufWriter::new(file), hasher: Sha256::new(), bytes: 0 };
        let rows = self.write(&pool, &mut out).await?;
        let Hashing { mut out, hasher, bytes } = out;
        out.flush()?;
        out.get_ref().sync_all()?;
        fs::rename(&part, &self.out).with_context(|| format!("{} cannot be written", self.out.display()))?;
        let manifest = json!({
            "format": "botledger-audit-report",
            "version": 1,
            "encoding": self.format,
            "from": moment(self.from),
            "to": moment(self.to),
            "workspace": self.workspace,
            "events": rows.events,
            "calls": rows.calls,
            "bytes": bytes,
            "sha256": hex::encode(hasher.finalize()),
        });
        for name in ["from", "to", "workspace", "events", "calls", "sha256"] {
            told.insert(name.to_owned(), manifest[name].clone());
        }
        let mut file =
            private_file(&path).with_context(|| format!("{} cannot be written", path.display()))?;
        writeln!(file, "{}", serde_json::to_string_pretty(&manifest)?)?;
        file.sync_all()?;
        if self.json {
            say(manifest.to_string());
        } else {
            say(format!("{} events and {} calls in {}", rows.events, rows.calls, self.out.display()));
            say(format!("SHA-256: {}", manifest["sha256"].as_str().unwrap_or_default()));
        }
        Ok(0)
    }

    async fn write(&self, pool: &ReadPool, out: &mut Hashing) -> Result<Written> {
        if let Format::Csv = self.format {
            out.write(csv_line(&COLUMNS).as_bytes())?;
        }
        let log = LogReader::new(pool.clone());
        let just_before = |time: DateTime<Utc>| time - TimeDelta::microseconds(1);
        let mut at = log.position_at(just_before(self.from)).await?;
        let last = log.position_at(just_before(self.to)).await?;
        let mut events = admin_acts(pool, at, last, self.workspace, PAGE).await?.into_iter().peekable();
        let mut calls =
            audit_between(pool, self.from, self.to, self.workspace, None, PAGE).await?.into_iter().peekable();
        let mut written = Written::default();
        loop {
            // What was asked is told before what came of it, where both have the same time.
            let event_first = match (events.peek(), calls.peek()) {
                (None, None) => return Ok(written),
                (Some(act), Some(call)) => act.event.recorded_at < call.happened_at,
                (act, _) => act.is_some(),
            };
            let row = if event_first {
                let Some(act) = events.next() else { continue };
                at = act.event.position;
                written.events += 1;
                if events.peek().is_none() {
                    events = admin_acts(pool, at, last, self.workspace, PAGE).await?.into_iter().peekable();
                }
                Row::of_event(act)
            } else {
                let Some(call) = calls.next() else { continue };
                written.calls += 1;
                if calls.peek().is_none() {
                    let after = Some((call.happened_at, call.id));
                    calls = audit_between(pool, self.from, self.to, self.workspace, after, PAGE)
                        .await?
                        .into_iter()
                        .peekable();
                }
                Row::of_call(call)
            };
            match self.format {
                Format::Csv => out.write(row.as_csv().as_bytes())?,
                Format::Ndjson => {
                    let mut line = serde_json::to_vec(&row)?;
                    line.push(b'\n');
                    out.write(&line)?;
                }
            }
        }
    }
}

#[derive(Default)]
struct Written {
    events: u64,
    calls: u64,
}

struct Hashing {
    out: BufWriter<File>,
    hasher: Sha256,
    bytes: u64,
}

impl Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::csv_line;

    #[test]
    fn no_cell_is_a_formula_and_every_cell_comes_back() {
        for formula in [
            "=1+1",
            "+1",
            "-1",
            "@SUM(A1)",
            "\t=x",
            " =1",
            "＝1",
            "=\"a\",b",
            "a;=1",
            "a,\u{a0}+1",
            "a\t@x",
            "a|-1",
            "a\r\n=1",
            "a;\"=1",
        ] {
            let line = csv_line(&[formula, "x"]);
            assert!(line.starts_with("\"'") && line.ends_with("\",\"x\"\r\n"), "{line:?}");
            assert!(!line.trim_end().contains(char::is_control), "{line:?}");
        }
        assert_eq!(csv_line(&["a\"b", "c,d", "", "a-b=c"]), "\"a\"\"b\",\"c,d\",\"\",\"a-b=c\"\r\n");
        assert_eq!(csv_line(&["{\"n\":-1}", "operator:1"]), "\"{\"\"n\"\":-1}\",\"operator:1\"\r\n");
    }
}
