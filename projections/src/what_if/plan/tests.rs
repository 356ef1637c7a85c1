use botledger_domain::{
    account::{Limit, Period},
    quota::ReleaseCause,
};
use chrono::TimeDelta;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const SUBJECT: SubjectId = SubjectId(Uuid::from_u128(7));
const WORKSPACE: WorkspaceId = WorkspaceId(Uuid::from_u128(1));

fn noon() -> DateTime<Utc> {
    DateTime::from_timestamp(1_780_056_000, 0).unwrap()
}

fn plan(unit: Unit, amount: u64) -> PlanTerms {
    let limit = Limit { unit, period: Period::Day, amount, roll_over: None };
    PlanTerms { limits: vec![limit], warn_at_percent: vec![50] }
}

/// A quota's stream in the making.
struct Street {
    quota: Quota,
    facts: Facts,
    now: DateTime<Utc>,
    demands: u128,
}

impl Street {
    fn on(terms: PlanTerms) -> Self {
        let mut street = Self { quota: Quota::default(), facts: vec![], now: noon(), demands: 0 };
        street.assigned("free", terms);
        street
    }

    fn assigned(&mut self, plan: &str, terms: PlanTerms) {
        let plan = PlanName::parse(plan).unwrap();
        let assign =
            QuotaCommand::AssignPlan { workspace: WORKSPACE, subject: SUBJECT, plan, terms, by: None };
        self.decided(assign);
    }

    fn decided(&mut self, command: QuotaCommand) {
        for event in self.quota.decide(command, self.now).unwrap_or_default() {
            apply(&mut self.quota, event.clone());
            self.facts.push((Position(self.facts.len() as i64 + 1), event));
        }
    }

    /// A demand a minute later, settled at once with what it took.
    fn demands(&mut self, tokens: u64, took: u64) {
        self.now += TimeDelta::minutes(1);
        self.demands += 1;
        let reservation = ReservationId(Uuid::from_u128(self.demands));
        let asked = Amounts { tokens, messages: 1, money: 0 };
        self.decided(QuotaCommand::Reserve { reservation, asked });
        let actual = Amounts { tokens: took, messages: 1, money: 0 };
        self.decided(QuotaCommand::Settle { reservation, actual, estimated: false });
    }

    fn ask(&self, terms: PlanTerms) -> PlanReport {
        self.ask_from(terms, noon())
    }

    fn ask_from(&self, terms: PlanTerms, from: DateTime<Utc>) -> PlanReport {
        let until = self.now + TimeDelta::days(400);
        let question = PlanWhatIf { workspace: WORKSPACE, from, until, terms, of_plan: None };
        self.asked(&question)
    }

    fn asked(&self, question: &PlanWhatIf) -> PlanReport {
        let mut report = PlanReport::default();
        replay(question, &question.terms, self.facts.clone(), &mut report);
        report
    }
}

#[test]
fn a_smaller_plan_would_have_refused_who_was_held_and_charged_them_less() {
    let mut street = Street::on(plan(Unit::Messages, 5));
    for _ in 0..4 {
        street.demands(100, 40);
    }
    let report = street.ask(plan(Unit::Messages, 1));
    assert_eq!((report.before.held, report.before.refused), (4, 0));
    assert_eq!((report.after.held, report.after.refused), (1, 3));
    assert_eq!((report.before.charged.tokens, report.after.charged.tokens), (160, 40));
    assert_eq!(report.people_changed.len(), 1);
    let fates: Vec<Demand> = report.demands.iter().map(|demand| demand.after).collect();
    assert_eq!(fates, [Demand::Refused(Unit::Messages); 3]);
    assert_eq!(report.estimated, 0);
}

#[test]
fn a_larger_plan_would_have_held_who_was_refused_at_what_the_others_took() {
    let mut street = Street::on(plan(Unit::Messages, 2));
    for took in [40, 60, 0, 0] {
        street.demands(100, took);
    }
    let report = street.ask(plan(Unit::Messages, 10));
    assert_eq!((report.before.refused, report.after.refused, report.estimated), (2, 0, 2));
    assert_eq!(report.after.charged, Amounts { tokens: 200, messages: 4, money: 0 });
    assert_eq!(report.before.warnings, 1);
    assert_eq!(report.after.warnings, 0, "four of ten are less than half");
}

#[test]
fn a_new_limit_counts_what_was_charged_in_its_window_before_the_time() {
    let mut street = Street::on(plan(Unit::Messages, 100));
    for _ in 0..6 {
        street.demands(100, 50);
    }
    // Three lie before the time and took 150.
    let from = noon() + TimeDelta::minutes(4);
    let report = street.ask_from(plan(Unit::Tokens, 300), from);
    assert_eq!((report.before.held, report.after.held, report.after.refused), (3, 2, 1));
    // Another period of the same unit: what lies before its window does not count.
    let mut hourly = plan(Unit::Messages, 4);
    hourly.limits[0].period = Period::Hour;
    let report = street.ask_from(hourly.clone(), from);
    assert_eq!((report.after.held, report.after.refused), (1, 2));
    street.now += TimeDelta::hours(2);
    let from = street.now;
    street.demands(100, 50);
    assert_eq!(street.ask_from(hourly, from).after.refused, 0);
}

#[test]
fn who_was_refused_the_whole_time_asks_for_what_they_asked_for_before_it() {
    let mut street = Street::on(plan(Unit::Messages, 1));
    street.demands(100, 40);
    let from = street.now + TimeDelta::seconds(1);
    for _ in 0..4 {
        street.demands(100, 40);
    }
    let report = street.ask_from(plan(Unit::Messages, 3), from);
    assert_eq!((report.before.held, report.before.refused), (0, 4));
    assert_eq!((report.after.held, report.after.refused), (2, 2), "one was used before");
    let report = street.ask_from(plan(Unit::Tokens, 200), from);
    assert_eq!((report.after.held, report.after.refused), (2, 2), "40, 80 and 120 leave room for 100 twice");
    assert_eq!((report.after.charged.tokens, report.estimated, report.unknown), (80, 2, 0));
}

#[test]
fn who_never_was_held_asks_for_a_message_each_time_and_for_nobody_knows_how_much_money() {
    let mut street = Street::on(plan(Unit::Tokens, 5));
    for _ in 0..4 {
        street.demands(100, 40);
    }
    let report = street.ask(plan(Unit::Messages, 3));
    assert_eq!((report.before.refused, report.after.held, report.after.refused), (4, 3, 1));
    assert_eq!((report.after.charged.messages, report.unknown), (3, 0));
    let report = street.ask(plan(Unit::Money, 3));
    assert_eq!((report.after.held, report.after.refused, report.unknown), (0, 4, 4));
    assert!(report.demands.is_empty());
    // What is short of something that is known is refused, whatever else it asked for.
    let mut both = plan(Unit::Money, 3);
    both.limits.extend(plan(Unit::Tokens, 5).limits);
    let report = street.ask(both);
    assert_eq!((report.after.refused, report.unknown), (4, 0));
}

#[test]
fn people_on_other_plans_are_left_out_when_one_plan_is_named() {
    let mut street = Street::on(plan(Unit::Messages, 5));
    street.demands(100, 40);
    let ask = |name: &str| PlanWhatIf {
        workspace: WORKSPACE,
        from: noon(),
        until: noon() + TimeDelta::days(1),
        terms: plan(Unit::Messages, 1),
        of_plan: Some(PlanName::parse(name).unwrap()),
    };
    assert_eq!(street.asked(&ask("pro")), PlanReport::default());
    assert_eq!(street.asked(&ask("free")).people, 1);
}

#[test]
fn a_plan_that_was_assigned_meanwhile_does_not_take_the_place_of_the_one_that_is_tried() {
    let mut street = Street::on(plan(Unit::Messages, 1));
    street.demands(100, 40);
    street.assigned("pro", plan(Unit::Messages, 100));
    street.demands(100, 40);
    let report = street.ask(plan(Unit::Messages, 1));
    assert_eq!((report.before.held, report.after.held), (2, 1));
}

#[derive(Clone, Debug)]
enum Step {
    Demand { tokens: u64, wait: i64 },
    Settle { which: u8, took: u64 },
    Release { which: u8 },
    Grant { amount: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..400_u64, 0..90_000_i64).prop_map(|(tokens, wait)| Step::Demand { tokens, wait }),
        3 => (any::<u8>(), 0..500_u64).prop_map(|(which, took)| Step::Settle { which, took }),
        1 => any::<u8>().prop_map(|which| Step::Release { which }),
        1 => (1..300_u64).prop_map(|amount| Step::Grant { amount }),
    ]
}

proptest! {
    #[test]
    fn the_same_plan_changes_nothing(
        steps in prop::collection::vec(step(), 0..60), roll_over in prop::option::of(1..500_u64), late in 0..3_000_i64,
    ) {
        let mut terms = plan(Unit::Tokens, 1_000);
        terms.limits[0].roll_over = roll_over;
        let mut street = Street::on(terms.clone());
        for step in steps {
            let held = |which: u8, street: &Street| {
                let holds: Vec<_> = street.quota.account.holds.keys().copied().collect();
                (!holds.is_empty()).then(|| holds[usize::from(which) % holds.len()])
            };
            match step {
                Step::Demand { tokens, wait } => {
                    street.now += TimeDelta::seconds(wait);
                    street.demands += 1;
                    let reservation = ReservationId(Uuid::from_u128(street.demands));
                    let asked = Amounts { tokens, messages: 1, money: 3 };
                    street.decided(QuotaCommand::Reserve { reservation, asked });
                }
                Step::Settle { which, took } => if let Some(reservation) = held(which, &street) {
                    let actual = Amounts { tokens: took, messages: 1, money: 1 };
                    street.decided(QuotaCommand::Settle { reservation, actual, estimated: false });
                },
                Step::Release { which } => if let Some(reservation) = held(which, &street) {
                    street.decided(QuotaCommand::Release { reservation, cause: ReleaseCause::Failed });
                },
                Step::Grant { amount } => street.decided(QuotaCommand::GrantOverride {
                    unit: Unit::Tokens,
                    amount,
                    expires_at: street.now + TimeDelta::hours(30),
                    reason: botledger_domain::Reason::parse("kind").unwrap(),
                    by: botledger_domain::OperatorId(Uuid::from_u128(9)),
                }),
            }
        }
        let report = street.ask_from(terms, noon() + TimeDelta::minutes(late));
        prop_assert_eq!(report.before, report.after);
        prop_assert_eq!(report.demands, vec![]);
        prop_assert_eq!(report.people_changed, vec![]);
        prop_assert_eq!(report.estimated, 0);
    }
}
