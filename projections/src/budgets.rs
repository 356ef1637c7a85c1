use std::sync::Arc;

use async_trait::async_trait;
use botledger_domain::{
    RecordedEvent, WorkspaceId,
    account::{Account, Amounts, Holder, LimitLeft, Meter, Period, PlanTerms, Raise, Unit, Warning},
    budget::{Budget, BudgetEvent},
    budget_share::{BudgetShare, BudgetShareEvent},
    budget_stream,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{PgConnection, PgPool, Postgres, QueryBuilder};
use uuid::Uuid;

use crate::{
    Page, Projection, ProjectionError,
    fold::{Rows, read_row},
    quotas::{amounts, push, read, set_used, terms, turn, written},
    select::push_page,
    turns::{count, decode_all},
};

read_row! {
    /// One budget as of its own last event; what its shares know is in theirs.
    BudgetHead in "budgets"
    key { budget_id: Uuid }
    values {
        workspace: Uuid,
        /// As `Holder::kind`.
        holder_kind: String,
        holder_id: Uuid,
        in_force: bool,
        /// `PlanTerms`.
        terms: Value,
        /// A list of `Meter`, one for every limit.
        meters: Value,
        /// A list of `Raise`; those that ran out leave it when a window begins.
        raises: Value,
        /// A list of `Warning`: those given in the present windows.
        warnings: Value,
        shares: i64,
        /// A list of `Exhausted`: limits that did not cover a turn in their present window.
        exhausted: Value,
        created_position: i64,
        updated_position: i64,
    }
}

read_row! {
    /// One share of a budget.
    BudgetShareRow in "budget_shares"
    key { share_id: Uuid }
    values {
        budget_id: Uuid,
        share: i64,
        spent_tokens: i64,
        spent_messages: i64,
        spent_money: i64,
        reserved_tokens: i64,
        reserved_messages: i64,
        reserved_money: i64,
        created_position: i64,
        updated_position: i64,
    }
}

/// A limit that did not cover a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exhausted {
    /// What is short.
    pub unit: Unit,
    /// In which period.
    pub period: Period,
    /// Since then.
    pub since: DateTime<Utc>,
    /// Until there is more.
    pub resets_at: DateTime<Utc>,
}

impl BudgetHead {
    fn exhausted(&self) -> Vec<Exhausted> {
        read(&self.exhausted)
    }

    fn keep_exhausted(&mut self, stays: impl Fn(&Exhausted) -> bool) {
        let kept: Vec<Exhausted> = self.exhausted().into_iter().filter(stays).collect();
        self.exhausted = written(&kept);
    }
}

impl BudgetShareRow {
    fn set_spent(&mut self, spent: Amounts) {
        self.spent_tokens = count(spent.tokens);
        self.spent_messages = count(spent.messages);
        self.spent_money = count(spent.money);
    }

    fn set_reserved(&mut self, reserved: Amounts) {
        self.reserved_tokens = count(reserved.tokens);
        self.reserved_messages = count(reserved.messages);
        self.reserved_money = count(reserved.money);
    }
}

/// A budget with what its shares have spent and hold.
#[derive(Clone, Debug, PartialEq, sqlx::FromRow)]
pub struct BudgetRow {
    #[sqlx(flatten)]
    pub head: BudgetHead,
    pub spent_tokens: i64,
    pub spent_messages: i64,
    pub spent_money: i64,
    pub reserved_tokens: i64,
    pub reserved_messages: i64,
    pub reserved_money: i64,
    /// Of the last event about the budget or one of its shares.
    pub moved_position: i64,
}

impl BudgetRow {
    /// What it grants.
    #[must_use]
    pub fn terms(&self) -> PlanTerms {
        terms(&self.head.terms)
    }

    /// What was granted on top.
    #[must_use]
    pub fn raises(&self) -> Vec<Raise> {
        read(&self.head.raises)
    }

    /// What operators were warned of in the present windows.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        read(&self.head.warnings)
    }

    /// Limits that did not cover a turn in a window that still runs then.
    #[must_use]
    pub fn exhausted_at(&self, now: DateTime<Utc>) -> Vec<Exhausted> {
        self.head.exhausted().into_iter().filter(|exhausted| now < exhausted.resets_at).collect()
    }

    /// What is left under each limit at a moment.
    #[must_use]
    pub fn left_at(&self, now: DateTime<Utc>) -> Vec<LimitLeft> {
        let spent = amounts(self.spent_tokens, self.spent_messages, self.spent_money);
        let held = amounts(self.reserved_tokens, self.reserved_messages, self.reserved_money);
        let mut meters: Vec<Meter> = read(&self.head.meters);
        for meter in &mut meters {
            meter.used = meter.used.saturating_add(spent.of(meter.unit));
        }
        let holds = [((), held)].into();
        let account = Account { terms: self.terms(), meters, holds, raises: self.raises(), marks: vec![] };
        account.left_at(now)
    }
}

/// One row a budget and one a share. Reads their events; owns `budgets` and `budget_shares`.
pub struct BudgetsProjection;

#[async_trait]
impl Projection for BudgetsProjection {
    fn name(&self) -> &'static str {
        "budgets"
    }

    fn version(&self) -> i32 {
        2
    }

    fn tables(&self) -> &'static [&'static str] {
        &["budgets", "budget_shares"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        apply_budgets(tx, page).await?;
        apply_shares(tx, page).await
    }
}

async fn apply_budgets(tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
    let facts = decode_all::<Budget>(page)?;
    let mut rows = Rows::<BudgetHead>::fetch(tx, facts.iter().map(|(_, id, _)| (*id,))).await?;
    for (recorded, id, fact) in facts {
        let position = recorded.position.0;
        if let BudgetEvent::BudgetSet { workspace, holder, terms, meters, shares, .. } = fact {
            let row = rows.get_or_insert((id,), || BudgetHead {
                budget_id: id,
                workspace: workspace.uuid(),
                holder_kind: holder.kind().to_owned(),
                holder_id: holder.uuid(),
                in_force: true,
                terms: Value::Null,
                meters: Value::Null,
                raises: serde_json::json!([]),
                warnings: Value::Null,
                shares: 0,
                exhausted: Value::Null,
                created_position: position,
                updated_position: position,
            });
            (row.in_force, row.shares) = (true, count(shares.len() as u64));
            (row.terms, row.meters) = (written(&terms), written(&meters));
            (row.warnings, row.exhausted) = (serde_json::json!([]), serde_json::json!([]));
            row.updated_position = position;
            continue;
        }
        let row = rows.get_mut(&(id,)).ok_or(ProjectionError::Inconsistent {
            position: recorded.position,
            problem: "its budget was never set",
        })?;
        row.updated_position = position;
        match fact {
            BudgetEvent::BudgetSet { .. }
            | BudgetEvent::MoneyPledged { .. }
            | BudgetEvent::ShareReplaced { .. } => {}
            BudgetEvent::BudgetRaised { unit, amount, expires_at, .. } => {
                push(&mut row.raises, &Raise { unit, amount, expires_at });
                row.keep_exhausted(|exhausted| exhausted.unit != unit);
            }
            BudgetEvent::BudgetRemoved { .. } => row.in_force = false,
            BudgetEvent::BudgetRolled { meters, rolled_at } => {
                turn(&mut row.meters, &mut row.warnings, &mut row.raises, &meters, rolled_at);
                row.keep_exhausted(|exhausted| {
                    let same =
                        |meter: &&Meter| (meter.unit, meter.period) == (exhausted.unit, exhausted.period);
                    meters.iter().find(same).is_some_and(|meter| meter.window.end == exhausted.resets_at)
                });
            }
            BudgetEvent::MoneyGathered { used, .. } => set_used(&mut row.meters, &used),
            BudgetEvent::BudgetWarned { warning, .. } => push(&mut row.warnings, &warning),
            BudgetEvent::BudgetExhausted { unit, period, resets_at, exhausted_at, .. } => {
                push(&mut row.exhausted, &Exhausted { unit, period, since: exhausted_at, resets_at });
            }
        }
    }
    Ok(rows.store(tx).await?)
}

async fn apply_shares(tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
    let facts = decode_all::<BudgetShare>(page)?;
    let mut rows = Rows::<BudgetShareRow>::fetch(tx, facts.iter().map(|(_, id, _)| (*id,))).await?;
    for (recorded, id, fact) in facts {
        let position = recorded.position.0;
        if let BudgetShareEvent::ShareGranted { budget, share, .. } = fact {
            let row = rows.get_or_insert((id,), || BudgetShareRow {
                share_id: id,
                budget_id: budget,
                share: i64::from(share),
                spent_tokens: 0,
                spent_messages: 0,
                spent_money: 0,
                reserved_tokens: 0,
                reserved_messages: 0,
                reserved_money: 0,
                created_position: position,
                updated_position: position,
            });
            row.updated_position = position;
            continue;
        }
        let row = rows.get_mut(&(id,)).ok_or(ProjectionError::Inconsistent {
            position: recorded.position,
            problem: "its share was never granted anything",
        })?;
        row.updated_position = position;
        match fact {
            BudgetShareEvent::ShareGranted { .. } => {}
            BudgetShareEvent::MoneyReserved { reserved, .. }
            | BudgetShareEvent::MoneyReleased { reserved, .. } => row.set_reserved(reserved),
            BudgetShareEvent::MoneySettled { spent, reserved, .. } => {
                row.set_spent(spent);
                row.set_reserved(reserved);
            }
            BudgetShareEvent::ShareReported { .. } => row.set_spent(Amounts::default()),
        }
    }
    Ok(rows.store(tx).await?)
}

fn select() -> QueryBuilder<'static, Postgres> {
    QueryBuilder::new(
        "SELECT budgets.*, known.*, greatest(updated_position, last_position) AS moved_position
         FROM budgets CROSS JOIN LATERAL (
             SELECT coalesce(sum(spent_tokens), 0)::bigint AS spent_tokens,
                    coalesce(sum(spent_messages), 0)::bigint AS spent_messages,
                    coalesce(sum(spent_money), 0)::bigint AS spent_money,
                    coalesce(sum(reserved_tokens), 0)::bigint AS reserved_tokens,
                    coalesce(sum(reserved_messages), 0)::bigint AS reserved_messages,
                    coalesce(sum(reserved_money), 0)::bigint AS reserved_money,
                    coalesce(max(updated_position), 0) AS last_position
             FROM budget_shares WHERE budget_shares.budget_id = budgets.budget_id
         ) AS known WHERE true",
    )
}

/// The budget of a holder; absent when it never had one.
///
/// # Errors
/// When the database fails.
pub async fn budget(
    pool: &PgPool,
    workspace: WorkspaceId,
    holder: Holder,
) -> Result<Option<BudgetRow>, sqlx::Error> {
    let mut query = select();
    query.push(" AND budget_id = ").push_bind(budget_stream(workspace, holder));
    query.build_query_as().fetch_optional(pool).await
}

/// Budgets of a workspace, those that were taken away among them.
///
/// # Errors
/// When the database fails.
pub async fn budgets_page(
    pool: &PgPool,
    workspace: WorkspaceId,
    page: Page,
) -> Result<Vec<BudgetRow>, sqlx::Error> {
    let mut query = select();
    query.push(" AND workspace = ").push_bind(workspace.uuid());
    push_page(&mut query, "created_position", page);
    Ok(page.in_order(query.build_query_as().fetch_all(pool).await?))
}
