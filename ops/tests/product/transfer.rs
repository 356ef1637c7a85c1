//! A ledger that moves house: exported, imported into an empty installation, killed on the way, and served
//! there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use botledger_sim::Person;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::postgres::PgPoolOptions;
use sqlx::{ConnectOptions, PgPool};

use crate::house::{House, Partners, until};

const BOT: &str = "moving_bot";
const DATABASE: &str = "BOTLEDGER_DATABASE__URL";

/// An empty installation on the same server.
struct NewHouse {
    pool: PgPool,
    database: String,
    /// Of the owner of its tables.
    owner: String,
}

impl NewHouse {
    async fn build(old: &House) -> Self {
        let name = old.pool.connect_options().get_database().unwrap_or("test").to_owned();
        // One a test is enough, and PostgreSQL's names are short.
        let database = format!("new_{}", &name[name.len().saturating_sub(40)..]).to_lowercase();
        sqlx::query(&format!("CREATE DATABASE {database}")).execute(&old.pool).await.unwrap();
        let options = old.pool.connect_options().as_ref().clone().database(&database);
        let owner = options.to_url_lossy().to_string();
        old.told_with(&[(DATABASE, &owner)], &["migrate"]).await;
        let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
        Self { pool, database, owner }
    }

    /// What makes a command work there.
    fn here(&self) -> [(&str, &str); 1] {
        [(DATABASE, &self.owner)]
    }

    async fn pull_down(self, old: &House) {
        self.pool.close().await;
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.database);
        sqlx::query(&drop).execute(&old.pool).await.unwrap();
    }
}

fn manifest_hash(folder: &Path) -> String {
    hex::encode(Sha256::digest(fs::read(folder.join("manifest.json")).unwrap()))
}

fn refusal(output: &Output) -> String {
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    text
}

async fn lived_in(house: &House) -> i64 {
    house.open_with_bot(BOT).await;
    for number in 1..=12 {
        house.telegram.say(BOT, &Person::number(number % 4 * 4), &format!("text {number} — привет")).unwrap();
    }
    house.telegram.say(BOT, &Person::number(4), "/usage").unwrap();
    house.all_ended(12).await;
    12
}

/// Every row of every table of a schema, as text.
async fn rows(pool: &PgPool, tables: &[String]) -> Vec<(String, Vec<String>)> {
    let mut all = Vec::new();
    for table in tables {
        let query = format!("SELECT t::text FROM {table} t ORDER BY t::text");
        all.push((table.clone(), sqlx::query_scalar(&query).fetch_all(pool).await.unwrap()));
    }
    all
}

async fn read_tables(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT 'read.' || quote_ident(tablename) FROM pg_tables WHERE schemaname = 'read' ORDER BY 1",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

#[sqlx::test(migrations = "../migrations")]
async fn a_ledger_moves_house_and_everybody_is_known_there(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let product = house.serve(&[]).await;
    let turns = lived_in(&house).await;
    product.stop().await;
    // A stopped product may have left its last events for the next start.
    house.told(&["replay", "--all"]).await;

    let export = ["export", "log", "--out", "moving", "--max-file", "8KiB", "--with-keys", "--json"];
    let told: Value = serde_json::from_str(&house.told(&export).await).unwrap();
    assert!(told["files"].as_u64().unwrap() > 5 && told["bodies"].as_i64().unwrap() >= 24, "{told}");
    let folder = house.folder.join("moving");
    for entry in fs::read_dir(&folder).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.file_name());
    }
    let new = NewHouse::build(&house).await;
    let root = told["root"].as_str().unwrap();
    let sha256 = told["manifest_sha256"].as_str().unwrap();
    let check =
        house.told(&["import", "moving", "--check", "--root", root, "--manifest-sha256", sha256]).await;
    assert!(check.contains(" events and ") && check.contains(root), "{check}");
    let with_root = ["import", "moving", "--root", root];
    // A root proves nothing about logins.
    let (house_file, manifest_file) = (folder.join("house.ndjson"), folder.join("manifest.json"));
    let whole = [fs::read_to_string(&house_file).unwrap(), fs::read_to_string(&manifest_file).unwrap()];
    let edited = whole[0].replacen("\"login\":\"owner\"", "\"login\":\"other\"", 1);
    assert!(edited != whole[0], "an owner has a login");
    let hash = |text: &str| hex::encode(Sha256::digest(text));
    fs::write(&house_file, &edited).unwrap();
    fs::write(&manifest_file, whole[1].replacen(&hash(&whole[0]), &hash(&edited), 1)).unwrap();
    let said = refusal(&house.run_with(&new.here(), &with_root).await);
    assert!(said.contains("give --manifest-sha256 too"), "{said}");
    let import = ["import", "moving", "--root", root, "--manifest-sha256", sha256, "--json"];
    let said = refusal(&house.run_with(&new.here(), &import).await);
    assert!(said.contains("manifest.json: its SHA-256 is not the expected one"), "{said}");
    fs::write(&house_file, &whole[0]).unwrap();
    fs::write(&manifest_file, &whole[1]).unwrap();

    // Who serves an installation, even an empty one, keeps an import out.
    let product = house.serve(&new.here()).await;
    let said = refusal(&house.run_with(&new.here(), &import).await);
    assert!(
        said.contains("somebody works in this installation") && said.contains("stop that first"),
        "{said}"
    );
    product.stop().await;
    let imported: Value = serde_json::from_str(&house.told_with(&new.here(), &import).await).unwrap();
    assert_eq!((&imported["events"], &imported["resumed"]), (&told["last"], &false.into()));
    house.told_with(&new.here(), &["replay", "--all"]).await;
    house.told_with(&new.here(), &["replay", "--all", "--verify"]).await;

    let mut tables = read_tables(&house.pool).await;
    assert!(tables.len() > 10, "{tables:?}");
    tables.extend(["events", "message_bodies", "keys.data_keys", "operator_logins"].map(str::to_owned));
    let (before, after) = (rows(&house.pool, &tables).await, rows(&new.pool, &tables).await);
    for (old, new) in before.iter().zip(&after) {
        assert!(old == new, "{} differs", old.0);
    }
    let said = refusal(&house.run_with(&new.here(), &import).await);
    assert!(said.contains("a ledger was imported here already"), "{said}");
    let said = refusal(&house.run(&import).await);
    assert!(said.contains("this installation is not empty, it has events"), "{said}");
    let noted: Vec<(String, Value)> = sqlx::query_as(
        "SELECT outcome, detail FROM audit_log WHERE action = 'log.export_with_keys' ORDER BY id",
    )
    .fetch_all(&house.pool)
    .await
    .unwrap();
    assert_eq!(noted.len(), 2, "before it began, and after: {noted:?}");
    assert_eq!((&*noted[0].0, &*noted[1].0), ("begun", "ok"));
    assert_eq!(
        (&noted[1].1["manifest_sha256"], &noted[1].1["keys"]),
        (&told["manifest_sha256"], &true.into())
    );

    // Same keys: the bot's token opens, and who wrote before is no stranger.
    let people = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM read.people").fetch_one(&new.pool).await.unwrap()
    };
    let known = people().await;
    let product = house.serve(&new.here()).await;
    until("the bot asks for updates in the new house", async || {
        house.telegram.delivery(BOT).unwrap().polling
    })
    .await;
    house.telegram.say(BOT, &Person::number(4), "do you know me?").unwrap();
    until("the new house has answered", async || {
        let ended: i64 = sqlx::query_scalar("SELECT count(*) FROM read.turns WHERE NOT open")
            .fetch_one(&new.pool)
            .await
            .unwrap();
        ended > turns
    })
    .await;
    assert_eq!(people().await, known);
    product.stop().await;
    house.told_with(&new.here(), &["replay", "--all", "--verify"]).await;
    new.pull_down(&house).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn kill_9_during_export_and_import_costs_only_time(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let product = house.serve(&[]).await;
    lived_in(&house).await;
    product.stop().await;
    // One that is lost at the source is told, and no obstacle.
    sqlx::query("DELETE FROM message_bodies WHERE body_id = (SELECT body_id FROM message_bodies LIMIT 1)")
        .execute(&house.pool)
        .await
        .unwrap();
    let export = ["export", "log", "--out", "moving", "--max-file", "1KiB", "--format", "cloudevents"];
    let folder = house.folder.join("moving");
    let written = || fs::read_dir(&folder).map_or(0, |entries| entries.count());
    let mut kills = 0;
    for more in [1, 20, 60] {
        let wanted = written() + more;
        let mut running = house.begin(&[], &export);
        until("it has written more, or is done", async || {
            written() >= wanted || running.child.try_wait().unwrap().is_some()
        })
        .await;
        if running.child.try_wait().unwrap().is_none() {
            running.kill().await;
            kills += 1;
        }
    }
    assert!(kills > 0, "it was faster than every kill");
    if !folder.join("manifest.json").exists() {
        house.told(&export).await;
    }
    let check = house.told(&["import", "moving", "--check"]).await;
    let sha256 = manifest_hash(&folder);
    let import = ["import", "moving", "--other-keys", "--manifest-sha256", &sha256];
    let new = NewHouse::build(&house).await;

    // Nobody else writes while we hold this: the import waits at its first event at the latest.
    let mut blocked = new.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE events IN SHARE MODE").execute(&mut *blocked).await.unwrap();
    let running = house.begin(&new.here(), &import);
    until("it wants to write", async || {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'botledger-import'
             AND wait_event_type = 'Lock'",
        )
        .fetch_one(&house.pool)
        .await
        .unwrap();
        waiting > 0
    })
    .await;
    running.kill().await;
    blocked.rollback().await.unwrap();
    house.told_with(&new.here(), &import).await;
    let (events, last): (i64, i64) =
        sqlx::query_as("SELECT count(*), max(position) FROM events").fetch_one(&new.pool).await.unwrap();
    assert!(events == last && check.starts_with(&format!("{events} events ")), "{check}");
    let tables = ["events", "message_bodies"].map(str::to_owned);
    assert!(rows(&house.pool, &tables).await == rows(&new.pool, &tables).await);
    new.pull_down(&house).await;

    // One that is lost on the way is an obstacle, also where the manifest agrees with the files.
    let manifest = fs::read_to_string(folder.join("manifest.json")).unwrap();
    let silent = manifest.replacen("\"bodies_absent\": 1", "\"bodies_absent\": 0", 1);
    assert!(silent != manifest, "{manifest}");
    fs::write(folder.join("manifest.json"), silent).unwrap();
    let new = NewHouse::build(&house).await;
    let sha256 = manifest_hash(&folder);
    let import = ["import", "moving", "--other-keys", "--manifest-sha256", &sha256];
    let said = refusal(&house.run_with(&new.here(), &import).await);
    assert!(said.contains("1 sealed bodies that events name are not in the files"), "{said}");
    new.pull_down(&house).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn bad_folders_ranges_and_half_imports_are_told_in_words(pool: PgPool) {
    let house = House::build(pool, Partners::default()).await;
    let said = refusal(&house.run(&["export", "log", "--out", "out"]).await);
    assert!(said.contains("the ledger is empty"), "{said}");
    let product = house.serve(&[]).await;
    house.open_with_bot(BOT).await;
    product.stop().await;
    fs::create_dir(house.folder.join("mine")).unwrap();
    fs::write(house.folder.join("mine/diary.txt"), "dear diary").unwrap();
    for (arguments, says) in [
        (&["export", "log", "--out", "mine"][..], "mine is not empty: name another folder"),
        (&["export", "log", "--out", "out", "--from", "99999"], "no event is in that range"),
        (&["export", "log", "--out", "out", "--to", "2001-01-01T00:00:00Z"], "no event is in that range"),
        (
            &["export", "log", "--out", "out", "--from", "yesterday"],
            "neither a position (1 or more) nor a time",
        ),
        (&["export", "log", "--out", "out", "--max-file", "1MB"], "no size such as 512KiB"),
        (&["import", "mine"], "mine holds no export: there is no manifest.json in it"),
        (&["import", "mine", "--root", "12"], "not 32 bytes"),
    ] {
        let error = refusal(&house.run(arguments).await);
        assert!(error.contains(says), "{arguments:?}: {error}");
    }
    house.told(&["export", "log", "--out", "out", "--from", "2026-01-01T00:00:00Z"]).await;
    assert!(!house.folder.join("out/house.ndjson").exists(), "keys travel only where somebody says so");
    let new = NewHouse::build(&house).await;
    let mut other = new.here().to_vec();
    let key = "7".repeat(64);
    other.push(("BOTLEDGER_KEYS__PSEUDONYM_KEY", &key));
    let sha256 = manifest_hash(&house.folder.join("out"));
    let import = ["import", "out", "--manifest-sha256", &sha256];
    let said = refusal(&house.run_with(&other, &import).await);
    assert!(said.contains("keys.pseudonym_key is not the source's"), "{said}");
    let said = refusal(&house.run_with(&new.here(), &import).await);
    assert!(said.contains("the export is without keys and logins"), "{said}");
    fs::create_dir(house.folder.join("open")).unwrap();
    fs::set_permissions(house.folder.join("open"), fs::Permissions::from_mode(0o755)).unwrap();
    let said = refusal(&house.run(&["export", "log", "--out", "open", "--with-keys"]).await);
    assert!(said.contains("open is open to others (mode 755)"), "{said}");
    sqlx::query(
        "INSERT INTO log_imports (manifest, ledger, instance, last_position, root, began_at)
         SELECT h, h, 'elsewhere', 9, h, now() FROM (SELECT sha256('x') AS h) AS hashed",
    )
    .execute(&new.pool)
    .await
    .unwrap();
    let mut product = house.start(&new.here());
    assert!(!product.ended().await.success());
    assert!(
        house.log().contains("the import of the ledger of elsewhere stands at event 0 of 9"),
        "{}",
        house.log()
    );
    for writes in [&["replay", "--all"][..], &["bot", "stop", BOT, "--reason", "x"]] {
        let said = refusal(&house.run_with(&new.here(), writes).await);
        assert!(said.contains("stands at event 0 of 9"), "{writes:?}: {said}");
    }
    let said = refusal(&house.run_with(&new.here(), &[&import[..], &["--other-keys"]].concat()).await);
    assert!(said.contains("the import of another export, from elsewhere, has begun here"), "{said}");
    new.pull_down(&house).await;
}
