//! Prompt injection and jailbreak: a text that wants to be obeyed instead of the operator.
//!
//! Three witnesses are heard: rules over concepts (`rules`), a linear model over words, characters, concepts
//! and rules, trained on the seeds of this project, and readings of disguised parts (`decode`). They speak in
//! points. A message is *suspected* from [`SUSPECTED_POINTS`]; it is *confident* only when rules of several
//! families, or a rule and the model, agree: that level costs people their standing, so its false positives
//! must stay far below one in a thousand.
//!
//! Long texts are judged by their worst window of sixty words. Nothing here depends on length: jailbreaks are
//! long in collections and need not be anywhere else.
//!
//! What this cannot see: an order hidden in a retrieved page that reads like an ordinary request. Treat such
//! text as data.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

use sha2::{Digest, Sha256};

use crate::Normalised;
use crate::cued::{self, Balance, CuedModel, Cues, Example, out_of_fold_margins};
pub use crate::evidence::Evidence;
use crate::features::{Counts, Hashed, Symbols};
use crate::lexicon::{Concepts, Found, Sightings};
use crate::linear::Training;
use crate::model_file::{Damage, Kind};

mod decode;
mod rules;

use decode::Signs;
use rules::{Family, RULES, Weight};

/// From here on a text is suspected: one strong rule, or the model alone, or two signs.
pub const SUSPECTED_POINTS: f32 = 4.0;

/// From here on it may be confident.
pub const CONFIDENT_POINTS: f32 = 9.0;

/// Of which rules alone must give so many.
const CONFIDENT_RULE_POINTS: f32 = 6.0;

/// Most points the model gives: it never makes a text confident alone.
const MOST_MODEL_POINTS: f32 = 6.0;

/// Margin between "the model says nothing" and "the model suspects".
const MODEL_REACH: f32 = 0.8;

/// Wording counts less than whole: it belongs to a source, while concepts and rules belong to what an attack is.
const BALANCE: Balance = Balance { wording: 0.8, cue: 0.2 };

/// With an operator's own texts wording counts whole: they are the source the model will meet.
const OWN_BALANCE: Balance = Balance { wording: 1.0, cue: 0.2 };

const TRAINING: Training = Training { cost: 3.0, positive_weight: 1.0, tolerance: 0.05, passes: 300 };

/// What the margin must be larger by where no rule says anything: a model that finds nobody to agree with has
/// more often met an unusual ordinary text than an unusual attack.
const ALONE: f32 = 0.3;

/// Most windows of one training text: a long text is one example among others, not thirty.
const TRAINING_WINDOWS: usize = 6;

/// How sure the detector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Worth a few points.
    Suspected,
    /// Beyond reasonable doubt.
    Confident,
}

impl Level {
    /// Its name in files and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Suspected => "suspected",
            Self::Confident => "confident",
        }
    }
}

/// The verdict on one text.
#[derive(Clone, Debug, PartialEq)]
pub struct AttackScore {
    /// `level` is some.
    pub flagged: bool,
    pub level: Option<Level>,
    /// 0 to 1, one half where suspicion begins.
    pub score: f32,
    /// Strongest first.
    pub evidence: Vec<Evidence>,
}

/// A labelled text of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledText {
    pub text: String,
    /// An attack.
    pub attack: bool,
}

/// A trained detector.
#[derive(Clone, Debug)]
pub struct AttackModel {
    model: CuedModel,
    /// The margin from which the model alone suspects.
    threshold: f32,
    version: String,
}

fn concepts() -> &'static Concepts {
    static CONCEPTS: LazyLock<Concepts> = LazyLock::new(|| {
        Concepts::parse(include_str!("../data/attack_concepts.txt"))
            .expect("the shipped lexicon is read in a test")
    });
    &CONCEPTS
}

/// Ordinary texts that look like attacks.
static HARD_ORDINARY: [&str; 3] = [
    include_str!("../data/benign_seeds_en.txt"),
    include_str!("../data/benign_seeds_ru.txt"),
    include_str!("../data/benign_seeds_de.txt"),
];

/// The shipped seeds.
fn seeds() -> Vec<LabelledText> {
    const ATTACKS: [&str; 3] = [
        include_str!("../data/attack_seeds_en.txt"),
        include_str!("../data/attack_seeds_ru.txt"),
        include_str!("../data/attack_seeds_de.txt"),
    ];
    const BACKGROUND: [&str; 2] =
        [include_str!("../data/background_en.txt"), include_str!("../data/background_ru.txt")];
    let lines = |files: &'static [&'static str], attack: bool| {
        files
            .iter()
            .flat_map(|file| file.lines())
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(move |line| LabelledText { text: line.to_owned(), attack })
    };
    let mut seeds: Vec<LabelledText> = lines(const { &ATTACKS }, true)
        .chain(lines(&HARD_ORDINARY, false))
        .chain(lines(const { &BACKGROUND }, false))
        .collect();
    seeds.extend(compounds(&seeds));
    seeds
}

/// Seeds in company: ordinary texts joined to long ones, attacks alone and between ordinary texts. Without
/// them the model would learn that attacks are the longer texts, which is so in every collection.
fn compounds(seeds: &[LabelledText]) -> Vec<LabelledText> {
    let of = |attack: bool| -> Vec<&str> {
        let mut texts: Vec<&str> =
            seeds.iter().filter(|seed| seed.attack == attack).map(|seed| seed.text.as_str()).collect();
        // Neighbours in a file are of one kind; a stride that shares no factor with the length mixes them.
        texts.sort_by_key(|text| Sha256::digest(text.as_bytes()));
        texts
    };
    let (attacks, ordinary) = (of(true), of(false));
    let mut compounds = Vec::new();
    for group in ordinary.chunks(LONG_OF) {
        compounds.push(LabelledText { text: group.join(" "), attack: false });
    }
    for (index, pair) in attacks.chunks(2).enumerate() {
        let beside = |offset: usize| ordinary[(index * 7 + offset) % ordinary.len()];
        let text = match index % 3 {
            0 => pair.join(" "),
            1 => format!("{} {} {}", beside(0), pair[0], beside(1)),
            _ => format!("{} {} {}", beside(2), beside(3), pair[0]),
        };
        compounds.push(LabelledText { text, attack: true });
    }
    compounds
}

/// Ordinary seeds in one long text.
const LONG_OF: usize = 6;

/// A text with its sightings and rules, read once for training and scoring.
struct Reading<'t> {
    text: &'t Normalised,
    sightings: Sightings,
    matches: Vec<Match>,
}

/// A rule that holds, after looking at whether the text only talks about it.
#[derive(Clone, Debug)]
struct Match {
    rule: usize,
    id: &'static str,
    family: Family,
    points: f32,
    bytes: Range<usize>,
}

/// Times one rule may hold in a text.
const MATCHES_EACH: usize = 12;

impl<'t> Reading<'t> {
    fn of(text: &'t Normalised) -> Self {
        let sightings = concepts().find(text);
        let mut matches = Vec::new();
        for (index, (rule, pattern)) in RULES.iter().zip(rules::PATTERNS.iter()).enumerate() {
            for found in pattern.find_all(&sightings, MATCHES_EACH) {
                let Some(weight) = weight_in_context(rule.weight, &found, text, &sightings) else {
                    continue;
                };
                matches.push(Match {
                    rule: index,
                    id: rule.id,
                    family: rule.family,
                    points: weight.points(),
                    bytes: found.start..found.end,
                });
            }
        }
        if let Some(bytes) = shouted_order(text, &sightings) {
            matches.push(Match {
                rule: RULES.len(),
                id: "shouted_order",
                family: Family::Shouted,
                points: Weight::Sign.points(),
                bytes,
            });
        }
        Self { text, sightings, matches }
    }

    /// Points of the rules that begin in a window. A family counts its strongest rule, and a little more for
    /// each further one: three signs of the same thing are no coincidence, but one thing still.
    fn rule_points(&self, bytes: &Range<usize>) -> f32 {
        let mut families: BTreeMap<Family, (f32, Vec<usize>)> = BTreeMap::new();
        for found in self.matches.iter().filter(|found| bytes.contains(&found.bytes.start)) {
            let (strongest, rules) = families.entry(found.family).or_default();
            *strongest = strongest.max(found.points);
            if found.points >= Weight::Sign.points() && !rules.contains(&found.rule) {
                rules.push(found.rule);
            }
        }
        families
            .values()
            .map(|(strongest, rules)| strongest + rules.len().saturating_sub(1).min(2) as f32)
            .sum()
    }

    /// The window in which rules say most.
    fn judged_by_rules(&self) -> Verdict {
        let mut worst = Verdict::default();
        if self.matches.is_empty() {
            return worst;
        }
        for words in self.text.windows() {
            let rule_points = self.rule_points(&self.window_bytes(&words));
            if rule_points > worst.rule_points {
                worst = Verdict { total: rule_points, rule_points, window: words, ..Verdict::default() };
            }
        }
        worst
    }

    fn window_bytes(&self, words: &Range<usize>) -> Range<usize> {
        match self.text.words().get(words.clone()) {
            Some([first, .., last]) => first.range.start..last.range.end,
            Some([only]) => only.range.clone(),
            _ => 0..0,
        }
    }

    /// Concepts and rules of a window, by number: rules behind concepts.
    fn cues(&self, words: &Range<usize>) -> Cues {
        let bytes = self.window_bytes(words);
        let concept_count = concepts().names().len();
        let mut seen = vec![false; cue_count()];
        for (concept, seen) in seen[..concept_count].iter_mut().enumerate() {
            let id = u16::try_from(concept).expect("concepts are few");
            *seen = self.sightings.of(id).iter().any(|sighting| bytes.contains(&sighting.start));
        }
        for found in self.matches.iter().filter(|found| bytes.contains(&found.bytes.start)) {
            seen[concept_count + found.rule] = true;
        }
        let numbered = (0..).zip(seen);
        numbered.filter(|(_, seen)| *seen).map(|(cue, _)| cue).collect()
    }
}

fn cue_count() -> usize {
    concepts().names().len() + RULES.len() + 1
}

/// What a rule is worth where it stands: nothing in a quotation that is talked about, less in a sentence that
/// talks about such texts.
fn weight_in_context(
    weight: Weight,
    found: &Found,
    text: &Normalised,
    sightings: &Sightings,
) -> Option<Weight> {
    static ABOUT: LazyLock<u16> = LazyLock::new(|| concepts().id("about").expect("the lexicon has [about]"));
    let about = sightings.of(*ABOUT);
    if about.is_empty() {
        return Some(weight);
    }
    let before = &text.folded()[..found.start];
    let quoted = before.matches('"').count() % 2 == 1 && text.folded()[found.end..].contains('"');
    if quoted && about.iter().any(|word| word.first_word.abs_diff(found.first_word) <= 20) {
        return None;
    }
    let sentence = sightings.words.sentence(found.first_word);
    let introduced = about.iter().any(|word| {
        word.last_word < found.first_word
            && found.first_word - word.last_word <= 8
            && sightings.words.sentence(word.last_word) == sentence
    });
    if introduced { weight.less() } else { Some(weight) }
}

/// Orders in capitals in the middle of a text that is not.
fn shouted_order(text: &Normalised, sightings: &Sightings) -> Option<Range<usize>> {
    static ORDERS: LazyLock<Vec<u16>> = LazyLock::new(|| {
        ["override", "say", "only", "refuse_question", "against_sources", "be_someone", "reveal"]
            .iter()
            .map(|name| concepts().id(name).expect("the lexicon has the concepts of orders"))
            .collect()
    });
    let letters = || text.words().iter().filter(|word| word.kind == crate::normalise::WordKind::Letters);
    if letters().filter(|word| !word.shouted).count() < 4 {
        return None;
    }
    let mut run: Option<(Range<usize>, usize)> = None;
    let mut runs = Vec::new();
    for word in letters() {
        run = match (run, word.shouted) {
            (Some((bytes, count)), true) => Some((bytes.start..word.range.end, count + 1)),
            (None, true) => Some((word.range.clone(), 1)),
            (ended, false) => {
                runs.extend(ended);
                None
            }
        };
    }
    runs.extend(run);
    runs.into_iter().filter(|(_, count)| *count >= 3).map(|(bytes, _)| bytes).find(|bytes| {
        ORDERS.iter().any(|id| sightings.of(*id).iter().any(|seen| bytes.contains(&seen.start)))
    })
}

/// The verdict on one reading, before levels.
#[derive(Clone, Debug, Default)]
struct Verdict {
    total: f32,
    rule_points: f32,
    model_points: f32,
    /// The worst window, in words.
    window: Range<usize>,
}

impl AttackModel {
    /// The detector without any operator's data, trained once per process from the shipped seeds.
    pub fn shipped() -> &'static Self {
        static SHIPPED: LazyLock<AttackModel> =
            LazyLock::new(|| AttackModel::fit(&[], Threshold::Fixed(SHIPPED_THRESHOLD)));
        &SHIPPED
    }

    /// Trains on an operator's texts together with the shipped seeds. The threshold is the one at which, in
    /// five-fold cross-validation, at most one in a hundred ordinary texts is flagged; it is never set so low
    /// that the shipped seeds' ordinary texts suffer.
    #[must_use]
    pub fn train(rows: &[LabelledText]) -> Self {
        Self::fit(rows, Threshold::CrossValidated)
    }

    fn fit(rows: &[LabelledText], threshold: Threshold) -> Self {
        let mut texts = seeds();
        texts.extend(rows.iter().cloned());
        // The same examples in another order are the same model.
        texts.sort_by(|a, b| (&a.text, a.attack).cmp(&(&b.text, b.attack)));
        texts.dedup();
        let (examples, groups) = examples(&texts);
        let threshold = match threshold {
            Threshold::Fixed(margin) => margin,
            Threshold::CrossValidated => cross_validated_threshold(&texts, rows, &examples, &groups),
        };
        let mut hash = Sha256::new();
        hash.update(include_str!("../data/attack_concepts.txt"));
        for rule in RULES {
            hash.update(rule.pattern);
            hash.update(rule.weight.points().to_le_bytes());
        }
        for row in &texts {
            hash.update([u8::from(row.attack)]);
            hash.update(u64::try_from(row.text.len()).unwrap_or(u64::MAX).to_le_bytes());
            hash.update(&row.text);
        }
        hash.update(threshold.to_le_bytes());
        let balance = if rows.is_empty() { BALANCE } else { OWN_BALANCE };
        let model = CuedModel::train(&examples.iter().collect::<Vec<_>>(), cue_count(), balance, TRAINING);
        Self { model, threshold, version: hex::encode(&hash.finalize()[..8]) }
    }

    /// The margin from which the model alone suspects.
    #[must_use]
    pub fn threshold(&self) -> f32 {
        self.threshold
    }

    /// The model as a file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        cued::to_file(Kind::Attack, &self.version, self.threshold, &self.model)
    }

    /// Reads what [`AttackModel::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Damage`] when the file is no attack model of this program's rules.
    pub fn from_bytes(file: &[u8]) -> Result<Self, Damage> {
        let (version, threshold, model) = cued::from_file(file, Kind::Attack, cue_count())?;
        Ok(Self { model, threshold, version })
    }

    /// A hash of everything the verdicts depend on: seeds, rules, lexicon, an operator's rows, threshold.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Judges a text.
    #[must_use]
    pub fn score(&self, original: &str) -> AttackScore {
        self.score_normalised(original, &Normalised::of(original))
    }

    /// Judges a text that is normalised already; the original is needed for encodings that depend on case.
    #[must_use]
    pub fn score_normalised(&self, original: &str, text: &Normalised) -> AttackScore {
        let reading = Reading::of(text);
        let (mut verdict, unseen) = self.judge(&reading);
        let mut evidence = self.evidence(&reading, &verdict);
        static DECODE: LazyLock<u16> =
            LazyLock::new(|| concepts().id("decode").expect("the lexicon has [decode]"));
        let signs = Signs { unseen, of_decoding: !reading.sightings.of(*DECODE).is_empty() };
        for disguised in decode::readings(original, text, signs) {
            // Of nonsense the model knows nothing.
            let nonsense = matches!(
                disguised.rule,
                "decoded_rot13" | "decoded_reversed" | "decoded_morse" | "decoded_leet"
            );
            let hidden_text = Normalised::of(&disguised.text);
            let inner = Reading::of(&hidden_text);
            let mut hidden = if nonsense { inner.judged_by_rules() } else { self.judge(&inner).0 };
            if disguised.rule == "decoded_spelled" && hidden.total < SUSPECTED_POINTS {
                hidden.rule_points = hidden.rule_points.max(spelled_points(&disguised.text));
                hidden.total = hidden.rule_points + hidden.model_points;
            }
            if hidden.total < SUSPECTED_POINTS && hides_crime(&inner) && !hides_crime(&reading) {
                hidden.rule_points = Weight::Strong.points();
                hidden.total = hidden.rule_points;
            }
            if hidden.total < SUSPECTED_POINTS {
                continue;
            }
            // Whoever hides an order knows that it is one.
            let points = hidden.total + Weight::Sign.points();
            evidence.push(Evidence { rule: disguised.rule, span: disguised.span, points });
            if points > verdict.total {
                verdict.total = points;
                verdict.rule_points = hidden.rule_points + Weight::Sign.points();
            }
        }
        evidence.sort_by(|a, b| b.points.total_cmp(&a.points).then(a.span.cmp(&b.span)));
        let level = level(&verdict);
        AttackScore {
            flagged: level.is_some(),
            level,
            score: verdict.total / (verdict.total + SUSPECTED_POINTS),
            evidence,
        }
    }

    /// The worst window, and the share of unknown words in it.
    fn judge(&self, reading: &Reading<'_>) -> (Verdict, f32) {
        let hashed = Hashed::of(reading.text, Symbols::Counted);
        let mut worst = Verdict::default();
        for words in reading.text.windows() {
            let vector = self.model.vector_of_words(&hashed, words.clone(), &reading.cues(&words));
            let margin = self.model.margin_of(&vector);
            let rule_points = reading.rule_points(&reading.window_bytes(&words));
            let model_points = model_points(margin, rule_points, self.threshold);
            let total = model_points + rule_points;
            if worst.window.is_empty() || total > worst.total {
                worst = Verdict { total, rule_points, model_points, window: words };
            }
        }
        let unseen = if worst.window.is_empty() {
            0.0
        } else {
            self.model.unseen_share(&hashed, worst.window.clone())
        };
        (worst, unseen)
    }

    fn evidence(&self, reading: &Reading<'_>, verdict: &Verdict) -> Vec<Evidence> {
        let bytes = reading.window_bytes(&verdict.window);
        let mut evidence: Vec<Evidence> = Vec::new();
        for found in reading.matches.iter().filter(|found| bytes.contains(&found.bytes.start)) {
            if evidence.iter().any(|known| known.rule == found.id) {
                continue;
            }
            let span = reading.text.span_of(found.bytes.clone());
            evidence.push(Evidence { rule: found.id, span, points: found.points });
        }
        if verdict.model_points > 0.0 {
            let span = reading.text.span_of_words(verdict.window.clone());
            evidence.push(Evidence { rule: "model", span, points: verdict.model_points });
        }
        evidence
    }
}

/// Whether a text speaks of deeds nobody should be taught. In the open that is no attack; disguised it is.
fn hides_crime(reading: &Reading<'_>) -> bool {
    static CRIME: LazyLock<u16> = LazyLock::new(|| concepts().id("crime").expect("the lexicon has [crime]"));
    !reading.sightings.of(*CRIME).is_empty()
}

/// What letters spelled one by one are worth when no word of them is parted from the next.
fn spelled_points(joined: &str) -> f32 {
    const TELLTALE: [&str; 14] = [
        "ignore",
        "prompt",
        "instruction",
        "rules",
        "sayth",
        "forget",
        "system",
        "password",
        "игнорир",
        "промпт",
        "инструкц",
        "правил",
        "забудь",
        "пароль",
    ];
    if TELLTALE.iter().any(|telltale| joined.contains(telltale)) { Weight::Strong.points() } else { 0.0 }
}

fn level(verdict: &Verdict) -> Option<Level> {
    if verdict.total < SUSPECTED_POINTS {
        None
    } else if verdict.total >= CONFIDENT_POINTS && verdict.rule_points >= CONFIDENT_RULE_POINTS {
        Some(Level::Confident)
    } else {
        Some(Level::Suspected)
    }
}

fn model_points(margin: f32, rule_points: f32, threshold: f32) -> f32 {
    let alone = if rule_points > 0.0 { 0.0 } else { ALONE };
    let beyond = (margin - threshold - alone) / MODEL_REACH;
    (SUSPECTED_POINTS * (1.0 + beyond)).clamp(0.0, MOST_MODEL_POINTS)
}

/// The windows of all texts as examples, and for each the number of its text.
fn examples(texts: &[LabelledText]) -> (Vec<Example>, Vec<usize>) {
    let mut examples = Vec::new();
    let mut groups = Vec::new();
    for (group, row) in texts.iter().enumerate() {
        let text = Normalised::of(&row.text);
        let reading = Reading::of(&text);
        let hashed = Hashed::of(&text, Symbols::Counted);
        for words in text.windows().take(TRAINING_WINDOWS) {
            examples.push(Example {
                counts: Counts::of_hashed(&hashed, words.clone()),
                cues: reading.cues(&words),
                positive: row.attack,
            });
            groups.push(group);
        }
    }
    (examples, groups)
}

/// Where a model's threshold comes from.
enum Threshold {
    Fixed(f32),
    CrossValidated,
}

/// The margin at which the shipped model suspects where a rule agrees a little; chosen so that about one in
/// thirty-five role-play and other prompts of the shared collection is flagged. See the guide.
const SHIPPED_THRESHOLD: f32 = 0.0;

/// Of an operator's ordinary texts, at most so many are flagged in cross-validation.
const FALSE_POSITIVES: f64 = 0.02;

/// Of the ordinary texts that were written to look like attacks, so many may be.
const HARD_FALSE_POSITIVES: f64 = 0.035;

/// Thresholds that are tried, lowest first.
const THRESHOLDS: Range<i16> = -10..21;

/// The lowest threshold at which few enough of the operator's ordinary texts are flagged by a model that has
/// not seen them.
fn cross_validated_threshold(
    texts: &[LabelledText],
    rows: &[LabelledText],
    examples: &[Example],
    groups: &[usize],
) -> f32 {
    let own: std::collections::BTreeSet<&str> =
        rows.iter().filter(|row| !row.attack).map(|row| row.text.as_str()).collect();
    if own.len() < FEWEST_ORDINARY {
        return SHIPPED_THRESHOLD;
    }
    // Sorted texts put near-copies side by side; a block of them stays in one fold.
    let folds: Vec<usize> = groups.iter().map(|group| group / BLOCK).collect();
    let margins = out_of_fold_margins(examples, &folds, FOLDS, cue_count(), OWN_BALANCE, TRAINING);
    let mut by_text: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
    for (group, margin) in groups.iter().zip(margins) {
        by_text.entry(*group).or_default().push(margin);
    }
    let read = |wanted: &dyn Fn(&str) -> bool| -> Vec<Vec<(f32, f32)>> {
        by_text
            .iter()
            .filter(|(group, _)| !texts[**group].attack && wanted(&texts[**group].text))
            .map(|(group, margins)| {
                let text = Normalised::of(&texts[*group].text);
                let reading = Reading::of(&text);
                let rules = text.windows().map(|words| reading.rule_points(&reading.window_bytes(&words)));
                rules.zip(margins.iter().copied()).collect()
            })
            .collect()
    };
    // An operator's collection of attacks teaches its style, and role play has much of that style: the hard
    // ordinary texts of this project must stay unflagged as well.
    let hard: std::collections::BTreeSet<&str> =
        HARD_ORDINARY.iter().flat_map(|file| file.lines()).map(str::trim).collect();
    let judges = [
        (read(&|text| own.contains(text)), FALSE_POSITIVES),
        (read(&|text| hard.contains(text)), HARD_FALSE_POSITIVES),
    ];
    let flagged = |windows: &Vec<(f32, f32)>, threshold: f32| {
        windows
            .iter()
            .any(|(rules, margin)| rules + model_points(*margin, *rules, threshold) >= SUSPECTED_POINTS)
    };
    THRESHOLDS
        .map(|step| f32::from(step) * 0.05)
        .find(|threshold| {
            judges.iter().all(|(texts, share)| {
                let allowed = (texts.len() as f64 * share).floor() as usize;
                texts.iter().filter(|windows| flagged(windows, *threshold)).count() <= allowed
            })
        })
        .unwrap_or(f32::from(THRESHOLDS.end) * 0.05)
}

/// Fewer ordinary texts of an operator say nothing about a rate of one in a hundred.
const FEWEST_ORDINARY: usize = 60;

const FOLDS: usize = 5;

/// Neighbours in sorted order that stay in one fold.
const BLOCK: usize = 8;
