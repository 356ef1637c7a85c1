use std::sync::Arc;

use botledger_domain::{
    BotId, ConversationId, KeyPurpose, SubjectId,
    chat_session::{ChatSession, ChatSessionCommand, ChatSessionError},
    operator::Permission,
};
use botledger_journal::Loaded;

use crate::{
    Caller, CommandError, Core,
    execute::{Executed, execute},
};

/// Sessions of a conversation.
#[derive(Clone)]
pub struct Sessions {
    core: Arc<Core>,
}

type Outcome = Result<Executed<ChatSession>, CommandError<ChatSessionError>>;

impl Sessions {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// All sessions of a conversation and which one is current.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn of(
        &self,
        conversation: ConversationId,
    ) -> Result<Loaded<ChatSession>, CommandError<ChatSessionError>> {
        Ok(self.core.journal.load(&conversation.to_string()).await?)
    }

    /// Opens a fresh session and makes it current.
    ///
    /// # Errors
    /// Without the permission; when there are too many, or the ledger cannot be used.
    pub async fn open(
        &self,
        caller: &Caller,
        conversation: ConversationId,
        bot: BotId,
        subject: SubjectId,
    ) -> Outcome {
        self.run(caller, conversation, ChatSessionCommand::Open { conversation, bot, subject }).await
    }

    /// Goes back to an earlier session.
    ///
    /// # Errors
    /// Without the permission; when there is none of that number.
    pub async fn switch(&self, caller: &Caller, conversation: ConversationId, session: u32) -> Outcome {
        self.run(caller, conversation, ChatSessionCommand::Switch { session }).await
    }

    /// Names a session; the title is the person's and sealed.
    ///
    /// # Errors
    /// Without the permission; when there is none of that number.
    pub async fn rename(
        &self,
        caller: &Caller,
        conversation: ConversationId,
        subject: SubjectId,
        session: u32,
        title: &str,
    ) -> Outcome {
        caller.require(Permission::Moderate)?;
        let title = self.core.vault.seal(subject.uuid(), KeyPurpose::Profile, title.as_bytes()).await?;
        self.run(caller, conversation, ChatSessionCommand::Rename { session, title }).await
    }

    /// Forgets the context of the current session; the history stays.
    ///
    /// # Errors
    /// Without the permission; when the ledger cannot be used.
    pub async fn clear_context(&self, caller: &Caller, conversation: ConversationId) -> Outcome {
        self.run(caller, conversation, ChatSessionCommand::ClearContext).await
    }

    async fn run(
        &self,
        caller: &Caller,
        conversation: ConversationId,
        command: ChatSessionCommand,
    ) -> Outcome {
        caller.require(Permission::Moderate)?;
        execute(&self.core, caller, &conversation.to_string(), command, |_| Ok(())).await
    }
}
