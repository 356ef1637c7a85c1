//! Answers as server-sent events, for clients without WebSocket: the "distinct connections mode" of
//! graphql-sse.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::response::{
    IntoResponse, Response,
    sse::{Event, KeepAlive, Sse},
};
use futures::{StreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Inner,
    execute::{self, Ready},
};
use crate::serve::Server;

/// A comment is sent this often, so that nobody in between takes the silence for the end.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

fn next(response: &async_graphql::Response) -> Event {
    let data = serde_json::to_string(response).unwrap_or_default();
    Event::default().event("next").data(data)
}

pub(super) fn answer(
    inner: Arc<Inner>,
    ready: Result<Ready, async_graphql::Response>,
    server: Option<Server>,
    permit: OwnedSemaphorePermit,
) -> Response {
    let responses = match ready {
        Ok(ready) => execute::stream(inner, ready).boxed(),
        Err(response) => stream::iter([response]).boxed(),
    };
    let events = responses.map(|response| next(&response));
    let events = events.chain(stream::iter([Event::default().event("complete").data("")]));
    let stopping = server.map(|server| server.stopping);
    let stopped = async move {
        match stopping {
            Some(stopping) => stopping.cancelled_owned().await,
            None => std::future::pending().await,
        }
    };
    let events = events.take_until(Box::pin(stopped)).map(move |event| {
        let _held = &permit;
        Ok::<_, Infallible>(event)
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}
