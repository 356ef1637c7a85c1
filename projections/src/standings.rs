use std::sync::Arc;

use async_trait::async_trait;
use botledger_domain::{
    BotId, RecordedEvent, SubjectId,
    standing::{Standing, StandingEvent},
    standing_stream,
};
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    Page, Projection, ProjectionError,
    fold::{Rows, read_row},
    select::select_page,
    turns::decode_all,
};

read_row! {
    /// A person's standing with a bot, once a moderator decided something about it.
    StandingRow in "standings"
    key { standing_id: Uuid }
    values {
        bot_id: Uuid,
        subject: Uuid,
        /// As of the last event; a block may have run out since.
        blocked: bool,
        reason: String,
        blocked_until: Option<DateTime<Utc>>,
        changed_by: Uuid,
        changed_at: DateTime<Utc>,
        created_position: i64,
        updated_position: i64,
    }
}

/// One row a person and bot. Reads `standing` events; owns `standings`.
pub struct StandingsProjection;

#[async_trait]
impl Projection for StandingsProjection {
    fn name(&self) -> &'static str {
        "standings"
    }

    fn tables(&self) -> &'static [&'static str] {
        &["standings"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        let facts = decode_all::<Standing>(page)?;
        let mut rows = Rows::<StandingRow>::fetch(tx, facts.iter().map(|(_, id, _)| (*id,))).await?;
        for (recorded, id, fact) in facts {
            let position = recorded.position.0;
            match fact {
                StandingEvent::Blocked { bot, subject, by: Some(by), reason: Some(reason), until, blocked_at, .. } => {
                    let row = rows.get_or_insert((id,), || StandingRow {
                        standing_id: id,
                        bot_id: bot.uuid(),
                        subject: subject.uuid(),
                        blocked: true,
                        reason: String::new(),
                        blocked_until: None,
                        changed_by: by.uuid(),
                        changed_at: blocked_at,
                        created_position: position,
                        updated_position: position,
                    });
                    row.blocked = true;
                    row.reason = reason.into();
                    row.blocked_until = until;
                    (row.changed_by, row.changed_at, row.updated_position) =
                        (by.uuid(), blocked_at, position);
                }
                StandingEvent::Unblocked { by, reason, unblocked_at, .. } => {
                    if let Some(row) = rows.get_mut(&(id,)) {
                        row.blocked = false;
                        row.reason = reason.into();
                        row.blocked_until = None;
                        (row.changed_by, row.changed_at, row.updated_position) =
                            (by.uuid(), unblocked_at, position);
                    }
                }
                _ => {}
            }
        }
        Ok(rows.store(tx).await?)
    }
}

/// A person's standing with a bot; absent when nobody ever decided anything.
///
/// # Errors
/// When the database fails.
pub async fn standing(
    pool: &PgPool,
    bot: BotId,
    subject: SubjectId,
) -> Result<Option<StandingRow>, sqlx::Error> {
    let id = standing_stream(bot, subject);
    sqlx::query_as!(StandingRow, "SELECT * FROM standings WHERE standing_id = $1", id)
        .fetch_optional(pool)
        .await
}

/// Which standings.
#[derive(Clone, Debug, Default)]
pub struct StandingFilter {
    /// With these bots.
    pub bots: Vec<Uuid>,
    /// Of this person.
    pub subject: Option<Uuid>,
    /// Blocked or not, as of the last event.
    pub blocked: Option<bool>,
}

/// Standings with some bots.
///
/// # Errors
/// When the database fails.
pub async fn standings_page(
    pool: &PgPool,
    filter: &StandingFilter,
    page: Page,
) -> Result<Vec<StandingRow>, sqlx::Error> {
    select_page(pool, "standings", page, |query| {
        query.push(" AND bot_id = ANY(").push_bind(filter.bots.clone()).push(")");
        if let Some(subject) = filter.subject {
            query.push(" AND subject = ").push_bind(subject);
        }
        if let Some(blocked) = filter.blocked {
            query.push(" AND blocked = ").push_bind(blocked);
        }
    })
    .await
}
