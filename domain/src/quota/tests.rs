use chrono::TimeZone;
use cqrs_es::test::TestFramework;
use proptest::prelude::*;

use super::*;
use crate::test_support::{clock_at, id, later, noon, reason};

type Quotas = TestFramework<Quota>;

fn assign(tokens: u64, period: Period) -> QuotaCommand {
    QuotaCommand::AssignPlan {
        workspace: id(1),
        subject: id(5),
        plan: PlanName::parse("free").expect("valid"),
        terms: PlanTerms { tokens, period },
        by: None,
    }
}

fn assigned(tokens: u64, period: Period) -> QuotaEvent {
    Quota::default().decide(assign(tokens, period), noon()).expect("allowed").remove(0)
}

fn reserved(n: u128, tokens: u64, all: u64) -> QuotaEvent {
    QuotaEvent::TokensReserved { reservation: id(n), tokens, used: 0, reserved: all, reserved_at: noon() }
}

#[test]
fn a_reservation_needs_a_plan() {
    Quotas::with(clock_at(noon()))
        .given_no_previous_events()
        .when(QuotaCommand::Reserve { reservation: id(8), tokens: 1 })
        .then_expect_error(QuotaError::NoPlan);
}

#[test]
fn the_last_token_can_be_reserved_and_not_one_more() {
    Quotas::with(clock_at(noon()))
        .given(vec![assigned(100, Period::Day), reserved(8, 60, 60)])
        .when(QuotaCommand::Reserve { reservation: id(9), tokens: 40 })
        .then_expect_events(vec![QuotaEvent::TokensReserved {
            reservation: id(9),
            tokens: 40,
            used: 0,
            reserved: 100,
            reserved_at: noon(),
        }]);
    Quotas::with(clock_at(noon()))
        .given(vec![assigned(100, Period::Day), reserved(8, 60, 60)])
        .when(QuotaCommand::Reserve { reservation: id(9), tokens: 41 })
        .then_expect_events(vec![QuotaEvent::QuotaExceeded {
            reservation: id(9),
            requested: 41,
            remaining: 40,
            resets_at: Utc.with_ymd_and_hms(2026, 11, 25, 0, 0, 0).single().expect("real"),
            exceeded_at: noon(),
        }]);
}

#[test]
fn a_settlement_charges_at_most_the_hold_and_records_the_overrun() {
    Quotas::with(clock_at(later(3)))
        .given(vec![assigned(100, Period::Day), reserved(8, 60, 60)])
        .when(QuotaCommand::Settle { reservation: id(8), actual: 70, estimated: false })
        .then_expect_events(vec![QuotaEvent::TokensSettled {
            reservation: id(8),
            charged: 60,
            overrun: 10,
            estimated: false,
            used: 60,
            reserved: 0,
            settled_at: later(3),
        }]);
}

#[test]
fn settling_twice_is_refused() {
    let settled = QuotaEvent::TokensSettled {
        reservation: id(8),
        charged: 60,
        overrun: 0,
        estimated: false,
        used: 60,
        reserved: 0,
        settled_at: noon(),
    };
    Quotas::with(clock_at(noon()))
        .given(vec![assigned(100, Period::Day), reserved(8, 60, 60), settled])
        .when(QuotaCommand::Settle { reservation: id(8), actual: 1, estimated: false })
        .then_expect_error(QuotaError::UnknownReservation { reservation: id(8) });
}

#[test]
fn a_new_minute_starts_from_zero_but_keeps_the_holds() {
    let window = |minute| {
        let start = Utc.with_ymd_and_hms(2026, 11, 24, 12, minute, 0).single().expect("real");
        Window { start, end: start + Duration::minutes(1) }
    };
    Quotas::with(clock_at(later(61)))
        .given(vec![assigned(100, Period::Minute), reserved(8, 60, 60)])
        .when(QuotaCommand::Reserve { reservation: id(9), tokens: 40 })
        .then_expect_events(vec![
            QuotaEvent::PeriodRolled { window: window(1), used: 0, reserved: 60, rolled_at: later(61) },
            QuotaEvent::TokensReserved {
                reservation: id(9),
                tokens: 40,
                used: 0,
                reserved: 100,
                reserved_at: later(61),
            },
        ]);
}

#[test]
fn an_override_counts_until_it_expires() {
    let granted = QuotaEvent::OverrideGranted {
        tokens: 50,
        expires_at: later(10),
        reason: reason("trial"),
        by: id(2),
        granted_at: noon(),
    };
    let mut quota = Quota::default();
    for event in [assigned(100, Period::Day), granted] {
        quota.record(event);
    }
    assert_eq!(quota.left_at(later(9)).expect("a plan").limit, 150);
    assert_eq!(quota.left_at(later(10)).expect("a plan").limit, 100);
}

#[test]
fn an_override_ends_within_the_calendar_everybody_can_write() {
    let mut quota = Quota::default();
    quota.record(assigned(100, Period::Day));
    let expires_at = "+12000-01-01T00:00:00Z".parse().expect("a moment");
    let grant = QuotaCommand::GrantOverride { tokens: 1, expires_at, reason: reason("gift"), by: id(2) };
    assert_eq!(quota.decide(grant, noon()), Err(QuotaError::OverrideEndsTooLate));
}

#[test]
fn windows_are_whole_calendar_units() {
    let at = Utc.with_ymd_and_hms(2024, 2, 29, 23, 59, 59).single().expect("a leap day");
    let day = |y, m, d| Utc.with_ymd_and_hms(y, m, d, 0, 0, 0).single().expect("real");
    assert_eq!(Period::Month.window(at), (day(2024, 2, 1), day(2024, 3, 1)));
    assert_eq!(Period::Week.window(at), (day(2024, 2, 26), day(2024, 3, 4)));
    assert_eq!(Period::Day.window(at), (day(2024, 2, 29), day(2024, 3, 1)));
    let december = Utc.with_ymd_and_hms(2026, 12, 31, 12, 0, 0).single().expect("real");
    assert_eq!(Period::Month.window(december).1, day(2027, 1, 1));
}

fn any_command() -> impl Strategy<Value = QuotaCommand> {
    let period = prop_oneof![Just(Period::Minute), Just(Period::Hour), Just(Period::Day)];
    prop_oneof![
        1 => (0u64..500, period).prop_map(|(tokens, period)| assign(tokens, period)),
        6 => (0u128..8, 0u64..120).prop_map(|(n, tokens)| QuotaCommand::Reserve { reservation: id(n), tokens }),
        4 => (0u128..8, 0u64..200).prop_map(|(n, actual)| QuotaCommand::Settle { reservation: id(n), actual, estimated: false }),
        2 => (0u128..8).prop_map(|n| QuotaCommand::Release { reservation: id(n), cause: ReleaseCause::Failed }),
        1 => (0u64..100, -5i64..60).prop_map(|(tokens, end)| QuotaCommand::GrantOverride {
            tokens, expires_at: later(end), reason: reason("trial"), by: id(2)
        }),
    ]
}

proptest! {
    #[test]
    fn no_history_overshoots(commands in prop::collection::vec(any_command(), 1..60)) {
        let mut state = Quota::default();
        for (second, command) in commands.clone().into_iter().enumerate() {
            let now = later(i64::try_from(second).expect("few"));
            for event in state.decide(command, now).unwrap_or_default() {
                if let QuotaEvent::TokensReserved { tokens, used, reserved, .. } = &event {
                    let left = state.left_at(now).expect("reserved on a plan");
                    prop_assert!(*tokens <= left.remaining);
                    prop_assert!(used + reserved <= left.limit);
                }
                if let QuotaEvent::TokensSettled { charged, reservation, .. } = &event {
                    prop_assert!(*charged <= state.reservations[reservation]);
                }
                state.record(event);
            }
        }
        crate::laws::hold::<Quota>(commands, |_, _| (), |command| matches!(command, QuotaCommand::AssignPlan { .. }));
    }
}
