//! One Telegram bot's life: registered, configured, run by one instance at a time, archived.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, EnumString, IntoStaticStr};

use crate::{
    Decide, DomainError, InstanceId, Language, ModelName, Reason, Sealed, TextError, WorkspaceId,
    aggregate::aggregate, rate_limit::RateRule, text::is_prose,
};

pub use crate::rate_limit::RateLimit;

/// A bot's Telegram username without `@`: 1-32 of `A-Za-z0-9_`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct BotUsername(String);

impl BotUsername {
    /// Checks the characters and the length.
    ///
    /// # Errors
    /// When Telegram could not have given out such a name.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        let text = text.trim().trim_start_matches('@');
        if text.is_empty() {
            return Err(TextError::Empty { what: "the bot username" });
        }
        let length = text.chars().count();
        if length > 32 {
            return Err(TextError::TooLong { what: "the bot username", actual: length, limit: 32 });
        }
        if !text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(TextError::Characters { what: "the bot username", allowed: "A-Z, a-z, 0-9 and _" });
        }
        Ok(Self(text.to_owned()))
    }
    /// The name without `@`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for BotUsername {
    type Error = TextError;
    fn try_from(text: String) -> Result<Self, TextError> {
        Self::parse(&text)
    }
}

impl From<BotUsername> for String {
    fn from(name: BotUsername) -> String {
        name.0
    }
}

/// How updates reach us.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum UpdateMode {
    /// `getUpdates` long polls.
    #[default]
    Polling,
    /// `setWebhook` with a secret.
    Webhook,
}

/// What an admin may set on a bot. Every event carries the whole of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BotSettings {
    /// Model that answers; the installation's default when absent.
    pub model: Option<ModelName>,
    /// Instructions put before every conversation; at most 8,000 characters.
    pub system_prompt: Option<String>,
    /// Language for people whose own is not known.
    pub default_language: Language,
    /// Greeting of `/start`; a standard one when absent; at most 2,000 characters.
    pub welcome: Option<String>,
    /// Answer tokens at most, per turn.
    pub max_answer_tokens: u32,
    /// Context window, tokens.
    pub context_tokens: u32,
    /// Sampling temperature in thousandths, 0-2000; the model's default when absent.
    pub temperature_milli: Option<u32>,
    /// Whether the answer is shown while it is being written.
    pub streaming: bool,
    /// Rate limits of this bot; the installation's when absent.
    pub rate_limits: Option<BotRateLimits>,
}

impl Default for BotSettings {
    fn default() -> Self {
        Self {
            model: None,
            system_prompt: None,
            default_language: Language::En,
            welcome: None,
            max_answer_tokens: 512,
            context_tokens: 4096,
            temperature_milli: None,
            streaming: true,
            rate_limits: None,
        }
    }
}

/// Rate limits by scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BotRateLimits {
    /// Messages of a person.
    pub user: RateLimit,
    /// Messages in a chat.
    pub chat: RateLimit,
    /// Messages to the bot as a whole.
    pub bot: RateLimit,
    /// Model tokens.
    #[serde(default, skip_serializing_if = "TokenRates::is_empty")]
    pub tokens: TokenRates,
    /// Answers under way at the same time.
    #[serde(default, skip_serializing_if = "ParallelAnswers::is_empty")]
    pub parallel: ParallelAnswers,
}

/// Model tokens by scope; not limited where absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenRates {
    /// Per person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<RateLimit>,
    /// Per chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<RateLimit>,
    /// For the bot as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bot: Option<RateLimit>,
}

/// Answers under way at the same time, by scope, 1 to 100,000; not limited where absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ParallelAnswers {
    /// Per person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// Per chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<u32>,
    /// For the bot as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bot: Option<u32>,
}

impl TokenRates {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl ParallelAnswers {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl BotRateLimits {
    /// Limits of messages only.
    #[must_use]
    pub const fn of_messages(user: RateLimit, chat: RateLimit, bot: RateLimit) -> Self {
        let tokens = TokenRates { user: None, chat: None, bot: None };
        let parallel = ParallelAnswers { user: None, chat: None, bot: None };
        Self { user, chat, bot, tokens, parallel }
    }

    /// What holds for one person.
    #[must_use]
    pub fn user_rule(&self) -> RateRule {
        let (tokens, parallel) = (self.tokens.user, self.parallel.user);
        RateRule { requests: Some(self.user), tokens, parallel }
    }

    /// What holds for one chat.
    #[must_use]
    pub fn chat_rule(&self) -> RateRule {
        let (tokens, parallel) = (self.tokens.chat, self.parallel.chat);
        RateRule { requests: Some(self.chat), tokens, parallel }
    }

    /// What holds for the bot.
    #[must_use]
    pub fn bot_rule(&self) -> RateRule {
        let (tokens, parallel) = (self.tokens.bot, self.parallel.bot);
        RateRule { requests: Some(self.bot), tokens, parallel }
    }
}

impl BotSettings {
    /// Whether the values can be worked with.
    ///
    /// # Errors
    /// [`BotError::InvalidSettings`] naming the field.
    pub fn check(&self) -> Result<(), BotError> {
        let invalid = |field| Err(BotError::InvalidSettings { field });
        let unfit = |text: &str, limit| text.chars().count() > limit || !is_prose(text);
        if self.system_prompt.as_ref().is_some_and(|text| unfit(text, 8_000)) {
            return invalid("system_prompt");
        }
        if self.welcome.as_ref().is_some_and(|text| text.is_empty() || unfit(text, 2_000)) {
            return invalid("welcome");
        }
        if !(16..=131_072).contains(&self.max_answer_tokens) {
            return invalid("max_answer_tokens");
        }
        if !(256..=1_048_576).contains(&self.context_tokens) || self.context_tokens <= self.max_answer_tokens
        {
            return invalid("context_tokens");
        }
        if self.temperature_milli.is_some_and(|t| t > 2_000) {
            return invalid("temperature_milli");
        }
        if let Some(limits) = self.rate_limits {
            let rules = [limits.user_rule(), limits.chat_rule(), limits.bot_rule()];
            if rules.into_iter().any(|rule| rule.check().is_err()) {
                return invalid("rate_limits");
            }
        }
        Ok(())
    }
}

/// Where a bot stands.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum BotStatus {
    /// Not registered.
    #[default]
    Unknown,
    /// Registered or stopped by an operator: takes no updates.
    Stopped,
    /// Meant to run: an instance holds it or will.
    Running,
    /// Stopped by itself because running cannot work, for example a revoked token.
    Faulted,
    /// Gone for good; history stays.
    Archived,
}

/// One Telegram bot. Invariants: only a registered bot runs; lease epochs only rise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bot {
    /// See [`BotStatus`].
    pub status: BotStatus,
    /// Owner; present once registered.
    pub workspace: Option<WorkspaceId>,
    /// Telegram username; present once registered.
    pub username: Option<BotUsername>,
    /// Telegram's own id of the bot.
    pub telegram_id: Option<i64>,
    /// Token, sealed with the bot's own key.
    pub token: Option<Sealed>,
    /// Keyed fingerprint of the token, hex.
    pub token_fingerprint: Option<String>,
    /// Polling or webhook.
    pub mode: UpdateMode,
    /// Present settings.
    pub settings: BotSettings,
    /// Highest lease epoch seen; 0 before the first.
    pub lease_epoch: i64,
    /// Who holds the lease, if anybody.
    pub holder: Option<InstanceId>,
    /// Why it faulted or was stopped.
    pub status_reason: Option<String>,
}

/// What can be asked of a bot.
#[derive(Clone, Debug)]
pub enum BotCommand {
    /// Take a bot into the fleet; its token was checked by `getMe` before.
    Register {
        /// Owner.
        workspace: WorkspaceId,
        /// From `getMe`.
        username: BotUsername,
        /// From `getMe`.
        telegram_id: i64,
        /// The sealed token.
        token: Sealed,
        /// Keyed fingerprint of the token.
        token_fingerprint: String,
        /// Polling or webhook.
        mode: UpdateMode,
        /// First settings.
        settings: BotSettings,
    },
    /// Replace the token; the new one was checked to belong to the same bot.
    RotateToken {
        /// From `getMe` with the new token.
        telegram_id: i64,
        /// The sealed new token.
        token: Sealed,
        /// Its keyed fingerprint.
        token_fingerprint: String,
    },
    /// Replace the settings.
    Configure {
        /// All of them.
        settings: BotSettings,
        /// Polling or webhook.
        mode: UpdateMode,
    },
    /// Let it run.
    Start,
    /// Stop taking updates.
    Stop {
        /// Why.
        reason: Reason,
    },
    /// It cannot run.
    Fault {
        /// Stable code such as `TOKEN_REVOKED`.
        code: String,
        /// What an operator should know; no secrets.
        detail: String,
    },
    /// An instance took it over.
    AcquireLease {
        /// Who.
        instance: InstanceId,
        /// The new epoch, higher than every one before.
        epoch: i64,
    },
    /// The holder gave it up or was found dead.
    LoseLease {
        /// The epoch that ended.
        epoch: i64,
        /// `released`, `expired` or `stolen`.
        cause: LeaseEnd,
    },
    /// Remove it from the fleet for good.
    Archive {
        /// Why.
        reason: Reason,
    },
}

/// Why a lease ended.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, AsRefStr, EnumString, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum LeaseEnd {
    /// The holder shut down or the bot was stopped.
    Released,
    /// The holder's heartbeat stopped.
    Expired,
}

/// What happened to a bot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum BotEvent {
    /// A bot joined the fleet, stopped.
    BotRegistered {
        workspace: WorkspaceId,
        username: BotUsername,
        telegram_id: i64,
        token: Sealed,
        token_fingerprint: String,
        mode: UpdateMode,
        settings: BotSettings,
        registered_at: DateTime<Utc>,
    },
    /// The token was replaced; a fault of the old one is over.
    BotTokenRotated { token: Sealed, token_fingerprint: String, status: BotStatus, rotated_at: DateTime<Utc> },
    /// The settings were replaced.
    BotConfigured { settings: BotSettings, mode: UpdateMode, configured_at: DateTime<Utc> },
    /// An operator let it run.
    BotStarted { started_at: DateTime<Utc> },
    /// An operator stopped it.
    BotStopped { reason: Reason, stopped_at: DateTime<Utc> },
    /// It stopped by itself.
    BotFaulted { code: String, detail: String, faulted_at: DateTime<Utc> },
    /// An instance took it over.
    BotLeaseAcquired { instance: InstanceId, epoch: i64, acquired_at: DateTime<Utc> },
    /// The instance that held it does so no longer.
    BotLeaseLost { instance: Option<InstanceId>, epoch: i64, cause: LeaseEnd, lost_at: DateTime<Utc> },
    /// Gone for good.
    BotArchived { reason: Reason, archived_at: DateTime<Utc> },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BotError {
    /// No such bot.
    #[error("the bot is not registered")]
    NotRegistered,
    /// The id is taken.
    #[error("the bot is already registered")]
    AlreadyRegistered,
    /// It was archived.
    #[error("the bot is archived")]
    Archived,
    /// The new token belongs to another Telegram bot.
    #[error("the new token belongs to another bot")]
    OtherBotsToken,
    /// A lease epoch that does not rise.
    #[error("lease epoch {offered} is not above {current}")]
    StaleEpoch {
        /// What came.
        offered: i64,
        /// What stands.
        current: i64,
    },
    /// Only a running bot can be held.
    #[error("the bot is not meant to run")]
    NotRunning,
    /// A setting that cannot be worked with.
    #[error("the settings field {field} is out of range, or holds characters nobody can see")]
    InvalidSettings {
        /// Its name.
        field: &'static str,
    },
}

impl DomainError for BotError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotRegistered => "BOT_NOT_REGISTERED",
            Self::AlreadyRegistered => "BOT_ALREADY_REGISTERED",
            Self::Archived => "BOT_ARCHIVED",
            Self::OtherBotsToken => "BOT_TOKEN_OF_ANOTHER_BOT",
            Self::StaleEpoch { .. } => "BOT_STALE_EPOCH",
            Self::NotRunning => "BOT_NOT_RUNNING",
            Self::InvalidSettings { .. } => "BOT_INVALID_SETTINGS",
        }
    }
}

impl Decide for Bot {
    fn decide(&self, command: BotCommand, now: DateTime<Utc>) -> Result<Vec<BotEvent>, BotError> {
        match (&command, self.status) {
            (BotCommand::Register { .. }, BotStatus::Unknown) => {}
            (BotCommand::Register { .. }, _) => return Err(BotError::AlreadyRegistered),
            (_, BotStatus::Unknown) => return Err(BotError::NotRegistered),
            (BotCommand::Archive { .. } | BotCommand::LoseLease { .. }, BotStatus::Archived) => {}
            (_, BotStatus::Archived) => return Err(BotError::Archived),
            _ => {}
        }
        match command {
            BotCommand::Register {
                workspace,
                username,
                telegram_id,
                token,
                token_fingerprint,
                mode,
                settings,
            } => {
                settings.check()?;
                Ok(vec![BotEvent::BotRegistered {
                    workspace,
                    username,
                    telegram_id,
                    token,
                    token_fingerprint,
                    mode,
                    settings,
                    registered_at: now,
                }])
            }
            BotCommand::RotateToken { telegram_id, token, token_fingerprint } => {
                if self.telegram_id != Some(telegram_id) {
                    return Err(BotError::OtherBotsToken);
                }
                if self.token_fingerprint.as_ref() == Some(&token_fingerprint) {
                    return Ok(vec![]);
                }
                let status = match self.status {
                    BotStatus::Faulted => BotStatus::Running,
                    other => other,
                };
                Ok(vec![BotEvent::BotTokenRotated { token, token_fingerprint, status, rotated_at: now }])
            }
            BotCommand::Configure { settings, mode } => {
                settings.check()?;
                if settings == self.settings && mode == self.mode {
                    return Ok(vec![]);
                }
                Ok(vec![BotEvent::BotConfigured { settings, mode, configured_at: now }])
            }
            BotCommand::Start => match self.status {
                BotStatus::Running => Ok(vec![]),
                _ => Ok(vec![BotEvent::BotStarted { started_at: now }]),
            },
            BotCommand::Stop { reason } => match self.status {
                BotStatus::Stopped => Ok(vec![]),
                _ => Ok(vec![BotEvent::BotStopped { reason, stopped_at: now }]),
            },
            BotCommand::Fault { code, detail } => match self.status {
                BotStatus::Running => Ok(vec![BotEvent::BotFaulted { code, detail, faulted_at: now }]),
                _ => Ok(vec![]),
            },
            BotCommand::AcquireLease { instance, epoch } => {
                if self.status != BotStatus::Running {
                    return Err(BotError::NotRunning);
                }
                if epoch <= self.lease_epoch {
                    return Err(BotError::StaleEpoch { offered: epoch, current: self.lease_epoch });
                }
                Ok(vec![BotEvent::BotLeaseAcquired { instance, epoch, acquired_at: now }])
            }
            BotCommand::LoseLease { epoch, cause } => {
                if self.holder.is_none() || epoch != self.lease_epoch {
                    return Ok(vec![]);
                }
                Ok(vec![BotEvent::BotLeaseLost { instance: self.holder, epoch, cause, lost_at: now }])
            }
            BotCommand::Archive { reason } => match self.status {
                BotStatus::Archived => Ok(vec![]),
                _ => Ok(vec![BotEvent::BotArchived { reason, archived_at: now }]),
            },
        }
    }
}

impl Bot {
    fn record(&mut self, event: BotEvent) {
        match event {
            BotEvent::BotRegistered {
                workspace,
                username,
                telegram_id,
                token,
                token_fingerprint,
                mode,
                settings,
                ..
            } => {
                self.status = BotStatus::Stopped;
                self.workspace = Some(workspace);
                self.username = Some(username);
                self.telegram_id = Some(telegram_id);
                self.token = Some(token);
                self.token_fingerprint = Some(token_fingerprint);
                self.mode = mode;
                self.settings = settings;
            }
            BotEvent::BotTokenRotated { token, token_fingerprint, status, .. } => {
                self.token = Some(token);
                self.token_fingerprint = Some(token_fingerprint);
                self.status = status;
                self.status_reason = None;
            }
            BotEvent::BotConfigured { settings, mode, .. } => {
                self.settings = settings;
                self.mode = mode;
            }
            BotEvent::BotStarted { .. } => {
                self.status = BotStatus::Running;
                self.status_reason = None;
            }
            BotEvent::BotStopped { reason, .. } => {
                self.status = BotStatus::Stopped;
                self.status_reason = Some(reason.into());
            }
            BotEvent::BotFaulted { code, detail, .. } => {
                self.status = BotStatus::Faulted;
                self.status_reason = Some(format!("{code}: {detail}"));
            }
            BotEvent::BotLeaseAcquired { instance, epoch, .. } => {
                self.holder = Some(instance);
                self.lease_epoch = epoch;
            }
            BotEvent::BotLeaseLost { .. } => self.holder = None,
            BotEvent::BotArchived { reason, .. } => {
                self.status = BotStatus::Archived;
                self.status_reason = Some(reason.into());
            }
        }
    }
}

aggregate!(Bot, "bot", BotCommand, BotEvent, BotError);

#[cfg(test)]
mod tests;
