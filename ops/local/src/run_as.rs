//! Under which user the services run. PostgreSQL refuses root, so root hands its children to
//! `postgres` or `nobody`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The user that child processes run under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunAs {
    /// The caller's own user.
    Caller,
    /// Another user; only root can do this.
    User { uid: u32, gid: u32 },
}

impl RunAs {
    /// The caller, or, when the caller is root, the first of `postgres` and `nobody` that exists.
    ///
    /// # Errors
    /// When root finds neither user.
    pub fn for_services() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Caller);
        }
        for name in ["postgres", "nobody"] {
            if let (Some(uid), Some(gid)) = (id_of("-u", name), id_of("-g", name)) {
                return Ok(Self::User { uid, gid });
            }
        }
        bail!(
            "PostgreSQL refuses to run as root and there is neither a user `postgres` nor `nobody`: \
             create one with `useradd --system postgres`, or run this as a plain user"
        )
    }

    /// Numeric user id of the children.
    pub fn uid(self) -> u32 {
        match self {
            Self::Caller => rustix::process::geteuid().as_raw(),
            Self::User { uid, .. } => uid,
        }
    }

    /// Hands a file or folder to this user. Nothing happens for [`RunAs::Caller`].
    ///
    /// # Errors
    /// When the change of owner is refused.
    pub fn own(self, path: &Path) -> Result<()> {
        if let Self::User { uid, gid } = self {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))
                .with_context(|| format!("could not hand {} to uid {uid}", path.display()))?;
        }
        Ok(())
    }

    /// The first folder on the way to `path` that this user may not enter; `None` when it can reach
    /// it. Folders that do not exist yet are taken as reachable: we create them ourselves.
    pub fn barred_at(self, path: &Path) -> Option<PathBuf> {
        let Self::User { uid, gid } = self else { return None };
        let mut folders: Vec<&Path> = path.ancestors().collect();
        folders.reverse();
        for folder in folders {
            let Ok(meta) = std::fs::metadata(folder) else { continue };
            let bit = if meta.uid() == uid {
                0o100
            } else if meta.gid() == gid {
                0o010
            } else {
                0o001
            };
            if meta.is_dir() && meta.mode() & bit == 0 {
                return Some(folder.to_owned());
            }
        }
        None
    }
}

fn id_of(flag: &str, name: &str) -> Option<u32> {
    let output = Command::new("id").args([flag, name]).output().ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_closed_to_others_bars_another_user() {
        let dir = std::env::temp_dir().join(format!("botledger-run-as-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("inner")).unwrap();
        let other = RunAs::User { uid: 4_000_001, gid: 4_000_001 };
        set_mode(&dir, 0o700);
        assert_eq!(other.barred_at(&dir.join("inner")), Some(dir.clone()));
        set_mode(&dir, 0o711);
        assert_eq!(other.barred_at(&dir.join("inner").join("not-there-yet")), None);
        assert_eq!(RunAs::Caller.barred_at(&dir), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    fn set_mode(path: &Path, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
}
