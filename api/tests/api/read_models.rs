//! Read models as operators see and change them.

use botledger_domain::operator::Role;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Platform, Tenant};

const STATUS: &str = "{ projections { name status stalled holder lag waitingSeconds rebuild { state version position
    target rate secondsLeft failedPosition error startedAt comparison { position rows liveRows different } } } }";

async fn read_model(platform: &Platform, tenant: &Tenant, name: &str) -> Value {
    let all = platform.data(&tenant.token, STATUS, json!({})).await["projections"].take();
    all.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap().clone()
}

async fn reaches(platform: &Platform, tenant: &Tenant, name: &str, state: &str) -> Value {
    let waited = async {
        loop {
            let found = read_model(platform, tenant, name).await;
            if found["rebuild"]["state"] == state {
                return found;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), waited).await.expect("the rebuild goes on")
}

async fn change(platform: &Platform, token: &str, mutation: &str, input: Value) -> Value {
    let kind = if mutation == "projectionSwap" { "ProjectionSwapInput" } else { "ProjectionChangeInput" };
    let query = format!(
        "mutation m($i: {kind}!) {{ {mutation}(input: $i) {{ projection {{ name rebuild {{ state }} }}
            userErrors {{ code message }} }} }}"
    );
    platform.data(token, &query, json!({"i": input})).await[mutation].take()
}

#[sqlx::test(migrations = "../migrations")]
async fn a_read_model_is_rebuilt_swapped_and_taken_back(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    platform.bot(&tenant, 1).await;
    platform.settle().await;
    let shown = read_model(&platform, &tenant, "bots").await;
    assert_eq!(
        (&shown["status"], &shown["stalled"], &shown["rebuild"]),
        (&json!("running"), &json!(false), &json!(null))
    );
    assert!(shown["holder"].is_string(), "{shown}");
    sqlx::query("UPDATE read.bots SET username = 'changed_by_hand'").execute(&platform.pool).await.unwrap();

    let input = json!({"name": "bots", "reason": "a row was changed by hand"});
    let done = async |mutation: &str| {
        let payload = change(&platform, &tenant.token, mutation, input.clone()).await;
        assert_eq!(payload["userErrors"], json!([]), "{mutation}");
        payload["projection"]["rebuild"]["state"].clone()
    };
    let refused = async |mutation: &str| {
        let payload = change(&platform, &tenant.token, mutation, input.clone()).await;
        payload["userErrors"][0]["code"]
            .as_str()
            .unwrap_or_else(|| panic!("{mutation}: {payload}"))
            .to_owned()
    };
    assert_eq!(refused("projectionSwap").await, "REBUILD_NOT_OPEN");
    assert_eq!(refused("projectionRollBack").await, "REBUILD_NOTHING_KEPT");
    done("projectionRebuild").await;
    let ready = reaches(&platform, &tenant, "bots", "ready").await;
    assert_eq!(ready["rebuild"]["comparison"]["different"], "1", "{ready}");
    assert_eq!(refused("projectionSwap").await, "REBUILD_DIFFERENT");
    let username = async || {
        let query = "{ bots(first: 1) { edges { node { username } } } }";
        platform.data(&tenant.token, query, json!({})).await["bots"]["edges"][0]["node"]["username"].take()
    };
    assert_eq!(username().await, "changed_by_hand", "the live rows are served until the swap");

    let accepted = json!({"name": "bots", "reason": "looked at it", "acceptDifferences": true});
    let swapped = change(&platform, &tenant.token, "projectionSwap", accepted).await;
    assert_eq!(swapped["projection"]["rebuild"]["state"], "swapped", "{swapped}");
    assert_eq!(username().await, "number_1_bot");
    assert_eq!(done("projectionRollBack").await, "rolled_back");
    assert_eq!(username().await, "changed_by_hand");
    done("projectionRebuild").await;
    assert_eq!(done("projectionCancelRebuild").await, "cancelled");
    assert_eq!(refused("projectionForgetPrevious").await, "REBUILD_NOTHING_KEPT");

    let query = "{ projectionChanges(name: \"bots\") { change actor reason } }";
    let changes = platform.data(&tenant.token, query, json!({})).await["projectionChanges"].take();
    let kinds: Vec<&str> =
        changes.as_array().unwrap().iter().map(|one| one["change"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["started", "swapped", "rolled_back", "started", "cancelled"]);
    assert!(changes[1]["actor"].as_str().unwrap().starts_with("operator:"), "{changes}");
    assert_eq!(changes[1]["reason"], "looked at it");
    let audited: Vec<(String, String)> =
        sqlx::query_as("SELECT action, outcome FROM audit_log WHERE action LIKE 'projection.%' ORDER BY id")
            .fetch_all(&platform.pool)
            .await
            .unwrap();
    assert!(audited.contains(&("projection.swap".to_owned(), "ok".to_owned())), "{audited:?}");
    assert!(audited.contains(&("projection.swap".to_owned(), "refused".to_owned())), "{audited:?}");

    let auditor = platform.token_as(&tenant, Role::Auditor).await;
    let query =
        "mutation m($i: ProjectionChangeInput!) { projectionRollBack(input: $i) { userErrors { code } } }";
    assert_eq!(platform.refusal(Some(&auditor), query, json!({"i": input})).await, "FORBIDDEN");
    let nobody = json!({"i": {"name": "nonsense", "reason": "a test"}});
    assert_eq!(platform.refusal(Some(&tenant.token), query, nobody).await, "NOT_FOUND");
    // New rows go where the live ones are, whatever was traded.
    platform.bot(&tenant, 2).await;
    platform.settle().await;
}
