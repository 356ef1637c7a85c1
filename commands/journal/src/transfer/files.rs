//! Files that are there whole or not at all, and reading them line by line with their hash.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use botledger_domain::merkle::Hash;
use sha2::{Digest, Sha256};

use super::{FileEntry, FileKind, TransferError};

/// Only their owner reads what leaves the database.
const MODE: u32 = 0o600;
/// What a file is called until it is whole.
const PART: &str = ".part";
/// The longest line that is read. An event is at most PostgreSQL's 1 GiB, and no writer of ours comes near.
const LONGEST_LINE: u64 = 256 * 1024 * 1024;

pub(super) fn is_part(name: &str) -> bool {
    name.ends_with(PART)
}

/// A file in the making. Dropped unfinished it leaves only a `.part`, which the next run replaces.
pub(super) struct Sink {
    folder: PathBuf,
    kind: FileKind,
    first: i64,
    out: BufWriter<File>,
    hasher: Sha256,
    lines: i64,
    bytes: u64,
}

impl Sink {
    pub(super) fn create(folder: &Path, kind: FileKind, first: i64) -> Result<Self, TransferError> {
        let path = part(folder, &kind.name(first));
        let out = BufWriter::with_capacity(1 << 18, private_file(&path).map_err(TransferError::file(path))?);
        let folder = folder.to_owned();
        Ok(Self { folder, kind, first, out, hasher: Sha256::new(), lines: 0, bytes: 0 })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn lines(&self) -> i64 {
        self.lines
    }

    /// Adds a line, which ends in its newline.
    pub(super) fn line(&mut self, line: &[u8]) -> Result<(), TransferError> {
        self.out
            .write_all(line)
            .map_err(TransferError::file(self.folder.join(self.kind.name(self.first))))?;
        self.hasher.update(line);
        self.lines += 1;
        self.bytes += line.len() as u64;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<FileEntry, TransferError> {
        let name = self.kind.name(self.first);
        let wrong = || TransferError::file(self.folder.join(&name));
        self.out.flush().map_err(wrong())?;
        publish(&self.folder, &name, self.out.get_ref())?;
        Ok(FileEntry {
            kind: self.kind,
            first: self.first,
            lines: self.lines,
            bytes: self.bytes,
            sha256: self.hasher.finalize().into(),
            name,
        })
    }
}

fn part(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}{PART}"))
}

/// A new file that only its owner reads. What lies there under its name is taken away, never written into: it may be
/// readable by others, or lead elsewhere.
///
/// # Errors
/// When what lies there cannot be taken away, or the file cannot be made.
pub fn private_file(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => OpenOptions::new().write(true).create_new(true).mode(MODE).open(path),
    }
}

/// Gives a written `.part` its name. Its bytes are on the disk before the name is, and the name is
/// before this returns.
fn publish(folder: &Path, name: &str, file: &File) -> Result<(), TransferError> {
    let path = folder.join(name);
    file.sync_all().map_err(TransferError::file(&path))?;
    fs::rename(part(folder, name), &path).map_err(TransferError::file(&path))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(TransferError::file(folder))
}

pub(super) fn write_whole(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), TransferError> {
    let path = part(folder, name);
    let mut file = private_file(&path).map_err(TransferError::file(&path))?;
    file.write_all(bytes).map_err(TransferError::file(&path))?;
    publish(folder, name, &file)
}

/// Lines of a file, and at the end what the file is.
pub(super) struct Lines {
    name: String,
    path: PathBuf,
    reader: BufReader<File>,
    hasher: Sha256,
    number: i64,
    bytes: u64,
    line: Vec<u8>,
}

impl Lines {
    pub(super) fn open(folder: &Path, name: &str) -> Result<Self, TransferError> {
        let path = folder.join(name);
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => TransferError::content(name, "is missing"),
            _ => TransferError::file(&path)(error),
        })?;
        Ok(Self {
            name: name.to_owned(),
            path,
            reader: BufReader::with_capacity(1 << 18, file),
            hasher: Sha256::new(),
            number: 0,
            bytes: 0,
            line: Vec::new(),
        })
    }

    /// The next line, with its newline.
    pub(super) fn read(&mut self) -> Result<Option<&[u8]>, TransferError> {
        self.line.clear();
        let mut bounded = self.reader.by_ref().take(LONGEST_LINE);
        bounded.read_until(b'\n', &mut self.line).map_err(TransferError::file(&self.path))?;
        if self.line.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        self.bytes += self.line.len() as u64;
        self.hasher.update(&self.line);
        if self.line.last() != Some(&b'\n') {
            return Err(self.wrong("is cut off"));
        }
        Ok(Some(&self.line))
    }

    /// A complaint about the line that was read last.
    pub(super) fn wrong(&self, problem: impl Into<String>) -> TransferError {
        TransferError::Line {
            file: self.name.clone(),
            line: self.number.unsigned_abs(),
            problem: problem.into(),
        }
    }

    /// After the last line: lines, length, hash.
    pub(super) fn finish(self) -> (i64, u64, Hash) {
        (self.number, self.bytes, self.hasher.finalize().into())
    }

    /// After the last line: whether the file is the one that is meant.
    pub(super) fn compare(self, entry: &FileEntry) -> Result<(), TransferError> {
        let (lines, bytes, sha256) = self.finish();
        if lines != entry.lines {
            let problem = format!("has {lines} lines, the manifest says {}", entry.lines);
            return Err(TransferError::content(&entry.name, problem));
        }
        if (bytes, sha256) != (entry.bytes, entry.sha256) {
            return Err(TransferError::content(&entry.name, "its SHA-256 is not the one in the manifest"));
        }
        Ok(())
    }
}
