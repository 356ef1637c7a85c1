//! Getting in, staying in, getting out.

use botledger_commands::OneTimeSecret;
use botledger_domain::{
    PlanName,
    operator::Role,
    quota::{Period, PlanTerms},
};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Platform, bot_token, system};

const ACTIVATE: &str = "mutation m($i: SessionActivateInput!) { sessionActivate(input: $i) {
    session { accessToken accessExpiresAt refreshToken refreshExpiresAt operatorId login role } userErrors { code message field } } }";
const LOGIN: &str = "mutation m($i: SessionLoginInput!) { sessionLogin(input: $i) {
    session { accessToken refreshToken login role } userErrors { code } } }";
const REFRESH: &str = "mutation m($i: SessionTokenInput!) { sessionRefresh(input: $i) {
    session { accessToken refreshToken } userErrors { code } } }";
const LOGOUT: &str = "mutation m($i: SessionTokenInput!) { sessionLogout(input: $i) { ended } }";
const PASSWORD: &str = "correct horse battery staple";

async fn open(platform: &Platform, query: &str, input: Value) -> Value {
    let mut answer = platform.post(None, query, json!({"i": input})).await.json();
    assert!(answer.get("errors").is_none(), "{answer}");
    answer["data"].as_object_mut().unwrap().values_mut().next().unwrap().take()
}

async fn refresh(platform: &Platform, token: &Value) -> Value {
    open(platform, REFRESH, json!({"refreshToken": token})).await
}

async fn first_link(platform: &Platform) -> OneTimeSecret {
    let terms = PlanTerms::tokens(1_000, Period::Day);
    let plan = PlanName::parse("free").unwrap();
    platform.app.operators.bootstrap_owner(&system(), "home", plan, terms).await.unwrap().unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn from_the_first_link_to_the_logout(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let secret = first_link(&platform).await;
    let link = botledger_api::activation_link("https://bots.example.org/", &secret);
    let (page, secret) = link.split_once('#').unwrap();
    assert_eq!(page, "https://bots.example.org/activate");

    let weak = open(&platform, ACTIVATE, json!({"secret": secret, "password": "short"})).await;
    assert!(weak["session"].is_null() && weak["userErrors"][0]["code"].is_string(), "{weak}");
    let wrong = open(&platform, ACTIVATE, json!({"secret": "nonsense", "password": PASSWORD})).await;
    assert!(wrong["session"].is_null(), "{wrong}");
    let activated = open(&platform, ACTIVATE, json!({"secret": secret, "password": PASSWORD})).await;
    let session = &activated["session"];
    assert_eq!((&session["login"], &session["role"]), (&json!("owner"), &json!("OWNER")), "{activated}");
    let again = open(&platform, ACTIVATE, json!({"secret": secret, "password": PASSWORD})).await;
    assert!(again["session"].is_null(), "the link is good once");

    let access = session["accessToken"].as_str().unwrap();
    platform.settle().await;
    let me = platform.data(access, "{ me { id login role status } }", json!({})).await;
    assert_eq!(me["me"]["login"], "owner");
    assert_eq!(me["me"]["id"], session["operatorId"]);

    // Rotation: the new token works, the old one ends all of them.
    let second = refresh(&platform, &session["refreshToken"]).await;
    let third = refresh(&platform, &second["session"]["refreshToken"]).await;
    assert!(third["session"]["refreshToken"].is_string(), "{third}");
    // An answer may be lost on its way: for a moment the old token is good once more.
    assert!(refresh(&platform, &second["session"]["refreshToken"]).await["session"].is_object());
    platform.pass(60);
    let reused = refresh(&platform, &session["refreshToken"]).await;
    assert!(reused["session"].is_null(), "{reused}");
    let revoked = refresh(&platform, &third["session"]["refreshToken"]).await;
    assert!(revoked["session"].is_null(), "a stolen token ends the family: {revoked}");

    let bad =
        open(&platform, LOGIN, json!({"login": "owner", "password": "correct horse battery stable"})).await;
    let nobody = open(&platform, LOGIN, json!({"login": "nobody", "password": PASSWORD})).await;
    assert_eq!(bad, nobody, "the answer does not tell whether a login exists");
    let good = open(&platform, LOGIN, json!({"login": " Owner ", "password": PASSWORD})).await;
    let token = &good["session"]["refreshToken"];
    assert_eq!(open(&platform, LOGOUT, json!({"refreshToken": token})).await["ended"], true);
    assert!(refresh(&platform, token).await["session"].is_null());
    assert_eq!(open(&platform, LOGOUT, json!({"refreshToken": "unknown"})).await["ended"], true);
}

#[sqlx::test(migrations = "../migrations")]
async fn an_invited_operator_comes_in_by_link_and_leaves_at_once_when_disabled(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let invite = "mutation m($i: OperatorInviteInput!) { operatorInvite(input: $i) {
        operator { id status role } link position userErrors { code field } } }";
    let data =
        platform.data(&tenant.token, invite, json!({"i": {"login": "grace", "role": "MODERATOR"}})).await;
    let invited = &data["operatorInvite"];
    assert_eq!(invited["operator"]["status"], "INVITED", "{invited}");
    let secret = invited["link"].as_str().unwrap().split_once('#').unwrap().1;
    let session =
        open(&platform, ACTIVATE, json!({"secret": secret, "password": PASSWORD})).await["session"].take();
    let token = session["accessToken"].as_str().unwrap().to_owned();
    platform.data(&token, "{ bots { edges { cursor } } }", json!({})).await;

    let taken =
        platform.data(&tenant.token, invite, json!({"i": {"login": "grace", "role": "MEMBER"}})).await;
    assert_eq!(taken["operatorInvite"]["userErrors"][0]["code"], "OPERATOR_LOGIN_TAKEN");
    let short = platform.data(&tenant.token, invite, json!({"i": {"login": "x", "role": "MEMBER"}})).await;
    assert_eq!(short["operatorInvite"]["userErrors"][0], json!({"code": "BAD_INPUT", "field": "login"}));

    let change = "mutation m($i: OperatorChangeRoleInput!) { operatorChangeRole(input: $i) { operator { role } userErrors { code } } }";
    let input = json!({"operatorId": session["operatorId"], "role": "ANALYST"});
    let changed = platform.data(&tenant.token, change, json!({"i": input})).await;
    assert_eq!(changed["operatorChangeRole"]["operator"]["role"], "ANALYST");
    assert_eq!(platform.refusal(Some(&token), "{ bots { edges { cursor } } }", json!({})).await, "FORBIDDEN");

    let input = json!({"operatorId": session["operatorId"], "reason": "left"});
    let disable =
        "mutation m($i: OperatorDisableInput!) { operatorDisable(input: $i) { operator { status } } }";
    let disabled = platform.data(&tenant.token, disable, json!({"i": input})).await;
    assert_eq!(disabled["operatorDisable"]["operator"]["status"], "DISABLED");
    assert_eq!(platform.post(Some(&token), "{ me { id } }", json!({})).await.status, 401);
    assert!(refresh(&platform, &session["refreshToken"]).await["session"].is_null());
    let enable = disable.replace("operatorDisable(", "operatorEnable(");
    let enabled = platform.data(&tenant.token, &enable, json!({"i": input})).await;
    assert_eq!(enabled["operatorEnable"]["operator"]["status"], "ACTIVE");
    platform.data(&token, "{ me { id } }", json!({})).await;
    let own = json!({"operatorId": format!("operator:{}", tenant.owner), "reason": "tired"});
    let disable = disable.replace("operator {", "userErrors { code } operator {");
    let own = platform.data(&tenant.token, &disable, json!({"i": own})).await;
    assert!(
        own["operatorDisable"]["userErrors"][0]["code"].is_string(),
        "nobody shuts themselves out: {own}"
    );
}

#[sqlx::test(migrations = "../migrations")]
async fn guessing_runs_into_a_limit(pool: PgPool) {
    let platform = Platform::open(pool).await;
    for _ in 0..20 {
        assert!(refresh(&platform, &json!("guess")).await["session"].is_null());
    }
    let answer = platform.post(None, REFRESH, json!({"i": {"refreshToken": "guess"}})).await.json();
    let extensions = &answer["errors"][0]["extensions"];
    assert_eq!((&extensions["code"], &extensions["retryable"]), (&json!("RATE_LIMITED"), &json!(true)));
    assert!(extensions["retryAfterMs"].as_u64().is_some_and(|millis| millis <= 60_000));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_database_that_is_away_is_no_reason_to_log_in_again(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let cold = platform.token_as(&tenant, Role::Admin).await;
    platform.settle().await;
    platform.data(&tenant.token, "{ me { id } }", json!({})).await;
    platform.pool.close().await;
    let never_seen = platform.token(botledger_domain::OperatorId(uuid::Uuid::now_v7()));
    let register = "mutation m($t: String!) { botRegister(input: {token: $t}) { bot { id } } }";
    for (token, query, variables) in [
        (Some(tenant.token.as_str()), "{ me { id } }", json!({})),
        (Some(cold.as_str()), "{ bots { edges { cursor } } platform { head } }", json!({})),
        (Some(cold.as_str()), register, json!({"t": bot_token(1)})),
        (Some(never_seen.as_str()), "{ me { id } }", json!({})),
        (None, LOGIN, json!({"i": {"login": "owner", "password": PASSWORD}})),
        (None, REFRESH, json!({"i": {"refreshToken": "anything"}})),
    ] {
        let answer = platform.post(token, query, variables).await;
        assert_eq!(answer.status, 503, "{query}: {}", answer.text);
        assert_eq!(answer.header("retry-after"), "1");
        assert!(answer.text.contains("UNAVAILABLE") && !answer.text.contains("pool"), "{}", answer.text);
    }
}
