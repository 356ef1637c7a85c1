use std::sync::Arc;

use async_trait::async_trait;
use botledger_domain::{
    ConversationId, RecordedEvent,
    chat_session::{ChatSession, ChatSessionEvent},
    turn::{Turn, TurnEvent},
};
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    Page, Projection, ProjectionError,
    fold::{Rows, read_row},
    select::select_page,
    turns::decode_all,
};

read_row! {
    /// One chat (and thread) with one bot. What was said is sealed elsewhere.
    ConversationRow in "conversations"
    key { conversation: Uuid }
    values {
        workspace: Uuid,
        bot_id: Uuid,
        /// Who wrote first; in groups others write too.
        subject: Uuid,
        /// `private`, `group`, `supergroup`, `channel`.
        chat_kind: String,
        /// Messages accepted.
        messages: i64,
        /// Number of the open session; 0 before the first.
        current_session: i32,
        started_at: DateTime<Utc>,
        last_message_at: DateTime<Utc>,
        created_position: i64,
        updated_position: i64,
    }
}

read_row! {
    /// One session of a conversation.
    SessionRow in "sessions"
    key { conversation: Uuid, session: i32 }
    values {
        /// As `Sealed`; the person's own name for it.
        title: Option<serde_json::Value>,
        context_epoch: i32,
        opened_at: DateTime<Utc>,
        created_position: i64,
        updated_position: i64,
    }
}

fn number(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// One row a conversation and one a session. Reads accepted messages and `chat_session` events;
/// owns `conversations` and `sessions`.
pub struct ConversationsProjection;

#[async_trait]
impl Projection for ConversationsProjection {
    fn name(&self) -> &'static str {
        "conversations"
    }

    fn tables(&self) -> &'static [&'static str] {
        &["conversations", "sessions"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        let sessions = decode_all::<ChatSession>(page)?;
        let messages: Vec<_> = decode_all::<Turn>(page)?
            .into_iter()
            .filter_map(|(recorded, _, fact)| match fact {
                TurnEvent::MessageReceived { message, received_at } => Some((recorded, message, received_at)),
                _ => None,
            })
            .collect();
        let touched = messages
            .iter()
            .map(|(_, message, _)| (message.conversation.uuid(),))
            .chain(sessions.iter().map(|(_, id, _)| (*id,)));
        let mut conversations = Rows::<ConversationRow>::fetch(tx, touched).await?;
        let named = sessions.iter().filter_map(|(_, id, fact)| match fact {
            ChatSessionEvent::SessionOpened { session, .. }
            | ChatSessionEvent::SessionRenamed { session, .. }
            | ChatSessionEvent::ContextCleared { session, .. } => Some((*id, number(*session))),
            ChatSessionEvent::SessionSwitched { .. } => None,
        });
        let mut rows = Rows::<SessionRow>::fetch(tx, named).await?;

        // A conversation's first message stands before its first session in the ledger.
        for (recorded, message, received_at) in messages {
            let position = recorded.position.0;
            let row = conversations.get_or_insert((message.conversation.uuid(),), || ConversationRow {
                conversation: message.conversation.uuid(),
                workspace: message.workspace.uuid(),
                bot_id: message.bot.uuid(),
                subject: message.subject.uuid(),
                chat_kind: message.chat_kind.as_ref().to_owned(),
                messages: 0,
                current_session: 0,
                started_at: received_at,
                last_message_at: received_at,
                created_position: position,
                updated_position: position,
            });
            row.messages += 1;
            row.last_message_at = received_at;
            row.updated_position = row.updated_position.max(position);
        }
        for (recorded, id, fact) in sessions {
            let position = recorded.position.0;
            let current = match &fact {
                ChatSessionEvent::SessionOpened { session, .. }
                | ChatSessionEvent::SessionSwitched { session, .. } => Some(number(*session)),
                _ => None,
            };
            if let Some(row) = conversations.get_mut(&(id,)) {
                row.current_session = current.unwrap_or(row.current_session);
                row.updated_position = row.updated_position.max(position);
            }
            match fact {
                ChatSessionEvent::SessionSwitched { .. } => {}
                ChatSessionEvent::SessionOpened { session, opened_at, .. } => rows.insert(SessionRow {
                    conversation: id,
                    session: number(session),
                    title: None,
                    context_epoch: 0,
                    opened_at,
                    created_position: position,
                    updated_position: position,
                }),
                ChatSessionEvent::SessionRenamed { session, title, .. } => {
                    if let Some(row) = rows.get_mut(&(id, number(session))) {
                        row.title = serde_json::to_value(title).ok();
                        row.updated_position = position;
                    }
                }
                ChatSessionEvent::ContextCleared { session, context_epoch, .. } => {
                    if let Some(row) = rows.get_mut(&(id, number(session))) {
                        row.context_epoch = number(context_epoch);
                        row.updated_position = position;
                    }
                }
            }
        }
        conversations.store(tx).await?;
        Ok(rows.store(tx).await?)
    }
}

/// Which conversations; everything given must hold.
#[derive(Clone, Debug, Default)]
pub struct ConversationFilter {
    pub workspace: Option<Uuid>,
    pub bot: Option<Uuid>,
    pub subject: Option<Uuid>,
}

/// A page of conversations.
///
/// # Errors
/// When the database fails.
pub async fn conversations_page(
    pool: &PgPool,
    filter: &ConversationFilter,
    page: Page,
) -> Result<Vec<ConversationRow>, sqlx::Error> {
    select_page(pool, "conversations", page, |query| {
        let ids = [("workspace", filter.workspace), ("bot_id", filter.bot), ("subject", filter.subject)];
        for (column, id) in ids {
            if let Some(id) = id {
                query.push(" AND ").push(column).push(" = ").push_bind(id);
            }
        }
    })
    .await
}

/// One conversation.
///
/// # Errors
/// When the database fails.
pub async fn conversation(pool: &PgPool, id: ConversationId) -> Result<Option<ConversationRow>, sqlx::Error> {
    sqlx::query_as!(ConversationRow, "SELECT * FROM conversations WHERE conversation = $1", id.uuid())
        .fetch_optional(pool)
        .await
}

/// The sessions of a conversation, by number.
///
/// # Errors
/// When the database fails.
pub async fn sessions(pool: &PgPool, id: ConversationId) -> Result<Vec<SessionRow>, sqlx::Error> {
    sqlx::query_as!(SessionRow, "SELECT * FROM sessions WHERE conversation = $1 ORDER BY session", id.uuid())
        .fetch_all(pool)
        .await
}
