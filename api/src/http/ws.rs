//! `graphql-transport-ws`, to the letter: close codes, the wait for `connection_init`, one task an
//! operation.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade},
    http::{HeaderMap, StatusCode, Uri, header},
    response::Response,
};
use futures::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{
    Inner, Lasting, busy,
    execute::{self, Asked},
    identify, share, stay, user_agent,
};
use crate::{
    admin::problem,
    auth::{self, AuthFailure, Identity},
    graphql::error::ApiError,
    rate_limit,
    serve::Server,
    shares::Who,
};

const PROTOCOL: &str = "graphql-transport-ws";
/// `connection_init` must come within this time.
const INIT_PATIENCE: Duration = Duration::from_secs(10);
/// Both sides hear from each other this often.
const PING: Duration = Duration::from_secs(20);
/// Pings without any sign of life before a peer is taken for gone.
const UNANSWERED: u32 = 2;
/// A peer that takes nothing for this long is gone.
const SEND_PATIENCE: Duration = Duration::from_secs(20);
/// Operations of one socket at the same time.
const MOST_OPERATIONS: usize = 20;
/// Messages that wait to be sent; a slow client holds its own subscriptions up, nobody else's.
const WAITING: usize = 64;

/// Why a socket is closed.
type Close = (u16, &'static str);

const BAD_MESSAGE: Close = (4400, "Invalid message");
const UNAUTHORIZED: Close = (4401, "Unauthorized");
const FORBIDDEN: Close = (4403, "Forbidden");
const INIT_TIMEOUT: Close = (4408, "Connection initialisation timeout");
const TOO_MANY_INITS: Close = (4429, "Too many initialisation requests");
const GOING_AWAY: Close = (1001, "Going away");
const SILENT: Close = (1008, "Pings were not answered");
const TRY_LATER: Close = (1013, "Try again later");

pub(super) async fn accept(
    inner: Arc<Inner>,
    upgrade: WebSocketUpgrade,
    headers: &HeaderMap,
    peer: Option<IpAddr>,
    server: Option<Server>,
) -> Response {
    if !same_origin(headers, &inner.services.config.public_url) {
        return problem(StatusCode::FORBIDDEN, "FORBIDDEN", "WebSockets are for pages of this server");
    }
    let offered =
        headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let known = offered.flat_map(|value| value.split(',')).any(|protocol| protocol.trim() == PROTOCOL);
    let identity = match identify(&inner, headers).await {
        Ok(identity) => identity,
        Err(response) => return response,
    };
    let Some(lasting) = stay(&inner, Who::of(identity.as_ref(), peer)) else { return busy() };
    let limit = inner.services.config.max_body_bytes;
    let user_agent = user_agent(headers);
    upgrade.protocols([PROTOCOL]).max_message_size(limit).max_frame_size(limit).on_upgrade(move |socket| {
        let stopping = server.as_ref().map_or_else(CancellationToken::new, |server| server.stopping.clone());
        let served = async move {
            metrics::gauge!("botledger_api_sockets").increment(1.0);
            Socket { inner, peer, user_agent, identity, stopping, lasting }.serve(socket, known).await;
            metrics::gauge!("botledger_api_sockets").decrement(1.0);
        };
        // The server waits for tracked tasks before it ends.
        let tracked = server.map(|server| server.tasks.token());
        async move {
            served.await;
            drop(tracked);
        }
    })
}

/// Browsers say where a page is from; other clients say nothing.
fn same_origin(headers: &HeaderMap, public_url: &str) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let Some(from) = origin.to_str().ok().and_then(origin_of) else { return false };
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Behind a proxy that ends TLS the scheme of the page is not ours.
    let own = origin_of(&format!("{}://{host}", from.0));
    own.as_ref() == Some(&from) || origin_of(public_url).as_ref() == Some(&from)
}

/// Scheme, host and port of an address.
fn origin_of(url: &str) -> Option<(String, String, u16)> {
    let url: Uri = url.parse().ok()?;
    let scheme = url.scheme_str()?.to_ascii_lowercase();
    let usual = match scheme.as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    let port = url.port_u16().or(usual)?;
    Some((scheme, url.host()?.to_ascii_lowercase(), port))
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Incoming {
    ConnectionInit {
        #[serde(default)]
        payload: Value,
    },
    Ping {
        #[serde(default)]
        payload: Value,
    },
    Pong,
    Subscribe {
        id: String,
        payload: Operation,
    },
    Complete {
        id: String,
    },
}

#[derive(Deserialize)]
struct Operation {
    query: String,
    #[serde(rename = "operationName")]
    operation_name: Option<String>,
    #[serde(default)]
    variables: Option<serde_json::Map<String, Value>>,
}

struct Socket {
    inner: Arc<Inner>,
    peer: Option<IpAddr>,
    user_agent: Option<String>,
    identity: Option<Identity>,
    stopping: CancellationToken,
    lasting: Lasting,
}

impl Socket {
    async fn serve(mut self, socket: WebSocket, known: bool) {
        let (mut sink, mut source) = socket.split();
        let (out, mut queue) = mpsc::channel::<Message>(WAITING);
        // One writer: operations only put into the queue.
        let writer = tokio::spawn(async move {
            while let Some(message) = queue.recv().await {
                let last = matches!(message, Message::Close(_));
                match tokio::time::timeout(SEND_PATIENCE, sink.send(message)).await {
                    Ok(Ok(())) if !last => {}
                    _ => break,
                }
            }
            // Flushed before it is dropped, or the peer sees 1006.
            let _ = tokio::time::timeout(SEND_PATIENCE, sink.close()).await;
        });
        let close = if known {
            self.talk(&mut source, &out).await
        } else {
            Some((4406, "Subprotocol not acceptable"))
        };
        if let Some((code, reason)) = close {
            let _ = out.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await;
        }
        drop(out);
        // A panic was reported by the runtime.
        let _ = writer.await;
    }

    /// Until one side ends; the reason when it is ours.
    async fn talk(
        &mut self,
        source: &mut (impl StreamExt<Item = Result<Message, axum::Error>> + Unpin),
        out: &mpsc::Sender<Message>,
    ) -> Option<Close> {
        let mut acknowledged = false;
        let mut operations: HashMap<String, Running> = HashMap::new();
        let mut running: JoinSet<()> = JoinSet::new();
        let patience = INIT_PATIENCE.min(self.inner.services.config.request_timeout);
        let init_until = tokio::time::Instant::now() + patience;
        let every = PING.min(self.inner.services.config.request_timeout);
        let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        let mut unanswered = 0;
        loop {
            let message = tokio::select! {
                () = self.stopping.cancelled() => return Some(GOING_AWAY),
                () = tokio::time::sleep_until(init_until), if !acknowledged => return Some(INIT_TIMEOUT),
                _ = ping.tick() => {
                    if acknowledged && let Some(close) = self.still_good().await {
                        return Some(close);
                    }
                    if unanswered == UNANSWERED {
                        return Some(SILENT);
                    }
                    unanswered += 1;
                    out.send(text(json!({"type": "ping"}))).await.ok()?;
                    continue;
                }
                Some(_) = running.join_next(), if !running.is_empty() => continue,
                message = source.next() => message?.ok()?,
            };
            // Whatever they say, they are there.
            unanswered = 0;
            let message = match message {
                Message::Text(message) => serde_json::from_str::<Incoming>(&message),
                Message::Binary(_) => return Some(BAD_MESSAGE),
                Message::Close(_) => return None,
                Message::Ping(_) | Message::Pong(_) => continue,
            };
            operations.retain(|_, operation| !operation.is_over());
            match message {
                Err(_) => return Some(BAD_MESSAGE),
                Ok(Incoming::Pong) => {}
                Ok(Incoming::Ping { payload }) => {
                    let mut pong = json!({"type": "pong"});
                    if !payload.is_null() {
                        pong["payload"] = payload;
                    }
                    out.send(text(pong)).await.ok()?;
                }
                Ok(Incoming::ConnectionInit { .. }) if acknowledged => return Some(TOO_MANY_INITS),
                Ok(Incoming::ConnectionInit { payload }) => {
                    if let Some(close) = self.introduce(&payload).await {
                        return Some(close);
                    }
                    acknowledged = true;
                    out.send(text(json!({"type": "connection_ack"}))).await.ok()?;
                }
                Ok(Incoming::Subscribe { .. }) if !acknowledged => return Some(UNAUTHORIZED),
                Ok(Incoming::Subscribe { id, .. }) if id.is_empty() || id.len() > 200 => {
                    return Some(BAD_MESSAGE);
                }
                Ok(Incoming::Subscribe { id, .. }) if operations.contains_key(&id) => {
                    return Some((4409, "Subscriber already exists"));
                }
                Ok(Incoming::Subscribe { .. }) if operations.len() >= MOST_OPERATIONS => {
                    return Some(TRY_LATER);
                }
                Ok(Incoming::Subscribe { id, payload }) => {
                    let over = Arc::new(AtomicBool::new(false));
                    let operation = self.operation(id.clone(), payload, out.clone(), Arc::clone(&over));
                    operations.insert(id, Running { task: running.spawn(operation), over });
                }
                Ok(Incoming::Complete { id }) => {
                    if let Some(operation) = operations.remove(&id) {
                        operation.task.abort();
                    }
                }
            }
        }
    }

    /// Who it is, from the payload of `connection_init` or from the request's header. Nobody stays
    /// without a token: logging in is for HTTP.
    async fn introduce(&mut self, payload: &Value) -> Option<Close> {
        let given = ["Authorization", "authorization"].iter().find_map(|name| payload[name].as_str());
        let Some(given) = given else { return self.identity.is_none().then_some(FORBIDDEN) };
        let token = auth::bearer(given).unwrap_or(given);
        let identity = match auth::authenticate(&self.inner.services, token).await {
            Ok(identity) => identity,
            Err(AuthFailure::Refused) => return Some(FORBIDDEN),
            Err(AuthFailure::Unavailable) => return Some(TRY_LATER),
        };
        let who = Who::of(Some(&identity), self.peer);
        let Some(share) = share(&self.inner.lasting_shares, who, "lasting_share") else {
            return Some(TRY_LATER);
        };
        self.lasting.share = share;
        self.identity = Some(identity);
        None
    }

    /// Long sockets do not outlive their token.
    async fn still_good(&mut self) -> Option<Close> {
        let identity = self.identity.as_ref()?;
        match auth::again(&self.inner.services, identity).await {
            Ok(now) => {
                self.identity = Some(now);
                None
            }
            Err(AuthFailure::Refused) => Some(UNAUTHORIZED),
            Err(AuthFailure::Unavailable) => None,
        }
    }

    /// One operation: `next` for every answer, `error` when nothing could be executed, `complete`.
    fn operation(
        &self,
        id: String,
        operation: Operation,
        out: mpsc::Sender<Message>,
        over: Arc<AtomicBool>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (inner, known, ip) = (Arc::clone(&self.inner), self.identity.clone(), self.peer);
        let user_agent = self.user_agent.clone();
        async move {
            // The id is free again before the client can know that it is.
            let last = async |message: Value| {
                over.store(true, Ordering::Release);
                let _ = out.send(text(message)).await;
            };
            // What they may is asked anew for every operation, as over HTTP.
            let identity = match &known {
                None => Ok(None),
                Some(known) => auth::again(&inner.services, known).await.map(Some),
            };
            let refused = |refusal| {
                let response = execute::failed(refusal, inner.services.app.core.ids.next());
                error(&id, &response)
            };
            let identity = match identity {
                Ok(identity) => identity,
                Err(AuthFailure::Refused) => return last(refused(ApiError::unauthenticated())).await,
                Err(AuthFailure::Unavailable) => return last(refused(ApiError::away())).await,
            };
            if let Some(identity) = &identity
                && let Err(unserved) = rate_limit::serve(&inner.services, identity, ip).await
            {
                let now = inner.services.app.core.clock.now();
                return last(refused(unserved.into_error(now))).await;
            }
            let asked = Asked {
                query: operation.query,
                operation_name: operation.operation_name,
                variables: operation.variables.unwrap_or_default(),
                identity,
                ip,
                user_agent,
            };
            let ready = match execute::prepare(&inner, asked) {
                Ok(ready) => ready,
                Err(response) => return last(error(&id, &response)).await,
            };
            let mut responses = std::pin::pin!(execute::stream(inner, ready));
            let mut first = true;
            while let Some(response) = responses.next().await {
                if first && execute::is_request_error(&response) {
                    return last(error(&id, &response)).await;
                }
                first = false;
                if out.send(text(json!({"id": id, "type": "next", "payload": response}))).await.is_err() {
                    return;
                }
            }
            last(json!({"id": id, "type": "complete"})).await;
        }
    }
}

/// An operation of a socket.
struct Running {
    task: AbortHandle,
    /// Its last message is on its way.
    over: Arc<AtomicBool>,
}

impl Running {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire) || self.task.is_finished()
    }
}

fn error(id: &str, response: &async_graphql::Response) -> Value {
    json!({"id": id, "type": "error", "payload": response.errors})
}

fn text(message: Value) -> Message {
    Message::Text(message.to_string().into())
}
