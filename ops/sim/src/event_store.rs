//! KurrentDB, formerly EventStoreDB: appending to streams and reading them over its gRPC protocol.
//!
//! The rules of an append are the true ones: an expected revision is checked; one that has passed is
//! answered with success where the very same events (by id) already follow it, and with
//! `WrongExpectedVersion` where others do; what is larger than the greatest append is refused as a whole;
//! a stream that was deleted goes on counting. It fails on demand and keeps what it stored, an independent
//! witness of what was relayed.

#![expect(clippy::result_large_err, reason = "handlers give tonic's own error, which tonic wants as it is")]

mod wire;

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures::stream;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming, body::BoxBody, codec::ProstCodec, server::Grpc};
use uuid::Uuid;

use wire::{
    AppendReq, AppendResp, ReadReq, ReadResp, StreamIdentifier, SupportedMethod, SupportedMethods, WireUuid,
    append_req::{self, Expected, Proposed},
    append_resp::{self, Outcome},
    read_req::From as ReadFrom,
    read_resp,
};

/// What the true server accepts in one append when nobody says otherwise, in bytes.
const MAX_APPEND_BYTES: usize = 1024 * 1024;

/// How the stand-in runs.
#[derive(Clone, Debug)]
pub struct EventStoreConfig {
    /// `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Who may use it, name and password; anybody when empty.
    pub user: Option<(String, String)>,
    /// Greatest append, in bytes of data and metadata.
    pub max_append_bytes: usize,
    /// It is a follower, and this is the leader: requests that ask for the leader are sent there.
    pub leader: Option<SocketAddr>,
}

impl Default for EventStoreConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".to_owned(),
            user: None,
            max_append_bytes: MAX_APPEND_BYTES,
            leader: None,
        }
    }
}

/// What goes wrong with an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFault {
    /// `UNAVAILABLE`, and nothing stored.
    Unavailable,
    /// The connection ends, and nothing is stored.
    CutBefore,
    /// It is stored, and the connection ends before the answer.
    CutAfter,
    /// It is stored and answered after this time, also when nobody waits for that any more.
    Slow(Duration),
    /// It arrives twice, as if something between had repeated it; the second answer is given.
    Twice,
}

/// One event as it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Place in the stream, from 0.
    pub revision: u64,
    /// Chosen by whoever appended it.
    pub id: Uuid,
    /// Its type.
    pub event_type: String,
    /// `application/json` or `application/octet-stream`.
    pub content_type: String,
    /// Payload.
    pub data: Bytes,
    /// The writer's own metadata.
    pub metadata: Bytes,
}

#[derive(Default)]
struct Stream {
    events: Vec<StoredEvent>,
    /// Revisions before it are gone: the stream was deleted, but counts on.
    begins: u64,
    tombstoned: bool,
}

impl Stream {
    fn next_revision(&self) -> u64 {
        self.begins + self.events.len() as u64
    }

    fn after(&self, expected: Expected) -> u64 {
        match expected {
            Expected::Revision(revision) => revision + 1,
            Expected::NoStream(()) => self.begins,
            Expected::Any(()) | Expected::StreamExists(()) => self.next_revision(),
        }
    }
}

#[derive(Default)]
struct State {
    streams: HashMap<String, Stream>,
    faults: VecDeque<StoreFault>,
    storm: Option<(u64, Vec<StoreFault>)>,
    appends: u64,
    largest_append: usize,
    /// Slow appends that are not stored yet.
    late: u64,
    stopped: bool,
}

impl State {
    fn next_fault(&mut self) -> Option<StoreFault> {
        self.appends += 1;
        if let Some(fault) = self.faults.pop_front() {
            return Some(fault);
        }
        let (every, faults) = self.storm.as_ref()?;
        let due = self.appends.is_multiple_of(*every);
        let turn = usize::try_from(self.appends / every).unwrap_or_default();
        due.then(|| faults.get(turn % faults.len().max(1)).copied()).flatten()
    }

    /// The true server's rule, in the order in which it asks.
    fn append(&mut self, name: &str, expected: Expected, events: &[Proposed]) -> Result<AppendResp, Status> {
        let stream = self.streams.entry(name.to_owned()).or_default();
        if stream.tombstoned {
            return Err(stream_deleted(name));
        }
        let (next, after) = (stream.next_revision(), stream.after(expected));
        let exists = next > stream.begins;
        let ids: Vec<Uuid> = events
            .iter()
            .map(|event| event.id.as_ref().and_then(WireUuid::read).unwrap_or_default())
            .collect();
        if after < next {
            // Passed: the same write again, or another one.
            let from = usize::try_from(after.saturating_sub(stream.begins)).unwrap_or(usize::MAX);
            let there = stream.events.iter().skip(from).map(|event| event.id);
            let same = after >= stream.begins && there.take(ids.len()).eq(ids.iter().copied());
            return Ok(if same {
                success(after + ids.len() as u64 - 1)
            } else {
                wrong(expected, exists.then(|| next - 1))
            });
        }
        if after > next || matches!(expected, Expected::StreamExists(())) && !exists {
            return Ok(wrong(expected, exists.then(|| next - 1)));
        }
        for (event, id) in events.iter().zip(ids) {
            let said = |key: &str| event.metadata.get(key).cloned().unwrap_or_default();
            stream.events.push(StoredEvent {
                revision: stream.next_revision(),
                id,
                event_type: said("type"),
                content_type: said("content-type"),
                data: event.data.clone(),
                metadata: event.custom_metadata.clone(),
            });
        }
        Ok(success(stream.next_revision() - 1))
    }

    fn read(&self, request: &ReadReq) -> Result<Vec<ReadResp>, Status> {
        let options = request.options.as_ref();
        let from = options.and_then(|options| options.stream.as_ref());
        let (Some(options), Some(from)) = (options, from) else {
            return Err(Status::invalid_argument("only single streams are read here"));
        };
        let identifier = from.stream.clone().unwrap_or_default();
        let name = String::from_utf8_lossy(&identifier.stream_name).into_owned();
        let stream = self.streams.get(&name);
        if stream.is_some_and(|stream| stream.tombstoned) {
            return Err(stream_deleted(&name));
        }
        let Some(stream) = stream.filter(|stream| !stream.events.is_empty()) else {
            let none = read_resp::StreamNotFound { stream: Some(identifier) };
            return Ok(vec![ReadResp { content: Some(read_resp::Content::StreamNotFound(none)) }]);
        };
        let backwards = options.direction == 1;
        let count = usize::try_from(options.count).unwrap_or(usize::MAX);
        let asked = |event: &&StoredEvent| match from.from {
            Some(ReadFrom::Revision(revision)) if backwards => event.revision <= revision,
            Some(ReadFrom::Revision(revision)) => event.revision >= revision,
            Some(ReadFrom::Start(())) | None => !backwards || event.revision == 0,
            Some(ReadFrom::End(())) => backwards,
        };
        let found: Vec<&StoredEvent> = if backwards {
            stream.events.iter().rev().filter(asked).take(count).collect()
        } else {
            stream.events.iter().filter(asked).take(count).collect()
        };
        Ok(found.into_iter().map(|event| as_read(event, &identifier)).collect())
    }
}

fn success(revision: u64) -> AppendResp {
    let position = append_resp::LogPosition { commit: revision, prepare: revision };
    let success = append_resp::Success { current_revision: Some(revision), position: Some(position) };
    AppendResp { outcome: Some(Outcome::Success(success)) }
}

fn wrong(expected: Expected, current: Option<u64>) -> AppendResp {
    let expected = match expected {
        Expected::Revision(revision) => append_resp::Expected::Revision(revision),
        Expected::NoStream(()) => append_resp::Expected::NoStream(()),
        Expected::Any(()) => append_resp::Expected::Any(()),
        Expected::StreamExists(()) => append_resp::Expected::StreamExists(()),
    };
    let current = current.map_or(append_resp::Current::NoStream(()), append_resp::Current::Revision);
    let wrong = append_resp::WrongExpectedVersion { current: Some(current), expected: Some(expected) };
    AppendResp { outcome: Some(Outcome::WrongExpectedVersion(wrong)) }
}

fn as_read(event: &StoredEvent, stream: &StreamIdentifier) -> ReadResp {
    let metadata = [("type", &event.event_type), ("content-type", &event.content_type)]
        .map(|(key, value)| (key.to_owned(), value.clone()));
    let recorded = read_resp::Recorded {
        id: Some(WireUuid::text(event.id)),
        stream: Some(stream.clone()),
        revision: event.revision,
        prepare: event.revision,
        commit: event.revision,
        metadata: metadata.into(),
        custom_metadata: event.metadata.clone(),
        data: event.data.clone(),
    };
    let event = read_resp::ReadEvent { event: Some(recorded), commit_position: Some(event.revision) };
    ReadResp { content: Some(read_resp::Content::Event(event)) }
}

/// A refusal as the true server gives it: the kind in a trailer.
fn exception(mut status: Status, kind: &'static str) -> Status {
    status.metadata_mut().insert("exception", tonic::metadata::MetadataValue::from_static(kind));
    status
}

fn stream_deleted(name: &str) -> Status {
    let status = Status::failed_precondition(format!("Event stream '{name}' is deleted."));
    exception(status, "stream-deleted")
}

/// The running stand-in; ends when dropped.
pub struct EventStoreSim {
    address: SocketAddr,
    shared: Arc<Shared>,
    _running: DropGuard,
}

struct Shared {
    config: EventStoreConfig,
    state: Mutex<State>,
}

impl EventStoreSim {
    /// Starts to listen.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn start(config: EventStoreConfig) -> std::io::Result<Self> {
        let listener = TcpListener::bind(&config.listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { config, state: Mutex::default() });
        let cancel = CancellationToken::new();
        tokio::spawn(accept(listener, Arc::clone(&shared), cancel.clone()));
        Ok(Self { address, shared, _running: cancel.drop_guard() })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A connection string for it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("esdb://{}?tls=false", self.address)
    }

    /// What a stream holds.
    #[must_use]
    pub fn stored(&self, stream: &str) -> Vec<StoredEvent> {
        self.state().streams.get(stream).map(|stream| stream.events.clone()).unwrap_or_default()
    }

    /// How many events a stream holds.
    #[must_use]
    pub fn count(&self, stream: &str) -> usize {
        self.state().streams.get(stream).map_or(0, |stream| stream.events.len())
    }

    /// How many appends have arrived, also those that failed.
    #[must_use]
    pub fn appends(&self) -> u64 {
        self.state().appends
    }

    /// How many appends have arrived that are slow and not stored yet.
    #[must_use]
    pub fn late(&self) -> u64 {
        self.state().late
    }

    /// The most bytes that arrived in one append.
    #[must_use]
    pub fn largest_append(&self) -> usize {
        self.state().largest_append
    }

    /// Lets the next appends go wrong, one after the other.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = StoreFault>) {
        self.state().faults.extend(faults);
    }

    /// Lets every so-manieth append go wrong, by each of these in turn; none any more when it is 0.
    pub fn storm(&self, every: u64, faults: &[StoreFault]) {
        self.state().storm = (every > 0).then(|| (every, faults.to_vec()));
    }

    /// Answers nothing but `UNAVAILABLE`, or again as usual.
    pub fn set_stopped(&self, stopped: bool) {
        self.state().stopped = stopped;
    }

    /// Puts an event of somebody else at the end of a stream.
    pub fn put(&self, stream: &str, event_type: &str, data: &str, metadata: &str) {
        let mut state = self.state();
        let stream = state.streams.entry(stream.to_owned()).or_default();
        stream.events.push(StoredEvent {
            revision: stream.next_revision(),
            id: Uuid::now_v7(),
            event_type: event_type.to_owned(),
            content_type: "application/json".to_owned(),
            data: Bytes::copy_from_slice(data.as_bytes()),
            metadata: Bytes::copy_from_slice(metadata.as_bytes()),
        });
    }

    /// Deletes a stream: it looks as if it had never been, but counts on.
    pub fn delete(&self, stream: &str) {
        if let Some(stream) = self.state().streams.get_mut(stream) {
            stream.begins = stream.next_revision();
            stream.events.clear();
        }
    }

    /// Deletes a stream for good: nobody will ever write to it again.
    pub fn tombstone(&self, stream: &str) {
        self.state().streams.entry(stream.to_owned()).or_default().tombstoned = true;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, cancel: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else { continue };
        if socket.set_nodelay(true).is_err() {
            continue;
        }
        // A reset of one HTTP/2 stream would not be a cut connection, so the handler cuts this.
        let cut = cancel.child_token();
        let (shared, handler_cut) = (Arc::clone(&shared), cut.clone());
        let service = hyper::service::service_fn(move |request| {
            let (shared, cut) = (Arc::clone(&shared), handler_cut.clone());
            async move { Ok::<_, Infallible>(answer(shared, cut, request).await) }
        });
        tokio::spawn(async move {
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(socket), service);
            tokio::select! {
                // Whoever hangs up has the right to.
                _ = connection => {}
                () = cut.cancelled() => {}
            }
        });
    }
}

async fn answer(
    shared: Arc<Shared>,
    cut: CancellationToken,
    request: hyper::Request<Incoming>,
) -> hyper::Response<BoxBody> {
    match request.uri().path() {
        "/event_store.client.streams.Streams/Append" => {
            let handler = tower::service_fn(move |request| shared.clone().append(cut.clone(), request));
            Grpc::new(ProstCodec::<AppendResp, AppendReq>::default()).client_streaming(handler, request).await
        }
        "/event_store.client.streams.Streams/Read" => {
            let handler = tower::service_fn(move |request| std::future::ready(shared.read(&request)));
            Grpc::new(ProstCodec::<ReadResp, ReadReq>::default()).server_streaming(handler, request).await
        }
        "/event_store.client.server_features.ServerFeatures/GetSupportedMethods" => {
            let handler = tower::service_fn(move |_: Request<()>| std::future::ready(shared.features()));
            Grpc::new(ProstCodec::<SupportedMethods, ()>::default()).unary(handler, request).await
        }
        path => Status::unimplemented(format!("{path} is not played")).into_http(),
    }
}

type Answers = stream::Iter<std::vec::IntoIter<Result<ReadResp, Status>>>;

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn let_in<T>(&self, request: &Request<T>) -> Result<(), Status> {
        if self.state().stopped {
            return Err(Status::unavailable("Server Is Not Ready"));
        }
        let said = |key: &str| request.metadata().get(key).and_then(|value| value.to_str().ok());
        if let Some((name, password)) = &self.config.user {
            let known = format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")));
            if said("authorization") != Some(known.as_str()) {
                let status = Status::permission_denied("Access Denied");
                return Err(exception(status, "access-denied"));
            }
        }
        if let Some(leader) = self.config.leader.filter(|_| said("requires-leader") == Some("true")) {
            let mut status = exception(Status::not_found("Leader info available"), "not-leader");
            let (host, port) = (leader.ip().to_string().parse(), leader.port().to_string().parse());
            if let (Ok(host), Ok(port)) = (host, port) {
                status.metadata_mut().insert("leader-endpoint-host", host);
                status.metadata_mut().insert("leader-endpoint-port", port);
            }
            return Err(status);
        }
        Ok(())
    }

    fn features(&self) -> Result<Response<SupportedMethods>, Status> {
        if self.state().stopped {
            return Err(Status::unavailable("Server Is Not Ready"));
        }
        let methods = ["append", "read"].map(|method| SupportedMethod {
            method: method.to_owned(),
            service: "event_store.client.streams.streams".to_owned(),
        });
        Ok(Response::new(SupportedMethods { methods: methods.into(), server_version: "24.10.0".to_owned() }))
    }

    fn read(&self, request: &Request<ReadReq>) -> Result<Response<Answers>, Status> {
        self.let_in(request)?;
        let answers: Vec<_> = self.state().read(request.get_ref())?.into_iter().map(Ok).collect();
        Ok(Response::new(stream::iter(answers)))
    }

    async fn append(
        self: Arc<Self>,
        cut: CancellationToken,
        request: Request<Streaming<AppendReq>>,
    ) -> Result<Response<AppendResp>, Status> {
        self.let_in(&request)?;
        let mut incoming = request.into_inner();
        let mut options = None;
        let (mut events, mut bytes) = (Vec::new(), 0);
        while let Some(message) = incoming.message().await? {
            match message.content {
                Some(append_req::Content::Options(given)) => options = Some(given),
                Some(append_req::Content::Proposed(event)) => {
                    bytes += event.data.len() + event.custom_metadata.len();
                    events.push(event);
                }
                None => {}
            }
        }
        let (Some(name), Some(expected)) =
            options.and_then(|options| Some((options.stream?.stream_name, options.expected?))).unzip()
        else {
            return Err(Status::invalid_argument("options come first"));
        };
        let name = String::from_utf8_lossy(&name).into_owned();
        let fault = {
            let mut state = self.state();
            state.largest_append = state.largest_append.max(bytes);
            state.next_fault()
        };
        match fault {
            Some(StoreFault::Unavailable) => return Err(Status::unavailable("Server Is Too Busy")),
            Some(StoreFault::CutBefore) => {
                cut.cancel();
                return std::future::pending().await;
            }
            Some(StoreFault::Slow(_) | StoreFault::CutAfter | StoreFault::Twice) | None => {}
        }
        if bytes > self.config.max_append_bytes {
            let most = self.config.max_append_bytes;
            let status = Status::invalid_argument(format!("Maximum Append Size of {most} Exceeded."));
            return Err(exception(status, "maximum-append-size-exceeded"));
        }
        self.state().late += u64::from(matches!(fault, Some(StoreFault::Slow(_))));
        // What has arrived is carried out, also when whoever asked has hung up meanwhile.
        let carried_out = tokio::spawn(async move {
            if let Some(StoreFault::Slow(time)) = fault {
                tokio::time::sleep(time).await;
            }
            let mut state = self.state();
            let mut answer = state.append(&name, expected, &events);
            if fault == Some(StoreFault::Twice) {
                answer = state.append(&name, expected, &events);
            }
            state.late -= u64::from(matches!(fault, Some(StoreFault::Slow(_))));
            answer
        });
        let answer =
            carried_out.await.map_err(|_| Status::internal("the append could not be carried out"))??;
        if fault == Some(StoreFault::CutAfter) {
            cut.cancel();
            return std::future::pending().await;
        }
        Ok(Response::new(answer))
    }
}
