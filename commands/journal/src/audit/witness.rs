//! What a witness decides (C2SP tlog-witness): it saw a head, is shown a later one, and says so only
//! when the later tree begins with the earlier.

use std::slice;

use botledger_domain::merkle;

use super::{
    Algorithm, Checkpoint, ConsistencyProof, MalformedCheckpoint, SignedNote, Signer, Unverified, VerifierKey,
};

/// Why a witness does not cosign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The note is no checkpoint.
    #[error("{0}")]
    Malformed(MalformedCheckpoint),
    /// Not the log that is watched.
    #[error("the log {0} is not watched here")]
    UnknownLog(String),
    /// Not in the log's name.
    #[error("the checkpoint is not the log's: {0}")]
    NotSigned(Unverified),
    /// The proof starts behind the checkpoint.
    #[error("a proof from {old} events cannot lead to a checkpoint over {size}")]
    Backwards {
        /// Where the proof starts.
        old: u64,
        /// Of the checkpoint.
        size: u64,
    },
    /// The proof starts elsewhere than at what was cosigned last; the log can ask again from there.
    #[error("the last head that was cosigned covers {known} events, the proof starts at {old}")]
    Conflict {
        /// What was cosigned last; 0 for nothing.
        known: u64,
        /// Where the proof starts.
        old: u64,
    },
    /// Signed by the log, of the same size as what was cosigned, and another tree: a fork.
    #[error("FORK: the log signed two different heads over {size} events")]
    Fork {
        /// Of both.
        size: u64,
    },
    /// The head that was cosigned, with a proof that is none: says nothing about the log.
    #[error("hashes were sent with the head that was cosigned last, which needs none")]
    NoProof,
    /// Signed by the log, and not shown to begin with what was cosigned: a fork, or a broken proof.
    #[error(
        "FORK OR BROKEN PROOF: the signed head over {size} events is not shown to begin with the {known} events cosigned before"
    )]
    Inconsistent {
        /// What was cosigned last.
        known: u64,
        /// Of the refused head.
        size: u64,
    },
}

/// A witness of one log. It knows keys and keeps nothing: what it cosigned last is told to it.
pub struct Witness {
    signer: Signer,
    origin: String,
    log: Vec<VerifierKey>,
}

/// A witness that cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoWitness(&'static str);

impl Witness {
    /// Cosigns with `signer` what any of the keys of one log has signed; several where its key changed.
    ///
    /// # Errors
    /// When no key of a log is given, or they have different names.
    pub fn new(signer: Signer, log: Vec<VerifierKey>) -> Result<Self, NoWitness> {
        if signer.verifier().algorithm() != Algorithm::Cosignature {
            return Err(NoWitness("a witness signs cosignatures"));
        }
        let origin = origin_of(&log)?.to_owned();
        Ok(Self { signer, origin, log })
    }

    /// What others verify its cosignatures with.
    #[must_use]
    pub fn verifier(&self) -> &VerifierKey {
        self.signer.verifier()
    }

    /// The log that is watched.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Reads back what it kept. A state that carries no own cosignature, or is of another log, is none.
    ///
    /// # Errors
    /// Says why it must not be believed.
    pub fn read_state(&self, note: &str) -> Result<Checkpoint, String> {
        let note: SignedNote = note.parse().map_err(|error| format!("{error}"))?;
        note.verify(slice::from_ref(self.verifier())).map_err(|error| error.to_string())?;
        let checkpoint: Checkpoint = note.text().parse().map_err(|error| format!("{error}"))?;
        if checkpoint.origin != self.origin {
            return Err(format!("it is of the log {}", checkpoint.origin));
        }
        Ok(checkpoint)
    }

    /// The same head with a cosignature, when it goes on from `known`. What comes back has to be kept
    /// durably before anybody sees it. `now` in seconds since the Unix epoch.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn judge(
        &self,
        known: Option<&Checkpoint>,
        shown: &ConsistencyProof,
        now: u64,
    ) -> Result<(Checkpoint, SignedNote), Refusal> {
        let checkpoint: Checkpoint = shown.checkpoint.text().parse().map_err(Refusal::Malformed)?;
        if checkpoint.origin != self.origin {
            return Err(Refusal::UnknownLog(checkpoint.origin));
        }
        shown.checkpoint.verify(&self.log).map_err(Refusal::NotSigned)?;
        let size = checkpoint.size;
        let empty = merkle::empty_root();
        let (known, root) = known.map_or((0, &empty), |known| (known.size, &known.root));
        // Wherever the proof starts: two signed heads of one size need none.
        if known == size && *root != checkpoint.root {
            return Err(Refusal::Fork { size });
        }
        if shown.old > size {
            return Err(Refusal::Backwards { old: shown.old, size });
        }
        if shown.old != known {
            return Err(Refusal::Conflict { known, old: shown.old });
        }
        if known == size && !shown.hashes.is_empty() {
            return Err(Refusal::NoProof);
        }
        if !merkle::verify_consistency(known, root, size, &checkpoint.root, &shown.hashes) {
            return Err(Refusal::Inconsistent { known, size });
        }
        let line = shown.checkpoint.signature_line(&self.signer, now);
        let log = shown.checkpoint.lines_of(&self.log).map_err(Refusal::NotSigned)?;
        let note = SignedNote::unsigned(shown.checkpoint.text())
            .with_signatures(&format!("{log}{line}\n"))
            .map_err(|error| Refusal::Malformed(error.into()))?;
        Ok((checkpoint, note))
    }
}

/// The name that keys of one log share: its origin.
///
/// # Errors
/// When there are none, they differ, or one is a witness's.
pub fn origin_of(log: &[VerifierKey]) -> Result<&str, NoWitness> {
    let first = log.first().ok_or(NoWitness("the public key of the log is not given"))?;
    if log.iter().any(|key| key.name() != first.name()) {
        return Err(NoWitness("the keys are of different logs"));
    }
    if log.iter().any(|key| key.algorithm() != Algorithm::Ed25519) {
        return Err(NoWitness("a key of a witness is given as the log's"));
    }
    Ok(first.name())
}

#[cfg(test)]
mod tests {
    use botledger_domain::merkle::{Frontier, Hash, consistency_ranges, cover, fold, join};

    use super::*;

    const ORIGIN: &str = "ledger.example";

    fn log() -> Signer {
        Signer::new(ORIGIN, &[1; 32], Algorithm::Ed25519).unwrap()
    }

    fn witness() -> Witness {
        let signer = Signer::new("witness.example/w1", &[2; 32], Algorithm::Cosignature).unwrap();
        Witness::new(signer, vec![log().verifier().clone()]).unwrap()
    }

    fn leaves(count: u8) -> Vec<Hash> {
        (0..count).map(|number| [number; 32]).collect()
    }

    fn shown(old: u64, leaves: &[Hash], signer: &Signer) -> ConsistencyProof {
        let mut tree = Frontier::default();
        leaves.iter().for_each(|leaf| tree.push(*leaf));
        let checkpoint = Checkpoint { origin: ORIGIN.to_owned(), size: tree.size(), root: tree.root() };
        let subtree = |node: merkle::Node| {
            let start = (node.index << node.height) as usize;
            fold(&leaves[start..start + (1 << node.height)]).unwrap()
        };
        let of = |range| join(&cover(range).into_iter().map(subtree).collect::<Vec<_>>());
        let hashes = consistency_ranges(old, tree.size()).unwrap_or_default().into_iter().map(of).collect();
        let checkpoint = SignedNote::sign(checkpoint.to_string(), signer, 0).unwrap();
        ConsistencyProof { old, hashes, checkpoint }
    }

    #[test]
    fn it_follows_a_log_and_reads_back_what_it_kept() {
        let witness = witness();
        let mut known = None;
        for (old, size) in [(0, 3), (3, 3), (3, 8), (8, 21)] {
            let (checkpoint, note) =
                witness.judge(known.as_ref(), &shown(old, &leaves(size), &log()), 7).unwrap();
            let keys = [log().verifier().clone(), witness.verifier().clone()];
            let signed = note.verify(&keys).unwrap();
            assert_eq!((signed.len(), signed[1].signed_at), (2, Some(7)));
            assert_eq!(witness.read_state(&note.to_string()), Ok(checkpoint.clone()));
            known = Some(checkpoint);
        }
        let foreign = shown(0, &leaves(3), &log()).checkpoint.to_string();
        assert!(witness.read_state(&foreign).is_err(), "without its own cosignature");
    }

    #[test]
    fn it_refuses_forks_rollbacks_and_strangers() {
        let witness = witness();
        let known = witness.judge(None, &shown(0, &leaves(8), &log()), 7).unwrap().0;
        let judge = |shown: &ConsistencyProof| witness.judge(Some(&known), shown, 8).unwrap_err();
        let mut other = leaves(12);
        other[2] = [99; 32];
        assert_eq!(judge(&shown(8, &other, &log())), Refusal::Inconsistent { known: 8, size: 12 });
        assert_eq!(judge(&shown(8, &other[..8], &log())), Refusal::Fork { size: 8 });
        for old in [0, 5, 9] {
            assert_eq!(judge(&shown(old, &other[..8], &log())), Refusal::Fork { size: 8 }, "from {old}");
        }
        let mut public = shown(8, &leaves(8), &log());
        public.hashes.push([1; 32]);
        assert_eq!(judge(&public), Refusal::NoProof);
        assert_eq!(judge(&shown(5, &leaves(7), &log())), Refusal::Conflict { known: 8, old: 5 });
        assert_eq!(judge(&shown(0, &leaves(12), &log())), Refusal::Conflict { known: 8, old: 0 });
        assert_eq!(judge(&shown(8, &leaves(5), &log())), Refusal::Backwards { old: 8, size: 5 });
        let mut broken = shown(8, &leaves(12), &log());
        broken.hashes[0][0] ^= 1;
        assert_eq!(judge(&broken), Refusal::Inconsistent { known: 8, size: 12 });
        let thief = Signer::new(ORIGIN, &[3; 32], Algorithm::Ed25519).unwrap();
        assert_eq!(judge(&shown(8, &leaves(12), &thief)), Refusal::NotSigned(Unverified::NoKnownKey));
        let stranger = Checkpoint { origin: "stranger.example".to_owned(), size: 9, root: [0; 32] };
        let checkpoint = SignedNote::sign(stranger.to_string(), &log(), 0).unwrap();
        let shown = ConsistencyProof { old: 8, hashes: Vec::new(), checkpoint };
        assert_eq!(judge(&shown), Refusal::UnknownLog("stranger.example".to_owned()));
    }

    #[test]
    fn keys_of_several_logs_or_of_witnesses_are_no_log() {
        let cosigner = Signer::new(ORIGIN, &[2; 32], Algorithm::Cosignature).unwrap();
        let other = Signer::new("other.example", &[1; 32], Algorithm::Ed25519).unwrap();
        let log = log().verifier().clone();
        assert_eq!(origin_of(slice::from_ref(&log)), Ok(ORIGIN));
        for keys in
            [vec![], vec![log.clone(), other.verifier().clone()], vec![log, cosigner.verifier().clone()]]
        {
            assert!(origin_of(&keys).is_err(), "{keys:?}");
        }
    }
}
