//! Two workspaces on one platform know nothing of each other.

use botledger_commands::Caller;
use botledger_domain::{WorkspaceId, operator::Role};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::Platform;

fn ids(data: &Value, list: &str) -> Vec<String> {
    let edges = data[list]["edges"].as_array().unwrap();
    edges.iter().map(|edge| edge["node"]["id"].as_str().unwrap().to_owned()).collect()
}

#[sqlx::test(migrations = "../migrations")]
async fn nothing_of_another_workspace_is_shown_or_can_be_changed(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (ours, theirs) = (platform.tenant("ours").await, platform.tenant("theirs").await);
    let (our_bot, their_bot) = (platform.bot(&ours, 1).await, platform.bot(&theirs, 2).await);
    // The same person writes to both.
    let our_turn = platform.talk(our_bot, 1, 77, "to ours").await;
    let their_turn = platform.talk(their_bot, 1, 77, "to theirs").await;
    let their_open = platform.message(their_bot, 2, 77, "still open").await;
    let (our_person, their_person) =
        (platform.person_of(our_turn).await, platform.person_of(their_turn).await);
    assert_ne!(our_person, their_person, "the pseudonym is the workspace's own");
    let (bot, person) = (format!("bot:{}", their_bot.0), format!("person:{their_person}"));
    let block =
        "mutation m($i: StandingBlockInput!) { standingBlock(input: $i) { position userErrors { code } } }";
    platform
        .data(&theirs.token, block, json!({"i": {"botId": bot, "personId": person, "reason": "spam"}}))
        .await;
    let appeal = Caller::subject(their_person, their_open);
    platform.app.standings.file_appeal(&appeal, their_bot.0, their_person, their_open, "why?").await.unwrap();
    platform.settle().await;

    let lists = "{ bots { edges { node { id } } } turns { totalCount edges { node { id } } } people { edges { node { id } } }
        conversations { edges { node { id } } } operators { edges { node { id } } } quotas { edges { node { id } } }
        standings { edges { node { id } } } moderationQueue { edges { node { id } } } workspace { id }
        usage(grain: DAY, from: \"2020-01-01T00:00:00Z\", until: \"2099-01-01T00:00:00Z\") { botId } }";
    let own = platform.data(&ours.token, lists, json!({})).await;
    let foreign = platform.data(&theirs.token, lists, json!({})).await;
    assert_eq!(own["turns"]["totalCount"], "1");
    let mut strange = vec![foreign["workspace"]["id"].as_str().unwrap().to_owned()];
    for list in
        ["bots", "turns", "people", "conversations", "operators", "quotas", "standings", "moderationQueue"]
    {
        let (own, foreign) = (ids(&own, list), ids(&foreign, list));
        assert!(!foreign.is_empty() && own.iter().all(|id| !foreign.contains(id)), "{list}");
        strange.extend(foreign);
    }
    let text = own.to_string();
    assert!(strange.iter().all(|id| !text.contains(id.as_str())), "{text}");

    let conversation = ids(&foreign, "conversations").remove(0);
    let operator = format!("operator:{}", theirs.owner);
    let case = ids(&foreign, "moderationQueue").remove(0);
    let one = "query q($bot: ID!, $turn: ID!, $person: ID!, $conversation: ID!, $operator: ID!, $case: ID!, $ids: [ID!]!, $asOf: AsOf) {
        bot(id: $bot) { id } then: bot(id: $bot, asOf: $asOf) { id } turn(id: $turn) { id } thenTurn: turn(id: $turn, asOf: $asOf) { id }
        person(id: $person) { id } conversation(id: $conversation) { id } operator(id: $operator) { id }
        quota(personId: $person) { id } thenQuota: quota(personId: $person, asOf: $asOf) { id }
        standing(botId: $bot, personId: $person) { id } thenStanding: standing(botId: $bot, personId: $person, asOf: $asOf) { id }
        moderationCase(id: $case) { id } nodes(ids: $ids) { id } }";
    let head = platform.head().await.to_string();
    let variables = json!({"bot": bot, "turn": format!("turn:{their_turn}"), "person": person, "conversation": conversation,
        "operator": operator, "case": case, "ids": strange, "asOf": {"position": head}});
    let found = platform.data(&ours.token, one, variables).await;
    for (field, value) in found.as_object().unwrap() {
        let nothing =
            value.is_null() || value.as_array().is_some_and(|nodes| nodes.iter().all(Value::is_null));
        assert!(nothing, "{field}: {value}");
    }
    for (list, filter) in [
        ("turns", format!("botId: \"{bot}\"")),
        ("turns", format!("personId: \"{person}\"")),
        ("turns", format!("conversationId: \"{conversation}\"")),
        ("conversations", format!("personId: \"{person}\"")),
        ("standings", format!("personId: \"{person}\"")),
        ("standings", format!("botId: \"{bot}\"")),
    ] {
        let query = format!("{{ {list}(filter: {{{filter}}}) {{ edges {{ node {{ id }} }} }} }}");
        assert!(
            ids(&platform.data(&ours.token, &query, json!({})).await, list).is_empty(),
            "{list} {filter}"
        );
    }

    let before = platform.head().await;
    for (mutation, kind, input) in [
        ("botStart", "BotStart", json!({"botId": bot})),
        ("botStop", "BotStop", json!({"botId": bot, "reason": "x"})),
        ("botArchive", "BotStop", json!({"botId": bot, "reason": "x"})),
        ("botConfigure", "BotConfigure", json!({"botId": bot, "settings": {}})),
        ("botRotateToken", "BotRotateToken", json!({"botId": bot, "token": crate::support::bot_token(2)})),
        ("turnFail", "TurnFail", json!({"turnId": format!("turn:{their_open}"), "reason": "x"})),
        ("standingBlock", "StandingBlock", json!({"botId": bot, "personId": person, "reason": "x"})),
        ("standingUnblock", "StandingUnblock", json!({"botId": bot, "personId": person, "reason": "x"})),
        ("standingAppealGrant", "StandingAppealGrant", json!({"botId": bot, "personId": person})),
        (
            "standingAppealDeny",
            "StandingAppealDeny",
            json!({"botId": bot, "personId": person, "reason": "x"}),
        ),
        ("standingUndo", "StandingUndo", json!({"botId": bot, "personId": person, "reason": "x"})),
        ("personChooseLanguage", "PersonChooseLanguage", json!({"personId": person, "language": "RU"})),
        ("quotaAssignPlan", "QuotaAssignPlan", json!({"personId": person, "plan": "free"})),
        ("conversationOpenSession", "Conversation", json!({"conversationId": conversation})),
        ("conversationClearContext", "Conversation", json!({"conversationId": conversation})),
        (
            "conversationRenameSession",
            "ConversationRenameSession",
            json!({"conversationId": conversation, "session": 1, "title": "x"}),
        ),
        ("operatorDisable", "OperatorDisable", json!({"operatorId": operator, "reason": "x"})),
        ("operatorChangeRole", "OperatorChangeRole", json!({"operatorId": operator, "role": "MEMBER"})),
    ] {
        let query = format!(
            "mutation m($i: {kind}Input!) {{ {mutation}(input: $i) {{ position userErrors {{ code }} }} }}"
        );
        let answer = platform.post(Some(&ours.token), &query, json!({"i": input})).await.json();
        let refused = answer.get("errors").is_some() || answer["data"][mutation]["userErrors"] != json!([]);
        assert!(refused, "{mutation}: {answer}");
    }
    assert_eq!(platform.head().await, before, "something was written");
}

#[sqlx::test(migrations = "../migrations")]
async fn the_log_of_a_workspace_is_its_own(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (ours, theirs) = (platform.tenant("ours").await, platform.tenant("theirs").await);
    let (our_bot, their_bot) = (platform.bot(&ours, 1).await, platform.bot(&theirs, 2).await);
    for update in 0..6 {
        platform.talk(our_bot, update, 70 + update % 2, "to ours").await;
        platform.talk(their_bot, update, 70 + update % 2, "to theirs").await;
    }
    let head = platform.head().await;
    let query = "query q($after: String) { events(first: 20, after: $after) {
        edges { node { position aggregateType aggregateId } } pageInfo { endCursor hasNextPage } } }";
    let mut seen = Vec::new();
    for tenant in [&ours, &theirs] {
        let (mut positions, mut after) = (Vec::new(), Value::Null);
        loop {
            let events = platform.data(&tenant.token, query, json!({"after": after})).await["events"].take();
            for edge in events["edges"].as_array().unwrap() {
                positions.push(edge["node"]["position"].as_str().unwrap().parse::<i64>().unwrap());
            }
            if events["pageInfo"]["hasNextPage"] == false {
                break;
            }
            after = events["pageInfo"]["endCursor"].clone();
        }
        assert!(positions.is_sorted_by(|a, b| a > b), "newest first, each once");
        seen.push(positions);
    }
    let mut all: Vec<i64> = seen.iter().flatten().copied().collect();
    all.sort_unstable();
    assert_eq!(all, (1..=head).collect::<Vec<_>>(), "every event belongs to exactly one of them");

    let foreign = seen[1][0];
    let one = "query q($p: Position!) { event(position: $p) { position } }";
    assert!(platform.data(&ours.token, one, json!({"p": foreign.to_string()})).await["event"].is_null());

    let mut socket = platform.introduced(&ours.token).await;
    socket.subscribe("1", "subscription { eventRecorded(after: \"0\") { position } }", json!({})).await;
    for position in seen[0].iter().rev() {
        let next = socket.next().await;
        assert_eq!(next["payload"]["data"]["eventRecorded"]["position"], position.to_string());
    }
    let mut turns = platform.introduced(&ours.token).await;
    turns
        .subscribe("1", "subscription { turnChanged(after: \"0\") { position turn { botId } } }", json!({}))
        .await;
    for _ in 0..24 {
        let next = turns.next().await;
        assert_eq!(next["payload"]["data"]["turnChanged"]["turn"]["botId"], format!("bot:{}", our_bot.0));
    }
}

/// Events of another workspace put into the ledger beside the journal, each on a stream of its own.
async fn record_theirs(platform: &Platform, theirs: WorkspaceId, events: i64) {
    sqlx::query(
        "INSERT INTO events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata,
            position, recorded_at, leaf_hash)
         SELECT 'silent', (head + n)::text, 1, 'said_nothing', '1.0', json_build_object('workspace', $1::uuid), '{}',
            head + n, now(), sha256('')
         FROM (SELECT max(position) AS head FROM events) head, generate_series(1, $2::bigint) n",
    )
    .bind(theirs.0)
    .bind(events)
    .execute(&platform.pool)
    .await
    .unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn what_others_did_in_between_ends_no_list(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let (ours, theirs) = (platform.tenant("ours").await, platform.tenant("theirs").await);
    let own = async |count: &str, from: &str, cursor: &Value| {
        let query = format!(
            "query q($at: String) {{ events({count}: 3, {from}: $at) {{ edges {{ node {{ position }} cursor }}
             pageInfo {{ hasPreviousPage hasNextPage startCursor endCursor }} }} }}"
        );
        platform.data(&ours.token, &query, json!({"at": cursor})).await["events"].take()
    };
    let positions = |events: &Value| -> Vec<i64> {
        let edges = events["edges"].as_array().unwrap();
        edges.iter().map(|edge| edge["node"]["position"].as_str().unwrap().parse().unwrap()).collect()
    };
    record_theirs(&platform, theirs.workspace, 100).await;
    platform.token_as(&ours, Role::Member).await;
    record_theirs(&platform, theirs.workspace, 6_000).await;
    platform.operator(ours.workspace, "newest", Role::Member).await;
    record_theirs(&platform, theirs.workspace, 100).await;
    let all: Vec<i64> = sqlx::query_scalar(
        "SELECT position FROM events WHERE payload::text LIKE '%' || $1 || '%' OR aggregate_id = $1
            OR (aggregate_type = 'operator' AND aggregate_id IN
                (SELECT aggregate_id FROM events WHERE payload::text LIKE '%' || $1 || '%'))
         ORDER BY position DESC",
    )
    .bind(ours.workspace.to_string())
    .fetch_all(&platform.pool)
    .await
    .unwrap();

    let (mut seen, mut cursor, mut short) = (Vec::<i64>::new(), Value::Null, 0);
    loop {
        let page = own("first", "after", &cursor).await;
        let found = positions(&page);
        seen.extend(&found);
        if page["pageInfo"]["hasNextPage"] == false {
            break;
        }
        short += usize::from(found.len() < 3);
        cursor = page["pageInfo"]["endCursor"].clone();
    }
    assert_eq!(seen, all);
    assert!(short > 0, "no page ended early and said that it is not the end");

    let (mut seen, mut cursor) = (Vec::<i64>::new(), Value::Null);
    loop {
        let page = own("last", "before", &cursor).await;
        seen.splice(..0, positions(&page));
        if page["pageInfo"]["hasPreviousPage"] == false {
            break;
        }
        cursor = page["pageInfo"]["startCursor"].clone();
    }
    assert_eq!(seen, all, "and so from the other end");
}

#[sqlx::test(migrations = "../migrations")]
async fn nothing_is_shown_before_it_is_on_the_disk(pool: PgPool) {
    let platform = Platform::open(pool).await;
    let ours = platform.tenant("ours").await;
    for query in [
        "{ platform { head } }",
        "{ events(first: 1) { edges { node { position } } } }",
        "query q($p: Position!) { event(position: $p) { position } }",
    ] {
        let mut tx = platform.pool.begin().await.unwrap();
        for statement in [
            "SET LOCAL synchronous_commit = off",
            "INSERT INTO events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload,
                metadata, position, recorded_at, leaf_hash)
             SELECT aggregate_type, aggregate_id, max(sequence) + 1, 'said_nothing', '1.0', '{}', '{}',
                (SELECT max(position) + 1 FROM events), now(), sha256('')
             FROM events WHERE aggregate_type = 'workspace' GROUP BY 1, 2",
        ] {
            sqlx::query(statement).execute(&mut *tx).await.unwrap();
        }
        let (position, written): (i64, String) =
            sqlx::query_as("SELECT max(position), pg_current_wal_insert_lsn()::text FROM events")
                .fetch_one(&mut *tx)
                .await
                .unwrap();
        tx.commit().await.unwrap();
        let variables =
            if query.starts_with("query") { json!({"p": position.to_string()}) } else { json!({}) };
        let shown = platform.data(&ours.token, query, variables).await.to_string();
        assert!(shown.contains(&format!("\"{position}\"")), "what was just written is seen: {shown}");
        let flushed: bool = sqlx::query_scalar("SELECT pg_current_wal_flush_lsn() > $1::text::pg_lsn")
            .bind(written)
            .fetch_one(&platform.pool)
            .await
            .unwrap();
        assert!(flushed, "{query}");
    }
}
