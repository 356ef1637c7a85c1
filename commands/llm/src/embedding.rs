use async_trait::async_trait;
use tokio::time::Instant;

use crate::LlmError;

/// Something that turns texts into vectors whose nearness is nearness of meaning.
#[async_trait]
pub trait EmbeddingProvider: Send + Sync {
    /// The name recorded in events, for example `ollama`.
    fn name(&self) -> &'static str;

    /// One vector for each text, in order, all of the model's width, as the model gave them: not every model
    /// normalises. No texts, no vectors and no call. A text that does not fit the model is an error and is
    /// never shortened in silence.
    ///
    /// # Errors
    /// [`LlmError::ContextTooLong`] for a text that does not fit; [`LlmError::Malformed`] when count, width
    /// or numbers make no sense; else see [`LlmError`].
    async fn embed(
        &self,
        model: &str,
        texts: &[String],
        deadline: Instant,
    ) -> Result<Vec<Vec<f32>>, LlmError>;
}
