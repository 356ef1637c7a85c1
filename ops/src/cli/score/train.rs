//! `botledger score train`: from examples to a model file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use botledger_local::progress::{Progress, say};
use botledger_scoring::attack::{self, AttackModel};
use botledger_scoring::content::{self, ContentModel};
use botledger_scoring::intent::{self, Diversity, Example, IntentModel, OUT_OF_SCOPE, Options};
use botledger_scoring::model_file;
use botledger_scoring::spam::{self, SpamModel};
use clap::Args;
use serde::Serialize;

use super::Kind;
use super::lines::{self, Label, Labelled};

/// Fewer examples of an intent hardly say what belongs to it.
const FEW_EXAMPLES: u32 = 5;

/// Reads lines of JSON: `{"text", "intent"}`, where the intent "oos" means "none of the bot's business";
/// `{"text", "label"}` with 1 for an attack or spam and 0 for an ordinary text; or
/// `{"text", "labels": {"S": 1, "H": 0}}` with the categories that are known.
#[derive(Clone, Debug, Args)]
pub struct Train {
    /// File of examples; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    examples: Vec<PathBuf>,
    /// Where the model goes; a file that is there is replaced
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// What to learn [default: what the lines are for; with 0 and 1, attack and spam both]
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    #[command(flatten)]
    intents: IntentArguments,
    /// Print JSON: `{"file", "bytes", "models": [{"kind", "version", "examples", …}]}`
    #[arg(long)]
    json: bool,
}

/// How intents are learned.
#[derive(Clone, Debug, Args)]
pub(super) struct IntentArguments {
    /// Share of the bot's own messages that may be taken for out of scope
    #[arg(long, value_name = "SHARE", value_parser = share)]
    false_rejection: Option<u16>,
    /// Learn from the given examples alone, not also from shipped ordinary messages
    #[arg(long)]
    no_background: bool,
}

fn share(text: &str) -> Result<u16, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.001..=0.5).contains(&share) => Ok((share * 1000.0).round() as u16),
        _ => Err("a share lies between 0.001 and 0.5, for example 0.05".to_owned()),
    }
}

impl IntentArguments {
    pub(super) fn options(&self) -> Options {
        let default = Options::default();
        Options {
            false_rejection_permille: self.false_rejection.unwrap_or(default.false_rejection_permille),
            background: !self.no_background,
        }
    }
}

/// What was learned, as it is told.
#[derive(Debug, Serialize)]
struct Learned {
    kind: &'static str,
    version: String,
    examples: usize,
    /// Examples by label.
    labels: BTreeMap<String, usize>,
    /// What the owner should look at.
    advice: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    file: String,
    bytes: usize,
    models: Vec<Learned>,
}

impl Train {
    pub(super) fn run(self) -> Result<u8> {
        let progress = if self.json { Progress::silent() } else { Progress::begin() };
        let mut rows = Vec::new();
        for file in &self.examples {
            rows.extend(lines::open(file)?.rows(lines::labelled_line)?);
        }
        let kinds = match self.kind {
            Some(kind) => vec![kind],
            None => kinds_of(&rows)?,
        };
        progress.step(format!("read {} examples", rows.len()));
        let mut models = Vec::new();
        let mut files = Vec::new();
        for kind in kinds {
            let (learned, file) = learn(kind, &rows, self.intents.options())?;
            progress.step(format!("learned {}", learned.kind));
            models.push(learned);
            files.push(file);
        }
        let file = if files.len() == 1 { files.remove(0) } else { model_file::bundle(&files) };
        put(&self.model, &file)?;
        let report = Report { file: self.model.display().to_string(), bytes: file.len(), models };
        if self.json {
            say(serde_json::to_string_pretty(&report)?);
            return Ok(0);
        }
        for learned in &report.models {
            let labels: Vec<String> =
                learned.labels.iter().map(|(label, count)| format!("{label} {count}")).collect();
            let most = 12;
            let rest = labels.len().saturating_sub(most);
            let more = if rest > 0 { format!(", and {rest} more") } else { String::new() };
            let labels = labels.into_iter().take(most).collect::<Vec<_>>().join(", ");
            say(format!("{}: {} examples ({labels}{more})", learned.kind, learned.examples));
            say(format!("  version {}", learned.version));
            for advice in &learned.advice {
                say(format!("  mind: {advice}"));
            }
        }
        say(format!("{}: {} bytes", report.file, report.bytes));
        Ok(0)
    }
}

/// What lines of this shape teach.
fn kinds_of(rows: &[Labelled]) -> Result<Vec<Kind>> {
    let has = |wanted: fn(&Label) -> bool| rows.iter().any(|row| wanted(&row.label));
    let intent = has(|label| matches!(label, Label::Intent(_)));
    let yes = has(|label| matches!(label, Label::Yes(_)));
    let categories = has(|label| matches!(label, Label::Categories(_)));
    match (intent, yes, categories) {
        (true, false, false) => Ok(vec![Kind::Intent]),
        (false, true, false) => Ok(vec![Kind::Attack, Kind::Spam]),
        (false, false, true) => Ok(vec![Kind::Category]),
        (false, false, false) => bail!("there are no examples in the file"),
        _ => bail!("the lines have labels of several sorts: give one sort, or say with --kind what to learn"),
    }
}

/// A model of a kind from the rows, with what is said about it and its file.
fn learn(kind: Kind, rows: &[Labelled], options: Options) -> Result<(Learned, Vec<u8>)> {
    if rows.is_empty() {
        bail!("there are no examples in the file");
    }
    let (version, labels, advice, file) = match kind {
        Kind::Intent => {
            let examples = intents(rows)?;
            let model = IntentModel::train(&examples, options).context("no model can be made")?;
            let labels = examples.iter().map(|example| example.intent.clone());
            (model.version().to_owned(), counted(labels), advice_on(&examples), model.to_bytes())
        }
        Kind::Attack => {
            let texts = attacks(rows)?;
            let model = AttackModel::train(&texts);
            let labels = texts.iter().map(|text| named(text.attack, "attack"));
            let advice = advice_on_answers(texts.iter().map(|text| text.attack), "attack");
            (model.version().to_owned(), counted(labels), advice, model.to_bytes())
        }
        Kind::Spam => {
            let texts = spams(rows)?;
            let model = SpamModel::train(&texts);
            let labels = texts.iter().map(|text| named(text.spam, "spam"));
            let advice = advice_on_answers(texts.iter().map(|text| text.spam), "spam");
            (model.version().to_owned(), counted(labels), advice, model.to_bytes())
        }
        Kind::Category => {
            let texts = contents(rows)?;
            let model = ContentModel::train(&texts);
            let yes = texts.iter().flat_map(|text| text.labels.iter().filter(|(_, yes)| **yes));
            (model.version().to_owned(), counted(yes.map(|(name, _)| name.clone())), vec![], model.to_bytes())
        }
        Kind::Pii | Kind::Deviation => bail!("--kind {} learns nothing", kind.name()),
    };
    Ok((Learned { kind: kind.name(), version, examples: rows.len(), labels, advice }, file))
}

fn named(yes: bool, name: &str) -> String {
    if yes { name.to_owned() } else { "ordinary".to_owned() }
}

fn counted(labels: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for label in labels {
        *counts.entry(label).or_default() += 1;
    }
    counts
}

/// The rows as examples of intents.
pub(super) fn intents(rows: &[Labelled]) -> Result<Vec<Example>> {
    let mut examples = Vec::with_capacity(rows.len());
    for row in rows {
        match &row.label {
            Label::Intent(intent) => {
                examples.push(Example { text: row.text.clone(), intent: intent.clone() });
            }
            _ => bail!("--kind intent needs lines with \"intent\""),
        }
    }
    Ok(examples)
}

/// The rows as examples of attacks and ordinary texts.
pub(super) fn attacks(rows: &[Labelled]) -> Result<Vec<attack::LabelledText>> {
    rows.iter()
        .map(|row| Ok(attack::LabelledText { text: row.text.clone(), attack: yes_or_no(row, Kind::Attack)? }))
        .collect()
}

/// The rows as examples of spam and ordinary texts.
pub(super) fn spams(rows: &[Labelled]) -> Result<Vec<spam::LabelledText>> {
    rows.iter()
        .map(|row| Ok(spam::LabelledText { text: row.text.clone(), spam: yes_or_no(row, Kind::Spam)? }))
        .collect()
}

/// The answer of a row to a question of yes or no.
pub(super) fn yes_or_no(row: &Labelled, kind: Kind) -> Result<bool> {
    match row.label {
        Label::Yes(yes) => Ok(yes),
        _ => bail!("--kind {} needs lines with \"label\" 0 or 1", kind.name()),
    }
}

/// The rows as examples of content; a bare `label` speaks of plainly harmful requests.
pub(super) fn contents(rows: &[Labelled]) -> Result<Vec<content::LabelledText>> {
    rows.iter()
        .map(|row| {
            let labels = match &row.label {
                Label::Categories(labels) => labels.clone(),
                Label::Yes(yes) => BTreeMap::from([("illicit".to_owned(), *yes)]),
                Label::Intent(_) => bail!("--kind category needs lines with \"labels\""),
            };
            Ok(content::LabelledText { text: row.text.clone(), labels })
        })
        .collect()
}

/// What an owner of intents should look at before customers do.
fn advice_on(examples: &[Example]) -> Vec<String> {
    let mut advice = Vec::new();
    let mut intents_of: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for example in examples {
        intents_of.entry(example.text.trim().to_lowercase()).or_default().insert(&example.intent);
    }
    for (text, intents) in intents_of.iter().filter(|(_, intents)| intents.len() > 1) {
        let intents: Vec<&str> = intents.iter().copied().collect();
        advice.push(format!("\"{text}\" is an example of {}", intents.join(" and of ")));
    }
    let (mut few, mut alike) = (Vec::new(), Vec::new());
    for Diversity { intent, examples, permille } in intent::diversity(examples) {
        if examples < FEW_EXAMPLES {
            few.push(intent);
        } else if permille < Diversity::LOW {
            alike.push(intent);
        }
    }
    if !few.is_empty() {
        advice.push(format!("fewer than {FEW_EXAMPLES} examples: {}", few.join(", ")));
    }
    if !alike.is_empty() {
        advice.push(format!("examples much alike, say it in other words as well: {}", alike.join(", ")));
    }
    if examples.iter().filter(|example| example.intent != OUT_OF_SCOPE).count() == examples.len() {
        advice.push(format!(
            "no example has the intent \"{OUT_OF_SCOPE}\": messages that come near the task and are not \
             meant help most"
        ));
    }
    advice
}

fn advice_on_answers(answers: impl Iterator<Item = bool>, name: &str) -> Vec<String> {
    let (yes, no): (Vec<bool>, Vec<bool>) = answers.partition(|yes| *yes);
    let mut advice = Vec::new();
    if yes.is_empty() {
        advice.push(format!("no line is {name}: only the ordinary ones were learned"));
    }
    if no.len() < 60 {
        advice.push(format!(
            "{} ordinary lines are too few to set a threshold by (60 are enough): the shipped one stays",
            no.len()
        ));
    }
    advice
}

/// Whole or not at all: whoever reads the model meanwhile sees the old one.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = || format!("{} cannot be written", path.display());
    let name = path.file_name().with_context(failed)?;
    let mut beside = name.to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(beside);
    let written = fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // What is half written helps nobody; the error that counts is the first.
        drop(fs::remove_file(&beside));
    }
    written.with_context(failed)
}
