use std::sync::Arc;

use async_trait::async_trait;
use botledger_domain::{
    BotId, ConversationId, Decide, Position, RecordedEvent, TurnId,
    turn::{Ask, Lane, ReplySource, Turn, TurnEvent, TurnPhase},
};
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    Page, Projection, ProjectionError,
    fold::{Rows, read_row},
    select::{push_page, select_page},
    usage::UsageDeltas,
};

read_row! {
    /// One message and what became of it. Updates that need no answer are in the event log only.
    TurnRow in "turns"
    key { turn_id: Uuid }
    values {
        workspace: Uuid,
        bot_id: Uuid,
        subject: Uuid,
        conversation: Uuid,
        update_id: i64,
        /// `private`, `group`, `supergroup`, `channel`.
        chat_kind: String,
        /// `text`, `command`, `unsupported`, `callback`.
        ask: String,
        /// Name of the command without slash.
        command: Option<String>,
        /// `high` or `normal`.
        lane: String,
        /// `en` or `ru`.
        language: String,
        /// As `TurnPhase`.
        phase: String,
        /// Whether something is still to be done.
        open: bool,
        session: Option<i32>,
        prompt_body: Uuid,
        reply_body: Option<Uuid>,
        /// As `RefusalReason`'s kind.
        refusal_kind: Option<String>,
        /// As `RefusalReason`.
        refusal: Option<serde_json::Value>,
        /// Code of the failure.
        failure: Option<String>,
        /// As `PolicyOwner`: whose policy judged it. Absent, like all of the findings, when nothing looked
        /// at it.
        policy_owner: Option<String>,
        /// Version of that policy; 0 for the built-in one.
        policy_version: Option<i64>,
        /// Whether that policy only watched.
        policy_dry_run: Option<bool>,
        /// As `Findings`.
        findings: Option<serde_json::Value>,
        /// Probability, in thousandths, that it fits none of the policy's intents.
        oos_permille: Option<i32>,
        /// The intent it came nearest to.
        intent: Option<String>,
        /// Detectors that saw something, each once, in order.
        flagged: Vec<String>,
        scored_at: Option<DateTime<Utc>>,
        provider: Option<String>,
        model: Option<String>,
        reserved_tokens: Option<i64>,
        prompt_tokens: Option<i64>,
        completion_tokens: Option<i64>,
        estimated: Option<bool>,
        /// `stop`, `length`, `cancelled`.
        finish: Option<String>,
        /// From asking the model to its last text, milliseconds.
        latency_ms: Option<i64>,
        /// Telegram's ids of the delivered messages.
        message_ids: Vec<i64>,
        sent_at: DateTime<Utc>,
        received_at: DateTime<Utc>,
        decided_at: Option<DateTime<Utc>>,
        answered_at: Option<DateTime<Utc>>,
        ended_at: Option<DateTime<Utc>>,
        created_position: i64,
        updated_position: i64,
    }
}

/// An event as it was decided, with where it stands and the id of its stream.
pub(crate) type Fact<'a, E> = (&'a RecordedEvent, Uuid, E);

/// The events of one aggregate type in a page.
pub(crate) fn decode_all<A: Decide>(
    page: &[Arc<RecordedEvent>],
) -> Result<Vec<Fact<'_, A::Event>>, ProjectionError> {
    page.iter()
        .filter(|recorded| recorded.aggregate_type == A::TYPE)
        .filter_map(|recorded| {
            let decoded = recorded.decode::<A>().transpose()?;
            let id = Uuid::try_parse(&recorded.aggregate_id).map_err(|_| ProjectionError::Inconsistent {
                position: recorded.position,
                problem: "its stream id is no UUID",
            });
            Some(decoded.map_err(ProjectionError::from).and_then(|event| Ok((recorded.as_ref(), id?, event))))
        })
        .collect()
}

pub(crate) fn count(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

/// One row a message, and sums of them by minute, hour and day. Reads `turn` events; owns `turns`
/// and the usage tables.
pub struct TurnsProjection;

#[async_trait]
impl Projection for TurnsProjection {
    fn name(&self) -> &'static str {
        "turns"
    }

    fn tables(&self) -> &'static [&'static str] {
        &["turns", "usage_minute", "usage_hour", "usage_day"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        let facts = decode_all::<Turn>(page)?;
        let mut rows = Rows::<TurnRow>::fetch(tx, facts.iter().map(|(_, id, _)| (*id,))).await?;
        let mut usage = UsageDeltas::default();
        for (recorded, id, fact) in facts {
            let position = recorded.position;
            match fact {
                TurnEvent::UpdateRecorded { .. } | TurnEvent::UpdateUnreadable { .. } => {}
                TurnEvent::MessageReceived { message, received_at } => {
                    let row = received(id, message, received_at, position);
                    usage.at(received_at, &row).messages += 1;
                    rows.insert(row);
                }
                later => {
                    let row = rows.get_mut(&(id,)).ok_or(ProjectionError::Inconsistent {
                        position,
                        problem: "its message was never received",
                    })?;
                    row.updated_position = position.0;
                    advance(row, later, &mut usage);
                }
            }
        }
        rows.store(tx).await?;
        Ok(usage.store(tx).await?)
    }
}

fn received(
    turn_id: Uuid,
    message: botledger_domain::turn::Message,
    received_at: DateTime<Utc>,
    position: Position,
) -> TurnRow {
    let (ask, command) = match message.ask {
        Ask::Text => ("text", None),
        Ask::Command { name } => ("command", Some(name)),
        Ask::Unsupported { .. } => ("unsupported", None),
        Ask::Callback => ("callback", None),
    };
    TurnRow {
        turn_id,
        workspace: message.workspace.uuid(),
        bot_id: message.bot.uuid(),
        subject: message.subject.uuid(),
        conversation: message.conversation.uuid(),
        update_id: message.update_id,
        chat_kind: message.chat_kind.as_ref().to_owned(),
        ask: ask.to_owned(),
        command,
        lane: message.lane.as_ref().to_owned(),
        language: message.language.as_ref().to_owned(),
        phase: TurnPhase::Received.as_ref().to_owned(),
        open: true,
        session: None,
        prompt_body: message.body.body_id.uuid(),
        reply_body: None,
        refusal_kind: None,
        refusal: None,
        failure: None,
        policy_owner: None,
        policy_version: None,
        policy_dry_run: None,
        findings: None,
        oos_permille: None,
        intent: None,
        flagged: Vec::new(),
        scored_at: None,
        provider: None,
        model: None,
        reserved_tokens: None,
        prompt_tokens: None,
        completion_tokens: None,
        estimated: None,
        finish: None,
        latency_ms: None,
        message_ids: Vec::new(),
        sent_at: message.sent_at,
        received_at,
        decided_at: None,
        answered_at: None,
        ended_at: None,
        created_position: position.0,
        updated_position: position.0,
    }
}

fn enter(row: &mut TurnRow, phase: TurnPhase, at: DateTime<Utc>) {
    row.phase = phase.as_ref().to_owned();
    row.open = phase.is_open();
    if !row.open {
        row.ended_at = Some(at);
    }
}

fn advance(row: &mut TurnRow, fact: TurnEvent, usage: &mut UsageDeltas) {
    match fact {
        TurnEvent::MessageReceived { .. }
        | TurnEvent::UpdateRecorded { .. }
        | TurnEvent::UpdateUnreadable { .. }
        | TurnEvent::ReplyStarted { .. } => {}
        TurnEvent::MessageScored { policy, findings, scored_at } => {
            row.policy_owner = Some(policy.owner.as_ref().to_owned());
            row.policy_version = Some(policy.version.into());
            row.policy_dry_run = Some(policy.dry_run);
            row.findings = serde_json::to_value(&findings).ok();
            row.flagged = findings.detectors().iter().map(|one| one.as_ref().to_owned()).collect();
            if let Some(found) = findings.intent {
                row.oos_permille = Some(found.oos_permille.into());
                row.intent = Some(found.intent);
            }
            row.scored_at = Some(scored_at);
        }
        TurnEvent::TurnAdmitted { admission, admitted_at } => {
            row.session = i32::try_from(admission.session).ok();
            row.provider = Some(admission.provider);
            row.model = Some(admission.model.into());
            row.reserved_tokens = Some(count(admission.reserved_tokens));
            row.decided_at = Some(admitted_at);
            enter(row, TurnPhase::Admitted, admitted_at);
            usage.at(admitted_at, row).admitted += 1;
        }
        TurnEvent::MessageRefused { reason, notify, refused_at, .. } => {
            row.refusal_kind = Some(<&'static str>::from(&reason).to_owned());
            row.refusal = serde_json::to_value(&reason).ok();
            row.decided_at = Some(refused_at);
            enter(row, if notify { TurnPhase::RefusalPending } else { TurnPhase::Refused }, refused_at);
            usage.at(refused_at, row).refused += 1;
        }
        TurnEvent::ReplyGenerated { source, body, latency_ms, generated_at, .. } => {
            row.reply_body = Some(body.body_id.uuid());
            row.answered_at = Some(generated_at);
            enter(row, TurnPhase::Answered, generated_at);
            match source {
                ReplySource::Platform => row.decided_at = Some(generated_at),
                ReplySource::Model {
                    provider,
                    model,
                    prompt_tokens,
                    completion_tokens,
                    estimated,
                    finish,
                    ..
                } => {
                    row.latency_ms = Some(count(latency_ms));
                    row.provider = Some(provider);
                    row.model = Some(model.into());
                    row.prompt_tokens = Some(count(prompt_tokens));
                    row.completion_tokens = Some(count(completion_tokens));
                    row.estimated = Some(estimated);
                    row.finish = Some(finish);
                    let sums = usage.at(generated_at, row);
                    sums.prompt_tokens += count(prompt_tokens);
                    sums.completion_tokens += count(completion_tokens);
                    sums.latency_ms_sum += count(latency_ms);
                }
            }
            usage.at(generated_at, row).answered += 1;
        }
        TurnEvent::ReplyFailed { code, failed_at, .. } => {
            row.failure = Some(code);
            enter(row, TurnPhase::FailurePending, failed_at);
            usage.at(failed_at, row).failed += 1;
        }
        TurnEvent::ReplyDelivered { message_ids, delivered_at } => {
            row.message_ids = message_ids;
            let phase = if row.refusal.is_some() {
                TurnPhase::Refused
            } else if row.failure.is_some() {
                TurnPhase::Failed
            } else {
                TurnPhase::Delivered
            };
            enter(row, phase, delivered_at);
            usage.at(delivered_at, row).delivered += 1;
        }
        TurnEvent::ReplyUndeliverable { given_up_at, .. } => {
            enter(row, TurnPhase::Undeliverable, given_up_at);
            usage.at(given_up_at, row).undeliverable += 1;
        }
        TurnEvent::ReplyOutcomeUnknown { lost_at, .. } => {
            enter(row, TurnPhase::OutcomeUnknown, lost_at);
            usage.at(lost_at, row).outcome_unknown += 1;
        }
    }
}

/// A turn that waits for something, as recovery needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTurn {
    /// Which.
    pub turn: TurnId,
    /// Its bot.
    pub bot: BotId,
    /// Its place in line.
    pub conversation: ConversationId,
    /// Its queue.
    pub lane: Lane,
    /// Its message's position: order within a conversation.
    pub position: Position,
}

/// Turns of a bot that wait for something, oldest first, after a position.
///
/// # Errors
/// When the database fails.
pub async fn open_turns(
    pool: &PgPool,
    bot: BotId,
    after: Position,
    limit: i64,
) -> Result<Vec<OpenTurn>, sqlx::Error> {
    let rows = sqlx::query!(
        "SELECT turn_id, conversation, lane, created_position FROM turns
         WHERE bot_id = $1 AND open AND created_position > $2 ORDER BY created_position LIMIT $3",
        bot.uuid(),
        after.0,
        limit,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| OpenTurn {
            turn: TurnId(row.turn_id),
            bot,
            conversation: ConversationId(row.conversation),
            lane: row.lane.parse().unwrap_or_default(),
            position: Position(row.created_position),
        })
        .collect())
}

/// An open turn of a bot that is not meant to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrandedTurn {
    /// Which.
    pub turn: TurnId,
    /// Its bot.
    pub bot: BotId,
}

/// Turns that nobody will work on and that stand in somebody's way, oldest first: admitted ones of
/// bots that are not running, for they hold tokens, and all open ones of archived bots. Those of a
/// bot that somebody still holds are left to them, unless nothing was heard of it since `forgotten`.
///
/// # Errors
/// When the database fails.
pub async fn stranded_turns(
    pool: &PgPool,
    forgotten: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<StrandedTurn>, sqlx::Error> {
    let rows = sqlx::query!(
        "SELECT t.turn_id, t.bot_id FROM bots b JOIN turns t ON t.bot_id = b.bot_id
         WHERE b.status <> 'running' AND (b.holder IS NULL OR b.changed_at < $1)
           AND t.open AND (t.phase = 'admitted' OR b.status = 'archived')
         ORDER BY t.created_position LIMIT $2",
        forgotten,
        limit,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| StrandedTurn { turn: TurnId(row.turn_id), bot: BotId(row.bot_id) })
        .collect())
}

/// Which turns; everything given must hold.
#[derive(Clone, Debug, Default)]
pub struct TurnFilter {
    pub workspace: Option<Uuid>,
    pub bot: Option<Uuid>,
    pub subject: Option<Uuid>,
    pub conversation: Option<Uuid>,
    /// Any of these phases.
    pub phases: Option<Vec<String>>,
    /// Any of these refusals.
    pub refusal_kinds: Option<Vec<String>>,
    pub open: Option<bool>,
    /// Any of these detectors saw something.
    pub flagged: Option<Vec<String>>,
    /// Nearest to this intent.
    pub intent: Option<String>,
    /// At least so certainly off topic, in thousandths.
    pub oos_from: Option<i32>,
    /// Judged by a policy that only watched, or by one in force.
    pub dry_run: Option<bool>,
    /// Received at or after.
    pub received_from: Option<DateTime<Utc>>,
    /// Received before.
    pub received_until: Option<DateTime<Utc>>,
}

impl TurnFilter {
    fn push(&self, query: &mut sqlx::QueryBuilder<'_, sqlx::Postgres>) {
        let ids = [
            ("workspace", self.workspace),
            ("bot_id", self.bot),
            ("subject", self.subject),
            ("conversation", self.conversation),
        ];
        for (column, id) in ids {
            if let Some(id) = id {
                query.push(" AND ").push(column).push(" = ").push_bind(id);
            }
        }
        if let Some(phases) = &self.phases {
            query.push(" AND phase = ANY(").push_bind(phases.clone()).push(")");
        }
        if let Some(kinds) = &self.refusal_kinds {
            query.push(" AND refusal_kind = ANY(").push_bind(kinds.clone()).push(")");
        }
        if let Some(open) = self.open {
            query.push(" AND open = ").push_bind(open);
        }
        if let Some(detectors) = &self.flagged {
            // Both conditions: the index holds only what was flagged at all.
            query.push(" AND flagged <> '{}' AND flagged && ").push_bind(detectors.clone());
        }
        if let Some(intent) = &self.intent {
            query.push(" AND intent = ").push_bind(intent.clone());
        }
        if let Some(oos) = self.oos_from {
            query.push(" AND oos_permille >= ").push_bind(oos);
        }
        if let Some(dry_run) = self.dry_run {
            query.push(" AND policy_dry_run = ").push_bind(dry_run);
        }
        if let Some(from) = self.received_from {
            query.push(" AND received_at >= ").push_bind(from);
        }
        if let Some(until) = self.received_until {
            query.push(" AND received_at < ").push_bind(until);
        }
    }
}

/// A page of turns.
///
/// # Errors
/// When the database fails.
pub async fn turns_page(pool: &PgPool, filter: &TurnFilter, page: Page) -> Result<Vec<TurnRow>, sqlx::Error> {
    select_page(pool, "turns", page, |query| filter.push(query)).await
}

/// How many turns pass a filter.
///
/// # Errors
/// When the database fails.
pub async fn turns_count(pool: &PgPool, filter: &TurnFilter) -> Result<i64, sqlx::Error> {
    let mut query = sqlx::QueryBuilder::new("SELECT count(*) FROM turns WHERE true");
    filter.push(&mut query);
    query.build_query_scalar().fetch_one(pool).await
}

/// Turns by id, in no order; absent ones are left out.
///
/// # Errors
/// When the database fails.
pub async fn turns_by_ids(pool: &PgPool, ids: &[Uuid]) -> Result<Vec<TurnRow>, sqlx::Error> {
    let mut query = sqlx::QueryBuilder::new("SELECT * FROM turns WHERE turn_id = ANY(");
    query.push_bind(ids).push(")");
    push_page(&mut query, "created_position", Page::oldest(i64::try_from(ids.len()).unwrap_or(i64::MAX)));
    query.build_query_as().fetch_all(pool).await
}

/// One turn.
///
/// # Errors
/// When the database fails.
pub async fn turn(pool: &PgPool, id: TurnId) -> Result<Option<TurnRow>, sqlx::Error> {
    Ok(turns_by_ids(pool, &[id.uuid()]).await?.pop())
}
