//! The arithmetic of buckets, in whole numbers. The scripts in Redis do the same.
//!
//! A bucket is how much of it is used, and when that was so. One message or token is [`ONE`] parts, and
//! a rate of `r` a minute gives back `r` parts a microsecond: no division, so nothing is ever rounded.

use botledger_domain::rate_limit::{MOST_OF_A_RATE, RateLimit};

/// Parts of one message or token: the microseconds of a minute.
pub(super) const ONE: u64 = 60_000_000;

/// How much of a bucket is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Level {
    /// Parts.
    pub(super) used: u64,
    /// Microseconds since 1970.
    pub(super) at: i64,
}

impl Level {
    /// The level at a moment. A clock that went back gives nothing back, and time goes on from there.
    pub(super) fn at(self, now: i64, limit: RateLimit) -> Self {
        let elapsed = u64::try_from(now.saturating_sub(self.at)).unwrap_or(0);
        let back = elapsed.saturating_mul(u64::from(per_minute(limit)));
        Self { used: self.used.saturating_sub(back), at: now }
    }
}

/// Parts a bucket holds.
pub(super) fn capacity(limit: RateLimit) -> u64 {
    u64::from(burst(limit)) * ONE
}

pub(super) fn burst(limit: RateLimit) -> u32 {
    limit.burst.clamp(1, MOST_OF_A_RATE)
}

pub(super) fn per_minute(limit: RateLimit) -> u32 {
    limit.per_minute.clamp(1, MOST_OF_A_RATE)
}

/// Microseconds until `cost` fits; 0 when it does now. What is larger than the whole bucket never fits:
/// then it is the time until the bucket is full.
pub(super) fn wait(used: u64, cost: u64, limit: RateLimit) -> u64 {
    let cost = cost.min(u64::from(burst(limit)));
    (used + cost * ONE).saturating_sub(capacity(limit)).div_ceil(u64::from(per_minute(limit)))
}

/// Microseconds until nothing is used.
pub(super) fn rest(used: u64, limit: RateLimit) -> u64 {
    used.div_ceil(u64::from(per_minute(limit)))
}
