//! Mailboxes, machines and sites.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    ops::Range,
    sync::LazyLock,
};

use regex::Regex;

use super::{
    Candidate, FIRM, PiiKind, PiiKinds,
    context::Denial,
    fold::{Folded, is_word},
};

/// Longest mailbox name and host, RFC 5321.
const MAX_LOCAL: usize = 64;
const MAX_HOST: usize = 253;

/// Endings of files that look like a country's domain, or are after an `@` no host at all.
const FILE_ENDINGS: &[&str] = &[
    "png", "jpg", "jpeg", "gif", "svg", "webp", "css", "scss", "js", "ts", "jsx", "tsx", "json", "html",
    "htm", "xml", "yml", "yaml", "toml", "md", "txt", "csv", "pdf", "doc", "docx", "xls", "xlsx", "zip",
    "tar", "gz", "exe", "dll", "rs", "py", "go", "rb", "java", "kt", "c", "cc", "cpp", "h", "hpp", "cs",
    "sh", "pl", "php", "sql", "log", "lock",
];

/// Domains of general use that are common enough to be told from a sentence whose blank is missing.
const COMMON_DOMAINS: &[&str] = &[
    "com", "org", "net", "edu", "gov", "mil", "int", "info", "biz", "name", "pro", "app", "dev", "cloud",
    "online", "site", "store", "shop", "tech", "xyz", "club", "blog", "рф", "бел", "укр", "xn--p1ai",
];

pub(super) fn propose(folded: &Folded, kinds: PiiKinds, candidates: &mut Vec<Candidate>) {
    mailboxes(folded, candidates);
    machines(folded, candidates);
    urls(folded, candidates);
    if kinds.contains(PiiKind::DomainName) {
        sites(folded, candidates);
    }
}

/// Around each `@`: a name before it, a host with a top-level domain after it.
fn mailboxes(folded: &Folded, candidates: &mut Vec<Candidate>) {
    let text = &folded.text;
    for (at, _) in text.match_indices('@') {
        let local = text[..at]
            .char_indices()
            .rev()
            .take_while(|(_, letter)| letter.is_alphanumeric() || "._%+-'&~=".contains(*letter))
            .take(MAX_LOCAL)
            .last()
            .map_or(at, |(start, _)| start);
        // Quotation marks and the like before a name are not its part.
        let start = at - text[local..at].trim_start_matches(['.', '\'', '-', '&', '~', '=', '%', '+']).len();
        let name = &text[start..at];
        // "key=me@example.org" names a mailbox of "me".
        let start = name.rfind('=').map_or(start, |sign| start + sign + 1);
        let name = &text[start..at];
        if name.is_empty() || name.ends_with('.') || name.contains("..") || text[..start].ends_with("://") {
            continue;
        }
        let Some(host) = host(&text[at + 1..]) else { continue };
        let end = at + 1 + host.len();
        // "git@github.com:team/code" is how programs address a machine.
        if name == "git" && text[end..].starts_with(':') {
            continue;
        }
        if !folded.before(start).is_some_and(|letter| is_word(letter) || letter == '@') {
            candidates.push(Candidate::certain(start..end, PiiKind::EmailAddress));
        }
    }
}

/// A host with a top-level domain at the beginning of a text: labels of letters, digits and inner hyphens.
fn host(text: &str) -> Option<&str> {
    let end = text
        .char_indices()
        .take(MAX_HOST + 1)
        .find(|(_, letter)| !(letter.is_alphanumeric() || matches!(letter, '.' | '-')))
        .map_or(text.len().min(MAX_HOST), |(end, _)| end);
    let mut host = text.get(..end)?.trim_end_matches(['.', '-']);
    // What follows without a blank may be the next sentence: "me@example.org.Thanks" has no such domain, but
    // neither is it worth guessing; only what cannot be a domain is cut off.
    loop {
        let (rest, top) = host.rsplit_once('.')?;
        let valid_top = (top.chars().count() >= 2
            && top.chars().count() <= 24
            && (top.chars().all(char::is_alphabetic) || top.to_ascii_lowercase().starts_with("xn--")))
            && !FILE_ENDINGS.contains(&top.to_ascii_lowercase().as_str())
            || matches!(top, "rs" | "sh" | "pl" | "md" | "py" | "cc");
        if valid_top {
            break;
        }
        host = rest;
    }
    let labels = |label: &str| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-');
    let next = text[host.len()..].chars().next();
    (host.split('.').all(labels) && !next.is_some_and(|letter| letter == '_' || letter == '@'))
        .then_some(host)
}

/// Letters, digits and signs addresses of machines are made of.
fn of_machine(byte: u8) -> bool {
    byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':' | b'-')
}

fn machines(folded: &Folded, candidates: &mut Vec<Candidate>) {
    let bytes = folded.text.as_bytes();
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(|byte| of_machine(*byte)) {
        let start = at + found;
        let length = bytes[start..].iter().take_while(|byte| of_machine(**byte)).count();
        at = start + length;
        if length >= 3 {
            machine(folded, start..at, candidates);
        }
    }
}

/// Longest text of an IPv6 address with an IPv4 one at its end.
const MAX_MACHINE: usize = 64;

fn machine(folded: &Folded, token: Range<usize>, candidates: &mut Vec<Candidate>) {
    let token = trim(folded, token);
    let text = &folded.text[token.clone()];
    if text.len() <= MAX_MACHINE && folded.stands_alone(&token) {
        match mac(text) {
            Some(true) => {
                candidates.push(Candidate::certain(token, PiiKind::MacAddress));
                return;
            }
            Some(false) => candidates.push(Candidate::needs_word(token.clone(), PiiKind::MacAddress)),
            None => {}
        }
        if let Ok(address) = text.parse::<Ipv6Addr>()
            && names_one_machine(text, address)
        {
            candidates.push(Candidate::certain(token, PiiKind::IpAddress));
            return;
        }
    }
    // IPv4: among what colons and hyphens part, for a port or a range may follow.
    let mut start = token.start;
    for part in text.split([':', '-']) {
        let bytes = start..start + part.len();
        start = bytes.end + 1;
        if !(7..=17).contains(&part.len()) {
            continue;
        }
        let bytes = trim(folded, bytes);
        let Ok(address) = folded.text[bytes.clone()].parse::<Ipv4Addr>() else { continue };
        if folded.stands_alone(&bytes)
            && !address.is_loopback()
            && !address.is_unspecified()
            && !address.is_broadcast()
        {
            candidates.push(Candidate {
                bytes,
                kind: PiiKind::IpAddress,
                form: FIRM,
                proven: true,
                denial: Denial::Address,
            });
        }
    }
}

/// Without the signs of the sentence around it. A leading or trailing `::` is the address's own.
fn trim(folded: &Folded, mut bytes: Range<usize>) -> Range<usize> {
    loop {
        let text = &folded.text[bytes.clone()];
        if text.starts_with(['.', '-']) || text.starts_with(':') && !text.starts_with("::") {
            bytes.start += 1;
        } else if text.ends_with(['.', '-'])
            || text.ends_with(':') && (!text.ends_with("::") || text.ends_with(":::"))
        {
            bytes.end -= 1;
        } else {
            return bytes;
        }
    }
}

/// Six or eight pairs joined by the same sign, or three fours by dots; not the broadcast's, not zeros. Says
/// whether the form is one of its own: digits only by hyphens or dots are as well a part's number.
fn mac(text: &str) -> Option<bool> {
    let joined = |sign: char, length: usize, groups: &[usize]| {
        let parts: Vec<&str> = text.split(sign).collect();
        let hex = |part: &&str| part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        groups.contains(&parts.len()) && parts.iter().all(hex)
    };
    let colons = joined(':', 2, &[6, 8]);
    if !(colons || joined('-', 2, &[6, 8]) || joined('.', 4, &[3])) {
        return None;
    }
    let hex = || text.bytes().filter(u8::is_ascii_hexdigit);
    let one_machine = hex().any(|byte| byte != b'0') && hex().any(|byte| !byte.eq_ignore_ascii_case(&b'f'));
    one_machine.then(|| colons || hex().any(|byte| byte.is_ascii_alphabetic()))
}

/// Not `::1` and not a path of a program (`a::b`): several groups, or a first one of four with a digit.
fn names_one_machine(text: &str, address: Ipv6Addr) -> bool {
    let groups = text.split(':').filter(|group| !group.is_empty());
    let first = text.split(':').next().unwrap_or_default();
    !address.is_loopback()
        && !address.is_unspecified()
        && text.bytes().any(|byte| byte.is_ascii_digit())
        && (text.contains('.')
            || groups.count() >= 3
            || first.len() == 4 && first.bytes().any(|byte| byte.is_ascii_digit()))
}

/// An address with a scheme, up to what cannot be in one.
static ADDRESS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"(?i)\b[a-z][a-z0-9+.\-]{1,20}://[^\s<>"'`\u{FFFC}|\\]+"#).expect("a valid pattern")
});

/// Addresses with a password inside: `scheme://name:password@host`.
fn urls(folded: &Folded, candidates: &mut Vec<Candidate>) {
    for found in ADDRESS.find_iter(&folded.text) {
        let authority = found.as_str().split_once("://").map_or("", |(_, rest)| rest);
        let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
        let Some((user, host)) = authority.rsplit_once('@') else { continue };
        if user.split_once(':').is_some_and(|(_, password)| password.contains(char::is_alphanumeric))
            && !host.is_empty()
        {
            let end = found.start() + without_sentence(found.as_str()).len();
            candidates.push(Candidate::certain(found.start()..end, PiiKind::Url));
        }
    }
}

/// Signs at the end of an address that belong to the sentence.
fn without_sentence(address: &str) -> &str {
    let mut address = address;
    loop {
        let shorter = address.trim_end_matches(['.', ',', ';', ':', '!', '?', '*', '_']);
        let shorter = match shorter.strip_suffix(')') {
            Some(inside) if !inside.contains('(') => inside,
            _ => shorter.strip_suffix(']').filter(|inside| !inside.contains('[')).unwrap_or(shorter),
        };
        if shorter.len() == address.len() {
            return address;
        }
        address = shorter;
    }
}

/// Sites: whole addresses, and bare names of common domains.
fn sites(folded: &Folded, candidates: &mut Vec<Candidate>) {
    static NAME: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[\p{L}0-9][\p{L}0-9\-]*\.[\p{L}0-9.\-]+").expect("a valid pattern"));
    for found in ADDRESS.find_iter(&folded.text) {
        let bytes = found.start()..found.start() + without_sentence(found.as_str()).len();
        candidates.push(Candidate::certain(bytes, PiiKind::DomainName));
    }
    for found in NAME.find_iter(&folded.text) {
        let Some(name) = host(found.as_str()) else { continue };
        let bytes = found.start()..found.start() + name.len();
        let lower = name.to_lowercase();
        let top = lower.rsplit('.').next().unwrap_or_default();
        let known = COMMON_DOMAINS.contains(&top)
            || top.len() == 2
                && top.is_ascii()
                && (lower.starts_with("www.") || lower.matches('.').count() >= 2)
            || matches!(
                top,
                "ru" | "io"
                    | "ai"
                    | "me"
                    | "de"
                    | "uk"
                    | "fr"
                    | "it"
                    | "es"
                    | "pl"
                    | "ua"
                    | "by"
                    | "kz"
                    | "eu"
            );
        // Part of a mailbox or of a path is no site of its own.
        if known
            && folded.stands_alone(&bytes)
            && folded.before(bytes.start) != Some('@')
            && folded.after(bytes.end) != Some('@')
        {
            candidates.push(Candidate {
                bytes,
                kind: PiiKind::DomainName,
                form: FIRM,
                proven: true,
                denial: Denial::None,
            });
        }
    }
}
