//! The ledger out to files, and in again: for other software, for safe keeping, for moving house.
//!
//! An export is a folder of files with one JSON object a line and a manifest that names them with
//! their SHA-256 and gives the head of the Merkle tree over the events, so that a folder can be
//! compared with a checkpoint kept elsewhere. Events travel letter by letter: each line gives the leaf
//! hash that stands beside it. An import believes nothing: it compares everything with everything
//! before it writes the first row, and again while it writes. Both go on where they were when they
//! were killed. See `ops/decisions/0017`.

mod export;
mod files;
mod import;
mod line;
mod manifest;
mod presence;

use std::{io, path::PathBuf};

use botledger_domain::merkle::Hash;

pub use export::{ExportRequest, Exported, export};
pub use files::private_file;
pub use import::{Expected, Imported, Verified, import, unfinished_import, verify_files};
pub use line::Encoding;
pub use manifest::{FileEntry, FileKind, Fingerprints, Head, MANIFEST, Manifest, Source};
pub use presence::Presence;

/// Why a transfer ended. What was finished before stays, and is found again.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// A file or folder cannot be used.
    #[error("{} cannot be used", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A line is not what an export writes there.
    #[error("{file} line {line}: {problem}")]
    Line {
        /// Name in the folder.
        file: String,
        /// From 1.
        line: u64,
        /// What is wrong.
        problem: String,
    },
    /// A file as a whole is not what the manifest says, or has no business there.
    #[error("{file}: {problem}")]
    Content {
        /// Name in the folder.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// An event of the ledger itself does not give its leaf hash, or is missing.
    #[error("the ledger differs from its own hashes at event {position}: {problem}")]
    Ledger {
        /// Where.
        position: i64,
        /// What is wrong.
        problem: &'static str,
    },
    /// It must not be done.
    #[error("{0}")]
    Refused(String),
}

impl TransferError {
    fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    fn content(file: &str, problem: impl Into<String>) -> Self {
        Self::Content { file: file.to_owned(), problem: problem.into() }
    }
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many of so many events are compared, before anything is written.
    Compared(i64, i64),
    /// So many of so many events are where they belong.
    Events(i64, i64),
    /// So many sealed bodies are.
    Bodies(i64),
}

/// A hash from 64 hex digits.
///
/// # Errors
/// When it is something else.
pub fn parse_hash(text: &str) -> Result<Hash, String> {
    let bytes = hex::decode(text.trim()).map_err(|_| "not hexadecimal".to_owned())?;
    bytes.try_into().map_err(|_| "not 32 bytes (64 hex digits)".to_owned())
}

/// Hashes as hex in JSON.
mod as_hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(hash))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        super::parse_hash(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Bytes as base64 in JSON.
mod as_base64 {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        BASE64_STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
