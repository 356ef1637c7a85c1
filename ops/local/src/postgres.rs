//! A private PostgreSQL cluster: found binaries, `initdb`, start, roles.
//!
//! The cluster listens on a Unix socket only, asks every role for a scram password, and keeps
//! `fsync` on. Its log holds no statement and no value: those could carry personal data.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

use crate::migrate::OLDEST_MAJOR;
use crate::run_as::RunAs;
use crate::supervise::{self, Launch, Output, Process};

/// Names the socket file `.s.PGSQL.5432`; nothing listens on a TCP port.
pub const PORT: u16 = 5432;
/// The cluster's first role, which `initdb` makes.
pub const SUPERUSER: &str = "postgres";
/// Owns the database and runs the migrations.
pub const OWNER: &str = "botledger_owner";
/// What the running product connects as; may only what `botledger_writer` may.
pub const APP: &str = "botledger_app";
/// The group role that the migrations grant to.
pub const WRITER: &str = "botledger_writer";
/// The product's database.
pub const DATABASE: &str = "botledger";

const START_PATIENCE: Duration = Duration::from_secs(60);
const STALE_LOCK_PATIENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);

/// How to stop a cluster: fast shutdown, then immediate, then by force.
const STOP: &[(Signal, Duration)] =
    &[(Signal::INT, Duration::from_secs(30)), (Signal::QUIT, Duration::from_secs(5))];

/// PostgreSQL's server programs in one folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// The folder with `postgres` and `initdb`.
    pub bin: PathBuf,
    /// Major version, 15.
    pub major: u32,
    /// Full version as it calls itself, `15.18`.
    pub version: String,
}

impl Binaries {
    /// Looks at one folder; `None` when a program is missing or does not answer.
    pub fn at(bin: &Path) -> Option<Self> {
        let postgres = fs::canonicalize(bin.join("postgres")).ok()?;
        if !bin.join("initdb").is_file() {
            return None;
        }
        let output = Command::new(&postgres).arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let version = parse_version(&text)?;
        let major = version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        // Through the link, so that the same installation is found once.
        let real = postgres.parent()?;
        let bin = if real.join("initdb").is_file() { real.to_owned() } else { bin.to_owned() };
        Some(Self { bin, major, version })
    }

    /// Every installation on this machine, newest first. `extra` folders are looked at too.
    /// `PG_BIN`, when set, is the only one.
    pub fn find_all(extra: &[PathBuf]) -> Vec<Self> {
        if let Some(folder) = std::env::var_os("PG_BIN") {
            return Self::at(Path::new(&folder)).into_iter().collect();
        }
        let mut found: Vec<Self> = Vec::new();
        for folder in candidate_folders().into_iter().chain(extra.iter().cloned()) {
            if let Some(binaries) = Self::at(&folder)
                && !found.iter().any(|known| known.bin == binaries.bin)
            {
                found.push(binaries);
            }
        }
        found.sort_by_key(|binaries| std::cmp::Reverse(binaries.major));
        found
    }
}

/// `postgres (PostgreSQL) 15.18 (Debian …)` gives `15.18`.
fn parse_version(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("(PostgreSQL) ")?;
    rest.split_whitespace().next().map(str::to_owned)
}

fn candidate_folders() -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output()
        && let Ok(text) = String::from_utf8(output.stdout)
    {
        folders.insert(PathBuf::from(text.trim()));
    }
    for (parent, tail) in [
        ("/usr/lib/postgresql", "bin"),
        ("/opt/homebrew/opt", "bin"),
        ("/usr/local/opt", "bin"),
        ("/Applications/Postgres.app/Contents/Versions", "bin"),
    ] {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            folders.insert(entry.path().join(tail));
        }
    }
    for entry in fs::read_dir("/usr").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("pgsql") {
            folders.insert(entry.path().join("bin"));
        }
    }
    if let Some(path) = std::env::var_os("PATH") {
        folders.extend(std::env::split_paths(&path));
    }
    folders
}

/// The major versions that clusters exist for under `folder` (`pg15`, `pg17`, …).
pub fn existing_majors(folder: &Path) -> Vec<u32> {
    let mut majors: Vec<u32> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("PG_VERSION").is_file())
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("pg")?.parse().ok())
        .collect();
    majors.sort_unstable();
    majors
}

/// Picks the installation for a run: the one that can read the data that is there, else the newest.
///
/// # Errors
/// When data exists that no found installation can read, or every installation is too old.
pub fn choose(found: &[Binaries], existing: &[u32]) -> Result<Option<Binaries>> {
    if let Some(newest_data) = existing.last() {
        return match found.iter().find(|binaries| binaries.major == *newest_data) {
            Some(binaries) => Ok(Some(binaries.clone())),
            None => bail!(
                "the data in .local/pg{newest_data} was made by PostgreSQL {newest_data}, which is not here (found: \
                 {}). Install postgresql-{newest_data}, name its folder in PG_BIN, or drop the data with `ops/reset`",
                listed(found)
            ),
        };
    }
    let Some(newest) = found.first() else { return Ok(None) };
    if newest.major < OLDEST_MAJOR {
        bail!("botledger needs PostgreSQL {OLDEST_MAJOR} or newer, found {}", listed(found));
    }
    Ok(Some(newest.clone()))
}

fn listed(found: &[Binaries]) -> String {
    if found.is_empty() {
        return "none".to_owned();
    }
    found
        .iter()
        .map(|binaries| format!("{} in {}", binaries.version, binaries.bin.display()))
        .collect::<Vec<_>>()
        .join(", ")
}

/// One cluster: where it is and how it runs.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The programs it runs with.
    pub binaries: Binaries,
    /// Its data folder, `…/pg15`.
    pub data: PathBuf,
    /// The folder of its socket.
    pub run: PathBuf,
    /// Its log file.
    pub log: PathBuf,
    /// Its user.
    pub run_as: RunAs,
    /// The superuser's password.
    pub password: String,
    /// Survives a power cut; `false` only for throwaway clusters of tests.
    pub durable: bool,
}

impl Cluster {
    /// Makes the data folder if there is none. It appears under its name only when complete, so a
    /// broken-off `initdb` is simply repeated.
    ///
    /// # Errors
    /// When the folder is of another major version or owner, or `initdb` fails.
    pub async fn create(&self) -> Result<bool> {
        if self.data.join("PG_VERSION").is_file() {
            let major = fs::read_to_string(self.data.join("PG_VERSION"))?;
            if major.trim() != self.binaries.major.to_string() {
                bail!(
                    "{} holds data of PostgreSQL {}, these programs are {}: name the right ones in PG_BIN, or \
                     `ops/reset`",
                    self.data.display(),
                    major.trim(),
                    self.binaries.version
                );
            }
            let owner = fs::metadata(&self.data)?.uid();
            if owner != self.run_as.uid() {
                bail!(
                    "{} belongs to uid {owner}, but PostgreSQL would run as uid {}: run as the user that made it, or \
                     `ops/reset`",
                    self.data.display(),
                    self.run_as.uid()
                );
            }
            return Ok(false);
        }
        if self.data.exists() {
            bail!("{} is in the way: it is no PostgreSQL data folder", self.data.display());
        }
        let fresh = self.data.with_extension("new");
        if fresh.exists() {
            fs::remove_dir_all(&fresh)?;
        }
        fs::DirBuilder::new().mode(0o700).create(&fresh)?;
        self.run_as.own(&fresh)?;
        // Not inside the data folder: initdb wants that one empty.
        let password_file = self.run.join("initdb-password");
        crate::secrets::write_private(&password_file, &self.password)?;
        self.run_as.own(&password_file)?;
        let mut launch =
            Launch::new("initdb", self.binaries.bin.join("initdb"), Output::Log(self.log.clone()))
                .args(["-D".into(), fresh.clone().into_os_string()])
                .args([
                    "-U",
                    SUPERUSER,
                    "--encoding=UTF8",
                    "--locale=C",
                    "--auth=scram-sha-256",
                    "--no-instructions",
                ])
                .args([format!("--pwfile={}", password_file.display())]);
        if !self.durable {
            launch = launch.args(["--no-sync"]);
        }
        launch.run_as = self.run_as;
        launch.folder = Some(PathBuf::from("/"));
        let status = launch.start()?.wait().await;
        fs::remove_file(&password_file).ok();
        if !status.success() {
            bail!(
                "initdb failed ({status}); from {}:\n{}",
                self.log.display(),
                supervise::log_tail(&self.log, 12)
            );
        }
        fs::rename(&fresh, &self.data)?;
        Ok(true)
    }

    /// How the server is launched.
    pub fn launch(&self) -> Launch {
        let mut settings = vec![
            "listen_addresses=".to_owned(),
            format!("unix_socket_directories={}", self.run.display()),
            "unix_socket_permissions=0700".to_owned(),
            format!("port={PORT}"),
            "max_connections=200".to_owned(),
            "timezone=UTC".to_owned(),
            "log_timezone=UTC".to_owned(),
            "log_line_prefix=%m [%p] ".to_owned(),
            // Statements and the details of errors can hold what people wrote.
            "log_statement=none".to_owned(),
            "log_min_error_statement=panic".to_owned(),
            "log_error_verbosity=terse".to_owned(),
        ];
        if !self.durable {
            settings.extend(
                ["fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off"]
                    .map(str::to_owned),
            );
        }
        let mut launch =
            Launch::new("postgres", self.binaries.bin.join("postgres"), Output::Log(self.log.clone()))
                .args(["-D".into(), self.data.clone().into_os_string()])
                .args(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]));
        launch.run_as = self.run_as;
        launch.folder = Some(PathBuf::from("/"));
        // Fast shutdown: the postmaster ends its backends and closes the data properly.
        launch.death_signal = Signal::INT;
        launch.stop_order = 2;
        launch
    }

    /// Starts the server and waits until it answers. A start that meets the lock of a server that is
    /// just dying is tried again; a server left over on this data folder is stopped first. The caller
    /// must hold the run's lock: that is what makes the left-over one ours.
    ///
    /// # Errors
    /// When it does not come up; the message ends with its log.
    pub async fn start(&self) -> Result<Process> {
        let began = Instant::now();
        loop {
            self.clear_leftover().await?;
            let mut process = self.launch().start()?;
            let failed = match self.wait_ready(&mut process).await? {
                None => return Ok(process),
                Some(log) => log,
            };
            let stale = ["postmaster.pid", "shared memory block", "is still in use", "lock file"];
            if !stale.iter().any(|sign| failed.contains(sign)) || began.elapsed() > STALE_LOCK_PATIENCE {
                bail!("PostgreSQL did not start; from {}:\n{failed}", self.log.display());
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// `None` when it answers, the end of its log when it ended.
    async fn wait_ready(&self, process: &mut Process) -> Result<Option<String>> {
        let began = Instant::now();
        loop {
            if process.ended().is_some() {
                return Ok(Some(supervise::log_tail(&self.log, 12)));
            }
            match self.connect(DATABASE_OF_SUPERUSER).await {
                Ok(connection) => {
                    connection.close().await.ok();
                    return Ok(None);
                }
                Err(error) if sqlstate(&error).as_deref() == Some("28P01") => {
                    process.stop(STOP).await;
                    bail!(
                        "the password in .local/secrets does not open the cluster in {}: restore that file, or drop \
                         the data with `ops/reset`",
                        self.data.display()
                    );
                }
                Err(error) if began.elapsed() > START_PATIENCE => {
                    process.stop(STOP).await;
                    return Err(error)
                        .with_context(|| format!("PostgreSQL did not answer within {START_PATIENCE:?}"));
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Stops a server that a killed run left on our data folder, and removes a lock file whose
    /// process id now belongs to something else.
    async fn clear_leftover(&self) -> Result<()> {
        let lock = self.data.join("postmaster.pid");
        let Ok(text) = fs::read_to_string(&lock) else { return Ok(()) };
        let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok()) else {
            return Ok(());
        };
        if !supervise::is_alive(pid) {
            return Ok(()); // PostgreSQL sees that by itself.
        }
        if !is_server_of(pid, &self.data) {
            fs::remove_file(&lock).ok();
            return Ok(());
        }
        tracing::warn!("stopping a PostgreSQL that an earlier run left behind (pid {pid})");
        for (signal, patience) in STOP.iter().copied().chain([(Signal::KILL, Duration::from_secs(5))]) {
            supervise::signal_pid(pid, signal);
            let began = Instant::now();
            while began.elapsed() < patience {
                if !supervise::is_alive(pid) {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        }
        bail!("process {pid} holds {} and does not stop", self.data.display())
    }

    /// How the superuser connects.
    pub fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(&self.run)
            .port(PORT)
            .username(SUPERUSER)
            .password(&self.password)
            .database(database)
            .disable_statement_logging()
    }

    async fn connect(&self, database: &str) -> sqlx::Result<PgConnection> {
        PgConnection::connect_with(&self.options(database)).await
    }

    /// The URL a role connects with, in the form that sqlx and libpq both understand.
    pub fn url(&self, role: &str, password: &str, database: &str) -> String {
        format!("postgres://{role}:{password}@{}:{PORT}/{database}", percent_encoded(&self.run))
    }

    /// Makes (or updates the password of) the owner role, and the database it owns.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn ensure_database(&self, owner_password: &str) -> Result<()> {
        let mut connection = self.connect(DATABASE_OF_SUPERUSER).await?;
        // CREATEROLE because a migration makes the group role.
        ensure_role(&mut connection, OWNER, owner_password, "CREATEROLE").await?;
        let exists: Option<i32> = sqlx::query_scalar("SELECT 1 FROM pg_database WHERE datname = $1")
            .bind(DATABASE)
            .fetch_optional(&mut connection)
            .await?;
        if exists.is_none() {
            let sql = format!("CREATE DATABASE {DATABASE} OWNER {OWNER}");
            sqlx::raw_sql(&sql).execute(&mut connection).await.context("could not create the database")?;
        }
        connection.close().await.ok();
        Ok(())
    }

    /// Makes the login role of the running product and puts it into the group that the migrations
    /// grant to. After the migrations.
    ///
    /// # Errors
    /// When the server refuses, or the migrations made no such group.
    pub async fn ensure_app_role(&self, password: &str) -> Result<()> {
        let mut connection = self.connect(DATABASE).await?;
        ensure_role(&mut connection, APP, password, "NOSUPERUSER NOCREATEDB NOCREATEROLE").await?;
        let sql = format!("GRANT {WRITER} TO {APP}");
        sqlx::raw_sql(&sql)
            .execute(&mut connection)
            .await
            .context("could not grant the product its rights")?;
        connection.close().await.ok();
        Ok(())
    }

    /// Makes an empty database owned by the superuser; for throwaway clusters.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        let mut connection = self.connect(DATABASE_OF_SUPERUSER).await?;
        sqlx::raw_sql(&format!("CREATE DATABASE {name}")).execute(&mut connection).await?;
        connection.close().await.ok();
        Ok(())
    }

    /// Hides the data folder from a group or the world: PostgreSQL refuses to start otherwise, for
    /// instance after the project was copied with other modes.
    ///
    /// # Errors
    /// When the mode cannot be changed.
    pub fn close_to_others(&self) -> Result<()> {
        fs::set_permissions(&self.data, fs::Permissions::from_mode(0o700))?;
        Ok(())
    }
}

const DATABASE_OF_SUPERUSER: &str = "postgres";

/// `role` and `attributes` are our own constants; the password is hex, so it needs no quoting.
async fn ensure_role(
    connection: &mut PgConnection,
    role: &str,
    password: &str,
    attributes: &str,
) -> Result<()> {
    let exists: Option<i32> = sqlx::query_scalar("SELECT 1 FROM pg_roles WHERE rolname = $1")
        .bind(role)
        .fetch_optional(&mut *connection)
        .await?;
    let verb = if exists.is_some() { "ALTER" } else { "CREATE" };
    let sql = format!("{verb} ROLE {role} LOGIN {attributes} PASSWORD '{password}'");
    sqlx::raw_sql(&sql)
        .execute(connection)
        .await
        .with_context(|| format!("could not set up the role {role}"))?;
    Ok(())
}

fn sqlstate(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(std::borrow::Cow::into_owned)
}

fn is_server_of(pid: u32, data: &Path) -> bool {
    let line = match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).replace('\0', " "),
        Err(_) => Command::new("ps")
            .args(["-o", "command=", "-p", &pid.to_string()])
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default(),
    };
    line.contains("postgres") && line.contains(&data.display().to_string())
}

fn percent_encoded(path: &Path) -> String {
    use std::fmt::Write;
    path.as_os_str().as_encoded_bytes().iter().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            write!(text, "%{byte:02X}").expect("writing to a string cannot fail");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(major: u32) -> Binaries {
        Binaries { bin: PathBuf::from(format!("/pg/{major}")), major, version: format!("{major}.1") }
    }

    #[test]
    fn versions_are_read_from_what_the_server_says() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0)\n").as_deref(), Some("15.18"));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n").as_deref(), Some("18beta1"));
        assert_eq!(parse_version("mysqld 8"), None);
    }

    #[test]
    fn data_that_is_there_decides_over_the_newest_installation() {
        let found = [installed(17), installed(15)];
        assert_eq!(choose(&found, &[15]).unwrap().unwrap().major, 15);
        assert_eq!(choose(&found, &[]).unwrap().unwrap().major, 17);
        assert_eq!(choose(&[], &[]).unwrap(), None);
    }

    #[test]
    fn data_of_a_missing_major_is_refused_with_the_way_out() {
        let message = choose(&[installed(17)], &[15]).unwrap_err().to_string();
        assert!(message.contains("postgresql-15") && message.contains("ops/reset"), "{message}");
        assert!(choose(&[installed(13)], &[]).unwrap_err().to_string().contains("14 or newer"));
    }

    #[test]
    fn a_socket_folder_fits_into_a_url() {
        assert_eq!(percent_encoded(Path::new("/tmp/a b")), "%2Ftmp%2Fa%20b");
    }
}
