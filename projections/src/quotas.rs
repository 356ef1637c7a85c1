use std::sync::Arc;

use async_trait::async_trait;
use botledger_domain::{
    RecordedEvent, SubjectId, WorkspaceId,
    account::{Account, Amounts, LimitLeft, Meter, PlanTerms, Raise, Warning},
    quota::{Quota, QuotaEvent},
};
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    Page, Projection, ProjectionError,
    fold::{Rows, read_row},
    select::select_page,
    turns::{count, decode_all},
};

read_row! {
    /// One person's quota in a workspace, as of the last event; a window may have ended since.
    QuotaRow in "quotas"
    key { quota_id: Uuid }
    values {
        workspace: Uuid,
        subject: Uuid,
        plan: String,
        /// `PlanTerms`, as they were assigned.
        terms: Value,
        /// A list of `Meter`, one for every limit.
        meters: Value,
        reserved_tokens: i64,
        reserved_messages: i64,
        reserved_money: i64,
        /// A list of `Raise`; those that ran out leave it when a window begins.
        overrides: Value,
        /// A list of `Warning`: those given in the present windows.
        warnings: Value,
        /// Times the person was refused for it.
        refusals: i64,
        created_position: i64,
        updated_position: i64,
    }
}

/// Of a column that a projection wrote; a default where somebody else did.
pub(crate) fn read<T: DeserializeOwned + Default>(column: &Value) -> T {
    serde_json::from_value(column.clone()).unwrap_or_default()
}

pub(crate) fn written<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// An amount that a projection wrote.
pub(crate) fn amounts(tokens: i64, messages: i64, money: i64) -> Amounts {
    let amount = |column: i64| u64::try_from(column).unwrap_or(0);
    Amounts { tokens: amount(tokens), messages: amount(messages), money: amount(money) }
}

/// Terms that a projection wrote.
pub(crate) fn terms(column: &Value) -> PlanTerms {
    let none = PlanTerms { limits: vec![], warn_at_percent: vec![] };
    serde_json::from_value(column.clone()).unwrap_or(none)
}

/// Takes the meters of windows that began, and drops the warnings and raises of those that ended.
pub(crate) fn turn(
    meters: &mut Value,
    warnings: &mut Value,
    raises: &mut Value,
    to: &[Meter],
    now: DateTime<Utc>,
) {
    let given: Vec<Warning> = read(warnings);
    let runs = |warning: &Warning| {
        let same = |meter: &&Meter| (meter.unit, meter.period) == (warning.unit, warning.period);
        to.iter().find(same).is_some_and(|meter| meter.window.end == warning.resets_at)
    };
    *warnings = written(&given.into_iter().filter(runs).collect::<Vec<_>>());
    let running: Vec<Raise> = read(raises);
    *raises = written(&running.into_iter().filter(|raise| now < raise.expires_at).collect::<Vec<_>>());
    *meters = written(&to);
}

/// Sets what is used, in the order of the meters.
pub(crate) fn set_used(meters: &mut Value, used: &[u64]) {
    let mut all: Vec<Meter> = read(meters);
    for (meter, used) in all.iter_mut().zip(used) {
        meter.used = *used;
    }
    *meters = written(&all);
}

/// Adds one to a list.
pub(crate) fn push<T: serde::Serialize>(list: &mut Value, one: &T) {
    if let Some(list) = list.as_array_mut() {
        list.push(written(one));
    }
}

impl QuotaRow {
    /// What the plan grants.
    #[must_use]
    pub fn terms(&self) -> PlanTerms {
        terms(&self.terms)
    }

    /// How far each limit is used, in their order.
    #[must_use]
    pub fn meters(&self) -> Vec<Meter> {
        read(&self.meters)
    }

    /// What running turns hold.
    #[must_use]
    pub fn reserved(&self) -> Amounts {
        amounts(self.reserved_tokens, self.reserved_messages, self.reserved_money)
    }

    /// What was granted on top.
    #[must_use]
    pub fn overrides(&self) -> Vec<Raise> {
        read(&self.overrides)
    }

    /// What the person was warned of in the present windows.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        read(&self.warnings)
    }

    /// What is left under each limit, as of the last event: no window is begun that has no event yet.
    #[must_use]
    pub fn left(&self) -> Vec<LimitLeft> {
        let meters = self.meters();
        let Some(then) = meters.iter().map(|meter| meter.window.start).max() else { return vec![] };
        let (holds, raises) = ([((), self.reserved())].into(), self.overrides());
        Account { terms: self.terms(), meters, holds, raises, marks: vec![] }.left_at(then)
    }

    fn set_reserved(&mut self, reserved: Amounts) {
        self.reserved_tokens = count(reserved.tokens);
        self.reserved_messages = count(reserved.messages);
        self.reserved_money = count(reserved.money);
    }
}

/// One row a quota. Reads `quota` events; owns `quotas`.
pub struct QuotasProjection;

#[async_trait]
impl Projection for QuotasProjection {
    fn name(&self) -> &'static str {
        "quotas"
    }

    fn version(&self) -> i32 {
        2
    }

    fn tables(&self) -> &'static [&'static str] {
        &["quotas"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        let facts = decode_all::<Quota>(page)?;
        let mut rows = Rows::<QuotaRow>::fetch(tx, facts.iter().map(|(_, id, _)| (*id,))).await?;
        for (recorded, id, fact) in facts {
            let position = recorded.position.0;
            if let QuotaEvent::PlanAssigned { workspace, subject, plan, terms, meters, .. } = fact {
                let row = rows.get_or_insert((id,), || QuotaRow {
                    quota_id: id,
                    workspace: workspace.uuid(),
                    subject: subject.uuid(),
                    plan: String::new(),
                    terms: Value::Null,
                    meters: Value::Null,
                    reserved_tokens: 0,
                    reserved_messages: 0,
                    reserved_money: 0,
                    overrides: serde_json::json!([]),
                    warnings: Value::Null,
                    refusals: 0,
                    created_position: position,
                    updated_position: position,
                });
                row.plan = plan.into();
                (row.terms, row.meters) = (written(&terms), written(&meters));
                // Under other limits everybody may be warned anew.
                row.warnings = serde_json::json!([]);
                row.updated_position = position;
                continue;
            }
            let row = rows.get_mut(&(id,)).ok_or(ProjectionError::Inconsistent {
                position: recorded.position,
                problem: "its quota has no plan",
            })?;
            row.updated_position = position;
            match fact {
                QuotaEvent::PlanAssigned { .. } => {}
                QuotaEvent::PeriodRolled { meters, reserved, rolled_at } => {
                    turn(&mut row.meters, &mut row.warnings, &mut row.overrides, &meters, rolled_at);
                    row.set_reserved(reserved);
                }
                QuotaEvent::TokensReserved { reserved, .. } | QuotaEvent::TokensReleased { reserved, .. } => {
                    row.set_reserved(reserved);
                }
                QuotaEvent::TokensSettled { used, reserved, .. } => {
                    set_used(&mut row.meters, &used);
                    row.set_reserved(reserved);
                }
                QuotaEvent::QuotaExceeded { .. } => row.refusals += 1,
                QuotaEvent::QuotaWarned { warning, .. } => push(&mut row.warnings, &warning),
                QuotaEvent::OverrideGranted { unit, amount, expires_at, .. } => {
                    push(&mut row.overrides, &Raise { unit, amount, expires_at });
                }
            }
        }
        Ok(rows.store(tx).await?)
    }
}

/// A person's quota.
///
/// # Errors
/// When the database fails.
pub async fn quota_of(pool: &PgPool, subject: SubjectId) -> Result<Option<QuotaRow>, sqlx::Error> {
    Ok(quotas_of(pool, &[subject.uuid()]).await?.pop())
}

/// Quotas of people, in no order; absent ones are left out.
///
/// # Errors
/// When the database fails.
pub async fn quotas_of(pool: &PgPool, subjects: &[Uuid]) -> Result<Vec<QuotaRow>, sqlx::Error> {
    sqlx::query_as!(QuotaRow, "SELECT * FROM quotas WHERE subject = ANY($1)", subjects).fetch_all(pool).await
}

/// Quotas of a workspace.
///
/// # Errors
/// When the database fails.
pub async fn quotas_page(
    pool: &PgPool,
    workspace: WorkspaceId,
    page: Page,
) -> Result<Vec<QuotaRow>, sqlx::Error> {
    select_page(pool, "quotas", page, |query| {
        query.push(" AND workspace = ").push_bind(workspace.uuid());
    })
    .await
}
