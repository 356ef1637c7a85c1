//! What to put in the place of personal data, and how to put it back into an answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::{Bound, Range},
};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{PiiKind, PiiKinds, PiiSpan, find_kinds, fold::placeholders, resolve};

/// What stands in a value's place.
#[derive(Clone, Copy)]
pub enum MaskStyle<'k> {
    /// `<CREDIT_CARD>`. Cannot be put back.
    Kind,
    /// `<CREDIT_CARD ***1111>`: the last four letters or digits; `<CREDIT_CARD>` of values with fewer than
    /// ten of them, and of kinds that are not told apart by their end. Cannot be put back.
    LastFour,
    /// `<CREDIT_CARD#…>` with sixteen letters that are the same for the same value under the same key,
    /// however the value is written, and say nothing without the key.
    Pseudonym(&'k PseudonymKey),
    /// `<CREDIT_CARD_1>`, `<CREDIT_CARD_2>`: the same number for the same value in one request.
    Numbered,
}

/// Keys pseudonyms; one for each tenant. Forgotten when dropped.
pub struct PseudonymKey(Zeroizing<[u8; 32]>);

impl PseudonymKey {
    /// 32 bytes nobody can guess.
    #[must_use]
    pub fn new(key: [u8; 32]) -> Self {
        Self(Zeroizing::new(key))
    }

    fn letters(&self, kind: PiiKind, value: &str) -> String {
        let mut mac =
            <Hmac<Sha256> as KeyInit>::new_from_slice(&*self.0).expect("HMAC takes keys of any length");
        mac.update(kind.as_str().as_bytes());
        mac.update(&[0]);
        mac.update(canonical(kind, value).as_bytes());
        // Letters a to p: no digits, so that no number can pass for a pseudonym.
        let nibbles = mac.finalize().into_bytes();
        nibbles
            .iter()
            .take(8)
            .flat_map(|byte| [byte >> 4, byte & 15])
            .map(|nibble| char::from(b'a' + nibble))
            .collect()
    }
}

impl fmt::Debug for PseudonymKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PseudonymKey(..)")
    }
}

/// A value as all its spellings: without separators, mailboxes and codes in one case, a Russian telephone
/// number with its country's code.
fn canonical(kind: PiiKind, value: &str) -> Zeroizing<String> {
    Zeroizing::new(match kind {
        // What is written with care to case stays as it is.
        PiiKind::Secret | PiiKind::TelegramBotToken | PiiKind::Crypto | PiiKind::Url => value.to_owned(),
        PiiKind::EmailAddress | PiiKind::IpAddress | PiiKind::DomainName => value.to_lowercase(),
        PiiKind::PhoneNumber => {
            let digits: String = value.chars().filter(char::is_ascii_digit).collect();
            match digits.strip_prefix('8') {
                Some(national) if digits.len() == 11 => format!("7{national}"),
                _ => digits,
            }
        }
        _ => value.chars().filter(|letter| letter.is_alphanumeric()).flat_map(char::to_uppercase).collect(),
    })
}

/// A masked text.
pub struct Masked {
    /// The text with placeholders.
    pub text: String,
    /// What was replaced, in the text as given.
    pub spans: Vec<PiiSpan>,
    /// What the placeholders stand for.
    pub replaced: Replaced,
}

impl Masked {
    /// An answer with the originals in their places: [`Replaced::restore`].
    #[must_use]
    pub fn restore(&self, answer: &str) -> String {
        self.replaced.restore(answer)
    }
}

impl fmt::Debug for Masked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Masked").field("spans", &self.spans).finish_non_exhaustive()
    }
}

/// What placeholders stand for, for as long as a request lasts: held in memory only, forgotten when dropped,
/// never printed. Empty for the styles that cannot be put back.
#[derive(Clone, Default)]
pub struct Replaced {
    originals: BTreeMap<String, Zeroizing<String>>,
    longest: usize,
}

impl fmt::Debug for Replaced {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Replaced({} values)", self.originals.len())
    }
}

impl Replaced {
    fn insert(&mut self, placeholder: String, original: &str) {
        self.longest = self.longest.max(placeholder.len());
        self.originals.entry(placeholder).or_insert_with(|| Zeroizing::new(original.to_owned()));
    }

    /// How many different values were replaced.
    #[must_use]
    pub fn len(&self) -> usize {
        self.originals.len()
    }

    /// Whether nothing can be put back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.originals.is_empty()
    }

    /// Placeholders and what they stand for, in the order of the placeholders.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.originals.iter().map(|(placeholder, original)| (placeholder.as_str(), original.as_str()))
    }

    /// An answer with the originals in the places of their placeholders. Looks at each place once: an
    /// original that contains a placeholder is not looked into.
    #[must_use]
    pub fn restore(&self, answer: &str) -> String {
        let mut restorer = self.restorer();
        let mut text = restorer.push(answer);
        text.push_str(&restorer.finish());
        text
    }

    /// Restores an answer that comes in pieces.
    #[must_use]
    pub fn restorer(&self) -> Restorer<'_> {
        Restorer { replaced: self, held: String::new() }
    }
}

/// Puts originals back into an answer that comes in pieces, wherever the pieces are cut: what may be the
/// beginning of a placeholder is held until it is known.
pub struct Restorer<'r> {
    replaced: &'r Replaced,
    /// Begins with `<` when not empty, and is shorter than the longest placeholder.
    held: String,
}

impl fmt::Debug for Restorer<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Restorer").finish_non_exhaustive()
    }
}

impl Restorer<'_> {
    /// Takes a piece; gives what is settled, perhaps nothing.
    #[must_use]
    pub fn push(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        let text = std::mem::take(&mut self.held);
        let mut settled = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(at) = rest.find('<') {
            settled.push_str(&rest[..at]);
            rest = &rest[at..];
            let window = &rest.as_bytes()[..rest.len().min(self.replaced.longest)];
            if let Some(end) = window.iter().position(|byte| *byte == b'>') {
                if let Some(original) = self.replaced.originals.get(&rest[..=end]) {
                    settled.push_str(original);
                    rest = &rest[end + 1..];
                    continue;
                }
            } else if self.may_begin(rest) {
                self.held = rest.to_owned();
                return settled;
            }
            settled.push('<');
            rest = &rest[1..];
        }
        settled.push_str(rest);
        settled
    }

    /// What was held at the end of the answer, as it came.
    #[must_use]
    pub fn finish(self) -> String {
        self.held
    }

    fn may_begin(&self, text: &str) -> bool {
        let next = self.replaced.originals.range::<str, _>((Bound::Included(text), Bound::Unbounded)).next();
        next.is_some_and(|(placeholder, _)| placeholder.starts_with(text))
    }
}

/// Masks the personal data of a text: [`mask_kinds`] of [`PiiKinds::personal`].
#[must_use]
pub fn mask(text: &str, style: MaskStyle<'_>) -> Masked {
    mask_kinds(text, PiiKinds::personal(), style)
}

/// Masks these kinds in a text. Nothing of these kinds is found in what it gives, and masking that again
/// changes nothing.
#[must_use]
pub fn mask_kinds(text: &str, kinds: PiiKinds, style: MaskStyle<'_>) -> Masked {
    mask_spans(text, find_kinds(text, kinds), style)
}

/// Masks given spans of a text, for example those of a model for names beside those of [`super::find`];
/// what overlaps is settled by [`resolve`], what lies outside of the text is left out.
#[must_use]
pub fn mask_spans(text: &str, spans: Vec<PiiSpan>, style: MaskStyle<'_>) -> Masked {
    let (mut texts, replaced) = together(&[(text, spans)], style);
    let (text, spans) = texts.pop().expect("one text in, one out");
    Masked { text, spans, replaced }
}

/// Masks the texts of one request (system prompt, history, message) so that a value has one placeholder in
/// all of them. Gives the masked texts in order, each with its spans, and what the placeholders stand for.
#[must_use]
pub fn mask_together(
    texts: &[&str],
    kinds: PiiKinds,
    style: MaskStyle<'_>,
) -> (Vec<(String, Vec<PiiSpan>)>, Replaced) {
    let found: Vec<_> = texts.iter().map(|text| (*text, find_kinds(text, kinds))).collect();
    together(&found, style)
}

fn together(texts: &[(&str, Vec<PiiSpan>)], style: MaskStyle<'_>) -> (Vec<(String, Vec<PiiSpan>)>, Replaced) {
    // Placeholders people wrote themselves keep their meaning, which is none: none of ours may look the same.
    let written: BTreeSet<&str> =
        texts.iter().flat_map(|(text, _)| placeholders(text).map(|range| &text[range])).collect();
    let mut masking = Masking {
        style,
        written,
        numbers: BTreeMap::new(),
        used: BTreeMap::new(),
        replaced: Replaced::default(),
    };
    let masked = texts.iter().map(|(text, spans)| masking.mask(text, spans.clone())).collect();
    (masked, masking.replaced)
}

struct Masking<'t, 'k> {
    style: MaskStyle<'k>,
    written: BTreeSet<&'t str>,
    /// Numbers given, by kind and value.
    numbers: BTreeMap<(PiiKind, &'t str), String>,
    /// The last number given, by kind.
    used: BTreeMap<PiiKind, u32>,
    replaced: Replaced,
}

impl<'t> Masking<'t, '_> {
    fn mask(&mut self, text: &'t str, spans: Vec<PiiSpan>) -> (String, Vec<PiiSpan>) {
        let mut masked = String::with_capacity(text.len());
        let mut kept = Vec::new();
        let mut end_of_last = 0;
        for (span, bytes) in in_bytes(text, resolve(spans)) {
            masked.push_str(&text[end_of_last..bytes.start]);
            masked.push_str(&self.placeholder(span.kind, &text[bytes.clone()]));
            end_of_last = bytes.end;
            kept.push(span);
        }
        masked.push_str(&text[end_of_last..]);
        (masked, kept)
    }

    fn placeholder(&mut self, kind: PiiKind, value: &'t str) -> String {
        match self.style {
            MaskStyle::Kind => format!("<{kind}>"),
            MaskStyle::LastFour => {
                let letters: Vec<char> = value.chars().filter(|letter| letter.is_alphanumeric()).collect();
                match letters.len().checked_sub(4) {
                    Some(from) if from >= 6 && tells_apart(kind) => {
                        format!("<{kind} ***{}>", letters[from..].iter().collect::<String>())
                    }
                    _ => format!("<{kind}>"),
                }
            }
            MaskStyle::Pseudonym(key) => {
                let placeholder = format!("<{kind}#{}>", key.letters(kind, value));
                // Somebody who saw a pseudonym may not have it turned into the value by writing it.
                if !self.written.contains(placeholder.as_str()) {
                    self.replaced.insert(placeholder.clone(), value);
                }
                placeholder
            }
            MaskStyle::Numbered => {
                if let Some(given) = self.numbers.get(&(kind, value)) {
                    return given.clone();
                }
                let last = self.used.entry(kind).or_default();
                let placeholder = loop {
                    *last += 1;
                    let placeholder = format!("<{kind}_{last}>");
                    if !self.written.contains(placeholder.as_str()) {
                        break placeholder;
                    }
                };
                self.replaced.insert(placeholder.clone(), value);
                self.numbers.insert((kind, value), placeholder.clone());
                placeholder
            }
        }
    }
}

/// Whether the last four letters of such a value help to recognise it: of a mailbox they are its domain's.
fn tells_apart(kind: PiiKind) -> bool {
    use PiiKind as K;
    !matches!(
        kind,
        K::EmailAddress
            | K::Url
            | K::DomainName
            | K::DateTime
            | K::DateOfBirth
            | K::ZipCode
            | K::Person
            | K::Location
            | K::Organization
            | K::Nrp
    )
}

/// Spans that are in order and apart, with their places in bytes; without those beyond the text's end.
fn in_bytes(text: &str, spans: Vec<PiiSpan>) -> Vec<(PiiSpan, Range<usize>)> {
    let mut places = (0u32..).zip(text.char_indices().map(|(at, _)| at).chain([text.len()])).peekable();
    let mut byte_of = |point: u32| places.find(|(known, _)| *known == point).map(|(_, at)| at);
    let mut found = Vec::with_capacity(spans.len());
    let mut last = None;
    for span in spans {
        let start = match last {
            Some((point, at)) if point == span.start => Some(at),
            _ => byte_of(span.start),
        };
        let (Some(start), Some(end)) = (start, byte_of(span.end)) else { break };
        last = Some((span.end, end));
        found.push((span, start..end));
    }
    found
}
