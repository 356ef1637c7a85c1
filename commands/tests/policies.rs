//! Policies: who may publish, which one judges, and how soon everybody knows.
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod support;

use botledger_commands::{App, Caller, CommandError, PolicyScope};
use botledger_domain::{
    BotId, WorkspaceId,
    operator::Role,
    policy::{
        ModerationRule, PolicyError, PolicyMode, PolicyOwner, PolicyRef, PolicyTerms, Response, TRIAL, Trial,
    },
};
use chrono::TimeDelta;
use sqlx::PgPool;
use support::{World, noon, reason, system};
use uuid::Uuid;

fn terms(throttled_per_minute: u32) -> PolicyTerms {
    PolicyTerms { throttled_per_minute, ..PolicyTerms::default() }
}

impl World {
    fn whole(&self) -> PolicyScope {
        PolicyScope::Workspace(self.workspace)
    }

    fn own(&self) -> PolicyScope {
        PolicyScope::Bot(self.bot)
    }

    async fn publish(&self, scope: PolicyScope, n: u32, mode: PolicyMode) -> u32 {
        let done = self.app.policies.publish(&system(), scope, terms(n), mode, None).await.unwrap();
        done.after.state.last_version
    }

    /// Which policy judges the bot's messages, and the figure that tells its terms apart.
    async fn judge(&self, app: &App) -> (PolicyOwner, u32, bool, u32) {
        let found = app.policies.effective(self.workspace, self.bot).await.unwrap();
        let PolicyRef { owner, version, dry_run } = found.reference(app.core.clock.now());
        (owner, version, dry_run, found.terms.throttled_per_minute)
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_bots_own_policy_goes_before_its_workspaces_and_that_before_the_built_in_one(pool: PgPool) {
    let world = World::new(pool).await;
    let (app, policies) = (&world.app, &world.app.policies);
    assert_eq!(world.judge(app).await, (PolicyOwner::BuiltIn, 0, true, 1));
    world.publish(world.whole(), 2, PolicyMode::Live).await;
    assert_eq!(world.judge(app).await, (PolicyOwner::Workspace, 1, false, 2));
    world.publish(world.own(), 3, PolicyMode::DryRun { until: None }).await;
    assert_eq!(world.judge(app).await, (PolicyOwner::Bot, 1, true, 3));
    let other = BotId(Uuid::now_v7());
    let elsewhere = policies.effective(world.workspace, other).await.unwrap();
    assert_eq!(elsewhere.reference(noon()).owner, PolicyOwner::Workspace);
    let foreign = policies.effective(WorkspaceId(Uuid::now_v7()), other).await.unwrap();
    assert_eq!(foreign.reference(noon()).owner, PolicyOwner::BuiltIn);

    policies.withdraw(&system(), world.own(), reason("no need")).await.unwrap();
    assert_eq!(world.judge(app).await, (PolicyOwner::Workspace, 1, false, 2));
    let again = policies.withdraw(&system(), world.own(), reason("no need")).await.unwrap();
    assert!(again.receipt.event_positions.is_empty(), "already so");
    policies.withdraw(&system(), world.whole(), reason("over")).await.unwrap();
    assert_eq!(world.judge(app).await, (PolicyOwner::BuiltIn, 0, true, 1));
    // Numbers are never given twice.
    assert_eq!(world.publish(world.own(), 4, PolicyMode::Live).await, 2);
    support::replays_to_the_same(&world.app, &world.pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_first_version_watches_for_a_week_and_then_acts_by_itself(pool: PgPool) {
    let world = World::new(pool).await;
    world.publish(world.own(), 2, PolicyMode::Keep).await;
    assert_eq!(world.judge(&world.app).await, (PolicyOwner::Bot, 1, true, 2));
    world.clock.advance(TRIAL - TimeDelta::seconds(1));
    // A version that keeps the mode watches until the same moment.
    world.publish(world.own(), 3, PolicyMode::Keep).await;
    assert_eq!(world.judge(&world.app).await, (PolicyOwner::Bot, 2, true, 3));
    world.clock.advance(TimeDelta::seconds(1));
    assert_eq!(world.judge(&world.app).await, (PolicyOwner::Bot, 2, false, 3));
    let found = world.app.policies.effective(world.workspace, world.bot).await.unwrap();
    assert_eq!(found.trial(), Trial::DryRun { until: Some(noon() + TRIAL) });
    world.publish(world.own(), 4, PolicyMode::Keep).await;
    assert_eq!(world.judge(&world.app).await, (PolicyOwner::Bot, 3, false, 4));
}

#[sqlx::test(migrations = "../migrations")]
async fn an_old_version_comes_back_as_a_new_one(pool: PgPool) {
    let world = World::new(pool).await;
    let policies = &world.app.policies;
    for n in [5, 6] {
        world.publish(world.own(), n, PolicyMode::Live).await;
    }
    let note = Some(reason("six was too strict"));
    let restored = policies.restore(&system(), world.own(), 1, PolicyMode::Keep, note.clone()).await.unwrap();
    assert_eq!(restored.after.state.last_version, 3);
    assert_eq!(world.judge(&world.app).await, (PolicyOwner::Bot, 3, false, 5));
    let same = policies.restore(&system(), world.own(), 1, PolicyMode::Keep, note).await.unwrap();
    assert!(same.receipt.event_positions.is_empty(), "it is in force already");
    // Also after it was withdrawn; then it watches first, like any other.
    policies.withdraw(&system(), world.own(), reason("over")).await.unwrap();
    policies.restore(&system(), world.own(), 2, PolicyMode::Keep, None).await.unwrap();
    assert_eq!(world.judge(&world.app).await, (PolicyOwner::Bot, 4, true, 6));
    for absent in [0, 5] {
        let refused = policies.restore(&system(), world.own(), absent, PolicyMode::Live, None).await;
        assert!(matches!(refused, Err(CommandError::NotFound { what: "version of the policy" })), "{absent}");
    }
    let refused = policies.restore(&system(), world.whole(), 1, PolicyMode::Live, None).await;
    assert!(matches!(refused, Err(CommandError::NotFound { .. })), "the workspace never had one");
}

#[sqlx::test(migrations = "../migrations")]
async fn other_processes_judge_by_a_new_version_within_moments(pool: PgPool) {
    let world = World::new(pool).await;
    let other = world.second_instance();
    assert_eq!(world.judge(&other).await, (PolicyOwner::BuiltIn, 0, true, 1));
    world.publish(world.own(), 2, PolicyMode::Live).await;
    assert_eq!(world.judge(&world.app).await.0, PolicyOwner::Bot, "at once where it was published");
    let seen = async {
        while world.judge(&other).await.0 != PolicyOwner::Bot {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), seen).await.expect("it is seen");
    // A dry run ends by the clock, whatever is remembered.
    let until = Some(noon() + TimeDelta::hours(1));
    world.publish(world.own(), 3, PolicyMode::DryRun { until }).await;
    let seen = async {
        while world.judge(&other).await != (PolicyOwner::Bot, 2, true, 3) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), seen).await.expect("it is seen");
    world.clock.advance(TimeDelta::hours(1));
    assert_eq!(world.judge(&other).await, (PolicyOwner::Bot, 2, false, 3));
}

#[sqlx::test(migrations = "../migrations")]
async fn terms_that_make_no_sense_and_dry_runs_that_are_over_are_refused(pool: PgPool) {
    let world = World::new(pool).await;
    let policies = &world.app.policies;
    let refused = policies.publish(&system(), world.own(), terms(0), PolicyMode::Live, None).await;
    assert_eq!(refused.unwrap_err().code(), "POLICY_INVALID");
    let over = PolicyMode::DryRun { until: Some(noon()) };
    let refused = policies.publish(&system(), world.own(), terms(1), over, None).await;
    assert_eq!(refused.unwrap_err().code(), "POLICY_DRY_RUN_END");
    assert_eq!(world.judge(&world.app).await.0, PolicyOwner::BuiltIn);
    // The same terms in the same mode are the same version.
    let again = PolicyTerms { spam: Response::Score, ..terms(1) };
    for _ in 0..2 {
        policies.publish(&system(), world.own(), again.clone(), PolicyMode::Live, None).await.unwrap();
    }
    assert_eq!(world.judge(&world.app).await.1, 1);
}

#[sqlx::test(migrations = "../migrations")]
async fn who_may_change_policies(pool: PgPool) {
    let world = World::new(pool).await;
    let policies = &world.app.policies;
    let publish = async |caller: &Caller, scope| {
        policies.publish(caller, scope, terms(2), PolicyMode::Live, None).await
    };
    for role in [Role::Moderator, Role::Auditor, Role::Analyst, Role::Member] {
        let caller = world.operator(role);
        let forbidden = |refused: &CommandError<_>| matches!(refused, CommandError::Forbidden { .. });
        assert!(publish(&caller, world.own()).await.is_err_and(|error| forbidden(&error)), "{role:?}");
        let refused = policies.withdraw(&caller, world.whole(), reason("no")).await;
        assert!(refused.is_err_and(|error| forbidden(&error)), "{role:?}");
        let refused = policies.restore(&caller, world.own(), 1, PolicyMode::Live, None).await;
        assert!(refused.is_err_and(|error| forbidden(&error)), "{role:?}");
    }
    let admin = world.operator(Role::Admin);
    let foreign = publish(&admin, PolicyScope::Workspace(WorkspaceId(Uuid::now_v7()))).await;
    assert!(matches!(foreign, Err(CommandError::NotFound { what: "workspace" })));
    let nobodys = publish(&admin, PolicyScope::Bot(BotId(Uuid::now_v7()))).await;
    assert!(matches!(nobodys, Err(CommandError::NotFound { what: "bot" })));
    let done = publish(&admin, world.own()).await.unwrap();
    assert_eq!(done.after.state.last_version, 1);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_policy_asks_only_services_that_are_there(pool: PgPool) {
    let world = World::new(pool).await;
    let rule = ModerationRule { service: "somewhere".to_owned(), required: false };
    let terms = PolicyTerms { moderation: vec![rule], ..PolicyTerms::default() };
    let published = world.app.policies.publish(&system(), world.own(), terms, PolicyMode::Live, None).await;
    let Err(CommandError::Refused(PolicyError::Invalid { problem })) = published else {
        panic!("{published:?}")
    };
    assert_eq!(
        problem,
        "it asks the moderation service `somewhere`, which is not configured; configured: none"
    );
}
