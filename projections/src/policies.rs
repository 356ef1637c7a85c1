use std::sync::Arc;

use async_trait::async_trait;
use botledger_domain::{
    BotId, OperatorId, RecordedEvent, WorkspaceId,
    policy::{Policy, PolicyEvent, PolicyTerms, Trial},
    policy_stream,
};
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    Page, Projection, ProjectionError,
    fold::{Rows, read_row},
    select::select_page,
    turns::decode_all,
};

read_row! {
    /// A workspace's policy, or a bot's.
    PolicyRow in "policies"
    key { policy_id: Uuid }
    values {
        workspace: Uuid,
        /// Absent for a workspace's own.
        bot_id: Option<Uuid>,
        /// The one in force; absent while none is.
        version: Option<i64>,
        /// The newest there ever was.
        last_version: i64,
        changed_at: DateTime<Utc>,
        created_position: i64,
        updated_position: i64,
    }
}

read_row! {
    /// A version of a policy, without what it says.
    PolicyVersionRow in "policy_versions"
    key { policy_id: Uuid, version: i64 }
    values {
        workspace: Uuid,
        bot_id: Option<Uuid>,
        /// Whether it began by watching only.
        dry_run: bool,
        /// When it began to act by itself; absent when it watched until another version.
        dry_run_until: Option<DateTime<Utc>>,
        note: Option<String>,
        /// Absent when somebody with a shell did it.
        published_by: Option<Uuid>,
        published_at: DateTime<Utc>,
        /// When another version took its place, or it was withdrawn; absent while it is in force.
        ended_at: Option<DateTime<Utc>>,
        /// Whether it was withdrawn rather than replaced.
        withdrawn: bool,
        withdrawn_by: Option<Uuid>,
        withdrawal_reason: Option<String>,
        created_position: i64,
        updated_position: i64,
    }
}

impl PolicyVersionRow {
    /// Whether it only watches at a moment.
    #[must_use]
    pub fn trial(&self) -> Trial {
        match self.dry_run {
            true => Trial::DryRun { until: self.dry_run_until },
            false => Trial::Live,
        }
    }
}

read_row! {
    /// What a version of a policy says.
    PolicyTermsRow in "policy_terms"
    key { policy_id: Uuid, version: i64 }
    values {
        /// As `PolicyTerms`.
        terms: serde_json::Value,
    }
}

/// One row an owner, and two a version. Reads `policy` events; owns `policies`, `policy_versions` and
/// `policy_terms`.
pub struct PoliciesProjection;

#[async_trait]
impl Projection for PoliciesProjection {
    fn name(&self) -> &'static str {
        "policies"
    }

    fn tables(&self) -> &'static [&'static str] {
        &["policies", "policy_versions", "policy_terms"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        let facts = decode_all::<Policy>(page)?;
        let mut policies = Rows::<PolicyRow>::fetch(tx, facts.iter().map(|(_, id, _)| (*id,))).await?;
        let touched = facts.iter().flat_map(|(_, id, fact)| match fact {
            PolicyEvent::PolicyPublished { version, .. } => {
                let version = i64::from(*version);
                vec![(*id, version - 1), (*id, version)]
            }
            PolicyEvent::PolicyWithdrawn { version, .. } => vec![(*id, i64::from(*version))],
        });
        let mut versions = Rows::<PolicyVersionRow>::fetch(tx, touched).await?;
        // A version never changes: what it says is written, and never fetched to be compared.
        let mut terms_of = Rows::<PolicyTermsRow>::fetch(tx, []).await?;
        for (recorded, id, fact) in facts {
            let position = recorded.position.0;
            match fact {
                PolicyEvent::PolicyPublished {
                    workspace,
                    bot,
                    version,
                    terms,
                    trial,
                    note,
                    by,
                    published_at,
                } => {
                    let (workspace, bot_id) = (workspace.uuid(), bot.map(BotId::uuid));
                    let version = i64::from(version);
                    if let Some(before) = versions.get_mut(&(id, version - 1))
                        && before.ended_at.is_none()
                    {
                        before.ended_at = Some(published_at);
                        before.updated_position = position;
                    }
                    let (dry_run, dry_run_until) = match trial {
                        Trial::Live => (false, None),
                        Trial::DryRun { until } => (true, until),
                    };
                    versions.insert(PolicyVersionRow {
                        policy_id: id,
                        version,
                        workspace,
                        bot_id,
                        dry_run,
                        dry_run_until,
                        note: note.map(String::from),
                        published_by: by.map(OperatorId::uuid),
                        published_at,
                        ended_at: None,
                        withdrawn: false,
                        withdrawn_by: None,
                        withdrawal_reason: None,
                        created_position: position,
                        updated_position: position,
                    });
                    let unwritable = |_| ProjectionError::Inconsistent {
                        position: recorded.position,
                        problem: "its terms cannot be written",
                    };
                    let terms = serde_json::to_value(&terms).map_err(unwritable)?;
                    terms_of.insert(PolicyTermsRow { policy_id: id, version, terms });
                    let row = policies.get_or_insert((id,), || PolicyRow {
                        policy_id: id,
                        workspace,
                        bot_id,
                        version: None,
                        last_version: version,
                        changed_at: published_at,
                        created_position: position,
                        updated_position: position,
                    });
                    (row.version, row.last_version) = (Some(version), version);
                    (row.changed_at, row.updated_position) = (published_at, position);
                }
                PolicyEvent::PolicyWithdrawn { version, reason, by, withdrawn_at } => {
                    let never = ProjectionError::Inconsistent {
                        position: recorded.position,
                        problem: "it was never published",
                    };
                    let (Some(row), Some(ended)) =
                        (policies.get_mut(&(id,)), versions.get_mut(&(id, i64::from(version))))
                    else {
                        return Err(never);
                    };
                    row.version = None;
                    (row.changed_at, row.updated_position) = (withdrawn_at, position);
                    ended.ended_at = Some(withdrawn_at);
                    (ended.withdrawn, ended.withdrawn_by) = (true, by.map(OperatorId::uuid));
                    ended.withdrawal_reason = Some(reason.into());
                    ended.updated_position = position;
                }
            }
        }
        policies.store(tx).await?;
        versions.store(tx).await?;
        Ok(terms_of.store(tx).await?)
    }
}

/// A workspace's policy, or a bot's; absent when nobody ever published one.
///
/// # Errors
/// When the database fails.
pub async fn policy(
    pool: &PgPool,
    workspace: WorkspaceId,
    bot: Option<BotId>,
) -> Result<Option<PolicyRow>, sqlx::Error> {
    policy_by_id(pool, policy_stream(workspace, bot)).await
}

/// The same by the id of its stream.
///
/// # Errors
/// When the database fails.
pub async fn policy_by_id(pool: &PgPool, id: Uuid) -> Result<Option<PolicyRow>, sqlx::Error> {
    sqlx::query_as("SELECT * FROM policies WHERE policy_id = $1").bind(id).fetch_optional(pool).await
}

/// Versions by policy and number, in no order; absent ones are left out.
///
/// # Errors
/// When the database fails.
pub async fn policy_versions_by_ids(
    pool: &PgPool,
    ids: &[(Uuid, i64)],
) -> Result<Vec<PolicyVersionRow>, sqlx::Error> {
    let (policies, versions): (Vec<Uuid>, Vec<i64>) = ids.iter().copied().unzip();
    sqlx::query_as(
        "SELECT * FROM policy_versions
         WHERE (policy_id, version) IN (SELECT * FROM unnest($1::uuid[], $2::bigint[]))",
    )
    .bind(policies)
    .bind(versions)
    .fetch_all(pool)
    .await
}

/// What a version says; absent when there is no such version.
///
/// # Errors
/// When the database fails, or the row cannot be read.
pub async fn policy_terms(
    pool: &PgPool,
    policy: Uuid,
    version: i64,
) -> Result<Option<PolicyTerms>, sqlx::Error> {
    let terms: Option<sqlx::types::Json<PolicyTerms>> =
        sqlx::query_scalar("SELECT terms FROM policy_terms WHERE policy_id = $1 AND version = $2")
            .bind(policy)
            .bind(version)
            .fetch_optional(pool)
            .await?;
    Ok(terms.map(|terms| terms.0))
}

/// Which versions.
#[derive(Clone, Debug, Default)]
pub struct PolicyVersionFilter {
    /// Of this policy only; of all of the workspace's policies when absent.
    pub policy: Option<Uuid>,
    /// In force or not, as far as today's rows tell.
    pub in_force: Option<bool>,
}

/// Versions of a workspace's policies.
///
/// # Errors
/// When the database fails.
pub async fn policy_versions_page(
    pool: &PgPool,
    workspace: WorkspaceId,
    filter: &PolicyVersionFilter,
    page: Page,
) -> Result<Vec<PolicyVersionRow>, sqlx::Error> {
    select_page(pool, "policy_versions", page, |query| {
        query.push(" AND workspace = ").push_bind(workspace.uuid());
        if let Some(policy) = filter.policy {
            query.push(" AND policy_id = ").push_bind(policy);
        }
        if let Some(in_force) = filter.in_force {
            query.push(" AND (ended_at IS NULL) = ").push_bind(in_force);
        }
    })
    .await
}
