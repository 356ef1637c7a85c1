//! Secrets that a local run makes for itself: random, hex, one file each, readable by the owner only.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rand::RngCore;

/// The folder `.local/secrets`.
#[derive(Clone, Debug)]
pub struct Secrets {
    folder: PathBuf,
}

impl Secrets {
    /// Opens the folder, creating it with mode 0700.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn open(folder: PathBuf) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("could not create {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// Where the secret `name` lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The secret `name` (64 hex digits, 32 random bytes), made on first use.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds something else.
    pub fn get_or_create(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let secret = text.trim().to_owned();
                if secret.len() < 32 || !secret.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                    bail!(
                        "{} does not hold a secret of ours: restore it, or run `ops/reset`",
                        path.display()
                    );
                }
                Ok(secret)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let secret = random_secret();
                write_private(&path, &format!("{secret}\n"))?;
                Ok(secret)
            }
            Err(error) => Err(error).with_context(|| format!("could not read {}", path.display())),
        }
    }
}

/// 32 random bytes as 64 hex digits.
pub fn random_secret() -> String {
    let mut bytes = [0_u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

/// Writes a file that only its owner can read, as [`write_whole`] does.
///
/// # Errors
/// When the folder is not writable or the disk is full.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    write_whole(path, text, 0o600)
}

/// Replaces a file whole: after a crash the old one or the new one is there. `mode` is less what the process's umask
/// takes away.
///
/// # Errors
/// When the folder is not writable or the disk is full.
pub fn write_whole(path: &Path, text: &str, mode: u32) -> Result<()> {
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let written = || -> std::io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // Its new name has to be on the disk as well.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    written().with_context(|| format!("could not write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_is_made_once_and_closed_to_others() {
        let folder = std::env::temp_dir().join(format!("botledger-secrets-{}", std::process::id()));
        let secrets = Secrets::open(folder.clone()).unwrap();
        let first = secrets.get_or_create("one").unwrap();
        assert_eq!(first.len(), 64);
        assert_eq!(secrets.get_or_create("one").unwrap(), first);
        assert_ne!(secrets.get_or_create("two").unwrap(), first);
        let mode = fs::metadata(secrets.path("one")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(secrets.path("three"), "short").unwrap();
        assert!(secrets.get_or_create("three").is_err());
        fs::remove_dir_all(folder).unwrap();
    }
}
