//! How good verdicts are: figures over pairs of what was said and what is so.

use std::collections::{BTreeMap, BTreeSet};

use botledger_scoring::calibrate::{auroc, average_precision, expected_calibration_error, reliability};
use serde::Serialize;

/// Pairs of names that are shown when one is taken for the other.
const WORST_PAIRS: usize = 10;

/// Microseconds per answer.
#[derive(Debug, Default, Serialize)]
pub(super) struct Latency {
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) most_us: f64,
}

impl Latency {
    pub(super) fn of(mut nanoseconds: Vec<u64>) -> Self {
        nanoseconds.sort_unstable();
        let at = |share: f64| {
            let place = (nanoseconds.len() as f64 * share).ceil() as usize;
            nanoseconds.get(place.max(1) - 1).map_or(0.0, |time| (*time / 100) as f64 / 10.0)
        };
        Self { p50_us: at(0.50), p99_us: at(0.99), most_us: at(1.0) }
    }
}

/// Ten bins and their mean error.
#[derive(Debug, Serialize)]
pub(super) struct Calibration {
    /// Expected calibration error.
    pub(super) ece: Option<f64>,
    /// Bins of a tenth each that hold anything: how many, what was stated, what came true.
    pub(super) bins: Vec<ReliabilityBin>,
}

#[derive(Debug, Serialize)]
pub(super) struct ReliabilityBin {
    pub(super) from: f64,
    pub(super) count: usize,
    pub(super) stated: f64,
    pub(super) observed: f64,
}

impl Calibration {
    pub(super) fn of(outcomes: &[(f64, bool)]) -> Self {
        let bins = reliability(outcomes)
            .iter()
            .enumerate()
            .filter(|(_, bin)| bin.count > 0)
            .map(|(tenth, bin)| ReliabilityBin {
                from: tenth as f64 / 10.0,
                count: bin.count,
                stated: bin.stated,
                observed: bin.observed,
            })
            .collect();
        Self { ece: expected_calibration_error(outcomes), bins }
    }
}

/// Yes and no, said and so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    pub(super) true_positives: usize,
    pub(super) false_positives: usize,
    pub(super) false_negatives: usize,
    pub(super) true_negatives: usize,
}

impl Counts {
    pub(super) fn add(&mut self, so: bool, said: bool) {
        let counter = match (so, said) {
            (true, true) => &mut self.true_positives,
            (false, true) => &mut self.false_positives,
            (true, false) => &mut self.false_negatives,
            (false, false) => &mut self.true_negatives,
        };
        *counter += 1;
    }

    pub(super) fn recall(self) -> Option<f64> {
        share(self.true_positives, self.true_positives + self.false_negatives)
    }

    pub(super) fn precision(self) -> Option<f64> {
        share(self.true_positives, self.true_positives + self.false_positives)
    }

    /// Of what is not so, what was said to be.
    pub(super) fn false_positive_rate(self) -> Option<f64> {
        share(self.false_positives, self.false_positives + self.true_negatives)
    }

    pub(super) fn f1(self) -> Option<f64> {
        let Self { true_positives, false_positives, false_negatives, .. } = self;
        share(2 * true_positives, 2 * true_positives + false_positives + false_negatives)
    }

    pub(super) fn accuracy(self) -> Option<f64> {
        let right = self.true_positives + self.true_negatives;
        share(right, right + self.false_positives + self.false_negatives)
    }
}

pub(super) fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// A question of yes or no over a file.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) counts: Counts,
    yes: Vec<f64>,
    no: Vec<f64>,
}

impl Answers {
    pub(super) fn add(&mut self, so: bool, said: bool, score: f64) {
        self.counts.add(so, said);
        if so { &mut self.yes } else { &mut self.no }.push(score);
    }

    pub(super) fn figures(&self) -> Option<BinaryFigures> {
        let counts = self.counts;
        (!(self.yes.is_empty() && self.no.is_empty())).then(|| BinaryFigures {
            positives: self.yes.len(),
            negatives: self.no.len(),
            counts,
            accuracy: counts.accuracy(),
            recall: counts.recall(),
            precision: counts.precision(),
            f1: counts.f1(),
            false_positive_rate: counts.false_positive_rate(),
            auroc: auroc(&self.no, &self.yes),
            average_precision: average_precision(&self.no, &self.yes),
        })
    }

    pub(super) fn outcomes(&self) -> Vec<(f64, bool)> {
        let with = |scores: &'_ [f64], so: bool| scores.iter().map(move |s| (*s, so)).collect::<Vec<_>>();
        [with(&self.no, false), with(&self.yes, true)].concat()
    }

    pub(super) fn scores(&self) -> (&[f64], &[f64]) {
        (&self.no, &self.yes)
    }
}

#[derive(Debug, Serialize)]
pub(super) struct BinaryFigures {
    pub(super) positives: usize,
    pub(super) negatives: usize,
    pub(super) counts: Counts,
    pub(super) accuracy: Option<f64>,
    pub(super) recall: Option<f64>,
    pub(super) precision: Option<f64>,
    pub(super) f1: Option<f64>,
    pub(super) false_positive_rate: Option<f64>,
    pub(super) auroc: Option<f64>,
    pub(super) average_precision: Option<f64>,
}

/// What is so by what was said, for questions with many answers.
#[derive(Debug, Default)]
pub(super) struct Confusion(BTreeMap<(String, String), usize>);

/// One thing taken for another.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Mistake {
    pub(super) is: String,
    pub(super) taken_for: String,
    pub(super) times: usize,
}

impl Confusion {
    pub(super) fn add(&mut self, so: &str, said: &str) {
        *self.0.entry((so.to_owned(), said.to_owned())).or_default() += 1;
    }

    fn total(&self) -> usize {
        self.0.values().sum()
    }

    pub(super) fn accuracy(&self) -> Option<f64> {
        let right = self.0.iter().filter(|((so, said), _)| so == said).map(|(_, times)| times).sum();
        share(right, self.total())
    }

    /// Mean F1 over the names that are so at least once.
    pub(super) fn macro_f1(&self) -> Option<f64> {
        let names: BTreeSet<&str> = self.0.keys().map(|(so, _)| so.as_str()).collect();
        let (mut so_times, mut said_times) = (BTreeMap::new(), BTreeMap::new());
        for ((so, said), times) in &self.0 {
            *so_times.entry(so.as_str()).or_insert(0) += times;
            *said_times.entry(said.as_str()).or_insert(0) += times;
        }
        let f1 = |name: &&str| {
            let right = self.0.get(&((*name).to_owned(), (*name).to_owned())).copied().unwrap_or(0);
            let sum = so_times.get(name).unwrap_or(&0) + said_times.get(name).unwrap_or(&0);
            share(2 * right, sum).unwrap_or(0.0)
        };
        (!names.is_empty()).then(|| names.iter().map(f1).sum::<f64>() / names.len() as f64)
    }

    /// The commonest mistakes, then by name.
    pub(super) fn worst(&self) -> Vec<Mistake> {
        let mut worst: Vec<Mistake> = self
            .0
            .iter()
            .filter(|((so, said), _)| so != said)
            .map(|((so, said), times)| Mistake { is: so.clone(), taken_for: said.clone(), times: *times })
            .collect();
        worst.sort_by(|a, b| {
            b.times.cmp(&a.times).then_with(|| (&a.is, &a.taken_for).cmp(&(&b.is, &b.taken_for)))
        });
        worst.truncate(WORST_PAIRS);
        worst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_textbook() {
        let mut confusion = Confusion::default();
        for (so, said, times) in [("a", "a", 3), ("a", "b", 1), ("b", "b", 2), ("c", "a", 2)] {
            for _ in 0..times {
                confusion.add(so, said);
            }
        }
        assert_eq!(confusion.accuracy(), Some(5.0 / 8.0));
        // F1: a 2*3/(4+5), b 2*2/(2+3), c 0.
        assert!((confusion.macro_f1().unwrap() - (6.0 / 9.0 + 4.0 / 5.0) / 3.0).abs() < 1e-12);
        let worst = confusion.worst();
        assert_eq!((worst[0].is.as_str(), worst[0].taken_for.as_str(), worst[0].times), ("c", "a", 2));
        assert_eq!(worst.len(), 2);
        let counts = Counts { true_positives: 3, false_positives: 1, false_negatives: 2, true_negatives: 4 };
        assert_eq!(counts.recall(), Some(0.6));
        assert_eq!(counts.precision(), Some(0.75));
        assert_eq!(counts.false_positive_rate(), Some(0.2));
        assert_eq!(counts.f1(), Some(6.0 / 9.0));
        assert_eq!(counts.accuracy(), Some(0.7));
    }

    #[test]
    fn nothing_measured_is_no_figure() {
        assert_eq!(Confusion::default().accuracy(), None);
        assert_eq!(Confusion::default().macro_f1(), None);
        assert_eq!(Counts::default().recall(), None);
        assert!(Answers::default().figures().is_none());
        assert_eq!(Latency::of(Vec::new()).p99_us, 0.0);
    }

    #[test]
    fn the_hundredth_slowest_of_a_hundred_is_the_99th_percentile() {
        let latency = Latency::of((1..=100).map(|at| at * 1_000).collect());
        assert_eq!((latency.p50_us, latency.p99_us, latency.most_us), (50.0, 99.0, 100.0));
    }
}
