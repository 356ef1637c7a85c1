use std::{collections::BTreeSet, sync::Arc, time::Duration};

use botledger_domain::{
    BotId, Reason, WorkspaceId,
    bot::Bot,
    operator::Permission,
    policy::{
        Policy, PolicyCommand, PolicyError, PolicyEvent, PolicyMode, PolicyOwner, PolicyRef, PolicyTerms,
        PublishedPolicy, Trial,
    },
    policy_stream,
    workspace::Workspace,
};
use botledger_journal::JournalError;
use botledger_scoring::lexicon::BlockedWords;
use chrono::{DateTime, Utc};
use moka::sync::Cache;
use uuid::Uuid;

use crate::{
    Caller, CommandError, Core,
    execute::{Executed, execute},
};

/// How long another process may go on judging by a version that was replaced. Every decision records the
/// version it was made under.
pub const POLICY_DELAY: Duration = Duration::from_secs(1);

/// The policy that judges a bot's messages now: its own, else its workspace's, else the built-in one.
#[derive(Clone, Debug)]
pub struct EffectivePolicy {
    /// Stream and version; absent for the built-in one.
    pub(crate) key: Option<(Uuid, u32)>,
    owner: PolicyOwner,
    version: u32,
    trial: Trial,
    /// What it says.
    pub terms: Arc<PolicyTerms>,
}

impl EffectivePolicy {
    fn built_in() -> Self {
        let trial = Trial::DryRun { until: None };
        Self { key: None, owner: PolicyOwner::BuiltIn, version: 0, trial, terms: Arc::default() }
    }

    fn published(owner: PolicyOwner, stream: Uuid, policy: PublishedPolicy) -> Self {
        let key = Some((stream, policy.version));
        Self { key, owner, version: policy.version, trial: policy.trial, terms: Arc::new(policy.terms) }
    }

    /// Whether it acts or watches, and until when.
    #[must_use]
    pub fn trial(&self) -> Trial {
        self.trial
    }

    /// Which one it is, and whether it only watches at this moment.
    #[must_use]
    pub fn reference(&self, now: DateTime<Utc>) -> PolicyRef {
        PolicyRef { owner: self.owner, version: self.version, dry_run: self.trial.is_dry_run(now) }
    }
}

/// Whose policy is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyScope {
    /// A workspace's: judges all its bots that have none of their own.
    Workspace(WorkspaceId),
    /// A bot's own.
    Bot(BotId),
}

/// Policies of bots and workspaces.
#[derive(Clone)]
pub struct Policies {
    core: Arc<Core>,
    /// Names of the moderation services there are.
    services: Arc<BTreeSet<String>>,
    effective: Cache<(WorkspaceId, BotId), EffectivePolicy>,
}

type Outcome = Result<Executed<Policy>, CommandError<PolicyError>>;

impl Policies {
    pub(crate) fn new(core: Arc<Core>, services: BTreeSet<String>) -> Self {
        let effective = Cache::builder().max_capacity(10_000).time_to_live(POLICY_DELAY).build();
        Self { core, services: Arc::new(services), effective }
    }

    /// Makes these terms the next version of a bot's policy, or of the workspace's without a bot. A first
    /// version only watches for a week, unless `mode` says otherwise.
    ///
    /// # Errors
    /// Without the permission; when workspace or bot are not the caller's; when the terms make no sense or
    /// ask a moderation service that is not configured.
    pub async fn publish(
        &self,
        caller: &Caller,
        scope: PolicyScope,
        terms: PolicyTerms,
        mode: PolicyMode,
        note: Option<Reason>,
    ) -> Outcome {
        let by = caller.operator_id();
        let (workspace, bot) = self.place(caller, scope).await?;
        check_words(&terms).map_err(CommandError::Refused)?;
        self.check_services(&terms).map_err(CommandError::Refused)?;
        let command = PolicyCommand::Publish { workspace, bot, terms: Box::new(terms), mode, note, by };
        self.run(caller, policy_stream(workspace, bot), command).await
    }

    /// Takes a policy out of force: the bot falls back to its workspace's, the workspace to the built-in one.
    ///
    /// # Errors
    /// Without the permission; when workspace or bot are not the caller's.
    pub async fn withdraw(&self, caller: &Caller, scope: PolicyScope, reason: Reason) -> Outcome {
        let by = caller.operator_id();
        let (workspace, bot) = self.place(caller, scope).await?;
        self.run(caller, policy_stream(workspace, bot), PolicyCommand::Withdraw { reason, by }).await
    }

    /// Makes the terms of an old version the next version. Old versions stay as they are.
    ///
    /// # Errors
    /// As for [`Policies::publish`], and when there never was such a version.
    pub async fn restore(
        &self,
        caller: &Caller,
        scope: PolicyScope,
        version: u32,
        mode: PolicyMode,
        note: Option<Reason>,
    ) -> Outcome {
        let by = caller.operator_id();
        let (workspace, bot) = self.place(caller, scope).await?;
        let stream = policy_stream(workspace, bot);
        let facts = self.core.journal.facts::<Policy>(&stream.to_string()).await?;
        let terms = facts.into_iter().find_map(|fact| match fact {
            PolicyEvent::PolicyPublished { version: this, terms, .. } if this == version => Some(terms),
            _ => None,
        });
        let terms = terms.ok_or(CommandError::NotFound { what: "version of the policy" })?;
        self.check_services(&terms).map_err(CommandError::Refused)?;
        self.run(caller, stream, PolicyCommand::Publish { workspace, bot, terms, mode, note, by }).await
    }

    /// What judges a bot's messages; at most [`POLICY_DELAY`] old.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn effective(
        &self,
        workspace: WorkspaceId,
        bot: BotId,
    ) -> Result<EffectivePolicy, JournalError> {
        if let Some(known) = self.effective.get(&(workspace, bot)) {
            return Ok(known);
        }
        let found = self.find_effective(workspace, bot).await?;
        self.effective.insert((workspace, bot), found.clone());
        Ok(found)
    }

    async fn find_effective(
        &self,
        workspace: WorkspaceId,
        bot: BotId,
    ) -> Result<EffectivePolicy, JournalError> {
        for (owner, bot) in [(PolicyOwner::Bot, Some(bot)), (PolicyOwner::Workspace, None)] {
            let stream = policy_stream(workspace, bot);
            let policy = self.core.journal.load::<Policy>(&stream.to_string()).await?.state.current;
            if let Some(policy) = policy {
                return Ok(EffectivePolicy::published(owner, stream, policy));
            }
        }
        Ok(EffectivePolicy::built_in())
    }

    /// The place of a policy, for a caller who may change it.
    async fn place(
        &self,
        caller: &Caller,
        scope: PolicyScope,
    ) -> Result<(WorkspaceId, Option<BotId>), CommandError<PolicyError>> {
        caller.require(Permission::ManagePolicies)?;
        match scope {
            PolicyScope::Workspace(workspace) => {
                let tenant = self.core.journal.load::<Workspace>(&workspace.to_string()).await?;
                if tenant.state.name.is_none() || !caller.sees(Some(workspace)) {
                    return Err(CommandError::NotFound { what: "workspace" });
                }
                Ok((workspace, None))
            }
            PolicyScope::Bot(bot) => {
                let workspace = self.core.journal.load::<Bot>(&bot.to_string()).await?.state.workspace;
                match workspace {
                    Some(workspace) if caller.sees(Some(workspace)) => Ok((workspace, Some(bot))),
                    _ => Err(CommandError::NotFound { what: "bot" }),
                }
            }
        }
    }

    fn check_services(&self, terms: &PolicyTerms) -> Result<(), PolicyError> {
        let unknown = terms.moderation.iter().find(|rule| !self.services.contains(&rule.service));
        let Some(unknown) = unknown else { return Ok(()) };
        let known: Vec<&str> = self.services.iter().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let problem = format!(
            "it asks the moderation service `{}`, which is not configured; configured: {known}",
            unknown.service
        );
        Err(PolicyError::Invalid { problem })
    }

    async fn run(&self, caller: &Caller, stream: Uuid, command: PolicyCommand) -> Outcome {
        let change = match &command {
            PolicyCommand::Publish { .. } => "published",
            PolicyCommand::Withdraw { .. } => "withdrawn",
        };
        let done = execute(&self.core, caller, &stream.to_string(), command, |_| Ok(())).await?;
        if !done.receipt.duplicate && !done.receipt.event_positions.is_empty() {
            metrics::counter!("botledger_policy_changes_total", "change" => change).increment(1);
        }
        self.effective.invalidate_all();
        Ok(done)
    }
}

/// What only the finder of words knows about them.
fn check_words(terms: &PolicyTerms) -> Result<(), PolicyError> {
    let phrases: Vec<&str> = terms.blocked_words.iter().map(|word| word.phrase.as_str()).collect();
    match BlockedWords::compile(&phrases) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(PolicyError::Invalid { problem: format!("its blocked words cannot be used: {error}") })
        }
    }
}
