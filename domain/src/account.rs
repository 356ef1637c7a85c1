//! What may be used and what was: the limits of a plan, a meter for each, and the holds on them.
//! A person's quota and the budget of a bot or a workspace count with the same [`Account`].

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike, Duration, TimeZone, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, EnumIter, EnumString, IntoEnumIterator, IntoStaticStr};
use uuid::Uuid;

use crate::{BotId, SubjectId, WorkspaceId};

/// What is counted.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
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
pub enum Unit {
    /// Tokens of prompts and answers.
    #[default]
    Tokens,
    /// Messages to a model.
    Messages,
    /// Millionths of the currency that the installation's prices are in.
    Money,
}

impl Unit {
    /// Whether it is the one that every plan once had.
    pub(crate) fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// The calendar window a limit counts in; windows begin at whole units of UTC.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
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
pub enum Period {
    /// 60 seconds.
    Minute,
    /// 60 minutes.
    Hour,
    /// From midnight UTC.
    Day,
    /// From Monday, midnight UTC.
    Week,
    /// From the first of the month, midnight UTC.
    Month,
}

impl Period {
    /// The window that holds a moment: start (inclusive) and end (exclusive).
    #[must_use]
    pub fn window(self, at: DateTime<Utc>) -> Window {
        let aligned = |seconds: i64| {
            let start = at.timestamp().div_euclid(seconds) * seconds;
            (moment(start), moment(start + seconds))
        };
        let (start, end) = match self {
            Self::Minute => aligned(60),
            Self::Hour => aligned(3_600),
            Self::Day => aligned(86_400),
            Self::Week => {
                let midnight = moment(at.timestamp().div_euclid(86_400) * 86_400);
                let start = midnight - Duration::days(i64::from(at.weekday().num_days_from_monday()));
                (start, start + Duration::days(7))
            }
            Self::Month => {
                let (year, month) = (at.year(), at.month());
                let (next_year, next_month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
                (first_of(year, month), first_of(next_year, next_month))
            }
        };
        Window { start, end }
    }

    /// Windows from one that starts then to a later one that starts then; 1 for the next one.
    fn windows_between(self, from: DateTime<Utc>, to: DateTime<Utc>) -> u64 {
        let seconds = |length: i64| (to - from).num_seconds() / length;
        let count = match self {
            Self::Minute => seconds(60),
            Self::Hour => seconds(3_600),
            Self::Day => seconds(86_400),
            Self::Week => seconds(7 * 86_400),
            Self::Month => {
                let months = |at: DateTime<Utc>| i64::from(at.year()) * 12 + i64::from(at.month());
                months(to) - months(from)
            }
        };
        u64::try_from(count).unwrap_or(0)
    }
}

fn moment(unix_seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(unix_seconds, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

fn first_of(year: i32, month: u32) -> DateTime<Utc> {
    Utc.with_ymd_and_hms(year, month, 1, 0, 0, 0).single().unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// The window counted in now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Window {
    /// Inclusive.
    pub start: DateTime<Utc>,
    /// Exclusive: the moment of reset.
    pub end: DateTime<Utc>,
}

pub(crate) fn is_zero(amount: &u64) -> bool {
    *amount == 0
}

/// So much of each unit; what is not written is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Amounts {
    /// Of prompt and answer together.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tokens: u64,
    /// To a model.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub messages: u64,
    /// Millionths of the currency.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub money: u64,
}

impl Amounts {
    /// More than any limit: what is not limited.
    pub const ENDLESS: Self = Self { tokens: u64::MAX, messages: u64::MAX, money: u64::MAX };

    /// So much of one unit.
    #[must_use]
    pub fn only(unit: Unit, amount: u64) -> Self {
        let mut amounts = Self::default();
        *amounts.get_mut(unit) = amount;
        amounts
    }

    /// So much of that unit.
    #[must_use]
    pub fn of(&self, unit: Unit) -> u64 {
        match unit {
            Unit::Tokens => self.tokens,
            Unit::Messages => self.messages,
            Unit::Money => self.money,
        }
    }

    fn get_mut(&mut self, unit: Unit) -> &mut u64 {
        match unit {
            Unit::Tokens => &mut self.tokens,
            Unit::Messages => &mut self.messages,
            Unit::Money => &mut self.money,
        }
    }

    /// Lowers one unit to an amount, unless it is there.
    pub(crate) fn cap(&mut self, unit: Unit, amount: u64) {
        let there = self.get_mut(unit);
        *there = (*there).min(amount);
    }

    /// Unit by unit.
    #[must_use]
    pub fn with(self, other: Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            tokens: combine(self.tokens, other.tokens),
            messages: combine(self.messages, other.messages),
            money: combine(self.money, other.money),
        }
    }

    /// The sum, held at the largest number.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// The difference, never below zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub)
    }

    /// The lesser of each unit.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        self.with(other, u64::min)
    }

    /// What a hold is charged when this was taken, and what was taken beyond it. Of what is not held
    /// nothing is charged and nothing counts as beyond.
    #[must_use]
    pub fn settle(self, taken: Self) -> (Self, Self) {
        let beyond = |held: u64, taken: u64| if held == 0 { 0 } else { taken.saturating_sub(held) };
        (taken.least(self), self.with(taken, beyond))
    }

    /// Whether there is as much of every unit as is asked for.
    #[must_use]
    pub fn covers(&self, asked: Self) -> bool {
        Unit::iter().all(|unit| self.of(unit) >= asked.of(unit))
    }

    /// Whether there is nothing of anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The sum over many.
    pub fn sum<'a>(amounts: impl IntoIterator<Item = &'a Self>) -> Self {
        amounts.into_iter().fold(Self::default(), |sum, one| sum.plus(*one))
    }
}

/// So much of one unit in every window of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limit {
    /// What is counted.
    pub unit: Unit,
    /// The window it is counted in.
    pub period: Period,
    /// Granted a window, at least 1; money in millionths of the currency.
    pub amount: u64,
    /// Most that may come over from the window before; without it what is left is lost. What is left of
    /// a window is its amount and what came over into it, less what was used: raises are for their time
    /// only. A window in which nothing happened leaves all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roll_over: Option<u64>,
}

/// What a plan or a budget grants: all limits hold at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlanTerms {
    /// By unit and period; no two of the same.
    pub limits: Vec<Limit>,
    /// Where somebody is warned: percent of a limit used, rising, 1 to 99.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warn_at_percent: Vec<u8>,
}

/// Terms that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// No limits, or one that grants nothing.
    #[error("a plan needs at least one limit, and every limit at least 1 a period")]
    Empty,
    /// Over what every reader can count to.
    #[error("a limit is at most 9223372036854775807")]
    TooLarge,
    /// Two limits of one unit and period.
    #[error("there are two limits of {} a {}", unit.as_ref(), period.as_ref())]
    Twice {
        /// Of this unit.
        unit: Unit,
        /// And this period.
        period: Period,
    },
    /// A cap of zero is no roll-over.
    #[error("what may roll over is at least 1; leave it out when nothing rolls over")]
    NoRollOver,
    /// Outside 1 to 99.
    #[error("a warning comes at 1 to 99 percent")]
    WarningOutOfRange,
    /// More than anybody needs.
    #[error("there are at most 10 warnings")]
    TooManyWarnings,
}

/// Warnings of one plan, at most.
const MOST_WARNINGS: usize = 10;

impl PlanTerms {
    /// One limit, of tokens, that warns nobody.
    #[must_use]
    pub fn tokens(amount: u64, period: Period) -> Self {
        let limit = Limit { unit: Unit::Tokens, period, amount, roll_over: None };
        Self { limits: vec![limit], warn_at_percent: vec![] }
    }

    /// The same terms in their one order.
    ///
    /// # Errors
    /// When they make no sense.
    pub fn checked(mut self) -> Result<Self, TermsError> {
        self.limits.sort_by_key(|limit| (limit.unit, limit.period));
        self.warn_at_percent.sort_unstable();
        self.warn_at_percent.dedup();
        if self.limits.is_empty() || self.limits.iter().any(|limit| limit.amount == 0) {
            return Err(TermsError::Empty);
        }
        let countable = |amount: u64| i64::try_from(amount).is_ok();
        if !self.limits.iter().all(|limit| countable(limit.amount) && countable(limit.roll_over.unwrap_or(1)))
        {
            return Err(TermsError::TooLarge);
        }
        if self.limits.iter().any(|limit| limit.roll_over == Some(0)) {
            return Err(TermsError::NoRollOver);
        }
        if let Some(pair) = self
            .limits
            .windows(2)
            .find(|pair| (pair[0].unit, pair[0].period) == (pair[1].unit, pair[1].period))
        {
            return Err(TermsError::Twice { unit: pair[0].unit, period: pair[0].period });
        }
        if !self.warn_at_percent.iter().all(|percent| (1..=99).contains(percent)) {
            return Err(TermsError::WarningOutOfRange);
        }
        if self.warn_at_percent.len() > MOST_WARNINGS {
            return Err(TermsError::TooManyWarnings);
        }
        Ok(self)
    }

    /// Of an amount, what these terms limit; the rest is not their business.
    #[must_use]
    pub fn limited(&self, asked: Amounts) -> Amounts {
        let mut limited = Amounts::default();
        for limit in &self.limits {
            *limited.get_mut(limit.unit) = asked.of(limit.unit);
        }
        limited
    }
}

/// How far a limit is used in its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Meter {
    /// What is counted.
    pub unit: Unit,
    /// In what.
    pub period: Period,
    /// The window counted in.
    pub window: Window,
    /// What came over from the window before, on top of the limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub carried: u64,
    /// Settled in the window.
    pub used: u64,
}

/// More for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Raise {
    /// Of what.
    pub unit: Unit,
    /// Added to every limit of the unit as long as it runs.
    pub amount: u64,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

/// What is left under one limit at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitLeft {
    /// What is counted.
    pub unit: Unit,
    /// In what.
    pub period: Period,
    /// What may be used in the window: the limit, what came over, raises.
    pub limit: u64,
    /// What of it came over from the window before.
    pub carried: u64,
    /// Settled in the window.
    pub used: u64,
    /// Held by running turns.
    pub reserved: u64,
    /// What may still be reserved.
    pub remaining: u64,
    /// When the window ends.
    pub resets_at: DateTime<Utc>,
}

/// The limit that an amount does not fit under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What is short.
    pub unit: Unit,
    /// In which period.
    pub period: Period,
    /// What was asked for.
    pub requested: u64,
    /// What there is.
    pub remaining: u64,
    /// When there will be more.
    pub resets_at: DateTime<Utc>,
}

/// A warning's place: once a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mark {
    /// Of which limit.
    pub unit: Unit,
    /// And period.
    pub period: Period,
    /// Percent of the limit.
    pub percent: u8,
}

/// A limit is used as far as somebody wanted to be warned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Warning {
    /// What is counted.
    pub unit: Unit,
    /// In what.
    pub period: Period,
    /// The threshold that was reached, percent.
    pub percent: u8,
    /// What is used.
    pub used: u64,
    /// Of how much.
    pub limit: u64,
    /// When the window ends.
    pub resets_at: DateTime<Utc>,
}

/// Whose limits: everything that can be held to some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", content = "id", rename_all = "snake_case")]
pub enum Holder {
    /// A person, by their quota.
    Person(SubjectId),
    /// One bot.
    Bot(BotId),
    /// A tenant as a whole.
    Workspace(WorkspaceId),
    /// Several people.
    Team(Uuid),
    /// A key to the API.
    Key(Uuid),
}

impl Holder {
    /// `person`, `bot`, `workspace`, `team` or `key`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Person(_) => "person",
            Self::Bot(_) => "bot",
            Self::Workspace(_) => "workspace",
            Self::Team(_) => "team",
            Self::Key(_) => "key",
        }
    }

    /// Its id.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        match self {
            Self::Person(id) => id.uuid(),
            Self::Bot(id) => id.uuid(),
            Self::Workspace(id) => id.uuid(),
            Self::Team(id) | Self::Key(id) => *id,
        }
    }
}

/// Limits, what is used of them and what is held, by whom. Invariant: at the moment of a hold, what is
/// used and held is within every limit, with what came over and what raises add; no settlement can
/// therefore overshoot. Holds go over into the next window and are charged in the one they end in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account<K: Ord> {
    /// What is granted.
    pub terms: PlanTerms,
    /// One for every limit, in the same order.
    pub meters: Vec<Meter>,
    /// What is held.
    pub holds: BTreeMap<K, Amounts>,
    /// Grants that may still be running, oldest first.
    pub raises: Vec<Raise>,
    /// Warnings given in the present windows.
    pub marks: Vec<Mark>,
}

impl<K: Ord> Default for Account<K> {
    fn default() -> Self {
        Self {
            terms: PlanTerms { limits: vec![], warn_at_percent: vec![] },
            meters: vec![],
            holds: BTreeMap::new(),
            raises: vec![],
            marks: vec![],
        }
    }
}

impl<K: Ord> Account<K> {
    /// Held in all.
    #[must_use]
    pub fn held(&self) -> Amounts {
        Amounts::sum(self.holds.values())
    }

    /// When the first of the windows ends; absent without limits.
    #[must_use]
    pub fn first_end(&self) -> Option<DateTime<Utc>> {
        self.meters.iter().map(|meter| meter.window.end).min()
    }

    fn paired(&self) -> impl Iterator<Item = (&Limit, &Meter)> {
        self.terms.limits.iter().zip(&self.meters)
    }

    fn raised(&self, unit: Unit, now: DateTime<Utc>) -> u64 {
        let running = self.raises.iter().filter(|raise| raise.unit == unit && now < raise.expires_at);
        running.fold(0, |sum, raise| sum.saturating_add(raise.amount))
    }

    /// The meters at a moment after the end of a window; absent while all windows run.
    #[must_use]
    pub fn rolled(&self, now: DateTime<Utc>) -> Option<Vec<Meter>> {
        self.first_end().filter(|end| now >= *end)?;
        Some(self.paired().map(|(limit, meter)| roll(*limit, *meter, now)).collect())
    }

    /// The meters that these terms would begin with: a limit that was there before goes on counting.
    #[must_use]
    pub fn reset(&self, terms: &PlanTerms, now: DateTime<Utc>) -> Vec<Meter> {
        let begin = |limit: &Limit| {
            let window = limit.period.window(now);
            let fresh = Meter { unit: limit.unit, period: limit.period, window, carried: 0, used: 0 };
            let kept = self
                .meters
                .iter()
                .find(|meter| (meter.unit, meter.period, meter.window) == (limit.unit, limit.period, window));
            let carried = |meter: &Meter| meter.carried.min(limit.roll_over.unwrap_or(0));
            kept.map_or(fresh, |meter| Meter { carried: carried(meter), ..*meter })
        };
        terms.limits.iter().map(begin).collect()
    }

    /// What is left under each limit at a moment.
    #[must_use]
    pub fn left_at(&self, now: DateTime<Utc>) -> Vec<LimitLeft> {
        let held = self.held();
        let left = |(limit, meter): (&Limit, &Meter)| {
            let meter = roll(*limit, *meter, now);
            let granted = limit.amount.saturating_add(meter.carried);
            let granted = granted.saturating_add(self.raised(limit.unit, now));
            let reserved = held.of(limit.unit);
            LimitLeft {
                unit: limit.unit,
                period: limit.period,
                limit: granted,
                carried: meter.carried,
                used: meter.used,
                reserved,
                remaining: granted.saturating_sub(meter.used).saturating_sub(reserved),
                resets_at: meter.window.end,
            }
        };
        self.paired().map(left).collect()
    }

    /// What may still be held of each unit: the least that any limit leaves; endless where none does.
    #[must_use]
    pub fn spare(&self, now: DateTime<Utc>) -> Amounts {
        spare(&self.left_at(now))
    }

    /// What is used, in the order of the limits, once this is charged too.
    #[must_use]
    pub fn used_with(&self, charged: Amounts) -> Vec<u64> {
        self.meters.iter().map(|meter| meter.used.saturating_add(charged.of(meter.unit))).collect()
    }

    /// Warnings that are due and were not given in their windows; `counted` says what counts as used.
    #[must_use]
    pub fn warnings(&self, now: DateTime<Utc>, counted: impl Fn(&LimitLeft) -> u64) -> Vec<Warning> {
        let mut due = vec![];
        for left in self.left_at(now) {
            let used = counted(&left);
            // Of several thresholds passed at once the highest says it all.
            let reached = self
                .terms
                .warn_at_percent
                .iter()
                .rev()
                .find(|percent| u128::from(used) * 100 >= u128::from(left.limit) * u128::from(**percent));
            let Some(percent) = reached.copied() else { continue };
            let told = self
                .marks
                .iter()
                .any(|mark| (mark.unit, mark.period) == (left.unit, left.period) && mark.percent >= percent);
            if !told {
                let LimitLeft { unit, period, limit, resets_at, .. } = left;
                due.push(Warning { unit, period, percent, used, limit, resets_at });
            }
        }
        due
    }

    /// Takes other terms, under which everybody may be warned anew.
    pub(crate) fn begin(&mut self, terms: PlanTerms, meters: Vec<Meter>) {
        (self.terms, self.meters) = (terms, meters);
        self.marks.clear();
    }

    /// Takes new meters; warnings of windows that ended may be given again.
    pub(crate) fn turn_to(&mut self, meters: Vec<Meter>) {
        let window_of = |meters: &[Meter], mark: &Mark| {
            let meter = meters.iter().find(|meter| (meter.unit, meter.period) == (mark.unit, mark.period));
            meter.map(|meter| meter.window)
        };
        self.marks.retain(|mark| window_of(&self.meters, mark) == window_of(&meters, mark));
        self.meters = meters;
    }

    /// Forgets raises that are over by then.
    pub(crate) fn forget_raises(&mut self, now: DateTime<Utc>) {
        self.raises.retain(|raise| now < raise.expires_at);
    }

    pub(crate) fn remember_raise(&mut self, raise: Raise) {
        if !self.raises.contains(&raise) {
            self.raises.push(raise);
        }
    }

    pub(crate) fn remember_warning(&mut self, warning: &Warning) {
        let mark = Mark { unit: warning.unit, period: warning.period, percent: warning.percent };
        if !self.marks.contains(&mark) {
            self.marks.push(mark);
        }
    }

    pub(crate) fn set_used(&mut self, used: &[u64]) {
        for (meter, used) in self.meters.iter_mut().zip(used) {
            meter.used = *used;
        }
    }
}

/// The least that any of the limits leaves of each unit; endless where none does.
#[must_use]
pub fn spare(left: &[LimitLeft]) -> Amounts {
    let mut spare = Amounts::ENDLESS;
    for left in left {
        spare.cap(left.unit, left.remaining);
    }
    spare
}

/// The limit that does not cover an amount; of several the one that resets last, because before that
/// the amount does not fit.
#[must_use]
pub fn shortage(left: &[LimitLeft], asked: Amounts) -> Option<Shortage> {
    let short = left.iter().filter(|left| asked.of(left.unit) > left.remaining);
    short.max_by_key(|left| left.resets_at).map(|left| Shortage {
        unit: left.unit,
        period: left.period,
        requested: asked.of(left.unit),
        remaining: left.remaining,
        resets_at: left.resets_at,
    })
}

fn roll(limit: Limit, meter: Meter, now: DateTime<Utc>) -> Meter {
    if now < meter.window.end {
        return meter;
    }
    let window = limit.period.window(now);
    // Windows in which nothing was asked: each leaves its whole amount, and the cap holds for the sum as
    // it would have held at each of them.
    let idle = limit.period.windows_between(meter.window.start, window.start).saturating_sub(1);
    let left = limit.amount.saturating_add(meter.carried).saturating_sub(meter.used);
    let left = left.saturating_add(limit.amount.saturating_mul(idle));
    let carried = limit.roll_over.map_or(0, |cap| left.min(cap));
    Meter { unit: limit.unit, period: limit.period, window, carried, used: 0 }
}

#[cfg(test)]
mod tests;
