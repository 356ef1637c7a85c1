//! Answers as server-sent events, for clients without WebSocket: the "distinct connections mode" of
//! graphql-sse.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderName, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};

use super::{
    Inner, Lasting,
    execute::{self, Ready},
};
use crate::serve::Server;

/// A comment is sent this often, so that nobody in between takes the silence for the end.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// With an empty line of data: browsers do not tell of an event without any.
const COMPLETE: &str = "event: complete\ndata: \n\n";

pub(super) fn answer(
    inner: Arc<Inner>,
    ready: Result<Ready, async_graphql::Response>,
    server: Option<Server>,
    lasting: Lasting,
) -> Response {
    let responses = match ready {
        Ok(ready) => execute::stream(inner, ready).boxed(),
        Err(response) => stream::iter([response]).boxed(),
    };
    let texts = stream::unfold(Some(responses), |responses| async move {
        let mut responses = responses?;
        match tokio::time::timeout(KEEP_ALIVE, responses.next()).await {
            Ok(Some(response)) => {
                // JSON text has no line breaks of its own.
                let data = serde_json::to_string(&response).unwrap_or_default();
                Some((format!("event: next\ndata: {data}\n\n"), Some(responses)))
            }
            Ok(None) => Some((COMPLETE.to_owned(), None)),
            Err(_) => Some((":\n\n".to_owned(), Some(responses))),
        }
    });
    let stopping = server.map(|server| server.stopping);
    let stopped = async move {
        match stopping {
            Some(stopping) => stopping.cancelled_owned().await,
            None => std::future::pending().await,
        }
    };
    let texts = texts.take_until(Box::pin(stopped)).map(move |text| {
        let _held = &lasting;
        Ok::<_, Infallible>(text)
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        // Proxies that gather answers would hold every event back.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(texts)).into_response()
}
