use chrono::{Duration, TimeZone};
use cqrs_es::test::TestFramework;
use proptest::prelude::*;

use super::*;
use crate::test_support::{clock_at, id, later, noon, reason};

type Quotas = TestFramework<Quota>;

fn tokens(amount: u64) -> Amounts {
    Amounts::only(Unit::Tokens, amount)
}

fn assign_terms(terms: PlanTerms) -> QuotaCommand {
    QuotaCommand::AssignPlan {
        workspace: id(1),
        subject: id(5),
        plan: PlanName::parse("free").expect("valid"),
        terms,
        by: None,
    }
}

fn assign(amount: u64, period: Period) -> QuotaCommand {
    assign_terms(PlanTerms::tokens(amount, period))
}

fn assigned(amount: u64, period: Period) -> QuotaEvent {
    Quota::default().decide(assign(amount, period), noon()).expect("allowed").remove(0)
}

fn reserve(n: u128, amount: u64) -> QuotaCommand {
    QuotaCommand::Reserve { reservation: id(n), asked: tokens(amount) }
}

fn reserved(n: u128, amount: u64, all: u64) -> QuotaEvent {
    QuotaEvent::TokensReserved {
        reservation: id(n),
        held: tokens(amount),
        reserved: tokens(all),
        reserved_at: noon(),
    }
}

fn settle(n: u128, actual: u64) -> QuotaCommand {
    QuotaCommand::Settle { reservation: id(n), actual: tokens(actual), estimated: false }
}

#[test]
fn a_reservation_needs_a_plan() {
    Quotas::with(clock_at(noon()))
        .given_no_previous_events()
        .when(reserve(8, 1))
        .then_expect_error(QuotaError::NoPlan);
}

#[test]
fn the_last_token_can_be_reserved_and_not_one_more() {
    let given =
        || Quotas::with(clock_at(noon())).given(vec![assigned(100, Period::Day), reserved(8, 60, 60)]);
    given().when(reserve(9, 40)).then_expect_events(vec![reserved(9, 40, 100)]);
    given().when(reserve(9, 41)).then_expect_events(vec![QuotaEvent::QuotaExceeded {
        reservation: id(9),
        unit: Unit::Tokens,
        period: Some(Period::Day),
        requested: 41,
        remaining: 40,
        resets_at: Utc.with_ymd_and_hms(2026, 11, 25, 0, 0, 0).single().expect("real"),
        exceeded_at: noon(),
    }]);
}

#[test]
fn every_limit_of_a_plan_holds_at_once() {
    let limit = |unit, period, amount| Limit { unit, period, amount, roll_over: None };
    let terms = PlanTerms {
        limits: vec![
            limit(Unit::Tokens, Period::Day, 1_000),
            limit(Unit::Messages, Period::Minute, 2),
            limit(Unit::Money, Period::Month, 50),
        ],
        warn_at_percent: vec![],
    };
    let mut quota = Quota::default();
    let mut ask = |n, asked| {
        let commands = [assign_terms(terms.clone()), QuotaCommand::Reserve { reservation: id(n), asked }];
        let mut last = None;
        for command in commands {
            for event in quota.decide(command, noon()).expect("allowed") {
                quota.record(event.clone());
                last = Some(event);
            }
        }
        match last {
            Some(QuotaEvent::QuotaExceeded { unit, .. }) => Some(unit),
            _ => None,
        }
    };
    let asked = |tokens, money| Amounts { tokens, messages: 1, money };
    assert_eq!(ask(1, asked(500, 51)), Some(Unit::Money));
    assert_eq!(ask(2, asked(1_001, 0)), Some(Unit::Tokens));
    assert_eq!(ask(3, asked(500, 20)), None);
    assert_eq!(ask(4, asked(100, 20)), None);
    assert_eq!(ask(5, asked(100, 0)), Some(Unit::Messages));
}

#[test]
fn a_settlement_charges_at_most_the_hold_and_records_the_overrun() {
    Quotas::with(clock_at(later(3)))
        .given(vec![assigned(100, Period::Day), reserved(8, 60, 60)])
        .when(settle(8, 70))
        .then_expect_events(vec![QuotaEvent::TokensSettled {
            reservation: id(8),
            charged: tokens(60),
            overrun: tokens(10),
            estimated: false,
            used: vec![60],
            reserved: tokens(0),
            settled_at: later(3),
        }]);
}

#[test]
fn settling_twice_is_refused() {
    let settled = QuotaEvent::TokensSettled {
        reservation: id(8),
        charged: tokens(60),
        overrun: tokens(0),
        estimated: false,
        used: vec![60],
        reserved: tokens(0),
        settled_at: noon(),
    };
    Quotas::with(clock_at(noon()))
        .given(vec![assigned(100, Period::Day), reserved(8, 60, 60), settled])
        .when(settle(8, 1))
        .then_expect_error(QuotaError::UnknownReservation { reservation: id(8) });
}

#[test]
fn a_new_minute_starts_from_zero_but_keeps_the_holds() {
    let start = Utc.with_ymd_and_hms(2026, 11, 24, 12, 1, 0).single().expect("real");
    let window = Window { start, end: start + Duration::minutes(1) };
    let meter = Meter { unit: Unit::Tokens, period: Period::Minute, window, carried: 0, used: 0 };
    Quotas::with(clock_at(later(61)))
        .given(vec![assigned(100, Period::Minute), reserved(8, 60, 60)])
        .when(reserve(9, 40))
        .then_expect_events(vec![
            QuotaEvent::PeriodRolled { meters: vec![meter], reserved: tokens(60), rolled_at: later(61) },
            QuotaEvent::TokensReserved {
                reservation: id(9),
                held: tokens(40),
                reserved: tokens(100),
                reserved_at: later(61),
            },
        ]);
}

#[test]
fn who_has_used_much_is_warned_with_the_next_turn_and_once() {
    let terms = PlanTerms { warn_at_percent: vec![80], ..PlanTerms::tokens(100, Period::Day) };
    let mut quota = Quota::default();
    let mut warnings = |command| {
        let events = quota.decide(command, noon()).expect("allowed");
        events.iter().for_each(|event| quota.record(event.clone()));
        events.iter().filter(|event| matches!(event, QuotaEvent::QuotaWarned { .. })).count()
    };
    assert_eq!(warnings(assign_terms(terms)), 0);
    assert_eq!(warnings(reserve(1, 85)), 0, "a hold is not used yet");
    assert_eq!(warnings(settle(1, 85)), 0);
    assert_eq!(warnings(reserve(2, 5)), 1);
    assert_eq!(warnings(reserve(3, 5)), 0);
}

fn grant(unit: Unit, amount: u64, expires_at: DateTime<Utc>) -> QuotaCommand {
    QuotaCommand::GrantOverride { unit, amount, expires_at, reason: reason("gift"), by: id(2) }
}

#[test]
fn an_override_counts_until_it_expires() {
    let mut quota = Quota::default();
    quota.record(assigned(100, Period::Day));
    for event in quota.decide(grant(Unit::Tokens, 50, later(10)), noon()).expect("allowed") {
        quota.record(event);
    }
    assert_eq!(quota.left_at(later(9))[0].limit, 150);
    assert_eq!(quota.left_at(later(10))[0].limit, 100);
}

#[test]
fn an_override_ends_within_the_calendar_everybody_can_write() {
    let mut quota = Quota::default();
    quota.record(assigned(100, Period::Day));
    let expires_at = "+12000-01-01T00:00:00Z".parse().expect("a moment");
    let granted = |unit, amount, until| quota.decide(grant(unit, amount, until), noon());
    assert_eq!(granted(Unit::Tokens, 1, expires_at), Err(QuotaError::OverrideEndsTooLate));
    assert_eq!(granted(Unit::Tokens, 0, later(9)), Err(QuotaError::EmptyOverride));
    let money = QuotaError::OverrideOfNothing { unit: Unit::Money };
    assert_eq!(granted(Unit::Money, 1, later(9)), Err(money));
}

#[test]
fn what_the_first_release_stored_still_counts() {
    let stored = [
        (
            "plan_assigned",
            r#"{"type":"plan_assigned","workspace":"0190a000-0000-7000-8000-000000000001",
            "subject":"0190a000-0000-7000-8000-000000000005","plan":"free","terms":{"tokens":100,"period":"day"},
            "window":{"start":"2026-11-24T00:00:00Z","end":"2026-11-25T00:00:00Z"},"used":0,"by":null,
            "assigned_at":"2026-11-24T10:00:00Z"}"#,
        ),
        (
            "tokens_reserved",
            r#"{"type":"tokens_reserved","reservation":"0190a000-0000-7000-8000-000000000008",
            "tokens":60,"used":0,"reserved":60,"reserved_at":"2026-11-24T10:00:00Z"}"#,
        ),
        (
            "tokens_settled",
            r#"{"type":"tokens_settled","reservation":"0190a000-0000-7000-8000-000000000008",
            "charged":40,"overrun":0,"estimated":false,"used":40,"reserved":0,"settled_at":"2026-11-24T10:00:00Z"}"#,
        ),
        (
            "override_granted",
            r#"{"type":"override_granted","tokens":5,"expires_at":"2026-11-30T00:00:00Z",
            "reason":"trial","by":"0190a000-0000-7000-8000-000000000002","granted_at":"2026-11-24T10:00:00Z"}"#,
        ),
    ];
    let mut quota = Quota::default();
    for (event, payload) in stored {
        quota.record(crate::upcast::decode(event, "1.0", payload).expect("decodes for ever"));
    }
    let left = quota.left_at(noon())[0];
    assert_eq!((left.limit, left.used, left.reserved, left.remaining), (105, 40, 0, 65));
}

fn any_terms() -> impl Strategy<Value = PlanTerms> {
    let period = || prop_oneof![Just(Period::Minute), Just(Period::Hour), Just(Period::Day)];
    (0u64..500, period(), prop::option::of(1u64..200), prop::option::of((1u64..9, period()))).prop_map(
        |(amount, period, roll_over, messages)| {
            let mut limits = vec![Limit { unit: Unit::Tokens, period, amount, roll_over }];
            limits.extend(messages.map(|(amount, period)| Limit {
                unit: Unit::Messages,
                period,
                amount,
                roll_over: None,
            }));
            PlanTerms { limits, warn_at_percent: vec![50, 90] }
        },
    )
}

fn any_command() -> impl Strategy<Value = QuotaCommand> {
    let asked = |tokens| Amounts { tokens, messages: 1, money: 0 };
    prop_oneof![
        1 => any_terms().prop_map(assign_terms),
        6 => (0u128..8, 0u64..120).prop_map(move |(n, tokens)| QuotaCommand::Reserve { reservation: id(n), asked: asked(tokens) }),
        4 => (0u128..8, 0u64..200).prop_map(move |(n, actual)| QuotaCommand::Settle { reservation: id(n), actual: asked(actual), estimated: false }),
        2 => (0u128..8).prop_map(|n| QuotaCommand::Release { reservation: id(n), cause: ReleaseCause::Failed }),
        1 => (0u64..100, -5i64..60).prop_map(|(amount, end)| grant(Unit::Tokens, amount, later(end))),
    ]
}

proptest! {
    #[test]
    fn no_history_overshoots(commands in prop::collection::vec(any_command(), 1..60)) {
        let mut state = Quota::default();
        for (second, command) in commands.clone().into_iter().enumerate() {
            let now = later(i64::try_from(second).expect("few"));
            for event in state.decide(command, now).unwrap_or_default() {
                if let QuotaEvent::TokensReserved { held, .. } = &event {
                    for left in state.left_at(now) {
                        prop_assert!(held.of(left.unit) <= left.remaining);
                        prop_assert!(left.used + left.reserved + held.of(left.unit) <= left.limit);
                    }
                }
                if let QuotaEvent::TokensSettled { charged, reservation, .. } = &event {
                    prop_assert!(state.account.holds[reservation].covers(*charged));
                }
                state.record(event);
            }
        }
        crate::laws::hold::<Quota>(commands, |_, _| (), |command| matches!(command, QuotaCommand::AssignPlan { .. }));
    }
}
