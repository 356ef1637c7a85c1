//! Files of one JSON object a line, and the rows they hold.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use botledger_domain::standing::ladder::{OffenceKind, TraceEvent, TraceKind};
use botledger_scoring::content::CATEGORIES;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use strum::IntoEnumIterator;

/// Bytes of the longest line that is read: memory must not depend on what somebody pipes in.
const LONGEST_LINE: u64 = 64 << 20;

/// Reads line by line, in constant memory, and knows where it is. Empty lines are passed over.
pub(super) struct Lines<R> {
    from: BufReader<R>,
    name: String,
    number: u64,
    line: Vec<u8>,
}

/// The lines of a file.
pub(super) fn open(path: &Path) -> Result<Lines<File>> {
    let file = File::open(path).with_context(|| format!("{} cannot be opened", path.display()))?;
    Ok(Lines::new(file, path.display().to_string()))
}

impl<R: Read> Lines<R> {
    pub(super) fn new(from: R, name: String) -> Self {
        Self { from: BufReader::with_capacity(1 << 16, from), name, number: 0, line: Vec::new() }
    }

    /// The next line that is not empty.
    pub(super) fn next(&mut self) -> Result<Option<&str>> {
        loop {
            self.line.clear();
            self.number += 1;
            let read = (&mut self.from).take(LONGEST_LINE + 1).read_until(b'\n', &mut self.line);
            if read.with_context(|| format!("{} cannot be read", self.name))? == 0 {
                return Ok(None);
            }
            if self.line.len() as u64 > LONGEST_LINE {
                bail!("{}: the line is longer than {} MiB: split it", self.place(), LONGEST_LINE >> 20);
            }
            if self.number == 1 && self.line.starts_with("\u{feff}".as_bytes()) {
                self.line.drain(..3);
            }
            if !self.line.trim_ascii().is_empty() {
                break;
            }
        }
        let line = std::str::from_utf8(&self.line);
        Ok(Some(line.with_context(|| format!("{}: the line is not UTF-8: convert the file", self.place()))?))
    }

    /// Whether the next line has yet to arrive, as far as is known here.
    pub(super) fn is_drained(&self) -> bool {
        self.from.buffer().is_empty()
    }

    fn place(&self) -> String {
        format!("{} line {}", self.name, self.number)
    }

    /// An error of the line that was read last, said in its place.
    pub(super) fn here(&self, error: anyhow::Error) -> anyhow::Error {
        error.context(self.place())
    }

    /// Every row of the file by `read`, with the number of its line.
    pub(super) fn rows<T>(mut self, read: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
        let mut rows = Vec::new();
        while let Some(line) = self.next()? {
            match read(line) {
                Ok(row) => rows.push(row),
                Err(error) => return Err(self.here(error)),
            }
        }
        Ok(rows)
    }
}

/// Reads a line as JSON of a shape, and says what the shape is when it is not.
fn parse<'l, T: Deserialize<'l>>(line: &'l str, shape: &str) -> Result<T> {
    if !line.trim_start().starts_with('{') {
        bail!("a line has to be one JSON object, {shape}");
    }
    serde_json::from_str(line).map_err(|error| {
        let column = error.column();
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        anyhow!("{reason} (column {column}); a line has to be {shape}")
    })
}

/// What `predict` is asked about.
#[derive(Debug)]
pub(super) enum Subject<'l> {
    Text(Cow<'l, str>),
    Events(Vec<TraceEvent>),
}

#[derive(Deserialize)]
struct TextLine<'l> {
    #[serde(borrow, default)]
    id: Option<&'l RawValue>,
    #[serde(borrow)]
    text: Cow<'l, str>,
}

#[derive(Deserialize)]
struct EventsLine<'l> {
    #[serde(borrow, default)]
    id: Option<&'l RawValue>,
    events: Vec<EventLine>,
}

#[derive(Deserialize)]
struct EventLine {
    t: i64,
    kind: String,
    #[serde(default)]
    oos_permille: Option<u16>,
}

pub(super) const TEXT_SHAPE: &str = r#"{"id": "…", "text": "…"}"#;
pub(super) const EVENTS_SHAPE: &str =
    r#"{"id": "…", "events": [{"t": Unix milliseconds, "kind": "…", "oos_permille": 0 to 1000}, …]}"#;

/// The id, as it was written, and the text of a line.
pub(super) fn text_line(line: &str) -> Result<(&RawValue, Subject<'_>)> {
    let row: TextLine<'_> = parse(line, TEXT_SHAPE)?;
    Ok((id(row.id)?, Subject::Text(row.text)))
}

/// The id, as it was written, and the events of a line.
pub(super) fn events_line(line: &str) -> Result<(&RawValue, Subject<'_>)> {
    let row: EventsLine<'_> = parse(line, EVENTS_SHAPE)?;
    Ok((id(row.id)?, Subject::Events(events(row.events)?)))
}

fn id(id: Option<&RawValue>) -> Result<&RawValue> {
    let id = id.context("the line has no \"id\": the answer is found by it")?;
    if !id.get().starts_with(|first: char| first == '"' || first == '-' || first.is_ascii_digit()) {
        bail!("\"id\" has to be a string or a number, not {}", shortened(id.get()));
    }
    Ok(id)
}

fn shortened(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

fn events(lines: Vec<EventLine>) -> Result<Vec<TraceEvent>> {
    let read = |(at, line): (usize, EventLine)| {
        let place = format!("event {}", at + 1);
        let kind = match line.kind.as_str() {
            "appeal_granted" => TraceKind::AppealGranted,
            kind => TraceKind::Message(OffenceKind::from_str(kind).map_err(|_| {
                let known: Vec<&str> = OffenceKind::iter().map(Into::into).collect();
                let (kind, known) = (shortened(kind), known.join(", "));
                anyhow!("{place}: there is no kind \"{kind}\"; there are {known} and appeal_granted")
            })?),
        };
        if let Some(permille) = line.oos_permille.filter(|permille| *permille > 1_000) {
            bail!("{place}: \"oos_permille\" is {permille}; it is a share of a thousand");
        }
        Ok(TraceEvent { t: line.t, kind, oos_permille: line.oos_permille })
    };
    lines.into_iter().enumerate().map(read).collect()
}

/// A labelled text, with whatever label its line has.
#[derive(Clone, Debug)]
pub(super) struct Labelled {
    pub(super) text: String,
    pub(super) label: Label,
    /// Where the row comes from, when the file says so.
    pub(super) source: Option<String>,
}

/// What somebody said about a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Intent(String),
    Yes(bool),
    Categories(BTreeMap<String, bool>),
}

#[derive(Deserialize)]
struct LabelledLine {
    text: String,
    intent: Option<String>,
    label: Option<Value>,
    labels: Option<Value>,
    source: Option<String>,
}

const LABELLED_SHAPE: &str = r#"{"text": "…", "intent": "…"}, {"text": "…", "label": 0 or 1} or {"text": "…", "labels": {"S": 0 or 1, …}}"#;

/// A row of a labelled file: with `intent`, with `label` or with `labels`.
pub(super) fn labelled_line(line: &str) -> Result<Labelled> {
    let row: LabelledLine = parse(line, LABELLED_SHAPE)?;
    let label = match (row.intent, row.labels, row.label) {
        (Some(intent), ..) => Label::Intent(intent),
        (None, Some(labels), _) => Label::Categories(categories(labels)?),
        (None, None, Some(label)) => yes_or_name(&label)?,
        (None, None, None) => bail!("the line has no label; it has to be {LABELLED_SHAPE}"),
    };
    Ok(Labelled { text: row.text, label, source: row.source })
}

/// `0` and `1` and what else people write for them; another word is the name of an intent.
fn yes_or_name(label: &Value) -> Result<Label> {
    if let Some(yes) = yes_or_no(label) {
        return Ok(Label::Yes(yes));
    }
    match label {
        Value::String(name) => Ok(Label::Intent(name.clone())),
        other => bail!("\"label\" is {}; it has to be 0, 1 or a name", shortened(&other.to_string())),
    }
}

fn yes_or_no(label: &Value) -> Option<bool> {
    match label {
        Value::Bool(yes) => Some(*yes),
        Value::Number(number) => match number.as_f64() {
            Some(0.0) => Some(false),
            Some(1.0) => Some(true),
            _ => None,
        },
        Value::String(word) => match word.trim().to_lowercase().as_str() {
            "1" | "true" | "yes" | "attack" | "injection" | "jailbreak" | "spam" => Some(true),
            "0" | "false" | "no" | "benign" | "ordinary" | "ham" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// `{"S": 1, "H": 0}`, where what is absent is unknown; or `["S"]`, where what is absent is not so.
fn categories(labels: Value) -> Result<BTreeMap<String, bool>> {
    let known = |name: &str| {
        if CATEGORIES.contains(&name) {
            return Ok(name.to_owned());
        }
        bail!("there is no category \"{}\"; there are {}", shortened(name), CATEGORIES.join(", "))
    };
    match labels {
        Value::Object(labels) => labels
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| {
                let yes = yes_or_no(value)
                    .with_context(|| format!("the label of \"{}\" has to be 0 or 1", shortened(name)))?;
                Ok((known(name)?, yes))
            })
            .collect(),
        Value::Array(names) => {
            let mut labels: BTreeMap<String, bool> =
                CATEGORIES.iter().map(|name| ((*name).to_owned(), false)).collect();
            for name in &names {
                let name = name.as_str().context("\"labels\" has to name categories")?;
                labels.insert(known(name)?, true);
            }
            Ok(labels)
        }
        _ => bail!("\"labels\" has to be {{\"S\": 0 or 1, …}} or [\"S\", …]"),
    }
}

/// A text with the personal data somebody marked in it.
#[derive(Debug, Deserialize)]
pub(super) struct Marked {
    pub(super) text: String,
    pub(super) spans: Vec<Mark>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub(super) start: u32,
    pub(super) end: u32,
    #[serde(rename = "type")]
    pub(super) kind: String,
}

/// A row of a file with marked personal data.
pub(super) fn marked_line(line: &str) -> Result<Marked> {
    parse(line, r#"{"text": "…", "spans": [{"start": 0, "end": 1, "type": "…"}]}"#)
}

/// A trace with the states and scores it leads to.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) id: String,
    pub(super) events: Vec<TraceEvent>,
    pub(super) expected: Vec<(String, u64)>,
}

/// A row of a file with golden traces.
pub(super) fn trace_line(line: &str) -> Result<Trace> {
    #[derive(Deserialize)]
    struct Line {
        id: Value,
        events: Vec<EventLine>,
        expected: Vec<(String, u64)>,
    }
    let row: Line = parse(line, r#"{"id": "…", "events": […], "expected": [["ok", 0], …]}"#)?;
    let id = row.id.as_str().map_or_else(|| row.id.to_string(), str::to_owned);
    Ok(Trace { id, events: events(row.events)?, expected: row.expected })
}

/// A file that holds one JSON value.
pub(super) fn whole<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not what it has to be", path.display()))
}
