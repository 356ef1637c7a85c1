use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::account::Holder;

/// Namespace of every id this product derives from other ids.
const NAMESPACE: Uuid = Uuid::from_u128(0x6b1f_0e0a_7d0c_5c35_9a53_2f6e_b07d_1ed9);

/// A place in the ledger: dense, from 1, in commit order over all streams. 0 is "before the first".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Position(pub i64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The UUID inside.
            #[must_use]
            pub fn uuid(self) -> Uuid {
                self.0
            }
            /// Reads an id from its hyphenated text form.
            ///
            /// # Errors
            /// When the text is no UUID.
            pub fn parse(text: &str) -> Result<Self, uuid::Error> {
                Uuid::try_parse(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    };
}

id! {
    /// A tenant: owns bots, plans and operators.
    WorkspaceId
}
id! {
    /// One Telegram bot of the fleet.
    BotId
}
id! {
    /// One update and everything that follows from it.
    TurnId
}
id! {
    /// One chat (and thread) with one bot: the stream id of `chat_session`.
    ConversationId
}
id! {
    /// A person, by keyed pseudonym: an HMAC over workspace and Telegram user id, never the id itself.
    SubjectId
}
id! {
    /// A person who runs the platform.
    OperatorId
}
id! {
    /// A sealed message body in `message_bodies`.
    BodyId
}
id! {
    /// A hold on a quota and on budgets; the id of the turn it was made for.
    ReservationId
}
id! {
    /// One running process.
    InstanceId
}

impl TurnId {
    /// The turn an update belongs to: the same update always gives the same id, so a duplicate
    /// delivery is a version conflict. The update's own date takes part because Telegram restarts
    /// update ids at random after a quiet week.
    #[must_use]
    pub fn of_update(bot: BotId, update_id: i64, update_unix_seconds: i64) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, format!("turn:{bot}:{update_id}:{update_unix_seconds}").as_bytes()))
    }
}

impl ConversationId {
    /// The conversation of a chat, by the chat's keyed pseudonym.
    #[must_use]
    pub fn of_chat(bot: BotId, chat_pseudonym: Uuid, thread: Option<i64>) -> Self {
        let thread = thread.map_or_else(String::new, |id| id.to_string());
        Self(Uuid::new_v5(&NAMESPACE, format!("conversation:{bot}:{chat_pseudonym}:{thread}").as_bytes()))
    }
}

/// An id made from other ids: the same text gives the same id everywhere.
pub(crate) fn derived(text: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, text.as_bytes())
}

/// The stream of a person's quota in a workspace.
#[must_use]
pub fn quota_stream(workspace: WorkspaceId, subject: SubjectId) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("quota:{workspace}:{subject}").as_bytes())
}

/// The stream of a holder's budget in a workspace.
#[must_use]
pub fn budget_stream(workspace: WorkspaceId, holder: Holder) -> Uuid {
    let (kind, id) = (holder.kind(), holder.uuid());
    Uuid::new_v5(&NAMESPACE, format!("budget:{workspace}:{kind}:{id}").as_bytes())
}

/// The stream of one share of a budget.
#[must_use]
pub fn budget_share_stream(budget: Uuid, share: u32) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("budget_share:{budget}:{share}").as_bytes())
}

/// The stream of a person's standing with a bot.
#[must_use]
pub fn standing_stream(bot: BotId, subject: SubjectId) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("standing:{bot}:{subject}").as_bytes())
}

/// The stream of a workspace's policy, or of a bot's own.
#[must_use]
pub fn policy_stream(workspace: WorkspaceId, bot: Option<BotId>) -> Uuid {
    let bot = bot.map_or_else(String::new, |bot| bot.to_string());
    Uuid::new_v5(&NAMESPACE, format!("policy:{workspace}:{bot}").as_bytes())
}
