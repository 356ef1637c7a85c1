//! What bots and workspaces may use: exact for any number of turns at once, over processes and windows.
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod support;

use botledger_commands::{CommandError, Decision, GateError, TurnFailure};
use botledger_domain::{
    BotId, ReservationId, TurnId,
    account::{Amounts, Holder, Limit, Period, PlanTerms, Unit},
    bot::BotSettings,
    budget::{Budget, BudgetError, BudgetEvent},
    budget_share::{BudgetShare, BudgetShareCommand, BudgetShareEvent},
    budget_share_stream, budget_stream,
    quota::ReleaseCause,
    turn::{RefusalReason, TurnPhase},
};
use botledger_journal::AppendSet;
use chrono::TimeDelta;
use futures::future::join_all;
use sqlx::PgPool;
use support::{
    World, audit_budgets, audit_quotas, by_model, daily, decide_insistently, event_types, message, noon,
    reason, replays_to_the_same, roomy, system,
};

fn limit(unit: Unit, period: Period, amount: u64) -> Limit {
    Limit { unit, period, amount, roll_over: None }
}

fn terms(limits: Vec<Limit>) -> PlanTerms {
    PlanTerms { limits, warn_at_percent: vec![] }
}

fn messages(amount: u64) -> PlanTerms {
    terms(vec![limit(Unit::Messages, Period::Day, amount)])
}

async fn set(world: &World, holder: Holder, terms: PlanTerms, shares: u16) {
    world.app.budgets.set(&system(), world.workspace, holder, terms, Some(shares)).await.unwrap();
}

async fn ask(world: &World, update_id: i64, person: i64) -> (TurnId, Decision) {
    let turn = world.receive(message(update_id, person, "hello")).await;
    (turn, world.app.gate.decide(&system(), turn, world.fence).await.unwrap())
}

fn is_admitted(decision: &Decision) -> bool {
    matches!(decision, Decision::Admitted(_))
}

async fn end(world: &World, turn: TurnId) {
    world.app.turns.answer(&system(), turn, world.fence, by_model(10, 10), "hi", 1).await.unwrap();
}

async fn remaining(world: &World, holder: Holder) -> Vec<u64> {
    let left = world.app.budgets.left(world.workspace, holder).await.unwrap().unwrap();
    left.limits.iter().map(|left| left.remaining).collect()
}

async fn budget_events(pool: &PgPool, world: &World, holder: Holder) -> Vec<String> {
    event_types(pool, "budget", &budget_stream(world.workspace, holder).to_string()).await
}

#[sqlx::test(migrations = "../migrations")]
async fn of_many_at_once_over_two_instances_exactly_as_many_get_through_as_fit(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let (ours, other) = (Holder::Workspace(world.workspace), world.second_instance());
    set(&world, ours, messages(20), 4).await;
    set(&world, Holder::Bot(world.bot), messages(60), 2).await;
    let mut turns = Vec::new();
    for n in 0..50 {
        turns.push(world.receive(message(n, 100 + n, "how are you?")).await);
    }
    let decisions = join_all(turns.iter().enumerate().map(|(n, turn)| {
        let app = if n % 2 == 0 { &world.app } else { &other };
        decide_insistently(app, *turn, world.fence)
    }))
    .await;
    let mut through = Vec::new();
    for (turn, decision) in turns.iter().zip(decisions) {
        match decision.unwrap() {
            Decision::Admitted(admitted) => {
                assert_eq!(admitted.admission.budgets.len(), 2);
                through.push(*turn);
            }
            Decision::Refused {
                reason: RefusalReason::BudgetExhausted { holder, unit, remaining, .. },
                ..
            } => {
                assert_eq!((holder, unit, remaining), (ours, Unit::Messages, 0));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(through.len(), 20);
    assert_eq!(audit_budgets(&pool).await.0.messages, 40, "in both budgets");
    assert_eq!(remaining(&world, Holder::Bot(world.bot)).await, [40]);
    let exhausted = budget_events(&pool, &world, ours).await;
    assert_eq!(exhausted.iter().filter(|event| *event == "budget_exhausted").count(), 1, "{exhausted:?}");

    join_all(through.iter().enumerate().map(async |(n, turn)| {
        let app = if n % 2 == 1 { &world.app } else { &other };
        let failure = |code: &str| TurnFailure { code: code.to_owned(), detail: String::new(), used: None };
        loop {
            let ended = if n % 4 == 0 {
                app.turns.fail(&system(), *turn, world.fence, failure("LLM_UNAVAILABLE")).await
            } else {
                app.turns.answer(&system(), *turn, world.fence, by_model(10, 10), "fine", 1).await
            };
            match ended {
                Ok(_) => break,
                Err(CommandError::Conflict) => tokio::task::yield_now().await,
                Err(error) => panic!("{error:?}"),
            }
        }
    }))
    .await;
    let (held, charged) = audit_budgets(&pool).await;
    assert_eq!((held, charged.messages), (Amounts::default(), 2 * 15), "five gave theirs back");
    assert_eq!(remaining(&world, ours).await, [5]);
    assert_eq!(audit_quotas(&pool).await, 0);
    replays_to_the_same(&world.app, &pool).await;
    replays_to_the_same(&other, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn what_other_shares_have_free_is_found_before_anybody_is_refused(pool: PgPool) {
    let settings = BotSettings { max_answer_tokens: 100, ..roomy() };
    let world = World::with(pool.clone(), daily(1_000_000), settings).await;
    let ours = Holder::Workspace(world.workspace);
    let (first, decision) = {
        set(&world, ours, daily(100_000), 8).await;
        ask(&world, 1, 1).await
    };
    let Decision::Admitted(admitted) = decision else { panic!("{decision:?}") };
    let one = admitted.admission.reserved_tokens;
    end(&world, first).await;
    // As much as ten turns ask for, beside what the first has used. Shares are pledged more than they need.
    set(&world, ours, daily(20 + 10 * one), 8).await;
    let mut open = Vec::new();
    for n in 2..12 {
        let (turn, decision) = ask(&world, n, n).await;
        assert!(is_admitted(&decision), "{n}: {decision:?}");
        open.push(turn);
    }
    let crumbs = remaining(&world, ours).await[0];
    assert!(crumbs < 20, "the last answer was made a little shorter to fit: {crumbs}");
    let (_, decision) = ask(&world, 12, 12).await;
    let Decision::Refused { reason: RefusalReason::BudgetExhausted { remaining, .. }, .. } = decision else {
        panic!("{decision:?}")
    };
    assert_eq!(remaining, crumbs);
    for turn in open {
        end(&world, turn).await;
    }
    for n in 20..28 {
        let (turn, decision) = ask(&world, n, n).await;
        assert!(is_admitted(&decision), "{n}: {decision:?}");
        end(&world, turn).await;
    }
    assert_eq!(audit_budgets(&pool).await, (Amounts::default(), Amounts::only(Unit::Tokens, 19 * 20)));
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_turn_that_ends_after_its_window_is_charged_to_the_new_one(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let ours = Holder::Workspace(world.workspace);
    let minute = Limit { roll_over: Some(3), ..limit(Unit::Messages, Period::Minute, 4) };
    set(&world, ours, terms(vec![minute, limit(Unit::Messages, Period::Hour, 7)]), 3).await;
    let (early, _) = ask(&world, 1, 1).await;
    let (late, _) = ask(&world, 2, 2).await;
    end(&world, early).await;
    assert_eq!(remaining(&world, ours).await, [2, 5]);
    world.clock.advance(TimeDelta::seconds(60));
    // One used before, one held: three of four came over and four are new.
    assert_eq!(remaining(&world, ours).await, [6, 5]);
    end(&world, late).await;
    assert_eq!(remaining(&world, ours).await, [6, 5]);
    for n in 3..8 {
        let (turn, decision) = ask(&world, n, n).await;
        assert!(is_admitted(&decision), "{n}: {decision:?}");
        end(&world, turn).await;
    }
    let (_, decision) = ask(&world, 8, 8).await;
    let Decision::Refused { reason, .. } = decision else { panic!("{decision:?}") };
    assert!(
        matches!(reason, RefusalReason::BudgetExhausted { period: Period::Hour, remaining: 0, resets_at, .. }
            if resets_at == noon() + TimeDelta::hours(1)),
        "{reason:?}"
    );
    world.clock.advance(TimeDelta::hours(2));
    assert_eq!(remaining(&world, ours).await, [7, 7]);
    assert!(is_admitted(&ask(&world, 9, 9).await.1));
    assert_eq!(audit_budgets(&pool).await.1.messages, 7);
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_budget_that_is_lowered_raised_or_removed_holds_at_once(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let (ours, budgets) = (Holder::Bot(world.bot), &world.app.budgets);
    let gone = budgets.remove(&system(), world.workspace, ours, reason("tidy")).await;
    assert!(matches!(gone, Err(CommandError::Refused(BudgetError::None))), "{gone:?}");
    set(&world, ours, messages(1_000), 4).await;
    let mut open = vec![];
    for n in 0..3 {
        open.push(ask(&world, n, n + 1).await.0);
    }
    set(&world, ours, messages(3), 4).await;
    assert!(!is_admitted(&ask(&world, 10, 10).await.1), "three are held, and shares had much more");
    let ends = noon() + TimeDelta::minutes(5);
    for _ in 0..2 {
        let (caller, why) = (system(), reason("rush"));
        budgets.raise(&caller, world.workspace, ours, Unit::Messages, 1, ends, why).await.unwrap();
    }
    let (fourth, decision) = ask(&world, 11, 11).await;
    assert!(is_admitted(&decision), "{decision:?}");
    assert!(!is_admitted(&ask(&world, 12, 12).await.1), "the same raise is one");
    end(&world, fourth).await;
    world.clock.advance(TimeDelta::minutes(5));
    assert!(!is_admitted(&ask(&world, 13, 13).await.1), "the raise is over");
    budgets.remove(&system(), world.workspace, ours, reason("tidy")).await.unwrap();
    assert!(budgets.left(world.workspace, ours).await.unwrap().is_none());
    let (free, decision) = ask(&world, 14, 14).await;
    let Decision::Admitted(admitted) = decision else { panic!("{decision:?}") };
    assert_eq!(admitted.admission.budgets, []);
    for turn in open.into_iter().chain([free]) {
        end(&world, turn).await;
    }
    let (held, charged) = audit_budgets(&pool).await;
    assert_eq!((held, charged.messages), (Amounts::default(), 4), "also what a removed budget held");
    set(&world, ours, messages(5), 2).await;
    assert_eq!(remaining(&world, ours).await, [1], "the day goes on");
    replays_to_the_same(&world.app, &pool).await;
}

/// Connections that wait for the ledger's lock.
async fn waiting_for_the_lock(pool: &PgPool) -> i64 {
    sqlx::query_scalar(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn a_turn_does_not_pass_by_a_budget_that_is_given_while_it_is_decided(pool: PgPool) {
    // A model that costs nothing takes nothing from a budget of money.
    let world = World::new(pool.clone()).await.with_price(0, 0);
    let (ours, other) = (Holder::Workspace(world.workspace), world.second_instance());
    let money = terms(vec![limit(Unit::Money, Period::Day, 1_000_000)]);
    for (n, given, holds) in [(1, money, 0), (2, messages(7), 1), (3, messages(5), 1)] {
        let turn = world.receive(message(n, n, "hello")).await;
        let mut lock = pool.begin().await.unwrap();
        sqlx::query("SELECT pg_advisory_xact_lock(7209065211)").execute(&mut *lock).await.unwrap();
        let (budgets, workspace) = (other.budgets.clone(), world.workspace);
        let giving =
            tokio::spawn(async move { budgets.set(&system(), workspace, ours, given, Some(2)).await });
        let waits = async |for_so_many| {
            while waiting_for_the_lock(&pool).await < for_so_many {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        waits(1).await;
        let (gate, fence) = (world.app.gate.clone(), world.fence);
        let deciding = tokio::spawn(async move { gate.decide(&system(), turn, fence).await });
        waits(2).await;
        lock.commit().await.unwrap();
        giving.await.unwrap().unwrap();
        match deciding.await.unwrap().unwrap() {
            Decision::Admitted(admitted) => assert_eq!(admitted.admission.budgets.len(), holds, "turn {n}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(remaining(&world, ours).await, [3]);
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_model_without_a_price_is_not_asked_under_a_limit_of_money(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let ours = Holder::Workspace(world.workspace);
    let free = {
        let world = World { pool: pool.clone(), ..World::new(pool.clone()).await };
        world.with_price(0, 0)
    };
    for world in [&world, &free] {
        let (ours, money) =
            (Holder::Workspace(world.workspace), terms(vec![limit(Unit::Money, Period::Day, 9)]));
        set(world, ours, money, 1).await;
    }
    let (_, decision) = ask(&world, 1, 1).await;
    let Decision::Refused { reason: RefusalReason::Unpriced { model }, notify: true } = decision else {
        panic!("{decision:?}")
    };
    assert_eq!(model.as_str(), "model:1b");
    // One that costs nothing is listed with that price, and the turn says of which list.
    let (_, decision) = ask(&free, 1, 1).await;
    let Decision::Admitted(admitted) = decision else { panic!("{decision:?}") };
    assert_eq!(admitted.admission.price.version, "1");
    // Without limits of money nobody needs a price.
    set(&world, ours, messages(1), 1).await;
    assert!(is_admitted(&ask(&world, 2, 2).await.1));
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn only_what_exists_in_the_workspace_gets_a_budget(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let (caller, app) = (system(), &world.app);
    let set = |holder| app.budgets.set(&caller, world.workspace, holder, messages(1), None);
    let nobody = set(Holder::Bot(BotId(uuid::Uuid::now_v7()))).await;
    assert!(matches!(nobody, Err(CommandError::NotFound { what: "holder" })), "{nobody:?}");
    let elsewhere = set(Holder::Workspace(uuid::Uuid::now_v7().into())).await;
    assert!(matches!(elsewhere, Err(CommandError::NotFound { .. })), "{elsewhere:?}");
    let person = set(Holder::Person(world.subject(7))).await;
    assert!(matches!(person, Err(CommandError::Refused(BudgetError::OfPerson))), "{person:?}");
    let team = set(Holder::Team(uuid::Uuid::now_v7())).await;
    assert!(matches!(team, Err(CommandError::NotFound { what: "holder" })), "{team:?}");
    let workspace = set(Holder::Workspace(world.workspace)).await.unwrap();
    assert_eq!(workspace.after.state.shares.len(), 16);
}

#[sqlx::test(migrations = "../migrations")]
async fn operators_are_warned_once_a_threshold_of_what_is_used_not_of_what_is_pledged(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let ours = Holder::Workspace(world.workspace);
    let terms = PlanTerms { warn_at_percent: vec![50, 80], ..messages(100) };
    set(&world, ours, terms, 4).await;
    let warned = async || {
        let events: Vec<String> = sqlx::query_scalar(
            "SELECT payload::text FROM events WHERE event_type = 'budget_warned' ORDER BY position",
        )
        .fetch_all(&pool)
        .await
        .unwrap();
        let percent = |event: &String| match serde_json::from_str(event).unwrap() {
            BudgetEvent::BudgetWarned { warning, .. } => (warning.percent, warning.used),
            other => panic!("{other:?}"),
        };
        events.iter().map(percent).collect::<Vec<_>>()
    };
    for n in 1..=49 {
        let (turn, _) = ask(&world, n, n).await;
        end(&world, turn).await;
    }
    assert_eq!(warned().await, []);
    for n in 50..=79 {
        let (turn, _) = ask(&world, n, n).await;
        end(&world, turn).await;
    }
    assert_eq!(warned().await, [(50, 50)]);
    let (turn, _) = ask(&world, 80, 80).await;
    end(&world, turn).await;
    assert_eq!(warned().await, [(50, 50), (80, 80)]);
    audit_budgets(&pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_share_whose_stream_has_grown_long_is_replaced(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    let ours = Holder::Workspace(world.workspace);
    set(&world, ours, messages(1_000_000), 1).await;
    let (turn, _) = ask(&world, 1, 1).await;
    let budget = budget_stream(world.workspace, ours);
    let journal = &world.app.core.journal;
    let id = budget_share_stream(budget, 0).to_string();
    let mut share = journal.load::<BudgetShare>(&id).await.unwrap();
    let actor = botledger_domain::Actor::System("test");
    let nobody = uuid::Uuid::nil();
    let mut lived = AppendSet::new(botledger_domain::EventMetadata::new(&actor, nobody, nobody, "test"));
    while share.version < 2_000 || !share.state.free().is_empty() {
        // Until it has nothing left and has to ask for more.
        let asked = Amounts::only(
            Unit::Messages,
            if share.version < 2_000 { 1 } else { share.state.free().messages },
        );
        let reservation = ReservationId(uuid::Uuid::now_v7());
        lived.decide(&mut share, BudgetShareCommand::Reserve { reservation, asked }, noon()).unwrap();
        let end = if share.version < 2_000 {
            BudgetShareCommand::Release { reservation, cause: ReleaseCause::Failed }
        } else {
            BudgetShareCommand::Settle { reservation, actual: asked, estimated: false }
        };
        lived.decide(&mut share, end, noon()).unwrap();
    }
    journal.append(lived).await.unwrap();
    let (second, decision) = ask(&world, 2, 2).await;
    let Decision::Admitted(admitted) = decision else { panic!("{decision:?}") };
    assert_eq!(admitted.admission.budgets[0].share, 1);
    assert_eq!(journal.load::<Budget>(&budget.to_string()).await.unwrap().state.shares, [1]);
    end(&world, turn).await;
    end(&world, second).await;
    let (third, decision) = ask(&world, 3, 3).await;
    assert!(is_admitted(&decision), "{decision:?}");
    end(&world, third).await;
    assert_eq!(audit_budgets(&pool).await.0, Amounts::default());
    replays_to_the_same(&world.app, &pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn money_is_held_at_worst_and_settled_at_the_price_of_the_admission(pool: PgPool) {
    let settings = BotSettings { max_answer_tokens: 100, ..roomy() };
    let world = World::with(pool.clone(), daily(1_000_000), settings).await.with_price(2_000_000, 5_000_000);
    let ours = Holder::Workspace(world.workspace);
    set(&world, ours, terms(vec![limit(Unit::Money, Period::Month, 1_200)]), 2).await;
    let (turn, decision) = ask(&world, 1, 1).await;
    let Decision::Admitted(admitted) = decision else { panic!("{decision:?}") };
    let admission = admitted.admission;
    let answer = u64::from(admitted.request.num_predict);
    let worst = 2 * (admission.reserved_tokens - answer) + 5 * answer;
    assert_eq!(admission.reserved_money, worst);
    assert!(worst <= 1_200, "the answer is cut to what the money buys");
    assert_eq!(remaining(&world, ours).await, [1_200 - worst]);
    // By then the list says something else.
    let dearer = world.second_instance();
    dearer.turns.answer(&system(), turn, world.fence, by_model(10, 7), "hi", 1).await.unwrap();
    assert_eq!(remaining(&world, ours).await, [1_200 - 55]);
    let cost: i64 = sqlx::query_scalar(
        "SELECT (payload ->> 'cost')::bigint FROM events WHERE event_type = 'reply_generated'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(cost, 55);
    assert_eq!(audit_budgets(&pool).await, (Amounts::default(), Amounts::only(Unit::Money, 55)));
}

#[sqlx::test(migrations = "../migrations")]
async fn who_is_refused_by_their_own_quota_takes_nothing_from_a_budget(pool: PgPool) {
    let world = World::with(pool.clone(), messages(1), roomy()).await;
    let ours = Holder::Workspace(world.workspace);
    set(&world, ours, messages(10), 2).await;
    let (turn, _) = ask(&world, 1, 7).await;
    let (_, decision) = ask(&world, 2, 7).await;
    let Decision::Refused { reason, .. } = decision else { panic!("{decision:?}") };
    assert!(
        matches!(reason, RefusalReason::QuotaExceeded { unit: Unit::Messages, remaining: 0, .. }),
        "{reason:?}"
    );
    assert_eq!(remaining(&world, ours).await, [9]);
    end(&world, turn).await;
    assert_eq!(audit_budgets(&pool).await.1.messages, 1);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_turn_is_in_all_its_limits_or_in_none(pool: PgPool) {
    let world = World::new(pool.clone()).await;
    set(&world, Holder::Bot(world.bot), messages(10), 2).await;
    set(&world, Holder::Workspace(world.workspace), messages(10), 2).await;
    let turn = world.receive(message(1, 7, "hello")).await;
    let old = world.fence;
    let fence = world.change_hands().await;
    let stale = world.app.gate.decide(&system(), turn, old).await;
    assert!(matches!(stale, Err(GateError::Unavailable { .. })), "{stale:?}");
    assert_eq!((audit_budgets(&pool).await.0, audit_quotas(&pool).await), (Amounts::default(), 0));
    let decision = world.app.gate.decide(&system(), turn, fence).await.unwrap();
    assert!(is_admitted(&decision), "{decision:?}");
    // All of it at neighbouring positions: one append set.
    let sets: Vec<(String, i64)> = sqlx::query_as(
        "SELECT event_type, position - first_value(position) OVER (ORDER BY position) FROM events
         WHERE event_type IN ('tokens_reserved', 'money_reserved', 'turn_admitted') ORDER BY position",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let kinds: Vec<&str> = sets.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["tokens_reserved", "money_reserved", "money_reserved", "turn_admitted"]);
    assert_eq!(sets[3].1, 3);
    let phase = world.app.turns.load(turn).await.unwrap().state.phase;
    assert_eq!(phase, TurnPhase::Admitted);
    let reserved: Vec<String> =
        sqlx::query_scalar("SELECT payload::text FROM events WHERE event_type = 'money_reserved'")
            .fetch_all(&pool)
            .await
            .unwrap();
    for event in reserved {
        let BudgetShareEvent::MoneyReserved { reservation, .. } = serde_json::from_str(&event).unwrap()
        else {
            panic!("{event}")
        };
        assert_eq!(reservation.uuid(), turn.uuid());
    }
}
