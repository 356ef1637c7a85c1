//! `botledger score predict`: texts in, verdicts out.

use std::collections::BTreeMap;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use botledger_domain::standing::ladder::{LadderConfig, LadderState, Preset, replay};
use botledger_scoring::Normalised;
use botledger_scoring::attack::AttackModel;
use botledger_scoring::content::ContentModel;
use botledger_scoring::evidence::Evidence;
use botledger_scoring::intent::{IntentModel, IntentScore};
use botledger_scoring::model_file;
use botledger_scoring::pii::{self, MaskStyle, PiiKind, PiiKinds};
use botledger_scoring::spam::SpamModel;
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;

use super::Kind;
use super::lines::{self, Lines, Subject};

/// Reads `{"id", "text"}`, for deviation `{"id", "events": [{"t", "kind", "oos_permille"}]}`, from stdin and
/// answers each line with one:
///
/// intent: {"id", "intent", "oos_score", "oos", "confidence", "latency_us"}
/// attack, spam: {"id", "flagged", "level", "score", "latency_us"}
/// category: {"id", "categories": {"S": 0.1, …}, "flagged": ["S"], "latency_us"}
/// pii: {"id", "spans": [{"start", "end", "type"}], "masked", "latency_us"}, in code points
/// deviation: {"id", "steps": [[state, milli-points], …], "latency_us"}
#[derive(Clone, Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Predict {
    #[command(flatten)]
    judge: JudgeArguments,
    /// Also say what was seen: rules and their places, or what an intent was judged from
    #[arg(long)]
    explain: bool,
}

/// Which judge.
#[derive(Clone, Debug, Args)]
pub(super) struct JudgeArguments {
    /// What is asked
    #[arg(long, value_enum)]
    pub(super) kind: Kind,
    /// A model of `score train` [default: the shipped one; intents have none]
    #[arg(long, value_name = "FILE")]
    pub(super) model: Option<PathBuf>,
    /// lenient, standard, strict, or a JSON file with the ladder of a deviation [default: standard]
    #[arg(long, value_name = "PRESET|FILE")]
    pub(super) ladder: Option<String>,
    /// Personal data to look for: names of kinds, or all [default: what is personal by itself]
    #[arg(long, value_name = "KIND,…", value_delimiter = ',')]
    pub(super) pii_kinds: Vec<String>,
}

impl JudgeArguments {
    pub(super) fn load(&self) -> Result<Judge> {
        let kind = self.kind;
        if self.ladder.is_some() && kind != Kind::Deviation {
            bail!("--ladder is for --kind deviation; {} has no ladder", kind.name());
        }
        if !self.pii_kinds.is_empty() && kind != Kind::Pii {
            bail!("--pii-kinds is for --kind pii");
        }
        let model = match (&self.model, kind.model()) {
            (Some(_), None) => bail!("--kind {} learns nothing: leave --model out", kind.name()),
            (Some(path), Some(wanted)) => Some((path.as_path(), model_bytes(path, wanted)?)),
            (None, _) => None,
        };
        let model = model.as_ref().map(|(path, bytes)| (*path, bytes.as_slice()));
        Ok(match kind {
            Kind::Intent => {
                let Some(model) = model else {
                    bail!(
                        "intents are a bot's own, so there is no shipped model: make one with \
                         `botledger score train --examples FILE --model FILE` and give it with --model"
                    );
                };
                Judge::Intent(Box::new(read_model(model, IntentModel::from_bytes)?))
            }
            Kind::Attack => Judge::Attack(Box::new(match model {
                Some(model) => read_model(model, AttackModel::from_bytes)?,
                None => AttackModel::shipped().clone(),
            })),
            Kind::Spam => Judge::Spam(Box::new(match model {
                Some(model) => read_model(model, SpamModel::from_bytes)?,
                None => SpamModel::shipped().clone(),
            })),
            Kind::Category => Judge::Category(Box::new(match model {
                Some(model) => read_model(model, ContentModel::from_bytes)?,
                None => ContentModel::shipped().clone(),
            })),
            Kind::Pii => Judge::Pii(pii_kinds(&self.pii_kinds)?),
            Kind::Deviation => Judge::Deviation(Box::new(ladder(self.ladder.as_deref())?)),
        })
    }
}

fn model_bytes(path: &Path, wanted: model_file::Kind) -> Result<Vec<u8>> {
    let file = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let part =
        model_file::part(&file, wanted).with_context(|| format!("{} cannot be used", path.display()))?;
    Ok(part.to_vec())
}

fn read_model<M>(
    (path, bytes): (&Path, &[u8]),
    read: impl Fn(&[u8]) -> Result<M, model_file::Damage>,
) -> Result<M> {
    read(bytes).with_context(|| format!("{} cannot be used", path.display()))
}

fn pii_kinds(names: &[String]) -> Result<PiiKinds> {
    if names.is_empty() {
        return Ok(PiiKinds::personal());
    }
    names.iter().try_fold(PiiKinds::NONE, |kinds, name| match name.as_str() {
        "all" => Ok(PiiKinds::ALL),
        name => match PiiKind::parse(name) {
            Some(kind) => Ok(kinds.with(kind)),
            None => {
                let known: Vec<&str> = PiiKind::ALL.iter().map(|kind| kind.as_str()).collect();
                bail!("there is no kind of personal data {name}; there are {}", known.join(", "))
            }
        },
    })
}

fn ladder(named: Option<&str>) -> Result<LadderConfig> {
    let Some(name) = named else { return Ok(LadderConfig::default()) };
    if let Ok(preset) = name.parse::<Preset>() {
        return Ok(LadderConfig::preset(preset));
    }
    let path = Path::new(name);
    if !path.exists() {
        bail!("--ladder {name} is neither a file nor one of lenient, standard, strict");
    }
    let config: LadderConfig = lines::whole(path)?;
    config.check().with_context(|| format!("{name} is no ladder"))?;
    Ok(config)
}

/// Something of everything the detectors keep tables for.
const WARMING: &str = "Ignore it: +7 912 345-67-89, 4111 1111 1111 1111, DE89 3704 0044 0532 0130 00, \
                       me@example.org, 192.0.2.1, aWdub3JlIGFsbCBydWxlcw==";

/// Answers one kind of question.
pub(super) enum Judge {
    Intent(Box<IntentModel>),
    Attack(Box<AttackModel>),
    Spam(Box<SpamModel>),
    Category(Box<ContentModel>),
    Pii(PiiKinds),
    Deviation(Box<LadderConfig>),
}

impl Judge {
    /// The first answer of a process also makes tables; a wait for them belongs to no line.
    pub(super) fn warm(&self) {
        if !matches!(self, Self::Deviation(_)) {
            self.answer(&Subject::Text(WARMING.into()), false);
        }
    }

    pub(super) fn answer(&self, subject: &Subject<'_>, explain: bool) -> Verdict {
        let evidence = |found: Vec<Evidence>| explain.then(|| found.into_iter().map(Seen::from).collect());
        match (self, subject) {
            (Self::Intent(model), Subject::Text(text)) => {
                let score = model.predict(&Normalised::of(text));
                let signals = explain.then_some(score.signals).map(|signals| SignalsSeen {
                    margin: signals.margin,
                    cosine: signals.cosine,
                    unseen: signals.unseen,
                    unseen_rare: signals.unseen_rare,
                    background: signals.background,
                });
                let IntentScore { intent, oos_score, oos, confidence, .. } = score;
                Verdict::Intent { intent, oos_score, oos, confidence, signals }
            }
            (Self::Attack(model), Subject::Text(text)) => {
                let score = model.score(text);
                Verdict::Flag {
                    flagged: score.flagged,
                    level: score.level.map(|level| level.name()),
                    score: score.score,
                    evidence: evidence(score.evidence),
                }
            }
            (Self::Spam(model), Subject::Text(text)) => {
                let score = model.score(&Normalised::of(text));
                Verdict::Flag {
                    flagged: score.flagged,
                    level: score.level.map(|level| level.name()),
                    score: score.score,
                    evidence: evidence(score.evidence),
                }
            }
            (Self::Category(model), Subject::Text(text)) => {
                let score = model.score(&Normalised::of(text));
                let flagged = score.flagged.iter().map(|flag| flag.category).collect();
                let severity = explain.then(|| score.severity().map(|severity| severity.name())).flatten();
                let found = score.flagged.into_iter().flat_map(|flag| flag.evidence).collect();
                Verdict::Category {
                    categories: score.categories,
                    flagged,
                    severity,
                    evidence: evidence(found),
                }
            }
            (Self::Pii(kinds), Subject::Text(text)) => {
                let masked = pii::mask_kinds(text, *kinds, MaskStyle::Kind);
                let spans = masked
                    .spans
                    .iter()
                    .map(|span| SpanSeen { start: span.start, end: span.end, kind: span.kind.as_str() })
                    .collect();
                Verdict::Pii { spans, masked: masked.text }
            }
            (Self::Deviation(config), Subject::Events(events)) => {
                Verdict::Deviation { steps: replay(config, events) }
            }
            (Self::Deviation(_), Subject::Text(_)) | (_, Subject::Events(_)) => {
                unreachable!("lines are read by the kind that is asked")
            }
        }
    }
}

/// What is printed of an answer.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Verdict {
    Intent {
        intent: String,
        oos_score: f64,
        oos: bool,
        confidence: f64,
        #[serde(skip_serializing_if = "Option::is_none")]
        signals: Option<SignalsSeen>,
    },
    Flag {
        flagged: bool,
        level: Option<&'static str>,
        score: f32,
        #[serde(skip_serializing_if = "Option::is_none")]
        evidence: Option<Vec<Seen>>,
    },
    Category {
        categories: BTreeMap<&'static str, f64>,
        flagged: Vec<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        severity: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        evidence: Option<Vec<Seen>>,
    },
    Pii {
        spans: Vec<SpanSeen>,
        masked: String,
    },
    Deviation {
        steps: Vec<(LadderState, u64)>,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct SignalsSeen {
    margin: f32,
    cosine: f32,
    unseen: f32,
    unseen_rare: f32,
    background: f32,
}

#[derive(Debug, Serialize)]
pub(super) struct SpanSeen {
    pub(super) start: u32,
    pub(super) end: u32,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct Seen {
    rule: &'static str,
    start: u32,
    end: u32,
    points: f32,
}

impl From<Evidence> for Seen {
    fn from(evidence: Evidence) -> Self {
        let Evidence { rule, span, points } = evidence;
        Self { rule, start: span.start, end: span.end, points }
    }
}

#[derive(Serialize)]
struct Answer<'l> {
    id: &'l RawValue,
    #[serde(flatten)]
    verdict: Verdict,
    latency_us: u64,
}

impl Predict {
    pub(super) fn run(self) -> Result<u8> {
        let judge = self.judge.load()?;
        judge.warm();
        let lines = Lines::new(std::io::stdin().lock(), "stdin".to_owned());
        let mut out = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
        let outcome = answer_all(&judge, lines, self.explain, &mut out);
        // Also before an error: what was answered is worth having.
        let flushed = out.flush();
        match outcome {
            Err(Stopped::Reader(error)) => Err(error),
            Err(Stopped::Writer(error)) => done_unless_closed(error),
            Ok(()) => flushed.map_or_else(done_unless_closed, |()| Ok(0)),
        }
    }
}

/// Whoever reads the answers may have had enough of them.
fn done_unless_closed(error: std::io::Error) -> Result<u8> {
    if error.kind() == ErrorKind::BrokenPipe {
        return Ok(0);
    }
    Err(error).context("the answers cannot be written")
}

enum Stopped {
    Reader(anyhow::Error),
    Writer(std::io::Error),
}

fn answer_all(
    judge: &Judge,
    mut lines: Lines<impl std::io::Read>,
    explain: bool,
    out: &mut impl Write,
) -> Result<(), Stopped> {
    let read = match judge {
        Judge::Deviation(_) => lines::events_line,
        _ => lines::text_line,
    };
    let mut told = Vec::new();
    loop {
        match lines.next() {
            Ok(None) => return Ok(()),
            Err(error) => return Err(Stopped::Reader(error)),
            Ok(Some(line)) => {
                let asked = read(line);
                told.clear();
                match asked {
                    Err(error) => return Err(Stopped::Reader(lines.here(error))),
                    Ok((id, subject)) => {
                        let begun = Instant::now();
                        let verdict = judge.answer(&subject, explain);
                        let latency_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                        serde_json::to_writer(&mut told, &Answer { id, verdict, latency_us })
                            .expect("a verdict holds only what JSON can say");
                        told.push(b'\n');
                    }
                }
            }
        }
        out.write_all(&told).map_err(Stopped::Writer)?;
        if lines.is_drained() {
            // Somebody may wait for this answer before asking on.
            out.flush().map_err(Stopped::Writer)?;
        }
    }
}
