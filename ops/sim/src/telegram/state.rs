//! What the stand-in knows.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fs::File,
    io::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    Behaviour, Delivery, Fault, FaultKind, LogEntry, Person, SentMessage, SimBot, TelegramConfig,
    limits::Flood, limits::Limits, webhook::Webhook,
};

/// Letters that tell the tokens of one bot apart; the first is the token it is born with.
const GENERATIONS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// What a bot gets when it names nothing: all but these.
const NOT_BY_DEFAULT: &[&str] = &["chat_member", "message_reaction", "message_reaction_count"];

pub(super) struct Shared {
    pub(super) limits: Option<Limits>,
    pub(super) webhook_pause: Duration,
    pub(super) http: reqwest::Client,
    pub(super) cancel: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    bots: BTreeMap<String, Bot>,
    pub(super) faults: Vec<Fault>,
    pub(super) behaviour: Behaviour,
    log: Vec<LogEntry>,
    file: Option<File>,
    callbacks: u64,
}

/// Something a bot has not taken yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    /// Absent when it is no update at all.
    pub(super) id: Option<i64>,
    pub(super) chat: Option<i64>,
    pub(super) update: Value,
}

pub(super) struct Bot {
    pub(super) id: i64,
    pub(super) username: String,
    /// How often its token was revoked.
    pub(super) generation: usize,
    next_update: i64,
    next_message: i64,
    pub(super) pending: VecDeque<Pending>,
    /// Confirmed before, comes once more.
    again: Vec<Pending>,
    confirmed: u32,
    /// None: the default.
    pub(super) allowed: Option<Vec<String>>,
    pub(super) webhook: Option<Webhook>,
    pub(super) last_error: Option<String>,
    /// Raised by every `getUpdates`: an older one that waits sees that it is no longer the newest.
    pub(super) poll: u64,
    pub(super) polling: u32,
    pub(super) arrived: Arc<Notify>,
    pub(super) flood: Flood,
    chats: HashMap<i64, Value>,
    blocked: HashSet<i64>,
    /// Groups that have another id now.
    pub(super) migrated: HashMap<i64, i64>,
    /// When a webhook was last set, Unix time in milliseconds.
    pub(super) webhook_set_at: i64,
    sent: BTreeMap<i64, SentMessage>,
    pub(super) commands: HashMap<(String, String), Value>,
    pub(super) callbacks: HashSet<String>,
}

/// The token of a bot by its username: the same in every run, so that a restarted stand-in knows the
/// bots of before. Nobody could mistake it for a real one.
#[must_use]
pub fn token_of(username: &str) -> String {
    token(username, 0)
}

fn token(username: &str, generation: usize) -> String {
    let letter = char::from(GENERATIONS[generation % GENERATIONS.len()]);
    format!("{}:{:-<35}", id_of(username), format!("SIM{letter}{username}"))
}

/// FNV-1a, brought into the range of bots' ids.
fn id_of(username: &str) -> i64 {
    let hash = username.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0000_01b3)
    });
    7_000_000_000 + i64::try_from(hash % 900_000_000).unwrap_or_default()
}

/// `digits:SIM?username---`, or nothing.
fn username_of(token: &str) -> Option<(String, usize)> {
    let (id, secret) = token.split_once(':')?;
    let rest = secret.strip_prefix("SIM")?;
    let letter = rest.bytes().next()?;
    let generation = GENERATIONS.iter().position(|known| *known == letter)?;
    let username = rest[1..].trim_end_matches('-');
    (id_of(username).to_string() == id && is_username(username)).then(|| (username.to_owned(), generation))
}

fn is_username(text: &str) -> bool {
    (5..=31).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && text.to_ascii_lowercase().ends_with("bot")
}

/// The first `chat.id` anywhere in an update, and the chat itself.
fn chat_in(value: &Value) -> Option<(i64, &Value)> {
    match value {
        Value::Object(map) => {
            if let Some(chat) = map.get("chat")
                && let Some(id) = chat["id"].as_i64()
            {
                return Some((id, chat));
            }
            map.values().find_map(chat_in)
        }
        Value::Array(items) => items.iter().find_map(chat_in),
        _ => None,
    }
}

fn kind_of(update: &Value) -> Option<&str> {
    update.as_object()?.keys().map(String::as_str).find(|key| *key != "update_id")
}

/// Commands at the beginning of lines are what clients mark.
fn command_entities(text: &str) -> Value {
    let length = text.split(|c: char| c.is_whitespace()).next().map_or(0, |word| word.encode_utf16().count());
    if text.starts_with('/') && length > 1 {
        json!([{"type": "bot_command", "offset": 0, "length": length}])
    } else {
        Value::Null
    }
}

impl Shared {
    pub(super) fn new(config: &TelegramConfig, cancel: CancellationToken) -> std::io::Result<Self> {
        let file = match &config.log {
            Some(path) => Some(File::options().create(true).append(true).open(path)?),
            None => None,
        };
        Ok(Self {
            limits: config.limits,
            webhook_pause: config.webhook_pause,
            http: reqwest::Client::new(),
            cancel,
            state: Mutex::new(State { file, ..State::default() }),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_bot(&self, username: &str) -> Result<SimBot, String> {
        if !is_username(username) {
            return Err("a bot's username has 5 to 31 of A-Z a-z 0-9 _ and ends in bot".to_owned());
        }
        let mut state = self.lock();
        let bot = state.bot_or_new(username, 0);
        Ok(SimBot { id: bot.id, username: bot.username.clone(), token: token(username, bot.generation) })
    }

    pub(super) fn revoke_token(&self, username: &str) -> Option<String> {
        let mut state = self.lock();
        let bot = state.bots.get_mut(username)?;
        bot.generation += 1;
        bot.arrived.notify_waiters();
        Some(token(username, bot.generation))
    }

    pub(super) fn say(
        &self,
        bot: &str,
        person: &Person,
        chat: Option<Value>,
        topic: Option<i64>,
        text: &str,
    ) -> Result<i64, String> {
        let mut state = self.lock();
        let known = state.bots.get_mut(bot).ok_or_else(|| no_bot(bot))?;
        known.next_message += 1;
        let message_id = known.next_message;
        let from = user(person);
        let chat = chat.unwrap_or_else(|| private_chat(person));
        let mut message = json!({
            "message_id": message_id, "from": from, "chat": chat, "date": now_ms() / 1_000, "text": text,
        });
        let entities = command_entities(text);
        if !entities.is_null() {
            message["entities"] = entities;
        }
        if let Some(topic) = topic {
            message["message_thread_id"] = topic.into();
            message["is_topic_message"] = true.into();
        }
        state.arrive(bot, "message", json!({ "message": message }));
        Ok(message_id)
    }

    pub(super) fn press(&self, bot: &str, person: &Person, message: i64, data: &str) -> Result<(), String> {
        let mut state = self.lock();
        state.callbacks += 1;
        let id = format!("{}{:06}", now_ms(), state.callbacks);
        let known = state.bots.get_mut(bot).ok_or_else(|| no_bot(bot))?;
        known.callbacks.insert(id.clone());
        let text = known.sent.get(&message).map_or(String::new(), |sent| sent.text.clone());
        let me = known.me();
        let update = json!({"callback_query": {
            "id": id, "from": user(person), "chat_instance": format!("{}", person.id), "data": data,
            "message": {
                "message_id": message, "from": me, "chat": private_chat(person),
                "date": now_ms() / 1_000, "text": text,
            },
        }});
        state.arrive(bot, "callback_query", update);
        Ok(())
    }

    pub(super) fn inject(&self, bot: &str, mut update: Value) -> Result<i64, String> {
        let mut state = self.lock();
        if !state.bots.contains_key(bot) {
            return Err(no_bot(bot));
        }
        let Some(fields) = update.as_object_mut() else {
            return Err("an update is a JSON object".to_owned());
        };
        fields.remove("update_id");
        // Telegram keeps nothing for longer than a day, so an old date would be a lie.
        for content in fields.values_mut() {
            if content["date"].is_i64() {
                content["date"] = (now_ms() / 1_000).into();
            }
        }
        let kind = kind_of(&update).unwrap_or("update").to_owned();
        Ok(state.arrive(bot, &kind, update))
    }

    pub(super) fn inject_raw(&self, bot: &str, update: Value) -> Result<(), String> {
        let mut state = self.lock();
        let known = state.bots.get_mut(bot).ok_or_else(|| no_bot(bot))?;
        let chat = chat_in(&update).map(|(id, _)| id);
        let id = update["update_id"].as_i64();
        // What comes afterwards has a higher id, or its confirmation would come first.
        known.next_update = known.next_update.max(id.unwrap_or_default());
        known.pending.push_back(Pending { id, chat, update });
        known.arrived.notify_waiters();
        Ok(())
    }

    pub(super) fn fault(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    pub(super) fn block(&self, bot: &str, chat: i64, blocked: bool) {
        if let Some(known) = self.lock().bots.get_mut(bot) {
            if blocked {
                known.blocked.insert(chat);
            } else {
                known.blocked.remove(&chat);
            }
        }
    }

    pub(super) fn migrate(&self, bot: &str, from: i64, to: i64) {
        if let Some(known) = self.lock().bots.get_mut(bot) {
            known.chats.insert(to, json!({"id": to, "type": "supergroup", "title": "simulated"}));
            known.migrated.insert(from, to);
        }
    }

    pub(super) fn delivery(&self, bot: &str) -> Option<Delivery> {
        let state = self.lock();
        let known = state.bots.get(bot)?;
        Some(Delivery {
            pending: known.pending.len(),
            webhook: known.webhook.as_ref().map(|webhook| webhook.url.clone()),
            last_error: known.last_error.clone(),
            polling: known.polling > 0,
        })
    }

    pub(super) fn log_after(&self, after: u64, limit: usize) -> Vec<LogEntry> {
        let state = self.lock();
        let start = usize::try_from(after).unwrap_or(usize::MAX).min(state.log.len());
        state.log[start..].iter().take(limit).cloned().collect()
    }

    pub(super) fn messages(&self, bot: &str, chat: Option<i64>) -> Vec<SentMessage> {
        let state = self.lock();
        state.bots.get(bot).map_or_else(Vec::new, |known| {
            let fits = |sent: &&SentMessage| chat.is_none_or(|chat| sent.chat == chat);
            known.sent.values().filter(fits).cloned().collect()
        })
    }

    pub(super) fn commands(&self, bot: &str, language: &str) -> Option<Value> {
        let state = self.lock();
        state.bots.get(bot)?.commands.get(&("default".to_owned(), language.to_owned())).cloned()
    }
}

fn no_bot(username: &str) -> String {
    format!("there is no bot @{username}; make it first")
}

pub(super) fn now_ms() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "the stand-in is not part of what is decided or replayed")]
    chrono::Utc::now().timestamp_millis()
}

fn user(person: &Person) -> Value {
    let mut user = json!({"id": person.id, "is_bot": false, "first_name": person.first_name});
    if let Some(username) = &person.username {
        user["username"] = username.as_str().into();
    }
    if let Some(language) = &person.language_code {
        user["language_code"] = language.as_str().into();
    }
    user
}

fn private_chat(person: &Person) -> Value {
    let mut chat = json!({"id": person.id, "type": "private", "first_name": person.first_name});
    if let Some(username) = &person.username {
        chat["username"] = username.as_str().into();
    }
    chat
}

impl State {
    fn bot_or_new(&mut self, username: &str, generation: usize) -> &mut Bot {
        self.bots.entry(username.to_owned()).or_insert_with(|| Bot {
            id: id_of(username),
            username: username.to_owned(),
            generation,
            // Above what an earlier run gave out.
            next_update: now_ms() / 1_000,
            next_message: 0,
            pending: VecDeque::new(),
            again: Vec::new(),
            confirmed: 0,
            allowed: None,
            webhook: None,
            last_error: None,
            poll: 0,
            polling: 0,
            arrived: Arc::default(),
            flood: Flood::default(),
            chats: HashMap::new(),
            blocked: HashSet::new(),
            migrated: HashMap::new(),
            webhook_set_at: 0,
            sent: BTreeMap::new(),
            commands: HashMap::new(),
            callbacks: HashSet::new(),
        })
    }

    pub(super) fn bot(&mut self, username: &str) -> Option<&mut Bot> {
        self.bots.get_mut(username)
    }

    pub(super) fn bots(&self) -> Vec<SimBot> {
        let bots = self.bots.values();
        bots.map(|bot| SimBot {
            id: bot.id,
            username: bot.username.clone(),
            token: token(&bot.username, bot.generation),
        })
        .collect()
    }

    /// Whose token it is. A bot of before a restart is known by its token.
    pub(super) fn holder(&mut self, given: &str) -> Option<String> {
        let (username, generation) = username_of(given)?;
        let bot = self.bot_or_new(&username, generation);
        (token(&username, bot.generation) == given).then_some(username)
    }

    /// Something happened that a bot is to be told.
    fn arrive(&mut self, username: &str, kind: &str, mut update: Value) -> i64 {
        let Some(bot) = self.bots.get_mut(username) else { return 0 };
        bot.next_update += 1;
        let id = bot.next_update;
        update["update_id"] = id.into();
        let place = chat_in(&update).map(|(id, chat)| (id, chat.clone()));
        if let Some((chat, description)) = &place {
            bot.flood.wrote(*chat, now_ms());
            bot.chats.insert(*chat, description.clone());
        }
        let allowed = match &bot.allowed {
            Some(list) => list.iter().any(|allowed| allowed == kind),
            None => !NOT_BY_DEFAULT.contains(&kind),
        };
        let chat = place.map(|(id, _)| id);
        let text = update["message"]["text"].as_str().map(str::to_owned);
        if allowed {
            bot.pending.push_back(Pending { id: Some(id), chat, update });
            bot.arrived.notify_waiters();
        }
        let outcome = if allowed { "ok" } else { "not_allowed" };
        self.note(LogEntry {
            number: 0,
            at_ms: 0,
            bot: username.to_owned(),
            what: "update".to_owned(),
            outcome: outcome.to_owned(),
            chat,
            id: Some(id),
            text,
            during_retry_after: false,
        });
        id
    }

    pub(super) fn note(&mut self, mut entry: LogEntry) {
        entry.number = self.log.len() as u64 + 1;
        entry.at_ms = now_ms();
        if let Some(file) = &mut self.file
            && let Ok(line) = serde_json::to_string(&entry)
        {
            // The log in memory is the one that is asked; the file is for those who come later.
            drop(writeln!(file, "{line}"));
        }
        self.log.push(entry);
    }

    /// The fault that strikes this call, if one does.
    pub(super) fn strike(&mut self, method: &str, bot: &str, chat: Option<i64>) -> Option<FaultKind> {
        let place = self.faults.iter_mut().position(|fault| {
            let fits = fault.method.as_ref().is_none_or(|name| name.eq_ignore_ascii_case(method))
                && fault.bot.as_ref().is_none_or(|name| name == bot)
                && fault.chat.is_none_or(|wanted| Some(wanted) == chat);
            if fits && fault.skip > 0 {
                fault.skip -= 1;
                return false;
            }
            fits && fault.times > 0
        })?;
        self.faults[place].times -= 1;
        let kind = self.faults[place].fault.clone();
        self.faults.retain(|fault| fault.times > 0);
        Some(kind)
    }

    /// `getUpdates`: confirms what is below the offset, then gives what waits.
    pub(super) fn take_updates(&mut self, username: &str, offset: i64, limit: usize) -> Vec<Value> {
        let behaviour = self.behaviour;
        let mut confirmed = Vec::new();
        let Some(bot) = self.bots.get_mut(username) else { return Vec::new() };
        if offset < 0 {
            let keep = usize::try_from(offset.unsigned_abs()).unwrap_or(usize::MAX);
            let drop = bot.pending.len().saturating_sub(keep);
            bot.pending.drain(..drop);
        } else if offset > 0 {
            let (gone, kept): (VecDeque<_>, VecDeque<_>) =
                bot.pending.drain(..).partition(|pending| pending.id.is_some_and(|id| id < offset));
            bot.pending = kept;
            for pending in gone {
                bot.confirmed += 1;
                confirmed.push((pending.id, pending.chat));
                if behaviour.duplicate_every > 0 && bot.confirmed.is_multiple_of(behaviour.duplicate_every) {
                    bot.again.push(pending);
                }
            }
        }
        let mut batch: Vec<Value> =
            bot.pending.iter().take(limit).map(|pending| pending.update.clone()).collect();
        // Duplicates ride along, they do not make a batch of their own.
        if !batch.is_empty() {
            let room = limit.saturating_sub(batch.len());
            let again = bot.again.len().min(room);
            batch.extend(bot.again.drain(..again).map(|pending| pending.update));
        }
        if behaviour.reorder {
            batch.reverse();
        }
        for (id, chat) in confirmed {
            self.note(LogEntry {
                number: 0,
                at_ms: 0,
                bot: username.to_owned(),
                what: "confirmed".to_owned(),
                outcome: "ok".to_owned(),
                chat,
                id,
                text: None,
                during_retry_after: false,
            });
        }
        batch
    }
}

impl Bot {
    pub(super) fn me(&self) -> Value {
        json!({"id": self.id, "is_bot": true, "first_name": self.username, "username": self.username})
    }

    /// `getMe` tells more than other people see.
    pub(super) fn full_me(&self) -> Value {
        let mut me = self.me();
        for (field, value) in [
            ("can_join_groups", true),
            ("can_read_all_group_messages", false),
            ("supports_inline_queries", false),
            ("can_connect_to_business", false),
            ("has_main_web_app", false),
        ] {
            me[field] = value.into();
        }
        me
    }

    /// Why nothing can be sent there, as code and description.
    pub(super) fn refuses(&self, chat: i64) -> Option<(u16, &'static str)> {
        if self.blocked.contains(&chat) {
            return Some(match chat > 0 {
                true => (403, "Forbidden: bot was blocked by the user"),
                false => (403, "Forbidden: bot was kicked from the supergroup chat"),
            });
        }
        if !self.chats.contains_key(&chat) {
            return Some(match chat > 0 {
                true => (403, "Forbidden: bot can't initiate conversation with a user"),
                false => (400, "Bad Request: chat not found"),
            });
        }
        None
    }

    pub(super) fn send(&mut self, chat: i64, parameters: &Map<String, Value>) -> Value {
        self.next_message += 1;
        let field = |name: &str| parameters.get(name).cloned().unwrap_or(Value::Null);
        let sent = SentMessage {
            id: self.next_message,
            chat,
            thread: field("message_thread_id").as_i64(),
            text: field("text").as_str().unwrap_or_default().to_owned(),
            entities: field("entities"),
            reply_markup: field("reply_markup"),
            reply_to: field("reply_parameters")["message_id"].as_i64(),
            edits: 0,
        };
        let message = self.message(&sent);
        self.sent.insert(sent.id, sent);
        message
    }

    /// Changes a message of this bot, or says why not.
    pub(super) fn edit(&mut self, chat: i64, parameters: &Map<String, Value>) -> Result<Value, &'static str> {
        let field = |name: &str| parameters.get(name).cloned().unwrap_or(Value::Null);
        let id = field("message_id").as_i64().unwrap_or_default();
        let Some(sent) = self.sent.get_mut(&id).filter(|sent| sent.chat == chat) else {
            return Err("Bad Request: message to edit not found");
        };
        let text = field("text").as_str().unwrap_or_default().to_owned();
        let (entities, reply_markup) = (field("entities"), field("reply_markup"));
        if sent.text == text && sent.entities == entities && sent.reply_markup == reply_markup {
            return Err(
                "Bad Request: message is not modified: specified new message content and reply markup are exactly \
                 the same as a current content and reply markup of the message",
            );
        }
        sent.text = text;
        sent.entities = entities;
        sent.reply_markup = reply_markup;
        sent.edits += 1;
        let sent = sent.clone();
        Ok(self.message(&sent))
    }

    pub(super) fn delete(&mut self, chat: i64, id: i64) -> bool {
        let here = self.sent.get(&id).is_some_and(|sent| sent.chat == chat);
        here && self.sent.remove(&id).is_some()
    }

    fn message(&self, sent: &SentMessage) -> Value {
        let chat = self
            .chats
            .get(&sent.chat)
            .cloned()
            .unwrap_or_else(|| json!({"id": sent.chat, "type": "private"}));
        let mut message = json!({
            "message_id": sent.id, "from": self.me(), "chat": chat, "date": now_ms() / 1_000, "text": sent.text,
        });
        for (field, value) in [("entities", &sent.entities), ("reply_markup", &sent.reply_markup)] {
            if !value.is_null() {
                message[field] = value.clone();
            }
        }
        if let Some(thread) = sent.thread {
            message["message_thread_id"] = thread.into();
            message["is_topic_message"] = true.into();
        }
        if sent.edits > 0 {
            message["edit_date"] = (now_ms() / 1_000).into();
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_telegrams_shape_and_tells_its_bot() {
        for username in ["a_bot", "demo_bot", "the_very_longest_name_of_a_bot"] {
            let token = token_of(username);
            let (id, secret) = token.split_once(':').unwrap();
            assert!(id.parse::<i64>().is_ok() && secret.len() == 35, "{token}");
            assert_eq!(username_of(&token), Some((username.to_owned(), 0)));
        }
        assert_eq!(username_of("1:SIMAdemo_bot"), None);
        assert_eq!(username_of("no token"), None);
    }
}
