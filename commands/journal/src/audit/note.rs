//! Signed notes (C2SP signed-note): a text and lines of signatures under it, Ed25519 or the timestamped
//! cosignatures of witnesses (C2SP tlog-cosignature).

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

/// Signature lines of one note that are read.
const MOST_SIGNATURES: usize = 100;
/// Bytes of a note that are read: post-quantum signatures are long.
const MOST_BYTES: usize = 1024 * 1024;

/// How a key signs; the byte is part of its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Algorithm {
    /// Over the text of the note.
    Ed25519 = 1,
    /// Over the text and the time of signing: a witness's `cosignature/v1`.
    Cosignature = 4,
}

/// Not a signed note, or not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MalformedNote(&'static str);

/// A note whose text must not be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    /// None of the known keys signed.
    #[error("none of the given keys has signed it")]
    NoKnownKey,
    /// A known key's line holds another signature than the key's.
    #[error("the signature of {0} is not one over this text")]
    Wrong(String),
}

/// The public half of a key, in the form `name+id+base64`.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    algorithm: Algorithm,
    key: VerifyingKey,
}

/// A private key with its name. Shows only its public half.
pub struct Signer {
    key: SigningKey,
    verifier: VerifierKey,
}

/// A signature line: who claims to have signed, and the bytes after the key's id.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    name: String,
    id: [u8; 4],
    signature: Vec<u8>,
}

/// A text, which ends in a newline, and its signature lines. Parsed says nothing about true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedNote {
    text: String,
    lines: Vec<Line>,
}

/// A key that has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its name.
    pub name: String,
    /// When, in seconds since the Unix epoch, where the algorithm says so.
    pub signed_at: Option<u64>,
}

fn check_name(name: &str) -> Result<(), MalformedNote> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '+';
    if name.is_empty() || name.contains(bad) {
        return Err(MalformedNote("a key's name is empty, or holds a space or a plus"));
    }
    Ok(())
}

/// Base64 as the specification has it: padded, and one text for one value.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, MalformedNote> {
    STANDARD.decode(text).map_err(|_| MalformedNote("a line is not base64"))
}

pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

impl VerifierKey {
    /// Which key it is, without being one.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its signatures say: the log's own word, or a witness's.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn id(&self) -> [u8; 4] {
        let hash = Sha256::new_with_prefix(self.name.as_bytes())
            .chain_update([b'\n', self.algorithm as u8])
            .chain_update(self.key.as_bytes())
            .finalize();
        [hash[0], hash[1], hash[2], hash[3]]
    }

    fn verify(&self, text: &str, signature: &[u8]) -> Option<Verified> {
        let (signed_at, message, signature) = match self.algorithm {
            Algorithm::Ed25519 => (None, text.to_owned(), signature),
            Algorithm::Cosignature => {
                let (time, signature) = signature.split_first_chunk::<8>()?;
                let time = u64::from_be_bytes(*time);
                i64::try_from(time).ok()?;
                (Some(time), cosigned(time, text), signature)
            }
        };
        let signature = Signature::from_slice(signature).ok()?;
        self.key.verify_strict(message.as_bytes(), &signature).ok()?;
        Some(Verified { name: self.name.clone(), signed_at })
    }
}

/// What a cosignature is taken over.
fn cosigned(time: u64, text: &str) -> String {
    format!("cosignature/v1\ntime {time}\n{text}")
}

impl FromStr for VerifierKey {
    type Err = MalformedNote;

    fn from_str(text: &str) -> Result<Self, MalformedNote> {
        let shape = MalformedNote("a key reads name+id+base64");
        let (name, rest) = text.split_once('+').ok_or(shape)?;
        let (id, key) = rest.split_once('+').ok_or(shape)?;
        check_name(name)?;
        let key = decode(key)?;
        let (algorithm, key) = key.split_first().ok_or(shape)?;
        let algorithm = match algorithm {
            1 => Algorithm::Ed25519,
            4 => Algorithm::Cosignature,
            _ => return Err(MalformedNote("a key is neither Ed25519 nor a witness's")),
        };
        let key: &[u8; 32] = key.try_into().map_err(|_| MalformedNote("a public key has 32 bytes"))?;
        let key = VerifyingKey::from_bytes(key).map_err(|_| MalformedNote("a public key is no point"))?;
        let parsed = Self { name: name.to_owned(), algorithm, key };
        let written = parsed.to_string();
        if written.split('+').nth(1) != Some(id) {
            return Err(MalformedNote("a key's id does not fit its name and bytes"));
        }
        Ok(parsed)
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![self.algorithm as u8];
        bytes.extend(self.key.as_bytes());
        write!(f, "{}+{:08x}+{}", self.name, u32::from_be_bytes(self.id()), encode(bytes))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierKey({self})")
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.verifier)
    }
}

impl Signer {
    /// A key from its 32 secret bytes.
    ///
    /// # Errors
    /// When the name is none.
    pub fn new(name: &str, seed: &[u8; 32], algorithm: Algorithm) -> Result<Self, MalformedNote> {
        check_name(name)?;
        let key = SigningKey::from_bytes(seed);
        let verifier = VerifierKey { name: name.to_owned(), algorithm, key: key.verifying_key() };
        Ok(Self { key, verifier })
    }

    /// What others verify with.
    #[must_use]
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    fn line(&self, text: &str, now: u64) -> Line {
        let signature = match self.verifier.algorithm {
            Algorithm::Ed25519 => self.key.sign(text.as_bytes()).to_bytes().to_vec(),
            Algorithm::Cosignature => {
                let signature = self.key.sign(cosigned(now, text).as_bytes());
                [&now.to_be_bytes()[..], &signature.to_bytes()].concat()
            }
        };
        Line { name: self.verifier.name.clone(), id: self.verifier.id(), signature }
    }
}

impl SignedNote {
    /// A text with a first signature. `now` in seconds since the Unix epoch; only cosignatures hold it.
    ///
    /// # Errors
    /// When the text does not end in a newline or holds control characters.
    pub fn sign(text: String, signer: &Signer, now: u64) -> Result<Self, MalformedNote> {
        check_text(&text)?;
        let lines = vec![signer.line(&text, now)];
        Ok(Self { text, lines })
    }

    /// A text to which signatures of others are added.
    pub(super) fn unsigned(text: &str) -> Self {
        Self { text: text.to_owned(), lines: Vec::new() }
    }

    /// One more signature over its text, as the line that others add to the note.
    #[must_use]
    pub fn signature_line(&self, signer: &Signer, now: u64) -> String {
        signer.line(&self.text, now).to_string()
    }

    /// The same with signature lines that somebody sent. They are believed no more than those it has.
    ///
    /// # Errors
    /// When they are no signature lines, or too many.
    pub fn with_signatures(mut self, lines: &str) -> Result<Self, MalformedNote> {
        let lines = lines.strip_suffix('\n').ok_or(MalformedNote("a signature line ends in a newline"))?;
        for line in lines.split('\n') {
            let line = line.parse()?;
            if !self.lines.contains(&line) {
                self.lines.push(line);
            }
        }
        if self.lines.len() > MOST_SIGNATURES {
            return Err(MalformedNote("a note has more signatures than are read"));
        }
        Ok(self)
    }

    /// Only the signatures of these keys, as lines; what is to be kept of what somebody sent.
    ///
    /// # Errors
    /// As [`SignedNote::verify`].
    pub fn lines_of(&self, keys: &[VerifierKey]) -> Result<String, Unverified> {
        self.verify(keys)?;
        let known = |line: &&Line| keys.iter().any(|key| key.name == line.name && key.id() == line.id);
        Ok(self.lines.iter().filter(known).map(|line| format!("{line}\n")).collect())
    }

    /// The text, to be believed only after [`SignedNote::verify`].
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Who of the given keys has signed, each once. Lines of other keys count for nothing.
    ///
    /// # Errors
    /// When none has, or a line of a given key is wrong.
    pub fn verify(&self, keys: &[VerifierKey]) -> Result<Vec<Verified>, Unverified> {
        let mut signed = Vec::new();
        for line in &self.lines {
            for key in keys.iter().filter(|key| key.name == line.name && key.id() == line.id) {
                let verified = key.verify(&self.text, &line.signature);
                let verified = verified.ok_or_else(|| Unverified::Wrong(key.name.clone()))?;
                if !signed
                    .iter()
                    .any(|(id, one): &([u8; 4], Verified)| *id == line.id && one.name == key.name)
                {
                    signed.push((line.id, verified));
                }
            }
        }
        if signed.is_empty() {
            return Err(Unverified::NoKnownKey);
        }
        Ok(signed.into_iter().map(|(_, one)| one).collect())
    }
}

fn check_text(text: &str) -> Result<(), MalformedNote> {
    if !text.ends_with('\n') {
        return Err(MalformedNote("a note's text ends in a newline"));
    }
    if text.bytes().any(|byte| byte < b' ' && byte != b'\n') {
        return Err(MalformedNote("a note holds no control characters but newlines"));
    }
    Ok(())
}

impl FromStr for SignedNote {
    type Err = MalformedNote;

    fn from_str(note: &str) -> Result<Self, MalformedNote> {
        if note.len() > MOST_BYTES {
            return Err(MalformedNote("a note is longer than any that is read"));
        }
        check_text(note)?;
        let (text, signatures) =
            note.rsplit_once("\n\n").ok_or(MalformedNote("a note has no signatures under its text"))?;
        let mut lines = Vec::new();
        for line in signatures.split_terminator('\n') {
            lines.push(line.parse()?);
            if lines.len() > MOST_SIGNATURES {
                return Err(MalformedNote("a note has more signatures than are read"));
            }
        }
        if lines.is_empty() {
            return Err(MalformedNote("a note has no signatures under its text"));
        }
        Ok(Self { text: format!("{text}\n"), lines })
    }
}

impl fmt::Display for SignedNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl FromStr for Line {
    type Err = MalformedNote;

    fn from_str(line: &str) -> Result<Self, MalformedNote> {
        let signature = line.strip_prefix("— ").and_then(|rest| rest.split_once(' '));
        let (name, signature) = signature.ok_or(MalformedNote("a signature line reads — name base64"))?;
        check_name(name)?;
        let bytes = decode(signature)?;
        let (id, signature) = bytes
            .split_first_chunk::<4>()
            .filter(|(_, signature)| !signature.is_empty())
            .ok_or(MalformedNote("a signature is shorter than a key's id"))?;
        Ok(Self { name: name.to_owned(), id: *id, signature: signature.to_vec() })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "— {} {}", self.name, encode([&self.id[..], &self.signature].concat()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "ledger.example\n3\nrrW8/idLcLFPsGelpVV4JktPr6mr9a6KCRWeMpHgbncK\n";

    fn signer(name: &str, algorithm: Algorithm) -> Signer {
        Signer::new(name, &[7; 32], algorithm).unwrap()
    }

    fn log() -> Signer {
        signer("ledger.example", Algorithm::Ed25519)
    }

    fn witness() -> Signer {
        signer("witness.example/w", Algorithm::Cosignature)
    }

    fn note() -> SignedNote {
        let note = SignedNote::sign(TEXT.to_owned(), &log(), 0).unwrap();
        let line = note.signature_line(&witness(), 1_795_000_000);
        note.with_signatures(&format!("{line}\n")).unwrap()
    }

    /// The example key and note of the package that the specification was written after.
    #[test]
    fn a_published_note_verifies() {
        let key: VerifierKey =
            "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".parse().unwrap();
        let text = "If you think cryptography is the answer to your problem,\n\
            then you don't know what your problem is.\n";
        let note = format!(
            "{text}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
        );
        let parsed: SignedNote = note.parse().unwrap();
        assert_eq!(parsed.text(), text);
        assert_eq!(parsed.verify(std::slice::from_ref(&key)).unwrap()[0].name, "PeterNeumann");
        assert_eq!(parsed.to_string(), note);
        assert_eq!(key.to_string().parse(), Ok(key.clone()));
        let other: SignedNote = note.replace("answer", "anshwer").parse().unwrap();
        assert_eq!(other.verify(&[key]), Err(Unverified::Wrong("PeterNeumann".to_owned())));
    }

    #[test]
    fn log_and_witness_verify_and_unknown_keys_count_for_nothing() {
        let parsed: SignedNote = note().to_string().parse().unwrap();
        assert_eq!(parsed, note());
        let keys = [log().verifier().clone(), witness().verifier().clone()];
        let signed = parsed.verify(&keys).unwrap();
        assert_eq!(
            signed.iter().map(|key| (key.name.as_str(), key.signed_at)).collect::<Vec<_>>(),
            [("ledger.example", None), ("witness.example/w", Some(1_795_000_000))]
        );
        // Same bytes, same name, another algorithm: another key.
        let unlike = signer("ledger.example", Algorithm::Cosignature);
        assert_eq!(parsed.verify(&[unlike.verifier().clone()]), Err(Unverified::NoKnownKey));
    }

    #[test]
    fn a_signature_counts_once_however_often_it_stands_there() {
        let keys = [log().verifier().clone(), witness().verifier().clone()];
        let mut note = note();
        for time in 1..4 {
            let line = note.signature_line(&witness(), time);
            note = note.with_signatures(&format!("{line}\n{line}\n")).unwrap();
        }
        assert_eq!(note.lines.len(), 5);
        assert_eq!(note.verify(&keys).unwrap().len(), 2);
        let stranger = signer("stranger.example", Algorithm::Cosignature);
        let line = note.signature_line(&stranger, 1);
        note = note.with_signatures(&format!("{line}\n")).unwrap();
        let of_witness = note.lines_of(&keys[1..]).unwrap();
        assert_eq!(of_witness.lines().count(), 4);
        assert!(of_witness.lines().all(|line| line.starts_with("— witness.example/w ")));
        for bad in ["", "\n", "— witness.example/w AAAAAAAA", "no line\n"] {
            assert!(note.clone().with_signatures(bad).is_err(), "{bad:?}");
        }
        let future = witness().line(TEXT, 1 << 63);
        let note = SignedNote { text: TEXT.to_owned(), lines: vec![future] };
        assert_eq!(note.verify(&keys[1..]), Err(Unverified::Wrong("witness.example/w".to_owned())));
    }

    #[test]
    fn what_is_no_note_is_refused() {
        let whole = note().to_string();
        let (text, lines) = whole.split_once("\n\n").unwrap();
        let line = lines.lines().next().unwrap();
        for bad in [
            String::new(),
            "\n".to_owned(),
            TEXT.to_owned(),
            format!("{TEXT}\n"),
            whole.trim_end().to_owned(),
            whole.replace('\n', "\r\n"),
            format!("{text}\n\n{line}\nmore\n"),
            format!("{text}\n\n{}\n", line.replace('—', "-")),
            format!("{text}\n\n— ledger.example AAAA\n"),
            format!("{text}\n\n{}\n", line.trim_end_matches('=')),
            format!("{text}\n\n{line} \n"),
            format!("{text}\n\n{}", format!("{line}\n").repeat(101)),
        ] {
            assert!(bad.parse::<SignedNote>().is_err(), "{bad:?}");
        }
        for bad in [
            "",
            "a+b",
            "+c74f20a3+AQ==",
            "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        ] {
            assert!(bad.parse::<VerifierKey>().is_err(), "{bad:?}");
        }
        for name in ["", "a b", "a+b", "a\u{a0}b", "a\nb"] {
            assert!(Signer::new(name, &[7; 32], Algorithm::Ed25519).is_err(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn one_changed_bit_is_found(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = note().to_string().into_bytes();
            let place = at.index(bytes.len());
            bytes[place] ^= 1 << bit;
            let keys = [log().verifier().clone(), witness().verifier().clone()];
            let both = std::str::from_utf8(&bytes).ok()
                .and_then(|text| text.parse::<SignedNote>().ok())
                .and_then(|note| note.verify(&keys).ok())
                .is_some_and(|signed| signed.len() == 2);
            prop_assert!(!both);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(?s).{0,200}", lines in "[— a+=\n]{0,60}") {
            let _ = format!("{text}\n\n{lines}\n").parse::<SignedNote>();
            let _ = text.parse::<VerifierKey>();
        }
    }
}
