use std::sync::Arc;

use async_trait::async_trait;
use botledger_domain::{
    BotId, RecordedEvent, SubjectId,
    standing::{BlockCause, Situation, Standing, StandingEvent, ladder::Ladder},
    standing_stream,
};
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    Page, Projection, ProjectionError,
    fold::{Rows, read_row},
    select::select_page,
    turns::{count, decode_all},
};

read_row! {
    /// A person's standing with a bot as of its last event: blocks may have run out and points may have
    /// faded since. Points are milli-points.
    StandingRow in "standings"
    key { standing_id: Uuid }
    values {
        bot_id: Uuid,
        subject: Uuid,
        /// Whether a moderator's block stands.
        blocked: bool,
        /// The moderator's words when they last blocked or let in; empty before.
        reason: String,
        /// End of the moderator's block, if it has one.
        blocked_until: Option<DateTime<Utc>>,
        /// Operator who decided last; absent while none has.
        changed_by: Option<Uuid>,
        /// When its last event happened.
        changed_at: DateTime<Utc>,
        created_position: i64,
        updated_position: i64,
        /// As `LadderState`.
        ladder_state: String,
        drift: i64,
        violation: i64,
        /// End of the ladder's block for a while, where it stands at one.
        ladder_until: Option<DateTime<Utc>>,
        /// As `BlockCause`, where the ladder stands at a block without end.
        block_cause: Option<String>,
        /// As `LadderState`, on the ladder of a policy on trial.
        trial_state: String,
        /// Score on that ladder.
        trial_score: i64,
        /// Warnings so far.
        warnings: i64,
        /// Blocks for a while so far.
        temp_blocks: i64,
        /// Of the last scoring.
        policy_version: Option<i32>,
        model_version: Option<String>,
        scored_at: Option<DateTime<Utc>>,
        /// The message of the appeal that waits.
        appeal_turn: Option<Uuid>,
        appealed_at: Option<DateTime<Utc>>,
        /// No appeal may be filed before.
        appealable_from: Option<DateTime<Utc>>,
    }
}

impl StandingRow {
    fn new(id: Uuid, bot: BotId, subject: SubjectId, position: i64, at: DateTime<Utc>) -> Self {
        let ladder = Ladder::default();
        Self {
            standing_id: id,
            bot_id: bot.uuid(),
            subject: subject.uuid(),
            blocked: false,
            reason: String::new(),
            blocked_until: None,
            changed_by: None,
            changed_at: at,
            created_position: position,
            updated_position: position,
            ladder_state: ladder.state.as_ref().to_owned(),
            drift: 0,
            violation: 0,
            ladder_until: None,
            block_cause: None,
            trial_state: ladder.state.as_ref().to_owned(),
            trial_score: 0,
            warnings: 0,
            temp_blocks: 0,
            policy_version: None,
            model_version: None,
            scored_at: None,
            appeal_turn: None,
            appealed_at: None,
            appealable_from: None,
        }
    }

    fn stand_at(&mut self, ladder: &Ladder) {
        self.ladder_state = ladder.state.as_ref().to_owned();
        (self.drift, self.violation) = (count(ladder.drift), count(ladder.violation));
        self.ladder_until = None;
        self.block_cause = None;
    }

    fn close_appeal(&mut self) {
        (self.appeal_turn, self.appealed_at) = (None, None);
    }

    fn apply(&mut self, fact: StandingEvent) {
        match fact {
            StandingEvent::PointsScored {
                after, policy_version, model_version, dry_run, scored_at, ..
            } => {
                self.changed_at = scored_at;
                if dry_run {
                    self.trial_state = after.state.as_ref().to_owned();
                    self.trial_score = count(after.score());
                    return;
                }
                self.stand_at(&after);
                self.policy_version = i32::try_from(policy_version).ok();
                self.model_version = Some(model_version);
                self.scored_at = Some(scored_at);
                // The trial is over, and the next one begins at zero.
                self.trial_state = Ladder::default().state.as_ref().to_owned();
                self.trial_score = 0;
            }
            StandingEvent::WarningIssued { dry_run, .. } => self.warnings += i64::from(!dry_run),
            StandingEvent::Throttled { .. } => {}
            StandingEvent::TemporarilyBlocked { until, dry_run, .. } => {
                if !dry_run {
                    self.temp_blocks += 1;
                    self.ladder_until = Some(until);
                }
            }
            StandingEvent::Blocked {
                by, reason, until, cause: BlockCause::Moderator, blocked_at, ..
            } => {
                self.blocked = true;
                self.reason = reason.map(String::from).unwrap_or_default();
                self.blocked_until = until;
                self.changed_by = by.map(|by| by.uuid());
                self.changed_at = blocked_at;
            }
            StandingEvent::Blocked { cause, dry_run, .. } => {
                if !dry_run {
                    self.block_cause = Some(cause.as_ref().to_owned());
                }
            }
            StandingEvent::Unblocked { by, reason, ladder, unblocked_at } => {
                self.blocked = false;
                self.reason = reason.into();
                self.blocked_until = None;
                self.close_appeal();
                self.appealable_from = None;
                if let Some(ladder) = ladder {
                    self.stand_at(&ladder);
                }
                (self.changed_by, self.changed_at) = (Some(by.uuid()), unblocked_at);
            }
            StandingEvent::AppealFiled { turn, filed_at, .. } => {
                (self.appeal_turn, self.appealed_at) = (Some(turn.uuid()), Some(filed_at));
                self.changed_at = filed_at;
            }
            StandingEvent::AppealGranted { by, reason, ladder, granted_at } => {
                self.blocked = false;
                self.reason = reason.map(String::from).unwrap_or_default();
                self.blocked_until = None;
                self.close_appeal();
                self.appealable_from = None;
                self.stand_at(&ladder);
                (self.changed_by, self.changed_at) = (Some(by.uuid()), granted_at);
            }
            StandingEvent::AppealDenied { by, appealable_from, denied_at, .. } => {
                self.close_appeal();
                self.appealable_from = Some(appealable_from);
                (self.changed_by, self.changed_at) = (Some(by.uuid()), denied_at);
            }
            StandingEvent::DecisionUndone { by, restored, undone_at, .. } => {
                self.restore(restored);
                (self.changed_by, self.changed_at) = (Some(by.uuid()), undone_at);
            }
        }
    }

    fn restore(&mut self, restored: Situation) {
        let Situation { block, ladder, block_cause, appeal, appealable_from, .. } = restored;
        self.blocked = block.is_some();
        self.blocked_until = block.as_ref().and_then(|block| block.until);
        self.reason = block.map(|block| block.reason.into()).unwrap_or_default();
        self.stand_at(&ladder);
        self.ladder_until = ladder.block_end();
        self.block_cause = block_cause.map(|cause| cause.as_ref().to_owned());
        self.appealed_at = appeal.as_ref().map(|appeal| appeal.filed_at);
        self.appeal_turn = appeal.map(|appeal| appeal.turn.uuid());
        self.appealable_from = appealable_from;
    }
}

/// One row a person and bot. Reads `standing` events; owns `standings`.
pub struct StandingsProjection;

#[async_trait]
impl Projection for StandingsProjection {
    fn name(&self) -> &'static str {
        "standings"
    }

    fn tables(&self) -> &'static [&'static str] {
        &["standings"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        let facts = decode_all::<Standing>(page)?;
        let mut rows = Rows::<StandingRow>::fetch(tx, facts.iter().map(|(_, id, _)| (*id,))).await?;
        for (recorded, id, fact) in facts {
            let position = recorded.position;
            let row = match &fact {
                StandingEvent::PointsScored { bot, subject, scored_at: at, .. }
                | StandingEvent::Blocked { bot, subject, blocked_at: at, .. } => {
                    rows.get_or_insert((id,), || StandingRow::new(id, *bot, *subject, position.0, *at))
                }
                _ => rows.get_mut(&(id,)).ok_or(ProjectionError::Inconsistent {
                    position,
                    problem: "nothing restricted this person before",
                })?,
            };
            row.updated_position = position.0;
            row.apply(fact);
        }
        Ok(rows.store(tx).await?)
    }
}

/// A person's standing with a bot; absent when nothing was ever scored or decided.
///
/// # Errors
/// When the database fails.
pub async fn standing(
    pool: &PgPool,
    bot: BotId,
    subject: SubjectId,
) -> Result<Option<StandingRow>, sqlx::Error> {
    standing_by_id(pool, standing_stream(bot, subject)).await
}

/// The same by the id of its stream.
///
/// # Errors
/// When the database fails.
pub async fn standing_by_id(pool: &PgPool, id: Uuid) -> Result<Option<StandingRow>, sqlx::Error> {
    sqlx::query_as!(StandingRow, "SELECT * FROM standings WHERE standing_id = $1", id)
        .fetch_optional(pool)
        .await
}

/// Which standings; all as of their last events.
#[derive(Clone, Debug, Default)]
pub struct StandingFilter {
    /// With these bots.
    pub bots: Vec<Uuid>,
    /// Of this person.
    pub subject: Option<Uuid>,
    /// Blocked or not, by a moderator or the score.
    pub blocked: Option<bool>,
    /// Any of these states, as `LadderState`; a moderator's block makes a person `blocked`.
    pub states: Option<Vec<String>>,
    /// Whether an appeal waits.
    pub appealing: Option<bool>,
}

/// Standings with some bots.
///
/// # Errors
/// When the database fails.
pub async fn standings_page(
    pool: &PgPool,
    filter: &StandingFilter,
    page: Page,
) -> Result<Vec<StandingRow>, sqlx::Error> {
    select_page(pool, "standings", page, |query| {
        query.push(" AND bot_id = ANY(").push_bind(filter.bots.clone()).push(")");
        if let Some(subject) = filter.subject {
            query.push(" AND subject = ").push_bind(subject);
        }
        if let Some(blocked) = filter.blocked {
            query.push(" AND (blocked OR ladder_state IN ('temp_blocked', 'blocked')) = ").push_bind(blocked);
        }
        if let Some(states) = &filter.states {
            query
                .push(" AND CASE WHEN blocked THEN 'blocked' ELSE ladder_state END = ANY(")
                .push_bind(states.clone())
                .push(")");
        }
        if let Some(appealing) = filter.appealing {
            query.push(" AND (appeal_turn IS NOT NULL) = ").push_bind(appealing);
        }
    })
    .await
}
