//! What a person may use in a workspace: reserved at worst, settled at truth, never overshot.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, EnumString, IntoStaticStr};

pub use crate::account::{
    Amounts, Limit, LimitLeft, Meter, Period, PlanTerms, Raise, TermsError, Unit, Warning, Window,
};
use crate::{
    Decide, DomainError, OperatorId, PlanName, Reason, ReservationId, SubjectId, WorkspaceId,
    account::{Account, shortage},
    aggregate::aggregate,
    clock::is_writable,
};

/// A person's quota: the limits of their plan, all at once. See [`Account`] for what always holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quota {
    /// Name of the plan in force; absent before the first assignment.
    pub plan: Option<PlanName>,
    /// What it grants and what is used and held of it.
    pub account: Account<ReservationId>,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum QuotaCommand {
    /// Put the person on a plan. A limit of the same unit and period as one before goes on counting; a
    /// new one begins at zero. What is held stays held.
    AssignPlan {
        workspace: WorkspaceId,
        subject: SubjectId,
        plan: PlanName,
        terms: PlanTerms,
        by: Option<OperatorId>,
    },
    /// Hold the worst case of one turn; at least one token.
    Reserve { reservation: ReservationId, asked: Amounts },
    /// Replace the hold by the truth.
    Settle { reservation: ReservationId, actual: Amounts, estimated: bool },
    /// Give the hold back: nothing was consumed.
    Release { reservation: ReservationId, cause: ReleaseCause },
    /// More of a unit until a moment. The same amount until the same moment is granted once.
    GrantOverride { unit: Unit, amount: u64, expires_at: DateTime<Utc>, reason: Reason, by: OperatorId },
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

/// What happened. `used` (in the order of the plan's limits) and `reserved` are the values after the
/// event.
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
        meters: Vec<Meter>,
        by: Option<OperatorId>,
        assigned_at: DateTime<Utc>,
    },
    /// One or more windows ended and others began; holds of running turns go over.
    PeriodRolled { meters: Vec<Meter>, reserved: Amounts, rolled_at: DateTime<Utc> },
    /// The worst case of a turn is held.
    TokensReserved {
        reservation: ReservationId,
        held: Amounts,
        reserved: Amounts,
        reserved_at: DateTime<Utc>,
    },
    /// The hold became a charge. `overrun` is what the provider counted above the hold: recorded,
    /// never charged.
    TokensSettled {
        reservation: ReservationId,
        charged: Amounts,
        overrun: Amounts,
        estimated: bool,
        used: Vec<u64>,
        reserved: Amounts,
        settled_at: DateTime<Utc>,
    },
    /// The hold was given back.
    TokensReleased {
        reservation: ReservationId,
        held: Amounts,
        cause: ReleaseCause,
        reserved: Amounts,
        released_at: DateTime<Utc>,
    },
    /// A reservation did not fit: the person was refused. Of several limits it names the one that resets
    /// last.
    QuotaExceeded {
        reservation: ReservationId,
        #[serde(default)]
        unit: Unit,
        /// Not told by the first version, which knew one limit.
        #[serde(default)]
        period: Option<Period>,
        requested: u64,
        remaining: u64,
        resets_at: DateTime<Utc>,
        exceeded_at: DateTime<Utc>,
    },
    /// So much is used that the plan wants the person warned; once a threshold and window.
    QuotaWarned {
        #[serde(flatten)]
        warning: Warning,
        warned_at: DateTime<Utc>,
    },
    /// More of a unit until `expires_at`.
    OverrideGranted {
        unit: Unit,
        amount: u64,
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
    /// A plan that makes no sense.
    #[error(transparent)]
    Terms(TermsError),
    /// No such hold: settled already, or never made.
    #[error("there is no open reservation {reservation}")]
    UnknownReservation {
        /// Its id.
        reservation: ReservationId,
    },
    /// An override that is over before it begins, or grants nothing.
    #[error("an override needs an amount and an end in the future")]
    EmptyOverride,
    /// The end cannot be written everywhere.
    #[error("an override ends by the year 9999")]
    OverrideEndsTooLate,
    /// Nothing of the plan counts that unit.
    #[error("the plan has no limit of {}", unit.as_ref())]
    OverrideOfNothing {
        /// What was to be raised.
        unit: Unit,
    },
}

impl DomainError for QuotaError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoPlan => "QUOTA_NO_PLAN",
            Self::Terms(TermsError::Empty) => "QUOTA_EMPTY_PLAN",
            Self::Terms(_) => "QUOTA_UNFIT_PLAN",
            Self::UnknownReservation { .. } => "QUOTA_UNKNOWN_RESERVATION",
            Self::EmptyOverride => "QUOTA_EMPTY_OVERRIDE",
            Self::OverrideEndsTooLate => "QUOTA_OVERRIDE_ENDS_TOO_LATE",
            Self::OverrideOfNothing { .. } => "QUOTA_OVERRIDE_OF_NOTHING",
        }
    }
}

impl Quota {
    /// What is left under each limit at a moment; nothing without a plan.
    #[must_use]
    pub fn left_at(&self, now: DateTime<Utc>) -> Vec<LimitLeft> {
        self.account.left_at(now)
    }

    /// Held by all open reservations.
    #[must_use]
    pub fn reserved(&self) -> Amounts {
        self.account.held()
    }

    /// The roll that has to be recorded before anything else at this moment, and the state after it.
    fn rolled(&self, now: DateTime<Utc>) -> (Vec<QuotaEvent>, Cow<'_, Self>) {
        let Some(meters) = self.account.rolled(now) else { return (vec![], Cow::Borrowed(self)) };
        let rolled = QuotaEvent::PeriodRolled { meters, reserved: self.reserved(), rolled_at: now };
        let mut after = self.clone();
        after.record(rolled.clone());
        (vec![rolled], Cow::Owned(after))
    }

    fn hold(&self, reservation: ReservationId) -> Result<Amounts, QuotaError> {
        let held = self.account.holds.get(&reservation);
        held.copied().ok_or(QuotaError::UnknownReservation { reservation })
    }

    fn record(&mut self, event: QuotaEvent) {
        match event {
            QuotaEvent::PlanAssigned { plan, terms, meters, .. } => {
                self.plan = Some(plan);
                self.account.begin(terms, meters);
            }
            QuotaEvent::PeriodRolled { meters, rolled_at, .. } => {
                self.account.turn_to(meters);
                self.account.forget_raises(rolled_at);
            }
            QuotaEvent::TokensReserved { reservation, held, .. } => {
                self.account.holds.insert(reservation, held);
            }
            QuotaEvent::TokensSettled { reservation, used, .. } => {
                self.account.holds.remove(&reservation);
                self.account.set_used(&used);
            }
            QuotaEvent::TokensReleased { reservation, .. } => {
                self.account.holds.remove(&reservation);
            }
            QuotaEvent::QuotaExceeded { .. } => {}
            QuotaEvent::QuotaWarned { warning, .. } => self.account.remember_warning(&warning),
            QuotaEvent::OverrideGranted { unit, amount, expires_at, .. } => {
                self.account.remember_raise(Raise { unit, amount, expires_at });
            }
        }
    }
}

impl Decide for Quota {
    fn decide(&self, command: QuotaCommand, now: DateTime<Utc>) -> Result<Vec<QuotaEvent>, QuotaError> {
        match command {
            QuotaCommand::AssignPlan { workspace, subject, plan, terms, by } => {
                let terms = terms.checked().map_err(QuotaError::Terms)?;
                if self.plan.as_ref() == Some(&plan) && self.account.terms == terms {
                    return Ok(vec![]);
                }
                let (mut events, state) = self.rolled(now);
                let meters = state.account.reset(&terms, now);
                events.push(QuotaEvent::PlanAssigned {
                    workspace,
                    subject,
                    plan,
                    terms,
                    meters,
                    by,
                    assigned_at: now,
                });
                Ok(events)
            }
            QuotaCommand::Reserve { reservation, asked } => {
                if self.account.holds.contains_key(&reservation) {
                    return Ok(vec![]);
                }
                if self.plan.is_none() {
                    return Err(QuotaError::NoPlan);
                }
                // A turn that holds nothing would pass a spent quota.
                let asked = Amounts { tokens: asked.tokens.max(1), ..asked };
                let (mut events, state) = self.rolled(now);
                let warnings = state.account.warnings(now, |left| left.used);
                events.extend(
                    warnings.into_iter().map(|warning| QuotaEvent::QuotaWarned { warning, warned_at: now }),
                );
                events.push(match shortage(&state.left_at(now), asked) {
                    Some(short) => QuotaEvent::QuotaExceeded {
                        reservation,
                        unit: short.unit,
                        period: Some(short.period),
                        requested: short.requested,
                        remaining: short.remaining,
                        resets_at: short.resets_at,
                        exceeded_at: now,
                    },
                    None => QuotaEvent::TokensReserved {
                        reservation,
                        held: asked,
                        reserved: state.reserved().plus(asked),
                        reserved_at: now,
                    },
                });
                Ok(events)
            }
            QuotaCommand::Settle { reservation, actual, estimated } => {
                let held = self.hold(reservation)?;
                let (mut events, state) = self.rolled(now);
                let (charged, overrun) = held.settle(actual);
                events.push(QuotaEvent::TokensSettled {
                    reservation,
                    charged,
                    overrun,
                    estimated,
                    used: state.account.used_with(charged),
                    reserved: state.reserved().minus(held),
                    settled_at: now,
                });
                Ok(events)
            }
            QuotaCommand::Release { reservation, cause } => {
                let held = self.hold(reservation)?;
                let (mut events, state) = self.rolled(now);
                events.push(QuotaEvent::TokensReleased {
                    reservation,
                    held,
                    cause,
                    reserved: state.reserved().minus(held),
                    released_at: now,
                });
                Ok(events)
            }
            QuotaCommand::GrantOverride { unit, amount, expires_at, reason, by } => {
                if self.plan.is_none() {
                    return Err(QuotaError::NoPlan);
                }
                if amount == 0 || i64::try_from(amount).is_err() || expires_at <= now {
                    return Err(QuotaError::EmptyOverride);
                }
                if !is_writable(expires_at) {
                    return Err(QuotaError::OverrideEndsTooLate);
                }
                if !self.account.terms.limits.iter().any(|limit| limit.unit == unit) {
                    return Err(QuotaError::OverrideOfNothing { unit });
                }
                if self.account.raises.contains(&Raise { unit, amount, expires_at }) {
                    return Ok(vec![]);
                }
                Ok(vec![QuotaEvent::OverrideGranted {
                    unit,
                    amount,
                    expires_at,
                    reason,
                    by,
                    granted_at: now,
                }])
            }
        }
    }
}

aggregate!(
    Quota, "quota", QuotaCommand, QuotaEvent, QuotaError,
    "plan_assigned" => "2.0", "period_rolled" => "2.0", "tokens_reserved" => "2.0", "tokens_settled" => "2.0",
    "tokens_released" => "2.0", "quota_exceeded" => "1.1", "override_granted" => "2.0",
);

#[cfg(test)]
mod tests;
