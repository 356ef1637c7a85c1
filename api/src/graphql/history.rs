//! One thing through time: what every event changed, and what lies between two moments.

use async_graphql::{Context, ID, Json, Object, SimpleObject, connection::EmptyFields};
use botledger_domain::{Position, operator::Permission};
use botledger_projections::{EventFilter, Page, Step, ValueChange, changes_between, history};

use super::{
    AsOf, Needs, Scope,
    error::{ApiError, ApiResult},
    event::{Event, is_own},
    page::{List, Slice},
    scalars::{At, BigInt},
};

/// One value that is not what it was.
#[derive(SimpleObject)]
pub(crate) struct StateChange {
    /// Where in the state, for example `account.used`; lists are compared whole.
    path: String,
    /// Null when there was nothing.
    before: Option<Json<serde_json::Value>>,
    /// Null when there is nothing any more.
    after: Option<Json<serde_json::Value>>,
}

impl From<ValueChange> for StateChange {
    fn from(change: ValueChange) -> Self {
        Self { path: change.path, before: change.before.map(Json), after: change.after.map(Json) }
    }
}

pub(crate) struct HistoryStep(Step);

/// An event and what it changed.
#[Object]
impl HistoryStep {
    /// What happened, who did it and when.
    async fn event(&self) -> Event {
        Event(self.0.event.clone())
    }

    /// In the thing's state, by path. What is sealed stays sealed.
    async fn changes(&self) -> Vec<StateChange> {
        self.0.changes.iter().cloned().map(StateChange::from).collect()
    }
}

/// What lies between two moments.
#[derive(SimpleObject)]
pub(crate) struct StateChanges {
    /// The position of the first moment.
    from: At,
    /// The position of the second.
    to: At,
    /// Events of the thing in between.
    events: BigInt,
    /// From the state at the first to that at the second, by path.
    changes: Vec<StateChange>,
}

/// The stream's id without the kind that a global id has; nothing when the stream is not the caller's.
async fn own(scope: &Scope<'_>, aggregate_type: &str, id: &ID) -> ApiResult<Option<String>> {
    let id = id.rsplit(':').next().unwrap_or_default().to_owned();
    let stream = EventFilter {
        aggregate_type: Some(aggregate_type.to_owned()),
        aggregate_id: Some(id.clone()),
        ..EventFilter::default()
    };
    let first = scope.services.log.page(&stream, Page::oldest(1)).await?.pop();
    match first {
        Some(event) if is_own(scope.services, scope.request, &event).await? => Ok(Some(id)),
        _ => Ok(None),
    }
}

/// Events of one thing that are folded for one answer, at most.
const MOST_EVENTS: i64 = 100_000;

/// Refuses what would have to fold too much.
async fn is_short(scope: &Scope<'_>, aggregate_type: &str, id: &str, upto: Position) -> ApiResult<()> {
    let stream = EventFilter {
        aggregate_type: Some(aggregate_type.to_owned()),
        aggregate_id: Some(id.to_owned()),
        upto: Some(upto),
        ..EventFilter::default()
    };
    let newest = scope.services.log.page(&stream, Page::newest(1)).await?.pop();
    match newest {
        Some(event) if event.sequence > MOST_EVENTS => Err(ApiError::bad_input(format!(
            "{} events lie before that moment, at most {MOST_EVENTS} can be gone through in one request: ask \
             about an earlier one, or use `botledger history` and `botledger diff`",
            event.sequence
        ))),
        _ => Ok(()),
    }
}

#[derive(Default)]
pub(crate) struct HistoryQuery;

#[Object]
impl HistoryQuery {
    /// One thing's events, newest first, each with what it changed; with `asOf` those up to then. Things are
    /// named as in `Event`; of a global id the part behind the colon counts.
    #[graphql(
        guard = "Needs(Permission::ReadLedger)",
        complexity = "super::past_cost(as_of.is_some()) + super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the thing and the moment")]
    async fn history(
        &self,
        ctx: &Context<'_>,
        aggregate_type: String,
        aggregate_id: ID,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        as_of: Option<AsOf>,
    ) -> ApiResult<List<HistoryStep>> {
        let scope = Scope::then(ctx, as_of).await?;
        let paging = Slice { first, after, last, before }.of("history")?;
        let log = &scope.services.log;
        let upto = match scope.moment {
            Some(moment) => moment.position,
            None => log.head().await?,
        };
        let mut steps = Vec::new();
        if let Some(id) = own(&scope, &aggregate_type, &aggregate_id).await? {
            is_short(&scope, &aggregate_type, &id, upto).await?;
            steps = history(log, &aggregate_type, &id, upto, paging.page).await?.unwrap_or_default();
        }
        log.flushed().await?;
        Ok(paging.connect(steps, EmptyFields, |step| step.event.position.0, HistoryStep))
    }

    /// What changed in one thing between two moments; until now when `to` is null. Null when the thing does
    /// not exist for the caller.
    #[graphql(guard = "Needs(Permission::ReadLedger)", complexity = "50 + child_complexity")]
    async fn changes(
        &self,
        ctx: &Context<'_>,
        aggregate_type: String,
        aggregate_id: ID,
        from: AsOf,
        to: Option<AsOf>,
    ) -> ApiResult<Option<StateChanges>> {
        let scope = Scope::of(ctx)?;
        let log = &scope.services.log;
        let from = scope.moment_of(from).await?.position;
        let to = match to {
            Some(to) => scope.moment_of(to).await?.position,
            None => log.head().await?,
        };
        if to < from {
            return Err(ApiError::bad_input("from must not be after to"));
        }
        let Some(id) = own(&scope, &aggregate_type, &aggregate_id).await? else { return Ok(None) };
        is_short(&scope, &aggregate_type, &id, to).await?;
        let between = changes_between(log, &aggregate_type, &id, from, to).await?;
        log.flushed().await?;
        Ok(between.map(|between| StateChanges {
            from: from.into(),
            to: to.into(),
            events: BigInt(i64::try_from(between.events).unwrap_or(i64::MAX)),
            changes: between.changes.into_iter().map(StateChange::from).collect(),
        }))
    }
}
