//! Limits of plans and budgets over GraphQL.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Platform, Tenant};

const BUDGET: &str = "id holderKind holderId inForce shares warnAtPercent exhaustedAt
    limits { unit period amount rollOver }
    left { unit period limit carried used reserved remaining resetsAt }
    raises { unit amount expiresAt } warnings { unit period percent used limit }";

async fn change(platform: &Platform, tenant: &Tenant, mutation: &str, input: Value) -> Value {
    let kind = format!("{}{}Input", mutation[..1].to_uppercase(), &mutation[1..]);
    let query = format!(
        "mutation m($i: {kind}!) {{ {mutation}(input: $i) {{ budget {{ {BUDGET} }} position userErrors {{ code }} }} }}"
    );
    platform.data(&tenant.token, &query, json!({"i": input})).await[mutation].take()
}

fn refusal(payload: &Value) -> &str {
    payload["userErrors"][0]["code"].as_str().unwrap_or_else(|| panic!("not refused: {payload}"))
}

#[sqlx::test(migrations = "../migrations")]
async fn a_budget_is_set_used_raised_and_removed(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let (bot, fence) = platform.bot(&tenant, 1).await;
    let holder = json!({"botId": format!("bot:{bot}")});
    let limits = json!([
        {"unit": "MONEY", "period": "MONTH", "amount": "5000000"},
        {"unit": "MESSAGES", "period": "DAY", "amount": "4", "rollOver": "2"},
    ]);
    let input = json!({"holder": holder, "limits": limits, "warnAtPercent": [50], "shares": 2});
    let set = change(&platform, &tenant, "budgetSet", input.clone()).await;
    assert_eq!(set["userErrors"], json!([]), "{set}");
    let budget = &set["budget"];
    assert_eq!((&budget["holderKind"], &budget["holderId"]), (&json!("BOT"), &json!(format!("bot:{bot}"))));
    assert_eq!((&budget["shares"], &budget["warnAtPercent"]), (&json!(2), &json!([50])));
    assert_eq!(
        budget["limits"],
        json!([
            {"unit": "MESSAGES", "period": "DAY", "amount": "4", "rollOver": "2"},
            {"unit": "MONEY", "period": "MONTH", "amount": "5000000", "rollOver": null},
        ])
    );
    let again = change(&platform, &tenant, "budgetSet", input).await;
    assert_eq!(again["position"], "0", "it was so already");

    platform.talk((bot, fence), 1, 7, "hello").await;
    let second = platform.message((bot, fence), 2, 7, "hello").await;
    platform.admit(fence, second).await;
    let third = platform.message((bot, fence), 3, 7, "hello").await;
    platform.admit(fence, third).await;
    platform.settle().await;
    let query = format!("query q($h: HolderInput!) {{ budget(holder: $h) {{ {BUDGET} }} }}");
    let seen = platform.data(&tenant.token, &query, json!({"h": holder})).await["budget"].take();
    let left = &seen["left"][0];
    assert_eq!(
        (&left["limit"], &left["used"], &left["reserved"], &left["remaining"]),
        (&json!("4"), &json!("1"), &json!("2"), &json!("1"))
    );
    assert_eq!(seen["warnings"][0]["percent"], 50, "{seen}");
    let exact =
        platform.app.budgets.left(tenant.workspace, botledger_domain::account::Holder::Bot(bot)).await;
    let exact: Vec<String> =
        exact.unwrap().unwrap().limits.iter().map(|left| left.remaining.to_string()).collect();
    let shown: Vec<&str> =
        seen["left"].as_array().unwrap().iter().map(|left| left["remaining"].as_str().unwrap()).collect();
    assert_eq!(shown, exact, "the read model says what the ledger says");

    let raise = |unit: &str, amount: &str, until: &str| json!({"holder": holder, "unit": unit, "amount": amount, "expiresAt": until, "reason": "rush"});
    let raised =
        change(&platform, &tenant, "budgetRaise", raise("MESSAGES", "3", "2099-01-01T00:00:00Z")).await;
    assert_eq!(raised["budget"]["raises"][0]["amount"], "3");
    assert_eq!(raised["budget"]["left"][0]["limit"], "7");
    let past =
        change(&platform, &tenant, "budgetRaise", raise("MESSAGES", "3", "2020-01-01T00:00:00Z")).await;
    assert_eq!(refusal(&past), "BUDGET_EMPTY_RAISE");
    let tokens =
        change(&platform, &tenant, "budgetRaise", raise("TOKENS", "3", "2099-01-01T00:00:00Z")).await;
    assert_eq!(refusal(&tokens), "BUDGET_RAISE_OF_NOTHING");

    let removed =
        change(&platform, &tenant, "budgetRemove", json!({"holder": holder, "reason": "no longer"})).await;
    assert_eq!(removed["budget"]["inForce"], false);
    let list = platform
        .data(&tenant.token, "{ budgets { edges { node { holderKind inForce } } } }", json!({}))
        .await;
    assert_eq!(list["budgets"]["edges"][0]["node"], json!({"holderKind": "BOT", "inForce": false}));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_budget_that_makes_no_sense_is_refused(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (tenant, other) = (platform.tenant("one").await, platform.tenant("two").await);
    let (bot, _) = platform.bot(&other, 2).await;
    let ours = json!({"workspaceId": format!("workspace:{}", tenant.workspace)});
    let set = async |holder: &Value, limits: Value, shares: i32| {
        let input = json!({"holder": holder, "limits": limits, "shares": shares});
        change(&platform, &tenant, "budgetSet", input).await
    };
    let one = json!([{"unit": "TOKENS", "period": "DAY", "amount": "5"}]);
    assert_eq!(refusal(&set(&ours, json!([]), 1).await), "BUDGET_EMPTY");
    let twice = json!([one[0], {"unit": "TOKENS", "period": "DAY", "amount": "6"}]);
    assert_eq!(refusal(&set(&ours, twice, 1).await), "BUDGET_UNFIT_LIMITS");
    assert_eq!(refusal(&set(&ours, one.clone(), 65).await), "BUDGET_SHARE_COUNT");
    let document = "mutation m($i: BudgetSetInput!) { budgetSet(input: $i) { position } }";
    let refused =
        async |input: Value| platform.refusal(Some(&tenant.token), document, json!({"i": input})).await;
    let foreign = json!({"botId": format!("bot:{bot}")});
    assert_eq!(refused(json!({"holder": foreign, "limits": one})).await, "NOT_FOUND");
    let minus = json!([{"unit": "TOKENS", "period": "DAY", "amount": "-5"}]);
    assert_eq!(refused(json!({"holder": ours, "limits": minus})).await, "BAD_INPUT");
    assert_eq!(refused(json!({"holder": ours, "limits": one, "warnAtPercent": [999]})).await, "BAD_INPUT");
    let query = "query q($h: HolderInput!) { budget(holder: $h) { id } }";
    assert_eq!(platform.data(&tenant.token, query, json!({"h": foreign})).await["budget"], Value::Null);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_plan_of_several_limits_is_defined_assigned_and_raised(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bot = platform.bot(&tenant, 1).await;
    let turn = platform.talk(bot, 1, 77, "hello").await;
    platform.settle().await;
    let person = format!("person:{}", platform.person_of(turn).await);
    let run = async |mutation: &str, thing: &str, input: Value| {
        let kind = format!("{}{}Input", mutation[..1].to_uppercase(), &mutation[1..]);
        let query = format!(
            "mutation m($i: {kind}!) {{ {mutation}(input: $i) {{ {thing} userErrors {{ code }} }} }}"
        );
        platform.data(&tenant.token, &query, json!({"i": input})).await[mutation].take()
    };
    let plan =
        "workspace { plans { name warnAtPercent limits { unit period amount rollOver } tokens period } }";
    let limits = json!([
        {"unit": "TOKENS", "period": "DAY", "amount": "5000", "rollOver": "1000"},
        {"unit": "MESSAGES", "period": "MINUTE", "amount": "6"},
    ]);
    let defined =
        run("planDefine", plan, json!({"plan": "pro", "limits": limits, "warnAtPercent": [95, 80]})).await;
    let plans = defined["workspace"]["plans"].as_array().unwrap().clone();
    let pro = plans.iter().find(|plan| plan["name"] == "pro").unwrap();
    assert_eq!(pro["warnAtPercent"], json!([80, 95]));
    assert_eq!(pro["limits"].as_array().unwrap().len(), 2);
    assert_eq!((&pro["tokens"], &pro["period"]), (&json!("5000"), &json!("DAY")));
    let both = json!({"i": {"plan": "odd", "limits": limits, "tokens": "5", "period": "DAY"}});
    let document = "mutation m($i: PlanDefineInput!) { planDefine(input: $i) { position } }";
    assert_eq!(platform.refusal(Some(&tenant.token), document, both).await, "BAD_INPUT");

    let quota =
        "quota { plan limits { unit period } left { unit limit used remaining } overrides { unit amount } }";
    let assigned = run("quotaAssignPlan", quota, json!({"personId": person, "plan": "pro"})).await;
    assert_eq!(
        assigned["quota"]["left"][0],
        json!({"unit": "TOKENS", "limit": "5000", "used": "18", "remaining": "4982"})
    );
    assert_eq!(assigned["quota"]["left"][1]["remaining"], "6", "a limit that is new begins at zero");
    let grant = json!({"personId": person, "unit": "MESSAGES", "amount": "4", "expiresAt": "2099-01-01T00:00:00Z", "reason": "kind"});
    let granted = run("quotaGrantOverride", quota, grant).await;
    assert_eq!(granted["quota"]["overrides"], json!([{"unit": "MESSAGES", "amount": "4"}]));
    assert_eq!(granted["quota"]["left"][1]["limit"], "10");
    let money = json!({"personId": person, "unit": "MONEY", "amount": "4", "expiresAt": "2099-01-01T00:00:00Z", "reason": "kind"});
    assert_eq!(refusal(&run("quotaGrantOverride", quota, money).await), "QUOTA_OVERRIDE_OF_NOTHING");
}
