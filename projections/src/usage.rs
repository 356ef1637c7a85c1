use std::collections::BTreeMap;

use botledger_domain::WorkspaceId;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sqlx::{PgConnection, PgPool, types::Json};
use strum::AsRefStr;
use uuid::Uuid;

use crate::turns::TurnRow;

/// How fine sums are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, AsRefStr)]
#[strum(serialize_all = "snake_case")]
pub enum Grain {
    /// 60 seconds.
    Minute,
    /// 60 minutes.
    Hour,
    /// 24 hours from midnight UTC.
    Day,
}

const GRAINS: [Grain; 3] = [Grain::Minute, Grain::Hour, Grain::Day];

impl Grain {
    fn table(self) -> &'static str {
        match self {
            Self::Minute => "usage_minute",
            Self::Hour => "usage_hour",
            Self::Day => "usage_day",
        }
    }

    /// Seconds of one bucket.
    #[must_use]
    pub fn seconds(self) -> i64 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }

    fn bucket(self, at: DateTime<Utc>) -> DateTime<Utc> {
        let into = at.timestamp().rem_euclid(self.seconds());
        at - TimeDelta::seconds(into) - TimeDelta::nanoseconds(i64::from(at.timestamp_subsec_nanos()))
    }
}

/// Sums of one bucket, bot and model. Token and latency sums are of answered turns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct UsageRow {
    /// Start of the bucket.
    pub bucket: DateTime<Utc>,
    pub bot_id: Uuid,
    /// Empty where no model took part.
    pub model: String,
    pub workspace: Uuid,
    pub messages: i64,
    pub admitted: i64,
    pub refused: i64,
    pub answered: i64,
    pub failed: i64,
    pub delivered: i64,
    pub undeliverable: i64,
    pub outcome_unknown: i64,
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    /// Milliseconds.
    pub latency_ms_sum: i64,
}

/// What one page adds.
#[derive(Default)]
pub(crate) struct UsageDeltas {
    minutes: BTreeMap<(DateTime<Utc>, Uuid, String), UsageRow>,
}

impl UsageDeltas {
    /// The sums of the minute of an event of this turn.
    pub(crate) fn at(&mut self, at: DateTime<Utc>, turn: &TurnRow) -> &mut UsageRow {
        let bucket = Grain::Minute.bucket(at);
        let model = turn.model.clone().unwrap_or_default();
        self.minutes.entry((bucket, turn.bot_id, model.clone())).or_insert_with(|| UsageRow {
            bucket,
            bot_id: turn.bot_id,
            model,
            workspace: turn.workspace,
            messages: 0,
            admitted: 0,
            refused: 0,
            answered: 0,
            failed: 0,
            delivered: 0,
            undeliverable: 0,
            outcome_unknown: 0,
            prompt_tokens: 0,
            completion_tokens: 0,
            latency_ms_sum: 0,
        })
    }

    pub(crate) async fn store(self, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        const SUMS: [&str; 11] = [
            "messages",
            "admitted",
            "refused",
            "answered",
            "failed",
            "delivered",
            "undeliverable",
            "outcome_unknown",
            "prompt_tokens",
            "completion_tokens",
            "latency_ms_sum",
        ];
        if self.minutes.is_empty() {
            return Ok(());
        }
        let rows: Vec<UsageRow> = self.minutes.into_values().collect();
        let total = SUMS.map(|sum| format!("sum({sum})::bigint")).join(", ");
        let add = SUMS.map(|sum| format!("{sum} = u.{sum} + excluded.{sum}")).join(", ");
        for grain in GRAINS {
            let (table, sums) = (grain.table(), SUMS.join(", "));
            let statement = format!(
                "INSERT INTO {table} AS u (bucket, bot_id, model, workspace, {sums})
                 SELECT to_timestamp(floor(extract(epoch FROM bucket) / {seconds}) * {seconds}), bot_id, model,
                        workspace, {total}
                 FROM jsonb_populate_recordset(NULL::{table}, $1) GROUP BY 1, 2, 3, 4
                 ON CONFLICT (bucket, bot_id, model) DO UPDATE SET {add}",
                seconds = grain.seconds(),
            );
            sqlx::query(&statement).bind(Json(&rows)).execute(&mut *tx).await?;
        }
        Ok(())
    }
}

/// Sums of a workspace between two moments, oldest first, at most 10,001 rows: the last tells that there are more
/// than anybody wants.
///
/// # Errors
/// When the database fails.
pub async fn usage(
    pool: &PgPool,
    workspace: WorkspaceId,
    grain: Grain,
    bot: Option<Uuid>,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Vec<UsageRow>, sqlx::Error> {
    let mut query = sqlx::QueryBuilder::new("SELECT * FROM ");
    query.push(grain.table());
    query.push(" WHERE workspace = ").push_bind(workspace.uuid());
    query.push(" AND bucket >= ").push_bind(from).push(" AND bucket < ").push_bind(until);
    if let Some(bot) = bot {
        query.push(" AND bot_id = ").push_bind(bot);
    }
    query.push(" ORDER BY bucket, bot_id, model LIMIT 10001");
    query.build_query_as().fetch_all(pool).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_begin_on_the_grain() {
        let at: DateTime<Utc> = "2026-11-24T15:47:31.123456789Z".parse().expect("a time");
        let texts = GRAINS.map(|grain| grain.bucket(at).to_rfc3339());
        assert_eq!(
            texts,
            ["2026-11-24T15:47:00+00:00", "2026-11-24T15:00:00+00:00", "2026-11-24T00:00:00+00:00"]
        );
    }
}
