//! `botledger score …`: the detectors by themselves, over files of one JSON object a line. No state, no
//! network, no configuration.
//!
//! A line that cannot be read ends the command and is named; what was printed before it are whole lines.

mod eval;
mod judge;
mod lines;
mod measure;
mod train;

use anyhow::Result;
use botledger_scoring::model_file;
use clap::{Subcommand, ValueEnum};

#[derive(Clone, Debug, Subcommand)]
pub enum Score {
    /// Make a model from examples
    Train(train::Train),
    /// Judge what stdin holds, one line of JSON for each of its lines
    Predict(judge::Predict),
    /// Measure on a labelled file: errors, separation, calibration, time
    Eval(eval::Eval),
}

impl Score {
    /// Runs the subcommand and gives its exit code.
    ///
    /// # Errors
    /// When a file cannot be read or written, a line is no row of its kind, or a model does not fit.
    pub fn run(self) -> Result<u8> {
        match self {
            Self::Train(train) => train.run(),
            Self::Predict(predict) => predict.run(),
            Self::Eval(eval) => eval.run(),
        }
    }
}

/// A question to the detectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// What is asked for, and whether the bot is there for it
    Intent,
    /// Prompt injection and jailbreak
    Attack,
    /// Advertising and swindle
    Spam,
    /// Content a policy may not want
    Category,
    /// Personal data and secrets
    Pii,
    /// How a person stands after a series of messages
    Deviation,
}

impl Kind {
    /// What a model file for this question is called inside; none where nothing is learned.
    fn model(self) -> Option<model_file::Kind> {
        match self {
            Self::Intent => Some(model_file::Kind::Intent),
            Self::Attack => Some(model_file::Kind::Attack),
            Self::Spam => Some(model_file::Kind::Spam),
            Self::Category => Some(model_file::Kind::Category),
            Self::Pii | Self::Deviation => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Attack => "attack",
            Self::Spam => "spam",
            Self::Category => "category",
            Self::Pii => "pii",
            Self::Deviation => "deviation",
        }
    }
}
