use crate::{ChatRole, ChatTurn};

/// Tokens a chat template may add around one message (role marks, separators). Generous: the
/// templates of the common models add 4 to 8.
const MESSAGE_OVERHEAD: u64 = 16;

/// A hard upper bound of the prompt's tokens. Tokenisers of language models are built over bytes:
/// a token stands for one byte or more, so a text has at most as many tokens as bytes; what the
/// chat template adds is bounded per message.
#[must_use]
pub fn worst_case_prompt_tokens(messages: &[ChatTurn]) -> u64 {
    messages.iter().map(|message| message_tokens(&message.content)).sum::<u64>() + MESSAGE_OVERHEAD
}

fn message_tokens(content: &str) -> u64 {
    content.len() as u64 + MESSAGE_OVERHEAD
}

/// An estimate for a text whose tokens nobody counted: about four bytes a token in English; texts
/// outside ASCII take more tokens a letter, and about as many bytes more.
#[must_use]
pub fn estimate_tokens(text: &str) -> u64 {
    (text.len() as u64).div_ceil(4)
}

/// A conversation that fits a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FittedContext {
    /// System prompt if any, kept exchanges oldest first, the prompt.
    pub messages: Vec<ChatTurn>,
    /// Exchanges left out, the oldest ones.
    pub dropped_exchanges: usize,
}

/// A prompt that fits no window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// System prompt and message alone are too long.
    #[error("the message takes up to {tokens} tokens, {limit} are left for it")]
    PromptTooLong {
        /// Worst case of system prompt and message.
        tokens: u64,
        /// What the window leaves beside the answer.
        limit: u64,
    },
}

/// Puts as many of the newest exchanges as fit, whole, between system prompt and message, so that
/// the worst case of all of it plus the answer stays within the window.
///
/// # Errors
/// When system prompt and message alone do not fit.
pub fn fit_context(
    system: Option<&str>,
    history: &[(String, String)],
    prompt: &str,
    num_ctx: u32,
    num_predict: u32,
) -> Result<FittedContext, ContextError> {
    let turn = |role, content: &str| ChatTurn { role, content: content.to_owned() };
    let mut head: Vec<ChatTurn> = system.map(|text| turn(ChatRole::System, text)).into_iter().collect();
    let last = turn(ChatRole::User, prompt);
    let limit = u64::from(num_ctx.saturating_sub(num_predict));
    let mut tokens = worst_case_prompt_tokens(&head) + message_tokens(prompt);
    if tokens > limit {
        return Err(ContextError::PromptTooLong { tokens, limit });
    }
    let mut kept = Vec::new();
    for (question, answer) in history.iter().rev() {
        let size = message_tokens(question) + message_tokens(answer);
        if tokens + size > limit {
            break;
        }
        tokens += size;
        kept.push([turn(ChatRole::User, question), turn(ChatRole::Assistant, answer)]);
    }
    let dropped_exchanges = history.len() - kept.len();
    head.extend(kept.into_iter().rev().flatten());
    head.push(last);
    Ok(FittedContext { messages: head, dropped_exchanges })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_newest_exchanges_are_kept_whole_and_in_order() {
        let history: Vec<_> = (0..5).map(|n| (format!("question {n}"), "x".repeat(40))).collect();
        let fitted = fit_context(Some("Be kind."), &history, "and now?", 400, 100).expect("fits");
        assert_eq!(fitted.dropped_exchanges, 3);
        let texts: Vec<_> = fitted.messages.iter().map(|m| m.content.as_str()).collect();
        assert_eq!(
            (texts[0], texts[1], *texts.last().expect("prompt")),
            ("Be kind.", "question 3", "and now?")
        );
    }

    #[test]
    fn a_message_longer_than_the_window_is_refused_with_its_size() {
        let error = fit_context(None, &[], &"я".repeat(300), 512, 100).expect_err("too long");
        assert_eq!(error, ContextError::PromptTooLong { tokens: 632, limit: 412 });
    }

    proptest! {
        #[test]
        fn what_fits_never_exceeds_the_window(
            history in prop::collection::vec((".{0,40}", ".{0,80}"), 0..12), prompt in ".{0,60}", window in 256u32..2048
        ) {
            if let Ok(fitted) = fit_context(Some("system"), &history, &prompt, window, 64) {
                let tokens = worst_case_prompt_tokens(&fitted.messages) + 64;
                prop_assert!(tokens <= u64::from(window));
                let same = u32::try_from(tokens).expect("within the window");
                let again = fit_context(Some("system"), &history, &prompt, same, 64);
                prop_assert_eq!(again.as_ref(), Ok(&fitted), "what fitted fits into what it takes");
                prop_assert_eq!(fitted.messages.len(), 2 + 2 * (history.len() - fitted.dropped_exchanges));
            }
        }
    }
}
