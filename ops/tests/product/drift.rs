//! One person's way off topic and back, seen from outside: what Telegram shows them, what GraphQL tells
//! live, why, and that a replay comes to the same.

use std::fs;

use botledger_sim::Person;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::client::Client;
use crate::house::{House, Partners, until};

const BOT: &str = "shop_bot";
const PERSON: i64 = 4;

/// What no shop is asked.
const ELSEWHERE: [&str; 17] = [
    "recommend a good film for tonight",
    "write a python script that sorts a list",
    "who painted the Mona Lisa",
    "how far away is the moon",
    "explain photosynthesis like I am five years old",
    "what does the word serendipity mean",
    "name three planets that have rings",
    "summarise the plot of Hamlet",
    "who discovered penicillin",
    "is a tomato a fruit or a vegetable",
    "how tall is the Eiffel tower",
    "what rhymes with orange",
    "convert seventy miles into kilometres",
    "why is the sky blue",
    "give me a recipe for pancakes",
    "which language is spoken in Iceland",
    "what year did the Berlin wall fall",
];

#[sqlx::test(migrations = "../migrations")]
async fn a_person_drifts_off_topic_is_blocked_appeals_and_is_restored(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let running = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    let owner = Client::enter(&house).await;
    // The example as it is, but fast enough for a test while somebody is throttled.
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/support-policy.toml");
    let terms = fs::read_to_string(example).unwrap();
    let terms = terms.replace("throttled_per_minute = 2", "throttled_per_minute = 6000");
    let file = house.folder.join("policy.toml");
    fs::write(&file, terms).unwrap();
    house.told(&["policy", "publish", file.to_str().unwrap(), "--bot", BOT, "--live"]).await;
    let live = owner.follow("subscription { standingChanged { eventType standing { state } } }").await;

    let person = Person::number(PERSON);
    let shown = |part: &str| {
        house.telegram.messages(BOT, person.id).iter().filter(|message| message.text.contains(part)).count()
    };
    let mut turns = 0;
    for text in ELSEWHERE {
        house.telegram.say(BOT, &person, text).unwrap();
        turns += 1;
        house.all_ended(turns).await;
        if shown("takes no messages from you until") > 0 {
            break;
        }
    }
    assert_eq!(shown("have added up to a warning"), 1, "warned once");
    assert_eq!(shown("you are answered less often"), 1, "told of the slower pace");
    assert_eq!(shown("takes no messages from you until"), 1, "told of the block, after {turns} messages");

    // Blocked people may ask why, and object.
    house.telegram.say(BOT, &person, "/status").unwrap();
    house.telegram.say(BOT, &person, "/appeal I was only curious, it will not happen again").unwrap();
    turns += 2;
    house.all_ended(turns).await;
    assert_eq!(shown("not what this bot is for: "), 1, "/status names what counts");
    assert_eq!(shown("A human will look at it; until then"), 1);

    let mut case = Value::Null;
    until("the appeal is in the queue", async || {
        let queue = "{ moderationQueue(first: 5, filter: {kinds: [APPEAL]}) { nodes { id appealText
            context(first: 3) { prompt } standing { botId personId state explanation { scoreMilli policyVersion
            contributions { liveMilli offence { kind pointsMilli } } } } } } }";
        case = owner.ask(queue, Value::Null).await["moderationQueue"]["nodes"][0].clone();
        !case.is_null()
    })
    .await;
    assert_eq!(case["appealText"], "I was only curious, it will not happen again");
    assert_eq!(case["standing"]["state"], "TEMP_BLOCKED");
    assert_eq!(case["standing"]["explanation"]["policyVersion"], 1);
    assert_eq!(case["standing"]["explanation"]["contributions"][0]["offence"]["kind"], "OFF_TOPIC");
    let decided = owner
        .ask(
            "mutation($i: ModerationDecideInput!) { moderationDecide(input: $i) {
                outcomes { case { status decision } userErrors { code } } userErrors { code } } }",
            json!({"i": {"caseIds": [case["id"]], "action": "GRANT_APPEAL", "reason": "A second chance."}}),
        )
        .await;
    let outcome = &decided["moderationDecide"]["outcomes"][0];
    assert_eq!(outcome["case"], json!({"status": "DECIDED", "decision": "GRANTED"}), "{decided}");

    house.telegram.say(BOT, &person, "where is my order").unwrap();
    turns += 1;
    house.all_ended(turns).await;
    assert_eq!(shown("\"where is my order\""), 1, "answered as everybody");

    // Every step was told while it happened.
    let steps = || -> Vec<String> {
        let seen = live.lock().unwrap();
        let kinds =
            seen.iter().map(|told| told["data"]["standingChanged"]["eventType"].as_str().unwrap_or("?"));
        kinds.filter(|kind| *kind != "points_scored").map(str::to_owned).collect()
    };
    let expected = ["warning_issued", "throttled", "temporarily_blocked", "appeal_filed", "appeal_granted"];
    until("the subscription has told of the appeal", async || steps().len() >= expected.len()).await;
    assert_eq!(steps(), expected);

    // What was seen in each message can be read, and which policy judged it.
    let query = "{ turns(first: 100, filter: {oosFromPermille: 600}) { nodes {
        policy { owner version dryRun } findings { intent oosPermille intentMethod models { name version } } } } }";
    let away = owner.ask(query, Value::Null).await["turns"]["nodes"].clone();
    let away = away.as_array().unwrap();
    assert!(away.len() >= 5, "{away:?}");
    for turn in away {
        assert_eq!(turn["policy"], json!({"owner": "BOT", "version": 1, "dryRun": false}));
        assert_eq!(turn["findings"]["intentMethod"], "ngram");
    }
    house.assert_replay_agrees().await;
    house.assert_ledger_is_gapless().await;
    running.stop().await;
}
