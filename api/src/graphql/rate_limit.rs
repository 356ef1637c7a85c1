//! Rate limits: what is left of a subject's, and operators' exceptions.

use async_graphql::{Context, Enum, ID, InputObject, Object, SimpleObject, connection::EmptyFields};
use botledger_commands::{LimitState, RateUnit as Unit};
use botledger_domain::{
    BotId, ConversationId, OperatorId, SubjectId,
    operator::Permission,
    rate_limit::{RateRule, RateSubject, RateSubjectKind as Kind},
};
use botledger_projections::{RateOverrideRow, rate_override, rate_override_as_of, rate_overrides_page};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Acts, AsOf, Conditions, Needs, Scope,
    bot::{self, RateLimit},
    error::{ApiError, ApiResult, looked, outcome, reason},
    operator, or_refused,
    page::{List, Slice},
    payload,
    scalars::{At, BigInt, NodeKind},
};

/// Kinds of subjects whose pace can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "Kind")]
pub(crate) enum RateSubjectKind {
    /// A person with a bot.
    User,
    /// A chat with a bot.
    Chat,
    /// A bot.
    Bot,
    /// The workspace: messages to all its bots.
    Workspace,
    /// The workspace's requests to the API.
    Api,
    /// A network address: an IPv4 address, or an IPv6 network of 64 bits.
    Ip,
    /// A person who runs the platform.
    Operator,
    /// A key of other software.
    ApiKey,
    /// A part of the workspace.
    Team,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "Unit")]
pub(crate) enum RateUnit {
    /// Messages or API requests.
    Requests,
    /// Model tokens, of prompt and answer.
    Tokens,
    /// Calls under way at the same time.
    Parallel,
}

/// Whose pace.
#[derive(InputObject)]
struct RateSubjectInput {
    kind: RateSubjectKind,
    /// `person:…` of a USER, `conversation:…` of a CHAT, `bot:…` of a BOT, `operator:…` of an OPERATOR; an
    /// address of an IP; the name of an API_KEY or a TEAM. Nothing for WORKSPACE and API: it is the
    /// caller's.
    id: Option<ID>,
    /// The bot of a USER or a CHAT.
    bot_id: Option<ID>,
}

/// One limit as it stands.
#[derive(SimpleObject)]
pub(crate) struct RateLimitState {
    unit: RateUnit,
    /// The most at once.
    limit: BigInt,
    /// What of that is left.
    remaining: BigInt,
    /// What comes back in a minute; null for parallel calls, which come back when they end.
    per_minute: Option<BigInt>,
    /// When all of it is there again if nothing more is taken.
    resets_at: DateTime<Utc>,
}

fn big(number: u64) -> BigInt {
    BigInt(i64::try_from(number).unwrap_or(i64::MAX))
}

impl From<LimitState> for RateLimitState {
    fn from(state: LimitState) -> Self {
        Self {
            unit: state.unit.into(),
            limit: big(state.limit),
            remaining: big(state.remaining),
            per_minute: state.per_minute.map(big),
            resets_at: state.resets_at,
        }
    }
}

pub(crate) struct RateOverride(RateOverrideRow);

impl RateOverride {
    fn rule(&self) -> ApiResult<RateRule> {
        serde_json::from_value(self.0.rule.clone()).map_err(ApiError::broken)
    }

    /// The ids inside a subject's id.
    fn uuid(&self, part: usize) -> Option<Uuid> {
        Uuid::try_parse(self.0.subject_id.split('/').nth(part)?).ok()
    }

    fn kind_is(&self, kind: Kind) -> bool {
        self.0.subject_kind == kind.as_ref()
    }
}

/// What an operator said about the pace of a subject; stays when it is removed or has run out.
#[Object]
impl RateOverride {
    async fn kind(&self) -> ApiResult<RateSubjectKind> {
        let kind: Kind = self.0.subject_kind.parse().map_err(ApiError::broken)?;
        Ok(kind.into())
    }

    /// The person of a USER.
    async fn person_id(&self) -> Option<ID> {
        self.uuid(1).filter(|_| self.kind_is(Kind::User)).map(|id| NodeKind::Person.id(id))
    }

    /// The conversation of a CHAT.
    async fn conversation_id(&self) -> Option<ID> {
        self.uuid(0).filter(|_| self.kind_is(Kind::Chat)).map(|id| NodeKind::Conversation.id(id))
    }

    /// The bot of a USER or a BOT.
    async fn bot_id(&self) -> Option<ID> {
        let of_bot = self.kind_is(Kind::User) || self.kind_is(Kind::Bot);
        self.uuid(0).filter(|_| of_bot).map(|id| NodeKind::Bot.id(id))
    }

    /// The operator of an OPERATOR.
    async fn operator_id(&self) -> Option<ID> {
        self.uuid(0).filter(|_| self.kind_is(Kind::Operator)).map(|id| NodeKind::Operator.id(id))
    }

    /// The name of an API_KEY or a TEAM.
    async fn name(&self) -> Option<&str> {
        let named = self.kind_is(Kind::ApiKey) || self.kind_is(Kind::Team);
        named.then_some(self.0.subject_id.as_str())
    }

    /// Null where the ordinary limit stands.
    async fn requests(&self) -> ApiResult<Option<RateLimit>> {
        Ok(self.rule()?.requests.map(bot::shown))
    }

    /// Null where the ordinary limit stands.
    async fn tokens(&self) -> ApiResult<Option<RateLimit>> {
        Ok(self.rule()?.tokens.map(bot::shown))
    }

    /// Null where the ordinary limit stands.
    async fn parallel(&self) -> ApiResult<Option<u32>> {
        Ok(self.rule()?.parallel)
    }

    /// Of the last decision.
    async fn reason(&self) -> &str {
        &self.0.reason
    }

    /// Whether it is in force now, or was then with `asOf`.
    async fn in_force(&self, ctx: &Context<'_>) -> ApiResult<bool> {
        let now = Scope::of(ctx)?.now();
        Ok(self.0.standing && self.0.expires_at.is_none_or(|end| now < end))
    }

    /// Null when it stands until it is removed, and when it was.
    async fn expires_at(&self) -> Option<DateTime<Utc>> {
        self.0.expires_at
    }

    /// Operator who decided last.
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

/// The subject that is meant, and the bot whose settings say its ordinary limits. Others' things do not
/// exist.
async fn subject(
    scope: &Scope<'_>,
    input: &RateSubjectInput,
) -> ApiResult<Option<(RateSubject, Option<BotId>)>> {
    let own = scope.identity()?.workspace;
    let missing = || ApiError::bad_input("this kind of subject needs an id");
    let id = || input.id.as_ref().ok_or_else(missing);
    let of_bot = || {
        let id = input.bot_id.as_ref();
        id.ok_or_else(|| {
            ApiError::bad_input("a person's or a chat's pace is that with a bot: botId is missing")
        })
    };
    let (subject, bot) = match input.kind {
        RateSubjectKind::User => {
            let bot: BotId = NodeKind::Bot.parse(of_bot()?)?;
            let person: SubjectId = NodeKind::Person.parse(id()?)?;
            (RateSubject::user(bot, person), Some(bot))
        }
        RateSubjectKind::Chat => {
            let conversation: ConversationId = NodeKind::Conversation.parse(id()?)?;
            (RateSubject::chat(conversation), Some(NodeKind::Bot.parse(of_bot()?)?))
        }
        RateSubjectKind::Bot => {
            let bot: BotId = NodeKind::Bot.parse(id()?)?;
            (RateSubject::bot(bot), Some(bot))
        }
        RateSubjectKind::Workspace => (RateSubject::workspace(own), None),
        RateSubjectKind::Api => (RateSubject::api(own), None),
        RateSubjectKind::Ip => {
            let address = id()?.as_str().parse();
            (RateSubject::ip(address.map_err(|_| ApiError::bad_input("this is no address"))?), None)
        }
        RateSubjectKind::Operator => {
            let operator: OperatorId = NodeKind::Operator.parse(id()?)?;
            if operator::find(&scope.live(), operator).await?.is_none() {
                return Ok(None);
            }
            (RateSubject::operator(operator), None)
        }
        kind @ (RateSubjectKind::ApiKey | RateSubjectKind::Team) => {
            let named = RateSubject::parse(kind.into(), id()?.as_str());
            (named.map_err(|error| ApiError::bad_input(error.to_string()))?, None)
        }
    };
    if let Some(bot) = bot
        && bot::find(&scope.live(), bot).await?.is_none()
    {
        return Ok(None);
    }
    Ok(Some((subject, bot)))
}

async fn find(scope: &Scope<'_>, subject: &RateSubject) -> ApiResult<Option<RateOverride>> {
    let (read, workspace) = (&scope.services.read, scope.identity()?.workspace);
    let row = match scope.moment {
        None => rate_override(read, workspace, subject).await?,
        Some(moment) => rate_override_as_of(read, workspace, subject, moment.position).await?,
    };
    Ok(row.map(RateOverride))
}

#[derive(Default)]
pub(crate) struct RateLimitQuery;

#[Object]
impl RateLimitQuery {
    /// How a subject's limits stand now; looking takes nothing. Empty when nothing is limited, null when
    /// the subject does not exist for the caller.
    #[graphql(guard = "Needs(Permission::ReadOperations)", complexity = "5 + child_complexity")]
    async fn rate_limits(
        &self,
        ctx: &Context<'_>,
        subject: RateSubjectInput,
    ) -> ApiResult<Option<Vec<RateLimitState>>> {
        let scope = Scope::of(ctx)?;
        let Some((subject, bot)) = self::subject(&scope, &subject).await? else { return Ok(None) };
        let (caller, workspace) = (scope.caller(None)?, scope.identity()?.workspace);
        let states = scope.services.app.rate_limits.of(&caller, workspace, subject, bot).await;
        match looked(&scope, "rate_limits.look", states).await? {
            Ok(states) => Ok(Some(states.into_iter().map(RateLimitState::from).collect())),
            Err(_) => Ok(None),
        }
    }

    /// The override of a subject; with `asOf` as it was then. Null when there never was one.
    #[graphql(guard = "Needs(Permission::ReadOperations)")]
    async fn rate_override(
        &self,
        ctx: &Context<'_>,
        subject: RateSubjectInput,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<RateOverride>> {
        let scope = Scope::then(ctx, as_of).await?;
        let Some((subject, _)) = self::subject(&scope, &subject).await? else { return Ok(None) };
        scope.at_least("rate_overrides", min_position).await?;
        find(&scope, &subject).await
    }

    /// Overrides, newest subject first; `inForce: true` leaves out those that were removed or ran out.
    /// With `asOf` as they were then.
    #[graphql(
        guard = "Needs(Permission::ReadOperations)",
        complexity = "super::past_cost(as_of.is_some()) + super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the filter, the moment and the position")]
    async fn rate_overrides(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        #[graphql(default = true)] in_force: bool,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<List<RateOverride>> {
        let scope = Scope::then(ctx, as_of).await?;
        let paging = Slice { first, after, last, before }.of("rate_overrides")?;
        scope.at_least("rate_overrides", min_position).await?;
        let now = in_force.then(|| scope.now());
        let workspace = scope.identity()?.workspace;
        let rows =
            rate_overrides_page(&scope.read("rate_overrides").await?, workspace, now, paging.page).await?;
        Ok(paging.connect(rows, EmptyFields, |row| row.created_position, RateOverride))
    }
}

payload! {
    /// Answer of a mutation of an override.
    RateOverridePayload {
        /// As it is now.
        rate_override: RateOverride
    }
}

/// Another pace for a subject.
#[derive(InputObject)]
struct RateOverrideSetInput {
    subject: RateSubjectInput,
    /// Messages or API requests; the ordinary limit stands when null.
    requests: Option<RateLimit>,
    /// Model tokens; the ordinary limit stands when null.
    tokens: Option<RateLimit>,
    /// Calls under way at the same time, 1 to 100,000; the ordinary limit stands when null.
    parallel: Option<u32>,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    /// Must be ahead; until it is removed when null.
    expires_at: Option<DateTime<Utc>>,
    conditions: Option<Conditions>,
}

/// The ordinary pace again.
#[derive(InputObject)]
struct RateOverrideRemoveInput {
    subject: RateSubjectInput,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    conditions: Option<Conditions>,
}

type Executed = botledger_commands::execute::Executed<botledger_domain::rate_limit::RateOverride>;

async fn done(
    scope: &Scope<'_>,
    subject: &RateSubject,
    executed: &Executed,
) -> ApiResult<RateOverridePayload> {
    let position = executed.receipt.position;
    let thing = scope.written("rate_overrides", position, find(scope, subject)).await;
    Ok(RateOverridePayload::done(thing, position))
}

#[derive(Default)]
pub(crate) struct RateLimitMutation;

#[Object]
impl RateLimitMutation {
    /// Lets a subject go faster or slower. Setting again replaces rule, reason and end. In force
    /// everywhere within a second or so.
    #[graphql(guard = "Acts(Permission::ManageQuotas)")]
    async fn rate_override_set(
        &self,
        ctx: &Context<'_>,
        input: RateOverrideSetInput,
    ) -> ApiResult<RateOverridePayload> {
        let scope = Scope::of(ctx)?;
        let Some((subject, _)) = subject(&scope, &input.subject).await? else {
            return Err(ApiError::not_found("subject"));
        };
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(RateOverridePayload, reason(&input.reason));
        let rule = RateRule {
            requests: input.requests.map(bot::limit),
            tokens: input.tokens.map(bot::limit),
            parallel: input.parallel,
        };
        let workspace = scope.identity()?.workspace;
        let limits = &scope.services.app.rate_limits;
        let set =
            limits.set_override(&caller, workspace, subject.clone(), rule, reason, input.expires_at).await;
        let executed = or_refused!(RateOverridePayload, outcome(&scope, "rate_override.set", set).await?);
        done(&scope, &subject, &executed).await
    }

    /// Puts a subject back under its ordinary limits.
    #[graphql(guard = "Acts(Permission::ManageQuotas)")]
    async fn rate_override_remove(
        &self,
        ctx: &Context<'_>,
        input: RateOverrideRemoveInput,
    ) -> ApiResult<RateOverridePayload> {
        let scope = Scope::of(ctx)?;
        let Some((subject, _)) = subject(&scope, &input.subject).await? else {
            return Err(ApiError::not_found("subject"));
        };
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(RateOverridePayload, reason(&input.reason));
        let workspace = scope.identity()?.workspace;
        let limits = &scope.services.app.rate_limits;
        let removed = limits.remove_override(&caller, workspace, &subject, reason).await;
        let executed =
            or_refused!(RateOverridePayload, outcome(&scope, "rate_override.remove", removed).await?);
        done(&scope, &subject, &executed).await
    }
}
