//! Advertising, recruiting and swindle: a text somebody sends to many.
//!
//! Single words say little (*income*, *bitcoin* and *casino* are talked about), so rules ask for two things of
//! different kinds: an offer and a way to get in touch, an offer and disguised writing. A linear model over
//! wording, concepts and marks (links, handles, money, look-alike letters) decides the rest. As with attacks,
//! evidence speaks in points, and the model never makes a text confident alone.

use std::ops::Range;
use std::sync::LazyLock;

use sha2::{Digest, Sha256};

use crate::Normalised;
use crate::attack::Level;
use crate::cued::{self, Balance, CuedModel, Cues, Example, out_of_fold_margins};
pub use crate::evidence::Evidence;
use crate::features::{Counts, Hashed, Symbols};
use crate::lexicon::{Concepts, Sightings};
use crate::linear::Training;
use crate::model_file::{Damage, Kind};
use crate::normalise::WordKind;

/// From here on a text is suspected.
pub const SUSPECTED_POINTS: f32 = 4.0;

/// From here on it may be confident, when rules gave `CONFIDENT_RULE_POINTS` of them.
pub const CONFIDENT_POINTS: f32 = 8.0;

const CONFIDENT_RULE_POINTS: f32 = 4.0;

const MOST_MODEL_POINTS: f32 = 6.0;

/// Margin between "the model says nothing" and "the model suspects".
const MODEL_REACH: f32 = 0.8;

const BALANCE: Balance = Balance { wording: 1.0, cue: 0.3 };

/// The verdict on one text.
#[derive(Clone, Debug, PartialEq)]
pub struct SpamScore {
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
    pub spam: bool,
}

/// A trained detector.
#[derive(Clone, Debug)]
pub struct SpamModel {
    model: CuedModel,
    /// The margin from which the model alone suspects.
    threshold: f32,
    version: String,
}

fn concepts() -> &'static Concepts {
    static CONCEPTS: LazyLock<Concepts> = LazyLock::new(|| {
        Concepts::parse(include_str!("../data/spam_lexicon.txt"))
            .expect("the shipped lexicon is read in a test")
    });
    &CONCEPTS
}

/// Marks of a text that are no words. Their order is part of every stored model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
enum Mark {
    Link,
    /// A link into a messenger: a channel, a group, an invitation.
    MessengerLink,
    Handle,
    LongNumber,
    ShortCode,
    Money,
    Percent,
    OneMixed,
    SeveralMixed,
    Hidden,
    SomeEmoji,
    ManyEmoji,
    Shouting,
    Exclaiming,
    OnlyLink,
    Hashtag,
}

const MARKS: u32 = Mark::Hashtag as u32 + 1;

/// Two things that make advertising together. Names are concepts of the lexicon.
struct Pair {
    id: &'static str,
    offer: &'static [&'static str],
    with: With,
    points: f32,
}

enum With {
    Concept(&'static [&'static str]),
    Mark(&'static [Mark]),
}

/// The rules, in the order they are reported. Ids are stored with decisions: never reuse one.
const PAIRS: &[Pair] = &[
    Pair { id: "income_contact", offer: &["income"], with: With::Concept(&["contact"]), points: 2.0 },
    Pair { id: "income_recruiting", offer: &["income"], with: With::Concept(&["recruiting"]), points: 2.0 },
    Pair { id: "recruiting_contact", offer: &["recruiting"], with: With::Concept(&["contact"]), points: 2.0 },
    Pair { id: "income_money", offer: &["income"], with: With::Mark(&[Mark::Money]), points: 2.0 },
    Pair {
        id: "income_link",
        offer: &["income"],
        with: With::Mark(&[Mark::MessengerLink, Mark::Handle]),
        points: 2.0,
    },
    Pair {
        id: "casino_contact",
        offer: &["casino"],
        with: With::Concept(&["contact", "invite"]),
        points: 2.0,
    },
    Pair {
        id: "casino_link",
        offer: &["casino"],
        with: With::Mark(&[Mark::Link, Mark::Handle]),
        points: 3.0,
    },
    Pair {
        id: "crypto_contact",
        offer: &["crypto"],
        with: With::Concept(&["contact", "invite"]),
        points: 2.0,
    },
    Pair {
        id: "crypto_link",
        offer: &["crypto"],
        with: With::Mark(&[Mark::MessengerLink, Mark::Handle]),
        points: 2.0,
    },
    Pair { id: "crypto_income", offer: &["crypto"], with: With::Concept(&["income"]), points: 2.0 },
    Pair { id: "adult_contact", offer: &["adult"], with: With::Concept(&["contact", "invite"]), points: 2.0 },
    Pair { id: "adult_link", offer: &["adult"], with: With::Mark(&[Mark::Link, Mark::Handle]), points: 3.0 },
    Pair { id: "goods_contact", offer: &["goods"], with: With::Concept(&["contact"]), points: 1.0 },
    Pair {
        id: "goods_link",
        offer: &["goods"],
        with: With::Mark(&[Mark::MessengerLink, Mark::Handle]),
        points: 2.0,
    },
    Pair { id: "prize_contact", offer: &["prize"], with: With::Concept(&["contact"]), points: 2.0 },
    Pair {
        id: "prize_number",
        offer: &["prize"],
        with: With::Mark(&[Mark::LongNumber, Mark::ShortCode, Mark::Link]),
        points: 2.0,
    },
    Pair {
        id: "offer_disguised",
        offer: &["income", "recruiting", "casino", "crypto", "adult", "goods", "contact", "prize"],
        with: With::Mark(&[Mark::SeveralMixed]),
        points: 4.0,
    },
    Pair {
        id: "invite_link",
        offer: &["invite", "contact"],
        with: With::Mark(&[Mark::MessengerLink]),
        points: 2.0,
    },
    Pair {
        id: "urgent_contact",
        offer: &["urgent"],
        with: With::Concept(&["contact", "recruiting"]),
        points: 1.0,
    },
];

/// Concepts and marks of a text.
struct Reading {
    sightings: Sightings,
    marks: Vec<(Mark, Range<usize>)>,
}

impl Reading {
    fn of(text: &Normalised) -> Self {
        Self { sightings: concepts().find(text), marks: marks(text) }
    }

    fn has(&self, mark: Mark) -> Option<&Range<usize>> {
        self.marks.iter().find(|(known, _)| *known == mark).map(|(_, bytes)| bytes)
    }

    fn first(&self, names: &[&str]) -> Option<Range<usize>> {
        names
            .iter()
            .filter_map(|name| concepts().id(name).ok())
            .filter_map(|id| self.sightings.of(id).first())
            .map(|sighting| sighting.start..sighting.end)
            .min_by_key(|bytes| bytes.start)
    }

    /// Rules that hold, with the place of the offer.
    fn pairs(&self) -> Vec<(&'static str, Range<usize>, f32)> {
        PAIRS
            .iter()
            .filter_map(|pair| {
                let offer = self.first(pair.offer)?;
                let with = match pair.with {
                    With::Concept(names) => self.first(names).is_some(),
                    With::Mark(marks) => marks.iter().any(|mark| self.has(*mark).is_some()),
                };
                with.then_some((pair.id, offer, pair.points))
            })
            .collect()
    }

    fn cues(&self, pairs: &[(&'static str, Range<usize>, f32)]) -> Cues {
        let concept_count = concepts().names().len();
        let seen = (0..concept_count).filter(|concept| {
            let id = u16::try_from(*concept).expect("concepts are few");
            !self.sightings.of(id).is_empty()
        });
        let rules = PAIRS
            .iter()
            .enumerate()
            .filter(|(_, pair)| pairs.iter().any(|(id, _, _)| *id == pair.id))
            .map(|(index, _)| concept_count + index);
        let behind = u32::try_from(concept_count + PAIRS.len()).expect("concepts and rules are few");
        let mut marks: Vec<u32> = self.marks.iter().map(|(mark, _)| behind + *mark as u32).collect();
        marks.sort_unstable();
        marks.dedup();
        seen.chain(rules).map(|cue| u32::try_from(cue).expect("few")).chain(marks).collect()
    }
}

fn cue_count() -> usize {
    concepts().names().len() + PAIRS.len() + MARKS as usize
}

fn marks(text: &Normalised) -> Vec<(Mark, Range<usize>)> {
    let mut marks = Vec::new();
    let folded = text.folded();
    let mut offset = 0;
    let mut words = 0;
    let mut links = 0;
    for token in folded.split_inclusive(char::is_whitespace) {
        let bytes = offset..offset + token.trim_end().len();
        offset += token.len();
        let token = token.trim();
        if token.is_empty() {
            continue;
        }
        words += 1;
        let bare = token
            .trim_matches(|c: char| !c.is_alphanumeric() && c != '@' && c != '#' && c != '+' && c != '$');
        let link = token.contains("://")
            || bare.starts_with("www.")
            || bare.contains(".com/")
            || bare.contains("t.me/");
        if link {
            links += 1;
            marks.push((Mark::Link, bytes.clone()));
        }
        if ["t.me/", "telegram.me/", "wa.me/", "chat.whatsapp", "discord.gg", "joinchat"]
            .iter()
            .any(|at| token.contains(at))
        {
            marks.push((Mark::MessengerLink, bytes.clone()));
        }
        if let Some(name) = bare.strip_prefix('@')
            && name.chars().count() >= 4
            && name.chars().all(|c| c.is_alphanumeric() || c == '_')
        {
            marks.push((Mark::Handle, bytes.clone()));
        }
        if bare.starts_with('#') {
            marks.push((Mark::Hashtag, bytes.clone()));
        }
        let digits = bare.chars().filter(char::is_ascii_digit).count();
        if !link
            && digits >= 9
            && bare.chars().all(|c| c.is_ascii_digit() || matches!(c, '+' | '-' | '(' | ')'))
        {
            marks.push((Mark::LongNumber, bytes.clone()));
        } else if (4..=6).contains(&digits) && bare.chars().all(|c| c.is_ascii_digit()) && digits == 5 {
            marks.push((Mark::ShortCode, bytes.clone()));
        }
        if digits > 0 && token.chars().any(|c| matches!(c, '$' | '€' | '£' | '₽' | '¥' | '₴' | '💵' | '💰'))
            || token.chars().all(|c| matches!(c, '$' | '€' | '£' | '₽'))
                && folded[..bytes.start].trim_end().ends_with(|c: char| c.is_ascii_digit())
            || [
                "usd",
                "usdt",
                "gbp",
                "руб",
                "рублей",
                "баксов",
                "долларов",
                "тысяч",
                "тыс",
                "гривен",
                "евро",
                "dollars",
            ]
            .contains(&bare)
        {
            marks.push((Mark::Money, bytes.clone()));
        }
        if digits > 0 && token.ends_with('%') {
            marks.push((Mark::Percent, bytes.clone()));
        }
    }
    if words > 0 && words <= links + 1 && links > 0 {
        marks.push((Mark::OnlyLink, 0..folded.len()));
    }
    let mixed: Vec<_> = text.words().iter().filter(|word| word.mixed).collect();
    if let Some(first) = mixed.first() {
        let mark = if mixed.len() >= 3 { Mark::SeveralMixed } else { Mark::OneMixed };
        marks.push((mark, first.range.clone()));
    }
    if text.hidden() > 0 {
        marks.push((Mark::Hidden, 0..folded.len()));
    }
    let emoji: Vec<_> = folded.char_indices().filter(|(_, c)| is_emoji(*c)).collect();
    if let Some((at, first)) = emoji.first() {
        let mark = if emoji.len() >= 4 { Mark::ManyEmoji } else { Mark::SomeEmoji };
        marks.push((mark, *at..at + first.len_utf8()));
    }
    let letters = text.words().iter().filter(|word| word.kind == WordKind::Letters);
    let (all, shouted) = letters
        .fold((0_usize, 0_usize), |(all, shouted), word| (all + 1, shouted + usize::from(word.shouted)));
    if shouted >= 3 && shouted * 4 >= all {
        marks.push((Mark::Shouting, 0..folded.len()));
    }
    if let Some(at) = folded.find("!!") {
        marks.push((Mark::Exclaiming, at..at + 2));
    }
    marks
}

fn is_emoji(character: char) -> bool {
    matches!(character, '\u{1f300}'..='\u{1faff}' | '\u{2600}'..='\u{27bf}' | '\u{2b50}' | '\u{2b55}')
}

impl SpamModel {
    /// The detector without any operator's data, trained once per process from the shipped seeds.
    pub fn shipped() -> &'static Self {
        static SHIPPED: LazyLock<SpamModel> = LazyLock::new(|| SpamModel::fit(&[]));
        &SHIPPED
    }

    /// Trains on an operator's texts together with the shipped seeds. With enough ordinary texts among them
    /// the threshold is the one at which, in five-fold cross-validation, one in a hundred is flagged.
    #[must_use]
    pub fn train(rows: &[LabelledText]) -> Self {
        Self::fit(rows)
    }

    fn fit(rows: &[LabelledText]) -> Self {
        let mut texts = seeds();
        texts.extend(rows.iter().cloned());
        texts.sort_by(|a, b| (&a.text, a.spam).cmp(&(&b.text, b.spam)));
        texts.dedup();
        let read: Vec<(Example, f32)> = texts
            .iter()
            .map(|row| {
                let text = Normalised::of(&row.text);
                let reading = Reading::of(&text);
                let pairs = reading.pairs();
                let counts = Counts::of_text(&text, Symbols::Counted);
                (Example { counts, cues: reading.cues(&pairs), positive: row.spam }, rule_points(&pairs))
            })
            .collect();
        let (examples, points): (Vec<Example>, Vec<f32>) = read.into_iter().unzip();
        let threshold = cross_validated_threshold(&texts, rows, &examples, &points);
        let model =
            CuedModel::train(&examples.iter().collect::<Vec<_>>(), cue_count(), BALANCE, Training::default());
        let mut hash = Sha256::new();
        hash.update(include_str!("../data/spam_lexicon.txt"));
        for pair in PAIRS {
            hash.update(pair.id);
            hash.update(pair.points.to_le_bytes());
        }
        for row in &texts {
            hash.update([u8::from(row.spam)]);
            hash.update(u64::try_from(row.text.len()).unwrap_or(u64::MAX).to_le_bytes());
            hash.update(&row.text);
        }
        hash.update(threshold.to_le_bytes());
        Self { model, threshold, version: hex::encode(&hash.finalize()[..8]) }
    }

    /// A hash of everything the verdicts depend on.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The model as a file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        cued::to_file(Kind::Spam, &self.version, self.threshold, &self.model)
    }

    /// Reads what [`SpamModel::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Damage`] when the file is no spam model of this program's rules.
    pub fn from_bytes(file: &[u8]) -> Result<Self, Damage> {
        let (version, threshold, model) = cued::from_file(file, Kind::Spam, cue_count())?;
        Ok(Self { model, threshold, version })
    }

    /// Judges a text.
    #[must_use]
    pub fn score(&self, text: &Normalised) -> SpamScore {
        let reading = Reading::of(text);
        let pairs = reading.pairs();
        let cues = reading.cues(&pairs);
        let model_points = if text.words().is_empty() {
            0.0
        } else {
            let hashed = Hashed::of(text, Symbols::Counted);
            let vector = self.model.vector_of_words(&hashed, 0..text.words().len(), &cues);
            model_points(self.model.margin_of(&vector), self.threshold)
        };
        let rules = rule_points(&pairs);
        let total = rules + model_points;
        let level = if total < SUSPECTED_POINTS {
            None
        } else if total >= CONFIDENT_POINTS && rules >= CONFIDENT_RULE_POINTS {
            Some(Level::Confident)
        } else {
            Some(Level::Suspected)
        };
        let mut evidence: Vec<Evidence> = pairs
            .into_iter()
            .map(|(rule, bytes, points)| Evidence { rule, span: text.span_of(bytes), points })
            .collect();
        if model_points > 0.0 {
            let span = text.span_of_words(0..text.words().len());
            evidence.push(Evidence { rule: "model", span, points: model_points });
        }
        evidence.sort_by(|a, b| b.points.total_cmp(&a.points).then(a.span.cmp(&b.span)));
        SpamScore { flagged: level.is_some(), level, score: total / (total + SUSPECTED_POINTS), evidence }
    }
}

/// Rules share words, so that further ones say less: what the strongest two give, and half of the rest.
fn rule_points(pairs: &[(&'static str, Range<usize>, f32)]) -> f32 {
    let mut points: Vec<f32> = pairs.iter().map(|(_, _, points)| *points).collect();
    points.sort_by(|a, b| b.total_cmp(a));
    points.iter().enumerate().map(|(index, points)| if index == 0 { *points } else { points / 2.0 }).sum()
}

fn model_points(margin: f32, threshold: f32) -> f32 {
    (SUSPECTED_POINTS * (1.0 + (margin - threshold) / MODEL_REACH)).clamp(0.0, MOST_MODEL_POINTS)
}

/// The margin at which the shipped model alone suspects.
const SHIPPED_THRESHOLD: f32 = -0.1;

const FALSE_POSITIVES: f64 = 0.01;

const THRESHOLDS: Range<i16> = -10..25;

/// Fewer ordinary texts of an operator say nothing about a rate of one in a hundred.
const FEWEST_ORDINARY: usize = 60;

const FOLDS: usize = 5;

/// Neighbours in sorted order that stay in one fold.
const BLOCK: usize = 4;

fn cross_validated_threshold(
    texts: &[LabelledText],
    rows: &[LabelledText],
    examples: &[Example],
    points: &[f32],
) -> f32 {
    let own: std::collections::BTreeSet<&str> =
        rows.iter().filter(|row| !row.spam).map(|row| row.text.as_str()).collect();
    if own.len() < FEWEST_ORDINARY {
        return SHIPPED_THRESHOLD;
    }
    let folds: Vec<usize> = (0..examples.len()).map(|index| index / BLOCK).collect();
    let margins = out_of_fold_margins(examples, &folds, FOLDS, cue_count(), BALANCE, Training::default());
    let read: Vec<(f32, f32)> = texts
        .iter()
        .zip(points.iter().copied().zip(margins))
        .filter(|(row, _)| own.contains(row.text.as_str()))
        .map(|(_, read)| read)
        .collect();
    let allowed = (read.len() as f64 * FALSE_POSITIVES).floor() as usize;
    THRESHOLDS
        .map(|step| f32::from(step) * 0.05)
        .find(|threshold| {
            let flagged = read
                .iter()
                .filter(|(rules, margin)| rules + model_points(*margin, *threshold) >= SUSPECTED_POINTS);
            flagged.count() <= allowed
        })
        .unwrap_or(f32::from(THRESHOLDS.end) * 0.05)
}

/// The shipped seeds.
fn seeds() -> Vec<LabelledText> {
    let lines = |file: &'static str, spam: bool| {
        file.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with("# "))
            .map(move |line| LabelledText { text: line.to_owned(), spam })
    };
    lines(include_str!("../data/spam_seeds.txt"), true)
        .chain(lines(include_str!("../data/spam_ham_seeds.txt"), false))
        .chain(lines(include_str!("../data/background_en.txt"), false))
        .chain(lines(include_str!("../data/background_ru.txt"), false))
        .chain(lines(include_str!("../data/benign_seeds_en.txt"), false))
        .chain(lines(include_str!("../data/benign_seeds_ru.txt"), false))
        .collect()
}
