use botledger_domain::{OperatorId, SharedClock};
use sqlx::PgPool;
use uuid::Uuid;

/// A row of the audit table: logins, and admin calls that were refused or forbidden. What was done
/// is in the ledger.
#[derive(Clone, Debug)]
pub struct AuditEntry {
    /// Who, if known.
    pub operator_id: Option<OperatorId>,
    /// What was tried, for example `bot.register`.
    pub action: String,
    /// `ok`, `refused`, `forbidden`, `failed`.
    pub outcome: &'static str,
    /// Codes and ids; no secrets, no personal data.
    pub detail: serde_json::Value,
    /// The peer's address.
    pub source_ip: Option<String>,
    /// The request.
    pub correlation_id: Option<Uuid>,
}

/// Writes the audit table.
#[derive(Clone)]
pub struct Audit {
    pool: PgPool,
    clock: SharedClock,
}

impl Audit {
    pub(crate) fn new(pool: PgPool, clock: SharedClock) -> Self {
        Self { pool, clock }
    }

    /// Writes one row. A failure is logged and does not undo what the row is about.
    pub async fn record(&self, entry: AuditEntry) {
        let written = sqlx::query!(
            "INSERT INTO audit_log (happened_at, operator_id, action, outcome, detail, source_ip, correlation_id)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
            self.clock.now(),
            entry.operator_id.map(|id| id.uuid()),
            entry.action,
            entry.outcome,
            entry.detail,
            entry.source_ip,
            entry.correlation_id,
        )
        .execute(&self.pool)
        .await;
        if let Err(error) = written {
            tracing::error!(error = %error, action = entry.action, "an audit row could not be written");
        }
    }
}
