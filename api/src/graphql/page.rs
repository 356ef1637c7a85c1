//! Relay connections over positions.

use async_graphql::{
    OutputType,
    connection::{Connection, CursorType, Edge, EmptyFields},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use botledger_domain::Position;
use botledger_projections::Page;

use super::error::{ApiError, ApiResult};

/// Rows on a page when nobody says how many.
pub(crate) const DEFAULT: i32 = 50;
const MOST: i32 = 200;

/// An opaque place in one list; another list's is refused.
#[derive(Clone, Debug)]
pub(crate) struct Cursor(String);

impl CursorType for Cursor {
    type Error = std::convert::Infallible;

    fn decode_cursor(text: &str) -> Result<Self, Self::Error> {
        Ok(Self(text.to_owned()))
    }

    fn encode_cursor(&self) -> String {
        self.0.clone()
    }
}

fn encode(list: &str, position: i64) -> Cursor {
    Cursor(URL_SAFE_NO_PAD.encode(format!("{list}:{position}")))
}

fn decode(list: &str, cursor: &str) -> ApiResult<Position> {
    URL_SAFE_NO_PAD
        .decode(cursor)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.strip_prefix(list)?.strip_prefix(':')?.parse().ok())
        .map(Position)
        .ok_or_else(|| ApiError::bad_input(format!("this is no cursor of the list of {list}")))
}

/// Relay's four arguments. Lists are newest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slice {
    pub(crate) first: Option<i32>,
    pub(crate) after: Option<String>,
    pub(crate) last: Option<i32>,
    pub(crate) before: Option<String>,
}

/// A checked slice of a named list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paging {
    list: &'static str,
    size: usize,
    /// One row more than asked for: it tells whether there are more.
    pub(crate) page: Page,
}

impl Slice {
    pub(crate) fn of(self, list: &'static str) -> ApiResult<Paging> {
        let size = match (self.first, self.last) {
            (Some(_), Some(_)) => return Err(ApiError::bad_input("give first or last, not both")),
            (size, None) | (None, size) => size.unwrap_or(DEFAULT),
        };
        if !(0..=MOST).contains(&size) {
            return Err(ApiError::bad_input(format!("a page has 0 to {MOST} rows")));
        }
        let after = self.after.as_deref().map(|cursor| decode(list, cursor)).transpose()?;
        let before = self.before.as_deref().map(|cursor| decode(list, cursor)).transpose()?;
        let page = Page {
            limit: i64::from(size) + 1,
            descending: true,
            after,
            before,
            from_end: self.last.is_some(),
        };
        Ok(Paging { list, size: usize::try_from(size).unwrap_or_default(), page })
    }
}

impl Paging {
    /// A place in the list that is no row of this page.
    pub(crate) fn cursor(self, position: i64) -> String {
        encode(self.list, position).0
    }

    /// Rows as fetched with `page`, as a connection.
    pub(crate) fn connect<R, N: OutputType, F: async_graphql::ObjectType>(
        self,
        mut rows: Vec<R>,
        fields: F,
        position: impl Fn(&R) -> i64,
        node: impl Fn(R) -> N,
    ) -> Connection<Cursor, N, F, EmptyFields> {
        let more = rows.len() > self.size;
        if more && self.page.from_end {
            rows.remove(0);
        } else {
            rows.truncate(self.size);
        }
        let (previous, next) = match self.page.from_end {
            true => (more, self.page.before.is_some()),
            false => (self.page.after.is_some(), more),
        };
        let mut connection = Connection::with_additional_fields(previous, next, fields);
        connection
            .edges
            .extend(rows.into_iter().map(|row| Edge::new(encode(self.list, position(&row)), node(row))));
        connection
    }
}

/// A list without further fields.
pub(crate) type List<N> = Connection<Cursor, N, EmptyFields, EmptyFields>;

/// The rows of a page, of rows in the order of their positions.
pub(crate) fn cut<R: Clone>(rows: &[R], page: Page, position: impl Fn(&R) -> i64) -> Vec<R> {
    let behind = |row: &&R| page.after.is_none_or(|after| position(row) < after.0);
    let ahead = |row: &&R| page.before.is_none_or(|before| position(row) > before.0);
    let wanted: Vec<&R> = rows.iter().rev().filter(behind).filter(ahead).collect();
    let limit = usize::try_from(page.limit).unwrap_or_default();
    let first = if page.from_end { wanted.len().saturating_sub(limit) } else { 0 };
    wanted.into_iter().skip(first).take(limit).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(first: Option<i32>, last: Option<i32>) -> Slice {
        Slice { first, last, ..Slice::default() }
    }

    #[test]
    fn pages_of_a_list_in_memory_are_those_of_a_list_in_the_database() {
        let rows = [1, 2, 3, 4, 5];
        let page = |page| cut(&rows, page, |row| *row);
        assert_eq!(page(Page::newest(3)), [5, 4, 3]);
        assert_eq!(page(Page { after: Some(Position(3)), ..Page::newest(3) }), [2, 1]);
        assert_eq!(page(Page { from_end: true, ..Page::newest(2) }), [2, 1]);
        let before = Page { before: Some(Position(2)), from_end: true, ..Page::newest(2) };
        assert_eq!(page(before), [4, 3]);
        assert_eq!(page(Page::newest(0)), [0; 0]);
    }

    #[test]
    fn sizes_are_checked() {
        assert!(slice(Some(1), Some(1)).of("bots").is_err());
        assert!(slice(Some(-1), None).of("bots").is_err());
        assert!(slice(None, Some(201)).of("bots").is_err());
        assert_eq!(slice(None, None).of("bots").expect("fits").page.limit, 51);
    }

    #[test]
    fn a_cursor_belongs_to_its_list() {
        let cursor = encode("bots", 7).0;
        let with = |list| Slice { after: Some(cursor.clone()), ..Slice::default() }.of(list);
        assert_eq!(with("bots").expect("fits").page.after, Some(Position(7)));
        assert!(with("turns").is_err());
        assert!(Slice { after: Some("?".to_owned()), ..Slice::default() }.of("bots").is_err());
    }
}
