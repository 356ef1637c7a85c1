//! Every update is exactly one turn, and every step on a turn happens once.
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod support;

use botledger_commands::{
    App, Caller, CommandError, IncomingKind, IncomingUpdate, ReceivedOutcome, StepOutcome, TurnFailure,
};
use botledger_domain::{
    EventMetadata, TurnId,
    operator::Role,
    turn::{ReplySource, TurnPhase},
};
use futures::future::join_all;
use sqlx::PgPool;
use support::{
    Tokens, World, audit_quotas, by_model, event_count, event_types, message, noon, person,
    replays_to_the_same, system,
};

fn unreadable(update_id: Option<i64>) -> IncomingUpdate {
    IncomingUpdate {
        update_id,
        date: chrono::DateTime::UNIX_EPOCH,
        raw: "{\"update_id\": 4, \"message\": 5}".to_owned(),
        kind: IncomingKind::Unreadable { problem: "not the fields of its kind".to_owned() },
    }
}

fn other(update_id: i64) -> IncomingUpdate {
    IncomingUpdate {
        update_id: Some(update_id),
        date: noon(),
        raw: "{}".to_owned(),
        kind: IncomingKind::Other { update_kind: "my_chat_member".to_owned(), user: Some(person(9)) },
    }
}

/// Messages of two people, a button's worth of others, something unreadable, and repeats of some.
fn batch() -> Vec<IncomingUpdate> {
    vec![
        message(3, 7, "third"),
        message(1, 7, "first"),
        other(5),
        unreadable(Some(4)),
        message(1, 7, "first"),
        message(2, 8, "second"),
        unreadable(Some(4)),
        other(5),
    ]
}

async fn turns_in(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(DISTINCT aggregate_id) FROM events WHERE aggregate_type = 'turn'")
        .fetch_one(pool)
        .await
        .unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn a_batch_with_repeats_out_of_order_is_one_turn_an_update(pool: PgPool) {
    use ReceivedOutcome::{Accepted, Duplicate, Recorded};
    let world = World::new(pool.clone()).await;
    let caller = system();
    let receive = || world.app.turns.receive_batch(&caller, world.bot, world.fence, batch());
    let first = receive().await.unwrap();
    let outcomes: Vec<_> = first.iter().map(|received| received.outcome).collect();
    assert_eq!(outcomes, [Accepted, Accepted, Recorded, Recorded, Duplicate, Accepted, Duplicate, Duplicate]);
    assert_eq!(first[1].turn, first[4].turn);
    let before = event_count(&pool).await;
    let second = receive().await.unwrap();
    assert!(second.iter().all(|received| received.outcome == Duplicate));
    assert!(
        second.iter().zip(&first).all(|(again, once)| (again.turn, again.queued) == (once.turn, once.queued))
    );
    assert_eq!(event_count(&pool).await, before, "a known batch writes nothing");
    assert_eq!(turns_in(&pool).await, 5);
    let bodies: i64 =
        sqlx::query_scalar("SELECT count(*) FROM message_bodies").fetch_one(&pool).await.unwrap();
    assert_eq!(bodies, 5);
    let order: Vec<String> = sqlx::query_scalar(
        "SELECT payload ->> 'update_id' FROM events WHERE aggregate_type = 'turn' ORDER BY position",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(order, ["3", "1", "5", "4", "2"], "in the order they came");
    let body = world.app.turns.load(first[3].turn).await.unwrap();
    assert_eq!(body.state.phase, TurnPhase::Recorded);
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn two_instances_with_the_same_batch_store_it_once(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let apps = [world.app.clone(), world.second_instance()];
    let all = join_all((0..6).map(|n| {
        let app: &App = &apps[n % 2];
        async move { app.turns.receive_batch(&system(), world.bot, world.fence, batch()).await.unwrap() }
    }))
    .await;
    assert_eq!(turns_in(&pool).await, 5);
    let stored =
        all.iter().flatten().filter(|received| received.outcome != ReceivedOutcome::Duplicate).count();
    assert_eq!(stored, 5, "each update was new to exactly one of them");
    let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM events WHERE event_type = 'first_seen'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(seen, 2, "two people, each seen first once");
    for app in &apps {
        replays_to_the_same(app, &pool).await;
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn the_same_id_at_another_date_is_another_update(pool: PgPool) {
    let world = World::new(pool).await;
    let first = world.receive(message(1, 7, "old")).await;
    let later = IncomingUpdate { date: noon() + chrono::TimeDelta::days(8), ..message(1, 7, "new") };
    assert_ne!(world.receive(later).await, first);
}

#[sqlx::test(migrations = "../migrations")]
async fn an_update_without_an_id_is_kept(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let turn = world.receive(unreadable(None)).await;
    assert_eq!(event_types(&pool, "turn", &turn.to_string()).await, ["update_unreadable"]);
    let stored = sqlx::query_scalar::<_, uuid::Uuid>("SELECT body_id FROM message_bodies")
        .fetch_one(&pool)
        .await
        .unwrap();
    let body = world.app.turns.open_body(stored.into()).await.unwrap().unwrap();
    assert!(
        matches!(body, botledger_commands::BodyContent::Update { text: None, raw } if raw.contains("\"message\": 5"))
    );
}

#[sqlx::test(migrations = "../migrations")]
async fn every_event_of_a_turn_says_who_and_why(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let turn = world.receive(message(1, 7, "hello")).await;
    let worker = Caller::system("worker", turn.uuid());
    world.app.gate.decide(&worker, turn, world.fence).await.unwrap();
    let operator = world.operator(Role::Owner);
    world.app.turns.fail(&operator, turn, world.fence, failure()).await.unwrap();
    let unreadable = world.receive(unreadable(Some(2))).await;
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT event_type, metadata::text FROM events
         WHERE aggregate_type IN ('turn', 'subject', 'quota') ORDER BY position",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let said: Vec<_> = rows
        .into_iter()
        .map(|(event_type, metadata)| {
            let written: EventMetadata = serde_json::from_str(&metadata).unwrap();
            (event_type, written.actor, written.source, written.correlation_id, written.causation_id.unwrap())
        })
        .collect();
    let (person, turn, unreadable) =
        (format!("subject:{}", world.subject(7)), turn.to_string(), unreadable.to_string());
    let by = |event_type: &str, actor: &str, source: &str, turn: &str, cause: &str| {
        let [event_type, actor, source, turn, cause] =
            [event_type, actor, source, turn, cause].map(str::to_owned);
        (event_type, actor, source, turn, cause)
    };
    let request = operator.correlation_id.to_string();
    let actor = operator.actor.to_string();
    assert_eq!(
        said,
        [
            by("first_seen", &person, "telegram", &turn, &turn),
            by("message_received", &person, "telegram", &turn, &turn),
            by("message_scored", "system:worker", "worker", &turn, &turn),
            by("plan_assigned", "system:worker", "worker", &turn, &turn),
            by("tokens_reserved", "system:worker", "worker", &turn, &turn),
            by("turn_admitted", "system:worker", "worker", &turn, &turn),
            by("reply_failed", &actor, "graphql", &turn, &request),
            by("tokens_released", &actor, "graphql", &turn, &request),
            by("update_unreadable", "system:test", "test", &unreadable, &unreadable),
        ]
    );
}

#[sqlx::test(migrations = "../migrations")]
async fn an_update_of_an_unknown_bot_is_refused(pool: PgPool) {
    let world = World::new(pool).await;
    let unknown = uuid::Uuid::now_v7().into();
    let refused = world.app.turns.receive_batch(&system(), unknown, world.fence, batch()).await;
    assert!(matches!(refused, Err(CommandError::NotFound { .. })), "{refused:?}");
}

fn failure() -> TurnFailure {
    TurnFailure { code: "LLM_UNAVAILABLE".to_owned(), detail: "nobody answered".to_owned(), used: None }
}

/// The number of steps that were recorded; all others found the turn past them.
fn recorded(outcomes: &[StepOutcome]) -> usize {
    outcomes
        .iter()
        .filter(|outcome| matches!(outcome, StepOutcome::Done(receipt) if receipt.position.0 > 0))
        .count()
}

async fn admit(world: &World, update_id: i64) -> TurnId {
    let turn = world.receive(message(update_id, update_id, "hello")).await;
    world.app.gate.decide(&system(), turn, world.fence).await.unwrap();
    turn
}

#[sqlx::test(migrations = "../migrations")]
async fn a_turn_is_answered_or_fails_once_however_many_try(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let apps = [world.app.clone(), world.second_instance()];
    for update_id in 1..=6 {
        let turn = admit(&world, update_id).await;
        let outcomes = join_all((0..6).map(|n| {
            let (turns, fence, caller) = (&apps[n % 2].turns, world.fence, system());
            async move {
                match n {
                    0 | 1 => turns.fail(&caller, turn, fence, failure()).await.unwrap(),
                    _ => turns.answer(&caller, turn, fence, by_model(3, 4), "hi", 1).await.unwrap(),
                }
            }
        }))
        .await;
        assert_eq!(recorded(&outcomes), 1, "{outcomes:?}");
        let types = event_types(&pool, "turn", &turn.to_string()).await;
        assert_eq!(types.len(), 4, "{types:?}");
    }
    assert_eq!(audit_quotas(&pool).await, 0);
    for app in &apps {
        replays_to_the_same(app, &pool).await;
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_turn_is_decided_once_however_many_try(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let apps = [world.app.clone(), world.second_instance()];
    let turn = world.receive(message(1, 7, "hello")).await;
    let fence = world.fence;
    join_all((0..8).map(|n| support::decide_insistently(&apps[n % 2], turn, fence))).await;
    assert_eq!(
        event_types(&pool, "turn", &turn.to_string()).await,
        ["message_received", "message_scored", "turn_admitted"]
    );
    let holds = world.quota(7).await.account.holds;
    assert_eq!(holds.len(), 1);
    audit_quotas(&pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_turn_ends_once_however_many_try(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let apps = [world.app.clone(), world.second_instance()];
    for n in 1..=4 {
        let turn = world.exchange(n, n, "hello", "hi").await;
        let started = join_all((0..4).map(|n| {
            let (turns, fence, caller) = (&apps[n % 2].turns, world.fence, system());
            async move { turns.start_delivery(&caller, turn, fence, 40 + n as i64).await.unwrap() }
        }))
        .await;
        assert_eq!(recorded(&started), 1);
        let outcomes = join_all((0..6).map(|n| {
            let (turns, fence, caller) = (&apps[n % 2].turns, world.fence, system());
            async move {
                match n % 3 {
                    0 => turns.deliver(&caller, turn, fence, vec![41]).await.unwrap(),
                    1 => turns.give_up(&caller, turn, fence, "blocked", 403, "Forbidden").await.unwrap(),
                    _ => turns.lose_outcome(&caller, turn, fence, "connection cut").await.unwrap(),
                }
            }
        }))
        .await;
        assert_eq!(recorded(&outcomes), 1, "{outcomes:?}");
        let types = event_types(&pool, "turn", &turn.to_string()).await;
        assert_eq!(
            types[..5],
            ["message_received", "message_scored", "turn_admitted", "reply_generated", "reply_started"]
        );
        assert_eq!(types.len(), 6, "{types:?}");
        assert!(!world.app.turns.load(turn).await.unwrap().state.phase.is_open());
    }
    for app in &apps {
        replays_to_the_same(app, &pool).await;
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn steps_out_of_order_are_refused_and_write_nothing(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let (turns, caller, fence) = (&world.app.turns, system(), world.fence);
    let received = world.receive(message(1, 1, "hello")).await;
    let admitted = admit(&world, 2).await;
    let recorded = world.receive(other(3)).await;
    let before = event_count(&pool).await;
    for refused in [
        turns.answer(&caller, received, fence, by_model(1, 1), "unasked", 1).await,
        turns.answer(&caller, admitted, fence, ReplySource::Platform, "past the model", 1).await,
        turns.deliver(&caller, received, fence, vec![1]).await,
        turns.deliver(&caller, admitted, fence, vec![1]).await,
        turns.start_delivery(&caller, received, fence, 1).await,
    ] {
        assert_eq!(refused.unwrap_err().code(), "TURN_OUT_OF_ORDER");
    }
    for absent in [
        turns.deliver(&caller, recorded, fence, vec![1]).await,
        turns.deliver(&caller, TurnId(uuid::Uuid::now_v7()), fence, vec![1]).await,
    ] {
        assert_eq!(absent.unwrap_err().code(), "NOT_FOUND");
    }
    let past = turns.answer(&caller, recorded, fence, by_model(1, 1), "nobody asked", 1).await.unwrap();
    assert_eq!(past, StepOutcome::AlreadyPast(TurnPhase::Recorded));
    assert_eq!(event_count(&pool).await, before);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_stopped_answer_is_settled_and_a_late_one_changes_nothing(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let turn = admit(&world, 1).await;
    let ReplySource::Model { provider, model, .. } = by_model(0, 0) else { unreachable!() };
    let stopped = ReplySource::Model {
        provider,
        model,
        prompt_tokens: 12,
        completion_tokens: 3,
        estimated: true,
        finish: "cancelled".to_owned(),
        attempts: 1,
    };
    let (turns, fence) = (&world.app.turns, world.fence);
    turns.answer(&system(), turn, fence, stopped, "so f", 1).await.unwrap();
    let late =
        turns.answer(&system(), turn, fence, by_model(12, 300), "so far and further", 9).await.unwrap();
    assert_eq!(late, StepOutcome::AlreadyPast(TurnPhase::Answered));
    let late = turns.fail(&system(), turn, fence, failure()).await.unwrap();
    assert_eq!(late, StepOutcome::AlreadyPast(TurnPhase::Answered));
    assert_eq!((world.quota(1).await.used(), world.quota(1).await.held()), (15, 0));
    let bodies: i64 =
        sqlx::query_scalar("SELECT count(*) FROM message_bodies").fetch_one(&pool).await.unwrap();
    assert_eq!(bodies, 2, "the late answer is not stored");
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_command_is_answered_by_the_platform_without_a_hold(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let turn = world.receive(message(1, 7, "/start")).await;
    assert!(
        world.app.gate.refuse_unless_allowed(&system(), turn, world.fence, false).await.unwrap().is_none()
    );
    world.app.turns.answer(&system(), turn, world.fence, ReplySource::Platform, "welcome", 0).await.unwrap();
    world.app.turns.deliver(&system(), turn, world.fence, vec![1]).await.unwrap();
    let types = event_types(&pool, "turn", &turn.to_string()).await;
    assert_eq!(types, ["message_received", "reply_generated", "reply_delivered"]);
    let quotas: i64 = sqlx::query_scalar("SELECT count(*) FROM events WHERE aggregate_type = 'quota'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(quotas, 0);
}
