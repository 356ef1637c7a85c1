//! `asOf`: what was answered then is answered again.

use botledger_commands::Decision;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Platform, Tenant, bot_token};

/// Everything that can be asked about the past, as of some moment.
const THEN: &str = "query q($bot: ID!, $person: ID!, $turn: ID!, $asOf: AsOf) {
    bot(id: $bot, asOf: $asOf) { id username mode status statusReason holder leaseEpoch position registeredAt changedAt
        settings { model systemPrompt maxAnswerTokens temperatureMilli streaming } }
    quota(personId: $person, asOf: $asOf) { id personId plan planTokens period windowStart windowEnd used reserved refusals
        position overrides { tokens expiresAt } }
    standing(botId: $bot, personId: $person, asOf: $asOf) { id blocked reason blockedUntil changedBy changedAt position }
    turn(id: $turn, asOf: $asOf) { id phase open session refusalKind refusal failure provider model reservedTokens promptTokens
        completionTokens estimated finish latencyMs messageIds decidedAt answeredAt endedAt position prompt reply } }";

struct Moment {
    position: i64,
    time: DateTime<Utc>,
}

async fn now(platform: &Platform) -> Moment {
    let position = platform.settle().await;
    let time = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&platform.pool).await.unwrap();
    Moment { position, time }
}

async fn change(platform: &Platform, tenant: &Tenant, mutation: &str, input: Value) {
    let kind = format!("{}{}Input", mutation[..1].to_uppercase(), &mutation[1..]);
    let query =
        format!("mutation m($i: {kind}!) {{ {mutation}(input: $i) {{ position userErrors {{ code }} }} }}");
    let data = platform.data(&tenant.token, &query, json!({"i": input})).await;
    assert_eq!(data[mutation]["userErrors"], json!([]), "{mutation}: {data}");
}

#[sqlx::test(migrations = "../migrations")]
async fn the_past_is_answered_as_it_was_answered_then(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let nothing = now(&platform).await;
    let (bot, fence) = platform.bot(&tenant, 1).await;
    let first = platform.message((bot, fence), 1, 77, "first").await;
    let person = platform.person_of(first).await;
    let ids = json!({"bot": format!("bot:{bot}"), "person": format!("person:{person}"), "turn": format!("turn:{first}")});
    let ask = async |as_of: Option<Value>| {
        let mut variables = ids.clone();
        variables["asOf"] = as_of.unwrap_or_default();
        platform.data(&tenant.token, THEN, variables).await
    };

    let mut answers: Vec<(Moment, Value)> = Vec::new();
    let mut take = async || {
        let moment = now(&platform).await;
        answers.push((moment, ask(None).await));
    };
    take().await;
    assert!(matches!(platform.admit(fence, first).await, Decision::Admitted(_)));
    take().await;
    platform.answer(fence, first, "an answer").await;
    take().await;
    platform.app.turns.deliver(&crate::support::system(), first, fence, vec![5]).await.unwrap();
    take().await;
    let (bot_id, person_id) = (&ids["bot"], &ids["person"]);
    let settings = json!({"systemPrompt": "Be brief.", "maxAnswerTokens": 64, "temperatureMilli": 300});
    change(&platform, &tenant, "botConfigure", json!({"botId": bot_id, "settings": settings})).await;
    take().await;
    change(
        &platform,
        &tenant,
        "standingBlock",
        json!({"botId": bot_id, "personId": person_id, "reason": "spam"}),
    )
    .await;
    take().await;
    let until = "2099-01-01T00:00:00Z";
    let block = json!({"botId": bot_id, "personId": person_id, "reason": "again", "until": until});
    change(&platform, &tenant, "standingBlock", block).await;
    take().await;
    let second = platform.message((bot, fence), 2, 77, "second").await;
    assert!(matches!(platform.admit(fence, second).await, Decision::Refused { .. }));
    take().await;
    change(
        &platform,
        &tenant,
        "standingUnblock",
        json!({"botId": bot_id, "personId": person_id, "reason": "sorry"}),
    )
    .await;
    take().await;
    change(
        &platform,
        &tenant,
        "planDefine",
        json!({"plan": "pro", "tokens": "5000000000", "period": "MONTH"}),
    )
    .await;
    change(&platform, &tenant, "quotaAssignPlan", json!({"personId": person_id, "plan": "pro"})).await;
    take().await;
    let grant = json!({"personId": person_id, "tokens": "77", "expiresAt": until, "reason": "kind"});
    change(&platform, &tenant, "quotaGrantOverride", grant).await;
    take().await;
    change(&platform, &tenant, "botRotateToken", json!({"botId": bot_id, "token": bot_token(1)})).await;
    change(&platform, &tenant, "botStop", json!({"botId": bot_id, "reason": "night"})).await;
    take().await;

    // They differ, or the comparison would prove nothing.
    let distinct: std::collections::BTreeSet<String> =
        answers.iter().map(|(_, answer)| answer.to_string()).collect();
    assert!(distinct.len() >= answers.len() - 1, "{} of {}", distinct.len(), answers.len());
    assert_eq!(answers[1].1["turn"]["phase"], "ADMITTED");
    assert_eq!(answers[1].1["turn"]["prompt"], "first");
    assert_eq!(answers.last().unwrap().1["quota"]["planTokens"], "5000000000");

    for (moment, then) in answers.iter().rev() {
        let by_position = ask(Some(json!({"position": moment.position.to_string()}))).await;
        assert_eq!(&by_position, then, "as of position {}", moment.position);
        let by_time = ask(Some(json!({"time": moment.time.to_rfc3339()}))).await;
        assert_eq!(&by_time, then, "as of {}", moment.time);
    }
    for before in [
        json!({"position": nothing.position.to_string()}),
        json!({"time": nothing.time.to_rfc3339()}),
        json!({"position": "0"}),
    ] {
        assert_eq!(
            ask(Some(before)).await,
            json!({"bot": null, "quota": null, "standing": null, "turn": null})
        );
    }
    let both = json!({"position": "1", "time": until});
    let mut variables = ids.clone();
    variables["asOf"] = both;
    assert_eq!(platform.refusal(Some(&tenant.token), THEN, variables).await, "BAD_INPUT");
}
