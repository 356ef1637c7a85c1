//! Mutations of every aggregate: what they answer, and that repeating them does nothing twice.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Platform, Tenant, bot_token};

/// Runs a mutation that has a payload of a thing, a position and user errors.
async fn change(platform: &Platform, tenant: &Tenant, mutation: &str, thing: &str, input: Value) -> Value {
    let query = document(mutation, thing);
    platform.data(&tenant.token, &query, json!({"i": input})).await[mutation].take()
}

fn document(mutation: &str, thing: &str) -> String {
    let kind = match mutation {
        "conversationOpenSession" | "conversationClearContext" => "ConversationInput".to_owned(),
        "operatorEnable" => "OperatorDisableInput".to_owned(),
        "botArchive" => "BotStopInput".to_owned(),
        _ => format!("{}{}Input", mutation[..1].to_uppercase(), &mutation[1..]),
    };
    format!(
        "mutation m($i: {kind}!) {{ {mutation}(input: $i) {{ {thing} position userErrors {{ code message field }} }} }}"
    )
}

/// The same for one that is refused: the code of why, and that nothing happened.
async fn refused(platform: &Platform, tenant: &Tenant, mutation: &str, thing: &str, input: Value) -> String {
    let head = platform.head().await;
    let payload = change(platform, tenant, mutation, thing, input).await;
    assert!(payload["position"].is_null(), "{payload}");
    assert_eq!(platform.head().await, head, "{mutation}");
    payload["userErrors"][0]["code"].as_str().unwrap_or_else(|| panic!("not refused: {payload}")).to_owned()
}

#[sqlx::test(migrations = "../migrations")]
async fn what_was_done_is_answered_as_done_when_read_models_stand_still(pool: PgPool) {
    let platform = Platform::with(pool, |config| config.request_timeout = Duration::from_millis(1_000)).await;
    let tenant = platform.tenant("one").await;
    platform.settle().await;
    // Nobody moves the checkpoints while this transaction holds them.
    let mut holding = platform.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM projection_checkpoints FOR UPDATE").execute(&mut *holding).await.unwrap();

    let input = json!({"token": bot_token(1)});
    let registered = change(&platform, &tenant, "botRegister", "bot { id }", input).await;
    assert!(registered["bot"].is_null(), "{registered}");
    assert_eq!(registered["position"], platform.head().await.to_string());
    assert_eq!(registered["userErrors"], json!([]));
    let starts: i64 = sqlx::query_scalar("SELECT count(*) FROM events WHERE event_type = 'bot_started'")
        .fetch_one(&platform.pool)
        .await
        .unwrap();
    assert_eq!(starts, 1);

    let invited = change(
        &platform,
        &tenant,
        "operatorInvite",
        "operator { id } link",
        json!({"login": "grace", "role": "ADMIN"}),
    )
    .await;
    assert!(invited["operator"].is_null() && invited["link"].is_string(), "{invited}");
    let renamed =
        change(&platform, &tenant, "workspaceRename", "workspace { name }", json!({"name": "Two"})).await;
    assert_eq!(renamed["position"], platform.head().await.to_string(), "{renamed}");
    holding.rollback().await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn a_bots_life(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let thing = "bot { id username status statusReason mode position settings { model maxAnswerTokens defaultLanguage rateLimits { user { burst perMinute } } } }";
    let registered = change(&platform, &tenant, "botRegister", thing, json!({"token": bot_token(1)})).await;
    let bot = registered["bot"]["id"].clone();
    assert_eq!(
        (&registered["bot"]["username"], &registered["bot"]["status"]),
        (&json!("number_1_bot"), &json!("RUNNING"))
    );
    assert_eq!(registered["bot"]["position"], registered["position"], "the answer shows its own write");
    assert_eq!(registered["position"], platform.head().await.to_string());

    let in_use = refused(&platform, &tenant, "botRegister", thing, json!({"token": bot_token(1)})).await;
    assert!(in_use.starts_with("BOT_"), "{in_use}");
    for (token, code) in
        [("nonsense".to_owned(), "BOT_TOKEN_MALFORMED"), (bot_token(404), "BOT_TOKEN_REJECTED")]
    {
        assert_eq!(refused(&platform, &tenant, "botRegister", thing, json!({"token": token})).await, code);
    }
    let away = platform
        .post(Some(&tenant.token), &document("botRegister", thing), json!({"i": {"token": bot_token(500)}}))
        .await;
    assert_eq!((away.status.as_u16(), away.code().as_str()), (503, "UNAVAILABLE"), "Telegram is away");
    assert!(!away.text.contains(&bot_token(500)));

    let settings = json!({"model": "llama3.2", "maxAnswerTokens": 64, "defaultLanguage": "RU",
        "rateLimits": {"user": {"burst": 1, "perMinute": 2}, "chat": {"burst": 3, "perMinute": 4}, "bot": {"burst": 5, "perMinute": 6}}});
    let configured = change(
        &platform,
        &tenant,
        "botConfigure",
        thing,
        json!({"botId": bot, "settings": settings, "mode": "WEBHOOK"}),
    )
    .await;
    assert_eq!(configured["bot"]["mode"], "WEBHOOK");
    assert_eq!(
        configured["bot"]["settings"],
        json!({"model": "llama3.2", "maxAnswerTokens": 64, "defaultLanguage": "RU",
        "rateLimits": {"user": {"burst": 1, "perMinute": 2}}})
    );
    let wrong = json!({"botId": bot, "settings": {"model": "no such model!\n"}});
    assert_eq!(refused(&platform, &tenant, "botConfigure", thing, wrong).await, "BAD_INPUT");
    let wrong = json!({"botId": bot, "settings": {"maxAnswerTokens": 1}});
    refused(&platform, &tenant, "botConfigure", thing, wrong).await;

    let rotated =
        change(&platform, &tenant, "botRotateToken", thing, json!({"botId": bot, "token": bot_token(1)}))
            .await;
    assert_eq!(rotated["userErrors"], json!([]));
    refused(&platform, &tenant, "botRotateToken", thing, json!({"botId": bot, "token": bot_token(2)})).await;

    let stopped =
        change(&platform, &tenant, "botStop", thing, json!({"botId": bot, "reason": "night"})).await;
    assert_eq!(
        (&stopped["bot"]["status"], &stopped["bot"]["statusReason"]),
        (&json!("STOPPED"), &json!("night"))
    );
    let again = change(&platform, &tenant, "botStop", thing, json!({"botId": bot, "reason": "night"})).await;
    assert_eq!((&again["position"], &again["userErrors"]), (&json!("0"), &json!([])), "it was so already");
    assert_eq!(
        refused(&platform, &tenant, "botStop", thing, json!({"botId": bot, "reason": ""})).await,
        "BAD_INPUT"
    );
    let started = change(&platform, &tenant, "botStart", thing, json!({"botId": bot})).await;
    assert_eq!(started["bot"]["status"], "RUNNING");
    change(&platform, &tenant, "botStop", thing, json!({"botId": bot, "reason": "done"})).await;
    let archived =
        change(&platform, &tenant, "botArchive", thing, json!({"botId": bot, "reason": "gone"})).await;
    assert_eq!(archived["bot"]["status"], "ARCHIVED");
    refused(&platform, &tenant, "botStart", thing, json!({"botId": bot})).await;
    let unknown = json!({"i": {"botId": "bot:01900000-0000-7000-8000-000000000000"}});
    assert_eq!(
        platform.refusal(Some(&tenant.token), &document("botStart", thing), unknown).await,
        "NOT_FOUND"
    );
    let kind = json!({"i": {"botId": tenant_id(&tenant)}});
    assert_eq!(platform.refusal(Some(&tenant.token), &document("botStart", thing), kind).await, "BAD_INPUT");
    let dump: Vec<String> =
        sqlx::query_scalar("SELECT payload::text FROM events").fetch_all(&platform.pool).await.unwrap();
    assert!(dump.iter().all(|payload| !payload.contains(&"A".repeat(35))), "no token in the ledger");
}

fn tenant_id(tenant: &Tenant) -> String {
    format!("workspace:{}", tenant.workspace)
}

#[sqlx::test(migrations = "../migrations")]
async fn turns_conversations_and_people(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bot = platform.bot(&tenant, 1).await;
    let answered = platform.talk(bot, 1, 77, "hello").await;
    let open = platform.message(bot, 2, 77, "anybody there?").await;
    platform.admit(bot.1, open).await;
    platform.settle().await;

    let turn = "turn { id phase failure open }";
    let failed = change(
        &platform,
        &tenant,
        "turnFail",
        turn,
        json!({"turnId": format!("turn:{open}"), "reason": "stuck"}),
    )
    .await;
    assert_eq!(
        failed["turn"],
        json!({"id": format!("turn:{open}"), "phase": "FAILURE_PENDING", "failure": "GIVEN_UP_BY_OPERATOR", "open": true})
    );
    let late = json!({"turnId": format!("turn:{answered}"), "reason": "stuck"});
    assert_eq!(refused(&platform, &tenant, "turnFail", turn, late).await, "TURN_TOO_LATE");
    let quota = "query q($p: ID!) { quota(personId: $p) { reserved } }";
    let person = json!(format!("person:{}", platform.person_of(answered).await));
    platform.settle().await;
    assert_eq!(
        platform.data(&tenant.token, quota, json!({"p": person})).await["quota"]["reserved"],
        "0",
        "the hold is given back"
    );

    let list = platform.data(&tenant.token, "{ conversations { edges { node { id } } } }", json!({})).await;
    let conversation = list["conversations"]["edges"][0]["node"]["id"].clone();
    let thing = "conversation { id currentSession sessions { number title contextEpoch } }";
    let of = |more: Value| {
        let mut input = json!({"conversationId": conversation});
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        input
    };
    let opened = change(&platform, &tenant, "conversationOpenSession", thing, of(json!({}))).await;
    assert_eq!(opened["conversation"]["currentSession"], 2, "{opened}");
    let renamed = change(
        &platform,
        &tenant,
        "conversationRenameSession",
        thing,
        of(json!({"session": 1, "title": "Old things"})),
    )
    .await;
    assert_eq!(renamed["conversation"]["sessions"][0]["title"], "Old things", "{renamed}");
    assert_eq!(
        refused(
            &platform,
            &tenant,
            "conversationRenameSession",
            thing,
            of(json!({"session": 1, "title": " "}))
        )
        .await,
        "BAD_INPUT"
    );
    let switched =
        change(&platform, &tenant, "conversationSwitchSession", thing, of(json!({"session": 1}))).await;
    assert_eq!(switched["conversation"]["currentSession"], 1);
    refused(&platform, &tenant, "conversationSwitchSession", thing, of(json!({"session": 9}))).await;
    let cleared = change(&platform, &tenant, "conversationClearContext", thing, of(json!({}))).await;
    let epoch = |payload: &Value| payload["conversation"]["sessions"][0]["contextEpoch"].as_i64().unwrap();
    assert!(epoch(&cleared) > epoch(&switched), "{cleared}");

    let thing = "person { id language languageChosen }";
    let chosen = change(
        &platform,
        &tenant,
        "personChooseLanguage",
        thing,
        json!({"personId": person, "language": "RU"}),
    )
    .await;
    assert_eq!(chosen["person"], json!({"id": person, "language": "RU", "languageChosen": true}));
    let nobody = json!({"personId": "person:01900000-0000-7000-8000-000000000000", "language": "RU"});
    assert_eq!(refused(&platform, &tenant, "personChooseLanguage", thing, nobody).await, "SUBJECT_UNKNOWN");
}

#[sqlx::test(migrations = "../migrations")]
async fn quotas_plans_standings_and_the_workspace(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bot = platform.bot(&tenant, 1).await;
    let turn = platform.talk(bot, 1, 77, "hello").await;
    platform.settle().await;
    let person = format!("person:{}", platform.person_of(turn).await);
    let bot = format!("bot:{}", bot.0);

    let thing = "workspace { id name defaultPlan plans { name tokens period } }";
    let renamed = change(&platform, &tenant, "workspaceRename", thing, json!({"name": "Two"})).await;
    assert_eq!(renamed["workspace"]["name"], "Two");
    refused(&platform, &tenant, "workspaceRename", thing, json!({"name": ""})).await;
    let defined = change(
        &platform,
        &tenant,
        "planDefine",
        thing,
        json!({"plan": "pro", "tokens": "5000000000", "period": "DAY"}),
    )
    .await;
    assert!(
        defined["workspace"]["plans"]
            .as_array()
            .unwrap()
            .contains(&json!({"name": "pro", "tokens": "5000000000", "period": "DAY"}))
    );
    refused(
        &platform,
        &tenant,
        "planDefine",
        thing,
        json!({"plan": "none", "tokens": "0", "period": "WEEK"}),
    )
    .await;
    let minus = json!({"i": {"plan": "none", "tokens": "-1", "period": "WEEK"}});
    assert_eq!(
        platform.refusal(Some(&tenant.token), &document("planDefine", thing), minus).await,
        "BAD_INPUT"
    );
    let default = change(&platform, &tenant, "planSetDefault", thing, json!({"plan": "pro"})).await;
    assert_eq!(default["workspace"]["defaultPlan"], "pro");
    refused(&platform, &tenant, "planRetire", thing, json!({"plan": "pro", "reason": "old"})).await;
    let retired =
        change(&platform, &tenant, "planRetire", thing, json!({"plan": "free", "reason": "old"})).await;
    assert_eq!(retired["userErrors"], json!([]));

    let thing = "quota { personId plan planTokens period used overrides { tokens expiresAt } }";
    let assigned =
        change(&platform, &tenant, "quotaAssignPlan", thing, json!({"personId": person, "plan": "pro"}))
            .await;
    assert_eq!((&assigned["quota"]["plan"], &assigned["quota"]["used"]), (&json!("pro"), &json!("18")));
    let gold = json!({"i": {"personId": person, "plan": "gold"}});
    assert_eq!(
        platform.refusal(Some(&tenant.token), &document("quotaAssignPlan", thing), gold).await,
        "NOT_FOUND"
    );
    let grant =
        json!({"personId": person, "tokens": "9", "expiresAt": "2099-01-01T00:00:00Z", "reason": "kind"});
    let granted = change(&platform, &tenant, "quotaGrantOverride", thing, grant).await;
    assert_eq!(granted["quota"]["overrides"][0]["tokens"], "9");
    let past =
        json!({"personId": person, "tokens": "9", "expiresAt": "2020-01-01T00:00:00Z", "reason": "kind"});
    refused(&platform, &tenant, "quotaGrantOverride", thing, past).await;

    let thing = "standing { botId personId blocked reason blockedUntil }";
    let block = json!({"botId": bot, "personId": person, "reason": "spam", "until": "2099-01-01T00:00:00Z"});
    let blocked = change(&platform, &tenant, "standingBlock", thing, block).await;
    assert_eq!(
        (&blocked["standing"]["blocked"], &blocked["standing"]["reason"]),
        (&json!(true), &json!("spam"))
    );
    let past = json!({"botId": bot, "personId": person, "reason": "spam", "until": "2020-01-01T00:00:00Z"});
    refused(&platform, &tenant, "standingBlock", thing, past).await;
    let unblock = json!({"botId": bot, "personId": person, "reason": "sorry"});
    let unblocked = change(&platform, &tenant, "standingUnblock", thing, unblock).await;
    assert_eq!(unblocked["standing"]["blocked"], false);
}

#[sqlx::test(migrations = "../migrations")]
async fn the_same_key_twice_is_the_same_answer_and_no_second_event(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bot = platform.bot(&tenant, 1).await;
    let turn = platform.talk(bot, 1, 77, "hello").await;
    let open = platform.message(bot, 2, 77, "anybody there?").await;
    platform.settle().await;
    let person = format!("person:{}", platform.person_of(turn).await);
    let list = platform.data(&tenant.token, "{ conversations { edges { node { id } } } }", json!({})).await;
    let conversation = list["conversations"]["edges"][0]["node"]["id"].clone();
    let grace = platform.operator(tenant.workspace, "grace", botledger_domain::operator::Role::Member).await;
    let (bot, grace) = (format!("bot:{}", bot.0), format!("operator:{grace}"));
    let cases = [
        ("botRegister", "bot { id status }", json!({"token": bot_token(2)})),
        ("botConfigure", "bot { id position }", json!({"botId": bot, "settings": {"maxAnswerTokens": 64}})),
        (
            "botRotateToken",
            "bot { id position }",
            json!({"botId": bot, "token": format!("1:{}", "B".repeat(35))}),
        ),
        ("botStop", "bot { status position }", json!({"botId": bot, "reason": "night"})),
        ("botStart", "bot { status position }", json!({"botId": bot})),
        ("turnFail", "turn { phase position }", json!({"turnId": format!("turn:{open}"), "reason": "stuck"})),
        (
            "conversationOpenSession",
            "conversation { currentSession }",
            json!({"conversationId": conversation}),
        ),
        (
            "conversationClearContext",
            "conversation { currentSession position }",
            json!({"conversationId": conversation}),
        ),
        (
            "personChooseLanguage",
            "person { language position }",
            json!({"personId": person, "language": "RU"}),
        ),
        ("workspaceRename", "workspace { name position }", json!({"name": "Two"})),
        ("planDefine", "workspace { position }", json!({"plan": "pro", "tokens": "5", "period": "WEEK"})),
        ("quotaAssignPlan", "quota { plan position }", json!({"personId": person, "plan": "pro"})),
        (
            "quotaGrantOverride",
            "quota { overrides { tokens } }",
            json!({"personId": person, "tokens": "9", "expiresAt": "2099-01-01T00:00:00Z", "reason": "kind"}),
        ),
        (
            "standingBlock",
            "standing { blocked position }",
            json!({"botId": bot, "personId": person, "reason": "spam"}),
        ),
        (
            "standingUnblock",
            "standing { blocked position }",
            json!({"botId": bot, "personId": person, "reason": "sorry"}),
        ),
        ("operatorChangeRole", "operator { role position }", json!({"operatorId": grace, "role": "AUDITOR"})),
        ("operatorDisable", "operator { status position }", json!({"operatorId": grace, "reason": "left"})),
        ("operatorEnable", "operator { status position }", json!({"operatorId": grace, "reason": "back"})),
        ("operatorInvite", "operator { id login status }", json!({"login": "hopper", "role": "MEMBER"})),
    ];
    for (mutation, thing, mut input) in cases {
        input["conditions"] = json!({"idempotencyKey": format!("key of {mutation}")});
        let first = change(&platform, &tenant, mutation, thing, input.clone()).await;
        assert_eq!(first["userErrors"], json!([]), "{mutation}: {first}");
        let head = platform.head().await;
        assert_ne!(first["position"], "0", "{mutation}");
        let second = change(&platform, &tenant, mutation, thing, input).await;
        assert_eq!(second, first, "{mutation}");
        assert_eq!(platform.head().await, head, "{mutation} did it twice");
    }
    for key in ["x".repeat(201), String::new(), "a\0b".to_owned(), "a\nb".to_owned()] {
        let input = json!({"i": {"botId": bot, "conditions": {"idempotencyKey": key}}});
        let refusal = platform.refusal(Some(&tenant.token), &document("botStart", "bot { id }"), input).await;
        assert_eq!(refusal, "BAD_INPUT", "{key:?}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_change_from_an_old_view_is_a_conflict(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bot = format!("bot:{}", platform.bot(&tenant, 1).await.0);
    let version = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM events WHERE aggregate_type = 'bot'")
            .fetch_one(&platform.pool)
            .await
            .unwrap()
    };
    let known = version().await;
    let stop = |expected: i64| json!({"botId": bot, "reason": "night", "conditions": {"expectedVersion": expected.to_string()}});
    let query = document("botStop", "bot { status }");
    let old = platform.post(Some(&tenant.token), &query, json!({"i": stop(known - 1)})).await;
    assert_eq!(old.code(), "CONFLICT");
    assert_eq!(old.json()["errors"][0]["extensions"]["retryable"], true);
    assert_eq!(version().await, known);
    let now = change(&platform, &tenant, "botStop", "bot { status }", stop(known)).await;
    assert_eq!(now["bot"]["status"], "STOPPED");
    // Of two at once from the same view, one wins.
    let known = version().await;
    let start = json!({"i": {"botId": bot, "conditions": {"expectedVersion": known.to_string()}}});
    let query = document("botStart", "bot { status }");
    let both =
        futures::future::join_all((0..8).map(|_| platform.post(Some(&tenant.token), &query, start.clone())))
            .await;
    let won = both.iter().filter(|answer| answer.json().get("errors").is_none()).count();
    assert_eq!((won, version().await), (1, known + 1));
}
