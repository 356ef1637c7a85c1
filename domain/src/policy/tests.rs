use super::*;
use crate::signal::{IntentFinding, TextSpan};

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_780_000_000, 0).expect("a moment")
}

fn signal(detector: Detector, rule: &str, level: SignalLevel, score_permille: u16) -> Signal {
    Signal {
        detector,
        rule: rule.to_owned(),
        level,
        score_permille,
        spans: vec![TextSpan { start: 0, end: 4 }],
    }
}

fn seen(signals: Vec<Signal>) -> Findings {
    Findings { signals, ..Findings::default() }
}

fn off_topic(oos_permille: u16) -> Findings {
    let intent = IntentFinding { intent: "balance".to_owned(), oos_permille, method: "ngram".to_owned() };
    Findings { intent: Some(intent), ..Findings::default() }
}

fn kinds(judgement: &Judgement) -> Vec<OffenceKind> {
    judgement.offences.iter().map(|offence| offence.kind).collect()
}

fn intent(name: &str) -> Intent {
    let examples = ["one", "two", "three"].map(|word| format!("{name} {word}")).to_vec();
    Intent { name: name.to_owned(), examples }
}

fn publish(terms: PolicyTerms, mode: PolicyMode) -> PolicyCommand {
    PolicyCommand::Publish {
        workspace: WorkspaceId(uuid::Uuid::from_u128(1)),
        bot: None,
        terms: Box::new(terms),
        mode,
        note: None,
        by: None,
    }
}

fn apply(policy: &mut Policy, command: PolicyCommand, at: DateTime<Utc>) -> Vec<PolicyEvent> {
    let events = policy.decide(command, at).expect("accepted");
    events.iter().for_each(|event| policy.record(event.clone()));
    events
}

#[test]
fn the_terms_the_product_ships_make_sense() {
    assert_eq!(PolicyTerms::default().check(), Ok(()));
}

#[test]
fn nothing_seen_is_a_clean_message() {
    assert_eq!(PolicyTerms::default().judge(&Findings::default()), Judgement::default());
}

#[test]
fn a_confident_attack_is_refused_and_a_suspected_one_only_costs_points() {
    let terms = PolicyTerms::default();
    let suspected = terms.judge(&seen(vec![signal(Detector::Attack, "forget", SignalLevel::Suspected, 600)]));
    assert_eq!((kinds(&suspected), suspected.refusal), (vec![OffenceKind::InjectionSuspected], None));
    let both = vec![
        signal(Detector::Attack, "model", SignalLevel::Suspected, 600),
        signal(Detector::Attack, "forget", SignalLevel::Confident, 990),
    ];
    let confident = terms.judge(&seen(both));
    assert_eq!(kinds(&confident), [OffenceKind::InjectionConfident]);
    assert_eq!(confident.offences[0].evidence.len(), 2);
    assert!(matches!(confident.refusal, Some(Refusal::Content { detector: Detector::Attack, .. })));
}

#[test]
fn the_worst_category_is_charged_once_and_a_severe_finding_whatever_its_score() {
    let terms = PolicyTerms::default();
    let findings = Findings {
        scores: [("S".to_owned(), 950), ("H2".to_owned(), 920), ("V".to_owned(), 100)].into(),
        ..Findings::default()
    };
    let judgement = terms.judge(&findings);
    assert_eq!(kinds(&judgement), [OffenceKind::CategoryMedium]);
    let rules: Vec<&str> =
        judgement.offences[0].evidence.iter().map(|evidence| evidence.rule.as_str()).collect();
    assert_eq!(rules, ["H2", "S"]);
    let severe = terms.judge(&seen(vec![signal(Detector::Category, "S3", SignalLevel::Severe, 1)]));
    assert_eq!(kinds(&severe), [OffenceKind::CategorySevere]);
    assert!(severe.refusal.is_some());
}

#[test]
fn what_a_required_service_flags_under_a_name_of_its_own_is_not_answered_and_costs_nothing() {
    let asking = |required| PolicyTerms {
        moderation: vec![ModerationRule { service: "guard".to_owned(), required }],
        ..PolicyTerms::default()
    };
    let flagged = seen(vec![signal(Detector::Moderation, "S6", SignalLevel::Confident, 1_000)]);
    let judgement = asking(true).judge(&flagged);
    let refusal = Refusal::Content { detector: Detector::Moderation, rule: "S6".to_owned() };
    assert_eq!((judgement.refusal, judgement.offences), (Some(refusal), vec![]));
    assert_eq!(asking(false).judge(&flagged).refusal, None);
}

#[test]
fn a_line_is_drawn_through_the_scores_of_the_services_that_a_policy_asks() {
    let rule = CategoryRule { from_permille: 300, severity: Severity::Low, response: Response::Score };
    let terms = PolicyTerms {
        moderation: vec![ModerationRule { service: "openai".to_owned(), required: false }],
        categories: [("HR".to_owned(), rule)].into(),
        ..PolicyTerms::default()
    };
    let scored =
        |name: &str, score| Findings { scores: [(name.to_owned(), score)].into(), ..Findings::default() };
    assert_eq!(kinds(&terms.judge(&scored("openai.HR", 300))), [OffenceKind::CategoryLow]);
    assert!(kinds(&terms.judge(&scored("openai.HR", 299))).is_empty());
    assert!(kinds(&terms.judge(&scored("another.HR", 900))).is_empty());
}

#[test]
fn people_in_need_are_not_punished_by_the_shipped_terms() {
    let findings = Findings { scores: [("SH".to_owned(), 1_000)].into(), ..Findings::default() };
    assert_eq!(PolicyTerms::default().judge(&findings), Judgement::default());
}

#[test]
fn a_message_off_topic_is_charged_only_when_nothing_worse_was_seen() {
    let terms = PolicyTerms { off_topic: Response::Refuse, ..PolicyTerms::default() };
    assert_eq!(terms.judge(&off_topic(500)), Judgement::default(), "the line itself is on topic");
    let judgement = terms.judge(&off_topic(501));
    assert_eq!(kinds(&judgement), [OffenceKind::OffTopic]);
    assert_eq!(judgement.offences[0].oos_permille, Some(501));
    assert_eq!(judgement.refusal, Some(Refusal::OffTopic));
    let spam = Findings {
        signals: vec![signal(Detector::Spam, "model", SignalLevel::Confident, 990)],
        ..off_topic(900)
    };
    assert_eq!(kinds(&terms.judge(&spam)), [OffenceKind::Spam]);
}

#[test]
fn personal_data_costs_nothing_and_is_masked_passed_or_refused() {
    let findings = seen(vec![
        signal(Detector::PersonalData, "EMAIL_ADDRESS", SignalLevel::Confident, 950),
        signal(Detector::Secret, "SECRET", SignalLevel::Confident, 950),
    ]);
    let judged = |personal_data, secrets| {
        PolicyTerms { personal_data, secrets, ..PolicyTerms::default() }.judge(&findings)
    };
    let masked = judged(DataRule::Mask, DataRule::Pass);
    assert_eq!(masked, Judgement::default());
    let refused = judged(DataRule::Pass, DataRule::Refuse);
    assert_eq!(
        refused.refusal,
        Some(Refusal::Content { detector: Detector::Secret, rule: "SECRET".to_owned() })
    );
}

#[test]
fn a_detector_without_an_answer_refuses_only_where_the_policy_fails_closed_or_needs_the_service() {
    let rule = |required| vec![ModerationRule { service: "guard".to_owned(), required }];
    let silent = Findings { unavailable: vec!["guard".to_owned()], ..Findings::default() };
    let refusal = |terms: PolicyTerms| terms.judge(&silent).refusal;
    assert_eq!(refusal(PolicyTerms { moderation: rule(false), ..PolicyTerms::default() }), None);
    assert_eq!(
        refusal(PolicyTerms { moderation: rule(true), ..PolicyTerms::default() }),
        Some(Refusal::Unscored)
    );
    assert_eq!(refusal(PolicyTerms { fail_closed: true, ..PolicyTerms::default() }), Some(Refusal::Unscored));
}

#[test]
fn a_blocked_word_costs_what_its_entry_says_and_one_of_an_older_version_nothing() {
    let word = |phrase: &str, severity| BlockedWord { phrase: phrase.to_owned(), severity };
    let blocked_words = vec![word("casino*", Severity::Low), word("bomb", Severity::Severe)];
    let terms = PolicyTerms { blocked_words, ..PolicyTerms::default() };
    let found =
        |rule| terms.judge(&seen(vec![signal(Detector::BlockedWord, rule, SignalLevel::Confident, 1_000)]));
    assert_eq!(kinds(&found("1")), [OffenceKind::CategoryLow]);
    assert_eq!(kinds(&found("2")), [OffenceKind::CategorySevere]);
    for unknown in ["0", "3", "x"] {
        assert_eq!(found(unknown), Judgement::default(), "{unknown}");
    }
}

#[test]
fn terms_that_make_no_sense_are_refused_with_what_is_wrong() {
    let base = PolicyTerms::default;
    let few =
        Intent { examples: vec!["same".to_owned(), "Same ".to_owned(), "other".to_owned()], ..intent("few") };
    let wrong = [
        (PolicyTerms { intents: vec![intent("a"), intent("a")], ..base() }, "two intents are named a"),
        (PolicyTerms { intents: vec![few], ..base() }, "intent few needs 3 different examples"),
        (PolicyTerms { intents: vec![intent("oos")], ..base() }, "named oos"),
        (PolicyTerms { not_this: vec![" ".to_owned()], ..base() }, "an example has 1 to 1000"),
        (PolicyTerms { throttled_per_minute: 0, ..base() }, "at least one message a minute"),
    ];
    for (terms, words) in wrong {
        let error = terms.check().expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
    let mut unknown = base();
    unknown.categories.insert("X".to_owned(), unknown.categories["S"]);
    assert!(unknown.check().expect_err("unknown").to_string().contains("no category X"));
}

#[test]
fn a_first_version_watches_for_a_week_and_the_next_ones_go_on_with_it() {
    let mut policy = Policy::default();
    let end = now() + TRIAL;
    apply(&mut policy, publish(PolicyTerms::default(), PolicyMode::Keep), now());
    let trial = policy.current.as_ref().expect("published").trial;
    assert_eq!(trial, Trial::DryRun { until: Some(end) });
    assert!(trial.is_dry_run(end - TimeDelta::seconds(1)) && !trial.is_dry_run(end));
    let strict = PolicyTerms { preset: Preset::Strict, ..PolicyTerms::default() };
    apply(&mut policy, publish(strict.clone(), PolicyMode::Keep), now() + TimeDelta::days(1));
    assert_eq!(policy.current.as_ref().map(|p| (p.version, p.trial)), Some((2, trial)));
    apply(&mut policy, publish(strict, PolicyMode::Live), now() + TimeDelta::days(2));
    apply(&mut policy, publish(PolicyTerms::default(), PolicyMode::Keep), now() + TimeDelta::days(3));
    assert_eq!(policy.current.as_ref().map(|p| (p.version, p.trial)), Some((4, Trial::Live)));
}

#[test]
fn the_same_terms_again_are_no_new_version_and_a_withdrawn_number_is_not_given_again() {
    let mut policy = Policy::default();
    apply(&mut policy, publish(PolicyTerms::default(), PolicyMode::Live), now());
    assert_eq!(apply(&mut policy, publish(PolicyTerms::default(), PolicyMode::Live), now()), []);
    let reason = Reason::parse("not needed").expect("a reason");
    apply(&mut policy, PolicyCommand::Withdraw { reason: reason.clone(), by: None }, now());
    assert_eq!(policy.current, None);
    assert_eq!(apply(&mut policy, PolicyCommand::Withdraw { reason, by: None }, now()), []);
    apply(&mut policy, publish(PolicyTerms::default(), PolicyMode::Live), now());
    assert_eq!(policy.current.map(|current| current.version), Some(2));
}

#[test]
fn a_dry_run_ends_in_the_future() {
    let mode = PolicyMode::DryRun { until: Some(now()) };
    assert_eq!(
        Policy::default().decide(publish(PolicyTerms::default(), mode), now()),
        Err(PolicyError::DryRunEnd)
    );
}
