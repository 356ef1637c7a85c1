//! What a standing means at a moment: the verdict the gate acts on, and the explanation people and
//! moderators read. Time alone ends blocks and fades points, so both ask for the moment.

use chrono::{DateTime, Utc};

use super::{
    Block, BlockCause, Contribution, Standing,
    ladder::{Ladder, LadderConfig, LadderState, Lane},
};
use crate::Reason;

/// What becomes of a person's next message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on to the other checks.
    Clear,
    /// Likewise, under the stricter rate of people who are throttled.
    Throttled,
    /// It is refused.
    Blocked(Ban),
}

/// The block that stands; of a moderator's and the score's the one that lasts longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// Who or what decided it.
    pub cause: BlockCause,
    /// A moderator's words; the score has none.
    pub reason: Option<Reason>,
    /// When it ends; absent when it has no end.
    pub until: Option<DateTime<Utc>>,
    /// Whether the person can ask for a decision.
    pub appeal: Appealable,
}

/// Whether an appeal can be filed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appealable {
    /// Now.
    Now,
    /// Not before: one was denied.
    From(DateTime<Utc>),
    /// One waits for a decision.
    Pending,
}

/// An offence and what is left of its points.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveContribution {
    /// The offence as it was scored.
    pub contribution: Contribution,
    /// What its points have faded to, in milli-points; never more than its lane still holds.
    pub live: u64,
}

/// Why a person stands where they stand.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The rung of the ladder at the moment that was asked for.
    pub state: LadderState,
    /// Drift lane then, in milli-points.
    pub drift: u64,
    /// Violation lane then, in milli-points.
    pub violation: u64,
    /// What becomes of a message.
    pub verdict: Verdict,
    /// The moderator's block in force, if any.
    pub block: Option<Block>,
    /// The rules of the ladder, thresholds included.
    pub rules: LadderConfig,
    /// The three offences that weigh most, heaviest first.
    pub contributions: Vec<LiveContribution>,
    /// Version of the policy of the last scoring; absent before any.
    pub policy_version: Option<u32>,
    /// Hash of the model of the last scoring; absent before any, empty when none took part.
    pub model_version: Option<String>,
    /// Whether an appeal could be filed; absent when nothing restricts the person.
    pub appeal: Option<Appealable>,
}

/// How many offences an explanation names.
const NAMED: usize = 3;

impl Standing {
    /// What becomes of a message at a moment.
    #[must_use]
    pub fn verdict_at(&self, now: DateTime<Utc>) -> Verdict {
        self.verdict(&self.live.ladder_at(now), now)
    }

    fn verdict(&self, ladder: &Ladder, now: DateTime<Utc>) -> Verdict {
        let ban = |cause, reason, until| Ban { cause, reason, until, appeal: self.appealable(now) };
        let by_moderator = self
            .blocked_at(now)
            .map(|block| ban(BlockCause::Moderator, Some(block.reason.clone()), block.until));
        let by_score = match ladder.state {
            LadderState::TempBlocked => {
                Some(ban(BlockCause::Score, None, Some(ladder.block_end().unwrap_or(now))))
            }
            LadderState::Blocked => Some(ban(self.block_cause.unwrap_or(BlockCause::Score), None, None)),
            _ => None,
        };
        match (by_moderator, by_score) {
            (Some(moderator), Some(score)) if ends_before(moderator.until, score.until) => {
                Verdict::Blocked(score)
            }
            (Some(ban), _) | (None, Some(ban)) => Verdict::Blocked(ban),
            (None, None) if ladder.state == LadderState::Throttled => Verdict::Throttled,
            (None, None) => Verdict::Clear,
        }
    }

    fn appealable(&self, now: DateTime<Utc>) -> Appealable {
        match (&self.appeal, self.appealable_from) {
            (Some(_), _) => Appealable::Pending,
            (None, Some(from)) if now < from => Appealable::From(from),
            (None, _) => Appealable::Now,
        }
    }

    /// Why the person stands where they stand at a moment.
    #[must_use]
    pub fn explain(&self, now: DateTime<Utc>) -> Explanation {
        let ladder = self.live.ladder_at(now);
        let rules = self.live.rules();
        let verdict = self.verdict(&ladder, now);
        let mut contributions: Vec<LiveContribution> = self
            .live
            .contributions
            .iter()
            .filter_map(|contribution| {
                let live = self.live_points(contribution, &ladder, &rules, now);
                (live > 0).then(|| LiveContribution { contribution: contribution.clone(), live })
            })
            .collect();
        // Newest first among equals: that is what the person remembers.
        contributions.reverse();
        contributions.sort_by_key(|contribution| std::cmp::Reverse(contribution.live));
        contributions.truncate(NAMED);
        Explanation {
            state: ladder.state,
            drift: ladder.drift,
            violation: ladder.violation,
            appeal: (verdict != Verdict::Clear).then(|| self.appealable(now)),
            verdict,
            block: self.blocked_at(now).cloned(),
            rules,
            contributions,
            policy_version: self.live.policy_version,
            model_version: self.live.model_version.clone(),
        }
    }

    /// What is left of an offence's points: nothing, when they were forgiven or a block paid them off.
    fn live_points(
        &self,
        contribution: &Contribution,
        ladder: &Ladder,
        rules: &LadderConfig,
        now: DateTime<Utc>,
    ) -> u64 {
        let scored_at = contribution.scored_at;
        if self.forgiven_at.is_some_and(|forgiven| scored_at <= forgiven) {
            return 0;
        }
        let lane = contribution.offence.lane;
        let scored_ms = scored_at.timestamp_millis();
        // The end of a block for a while empties the drift lane.
        let served = ladder.state != LadderState::TempBlocked
            && ladder.until_ms.is_some_and(|until| scored_ms < until);
        if lane == Lane::Drift && served {
            return 0;
        }
        let faded = rules.faded(lane, contribution.offence.points, scored_ms, now.timestamp_millis());
        faded.min(ladder.lane(lane))
    }
}

/// Whether one end comes before another; no end comes last.
fn ends_before(one: Option<DateTime<Utc>>, other: Option<DateTime<Utc>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one < other,
        (Some(_), None) => true,
        (None, _) => false,
    }
}
