use std::sync::Arc;

use chrono::{DateTime, Utc};

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
