//! From examples to a separator and its calibration.

use super::Signals;
use crate::calibrate::{Platt, upper_quantile};
use crate::features::{Counts, SparseVector, Vocabulary};
use crate::linear::{Linear, Training};
use crate::model_file::{Damage, Reader, Writer};

/// Parts of cross-validation.
const FOLDS: u8 = 5;

/// Examples closer than this go into the same part of cross-validation: what is known of one is known of
/// the other, so that the model would look better than it is.
const TWINS: f32 = 0.55;

/// From so many examples of a bot on, one part is held out instead of each in turn: it holds enough texts
/// to set a threshold by, and training takes seconds.
const MANY: usize = 3_000;

/// In an intent with more examples than this nobody looks for twins: that takes time in their square.
const MOST_COMPARED: usize = 500;

/// An error on an example of an intent costs more than one on the rest, which is many times as large.
const TRAINING: Training = Training { cost: 1.0, positive_weight: 4.0, tolerance: 0.1, passes: 300 };

/// A text as the classifier has it: a vector, the share of its words that are unknown, and that share with
/// each word weighed by how rare it is.
pub(super) struct Encoded {
    pub(super) vector: SparseVector,
    pub(super) unseen: f32,
    pub(super) unseen_rare: f32,
}

/// What a separator sees in a text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) best: usize,
    /// How far the best intent is ahead of the second; of itself when it is the only one.
    pub(super) lead: f64,
    pub(super) signals: Signals,
}

/// The largest of the values, and how far it is ahead of the second; of itself when it is the only one.
pub(super) fn best_and_lead(values: &[f32]) -> (usize, f64) {
    let mut best = 0;
    let mut second = f32::NEG_INFINITY;
    for (at, value) in values.iter().enumerate().skip(1) {
        if *value > values[best] {
            second = values[best];
            best = at;
        } else {
            second = second.max(*value);
        }
    }
    let lead = if second.is_finite() { values[best] - second } else { values[best] };
    (best, f64::from(lead))
}

/// The classifier with its memory of examples.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Separator {
    /// `None` for embeddings.
    pub(super) vocabulary: Vocabulary,
    /// Buckets of words that occur in examples of intents.
    known: Vec<u32>,
    /// How rare a word is that occurred nowhere: the most that [`Vocabulary::rarity`] gives, and a little.
    rarest: f32,
    /// One class per intent, and the background as the last where there is any.
    linear: Linear,
    intents: usize,
    neighbours: Neighbours,
}

impl Separator {
    /// Learns from the material whose `class` is given; `intents` and above is background.
    fn learn(texts: &[Counts], classes: &[Option<usize>], intents: usize) -> Self {
        let chosen = || classes.iter().enumerate().filter_map(|(at, class)| class.map(|class| (at, class)));
        let labels: Vec<usize> = chosen().map(|(_, class)| class.min(intents)).collect();
        let vocabulary = Vocabulary::learn(chosen().map(|(at, _)| &texts[at]));
        let mut known: Vec<u32> = chosen()
            .filter(|(_, class)| *class < intents)
            .flat_map(|(at, _)| texts[at].single_words().iter().copied())
            .collect();
        known.sort_unstable();
        known.dedup();
        let vectors: Vec<_> = chosen().map(|(at, _)| vocabulary.weigh(&texts[at])).collect();
        let columns = vocabulary.columns();
        let background = labels.contains(&intents);
        let linear = Linear::train(&vectors, &labels, intents + usize::from(background), columns, TRAINING);
        let own =
            vectors.iter().zip(&labels).filter(|(_, label)| **label < intents).map(|(vector, _)| vector);
        let neighbours = Neighbours::of(own, columns);
        let rarest = (1.0 + vectors.len() as f32).ln();
        Self { vocabulary, known, rarest, linear, intents, neighbours }
    }

    pub(super) fn encode_text(&self, text: &Counts) -> Encoded {
        let (mut all, mut rare, mut unseen, mut unseen_rare) = (0.0_f32, 0.0_f32, 0.0_f32, 0.0_f32);
        for bucket in text.single_words() {
            let rarity = self.vocabulary.rarity(*bucket).unwrap_or(self.rarest);
            all += 1.0;
            rare += rarity;
            if self.known.binary_search(bucket).is_err() {
                unseen += 1.0;
                unseen_rare += rarity;
            }
        }
        let share = |part: f32, whole: f32| if whole > 0.0 { part / whole } else { 1.0 };
        Encoded {
            vector: self.vocabulary.weigh(text),
            unseen: share(unseen, all),
            unseen_rare: share(unseen_rare, rare),
        }
    }

    pub(super) fn look(&self, text: &Encoded) -> Look {
        let margins = self.linear.margins(&text.vector);
        let (own, background) = margins.split_at(self.intents);
        let (best, lead) = best_and_lead(own);
        let signals = Signals {
            margin: own[best],
            cosine: self.neighbours.closest(&text.vector),
            unseen: text.unseen,
            unseen_rare: text.unseen_rare,
            background: background.first().copied().unwrap_or(0.0),
        };
        Look { best, lead, signals }
    }

    pub(super) fn write(&self, to: &mut Writer) {
        self.vocabulary.write(to);
        to.u32s(&self.known);
        to.f32(self.rarest);
        self.neighbours.write(to);
        self.linear.write(to);
    }

    pub(super) fn read(from: &mut Reader<'_>, intents: usize) -> Result<Self, Damage> {
        let vocabulary = Vocabulary::read(from)?;
        let known = from.u32s()?;
        if !known.is_sorted() {
            return Err(Damage::Inconsistent("the known words"));
        }
        let rarest = from.f32()?;
        let neighbours = Neighbours::read(from)?;
        let columns = vocabulary.columns();
        if neighbours.columns() != columns {
            return Err(Damage::Inconsistent("the examples"));
        }
        let linear = Linear::read(from, columns)?;
        if linear.classes() < intents || linear.classes() > intents + 1 {
            return Err(Damage::Inconsistent("the number of intents"));
        }
        Ok(Self { vocabulary, known, rarest, linear, intents, neighbours })
    }
}

/// The examples, by column, so that a text meets only those it shares something with.
#[derive(Clone, Debug, Default, PartialEq)]
struct Neighbours {
    examples: usize,
    /// Where each column's entries begin, and the end of the last.
    starts: Vec<u32>,
    owners: Vec<u32>,
    values: Vec<f32>,
}

impl Neighbours {
    fn of<'a>(vectors: impl Iterator<Item = &'a SparseVector> + Clone, columns: usize) -> Self {
        let place = |count: usize| u32::try_from(count).expect("examples have less than 2^32 features");
        let mut sizes = vec![0_usize; columns];
        let mut examples = 0;
        for vector in vectors.clone() {
            examples += 1;
            for column in &vector.columns {
                sizes[*column as usize] += 1;
            }
        }
        let mut starts = Vec::with_capacity(columns + 1);
        let mut total = 0;
        for size in sizes {
            starts.push(place(total));
            total += size;
        }
        starts.push(place(total));
        let mut next: Vec<usize> = starts.iter().map(|start| *start as usize).collect();
        let (mut owners, mut values) = (vec![0; total], vec![0.0; total]);
        for (owner, vector) in vectors.enumerate() {
            for (column, value) in vector.columns.iter().zip(&vector.values) {
                let at = &mut next[*column as usize];
                owners[*at] = place(owner);
                values[*at] = *value;
                *at += 1;
            }
        }
        Self { examples, starts, owners, values }
    }

    fn columns(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// The largest cosine with an example; 0 when nothing is shared.
    fn closest(&self, vector: &SparseVector) -> f32 {
        let mut products = vec![0.0_f32; self.examples];
        for (column, value) in vector.columns.iter().zip(&vector.values) {
            let column = *column as usize;
            let (Some(from), Some(to)) = (self.starts.get(column), self.starts.get(column + 1)) else {
                continue;
            };
            let entries = *from as usize..*to as usize;
            for (owner, other) in self.owners[entries.clone()].iter().zip(&self.values[entries]) {
                products[*owner as usize] += value * other;
            }
        }
        products.into_iter().fold(0.0, f32::max)
    }

    fn write(&self, to: &mut Writer) {
        to.length(self.examples);
        to.u32s(&self.starts);
        to.u32s(&self.owners);
        to.f32s(&self.values);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Damage> {
        let examples = from.u32()? as usize;
        let (starts, owners, values) = (from.u32s()?, from.u32s()?, from.f32s()?);
        let entries = starts.last().copied().unwrap_or(0) as usize;
        let sound = examples <= super::MOST_EXAMPLES
            && starts.is_sorted()
            && starts.first().is_some_and(|first| *first == 0)
            && owners.len() == entries
            && values.len() == entries
            && owners.iter().all(|owner| (*owner as usize) < examples);
        if !sound {
            return Err(Damage::Inconsistent("the examples"));
        }
        Ok(Self { examples, starts, owners, values })
    }
}

/// A trained and calibrated separator.
pub(super) struct Outcome {
    pub(super) separator: Separator,
    pub(super) oos: Platt,
    pub(super) right: Platt,
}

/// The order of the material must not depend on the order it came in. Classes from `intents` on are
/// background: `intents` itself what the owner ruled out, above it the shipped lines.
pub(super) fn train(texts: &[Counts], classes: &[usize], intents: usize, false_rejection: f64) -> Outcome {
    let folds = folds(texts, classes, intents);
    let own = classes.iter().filter(|class| **class < intents).count();
    let held_out = if own > MANY { 1 } else { FOLDS };
    let mut kept: Vec<Option<usize>> = classes.iter().copied().map(Some).collect();
    drop_own_lines(texts, &mut kept, &folds, intents, held_out);
    let separator_without = |fold: u8| {
        let part: Vec<Option<usize>> =
            kept.iter().zip(&folds).map(|(class, own)| class.filter(|_| *own != Some(fold))).collect();
        Separator::learn(texts, &part, intents)
    };
    // The whole and its parts are trained beside each other: each alone, so the result is the same.
    let (separator, parts) = std::thread::scope(|scope| {
        let whole = scope.spawn(|| Separator::learn(texts, &kept, intents));
        let parts: Vec<Separator> = (0..held_out).map(separator_without).collect();
        (whole.join().expect("training does not panic"), parts)
    });
    let (mut inside, mut outside, mut right, mut wrong) = (vec![], vec![], vec![], vec![]);
    for (at, (class, fold)) in kept.iter().zip(&folds).enumerate() {
        let (Some(class), Some(fold)) = (class, fold) else { continue };
        let Some(part) = parts.get(usize::from(*fold)) else { continue };
        let look = part.look(&part.encode_text(&texts[at]));
        if *class >= intents {
            outside.push(look.signals.score());
            continue;
        }
        inside.push(look.signals.score());
        if look.best == *class { right.push(look.lead) } else { wrong.push(look.lead) }
    }
    // With a handful of examples the held-out ones share nothing with the rest. A text that shares nothing
    // with any example is out of scope all the same.
    let nothing = separator.look(&separator.encode_text(&Counts::default())).signals.score();
    let border = upper_quantile(&inside, 1.0 - false_rejection).unwrap_or(nothing).min(nothing - SOMETHING);
    let oos = Platt::fit_through(&inside, &outside, border);
    Outcome { separator, oos, right: Platt::fit_as_seen(&wrong, &right) }
}

/// How much closer than nothing at all a text has to be to be in scope.
const SOMETHING: f64 = 0.2;

/// The part of cross-validation each example is in; `None` for the only example of an intent, which
/// cannot be left out.
fn folds(texts: &[Counts], classes: &[usize], intents: usize) -> Vec<Option<u8>> {
    let vocabulary = Vocabulary::learn(texts);
    let mut folds = vec![None; texts.len()];
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); intents];
    for (at, class) in classes.iter().enumerate() {
        match members.get_mut(*class) {
            Some(members) => members.push(at),
            None => folds[at] = Some(part(at)),
        }
    }
    for members in members.iter().filter(|members| members.len() > 1) {
        let vectors: Vec<SparseVector> = members.iter().map(|at| vocabulary.weigh(&texts[*at])).collect();
        let room = members.len().div_ceil(usize::from(FOLDS));
        let mut sizes = [0_usize; FOLDS as usize];
        for place in 0..members.len() {
            let compared = if members.len() > MOST_COMPARED { 0 } else { place };
            let twin = (0..compared).find_map(|other| {
                let fold: Option<u8> = folds[members[other]];
                fold.filter(|fold| {
                    sizes[usize::from(*fold)] < room && vectors[place].dot(&vectors[other]) > TWINS
                })
            });
            let emptiest = (0..FOLDS).min_by_key(|fold| sizes[usize::from(*fold)]).unwrap_or(0);
            let fold = twin.unwrap_or(emptiest);
            sizes[usize::from(fold)] += 1;
            folds[members[place]] = Some(fold);
        }
    }
    folds
}

fn part(at: usize) -> u8 {
    u8::try_from(at % usize::from(FOLDS)).expect("a remainder of five fits")
}

/// Shipped lines that look more like the bot's task than most of its own examples do are left out:
/// chatting about recipes is nobody's task except a kitchen bot's.
fn drop_own_lines(
    texts: &[Counts],
    kept: &mut [Option<usize>],
    folds: &[Option<u8>],
    intents: usize,
    held_out: u8,
) {
    let own = |class: &Option<usize>| class.filter(|class| *class <= intents);
    let part_without = |kept: &[Option<usize>], fold: Option<u8>| -> Vec<Option<usize>> {
        let left_out = |in_fold: &Option<u8>| fold.is_some() && *in_fold == fold;
        kept.iter().zip(folds).map(|(class, in_fold)| own(class).filter(|_| !left_out(in_fold))).collect()
    };
    // Among many examples the closest one says nearly as much as a classifier, which takes seconds to train.
    let likeness = |part: &[Option<usize>]| -> Box<dyn Fn(&Counts) -> f64> {
        if held_out < FOLDS {
            let memory = Memory::of(texts, part, intents);
            Box::new(move |text| -f64::from(memory.closest(text)))
        } else {
            let separator = Separator::learn(texts, part, intents);
            Box::new(move |text| separator.look(&separator.encode_text(text)).signals.score())
        }
    };
    let mut inside = Vec::new();
    for fold in 0..held_out {
        let distance = likeness(&part_without(kept, Some(fold)));
        for (at, class) in kept.iter().enumerate() {
            if folds[at] == Some(fold) && class.is_some_and(|class| class < intents) {
                inside.push(distance(&texts[at]));
            }
        }
    }
    let Some(border) = upper_quantile(&inside, OWN_LINES) else { return };
    let distance = likeness(&part_without(kept, None));
    for (at, class) in kept.iter_mut().enumerate() {
        if class.is_some_and(|class| class > intents) && distance(&texts[at]) < border {
            *class = None;
        }
    }
}

/// The examples of intents alone, without a classifier.
struct Memory {
    vocabulary: Vocabulary,
    neighbours: Neighbours,
}

impl Memory {
    fn of(texts: &[Counts], classes: &[Option<usize>], intents: usize) -> Self {
        let own = texts.iter().zip(classes).filter(|(_, class)| class.is_some_and(|class| class < intents));
        let own: Vec<&Counts> = own.map(|(text, _)| text).collect();
        let vocabulary = Vocabulary::learn(own.iter().copied());
        let vectors: Vec<SparseVector> = own.iter().map(|text| vocabulary.weigh(text)).collect();
        let neighbours = Neighbours::of(vectors.iter(), vocabulary.columns());
        Self { vocabulary, neighbours }
    }

    fn closest(&self, text: &Counts) -> f32 {
        self.neighbours.closest(&self.vocabulary.weigh(text))
    }
}

/// Share of own examples, held out, that a shipped line must look less like the task than.
const OWN_LINES: f64 = 0.6;
