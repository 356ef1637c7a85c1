//! What the model is asked: instructions, context and message, within a window.

use botledger_domain::{ConversationId, ModelName, bot::BotSettings, turn::Message};
use botledger_llm::{ChatRequest, fit_context, worst_case_prompt_tokens};

use super::{Gate, GateError};
use crate::{BodyContent, CommandError, VaultError};

/// Answers shorter than this are not worth asking for: below it a quota refuses.
const SHORTEST_ANSWER: u64 = 64;

/// `fit_context` counts head and message apart, each with the overhead of a conversation.
pub(super) const FIT_OVERHEAD: u64 = 16;

pub(super) enum Asked {
    Fits { request: ChatRequest, tokens: u64 },
    TooLong { tokens: u64 },
}

impl Gate {
    pub(super) fn model(&self, settings: &BotSettings) -> ModelName {
        settings.model.clone().unwrap_or_else(|| self.defaults.model.clone())
    }

    /// What the model would be asked within a window of that many tokens. Rather a shorter answer
    /// than less context, rather less context than no answer.
    pub(super) async fn ask(
        &self,
        message: &Message,
        settings: &BotSettings,
        session: u32,
        context_epoch: u32,
        prompt: &str,
        window: u64,
    ) -> Result<Asked, GateError> {
        let system = settings.system_prompt.as_deref();
        let bare = fit_context(system, &[], prompt, u32::MAX, 0)
            .map(|fitted| worst_case_prompt_tokens(&fitted.messages) + FIT_OVERHEAD)
            .map_err(CommandError::broken)?;
        let answer = u64::from(settings.max_answer_tokens).min(window.saturating_sub(bare));
        if answer < SHORTEST_ANSWER.min(u64::from(settings.max_answer_tokens)) {
            return Ok(Asked::TooLong { tokens: bare + SHORTEST_ANSWER });
        }
        let history = self.history(message.conversation, session, context_epoch).await?;
        let clamp = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
        let fitted = fit_context(system, &history, prompt, clamp(window), clamp(answer))
            .map_err(CommandError::broken)?;
        let tokens = worst_case_prompt_tokens(&fitted.messages) + answer;
        Ok(Asked::Fits {
            tokens,
            request: ChatRequest {
                model: self.model(settings).as_str().to_owned(),
                messages: fitted.messages,
                num_ctx: settings.context_tokens,
                num_predict: clamp(answer),
                temperature: settings.temperature_milli.map(|milli| milli as f32 / 1_000.0),
            },
        })
    }

    async fn history(
        &self,
        conversation: ConversationId,
        session: u32,
        context_epoch: u32,
    ) -> Result<Vec<(String, String)>, GateError> {
        let exchanges = self
            .core
            .journal
            .context(conversation, session, context_epoch, self.defaults.context_exchanges)
            .await?;
        let mut history = Vec::with_capacity(exchanges.len());
        for exchange in exchanges {
            let Some(prompt) = exchange.prompt else { continue };
            let opened =
                (self.core.vault.open_body(&prompt).await, self.core.vault.open_body(&exchange.reply).await);
            match opened {
                (Ok(prompt), Ok(BodyContent::Reply { text })) => {
                    history.push((prompt.text().unwrap_or_default().to_owned(), text));
                }
                // Erased: history without it.
                (Err(VaultError::Shredded), _) | (_, Err(VaultError::Shredded)) | (Ok(_), Ok(_)) => {}
                (Err(error), _) | (_, Err(error)) => return Err(error.into()),
            }
        }
        history.reverse();
        Ok(history)
    }
}
