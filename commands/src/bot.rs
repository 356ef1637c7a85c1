use std::sync::Arc;

use async_trait::async_trait;
use botledger_domain::{
    BotId, KeyPurpose, Reason, WorkspaceId,
    bot::{Bot, BotCommand, BotError, BotSettings, BotStatus, BotUsername, UpdateMode},
    operator::Permission,
};
use zeroize::Zeroizing;

use crate::{
    Caller, CommandError, Core,
    execute::{Executed, execute},
};

/// What `getMe` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BotIdentity {
    /// Telegram's id of the bot.
    pub telegram_id: i64,
    /// Username without `@`.
    pub username: String,
}

/// Why a token could not be confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Telegram does not know it.
    #[error("Telegram does not accept this token; copy it again from @BotFather")]
    Rejected,
    /// Not the shape of a token.
    #[error("this is not the shape of a bot token (digits, a colon, 35 letters)")]
    Malformed,
    /// Telegram did not answer.
    #[error("Telegram cannot be reached to check the token; try again shortly")]
    Unreachable,
}

impl ProbeError {
    /// A stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rejected => "BOT_TOKEN_REJECTED",
            Self::Malformed => "BOT_TOKEN_MALFORMED",
            Self::Unreachable => "TELEGRAM_UNREACHABLE",
        }
    }
}

/// Asks Telegram whose a token is. Implemented where Telegram is known.
#[async_trait]
pub trait TelegramProbe: Send + Sync {
    /// `getMe`.
    ///
    /// # Errors
    /// See [`ProbeError`].
    async fn get_me(&self, token: &str) -> Result<BotIdentity, ProbeError>;
}

/// A bot to be registered.
#[derive(Clone)]
pub struct NewBot {
    /// Owner.
    pub workspace: WorkspaceId,
    /// From @BotFather.
    pub token: Zeroizing<String>,
    /// Polling or webhook.
    pub mode: UpdateMode,
    /// First settings.
    pub settings: BotSettings,
}

/// The fleet.
#[derive(Clone)]
pub struct Bots {
    core: Arc<Core>,
    probe: Arc<dyn TelegramProbe>,
}

type Outcome = Result<Executed<Bot>, CommandError<BotError>>;

impl Bots {
    pub(crate) fn new(core: Arc<Core>, probe: Arc<dyn TelegramProbe>) -> Self {
        Self { core, probe }
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// Takes a bot into the fleet, stopped, after `getMe` confirmed its token. The same Telegram bot
    /// keeps its id when it is registered again in the same workspace, so it cannot be there twice.
    ///
    /// # Errors
    /// Without the permission; when Telegram does not confirm the token; when the bot is there
    /// already; when settings are out of range.
    pub async fn register(
        &self,
        caller: &Caller,
        new: NewBot,
    ) -> Result<(BotId, Executed<Bot>), CommandError<BotError>> {
        caller.require(Permission::ManageBots)?;
        if !caller.sees(Some(new.workspace)) {
            return Err(CommandError::NotFound { what: "workspace" });
        }
        let identity = self.probe.get_me(&new.token).await?;
        let username = BotUsername::parse(&identity.username)?;
        // Derived from the Telegram bot, keyed: two registrations of one bot meet in one stream,
        // whoever makes them.
        let id = BotId(self.core.vault.chat_pseudonym(BotId(uuid::Uuid::nil()), identity.telegram_id));
        let token = self.core.vault.seal(id.uuid(), KeyPurpose::Credentials, new.token.as_bytes()).await?;
        let command = BotCommand::Register {
            workspace: new.workspace,
            username,
            telegram_id: identity.telegram_id,
            token,
            token_fingerprint: self.fingerprint(&new.token),
            mode: new.mode,
            settings: new.settings,
        };
        let done = execute::<Bot>(&self.core, caller, &id.to_string(), command, |_| Ok(())).await?;
        tracing::info!(bot.id = %id, "registered bot {id}");
        Ok((id, done))
    }

    /// Replaces the token after `getMe` confirmed that it is the same bot's.
    ///
    /// # Errors
    /// Without the permission; when Telegram does not confirm it; when it is another bot's.
    pub async fn rotate_token(&self, caller: &Caller, bot: BotId, token: Zeroizing<String>) -> Outcome {
        caller.require(Permission::ManageBots)?;
        if !Self::exists_for(&self.core, caller, bot).await? {
            return Err(CommandError::NotFound { what: "bot" });
        }
        let identity = self.probe.get_me(&token).await?;
        let sealed = self.core.vault.seal(bot.uuid(), KeyPurpose::Credentials, token.as_bytes()).await?;
        let command = BotCommand::RotateToken {
            telegram_id: identity.telegram_id,
            token: sealed,
            token_fingerprint: self.fingerprint(&token),
        };
        self.run(caller, bot, command).await
    }

    /// Replaces settings and mode.
    ///
    /// # Errors
    /// Without the permission; when a field is out of range.
    pub async fn configure(
        &self,
        caller: &Caller,
        bot: BotId,
        settings: BotSettings,
        mode: UpdateMode,
    ) -> Outcome {
        self.run(caller, bot, BotCommand::Configure { settings, mode }).await
    }

    /// Lets it run: an instance will take it over.
    ///
    /// # Errors
    /// Without the permission; when it is archived.
    pub async fn start(&self, caller: &Caller, bot: BotId) -> Outcome {
        self.run(caller, bot, BotCommand::Start).await
    }

    /// Stops it.
    ///
    /// # Errors
    /// Without the permission.
    pub async fn stop(&self, caller: &Caller, bot: BotId, reason: Reason) -> Outcome {
        self.run(caller, bot, BotCommand::Stop { reason }).await
    }

    /// Removes it from the fleet for good.
    ///
    /// # Errors
    /// Without the permission.
    pub async fn archive(&self, caller: &Caller, bot: BotId, reason: Reason) -> Outcome {
        self.run(caller, bot, BotCommand::Archive { reason }).await
    }

    /// Records that it cannot run.
    ///
    /// # Errors
    /// When the ledger cannot be used.
    pub async fn fault(&self, caller: &Caller, bot: BotId, code: &str, detail: &str) -> Outcome {
        let command = BotCommand::Fault { code: code.to_owned(), detail: detail.to_owned() };
        self.run(caller, bot, command).await
    }

    /// Records who runs it now.
    ///
    /// # Errors
    /// When it is not meant to run, or the epoch is not above the last one.
    pub async fn lease_acquired(&self, caller: &Caller, bot: BotId, epoch: i64) -> Outcome {
        self.run(caller, bot, BotCommand::AcquireLease { instance: self.core.instance, epoch }).await
    }

    /// Records that somebody runs it no longer.
    ///
    /// # Errors
    /// When the ledger cannot be used.
    pub async fn lease_lost(
        &self,
        caller: &Caller,
        bot: BotId,
        epoch: i64,
        cause: botledger_domain::bot::LeaseEnd,
    ) -> Outcome {
        self.run(caller, bot, BotCommand::LoseLease { epoch, cause }).await
    }

    /// The bot as it stands.
    ///
    /// # Errors
    /// When it does not exist for the caller.
    pub async fn get(&self, caller: &Caller, bot: BotId) -> Result<Bot, CommandError<BotError>> {
        let loaded = self.core.journal.load::<Bot>(&bot.to_string()).await?;
        if loaded.state.status == BotStatus::Unknown || !caller.sees(loaded.state.workspace) {
            return Err(CommandError::NotFound { what: "bot" });
        }
        Ok(loaded.state)
    }

    /// The opened token; for the instance that runs the bot.
    ///
    /// # Errors
    /// When the bot has none or it cannot be opened.
    pub async fn token(&self, bot: BotId) -> Result<Zeroizing<String>, CommandError<BotError>> {
        let loaded = self.core.journal.load::<Bot>(&bot.to_string()).await?;
        let sealed = loaded.state.token.ok_or(CommandError::NotFound { what: "bot" })?;
        let plaintext = self.core.vault.open(&sealed).await?;
        let token = std::str::from_utf8(&plaintext).map_err(CommandError::broken)?;
        Ok(Zeroizing::new(token.to_owned()))
    }

    pub(crate) async fn exists_for<E: botledger_domain::DomainError>(
        core: &Core,
        caller: &Caller,
        bot: BotId,
    ) -> Result<bool, CommandError<E>> {
        let loaded = core.journal.load::<Bot>(&bot.to_string()).await?;
        Ok(loaded.state.status != BotStatus::Unknown && caller.sees(loaded.state.workspace))
    }

    /// The secret that Telegram sends with every webhook call of a bot: 32 hex digits, made from its
    /// present token, so that every process knows it and a new token changes it.
    ///
    /// # Errors
    /// When the bot has no token or it cannot be opened.
    pub async fn webhook_secret(&self, bot: BotId) -> Result<Zeroizing<String>, CommandError<BotError>> {
        let token = self.token(bot).await?;
        Ok(Zeroizing::new(self.core.vault.fingerprint("webhook", token.as_bytes())))
    }

    fn fingerprint(&self, token: &str) -> String {
        self.core.vault.fingerprint("token", token.as_bytes())
    }

    async fn run(&self, caller: &Caller, bot: BotId, command: BotCommand) -> Outcome {
        caller.require(Permission::ManageBots)?;
        execute(&self.core, caller, &bot.to_string(), command, |state: &Bot| {
            if state.status == BotStatus::Unknown || !caller.sees(state.workspace) {
                return Err(CommandError::NotFound { what: "bot" });
            }
            Ok(())
        })
        .await
    }
}
