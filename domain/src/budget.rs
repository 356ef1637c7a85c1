//! What a bot, a workspace or any other holder may use: the same limits as a person's quota, but for many
//! turns at once. One stream that every turn writes to would let one turn through at a time, so a budget
//! pledges parts of itself to shares ([`crate::budget_share`]), streams of their own in which turns
//! reserve and settle.
//!
//! ```text
//!              pledged                      held          settled
//!   budget ───────────────▶ share 3 ◀────▶ turn ────────▶ spent
//!     ▲    ◀─────────────── share 7          gathered: what was spent is charged here,
//!     └ limits, meters       …               what is neither spent nor held comes back
//! ```
//! To the budget a pledge is a hold like any other, so all pledges together stay within every limit, and a
//! share gives away no more than it was pledged. Whether something fits is answered "no" only when the
//! budget and all its shares, seen at one moment, do not have it.
//!
//! A pledge is good until the first window ends or a raise runs out; then shares let nobody spend until
//! everything was gathered, so that each charge falls into the window it was made in.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::{
    Decide, DomainError, OperatorId, Reason, WorkspaceId,
    account::{
        Account, Amounts, Holder, LimitLeft, Mark, Meter, Period, PlanTerms, Raise, Shortage, TermsError,
        Unit, Warning,
    },
    aggregate::aggregate,
    budget_share::BudgetShare,
    clock::is_writable,
};

/// Shares of a budget, at most.
pub const MOST_SHARES: u16 = 64;

/// A pledge is for so many turns like the one that asked for it, at most: a share comes back often enough
/// to be replaced before its stream grows long, and rarely enough not to crowd the budget.
const TURNS_A_PLEDGE: u64 = 256;

/// Percent of a limit at which it is exhausted, among the marks of warnings.
const EXHAUSTED: u8 = 100;

/// A holder's budget. See [`Account`] for what always holds; its holds are the pledges to shares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Where; absent before it is first set.
    pub workspace: Option<WorkspaceId>,
    /// Whose.
    pub holder: Option<Holder>,
    /// What it grants, what is used and what is pledged, by number of the share.
    pub account: Account<u32>,
    /// Numbers of the shares that turns reserve in. Others may still have turns that end in them.
    pub shares: Vec<u32>,
    /// The number of the next share: none comes back.
    pub next_share: u32,
    /// Whether it was taken away; what is held is settled all the same.
    pub removed: bool,
}

/// What a share tells its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShareReport {
    /// Which.
    pub share: u32,
    /// Settled since it was last gathered.
    #[serde(default)]
    pub spent: Amounts,
    /// Still held by running turns: stays pledged.
    #[serde(default)]
    pub kept: Amounts,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum BudgetCommand {
    /// Give the holder a budget or change it. A limit of the same unit and period as one before goes on
    /// counting. Whatever the shares have free has to be gathered before.
    Set {
        workspace: WorkspaceId,
        holder: Holder,
        terms: PlanTerms,
        /// 1 to [`MOST_SHARES`]: how many turns may reserve at the same moment.
        shares: u16,
        by: Option<OperatorId>,
    },
    /// More of a unit until a moment. The same amount until the same moment is granted once.
    Raise { unit: Unit, amount: u64, expires_at: DateTime<Utc>, reason: Reason, by: OperatorId },
    /// Take the budget away: from then on nothing limits its holder.
    Remove { reason: Reason, by: Option<OperatorId> },
    /// Charge what shares spent and take back what they have free. Once a window has ended every share
    /// with a pledge has to be among them.
    Gather { reports: Vec<ShareReport> },
    /// Pledge to a share what a turn needs beyond what the share has free, and some for turns to come.
    Pledge { share: u32, asked: Amounts, free: Amounts },
    /// Let a fresh share take the place of one whose stream has grown long.
    Replace { share: u32 },
    /// Record that something did not fit, once a limit and window.
    Exhaust { short: Shortage },
}

/// What happened. `used` (in the order of the limits) and `pledged` are the values after the event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum BudgetEvent {
    /// The holder has this budget.
    BudgetSet {
        workspace: WorkspaceId,
        holder: Holder,
        terms: PlanTerms,
        meters: Vec<Meter>,
        shares: Vec<u32>,
        by: Option<OperatorId>,
        set_at: DateTime<Utc>,
    },
    /// More of a unit until `expires_at`.
    BudgetRaised {
        unit: Unit,
        amount: u64,
        expires_at: DateTime<Utc>,
        reason: Reason,
        by: OperatorId,
        raised_at: DateTime<Utc>,
    },
    /// The holder has no budget any more.
    BudgetRemoved { reason: Reason, by: Option<OperatorId>, removed_at: DateTime<Utc> },
    /// One or more windows ended and others began.
    BudgetRolled { meters: Vec<Meter>, rolled_at: DateTime<Utc> },
    /// A share got so much more; `pledged` is what it has in all.
    MoneyPledged { share: u32, granted: Amounts, pledged: Amounts, pledged_at: DateTime<Utc> },
    /// Shares told what they spent and gave back what was free.
    MoneyGathered { reports: Vec<ShareReport>, used: Vec<u64>, gathered_at: DateTime<Utc> },
    /// Turns reserve in another share from now on.
    ShareReplaced { share: u32, replacement: u32, replaced_at: DateTime<Utc> },
    /// So much is used or held that somebody wants to know; once a threshold and window.
    BudgetWarned {
        #[serde(flatten)]
        warning: Warning,
        warned_at: DateTime<Utc>,
    },
    /// For the first time in its window a limit did not cover a turn.
    BudgetExhausted {
        unit: Unit,
        period: Period,
        requested: u64,
        remaining: u64,
        resets_at: DateTime<Utc>,
        exhausted_at: DateTime<Utc>,
    },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// Never set, or removed.
    #[error("there is no budget")]
    None,
    /// Limits that make no sense.
    #[error(transparent)]
    Terms(TermsError),
    /// A quota is what a person has.
    #[error("a person has a quota, not a budget")]
    OfPerson,
    /// None or too many.
    #[error("a budget has 1 to 64 shares")]
    ShareCount,
    /// A raise that is over before it begins, or grants nothing.
    #[error("a raise needs an amount and an end in the future")]
    EmptyRaise,
    /// The end cannot be written everywhere.
    #[error("a raise ends by the year 9999")]
    RaiseEndsTooLate,
    /// No limit counts that unit.
    #[error("the budget has no limit of {}", unit.as_ref())]
    RaiseOfNothing {
        /// What was to be raised.
        unit: Unit,
    },
    /// A window ended, and what shares spent in it is not charged yet.
    #[error("a window ended and share {share} has not reported")]
    Unreported {
        /// One of those that are missing.
        share: u32,
    },
    /// A share claims more than it was pledged.
    #[error("share {share} reports more than it was pledged")]
    Overdrawn {
        /// Which.
        share: u32,
    },
    /// No turn reserves in it.
    #[error("share {share} is not open")]
    ClosedShare {
        /// Which.
        share: u32,
    },
    /// What is not pledged does not cover it.
    #[error("what is not pledged does not cover it")]
    Short,
}

impl DomainError for BudgetError {
    fn code(&self) -> &'static str {
        match self {
            Self::None => "BUDGET_NONE",
            Self::Terms(TermsError::Empty) => "BUDGET_EMPTY",
            Self::Terms(_) => "BUDGET_UNFIT_LIMITS",
            Self::OfPerson => "BUDGET_OF_PERSON",
            Self::ShareCount => "BUDGET_SHARE_COUNT",
            Self::EmptyRaise => "BUDGET_EMPTY_RAISE",
            Self::RaiseEndsTooLate => "BUDGET_RAISE_ENDS_TOO_LATE",
            Self::RaiseOfNothing { .. } => "BUDGET_RAISE_OF_NOTHING",
            Self::Unreported { .. } => "BUDGET_UNREPORTED",
            Self::Overdrawn { .. } => "BUDGET_OVERDRAWN",
            Self::ClosedShare { .. } => "BUDGET_CLOSED_SHARE",
            Self::Short => "BUDGET_SHORT",
        }
    }
}

impl Budget {
    /// Whether it limits anybody now.
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        self.holder.is_some() && !self.removed
    }

    /// Until when a pledge made now is good: to the end of the first window, and no longer than any raise
    /// it may rest on. Absent without limits.
    #[must_use]
    pub fn good_until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let meters = self.account.rolled(now);
        self.good_under(meters.as_ref().unwrap_or(&self.account.meters), now)
    }

    /// The same for the terms it is going to have.
    #[must_use]
    pub fn good_until_under(&self, terms: &PlanTerms, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.good_under(&self.account.reset(terms, now), now)
    }

    fn good_under(&self, meters: &[Meter], now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let raises = self.account.raises.iter().map(|raise| raise.expires_at).filter(|end| now < *end);
        let end = meters.iter().map(|meter| meter.window.end).min()?;
        Some(raises.fold(end, DateTime::min))
    }

    /// Whether a window ended that is still counted in.
    #[must_use]
    pub fn is_stale(&self, now: DateTime<Utc>) -> bool {
        self.account.first_end().is_some_and(|end| now >= end)
    }

    /// Whether more is used and pledged than is granted now: a raise ended, or a limit was lowered, while
    /// turns held what it had covered. What such turns give back is nobody's to spend before it was gathered.
    #[must_use]
    pub fn is_overcommitted(&self, now: DateTime<Utc>) -> bool {
        self.account.left_at(now).iter().any(|left| left.used.saturating_add(left.reserved) > left.limit)
    }

    /// What a share lacks for a turn.
    fn lack(&self, asked: Amounts, free: Amounts) -> Amounts {
        self.account.terms.limited(asked).minus(free)
    }

    /// Whether the shares should give back what they have free before one is pledged more: because
    /// otherwise it is not covered, or somebody would be warned of what is not used yet.
    #[must_use]
    pub fn wants_gathering(&self, asked: Amounts, free: Amounts, now: DateTime<Utc>) -> bool {
        let lack = self.lack(asked, free);
        !lack.is_empty()
            && (!self.account.spare(now).covers(lack) || !self.warnings_with(lack, now).is_empty())
    }

    fn warnings_with(&self, pledge: Amounts, now: DateTime<Utc>) -> Vec<Warning> {
        let counted =
            |left: &LimitLeft| left.used.saturating_add(left.reserved).saturating_add(pledge.of(left.unit));
        self.account.warnings(now, counted)
    }

    /// What a share is pledged on top of what it has.
    fn slice(&self, asked: Amounts, free: Amounts, now: DateTime<Utc>) -> Amounts {
        let lack = self.lack(asked, free);
        let mut room = Amounts::ENDLESS;
        for left in self.account.left_at(now) {
            let counted = left.used.saturating_add(left.reserved);
            // Short of the next warning: by then it should be known what is used.
            let to_warning = self.account.terms.warn_at_percent.iter().filter_map(|percent| {
                let warns_at = (u128::from(left.limit) * u128::from(*percent)).div_ceil(100);
                let silent = u64::try_from(warns_at).ok()?.saturating_sub(1);
                silent.checked_sub(counted).filter(|room| *room > 0)
            });
            room.cap(left.unit, to_warning.fold(left.remaining, u64::min));
        }
        let shares = 2 * self.shares.len().max(1) as u64;
        let some = room.with(Amounts::default(), |room, _| room / shares);
        let most = asked.with(free, |asked, free| asked.saturating_mul(TURNS_A_PLEDGE).saturating_sub(free));
        let granted = lack.with(some.least(most), u64::max);
        self.account.terms.limited(granted)
    }

    /// What is really used and held, with what the shares know.
    #[must_use]
    pub fn truth<'a>(&self, shares: impl IntoIterator<Item = &'a BudgetShare>) -> Account<u32> {
        let mut account = self.account.clone();
        let (mut spent, mut held) = (Amounts::default(), Amounts::default());
        for share in shares {
            spent = spent.plus(share.spent);
            held = held.plus(share.held());
        }
        let used = account.used_with(spent);
        account.set_used(&used);
        account.holds = [(0, held)].into();
        account
    }

    fn record(&mut self, event: BudgetEvent) {
        match event {
            BudgetEvent::BudgetSet { workspace, holder, terms, meters, shares, .. } => {
                (self.workspace, self.holder, self.removed) = (Some(workspace), Some(holder), false);
                self.account.begin(terms, meters);
                self.next_share = shares.iter().map(|share| share + 1).fold(self.next_share, u32::max);
                self.shares = shares;
            }
            BudgetEvent::BudgetRaised { unit, amount, expires_at, .. } => {
                self.account.marks.retain(|mark| (mark.unit, mark.percent) != (unit, EXHAUSTED));
                self.account.remember_raise(Raise { unit, amount, expires_at });
            }
            BudgetEvent::BudgetRemoved { .. } => self.removed = true,
            BudgetEvent::BudgetRolled { meters, rolled_at } => {
                self.account.turn_to(meters);
                self.account.forget_raises(rolled_at);
            }
            BudgetEvent::MoneyPledged { share, pledged, .. } => {
                self.account.holds.insert(share, pledged);
            }
            BudgetEvent::MoneyGathered { reports, used, .. } => {
                for report in reports {
                    if report.kept.is_empty() {
                        self.account.holds.remove(&report.share);
                    } else {
                        self.account.holds.insert(report.share, report.kept);
                    }
                }
                self.account.set_used(&used);
            }
            BudgetEvent::ShareReplaced { share, replacement, .. } => {
                for open in &mut self.shares {
                    if *open == share {
                        *open = replacement;
                    }
                }
                self.next_share = self.next_share.max(replacement + 1);
            }
            BudgetEvent::BudgetWarned { warning, .. } => self.account.remember_warning(&warning),
            BudgetEvent::BudgetExhausted { unit, period, .. } => {
                let mark = Mark { unit, period, percent: EXHAUSTED };
                if !self.account.marks.contains(&mark) {
                    self.account.marks.push(mark);
                }
            }
        }
    }

    fn gather(&self, reports: Vec<ShareReport>, now: DateTime<Utc>) -> Result<Vec<BudgetEvent>, BudgetError> {
        let mut spent = Amounts::default();
        for report in &reports {
            let pledged = self.account.holds.get(&report.share).copied().unwrap_or_default();
            if !pledged.covers(report.spent.plus(report.kept)) {
                return Err(BudgetError::Overdrawn { share: report.share });
            }
            spent = spent.plus(report.spent);
        }
        let reported = |share: &u32| reports.iter().any(|report| report.share == *share);
        let missing = self.account.holds.keys().find(|share| !reported(share)).copied();
        let mut after = self.clone();
        let mut events = vec![];
        if !reports.is_empty() {
            let used = self.account.used_with(spent);
            events.push(BudgetEvent::MoneyGathered { reports, used, gathered_at: now });
            after.record(events[0].clone());
        }
        if let Some(meters) = after.account.rolled(now) {
            if let Some(share) = missing {
                return Err(BudgetError::Unreported { share });
            }
            events.push(BudgetEvent::BudgetRolled { meters, rolled_at: now });
        }
        Ok(events)
    }

    /// The shares that are open when there are to be so many.
    fn opened(&self, count: u16) -> Vec<u32> {
        let count = usize::from(count);
        let kept = self.shares.iter().copied().take(count);
        kept.chain(self.next_share..).take(count).collect()
    }

    fn ensure_settled(&self, now: DateTime<Utc>) -> Result<(), BudgetError> {
        match self.account.holds.keys().next() {
            Some(share) if self.is_stale(now) => Err(BudgetError::Unreported { share: *share }),
            _ => Ok(()),
        }
    }
}

impl Decide for Budget {
    fn decide(&self, command: BudgetCommand, now: DateTime<Utc>) -> Result<Vec<BudgetEvent>, BudgetError> {
        let unless_none = || if self.is_in_force() { Ok(()) } else { Err(BudgetError::None) };
        match command {
            BudgetCommand::Set { workspace, holder, terms, shares, by } => {
                if matches!(holder, Holder::Person(_)) {
                    return Err(BudgetError::OfPerson);
                }
                if !(1..=MOST_SHARES).contains(&shares) {
                    return Err(BudgetError::ShareCount);
                }
                let terms = terms.checked().map_err(BudgetError::Terms)?;
                let same = self.account.terms == terms && self.shares.len() == usize::from(shares);
                if self.is_in_force() && same {
                    return Ok(vec![]);
                }
                self.ensure_settled(now)?;
                let mut events = self.gather(vec![], now)?;
                let mut rolled = self.clone();
                for event in &events {
                    rolled.record(event.clone());
                }
                events.push(BudgetEvent::BudgetSet {
                    workspace,
                    holder,
                    meters: rolled.account.reset(&terms, now),
                    terms,
                    shares: self.opened(shares),
                    by,
                    set_at: now,
                });
                Ok(events)
            }
            BudgetCommand::Raise { unit, amount, expires_at, reason, by } => {
                unless_none()?;
                if amount == 0 || i64::try_from(amount).is_err() || expires_at <= now {
                    return Err(BudgetError::EmptyRaise);
                }
                if !is_writable(expires_at) {
                    return Err(BudgetError::RaiseEndsTooLate);
                }
                if !self.account.terms.limits.iter().any(|limit| limit.unit == unit) {
                    return Err(BudgetError::RaiseOfNothing { unit });
                }
                if self.account.raises.contains(&Raise { unit, amount, expires_at }) {
                    return Ok(vec![]);
                }
                Ok(vec![BudgetEvent::BudgetRaised { unit, amount, expires_at, reason, by, raised_at: now }])
            }
            BudgetCommand::Remove { reason, by } => match (self.holder.is_some(), self.removed) {
                (false, _) => Err(BudgetError::None),
                (true, true) => Ok(vec![]),
                (true, false) => Ok(vec![BudgetEvent::BudgetRemoved { reason, by, removed_at: now }]),
            },
            BudgetCommand::Gather { reports } => self.gather(reports, now),
            BudgetCommand::Pledge { share, asked, free } => {
                unless_none()?;
                if !self.shares.contains(&share) {
                    return Err(BudgetError::ClosedShare { share });
                }
                if self.is_stale(now) {
                    return Err(BudgetError::Unreported { share });
                }
                if !self.account.spare(now).covers(self.lack(asked, free)) {
                    return Err(BudgetError::Short);
                }
                let granted = self.slice(asked, free, now);
                if granted.is_empty() {
                    return Ok(vec![]);
                }
                let has = self.account.holds.get(&share).copied().unwrap_or_default();
                // What comes on top of the turn's need stays below the next warning.
                let warnings = self.warnings_with(self.lack(asked, free), now);
                let mut events = vec![BudgetEvent::MoneyPledged {
                    share,
                    granted,
                    pledged: has.plus(granted),
                    pledged_at: now,
                }];
                events.extend(
                    warnings.into_iter().map(|warning| BudgetEvent::BudgetWarned { warning, warned_at: now }),
                );
                Ok(events)
            }
            BudgetCommand::Replace { share } => {
                if !self.shares.contains(&share) {
                    return Ok(vec![]);
                }
                let replacement = self.next_share;
                Ok(vec![BudgetEvent::ShareReplaced { share, replacement, replaced_at: now }])
            }
            BudgetCommand::Exhaust { short } => {
                let Shortage { unit, period, requested, remaining, resets_at } = short;
                let mark = Mark { unit, period, percent: EXHAUSTED };
                if self.account.marks.contains(&mark) {
                    return Ok(vec![]);
                }
                Ok(vec![BudgetEvent::BudgetExhausted {
                    unit,
                    period,
                    requested,
                    remaining,
                    resets_at,
                    exhausted_at: now,
                }])
            }
        }
    }
}

aggregate!(Budget, "budget", BudgetCommand, BudgetEvent, BudgetError);

#[cfg(test)]
mod tests;
