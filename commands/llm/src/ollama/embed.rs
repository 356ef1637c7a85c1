//! Embeddings over `/api/embed`.

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::Ollama;
use crate::{EmbeddingProvider, LlmError, json_call::JsonCall};

/// Texts of one request: a server works them off one after another, and a deadline should cost one batch.
const BATCH: usize = 64;

/// Bytes of one answer: 64 vectors of 4,096 numbers as text are about 4 MB.
const MAX_ANSWER: usize = 16 << 20;

#[derive(Deserialize)]
struct Answer {
    embeddings: Vec<Vec<f32>>,
}

#[async_trait]
impl EmbeddingProvider for Ollama {
    fn name(&self) -> &'static str {
        "ollama"
    }

    async fn embed(
        &self,
        model: &str,
        texts: &[String],
        deadline: Instant,
    ) -> Result<Vec<Vec<f32>>, LlmError> {
        let url = format!("{}/api/embed", self.base);
        let mut vectors: Vec<Vec<f32>> = Vec::with_capacity(texts.len());
        for batch in texts.chunks(BATCH) {
            // Without `truncate: false` Ollama shortens what does not fit and says nothing.
            let body = json!({"model": model, "input": batch, "truncate": false});
            let answer: Answer = JsonCall {
                http: &self.http,
                url: &url,
                bearer: None,
                body: &body,
                model,
                breaker: &self.breaker,
                timeout: self.limits.first_byte,
                retries: self.limits.retries,
                max_bytes: MAX_ANSWER,
                deadline,
            }
            .run()
            .await?;
            if answer.embeddings.len() != batch.len() {
                return Err(LlmError::Malformed);
            }
            vectors.extend(answer.embeddings);
        }
        let width = vectors.first().map_or(0, Vec::len);
        let sound = |vector: &Vec<f32>| {
            !vector.is_empty() && vector.len() == width && vector.iter().all(|number| number.is_finite())
        };
        if vectors.iter().all(sound) { Ok(vectors) } else { Err(LlmError::Malformed) }
    }
}
