//! The accept loop of both stand-ins: ours, because a stand-in must be able to cut a connection
//! without an answer, and to answer without Nagle's delay.

use axum::{Router, body::Body, response::Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// On a response: do not send it, cut the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut;

/// An answer that is never sent.
pub(crate) fn cut() -> Response {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(Cut);
    response
}

/// Serves until cancelled.
pub(crate) async fn run(listener: TcpListener, router: Router, cancel: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let router = router.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let router = router.clone();
            async move {
                let response = match router.oneshot(request.map(Body::new)).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                };
                if response.extensions().get::<Cut>().is_some() {
                    return Err(std::io::Error::other("cut on purpose"));
                }
                Ok(response)
            }
        });
        let cancel = cancel.clone();
        tokio::spawn(async move {
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // A cut connection ends with an error, and that is what was asked for.
                _ = connection => {}
                () = cancel.cancelled() => {}
            }
        });
    }
}
