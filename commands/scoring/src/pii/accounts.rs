//! Bank accounts with a registry of structures, and wallets.

use std::{collections::BTreeMap, ops::Range, sync::LazyLock};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};

use super::{Candidate, FIRM, PiiKind, checksum, context::Denial, fold::Folded};

/// What follows the check digits, per country: a class for each character.
static STRUCTURES: LazyLock<BTreeMap<[u8; 2], Vec<u8>>> = LazyLock::new(|| {
    let lines = include_str!("../../data/pii_iban.txt").lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (country, structure) = line.split_once(' ').expect("country, space, structure");
            let mut classes = Vec::new();
            let mut count = 0;
            for byte in structure.bytes() {
                match byte {
                    b'0'..=b'9' => count = count * 10 + usize::from(byte - b'0'),
                    class => {
                        classes.resize(classes.len() + count, class);
                        count = 0;
                    }
                }
            }
            (country.as_bytes().try_into().expect("two letters"), classes)
        })
        .collect()
});

/// What is found here, and what turned out to be nothing: parts of a mistyped account are no cards.
pub(super) fn propose(folded: &Folded, candidates: &mut Vec<Candidate>) {
    let mut mistyped = Vec::new();
    for start in beginnings(folded) {
        if let Some((bytes, right)) = iban(folded, start) {
            if right {
                candidates.push(Candidate::certain(bytes, PiiKind::IbanCode));
            } else {
                mistyped.push(bytes);
            }
        }
    }
    if !mistyped.is_empty() {
        candidates.retain(|candidate| {
            // They begin in order; only the last that begins before the candidate can hold it.
            let after = mistyped.partition_point(|account| account.start <= candidate.bytes.start);
            after == 0 || mistyped[after - 1].end < candidate.bytes.end || candidate.kind == PiiKind::IbanCode
        });
    }
    wallets(folded, candidates);
}

/// Where two letters and two digits begin a word.
fn beginnings(folded: &Folded) -> impl Iterator<Item = usize> {
    let bytes = folded.text.as_bytes();
    bytes.windows(4).enumerate().filter_map(|(at, window)| {
        let fits = window[0].is_ascii_alphabetic()
            && window[1].is_ascii_alphabetic()
            && window[2].is_ascii_digit()
            && window[3].is_ascii_digit();
        (fits && !folded.before(at).is_some_and(super::fold::is_word)).then_some(at)
    })
}

/// An account of its country's structure: where, and whether its check digits are right.
fn iban(folded: &Folded, start: usize) -> Option<(Range<usize>, bool)> {
    let text = folded.text.as_bytes();
    let country = [text[start].to_ascii_uppercase(), text[start + 1].to_ascii_uppercase()];
    let classes = STRUCTURES.get(&country)?;
    let mut iban = text[start..start + 4].to_ascii_uppercase();
    let mut at = start + 4;
    for class in classes {
        // One blank or hyphen may part the groups.
        if matches!(text.get(at), Some(b' ' | b'-')) {
            at += 1;
        }
        let byte = text.get(at)?.to_ascii_uppercase();
        let fits = match class {
            b'n' => byte.is_ascii_digit(),
            b'a' => byte.is_ascii_uppercase(),
            _ => byte.is_ascii_alphanumeric(),
        };
        if !fits {
            return None;
        }
        iban.push(byte);
        at += 1;
    }
    if folded.after(at).is_some_and(super::fold::is_word) {
        return None;
    }
    Some((start..at, checksum::mod_97(&iban)))
}

fn wallets(folded: &Folded, candidates: &mut Vec<Candidate>) {
    let bytes = folded.text.as_bytes();
    let of_wallet = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(of_wallet) {
        let start = at + found;
        let length = bytes[start..].iter().take_while(|byte| of_wallet(byte)).count();
        at = start + length;
        let token = start..at;
        if !(25..=90).contains(&length) || !folded.stands_alone(&token) {
            continue;
        }
        let text = &folded.text[token.clone()];
        let base58 = length <= 36 && checksum::base58_address(text.as_bytes());
        let lower = || text.to_ascii_lowercase();
        let bech32 = || {
            ["bc1", "tb1", "ltc1"].iter().any(|prefix| lower().starts_with(prefix))
                && checksum::bech32_address(text)
        };
        let ton = || {
            length == 48
                && URL_SAFE
                    .decode(text)
                    .or_else(|_| STANDARD.decode(text))
                    .is_ok_and(|address| checksum::ton_address(&address))
        };
        let ethereum = length == 42
            && (text.starts_with("0x") || text.starts_with("0X"))
            && text[2..].bytes().all(|byte| byte.is_ascii_hexdigit());
        if base58 || bech32() || ton() {
            candidates.push(Candidate::certain(token, PiiKind::Crypto));
        } else if ethereum && text[2..].bytes().any(|byte| byte != b'0') {
            let digits = &text.as_bytes()[2..];
            let one_case =
                !digits.iter().any(u8::is_ascii_uppercase) || !digits.iter().any(u8::is_ascii_lowercase);
            candidates.push(Candidate {
                bytes: token,
                kind: PiiKind::Crypto,
                form: FIRM,
                // Mixed case is a check; where it fails only a word of wallets can tell.
                proven: one_case || checksum::ethereum_case(digits),
                denial: Denial::Secret,
            });
        }
    }
}
