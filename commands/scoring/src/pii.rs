//! Personal data and secrets in a text, and what to put in their place.
//!
//! A recogniser of a family of kinds (`numbers`, `phone`, `accounts`, `network`, `secrets`,
//! `documents`, `dates`) proposes stretches by their form and proves what can be proven: check digits,
//! numbering plans, registries' structures. `context` then looks at the words beside them. A stretch whose
//! form says much starts at 500, one that ordinary numbers share at 200; a proof adds 350, a word that speaks
//! for it 150, a word that says it is something else takes 300. From [`REPORTED_FROM`] on it is reported;
//! of those that overlap the surest, then the longest. So a bare ten-digit number needs both its check
//! digits and the word beside it, and a wrong check digit is never a card.
//!
//! Names of persons, places and organisations need a model; what one finds can be given to [`resolve`] and
//! [`mask_spans`] beside what is found here.
//!
//! To add a kind: a variant of [`PiiKind`], its recogniser, its words in `data/pii_context.txt`, examples
//! and counter-examples in `tests/pii.rs`, a line in the guide.

mod accounts;
mod checksum;
mod context;
mod dates;
mod documents;
mod fold;
mod mask;
mod network;
mod numbers;
mod phone;
mod secrets;

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};
use strum::{EnumCount, VariantArray};

use context::Denial;
use fold::Folded;
pub use mask::{
    MaskStyle, Masked, PseudonymKey, Replaced, Restorer, mask, mask_kinds, mask_spans, mask_together,
};

/// Confidence in thousandths from which a stretch is reported.
pub const REPORTED_FROM: u16 = 600;

/// A form that says much by itself.
const FIRM: u16 = 500;
/// A form that ordinary numbers share.
const LOOSE: u16 = 200;
const PROOF: u16 = 350;
const CONTEXT: u16 = 150;
const DENIED: u16 = 300;

/// Looks at a text again after hiding what was found: words come nearer to what is left. Words reach five
/// words far and what is hidden counts as one, so this many looks see everything.
const LOOKS: usize = 8;

/// What a stretch of text is. Names are Microsoft Presidio's where it has the kind. In the order in which
/// equally sure readings of one stretch are preferred.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    strum::IntoStaticStr,
    strum::EnumString,
    strum::EnumCount,
    strum::VariantArray,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum PiiKind {
    /// What a Telegram bot signs in with.
    TelegramBotToken,
    /// A payment card, 12 to 19 digits.
    CreditCard,
    /// An international bank account number.
    IbanCode,
    /// A wallet: Bitcoin and its kin, Ethereum, TON.
    Crypto,
    /// A mailbox.
    EmailAddress,
    /// A telephone, with its extension.
    PhoneNumber,
    /// IPv4 or IPv6, without port and prefix.
    IpAddress,
    /// A network card.
    MacAddress,
    /// An address with a password inside.
    Url,
    /// Social security, United States.
    UsSsn,
    /// Taxpayers without social security, United States.
    UsItin,
    /// A passport, United States and those alike.
    UsPassport,
    /// A driver's licence.
    UsDriverLicense,
    /// A bank account that is no IBAN.
    UsBankNumber,
    /// Taxpayer, Russia.
    RuInn,
    /// Pension insurance, Russia.
    RuSnils,
    /// Company register, Russia.
    RuOgrn,
    /// Passport, Russia.
    RuPassport,
    /// Driver's licence, Russia.
    RuDriverLicense,
    /// Bank account, Russia: 20 digits.
    RuBankAccount,
    /// Health service, United Kingdom.
    UkNhs,
    /// Identity, Spain.
    EsNif,
    /// Identity of foreigners, Spain.
    EsNie,
    /// Codice fiscale, Italy.
    ItFiscalCode,
    /// Population register, Poland.
    PlPesel,
    /// Business, Australia.
    AuAbn,
    /// Company, Australia.
    AuAcn,
    /// Taxpayer, Australia.
    AuTfn,
    /// Health insurance, Australia.
    AuMedicare,
    /// Entity, Singapore.
    SgUen,
    /// Identity, India.
    InAadhaar,
    /// Taxpayer, Brazil.
    BrCpf,
    /// A prescriber's number, United States.
    MedicalLicense,
    /// A key, token, password or private key.
    Secret,
    /// A date beside a word of birth.
    DateOfBirth,
    /// Any date or time. Only when asked for.
    DateTime,
    /// A site or its address. Only when asked for.
    DomainName,
    /// A postal code. Only when asked for.
    ZipCode,
    /// A person's name. Never found here: see [`mask_spans`].
    Person,
    /// A place. Never found here.
    Location,
    /// A company or institution. Never found here.
    Organization,
    /// Nationality, religion or political group. Never found here.
    Nrp,
}

impl PiiKind {
    /// All of them.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// `CREDIT_CARD`, …
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// From `CREDIT_CARD`, …; absent when there is no such kind.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        name.parse().ok()
    }
}

impl std::fmt::Display for PiiKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PiiKinds(u64);

const _: () = assert!(PiiKind::COUNT <= 64, "a kind is a bit");

impl PiiKinds {
    /// No kind.
    pub const NONE: Self = Self(0);

    /// Every kind, also those that are personal only beside others: dates, sites, postal codes.
    pub const ALL: Self = Self(u64::MAX >> (64 - PiiKind::COUNT));

    /// The kinds that are personal or secret by themselves. The default.
    #[must_use]
    pub fn personal() -> Self {
        Self::ALL.without(PiiKind::DateTime).without(PiiKind::DomainName).without(PiiKind::ZipCode)
    }

    /// With one more.
    #[must_use]
    pub fn with(self, kind: PiiKind) -> Self {
        Self(self.0 | 1 << kind as u32)
    }

    /// With one less.
    #[must_use]
    pub fn without(self, kind: PiiKind) -> Self {
        Self(self.0 & !(1 << kind as u32))
    }

    /// The kinds it holds.
    pub fn iter(self) -> impl Iterator<Item = PiiKind> {
        PiiKind::ALL.iter().copied().filter(move |kind| self.contains(*kind))
    }

    /// Whether it holds the kind.
    #[must_use]
    pub fn contains(self, kind: PiiKind) -> bool {
        self.0 & 1 << kind as u32 != 0
    }
}

impl Default for PiiKinds {
    fn default() -> Self {
        Self::personal()
    }
}

impl FromIterator<PiiKind> for PiiKinds {
    fn from_iter<I: IntoIterator<Item = PiiKind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::NONE, Self::with)
    }
}

/// Personal data in a text. Its place only, never its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PiiSpan {
    /// First code point.
    pub start: u32,
    /// Code point after the last.
    pub end: u32,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: PiiKind,
    /// How sure, in thousandths.
    pub confidence_permille: u16,
}

/// A stretch that may be something.
struct Candidate {
    bytes: Range<usize>,
    kind: PiiKind,
    /// [`FIRM`] or [`LOOSE`].
    form: u16,
    proven: bool,
    denial: Denial,
}

impl Candidate {
    /// A form that leaves no doubt: nothing speaks against it.
    fn certain(bytes: Range<usize>, kind: PiiKind) -> Self {
        Self { bytes, kind, form: FIRM, proven: true, denial: Denial::None }
    }

    /// A form that is reported beside the right word only.
    fn needs_word(bytes: Range<usize>, kind: PiiKind) -> Self {
        Self { bytes, kind, form: FIRM, proven: false, denial: Denial::Number }
    }

    /// Absent when it stays below [`REPORTED_FROM`].
    fn confidence(&self, folded: &Folded) -> Option<u16> {
        let alone = self.form + if self.proven { PROOF } else { 0 };
        if alone + CONTEXT < REPORTED_FROM {
            return None;
        }
        let words = context::weigh(folded, &self.bytes, self.kind, self.denial);
        let spoken = if words.speak_for { CONTEXT } else { 0 };
        let denied = if words.deny { DENIED } else { 0 };
        Some((alone + spoken).saturating_sub(denied)).filter(|sum| *sum >= REPORTED_FROM)
    }
}

/// Personal data and secrets of a text, in order and apart: [`find_kinds`] of [`PiiKinds::personal`].
#[must_use]
pub fn find(text: &str) -> Vec<PiiSpan> {
    find_kinds(text, PiiKinds::personal())
}

/// Stretches of these kinds in a text, in order and apart, in code points of the text as given. Takes time
/// linear in the text's length. What [`mask`] put into a text, and what looks like it, is never a find.
#[must_use]
pub fn find_kinds(text: &str, kinds: PiiKinds) -> Vec<PiiSpan> {
    let mut folded = Folded::new(text);
    let mut spans = Vec::new();
    for _ in 0..LOOKS {
        let found = look(&folded, kinds);
        if found.is_empty() {
            break;
        }
        let stretches: Vec<_> = found.iter().map(|(bytes, ..)| bytes.clone()).collect();
        spans.extend(found.into_iter().map(|(bytes, kind, confidence_permille)| {
            let points = folded.points(&bytes);
            PiiSpan { start: points.start, end: points.end, kind, confidence_permille }
        }));
        folded = folded.hide(&stretches);
    }
    spans.sort_by_key(|span| span.start);
    spans
}

/// One look at a text: what is sure enough, in order and apart.
fn look(folded: &Folded, kinds: PiiKinds) -> Vec<(Range<usize>, PiiKind, u16)> {
    let mut candidates = Vec::new();
    numbers::propose(folded, &mut candidates);
    network::propose(folded, kinds, &mut candidates);
    accounts::propose(folded, &mut candidates);
    secrets::propose(folded, &mut candidates);
    documents::propose(folded, &mut candidates);
    dates::propose(folded, kinds, &mut candidates);
    let scored = candidates
        .into_iter()
        .filter(|candidate| kinds.contains(candidate.kind))
        .filter_map(|candidate| {
            let confidence = candidate.confidence(folded)?;
            Some((candidate.bytes, candidate.kind, confidence))
        })
        .collect();
    apart(scored, |(bytes, kind, confidence)| (bytes.clone(), *kind, *confidence))
}

/// Spans that overlap settled: the surest stays, of equally sure ones the longest, then the first. Takes
/// spans of [`find`] and of others, a model for names for example; gives them in order and apart.
#[must_use]
pub fn resolve(spans: Vec<PiiSpan>) -> Vec<PiiSpan> {
    let spans: Vec<_> = spans.into_iter().filter(|span| span.start < span.end).collect();
    apart(spans, |span| (span.start as usize..span.end as usize, span.kind, span.confidence_permille))
}

fn apart<T>(mut found: Vec<T>, what: impl Fn(&T) -> (Range<usize>, PiiKind, u16)) -> Vec<T> {
    found.sort_by_cached_key(|one| {
        let (bytes, kind, confidence) = what(one);
        (u16::MAX - confidence, usize::MAX - bytes.len(), bytes.start, kind)
    });
    let mut kept: BTreeMap<usize, (usize, T)> = BTreeMap::new();
    for one in found {
        let (bytes, ..) = what(&one);
        // Those kept are apart, so the last that begins before this one's end is the only one to ask.
        if kept.range(..bytes.end).next_back().is_none_or(|(_, (end, _))| *end <= bytes.start) {
            kept.insert(bytes.start, (bytes.end, one));
        }
    }
    kept.into_values().map(|(_, one)| one).collect()
}
