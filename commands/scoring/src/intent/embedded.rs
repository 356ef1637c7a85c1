//! Intents by what texts mean, as an embedding model places them. The model is somebody else's, so this only
//! ever judges beside [`super::IntentModel`], which stays when the other gives no answer.
//!
//! A text belongs to the intent whose examples it lies nearest to: half by the closest one, half by their
//! middle. How near is near enough is learned by leaving each example out once.

use sha2::{Digest, Sha256};

use super::{Example, Head, IntentScore, Signals, TrainingError, background, class_of, sorted};
use crate::{
    Normalised,
    calibrate::{Platt, upper_quantile},
    intent::training::{Look, best_and_lead},
};

/// Texts whose vectors have to be known before anything can be learned, and what they are examples of.
#[derive(Clone, Debug)]
pub struct Material {
    own: Vec<Example>,
    intents: Vec<String>,
    lines: Vec<&'static str>,
}

impl Material {
    /// From an owner's examples, as [`super::IntentModel::train`] takes them, and the shipped background.
    ///
    /// # Errors
    /// When there is no intent, an example is empty, or there are too many.
    pub fn of(examples: &[Example]) -> Result<Self, TrainingError> {
        let (own, intents) = sorted(examples)?;
        let own: Vec<Example> = own.into_iter().cloned().collect();
        let texts: Vec<Normalised> = own.iter().map(|example| Normalised::of(&example.text)).collect();
        Ok(Self { own, intents, lines: background::for_texts(&texts) })
    }

    /// What has to be embedded, in order.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        let own = self.own.iter().map(|example| example.text.clone());
        own.chain(self.lines.iter().map(|line| (*line).to_owned())).collect()
    }

    /// Learns from one vector for each of [`Material::texts`]. `model` names where they are from;
    /// `false_rejection_permille` is as in [`super::Options`].
    ///
    /// # Errors
    /// When the vectors are not as many as the texts, not equally wide, or not numbers.
    pub fn learn(
        self,
        vectors: Vec<Vec<f32>>,
        model: &str,
        false_rejection_permille: u16,
    ) -> Result<EmbeddedIntents, TrainingError> {
        let width = vectors.first().map_or(0, Vec::len);
        if vectors.len() != self.own.len() + self.lines.len() {
            let expected = self.own.len() + self.lines.len();
            return Err(TrainingError::UnfitVector { number: vectors.len(), found: vectors.len(), expected });
        }
        let mut units = Vec::with_capacity(vectors.len());
        for (at, vector) in vectors.into_iter().enumerate() {
            let found = vector.len();
            let unit = unit(vector).filter(|unit| unit.len() == width);
            units.push(unit.ok_or(TrainingError::UnfitVector { number: at + 1, found, expected: width })?);
        }
        let mut digest = Sha256::new();
        digest.update(super::version_of(
            &self.own.iter().collect::<Vec<_>>(),
            &self.lines,
            super::Options { false_rejection_permille, background: true },
        ));
        digest.update(model);
        let outside = units.split_off(self.own.len());
        let classes: Vec<usize> =
            self.own.iter().map(|example| class_of(&example.intent, &self.intents)).collect();
        let mut places = Places { intents: self.intents.len(), width, points: vec![], outside, sums: vec![] };
        places.sums = vec![(vec![0.0; width], 0); self.intents.len()];
        for (unit, class) in units.into_iter().zip(classes) {
            match places.sums.get_mut(class) {
                Some((sum, count)) => {
                    *count += 1;
                    sum.iter_mut().zip(&unit).for_each(|(sum, value)| *sum += value);
                    places.points.push((class, unit));
                }
                None => places.outside.push(unit),
            }
        }
        let head = places.calibrate(self.intents, f64::from(false_rejection_permille) / 1_000.0);
        Ok(EmbeddedIntents { version: hex::encode(digest.finalize()), places, head })
    }
}

/// A bot's intents by meaning. Vectors to be judged have to come from the model it was learned with.
#[derive(Clone, Debug)]
pub struct EmbeddedIntents {
    version: String,
    places: Places,
    head: Head,
}

impl EmbeddedIntents {
    /// What a text asks for, by its vector.
    ///
    /// # Errors
    /// When the vector is not as wide as those learned from, or not numbers.
    pub fn predict(&self, vector: Vec<f32>) -> Result<IntentScore, TrainingError> {
        let (found, expected) = (vector.len(), self.places.width);
        let unit = unit(vector).filter(|unit| unit.len() == expected);
        let unit = unit.ok_or(TrainingError::UnfitVector { number: 1, found, expected })?;
        let look = self.places.look(&unit, None);
        Ok(self.head.judge_by(far(look.signals), look))
    }

    /// What its vectors take up, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let vectors = self.places.points.len() + self.places.outside.len() + self.places.sums.len();
        vectors * self.places.width * size_of::<f32>()
    }

    /// SHA-256 in hexadecimal of examples, background, options and the embedding model's name. What that
    /// model holds is not known here.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }
}

#[derive(Clone, Debug)]
struct Places {
    intents: usize,
    width: usize,
    points: Vec<(usize, Vec<f32>)>,
    outside: Vec<Vec<f32>>,
    /// Sum and number of each intent's points.
    sums: Vec<(Vec<f32>, u32)>,
}

impl Places {
    /// `without` leaves one point out, as if it had never been an example.
    fn look(&self, unit: &[f32], without: Option<usize>) -> Look {
        let mut closest = vec![-1.0_f32; self.intents];
        for (at, (class, point)) in self.points.iter().enumerate() {
            if Some(at) != without {
                closest[*class] = closest[*class].max(dot(unit, point));
            }
        }
        let near = |class: usize| {
            let (sum, count) = &self.sums[class];
            let own = without.map(|at| &self.points[at]).filter(|(own, _)| *own == class);
            let count = *count - u32::from(own.is_some());
            let mut along = dot(unit, sum);
            let mut length = dot(sum, sum);
            if let Some((_, point)) = own {
                along -= dot(unit, point);
                length += dot(point, point) - 2.0 * dot(sum, point);
            }
            if count == 0 { -1.0 } else { 0.5 * closest[class] + 0.5 * along / length.max(1e-12).sqrt() }
        };
        let nearness: Vec<f32> = (0..self.intents).map(near).collect();
        let (best, lead) = best_and_lead(&nearness);
        let background = self.outside.iter().map(|other| dot(unit, other)).fold(-1.0, f32::max);
        let signals =
            Signals { margin: nearness[best], cosine: closest[best], background, ..Signals::default() };
        Look { best, lead, signals }
    }

    fn calibrate(&self, intents: Vec<String>, false_rejection: f64) -> Head {
        let (mut inside, mut right, mut wrong) = (vec![], vec![], vec![]);
        // Evenly chosen: each is compared with all, and more of them draw no better line.
        let every = |count: usize| count.div_ceil(CALIBRATED_ON).max(1);
        for (at, (class, unit)) in self.points.iter().enumerate().step_by(every(self.points.len())) {
            if self.sums[*class].1 < 2 {
                continue;
            }
            let look = self.look(unit, Some(at));
            inside.push(far(look.signals));
            if look.best == *class { right.push(look.lead) } else { wrong.push(look.lead) }
        }
        let far_outside: Vec<f64> = (0..self.outside.len())
            .step_by(every(self.outside.len()))
            .map(|at| {
                let mut look = self.look(&self.outside[at], None);
                let others = self.outside.iter().enumerate().filter(|(other, _)| *other != at);
                look.signals.background =
                    others.map(|(_, other)| dot(&self.outside[at], other)).fold(-1.0, f32::max);
                far(look.signals)
            })
            .collect();
        let border = upper_quantile(&inside, 1.0 - false_rejection).unwrap_or(0.0);
        let oos = Platt::fit_through(&inside, &far_outside, border);
        Head { intents, oos, right: Platt::fit_as_seen(&wrong, &right) }
    }
}

/// Examples, and lines of the background, that the border is drawn by, at most.
const CALIBRATED_ON: usize = 2_000;

/// Larger is farther out of scope.
fn far(signals: Signals) -> f64 {
    f64::from(0.5 * signals.background - signals.margin) * SPREAD
}

/// Cosines of embeddings lie close together; the fitted curve begins nearer to its end with this.
const SPREAD: f64 = 10.0;

/// Of length 1; nothing when it has no direction.
fn unit(mut vector: Vec<f32>) -> Option<Vec<f32>> {
    let length = dot(&vector, &vector).sqrt();
    if !length.is_finite() || length <= f32::EPSILON {
        return None;
    }
    vector.iter_mut().for_each(|value| *value /= length);
    Some(vector)
}

fn dot(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::OUT_OF_SCOPE;

    /// A stand-in for an embedding: each word has a direction of its own, words of one family nearly the same.
    fn embed(text: &str) -> Vec<f32> {
        const FAMILIES: [&[&str]; 3] = [
            &["parcel", "order", "courier", "delivery"],
            &["money", "refund", "back"],
            &["open", "hours", "close"],
        ];
        let mut vector = vec![0.01_f32; 16];
        for word in text.split_whitespace() {
            match FAMILIES.iter().position(|family| family.contains(&word)) {
                Some(family) => vector[family] += 1.0,
                None => vector[3 + word.bytes().map(usize::from).sum::<usize>() % 13] += 0.4,
            }
        }
        vector
    }

    fn examples() -> Vec<Example> {
        let rows = [
            ("where is my parcel", "order"),
            ("has my order been sent", "order"),
            ("the courier did not come", "order"),
            ("when is the delivery", "order"),
            ("give me my money back", "refund"),
            ("i want a refund", "refund"),
            ("refund the money please", "refund"),
            ("when do you open", "hours"),
            ("what are your hours", "hours"),
            ("when do you close", "hours"),
            ("tell me a joke", OUT_OF_SCOPE),
        ];
        rows.map(|(text, intent)| Example { text: text.to_owned(), intent: intent.to_owned() }).to_vec()
    }

    fn learned(examples: &[Example]) -> EmbeddedIntents {
        let material = Material::of(examples).expect("examples");
        let vectors = material.texts().iter().map(|text| embed(text)).collect();
        material.learn(vectors, "stand-in", 50).expect("vectors")
    }

    #[test]
    fn texts_are_known_by_their_neighbours_and_strangers_are_not() {
        let model = learned(&examples());
        let judge = |text: &str| model.predict(embed(text)).expect("a vector");
        for (text, intent) in [
            ("did the courier lose the parcel", "order"),
            ("my money i want back", "refund"),
            ("open late", "hours"),
        ] {
            let score = judge(text);
            assert_eq!((score.intent.as_str(), score.oos), (intent, false), "{text}: {score:?}");
        }
        let stranger = judge("who painted the mona lisa");
        assert!(stranger.oos && stranger.oos_permille > 500, "{stranger:?}");
    }

    #[test]
    fn the_order_of_examples_changes_nothing_and_the_model_counts() {
        let mut backwards = examples();
        backwards.reverse();
        assert_eq!(learned(&examples()).version(), learned(&backwards).version());
        let material = Material::of(&examples()).expect("examples");
        let vectors: Vec<_> = material.texts().iter().map(|text| embed(text)).collect();
        let other = material.learn(vectors, "another", 50).expect("vectors");
        assert_ne!(other.version(), learned(&examples()).version());
    }

    #[test]
    fn vectors_that_do_not_fit_are_named() {
        let material = || Material::of(&examples()).expect("examples");
        let vectors: Vec<_> = material().texts().iter().map(|text| embed(text)).collect();
        let mut short = vectors.clone();
        short[2].pop();
        let refused = material().learn(short, "m", 50).expect_err("too short");
        assert_eq!(refused, TrainingError::UnfitVector { number: 3, found: 15, expected: 16 });
        let mut empty = vectors;
        empty[0] = vec![f32::NAN; 16];
        assert!(material().learn(empty, "m", 50).is_err());
        assert!(material().learn(vec![], "m", 50).is_err());
        assert!(learned(&examples()).predict(vec![1.0; 3]).is_err());
    }
}
