//! Conversations, their sessions and what was said.

use async_graphql::{
    Context, ID, InputObject, Object, SimpleObject, connection::Connection, connection::EmptyFields,
};
use botledger_commands::Said;
use botledger_domain::{BotId, ConversationId, Position, Sealed, SubjectId, operator::Permission};
use botledger_projections::{
    ConversationFilter, ConversationRow, SessionRow, conversations_page, sessions, turns_count,
};
use chrono::{DateTime, Utc};

use super::{
    Acts, AsOf, Conditions, Needs, Scope,
    bot::{self, Bot},
    error::{ApiError, ApiResult, UserError, outcome},
    or_refused,
    page::{Cursor, List, Slice},
    payload,
    person::{self, Person},
    scalars::{At, BigInt, NodeKind, wire_enum},
    turn,
};

wire_enum! {
    /// Where a conversation takes place.
    ChatKind {
        Private = "private",
        Group = "group",
        Supergroup = "supergroup",
        Channel = "channel",
    }
}

pub(crate) struct Exchange(Said);

/// A person's message and the model's answer to it.
#[Object]
impl Exchange {
    /// What the person wrote; null once erased.
    async fn prompt(&self) -> Option<&str> {
        self.0.prompt.as_deref()
    }

    /// What the model answered.
    async fn reply(&self) -> &str {
        &self.0.reply
    }

    /// Number of the session.
    async fn session(&self) -> u32 {
        self.0.session
    }

    async fn answered_at(&self) -> Option<DateTime<Utc>> {
        self.0.answered_at
    }

    /// Of the answer.
    async fn position(&self) -> At {
        self.0.position.into()
    }
}

pub(crate) struct ChatSession(SessionRow);

/// One session of a conversation: the model remembers within it.
#[Object]
impl ChatSession {
    /// From 1.
    async fn number(&self) -> i32 {
        self.0.session
    }

    async fn opened_at(&self) -> DateTime<Utc> {
        self.0.opened_at
    }

    /// Raised each time the context was cleared.
    async fn context_epoch(&self) -> i32 {
        self.0.context_epoch
    }

    /// The person's own name for it.
    #[graphql(guard = "Needs(Permission::ReadPersonal)", complexity = 5)]
    async fn title(&self, ctx: &Context<'_>) -> ApiResult<Option<String>> {
        let Some(title) = &self.0.title else { return Ok(None) };
        let sealed: Sealed = serde_json::from_value(title.clone()).map_err(ApiError::unavailable)?;
        let scope = Scope::of(ctx)?;
        scope.reads_personal("ChatSession.title", NodeKind::Conversation.id(self.0.conversation)).await?;
        match scope.services.app.core.vault.open(&sealed).await {
            Ok(plaintext) => Ok(Some(String::from_utf8_lossy(&plaintext).into_owned())),
            Err(botledger_commands::VaultError::Shredded) => Ok(None),
            Err(error) => Err(ApiError::unavailable(error)),
        }
    }
}

/// A search opens what it scans. Without one each row is opened, two texts, whatever is shown of it.
fn exchanges_cost(first: Option<i32>, search: Option<&str>, child: usize) -> usize {
    let scanned = if search.is_some_and(|words| !words.trim().is_empty()) { 5_000 } else { 0 };
    scanned + super::page_cost(first, None) * (10 + child)
}

pub(crate) struct Conversation(pub(crate) ConversationRow);

/// One chat (and thread) with one bot.
#[Object]
impl Conversation {
    /// `conversation:…`
    pub(super) async fn id(&self) -> ID {
        NodeKind::Conversation.id(self.0.conversation)
    }

    #[graphql(complexity = 5)]
    async fn bot(&self, ctx: &Context<'_>) -> ApiResult<Option<Bot>> {
        bot::pointed_to(&Scope::of(ctx)?, BotId(self.0.bot_id)).await
    }

    /// Who wrote first; in groups others write too.
    #[graphql(complexity = 5)]
    async fn person(&self, ctx: &Context<'_>) -> ApiResult<Option<Person>> {
        person::pointed_to(&Scope::of(ctx)?, SubjectId(self.0.subject)).await
    }

    async fn chat_kind(&self) -> ApiResult<ChatKind> {
        ChatKind::read(&self.0.chat_kind)
    }

    /// Messages accepted.
    async fn messages(&self) -> BigInt {
        BigInt(self.0.messages)
    }

    /// Number of the open session; 0 before the first.
    async fn current_session(&self) -> i32 {
        self.0.current_session
    }

    async fn started_at(&self) -> DateTime<Utc> {
        self.0.started_at
    }

    async fn last_message_at(&self) -> DateTime<Utc> {
        self.0.last_message_at
    }

    /// Of its last event.
    async fn position(&self) -> At {
        self.0.updated_position.into()
    }

    /// Turns in it.
    #[graphql(complexity = 50)]
    async fn turn_count(&self, ctx: &Context<'_>) -> ApiResult<BigInt> {
        let filter = turn::of_conversation(ConversationId(self.0.conversation));
        let read = Scope::of(ctx)?.read("turns").await?;
        Ok(BigInt(turns_count(&read, &filter).await?))
    }

    /// Its sessions, by number.
    #[graphql(complexity = "10 * child_complexity")]
    async fn sessions(&self, ctx: &Context<'_>) -> ApiResult<Vec<ChatSession>> {
        let read = Scope::of(ctx)?.read("conversations").await?;
        let rows = sessions(&read, ConversationId(self.0.conversation)).await?;
        Ok(rows.into_iter().map(ChatSession).collect())
    }

    /// What was said, newest first: of all sessions or one, or what holds all of the words.
    #[graphql(
        guard = "Needs(Permission::ReadPersonal)",
        complexity = "exchanges_cost(first, search.as_deref(), child_complexity)"
    )]
    async fn exchanges(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        session: Option<u32>,
        search: Option<String>,
    ) -> ApiResult<Connection<Cursor, Exchange, Search>> {
        let scope = Scope::of(ctx)?;
        scope
            .reads_personal("Conversation.exchanges", NodeKind::Conversation.id(self.0.conversation))
            .await?;
        let paging = Slice { first, after, ..Slice::default() }.of("exchanges")?;
        let conversation = ConversationId(self.0.conversation);
        let histories = &scope.services.app.histories;
        let limit = paging.page.limit;
        // What was said stays as it was said: the past is what had been by then.
        let then = scope.moment.map(|moment| Position(moment.position.0 + 1));
        let before = [paging.page.after, then].into_iter().flatten().min();
        let (said, looked) = match search.as_deref().map(str::trim).filter(|words| !words.is_empty()) {
            Some(_) if session.is_some() => {
                return Err(ApiError::bad_input("a search goes over all sessions; leave session out"));
            }
            Some(words) => {
                let limit = usize::try_from(limit).unwrap_or_default();
                let found = histories.search(conversation, words, before, limit).await;
                let found = found.map_err(ApiError::unavailable)?;
                let resume_after = found.resume.map(|position| paging.cursor(position.0));
                (found.said, Search { scanned: i32::try_from(found.scanned).ok(), resume_after })
            }
            None => {
                let said = histories.newest(conversation, session, before, limit).await;
                (said.map_err(ApiError::unavailable)?, Search::default())
            }
        };
        Ok(paging.connect(said, looked, |said| said.position.0, Exchange))
    }
}

/// How far a search looked; both null without `search`.
#[derive(Default, SimpleObject)]
struct Search {
    /// Exchanges looked at for this page: 5,000 at most.
    scanned: Option<i32>,
    /// Given as `after` where the page is not full, it looks on at older exchanges; null when the oldest
    /// was looked at.
    resume_after: Option<String>,
}

pub(super) async fn find(scope: &Scope<'_>, conversation: ConversationId) -> ApiResult<Option<Conversation>> {
    let workspace = scope.identity()?.workspace.uuid();
    let row = botledger_projections::conversation(&scope.read("conversations").await?, conversation).await?;
    Ok(row.filter(|row| row.workspace == workspace).map(Conversation))
}

/// Which conversations; everything given must hold.
#[derive(Default, InputObject)]
struct ConversationFilterInput {
    bot_id: Option<ID>,
    person_id: Option<ID>,
}

#[derive(Default)]
pub(crate) struct ConversationQuery;

#[Object]
impl ConversationQuery {
    /// One conversation; with `asOf` as it was then.
    #[graphql(guard = "Needs(Permission::ReadOperations)")]
    async fn conversation(
        &self,
        ctx: &Context<'_>,
        id: ID,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<Conversation>> {
        let scope = Scope::then(ctx, as_of).await?;
        let conversation = NodeKind::Conversation.parse(&id)?;
        scope.at_least("conversations", min_position).await?;
        find(&scope, conversation).await
    }

    /// All conversations, newest first; with `asOf` as they were then.
    #[graphql(
        guard = "Needs(Permission::ReadOperations)",
        complexity = "super::past_cost(as_of.is_some()) + super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the filter, the moment and the position")]
    async fn conversations(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<ConversationFilterInput>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<List<Conversation>> {
        let scope = Scope::then(ctx, as_of).await?;
        let paging = Slice { first, after, last, before }.of("conversations")?;
        let filter = filter.unwrap_or_default();
        let filter = ConversationFilter {
            workspace: Some(scope.identity()?.workspace.uuid()),
            bot: filter.bot_id.as_ref().map(|id| NodeKind::Bot.parse(id)).transpose()?,
            subject: filter.person_id.as_ref().map(|id| NodeKind::Person.parse(id)).transpose()?,
        };
        scope.at_least("conversations", min_position).await?;
        let rows = conversations_page(&scope.read("conversations").await?, &filter, paging.page).await?;
        Ok(paging.connect(rows, EmptyFields, |row| row.created_position, Conversation))
    }
}

payload! {
    /// Answer of a mutation of a conversation.
    ConversationPayload {
        /// As it is now.
        conversation: Conversation
    }
}

/// Which conversation.
#[derive(InputObject)]
struct ConversationInput {
    conversation_id: ID,
    conditions: Option<Conditions>,
}

/// Which session of which conversation.
#[derive(InputObject)]
struct ConversationSwitchSessionInput {
    conversation_id: ID,
    /// From 1.
    session: u32,
    conditions: Option<Conditions>,
}

/// A session's name.
#[derive(InputObject)]
struct ConversationRenameSessionInput {
    conversation_id: ID,
    /// From 1.
    session: u32,
    /// 1 to 100 characters; sealed.
    title: String,
    conditions: Option<Conditions>,
}

type Executed = botledger_commands::execute::Executed<botledger_domain::chat_session::ChatSession>;

async fn done(
    scope: &Scope<'_>,
    conversation: ConversationId,
    executed: &Executed,
) -> ApiResult<ConversationPayload> {
    let position = executed.receipt.position;
    let thing = scope.written("conversations", position, find(scope, conversation)).await;
    Ok(ConversationPayload::done(thing, position))
}

async fn known(scope: &Scope<'_>, id: &ID) -> ApiResult<Conversation> {
    let conversation = NodeKind::Conversation.parse(id)?;
    find(scope, conversation).await?.ok_or_else(|| ApiError::not_found("conversation"))
}

#[derive(Default)]
pub(crate) struct ConversationMutation;

#[Object]
impl ConversationMutation {
    /// Opens a fresh session: the model starts from nothing.
    #[graphql(guard = "Acts(Permission::Moderate)")]
    async fn conversation_open_session(
        &self,
        ctx: &Context<'_>,
        input: ConversationInput,
    ) -> ApiResult<ConversationPayload> {
        let scope = Scope::of(ctx)?;
        let caller = scope.caller(input.conditions)?;
        let Conversation(row) = known(&scope, &input.conversation_id).await?;
        let conversation = ConversationId(row.conversation);
        let sessions = &scope.services.app.sessions;
        let opened = sessions.open(&caller, conversation, BotId(row.bot_id), SubjectId(row.subject)).await;
        let executed =
            or_refused!(ConversationPayload, outcome(&scope, "conversation.open_session", opened).await?);
        done(&scope, conversation, &executed).await
    }

    /// Goes back to an earlier session.
    #[graphql(guard = "Acts(Permission::Moderate)")]
    async fn conversation_switch_session(
        &self,
        ctx: &Context<'_>,
        input: ConversationSwitchSessionInput,
    ) -> ApiResult<ConversationPayload> {
        let scope = Scope::of(ctx)?;
        let caller = scope.caller(input.conditions)?;
        let conversation = ConversationId(known(&scope, &input.conversation_id).await?.0.conversation);
        let switched = scope.services.app.sessions.switch(&caller, conversation, input.session).await;
        let executed =
            or_refused!(ConversationPayload, outcome(&scope, "conversation.switch_session", switched).await?);
        done(&scope, conversation, &executed).await
    }

    /// Names a session.
    #[graphql(guard = "Acts(Permission::Moderate)")]
    async fn conversation_rename_session(
        &self,
        ctx: &Context<'_>,
        input: ConversationRenameSessionInput,
    ) -> ApiResult<ConversationPayload> {
        let scope = Scope::of(ctx)?;
        let caller = scope.caller(input.conditions)?;
        let Conversation(row) = known(&scope, &input.conversation_id).await?;
        let title = input.title.trim();
        if title.is_empty() || title.chars().count() > 100 {
            return Ok(ConversationPayload::refused(UserError::new(
                "BAD_INPUT",
                "a title has 1 to 100 characters",
            )));
        }
        let conversation = ConversationId(row.conversation);
        let sessions = &scope.services.app.sessions;
        let renamed =
            sessions.rename(&caller, conversation, SubjectId(row.subject), input.session, title).await;
        let executed =
            or_refused!(ConversationPayload, outcome(&scope, "conversation.rename_session", renamed).await?);
        done(&scope, conversation, &executed).await
    }

    /// Lets the model forget the current session; the history stays.
    #[graphql(guard = "Acts(Permission::Moderate)")]
    async fn conversation_clear_context(
        &self,
        ctx: &Context<'_>,
        input: ConversationInput,
    ) -> ApiResult<ConversationPayload> {
        let scope = Scope::of(ctx)?;
        let caller = scope.caller(input.conditions)?;
        let conversation = ConversationId(known(&scope, &input.conversation_id).await?.0.conversation);
        let cleared = scope.services.app.sessions.clear_context(&caller, conversation).await;
        let executed =
            or_refused!(ConversationPayload, outcome(&scope, "conversation.clear_context", cleared).await?);
        done(&scope, conversation, &executed).await
    }
}
