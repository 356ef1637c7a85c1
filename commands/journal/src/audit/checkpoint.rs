//! What a log signs about its tree (C2SP tlog-checkpoint), and proofs as files that carry the
//! checkpoint they lead to (C2SP tlog-proof; for consistency the request of C2SP tlog-witness).

use std::{fmt, str::FromStr};

use botledger_domain::merkle::{self, Hash};

use super::note::{MalformedNote, SignedNote, decode, encode};

/// Levels of the tallest tree, so hashes of the longest proof.
const MOST_HASHES: usize = 64;

/// Which log, how many leaves, and the head over them. Text: origin, size and root in base64, a line
/// each. Extension lines, which C2SP discourages, are read over; a note's signatures are taken over them too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the log, one line.
    pub origin: String,
    /// Leaves; also the position of the last event.
    pub size: u64,
    /// Head of the tree.
    pub root: Hash,
}

/// Not a checkpoint, or not a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedCheckpoint {
    /// No signed note.
    #[error("it is no signed note: {0}")]
    Note(#[from] MalformedNote),
    /// The text does not read as one.
    #[error("it does not read {0}")]
    Text(&'static str),
}

/// A decimal number with one spelling.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = text == "0" || !text.starts_with('0');
    (digits && canonical).then(|| text.parse().ok()).flatten()
}

fn hash(text: &str) -> Option<Hash> {
    decode(text).ok()?.try_into().ok()
}

impl FromStr for Checkpoint {
    type Err = MalformedCheckpoint;

    /// Reads the text of a note, without its signatures.
    fn from_str(text: &str) -> Result<Self, MalformedCheckpoint> {
        let wrong = MalformedCheckpoint::Text("origin, size and root, a line each");
        let lines: Vec<&str> = text.strip_suffix('\n').ok_or(wrong)?.split('\n').collect();
        let [origin, size, root, ref extensions @ ..] = lines[..] else { return Err(wrong) };
        let (size, root) = (number(size).ok_or(wrong)?, hash(root).ok_or(wrong)?);
        if origin.is_empty() || extensions.iter().any(|line| line.is_empty()) {
            return Err(wrong);
        }
        Ok(Self { origin: origin.to_owned(), size, root })
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}", self.origin, self.size, encode(self.root))
    }
}

/// That one event is in the ledger, as a file that needs nothing else but the leaf and the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InclusionProof {
    /// Number of the leaf, from 0.
    pub index: u64,
    /// From the leaf's sibling up.
    pub hashes: Vec<Hash>,
    /// The signed head they lead to.
    pub checkpoint: SignedNote,
}

const PROOF_HEADER: &str = "c2sp.org/tlog-proof@v1";

impl fmt::Display for InclusionProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{PROOF_HEADER}\nindex {}", self.index)?;
        for hash in &self.hashes {
            writeln!(f, "{}", encode(hash))?;
        }
        write!(f, "\n{}", self.checkpoint)
    }
}

impl FromStr for InclusionProof {
    type Err = MalformedCheckpoint;

    fn from_str(text: &str) -> Result<Self, MalformedCheckpoint> {
        let wrong = MalformedCheckpoint::Text(
            "c2sp.org/tlog-proof@v1, index, hashes, an empty line and a checkpoint",
        );
        let (head, checkpoint) = text.split_once("\n\n").ok_or(wrong)?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(PROOF_HEADER) {
            return Err(wrong);
        }
        // Nobody signs the extra line; ours has none.
        lines.next_if(|line| line.starts_with("extra "));
        let index = lines.next().and_then(|line| number(line.strip_prefix("index ")?)).ok_or(wrong)?;
        let hashes: Vec<Hash> = lines.map(|line| hash(line).ok_or(wrong)).collect::<Result<_, _>>()?;
        if hashes.len() > MOST_HASHES {
            return Err(wrong);
        }
        Ok(Self { index, hashes, checkpoint: checkpoint.parse()? })
    }
}

impl InclusionProof {
    /// Whether the leaf is where the proof says in the tree that its checkpoint names. The checkpoint's
    /// signatures are another question: [`SignedNote::verify`].
    ///
    /// # Errors
    /// When the note is no checkpoint.
    pub fn holds(&self, leaf: &Hash) -> Result<bool, MalformedCheckpoint> {
        let Checkpoint { size, root, .. } = self.checkpoint.text().parse()?;
        Ok(merkle::verify_inclusion(leaf, self.index, size, &self.hashes, &root))
    }
}

/// That the tree of a checkpoint begins with an earlier one, as a file that needs nothing else but the
/// earlier root and the key: what a witness is sent with `add-checkpoint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsistencyProof {
    /// Leaves of the earlier tree.
    pub old: u64,
    /// In the order of RFC 6962 §2.1.2.
    pub hashes: Vec<Hash>,
    /// The signed head over the later tree.
    pub checkpoint: SignedNote,
}

impl fmt::Display for ConsistencyProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "old {}", self.old)?;
        for hash in &self.hashes {
            writeln!(f, "{}", encode(hash))?;
        }
        write!(f, "\n{}", self.checkpoint)
    }
}

impl FromStr for ConsistencyProof {
    type Err = MalformedCheckpoint;

    fn from_str(text: &str) -> Result<Self, MalformedCheckpoint> {
        let wrong = MalformedCheckpoint::Text("old, hashes, an empty line and a checkpoint");
        let (head, checkpoint) = text.split_once("\n\n").ok_or(wrong)?;
        let mut lines = head.split('\n');
        let old = lines.next().and_then(|line| number(line.strip_prefix("old ")?)).ok_or(wrong)?;
        let hashes: Vec<Hash> = lines.map(|line| hash(line).ok_or(wrong)).collect::<Result<_, _>>()?;
        if hashes.len() >= MOST_HASHES {
            return Err(wrong);
        }
        Ok(Self { old, hashes, checkpoint: checkpoint.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Algorithm, Signer};

    fn checkpoint() -> Checkpoint {
        Checkpoint { origin: "ledger.example".to_owned(), size: 3, root: [9; 32] }
    }

    #[test]
    fn a_checkpoint_reads_back_as_it_was_written_and_has_one_spelling() {
        let text = checkpoint().to_string();
        assert_eq!(text, "ledger.example\n3\nCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n");
        assert_eq!(text.parse(), Ok(checkpoint()));
        assert_eq!(format!("{text}extension\nmore\n").parse(), Ok(checkpoint()));
        for bad in [
            text.replace("\n3\n", "\n03\n"),
            text.replace("\n3\n", "\n+3\n"),
            text.replace("\n3\n", "\n\n"),
            text.replace("\n3\n", "\n18446744073709551616\n"),
            text.replace("ledger.example", ""),
            text.replace("k=", "l="),
            text.replace("CQkJ", ""),
            format!("{text}extension\n\n"),
            format!("{text}\n"),
            text.trim_end().to_owned(),
            String::new(),
        ] {
            assert!(bad.parse::<Checkpoint>().is_err(), "{bad:?}");
        }
    }

    fn signed() -> SignedNote {
        let signer = Signer::new("ledger.example", &[1; 32], Algorithm::Ed25519).unwrap();
        SignedNote::sign(checkpoint().to_string(), &signer, 0).unwrap()
    }

    #[test]
    fn what_a_witness_is_sent_reads_back_as_it_was_written() {
        for hashes in [vec![], vec![[1; 32]], vec![[3; 32]; 63]] {
            let proof = ConsistencyProof { old: 2, hashes, checkpoint: signed() };
            assert_eq!(proof.to_string().parse(), Ok(proof));
        }
        let text = ConsistencyProof { old: 2, hashes: vec![[1; 32]; 63], checkpoint: signed() }.to_string();
        for bad in [
            text.replace("old 2", "old 02"),
            text.replace("old 2\n", ""),
            text.replace("old 2\n", "old 2\nAQEB\n"),
            text.replace("old 2\n", &format!("old 2\n{}\n", encode([1; 32]))),
            text.replace("\n\nledger", "\nledger"),
            String::new(),
        ] {
            assert!(bad.parse::<ConsistencyProof>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_proof_reads_back_as_it_was_written() {
        let note = signed();
        let proof = InclusionProof { index: 0, hashes: vec![[1; 32], [2; 32]], checkpoint: note };
        let text = proof.to_string();
        assert_eq!(text.parse(), Ok(proof.clone()));
        assert_eq!(text.replace("\nindex", "\nextra YQ==\nindex").parse(), Ok(proof.clone()));
        assert!(!proof.holds(&[0; 32]).unwrap());
        for bad in [
            text.replace("@v1", "@v2"),
            text.replace("index 0", "index 00"),
            text.replace("index 0\n", ""),
            text.replace("\n\nledger", "\nledger"),
            text.replacen("AQEB", "AQE", 1),
        ] {
            assert!(bad.parse::<InclusionProof>().is_err(), "{bad:?}");
        }
    }
}
