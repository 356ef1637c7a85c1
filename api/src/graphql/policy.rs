//! Policies: what bots are for, what becomes of messages that are not, and what it said before.

mod terms;
mod what_if;

use async_graphql::{
    Context, Enum, ID, InputObject, Object, SimpleObject, Subscription, connection::EmptyFields,
};
use botledger_commands::{EffectivePolicy as Effective, PolicyScope};
use botledger_domain::{
    BotId, Reason,
    operator::Permission,
    policy::{PolicyMode as Mode, PolicyOwner as Owner, Trial},
    policy_stream,
};
use botledger_projections::{
    EventFilter, PolicyRow, PolicyVersionFilter, PolicyVersionRow, bot_as_of, policy, policy_as_of,
    policy_in_force_as_of, policy_terms, policy_versions_by_ids, policy_versions_page,
};
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use uuid::Uuid;

use self::terms::{PolicyTerms, PolicyTermsInput};
pub(crate) use self::what_if::PolicyWhatIfQuery;
use super::{
    Acts, AsOf, Conditions, Needs, Scope, bot,
    error::{ApiError, ApiResult, UserError, outcome, reason},
    event::{Followed, follow},
    or_refused,
    page::{List, Slice},
    payload,
    scalars::{At, NodeKind},
};

/// Whose policy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "Owner")]
pub(crate) enum PolicyOwner {
    /// Nobody published any: the detectors watch and mask, and nobody is punished.
    BuiltIn,
    /// The workspace's.
    Workspace,
    /// The bot's own.
    Bot,
}

/// Versions count up from 1.
fn number(version: i64) -> i32 {
    i32::try_from(version).unwrap_or(i32::MAX)
}

pub(crate) struct PolicyVersion(PolicyVersionRow);

/// A version of a policy. It never changes; what changes is whether it is in force.
#[Object]
impl PolicyVersion {
    /// The bot it is for; null when it is the workspace's own.
    async fn bot_id(&self) -> Option<ID> {
        self.0.bot_id.map(|id| NodeKind::Bot.id(id))
    }

    /// From 1.
    async fn version(&self) -> i32 {
        number(self.0.version)
    }

    /// What it says.
    #[graphql(complexity = "40 + child_complexity")]
    async fn terms(&self, ctx: &Context<'_>) -> ApiResult<PolicyTerms> {
        // A version never changes.
        let read = &Scope::of(ctx)?.services.read;
        let terms = policy_terms(read, self.0.policy_id, self.0.version).await?;
        PolicyTerms::read(&terms.ok_or_else(ApiError::away)?)
    }

    /// Whether it is in force, rather than replaced or withdrawn.
    async fn in_force(&self) -> bool {
        self.0.ended_at.is_none()
    }

    /// Whether it only watches now: it is in force, and its dry run is not over.
    async fn watches(&self, ctx: &Context<'_>) -> ApiResult<bool> {
        let now = Scope::of(ctx)?.now();
        Ok(self.0.ended_at.is_none() && self.0.trial().is_dry_run(now))
    }

    /// Whether it began by watching only.
    async fn dry_run(&self) -> bool {
        self.0.dry_run
    }

    /// When it begins to act by itself; null when it watches until another version, or acted at once.
    async fn dry_run_until(&self) -> Option<DateTime<Utc>> {
        self.0.dry_run_until
    }

    /// Why, in the words of whoever published it.
    async fn note(&self) -> Option<&str> {
        self.0.note.as_deref()
    }

    /// The operator; null when it was somebody with a shell.
    async fn published_by(&self) -> Option<ID> {
        self.0.published_by.map(|id| NodeKind::Operator.id(id))
    }

    async fn published_at(&self) -> DateTime<Utc> {
        self.0.published_at
    }

    /// When another version took its place, or it was withdrawn.
    async fn ended_at(&self) -> Option<DateTime<Utc>> {
        self.0.ended_at
    }

    /// Whether it was withdrawn rather than replaced.
    async fn withdrawn(&self) -> bool {
        self.0.withdrawn
    }

    async fn withdrawn_by(&self) -> Option<ID> {
        self.0.withdrawn_by.map(|id| NodeKind::Operator.id(id))
    }

    async fn withdrawal_reason(&self) -> Option<&str> {
        self.0.withdrawal_reason.as_deref()
    }

    /// Of its last event.
    async fn position(&self) -> At {
        self.0.updated_position.into()
    }
}

/// A version that something else names.
pub(super) async fn version_pointed_to(
    scope: &Scope<'_>,
    policy: Uuid,
    version: i64,
) -> ApiResult<Option<PolicyVersion>> {
    let workspace = scope.identity()?.workspace.uuid();
    let row = scope.edges("policies").await?.policy_version(policy, version).await?;
    Ok(row.filter(|row| row.workspace == workspace).map(PolicyVersion))
}

pub(crate) struct Policy {
    row: PolicyRow,
    in_force: Option<PolicyVersionRow>,
}

/// The policy of a workspace or of a bot.
#[Object]
impl Policy {
    /// The bot it is for; null when it is the workspace's own.
    async fn bot_id(&self) -> Option<ID> {
        self.row.bot_id.map(|id| NodeKind::Bot.id(id))
    }

    /// The version in force; null once it was withdrawn.
    async fn in_force(&self) -> Option<PolicyVersion> {
        self.in_force.clone().map(PolicyVersion)
    }

    /// The newest version there ever was.
    async fn last_version(&self) -> i32 {
        number(self.row.last_version)
    }

    async fn changed_at(&self) -> DateTime<Utc> {
        self.row.changed_at
    }

    /// Of its last event.
    async fn position(&self) -> At {
        self.row.updated_position.into()
    }
}

pub(crate) struct EffectivePolicy {
    policy: Effective,
    bot: BotId,
}

/// What judges a bot's messages now: its own policy, else its workspace's, else the built-in one.
#[Object]
impl EffectivePolicy {
    async fn owner(&self, ctx: &Context<'_>) -> ApiResult<PolicyOwner> {
        Ok(self.reference(ctx)?.owner.into())
    }

    /// Of that owner's policy, from 1; 0 for the built-in one.
    async fn version(&self, ctx: &Context<'_>) -> ApiResult<i32> {
        Ok(number(self.reference(ctx)?.version.into()))
    }

    /// Whether it only watches now.
    async fn watches(&self, ctx: &Context<'_>) -> ApiResult<bool> {
        Ok(self.reference(ctx)?.dry_run)
    }

    /// When it begins to act by itself; null when it acts, or watches until another version.
    async fn watches_until(&self, ctx: &Context<'_>) -> ApiResult<Option<DateTime<Utc>>> {
        Ok(match self.policy.trial() {
            Trial::DryRun { until } if self.reference(ctx)?.dry_run => until,
            _ => None,
        })
    }

    /// What it says.
    #[graphql(complexity = "40 + child_complexity")]
    async fn terms(&self) -> ApiResult<PolicyTerms> {
        PolicyTerms::read(&self.policy.terms)
    }

    /// Who published it, when and why; null for the built-in one.
    #[graphql(complexity = "5 + child_complexity")]
    async fn published(&self, ctx: &Context<'_>) -> ApiResult<Option<PolicyVersion>> {
        let reference = self.reference(ctx)?;
        of_owner(&Scope::of(ctx)?, reference.owner, self.bot, reference.version.into()).await
    }
}

impl EffectivePolicy {
    fn reference(&self, ctx: &Context<'_>) -> ApiResult<botledger_domain::policy::PolicyRef> {
        Ok(self.policy.reference(Scope::of(ctx)?.now()))
    }
}

/// A version of the policy of a bot's owner.
pub(super) async fn of_owner(
    scope: &Scope<'_>,
    owner: Owner,
    bot: BotId,
    version: i64,
) -> ApiResult<Option<PolicyVersion>> {
    let workspace = scope.identity()?.workspace;
    let policy = match owner {
        Owner::BuiltIn => return Ok(None),
        Owner::Workspace => policy_stream(workspace, None),
        Owner::Bot => policy_stream(workspace, Some(bot)),
    };
    version_pointed_to(scope, policy, version).await
}

/// The bot that is meant, if it exists for the caller; none means the workspace itself.
async fn whose(scope: &Scope<'_>, bot_id: Option<&ID>) -> ApiResult<Option<Option<BotId>>> {
    let Some(bot) = bot_id.map(|id| NodeKind::Bot.parse::<BotId>(id)).transpose()? else {
        return Ok(Some(None));
    };
    Ok(bot::find(&scope.live(), bot).await?.map(|_| Some(bot)))
}

async fn find(scope: &Scope<'_>, bot: Option<BotId>) -> ApiResult<Option<Policy>> {
    let (read, workspace) = (&scope.services.read, scope.identity()?.workspace);
    if let Some(moment) = scope.moment {
        let then = policy_as_of(read, workspace, bot, moment.position).await?;
        return Ok(then.map(|(row, in_force)| Policy { row, in_force }));
    }
    let Some(row) = policy(read, workspace, bot).await? else { return Ok(None) };
    let in_force = match row.version {
        Some(version) => policy_versions_by_ids(read, &[(row.policy_id, version)]).await?.pop(),
        None => None,
    };
    Ok(Some(Policy { row, in_force }))
}

/// Which versions; everything given must hold.
#[derive(Default, InputObject)]
struct PolicyVersionFilterInput {
    /// Of this bot's policy only.
    bot_id: Option<ID>,
    /// Of the workspace's own policy only.
    #[graphql(default)]
    workspace_only: bool,
    /// In force or not.
    in_force: Option<bool>,
}

#[derive(Default)]
pub(crate) struct PolicyQuery;

#[Object]
impl PolicyQuery {
    /// The workspace's policy, or a bot's; with `asOf` as it was then. Null when nobody ever published
    /// one.
    #[graphql(guard = "Needs(Permission::ReadOperations)", complexity = "10 + child_complexity")]
    async fn policy(
        &self,
        ctx: &Context<'_>,
        bot_id: Option<ID>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<Policy>> {
        let scope = Scope::then(ctx, as_of).await?;
        let Some(bot) = whose(&scope, bot_id.as_ref()).await? else { return Ok(None) };
        scope.at_least("policies", min_position).await?;
        find(&scope, bot).await
    }

    /// One version of the workspace's policy, or of a bot's; with `asOf` as it stood then.
    #[graphql(guard = "Needs(Permission::ReadOperations)")]
    async fn policy_version(
        &self,
        ctx: &Context<'_>,
        bot_id: Option<ID>,
        version: i32,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<PolicyVersion>> {
        let scope = Scope::then(ctx, as_of).await?;
        let Some(bot) = whose(&scope, bot_id.as_ref()).await? else { return Ok(None) };
        scope.at_least("policies", min_position).await?;
        let policy = policy_stream(scope.identity()?.workspace, bot);
        let found =
            policy_versions_by_ids(&scope.read("policies").await?, &[(policy, version.into())]).await?;
        Ok(found.into_iter().next().map(PolicyVersion))
    }

    /// Versions of all policies, newest first; with `asOf` as they stood then.
    #[graphql(
        guard = "Needs(Permission::ReadOperations)",
        complexity = "super::past_cost(as_of.is_some()) + super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the filter, the moment and the position")]
    async fn policy_versions(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<PolicyVersionFilterInput>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<List<PolicyVersion>> {
        let scope = Scope::then(ctx, as_of).await?;
        let paging = Slice { first, after, last, before }.of("policy_versions")?;
        let filter = filter.unwrap_or_default();
        scope.at_least("policies", min_position).await?;
        if filter.workspace_only && filter.bot_id.is_some() {
            return Err(ApiError::bad_input("ask for a bot's policy or for the workspace's own"));
        }
        let workspace = scope.identity()?.workspace;
        let bot: Option<BotId> = filter.bot_id.as_ref().map(|id| NodeKind::Bot.parse(id)).transpose()?;
        let one = filter.workspace_only || bot.is_some();
        let filter = PolicyVersionFilter {
            policy: one.then(|| policy_stream(workspace, bot)),
            in_force: filter.in_force,
        };
        let rows =
            policy_versions_page(&scope.read("policies").await?, workspace, &filter, paging.page).await?;
        Ok(paging.connect(rows, EmptyFields, |row| row.created_position, PolicyVersion))
    }

    /// What judges a bot's messages now, a second old at most; with `asOf` what judged them then. Null
    /// when there is no such bot.
    #[graphql(guard = "Needs(Permission::ReadOperations)", complexity = "5 + child_complexity")]
    async fn effective_policy(
        &self,
        ctx: &Context<'_>,
        bot_id: ID,
        as_of: Option<AsOf>,
    ) -> ApiResult<Option<EffectivePolicy>> {
        let scope = Scope::then(ctx, as_of).await?;
        let Some(Some(bot)) = whose(&scope, Some(&bot_id)).await? else { return Ok(None) };
        let workspace = scope.identity()?.workspace;
        if let Some(moment) = scope.moment {
            let read = &scope.services.read;
            if bot_as_of(read, bot, moment.position).await?.is_none() {
                return Ok(None);
            }
            let mut policy = Effective::built_in();
            for (owner, of) in [(Owner::Bot, Some(bot)), (Owner::Workspace, None)] {
                if let Some(then) = policy_in_force_as_of(read, workspace, of, moment.position).await? {
                    policy = Effective::published(owner, policy_stream(workspace, of), then);
                    break;
                }
            }
            return Ok(Some(EffectivePolicy { policy, bot }));
        }
        let policy = scope.services.app.policies.effective(workspace, bot).await;
        Ok(Some(EffectivePolicy { policy: policy.map_err(ApiError::unavailable)?, bot }))
    }
}

payload! {
    /// Answer of a mutation of a policy.
    PolicyPayload {
        /// As it is now.
        policy: Policy
    }
}

/// Whether a version acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Enum)]
enum PolicyMode {
    /// As the version before it: acting, or watching until the same moment. A week of watching where
    /// there was none before.
    #[default]
    Keep,
    /// It acts from now on.
    Live,
    /// It watches until `dryRunUntil`, or until another version.
    DryRun,
}

/// A policy for a bot or the workspace.
#[derive(InputObject)]
struct PolicyPublishInput {
    /// The bot's own; the workspace's, for all its bots without one of their own, when null.
    bot_id: Option<ID>,
    terms: PolicyTermsInput,
    #[graphql(default)]
    mode: PolicyMode,
    /// With the mode `DRY_RUN`: when it begins to act by itself. Must be ahead.
    dry_run_until: Option<DateTime<Utc>>,
    /// Why; 1 to 500 characters, kept in the ledger.
    note: Option<String>,
    conditions: Option<Conditions>,
}

/// An old version to bring back.
#[derive(InputObject)]
struct PolicyRestoreInput {
    /// The bot's own policy; the workspace's when null.
    bot_id: Option<ID>,
    /// The one whose terms become the next version.
    version: i32,
    #[graphql(default)]
    mode: PolicyMode,
    /// With the mode `DRY_RUN`: when it begins to act by itself. Must be ahead.
    dry_run_until: Option<DateTime<Utc>>,
    /// Why; 1 to 500 characters, kept in the ledger.
    note: Option<String>,
    conditions: Option<Conditions>,
}

/// A policy to take out of force.
#[derive(InputObject)]
struct PolicyWithdrawInput {
    /// The bot's own policy; the workspace's when null.
    bot_id: Option<ID>,
    /// 1 to 500 characters, kept in the ledger.
    reason: String,
    conditions: Option<Conditions>,
}

fn mode(mode: PolicyMode, until: Option<DateTime<Utc>>) -> ApiResult<Mode> {
    match (mode, until) {
        (PolicyMode::DryRun, until) => Ok(Mode::DryRun { until }),
        (_, Some(_)) => Err(ApiError::bad_input("dryRunUntil goes with the mode DRY_RUN")),
        (PolicyMode::Keep, None) => Ok(Mode::Keep),
        (PolicyMode::Live, None) => Ok(Mode::Live),
    }
}

fn note(given: Option<&str>) -> Result<Option<Reason>, UserError> {
    given.map(|note| Reason::parse(note).map_err(|error| UserError::of("note", &error))).transpose()
}

/// The policy that a mutation is about.
async fn wanted(scope: &Scope<'_>, bot_id: Option<&ID>) -> ApiResult<(PolicyScope, Option<BotId>)> {
    let bot = whose(scope, bot_id).await?.ok_or_else(|| ApiError::not_found("bot"))?;
    let workspace = scope.identity()?.workspace;
    Ok((bot.map_or(PolicyScope::Workspace(workspace), PolicyScope::Bot), bot))
}

type Executed = botledger_commands::execute::Executed<botledger_domain::policy::Policy>;

async fn done(scope: &Scope<'_>, bot: Option<BotId>, executed: &Executed) -> ApiResult<PolicyPayload> {
    let position = executed.receipt.position;
    let thing = scope.written("policies", position, find(scope, bot)).await;
    Ok(PolicyPayload::done(thing, position))
}

#[derive(Default)]
pub(crate) struct PolicyMutation;

#[Object]
impl PolicyMutation {
    /// Makes these terms the next version, in force everywhere within a second. The same terms again
    /// are a success and no new version.
    #[graphql(guard = "Acts(Permission::ManagePolicies)")]
    async fn policy_publish(&self, ctx: &Context<'_>, input: PolicyPublishInput) -> ApiResult<PolicyPayload> {
        let scope = Scope::of(ctx)?;
        let (which, bot) = wanted(&scope, input.bot_id.as_ref()).await?;
        let caller = scope.caller(input.conditions)?;
        let mode = mode(input.mode, input.dry_run_until)?;
        let note = or_refused!(PolicyPayload, note(input.note.as_deref()));
        let terms = or_refused!(PolicyPayload, input.terms.read()?);
        let published = scope.services.app.policies.publish(&caller, which, terms, mode, note).await;
        let executed = or_refused!(PolicyPayload, outcome(&scope, "policy.publish", published).await?);
        done(&scope, bot, &executed).await
    }

    /// Makes the terms of an old version the next version.
    #[graphql(guard = "Acts(Permission::ManagePolicies)")]
    async fn policy_restore(&self, ctx: &Context<'_>, input: PolicyRestoreInput) -> ApiResult<PolicyPayload> {
        let scope = Scope::of(ctx)?;
        let (which, bot) = wanted(&scope, input.bot_id.as_ref()).await?;
        let caller = scope.caller(input.conditions)?;
        let mode = mode(input.mode, input.dry_run_until)?;
        let note = or_refused!(PolicyPayload, note(input.note.as_deref()));
        let version = u32::try_from(input.version).unwrap_or(0);
        let restored = scope.services.app.policies.restore(&caller, which, version, mode, note).await;
        let executed = or_refused!(PolicyPayload, outcome(&scope, "policy.restore", restored).await?);
        done(&scope, bot, &executed).await
    }

    /// Takes a policy out of force: a bot falls back to its workspace's, a workspace to the built-in one.
    /// Doing it twice is a success.
    #[graphql(guard = "Acts(Permission::ManagePolicies)")]
    async fn policy_withdraw(
        &self,
        ctx: &Context<'_>,
        input: PolicyWithdrawInput,
    ) -> ApiResult<PolicyPayload> {
        let scope = Scope::of(ctx)?;
        let (which, bot) = wanted(&scope, input.bot_id.as_ref()).await?;
        let caller = scope.caller(input.conditions)?;
        let reason = or_refused!(PolicyPayload, reason(&input.reason));
        let withdrawn = scope.services.app.policies.withdraw(&caller, which, reason).await;
        let executed = or_refused!(PolicyPayload, outcome(&scope, "policy.withdraw", withdrawn).await?);
        done(&scope, bot, &executed).await
    }
}

/// A policy was published or withdrawn.
#[derive(SimpleObject)]
pub(crate) struct PolicyChange {
    /// Of the event: give it as `after` to go on from here.
    position: At,
    /// `policy_published` or `policy_withdrawn`.
    event_type: String,
    /// As it is now, which may be further on.
    policy: Option<Policy>,
}

#[derive(Default)]
pub(crate) struct PolicySubscription;

#[Subscription]
impl PolicySubscription {
    /// Every version published and every withdrawal after a position, each once and in order; from now
    /// on when it is null.
    #[graphql(guard = "Needs(Permission::ReadOperations)")]
    async fn policy_changed(
        &self,
        ctx: &Context<'_>,
        after: Option<At>,
    ) -> Result<BoxStream<'static, async_graphql::Result<PolicyChange>>, ApiError> {
        let filter = EventFilter { aggregate_type: Some("policy".to_owned()), ..EventFilter::default() };
        follow(ctx, after, filter, Permission::ReadOperations, |followed: Followed| async move {
            let id = Uuid::try_parse(&followed.event.aggregate_id).map_err(ApiError::unavailable)?;
            let Followed { services, request, event } = followed;
            let scope = Scope { services: &services, request: &request, moment: None };
            scope.at_least("policies", Some(event.position.into())).await?;
            let row = botledger_projections::policy_by_id(&services.read, id).await?;
            let policy = match row {
                Some(row) => find(&scope, row.bot_id.map(BotId)).await?,
                None => None,
            };
            let (position, event_type) = (event.position.into(), event.event_type.clone());
            Ok(Some(PolicyChange { position, event_type, policy }))
        })
    }
}
