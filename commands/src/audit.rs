use botledger_domain::{InstanceId, OperatorId, SharedClock, WorkspaceId};
use sqlx::PgPool;
use uuid::Uuid;

/// From where somebody asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The peer's address.
    pub ip: Option<String>,
    /// What the client calls itself, as [`Origin::user_agent`] leaves it.
    pub user_agent: Option<String>,
}

impl Origin {
    /// A client's own name as it may be kept: at most 200 characters, none of them a control character.
    #[must_use]
    pub fn user_agent(given: &str) -> Option<String> {
        let kept: String = given.chars().filter(|letter| !letter.is_control()).take(200).collect();
        Some(kept).filter(|kept| !kept.is_empty())
    }
}

/// A row of the audit table: a login, or what an operator or a shell asked for and how it ended. What it
/// changed is in the ledger, under the same correlation id.
#[derive(Clone, Debug)]
pub struct AuditEntry {
    /// Who, if known; nobody for a shell.
    pub operator_id: Option<OperatorId>,
    /// Theirs; where it is not given, that of the operator's login.
    pub workspace: Option<WorkspaceId>,
    /// What was tried, for example `bot.register`.
    pub action: String,
    /// `ok`, `refused`, `forbidden`, `failed`.
    pub outcome: &'static str,
    /// Codes and ids; no secrets, no personal data.
    pub detail: serde_json::Value,
    /// `graphql` or `cli`.
    pub source: &'static str,
    /// From where.
    pub origin: Origin,
    /// The request.
    pub correlation_id: Option<Uuid>,
}

/// Writes the audit table, whose rows nobody changes afterwards.
#[derive(Clone)]
pub struct Audit {
    pool: PgPool,
    clock: SharedClock,
    instance: InstanceId,
}

impl Audit {
    /// Writes as this process.
    #[must_use]
    pub fn new(pool: PgPool, clock: SharedClock, instance: InstanceId) -> Self {
        Self { pool, clock, instance }
    }

    /// Writes one row. A failure is logged and does not undo what the row is about.
    pub async fn record(&self, entry: AuditEntry) {
        let action = entry.action.clone();
        if let Err(error) = self.try_record(entry).await {
            tracing::error!(error = %error, action, "an audit row could not be written");
        }
    }

    /// Writes one row, where nothing may happen without it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn try_record(&self, entry: AuditEntry) -> Result<(), sqlx::Error> {
        let written = sqlx::query!(
            "INSERT INTO audit_log (happened_at, operator_id, action, outcome, detail, source_ip, user_agent, source,
                 instance, correlation_id, workspace)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
                 coalesce($11, (SELECT workspace FROM operator_logins WHERE operator_id = $2)))",
            self.clock.now(),
            entry.operator_id.map(|id| id.uuid()),
            entry.action,
            entry.outcome,
            entry.detail,
            entry.origin.ip,
            entry.origin.user_agent,
            entry.source,
            self.instance.uuid(),
            entry.correlation_id,
            entry.workspace.map(|id| id.uuid()),
        )
        .execute(&self.pool)
        .await;
        let outcome = if written.is_ok() { entry.outcome } else { "unwritten" };
        metrics::counter!("botledger_audit_rows_total", "outcome" => outcome).increment(1);
        written.map(drop)
    }
}
