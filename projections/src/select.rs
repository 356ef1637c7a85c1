//! Pages of lists, by keyset over a unique position column.

use botledger_domain::Position;
use sqlx::{PgPool, Postgres, QueryBuilder, postgres::PgRow};

/// A page of a list that is ordered by position, newest or oldest first. Relay's
/// `first/after/last/before` come down to this.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Rows at most.
    pub limit: i64,
    /// Newest first.
    pub descending: bool,
    /// Only rows that come behind this one in the list's order.
    pub after: Option<Position>,
    /// Only rows that come ahead of this one in the list's order.
    pub before: Option<Position>,
    /// Take the last rows of the selection instead of the first.
    pub from_end: bool,
}

impl Page {
    /// The newest rows, newest first.
    #[must_use]
    pub fn newest(limit: i64) -> Self {
        Self { limit, descending: true, after: None, before: None, from_end: false }
    }

    /// The oldest rows, oldest first.
    #[must_use]
    pub fn oldest(limit: i64) -> Self {
        Self { descending: false, ..Self::newest(limit) }
    }

    /// Rows as fetched, brought into the list's order.
    pub(crate) fn in_order<T>(self, mut rows: Vec<T>) -> Vec<T> {
        if self.from_end {
            rows.reverse();
        }
        rows
    }
}

pub(crate) fn push_page(query: &mut QueryBuilder<'_, Postgres>, column: &str, page: Page) {
    let (behind, ahead) = if page.descending { (" < ", " > ") } else { (" > ", " < ") };
    if let Some(after) = page.after {
        query.push(" AND ").push(column).push(behind).push_bind(after.0);
    }
    if let Some(before) = page.before {
        query.push(" AND ").push(column).push(ahead).push_bind(before.0);
    }
    query.push(" ORDER BY ").push(column);
    if page.descending != page.from_end {
        query.push(" DESC");
    }
    query.push(" LIMIT ").push_bind(page.limit);
}

/// Fetches a page of a read table; `filter` adds ` AND …` conditions.
pub(crate) async fn select_page<R>(
    pool: &PgPool,
    table: &str,
    page: Page,
    filter: impl FnOnce(&mut QueryBuilder<'_, Postgres>),
) -> Result<Vec<R>, sqlx::Error>
where
    R: for<'r> sqlx::FromRow<'r, PgRow> + Send + Unpin,
{
    let mut query = QueryBuilder::new("SELECT * FROM ");
    query.push(table).push(" WHERE true");
    filter(&mut query);
    push_page(&mut query, "created_position", page);
    Ok(page.in_order(query.build_query_as().fetch_all(pool).await?))
}
