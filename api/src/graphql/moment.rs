//! `asOf`: fields that are answered from the past, and everything below them from the same moment of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use async_graphql::{Context, OneofObject, context::QueryPathSegment};
use botledger_domain::Position;
use botledger_projections::{PastError, ReadPool};
use chrono::{DateTime, Utc};

use super::{
    Scope,
    edges::Edges,
    error::{ApiError, ApiResult},
    scalars::At,
};

/// A moment in the ledger.
#[derive(OneofObject)]
pub(crate) enum AsOf {
    /// After the event at this position.
    Position(At),
    /// After all events recorded up to this moment.
    Time(DateTime<Utc>),
}

/// A moment of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Of the last event that had happened.
    pub(crate) position: Position,
    /// What the clock showed: as it was asked for, else when that event was recorded.
    pub(crate) at: DateTime<Utc>,
}

/// Which fields of one request are answered from the past. A field tells it under its key in the
/// answer, and whatever lies below finds it there.
pub(crate) struct Moments {
    /// When the request came: copies of all its fields are waited for within one time.
    begun: Instant,
    asked: Mutex<HashMap<String, Moment>>,
    edges: Mutex<HashMap<(Position, &'static str), Arc<Edges>>>,
}

impl Default for Moments {
    fn default() -> Self {
        Self { begun: Instant::now(), asked: Mutex::default(), edges: Mutex::default() }
    }
}

fn key<'a>(ctx: &'a Context<'_>) -> Option<&'a str> {
    let mut node = ctx.path_node.as_ref()?;
    while let Some(parent) = node.parent {
        node = parent;
    }
    match node.segment {
        QueryPathSegment::Name(name) => Some(name),
        QueryPathSegment::Index(_) => None,
    }
}

impl Moments {
    pub(super) fn of(&self, ctx: &Context<'_>) -> Option<Moment> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get(key(ctx)?).copied()
    }

    fn ask(&self, ctx: &Context<'_>, moment: Moment) {
        if let Some(key) = key(ctx) {
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), moment);
        }
    }
}

impl From<PastError> for ApiError {
    fn from(error: PastError) -> Self {
        match error {
            PastError::Building { .. } | PastError::Busy => Self::not_yet(error.to_string()),
            PastError::TooLarge { .. } => Self::bad_input(error.to_string()),
            PastError::Unknown { .. } | PastError::Failed { .. } => Self::unavailable(error),
        }
    }
}

impl<'a> Scope<'a> {
    /// The scope of a field with `asOf`: from here on it, and everything below it, is of that moment.
    pub(crate) async fn then(ctx: &Context<'a>, as_of: Option<AsOf>) -> ApiResult<Self> {
        let mut scope = Self::of(ctx)?;
        if let Some(as_of) = as_of {
            let moment = scope.moment_of(as_of).await?;
            scope.request.moments.ask(ctx, moment);
            scope.moment = Some(moment);
        }
        Ok(scope)
    }

    /// The same request, asking about now: what belongs to whom does not change.
    pub(crate) fn live(&self) -> Scope<'a> {
        Scope { services: self.services, request: self.request, moment: None }
    }

    /// What the clock shows, or showed then.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.moment.map_or_else(|| self.services.app.core.clock.now(), |moment| moment.at)
    }

    /// Where to read a read model's rows, as they are or as they were then.
    pub(crate) async fn read(&self, read_model: &'static str) -> ApiResult<ReadPool> {
        let Some(moment) = self.moment else { return Ok(self.services.read.clone()) };
        // The answer has to be made in time as well.
        let patience =
            (self.services.config.request_timeout / 2).saturating_sub(self.request.moments.begun.elapsed());
        let workspace = self.identity()?.workspace;
        Ok(self.services.past.at(workspace, read_model, moment.position, patience).await?)
    }

    /// Rows of a read model that lists point to.
    pub(crate) async fn edges(&self, read_model: &'static str) -> ApiResult<Arc<Edges>> {
        let Some(moment) = self.moment else { return Ok(Arc::clone(&self.services.edges)) };
        let place = (moment.position, read_model);
        let known = |edges: &HashMap<_, Arc<Edges>>| edges.get(&place).cloned();
        let edges = &self.request.moments.edges;
        if let Some(edges) = known(&edges.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(edges);
        }
        let made = Arc::new(Edges::new(self.read(read_model).await?));
        let mut edges = edges.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(edges.entry(place).or_insert(made)))
    }

    /// The moment that is meant.
    pub(crate) async fn moment_of(&self, as_of: AsOf) -> ApiResult<Moment> {
        let log = &self.services.log;
        let moment = match as_of {
            AsOf::Position(At(position)) => {
                let head = log.head().await?;
                if position > head {
                    return Err(ApiError::bad_input(format!(
                        "the ledger ends at {head}: asOf cannot be in the future"
                    )));
                }
                let at = log.recorded_at(position).await?.unwrap_or(DateTime::UNIX_EPOCH);
                Moment { position, at }
            }
            AsOf::Time(at) => {
                let now = log.now().await?;
                if at > now {
                    return Err(ApiError::bad_input(format!(
                        "the ledger's clock shows {}: asOf cannot be in the future",
                        now.to_rfc3339()
                    )));
                }
                Moment { position: log.position_at(at).await?, at }
            }
        };
        // What a crash of the server could still take back is not the past yet.
        log.flushed().await?;
        Ok(moment)
    }
}
