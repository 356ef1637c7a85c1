//! The Bot API over HTTP: one shared client, many tokens, errors told apart by what to do about them.

use std::time::Duration;

use async_trait::async_trait;
use botledger_commands::{BotIdentity, ProbeError, TelegramProbe};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// What an error answer means for the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The person blocked the bot or is gone.
    RecipientGone,
    /// The bot was removed from the chat, or the chat is gone.
    ChatGone,
    /// The group has another id now.
    Migrate,
    /// The bot may not write there at present.
    NoRightNow,
    /// Nothing had to be changed.
    SuccessInEffect,
    /// What is talked about is no longer there.
    TooLate,
    /// The token is not valid (any more).
    Credential,
    /// Somebody else polls, or a webhook is set.
    Conflict,
    /// Too much at once.
    Rate,
    /// Telegram's own trouble.
    Server,
    /// Our fault.
    BadRequest,
}

impl ErrorClass {
    /// The name in events and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RecipientGone => "recipient_gone",
            Self::ChatGone => "chat_gone",
            Self::Migrate => "migrate",
            Self::NoRightNow => "no_right_now",
            Self::SuccessInEffect => "success_in_effect",
            Self::TooLate => "too_late",
            Self::Credential => "credential",
            Self::Conflict => "conflict",
            Self::Rate => "rate",
            Self::Server => "server",
            Self::BadRequest => "bad_request",
        }
    }

    /// Tells classes apart by code, then by the beginning of the description.
    #[must_use]
    pub fn of(code: i32, description: &str, migrates: bool) -> Self {
        let text = description.split_once(": ").map_or(description, |(_, text)| text);
        let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| text.starts_with(beginning));
        match code {
            401 | 421 => Self::Credential,
            404 if begins(&["method not found"]) => Self::BadRequest,
            404 => Self::Credential,
            403 if begins(&["bot was kicked", "bot is not a member", "the group chat was deleted"]) => {
                Self::ChatGone
            }
            403 => Self::RecipientGone,
            409 => Self::Conflict,
            429 => Self::Rate,
            500.. => Self::Server,
            400 if migrates => Self::Migrate,
            400 if begins(&["chat not found", "private chat not found", "PEER_ID_INVALID"]) => {
                Self::RecipientGone
            }
            400 if begins(&[
                "not enough rights",
                "have no rights",
                "need administrator rights",
                "CHAT_WRITE_FORBIDDEN",
                "TOPIC_CLOSED",
                "message thread not found",
                "VOICE_MESSAGES_FORBIDDEN",
            ]) =>
            {
                Self::NoRightNow
            }
            400 if begins(&["message is not modified"]) => Self::SuccessInEffect,
            400 if begins(&[
                "message to edit not found",
                "message can't be edited",
                "query is too old",
                "message to be replied not found",
                "message to copy not found",
            ]) =>
            {
                Self::TooLate
            }
            400 if begins(&["Logged out", "the bot has already been closed"]) => Self::Credential,
            _ => Self::BadRequest,
        }
    }
}

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `error_code`.
    pub code: i32,
    /// `description`; Telegram puts no personal data there.
    pub description: String,
    /// What to do about it.
    pub class: ErrorClass,
    /// `parameters.retry_after`.
    pub retry_after: Option<Duration>,
    /// `parameters.migrate_to_chat_id`.
    pub migrate_to: Option<i64>,
}

/// Longest pause that is believed; after it Telegram is asked again.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(86_400);

/// Why a call gave no result. Never holds the token: the addresses of failed requests would.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Telegram answered no.
    #[error("Telegram answered {} {}", .0.code, .0.description)]
    Refused(Refusal),
    /// The request did not leave: it may be repeated.
    #[error("Telegram cannot be reached")]
    NotSent,
    /// The request may have been carried out; nobody knows.
    #[error("the connection broke before Telegram's answer came")]
    Unknown,
    /// The answer is not what the Bot API describes; the call may have been carried out.
    #[error("Telegram's answer cannot be read")]
    Unreadable,
}

impl CallError {
    /// The class of a refusal.
    #[must_use]
    pub fn class(&self) -> Option<ErrorClass> {
        match self {
            Self::Refused(refusal) => Some(refusal.class),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct Answer<T> {
    #[serde(default)]
    ok: bool,
    result: Option<T>,
    error_code: Option<i32>,
    description: Option<String>,
    parameters: Option<Parameters>,
}

#[derive(Deserialize)]
struct Parameters {
    retry_after: Option<u64>,
    migrate_to_chat_id: Option<i64>,
}

/// A client for one Bot API server. Cheap to clone.
#[derive(Clone)]
pub struct Telegram {
    base: String,
    http: reqwest::Client,
    patience: Duration,
}

impl Telegram {
    /// `base_url` without token, for example `https://api.telegram.org`; `patience` bounds every call
    /// but `getUpdates`.
    ///
    /// # Errors
    /// When TLS cannot be set up on this machine.
    pub fn new(base_url: &str, patience: Duration) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            // A connection that the server has closed while it lay idle makes outcomes unknown.
            .pool_idle_timeout(Duration::from_secs(20))
            .tcp_nodelay(true)
            // The token is part of the address: it goes nowhere else.
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { base: base_url.trim_end_matches('/').to_owned(), http, patience })
    }

    /// Calls a method with JSON parameters.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<T: DeserializeOwned>(
        &self,
        token: &str,
        method: &str,
        parameters: &Value,
    ) -> Result<T, CallError> {
        self.call_within(token, method, parameters, self.patience).await
    }

    /// The same with another patience.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call_within<T: DeserializeOwned>(
        &self,
        token: &str,
        method: &str,
        parameters: &Value,
        patience: Duration,
    ) -> Result<T, CallError> {
        let started = std::time::Instant::now();
        let outcome = self.post(token, method, parameters, patience).await;
        let label = match &outcome {
            Ok(_) => "ok",
            Err(CallError::Refused(refusal)) => refusal.class.as_str(),
            Err(CallError::NotSent) => "not_sent",
            Err(CallError::Unknown) => "unknown",
            Err(CallError::Unreadable) => "unreadable",
        };
        let method = method.to_owned();
        metrics::counter!("botledger_telegram_calls_total", "method" => method.clone(), "outcome" => label)
            .increment(1);
        if method != "getUpdates" {
            metrics::histogram!("botledger_telegram_call_seconds", "method" => method)
                .record(started.elapsed().as_secs_f64());
        }
        outcome
    }

    async fn post<T: DeserializeOwned>(
        &self,
        token: &str,
        method: &str,
        parameters: &Value,
        patience: Duration,
    ) -> Result<T, CallError> {
        let url = format!("{}/bot{token}/{method}", self.base);
        let sent = self.http.post(url).timeout(patience).json(parameters).send().await;
        let response = sent.map_err(|error| {
            if error.is_connect() || error.is_builder() { CallError::NotSent } else { CallError::Unknown }
        })?;
        let status = i32::from(response.status().as_u16());
        let body = response.bytes().await.map_err(|_| CallError::Unknown)?;
        match serde_json::from_slice::<Answer<T>>(&body) {
            Ok(Answer { ok: true, result: Some(result), .. }) => Ok(result),
            Ok(Answer { ok: false, error_code, description, parameters, .. })
                if error_code.is_some() || status >= 400 =>
            {
                let code = error_code.unwrap_or(status);
                let description = description.unwrap_or_default();
                let migrate_to = parameters.as_ref().and_then(|parameters| parameters.migrate_to_chat_id);
                Err(CallError::Refused(Refusal {
                    class: ErrorClass::of(code, &description, migrate_to.is_some()),
                    code,
                    description,
                    retry_after: parameters
                        .and_then(|parameters| parameters.retry_after)
                        .map(|seconds| Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER)),
                    migrate_to,
                }))
            }
            // A proxy in between, or a page instead of an answer.
            _ if status >= 500 => Err(CallError::Refused(Refusal {
                class: ErrorClass::Server,
                code: status,
                description: "no Bot API answer".to_owned(),
                retry_after: None,
                migrate_to: None,
            })),
            _ => Err(CallError::Unreadable),
        }
    }
}

/// `digits:35 letters`, the shape @BotFather gives out. Anything else must not become part of an
/// address.
pub(crate) fn is_token_shaped(token: &str) -> bool {
    token.split_once(':').is_some_and(|(id, secret)| {
        (1..=20).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_digit())
            && (30..=64).contains(&secret.len())
            && secret.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
    })
}

#[derive(Deserialize)]
struct Me {
    id: i64,
    username: String,
}

#[async_trait]
impl TelegramProbe for Telegram {
    async fn get_me(&self, token: &str) -> Result<BotIdentity, ProbeError> {
        if !is_token_shaped(token) {
            return Err(ProbeError::Malformed);
        }
        match self.call::<Me>(token, "getMe", &serde_json::json!({})).await {
            Ok(me) => Ok(BotIdentity { telegram_id: me.id, username: me.username }),
            Err(error) if error.class() == Some(ErrorClass::Credential) => Err(ProbeError::Rejected),
            Err(_) => Err(ProbeError::Unreachable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_catalogued_answer_has_its_class() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/telegram/api-errors.json");
        let text = std::fs::read_to_string(path).expect("the error catalogue stands beside the repository");
        let catalogue: Value = serde_json::from_str(&text).expect("JSON");
        let answers = catalogue["errors"].as_array().expect("a list");
        assert!(answers.len() > 50);
        for answer in answers {
            let code = i32::try_from(answer["error_code"].as_i64().expect("a code")).expect("small");
            let description = answer["description"].as_str().expect("a text");
            let migrates = !answer["parameters"]["migrate_to_chat_id"].is_null();
            let class = ErrorClass::of(code, description, migrates);
            assert_eq!(class.as_str(), answer["class"].as_str().expect("a class"), "{code} {description}");
        }
    }

    #[test]
    fn only_what_looks_like_a_token_goes_into_an_address() {
        assert!(is_token_shaped("123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw1"));
        for bad in [
            "",
            "123",
            "123:short",
            "12/../3:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw1",
            "1:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsa/1",
        ] {
            assert!(!is_token_shaped(bad), "{bad}");
        }
    }
}
