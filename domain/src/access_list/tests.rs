use cqrs_es::test::TestFramework;
use proptest::prelude::*;

use super::*;
use crate::{
    laws,
    test_support::{clock_at, id, later, noon, reason},
};

type Lists = TestFramework<AccessList>;

fn person(n: u128) -> AccessTarget {
    AccessTarget::Person { subject: id(n) }
}

fn chat(n: u128) -> AccessTarget {
    AccessTarget::Chat { conversation: id(n) }
}

fn ip(text: &str) -> AccessTarget {
    AccessTarget::Ip { network: Network::parse(text).expect("a network") }
}

fn entry(target: AccessTarget, effect: AccessEffect, expires_at: Option<DateTime<Utc>>) -> AccessEntry {
    AccessEntry { target, effect, reason: reason("known"), expires_at }
}

fn allow(target: AccessTarget) -> AccessEntry {
    entry(target, AccessEffect::Allow, None)
}

fn deny(target: AccessTarget) -> AccessEntry {
    entry(target, AccessEffect::Deny, None)
}

fn add(entries: Vec<AccessEntry>) -> AccessListCommand {
    AccessListCommand::Add { workspace: id(1), bot: None, entries, by: id(2) }
}

fn remove(targets: Vec<AccessTarget>) -> AccessListCommand {
    AccessListCommand::Remove { targets, reason: reason("over"), by: id(2) }
}

fn close(door: AccessDoor) -> AccessListCommand {
    AccessListCommand::Close { workspace: id(1), bot: None, door, reason: reason("family only"), by: id(2) }
}

fn added(entry: AccessEntry) -> AccessListEvent {
    AccessListEvent::AccessEntryAdded { workspace: id(1), bot: None, entry, by: id(2), added_at: noon() }
}

fn list(entries: Vec<AccessEntry>) -> AccessList {
    let mut list = AccessList::default();
    entries.into_iter().map(added).for_each(|event| list.record(event));
    list
}

fn denied(list: &AccessList, subject: u128, conversation: u128) -> Option<bool> {
    list.of_message(id(subject), id(conversation), noon()).map(|verdict| verdict.denies())
}

fn refused(list: &AccessList, address: &str) -> Option<bool> {
    list.of_address(address.parse().expect("an address"), noon()).map(|verdict| verdict.denies())
}

#[test]
fn a_denial_beats_an_allowance() {
    let list = list(vec![allow(person(5)), deny(chat(7)), deny(person(6)), allow(chat(8))]);
    assert_eq!(denied(&list, 5, 9), Some(false));
    assert_eq!(denied(&list, 5, 7), Some(true));
    assert_eq!(denied(&list, 6, 8), Some(true));
    assert_eq!(denied(&list, 9, 8), Some(false));
    assert_eq!(denied(&list, 9, 9), None);
}

#[test]
fn of_several_networks_the_smallest_is_meant() {
    let list = list(vec![
        deny(ip("10.0.0.0/8")),
        allow(ip("10.1.0.0/16")),
        deny(ip("10.1.2.3")),
        allow(ip("2001:db8::/32")),
    ]);
    assert_eq!(refused(&list, "10.9.9.9"), Some(true));
    assert_eq!(refused(&list, "10.1.9.9"), Some(false));
    assert_eq!(refused(&list, "10.1.2.3"), Some(true));
    assert_eq!(refused(&list, "::ffff:10.1.2.3"), Some(true));
    assert_eq!(refused(&list, "2001:db8:1::1"), Some(false));
    assert_eq!(refused(&list, "192.0.2.1"), None);
}

#[test]
fn a_closed_list_lets_in_only_whom_an_entry_allows() {
    let mut list = list(vec![allow(person(5)), allow(ip("192.0.2.0/24"))]);
    for door in [AccessDoor::Messages, AccessDoor::Requests] {
        let event = list.decide(close(door), noon()).expect("may be closed").remove(0);
        list.record(event);
    }
    assert_eq!(denied(&list, 5, 9), Some(false));
    assert_eq!(denied(&list, 6, 9), Some(true));
    assert_eq!(refused(&list, "192.0.2.9"), Some(false));
    assert_eq!(refused(&list, "192.0.3.9"), Some(true));
}

#[test]
fn an_entry_ends_by_itself() {
    let list = list(vec![entry(person(5), AccessEffect::Deny, Some(later(60)))]);
    assert!(list.of_message(id(5), id(9), later(59)).is_some());
    assert!(list.of_message(id(5), id(9), later(60)).is_none());
}

#[test]
fn the_same_entry_twice_is_one() {
    Lists::with(clock_at(noon()))
        .given(vec![added(deny(person(5)))])
        .when(add(vec![deny(person(5)), allow(person(6)), allow(person(6))]))
        .then_expect_events(vec![added(allow(person(6)))]);
}

#[test]
fn an_entry_replaces_the_one_about_the_same_target() {
    let mut list = list(vec![deny(person(5))]);
    let events = list.decide(add(vec![allow(person(5))]), noon()).expect("may be replaced");
    events.into_iter().for_each(|event| list.record(event));
    assert_eq!((list.entries.len(), denied(&list, 5, 9)), (1, Some(false)));
}

#[test]
fn all_of_many_entries_are_added_or_none() {
    let refused = |entries, error| {
        Lists::with(clock_at(noon())).given_no_previous_events().when(add(entries)).then_expect_error(error);
    };
    let target = id::<SubjectId>(6).to_string();
    refused(
        vec![deny(person(5)), entry(person(6), AccessEffect::Deny, Some(noon()))],
        AccessListError::EndsInThePast { target: target.clone() },
    );
    refused(vec![allow(person(6)), deny(person(6))], AccessListError::NamedTwice { target });
    let end = "+12000-01-01T00:00:00Z".parse().expect("a moment");
    refused(vec![entry(person(5), AccessEffect::Deny, Some(end))], AccessListError::EndsTooLate);
    let many = (0..=MOST_ENTRIES).map(|n| deny(person(n as u128))).collect();
    refused(many, AccessListError::Full);
}

#[test]
fn what_ran_out_makes_room() {
    let mut list = AccessList::default();
    for n in 0..MOST_ENTRIES {
        list.record(added(entry(person(n as u128), AccessEffect::Deny, Some(later(60)))));
    }
    let one_more = add(vec![deny(chat(1))]);
    assert_eq!(list.decide(one_more.clone(), later(59)), Err(AccessListError::Full));
    let event = list.decide(one_more, later(60)).expect("there is room").remove(0);
    list.record(event);
    assert_eq!(list.entries.len(), 1);
}

#[test]
fn networks_are_a_matter_of_the_workspace() {
    let bot = Some(id(3));
    let (workspace, by, why) = (id(1), id(2), reason("office"));
    for command in [
        AccessListCommand::Add { workspace, bot, entries: vec![allow(ip("192.0.2.1"))], by },
        AccessListCommand::Close { workspace, bot, door: AccessDoor::Requests, reason: why, by },
    ] {
        Lists::with(clock_at(noon()))
            .given_no_previous_events()
            .when(command)
            .then_expect_error(AccessListError::NetworkOfABot);
    }
}

#[test]
fn taking_out_what_is_not_there_records_nothing() {
    Lists::with(clock_at(noon()))
        .given(vec![added(deny(person(5)))])
        .when(remove(vec![person(6)]))
        .then_expect_events(vec![]);
}

#[test]
fn networks_are_written_one_way() {
    let written = |text: &str| Network::parse(text).map(|network| network.to_string()).ok();
    for (text, one_way) in [
        ("192.0.2.77/24", "192.0.2.0/24"),
        (" 192.0.2.1 ", "192.0.2.1"),
        ("192.0.2.1/32", "192.0.2.1"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8::1/32", "2001:db8::/32"),
        ("::1/128", "::1"),
        ("::/0", "::/0"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1/120", "192.0.2.0/24"),
        ("::ffff:192.0.2.1/64", "::/64"),
    ] {
        assert_eq!(written(text).as_deref(), Some(one_way), "{text}");
        assert_eq!(written(one_way).as_deref(), Some(one_way));
    }
    for wrong in
        ["", "/", "192.0.2.1/", "192.0.2.1/33", "192.0.2.1/+8", "192.0.2/24", "::1/129", "a.example/8"]
    {
        assert_eq!(written(wrong), None, "{wrong}");
    }
}

fn any_command() -> impl Strategy<Value = AccessListCommand> {
    let target = || {
        prop_oneof![
            (0u128..4).prop_map(person),
            (0u128..3).prop_map(chat),
            Just(ip("10.0.0.0/8")),
            Just(ip("10.0.0.1"))
        ]
    };
    let one = (target(), prop::bool::ANY, prop::option::of(1i64..30)).prop_map(|(target, may, end)| {
        let effect = if may { AccessEffect::Allow } else { AccessEffect::Deny };
        entry(target, effect, end.map(later))
    });
    let door = || prop_oneof![Just(AccessDoor::Messages), Just(AccessDoor::Requests)];
    prop_oneof![
        prop::collection::vec(one, 0..4).prop_map(add),
        prop::collection::vec(target(), 0..3).prop_map(remove),
        door().prop_map(close),
        door().prop_map(|door| AccessListCommand::Open { door, reason: reason("all"), by: id(2) }),
    ]
}

proptest! {
    #[test]
    fn lists_keep_the_laws(commands in prop::collection::vec(any_command(), 0..20)) {
        laws::hold::<AccessList>(commands, |_, _| {}, |_| true);
    }
}
