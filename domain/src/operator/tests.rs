use cqrs_es::test::TestFramework;

use super::*;
use crate::test_support::{clock_at, id, noon, reason};

type Operators = TestFramework<Operator>;

fn invited() -> OperatorEvent {
    OperatorEvent::OperatorInvited {
        workspace: id(1),
        login: Login::parse("Ada").expect("valid"),
        role: Role::Admin,
        by: None,
        invited_at: noon(),
    }
}

#[test]
fn a_disabled_operator_is_not_let_in_by_an_old_link() {
    let disabled = OperatorEvent::OperatorDisabled { reason: reason("left"), by: id(2), disabled_at: noon() };
    Operators::with(clock_at(noon()))
        .given(vec![invited(), disabled])
        .when(OperatorCommand::Activate)
        .then_expect_error(OperatorError::Disabled);
}

#[test]
fn the_same_invitation_again_records_nothing_and_another_one_is_refused() {
    let invite = |role| OperatorCommand::Invite {
        workspace: id(1),
        login: Login::parse("ada").expect("valid"),
        role,
        by: Some(id(2)),
    };
    let operators = || Operators::with(clock_at(noon())).given(vec![invited()]);
    operators().when(invite(Role::Admin)).then_expect_events(vec![]);
    operators().when(invite(Role::Owner)).then_expect_error(OperatorError::AlreadyInvited);
}

#[test]
fn the_same_role_again_records_nothing() {
    Operators::with(clock_at(noon()))
        .given(vec![invited()])
        .when(OperatorCommand::ChangeRole { role: Role::Admin, by: id(2) })
        .then_expect_events(vec![]);
}

#[test]
fn an_auditor_reads_the_ledger_but_no_personal_text_and_changes_nothing() {
    let may = |permission| Role::Auditor.may(permission);
    assert!(may(Permission::ReadLedger));
    assert!(!may(Permission::ReadPersonal));
    for permission in
        [Permission::ManageOperators, Permission::ManageBots, Permission::ManageQuotas, Permission::Moderate]
    {
        assert!(!may(permission));
    }
}

#[test]
fn personal_text_is_opened_to_auditors_for_a_time() {
    let as_role = |role| {
        let changed = OperatorEvent::OperatorRoleChanged { role, by: id(2), changed_at: noon() };
        Operators::with(clock_at(noon())).given(vec![invited(), changed])
    };
    let until = |days| OperatorCommand::GrantPersonalAccess {
        until: noon() + TimeDelta::days(days),
        reason: reason("complaint 17"),
        by: id(2),
    };
    let granted = |days| OperatorEvent::PersonalAccessGranted {
        until: noon() + TimeDelta::days(days),
        reason: reason("complaint 17"),
        by: id(2),
        granted_at: noon(),
    };
    as_role(Role::Auditor).when(until(30)).then_expect_events(vec![granted(30)]);
    for days in [-1, 0, 31] {
        as_role(Role::Auditor).when(until(days)).then_expect_error(OperatorError::PersonalAccessTime);
    }
    for role in [Role::Owner, Role::Moderator, Role::Analyst, Role::Member] {
        as_role(role).when(until(1)).then_expect_error(OperatorError::NotAuditor);
    }

    let mut auditor = Operator::default();
    let by = id(2);
    for event in
        [invited(), OperatorEvent::OperatorRoleChanged { role: Role::Auditor, by, changed_at: noon() }]
    {
        auditor.record(event);
    }
    auditor.record(granted(1));
    assert_eq!(auditor.decide(until(1), noon()), Ok(vec![]), "the same once more");
    assert!(auditor.reads_personal(noon()) && !auditor.reads_personal(noon() + TimeDelta::days(1)));
    let revoke = || OperatorCommand::RevokePersonalAccess { reason: reason("answered"), by };
    assert_eq!(auditor.decide(revoke(), noon()).map(|events| events.len()), Ok(1));
    assert_eq!(auditor.decide(revoke(), noon() + TimeDelta::days(1)), Ok(vec![]), "it is over");
    for ends in [
        OperatorEvent::PersonalAccessRevoked { reason: reason("answered"), by, revoked_at: noon() },
        OperatorEvent::OperatorRoleChanged { role: Role::Analyst, by, changed_at: noon() },
        OperatorEvent::OperatorDisabled { reason: reason("left"), by, disabled_at: noon() },
    ] {
        let mut ended = auditor.clone();
        ended.record(ends);
        assert_eq!(ended.reads_personal_until, None);
    }
}

#[test]
fn only_the_owner_manages_operators() {
    for role in [Role::Admin, Role::Moderator, Role::Auditor, Role::Analyst, Role::Member] {
        assert!(!role.may(Permission::ManageOperators), "{role:?}");
    }
    assert!(Role::Owner.may(Permission::ManageOperators));
}

#[test]
fn logins_are_lower_case_and_plain() {
    let short = Login::parse("al").expect_err("too short").to_string();
    assert_eq!(short, "the login has 2 characters, at least 3 are needed");
    assert_eq!(Login::parse(" Ada.L ").expect("valid").as_str(), "ada.l");
    for bad in ["ab", "a b c", "администратор", &"x".repeat(65)] {
        assert!(Login::parse(bad).is_err(), "{bad}");
    }
}
