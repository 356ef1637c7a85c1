//! A private Redis on a Unix socket. It keeps nothing on disk: all it holds may vanish at any moment.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::run_as::RunAs;
use crate::supervise::{self, Launch, Output, Process};

/// `XAUTOCLAIM` and the options of `XADD` we rely on came with 6.2.
const OLDEST: (u32, u32) = (6, 2);
const START_PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);

/// How to stop it: there is nothing to save.
const STOP: &[(Signal, Duration)] = &[(Signal::TERM, Duration::from_secs(5))];

/// A server program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binary {
    /// The program.
    pub path: PathBuf,
    /// What it says it is, `7.0.15`.
    pub version: String,
}

impl Binary {
    /// Finds `redis-server` or `valkey-server` (`REDIS_BIN`, `PATH`, Homebrew), new enough.
    ///
    /// # Errors
    /// When one is found but too old.
    pub fn find() -> Result<Option<Self>> {
        let mut candidates: Vec<PathBuf> =
            std::env::var_os("REDIS_BIN").map(PathBuf::from).into_iter().collect();
        let path = std::env::var_os("PATH").unwrap_or_default();
        for folder in std::env::split_paths(&path).chain(["/opt/homebrew/bin".into(), "/usr/bin".into()]) {
            // Debian's redis-tools holds the server under this name and starts no service of its own.
            for name in ["redis-server", "valkey-server", "redis-check-rdb", "valkey-check-rdb"] {
                candidates.push(folder.join(name));
            }
        }
        for path in candidates {
            if !path.is_file() {
                continue;
            }
            let Some(version) = version_of(&path) else { continue };
            if numbers(&version) < OLDEST {
                bail!(
                    "{} is version {version}, botledger needs {}.{} or newer: upgrade it, or set REDIS_URL",
                    path.display(),
                    OLDEST.0,
                    OLDEST.1
                );
            }
            return Ok(Some(Self { path, version }));
        }
        Ok(None)
    }
}

/// The program decides by its own name what it is.
fn arg0(path: &Path) -> &'static str {
    if path.to_string_lossy().contains("valkey") { "valkey-server" } else { "redis-server" }
}

fn version_of(path: &Path) -> Option<String> {
    use std::os::unix::process::CommandExt;
    let output = Command::new(path).arg0(arg0(path)).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (_, rest) = text.split_once("server v=")?;
    rest.split_whitespace().next().map(str::to_owned)
}

fn numbers(version: &str) -> (u32, u32) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// One server: where it is and how it runs.
#[derive(Clone, Debug)]
pub struct Server {
    /// The program.
    pub binary: Binary,
    /// The folder of its socket.
    pub run: PathBuf,
    /// Its log file.
    pub log: PathBuf,
    /// Its user.
    pub run_as: RunAs,
    /// What clients must say.
    pub password: String,
}

impl Server {
    /// The URL clients connect with.
    pub fn url(&self) -> String {
        format!("redis+unix://{}?pass={}", self.socket().display(), self.password)
    }

    fn socket(&self) -> PathBuf {
        self.run.join("redis.sock")
    }

    /// How the server is launched. The password goes through standard input: arguments can be read
    /// by everyone on the machine.
    pub fn launch(&self) -> Launch {
        let mut launch = Launch::new("redis", &self.binary.path, Output::Log(self.log.clone())).args(["-"]);
        launch.arg0 = Some(arg0(&self.binary.path));
        launch.run_as = self.run_as;
        launch.stop_order = 1;
        launch.folder = Some(PathBuf::from("/"));
        launch.stdin = Some(format!(
            "port 0\nunixsocket \"{}\"\nunixsocketperm 700\nsave \"\"\nappendonly no\ndaemonize no\ndir \"{}\"\n\
             requirepass {}\nmaxmemory-policy noeviction\n",
            self.socket().display(),
            self.run.display(),
            self.password
        ));
        launch
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up; the message ends with its log.
    pub async fn start(&self) -> Result<Process> {
        let mut process = self.launch().start()?;
        let began = Instant::now();
        loop {
            if let Some(status) = process.ended() {
                bail!(
                    "Redis ended ({status}); from {}:\n{}",
                    self.log.display(),
                    supervise::log_tail(&self.log, 8)
                );
            }
            match ping(&self.url()).await {
                Ok(()) => return Ok(process),
                Err(error) if began.elapsed() > START_PATIENCE => {
                    process.stop(STOP).await;
                    return Err(error)
                        .with_context(|| format!("Redis did not answer within {START_PATIENCE:?}"));
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }
}

/// Asks a server whether it answers, within two seconds.
///
/// # Errors
/// When it does not.
pub async fn ping(url: &str) -> Result<()> {
    let client = redis::Client::open(url).context("REDIS_URL cannot be read")?;
    let exchange = async {
        let mut connection = client.get_multiplexed_async_connection().await?;
        redis::cmd("PING").query_async::<String>(&mut connection).await
    };
    tokio::time::timeout(Duration::from_secs(2), exchange)
        .await
        .context("no answer from Redis within 2 s")??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(numbers("7.0.15") >= OLDEST);
        assert!(numbers("6.10.1") >= OLDEST);
        assert!(numbers("6.0.16") < OLDEST);
        assert!(numbers("5.0.14") < OLDEST);
    }
}
