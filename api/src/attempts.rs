//! How often somebody may try to get in.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use chrono::{DateTime, TimeDelta, Utc};

/// Tries in a window, per address and kind of try.
const TRIES: u32 = 20;
const WINDOW: TimeDelta = TimeDelta::minutes(1);
/// Entries remembered before those whose window is over are forgotten.
const REMEMBERED: usize = 10_000;

/// Counts tries in this process. Passwords are slow to check already; this keeps the queue short.
#[derive(Default)]
pub(crate) struct Attempts {
    windows: Mutex<HashMap<String, (DateTime<Utc>, u32)>>,
}

impl Attempts {
    /// Counts a try, or says how many milliseconds to wait.
    pub(crate) fn take(&self, who: &str, now: DateTime<Utc>) -> Result<(), u64> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= REMEMBERED {
            windows.retain(|_, (began, _)| now - *began < WINDOW);
        }
        let (began, tries) = windows.entry(who.to_owned()).or_insert((now, 0));
        if now - *began >= WINDOW {
            (*began, *tries) = (now, 0);
        }
        if *tries >= TRIES {
            let left = WINDOW - (now - *began);
            return Err(u64::try_from(left.num_milliseconds()).unwrap_or(1_000));
        }
        *tries += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_run_out_and_come_back() {
        let attempts = Attempts::default();
        let now: DateTime<Utc> = "2026-11-24T10:00:00Z".parse().expect("a time");
        for _ in 0..TRIES {
            assert_eq!(attempts.take("a", now), Ok(()));
        }
        assert_eq!(attempts.take("a", now + TimeDelta::seconds(59)), Err(1_000));
        assert_eq!(attempts.take("b", now), Ok(()));
        assert_eq!(attempts.take("a", now + WINDOW), Ok(()));
    }
}
