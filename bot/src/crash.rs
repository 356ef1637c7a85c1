//! Named places at which a test kills the process, to prove that nothing is lost or doubled.

/// Every place, in the order a turn passes them.
pub const CRASH_POINTS: &[&str] = &[
    "intake_fetched",
    "intake_stored",
    "queued",
    "dequeued",
    "decided",
    "first_text",
    "start_sent",
    "start_recorded",
    "generated",
    "answered",
    "sent",
    "delivered",
];

/// Kills the process here, without any tidying up, when `BOTLEDGER_CRASH_AT` names this place
/// (`name`, or `name:3` for the third passage). In release builds there is nothing here.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &'static str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };
    static WANTED: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
        let text = std::env::var("BOTLEDGER_CRASH_AT").ok()?;
        let (name, passage) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), passage.parse().unwrap_or(1)))
    });
    static PASSED: AtomicU64 = AtomicU64::new(0);
    debug_assert!(CRASH_POINTS.contains(&name), "{name} is not in the list");
    if let Some((wanted, passage)) = WANTED.as_ref()
        && wanted == name
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *passage
    {
        // What `kill -9` does: no destructors, no flushing, no goodbye to anybody.
        std::process::abort();
    }
}

#[cfg(not(debug_assertions))]
pub(crate) fn point(_name: &'static str) {}
