//! The stand-in's methods against the published Bot API, in both directions.

use std::collections::BTreeMap;

use botledger_sim::methods::{Kind, METHODS};
use serde_json::Value;

fn specification() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/telegram/bot-api-spec-10.3.json");
    let text = std::fs::read_to_string(path).expect("the specification stands beside the repository");
    serde_json::from_str(&text).expect("JSON")
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
    let specification = specification();
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
        match types[0] {
            "Integer" => assert!(inner.is_i64(), "{path}"),
            "String" => assert!(inner.is_string(), "{path}"),
            "Boolean" | "True" => assert!(inner.is_boolean(), "{path}"),
            name if name.starts_with("Array of ") => assert!(inner.is_array(), "{path}"),
            name if specification["types"][name]["fields"].is_array() => {
                check(specification, name, inner, &path)
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn answers_and_updates_have_the_published_shape() -> anyhow::Result<()> {
    use botledger_sim::{Person, TelegramConfig, TelegramSim};
    use serde_json::json;

    let specification = specification();
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
    Ok(())
}
