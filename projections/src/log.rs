use botledger_domain::{Position, RecordedEvent};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgExecutor, PgPool, Postgres, QueryBuilder};

use crate::select::{Page, push_page};

/// Reads the ledger by position. Only dense, committed positions exist, so "after n" never misses
/// anything that comes later at or below n.
#[derive(Clone)]
pub struct LogReader {
    pool: PgPool,
}

#[derive(sqlx::FromRow)]
pub(crate) struct LogRow {
    position: i64,
    recorded_at: DateTime<Utc>,
    aggregate_type: String,
    aggregate_id: String,
    sequence: i64,
    event_type: String,
    event_version: String,
    payload: String,
    metadata: String,
}

impl From<LogRow> for RecordedEvent {
    fn from(row: LogRow) -> Self {
        Self {
            position: Position(row.position),
            recorded_at: row.recorded_at,
            aggregate_type: row.aggregate_type,
            aggregate_id: row.aggregate_id,
            sequence: row.sequence,
            event_type: row.event_type,
            event_version: row.event_version,
            payload: row.payload,
            metadata: row.metadata,
        }
    }
}

/// What an auditor asks for; everything given must hold.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// `bot`, `turn`, …
    pub aggregate_type: Option<String>,
    /// The stream's id.
    pub aggregate_id: Option<String>,
    /// Wire names; any of them.
    pub event_types: Option<Vec<String>>,
    /// For example `operator:<id>`.
    pub actor: Option<String>,
    /// Everything that followed from one cause.
    pub correlation_id: Option<String>,
    /// At or after, by the database's clock.
    pub recorded_from: Option<DateTime<Utc>>,
    /// Before, by the database's clock.
    pub recorded_until: Option<DateTime<Utc>>,
    /// Positions above this one.
    pub after: Option<Position>,
    /// Positions up to this one.
    pub upto: Option<Position>,
}

impl EventFilter {
    /// Whether an event passes; the same rule that the database applies.
    #[must_use]
    pub fn matches(&self, event: &RecordedEvent) -> bool {
        let is =
            |wanted: &Option<String>, actual: &str| wanted.as_deref().is_none_or(|wanted| wanted == actual);
        let metadata = || event.decode_metadata().ok();
        is(&self.aggregate_type, &event.aggregate_type)
            && is(&self.aggregate_id, &event.aggregate_id)
            && self.event_types.as_ref().is_none_or(|types| types.contains(&event.event_type))
            && (self.actor.is_none() || metadata().is_some_and(|m| is(&self.actor, &m.actor)))
            && (self.correlation_id.is_none()
                || metadata().is_some_and(|m| is(&self.correlation_id, &m.correlation_id)))
            && self.recorded_from.is_none_or(|from| event.recorded_at >= from)
            && self.recorded_until.is_none_or(|until| event.recorded_at < until)
            && self.after.is_none_or(|after| event.position > after)
            && self.upto.is_none_or(|upto| event.position <= upto)
    }

    fn push(&self, query: &mut QueryBuilder<'_, Postgres>) {
        if let Some(value) = &self.aggregate_type {
            query.push(" AND aggregate_type = ").push_bind(value.clone());
        }
        if let Some(value) = &self.aggregate_id {
            query.push(" AND aggregate_id = ").push_bind(value.clone());
        }
        if let Some(values) = &self.event_types {
            query.push(" AND event_type = ANY(").push_bind(values.clone()).push(")");
        }
        if let Some(value) = &self.actor {
            query.push(" AND metadata ->> 'actor' = ").push_bind(value.clone());
        }
        if let Some(value) = &self.correlation_id {
            query.push(" AND metadata ->> 'correlation_id' = ").push_bind(value.clone());
        }
        if let Some(value) = self.recorded_from {
            query.push(" AND recorded_at >= ").push_bind(value);
        }
        if let Some(value) = self.recorded_until {
            query.push(" AND recorded_at < ").push_bind(value);
        }
        if let Some(value) = self.after {
            query.push(" AND position > ").push_bind(value.0);
        }
        if let Some(value) = self.upto {
            query.push(" AND position <= ").push_bind(value.0);
        }
    }
}

/// Of the database's clock.
const RESOLUTION: TimeDelta = TimeDelta::microseconds(1);

const COLUMNS: &str =
    "position, recorded_at, aggregate_type, aggregate_id, sequence, event_type, event_version,
    payload::text AS payload, metadata::text AS metadata";

impl LogReader {
    /// A reader over this pool.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The newest position; 0 in an empty ledger.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn head(&self) -> Result<Position, sqlx::Error> {
        let head = sqlx::query_scalar!(r#"SELECT coalesce(max(position), 0) AS "head!" FROM events"#);
        Ok(Position(head.fetch_one(&self.pool).await?))
    }

    /// The database's clock: nothing was recorded later.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn now(&self) -> Result<DateTime<Utc>, sqlx::Error> {
        sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#).fetch_one(&self.pool).await
    }

    /// When the event at a position was recorded.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn recorded_at(&self, position: Position) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
        sqlx::query_scalar!("SELECT recorded_at FROM events WHERE position = $1", position.0)
            .fetch_optional(&self.pool)
            .await
    }

    /// The next events after a position, at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn after(&self, position: Position, limit: i64) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        Self::after_in(&self.pool, position, limit).await
    }

    /// The same over a connection in hand: who holds one of a pool must not wait for another.
    pub(crate) async fn after_in(
        connection: impl PgExecutor<'_>,
        position: Position,
        limit: i64,
    ) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        let rows = sqlx::query_as!(
            LogRow,
            r#"SELECT position, recorded_at, aggregate_type, aggregate_id, sequence, event_type, event_version,
                      payload::text AS "payload!", metadata::text AS "metadata!"
               FROM events WHERE position > $1 ORDER BY position LIMIT $2"#,
            position.0,
            limit,
        )
        .fetch_all(connection)
        .await?;
        Ok(rows.into_iter().map(RecordedEvent::from).collect())
    }

    /// A page of filtered events.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn page(&self, filter: &EventFilter, page: Page) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        Self::page_in(&self.pool, &self.bounded(filter).await?, page).await
    }

    /// The same over a connection in hand.
    pub(crate) async fn page_in(
        connection: impl PgExecutor<'_>,
        filter: &EventFilter,
        page: Page,
    ) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        let mut query = QueryBuilder::new("SELECT ");
        query.push(COLUMNS).push(" FROM events WHERE true");
        filter.push(&mut query);
        push_page(&mut query, "position", page);
        let rows: Vec<LogRow> = query.build_query_as().fetch_all(connection).await?;
        Ok(page.in_order(rows.into_iter().map(RecordedEvent::from).collect()))
    }

    /// How many events pass a filter.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn count(&self, filter: &EventFilter) -> Result<i64, sqlx::Error> {
        let mut query = QueryBuilder::new("SELECT count(*) FROM events WHERE true");
        self.bounded(filter).await?.push(&mut query);
        query.build_query_scalar().fetch_one(&self.pool).await
    }

    /// A filter whose times are positions too: only those are an index.
    async fn bounded(&self, filter: &EventFilter) -> Result<EventFilter, sqlx::Error> {
        let mut bounded = filter.clone();
        let just_before = |moment: DateTime<Utc>| moment.checked_sub_signed(RESOLUTION).unwrap_or(moment);
        if let Some(from) = filter.recorded_from {
            bounded.after = bounded.after.max(Some(self.position_at(just_before(from)).await?));
        }
        if let Some(until) = filter.recorded_until {
            let last = self.position_at(just_before(until)).await?;
            bounded.upto = Some(bounded.upto.map_or(last, |upto| upto.min(last)));
        }
        Ok(bounded)
    }

    /// The last position recorded at or before a moment; 0 when none was.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn position_at(&self, moment: DateTime<Utc>) -> Result<Position, sqlx::Error> {
        // Times never fall while positions rise: halve the range until one position is left.
        let position = sqlx::query_scalar!(
            r#"WITH RECURSIVE halved (low, high) AS (
                   SELECT 0::bigint, coalesce(max(position), 0) FROM events
                   UNION ALL
                   SELECT CASE WHEN early THEN middle ELSE low END, CASE WHEN early THEN high ELSE middle - 1 END
                   FROM halved, LATERAL (
                       SELECT (low + high + 1) / 2 AS middle, (
                           SELECT recorded_at FROM events WHERE position >= (low + high + 1) / 2
                           ORDER BY position LIMIT 1
                       ) <= $1 AS early
                   ) looked
                   WHERE low < high
               )
               SELECT low AS "low!" FROM halved WHERE low = high"#,
            moment,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Position(position))
    }
}
