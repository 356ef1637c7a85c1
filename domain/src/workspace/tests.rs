use cqrs_es::test::TestFramework;

use super::*;
use crate::{
    quota::Period,
    test_support::{clock_at, noon, reason},
};

type Workspaces = TestFramework<Workspace>;

fn plan(name: &str) -> PlanName {
    PlanName::parse(name).expect("valid")
}

fn terms(tokens: u64) -> PlanTerms {
    PlanTerms::tokens(tokens, Period::Day)
}

fn create() -> WorkspaceCommand {
    WorkspaceCommand::Create { name: "Shop".to_owned(), plan: plan("free"), terms: terms(100) }
}

fn created() -> Vec<WorkspaceEvent> {
    Workspace::default().decide(create(), noon()).expect("allowed")
}

#[test]
fn a_new_workspace_has_a_default_plan() {
    let mut workspace = Workspace::default();
    for event in created() {
        workspace.record(event);
    }
    assert_eq!(workspace.default_terms(), Some((&plan("free"), &terms(100))));
}

#[test]
fn the_default_plan_cannot_be_retired() {
    Workspaces::with(clock_at(noon()))
        .given(created())
        .when(WorkspaceCommand::RetirePlan { plan: plan("free"), reason: reason("old") })
        .then_expect_error(WorkspaceError::DefaultPlan { plan: "free".to_owned() });
}

#[test]
fn the_default_must_be_a_known_plan() {
    Workspaces::with(clock_at(noon()))
        .given(created())
        .when(WorkspaceCommand::SetDefaultPlan { plan: plan("gold") })
        .then_expect_error(WorkspaceError::UnknownPlan { plan: "gold".to_owned() });
}

#[test]
fn a_plan_that_grants_nothing_is_refused() {
    Workspaces::with(clock_at(noon()))
        .given(created())
        .when(WorkspaceCommand::DefinePlan { plan: plan("none"), terms: terms(0) })
        .then_expect_error(WorkspaceError::Terms(TermsError::Empty));
}

#[test]
fn defining_the_same_terms_again_records_nothing() {
    Workspaces::with(clock_at(noon()))
        .given(created())
        .when(WorkspaceCommand::DefinePlan { plan: plan("free"), terms: terms(100) })
        .then_expect_events(vec![]);
}

#[test]
fn a_name_holds_only_what_can_be_seen() {
    for name in ["", " ", "Shop\0", "Two\nlines", &"x".repeat(101)] {
        let rename = WorkspaceCommand::Rename { name: name.to_owned() };
        Workspaces::with(clock_at(noon()))
            .given(created())
            .when(rename)
            .then_expect_error(WorkspaceError::InvalidName);
    }
}
