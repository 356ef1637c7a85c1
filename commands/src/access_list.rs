//! Lists of who is let in and who is not.

use std::{net::IpAddr, sync::Arc};

use botledger_domain::{
    BotId, ConversationId, Decide, OperatorId, Reason, SubjectId, WorkspaceId,
    access_list::{
        AccessDoor, AccessEffect, AccessEntry, AccessList, AccessListCommand, AccessListError, AccessTarget,
        Network, Verdict, access_list_stream,
    },
    operator::Permission,
};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    Bots, Caller, CommandError, Core,
    execute::{Executed, execute},
    followed::Followed,
};

/// Whom an entry is to be about, as an operator knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListedAs {
    /// A person by pseudonym.
    Person(SubjectId),
    /// A person by Telegram's user id, which is turned into the pseudonym and not kept.
    TelegramUser(i64),
    /// A chat with a bot, as it is known here.
    Chat(ConversationId),
    /// A chat by Telegram's chat id (and topic) with a bot; likewise not kept.
    TelegramChat {
        /// The bot it is a chat with.
        bot: BotId,
        /// Negative for groups.
        chat_id: i64,
        /// A topic of the chat; the chat without topics when absent.
        thread_id: Option<i64>,
    },
    /// An address or a range.
    Network(Network),
}

/// An entry to be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAccessEntry {
    /// Whom it is about.
    pub who: ListedAs,
    /// What it does.
    pub effect: AccessEffect,
    /// Why; not told to the person.
    pub reason: Reason,
    /// When it ends; open-ended when absent.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Which list: a workspace's own, or that of one of its bots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WhichList {
    /// Whose.
    pub workspace: WorkspaceId,
    /// The bot; absent for the workspace's own.
    pub bot: Option<BotId>,
}

/// What the lists say of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing: everything else decides.
    Unlisted,
    /// An entry lets them in whatever their score is.
    Allowed(AccessEntry),
    /// Refused.
    Denied {
        /// The entry; absent when the list is closed and they are not on it.
        entry: Option<AccessEntry>,
        /// When that ends, as far as it is known.
        until: Option<DateTime<Utc>>,
    },
}

impl From<Option<Verdict<'_>>> for Access {
    fn from(verdict: Option<Verdict<'_>>) -> Self {
        match verdict {
            None => Self::Unlisted,
            Some(Verdict::Closed) => Self::Denied { entry: None, until: None },
            Some(Verdict::Entry(entry)) => match entry.effect {
                AccessEffect::Allow => Self::Allowed(entry.clone()),
                AccessEffect::Deny => Self::Denied { until: entry.expires_at, entry: Some(entry.clone()) },
            },
        }
    }
}

/// Access lists. Cheap to clone.
#[derive(Clone)]
pub struct AccessLists {
    core: Arc<Core>,
    followed: Followed<AccessList>,
}

type Outcome = Result<Executed<AccessList>, CommandError<AccessListError>>;

impl AccessLists {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let followed = Followed::new(core.pool.clone());
        Self { core, followed }
    }

    /// What is said of a person who writes to a bot in a chat. A bot's list is asked before its
    /// workspace's; a closed list has its say after both lists' entries, so that whom the workspace
    /// allows comes in through a bot's closed door too, and whom it denies never does. What another
    /// process decided counts here within a second (and the time of a query); the ledger is not read for
    /// every message.
    ///
    /// # Errors
    /// When the ledger was never read and cannot be read now.
    pub async fn verdict(
        &self,
        workspace: WorkspaceId,
        bot: BotId,
        subject: SubjectId,
        conversation: ConversationId,
    ) -> Result<Access, CommandError<AccessListError>> {
        let now = self.core.clock.now();
        let mut closed = Access::Unlisted;
        for which in [Some(bot), None] {
            let Some(list) = self.followed.find(&access_list_stream(workspace, which).to_string()).await?
            else {
                continue;
            };
            match list.of_message(subject, conversation, now) {
                None => {}
                Some(verdict @ Verdict::Entry(_)) => return Ok(Some(verdict).into()),
                Some(Verdict::Closed) => closed = Some(Verdict::Closed).into(),
            }
        }
        Ok(closed)
    }

    /// What a workspace says of requests to the API from an address.
    ///
    /// # Errors
    /// When the ledger was never read and cannot be read now.
    pub async fn of_address(
        &self,
        workspace: WorkspaceId,
        address: IpAddr,
    ) -> Result<Access, CommandError<AccessListError>> {
        let list = self.followed.find(&access_list_stream(workspace, None).to_string()).await?;
        Ok(list.map_or(Access::Unlisted, |list| list.of_address(address, self.core.clock.now()).into()))
    }

    /// Puts entries into a list, all or none; one about the same target is replaced.
    ///
    /// # Errors
    /// Without the permission; when the bot is not the caller's; when an entry makes no sense; when the
    /// caller would be locked out of the API, as seen from `from`.
    pub async fn add(
        &self,
        caller: &Caller,
        list: WhichList,
        entries: Vec<NewAccessEntry>,
        from: Option<IpAddr>,
    ) -> Outcome {
        let by = self.keeper(caller, list).await?;
        let entries = entries
            .into_iter()
            .map(|new| AccessEntry {
                target: self.target(list.workspace, &new.who),
                effect: new.effect,
                reason: new.reason,
                expires_at: new.expires_at,
            })
            .collect();
        let WhichList { workspace, bot } = list;
        self.run(caller, list, AccessListCommand::Add { workspace, bot, entries, by }, from).await
    }

    /// Takes entries out of a list.
    ///
    /// # Errors
    /// Without the permission; when the bot is not the caller's; when the caller would be locked out.
    pub async fn remove(
        &self,
        caller: &Caller,
        list: WhichList,
        who: &[ListedAs],
        reason: Reason,
        from: Option<IpAddr>,
    ) -> Outcome {
        let by = self.keeper(caller, list).await?;
        let targets = who.iter().map(|who| self.target(list.workspace, who)).collect();
        self.run(caller, list, AccessListCommand::Remove { targets, reason, by }, from).await
    }

    /// Lets in only whom an entry allows.
    ///
    /// # Errors
    /// Without the permission; when the bot is not the caller's; when the caller would be locked out.
    pub async fn close(
        &self,
        caller: &Caller,
        list: WhichList,
        door: AccessDoor,
        reason: Reason,
        from: Option<IpAddr>,
    ) -> Outcome {
        let by = self.keeper(caller, list).await?;
        let WhichList { workspace, bot } = list;
        self.run(caller, list, AccessListCommand::Close { workspace, bot, door, reason, by }, from).await
    }

    /// Lets in whom no entry denies.
    ///
    /// # Errors
    /// Without the permission; when the bot is not the caller's.
    pub async fn open(&self, caller: &Caller, list: WhichList, door: AccessDoor, reason: Reason) -> Outcome {
        let by = self.keeper(caller, list).await?;
        self.run(caller, list, AccessListCommand::Open { door, reason, by }, None).await
    }

    /// Whom an entry would be about.
    #[must_use]
    pub fn target(&self, workspace: WorkspaceId, who: &ListedAs) -> AccessTarget {
        match who {
            ListedAs::Person(subject) => AccessTarget::Person { subject: *subject },
            ListedAs::TelegramUser(id) => {
                AccessTarget::Person { subject: self.core.vault.subject_id(workspace, *id) }
            }
            ListedAs::Chat(conversation) => AccessTarget::Chat { conversation: *conversation },
            ListedAs::TelegramChat { bot, chat_id, thread_id } => {
                let pseudonym = self.core.vault.chat_pseudonym(*bot, *chat_id);
                AccessTarget::Chat { conversation: ConversationId::of_chat(*bot, pseudonym, *thread_id) }
            }
            ListedAs::Network(network) => AccessTarget::Ip { network: *network },
        }
    }

    async fn keeper(
        &self,
        caller: &Caller,
        list: WhichList,
    ) -> Result<OperatorId, CommandError<AccessListError>> {
        caller.require(Permission::ManagePolicies)?;
        if !caller.sees(Some(list.workspace)) {
            return Err(CommandError::NotFound { what: "workspace" });
        }
        if let Some(bot) = list.bot
            && !Bots::exists_for(&self.core, caller, bot).await?
        {
            return Err(CommandError::NotFound { what: "bot" });
        }
        Ok(caller.operator_id().unwrap_or(OperatorId(Uuid::nil())))
    }

    async fn run(
        &self,
        caller: &Caller,
        list: WhichList,
        command: AccessListCommand,
        from: Option<IpAddr>,
    ) -> Outcome {
        let stream = access_list_stream(list.workspace, list.bot).to_string();
        let now = self.core.clock.now();
        let done = execute(&self.core, caller, &stream, command.clone(), |state: &AccessList| {
            let Some(from) = from.filter(|_| list.bot.is_none()) else { return Ok(()) };
            let after = after(state, command.clone(), now);
            let denies = |list: &AccessList| list.of_address(from, now).is_some_and(|v| v.denies());
            // Who is outside already does not lock themselves out.
            match denies(&after) && !denies(state) {
                true => Err(CommandError::Invalid {
                    code: "ACCESS_LIST_LOCKS_YOU_OUT",
                    message: format!(
                        "you ask from {from}, which would be refused from then on; allow it first"
                    ),
                }),
                false => Ok(()),
            }
        })
        .await?;
        // It stands in the ledger already; who cannot read it now will soon.
        if let Err(error) = self.followed.refresh().await {
            tracing::debug!(error = %error, "the access list is in force within a second");
        }
        Ok(done)
    }
}

/// The state that a command would leave, were it carried out now.
fn after<A: Decide + Clone>(state: &A, command: A::Command, now: DateTime<Utc>) -> A {
    let mut after = state.clone();
    for event in state.decide(command, now).unwrap_or_default() {
        after.apply(event);
    }
    after
}
