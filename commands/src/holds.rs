//! What a turn holds while the model works for it: the worst case, in the person's quota and in a share of
//! every budget that stands over it, in the append set of the admission; in the set of the answer or
//! failure the truth is settled and the rest goes back.
//!
//! Everything here is decided on loaded versions, so that the ledger refuses what somebody else was faster
//! with. The locks below only keep the turns of this process from racing for what one of them would lose:
//! a person's quota is used by one turn at a time, and turns take different shares of a budget.

use std::{collections::BTreeMap, sync::Arc};

use botledger_domain::{
    ReservationId, SubjectId, WorkspaceId,
    account::{Account, Amounts, Holder, LimitLeft, Shortage, Unit, Warning, shortage, spare},
    budget::{Budget, BudgetCommand, BudgetEvent},
    budget_share::{BudgetShare, BudgetShareCommand, BudgetShareError},
    budget_share_stream, budget_stream,
    price::Price,
    quota::{Quota, QuotaCommand, QuotaError, QuotaEvent, ReleaseCause},
    quota_stream,
    turn::{Admission, BudgetHold, Message, Notice, RefusalReason, Turn, TurnError},
    workspace::Workspace,
};
use botledger_journal::{AppendSet, Load, Loaded, Wanted};
use chrono::{DateTime, Utc};
use moka::sync::Cache;
use tokio::sync::{Mutex, OwnedMutexGuard};
use uuid::Uuid;

use crate::{CommandError, Core};

type Outcome<T> = Result<T, CommandError<TurnError>>;

/// Events after which a share is replaced by a fresh one: a process that starts reads its streams whole.
const LONG_SHARE: i64 = 2_000;
/// Streams of which this process remembers who uses them.
const KNOWN: u64 = 100_000;

/// Holds of turns.
#[derive(Clone)]
pub(crate) struct Holds {
    core: Arc<Core>,
    /// By stream.
    locks: Cache<Uuid, Arc<Mutex<()>>>,
    /// The open shares of budgets as they were last seen: where to look first.
    shares: Cache<Uuid, Arc<Vec<u32>>>,
}

/// Everything that limits a turn, as it stands.
pub(crate) struct Opened {
    quota: Loaded<Quota>,
    budgets: Vec<OpenBudget>,
}

/// A budget over a turn, and the share the turn would hold in.
struct OpenBudget {
    holder: Holder,
    id: Uuid,
    parent: Loaded<Budget>,
    number: u32,
    share: Loaded<BudgetShare>,
    /// What is really left, where the share alone did not cover the most the turn could ask for.
    left: Option<Vec<LimitLeft>>,
}

/// A budget with everything that was pledged of it, all seen at one moment.
pub(crate) struct Whole {
    pub(crate) id: Uuid,
    pub(crate) parent: Loaded<Budget>,
    pub(crate) shares: BTreeMap<u32, Loaded<BudgetShare>>,
}

/// What became of the wish to hold.
pub(crate) enum Held {
    /// It is in the set.
    Reserved(Reserved),
    /// A limit does not cover it; that is in the set. With it what the person is told besides.
    Refused(RefusalReason, Vec<Notice>),
}

/// What a turn holds.
pub(crate) struct Reserved {
    /// In the quota; of budgets the part that they limit.
    pub(crate) amounts: Amounts,
    pub(crate) budgets: Vec<BudgetHold>,
    /// What the person is told of their own limits.
    pub(crate) notices: Vec<Notice>,
}

/// How a hold ends.
#[derive(Clone, Copy)]
pub(crate) enum HoldEnd {
    /// With what the model took.
    Settle { prompt_tokens: u64, completion_tokens: u64, estimated: bool },
    /// Unused.
    Release(ReleaseCause),
}

/// The most that a turn of so many tokens can cost.
pub(crate) fn worst_case(tokens: u64, price: &Price) -> Amounts {
    let money = price.cost(tokens, 0).max(price.cost(0, tokens));
    Amounts { tokens, messages: 1, money }
}

impl Holds {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, locks: Cache::new(KNOWN), shares: Cache::new(KNOWN) }
    }

    fn lock_of(&self, stream: Uuid) -> Arc<Mutex<()>> {
        self.locks.get_with(stream, Arc::default)
    }

    /// Opens what limits the turn of a message that may ask for so much at most. A person without a plan
    /// gets the workspace's default one, in the set.
    pub(crate) async fn open(
        &self,
        set: &mut AppendSet,
        message: &Message,
        most: Amounts,
        now: DateTime<Utc>,
    ) -> Outcome<Opened> {
        let (workspace, subject) = (message.workspace, message.subject);
        let quota_id = quota_stream(workspace, subject);
        // One order for all: quota, shares, budgets. Whoever waits holds nothing that is further on.
        set.keep(self.lock_of(quota_id).lock_owned().await);
        let holders = [Holder::Bot(message.bot), Holder::Workspace(workspace)];
        let (mut quota, budgets) = loop {
            let mut quota = Wanted::<Quota>::new(quota_id.to_string());
            let mut seen = Vec::with_capacity(holders.len());
            for holder in holders {
                let id = budget_stream(workspace, holder);
                let guess = match self.shares.get(&id) {
                    Some(open) => Some(self.pick(id, &open).await),
                    None => None,
                };
                let number = guess.as_ref().map_or(0, |(number, _)| *number);
                let share = Wanted::<BudgetShare>::new(budget_share_stream(id, number).to_string());
                seen.push((holder, id, guess, Wanted::<Budget>::new(id.to_string()), share));
            }
            let mut wanted: Vec<&mut dyn Load> = vec![&mut quota];
            for (_, _, guess, parent, share) in &mut seen {
                wanted.push(parent);
                if guess.is_some() {
                    wanted.push(share);
                }
            }
            self.core.journal.load_together(&mut wanted).await?;
            let (mut budgets, mut unlimited) = (Vec::new(), Vec::new());
            let mut guessed = true;
            for (holder, id, guess, parent, share) in seen {
                let parent = parent.loaded();
                if !parent.state.is_in_force() {
                    self.shares.invalidate(&id);
                    unlimited.push(parent);
                    continue;
                }
                self.shares.insert(id, Arc::new(parent.state.shares.clone()));
                match guess {
                    Some((number, guard)) if parent.state.shares.contains(&number) => {
                        let (share, left) = (share.loaded(), None);
                        budgets.push((OpenBudget { holder, id, parent, number, share, left }, guard));
                    }
                    // All anew, so that locks are taken in order.
                    _ => guessed = false,
                }
            }
            if guessed {
                // A budget that is given now is not passed by.
                unlimited.iter().for_each(|parent| set.rests_on(parent));
                break (quota.loaded(), budgets);
            }
        };
        if quota.state.plan.is_none() {
            self.assign_default(set, &mut quota, workspace, subject, now).await?;
        }
        let mut kept = Vec::with_capacity(budgets.len());
        for (mut budget, guard) in budgets {
            set.keep(guard);
            if !budget.covers(most, now) {
                let whole = self.whole(budget.id, &budget.parent.state).await?;
                budget.left = Some(whole.truth().left_at(now));
            }
            kept.push(budget);
        }
        Ok(Opened { quota, budgets: kept })
    }

    async fn assign_default(
        &self,
        set: &mut AppendSet,
        quota: &mut Loaded<Quota>,
        workspace: WorkspaceId,
        subject: SubjectId,
        now: DateTime<Utc>,
    ) -> Outcome<()> {
        let tenant = self.core.journal.load::<Workspace>(&workspace.to_string()).await?;
        let (plan, terms) = tenant.state.default_terms().ok_or(CommandError::NotFound { what: "plan" })?;
        let (plan, terms) = (plan.clone(), terms.clone());
        let command = QuotaCommand::AssignPlan { workspace, subject, plan, terms, by: None };
        set.decide(quota, command, now).map_err(CommandError::broken)?;
        Ok(())
    }

    /// A share that no turn of this process is using, by chance; when all are in use, the one whose turn
    /// it is waited for.
    async fn pick(&self, budget: Uuid, shares: &[u32]) -> (u32, OwnedMutexGuard<()>) {
        let start = self.core.ids.next().as_u128() as usize;
        let turned = (0..shares.len()).map(|step| shares[(start.wrapping_add(step)) % shares.len()]);
        for number in turned {
            let lock = self.lock_of(budget_share_stream(budget, number));
            if let Ok(guard) = lock.try_lock_owned() {
                return (number, guard);
            }
        }
        let number = if shares.is_empty() { 0 } else { shares[start % shares.len()] };
        (number, self.lock_of(budget_share_stream(budget, number)).lock_owned().await)
    }

    /// A budget with all shares that are open or have a pledge.
    pub(crate) async fn whole(&self, id: Uuid, as_seen: &Budget) -> Outcome<Whole> {
        let numbers = |budget: &Budget| -> Vec<u32> {
            let mut numbers: Vec<u32> =
                budget.shares.iter().chain(budget.account.holds.keys()).copied().collect();
            numbers.sort_unstable();
            numbers.dedup();
            numbers
        };
        let mut known = numbers(as_seen);
        loop {
            let mut parent = Wanted::<Budget>::new(id.to_string());
            let mut shares: Vec<_> = known
                .iter()
                .map(|number| {
                    (*number, Wanted::<BudgetShare>::new(budget_share_stream(id, *number).to_string()))
                })
                .collect();
            let mut wanted: Vec<&mut dyn Load> = vec![&mut parent];
            wanted.extend(shares.iter_mut().map(|(_, share)| share as &mut dyn Load));
            self.core.journal.load_together(&mut wanted).await?;
            let parent = parent.loaded();
            let now_known = numbers(&parent.state);
            if now_known.iter().all(|number| known.contains(number)) {
                let shares = shares.into_iter().map(|(number, share)| (number, share.loaded())).collect();
                return Ok(Whole { id, parent, shares });
            }
            known = now_known;
        }
    }

    /// Puts the holds of a turn into the set, all or none.
    pub(crate) async fn reserve(
        &self,
        set: &mut AppendSet,
        opened: &mut Opened,
        reservation: ReservationId,
        asked: Amounts,
        now: DateTime<Utc>,
    ) -> Outcome<Held> {
        let reserve = QuotaCommand::Reserve { reservation, asked };
        let quota_short = shortage(&opened.quota.state.left_at(now), asked).is_some();
        if !quota_short {
            for budget in &mut opened.budgets {
                if let Some(short) = self.ensure(set, budget, asked, now).await? {
                    return Ok(Held::Refused(exhausted(budget.holder, short), vec![]));
                }
            }
        }
        let events = set.decide(&mut opened.quota, reserve, now).map_err(CommandError::broken)?;
        let mut notices = Vec::new();
        for event in events {
            match event {
                QuotaEvent::QuotaWarned { warning, .. } => notices.push(near(&warning)),
                QuotaEvent::QuotaExceeded { unit, period, requested, remaining, resets_at, .. } => {
                    let reason =
                        RefusalReason::QuotaExceeded { unit, period, requested, remaining, resets_at };
                    return Ok(Held::Refused(reason, notices));
                }
                _ => {}
            }
        }
        let mut budgets = Vec::with_capacity(opened.budgets.len());
        for budget in &mut opened.budgets {
            let asked = budget.parent.state.account.terms.limited(asked);
            if asked.is_empty() {
                // Nor are limits of other units that it is given now.
                set.rests_on(&budget.parent);
                continue;
            }
            let command = BudgetShareCommand::Reserve { reservation, asked };
            set.decide(&mut budget.share, command, now).map_err(CommandError::broken)?;
            budgets.push(BudgetHold { budget: budget.id, share: budget.number });
        }
        Ok(Held::Reserved(Reserved { amounts: asked, budgets, notices }))
    }

    /// Lets the share of a budget cover what is asked for: with what it has, with more of the budget, or
    /// with what all other shares give back. Gives the limit that is short when all of them together do
    /// not have it.
    async fn ensure(
        &self,
        set: &mut AppendSet,
        budget: &mut OpenBudget,
        asked: Amounts,
        now: DateTime<Utc>,
    ) -> Outcome<Option<Shortage>> {
        if budget.covers(asked, now) {
            return Ok(None);
        }
        let asked = budget.parent.state.account.terms.limited(asked);
        // Who is refused writes little and need not wait.
        if let Some(left) = &budget.left
            && let Some(short) = shortage(left, asked)
        {
            let exhaust = BudgetCommand::Exhaust { short };
            set.decide(&mut budget.parent, exhaust, now).map_err(CommandError::broken)?;
            return Ok(Some(short));
        }
        set.keep(self.lock_of(budget.id).lock_owned().await);
        let mut whole = self.whole(budget.id, &budget.parent.state).await?;
        let parent = &whole.parent.state;
        if !parent.is_in_force() || !parent.shares.contains(&budget.number) {
            return Err(CommandError::Conflict);
        }
        whole.roll(set, now)?;
        let left = whole.truth().left_at(now);
        tell_remaining(budget.holder, &left);
        let asked = whole.parent.state.account.terms.limited(asked);
        if let Some(short) = shortage(&left, asked) {
            let exhaust = BudgetCommand::Exhaust { short };
            set.decide(&mut whole.parent, exhaust, now).map_err(CommandError::broken)?;
            return Ok(Some(short));
        }
        if whole.share(budget.number)?.version >= LONG_SHARE {
            budget.number = whole.replace(set, budget.number, now)?;
            self.shares.invalidate(&budget.id);
        }
        let share = &whole.share(budget.number)?.state;
        let usable = share.pledged.is_empty() || share.is_good(now);
        let parent = &whole.parent.state;
        if !usable || parent.is_overcommitted(now) || parent.wants_gathering(asked, share.free(), now) {
            whole.gather(set, None, now)?;
        }
        whole.pledge(set, budget, asked, now)?;
        budget.share = whole.shares.remove(&budget.number).ok_or(CommandError::Conflict)?;
        budget.parent = whole.parent;
        Ok(None)
    }

    /// Ends the holds of a turn, in the set. False when they are gone: somebody else ended the turn after
    /// it was loaded here, and a look at it shows so.
    pub(crate) async fn end(
        &self,
        set: &mut AppendSet,
        turn: &Turn,
        end: HoldEnd,
        now: DateTime<Utc>,
    ) -> Outcome<bool> {
        let (Some(admission), Some(message)) = (&turn.admission, &turn.message) else { return Ok(true) };
        let reservation = admission.reservation;
        let quota_id = quota_stream(message.workspace, message.subject);
        set.keep(self.lock_of(quota_id).lock_owned().await);
        for hold in &admission.budgets {
            set.keep(self.lock_of(budget_share_stream(hold.budget, hold.share)).lock_owned().await);
        }
        let mut quota = Wanted::<Quota>::new(quota_id.to_string());
        let mut shares: Vec<_> = admission
            .budgets
            .iter()
            .map(|hold| Wanted::<BudgetShare>::new(budget_share_stream(hold.budget, hold.share).to_string()))
            .collect();
        let mut wanted: Vec<&mut dyn Load> = vec![&mut quota];
        wanted.extend(shares.iter_mut().map(|share| share as &mut dyn Load));
        self.core.journal.load_together(&mut wanted).await?;
        let mut quota = quota.loaded();
        let command = match end.taken(&admission.price) {
            Ok((actual, estimated)) => QuotaCommand::Settle { reservation, actual, estimated },
            Err(cause) => QuotaCommand::Release { reservation, cause },
        };
        match set.decide(&mut quota, command, now) {
            Ok(events) => {
                let overran = |event: &QuotaEvent| matches!(event, QuotaEvent::TokensSettled { overrun, .. } if !overrun.is_empty());
                if events.iter().any(overran) {
                    metrics::counter!("botledger_quota_overruns_total").increment(1);
                }
            }
            Err(QuotaError::UnknownReservation { .. }) => return Ok(false),
            Err(refusal) => return Err(CommandError::broken(refusal)),
        }
        for (hold, share) in admission.budgets.iter().zip(shares) {
            let mut share = share.loaded();
            let command = match end.taken(&admission.price) {
                Ok((actual, estimated)) => BudgetShareCommand::Settle { reservation, actual, estimated },
                Err(cause) => BudgetShareCommand::Release { reservation, cause },
            };
            let ended = match set.decide(&mut share, command.clone(), now) {
                // What is charged now belongs to a window that the budget has not begun yet.
                Err(BudgetShareError::Over) => {
                    set.keep(self.lock_of(hold.budget).lock_owned().await);
                    let mut whole = self.whole(hold.budget, &Budget::default()).await?;
                    whole.roll(set, now)?;
                    if !whole.share(hold.share)?.state.is_good(now) {
                        whole.gather(set, Some(hold.share), now)?;
                    }
                    let share = whole.shares.get_mut(&hold.share).ok_or(CommandError::Conflict)?;
                    set.decide(share, command, now)
                }
                ended => ended,
            };
            match ended {
                Ok(_) => {}
                Err(BudgetShareError::UnknownReservation { .. }) => return Ok(false),
                Err(refusal) => return Err(CommandError::broken(refusal)),
            }
        }
        Ok(true)
    }
}

impl Opened {
    /// Whether one of the limits is of money.
    pub(crate) fn counts_money(&self) -> bool {
        let budgets = self.budgets.iter().map(|budget| &budget.parent.state.account.terms);
        budgets
            .chain([&self.quota.state.account.terms])
            .any(|terms| terms.limits.iter().any(|limit| limit.unit == Unit::Money))
    }

    /// Tokens that the turn may ask for: what the tightest limit leaves, bought at that price where it is
    /// one of money. Nothing when there is no message left.
    pub(crate) fn tokens(&self, price: &Price, now: DateTime<Utc>) -> u64 {
        let quota = self.quota.state.left_at(now);
        let budgets = self.budgets.iter().filter_map(|budget| budget.left.as_deref());
        let tokens = |left: &[LimitLeft]| {
            let spare = spare(left);
            if spare.messages == 0 {
                return 0;
            }
            price.tokens_for(spare.money).map_or(spare.tokens, |bought| bought.min(spare.tokens))
        };
        budgets.map(tokens).fold(tokens(&quota), u64::min)
    }
}

impl OpenBudget {
    /// Whether the share has what is asked for, and may spend it now.
    fn covers(&self, asked: Amounts, now: DateTime<Utc>) -> bool {
        let asked = self.parent.state.account.terms.limited(asked);
        asked.is_empty()
            || (self.share.state.is_good(now)
                && self.share.state.free().covers(asked)
                && !self.parent.state.is_overcommitted(now))
    }
}

impl Whole {
    /// What is really used and held of the budget.
    pub(crate) fn truth(&self) -> Account<u32> {
        self.parent.state.truth(self.shares.values().map(|share| &share.state))
    }

    fn share(&self, number: u32) -> Outcome<&Loaded<BudgetShare>> {
        self.shares.get(&number).ok_or(CommandError::Conflict)
    }

    /// Begins the windows that are due, with all that was spent before.
    pub(crate) fn roll(&mut self, set: &mut AppendSet, now: DateTime<Utc>) -> Outcome<()> {
        if !self.parent.state.is_stale(now) {
            return Ok(());
        }
        let good_until = self.parent.state.good_until(now);
        self.gather_until(set, good_until, now)
    }

    /// Takes back what the shares have free and renews pledges that are over, of all or one of them.
    fn gather(&mut self, set: &mut AppendSet, only: Option<u32>, now: DateTime<Utc>) -> Outcome<()> {
        let good_until = self.parent.state.good_until(now);
        let wanted = |number: u32, share: &BudgetShare| match only {
            Some(only) => number == only,
            None => {
                let over = !share.pledged.is_empty() && !share.is_good(now);
                over || !share.free().is_empty() || !share.spent.is_empty()
            }
        };
        self.report(set, wanted, good_until, now)
    }

    /// Takes back everything, for terms that are going to be others.
    pub(crate) fn gather_until(
        &mut self,
        set: &mut AppendSet,
        good_until: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Outcome<()> {
        self.report(set, |_, share| !share.pledged.is_empty(), good_until, now)
    }

    fn report(
        &mut self,
        set: &mut AppendSet,
        wanted: impl Fn(u32, &BudgetShare) -> bool,
        good_until: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Outcome<()> {
        // Without limits nothing was ever pledged.
        let Some(good_until) = good_until else { return Ok(()) };
        let mut reports = Vec::new();
        for (number, share) in &mut self.shares {
            if wanted(*number, &share.state) {
                reports.push(share.state.report(*number));
                let report = BudgetShareCommand::Report { good_until };
                set.decide(share, report, now).map_err(CommandError::broken)?;
            }
        }
        let gather = BudgetCommand::Gather { reports };
        set.decide(&mut self.parent, gather, now).map_err(CommandError::broken)?;
        Ok(())
    }

    /// Lets a fresh share take the place of one that has grown long; gives its number.
    fn replace(&mut self, set: &mut AppendSet, share: u32, now: DateTime<Utc>) -> Outcome<u32> {
        let replacement = self.parent.state.next_share;
        let replace = BudgetCommand::Replace { share };
        set.decide(&mut self.parent, replace, now).map_err(CommandError::broken)?;
        let stream = budget_share_stream(self.id, replacement).to_string();
        self.shares.insert(replacement, Loaded::empty(stream));
        Ok(replacement)
    }

    /// Pledges to a share what it lacks, and some more.
    fn pledge(
        &mut self,
        set: &mut AppendSet,
        to: &OpenBudget,
        asked: Amounts,
        now: DateTime<Utc>,
    ) -> Outcome<()> {
        let good_until = self.parent.state.good_until(now);
        let share = self.shares.get_mut(&to.number).ok_or(CommandError::Conflict)?;
        let pledge = BudgetCommand::Pledge { share: to.number, asked, free: share.state.free() };
        let events = set.decide(&mut self.parent, pledge, now).map_err(CommandError::broken)?;
        for event in events {
            match (event, good_until) {
                (BudgetEvent::MoneyPledged { granted, .. }, Some(good_until)) => {
                    let (budget, share_number) = (self.id, to.number);
                    let accept =
                        BudgetShareCommand::Accept { budget, share: share_number, granted, good_until };
                    set.decide(share, accept, now).map_err(CommandError::broken)?;
                }
                (BudgetEvent::BudgetWarned { warning, .. }, _) => tell_warning(to.holder, &warning),
                _ => {}
            }
        }
        Ok(())
    }
}

impl HoldEnd {
    /// What the model took and whether that is an estimate, or why it took nothing.
    fn taken(self, price: &Price) -> Result<(Amounts, bool), ReleaseCause> {
        match self {
            Self::Settle { prompt_tokens, completion_tokens, estimated } => {
                let tokens = prompt_tokens.saturating_add(completion_tokens);
                let money = price.cost(prompt_tokens, completion_tokens);
                Ok((Amounts { tokens, messages: 1, money }, estimated))
            }
            Self::Release(cause) => Err(cause),
        }
    }
}

fn exhausted(holder: Holder, short: Shortage) -> RefusalReason {
    let Shortage { unit, period, requested, remaining, resets_at } = short;
    RefusalReason::BudgetExhausted { holder, unit, period, requested, remaining, resets_at }
}

fn tell_remaining(holder: Holder, left: &[LimitLeft]) {
    for left in left {
        let gauge = metrics::gauge!(
            "botledger_budget_remaining",
            "holder" => holder.kind(),
            "id" => holder.uuid().to_string(),
            "unit" => <&'static str>::from(left.unit),
            "period" => <&'static str>::from(left.period),
        );
        gauge.set(left.remaining as f64);
    }
}

/// What a person is told of their own limit.
fn near(warning: &Warning) -> Notice {
    Notice::LimitNear {
        holder: "person".to_owned(),
        unit: warning.unit.as_ref().to_owned(),
        percent: warning.percent,
        resets_at: warning.resets_at,
    }
}

/// What operators are told of a budget.
fn tell_warning(holder: Holder, warning: &Warning) {
    let Warning { percent, used, limit, .. } = *warning;
    let unit: &'static str = warning.unit.into();
    metrics::counter!("botledger_limit_warnings_total", "holder" => holder.kind(), "unit" => unit)
        .increment(1);
    tracing::warn!(
        holder = holder.kind(), id = %holder.uuid(), unit, percent, used, limit,
        "{percent} percent of the budget of {} {} are used", holder.kind(), holder.uuid(),
    );
}

/// Counts what a turn holds, once that is in the ledger.
pub(crate) fn count(admission: &Admission) {
    metrics::counter!("botledger_holds_total").increment(1 + admission.budgets.len() as u64);
    for notice in &admission.notices {
        if let Notice::LimitNear { unit, .. } = notice {
            metrics::counter!("botledger_limit_warnings_total", "holder" => "person", "unit" => unit.clone())
                .increment(1);
        }
    }
}

/// Counts which limit a turn was refused by, once that is in the ledger.
pub(crate) fn count_refusal(reason: &RefusalReason) {
    let (holder, unit) = match reason {
        RefusalReason::QuotaExceeded { unit, .. } => ("person", unit),
        RefusalReason::BudgetExhausted { holder, unit, .. } => (holder.kind(), unit),
        _ => return,
    };
    let unit: &'static str = unit.into();
    metrics::counter!("botledger_limit_refusals_total", "holder" => holder, "unit" => unit).increment(1);
}
