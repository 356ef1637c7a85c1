use std::sync::Arc;

use botledger_domain::{
    OperatorId, Reason, WorkspaceId,
    account::{Holder, LimitLeft, PlanTerms, Raise, Unit},
    bot::Bot,
    budget::{Budget, BudgetCommand, BudgetError, MOST_SHARES},
    budget_stream,
    operator::Permission,
};
use botledger_journal::{AppendError, AppendSet};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    Caller, CommandError, Core,
    execute::{ATTEMPTS, Executed, execute, known_receipt},
    holds::Holds,
};

/// Budgets of bots and workspaces.
#[derive(Clone)]
pub struct Budgets {
    core: Arc<Core>,
    holds: Holds,
}

/// What is left of a budget, and what it grants.
#[derive(Clone, Debug)]
pub struct BudgetLeft {
    /// As it stands.
    pub budget: Budget,
    /// Under each limit, in their order: what all its shares have spent and hold is counted.
    pub limits: Vec<LimitLeft>,
}

type Outcome = Result<Executed<Budget>, CommandError<BudgetError>>;

impl Budgets {
    pub(crate) fn new(core: Arc<Core>, holds: Holds) -> Self {
        Self { core, holds }
    }

    /// Gives a holder a budget or changes it. `shares` turns may reserve in it at the same moment without
    /// waiting for each other: as many as before, or 16, when nobody says. A lower limit holds from that moment on.
    ///
    /// # Errors
    /// Without the permission; when the holder does not exist in that workspace; when the limits make no
    /// sense.
    pub async fn set(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        holder: Holder,
        terms: PlanTerms,
        shares: Option<u16>,
    ) -> Outcome {
        self.check(caller, workspace, holder).await?;
        let checked =
            terms.clone().checked().map_err(|error| CommandError::Refused(BudgetError::Terms(error)))?;
        let by = caller.operator_id();
        self.change(caller, budget_stream(workspace, holder), |budget, now| {
            let open = u16::try_from(budget.shares.len()).unwrap_or(MOST_SHARES);
            let shares = shares.unwrap_or(if open == 0 { USUAL_SHARES } else { open });
            // What shares have free was granted under other limits.
            let others = budget.account.terms != checked;
            let gathers = others.then(|| budget.good_until_under(&checked, now)).flatten();
            (BudgetCommand::Set { workspace, holder, terms: terms.clone(), shares, by }, gathers)
        })
        .await
    }

    /// Decides a command on a budget and all its shares. Before it, the shares give back what they have free
    /// where the command says until when their pledges are good from then on.
    async fn change(
        &self,
        caller: &Caller,
        id: Uuid,
        prepare: impl Fn(&Budget, DateTime<Utc>) -> (BudgetCommand, Option<DateTime<Utc>>),
    ) -> Outcome {
        let mut attempt = 1;
        loop {
            let as_seen = self.core.journal.load::<Budget>(&id.to_string()).await?;
            let mut whole = self.holds.whole(id, &as_seen.state).await.map_err(CommandError::within)?;
            let before = whole.parent.version;
            if caller.expected_version.is_some_and(|expected| expected != before) {
                // A repeated request finds its own earlier effect before it finds the conflict.
                return match known_receipt(&self.core, caller).await? {
                    Some(receipt) => Ok(Executed { after: whole.parent, receipt }),
                    None => Err(CommandError::Conflict),
                };
            }
            let now = self.core.clock.now();
            let mut set = AppendSet::new(caller.metadata(self.core.instance));
            whole.roll(&mut set, now).map_err(CommandError::within)?;
            let (command, gathers) = prepare(&whole.parent.state, now);
            if gathers.is_some() {
                whole.gather_until(&mut set, gathers, now).map_err(CommandError::within)?;
            }
            if let Err(refusal) = set.decide(&mut whole.parent, command, now) {
                // What was done once may be refused the second time.
                return match known_receipt(&self.core, caller).await? {
                    Some(receipt) => Ok(Executed { after: as_seen, receipt }),
                    None => Err(CommandError::Refused(refusal)),
                };
            }
            if set.is_empty()
                && let Some(receipt) = known_receipt(&self.core, caller).await?
            {
                return Ok(Executed { after: whole.parent, receipt });
            }
            match self.core.journal.append(set).await {
                Ok(receipt) if receipt.duplicate => {
                    let after = self.core.journal.load::<Budget>(&id.to_string()).await?;
                    return Ok(Executed { after, receipt });
                }
                Ok(receipt) => return Ok(Executed { after: whole.parent, receipt }),
                Err(AppendError::Conflict { .. }) if attempt < BUSY * ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// More of a unit until a moment.
    ///
    /// # Errors
    /// Without the permission; when there is no budget, nothing is granted, or no limit counts the unit.
    #[expect(clippy::too_many_arguments, reason = "what is granted has that many parts")]
    pub async fn raise(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        holder: Holder,
        unit: Unit,
        amount: u64,
        expires_at: DateTime<Utc>,
        reason: Reason,
    ) -> Outcome {
        self.check(caller, workspace, holder).await?;
        let by = caller.operator_id().unwrap_or(OperatorId(Uuid::nil()));
        self.change(caller, budget_stream(workspace, holder), |budget, now| {
            // What was pledged before rests on the limit without the raise: beyond the raise's end it would
            // still be spent, after others had spent the limit with it.
            let known = budget.account.raises.contains(&Raise { unit, amount, expires_at });
            let gathers = budget.good_until(now).filter(|_| !known && now < expires_at);
            let command = BudgetCommand::Raise { unit, amount, expires_at, reason: reason.clone(), by };
            (command, gathers.map(|end| end.min(expires_at)))
        })
        .await
    }

    /// Takes a budget away. What is held of it is settled all the same.
    ///
    /// # Errors
    /// Without the permission; when there never was one.
    pub async fn remove(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        holder: Holder,
        reason: Reason,
    ) -> Outcome {
        self.check(caller, workspace, holder).await?;
        let command = BudgetCommand::Remove { reason, by: caller.operator_id() };
        execute(&self.core, caller, &budget_stream(workspace, holder).to_string(), command, |_| Ok(())).await
    }

    /// What is left of a holder's budget, exactly, at one moment; absent when nothing limits the holder.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn left(
        &self,
        workspace: WorkspaceId,
        holder: Holder,
    ) -> Result<Option<BudgetLeft>, CommandError<BudgetError>> {
        let id = budget_stream(workspace, holder);
        let whole = self.holds.whole(id, &Budget::default()).await.map_err(CommandError::within)?;
        if !whole.parent.state.is_in_force() {
            return Ok(None);
        }
        let limits = whole.truth().left_at(self.core.clock.now());
        Ok(Some(BudgetLeft { budget: whole.parent.state, limits }))
    }

    async fn check(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        holder: Holder,
    ) -> Result<(), CommandError<BudgetError>> {
        caller.require(Permission::ManageQuotas)?;
        let there = match holder {
            Holder::Bot(bot) => {
                self.core.journal.load::<Bot>(&bot.to_string()).await?.state.workspace == Some(workspace)
            }
            Holder::Workspace(holder) => holder == workspace,
            // Refused by the budget itself, which says why.
            Holder::Person(_) => true,
            // There are none yet: a budget that limits nobody would only look like one.
            Holder::Team(_) | Holder::Key(_) => false,
        };
        if !caller.sees(Some(workspace)) || !there {
            return Err(CommandError::NotFound { what: "holder" });
        }
        Ok(())
    }
}

/// Shares of a budget whose number nobody chose: more turns at the same moment than one process begins.
const USUAL_SHARES: u16 = 16;

/// A budget that is changed is in use: so many times more often than elsewhere it is tried again.
const BUSY: u32 = 16;
