//! A part of a budget that turns reserve and settle in: its own stream, so that turns in different shares
//! do not wait for each other. See [`crate::budget`] for how the parts make the whole.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;
use uuid::Uuid;

use crate::{
    Decide, DomainError, ReservationId, account::Amounts, aggregate::aggregate, budget::ShareReport,
    quota::ReleaseCause,
};

/// One share. Invariant: spent and held together are never more than what was pledged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BudgetShare {
    /// The budget's stream and the share's number in it; absent before the first pledge.
    pub of: Option<(Uuid, u32)>,
    /// Pledged by the budget and not gathered since.
    pub pledged: Amounts,
    /// Settled of it.
    pub spent: Amounts,
    /// Held of it, by reservation.
    pub holds: BTreeMap<ReservationId, Amounts>,
    /// From then on nothing is spent before it was gathered.
    pub good_until: Option<DateTime<Utc>>,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum BudgetShareCommand {
    /// Take a pledge.
    Accept { budget: Uuid, share: u32, granted: Amounts, good_until: DateTime<Utc> },
    /// Hold the worst case of one turn, of what the budget limits.
    Reserve { reservation: ReservationId, asked: Amounts },
    /// Replace the hold by the truth.
    Settle { reservation: ReservationId, actual: Amounts, estimated: bool },
    /// Give the hold back: nothing was consumed.
    Release { reservation: ReservationId, cause: ReleaseCause },
    /// Tell the budget what was spent and give back what is free.
    Report { good_until: DateTime<Utc> },
}

/// What happened. `pledged`, `spent` and `reserved` are the values after the event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum BudgetShareEvent {
    /// The budget pledged so much more.
    ShareGranted {
        budget: Uuid,
        share: u32,
        granted: Amounts,
        pledged: Amounts,
        good_until: DateTime<Utc>,
        granted_at: DateTime<Utc>,
    },
    /// The worst case of a turn is held.
    MoneyReserved {
        budget: Uuid,
        reservation: ReservationId,
        held: Amounts,
        reserved: Amounts,
        reserved_at: DateTime<Utc>,
    },
    /// The hold became a charge. `overrun` is what the provider counted above the hold: recorded, never
    /// charged.
    MoneySettled {
        budget: Uuid,
        reservation: ReservationId,
        charged: Amounts,
        overrun: Amounts,
        estimated: bool,
        spent: Amounts,
        reserved: Amounts,
        settled_at: DateTime<Utc>,
    },
    /// The hold was given back.
    MoneyReleased {
        budget: Uuid,
        reservation: ReservationId,
        held: Amounts,
        cause: ReleaseCause,
        reserved: Amounts,
        released_at: DateTime<Utc>,
    },
    /// The budget charged what was spent and took back what was free; `pledged` stays for running turns.
    ShareReported {
        budget: Uuid,
        spent: Amounts,
        returned: Amounts,
        pledged: Amounts,
        good_until: DateTime<Utc>,
        reported_at: DateTime<Utc>,
    },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetShareError {
    /// Nothing was pledged yet.
    #[error("the share belongs to no budget")]
    NotPledged,
    /// It is for another budget or has another number.
    #[error("the pledge is for another share")]
    AnotherShare,
    /// The pledge is over: gather first.
    #[error("the pledge is no longer good and has to be gathered")]
    Over,
    /// What is free does not cover it.
    #[error("what is free does not cover it")]
    Short,
    /// No such hold: settled already, or never made.
    #[error("there is no open reservation {reservation}")]
    UnknownReservation {
        /// Its id.
        reservation: ReservationId,
    },
}

impl DomainError for BudgetShareError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotPledged => "BUDGET_SHARE_NOT_PLEDGED",
            Self::AnotherShare => "BUDGET_SHARE_ANOTHER",
            Self::Over => "BUDGET_SHARE_OVER",
            Self::Short => "BUDGET_SHARE_SHORT",
            Self::UnknownReservation { .. } => "BUDGET_SHARE_UNKNOWN_RESERVATION",
        }
    }
}

impl BudgetShare {
    /// Held by all open reservations.
    #[must_use]
    pub fn held(&self) -> Amounts {
        Amounts::sum(self.holds.values())
    }

    /// What may still be held.
    #[must_use]
    pub fn free(&self) -> Amounts {
        self.pledged.minus(self.spent).minus(self.held())
    }

    /// Whether it may be spent from at a moment, as far as its pledge is good.
    #[must_use]
    pub fn is_good(&self, now: DateTime<Utc>) -> bool {
        self.good_until.is_some_and(|until| now < until)
    }

    /// What it would tell the budget now, by its number there.
    #[must_use]
    pub fn report(&self, share: u32) -> ShareReport {
        ShareReport { share, spent: self.spent, kept: self.held() }
    }

    fn hold(&self, reservation: ReservationId) -> Result<(Uuid, Amounts), BudgetShareError> {
        let (budget, _) = self.of.ok_or(BudgetShareError::NotPledged)?;
        let held = self.holds.get(&reservation);
        Ok((budget, *held.ok_or(BudgetShareError::UnknownReservation { reservation })?))
    }

    fn record(&mut self, event: BudgetShareEvent) {
        match event {
            BudgetShareEvent::ShareGranted { budget, share, pledged, good_until, .. } => {
                self.of = Some((budget, share));
                (self.pledged, self.good_until) = (pledged, Some(good_until));
            }
            BudgetShareEvent::MoneyReserved { reservation, held, .. } => {
                self.holds.insert(reservation, held);
            }
            BudgetShareEvent::MoneySettled { reservation, spent, .. } => {
                self.holds.remove(&reservation);
                self.spent = spent;
            }
            BudgetShareEvent::MoneyReleased { reservation, .. } => {
                self.holds.remove(&reservation);
            }
            BudgetShareEvent::ShareReported { pledged, good_until, .. } => {
                self.spent = Amounts::default();
                (self.pledged, self.good_until) = (pledged, Some(good_until));
            }
        }
    }
}

impl Decide for BudgetShare {
    fn decide(
        &self,
        command: BudgetShareCommand,
        now: DateTime<Utc>,
    ) -> Result<Vec<BudgetShareEvent>, BudgetShareError> {
        match command {
            BudgetShareCommand::Accept { budget, share, granted, good_until } => {
                if self.of.is_some_and(|of| of != (budget, share)) {
                    return Err(BudgetShareError::AnotherShare);
                }
                // What was pledged for windows that ended is the budget's again.
                if !self.pledged.is_empty() && !self.is_good(now) {
                    return Err(BudgetShareError::Over);
                }
                Ok(vec![BudgetShareEvent::ShareGranted {
                    budget,
                    share,
                    granted,
                    pledged: self.pledged.plus(granted),
                    good_until,
                    granted_at: now,
                }])
            }
            BudgetShareCommand::Reserve { reservation, asked } => {
                let (budget, _) = self.of.ok_or(BudgetShareError::NotPledged)?;
                if self.holds.contains_key(&reservation) {
                    return Ok(vec![]);
                }
                if !self.is_good(now) {
                    return Err(BudgetShareError::Over);
                }
                if !self.free().covers(asked) {
                    return Err(BudgetShareError::Short);
                }
                Ok(vec![BudgetShareEvent::MoneyReserved {
                    budget,
                    reservation,
                    held: asked,
                    reserved: self.held().plus(asked),
                    reserved_at: now,
                }])
            }
            BudgetShareCommand::Settle { reservation, actual, estimated } => {
                let (budget, held) = self.hold(reservation)?;
                if !self.is_good(now) {
                    return Err(BudgetShareError::Over);
                }
                let (charged, overrun) = held.settle(actual);
                Ok(vec![BudgetShareEvent::MoneySettled {
                    budget,
                    reservation,
                    charged,
                    overrun,
                    estimated,
                    spent: self.spent.plus(charged),
                    reserved: self.held().minus(held),
                    settled_at: now,
                }])
            }
            BudgetShareCommand::Release { reservation, cause } => {
                let (budget, held) = self.hold(reservation)?;
                Ok(vec![BudgetShareEvent::MoneyReleased {
                    budget,
                    reservation,
                    held,
                    cause,
                    reserved: self.held().minus(held),
                    released_at: now,
                }])
            }
            BudgetShareCommand::Report { good_until } => {
                let (budget, _) = self.of.ok_or(BudgetShareError::NotPledged)?;
                let (spent, returned) = (self.spent, self.free());
                if spent.is_empty() && returned.is_empty() && self.good_until == Some(good_until) {
                    return Ok(vec![]);
                }
                Ok(vec![BudgetShareEvent::ShareReported {
                    budget,
                    spent,
                    returned,
                    pledged: self.held(),
                    good_until,
                    reported_at: now,
                }])
            }
        }
    }
}

aggregate!(BudgetShare, "budget_share", BudgetShareCommand, BudgetShareEvent, BudgetShareError);

#[cfg(test)]
mod tests;
