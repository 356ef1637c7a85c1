//! One row of a read model as it was at a position: the projection itself, run over the stream's
//! events up to there into temporary tables that nobody else sees. The same code as live, so the
//! same answer.

use std::{collections::BTreeMap, sync::Arc};

use botledger_domain::{
    BotId, Decide, OperatorId, Position, RecordedEvent, SubjectId, TurnId, WorkspaceId,
    access_list::access_list_stream,
    policy::{Policy, PublishedPolicy},
    policy_stream, quota_stream,
    rate_limit::{RateSubject, rate_override_stream},
    standing::Standing,
    standing_stream,
};
use sqlx::{Connection, PgConnection, PgPool, PgTransaction};
use uuid::Uuid;

use crate::{
    AccessEntryRow, AccessListRow, AccessListsProjection, BotRow, BotsProjection, DirectoryProjection,
    EventFilter, LogReader, OperatorRow, Page, PoliciesProjection, PolicyRow, PolicyVersionRow, Projection,
    ProjectionError, QuotaRow, QuotasProjection, RateOverrideRow, RateOverridesProjection, StandingRow,
    StandingsProjection, TurnRow, TurnsProjection, WorkspaceRow,
    access_lists::access_entries_in,
    fold::{Rows, Table},
    log::LogRow,
    runner,
};

/// Events folded at once.
const PAGE: i64 = 2_000;

async fn row_as_of<R: Table<Key = (Uuid,)>>(
    pool: &PgPool,
    projection: &dyn Projection,
    aggregate_type: &str,
    id: Uuid,
    upto: Position,
) -> Result<Option<R>, ProjectionError> {
    let mut tx = folded(pool, projection, aggregate_type, id, upto).await?;
    let mut rows = Rows::<R>::fetch(&mut tx, [(id,)]).await?;
    let row = rows.get_mut(&(id,)).cloned();
    tx.rollback().await?;
    Ok(row)
}

/// A transaction that sees the projection's tables as one stream made them; to be rolled back.
async fn folded(
    pool: &PgPool,
    projection: &dyn Projection,
    aggregate_type: &str,
    id: Uuid,
    upto: Position,
) -> Result<PgTransaction<'static>, ProjectionError> {
    let mut tx = pool.begin().await?;
    let skipped = runner::skipped(&mut tx, projection.name()).await?;
    create_tables(&mut tx, projection).await?;
    let mut filter = EventFilter {
        aggregate_type: Some(aggregate_type.to_owned()),
        aggregate_id: Some(id.as_hyphenated().to_string()),
        upto: Some(upto),
        ..EventFilter::default()
    };
    loop {
        let mut events = LogReader::page_in(&mut *tx, &filter, Page::oldest(PAGE)).await?;
        let Some(last) = events.last().map(|event| event.position) else { break };
        events.retain(|event| !skipped.contains(&event.position.0));
        let events: Vec<_> = events.into_iter().map(Arc::new).collect();
        projection.apply(&mut tx, &events).await?;
        filter.after = Some(last);
    }
    Ok(tx)
}

async fn create_tables(tx: &mut PgConnection, projection: &dyn Projection) -> Result<(), sqlx::Error> {
    for table in projection.tables() {
        sqlx::query(&format!(
            "CREATE TEMPORARY TABLE {table} (LIKE read.{table} INCLUDING ALL) ON COMMIT DROP"
        ))
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// An override of a subject's rate limits as it was.
///
/// # Errors
/// When the database fails or an event cannot be applied.
pub async fn rate_override_as_of(
    pool: &PgPool,
    workspace: WorkspaceId,
    subject: &RateSubject,
    upto: Position,
) -> Result<Option<RateOverrideRow>, ProjectionError> {
    let stream = rate_override_stream(workspace, subject);
    row_as_of(pool, &RateOverridesProjection, "rate_override", stream, upto).await
}

/// An access list as it was, with its entries, newest first. Nothing before its first event.
///
/// # Errors
/// When the database fails or an event cannot be applied.
pub async fn access_list_as_of(
    pool: &PgPool,
    workspace: WorkspaceId,
    bot: Option<BotId>,
    upto: Position,
) -> Result<Option<(AccessListRow, Vec<AccessEntryRow>)>, ProjectionError> {
    let id = access_list_stream(workspace, bot);
    let mut tx = folded(pool, &AccessListsProjection, "access_list", id, upto).await?;
    let mut rows = Rows::<AccessListRow>::fetch(&mut tx, [(id,)]).await?;
    let list = rows.get_mut(&(id,)).cloned();
    let entries = access_entries_in(&mut tx, id).await?;
    tx.rollback().await?;
    Ok(list.map(|list| (list, entries)))
}

/// A bot as it was.
///
/// # Errors
/// When the database fails or an event cannot be applied.
pub async fn bot_as_of(pool: &PgPool, bot: BotId, upto: Position) -> Result<Option<BotRow>, ProjectionError> {
    row_as_of(pool, &BotsProjection, "bot", bot.uuid(), upto).await
}

/// An operator as they were.
///
/// # Errors
/// When the database fails or an event cannot be applied.
pub async fn operator_as_of(
    pool: &PgPool,
    operator: OperatorId,
    upto: Position,
) -> Result<Option<OperatorRow>, ProjectionError> {
    row_as_of(pool, &DirectoryProjection, "operator", operator.uuid(), upto).await
}

/// A workspace as it was.
///
/// # Errors
/// When the database fails or an event cannot be applied.
pub async fn workspace_as_of(
    pool: &PgPool,
    workspace: WorkspaceId,
    upto: Position,
) -> Result<Option<WorkspaceRow>, ProjectionError> {
    row_as_of(pool, &DirectoryProjection, "workspace", workspace.uuid(), upto).await
}

/// A policy as it was, with the version in force then. Nothing before its first event.
///
/// # Errors
/// When the database fails or an event cannot be applied.
pub async fn policy_as_of(
    pool: &PgPool,
    workspace: WorkspaceId,
    bot: Option<BotId>,
    upto: Position,
) -> Result<Option<(PolicyRow, Option<PolicyVersionRow>)>, ProjectionError> {
    let id = policy_stream(workspace, bot);
    let mut tx = folded(pool, &PoliciesProjection, "policy", id, upto).await?;
    let mut rows = Rows::<PolicyRow>::fetch(&mut tx, [(id,)]).await?;
    let policy = rows.get_mut(&(id,)).cloned();
    let key = policy.as_ref().and_then(|policy| Some((id, policy.version?)));
    let mut versions = Rows::<PolicyVersionRow>::fetch(&mut tx, key).await?;
    let version = key.and_then(|key| versions.get_mut(&key).cloned());
    tx.rollback().await?;
    Ok(policy.map(|policy| (policy, version)))
}

/// The version of a policy that was in force, with its terms. Nothing while none was.
///
/// # Errors
/// When the database fails or an event does not decode.
pub async fn policy_in_force_as_of(
    pool: &PgPool,
    workspace: WorkspaceId,
    bot: Option<BotId>,
    upto: Position,
) -> Result<Option<PublishedPolicy>, ProjectionError> {
    let log = LogReader::new(pool.clone());
    let policy = aggregate_as_of::<Policy>(&log, policy_stream(workspace, bot), upto).await?;
    Ok(policy.and_then(|policy| policy.current))
}

/// A person's quota as it was.
///
/// # Errors
/// When the database fails or an event cannot be applied.
pub async fn quota_as_of(
    pool: &PgPool,
    workspace: WorkspaceId,
    subject: SubjectId,
    upto: Position,
) -> Result<Option<QuotaRow>, ProjectionError> {
    row_as_of(pool, &QuotasProjection, "quota", quota_stream(workspace, subject), upto).await
}

/// A person's standing with a bot as it was.
///
/// # Errors
/// When the database fails or an event cannot be applied.
pub async fn standing_as_of(
    pool: &PgPool,
    bot: BotId,
    subject: SubjectId,
    upto: Position,
) -> Result<Option<StandingRow>, ProjectionError> {
    row_as_of(pool, &StandingsProjection, "standing", standing_stream(bot, subject), upto).await
}

/// A person's standing with a bot as its aggregate was: what an explanation of then is made from.
/// Nothing before its first event.
///
/// # Errors
/// When the database fails or an event does not decode.
pub async fn standing_state_as_of(
    pool: &PgPool,
    bot: BotId,
    subject: SubjectId,
    upto: Position,
) -> Result<Option<Standing>, ProjectionError> {
    aggregate_as_of(&LogReader::new(pool.clone()), standing_stream(bot, subject), upto).await
}

async fn aggregate_as_of<A: Decide>(
    log: &LogReader,
    id: Uuid,
    upto: Position,
) -> Result<Option<A>, ProjectionError> {
    let mut filter = EventFilter {
        aggregate_type: Some(A::TYPE.to_owned()),
        aggregate_id: Some(id.as_hyphenated().to_string()),
        upto: Some(upto),
        ..EventFilter::default()
    };
    let mut state = None;
    loop {
        let events = log.page(&filter, Page::oldest(PAGE)).await?;
        let Some(last) = events.last().map(|event| event.position) else { return Ok(state) };
        for event in events {
            if let Some(fact) = event.decode::<A>()? {
                state.get_or_insert_with(A::default).apply(fact);
            }
        }
        filter.after = Some(last);
    }
}

/// A turn as it was.
///
/// # Errors
/// When the database fails or an event cannot be applied.
pub async fn turn_as_of(
    pool: &PgPool,
    turn: TurnId,
    upto: Position,
) -> Result<Option<TurnRow>, ProjectionError> {
    row_as_of(pool, &TurnsProjection, "turn", turn.uuid(), upto).await
}

/// Turns as they were, by their ids, read and folded in the transaction that is open: in a part of it that
/// is taken back, after which the live tables are in sight again.
pub(crate) async fn turns_as_of(
    connection: &mut PgConnection,
    turns: &[TurnId],
    upto: Position,
) -> Result<BTreeMap<Uuid, TurnRow>, ProjectionError> {
    if turns.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut tx = connection.begin().await?;
    let skipped = runner::skipped(&mut tx, TurnsProjection.name()).await?;
    create_tables(&mut tx, &TurnsProjection).await?;
    let streams: Vec<String> = turns.iter().map(|turn| turn.uuid().to_string()).collect();
    let mut after = 0;
    loop {
        let rows: Vec<LogRow> = sqlx::query_as(
            "SELECT position, recorded_at, aggregate_type, aggregate_id, sequence, event_type, event_version,
                 payload::text AS payload, metadata::text AS metadata
             FROM events WHERE aggregate_type = 'turn' AND aggregate_id = ANY($1)
                 AND position > $2 AND position <= $3
             ORDER BY position LIMIT $4",
        )
        .bind(&streams)
        .bind(after)
        .bind(upto.0)
        .bind(PAGE)
        .fetch_all(&mut *tx)
        .await?;
        let mut events: Vec<_> = rows.into_iter().map(RecordedEvent::from).map(Arc::new).collect();
        let Some(last) = events.last().map(|event| event.position.0) else { break };
        events.retain(|event| !skipped.contains(&event.position.0));
        TurnsProjection.apply(&mut tx, &events).await?;
        after = last;
    }
    let mut rows = Rows::<TurnRow>::fetch(&mut tx, turns.iter().map(|turn| (turn.uuid(),))).await?;
    tx.rollback().await?;
    let turns = turns.iter().filter_map(|turn| Some((turn.uuid(), rows.get_mut(&(turn.uuid(),))?.clone())));
    Ok(turns.collect())
}
