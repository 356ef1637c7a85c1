//! Ollama: `/api/chat` as NDJSON, `/api/embed`, `/api/tags`, `/api/show`, `/api/version`.
//!
//! A model whose name begins with `llama-guard` answers as Llama Guard does ([`crate::moderation`]).

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::server::{self, cut};

/// Between the last piece and a cut connection.
const BEFORE_CUT: Duration = Duration::from_millis(10);

/// How the stand-in runs.
#[derive(Clone, Debug)]
pub struct OllamaConfig {
    /// `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Models that are there. Empty: every name is.
    pub models: Vec<String>,
    /// Until the first piece of an answer.
    pub first_piece: Duration,
    /// Between pieces.
    pub between_pieces: Duration,
}

impl Default for OllamaConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".to_owned(),
            models: Vec::new(),
            first_piece: Duration::ZERO,
            between_pieces: Duration::ZERO,
        }
    }
}

/// What goes wrong with the next chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ModelFault {
    /// An error answer.
    Status {
        /// HTTP status.
        code: u16,
        /// `error`.
        message: String,
    },
    /// No answer, the connection ends.
    Cut,
    /// The stream ends after so many pieces, without `done`.
    CutAfter {
        /// Pieces sent first.
        pieces: usize,
    },
    /// An `error` line after so many pieces.
    ErrorAfter {
        /// Pieces sent first.
        pieces: usize,
        /// `error`.
        message: String,
    },
    /// A line that is no JSON after so many pieces.
    GarbageAfter {
        /// Pieces sent first.
        pieces: usize,
    },
    /// Silence for ten minutes after so many pieces.
    HangAfter {
        /// Pieces sent first.
        pieces: usize,
    },
    /// Another answer than the usual one, and then nothing wrong.
    Answer {
        /// All of it.
        text: String,
    },
}

/// What goes wrong with the next embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EmbedFault {
    /// An error answer.
    Status {
        /// HTTP status.
        code: u16,
        /// `error`.
        message: String,
    },
    /// No answer, the connection ends.
    Cut,
    /// Silence for ten minutes.
    Hang,
    /// These vectors instead of the true ones.
    Vectors {
        /// `embeddings`.
        embeddings: Value,
    },
}

/// A chat that was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Served {
    /// Which model.
    pub model: String,
    /// What the person said last.
    pub prompt: String,
    /// Messages in all, with system and history.
    pub messages: usize,
    /// `options`, as they came.
    pub options: Value,
    /// `truncate`, as it came.
    pub truncate: Value,
}

struct Shared {
    config: OllamaConfig,
    held: watch::Sender<bool>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    faults: VecDeque<ModelFault>,
    embed_faults: VecDeque<EmbedFault>,
    served: Vec<Served>,
    embedded: Vec<Vec<String>>,
}

/// A running stand-in for Ollama. Ends when dropped.
pub struct OllamaSim {
    shared: Arc<Shared>,
    address: SocketAddr,
    _stop: DropGuard,
    served: JoinHandle<()>,
}

impl OllamaSim {
    /// Starts it.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(config: OllamaConfig) -> std::io::Result<Self> {
        let listener = TcpListener::bind(&config.listen).await?;
        let address = listener.local_addr()?;
        let cancel = CancellationToken::new();
        let shared = Arc::new(Shared { config, held: watch::Sender::new(false), inner: Mutex::default() });
        let router = router(Arc::clone(&shared));
        let served = tokio::spawn(server::run(listener, router, cancel.clone()));
        Ok(Self { shared, address, _stop: cancel.drop_guard(), served })
    }

    /// `http://host:port`, what `ollama.url` is set to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Serves until the process ends.
    pub async fn run(self) {
        let Self { served, _stop, .. } = self;
        // It ends only when cancelled.
        let _ = served.await;
    }

    /// Lets the next chat that has no fault yet go wrong.
    pub fn fault(&self, fault: ModelFault) {
        self.shared.lock().faults.push_back(fault);
    }

    /// Lets the next embedding that has no fault yet go wrong.
    pub fn fault_embedding(&self, fault: EmbedFault) {
        self.shared.lock().embed_faults.push_back(fault);
    }

    /// The texts of every embedding that was asked for, a list a request.
    #[must_use]
    pub fn embedded(&self) -> Vec<Vec<String>> {
        self.shared.lock().embedded.clone()
    }

    /// Chats get no further until released.
    pub fn hold(&self) {
        self.shared.held.send_replace(true);
    }

    /// Ends [`Self::hold`].
    pub fn release(&self) {
        self.shared.held.send_replace(false);
    }

    /// Every chat that was asked for.
    #[must_use]
    pub fn served(&self) -> Vec<Served> {
        self.shared.lock().served.clone()
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn knows(&self, model: &str) -> bool {
        self.config.models.is_empty() || self.config.models.iter().any(|known| known == model)
    }
}

type Control = State<Arc<Shared>>;

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(|| async { "Ollama is running" }))
        .route("/api/version", get(|| async { Json(json!({"version": "0.0.0-simulated"})) }))
        .route("/api/tags", get(tags))
        .route("/api/show", post(show))
        .route("/api/chat", post(chat))
        .route("/api/embed", post(embed))
        .route("/_sim/health", get(|| async { Json(json!({"simulated": "ollama"})) }))
        .route("/_sim/faults", post(add_fault))
        .route("/_sim/embed_faults", post(add_embed_fault))
        .route("/_sim/hold", post(hold))
        .route("/_sim/served", get(served))
        .with_state(shared)
}

async fn tags(State(shared): Control) -> Json<Value> {
    let models: Vec<Value> = shared
        .config
        .models
        .iter()
        .map(|name| {
            json!({
                "name": name, "model": name, "modified_at": "2026-01-01T00:00:00Z", "size": 0, "digest": "simulated",
                "details": {"format": "gguf", "family": "simulated", "parameter_size": "0B"},
            })
        })
        .collect();
    Json(json!({"models": models}))
}

async fn show(State(shared): Control, Json(asked): Json<Value>) -> Response {
    let model = asked["model"].as_str().unwrap_or_default();
    if !shared.knows(model) {
        return missing(model);
    }
    Json(json!({
        "details": {"family": "simulated"},
        "model_info": {"general.architecture": "simulated", "simulated.context_length": 8_192},
        "capabilities": ["completion"],
    }))
    .into_response()
}

async fn add_fault(State(shared): Control, Json(fault): Json<ModelFault>) -> Json<Value> {
    shared.lock().faults.push_back(fault);
    Json(json!({}))
}

async fn add_embed_fault(State(shared): Control, Json(fault): Json<EmbedFault>) -> Json<Value> {
    shared.lock().embed_faults.push_back(fault);
    Json(json!({}))
}

async fn hold(State(shared): Control, Json(held): Json<bool>) -> Json<Value> {
    shared.held.send_replace(held);
    Json(json!({}))
}

async fn served(State(shared): Control) -> Json<Value> {
    let served = shared.lock().served.clone();
    Json(json!(served))
}

fn failure(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({"error": message}))).into_response()
}

fn missing(model: &str) -> Response {
    failure(StatusCode::NOT_FOUND, &format!("model '{model}' not found"))
}

async fn chat(State(shared): Control, body: Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return failure(StatusCode::BAD_REQUEST, "invalid JSON");
    };
    let model = request["model"].as_str().unwrap_or_default().to_owned();
    let Some(messages) = request["messages"].as_array() else {
        return failure(StatusCode::BAD_REQUEST, "messages are missing");
    };
    if !shared.knows(&model) {
        return missing(&model);
    }
    let last = messages.iter().rev().find(|message| message["role"] == "user");
    let prompt = last.and_then(|message| message["content"].as_str()).unwrap_or_default().to_owned();
    let fault = {
        let mut inner = shared.lock();
        inner.served.push(Served {
            model: model.clone(),
            prompt: prompt.clone(),
            messages: messages.len(),
            options: request["options"].clone(),
            truncate: request["truncate"].clone(),
        });
        inner.faults.pop_front()
    };
    match &fault {
        Some(ModelFault::Status { code, message }) => {
            let status = StatusCode::from_u16(*code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return failure(status, message);
        }
        Some(ModelFault::Cut) => return cut(),
        _ => {}
    }
    let prompt_tokens: usize =
        messages.iter().map(|message| tokens(message["content"].as_str().unwrap_or_default()) + 4).sum();
    let mut held = shared.held.subscribe();
    // It fails only when the stand-in is gone.
    let _ = held.wait_for(|held| !held).await;
    let longest = request["options"]["num_predict"].as_u64().map_or(usize::MAX, |most| most as usize);
    let text = match &fault {
        Some(ModelFault::Answer { text }) => text.clone(),
        _ if crate::moderation::is_guard(&model) => crate::moderation::guard_answer(&prompt),
        _ => answer(&prompt),
    };
    let mut pieces: Vec<String> = text.split_inclusive(' ').map(str::to_owned).collect();
    let finish = if pieces.len() > longest { "length" } else { "stop" };
    pieces.truncate(longest);
    if request["stream"] == json!(false) {
        let mut whole = done(&model, finish, prompt_tokens, pieces.len());
        whole["message"]["content"] = pieces.concat().into();
        return Json(whole).into_response();
    }
    let lines = lines(&model, &pieces, finish, prompt_tokens, fault);
    let (first, between) = (shared.config.first_piece, shared.config.between_pieces);
    let stream = futures::stream::iter(lines.into_iter().enumerate()).then(move |(index, line)| async move {
        let pause = if index == 0 { first } else { between };
        // Even a sleep of nothing costs a tick of the timer: a millisecond a piece.
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        match line {
            Line::Text(text) => Ok(Bytes::from(text)),
            Line::Cut => {
                // What was written before has to be on its way, or the client sees nothing at all.
                tokio::time::sleep(BEFORE_CUT).await;
                Err(std::io::Error::other("cut on purpose"))
            }
            Line::Hang => {
                tokio::time::sleep(Duration::from_secs(600)).await;
                Err(std::io::Error::other("hung on purpose"))
            }
        }
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response()
}

/// Width of a vector.
const WIDTH: usize = 64;

/// Longest text that fits, bytes: as long as a model with a window of 2,048 tokens would take.
const LONGEST_EMBEDDED: usize = 8_192;

async fn embed(State(shared): Control, body: Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return failure(StatusCode::BAD_REQUEST, "invalid JSON");
    };
    let model = request["model"].as_str().unwrap_or_default().to_owned();
    if !shared.knows(&model) {
        return missing(&model);
    }
    let texts: Option<Vec<String>> = match &request["input"] {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(texts) => texts.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    let Some(texts) = texts else { return failure(StatusCode::BAD_REQUEST, "invalid input type") };
    let fault = {
        let mut inner = shared.lock();
        inner.embedded.push(texts.clone());
        inner.embed_faults.pop_front()
    };
    let mut embeddings = match fault {
        Some(EmbedFault::Status { code, message }) => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return failure(status, &message);
        }
        Some(EmbedFault::Cut) => return cut(),
        Some(EmbedFault::Hang) => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            return cut();
        }
        Some(EmbedFault::Vectors { embeddings }) => embeddings,
        None => Value::Null,
    };
    if request["truncate"] == json!(false) && texts.iter().any(|text| text.len() > LONGEST_EMBEDDED) {
        return failure(StatusCode::BAD_REQUEST, "the input length exceeds the context length");
    }
    if embeddings.is_null() {
        embeddings = texts.iter().map(|text| json!(vector(text))).collect();
    }
    let read: usize = texts.iter().map(|text| tokens(text)).sum();
    Json(json!({
        "model": model, "embeddings": embeddings,
        "total_duration": 1_000_000, "load_duration": 1_000, "prompt_eval_count": read,
    }))
    .into_response()
}

/// A vector of length 1 that is the nearer to another's the more runs of three letters the texts share:
/// nearness of spelling in the place of nearness of meaning.
fn vector(text: &str) -> Vec<f32> {
    let mut sums = [0f32; WIDTH];
    let letters: Vec<char> = format!(" {} ", text.to_lowercase()).chars().collect();
    for run in letters.windows(3) {
        // FNV-1a: the same on every machine, which the standard library's hasher does not promise.
        let hash = run.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, letter| {
            (hash ^ u64::from(u32::from(*letter))).wrapping_mul(0x0000_0100_0000_01b3)
        });
        sums[(hash >> 8) as usize % WIDTH] += if hash & 1 == 0 { 1.0 } else { -1.0 };
    }
    let length = sums.iter().map(|sum| sum * sum).sum::<f32>().sqrt();
    if length == 0.0 {
        sums[0] = 1.0;
        return sums.to_vec();
    }
    sums.iter().map(|sum| sum / length).collect()
}

enum Line {
    Text(String),
    Cut,
    Hang,
}

fn lines(
    model: &str,
    pieces: &[String],
    finish: &str,
    prompt_tokens: usize,
    fault: Option<ModelFault>,
) -> Vec<Line> {
    let (keep, end) = match fault {
        Some(ModelFault::CutAfter { pieces }) => (pieces, Some(Line::Cut)),
        Some(ModelFault::ErrorAfter { pieces, message }) => {
            (pieces, Some(Line::Text(format!("{}\n", json!({"error": message})))))
        }
        Some(ModelFault::GarbageAfter { pieces }) => (pieces, Some(Line::Text("<html>\n".to_owned()))),
        Some(ModelFault::HangAfter { pieces }) => (pieces, Some(Line::Hang)),
        _ => (usize::MAX, None),
    };
    let mut lines: Vec<Line> = pieces
        .iter()
        .take(keep)
        .map(|piece| {
            let line = json!({
                "model": model, "created_at": "2026-01-01T00:00:00Z",
                "message": {"role": "assistant", "content": piece}, "done": false,
            });
            Line::Text(format!("{line}\n"))
        })
        .collect();
    lines.push(
        end.unwrap_or_else(|| Line::Text(format!("{}\n", done(model, finish, prompt_tokens, pieces.len())))),
    );
    lines
}

fn done(model: &str, finish: &str, prompt_tokens: usize, completion_tokens: usize) -> Value {
    json!({
        "model": model, "created_at": "2026-01-01T00:00:00Z",
        "message": {"role": "assistant", "content": ""}, "done": true, "done_reason": finish,
        "total_duration": 1_000_000, "load_duration": 1_000,
        "prompt_eval_count": prompt_tokens, "prompt_eval_duration": 1_000,
        "eval_count": completion_tokens, "eval_duration": 1_000,
    })
}

/// About what a real one would count.
fn tokens(text: &str) -> usize {
    text.len().div_ceil(4).max(1)
}

/// The same answer to the same question; it repeats the question, so that a test can tell whose
/// answer it is.
fn answer(prompt: &str) -> String {
    let russian = prompt.chars().any(|c| matches!(c, 'а'..='я' | 'А'..='Я' | 'ё' | 'Ё'));
    match russian {
        true => format!("Вы написали: «{prompt}». Я модель-симулятор: отвечаю всегда одинаково, зато сразу."),
        false => {
            format!(
                "You wrote: \"{prompt}\". I am a simulated model: I always answer alike, but I answer at once."
            )
        }
    }
}
