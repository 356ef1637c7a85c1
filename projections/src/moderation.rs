use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use botledger_domain::{
    RecordedEvent,
    standing::{BlockCause, Standing, StandingEvent, case_of, ladder::LadderState},
};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    Page, Projection, ProjectionError,
    fold::{Rows, read_row},
    select::select_page,
    turns::{count, decode_all},
};

read_row! {
    /// One message that moved a ladder, with what that rests on. Points are milli-points.
    ScoringRow in "scorings"
    key { created_position: i64 }
    values {
        standing_id: Uuid,
        bot_id: Uuid,
        subject: Uuid,
        turn_id: Uuid,
        /// As `OffenceKind`; none for a clean message.
        kinds: Vec<String>,
        /// What the offences added.
        points: i64,
        /// A list of `ScoredOffence`.
        offences: serde_json::Value,
        /// As `LadderState`, just before the message.
        state_before: String,
        drift_before: i64,
        violation_before: i64,
        state_after: String,
        drift_after: i64,
        violation_after: i64,
        policy_version: i32,
        /// Hash of the model; empty when none took part.
        model_version: String,
        /// Whether the policy was on trial.
        dry_run: bool,
        scored_at: DateTime<Utc>,
    }
}

read_row! {
    /// Something a human may have to decide about a person's standing.
    CaseRow in "moderation_cases"
    key { case_id: Uuid }
    values {
        standing_id: Uuid,
        bot_id: Uuid,
        subject: Uuid,
        /// `appeal`, `severe_block`, `block`, `temp_block`.
        kind: String,
        /// `open`, `decided`, or `undone`: its decision was taken back and another is due.
        status: String,
        /// The message: of the appeal, or that led to the block.
        turn_id: Uuid,
        /// What an appeal says, in `message_bodies`.
        appeal_body: Option<Uuid>,
        /// As `LadderState`: what an appeal is against, what a block is.
        against: String,
        /// As `BlockCause`, of what an appeal is against.
        cause: Option<String>,
        /// Score that led to a block, milli-points.
        score: Option<i64>,
        /// When a block for a while ends, and the case with it.
        until: Option<DateTime<Utc>>,
        policy_version: Option<i32>,
        /// `granted`, `denied`, `lifted`, `upheld`; stays when it is undone.
        decision: Option<String>,
        /// Operator who decided or took the decision back.
        decided_by: Option<Uuid>,
        decided_at: Option<DateTime<Utc>>,
        /// Theirs.
        reason: Option<String>,
        opened_at: DateTime<Utc>,
        created_position: i64,
        updated_position: i64,
    }
}

/// One row a scoring and one a case. Reads `standing` events; owns `scorings` and `moderation_cases`.
pub struct ModerationProjection;

#[async_trait]
impl Projection for ModerationProjection {
    fn name(&self) -> &'static str {
        "moderation"
    }

    fn tables(&self) -> &'static [&'static str] {
        &["scorings", "moderation_cases"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        let facts = decode_all::<Standing>(page)?;
        let decided: BTreeSet<Uuid> =
            facts.iter().filter(|(_, _, fact)| Verdict::of(fact).is_some()).map(|(_, id, _)| *id).collect();
        let known: Vec<Uuid> = if decided.is_empty() {
            Vec::new()
        } else {
            sqlx::query_scalar("SELECT case_id FROM moderation_cases WHERE standing_id = ANY($1)")
                .bind(decided.into_iter().collect::<Vec<_>>())
                .fetch_all(&mut *tx)
                .await?
        };
        let mut cases = Rows::<CaseRow>::fetch(tx, known.into_iter().map(|id| (id,))).await?;
        let mut scorings = Rows::<ScoringRow>::fetch(tx, []).await?;
        for (recorded, id, fact) in facts {
            let position = recorded.position.0;
            if let Some(verdict) = Verdict::of(&fact) {
                cases
                    .values_mut()
                    .filter(|case| case.standing_id == id)
                    .for_each(|case| verdict.close(case, position));
            }
            if let Some(case) = opened(recorded, id, &fact) {
                cases.insert(case);
            }
            if let Some(scoring) = scored(position, id, fact) {
                scorings.insert(scoring);
            }
        }
        scorings.store(tx).await?;
        Ok(cases.store(tx).await?)
    }
}

fn scored(position: i64, standing_id: Uuid, fact: StandingEvent) -> Option<ScoringRow> {
    let StandingEvent::PointsScored {
        bot,
        subject,
        turn,
        offences,
        before,
        after,
        policy_version,
        model_version,
        dry_run,
        scored_at,
        ..
    } = fact
    else {
        return None;
    };
    Some(ScoringRow {
        created_position: position,
        standing_id,
        bot_id: bot.uuid(),
        subject: subject.uuid(),
        turn_id: turn.uuid(),
        kinds: offences.iter().map(|offence| offence.kind.as_ref().to_owned()).collect(),
        points: count(offences.iter().fold(0, |sum, offence| sum.saturating_add(offence.points))),
        offences: serde_json::to_value(offences).unwrap_or_default(),
        state_before: before.state.as_ref().to_owned(),
        drift_before: count(before.drift),
        violation_before: count(before.violation),
        state_after: after.state.as_ref().to_owned(),
        drift_after: count(after.drift),
        violation_after: count(after.violation),
        policy_version: i32::try_from(policy_version).unwrap_or(i32::MAX),
        model_version,
        dry_run,
        scored_at,
    })
}

fn opened(recorded: &RecordedEvent, standing_id: Uuid, fact: &StandingEvent) -> Option<CaseRow> {
    let position = recorded.position.0;
    let case = |kind: &str, bot: Uuid, subject: Uuid, turn: Uuid, against: LadderState, at| CaseRow {
        case_id: case_of(standing_id, recorded.sequence),
        standing_id,
        bot_id: bot,
        subject,
        kind: kind.to_owned(),
        status: "open".to_owned(),
        turn_id: turn,
        appeal_body: None,
        against: against.as_ref().to_owned(),
        cause: None,
        score: None,
        until: None,
        policy_version: None,
        decision: None,
        decided_by: None,
        decided_at: None,
        reason: None,
        opened_at: at,
        created_position: position,
        updated_position: position,
    };
    match fact {
        StandingEvent::AppealFiled { bot, subject, turn, body, against, cause, filed_at } => Some(CaseRow {
            appeal_body: body.as_ref().map(|body| body.body_id.uuid()),
            cause: cause.map(|cause| cause.as_ref().to_owned()),
            ..case("appeal", bot.uuid(), subject.uuid(), turn.uuid(), *against, *filed_at)
        }),
        StandingEvent::TemporarilyBlocked {
            bot,
            subject,
            turn,
            score,
            until,
            policy_version,
            dry_run: false,
            blocked_at,
            ..
        } => Some(CaseRow {
            cause: Some(BlockCause::Score.as_ref().to_owned()),
            score: Some(count(*score)),
            until: Some(*until),
            policy_version: i32::try_from(*policy_version).ok(),
            ..case(
                "temp_block",
                bot.uuid(),
                subject.uuid(),
                turn.uuid(),
                LadderState::TempBlocked,
                *blocked_at,
            )
        }),
        StandingEvent::Blocked {
            bot,
            subject,
            cause,
            turn: Some(turn),
            score,
            policy_version,
            dry_run: false,
            blocked_at,
            ..
        } => {
            let kind = if *cause == BlockCause::Severe { "severe_block" } else { "block" };
            Some(CaseRow {
                cause: Some(cause.as_ref().to_owned()),
                score: score.map(count),
                policy_version: policy_version.and_then(|version| i32::try_from(version).ok()),
                ..case(kind, bot.uuid(), subject.uuid(), turn.uuid(), LadderState::Blocked, *blocked_at)
            })
        }
        _ => None,
    }
}

/// What a moderator's decision means for the cases of a standing.
struct Verdict<'a> {
    /// For an appeal; absent where it leaves appeals open.
    appeal: Option<&'static str>,
    /// For a block.
    block: Option<&'static str>,
    /// The decision that was taken back, by its moment.
    undoes: Option<DateTime<Utc>>,
    by: Option<Uuid>,
    at: DateTime<Utc>,
    reason: Option<&'a str>,
}

impl<'a> Verdict<'a> {
    fn of(fact: &'a StandingEvent) -> Option<Self> {
        let verdict = |appeal, block, by: Option<Uuid>, at, reason: Option<&'a str>| {
            Some(Self { appeal, block, undoes: None, by, at, reason })
        };
        match fact {
            StandingEvent::Blocked { cause: BlockCause::Moderator, by, reason, blocked_at, .. } => {
                let reason = reason.as_ref().map(|reason| reason.as_str());
                verdict(None, Some("upheld"), by.map(|by| by.uuid()), *blocked_at, reason)
            }
            StandingEvent::Unblocked { by, reason, unblocked_at, .. } => verdict(
                Some("granted"),
                Some("lifted"),
                Some(by.uuid()),
                *unblocked_at,
                Some(reason.as_str()),
            ),
            StandingEvent::AppealGranted { by, reason, granted_at, .. } => {
                let reason = reason.as_ref().map(|reason| reason.as_str());
                verdict(Some("granted"), Some("lifted"), Some(by.uuid()), *granted_at, reason)
            }
            StandingEvent::AppealDenied { by, reason, denied_at, .. } => {
                verdict(Some("denied"), Some("upheld"), Some(by.uuid()), *denied_at, Some(reason.as_str()))
            }
            StandingEvent::DecisionUndone { by, reason, decided_at, undone_at, .. } => Some(Self {
                appeal: None,
                block: None,
                undoes: Some(*decided_at),
                by: Some(by.uuid()),
                at: *undone_at,
                reason: Some(reason.as_str()),
            }),
            _ => None,
        }
    }

    fn close(&self, case: &mut CaseRow, position: i64) {
        let waiting = case.status != "decided" && case.until.is_none_or(|until| self.at < until);
        let decision = if case.kind == "appeal" { self.appeal } else { self.block };
        let status = match (self.undoes, decision) {
            (Some(decision), _) if case.status == "decided" && is_moment(case.decided_at, decision) => {
                "undone"
            }
            (None, Some(decision)) if waiting => {
                case.decision = Some(decision.to_owned());
                "decided"
            }
            _ => return,
        };
        case.status = status.to_owned();
        (case.decided_by, case.decided_at) = (self.by, Some(self.at));
        case.reason = self.reason.map(str::to_owned);
        case.updated_position = position;
    }
}

/// Whether a stored moment is that of an event: the database rounds to whole microseconds.
fn is_moment(stored: Option<DateTime<Utc>>, of_event: DateTime<Utc>) -> bool {
    stored.is_some_and(|stored| (stored - of_event).abs() <= TimeDelta::microseconds(1))
}

/// Which scorings; everything given must hold.
#[derive(Clone, Debug, Default)]
pub struct ScoringFilter {
    pub standing: Option<Uuid>,
    pub turn: Option<Uuid>,
    /// Only those with offences, or only clean messages.
    pub offending: Option<bool>,
    /// Only on trial, or only in force.
    pub dry_run: Option<bool>,
}

/// A page of scorings.
///
/// # Errors
/// When the database fails.
pub async fn scorings_page(
    pool: &PgPool,
    filter: &ScoringFilter,
    page: Page,
) -> Result<Vec<ScoringRow>, sqlx::Error> {
    select_page(pool, "scorings", page, |query| {
        for (column, id) in [("standing_id", filter.standing), ("turn_id", filter.turn)] {
            if let Some(id) = id {
                query.push(" AND ").push(column).push(" = ").push_bind(id);
            }
        }
        if let Some(offending) = filter.offending {
            query.push(" AND (cardinality(kinds) > 0) = ").push_bind(offending);
        }
        if let Some(dry_run) = filter.dry_run {
            query.push(" AND dry_run = ").push_bind(dry_run);
        }
    })
    .await
}

/// Which cases; everything given must hold.
#[derive(Clone, Debug)]
pub struct CaseFilter {
    /// With these bots.
    pub bots: Vec<Uuid>,
    /// Of this person.
    pub subject: Option<Uuid>,
    /// Any of these.
    pub kinds: Option<Vec<String>>,
    /// Any of these; besides those stored, `lapsed`: its block ended before anybody decided.
    pub statuses: Option<Vec<String>>,
    /// The moment that tells what has lapsed.
    pub now: DateTime<Utc>,
}

impl CaseRow {
    /// Its status at a moment: a case about a block for a while ends with the block.
    #[must_use]
    pub fn status_at(&self, now: DateTime<Utc>) -> &str {
        if self.status != "decided" && self.until.is_some_and(|until| until <= now) {
            "lapsed"
        } else {
            &self.status
        }
    }
}

/// A page of cases.
///
/// # Errors
/// When the database fails.
pub async fn cases_page(pool: &PgPool, filter: &CaseFilter, page: Page) -> Result<Vec<CaseRow>, sqlx::Error> {
    select_page(pool, "moderation_cases", page, |query| {
        query.push(" AND bot_id = ANY(").push_bind(filter.bots.clone()).push(")");
        if let Some(subject) = filter.subject {
            query.push(" AND subject = ").push_bind(subject);
        }
        if let Some(kinds) = &filter.kinds {
            query.push(" AND kind = ANY(").push_bind(kinds.clone()).push(")");
        }
        if let Some(statuses) = &filter.statuses {
            query
                .push(" AND CASE WHEN status <> 'decided' AND until <= ")
                .push_bind(filter.now)
                .push(" THEN 'lapsed' ELSE status END = ANY(")
                .push_bind(statuses.clone())
                .push(")");
        }
    })
    .await
}

/// One case.
///
/// # Errors
/// When the database fails.
pub async fn case(pool: &PgPool, id: Uuid) -> Result<Option<CaseRow>, sqlx::Error> {
    sqlx::query_as!(CaseRow, "SELECT * FROM moderation_cases WHERE case_id = $1", id)
        .fetch_optional(pool)
        .await
}
