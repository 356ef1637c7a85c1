//! The bytes an event's leaf hash is taken over, and that hash (RFC 6962 §2.1: SHA-256 over a zero
//! byte and the leaf).
//!
//! The leaf is a version byte and then length-prefixed fields in a fixed order, each length a
//! big-endian u32. Only what is stored takes part, letter by letter: personal parts are ciphertext
//! in the payload already, so erasing a key changes no leaf.

use sha2::{Digest, Sha256};

/// Layout version of the leaf.
const LEAF_VERSION: u8 = 1;

/// Everything a leaf commits to. Texts exactly as stored.
#[derive(Clone, Copy, Debug)]
pub struct Leaf<'a> {
    /// Global position.
    pub position: i64,
    /// Microseconds since the Unix epoch of `recorded_at`.
    pub recorded_at_micros: i64,
    /// Stream type.
    pub aggregate_type: &'a str,
    /// Stream id.
    pub aggregate_id: &'a str,
    /// Place in the stream.
    pub sequence: i64,
    /// Wire name.
    pub event_type: &'a str,
    /// Wire version.
    pub event_version: &'a str,
    /// Stored JSON text.
    pub payload: &'a str,
    /// Stored JSON text.
    pub metadata: &'a str,
}

impl Leaf<'_> {
    /// The canonical bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + self.payload.len() + self.metadata.len());
        self.write(|part| out.extend_from_slice(part));
        out
    }

    /// RFC 6962 leaf hash of the canonical bytes.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = Sha256::new_with_prefix([0u8]);
        self.write(|part| hasher.update(part));
        hasher.finalize().into()
    }

    fn write(&self, mut sink: impl FnMut(&[u8])) {
        sink(&[LEAF_VERSION]);
        for number in [self.position, self.recorded_at_micros, self.sequence] {
            sink(&number.to_be_bytes());
        }
        for text in [
            self.aggregate_type,
            self.aggregate_id,
            self.event_type,
            self.event_version,
            self.payload,
            self.metadata,
        ] {
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
            sink(&length.to_be_bytes());
            sink(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaf<'a>(aggregate_id: &'a str, payload: &'a str) -> Leaf<'a> {
        Leaf {
            position: 7,
            recorded_at_micros: 1_795_000_000_000_001,
            aggregate_type: "bot",
            aggregate_id,
            sequence: 1,
            event_type: "bot_started",
            event_version: "1.0",
            payload,
            metadata: "{}",
        }
    }

    #[test]
    fn the_hash_is_the_one_of_rfc_6962_over_the_bytes() {
        let leaf = leaf("x", "{\"a\":1}");
        let mut prefixed = vec![0];
        prefixed.extend(leaf.bytes());
        assert_eq!(leaf.hash(), <[u8; 32]>::from(Sha256::digest(&prefixed)));
    }

    proptest! {
        #[test]
        fn moving_a_letter_between_fields_changes_the_leaf(a in "[a-z]{1,8}", b in "[a-z]{0,8}") {
            let (head, last) = a.split_at(a.len() - 1);
            let moved = format!("{last}{b}");
            prop_assert_ne!(leaf(&a, &b).bytes(), leaf(head, &moved).bytes());
        }
    }
}
