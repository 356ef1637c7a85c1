use serde::{Deserialize, Serialize};

/// A stretch of the original text in code points, end exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

/// A text as the detectors read it, with the way back to the original.
#[derive(Clone, Debug)]
pub struct Normalised {
    /// Folded text.
    pub folded: String,
}
