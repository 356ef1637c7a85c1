//! Language models: asking them, reading their streams, counting their tokens.
//!
//! Here live the traits of providers (chat, embeddings, moderation), their adapters and the arithmetic
//! of context windows. Here never live quotas, prompts of ours or anything that knows Telegram. To add
//! a provider: a file that implements [`ChatProvider`], [`EmbeddingProvider`] or
//! [`ModerationProvider`], with its own decoder and a test against a scripted server.

mod breaker;
mod context;
mod embedding;
mod error;
mod json_call;
mod moderation;
mod ndjson;
mod ollama;

use std::{pin::Pin, time::Duration};

use async_trait::async_trait;
use futures::Stream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use context::{ContextError, FittedContext, estimate_tokens, fit_context, worst_case_prompt_tokens};
pub use embedding::EmbeddingProvider;
pub use error::{LlmError, LlmFailure};
pub use moderation::{
    CategoryVerdict, GuardPrompt, LlamaGuard, ModerationCategory, ModerationProvider, ModerationVerdict,
    OpenAiModeration, OpenAiModerationConfig,
};
pub use ollama::{Ollama, OllamaLimits, describe_metrics};

/// Who says a line of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatRole {
    /// Instructions of the bot's owner.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One line of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTurn {
    /// Who.
    pub role: ChatRole,
    /// What.
    pub content: String,
}

/// What a model is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// As the provider names it.
    pub model: String,
    /// Oldest first, ending with the person's message.
    pub messages: Vec<ChatTurn>,
    /// Context window, tokens.
    pub num_ctx: u32,
    /// Answer tokens at most.
    pub num_predict: u32,
    /// Sampling temperature; the model's default when absent.
    pub temperature: Option<f32>,
}

/// Tokens of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of prompt and context.
    pub prompt_tokens: u64,
    /// Of the answer.
    pub completion_tokens: u64,
    /// Whether a count is ours because the provider gave none.
    pub estimated: bool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model was done.
    Stop,
    /// The answer's limit or the window was reached.
    Length,
    /// The caller cancelled.
    Cancelled,
}

impl FinishReason {
    /// `stop`, `length` or `cancelled`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The end of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Completion {
    /// Why it ended.
    pub finish: FinishReason,
    /// What it took.
    pub usage: Usage,
    /// From the first attempt to the end.
    pub total: Duration,
    /// From the first attempt to the first text, if any came.
    pub first_text: Option<Duration>,
    /// Calls made, at least 1.
    pub attempts: u32,
}

/// A piece of an answer. `Done` comes last and exactly once, unless an error does.
#[derive(Clone, Debug, PartialEq)]
pub enum ChatEvent {
    /// The next piece of text, never empty.
    Text(String),
    /// The end.
    Done(Completion),
}

/// A running answer. Dropping it closes the connection, which stops the generation.
pub type ChatStream = Pin<Box<dyn Stream<Item = Result<ChatEvent, LlmFailure>> + Send>>;

/// Something that answers conversations.
#[async_trait]
pub trait ChatProvider: Send + Sync {
    /// The name recorded in events, for example `ollama`.
    fn name(&self) -> &'static str;

    /// Starts an answer. Failures before the first text are retried inside, as far as the deadline
    /// allows; after that they end the stream with an [`LlmFailure`]. Cancelling ends it with `Done`.
    ///
    /// # Errors
    /// See [`LlmError`].
    async fn chat(
        &self,
        request: ChatRequest,
        cancel: CancellationToken,
        deadline: Instant,
    ) -> Result<ChatStream, LlmError>;
}
