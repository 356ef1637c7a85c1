//! From scores to probabilities and thresholds, and how good they are.

/// A logistic curve that turns a score into a probability (Platt 1999).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Platt {
    pub slope: f64,
    pub offset: f64,
}

impl Platt {
    /// The probability a score stands for, 0 to 1.
    #[must_use]
    pub fn probability(self, score: f64) -> f64 {
        logistic(self.slope * score + self.offset)
    }

    /// Fits both parameters by Newton's method with Platt's smoothed targets. Both classes weigh the same
    /// together, however many members they have: the probability is that of an even prior.
    ///
    /// Without members of one class the curve is the one of slope 1 through 0.
    #[must_use]
    pub fn fit(negatives: &[f64], positives: &[f64]) -> Self {
        Self::fit_from(negatives, positives, None, true)
    }

    /// As [`Platt::fit`], with the curve fixed to one half at `border`: only the slope is fitted.
    #[must_use]
    pub fn fit_through(negatives: &[f64], positives: &[f64], border: f64) -> Self {
        Self::fit_from(negatives, positives, Some(border), true)
    }

    /// As [`Platt::fit`], with every member weighing the same: the probability is that of texts like these,
    /// of which some answers are more common than others.
    #[must_use]
    pub fn fit_as_seen(negatives: &[f64], positives: &[f64]) -> Self {
        Self::fit_from(negatives, positives, None, false)
    }

    fn fit_from(negatives: &[f64], positives: &[f64], border: Option<f64>, even: bool) -> Self {
        let fallback = Self { slope: 1.0, offset: -border.unwrap_or(0.0) };
        if negatives.is_empty() || positives.is_empty() {
            return fallback;
        }
        let smoothed = |count: usize| 1.0 / (count as f64 + 2.0);
        let (low, high) = (smoothed(negatives.len()), 1.0 - smoothed(positives.len()));
        let half = (negatives.len() + positives.len()) as f64 / 2.0;
        let weight = |count: usize| if even { half / count as f64 } else { 1.0 };
        let (weight_low, weight_high) = (weight(negatives.len()), weight(positives.len()));
        let shift = border.unwrap_or(0.0);
        let points: Vec<(f64, f64, f64)> = negatives
            .iter()
            .map(|score| (score - shift, low, weight_low))
            .chain(positives.iter().map(|score| (score - shift, high, weight_high)))
            .collect();
        let loss = |slope: f64, offset: f64| -> f64 {
            let one = |(score, target, weight): &(f64, f64, f64)| {
                let value = slope * score + offset;
                // ln(1 + e^v) - target * v, without overflow.
                weight * (value.max(0.0) + (-value.abs()).exp().ln_1p() - target * value)
            };
            points.iter().map(one).sum()
        };
        let (mut slope, mut offset) = (1.0_f64, 0.0_f64);
        let mut best = loss(slope, offset);
        for _ in 0..100 {
            // A small ridge keeps the step finite where the classes do not touch.
            let (mut g0, mut g1, mut h00, mut h01, mut h11) = (0.0, 0.0, 1e-9, 0.0, 1e-9);
            for (score, target, weight) in &points {
                let probability = logistic(slope * score + offset);
                let error = weight * (probability - target);
                let curve = weight * probability * (1.0 - probability);
                g0 += error * score;
                g1 += error;
                h00 += curve * score * score;
                h01 += curve * score;
                h11 += curve;
            }
            let (step_slope, step_offset) = if border.is_some() {
                (g0 / h00, 0.0)
            } else {
                let determinant = h00 * h11 - h01 * h01;
                if determinant.abs() < 1e-18 {
                    break;
                }
                ((h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant)
            };
            let mut length = 1.0;
            let mut improved = false;
            while length > 1e-8 {
                let (next_slope, next_offset) = (slope - length * step_slope, offset - length * step_offset);
                let next = loss(next_slope, next_offset);
                if next < best {
                    improved = best - next > 1e-10;
                    (slope, offset, best) = (next_slope, next_offset, next);
                    break;
                }
                length /= 2.0;
            }
            if !improved {
                break;
            }
        }
        if !(slope.is_finite() && offset.is_finite()) {
            return fallback;
        }
        Self { slope, offset: offset - slope * shift }
    }
}

fn logistic(value: f64) -> f64 {
    if value >= 0.0 {
        1.0 / (1.0 + (-value).exp())
    } else {
        let small = value.exp();
        small / (1.0 + small)
    }
}

/// The smallest score that at least `share` of future scores stay at or below, as far as `scores` can
/// tell: the order statistic of conformal prediction, `ceil((n + 1) * share)`, or the largest score where
/// there are too few. `None` without scores.
#[must_use]
pub fn upper_quantile(scores: &[f64], share: f64) -> Option<f64> {
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = ((sorted.len() as f64 + 1.0) * share).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// Probability that a random positive scores above a random negative (ties count half); `None` when one
/// side is empty.
#[must_use]
pub fn auroc(negatives: &[f64], positives: &[f64]) -> Option<f64> {
    if negatives.is_empty() || positives.is_empty() {
        return None;
    }
    let mut sorted = negatives.to_vec();
    sorted.sort_by(f64::total_cmp);
    let wins: f64 = positives
        .iter()
        .map(|score| {
            let below = sorted.partition_point(|other| other < score);
            let up_to = sorted.partition_point(|other| other <= score);
            (below + up_to) as f64 / 2.0
        })
        .sum();
    Some(wins / (negatives.len() as f64 * positives.len() as f64))
}

/// Share of positives above the lowest threshold that at most `rate` of the negatives exceed; `None`
/// when one side is empty.
#[must_use]
pub fn recall_at(negatives: &[f64], positives: &[f64], rate: f64) -> Option<f64> {
    if negatives.is_empty() || positives.is_empty() {
        return None;
    }
    let mut sorted = negatives.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let allowed = (negatives.len() as f64 * rate).floor() as usize;
    let threshold = sorted.get(allowed).copied().unwrap_or(f64::NEG_INFINITY);
    Some(positives.iter().filter(|score| **score > threshold).count() as f64 / positives.len() as f64)
}

/// Mean precision over the positives, by falling score; equal scores count as one step. `None` without
/// positives.
#[must_use]
pub fn average_precision(negatives: &[f64], positives: &[f64]) -> Option<f64> {
    let mut ranked: Vec<(f64, bool)> = negatives
        .iter()
        .map(|score| (*score, false))
        .chain(positives.iter().map(|score| (*score, true)))
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut seen, mut hits, mut sum) = (0.0, 0.0, 0.0);
    for step in ranked.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
        let new_hits = step.iter().filter(|(_, positive)| *positive).count() as f64;
        seen += step.len() as f64;
        hits += new_hits;
        sum += new_hits * hits / seen;
    }
    (!positives.is_empty()).then(|| sum / positives.len() as f64)
}

/// One bin of a calibration diagram.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin {
    pub count: usize,
    /// Mean of the stated probabilities.
    pub stated: f64,
    /// Share that came true.
    pub observed: f64,
}

/// Ten bins of equal width over 0 to 1, from pairs of stated probability and what came true.
#[must_use]
pub fn reliability(outcomes: &[(f64, bool)]) -> [Bin; 10] {
    let mut bins = [Bin::default(); 10];
    for (stated, came_true) in outcomes {
        let bin = &mut bins[((stated * 10.0) as usize).min(9)];
        bin.count += 1;
        bin.stated += stated;
        bin.observed += f64::from(u8::from(*came_true));
    }
    for bin in bins.iter_mut().filter(|bin| bin.count > 0) {
        bin.stated /= bin.count as f64;
        bin.observed /= bin.count as f64;
    }
    bins
}

/// Expected calibration error: the mean distance between stated and observed over [`reliability`]'s bins.
#[must_use]
pub fn expected_calibration_error(outcomes: &[(f64, bool)]) -> Option<f64> {
    let bins = reliability(outcomes);
    let distance: f64 = bins.iter().map(|bin| bin.count as f64 * (bin.stated - bin.observed).abs()).sum();
    (!outcomes.is_empty()).then(|| distance / outcomes.len() as f64)
}
