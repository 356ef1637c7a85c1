use std::collections::BTreeMap;

use cqrs_es::{Aggregate, test::TestFramework};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{
    account::{Limit, shortage},
    budget_share::{BudgetShareCommand, BudgetShareEvent},
    quota::ReleaseCause,
    test_support::{clock_at, id, later, noon, reason},
};

type Budgets = TestFramework<Budget>;

fn tokens(amount: u64) -> Amounts {
    Amounts::only(Unit::Tokens, amount)
}

fn set(limits: Vec<Limit>, warn_at_percent: Vec<u8>, shares: u16) -> BudgetCommand {
    BudgetCommand::Set {
        workspace: id(1),
        holder: Holder::Workspace(id(1)),
        terms: PlanTerms { limits, warn_at_percent },
        shares,
        by: None,
    }
}

fn of_tokens(amount: u64, shares: u16) -> BudgetCommand {
    set(PlanTerms::tokens(amount, Period::Day).limits, vec![], shares)
}

fn given(commands: Vec<BudgetCommand>) -> (Budget, Vec<BudgetEvent>) {
    let (mut budget, mut history) = (Budget::default(), vec![]);
    for command in commands {
        for event in budget.decide(command, noon()).expect("allowed") {
            budget.record(event.clone());
            history.push(event);
        }
    }
    (budget, history)
}

#[test]
fn a_pledge_covers_the_turn_and_leaves_the_rest_to_other_shares() {
    let (budget, _) = given(vec![of_tokens(100_000, 4)]);
    let pledge = BudgetCommand::Pledge { share: 2, asked: tokens(10), free: tokens(0) };
    let events = budget.decide(pledge, noon()).expect("there is enough");
    let BudgetEvent::MoneyPledged { share: 2, granted, pledged, .. } = &events[0] else {
        panic!("{events:?}")
    };
    assert_eq!((granted, pledged), (&tokens(2_560), &tokens(2_560)), "as much as 256 such turns ask for");
    let pledge = BudgetCommand::Pledge { share: 2, asked: tokens(4_000), free: tokens(100) };
    let events = budget.decide(pledge, noon()).expect("there is enough");
    let BudgetEvent::MoneyPledged { granted, .. } = &events[0] else { panic!("{events:?}") };
    assert_eq!(granted, &tokens(12_500), "or an eighth of what is left");
}

#[test]
fn the_last_token_can_be_pledged_and_not_one_more() {
    let (_, history) = given(vec![of_tokens(100, 2)]);
    let pledge = |amount| BudgetCommand::Pledge { share: 1, asked: tokens(amount), free: tokens(0) };
    Budgets::with(clock_at(noon())).given(history.clone()).when(pledge(100)).then_expect_events(vec![
        BudgetEvent::MoneyPledged {
            share: 1,
            granted: tokens(100),
            pledged: tokens(100),
            pledged_at: noon(),
        },
    ]);
    Budgets::with(clock_at(noon())).given(history).when(pledge(101)).then_expect_error(BudgetError::Short);
}

#[test]
fn a_window_ends_only_when_every_share_has_reported() {
    let pledge = |share| BudgetCommand::Pledge { share, asked: tokens(10), free: tokens(0) };
    let (budget, history) = given(vec![of_tokens(1_000, 2), pledge(0), pledge(1)]);
    let report = |share, spent, kept| ShareReport { share, spent: tokens(spent), kept: tokens(kept) };
    let tomorrow = later(86_400);
    let at = || Budgets::with(clock_at(tomorrow)).given(history.clone());
    at().when(BudgetCommand::Gather { reports: vec![report(0, 7, 3)] })
        .then_expect_error(BudgetError::Unreported { share: 1 });
    at().when(pledge(0)).then_expect_error(BudgetError::Unreported { share: 0 });
    at().when(BudgetCommand::Gather { reports: vec![report(0, 7, 250)] })
        .then_expect_error(BudgetError::Overdrawn { share: 0 });
    let gather = BudgetCommand::Gather { reports: vec![report(0, 7, 3), report(1, 20, 0)] };
    let events = budget.decide(gather, tomorrow).expect("all reported");
    assert!(
        matches!(&events[..], [BudgetEvent::MoneyGathered { used, .. }, BudgetEvent::BudgetRolled { .. }] if used == &[27]),
        "{events:?}"
    );
    let mut after = budget;
    events.into_iter().for_each(|event| after.record(event));
    let left = after.left_for_tests(tomorrow);
    assert_eq!((left.used, left.reserved, left.remaining), (0, 3, 997));
}

impl Budget {
    fn left_for_tests(&self, now: DateTime<Utc>) -> LimitLeft {
        self.account.left_at(now)[0]
    }
}

#[test]
fn a_share_that_was_replaced_takes_no_more_turns() {
    let pledge = |share| BudgetCommand::Pledge { share, asked: tokens(10), free: tokens(0) };
    let (budget, history) = given(vec![of_tokens(1_000, 2), BudgetCommand::Replace { share: 0 }]);
    assert_eq!((budget.shares, budget.next_share), (vec![2, 1], 3));
    Budgets::with(clock_at(noon()))
        .given(history)
        .when(pledge(0))
        .then_expect_error(BudgetError::ClosedShare { share: 0 });
}

#[test]
fn a_share_number_never_comes_back() {
    let (budget, _) = given(vec![of_tokens(10, 4), of_tokens(10, 2), of_tokens(10, 3)]);
    assert_eq!(budget.shares, vec![0, 1, 4]);
}

#[test]
fn exhaustion_is_recorded_once_a_window_and_again_after_a_raise() {
    let (mut budget, _) = given(vec![of_tokens(10, 1)]);
    let short = shortage(&budget.account.left_at(noon()), tokens(11)).expect("too much");
    let exhaust = |budget: &mut Budget| {
        let events = budget.decide(BudgetCommand::Exhaust { short }, noon()).expect("allowed");
        let count = events.len();
        events.into_iter().for_each(|event| budget.record(event));
        count
    };
    assert_eq!((exhaust(&mut budget), exhaust(&mut budget)), (1, 0));
    let raise = BudgetCommand::Raise {
        unit: Unit::Tokens,
        amount: 5,
        expires_at: later(9),
        reason: reason("rush"),
        by: id(2),
    };
    for event in budget.decide(raise, noon()).expect("allowed") {
        budget.record(event);
    }
    assert_eq!(exhaust(&mut budget), 1);
}

#[test]
fn people_have_quotas_and_nobody_a_budget_of_nothing() {
    let command = BudgetCommand::Set {
        workspace: id(1),
        holder: Holder::Person(id(5)),
        terms: PlanTerms::tokens(1, Period::Day),
        shares: 1,
        by: None,
    };
    let refused = |command| Budget::default().decide(command, noon()).expect_err("refused");
    assert_eq!(refused(command), BudgetError::OfPerson);
    assert_eq!(refused(of_tokens(0, 1)), BudgetError::Terms(TermsError::Empty));
    assert_eq!(refused(of_tokens(1, 0)), BudgetError::ShareCount);
    assert_eq!(refused(of_tokens(1, MOST_SHARES + 1)), BudgetError::ShareCount);
    assert_eq!(refused(BudgetCommand::Remove { reason: reason("tidy"), by: None }), BudgetError::None);
}

#[test]
fn what_a_raise_pledged_is_good_only_as_long_as_the_raise() {
    let raise = |seconds| BudgetCommand::Raise {
        unit: Unit::Tokens,
        amount: 5,
        expires_at: later(seconds),
        reason: reason("rush"),
        by: id(2),
    };
    let (budget, _) = given(vec![of_tokens(10, 1), raise(60), raise(90)]);
    assert_eq!(budget.good_until(noon()), Some(later(60)));
    assert_eq!(budget.good_until(later(60)), Some(later(90)));
    assert_eq!(budget.good_until(later(90)), Some(later(43_200)));
}

/// A budget with its shares as the use case drives them, checked against what really happened.
struct World {
    budget: Budget,
    shares: BTreeMap<u32, BudgetShare>,
    /// Who holds how much in which share.
    open: Vec<(u128, u32)>,
    /// Charges by the moment they were made.
    charges: Vec<(DateTime<Utc>, u64)>,
    warned: Vec<u8>,
}

const STREAM: Uuid = Uuid::from_u128(77);

impl World {
    fn new(command: BudgetCommand) -> Self {
        let (budget, _) = given(vec![command]);
        Self { budget, shares: BTreeMap::new(), open: vec![], charges: vec![], warned: vec![] }
    }

    fn tell(&mut self, command: BudgetCommand, now: DateTime<Utc>) -> Vec<BudgetEvent> {
        let events = self.budget.decide(command, now).expect("the use case asks for what is allowed");
        for event in &events {
            self.budget.record(event.clone());
            if let BudgetEvent::BudgetWarned { warning, .. } = event {
                self.warned.push(warning.percent);
            }
            if matches!(event, BudgetEvent::BudgetRolled { .. }) {
                self.warned.clear();
            }
        }
        events
    }

    fn tell_share(&mut self, share: u32, command: BudgetShareCommand, now: DateTime<Utc>) {
        let share = self.shares.entry(share).or_default();
        let events = share.decide(command, now).expect("the use case asks for what is allowed");
        events.into_iter().for_each(|event: BudgetShareEvent| share.apply(event));
    }

    fn gather(&mut self, now: DateTime<Utc>) {
        let stale = self.budget.is_stale(now);
        let good_until = self.budget.good_until(now).expect("it has limits");
        self.gather_until(good_until, now, |share| {
            let over = !share.pledged.is_empty() && !share.is_good(now);
            stale && !share.pledged.is_empty() || over || !share.free().is_empty() || !share.spent.is_empty()
        });
    }

    fn gather_until(
        &mut self,
        good_until: DateTime<Utc>,
        now: DateTime<Utc>,
        wanted: impl Fn(&BudgetShare) -> bool,
    ) {
        let numbers: Vec<u32> =
            self.shares.iter().filter(|(_, share)| wanted(share)).map(|(n, _)| *n).collect();
        let reports = numbers.iter().map(|number| self.shares[number].report(*number)).collect();
        for number in numbers {
            self.tell_share(number, BudgetShareCommand::Report { good_until }, now);
        }
        self.tell(BudgetCommand::Gather { reports }, now);
    }

    /// As a turn does it: in its share, with more from the budget, or with what everybody gives back.
    fn reserve(&mut self, turn: u128, share: u32, asked: u64, now: DateTime<Utc>) -> bool {
        if self.open.iter().any(|(open, _)| *open == turn) {
            return true;
        }
        let asked = tokens(asked);
        let there = self.shares.entry(share).or_default().clone();
        if !(there.is_good(now) && there.free().covers(asked) && !self.budget.is_overcommitted(now)) {
            if self.budget.is_stale(now) {
                self.gather(now);
            }
            let left = self.budget.truth(self.shares.values()).left_at(now);
            if shortage(&left, asked).is_some() {
                return false;
            }
            let there = &self.shares[&share];
            let usable = there.pledged.is_empty() || there.is_good(now);
            let over = self.budget.is_overcommitted(now);
            if !usable || over || self.budget.wants_gathering(asked, there.free(), now) {
                self.gather(now);
            }
            let free = self.shares[&share].free();
            let good_until = self.budget.good_until(now).expect("it has limits");
            for event in self.tell(BudgetCommand::Pledge { share, asked, free }, now) {
                if let BudgetEvent::MoneyPledged { granted, .. } = event {
                    let accept = BudgetShareCommand::Accept { budget: STREAM, share, granted, good_until };
                    self.tell_share(share, accept, now);
                }
            }
        }
        self.tell_share(share, BudgetShareCommand::Reserve { reservation: id(turn), asked }, now);
        self.open.push((turn, share));
        true
    }

    /// As operators do it: what was pledged without the raise is not spent beyond its end.
    fn raise(&mut self, amount: u64, expires_at: DateTime<Utc>, now: DateTime<Utc>) {
        if self.budget.is_stale(now) {
            self.gather(now);
        }
        let good_until = self.budget.good_until(now).expect("it has limits").min(expires_at);
        self.gather_until(good_until, now, |share| !share.pledged.is_empty());
        let (unit, by) = (Unit::Tokens, id(2));
        self.tell(BudgetCommand::Raise { unit, amount, expires_at, reason: reason("rush"), by }, now);
    }

    fn end(&mut self, turn: u128, actual: Option<u64>, now: DateTime<Utc>) {
        let Some(place) = self.open.iter().position(|(open, _)| *open == turn) else { return };
        let (_, share) = self.open.remove(place);
        if !self.shares[&share].is_good(now) {
            self.gather(now);
        }
        let command = match actual {
            Some(actual) => {
                let held = self.shares[&share].holds[&id(turn)].tokens;
                self.charges.push((now, actual.min(held)));
                BudgetShareCommand::Settle { reservation: id(turn), actual: tokens(actual), estimated: false }
            }
            None => BudgetShareCommand::Release { reservation: id(turn), cause: ReleaseCause::Failed },
        };
        self.tell_share(share, command, now);
    }

    /// What was charged since the beginning of a window.
    fn charged_since(&self, start: DateTime<Utc>) -> u64 {
        self.charges.iter().filter(|(at, _)| *at >= start).map(|(_, amount)| amount).sum()
    }
}

#[derive(Clone, Debug)]
enum Act {
    Reserve { turn: u128, share: u32, asked: u64 },
    Settle { turn: u128, actual: u64 },
    Release { turn: u128 },
    Wait { seconds: i64 },
    Raise { amount: u64, seconds: i64 },
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0u128..16, 0u32..4, 1u64..60).prop_map(|(turn, share, asked)| Act::Reserve { turn, share, asked }),
        4 => (0u128..16, 0u64..80).prop_map(|(turn, actual)| Act::Settle { turn, actual }),
        1 => (0u128..16).prop_map(|turn| Act::Release { turn }),
        1 => prop_oneof![1i64..50, 30i64..4_000].prop_map(|seconds| Act::Wait { seconds }),
        1 => (1u64..100, 1i64..40).prop_map(|(amount, seconds)| Act::Raise { amount, seconds }),
    ]
}

proptest! {
    #[test]
    fn in_any_order_nothing_is_refused_that_fits_and_nothing_let_through_that_does_not(
        amount in 20u64..400, hourly in 100u64..2_000, cap in prop::option::of(1u64..300),
        acts in prop::collection::vec(any_act(), 1..120),
    ) {
        let minute = Limit { unit: Unit::Tokens, period: Period::Minute, amount, roll_over: cap };
        let hour = Limit { unit: Unit::Tokens, period: Period::Hour, amount: hourly, roll_over: None };
        let mut world = World::new(set(vec![minute, hour], vec![50, 90], 4));
        let mut now = noon();
        for act in acts {
            match act {
                Act::Wait { seconds } => now += chrono::Duration::seconds(seconds),
                Act::Settle { turn, actual } => world.end(turn, Some(actual), now),
                Act::Release { turn } => world.end(turn, None, now),
                Act::Raise { amount, seconds } => {
                    world.raise(amount, now + chrono::Duration::seconds(seconds), now);
                }
                Act::Reserve { turn, share, asked } => {
                    let known = world.open.iter().any(|(open, _)| *open == turn);
                    // What there is, by the charges alone; what came over is the account's business.
                    let left = world.budget.truth(world.shares.values()).left_at(now);
                    for limit in &left {
                        let start = limit.period.window(now).start;
                        prop_assert_eq!(limit.used, world.charged_since(start), "{:?}", limit.period);
                    }
                    let fits = left.iter().all(|limit| asked <= limit.remaining);
                    let through = world.reserve(turn, share, asked, now);
                    prop_assert_eq!(through, fits || known);
                    for limit in world.budget.truth(world.shares.values()).left_at(now) {
                        prop_assert!(known || !through || limit.used + limit.reserved <= limit.limit, "{limit:?}");
                    }
                }
            }
            // The budget's own books: pledges are within the limits, and every share within its pledge.
            for (number, share) in &world.shares {
                let pledged = world.budget.account.holds.get(number).copied().unwrap_or_default();
                prop_assert_eq!(pledged, share.pledged);
            }
            let unlike = world.warned.iter().filter(|percent| **percent == 50).count();
            prop_assert!(unlike <= 2, "once a limit: {:?}", world.warned);
        }
    }

    #[test]
    fn a_budget_keeps_the_laws_of_all_aggregates(seeds in prop::collection::vec((0u8..7, 0u32..4, 1u64..300), 1..60)) {
        let commands = seeds.into_iter().map(|(kind, share, amount)| match kind {
            0 => of_tokens(amount, 1 + u16::try_from(share).expect("few")),
            1 => BudgetCommand::Raise {
                unit: Unit::Tokens, amount, expires_at: later(30), reason: reason("rush"), by: id(2),
            },
            2 => BudgetCommand::Replace { share },
            3 => BudgetCommand::Gather { reports: vec![ShareReport { share, spent: tokens(amount / 9), kept: tokens(0) }] },
            4 => BudgetCommand::Exhaust { short: Shortage {
                unit: Unit::Tokens, period: Period::Day, requested: amount, remaining: 0, resets_at: later(9),
            } },
            _ => BudgetCommand::Pledge { share, asked: tokens(amount), free: tokens(0) },
        });
        let within = |_: &Budget, budget: &Budget| {
            assert!(budget.account.left_at(noon()).iter().all(|left| left.used <= left.limit.max(left.used)));
        };
        crate::laws::hold::<Budget>(commands.collect(), within, |command| {
            matches!(command, BudgetCommand::Set { .. } | BudgetCommand::Raise { .. } | BudgetCommand::Exhaust { .. })
        });
    }
}
