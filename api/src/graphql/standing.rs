//! Standings: who is blocked from which bot.

use async_graphql::{Context, ID, InputObject, Object, connection::EmptyFields};
use botledger_domain::{BotId, Reason, SubjectId, operator::Permission};
use botledger_projections::{StandingFilter, StandingRow, bot_ids, standing_as_of, standings_page};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Acts, AsOf, Conditions, Needs, Scope, bot,
    error::{ApiResult, UserError, outcome},
    or_refused,
    page::{List, Slice},
    payload,
    scalars::{At, NodeKind},
};

pub(crate) struct Standing(pub(crate) StandingRow);

/// A person's standing with a bot, once a moderator decided something about it.
#[Object]
impl Standing {
    /// `standing:…`
    async fn id(&self) -> ID {
        NodeKind::Standing.id(self.0.standing_id)
    }

    async fn bot_id(&self) -> ID {
        NodeKind::Bot.id(self.0.bot_id)
    }

    async fn person_id(&self) -> ID {
        NodeKind::Person.id(self.0.subject)
    }

    /// As of the last decision; a block may have run out since.
    async fn blocked(&self) -> bool {
        self.0.blocked
    }

    /// Why, as the person is told.
    async fn reason(&self) -> &str {
        &self.0.reason
    }

    /// End of the block; null when it has none.
    async fn blocked_until(&self) -> Option<DateTime<Utc>> {
        self.0.blocked_until
    }

    /// Operator who decided.
    async fn changed_by(&self) -> ID {
        NodeKind::Operator.id(self.0.changed_by)
    }

    async fn changed_at(&self) -> DateTime<Utc> {
        self.0.changed_at
    }

    /// Of its last event.
    async fn position(&self) -> At {
        self.0.updated_position.into()
    }
}

/// Bots of the caller's workspace: the wanted one, or all of them.
async fn own_bots(scope: &Scope<'_>, wanted: Option<BotId>) -> ApiResult<Vec<Uuid>> {
    match wanted {
        Some(bot) => Ok(bot::find(scope, bot).await?.map(|found| found.0.bot_id).into_iter().collect()),
        None => Ok(bot_ids(&scope.services.read, scope.identity()?.workspace).await?),
    }
}

async fn find(scope: &Scope<'_>, bot: BotId, subject: SubjectId) -> ApiResult<Option<Standing>> {
    if bot::find(scope, bot).await?.is_none() {
        return Ok(None);
    }
    Ok(botledger_projections::standing(&scope.services.read, bot, subject).await?.map(Standing))
}

/// Which standings.
#[derive(Default, InputObject)]
struct StandingFilterInput {
    bot_id: Option<ID>,
    person_id: Option<ID>,
    blocked: Option<bool>,
}

#[derive(Default)]
pub(crate) struct StandingQuery;

#[Object]
impl StandingQuery {
    /// A person's standing with a bot; with `asOf` as it was then. Null when nothing was ever decided.
    #[graphql(guard = "Needs(Permission::ReadOperations)")]
    async fn standing(
        &self,
        ctx: &Context<'_>,
        bot_id: ID,
        person_id: ID,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<Standing>> {
        let scope = Scope::of(ctx)?;
        let bot: BotId = NodeKind::Bot.parse(&bot_id)?;
        let subject: SubjectId = NodeKind::Person.parse(&person_id)?;
        scope.at_least("standings", min_position).await?;
        let Some(as_of) = as_of else { return find(&scope, bot, subject).await };
        if bot::find(&scope, bot).await?.is_none() {
            return Ok(None);
        }
        let upto = scope.position(as_of).await?;
        Ok(standing_as_of(&scope.services.read, bot, subject, upto).await?.map(Standing))
    }

    /// All standings, newest first.
    #[graphql(
        guard = "Needs(Permission::ReadOperations)",
        complexity = "super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the filter and the position")]
    async fn standings(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<StandingFilterInput>,
        min_position: Option<At>,
    ) -> ApiResult<List<Standing>> {
        let scope = Scope::of(ctx)?;
        let paging = Slice { first, after, last, before }.of("standings")?;
        let filter = filter.unwrap_or_default();
        scope.at_least("standings", min_position).await?;
        let wanted = filter.bot_id.as_ref().map(|id| NodeKind::Bot.parse(id)).transpose()?;
        let filter = StandingFilter {
            bots: own_bots(&scope, wanted).await?,
            subject: filter.person_id.as_ref().map(|id| NodeKind::Person.parse(id)).transpose()?,
            blocked: filter.blocked,
        };
        let rows = standings_page(&scope.services.read, &filter, paging.page).await?;
        Ok(paging.connect(rows, EmptyFields, |row| row.created_position, Standing))
    }
}

payload! {
    /// Answer of a mutation of a standing.
    StandingPayload {
        /// As it is now.
        standing: Standing
    }
}

/// Whom to block from what, and why.
#[derive(InputObject)]
struct StandingBlockInput {
    bot_id: ID,
    person_id: ID,
    /// 1 to 500 characters; the person is told.
    reason: String,
    /// Without end when null.
    until: Option<DateTime<Utc>>,
    conditions: Option<Conditions>,
}

/// Whom to let in again.
#[derive(InputObject)]
struct StandingUnblockInput {
    bot_id: ID,
    person_id: ID,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    conditions: Option<Conditions>,
}

#[derive(Default)]
pub(crate) struct StandingMutation;

#[Object]
impl StandingMutation {
    /// Blocks a person from a bot. Blocking again replaces reason and end.
    #[graphql(guard = "Acts(Permission::Moderate)")]
    async fn standing_block(
        &self,
        ctx: &Context<'_>,
        input: StandingBlockInput,
    ) -> ApiResult<StandingPayload> {
        let scope = Scope::of(ctx)?;
        let bot: BotId = NodeKind::Bot.parse(&input.bot_id)?;
        let subject: SubjectId = NodeKind::Person.parse(&input.person_id)?;
        let caller = scope.caller(input.conditions)?;
        let reason = Reason::parse(&input.reason).map_err(|error| UserError::of("reason", &error));
        let reason = or_refused!(StandingPayload, reason);
        let blocked = scope.services.app.standings.block(&caller, bot, subject, reason, input.until).await;
        let executed = or_refused!(StandingPayload, outcome(&scope, "standing.block", blocked).await?);
        let position = executed.receipt.position;
        let thing = scope.written("standings", position, find(&scope, bot, subject)).await;
        Ok(StandingPayload::done(thing, position))
    }

    /// Lets a person in again.
    #[graphql(guard = "Acts(Permission::Moderate)")]
    async fn standing_unblock(
        &self,
        ctx: &Context<'_>,
        input: StandingUnblockInput,
    ) -> ApiResult<StandingPayload> {
        let scope = Scope::of(ctx)?;
        let bot: BotId = NodeKind::Bot.parse(&input.bot_id)?;
        let subject: SubjectId = NodeKind::Person.parse(&input.person_id)?;
        let caller = scope.caller(input.conditions)?;
        let reason = Reason::parse(&input.reason).map_err(|error| UserError::of("reason", &error));
        let reason = or_refused!(StandingPayload, reason);
        let unblocked = scope.services.app.standings.unblock(&caller, bot, subject, reason).await;
        let executed = or_refused!(StandingPayload, outcome(&scope, "standing.unblock", unblocked).await?);
        let position = executed.receipt.position;
        let thing = scope.written("standings", position, find(&scope, bot, subject)).await;
        Ok(StandingPayload::done(thing, position))
    }
}
