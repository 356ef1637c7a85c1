//! How messages come, rather than what they say: floods, the same text again and again, and probing
//! for a way around the detectors.
//!
//! The memory is this process's: a bot is run by one process at a time (L6). What was seen is recorded
//! with the message, so that a replay needs no memory.

use std::{
    collections::{VecDeque, hash_map::RandomState},
    hash::BuildHasher,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use botledger_domain::{
    BotId, SubjectId, TurnId,
    signal::{Detector, Signal, SignalLevel},
};
use chrono::{DateTime, TimeDelta, Utc};
use moka::sync::Cache;

/// Messages beyond a rate limit that make a flood, and the time they come in.
const FLOOD: (usize, TimeDelta) = (5, TimeDelta::seconds(60));
/// Messages with the same text that make a burst of duplicates.
const DUPLICATES: (usize, TimeDelta) = (4, TimeDelta::minutes(10));
/// Suspicious messages that make probing.
const PROBING: (usize, TimeDelta) = (3, TimeDelta::minutes(30));
/// Letters and digits a text needs to count as the same again: "yes" and "go on" are said all day.
const LONG_ENOUGH: usize = 12;
/// Messages remembered of a person.
const REMEMBERED: usize = 64;

/// Patterns that messages are counted for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pattern {
    Flood,
    Duplicate,
    Probing,
}

/// A message as it is remembered.
struct Trace {
    turn: TurnId,
    at: DateTime<Utc>,
    /// Keyed hash of the text; the text itself is not kept. Absent for one that is too short to count, or
    /// that nobody read.
    text: Option<u64>,
    suspicious: bool,
    /// It was beyond the person's rate limit.
    refused: bool,
    /// Patterns that were signalled with it: it is held against nobody twice.
    counted: Vec<Pattern>,
    /// What it showed: the same when the step is repeated.
    showed: Vec<Signal>,
}

/// What people did lately.
#[derive(Clone)]
pub(crate) struct Behaviour {
    recent: Cache<(BotId, SubjectId), Arc<Mutex<VecDeque<Trace>>>>,
    hasher: RandomState,
}

impl Behaviour {
    pub(crate) fn new() -> Self {
        let recent = Cache::builder().max_capacity(200_000).time_to_idle(Duration::from_secs(3_600)).build();
        Self { recent, hasher: RandomState::new() }
    }

    /// A message that was looked at; `suspicious` says whether a detector saw anything in it. Looking
    /// again at the same turn is no second message.
    pub(crate) fn message(
        &self,
        bot: BotId,
        subject: SubjectId,
        turn: TurnId,
        text: &str,
        suspicious: bool,
        now: DateTime<Utc>,
    ) -> Vec<Signal> {
        let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        let letters = words.iter().flat_map(|word| word.chars()).filter(|c| c.is_alphanumeric());
        let text = (letters.count() >= LONG_ENOUGH).then(|| self.hasher.hash_one(&words));
        let trace = Trace { suspicious, text, ..Trace::new(turn, now) };
        self.remember(bot, subject, trace, |recent| {
            let same = |trace: &Trace| text.is_some() && trace.text == text;
            let mut signals = Vec::new();
            signals.extend(signal(Pattern::Duplicate, recent, same, now));
            if suspicious {
                signals.extend(signal(Pattern::Probing, recent, |trace| trace.suspicious, now));
            }
            signals
        })
    }

    /// A message beyond a rate limit.
    pub(crate) fn refused(
        &self,
        bot: BotId,
        subject: SubjectId,
        turn: TurnId,
        now: DateTime<Utc>,
    ) -> Option<Signal> {
        let trace = Trace { refused: true, ..Trace::new(turn, now) };
        let shown = self.remember(bot, subject, trace, |recent| {
            signal(Pattern::Flood, recent, |trace| trace.refused, now).into_iter().collect()
        });
        shown.into_iter().next()
    }

    fn remember(
        &self,
        bot: BotId,
        subject: SubjectId,
        trace: Trace,
        look: impl FnOnce(&mut VecDeque<Trace>) -> Vec<Signal>,
    ) -> Vec<Signal> {
        let recent = self.recent.get_with((bot, subject), Arc::default);
        let mut recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = recent.iter().find(|known| known.turn == trace.turn) {
            return known.showed.clone();
        }
        if recent.len() == REMEMBERED {
            recent.pop_front();
        }
        recent.push_back(trace);
        let shown = look(&mut recent);
        if let Some(last) = recent.back_mut() {
            last.showed.clone_from(&shown);
        }
        shown
    }
}

impl Trace {
    fn new(turn: TurnId, at: DateTime<Utc>) -> Self {
        Self { turn, at, text: None, suspicious: false, refused: false, counted: vec![], showed: vec![] }
    }
}

impl Pattern {
    fn rule(self) -> &'static str {
        match self {
            Self::Flood => "flood",
            Self::Duplicate => "duplicate",
            Self::Probing => "probing",
        }
    }

    fn number_within(self) -> (usize, TimeDelta) {
        match self {
            Self::Flood => FLOOD,
            Self::Duplicate => DUPLICATES,
            Self::Probing => PROBING,
        }
    }
}

/// A pattern shows when its number is reached, and again each time as many more have come.
fn signal(
    pattern: Pattern,
    recent: &mut VecDeque<Trace>,
    belongs: impl Fn(&Trace) -> bool,
    now: DateTime<Utc>,
) -> Option<Signal> {
    let (number, within) = pattern.number_within();
    let counts =
        |trace: &&mut Trace| belongs(trace) && now - trace.at < within && !trace.counted.contains(&pattern);
    if recent.iter_mut().filter(counts).count() < number {
        return None;
    }
    recent.iter_mut().filter(counts).for_each(|trace| trace.counted.push(pattern));
    Some(Signal {
        detector: Detector::Behaviour,
        rule: pattern.rule().to_owned(),
        level: SignalLevel::Confident,
        score_permille: 1_000,
        spans: vec![],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const BOT: BotId = BotId(Uuid::from_u128(1));
    const PERSON: SubjectId = SubjectId(Uuid::from_u128(2));

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_780_000_000 + seconds, 0).expect("a moment")
    }

    fn turn(number: u128) -> TurnId {
        TurnId(Uuid::from_u128(number))
    }

    fn rules(signals: &[Signal]) -> Vec<&str> {
        signals.iter().map(|signal| signal.rule.as_str()).collect()
    }

    #[test]
    fn every_fourth_message_with_the_same_words_is_a_burst_of_duplicates() {
        let behaviour = Behaviour::new();
        let seen: Vec<bool> = (0..8)
            .map(|n| {
                let text = if n % 2 == 0 { "Buy my  BEST watches" } else { "buy my best watches" };
                let signals = behaviour.message(BOT, PERSON, turn(n), text, false, at(n as i64));
                rules(&signals) == ["duplicate"]
            })
            .collect();
        assert_eq!(seen, [false, false, false, true, false, false, false, true]);
        let other = behaviour.message(BOT, PERSON, turn(9), "something else", false, at(9));
        assert!(other.is_empty());
    }

    #[test]
    fn short_answers_may_be_repeated() {
        let behaviour = Behaviour::new();
        for n in 0..8 {
            assert!(behaviour.message(BOT, PERSON, turn(n), "да, давай", false, at(n as i64)).is_empty());
        }
    }

    #[test]
    fn a_step_that_is_repeated_is_no_second_message() {
        let behaviour = Behaviour::new();
        for _ in 0..10 {
            assert!(behaviour.message(BOT, PERSON, turn(1), "hello", true, at(0)).is_empty());
            assert!(behaviour.refused(BOT, PERSON, turn(2), at(0)).is_none());
        }
    }

    #[test]
    fn three_suspicious_messages_within_half_an_hour_are_probing() {
        let behaviour = Behaviour::new();
        let probe = |n: u128, seconds| {
            behaviour.message(BOT, PERSON, turn(n), &format!("try {n}"), true, at(seconds))
        };
        assert!(probe(1, 0).is_empty());
        assert!(probe(2, 10).is_empty());
        assert!(probe(3, 1_801).is_empty(), "the first is forgotten by then");
        assert_eq!(rules(&probe(4, 1_805)), ["probing"]);
    }

    #[test]
    fn five_messages_beyond_a_limit_within_a_minute_are_a_flood() {
        let behaviour = Behaviour::new();
        let refused = |n: u128, seconds| behaviour.refused(BOT, PERSON, turn(n), at(seconds)).is_some();
        let seen: Vec<bool> = (0..5).map(|n| refused(n, n as i64)).collect();
        assert_eq!(seen, [false, false, false, false, true]);
        assert!(!refused(9, 200), "one alone is none");
        let stranger = SubjectId(Uuid::from_u128(3));
        assert!(behaviour.refused(BOT, stranger, turn(10), at(4)).is_none());
    }

    #[test]
    fn who_goes_on_is_counted_at_any_pace() {
        let behaviour = Behaviour::new();
        let floods = (0..200).filter(|n| behaviour.refused(BOT, PERSON, turn(*n), at(0)).is_some()).count();
        assert_eq!(floods, 40, "every fifth, however many come at once");
        let probe = |n: i64| {
            let text = format!("attempt number {n}");
            let shown = behaviour.message(BOT, PERSON, turn(1_000 + n as u128), &text, true, at(n * 450));
            !shown.is_empty()
        };
        let probed = (0..12).filter(|n| probe(*n)).count();
        assert_eq!(probed, 4, "every third, though four of them are always in sight");
    }

    #[test]
    fn a_repeated_step_shows_what_it_showed() {
        let behaviour = Behaviour::new();
        let shown: Vec<_> = (0..5).map(|n| behaviour.refused(BOT, PERSON, turn(n), at(0))).collect();
        let fifth = shown[4].clone();
        assert!(fifth.is_some());
        assert_eq!(behaviour.refused(BOT, PERSON, turn(4), at(1)), fifth);
    }
}
