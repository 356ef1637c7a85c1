use std::sync::Arc;

use chrono::{DateTime, Datelike, Utc};

/// Where decisions get the time from.
pub trait Clock: Send + Sync {
    /// The current moment, UTC.
    fn now(&self) -> DateTime<Utc>;
}

/// A clock shared by the services of a process.
pub type SharedClock = Arc<dyn Clock>;

/// A clock that always tells the same moment; for tests and replays.
#[derive(Clone, Copy, Debug)]
pub struct FixedClock(pub DateTime<Utc>);

impl Clock for FixedClock {
    fn now(&self) -> DateTime<Utc> {
        self.0
    }
}

/// Whether a moment that somebody chose can be written and read everywhere: RFC 3339 and many of its
/// readers end with the year 9999.
pub(crate) fn is_writable(moment: DateTime<Utc>) -> bool {
    moment.year() <= 9_999
}
