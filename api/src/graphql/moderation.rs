//! The moderators' queue: what waits for a human, with what there is to know about it.

use async_graphql::{Context, Enum, ID, InputObject, Object, SimpleObject, connection::EmptyFields};
use botledger_commands::{Decided, ModeratorDecision};
use botledger_domain::{BotId, ConversationId, Position, SubjectId, TurnId, operator::Permission};
use botledger_projections::{CaseFilter, CaseRow, Page, ScoringFilter, cases_page, turns_page};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Acts, AsOf, Conditions, Needs, Scope,
    bot::{self, Bot},
    error::{ApiError, ApiResult, UserError, outcome, reason},
    page::{List, Slice},
    person::{self, Person},
    scalars::{At, BigInt, NodeKind, wire_enum},
    standing::{self, BlockCause, Scoring, Standing, StandingState},
    turn::{self, Turn},
};

/// Cases decided by one request, at most.
const MOST: usize = 100;
/// Messages of context when nobody says how many, and at most.
const CONTEXT: (i32, i32) = (10, 50);

wire_enum! {
    /// What a case is about.
    CaseKind {
        /// A person asks for a human decision.
        Appeal = "appeal",
        /// One message blocked its writer at once; a human has to look.
        SevereBlock = "severe_block",
        /// The score blocked a person for good.
        Block = "block",
        /// The score blocked a person for a while.
        TempBlock = "temp_block",
    }
}

wire_enum! {
    /// How far a case is.
    CaseStatus {
        /// It waits for a decision.
        Open = "open",
        /// Its decision was taken back: it waits for another.
        Undone = "undone",
        Decided = "decided",
        /// Its block ended before anybody decided.
        Lapsed = "lapsed",
    }
}

wire_enum! {
    /// What was decided.
    CaseDecision {
        /// The appeal.
        Granted = "granted",
        /// The appeal.
        Denied = "denied",
        /// The block.
        Lifted = "lifted",
        /// The block.
        Upheld = "upheld",
    }
}

pub(crate) struct ModerationCase(pub(crate) CaseRow);

fn context_cost(first: Option<i32>, child: usize) -> usize {
    usize::try_from(first.unwrap_or(CONTEXT.0)).unwrap_or_default().max(1) * child
}

/// Something a human may have to decide about a person's standing.
#[Object]
impl ModerationCase {
    /// `case:…`
    async fn id(&self) -> ID {
        NodeKind::Case.id(self.0.case_id)
    }

    async fn kind(&self) -> ApiResult<CaseKind> {
        CaseKind::read(&self.0.kind)
    }

    /// Now, or then with `asOf`: a case about a block for a while ends with the block.
    async fn status(&self, ctx: &Context<'_>) -> ApiResult<CaseStatus> {
        CaseStatus::read(self.0.status_at(Scope::of(ctx)?.now()))
    }

    async fn bot_id(&self) -> ID {
        NodeKind::Bot.id(self.0.bot_id)
    }

    #[graphql(complexity = 5)]
    async fn bot(&self, ctx: &Context<'_>) -> ApiResult<Option<Bot>> {
        bot::pointed_to(&Scope::of(ctx)?, BotId(self.0.bot_id)).await
    }

    async fn person_id(&self) -> ID {
        NodeKind::Person.id(self.0.subject)
    }

    #[graphql(complexity = 5)]
    async fn person(&self, ctx: &Context<'_>) -> ApiResult<Option<Person>> {
        person::pointed_to(&Scope::of(ctx)?, SubjectId(self.0.subject)).await
    }

    async fn turn_id(&self) -> ID {
        NodeKind::Turn.id(self.0.turn_id)
    }

    /// The message: with which the appeal was filed, or that led to the block.
    #[graphql(complexity = "5 + child_complexity")]
    async fn turn(&self, ctx: &Context<'_>) -> ApiResult<Option<Turn>> {
        turn::find(&Scope::of(ctx)?, TurnId(self.0.turn_id)).await
    }

    /// How the person stands now, and why.
    #[graphql(complexity = "5 + child_complexity")]
    async fn standing(&self, ctx: &Context<'_>) -> ApiResult<Option<Standing>> {
        standing::find(&Scope::of(ctx)?, BotId(self.0.bot_id), SubjectId(self.0.subject)).await
    }

    /// What the person appeals against, or what the block made of them.
    async fn against(&self) -> ApiResult<StandingState> {
        StandingState::read(&self.0.against)
    }

    /// What decided the block.
    async fn cause(&self) -> ApiResult<Option<BlockCause>> {
        self.0.cause.as_deref().map(BlockCause::read).transpose()
    }

    /// Score that led to the block.
    async fn score_milli(&self) -> Option<BigInt> {
        self.0.score.map(BigInt)
    }

    /// End of the block for a while.
    async fn until(&self) -> Option<DateTime<Utc>> {
        self.0.until
    }

    async fn policy_version(&self) -> Option<i32> {
        self.0.policy_version
    }

    /// Stays when it is taken back.
    async fn decision(&self) -> ApiResult<Option<CaseDecision>> {
        self.0.decision.as_deref().map(CaseDecision::read).transpose()
    }

    /// Operator who decided, or took the decision back.
    async fn decided_by(&self) -> Option<ID> {
        self.0.decided_by.map(|by| NodeKind::Operator.id(by))
    }

    async fn decided_at(&self) -> Option<DateTime<Utc>> {
        self.0.decided_at
    }

    /// Theirs.
    async fn reason(&self) -> Option<&str> {
        self.0.reason.as_deref()
    }

    async fn opened_at(&self) -> DateTime<Utc> {
        self.0.opened_at
    }

    /// Of its last event.
    async fn position(&self) -> At {
        self.0.updated_position.into()
    }

    /// What the person wrote to appeal; null without grounds, and once erased.
    #[graphql(guard = "Needs(Permission::ReadPersonal)", complexity = 5)]
    async fn appeal_text(&self, ctx: &Context<'_>) -> ApiResult<Option<String>> {
        let scope = Scope::of(ctx)?;
        scope.reads_personal("ModerationCase.appealText", NodeKind::Case.id(self.0.case_id)).await?;
        turn::open(&scope, self.0.appeal_body).await
    }

    /// The last messages of the conversation before the case, newest first: 10, at most 50. Refused ones
    /// are among them; their texts are for those who may read them.
    #[graphql(complexity = "context_cost(first, child_complexity)")]
    async fn context(&self, ctx: &Context<'_>, first: Option<i32>) -> ApiResult<Vec<Turn>> {
        let first = first.unwrap_or(CONTEXT.0);
        if !(0..=CONTEXT.1).contains(&first) {
            return Err(ApiError::bad_input(format!("the context has 0 to {} messages", CONTEXT.1)));
        }
        let scope = Scope::of(ctx)?;
        let Some(about) = turn::find(&scope, TurnId(self.0.turn_id)).await? else { return Ok(Vec::new()) };
        let filter = turn::of_conversation(ConversationId(about.0.conversation));
        let before = Position(self.0.created_position);
        let page = Page { after: Some(before), ..Page::newest(first.into()) };
        let rows = turns_page(&scope.read("turns").await?, &filter, page).await?;
        Ok(rows.into_iter().map(Turn).collect())
    }

    /// The messages that moved the person's ladder, newest first; `offending` leaves clean ones out.
    #[graphql(complexity = "super::page_cost(first, None) * child_complexity")]
    async fn scorings(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        offending: Option<bool>,
    ) -> ApiResult<List<Scoring>> {
        let filter =
            ScoringFilter { standing: Some(self.0.standing_id), offending, ..ScoringFilter::default() };
        standing::scorings(&Scope::of(ctx)?, filter, Slice { first, after, ..Slice::default() }).await
    }
}

/// A case of the caller's workspace.
async fn find(scope: &Scope<'_>, id: Uuid) -> ApiResult<Option<ModerationCase>> {
    let read = scope.read("moderation").await?;
    let Some(row) = botledger_projections::case(&read, id).await? else { return Ok(None) };
    Ok(bot::find(&scope.live(), BotId(row.bot_id)).await?.map(|_| ModerationCase(row)))
}

/// Which cases; everything given must hold.
#[derive(Default, InputObject)]
struct ModerationQueueFilter {
    bot_id: Option<ID>,
    person_id: Option<ID>,
    /// Any of these.
    kinds: Option<Vec<CaseKind>>,
    /// Any of these; those that wait for a decision when null.
    statuses: Option<Vec<CaseStatus>>,
}

#[derive(Default)]
pub(crate) struct ModerationQuery;

#[Object]
impl ModerationQuery {
    /// Cases that wait for a decision, newest first; others by `statuses`. With `asOf` as they were then.
    #[graphql(
        guard = "Needs(Permission::ReadOperations)",
        complexity = "super::past_cost(as_of.is_some()) + super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the filter, the moment and the position")]
    async fn moderation_queue(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ModerationQueueFilter>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<List<ModerationCase>> {
        let scope = Scope::then(ctx, as_of).await?;
        let paging = Slice { first, after, last, before }.of("moderationQueue")?;
        let filter = filter.unwrap_or_default();
        let wanted = filter.bot_id.as_ref().map(|id| NodeKind::Bot.parse(id)).transpose()?;
        let statuses = filter.statuses.unwrap_or_else(|| vec![CaseStatus::Open, CaseStatus::Undone]);
        scope.at_least("moderation", min_position).await?;
        let filter = CaseFilter {
            bots: standing::own_bots(&scope, wanted).await?,
            subject: filter.person_id.as_ref().map(|id| NodeKind::Person.parse(id)).transpose()?,
            kinds: filter.kinds.map(|kinds| kinds.into_iter().map(|kind| kind.wire().to_owned()).collect()),
            statuses: Some(statuses.into_iter().map(|status| status.wire().to_owned()).collect()),
            now: scope.now(),
        };
        let rows = cases_page(&scope.read("moderation").await?, &filter, paging.page).await?;
        Ok(paging.connect(rows, EmptyFields, |row| row.created_position, ModerationCase))
    }

    /// One case; with `asOf` as it was then.
    #[graphql(guard = "Needs(Permission::ReadOperations)")]
    async fn moderation_case(
        &self,
        ctx: &Context<'_>,
        id: ID,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<ModerationCase>> {
        let scope = Scope::then(ctx, as_of).await?;
        let id = NodeKind::Case.parse(&id)?;
        scope.at_least("moderation", min_position).await?;
        find(&scope, id).await
    }
}

/// What to decide.
#[derive(Clone, Copy, PartialEq, Eq, Enum)]
enum ModerationAction {
    /// Refuse their messages, until a moment or until lifted. Upholds the score's blocks.
    Block,
    /// Take their messages again. Lifts the score's blocks with their points, and closes appeals.
    Unblock,
    /// Everything held against them goes.
    GrantAppeal,
    /// Everything stays as it is.
    DenyAppeal,
    /// Take the last decision about them back.
    Undo,
}

/// What to decide about which cases.
#[derive(InputObject)]
struct ModerationDecideInput {
    /// 1 to 100. Several about the same person and bot are decided together.
    case_ids: Vec<ID>,
    action: ModerationAction,
    /// 1 to 500 characters; may be left out only to grant an appeal.
    reason: Option<String>,
    /// End of a block.
    until: Option<DateTime<Utc>>,
    /// With an `idempotencyKey` each decision is carried out once; `expectedVersion` is not for many.
    conditions: Option<Conditions>,
}

impl ModerationDecideInput {
    fn decision(&self) -> Result<ModeratorDecision, UserError> {
        let reason = self.reason.as_deref().map(reason).transpose()?;
        if self.until.is_some() && self.action != ModerationAction::Block {
            return Err(UserError::new("BAD_INPUT", "only a block has an end"));
        }
        if self.action == ModerationAction::GrantAppeal {
            return Ok(ModeratorDecision::GrantAppeal { reason });
        }
        let reason = reason.ok_or_else(|| UserError::new("BAD_INPUT", "give a reason"))?;
        Ok(match self.action {
            ModerationAction::Block => ModeratorDecision::Block { reason, until: self.until },
            ModerationAction::Unblock => ModeratorDecision::Unblock { reason },
            ModerationAction::GrantAppeal => ModeratorDecision::GrantAppeal { reason: Some(reason) },
            ModerationAction::DenyAppeal => ModeratorDecision::DenyAppeal { reason },
            ModerationAction::Undo => ModeratorDecision::Undo { reason },
        })
    }
}

/// What became of one case.
#[derive(SimpleObject)]
struct ModerationOutcome {
    case_id: ID,
    /// As it is now; null when its read model is late, or there is no such case.
    case: Option<ModerationCase>,
    /// Of the decision; 0 when it was so already, null when it was refused.
    position: Option<At>,
    /// Why it was not decided; empty when it was.
    user_errors: Vec<UserError>,
}

/// Answer of a decision about many cases: each stands or falls by itself.
#[derive(SimpleObject)]
struct ModerationDecidePayload {
    /// One a case, in the order asked for.
    outcomes: Vec<ModerationOutcome>,
    /// Of the last decision; 0 when all was so already. Give it to queries as `minPosition`.
    position: Option<At>,
    /// Why nothing was decided at all.
    user_errors: Vec<UserError>,
}

#[derive(Default)]
pub(crate) struct ModerationMutation;

#[Object]
impl ModerationMutation {
    /// Decides about up to 100 cases at once. One that is refused keeps none of the others back.
    #[graphql(guard = "Acts(Permission::Moderate)", complexity = "input.case_ids.len() * child_complexity")]
    async fn moderation_decide(
        &self,
        ctx: &Context<'_>,
        input: ModerationDecideInput,
    ) -> ApiResult<ModerationDecidePayload> {
        let scope = Scope::of(ctx)?;
        if input.case_ids.is_empty() || input.case_ids.len() > MOST {
            return Err(ApiError::bad_input(format!("1 to {MOST} cases at once")));
        }
        let ids = input.case_ids.iter().map(|id| NodeKind::Case.parse(id));
        let ids = ids.collect::<ApiResult<Vec<Uuid>>>()?;
        let decision = match input.decision() {
            Ok(decision) => decision,
            Err(error) => {
                let user_errors = vec![error];
                return Ok(ModerationDecidePayload { outcomes: Vec::new(), position: None, user_errors });
            }
        };
        let caller = scope.caller(input.conditions)?;
        let mut cases = Vec::with_capacity(ids.len());
        for id in ids {
            cases.push((id, find(&scope, id).await?));
        }
        let mut targets: Vec<(BotId, SubjectId)> = Vec::new();
        for case in cases.iter().filter_map(|(_, case)| case.as_ref()) {
            let target = target(&case.0);
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        let decided = scope.services.app.standings.decide_in_bulk(&caller, &targets, &decision).await;
        let decided = decided.map_err(ApiError::unavailable)?;
        let mut told = Vec::with_capacity(decided.len());
        for Decided { bot, subject, outcome: result } in decided {
            let result = match outcome(&scope, "moderation.decide", result).await {
                Ok(Ok(executed)) => Ok(executed.receipt.position),
                Ok(Err(refusal)) => Err(refusal),
                // The others were decided all the same.
                Err(failure) => Err(UserError::from(failure)),
            };
            told.push(((bot, subject), result));
        }
        let position = told.iter().filter_map(|(_, result)| result.as_ref().ok().copied()).max();
        let mut outcomes = Vec::with_capacity(cases.len());
        for (id, case) in cases {
            let case_id = NodeKind::Case.id(id);
            let result = case.as_ref().map(|case| target(&case.0));
            let result = result.and_then(|target| told.iter().find(|(one, _)| *one == target));
            outcomes.push(match result.map(|(_, result)| result) {
                Some(Ok(position)) => ModerationOutcome {
                    case_id,
                    case: scope.written("moderation", *position, find(&scope, id)).await,
                    position: Some((*position).into()),
                    user_errors: Vec::new(),
                },
                Some(Err(refusal)) => {
                    ModerationOutcome { case_id, case, position: None, user_errors: vec![refusal.clone()] }
                }
                None => ModerationOutcome {
                    case_id,
                    case: None,
                    position: None,
                    user_errors: vec![UserError::from(ApiError::not_found("case"))],
                },
            });
        }
        Ok(ModerationDecidePayload { outcomes, position: position.map(At::from), user_errors: Vec::new() })
    }
}

fn target(case: &CaseRow) -> (BotId, SubjectId) {
    (BotId(case.bot_id), SubjectId(case.subject))
}
