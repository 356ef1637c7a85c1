use std::sync::Arc;

use botledger_domain::{
    OperatorId, Reason, WorkspaceId,
    account::{Holder, LimitLeft, PlanTerms, Unit},
    bot::Bot,
    budget::{Budget, BudgetCommand, BudgetError, MOST_SHARES},
    budget_stream,
    operator::Permission,
};
use botledger_journal::{AppendError, AppendSet};
use chrono::{DateTime, Utc};

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
        let id = budget_stream(workspace, holder);
        let by = caller.operator_id();
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
            let open = u16::try_from(whole.parent.state.shares.len()).unwrap_or(MOST_SHARES);
            let shares = shares.unwrap_or(if open == 0 { USUAL_SHARES } else { open });
            let command = BudgetCommand::Set { workspace, holder, terms: terms.clone(), shares, by };
            let mut set = AppendSet::new(caller.metadata(self.core.instance));
            let checked =
                terms.clone().checked().map_err(|error| CommandError::Refused(BudgetError::Terms(error)))?;
            whole.roll(&mut set, now).map_err(CommandError::within)?;
            if whole.parent.state.account.terms != checked {
                // What shares have free was granted under other limits.
                let good_until = whole.parent.state.good_until_under(&checked, now);
                whole.gather_until(&mut set, good_until, now).map_err(CommandError::within)?;
            }
            set.decide(&mut whole.parent, command, now).map_err(CommandError::Refused)?;
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
        let by = caller.operator_id().unwrap_or(OperatorId(uuid::Uuid::nil()));
        let command = BudgetCommand::Raise { unit, amount, expires_at, reason, by };
        execute(&self.core, caller, &budget_stream(workspace, holder).to_string(), command, |_| Ok(())).await
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
            // A person is refused by the budget; teams and keys are whatever the workspace says they are.
            Holder::Person(_) | Holder::Team(_) | Holder::Key(_) => true,
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
