//! Who is let in whatever else is said, and who is not: a list per workspace and one per bot.
//!
//! What an entry means is decided by the nearest list that says something: a bot's own list before its
//! workspace's. Within a list a denial beats an allowance, and of two networks the smaller one is meant.
//! A list that is closed lets in only whom an entry allows.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, EnumString, IntoStaticStr};
use uuid::Uuid;

use crate::{
    BotId, ConversationId, Decide, DomainError, OperatorId, Reason, SubjectId, TextError, WorkspaceId,
    aggregate::aggregate, clock::is_writable,
};

/// Entries of one list, at most.
pub const MOST_ENTRIES: usize = 10_000;

/// A range of network addresses, for example `192.0.2.0/24` or `2001:db8::/48`. Written without host bits;
/// a single address has no suffix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Reads an address or a range. Host bits are cut off, and an IPv4 address in IPv6 clothes is the
    /// IPv4 address.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        const WRONG: TextError = TextError::Characters {
            what: "the network",
            allowed: "an address such as 192.0.2.1 or a range such as 2001:db8::/48",
        };
        let (address, prefix) = match text.trim().split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text.trim(), None),
        };
        let given = IpAddr::from_str(address).map_err(|_| WRONG)?;
        let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let prefix: u8 = match prefix {
            // `u8::from_str` takes a plus sign.
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map_err(|_| WRONG)?
            }
            Some(_) => return Err(WRONG),
            None => bits(given),
        };
        if prefix > bits(given) {
            return Err(WRONG);
        }
        let address = given.to_canonical();
        let prefix = match (given, address) {
            (IpAddr::V6(_), IpAddr::V4(_)) => match prefix.checked_sub(96) {
                Some(prefix) => prefix,
                // A range of IPv6 that happens to begin there.
                None => return Ok(Self { address: masked(given, prefix), prefix }),
            },
            _ => prefix,
        };
        Ok(Self { address: masked(address, prefix), prefix })
    }

    /// Whether an address lies in it.
    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }

    /// Bits that are fixed: the more, the smaller the network.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let single = if self.address.is_ipv4() { 32 } else { 128 };
        match self.prefix == single {
            true => self.address.fmt(f),
            false => write!(f, "{}/{}", self.address, self.prefix),
        }
    }
}

impl TryFrom<String> for Network {
    type Error = TextError;
    fn try_from(text: String) -> Result<Self, TextError> {
        Self::parse(&text)
    }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        network.to_string()
    }
}

impl JsonSchema for Network {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Network".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        String::json_schema(generator)
    }
}

/// Whom an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AccessTarget {
    /// A person, with all bots the list is for.
    Person {
        /// By pseudonym.
        subject: SubjectId,
    },
    /// A chat (or one topic of it) with one bot.
    Chat {
        /// Its conversation.
        conversation: ConversationId,
    },
    /// Where requests to the API come from.
    Ip {
        /// An address or a range.
        network: Network,
    },
}

impl AccessTarget {
    /// `person`, `chat` or `ip`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Person { .. } => "person",
            Self::Chat { .. } => "chat",
            Self::Ip { .. } => "ip",
        }
    }
}

/// The id or network alone.
impl fmt::Display for AccessTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Person { subject } => subject.fmt(f),
            Self::Chat { conversation } => conversation.fmt(f),
            Self::Ip { network } => network.fmt(f),
        }
    }
}

/// What an entry does.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum AccessEffect {
    /// Let in: neither a score nor what came of it holds them up. Pace, quotas and budgets do.
    Allow,
    /// Refused, before anything else is looked at.
    Deny,
}

/// An entry of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccessEntry {
    /// Whom it is about.
    pub target: AccessTarget,
    /// What it does.
    pub effect: AccessEffect,
    /// Why; not told to the person.
    pub reason: Reason,
    /// When it ends; open-ended when absent.
    pub expires_at: Option<DateTime<Utc>>,
}

impl AccessEntry {
    /// Whether it is in force at a moment.
    #[must_use]
    pub fn stands_at(&self, now: DateTime<Utc>) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }
}

/// What a list can be closed for.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum AccessDoor {
    /// Messages of people to bots: only allowed people, and people in allowed chats, are served.
    Messages,
    /// Requests to the API: only from allowed networks.
    Requests,
}

/// What a list says of somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// An entry decides.
    Entry(&'a AccessEntry),
    /// No entry is about them, and the list is closed.
    Closed,
}

impl Verdict<'_> {
    /// Whether they are refused.
    #[must_use]
    pub fn denies(&self) -> bool {
        match self {
            Self::Entry(entry) => entry.effect == AccessEffect::Deny,
            Self::Closed => true,
        }
    }
}

/// A workspace's or a bot's list. Invariant: one entry a target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AccessList {
    /// Whose; absent before the first decision.
    pub workspace: Option<WorkspaceId>,
    /// The bot it is for; absent in a workspace's own.
    pub bot: Option<BotId>,
    /// By target. Some may have run out: see [`AccessEntry::stands_at`].
    pub entries: BTreeMap<String, AccessEntry>,
    /// For strangers closed doors.
    pub closed: std::collections::BTreeSet<AccessDoor>,
}

/// Entries are kept in maps that are JSON objects.
fn key(target: &AccessTarget) -> String {
    format!("{}:{target}", target.kind())
}

impl AccessList {
    /// What the list says of a person who writes in a chat; nothing when it says nothing. A denial of
    /// either beats an allowance of the other.
    #[must_use]
    pub fn of_message(
        &self,
        subject: SubjectId,
        conversation: ConversationId,
        now: DateTime<Utc>,
    ) -> Option<Verdict<'_>> {
        let standing = |target| self.entries.get(&key(&target)).filter(|entry| entry.stands_at(now));
        let found =
            [standing(AccessTarget::Person { subject }), standing(AccessTarget::Chat { conversation })];
        let named = found.into_iter().flatten().max_by_key(|entry| entry.effect == AccessEffect::Deny);
        let closed = self.closed.contains(&AccessDoor::Messages);
        named.map(Verdict::Entry).or(closed.then_some(Verdict::Closed))
    }

    /// What the list says of an address: of several networks the smallest decides.
    #[must_use]
    pub fn of_address(&self, address: IpAddr, now: DateTime<Utc>) -> Option<Verdict<'_>> {
        let around = |entry: &&AccessEntry| match entry.target {
            AccessTarget::Ip { network } => network.holds(address) && entry.stands_at(now),
            _ => false,
        };
        // Targets of one kind stand together.
        let networks = self.entries.range("ip:".to_owned().."ip;".to_owned()).map(|(_, entry)| entry);
        let named = networks.filter(around).max_by_key(|entry| match entry.target {
            AccessTarget::Ip { network } => network.prefix(),
            _ => 0,
        });
        let closed = self.closed.contains(&AccessDoor::Requests);
        named.map(Verdict::Entry).or(closed.then_some(Verdict::Closed))
    }
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum AccessListCommand {
    /// Add entries; one about the same target replaces it.
    Add { workspace: WorkspaceId, bot: Option<BotId>, entries: Vec<AccessEntry>, by: OperatorId },
    /// Take entries out; those that are not there are passed over.
    Remove { targets: Vec<AccessTarget>, reason: Reason, by: OperatorId },
    /// Let in only whom an entry allows.
    Close { workspace: WorkspaceId, bot: Option<BotId>, door: AccessDoor, reason: Reason, by: OperatorId },
    /// Let in whom no entry denies.
    Open { door: AccessDoor, reason: Reason, by: OperatorId },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum AccessListEvent {
    /// An entry, in place of the one about the same target.
    AccessEntryAdded {
        workspace: WorkspaceId,
        bot: Option<BotId>,
        entry: AccessEntry,
        by: OperatorId,
        added_at: DateTime<Utc>,
    },
    /// No entry about this target any more.
    AccessEntryRemoved { target: AccessTarget, reason: Reason, by: OperatorId, removed_at: DateTime<Utc> },
    /// Only whom an entry allows.
    AccessClosed {
        workspace: WorkspaceId,
        bot: Option<BotId>,
        door: AccessDoor,
        reason: Reason,
        by: OperatorId,
        closed_at: DateTime<Utc>,
    },
    /// Whom no entry denies.
    AccessOpened { door: AccessDoor, reason: Reason, by: OperatorId, opened_at: DateTime<Utc> },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessListError {
    /// The end lies before now.
    #[error("the entry about {target} would end before it begins")]
    EndsInThePast {
        /// Whom it is about.
        target: String,
    },
    /// The end cannot be written everywhere.
    #[error("an entry ends by the year 9999; leave the end out to make it open-ended")]
    EndsTooLate,
    /// Requests to the API are a workspace's matter.
    #[error("networks stand in the workspace's list; a bot's list is about people and chats")]
    NetworkOfABot,
    /// The same target twice, with different words.
    #[error("{target} is named more than once")]
    NamedTwice {
        /// Whom.
        target: String,
    },
    /// Too many.
    #[error("a list has at most {MOST_ENTRIES} entries; take some out first")]
    Full,
}

impl DomainError for AccessListError {
    fn code(&self) -> &'static str {
        match self {
            Self::EndsInThePast { .. } => "ACCESS_LIST_ENDS_IN_THE_PAST",
            Self::EndsTooLate => "ACCESS_LIST_ENDS_TOO_LATE",
            Self::NetworkOfABot => "ACCESS_LIST_NETWORK_OF_A_BOT",
            Self::NamedTwice { .. } => "ACCESS_LIST_NAMED_TWICE",
            Self::Full => "ACCESS_LIST_FULL",
        }
    }
}

/// The stream of a workspace's list, or of one of its bots'.
#[must_use]
pub fn access_list_stream(workspace: WorkspaceId, bot: Option<BotId>) -> Uuid {
    match bot {
        Some(bot) => crate::ids::derived(&format!("access_list:bot:{bot}")),
        None => crate::ids::derived(&format!("access_list:workspace:{workspace}")),
    }
}

impl AccessList {
    fn add(
        &self,
        workspace: WorkspaceId,
        bot: Option<BotId>,
        entries: Vec<AccessEntry>,
        by: OperatorId,
        now: DateTime<Utc>,
    ) -> Result<Vec<AccessListEvent>, AccessListError> {
        let mut named: BTreeMap<String, &AccessEntry> = BTreeMap::new();
        let mut events = Vec::new();
        let mut count = self.entries.values().filter(|entry| entry.stands_at(now)).count();
        for entry in &entries {
            if bot.is_some() && matches!(entry.target, AccessTarget::Ip { .. }) {
                return Err(AccessListError::NetworkOfABot);
            }
            if entry.expires_at.is_some_and(|end| end <= now) {
                return Err(AccessListError::EndsInThePast { target: entry.target.to_string() });
            }
            if entry.expires_at.is_some_and(|end| !is_writable(end)) {
                return Err(AccessListError::EndsTooLate);
            }
            match named.insert(key(&entry.target), entry) {
                Some(before) if before == entry => continue,
                Some(_) => return Err(AccessListError::NamedTwice { target: entry.target.to_string() }),
                None => {}
            }
            let known = self.entries.get(&key(&entry.target)).filter(|known| known.stands_at(now));
            if known == Some(entry) {
                continue;
            }
            count += usize::from(known.is_none());
            let entry = entry.clone();
            events.push(AccessListEvent::AccessEntryAdded { workspace, bot, entry, by, added_at: now });
        }
        if count > MOST_ENTRIES && !events.is_empty() {
            return Err(AccessListError::Full);
        }
        Ok(events)
    }
}

impl Decide for AccessList {
    fn decide(
        &self,
        command: AccessListCommand,
        now: DateTime<Utc>,
    ) -> Result<Vec<AccessListEvent>, AccessListError> {
        match command {
            AccessListCommand::Add { workspace, bot, entries, by } => {
                self.add(workspace, bot, entries, by, now)
            }
            AccessListCommand::Remove { mut targets, reason, by } => {
                targets.sort_unstable();
                targets.dedup();
                let there = targets.into_iter().filter(|target| self.entries.contains_key(&key(target)));
                let removed = there.map(|target| AccessListEvent::AccessEntryRemoved {
                    target,
                    reason: reason.clone(),
                    by,
                    removed_at: now,
                });
                Ok(removed.collect())
            }
            AccessListCommand::Close { workspace, bot, door, reason, by } => {
                if bot.is_some() && door == AccessDoor::Requests {
                    return Err(AccessListError::NetworkOfABot);
                }
                if self.closed.contains(&door) {
                    return Ok(vec![]);
                }
                Ok(vec![AccessListEvent::AccessClosed { workspace, bot, door, reason, by, closed_at: now }])
            }
            AccessListCommand::Open { door, reason, by } => match self.closed.contains(&door) {
                true => Ok(vec![AccessListEvent::AccessOpened { door, reason, by, opened_at: now }]),
                false => Ok(vec![]),
            },
        }
    }
}

impl AccessList {
    fn record(&mut self, event: AccessListEvent) {
        match event {
            AccessListEvent::AccessEntryAdded { workspace, bot, entry, added_at, .. } => {
                (self.workspace, self.bot) = (Some(workspace), bot);
                if self.entries.len() >= MOST_ENTRIES {
                    // What ran out makes room.
                    self.entries.retain(|_, known| known.stands_at(added_at));
                }
                self.entries.insert(key(&entry.target), entry);
            }
            AccessListEvent::AccessEntryRemoved { target, .. } => {
                self.entries.remove(&key(&target));
            }
            AccessListEvent::AccessClosed { workspace, bot, door, .. } => {
                (self.workspace, self.bot) = (Some(workspace), bot);
                self.closed.insert(door);
            }
            AccessListEvent::AccessOpened { door, .. } => {
                self.closed.remove(&door);
            }
        }
    }
}

aggregate!(AccessList, "access_list", AccessListCommand, AccessListEvent, AccessListError);

#[cfg(test)]
mod tests;
