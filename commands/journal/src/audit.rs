//! History that proves itself: the Merkle tree over the ledger's leaves, signed heads of it, what a
//! witness of them decides, and the comparison of everything with everything.
//!
//! The event at position `n` is leaf `n - 1`. What is written beside the ledger (`log_tiles`,
//! `log_checkpoints`) makes proofs short and tells *where* a difference is; whether there is one is
//! decided by the events' own bytes and by signatures whose key is not in the database. See
//! `ops/decisions/0014`.

mod checkpoint;
mod note;
mod tree;
mod verify;
mod witness;

pub use checkpoint::{Checkpoint, ConsistencyProof, InclusionProof, MalformedCheckpoint};
pub use note::{Algorithm, MalformedNote, SignedNote, Signer, Unverified, Verified, VerifierKey};
pub use tree::{LogKeys, LogTree, Signed, StoredCheckpoint, TreeError};
pub use verify::{Finding, Verdict, Witnessed};
pub use witness::{NoWitness, Refusal, Witness, origin_of};
