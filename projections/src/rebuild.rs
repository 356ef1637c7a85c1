//! Making a read model again from the ledger, beside the live one, and comparing the two.
//!
//! A connection of its own creates temporary tables of the same names; PostgreSQL finds those first,
//! so the projection fills them without knowing (`ops/decisions/0005`).

use std::sync::Arc;

use botledger_domain::{Position, RecordedEvent};
use sqlx::{Connection, PgConnection, PgPool};

use crate::{LogReader, Projection, ProjectionError, runner};

/// Events folded at once.
const PAGE: i64 = 5_000;
/// Differing rows shown a table.
const SHOWN: i64 = 10;

/// How far a rebuild has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Position folded.
    pub at: Position,
    /// Head of the ledger when the rebuild began; it may move on.
    pub head: Position,
}

/// A row that is not the same in both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The table.
    pub table: String,
    /// As text of the whole row; absent when it is only in the replay.
    pub live: Option<String>,
    /// As text of the whole row; absent when it is only in the live table.
    pub replayed: Option<String>,
}

/// What a rebuild found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebuildReport {
    /// The projection.
    pub name: String,
    /// Both were compared at this position.
    pub position: Position,
    /// Rows of the replay, over all tables.
    pub rows: i64,
    /// Rows that differ, over all tables.
    pub different: i64,
    /// Some of them.
    pub differences: Vec<Difference>,
    /// Whether the live rows were replaced.
    pub replaced: bool,
}

/// Why a rebuild ended early. The live rows are untouched.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// An event cannot be applied and nobody decided to skip it.
    #[error("the replay of {name} stopped")]
    Projection {
        /// The projection.
        name: &'static str,
        /// Where and why.
        #[source]
        source: ProjectionError,
    },
    /// The database failed.
    #[error("the read model cannot be rebuilt")]
    Database(#[from] sqlx::Error),
}

/// Replays a projection and compares its rows with the live ones at the same position.
///
/// # Errors
/// See [`RebuildError`].
pub async fn verify(
    pool: &PgPool,
    projection: &Arc<dyn Projection>,
    progress: impl FnMut(Progress) + Send,
) -> Result<RebuildReport, RebuildError> {
    rebuild(pool, projection, false, progress).await
}

/// Replays a projection and replaces the live rows in one transaction. The report says what was
/// different before.
///
/// # Errors
/// See [`RebuildError`].
pub async fn replay(
    pool: &PgPool,
    projection: &Arc<dyn Projection>,
    progress: impl FnMut(Progress) + Send,
) -> Result<RebuildReport, RebuildError> {
    rebuild(pool, projection, true, progress).await
}

impl RebuildReport {
    /// Before anything was compared.
    pub(crate) fn empty(name: &str, position: Position) -> Self {
        let name = name.to_owned();
        Self { name, position, rows: 0, different: 0, differences: Vec::new(), replaced: false }
    }
}

struct Copy<'a> {
    projection: &'a Arc<dyn Projection>,
    log: LogReader,
    skipped: Vec<i64>,
    at: Position,
}

async fn rebuild(
    pool: &PgPool,
    projection: &Arc<dyn Projection>,
    replace: bool,
    mut progress: impl FnMut(Progress) + Send,
) -> Result<RebuildReport, RebuildError> {
    let (name, version) = (projection.name(), projection.version());
    let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
    let skipped = runner::skipped(&mut connection, name).await?;
    for table in projection.tables() {
        sqlx::query(&format!("CREATE TEMPORARY TABLE {table} (LIKE read.{table} INCLUDING ALL)"))
            .execute(&mut connection)
            .await?;
    }
    let log = LogReader::new(pool.clone());
    let head = log.head().await?;
    let mut copy = Copy { projection, log, skipped, at: Position(0) };
    copy.fold_until(&mut connection, head, |at| progress(Progress { at, head })).await?;

    // From here the live rows stand still: the checkpoint is locked until the end.
    let mut tx = connection.begin().await?;
    let live = runner::lock_for_rebuild(&mut tx, name, version).await?;
    let position = if replace { copy.log.head().await?.max(live) } else { live };
    if position < copy.at {
        // The live rows are behind: compare with what the ledger gave up to there.
        for table in projection.tables() {
            sqlx::query(&format!("TRUNCATE pg_temp.{table}")).execute(&mut *tx).await?;
        }
        copy.at = Position(0);
    }
    copy.fold_until(&mut tx, position, |_| {}).await?;
    let mut report = RebuildReport { replaced: replace, ..RebuildReport::empty(name, position) };
    for table in projection.tables() {
        compare(&mut tx, "pg_temp", table, &mut report).await?;
    }
    if replace {
        for table in projection.tables() {
            sqlx::query(&format!("DELETE FROM read.{table}")).execute(&mut *tx).await?;
            sqlx::query(&format!("INSERT INTO read.{table} SELECT * FROM pg_temp.{table}"))
                .execute(&mut *tx)
                .await?;
        }
        runner::finish_rebuild(&mut tx, name, version, position).await?;
    }
    tx.commit().await?;
    // Closing drops the temporary tables; the server does so too when this fails.
    let _ = connection.close().await;
    Ok(report)
}

impl Copy<'_> {
    async fn fold_until(
        &mut self,
        connection: &mut PgConnection,
        position: Position,
        mut progress: impl FnMut(Position) + Send,
    ) -> Result<(), RebuildError> {
        while self.at < position {
            let events = self.log.after(self.at, PAGE.min(position.0 - self.at.0)).await?;
            let Some(last) = events.last().map(|event| event.position) else { break };
            let page = without(events, &self.skipped);
            let name = self.projection.name();
            self.projection
                .apply(connection, &page)
                .await
                .map_err(|source| RebuildError::Projection { name, source })?;
            self.at = last;
            progress(last);
        }
        Ok(())
    }
}

/// A page as a projection gets it: without what an operator decided to leave out.
pub(crate) fn without(events: Vec<RecordedEvent>, skipped: &[i64]) -> Vec<Arc<RecordedEvent>> {
    events.into_iter().filter(|event| !skipped.contains(&event.position.0)).map(Arc::new).collect()
}

/// Compares a live table with its copy in another schema, adding to the report.
pub(crate) async fn compare(
    tx: &mut PgConnection,
    copies: &str,
    table: &str,
    report: &mut RebuildReport,
) -> Result<(), sqlx::Error> {
    let rows: i64 =
        sqlx::query_scalar(&format!("SELECT count(*) FROM {copies}.{table}")).fetch_one(&mut *tx).await?;
    report.rows += rows;
    let key: Vec<String> = sqlx::query_scalar(
        "SELECT a.attname::text FROM pg_index i
         JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
         WHERE i.indisprimary AND i.indrelid = ('read.' || $1)::regclass",
    )
    .bind(table)
    .fetch_all(&mut *tx)
    .await?;
    let joined = format!(
        "FROM read.{table} AS live FULL JOIN {copies}.{table} AS replayed USING ({})
         WHERE live::text IS DISTINCT FROM replayed::text",
        key.join(", "),
    );
    let different: i64 = sqlx::query_scalar(&format!("SELECT count(*) {joined}")).fetch_one(&mut *tx).await?;
    if different == 0 {
        return Ok(());
    }
    report.different += different;
    let shown: Vec<(Option<String>, Option<String>)> =
        sqlx::query_as(&format!("SELECT live::text, replayed::text {joined} LIMIT {SHOWN}"))
            .fetch_all(tx)
            .await?;
    report.differences.extend(shown.into_iter().map(|(live, replayed)| Difference {
        table: table.to_owned(),
        live,
        replayed,
    }));
    Ok(())
}
