//! Values that tests of several aggregates share.

use std::sync::Arc;

use chrono::{DateTime, Duration, TimeZone, Utc};
use uuid::Uuid;

use crate::{BodyId, BodyRef, Clock, FixedClock, KeyPurpose, Reason, Sealed, SharedClock};

pub(crate) fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 24, 12, 0, 0).single().expect("a real moment")
}

pub(crate) fn later(seconds: i64) -> DateTime<Utc> {
    noon() + Duration::seconds(seconds)
}

pub(crate) fn clock_at(at: DateTime<Utc>) -> SharedClock {
    let clock: Arc<dyn Clock> = Arc::new(FixedClock(at));
    clock
}

pub(crate) fn id<T: From<Uuid>>(n: u128) -> T {
    Uuid::from_u128(n).into()
}

pub(crate) fn reason(text: &str) -> Reason {
    Reason::parse(text).expect("a valid reason")
}

pub(crate) fn sealed(owner: u128) -> Sealed {
    Sealed {
        owner: Uuid::from_u128(owner),
        purpose: KeyPurpose::Credentials,
        key_version: 1,
        nonce: "00".repeat(24),
        ciphertext: "ab".repeat(20),
    }
}

pub(crate) fn body(n: u128) -> BodyRef {
    BodyRef { body_id: BodyId(Uuid::from_u128(n)), bytes: 10, ciphertext_sha256: "cd".repeat(32) }
}
