//! The admin port: is the process alive, can it work, what does it count.

use std::sync::Arc;

use async_trait::async_trait;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;

/// One thing that has to be so for the process to be ready.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// For example `database`.
    pub name: &'static str,
    /// Whether it is so.
    pub ok: bool,
    /// What was found, for people; no secrets.
    pub detail: String,
}

/// Knows whether the process is ready.
#[async_trait]
pub trait Readiness: Send + Sync {
    /// All checks, each with its finding. Bounded in time by whoever implements it.
    async fn check(&self) -> Vec<Check>;
}

/// What the admin port shows.
#[derive(Clone)]
pub struct AdminState {
    /// Behind `/readyz`.
    pub ready: Arc<dyn Readiness>,
    /// Renders `/metrics` in Prometheus' text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    checks: Vec<Check>,
}

/// `/livez`, `/readyz` and `/metrics`. Not for the public.
pub fn admin_router(state: AdminState) -> Router {
    Router::new()
        .route("/livez", get(|| async { Json(serde_json::json!({ "alive": true })) }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(async || {
            problem(StatusCode::NOT_FOUND, "NOT_FOUND", "there is /livez, /readyz and /metrics")
        })
        .method_not_allowed_fallback(async || {
            problem(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "only GET is served here")
        })
        .with_state(state)
}

async fn ready(State(state): State<AdminState>) -> Response {
    let checks = state.ready.check().await;
    let ready = checks.iter().all(|check| check.ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, checks })).into_response()
}

async fn metrics(State(state): State<AdminState>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (state.metrics)()).into_response()
}

/// An answer of RFC 9457.
pub(crate) fn problem(status: StatusCode, code: &str, detail: &str) -> Response {
    let body = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("error"),
        "status": status.as_u16(),
        "detail": detail,
        "code": code,
    });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}
