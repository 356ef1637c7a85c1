//! `doctor`: what could keep a local run from working, each finding with its fix.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::install::{self, Missing};
use crate::layout::Layout;
use crate::migrate::{self, OLDEST_MAJOR};
use crate::npm;
use crate::postgres::{self, Binaries};
use crate::progress::say;
use crate::redis::{self, Binary};
use crate::services::Given;
use crate::state;

/// Below this much free disk a run is likely to fail soon.
const DISK_MIN_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    Warning,
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub level: Level,
    /// What was seen.
    pub detail: String,
    /// What to do; `None` when nothing has to be done.
    pub fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, detail: detail.into(), fix: None }
    }

    fn warning(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn problem(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level: Level::Problem, detail: detail.into(), fix: Some(fix.into()) }
    }
}

/// Prints every finding; 1 when one of them is a problem.
///
/// # Errors
/// Only when the output cannot be made.
pub async fn doctor(root: Option<&Path>, as_json: bool) -> Result<u8> {
    let findings = findings(root).await;
    if as_json {
        say(serde_json::to_string_pretty(&findings)?);
    } else {
        for finding in &findings {
            let mark = match finding.level {
                Level::Ok => "ok  ",
                Level::Warning => "warn",
                Level::Problem => "FAIL",
            };
            say(format!("{mark}  {:<12} {}", finding.check, finding.detail));
            if let Some(fix) = &finding.fix {
                say(format!("      {:<12} fix: {fix}", ""));
            }
        }
    }
    Ok(u8::from(findings.iter().any(|finding| finding.level == Level::Problem)))
}

/// Everything worth looking at.
pub async fn findings(root: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![cargo(), compiler()];
    let layout = match Layout::discover(root) {
        Ok(layout) => layout,
        Err(error) => {
            findings.push(Finding::problem("folders", format!("{error:#}"), "see the message"));
            return findings;
        }
    };
    findings.push(match layout.note() {
        Some(note) => Finding::warning(
            "folders",
            note,
            "move the project to where that user can enter, if this matters",
        ),
        None => Finding::ok("folders", layout.home.display().to_string()),
    });
    findings.push(disk(&layout));
    findings.push(database(&layout).await);
    findings.push(cache().await);
    findings.push(running(&layout));
    findings
}

fn cargo() -> Finding {
    match install::version_line("cargo") {
        Some(version) => Finding::ok("cargo", version),
        None => {
            Finding::problem("cargo", "not on PATH", "install Rust: https://rustup.rs, then open a new shell")
        }
    }
}

fn compiler() -> Finding {
    match install::on_path("cc") {
        Some(path) => Finding::ok("compiler", path.display().to_string()),
        None => Finding::problem(
            "compiler",
            "no C compiler (cc) on PATH",
            "apt-get install gcc libc6-dev, or Xcode's tools",
        ),
    }
}

fn disk(layout: &Layout) -> Finding {
    let folder = layout.clusters.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(folder) {
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            let detail = format!("{:.1} GiB free for {}", free as f64 / f64::from(1 << 30), folder.display());
            if free < DISK_MIN_BYTES {
                Finding::problem(
                    "disk",
                    detail,
                    "free at least 2 GiB: PostgreSQL stops when it cannot write its log",
                )
            } else {
                Finding::ok("disk", detail)
            }
        }
        Err(error) => Finding::warning("disk", format!("free space unknown: {error}"), "check with df"),
    }
}

async fn database(layout: &Layout) -> Finding {
    if let Some(url) = Given::from_environment().database_url {
        return given_database(&url).await;
    }
    let existing = postgres::existing_majors(&layout.clusters);
    let install = install::advice(&[Missing::Postgres(existing.last().copied())])
        .unwrap_or_else(|| "install PostgreSQL, or set DATABASE_URL".to_owned());
    match postgres::choose(&Binaries::find_all(&npm::installed(&layout.clusters)), &existing) {
        Ok(Some(binaries)) => {
            Finding::ok("postgresql", format!("{} in {}", binaries.version, binaries.bin.display()))
        }
        Ok(None) => Finding::problem("postgresql", "no server programs found", install),
        Err(error) => Finding::problem("postgresql", error.to_string(), install),
    }
}

async fn given_database(url: &str) -> Finding {
    use sqlx::Connection;
    const CHECK: &str = "postgresql";
    let mut connection = match sqlx::PgConnection::connect(url).await {
        Ok(connection) => connection,
        // The error of sqlx names no password.
        Err(error) => {
            return Finding::problem(
                CHECK,
                format!("DATABASE_URL: {error}"),
                "start that server, or unset DATABASE_URL",
            );
        }
    };
    let version = migrate::server_version_num(&mut connection).await.unwrap_or(0);
    let superuser: bool = sqlx::query_scalar("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        .fetch_one(&mut connection)
        .await
        .unwrap_or(false);
    connection.close().await.ok();
    let detail = format!("DATABASE_URL: PostgreSQL {}.{}", version / 10_000, version % 10_000);
    if version / 10_000 < OLDEST_MAJOR {
        Finding::problem(
            CHECK,
            detail,
            format!("upgrade it to {OLDEST_MAJOR} or newer, or unset DATABASE_URL"),
        )
    } else if superuser {
        Finding::warning(
            CHECK,
            format!("{detail}, as a superuser, whom the ledger's protection does not stop"),
            format!(
                "connect as a role that is only a member of {}, and set BOTLEDGER_DATABASE__MIGRATE_URL for migrations",
                postgres::WRITER
            ),
        )
    } else {
        Finding::ok(CHECK, detail)
    }
}

async fn cache() -> Finding {
    if let Some(url) = Given::from_environment().redis_url {
        return match redis::ping(&url).await {
            Ok(()) => Finding::ok("redis", "REDIS_URL answers"),
            Err(error) => Finding::problem(
                "redis",
                format!("REDIS_URL: {error:#}"),
                "start that server, or unset REDIS_URL",
            ),
        };
    }
    match Binary::find() {
        Ok(Some(binary)) => Finding::ok("redis", format!("{} ({})", binary.version, binary.path.display())),
        Ok(None) => Finding::problem(
            "redis",
            "no server program found",
            install::advice(&[Missing::Redis])
                .unwrap_or_else(|| "install Redis, or set REDIS_URL".to_owned()),
        ),
        Err(error) => Finding::problem("redis", error.to_string(), "upgrade it, or set REDIS_URL"),
    }
}

fn running(layout: &Layout) -> Finding {
    if !state::is_held(layout) {
        return Finding::ok("running", "nothing is running here");
    }
    match state::read(layout) {
        Ok(Some(told)) if told.holder_is_alive() => {
            Finding::ok("running", format!("pid {}, {:?}", told.pid, told.phase))
        }
        Ok(_) => Finding::warning(
            "running",
            "the lock is held, but not by who says so",
            "ops/status, then ops/down",
        ),
        Err(error) => Finding::warning("running", format!("{error:#}"), "look as the user that started it"),
    }
}
