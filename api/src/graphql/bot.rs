//! Bots.

use async_graphql::{Context, Enum, ID, InputObject, Object, SimpleObject};
use botledger_commands::{Caller, NewBot};
use botledger_domain::{
    BotId, ModelName,
    bot::{
        BotRateLimits, BotSettings as Settings, ParallelAnswers as Parallel, RateLimit as Limit,
        TokenRates as Tokens, UpdateMode as Mode,
    },
    operator::Permission,
};
use botledger_projections::{BotRow, bot_as_of, bots_page};
use chrono::{DateTime, Utc};
use zeroize::Zeroizing;

use super::{
    Acts, AsOf, Conditions, Needs, Scope,
    error::{ApiError, ApiResult, UserError, looked, outcome, reason},
    or_refused,
    page::{List, Slice},
    payload,
    scalars::{At, BigInt, Language, NodeKind, wire_enum},
};

wire_enum! {
    /// Where a bot stands.
    BotStatus {
        /// Takes nothing in.
        Stopped = "stopped",
        /// Some instance runs it, or will in a moment.
        Running = "running",
        /// Stopped by itself; the reason says why.
        Faulted = "faulted",
        /// Gone for good.
        Archived = "archived",
    }
}

/// How updates come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
pub(crate) enum UpdateMode {
    /// The platform asks Telegram.
    Polling,
    /// Telegram calls the platform; needs `telegram.webhook_base_url`.
    Webhook,
}

impl From<UpdateMode> for Mode {
    fn from(mode: UpdateMode) -> Self {
        match mode {
            UpdateMode::Polling => Self::Polling,
            UpdateMode::Webhook => Self::Webhook,
        }
    }
}

/// A token bucket: `burst` at once, refilled at `perMinute`.
#[derive(Clone, Copy, SimpleObject, InputObject)]
#[graphql(input_name = "RateLimitInput")]
pub(crate) struct RateLimit {
    /// Messages, requests or tokens at once, 1 to 100,000,000.
    burst: u32,
    /// The same a minute in the long run.
    per_minute: u32,
}

/// Rate limits by scope.
#[derive(Clone, Copy, SimpleObject, InputObject)]
#[graphql(input_name = "RateLimitsInput")]
pub(crate) struct RateLimits {
    /// Messages of a person.
    user: RateLimit,
    /// Messages in a chat.
    chat: RateLimit,
    /// Messages to the bot as a whole.
    bot: RateLimit,
    /// Model tokens; not limited when null.
    tokens: Option<TokenRates>,
    /// Answers under way at the same time; not limited when null.
    parallel: Option<ParallelAnswers>,
}

/// Model tokens by scope; not limited where null.
#[derive(Clone, Copy, SimpleObject, InputObject)]
#[graphql(input_name = "TokenRatesInput")]
pub(crate) struct TokenRates {
    /// Of a person.
    user: Option<RateLimit>,
    /// In a chat.
    chat: Option<RateLimit>,
    /// Of the bot as a whole.
    bot: Option<RateLimit>,
}

/// Answers under way at the same time, by scope, 1 to 100,000; not limited where null.
#[derive(Clone, Copy, SimpleObject, InputObject)]
#[graphql(input_name = "ParallelAnswersInput")]
pub(crate) struct ParallelAnswers {
    /// To a person.
    user: Option<u32>,
    /// In a chat.
    chat: Option<u32>,
    /// Of the bot as a whole.
    bot: Option<u32>,
}

/// What an admin may set on a bot.
#[derive(Clone, SimpleObject, InputObject)]
#[graphql(input_name = "BotSettingsInput")]
pub(crate) struct BotSettings {
    /// Model that answers; the installation's default when null.
    model: Option<String>,
    /// Instructions put before every conversation; at most 8,000 characters.
    system_prompt: Option<String>,
    /// Language for people whose own is not known.
    #[graphql(default_with = "Language::En")]
    default_language: Language,
    /// Greeting of `/start`; a standard one when null; at most 2,000 characters.
    welcome: Option<String>,
    /// Answer tokens at most, per turn; 16 to 131,072.
    #[graphql(default = 512)]
    max_answer_tokens: u32,
    /// Context window, tokens; 256 to 1,048,576 and above `maxAnswerTokens`.
    #[graphql(default = 4096)]
    context_tokens: u32,
    /// Sampling temperature in thousandths, 0 to 2000; the model's default when null.
    temperature_milli: Option<u32>,
    /// Whether the answer is shown while it is being written.
    #[graphql(default = true)]
    streaming: bool,
    /// Rate limits of this bot; the installation's when null.
    rate_limits: Option<RateLimits>,
}

pub(crate) fn limit(limit: RateLimit) -> Limit {
    Limit { burst: limit.burst, per_minute: limit.per_minute }
}

pub(crate) fn shown(limit: Limit) -> RateLimit {
    RateLimit { burst: limit.burst, per_minute: limit.per_minute }
}

impl BotSettings {
    fn read(self) -> Result<Settings, UserError> {
        let model = self.model.map(|model| ModelName::parse(&model)).transpose();
        Ok(Settings {
            model: model.map_err(|error| UserError::of("settings.model", &error))?,
            system_prompt: self.system_prompt,
            default_language: self.default_language.into(),
            welcome: self.welcome,
            max_answer_tokens: self.max_answer_tokens,
            context_tokens: self.context_tokens,
            temperature_milli: self.temperature_milli,
            streaming: self.streaming,
            rate_limits: self.rate_limits.map(|limits| BotRateLimits {
                user: limit(limits.user),
                chat: limit(limits.chat),
                bot: limit(limits.bot),
                tokens: limits.tokens.map_or_else(Default::default, |tokens| Tokens {
                    user: tokens.user.map(limit),
                    chat: tokens.chat.map(limit),
                    bot: tokens.bot.map(limit),
                }),
                parallel: limits.parallel.map_or_else(Default::default, |most| Parallel {
                    user: most.user,
                    chat: most.chat,
                    bot: most.bot,
                }),
            }),
        })
    }
}

impl From<Settings> for BotSettings {
    fn from(settings: Settings) -> Self {
        Self {
            model: settings.model.map(|model| model.as_str().to_owned()),
            system_prompt: settings.system_prompt,
            default_language: settings.default_language.into(),
            welcome: settings.welcome,
            max_answer_tokens: settings.max_answer_tokens,
            context_tokens: settings.context_tokens,
            temperature_milli: settings.temperature_milli,
            streaming: settings.streaming,
            rate_limits: settings.rate_limits.map(|limits| RateLimits {
                user: shown(limits.user),
                chat: shown(limits.chat),
                bot: shown(limits.bot),
                tokens: (limits.tokens != Tokens::default()).then(|| TokenRates {
                    user: limits.tokens.user.map(shown),
                    chat: limits.tokens.chat.map(shown),
                    bot: limits.tokens.bot.map(shown),
                }),
                parallel: (limits.parallel != Parallel::default()).then_some(ParallelAnswers {
                    user: limits.parallel.user,
                    chat: limits.parallel.chat,
                    bot: limits.parallel.bot,
                }),
            }),
        }
    }
}

pub(crate) struct Bot(pub(crate) BotRow);

/// A Telegram bot of the fleet.
#[Object]
impl Bot {
    /// `bot:…`
    pub(super) async fn id(&self) -> ID {
        NodeKind::Bot.id(self.0.bot_id)
    }

    /// Without `@`.
    async fn username(&self) -> &str {
        &self.0.username
    }

    /// Telegram's id of the bot.
    async fn telegram_id(&self) -> BigInt {
        BigInt(self.0.telegram_id)
    }

    /// How updates come.
    async fn mode(&self) -> UpdateMode {
        if self.0.mode == "webhook" { UpdateMode::Webhook } else { UpdateMode::Polling }
    }

    /// Where it stands.
    async fn status(&self) -> ApiResult<BotStatus> {
        BotStatus::read(&self.0.status)
    }

    /// Why it stands so, where there is a reason.
    async fn status_reason(&self) -> Option<&str> {
        self.0.status_reason.as_deref()
    }

    /// What an admin may set.
    async fn settings(&self) -> ApiResult<BotSettings> {
        let settings: Result<Settings, _> = serde_json::from_value(self.0.settings.clone());
        settings.map(BotSettings::from).map_err(ApiError::unavailable)
    }

    /// Instance that runs it now.
    async fn holder(&self) -> Option<String> {
        self.0.holder.map(|holder| holder.as_hyphenated().to_string())
    }

    /// Raised each time an instance takes it over; writes under an older one are refused.
    async fn lease_epoch(&self) -> BigInt {
        BigInt(self.0.lease_epoch)
    }

    /// When it came into the fleet.
    async fn registered_at(&self) -> DateTime<Utc> {
        self.0.registered_at
    }

    /// When something about it changed last.
    async fn changed_at(&self) -> DateTime<Utc> {
        self.0.changed_at
    }

    /// Of its last event.
    async fn position(&self) -> At {
        self.0.updated_position.into()
    }
}

/// A bot of the caller's workspace.
pub(super) async fn find(scope: &Scope<'_>, bot: BotId) -> ApiResult<Option<Bot>> {
    let read = &scope.services.read;
    let row = match scope.moment {
        None => botledger_projections::bot(read, bot).await?,
        Some(moment) => bot_as_of(read, bot, moment.position).await?,
    };
    let workspace = scope.identity()?.workspace.uuid();
    Ok(row.filter(|row| row.workspace == workspace).map(Bot))
}

/// The same for a bot that a list points to.
pub(super) async fn pointed_to(scope: &Scope<'_>, bot: BotId) -> ApiResult<Option<Bot>> {
    let workspace = scope.identity()?.workspace.uuid();
    Ok(scope.edges("bots").await?.bot(bot).await?.filter(|row| row.workspace == workspace).map(Bot))
}

#[derive(Default)]
pub(crate) struct BotQuery;

#[Object]
impl BotQuery {
    /// One bot; with `asOf` as it was then.
    #[graphql(guard = "Needs(Permission::ReadOperations)")]
    async fn bot(
        &self,
        ctx: &Context<'_>,
        id: ID,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<Bot>> {
        let scope = Scope::then(ctx, as_of).await?;
        let bot: BotId = NodeKind::Bot.parse(&id)?;
        scope.at_least("bots", min_position).await?;
        find(&scope, bot).await
    }

    /// All bots, newest first; with `asOf` as they were then.
    #[graphql(
        guard = "Needs(Permission::ReadOperations)",
        complexity = "super::past_cost(as_of.is_some()) + super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the moment and the position")]
    async fn bots(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<List<Bot>> {
        let scope = Scope::then(ctx, as_of).await?;
        let paging = Slice { first, after, last, before }.of("bots")?;
        scope.at_least("bots", min_position).await?;
        let rows = bots_page(&scope.read("bots").await?, scope.identity()?.workspace, paging.page).await?;
        Ok(paging.connect(rows, async_graphql::connection::EmptyFields, |row| row.created_position, Bot))
    }
}

payload! {
    /// Answer of a mutation of a bot.
    BotPayload {
        /// As it is now.
        bot: Bot
    }
}

/// A bot to take into the fleet.
#[derive(InputObject)]
struct BotRegisterInput {
    /// From @BotFather. Checked with `getMe`, then sealed; never shown again.
    #[graphql(secret)]
    token: String,
    /// How updates shall come.
    #[graphql(default_with = "UpdateMode::Polling")]
    mode: UpdateMode,
    /// Defaults when null.
    settings: Option<BotSettings>,
    /// Whether it shall run at once.
    #[graphql(default = true)]
    start: bool,
    conditions: Option<Conditions>,
}

/// Another token for the same bot.
#[derive(InputObject)]
struct BotRotateTokenInput {
    bot_id: ID,
    /// The new one, from @BotFather.
    #[graphql(secret)]
    token: String,
    conditions: Option<Conditions>,
}

/// The whole of a bot's settings.
#[derive(InputObject)]
struct BotConfigureInput {
    bot_id: ID,
    settings: BotSettings,
    /// As before when null.
    mode: Option<UpdateMode>,
    conditions: Option<Conditions>,
}

/// Which bot.
#[derive(InputObject)]
struct BotStartInput {
    bot_id: ID,
    conditions: Option<Conditions>,
}

/// Which bot, and why.
#[derive(InputObject)]
struct BotStopInput {
    bot_id: ID,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    conditions: Option<Conditions>,
}

type Executed = botledger_commands::execute::Executed<botledger_domain::bot::Bot>;

async fn done(scope: &Scope<'_>, bot: BotId, executed: &Executed) -> ApiResult<BotPayload> {
    let position = executed.receipt.position;
    let thing = scope.written("bots", position, find(scope, bot)).await;
    Ok(BotPayload::done(thing, position))
}

#[derive(Default)]
pub(crate) struct BotMutation;

#[Object]
impl BotMutation {
    /// Takes a bot into the fleet after Telegram confirmed its token.
    #[graphql(guard = "Acts(Permission::ManageBots)")]
    async fn bot_register(&self, ctx: &Context<'_>, input: BotRegisterInput) -> ApiResult<BotPayload> {
        let scope = Scope::of(ctx)?;
        let caller = scope.caller(input.conditions)?;
        let settings = match input.settings {
            Some(settings) => or_refused!(BotPayload, settings.read()),
            None => Settings::default(),
        };
        let new = NewBot {
            workspace: scope.identity()?.workspace,
            token: Zeroizing::new(input.token),
            mode: input.mode.into(),
            settings,
        };
        let registered = scope.services.app.bots.register(&caller, new).await;
        let (bot, executed) = or_refused!(BotPayload, outcome(&scope, "bot.register", registered).await?);
        if !input.start {
            return done(&scope, bot, &executed).await;
        }
        // Two appends have two keys; the second is found by the same repeat.
        let caller = Caller {
            idempotency_key: caller.idempotency_key.map(|key| format!("{key}/start")),
            expected_version: None,
            ..caller
        };
        let started = scope.services.app.bots.start(&caller, bot).await;
        let refused = match outcome(&scope, "bot.start", started).await {
            Ok(Ok(started)) => return done(&scope, bot, &started).await,
            Ok(Err(refused)) => refused,
            Err(_) => UserError::new("BOT_NOT_STARTED", "the bot is in the fleet and not started; start it"),
        };
        // It was registered all the same, and registering it again would be refused.
        let registered = done(&scope, bot, &executed).await?;
        Ok(BotPayload { user_errors: vec![refused], ..registered })
    }

    /// Replaces the token after Telegram confirmed that it is the same bot's.
    #[graphql(guard = "Acts(Permission::ManageBots)")]
    async fn bot_rotate_token(&self, ctx: &Context<'_>, input: BotRotateTokenInput) -> ApiResult<BotPayload> {
        let scope = Scope::of(ctx)?;
        let bot: BotId = NodeKind::Bot.parse(&input.bot_id)?;
        let caller = scope.caller(input.conditions)?;
        let rotated = scope.services.app.bots.rotate_token(&caller, bot, Zeroizing::new(input.token)).await;
        let executed = or_refused!(BotPayload, outcome(&scope, "bot.rotate_token", rotated).await?);
        done(&scope, bot, &executed).await
    }

    /// Replaces all settings.
    #[graphql(guard = "Acts(Permission::ManageBots)")]
    async fn bot_configure(&self, ctx: &Context<'_>, input: BotConfigureInput) -> ApiResult<BotPayload> {
        let scope = Scope::of(ctx)?;
        let bot: BotId = NodeKind::Bot.parse(&input.bot_id)?;
        let caller = scope.caller(input.conditions)?;
        let settings = or_refused!(BotPayload, input.settings.read());
        let known = or_refused!(
            BotPayload,
            looked(&scope, "bot.configure", scope.services.app.bots.get(&caller, bot).await).await?
        );
        let mode = input.mode.map_or(known.mode, Mode::from);
        let configured = scope.services.app.bots.configure(&caller, bot, settings, mode).await;
        let executed = or_refused!(BotPayload, outcome(&scope, "bot.configure", configured).await?);
        done(&scope, bot, &executed).await
    }

    /// Lets it run. Doing it twice is a success.
    #[graphql(guard = "Acts(Permission::ManageBots)")]
    async fn bot_start(&self, ctx: &Context<'_>, input: BotStartInput) -> ApiResult<BotPayload> {
        let scope = Scope::of(ctx)?;
        let bot: BotId = NodeKind::Bot.parse(&input.bot_id)?;
        let caller = scope.caller(input.conditions)?;
        let started = scope.services.app.bots.start(&caller, bot).await;
        let executed = or_refused!(BotPayload, outcome(&scope, "bot.start", started).await?);
        done(&scope, bot, &executed).await
    }

    /// Stops it; open turns are ended first. Doing it twice is a success.
    #[graphql(guard = "Acts(Permission::ManageBots)")]
    async fn bot_stop(&self, ctx: &Context<'_>, input: BotStopInput) -> ApiResult<BotPayload> {
        let scope = Scope::of(ctx)?;
        let bot: BotId = NodeKind::Bot.parse(&input.bot_id)?;
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(BotPayload, reason(&input.reason));
        let stopped = scope.services.app.bots.stop(&caller, bot, reason).await;
        let executed = or_refused!(BotPayload, outcome(&scope, "bot.stop", stopped).await?);
        done(&scope, bot, &executed).await
    }

    /// Removes it from the fleet for good; its history stays.
    #[graphql(guard = "Acts(Permission::ManageBots)")]
    async fn bot_archive(&self, ctx: &Context<'_>, input: BotStopInput) -> ApiResult<BotPayload> {
        let scope = Scope::of(ctx)?;
        let bot: BotId = NodeKind::Bot.parse(&input.bot_id)?;
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(BotPayload, reason(&input.reason));
        let archived = scope.services.app.bots.archive(&caller, bot, reason).await;
        let executed = or_refused!(BotPayload, outcome(&scope, "bot.archive", archived).await?);
        done(&scope, bot, &executed).await
    }
}
