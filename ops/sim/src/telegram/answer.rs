//! `/bot<token>/<method>`.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use serde_json::{Map, Value, json};

use super::{
    FaultKind, LogEntry,
    state::{Shared, now_ms},
    webhook::{Webhook, deliver},
};
use crate::{methods, server::cut};

/// Longest a `getUpdates` waits.
const LONGEST_POLL: i64 = 50;
/// A hung call hangs for this long.
const HANG: Duration = Duration::from_secs(600);
/// Longest text, code points.
const TEXT: usize = 4_096;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new().route("/{bot}/{method}", any(call)).with_state(shared)
}

/// An error answer: code, description, `parameters`.
struct Refused(u16, String, Option<Value>);

impl Refused {
    fn bad(description: impl Into<String>) -> Self {
        Self(400, description.into(), None)
    }

    fn flood(seconds: u64) -> Self {
        let parameters = json!({"retry_after": seconds});
        Self(429, format!("Too Many Requests: retry after {seconds}"), Some(parameters))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(code, description, parameters) = self;
        let mut body = json!({"ok": false, "error_code": code, "description": description});
        if let Some(parameters) = parameters {
            body["parameters"] = parameters;
        }
        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST);
        (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
    }
}

async fn call(
    State(shared): State<Arc<Shared>>,
    Path((bot, method)): Path<(String, String)>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(token) = bot.strip_prefix("bot") else {
        return Refused(404, "Not Found".to_owned(), None).into_response();
    };
    let Some(username) = shared.lock().holder(token) else {
        let known_shape =
            token.split_once(':').is_some_and(|(id, _)| id.bytes().all(|byte| byte.is_ascii_digit()));
        return match known_shape {
            true => Refused(401, "Unauthorized".to_owned(), None).into_response(),
            false => Refused(404, "Not Found".to_owned(), None).into_response(),
        };
    };
    let Some(method) = methods::find(&method) else {
        return Refused(404, "Not Found: method not found".to_owned(), None).into_response();
    };
    let parameters = match parameters(query, &headers, &body) {
        Ok(parameters) => parameters,
        Err(refused) => return refused.into_response(),
    };
    let mut call = Call {
        shared: &shared,
        username: &username,
        method: method.name,
        parameters: &parameters,
        too_early: false,
    };
    call.too_early = call.is_too_early();
    call.answer().await
}

/// From the query, a JSON body or a form; everything that holds structure may be JSON in a text.
fn parameters(
    query: Vec<(String, String)>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Map<String, Value>, Refused> {
    let mut all: Map<String, Value> =
        query.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if body.is_empty() {
        return Ok(all);
    }
    if kind.starts_with("application/json") {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => all.extend(map),
            _ => return Err(Refused::bad("Bad Request: object expected as request body")),
        }
    } else if kind.starts_with("application/x-www-form-urlencoded") {
        let uri = format!("/?{}", String::from_utf8_lossy(body)).parse::<axum::http::Uri>();
        let form = uri.ok().and_then(|uri| Query::<Vec<(String, String)>>::try_from_uri(&uri).ok());
        let Some(Query(form)) = form else {
            return Err(Refused::bad("Bad Request: the form cannot be read"));
        };
        all.extend(form.into_iter().map(|(name, value)| (name, Value::String(value))));
    } else {
        return Err(Refused::bad("Bad Request: send JSON or a form"));
    }
    Ok(all)
}

struct Call<'a> {
    shared: &'a Arc<Shared>,
    username: &'a str,
    method: &'static str,
    parameters: &'a Map<String, Value>,
    /// The chat had been told to wait when the call came.
    too_early: bool,
}

impl Call<'_> {
    fn is_too_early(&self) -> bool {
        let limited = matches!(self.method, "sendMessage" | "editMessageText" | "sendChatAction");
        let Some(chat) = self.integer("chat_id").filter(|_| limited) else { return false };
        self.shared.lock().bot(self.username).is_some_and(|bot| bot.flood.told_to_wait(chat, now_ms()))
    }

    async fn answer(&self) -> Response {
        let chat = self.integer("chat_id");
        let fault = self.shared.lock().strike(self.method, self.username, chat);
        match fault {
            Some(FaultKind::Status { code, description, retry_after }) => {
                if let (Some(seconds), Some(chat)) = (retry_after, chat)
                    && let Some(bot) = self.shared.lock().bot(self.username)
                {
                    bot.flood.tell_to_wait(chat, now_ms() + i64::try_from(seconds).unwrap_or(0) * 1_000);
                }
                self.note(&code.to_string(), None);
                let parameters = retry_after.map(|seconds| json!({"retry_after": seconds}));
                return Refused(code, description, parameters).into_response();
            }
            Some(FaultKind::CutBefore) => {
                self.note("cut_before", None);
                return cut();
            }
            Some(FaultKind::Hang) => {
                self.note("hang", None);
                tokio::time::sleep(HANG).await;
                return cut();
            }
            Some(FaultKind::Garbage) => {
                self.note("garbage", None);
                return (StatusCode::OK, "<html><body>maintenance</body></html>").into_response();
            }
            Some(FaultKind::Delay { millis }) => tokio::time::sleep(Duration::from_millis(millis)).await,
            Some(FaultKind::CutAfter) | None => {}
        }
        let result = self.carry_out().await;
        let after = fault == Some(FaultKind::CutAfter);
        match result {
            Ok(result) => {
                // Polls that bring nothing are not worth a line each.
                let idle = self.method == "getUpdates" && result.as_array().is_some_and(Vec::is_empty);
                if after || !idle {
                    self.note(if after { "cut_after" } else { "ok" }, result["message_id"].as_i64());
                }
                if after {
                    return cut();
                }
                let body = json!({"ok": true, "result": result}).to_string();
                ([(header::CONTENT_TYPE, "application/json")], body).into_response()
            }
            Err(refused) => {
                self.note(&refused.0.to_string(), None);
                refused.into_response()
            }
        }
    }

    fn note(&self, outcome: &str, id: Option<i64>) {
        self.shared.lock().note(LogEntry {
            number: 0,
            at_ms: 0,
            bot: self.username.to_owned(),
            what: self.method.to_owned(),
            outcome: outcome.to_owned(),
            chat: self.integer("chat_id"),
            id: id.or_else(|| self.integer("message_id")),
            text: self.text("text").map(str::to_owned),
            during_retry_after: self.too_early,
        });
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).and_then(Value::as_str)
    }

    fn integer(&self, name: &str) -> Option<i64> {
        let value = self.parameters.get(name)?;
        value.as_i64().or_else(|| value.as_str()?.parse().ok())
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.parameters.get(name), Some(Value::Bool(true)))
            || self.text(name).is_some_and(|text| text == "true")
    }

    fn list(&self, name: &str) -> Option<Vec<String>> {
        let value = self.parameters.get(name)?;
        let value =
            value.as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_else(|| value.clone());
        Some(value.as_array()?.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect())
    }

    async fn carry_out(&self) -> Result<Value, Refused> {
        if let Some(method) = methods::find(self.method) {
            method.check(self.parameters).map_err(Refused::bad)?;
        }
        match self.method {
            "getMe" => self.with_bot(|bot| Ok(bot.full_me())),
            "getUpdates" => self.get_updates().await,
            "setWebhook" => self.set_webhook(),
            "deleteWebhook" => self.with_bot(|bot| {
                bot.webhook = None;
                if self.flag("drop_pending_updates") {
                    bot.pending.clear();
                }
                bot.arrived.notify_waiters();
                Ok(true.into())
            }),
            "getWebhookInfo" => self.with_bot(|bot| {
                let mut info = json!({
                    "url": bot.webhook.as_ref().map_or("", |webhook| webhook.url.as_str()),
                    "has_custom_certificate": false,
                    "pending_update_count": bot.pending.len(),
                });
                if let Some(error) = &bot.last_error {
                    info["last_error_message"] = error.as_str().into();
                }
                Ok(info)
            }),
            "setMyCommands" => self.with_bot(|bot| {
                let commands = self.parameters["commands"].clone();
                if commands.as_array().is_none_or(|list| list.len() > 100) {
                    return Err(Refused::bad("Bad Request: at most 100 commands can be specified"));
                }
                bot.commands.insert(self.command_key(), commands);
                Ok(true.into())
            }),
            "getMyCommands" => self.with_bot(|bot| {
                Ok(bot.commands.get(&self.command_key()).cloned().unwrap_or_else(|| json!([])))
            }),
            "sendMessage" => self.send_message(),
            "editMessageText" => self.edit_message(),
            "deleteMessage" => self.with_bot(|bot| {
                let (chat, id) = (self.chat()?, self.integer("message_id").unwrap_or_default());
                match bot.delete(chat, id) {
                    true => Ok(true.into()),
                    false => Err(Refused::bad("Bad Request: message to delete not found")),
                }
            }),
            "sendChatAction" => self.with_bot(|bot| {
                self.reachable(bot)?;
                Ok(true.into())
            }),
            "answerCallbackQuery" => self.with_bot(|bot| {
                match bot.callbacks.remove(self.text("callback_query_id").unwrap_or_default()) {
                    true => Ok(true.into()),
                    false => Err(Refused::bad(
                        "Bad Request: query is too old and response timeout expired or query ID is invalid",
                    )),
                }
            }),
            _ => Err(Refused(404, "Not Found: method not found".to_owned(), None)),
        }
    }

    fn with_bot(
        &self,
        act: impl FnOnce(&mut super::state::Bot) -> Result<Value, Refused>,
    ) -> Result<Value, Refused> {
        let mut state = self.shared.lock();
        let bot = state.bot(self.username).ok_or_else(|| Refused(401, "Unauthorized".to_owned(), None))?;
        act(bot)
    }

    fn command_key(&self) -> (String, String) {
        let scope =
            self.parameters.get("scope").and_then(|scope| scope["type"].as_str()).unwrap_or("default");
        (scope.to_owned(), self.text("language_code").unwrap_or_default().to_owned())
    }

    fn chat(&self) -> Result<i64, Refused> {
        self.integer("chat_id").ok_or_else(|| Refused::bad("Bad Request: chat not found"))
    }

    /// A chat that has not moved.
    fn present(&self, bot: &super::state::Bot) -> Result<i64, Refused> {
        let chat = self.chat()?;
        match bot.migrated.get(&chat) {
            Some(now) => Err(Refused(
                400,
                "Bad Request: group chat was upgraded to a supergroup chat".to_owned(),
                Some(json!({"migrate_to_chat_id": now})),
            )),
            None => Ok(chat),
        }
    }

    /// A chat that something can be sent to.
    fn reachable(&self, bot: &super::state::Bot) -> Result<i64, Refused> {
        let chat = self.present(bot)?;
        match bot.refuses(chat) {
            Some((code, description)) => Err(Refused(code, description.to_owned(), None)),
            None => Ok(chat),
        }
    }

    async fn get_updates(&self) -> Result<Value, Refused> {
        let offset = self.integer("offset").unwrap_or(0);
        let limit = usize::try_from(self.integer("limit").unwrap_or(100)).unwrap_or(100).clamp(1, 100);
        let wait = Duration::from_secs(
            u64::try_from(self.integer("timeout").unwrap_or(0).clamp(0, LONGEST_POLL)).unwrap_or(0),
        );
        let until = tokio::time::Instant::now() + wait;
        let (mine, born, arrived) = {
            let mut state = self.shared.lock();
            let bot =
                state.bot(self.username).ok_or_else(|| Refused(401, "Unauthorized".to_owned(), None))?;
            if bot.webhook.is_some() {
                return Err(Refused(
                    409,
                    "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the \
                     webhook first"
                        .to_owned(),
                    None,
                ));
            }
            if let Some(allowed) = self.list("allowed_updates") {
                bot.allowed = (!allowed.is_empty()).then_some(allowed);
            }
            bot.poll += 1;
            bot.polling += 1;
            // The older one that waits learns that it is not the newest any more.
            bot.arrived.notify_waiters();
            (bot.poll, bot.generation, Arc::clone(&bot.arrived))
        };
        let _polling = Polling { shared: self.shared, username: self.username };
        loop {
            let mut waiting = std::pin::pin!(arrived.notified());
            // Registered before looking: what arrives in between is not missed.
            waiting.as_mut().enable();
            {
                let mut state = self.shared.lock();
                let Some(bot) = state.bot(self.username).filter(|bot| bot.generation == born) else {
                    return Err(Refused(401, "Unauthorized".to_owned(), None));
                };
                if bot.poll != mine {
                    let by = match &bot.webhook {
                        Some(_) => "setWebhook request",
                        None => "other getUpdates request; make sure that only one bot instance is running",
                    };
                    return Err(Refused(409, format!("Conflict: terminated by {by}"), None));
                }
                let batch = state.take_updates(self.username, offset, limit);
                if !batch.is_empty() || wait.is_zero() {
                    return Ok(batch.into());
                }
            }
            if tokio::time::timeout_at(until, waiting).await.is_err() {
                return Ok(json!([]));
            }
        }
    }

    fn set_webhook(&self) -> Result<Value, Refused> {
        let url = self.text("url").unwrap_or_default();
        let secret = self.text("secret_token").unwrap_or_default();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if secret.len() > 256 || !secret.bytes().all(fits) {
            return Err(Refused::bad("Bad Request: secret token contains unallowed characters"));
        }
        if !url.is_empty() && reqwest::Url::parse(url).is_err() {
            return Err(Refused::bad("Bad Request: bad webhook: invalid URL"));
        }
        let generation = self.with_bot(|bot| {
            // The real server takes a webhook once a second.
            if !url.is_empty() && now_ms() - bot.webhook_set_at < 1_000 {
                return Err(Refused::flood(1));
            }
            bot.webhook_set_at = now_ms();
            if self.flag("drop_pending_updates") {
                bot.pending.clear();
            }
            if let Some(allowed) = self.list("allowed_updates") {
                bot.allowed = (!allowed.is_empty()).then_some(allowed);
            }
            bot.poll += 1;
            bot.last_error = None;
            bot.webhook = (!url.is_empty()).then(|| Webhook {
                url: url.to_owned(),
                secret: secret.to_owned(),
                generation: bot.poll,
                connections: usize::try_from(self.integer("max_connections").unwrap_or(40))
                    .unwrap_or(40)
                    .clamp(1, 100),
            });
            bot.arrived.notify_waiters();
            Ok(bot.poll.into())
        })?;
        if !url.is_empty() {
            let generation = generation.as_u64().unwrap_or_default();
            tokio::spawn(deliver(Arc::clone(self.shared), self.username.to_owned(), generation));
        }
        Ok(true.into())
    }

    fn check_text(&self) -> Result<(), Refused> {
        let text = self.text("text").unwrap_or_default();
        if text.trim().is_empty() {
            return Err(Refused::bad("Bad Request: message text is empty"));
        }
        if text.chars().count() > TEXT {
            return Err(Refused::bad("Bad Request: message is too long"));
        }
        let length = text.encode_utf16().count() as i64;
        let entities = self.parameters.get("entities").and_then(Value::as_array);
        for entity in entities.into_iter().flatten() {
            let (offset, size) =
                (entity["offset"].as_i64().unwrap_or(-1), entity["length"].as_i64().unwrap_or(-1));
            if offset < 0 || size <= 0 || offset + size > length || !entity["type"].is_string() {
                return Err(Refused::bad("Bad Request: can't parse entities: entity is out of the text"));
            }
        }
        for row in self
            .parameters
            .get("reply_markup")
            .and_then(|markup| markup["inline_keyboard"].as_array())
            .into_iter()
            .flatten()
            .filter_map(Value::as_array)
            .flatten()
        {
            if row["callback_data"].as_str().is_some_and(|data| data.is_empty() || data.len() > 64) {
                return Err(Refused::bad("Bad Request: BUTTON_DATA_INVALID"));
            }
        }
        Ok(())
    }

    /// Counts a send against the limits.
    fn flood(&self, bot: &mut super::state::Bot, chat: i64) -> Result<(), Refused> {
        let Some(limits) = self.shared.limits else { return Ok(()) };
        let now = now_ms();
        bot.flood.take(limits, chat, now).map_err(|seconds| {
            bot.flood.tell_to_wait(chat, now + i64::try_from(seconds).unwrap_or(1) * 1_000);
            Refused::flood(seconds)
        })
    }

    fn send_message(&self) -> Result<Value, Refused> {
        self.check_text()?;
        self.with_bot(|bot| {
            let chat = self.reachable(bot)?;
            self.flood(bot, chat)?;
            Ok(bot.send(chat, self.parameters))
        })
    }

    fn edit_message(&self) -> Result<Value, Refused> {
        self.check_text()?;
        self.with_bot(|bot| {
            let chat = self.present(bot)?;
            self.flood(bot, chat)?;
            bot.edit(chat, self.parameters).map_err(Refused::bad)
        })
    }
}

/// Counts the polls that are open, however they end.
struct Polling<'a> {
    shared: &'a Shared,
    username: &'a str,
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        if let Some(bot) = self.shared.lock().bot(self.username) {
            bot.polling = bot.polling.saturating_sub(1);
        }
    }
}
