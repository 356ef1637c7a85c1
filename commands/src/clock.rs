use botledger_domain::Clock;
use chrono::{DateTime, SubsecRound, Utc};

/// The computer's clock: the only place that asks it. In microseconds, which is what PostgreSQL keeps: a moment
/// in the ledger is the same one in every read model.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the Clock everybody else asks")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now().trunc_subsecs(6)
    }
}
