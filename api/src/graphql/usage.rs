//! Usage figures.

use async_graphql::{Context, Enum, ID, Object};
use botledger_domain::operator::Permission;
use botledger_projections::{Grain as RowGrain, UsageRow, usage};
use chrono::{DateTime, Utc};

use super::{
    AsOf, Needs, Scope,
    error::{ApiError, ApiResult},
    scalars::{At, BigInt, NodeKind},
};

/// Rows of one answer, at most.
const MOST: usize = 10_000;

/// How fine sums are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[graphql(remote = "RowGrain")]
pub(crate) enum Grain {
    Minute,
    Hour,
    /// From midnight UTC.
    Day,
}

pub(crate) struct Usage(UsageRow);

/// Sums of one bucket, bot and model. Every figure counts in the bucket in which it happened.
#[Object]
impl Usage {
    /// Beginning of the bucket.
    async fn bucket(&self) -> DateTime<Utc> {
        self.0.bucket
    }

    async fn bot_id(&self) -> ID {
        NodeKind::Bot.id(self.0.bot_id)
    }

    /// Null where no model took part.
    async fn model(&self) -> Option<&str> {
        Some(self.0.model.as_str()).filter(|model| !model.is_empty())
    }

    async fn messages(&self) -> BigInt {
        BigInt(self.0.messages)
    }

    async fn admitted(&self) -> BigInt {
        BigInt(self.0.admitted)
    }

    async fn refused(&self) -> BigInt {
        BigInt(self.0.refused)
    }

    async fn answered(&self) -> BigInt {
        BigInt(self.0.answered)
    }

    async fn failed(&self) -> BigInt {
        BigInt(self.0.failed)
    }

    async fn delivered(&self) -> BigInt {
        BigInt(self.0.delivered)
    }

    async fn undeliverable(&self) -> BigInt {
        BigInt(self.0.undeliverable)
    }

    async fn outcome_unknown(&self) -> BigInt {
        BigInt(self.0.outcome_unknown)
    }

    async fn prompt_tokens(&self) -> BigInt {
        BigInt(self.0.prompt_tokens)
    }

    async fn completion_tokens(&self) -> BigInt {
        BigInt(self.0.completion_tokens)
    }

    /// Sum over answers, milliseconds.
    async fn latency_ms_sum(&self) -> BigInt {
        BigInt(self.0.latency_ms_sum)
    }
}

#[derive(Default)]
pub(crate) struct UsageQuery;

#[Object]
impl UsageQuery {
    /// Sums between two moments, oldest first; at most 10,000 rows. With `asOf` what was known then.
    #[graphql(guard = "Needs(Permission::ReadUsage)", complexity = "1_000 + 100 * child_complexity")]
    #[expect(clippy::too_many_arguments, reason = "the time, what of it, the moment and the position")]
    async fn usage(
        &self,
        ctx: &Context<'_>,
        grain: Grain,
        #[graphql(desc = "At or after.")] from: DateTime<Utc>,
        #[graphql(desc = "Before.")] until: DateTime<Utc>,
        bot_id: Option<ID>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Vec<Usage>> {
        let scope = Scope::then(ctx, as_of).await?;
        let bot = bot_id.as_ref().map(|id| NodeKind::Bot.parse(id)).transpose()?;
        if from >= until {
            return Err(ApiError::bad_input("from must be before until"));
        }
        scope.at_least("turns", min_position).await?;
        let workspace = scope.identity()?.workspace;
        let rows = usage(&scope.read("turns").await?, workspace, grain.into(), bot, from, until).await?;
        if rows.len() > MOST {
            return Err(ApiError::bad_input(
                "that is more than 10,000 rows; ask for less time or a coarser grain",
            ));
        }
        Ok(rows.into_iter().map(Usage).collect())
    }
}
