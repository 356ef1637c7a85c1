//! Turns: a message and what became of it.

use async_graphql::{
    Context, ID, InputObject, Json, Object, SimpleObject, Subscription, connection::Connection,
};
use botledger_commands::{BodyContent, Caller, CommandError, Fence, StepOutcome, TurnFailure};
use botledger_domain::{
    BodyId, BotId, ConversationId, SubjectId, TurnId, operator::Permission, policy::PolicyOwner as Owner,
    signal::Findings as Seen,
};
use botledger_projections::{EventFilter, TurnFilter, TurnRow, turn_as_of, turns_count, turns_page};
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;

use super::{
    Acts, AsOf, Conditions, Needs, Scope,
    bot::{self, Bot},
    error::{ApiError, ApiResult, UserError, outcome, reason},
    event::{Followed, follow},
    or_refused,
    page::{Cursor, Slice},
    payload,
    person::{self, Person},
    policy::{self, PolicyOwner, PolicyVersion},
    scalars::{At, BigInt, NodeKind, wire_enum},
    standing::TextSpan,
};

wire_enum! {
    /// How far a turn is.
    TurnPhase {
        /// Nobody decided yet.
        Received = "received",
        /// Through the gate; tokens are held for it.
        Admitted = "admitted",
        /// An answer exists.
        Answered = "answered",
        /// Refused; the person is being told.
        RefusalPending = "refusal_pending",
        /// No answer will exist; the person is being told.
        FailurePending = "failure_pending",
        /// The person has the answer.
        Delivered = "delivered",
        /// Refused, and the person knows.
        Refused = "refused",
        /// Without answer, and the person knows.
        Failed = "failed",
        /// Telegram would not take the answer.
        Undeliverable = "undeliverable",
        /// Sent, and nobody knows whether it arrived.
        OutcomeUnknown = "outcome_unknown",
    }
}

wire_enum! {
    /// What was asked for.
    AskKind {
        /// An answer of a model.
        Text = "text",
        /// A command of the bot.
        Command = "command",
        /// Something the bot cannot work with, such as a sticker.
        Unsupported = "unsupported",
        /// A button.
        Callback = "callback",
    }
}

wire_enum! {
    /// Who looks at messages.
    Detector {
        /// Prompt injection and jailbreaks.
        Attack = "attack",
        /// Advertising nobody asked for.
        Spam = "spam",
        /// Content categories.
        Category = "category",
        /// Personal data.
        PersonalData = "personal_data",
        /// Keys, tokens and passwords.
        Secret = "secret",
        /// Words the policy does not allow.
        BlockedWord = "blocked_word",
        /// How messages come rather than what they say.
        Behaviour = "behaviour",
        /// A moderation service or guard model.
        Moderation = "moderation",
    }
}

wire_enum! {
    /// How sure a detector is, or how bad it is.
    SignalLevel {
        /// It may be.
        Suspected = "suspected",
        /// It is, as far as a detector can know.
        Confident = "confident",
        /// Beyond doubt and so bad that a human has to look.
        Severe = "severe",
    }
}

/// One thing a detector saw. The text itself is not in it.
#[derive(SimpleObject)]
struct Signal {
    detector: Detector,
    /// By which of its rules; of a blocked word its number in the policy, from 1.
    rule: String,
    level: SignalLevel,
    score_permille: u16,
    /// Where; empty when it is the whole message.
    spans: Vec<TextSpan>,
}

/// A detector's or category's score.
#[derive(SimpleObject)]
struct DetectorScore {
    /// A detector, or a category such as `H2`.
    name: String,
    score_permille: u16,
}

/// A model that was asked.
#[derive(SimpleObject)]
struct DetectorModel {
    /// The detector.
    name: String,
    version: String,
}

/// What the detectors saw in a message: rules, places and scores, never its text.
#[derive(SimpleObject)]
struct Findings {
    /// The policy's intent it came nearest to; null when the policy names none.
    intent: Option<String>,
    /// How certainly it is none of them, in thousandths.
    oos_permille: Option<u16>,
    /// How the intent was found: `ngram`, or `embedding` with the model.
    intent_method: Option<String>,
    signals: Vec<Signal>,
    /// Also of what raised no signal.
    scores: Vec<DetectorScore>,
    models: Vec<DetectorModel>,
    /// Detectors that gave no answer.
    unavailable: Vec<String>,
}

impl Findings {
    fn read(seen: Seen) -> ApiResult<Self> {
        let signals = seen.signals.into_iter().map(|signal| {
            Ok(Signal {
                detector: Detector::read(signal.detector.as_ref())?,
                rule: signal.rule,
                level: SignalLevel::read(signal.level.as_ref())?,
                score_permille: signal.score_permille,
                spans: signal
                    .spans
                    .iter()
                    .map(|span| TextSpan { start: span.start, end: span.end })
                    .collect(),
            })
        });
        let (intent, rest) =
            seen.intent.map(|found| (found.intent, (found.oos_permille, found.method))).unzip();
        let (oos_permille, intent_method) = rest.unzip();
        Ok(Self {
            intent,
            oos_permille,
            intent_method,
            signals: signals.collect::<ApiResult<_>>()?,
            scores: seen
                .scores
                .into_iter()
                .map(|(name, score_permille)| DetectorScore { name, score_permille })
                .collect(),
            models: seen.models.into_iter().map(|(name, version)| DetectorModel { name, version }).collect(),
            unavailable: seen.unavailable,
        })
    }
}

pub(crate) struct TurnPolicy {
    owner: Owner,
    version: i64,
    dry_run: bool,
    bot: BotId,
}

/// The policy that judged a message.
#[Object]
impl TurnPolicy {
    async fn owner(&self) -> PolicyOwner {
        self.owner.into()
    }

    /// Of that owner's policy, from 1; 0 for the built-in one.
    async fn version(&self) -> i32 {
        i32::try_from(self.version).unwrap_or(i32::MAX)
    }

    /// Whether it only watched.
    async fn dry_run(&self) -> bool {
        self.dry_run
    }

    /// That version; null for the built-in one.
    #[graphql(complexity = "5 + child_complexity")]
    async fn published(&self, ctx: &Context<'_>) -> ApiResult<Option<PolicyVersion>> {
        policy::of_owner(&Scope::of(ctx)?, self.owner, self.bot, self.version).await
    }
}

pub(crate) struct Turn(pub(crate) TurnRow);

/// One message and what became of it.
#[Object]
impl Turn {
    /// `turn:…`
    pub(super) async fn id(&self) -> ID {
        NodeKind::Turn.id(self.0.turn_id)
    }

    /// The bot it was written to.
    #[graphql(complexity = 5)]
    async fn bot(&self, ctx: &Context<'_>) -> ApiResult<Option<Bot>> {
        bot::pointed_to(&Scope::of(ctx)?, BotId(self.0.bot_id)).await
    }

    async fn bot_id(&self) -> ID {
        NodeKind::Bot.id(self.0.bot_id)
    }

    /// Who wrote.
    #[graphql(complexity = 5)]
    async fn person(&self, ctx: &Context<'_>) -> ApiResult<Option<Person>> {
        person::pointed_to(&Scope::of(ctx)?, SubjectId(self.0.subject)).await
    }

    async fn person_id(&self) -> ID {
        NodeKind::Person.id(self.0.subject)
    }

    async fn conversation_id(&self) -> ID {
        NodeKind::Conversation.id(self.0.conversation)
    }

    /// Telegram's id of the update.
    async fn update_id(&self) -> BigInt {
        BigInt(self.0.update_id)
    }

    async fn ask(&self) -> ApiResult<AskKind> {
        AskKind::read(&self.0.ask)
    }

    /// Name of the command, without slash.
    async fn command(&self) -> Option<&str> {
        self.0.command.as_deref()
    }

    async fn phase(&self) -> ApiResult<TurnPhase> {
        TurnPhase::read(&self.0.phase)
    }

    /// Whether something is still to be done.
    async fn open(&self) -> bool {
        self.0.open
    }

    /// Number of the session it belongs to.
    async fn session(&self) -> Option<i32> {
        self.0.session
    }

    /// For example `rate_limited` or `quota_exceeded`.
    async fn refusal_kind(&self) -> Option<&str> {
        self.0.refusal_kind.as_deref()
    }

    /// The refusal with its figures.
    async fn refusal(&self) -> Option<Json<serde_json::Value>> {
        self.0.refusal.clone().map(Json)
    }

    /// The policy that judged it; null while nothing looked at it.
    async fn policy(&self) -> ApiResult<Option<TurnPolicy>> {
        let Some(owner) = &self.0.policy_owner else { return Ok(None) };
        Ok(Some(TurnPolicy {
            owner: owner.parse().map_err(ApiError::broken)?,
            version: self.0.policy_version.unwrap_or_default(),
            dry_run: self.0.policy_dry_run.unwrap_or_default(),
            bot: BotId(self.0.bot_id),
        }))
    }

    /// What the detectors saw in it; null while nothing looked at it.
    async fn findings(&self) -> ApiResult<Option<Findings>> {
        let Some(findings) = self.0.findings.clone() else { return Ok(None) };
        Findings::read(serde_json::from_value(findings).map_err(ApiError::broken)?).map(Some)
    }

    /// Detectors that saw something, each once.
    async fn flagged(&self) -> ApiResult<Vec<Detector>> {
        self.0.flagged.iter().map(|detector| Detector::read(detector)).collect()
    }

    async fn scored_at(&self) -> Option<DateTime<Utc>> {
        self.0.scored_at
    }

    /// Code of the failure, for example `LLM_UNAVAILABLE`.
    async fn failure(&self) -> Option<&str> {
        self.0.failure.as_deref()
    }

    async fn provider(&self) -> Option<&str> {
        self.0.provider.as_deref()
    }

    async fn model(&self) -> Option<&str> {
        self.0.model.as_deref()
    }

    /// Tokens held at the gate.
    async fn reserved_tokens(&self) -> Option<BigInt> {
        self.0.reserved_tokens.map(BigInt)
    }

    async fn prompt_tokens(&self) -> Option<BigInt> {
        self.0.prompt_tokens.map(BigInt)
    }

    async fn completion_tokens(&self) -> Option<BigInt> {
        self.0.completion_tokens.map(BigInt)
    }

    /// Whether the tokens were estimated, because the model told none.
    async fn estimated(&self) -> Option<bool> {
        self.0.estimated
    }

    /// `stop`, `length` or `cancelled`.
    async fn finish(&self) -> Option<&str> {
        self.0.finish.as_deref()
    }

    /// From asking the model to its last text, milliseconds.
    async fn latency_ms(&self) -> Option<BigInt> {
        self.0.latency_ms.map(BigInt)
    }

    /// Telegram's ids of the delivered messages.
    async fn message_ids(&self) -> Vec<BigInt> {
        self.0.message_ids.iter().copied().map(BigInt).collect()
    }

    /// When the person wrote, by Telegram's clock.
    async fn sent_at(&self) -> DateTime<Utc> {
        self.0.sent_at
    }

    async fn received_at(&self) -> DateTime<Utc> {
        self.0.received_at
    }

    async fn decided_at(&self) -> Option<DateTime<Utc>> {
        self.0.decided_at
    }

    async fn answered_at(&self) -> Option<DateTime<Utc>> {
        self.0.answered_at
    }

    async fn ended_at(&self) -> Option<DateTime<Utc>> {
        self.0.ended_at
    }

    /// Of its last event.
    async fn position(&self) -> At {
        self.0.updated_position.into()
    }

    /// What the person wrote; null once erased.
    #[graphql(guard = "Needs(Permission::ReadPersonal)", complexity = 5)]
    async fn prompt(&self, ctx: &Context<'_>) -> ApiResult<Option<String>> {
        let scope = Scope::of(ctx)?;
        scope.reads_personal("Turn.prompt", NodeKind::Turn.id(self.0.turn_id)).await?;
        open(&scope, Some(self.0.prompt_body)).await
    }

    /// What was answered; null before, and once erased.
    #[graphql(guard = "Needs(Permission::ReadPersonal)", complexity = 5)]
    async fn reply(&self, ctx: &Context<'_>) -> ApiResult<Option<String>> {
        let scope = Scope::of(ctx)?;
        scope.reads_personal("Turn.reply", NodeKind::Turn.id(self.0.turn_id)).await?;
        open(&scope, self.0.reply_body).await
    }
}

pub(super) async fn open(scope: &Scope<'_>, body: Option<uuid::Uuid>) -> ApiResult<Option<String>> {
    let Some(body) = body else { return Ok(None) };
    let content = scope.services.app.turns.open_body(BodyId(body)).await.map_err(ApiError::unavailable)?;
    Ok(content.and_then(|content| match content {
        BodyContent::Update { text, .. } => text,
        BodyContent::Reply { text } | BodyContent::Appeal { text } => Some(text),
    }))
}

/// A turn of the caller's workspace.
pub(super) async fn find(scope: &Scope<'_>, turn: TurnId) -> ApiResult<Option<Turn>> {
    let workspace = scope.identity()?.workspace.uuid();
    let read = &scope.services.read;
    let row = match scope.moment {
        None => botledger_projections::turn(read, turn).await?,
        Some(moment) => turn_as_of(read, turn, moment.position).await?,
    };
    Ok(row.filter(|row| row.workspace == workspace).map(Turn))
}

/// Which turns; everything given must hold.
#[derive(Default, InputObject)]
struct TurnFilterInput {
    bot_id: Option<ID>,
    person_id: Option<ID>,
    conversation_id: Option<ID>,
    /// Any of these.
    phases: Option<Vec<TurnPhase>>,
    /// Any of these, for example `quota_exceeded`.
    refusal_kinds: Option<Vec<String>>,
    open: Option<bool>,
    /// Any of these saw something.
    flagged: Option<Vec<Detector>>,
    /// Nearest to this intent of its policy.
    intent: Option<String>,
    /// None of the policy's intents, at least so certainly, in thousandths.
    oos_from_permille: Option<u16>,
    /// Judged by a policy that only watched, or by one in force.
    dry_run: Option<bool>,
    /// At or after.
    received_from: Option<DateTime<Utc>>,
    /// Before.
    received_until: Option<DateTime<Utc>>,
}

impl TurnFilterInput {
    fn read(&self, scope: &Scope<'_>) -> ApiResult<TurnFilter> {
        let id = |kind: NodeKind, id: &Option<ID>| id.as_ref().map(|id| kind.parse(id)).transpose();
        Ok(TurnFilter {
            workspace: Some(scope.identity()?.workspace.uuid()),
            bot: id(NodeKind::Bot, &self.bot_id)?,
            subject: id(NodeKind::Person, &self.person_id)?,
            conversation: id(NodeKind::Conversation, &self.conversation_id)?,
            phases: self
                .phases
                .as_ref()
                .map(|phases| phases.iter().map(|phase| phase.wire().to_owned()).collect()),
            refusal_kinds: self.refusal_kinds.clone(),
            open: self.open,
            flagged: self
                .flagged
                .as_ref()
                .map(|detectors| detectors.iter().map(|one| one.wire().to_owned()).collect()),
            intent: self.intent.clone(),
            oos_from: self.oos_from_permille.map(i32::from),
            dry_run: self.dry_run,
            received_from: self.received_from,
            received_until: self.received_until,
        })
    }
}

pub(crate) struct TurnTotals(TurnFilter);

/// Counts a list's rows only when asked to.
#[Object]
impl TurnTotals {
    /// How many turns pass the filter.
    #[graphql(complexity = 50)]
    async fn total_count(&self, ctx: &Context<'_>) -> ApiResult<BigInt> {
        let read = Scope::of(ctx)?.read("turns").await?;
        Ok(BigInt(turns_count(&read, &self.0).await?))
    }
}

#[derive(Default)]
pub(crate) struct TurnQuery;

#[Object]
impl TurnQuery {
    /// One turn; with `asOf` as it was then.
    #[graphql(guard = "Needs(Permission::ReadOperations)")]
    async fn turn(
        &self,
        ctx: &Context<'_>,
        id: ID,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<Turn>> {
        let scope = Scope::then(ctx, as_of).await?;
        let turn: TurnId = NodeKind::Turn.parse(&id)?;
        scope.at_least("turns", min_position).await?;
        find(&scope, turn).await
    }

    /// All turns, newest first; with `asOf` as they were then.
    #[graphql(
        guard = "Needs(Permission::ReadOperations)",
        complexity = "super::past_cost(as_of.is_some()) + super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the filter, the moment and the position")]
    async fn turns(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<TurnFilterInput>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Connection<Cursor, Turn, TurnTotals>> {
        let scope = Scope::then(ctx, as_of).await?;
        let paging = Slice { first, after, last, before }.of("turns")?;
        let filter = filter.unwrap_or_default().read(&scope)?;
        scope.at_least("turns", min_position).await?;
        let rows = turns_page(&scope.read("turns").await?, &filter, paging.page).await?;
        Ok(paging.connect(rows, TurnTotals(filter), |row| row.created_position, Turn))
    }
}

payload! {
    /// Answer of a mutation of a turn.
    TurnPayload {
        /// As it is now.
        turn: Turn
    }
}

/// A turn to give up, and why.
#[derive(InputObject)]
struct TurnFailInput {
    turn_id: ID,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    conditions: Option<Conditions>,
}

#[derive(Default)]
pub(crate) struct TurnMutation;

#[Object]
impl TurnMutation {
    /// Gives an open turn up before it has an answer: what was held for it is given back, and the
    /// person is told.
    #[graphql(guard = "Acts(Permission::ManageBots)")]
    async fn turn_fail(&self, ctx: &Context<'_>, input: TurnFailInput) -> ApiResult<TurnPayload> {
        let scope = Scope::of(ctx)?;
        let turn: TurnId = NodeKind::Turn.parse(&input.turn_id)?;
        let caller = scope.caller(input.conditions)?;
        let Some(known) = find(&scope, turn).await? else { return Err(ApiError::not_found("turn")) };
        let reason = or_refused!(TurnPayload, reason(&input.reason));
        let failed = fail(&scope, &caller, turn, BotId(known.0.bot_id), reason.as_str()).await;
        let step = or_refused!(TurnPayload, outcome(&scope, "turn.fail", failed).await?);
        let StepOutcome::Done(receipt) = step else {
            return Ok(TurnPayload::refused(UserError::new(
                "TURN_TOO_LATE",
                "this turn has its answer already",
            )));
        };
        let position = receipt.position;
        let thing = scope.written("turns", position, find(&scope, turn)).await;
        Ok(TurnPayload::done(thing, position))
    }
}

async fn fail(
    scope: &Scope<'_>,
    caller: &Caller,
    turn: TurnId,
    bot: BotId,
    reason: &str,
) -> Result<StepOutcome, CommandError<botledger_domain::turn::TurnError>> {
    let app = &scope.services.app;
    let state = app.bots.get(caller, bot).await.map_err(|error| match error {
        CommandError::NotFound { what } => CommandError::NotFound { what },
        CommandError::Broken { source } => CommandError::Broken { source },
        other => CommandError::Unavailable { source: Box::new(other) },
    })?;
    let failure =
        TurnFailure { code: "GIVEN_UP_BY_OPERATOR".to_owned(), detail: reason.to_owned(), used: None };
    app.turns.fail(caller, turn, Fence { epoch: state.lease_epoch }, failure).await
}

/// A turn moved.
#[derive(SimpleObject)]
pub(crate) struct TurnChange {
    /// Of the event that moved it: give it as `after` to go on from here.
    position: At,
    /// For example `reply_delivered`.
    event_type: String,
    /// As it is now, which may be further on.
    turn: Option<Turn>,
}

#[derive(Default)]
pub(crate) struct TurnSubscription;

#[Subscription]
impl TurnSubscription {
    /// Every step of every turn after a position, each once and in order; from now on when it is null.
    #[graphql(guard = "Needs(Permission::ReadOperations)")]
    async fn turn_changed(
        &self,
        ctx: &Context<'_>,
        after: Option<At>,
        bot_id: Option<ID>,
    ) -> Result<BoxStream<'static, async_graphql::Result<TurnChange>>, ApiError> {
        let bot = bot_id.as_ref().map(|id| NodeKind::Bot.parse::<uuid::Uuid>(id)).transpose()?;
        let filter = EventFilter { aggregate_type: Some("turn".to_owned()), ..EventFilter::default() };
        follow(ctx, after, filter, Permission::ReadOperations, move |followed: Followed| async move {
            let turn = TurnId::parse(&followed.event.aggregate_id).map_err(ApiError::unavailable)?;
            let Followed { services, request, event } = followed;
            let scope = Scope { services: &services, request: &request, moment: None };
            scope.at_least("turns", Some(event.position.into())).await?;
            let turn = find(&scope, turn).await?;
            // An update that needs no answer is in the event log only.
            let passes = turn.as_ref().is_some_and(|turn| bot.is_none_or(|bot| turn.0.bot_id == bot));
            Ok(passes.then(|| TurnChange {
                position: event.position.into(),
                event_type: event.event_type.clone(),
                turn,
            }))
        })
    }
}

/// Turns of a conversation belong to who may see it.
pub(super) fn of_conversation(conversation: ConversationId) -> TurnFilter {
    TurnFilter { conversation: Some(conversation.uuid()), ..TurnFilter::default() }
}
