//! One person with one bot, twice: as it was, and as it would have been.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use botledger_domain::{
    BotId, Decide, SubjectId, TurnId,
    policy::{Judgement, PolicyRef, PolicyTerms, Refusal},
    signal::{Detector, Findings},
    standing::{
        BlockCause, DecisionKind, Offence, Scoring, Standing, StandingCommand, StandingEvent, Verdict,
        ladder::{LadderConfig, LadderState, OffenceKind},
    },
};
use chrono::{DateTime, Utc};
use cqrs_es::Aggregate;

use super::{Limit, Outcome, Rungs, TurnDifference};
