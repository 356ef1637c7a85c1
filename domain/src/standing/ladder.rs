//! The deviation score and its ladder: two decaying lanes of integers, five states, no clock, no
//! floats. The same events under the same configuration give the same integers on every machine.
//!
//! The drift lane forgets fast and takes what a person may do by mistake; the violation lane forgets
//! slowly and takes what nobody does by mistake. A clean message takes a little off both, so that a
//! busy person is not worse off than a quiet one for the detectors' own errors.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, EnumIter, EnumString, IntoStaticStr};

/// What a message was, as the score sees it. Wire names are a contract.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumIter,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum OffenceKind {
    /// Nothing to object to: takes points off.
    Clean,
    /// Outside the bot's task, by how far is said in permille.
    OffTopic,
    /// Too much at once, or the same again and again.
    Flood,
    /// Perhaps an attempt to turn the bot against its instructions.
    InjectionSuspected,
    /// Unwanted advertising.
    Spam,
    /// Surely an attempt to turn the bot against its instructions.
    InjectionConfident,
    /// Unwelcome content, mild.
    CategoryLow,
    /// Unwelcome content.
    CategoryMedium,
    /// Content that blocks at once and goes to a human.
    CategorySevere,
}

/// How a person stands. Ordered: each is more restricted than the one before.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumIter,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum LadderState {
    /// Nothing held against them.
    #[default]
    Ok,
    /// Told to mind the task.
    Warned,
    /// Answered less often.
    Throttled,
    /// Not answered until a moment.
    TempBlocked,
    /// Not answered until an appeal is granted.
    Blocked,
}

/// Where an offence's points go.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Lane {
    /// Forgets within days.
    Drift,
    /// Forgets within weeks.
    Violation,
}

/// Milli-points an offence adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Points {
    /// For a message that is certainly off topic; less certain ones add their share of it.
    pub off_topic_max: u32,
    /// From where on, in permille of certainty, an off-topic message adds anything. Below 1,000.
    pub off_topic_from_permille: u16,
    /// For a flood.
    pub flood: u32,
    /// For a suspected injection.
    pub injection_suspected: u32,
    /// For spam.
    pub spam: u32,
    /// For a confident injection.
    pub injection_confident: u32,
    /// For mild unwelcome content.
    pub category_low: u32,
    /// For unwelcome content.
    pub category_medium: u32,
    /// For content that blocks at once.
    pub category_severe: u32,
}

impl Default for Points {
    fn default() -> Self {
        Self {
            off_topic_max: 10_000,
            off_topic_from_permille: 500,
            flood: 5_000,
            injection_suspected: 10_000,
            spam: 20_000,
            injection_confident: 30_000,
            category_low: 10_000,
            category_medium: 25_000,
            category_severe: 100_000,
        }
    }
}

/// Half-lives, thresholds, points and blocks of a ladder. Thresholds are milli-points, times are
/// milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LadderConfig {
    /// The drift lane halves in this time.
    pub drift_half_life_ms: u64,
    /// The violation lane halves in this time.
    pub violation_half_life_ms: u64,
    /// From this score on a person is warned.
    pub warn: u64,
    /// From this score on a person is throttled.
    pub throttle: u64,
    /// From this score on a person is blocked for a while.
    pub temp_block: u64,
    /// Below this score a warned person is ok again.
    pub warn_exit: u64,
    /// Below this score a throttled person is only warned.
    pub throttle_exit: u64,
    /// What the violation lane holds at most after a block for a while.
    pub after_block: u64,
    /// Events that added points before anybody is blocked for a while.
    pub min_events: u32,
    /// The first block for a while lasts this long.
    pub base_block_ms: u64,
    /// Each further one lasts this many times as long as the one before.
    pub block_factor: u32,
    /// No block for a while lasts longer.
    pub max_block_ms: u64,
    /// Blocks for a while count towards the next one for this long.
    pub ladder_window_ms: u64,
    /// The block for a while that becomes one without end, counted in the window. From 1.
    pub ladder_to_block: u32,
    /// What a clean message takes off the drift lane.
    pub credit_drift: u64,
    /// What a clean message takes off the violation lane.
    pub credit_violation: u64,
    /// What each offence adds.
    pub points: Points,
    /// Offences that add to the violation lane; the others add to the drift lane.
    pub violation_kinds: BTreeSet<OffenceKind>,
    /// Offences that block at once.
    pub severe_kinds: BTreeSet<OffenceKind>,
}

impl Default for LadderConfig {
    fn default() -> Self {
        Self {
            drift_half_life_ms: 24 * HOUR_MS,
            violation_half_life_ms: 72 * HOUR_MS,
            warn: 30_000,
            throttle: 50_000,
            temp_block: 80_000,
            warn_exit: 15_000,
            throttle_exit: 35_000,
            after_block: 45_000,
            min_events: 3,
            base_block_ms: HOUR_MS / 4,
            block_factor: 4,
            max_block_ms: 7 * 24 * HOUR_MS,
            ladder_window_ms: 30 * 24 * HOUR_MS,
            ladder_to_block: 5,
            credit_drift: 1_000,
            credit_violation: 50,
            points: Points::default(),
            violation_kinds: BTreeSet::from([
                OffenceKind::Spam,
                OffenceKind::InjectionConfident,
                OffenceKind::CategoryLow,
                OffenceKind::CategoryMedium,
                OffenceKind::CategorySevere,
            ]),
            severe_kinds: BTreeSet::from([OffenceKind::CategorySevere]),
        }
    }
}

/// How soon a ladder acts: its thresholds against the standard ones.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumIter,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Preset {
    /// Thresholds half as high again.
    Lenient,
    /// Thresholds as they are by default.
    #[default]
    Standard,
    /// Thresholds at seven tenths.
    Strict,
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LadderConfigError {
    /// A number outside what makes sense.
    #[error("{field} is {actual}; it has to lie between {least} and {most}")]
    OutOfRange {
        /// The field's wire name.
        field: &'static str,
        /// What it is.
        actual: u64,
        /// The least it may be.
        least: u64,
        /// The most it may be.
        most: u64,
    },
    /// Two numbers that contradict each other.
    #[error("{low} has to be below {high}")]
    Order {
        /// The field that has to be lower.
        low: &'static str,
        /// The field that has to be higher.
        high: &'static str,
    },
    /// The first block would be longer than the longest.
    #[error("base_block_ms may not exceed max_block_ms")]
    BaseAboveMax,
    /// A clean message among the offences.
    #[error("{field} names offences only, and clean is none")]
    CleanIsNoOffence {
        /// The field's wire name.
        field: &'static str,
    },
}

const HOUR_MS: u64 = 60 * 60 * 1_000;

/// Ten years: longer half-lives, blocks and windows mean "never", and there are other words for that.
const LONGEST_MS: u64 = 10 * 366 * 24 * HOUR_MS;

/// A million points: far above any use, far below any overflow.
const MOST_MILLI: u64 = 1_000_000_000;

/// Steps in which a lane halves.
const TICKS: u64 = 64;

/// After so many steps (40 half-lives) a lane is empty, whatever it held.
const FORGOTTEN: u64 = 40 * TICKS;

/// `round(2^(32 - k/64))`.
const TABLE: [u64; 64] = [
    4294967296, 4248701965, 4202935003, 4157661043, 4112874773, 4068570940, 4024744348, 3981389855,
    3938502376, 3896076880, 3854108391, 3812591987, 3771522796, 3730896002, 3690706840, 3650950594,
    3611622603, 3572718252, 3534232978, 3496162267, 3458501653, 3421246719, 3384393094, 3347936457,
    3311872529, 3276197082, 3240905930, 3205994934, 3171459999, 3137297074, 3103502151, 3070071267,
    3037000500, 3004285971, 2971923842, 2939910317, 2908241642, 2876914102, 2845924021, 2815267765,
    2784941738, 2754942382, 2725266179, 2695909648, 2666869345, 2638141863, 2609723834, 2581611923,
    2553802834, 2526293303, 2499080105, 2472160047, 2445529972, 2419186755, 2393127307, 2367348571,
    2341847524, 2316621173, 2291666561, 2266980759, 2242560872, 2218404036, 2194507417, 2170868212,
];

impl LadderConfig {
    /// The default configuration under a preset.
    #[must_use]
    pub fn preset(preset: Preset) -> Self {
        Self::default().scaled(preset)
    }

    /// The same configuration with its thresholds moved as a preset moves them. Times, points and
    /// credits stay.
    #[must_use]
    pub fn scaled(mut self, preset: Preset) -> Self {
        let (times, per) = match preset {
            Preset::Lenient => (3, 2),
            Preset::Standard => return self,
            Preset::Strict => (7, 10),
        };
        for threshold in [
            &mut self.warn,
            &mut self.throttle,
            &mut self.temp_block,
            &mut self.warn_exit,
            &mut self.throttle_exit,
            &mut self.after_block,
        ] {
            *threshold = threshold.saturating_mul(times) / per;
        }
        self
    }

    /// Whether the ladder can be climbed up and down.
    ///
    /// # Errors
    /// Which field contradicts what.
    pub fn check(&self) -> Result<(), LadderConfigError> {
        let points = &self.points;
        for (field, actual, least, most) in [
            ("drift_half_life_ms", self.drift_half_life_ms, TICKS, LONGEST_MS),
            ("violation_half_life_ms", self.violation_half_life_ms, TICKS, LONGEST_MS),
            ("warn_exit", self.warn_exit, 1, MOST_MILLI),
            ("temp_block", self.temp_block, 1, MOST_MILLI),
            ("min_events", self.min_events.into(), 1, 1_000),
            ("base_block_ms", self.base_block_ms, 1_000, LONGEST_MS),
            ("block_factor", self.block_factor.into(), 1, 1_000),
            ("max_block_ms", self.max_block_ms, 1_000, LONGEST_MS),
            ("ladder_window_ms", self.ladder_window_ms, 1_000, LONGEST_MS),
            ("ladder_to_block", self.ladder_to_block.into(), 1, 64),
            ("credit_drift", self.credit_drift, 0, MOST_MILLI),
            ("credit_violation", self.credit_violation, 0, MOST_MILLI),
            ("points.off_topic_max", points.off_topic_max.into(), 0, MOST_MILLI),
            ("points.off_topic_from_permille", points.off_topic_from_permille.into(), 0, 999),
            ("points.flood", points.flood.into(), 0, MOST_MILLI),
            ("points.injection_suspected", points.injection_suspected.into(), 0, MOST_MILLI),
            ("points.spam", points.spam.into(), 0, MOST_MILLI),
            ("points.injection_confident", points.injection_confident.into(), 0, MOST_MILLI),
            ("points.category_low", points.category_low.into(), 0, MOST_MILLI),
            ("points.category_medium", points.category_medium.into(), 0, MOST_MILLI),
            ("points.category_severe", points.category_severe.into(), 0, MOST_MILLI),
        ] {
            if !(least..=most).contains(&actual) {
                return Err(LadderConfigError::OutOfRange { field, actual, least, most });
            }
        }
        for (low, low_value, high, high_value) in [
            ("warn_exit", self.warn_exit, "warn", self.warn),
            ("throttle_exit", self.throttle_exit, "throttle", self.throttle),
            ("warn_exit", self.warn_exit, "throttle_exit", self.throttle_exit),
            ("warn", self.warn, "throttle", self.throttle),
            ("throttle", self.throttle, "temp_block", self.temp_block),
            // Or the block would be followed by the next one at once.
            ("after_block", self.after_block, "temp_block", self.temp_block),
        ] {
            if low_value >= high_value {
                return Err(LadderConfigError::Order { low, high });
            }
        }
        if self.base_block_ms > self.max_block_ms {
            return Err(LadderConfigError::BaseAboveMax);
        }
        for (field, kinds) in
            [("violation_kinds", &self.violation_kinds), ("severe_kinds", &self.severe_kinds)]
        {
            if kinds.contains(&OffenceKind::Clean) {
                return Err(LadderConfigError::CleanIsNoOffence { field });
            }
        }
        Ok(())
    }

    /// What an offence adds, in milli-points. A clean message adds nothing.
    #[must_use]
    pub fn points_of(&self, kind: OffenceKind, oos_permille: Option<u16>) -> u64 {
        let points = &self.points;
        match kind {
            OffenceKind::Clean => 0,
            OffenceKind::OffTopic => {
                let from = u64::from(points.off_topic_from_permille.min(999));
                let above = u64::from(oos_permille.unwrap_or(0)).saturating_sub(from);
                u64::from(points.off_topic_max) * above / (1_000 - from)
            }
            OffenceKind::Flood => points.flood.into(),
            OffenceKind::InjectionSuspected => points.injection_suspected.into(),
            OffenceKind::Spam => points.spam.into(),
            OffenceKind::InjectionConfident => points.injection_confident.into(),
            OffenceKind::CategoryLow => points.category_low.into(),
            OffenceKind::CategoryMedium => points.category_medium.into(),
            OffenceKind::CategorySevere => points.category_severe.into(),
        }
    }

    /// Where an offence's points go.
    #[must_use]
    pub fn lane_of(&self, kind: OffenceKind) -> Lane {
        if self.violation_kinds.contains(&kind) { Lane::Violation } else { Lane::Drift }
    }

    /// Whether an offence blocks at once.
    #[must_use]
    pub fn is_severe(&self, kind: OffenceKind) -> bool {
        self.severe_kinds.contains(&kind)
    }

    /// What is left of milli-points after a time, both moments in Unix milliseconds. Nothing is ever
    /// added, whatever the order of the moments.
    #[must_use]
    pub fn faded(&self, lane: Lane, milli: u64, from_ms: i64, to_ms: i64) -> u64 {
        let half_life = match lane {
            Lane::Drift => self.drift_half_life_ms,
            Lane::Violation => self.violation_half_life_ms,
        };
        let tick_ms = i64::try_from(half_life / TICKS).unwrap_or(i64::MAX).max(1);
        let ticks = to_ms.div_euclid(tick_ms).saturating_sub(from_ms.div_euclid(tick_ms));
        match u64::try_from(ticks) {
            Err(_) => milli,
            Ok(ticks) if ticks >= FORGOTTEN => 0,
            Ok(ticks) => {
                let within = usize::try_from(ticks % TICKS).expect("below 64");
                let scaled = (u128::from(milli) * u128::from(TABLE[within])) >> 32;
                u64::try_from(scaled >> (ticks / TICKS)).expect("no factor exceeds one")
            }
        }
    }

    /// How long the block for a while lasts that `earlier` others precede in the window.
    fn block_ms(&self, earlier: u32) -> u64 {
        u64::from(self.block_factor)
            .checked_pow(earlier)
            .and_then(|times| self.base_block_ms.checked_mul(times))
            .map_or(self.max_block_ms, |long| long.min(self.max_block_ms))
    }
}

/// A person's place on the ladder. Everything in it comes from the events that were stepped through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ladder {
    /// The rung, as of the last event.
    pub state: LadderState,
    /// Drift lane in milli-points, as of [`Self::clock_ms`].
    pub drift: u64,
    /// Violation lane in milli-points, as of [`Self::clock_ms`].
    pub violation: u64,
    /// The latest event time seen, Unix milliseconds: a late event does not move it back. Absent before
    /// the first event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ms: Option<i64>,
    /// Events that added points since the person was last ok or came out of a block.
    pub positives: u32,
    /// End of the latest block for a while, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
    /// When the blocks for a while began that may still count towards the next one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub temp_blocks: Vec<i64>,
}

impl Ladder {
    /// Both lanes together, in milli-points, as of the last event.
    #[must_use]
    pub fn score(&self) -> u64 {
        self.drift.saturating_add(self.violation)
    }

    /// A lane in milli-points, as of the last event.
    #[must_use]
    pub fn lane(&self, lane: Lane) -> u64 {
        match lane {
            Lane::Drift => self.drift,
            Lane::Violation => self.violation,
        }
    }

    /// Whether nothing is scored now.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        matches!(self.state, LadderState::TempBlocked | LadderState::Blocked)
    }

    /// When the block for a while ends that it stands at.
    #[must_use]
    pub fn block_end(&self) -> Option<DateTime<Utc>> {
        self.until_ms
            .filter(|_| self.state == LadderState::TempBlocked)
            .and_then(DateTime::from_timestamp_millis)
    }

    /// Takes one message into account and says how many milli-points it added. `t_ms` is the event's
    /// own time, Unix milliseconds.
    pub fn step(
        &mut self,
        config: &LadderConfig,
        t_ms: i64,
        kind: OffenceKind,
        oos_permille: Option<u16>,
    ) -> u64 {
        self.settle(config, t_ms);
        if self.is_blocked() {
            return 0;
        }
        let mut added = 0;
        if kind == OffenceKind::Clean {
            self.drift = self.drift.saturating_sub(config.credit_drift);
            self.violation = self.violation.saturating_sub(config.credit_violation);
        } else {
            added = config.points_of(kind, oos_permille);
            let lane = match config.lane_of(kind) {
                Lane::Drift => &mut self.drift,
                Lane::Violation => &mut self.violation,
            };
            *lane = lane.saturating_add(added);
            if added > 0 {
                self.positives = self.positives.saturating_add(1);
            }
        }
        let score = self.score();
        if config.is_severe(kind) {
            self.state = LadderState::Blocked;
        } else if score >= config.temp_block && self.positives >= config.min_events {
            self.block_for_a_while(config, t_ms);
        } else if score >= config.throttle {
            self.state = LadderState::Throttled;
        } else if score >= config.warn && self.state == LadderState::Ok {
            self.state = LadderState::Warned;
        }
        self.step_down(config);
        added
    }

    /// Forgives everything, as a granted appeal does.
    pub fn pardon(&mut self, config: &LadderConfig, t_ms: i64) {
        self.settle(config, t_ms);
        *self = Self { clock_ms: self.clock_ms, ..Self::default() };
    }

    /// Lets the lanes fade up to a moment, ends a block whose time is over and steps down where the
    /// score allows. No moment moves anything back.
    pub fn settle(&mut self, config: &LadderConfig, t_ms: i64) {
        let from = self.clock_ms.unwrap_or(t_ms);
        self.drift = config.faded(Lane::Drift, self.drift, from, t_ms);
        self.violation = config.faded(Lane::Violation, self.violation, from, t_ms);
        self.clock_ms = Some(from.max(t_ms));
        if self.state == LadderState::TempBlocked && self.until_ms.is_none_or(|until| t_ms >= until) {
            self.drift = 0;
            self.violation = self.violation.min(config.after_block);
            self.state = LadderState::Throttled;
            self.positives = 0;
        }
        self.step_down(config);
    }

    fn step_down(&mut self, config: &LadderConfig) {
        let score = self.score();
        if self.state == LadderState::Throttled && score < config.throttle_exit {
            self.state = LadderState::Warned;
        }
        if self.state == LadderState::Warned && score < config.warn_exit {
            self.state = LadderState::Ok;
            self.positives = 0;
        }
    }

    /// How many of the blocks for a while so far count at a moment.
    #[must_use]
    pub fn temp_blocks_counting(&self, config: &LadderConfig, t_ms: i64) -> u32 {
        let window = window(config);
        let counting = self.temp_blocks.iter().filter(|began| t_ms.saturating_sub(**began) < window);
        u32::try_from(counting.count()).unwrap_or(u32::MAX)
    }

    /// Both ladders as one, each taken at a moment: what somebody has who earned the one and the other.
    #[must_use]
    pub fn joined(mut self, mut other: Self, config: &LadderConfig, t_ms: i64) -> Self {
        self.settle(config, t_ms);
        other.settle(config, t_ms);
        self.temp_blocks.append(&mut other.temp_blocks);
        self.temp_blocks.sort_unstable();
        self.temp_blocks.dedup();
        Self {
            state: self.state.max(other.state),
            drift: self.drift.saturating_add(other.drift),
            violation: self.violation.saturating_add(other.violation),
            clock_ms: self.clock_ms.max(other.clock_ms),
            positives: self.positives.saturating_add(other.positives),
            until_ms: self.until_ms.max(other.until_ms),
            temp_blocks: self.temp_blocks,
        }
    }

    fn block_for_a_while(&mut self, config: &LadderConfig, t_ms: i64) {
        let window = window(config);
        let earlier = self.temp_blocks_counting(config, t_ms);
        // What a late event could still count is kept: another window back.
        self.temp_blocks.retain(|began| t_ms.saturating_sub(*began) < window.saturating_mul(2));
        self.temp_blocks.push(t_ms);
        if earlier.saturating_add(1) >= config.ladder_to_block {
            self.state = LadderState::Blocked;
        } else {
            self.state = LadderState::TempBlocked;
            let long = i64::try_from(config.block_ms(earlier)).unwrap_or(i64::MAX);
            self.until_ms = Some(t_ms.saturating_add(long));
        }
    }
}

fn window(config: &LadderConfig) -> i64 {
    i64::try_from(config.ladder_window_ms).unwrap_or(i64::MAX)
}

/// One event of a trace, as `botledger score predict --kind deviation` reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEvent {
    /// Unix milliseconds.
    pub t: i64,
    /// What happened.
    pub kind: TraceKind,
    /// How certainly off topic, for such messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oos_permille: Option<u16>,
}

/// What happened in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceKind {
    /// A moderator granted the person's appeal.
    AppealGranted,
    /// A message.
    #[serde(untagged)]
    Message(OffenceKind),
}

/// State and score in milli-points after each event of a trace.
#[must_use]
pub fn replay(config: &LadderConfig, events: &[TraceEvent]) -> Vec<(LadderState, u64)> {
    let mut ladder = Ladder::default();
    events
        .iter()
        .map(|event| {
            match event.kind {
                TraceKind::AppealGranted => ladder.pardon(config, event.t),
                TraceKind::Message(kind) => {
                    ladder.step(config, event.t, kind, event.oos_permille);
                }
            }
            (ladder.state, ladder.score())
        })
        .collect()
}

#[cfg(test)]
mod tests;
