use botledger_domain::Clock;
use chrono::{DateTime, Utc};

/// The computer's clock: the only place that asks it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the Clock everybody else asks")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}
