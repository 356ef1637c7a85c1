use botledger_domain::{
    OperatorId, Reason,
    policy::{BlockedWord, Intent, ModerationRule, PolicyOwner, Response, Severity},
    signal::{IntentFinding, Signal, SignalLevel},
    standing::ladder::Preset,
};
use chrono::TimeDelta;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn begin() -> DateTime<Utc> {
    DateTime::from_timestamp(1_780_000_000, 0).expect("a moment")
}

fn who() -> (BotId, SubjectId) {
    (BotId(Uuid::from_u128(1)), SubjectId(Uuid::from_u128(2)))
}

fn signal(detector: Detector, rule: &str, level: SignalLevel) -> Signal {
    Signal { detector, rule: rule.to_owned(), level, score_permille: 900, spans: vec![] }
}

fn seen(detector: Detector, rule: &str, level: SignalLevel) -> Findings {
    Findings { signals: vec![signal(detector, rule, level)], ..Findings::default() }
}

fn spam() -> Findings {
    seen(Detector::Spam, "advert", SignalLevel::Confident)
}

fn off_topic(oos_permille: u16) -> Findings {
    let intent = IntentFinding { intent: "orders".to_owned(), oos_permille, method: "ngram".to_owned() };
    Findings { intent: Some(intent), ..Findings::default() }
}

fn orders() -> Intent {
    Intent { name: "orders".to_owned(), examples: ["one", "two", "three"].map(str::to_owned).to_vec() }
}

fn reason() -> Reason {
    Reason::parse("seen").expect("a reason")
}

fn by() -> OperatorId {
    OperatorId(Uuid::from_u128(3))
}

/// What the gate records of one person under a policy.
struct Gate {
    terms: Arc<PolicyTerms>,
    dry_run: bool,
    /// Whether a list lets the person in whatever they write.
    exempt: bool,
    standing: Standing,
    now: DateTime<Utc>,
    heard: Vec<Heard>,
    facts: Vec<StandingEvent>,
}

impl Gate {
    fn new(terms: PolicyTerms, dry_run: bool) -> Self {
        let (heard, facts) = (Vec::new(), Vec::new());
        let standing = Standing::default();
        Self { terms: Arc::new(terms), dry_run, exempt: false, standing, now: begin(), heard, facts }
    }

    fn happens(&mut self, command: StandingCommand) {
        for fact in self.standing.decide(command, self.now).unwrap_or_default() {
            apply(&mut self.standing, fact.clone());
            self.facts.push(fact);
        }
    }

    fn is_blocked(&self) -> bool {
        matches!(self.standing.verdict_at(self.now), Verdict::Blocked(_))
    }

    fn writes(&mut self, findings: Findings) -> Outcome {
        self.receives(findings, false)
    }

    /// One message in the gate's own order: a block, the pace, what was found.
    fn receives(&mut self, findings: Findings, hasty: bool) -> Outcome {
        let number = self.heard.len() as i64;
        let turn = TurnId(Uuid::from_u128(1_000 + number as u128));
        let slow = self.standing.verdict_at(self.now) == Verdict::Throttled;
        let (judged, outcome) = if self.exempt {
            (self.exempt_judged(findings), Outcome::Passed)
        } else if self.is_blocked() {
            (None, Outcome::Blocked)
        } else {
            let judgement = self.terms.judge(&findings);
            let (bot, subject) = who();
            self.happens(StandingCommand::Score(Box::new(Scoring {
                bot,
                subject,
                turn,
                offences: judgement.offences,
                rules: self.terms.ladder(),
                policy_version: 1,
                model_version: "c0ffee".to_owned(),
                dry_run: self.dry_run,
            })));
            let outcome = match judgement.refusal {
                _ if self.is_blocked() => Outcome::Blocked,
                _ if hasty && slow => Outcome::Throttled,
                _ if hasty || self.dry_run => Outcome::Passed,
                Some(Refusal::Content { .. }) => Outcome::Content,
                Some(Refusal::OffTopic) => Outcome::OffTopic,
                Some(Refusal::Unscored) => Outcome::Unscored,
                None => Outcome::Passed,
            };
            (Some(self.judged(findings)), outcome)
        };
        let (position, at) = (number + 1, self.now);
        self.heard.push(Heard { turn, position, received_at: at, at, judged, outcome, hasty });
        self.now += TimeDelta::seconds(1);
        outcome
    }

    fn judged(&self, findings: Findings) -> Judged {
        let policy = PolicyRef { owner: PolicyOwner::Bot, version: 1, dry_run: self.dry_run };
        Judged { findings, terms: Arc::clone(&self.terms), policy, fixed: false }
    }

    /// Whether or not the detectors looked at it: nobody is charged.
    fn exempt_judged(&self, findings: Findings) -> Option<Judged> {
        self.heard.len().is_multiple_of(2).then(|| self.judged(findings))
    }

    fn what_if(self, terms: &PolicyTerms, acts: bool) -> Fate {
        let candidate = Candidate::new(terms, acts);
        let end = self.now + TimeDelta::hours(1);
        PersonReplay::new(&candidate, who(), begin()).run(self.heard, self.facts, end)
    }
}

/// What became of each message, and what would have.
fn outcomes(fate: &Fate) -> Vec<(Outcome, Outcome)> {
    fate.turns.iter().map(|turn| (turn.before, turn.after)).collect()
}

fn same(outcome: Outcome, times: usize) -> Vec<(Outcome, Outcome)> {
    vec![(outcome, outcome); times]
}

#[test]
fn stricter_terms_refuse_and_block_who_was_answered() {
    let mild = PolicyTerms { spam: Response::Score, preset: Preset::Lenient, ..PolicyTerms::default() };
    let mut gate = Gate::new(mild.clone(), false);
    for _ in 0..3 {
        assert_eq!(gate.writes(spam()), Outcome::Passed);
    }
    assert_eq!(gate.writes(Findings::default()), Outcome::Passed);
    let strict = PolicyTerms { preset: Preset::Strict, ..mild };
    let fate = gate.what_if(&strict, false);
    use Outcome::{Blocked, Passed};
    // 20 points each: 56 block for a while, and what comes then is not looked at.
    let expected = [(Passed, Passed), (Passed, Passed), (Passed, Blocked), (Passed, Blocked)];
    assert_eq!(outcomes(&fate), expected);
    assert_eq!((fate.before.highest, fate.after.highest), (LadderState::Warned, LadderState::TempBlocked));
    assert_eq!(fate.turns[0].offences_after, [OffenceKind::Spam]);
    assert_eq!(fate.turns[3].offences_after, []);
}

#[test]
fn milder_terms_let_in_messages_that_nobody_looked_at() {
    let mut gate = Gate::new(PolicyTerms { spam: Response::Score, ..PolicyTerms::default() }, false);
    let written: Vec<Outcome> = (0..6).map(|_| gate.writes(spam())).collect();
    use Outcome::{Blocked, Passed, Unknown};
    assert_eq!(written, [Passed, Passed, Passed, Blocked, Blocked, Blocked]);
    let fate = gate.what_if(&PolicyTerms { spam: Response::Ignore, ..PolicyTerms::default() }, false);
    // The fourth was looked at: its own points were the last straw.
    assert_eq!(outcomes(&fate)[2..4], [(Passed, Passed), (Blocked, Passed)]);
    assert_eq!(outcomes(&fate)[4..], [(Blocked, Unknown), (Blocked, Unknown)]);
    assert_eq!(fate.turns[0].offences_before, [OffenceKind::Spam]);
    assert_eq!(fate.turns[0].offences_after, []);
    assert_eq!(fate.after, Rungs::default());
}

#[test]
fn a_dry_run_tells_what_it_would_have_done() {
    let terms = PolicyTerms::default();
    let mut gate = Gate::new(terms.clone(), true);
    for _ in 0..6 {
        assert_eq!(gate.writes(spam()), Outcome::Passed);
    }
    let fate = gate.what_if(&terms, true);
    assert_eq!(outcomes(&fate)[..3], [(Outcome::Passed, Outcome::Content); 3]);
    assert_eq!(outcomes(&fate)[3..], [(Outcome::Passed, Outcome::Blocked); 3]);
    assert_eq!(fate.before.highest, LadderState::Ok);
    assert_eq!(fate.before.highest_on_trial, LadderState::TempBlocked);
    assert_eq!(
        (fate.after.highest, fate.after.highest_on_trial),
        (LadderState::TempBlocked, LadderState::Ok)
    );
}

#[test]
fn what_moderators_decided_is_decided_again_where_there_is_something_to_decide() {
    let terms = PolicyTerms { spam: Response::Score, ..PolicyTerms::default() };
    let mut gate = Gate::new(terms, false);
    let (bot, subject) = who();
    gate.happens(StandingCommand::Block { bot, subject, by: by(), reason: reason(), until: None });
    assert_eq!(gate.writes(spam()), Outcome::Blocked);
    gate.happens(StandingCommand::Unblock { by: by(), reason: reason() });
    for _ in 0..5 {
        gate.writes(spam());
    }
    assert!(gate.is_blocked());
    gate.happens(StandingCommand::FileAppeal { turn: TurnId(Uuid::from_u128(9)), body: None });
    gate.happens(StandingCommand::GrantAppeal { by: by(), reason: None });
    // Taking the grant back must not take back the earlier decision, where there was nothing to grant.
    gate.happens(StandingCommand::Undo { by: by(), reason: reason() });
    gate.now += TimeDelta::seconds(1);
    assert!(gate.is_blocked());
    assert_eq!(gate.writes(Findings::default()), Outcome::Blocked);
    let fate = gate.what_if(&PolicyTerms { spam: Response::Ignore, ..PolicyTerms::default() }, false);
    let outcomes = outcomes(&fate);
    assert_eq!(fate.after.last, LadderState::Ok);
    assert_eq!(outcomes[0], (Outcome::Blocked, Outcome::Blocked), "a moderator's block is no policy's");
    assert_eq!(outcomes.last(), Some(&(Outcome::Blocked, Outcome::Unknown)));
}

#[test]
fn blocked_words_are_found_by_what_they_say_not_by_their_numbers() {
    let word = |phrase: &str| BlockedWord { phrase: phrase.to_owned(), severity: Severity::Medium };
    let with = |words: &[&str]| PolicyTerms {
        blocked_words: words.iter().map(|phrase| word(phrase)).collect(),
        ..PolicyTerms::default()
    };
    let hit = |number: &str| seen(Detector::BlockedWord, number, SignalLevel::Confident);
    let mut gate = Gate::new(with(&["casino", "lottery"]), false);
    for number in ["1", "2", "3"] {
        gate.writes(hit(number));
    }
    let fate = gate.what_if(&with(&["bingo", "lottery"]), false);
    use Outcome::{Content, Passed};
    assert_eq!(outcomes(&fate), [(Content, Passed), (Content, Content), (Passed, Passed)]);
}

#[test]
fn what_cannot_be_told_is_said() {
    let judged_by = PolicyTerms {
        intents: vec![orders()],
        blocked_words: vec![BlockedWord { phrase: "casino".to_owned(), severity: Severity::Low }],
        moderation: vec![ModerationRule { service: "openai".to_owned(), required: true }],
        ..PolicyTerms::default()
    };
    let limits = |terms: &PolicyTerms| Candidate::new(terms, false).limits(&judged_by);
    assert_eq!(limits(&judged_by), []);
    let fewer = PolicyTerms { intents: vec![], blocked_words: vec![], ..judged_by.clone() };
    assert_eq!(limits(&fewer), [], "less of these is always told");
    let other_lines =
        PolicyTerms { off_topic: Response::Ignore, spam: Response::Ignore, ..judged_by.clone() };
    assert_eq!(limits(&other_lines), []);
    let mut more = judged_by.clone();
    more.intents[0].examples.push("four".to_owned());
    more.blocked_words.push(BlockedWord { phrase: "bingo".to_owned(), severity: Severity::Low });
    more.moderation.push(ModerationRule { service: "guard".to_owned(), required: false });
    let no_service = PolicyTerms { moderation: vec![], ..judged_by.clone() };
    assert_eq!(limits(&no_service), [Limit::Moderation]);
    assert_eq!(limits(&more), [Limit::Intents, Limit::BlockedWords, Limit::Moderation]);
}

#[test]
fn without_intents_nothing_is_off_topic() {
    let terms =
        PolicyTerms { intents: vec![orders()], off_topic: Response::Refuse, ..PolicyTerms::default() };
    let mut gate = Gate::new(terms.clone(), false);
    assert_eq!(gate.writes(off_topic(900)), Outcome::OffTopic);
    let fate = gate.what_if(&PolicyTerms { intents: vec![], ..terms }, false);
    assert_eq!(outcomes(&fate), [(Outcome::OffTopic, Outcome::Passed)]);
}

#[test]
fn what_nobody_would_have_looked_for_is_not_missed() {
    let service = |name: &str| ModerationRule { service: name.to_owned(), required: true };
    let closed = PolicyTerms {
        intents: vec![orders()],
        moderation: vec![service("openai")],
        fail_closed: true,
        ..PolicyTerms::default()
    };
    let mut gate = Gate::new(closed.clone(), false);
    for silent in ["intent", "openai", "attack"] {
        let findings = Findings { unavailable: vec![silent.to_owned()], ..Findings::default() };
        assert_eq!(gate.writes(findings), Outcome::Unscored);
    }
    let flagged = seen(Detector::Moderation, "illicit", SignalLevel::Confident);
    assert_eq!(gate.writes(flagged), Outcome::Content);
    let alone = PolicyTerms { intents: vec![], moderation: vec![], ..closed };
    use Outcome::{Content, Passed, Unscored};
    let expected = [(Unscored, Passed), (Unscored, Passed), (Unscored, Unscored), (Content, Passed)];
    assert_eq!(outcomes(&gate.what_if(&alone, false)), expected);
}

#[test]
fn a_message_that_came_too_fast_stays_too_fast() {
    let flood = || seen(Detector::Behaviour, "flood", SignalLevel::Confident);
    let mut gate = Gate::new(PolicyTerms { behaviour: Response::Score, ..PolicyTerms::default() }, false);
    assert_eq!(gate.receives(flood(), true), Outcome::Passed, "its pace refused it, not the policy");
    for _ in 0..11 {
        gate.receives(flood(), true);
    }
    assert_eq!(gate.receives(flood(), true), Outcome::Throttled);
    let refusing = PolicyTerms { behaviour: Response::Refuse, ..PolicyTerms::default() };
    let ignoring = PolicyTerms { behaviour: Response::Ignore, ..PolicyTerms::default() };
    let candidate = |terms| Candidate::new(terms, false);
    let (one, other) = (candidate(&refusing), candidate(&ignoring));
    let again = |heard: &Heard| Heard {
        judged: heard.judged.as_ref().map(|judged| Judged {
            findings: judged.findings.clone(),
            terms: Arc::clone(&judged.terms),
            ..*judged
        }),
        ..*heard
    };
    let heard = gate.heard.iter().map(again).collect();
    let strict = PersonReplay::new(&one, who(), begin()).run(heard, gate.facts.clone(), gate.now);
    assert!(strict.turns.iter().all(|turn| turn.before == turn.after));
    let mild = PersonReplay::new(&other, who(), begin()).run(gate.heard, gate.facts, gate.now);
    let last = mild.turns.last().expect("it was told");
    assert_eq!((last.before, last.after), (Outcome::Throttled, Outcome::Unknown));
    assert_eq!(mild.after, Rungs::default());
}

#[test]
fn whom_a_list_lets_in_stays_let_in() {
    let mut gate = Gate::new(PolicyTerms::default(), false);
    gate.exempt = true;
    for _ in 0..6 {
        assert_eq!(gate.writes(spam()), Outcome::Passed);
    }
    let strict = PolicyTerms { preset: Preset::Strict, ..PolicyTerms::default() };
    let fate = gate.what_if(&strict, false);
    // Every other one was looked at, and costs nothing either.
    assert_eq!(outcomes(&fate), same(Outcome::Passed, 3));
    assert_eq!(fate.after, Rungs::default());
}

#[test]
fn what_was_scored_before_the_time_counts_as_it_was_scored() {
    let terms = PolicyTerms { spam: Response::Score, ..PolicyTerms::default() };
    let mut gate = Gate::new(terms, false);
    gate.writes(spam());
    gate.writes(spam());
    let from = gate.now;
    gate.writes(spam());
    let heard = gate.heard.split_off(2);
    let end = gate.now;
    let none = PolicyTerms { spam: Response::Ignore, ..PolicyTerms::default() };
    let candidate = Candidate::new(&none, false);
    let fate = PersonReplay::new(&candidate, who(), from).run(heard, gate.facts, end);
    assert_eq!((fate.before.highest, fate.before.last), (LadderState::Throttled, LadderState::Throttled));
    assert_eq!((fate.after.highest, fate.after.last), (LadderState::Warned, LadderState::Warned));
    assert_eq!(fate.turns.len(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u32),
    Write(Findings),
    Rush(bool),
    Decide(u8),
    Exempt(bool),
    Trial(bool),
}

fn findings() -> impl Strategy<Value = Findings> {
    let kinds = prop_oneof![
        Just(Findings::default()),
        Just(spam()),
        (400u16..1_000).prop_map(off_topic),
        Just(seen(Detector::Attack, "forget", SignalLevel::Suspected)),
        Just(seen(Detector::Attack, "forget", SignalLevel::Confident)),
        Just(seen(Detector::Category, "S3", SignalLevel::Severe)),
        Just(seen(Detector::Secret, "SECRET", SignalLevel::Confident)),
        Just(seen(Detector::Behaviour, "flood", SignalLevel::Confident)),
        Just(Findings { unavailable: vec!["openai".to_owned()], ..Findings::default() }),
    ];
    (kinds.clone(), kinds).prop_map(|(one, mut other)| {
        other.signals.extend(one.signals);
        Findings { intent: one.intent.or(other.intent.clone()), ..other }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => findings().prop_map(Step::Write),
        2 => any::<bool>().prop_map(Step::Rush),
        3 => (0u32..40_000).prop_map(Step::Wait),
        3 => (0u8..6).prop_map(Step::Decide),
        1 => any::<bool>().prop_map(Step::Exempt),
        1 => any::<bool>().prop_map(Step::Trial),
    ]
}

fn some_terms() -> impl Strategy<Value = PolicyTerms> {
    let response = || prop_oneof![Just(Response::Ignore), Just(Response::Score), Just(Response::Refuse)];
    let preset = prop_oneof![Just(Preset::Lenient), Just(Preset::Standard), Just(Preset::Strict)];
    (response(), response(), response(), response(), preset, any::<bool>()).prop_map(
        |(off_topic, suspected_attack, spam, behaviour, preset, fail_closed)| PolicyTerms {
            intents: vec![orders()],
            off_topic,
            suspected_attack,
            spam,
            behaviour,
            preset,
            fail_closed,
            ..PolicyTerms::default()
        },
    )
}

fn played(terms: PolicyTerms, steps: Vec<Step>) -> Gate {
    let mut gate = Gate::new(terms, false);
    let (bot, subject) = who();
    for (number, step) in steps.into_iter().enumerate() {
        let by = by();
        match step {
            Step::Wait(seconds) => gate.now += TimeDelta::seconds(seconds.into()),
            Step::Write(findings) => {
                gate.writes(findings);
            }
            Step::Rush(flood) => {
                let found = seen(Detector::Behaviour, "flood", SignalLevel::Confident);
                gate.receives(if flood { found } else { Findings::default() }, true);
            }
            Step::Exempt(exempt) => gate.exempt = exempt,
            Step::Trial(dry_run) => gate.dry_run = dry_run,
            Step::Decide(what) => gate.happens(match what {
                0 => StandingCommand::Block { bot, subject, by, reason: reason(), until: None },
                1 => StandingCommand::Unblock { by, reason: reason() },
                2 => {
                    let turn = TurnId(Uuid::from_u128(9_000 + number as u128));
                    StandingCommand::FileAppeal { turn, body: None }
                }
                3 => StandingCommand::GrantAppeal { by, reason: None },
                4 => StandingCommand::DenyAppeal { by, reason: reason() },
                _ => StandingCommand::Undo { by, reason: reason() },
            }),
        }
        gate.now += TimeDelta::microseconds(1);
    }
    gate
}

proptest! {
    #[test]
    fn the_same_terms_change_nothing(terms in some_terms(), steps in prop::collection::vec(step(), 1..60)) {
        let fate = played(terms.clone(), steps).what_if(&terms, false);
        prop_assert_eq!(fate.before, fate.after);
        for turn in fate.turns {
            prop_assert_eq!(turn.before, turn.after);
            prop_assert_eq!(&turn.offences_before, &turn.offences_after);
        }
    }

    #[test]
    fn the_same_question_has_the_same_answer(
        terms in some_terms(),
        other in some_terms(),
        acts in any::<bool>(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let one = played(terms.clone(), steps.clone()).what_if(&other, acts);
        let again = played(terms, steps).what_if(&other, acts);
        prop_assert_eq!(one.turns, again.turns);
        prop_assert_eq!(one.after, again.after);
    }

    #[test]
    fn terms_that_ignore_everything_hold_nobody_up(
        terms in some_terms(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let kind = Response::Ignore;
        let nothing = PolicyTerms {
            intents: vec![],
            suspected_attack: kind,
            confident_attack: kind,
            spam: kind,
            behaviour: kind,
            categories: BTreeMap::new(),
            ..PolicyTerms::default()
        };
        let fate = played(terms, steps).what_if(&nothing, false);
        prop_assert_eq!((fate.after.highest, fate.after.last), (LadderState::Ok, LadderState::Ok));
        for turn in fate.turns {
            prop_assert!(!matches!(turn.after, Outcome::Content | Outcome::OffTopic | Outcome::Unscored));
            prop_assert!(turn.offences_after.is_empty());
        }
    }
}
