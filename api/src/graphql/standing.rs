//! Standings: what people earned with a bot, who is blocked from it, and why.

use async_graphql::{Context, ID, InputObject, Object, SimpleObject, Subscription, connection::EmptyFields};
use botledger_domain::{
    BotId, SubjectId,
    operator::Permission,
    standing::{self as domain, Appealable, Explanation, Verdict},
};
use botledger_projections::{
    EventFilter, ScoringFilter, ScoringRow, StandingFilter, StandingRow, bot_ids, case, scorings_page,
    standing_as_of, standing_state_as_of, standings_page,
};
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use uuid::Uuid;

use super::{
    Acts, AsOf, Conditions, Needs, Scope, bot,
    error::{ApiError, ApiResult, outcome, reason},
    event::{Followed, follow},
    moderation::ModerationCase,
    or_refused,
    page::{List, Slice},
    payload,
    person::{self, Person},
    scalars::{At, BigInt, NodeKind, wire_enum},
};

wire_enum! {
    /// A rung of the ladder, from free to blocked.
    StandingState {
        /// Nothing held against them.
        Ok = "ok",
        /// Told to mind the task.
        Warned = "warned",
        /// Answered less often.
        Throttled = "throttled",
        /// Not answered until a moment.
        TempBlocked = "temp_blocked",
        /// Not answered until somebody lifts it.
        Blocked = "blocked",
    }
}

wire_enum! {
    /// What decided a block.
    BlockCause {
        /// A moderator.
        Moderator = "moderator",
        /// The score.
        Score = "score",
        /// One message that blocks at once.
        Severe = "severe",
    }
}

wire_enum! {
    /// What a message is held against its writer for.
    OffenceKind {
        /// Outside the bot's task.
        OffTopic = "off_topic",
        /// Too much at once, or the same again and again.
        Flood = "flood",
        /// Perhaps an attempt to turn the bot against its instructions.
        InjectionSuspected = "injection_suspected",
        /// Unwanted advertising.
        Spam = "spam",
        /// Surely an attempt to turn the bot against its instructions.
        InjectionConfident = "injection_confident",
        /// Unwelcome content, mild.
        CategoryLow = "category_low",
        /// Unwelcome content.
        CategoryMedium = "category_medium",
        /// Content that blocks at once and goes to a human.
        CategorySevere = "category_severe",
    }
}

wire_enum! {
    /// Where an offence's points go.
    ScoreLane {
        /// Halves within a day.
        Drift = "drift",
        /// Halves within three days.
        Violation = "violation",
    }
}

wire_enum! {
    /// What becomes of a person's next message.
    StandingVerdict {
        /// It is answered.
        Clear = "clear",
        /// It is answered, less often than others'.
        Throttled = "throttled",
        /// It is refused.
        Blocked = "blocked",
    }
}

wire_enum! {
    /// Whether a person can ask for a human decision.
    AppealChance {
        /// Now.
        Now = "now",
        /// One waits for a decision.
        Pending = "pending",
        /// Later: one was denied.
        Later = "later",
    }
}

fn milli(points: u64) -> BigInt {
    BigInt(i64::try_from(points).unwrap_or(i64::MAX))
}

/// A stretch of a message in code points, end exclusive.
#[derive(SimpleObject)]
pub(super) struct TextSpan {
    pub(super) start: u32,
    pub(super) end: u32,
}

/// What a detector found. The text itself is not in it.
#[derive(SimpleObject)]
struct Evidence {
    /// Who found it, for example `attack`.
    detector: String,
    /// By which of its rules.
    rule: String,
    /// Where; empty when it is the whole message.
    spans: Vec<TextSpan>,
}

/// An offence and what it cost.
#[derive(SimpleObject)]
struct ScoredOffence {
    kind: OffenceKind,
    /// Milli-points it added.
    points_milli: BigInt,
    lane: ScoreLane,
    /// How certainly it is off topic, in thousandths; only such offences have it.
    oos_permille: Option<i32>,
    /// The intent it came nearest to.
    intent: Option<String>,
    evidence: Vec<Evidence>,
}

impl ScoredOffence {
    fn read(offence: domain::ScoredOffence) -> ApiResult<Self> {
        let evidence = offence.evidence.into_iter().map(|found| Evidence {
            detector: found.detector,
            rule: found.rule,
            spans: found.spans.into_iter().map(|(start, end)| TextSpan { start, end }).collect(),
        });
        Ok(Self {
            kind: OffenceKind::read(offence.kind.as_ref())?,
            points_milli: milli(offence.points),
            lane: ScoreLane::read(offence.lane.as_ref())?,
            oos_permille: offence.oos_permille.map(i32::from),
            intent: offence.intent,
            evidence: evidence.collect(),
        })
    }
}

/// An offence that still weighs.
#[derive(SimpleObject)]
struct StandingContribution {
    turn_id: ID,
    scored_at: DateTime<Utc>,
    offence: ScoredOffence,
    /// What its points have faded to.
    live_milli: BigInt,
    policy_version: u32,
    /// Hash of the model; empty when none took part.
    model_version: String,
}

/// Thresholds in milli-points: reached on the way up, left below on the way down.
#[derive(SimpleObject)]
struct LadderThresholds {
    warn_milli: BigInt,
    throttle_milli: BigInt,
    temp_block_milli: BigInt,
    warn_exit_milli: BigInt,
    throttle_exit_milli: BigInt,
}

/// Why a person stands where they stand at a moment.
#[derive(SimpleObject)]
pub(crate) struct StandingExplanation {
    /// The moment.
    at: DateTime<Utc>,
    /// The rung of the ladder then.
    state: StandingState,
    /// What becomes of a message.
    verdict: StandingVerdict,
    /// Of the block that stands; of a moderator's and the score's, the one that lasts longer.
    block_cause: Option<BlockCause>,
    /// A moderator's words; the score has none.
    reason: Option<String>,
    /// End of the block; null when it has none.
    until: Option<DateTime<Utc>>,
    drift_milli: BigInt,
    violation_milli: BigInt,
    /// Both lanes together.
    score_milli: BigInt,
    thresholds: LadderThresholds,
    /// The three offences that weigh most, heaviest first.
    contributions: Vec<StandingContribution>,
    /// Of the last scoring; null before any.
    policy_version: Option<u32>,
    /// Hash of the model of the last scoring.
    model_version: Option<String>,
    /// Null when nothing restricts the person.
    appeal: Option<AppealChance>,
    /// When the next appeal may be filed, where that is later.
    appealable_from: Option<DateTime<Utc>>,
}

impl StandingExplanation {
    fn read(explanation: Explanation, at: DateTime<Utc>) -> ApiResult<Self> {
        let score_milli = milli(explanation.drift.saturating_add(explanation.violation));
        let (verdict, ban) = match explanation.verdict {
            Verdict::Clear => (StandingVerdict::Clear, None),
            Verdict::Throttled => (StandingVerdict::Throttled, None),
            Verdict::Blocked(ban) => (StandingVerdict::Blocked, Some(ban)),
        };
        let (appeal, appealable_from) = match explanation.appeal {
            None => (None, None),
            Some(Appealable::Now) => (Some(AppealChance::Now), None),
            Some(Appealable::Pending) => (Some(AppealChance::Pending), None),
            Some(Appealable::From(from)) => (Some(AppealChance::Later), Some(from)),
        };
        let contributions = explanation.contributions.into_iter().map(|heavy| {
            let domain::LiveContribution { contribution, live } = heavy;
            Ok(StandingContribution {
                turn_id: NodeKind::Turn.id(contribution.turn.uuid()),
                scored_at: contribution.scored_at,
                offence: ScoredOffence::read(contribution.offence)?,
                live_milli: milli(live),
                policy_version: contribution.policy_version,
                model_version: contribution.model_version,
            })
        });
        let rules = explanation.rules;
        Ok(Self {
            at,
            state: StandingState::read(explanation.state.as_ref())?,
            verdict,
            block_cause: ban.as_ref().map(|ban| BlockCause::read(ban.cause.as_ref())).transpose()?,
            until: ban.as_ref().and_then(|ban| ban.until),
            reason: ban.and_then(|ban| ban.reason).map(String::from),
            drift_milli: milli(explanation.drift),
            violation_milli: milli(explanation.violation),
            score_milli,
            thresholds: LadderThresholds {
                warn_milli: milli(rules.warn),
                throttle_milli: milli(rules.throttle),
                temp_block_milli: milli(rules.temp_block),
                warn_exit_milli: milli(rules.warn_exit),
                throttle_exit_milli: milli(rules.throttle_exit),
            },
            contributions: contributions.collect::<ApiResult<_>>()?,
            policy_version: explanation.policy_version,
            model_version: explanation.model_version,
            appeal,
            appealable_from,
        })
    }
}

pub(crate) struct Scoring(pub(crate) ScoringRow);

/// One message that moved a person's ladder: before, what it cost, after. Points are milli-points.
#[Object]
impl Scoring {
    /// Of its event.
    async fn position(&self) -> At {
        self.0.created_position.into()
    }

    async fn turn_id(&self) -> ID {
        NodeKind::Turn.id(self.0.turn_id)
    }

    async fn scored_at(&self) -> DateTime<Utc> {
        self.0.scored_at
    }

    /// What it was held against its writer for; none for a clean message, which takes points off.
    async fn offences(&self) -> ApiResult<Vec<ScoredOffence>> {
        let offences: Vec<domain::ScoredOffence> =
            serde_json::from_value(self.0.offences.clone()).map_err(ApiError::unavailable)?;
        offences.into_iter().map(ScoredOffence::read).collect()
    }

    /// What all offences added.
    async fn points_milli(&self) -> BigInt {
        BigInt(self.0.points)
    }

    async fn state_before(&self) -> ApiResult<StandingState> {
        StandingState::read(&self.0.state_before)
    }

    async fn drift_before_milli(&self) -> BigInt {
        BigInt(self.0.drift_before)
    }

    async fn violation_before_milli(&self) -> BigInt {
        BigInt(self.0.violation_before)
    }

    async fn state_after(&self) -> ApiResult<StandingState> {
        StandingState::read(&self.0.state_after)
    }

    async fn drift_after_milli(&self) -> BigInt {
        BigInt(self.0.drift_after)
    }

    async fn violation_after_milli(&self) -> BigInt {
        BigInt(self.0.violation_after)
    }

    async fn policy_version(&self) -> i32 {
        self.0.policy_version
    }

    /// Hash of the model; empty when none took part.
    async fn model_version(&self) -> &str {
        &self.0.model_version
    }

    /// Whether the policy was on trial: then it restricted nobody.
    async fn dry_run(&self) -> bool {
        self.0.dry_run
    }
}

/// Scorings of a standing, newest first.
pub(super) async fn scorings(
    scope: &Scope<'_>,
    filter: ScoringFilter,
    slice: Slice,
) -> ApiResult<List<Scoring>> {
    let paging = slice.of("scorings")?;
    let rows = scorings_page(&scope.read("moderation").await?, &filter, paging.page).await?;
    Ok(paging.connect(rows, EmptyFields, |row| row.created_position, Scoring))
}

pub(crate) struct Standing(StandingRow);

/// A person's standing with a bot as of its last event: what messages earned, what moderators decided.
/// Blocks may have run out and points faded since; `explanation` is about the moment.
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

    #[graphql(complexity = 5)]
    async fn person(&self, ctx: &Context<'_>) -> ApiResult<Option<Person>> {
        person::pointed_to(&Scope::of(ctx)?, SubjectId(self.0.subject)).await
    }

    /// The rung of the ladder; a moderator's block makes it blocked.
    async fn state(&self) -> ApiResult<StandingState> {
        if self.0.blocked { Ok(StandingState::Blocked) } else { StandingState::read(&self.0.ladder_state) }
    }

    /// By a moderator or the score.
    async fn blocked(&self) -> bool {
        self.0.blocked || matches!(self.0.ladder_state.as_str(), "temp_blocked" | "blocked")
    }

    /// What decided the block; a moderator where both did.
    async fn block_cause(&self) -> ApiResult<Option<BlockCause>> {
        if self.0.blocked {
            return Ok(Some(BlockCause::Moderator));
        }
        let cause = match self.0.ladder_state.as_str() {
            "blocked" => self.0.block_cause.as_deref(),
            "temp_blocked" => Some("score"),
            _ => None,
        };
        cause.map(BlockCause::read).transpose()
    }

    /// Why, as a moderator told the person; empty while none has.
    async fn reason(&self) -> &str {
        &self.0.reason
    }

    /// End of the block; null when it has none.
    async fn blocked_until(&self) -> Option<DateTime<Utc>> {
        if self.0.blocked { self.0.blocked_until } else { self.0.ladder_until }
    }

    async fn drift_milli(&self) -> BigInt {
        BigInt(self.0.drift)
    }

    async fn violation_milli(&self) -> BigInt {
        BigInt(self.0.violation)
    }

    /// Both lanes together.
    async fn score_milli(&self) -> BigInt {
        BigInt(self.0.drift.saturating_add(self.0.violation))
    }

    /// The rung on the ladder of a policy on trial, which restricts nobody.
    async fn trial_state(&self) -> ApiResult<StandingState> {
        StandingState::read(&self.0.trial_state)
    }

    async fn trial_score_milli(&self) -> BigInt {
        BigInt(self.0.trial_score)
    }

    /// So far.
    async fn warnings(&self) -> BigInt {
        BigInt(self.0.warnings)
    }

    /// Blocks for a while so far.
    async fn temp_blocks(&self) -> BigInt {
        BigInt(self.0.temp_blocks)
    }

    /// Of the last scoring; null before any.
    async fn policy_version(&self) -> Option<i32> {
        self.0.policy_version
    }

    /// Hash of the model of the last scoring; empty when none took part.
    async fn model_version(&self) -> Option<&str> {
        self.0.model_version.as_deref()
    }

    async fn scored_at(&self) -> Option<DateTime<Utc>> {
        self.0.scored_at
    }

    /// When the appeal was filed that waits for a decision.
    async fn appealed_at(&self) -> Option<DateTime<Utc>> {
        self.0.appealed_at
    }

    /// No appeal may be filed before: one was denied.
    async fn appealable_from(&self) -> Option<DateTime<Utc>> {
        self.0.appealable_from
    }

    /// Operator who decided last; null while only the score did.
    async fn changed_by(&self) -> Option<ID> {
        self.0.changed_by.map(|by| NodeKind::Operator.id(by))
    }

    async fn changed_at(&self) -> DateTime<Utc> {
        self.0.changed_at
    }

    /// Of its last event.
    async fn position(&self) -> At {
        self.0.updated_position.into()
    }

    /// Why the person stands where they stand now, or stood then with `asOf`.
    #[graphql(complexity = "20 + child_complexity")]
    async fn explanation(&self, ctx: &Context<'_>) -> ApiResult<StandingExplanation> {
        let scope = Scope::of(ctx)?;
        let (bot, subject) = (BotId(self.0.bot_id), SubjectId(self.0.subject));
        let Some(moment) = scope.moment else {
            let why = scope.services.app.standings.explain(bot, subject).await;
            return StandingExplanation::read(why.map_err(ApiError::unavailable)?, scope.now());
        };
        let then = standing_state_as_of(&scope.services.read, bot, subject, moment.position).await?;
        StandingExplanation::read(then.ok_or_else(ApiError::internal)?.explain(moment.at), moment.at)
    }

    /// The messages that moved the ladder, newest first; `offending` leaves clean ones out.
    #[graphql(complexity = "super::page_cost(first, None) * child_complexity")]
    async fn scorings(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        offending: Option<bool>,
        dry_run: Option<bool>,
    ) -> ApiResult<List<Scoring>> {
        let filter = ScoringFilter { standing: Some(self.0.standing_id), turn: None, offending, dry_run };
        scorings(&Scope::of(ctx)?, filter, Slice { first, after, ..Slice::default() }).await
    }
}

/// Bots of the caller's workspace: the wanted one, or all of them.
pub(super) async fn own_bots(scope: &Scope<'_>, wanted: Option<BotId>) -> ApiResult<Vec<Uuid>> {
    match wanted {
        Some(bot) => {
            Ok(bot::find(&scope.live(), bot).await?.map(|found| found.0.bot_id).into_iter().collect())
        }
        None => Ok(bot_ids(&scope.services.read, scope.identity()?.workspace).await?),
    }
}

pub(super) async fn find(scope: &Scope<'_>, bot: BotId, subject: SubjectId) -> ApiResult<Option<Standing>> {
    if bot::find(&scope.live(), bot).await?.is_none() {
        return Ok(None);
    }
    let read = &scope.services.read;
    let row = match scope.moment {
        None => botledger_projections::standing(read, bot, subject).await?,
        Some(moment) => standing_as_of(read, bot, subject, moment.position).await?,
    };
    Ok(row.map(Standing))
}

/// Which standings.
#[derive(Default, InputObject)]
struct StandingFilterInput {
    bot_id: Option<ID>,
    person_id: Option<ID>,
    /// By a moderator or the score.
    blocked: Option<bool>,
    /// Any of these; a moderator's block makes a person blocked.
    states: Option<Vec<StandingState>>,
    /// Whether an appeal waits for a decision.
    appealing: Option<bool>,
}

#[derive(Default)]
pub(crate) struct StandingQuery;

#[Object]
impl StandingQuery {
    /// A person's standing with a bot; with `asOf` as it was then. Null when nothing was ever scored or
    /// decided.
    #[graphql(guard = "Needs(Permission::ReadOperations)")]
    async fn standing(
        &self,
        ctx: &Context<'_>,
        bot_id: ID,
        person_id: ID,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<Standing>> {
        let scope = Scope::then(ctx, as_of).await?;
        let bot: BotId = NodeKind::Bot.parse(&bot_id)?;
        let subject: SubjectId = NodeKind::Person.parse(&person_id)?;
        scope.at_least("standings", min_position).await?;
        find(&scope, bot, subject).await
    }

    /// All standings, newest first; with `asOf` as they were then.
    #[graphql(
        guard = "Needs(Permission::ReadOperations)",
        complexity = "super::past_cost(as_of.is_some()) + super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the filter, the moment and the position")]
    async fn standings(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<StandingFilterInput>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<List<Standing>> {
        let scope = Scope::then(ctx, as_of).await?;
        let paging = Slice { first, after, last, before }.of("standings")?;
        let filter = filter.unwrap_or_default();
        scope.at_least("standings", min_position).await?;
        let wanted = filter.bot_id.as_ref().map(|id| NodeKind::Bot.parse(id)).transpose()?;
        let filter = StandingFilter {
            bots: own_bots(&scope, wanted).await?,
            subject: filter.person_id.as_ref().map(|id| NodeKind::Person.parse(id)).transpose()?,
            blocked: filter.blocked,
            states: filter
                .states
                .map(|states| states.into_iter().map(|state| state.wire().to_owned()).collect()),
            appealing: filter.appealing,
        };
        let rows = standings_page(&scope.read("standings").await?, &filter, paging.page).await?;
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

/// Whose appeal to grant.
#[derive(InputObject)]
struct StandingAppealGrantInput {
    bot_id: ID,
    person_id: ID,
    /// 1 to 500 characters; the person is told.
    reason: Option<String>,
    conditions: Option<Conditions>,
}

/// Whose appeal to deny, and why.
#[derive(InputObject)]
struct StandingAppealDenyInput {
    bot_id: ID,
    person_id: ID,
    /// 1 to 500 characters; the person is told.
    reason: String,
    conditions: Option<Conditions>,
}

/// About whom the last decision is taken back, and why.
#[derive(InputObject)]
struct StandingUndoInput {
    bot_id: ID,
    person_id: ID,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    conditions: Option<Conditions>,
}

/// The bot and the person that are meant.
fn whom(bot_id: &ID, person_id: &ID) -> ApiResult<(BotId, SubjectId)> {
    Ok((NodeKind::Bot.parse(bot_id)?, NodeKind::Person.parse(person_id)?))
}

type Executed = botledger_commands::execute::Executed<botledger_domain::standing::Standing>;

async fn done(
    scope: &Scope<'_>,
    bot: BotId,
    subject: SubjectId,
    executed: &Executed,
) -> ApiResult<StandingPayload> {
    let position = executed.receipt.position;
    let thing = scope.written("standings", position, find(scope, bot, subject)).await;
    Ok(StandingPayload::done(thing, position))
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
        let (bot, subject) = whom(&input.bot_id, &input.person_id)?;
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(StandingPayload, reason(&input.reason));
        let blocked = scope.services.app.standings.block(&caller, bot, subject, reason, input.until).await;
        let executed = or_refused!(StandingPayload, outcome(&scope, "standing.block", blocked).await?);
        done(&scope, bot, subject, &executed).await
    }

    /// Lets a person in again, whoever blocked them. A block of the score goes with its points.
    #[graphql(guard = "Acts(Permission::Moderate)")]
    async fn standing_unblock(
        &self,
        ctx: &Context<'_>,
        input: StandingUnblockInput,
    ) -> ApiResult<StandingPayload> {
        let scope = Scope::of(ctx)?;
        let (bot, subject) = whom(&input.bot_id, &input.person_id)?;
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(StandingPayload, reason(&input.reason));
        let unblocked = scope.services.app.standings.unblock(&caller, bot, subject, reason).await;
        let executed = or_refused!(StandingPayload, outcome(&scope, "standing.unblock", unblocked).await?);
        done(&scope, bot, subject, &executed).await
    }

    /// Grants the appeal that waits: score, ladder and blocks are gone.
    #[graphql(guard = "Acts(Permission::Moderate)")]
    async fn standing_appeal_grant(
        &self,
        ctx: &Context<'_>,
        input: StandingAppealGrantInput,
    ) -> ApiResult<StandingPayload> {
        let scope = Scope::of(ctx)?;
        let (bot, subject) = whom(&input.bot_id, &input.person_id)?;
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(StandingPayload, input.reason.as_deref().map(reason).transpose());
        let granted = scope.services.app.standings.grant_appeal(&caller, bot, subject, reason).await;
        let executed = or_refused!(StandingPayload, outcome(&scope, "standing.appeal_grant", granted).await?);
        done(&scope, bot, subject, &executed).await
    }

    /// Denies the appeal that waits: everything stays, and the next one may be filed in seven days.
    #[graphql(guard = "Acts(Permission::Moderate)")]
    async fn standing_appeal_deny(
        &self,
        ctx: &Context<'_>,
        input: StandingAppealDenyInput,
    ) -> ApiResult<StandingPayload> {
        let scope = Scope::of(ctx)?;
        let (bot, subject) = whom(&input.bot_id, &input.person_id)?;
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(StandingPayload, reason(&input.reason));
        let denied = scope.services.app.standings.deny_appeal(&caller, bot, subject, reason).await;
        let executed = or_refused!(StandingPayload, outcome(&scope, "standing.appeal_deny", denied).await?);
        done(&scope, bot, subject, &executed).await
    }

    /// Takes the last decision about a person back: what stood before it stands again, with what they
    /// earned since. A decision is taken back once.
    #[graphql(guard = "Acts(Permission::Moderate)")]
    async fn standing_undo(&self, ctx: &Context<'_>, input: StandingUndoInput) -> ApiResult<StandingPayload> {
        let scope = Scope::of(ctx)?;
        let (bot, subject) = whom(&input.bot_id, &input.person_id)?;
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(StandingPayload, reason(&input.reason));
        let undone = scope.services.app.standings.undo(&caller, bot, subject, reason).await;
        let executed = or_refused!(StandingPayload, outcome(&scope, "standing.undo", undone).await?);
        done(&scope, bot, subject, &executed).await
    }
}

/// A standing moved.
#[derive(SimpleObject)]
pub(crate) struct StandingChange {
    /// Of the event that moved it: give it as `after` to go on from here.
    position: At,
    /// For example `temporarily_blocked`.
    event_type: String,
    /// As it is now, which may be further on.
    standing: Option<Standing>,
    /// The case that the event opened for moderators, if any.
    case: Option<ModerationCase>,
}

#[derive(Default)]
pub(crate) struct StandingSubscription;

#[Subscription]
impl StandingSubscription {
    /// Every event of every standing after a position, each once and in order; from now on when it is
    /// null. `eventTypes` keeps to some, for example `appeal_filed` and `blocked`.
    #[graphql(guard = "Needs(Permission::ReadOperations)")]
    async fn standing_changed(
        &self,
        ctx: &Context<'_>,
        after: Option<At>,
        bot_id: Option<ID>,
        person_id: Option<ID>,
        event_types: Option<Vec<String>>,
    ) -> Result<BoxStream<'static, async_graphql::Result<StandingChange>>, ApiError> {
        let bot = bot_id.as_ref().map(|id| NodeKind::Bot.parse::<Uuid>(id)).transpose()?;
        let person = person_id.as_ref().map(|id| NodeKind::Person.parse::<Uuid>(id)).transpose()?;
        let filter = EventFilter {
            aggregate_type: Some("standing".to_owned()),
            event_types,
            ..EventFilter::default()
        };
        follow(ctx, after, filter, Permission::ReadOperations, move |followed: Followed| async move {
            let id = Uuid::try_parse(&followed.event.aggregate_id).map_err(ApiError::unavailable)?;
            let Followed { services, request, event } = followed;
            let scope = Scope { services: &services, request: &request, moment: None };
            for read_model in ["standings", "moderation"] {
                scope.at_least(read_model, Some(event.position.into())).await?;
            }
            let row = botledger_projections::standing_by_id(&services.read, id).await?;
            let passes = row.as_ref().is_some_and(|row| {
                bot.is_none_or(|bot| row.bot_id == bot) && person.is_none_or(|person| row.subject == person)
            });
            if !passes {
                return Ok(None);
            }
            let opened = case(&services.read, domain::case_of(id, event.sequence)).await?;
            Ok(Some(StandingChange {
                position: event.position.into(),
                event_type: event.event_type.clone(),
                standing: row.map(Standing),
                case: opened.map(ModerationCase),
            }))
        })
    }
}
