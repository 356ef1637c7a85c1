//! Who holds a local run: a lock that the kernel frees when the holder dies, and `up.json`, which
//! tells a second caller what the holder runs.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::secrets::write_private;
use crate::supervise;

/// Held for as long as a run lives; dropping it lets the next one in.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

/// How far the holder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Starting,
    Ready,
    Stopping,
}

/// What the holder of a run tells others. The file is readable by its owner only: the rows can hold
/// a one-time link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpState {
    /// Process id of the holder.
    pub pid: u32,
    /// Tells the holder from a later process with the same id.
    pub birth_mark: Option<String>,
    /// How far it is.
    pub phase: Phase,
    /// Head of the box.
    pub title: String,
    /// Lines of the box: label and value.
    pub rows: Vec<(String, String)>,
    /// Address and path that answer 200 when everything is ready.
    pub ready: Option<(String, String)>,
    /// Names and process ids of what it holds.
    pub children: Vec<(String, u32)>,
}

fn lock_path(layout: &Layout) -> PathBuf {
    layout.home.join("lock")
}

/// Where [`UpState`] lies.
pub fn state_path(layout: &Layout) -> PathBuf {
    layout.home.join("up.json")
}

/// Takes the run, or gives `None` when someone holds it. `.local` must exist.
///
/// # Errors
/// When the lock file cannot be opened.
pub fn try_lock(layout: &Layout) -> Result<Option<RunLock>> {
    let path = lock_path(layout);
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o644)
        .open(&path)
        .with_context(|| format!("could not open {}: does it belong to another user?", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(RunLock { _file: file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("could not lock {}", path.display())),
    }
}

/// Whether someone holds the run; works for other users than the holder's too.
pub fn is_held(layout: &Layout) -> bool {
    let Ok(file) = File::open(lock_path(layout)) else { return false };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

/// What the holder last wrote; `None` before it wrote anything.
///
/// # Errors
/// When the file is another user's or damaged.
pub fn read(layout: &Layout) -> Result<Option<UpState>> {
    let path = state_path(layout);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(
            serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged: remove it", path.display()))?,
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error)
            .with_context(|| format!("could not read {}: was it started by another user?", path.display())),
    }
}

/// Writes what others may know.
///
/// # Errors
/// When `.local` is not writable.
pub fn write(layout: &Layout, state: &UpState) -> Result<()> {
    write_private(&state_path(layout), &serde_json::to_string_pretty(state)?)
}

impl UpState {
    /// Whether the process it names is still that process.
    pub fn holder_is_alive(&self) -> bool {
        supervise::is_alive(self.pid) && supervise::birth_mark(self.pid) == self.birth_mark
    }
}
