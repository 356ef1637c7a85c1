//! The accept loop: ours, because `axum::serve` has no timeout for headers and leaves Nagle on.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{Request, body::Incoming, server::conn::http1};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

/// Headers must be complete within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
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
    let server = Server { stopping: cancel.clone(), tasks: TaskTracker::new() };
    loop {
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
            .header_read_timeout(HEADER_TIMEOUT)
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
