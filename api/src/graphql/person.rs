//! People, by pseudonym.

use async_graphql::{Context, ID, InputObject, Object, SimpleObject, connection::EmptyFields};
use botledger_domain::{Sealed, SubjectId, operator::Permission};
use botledger_projections::{PersonRow, people_page};
use chrono::{DateTime, Utc};

use super::{
    Acts, AsOf, Conditions, Needs, Scope,
    error::{ApiError, ApiResult, UserError, outcome},
    or_refused,
    page::{List, Slice},
    payload,
    quota::Quota,
    scalars::{At, BigInt, Language, NodeKind},
};

/// What Telegram told of a person; sealed in the database.
#[derive(SimpleObject)]
pub(crate) struct Profile {
    /// Telegram's user id.
    telegram_id: BigInt,
    first_name: String,
    last_name: Option<String>,
    /// Without `@`.
    username: Option<String>,
}

pub(crate) struct Person(pub(crate) PersonRow);

/// Somebody who wrote to a bot.
#[Object]
impl Person {
    /// `person:…`, a pseudonym that nobody can turn into a Telegram id without the key.
    pub(super) async fn id(&self) -> ID {
        NodeKind::Person.id(self.0.subject)
    }

    /// The language bots answer in.
    async fn language(&self) -> ApiResult<Language> {
        Language::read(&self.0.language)
    }

    /// Whether the person chose it, or their client told it.
    async fn language_chosen(&self) -> bool {
        self.0.language_chosen
    }

    /// Messages accepted.
    async fn messages(&self) -> BigInt {
        BigInt(self.0.messages)
    }

    /// When the person wrote first.
    async fn first_seen_at(&self) -> DateTime<Utc> {
        self.0.first_seen_at
    }

    /// When the person wrote last.
    async fn last_seen_at(&self) -> DateTime<Utc> {
        self.0.last_seen_at
    }

    /// Of the last event about the person.
    async fn position(&self) -> At {
        self.0.updated_position.into()
    }

    /// Name and Telegram id; null once erased.
    #[graphql(guard = "Needs(Permission::ReadPersonal)", complexity = "5 + child_complexity")]
    async fn profile(&self, ctx: &Context<'_>) -> ApiResult<Option<Profile>> {
        let scope = Scope::of(ctx)?;
        scope.reads_personal("Person.profile", NodeKind::Person.id(self.0.subject)).await?;
        let sealed: Sealed = serde_json::from_value(self.0.profile.clone()).map_err(ApiError::broken)?;
        let profile = scope.services.app.subjects.open_profile(&sealed).await;
        Ok(profile.map_err(ApiError::unavailable)?.map(|profile| Profile {
            telegram_id: BigInt(profile.telegram_id),
            first_name: profile.first_name,
            last_name: profile.last_name,
            username: profile.username,
        }))
    }

    /// What the person may use; null before the first turn.
    #[graphql(guard = "Needs(Permission::ReadOperations)", complexity = 5)]
    async fn quota(&self, ctx: &Context<'_>) -> ApiResult<Option<Quota>> {
        let scope = Scope::of(ctx)?;
        Ok(scope.edges("quotas").await?.quota(SubjectId(self.0.subject)).await?.map(Quota))
    }
}

/// A person of the caller's workspace.
pub(super) async fn find(scope: &Scope<'_>, subject: SubjectId) -> ApiResult<Option<Person>> {
    let workspace = scope.identity()?.workspace.uuid();
    let row = botledger_projections::person(&scope.read("people").await?, subject).await?;
    Ok(row.filter(|row| row.workspace == workspace).map(Person))
}

/// The same for a person that a list points to.
pub(super) async fn pointed_to(scope: &Scope<'_>, subject: SubjectId) -> ApiResult<Option<Person>> {
    let workspace = scope.identity()?.workspace.uuid();
    Ok(scope
        .edges("people")
        .await?
        .person(subject)
        .await?
        .filter(|row| row.workspace == workspace)
        .map(Person))
}

#[derive(Default)]
pub(crate) struct PersonQuery;

#[Object]
impl PersonQuery {
    /// One person; with `asOf` as they were then.
    #[graphql(guard = "Needs(Permission::ReadOperations)")]
    async fn person(
        &self,
        ctx: &Context<'_>,
        id: ID,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<Option<Person>> {
        let scope = Scope::then(ctx, as_of).await?;
        let subject = NodeKind::Person.parse(&id)?;
        scope.at_least("people", min_position).await?;
        find(&scope, subject).await
    }

    /// Everybody who wrote, newest first; with `asOf` as they were then.
    #[graphql(
        guard = "Needs(Permission::ReadOperations)",
        complexity = "super::past_cost(as_of.is_some()) + super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the moment and the position")]
    async fn people(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        as_of: Option<AsOf>,
        min_position: Option<At>,
    ) -> ApiResult<List<Person>> {
        let scope = Scope::then(ctx, as_of).await?;
        let paging = Slice { first, after, last, before }.of("people")?;
        scope.at_least("people", min_position).await?;
        let rows =
            people_page(&scope.read("people").await?, scope.identity()?.workspace, paging.page).await?;
        Ok(paging.connect(rows, EmptyFields, |row| row.created_position, Person))
    }
}

payload! {
    /// Answer of a mutation of a person.
    PersonPayload {
        /// As they are now.
        person: Person
    }
}

/// A person's language.
#[derive(InputObject)]
struct PersonChooseLanguageInput {
    person_id: ID,
    language: Language,
    conditions: Option<Conditions>,
}

#[derive(Default)]
pub(crate) struct PersonMutation;

#[Object]
impl PersonMutation {
    /// Sets the language bots answer a person in, on their behalf.
    #[graphql(guard = "Acts(Permission::Moderate)")]
    async fn person_choose_language(
        &self,
        ctx: &Context<'_>,
        input: PersonChooseLanguageInput,
    ) -> ApiResult<PersonPayload> {
        let scope = Scope::of(ctx)?;
        let subject: SubjectId = NodeKind::Person.parse(&input.person_id)?;
        let caller = scope.caller(input.conditions)?;
        if find(&scope, subject).await?.is_none() {
            return Ok(PersonPayload::refused(UserError::new(
                "SUBJECT_UNKNOWN",
                "this person never wrote to a bot",
            )));
        }
        let chosen =
            scope.services.app.subjects.choose_language(&caller, subject, input.language.into()).await;
        let executed = or_refused!(PersonPayload, outcome(&scope, "person.choose_language", chosen).await?);
        let position = executed.receipt.position;
        let thing = scope.written("people", position, find(&scope, subject)).await;
        Ok(PersonPayload::done(thing, position))
    }
}
