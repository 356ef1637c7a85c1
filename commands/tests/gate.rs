//! Who gets through: quotas, blocks, fences, and turns that are taken up again.
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod support;

use botledger_commands::{CommandError, Decision, StepOutcome, TurnFailure};
use botledger_domain::{
    account::Unit,
    bot::{BotSettings, UpdateMode},
    quota::{Period, PlanTerms, QuotaEvent, ReleaseCause},
    turn::{RefusalReason, ReplySource, TurnPhase},
};
use botledger_journal::AppendError;
use chrono::TimeDelta;
use sqlx::PgPool;
use support::{
    Tokens, World, audit_quotas, by_model, daily, decide_insistently, event_types, limits, message,
    message_in, plan, reason, replays_to_the_same, roomy, system,
};

fn admitted(decision: Decision) -> botledger_commands::AdmittedTurn {
    match decision {
        Decision::Admitted(admitted) => *admitted,
        other => panic!("{other:?}"),
    }
}

fn refusal(decision: Decision) -> (RefusalReason, bool) {
    match decision {
        Decision::Refused { reason, notify } => (reason, notify),
        other => panic!("{other:?}"),
    }
}

fn fenced<T: std::fmt::Debug, E: botledger_domain::DomainError>(result: Result<T, CommandError<E>>) {
    let Err(CommandError::Unavailable { source }) = result else { panic!("{result:?}") };
    assert!(matches!(source.downcast_ref(), Some(AppendError::Fenced { .. })), "{source:?}");
}

#[sqlx::test(migrations = "../migrations")]
async fn turns_of_one_person_over_two_instances_never_overshoot_their_quota(pool: PgPool) {
    let settings = BotSettings { max_answer_tokens: 200, ..roomy() };
    let world = World::with(pool.clone(), daily(1_500), settings).await;
    let other = world.second_instance();
    let mut turns = tokio::task::JoinSet::new();
    for n in 0..24 {
        // A chat of its own each: the turns of one chat follow each other anyway.
        let turn = world.receive(message_in(n, 7, 1_000 + n, "how are you?")).await;
        let app = if n % 2 == 0 { world.app.clone() } else { other.clone() };
        let fence = world.fence;
        turns.spawn(async move {
            let Decision::Admitted(admitted) = decide_insistently(&app, turn, fence).await.unwrap() else {
                return false;
            };
            loop {
                let ended = match n % 4 {
                    0 => {
                        app.turns
                            .fail(
                                &system(),
                                turn,
                                fence,
                                TurnFailure {
                                    code: "LLM_UNAVAILABLE".to_owned(),
                                    detail: String::new(),
                                    used: None,
                                },
                            )
                            .await
                    }
                    // Above the hold.
                    1 => app.turns.answer(&system(), turn, fence, by_model(9_000, 9_000), "much", 1).await,
                    _ => {
                        let used = admitted.admission.reserved_tokens / 2;
                        app.turns.answer(&system(), turn, fence, by_model(used, 1), "fine", 1).await
                    }
                };
                match ended {
                    Ok(_) => return true,
                    Err(CommandError::Conflict) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error:?}"),
                }
            }
        });
    }
    let let_through = turns.join_all().await.into_iter().filter(|through| *through).count();
    assert!((5..24).contains(&let_through), "{let_through}");
    assert_eq!(audit_quotas(&pool).await, 0, "nothing is held once all turns have ended");
    assert_eq!(world.quota(7).await.held(), 0);
    replays_to_the_same(&world.app, &pool).await;
    replays_to_the_same(&other, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_spent_quota_refuses_with_what_is_left_and_when_it_resets(pool: PgPool) {
    let world = World::with(pool.clone(), daily(300), roomy()).await;
    let first = world.receive(message(1, 7, "hello")).await;
    let hold = admitted(world.app.gate.decide(&system(), first, world.fence).await.unwrap())
        .admission
        .reserved_tokens;
    assert!(hold <= 300 && hold > 250, "the answer is shortened to what is left: {hold}");
    let second = world.receive(message(2, 7, "hello again")).await;
    let (why, notify) = refusal(world.app.gate.decide(&system(), second, world.fence).await.unwrap());
    let RefusalReason::QuotaExceeded { requested, remaining, resets_at, .. } = why.clone() else {
        panic!("{why:?}")
    };
    assert_eq!((remaining, notify), (300 - hold, true));
    assert!(requested > remaining);
    assert_eq!(resets_at, support::noon() + TimeDelta::hours(12));
    let turn = world.app.turns.load(second).await.unwrap().state;
    assert_eq!((turn.phase, turn.refusal), (TurnPhase::RefusalPending, Some(why)));
    assert_eq!(
        event_types(&pool, "turn", &second.to_string()).await,
        ["message_received", "message_scored", "message_refused"]
    );
    let quota = botledger_domain::quota_stream(world.workspace, world.subject(7)).to_string();
    assert_eq!(
        event_types(&pool, "quota", &quota).await,
        ["plan_assigned", "tokens_reserved", "quota_exceeded"],
    );
    let third = world.receive(message(3, 7, "and again")).await;
    let (_, notify) = refusal(world.app.gate.decide(&system(), third, world.fence).await.unwrap());
    assert!(!notify, "nobody is told the same twice in a row");
    assert_eq!(world.app.turns.load(third).await.unwrap().state.phase, TurnPhase::Refused);

    world.clock.advance(TimeDelta::hours(12));
    let tomorrow = world.receive(message(4, 7, "good morning")).await;
    // The hold of yesterday's running turn still counts; nothing was used today.
    let decision = world.app.gate.decide(&system(), tomorrow, world.fence).await.unwrap();
    let (why, _) = refusal(decision);
    assert!(
        matches!(why, RefusalReason::QuotaExceeded { remaining, .. } if remaining == 300 - hold),
        "{why:?}"
    );
    audit_quotas(&pool).await;
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_turn_settled_after_its_window_counts_in_the_new_one(pool: PgPool) {
    let world = World::with(pool.clone(), PlanTerms::tokens(2_000, Period::Minute), roomy()).await;
    world.exchange(1, 7, "first", "one").await;
    assert_eq!(world.quota(7).await.used(), 20);
    let late = world.receive(message(2, 7, "second")).await;
    admitted(world.app.gate.decide(&system(), late, world.fence).await.unwrap());
    world.clock.advance(TimeDelta::seconds(61));
    world.app.turns.answer(&system(), late, world.fence, by_model(30, 12), "two", 1).await.unwrap();
    let quota = world.quota(7).await;
    assert_eq!((quota.used(), quota.held()), (42, 0));
    assert_eq!(quota.account.meters[0].window.start, support::noon() + TimeDelta::seconds(60));
    assert_eq!(audit_quotas(&pool).await, 0);
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn an_override_lets_through_until_it_ends(pool: PgPool) {
    let world = World::with(pool.clone(), daily(60), roomy()).await;
    let refused = world.receive(message(1, 7, "hello")).await;
    refusal(world.app.gate.decide(&system(), refused, world.fence).await.unwrap());
    let ends = support::noon() + TimeDelta::hours(1);
    let (quotas, person) = (&world.app.quotas, world.subject(7));
    for _ in 0..2 {
        quotas
            .grant_override(&system(), world.workspace, person, Unit::Tokens, 500, ends, reason("a trial"))
            .await
            .unwrap();
    }
    assert_eq!(quotas.left(world.workspace, person).await.unwrap()[0].limit, 560, "the same grant is one");
    let turn = world.receive(message(2, 7, "hello")).await;
    admitted(world.app.gate.decide(&system(), turn, world.fence).await.unwrap());
    world.app.turns.answer(&system(), turn, world.fence, by_model(20, 10), "hi", 1).await.unwrap();
    world.clock.advance(TimeDelta::hours(1));
    let later = world.receive(message(3, 7, "hello")).await;
    let (why, _) = refusal(world.app.gate.decide(&system(), later, world.fence).await.unwrap());
    assert!(matches!(why, RefusalReason::QuotaExceeded { remaining: 30, .. }), "{why:?}");
    assert_eq!(audit_quotas(&pool).await, 0);
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_settlement_never_exceeds_its_hold(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let turn = world.receive(message(1, 7, "hello")).await;
    let hold = admitted(world.app.gate.decide(&system(), turn, world.fence).await.unwrap())
        .admission
        .reserved_tokens;
    let source = by_model(hold, u64::MAX);
    world.app.turns.answer(&system(), turn, world.fence, source, "long", 1).await.unwrap();
    assert_eq!(world.quota(7).await.used(), hold);
    let overrun: String = sqlx::query_scalar(
        "SELECT payload #>> '{overrun,tokens}' FROM events WHERE event_type = 'tokens_settled'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(overrun, (u64::MAX - hold).to_string());
}

#[sqlx::test(migrations = "../migrations")]
async fn an_admitted_turn_is_taken_up_again_under_the_same_hold(pool: PgPool) {
    // The least that may be asked for, nothing left above it: the tightest hold there is.
    for (tokens, answer) in [(114, 512), (1_000, 16), (1_000, 512)] {
        let settings = BotSettings { max_answer_tokens: answer, ..roomy() };
        let world = World::with(pool.clone(), daily(tokens), settings).await;
        let turn = world.receive(message(1, 7, "ok")).await;
        let first = admitted(world.app.gate.decide(&system(), turn, world.fence).await.unwrap());
        let other = world.second_instance();
        let fence = world.change_hands().await;
        let again = admitted(other.gate.decide(&system(), turn, fence).await.unwrap());
        assert_eq!(again.admission, first.admission);
        assert_eq!(again.request.messages, first.request.messages);
        assert!(again.request.num_predict >= first.request.num_predict);
        other.turns.answer(&system(), turn, fence, by_model(1, 1), "yes", 1).await.unwrap();
        assert_eq!(world.quota(7).await.held(), 0);
        let decision = world.app.gate.decide(&system(), turn, fence).await.unwrap();
        assert!(matches!(decision, Decision::AlreadyDecided(TurnPhase::Answered)), "{decision:?}");
    }
    assert_eq!(audit_quotas(&pool).await, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_turn_whose_instructions_outgrew_its_hold_can_only_fail(pool: PgPool) {
    let world = World::with(pool.clone(), daily(1_000), roomy()).await;
    let turn = world.receive(message(1, 7, "hello")).await;
    let first = admitted(world.app.gate.decide(&system(), turn, world.fence).await.unwrap());
    let longer = BotSettings { system_prompt: Some("Be kind. ".repeat(400)), ..roomy() };
    world.app.bots.configure(&system(), world.bot, longer, UpdateMode::Polling).await.unwrap();
    let decision = world.app.gate.decide(&system(), turn, world.fence).await.unwrap();
    let Decision::Outgrown { tokens, held } = decision else { panic!("{decision:?}") };
    assert!(tokens > held && held == first.admission.reserved_tokens, "{tokens} {held}");
    let failure = TurnFailure { code: "HOLD_OUTGROWN".to_owned(), detail: String::new(), used: None };
    world.app.turns.fail(&system(), turn, world.fence, failure).await.unwrap();
    assert_eq!(world.quota(7).await.held(), 0);
    assert_eq!(audit_quotas(&pool).await, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn an_admitted_turn_outlives_its_bot_and_can_end_without_its_body(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let mut turns = Vec::new();
    for n in 1..=2 {
        let turn = world.receive(message(n, 7, "hello")).await;
        admitted(world.app.gate.decide(&system(), turn, world.fence).await.unwrap());
        turns.push(turn);
    }
    world.app.bots.archive(&system(), world.bot, reason("gone")).await.unwrap();
    admitted(world.app.gate.decide(&system(), turns[0], world.fence).await.unwrap());
    world.app.turns.answer(&system(), turns[0], world.fence, by_model(5, 5), "bye", 1).await.unwrap();

    sqlx::query("DELETE FROM message_bodies WHERE turn_id = $1")
        .bind(turns[1].uuid())
        .execute(&pool)
        .await
        .unwrap();
    let erased = world.app.gate.decide(&system(), turns[1], world.fence).await;
    assert!(matches!(erased, Err(CommandError::NotFound { .. })), "{erased:?}");
    let failure = TurnFailure { code: "BODY_ERASED".to_owned(), detail: String::new(), used: None };
    world.app.turns.fail(&system(), turns[1], world.fence, failure).await.unwrap();
    assert_eq!(audit_quotas(&pool).await, 0, "no hold is left behind");
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_message_that_cannot_be_opened_is_not_tried_for_ever(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let turn = world.receive(message(1, 7, "hello")).await;
    let statement =
        "UPDATE message_bodies SET ciphertext = set_byte(ciphertext, 0, get_byte(ciphertext, 0) # 1)";
    assert_eq!(sqlx::query(statement).execute(&pool).await.unwrap().rows_affected(), 1);
    let altered = world.app.gate.decide(&system(), turn, world.fence).await.unwrap_err();
    assert_eq!(altered.code(), "BROKEN_CONTENT", "{altered:?}");

    let erased = world.receive(message(2, 8, "hello")).await;
    sqlx::query("DELETE FROM keys.data_keys WHERE owner = $1")
        .bind(world.subject(8).uuid())
        .execute(&pool)
        .await
        .unwrap();
    let shredded = world.second_instance().gate.decide(&system(), erased, world.fence).await.unwrap_err();
    assert!(matches!(shredded, CommandError::NotFound { what: "message body" }), "{shredded:?}");
    for turn in [turn, erased] {
        let failure = TurnFailure { code: "BROKEN_CONTENT".to_owned(), detail: String::new(), used: None };
        world.app.turns.fail(&system(), turn, world.fence, failure).await.unwrap();
    }
    assert_eq!(audit_quotas(&pool).await, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn an_event_that_does_not_decode_is_broken_content(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let turn = world.receive(message(1, 7, "hello")).await;
    // What no writer of ours stores: the guard has to be taken off for it.
    for statement in [
        "ALTER TABLE events DISABLE TRIGGER USER",
        "UPDATE events SET payload = '{\"type\": \"message_received\"}' WHERE aggregate_type = 'turn'",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    let decision = world.second_instance().gate.decide(&system(), turn, world.fence).await;
    assert_eq!(decision.unwrap_err().code(), "BROKEN_CONTENT");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_call_that_broke_off_is_charged_with_what_it_took(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let settled = || async {
        let payload: String = sqlx::query_scalar(
            "SELECT payload::text FROM events WHERE aggregate_type = 'quota' ORDER BY position DESC LIMIT 1",
        )
        .fetch_one(&pool)
        .await
        .unwrap();
        serde_json::from_str::<QuotaEvent>(&payload).unwrap()
    };
    let (turns, fence) = (&world.app.turns, world.fence);
    for (update_id, used, total) in [(1, Some((12, 30)), 42), (2, None, 42), (3, Some((7, 0)), 49)] {
        let turn = world.receive(message(update_id, 7, "hello")).await;
        admitted(world.app.gate.decide(&system(), turn, fence).await.unwrap());
        let failure = TurnFailure { code: "LLM_INTERRUPTED".to_owned(), detail: String::new(), used };
        turns.fail(&system(), turn, fence, failure).await.unwrap();
        let quota = world.quota(7).await;
        assert_eq!((quota.used(), quota.held()), (total, 0), "{used:?}");
        match settled().await {
            QuotaEvent::TokensSettled { charged, estimated: true, .. } => {
                let charged = charged.tokens;
                assert_eq!(used, Some((charged.min(12), charged - charged.min(12))));
            }
            QuotaEvent::TokensReleased { cause: ReleaseCause::Failed, .. } => assert_eq!(used, None),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(audit_quotas(&pool).await, 0);
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_stopped_call_costs_its_prompt_unless_the_model_was_never_asked(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    for (update_id, prompt, total, last) in [(1, 40, 40, "tokens_settled"), (2, 0, 40, "tokens_released")] {
        let turn = world.receive(message(update_id, 7, "hello")).await;
        admitted(world.app.gate.decide(&system(), turn, world.fence).await.unwrap());
        let mut stopped = by_model(prompt, 0);
        let ReplySource::Model { estimated, finish, .. } = &mut stopped else { unreachable!() };
        (*estimated, *finish) = (true, "cancelled".to_owned());
        world.app.turns.answer(&system(), turn, world.fence, stopped, "stopped", 1).await.unwrap();
        assert_eq!((world.quota(7).await.used(), world.quota(7).await.held()), (total, 0));
        let quota = botledger_domain::quota_stream(world.workspace, world.subject(7)).to_string();
        assert_eq!(event_types(&pool, "quota", &quota).await.last().unwrap(), last);
    }
    let cause: String =
        sqlx::query_scalar("SELECT payload ->> 'cause' FROM events WHERE event_type = 'tokens_released'")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(cause, "cancelled");
    assert_eq!(audit_quotas(&pool).await, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_repeated_step_is_no_second_message(pool: PgPool) {
    let strict = BotSettings { rate_limits: Some(limits(1, 100, 100)), ..BotSettings::default() };
    let world = World::with(pool, daily(100_000), strict).await;
    let turn = world.receive(message(1, 7, "/start")).await;
    for _ in 0..3 {
        let refused =
            world.app.gate.refuse_unless_allowed(&system(), turn, world.fence, false).await.unwrap();
        assert!(refused.is_none(), "{refused:?}");
    }
    let next = world.receive(message(2, 7, "hello")).await;
    let (why, _) = refusal(world.app.gate.decide(&system(), next, world.fence).await.unwrap());
    assert!(matches!(why, RefusalReason::RateLimited { .. }), "another message counts: {why:?}");
}

#[sqlx::test(migrations = "../migrations")]
async fn everybody_of_a_group_is_told_once_and_of_a_long_message_each_time(pool: PgPool) {
    let settings = BotSettings { context_tokens: 300, max_answer_tokens: 100, ..roomy() };
    let world = World::with(pool, daily(150), settings).await;
    let group = -5;
    let long = "я".repeat(150);
    let mut told = Vec::new();
    for (n, (user, text)) in (1..).zip([(7, "hi"), (8, "hi"), (7, "hi"), (8, "hi"), (7, &long), (7, &long)]) {
        if n == 1 {
            // Spends what both have, so that they are refused from here on.
            for user in [7, 8] {
                let turn = world.receive(message_in(100 + user, user, group, "hi")).await;
                admitted(world.app.gate.decide(&system(), turn, world.fence).await.unwrap());
            }
        }
        let turn = world.receive(message_in(n, user, group, text)).await;
        let (why, notify) = refusal(world.app.gate.decide(&system(), turn, world.fence).await.unwrap());
        let kind: &'static str = (&why).into();
        told.push((user, kind, notify));
    }
    assert_eq!(
        told,
        [
            (7, "quota_exceeded", true),
            (8, "quota_exceeded", true),
            (7, "quota_exceeded", false),
            (8, "quota_exceeded", false),
            (7, "too_long", true),
            (7, "too_long", true),
        ]
    );
}

#[sqlx::test(migrations = "../migrations")]
async fn an_old_epoch_is_refused_at_every_step(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let received = world.receive(message(1, 7, "hello")).await;
    let going = world.receive(message(2, 7, "hello")).await;
    admitted(world.app.gate.decide(&system(), going, world.fence).await.unwrap());
    let answered = world.exchange(3, 7, "hello", "hi").await;
    let (old, new) = (world.fence, world.change_hands().await);
    assert!(new.epoch > old.epoch);
    let before = support::event_count(&pool).await;
    let (caller, turns) = (system(), &world.app.turns);
    fenced(turns.receive_batch(&caller, world.bot, old, vec![message(4, 7, "late")]).await);
    fenced(world.app.gate.decide(&caller, received, old).await);
    fenced(turns.answer(&caller, going, old, by_model(1, 1), "late", 1).await);
    fenced(turns.answer(&caller, received, old, ReplySource::Platform, "late", 1).await);
    let failure = || TurnFailure { code: "LATE".to_owned(), detail: String::new(), used: None };
    fenced(turns.fail(&caller, going, old, failure()).await);
    fenced(turns.start_delivery(&caller, answered, old, 5).await);
    fenced(turns.deliver(&caller, answered, old, vec![5]).await);
    fenced(turns.give_up(&caller, answered, old, "blocked", 403, "Forbidden").await);
    fenced(turns.lose_outcome(&caller, answered, old, "cut").await);
    world.app.standings.block(&caller, world.bot, world.subject(7), reason("no"), None).await.unwrap();
    fenced(world.app.gate.refuse_unless_allowed(&caller, received, old, false).await);
    assert_eq!(support::event_count(&pool).await, before + 1, "only the block was written");
    assert!(!world.app.bots.renew_lease(world.bot, old, std::time::Duration::from_secs(60)).await.unwrap());
    // The new holder goes on with all of them.
    turns.deliver(&caller, answered, new, vec![5]).await.unwrap();
    turns.fail(&caller, going, new, failure()).await.unwrap();
    refusal(world.app.gate.decide(&caller, received, new).await.unwrap());
    assert_eq!(audit_quotas(&pool).await, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn blocked_people_are_told_why_and_until_when(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let until = support::noon() + TimeDelta::minutes(10);
    let (standings, person) = (&world.app.standings, world.subject(7));
    standings.block(&system(), world.bot, person, reason("flooding"), Some(until)).await.unwrap();
    let turn = world.receive(message(1, 7, "hello")).await;
    let (why, notify) = refusal(world.app.gate.decide(&system(), turn, world.fence).await.unwrap());
    assert_eq!(why, RefusalReason::Blocked { reason: reason("flooding"), until: Some(until) });
    assert!(notify);
    let command = world.receive(message(2, 7, "/start")).await;
    let decision =
        world.app.gate.refuse_unless_allowed(&system(), command, world.fence, false).await.unwrap().unwrap();
    assert!(!refusal(decision).1);
    let other = world.receive(message(3, 8, "hello")).await;
    admitted(world.app.gate.decide(&system(), other, world.fence).await.unwrap());

    world.clock.advance(TimeDelta::minutes(10));
    let after = world.receive(message(4, 7, "hello")).await;
    admitted(world.app.gate.decide(&system(), after, world.fence).await.unwrap());

    standings.block(&system(), world.bot, person, reason("again"), None).await.unwrap();
    let turn = world.receive(message(5, 7, "hello")).await;
    refusal(world.app.gate.decide(&system(), turn, world.fence).await.unwrap());
    standings.unblock(&system(), world.bot, person, reason("pardoned")).await.unwrap();
    let turn = world.receive(message(6, 7, "hello")).await;
    admitted(world.app.gate.decide(&system(), turn, world.fence).await.unwrap());
    let past = standings.block(&system(), world.bot, person, reason("late"), Some(support::noon())).await;
    assert_eq!(past.unwrap_err().code(), "STANDING_BLOCK_ENDS_IN_THE_PAST");
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn limits_of_the_bot_replace_those_of_the_installation(pool: PgPool) {
    let world = World::with(pool, daily(1_000_000), BotSettings::default()).await;
    let strict = BotSettings { rate_limits: Some(limits(1, 100, 100)), ..BotSettings::default() };
    let (bot, fence) = world.run_bot(200, strict).await;
    for (bot, fence, allowed) in [(world.bot, world.fence, 3), (bot, fence, 1)] {
        for n in 0..=allowed {
            let turn = world
                .app
                .turns
                .receive_batch(&system(), bot, fence, vec![message(n, 7, "hi")])
                .await
                .unwrap()[0];
            let decision = world.app.gate.decide(&system(), turn.turn, fence).await.unwrap();
            if n < allowed {
                admitted(decision);
                continue;
            }
            let (why, _) = refusal(decision);
            let RefusalReason::RateLimited { scope, retry_at } = why else { panic!("{why:?}") };
            assert_eq!(scope, "user");
            assert!(retry_at > support::noon() && retry_at <= support::noon() + TimeDelta::seconds(60));
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_message_that_fits_no_window_is_refused_as_too_long(pool: PgPool) {
    let settings = BotSettings { context_tokens: 300, max_answer_tokens: 100, ..roomy() };
    let world = World::with(pool.clone(), daily(100_000), settings).await;
    let turn = world.receive(message(1, 7, &"я".repeat(150))).await;
    let (why, _) = refusal(world.app.gate.decide(&system(), turn, world.fence).await.unwrap());
    assert!(matches!(why, RefusalReason::TooLong { limit: 300, tokens } if tokens > 300), "{why:?}");
    assert_eq!(audit_quotas(&pool).await, 0);
}

#[sqlx::test(migrations = "../migrations")]
async fn another_plan_counts_from_the_next_message_on(pool: PgPool) {
    let world = World::with(pool.clone(), daily(60), roomy()).await;
    let turn = world.receive(message(1, 7, "hello")).await;
    refusal(world.app.gate.decide(&system(), turn, world.fence).await.unwrap());
    world.app.workspaces.define_plan(&system(), world.workspace, plan("pro"), daily(5_000)).await.unwrap();
    world.app.quotas.assign_plan(&system(), world.workspace, world.subject(7), &plan("pro")).await.unwrap();
    let turn = world.receive(message(2, 7, "hello")).await;
    admitted(world.app.gate.decide(&system(), turn, world.fence).await.unwrap());
    let outcome =
        world.app.turns.answer(&system(), turn, world.fence, by_model(1, 1), "hi", 1).await.unwrap();
    assert!(matches!(outcome, StepOutcome::Done(_)));
    audit_quotas(&pool).await;
}
