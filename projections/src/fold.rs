//! Folding a page of events into rows: fetch the touched rows once, change them in memory, write
//! them back with one statement.

use std::{collections::BTreeMap, fmt::Debug};

use serde::{Serialize, de::DeserializeOwned};
use sqlx::PgConnection;

/// A read table whose rows travel as JSON of their columns: the row type lists the columns once, and
/// PostgreSQL turns text into types. Rows are read with [`sqlx::FromRow`] elsewhere.
pub(crate) trait Table:
    Serialize + DeserializeOwned + Clone + PartialEq + Debug + Send + Sync + Unpin + 'static
{
    /// Name without schema, so that a rebuild's temporary table is found first.
    const NAME: &'static str;
    /// Key columns, in order.
    const KEY: &'static [&'static str];
    /// All other columns.
    const VALUES: &'static [&'static str];
    /// Orders and identifies rows in memory.
    type Key: Ord + Clone + Serialize + Send;

    fn key(&self) -> Self::Key;
    /// The key as a JSON object of its columns.
    fn key_columns(key: &Self::Key) -> serde_json::Value;
}

/// The rows a page touches.
pub(crate) struct Rows<T: Table> {
    rows: BTreeMap<T::Key, T>,
    fetched: BTreeMap<T::Key, T>,
}

impl<T: Table> Rows<T> {
    /// Fetches the rows with these keys; absent ones are absent.
    pub(crate) async fn fetch(
        tx: &mut PgConnection,
        keys: impl IntoIterator<Item = T::Key>,
    ) -> Result<Self, sqlx::Error> {
        let keys: std::collections::BTreeSet<T::Key> = keys.into_iter().collect();
        if keys.is_empty() {
            return Ok(Self { rows: BTreeMap::new(), fetched: BTreeMap::new() });
        }
        let wanted: Vec<serde_json::Value> = keys.iter().map(T::key_columns).collect();
        let on = T::KEY.join(", ");
        let statement = format!(
            "SELECT to_jsonb(t) FROM {table} t JOIN jsonb_populate_recordset(NULL::{table}, $1) AS k USING ({on})",
            table = T::NAME,
        );
        let found: Vec<sqlx::types::Json<T>> =
            sqlx::query_scalar(&statement).bind(sqlx::types::Json(wanted)).fetch_all(tx).await?;
        let rows: BTreeMap<T::Key, T> = found.into_iter().map(|row| (row.0.key(), row.0)).collect();
        Ok(Self { fetched: rows.clone(), rows })
    }

    pub(crate) fn get_mut(&mut self, key: &T::Key) -> Option<&mut T> {
        self.rows.get_mut(key)
    }

    pub(crate) fn get_or_insert(&mut self, key: T::Key, make: impl FnOnce() -> T) -> &mut T {
        self.rows.entry(key).or_insert_with(make)
    }

    pub(crate) fn insert(&mut self, row: T) {
        self.rows.insert(row.key(), row);
    }

    /// All of them that are in memory, by key.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.rows.values_mut()
    }

    /// Writes what changed.
    pub(crate) async fn store(self, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        let changed: Vec<&T> =
            self.rows.values().filter(|row| self.fetched.get(&row.key()) != Some(*row)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let columns = T::KEY.iter().chain(T::VALUES).copied().collect::<Vec<_>>().join(", ");
        let sets = T::VALUES
            .iter()
            .map(|column| format!("{column} = excluded.{column}"))
            .collect::<Vec<_>>()
            .join(", ");
        let statement = format!(
            "INSERT INTO {table} ({columns}) SELECT {columns} FROM jsonb_populate_recordset(NULL::{table}, $1)
             ON CONFLICT ({key}) DO UPDATE SET {sets}",
            table = T::NAME,
            key = T::KEY.join(", "),
        );
        sqlx::query(&statement).bind(sqlx::types::Json(changed)).execute(tx).await?;
        Ok(())
    }
}

/// Declares a read row: its struct (readable with `FromRow`, foldable with [`Table`]), its table,
/// key and columns, each named once.
macro_rules! read_row {
    (
        $(#[$doc:meta])* $name:ident in $table:literal
        key { $($(#[$kdoc:meta])* $key:ident: $key_type:ty),+ $(,)? }
        values { $($(#[$vdoc:meta])* $value:ident: $value_type:ty),+ $(,)? }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, sqlx::FromRow)]
        pub struct $name {
            $($(#[$kdoc])* pub $key: $key_type,)+
            $($(#[$vdoc])* pub $value: $value_type,)+
        }

        impl crate::fold::Table for $name {
            const NAME: &'static str = $table;
            const KEY: &'static [&'static str] = &[$(stringify!($key)),+];
            const VALUES: &'static [&'static str] = &[$(stringify!($value)),+];
            type Key = ($($key_type,)+);

            fn key(&self) -> Self::Key {
                ($(self.$key.clone(),)+)
            }
            fn key_columns(key: &Self::Key) -> serde_json::Value {
                let ($($key,)+) = key;
                serde_json::json!({ $(stringify!($key): $key),+ })
            }
        }
    };
}
pub(crate) use read_row;
