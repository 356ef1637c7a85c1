//! What is written in digits only: cards, national numbers, bank accounts.
//!
//! Digits come in groups joined by a space, a hyphen, a dot or brackets; a chain is as many groups as are
//! joined. Any run of groups of a chain may be a number, so "1 4111 1111 1111 1111" holds a card though it
//! begins with something else.

use std::ops::Range;

use super::{Candidate, FIRM, LOOSE, PiiKind, checksum, context::Denial, fold::Folded, phone};

/// Most digits and groups of a number.
const MAX_DIGITS: usize = 20;
const MAX_GROUPS: usize = 10;

/// Groups that are joined, in bytes.
pub(super) struct Chain<'t> {
    pub(super) folded: &'t Folded,
    pub(super) groups: Vec<Range<usize>>,
}

/// What stands between the groups of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    /// One group.
    Solid,
    /// The same character everywhere.
    By(u8),
    /// Different ones, or several.
    Mixed,
}

/// Some groups of a chain, taken together.
pub(super) struct Run<'c, 't> {
    pub(super) chain: &'c Chain<'t>,
    /// First group.
    pub(super) first: usize,
    /// Last group.
    pub(super) last: usize,
    pub(super) digits: &'c [u8],
    pub(super) join: Join,
}

impl Run<'_, '_> {
    pub(super) fn bytes(&self) -> Range<usize> {
        self.chain.groups[self.first].start..self.chain.groups[self.last].end
    }

    /// Whether the groups have these lengths.
    pub(super) fn shaped(&self, lengths: &[usize]) -> bool {
        let groups = &self.chain.groups[self.first..=self.last];
        groups.len() == lengths.len()
            && groups.iter().zip(lengths).all(|(group, length)| group.len() == *length)
    }

    /// What stands after the group.
    pub(super) fn gap(&self, group: usize) -> &str {
        self.chain.gap(group)
    }
}

impl Chain<'_> {
    pub(super) fn gap(&self, group: usize) -> &str {
        &self.folded.text[self.groups[group].end..self.groups[group + 1].start]
    }
}

pub(super) fn propose(folded: &Folded, candidates: &mut Vec<Candidate>) {
    for chain in chains(folded) {
        let mut digits = Vec::with_capacity(MAX_DIGITS);
        for first in 0..chain.groups.len() {
            if !begins(folded, chain.groups[first].start) {
                continue;
            }
            digits.clear();
            let mut join = Join::Solid;
            for last in first..chain.groups.len().min(first + MAX_GROUPS) {
                let group = &chain.groups[last];
                if digits.len() + group.len() > MAX_DIGITS {
                    break;
                }
                digits.extend(folded.text.as_bytes()[group.clone()].iter().map(|byte| byte - b'0'));
                if last > first {
                    let gap = chain.gap(last - 1).as_bytes();
                    join = match (join, gap) {
                        (Join::Solid, [one]) => Join::By(*one),
                        (Join::By(same), [one]) if same == *one => join,
                        _ => Join::Mixed,
                    };
                }
                if ends(folded, group.end) {
                    let run = Run { chain: &chain, first, last, digits: &digits, join };
                    card(&run, candidates);
                    national(&run, candidates);
                }
            }
        }
        phone::propose(&chain, candidates);
    }
}

/// Groups of digits and what joins them.
fn chains(folded: &Folded) -> impl Iterator<Item = Chain<'_>> {
    let bytes = folded.text.as_bytes();
    let mut at = 0;
    let mut next_group = move || {
        let start = at + bytes[at..].iter().position(u8::is_ascii_digit)?;
        let length = bytes[start..].iter().position(|byte| !byte.is_ascii_digit());
        at = length.map_or(bytes.len(), |length| start + length);
        Some(start..at)
    };
    let mut waiting = next_group();
    std::iter::from_fn(move || {
        let mut groups = vec![waiting.take()?];
        for group in std::iter::from_fn(&mut next_group) {
            let end = groups[groups.len() - 1].end;
            if !joins(&bytes[end..group.start]) {
                waiting = Some(group);
                break;
            }
            groups.push(group);
        }
        Some(Chain { folded, groups })
    })
}

/// Whether this may stand inside one number.
fn joins(gap: &[u8]) -> bool {
    matches!(
        gap,
        b" " | b"-"
            | b"."
            | b"/"
            | b"("
            | b")"
            | b"  "
            | b") "
            | b" ("
            | b")-"
            | b"-("
            | b" - "
            | b") - "
            | b")("
    )
}

/// Whether a number may begin here: no letter before, and not in the middle of a fraction.
pub(super) fn begins(folded: &Folded, start: usize) -> bool {
    match folded.before(start) {
        None => true,
        Some('.' | ',') => {
            let before = &folded.text.as_bytes()[..start - 1];
            let whole = before.iter().rev().take_while(|byte| byte.is_ascii_digit()).take(4).count();
            !(1..=3).contains(&whole)
        }
        Some(letter) => !super::fold::is_word(letter),
    }
}

/// Whether a number may end here: no letter after, and no fraction.
pub(super) fn ends(folded: &Folded, end: usize) -> bool {
    match folded.after(end) {
        None => true,
        Some('.') => !folded.text.as_bytes().get(end + 1).is_some_and(u8::is_ascii_digit),
        Some(letter) => !super::fold::is_word(letter),
    }
}

/// How well a number's beginning and length fit an issuer of cards.
enum Issuer {
    /// A network with cards of this length.
    Known,
    /// A network whose numbers are short and begin like much else.
    Doubtful,
    Unknown,
}

fn issuer(digits: &[u8]) -> Issuer {
    let prefix =
        |length: usize| digits[..length].iter().fold(0u32, |sum, digit| sum * 10 + u32::from(*digit));
    let length = digits.len();
    match (prefix(2), prefix(4), length) {
        // Visa; 13 digits are the oldest ones.
        (40..=49, _, 13 | 16 | 19) => Issuer::Known,
        // Mastercard.
        (51..=55, _, 16) | (_, 2221..=2720, 16) => Issuer::Known,
        // American Express; Diners Club.
        (34 | 37, _, 15) | (36 | 38 | 39, _, 14) | (_, 3000..=3059 | 3095, 14) => Issuer::Known,
        // JCB, today's and the oldest; Diners Club of 16 digits.
        (35, _, 16..=19) | (_, 1800 | 2131, 15) | (30 | 36 | 38 | 39, _, 16) => Issuer::Known,
        // Mir; Discover, RuPay; UnionPay; Troy, Uzcard, Humo, Belkart.
        (_, 2200..=2204, 16..=19) | (60 | 64 | 65, _, 16..=19) | (62 | 81, _, 16..=19) => Issuer::Known,
        (_, 9792 | 8600 | 9860 | 9112, 16) => Issuer::Known,
        // Maestro and its kin.
        (50 | 56..=69, _, 16..=19) => Issuer::Known,
        (50 | 56..=69, _, 12..=15) => Issuer::Doubtful,
        _ => Issuer::Unknown,
    }
}

fn card(run: &Run<'_, '_>, candidates: &mut Vec<Candidate>) {
    if !(12..=19).contains(&run.digits.len()) || !checksum::luhn(run.digits) {
        return;
    }
    let printed =
        [&[4, 4, 4, 4][..], &[4, 6, 5], &[4, 6, 4], &[4, 4, 4, 4, 3], &[4, 4, 4, 1], &[4, 3, 3, 3], &[6, 13]]
            .iter()
            .any(|lengths| run.shaped(lengths));
    let written = match run.join {
        Join::Solid => true,
        Join::By(b' ' | b'-') => printed,
        // A card in groups of any other form is taken for one beside the word only.
        Join::By(b'.') | Join::Mixed => false,
        Join::By(_) => return,
    };
    let firm = written && matches!(issuer(run.digits), Issuer::Known);
    candidates.push(Candidate {
        bytes: run.bytes(),
        kind: PiiKind::CreditCard,
        form: if firm { FIRM } else { LOOSE },
        proven: true,
        // Nobody prints an order's number like a card's.
        denial: if firm && printed { Denial::None } else { Denial::Number },
    });
}

/// A national number: kind, its form, whether proven. What needs a word has no proof.
fn national(run: &Run<'_, '_>, candidates: &mut Vec<Candidate>) {
    use PiiKind as K;
    let digits = run.digits;
    let solid = run.join == Join::Solid;
    let spaced = run.join == Join::By(b' ');
    let hyphens = run.join == Join::By(b'-');
    let mut propose = |kind, form, proven| {
        candidates.push(Candidate { bytes: run.bytes(), kind, form, proven, denial: Denial::Number });
    };
    let firm_if = |firm: bool| if firm { FIRM } else { LOOSE };
    match digits.len() {
        8 if (solid || run.shaped(&[2, 3, 3])) && checksum::tfn(digits) => propose(K::AuTfn, LOOSE, true),
        9 => {
            let shaped = run.shaped(&[3, 2, 4]) && (hyphens || spaced || run.join == Join::By(b'.'));
            if solid || shaped {
                let (area, group, serial) = (
                    digits[..3].iter().fold(0, |sum, digit| sum * 10 + u32::from(*digit)),
                    &digits[3..5],
                    &digits[5..],
                );
                let group = group[0] * 10 + group[1];
                let issued = group != 0 && serial.iter().any(|digit| *digit != 0);
                if issued && area != 0 && area != 666 && area < 900 {
                    propose(K::UsSsn, firm_if(hyphens), true);
                } else if area >= 900 && matches!(group, 50..=65 | 70..=88 | 90..=92 | 94..=99) {
                    propose(K::UsItin, FIRM, false);
                }
            }
            if solid || (spaced || hyphens) && run.shaped(&[3, 3, 3]) {
                if checksum::tfn(digits) {
                    propose(K::AuTfn, LOOSE, true);
                }
                if checksum::acn(digits) {
                    propose(K::AuAcn, LOOSE, true);
                }
            }
            if solid {
                propose(K::UsPassport, FIRM, false);
            }
        }
        10 => {
            if solid && checksum::inn(digits) {
                propose(K::RuInn, LOOSE, true);
            }
            if (solid || run.shaped(&[3, 3, 4])) && checksum::nhs(digits) {
                propose(K::UkNhs, LOOSE, true);
            }
            if (solid || run.shaped(&[4, 5, 1])) && checksum::medicare(digits) {
                propose(K::AuMedicare, LOOSE, true);
            }
            if solid || spaced && (run.shaped(&[4, 6]) || run.shaped(&[2, 2, 6])) {
                propose(K::RuPassport, FIRM, false);
                propose(K::RuDriverLicense, FIRM, false);
            }
        }
        11 => {
            if checksum::snils(digits) && (solid || run.shaped(&[3, 3, 3, 2])) {
                let as_printed = !solid && run.gap(run.first) == "-" && run.gap(run.first + 1) == "-";
                propose(K::RuSnils, firm_if(as_printed), true);
            }
            if solid && checksum::pesel(digits) {
                propose(K::PlPesel, LOOSE, true);
            }
            if (solid || run.shaped(&[2, 3, 3, 3])) && checksum::abn(digits) {
                propose(K::AuAbn, LOOSE, true);
            }
            if (solid || run.shaped(&[4, 5, 1, 1])) && checksum::medicare(digits) {
                propose(K::AuMedicare, LOOSE, true);
            }
            if checksum::cpf(digits) && (solid || run.shaped(&[3, 3, 3, 2])) {
                let as_printed = !solid
                    && run.gap(run.first) == "."
                    && run.gap(run.first + 1) == "."
                    && run.gap(run.first + 2) == "-";
                propose(K::BrCpf, firm_if(as_printed), true);
            }
        }
        12 => {
            if solid && checksum::inn(digits) {
                propose(K::RuInn, LOOSE, true);
            }
            if (solid || run.shaped(&[4, 4, 4])) && checksum::aadhaar(digits) {
                propose(K::InAadhaar, LOOSE, true);
            }
        }
        13 | 15 if solid && checksum::ogrn(digits) => propose(K::RuOgrn, LOOSE, true),
        20 if matches!(digits[0], 3 | 4) && (solid || spaced || run.join == Join::By(b'.')) => {
            propose(K::RuBankAccount, FIRM, false);
        }
        _ => {}
    }
    if (8..=17).contains(&digits.len()) && (solid || spaced || hyphens) {
        propose(K::UsBankNumber, FIRM, false);
    }
}
