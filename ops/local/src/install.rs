//! Getting what is missing from the system's package manager, never without consent.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::{Progress, ask};
use crate::supervise::{self, Launch, Output};

/// Something the machine lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// PostgreSQL's server programs; of this major version when data of it exists.
    Postgres(Option<u32>),
    /// A Redis server.
    Redis,
    /// Go and the packages of its checksum database: the tests let them verify what auditors are given.
    Go,
}

/// Where Debian keeps Go's packages.
const GO_PACKAGES: &str = "/usr/share/gocode/src/golang.org/x/mod/sumdb";

/// Installs [`Missing::Go`] where it is missing.
///
/// # Errors
/// As [`install`].
pub async fn have_go(yes: bool, logs: &Path, progress: &Progress) -> Result<()> {
    if on_path("go").is_some() && Path::new(GO_PACKAGES).is_dir() {
        return Ok(());
    }
    install(&[Missing::Go], yes, logs, progress).await?;
    if !Path::new(GO_PACKAGES).is_dir() {
        bail!("Go was installed, but its packages are not in {GO_PACKAGES}");
    }
    Ok(())
}

impl Missing {
    /// What a person calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres(_) => "PostgreSQL",
            Self::Redis => "Redis",
            Self::Go => "Go with golang.org/x/mod",
        }
    }
}

/// A package manager this knows how to drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manager {
    Apt,
    Brew,
}

impl Manager {
    fn find() -> Option<Self> {
        if on_path("apt-get").is_some() {
            Some(Self::Apt)
        } else if on_path("brew").is_some() {
            Some(Self::Brew)
        } else {
            None
        }
    }

    fn packages(self, missing: &[Missing]) -> Vec<String> {
        missing
            .iter()
            .map(|missing| match (self, missing) {
                (Self::Apt, Missing::Postgres(None)) => "postgresql".to_owned(),
                (Self::Apt, Missing::Postgres(Some(major))) => format!("postgresql-{major}"),
                // Holds the server program, and unlike redis-server starts no service of its own.
                (Self::Apt, Missing::Redis) => "redis-tools".to_owned(),
                (Self::Apt, Missing::Go) => "golang-go golang-golang-x-mod-dev".to_owned(),
                (Self::Brew, Missing::Postgres(major)) => format!("postgresql@{}", major.unwrap_or(17)),
                (Self::Brew, Missing::Redis) => "redis".to_owned(),
                (Self::Brew, Missing::Go) => "go".to_owned(),
            })
            .flat_map(|names| names.split(' ').map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    /// The commands, in order.
    fn commands(self, packages: &[String], root: bool) -> Vec<Vec<String>> {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let mut commands = match self {
            Self::Apt => vec![words("apt-get update"), words("apt-get install -y --no-install-recommends")],
            Self::Brew => vec![words("brew install")],
        };
        if let Some(last) = commands.last_mut() {
            last.extend_from_slice(packages);
        }
        if self == Self::Apt && !root {
            for command in &mut commands {
                command.insert(0, "sudo".to_owned());
            }
        }
        commands
    }
}

/// Whether this user can drive the package manager: as root, with Homebrew, or through sudo, which may
/// ask for a password only where somebody is asked anyway.
pub fn is_possible(yes: bool) -> bool {
    match Manager::find() {
        Some(Manager::Apt) => rustix::process::geteuid().is_root() || sudo_works(yes),
        Some(Manager::Brew) => true,
        None => false,
    }
}

fn sudo_works(yes: bool) -> bool {
    let Some(sudo) = on_path("sudo") else { return false };
    let may_ask = !yes && std::io::IsTerminal::is_terminal(&std::io::stdin());
    may_ask || Command::new(sudo).args(["-n", "true"]).output().is_ok_and(|output| output.status.success())
}

/// Lets sudo ask for the password on the terminal now: what is started later runs in the background,
/// where asking would stop it for good.
fn unlock_sudo(yes: bool) -> Result<()> {
    if !yes && let Some(sudo) = on_path("sudo") {
        let status = Command::new(sudo).arg("-v").status().context("sudo cannot be run")?;
        if !status.success() {
            bail!("sudo does not let you install packages");
        }
    }
    Ok(())
}

/// The shell line that installs what is missing here, for messages; `None` when the machine has no
/// package manager we know.
pub fn advice(missing: &[Missing]) -> Option<String> {
    let manager = Manager::find()?;
    let commands = manager.commands(&manager.packages(missing), rustix::process::geteuid().is_root());
    Some(commands.iter().map(|command| command.join(" ")).collect::<Vec<_>>().join(" && "))
}

/// Installs, after asking on the terminal unless `yes`.
///
/// # Errors
/// When consent is refused or cannot be asked for, the machine has no package manager we know, or the
/// installation fails. The message holds the command to run by hand.
pub async fn install(missing: &[Missing], yes: bool, logs: &Path, progress: &Progress) -> Result<()> {
    let names = missing.iter().map(|missing| missing.name()).collect::<Vec<_>>().join(" and ");
    let instead =
        if missing == [Missing::Go] { "" } else { ", or set DATABASE_URL / REDIS_URL to servers you have" };
    let Some(manager) = Manager::find() else {
        bail!("{names} missing, and no package manager known to this (apt-get, brew): install it{instead}");
    };
    let root = rustix::process::geteuid().is_root();
    let commands = manager.commands(&manager.packages(missing), root);
    let line = commands.iter().map(|command| command.join(" ")).collect::<Vec<_>>().join(" && ");
    if !yes {
        match ask(&format!("{names} is not on this machine. Run `{line}`?")) {
            Some(true) => {}
            Some(false) => bail!("{names} missing. To install it: {line}"),
            None => bail!(
                "{names} missing, and nobody to ask. Run `{line}`, or add --yes to let this do it{instead}"
            ),
        }
    }
    progress.step(format!("installing {names}: {line}"));
    std::fs::create_dir_all(logs).with_context(|| format!("could not create {}", logs.display()))?;
    let log = logs.join("install.log");
    if commands.iter().any(|command| command[0] == "sudo") {
        unlock_sudo(yes)?;
    }
    for command in &commands {
        let Some(program) = on_path(&command[0]) else {
            bail!("`{}` is not here. As root, run: {line}", command[0])
        };
        let arguments: Vec<String> = if command[0] == "sudo" {
            std::iter::once("-n".to_owned()).chain(command[1..].iter().cloned()).collect()
        } else {
            command[1..].to_vec()
        };
        let mut launch = Launch::new("installer", program, Output::Log(log.clone())).args(arguments);
        launch.env = vec![("DEBIAN_FRONTEND".to_owned(), "noninteractive".into())];
        let status = launch.start()?.wait().await;
        if !status.success() {
            bail!(
                "`{}` failed ({status}). Run it by hand: {line}\nfrom {}:\n{}",
                command.join(" "),
                log.display(),
                supervise::log_tail(&log, 8)
            );
        }
    }
    Ok(())
}

/// The program `name` on `PATH` or in the folders of system tools.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/bin".into()])
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// The first line a program says of its version; `None` when it is not here.
pub fn version_line(program: &str) -> Option<String> {
    let output = Command::new(on_path(program)?).arg("--version").output().ok()?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_names_the_packages_and_uses_sudo_only_when_needed() {
        let packages = Manager::Apt.packages(&[Missing::Postgres(Some(15)), Missing::Redis]);
        assert_eq!(packages, ["postgresql-15", "redis-tools"]);
        assert_eq!(Manager::Apt.packages(&[Missing::Go]), ["golang-go", "golang-golang-x-mod-dev"]);
        let as_root = Manager::Apt.commands(&packages, true);
        assert_eq!(
            as_root[1].join(" "),
            "apt-get install -y --no-install-recommends postgresql-15 redis-tools"
        );
        assert_eq!(Manager::Apt.commands(&packages, false)[0].join(" "), "sudo apt-get update");
        assert_eq!(Manager::Brew.commands(&["redis".to_owned()], false), [["brew", "install", "redis"]]);
    }

    #[tokio::test]
    async fn without_consent_and_without_a_terminal_nothing_is_installed() {
        let progress = Progress::silent();
        let logs = std::env::temp_dir();
        let error = install(&[Missing::Redis], false, &logs, &progress).await.unwrap_err().to_string();
        assert!(error.contains("Redis") && error.contains("REDIS_URL"), "{error}");
    }
}
