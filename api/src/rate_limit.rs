//! How often somebody may ask, and whether from there: by address before anything is read, by operator
//! and workspace once they are known. What is left is told with every answer.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};
use botledger_commands::{Access, AuditEntry, LimitState, Origin, RateRefusal, RateUnit};
use chrono::{DateTime, Utc};

use crate::{
    Services,
    admin::problem,
    auth::Identity,
    graphql::error::ApiError,
    http::{Inner, busy, peer},
};

/// Limits that an answer goes by, carried with it to where headers are written.
#[derive(Clone)]
pub(crate) struct Told(pub(crate) Vec<LimitState>);

/// Why somebody who is known is not served.
pub(crate) enum Unserved {
    /// Too much at once.
    TooMuch(RateRefusal),
    /// Their workspace takes no requests from there.
    Elsewhere,
    /// Nobody can tell now.
    Away,
}

/// Counts a request of somebody known, and asks whether their workspace takes requests from there.
pub(crate) async fn serve(
    services: &Services,
    identity: &Identity,
    address: Option<IpAddr>,
) -> Result<Vec<LimitState>, Unserved> {
    let app = &services.app;
    let taken = app
        .rate_limits
        .take_request(identity.operator, identity.workspace)
        .await
        .map_err(Unserved::TooMuch)?;
    let Some(address) = address else { return Ok(taken.limits) };
    match app.access_lists.of_address(identity.workspace, address).await {
        Ok(Access::Unlisted | Access::Allowed(_)) => Ok(taken.limits),
        Ok(Access::Denied { .. }) => {
            if services.attempts.denied(identity.operator, app.core.clock.now()) {
                app.audit
                    .record(AuditEntry {
                        operator_id: Some(identity.operator),
                        workspace: Some(identity.workspace),
                        action: "api.request".to_owned(),
                        outcome: "forbidden",
                        detail: serde_json::json!({ "code": "ADDRESS_DENIED" }),
                        source: "graphql",
                        origin: Origin { ip: Some(address.to_string()), user_agent: None },
                        correlation_id: None,
                    })
                    .await;
            }
            metrics::counter!("botledger_api_refused_total", "reason" => "address_denied").increment(1);
            Err(Unserved::Elsewhere)
        }
        Err(error) => {
            tracing::warn!(error = %error, "access lists cannot be read");
            Err(Unserved::Away)
        }
    }
}

impl Unserved {
    /// As an HTTP answer.
    pub(crate) fn into_response(self, now: DateTime<Utc>) -> Response {
        match self {
            Self::TooMuch(refusal) => too_many(&refusal, now),
            Self::Elsewhere => problem(StatusCode::FORBIDDEN, "ADDRESS_DENIED", ELSEWHERE),
            Self::Away => busy(),
        }
    }

    /// As an error in an answer, where there is no HTTP answer.
    pub(crate) fn into_error(self, now: DateTime<Utc>) -> ApiError {
        match self {
            Self::TooMuch(refusal) => ApiError::too_fast(detail(&refusal), millis(refusal.retry_at, now)),
            Self::Elsewhere => ApiError::forbidden(ELSEWHERE),
            Self::Away => ApiError::away(),
        }
    }
}

const ELSEWHERE: &str = "your workspace takes no requests from this address";

/// The door: who asks too often from one address is turned away before anything is read.
pub(crate) async fn door(State(inner): State<Arc<Inner>>, request: Request, next: Next) -> Response {
    let services = &inner.services;
    let Some(address) = peer(&request, &services.config.trusted_proxies) else {
        return next.run(request).await;
    };
    let now = || services.app.core.clock.now();
    let mut limits = match services.app.rate_limits.take_at_the_door(address).await {
        Ok(taken) => taken.limits,
        Err(refusal) => {
            metrics::counter!("botledger_api_refused_total", "reason" => "rate_ip").increment(1);
            return told(too_many(&refusal, now()), &refusal.limits, now());
        }
    };
    let mut response = next.run(request).await;
    if let Some(Told(more)) = response.extensions_mut().remove::<Told>() {
        limits.extend(more);
    }
    told(response, &limits, now())
}

fn too_many(refusal: &RateRefusal, now: DateTime<Utc>) -> Response {
    let mut response = problem(StatusCode::TOO_MANY_REQUESTS, "RATE_LIMITED", &detail(refusal));
    let seconds = millis(refusal.retry_at, now).div_ceil(1_000).max(1);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response.extensions_mut().insert(Told(refusal.limits.clone()));
    response
}

fn detail(refusal: &RateRefusal) -> String {
    let whose = match refusal.scope {
        "ip" => "from this address",
        "operator" => "by this operator",
        _ => "in this workspace",
    };
    format!("too many {} {whose}; wait a while", refusal.unit.as_str())
}

fn millis(until: DateTime<Utc>, now: DateTime<Utc>) -> u64 {
    u64::try_from((until - now).num_milliseconds()).unwrap_or(0)
}

/// Whole seconds, rounded up: who waits that long is not early.
fn seconds(until: DateTime<Utc>, now: DateTime<Utc>) -> u64 {
    u64::try_from((until - now).num_microseconds().unwrap_or(i64::MAX)).unwrap_or(0).div_ceil(1_000_000)
}

static LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
static REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
static RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
static ALL: HeaderName = HeaderName::from_static("ratelimit");
static POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Writes the headers of draft-ietf-httpapi-ratelimit-headers: all limits in `RateLimit` and
/// `RateLimit-Policy`, and the one of which relatively the least is left in the three of its earlier
/// drafts, which most clients know.
fn told(mut response: Response, limits: &[LimitState], now: DateTime<Utc>) -> Response {
    response.extensions_mut().remove::<Told>();
    let requests: Vec<&LimitState> = limits.iter().filter(|state| state.unit == RateUnit::Requests).collect();
    // a/b < c/d without dividing.
    let tightest = requests.iter().min_by(|one, other| {
        (u128::from(one.remaining) * u128::from(other.limit))
            .cmp(&(u128::from(other.remaining) * u128::from(one.limit)))
    });
    let Some(tightest) = tightest else { return response };
    let headers = response.headers_mut();
    headers.insert(LIMIT.clone(), HeaderValue::from(tightest.limit));
    headers.insert(REMAINING.clone(), HeaderValue::from(tightest.remaining));
    headers.insert(RESET.clone(), HeaderValue::from(seconds(tightest.resets_at, now)));
    let state = |state: &&LimitState| {
        let name = state.subject.kind().as_ref().to_owned();
        format!("\"{name}\";r={};t={}", state.remaining, seconds(state.resets_at, now))
    };
    let policy = |state: &&LimitState| {
        let name = state.subject.kind().as_ref().to_owned();
        // The time in which an empty bucket fills.
        let window = (state.limit * 60).div_ceil(state.per_minute.unwrap_or(1).max(1));
        format!("\"{name}\";q={};w={window}", state.limit)
    };
    list(headers, &ALL, requests.iter().map(state).collect());
    list(headers, &POLICY, requests.iter().map(policy).collect());
    response
}

fn list(headers: &mut HeaderMap, name: &HeaderName, members: Vec<String>) {
    if let Ok(value) = HeaderValue::from_str(&members.join(", ")) {
        headers.insert(name.clone(), value);
    }
}
