use cqrs_es::test::TestFramework;
use proptest::prelude::*;

use super::*;
use crate::{
    account::Unit,
    test_support::{clock_at, id, later, noon},
};

type Shares = TestFramework<BudgetShare>;

fn budget() -> Uuid {
    Uuid::from_u128(40)
}

fn tokens(amount: u64) -> Amounts {
    Amounts::only(Unit::Tokens, amount)
}

fn granted(amount: u64) -> BudgetShareEvent {
    let granted = tokens(amount);
    BudgetShareEvent::ShareGranted {
        budget: budget(),
        share: 3,
        granted,
        pledged: granted,
        good_until: later(60),
        granted_at: noon(),
    }
}

fn reserved(n: u128, amount: u64, all: u64) -> BudgetShareEvent {
    BudgetShareEvent::MoneyReserved {
        budget: budget(),
        reservation: id(n),
        held: tokens(amount),
        reserved: tokens(all),
        reserved_at: noon(),
    }
}

#[test]
fn nothing_is_held_that_was_not_pledged() {
    let reserve = |amount| BudgetShareCommand::Reserve { reservation: id(9), asked: tokens(amount) };
    let given = || Shares::with(clock_at(noon())).given(vec![granted(100), reserved(8, 60, 60)]);
    given().when(reserve(40)).then_expect_events(vec![reserved(9, 40, 100)]);
    given().when(reserve(41)).then_expect_error(BudgetShareError::Short);
    Shares::with(clock_at(noon()))
        .given_no_previous_events()
        .when(reserve(1))
        .then_expect_error(BudgetShareError::NotPledged);
}

#[test]
fn a_pledge_that_is_over_is_gathered_before_anything_is_spent() {
    let given = || Shares::with(clock_at(later(60))).given(vec![granted(100), reserved(8, 60, 60)]);
    let settle = BudgetShareCommand::Settle { reservation: id(8), actual: tokens(5), estimated: false };
    given().when(settle).then_expect_error(BudgetShareError::Over);
    let reserve = BudgetShareCommand::Reserve { reservation: id(9), asked: tokens(1) };
    given().when(reserve).then_expect_error(BudgetShareError::Over);
    given().when(BudgetShareCommand::Report { good_until: later(120) }).then_expect_events(vec![
        BudgetShareEvent::ShareReported {
            budget: budget(),
            spent: tokens(0),
            returned: tokens(40),
            pledged: tokens(60),
            good_until: later(120),
            reported_at: later(60),
        },
    ]);
    let release = BudgetShareCommand::Release { reservation: id(8), cause: ReleaseCause::Failed };
    given().when(release).then_expect_events(vec![BudgetShareEvent::MoneyReleased {
        budget: budget(),
        reservation: id(8),
        held: tokens(60),
        cause: ReleaseCause::Failed,
        reserved: tokens(0),
        released_at: later(60),
    }]);
}

#[test]
fn a_hold_is_settled_once_and_at_most_as_held() {
    let settle = BudgetShareCommand::Settle {
        reservation: id(8),
        actual: Amounts { tokens: 70, messages: 1, money: 5 },
        estimated: true,
    };
    let settled = BudgetShareEvent::MoneySettled {
        budget: budget(),
        reservation: id(8),
        charged: tokens(60),
        overrun: tokens(10),
        estimated: true,
        spent: tokens(60),
        reserved: tokens(0),
        settled_at: noon(),
    };
    let given = || Shares::with(clock_at(noon()));
    given()
        .given(vec![granted(100), reserved(8, 60, 60)])
        .when(settle.clone())
        .then_expect_events(vec![settled.clone()]);
    given()
        .given(vec![granted(100), reserved(8, 60, 60), settled])
        .when(settle)
        .then_expect_error(BudgetShareError::UnknownReservation { reservation: id(8) });
}

fn any_command() -> impl Strategy<Value = BudgetShareCommand> {
    prop_oneof![
        2 => (0u64..200, 1i64..90).prop_map(|(amount, end)| BudgetShareCommand::Accept {
            budget: budget(), share: 3, granted: tokens(amount), good_until: later(end)
        }),
        5 => (0u128..8, 0u64..120).prop_map(|(n, amount)| BudgetShareCommand::Reserve { reservation: id(n), asked: tokens(amount) }),
        4 => (0u128..8, 0u64..200).prop_map(|(n, actual)| BudgetShareCommand::Settle { reservation: id(n), actual: tokens(actual), estimated: false }),
        1 => (0u128..8).prop_map(|n| BudgetShareCommand::Release { reservation: id(n), cause: ReleaseCause::Failed }),
        1 => (1i64..90).prop_map(|end| BudgetShareCommand::Report { good_until: later(end) }),
    ]
}

proptest! {
    #[test]
    fn no_history_spends_more_than_was_pledged(commands in prop::collection::vec(any_command(), 1..60)) {
        let within = |_: &BudgetShare, share: &BudgetShare| {
            assert!(share.pledged.covers(share.spent.plus(share.held())), "{share:?}");
        };
        crate::laws::hold::<BudgetShare>(commands, within, |command| {
            matches!(command, BudgetShareCommand::Report { .. })
        });
    }
}
