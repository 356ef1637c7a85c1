//! OpenAI's `/v1/moderations`, and how Llama Guard judges.
//!
//! A text is judged by what is written in it: `[flag: hate, violence/graphic]` gives those categories of
//! OpenAI's, `[hazard: S1, S10]` those hazards, anything else is harmless. So a demonstration shows every
//! verdict without a harmful text in it.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::server::{self, cut};

/// The categories of `omni-moderation-latest`, in its order.
const CATEGORIES: [&str; 13] = [
    "harassment",
    "harassment/threatening",
    "sexual",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm/intent",
    "self-harm/instructions",
    "self-harm",
    "sexual/minors",
    "violence",
    "violence/graphic",
];

/// Scores of what is flagged and of what is not.
const FLAGGED: f64 = 0.97;
const HARMLESS: f64 = 0.000_12;

/// How the stand-in runs.
#[derive(Clone, Debug)]
pub struct ModerationConfig {
    /// `host:port`; port 0 takes a free one.
    pub listen: String,
    /// The bearer token that is asked for. Absent: nobody is asked.
    pub key: Option<String>,
}

impl Default for ModerationConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:0".to_owned(), key: None }
    }
}

/// What goes wrong with the next request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ModerationFault {
    /// An error answer.
    Status {
        /// HTTP status.
        code: u16,
        /// `error.message`.
        message: String,
        /// `Retry-After`, seconds.
        #[serde(default)]
        retry_after_s: Option<u64>,
    },
    /// No answer, the connection ends.
    Cut,
    /// Silence for ten minutes.
    Hang,
    /// This body instead of the true one, with status 200.
    Body {
        /// Any text.
        text: String,
    },
}

struct Shared {
    key: Option<String>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    faults: VecDeque<ModerationFault>,
    served: Vec<String>,
    requests: u64,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running stand-in for OpenAI's moderation endpoint. Ends when dropped.
pub struct ModerationSim {
    shared: Arc<Shared>,
    address: SocketAddr,
    _stop: DropGuard,
    served: JoinHandle<()>,
}

impl ModerationSim {
    /// Starts it.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(config: ModerationConfig) -> std::io::Result<Self> {
        let listener = TcpListener::bind(&config.listen).await?;
        let address = listener.local_addr()?;
        let cancel = CancellationToken::new();
        let shared = Arc::new(Shared { key: config.key, inner: Mutex::default() });
        let router = Router::new()
            .route("/v1/moderations", post(moderations))
            .route("/_sim/health", get(|| async { Json(json!({"simulated": "moderation"})) }))
            .route("/_sim/faults", post(add_fault))
            .route("/_sim/served", get(served))
            .with_state(Arc::clone(&shared));
        let served = tokio::spawn(server::run(listener, router, cancel.clone()));
        Ok(Self { shared, address, _stop: cancel.drop_guard(), served })
    }

    /// `http://host:port/v1`, the base a client is given.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Serves until the process ends.
    pub async fn run(self) {
        let Self { served, _stop, .. } = self;
        // It ends only when cancelled.
        let _ = served.await;
    }

    /// Lets the next request that has no fault yet go wrong.
    pub fn fault(&self, fault: ModerationFault) {
        self.shared.lock().faults.push_back(fault);
    }

    /// Every text that was asked about, those of failed requests too.
    #[must_use]
    pub fn served(&self) -> Vec<String> {
        self.shared.lock().served.clone()
    }
}

type Control = State<Arc<Shared>>;

async fn add_fault(State(shared): Control, Json(fault): Json<ModerationFault>) -> Json<Value> {
    shared.lock().faults.push_back(fault);
    Json(json!({}))
}

async fn served(State(shared): Control) -> Json<Value> {
    let served = shared.lock().served.clone();
    Json(json!(served))
}

/// OpenAI's error body: `code` is text or null, never the status.
fn failure(
    status: StatusCode,
    kind: &str,
    param: Option<&str>,
    code: Option<&str>,
    message: &str,
) -> Response {
    let error = json!({"error": {"message": message, "type": kind, "param": param, "code": code}});
    (status, Json(error)).into_response()
}

fn invalid(param: Option<&str>, message: &str) -> Response {
    failure(StatusCode::BAD_REQUEST, "invalid_request_error", param, None, message)
}

async fn moderations(State(shared): Control, headers: HeaderMap, body: Bytes) -> Response {
    if let Some(key) = &shared.key {
        let given =
            headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        if given != Some(key.as_str()) {
            let code = given.is_some().then_some("invalid_api_key");
            let message = "Incorrect API key provided.";
            return failure(StatusCode::UNAUTHORIZED, "invalid_request_error", None, code, message);
        }
    }
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return invalid(None, "We could not parse the JSON body of your request.");
    };
    let Some(texts) = texts(&request["input"]) else {
        return invalid(Some("input"), "Invalid type for 'input'.");
    };
    let (fault, number) = {
        let mut inner = shared.lock();
        inner.served.extend(texts.iter().cloned());
        inner.requests += 1;
        (inner.faults.pop_front(), inner.requests)
    };
    match fault {
        Some(ModerationFault::Status { code, message, retry_after_s }) => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let (kind, code) = match status {
                StatusCode::TOO_MANY_REQUESTS => ("requests", Some("rate_limit_exceeded")),
                status if status.is_server_error() => ("server_error", None),
                _ => ("invalid_request_error", None),
            };
            let mut response = failure(status, kind, None, code, &message);
            if let Some(seconds) = retry_after_s {
                response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            return response;
        }
        Some(ModerationFault::Cut) => return cut(),
        Some(ModerationFault::Hang) => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            return cut();
        }
        Some(ModerationFault::Body { text }) => {
            return ([(header::CONTENT_TYPE, "application/json")], text).into_response();
        }
        None => {}
    }
    let model = request["model"].as_str().unwrap_or("omni-moderation-latest");
    let results: Vec<Value> = texts.iter().map(|text| result(text)).collect();
    Json(json!({"id": format!("modr-simulated-{number}"), "model": model, "results": results}))
        .into_response()
}

/// A text, several, or parts of one as multi-modal models take them. Absent for what is none of these.
fn texts(input: &Value) -> Option<Vec<String>> {
    match input {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(parts) if parts.is_empty() => None,
        Value::Array(parts) if parts[0].is_object() => {
            let text: Option<Vec<&str>> = parts
                .iter()
                .map(|part| match part["type"].as_str()? {
                    "text" => part["text"].as_str(),
                    // Images are harmless here.
                    "image_url" => Some(""),
                    _ => None,
                })
                .collect();
            Some(vec![text?.join("\n")])
        }
        Value::Array(texts) => texts.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

fn result(text: &str) -> Value {
    let asked = directive(text, "[flag:");
    let (mut categories, mut scores, mut inputs) = (Map::new(), Map::new(), Map::new());
    for category in CATEGORIES {
        let flagged = asked.iter().any(|asked| asked == category);
        categories.insert(category.to_owned(), flagged.into());
        scores.insert(category.to_owned(), if flagged { FLAGGED } else { HARMLESS }.into());
        inputs.insert(category.to_owned(), json!(["text"]));
    }
    let flagged = categories.values().any(|flagged| flagged == true);
    json!({
        "flagged": flagged, "categories": categories, "category_scores": scores,
        "category_applied_input_types": inputs,
    })
}

/// What a directive lists, all of the directives of a text together.
fn directive(text: &str, opening: &str) -> Vec<String> {
    text.split(opening)
        .skip(1)
        .filter_map(|rest| rest.split_once(']'))
        .flat_map(|(list, _)| list.split(','))
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

/// Whether a model judges instead of answering.
pub(crate) fn is_guard(model: &str) -> bool {
    model.rsplit('/').next().unwrap_or(model).starts_with("llama-guard")
}

/// Llama Guard's words about a text, bare or inside the policy.
pub(crate) fn guard_answer(prompt: &str) -> String {
    let conversation = prompt
        .split_once("<BEGIN CONVERSATION>")
        .and_then(|(_, rest)| rest.split_once("<END CONVERSATION>"))
        .map_or(prompt, |(conversation, _)| conversation);
    let mut hazards = directive(conversation, "[hazard:");
    hazards.dedup();
    if hazards.is_empty() { "\n\nsafe".to_owned() } else { format!("\n\nunsafe\n{}", hazards.join(",")) }
}
