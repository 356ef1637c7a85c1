//! Personal data: found exactly, masked, put back.

use std::{collections::BTreeMap, path::PathBuf};

use botledger_scoring::pii::{self, PiiKind, PiiKinds, PiiSpan};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// A labelled text of the shared data.
#[derive(Deserialize)]
struct Row {
    id: String,
    text: String,
    spans: Vec<Label>,
}

#[derive(Deserialize)]
struct Label {
    start: u32,
    end: u32,
    #[serde(rename = "type")]
    kind: String,
}

/// The rows of a shared data set whose id hashes to the given half: one half is for looking at errors, the
/// other for reporting. Absent, with a word why, where the data is not at hand.
fn rows(set: &str, half: u8) -> Option<Vec<Row>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/datasets")
        .join(set)
        .join("train.jsonl");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: the shared data set {set} is not at hand");
        return None;
    };
    let rows = text.lines().map(|line| serde_json::from_str::<Row>(line).expect("a row"));
    Some(rows.filter(|row| Sha256::digest(row.id.as_bytes())[0] % 2 == half).collect())
}

/// Counts of one kind.
#[derive(Clone, Copy, Default)]
struct Tally {
    labelled: u32,
    reported: u32,
    exact: u32,
}

impl Tally {
    fn recall_permille(self) -> u32 {
        (self.exact * 1_000).checked_div(self.labelled).unwrap_or(1_000)
    }

    fn precision_permille(self) -> u32 {
        (self.exact * 1_000).checked_div(self.reported).unwrap_or(1_000)
    }
}

/// Exact comparison of place and kind; what is reported of kinds the labels do not have counts as wrong.
fn tallies(rows: &[Row], kinds: PiiKinds, rename: impl Fn(PiiKind) -> PiiKind) -> BTreeMap<String, Tally> {
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    for row in rows {
        let found: Vec<_> = pii::find_kinds(&row.text, kinds)
            .into_iter()
            .map(|span| (span.start, span.end, rename(span.kind).as_str().to_owned()))
            .collect();
        let labels: Vec<_> =
            row.spans.iter().map(|label| (label.start, label.end, label.kind.clone())).collect();
        for label in &labels {
            let tally = tallies.entry(label.2.clone()).or_default();
            tally.labelled += 1;
            if found.contains(label) {
                tally.exact += 1;
            } else if std::env::var_os("PII_ERRORS").is_some() && PiiKind::parse(&label.2).is_some() {
                println!("missed {label:?} in {:?}", row.text);
            }
        }
        for span in &found {
            tallies.entry(span.2.clone()).or_default().reported += 1;
            if std::env::var_os("PII_ERRORS").is_some() && !labels.contains(span) {
                let value: String =
                    row.text.chars().skip(span.0 as usize).take((span.1 - span.0) as usize).collect();
                println!("wrong {span:?} {value:?} in {:?}", row.text);
            }
        }
    }
    for (kind, tally) in &tallies {
        println!(
            "{kind:20} labelled {:4} reported {:4} recall {:5.1} % precision {:5.1} %",
            tally.labelled,
            tally.reported,
            f64::from(tally.recall_permille()) / 10.0,
            f64::from(tally.precision_permille()) / 10.0
        );
    }
    tallies
}

fn total(tallies: &BTreeMap<String, Tally>) -> Tally {
    tallies.values().fold(Tally::default(), |sum, tally| Tally {
        labelled: sum.labelled + tally.labelled,
        reported: sum.reported + tally.reported,
        exact: sum.exact + tally.exact,
    })
}

#[test]
fn structured_data_is_found_exactly_and_nothing_else_is() {
    let half = std::env::var("PII_HALF").map_or(1, |half| half.parse().expect("0 or 1"));
    let Some(rows) = rows("pii_structured", half) else { return };
    let tallies = tallies(&rows, PiiKinds::personal(), |kind| kind);
    let total = total(&tallies);
    assert!(total.recall_permille() >= 970, "recall {}", total.recall_permille());
    assert!(total.precision_permille() >= 970, "precision {}", total.precision_permille());
}

#[test]
fn presidio_data() {
    let half = std::env::var("PII_HALF").map_or(1, |half| half.parse().expect("0 or 1"));
    let Some(rows) = rows("pii_presidio", half) else { return };
    println!("personal");
    tallies(&rows, PiiKinds::personal(), |kind| kind);
    println!("all");
    tallies(&rows, PiiKinds::ALL, |kind| kind);
    let _: Option<PiiSpan> = None;
}
