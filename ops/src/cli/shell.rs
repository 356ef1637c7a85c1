//! What a shell did, for the audit table. What it changed stands in the ledger under the same correlation id.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use botledger_commands::{Audit, AuditEntry, Origin, SystemClock};
use botledger_journal::transfer::{Presence, TransferError};

use super::Settings;
use crate::platform::{answering_pool, errand, instance, pool};

/// A database that is away keeps nobody waiting for their error.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a command tells about what it did; no secrets, no personal data.
pub type Told = serde_json::Map<String, serde_json::Value>;

/// Keeps imports out while a command acts. Where the database does not answer, the command's own error says more.
///
/// # Errors
/// While a ledger is being imported.
pub async fn present(settings: Settings) -> Result<Option<Presence>> {
    let began = tokio::time::timeout(PATIENCE, async {
        let pool = pool(&settings.load_running()?.config)?;
        anyhow::Ok(Presence::begin(&pool).await)
    });
    match began.await {
        Ok(Ok(Ok(presence))) => Ok(Some(presence)),
        Ok(Ok(Err(TransferError::Refused(why)))) => bail!(why),
        _ => Ok(None),
    }
}

/// Notes that a command begins, where it must not begin without.
///
/// # Errors
/// When that cannot be noted.
pub async fn begun(settings: Settings, action: &'static str) -> Result<()> {
    let pool = answering_pool(&settings.load_running()?.config).await?;
    let audit = Audit::new(pool, Arc::new(SystemClock), instance());
    let written = audit.try_record(entry(action, "begun", Told::new())).await;
    written.context("the audit table cannot be written, and without it this is not done")
}

/// Notes that a command acted, and how it ended.
pub async fn note(settings: Settings, action: &'static str, done: &Result<u8>, told: Told) {
    let outcome = if matches!(done, Ok(0)) { "ok" } else { "failed" };
    let written = tokio::time::timeout(PATIENCE, async {
        let pool = pool(&settings.load_running()?.config)?;
        let audit = Audit::new(pool, Arc::new(SystemClock), instance());
        anyhow::Ok(audit.try_record(entry(action, outcome, told)).await?)
    });
    let written = written.await;
    // Where the command failed too, its own error says more.
    if done.is_ok() && !matches!(written, Ok(Ok(()))) {
        let told = "the audit table does not know of this: the database did not answer";
        drop(writeln!(std::io::stderr(), "{told}"));
    }
}

/// Who is the account of the system, and behind `sudo` the one that used it.
fn entry(action: &'static str, outcome: &'static str, mut detail: Told) -> AuditEntry {
    let uid = fs::metadata("/proc/self").ok().map(|this| this.uid());
    let sudo_user = std::env::var("SUDO_USER").ok().and_then(|name| Origin::user_agent(&name));
    detail.insert("uid".to_owned(), uid.into());
    detail.insert("sudo_user".to_owned(), sudo_user.into());
    AuditEntry {
        operator_id: None,
        workspace: None,
        action: action.to_owned(),
        outcome,
        detail: detail.into(),
        source: "cli",
        origin: Origin::default(),
        correlation_id: Some(errand()),
    }
}
