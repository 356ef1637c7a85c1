use std::{collections::BTreeMap, fs, path::Path};

use botledger_domain::merkle::Hash;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Encoding, TransferError, as_hex, files};

/// The file that is written last: a folder without it is no export yet.
pub const MANIFEST: &str = "manifest.json";
/// What an unfinished export is to become.
pub(crate) const PLAN: &str = "unfinished.json";
pub(crate) const FORMAT: &str = "botledger-log";
pub(crate) const VERSION: u32 = 1;

/// Whose ledger it is, and what wrote the files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Leaf hash of the event at position 1: no two ledgers share it, and a copy keeps it.
    #[serde(with = "as_hex")]
    pub ledger: Hash,
    /// `instance.name` of the exporting installation.
    pub instance: String,
    /// Version of the program.
    pub product: String,
    /// Newest migration of the database.
    pub schema: i64,
}

/// A tree of events from the first on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Events, from position 1.
    pub size: i64,
    /// RFC 6962 tree head over their leaf hashes: what a checkpoint of this size signs.
    #[serde(with = "as_hex")]
    pub root: Hash,
    /// Hashes of its complete subtrees, left to right, as hex: from here the tree can be grown by whoever
    /// has the events after it.
    pub subtrees: Vec<String>,
}

/// SHA-256 of keys that are not in the database: enough to see that two installations have the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprints {
    /// Of `keys.pseudonym_key`; absent where the exporting process did not know it.
    pub pseudonym: Option<String>,
    /// Of master keys, by version.
    pub master: BTreeMap<i32, String>,
}

impl Fingerprints {
    /// Of one key, under its name in the configuration.
    #[must_use]
    pub fn of(name: &str, key: &[u8; 32]) -> String {
        let digest =
            Sha256::new_with_prefix(b"botledger key\n").chain_update(name).chain_update(key).finalize();
        hex::encode(&digest[..16])
    }
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Events, by position.
    Events,
    /// Sealed message bodies.
    Bodies,
    /// What beside the events decides how read models and bots go on: operators' decisions about events
    /// that stopped a read model, and the epochs of bots.
    State,
    /// For moving house: wrapped data keys, logins with their password hashes.
    House,
}

impl FileKind {
    pub(crate) fn name(self, first: i64) -> String {
        match self {
            Self::Events => format!("events-{first:020}.ndjson"),
            Self::Bodies => format!("bodies-{first:020}.ndjson"),
            Self::State => "state.ndjson".to_owned(),
            Self::House => "house.ndjson".to_owned(),
        }
    }
}

/// A finished file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name in the folder.
    pub name: String,
    /// What it holds.
    pub kind: FileKind,
    /// Of events the position, of others the number of its first line among those of its kind, from 1.
    pub first: i64,
    /// Lines.
    pub lines: i64,
    /// Length.
    pub bytes: u64,
    /// Of the whole file.
    #[serde(with = "as_hex")]
    pub sha256: Hash,
}

/// What an export is meant to hold: fixed when it begins, so that it can go on after a kill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    pub(crate) source: Source,
    pub(crate) encoding: Encoding,
    pub(crate) before: Head,
    pub(crate) last: i64,
    pub(crate) bodies: bool,
    pub(crate) house: bool,
    pub(crate) max_file_bytes: u64,
    pub(crate) keys: Fingerprints,
}

/// What a folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always `botledger-log`.
    pub format: String,
    /// Of the layout; 1.
    pub version: u32,
    /// Whose ledger.
    pub source: Source,
    /// How events are written.
    pub encoding: Encoding,
    /// Position of the first event.
    pub first: i64,
    /// Position of the last.
    pub last: i64,
    /// The tree over everything before the first event.
    pub before: Head,
    /// The tree over everything up to the last event.
    pub after: Head,
    /// Whether sealed bodies came along.
    pub bodies: bool,
    /// Of bodies that events name, those that were not there any more.
    pub bodies_absent: i64,
    /// Whether it is for moving house: keys and logins came along.
    pub house: bool,
    /// Which keys sealed personal data and made pseudonyms.
    pub keys: Fingerprints,
    /// Every other file, in order of reading.
    pub files: Vec<FileEntry>,
}

impl Manifest {
    /// Reads the manifest of a folder; gives its SHA-256 too.
    ///
    /// # Errors
    /// When there is none, or it is not one that this build can read.
    pub fn read(folder: &Path) -> Result<(Self, Hash), TransferError> {
        let path = folder.join(MANIFEST);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let what = if folder.join(PLAN).exists() {
                    "holds an export that has not finished: run the same `botledger export log` again"
                } else {
                    "holds no export: there is no manifest.json in it"
                };
                return Err(TransferError::Refused(format!("{} {what}", folder.display())));
            }
            Err(error) => return Err(TransferError::file(path)(error)),
        };
        #[derive(Deserialize)]
        struct Stamp {
            format: String,
            version: u32,
        }
        let wrong = |problem: String| TransferError::content(MANIFEST, problem);
        let stamp: Stamp = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if stamp.format != FORMAT {
            return Err(wrong(format!("format {} is not {FORMAT}", stamp.format)));
        }
        if stamp.version != VERSION {
            return Err(wrong(format!("version {} is not one this build reads ({VERSION})", stamp.version)));
        }
        let manifest: Self = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        manifest.check().map_err(wrong)?;
        Ok((manifest, Sha256::digest(&text).into()))
    }

    /// Whether it agrees with itself: names are those of an export (and so lead nowhere else), files follow
    /// each other without gaps.
    fn check(&self) -> Result<(), String> {
        if self.first < 1
            || self.first.checked_sub(1) != Some(self.before.size)
            || self.after.size != self.last
            || self.last < self.first
        {
            return Err("its ranges contradict each other".to_owned());
        }
        let mut next = BTreeMap::from([(FileKind::Events, self.first)]);
        let mut latest = FileKind::Events;
        for file in &self.files {
            let next = next.entry(file.kind).or_insert(1);
            if file.kind < latest
                || file.first != *next
                || file.lines < 0
                || file.name != file.kind.name(file.first)
            {
                return Err(format!("{} does not follow the file before it", file.name));
            }
            latest = file.kind;
            *next = file.first.saturating_add(file.lines);
        }
        if next.get(&FileKind::Events).copied() != self.last.checked_add(1) {
            return Err(format!("its event files do not reach from {} to {}", self.first, self.last));
        }
        let mut names: Vec<&str> = self.files.iter().map(|file| file.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let allowed = |kind| match kind {
            FileKind::Events | FileKind::State => true,
            FileKind::Bodies => self.bodies,
            FileKind::House => self.house,
        };
        if names.len() != self.files.len() || !self.files.iter().all(|file| allowed(file.kind)) {
            return Err("it names files that do not belong into it".to_owned());
        }
        Ok(())
    }

    /// The names of all files of a kind.
    pub fn of_kind(&self, kind: FileKind) -> impl Iterator<Item = &FileEntry> {
        self.files.iter().filter(move |file| file.kind == kind)
    }

    /// Lines of a kind.
    #[must_use]
    pub fn lines(&self, kind: FileKind) -> i64 {
        self.of_kind(kind).map(|file| file.lines).sum()
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<Hash, TransferError> {
        let mut text =
            serde_json::to_string_pretty(self).expect("a manifest is an object of texts and numbers");
        text.push('\n');
        files::write_whole(folder, MANIFEST, text.as_bytes())?;
        Ok(Sha256::digest(&text).into())
    }
}
