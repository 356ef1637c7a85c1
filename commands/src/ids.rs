use std::sync::Arc;

use uuid::Uuid;

/// Where new ids come from.
pub trait Ids: Send + Sync {
    /// A fresh UUIDv7: later ids sort behind earlier ones, roughly.
    fn next(&self) -> Uuid;
}

/// An id source shared by the services of a process.
pub type SharedIds = Arc<dyn Ids>;

/// Ids from the computer's clock and randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemIds;

impl Ids for SystemIds {
    fn next(&self) -> Uuid {
        Uuid::now_v7()
    }
}
