//! Numbers of documents that have letters in them, or are written in parts.

use std::{ops::Range, sync::LazyLock};

use regex::Regex;

use super::{Candidate, FIRM, LOOSE, PiiKind, checksum, context::Denial, fold::Folded};

pub(super) fn propose(folded: &Folded, candidates: &mut Vec<Candidate>) {
    let bytes = folded.text.as_bytes();
    let of_number = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(of_number) {
        let start = at + found;
        let length = bytes[start..].iter().take_while(|byte| of_number(byte)).count();
        at = start + length;
        if (5..=24).contains(&length) {
            number(folded, start..at, candidates);
        }
    }
    russian_passport(folded, candidates);
}

fn number(folded: &Folded, token: Range<usize>, candidates: &mut Vec<Candidate>) {
    let text = folded.text[token.clone()].trim_start_matches('-');
    let start = token.end - text.len();
    let token = start..start + text.trim_end_matches('-').len();
    if !folded.stands_alone(&token) {
        return;
    }
    let number: Vec<u8> = folded.text[token.clone()]
        .bytes()
        .filter(|byte| *byte != b'-')
        .map(|byte| byte.to_ascii_uppercase())
        .collect();
    let digits = number.iter().filter(|byte| byte.is_ascii_digit()).count();
    let letters = number.len() - digits;
    if digits < 4 {
        return;
    }
    let mut propose = |kind, form, proven| {
        candidates.push(Candidate { bytes: token.clone(), kind, form, proven, denial: Denial::Number });
    };
    let leading = number.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    if number.len() == 9 && checksum::nif(&number) {
        propose(if leading == 1 { PiiKind::EsNie } else { PiiKind::EsNif }, FIRM, true);
    }
    if number.len() == 16 && is_fiscal_form(&number) && checksum::fiscal_code(&number) {
        propose(PiiKind::ItFiscalCode, FIRM, true);
    }
    if letters > 0 && checksum::uen(&number) {
        propose(PiiKind::SgUen, LOOSE, true);
    }
    let values = || number[leading..].iter().map(|byte| byte.wrapping_sub(b'0')).collect::<Vec<_>>();
    if leading == 2 && letters == 2 && checksum::dea(&values()) {
        propose(PiiKind::MedicalLicense, LOOSE, true);
    }
    if (1..=2).contains(&leading) && letters == leading && (6..=8).contains(&digits) {
        propose(PiiKind::UsPassport, FIRM, false);
    }
    if (5..=20).contains(&number.len()) && leading <= 2 && digits >= 5.min(number.len() - leading) {
        propose(PiiKind::UsDriverLicense, FIRM, false);
    }
}

/// Six letters, then digits, or the letters that stand for them where two persons would have the same code.
fn is_fiscal_form(code: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_digit() || b"LMNPQRSTUV".contains(byte);
    code.iter().enumerate().all(|(place, byte)| match place {
        0..=5 | 8 | 11 | 15 => byte.is_ascii_uppercase(),
        _ => digit(byte),
    }) && b"ABCDEHLMPRST".contains(&code[8])
}

/// "серия 4509 номер 123456", "4509 № 123456".
fn russian_passport(folded: &Folded, candidates: &mut Vec<Candidate>) {
    static PARTS: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?i)[0-9]{2} ?[0-9]{2},? {0,2}(?:№|n|no\.?|номер:?|number:?) {0,2}[0-9]{6}")
            .expect("a valid pattern")
    });
    for found in PARTS.find_iter(&folded.text) {
        if folded.stands_alone(&found.range()) {
            candidates.push(Candidate {
                bytes: found.range(),
                kind: PiiKind::RuPassport,
                form: FIRM,
                proven: false,
                denial: Denial::None,
            });
        }
    }
}
