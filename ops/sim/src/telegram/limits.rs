//! Flood limits: exact over any rolling window, so that nobody passes by being lucky with seconds.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

/// What one bot may send. Edits count as sends (`facts/telegram.md` section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// To all chats in any second, of messages nobody asked for: answers to somebody who wrote in
    /// the last hour do not count.
    pub unasked_per_second: u32,
    /// To one private chat at once; refilled with one a second.
    pub private_burst: u32,
    /// To one group in any minute.
    pub group_per_minute: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { unasked_per_second: 30, private_burst: 4, group_per_minute: 20 }
    }
}

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
/// Somebody who wrote this recently asked for an answer.
const ASKED: i64 = 60 * MINUTE;

/// The counters of one bot. Times are milliseconds.
#[derive(Debug, Default)]
pub(super) struct Flood {
    unasked: VecDeque<i64>,
    private: HashMap<i64, i64>,
    group: HashMap<i64, VecDeque<i64>>,
    wrote_at: HashMap<i64, i64>,
    waits_until: HashMap<i64, i64>,
}

fn prune(window: &mut VecDeque<i64>, from: i64) {
    while window.front().is_some_and(|at| *at <= from) {
        window.pop_front();
    }
}

impl Flood {
    pub(super) fn wrote(&mut self, chat: i64, now: i64) {
        self.wrote_at.insert(chat, now);
    }

    /// Whether the chat had been told to wait and the time is not over.
    pub(super) fn told_to_wait(&self, chat: i64, now: i64) -> bool {
        self.waits_until.get(&chat).is_some_and(|until| now < *until)
    }

    pub(super) fn tell_to_wait(&mut self, chat: i64, until: i64) {
        self.waits_until.insert(chat, until);
    }

    /// Counts a send, or says for how many seconds to wait.
    pub(super) fn take(&mut self, limits: Limits, chat: i64, now: i64) -> Result<(), u64> {
        if let Some(until) = self.waits_until.get(&chat).filter(|until| now < **until) {
            return Err(seconds(until - now));
        }
        let asked = self.wrote_at.get(&chat).is_some_and(|at| now - at < ASKED);
        if !asked {
            prune(&mut self.unasked, now - SECOND);
            if self.unasked.len() >= limits.unasked_per_second as usize {
                return Err(1);
            }
        }
        if chat > 0 {
            // A bucket as the time at which it is full again.
            let full_at = self.private.entry(chat).or_insert(now);
            let next = (*full_at).max(now) + SECOND;
            if next - now > i64::from(limits.private_burst) * SECOND {
                return Err(seconds(next - now - i64::from(limits.private_burst) * SECOND));
            }
            *full_at = next;
        } else {
            let window = self.group.entry(chat).or_default();
            prune(window, now - MINUTE);
            if window.len() >= limits.group_per_minute as usize {
                return Err(window.front().map_or(1, |oldest| seconds(oldest + MINUTE - now)));
            }
            window.push_back(now);
        }
        if !asked {
            self.unasked.push_back(now);
        }
        Ok(())
    }
}

fn seconds(millis: i64) -> u64 {
    u64::try_from(millis).unwrap_or(0).div_ceil(1_000).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits::default()
    }

    #[test]
    fn thirty_unasked_sends_in_any_second_and_not_one_more() {
        let mut flood = Flood::default();
        for n in 0..30 {
            assert_eq!(flood.take(limits(), 1_000 + n, 500 + n * 10), Ok(()));
        }
        assert_eq!(
            flood.take(limits(), 9_000, 1_400),
            Err(1),
            "the window rolls: a new calendar second does not help"
        );
        assert_eq!(flood.take(limits(), 9_000, 1_501), Ok(()));
    }

    #[test]
    fn answers_to_those_who_wrote_do_not_count_as_bulk() {
        let mut flood = Flood::default();
        for n in 0..100 {
            flood.wrote(1_000 + n, 0);
            assert_eq!(flood.take(limits(), 1_000 + n, 1), Ok(()));
        }
    }

    #[test]
    fn a_private_chat_takes_a_short_burst_and_one_a_second() {
        let mut flood = Flood::default();
        for _ in 0..4 {
            assert_eq!(flood.take(limits(), 7, 0), Ok(()));
        }
        assert_eq!(flood.take(limits(), 7, 0), Err(1));
        assert_eq!(flood.take(limits(), 7, 1_000), Ok(()));
        assert_eq!(flood.take(limits(), 7, 1_500), Err(1));
    }

    #[test]
    fn a_group_takes_twenty_in_any_minute() {
        let mut flood = Flood::default();
        for n in 0..20 {
            assert_eq!(flood.take(limits(), -7, n * 1_000), Ok(()));
        }
        assert_eq!(flood.take(limits(), -7, 59_000), Err(1));
        assert_eq!(flood.take(limits(), -7, 60_001), Ok(()));
    }

    #[test]
    fn whoever_was_told_to_wait_has_to() {
        let mut flood = Flood::default();
        flood.tell_to_wait(7, 5_000);
        assert!(flood.told_to_wait(7, 4_999));
        assert_eq!(flood.take(limits(), 7, 0), Err(5));
        assert_eq!(flood.take(limits(), 7, 5_000), Ok(()));
    }
}
