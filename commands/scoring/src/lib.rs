//! What a text looks like: its intent, whether it leaves a bot's task, whether it attacks, advertises,
//! offends or gives personal data away. Everything here is a pure function of text and model.
//!
//! Here live the normalisation all detectors share, the features, the linear model, the detectors with
//! the rules, seeds and lexicons this project wrote, and the model files. Here never live I/O, points,
//! thresholds of a policy, or what becomes of a message: a detector only says what it saw and where.
//!
//! To add a detector: a module `noun.rs` with a `score` that takes a [`Normalised`] text and gives
//! evidence with spans in code points of the original; its data under `data/`; a line in the guide.

pub mod attack;
pub mod calibrate;
pub mod content;
mod cued;
pub mod detectors;
pub mod evidence;
pub mod features;
pub mod intent;
pub mod lexicon;
pub mod linear;
pub mod model_file;
pub mod normalise;
pub mod pii;
pub mod spam;

pub use detectors::{Analysis, Detectors};
pub use normalise::{Normalised, Span};
