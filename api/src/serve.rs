//! The accept loop: ours, because `axum::serve` has no timeout for headers and leaves Nagle on.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{Request, body::Incoming, server::conn::http1};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

/// Headers must be complete within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once; more wait in the system's queue. With a whole body each they take 256 MiB.
/// Sockets and streams that left HTTP behind are counted elsewhere.
const MOST_CONNECTIONS: usize = 4_096;
/// Pause when the system has no socket to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Rides on every request: long-lived answers end when the server does, and are waited for.
#[derive(Clone)]
pub(crate) struct Server {
    /// Cancelled when the server stops.
    pub(crate) stopping: CancellationToken,
    /// Connections, and work that outlives them, such as WebSockets.
    pub(crate) tasks: TaskTracker,
}

/// Serves until cancelled, then lets running requests finish for at most `drain`.
///
/// # Errors
/// None after the start: a failed accept is logged and repeated.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    cancel: CancellationToken,
    drain: Duration,
) -> std::io::Result<()> {
    let limits = Limits { header_timeout: HEADER_TIMEOUT, most_connections: MOST_CONNECTIONS };
    serve_within(listener, router, cancel, drain, limits).await
}

struct Limits {
    header_timeout: Duration,
    most_connections: usize,
}

async fn serve_within(
    listener: TcpListener,
    router: Router,
    cancel: CancellationToken,
    drain: Duration,
    limits: Limits,
) -> std::io::Result<()> {
    let server = Server { stopping: cancel.clone(), tasks: TaskTracker::new() };
    let places = Arc::new(Semaphore::new(limits.most_connections));
    loop {
        let place = tokio::select! {
            () = cancel.cancelled() => break,
            place = Arc::clone(&places).acquire_owned() => place.expect("nobody closes it"),
        };
        let (stream, peer) = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(error = %error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = %error, "a connection was gone before it began");
            continue;
        }
        let service = service(router.clone(), server.clone(), peer);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            // Some WebSocket clients look for `Sec-WebSocket-Protocol` as it is written in the RFC.
            .title_case_headers(true)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let stopping = cancel.clone();
        server.tasks.spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stopping.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(error = %error, "a connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    server.tasks.close();
    if tokio::time::timeout(drain, server.tasks.wait()).await.is_err() {
        tracing::warn!("requests were still running when the time to finish them was over");
    }
    Ok(())
}

fn service(
    router: Router,
    server: Server,
    peer: SocketAddr,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = axum::response::Response,
    Error = std::convert::Infallible,
    Future: Send,
> + Send {
    hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(server.clone());
        router.clone().oneshot(request.map(Body::new))
    })
}

#[cfg(test)]
mod tests {
    use axum::{Extension, routing::get};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        sync::Notify,
    };

    use super::*;

    async fn read_all(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("readable");
        answer
    }

    #[tokio::test]
    async fn headers_that_never_end_are_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (cancel, brief) = (CancellationToken::new(), Duration::from_millis(50));
        let limits = Limits { header_timeout: brief, most_connections: 1 };
        let served = tokio::spawn(serve_within(listener, Router::new(), cancel.clone(), brief, limits));
        let mut stalled = TcpStream::connect(address).await.expect("connects");
        stalled.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n").await.expect("written");
        // Ends only when the server hangs up.
        read_all(stalled).await;
        cancel.cancel();
        served.await.expect("no panic").expect("served");
    }

    #[tokio::test]
    async fn who_comes_when_all_places_are_taken_is_served_when_one_is_free() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let cancel = CancellationToken::new();
        let limits = Limits { header_timeout: HEADER_TIMEOUT, most_connections: 1 };
        let router = Router::new().route("/", get(async || "done"));
        let drain = Duration::from_secs(10);
        let served = tokio::spawn(serve_within(listener, router, cancel.clone(), drain, limits));
        // Answered, and kept open.
        let mut first = TcpStream::connect(address).await.expect("connects");
        first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
        let mut byte = [0];
        first.read_exact(&mut byte).await.expect("answered");
        let mut second = TcpStream::connect(address).await.expect("the system's queue takes it");
        second.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("written");
        let early = second.try_read(&mut byte).expect_err("nobody answers yet");
        assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
        drop(first);
        let answer = read_all(second).await;
        assert!(answer.ends_with("done"), "{answer}");
        cancel.cancel();
        served.await.expect("no panic").expect("served");
    }

    #[tokio::test]
    async fn a_running_request_is_finished_before_the_server_ends() {
        let (arrived, go_on) = (std::sync::Arc::new(Notify::new()), std::sync::Arc::new(Notify::new()));
        let slow = async |Extension((arrived, go_on)): Extension<(
            std::sync::Arc<Notify>,
            std::sync::Arc<Notify>,
        )>| {
            arrived.notify_one();
            go_on.notified().await;
            "done"
        };
        let router = Router::new()
            .route("/", get(slow))
            .layer(Extension((std::sync::Arc::clone(&arrived), std::sync::Arc::clone(&go_on))));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let cancel = CancellationToken::new();
        let served = tokio::spawn(serve(listener, router, cancel.clone(), Duration::from_secs(10)));
        let mut client = TcpStream::connect(address).await.expect("connects");
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
        arrived.notified().await;
        cancel.cancel();
        go_on.notify_one();
        let answer = read_all(client).await;
        assert!(answer.ends_with("done"), "{answer}");
        served.await.expect("no panic").expect("served");
    }
}
