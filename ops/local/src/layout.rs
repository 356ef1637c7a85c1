//! Where a local run keeps its things.
//!
//! ```text
//! <root>/.local/           lock, up.json, secrets/ (0700), logs/, pg<major>/ (the cluster)
//! <runtime dir>/           sockets; short, because a socket path has at most 107 bytes
//! ```
//! When root's children may not enter the root folder (a home of mode 0700), the cluster lies under
//! `/var/lib/botledger/<hash>` instead, and every command says so.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::run_as::RunAs;

/// `sun_path` holds 108 bytes on Linux, the last one a zero; macOS has 104.
const SOCKET_PATH_MAX: usize = if cfg!(target_os = "linux") { 107 } else { 103 };
const LONGEST_SOCKET_NAME: usize = "/.s.PGSQL.5432.lock".len();

/// The folders of one local run. Two runs with different roots never share one.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The project folder that `.local` is in.
    pub root: PathBuf,
    /// `<root>/.local`.
    pub home: PathBuf,
    /// Holds `pg<major>/`; usually the same as `home`.
    pub clusters: PathBuf,
    /// Sockets.
    pub run: PathBuf,
    /// Who the services run as.
    pub run_as: RunAs,
}

impl Layout {
    /// Works out the folders for `root`, or for the nearest folder upward from here that holds
    /// `.local` or the project's `Cargo.lock`. Creates nothing.
    ///
    /// # Errors
    /// When the current folder is gone, root has no user to hand services to, or no runtime folder
    /// is short enough and reachable.
    pub fn discover(root: Option<&Path>) -> Result<Self> {
        let here = std::env::current_dir().context("the current folder cannot be read")?;
        let root = match root {
            Some(root) => {
                fs::canonicalize(root).with_context(|| format!("no such folder: {}", root.display()))?
            }
            None => here
                .ancestors()
                .find(|folder| folder.join(".local").is_dir() || folder.join("Cargo.lock").is_file())
                .unwrap_or(&here)
                .to_owned(),
        };
        Self::at(root, RunAs::for_services()?)
    }

    /// The layout of `root` (an absolute path) for services that run as `run_as`.
    ///
    /// # Errors
    /// When no runtime folder is short enough and reachable.
    pub fn at(root: PathBuf, run_as: RunAs) -> Result<Self> {
        let home = root.join(".local");
        let mark = short_hash(&root);
        let clusters = match run_as.barred_at(&home) {
            Some(_) => PathBuf::from("/var/lib/botledger").join(&mark),
            None => home.clone(),
        };
        Ok(Self { run: runtime_folder(&mark, run_as)?, home, clusters, root, run_as })
    }

    /// Creates the folders with the owners and modes they need.
    ///
    /// # Errors
    /// When one cannot be created, or belongs to someone else.
    pub fn create(&self) -> Result<()> {
        for folder in [&self.home, &self.clusters, &self.logs()] {
            // 0711: another user's children walk through it, but cannot list it.
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(folder)
                .with_context(|| format!("could not create {}", folder.display()))?;
            let owner = fs::metadata(folder)?.uid();
            let me = rustix::process::geteuid();
            if owner != me.as_raw() && !me.is_root() {
                bail!(
                    "{} belongs to uid {owner}, you are uid {}: run as that user, or remove the folder",
                    folder.display(),
                    me.as_raw()
                );
            }
        }
        create_runtime_folder(&self.run, self.run_as)
    }

    /// Log files of the services and processes.
    pub fn logs(&self) -> PathBuf {
        self.home.join("logs")
    }

    /// Generated secrets.
    pub fn secrets(&self) -> PathBuf {
        self.home.join("secrets")
    }

    /// What a person should know about where the data is, when it is not under `.local`.
    pub fn note(&self) -> Option<String> {
        (self.clusters != self.home).then(|| {
            format!(
                "{} is closed to the user PostgreSQL runs as: its data is in {} instead",
                self.root.display(),
                self.clusters.display()
            )
        })
    }
}

/// The first ten hex digits of the SHA-256 of a path.
pub fn short_hash(path: &Path) -> String {
    hex::encode(&Sha256::digest(path.as_os_str().as_encoded_bytes())[..5])
}

/// A folder for sockets whose paths fit, that `run_as` can enter. Not created.
///
/// # Errors
/// When none of the usual places will do.
pub fn runtime_folder(mark: &str, run_as: RunAs) -> Result<PathBuf> {
    let mut places: Vec<PathBuf> = Vec::new();
    if run_as == RunAs::Caller
        && let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR")
    {
        places.push(PathBuf::from(dir).join(format!("botledger-{mark}")));
    }
    // The user id keeps two people with the same checkout apart.
    places.push(PathBuf::from(format!("/tmp/botledger-{}-{mark}", rustix::process::geteuid().as_raw())));
    for place in &places {
        let usable = place.parent().is_some_and(|parent| {
            parent.is_dir() && rustix::fs::access(parent, rustix::fs::Access::WRITE_OK).is_ok()
        });
        let fits = place.as_os_str().len() + LONGEST_SOCKET_NAME <= SOCKET_PATH_MAX;
        if usable && fits && run_as.barred_at(place).is_none() {
            return Ok(place.clone());
        }
    }
    bail!("no folder for sockets: tried {places:?} (each must be writable and its path short)")
}

/// Creates the folder with mode 0700 for `run_as`, or takes over one that is already exactly that.
///
/// # Errors
/// When something else is in its place: in a shared `/tmp` another user could have put it there.
pub fn create_runtime_folder(folder: &Path, run_as: RunAs) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => run_as.own(folder),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let meta = fs::symlink_metadata(folder)?;
            let mine = [rustix::process::geteuid().as_raw(), run_as.uid()].contains(&meta.uid());
            if !meta.is_dir() || !mine {
                bail!("{} is not a folder of ours: remove it", folder.display());
            }
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
            run_as.own(folder)
        }
        Err(error) => Err(error).with_context(|| format!("could not create {}", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_roots_never_share_a_folder() {
        let one = Layout::at(PathBuf::from("/srv/one"), RunAs::Caller).unwrap();
        let two = Layout::at(PathBuf::from("/srv/two"), RunAs::Caller).unwrap();
        assert_ne!(one.run, two.run);
        assert_ne!(one.home, two.home);
    }

    #[test]
    fn socket_paths_fit_however_deep_the_project_lies() {
        let deep = PathBuf::from(format!("/srv/{}", "very-long-name/".repeat(40)));
        let layout = Layout::at(deep, RunAs::Caller).unwrap();
        assert!(layout.run.join(".s.PGSQL.5432").as_os_str().len() <= SOCKET_PATH_MAX);
    }

    #[test]
    fn a_closed_project_folder_moves_the_cluster_away_and_says_so() {
        let root = std::env::temp_dir().join(format!("botledger-layout-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
        let other = RunAs::User { uid: 4_000_001, gid: 4_000_001 };
        let layout = Layout::at(root.clone(), other).unwrap();
        assert!(layout.clusters.starts_with("/var/lib/botledger"));
        assert!(layout.note().unwrap().contains("closed"));
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(Layout::at(root.clone(), other).unwrap().note(), None);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_link_in_place_of_the_runtime_folder_is_refused() {
        let base = std::env::temp_dir().join(format!("botledger-link-{}", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        std::os::unix::fs::symlink("/etc", base.join("run")).unwrap();
        assert!(create_runtime_folder(&base.join("run"), RunAs::Caller).is_err());
        fs::remove_dir_all(base).unwrap();
    }
}
