//! The rules of the real service, kept by the stand-in.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Error, Result};
use botledger_sim::{Behaviour, Fault, FaultKind, Person, SimBot, TelegramConfig, TelegramSim};
use serde_json::{Value, json};

struct Desk {
    sim: TelegramSim,
    bot: SimBot,
    http: reqwest::Client,
}

impl Desk {
    async fn open() -> Result<Self> {
        let config = TelegramConfig { webhook_pause: Duration::from_millis(20), ..TelegramConfig::default() };
        let sim = TelegramSim::start(config).await?;
        let bot = sim.add_bot("desk_bot").map_err(Error::msg)?;
        Ok(Self { sim, bot, http: reqwest::Client::new() })
    }

    async fn send(&self, method: &str, parameters: Value) -> reqwest::Result<(u16, Value)> {
        let url = format!("{}/bot{}/{method}", self.sim.url(), self.bot.token);
        let response = self.http.post(url).json(&parameters).send().await?;
        Ok((response.status().as_u16(), response.json().await?))
    }

    async fn ids(&self, offset: i64) -> Result<Vec<i64>> {
        let (_, answer) = self.send("getUpdates", json!({"offset": offset, "timeout": 0})).await?;
        let updates = answer["result"].as_array().cloned().unwrap_or_default();
        Ok(updates.iter().filter_map(|update| update["update_id"].as_i64()).collect())
    }

    fn say(&self, person: i64, text: &str) {
        self.sim.say("desk_bot", &Person::number(person), text).expect("the bot is there");
    }
}

#[tokio::test]
async fn updates_come_again_until_a_higher_offset_confirms_them() -> Result<()> {
    let desk = Desk::open().await?;
    desk.say(1, "one");
    desk.say(1, "two");
    let ids = desk.ids(0).await?;
    assert_eq!(ids.len(), 2);
    assert_eq!(desk.ids(0).await?, ids);
    assert_eq!(desk.ids(ids[1]).await?, ids[1..]);
    assert_eq!(desk.ids(ids[1] + 1).await?, Vec::<i64>::new());
    assert_eq!(desk.ids(0).await?, Vec::<i64>::new());
    Ok(())
}

#[tokio::test]
async fn a_poll_waits_for_what_comes_and_a_newer_poll_ends_it() -> Result<()> {
    let desk = Arc::new(Desk::open().await?);
    let poll = |timeout: u64| {
        let desk = Arc::clone(&desk);
        tokio::spawn(async move { desk.send("getUpdates", json!({"timeout": timeout})).await })
    };
    let first = poll(50);
    while !desk.sim.delivery("desk_bot").is_some_and(|delivery| delivery.polling) {
        tokio::task::yield_now().await;
    }
    let second = poll(50);
    let (status, answer) = first.await??;
    assert_eq!(status, 409);
    assert!(answer["description"].as_str().unwrap().starts_with("Conflict: terminated by other getUpdates"));
    desk.say(1, "hello");
    let (status, answer) = second.await??;
    assert_eq!((status, answer["result"][0]["message"]["text"].as_str()), (200, Some("hello")));
    Ok(())
}

#[tokio::test]
async fn tokens_methods_and_parameters_are_checked() -> Result<()> {
    let desk = Desk::open().await?;
    let (status, answer) = desk.send("sendmessage", json!({"chat_id": 1, "text": "x", "txet": "y"})).await?;
    assert_eq!((status, answer["description"].as_str().unwrap().contains("txet")), (400, true), "{answer}");
    assert_eq!(desk.send("sendMessage", json!({"chat_id": 1})).await?.0, 400);
    assert_eq!(desk.send("noSuchMethod", json!({})).await?.0, 404);
    let new = desk.sim.revoke_token("desk_bot").unwrap();
    assert_eq!(desk.send("getMe", json!({})).await?.0, 401);
    let answer = desk.http.get(format!("{}/bot{new}/getMe", desk.sim.url())).send().await?;
    assert_eq!(answer.status(), 200);
    Ok(())
}

#[tokio::test]
async fn who_blocked_or_never_wrote_cannot_be_written_to() -> Result<()> {
    let desk = Desk::open().await?;
    let person = Person::number(1);
    let hello = json!({"chat_id": person.id, "text": "hello"});
    assert_eq!(desk.send("sendMessage", hello.clone()).await?.0, 403);
    desk.say(1, "hi");
    assert_eq!(desk.send("sendMessage", hello.clone()).await?.0, 200);
    desk.sim.block("desk_bot", person.id, true);
    let (status, answer) = desk.send("sendMessage", hello).await?;
    assert_eq!(
        (status, answer["description"].as_str()),
        (403, Some("Forbidden: bot was blocked by the user"))
    );
    Ok(())
}

#[tokio::test]
async fn a_flood_is_told_to_wait() -> Result<()> {
    let desk = Desk::open().await?;
    desk.say(1, "hi");
    let chat = Person::number(1).id;
    for _ in 0..4 {
        assert_eq!(desk.send("sendMessage", json!({"chat_id": chat, "text": "x"})).await?.0, 200);
    }
    let (status, answer) = desk.send("sendMessage", json!({"chat_id": chat, "text": "x"})).await?;
    assert_eq!((status, answer["parameters"]["retry_after"].as_u64()), (429, Some(1)), "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_cut_before_does_nothing_and_a_cut_after_did_it() -> Result<()> {
    let desk = Desk::open().await?;
    desk.say(1, "hi");
    let chat = Person::number(1).id;
    for (fault, shown) in [(FaultKind::CutBefore, 0), (FaultKind::CutAfter, 1)] {
        desk.sim.fault(Fault {
            method: Some("sendMessage".to_owned()),
            bot: None,
            chat: Some(chat),
            skip: 0,
            times: 1,
            fault,
        });
        assert!(desk.send("sendMessage", json!({"chat_id": chat, "text": "x"})).await.is_err());
        assert_eq!(desk.sim.messages("desk_bot", chat).len(), shown);
    }
    let outcomes: Vec<String> = desk
        .sim
        .log(0)
        .into_iter()
        .filter(|entry| entry.what == "sendMessage")
        .map(|entry| entry.outcome)
        .collect();
    assert_eq!(outcomes, ["cut_before", "cut_after"]);
    Ok(())
}

#[tokio::test]
async fn duplicates_and_disorder_come_on_demand() -> Result<()> {
    let desk = Desk::open().await?;
    desk.sim.behave(Behaviour { duplicate_every: 1, reorder: true });
    desk.say(1, "one");
    desk.say(2, "two");
    let ids = desk.ids(0).await?;
    assert!(ids[0] > ids[1], "{ids:?}");
    desk.say(3, "three");
    let again = desk.ids(ids[0] + 1).await?;
    assert!(again.contains(&ids[0]) && again.contains(&ids[1]), "{again:?}");
    Ok(())
}

/// A webhook that refuses the first call of every update and notes who is in flight.
async fn receiver(seen: Arc<Mutex<Vec<(i64, String, String)>>>) -> Result<String> {
    use axum::{
        http::{HeaderMap, StatusCode},
        routing::post,
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/hook", listener.local_addr()?);
    let app = axum::Router::new().route(
        "/hook",
        post(async move |headers: HeaderMap, axum::Json(update): axum::Json<Value>| {
            let secret = headers
                .get("x-telegram-bot-api-secret-token")
                .map(|value| value.to_str().unwrap().to_owned());
            let text = update["message"]["text"].as_str().unwrap().to_owned();
            let mut seen = seen.lock().unwrap();
            let first = !seen.iter().any(|(_, known, _)| *known == text);
            seen.push((update["message"]["chat"]["id"].as_i64().unwrap(), text, secret.unwrap_or_default()));
            if first { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
        }),
    );
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

#[tokio::test]
async fn webhooks_are_repeated_and_keep_the_order_of_a_chat() -> Result<()> {
    let desk = Desk::open().await?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let url = receiver(Arc::clone(&seen)).await?;
    let (status, _) = desk.send("setWebhook", json!({"url": url, "secret_token": "s3cret"})).await?;
    assert_eq!(status, 200);
    assert_eq!(desk.send("getUpdates", json!({})).await?.0, 409);
    desk.say(1, "one");
    desk.say(1, "two");
    desk.say(2, "three");
    while desk.sim.delivery("desk_bot").unwrap().pending > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let seen = seen.lock().unwrap().clone();
    assert!(seen.iter().all(|(_, _, secret)| secret == "s3cret"));
    let mine: Vec<&str> = seen
        .iter()
        .filter(|(chat, ..)| *chat == Person::number(1).id)
        .map(|(_, text, _)| text.as_str())
        .collect();
    assert_eq!(mine, ["one", "one", "two", "two"], "each came again after its refusal, in order");
    Ok(())
}

#[tokio::test]
async fn a_poll_gives_no_more_than_asked_and_comes_back_empty_in_the_end() -> Result<()> {
    let desk = Desk::open().await?;
    for text in ["one", "two", "three"] {
        desk.say(1, text);
    }
    let (_, answer) = desk.send("getUpdates", json!({"limit": 2})).await?;
    let texts: Vec<_> =
        answer["result"].as_array().unwrap().iter().map(|update| update["message"]["text"].clone()).collect();
    assert_eq!(texts, ["one", "two"]);
    let (_, answer) = desk.send("getUpdates", json!({"offset": -1})).await?;
    assert_eq!(answer["result"].as_array().unwrap().len(), 1, "all but the last were forgotten");
    assert_eq!(answer["result"][0]["message"]["text"], "three");
    assert_eq!(desk.ids(0).await?.len(), 1);
    let next = desk.ids(0).await?[0] + 1;
    let (status, answer) = desk.send("getUpdates", json!({"offset": next, "timeout": 1})).await?;
    assert_eq!((status, answer["result"].clone()), (200, json!([])));
    Ok(())
}

#[tokio::test]
async fn a_waiting_poll_learns_of_a_webhook_and_of_a_revoked_token() -> Result<()> {
    let desk = Arc::new(Desk::open().await?);
    for (act, status, description) in
        [("setWebhook", 409, "Conflict: terminated by setWebhook request"), ("revoke", 401, "Unauthorized")]
    {
        let poll = tokio::spawn({
            let desk = Arc::clone(&desk);
            async move { desk.send("getUpdates", json!({"timeout": 50})).await }
        });
        while !desk.sim.delivery("desk_bot").is_some_and(|delivery| delivery.polling) {
            tokio::task::yield_now().await;
        }
        if act == "revoke" {
            desk.sim.revoke_token("desk_bot").unwrap();
        } else {
            assert_eq!(desk.send("setWebhook", json!({"url": "http://127.0.0.1:9/"})).await?.0, 200);
        }
        let (told, answer) = poll.await??;
        assert_eq!((told, answer["description"].as_str()), (status, Some(description)));
        desk.send("deleteWebhook", json!({})).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_webhook_is_set_once_a_second_and_its_secret_is_checked() -> Result<()> {
    let desk = Desk::open().await?;
    let set = json!({"url": "http://127.0.0.1:9/", "secret_token": "a b"});
    assert_eq!(desk.send("setWebhook", set).await?.0, 400);
    let set = json!({"url": "http://127.0.0.1:9/"});
    assert_eq!(desk.send("setWebhook", set.clone()).await?.0, 200);
    let (status, answer) = desk.send("setWebhook", set).await?;
    assert_eq!((status, answer["parameters"]["retry_after"].as_u64()), (429, Some(1)));
    assert_eq!(desk.send("deleteWebhook", json!({})).await?.0, 200, "taking it away is not limited");
    Ok(())
}

#[tokio::test]
async fn text_counts_code_points_and_entities_count_utf16_units() -> Result<()> {
    let desk = Desk::open().await?;
    desk.say(1, "hi");
    let chat = Person::number(1).id;
    let send = async |text: String, entities: Value| {
        desk.send("sendMessage", json!({"chat_id": chat, "text": text, "entities": entities})).await
    };
    assert_eq!(send("🙂".repeat(4_096), json!([])).await?.0, 200);
    let (status, answer) = send("🙂".repeat(4_097), json!([])).await?;
    assert_eq!((status, answer["description"].as_str()), (400, Some("Bad Request: message is too long")));
    assert_eq!(send(" \n".to_owned(), json!([])).await?.0, 400);
    let bold = |offset, length| json!([{"type": "bold", "offset": offset, "length": length}]);
    assert_eq!(send("🙂🙂".to_owned(), bold(2, 2)).await?.0, 200);
    let (status, answer) = send("🙂🙂".to_owned(), bold(2, 3)).await?;
    assert_eq!(status, 400);
    assert!(answer["description"].as_str().unwrap().contains("can't parse entities"));
    Ok(())
}

#[tokio::test]
async fn edits_change_what_is_there_and_say_when_nothing_changes() -> Result<()> {
    let desk = Desk::open().await?;
    desk.say(1, "hi");
    let chat = Person::number(1).id;
    let (_, sent) = desk.send("sendMessage", json!({"chat_id": chat, "text": "one"})).await?;
    let id = sent["result"]["message_id"].clone();
    let edit = |id: &Value, text: &str| json!({"chat_id": chat, "message_id": id, "text": text});
    assert_eq!(desk.send("editMessageText", edit(&id, "two")).await?.0, 200);
    let (status, answer) = desk.send("editMessageText", edit(&id, "two")).await?;
    assert_eq!(status, 400);
    assert!(answer["description"].as_str().unwrap().starts_with("Bad Request: message is not modified"));
    let (_, answer) = desk.send("editMessageText", edit(&json!(999), "two")).await?;
    assert_eq!(answer["description"], "Bad Request: message to edit not found");
    let shown = desk.sim.messages("desk_bot", chat);
    assert_eq!((shown[0].text.as_str(), shown[0].edits), ("two", 1));
    Ok(())
}

#[tokio::test]
async fn a_group_that_moved_names_its_new_id() -> Result<()> {
    let desk = Desk::open().await?;
    let group = json!({"id": -7, "type": "group", "title": "G"});
    desk.sim.say_in("desk_bot", &Person::number(1), group, None, "hi").map_err(Error::msg)?;
    desk.sim.migrate("desk_bot", -7, -1_007);
    let (status, answer) = desk.send("sendMessage", json!({"chat_id": -7, "text": "x"})).await?;
    assert_eq!((status, answer["parameters"]["migrate_to_chat_id"].as_i64()), (400, Some(-1_007)));
    assert_eq!(desk.send("sendMessage", json!({"chat_id": -1_007, "text": "x"})).await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn the_log_marks_who_does_not_wait_and_holds_no_token() -> Result<()> {
    let desk = Desk::open().await?;
    desk.say(1, "hi");
    let chat = Person::number(1).id;
    let send = json!({"chat_id": chat, "text": "x"});
    desk.sim.fault(Fault {
        method: Some("sendMessage".to_owned()),
        bot: None,
        chat: None,
        skip: 1,
        times: 1,
        fault: FaultKind::Status {
            code: 429,
            description: "Too Many Requests".to_owned(),
            retry_after: Some(60),
        },
    });
    for status in [200, 429, 429] {
        assert_eq!(desk.send("sendMessage", send.clone()).await?.0, status);
    }
    let log = desk.sim.log(0);
    let early: Vec<bool> = log
        .iter()
        .filter(|entry| entry.what == "sendMessage")
        .map(|entry| entry.during_retry_after)
        .collect();
    assert_eq!(early, [false, false, true]);
    assert!(log.iter().zip(1..).all(|(entry, number)| entry.number == number));
    let text = serde_json::to_string(&log)?;
    assert!(!text.contains("SIM") && !text.contains(&desk.bot.token), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_button_is_acknowledged_once_and_kinds_come_only_when_asked_for() -> Result<()> {
    let desk = Desk::open().await?;
    let reaction = json!({"message_reaction": {
        "chat": {"id": 1, "type": "private"}, "message_id": 1, "date": 1, "old_reaction": [], "new_reaction": [],
    }});
    desk.sim.inject("desk_bot", reaction.clone()).map_err(Error::msg)?;
    assert_eq!(desk.ids(0).await?.len(), 0, "not among what comes by default");
    desk.send("getUpdates", json!({"allowed_updates": ["message_reaction", "callback_query"]})).await?;
    desk.sim.inject("desk_bot", reaction).map_err(Error::msg)?;
    desk.say(1, "not asked for");
    desk.sim.press("desk_bot", &Person::number(1), 1, "x").map_err(Error::msg)?;
    let (_, answer) = desk.send("getUpdates", json!({})).await?;
    let updates = answer["result"].as_array().unwrap();
    assert_eq!(updates.len(), 2, "{updates:?}");
    let id = updates[1]["callback_query"]["id"].clone();
    for status in [200, 400] {
        assert_eq!(desk.send("answerCallbackQuery", json!({"callback_query_id": id})).await?.0, status);
    }
    Ok(())
}

/// A webhook that says when to come back, once.
async fn busy_receiver(calls: Arc<Mutex<Vec<tokio::time::Instant>>>) -> Result<String> {
    use axum::{
        http::{StatusCode, header::RETRY_AFTER},
        response::IntoResponse,
        routing::post,
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/hook", listener.local_addr()?);
    let app = axum::Router::new().route(
        "/hook",
        post(async move || {
            let mut calls = calls.lock().unwrap();
            calls.push(tokio::time::Instant::now());
            match calls.len() {
                1 => (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")]).into_response(),
                2..=4 => StatusCode::BAD_GATEWAY.into_response(),
                _ => StatusCode::OK.into_response(),
            }
        }),
    );
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

#[tokio::test]
async fn a_webhook_is_left_alone_as_long_as_it_asks_and_longer_after_each_failure() -> Result<()> {
    let desk = Desk::open().await?;
    let calls = Arc::new(Mutex::new(Vec::new()));
    let url = busy_receiver(Arc::clone(&calls)).await?;
    desk.send("setWebhook", json!({"url": url})).await?;
    desk.say(1, "hi");
    while desk.sim.delivery("desk_bot").unwrap().pending > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let calls = calls.lock().unwrap().clone();
    let pauses: Vec<Duration> = calls.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[0] >= Duration::from_secs(1), "{pauses:?}");
    // 20 ms, doubled with every failure: the second failure's pause is 40 ms.
    for (pause, least) in pauses[1..].iter().zip([40, 80, 160]) {
        assert!(*pause >= Duration::from_millis(least), "{pauses:?}");
    }
    let (_, info) = desk.send("getWebhookInfo", json!({})).await?;
    assert_eq!(info["result"]["pending_update_count"], 0);
    Ok(())
}
