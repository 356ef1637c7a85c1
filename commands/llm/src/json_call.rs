//! One JSON request, one JSON answer: bounded in time and size, retried, behind the circuit breaker.

use std::time::Duration;

use rand::Rng;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{LlmError, breaker::Breaker, ollama::refusal};

/// A request that does nothing worse when it is made twice.
pub(crate) struct JsonCall<'a> {
    pub(crate) http: &'a reqwest::Client,
    pub(crate) url: &'a str,
    /// Sent as `Authorization: Bearer …`.
    pub(crate) bearer: Option<&'a str>,
    pub(crate) body: &'a Value,
    /// What the circuit breaker counts by.
    pub(crate) model: &'a str,
    pub(crate) breaker: &'a Breaker,
    /// Of one attempt, from sending to the last byte.
    pub(crate) timeout: Duration,
    /// Attempts after the first one.
    pub(crate) retries: u32,
    /// Of the answer.
    pub(crate) max_bytes: usize,
    /// Of all attempts.
    pub(crate) deadline: Instant,
}

impl JsonCall<'_> {
    pub(crate) async fn run<T: DeserializeOwned>(&self) -> Result<T, LlmError> {
        self.breaker.admit(self.model)?;
        let answer = self.with_retries().await;
        match &answer {
            Ok(_) => self.breaker.succeeded(self.model),
            Err(
                LlmError::Unavailable
                | LlmError::Overloaded { .. }
                | LlmError::IdleTimeout
                | LlmError::Interrupted,
            ) => self.breaker.failed(self.model),
            // The server is well; the request, the key or the caller's patience is not.
            Err(_) => {}
        }
        let bytes = answer?;
        serde_json::from_slice(&bytes).map_err(|_| LlmError::Malformed)
    }

    async fn with_retries(&self) -> Result<Vec<u8>, LlmError> {
        let mut attempt = 0;
        loop {
            let error = match self.once().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            attempt += 1;
            if !error.retryable() || attempt > self.retries {
                return Err(error);
            }
            let backoff = Duration::from_millis(100) * 2u32.saturating_pow(attempt - 1);
            let pause = match error {
                LlmError::Overloaded { retry_after: Some(asked) } => asked,
                _ => backoff.mul_f64(rand::rng().random_range(0.5..1.0)),
            };
            let at = Instant::now() + pause;
            if at >= self.deadline {
                return Err(error);
            }
            sleep_until(at).await;
        }
    }

    async fn once(&self) -> Result<Vec<u8>, LlmError> {
        let by = self.deadline.min(Instant::now() + self.timeout);
        let late = |_| {
            if Instant::now() >= self.deadline { LlmError::DeadlineExceeded } else { LlmError::IdleTimeout }
        };
        let mut request = self.http.post(self.url).json(self.body);
        if let Some(key) = self.bearer {
            request = request.bearer_auth(key);
        }
        let mut response =
            timeout_at(by, request.send()).await.map_err(late)?.map_err(|_| LlmError::Unavailable)?;
        if !response.status().is_success() {
            return Err(refusal(response, by).await);
        }
        let mut answer = Vec::new();
        while let Some(packet) =
            timeout_at(by, response.chunk()).await.map_err(late)?.map_err(|_| LlmError::Interrupted)?
        {
            if answer.len() + packet.len() > self.max_bytes {
                return Err(LlmError::TooLarge { limit: self.max_bytes });
            }
            answer.extend_from_slice(&packet);
        }
        Ok(answer)
    }
}
