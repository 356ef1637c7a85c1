use cqrs_es::test::TestFramework;

use super::*;
use crate::test_support::{clock_at, id, later, noon, sealed};

type Subjects = TestFramework<Subject>;

fn see(fingerprint: &str) -> SubjectCommand {
    SubjectCommand::See {
        workspace: id(1),
        bot: id(3),
        profile: sealed(5),
        profile_fingerprint: fingerprint.to_owned(),
        client_language: Language::Ru,
    }
}

fn seen() -> SubjectEvent {
    Subject::default().decide(see("a"), noon()).expect("allowed").remove(0)
}

#[test]
fn a_known_person_with_the_same_name_adds_nothing() {
    Subjects::with(clock_at(noon())).given(vec![seen()]).when(see("a")).then_expect_events(vec![]);
}

#[test]
fn another_name_is_recorded() {
    Subjects::with(clock_at(later(1))).given(vec![seen()]).when(see("b")).then_expect_events(vec![
        SubjectEvent::ProfileChanged {
            profile: sealed(5),
            profile_fingerprint: "b".to_owned(),
            changed_at: later(1),
        },
    ]);
}

#[test]
fn a_chosen_language_is_kept_apart_from_the_clients() {
    let mut subject = Subject::default();
    subject.record(seen());
    assert_eq!((subject.language, subject.language_chosen), (Language::Ru, false));
    subject.record(SubjectEvent::LanguageChosen { language: Language::En, chosen_at: noon() });
    assert_eq!((subject.language, subject.language_chosen), (Language::En, true));
}

#[test]
fn nobody_unknown_chooses_a_language() {
    Subjects::with(clock_at(noon()))
        .given_no_previous_events()
        .when(SubjectCommand::ChooseLanguage { language: Language::En })
        .then_expect_error(SubjectError::Unknown);
}
