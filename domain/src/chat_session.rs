//! The sessions of one conversation (bot, chat, thread): which one is open, what its context is.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::{BotId, ConversationId, Decide, DomainError, Sealed, SubjectId, aggregate::aggregate};

/// One session: a stretch of conversation with a context of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Sealed name, if the person gave one.
    pub title: Option<Sealed>,
    /// Rises each time the context is cleared; turns of older epochs are history, not context.
    pub context_epoch: u32,
    /// When it was opened.
    pub opened_at: DateTime<Utc>,
}

/// The sessions of a conversation. Invariant: once opened, exactly one is current.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatSession {
    /// By number, from 1.
    pub sessions: BTreeMap<u32, Session>,
    /// The number of the current one; 0 before the first.
    pub current: u32,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum ChatSessionCommand {
    /// Make sure there is a session to talk in.
    Ensure { conversation: ConversationId, bot: BotId, subject: SubjectId },
    /// Open a fresh one and make it current.
    Open { conversation: ConversationId, bot: BotId, subject: SubjectId },
    /// Go back to an earlier one.
    Switch { session: u32 },
    /// Name one.
    Rename { session: u32, title: Sealed },
    /// Forget the context of the current one; the history stays.
    ClearContext,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ChatSessionEvent {
    /// A session began and is current.
    SessionOpened {
        conversation: ConversationId,
        bot: BotId,
        subject: SubjectId,
        session: u32,
        opened_at: DateTime<Utc>,
    },
    /// An earlier session is current again.
    SessionSwitched { session: u32, switched_at: DateTime<Utc> },
    /// A session has a name.
    SessionRenamed { session: u32, title: Sealed, renamed_at: DateTime<Utc> },
    /// Turns before this are no longer shown to the model.
    ContextCleared { session: u32, context_epoch: u32, cleared_at: DateTime<Utc> },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatSessionError {
    /// No session of that number.
    #[error("there is no session {session}")]
    UnknownSession {
        /// The number asked for.
        session: u32,
    },
    /// Enough is enough.
    #[error("a conversation holds at most {limit} sessions")]
    TooManySessions {
        /// The limit.
        limit: u32,
    },
}

/// Sessions a conversation may hold.
pub const MAX_SESSIONS: u32 = 1_000;

impl DomainError for ChatSessionError {
    fn code(&self) -> &'static str {
        match self {
            Self::UnknownSession { .. } => "SESSION_UNKNOWN",
            Self::TooManySessions { .. } => "SESSION_TOO_MANY",
        }
    }
}

impl ChatSession {
    /// Number and context epoch of the current session.
    #[must_use]
    pub fn current(&self) -> Option<(u32, &Session)> {
        self.sessions.get(&self.current).map(|session| (self.current, session))
    }

    fn open(
        &self,
        conversation: ConversationId,
        bot: BotId,
        subject: SubjectId,
        now: DateTime<Utc>,
    ) -> Result<Vec<ChatSessionEvent>, ChatSessionError> {
        let session = self.sessions.keys().next_back().map_or(1, |last| last + 1);
        if session > MAX_SESSIONS {
            return Err(ChatSessionError::TooManySessions { limit: MAX_SESSIONS });
        }
        Ok(vec![ChatSessionEvent::SessionOpened { conversation, bot, subject, session, opened_at: now }])
    }

    fn record(&mut self, event: ChatSessionEvent) {
        match event {
            ChatSessionEvent::SessionOpened { session, opened_at, .. } => {
                self.sessions.insert(session, Session { title: None, context_epoch: 0, opened_at });
                self.current = session;
            }
            ChatSessionEvent::SessionSwitched { session, .. } => self.current = session,
            ChatSessionEvent::SessionRenamed { session, title, .. } => {
                if let Some(named) = self.sessions.get_mut(&session) {
                    named.title = Some(title);
                }
            }
            ChatSessionEvent::ContextCleared { session, context_epoch, .. } => {
                if let Some(cleared) = self.sessions.get_mut(&session) {
                    cleared.context_epoch = context_epoch;
                }
            }
        }
    }
}

impl Decide for ChatSession {
    fn decide(
        &self,
        command: ChatSessionCommand,
        now: DateTime<Utc>,
    ) -> Result<Vec<ChatSessionEvent>, ChatSessionError> {
        match command {
            ChatSessionCommand::Ensure { conversation, bot, subject } => match self.current() {
                Some(_) => Ok(vec![]),
                None => self.open(conversation, bot, subject, now),
            },
            ChatSessionCommand::Open { conversation, bot, subject } => {
                self.open(conversation, bot, subject, now)
            }
            ChatSessionCommand::Switch { session } => {
                if !self.sessions.contains_key(&session) {
                    return Err(ChatSessionError::UnknownSession { session });
                }
                if self.current == session {
                    return Ok(vec![]);
                }
                Ok(vec![ChatSessionEvent::SessionSwitched { session, switched_at: now }])
            }
            ChatSessionCommand::Rename { session, title } => {
                let known =
                    self.sessions.get(&session).ok_or(ChatSessionError::UnknownSession { session })?;
                if known.title.as_ref() == Some(&title) {
                    return Ok(vec![]);
                }
                Ok(vec![ChatSessionEvent::SessionRenamed { session, title, renamed_at: now }])
            }
            ChatSessionCommand::ClearContext => match self.current() {
                None => Ok(vec![]),
                Some((session, state)) => Ok(vec![ChatSessionEvent::ContextCleared {
                    session,
                    context_epoch: state.context_epoch + 1,
                    cleared_at: now,
                }]),
            },
        }
    }
}

aggregate!(ChatSession, "chat_session", ChatSessionCommand, ChatSessionEvent, ChatSessionError);

#[cfg(test)]
mod tests;
