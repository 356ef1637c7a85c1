//! Spacing of sends and edits per chat, so that Telegram never has cause to refuse.
//!
//! Sends and edits share Telegram's limits. A private chat takes about one message a second with
//! short bursts, a group twenty a minute (`facts/telegram.md` section 4).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Evenly spaced with a small burst, as a generic cell rate: `interval` between calls in the long
/// run, `burst` at once.
#[derive(Clone, Copy, Debug)]
struct Pace {
    interval: Duration,
    burst: u32,
}

const PRIVATE: Pace = Pace { interval: Duration::from_millis(1_050), burst: 3 };
/// 3 + 60 / 3.6 is below twenty in any minute.
const GROUP: Pace = Pace { interval: Duration::from_millis(3_600), burst: 3 };
/// Chats remembered before the ones that are free again are forgotten.
const REMEMBERED: usize = 20_000;

/// The pacer of one bot. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Pacer {
    /// When each chat would be wholly free again.
    free_at: Arc<Mutex<HashMap<i64, Instant>>>,
    /// Until when Telegram wants to hear nothing for a chat.
    parked: Arc<Mutex<HashMap<i64, Instant>>>,
}

fn pace(chat: i64) -> Pace {
    // Groups and channels have negative ids.
    if chat < 0 { GROUP } else { PRIVATE }
}

impl Pacer {
    /// Takes the next place; how long to wait for it.
    fn take(&self, chat: i64, now: Instant) -> Duration {
        let pace = pace(chat);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        if free_at.len() > REMEMBERED {
            free_at.retain(|_, at| *at > now);
        }
        let at = free_at.entry(chat).or_insert(now);
        let next = (*at).max(now) + pace.interval;
        *at = next;
        (next - pace.interval * pace.burst).saturating_duration_since(now)
    }

    /// Waits for a place to send into.
    pub(crate) async fn wait(&self, chat: i64) {
        let wait = self.take(chat, Instant::now());
        if !wait.is_zero() {
            metrics::histogram!("botledger_pacer_wait_seconds").record(wait.as_secs_f64());
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes a place for an edit that may also be left out; false when there is none now. One place
    /// is always left for the answer itself.
    pub(crate) fn try_edit(&self, chat: i64) -> bool {
        let now = Instant::now();
        let pace = pace(chat);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let at = free_at.entry(chat).or_insert(now);
        let next = (*at).max(now) + pace.interval;
        if next + pace.interval > now + pace.interval * pace.burst {
            return false;
        }
        *at = next;
        true
    }

    /// How long Telegram still wants to hear nothing for a chat, if it said so.
    pub(crate) fn parked_for(&self, chat: i64) -> Option<Duration> {
        let parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        parked.get(&chat)?.checked_duration_since(Instant::now())
    }

    /// Telegram said when to come back: nobody sends there before.
    pub(crate) fn park(&self, chat: i64, pause: Duration) {
        {
            let now = Instant::now();
            let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
            parked.retain(|_, until| *until > now);
            parked.insert(chat, now + pause);
        }
        let pace = pace(chat);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let until = Instant::now() + pause + pace.interval * (pace.burst - 1);
        let at = free_at.entry(chat).or_insert(until);
        *at = (*at).max(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sends_at(chat: i64, count: usize) -> Vec<Duration> {
        let pacer = Pacer::default();
        let start = Instant::now();
        let mut now = start;
        (0..count)
            .map(|_| {
                now += pacer.take(chat, now);
                now - start
            })
            .collect()
    }

    #[test]
    fn a_group_never_gets_more_than_twenty_in_any_minute() {
        let sends = sends_at(-5, 100);
        for window in sends.windows(21) {
            assert!(window[20] - window[0] > Duration::from_secs(60));
        }
    }

    #[test]
    fn a_private_chat_gets_a_burst_and_then_one_a_second() {
        let sends = sends_at(5, 10);
        assert_eq!(sends[2], Duration::ZERO);
        assert!(sends[3] > Duration::from_secs(1) && sends[9] - sends[8] > Duration::from_secs(1));
    }

    #[test]
    fn a_parked_chat_waits_as_long_as_told() {
        let pacer = Pacer::default();
        pacer.park(5, Duration::from_secs(30));
        assert!(!pacer.try_edit(5) && pacer.parked_for(5).is_some() && pacer.parked_for(6).is_none());
        let wait = pacer.take(5, Instant::now());
        assert!((Duration::from_secs(29)..=Duration::from_secs(31)).contains(&wait), "{wait:?}");
        assert!(pacer.take(6, Instant::now()).is_zero(), "others are not held up");
    }
}
