//! Subscriptions: the log as it grows, without gap or repeat, over both transports.

use std::time::Duration;

use botledger_domain::operator::Role;
use futures::{Stream, StreamExt};
use reqwest::header;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Platform, Socket, Tenant};

const EVENTS: &str = "subscription s($after: Position, $filter: EventFilterInput) {
    eventRecorded(after: $after, filter: $filter) { position eventType aggregateId sequence } }";
const TURNS: &str = "subscription s($after: Position, $bot: ID) {
    turnChanged(after: $after, botId: $bot) { position eventType turn { id phase } } }";

/// Data of a subscription, as it comes over server-sent events.
pub(crate) async fn stream(
    platform: &Platform,
    token: &str,
    query: &str,
    variables: Value,
) -> impl Stream<Item = Value> + Unpin + use<> {
    let request =
        platform.http.post(platform.url()).bearer_auth(token).header(header::ACCEPT, "text/event-stream");
    let response = request.json(&json!({"query": query, "variables": variables})).send().await.unwrap();
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let bytes = response.bytes_stream().map(|chunk| chunk.map(|chunk| chunk.to_vec()).unwrap_or_default());
    let lines = bytes.scan(Vec::new(), |rest: &mut Vec<u8>, chunk| {
        rest.extend(chunk);
        let mut whole = Vec::new();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            whole.push(String::from_utf8(rest.drain(..=end).collect()).unwrap());
        }
        std::future::ready(Some(futures::stream::iter(whole)))
    });
    let answers = lines.flatten().filter_map(|line| {
        let data = line.strip_prefix("data: ").map(|data| serde_json::from_str::<Value>(data).unwrap());
        std::future::ready(data)
    });
    // An answer that does not come ends the stream, and with it the test.
    Box::pin(answers.take_until(Box::pin(tokio::time::sleep(Duration::from_secs(60)))))
}

pub(crate) async fn over_socket(socket: &mut Socket) -> Value {
    loop {
        let message = socket.next().await;
        if message["type"] == "next" {
            return message["payload"]["data"].clone();
        }
        assert_eq!(message["type"], "ping", "{message}");
    }
}

/// Keeps appending until stopped; how many positions there are in the end.
async fn append(platform: &Platform, tenant: &Tenant, messages: i64) {
    let bot = platform.bot(tenant, 1).await;
    for update in 0..messages {
        platform.talk(bot, update, 70 + update % 5, "hello").await;
    }
}

async fn log(platform: &Platform) -> Vec<(i64, String)> {
    sqlx::query_as("SELECT position, event_type FROM events ORDER BY position")
        .fetch_all(&platform.pool)
        .await
        .unwrap()
}

fn seen(data: &Value) -> (i64, String) {
    let event = &data["eventRecorded"];
    (event["position"].as_str().unwrap().parse().unwrap(), event["eventType"].as_str().unwrap().to_owned())
}

#[sqlx::test(migrations = "../migrations")]
async fn a_socket_resumes_in_the_middle_of_everything(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let writing = append(&platform, &tenant, 15);
    let reading = async {
        let mut events: Vec<(i64, String)> = Vec::new();
        // 15 messages and the bot's beginnings: many more than this.
        while events.len() < 80 {
            let mut socket = platform.introduced(&tenant.token).await;
            let after = events.last().map_or(0, |(position, _)| *position);
            socket.subscribe("1", EVENTS, json!({"after": after.to_string()})).await;
            for _ in 0..7 {
                events.push(seen(&over_socket(&mut socket).await));
            }
            // Dropped while more is on its way.
        }
        events
    };
    let ((), events) = tokio::join!(writing, reading);
    assert_eq!(events, log(&platform).await[..events.len()]);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_stream_resumes_in_the_middle_of_everything(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let writing = append(&platform, &tenant, 15);
    let reading = async {
        let mut events: Vec<(i64, String)> = Vec::new();
        while events.len() < 80 {
            let after = events.last().map_or(0, |(position, _)| *position);
            let stream = stream(&platform, &tenant.token, EVENTS, json!({"after": after.to_string()})).await;
            let more: Vec<_> = stream.take(7).map(|answer| seen(&answer["data"])).collect().await;
            assert_eq!(more.len(), 7, "the stream ended");
            events.extend(more);
        }
        events
    };
    let ((), events) = tokio::join!(writing, reading);
    assert_eq!(events, log(&platform).await[..events.len()]);
}

#[sqlx::test(migrations = "../migrations")]
async fn without_a_position_only_what_comes_is_told(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bot = platform.bot(&tenant, 1).await;
    let head = platform.settle().await;
    let mut socket = platform.introduced(&tenant.token).await;
    socket.subscribe("1", EVENTS, json!({"filter": {"aggregateType": "turn"}})).await;
    // An answered query behind it: the subscription has begun.
    socket.subscribe("2", "{ __typename }", json!({})).await;
    assert_eq!(socket.next().await["id"], "2");
    assert_eq!(socket.next().await["type"], "complete");
    platform.talk(bot, 1, 77, "hello").await;
    let expected: Vec<(i64, String)> = sqlx::query_as(
        "SELECT position, event_type FROM events WHERE position > $1 AND aggregate_type = 'turn' ORDER BY position",
    )
    .bind(head)
    .fetch_all(&platform.pool)
    .await
    .unwrap();
    for event in expected {
        assert_eq!(seen(&over_socket(&mut socket).await), event);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn turns_are_told_step_by_step_and_resume(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bots = [platform.bot(&tenant, 1).await, platform.bot(&tenant, 2).await];
    let mut turns = Vec::new();
    for update in 0..6 {
        turns.push(platform.talk(bots[update as usize % 2], update, 77, "hello").await);
    }
    let expected: Vec<(i64, String, String)> = sqlx::query_as(
        "SELECT position, event_type, aggregate_id FROM events WHERE aggregate_type = 'turn' ORDER BY position",
    )
    .fetch_all(&platform.pool)
    .await
    .unwrap();
    let told = |data: &Value| {
        let change = &data["turnChanged"];
        let turn = change["turn"]["id"].as_str().unwrap().strip_prefix("turn:").unwrap().to_owned();
        (
            change["position"].as_str().unwrap().parse::<i64>().unwrap(),
            change["eventType"].as_str().unwrap().to_owned(),
            turn,
        )
    };
    let mut heard = Vec::new();
    while heard.len() < expected.len() {
        let after = heard.last().map_or(0, |(position, _, _)| *position).to_string();
        let mut stream = stream(&platform, &tenant.token, TURNS, json!({"after": after})).await;
        for _ in 0..4.min(expected.len() - heard.len()) {
            heard.push(told(&stream.next().await.unwrap()["data"]));
        }
    }
    assert_eq!(heard, expected);

    let mut socket = platform.introduced(&tenant.token).await;
    socket.subscribe("1", TURNS, json!({"after": "0", "bot": format!("bot:{}", bots[1].0)})).await;
    let own: Vec<_> = expected
        .iter()
        .filter(|(_, _, turn)| turns.iter().position(|known| known.to_string() == *turn).unwrap() % 2 == 1)
        .collect();
    for event in own {
        assert_eq!(&told(&over_socket(&mut socket).await), event);
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn who_loses_the_right_to_see_sees_no_more(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let operator = platform.operator(tenant.workspace, "grace", Role::Auditor).await;
    let mut socket = platform.introduced(&platform.token(operator)).await;
    let head = platform.head().await;
    socket.subscribe("1", EVENTS, json!({"after": (head - 1).to_string()})).await;
    over_socket(&mut socket).await;
    let disable = "mutation m($i: OperatorDisableInput!) { operatorDisable(input: $i) { position } }";
    let input = json!({"operatorId": format!("operator:{operator}"), "reason": "left"});
    platform.data(&tenant.token, disable, json!({"i": input})).await;
    // Not even the event that says so.
    let end = socket.next().await;
    assert!(end.to_string().contains("UNAUTHENTICATED"), "{end}");
    assert_eq!(socket.next().await["type"], "complete");
}

#[sqlx::test(migrations = "../migrations")]
async fn who_loses_a_right_reads_no_more_of_what_it_opened(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bot = platform.bot(&tenant, 1).await;
    let query = "subscription s($after: Position) { turnChanged(after: $after) { turn { prompt } } }";
    // An auditor may see turns and no texts; an analyst sees no turns.
    for (role, code, update) in [("AUDITOR", "CONFLICT", 10), ("ANALYST", "FORBIDDEN", 20)] {
        let login = format!("grace-{update}");
        let operator = platform.operator(tenant.workspace, &login, Role::Moderator).await;
        let mut socket = platform.introduced(&platform.token(operator)).await;
        platform.message(bot, update, 77, "before").await;
        let head = platform.settle().await;
        socket.subscribe("1", query, json!({"after": (head - 1).to_string()})).await;
        let told = over_socket(&mut socket).await;
        assert_eq!(told["turnChanged"]["turn"]["prompt"], "before");
        let demote =
            "mutation m($i: OperatorChangeRoleInput!) { operatorChangeRole(input: $i) { position } }";
        let input = json!({"operatorId": format!("operator:{operator}"), "role": role});
        platform.data(&tenant.token, demote, json!({"i": input})).await;
        platform.message(bot, update + 1, 77, "after").await;
        let end = socket.next().await.to_string();
        assert!(end.contains(code) && !end.contains("after\""), "{end}");
        assert_eq!(socket.next().await["type"], "complete");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_subscription_may_be_asked_for_by_get(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let query = "subscription { eventRecorded(after: \"0\") { position } }";
    let url = reqwest::Url::parse_with_params(&platform.url(), [("query", query)]).unwrap();
    let get =
        |accept| platform.http.get(url.clone()).bearer_auth(&tenant.token).header(header::ACCEPT, accept);
    let mut response = get("text/event-stream").send().await.unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    let first = String::from_utf8_lossy(&first);
    assert!(
        first.starts_with("event: next\ndata: {\"data\":{\"eventRecorded\":{\"position\":\"1\"}}}"),
        "{first}"
    );
    assert_eq!(get("application/json").send().await.unwrap().status(), 405);
    let stranger = platform.http.get(url.clone()).header(header::ACCEPT, "text/event-stream");
    assert_eq!(stranger.send().await.unwrap().status(), 401);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_query_may_be_asked_for_as_a_stream_too(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let answer = platform
        .request(|http, url| {
            let request =
                http.post(url).bearer_auth(&tenant.token).header(header::ACCEPT, "text/event-stream");
            request.json(&json!({"query": "{ __typename }"}))
        })
        .await;
    assert_eq!(
        answer.text,
        "event: next\ndata: {\"data\":{\"__typename\":\"Query\"}}\n\nevent: complete\ndata: \n\n"
    );
    let plain =
        platform.post(Some(&tenant.token), "subscription { eventRecorded { position } }", json!({})).await;
    assert_eq!(plain.code(), "BAD_INPUT", "a subscription needs a transport that streams");
}
