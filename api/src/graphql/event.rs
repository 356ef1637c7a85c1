//! The event log: what happened, in the order it happened.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_graphql::{Context, InputObject, Json, Object, Subscription};
use botledger_domain::{EventMetadata, Position, RecordedEvent, leaf::Leaf, operator::Permission};
use botledger_projections::EventFilter;
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream, stream::BoxStream};

use super::{
    Needs, RequestContext, Scope,
    error::{ApiError, ApiResult},
    page::{List, Slice},
    scalars::At,
};
use crate::{Services, auth};

/// How often a running subscription asks whether its operator may still see, besides when the ledger
/// tells something about them.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Pages looked through for events of the caller's workspace, at most.
const PAGES: usize = 20;

pub(crate) struct Event(pub(crate) Arc<RecordedEvent>);

impl Event {
    fn metadata(&self) -> ApiResult<EventMetadata> {
        self.0.decode_metadata().map_err(ApiError::unavailable)
    }
}

/// An event of the ledger. Personal data in it is sealed.
#[Object]
impl Event {
    /// Its place in the ledger.
    async fn position(&self) -> At {
        self.0.position.into()
    }

    /// By the database's clock.
    async fn recorded_at(&self) -> DateTime<Utc> {
        self.0.recorded_at
    }

    /// For example `turn`.
    async fn aggregate_type(&self) -> &str {
        &self.0.aggregate_type
    }

    /// The stream's id.
    async fn aggregate_id(&self) -> &str {
        &self.0.aggregate_id
    }

    /// Its place in the stream, from 1.
    async fn sequence(&self) -> i64 {
        self.0.sequence
    }

    /// For example `reply_delivered`.
    async fn event_type(&self) -> &str {
        &self.0.event_type
    }

    /// Version of the event's schema.
    async fn event_version(&self) -> &str {
        &self.0.event_version
    }

    /// Who caused it, for example `operator:0190…`.
    async fn actor(&self) -> ApiResult<String> {
        Ok(self.metadata()?.actor)
    }

    /// One id for everything that followed from one cause.
    async fn correlation_id(&self) -> ApiResult<String> {
        Ok(self.metadata()?.correlation_id)
    }

    /// From where: `graphql`, `intake`, `worker`, …
    async fn source(&self) -> ApiResult<String> {
        Ok(self.metadata()?.source)
    }

    /// Process that wrote it.
    async fn instance(&self) -> ApiResult<String> {
        Ok(self.metadata()?.instance)
    }

    /// What happened.
    async fn payload(&self) -> ApiResult<Json<serde_json::Value>> {
        serde_json::from_str(&self.0.payload).map(Json).map_err(ApiError::unavailable)
    }

    /// SHA-256 of its leaf, hex; what proofs are built on.
    async fn leaf_hash(&self) -> String {
        let event = &self.0;
        let leaf = Leaf {
            position: event.position.0,
            recorded_at_micros: event.recorded_at.timestamp_micros(),
            aggregate_type: &event.aggregate_type,
            aggregate_id: &event.aggregate_id,
            sequence: event.sequence,
            event_type: &event.event_type,
            event_version: &event.event_version,
            payload: &event.payload,
            metadata: &event.metadata,
        };
        hex::encode(leaf.hash())
    }
}

/// Which events; everything given must hold.
#[derive(Default, InputObject)]
struct EventFilterInput {
    /// `bot`, `turn`, `chat_session`, `quota`, `standing`, `workspace`, `operator`, `subject`.
    aggregate_type: Option<String>,
    /// The stream's id, without kind.
    aggregate_id: Option<String>,
    /// Any of these.
    event_types: Option<Vec<String>>,
    /// For example `operator:0190…`.
    actor: Option<String>,
    correlation_id: Option<String>,
    /// At or after, by the database's clock.
    recorded_from: Option<DateTime<Utc>>,
    /// Before, by the database's clock.
    recorded_until: Option<DateTime<Utc>>,
    /// Above this position.
    after_position: Option<At>,
    /// Up to this position.
    upto_position: Option<At>,
}

impl From<EventFilterInput> for EventFilter {
    fn from(filter: EventFilterInput) -> Self {
        Self {
            aggregate_type: filter.aggregate_type,
            aggregate_id: filter.aggregate_id,
            event_types: filter.event_types,
            actor: filter.actor,
            correlation_id: filter.correlation_id,
            recorded_from: filter.recorded_from,
            recorded_until: filter.recorded_until,
            after: filter.after_position.map(|at| at.0),
            upto: filter.upto_position.map(|at| at.0),
        }
    }
}

async fn is_own(services: &Services, request: &RequestContext, event: &RecordedEvent) -> ApiResult<bool> {
    let workspace = request.identity.as_ref().map(|identity| identity.workspace);
    Ok(workspace.is_some() && services.owners.of(&services.app, event).await? == workspace)
}

#[derive(Default)]
pub(crate) struct EventQuery;

#[Object]
impl EventQuery {
    /// One event by its position.
    #[graphql(guard = "Needs(Permission::ReadLedger)")]
    async fn event(&self, ctx: &Context<'_>, position: At) -> ApiResult<Option<Event>> {
        let scope = Scope::of(ctx)?;
        let before = Position(position.0.0 - 1);
        let found =
            scope.services.log.after(before, 1).await?.pop().filter(|event| event.position == position.0);
        match found {
            Some(event) if is_own(scope.services, scope.request, &event).await? => {
                Ok(Some(Event(Arc::new(event))))
            }
            _ => Ok(None),
        }
    }

    /// The ledger, newest first.
    #[graphql(
        guard = "Needs(Permission::ReadLedger)",
        complexity = "super::page_cost(first, last) * child_complexity"
    )]
    async fn events(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<EventFilterInput>,
    ) -> ApiResult<List<Event>> {
        let scope = Scope::of(ctx)?;
        let paging = Slice { first, after, last, before }.of("events")?;
        let filter = EventFilter::from(filter.unwrap_or_default());
        let wanted = usize::try_from(paging.page.limit).unwrap_or_default();
        let mut page = paging.page;
        let mut rows: VecDeque<RecordedEvent> = VecDeque::new();
        for _ in 0..PAGES {
            let found = scope.services.log.page(&filter, page).await?;
            let whole = found.len() == wanted;
            let edge = if page.from_end { found.first() } else { found.last() }.map(|event| event.position);
            let mut own = Vec::with_capacity(found.len());
            for event in found {
                if is_own(scope.services, scope.request, &event).await? {
                    own.push(event);
                }
            }
            if page.from_end {
                own.into_iter().rev().for_each(|event| rows.push_front(event));
                page.before = edge;
            } else {
                rows.extend(own);
                page.after = edge;
            }
            if rows.len() >= wanted || !whole {
                break;
            }
        }
        if page.from_end {
            rows.drain(..rows.len().saturating_sub(wanted));
        } else {
            rows.truncate(wanted);
        }
        let fields = async_graphql::connection::EmptyFields;
        Ok(paging.connect(rows.into(), fields, |event| event.position.0, |event| Event(Arc::new(event))))
    }
}

#[derive(Default)]
pub(crate) struct EventSubscription;

#[Subscription]
impl EventSubscription {
    /// Every event after a position, each once and in order; from now on when it is null. Resume with
    /// the last position received.
    #[graphql(guard = "Needs(Permission::ReadLedger)")]
    async fn event_recorded(
        &self,
        ctx: &Context<'_>,
        after: Option<At>,
        filter: Option<EventFilterInput>,
    ) -> Result<BoxStream<'static, async_graphql::Result<Event>>, ApiError> {
        let filter = EventFilter::from(filter.unwrap_or_default());
        follow(ctx, after, filter, Permission::ReadLedger, |followed: Followed| async move {
            Ok(Some(Event(followed.event)))
        })
    }
}

/// An event on its way to a subscriber, with what is needed to look at it.
pub(super) struct Followed {
    pub(super) services: Arc<Services>,
    pub(super) request: Arc<RequestContext>,
    pub(super) event: Arc<RecordedEvent>,
}

/// Follows the ledger for a subscriber: own workspace only, and only while its operator may.
pub(super) fn follow<T, Fut>(
    ctx: &Context<'_>,
    after: Option<At>,
    filter: EventFilter,
    permission: Permission,
    look: impl Fn(Followed) -> Fut + Send + Sync + Clone + 'static,
) -> ApiResult<BoxStream<'static, async_graphql::Result<T>>>
where
    Fut: Future<Output = ApiResult<Option<T>>> + Send,
    T: Send + 'static,
{
    let scope = Scope::of(ctx)?;
    let identity = scope.identity()?.clone();
    let services = Arc::clone(ctx.data_opt::<Arc<Services>>().ok_or_else(ApiError::internal)?);
    let request = Arc::new(RequestContext {
        id: scope.request.id,
        identity: Some(identity.clone()),
        ip: scope.request.ip.clone(),
    });
    let after = after.map_or_else(|| services.tail.head(), |at| at.0);
    let events = services.tail.follow(after);
    let looked_at = tokio::time::Instant::now();
    let state = (Box::pin(events), looked_at, services, request, identity);
    let followed = stream::unfold(Some(state), move |state| {
        let (look, filter) = (look.clone(), filter.clone());
        async move {
            let (mut events, mut looked_at, services, request, identity) = state?;
            loop {
                let until = looked_at + LOOK_AGAIN;
                let next = match tokio::time::timeout_at(until, events.next()).await {
                    Ok(next) => next?,
                    Err(_) => {
                        looked_at = tokio::time::Instant::now();
                        match auth::again(&services, &identity).await {
                            Ok(now) if now.role.may(permission) => continue,
                            // Whether they may cannot be told now: nothing is shown meanwhile.
                            Err(auth::AuthFailure::Unavailable) => continue,
                            _ => return Some((Err(ApiError::unauthenticated().into()), None)),
                        }
                    }
                };
                let event = match next {
                    Ok(event) => event,
                    Err(error) => return Some((Err(ApiError::unavailable(error).into()), None)),
                };
                let about_them =
                    event.aggregate_type == "operator" && event.aggregate_id == identity.operator.to_string();
                if about_them || tokio::time::Instant::now() >= until {
                    looked_at = tokio::time::Instant::now();
                    match auth::again(&services, &identity).await {
                        Ok(now) if now.role.may(permission) => {}
                        Err(auth::AuthFailure::Unavailable) => {
                            return Some((Err(ApiError::away().into()), None));
                        }
                        _ => return Some((Err(ApiError::unauthenticated().into()), None)),
                    }
                }
                if !filter.matches(&event) {
                    continue;
                }
                match is_own(&services, &request, &event).await {
                    Ok(true) => {}
                    Ok(false) => continue,
                    Err(error) => return Some((Err(error.into()), None)),
                }
                let followed =
                    Followed { services: Arc::clone(&services), request: Arc::clone(&request), event };
                match look(followed).await {
                    Ok(Some(item)) => {
                        let state = (events, looked_at, services, request, identity);
                        return Some((Ok(item), Some(state)));
                    }
                    Ok(None) => {}
                    Err(error) => return Some((Err(error.into()), None)),
                }
            }
        }
    });
    Ok(followed.boxed())
}
