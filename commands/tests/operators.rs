//! How operators get in, stay in and are shut out.
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod support;

use botledger_commands::{App, Caller, OneTimeSecret, Origin, Session, SessionError};
use botledger_domain::{
    OperatorId, WorkspaceId,
    operator::{Login, OperatorStatus, Role},
};
use chrono::TimeDelta;
use futures::future::join_all;
use sqlx::PgPool;
use support::{World, daily, event_count, plan, reason, replays_to_the_same, system};

const PASSWORD: &str = "correct horse battery";

async fn bootstrap(app: &App) -> Option<OneTimeSecret> {
    app.operators.bootstrap_owner(&system(), "First", plan("free"), daily(1_000)).await.unwrap()
}

async fn invite(world: &World, login: &str, role: Role) -> (OperatorId, OneTimeSecret) {
    let login = Login::parse(login).unwrap();
    let (operator, _, link) =
        world.app.operators.invite(&system(), world.workspace, login, role).await.unwrap();
    (operator, link)
}

async fn logged_in(world: &World, login: &str, role: Role) -> Session {
    let (_, link) = invite(world, login, role).await;
    world.app.operators.activate(&link.0, PASSWORD, Origin::default()).await.unwrap()
}

fn code<T>(result: Result<T, SessionError>) -> &'static str {
    result.err().expect("an error").code()
}

#[sqlx::test(migrations = "../migrations")]
async fn the_first_owner_gets_in_by_a_link_until_there_is_a_password(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let other = world.second_instance();
    // Two processes that start at once: one workspace, one account.
    let links = join_all([bootstrap(&world.app), bootstrap(&other)]).await;
    let [first, second] =
        <[_; 2]>::try_from(links).ok().unwrap().map(|link| link.expect("nobody has a password"));
    let created = "SELECT count(*) FROM events WHERE event_type = $1";
    let count = async |event: &str| -> i64 {
        sqlx::query_scalar(created).bind(event).fetch_one(&pool).await.unwrap()
    };
    assert_eq!(count("operator_invited").await, 1);
    assert_eq!(count("workspace_created").await, 2, "the one of the test and the first owner's");
    // Of links made at the same moment any may work, but one is enough.
    let mut sessions = Vec::new();
    for link in [&first, &second, &first, &second] {
        sessions.extend(world.app.operators.activate(&link.0, PASSWORD, Origin::default()).await);
    }
    let [session] = <[_; 1]>::try_from(sessions).ok().expect("one link works, and once");
    assert_eq!((session.role, session.login.as_str()), (Role::Owner, "owner"));
    assert!(bootstrap(&other).await.is_none());
    world.app.operators.login("owner", PASSWORD, Origin::default()).await.unwrap();
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_start_that_died_half_way_is_completed_by_the_next(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    // As after a crash between the claim of the login and the ledger.
    sqlx::query("INSERT INTO operator_logins (login, operator_id, workspace) VALUES ('owner', $1, $2), ('anna', $3, $4)")
        .bind(uuid::Uuid::now_v7())
        .bind(uuid::Uuid::now_v7())
        .bind(uuid::Uuid::now_v7())
        .bind(world.workspace.uuid())
        .execute(&pool)
        .await
        .unwrap();
    let link = bootstrap(&world.app).await.unwrap();
    world.app.operators.activate(&link.0, PASSWORD, Origin::default()).await.unwrap();
    let (_, link) = invite(&world, "anna", Role::Admin).await;
    world.app.operators.activate(&link.0, PASSWORD, Origin::default()).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn of_invitations_with_one_login_one_stands(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let other = world.second_instance();
    let login = || Login::parse("anna").unwrap();
    let all = join_all((0..6).map(|n| {
        let operators = if n % 2 == 0 { &world.app.operators } else { &other.operators };
        async move { operators.invite(&system(), world.workspace, login(), Role::Admin).await }
    }))
    .await;
    let accounts: std::collections::BTreeSet<_> = all.into_iter().map(|invited| invited.unwrap().0).collect();
    assert_eq!(accounts.len(), 1);
    let made: i64 = sqlx::query_scalar("SELECT count(*) FROM events WHERE event_type = 'operator_invited'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(made, 1);
    let elsewhere = WorkspaceId(uuid::Uuid::now_v7());
    let taken = world.app.operators.invite(&system(), elsewhere, login(), Role::Admin).await;
    assert_eq!(taken.err().unwrap().code(), "OPERATOR_LOGIN_TAKEN");
    replays_to_the_same(&other, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn an_invitation_repeated_with_its_key_is_one_until_it_is_used(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let caller = Caller { idempotency_key: Some("invite anna".to_owned()), ..world.operator(Role::Owner) };
    let invite =
        || world.app.operators.invite(&caller, world.workspace, Login::parse("anna").unwrap(), Role::Admin);
    let first = invite().await.unwrap();
    let before = event_count(&pool).await;
    let second = invite().await.unwrap();
    assert_eq!((first.0, first.1.receipt.position), (second.0, second.1.receipt.position));
    assert_eq!(event_count(&pool).await, before);
    world.app.operators.activate(&second.2.0, PASSWORD, Origin::default()).await.unwrap();
    assert_eq!(
        code(world.app.operators.activate(&first.2.0, "another password", Origin::default()).await),
        "BAD_LINK"
    );
    let third = invite().await;
    assert_eq!(third.err().unwrap().code(), "OPERATOR_LOGIN_TAKEN", "no link may replace a password");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_lost_link_is_replaced_until_there_is_a_password(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let operators = &world.app.operators;
    let again = async |caller: &Caller, role: Role| {
        operators.invite(caller, world.workspace, Login::parse("anna").unwrap(), role).await
    };
    let (operator, lost) = invite(&world, "anna", Role::Admin).await;
    world.clock.advance(TimeDelta::hours(25));
    let before = event_count(&pool).await;
    let owner = world.operator(Role::Owner);
    let (same, _, link) = again(&owner, Role::Admin).await.unwrap();
    assert_eq!((same, event_count(&pool).await), (operator, before), "the account is there already");
    assert_eq!(again(&owner, Role::Owner).await.err().unwrap().code(), "OPERATOR_LOGIN_TAKEN");
    assert_eq!(again(&world.operator(Role::Admin), Role::Admin).await.err().unwrap().code(), "FORBIDDEN");
    let (_, _, newer) = again(&owner, Role::Admin).await.unwrap();
    for ended in [&lost, &link] {
        assert_eq!(code(operators.activate(&ended.0, PASSWORD, Origin::default()).await), "BAD_LINK");
    }
    operators.disable(&owner, operator, reason("left")).await.unwrap();
    assert_eq!(again(&owner, Role::Admin).await.err().unwrap().code(), "OPERATOR_DISABLED");
    operators.enable(&owner, operator, reason("back")).await.unwrap();
    operators.activate(&newer.0, PASSWORD, Origin::default()).await.unwrap();
    assert_eq!(again(&owner, Role::Admin).await.err().unwrap().code(), "OPERATOR_LOGIN_TAKEN");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_link_works_once_and_for_a_day(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let (operator, link) = invite(&world, "anna", Role::Admin).await;
    let uses =
        join_all((0..2).map(|_| world.app.operators.activate(&link.0, PASSWORD, Origin::default()))).await;
    assert_eq!(uses.iter().filter(|used| used.is_ok()).count(), 1);
    assert_eq!(world.app.operators.standing(operator).await.unwrap().unwrap().status, OperatorStatus::Active);
    let (_, late) = invite(&world, "boris", Role::Admin).await;
    world.clock.advance(TimeDelta::hours(24));
    assert_eq!(code(world.app.operators.activate(&late.0, PASSWORD, Origin::default()).await), "BAD_LINK");
}

#[sqlx::test(migrations = "../migrations")]
async fn passwords_have_a_least_and_a_greatest_length(pool: PgPool) {
    let world = World::new(pool).await;
    let (_, link) = invite(&world, "anna", Role::Admin).await;
    let longest = "я".repeat(200);
    for weak in ["elevenchars", &format!("{longest}я")] {
        assert_eq!(
            code(world.app.operators.activate(&link.0, weak, Origin::default()).await),
            "WEAK_PASSWORD"
        );
    }
    world.app.operators.activate(&link.0, &longest, Origin::default()).await.unwrap();
    world.app.operators.login("Anna ", &longest, Origin::default()).await.unwrap();
    assert_eq!(
        code(world.app.operators.login("anna", &format!("{longest}!"), Origin::default()).await),
        "BAD_CREDENTIALS"
    );
}

#[sqlx::test(migrations = "../migrations")]
async fn every_reason_not_to_be_let_in_sounds_the_same(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    invite(&world, "invited", Role::Admin).await;
    let anna = logged_in(&world, "anna", Role::Admin).await;
    let mut answers = Vec::new();
    for (name, password) in [
        ("anna", "wrong password!"),
        ("nobody", PASSWORD),
        ("invited", ""),
        ("an\0na", PASSWORD),
        // Disabled before this one.
        ("anna", PASSWORD),
    ] {
        if answers.len() == 4 {
            world.app.operators.disable(&system(), anna.operator, reason("left")).await.unwrap();
        }
        let error = world.app.operators.login(name, password, Origin::default()).await.err().unwrap();
        answers.push((error.code(), error.to_string()));
    }
    answers.dedup();
    assert_eq!(answers, [("BAD_CREDENTIALS", "login or password is not right".to_owned())]);
    let refused: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM audit_log WHERE action = 'session.login' AND outcome = 'refused' AND operator_id IS NULL",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(refused, 5);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_refresh_token_is_exchanged_once_and_its_reuse_ends_the_family(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let (operators, clock) = (&world.app.operators, &world.clock);
    let first = logged_in(&world, "anna", Role::Admin).await.refresh_token;
    let second = operators.refresh(&first.0, Origin::default()).await.unwrap().refresh_token;
    assert_ne!(*first.0, *second.0);
    // A lost answer: the same client asks again.
    clock.advance(TimeDelta::seconds(10));
    let again = operators.refresh(&first.0, Origin::default()).await.unwrap().refresh_token;
    let elsewhere = operators.login("anna", PASSWORD, Origin::default()).await.unwrap().refresh_token;
    clock.advance(TimeDelta::seconds(1));
    assert_eq!(code(operators.refresh(&first.0, Origin::default()).await), "BAD_REFRESH_TOKEN");
    for token in [&second, &again] {
        assert_eq!(
            code(operators.refresh(&token.0, Origin::default()).await),
            "BAD_REFRESH_TOKEN",
            "the family has ended"
        );
    }
    let other = operators.refresh(&elsewhere.0, Origin::default()).await.unwrap().refresh_token;
    assert_eq!(code(operators.refresh("made up", Origin::default()).await), "BAD_REFRESH_TOKEN");
    clock.advance(TimeDelta::days(14));
    assert_eq!(
        code(operators.refresh(&other.0, Origin::default()).await),
        "BAD_REFRESH_TOKEN",
        "unused for a fortnight"
    );
    let reused: Vec<bool> = sqlx::query_scalar(
        "SELECT operator_id IS NOT NULL FROM audit_log WHERE action = 'session.refresh' AND outcome = 'refused'",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(reused, [true], "a token that somebody has a copy of; others are nobody's");
    assert_eq!(code(operators.activate("made up", PASSWORD, Origin::default()).await), "BAD_LINK");
    let refused: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM audit_log WHERE action = 'session.activate' AND outcome = 'refused'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(refused, 1);
}

#[sqlx::test(migrations = "../migrations")]
async fn logging_out_ends_the_session_and_only_that(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let operators = &world.app.operators;
    let here = logged_in(&world, "anna", Role::Admin).await.refresh_token;
    let there = operators.login("anna", PASSWORD, Origin::default()).await.unwrap().refresh_token;
    operators.logout(&here.0, Origin::default()).await.unwrap();
    operators.logout(&here.0, Origin::default()).await.unwrap();
    operators.logout("made up", Origin::default()).await.unwrap();
    let noted: i64 = sqlx::query_scalar("SELECT count(*) FROM audit_log WHERE action = 'session.logout'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(noted, 1);
    assert_eq!(code(operators.refresh(&here.0, Origin::default()).await), "BAD_REFRESH_TOKEN");
    operators.refresh(&there.0, Origin::default()).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn disabling_ends_sessions_for_good(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let operators = &world.app.operators;
    let session = logged_in(&world, "anna", Role::Admin).await;
    let owner = world.operator(Role::Owner);
    operators.disable(&owner, session.operator, reason("left")).await.unwrap();
    assert!(operators.standing(session.operator).await.unwrap().is_none());
    assert!(world.second_instance().operators.standing(session.operator).await.unwrap().is_none());
    assert_eq!(
        code(operators.refresh(&session.refresh_token.0, Origin::default()).await),
        "BAD_REFRESH_TOKEN"
    );
    assert_eq!(code(operators.login("anna", PASSWORD, Origin::default()).await), "BAD_CREDENTIALS");
    operators.enable(&owner, session.operator, reason("back")).await.unwrap();
    assert_eq!(
        code(operators.refresh(&session.refresh_token.0, Origin::default()).await),
        "BAD_REFRESH_TOKEN",
        "the old one stays ended"
    );
    operators.login("anna", PASSWORD, Origin::default()).await.unwrap();
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn an_invited_person_who_was_disabled_cannot_use_the_link(pool: PgPool) {
    let world = World::new(pool).await;
    let (operator, link) = invite(&world, "anna", Role::Admin).await;
    world.app.operators.disable(&system(), operator, reason("a mistake")).await.unwrap();
    assert_eq!(code(world.app.operators.activate(&link.0, PASSWORD, Origin::default()).await), "BAD_LINK");
    assert_eq!(code(world.app.operators.login("anna", PASSWORD, Origin::default()).await), "BAD_CREDENTIALS");
}

#[sqlx::test(migrations = "../migrations")]
async fn nobody_locks_their_own_door(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let owner = logged_in(&world, "anna", Role::Owner).await;
    let caller = Caller::operator(owner.operator, Role::Owner, world.workspace, uuid::Uuid::now_v7());
    let before = event_count(&pool).await;
    let operators = &world.app.operators;
    for refused in [
        operators.disable(&caller, owner.operator, reason("oops")).await,
        operators.change_role(&caller, owner.operator, Role::Member).await,
    ] {
        assert_eq!(refused.unwrap_err().code(), "OPERATOR_OWN_ACCOUNT");
    }
    assert_eq!(event_count(&pool).await, before);
}
