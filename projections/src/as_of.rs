//! One row of a read model as it was at a position: the projection itself, run over the stream's
//! events up to there into temporary tables that nobody else sees. The same code as live, so the
//! same answer.

use std::sync::Arc;

use botledger_domain::{BotId, Position, SubjectId, TurnId, WorkspaceId, quota_stream, standing_stream};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    BotRow, BotsProjection, EventFilter, LogReader, Page, Projection, ProjectionError, QuotaRow,
    QuotasProjection, StandingRow, StandingsProjection, TurnRow, TurnsProjection,
    fold::{Rows, Table},
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
    let mut tx = pool.begin().await?;
    let skipped = runner::skipped(&mut tx, projection.name()).await?;
    for table in projection.tables() {
        sqlx::query(&format!(
            "CREATE TEMPORARY TABLE {table} (LIKE read.{table} INCLUDING ALL) ON COMMIT DROP"
        ))
        .execute(&mut *tx)
        .await?;
    }
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
    let mut rows = Rows::<R>::fetch(&mut tx, [(id,)]).await?;
    let row = rows.get_mut(&(id,)).cloned();
    tx.rollback().await?;
    Ok(row)
}

/// A bot as it was.
///
/// # Errors
/// When the database fails or an event cannot be applied.
pub async fn bot_as_of(pool: &PgPool, bot: BotId, upto: Position) -> Result<Option<BotRow>, ProjectionError> {
    row_as_of(pool, &BotsProjection, "bot", bot.uuid(), upto).await
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
