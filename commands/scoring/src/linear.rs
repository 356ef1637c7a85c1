//! A linear classifier: one weight per feature and class, one class against the rest.
//!
//! Trained as an L2-regularised support vector machine with squared hinge loss by dual coordinate descent
//! with shrinking, the algorithm of LIBLINEAR (Hsieh et al. 2008, "A dual coordinate descent method for
//! large-scale linear SVM"). Examples are sorted and the order of visits comes from an integer generator,
//! so the same examples give the same weights however they arrive.

use std::num::NonZero;

use crate::features::SparseVector;
use crate::model_file::{Damage, Reader, Writer};

/// How a classifier is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Training {
    /// What an error costs: more fits the examples closer.
    pub cost: f64,
    /// How much more an error on an example *of* the class costs than one on the rest.
    pub positive_weight: f64,
    /// Stop when no example violates the optimum by more.
    pub tolerance: f64,
    /// Stop after so many passes in any case.
    pub passes: usize,
}

impl Default for Training {
    fn default() -> Self {
        Self { cost: 1.0, positive_weight: 1.0, tolerance: 0.05, passes: 300 }
    }
}

/// A trained classifier.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Linear {
    classes: usize,
    /// Column by column, in each one weight per class: a text touches few columns.
    weights: Vec<f32>,
    biases: Vec<f32>,
}

impl Linear {
    /// Trains one class against the rest, for each of `classes`. Labels are below `classes`; a class
    /// without examples rejects everything.
    #[must_use]
    pub fn train(
        vectors: &[SparseVector],
        labels: &[usize],
        classes: usize,
        columns: usize,
        training: Training,
    ) -> Self {
        let order = sorted(vectors, labels);
        let vectors: Vec<&SparseVector> = order.iter().map(|at| &vectors[*at]).collect();
        let labels: Vec<usize> = order.iter().map(|at| labels[*at]).collect();
        let squares: Vec<f64> = vectors.iter().map(|vector| square(vector)).collect();
        let separate_class = |class: usize| {
            let positive: Vec<bool> = labels.iter().map(|label| *label == class).collect();
            separate(&vectors, &squares, &positive, columns, training)
        };
        let work = vectors.len() * classes;
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(classes);
        let planes: Vec<Plane> = if work < 50_000 || threads < 2 {
            (0..classes).map(separate_class).collect()
        } else {
            // Each class is trained alone, so who trains it changes nothing.
            std::thread::scope(|scope| {
                let separate_class = &separate_class;
                let workers: Vec<_> = (0..threads)
                    .map(|worker| {
                        scope.spawn(move || {
                            (worker..classes).step_by(threads).map(separate_class).collect::<Vec<_>>()
                        })
                    })
                    .collect();
                let mut shares: Vec<_> = workers
                    .into_iter()
                    .map(|worker| worker.join().expect("training a class does not panic").into_iter())
                    .collect();
                (0..classes).filter_map(|class| shares[class % threads].next()).collect()
            })
        };
        let mut weights = vec![0.0; columns * classes];
        for (class, plane) in planes.iter().enumerate() {
            for (column, weight) in plane.weights.iter().enumerate() {
                weights[column * classes + class] = *weight as f32;
            }
        }
        Self { classes, weights, biases: planes.iter().map(|plane| plane.bias as f32).collect() }
    }

    /// Trains a single yes-or-no question; [`Linear::margins`] then gives one number.
    #[must_use]
    pub fn train_binary(vectors: &[SparseVector], yes: &[bool], columns: usize, training: Training) -> Self {
        let labels: Vec<usize> = yes.iter().map(|yes| usize::from(!yes)).collect();
        Self::train(vectors, &labels, 1, columns, training)
    }

    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Signed distances from the border of each class, in order of classes: positive is inside.
    #[must_use]
    pub fn margins(&self, vector: &SparseVector) -> Vec<f32> {
        let mut margins = self.biases.clone();
        for (column, value) in vector.columns.iter().zip(&vector.values) {
            let start = *column as usize * self.classes;
            if let Some(weights) = self.weights.get(start..start + self.classes) {
                for (margin, weight) in margins.iter_mut().zip(weights) {
                    *margin += value * weight;
                }
            }
        }
        margins
    }

    /// What each column of a text adds to the margin of a class, largest first; for explanations.
    #[must_use]
    pub fn contributions(&self, vector: &SparseVector, class: usize) -> Vec<(u32, f32)> {
        let mut parts: Vec<(u32, f32)> = vector
            .columns
            .iter()
            .zip(&vector.values)
            .filter_map(|(column, value)| {
                let weight = self.weights.get(*column as usize * self.classes + class)?;
                Some((*column, value * weight))
            })
            .collect();
        parts.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        parts
    }

    /// Appends the classifier to a model file.
    pub fn write(&self, to: &mut Writer) {
        to.f32s(&self.biases);
        to.f32s(&self.weights);
    }

    /// Reads what [`Linear::write`] wrote for vectors of `columns`.
    ///
    /// # Errors
    /// When it is cut short, of another size, or holds values that are no numbers.
    pub fn read(from: &mut Reader<'_>, columns: usize) -> Result<Self, Damage> {
        let biases = from.f32s()?;
        let weights = from.f32s()?;
        if weights.len() != columns * biases.len() {
            return Err(Damage::Inconsistent("the weights"));
        }
        Ok(Self { classes: biases.len(), weights, biases })
    }
}

/// An order that depends on the examples only.
fn sorted(vectors: &[SparseVector], labels: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..vectors.len()).collect();
    order.sort_by(|a, b| {
        let (left, right) = (&vectors[*a], &vectors[*b]);
        let values = || left.values.iter().map(|v| v.to_bits()).cmp(right.values.iter().map(|v| v.to_bits()));
        labels[*a].cmp(&labels[*b]).then_with(|| left.columns.cmp(&right.columns)).then_with(values)
    });
    order
}

struct Plane {
    weights: Vec<f64>,
    bias: f64,
}

/// The square of a vector's length with its constant column for the bias.
fn square(vector: &SparseVector) -> f64 {
    1.0 + vector.values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>()
}

/// Algorithm 3 of Hsieh et al. for the squared hinge loss (no upper bound, diagonal `1 / 2C`).
fn separate(
    vectors: &[&SparseVector],
    squares: &[f64],
    positive: &[bool],
    columns: usize,
    training: Training,
) -> Plane {
    let mut plane = Plane { weights: vec![0.0; columns], bias: 0.0 };
    let diagonal = |positive: bool| {
        let weight = if positive { training.positive_weight } else { 1.0 };
        0.5 / (training.cost * weight)
    };
    let mut alphas = vec![0.0_f64; vectors.len()];
    let mut active: Vec<usize> = (0..vectors.len()).collect();
    let mut shrink_above = f64::INFINITY;
    let mut random = Random(0x5eed);
    for _ in 0..training.passes {
        let (mut highest, mut lowest) = (f64::NEG_INFINITY, f64::INFINITY);
        random.shuffle(&mut active);
        let mut place = 0;
        while place < active.len() {
            let at = active[place];
            let vector = vectors[at];
            let sign = if positive[at] { 1.0 } else { -1.0 };
            let mut product = plane.bias;
            for (column, value) in vector.columns.iter().zip(&vector.values) {
                product += plane.weights[*column as usize] * f64::from(*value);
            }
            let own = diagonal(positive[at]);
            let gradient = sign * product - 1.0 + alphas[at] * own;
            let projected = if alphas[at] == 0.0 {
                if gradient > shrink_above {
                    active.swap_remove(place);
                    continue;
                }
                gradient.min(0.0)
            } else {
                gradient
            };
            highest = highest.max(projected);
            lowest = lowest.min(projected);
            if projected.abs() > 1e-12 {
                let before = alphas[at];
                alphas[at] = (before - gradient / (squares[at] + own)).max(0.0);
                let change = (alphas[at] - before) * sign;
                for (column, value) in vector.columns.iter().zip(&vector.values) {
                    plane.weights[*column as usize] += change * f64::from(*value);
                }
                plane.bias += change;
            }
            place += 1;
        }
        if highest - lowest <= training.tolerance {
            if active.len() == vectors.len() {
                break;
            }
            // What was set aside may have become active again: look at everything once more.
            active = (0..vectors.len()).collect();
            shrink_above = f64::INFINITY;
            continue;
        }
        shrink_above = if highest <= 0.0 { f64::INFINITY } else { highest };
    }
    plane
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn shuffle(&mut self, places: &mut [usize]) {
        for last in (1..places.len()).rev() {
            let bound = u64::try_from(last).unwrap_or(u64::MAX).saturating_add(1);
            let other = usize::try_from(self.next() % bound).expect("below a usize");
            places.swap(last, other);
        }
    }
}
