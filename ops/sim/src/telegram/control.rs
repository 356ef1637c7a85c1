//! `/_sim/…`: the remote control, for tests of the whole program and for people who try it.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Behaviour, Fault, Person, state::Shared};

type Control = State<Arc<Shared>>;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/_sim/health", get(|| async { Json(json!({"simulated": "telegram"})) }))
        .route("/_sim/bots", get(bots).post(add_bot))
        .route("/_sim/say", post(say))
        .route("/_sim/say_many", post(say_many))
        .route("/_sim/press", post(press))
        .route("/_sim/updates", post(updates))
        .route("/_sim/raw", post(raw))
        .route("/_sim/faults", post(fault))
        .route("/_sim/behaviour", post(behaviour))
        .route("/_sim/block", post(block))
        .route("/_sim/migrate", post(migrate))
        .route("/_sim/revoke", post(revoke))
        .route("/_sim/delivery", get(delivery))
        .route("/_sim/log", get(log))
        .route("/_sim/messages", get(messages))
        .with_state(shared)
}

/// What went wrong, for whoever holds the remote control.
struct Wrong(String);

impl IntoResponse for Wrong {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, Json(json!({"error": self.0}))).into_response()
    }
}

type Answer = Result<Json<Value>, Wrong>;

#[derive(Deserialize)]
struct OfBot {
    bot: String,
}

#[derive(Deserialize)]
struct NewBot {
    username: String,
}

async fn bots(State(shared): Control) -> Json<Value> {
    Json(json!(shared.lock().bots()))
}

async fn add_bot(State(shared): Control, Json(new): Json<NewBot>) -> Answer {
    shared.add_bot(&new.username).map(|bot| Json(json!(bot))).map_err(Wrong)
}

#[derive(Deserialize)]
struct Say {
    bot: String,
    /// Absent: person number one.
    person: Option<Person>,
    /// Absent: their private chat.
    chat: Option<Value>,
    /// Topic of a forum.
    #[serde(default)]
    topic: Option<i64>,
    text: String,
}

impl Say {
    fn say(self, shared: &Shared) -> Result<i64, Wrong> {
        let person = self.person.unwrap_or_else(|| Person::number(1));
        shared.say(&self.bot, &person, self.chat, self.topic, &self.text).map_err(Wrong)
    }
}

async fn say(State(shared): Control, Json(say): Json<Say>) -> Answer {
    let message_id = say.say(&shared)?;
    Ok(Json(json!({"message_id": message_id})))
}

async fn say_many(State(shared): Control, Json(said): Json<Vec<Say>>) -> Answer {
    let mut message_ids = Vec::with_capacity(said.len());
    for say in said {
        message_ids.push(say.say(&shared)?);
    }
    Ok(Json(json!({"message_ids": message_ids})))
}

#[derive(Deserialize)]
struct Press {
    bot: String,
    person: Option<Person>,
    message_id: i64,
    data: String,
}

async fn press(State(shared): Control, Json(press): Json<Press>) -> Answer {
    let person = press.person.unwrap_or_else(|| Person::number(1));
    shared.press(&press.bot, &person, press.message_id, &press.data).map(|()| Json(json!({}))).map_err(Wrong)
}

#[derive(Deserialize)]
struct Injected {
    bot: String,
    update: Value,
}

async fn updates(State(shared): Control, Json(injected): Json<Vec<Injected>>) -> Answer {
    let mut update_ids = Vec::with_capacity(injected.len());
    for Injected { bot, update } in injected {
        update_ids.push(shared.inject(&bot, update).map_err(Wrong)?);
    }
    Ok(Json(json!({"update_ids": update_ids})))
}

async fn raw(State(shared): Control, Json(injected): Json<Injected>) -> Answer {
    shared.inject_raw(&injected.bot, injected.update).map(|()| Json(json!({}))).map_err(Wrong)
}

async fn fault(State(shared): Control, Json(fault): Json<Fault>) -> Json<Value> {
    shared.fault(fault);
    Json(json!({}))
}

async fn behaviour(State(shared): Control, Json(behaviour): Json<Behaviour>) -> Json<Value> {
    shared.lock().behaviour = behaviour;
    Json(json!({}))
}

#[derive(Deserialize)]
struct Block {
    bot: String,
    chat: i64,
    #[serde(default = "yes")]
    blocked: bool,
}

fn yes() -> bool {
    true
}

async fn block(State(shared): Control, Json(block): Json<Block>) -> Json<Value> {
    shared.block(&block.bot, block.chat, block.blocked);
    Json(json!({}))
}

#[derive(Deserialize)]
struct Migrate {
    bot: String,
    from: i64,
    to: i64,
}

async fn migrate(State(shared): Control, Json(migrate): Json<Migrate>) -> Json<Value> {
    shared.migrate(&migrate.bot, migrate.from, migrate.to);
    Json(json!({}))
}

async fn revoke(State(shared): Control, Json(of): Json<OfBot>) -> Answer {
    match shared.revoke_token(&of.bot) {
        Some(token) => Ok(Json(json!({"token": token}))),
        None => Err(Wrong(format!("there is no bot @{}", of.bot))),
    }
}

async fn delivery(State(shared): Control, Query(of): Query<OfBot>) -> Answer {
    match shared.delivery(&of.bot) {
        Some(delivery) => Ok(Json(json!(delivery))),
        None => Err(Wrong(format!("there is no bot @{}", of.bot))),
    }
}

#[derive(Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
}

async fn log(State(shared): Control, Query(after): Query<After>) -> Json<Value> {
    Json(json!(shared.log_after(after.after, 100_000)))
}

#[derive(Deserialize)]
struct Shown {
    bot: String,
    chat: Option<i64>,
}

async fn messages(State(shared): Control, Query(shown): Query<Shown>) -> Json<Value> {
    Json(json!(shared.messages(&shown.bot, shown.chat)))
}
