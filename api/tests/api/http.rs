//! GraphQL over HTTP: content types, methods, limits, hostile documents.

use std::{fmt::Write, time::Duration};

use botledger_domain::operator::Role;
use reqwest::header;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Answer, Platform, code_of};

const GRAPHQL: &str = "application/graphql-response+json";
/// What graphql-js 16 asks for.
pub(crate) const INTROSPECTION: &str = "query IntrospectionQuery { __schema { description queryType { name } mutationType { name }
    subscriptionType { name } types { ...FullType } directives { name description isRepeatable locations args { ...InputValue } } } }
    fragment FullType on __Type { kind name description specifiedByURL fields(includeDeprecated: true) { name description
    args { ...InputValue } type { ...TypeRef } isDeprecated deprecationReason } inputFields { ...InputValue }
    interfaces { ...TypeRef } enumValues(includeDeprecated: true) { name description isDeprecated deprecationReason }
    possibleTypes { ...TypeRef } }
    fragment InputValue on __InputValue { name description type { ...TypeRef } defaultValue }
    fragment TypeRef on __Type { kind name ofType { kind name ofType { kind name ofType { kind name ofType { kind name
    ofType { kind name ofType { kind name ofType { kind name ofType { kind name ofType { kind name } } } } } } } } } }";

async fn accepting(platform: &Platform, token: &str, accept: Option<&str>, query: &str) -> Answer {
    platform
        .request(|http, url| {
            let request = http.post(url).bearer_auth(token).json(&json!({"query": query}));
            match accept {
                Some(accept) => request.header(header::ACCEPT, accept),
                None => request,
            }
        })
        .await
}

async fn body(platform: &Platform, kind: &str, body: impl Into<reqwest::Body>) -> Answer {
    platform.request(|http, url| http.post(url).header(header::CONTENT_TYPE, kind).body(body)).await
}

#[sqlx::test(migrations = "../migrations")]
async fn the_answer_comes_as_the_client_takes_it(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let ask = async |accept, query| accepting(&platform, &tenant.token, accept, query).await;
    for (accept, kind) in [
        (None, "application/json; charset=utf-8"),
        (Some("*/*"), "application/json; charset=utf-8"),
        (Some("application/json"), "application/json; charset=utf-8"),
        (
            Some("application/graphql-response+json, application/json;q=0.9"),
            "application/graphql-response+json; charset=utf-8",
        ),
    ] {
        let good = ask(accept, "{ platform { head } }").await;
        assert_eq!((good.status.as_u16(), good.header("content-type")), (200, kind));
        assert!(good.json()["data"]["platform"]["head"].is_string());
    }
    // Parse, validation and choice of the operation: the request is at fault.
    for query in ["{", "{ nothing }", "query a { me { id } } query b { me { id } }", "{ bot { id } }"] {
        let modern = ask(Some(GRAPHQL), query).await;
        assert_eq!(modern.status, 400, "{query}");
        assert!(modern.json().get("data").is_none_or(Value::is_null));
        assert_eq!(modern.code(), "BAD_INPUT");
        let plain = ask(Some("application/json"), query).await;
        assert_eq!((plain.status.as_u16(), plain.code().as_str()), (200, "BAD_INPUT"));
    }
    // A field that fails is an answer.
    let field = ask(Some(GRAPHQL), "{ bot(id: \"turn:1\") { id } platform { version } }").await;
    assert_eq!((field.status.as_u16(), field.code().as_str()), (200, "BAD_INPUT"));
    assert!(field.json()["data"]["platform"]["version"].is_string());
    assert_eq!(ask(Some("text/html"), "{ me { id } }").await.status, 406);
}

#[sqlx::test(migrations = "../migrations")]
async fn only_json_is_read_and_only_whole(pool: PgPool) {
    let platform = Platform::open(pool).await;
    for kind in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/graphql", ""]
    {
        let answer = body(&platform, kind, "{\"query\":\"{ __typename }\"}").await;
        assert_eq!(answer.status, 415, "{kind}");
    }
    let good = body(&platform, "application/json; charset=utf-8", "{\"query\":\"{ __typename }\"}").await;
    assert_eq!(good.json()["data"]["__typename"], "Query");
    for text in [
        "",
        "{",
        "[]",
        "[{\"query\":\"{ __typename }\"}]",
        "{\"query\":1}",
        "{\"query\":\"{a}\",\"variables\":[]}",
        "null",
    ] {
        let answer = body(&platform, "application/json", text).await;
        assert_eq!(answer.status, 400, "{text}");
        assert_eq!(answer.json()["code"], "BAD_INPUT");
    }
    let missing = body(&platform, "application/json", "{}").await;
    assert_eq!(missing.status, 400, "query is missing");
    let large = body(&platform, "application/json", "x".repeat(64 * 1_024 + 1)).await;
    assert_eq!(large.status, 413);
    let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 4_096]));
    let request = platform.http.post(platform.url()).header(header::CONTENT_TYPE, "application/json");
    // The server may hang up before all is sent: that is as good as the status.
    match request.body(reqwest::Body::wrap_stream(endless)).send().await {
        Ok(response) => assert_eq!(response.status(), 413),
        Err(error) => assert!(error.is_request() || error.is_body(), "{error}"),
    }
    let deep = format!(
        "{{\"query\":\"{{ __typename }}\",\"variables\":{}1{}}}",
        "{\"a\":".repeat(2_000),
        "}".repeat(2_000)
    );
    assert_eq!(body(&platform, "application/json", deep).await.status, 400);
    let nested = format!(
        "{{\"query\":\"{{ __typename }}\",\"variables\":{}1{}}}",
        "{\"a\":".repeat(30),
        "}".repeat(30)
    );
    assert_eq!(body(&platform, "application/json", nested).await.code(), "BAD_INPUT");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_get_asks_and_never_changes(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let get = async |query: &str, more: &[(&str, &str)]| {
        let mut parameters = vec![("query", query)];
        parameters.extend(more);
        platform
            .request(|http, url| {
                let url = reqwest::Url::parse_with_params(&url, &parameters).unwrap();
                http.get(url).bearer_auth(&tenant.token).header(header::ACCEPT, GRAPHQL)
            })
            .await
    };
    let two = "query a { me { login } } query b { platform { head } }";
    assert!(get(two, &[("operationName", "b")]).await.json()["data"]["platform"]["head"].is_string());
    let variables = format!("{{\"id\":\"operator:{}\"}}", tenant.owner);
    platform.settle().await;
    let node = get("query q($id: ID!) { node(id: $id) { id } }", &[("variables", &variables)]).await;
    assert_eq!(node.json()["data"]["node"]["id"], format!("operator:{}", tenant.owner));
    assert_eq!(get("{ __typename }", &[("variables", "nonsense")]).await.status, 400);
    for query in [
        "mutation { sessionLogout(input: {refreshToken: \"x\"}) { ended } }",
        "subscription { eventRecorded { position } }",
    ] {
        let refused = get(query, &[]).await;
        assert_eq!(
            (refused.status.as_u16(), refused.header("allow"), refused.code().as_str()),
            (405, "POST", "BAD_INPUT")
        );
    }
    let bare = platform.request(|http, url| http.get(format!("{url}?query={{__typename}}"))).await;
    assert_eq!(bare.status, 401, "a page elsewhere could have sent it");
    let put = platform.request(|http, url| http.put(url)).await;
    assert_eq!((put.status.as_u16(), put.header("allow")), (405, "GET, POST"));
    let by_stream = platform
        .request(|http, url| {
            let query = [("query", "mutation { sessionLogout(input: {refreshToken: \"x\"}) { ended } }")];
            let url = reqwest::Url::parse_with_params(&url, query).unwrap();
            http.get(url).bearer_auth(&tenant.token).header(header::ACCEPT, "text/event-stream")
        })
        .await;
    assert_eq!(by_stream.status, 405, "not as a stream either");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_slow_body_is_not_waited_for(pool: PgPool) {
    let platform = Platform::with(pool, |config| config.request_timeout = Duration::from_millis(300)).await;
    let mut stalled = tokio::net::TcpStream::connect(platform.address).await.unwrap();
    let head =
        "POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    stalled.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stalled.read_exact(&mut answer).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 408");
}

/// Documents that kill or burn a server without a guard.
fn hostile() -> Vec<(&'static str, String)> {
    let mut bomb = String::from("{ ...f0 }");
    for level in 0..8 {
        write!(bomb, " fragment f{level} on Query {{ {} }}", format!("...f{} ", level + 1).repeat(10))
            .unwrap();
    }
    bomb.push_str(" fragment f8 on Query { __typename }");
    let mut small_bomb = String::from("{ ...f0 }");
    for level in 0..9 {
        write!(small_bomb, " fragment f{level} on Query {{ ...f{0} ...f{0} }}", level + 1).unwrap();
    }
    small_bomb.push_str(" fragment f9 on Query { __typename }");
    let aliases: String = (0..3_000).fold(String::new(), |mut text, number| {
        write!(text, "a{number}:__typename ").unwrap();
        text
    });
    vec![
        ("nested lists", format!("{{ a(x: {}1{}) }}", "[".repeat(2_000), "]".repeat(2_000))),
        ("nested objects", format!("{{ a(x: {}1{}) }}", "{a:".repeat(2_000), "}".repeat(2_000))),
        (
            "a nested default",
            format!("query($x: [Int] = {}1{}) {{ a }}", "[".repeat(2_000), "]".repeat(2_000)),
        ),
        ("open brackets", format!("{{ a(x: {}", "[".repeat(2_000))),
        ("nested fields", format!("{{ {}a{} }}", "a {".repeat(2_000), "}".repeat(2_000))),
        ("a nested type", format!("query($x: {}Int{}) {{ a }}", "[".repeat(2_000), "]".repeat(2_000))),
        ("a fragment bomb", bomb),
        ("a bomb within the limits of spreads", small_bomb),
        (
            "a cycle of fragments",
            "{ ...a } fragment a on Query { ...b } fragment b on Query { ...a }".to_owned(),
        ),
        ("a cycle that nothing uses", "{ __typename } fragment a on Query { ...a }".to_owned()),
        ("3,000 aliases", format!("{{ {aliases} }}")),
        ("600 aliases", format!("{{ {} }}", "a:__typename ".repeat(400))),
        ("directives", format!("{{ __typename {} }}", "@include(if: true) ".repeat(500))),
        ("a long name", format!("{{ {} }}", "x".repeat(10_000))),
        ("a long alias", format!("{{ {}: __typename }}", "x".repeat(10_000))),
        (
            "wrong fields",
            format!("{{ {} }}", (0..60).fold(String::new(), |text, n| text + &format!("wrong{n} "))),
        ),
        ("many operations", "query a{__typename} ".repeat(50)),
        ("no end", format!("{{ a(x: \"\"\"{}", "x".repeat(5_000))),
        ("other letters", "{ \u{0}\u{feff}\u{1f600} }".to_owned()),
    ]
}

#[sqlx::test(migrations = "../migrations")]
async fn hostile_documents_are_refused_in_few_words_and_the_server_lives(pool: PgPool) {
    let platform = Platform::open(pool).await;
    for (what, query) in hostile() {
        let answer = platform.post(None, &query, json!({})).await;
        let json = answer.json();
        assert_eq!(code_of(&json), "BAD_INPUT", "{what}");
        assert!(answer.text.len() < 5 * 500, "{what}: {} bytes", answer.text.len());
        let errors = json["errors"].as_array().unwrap();
        assert!(errors.len() <= 5, "{what}");
        for error in errors {
            assert!(error["message"].as_str().unwrap().chars().count() <= 200, "{what}");
        }
    }
    let deep = (0..60).fold(json!(1), |inner, _| json!({"a": inner}));
    assert_eq!(platform.refusal(None, "{ __typename }", json!({"a": deep})).await, "BAD_INPUT");
    let alive = platform.post(None, "{ __typename }", json!({})).await;
    assert_eq!(alive.json()["data"]["__typename"], "Query");
}

#[sqlx::test(migrations = "../migrations")]
async fn errors_repeat_neither_the_document_nor_its_values(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let canary = "canary7421";
    for (query, variables) in [
        (format!("{{ {canary} }}"), json!({})),
        (format!("{{ me {{ {canary} }} }}"), json!({})),
        (format!("{{ me({canary}: 1) {{ id }} }}"), json!({})),
        (format!("{{ me {{ id }} ...{canary} }}"), json!({})),
        (format!("query q($x: {canary}) {{ me {{ id }} }}"), json!({})),
        (format!("query q(${canary}: Int) {{ me {{ id }} }}"), json!({})),
        (format!("{{ bots(first: ${canary}) {{ edges {{ cursor }} }} }}"), json!({})),
        (format!("{{ bots(first: \"{canary}\") {{ edges {{ cursor }} }} }}"), json!({})),
        (format!("{{ me {{ id @{canary} }} }}"), json!({})),
        (format!("{{ bot(id: \"{canary}\") {{ id }} }}"), json!({})),
        (format!("{{ node(id: \"{canary}\") {{ id }} }}"), json!({})),
        (format!("{{ bots(after: \"{canary}\") {{ edges {{ cursor }} }} }}"), json!({})),
        (format!("{{ {canary}"), json!({})),
        (format!("{{ usage(grain: {canary}, from: \"x\", until: \"y\") {{ bucket }} }}"), json!({})),
        (
            "query q($at: DateTime!) { usage(grain: DAY, from: $at, until: $at) { bucket } }".to_owned(),
            json!({"at": canary}),
        ),
        ("query q($n: Int) { bots(first: $n) { edges { cursor } } }".to_owned(), json!({"n": canary})),
        ("query q($p: Position!) { event(position: $p) { position } }".to_owned(), json!({"p": canary})),
        ("query q($p: Position!) { event(position: $p) { position } }".to_owned(), json!({"p": [canary]})),
        (
            "mutation m($i: SessionLoginInput!) { sessionLogin(input: $i) { userErrors { code } } }"
                .to_owned(),
            json!({"i": {"login": "a", "password": [canary]}}),
        ),
        (
            "mutation m($i: SessionLoginInput!) { sessionLogin(input: $i) { userErrors { code } } }"
                .to_owned(),
            json!({"i": {"login": "a", "password": "b", canary: 1}}),
        ),
        (
            "mutation m($i: OperatorInviteInput!) { operatorInvite(input: $i) { link } }".to_owned(),
            json!({"i": {"login": "abc", "role": canary}}),
        ),
    ] {
        let answer = platform.post(Some(&tenant.token), &query, variables).await;
        assert_eq!(answer.code(), "BAD_INPUT", "{query}");
        assert!(!answer.text.contains(canary), "{query} gave {}", answer.text);
    }
    // What the schema calls itself may be said: people have to find their mistake.
    let helpful = platform.post(Some(&tenant.token), "{ me { bots } }", json!({})).await;
    assert!(helpful.text.contains("Operator"), "{}", helpful.text);
}

#[sqlx::test(migrations = "../migrations")]
async fn every_error_says_its_code_whether_to_repeat_and_the_request(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    for (token, query) in [
        (None, "{ me { id } }"),
        (None, "{"),
        (None, "{ nothing }"),
        (Some(tenant.token.as_str()), "{ bot(id: \"?\") { id } }"),
        (Some(tenant.token.as_str()), "{ bots(first: 100000) { edges { cursor } } }"),
    ] {
        let json = platform.post(token, query, json!({})).await.json();
        for error in json["errors"].as_array().unwrap() {
            let extensions = &error["extensions"];
            assert!(extensions["code"].is_string() && extensions["retryable"].is_boolean(), "{error}");
            assert!(uuid::Uuid::try_parse(extensions["requestId"].as_str().unwrap()).is_ok());
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn the_schema_is_shown_to_who_builds_on_it(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    for role in [Role::Owner, Role::Admin, Role::Auditor] {
        let token = platform.token_as(&tenant, role).await;
        let data = platform.data(&token, INTROSPECTION, json!({})).await;
        assert!(data["__schema"]["types"].as_array().unwrap().len() > 50);
    }
    for role in [Role::Moderator, Role::Analyst, Role::Member] {
        let token = platform.token_as(&tenant, role).await;
        assert_eq!(platform.refusal(Some(&token), INTROSPECTION, json!({})).await, "FORBIDDEN", "{role:?}");
    }
    for query in [
        INTROSPECTION,
        "{ __type(name: \"Bot\") { name } }",
        "{ a: __schema { types { name } } }",
        "{ ...f } fragment f on Query { __schema { types { name } } }",
    ] {
        assert_eq!(platform.refusal(None, query, json!({})).await, "UNAUTHENTICATED");
    }
    // Lists of lists of lists: a small question with an endless answer.
    for deep in [
        "{ __schema { types { fields { type { fields { type { fields { name } } } } } } } }",
        "{ __schema { types { ...t } } } fragment t on __Type { fields { type { ...u } } }
         fragment u on __Type { possibleTypes { interfaces { name } } }",
    ] {
        assert_eq!(platform.refusal(Some(&tenant.token), deep, json!({})).await, "BAD_INPUT");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn costly_queries_are_refused_before_they_run(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let page = "turns(first: 200) { edges { cursor node { id botId personId conversationId updateId ask command phase open session
        refusalKind refusal failure provider model reservedTokens promptTokens completionTokens estimated finish latencyMs
        messageIds sentAt receivedAt decidedAt answeredAt endedAt position } } }";
    platform.data(&tenant.token, &format!("{{ {page} }}"), json!({})).await;
    let twice = format!("{{ a: {page} b: {page} }}");
    assert_eq!(platform.refusal(Some(&tenant.token), &twice, json!({})).await, "BAD_INPUT");
    // A count costs what many fields cost, and a search what it opens: two of them are too many.
    let counted = |first| format!("{{ turns(first: {first}) {{ totalCount nodes {{ phase }} }} }}");
    platform.data(&tenant.token, &counted(100), json!({})).await;
    assert_eq!(platform.refusal(Some(&tenant.token), &counted(200), json!({})).await, "BAD_INPUT");
    let search = "exchanges(first: 50, search: \"word\") { nodes { prompt } }";
    let conversation = "conversation(id: \"conversation:01900000-0000-7000-8000-000000000000\")";
    let searches = |more: &str| format!("{{ {conversation} {{ a: {search} {more} }} }}");
    platform.data(&tenant.token, &searches(""), json!({})).await;
    let twice = searches(&format!("b: {search}"));
    assert_eq!(platform.refusal(Some(&tenant.token), &twice, json!({})).await, "BAD_INPUT");
    let sums =
        "usage(grain: DAY, from: \"2026-01-01T00:00:00Z\", until: \"2027-01-01T00:00:00Z\") { messages }";
    let many = (0..10).fold(String::new(), |text, n| text + &format!("u{n}: {sums} "));
    assert_eq!(platform.refusal(Some(&tenant.token), &format!("{{ {many} }}"), json!({})).await, "BAD_INPUT");
    let nested = "{ conversations(first: 200) { edges { node { exchanges(first: 200) { edges { node { prompt } } } } } } }";
    assert_eq!(platform.refusal(Some(&tenant.token), nested, json!({})).await, "BAD_INPUT");
}

#[sqlx::test(migrations = "../migrations")]
async fn what_failed_is_null_and_fields_come_as_they_were_asked_for(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    platform.bot(&tenant, 1).await;
    platform.settle().await;
    let analyst = platform.token_as(&tenant, Role::Analyst).await;
    let data = async |token: &str, query: &str| {
        let answer = platform.post(Some(token), query, json!({})).await;
        let (from, until) = (answer.text.find("{\"data\":").unwrap() + 8, answer.text.find(",\"errors\""));
        answer.text[from..until.unwrap_or(answer.text.len() - 1)].to_owned()
    };
    // A field that may be null is, and its neighbours are there, in order.
    let partly = "{ platform { version } bot(id: \"turn:1\") { id } me { role } }";
    let version = env!("CARGO_PKG_VERSION");
    let expected =
        format!("{{\"platform\":{{\"version\":\"{version}\"}},\"bot\":null,\"me\":{{\"role\":\"OWNER\"}}}}");
    assert_eq!(data(&tenant.token, partly).await, expected);
    assert_eq!(data(&tenant.token, "{ a: bot(id: \"turn:1\") { id } }").await, "{\"a\":null}");
    // One that must not be null takes everything up to the next that may.
    assert_eq!(data(&tenant.token, "{ me { login } bots(first: 999) { nodes { id } } }").await, "null");
    assert_eq!(data(&analyst, "{ me { role } bots { nodes { id } } }").await, "null");
    let ordered = "query($yes: Boolean = true) { bots { ...b nodes { id @skip(if: $yes) username } } }
        fragment b on BotConnection { pageInfo { hasNextPage } edges { node { mode } } }";
    let expected = "{\"bots\":{\"pageInfo\":{\"hasNextPage\":false},\"edges\":[{\"node\":{\"mode\":\"POLLING\"}}],\
                    \"nodes\":[{\"username\":\"number_1_bot\"}]}}";
    assert_eq!(data(&tenant.token, ordered).await, expected);
    // A request that is at fault has no place in the document to point to.
    let refused = platform.post(None, "{ __schema { types { name } } }", json!({})).await.json();
    assert!(refused["errors"][0].get("locations").is_none(), "{refused}");
    let guarded = platform.post(None, "{ me { id } }", json!({})).await.json();
    assert_eq!(guarded["errors"][0]["locations"], json!([{"line": 1, "column": 3}]), "{guarded}");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_crowd_is_told_to_come_back(pool: PgPool) {
    let platform = Platform::with(pool, |config| config.max_in_flight = 0).await;
    let answer = platform.post(None, "{ __typename }", json!({})).await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "1"));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_simulated_platform_says_so_and_pages_load_nothing_from_elsewhere(pool: PgPool) {
    let platform =
        Platform::with(pool, |config| config.simulated = vec!["telegram".to_owned(), "model".to_owned()])
            .await;
    let answer = platform.post(None, "{ __typename }", json!({})).await;
    assert_eq!(answer.header("x-botledger-simulated"), "telegram, model");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    for path in ["/", "/activate"] {
        let page = platform.http.get(format!("http://{}{path}", platform.address)).send().await.unwrap();
        assert_eq!(page.status(), 200);
        assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
        let html = page.text().await.unwrap();
        assert!(!html.contains("//cdn") && !html.contains("src=\"http"), "{html}");
    }
    let lost = platform.http.get(format!("http://{}/nowhere", platform.address)).send().await.unwrap();
    assert_eq!(lost.status(), 404);
}
