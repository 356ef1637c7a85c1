//! `botledger bot …`: the fleet, for whoever has a shell on this machine.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use botledger_commands::{NewBot, TelegramProbe};
use botledger_domain::bot::{BotSettings, UpdateMode};
use botledger_domain::{BotId, Position, Reason, WorkspaceId};
use botledger_local::progress::say;
use botledger_projections::{BotRow, Page, ReadPool, bots_page, wait_for, workspaces_page};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use zeroize::Zeroizing;

use super::Settings;
use super::up::TOKEN_VARIABLE;
use crate::platform::{Platform, answering_pool};

/// Bots and workspaces shown at most.
const MOST: i64 = 10_000;
/// Longest wait for the read model to show what was just done.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Subcommand)]
pub enum BotCommand {
    /// List the bots
    List {
        /// Print JSON: the rows of the read model
        #[arg(long)]
        json: bool,
    },
    /// Take a bot into the fleet and start it; its token comes from TELEGRAM_BOT_TOKEN, a file or stdin
    Register(Register),
    /// Let a bot run
    Start(One),
    /// Stop a bot
    Stop {
        #[command(flatten)]
        one: One,
        /// Why; kept in the ledger
        #[arg(long, default_value = "stopped at the command line")]
        reason: String,
    },
}

#[derive(Clone, Debug, Args)]
pub struct Register {
    /// File that holds the token; `-` for stdin [default: the variable TELEGRAM_BOT_TOKEN]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How updates reach us
    #[arg(long, value_enum, default_value_t = Mode::Polling)]
    mode: Mode,
    /// Print JSON: `{"bot", "username"}`
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Mode {
    /// We ask.
    Polling,
    /// Telegram calls `telegram.webhook_base_url`.
    Webhook,
}

impl From<Mode> for UpdateMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Polling => Self::Polling,
            Mode::Webhook => Self::Webhook,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct One {
    /// Username or id of the bot
    bot: String,
}

impl BotCommand {
    /// Runs the subcommand and gives its exit code.
    ///
    /// # Errors
    /// When Telegram refuses the token, there is no such bot, or the database does not answer.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let config = settings.load_running()?.config;
        match self {
            Self::List { json } => {
                list(&bots(&answering_pool(&config).await?).await?, json)?;
                Ok(0)
            }
            Self::Register(register) => {
                let token = register.token()?;
                let platform = Platform::open(&config)?;
                let registered = register_and_start(&platform, token, register.mode.into()).await;
                platform.close().await;
                let (bot, username) = registered?;
                if register.json {
                    say(json!({ "bot": bot, "username": username }).to_string());
                } else {
                    say(format!("@{username} is in the fleet as {bot} and meant to run"));
                }
                Ok(0)
            }
            Self::Start(one) => {
                let platform = Platform::open(&config)?;
                let bot = one.find(&platform.read).await?;
                let done = platform.app.bots.start(&platform.caller(), bot).await;
                platform.close().await;
                done.context("the bot cannot be started")?;
                say(format!("{bot} is meant to run"));
                Ok(0)
            }
            Self::Stop { one, reason } => {
                let reason = Reason::parse(&reason)?;
                let platform = Platform::open(&config)?;
                let bot = one.find(&platform.read).await?;
                let done = platform.app.bots.stop(&platform.caller(), bot, reason).await;
                platform.close().await;
                done.context("the bot cannot be stopped")?;
                say(format!("{bot} is stopped"));
                Ok(0)
            }
        }
    }
}

impl Register {
    /// Never from the command line, where everyone on the machine could read it.
    fn token(&self) -> Result<Zeroizing<String>> {
        let mut text = Zeroizing::new(String::new());
        match &self.token_file {
            Some(path) if path.as_os_str() == "-" => {
                std::io::stdin().read_to_string(&mut text).context("stdin cannot be read")?;
            }
            Some(path) => {
                *text = std::fs::read_to_string(path)
                    .with_context(|| format!("{} cannot be read", path.display()))?;
            }
            None => {
                *text = std::env::var(TOKEN_VARIABLE).ok().with_context(|| {
                    format!("no token: set {TOKEN_VARIABLE}, or give --token-file FILE (- for stdin)")
                })?;
            }
        }
        Ok(Zeroizing::new(text.trim().to_owned()))
    }
}

impl One {
    async fn find(&self, read: &ReadPool) -> Result<BotId> {
        Ok(BotId(find(read, &self.bot).await?.bot_id))
    }
}

/// A bot by username or id.
///
/// # Errors
/// When there is none, or the database does not answer.
pub(super) async fn find(read: &ReadPool, name: &str) -> Result<BotRow> {
    let wanted = name.trim_start_matches('@').trim_start_matches("bot:");
    let is_it = |bot: &BotRow| bot.username.eq_ignore_ascii_case(wanted) || bot.bot_id.to_string() == wanted;
    match bots(read).await?.into_iter().find(is_it) {
        Some(bot) => Ok(bot),
        None => bail!("there is no bot {wanted}; `botledger bot list` shows them"),
    }
}

/// Takes a bot into the first workspace and lets it run. One that is there already keeps its settings and
/// gets the token, should that be a new one.
///
/// # Errors
/// When there is no workspace yet, Telegram refuses the token, or the ledger cannot be used.
pub async fn register_and_start(
    platform: &Platform,
    token: Zeroizing<String>,
    mode: UpdateMode,
) -> Result<(BotId, String)> {
    register_with(platform, token, mode, BotSettings::default()).await
}

/// The same with settings.
///
/// # Errors
/// As [`register_and_start`].
pub async fn register_with(
    platform: &Platform,
    token: Zeroizing<String>,
    mode: UpdateMode,
    settings: BotSettings,
) -> Result<(BotId, String)> {
    let caller = platform.caller();
    let identity = platform.telegram.get_me(&token).await?;
    let known = bots(&platform.read).await?.into_iter().find(|bot| bot.telegram_id == identity.telegram_id);
    let bot = match known {
        Some(row) => {
            let bot = BotId(row.bot_id);
            platform
                .app
                .bots
                .rotate_token(&caller, bot, token)
                .await
                .context("its token cannot be replaced")?;
            bot
        }
        None => {
            let workspace = first_workspace(&platform.read).await?;
            let new = NewBot { workspace, token, mode, settings };
            platform.app.bots.register(&caller, new).await.context("it cannot be taken into the fleet")?.0
        }
    };
    platform.app.bots.start(&caller, bot).await.context("it cannot be started")?;
    let head = platform.app.core.journal.head().await?;
    wait_until_shown(&platform.read, "bots", head).await?;
    Ok((bot, identity.username))
}

async fn wait_until_shown(read: &ReadPool, name: &str, position: Position) -> Result<()> {
    if !wait_for(read, name, position, SHOWN_WITHIN).await? {
        bail!("it is in the ledger, but no running product shows it yet: start one with ops/up");
    }
    Ok(())
}

async fn first_workspace(read: &ReadPool) -> Result<WorkspaceId> {
    match workspaces_page(read, Page::oldest(1)).await?.pop() {
        Some(workspace) => Ok(WorkspaceId(workspace.workspace)),
        None => bail!("there is no workspace yet: `botledger link` makes the first one"),
    }
}

/// The bots of all workspaces.
///
/// # Errors
/// When the database does not answer.
pub async fn bots(read: &ReadPool) -> Result<Vec<BotRow>> {
    let mut bots = Vec::new();
    for workspace in workspaces_page(read, Page::oldest(MOST)).await? {
        bots.extend(bots_page(read, WorkspaceId(workspace.workspace), Page::oldest(MOST)).await?);
    }
    Ok(bots)
}

fn list(bots: &[BotRow], as_json: bool) -> Result<()> {
    if as_json {
        say(serde_json::to_string_pretty(bots)?);
        return Ok(());
    }
    if bots.is_empty() {
        say("no bots yet: `botledger bot register` takes one in");
    }
    for bot in bots {
        let reason = bot.status_reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        say(format!("{}  @{}  {}  {}{reason}", bot.bot_id, bot.username, bot.mode, bot.status));
    }
    Ok(())
}
