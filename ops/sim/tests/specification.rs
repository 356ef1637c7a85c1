//! The stand-in's methods against the published Bot API, in both directions.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use botledger_sim::methods::{Kind, METHODS};
use serde_json::Value;

/// The published specification; none, and a word about it, where it does not lie beside the repository.
fn specification() -> Option<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/telegram/bot-api-spec-10.3.json");
    let Ok(text) = std::fs::read_to_string(path) else {
        eprintln!("not compared: ../shared/telegram is not beside this clone");
        return None;
    };
    Some(serde_json::from_str(&text).expect("JSON"))
}

fn kind(types: &[&str]) -> Kind {
    match types {
        ["Integer"] => Kind::Integer,
        ["String"] => Kind::Text,
        ["Boolean"] => Kind::Flag,
        ["Integer", "String"] => Kind::Chat,
        _ => Kind::Structure,
    }
}

#[test]
fn every_method_has_exactly_the_published_parameters() {
    let Some(specification) = specification() else { return };
    for method in METHODS {
        let published = &specification["methods"][method.name];
        assert!(published.is_object(), "{} is not in the specification", method.name);
        let fields = published["fields"].as_array().cloned().unwrap_or_default();
        let published: BTreeMap<String, (bool, Kind)> = fields
            .iter()
            .map(|field| {
                let types: Vec<&str> =
                    field["types"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
                let required = field["required"].as_bool().unwrap();
                (field["name"].as_str().unwrap().to_owned(), (required, kind(&types)))
            })
            .collect();
        let ours: BTreeMap<String, (bool, Kind)> = method
            .parameters
            .iter()
            .map(|parameter| (parameter.name.to_owned(), (parameter.required, parameter.kind)))
            .collect();
        assert_eq!(ours, published, "{}", method.name);
    }
}

/// Checks a value against a published type: every field known, every required field there.
fn check(specification: &Value, name: &str, value: &Value, path: &str) {
    let fields = specification["types"][name]["fields"].as_array();
    let fields = fields.unwrap_or_else(|| panic!("{name} is no type with fields"));
    let object = value.as_object().unwrap_or_else(|| panic!("{path} is no object: {value}"));
    for field in fields {
        let known = field["name"].as_str().unwrap();
        assert!(
            !field["required"].as_bool().unwrap() || object.contains_key(known),
            "{path}.{known} is missing: {value}"
        );
    }
    for (key, inner) in object {
        let field = fields.iter().find(|field| field["name"] == key.as_str());
        let field = field.unwrap_or_else(|| panic!("{path}.{key} is not published for {name}"));
        let types: Vec<&str> = field["types"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let path = format!("{path}.{key}");
        let fitting = types.iter().find(|kind| fits(kind, inner));
        let fitting = fitting.unwrap_or_else(|| panic!("{path} is none of {types:?}: {inner}"));
        check_kind(specification, fitting, inner, &path);
    }
}

/// Whether a JSON value could be of a published kind at all.
fn fits(kind: &str, value: &Value) -> bool {
    match kind {
        "Integer" => value.is_i64(),
        "Float" => value.is_number(),
        "String" => value.is_string(),
        "Boolean" | "True" => value.is_boolean(),
        kind if kind.starts_with("Array of ") => value.is_array(),
        _ => value.is_object(),
    }
}

fn check_kind(specification: &Value, kind: &str, value: &Value, path: &str) {
    if let Some(inner) = kind.strip_prefix("Array of ") {
        for (place, item) in value.as_array().unwrap().iter().enumerate() {
            assert!(fits(inner, item), "{path}[{place}] is no {inner}");
            check_kind(specification, inner, item, &format!("{path}[{place}]"));
        }
    } else if specification["types"][kind]["fields"].is_array() {
        check(specification, kind, value, path);
    }
}

/// A value of a kind, and one that is not of it.
fn good_and_bad(kind: Kind) -> (Value, Value) {
    use serde_json::json;
    match kind {
        Kind::Integer => (json!(1), json!("one")),
        Kind::Text => (json!("text"), json!(1)),
        Kind::Flag => (json!(true), json!("yes")),
        Kind::Chat => (json!("@channel"), json!([1])),
        Kind::Structure => (json!([]), json!(1)),
    }
}

#[test]
fn what_is_published_is_accepted_and_what_is_not_is_refused_by_name() {
    for method in METHODS {
        let all: serde_json::Map<String, Value> = method
            .parameters
            .iter()
            .map(|parameter| (parameter.name.to_owned(), good_and_bad(parameter.kind).0))
            .collect();
        assert_eq!(method.check(&all), Ok(()), "{}", method.name);
        for parameter in method.parameters {
            let mut wrong = all.clone();
            wrong.insert(parameter.name.to_owned(), good_and_bad(parameter.kind).1);
            let told = method.check(&wrong).unwrap_err();
            assert!(told.contains(parameter.name), "{} {}: {told}", method.name, parameter.name);
            let mut without = all.clone();
            without.remove(parameter.name);
            assert_eq!(
                method.check(&without).is_err(),
                parameter.required,
                "{} {}",
                method.name,
                parameter.name
            );
        }
        let mut more = all;
        more.insert("no_such_parameter".to_owned(), Value::Null);
        assert!(method.check(&more).unwrap_err().contains("no_such_parameter"), "{}", method.name);
    }
}

#[tokio::test]
async fn answers_and_updates_have_the_published_shape() -> anyhow::Result<()> {
    use botledger_sim::{Person, TelegramConfig, TelegramSim};
    use serde_json::json;

    let Some(specification) = specification() else { return Ok(()) };
    let sim = TelegramSim::start(TelegramConfig::default()).await?;
    let bot = sim.add_bot("shape_bot").map_err(anyhow::Error::msg)?;
    let person = Person::number(1);
    sim.say("shape_bot", &person, "/start now").map_err(anyhow::Error::msg)?;
    sim.press("shape_bot", &person, 1, "x").map_err(anyhow::Error::msg)?;
    let http = reqwest::Client::new();
    let call = async |method: &str, parameters: Value| -> anyhow::Result<Value> {
        let url = format!("{}/bot{}/{method}", sim.url(), bot.token);
        let answer: Value = http.post(url).json(&parameters).send().await?.json().await?;
        assert_eq!(answer["ok"], true, "{answer}");
        Ok(answer["result"].clone())
    };
    check(&specification, "User", &call("getMe", json!({})).await?, "getMe");
    for update in call("getUpdates", json!({})).await?.as_array().unwrap() {
        check(&specification, "Update", update, "update");
    }
    let sent = call("sendMessage", json!({"chat_id": person.id, "text": "hi"})).await?;
    check(&specification, "Message", &sent, "sendMessage");
    let edited = json!({"chat_id": person.id, "message_id": sent["message_id"], "text": "ho"});
    check(&specification, "Message", &call("editMessageText", edited).await?, "editMessageText");
    check(&specification, "WebhookInfo", &call("getWebhookInfo", json!({})).await?, "getWebhookInfo");
    let decorated = json!({
        "chat_id": person.id, "text": "bold", "entities": [{"type": "bold", "offset": 0, "length": 4}],
        "reply_markup": {"inline_keyboard": [[{"text": "a", "callback_data": "b"}]]}, "message_thread_id": 3,
    });
    check(&specification, "Message", &call("sendMessage", decorated).await?, "decorated");
    let commands = json!({"commands": [{"command": "help", "description": "what I can do"}]});
    for (method, parameters) in [
        ("setMyCommands", commands),
        ("sendChatAction", json!({"chat_id": person.id, "action": "typing"})),
        ("deleteMessage", json!({"chat_id": person.id, "message_id": sent["message_id"]})),
        ("setWebhook", json!({"url": "http://127.0.0.1:9/"})),
        ("deleteWebhook", json!({})),
    ] {
        assert_eq!(specification["methods"][method]["returns"], json!(["Boolean"]), "{method}");
        assert_eq!(call(method, parameters).await?, true, "{method}");
    }
    let commands = call("getMyCommands", json!({})).await?;
    check_kind(&specification, "Array of BotCommand", &commands, "getMyCommands");
    assert_eq!(commands.as_array().unwrap().len(), 1);
    Ok(())
}
