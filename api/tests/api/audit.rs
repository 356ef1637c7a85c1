//! Who asked for what, from where, and what became of it; and personal text that is opened for a time.

use botledger_domain::operator::Role;
use chrono::TimeDelta;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::Platform;

const RENAME: &str =
    "mutation r($name: String!) { workspaceRename(input: {name: $name}) { position userErrors { code } } }";

async fn entries(platform: &Platform, token: &str, filter: Value) -> Vec<Value> {
    let query = "query a($filter: AuditFilterInput) { auditEntries(filter: $filter) { nodes {
        action outcome detail source sourceIp userAgent instance correlationId operatorId
        changes { before event { eventType payload actor correlationId } } } } }";
    let data = platform.data(token, query, json!({ "filter": filter })).await;
    data["auditEntries"]["nodes"].as_array().unwrap().clone()
}

#[sqlx::test(migrations = "../migrations")]
async fn every_call_is_told_with_from_where_how_it_ended_and_before_and_after(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (tenant, other) = (platform.tenant("one").await, platform.tenant("two").await);
    for name in ["Second", "Third"] {
        let body = json!({ "query": RENAME, "variables": { "name": name } });
        let answer = platform
            .request(|http, url| {
                http.post(url)
                    .bearer_auth(&tenant.token)
                    .header("user-agent", "desk/1.0 (\u{e9})")
                    .json(&body)
            })
            .await;
        assert!(answer.json()["errors"].is_null(), "{}", answer.text);
    }
    let refused = platform.data(&tenant.token, RENAME, json!({"name": ""})).await;
    assert_eq!(refused["workspaceRename"]["userErrors"].as_array().unwrap().len(), 1, "{refused}");
    let analyst = platform.token_as(&tenant, Role::Analyst).await;
    assert_eq!(platform.refusal(Some(&analyst), RENAME, json!({"name": "Mine"})).await, "FORBIDDEN");
    platform.settle().await;

    let auditor = platform.token_as(&tenant, Role::Auditor).await;
    let told = entries(&platform, &auditor, json!({"action": "workspace.rename", "outcomes": ["OK"]})).await;
    assert_eq!(told.len(), 2, "{told:?}");
    let newest = &told[0];
    assert_eq!((&newest["source"], &newest["sourceIp"]), (&json!("graphql"), &json!("127.0.0.1")));
    assert!(newest["userAgent"].as_str().unwrap().starts_with("desk/1.0"), "{newest}");
    assert!(
        newest["instance"].is_string() && newest["operatorId"] == json!(format!("operator:{}", tenant.owner))
    );
    let change = &newest["changes"][0];
    assert_eq!(
        (&change["before"]["name"], &change["event"]["payload"]["name"]),
        (&json!("Second"), &json!("Third"))
    );
    assert_eq!(change["event"]["correlationId"], newest["correlationId"]);
    let forbidden = entries(&platform, &auditor, json!({"outcomes": ["FORBIDDEN"]})).await;
    assert_eq!(forbidden.len(), 1);
    assert_eq!(
        (&forbidden[0]["action"], &forbidden[0]["changes"]),
        (&json!("workspaceRename"), &json!([])),
        "{forbidden:?}"
    );
    let early =
        "mutation { planRetire(input: {plan: \"free\", reason: \"\"}) { userErrors { code field } } }";
    let answer = platform.data(&tenant.token, early, json!({})).await;
    assert_eq!(answer["planRetire"]["userErrors"][0]["field"], "reason", "{answer}");
    let refused: Vec<(Value, Value)> = entries(&platform, &auditor, json!({"outcomes": ["REFUSED"]}))
        .await
        .into_iter()
        .map(|entry| (entry["action"].clone(), entry["detail"]["code"].clone()))
        .collect();
    assert_eq!(
        refused,
        [
            (json!("planRetire"), json!("BAD_INPUT")),
            (json!("workspace.rename"), json!("WORKSPACE_INVALID_NAME"))
        ],
        "also what never reached a use case"
    );
    // Who may not read the ledger is noted too, once a request.
    let ledger = "{ one: events { nodes { position } } two: events { nodes { position } } }";
    assert_eq!(platform.post(Some(&analyst), ledger, json!({})).await.code(), "FORBIDDEN");
    let turned_away = entries(&platform, &auditor, json!({"action": "events"})).await;
    assert_eq!(turned_away.len(), 1, "{turned_away:?}");
    assert_eq!(turned_away[0]["outcome"], "FORBIDDEN");
    let of_owner =
        json!({"operatorId": format!("operator:{}", tenant.owner), "until": "2020-01-01T00:00:00Z"});
    assert!(entries(&platform, &auditor, of_owner).await.is_empty(), "filters add up");
    assert!(entries(&platform, &other.token, json!(null)).await.is_empty(), "another workspace's calls");
    let changed = sqlx::query("DELETE FROM audit_log").execute(&platform.pool).await.unwrap_err();
    assert!(changed.to_string().contains("append-only"), "{changed}");
}

#[sqlx::test(migrations = "../migrations")]
async fn an_auditor_reads_personal_text_only_while_let_and_each_reading_is_noted(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bot = platform.bot(&tenant, 1).await;
    let turn = platform.talk(bot, 10, 77, "a private matter").await;
    platform.settle().await;
    let operator = platform.operator(tenant.workspace, "vera", Role::Auditor).await;
    let (account, token) = (format!("operator:{operator}"), platform.token(operator));
    platform.settle().await;
    let read = "query q($id: ID!) { turn(id: $id) { prompt person { profile { firstName } } } }";
    let id = json!({"id": format!("turn:{turn}")});
    assert_eq!(platform.post(Some(&token), read, id.clone()).await.code(), "FORBIDDEN");

    let grant = "mutation g($i: OperatorGrantPersonalAccessInput!) { operatorGrantPersonalAccess(input: $i) {
        operator { readsPersonalUntil } userErrors { code } } }";
    let until = |days| (platform.app.core.clock.now() + TimeDelta::days(days)).to_rfc3339();
    let ask =
        |days: i64| json!({"i": {"operatorId": account, "until": until(days), "reason": "complaint 17"}});
    assert_eq!(platform.refusal(Some(&token), grant, ask(1)).await, "FORBIDDEN", "nobody lets themselves");
    let answer = platform.data(&tenant.token, grant, ask(31)).await;
    let code = &answer["operatorGrantPersonalAccess"]["userErrors"][0]["code"];
    assert_eq!(code, "OPERATOR_PERSONAL_ACCESS_TIME");
    let answer = platform.data(&tenant.token, grant, ask(1)).await;
    assert!(answer["operatorGrantPersonalAccess"]["operator"]["readsPersonalUntil"].is_string(), "{answer}");

    let seen = platform.data(&token, read, id.clone()).await;
    assert_eq!(seen["turn"]["prompt"], "a private matter");
    assert_eq!(seen["turn"]["person"]["profile"]["firstName"], "Ada");
    let mut noted: Vec<String> = entries(&platform, &token, json!({"action": "personal.read"}))
        .await
        .iter()
        .map(|entry| {
            assert_eq!(entry["operatorId"], json!(account));
            format!(
                "{} {}",
                entry["detail"]["field"].as_str().unwrap(),
                entry["detail"]["about"].as_str().unwrap()
            )
        })
        .collect();
    noted.sort();
    let person = platform.person_of(turn).await;
    assert_eq!(noted, [format!("Person.profile person:{person}"), format!("Turn.prompt turn:{turn}")]);
    let granted: i64 =
        sqlx::query_scalar("SELECT count(*) FROM events WHERE event_type = 'personal_access_granted'")
            .fetch_one(&platform.pool)
            .await
            .unwrap();
    assert_eq!(granted, 1, "in the ledger, with its reason");
    // Moderators read by their role; that is no news.
    let moderator = platform.token_as(&tenant, Role::Moderator).await;
    platform.data(&moderator, read, id.clone()).await;
    assert_eq!(entries(&platform, &token, json!({"action": "personal.read"})).await.len(), 2);

    let revoke = "mutation v($i: OperatorDisableInput!) { operatorRevokePersonalAccess(input: $i) {
        operator { readsPersonalUntil } userErrors { code } } }";
    let why = json!({"i": {"operatorId": account, "reason": "answered"}});
    let answer = platform.data(&tenant.token, revoke, why).await;
    assert!(answer["operatorRevokePersonalAccess"]["operator"]["readsPersonalUntil"].is_null(), "{answer}");
    assert_eq!(platform.post(Some(&token), read, id.clone()).await.code(), "FORBIDDEN");

    platform.data(&tenant.token, grant, ask(1)).await;
    platform.data(&token, read, id.clone()).await;
    platform.pass(25 * 3_600);
    let later = platform.token(operator);
    assert_eq!(platform.post(Some(&later), read, id).await.code(), "FORBIDDEN", "time is over");
}
