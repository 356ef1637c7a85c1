use cqrs_es::test::TestFramework;

use super::*;
use crate::test_support::{clock_at, id, later, noon, reason};

type Standings = TestFramework<Standing>;

fn block(until: Option<DateTime<Utc>>) -> StandingCommand {
    StandingCommand::Block { bot: id(3), subject: id(5), by: id(2), reason: reason("spam"), until }
}

fn blocked(until: Option<DateTime<Utc>>) -> StandingEvent {
    StandingEvent::Blocked {
        bot: id(3),
        subject: id(5),
        by: id(2),
        reason: reason("spam"),
        until,
        blocked_at: noon(),
    }
}

fn unblock() -> StandingCommand {
    StandingCommand::Unblock { by: id(2), reason: reason("appeal") }
}

#[test]
fn a_block_ends_by_itself() {
    let mut standing = Standing::default();
    standing.record(blocked(Some(later(60))));
    assert!(standing.blocked_at(later(59)).is_some());
    assert!(standing.blocked_at(later(60)).is_none());
}

#[test]
fn blocking_twice_for_the_same_records_nothing_new() {
    Standings::with(clock_at(noon())).given(vec![blocked(None)]).when(block(None)).then_expect_events(vec![]);
}

#[test]
fn a_block_that_ends_before_it_begins_is_refused() {
    Standings::with(clock_at(noon()))
        .given_no_previous_events()
        .when(block(Some(noon())))
        .then_expect_error(StandingError::EndsInThePast);
}

#[test]
fn lifting_a_block_that_ran_out_records_nothing() {
    Standings::with(clock_at(later(61)))
        .given(vec![blocked(Some(later(60)))])
        .when(unblock())
        .then_expect_events(vec![]);
}

#[test]
fn a_block_ends_within_the_calendar_everybody_can_write() {
    let year = |text: &str| text.parse::<DateTime<Utc>>().expect("a moment");
    let last = year("9999-12-31T23:59:59Z");
    Standings::with(clock_at(noon()))
        .given_no_previous_events()
        .when(block(Some(last)))
        .then_expect_events(vec![blocked(Some(last))]);
    Standings::with(clock_at(noon()))
        .given_no_previous_events()
        .when(block(Some(year("+12000-01-01T00:00:00Z"))))
        .then_expect_error(StandingError::EndsTooLate);
}
