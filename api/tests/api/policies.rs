//! Policies as operators see and change them, and what they made of messages.

use std::collections::BTreeMap;

use botledger_commands::execute::execute;
use botledger_domain::{
    TurnId,
    operator::Role,
    policy::{PolicyOwner, PolicyRef},
    signal::{Detector, Findings, IntentFinding, Signal, SignalLevel, TextSpan},
    turn::{Turn, TurnCommand},
};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    subscriptions::stream,
    support::{Platform, Tenant, system},
};
use futures::StreamExt;

const PUBLISH: &str = "mutation m($i: PolicyPublishInput!) { policyPublish(input: $i) { position
    policy { botId lastVersion inForce { version watches dryRun dryRunUntil note publishedBy } }
    userErrors { code message field } } }";
const RESTORE: &str = "mutation m($i: PolicyRestoreInput!) { policyRestore(input: $i) { position
    policy { lastVersion inForce { version watches note } } userErrors { code message field } } }";
const WITHDRAW: &str = "mutation m($i: PolicyWithdrawInput!) { policyWithdraw(input: $i) { position
    policy { lastVersion inForce { version } } userErrors { code message field } } }";
const VERSIONS: &str = "query q($f: PolicyVersionFilterInput) { policyVersions(filter: $f) { edges { node {
    botId version inForce withdrawn withdrawalReason note } } } }";
const EFFECTIVE: &str = "query q($b: ID!) { effectivePolicy(botId: $b) { owner version watches watchesUntil
    terms { offTopic throttledPerMinute } published { version note } } }";
const TERMS: &str = "terms { intents { name examples } notThis offTopic embeddingModel suspectedAttack
    confidentAttack spam categories { category fromPermille severity response } personalData secrets
    blockedWords { phrase severity } blockedWord behaviour moderation { service required } failClosed preset
    ownLadder ladder { warn throttle tempBlock minEvents baseBlockMs points { spam flood } violationKinds
    severeKinds } throttledPerMinute }";

async fn change(platform: &Platform, tenant: &Tenant, mutation: &str, input: Value) -> Value {
    let mut data = platform.data(&tenant.token, mutation, json!({"i": input})).await;
    data.as_object_mut().unwrap().values_mut().next().unwrap().take()
}

async fn done(platform: &Platform, tenant: &Tenant, mutation: &str, input: Value) -> Value {
    let payload = change(platform, tenant, mutation, input).await;
    assert_eq!(payload["userErrors"], json!([]), "{payload}");
    payload
}

/// Code and words of a refusal.
async fn refused(platform: &Platform, tenant: &Tenant, mutation: &str, input: Value) -> (String, String) {
    let payload = change(platform, tenant, mutation, input).await;
    assert!(payload["position"].is_null(), "{payload}");
    let error = &payload["userErrors"][0];
    (error["code"].as_str().unwrap().to_owned(), error["message"].as_str().unwrap().to_owned())
}

fn support_terms() -> Value {
    let orders = json!(["where is my order", "когда привезут заказ", "track my parcel"]);
    json!({
        "intents": [{"name": "orders", "examples": orders}],
        "notThis": ["write me a poem"],
        "offTopic": "REFUSE",
        "categories": [{"category": "H2", "fromPermille": 700, "severity": "SEVERE", "response": "REFUSE"}],
        "blockedWords": [{"phrase": "казино*", "severity": "MEDIUM"}],
        "secrets": "REFUSE",
        "preset": "STRICT",
        "throttledPerMinute": 3,
    })
}

#[sqlx::test(migrations = "../migrations")]
async fn a_policy_is_published_read_restored_and_withdrawn(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let (bot, _) = platform.bot(&tenant, 1).await;
    platform.settle().await;
    let bot_id = format!("bot:{bot}");
    let effective = async || platform.data(&tenant.token, EFFECTIVE, json!({"b": bot_id})).await;
    let nobodys = effective().await;
    assert_eq!(nobodys["effectivePolicy"]["owner"], "BUILT_IN");
    assert_eq!(
        (&nobodys["effectivePolicy"]["version"], &nobodys["effectivePolicy"]["watches"]),
        (&json!(0), &json!(true))
    );

    let whole = json!({"terms": {"throttledPerMinute": 9}, "mode": "LIVE"});
    done(&platform, &tenant, PUBLISH, whole).await;
    assert_eq!(
        effective().await["effectivePolicy"],
        json!({"owner": "WORKSPACE", "version": 1, "watches": false, "watchesUntil": null,
               "terms": {"offTopic": "SCORE", "throttledPerMinute": 9}, "published": {"version": 1, "note": null}})
    );
    let own = json!({"botId": bot_id, "terms": support_terms(), "note": "the shop opens"});
    let first = done(&platform, &tenant, PUBLISH, own.clone()).await;
    let in_force = &first["policy"]["inForce"];
    assert_eq!((&first["policy"]["botId"], &in_force["version"]), (&json!(bot_id), &json!(1)));
    assert_eq!((&in_force["watches"], &in_force["dryRun"]), (&json!(true), &json!(true)), "its first week");
    assert_eq!(in_force["publishedBy"], format!("operator:{}", tenant.owner));
    let seen = effective().await;
    assert_eq!(
        (&seen["effectivePolicy"]["owner"], &seen["effectivePolicy"]["version"]),
        (&json!("BOT"), &json!(1))
    );
    // The ledger keeps more of a second than the read model.
    let moment = |value: &Value| value.as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
    let apart = moment(&seen["effectivePolicy"]["watchesUntil"]) - moment(&in_force["dryRunUntil"]);
    assert!(apart.abs() < TimeDelta::milliseconds(1), "{seen}");
    assert_eq!(seen["effectivePolicy"]["published"]["note"], "the shop opens");
    // The same again is no new version.
    assert_eq!(done(&platform, &tenant, PUBLISH, own).await["position"], "0");

    let second =
        json!({"botId": bot_id, "terms": {"offTopic": "IGNORE"}, "mode": "LIVE", "note": "too strict"});
    done(&platform, &tenant, PUBLISH, second).await;
    let back = json!({"botId": bot_id, "version": 1, "note": "it was not"});
    let third = done(&platform, &tenant, RESTORE, back).await;
    assert_eq!(
        third["policy"],
        json!({"lastVersion": 3, "inForce": {"version": 3, "watches": false, "note": "it was not"}})
    );
    let before_the_end = platform.settle().await;
    let gone = json!({"botId": bot_id, "reason": "the shop closes"});
    let payload = done(&platform, &tenant, WITHDRAW, gone.clone()).await;
    assert_eq!(payload["policy"], json!({"lastVersion": 3, "inForce": null}));
    assert_eq!(done(&platform, &tenant, WITHDRAW, gone).await["position"], "0");
    assert_eq!(effective().await["effectivePolicy"]["owner"], "WORKSPACE");

    let versions = async |filter: Value| {
        let mut data = platform.data(&tenant.token, VERSIONS, json!({"f": filter})).await;
        let edges = data["policyVersions"]["edges"].as_array_mut().unwrap();
        edges.iter_mut().map(|edge| edge["node"].take()).collect::<Vec<Value>>()
    };
    let own = versions(json!({"botId": bot_id})).await;
    let numbers: Vec<_> = own.iter().map(|node| node["version"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [3, 2, 1]);
    assert_eq!(
        own[0],
        json!({"botId": bot_id, "version": 3, "inForce": false, "withdrawn": true,
               "withdrawalReason": "the shop closes", "note": "it was not"})
    );
    assert_eq!((&own[1]["withdrawn"], &own[1]["inForce"]), (&json!(false), &json!(false)));
    let standing = versions(json!({"inForce": true})).await;
    assert_eq!(standing.len(), 1);
    assert_eq!((&standing[0]["botId"], &standing[0]["version"]), (&Value::Null, &json!(1)));
    assert_eq!(versions(json!({"workspaceOnly": true})).await.len(), 1);

    let query = format!(
        "query q($b: ID!, $p: Position!) {{
        then: policy(botId: $b, asOf: {{position: $p}}) {{ inForce {{ version inForce {TERMS} }} }}
        never: policy(botId: $b, asOf: {{position: \"1\"}}) {{ lastVersion }}
        one: policyVersion(botId: $b, version: 2) {{ note terms {{ offTopic }} }}
        none: policyVersion(botId: $b, version: 4) {{ note }} }}"
    );
    let variables = json!({"b": bot_id, "p": before_the_end.to_string()});
    let data = platform.data(&tenant.token, &query, variables).await;
    assert_eq!(data["one"], json!({"note": "too strict", "terms": {"offTopic": "IGNORE"}}));
    assert_eq!((&data["never"], &data["none"]), (&Value::Null, &Value::Null));
    let then = &data["then"]["inForce"];
    assert_eq!((&then["version"], &then["inForce"]), (&json!(3), &json!(true)));
    // What was given is what is read, and the rest is as without any policy.
    let terms = &then["terms"];
    for (name, given) in support_terms().as_object().unwrap() {
        assert_eq!(&terms[name], given, "{name}");
    }
    assert_eq!((&terms["confidentAttack"], &terms["personalData"]), (&json!("REFUSE"), &json!("MASK")));
    assert_eq!((&terms["ownLadder"], &terms["ladder"]["warn"]), (&json!(false), &json!("21000")));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_ladder_of_its_own_keeps_what_is_not_given(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let ladder = json!({"warn": "20000", "minEvents": 2, "points": {"spam": 40_000}, "severeKinds": ["CATEGORY_SEVERE", "SPAM"]});
    done(&platform, &tenant, PUBLISH, json!({"terms": {"ladder": ladder}})).await;
    let query = format!("{{ policy {{ inForce {{ {TERMS} }} }} }}");
    let data = platform.data(&tenant.token, &query, json!({})).await;
    let terms = &data["policy"]["inForce"]["terms"];
    assert_eq!(terms["ownLadder"], true);
    assert_eq!(
        terms["ladder"],
        json!({"warn": "20000", "throttle": "50000", "tempBlock": "80000", "minEvents": 2, "baseBlockMs": "900000",
               "points": {"spam": 40_000, "flood": 5_000},
               "violationKinds": ["SPAM", "INJECTION_CONFIDENT", "CATEGORY_LOW", "CATEGORY_MEDIUM", "CATEGORY_SEVERE"],
               "severeKinds": ["SPAM", "CATEGORY_SEVERE"]})
    );
}

#[sqlx::test(migrations = "../migrations")]
async fn what_makes_no_sense_is_refused_with_what_is_wrong(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (tenant, other) = (platform.tenant("one").await, platform.tenant("other").await);
    let (bot, _) = platform.bot(&tenant, 1).await;
    platform.settle().await;
    let bot_id = format!("bot:{bot}");
    let line = |category: &str| json!({"category": category, "fromPermille": 10, "severity": "LOW", "response": "SCORE"});
    for (terms, words) in [
        (json!({"throttledPerMinute": 0}), "at least one message a minute"),
        (
            json!({"intents": [{"name": "orders", "examples": ["one", "One ", "one"]}]}),
            "orders needs 3 different",
        ),
        (json!({"categories": [line("H9")]}), "no category H9"),
        (json!({"categories": [line("H"), line("H")]}), "two lines are drawn through category H"),
        (json!({"ladder": {"warn": "-1"}}), "warn is no number from 0"),
        (json!({"ladder": {"warn": "60000"}}), "warn has to be below throttle"),
    ] {
        let (code, message) = refused(&platform, &tenant, PUBLISH, json!({"terms": terms})).await;
        assert_eq!(code, "POLICY_INVALID", "{message}");
        assert!(message.contains(words), "{message}");
    }
    let past = json!({"terms": {}, "mode": "DRY_RUN", "dryRunUntil": "2020-01-01T00:00:00Z"});
    assert_eq!(refused(&platform, &tenant, PUBLISH, past).await.0, "POLICY_DRY_RUN_END");
    let empty = refused(&platform, &tenant, PUBLISH, json!({"terms": {}, "note": "  "})).await;
    assert_eq!(empty, ("BAD_INPUT".to_owned(), "the reason is empty".to_owned()));
    assert_eq!(refused(&platform, &tenant, WITHDRAW, json!({"reason": ""})).await.0, "BAD_INPUT");
    let strange = json!({"i": {"terms": {}, "mode": "LIVE", "dryRunUntil": "2090-01-01T00:00:00Z"}});
    assert_eq!(platform.refusal(Some(&tenant.token), PUBLISH, strange).await, "BAD_INPUT");
    let model = refused(&platform, &tenant, PUBLISH, json!({"terms": {"embeddingModel": "a b"}})).await;
    assert_eq!(model.0, "BAD_INPUT");
    let query = "{ policy { lastVersion } policyVersions { edges { node { version } } } }";
    let data = platform.data(&tenant.token, query, json!({})).await;
    assert_eq!(data, json!({"policy": null, "policyVersions": {"edges": []}}), "nothing was kept");
    let restore = json!({"i": {"version": 1}});
    assert_eq!(platform.refusal(Some(&tenant.token), RESTORE, restore).await, "NOT_FOUND");

    // Another workspace's bot does not exist, nor do its policies.
    done(&platform, &tenant, PUBLISH, json!({"botId": bot_id, "terms": {}})).await;
    let foreign = json!({"i": {"botId": bot_id, "terms": {}}});
    assert_eq!(platform.refusal(Some(&other.token), PUBLISH, foreign).await, "NOT_FOUND");
    let query = "query q($b: ID!) { policy(botId: $b) { lastVersion } effectivePolicy(botId: $b) { version }
        policyVersion(botId: $b, version: 1) { version }
        policyVersions(filter: {botId: $b}) { edges { node { version } } } }";
    let data = platform.data(&other.token, query, json!({"b": bot_id})).await;
    assert_eq!(
        data,
        json!({"policy": null, "effectivePolicy": null, "policyVersion": null, "policyVersions": {"edges": []}})
    );
    for role in [Role::Moderator, Role::Auditor, Role::Member] {
        let token = platform.token_as(&tenant, role).await;
        let input = json!({"i": {"terms": {}}});
        assert_eq!(platform.refusal(Some(&token), PUBLISH, input).await, "FORBIDDEN", "{role:?}");
    }
}

fn seen() -> Findings {
    let signal = |detector, rule: &str, level| Signal {
        detector,
        rule: rule.to_owned(),
        level,
        score_permille: 900,
        spans: vec![TextSpan { start: 2, end: 7 }],
    };
    Findings {
        intent: Some(IntentFinding {
            intent: "orders".to_owned(),
            oos_permille: 840,
            method: "ngram".to_owned(),
        }),
        signals: vec![
            signal(Detector::Spam, "advert", SignalLevel::Confident),
            signal(Detector::BlockedWord, "1", SignalLevel::Confident),
        ],
        scores: BTreeMap::from([("H2".to_owned(), 12)]),
        models: BTreeMap::from([("spam".to_owned(), "c0ffee".to_owned())]),
        unavailable: vec!["openai".to_owned()],
    }
}

async fn score(platform: &Platform, turn: TurnId, policy: PolicyRef, findings: Findings) {
    let command = TurnCommand::Score { policy, findings };
    execute::<Turn>(&platform.app.core, &system(), &turn.to_string(), command, |_| Ok(())).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn a_message_tells_what_was_seen_in_it_and_which_policy_judged_it(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bot = platform.bot(&tenant, 1).await;
    platform.settle().await;
    let bot_id = format!("bot:{}", bot.0);
    done(&platform, &tenant, PUBLISH, json!({"botId": bot_id, "terms": support_terms(), "note": "shop"}))
        .await;
    let turns = [
        platform.message(bot, 1, 7, "buy pills").await,
        platform.message(bot, 2, 7, "where is it").await,
        platform.message(bot, 3, 7, "hello").await,
    ];
    let own = PolicyRef { owner: PolicyOwner::Bot, version: 1, dry_run: true };
    score(&platform, turns[0], own, seen()).await;
    score(&platform, turns[1], PolicyRef::default(), Findings::default()).await;
    platform.settle().await;
    let query = "query q($id: ID!) { turn(id: $id) { flagged
        policy { owner version dryRun published { note terms { offTopic } } }
        findings { intent oosPermille intentMethod scores { name scorePermille } models { name version } unavailable
            signals { detector rule level scorePermille spans { start end } } } } }";
    let ask = async |token: &str, turn: TurnId| {
        platform.data(token, query, json!({"id": format!("turn:{turn}")})).await["turn"].take()
    };
    let spans = json!([{"start": 2, "end": 7}]);
    let told = ask(&tenant.token, turns[0]).await;
    assert_eq!(
        told,
        json!({
            "flagged": ["SPAM", "BLOCKED_WORD"],
            "policy": {"owner": "BOT", "version": 1, "dryRun": true,
                       "published": {"note": "shop", "terms": {"offTopic": "REFUSE"}}},
            "findings": {
                "intent": "orders", "oosPermille": 840, "intentMethod": "ngram",
                "scores": [{"name": "H2", "scorePermille": 12}],
                "models": [{"name": "spam", "version": "c0ffee"}],
                "unavailable": ["openai"],
                "signals": [
                    {"detector": "SPAM", "rule": "advert", "level": "CONFIDENT", "scorePermille": 900, "spans": spans},
                    {"detector": "BLOCKED_WORD", "rule": "1", "level": "CONFIDENT", "scorePermille": 900, "spans": spans},
                ],
            },
        })
    );
    let auditor = platform.token_as(&tenant, Role::Auditor).await;
    let told_to_auditors = ask(&auditor, turns[0]).await;
    assert_eq!(told_to_auditors, told);
    assert!(!told.to_string().contains("pills"), "no text");
    let plain = ask(&tenant.token, turns[1]).await;
    assert_eq!(
        (&plain["policy"]["owner"], &plain["policy"]["published"]),
        (&json!("BUILT_IN"), &Value::Null)
    );
    let unseen = ask(&tenant.token, turns[2]).await;
    assert_eq!(unseen, json!({"flagged": [], "policy": null, "findings": null}));

    let count = async |filter: Value| {
        let query = "query q($f: TurnFilterInput) { turns(filter: $f) { totalCount } }";
        platform.data(&tenant.token, query, json!({"f": filter})).await["turns"]["totalCount"].take()
    };
    assert_eq!(count(json!({"flagged": ["SPAM", "ATTACK"]})).await, "1");
    assert_eq!(count(json!({"flagged": ["ATTACK"]})).await, "0");
    assert_eq!(count(json!({"intent": "orders", "oosFromPermille": 840})).await, "1");
    assert_eq!(count(json!({"oosFromPermille": 841})).await, "0");
    assert_eq!(count(json!({"dryRun": true})).await, "1");
    assert_eq!(count(json!({"dryRun": false})).await, "1");
}

#[sqlx::test(migrations = "../migrations")]
async fn every_change_of_a_policy_is_told_as_it_happens(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (tenant, other) = (platform.tenant("one").await, platform.tenant("other").await);
    let (bot, _) = platform.bot(&tenant, 1).await;
    platform.settle().await;
    let bot_id = format!("bot:{bot}");
    done(&platform, &other, PUBLISH, json!({"terms": {}})).await;
    done(&platform, &tenant, PUBLISH, json!({"botId": bot_id, "terms": support_terms()})).await;
    let query = "subscription { policyChanged(after: \"0\") { eventType policy { botId lastVersion } } }";
    let mut changes = stream(&platform, &tenant.token, query, json!({})).await;
    let mut next = async || changes.next().await.unwrap()["data"]["policyChanged"].take();
    let own = json!({"botId": bot_id, "lastVersion": 1});
    assert_eq!(next().await, json!({"eventType": "policy_published", "policy": own}));
    done(&platform, &tenant, WITHDRAW, json!({"botId": bot_id, "reason": "over"})).await;
    assert_eq!(next().await, json!({"eventType": "policy_withdrawn", "policy": own}));
}

const WHAT_IF: &str = "query q($i: PolicyWhatIfInput!) { policyWhatIf(input: $i) { judged ofOtherPolicies
    notLookedAt limits { kind messages } turnsChanged peopleChanged
    before { messages { outcome count } offences { kind count } people { state count } }
    after { messages { outcome count } offences { kind count } people { state count } peopleOnTrial { state count } }
    turns(first: 2) { edges { node { turnId botId personId before after offencesBefore offencesAfter } }
        pageInfo { hasNextPage endCursor } }
    people { edges { node { personId before { highest last } after { highest highestOnTrial last } } } } } }";

#[sqlx::test(migrations = "../migrations")]
async fn other_terms_are_tried_on_what_was_written(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (tenant, other) = (platform.tenant("one").await, platform.tenant("other").await);
    let bot = platform.bot(&tenant, 1).await;
    platform.settle().await;
    let bot_id = format!("bot:{}", bot.0);
    let mild =
        json!({"spam": "SCORE", "blockedWord": "SCORE", "blockedWords": support_terms()["blockedWords"]});
    done(&platform, &tenant, PUBLISH, json!({"botId": bot_id, "terms": mild, "mode": "LIVE"})).await;
    let own = PolicyRef { owner: PolicyOwner::Bot, version: 1, dry_run: false };
    let mut turns = Vec::new();
    for update in 1..=3 {
        let turn = platform.message(bot, update, 7, "buy pills").await;
        score(&platform, turn, own, seen()).await;
        turns.push(format!("turn:{turn}"));
    }
    platform.settle().await;
    let ask = async |token: &str, input: Value| {
        platform.data(token, WHAT_IF, json!({"i": input})).await["policyWhatIf"].take()
    };
    let sums = |outcome: &str| json!([{"outcome": outcome, "count": 3}]);
    let same = ask(&tenant.token, json!({"botId": bot_id})).await;
    assert_eq!((&same["judged"], &same["turnsChanged"], &same["limits"]), (&json!(3), &json!(0), &json!([])));
    assert_eq!(same["before"]["messages"], sums("PASSED"));
    // Nobody scored them in this test's ledger, as if a list let them in: that stays so.
    let refusing = ask(&tenant.token, json!({"botId": bot_id, "terms": {"spam": "REFUSE"}})).await;
    assert_eq!((&refusing["turnsChanged"], &refusing["judged"]), (&json!(0), &json!(3)));

    // A week of watching, tried as if it had acted.
    done(&platform, &tenant, PUBLISH, json!({"terms": {}})).await;
    let watching = PolicyRef { owner: PolicyOwner::Workspace, version: 1, dry_run: true };
    let (second, fence) = platform.bot(&tenant, 2).await;
    let mut watched = Vec::new();
    for update in 1..=3 {
        let turn = platform.message((second, fence), update, 7, "buy pills").await;
        let secret = Signal {
            detector: Detector::Secret,
            rule: "SECRET".to_owned(),
            level: SignalLevel::Confident,
            score_permille: 1_000,
            spans: vec![],
        };
        score(&platform, turn, watching, Findings { signals: vec![secret], ..Findings::default() }).await;
        watched.push(format!("turn:{turn}"));
    }
    platform.settle().await;
    let terms = json!({"terms": {"secrets": "REFUSE", "intents": support_terms()["intents"]}, "acts": true});
    let report = ask(&tenant.token, terms.clone()).await;
    assert_eq!((&report["judged"], &report["ofOtherPolicies"]), (&json!(3), &json!(3)));
    assert_eq!(report["limits"], json!([{"kind": "INTENTS", "messages": 3}]));
    let both = json!([{"outcome": "PASSED", "count": 3}, {"outcome": "CONTENT", "count": 3}]);
    assert_eq!(report["after"]["messages"], both);
    assert_eq!(report["turnsChanged"], 3);
    let page = &report["turns"]["edges"];
    assert_eq!(
        (&page[0]["node"]["turnId"], &page[1]["node"]["turnId"]),
        (&json!(watched[2]), &json!(watched[1]))
    );
    assert_eq!(
        (&page[0]["node"]["before"], &page[0]["node"]["after"]),
        (&json!("PASSED"), &json!("CONTENT"))
    );
    assert_eq!(report["turns"]["pageInfo"]["hasNextPage"], true);
    assert_eq!(report["people"]["edges"], json!([]), "refusing personal data costs nobody points");
    // Auditors may ask as well, and are told no text.
    let auditor = platform.token_as(&tenant, Role::Auditor).await;
    assert_eq!(ask(&auditor, terms).await, report);
    assert!(!report.to_string().contains("pills"));
    let nothing = ask(&other.token, json!({})).await;
    assert_eq!((&nothing["judged"], &nothing["notLookedAt"]), (&json!(0), &json!(0)));
    let version = ask(&tenant.token, json!({"botId": bot_id, "version": 1})).await;
    assert_eq!(version["turnsChanged"], 0);

    for (input, code) in [
        (json!({"botId": bot_id, "version": 9}), "NOT_FOUND"),
        (json!({"botId": bot_id, "version": 1, "terms": {}}), "BAD_INPUT"),
        (json!({"terms": {"throttledPerMinute": 0}}), "BAD_INPUT"),
        (json!({"terms": {"ladder": {"warn": "-1"}}}), "BAD_INPUT"),
        (json!({"from": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}), "BAD_INPUT"),
    ] {
        assert_eq!(
            platform.refusal(Some(&tenant.token), WHAT_IF, json!({"i": input})).await,
            code,
            "{input}"
        );
    }
    let foreign = json!({"i": {"botId": bot_id}});
    assert_eq!(platform.refusal(Some(&other.token), WHAT_IF, foreign).await, "NOT_FOUND");
}
