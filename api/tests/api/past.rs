//! `asOf`: what was answered then is answered again.

use std::time::Duration;

use botledger_commands::{Decision, execute::execute};
use botledger_domain::{
    BotId, SubjectId, TurnId,
    operator::Role,
    standing::{
        Offence, Scoring, Standing, StandingCommand, case_of,
        ladder::{LadderConfig, OffenceKind},
    },
    standing_stream,
};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Platform, Tenant, bot_token, system};

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
    let kind = match mutation {
        "conversationOpenSession" => "ConversationInput".to_owned(),
        _ => format!("{}{}Input", mutation[..1].to_uppercase(), &mutation[1..]),
    };
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

/// Every query that can be asked about the past, with everything it leads to.
const QUESTIONS: &[(&str, &str)] = &[
    ("accessEntries", "accessEntries(first: 3, filter: {inForce: false}, asOf: $asOf) { edges { cursor node {
        kind personId network botId effect reason inForce expiresAt changedBy changedAt position } }
        pageInfo { hasNextPage endCursor } }"),
    ("accessList", "accessList(botId: $bot, asOf: $asOf) { botId closedToMessages closedToRequests position }"),
    ("bot", "bot(id: $bot, asOf: $asOf) { id status holder leaseEpoch settings { model systemPrompt } position }"),
    ("bots", "bots(asOf: $asOf) { edges { cursor node { id username status statusReason changedAt position } } }"),
    ("budget", "budget(holder: {botId: $bot}, asOf: $asOf) { id holderKind holderId inForce shares exhaustedAt position
        limits { unit period amount } left { unit limit used reserved remaining resetsAt }
        raises { unit amount } warnings { unit percent } }"),
    ("budgets", "budgets(last: 5, asOf: $asOf) { edges { cursor node { id holderId inForce left { used reserved } } } }"),
    ("conversation", "conversation(id: $conversation, asOf: $asOf) { id messages currentSession lastMessageAt position
        turnCount bot { status position } person { messages quota { plan reserved } }
        sessions { number title contextEpoch openedAt } exchanges { edges { cursor node { prompt reply session } } } }"),
    ("conversations", "conversations(filter: {botId: $bot}, asOf: $asOf) { edges { cursor node {
        id messages currentSession turnCount } } }"),
    ("effectivePolicy", "effectivePolicy(botId: $bot, asOf: $asOf) { owner version watches watchesUntil
        published { version note inForce } }"),
    ("events", "events(first: 5, asOf: $asOf) { edges { cursor node { position eventType aggregateType } }
        pageInfo { hasNextPage } }"),
    ("history", "history(aggregateType: \"turn\", aggregateId: $turn, first: 3, asOf: $asOf) { edges { cursor node {
        event { position eventType actor } changes { path before after } } } pageInfo { hasNextPage } }"),
    ("moderationCase", "moderationCase(id: $case, asOf: $asOf) { id kind status decision decidedBy reason position
        standing { state blocked explanation { state verdict blockCause } } turn { phase prompt }
        context(first: 3) { id phase } scorings { edges { node { turnId stateAfter } } } }"),
    ("moderationQueue", "moderationQueue(asOf: $asOf) { edges { cursor node { id kind status against
        person { id messages } bot { id status } } } }"),
    ("node", "node(id: $turn, asOf: $asOf) { id ... on Turn { phase reply person { language } } }"),
    ("nodes", "nodes(ids: [$bot, $person, $conversation, $operator], asOf: $asOf) { id ... on Bot { status }
        ... on Person { messages } ... on Conversation { messages } ... on Operator { role } }"),
    ("operator", "operator(id: $operator, asOf: $asOf) { id login role status changedAt position }"),
    ("operators", "operators(asOf: $asOf) { edges { cursor node { id login role status } } }"),
    ("people", "people(asOf: $asOf) { edges { cursor node { id language messages lastSeenAt
        quota { plan used reserved refusals } } } }"),
    ("person", "person(id: $person, asOf: $asOf) { id language languageChosen messages position
        profile { firstName username } quota { plan reserved } }"),
    ("policy", "policy(botId: $bot, asOf: $asOf) { botId lastVersion position inForce { version note watches inForce
        terms { throttledPerMinute offTopic } } }"),
    ("policyVersion", "policyVersion(botId: $bot, version: 1, asOf: $asOf) { version note inForce endedAt withdrawn position }"),
    ("policyVersions", "policyVersions(asOf: $asOf) { edges { cursor node { botId version inForce withdrawn } } }"),
    ("quota", "quota(personId: $person, asOf: $asOf) { id plan reserved refusals position left { used remaining }
        overrides { amount } }"),
    ("quotas", "quotas(asOf: $asOf) { edges { cursor node { personId plan reserved refusals } } }"),
    ("rateOverride", "rateOverride(subject: {kind: BOT, id: $bot}, asOf: $asOf) { kind botId reason inForce parallel position }"),
    ("rateOverrides", "rateOverrides(inForce: false, asOf: $asOf) { edges { cursor node { kind botId reason inForce } } }"),
    ("standing", "standing(botId: $bot, personId: $person, asOf: $asOf) { id state blocked reason changedAt position
        person { messages } explanation { state verdict blockCause reason }
        scorings { edges { cursor node { turnId stateAfter } } } }"),
    ("standings", "standings(asOf: $asOf) { edges { cursor node { personId state blocked reason person { messages } } } }"),
    ("turn", "turn(id: $turn, asOf: $asOf) { id phase open reply position bot { status } person { messages } }"),
    ("turns", "turns(first: 2, filter: {botId: $bot}, asOf: $asOf) { totalCount edges { cursor node {
        id phase open reply bot { status leaseEpoch } person { messages language } } } pageInfo { hasNextPage endCursor } }"),
    ("usage", "usage(grain: DAY, from: \"2020-01-01T00:00:00Z\", until: \"2100-01-01T00:00:00Z\", asOf: $asOf) {
        bucket model messages admitted refused answered delivered promptTokens }"),
    ("workspace", "workspace(asOf: $asOf) { id name defaultPlan plans { name } position }"),
];

/// Queries that have no past, and why.
const OF_NOW: &[(&str, &str)] = &[
    ("auditEntries", "it lists calls with their times and is not made of events"),
    ("changes", "it names its own moments"),
    ("checkpoint", "a head says itself how much it covers"),
    ("consistencyProof", "it names its own heads"),
    ("event", "an event never changes"),
    ("inclusionProof", "it names its own head"),
    ("me", "who asks is who asks now"),
    ("planWhatIf", "it names its own time"),
    ("platform", "the installation, not the ledger"),
    ("policyWhatIf", "it names its own time"),
    ("projectionChanges", "what is done to read models is not in the ledger, and listed with its time"),
    ("projections", "how read models keep up is not in the ledger"),
    ("rateLimits", "buckets run in Redis, by the second; nothing of them is in the ledger"),
];

#[test]
fn every_query_can_be_asked_about_the_past_or_says_why_not() {
    let schema = botledger_api::Api::sdl();
    let fields = schema.split("\ntype Query {").nth(1).unwrap().split("\n}").next().unwrap();
    let mut seen = 0;
    // A field stands one step in; arguments with words of their own stand further.
    let mut lines = fields.lines();
    while let Some(line) = lines.next() {
        let name = line.trim().split(['(', ':']).next().unwrap();
        if !line.starts_with('\t')
            || line.starts_with("\t\t")
            || !line.contains(['(', ':'])
            || name.contains(' ')
        {
            continue;
        }
        let mut field = line.to_owned();
        while field.contains('(') && !field.contains("): ") {
            field.push_str(lines.next().unwrap());
        }
        seen += 1;
        let asked = QUESTIONS.iter().any(|(question, _)| *question == name);
        let excused = OF_NOW.iter().any(|(excused, _)| *excused == name);
        assert_eq!(field.contains("asOf: AsOf"), asked, "{name} takes asOf and is compared, or neither");
        assert!(asked != excused, "{name} is neither compared with the past nor excused");
    }
    assert_eq!(seen, QUESTIONS.len() + OF_NOW.len(), "a question that the schema does not know");
}

/// Scores a message so that it blocks its writer at once: a case opens.
async fn severe(platform: &Platform, bot: BotId, person: SubjectId, turn: TurnId) {
    let offence =
        Offence { kind: OffenceKind::CategorySevere, oos_permille: None, intent: None, evidence: vec![] };
    let scoring = Scoring {
        bot,
        subject: person,
        turn,
        offences: vec![offence],
        rules: LadderConfig::default(),
        policy_version: 1,
        model_version: "c0ffee".to_owned(),
        dry_run: false,
    };
    let stream = standing_stream(bot, person).to_string();
    let command = StandingCommand::Score(Box::new(scoring));
    execute::<Standing>(&platform.app.core, &system(), &stream, command, |_| Ok(())).await.unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn every_query_answers_about_the_past_what_it_answered_then(pool: PgPool) {
    // Many copies are made for one test, on a machine that may be busy.
    let platform = Platform::with(pool, |config| {
        config.request_timeout = Duration::from_secs(120);
        config.past.copies = 32;
    })
    .await;
    let tenant = platform.tenant("one").await;
    let stranger = platform.tenant("two").await;
    let nothing = now(&platform).await;
    let (bot, fence) = platform.bot(&tenant, 1).await;
    let other = platform.bot(&stranger, 2).await;
    platform.talk(other, 1, 99, "somebody else's").await;
    let operator = platform.operator(tenant.workspace, "lovelace", Role::Moderator).await;
    let turn = platform.message((bot, fence), 1, 77, "first").await;
    let person = platform.person_of(turn).await;
    let conversation = platform.app.turns.load(turn).await.unwrap().state.message.unwrap().conversation;
    let (bot_id, person_id) = (format!("bot:{bot}"), format!("person:{person}"));
    // Where the severe message will be: the first event of the person's standing.
    let case = case_of(standing_stream(bot, person), 2);
    let ids = json!({"bot": bot_id, "person": person_id, "turn": format!("turn:{turn}"),
        "conversation": format!("conversation:{conversation}"), "operator": format!("operator:{operator}"),
        "case": format!("case:{case}")});
    let ask = async |question: &str, as_of: Option<Value>| {
        let declared = ["bot", "person", "turn", "conversation", "operator", "case"]
            .iter()
            .filter(|name| question.contains(&format!("${name}")))
            .map(|name| format!("${name}: ID!, "))
            .collect::<String>();
        let mut variables = ids.clone();
        variables["asOf"] = as_of.unwrap_or_default();
        platform
            .data(&tenant.token, &format!("query q({declared}$asOf: AsOf) {{ {question} }}"), variables)
            .await
    };
    let mut answers: Vec<(Moment, Vec<Value>)> = Vec::new();
    let mut take = async || {
        let moment = now(&platform).await;
        let mut all = Vec::new();
        for (_, question) in QUESTIONS {
            all.push(ask(question, None).await);
        }
        answers.push((moment, all));
    };
    let change = async |mutation: &str, input: Value| change(&platform, &tenant, mutation, input).await;

    take().await;
    let limits = json!([{"unit": "MESSAGES", "period": "MONTH", "amount": "10"}]);
    change("budgetSet", json!({"holder": {"botId": bot_id}, "limits": limits, "shares": 2})).await;
    assert!(matches!(platform.admit(fence, turn).await, Decision::Admitted(_)));
    take().await;
    platform.answer(fence, turn, "an answer").await;
    platform.app.turns.deliver(&system(), turn, fence, vec![5]).await.unwrap();
    take().await;
    platform.talk((bot, fence), 2, 78, "another").await;
    let terms = json!({"throttledPerMinute": 9});
    change("policyPublish", json!({"botId": bot_id, "terms": terms, "note": "first", "mode": "LIVE"})).await;
    change("workspaceRename", json!({"name": "Two"})).await;
    take().await;
    let entry = json!({"target": {"telegramUserId": "12345"}, "effect": "DENY", "reason": "noise"});
    change("accessListAdd", json!({"botId": bot_id, "entries": [entry]})).await;
    let subject = json!({"kind": "BOT", "id": bot_id});
    change("rateOverrideSet", json!({"subject": subject, "parallel": 3, "reason": "a fair"})).await;
    change("operatorInvite", json!({"login": "hopper", "role": "MEMBER"})).await;
    change("operatorDisable", json!({"operatorId": ids["operator"], "reason": "on leave"})).await;
    change("personChooseLanguage", json!({"personId": person_id, "language": "RU"})).await;
    take().await;
    let bad = platform.message((bot, fence), 3, 77, "something terrible").await;
    severe(&platform, bot, person, bad).await;
    take().await;
    change(
        "moderationDecide",
        json!({"caseIds": [format!("case:{case}")], "action": "UNBLOCK", "reason": "a joke"}),
    )
    .await;
    take().await;
    change("policyPublish", json!({"botId": bot_id, "terms": {"offTopic": "IGNORE"}, "note": "second"}))
        .await;
    change("rateOverrideRemove", json!({"subject": subject, "reason": "the fair is over"})).await;
    change("conversationOpenSession", json!({"conversationId": format!("conversation:{conversation}")}))
        .await;
    change("budgetRemove", json!({"holder": {"botId": bot_id}, "reason": "no more"})).await;
    change("botStop", json!({"botId": bot_id, "reason": "night"})).await;
    take().await;

    // Every question has more than one answer, or the comparison would prove nothing.
    for (index, (name, _)) in QUESTIONS.iter().enumerate() {
        let distinct: std::collections::BTreeSet<String> =
            answers.iter().map(|(_, all)| all[index].to_string()).collect();
        assert!(distinct.len() > 1, "{name} always answers {}", distinct.first().unwrap());
    }
    for (number, (moment, then)) in answers.iter().rev().enumerate() {
        let as_of = match number % 2 {
            0 => json!({"position": moment.position.to_string()}),
            _ => json!({"time": moment.time.to_rfc3339()}),
        };
        for ((name, question), then) in QUESTIONS.iter().zip(then) {
            assert_eq!(&ask(question, Some(as_of.clone())).await, then, "{name} as of {as_of}");
        }
    }
    for (name, question) in QUESTIONS {
        let mut before = ask(question, Some(json!({"position": nothing.position.to_string()}))).await;
        let text = before.as_object_mut().unwrap().values_mut().next().unwrap().take().to_string();
        let names_of_things = [bot.to_string(), person.to_string(), turn.to_string()];
        assert!(names_of_things.iter().all(|name| !text.contains(name)), "{name} knew {text} too early");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn the_future_is_refused_and_pages_of_the_past_follow_each_other(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bot = platform.bot(&tenant, 1).await;
    for number in 1..=5 {
        platform.talk(bot, number, 77, "hello").await;
    }
    let then = now(&platform).await;
    for number in 6..=8 {
        platform.talk(bot, number, 78, "hello").await;
    }
    platform.settle().await;
    let as_of = json!({"position": then.position.to_string()});
    let query = "query q($asOf: AsOf, $after: String) { turns(first: 2, after: $after, asOf: $asOf) {
        totalCount edges { cursor node { updateId } } pageInfo { hasNextPage endCursor } } }";
    let (mut seen, mut after) = (Vec::new(), Value::Null);
    loop {
        let page = platform.data(&tenant.token, query, json!({"asOf": as_of, "after": after})).await;
        let page = &page["turns"];
        assert_eq!(page["totalCount"], "5");
        seen.extend(page["edges"].as_array().unwrap().iter().map(|edge| edge["node"]["updateId"].clone()));
        if page["pageInfo"]["hasNextPage"] != true {
            break;
        }
        after = page["pageInfo"]["endCursor"].clone();
    }
    assert_eq!(seen, ["5", "4", "3", "2", "1"]);

    // Two moments in one request, each with all that lies below it.
    let both = "query q($asOf: AsOf) { now: turns { totalCount edges { node { person { messages } } } }
        then: turns(asOf: $asOf) { totalCount edges { node { person { messages } } } } }";
    let both = platform.data(&tenant.token, both, json!({"asOf": as_of})).await;
    assert_eq!((&both["now"]["totalCount"], &both["then"]["totalCount"]), (&json!("8"), &json!("5")));

    let head = platform.head().await;
    let ask = "query q($asOf: AsOf) { bots(asOf: $asOf) { edges { node { id } } } }";
    for future in [json!({"position": (head + 1).to_string()}), json!({"time": "2100-01-01T00:00:00Z"})] {
        assert_eq!(platform.refusal(Some(&tenant.token), ask, json!({"asOf": future})).await, "BAD_INPUT");
    }
    // What a role may not see now it may not see then.
    let member = platform.token_as(&tenant, Role::Member).await;
    assert_eq!(platform.refusal(Some(&member), ask, json!({"asOf": as_of})).await, "FORBIDDEN");
    let auditor = platform.token_as(&tenant, Role::Auditor).await;
    let personal =
        "query q($asOf: AsOf) { people(asOf: $asOf) { edges { node { profile { firstName } } } } }";
    assert_eq!(platform.refusal(Some(&auditor), personal, json!({"asOf": as_of})).await, "FORBIDDEN");
    let stranger = platform.tenant("two").await;
    let none = platform.data(&stranger.token, ask, json!({"asOf": as_of})).await;
    assert_eq!(none["bots"]["edges"], json!([]));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_copy_too_large_is_refused_with_the_reason(pool: PgPool) {
    let platform = Platform::with(pool, |config| config.past.bytes = 1).await;
    let tenant = platform.tenant("one").await;
    platform.bot(&tenant, 1).await;
    let then = now(&platform).await;
    let ask = "query q($asOf: AsOf) { bots(asOf: $asOf) { edges { node { id } } } }";
    let as_of = json!({"position": then.position.to_string()});
    assert_eq!(platform.refusal(Some(&tenant.token), ask, json!({"asOf": as_of})).await, "BAD_INPUT");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_thing_is_told_step_by_step_and_between_two_moments(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let (bot, fence) = platform.bot(&tenant, 1).await;
    let turn = platform.talk((bot, fence), 1, 77, "hello").await;
    let bot_id = format!("bot:{bot}");
    let then = now(&platform).await;
    change(&platform, &tenant, "botStop", json!({"botId": bot_id, "reason": "night"})).await;

    let query = "query q($id: ID!, $after: String) { history(aggregateType: \"bot\", aggregateId: $id, first: 2, after: $after) {
        edges { node { event { eventType actor } changes { path before after } } } pageInfo { hasNextPage endCursor } } }";
    let newest = platform.data(&tenant.token, query, json!({"id": bot_id})).await["history"].take();
    let stopped = &newest["edges"][0]["node"];
    assert_eq!(
        stopped["event"],
        json!({"eventType": "bot_stopped", "actor": format!("operator:{}", tenant.owner)})
    );
    let change_of = |node: &Value, path: &str| -> Value {
        let changes = node["changes"].as_array().unwrap();
        changes.iter().find(|change| change["path"] == path).cloned().unwrap_or_default()
    };
    assert_eq!(
        change_of(stopped, "status"),
        json!({"path": "status", "before": "running", "after": "stopped"}),
        "{stopped}"
    );
    // Page by page to the beginning, every change of a value starts where the older one ended.
    let (mut page, mut told) = (newest.clone(), Vec::new());
    loop {
        told.extend(page["edges"].as_array().unwrap().iter().map(|edge| edge["node"].clone()));
        if page["pageInfo"]["hasNextPage"] != true {
            break;
        }
        let after = page["pageInfo"]["endCursor"].clone();
        page = platform.data(&tenant.token, query, json!({"id": bot_id, "after": after})).await["history"]
            .take();
    }
    assert_eq!(told.last().unwrap()["event"]["eventType"], "bot_registered");
    let states: Vec<Value> =
        told.iter().map(|node| change_of(node, "status")).filter(|change| !change.is_null()).collect();
    assert!(states.windows(2).all(|pair| pair[0]["before"] == pair[1]["after"]), "{states:?}");

    let between = "query q($id: ID!, $from: AsOf!, $to: AsOf) {
        changes(aggregateType: \"bot\", aggregateId: $id, from: $from, to: $to) { events changes { path before after } } }";
    let from = json!({"position": then.position.to_string()});
    let since =
        platform.data(&tenant.token, between, json!({"id": bot_id, "from": from})).await["changes"].take();
    assert_eq!(since["events"], "1");
    assert_eq!(change_of(&since, "status"), change_of(stopped, "status"));
    let same = json!({"id": bot_id, "from": from, "to": from});
    let nothing = platform.data(&tenant.token, between, same).await["changes"].take();
    assert_eq!(nothing, json!({"events": "0", "changes": []}));
    let backwards = json!({"id": bot_id, "from": from, "to": {"position": "1"}});
    assert_eq!(platform.refusal(Some(&tenant.token), between, backwards).await, "BAD_INPUT");

    // What a person wrote is in no state, and nobody else's things exist.
    let about = "query q($id: ID!) { history(aggregateType: \"turn\", aggregateId: $id) { edges { node { changes { path after } } } } }";
    let turns = platform.data(&tenant.token, about, json!({"id": format!("turn:{turn}")})).await;
    assert!(!turns.to_string().contains("hello"), "{turns}");
    assert!(turns["history"]["edges"].as_array().unwrap().len() >= 4);
    let stranger = platform.tenant("two").await;
    let none = platform.data(&stranger.token, query, json!({"id": bot_id})).await;
    assert_eq!(none["history"]["edges"], json!([]));
    let none = platform.data(&stranger.token, between, json!({"id": bot_id, "from": from})).await;
    assert_eq!(none["changes"], Value::Null);
    let moderator = platform.token_as(&tenant, Role::Moderator).await;
    assert_eq!(platform.refusal(Some(&moderator), query, json!({"id": bot_id})).await, "FORBIDDEN");
}

#[sqlx::test(migrations = "../migrations")]
async fn another_plan_is_tried_on_what_was_demanded(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let tenant = platform.tenant("one").await;
    let bot = platform.bot(&tenant, 1).await;
    for number in 1..=4 {
        platform.talk(bot, number, 77 + number % 2, "hello").await;
    }
    let head = platform.settle().await;
    let query = "query q($i: PlanWhatIfInput!) { planWhatIf(input: $i) { peopleAsked estimated demandsChanged peopleChanged
        before { held refused charged { tokens } } after { held refused charged { tokens } }
        demands(first: 1) { edges { node { turnId refusedBefore refusedAfter chargedBefore { tokens } chargedAfter { tokens } } }
            pageInfo { hasNextPage } }
        people { edges { node { personId before { held } after { held } } } } } }";
    let plan = |unit: &str, amount: &str| json!({"i": {"limits": [{"unit": unit, "period": "DAY", "amount": amount}]}});
    let same = platform.data(&tenant.token, query, plan("TOKENS", "100000")).await["planWhatIf"].take();
    assert_eq!((&same["peopleAsked"], &same["demandsChanged"]), (&json!("2"), &json!("0")), "{same}");
    assert_eq!(same["before"], same["after"]);
    let less = platform.data(&tenant.token, query, plan("MESSAGES", "1")).await["planWhatIf"].take();
    assert_eq!((&less["demandsChanged"], &less["peopleChanged"]), (&json!("2"), &json!("2")), "{less}");
    assert_eq!(less["after"], json!({"held": "2", "refused": "2", "charged": {"tokens": "36"}}));
    let newest = &less["demands"]["edges"][0]["node"];
    assert_eq!((&newest["refusedBefore"], &newest["refusedAfter"]), (&Value::Null, &json!("MESSAGES")));
    assert_eq!(less["demands"]["pageInfo"]["hasNextPage"], true);
    assert_eq!(platform.head().await, head, "nothing was written");
    let none = plan("TOKENS", "0");
    assert_eq!(platform.refusal(Some(&tenant.token), query, none).await, "BAD_INPUT");
    let stranger = platform.tenant("two").await;
    let theirs = platform.data(&stranger.token, query, plan("MESSAGES", "1")).await["planWhatIf"].take();
    assert_eq!(theirs["peopleAsked"], "0");
}
