//! A person's tokens in a workspace: reserved at worst, settled at truth, never overshot.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike, Duration, TimeZone, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, EnumString, IntoStaticStr};

use crate::{
    Decide, DomainError, OperatorId, PlanName, Reason, ReservationId, SubjectId, WorkspaceId,
    aggregate::aggregate, clock::is_writable,
};

/// The calendar window a plan counts in; windows begin at whole units of UTC.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, AsRefStr, EnumString, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Period {
    /// 60 seconds.
    Minute,
    /// 60 minutes.
    Hour,
    /// From midnight UTC.
    Day,
    /// From Monday, midnight UTC.
    Week,
    /// From the first of the month, midnight UTC.
    Month,
}

impl Period {
    /// The window that holds a moment: start (inclusive) and end (exclusive).
    #[must_use]
    pub fn window(self, at: DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>) {
        let aligned = |seconds: i64| {
            let start = at.timestamp().div_euclid(seconds) * seconds;
            (moment(start), moment(start + seconds))
        };
        match self {
            Self::Minute => aligned(60),
            Self::Hour => aligned(3_600),
            Self::Day => aligned(86_400),
            Self::Week => {
                let midnight = moment(at.timestamp().div_euclid(86_400) * 86_400);
                let start = midnight - Duration::days(i64::from(at.weekday().num_days_from_monday()));
                (start, start + Duration::days(7))
            }
            Self::Month => {
                let (year, month) = (at.year(), at.month());
                let (next_year, next_month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
                (first_of(year, month), first_of(next_year, next_month))
            }
        }
    }
}

fn moment(unix_seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(unix_seconds, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

fn first_of(year: i32, month: u32) -> DateTime<Utc> {
    Utc.with_ymd_and_hms(year, month, 1, 0, 0, 0).single().unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// What a plan grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlanTerms {
    /// Tokens a period, at least 1.
    pub tokens: u64,
    /// The window they are counted in.
    pub period: Period,
}

impl PlanTerms {
    /// Whether anything is granted at all.
    ///
    /// # Errors
    /// When it grants nothing, or more than fits a signed 64-bit column.
    #[expect(clippy::result_unit_err, reason = "each caller has its own name for the refusal")]
    pub fn check(&self) -> Result<(), ()> {
        if self.tokens == 0 || i64::try_from(self.tokens).is_err() { Err(()) } else { Ok(()) }
    }
}

/// Extra tokens for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Override {
    /// Added to the plan's tokens in every period it touches.
    pub tokens: u64,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

/// The window counted in now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Window {
    /// Inclusive.
    pub start: DateTime<Utc>,
    /// Exclusive: the moment of reset.
    pub end: DateTime<Utc>,
}

/// A person's quota. Invariant: used + reserved never exceeds plan + overrides at the moment of a
/// reservation, so no sequence of settlements can overshoot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quota {
    /// Plan in force; absent before the first assignment.
    pub plan: Option<(PlanName, PlanTerms)>,
    /// Window in force; absent before the first assignment.
    pub window: Option<Window>,
    /// Tokens settled in this window.
    pub used: u64,
    /// Tokens held, by reservation.
    pub reservations: BTreeMap<ReservationId, u64>,
    /// Grants that may still be running, newest last.
    pub overrides: Vec<Override>,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum QuotaCommand {
    /// Put the person on a plan. What was used and reserved in the running window stays counted
    /// when the window is the same.
    AssignPlan {
        workspace: WorkspaceId,
        subject: SubjectId,
        plan: PlanName,
        terms: PlanTerms,
        by: Option<OperatorId>,
    },
    /// Hold the worst case of one turn; at least one token.
    Reserve { reservation: ReservationId, tokens: u64 },
    /// Replace the hold by the truth.
    Settle { reservation: ReservationId, actual: u64, estimated: bool },
    /// Give the hold back: nothing was consumed.
    Release { reservation: ReservationId, cause: ReleaseCause },
    /// Extra tokens until a moment. The same amount until the same moment is granted once.
    GrantOverride { tokens: u64, expires_at: DateTime<Utc>, reason: Reason, by: OperatorId },
}

/// Why a hold was given back unused.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, AsRefStr, EnumString, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ReleaseCause {
    /// The provider gave no answer.
    Failed,
    /// The person stopped it before the model was asked.
    Cancelled,
}

/// What happened. Amounts are tokens; `used` and `reserved` are the values after the event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum QuotaEvent {
    /// The person is on this plan.
    PlanAssigned {
        workspace: WorkspaceId,
        subject: SubjectId,
        plan: PlanName,
        terms: PlanTerms,
        window: Window,
        used: u64,
        by: Option<OperatorId>,
        assigned_at: DateTime<Utc>,
    },
    /// A new window began; holds of running turns go over into it.
    PeriodRolled { window: Window, used: u64, reserved: u64, rolled_at: DateTime<Utc> },
    /// The worst case of a turn is held.
    TokensReserved {
        reservation: ReservationId,
        tokens: u64,
        used: u64,
        reserved: u64,
        reserved_at: DateTime<Utc>,
    },
    /// The hold became a charge. `overrun` is what the provider counted above the hold: recorded,
    /// never charged.
    TokensSettled {
        reservation: ReservationId,
        charged: u64,
        overrun: u64,
        estimated: bool,
        used: u64,
        reserved: u64,
        settled_at: DateTime<Utc>,
    },
    /// The hold was given back.
    TokensReleased {
        reservation: ReservationId,
        tokens: u64,
        cause: ReleaseCause,
        used: u64,
        reserved: u64,
        released_at: DateTime<Utc>,
    },
    /// A reservation did not fit: the person was refused.
    QuotaExceeded {
        reservation: ReservationId,
        requested: u64,
        remaining: u64,
        resets_at: DateTime<Utc>,
        exceeded_at: DateTime<Utc>,
    },
    /// Extra tokens until `expires_at`.
    OverrideGranted {
        tokens: u64,
        expires_at: DateTime<Utc>,
        reason: Reason,
        by: OperatorId,
        granted_at: DateTime<Utc>,
    },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// Assign one first.
    #[error("no plan is assigned")]
    NoPlan,
    /// A plan without tokens.
    #[error("a plan needs at least one token a period")]
    EmptyPlan,
    /// No such hold: settled already, or never made.
    #[error("there is no open reservation {reservation}")]
    UnknownReservation {
        /// Its id.
        reservation: ReservationId,
    },
    /// An override that is over before it begins, or grants nothing.
    #[error("an override needs tokens and an end in the future")]
    EmptyOverride,
    /// The end cannot be written everywhere.
    #[error("an override ends by the year 9999")]
    OverrideEndsTooLate,
}

impl DomainError for QuotaError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoPlan => "QUOTA_NO_PLAN",
            Self::EmptyPlan => "QUOTA_EMPTY_PLAN",
            Self::UnknownReservation { .. } => "QUOTA_UNKNOWN_RESERVATION",
            Self::EmptyOverride => "QUOTA_EMPTY_OVERRIDE",
            Self::OverrideEndsTooLate => "QUOTA_OVERRIDE_ENDS_TOO_LATE",
        }
    }
}

/// How much is left at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaLeft {
    /// Plan plus overrides.
    pub limit: u64,
    /// Settled in the window.
    pub used: u64,
    /// Held by running turns.
    pub reserved: u64,
    /// What may still be reserved.
    pub remaining: u64,
    /// When the window ends.
    pub resets_at: DateTime<Utc>,
}

impl Quota {
    /// How much is left at a moment; absent without a plan.
    #[must_use]
    pub fn left_at(&self, now: DateTime<Utc>) -> Option<QuotaLeft> {
        let (_, terms) = self.plan.as_ref()?;
        let window = self.window?;
        let (used, resets_at) =
            if now < window.end { (self.used, window.end) } else { (0, terms.period.window(now).1) };
        let limit = self
            .overrides
            .iter()
            .filter(|grant| now < grant.expires_at)
            .fold(terms.tokens, |sum, grant| sum.saturating_add(grant.tokens));
        let reserved = self.reserved();
        let remaining = limit.saturating_sub(used).saturating_sub(reserved);
        Some(QuotaLeft { limit, used, reserved, remaining, resets_at })
    }

    /// Tokens held by all open reservations.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.reservations.values().fold(0, |sum, tokens| sum.saturating_add(*tokens))
    }

    /// The roll that has to be recorded before anything else at this moment, and what is used after it.
    fn roll(&self, now: DateTime<Utc>) -> (Vec<QuotaEvent>, u64) {
        match (&self.plan, self.window) {
            (Some((_, terms)), Some(window)) if now >= window.end => {
                let (start, end) = terms.period.window(now);
                let rolled = QuotaEvent::PeriodRolled {
                    window: Window { start, end },
                    used: 0,
                    reserved: self.reserved(),
                    rolled_at: now,
                };
                (vec![rolled], 0)
            }
            _ => (vec![], self.used),
        }
    }

    fn record(&mut self, event: QuotaEvent) {
        match event {
            QuotaEvent::PlanAssigned { plan, terms, window, used, .. } => {
                self.plan = Some((plan, terms));
                self.window = Some(window);
                self.used = used;
            }
            QuotaEvent::PeriodRolled { window, used, rolled_at, .. } => {
                self.window = Some(window);
                self.used = used;
                self.overrides.retain(|grant| rolled_at < grant.expires_at);
            }
            QuotaEvent::TokensReserved { reservation, tokens, .. } => {
                self.reservations.insert(reservation, tokens);
            }
            QuotaEvent::TokensSettled { reservation, used, .. }
            | QuotaEvent::TokensReleased { reservation, used, .. } => {
                self.reservations.remove(&reservation);
                self.used = used;
            }
            QuotaEvent::QuotaExceeded { .. } => {}
            QuotaEvent::OverrideGranted { tokens, expires_at, .. } => {
                let grant = Override { tokens, expires_at };
                if !self.overrides.contains(&grant) {
                    self.overrides.push(grant);
                }
            }
        }
    }
}

impl Decide for Quota {
    fn decide(&self, command: QuotaCommand, now: DateTime<Utc>) -> Result<Vec<QuotaEvent>, QuotaError> {
        match command {
            QuotaCommand::AssignPlan { workspace, subject, plan, terms, by } => {
                terms.check().map_err(|()| QuotaError::EmptyPlan)?;
                if self.plan.as_ref() == Some(&(plan.clone(), terms)) {
                    return Ok(vec![]);
                }
                let (start, end) = terms.period.window(now);
                let window = Window { start, end };
                let used = if self.window == Some(window) { self.used } else { 0 };
                Ok(vec![QuotaEvent::PlanAssigned {
                    workspace,
                    subject,
                    plan,
                    terms,
                    window,
                    used,
                    by,
                    assigned_at: now,
                }])
            }
            QuotaCommand::Reserve { reservation, tokens } => {
                if self.reservations.contains_key(&reservation) {
                    return Ok(vec![]);
                }
                let left = self.left_at(now).ok_or(QuotaError::NoPlan)?;
                // A turn that holds nothing would pass a spent quota.
                let tokens = tokens.max(1);
                let (mut events, used) = self.roll(now);
                events.push(if tokens > left.remaining {
                    QuotaEvent::QuotaExceeded {
                        reservation,
                        requested: tokens,
                        remaining: left.remaining,
                        resets_at: left.resets_at,
                        exceeded_at: now,
                    }
                } else {
                    QuotaEvent::TokensReserved {
                        reservation,
                        tokens,
                        used,
                        reserved: left.reserved + tokens,
                        reserved_at: now,
                    }
                });
                Ok(events)
            }
            QuotaCommand::Settle { reservation, actual, estimated } => {
                let held = *self
                    .reservations
                    .get(&reservation)
                    .ok_or(QuotaError::UnknownReservation { reservation })?;
                let (mut events, used) = self.roll(now);
                let charged = actual.min(held);
                events.push(QuotaEvent::TokensSettled {
                    reservation,
                    charged,
                    overrun: actual - charged,
                    estimated,
                    used: used.saturating_add(charged),
                    reserved: self.reserved() - held,
                    settled_at: now,
                });
                Ok(events)
            }
            QuotaCommand::Release { reservation, cause } => {
                let held = *self
                    .reservations
                    .get(&reservation)
                    .ok_or(QuotaError::UnknownReservation { reservation })?;
                let (mut events, used) = self.roll(now);
                events.push(QuotaEvent::TokensReleased {
                    reservation,
                    tokens: held,
                    cause,
                    used,
                    reserved: self.reserved() - held,
                    released_at: now,
                });
                Ok(events)
            }
            QuotaCommand::GrantOverride { tokens, expires_at, reason, by } => {
                if self.plan.is_none() {
                    return Err(QuotaError::NoPlan);
                }
                if tokens == 0 || i64::try_from(tokens).is_err() || expires_at <= now {
                    return Err(QuotaError::EmptyOverride);
                }
                if !is_writable(expires_at) {
                    return Err(QuotaError::OverrideEndsTooLate);
                }
                if self.overrides.contains(&Override { tokens, expires_at }) {
                    return Ok(vec![]);
                }
                Ok(vec![QuotaEvent::OverrideGranted { tokens, expires_at, reason, by, granted_at: now }])
            }
        }
    }
}

aggregate!(Quota, "quota", QuotaCommand, QuotaEvent, QuotaError);

#[cfg(test)]
mod tests;
