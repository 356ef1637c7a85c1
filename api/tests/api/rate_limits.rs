//! Who asks too often is told so, and when to come back; what is left is told with every answer.

use botledger_commands::RateDefaults;
use botledger_domain::{
    operator::Role,
    rate_limit::{RateLimit, RateRule},
};
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Answer, Platform, Tenant, code_of};

fn slowly(burst: u32) -> RateRule {
    RateRule::requests(RateLimit { burst, per_minute: 1 })
}

/// Behind a proxy that is believed.
async fn paced(pool: PgPool, rates: RateDefaults) -> Platform {
    Platform::paced(pool, rates, |config| config.trusted_proxies = vec!["127.0.0.1".parse().unwrap()]).await
}

async fn from(platform: &Platform, address: &str, method: Method, path: &str) -> Answer {
    platform
        .request(|http, url| {
            let url = url.replace("/graphql", path);
            http.request(method, url)
                .header("x-forwarded-for", address)
                .json(&json!({"query": "{ __typename }"}))
        })
        .await
}

fn is_too_many(answer: &Answer, detail: &str) {
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{}", answer.text);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    let problem = answer.json();
    assert_eq!((&problem["code"], &problem["status"]), (&json!("RATE_LIMITED"), &json!(429)));
    assert_eq!(problem["detail"], detail);
    let wait: u64 = answer.header(header::RETRY_AFTER.as_str()).parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
}

#[sqlx::test(migrations = "../migrations")]
async fn an_address_that_asks_too_often_is_turned_away_at_the_door(pool: PgPool) {
    let platform = paced(pool, RateDefaults { ip: slowly(4), ..RateDefaults::default() }).await;
    let busy = "198.51.100.1";
    for (left, (method, path)) in [
        (3, (Method::POST, "/graphql")),
        (2, (Method::GET, "/")),
        (1, (Method::GET, "/nowhere")),
        // A body that nobody would read.
        (0, (Method::PUT, "/graphql")),
    ] {
        let answer = from(&platform, busy, method, path).await;
        assert_ne!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer.header("ratelimit-limit"), "4");
        assert_eq!(answer.header("ratelimit-remaining"), left.to_string());
        let reset: u64 = answer.header("ratelimit-reset").parse().unwrap();
        assert!(reset > 60 * (3 - left) && reset <= 60 * (4 - left), "{reset}");
        assert_eq!(answer.header("ratelimit"), format!("\"ip\";r={left};t={reset}"));
        assert_eq!(answer.header("ratelimit-policy"), "\"ip\";q=4;w=240");
    }
    let refused = from(&platform, busy, Method::POST, "/graphql").await;
    is_too_many(&refused, "too many requests from this address; wait a while");
    assert_eq!(refused.header("ratelimit-remaining"), "0");
    // A socket is a request as well, and a network of one household is one address.
    let socket = platform
        .socket_with(&[("sec-websocket-protocol", "graphql-transport-ws"), ("x-forwarded-for", busy)])
        .await;
    assert!(socket.is_err());
    for address in ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4"] {
        assert_eq!(from(&platform, address, Method::GET, "/").await.status, StatusCode::OK);
    }
    is_too_many(
        &from(&platform, "2001:db8::5", Method::GET, "/").await,
        "too many requests from this address; wait a while",
    );
    assert_eq!(from(&platform, "2001:db8:0:1::1", Method::GET, "/").await.status, StatusCode::OK);
    platform.pass(60);
    assert_eq!(from(&platform, busy, Method::GET, "/").await.status, StatusCode::OK);
    is_too_many(
        &from(&platform, busy, Method::GET, "/").await,
        "too many requests from this address; wait a while",
    );
}

#[sqlx::test(migrations = "../migrations")]
async fn operators_share_what_their_workspace_may_ask(pool: PgPool) {
    let rates =
        RateDefaults { ip: slowly(100), operator: slowly(3), api: slowly(5), ..RateDefaults::default() };
    let platform = paced(pool, rates).await;
    let (tenant, other) = (platform.tenant("one").await, platform.tenant("other").await);
    let colleague = platform.token_as(&tenant, Role::Analyst).await;
    let ask = async |token: &str| platform.post(Some(token), "{ me { login } }", json!({})).await;
    for left in [2, 1, 0] {
        let answer = ask(&tenant.token).await;
        assert_eq!(
            (answer.status, answer.header("ratelimit-remaining")),
            (StatusCode::OK, left.to_string().as_str())
        );
        assert_eq!(answer.header("ratelimit-limit"), "3");
        assert!(answer.header("ratelimit").contains("\"operator\";r="), "{:?}", answer.headers);
        assert!(
            answer
                .header("ratelimit-policy")
                .starts_with("\"ip\";q=100;w=6000, \"operator\";q=3;w=180, \"api\"")
        );
    }
    is_too_many(&ask(&tenant.token).await, "too many requests by this operator; wait a while");
    assert_eq!(ask(&colleague).await.status, StatusCode::OK);
    assert_eq!(ask(&colleague).await.status, StatusCode::OK);
    let third = platform.token_as(&tenant, Role::Auditor).await;
    is_too_many(&ask(&third).await, "too many requests in this workspace; wait a while");
    assert_eq!(ask(&other.token).await.status, StatusCode::OK);
    // A token that is no good is told so, however often it comes.
    assert_eq!(ask("nonsense").await.status, StatusCode::UNAUTHORIZED);
}

#[sqlx::test(migrations = "../migrations")]
async fn operations_of_a_socket_count_like_requests(pool: PgPool) {
    let platform = paced(pool, RateDefaults { operator: slowly(1), ..RateDefaults::default() }).await;
    let tenant = platform.tenant("one").await;
    let mut socket = platform.introduced(&tenant.token).await;
    socket.subscribe("1", "{ me { login } }", json!({})).await;
    assert_eq!(socket.next().await["type"], "next");
    assert_eq!(socket.next().await["type"], "complete");
    socket.subscribe("2", "{ me { login } }", json!({})).await;
    let refused = socket.next().await;
    assert_eq!(refused["type"], "error");
    let error = &refused["payload"][0];
    assert_eq!(error["extensions"]["code"], "RATE_LIMITED");
    assert_eq!(error["extensions"]["retryable"], true);
    let wait = error["extensions"]["retryAfterMs"].as_u64().unwrap();
    assert!((1..=60_000).contains(&wait), "{wait}");
    platform.pass(60);
    socket.subscribe("2", "{ me { login } }", json!({})).await;
    assert_eq!(socket.next().await["type"], "next");
}

const SET: &str = "mutation m($i: RateOverrideSetInput!) { rateOverrideSet(input: $i) { position
    rateOverride { kind personId botId conversationId operatorId name requests { burst perMinute } tokens { burst } parallel
        reason inForce expiresAt changedBy } userErrors { code field } } }";
const REMOVE: &str = "mutation m($i: RateOverrideRemoveInput!) { rateOverrideRemove(input: $i) { position
    rateOverride { inForce reason expiresAt } userErrors { code } } }";
const LOOK: &str =
    "query q($s: RateSubjectInput!) { rateLimits(subject: $s) { unit limit remaining perMinute resetsAt } }";

async fn change(platform: &Platform, tenant: &Tenant, mutation: &str, input: Value) -> Value {
    let mut data = platform.data(&tenant.token, mutation, json!({"i": input})).await;
    data.as_object_mut().unwrap().values_mut().next().unwrap().take()
}

async fn look(platform: &Platform, tenant: &Tenant, subject: &Value) -> Value {
    platform.data(&tenant.token, LOOK, json!({"s": subject})).await["rateLimits"].take()
}

#[sqlx::test(migrations = "../migrations")]
async fn an_operator_sets_the_pace_of_a_subject_and_sees_it(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let (bot, fence) = platform.bot(&tenant, 1).await;
    let turn = platform.message((bot, fence), 1, 77, "hello").await;
    let person = platform.person_of(turn).await;
    let subject = json!({"kind": "USER", "id": format!("person:{person}"), "botId": format!("bot:{bot}")});
    let before = look(&platform, &tenant, &subject).await;
    assert_eq!(before[0]["limit"], "1000");
    assert_eq!((&before[0]["unit"], &before[0]["remaining"]), (&json!("REQUESTS"), &json!("1000")));

    let end = "2999-01-01T00:00:00Z";
    let input = json!({"subject": subject, "requests": {"burst": 7, "perMinute": 3}, "tokens": {"burst": 900, "perMinute": 60},
        "parallel": 2, "reason": "writes a book", "expiresAt": end});
    let set = change(&platform, &tenant, SET, input.clone()).await;
    assert_eq!(set["userErrors"], json!([]));
    let now = &set["rateOverride"];
    assert_eq!(
        (&now["kind"], &now["personId"], &now["botId"]),
        (&json!("USER"), &subject["id"], &subject["botId"])
    );
    assert_eq!(now["requests"], json!({"burst": 7, "perMinute": 3}));
    assert_eq!((&now["parallel"], &now["tokens"]["burst"]), (&json!(2), &json!(900)));
    assert_eq!((&now["inForce"], &now["reason"]), (&json!(true), &json!("writes a book")));
    assert_eq!(now["changedBy"], format!("operator:{}", tenant.owner));
    assert!([&now["conversationId"], &now["operatorId"], &now["name"]].iter().all(|field| field.is_null()));
    let states = look(&platform, &tenant, &subject).await;
    let told: Vec<_> =
        states.as_array().unwrap().iter().map(|s| (s["unit"].clone(), s["limit"].clone())).collect();
    assert_eq!(
        told,
        [("REQUESTS", "7"), ("TOKENS", "900"), ("PARALLEL", "2")]
            .map(|(unit, limit)| (json!(unit), json!(limit)))
    );
    // The gate goes by it at once.
    platform.admit(fence, turn).await;
    assert_eq!(look(&platform, &tenant, &subject).await[0]["remaining"], "6");

    let again = change(&platform, &tenant, SET, input).await;
    assert_eq!(again["position"], "0", "it was so already");
    let middle = platform.settle().await;
    let gone = json!({"subject": subject, "reason": "the book is out"});
    let removed = change(&platform, &tenant, REMOVE, gone).await;
    assert_eq!(
        (&removed["rateOverride"]["inForce"], &removed["rateOverride"]["expiresAt"]),
        (&json!(false), &Value::Null)
    );
    assert_eq!(look(&platform, &tenant, &subject).await[0]["limit"], "1000");

    platform.settle().await;
    let query = "query q($s: RateSubjectInput!, $p: Position!) {
        then: rateOverride(subject: $s, asOf: {position: $p}) { reason inForce }
        never: rateOverride(subject: $s, asOf: {position: \"1\"}) { reason }
        now: rateOverride(subject: $s) { reason }
        standing: rateOverrides { edges { node { reason } } }
        all: rateOverrides(inForce: false) { edges { node { reason } } } }";
    let data = platform.data(&tenant.token, query, json!({"s": subject, "p": middle.to_string()})).await;
    assert_eq!(data["then"], json!({"reason": "writes a book", "inForce": true}));
    assert_eq!((&data["never"], &data["now"]["reason"]), (&Value::Null, &json!("the book is out")));
    assert_eq!(data["standing"]["edges"], json!([]));
    assert_eq!(data["all"]["edges"].as_array().unwrap().len(), 1);
}

#[sqlx::test(migrations = "../migrations")]
async fn what_makes_no_sense_is_refused_and_others_subjects_do_not_exist(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (tenant, other) = (platform.tenant("one").await, platform.tenant("other").await);
    let (foreign, _) = platform.bot(&other, 2).await;
    let workspace = json!({"kind": "WORKSPACE"});
    let wrong = async |input: Value| {
        let payload = change(&platform, &tenant, SET, input).await;
        assert!(payload["position"].is_null(), "{payload}");
        payload["userErrors"][0]["code"].as_str().unwrap().to_owned()
    };
    let some = json!({"burst": 1, "perMinute": 1});
    assert_eq!(wrong(json!({"subject": workspace, "reason": "x"})).await, "RATE_OVERRIDE_EMPTY");
    let none = json!({"burst": 0, "perMinute": 1});
    assert_eq!(
        wrong(json!({"subject": workspace, "requests": none, "reason": "x"})).await,
        "RATE_OVERRIDE_OUT_OF_RANGE"
    );
    let past =
        json!({"subject": workspace, "requests": some, "reason": "x", "expiresAt": "2020-01-01T00:00:00Z"});
    assert_eq!(wrong(past).await, "RATE_OVERRIDE_ENDS_IN_THE_PAST");
    assert_eq!(wrong(json!({"subject": workspace, "requests": some, "reason": " "})).await, "BAD_INPUT");
    let address = json!({"kind": "IP", "id": "192.0.2.1"});
    assert_eq!(
        wrong(json!({"subject": address, "requests": some, "reason": "x"})).await,
        "RATE_OVERRIDE_OF_AN_ADDRESS"
    );
    assert_eq!(look(&platform, &tenant, &address).await, json!([]), "addresses may be looked at");

    let bots = json!({"kind": "BOT", "id": format!("bot:{foreign}")});
    assert_eq!(look(&platform, &tenant, &bots).await, Value::Null);
    let input = json!({"i": {"subject": bots, "requests": some, "reason": "x"}});
    assert_eq!(platform.refusal(Some(&tenant.token), SET, input).await, "NOT_FOUND");
    let theirs = json!({"kind": "OPERATOR", "id": format!("operator:{}", other.owner)});
    assert_eq!(look(&platform, &tenant, &theirs).await, Value::Null);
    for incomplete in [
        json!({"kind": "USER", "id": "person:0190ffff-0000-7000-8000-000000000000"}),
        json!({"kind": "BOT"}),
        json!({"kind": "IP", "id": "here"}),
        json!({"kind": "TEAM", "id": "a b"}),
    ] {
        let code = platform.refusal(Some(&tenant.token), LOOK, json!({"s": incomplete})).await;
        assert_eq!(code, "BAD_INPUT", "{incomplete}");
    }
    // What the other workspace says of itself is nobody else's.
    change(&platform, &other, SET, json!({"subject": workspace, "requests": some, "reason": "x"})).await;
    platform.settle().await;
    let data =
        platform.data(&tenant.token, "{ rateOverrides { edges { node { reason } } } }", json!({})).await;
    assert_eq!(data["rateOverrides"]["edges"], json!([]));
    assert_eq!(look(&platform, &tenant, &workspace).await, json!([]));
    assert_eq!(look(&platform, &other, &workspace).await[0]["limit"], "1");
    let read_only = platform.token_as(&tenant, Role::Auditor).await;
    let answer = platform.post(
        Some(&read_only),
        SET,
        json!({"i": {"subject": workspace, "requests": some, "reason": "x"}}),
    );
    assert_eq!(code_of(&answer.await.json()), "FORBIDDEN");
}
