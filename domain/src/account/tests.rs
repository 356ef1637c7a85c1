use proptest::prelude::*;

use super::*;
use crate::test_support::{later, noon};

fn limit(unit: Unit, period: Period, amount: u64) -> Limit {
    Limit { unit, period, amount, roll_over: None }
}

fn rolling(amount: u64, cap: u64) -> Limit {
    Limit { roll_over: Some(cap), ..limit(Unit::Tokens, Period::Day, amount) }
}

fn terms(limits: Vec<Limit>, warn_at_percent: Vec<u8>) -> PlanTerms {
    PlanTerms { limits, warn_at_percent }.checked().expect("terms that make sense")
}

fn account(terms: PlanTerms) -> Account<u32> {
    let meters = Account::<u32>::default().reset(&terms, noon());
    Account { terms, meters, ..Account::default() }
}

fn day(number: i64) -> DateTime<Utc> {
    noon() + Duration::days(number)
}

#[test]
fn windows_are_whole_calendar_units() {
    let at = Utc.with_ymd_and_hms(2024, 2, 29, 23, 59, 59).single().expect("a leap day");
    let day = |y, m, d| Utc.with_ymd_and_hms(y, m, d, 0, 0, 0).single().expect("real");
    let window = |start, end| Window { start, end };
    assert_eq!(Period::Month.window(at), window(day(2024, 2, 1), day(2024, 3, 1)));
    assert_eq!(Period::Week.window(at), window(day(2024, 2, 26), day(2024, 3, 4)));
    assert_eq!(Period::Day.window(at), window(day(2024, 2, 29), day(2024, 3, 1)));
    let december = Utc.with_ymd_and_hms(2026, 12, 31, 12, 0, 0).single().expect("real");
    assert_eq!(Period::Month.window(december).end, day(2027, 1, 1));
}

#[test]
fn terms_that_make_no_sense_are_refused_and_others_have_one_order() {
    let refused = |limits, warnings| PlanTerms { limits, warn_at_percent: warnings }.checked().err();
    let daily = limit(Unit::Tokens, Period::Day, 5);
    assert_eq!(refused(vec![], vec![]), Some(TermsError::Empty));
    assert_eq!(refused(vec![Limit { amount: 0, ..daily }], vec![]), Some(TermsError::Empty));
    assert_eq!(refused(vec![Limit { amount: u64::MAX, ..daily }], vec![]), Some(TermsError::TooLarge));
    assert_eq!(refused(vec![rolling(5, u64::MAX)], vec![]), Some(TermsError::TooLarge));
    assert_eq!(refused(vec![rolling(5, 0)], vec![]), Some(TermsError::NoRollOver));
    let twice = TermsError::Twice { unit: Unit::Tokens, period: Period::Day };
    assert_eq!(refused(vec![daily, Limit { amount: 6, ..daily }], vec![]), Some(twice));
    assert_eq!(refused(vec![daily], vec![100]), Some(TermsError::WarningOutOfRange));
    assert_eq!(refused(vec![daily], (1..12).collect()), Some(TermsError::TooManyWarnings));
    let money = limit(Unit::Money, Period::Month, 9);
    let one = terms(vec![money, daily], vec![95, 80, 95]);
    assert_eq!((one.limits, one.warn_at_percent), (vec![daily, money], vec![80, 95]));
}

#[test]
fn the_limit_that_resets_last_says_why_something_does_not_fit() {
    let tokens = |period, amount| limit(Unit::Tokens, period, amount);
    let account = account(terms(vec![tokens(Period::Day, 50), tokens(Period::Month, 80)], vec![]));
    let left = account.left_at(noon());
    assert_eq!(shortage(&left, Amounts::only(Unit::Tokens, 50)), None);
    let short = shortage(&left, Amounts::only(Unit::Tokens, 60)).expect("over the day's");
    assert_eq!((short.period, short.remaining), (Period::Day, 50));
    let short = shortage(&left, Amounts::only(Unit::Tokens, 90)).expect("over both");
    assert_eq!((short.period, short.remaining), (Period::Month, 80));
    assert_eq!(shortage(&left, Amounts::only(Unit::Money, u64::MAX)), None, "money is not limited");
}

#[test]
fn what_is_left_goes_over_up_to_its_cap() {
    let mut account = account(terms(vec![rolling(100, 150)], vec![]));
    account.set_used(&[30]);
    let at = |days| account.left_at(day(days))[0];
    assert_eq!((at(0).limit, at(0).remaining, at(0).carried), (100, 70, 0));
    assert_eq!((at(1).limit, at(1).remaining, at(1).carried), (170, 170, 70));
    assert_eq!(at(2).carried, 150, "70 and the whole of the idle day, capped");
    assert_eq!(at(400).carried, 150);
}

#[test]
fn without_a_cap_nothing_goes_over() {
    let account = account(terms(vec![limit(Unit::Tokens, Period::Day, 100)], vec![]));
    assert_eq!(account.left_at(day(3))[0].limit, 100);
}

#[test]
fn a_raise_counts_until_it_expires_and_does_not_go_over() {
    let mut account = account(terms(vec![rolling(100, 1_000)], vec![]));
    account.remember_raise(Raise { unit: Unit::Tokens, amount: 50, expires_at: later(10) });
    account.remember_raise(Raise { unit: Unit::Money, amount: 7, expires_at: later(10) });
    assert_eq!(account.left_at(later(9))[0].limit, 150);
    assert_eq!(account.left_at(later(10))[0].limit, 100);
    assert_eq!(account.left_at(day(1))[0].carried, 100);
}

#[test]
fn other_terms_go_on_counting_what_is_limited_as_before() {
    let mut account = account(terms(vec![rolling(100, 50)], vec![]));
    account.set_used(&[30]);
    account.meters[0].carried = 40;
    let week = limit(Unit::Tokens, Period::Week, 500);
    let meters = account.reset(&terms(vec![rolling(10, 20), week], vec![]), noon());
    assert_eq!((meters[0].used, meters[0].carried), (30, 20), "no more than the new cap");
    assert_eq!((meters[1].used, meters[1].carried), (0, 0));
}

#[test]
fn a_warning_comes_once_a_threshold_and_window() {
    let mut account = account(terms(vec![limit(Unit::Tokens, Period::Day, 1_000)], vec![50, 80, 95]));
    let due = |account: &Account<u32>, now| account.warnings(now, |left| left.used);
    let mut use_up_to = |used: u64| {
        account.set_used(&[used]);
        let due = due(&account, noon());
        due.iter().for_each(|warning| account.remember_warning(warning));
        due.iter().map(|warning| warning.percent).collect::<Vec<_>>()
    };
    assert_eq!(use_up_to(499), [0; 0]);
    assert_eq!(use_up_to(500), [50]);
    assert_eq!(use_up_to(700), [0; 0]);
    assert_eq!(use_up_to(960), [95], "the highest says it all");
    assert_eq!(use_up_to(990), [0; 0]);
    let meters = account.rolled(day(1)).expect("a day later");
    account.turn_to(meters);
    account.set_used(&[600]);
    assert_eq!(due(&account, day(1))[0].percent, 50, "anew in another window");
}

/// The rule, window by window, as the guide tells it.
fn step_by_step(limit: Limit, used: u64, windows: u64) -> u64 {
    let cap = limit.roll_over.unwrap_or(0);
    let mut carried = 0;
    let mut used = used;
    for _ in 0..windows {
        carried = (limit.amount + carried).saturating_sub(used).min(cap);
        used = 0;
    }
    carried
}

proptest! {
    #[test]
    fn skipping_windows_is_the_same_as_going_through_them(
        amount in 1u64..1_000, cap in prop::option::of(1u64..5_000), used in 0u64..3_000, windows in 1i64..12,
        period in prop_oneof![Just(Period::Minute), Just(Period::Hour), Just(Period::Day), Just(Period::Week), Just(Period::Month)],
    ) {
        let limit = Limit { unit: Unit::Tokens, period, amount, roll_over: cap };
        let mut account = account(PlanTerms { limits: vec![limit], warn_at_percent: vec![] });
        account.set_used(&[used]);
        let mut end = account.meters[0].window;
        let mut stepped = account.clone();
        for _ in 0..windows {
            end = period.window(end.end);
            let meters = stepped.rolled(end.start).expect("a window ended");
            stepped.turn_to(meters);
        }
        let skipped = account.rolled(end.end - Duration::seconds(1)).expect("windows ended");
        prop_assert_eq!(&skipped, &stepped.meters);
        let windows = u64::try_from(windows).expect("positive");
        prop_assert_eq!(skipped[0].carried, step_by_step(limit, used, windows));
        prop_assert!(skipped[0].carried <= cap.unwrap_or(0));
    }

    #[test]
    fn a_hold_is_never_charged_more_than_it_holds(
        held in (0u64..100, 0u64..3, 0u64..100), taken in (0u64..200, 0u64..3, 0u64..200),
    ) {
        let amounts = |(tokens, messages, money)| Amounts { tokens, messages, money };
        let (held, taken) = (amounts(held), amounts(taken));
        let (charged, beyond) = held.settle(taken);
        prop_assert!(held.covers(charged) && taken.covers(charged));
        for unit in Unit::iter().filter(|unit| held.of(*unit) > 0) {
            prop_assert_eq!(charged.of(unit) + beyond.of(unit), taken.of(unit));
        }
    }
}
