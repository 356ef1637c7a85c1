//! Allow and deny lists: who is let in and who is not.

use async_graphql::{Context, Enum, ID, InputObject, Object, OneofObject, connection::EmptyFields};
use botledger_commands::{ListedAs, NewAccessEntry, WhichList};
use botledger_domain::{
    BotId, ConversationId, SubjectId,
    access_list::{AccessDoor as Door, AccessEffect as Effect, Network, access_list_stream},
    operator::Permission,
};
use botledger_projections::{
    AccessEntryFilter, AccessEntryRow, AccessListRow, access_entries_page, access_list, access_list_as_of,
};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Acts, AsOf, Conditions, Needs, Scope, bot,
    error::{ApiError, ApiResult, UserError, outcome, reason},
    or_refused,
    page::{List, Slice},
    payload,
    scalars::{At, BigInt, NodeKind, wire_enum},
};

/// Entries added or taken out at once, at most.
const MOST_AT_ONCE: usize = 500;

/// What an entry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "Effect")]
pub(crate) enum AccessEffect {
    /// Let in: neither a score nor what came of it holds them up. Pace, quotas and budgets do.
    Allow,
    /// Refused, before anything else is looked at.
    Deny,
}

/// What a list can be closed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "Door")]
pub(crate) enum AccessDoor {
    /// Messages of people to bots: only allowed people, and people in allowed chats, are served.
    Messages,
    /// Requests to the API: only from allowed networks.
    Requests,
}

wire_enum! {
    /// Whom an entry is about.
    AccessTargetKind {
        /// A person.
        Person = "person",
        /// A chat with a bot.
        Chat = "chat",
        /// Where requests to the API come from.
        Ip = "ip",
    }
}

/// A chat as Telegram knows it.
#[derive(InputObject)]
struct TelegramChatInput {
    bot_id: ID,
    /// Negative for groups.
    chat_id: BigInt,
    /// A topic of the chat; the chat without topics when null.
    thread_id: Option<BigInt>,
}

/// Whom an entry is about; one of these.
#[derive(OneofObject)]
enum AccessTargetInput {
    /// `person:…`
    PersonId(ID),
    /// Telegram's number of a person. It is turned into the pseudonym and not kept.
    TelegramUserId(BigInt),
    /// `conversation:…`: a chat, or a topic of one, with a bot.
    ConversationId(ID),
    /// Telegram's number of a chat, likewise not kept.
    TelegramChat(TelegramChatInput),
    /// An address such as `192.0.2.1`, or a range such as `2001:db8::/48`.
    Network(String),
}

impl AccessTargetInput {
    fn read(&self) -> ApiResult<Result<ListedAs, UserError>> {
        Ok(Ok(match self {
            Self::PersonId(id) => ListedAs::Person(NodeKind::Person.parse::<SubjectId>(id)?),
            Self::TelegramUserId(id) => ListedAs::TelegramUser(id.0),
            Self::ConversationId(id) => ListedAs::Chat(NodeKind::Conversation.parse::<ConversationId>(id)?),
            Self::TelegramChat(chat) => ListedAs::TelegramChat {
                bot: NodeKind::Bot.parse(&chat.bot_id)?,
                chat_id: chat.chat_id.0,
                thread_id: chat.thread_id.map(|thread| thread.0),
            },
            Self::Network(text) => match Network::parse(text) {
                Ok(network) => ListedAs::Network(network),
                Err(error) => return Ok(Err(UserError::of("network", &error))),
            },
        }))
    }
}

pub(crate) struct AccessEntry(AccessEntryRow);

impl AccessEntry {
    fn uuid(&self) -> Option<Uuid> {
        Uuid::try_parse(&self.0.target).ok()
    }

    fn is(&self, kind: AccessTargetKind) -> bool {
        self.0.target_kind == kind.wire()
    }
}

/// An entry of a list; stays when it was taken out or has run out.
#[Object]
impl AccessEntry {
    async fn kind(&self) -> ApiResult<AccessTargetKind> {
        AccessTargetKind::read(&self.0.target_kind)
    }

    async fn person_id(&self) -> Option<ID> {
        self.uuid().filter(|_| self.is(AccessTargetKind::Person)).map(|id| NodeKind::Person.id(id))
    }

    async fn conversation_id(&self) -> Option<ID> {
        self.uuid().filter(|_| self.is(AccessTargetKind::Chat)).map(|id| NodeKind::Conversation.id(id))
    }

    async fn network(&self) -> Option<&str> {
        self.is(AccessTargetKind::Ip).then_some(self.0.target.as_str())
    }

    /// The bot whose list it stands in; null in the workspace's own.
    async fn bot_id(&self) -> Option<ID> {
        self.0.bot_id.map(|id| NodeKind::Bot.id(id))
    }

    async fn effect(&self) -> ApiResult<AccessEffect> {
        let effect: Effect = self.0.effect.parse().map_err(ApiError::broken)?;
        Ok(effect.into())
    }

    /// Of the last decision; not told to the person.
    async fn reason(&self) -> &str {
        &self.0.reason
    }

    /// Whether it is in force now, or was then with `asOf`.
    async fn in_force(&self, ctx: &Context<'_>) -> ApiResult<bool> {
        let now = Scope::of(ctx)?.now();
        Ok(self.0.standing && self.0.expires_at.is_none_or(|end| now < end))
    }

    /// Null when it stands until it is taken out, and when it was.
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

pub(crate) struct AccessList {
    row: AccessListRow,
    /// As of a moment; of today they are asked for by `accessEntries`.
    then: Option<Vec<AccessEntryRow>>,
}

/// Which doors of a workspace or a bot are closed.
#[Object]
impl AccessList {
    /// The bot it is for; null when it is the workspace's own.
    async fn bot_id(&self) -> Option<ID> {
        self.row.bot_id.map(|id| NodeKind::Bot.id(id))
    }

    /// Only allowed people, and people in allowed chats, are served.
    async fn closed_to_messages(&self) -> bool {
        self.row.closed_to_messages
    }

    /// Only requests from allowed networks are served.
    async fn closed_to_requests(&self) -> bool {
        self.row.closed_to_requests
    }

    /// With `asOf` all entries that stood then, newest first; null without: `accessEntries` pages
    /// through those of today.
    async fn entries(&self) -> Option<Vec<AccessEntry>> {
        self.then.as_ref().map(|rows| rows.iter().cloned().map(AccessEntry).collect())
    }

    /// Of its last event.
    async fn position(&self) -> At {
        self.row.updated_position.into()
    }
}

/// The list that is meant; nothing when the bot does not exist for the caller.
async fn which(scope: &Scope<'_>, bot_id: Option<&ID>) -> ApiResult<Option<WhichList>> {
    let workspace = scope.identity()?.workspace;
    let bot: Option<BotId> = bot_id.map(|id| NodeKind::Bot.parse(id)).transpose()?;
    if let Some(bot) = bot
        && bot::find(&scope.live(), bot).await?.is_none()
    {
        return Ok(None);
    }
    Ok(Some(WhichList { workspace, bot }))
}

async fn find(scope: &Scope<'_>, list: WhichList) -> ApiResult<Option<AccessList>> {
    let read = &scope.services.read;
    if let Some(moment) = scope.moment {
        let then = access_list_as_of(read, list.workspace, list.bot, moment.position).await?;
        return Ok(then.map(|(row, entries)| AccessList { row, then: Some(entries) }));
    }
    let row = access_list(read, list.workspace, list.bot).await?;
    Ok(row.map(|row| AccessList { row, then: None }))
}

/// Which entries.
#[derive(Default, InputObject)]
struct AccessEntryFilterInput {
    /// Of this bot's list only.
    bot_id: Option<ID>,
    /// Of the workspace's own list only.
    #[graphql(default)]
    workspace_only: bool,
    kind: Option<AccessTargetKind>,
    effect: Option<AccessEffect>,
    /// About exactly this target.
    target: Option<AccessTargetInput>,
    /// False: also those that were taken out or have run out.
    #[graphql(default = true)]
    in_force: bool,
}

#[derive(Default)]
pub(crate) struct AccessListQuery;

#[Object]
impl AccessListQuery {
    /// The workspace's list, or a bot's; with `asOf` as it was then. Null when nobody ever put anything
    /// into it.
    #[graphql(guard = "Needs(Permission::ReadOperations)", complexity = "20 + child_complexity")]
    async fn access_list(
        &self,
        ctx: &Context<'_>,
        bot_id: Option<ID>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<AccessList>> {
        let scope = Scope::then(ctx, as_of).await?;
        let Some(list) = which(&scope, bot_id.as_ref()).await? else { return Ok(None) };
        scope.at_least("access_lists", min_position).await?;
        find(&scope, list).await
    }

    /// Entries of all lists, newest target first; with `asOf` as they stood then.
    #[graphql(
        guard = "Needs(Permission::ReadOperations)",
        complexity = "super::past_cost(as_of.is_some()) + super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the filter, the moment and the position")]
    async fn access_entries(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<AccessEntryFilterInput>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<List<AccessEntry>> {
        let scope = Scope::then(ctx, as_of).await?;
        let paging = Slice { first, after, last, before }.of("access_entries")?;
        scope.at_least("access_lists", min_position).await?;
        let workspace = scope.identity()?.workspace;
        let filter = filter.unwrap_or(AccessEntryFilterInput { in_force: true, ..Default::default() });
        if filter.workspace_only && filter.bot_id.is_some() {
            return Err(ApiError::bad_input("ask for a bot's list or for the workspace's own"));
        }
        let bot: Option<BotId> = filter.bot_id.as_ref().map(|id| NodeKind::Bot.parse(id)).transpose()?;
        let one_list = filter.workspace_only || bot.is_some();
        let target = match filter.target.as_ref().map(AccessTargetInput::read).transpose()? {
            Some(Ok(who)) => Some(scope.services.app.access_lists.target(workspace, &who).to_string()),
            Some(Err(_)) => return Err(ApiError::bad_input("the target is no network")),
            None => None,
        };
        let filter = AccessEntryFilter {
            list: one_list.then(|| access_list_stream(workspace, bot)),
            kind: filter.kind.map(AccessTargetKind::wire),
            effect: filter.effect.map(|effect| Effect::from(effect).into()),
            target,
            in_force_at: filter.in_force.then(|| scope.now()),
        };
        let rows =
            access_entries_page(&scope.read("access_lists").await?, workspace, &filter, paging.page).await?;
        Ok(paging.connect(rows, EmptyFields, |row| row.created_position, AccessEntry))
    }
}

payload! {
    /// Answer of a mutation of a list.
    AccessListPayload {
        /// As it is now.
        access_list: AccessList
    }
}

/// One entry.
#[derive(InputObject)]
struct AccessEntryInput {
    target: AccessTargetInput,
    effect: AccessEffect,
    /// 1 to 500 characters, kept in the ledger; not told to the person.
    reason: String,
    /// Must be ahead; until it is taken out when null.
    expires_at: Option<DateTime<Utc>>,
}

/// Entries for a list.
#[derive(InputObject)]
struct AccessListAddInput {
    /// The bot's list; the workspace's own when null.
    bot_id: Option<ID>,
    /// 1 to 500; all are added or none.
    entries: Vec<AccessEntryInput>,
    conditions: Option<Conditions>,
}

/// Entries to take out of a list.
#[derive(InputObject)]
struct AccessListRemoveInput {
    /// The bot's list; the workspace's own when null.
    bot_id: Option<ID>,
    /// 1 to 500; those that are not there are passed over.
    targets: Vec<AccessTargetInput>,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    conditions: Option<Conditions>,
}

/// A door to close or to open.
#[derive(InputObject)]
struct AccessListDoorInput {
    /// The bot's list; the workspace's own when null.
    bot_id: Option<ID>,
    door: AccessDoor,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    conditions: Option<Conditions>,
}

fn many<T>(given: &[T]) -> ApiResult<()> {
    match given.len() {
        1..=MOST_AT_ONCE => Ok(()),
        _ => Err(ApiError::bad_input(format!("1 to {MOST_AT_ONCE} at once"))),
    }
}

async fn wanted(scope: &Scope<'_>, bot_id: Option<&ID>) -> ApiResult<WhichList> {
    which(scope, bot_id).await?.ok_or_else(|| ApiError::not_found("bot"))
}

type Executed = botledger_commands::execute::Executed<botledger_domain::access_list::AccessList>;

async fn done(scope: &Scope<'_>, list: WhichList, executed: &Executed) -> ApiResult<AccessListPayload> {
    let position = executed.receipt.position;
    let thing = scope.written("access_lists", position, find(scope, list)).await;
    Ok(AccessListPayload::done(thing, position))
}

#[derive(Default)]
pub(crate) struct AccessListMutation;

#[Object]
impl AccessListMutation {
    /// Adds entries to a list, all or none. An entry about a target that is there already replaces it.
    /// In force everywhere within a second or so.
    #[graphql(
        guard = "Acts(Permission::ManagePolicies)",
        complexity = "input.entries.len() + child_complexity"
    )]
    async fn access_list_add(
        &self,
        ctx: &Context<'_>,
        input: AccessListAddInput,
    ) -> ApiResult<AccessListPayload> {
        let scope = Scope::of(ctx)?;
        let list = wanted(&scope, input.bot_id.as_ref()).await?;
        let caller = scope.caller(input.conditions)?;
        many(&input.entries)?;
        let mut entries = Vec::with_capacity(input.entries.len());
        for entry in &input.entries {
            let who = or_refused!(AccessListPayload, entry.target.read()?);
            let reason = or_refused!(AccessListPayload, reason(&entry.reason));
            let (effect, expires_at) = (entry.effect.into(), entry.expires_at);
            entries.push(NewAccessEntry { who, effect, reason, expires_at });
        }
        let lists = &scope.services.app.access_lists;
        let added = lists.add(&caller, list, entries, scope.request.ip).await;
        let executed = or_refused!(AccessListPayload, outcome(&scope, "access_list.add", added).await?);
        done(&scope, list, &executed).await
    }

    /// Takes entries out of a list.
    #[graphql(
        guard = "Acts(Permission::ManagePolicies)",
        complexity = "input.targets.len() + child_complexity"
    )]
    async fn access_list_remove(
        &self,
        ctx: &Context<'_>,
        input: AccessListRemoveInput,
    ) -> ApiResult<AccessListPayload> {
        let scope = Scope::of(ctx)?;
        let list = wanted(&scope, input.bot_id.as_ref()).await?;
        let caller = scope.caller(input.conditions)?;
        many(&input.targets)?;
        let mut who = Vec::with_capacity(input.targets.len());
        for target in &input.targets {
            who.push(or_refused!(AccessListPayload, target.read()?));
        }
        let reason = or_refused!(AccessListPayload, reason(&input.reason));
        let lists = &scope.services.app.access_lists;
        let removed = lists.remove(&caller, list, &who, reason, scope.request.ip).await;
        let executed = or_refused!(AccessListPayload, outcome(&scope, "access_list.remove", removed).await?);
        done(&scope, list, &executed).await
    }

    /// Closes a door: from then on only those come in whom an entry allows.
    #[graphql(guard = "Acts(Permission::ManagePolicies)")]
    async fn access_list_close(
        &self,
        ctx: &Context<'_>,
        input: AccessListDoorInput,
    ) -> ApiResult<AccessListPayload> {
        let scope = Scope::of(ctx)?;
        let list = wanted(&scope, input.bot_id.as_ref()).await?;
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(AccessListPayload, reason(&input.reason));
        let lists = &scope.services.app.access_lists;
        let closed = lists.close(&caller, list, input.door.into(), reason, scope.request.ip).await;
        let executed = or_refused!(AccessListPayload, outcome(&scope, "access_list.close", closed).await?);
        done(&scope, list, &executed).await
    }

    /// Opens a door again: whom no entry denies comes in.
    #[graphql(guard = "Acts(Permission::ManagePolicies)")]
    async fn access_list_open(
        &self,
        ctx: &Context<'_>,
        input: AccessListDoorInput,
    ) -> ApiResult<AccessListPayload> {
        let scope = Scope::of(ctx)?;
        let list = wanted(&scope, input.bot_id.as_ref()).await?;
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(AccessListPayload, reason(&input.reason));
        let opened = scope.services.app.access_lists.open(&caller, list, input.door.into(), reason).await;
        let executed = or_refused!(AccessListPayload, outcome(&scope, "access_list.open", opened).await?);
        done(&scope, list, &executed).await
    }
}
