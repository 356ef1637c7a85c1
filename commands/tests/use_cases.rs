//! What every use case of an operator has in common: who may, whose things exist, what a repeated
//! request and a condition on the version mean.
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod support;

use botledger_commands::{Caller, CommandError, NewBot, Origin};
use botledger_domain::{
    BotId, ConversationId, DomainError, Language, OperatorId, WorkspaceId,
    account::{Holder, Unit},
    bot::{BotSettings, UpdateMode},
    budget_stream,
    operator::{Login, Permission, Role},
    quota_stream, standing_stream,
};
use botledger_journal::Receipt;
use chrono::TimeDelta;
use futures::{FutureExt, future::BoxFuture};
use sqlx::PgPool;
use support::{World, daily, event_count, noon, plan, reason, replays_to_the_same, roomy, system};
use uuid::Uuid;
use zeroize::Zeroizing;

const ROLES: [Role; 6] =
    [Role::Owner, Role::Admin, Role::Moderator, Role::Auditor, Role::Analyst, Role::Member];

/// A world with everything the use cases work on.
struct Stage {
    world: World,
    stopped: BotId,
    conversation: ConversationId,
    colleague: OperatorId,
}

impl Stage {
    async fn set(pool: PgPool) -> Self {
        let world = World::new(pool).await;
        let stopped = world.register(&system(), 200, roomy()).await;
        let turn = world.exchange(1, 7, "hello", "hi").await;
        let (standings, person) = (&world.app.standings, world.subject(7));
        standings.block(&system(), stopped, person, reason("spam"), None).await.unwrap();
        standings.file_appeal(&Caller::subject(person, turn), stopped, person, turn, "why?").await.unwrap();
        let chat = world.app.core.vault.chat_pseudonym(world.bot, 7);
        let conversation = ConversationId::of_chat(world.bot, chat, None);
        world.app.sessions.open(&system(), conversation, world.bot, world.subject(7)).await.unwrap();
        world.app.workspaces.define_plan(&system(), world.workspace, plan("pro"), daily(9)).await.unwrap();
        let login = Login::parse("colleague").unwrap();
        let invited =
            world.app.operators.invite(&system(), world.workspace, login, Role::Analyst).await.unwrap();
        world
            .app
            .operators
            .activate(&invited.2.0, "a long enough password", Origin::default())
            .await
            .unwrap();
        Self { world, stopped, conversation, colleague: invited.0 }
    }
}

type Outcome = Result<Receipt, &'static str>;
type Run = for<'a> fn(&'a Stage, Caller) -> BoxFuture<'a, Outcome>;

struct UseCase {
    name: &'static str,
    needs: Permission,
    /// The stream whose version a condition is about.
    stream: fn(&Stage) -> (&'static str, String),
    run: Run,
}

fn code<T, E: DomainError>(result: Result<T, CommandError<E>>) -> Result<T, &'static str> {
    result.map_err(|error| error.code())
}

fn budget_of(stage: &Stage) -> String {
    budget_stream(stage.world.workspace, Holder::Bot(stage.world.bot)).to_string()
}

macro_rules! use_cases {
    ($($name:literal needs $needs:ident on $kind:literal $id:expr, |$s:ident, $app:ident, $caller:ident| $call:expr;)*) => {
        vec![$(UseCase {
            name: $name,
            needs: Permission::$needs,
            stream: |s: &Stage| { let id: fn(&Stage) -> String = $id; ($kind, id(s)) },
            run: |$s: &Stage, $caller: Caller| async move {
                let $app = &$s.world.app;
                code($call.await).map(|done| done.receipt)
            }.boxed(),
        }),*]
    };
}

/// In an order in which each has something to do.
fn use_cases() -> Vec<UseCase> {
    let mut all = use_cases! {
        "bot.rotate_token" needs ManageBots on "bot" |s| s.stopped.to_string(), |s, app, caller|
            app.bots.rotate_token(&caller, s.stopped, Zeroizing::new("200:fresh".to_owned()));
        "bot.configure" needs ManageBots on "bot" |s| s.stopped.to_string(), |s, app, caller|
            app.bots.configure(&caller, s.stopped, BotSettings::default(), UpdateMode::Webhook);
        "bot.start" needs ManageBots on "bot" |s| s.stopped.to_string(), |s, app, caller| app.bots.start(&caller, s.stopped);
        "bot.stop" needs ManageBots on "bot" |s| s.stopped.to_string(), |s, app, caller|
            app.bots.stop(&caller, s.stopped, reason("maintenance"));
        "quota.assign_plan" needs ManageQuotas on "quota" |s| quota_stream(s.world.workspace, s.world.subject(7)).to_string(),
            |s, app, caller| app.quotas.assign_plan(&caller, s.world.workspace, s.world.subject(7), &plan("pro"));
        "quota.grant_override" needs ManageQuotas on "quota" |s| quota_stream(s.world.workspace, s.world.subject(7)).to_string(),
            |s, app, caller| app.quotas.grant_override(
                &caller, s.world.workspace, s.world.subject(7), Unit::Tokens, 100, noon() + TimeDelta::hours(1), reason("a trial"));
        "budget.set" needs ManageQuotas on "budget" |s| budget_of(s),
            |s, app, caller| app.budgets.set(&caller, s.world.workspace, Holder::Bot(s.world.bot), daily(900), None);
        "budget.raise" needs ManageQuotas on "budget" |s| budget_of(s),
            |s, app, caller| app.budgets.raise(
                &caller, s.world.workspace, Holder::Bot(s.world.bot), Unit::Tokens, 100, noon() + TimeDelta::hours(1),
                reason("rush"));
        "budget.remove" needs ManageQuotas on "budget" |s| budget_of(s),
            |s, app, caller| app.budgets.remove(&caller, s.world.workspace, Holder::Bot(s.world.bot), reason("tidy"));
        "standing.block" needs Moderate on "standing" |s| standing_stream(s.world.bot, s.world.subject(7)).to_string(),
            |s, app, caller| app.standings.block(&caller, s.world.bot, s.world.subject(7), reason("spam"), None);
        "standing.unblock" needs Moderate on "standing" |s| standing_stream(s.world.bot, s.world.subject(7)).to_string(),
            |s, app, caller| app.standings.unblock(&caller, s.world.bot, s.world.subject(7), reason("pardoned"));
        "standing.deny_appeal" needs Moderate on "standing" |s| standing_stream(s.stopped, s.world.subject(7)).to_string(),
            |s, app, caller| app.standings.deny_appeal(&caller, s.stopped, s.world.subject(7), reason("no"));
        "standing.undo" needs Moderate on "standing" |s| standing_stream(s.stopped, s.world.subject(7)).to_string(),
            |s, app, caller| app.standings.undo(&caller, s.stopped, s.world.subject(7), reason("too fast"));
        "standing.grant_appeal" needs Moderate on "standing" |s| standing_stream(s.stopped, s.world.subject(7)).to_string(),
            |s, app, caller| app.standings.grant_appeal(&caller, s.stopped, s.world.subject(7), None);
        "workspace.rename" needs ManageBots on "workspace" |s| s.world.workspace.to_string(), |s, app, caller|
            app.workspaces.rename(&caller, s.world.workspace, "Renamed".to_owned());
        "workspace.define_plan" needs ManageQuotas on "workspace" |s| s.world.workspace.to_string(), |s, app, caller|
            app.workspaces.define_plan(&caller, s.world.workspace, plan("team"), daily(50));
        "workspace.set_default_plan" needs ManageQuotas on "workspace" |s| s.world.workspace.to_string(), |s, app, caller|
            app.workspaces.set_default_plan(&caller, s.world.workspace, plan("team"));
        "workspace.retire_plan" needs ManageQuotas on "workspace" |s| s.world.workspace.to_string(), |s, app, caller|
            app.workspaces.retire_plan(&caller, s.world.workspace, plan("pro"), reason("nobody is on it"));
        "operator.change_role" needs ManageOperators on "operator" |s| s.colleague.to_string(), |s, app, caller|
            app.operators.change_role(&caller, s.colleague, Role::Moderator);
        "operator.disable" needs ManageOperators on "operator" |s| s.colleague.to_string(), |s, app, caller|
            app.operators.disable(&caller, s.colleague, reason("left"));
        "operator.enable" needs ManageOperators on "operator" |s| s.colleague.to_string(), |s, app, caller|
            app.operators.enable(&caller, s.colleague, reason("came back"));
        "bot.archive" needs ManageBots on "bot" |s| s.stopped.to_string(), |s, app, caller|
            app.bots.archive(&caller, s.stopped, reason("not needed"));
    };
    all.extend(of_conversations());
    all
}

/// Their streams carry no workspace: whose a conversation is, the API looks up before it calls.
fn of_conversations() -> Vec<UseCase> {
    use_cases! {
        "session.rename" needs Moderate on "chat_session" |s| s.conversation.to_string(), |s, app, caller|
            app.sessions.rename(&caller, s.conversation, s.world.subject(7), 1, "holidays");
        "session.switch" needs Moderate on "chat_session" |s| s.conversation.to_string(), |s, app, caller|
            app.sessions.switch(&caller, s.conversation, 1);
        "session.clear_context" needs Moderate on "chat_session" |s| s.conversation.to_string(), |s, app, caller|
            app.sessions.clear_context(&caller, s.conversation);
        "session.open" needs Moderate on "chat_session" |s| s.conversation.to_string(), |s, app, caller|
            app.sessions.open(&caller, s.conversation, s.world.bot, s.world.subject(7));
        "subject.choose_language" needs Moderate on "subject" |s| s.world.subject(7).to_string(), |s, app, caller|
            app.subjects.choose_language(&caller, s.world.subject(7), Language::Ru);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn nobody_does_what_their_role_does_not_allow(pool: PgPool) {
    let stage = Stage::set(pool.clone()).await;
    for case in use_cases() {
        for role in ROLES {
            let before = event_count(&pool).await;
            let outcome = (case.run)(&stage, stage.world.operator(role)).await;
            if role.may(case.needs) {
                assert_ne!(outcome.as_ref().err(), Some(&"FORBIDDEN"), "{} as {role:?}", case.name);
            } else {
                assert_eq!(outcome, Err("FORBIDDEN"), "{} as {role:?}", case.name);
                assert_eq!(event_count(&pool).await, before, "{} as {role:?}", case.name);
            }
        }
    }
    replays_to_the_same(&stage.world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn accounts_and_bots_are_made_by_those_who_may(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    for (n, role) in (300..).zip(ROLES) {
        let caller = world.operator(role);
        let login = Login::parse(&format!("guest-{n}")).unwrap();
        let invited = world.app.operators.invite(&caller, world.workspace, login, Role::Member).await;
        assert_eq!(invited.is_ok(), role.may(Permission::ManageOperators), "{role:?}");
        let new = NewBot {
            workspace: world.workspace,
            token: Zeroizing::new(format!("{n}:secret")),
            mode: UpdateMode::Polling,
            settings: roomy(),
        };
        let registered = world.app.bots.register(&caller, new).await;
        assert_eq!(registered.is_ok(), role.may(Permission::ManageBots), "{role:?}");
        let tenant = WorkspaceId(Uuid::now_v7());
        let created =
            world.app.workspaces.create(&caller, tenant, "Mine".to_owned(), plan("free"), daily(1)).await;
        assert_eq!(created.unwrap_err().code(), "FORBIDDEN", "only the platform makes tenants");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn things_of_other_workspaces_do_not_exist(pool: PgPool) {
    let stage = Stage::set(pool.clone()).await;
    let stranger =
        Caller::operator(Uuid::now_v7().into(), Role::Owner, WorkspaceId(Uuid::now_v7()), Uuid::now_v7());
    let before = event_count(&pool).await;
    for case in use_cases().into_iter().filter(|case| !case.name.starts_with("session.")) {
        assert_eq!((case.run)(&stage, stranger.clone()).await, Err("NOT_FOUND"), "{}", case.name);
    }
    let (app, workspace) = (&stage.world.app, stage.world.workspace);
    assert_eq!(app.bots.get(&stranger, stage.world.bot).await.unwrap_err().code(), "NOT_FOUND");
    let login = Login::parse("spy").unwrap();
    let invited = app.operators.invite(&stranger, workspace, login, Role::Owner).await;
    assert_eq!(code(invited).err(), Some("NOT_FOUND"));
    let token = Zeroizing::new("999:secret".to_owned());
    let new = NewBot { workspace, token, mode: UpdateMode::Polling, settings: roomy() };
    assert_eq!(code(app.bots.register(&stranger, new).await).err(), Some("NOT_FOUND"));
    assert_eq!(event_count(&pool).await, before);
    // Absent and foreign look the same.
    let absent = app.bots.start(&stage.world.operator(Role::Owner), BotId(Uuid::now_v7())).await;
    assert_eq!(code(absent).err(), Some("NOT_FOUND"));
}

#[sqlx::test(migrations = "../migrations")]
async fn the_same_key_twice_is_the_same_answer_and_no_second_event(pool: PgPool) {
    let stage = Stage::set(pool.clone()).await;
    let owner = stage.world.operator(Role::Owner);
    for case in use_cases() {
        let caller = Caller { idempotency_key: Some(format!("key of {}", case.name)), ..owner.clone() };
        let first =
            (case.run)(&stage, caller.clone()).await.unwrap_or_else(|code| panic!("{}: {code}", case.name));
        assert!(first.position.0 > 0 && !first.duplicate, "{} does something", case.name);
        let before = event_count(&pool).await;
        let second = (case.run)(&stage, caller).await.unwrap_or_else(|code| panic!("{}: {code}", case.name));
        assert!(second.duplicate, "{}", case.name);
        assert_eq!(
            (second.position, second.event_positions),
            (first.position, first.event_positions),
            "{}",
            case.name
        );
        assert_eq!(event_count(&pool).await, before, "{}", case.name);
    }
    replays_to_the_same(&stage.world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_request_sent_twice_at_once_is_done_once(pool: PgPool) {
    let stage = Stage::set(pool.clone()).await;
    let owner = stage.world.operator(Role::Owner);
    for case in use_cases() {
        let before = event_count(&pool).await;
        let caller = || Caller { idempotency_key: Some(format!("key of {}", case.name)), ..owner.clone() };
        let both = futures::future::join_all((0..4).map(|_| (case.run)(&stage, caller()))).await;
        let positions: Vec<_> = both.into_iter().map(|done| done.expect(case.name).position).collect();
        assert!(positions.iter().all(|position| *position == positions[0]), "{}: {positions:?}", case.name);
        assert_eq!(event_count(&pool).await, before + 1, "{}", case.name);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn the_same_key_in_two_workspaces_is_two_requests(pool: PgPool) {
    let stage = Stage::set(pool).await;
    let other = WorkspaceId(Uuid::now_v7());
    let app = &stage.world.app;
    app.workspaces.create(&system(), other, "Other".to_owned(), plan("free"), daily(5)).await.unwrap();
    for workspace in [stage.world.workspace, other] {
        let owner = Caller::operator(Uuid::now_v7().into(), Role::Owner, workspace, Uuid::now_v7());
        let caller = Caller { idempotency_key: Some("key".to_owned()), ..owner };
        let done = app.workspaces.rename(&caller, workspace, "Renamed".to_owned()).await.unwrap();
        assert!(!done.receipt.duplicate);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_condition_on_the_version_is_kept(pool: PgPool) {
    let stage = Stage::set(pool.clone()).await;
    let owner = stage.world.operator(Role::Owner);
    for case in use_cases() {
        let (aggregate_type, id) = (case.stream)(&stage);
        let version = support::event_types(&pool, aggregate_type, &id).await.len() as i64;
        let expecting = |version| Caller { expected_version: Some(version), ..owner.clone() };
        let before = event_count(&pool).await;
        assert_eq!((case.run)(&stage, expecting(version + 1)).await, Err("CONFLICT"), "{}", case.name);
        assert_eq!(event_count(&pool).await, before, "{}", case.name);
        // With a key: the repeat of a request that was done finds its answer, not the conflict it made.
        let caller = Caller { idempotency_key: Some(format!("key of {}", case.name)), ..expecting(version) };
        let done =
            (case.run)(&stage, caller.clone()).await.unwrap_or_else(|code| panic!("{}: {code}", case.name));
        assert_eq!(
            (case.run)(&stage, caller).await.map(|again| again.position),
            Ok(done.position),
            "{}",
            case.name
        );
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_bot_is_in_the_fleet_once(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let other = world.second_instance();
    let new = |key: Option<&str>| {
        let token = Zeroizing::new("300:secret".to_owned());
        let new = NewBot { workspace: world.workspace, token, mode: UpdateMode::Polling, settings: roomy() };
        (Caller { idempotency_key: key.map(str::to_owned), ..world.operator(Role::Admin) }, new)
    };
    let register = |n: usize| {
        let ((caller, new), other, app) = (new(None), other.clone(), world.app.clone());
        async move {
            if n.is_multiple_of(2) {
                app.bots.register(&caller, new).await
            } else {
                other.bots.register(&caller, new).await
            }
        }
    };
    let all = futures::future::join_all((0..6).map(register)).await;
    assert_eq!(all.iter().filter(|done| done.is_ok()).count(), 1);
    assert!(all.into_iter().filter_map(Result::err).all(|error| error.code() == "BOT_ALREADY_REGISTERED"));
    let (caller, mut keyed) = new(Some("once"));
    keyed.token = Zeroizing::new("301:secret".to_owned());
    let first = world.app.bots.register(&caller, keyed.clone()).await.unwrap();
    let second = world.app.bots.register(&caller, keyed).await.unwrap();
    assert_eq!((first.0, first.1.receipt.position), (second.0, second.1.receipt.position));
    for (token, refusal) in [("300:revoked", "BOT_TOKEN_REJECTED"), ("no token", "BOT_TOKEN_MALFORMED")] {
        let (caller, mut new) = new(None);
        new.token = Zeroizing::new(token.to_owned());
        assert_eq!(code(world.app.bots.register(&caller, new).await).err(), Some(refusal));
    }
    let theirs = Zeroizing::new("301:secret".to_owned());
    let rotated = world.app.bots.rotate_token(&system(), world.bot, theirs).await;
    assert_eq!(code(rotated).err(), Some("BOT_TOKEN_OF_ANOTHER_BOT"));
    assert_eq!(world.app.bots.token(first.0).await.unwrap().as_str(), "301:secret");
    let secret = world.app.bots.webhook_secret(first.0).await.unwrap();
    assert_eq!((secret.len(), &secret), (32, &other.bots.webhook_secret(first.0).await.unwrap()));
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_bot_is_held_by_one_instance(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let other = world.second_instance();
    let ttl = std::time::Duration::from_secs(600);
    let taken = other.bots.acquire_lease(&system(), world.bot, ttl).await.unwrap();
    assert!(matches!(taken, botledger_commands::Lease::Taken { by, .. } if by == world.app.core.instance));
    world.app.bots.release_lease(&system(), world.bot, world.fence).await.unwrap();
    let fence = world.hold(&other, world.bot).await;
    assert!(fence.epoch > world.fence.epoch);
    assert!(other.bots.renew_lease(world.bot, fence, ttl).await.unwrap());
    assert!(!world.app.bots.renew_lease(world.bot, world.fence, ttl).await.unwrap());
    let bot = world.app.bots.get(&system(), world.bot).await.unwrap();
    assert_eq!((bot.holder, bot.lease_epoch), (Some(other.core.instance), fence.epoch));
    // A bot that is not meant to run is left to whoever may run it next.
    let stopped = world.register(&system(), 200, roomy()).await;
    let refused = other.bots.acquire_lease(&system(), stopped, ttl).await;
    assert_eq!(code(refused).err(), Some("BOT_NOT_RUNNING"));
    world.app.bots.start(&system(), stopped).await.unwrap();
    world.hold(&world.app, stopped).await;
    replays_to_the_same(&world.app, &pool).await;
}
