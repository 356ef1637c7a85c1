//! What a detector saw, in the form all of them give it.

use crate::Span;

/// What was seen and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// The id of a rule, or `model`.
    pub rule: &'static str,
    /// Code points of the original.
    pub span: Span,
    /// Points it gave. What they mean is told by the detector.
    pub points: f32,
}
