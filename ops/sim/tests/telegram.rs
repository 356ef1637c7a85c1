//! The rules of the real service, kept by the stand-in.

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
