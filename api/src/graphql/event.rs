//! The event log: what happened, in the order it happened.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_graphql::{Context, InputObject, Json, Object, Subscription};
use botledger_domain::{EventMetadata, Position, RecordedEvent, leaf::Leaf, operator::Permission};
use botledger_projections::{EventFilter, TailError};
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream, stream::BoxStream};
use tokio::time::Instant;

use super::{
    AsOf, Needs, RequestContext, Scope,
    error::{ApiError, ApiResult},
    moment::Moments,
    page::{List, Slice},
    scalars::At,
};
use crate::{
    Services,
    auth::{self, AuthFailure, Identity},
};

/// How often a running subscription asks whether its operator may still see, besides when the ledger
/// tells something about them.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The same while it could not be told.
const LOOK_SOON: Duration = Duration::from_secs(1);
/// Events looked through at once for those of the caller's workspace.
const SCAN: i64 = 1_000;
/// Events looked through before a page that is not full, and not empty, is shown as it is.
const ENOUGH: usize = 5_000;

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

pub(super) async fn is_own(
    services: &Services,
    request: &RequestContext,
    event: &RecordedEvent,
) -> ApiResult<bool> {
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
        scope.services.log.flushed().await?;
        match found {
            Some(event) if is_own(scope.services, scope.request, &event).await? => {
                Ok(Some(Event(Arc::new(event))))
            }
            _ => Ok(None),
        }
    }

    /// The ledger, newest first; with `asOf` what was in it then.
    #[graphql(
        guard = "Needs(Permission::ReadLedger)",
        complexity = "super::past_cost(as_of.is_some()) + super::page_cost(first, last) * child_complexity"
    )]
    #[expect(clippy::too_many_arguments, reason = "Relay's four, the filter and the moment")]
    async fn events(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
        filter: Option<EventFilterInput>,
        as_of: Option<AsOf>,
    ) -> ApiResult<List<Event>> {
        let scope = Scope::then(ctx, as_of).await?;
        let paging = Slice { first, after, last, before }.of("events")?;
        let mut filter = EventFilter::from(filter.unwrap_or_default());
        let then = scope.moment.map(|moment| moment.position);
        filter.upto = [filter.upto, then].into_iter().flatten().min();
        let wanted = usize::try_from(paging.page.limit).unwrap_or_default();
        let mut page = paging.page;
        let mut rows: VecDeque<RecordedEvent> = VecDeque::new();
        let (mut looked_through, mut more) = (0, false);
        while !more {
            let found = scope.services.log.page(&filter, page).await?;
            let whole = i64::try_from(found.len()) == Ok(page.limit);
            looked_through += found.len();
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
            // The next page goes on behind the last row of this one, so it must have a row.
            more = looked_through >= ENOUGH && !rows.is_empty();
            page.limit = page.limit.max(SCAN);
        }
        scope.services.log.flushed().await?;
        if page.from_end {
            rows.drain(..rows.len().saturating_sub(wanted));
        } else {
            rows.truncate(wanted);
        }
        let fields = async_graphql::connection::EmptyFields;
        let mut list =
            paging.connect(rows.into(), fields, |event| event.position.0, |event| Event(Arc::new(event)));
        let beyond = if page.from_end { &mut list.has_previous_page } else { &mut list.has_next_page };
        *beyond |= more;
        Ok(list)
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

type Events = BoxStream<'static, Result<Arc<RecordedEvent>, TailError>>;

/// An event on its way to a subscriber, with what is needed to look at it.
pub(super) struct Followed {
    pub(super) services: Arc<Services>,
    pub(super) request: Arc<RequestContext>,
    pub(super) event: Arc<RecordedEvent>,
}

/// Whether a subscriber may still see.
struct Watch {
    services: Arc<Services>,
    identity: Identity,
    permission: Permission,
    /// When to look again.
    due: Instant,
    /// Whether the last look told something.
    certain: bool,
}

impl Watch {
    /// Looks at the operator as they stand now. What a role may see is fixed when a subscription
    /// begins, for every field in it, so another role ends it.
    async fn look(&mut self) -> ApiResult<()> {
        let now = auth::again(&self.services, &self.identity).await;
        self.certain = !matches!(now, Err(AuthFailure::Unavailable));
        self.due = Instant::now() + if self.certain { LOOK_AGAIN } else { LOOK_SOON };
        match now {
            Ok(now) if now.role == self.identity.role => Ok(()),
            Ok(now) if now.role.may(self.permission) => {
                Err(ApiError::conflict("your role was changed; subscribe again"))
            }
            Ok(_) => {
                Err(ApiError::forbidden(format!("this needs the permission {}", self.permission.as_ref())))
            }
            Err(AuthFailure::Refused) => Err(ApiError::unauthenticated()),
            Err(AuthFailure::Unavailable) => Err(ApiError::away()),
        }
    }

    /// The next event that they may see now; nothing is shown while that cannot be told.
    async fn next(&mut self, events: &mut Events) -> Option<ApiResult<Arc<RecordedEvent>>> {
        let next = loop {
            match tokio::time::timeout_at(self.due, events.next()).await {
                Ok(next) => break next?,
                Err(_) => match self.look().await {
                    // There is nothing to show yet.
                    Err(_) if !self.certain => {}
                    Err(error) => return Some(Err(error)),
                    Ok(()) => {}
                },
            }
        };
        let event = match next {
            Ok(event) => event,
            Err(error) => return Some(Err(ApiError::unavailable(error))),
        };
        let about_them =
            event.aggregate_type == "operator" && event.aggregate_id == self.identity.operator.to_string();
        if (about_them || !self.certain || Instant::now() >= self.due)
            && let Err(error) = self.look().await
        {
            return Some(Err(error));
        }
        Some(Ok(event))
    }
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
        ip: scope.request.ip,
        moments: Moments::default(),
        origin: scope.request.origin.clone(),
        noted: Arc::clone(&scope.request.noted),
    });
    let after = after.map_or_else(|| services.tail.head(), |at| at.0);
    let events: Events = services.tail.follow(after).boxed();
    let due = Instant::now() + LOOK_AGAIN;
    let watch = Watch { services, identity, permission, due, certain: true };
    let followed = stream::unfold(Some((events, watch, request)), move |state| {
        let (look, filter) = (look.clone(), filter.clone());
        async move {
            let (mut events, mut watch, request) = state?;
            loop {
                let event = match watch.next(&mut events).await? {
                    Ok(event) => event,
                    Err(error) => return Some((Err(error.into()), None)),
                };
                if !filter.matches(&event) {
                    continue;
                }
                let services = Arc::clone(&watch.services);
                match is_own(&services, &request, &event).await {
                    Ok(true) => {}
                    Ok(false) => continue,
                    Err(error) => return Some((Err(error.into()), None)),
                }
                let request_of_it = Arc::clone(&request);
                match look(Followed { services, request: request_of_it, event }).await {
                    Ok(Some(item)) => return Some((Ok(item), Some((events, watch, request)))),
                    Ok(None) => {}
                    Err(error) => return Some((Err(error.into()), None)),
                }
            }
        }
    });
    Ok(followed.boxed())
}
