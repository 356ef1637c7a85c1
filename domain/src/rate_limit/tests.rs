use cqrs_es::test::TestFramework;
use proptest::prelude::*;

use super::*;
use crate::{
    laws,
    test_support::{clock_at, id, later, noon, reason},
};

type Overrides = TestFramework<RateOverride>;

fn slow() -> RateRule {
    RateRule::requests(RateLimit { burst: 1, per_minute: 2 })
}

fn person() -> RateSubject {
    RateSubject::user(id(3), id(5))
}

fn set(rule: RateRule, expires_at: Option<DateTime<Utc>>) -> RateOverrideCommand {
    let (workspace, subject, by) = (id(1), person(), id(2));
    RateOverrideCommand::Set { workspace, subject, rule, reason: reason("too loud"), expires_at, by }
}

fn was_set(rule: RateRule, expires_at: Option<DateTime<Utc>>) -> RateOverrideEvent {
    RateOverrideEvent::RateOverrideSet {
        workspace: id(1),
        subject: person(),
        rule,
        reason: reason("too loud"),
        expires_at,
        by: id(2),
        set_at: noon(),
    }
}

fn remove() -> RateOverrideCommand {
    RateOverrideCommand::Remove { reason: reason("calm again"), by: id(2) }
}

#[test]
fn an_override_ends_by_itself() {
    let mut state = RateOverride::default();
    state.record(was_set(slow(), Some(later(60))));
    assert_eq!(state.rule_at(later(59)), Some(slow()));
    assert_eq!(state.rule_at(later(60)), None);
}

#[test]
fn setting_the_same_twice_records_nothing_new() {
    Overrides::with(clock_at(noon()))
        .given(vec![was_set(slow(), None)])
        .when(set(slow(), None))
        .then_expect_events(vec![]);
}

#[test]
fn another_end_is_another_decision() {
    Overrides::with(clock_at(noon()))
        .given(vec![was_set(slow(), None)])
        .when(set(slow(), Some(later(60))))
        .then_expect_events(vec![was_set(slow(), Some(later(60)))]);
}

#[test]
fn removing_what_ran_out_records_nothing() {
    Overrides::with(clock_at(later(60)))
        .given(vec![was_set(slow(), Some(later(60)))])
        .when(remove())
        .then_expect_events(vec![]);
}

#[test]
fn a_rule_says_something_that_can_be_counted() {
    let refused = |rule, error| {
        Overrides::with(clock_at(noon()))
            .given_no_previous_events()
            .when(set(rule, None))
            .then_expect_error(error);
    };
    refused(RateRule::default(), RateOverrideError::Empty);
    let beyond = RateLimit { burst: MOST_OF_A_RATE + 1, per_minute: 1 };
    refused(RateRule::requests(beyond), RateOverrideError::OutOfRange { field: "requests" });
    let never = RateLimit { burst: 1, per_minute: 0 };
    refused(
        RateRule { tokens: Some(never), ..RateRule::default() },
        RateOverrideError::OutOfRange { field: "tokens" },
    );
    refused(
        RateRule { parallel: Some(0), ..RateRule::default() },
        RateOverrideError::OutOfRange { field: "parallel" },
    );
}

#[test]
fn an_override_ends_after_now_and_within_the_calendar() {
    for (end, error) in [
        (noon(), RateOverrideError::EndsInThePast),
        ("+12000-01-01T00:00:00Z".parse().expect("a moment"), RateOverrideError::EndsTooLate),
    ] {
        Overrides::with(clock_at(noon()))
            .given_no_previous_events()
            .when(set(slow(), Some(end)))
            .then_expect_error(error);
    }
}

#[test]
fn a_rule_stands_in_only_where_it_says_something() {
    let tokens = RateLimit { burst: 9, per_minute: 9 };
    let ordinary = RateRule { requests: None, tokens: Some(tokens), parallel: Some(4) };
    assert_eq!(slow().or(ordinary), RateRule { requests: slow().requests, ..ordinary });
}

#[test]
fn a_household_is_one_subject_however_many_addresses_it_has() {
    let ip = |text: &str| RateSubject::ip(text.parse().expect("an address"));
    assert_eq!(ip("2001:db8::1"), ip("2001:db8::ffff:1"));
    assert_ne!(ip("2001:db8::1"), ip("2001:db8:0:1::1"));
    assert_eq!(ip("::ffff:192.0.2.1"), ip("192.0.2.1"));
    assert_ne!(ip("192.0.2.1"), ip("192.0.2.2"));
}

#[test]
fn a_subject_has_a_plain_id_and_no_two_share_a_stream() {
    let key = |id: &str| RateSubject::parse(RateSubjectKind::ApiKey, id);
    assert!(key("0190-ab").is_ok());
    for bad in ["", "a b", "a{b}", "ключ", &"a".repeat(101)] {
        assert!(key(bad).is_err(), "{bad}");
    }
    let of = |workspace, kind, name: &str| {
        let subject = RateSubject::parse(kind, name).expect("a plain id");
        rate_override_stream(id(workspace), &subject)
    };
    let first = of(1, RateSubjectKind::Team, "a");
    assert_ne!(first, of(2, RateSubjectKind::Team, "a"));
    assert_ne!(first, of(1, RateSubjectKind::ApiKey, "a"));
    assert_ne!(first, of(1, RateSubjectKind::Team, "b"));
}

fn any_command() -> impl Strategy<Value = RateOverrideCommand> {
    let limit = || {
        prop::option::of((0u32..4, 0u32..4).prop_map(|(burst, per_minute)| RateLimit { burst, per_minute }))
    };
    prop_oneof![
        (limit(), limit(), prop::option::of(0u32..3), prop::option::of(-5i64..20)).prop_map(
            |(requests, tokens, parallel, end)| set(RateRule { requests, tokens, parallel }, end.map(later))
        ),
        Just(remove()),
    ]
}

proptest! {
    #[test]
    fn overrides_keep_the_laws(commands in prop::collection::vec(any_command(), 0..20)) {
        laws::hold::<RateOverride>(commands, |_, _| {}, |_| true);
    }
}
