//! What would have come of recorded demands under another plan.

use async_graphql::{Context, ID, InputObject, Object, SimpleObject, connection::EmptyFields};
use botledger_domain::{PlanName, account::Amounts, operator::Permission};
use botledger_projections::{
    Demand, DemandDifference, MOST_PEOPLE, PlanReport, PlanSums, PlanWhatIf as Question, QuotaDifference,
    WhatIfError, plan_what_if,
};
use chrono::{DateTime, TimeDelta, Utc};

use crate::graphql::{
    Needs, Scope,
    error::{ApiError, ApiResult, UserError},
    limit::{LimitInput, LimitUnit, big, terms},
    page::{List, Slice, cut},
    page_cost,
    scalars::{At, BigInt, NodeKind},
};

/// The time that is looked at when nobody says which.
const USUAL: TimeDelta = TimeDelta::days(7);

/// So much of each unit.
#[derive(SimpleObject)]
struct WhatIfAmounts {
    tokens: BigInt,
    messages: BigInt,
    /// Millionths of the currency.
    money: BigInt,
}

impl From<Amounts> for WhatIfAmounts {
    fn from(amounts: Amounts) -> Self {
        Self { tokens: big(amounts.tokens), messages: big(amounts.messages), money: big(amounts.money) }
    }
}

/// Sums of one side of the comparison.
#[derive(SimpleObject)]
struct PlanWhatIfSums {
    /// Demands that were held.
    held: BigInt,
    /// Demands that were refused.
    refused: BigInt,
    /// Warnings that were given.
    warnings: BigInt,
    charged: WhatIfAmounts,
}

impl From<PlanSums> for PlanWhatIfSums {
    fn from(sums: PlanSums) -> Self {
        Self {
            held: big(sums.held),
            refused: big(sums.refused),
            warnings: big(sums.warnings),
            charged: sums.charged.into(),
        }
    }
}

pub(crate) struct WhatIfDemand(DemandDifference);

/// A demand that fares differently.
#[Object]
impl WhatIfDemand {
    async fn turn_id(&self) -> ID {
        NodeKind::Turn.id(self.0.reservation.uuid())
    }

    async fn person_id(&self) -> ID {
        NodeKind::Person.id(self.0.subject.uuid())
    }

    /// Of the event that held or refused it.
    async fn position(&self) -> At {
        self.0.position.into()
    }

    async fn demanded_at(&self) -> DateTime<Utc> {
        self.0.demanded_at
    }

    /// The unit for which it was refused; null where it was held.
    async fn refused_before(&self) -> Option<LimitUnit> {
        refused(self.0.before)
    }

    /// The unit for which it would have been refused; null where it would have been held.
    async fn refused_after(&self) -> Option<LimitUnit> {
        refused(self.0.after)
    }

    async fn charged_before(&self) -> WhatIfAmounts {
        self.0.charged_before.into()
    }

    async fn charged_after(&self) -> WhatIfAmounts {
        self.0.charged_after.into()
    }
}

fn refused(demand: Demand) -> Option<LimitUnit> {
    match demand {
        Demand::Held => None,
        Demand::Refused(unit) => Some(unit.into()),
    }
}

pub(crate) struct WhatIfQuota(QuotaDifference);

/// A person who fares differently.
#[Object]
impl WhatIfQuota {
    async fn person_id(&self) -> ID {
        NodeKind::Person.id(self.0.subject.uuid())
    }

    /// Of their first demand in the time.
    async fn position(&self) -> At {
        self.0.position.into()
    }

    async fn before(&self) -> PlanWhatIfSums {
        self.0.before.into()
    }

    async fn after(&self) -> PlanWhatIfSums {
        self.0.after.into()
    }
}

pub(crate) struct PlanWhatIf(PlanReport);

/// What would have come of the demands of a time. Nothing was written to tell it.
#[Object]
impl PlanWhatIf {
    /// The ledger as it stood.
    async fn position(&self) -> At {
        self.0.position.into()
    }

    /// People who demanded something.
    async fn people_asked(&self) -> BigInt {
        big(self.0.people)
    }

    /// Demands that were refused and would have been held: nobody knows what they would have used. They
    /// count with what their person's answers before them took on average.
    async fn estimated(&self) -> BigInt {
        big(self.0.estimated)
    }

    /// Demands that were refused and count as refused again, because nobody knows how much they asked for
    /// of a unit that this plan limits.
    async fn unknown(&self) -> BigInt {
        big(self.0.unknown)
    }

    /// As it was.
    async fn before(&self) -> PlanWhatIfSums {
        self.0.before.into()
    }

    /// As it would have been.
    async fn after(&self) -> PlanWhatIfSums {
        self.0.after.into()
    }

    /// How many demands fare differently.
    async fn demands_changed(&self) -> BigInt {
        big(self.0.demands.len() as u64)
    }

    /// How many people fare differently.
    async fn people_changed(&self) -> BigInt {
        big(self.0.people_changed.len() as u64)
    }

    /// Demands that fare differently, newest first.
    #[graphql(complexity = "page_cost(first, last) * child_complexity")]
    async fn demands(
        &self,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
    ) -> ApiResult<List<WhatIfDemand>> {
        let paging = Slice { first, after, last, before }.of("what_if_demands")?;
        let rows = cut(&self.0.demands, paging.page, |row| row.position);
        Ok(paging.connect(rows, EmptyFields, |row| row.position, WhatIfDemand))
    }

    /// People who fare differently, those who came last first.
    #[graphql(complexity = "page_cost(first, last) * child_complexity")]
    async fn people(
        &self,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
    ) -> ApiResult<List<WhatIfQuota>> {
        let paging = Slice { first, after, last, before }.of("what_if_quotas")?;
        let rows = cut(&self.0.people_changed, paging.page, |row| row.position);
        Ok(paging.connect(rows, EmptyFields, |row| row.position, WhatIfQuota))
    }
}

/// A plan to try, and on which demands.
#[derive(InputObject)]
struct PlanWhatIfInput {
    /// All hold at once; no two of one unit and period.
    limits: Vec<LimitInput>,
    /// Percent of a limit at which people are warned, 1 to 99.
    warn_at_percent: Option<Vec<i32>>,
    /// Only in the place of this plan: people on others are left out.
    of_plan: Option<String>,
    /// Demands at or after; a week before `until` when null.
    from: Option<DateTime<Utc>>,
    /// Demands before; now when null.
    until: Option<DateTime<Utc>>,
}

#[derive(Default)]
pub(crate) struct PlanWhatIfQuery;

#[Object]
impl PlanWhatIfQuery {
    /// What would have come of recorded demands on quotas under another plan: every demand is made again,
    /// at its moment, of quotas with other terms.
    #[graphql(guard = "Needs(Permission::ReadOperations)", complexity = "500 + child_complexity")]
    async fn plan_what_if(&self, ctx: &Context<'_>, input: PlanWhatIfInput) -> ApiResult<PlanWhatIf> {
        let scope = Scope::of(ctx)?;
        let terms = terms(input.limits, input.warn_at_percent)?;
        let of_plan = input.of_plan.as_deref().map(PlanName::parse).transpose();
        let of_plan = of_plan.map_err(|error| UserError::of("ofPlan", &error))?;
        let until = input.until.unwrap_or_else(|| scope.now());
        let from = input.from.or_else(|| until.checked_sub_signed(USUAL)).unwrap_or(until);
        let workspace = scope.identity()?.workspace;
        let question = Question { workspace, from, until, terms, of_plan };
        match plan_what_if(&scope.services.read, &question, Some(MOST_PEOPLE), None, |_, _| {}).await {
            Ok(report) => Ok(PlanWhatIf(report)),
            Err(WhatIfError::Terms(error)) => Err(ApiError::bad_input(error.to_string())),
            Err(
                error @ (WhatIfError::Backwards
                | WhatIfError::TooManyPeople { .. }
                | WhatIfError::TooManyEvents),
            ) => Err(ApiError::bad_input(error.to_string())),
            Err(error) => Err(ApiError::unavailable(error)),
        }
    }
}
