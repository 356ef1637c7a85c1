//! Limits, as plans and budgets have them, and what is left under them.

use async_graphql::{InputObject, Object, SimpleObject};
use botledger_domain::account::{
    Limit, LimitLeft as Left, Period as DomainPeriod, PlanTerms, Raise as DomainRaise, Unit,
    Warning as DomainWarning,
};
use botledger_projections::Exhausted;
use chrono::{DateTime, Utc};

use super::{
    error::{ApiError, ApiResult},
    scalars::{BigInt, wire_enum},
};

wire_enum! {
    /// How long a limit counts before it begins anew. Periods begin on the clock, in UTC.
    Period {
        Minute = "minute",
        Hour = "hour",
        Day = "day",
        /// From Monday.
        Week = "week",
        Month = "month",
    }
}

impl From<Period> for DomainPeriod {
    fn from(period: Period) -> Self {
        match period {
            Period::Minute => Self::Minute,
            Period::Hour => Self::Hour,
            Period::Day => Self::Day,
            Period::Week => Self::Week,
            Period::Month => Self::Month,
        }
    }
}

impl From<DomainPeriod> for Period {
    fn from(period: DomainPeriod) -> Self {
        match period {
            DomainPeriod::Minute => Self::Minute,
            DomainPeriod::Hour => Self::Hour,
            DomainPeriod::Day => Self::Day,
            DomainPeriod::Week => Self::Week,
            DomainPeriod::Month => Self::Month,
        }
    }
}

wire_enum! {
    /// What a limit counts.
    LimitUnit {
        /// Of prompts and answers together.
        Tokens = "tokens",
        /// To a model.
        Messages = "messages",
        /// In millionths of the currency that the installation's prices are in.
        Money = "money",
    }
}

impl From<LimitUnit> for Unit {
    fn from(unit: LimitUnit) -> Self {
        match unit {
            LimitUnit::Tokens => Self::Tokens,
            LimitUnit::Messages => Self::Messages,
            LimitUnit::Money => Self::Money,
        }
    }
}

impl From<Unit> for LimitUnit {
    fn from(unit: Unit) -> Self {
        match unit {
            Unit::Tokens => Self::Tokens,
            Unit::Messages => Self::Messages,
            Unit::Money => Self::Money,
        }
    }
}

pub(crate) fn big(amount: u64) -> BigInt {
    BigInt(i64::try_from(amount).unwrap_or(i64::MAX))
}

/// What is granted a period.
#[derive(SimpleObject)]
pub(crate) struct PlanLimit {
    unit: LimitUnit,
    period: Period,
    /// Granted a period.
    amount: BigInt,
    /// Most of what is left that goes over into the next period; null when nothing does.
    roll_over: Option<BigInt>,
}

impl PlanLimit {
    pub(crate) fn all(terms: &PlanTerms) -> Vec<Self> {
        let limit = |limit: &Limit| Self {
            unit: limit.unit.into(),
            period: limit.period.into(),
            amount: big(limit.amount),
            roll_over: limit.roll_over.map(big),
        };
        terms.limits.iter().map(limit).collect()
    }
}

pub(crate) fn percents(terms: &PlanTerms) -> Vec<i32> {
    terms.warn_at_percent.iter().map(|percent| i32::from(*percent)).collect()
}

/// What is to be granted a period.
#[derive(InputObject)]
pub(crate) struct LimitInput {
    unit: LimitUnit,
    period: Period,
    /// At least 1; money in millionths.
    amount: BigInt,
    /// Most of what is left that goes over into the next period; nothing does without it.
    roll_over: Option<BigInt>,
}

/// Terms as somebody wrote them; whether they make sense is not for us to say.
pub(crate) fn terms(limits: Vec<LimitInput>, warn_at_percent: Option<Vec<i32>>) -> ApiResult<PlanTerms> {
    let amount = |amount: BigInt| {
        u64::try_from(amount.0).map_err(|_| ApiError::bad_input("an amount is not below zero"))
    };
    let limits = limits.into_iter().map(|limit| {
        Ok(Limit {
            unit: limit.unit.into(),
            period: limit.period.into(),
            amount: amount(limit.amount)?,
            roll_over: limit.roll_over.map(amount).transpose()?,
        })
    });
    Ok(PlanTerms { limits: limits.collect::<ApiResult<_>>()?, warn_at_percent: warnings(warn_at_percent)? })
}

/// Thresholds as somebody wrote them.
pub(crate) fn warnings(percent: Option<Vec<i32>>) -> ApiResult<Vec<u8>> {
    let threshold = |percent: i32| {
        u8::try_from(percent).map_err(|_| ApiError::bad_input("a warning comes at 1 to 99 percent"))
    };
    percent.unwrap_or_default().into_iter().map(threshold).collect()
}

pub(crate) struct LimitLeft(pub(crate) Left);

/// How far one limit is used.
#[Object]
impl LimitLeft {
    async fn unit(&self) -> LimitUnit {
        self.0.unit.into()
    }

    async fn period(&self) -> Period {
        self.0.period.into()
    }

    /// What may be used in the present period: the limit, what came over, what was granted on top.
    async fn limit(&self) -> BigInt {
        big(self.0.limit)
    }

    /// What of it came over from the period before.
    async fn carried(&self) -> BigInt {
        big(self.0.carried)
    }

    /// Used in the period.
    async fn used(&self) -> BigInt {
        big(self.0.used)
    }

    /// Held for turns that are open.
    async fn reserved(&self) -> BigInt {
        big(self.0.reserved)
    }

    /// What turns may still ask for.
    async fn remaining(&self) -> BigInt {
        big(self.0.remaining)
    }

    /// When the period ends.
    async fn resets_at(&self) -> DateTime<Utc> {
        self.0.resets_at
    }
}

/// More of a unit until a moment.
#[derive(SimpleObject)]
pub(crate) struct Raise {
    unit: LimitUnit,
    /// Added to every limit of the unit.
    amount: BigInt,
    expires_at: DateTime<Utc>,
}

impl From<DomainRaise> for Raise {
    fn from(raise: DomainRaise) -> Self {
        Self { unit: raise.unit.into(), amount: big(raise.amount), expires_at: raise.expires_at }
    }
}

/// A limit that did not cover a turn.
#[derive(SimpleObject)]
pub(crate) struct ExhaustedLimit {
    unit: LimitUnit,
    period: Period,
    since: DateTime<Utc>,
    resets_at: DateTime<Utc>,
}

impl From<Exhausted> for ExhaustedLimit {
    fn from(exhausted: Exhausted) -> Self {
        Self {
            unit: exhausted.unit.into(),
            period: exhausted.period.into(),
            since: exhausted.since,
            resets_at: exhausted.resets_at,
        }
    }
}

/// A limit was used as far as somebody wanted to be warned.
#[derive(SimpleObject)]
pub(crate) struct LimitWarning {
    unit: LimitUnit,
    period: Period,
    /// The threshold that was reached.
    percent: i32,
    /// What was used then.
    used: BigInt,
    /// Of how much.
    limit: BigInt,
    resets_at: DateTime<Utc>,
}

impl From<DomainWarning> for LimitWarning {
    fn from(warning: DomainWarning) -> Self {
        Self {
            unit: warning.unit.into(),
            period: warning.period.into(),
            percent: i32::from(warning.percent),
            used: big(warning.used),
            limit: big(warning.limit),
            resets_at: warning.resets_at,
        }
    }
}
