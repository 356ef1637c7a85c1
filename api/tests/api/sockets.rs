//! `graphql-transport-ws`, to the letter.

use std::time::Duration;

use botledger_domain::operator::Role;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::Platform;

const EVENTS: &str = "subscription s($after: Position) { eventRecorded(after: $after) { position } }";

#[sqlx::test(migrations = "../migrations")]
async fn a_socket_is_introduced_first_and_once(pool: PgPool) {
    let platform = Platform::with(pool, |config| config.request_timeout = Duration::from_millis(500)).await;
    let tenant = platform.tenant("one").await;

    let mut early = platform.socket().await;
    early.subscribe("1", EVENTS, json!({})).await;
    assert_eq!(early.close_code().await, 4401);

    let mut twice = platform.introduced(&tenant.token).await;
    twice.send(json!({"type": "connection_init"})).await;
    assert_eq!(twice.close_code().await, 4429);

    let mut silent = platform.socket().await;
    assert_eq!(silent.close_code().await, 4408);

    for payload in [
        json!({"Authorization": "Bearer nonsense"}),
        json!({"authorization": "nonsense"}),
        json!({}),
        Value::Null,
    ] {
        let mut stranger = platform.socket().await;
        stranger.send(json!({"type": "connection_init", "payload": payload})).await;
        assert_eq!(stranger.close_code().await, 4403);
    }

    let mut other = platform.socket_with(&[("sec-websocket-protocol", "soap")]).await;
    if let Ok(socket) = &mut other {
        assert_eq!(socket.close_code().await, 4406);
    }
    let mut none = platform.socket_with(&[]).await.unwrap();
    assert_eq!(none.close_code().await, 4406);
}

#[sqlx::test(migrations = "../migrations")]
async fn what_is_no_message_ends_the_socket(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    for message in [
        json!("text"),
        json!({}),
        json!({"type": "start", "id": "1"}),
        json!({"type": "subscribe", "payload": {"query": "{ __typename }"}}),
        json!({"type": "subscribe", "id": "", "payload": {"query": "{ __typename }"}}),
        json!({"type": "subscribe", "id": "1"}),
        json!({"type": "subscribe", "id": "1", "payload": {}}),
        json!({"type": "complete"}),
    ] {
        let mut socket = platform.introduced(&tenant.token).await;
        socket.send(message.clone()).await;
        assert_eq!(socket.close_code().await, 4400, "{message}");
    }
    let mut twice = platform.introduced(&tenant.token).await;
    twice.subscribe("1", EVENTS, json!({})).await;
    twice.subscribe("1", EVENTS, json!({})).await;
    assert_eq!(twice.close_code().await, 4409);
}

/// The next message that is no ping.
async fn told(socket: &mut crate::support::Socket) -> Value {
    socket.next().await
}

#[sqlx::test(migrations = "../migrations")]
async fn operations_answer_end_and_can_be_ended(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let mut socket = platform.introduced(&tenant.token).await;

    socket.send(json!({"type": "ping", "payload": {"a": 1}})).await;
    assert_eq!(told(&mut socket).await, json!({"type": "pong", "payload": {"a": 1}}));
    socket.send(json!({"type": "pong"})).await;

    socket.subscribe("q", "{ platform { version } }", json!({})).await;
    let next = told(&mut socket).await;
    assert_eq!((&next["id"], &next["type"]), (&json!("q"), &json!("next")));
    assert!(next["payload"]["data"]["platform"]["version"].is_string());
    assert_eq!(told(&mut socket).await, json!({"id": "q", "type": "complete"}));

    // Nothing could be executed: an `error`, and no `complete`.
    for query in ["{", "{ nothing }", "subscription { nothing }"] {
        socket.subscribe("e", query, json!({})).await;
        let error = told(&mut socket).await;
        assert_eq!((&error["id"], &error["type"]), (&json!("e"), &json!("error")), "{error}");
        assert_eq!(error["payload"][0]["extensions"]["code"], "BAD_INPUT");
    }
    // The id of an operation that ended is free.
    socket.subscribe("e", "{ __typename }", json!({})).await;
    assert_eq!(told(&mut socket).await["type"], "next");
    assert_eq!(told(&mut socket).await["type"], "complete");

    socket.subscribe("s", EVENTS, json!({"after": "0"})).await;
    let head = platform.head().await;
    for position in 1..=head {
        let next = told(&mut socket).await;
        assert_eq!(next["payload"]["data"]["eventRecorded"]["position"], position.to_string());
    }
    socket.send(json!({"id": "s", "type": "complete"})).await;
    socket.send(json!({"id": "unknown", "type": "complete"})).await;
    // After it was ended nothing of it comes any more, and its id is free again.
    platform.tenant("another").await;
    socket.subscribe("s", "{ __typename }", json!({})).await;
    assert_eq!(told(&mut socket).await["payload"]["data"]["__typename"], "Query");
    assert_eq!(told(&mut socket).await["type"], "complete");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_socket_runs_so_many_operations_and_no_more(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let mut socket = platform.introduced(&tenant.token).await;
    let head = platform.head().await.to_string();
    for id in 0..20 {
        socket.subscribe(&id.to_string(), EVENTS, json!({"after": head})).await;
    }
    socket.send(json!({"type": "ping"})).await;
    assert_eq!(told(&mut socket).await["type"], "pong");
    socket.subscribe("20", EVENTS, json!({"after": head})).await;
    assert_eq!(socket.close_code().await, 1013);
}

#[sqlx::test(migrations = "../migrations")]
async fn pages_of_elsewhere_get_no_socket(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let own = format!("http://{}", platform.address);
    for (origin, welcome) in [
        (own.as_str(), true),
        ("https://bots.example.org", true),
        ("https://BOTS.example.org:443", true),
        ("http://bots.example.org", false),
        ("https://bots.example.org:8443", false),
        ("https://bots.example.org.evil.example.org", false),
        ("https://evil.example.org", false),
        ("null", false),
    ] {
        let headers = [("sec-websocket-protocol", "graphql-transport-ws"), ("origin", origin)];
        assert_eq!(platform.socket_with(&headers).await.is_ok(), welcome, "{origin}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn the_role_counts_over_a_socket_as_well(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let token = platform.token_as(&tenant, Role::Analyst).await;
    let mut socket = platform.introduced(&token).await;
    socket.subscribe("1", EVENTS, json!({})).await;
    let refused = told(&mut socket).await.to_string();
    assert!(refused.contains("FORBIDDEN"), "{refused}");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_token_in_the_request_introduces_as_well(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bearer = format!("Bearer {}", tenant.token);
    let headers = [("sec-websocket-protocol", "graphql-transport-ws"), ("authorization", bearer.as_str())];
    let mut socket = platform.socket_with(&headers).await.unwrap();
    socket.send(json!({"type": "connection_init"})).await;
    assert_eq!(told(&mut socket).await["type"], "connection_ack");
}

#[sqlx::test(migrations = "../migrations")]
async fn strangers_fill_their_own_share_and_nobody_elses(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let mut owners = Vec::new();
    for _ in 0..60 {
        owners.push(platform.introduced(&tenant.token).await);
    }
    let mut strangers = Vec::new();
    for _ in 0..64 {
        strangers.push(platform.socket().await);
    }
    let headers = [("sec-websocket-protocol", "graphql-transport-ws")];
    let refused = platform.socket_with(&headers).await.err().unwrap().to_string();
    assert!(refused.contains("503"), "{refused}");
    // Who is introduced leaves the strangers, and an operator has a share as well.
    let payload = json!({"Authorization": format!("Bearer {}", tenant.token)});
    for stranger in &mut strangers[..4] {
        stranger.send(json!({"type": "connection_init", "payload": payload})).await;
        assert_eq!(told(stranger).await["type"], "connection_ack");
    }
    let mut more = platform.socket_with(&headers).await.unwrap();
    more.send(json!({"type": "connection_init", "payload": payload})).await;
    assert_eq!(more.close_code().await, 1013);
    let another = platform.token_as(&tenant, Role::Auditor).await;
    platform.introduced(&another).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn who_answers_no_ping_is_gone(pool: PgPool) {
    let platform = Platform::with(pool, |config| config.request_timeout = Duration::from_millis(200)).await;
    let tenant = platform.tenant("one").await;
    let mut lively = platform.introduced(&tenant.token).await;
    for _ in 0..4 {
        assert_eq!(lively.next().await, json!({"type": "ping"}));
        lively.send(json!({"type": "pong"})).await;
    }
    let mut silent = platform.introduced(&tenant.token).await;
    assert_eq!(silent.next().await, json!({"type": "ping"}));
    assert_eq!(silent.next().await, json!({"type": "ping"}));
    assert_eq!(silent.close_code().await, 1008);
}

#[sqlx::test(migrations = "../migrations")]
async fn an_operator_runs_so_many_subscriptions_and_no_more(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let head = (platform.settle().await - 1).to_string();
    let mut sockets = Vec::new();
    for _ in 0..5 {
        let mut socket = platform.introduced(&tenant.token).await;
        for id in 0..20 {
            socket.subscribe(&id.to_string(), EVENTS, json!({"after": head})).await;
        }
        // All of them run: each has told something.
        for _ in 0..20 {
            assert_eq!(told(&mut socket).await["type"], "next");
        }
        sockets.push(socket);
    }
    let mut more = platform.introduced(&tenant.token).await;
    more.subscribe("1", EVENTS, json!({"after": head})).await;
    let refused = told(&mut more).await;
    assert_eq!(refused["payload"][0]["extensions"]["code"], "RATE_LIMITED", "{refused}");
    let another = platform.token_as(&tenant, Role::Auditor).await;
    let mut another = platform.introduced(&another).await;
    another.subscribe("1", EVENTS, json!({"after": head})).await;
    assert_eq!(told(&mut another).await["type"], "next");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_crowd_is_told_to_come_back_over_every_transport(pool: PgPool) {
    let platform = Platform::with(pool, |config| config.max_in_flight = 0).await;
    let tenant = platform.tenant("one").await;
    let mut socket = platform.introduced(&tenant.token).await;
    socket.subscribe("1", "{ __typename }", json!({})).await;
    let refused = told(&mut socket).await;
    assert_eq!(refused["payload"][0]["extensions"]["code"], "UNAVAILABLE", "{refused}");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_socket_gives_no_more_than_its_operator_may_now(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let operator = platform.operator(tenant.workspace, "grace", Role::Admin).await;
    let mut socket = platform.introduced(&platform.token(operator)).await;
    let rename = "mutation { workspaceRename(input: {name: \"Mine\"}) { position } }";
    socket.subscribe("1", rename, json!({})).await;
    assert!(told(&mut socket).await["payload"]["data"]["workspaceRename"]["position"].is_string());
    assert_eq!(told(&mut socket).await["type"], "complete");
    for (mutation, more, code) in [
        ("operatorChangeRole", json!({"role": "ANALYST"}), "FORBIDDEN"),
        ("operatorDisable", json!({"reason": "left"}), "UNAUTHENTICATED"),
    ] {
        let mut input = json!({"operatorId": format!("operator:{operator}")});
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let kind = format!("{}{}Input", mutation[..1].to_uppercase(), &mutation[1..]);
        let query =
            format!("mutation m($i: {kind}!) {{ {mutation}(input: $i) {{ userErrors {{ code }} }} }}");
        platform.data(&tenant.token, &query, json!({"i": input})).await;
        socket.subscribe("1", rename, json!({})).await;
        let refused = told(&mut socket).await;
        assert!(refused.to_string().contains(code), "{refused}");
        if refused["type"] == "next" {
            assert_eq!(told(&mut socket).await["type"], "complete");
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn an_id_is_free_as_soon_as_its_operation_is_complete(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let mut socket = platform.introduced(&tenant.token).await;
    for _ in 0..200 {
        socket.subscribe("1", "{ __typename }", json!({})).await;
        assert_eq!(told(&mut socket).await["type"], "next");
        assert_eq!(told(&mut socket).await["type"], "complete");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_stopping_server_says_goodbye(pool: PgPool) {
    let mut platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let mut socket = platform.introduced(&tenant.token).await;
    socket.subscribe("1", EVENTS, json!({})).await;
    platform.stop.cancel();
    assert_eq!(socket.close_code().await, 1001);
    (&mut platform.served).await.unwrap().unwrap();
}
