mod embed;

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use ollama_rs::{
    generation::chat::{ChatMessage, MessageRole, request::ChatMessageRequest},
    models::ModelOptions,
};
use rand::Rng;
use reqwest::{StatusCode, header::RETRY_AFTER};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    ChatEvent, ChatProvider, ChatRequest, ChatRole, ChatStream, Completion, FinishReason, LlmError,
    LlmFailure, Usage,
    breaker::Breaker,
    estimate_tokens,
    ndjson::{Decoder, Line},
    worst_case_prompt_tokens,
};

/// Bounds of one call.
#[derive(Clone, Copy, Debug)]
pub struct OllamaLimits {
    /// From sending to the first byte; loading a model counts.
    pub first_byte: Duration,
    /// Between two pieces.
    pub idle: Duration,
    /// Bytes of answer text.
    pub max_answer_bytes: usize,
    /// Calls after the first one, before any text came.
    pub retries: u32,
}

impl Default for OllamaLimits {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(30),
            max_answer_bytes: 256 * 1024,
            retries: 2,
        }
    }
}

/// A model server that speaks Ollama's protocol.
///
/// Request types and model management are ollama-rs's; the chat stream is decoded here, because
/// ollama-rs 0.3.6 loses text at packet borders, errors in the stream and all usage when one metric
/// is zero.
pub struct Ollama {
    base: String,
    http: reqwest::Client,
    limits: OllamaLimits,
    breaker: std::sync::Arc<Breaker>,
}

impl Ollama {
    /// `base_url` without path, for example `http://localhost:11434`. The client should set a
    /// connect timeout and no total one.
    #[must_use]
    pub fn new(base_url: &str, http: reqwest::Client, limits: OllamaLimits) -> Self {
        Self {
            base: base_url.trim_end_matches('/').to_owned(),
            http,
            limits,
            breaker: std::sync::Arc::default(),
        }
    }

    fn body(request: &ChatRequest) -> Result<serde_json::Value, LlmError> {
        let messages = request
            .messages
            .iter()
            .map(|turn| {
                let role = match turn.role {
                    ChatRole::System => MessageRole::System,
                    ChatRole::User => MessageRole::User,
                    ChatRole::Assistant => MessageRole::Assistant,
                };
                ChatMessage::new(role, turn.content.clone())
            })
            .collect();
        let mut options = ModelOptions::default()
            .num_ctx(u64::from(request.num_ctx))
            .num_predict(i32::try_from(request.num_predict).unwrap_or(i32::MAX));
        if let Some(temperature) = request.temperature {
            options = options.temperature(temperature);
        }
        let typed = ChatMessageRequest::new(request.model.clone(), messages).options(options);
        let mut body = serde_json::to_value(&typed).map_err(|_| LlmError::Malformed)?;
        // Fields ollama-rs keeps to itself or does not know. Without `truncate: false` Ollama
        // silently shortens a long conversation.
        body["stream"] = true.into();
        body["truncate"] = false.into();
        Ok(body)
    }
}

#[async_trait]
impl ChatProvider for Ollama {
    fn name(&self) -> &'static str {
        "ollama"
    }

    async fn chat(
        &self,
        request: ChatRequest,
        cancel: CancellationToken,
        deadline: Instant,
    ) -> Result<ChatStream, LlmError> {
        self.breaker.admit(&request.model)?;
        let call = Call {
            url: format!("{}/api/chat", self.base),
            body: Self::body(&request)?,
            http: self.http.clone(),
            limits: self.limits,
            prompt_estimate: worst_case_prompt_tokens(&request.messages).div_ceil(4),
            started: Instant::now(),
            deadline,
        };
        let breaker = std::sync::Arc::clone(&self.breaker);
        let (pieces, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            let mut progress = Progress::default();
            let end = tokio::select! {
                biased;
                () = cancel.cancelled() => Ok(call.completion(&progress, FinishReason::Cancelled, None)),
                () = pieces.closed() => return,
                end = call.with_retries(&pieces, &mut progress) => end,
            };
            let outcome = match &end {
                Ok(done) => done.finish.as_str(),
                Err(error) => error.code(),
            };
            metrics::counter!("botledger_llm_requests_total", "provider" => "ollama", "outcome" => outcome)
                .increment(1);
            metrics::histogram!("botledger_llm_seconds").record(call.started.elapsed().as_secs_f64());
            match &end {
                Ok(done) => {
                    // Somebody's stop says nothing about the model.
                    if done.finish != FinishReason::Cancelled {
                        breaker.succeeded(&request.model);
                    }
                    metrics::counter!("botledger_llm_tokens_total", "kind" => "prompt")
                        .increment(done.usage.prompt_tokens);
                    metrics::counter!("botledger_llm_tokens_total", "kind" => "completion")
                        .increment(done.usage.completion_tokens);
                }
                Err(
                    LlmError::Unavailable
                    | LlmError::Overloaded { .. }
                    | LlmError::IdleTimeout
                    | LlmError::Interrupted,
                ) => {
                    breaker.failed(&request.model);
                }
                Err(_) => {}
            }
            // A caller that dropped the stream needs no end.
            let end = end.map(ChatEvent::Done);
            let end = end.map_err(|error| LlmFailure { used: call.used(&progress), error });
            let _ = pieces.send(end).await;
        });
        Ok(Box::pin(futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        })))
    }
}

/// What came so far, kept outside the call so that a cancelled one can be settled.
#[derive(Default)]
struct Progress {
    text: String,
    first_text: Option<Duration>,
    attempts: u32,
    /// Whether the present attempt was sent and neither failed on its way nor was refused: then the
    /// model is reading the prompt, whether it says so yet or not.
    at_work: bool,
}

struct Call {
    url: String,
    body: serde_json::Value,
    http: reqwest::Client,
    limits: OllamaLimits,
    prompt_estimate: u64,
    started: Instant,
    deadline: Instant,
}

type Pieces = mpsc::Sender<Result<ChatEvent, LlmFailure>>;

impl Call {
    async fn with_retries(&self, pieces: &Pieces, progress: &mut Progress) -> Result<Completion, LlmError> {
        loop {
            progress.attempts += 1;
            let error = match self.once(pieces, progress).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let may_retry =
                progress.text.is_empty() && error.retryable() && progress.attempts <= self.limits.retries;
            if !may_retry {
                return Err(error);
            }
            let backoff = Duration::from_millis(200) * 2u32.saturating_pow(progress.attempts - 1);
            let asked = match error {
                LlmError::Overloaded { retry_after: Some(asked) } => asked,
                _ => backoff.mul_f64(rand::rng().random_range(0.5..1.0)),
            };
            let at = Instant::now() + asked;
            if at >= self.deadline {
                return Err(error);
            }
            sleep_until(at).await;
        }
    }

    async fn once(&self, pieces: &Pieces, progress: &mut Progress) -> Result<Completion, LlmError> {
        let first_byte_by = self.deadline.min(Instant::now() + self.limits.first_byte);
        progress.at_work = true;
        let response = timeout_at(first_byte_by, self.http.post(&self.url).json(&self.body).send())
            .await
            .map_err(|_| self.late())?
            .map_err(|_| {
                progress.at_work = false;
                LlmError::Unavailable
            })?;
        if !response.status().is_success() {
            progress.at_work = false;
            return Err(refusal(response, first_byte_by).await);
        }
        let mut packets = response.bytes_stream();
        let mut decoder = Decoder::default();
        loop {
            let idle_by = self.deadline.min(Instant::now() + self.limits.idle);
            let packet = timeout_at(idle_by, packets.next()).await.map_err(|_| self.late())?;
            let lines = match packet {
                Some(Ok(packet)) => decoder.push(&packet)?,
                Some(Err(_)) => return Err(LlmError::Interrupted),
                None => {
                    let last = decoder.finish()?;
                    return match last {
                        Some(line) => self.take(line, pieces, progress).await?.ok_or(LlmError::Interrupted),
                        // The connection ended without a last line: the answer is not whole.
                        None => Err(LlmError::Interrupted),
                    };
                }
            };
            for line in lines {
                if let Some(done) = self.take(line, pieces, progress).await? {
                    return Ok(done);
                }
            }
        }
    }

    async fn take(
        &self,
        line: Line,
        pieces: &Pieces,
        progress: &mut Progress,
    ) -> Result<Option<Completion>, LlmError> {
        if line.error.is_some() {
            return Err(LlmError::Interrupted);
        }
        if let Some(text) = line.message.as_ref().map(|m| m.content.clone()).filter(|text| !text.is_empty()) {
            progress.text.push_str(&text);
            if progress.first_text.is_none() {
                progress.first_text = Some(self.started.elapsed());
                metrics::histogram!("botledger_llm_first_text_seconds")
                    .record(self.started.elapsed().as_secs_f64());
            }
            if progress.text.len() > self.limits.max_answer_bytes {
                return Err(LlmError::TooLarge { limit: self.limits.max_answer_bytes });
            }
            if pieces.send(Ok(ChatEvent::Text(text))).await.is_err() {
                return Err(LlmError::Interrupted);
            }
        }
        if !line.done {
            return Ok(None);
        }
        let finish = match line.done_reason.as_deref() {
            Some("length") => FinishReason::Length,
            _ => FinishReason::Stop,
        };
        Ok(Some(self.completion(progress, finish, Some(&line))))
    }

    fn completion(&self, progress: &Progress, finish: FinishReason, last: Option<&Line>) -> Completion {
        // Ollama leaves out a metric that is zero; a completion with text is never zero tokens.
        let prompt = last.and_then(|line| line.prompt_eval_count);
        let answer = last.and_then(|line| line.eval_count);
        let used = self.used(progress).unwrap_or_default();
        Completion {
            finish,
            usage: Usage {
                prompt_tokens: prompt.unwrap_or(used.prompt_tokens),
                completion_tokens: answer.unwrap_or(used.completion_tokens),
                estimated: prompt.is_none() || answer.is_none(),
            },
            total: self.started.elapsed(),
            first_text: progress.first_text,
            attempts: progress.attempts.max(1),
        }
    }

    /// What was used without anybody having counted it.
    fn used(&self, progress: &Progress) -> Option<Usage> {
        progress.at_work.then(|| Usage {
            prompt_tokens: self.prompt_estimate,
            completion_tokens: estimate_tokens(&progress.text),
            estimated: true,
        })
    }

    fn late(&self) -> LlmError {
        if Instant::now() >= self.deadline { LlmError::DeadlineExceeded } else { LlmError::IdleTimeout }
    }
}

/// Bytes of a refusal that are read to find out what it is about.
const REFUSAL_BYTES: usize = 16 * 1024;

/// The beginning of a refusal's text, as far as it comes in time.
async fn beginning(mut response: reqwest::Response, by: Instant) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < REFUSAL_BYTES
        && let Ok(Ok(Some(packet))) = timeout_at(by, response.chunk()).await
    {
        bytes.extend_from_slice(&packet);
    }
    bytes.truncate(REFUSAL_BYTES);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a refusal means. The provider's own text stays here: it may repeat the prompt.
pub(crate) async fn refusal(response: reqwest::Response, by: Instant) -> LlmError {
    let status = response.status();
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    match status {
        StatusCode::NOT_FOUND => LlmError::ModelNotFound,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            LlmError::Overloaded { retry_after }
        }
        status if status.is_server_error() => LlmError::Unavailable,
        StatusCode::BAD_REQUEST => {
            if beginning(response, by).await.contains("context") {
                LlmError::ContextTooLong
            } else {
                LlmError::Rejected { status: 400 }
            }
        }
        status => LlmError::Rejected { status: status.as_u16() },
    }
}

/// Tells the metrics recorder what the adapter's metrics mean.
pub fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_histogram};
    describe_counter!("botledger_llm_requests_total", Unit::Count, "Model calls by provider and outcome");
    describe_histogram!("botledger_llm_seconds", Unit::Seconds, "Whole model calls, retries included");
    describe_histogram!(
        "botledger_llm_first_text_seconds",
        Unit::Seconds,
        "From the request to the first text"
    );
    describe_counter!("botledger_llm_tokens_total", Unit::Count, "Tokens of prompts and completions");
    crate::moderation::describe_metrics();
}

#[cfg(test)]
mod tests;
