use cqrs_es::test::TestFramework;
use proptest::prelude::*;
use strum::IntoEnumIterator;

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
        by: Some(id(2)),
        reason: Some(reason("spam")),
        until,
        cause: BlockCause::Moderator,
        turn: None,
        score: None,
        policy_version: None,
        dry_run: false,
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

fn offence(kind: OffenceKind) -> Offence {
    let found = Evidence { detector: "spam".into(), rule: "advert".into(), spans: vec![(3, 9)] };
    Offence { kind, oos_permille: Some(1_000), intent: None, evidence: vec![found] }
}

fn scoring(turn: u128, kinds: &[OffenceKind]) -> Scoring {
    Scoring {
        bot: id(3),
        subject: id(5),
        turn: id(turn),
        offences: kinds.iter().copied().map(offence).collect(),
        rules: LadderConfig::default(),
        policy_version: 7,
        model_version: "ab12".into(),
        dry_run: false,
    }
}

fn score(turn: u128, kinds: &[OffenceKind]) -> StandingCommand {
    StandingCommand::Score(Box::new(scoring(turn, kinds)))
}

/// Decides and records, and gives the wire names of what happened.
fn run(standing: &mut Standing, command: StandingCommand, at: DateTime<Utc>) -> Vec<String> {
    let events = standing.decide(command, at).expect("allowed");
    events
        .into_iter()
        .map(|event| {
            let name: &'static str = (&event).into();
            standing.record(event);
            name.to_owned()
        })
        .collect()
}

/// Four spams: blocked for the first quarter of an hour.
fn blocked_for_a_while() -> Standing {
    let mut standing = Standing::default();
    for turn in 0..4 {
        run(&mut standing, score(turn, &[OffenceKind::Spam]), noon());
    }
    standing
}

fn ban(standing: &Standing, at: DateTime<Utc>) -> Ban {
    match standing.verdict_at(at) {
        Verdict::Blocked(ban) => ban,
        other => panic!("{other:?} is no block"),
    }
}

#[test]
fn a_clean_message_of_somebody_with_nothing_on_them_records_nothing() {
    Standings::with(clock_at(noon()))
        .given_no_previous_events()
        .when(score(1, &[]))
        .then_expect_events(vec![]);
}

#[test]
fn a_clean_message_takes_points_off_until_nothing_is_left() {
    let mut standing = Standing::default();
    run(&mut standing, score(1, &[OffenceKind::Flood]), noon());
    for turn in 2..7 {
        assert_eq!(run(&mut standing, score(turn, &[]), noon()), ["points_scored"]);
    }
    assert_eq!(standing.live.ladder.score(), 0);
    assert!(run(&mut standing, score(7, &[]), noon()).is_empty());
}

#[test]
fn an_offence_is_recorded_with_what_it_rests_on_and_where_it_led() {
    let scored = StandingEvent::PointsScored {
        bot: id(3),
        subject: id(5),
        turn: id(1),
        offences: vec![ScoredOffence {
            kind: OffenceKind::InjectionConfident,
            points: 30_000,
            lane: Lane::Violation,
            oos_permille: Some(1_000),
            intent: None,
            evidence: offence(OffenceKind::Spam).evidence,
        }],
        before: Rung { state: LadderState::Ok, drift: 0, violation: 0 },
        after: Ladder {
            state: LadderState::Warned,
            violation: 30_000,
            clock_ms: Some(noon().timestamp_millis()),
            positives: 1,
            ..Ladder::default()
        },
        rules: Some(LadderConfig::default()),
        policy_version: 7,
        model_version: "ab12".into(),
        dry_run: false,
        scored_at: noon(),
    };
    let warned = StandingEvent::WarningIssued {
        bot: id(3),
        subject: id(5),
        turn: id(1),
        score: 30_000,
        shown: true,
        policy_version: 7,
        dry_run: false,
        warned_at: noon(),
    };
    Standings::with(clock_at(noon()))
        .given_no_previous_events()
        .when(score(1, &[OffenceKind::InjectionConfident]))
        .then_expect_events(vec![scored, warned]);
}

#[test]
fn rules_are_recorded_when_they_change_and_not_again() {
    let rules_of = |events: Vec<StandingEvent>| match &events[0] {
        StandingEvent::PointsScored { rules, .. } => rules.clone(),
        other => panic!("{other:?}"),
    };
    let mut standing = Standing::default();
    run(&mut standing, score(1, &[OffenceKind::Flood]), noon());
    let again = standing.decide(score(2, &[OffenceKind::Flood]), noon()).expect("allowed");
    assert_eq!(rules_of(again), None);
    let strict = LadderConfig::preset(ladder::Preset::Strict);
    let stricter = Scoring { rules: strict.clone(), ..scoring(2, &[OffenceKind::Flood]) };
    let moved = standing.decide(StandingCommand::Score(Box::new(stricter)), noon()).expect("allowed");
    assert_eq!(rules_of(moved), Some(strict));
}

#[test]
fn rules_that_contradict_themselves_score_nobody() {
    let mut wrong = scoring(1, &[OffenceKind::Spam]);
    wrong.rules.warn = wrong.rules.throttle;
    let refused = Standing::default().decide(StandingCommand::Score(Box::new(wrong)), noon());
    assert!(matches!(refused, Err(StandingError::Rules(_))), "{refused:?}");
}

#[test]
fn a_warning_is_shown_once_a_day_and_recorded_every_time() {
    let mut standing = Standing::default();
    let mut shown = Vec::new();
    let mut turn = 0;
    for hour in [0, 1, 23, 24] {
        let at = later(hour * 3_600);
        // Forgotten meanwhile, so that the threshold is crossed again.
        standing.live.ladder = Ladder::default();
        turn += 1;
        for event in standing.decide(score(turn, &[OffenceKind::InjectionConfident]), at).expect("allowed") {
            if let StandingEvent::WarningIssued { shown: told, .. } = &event {
                shown.push(*told);
            }
            standing.record(event);
        }
    }
    assert_eq!(shown, [true, false, false, true]);
}

#[test]
fn each_step_up_is_an_event_of_its_own() {
    let mut standing = Standing::default();
    let steps: Vec<Vec<String>> =
        (0..4).map(|turn| run(&mut standing, score(turn, &[OffenceKind::Spam]), noon())).collect();
    let steps: Vec<&[String]> = steps.iter().map(|step| &step[1..]).collect();
    assert_eq!(
        steps,
        [
            &[][..],
            &["warning_issued".to_owned()],
            &["throttled".to_owned()],
            &["temporarily_blocked".to_owned()]
        ]
    );
    assert_eq!(standing.live.ladder.until_ms, Some(later(900).timestamp_millis()));
}

#[test]
fn a_block_for_a_while_ends_by_time_alone_and_nothing_is_scored_under_it() {
    let mut standing = blocked_for_a_while();
    let ban = ban(&standing, later(899));
    assert_eq!((ban.cause, ban.until, ban.appeal), (BlockCause::Score, Some(later(900)), Appealable::Now));
    assert!(run(&mut standing, score(9, &[OffenceKind::CategorySevere]), later(899)).is_empty());
    assert_eq!(standing.verdict_at(later(900)), Verdict::Throttled);
    assert_eq!(standing.verdict_at(later(90 * 86_400)), Verdict::Clear);
    assert_eq!(run(&mut standing, score(10, &[]), later(900)), ["points_scored"]);
    assert_eq!(standing.live.ladder.state, LadderState::Throttled);
}

#[test]
fn a_severe_offence_blocks_without_end_whatever_else_the_message_is() {
    let mut standing = Standing::default();
    for turn in 0..3 {
        run(&mut standing, score(turn, &[OffenceKind::Spam]), noon());
    }
    // The spam alone would block for a while, and hide the rest.
    let happened = run(&mut standing, score(4, &[OffenceKind::Spam, OffenceKind::CategorySevere]), noon());
    assert_eq!(happened, ["points_scored", "blocked"]);
    let ban = ban(&standing, later(86_400 * 365));
    assert_eq!((ban.cause, ban.reason, ban.until), (BlockCause::Severe, None, None));
}

#[test]
fn scoring_the_same_message_again_records_nothing() {
    let mut standing = Standing::default();
    run(&mut standing, score(1, &[OffenceKind::Spam]), noon());
    assert!(run(&mut standing, score(1, &[OffenceKind::Spam]), later(1)).is_empty());
}

#[test]
fn a_trial_moves_a_ladder_of_its_own_and_restricts_nobody() {
    let trial = |turn, kinds: &[OffenceKind]| {
        StandingCommand::Score(Box::new(Scoring { dry_run: true, ..scoring(turn, kinds) }))
    };
    let mut standing = Standing::default();
    let happened = run(&mut standing, trial(1, &[OffenceKind::CategorySevere]), noon());
    assert_eq!(happened, ["points_scored", "blocked"]);
    assert_eq!(standing.trial.ladder.state, LadderState::Blocked);
    assert_eq!(standing.verdict_at(noon()), Verdict::Clear);
    assert_eq!(standing.live, Track::default());
    assert!(standing.explain(noon()).contributions.is_empty());

    run(&mut standing, score(2, &[OffenceKind::Flood]), noon());
    assert_eq!(standing.live.ladder.score(), 5_000, "going live starts at zero");
    assert_eq!(standing.trial, Track::default(), "and so does the next trial");
}

#[test]
fn a_moderators_block_and_the_scores_stand_side_by_side() {
    let mut standing = blocked_for_a_while();
    run(&mut standing, block(Some(later(60))), noon());
    assert_eq!(ban(&standing, later(59)).cause, BlockCause::Score, "it lasts longer");
    run(&mut standing, block(None), later(1));
    let both = ban(&standing, later(59));
    assert_eq!((both.cause, both.reason), (BlockCause::Moderator, Some(reason("spam"))));
    assert_eq!(ban(&standing, later(901)).cause, BlockCause::Moderator, "the score does not lift it");
    assert!(run(&mut standing, score(9, &[OffenceKind::Spam]), later(901)).is_empty());
}

#[test]
fn lifting_a_block_lifts_the_scores_with_its_points() {
    let mut standing = blocked_for_a_while();
    run(&mut standing, block(None), noon());
    assert_eq!(run(&mut standing, unblock(), later(1)), ["unblocked"]);
    assert_eq!(standing.verdict_at(later(1)), Verdict::Clear);
    assert_eq!(standing.live.ladder.score(), 0);
    assert!(standing.explain(later(1)).contributions.is_empty());
    assert!(run(&mut standing, unblock(), later(2)).is_empty());
}

#[test]
fn lifting_a_moderators_block_leaves_the_score_of_somebody_it_does_not_block() {
    let mut standing = Standing::default();
    run(&mut standing, score(1, &[OffenceKind::Spam]), noon());
    run(&mut standing, block(None), noon());
    run(&mut standing, unblock(), noon());
    assert_eq!(standing.live.ladder.score(), 20_000);
}

fn file(turn: u128) -> StandingCommand {
    StandingCommand::FileAppeal { turn: id(turn), body: Some(crate::test_support::body(1)) }
}

fn grant() -> StandingCommand {
    StandingCommand::GrantAppeal { by: id(2), reason: None }
}

fn deny() -> StandingCommand {
    StandingCommand::DenyAppeal { by: id(2), reason: reason("no") }
}

fn undo() -> StandingCommand {
    StandingCommand::Undo { by: id(2), reason: reason("a mistake") }
}

#[test]
fn only_somebody_who_is_restricted_can_appeal_and_only_once() {
    let mut standing = Standing::default();
    assert_eq!(standing.decide(file(1), noon()), Err(StandingError::NotRestricted));
    run(&mut standing, score(1, &[OffenceKind::Spam; 2]), noon());
    assert_eq!(
        standing.decide(file(1), noon()),
        Err(StandingError::NotRestricted),
        "a warning restricts nothing"
    );
    run(&mut standing, score(2, &[OffenceKind::Spam]), noon());
    assert_eq!(run(&mut standing, file(3), noon()), ["appeal_filed"]);
    assert!(run(&mut standing, file(3), noon()).is_empty());
    assert_eq!(standing.decide(file(4), noon()), Err(StandingError::AppealOpen));
}

#[test]
fn an_appeal_says_what_it_is_against() {
    let against = |standing: &Standing| match standing.decide(file(9), noon()).expect("restricted").remove(0)
    {
        StandingEvent::AppealFiled { against, cause, .. } => (against, cause),
        other => panic!("{other:?}"),
    };
    let mut standing = blocked_for_a_while();
    assert_eq!(against(&standing), (LadderState::TempBlocked, Some(BlockCause::Score)));
    run(&mut standing, block(None), noon());
    assert_eq!(against(&standing), (LadderState::Blocked, Some(BlockCause::Moderator)));
}

#[test]
fn a_granted_appeal_clears_score_ladder_and_block() {
    let mut standing = blocked_for_a_while();
    run(&mut standing, block(None), noon());
    run(&mut standing, file(9), noon());
    assert_eq!(run(&mut standing, grant(), later(5)), ["appeal_granted"]);
    assert!(run(&mut standing, grant(), later(5)).is_empty());
    assert_eq!(standing.verdict_at(later(5)), Verdict::Clear);
    assert_eq!((standing.live.ladder.score(), standing.live.ladder.temp_blocks.len()), (0, 0));
    assert_eq!(standing.decide(deny(), later(6)), Err(StandingError::NoAppeal));
}

#[test]
fn a_denied_appeal_may_be_filed_again_after_seven_days() {
    let mut standing = Standing::default();
    run(&mut standing, block(None), noon());
    run(&mut standing, file(1), noon());
    run(&mut standing, deny(), noon());
    let from = noon() + APPEAL_PAUSE;
    assert_eq!(ban(&standing, noon()).appeal, Appealable::From(from));
    assert_eq!(
        standing.decide(file(2), from - TimeDelta::seconds(1)),
        Err(StandingError::AppealTooSoon { from })
    );
    assert_eq!(run(&mut standing, file(2), from), ["appeal_filed"]);
    assert_eq!(ban(&standing, from).appeal, Appealable::Pending);
}

#[test]
fn undoing_a_granted_appeal_restores_what_stood_and_can_be_done_once() {
    let mut standing = blocked_for_a_while();
    run(&mut standing, file(9), noon());
    let before = standing.clone();
    run(&mut standing, grant(), later(5));
    assert_eq!(run(&mut standing, undo(), later(6)), ["decision_undone"]);
    assert_eq!(standing.appeal, before.appeal);
    assert_eq!(ban(&standing, later(6)).until, Some(later(900)));
    assert_eq!(standing.explain(later(6)).contributions.len(), 3);
    assert_eq!(standing.decide(undo(), later(7)), Err(StandingError::NothingToUndo));
}

#[test]
fn undoing_forgiveness_keeps_what_was_earned_since() {
    let mut standing = Standing::default();
    run(&mut standing, score(1, &[OffenceKind::Spam; 3]), noon());
    run(&mut standing, file(9), noon());
    run(&mut standing, grant(), noon());
    run(&mut standing, score(2, &[OffenceKind::Flood]), noon());
    run(&mut standing, undo(), noon());
    let ladder = &standing.live.ladder;
    assert_eq!((ladder.state, ladder.drift, ladder.violation), (LadderState::Throttled, 5_000, 60_000));
}

#[test]
fn undoing_an_unblock_that_forgave_nothing_leaves_the_score_alone() {
    let mut standing = Standing::default();
    run(&mut standing, score(1, &[OffenceKind::Spam]), noon());
    run(&mut standing, block(None), noon());
    run(&mut standing, unblock(), noon());
    run(&mut standing, score(2, &[OffenceKind::Flood]), noon());
    run(&mut standing, undo(), noon());
    assert_eq!(standing.live.ladder.score(), 25_000);
    assert_eq!(ban(&standing, noon()).cause, BlockCause::Moderator);
}

#[test]
fn undoing_a_block_restores_the_one_before_and_undoing_a_denial_reopens_the_appeal() {
    let mut standing = Standing::default();
    run(&mut standing, block(Some(later(60))), noon());
    run(&mut standing, block(None), noon() + TimeDelta::milliseconds(1));
    run(&mut standing, undo(), later(1));
    assert_eq!(ban(&standing, later(1)).until, Some(later(60)));
    run(&mut standing, file(1), later(1));
    run(&mut standing, deny(), later(2));
    run(&mut standing, undo(), later(3));
    assert_eq!(ban(&standing, later(3)).appeal, Appealable::Pending);
}

#[test]
fn an_explanation_names_the_three_heaviest_and_what_is_left_of_them() {
    let mut standing = Standing::default();
    let kinds = [
        OffenceKind::Flood,
        OffenceKind::InjectionSuspected,
        OffenceKind::CategoryLow,
        OffenceKind::CategoryMedium,
    ];
    for (turn, kind) in (1..).zip(kinds) {
        run(&mut standing, score(turn, &[kind]), noon());
    }
    let day = noon() + TimeDelta::days(1);
    let why = standing.explain(day);
    let named: Vec<_> = why
        .contributions
        .iter()
        .map(|contribution| (contribution.contribution.offence.kind, contribution.live))
        .collect();
    // Half of the drift is gone after a day, a fifth of the violations.
    assert_eq!(
        named,
        [
            (OffenceKind::CategoryMedium, 19_699),
            (OffenceKind::CategoryLow, 7_879),
            (OffenceKind::InjectionSuspected, 5_000)
        ]
    );
    assert_eq!((why.drift, why.violation), (7_500, 27_579));
    assert_eq!((why.policy_version, why.model_version.as_deref()), (Some(7), Some("ab12")));
    assert_eq!(why.contributions[0].contribution.offence.evidence[0].spans, [(3, 9)]);
    assert_eq!((why.state, why.appeal), (LadderState::Throttled, Some(Appealable::Now)));
    assert_eq!(why.rules.throttle, 50_000);
}

#[test]
fn what_a_block_paid_off_is_no_longer_named() {
    let mut standing = Standing::default();
    run(&mut standing, score(1, &[OffenceKind::OffTopic; 8]), noon());
    assert_eq!(ban(&standing, noon()).until, Some(later(900)));
    assert_eq!(standing.explain(later(899)).contributions.len(), 3);
    assert!(standing.explain(later(900)).contributions.is_empty());
    // Nor when the lane fills again.
    run(&mut standing, score(2, &[OffenceKind::Flood]), later(900));
    let named: Vec<_> = standing.explain(later(900)).contributions.iter().map(|one| one.live).collect();
    assert_eq!(named, [5_000]);
}

fn any_scoring() -> impl Strategy<Value = StandingCommand> {
    let kinds = prop::collection::vec(prop::sample::select(OffenceKind::iter().collect::<Vec<_>>()), 0..4);
    (0u128..200, kinds, prop::bool::weighted(0.2), any::<bool>()).prop_map(
        |(turn, kinds, dry_run, strict)| {
            let rules =
                if strict { LadderConfig::preset(ladder::Preset::Strict) } else { LadderConfig::default() };
            StandingCommand::Score(Box::new(Scoring { dry_run, rules, ..scoring(turn, &kinds) }))
        },
    )
}

fn any_command() -> impl Strategy<Value = StandingCommand> {
    prop_oneof![
        12 => any_scoring(),
        1 => (0i64..200).prop_map(|end| block(Some(later(end)))),
        1 => Just(block(None)),
        2 => Just(unblock()),
        3 => (0u128..50).prop_map(file),
        2 => Just(grant()),
        1 => Just(deny()),
        2 => Just(undo()),
    ]
}

proptest! {
    #[test]
    fn standings_keep_the_laws(commands in prop::collection::vec(any_command(), 1..80)) {
        crate::laws::hold::<Standing>(
            commands,
            |_, after| assert!(after.live.contributions.len() <= REMEMBERED),
            |command| !matches!(command, StandingCommand::Undo { .. }),
        );
    }

    /// The ladder alone, stepped through the messages that were scored, comes out at the same integers.
    #[test]
    fn a_standing_is_its_ladder(messages in prop::collection::vec((0i64..20_000_000, any_scoring()), 1..80)) {
        let mut standing = Standing::default();
        let mut alone = Ladder::default();
        let rules = LadderConfig::default();
        let mut t_ms = noon().timestamp_millis();
        for (number, (gap, command)) in (1_000u128..).zip(messages) {
            t_ms += gap;
            let now = DateTime::from_timestamp_millis(t_ms).expect("a moment");
            let StandingCommand::Score(mut scoring) = command else { unreachable!("a scoring") };
            (scoring.turn, scoring.dry_run, scoring.rules) = (id(number), false, rules.clone());
            let mut kinds: Vec<_> = scoring.offences.iter().map(|offence| offence.kind).collect();
            if !run(&mut standing, StandingCommand::Score(scoring), now).is_empty() {
                kinds.retain(|kind| *kind != OffenceKind::Clean);
                kinds.sort_by_key(|kind| *kind != OffenceKind::CategorySevere);
                if kinds.is_empty() {
                    kinds.push(OffenceKind::Clean);
                }
                for kind in kinds {
                    alone.step(&rules, t_ms, kind, Some(1_000));
                }
                prop_assert_eq!(&standing.live.ladder, &alone);
            }
        }
    }
}
