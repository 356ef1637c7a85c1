//! What the model is asked: instructions, context and message, within a window.

use botledger_domain::{
    ConversationId, ModelName,
    bot::BotSettings,
    policy::{DataRule, PolicyTerms},
    turn::Message,
};
use botledger_llm::{ChatRequest, fit_context, worst_case_prompt_tokens};
use botledger_scoring::pii::{MaskStyle, PiiKinds, Replaced, mask_together};

use super::{Gate, GateError};
use crate::{BodyContent, CommandError, VaultError, scorer::secret_kinds};

/// Answers shorter than this are not worth asking for: below it a quota refuses.
const SHORTEST_ANSWER: u64 = 64;

/// Told to the model beside a text with placeholders.
const ABOUT_PLACEHOLDERS: &str = "Words such as <EMAIL_ADDRESS_1> stand for values that are not shown to you. \
                                  Where you mean such a value, write its placeholder exactly as it is.";

pub(super) enum Asked {
    Fits { request: ChatRequest, tokens: u64 },
    TooLong { tokens: u64 },
}

/// What the model could be told, with everything masked that the policy does not let out.
pub(super) struct Question {
    system: Option<String>,
    history: Vec<(String, String)>,
    prompt: String,
    pub(super) replaced: Replaced,
}

/// Says nothing of what the texts held.
#[derive(Debug, thiserror::Error)]
#[error("the texts could not be masked")]
struct MaskingFailed;

impl Gate {
    pub(super) fn model(&self, settings: &BotSettings) -> ModelName {
        settings.model.clone().unwrap_or_else(|| self.defaults.model.clone())
    }

    /// Everything there is to ask at a place (session and context epoch) of the conversation.
    pub(super) async fn question(
        &self,
        message: &Message,
        settings: &BotSettings,
        terms: &PolicyTerms,
        place: (u32, u32),
        prompt: &str,
    ) -> Result<Question, GateError> {
        let history = self.history(message.conversation, place).await?;
        let (history, prompt, replaced) = mask(terms, history, prompt.to_owned()).await?;
        let system = match (&settings.system_prompt, replaced.is_empty()) {
            (system, true) => system.clone(),
            (None, false) => Some(ABOUT_PLACEHOLDERS.to_owned()),
            (Some(system), false) => Some(format!("{system}\n\n{ABOUT_PLACEHOLDERS}")),
        };
        Ok(Question { system, history, prompt, replaced })
    }

    async fn history(
        &self,
        conversation: ConversationId,
        (session, context_epoch): (u32, u32),
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

impl Question {
    /// The question within a window of that many tokens. Rather a shorter answer than less context, rather
    /// less context than no answer.
    pub(super) fn within(
        &self,
        settings: &BotSettings,
        model: &ModelName,
        window: u64,
    ) -> Result<Asked, GateError> {
        let (system, prompt) = (self.system.as_deref(), self.prompt.as_str());
        let bare = fit_context(system, &[], prompt, u32::MAX, 0)
            .map(|fitted| worst_case_prompt_tokens(&fitted.messages))
            .map_err(CommandError::broken)?;
        let answer = u64::from(settings.max_answer_tokens).min(window.saturating_sub(bare));
        if answer < SHORTEST_ANSWER.min(u64::from(settings.max_answer_tokens)) {
            return Ok(Asked::TooLong { tokens: bare + SHORTEST_ANSWER });
        }
        let clamp = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
        let fitted = fit_context(system, &self.history, prompt, clamp(window), clamp(answer))
            .map_err(CommandError::broken)?;
        let tokens = worst_case_prompt_tokens(&fitted.messages) + answer;
        Ok(Asked::Fits {
            tokens,
            request: ChatRequest {
                model: model.as_str().to_owned(),
                messages: fitted.messages,
                num_ctx: settings.context_tokens,
                num_predict: clamp(answer),
                temperature: settings.temperature_milli.map(|milli| milli as f32 / 1_000.0),
            },
        })
    }
}

/// Replaces what the policy does not let out in the history and the message; a value has one placeholder in
/// all of them. The instructions are the operator's own and stay as they are.
async fn mask(
    terms: &PolicyTerms,
    history: Vec<(String, String)>,
    prompt: String,
) -> Result<(Vec<(String, String)>, String, Replaced), GateError> {
    let secrets = secret_kinds();
    // A message with what is refused gets no answer; what earlier messages hold of it is masked.
    let (hide_secrets, hide_data) = (terms.secrets != DataRule::Pass, terms.personal_data != DataRule::Pass);
    let kinds: PiiKinds = PiiKinds::personal()
        .iter()
        .filter(|kind| if secrets.contains(*kind) { hide_secrets } else { hide_data })
        .collect();
    if kinds == PiiKinds::NONE {
        return Ok((history, prompt, Replaced::default()));
    }
    // Texts that cannot be masked do not leave: a failure here fails the step.
    tokio::task::spawn_blocking(move || {
        let texts: Vec<&str> = history
            .iter()
            .flat_map(|(said, answered)| [said.as_str(), answered.as_str()])
            .chain([prompt.as_str()])
            .collect();
        let (masked, replaced) = mask_together(&texts, kinds, MaskStyle::Numbered);
        let mut masked = masked.into_iter().map(|(text, _)| text);
        let mut next = || masked.next().unwrap_or_default();
        let history = history.iter().map(|_| (next(), next())).collect();
        (history, next(), replaced)
    })
    .await
    // What a panic says may quote the texts.
    .map_err(|_| CommandError::broken(MaskingFailed))
}
