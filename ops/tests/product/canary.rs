//! Nothing personal and no secret stands anywhere in the clear: not in the database, not in Redis, not
//! in the logs.

use base64::Engine;
use botledger_sim::Person;
use sqlx::PgPool;

use crate::house::{House, Partners};

const BOT: &str = "canary_bot";

/// The ways in which a text can hide in a dump.
fn disguises(canary: &str) -> Vec<String> {
    let mut found = vec![canary.to_lowercase(), hex::encode(canary)];
    // Base64 of a text depends on where it begins within three bytes; the middle never changes.
    for pad in 0..3 {
        let padded = [" ".repeat(pad).as_bytes(), canary.as_bytes()].concat();
        let coded = base64::engine::general_purpose::STANDARD_NO_PAD.encode(padded);
        found.push(coded[4..coded.len() - 4].to_lowercase());
    }
    found
}

async fn database_dump(pool: &PgPool) -> String {
    let tables: Vec<(String, String)> = sqlx::query_as(
        "SELECT table_schema::text, table_name::text FROM information_schema.tables
         WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert!(tables.len() > 15, "{tables:?}");
    let mut dump = String::new();
    for (schema, table) in tables {
        let rows: Vec<String> = sqlx::query_scalar(&format!("SELECT t::text FROM {schema}.{table} AS t"))
            .fetch_all(pool)
            .await
            .unwrap();
        dump.push_str(&rows.join("\n"));
    }
    dump
}

async fn redis_dump() -> String {
    let client = redis::Client::open(std::env::var("REDIS_URL").unwrap()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
    let mut dump = keys.join("\n");
    for key in keys {
        // In Redis' own packed form texts stand as they are, unless compressed; small ones never are.
        let value: Option<Vec<u8>> = redis::cmd("DUMP").arg(&key).query_async(&mut redis).await.unwrap();
        dump.push_str(&String::from_utf8_lossy(&value.unwrap_or_default()));
    }
    dump
}

#[sqlx::test(migrations = "../migrations")]
async fn no_canary_is_found_in_any_dump(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let product = house.serve(&[("BOTLEDGER_LOG__LEVEL", "trace,hyper=info,h2=info")]).await;
    house.open_with_bot(BOT).await;
    let token = house.telegram.add_bot(BOT).unwrap().token;
    let secret = token.split_once(':').unwrap().1.to_owned();
    let person = Person {
        id: 4_503_599_627_370_001,
        first_name: "Firstcanaryname".to_owned(),
        username: Some("user_canary_name".to_owned()),
        language_code: Some("en".to_owned()),
    };
    let texts = [
        "my secret plan is canarytextone",
        "/search canarysearchword",
        "/new canarysessiontitle",
        "/start canarydeeplink",
        "and another canarytexttwo",
    ];
    for text in texts {
        house.telegram.say(BOT, &person, text).unwrap();
    }
    house
        .telegram
        .inject_raw(BOT, serde_json::json!({"update_id": 99, "message": "canarynotanupdate"}))
        .unwrap();
    house.all_ended(5).await;
    product.stop().await;

    let shown = house.telegram.messages(BOT, person.id);
    assert!(
        shown.iter().any(|message| message.text.contains("canarytextone")),
        "the plant did grow: {shown:#?}"
    );
    let dumps = [
        ("the database", database_dump(&house.pool).await),
        ("Redis", redis_dump().await),
        ("the log", house.log()),
    ];
    let canaries = [
        "canarytextone",
        "canarytexttwo",
        "canarysearchword",
        "canarysessiontitle",
        "canarydeeplink",
        "canarynotanupdate",
        "Firstcanaryname",
        "user_canary_name",
        "4503599627370001",
        &secret,
    ];
    for (place, dump) in dumps {
        let dump = dump.to_lowercase();
        assert!(dump.len() > 100, "{place} is not empty");
        for canary in canaries {
            for disguise in disguises(canary) {
                assert!(!dump.contains(&disguise), "{canary} is found in {place} as {disguise}");
            }
        }
    }
}

#[test]
fn a_disguised_canary_would_be_found() {
    let coded = base64::engine::general_purpose::STANDARD.encode("xx canarytextone yy").to_lowercase();
    assert!(disguises("canarytextone").iter().any(|disguise| coded.contains(disguise.as_str())));
}
