//! What a shell did, for the audit table. What it changed stands in the ledger under the same correlation id.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use botledger_commands::{Audit, AuditEntry, Origin, SystemClock};
use serde_json::json;

use super::Settings;
use crate::platform::{errand, instance, pool};

/// A database that is away keeps nobody waiting for their error.
const PATIENCE: Duration = Duration::from_secs(2);

/// Notes that a command acted, and how it ended.
pub async fn note(settings: Settings, action: &'static str, done: &Result<u8>) {
    let written = tokio::time::timeout(PATIENCE, async {
        let pool = pool(&settings.load_running()?.config)?;
        let audit = Audit::new(pool, Arc::new(SystemClock), instance());
        let entry = AuditEntry {
            operator_id: None,
            workspace: None,
            action: action.to_owned(),
            outcome: if matches!(done, Ok(0)) { "ok" } else { "failed" },
            detail: who(),
            source: "cli",
            origin: Origin::default(),
            correlation_id: Some(errand()),
        };
        anyhow::Ok(audit.try_record(entry).await?)
    });
    let written = written.await;
    // Where the command failed too, its own error says more.
    if done.is_ok() && !matches!(written, Ok(Ok(()))) {
        let told = "the audit table does not know of this: the database did not answer";
        drop(writeln!(std::io::stderr(), "{told}"));
    }
}

/// The account of the system, and behind `sudo` the one that used it.
fn who() -> serde_json::Value {
    let uid = fs::metadata("/proc/self").ok().map(|this| this.uid());
    let sudo_user = std::env::var("SUDO_USER").ok().and_then(|name| Origin::user_agent(&name));
    json!({ "uid": uid, "sudo_user": sudo_user })
}
