use std::{net::IpAddr, sync::Arc};

use botledger_domain::{
    BotId, OperatorId, Reason, WorkspaceId,
    bot::{Bot, BotRateLimits, BotStatus},
    operator::Permission,
    rate_limit::{
        RateOverride, RateOverrideCommand, RateOverrideError, RateRule, RateSubject, RateSubjectKind,
        rate_override_stream,
    },
};
use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use super::{LimitState, RateCall, RateDefaults, RateLimiter, RateRefusal, Taken};
use crate::{
    Caller, CommandError, Core,
    execute::{Executed, execute},
    followed::Followed,
};

/// Operators' exceptions, as the limiter sees them.
#[derive(Clone)]
pub(crate) struct Overrides {
    followed: Followed<RateOverride>,
}

/// Where the platform's own exceptions stand, for subjects that belong to no workspace.
const PLATFORM: WorkspaceId = WorkspaceId(Uuid::nil());

impl Overrides {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self { followed: Followed::new(pool) }
    }

    /// The rule in force for each subject of a call.
    pub(super) async fn rules(&self, call: &RateCall, now: DateTime<Utc>) -> Vec<RateRule> {
        let workspace = call.workspace.unwrap_or(PLATFORM);
        let mut rules = Vec::with_capacity(call.limits.len());
        for (subject, ordinary) in &call.limits {
            let stream = rate_override_stream(workspace, subject).to_string();
            let exception = match self.followed.find(&stream).await {
                Ok(found) => found.and_then(|known| known.rule_at(now)),
                // Nothing was read yet: the ordinary rules hold, which is never open to all.
                Err(error) => {
                    tracing::warn!(error = %error, "overrides of rate limits cannot be read");
                    None
                }
            };
            rules.push(exception.unwrap_or_default().or(*ordinary));
        }
        rules
    }
}

/// Rate limits, as operators see and change them.
#[derive(Clone)]
pub struct RateLimits {
    core: Arc<Core>,
    limiter: RateLimiter,
    overrides: Overrides,
    defaults: RateDefaults,
    /// Of bots that have none of their own.
    messages: BotRateLimits,
}

type Outcome = Result<Executed<RateOverride>, CommandError<RateOverrideError>>;

impl RateLimits {
    pub(crate) fn new(
        core: Arc<Core>,
        limiter: RateLimiter,
        overrides: Overrides,
        defaults: RateDefaults,
        messages: BotRateLimits,
    ) -> Self {
        Self { core, limiter, overrides, defaults, messages }
    }

    /// The limiter that everything of this process goes through.
    #[must_use]
    pub fn limiter(&self) -> &RateLimiter {
        &self.limiter
    }

    /// Lets a subject go faster or slower, until a moment or until that is removed. In force here at
    /// once, in other processes within a second (and the time of a query).
    ///
    /// # Errors
    /// Without the permission; when rule or end make no sense; for an address when the caller belongs to a
    /// workspace: addresses are everybody's.
    pub async fn set_override(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        subject: RateSubject,
        rule: RateRule,
        reason: Reason,
        expires_at: Option<DateTime<Utc>>,
    ) -> Outcome {
        let (workspace, by) = self.manager(caller, workspace, &subject)?;
        let stream = rate_override_stream(workspace, &subject).to_string();
        let command = RateOverrideCommand::Set { workspace, subject, rule, reason, expires_at, by };
        self.run(caller, &stream, command).await
    }

    /// Back to the ordinary rule.
    ///
    /// # Errors
    /// Without the permission.
    pub async fn remove_override(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        subject: &RateSubject,
        reason: Reason,
    ) -> Outcome {
        let (workspace, by) = self.manager(caller, workspace, subject)?;
        let stream = rate_override_stream(workspace, subject).to_string();
        self.run(caller, &stream, RateOverrideCommand::Remove { reason, by }).await
    }

    /// Takes a request to the API by where it comes from, before anything of it is read.
    ///
    /// # Errors
    /// When that address asks too much.
    pub async fn take_at_the_door(&self, address: IpAddr) -> Result<Taken, RateRefusal> {
        self.limiter.take(&RateCall::at_the_door(address, self.defaults.ip)).await
    }

    /// Takes a request to the API by whose it is.
    ///
    /// # Errors
    /// When the operator or their workspace asks too much.
    pub async fn take_request(
        &self,
        operator: OperatorId,
        workspace: WorkspaceId,
    ) -> Result<Taken, RateRefusal> {
        let limits = vec![
            (RateSubject::operator(operator), self.defaults.operator),
            (RateSubject::api(workspace), self.defaults.api),
        ];
        self.limiter.take(&RateCall { workspace: Some(workspace), id: None, limits, tokens: 0 }).await
    }

    /// How a subject's limits stand now, under its ordinary rule or an override. The ordinary rule of a
    /// person, a chat or a bot is that of the bot, which the caller names.
    ///
    /// # Errors
    /// When the bot does not exist for the caller.
    pub async fn of(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        subject: RateSubject,
        bot: Option<BotId>,
    ) -> Result<Vec<LimitState>, CommandError<RateOverrideError>> {
        let limits = match bot {
            Some(bot) => {
                let state = self.core.journal.load::<Bot>(&bot.to_string()).await?.state;
                if state.status == BotStatus::Unknown || !caller.sees(state.workspace) {
                    return Err(CommandError::NotFound { what: "bot" });
                }
                state.settings.rate_limits.unwrap_or(self.messages)
            }
            None => self.messages,
        };
        let ordinary = match subject.kind() {
            RateSubjectKind::User => limits.user_rule(),
            RateSubjectKind::Chat => limits.chat_rule(),
            RateSubjectKind::Bot => limits.bot_rule(),
            RateSubjectKind::Workspace => self.defaults.workspace,
            RateSubjectKind::Ip => self.defaults.ip,
            RateSubjectKind::Operator => self.defaults.operator,
            RateSubjectKind::Api => self.defaults.api,
            // Only what an override says, until they have limits of their own.
            RateSubjectKind::ApiKey | RateSubjectKind::Team => RateRule::default(),
        };
        let workspace = (subject.kind() != RateSubjectKind::Ip).then_some(workspace);
        let call = RateCall { workspace, id: None, limits: vec![(subject, ordinary)], tokens: 0 };
        Ok(self.limiter.look(&call).await)
    }

    fn manager(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        subject: &RateSubject,
    ) -> Result<(WorkspaceId, OperatorId), CommandError<RateOverrideError>> {
        caller.require(Permission::ManageQuotas)?;
        let by = caller.operator_id().unwrap_or(OperatorId(Uuid::nil()));
        if subject.kind() == RateSubjectKind::Ip {
            return match caller.workspace {
                None => Ok((PLATFORM, by)),
                Some(_) => Err(CommandError::Invalid {
                    code: "RATE_OVERRIDE_OF_AN_ADDRESS",
                    message:
                        "an address belongs to no workspace; whoever runs the installation sets its pace"
                            .to_owned(),
                }),
            };
        }
        if !caller.sees(Some(workspace)) {
            return Err(CommandError::NotFound { what: "workspace" });
        }
        Ok((workspace, by))
    }

    async fn run(&self, caller: &Caller, stream: &str, command: RateOverrideCommand) -> Outcome {
        let done = execute(&self.core, caller, stream, command, |_| Ok(())).await?;
        // It stands in the ledger already; who cannot read it now will soon.
        if let Err(error) = self.overrides.followed.refresh().await {
            tracing::debug!(error = %error, "the override is in force within a second");
        }
        Ok(done)
    }
}
