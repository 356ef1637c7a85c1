//! `botledger score eval`: verdicts against labels.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use botledger_domain::standing::ladder::LadderState;
use botledger_local::progress::{Progress, say};
use botledger_scoring::attack::AttackModel;
use botledger_scoring::calibrate::recall_at;
use botledger_scoring::content::{CATEGORIES, ContentModel};
use botledger_scoring::intent::{IntentModel, OUT_OF_SCOPE};
use botledger_scoring::spam::SpamModel;
use clap::Args;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Kind;
use super::judge::{Judge, JudgeArguments, Verdict};
use super::lines::{self, Label, Labelled, Mark, Subject};
use super::measure::{Answers, BinaryFigures, Calibration, Confusion, Counts, Latency, Mistake, share};
use super::train::{self, IntentArguments};

/// The labels are those of `score train`; personal data has `{"text", "spans": [{"start", "end", "type"}]}`,
/// a deviation `{"id", "events", "expected": [[state, milli-points], …]}`. Intents that the model does not
/// know, and "oos", are out of its scope. Exits with 1 when a trace is not as expected.
#[derive(Clone, Debug, Args)]
pub struct Eval {
    #[command(flatten)]
    judge: JudgeArguments,
    /// Labelled file; may be given several times
    #[arg(value_name = "FILE", required = true)]
    labelled: Vec<PathBuf>,
    /// Judge each row by a model that learned from the others: this many parts, by a hash of the text
    #[arg(long, value_name = "PARTS", conflicts_with = "model", value_parser = clap::value_parser!(u8).range(2..=50))]
    folds: Option<u8>,
    #[command(flatten)]
    intents: IntentArguments,
    /// Print JSON: the figures of the kind, shares as 0 to 1
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub(super) fn run(self) -> Result<u8> {
        let report = match self.judge.kind {
            Kind::Pii => pii(&self.judge.load()?, self.rows(lines::marked_line)?),
            Kind::Deviation => deviation(&self.judge.load()?, self.rows(lines::trace_line)?),
            Kind::Intent | Kind::Attack | Kind::Spam | Kind::Category => self.labelled()?,
        };
        if self.json {
            say(serde_json::to_string_pretty(&report)?);
        } else {
            for line in told(&report) {
                say(line);
            }
        }
        Ok(u8::from(
            matches!(report.figures, Figures::Deviation { ref different, .. } if !different.is_empty()),
        ))
    }

    fn rows<T>(&self, read: impl Fn(&str) -> Result<T> + Copy) -> Result<Vec<T>> {
        let mut rows = Vec::new();
        for file in &self.labelled {
            rows.extend(lines::open(file)?.rows(read)?);
        }
        if rows.is_empty() {
            bail!("there is nothing to measure in the file");
        }
        Ok(rows)
    }

    fn labelled(&self) -> Result<Report> {
        let progress = if self.json { Progress::silent() } else { Progress::begin() };
        let rows = self.rows(lines::labelled_line)?;
        let kind = self.judge.kind;
        // Said now: an answer to a row of another sort would be measured against nothing.
        match kind {
            Kind::Intent => drop(train::intents(&rows)?),
            Kind::Category => drop(train::contents(&rows)?),
            _ => drop(rows.iter().map(|row| train::yes_or_no(row, kind)).collect::<Result<Vec<_>>>()?),
        }
        let Some(folds) = self.folds else {
            let judge = self.judge.load()?;
            judge.warm();
            let answered = rows.iter().map(|row| answered(&judge, row)).collect();
            return Ok(report(kind, answered));
        };
        if self.judge.ladder.is_some() || !self.judge.pii_kinds.is_empty() {
            self.judge.load()?;
        }
        let part_of: Vec<u8> = rows.iter().map(|row| part(&row.text, folds)).collect();
        let mut all = Vec::with_capacity(rows.len());
        for fold in 0..folds {
            let others: Vec<Labelled> = rows
                .iter()
                .zip(&part_of)
                .filter(|(_, part)| **part != fold)
                .map(|(row, _)| row.clone())
                .collect();
            let judge = self.judge_of(kind, &others)?;
            judge.warm();
            let own = rows.iter().zip(&part_of).filter(|(_, part)| **part == fold);
            all.extend(own.map(|(row, _)| answered(&judge, row)));
            progress.step(format!("part {} of {folds}", fold + 1));
        }
        Ok(report(kind, all))
    }

    fn judge_of(&self, kind: Kind, rows: &[Labelled]) -> Result<Judge> {
        Ok(match kind {
            Kind::Intent => Judge::Intent(Box::new(
                IntentModel::train(&train::intents(rows)?, self.intents.options())
                    .context("no model can be made of the other parts")?,
            )),
            Kind::Attack => Judge::Attack(Box::new(AttackModel::train(&train::attacks(rows)?))),
            Kind::Spam => Judge::Spam(Box::new(SpamModel::train(&train::spams(rows)?))),
            Kind::Category => Judge::Category(Box::new(ContentModel::train(&train::contents(rows)?))),
            Kind::Pii | Kind::Deviation => bail!("--kind {} learns nothing: leave --folds out", kind.name()),
        })
    }
}

/// Equal texts are in the same part, and a part does not depend on the order of the file.
fn part(text: &str, folds: u8) -> u8 {
    let digest: [u8; 32] = Sha256::digest(text.trim()).into();
    u8::try_from(u16::from_be_bytes([digest[0], digest[1]]) % u16::from(folds))
        .expect("below the number of parts")
}

/// A row, what was said of it, and how long that took.
struct Answered {
    label: Label,
    source: Option<String>,
    verdict: Verdict,
    nanoseconds: u64,
    /// Whether the model knows the row's intent; of other kinds always so.
    known: bool,
}

fn answered(judge: &Judge, row: &Labelled) -> Answered {
    let (verdict, nanoseconds) = timed(judge, &Subject::Text(row.text.as_str().into()));
    let known = match (judge, &row.label) {
        (Judge::Intent(model), Label::Intent(intent)) => model.intents().binary_search(intent).is_ok(),
        _ => true,
    };
    Answered { label: row.label.clone(), source: row.source.clone(), verdict, nanoseconds, known }
}

fn timed(judge: &Judge, subject: &Subject<'_>) -> (Verdict, u64) {
    let begun = Instant::now();
    let verdict = judge.answer(subject, false);
    (verdict, u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// All figures of a measurement.
#[derive(Debug, Serialize)]
struct Report {
    kind: &'static str,
    rows: usize,
    #[serde(flatten)]
    figures: Figures,
    latency: Latency,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Figures {
    Intent(Box<IntentFigures>),
    Flag {
        #[serde(flatten)]
        all: BinaryFigures,
        /// Of the ordinary rows, one in a hundred may be flagged.
        recall_at_1_percent: Option<f64>,
        /// Rows that are judged confident.
        confident: Counts,
        by_source: BTreeMap<String, Counts>,
        calibration: Calibration,
    },
    Category {
        macro_f1: Option<f64>,
        macro_average_precision: Option<f64>,
        any: Option<BinaryFigures>,
        categories: BTreeMap<&'static str, BinaryFigures>,
    },
    Pii {
        #[serde(flatten)]
        all: SpanFigures,
        kinds: BTreeMap<String, SpanFigures>,
        /// Kinds with labels that are not looked for.
        not_looked_for: BTreeMap<String, usize>,
        /// Rows whose masked text, looked at again, still holds a find.
        leaking: usize,
    },
    Deviation {
        steps: usize,
        exact: usize,
        different: Vec<Difference>,
    },
}

#[derive(Debug, Serialize)]
struct IntentFigures {
    in_scope: usize,
    out_of_scope: usize,
    /// The best intent of rows in scope, whatever is said of their scope.
    accuracy: Option<f64>,
    macro_f1: Option<f64>,
    /// The intent where in scope was said, "oos" else, over all rows.
    accuracy_with_scope: Option<f64>,
    auroc: Option<f64>,
    /// By the model's own decision.
    false_rejection: Option<f64>,
    out_of_scope_recall: Option<f64>,
    /// Were the threshold moved to where one in twenty rows in scope is rejected.
    recall_at_5_percent: Option<f64>,
    /// Of `confidence`, the probability that exactly this intent is asked for.
    confidence: Calibration,
    /// Of `oos_score`, both sides weighed the same.
    oos_score: Calibration,
    worst: Vec<Mistake>,
}

/// Exactly these stretches with exactly this kind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct SpanFigures {
    labelled: usize,
    reported: usize,
    exact: usize,
    recall: Option<f64>,
    precision: Option<f64>,
}

/// The first step of a trace that is not as expected.
#[derive(Debug, Serialize)]
struct Difference {
    id: String,
    /// Counted from 1.
    step: usize,
    expected: Option<(String, u64)>,
    found: Option<(String, u64)>,
}

fn report(kind: Kind, answered: Vec<Answered>) -> Report {
    let latency = Latency::of(answered.iter().map(|row| row.nanoseconds).collect());
    let rows = answered.len();
    let figures = match kind {
        Kind::Intent => intent_figures(&answered),
        Kind::Category => category_figures(&answered),
        _ => flag_figures(&answered),
    };
    Report { kind: kind.name(), rows, figures, latency }
}

fn intent_figures(answered: &[Answered]) -> Figures {
    let mut confusion = Confusion::default();
    let mut scope = Answers::default();
    let mut right_with_scope = 0;
    let mut confidences = Vec::new();
    for row in answered {
        let (Label::Intent(so), Verdict::Intent { intent, oos_score, oos, confidence, .. }) =
            (&row.label, &row.verdict)
        else {
            continue;
        };
        let out_of_scope = so == OUT_OF_SCOPE || !row.known;
        scope.add(out_of_scope, *oos, *oos_score);
        if !out_of_scope {
            confusion.add(so, intent);
        }
        let right = if out_of_scope { *oos } else { !oos && so == intent };
        right_with_scope += usize::from(right);
        confidences.push((*confidence, !out_of_scope && so == intent));
    }
    let (inside, outside) = scope.scores();
    let figures = scope.figures();
    Figures::Intent(Box::new(IntentFigures {
        in_scope: inside.len(),
        out_of_scope: outside.len(),
        accuracy: confusion.accuracy(),
        macro_f1: confusion.macro_f1(),
        accuracy_with_scope: share(right_with_scope, answered.len()),
        auroc: figures.as_ref().and_then(|figures| figures.auroc),
        false_rejection: scope.counts.false_positive_rate(),
        out_of_scope_recall: scope.counts.recall(),
        recall_at_5_percent: recall_at(inside, outside, 0.05),
        confidence: Calibration::of(&confidences),
        oos_score: Calibration::of(&balanced(&scope)),
        worst: confusion.worst(),
    }))
}

/// The rarer side as often as the commoner one: the probability is that of an even prior.
fn balanced(answers: &Answers) -> Vec<(f64, bool)> {
    let (no, yes) = answers.scores();
    let times = |own: usize, other: usize| other.checked_div(own).unwrap_or(0).max(1);
    let (no_times, yes_times) = (times(no.len(), yes.len()), times(yes.len(), no.len()));
    answers
        .outcomes()
        .into_iter()
        .flat_map(|(score, so)| std::iter::repeat_n((score, so), if so { yes_times } else { no_times }))
        .collect()
}

fn flag_figures(answered: &[Answered]) -> Figures {
    let mut all = Answers::default();
    let mut confident = Counts::default();
    let mut by_source: BTreeMap<String, Counts> = BTreeMap::new();
    for row in answered {
        let (Label::Yes(so), Verdict::Flag { flagged, level, score, .. }) = (&row.label, &row.verdict) else {
            continue;
        };
        all.add(*so, *flagged, f64::from(*score));
        confident.add(*so, *level == Some("confident"));
        if let Some(source) = &row.source {
            by_source.entry(source.clone()).or_default().add(*so, *flagged);
        }
    }
    let (no, yes) = all.scores();
    Figures::Flag {
        recall_at_1_percent: recall_at(no, yes, 0.01),
        confident,
        by_source,
        calibration: Calibration::of(&all.outcomes()),
        all: all.figures().expect("there are rows, and all of them are of this sort"),
    }
}

fn category_figures(answered: &[Answered]) -> Figures {
    let mut by_category: BTreeMap<&'static str, Answers> = BTreeMap::new();
    let mut any = Answers::default();
    for row in answered {
        let yes = BTreeMap::new();
        let labels = match &row.label {
            Label::Categories(labels) => labels.clone(),
            Label::Yes(so) => BTreeMap::from([("illicit".to_owned(), *so)]),
            Label::Intent(_) => yes,
        };
        let Verdict::Category { categories, flagged, .. } = &row.verdict else { continue };
        let mut said = (false, false, 0.0_f64);
        for name in CATEGORIES {
            let Some(so) = labels.get(name) else { continue };
            let score = categories.get(name).copied().unwrap_or(0.0);
            let flag = flagged.contains(&name);
            by_category.entry(name).or_default().add(*so, flag, score);
            said = (said.0 || *so, said.1 || flag, said.2.max(score));
        }
        if !labels.is_empty() {
            any.add(said.0, said.1, said.2);
        }
    }
    let categories: BTreeMap<&'static str, BinaryFigures> =
        by_category.into_iter().filter_map(|(name, answers)| Some((name, answers.figures()?))).collect();
    let mean = |figure: fn(&BinaryFigures) -> Option<f64>| {
        let known: Vec<f64> =
            categories.values().filter(|figures| figures.positives > 0).filter_map(figure).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    };
    Figures::Category {
        macro_f1: mean(|figures| figures.f1),
        macro_average_precision: mean(|figures| figures.average_precision),
        any: any.figures(),
        categories,
    }
}

fn pii(judge: &Judge, rows: Vec<lines::Marked>) -> Report {
    let Judge::Pii(looked_for) = judge else { unreachable!("personal data is asked for") };
    let looked_for: BTreeSet<&str> = botledger_scoring::pii::PiiKind::ALL
        .iter()
        .filter(|kind| looked_for.contains(**kind))
        .map(|kind| kind.as_str())
        .collect();
    judge.warm();
    let mut kinds: BTreeMap<String, SpanFigures> = BTreeMap::new();
    let mut not_looked_for = BTreeMap::new();
    let mut leaking = 0;
    let mut times = Vec::with_capacity(rows.len());
    for row in &rows {
        let (verdict, time) = timed(judge, &Subject::Text(row.text.as_str().into()));
        times.push(time);
        let Verdict::Pii { spans, masked } = verdict else { continue };
        let found: BTreeSet<Mark> = spans
            .iter()
            .map(|span| Mark { start: span.start, end: span.end, kind: span.kind.to_owned() })
            .collect();
        for mark in &found {
            kinds.entry(mark.kind.clone()).or_default().reported += 1;
        }
        for mark in row.spans.iter().collect::<BTreeSet<_>>() {
            if !looked_for.contains(mark.kind.as_str()) {
                *not_looked_for.entry(mark.kind.clone()).or_default() += 1;
                continue;
            }
            let figures = kinds.entry(mark.kind.clone()).or_default();
            figures.labelled += 1;
            figures.exact += usize::from(found.contains(mark));
        }
        let again = judge.answer(&Subject::Text(masked.into()), false);
        leaking += usize::from(matches!(again, Verdict::Pii { spans, .. } if !spans.is_empty()));
    }
    let mut all = SpanFigures::default();
    for figures in kinds.values_mut() {
        all.labelled += figures.labelled;
        all.reported += figures.reported;
        all.exact += figures.exact;
        *figures = figures.with_shares();
    }
    let latency = Latency::of(times);
    let figures = Figures::Pii { all: all.with_shares(), kinds, not_looked_for, leaking };
    Report { kind: Kind::Pii.name(), rows: rows.len(), figures, latency }
}

impl SpanFigures {
    fn with_shares(self) -> Self {
        Self { recall: share(self.exact, self.labelled), precision: share(self.exact, self.reported), ..self }
    }
}

fn deviation(judge: &Judge, rows: Vec<lines::Trace>) -> Report {
    let mut different = Vec::new();
    let mut steps_seen = 0;
    let mut times = Vec::with_capacity(rows.len());
    let count = rows.len();
    for row in rows {
        let (verdict, time) = timed(judge, &Subject::Events(row.events));
        times.push(time);
        let Verdict::Deviation { steps } = verdict else { continue };
        steps_seen += steps.len();
        let name = |(state, score): &(LadderState, u64)| (state.as_ref().to_owned(), *score);
        let found: Vec<(String, u64)> = steps.iter().map(name).collect();
        let longest = found.len().max(row.expected.len());
        if let Some(at) = (0..longest).find(|at| found.get(*at) != row.expected.get(*at)) {
            different.push(Difference {
                id: row.id,
                step: at + 1,
                expected: row.expected.get(at).cloned(),
                found: found.get(at).cloned(),
            });
        }
    }
    let exact = count - different.len();
    let figures = Figures::Deviation { steps: steps_seen, exact, different };
    Report { kind: Kind::Deviation.name(), rows: count, figures, latency: Latency::of(times) }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn told(report: &Report) -> Vec<String> {
    let mut lines = match &report.figures {
        Figures::Intent(figures) => told_intent(figures),
        Figures::Flag { all, recall_at_1_percent, confident, by_source, calibration } => {
            let mut lines = told_binary(all);
            lines.push(format!(
                "recall were one ordinary row in a hundred flagged: {}",
                percent(*recall_at_1_percent)
            ));
            lines.push(format!(
                "confident: {} of the positives, {} of the others",
                percent(confident.recall()),
                percent(confident.false_positive_rate())
            ));
            for (source, counts) in by_source {
                lines.push(format!(
                    "  {source}: recall {}, flagged of the others {}",
                    percent(counts.recall()),
                    percent(counts.false_positive_rate())
                ));
            }
            lines.extend(told_calibration("score", calibration));
            lines
        }
        Figures::Category { macro_f1, macro_average_precision, any, categories } => {
            let mut lines: Vec<String> = categories
                .iter()
                .map(|(name, figures)| {
                    format!(
                        "{name:<8} {:>5} of {:>5}: average precision {}, recall {}, precision {}, F1 {}, AUROC {}",
                        figures.positives,
                        figures.positives + figures.negatives,
                        percent(figures.average_precision),
                        percent(figures.recall),
                        percent(figures.precision),
                        percent(figures.f1),
                        percent(figures.auroc)
                    )
                })
                .collect();
            lines.push(format!(
                "mean over categories: F1 {}, average precision {}",
                percent(*macro_f1),
                percent(*macro_average_precision)
            ));
            if let Some(any) = any {
                lines.push(format!(
                    "any category: recall {}, precision {}, AUROC {}",
                    percent(any.recall),
                    percent(any.precision),
                    percent(any.auroc)
                ));
            }
            lines
        }
        Figures::Pii { all, kinds, not_looked_for, leaking } => {
            let line = |name: &str, figures: &SpanFigures| {
                format!(
                    "{name:<20} labelled {:>5}, reported {:>5}, exact {:>5}: recall {}, precision {}",
                    figures.labelled,
                    figures.reported,
                    figures.exact,
                    percent(figures.recall),
                    percent(figures.precision)
                )
            };
            let mut lines: Vec<String> = kinds.iter().map(|(name, figures)| line(name, figures)).collect();
            lines.push(line("all", all));
            if !not_looked_for.is_empty() {
                let names: Vec<String> =
                    not_looked_for.iter().map(|(name, count)| format!("{name} {count}")).collect();
                lines.push(format!("labelled and not looked for: {}", names.join(", ")));
            }
            lines.push(format!("masked texts that still hold a find: {leaking}"));
            lines
        }
        Figures::Deviation { steps, exact, different } => {
            let mut lines = vec![format!("{exact} of {} traces exact, {steps} steps", report.rows)];
            let shown = |step: &Option<(String, u64)>| {
                step.as_ref()
                    .map_or_else(|| "nothing".to_owned(), |(state, score)| format!("{state} {score}"))
            };
            for one in different {
                lines.push(format!(
                    "{} DIFFERS at step {}: expected {}, found {}",
                    one.id,
                    one.step,
                    shown(&one.expected),
                    shown(&one.found)
                ));
            }
            lines
        }
    };
    let Latency { p50_us, p99_us, most_us } = report.latency;
    lines
        .push(format!("time: p50 {p50_us} µs, p99 {p99_us} µs, most {most_us} µs over {} rows", report.rows));
    lines
}

fn told_intent(figures: &IntentFigures) -> Vec<String> {
    let mut lines = vec![
        format!("{} rows in scope, {} out of scope", figures.in_scope, figures.out_of_scope),
        format!("right intent: {}, macro F1 {}", percent(figures.accuracy), percent(figures.macro_f1)),
        format!("right with the decision on scope: {}", percent(figures.accuracy_with_scope)),
        format!(
            "out of scope: AUROC {}, recall {} with {} of the rows in scope rejected; {} were that 5 %",
            percent(figures.auroc),
            percent(figures.out_of_scope_recall),
            percent(figures.false_rejection),
            percent(figures.recall_at_5_percent)
        ),
    ];
    lines.extend(told_calibration("confidence", &figures.confidence));
    lines.extend(told_calibration("oos_score", &figures.oos_score));
    for mistake in &figures.worst {
        lines.push(format!("  {} taken for {}: {} times", mistake.is, mistake.taken_for, mistake.times));
    }
    lines
}

fn told_binary(figures: &BinaryFigures) -> Vec<String> {
    vec![
        format!("{} positives, {} others", figures.positives, figures.negatives),
        format!(
            "recall {}, flagged of the others {}, precision {}, F1 {}, accuracy {}",
            percent(figures.recall),
            percent(figures.false_positive_rate),
            percent(figures.precision),
            percent(figures.f1),
            percent(figures.accuracy)
        ),
        format!("AUROC {}, average precision {}", percent(figures.auroc), percent(figures.average_precision)),
    ]
}

fn told_calibration(name: &str, calibration: &Calibration) -> Vec<String> {
    let mut lines = vec![format!("calibration of {name}: expected error {}", percent(calibration.ece))];
    for bin in &calibration.bins {
        lines.push(format!(
            "  {:.1} to {:.1}: stated {}, came true {} ({} rows)",
            bin.from,
            bin.from + 0.1,
            percent(Some(bin.stated)),
            percent(Some(bin.observed)),
            bin.count
        ));
    }
    lines
}
