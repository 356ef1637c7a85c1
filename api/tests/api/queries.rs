//! Lists, filters, cursors, and reading one's own writes.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use botledger_commands::{Caller, Decision};
use botledger_domain::TurnId;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Platform, Tenant};

/// Every list with a cursor.
const LISTS: [&str; 9] = [
    "bots",
    "conversations",
    "events",
    "moderationQueue",
    "operators",
    "people",
    "quotas",
    "standings",
    "turns",
];

fn nodes(connection: &Value) -> Vec<Value> {
    connection["edges"].as_array().unwrap().iter().map(|edge| edge["node"].clone()).collect()
}

/// A platform with something in every list: two bots, three people, seven messages.
async fn busy(platform: &Platform) -> (Tenant, Vec<TurnId>) {
    let tenant = platform.tenant("one").await;
    let bots = [platform.bot(&tenant, 1).await, platform.bot(&tenant, 2).await];
    let mut turns = Vec::new();
    for (number, (bot, person)) in [(0, 71), (0, 72), (1, 71), (0, 73), (1, 73)].into_iter().enumerate() {
        turns.push(platform.talk(bots[bot], 100 + number as i64, person, &format!("message {number}")).await);
    }
    turns.push(platform.message(bots[0], 200, 71, "undecided").await);
    let person = platform.person_of(turns[1]).await;
    for bot in bots {
        let input = json!({"botId": format!("bot:{}", bot.0), "personId": format!("person:{person}"), "reason": "spam"});
        let block =
            "mutation m($i: StandingBlockInput!) { standingBlock(input: $i) { userErrors { code } } }";
        platform.data(&tenant.token, block, json!({"i": input})).await;
        let caller = Caller::subject(person, turns[1]);
        platform.app.standings.file_appeal(&caller, bot.0, person, turns[1], "why?").await.unwrap();
    }
    let refused = platform.message(bots[0], 201, 72, "blocked").await;
    assert!(matches!(platform.admit(bots[0].1, refused).await, Decision::Refused { .. }));
    turns.push(refused);
    platform.settle().await;
    (tenant, turns)
}

fn field(list: &str) -> &'static str {
    if list == "events" { "position" } else { "id" }
}

async fn list(platform: &Platform, token: &str, list: &str, arguments: &str) -> Value {
    let field = field(list);
    let query = format!(
        "{{ {list}({arguments}) {{ edges {{ cursor node {{ {field} }} }}
           pageInfo {{ hasNextPage hasPreviousPage startCursor endCursor }} }} }}"
    );
    platform.data(token, &query, json!({})).await[list].take()
}

#[sqlx::test(migrations = "../migrations")]
async fn every_list_is_walked_in_both_directions_without_gap_or_repeat(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (tenant, _) = busy(&platform).await;
    for name in LISTS {
        let all = nodes(&list(&platform, &tenant.token, name, "first: 200").await);
        assert!(!all.is_empty(), "{name}");
        let unique: BTreeSet<String> = all.iter().map(Value::to_string).collect();
        assert_eq!(unique.len(), all.len(), "{name}");

        let (mut forward, mut after) = (Vec::new(), String::new());
        loop {
            let page = list(&platform, &tenant.token, name, &format!("first: 2{after}")).await;
            assert_eq!(page["pageInfo"]["hasPreviousPage"], !after.is_empty(), "{name}");
            forward.extend(nodes(&page));
            if page["pageInfo"]["hasNextPage"] == false {
                break;
            }
            after = format!(", after: {}", page["pageInfo"]["endCursor"]);
        }
        assert_eq!(forward, all, "{name}");

        let (mut backward, mut before) = (Vec::new(), String::new());
        loop {
            let page = list(&platform, &tenant.token, name, &format!("last: 2{before}")).await;
            assert_eq!(page["pageInfo"]["hasNextPage"], !before.is_empty(), "{name}");
            backward.extend(nodes(&page).into_iter().rev());
            if page["pageInfo"]["hasPreviousPage"] == false {
                break;
            }
            before = format!(", before: {}", page["pageInfo"]["startCursor"]);
        }
        backward.reverse();
        assert_eq!(backward, all, "{name}");
        assert_eq!(list(&platform, &tenant.token, name, "first: 0").await["edges"], json!([]));
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn cursors_and_page_sizes_that_are_not_the_lists_own_are_refused(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (tenant, _) = busy(&platform).await;
    let cursor = |name| {
        let (platform, tenant) = (&platform, &tenant);
        async move {
            list(platform, &tenant.token, name, "first: 1").await["edges"][0]["cursor"]
                .as_str()
                .unwrap()
                .to_owned()
        }
    };
    for (index, name) in LISTS.into_iter().enumerate() {
        let own = cursor(name).await;
        let other = cursor(LISTS[(index + 1) % LISTS.len()]).await;
        let field = field(name);
        let ask = async |arguments: String| {
            let query = format!("{{ {name}({arguments}) {{ edges {{ node {{ {field} }} }} }} }}");
            platform.post(Some(&tenant.token), &query, json!({})).await
        };
        assert!(ask(format!("after: \"{own}\"")).await.json().get("errors").is_none());
        let forged = URL_SAFE_NO_PAD.encode(format!("{name}:1 OR 1=1"));
        for arguments in [
            format!("after: \"{other}\""),
            format!("before: \"{other}\""),
            format!("after: \"{forged}\""),
            "after: \"1\"".to_owned(),
            "after: \"\"".to_owned(),
            "first: -1".to_owned(),
            "first: 201".to_owned(),
            "last: 201".to_owned(),
            "first: 2147483647".to_owned(),
            "first: 1, last: 1".to_owned(),
        ] {
            assert_eq!(ask(arguments.clone()).await.code(), "BAD_INPUT", "{name}({arguments})");
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn turns_are_found_by_everything_that_can_be_filtered(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (tenant, ids) = busy(&platform).await;
    let query = "query q($f: TurnFilterInput) { turns(first: 100, filter: $f) { totalCount edges { node {
        id botId personId conversationId phase open refusalKind receivedAt } } } }";
    let all = nodes(&platform.data(&tenant.token, query, json!({})).await["turns"]);
    assert_eq!(all.len(), 7);
    let newest_first: Vec<String> = ids.iter().rev().map(|id| format!("turn:{id}")).collect();
    assert_eq!(
        all.iter().map(|turn| turn["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>(),
        newest_first
    );
    let some = &all[3];
    let moment = some["receivedAt"].clone();
    type Keep<'a> = Box<dyn Fn(&Value) -> bool + 'a>;
    let cases: Vec<(Value, Keep<'_>)> = vec![
        (json!({"botId": some["botId"]}), Box::new(|turn| turn["botId"] == some["botId"])),
        (json!({"personId": some["personId"]}), Box::new(|turn| turn["personId"] == some["personId"])),
        (
            json!({"conversationId": some["conversationId"]}),
            Box::new(|turn| turn["conversationId"] == some["conversationId"]),
        ),
        (json!({"phases": ["DELIVERED"]}), Box::new(|turn| turn["phase"] == "DELIVERED")),
        (
            json!({"phases": ["RECEIVED", "REFUSAL_PENDING"]}),
            Box::new(|turn| turn["phase"] == "RECEIVED" || turn["phase"] == "REFUSAL_PENDING"),
        ),
        (json!({"phases": []}), Box::new(|_| false)),
        (json!({"open": true}), Box::new(|turn| turn["open"] == true)),
        (json!({"open": false}), Box::new(|turn| turn["open"] == false)),
        (json!({"refusalKinds": ["blocked"]}), Box::new(|turn| turn["refusalKind"] == "blocked")),
        (json!({"receivedFrom": moment}), Box::new(|turn| turn["receivedAt"].as_str() >= moment.as_str())),
        (json!({"receivedUntil": moment}), Box::new(|turn| turn["receivedAt"].as_str() < moment.as_str())),
        (
            json!({"botId": some["botId"], "personId": some["personId"], "open": false}),
            Box::new(|turn| {
                turn["botId"] == some["botId"]
                    && turn["personId"] == some["personId"]
                    && turn["open"] == false
            }),
        ),
    ];
    for (filter, keep) in cases {
        let found = platform.data(&tenant.token, query, json!({"f": filter})).await["turns"].take();
        let expected: Vec<Value> = all.iter().filter(|turn| keep(turn)).cloned().collect();
        assert_eq!(nodes(&found), expected, "{filter}");
        assert_eq!(found["totalCount"], expected.len().to_string(), "{filter}");
    }
    for wrong in [json!({"botId": some["personId"]}), json!({"phases": ["GONE"]}), json!({"nothing": 1})] {
        assert_eq!(platform.refusal(Some(&tenant.token), query, json!({"f": wrong})).await, "BAD_INPUT");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn the_log_is_found_by_stream_type_actor_correlation_position_and_time(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (tenant, _) = busy(&platform).await;
    let query = "query q($f: EventFilterInput) { events(first: 200, filter: $f) { edges { node {
        position recordedAt aggregateType aggregateId sequence eventType actor correlationId } } } }";
    let all = nodes(&platform.data(&tenant.token, query, json!({})).await["events"]);
    assert!(all.len() > 30);
    let some = all.iter().find(|event| event["eventType"] == "reply_delivered").unwrap();
    let number = |event: &Value| event["position"].as_str().unwrap().parse::<i64>().unwrap();
    let middle = number(&all[all.len() / 2]);
    let moment = all[all.len() / 2]["recordedAt"].clone();
    let owner = format!("operator:{}", tenant.owner);
    type Keep<'a> = Box<dyn Fn(&Value) -> bool + 'a>;
    let cases: Vec<(Value, Keep<'_>)> = vec![
        (json!({"aggregateType": "turn"}), Box::new(|event| event["aggregateType"] == "turn")),
        (
            json!({"aggregateId": some["aggregateId"]}),
            Box::new(|event| event["aggregateId"] == some["aggregateId"]),
        ),
        (
            json!({"eventTypes": ["reply_delivered", "message_received"]}),
            Box::new(|event| {
                event["eventType"] == "reply_delivered" || event["eventType"] == "message_received"
            }),
        ),
        (json!({"actor": owner}), Box::new(|event| event["actor"] == owner.as_str())),
        (
            json!({"correlationId": some["correlationId"]}),
            Box::new(|event| event["correlationId"] == some["correlationId"]),
        ),
        (json!({"afterPosition": middle.to_string()}), Box::new(move |event| number(event) > middle)),
        (json!({"uptoPosition": middle.to_string()}), Box::new(move |event| number(event) <= middle)),
        (json!({"recordedFrom": moment}), Box::new(|event| event["recordedAt"].as_str() >= moment.as_str())),
        (json!({"recordedUntil": moment}), Box::new(|event| event["recordedAt"].as_str() < moment.as_str())),
        (
            json!({"aggregateType": "turn", "eventTypes": ["turn_admitted"], "afterPosition": "3"}),
            Box::new(move |event| {
                event["aggregateType"] == "turn" && event["eventType"] == "turn_admitted" && number(event) > 3
            }),
        ),
        (json!({"aggregateType": "'; DROP TABLE events; --"}), Box::new(|_| false)),
    ];
    for (filter, keep) in cases {
        let found = nodes(&platform.data(&tenant.token, query, json!({"f": filter})).await["events"]);
        let expected: Vec<Value> = all.iter().filter(|event| keep(event)).cloned().collect();
        assert_eq!(found, expected, "{filter}");
    }
    let one =
        "query q($p: Position!) { event(position: $p) { position eventType leafHash payload sequence } }";
    let event = platform.data(&tenant.token, one, json!({"p": some["position"]})).await["event"].take();
    assert_eq!(event["eventType"], "reply_delivered");
    let leaf: Vec<u8> = sqlx::query_scalar("SELECT leaf_hash FROM events WHERE position = $1")
        .bind(number(some))
        .fetch_one(&platform.pool)
        .await
        .unwrap();
    assert_eq!(event["leafHash"], hex::encode(leaf), "the hash is the one in the ledger");
    assert!(platform.data(&tenant.token, one, json!({"p": "999999"})).await["event"].is_null());
    assert!(platform.data(&tenant.token, one, json!({"p": "0"})).await["event"].is_null());
}

#[sqlx::test(migrations = "../migrations")]
async fn the_other_lists_filter_too(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (tenant, turns) = busy(&platform).await;
    let query = "query q($c: ConversationFilterInput, $s: StandingFilterInput) {
        conversations(first: 50, filter: $c) { edges { node { id bot { id } person { id } messages turnCount sessions { number } } } }
        standings(first: 50, filter: $s) { edges { node { id botId personId blocked reason } } } }";
    let all = platform.data(&tenant.token, query, json!({})).await;
    let (conversations, standings) = (nodes(&all["conversations"]), nodes(&all["standings"]));
    assert_eq!((conversations.len(), standings.len()), (5, 2));
    assert!(conversations.iter().all(|one| one["messages"] == one["turnCount"]), "{conversations:?}");
    let bot = conversations[0]["bot"]["id"].clone();
    let person = json!(format!("person:{}", platform.person_of(turns[1]).await));
    let found = platform.data(&tenant.token, query, json!({"c": {"botId": bot}, "s": {"botId": bot}})).await;
    assert_eq!(
        nodes(&found["conversations"]),
        conversations.iter().filter(|one| one["bot"]["id"] == bot).cloned().collect::<Vec<_>>()
    );
    assert_eq!(
        nodes(&found["standings"]),
        standings.iter().filter(|one| one["botId"] == bot).cloned().collect::<Vec<_>>()
    );
    let found = platform
        .data(
            &tenant.token,
            query,
            json!({"c": {"personId": person}, "s": {"personId": person, "blocked": true}}),
        )
        .await;
    assert_eq!(nodes(&found["conversations"]).len(), 1);
    assert_eq!(nodes(&found["standings"]).len(), 2);
    let none = platform.data(&tenant.token, query, json!({"s": {"blocked": false}})).await;
    assert!(nodes(&none["standings"]).is_empty());

    let search = "query q($id: ID!, $w: String) { conversation(id: $id) { exchanges(first: 5, search: $w) { edges { node { prompt reply } } } } }";
    let id = conversations.iter().find(|one| one["person"]["id"] == person).unwrap()["id"].clone();
    let hit = platform.data(&tenant.token, search, json!({"id": id, "w": "MESSAGE"})).await;
    assert_eq!(
        nodes(&hit["conversation"]["exchanges"]),
        [json!({"prompt": "message 1", "reply": "You said something."})]
    );
    let miss = platform.data(&tenant.token, search, json!({"id": id, "w": "nowhere"})).await;
    assert!(nodes(&miss["conversation"]["exchanges"]).is_empty());
}

#[sqlx::test(migrations = "../migrations")]
async fn anything_is_found_by_its_global_id_and_usage_adds_up(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (tenant, turns) = busy(&platform).await;
    let lists = "{ bots { edges { node { id } } } turns { edges { node { id } } } people { edges { node { id } } }
        conversations { edges { node { id } } } operators { edges { node { id } } } workspace { id plans { name tokens period } } }";
    let data = platform.data(&tenant.token, lists, json!({})).await;
    let mut ids = vec![data["workspace"]["id"].clone()];
    for list in ["bots", "turns", "people", "conversations", "operators"] {
        ids.extend(nodes(&data[list]).iter().map(|node| node["id"].clone()));
    }
    let query = "query q($ids: [ID!]!) { nodes(ids: $ids) { id __typename } }";
    let found = platform.data(&tenant.token, query, json!({"ids": ids})).await["nodes"].take();
    let found: Vec<Value> = found.as_array().unwrap().iter().map(|node| node["id"].clone()).collect();
    assert_eq!(found, ids);
    let absent = json!({"ids": ["bot:01900000-0000-7000-8000-000000000000"]});
    assert_eq!(platform.data(&tenant.token, query, absent).await["nodes"], json!([null]));
    let many = json!({"ids": vec!["bot:01900000-0000-7000-8000-000000000000"; 101]});
    assert_eq!(platform.refusal(Some(&tenant.token), query, many).await, "BAD_INPUT");

    let usage = "query q($grain: Grain!) { usage(grain: $grain, from: \"2020-01-01T00:00:00Z\", until: \"2099-01-01T00:00:00Z\") {
        bucket botId messages admitted refused answered delivered promptTokens completionTokens } }";
    for grain in ["MINUTE", "HOUR", "DAY"] {
        let rows = platform.data(&tenant.token, usage, json!({"grain": grain})).await["usage"].take();
        let sum = |field: &str| -> i64 {
            rows.as_array()
                .unwrap()
                .iter()
                .map(|row| row[field].as_str().unwrap().parse::<i64>().unwrap())
                .sum()
        };
        assert_eq!(
            (sum("messages"), sum("admitted"), sum("refused"), sum("delivered")),
            (turns.len() as i64, 5, 1, 5),
            "{grain}"
        );
        assert_eq!((sum("promptTokens"), sum("completionTokens")), (55, 35), "{grain}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn figures_come_ten_thousand_at_a_time_and_no_more(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let usage = "{ usage(grain: MINUTE, from: \"2020-01-01T00:00:00Z\", until: \"2099-01-01T00:00:00Z\") { messages } }";
    let rows = "INSERT INTO read.usage_minute SELECT '2026-01-01Z'::timestamptz + n * interval '1 minute', $1, '', $2,
        1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 FROM generate_series($3::bigint, $4) AS n";
    for (from, until) in [(1_i64, 10_000_i64), (10_001, 10_001)] {
        let inserted = sqlx::query(rows).bind(uuid::Uuid::nil()).bind(tenant.workspace.uuid());
        inserted.bind(from).bind(until).execute(&platform.pool).await.unwrap();
        if until == 10_000 {
            let data = platform.data(&tenant.token, usage, json!({})).await;
            assert_eq!(data["usage"].as_array().unwrap().len(), 10_000);
        } else {
            assert_eq!(platform.refusal(Some(&tenant.token), usage, json!({})).await, "BAD_INPUT");
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_reader_waits_for_a_position_and_not_for_ever(pool: PgPool) {
    let platform = Platform::with(pool, |config| config.request_timeout = Duration::from_secs(1)).await;
    let tenant = platform.tenant("one").await;
    let bot = platform.bot(&tenant, 1).await;
    for update in 0..8 {
        let turn = platform.message(bot, update, 70 + update, "hello").await;
        // No settling: the answer has to wait for the read model by itself.
        let head = platform.head().await;
        let query = "query q($id: ID!, $at: Position!) { turn(id: $id, minPosition: $at) { phase } people(first: 100, minPosition: $at) { edges { cursor } } }";
        let data = platform
            .data(&tenant.token, query, json!({"id": format!("turn:{turn}"), "at": head.to_string()}))
            .await;
        assert_eq!(data["turn"]["phase"], "RECEIVED");
        assert_eq!(data["people"]["edges"].as_array().unwrap().len() as i64, update + 1);
    }
    let future = "{ bots(minPosition: \"1000000\") { edges { cursor } } }";
    let answer = platform.post(Some(&tenant.token), future, json!({})).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "UNAVAILABLE"));
    assert_eq!(answer.json()["errors"][0]["extensions"]["retryable"], true);
}

/// Counts statements on a table, as the database driver tells them.
struct Statements {
    on: &'static str,
    count: Arc<AtomicUsize>,
}

impl tracing::Subscriber for Statements {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "sqlx::query"
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Summary(String);
        impl tracing::field::Visit for Summary {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "summary" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut summary = Summary(String::new());
        event.record(&mut summary);
        if summary.0.contains(self.on) {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[sqlx::test(migrations = "../migrations")]
async fn a_page_fetches_what_it_points_to_in_one_go(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (tenant, _) = busy(&platform).await;
    let query = "{ turns { edges { node { bot { username } person { messages quota { used } } } } }
        conversations { edges { node { bot { username } person { messages quota { used } } } } } }";
    platform.data(&tenant.token, query, json!({})).await;
    for (on, most) in [
        ("SELECT * FROM bots", 2),
        ("SELECT * FROM people", 2),
        ("SELECT * FROM quotas", 2),
        ("FROM turns", 1),
    ] {
        let count = Arc::new(AtomicUsize::new(0));
        let watching = tracing::subscriber::set_default(Statements { on, count: Arc::clone(&count) });
        platform.data(&tenant.token, query, json!({})).await;
        drop(watching);
        let count = count.load(Ordering::Relaxed);
        assert!((1..=most).contains(&count), "{count} times {on}");
    }
}
