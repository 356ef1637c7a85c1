//! Who is let in and who is not, as operators see and change it.

use botledger_domain::operator::Role;
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Platform, Tenant};

const ADD: &str = "mutation m($i: AccessListAddInput!) { accessListAdd(input: $i) { position
    accessList { botId closedToMessages closedToRequests } userErrors { code message field } } }";
const REMOVE: &str =
    "mutation m($i: AccessListRemoveInput!) { accessListRemove(input: $i) { position userErrors { code } } }";
const CLOSE: &str = "mutation m($i: AccessListDoorInput!) { accessListClose(input: $i) { position
    accessList { closedToMessages closedToRequests } userErrors { code } } }";
const OPEN: &str = "mutation m($i: AccessListDoorInput!) { accessListOpen(input: $i) { position
    accessList { closedToMessages closedToRequests } userErrors { code } } }";
const ENTRIES: &str = "query q($f: AccessEntryFilterInput) { accessEntries(filter: $f) { edges { node {
    kind personId conversationId network botId effect reason inForce expiresAt changedBy } } } }";

/// Behind a proxy that is believed.
async fn behind_a_proxy(pool: PgPool) -> Platform {
    Platform::with(pool, |config| config.trusted_proxies = vec!["127.0.0.1".parse().unwrap()]).await
}

async fn change(platform: &Platform, tenant: &Tenant, mutation: &str, input: Value) -> Value {
    let mut data = platform.data(&tenant.token, mutation, json!({"i": input})).await;
    data.as_object_mut().unwrap().values_mut().next().unwrap().take()
}

async fn done(platform: &Platform, tenant: &Tenant, mutation: &str, input: Value) -> Value {
    let payload = change(platform, tenant, mutation, input).await;
    assert_eq!(payload["userErrors"], json!([]), "{payload}");
    payload
}

async fn refused(platform: &Platform, tenant: &Tenant, mutation: &str, input: Value) -> String {
    let payload = change(platform, tenant, mutation, input).await;
    assert!(payload["position"].is_null(), "{payload}");
    payload["userErrors"][0]["code"].as_str().unwrap().to_owned()
}

async fn entries(platform: &Platform, tenant: &Tenant, filter: Value) -> Vec<Value> {
    platform.settle().await;
    let mut data = platform.data(&tenant.token, ENTRIES, json!({"f": filter})).await;
    let edges = data["accessEntries"]["edges"].as_array_mut().unwrap();
    edges.iter_mut().map(|edge| edge["node"].take()).collect()
}

fn entry(target: Value, effect: &str) -> Value {
    json!({"target": target, "effect": effect, "reason": "known to us"})
}

#[sqlx::test(migrations = "../migrations")]
async fn entries_are_added_many_at_once_listed_and_taken_out(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let (bot, fence) = platform.bot(&tenant, 1).await;
    let turn = platform.message((bot, fence), 1, 7_700_123, "hello").await;
    let message = platform.app.turns.load(turn).await.unwrap().state.message.unwrap();
    let person = format!("person:{}", message.subject);
    let bot_id = format!("bot:{bot}");

    let many = json!([
        entry(json!({"telegramUserId": "7700123"}), "ALLOW"),
        entry(json!({"telegramChat": {"botId": bot_id, "chatId": "7700123"}}), "DENY"),
        entry(json!({"network": "192.0.2.77/24"}), "DENY"),
    ]);
    let added = done(&platform, &tenant, ADD, json!({"entries": many})).await;
    assert_eq!(
        added["accessList"],
        json!({"botId": null, "closedToMessages": false, "closedToRequests": false})
    );
    let own = json!({"botId": bot_id, "entries": [entry(json!({"personId": person}), "DENY")]});
    done(&platform, &tenant, ADD, own).await;
    let shown = entries(&platform, &tenant, json!({})).await;
    assert_eq!(shown.len(), 4);
    assert_eq!((&shown[0]["botId"], &shown[0]["effect"]), (&json!(bot_id), &json!("DENY")));
    assert_eq!((&shown[1]["kind"], &shown[1]["network"]), (&json!("IP"), &json!("192.0.2.0/24")));
    let chat = format!("conversation:{}", message.conversation);
    assert_eq!((&shown[2]["kind"], &shown[2]["conversationId"]), (&json!("CHAT"), &json!(chat)));
    // A number that Telegram gives is the person who wrote, and stands nowhere.
    assert_eq!((&shown[3]["personId"], &shown[3]["effect"]), (&json!(person), &json!("ALLOW")));
    assert_eq!(shown[3]["changedBy"], format!("operator:{}", tenant.owner));
    let kept: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM events WHERE aggregate_type = 'access_list' AND payload::text LIKE '%7700123%'",
    )
    .fetch_one(&platform.pool)
    .await
    .unwrap();
    assert_eq!(kept, 0);

    let count = async |filter: Value| entries(&platform, &tenant, filter).await.len();
    assert_eq!(count(json!({"workspaceOnly": true})).await, 3);
    assert_eq!(count(json!({"botId": bot_id})).await, 1);
    assert_eq!(count(json!({"kind": "PERSON", "effect": "DENY"})).await, 1);
    assert_eq!(count(json!({"target": {"telegramUserId": 7_700_123}})).await, 2);
    let targets = json!([{"network": "192.0.2.0/24"}, {"personId": person}, {"network": "10.0.0.0/8"}]);
    let middle = platform.settle().await;
    done(&platform, &tenant, REMOVE, json!({"targets": targets, "reason": "moved"})).await;
    assert_eq!(count(json!({})).await, 2);
    assert_eq!(count(json!({"inForce": false})).await, 4);
    let again = done(&platform, &tenant, REMOVE, json!({"targets": targets, "reason": "moved"})).await;
    assert_eq!(again["position"], "0");

    let query = "query q($p: Position!) {
        then: accessList(asOf: {position: $p}) { botId entries { effect network } }
        never: accessList(asOf: {position: \"1\"}) { botId }
        now: accessList { entries { effect } } }";
    let data = platform.data(&tenant.token, query, json!({"p": middle.to_string()})).await;
    assert_eq!(data["then"]["entries"].as_array().unwrap().len(), 3);
    assert_eq!(data["then"]["entries"][0], json!({"effect": "DENY", "network": "192.0.2.0/24"}));
    assert_eq!((&data["never"], &data["now"]["entries"]), (&Value::Null, &Value::Null));
}

#[sqlx::test(migrations = "../migrations")]
async fn what_makes_no_sense_is_refused_whole(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (tenant, other) = (platform.tenant("one").await, platform.tenant("other").await);
    let (bot, _) = platform.bot(&tenant, 1).await;
    let bot_id = format!("bot:{bot}");
    let user = json!({"telegramUserId": "5"});
    let with = |second: Value| json!({"entries": [entry(json!({"telegramUserId": "4"}), "DENY"), second]});
    let mut past = entry(user.clone(), "DENY");
    past["expiresAt"] = json!("2020-01-01T00:00:00Z");
    assert_eq!(refused(&platform, &tenant, ADD, with(past)).await, "ACCESS_LIST_ENDS_IN_THE_PAST");
    let twice = with(entry(json!({"telegramUserId": "4"}), "ALLOW"));
    assert_eq!(refused(&platform, &tenant, ADD, twice).await, "ACCESS_LIST_NAMED_TWICE");
    let nowhere = with(entry(json!({"network": "300.1.1.1"}), "DENY"));
    assert_eq!(refused(&platform, &tenant, ADD, nowhere).await, "BAD_INPUT");
    let mut network = with(entry(json!({"network": "192.0.2.1"}), "DENY"));
    network["botId"] = json!(bot_id);
    assert_eq!(refused(&platform, &tenant, ADD, network).await, "ACCESS_LIST_NETWORK_OF_A_BOT");
    let door = json!({"botId": bot_id, "door": "REQUESTS", "reason": "x"});
    assert_eq!(refused(&platform, &tenant, CLOSE, door).await, "ACCESS_LIST_NETWORK_OF_A_BOT");
    assert_eq!(entries(&platform, &tenant, json!({"inForce": false})).await, Vec::<Value>::new());
    let none = json!({"i": {"entries": []}});
    assert_eq!(platform.refusal(Some(&tenant.token), ADD, none).await, "BAD_INPUT");
    // Another workspace's bot does not exist, nor do its entries.
    let foreign = json!({"i": {"botId": bot_id, "entries": [entry(user.clone(), "DENY")]}});
    assert_eq!(platform.refusal(Some(&other.token), ADD, foreign).await, "NOT_FOUND");
    done(&platform, &tenant, ADD, json!({"entries": [entry(user.clone(), "DENY")]})).await;
    assert_eq!(entries(&platform, &other, json!({})).await, Vec::<Value>::new());
    assert_eq!(entries(&platform, &other, json!({"target": user})).await, Vec::<Value>::new());
    for role in [Role::Moderator, Role::Auditor, Role::Member] {
        let token = platform.token_as(&tenant, role).await;
        let input = json!({"i": {"entries": [entry(json!({"telegramUserId": "6"}), "DENY")]}});
        assert_eq!(platform.refusal(Some(&token), ADD, input).await, "FORBIDDEN", "{role:?}");
    }
}

async fn from(platform: &Platform, token: &str, address: &str) -> (StatusCode, String) {
    let answer = platform
        .request(|http, url| {
            let request = http.post(url).bearer_auth(token).header("x-forwarded-for", address);
            request.json(&json!({"query": "{ me { login } }"}))
        })
        .await;
    (answer.status, answer.json()["code"].as_str().unwrap_or_default().to_owned())
}

#[sqlx::test(migrations = "../migrations")]
async fn a_workspace_takes_no_requests_from_addresses_it_denies(pool: PgPool) {
    let platform = behind_a_proxy(pool).await;
    let (tenant, other) = (platform.tenant("one").await, platform.tenant("other").await);
    let served = (StatusCode::OK, String::new());
    let denied = (StatusCode::FORBIDDEN, "ADDRESS_DENIED".to_owned());
    let list = json!({"entries": [
        entry(json!({"network": "203.0.113.0/24"}), "DENY"),
        entry(json!({"network": "203.0.113.9"}), "ALLOW"),
        entry(json!({"network": "2001:db8::/32"}), "DENY"),
    ]});
    done(&platform, &tenant, ADD, list).await;
    assert_eq!(from(&platform, &tenant.token, "203.0.113.8").await, denied);
    assert_eq!(from(&platform, &tenant.token, "203.0.113.9").await, served);
    assert_eq!(from(&platform, &tenant.token, "2001:db8:7::1").await, denied);
    assert_eq!(from(&platform, &tenant.token, "198.51.100.1").await, served);
    assert_eq!(from(&platform, &other.token, "203.0.113.8").await, served);
    let noted: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM audit_log WHERE action = 'api.request' AND detail ->> 'code' = 'ADDRESS_DENIED'",
    )
    .fetch_one(&platform.pool)
    .await
    .unwrap();
    assert_eq!(noted, 2);
    // A socket that was opened elsewhere is asked with every operation.
    let headers = [("sec-websocket-protocol", "graphql-transport-ws"), ("x-forwarded-for", "203.0.113.8")];
    let mut socket = platform.socket_with(&headers).await.unwrap();
    let payload = json!({"Authorization": format!("Bearer {}", tenant.token)});
    socket.send(json!({"type": "connection_init", "payload": payload})).await;
    assert_eq!(socket.next().await["type"], "connection_ack");
    socket.subscribe("1", "{ me { login } }", json!({})).await;
    assert_eq!(socket.next().await["payload"][0]["extensions"]["code"], "FORBIDDEN");
}

#[sqlx::test(migrations = "../migrations")]
async fn nobody_locks_themselves_out(pool: PgPool) {
    let platform = behind_a_proxy(pool).await;
    let tenant = platform.tenant("one").await;
    let door = json!({"door": "REQUESTS", "reason": "office only"});
    let here = |effect: &str| json!({"entries": [entry(json!({"network": "127.0.0.0/8"}), effect)]});
    assert_eq!(refused(&platform, &tenant, ADD, here("DENY")).await, "ACCESS_LIST_LOCKS_YOU_OUT");
    assert_eq!(refused(&platform, &tenant, CLOSE, door.clone()).await, "ACCESS_LIST_LOCKS_YOU_OUT");
    done(&platform, &tenant, ADD, here("ALLOW")).await;
    let closed = done(&platform, &tenant, CLOSE, door.clone()).await;
    assert_eq!(closed["accessList"], json!({"closedToMessages": false, "closedToRequests": true}));
    let gone = json!({"targets": [{"network": "127.0.0.0/8"}], "reason": "x"});
    assert_eq!(refused(&platform, &tenant, REMOVE, gone).await, "ACCESS_LIST_LOCKS_YOU_OUT");
    let stranger = (StatusCode::FORBIDDEN, "ADDRESS_DENIED".to_owned());
    assert_eq!(from(&platform, &tenant.token, "198.51.100.1").await, stranger);
    done(&platform, &tenant, OPEN, door).await;
    assert_eq!(from(&platform, &tenant.token, "198.51.100.1").await.0, StatusCode::OK);
}
