//! Keys, tokens, passwords.

use std::{ops::Range, sync::LazyLock};

use regex::Regex;

use super::{
    Candidate, FIRM, LOOSE, PiiKind,
    context::{self, Denial},
    fold::{Folded, OPAQUE, is_word},
};

/// Secrets whose issuer gave them a form of their own.
static ISSUED: LazyLock<Regex> = LazyLock::new(|| {
    let forms = [
        // OpenAI, Anthropic, OpenRouter and those who copy them.
        r"sk-[A-Za-z0-9_\-]{20,}",
        // GitHub, GitLab, npm, PyPI, Hugging Face, DigitalOcean.
        r"gh[pousr]_[A-Za-z0-9]{36,}",
        r"github_pat_[A-Za-z0-9_]{22,}",
        r"gl(?:pat|dt|rt|ptt|soat)-[A-Za-z0-9_\-]{20,}",
        r"npm_[A-Za-z0-9]{36}",
        r"pypi-[A-Za-z0-9_\-]{40,}",
        r"hf_[A-Za-z0-9]{30,}",
        r"do[opr]_v1_[a-f0-9]{64}",
        // Amazon, Google, Slack, Stripe, SendGrid, Twilio, Groq, xAI, Perplexity, Telegram payments.
        r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}",
        r"AIza[A-Za-z0-9_\-]{35}",
        r"ya29\.[A-Za-z0-9_\-]{20,}",
        r"xox[abeoprs]-[A-Za-z0-9\-]{10,}",
        r"(?:sk|rk|whsec)_(?:live_|test_)?[A-Za-z0-9]{16,}",
        r"SG\.[A-Za-z0-9_\-]{16,32}\.[A-Za-z0-9_\-]{16,}",
        r"SK[a-f0-9]{32}",
        r"(?:gsk_|xai-|pplx-)[A-Za-z0-9]{32,}",
        // JSON Web Tokens: a header and more in base64 that begin like a JSON object.
        r"eyJ[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]{4,}){1,4}",
    ];
    Regex::new(&forms.join("|")).expect("valid patterns")
});

/// A bot's number, a colon, 35 letters.
static BOT_TOKEN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[0-9]{7,12}:[A-Za-z0-9_\-]{35}").expect("a valid pattern"));

/// Where [`NAMED`] may begin. Small enough to be a fast automaton, which [`NAMED`] is not.
static NAME: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new("(?i)passw|passphrase|pwd|парол|secret|api|access|private|client|auth|token|секрет|токен")
        .expect("a valid pattern")
});

/// A word of a password or key and a sign, before a value: "password: …", "API_KEY=…", "пароль — …".
static NAMED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r#"(?xi) ^
        (?: passw(?:or)?d | passphrase | pwd | парол[а-я]{0,3}
          | (?: secret | api | access | private | client | auth | секретн[а-я]{2,3} ) [\ _\-]?
            (?: key | token | secret | ключ[а-я]{0,2} )
          | token | secret | токен[а-я]{0,2} | секрет[а-я]{0,2} )
        [a-z0-9_]{0,20} ["'`]?
        (?: \ (?: for | to | of | от | для | к ) (?: \ [\p{L}\p{N}_.\-]{1,20} ){1,3} )?
        (?: \s{0,2} (?: := | => | -> | : | = | - ) \s{0,3} | \ is:?\ | \ это\ | \ такой:?\ | \ )
        ["'`]?"#,
    )
    .expect("a valid pattern")
});

/// No match of [`NAMED`] is as long, in bytes: a name, twenty letters, three words of twenty, a sign.
const MAX_NAMED: usize = 600;

/// All that [`NAMED`] finds, apart and in order, as if it were looked for everywhere.
fn named(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let start = NAME.find_at(text, at)?.start();
            let end = text.floor_char_boundary(start + MAX_NAMED);
            if let Some(found) = NAMED.find(&text[start..end]) {
                at = start + found.end();
                return Some(start..at);
            }
            at = text.ceil_char_boundary(start + 1);
        }
    })
}

/// Characters of a value that decide what it is.
const MAX_JUDGED: usize = 200;

/// Fewest letters of a value that is taken for random.
const MIN_RANDOM: usize = 16;

pub(super) fn propose(folded: &Folded, candidates: &mut Vec<Candidate>) {
    for found in BOT_TOKEN.find_iter(&folded.text) {
        // "…/bot123:AAA/getMe" is how programs use one.
        let opens = match folded.before(found.start()) {
            Some(letter) if is_word(letter) => ends_with_bot(&folded.text[..found.start()]),
            _ => true,
        };
        let closes = !folded.after(found.end()).is_some_and(|letter| is_word(letter) || letter == '-');
        if opens && closes {
            candidates.push(Candidate::certain(found.range(), PiiKind::TelegramBotToken));
        }
    }
    for found in ISSUED.find_iter(&folded.text) {
        let opens = !folded.before(found.start()).is_some_and(|letter| is_word(letter) || letter == '-');
        let closes = !folded.after(found.end()).is_some_and(is_word);
        // "sk-" also begins names: a key has digits and letters.
        let mixed = found.as_str().bytes().any(|byte| byte.is_ascii_digit());
        if opens && closes && mixed {
            candidates.push(Candidate::certain(found.range(), PiiKind::Secret));
        }
    }
    private_keys(folded, candidates);
    assigned(folded, candidates);
    random(folded, candidates);
}

fn ends_with_bot(text: &str) -> bool {
    text.len()
        .checked_sub(3)
        .and_then(|at| text.get(at..))
        .is_some_and(|tail| tail.eq_ignore_ascii_case("bot"))
}

/// PEM and PGP blocks of private keys, whole; one that was cut off as far as it goes.
fn private_keys(folded: &Folded, candidates: &mut Vec<Candidate>) {
    static BEGIN: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----").expect("a valid pattern")
    });
    static END: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----").expect("a valid pattern")
    });
    let text = &folded.text;
    for found in BEGIN.find_iter(text) {
        let body = text[found.end()..]
            .bytes()
            .take_while(|byte| byte.is_ascii_alphanumeric() || b"+/=\r\n\t \\:,.()".contains(byte))
            .count();
        let mut end = found.end() + body;
        if let Some(footer) = END.find(&text[end..]) {
            end += footer.end();
        } else {
            end = found.start() + text[found.start()..end].trim_end().len();
        }
        candidates.push(Candidate::certain(found.start()..end, PiiKind::Secret));
    }
}

/// Values that are said to be a password or a key.
fn assigned(folded: &Folded, candidates: &mut Vec<Candidate>) {
    let delimits = |letter: char| letter.is_whitespace() || "\"'`<>,;".contains(letter) || letter == OPAQUE;
    let mut value_end = 0;
    let mut taken_to = 0;
    for found in named(&folded.text) {
        if found.start < taken_to || folded.before(found.start).is_some_and(char::is_alphanumeric) {
            continue;
        }
        // Names inside one stretch without blanks share its end: it is looked for once.
        if found.end >= value_end {
            let rest = &folded.text[found.end..];
            value_end = found.end + rest.find(delimits).unwrap_or(rest.len());
        }
        let text =
            folded.text[found.end..value_end].trim_end_matches(['.', ')', ']', '}', '!', '?', ':', '*']);
        let bytes = found.end..found.end + text.len();
        let text = text.char_indices().nth(MAX_JUDGED).map_or(text, |(end, _)| &text[..end]);
        let between = &folded.text[found];
        let lower = between.to_lowercase();
        let signed = between.contains([':', '=', '>'])
            || [" is ", " - ", " это ", " такой "].iter().any(|sign| lower.contains(sign));
        let password = ["pass", "pwd", "парол"].iter().any(|word| lower.starts_with(word));
        let count = |kind: fn(&char) -> bool| text.chars().filter(kind).count();
        let letters = count(|letter| letter.is_alphabetic());
        let digits = count(|letter| letter.is_ascii_digit());
        let signs = text.chars().count() - letters - digits;
        // A sentence goes on with a word ("password: required"); a password has something else in it.
        let exact = between.contains([':', '=']);
        let chosen = password
            && letters + digits + signs >= if exact { 4 } else { 6 }
            && if signed {
                letters == 0 && digits >= if exact { 4 } else { 6 } && signs == 0
                    || letters > 0 && (digits > 0 || signs > 0 && !plain_words(text))
            } else {
                letters > 0 && digits > 0
            };
        let issued = signed && text.len() >= 12 && digits >= 2 && letters >= 2 && distinct(text) >= 8;
        let quoted = between.ends_with(['"', '\'', '`']);
        if (chosen || issued) && !is_address(text) && (quoted || !is_code(text)) {
            taken_to = bytes.end;
            candidates.push(Candidate {
                bytes,
                kind: PiiKind::Secret,
                form: FIRM,
                proven: true,
                denial: Denial::None,
            });
        }
    }
}

/// "well-known", "и/или": words joined by signs.
fn plain_words(text: &str) -> bool {
    text.split(['-', '/', '_', '.', '(', ')']).all(|word| word.chars().all(char::is_alphabetic))
}

fn is_address(text: &str) -> bool {
    text.contains("://")
        || text.starts_with("www.")
        || text.starts_with('/')
        || text.starts_with("${")
        || text.starts_with("{{")
}

/// What a program has in a value's place: a call, an index, a type, a path.
fn is_code(text: &str) -> bool {
    text.contains(['(', ')', '[', ']', '{', '}'])
        || text.contains("::")
        || text.strip_prefix(['&', '$', ':']).is_some_and(|rest| rest.chars().all(is_word))
}

/// Different characters in a text.
fn distinct(text: &str) -> usize {
    let mut seen: Vec<char> = text.chars().collect();
    seen.sort_unstable();
    seen.dedup();
    seen.len()
}

/// Long values without meaning beside a word of keys.
fn random(folded: &Folded, candidates: &mut Vec<Candidate>) {
    let bytes = folded.text.as_bytes();
    let of_value = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=_-.~".contains(byte);
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(of_value) {
        let start = at + found;
        let length = bytes[start..].iter().take_while(|byte| of_value(byte)).count();
        at = start + length;
        if !(MIN_RANDOM..=512).contains(&length) {
            continue;
        }
        let bytes = value(folded, start..at);
        // Paths of addresses are random by trade; what a query gives a name is a value. Identifiers are
        // random and no secret, unless they are said to be one.
        let text = &folded.text[bytes.clone()];
        if text.starts_with("//") || ends_with_uuid(text) {
            continue;
        }
        if bytes.len() >= MIN_RANDOM && looks_random(&folded.text[bytes.clone()]) {
            let named = context::weigh(folded, &bytes, PiiKind::Secret, Denial::None).speak_for;
            candidates.push(Candidate {
                bytes,
                kind: PiiKind::Secret,
                form: if named { FIRM } else { LOOSE },
                proven: false,
                denial: Denial::Secret,
            });
        }
    }
}

/// Whether a text ends with 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12.
fn ends_with_uuid(text: &str) -> bool {
    let Some(tail) = text.len().checked_sub(36).and_then(|at| text.get(at..)) else { return false };
    tail.bytes().enumerate().all(|(place, byte)| match place {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}

/// The value of `NAME=value`, without the sentence's signs.
fn value(folded: &Folded, mut bytes: Range<usize>) -> Range<usize> {
    let text = &folded.text[bytes.clone()];
    let text = text.trim_end_matches(['.', '-', '~']);
    bytes.end = bytes.start + text.len();
    if let Some(sign) = text.trim_end_matches('=').rfind('=') {
        bytes.start += sign + 1;
    }
    bytes
}

/// Digits and letters mixed, many different ones, and no word or path: at least three changes between
/// letters and digits, or both cases with digits.
fn looks_random(text: &str) -> bool {
    let class = |byte: u8| match byte {
        b'0'..=b'9' => 0,
        b'A'..=b'Z' => 1,
        b'a'..=b'z' => 2,
        _ => 3,
    };
    let classes: Vec<u8> = text.bytes().map(class).collect();
    let has = |wanted: u8| classes.contains(&wanted);
    let changes =
        classes.windows(2).filter(|pair| pair[0] != pair[1] && pair[0] != 3 && pair[1] != 3).count();
    let signs = classes.iter().filter(|class| **class == 3).count();
    has(0) && (has(1) || has(2)) && changes >= 3 && signs * 4 <= text.len() && varied(text)
}

/// Renyi's entropy of order 2, at least log2(6) bits a byte: two bytes picked at random are equal less often
/// than one time in six. In integers, so that every machine says the same.
fn varied(text: &str) -> bool {
    let mut counts = [0usize; 256];
    for byte in text.bytes() {
        counts[usize::from(byte)] += 1;
    }
    counts.iter().map(|count| count * count).sum::<usize>() * 6 <= text.len() * text.len()
}
