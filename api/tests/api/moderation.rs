//! Standings as moderators meet them: why somebody is blocked, the queue, decisions about many, and
//! every step as it happens.

use botledger_commands::{Caller, Fence, execute::execute};
use botledger_domain::{
    BotId, SubjectId, TurnId,
    operator::Role,
    standing::{
        Evidence, Offence, Scoring, Standing, StandingCommand,
        ladder::{LadderConfig, OffenceKind},
    },
    standing_stream,
};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    subscriptions::{over_socket, stream},
    support::{Platform, Tenant, system},
};
use futures::StreamExt;

const EXPLANATION: &str =
    "explanation { state verdict blockCause reason until driftMilli violationMilli scoreMilli
    thresholds { warnMilli throttleMilli tempBlockMilli warnExitMilli throttleExitMilli }
    contributions { turnId liveMilli policyVersion modelVersion
        offence { kind pointsMilli lane oosPermille intent evidence { detector rule spans { start end } } } }
    policyVersion modelVersion appeal appealableFrom }";
const CHANGED: &str = "subscription s($after: Position, $bot: ID, $types: [String!]) {
    standingChanged(after: $after, botId: $bot, eventTypes: $types) {
        position eventType standing { state } case { id kind status } } }";

/// A person who wrote to a bot, and what is held against them.
struct Writer<'a> {
    platform: &'a Platform,
    bot: (BotId, Fence),
    telegram_id: i64,
    person: SubjectId,
}

impl<'a> Writer<'a> {
    async fn new(platform: &'a Platform, bot: (BotId, Fence), telegram_id: i64) -> Self {
        let turn = platform.talk(bot, telegram_id * 100, telegram_id, "a good beginning").await;
        Self { platform, bot, telegram_id, person: platform.person_of(turn).await }
    }

    /// One more message, scored.
    async fn writes(&self, number: i64, text: &str, kinds: &[OffenceKind]) -> TurnId {
        let update = self.telegram_id * 100 + number;
        let turn = self.platform.message(self.bot, update, self.telegram_id, text).await;
        let offence = |kind: &OffenceKind| Offence {
            kind: *kind,
            oos_permille: None,
            intent: Some("orders".to_owned()),
            evidence: vec![Evidence {
                detector: "spam".to_owned(),
                rule: "advert".to_owned(),
                spans: vec![(4, 9)],
            }],
        };
        let scoring = Scoring {
            bot: self.bot.0,
            subject: self.person,
            turn,
            offences: kinds.iter().map(offence).collect(),
            rules: LadderConfig::default(),
            policy_version: 3,
            model_version: "c0ffee".to_owned(),
            dry_run: false,
        };
        let stream = standing_stream(self.bot.0, self.person).to_string();
        let command = StandingCommand::Score(Box::new(scoring));
        execute::<Standing>(&self.platform.app.core, &system(), &stream, command, |_| Ok(())).await.unwrap();
        turn
    }

    async fn appeals(&self, number: i64, grounds: &str) -> TurnId {
        let update = self.telegram_id * 100 + number;
        let turn = self.platform.message(self.bot, update, self.telegram_id, "/appeal").await;
        let caller = Caller::subject(self.person, turn);
        let standings = &self.platform.app.standings;
        standings.file_appeal(&caller, self.bot.0, self.person, turn, grounds).await.unwrap();
        turn
    }

    fn ids(&self) -> Value {
        json!({"botId": format!("bot:{}", self.bot.0), "personId": format!("person:{}", self.person)})
    }

    async fn standing(&self, token: &str, fields: &str, as_of: Value) -> Value {
        let query = format!(
            "query q($bot: ID!, $person: ID!, $asOf: AsOf) {{
                standing(botId: $bot, personId: $person, asOf: $asOf) {{ {fields} }} }}"
        );
        let ids = self.ids();
        let variables = json!({"bot": ids["botId"], "person": ids["personId"], "asOf": as_of});
        self.platform.data(token, &query, variables).await["standing"].take()
    }
}

fn nodes(connection: &Value) -> Vec<Value> {
    connection["edges"].as_array().unwrap().iter().map(|edge| edge["node"].clone()).collect()
}

async fn queue(platform: &Platform, token: &str, filter: Value, fields: &str) -> Vec<Value> {
    platform.settle().await;
    let query = format!(
        "query q($f: ModerationQueueFilter) {{ moderationQueue(filter: $f) {{ edges {{ node {{ {fields} }} }} }} }}"
    );
    nodes(&platform.data(token, &query, json!({"f": filter})).await["moderationQueue"])
}

async fn change(platform: &Platform, token: &str, mutation: &str, fields: &str, input: Value) -> Value {
    let kind = format!("{}{}Input", mutation[..1].to_uppercase(), &mutation[1..]);
    let query = format!(
        "mutation m($i: {kind}!) {{ {mutation}(input: $i) {{ {fields} position userErrors {{ code field }} }} }}"
    );
    platform.data(token, &query, json!({"i": input})).await[mutation].take()
}

async fn opened(pool: PgPool) -> (Platform, Tenant, (BotId, Fence)) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bot = platform.bot(&tenant, 1).await;
    (platform, tenant, bot)
}

#[sqlx::test(migrations = "../migrations")]
async fn why_somebody_is_blocked_is_told_now_and_as_of_then(pool: PgPool) {
    let (platform, tenant, bot) = opened(pool).await;
    let writer = Writer::new(&platform, bot, 77).await;
    writer.writes(1, "one", &[OffenceKind::Flood]).await;
    let then = platform.settle().await;
    let worst = writer.writes(2, "two", &[OffenceKind::Spam; 4]).await;
    platform.settle().await;
    let fields =
        format!("state blocked blockCause blockedUntil scoreMilli policyVersion changedBy {EXPLANATION}");
    let now = writer.standing(&tenant.token, &fields, Value::Null).await;
    assert_eq!(
        (&now["state"], &now["blocked"], &now["blockCause"]),
        (&json!("TEMP_BLOCKED"), &json!(true), &json!("SCORE"))
    );
    assert_eq!(
        (&now["scoreMilli"], &now["policyVersion"], &now["changedBy"]),
        (&json!("85000"), &json!(3), &json!(null))
    );
    let why = &now["explanation"];
    assert_eq!(
        (&why["verdict"], &why["appeal"], &why["until"]),
        (&json!("BLOCKED"), &json!("NOW"), &now["blockedUntil"])
    );
    assert_eq!(why["thresholds"]["tempBlockMilli"], "80000");
    let heaviest = why["contributions"].as_array().unwrap();
    assert_eq!(heaviest.len(), 3);
    assert_eq!(heaviest[0]["turnId"], format!("turn:{worst}"));
    assert_eq!(
        heaviest[0]["offence"],
        json!({"kind": "SPAM", "pointsMilli": "20000", "lane": "VIOLATION", "oosPermille": null, "intent": "orders",
            "evidence": [{"detector": "spam", "rule": "advert", "spans": [{"start": 4, "end": 9}]}]})
    );
    assert_eq!((&heaviest[0]["policyVersion"], &heaviest[0]["modelVersion"]), (&json!(3), &json!("c0ffee")));

    let past = writer.standing(&tenant.token, &fields, json!({"position": then.to_string()})).await;
    assert_eq!((&past["state"], &past["explanation"]["verdict"]), (&json!("OK"), &json!("CLEAR")));
    assert_eq!(past["explanation"]["contributions"][0]["offence"]["kind"], "FLOOD");
    assert_eq!(past["explanation"]["appeal"], Value::Null);

    // A block of a quarter of an hour ends by time alone, in the explanation and not in the row.
    platform.pass(901);
    let token = platform.token(tenant.owner);
    let later = writer.standing(&token, &fields, Value::Null).await;
    assert_eq!(
        (&later["state"], &later["explanation"]["state"]),
        (&json!("TEMP_BLOCKED"), &json!("THROTTLED"))
    );
    assert_eq!(later["explanation"]["driftMilli"], "0");

    let history = "scorings(offending: true) { edges { node { turnId stateBefore stateAfter pointsMilli
        driftBeforeMilli violationAfterMilli offences { kind } dryRun } } }";
    let history = nodes(&writer.standing(&token, history, Value::Null).await["scorings"]);
    assert_eq!(history.len(), 2);
    assert_eq!(
        (&history[0]["stateBefore"], &history[0]["stateAfter"], &history[0]["pointsMilli"]),
        (&json!("OK"), &json!("TEMP_BLOCKED"), &json!("80000"))
    );
}

#[sqlx::test(migrations = "../migrations")]
async fn a_case_shows_its_context_to_those_who_may_read_it(pool: PgPool) {
    let (platform, tenant, bot) = opened(pool).await;
    let writer = Writer::new(&platform, bot, 77).await;
    writer.writes(1, "something unspeakable", &[OffenceKind::CategorySevere]).await;
    writer.appeals(2, "I quoted a film").await;
    let fields =
        "kind status against cause scoreMilli appealText context(first: 3) { prompt } standing { state }
        person { id } scorings { edges { node { pointsMilli } } }";
    let moderator = platform.token_as(&tenant, Role::Moderator).await;
    let cases = queue(&platform, &moderator, Value::Null, fields).await;
    assert_eq!(cases.len(), 2, "newest first");
    assert_eq!((&cases[0]["kind"], &cases[0]["appealText"]), (&json!("APPEAL"), &json!("I quoted a film")));
    assert_eq!((&cases[0]["against"], &cases[0]["cause"]), (&json!("BLOCKED"), &json!("SEVERE")));
    assert_eq!((&cases[1]["kind"], &cases[1]["scoreMilli"]), (&json!("SEVERE_BLOCK"), &json!("100000")));
    assert_eq!(
        cases[0]["context"],
        json!([{"prompt": "/appeal"}, {"prompt": "something unspeakable"}, {"prompt": "a good beginning"}])
    );
    assert_eq!(cases[1]["context"].as_array().unwrap().len(), 2, "what came before the case");
    assert_eq!(cases[0]["scorings"]["edges"][0]["node"]["pointsMilli"], "100000");

    let auditor = platform.token_as(&tenant, Role::Auditor).await;
    assert_eq!(queue(&platform, &auditor, Value::Null, "id kind context { id }").await.len(), 2);
    for field in ["appealText", "context { prompt }"] {
        let query = format!("{{ moderationQueue {{ edges {{ node {{ {field} }} }} }} }}");
        let answer = platform.post(Some(&auditor), &query, json!({})).await;
        assert_eq!(answer.code(), "FORBIDDEN", "{field}");
        assert!(!answer.text.contains("film") && !answer.text.contains("unspeakable"), "{}", answer.text);
    }
    for filter in [json!({"kinds": ["BLOCK"]}), json!({"statuses": ["DECIDED"]})] {
        assert!(queue(&platform, &moderator, filter.clone(), "id").await.is_empty(), "{filter}");
    }
    let wide = "{ moderationQueue { edges { node { context(first: 51) { id } } } } }";
    assert_eq!(platform.refusal(Some(&moderator), wide, json!({})).await, "BAD_INPUT");
}

#[sqlx::test(migrations = "../migrations")]
async fn an_appeal_is_denied_taken_back_and_granted(pool: PgPool) {
    let (platform, tenant, bot) = opened(pool).await;
    let writer = Writer::new(&platform, bot, 77).await;
    writer.writes(1, "buy", &[OffenceKind::Spam; 4]).await;
    writer.appeals(2, "").await;
    let token = platform.token_as(&tenant, Role::Moderator).await;
    let with = |reason: &str| {
        let mut input = writer.ids();
        input["reason"] = json!(reason);
        input
    };
    let thing = "standing { state appealedAt appealableFrom changedBy }";
    let denied = change(&platform, &token, "standingAppealDeny", thing, with("rightly")).await;
    assert_eq!((&denied["userErrors"], &denied["standing"]["appealedAt"]), (&json!([]), &Value::Null));
    assert!(denied["standing"]["appealableFrom"].is_string() && denied["standing"]["changedBy"].is_string());
    let again = change(&platform, &token, "standingAppealGrant", thing, writer.ids()).await;
    assert_eq!(again["userErrors"][0]["code"], "STANDING_NO_APPEAL");
    let decided = json!({"statuses": ["DECIDED"], "kinds": ["APPEAL"]});
    let told = queue(&platform, &token, decided, "decision reason decidedBy").await;
    assert_eq!((&told[0]["decision"], &told[0]["reason"]), (&json!("DENIED"), &json!("rightly")));

    let undone = change(&platform, &token, "standingUndo", thing, with("too fast")).await;
    assert!(undone["standing"]["appealedAt"].is_string(), "{undone}");
    let twice = change(&platform, &token, "standingUndo", thing, with("again")).await;
    assert_eq!(twice["userErrors"][0]["code"], "STANDING_NOTHING_TO_UNDO");
    let waiting = queue(&platform, &token, json!({"kinds": ["APPEAL"]}), "status decision").await;
    assert_eq!(waiting, [json!({"status": "UNDONE", "decision": "DENIED"})]);

    let granted = change(&platform, &token, "standingAppealGrant", thing, writer.ids()).await;
    assert_eq!((&granted["userErrors"], &granted["standing"]["state"]), (&json!([]), &json!("OK")));
    assert!(queue(&platform, &token, Value::Null, "id").await.is_empty());
    let words = change(&platform, &token, "standingAppealDeny", thing, with(" ")).await;
    assert_eq!(
        (&words["userErrors"][0]["code"], &words["userErrors"][0]["field"]),
        (&json!("BAD_INPUT"), &json!("reason"))
    );
}

#[sqlx::test(migrations = "../migrations")]
async fn many_cases_are_decided_at_once(pool: PgPool) {
    let (platform, tenant, bot) = opened(pool).await;
    let elsewhere = platform.tenant("two").await;
    let their_bot = platform.bot(&elsewhere, 2).await;
    let theirs = Writer::new(&platform, their_bot, 55).await;
    theirs.writes(1, "x", &[OffenceKind::CategorySevere]).await;
    for telegram_id in [71, 72, 73] {
        let writer = Writer::new(&platform, bot, telegram_id).await;
        writer.writes(1, "buy", &[OffenceKind::CategorySevere]).await;
        if telegram_id != 73 {
            writer.appeals(2, "please").await;
        }
    }
    let ids =
        |cases: Vec<Value>| -> Vec<Value> { cases.into_iter().map(|case| case["id"].clone()).collect() };
    let foreign = ids(queue(&platform, &elsewhere.token, Value::Null, "id").await);
    let mut cases = ids(queue(&platform, &tenant.token, Value::Null, "id").await);
    assert_eq!((cases.len(), foreign.len()), (5, 1));
    cases.extend(foreign);

    let fields = "outcomes { caseId case { status decision } position userErrors { code } }";
    let input =
        json!({"caseIds": cases, "action": "GRANT_APPEAL", "conditions": {"idempotencyKey": "amnesty"}});
    let first = change(&platform, &tenant.token, "moderationDecide", fields, input.clone()).await;
    let outcomes = first["outcomes"].as_array().unwrap();
    let told: Vec<&str> =
        outcomes.iter().map(|one| one["userErrors"][0]["code"].as_str().unwrap_or("done")).collect();
    // Newest first: 73 did not appeal; each appeal answers the block as well; the last one is not ours.
    assert_eq!(told, ["STANDING_NO_APPEAL", "done", "done", "done", "done", "NOT_FOUND"]);
    assert_eq!(outcomes[1]["case"], json!({"status": "DECIDED", "decision": "GRANTED"}));
    assert_eq!(outcomes[2]["case"], json!({"status": "DECIDED", "decision": "LIFTED"}));
    assert_eq!(outcomes[1]["position"], outcomes[2]["position"], "one decision a person");
    let head = platform.head().await;
    assert_eq!(change(&platform, &tenant.token, "moderationDecide", fields, input).await, first);
    assert_eq!(platform.head().await, head, "it was done twice");

    let block =
        |until: &str| json!({"caseIds": [cases[0]], "action": "BLOCK", "reason": "rightly", "until": until});
    let upheld =
        change(&platform, &tenant.token, "moderationDecide", fields, block("2099-01-01T00:00:00Z")).await;
    assert_eq!(upheld["outcomes"][0]["case"]["decision"], "UPHELD");
    let late =
        change(&platform, &tenant.token, "moderationDecide", fields, block("2020-01-01T00:00:00Z")).await;
    assert_eq!(late["outcomes"][0]["userErrors"][0]["code"], "STANDING_BLOCK_ENDS_IN_THE_PAST");
    for (input, code) in [
        (json!({"caseIds": [cases[0]], "action": "DENY_APPEAL"}), "BAD_INPUT"),
        (
            json!({"caseIds": [cases[0]], "action": "UNDO", "reason": "x", "until": "2099-01-01T00:00:00Z"}),
            "BAD_INPUT",
        ),
    ] {
        let refused = change(&platform, &tenant.token, "moderationDecide", fields, input).await;
        assert_eq!((&refused["userErrors"][0]["code"], &refused["outcomes"]), (&json!(code), &json!([])));
    }
    let query = "mutation m($i: ModerationDecideInput!) { moderationDecide(input: $i) { position } }";
    for ids in [json!([]), json!(vec![&cases[0]; 101]), json!(["bot:1"])] {
        let input = json!({"i": {"caseIds": ids, "action": "UNBLOCK", "reason": "x"}});
        assert_eq!(platform.refusal(Some(&tenant.token), query, input).await, "BAD_INPUT");
    }
    assert_eq!(queue(&platform, &elsewhere.token, Value::Null, "id").await.len(), 1);
}

#[sqlx::test(migrations = "../migrations")]
async fn every_step_is_told_as_it_happens_and_after_a_break(pool: PgPool) {
    let (platform, tenant, bot) = opened(pool).await;
    let elsewhere = platform.tenant("two").await;
    let theirs = Writer::new(&platform, platform.bot(&elsewhere, 2).await, 55).await;
    let writer = Writer::new(&platform, bot, 77).await;
    theirs.writes(1, "x", &[OffenceKind::CategorySevere]).await;
    for number in 1..=4 {
        writer.writes(number, "buy", &[OffenceKind::Spam]).await;
    }
    writer.appeals(5, "please").await;
    // A told step shows the standing at that step or further on; here all of them are over.
    platform.settle().await;
    let expected: Vec<(String, String)> = sqlx::query_as(
        "SELECT position::text, event_type FROM events WHERE aggregate_type = 'standing' AND aggregate_id = $1
         ORDER BY position",
    )
    .bind(standing_stream(bot.0, writer.person).to_string())
    .fetch_all(&platform.pool)
    .await
    .unwrap();
    let kinds: Vec<&str> =
        expected.iter().map(|(_, kind)| kind.as_str()).filter(|kind| *kind != "points_scored").collect();
    assert_eq!(kinds, ["warning_issued", "throttled", "temporarily_blocked", "appeal_filed"]);

    let mut heard: Vec<(String, String)> = Vec::new();
    while heard.len() < expected.len() {
        let after = heard.last().map_or("0", |(position, _)| position).to_owned();
        let mut stream = stream(&platform, &tenant.token, CHANGED, json!({"after": after})).await;
        for _ in 0..3.min(expected.len() - heard.len()) {
            let told = stream.next().await.unwrap()["data"]["standingChanged"].take();
            let text = |field: &str| told[field].as_str().unwrap().to_owned();
            heard.push((text("position"), text("eventType")));
            let opens = matches!(heard.last().unwrap().1.as_str(), "temporarily_blocked" | "appeal_filed");
            assert_eq!(told["case"].is_object(), opens, "{told}");
            assert_eq!(told["standing"]["state"], "TEMP_BLOCKED", "as it is now");
        }
    }
    assert_eq!(heard, expected);

    // Only what moderators wait for, as it comes.
    let mut socket = platform.introduced(&tenant.token).await;
    let variables =
        json!({"bot": format!("bot:{}", bot.0), "types": ["appeal_granted", "blocked"], "after": "0"});
    socket.subscribe("1", CHANGED, variables).await;
    change(&platform, &tenant.token, "standingAppealGrant", "standing { state }", writer.ids()).await;
    let told = over_socket(&mut socket).await["standingChanged"].take();
    assert_eq!((&told["eventType"], &told["standing"]["state"]), (&json!("appeal_granted"), &json!("OK")));
}

#[sqlx::test(migrations = "../migrations")]
async fn standings_are_listed_by_state_and_by_open_appeal(pool: PgPool) {
    let (platform, tenant, bot) = opened(pool).await;
    let calm = Writer::new(&platform, bot, 71).await;
    calm.writes(1, "x", &[OffenceKind::Flood]).await;
    let warned = Writer::new(&platform, bot, 72).await;
    warned.writes(1, "x", &[OffenceKind::InjectionConfident]).await;
    let blocked = Writer::new(&platform, bot, 73).await;
    blocked.writes(1, "x", &[OffenceKind::CategorySevere]).await;
    blocked.appeals(2, "please").await;
    platform.settle().await;
    let query = "query q($f: StandingFilterInput) { standings(filter: $f) { edges { node { personId } } } }";
    for (filter, people) in [
        (json!({"states": ["WARNED"]}), vec![&warned]),
        (json!({"states": ["BLOCKED", "OK"]}), vec![&blocked, &calm]),
        (json!({"blocked": false}), vec![&warned, &calm]),
        (json!({"blocked": true}), vec![&blocked]),
        (json!({"appealing": true}), vec![&blocked]),
    ] {
        let found = nodes(&platform.data(&tenant.token, query, json!({"f": filter})).await["standings"]);
        let expected: Vec<Value> =
            people.iter().map(|one| json!({"personId": one.ids()["personId"]})).collect();
        assert_eq!(found, expected, "{filter}");
    }
}
