//! A person's standing with one bot: what their messages earned them on the ladder, what moderators
//! decided, and what they appealed against.
//!
//! The score and a moderator's block stand side by side, and neither lifts the other. Every scoring
//! carries the ladder as it is after it, so that recording one is an assignment; the rules it was
//! scored under travel with the first event that used them. A policy on trial moves a ladder of its
//! own that restricts nobody.

pub mod ladder;
mod reading;

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, EnumString, IntoStaticStr};
use uuid::Uuid;

use self::ladder::{Ladder, LadderConfig, LadderConfigError, LadderState, Lane, OffenceKind};
pub use self::reading::{Appealable, Ban, Explanation, LiveContribution, Verdict};
use crate::{
    BodyRef, BotId, Decide, DomainError, OperatorId, Reason, SubjectId, TurnId, aggregate::aggregate,
    clock::is_writable,
};

/// A warning is shown at most once in this time.
pub const WARNING_PAUSE: TimeDelta = TimeDelta::days(1);

/// How long after a denial the next appeal may be filed.
pub const APPEAL_PAUSE: TimeDelta = TimeDelta::days(7);

/// Offences of one message, findings of one offence and places of one finding that are kept; what
/// comes after them would explain nothing more.
const KEPT: usize = 16;

/// Offences a standing remembers to explain itself by.
const REMEMBERED: usize = 20;

/// What a detector found in a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Evidence {
    /// Who found it, for example `attack`.
    pub detector: String,
    /// By which of its rules.
    pub rule: String,
    /// Where, in code points, end exclusive; empty when it is the whole message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spans: Vec<(u32, u32)>,
}

/// Something a message is held against its writer for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Offence {
    /// What it was.
    pub kind: OffenceKind,
    /// How certainly it is off topic; only such offences have it. 0 to 1,000.
    pub oos_permille: Option<u16>,
    /// The intent it came nearest to.
    pub intent: Option<String>,
    /// What it rests on.
    pub evidence: Vec<Evidence>,
}

/// An offence and what it cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScoredOffence {
    /// What it was.
    pub kind: OffenceKind,
    /// Milli-points it added. 0 for the rest of a message whose earlier offence blocked.
    pub points: u64,
    /// Where they went.
    pub lane: Lane,
    /// How certainly it is off topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oos_permille: Option<u16>,
    /// The intent it came nearest to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<String>,
    /// What it rests on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Evidence>,
}

/// A ladder at one moment, in milli-points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rung {
    /// The state.
    pub state: LadderState,
    /// The drift lane.
    pub drift: u64,
    /// The violation lane.
    pub violation: u64,
}

impl From<&Ladder> for Rung {
    fn from(ladder: &Ladder) -> Self {
        Self { state: ladder.state, drift: ladder.drift, violation: ladder.violation }
    }
}

/// An offence that may still weigh, and the versions it was found under.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contribution {
    /// The message.
    pub turn: TurnId,
    /// When it was scored.
    pub scored_at: DateTime<Utc>,
    /// The offence and its points.
    pub offence: ScoredOffence,
    /// Version of the policy.
    pub policy_version: u32,
    /// Hash of the model, empty when none took part.
    pub model_version: String,
}

/// A ladder with what explains it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Track {
    /// Where the person stands on it.
    pub ladder: Ladder,
    /// The rules it was last moved under; absent before the first scoring.
    pub rules: Option<LadderConfig>,
    /// Version of the policy of the last scoring.
    pub policy_version: Option<u32>,
    /// Hash of the model of the last scoring.
    pub model_version: Option<String>,
    /// The latest offences, oldest first.
    pub contributions: Vec<Contribution>,
    /// The message that was scored last.
    pub last_turn: Option<TurnId>,
}

/// A moderator's block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Block {
    /// Why.
    pub reason: Reason,
    /// When it ends; open-ended when absent.
    pub until: Option<DateTime<Utc>>,
}

/// An appeal that waits for a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Appeal {
    /// The message it was filed with.
    pub turn: TurnId,
    /// What the person wrote, sealed; absent when they gave no grounds.
    pub body: Option<BodyRef>,
    /// When.
    pub filed_at: DateTime<Utc>,
}

/// What decided a block.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum BlockCause {
    /// A moderator.
    #[default]
    Moderator,
    /// The score, for the last time it may.
    Score,
    /// One message that blocks at once; a human has to look.
    Severe,
}

impl BlockCause {
    /// Blocks stored before there was a score were all a moderator's.
    fn is_moderator(&self) -> bool {
        *self == Self::Moderator
    }
}

/// A moderator's decision that can be taken back.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, AsRefStr, EnumString, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum DecisionKind {
    /// To block.
    Block,
    /// To let in again.
    Unblock,
    /// To grant an appeal.
    GrantAppeal,
    /// To deny one.
    DenyAppeal,
}

/// Everything a moderator's decision may change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Situation {
    /// A moderator's block.
    pub block: Option<Block>,
    /// The ladder in force.
    pub ladder: Ladder,
    /// What decided the block without end that it may stand at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_cause: Option<BlockCause>,
    /// Offences up to this moment are forgiven.
    pub forgiven_at: Option<DateTime<Utc>>,
    /// The appeal that waits.
    pub appeal: Option<Appeal>,
    /// No appeal may be filed before.
    pub appealable_from: Option<DateTime<Utc>>,
}

/// The last decision of a moderator, and what stood before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastDecision {
    /// What was decided.
    pub kind: DecisionKind,
    /// When.
    pub decided_at: DateTime<Utc>,
    /// What stood before.
    pub before: Situation,
}

/// Whether a person may talk to a bot, and why. Invariants: at most one moderator's block and one
/// appeal stand at a time; what is on trial restricts nobody.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Whose it is, and with which bot; absent before the first event.
    pub who: Option<(BotId, SubjectId)>,
    /// The moderator's block that stands, if any. It may have run out: see [`Standing::blocked_at`].
    pub block: Option<Block>,
    /// The ladder in force.
    pub live: Track,
    /// The ladder of a policy on trial.
    pub trial: Track,
    /// What decided the block without end that the ladder in force may stand at.
    pub block_cause: Option<BlockCause>,
    /// When a warning was last shown.
    pub warning_shown_at: Option<DateTime<Utc>>,
    /// Offences up to this moment are forgiven.
    pub forgiven_at: Option<DateTime<Utc>>,
    /// The appeal that waits for a decision.
    pub appeal: Option<Appeal>,
    /// No appeal may be filed before: one was denied.
    pub appealable_from: Option<DateTime<Utc>>,
    /// The decision that can be taken back.
    pub last_decision: Option<PastDecision>,
}

/// One message to be scored.
#[derive(Clone, Debug)]
pub struct Scoring {
    pub bot: BotId,
    pub subject: SubjectId,
    /// The message. Scoring it again is "already so".
    pub turn: TurnId,
    /// What is held against it; nothing makes it a clean one.
    pub offences: Vec<Offence>,
    /// The policy's ladder.
    pub rules: LadderConfig,
    /// The policy's version.
    pub policy_version: u32,
    /// Hash of the model that took part, in hex; empty when none did.
    pub model_version: String,
    /// Whether the policy is on trial.
    pub dry_run: bool,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum StandingCommand {
    /// Take a message into account. A person who is blocked is not scored.
    Score(Box<Scoring>),
    /// Refuse this person's messages.
    Block { bot: BotId, subject: SubjectId, by: OperatorId, reason: Reason, until: Option<DateTime<Utc>> },
    /// Take messages again, whoever blocked them. A block of the score goes with its points.
    Unblock { by: OperatorId, reason: Reason },
    /// The person asks for a human decision. Filing with the same message again is "already so".
    FileAppeal { turn: TurnId, body: Option<BodyRef> },
    /// The person is right: everything held against them goes.
    GrantAppeal { by: OperatorId, reason: Option<Reason> },
    /// Everything stays as it is.
    DenyAppeal { by: OperatorId, reason: Reason },
    /// Take the last decision of a moderator back.
    Undo { by: OperatorId, reason: Reason },
}

/// What happened. Points and scores are milli-points.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum StandingEvent {
    /// A message moved the ladder. No offences means that a clean one took points off.
    PointsScored {
        bot: BotId,
        subject: SubjectId,
        turn: TurnId,
        offences: Vec<ScoredOffence>,
        /// Just before the message, faded to its moment.
        before: Rung,
        /// Just after it.
        after: Ladder,
        /// The policy's ladder, in the first event under it; later ones were scored under the same.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rules: Option<LadderConfig>,
        policy_version: u32,
        model_version: String,
        dry_run: bool,
        scored_at: DateTime<Utc>,
    },
    /// The score reached the warning. `shown` at most once a day.
    WarningIssued {
        bot: BotId,
        subject: SubjectId,
        turn: TurnId,
        score: u64,
        shown: bool,
        policy_version: u32,
        dry_run: bool,
        warned_at: DateTime<Utc>,
    },
    /// Answers come less often from now on.
    Throttled {
        bot: BotId,
        subject: SubjectId,
        turn: TurnId,
        score: u64,
        policy_version: u32,
        dry_run: bool,
        throttled_at: DateTime<Utc>,
    },
    /// Messages are refused until `until`: the `n`-th block for a while in its window, from 1.
    TemporarilyBlocked {
        bot: BotId,
        subject: SubjectId,
        turn: TurnId,
        score: u64,
        n: u32,
        until: DateTime<Utc>,
        policy_version: u32,
        dry_run: bool,
        blocked_at: DateTime<Utc>,
    },
    /// Messages are refused until `until`, or until a moderator lifts it. A moderator's block has `by`
    /// and `reason`; the score's has the message, its score and the policy's version.
    Blocked {
        bot: BotId,
        subject: SubjectId,
        by: Option<OperatorId>,
        reason: Option<Reason>,
        until: Option<DateTime<Utc>>,
        #[serde(default, skip_serializing_if = "BlockCause::is_moderator")]
        cause: BlockCause,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        turn: Option<TurnId>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        score: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy_version: Option<u32>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        dry_run: bool,
        blocked_at: DateTime<Utc>,
    },
    /// Messages are taken again. `ladder` is there when the score had blocked, too.
    Unblocked {
        by: OperatorId,
        reason: Reason,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ladder: Option<Ladder>,
        unblocked_at: DateTime<Utc>,
    },
    /// The person asked for a human decision about what restricts them.
    AppealFiled {
        bot: BotId,
        subject: SubjectId,
        turn: TurnId,
        /// What they wrote, sealed.
        body: Option<BodyRef>,
        /// What they are; blocked, where a moderator's block stands.
        against: LadderState,
        /// What decided a block.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<BlockCause>,
        filed_at: DateTime<Utc>,
    },
    /// Everything held against the person is gone; `ladder` is what is left.
    AppealGranted { by: OperatorId, reason: Option<Reason>, ladder: Ladder, granted_at: DateTime<Utc> },
    /// Everything stays as it is; the next appeal may be filed at `appealable_from`.
    AppealDenied { by: OperatorId, reason: Reason, appealable_from: DateTime<Utc>, denied_at: DateTime<Utc> },
    /// A moderator's decision was taken back; `restored` is what stands since.
    DecisionUndone {
        by: OperatorId,
        reason: Reason,
        decision: DecisionKind,
        decided_at: DateTime<Utc>,
        restored: Situation,
        undone_at: DateTime<Utc>,
    },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StandingError {
    /// The end lies before now.
    #[error("the block would end before it begins")]
    EndsInThePast,
    /// The end cannot be written everywhere.
    #[error("a block ends by the year 9999; leave the end out to make it open-ended")]
    EndsTooLate,
    /// The policy's ladder contradicts itself.
    #[error("the ladder's rules cannot be used")]
    Rules(#[source] LadderConfigError),
    /// Nothing restricts the person.
    #[error("there is nothing to appeal against: messages are answered as usual")]
    NotRestricted,
    /// One appeal at a time.
    #[error("an appeal waits for a decision already")]
    AppealOpen,
    /// The last one was denied.
    #[error("an appeal was denied; the next one may be filed from {from}")]
    AppealTooSoon {
        /// From when.
        from: DateTime<Utc>,
    },
    /// Nobody appealed, or it was decided meanwhile.
    #[error("no appeal waits for a decision")]
    NoAppeal,
    /// No moderator decided anything, or it was taken back already.
    #[error("there is no decision to take back")]
    NothingToUndo,
}

impl DomainError for StandingError {
    fn code(&self) -> &'static str {
        match self {
            Self::EndsInThePast => "STANDING_BLOCK_ENDS_IN_THE_PAST",
            Self::EndsTooLate => "STANDING_BLOCK_ENDS_TOO_LATE",
            Self::Rules(_) => "STANDING_RULES_INVALID",
            Self::NotRestricted => "STANDING_NOT_RESTRICTED",
            Self::AppealOpen => "STANDING_APPEAL_OPEN",
            Self::AppealTooSoon { .. } => "STANDING_APPEAL_TOO_SOON",
            Self::NoAppeal => "STANDING_NO_APPEAL",
            Self::NothingToUndo => "STANDING_NOTHING_TO_UNDO",
        }
    }
}

/// The id of the moderators' case that an event of a standing opens.
#[must_use]
pub fn case_of(standing: Uuid, sequence: i64) -> Uuid {
    Uuid::new_v5(&standing, format!("case:{sequence}").as_bytes())
}

impl Track {
    /// The rules it moves under: the last ones, or the default before any.
    #[must_use]
    pub fn rules(&self) -> LadderConfig {
        self.rules.clone().unwrap_or_default()
    }

    /// The ladder at a moment: faded, and past a block that is over.
    #[must_use]
    pub fn ladder_at(&self, now: DateTime<Utc>) -> Ladder {
        let mut ladder = self.ladder.clone();
        match &self.rules {
            Some(rules) => ladder.settle(rules, now.timestamp_millis()),
            None => ladder.settle(&LadderConfig::default(), now.timestamp_millis()),
        }
        ladder
    }
}

impl Standing {
    /// The moderator's block in force at a moment. What restricts a person, the score included, is
    /// [`Standing::verdict_at`].
    #[must_use]
    pub fn blocked_at(&self, now: DateTime<Utc>) -> Option<&Block> {
        self.block.as_ref().filter(|block| block.until.is_none_or(|until| now < until))
    }

    fn score(&self, scoring: Scoring, now: DateTime<Utc>) -> Result<Vec<StandingEvent>, StandingError> {
        let Scoring { bot, subject, turn, mut offences, rules, policy_version, model_version, dry_run } =
            scoring;
        rules.check().map_err(StandingError::Rules)?;
        let track = if dry_run { &self.trial } else { &self.live };
        // A message of somebody who is blocked is not looked at.
        if track.last_turn == Some(turn) || self.blocked_at(now).is_some() {
            return Ok(vec![]);
        }
        if dry_run && self.live.ladder_at(now).is_blocked() {
            return Ok(vec![]);
        }
        let t_ms = now.timestamp_millis();
        let mut ladder = track.ladder.clone();
        ladder.settle(&rules, t_ms);
        if ladder.is_blocked() {
            return Ok(vec![]);
        }
        let before = Rung::from(&ladder);
        offences.retain(|offence| offence.kind != OffenceKind::Clean);
        // After a block nothing is scored, and a block for a while must not hide a severe offence.
        offences.sort_by_key(|offence| !rules.is_severe(offence.kind));
        offences.truncate(KEPT);
        let severe = offences.first().is_some_and(|offence| rules.is_severe(offence.kind));
        let offences: Vec<ScoredOffence> =
            offences.into_iter().map(|offence| offence.scored(&mut ladder, &rules, t_ms)).collect();
        if offences.is_empty() {
            ladder.step(&rules, t_ms, OffenceKind::Clean, None);
            let untouched =
                track.ladder.state == LadderState::Ok && before.drift == 0 && before.violation == 0;
            if untouched {
                return Ok(vec![]);
            }
        }
        let climbed = (before.state < ladder.state).then_some(ladder.state);
        let (state, score) = (climbed.unwrap_or_default(), ladder.score());
        let until = ladder.block_end().unwrap_or(now);
        let n = ladder.temp_blocks_counting(&rules, t_ms);
        let mut events = vec![StandingEvent::PointsScored {
            bot,
            subject,
            turn,
            offences,
            before,
            after: ladder,
            rules: (track.rules.as_ref() != Some(&rules)).then_some(rules),
            policy_version,
            model_version,
            dry_run,
            scored_at: now,
        }];
        events.extend(match state {
            LadderState::Ok => None,
            LadderState::Warned => Some(StandingEvent::WarningIssued {
                bot,
                subject,
                turn,
                score,
                shown: !dry_run && self.warning_shown_at.is_none_or(|shown| now - shown >= WARNING_PAUSE),
                policy_version,
                dry_run,
                warned_at: now,
            }),
            LadderState::Throttled => Some(StandingEvent::Throttled {
                bot,
                subject,
                turn,
                score,
                policy_version,
                dry_run,
                throttled_at: now,
            }),
            LadderState::TempBlocked => Some(StandingEvent::TemporarilyBlocked {
                bot,
                subject,
                turn,
                score,
                n,
                until,
                policy_version,
                dry_run,
                blocked_at: now,
            }),
            LadderState::Blocked => Some(StandingEvent::Blocked {
                bot,
                subject,
                by: None,
                reason: None,
                until: None,
                cause: if severe { BlockCause::Severe } else { BlockCause::Score },
                turn: Some(turn),
                score: Some(score),
                policy_version: Some(policy_version),
                dry_run,
                blocked_at: now,
            }),
        });
        Ok(events)
    }

    fn file_appeal(
        &self,
        turn: TurnId,
        body: Option<BodyRef>,
        now: DateTime<Utc>,
    ) -> Result<Vec<StandingEvent>, StandingError> {
        if let Some(appeal) = &self.appeal {
            return if appeal.turn == turn { Ok(vec![]) } else { Err(StandingError::AppealOpen) };
        }
        let (against, cause) = match self.verdict_at(now) {
            Verdict::Clear => return Err(StandingError::NotRestricted),
            Verdict::Throttled => (LadderState::Throttled, None),
            Verdict::Blocked(Ban { cause: BlockCause::Score, until: Some(_), .. }) => {
                (LadderState::TempBlocked, Some(BlockCause::Score))
            }
            Verdict::Blocked(ban) => (LadderState::Blocked, Some(ban.cause)),
        };
        if let Some(from) = self.appealable_from.filter(|from| now < *from) {
            return Err(StandingError::AppealTooSoon { from });
        }
        let Some((bot, subject)) = self.who else { return Err(StandingError::NotRestricted) };
        Ok(vec![StandingEvent::AppealFiled { bot, subject, turn, body, against, cause, filed_at: now }])
    }

    /// The ladder in force after everything on it is forgiven.
    fn pardoned(&self, now: DateTime<Utc>) -> Ladder {
        let mut ladder = self.live.ladder.clone();
        ladder.pardon(&self.live.rules(), now.timestamp_millis());
        ladder
    }

    /// Whether the decision in question is the one that stands: then it is "already so".
    fn decided_last(&self, kind: DecisionKind) -> bool {
        self.last_decision.as_ref().is_some_and(|decision| decision.kind == kind)
    }

    fn situation(&self) -> Situation {
        Situation {
            block: self.block.clone(),
            ladder: self.live.ladder.clone(),
            block_cause: self.block_cause,
            forgiven_at: self.forgiven_at,
            appeal: self.appeal.clone(),
            appealable_from: self.appealable_from,
        }
    }

    /// What stands once a decision is taken back: what stood before it, and what happened since.
    fn without(&self, decision: &PastDecision, now: DateTime<Utc>) -> Situation {
        let mut situation = self.situation();
        let before = decision.before.clone();
        match decision.kind {
            DecisionKind::Block => situation.block = before.block,
            DecisionKind::DenyAppeal => {
                situation.appeal = before.appeal;
                situation.appealable_from = before.appealable_from;
            }
            DecisionKind::Unblock | DecisionKind::GrantAppeal => {
                situation.block = before.block;
                situation.appealable_from = before.appealable_from;
                situation.appeal = situation.appeal.or(before.appeal);
                if self.forgiven_at == Some(decision.decided_at) {
                    let (rules, t_ms) = (self.live.rules(), now.timestamp_millis());
                    situation.ladder = before.ladder.joined(situation.ladder, &rules, t_ms);
                    situation.block_cause = situation.block_cause.or(before.block_cause);
                    situation.forgiven_at = before.forgiven_at;
                }
            }
        }
        situation
    }

    /// Keeps what stood before a decision. The same event once more finds it kept.
    fn remember(&mut self, kind: DecisionKind, decided_at: DateTime<Utc>) {
        let known = self
            .last_decision
            .as_ref()
            .is_some_and(|decision| decision.kind == kind && decision.decided_at == decided_at);
        if !known {
            self.last_decision = Some(PastDecision { kind, decided_at, before: self.situation() });
        }
    }

    fn forgive(&mut self, ladder: Ladder, at: DateTime<Utc>) {
        self.live.ladder = ladder;
        self.block_cause = None;
        self.forgiven_at = Some(at);
    }

    fn record(&mut self, event: StandingEvent) {
        match event {
            StandingEvent::PointsScored {
                bot,
                subject,
                turn,
                offences,
                after,
                rules,
                policy_version,
                model_version,
                dry_run,
                scored_at,
                ..
            } => {
                self.who = Some((bot, subject));
                let track = if dry_run { &mut self.trial } else { &mut self.live };
                track.ladder = after;
                track.rules = rules.or(track.rules.take());
                track.policy_version = Some(policy_version);
                track.contributions.retain(|contribution| contribution.turn != turn);
                track.contributions.extend(offences.into_iter().filter(|offence| offence.points > 0).map(
                    |offence| Contribution {
                        turn,
                        scored_at,
                        offence,
                        policy_version,
                        model_version: model_version.clone(),
                    },
                ));
                let surplus = track.contributions.len().saturating_sub(REMEMBERED);
                track.contributions.drain(..surplus);
                track.model_version = Some(model_version);
                track.last_turn = Some(turn);
                if !dry_run {
                    // The trial is over, and the next one begins at zero.
                    self.trial = Track::default();
                }
            }
            StandingEvent::WarningIssued { shown, warned_at, .. } => {
                if shown {
                    self.warning_shown_at = Some(warned_at);
                }
            }
            StandingEvent::Throttled { .. } | StandingEvent::TemporarilyBlocked { .. } => {}
            StandingEvent::Blocked { bot, subject, reason, until, cause, dry_run, blocked_at, .. } => {
                self.who = Some((bot, subject));
                match (cause, reason) {
                    (BlockCause::Moderator, Some(reason)) => {
                        self.remember(DecisionKind::Block, blocked_at);
                        self.block = Some(Block { reason, until });
                    }
                    (cause, _) if !dry_run => self.block_cause = Some(cause),
                    _ => {}
                }
            }
            StandingEvent::Unblocked { ladder, unblocked_at, .. } => {
                self.remember(DecisionKind::Unblock, unblocked_at);
                self.block = None;
                self.appeal = None;
                self.appealable_from = None;
                if let Some(ladder) = ladder {
                    self.forgive(ladder, unblocked_at);
                }
            }
            StandingEvent::AppealFiled { turn, body, filed_at, .. } => {
                self.appeal = Some(Appeal { turn, body, filed_at });
            }
            StandingEvent::AppealGranted { ladder, granted_at, .. } => {
                self.remember(DecisionKind::GrantAppeal, granted_at);
                self.block = None;
                self.appeal = None;
                self.appealable_from = None;
                self.forgive(ladder, granted_at);
            }
            StandingEvent::AppealDenied { appealable_from, denied_at, .. } => {
                self.remember(DecisionKind::DenyAppeal, denied_at);
                self.appeal = None;
                self.appealable_from = Some(appealable_from);
            }
            StandingEvent::DecisionUndone { restored, .. } => {
                let Situation { block, ladder, block_cause, forgiven_at, appeal, appealable_from } = restored;
                self.block = block;
                self.live.ladder = ladder;
                self.block_cause = block_cause;
                self.forgiven_at = forgiven_at;
                self.appeal = appeal;
                self.appealable_from = appealable_from;
                self.last_decision = None;
            }
        }
    }
}

impl Offence {
    /// Puts the offence on a ladder.
    fn scored(self, ladder: &mut Ladder, rules: &LadderConfig, t_ms: i64) -> ScoredOffence {
        let Self { kind, oos_permille, intent, mut evidence } = self;
        let oos_permille = oos_permille.map(|permille| permille.min(1_000));
        evidence.truncate(KEPT);
        for found in &mut evidence {
            found.spans.truncate(KEPT);
        }
        let points = ladder.step(rules, t_ms, kind, oos_permille);
        ScoredOffence { kind, points, lane: rules.lane_of(kind), oos_permille, intent, evidence }
    }
}

impl Decide for Standing {
    fn decide(
        &self,
        command: StandingCommand,
        now: DateTime<Utc>,
    ) -> Result<Vec<StandingEvent>, StandingError> {
        match command {
            StandingCommand::Score(scoring) => self.score(*scoring, now),
            StandingCommand::Block { bot, subject, by, reason, until } => {
                if until.is_some_and(|until| until <= now) {
                    return Err(StandingError::EndsInThePast);
                }
                if until.is_some_and(|until| !is_writable(until)) {
                    return Err(StandingError::EndsTooLate);
                }
                if self.blocked_at(now).is_some_and(|block| block.reason == reason && block.until == until) {
                    return Ok(vec![]);
                }
                Ok(vec![StandingEvent::Blocked {
                    bot,
                    subject,
                    by: Some(by),
                    reason: Some(reason),
                    until,
                    cause: BlockCause::Moderator,
                    turn: None,
                    score: None,
                    policy_version: None,
                    dry_run: false,
                    blocked_at: now,
                }])
            }
            StandingCommand::Unblock { by, reason } => {
                let by_score = self.live.ladder_at(now).is_blocked();
                if self.blocked_at(now).is_none() && !by_score {
                    return Ok(vec![]);
                }
                let ladder = by_score.then(|| self.pardoned(now));
                Ok(vec![StandingEvent::Unblocked { by, reason, ladder, unblocked_at: now }])
            }
            StandingCommand::FileAppeal { turn, body } => self.file_appeal(turn, body, now),
            StandingCommand::GrantAppeal { by, reason } => match &self.appeal {
                None if self.decided_last(DecisionKind::GrantAppeal) => Ok(vec![]),
                None => Err(StandingError::NoAppeal),
                Some(_) => {
                    let ladder = self.pardoned(now);
                    Ok(vec![StandingEvent::AppealGranted { by, reason, ladder, granted_at: now }])
                }
            },
            StandingCommand::DenyAppeal { by, reason } => match &self.appeal {
                None if self.decided_last(DecisionKind::DenyAppeal) => Ok(vec![]),
                None => Err(StandingError::NoAppeal),
                Some(_) => {
                    let appealable_from = now + APPEAL_PAUSE;
                    Ok(vec![StandingEvent::AppealDenied { by, reason, appealable_from, denied_at: now }])
                }
            },
            StandingCommand::Undo { by, reason } => {
                let decision = self.last_decision.as_ref().ok_or(StandingError::NothingToUndo)?;
                Ok(vec![StandingEvent::DecisionUndone {
                    by,
                    reason,
                    decision: decision.kind,
                    decided_at: decision.decided_at,
                    restored: self.without(decision, now),
                    undone_at: now,
                }])
            }
        }
    }
}

aggregate!(Standing, "standing", StandingCommand, StandingEvent, StandingError);

#[cfg(test)]
mod tests;
