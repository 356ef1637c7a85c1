//! Appeals and moderators' decisions through the use cases, with the ledger underneath.
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod support;

use botledger_commands::{BodyContent, Caller, CommandError, ModeratorDecision, execute::execute};
use botledger_domain::{
    BotId, SubjectId, TurnId, WorkspaceId,
    operator::Role,
    standing::{
        Appealable, Offence, Scoring, Standing, StandingCommand, StandingError, Verdict,
        ladder::{LadderConfig, LadderState, OffenceKind},
    },
    standing_stream,
};
use chrono::TimeDelta;
use sqlx::PgPool;
use support::{World, event_count, event_types, message, reason, replays_to_the_same, roomy, system};
use uuid::Uuid;

/// A message that is held against its writer.
async fn score(world: &World, user: i64, turn: TurnId, kinds: &[OffenceKind]) {
    let offence =
        |kind: &OffenceKind| Offence { kind: *kind, oos_permille: None, intent: None, evidence: vec![] };
    let scoring = Scoring {
        bot: world.bot,
        subject: world.subject(user),
        turn,
        offences: kinds.iter().map(offence).collect(),
        rules: LadderConfig::default(),
        policy_version: 3,
        model_version: "c0ffee".to_owned(),
        dry_run: false,
    };
    let command = StandingCommand::Score(Box::new(scoring));
    execute::<Standing>(&world.app.core, &system(), &stream(world, user), command, |_| Ok(())).await.unwrap();
}

fn stream(world: &World, user: i64) -> String {
    standing_stream(world.bot, world.subject(user)).to_string()
}

async fn standing(world: &World, user: i64) -> Standing {
    world.app.core.journal.load::<Standing>(&stream(world, user)).await.unwrap().state
}

/// A person whom the score blocks for a while, and their message.
async fn blocked(world: &World, user: i64) -> TurnId {
    let turn = world.receive(message(user, user, "buy now")).await;
    score(world, user, turn, &[OffenceKind::Spam; 4]).await;
    assert!(matches!(standing(world, user).await.verdict_at(support::noon()), Verdict::Blocked(_)));
    turn
}

#[sqlx::test(migrations = "../migrations")]
async fn an_appeal_is_sealed_and_filed_once(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    blocked(&world, 7).await;
    let (standings, person) = (&world.app.standings, world.subject(7));
    let turn = world.receive(message(50, 7, "/appeal")).await;
    let caller = Caller::subject(person, turn);
    let grounds = "  That was my grandmother's recipe.  ";
    let filed = standings.file_appeal(&caller, world.bot, person, turn, grounds).await.unwrap();
    let bodies = || sqlx::query_scalar::<_, i64>("SELECT count(*) FROM message_bodies").fetch_one(&pool);
    let (events, rows) = (event_count(&pool).await, bodies().await.unwrap());
    let again = standings.file_appeal(&caller, world.bot, person, turn, grounds).await.unwrap();
    assert_eq!(again.receipt.event_positions, []);
    assert_eq!(
        (event_count(&pool).await, bodies().await.unwrap()),
        (events, rows),
        "a repeat leaves nothing"
    );

    let appeal = filed.after.state.appeal.unwrap();
    let body = appeal.body.unwrap().body_id;
    let opened = world.app.turns.open_body(body).await.unwrap();
    assert_eq!(opened, Some(BodyContent::Appeal { text: grounds.trim().to_owned() }));
    let told: i64 =
        sqlx::query_scalar("SELECT count(*) FROM events WHERE payload::text LIKE '%grandmother%'")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(told, 0);
    let owner: Uuid = sqlx::query_scalar("SELECT owner FROM message_bodies WHERE body_id = $1")
        .bind(body.uuid())
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(owner, person.uuid(), "it goes with the person's key");
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn an_appeal_needs_something_to_appeal_against(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let turn = world.receive(message(1, 7, "/appeal")).await;
    let (standings, person) = (&world.app.standings, world.subject(7));
    let caller = Caller::subject(person, turn);
    let before = event_count(&pool).await;
    let refused = standings.file_appeal(&caller, world.bot, person, turn, "").await;
    assert!(matches!(refused, Err(CommandError::Refused(StandingError::NotRestricted))), "{refused:?}");
    blocked(&world, 7).await;
    let long = standings.file_appeal(&caller, world.bot, person, turn, &"я".repeat(4_097)).await;
    assert_eq!(long.unwrap_err().code(), "STANDING_APPEAL_TOO_LONG");
    assert_eq!(event_types(&pool, "standing", &stream(&world, 7)).await.len(), 2);
    assert!(event_count(&pool).await > before);
    // Without grounds there is nothing to seal.
    let filed = standings.file_appeal(&caller, world.bot, person, turn, " \n").await.unwrap();
    assert_eq!(filed.after.state.appeal.unwrap().body, None);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_person_drifts_appeals_and_is_restored(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let (standings, person) = (&world.app.standings, world.subject(7));
    blocked(&world, 7).await;
    let turn = world.receive(message(60, 7, "/appeal")).await;
    let caller = Caller::subject(person, turn);
    standings.file_appeal(&caller, world.bot, person, turn, "please").await.unwrap();
    let moderator = world.operator(Role::Moderator);
    standings.deny_appeal(&moderator, world.bot, person, reason("rightly")).await.unwrap();
    let why = standings.explain(world.bot, person).await.unwrap();
    assert_eq!(why.appeal, Some(Appealable::From(support::noon() + TimeDelta::days(7))));
    assert_eq!((why.state, why.contributions.len()), (LadderState::TempBlocked, 3));

    standings.undo(&moderator, world.bot, person, reason("a mistake")).await.unwrap();
    standings.grant_appeal(&moderator, world.bot, person, Some(reason("sorry"))).await.unwrap();
    assert_eq!(standing(&world, 7).await.verdict_at(support::noon()), Verdict::Clear);
    assert_eq!(standings.explain(world.bot, person).await.unwrap().contributions, []);
    let told = event_types(&pool, "standing", &stream(&world, 7)).await;
    let decisions = ["appeal_filed", "appeal_denied", "decision_undone", "appeal_granted"];
    assert_eq!(told, [&["points_scored", "temporarily_blocked"][..], &decisions].concat());
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn many_are_decided_at_once_each_for_itself_and_each_once(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    for user in [7, 8] {
        blocked(&world, user).await;
    }
    let stranger = BotId(Uuid::now_v7());
    let target = |user| (world.bot, world.subject(user));
    let targets: Vec<(BotId, SubjectId)> =
        vec![target(7), target(9), (stranger, world.subject(7)), target(8)];
    let caller = Caller {
        idempotency_key: Some("bulk".to_owned()),
        expected_version: Some(77),
        ..world.operator(Role::Moderator)
    };
    let unblock = ModeratorDecision::Unblock { reason: reason("an amnesty") };
    let decided = world.app.standings.decide_in_bulk(&caller, &targets, &unblock).await.unwrap();
    let moved: Vec<Result<usize, &str>> = decided
        .iter()
        .map(|one| match &one.outcome {
            Ok(executed) => Ok(executed.receipt.event_positions.len()),
            Err(error) => Err(error.code()),
        })
        .collect();
    assert_eq!(moved, [Ok(1), Ok(0), Err("NOT_FOUND"), Ok(1)]);
    assert_eq!((decided[3].bot, decided[3].subject), target(8));

    let before = event_count(&pool).await;
    let again = world.app.standings.decide_in_bulk(&caller, &targets, &unblock).await.unwrap();
    let positions = |decided: &[botledger_commands::Decided]| -> Vec<i64> {
        decided
            .iter()
            .filter_map(|one| one.outcome.as_ref().ok())
            .map(|done| done.receipt.position.0)
            .collect()
    };
    assert_eq!(positions(&again), positions(&decided));
    assert_eq!(event_count(&pool).await, before);
    for user in [7, 8] {
        assert_eq!(standing(&world, user).await.verdict_at(support::noon()), Verdict::Clear);
    }

    let analyst = world.operator(Role::Analyst);
    let forbidden = world.app.standings.decide_in_bulk(&analyst, &[], &unblock).await;
    assert!(matches!(forbidden, Err(CommandError::Forbidden { .. })));
    let elsewhere =
        Caller::operator(Uuid::now_v7().into(), Role::Owner, WorkspaceId(Uuid::now_v7()), Uuid::now_v7());
    let decided = world.app.standings.decide_in_bulk(&elsewhere, &targets, &unblock).await.unwrap();
    assert!(decided.iter().all(|one| one.outcome.as_ref().is_err_and(|error| error.code() == "NOT_FOUND")));
}

#[sqlx::test(migrations = "../migrations")]
async fn two_moderators_at_once_decide_an_appeal_once(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let other = world.second_instance();
    let (bot, _) = world.run_bot(200, roomy()).await;
    let person = world.subject(7);
    world.app.standings.block(&system(), bot, person, reason("spam"), None).await.unwrap();
    let turn = world.receive(message(1, 7, "/appeal")).await;
    let caller = Caller::subject(person, turn);
    world.app.standings.file_appeal(&caller, bot, person, turn, "why?").await.unwrap();
    let (one, two) = (world.operator(Role::Moderator), world.operator(Role::Admin));
    let (granted, denied) = tokio::join!(
        world.app.standings.grant_appeal(&one, bot, person, None),
        other.standings.deny_appeal(&two, bot, person, reason("no")),
    );
    let codes = [granted.map(|_| ()), denied.map(|_| ())];
    assert_eq!(codes.iter().filter(|decided| decided.is_ok()).count(), 1, "{codes:?}");
    let refused = codes.into_iter().find_map(Result::err).unwrap();
    assert_eq!(refused.code(), "STANDING_NO_APPEAL");
}
