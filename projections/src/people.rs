use std::sync::Arc;

use async_trait::async_trait;
use botledger_domain::{
    RecordedEvent, SubjectId, WorkspaceId,
    subject::{Subject, SubjectEvent},
    turn::{Turn, TurnEvent},
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
    /// One person, by pseudonym. The name is sealed.
    PersonRow in "people"
    key { subject: Uuid }
    values {
        workspace: Uuid,
        first_bot: Uuid,
        language: String,
        language_chosen: bool,
        /// As `Sealed`.
        profile: serde_json::Value,
        /// Messages accepted.
        messages: i64,
        first_seen_at: DateTime<Utc>,
        last_seen_at: DateTime<Utc>,
        created_position: i64,
        updated_position: i64,
    }
}

/// One row a person. Reads `subject` events and accepted messages; owns `people`.
pub struct PeopleProjection;

#[async_trait]
impl Projection for PeopleProjection {
    fn name(&self) -> &'static str {
        "people"
    }

    fn tables(&self) -> &'static [&'static str] {
        &["people"]
    }

    async fn apply(&self, tx: &mut PgConnection, page: &[Arc<RecordedEvent>]) -> Result<(), ProjectionError> {
        let subjects = decode_all::<Subject>(page)?;
        let messages: Vec<_> = decode_all::<Turn>(page)?
            .into_iter()
            .filter_map(|(recorded, _, fact)| match fact {
                TurnEvent::MessageReceived { message, received_at } => {
                    Some((recorded, message.subject, received_at))
                }
                _ => None,
            })
            .collect();
        let keys =
            subjects.iter().map(|(_, id, _)| (*id,)).chain(messages.iter().map(|(_, id, _)| (id.uuid(),)));
        let mut rows = Rows::<PersonRow>::fetch(tx, keys).await?;
        // A person is seen before their message is accepted, so subjects first keeps the order that
        // matters; the counters of messages do not mind.
        for (recorded, id, fact) in subjects {
            let position = recorded.position.0;
            match fact {
                SubjectEvent::FirstSeen { workspace, bot, profile, language, first_seen_at, .. } => {
                    rows.insert(PersonRow {
                        subject: id,
                        workspace: workspace.uuid(),
                        first_bot: bot.uuid(),
                        language: language.as_ref().to_owned(),
                        language_chosen: false,
                        profile: serde_json::to_value(profile).unwrap_or_default(),
                        messages: 0,
                        first_seen_at,
                        last_seen_at: first_seen_at,
                        created_position: position,
                        updated_position: position,
                    });
                }
                SubjectEvent::ProfileChanged { profile, .. } => {
                    if let Some(row) = rows.get_mut(&(id,)) {
                        row.profile = serde_json::to_value(profile).unwrap_or_default();
                        row.updated_position = row.updated_position.max(position);
                    }
                }
                SubjectEvent::LanguageChosen { language, .. } => {
                    if let Some(row) = rows.get_mut(&(id,)) {
                        row.language = language.as_ref().to_owned();
                        row.language_chosen = true;
                        row.updated_position = row.updated_position.max(position);
                    }
                }
            }
        }
        for (recorded, subject, received_at) in messages {
            if let Some(row) = rows.get_mut(&(subject.uuid(),)) {
                row.messages += 1;
                row.last_seen_at = received_at;
                row.updated_position = row.updated_position.max(recorded.position.0);
            }
        }
        Ok(rows.store(tx).await?)
    }
}

/// One person.
///
/// # Errors
/// When the database fails.
pub async fn person(pool: &PgPool, subject: SubjectId) -> Result<Option<PersonRow>, sqlx::Error> {
    Ok(people_by_ids(pool, &[subject.uuid()]).await?.pop())
}

/// People by pseudonym, in no order; absent ones are left out.
///
/// # Errors
/// When the database fails.
pub async fn people_by_ids(pool: &PgPool, ids: &[Uuid]) -> Result<Vec<PersonRow>, sqlx::Error> {
    sqlx::query_as!(PersonRow, "SELECT * FROM people WHERE subject = ANY($1)", ids).fetch_all(pool).await
}

/// People of a workspace.
///
/// # Errors
/// When the database fails.
pub async fn people_page(
    pool: &PgPool,
    workspace: WorkspaceId,
    page: Page,
) -> Result<Vec<PersonRow>, sqlx::Error> {
    select_page(pool, "people", page, |query| {
        query.push(" AND workspace = ").push_bind(workspace.uuid());
    })
    .await
}
