//! How far a relay is, for people: a row that the relay writes and everybody reads. Where a relay goes on
//! is never read from it.

use botledger_domain::Position;
use botledger_projections::Fence;
use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection, PgPool};

/// How the relay to one stream stands.
#[derive(Clone, Debug)]
pub struct RelayStatus {
    /// The stream in the target.
    pub stream: String,
    /// Hosts of the target.
    pub target: String,
    /// Last position known to be there.
    pub position: Position,
    /// `relaying`, `retrying` or `refused`.
    pub state: String,
    /// Why it is retrying or refused.
    pub reason: Option<String>,
    /// The event to blame, where one is.
    pub failed_position: Option<Position>,
    /// Since when it is in this state.
    pub since: DateTime<Utc>,
    /// Events that are not there yet.
    pub lag_events: i64,
    /// Age of the oldest of them in seconds; 0 when all are there.
    pub lag_s: i64,
    /// The process that relays, if one does.
    pub holder: Option<String>,
}

impl RelayStatus {
    /// Whether somebody should look: it refuses, or nobody does the work.
    #[must_use]
    pub fn needs_somebody(&self) -> bool {
        self.state == "refused" || self.holder.is_none()
    }
}

/// What a relay says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Relaying,
    Retrying { reason: String },
    Refused { reason: String, position: Option<Position> },
}

/// Name of the lease under which a stream is written.
pub(crate) fn lease_name(stream: &str) -> String {
    format!("relay:{stream}")
}

/// Every relay there has been, by stream.
///
/// # Errors
/// When the database fails.
pub async fn statuses(pool: &PgPool) -> Result<Vec<RelayStatus>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT r.stream, r.target, r.position, r.state, r.reason, r.failed_position, r.since,
                  greatest((SELECT coalesce(max(e.position), 0) FROM events e) - r.position, 0) AS "lag_events!",
                  greatest(coalesce(extract(epoch FROM clock_timestamp() - (
                      SELECT e.recorded_at FROM events e WHERE e.position > r.position
                      ORDER BY e.position LIMIT 1)), 0), 0)::bigint AS "lag_s!",
                  p.label AS "holder?"
           FROM relay_progress r
           LEFT JOIN work_leases l ON l.name = 'relay:' || r.stream AND l.expires_at > clock_timestamp()
           LEFT JOIN work_processes p ON p.instance = l.holder AND p.kind = 'relay'
           ORDER BY r.stream"#,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| RelayStatus {
            stream: row.stream,
            target: row.target,
            position: Position(row.position),
            state: row.state,
            reason: row.reason,
            failed_position: row.failed_position.map(Position),
            since: row.since,
            lag_events: row.lag_events,
            lag_s: row.lag_s,
            holder: row.holder,
        })
        .collect())
}

/// Writes the row, if the work is still ours. A position that is not known leaves the one that is there.
pub(crate) async fn record(
    connection: &mut PgConnection,
    fence: &Fence,
    stream: &str,
    target: &str,
    position: Option<Position>,
    state: &State,
) -> Result<bool, sqlx::Error> {
    let (name, reason, failed) = match state {
        State::Relaying => ("relaying", None, None),
        State::Retrying { reason } => ("retrying", Some(reason), None),
        State::Refused { reason, position } => ("refused", Some(reason), *position),
    };
    let mut tx = connection.begin().await?;
    // A row that a crash of the server takes back is written again with the next batch.
    sqlx::query!(
        "INSERT INTO relay_progress AS r
             (stream, target, position, state, reason, failed_position, since, updated_at)
         SELECT $1, $2, coalesce($3::bigint, 0), $4, $5, $6, clock_timestamp(), clock_timestamp()
         FROM (SELECT set_config('synchronous_commit', 'off', true)) AS quick
         ON CONFLICT (stream) DO UPDATE
             SET target = $2, position = coalesce($3, r.position), state = $4, reason = $5,
                 failed_position = $6, updated_at = clock_timestamp(),
                 since = CASE WHEN r.state = $4 THEN r.since ELSE clock_timestamp() END",
        stream,
        target,
        position.map(|position| position.0),
        name,
        reason,
        failed.map(|position| position.0),
    )
    .execute(&mut *tx)
    .await?;
    if !fence.holds(&mut tx).await? {
        tx.rollback().await?;
        return Ok(false);
    }
    tx.commit().await?;
    Ok(true)
}
