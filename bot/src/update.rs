//! What an update is, read leniently from its JSON.
//!
//! teloxide 0.17 panics on some valid updates and knows none of the newer kinds; here an update is
//! looked at only as far as an answer needs it, and everything else is kept as it came.

use botledger_commands::{IncomingKind, IncomingUpdate, PersonFacts};
use botledger_domain::turn::{Ask, ChatKind, Lane};
use chrono::{DateTime, Datelike, Utc};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::{commands::Command, intake::ALLOWED_UPDATES};

/// The parts of a message that matter here.
#[derive(Deserialize)]
pub(crate) struct MessageView {
    pub(crate) message_id: i64,
    pub(crate) message_thread_id: Option<i64>,
    #[serde(default)]
    is_topic_message: bool,
    from: Option<UserView>,
    sender_chat: Option<Value>,
    #[serde(default)]
    date: i64,
    pub(crate) chat: ChatView,
    text: Option<String>,
    caption: Option<String>,
    #[serde(default)]
    entities: Vec<EntityView>,
    reply_to_message: Option<ReplyView>,
    via_bot: Option<Value>,
}

#[derive(Deserialize)]
pub(crate) struct ChatView {
    pub(crate) id: i64,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct UserView {
    id: i64,
    #[serde(default)]
    is_bot: bool,
    #[serde(default)]
    first_name: String,
    last_name: Option<String>,
    username: Option<String>,
    language_code: Option<String>,
}

#[derive(Deserialize)]
struct EntityView {
    #[serde(rename = "type")]
    kind: String,
    offset: usize,
    length: usize,
}

#[derive(Deserialize)]
struct ReplyView {
    from: Option<UserView>,
}

#[derive(Deserialize)]
pub(crate) struct CallbackView {
    pub(crate) id: String,
    from: UserView,
    pub(crate) message: Option<MessageView>,
    pub(crate) data: Option<String>,
}

impl UserView {
    fn facts(&self) -> PersonFacts {
        PersonFacts {
            telegram_id: self.id,
            first_name: self.first_name.clone(),
            last_name: self.last_name.clone(),
            username: self.username.clone(),
            language_tag: self.language_code.clone(),
        }
    }
}

/// The bot that looks at an update.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// Telegram's id of it.
    pub telegram_id: i64,
    /// Username without `@`.
    pub username: String,
}

/// The kinds of content a message can have besides text, as the Bot API names their fields. A bot
/// says that it cannot read them; anything not listed is a notice about the chat and needs no answer.
const CONTENTS: &[&str] = &[
    "photo",
    "video",
    "voice",
    "audio",
    "document",
    "sticker",
    "animation",
    "video_note",
    "contact",
    "location",
    "venue",
    "poll",
    "dice",
    "paid_media",
    "story",
    "checklist",
    "game",
    "live_photo",
];

/// Reads one update of a `getUpdates` result or a webhook call. Never fails: what cannot be read is
/// kept as `Unreadable`, what needs no answer as `Other`.
#[must_use]
pub fn read_update(raw: &RawValue, viewer: &Viewer) -> IncomingUpdate {
    let text = raw.get();
    let unreadable = |update_id: Option<i64>, problem: &str| IncomingUpdate {
        update_id,
        date: DateTime::UNIX_EPOCH,
        raw: text.to_owned(),
        kind: IncomingKind::Unreadable { problem: problem.to_owned() },
    };
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(_) => return unreadable(None, "no JSON"),
    };
    let Some(object) = value.as_object() else { return unreadable(None, "no object") };
    let Some(update_id) = object.get("update_id").and_then(Value::as_i64) else {
        return unreadable(None, "no update_id");
    };
    let content = |kind: &str| object.get(kind).filter(|content| content.is_object());
    // A kind of the Bot API counts before anything that stands beside it.
    let known = ALLOWED_UPDATES.iter().find_map(|kind| Some((*kind, content(kind)?)));
    let any =
        object.keys().filter(|key| *key != "update_id").find_map(|key| Some((key.as_str(), content(key)?)));
    let Some((kind, content)) = known.or(any) else {
        return unreadable(Some(update_id), "no content");
    };
    let read = match kind {
        "message" => MessageView::deserialize(content).map(|message| read_message(message, content, viewer)),
        "callback_query" => {
            CallbackView::deserialize(content).map(|callback| read_callback(callback, content))
        }
        _ => Ok((date_of(content), other(kind, content))),
    };
    match read {
        Ok((date, kind)) => IncomingUpdate { update_id: Some(update_id), date, raw: text.to_owned(), kind },
        Err(_) => unreadable(Some(update_id), "not the fields of its kind"),
    }
}

/// What is before 1970 or after 9999 is no date: neither databases nor clients take it.
fn moment(unix_seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(unix_seconds, 0)
        .filter(|moment| (1970..=9999).contains(&moment.year()))
        .unwrap_or(DateTime::UNIX_EPOCH)
}

/// The update's own date, the same on every delivery: it is part of the turn's identity.
fn date_of(content: &Value) -> DateTime<Utc> {
    let own = content.get("edit_date").or_else(|| content.get("date"));
    let inner = content.get("message").and_then(|message| message.get("date"));
    moment(own.or(inner).and_then(Value::as_i64).unwrap_or(0))
}

fn other(kind: &str, content: &Value) -> IncomingKind {
    let user = content.get("from").or_else(|| content.get("user"));
    let user = user.and_then(|user| UserView::deserialize(user).ok()).map(|user| user.facts());
    // A kind is one of Telegram's short names; whatever else comes is not repeated into the ledger.
    let known = kind.len() <= 64 && kind.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    IncomingKind::Other { update_kind: if known { kind.to_owned() } else { "unknown".to_owned() }, user }
}

fn chat_kind(name: &str) -> Option<ChatKind> {
    name.parse().ok()
}

fn read_message(message: MessageView, content: &Value, viewer: &Viewer) -> (DateTime<Utc>, IncomingKind) {
    let date = moment(message.date);
    let kept = (date, other("message", content));
    let (Some(user), Some(chat_kind)) = (&message.from, chat_kind(&message.chat.kind)) else { return kept };
    // Other bots, anonymous admins and channels that speak in a group are not people to talk with.
    if user.is_bot || message.sender_chat.is_some() || chat_kind == ChatKind::Channel {
        return kept;
    }
    let private = chat_kind == ChatKind::Private;
    let text = message.text.clone().filter(|text| !text.trim().is_empty());
    let (ask, lane) = match (&text, command_of(&message, viewer)) {
        (_, Addressed::Elsewhere) => return kept,
        (_, Addressed::Command(name)) => (Ask::Command { name }, Lane::High),
        (Some(text), Addressed::No) => {
            if !private && !is_meant(&message, text, viewer) {
                return kept;
            }
            (Ask::Text, Lane::Normal)
        }
        (None, Addressed::No) => {
            let kind = CONTENTS.iter().find(|kind| content.get(**kind).is_some());
            match kind {
                Some(kind) if private && message.via_bot.is_none() => {
                    (Ask::Unsupported { content: (*kind).to_owned() }, Lane::High)
                }
                _ => return kept,
            }
        }
    };
    let kind = IncomingKind::Message {
        user: user.facts(),
        chat_id: message.chat.id,
        thread_id: message.message_thread_id.filter(|_| message.is_topic_message),
        chat_kind,
        ask,
        lane,
        text: text.or(message.caption),
    };
    (date, kind)
}

enum Addressed {
    No,
    /// A command to another bot of the group.
    Elsewhere,
    Command(String),
}

fn command_of(message: &MessageView, viewer: &Viewer) -> Addressed {
    let Some(text) = &message.text else { return Addressed::No };
    let first = message.entities.iter().find(|entity| entity.offset == 0 && entity.kind == "bot_command");
    let Some(entity) = first else { return Addressed::No };
    // A command is ASCII, so UTF-16 units, bytes and characters are the same here.
    let Some(token) = text.get(1..entity.length).filter(|_| text.starts_with('/')) else {
        return Addressed::No;
    };
    let (name, to) = token.split_once('@').map_or((token, None), |(name, to)| (name, Some(to)));
    if to.is_some_and(|to| !to.eq_ignore_ascii_case(&viewer.username)) {
        return Addressed::Elsewhere;
    }
    let name = name.to_ascii_lowercase();
    Addressed::Command(if Command::find(&name).is_some() { name } else { "unknown".to_owned() })
}

fn is_meant(message: &MessageView, text: &str, viewer: &Viewer) -> bool {
    let replied = message.reply_to_message.as_ref().and_then(|reply| reply.from.as_ref());
    replied.is_some_and(|user| user.id == viewer.telegram_id) || mentions(text, &viewer.username)
}

/// Whether `@username` stands in a text as a word of its own.
fn mentions(text: &str, username: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let mention = format!("@{}", username.to_ascii_lowercase());
    let in_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    text.match_indices(&mention).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + mention.len()..]);
        !before.ends_with(in_word) && !after.starts_with(in_word)
    })
}

fn read_callback(callback: CallbackView, content: &Value) -> (DateTime<Utc>, IncomingKind) {
    let date = date_of(content);
    let place = callback.message.as_ref().and_then(|message| Some((message, chat_kind(&message.chat.kind)?)));
    let (Some((message, chat_kind)), Some(data)) = (place, callback.data) else {
        return (date, other("callback_query", content));
    };
    let kind = IncomingKind::Message {
        user: callback.from.facts(),
        chat_id: message.chat.id,
        thread_id: message.message_thread_id.filter(|_| message.is_topic_message),
        chat_kind,
        ask: Ask::Callback,
        lane: Lane::High,
        text: Some(data),
    };
    (date, kind)
}

/// Where an answer goes, read again from the stored update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) chat: i64,
    pub(crate) thread: Option<i64>,
    /// The message to reply to: only in groups, where it is not obvious.
    pub(crate) reply_to: Option<i64>,
    /// The button press to acknowledge.
    pub(crate) callback: Option<String>,
}

impl Destination {
    pub(crate) fn of(raw: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Stored {
            message: Option<MessageView>,
            callback_query: Option<CallbackView>,
        }
        let stored: Stored = serde_json::from_str(raw).ok()?;
        let (message, callback) = match (stored.message, stored.callback_query) {
            (Some(message), _) => (message, None),
            (None, Some(callback)) => (callback.message?, Some(callback.id)),
            (None, None) => return None,
        };
        let in_group = message.chat.kind != "private";
        Some(Self {
            chat: message.chat.id,
            thread: message.message_thread_id.filter(|_| message.is_topic_message),
            reply_to: (in_group && callback.is_none()).then_some(message.message_id),
            callback,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn viewer() -> Viewer {
        Viewer { telegram_id: 42, username: "DemoBot".to_owned() }
    }

    fn read(update: &Value) -> IncomingUpdate {
        let raw = RawValue::from_string(update.to_string()).expect("JSON");
        read_update(&raw, &viewer())
    }

    fn message(chat: Value, rest: Value) -> Value {
        let mut message = serde_json::json!({
            "message_id": 7, "date": 1_700_000_000, "chat": chat,
            "from": {"id": 6_000_000_001i64, "is_bot": false, "first_name": "Ann", "language_code": "ru"},
        });
        for (key, value) in rest.as_object().expect("an object") {
            message[key] = value.clone();
        }
        serde_json::json!({"update_id": 5, "message": message})
    }

    fn ask(update: &Value) -> Option<Ask> {
        match read(update).kind {
            IncomingKind::Message { ask, .. } => Some(ask),
            _ => None,
        }
    }

    #[test]
    fn every_real_update_is_understood_or_kept_and_none_is_unreadable() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/telegram/updates-nutgram.jsonl");
        let text = std::fs::read_to_string(path).expect("the real updates stand beside the repository");
        let mut answered = 0;
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let update = read(&line["update"]);
            assert!(!matches!(update.kind, IncomingKind::Unreadable { .. }), "{}", line["name"]);
            answered += usize::from(matches!(update.kind, IncomingKind::Message { .. }));
        }
        assert!(answered > 20, "{answered}");
    }

    #[test]
    fn private_text_commands_and_photos_are_asks() {
        let private = serde_json::json!({"id": 9, "type": "private"});
        assert_eq!(ask(&message(private.clone(), serde_json::json!({"text": "hello"}))), Some(Ask::Text));
        let command = serde_json::json!({
            "text": "/start x", "entities": [{"type": "bot_command", "offset": 0, "length": 6}]
        });
        assert_eq!(ask(&message(private.clone(), command)), Some(Ask::Command { name: "start".to_owned() }));
        let unknown = serde_json::json!({
            "text": "/fly", "entities": [{"type": "bot_command", "offset": 0, "length": 4}]
        });
        assert_eq!(
            ask(&message(private.clone(), unknown)),
            Some(Ask::Command { name: "unknown".to_owned() })
        );
        let photo = serde_json::json!({"photo": []});
        assert_eq!(ask(&message(private, photo)), Some(Ask::Unsupported { content: "photo".to_owned() }));
    }

    #[test]
    fn in_groups_only_what_is_meant_for_the_bot_is_answered() {
        let group = serde_json::json!({"id": -9, "type": "supergroup"});
        let text = |text: &str| message(group.clone(), serde_json::json!({"text": text}));
        assert_eq!(ask(&text("hello all")), None);
        assert_eq!(ask(&text("hello @demobot")), Some(Ask::Text));
        assert_eq!(ask(&text("@DemoBot, привет")), Some(Ask::Text));
        assert_eq!(ask(&text("hello @demobot2 and a@demobot")), None);
        let elsewhere = serde_json::json!({
            "text": "/start@OtherBot", "entities": [{"type": "bot_command", "offset": 0, "length": 15}]
        });
        assert_eq!(ask(&message(group.clone(), elsewhere)), None);
        let reply =
            serde_json::json!({"text": "yes", "reply_to_message": {"from": {"id": 42, "is_bot": true}}});
        assert_eq!(ask(&message(group, reply)), Some(Ask::Text));
    }

    #[test]
    fn a_known_kind_counts_whatever_stands_beside_it() {
        let private = serde_json::json!({"id": 9, "type": "private"});
        let mut update = message(private, serde_json::json!({"text": "hello"}));
        update["extra"] = serde_json::json!({"beside": true});
        assert_eq!(ask(&update), Some(Ask::Text));
    }

    #[test]
    fn a_date_that_no_calendar_has_becomes_the_epoch() {
        let private = serde_json::json!({"id": 9, "type": "private"});
        for (date, year) in [
            (300_000_000_000i64, 1970),
            (-5_000_000_000, 1970),
            (i64::MAX, 1970),
            (253_402_300_799, 9999),
            (1_700_000_000, 2023),
        ] {
            let sent = message(private.clone(), serde_json::json!({"text": "hello", "date": date}));
            assert_eq!(read(&sent).date.year(), year, "{date}");
            let post = serde_json::json!({"update_id": 5, "channel_post": {"edit_date": date}});
            assert_eq!(read(&post).date.year(), year, "{date}");
        }
    }

    #[test]
    fn rubbish_is_kept_with_a_reason() {
        for (raw, problem) in [
            ("[1]", "no object"),
            ("{}", "no update_id"),
            (r#"{"update_id":1}"#, "no content"),
            (r#"{"update_id":1,"message":{"text":5}}"#, "not the fields of its kind"),
        ] {
            let update = read_update(&RawValue::from_string(raw.to_owned()).expect("JSON"), &viewer());
            assert!(
                matches!(&update.kind, IncomingKind::Unreadable { problem: told } if told == problem),
                "{raw}"
            );
            assert_eq!(update.raw, raw);
        }
    }

    #[test]
    fn a_topic_message_goes_back_to_its_topic_and_a_private_one_needs_no_reply_mark() {
        let group = serde_json::json!({"id": -9, "type": "supergroup"});
        let topic = message(
            group,
            serde_json::json!({"text": "x", "message_thread_id": 3, "is_topic_message": true}),
        );
        let expected = Destination { chat: -9, thread: Some(3), reply_to: Some(7), callback: None };
        assert_eq!(Destination::of(&topic.to_string()), Some(expected));
        let private =
            message(serde_json::json!({"id": 9, "type": "private"}), serde_json::json!({"text": "x"}));
        assert_eq!(
            Destination::of(&private.to_string()),
            Some(Destination { chat: 9, thread: None, reply_to: None, callback: None })
        );
    }
}
