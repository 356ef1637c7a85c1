//! The ledger out to files and into another database, with kills between and hands on the files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use botledger_journal::{
    AppendError,
    transfer::{
        Encoding, Expected, ExportRequest, Exported, Fingerprints, Imported, Manifest, Presence,
        TransferError, export, import, unfinished_import, verify_files,
    },
};
use sqlx::{ConnectOptions, PgPool};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::support::{assert_whole, journal, keyed, noon, set_on, set_with, stream};

/// A folder of this test's own, and a second, empty installation.
struct Elsewhere {
    folder: PathBuf,
    pool: PgPool,
    database: String,
    server: PgPool,
}

impl Elsewhere {
    async fn open(server: &PgPool) -> Self {
        let database = format!("moved_{}", Uuid::now_v7().simple());
        sqlx::query(&format!("CREATE DATABASE {database}")).execute(server).await.unwrap();
        let options = server.connect_options().as_ref().clone().database(&database);
        let mut migrating = options.connect().await.unwrap();
        sqlx::migrate!("../../migrations").run(&mut migrating).await.unwrap();
        // Only later connections have the search path of the migrated database.
        let pool =
            sqlx::postgres::PgPoolOptions::new().max_connections(4).connect_with(options).await.unwrap();
        let folder = std::env::temp_dir().join(&database);
        Self { folder, pool, database, server: server.clone() }
    }

    async fn close(self) {
        self.pool.close().await;
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.database);
        sqlx::query(&drop).execute(&self.server).await.unwrap();
        fs::remove_dir_all(&self.folder).ok();
    }

    fn request(&self, encoding: Encoding) -> ExportRequest {
        ExportRequest {
            folder: self.folder.clone(),
            encoding,
            first: None,
            last: None,
            bodies: true,
            house: true,
            max_file_bytes: 64 * 1024,
            instance: "here".to_owned(),
            product: "0".to_owned(),
            keys: keys("one"),
        }
    }
}

fn keys(name: &str) -> Fingerprints {
    Fingerprints {
        pseudonym: Some(Fingerprints::of(name, &[1; 32])),
        master: [(1, Fingerprints::of(name, &[2; 32]))].into(),
    }
}

async fn filled(pool: &PgPool) {
    let journal = journal(pool);
    for n in 0..3 {
        let sets = (0..110).map(|m| match m % 10 {
            0 => set_with(keyed(&format!("w/{n}-{m} \"ключ\"")), stream(), 0, 5),
            _ => set_on(stream(), 0, 1 + m % 7),
        });
        for receipt in journal.append_all(sets.collect()).await {
            receipt.unwrap();
        }
    }
    journal.close().await;
}

async fn everything(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar("SELECT e::text FROM events e ORDER BY position").fetch_all(pool).await.unwrap()
}

/// Runs until the given step at most: what a kill leaves there.
async fn killed_at<T, F: Future<Output = Result<T, TransferError>>>(
    step: usize,
    run: impl FnOnce(Box<dyn FnMut() + Send>) -> F,
) -> Option<Result<T, TransferError>> {
    let kill = std::sync::Arc::new(Notify::new());
    let (mut seen, signal) = (0, std::sync::Arc::clone(&kill));
    let running = run(Box::new(move || {
        seen += 1;
        if seen == step {
            signal.notify_one();
        }
    }));
    tokio::select! {
        biased;
        () = kill.notified() => None,
        done = running => Some(done),
    }
}

async fn exported(
    pool: &PgPool,
    request: &ExportRequest,
    step: usize,
) -> Option<Result<Exported, TransferError>> {
    killed_at(step, async |mut passed| export(pool, request.clone(), move |_| passed()).await).await
}

async fn imported(there: &Elsewhere, step: usize) -> Option<Result<Imported, TransferError>> {
    let verified = verify_files(&there.folder, &Expected::default(), |_| {}).unwrap();
    killed_at(step, async |mut passed| {
        let own = keys("one");
        import(&there.pool, &there.folder, &verified, Some(&own), noon(), move |_| passed()).await
    })
    .await
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[sqlx::test(migrations = "../../migrations")]
async fn killed_at_every_step_both_ways_the_copy_is_the_ledger(pool: PgPool) {
    filled(&pool).await;
    let events = everything(&pool).await;
    assert!(events.len() > 1_000, "several pages, or nothing is between the kills: {}", events.len());
    for encoding in [Encoding::Ndjson, Encoding::Cloudevents] {
        let there = Elsewhere::open(&pool).await;
        let request = there.request(encoding);
        for step in 1..=3 {
            assert!(exported(&pool, &request, step).await.is_none(), "was killed at step {step}");
            assert!(matches!(Manifest::read(&there.folder), Err(TransferError::Refused(_))));
            // What a kill in the middle of a write leaves.
            fs::write(there.folder.join("events-00000000000000000900.ndjson.part"), "{\"half").unwrap();
            // What somebody else laid there, to read what is written.
            let secret = there.folder.with_extension("elsewhere");
            fs::write(&secret, "mine").unwrap();
            let part = there.folder.join("manifest.json.part");
            fs::remove_file(&part).ok();
            std::os::unix::fs::symlink(&secret, part).unwrap();
        }
        let done = exported(&pool, &request, usize::MAX).await.unwrap().unwrap();
        assert!(done.resumed && done.manifest.files.len() > 5, "{:?}", done.manifest);
        let secret = there.folder.with_extension("elsewhere");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "mine", "nothing is written through a link");
        fs::remove_file(secret).unwrap();
        let again =
            Elsewhere { folder: there.folder.with_extension("twice"), ..Elsewhere::open(&pool).await };
        exported(&pool, &again.request(encoding), usize::MAX).await.unwrap().unwrap();
        assert!(files(&there.folder) == files(&again.folder), "kills leave no trace");

        for step in 1..=3 {
            assert!(imported(&there, step).await.is_none());
            assert!(
                unfinished_import(&there.pool)
                    .await
                    .unwrap()
                    .unwrap()
                    .contains("run `botledger import` again")
            );
            let journal = journal(&there.pool);
            let refused = journal.append(set_on(stream(), 0, 1)).await.unwrap_err();
            assert!(matches!(refused, AppendError::Invalid { .. }), "nobody else may write: {refused:?}");
            journal.close().await;
            let refused = Presence::begin(&there.pool).await.unwrap_err().to_string();
            assert!(refused.contains("import"), "nobody works here meanwhile: {refused}");
        }
        let options = there.pool.connect_options().as_ref().clone();
        let limited = sqlx::postgres::PgPoolOptions::new()
            .after_connect(|session, _| {
                Box::pin(async {
                    sqlx::query("SET SESSION AUTHORIZATION botledger_writer").execute(&mut *session).await?;
                    sqlx::query("SET botledger.importing = 'on'").execute(session).await.map(drop)
                })
            })
            .connect_with(options)
            .await
            .unwrap();
        let outsider = journal(&limited);
        let refused = outsider.append(set_on(stream(), 0, 1)).await.unwrap_err();
        assert!(matches!(refused, AppendError::Invalid { .. }), "its own word opens no door: {refused:?}");
        outsider.close().await;
        limited.close().await;
        let done = imported(&there, usize::MAX).await.unwrap().unwrap();
        assert_eq!(done, Imported { events: events.len() as i64, bodies: 0, resumed: true });
        assert!(everything(&there.pool).await == events, "every column, letter by letter");
        assert_whole(&there.pool).await;
        assert_eq!(unfinished_import(&there.pool).await.unwrap(), None);

        let journal = journal(&there.pool);
        let duplicate = journal.append(set_with(keyed("w/0-0 \"ключ\""), stream(), 0, 5)).await.unwrap();
        assert!(duplicate.duplicate && duplicate.event_positions.len() == 5, "{duplicate:?}");
        let next = journal.append(set_on(stream(), 0, 1)).await.unwrap();
        assert_eq!(next.position.0, events.len() as i64 + 1, "appends go on where the source stood");
        journal.close().await;
        let refused = imported(&there, usize::MAX).await.unwrap().unwrap_err().to_string();
        assert!(refused.contains("a ledger was imported here already, from here"), "{refused}");
        again.close().await;
        there.close().await;
    }
}

#[sqlx::test(migrations = "../../migrations")]
async fn whatever_is_done_to_the_files_is_found_and_told_where(pool: PgPool) {
    filled(&pool).await;
    let there = Elsewhere::open(&pool).await;
    let done = exported(&pool, &there.request(Encoding::Ndjson), usize::MAX).await.unwrap().unwrap();
    let whole = files(&there.folder);
    let events: Vec<&str> = done
        .manifest
        .files
        .iter()
        .map(|file| file.name.as_str())
        .filter(|name| name.starts_with("events"))
        .collect();
    let (second, last) = (events[1], *events.last().unwrap());
    let said = |change: &dyn Fn(&Path)| {
        for (name, bytes) in &whole {
            fs::write(there.folder.join(name), bytes).unwrap();
        }
        change(&there.folder);
        let error = verify_files(&there.folder, &Expected::default(), |_| {}).unwrap_err();
        error.to_string()
    };
    let edited = |name: &str, edit: &dyn Fn(Vec<String>) -> String| {
        said(&|folder| {
            let text = fs::read_to_string(folder.join(name)).unwrap();
            let lines = text.split_inclusive('\n').map(str::to_owned).collect();
            fs::write(folder.join(name), edit(lines)).unwrap();
        })
    };
    let told = edited(second, &|mut lines| {
        lines[3] = lines[3].replacen("opened_at", "opened_aT", 1);
        lines.concat()
    });
    assert!(told.starts_with(&format!("{second} line 4: event ")) && told.contains("was changed"), "{told}");
    let told = edited(second, &|mut lines| {
        lines.swap(4, 5);
        lines.concat()
    });
    assert!(told.starts_with(&format!("{second} line 5: is event ")), "{told}");
    let told = edited(second, &|mut lines| {
        lines.remove(7);
        lines.concat()
    });
    assert!(told.starts_with(&format!("{second} line 8: is event ")), "{told}");
    let told = edited(last, &|mut lines| {
        lines.pop();
        lines.concat()
    });
    assert!(told.starts_with(&format!("{last}: has ")) && told.contains("the manifest says"), "{told}");
    let told = edited(last, &|lines| lines.concat().trim_end().to_owned());
    assert!(told.ends_with("is cut off") && told.starts_with(last), "{told}");
    let told = edited(second, &|lines| lines.concat().replacen("\"set_size\":1", "\"set_size\":2", 1));
    assert!(told.contains("is not where its append set says"), "{told}");
    let told = edited(second, &|lines| {
        lines.concat().replacen("\"idempotency_key\":\"w", "\"idempotency_key\":\"x", 1)
    });
    assert!(told.contains("has not the idempotency key of its metadata"), "{told}");
    let told = said(&|folder| fs::remove_file(folder.join(second)).unwrap());
    assert_eq!(told, format!("{second}: is missing"));
    let told = said(&|folder| fs::write(folder.join("notes.txt"), "mine").unwrap());
    assert_eq!(told, "notes.txt: is not named in the manifest");
    fs::remove_file(there.folder.join("notes.txt")).unwrap();
    let told = said(&|folder| {
        fs::copy(folder.join(events[0]), folder.join(second)).unwrap();
    });
    assert!(told.starts_with(&format!("{second} line 1: is event 1, where event ")), "{told}");
    let manifest = |from: &'static str, to: &'static str| {
        edited("manifest.json", &move |lines| lines.concat().replacen(from, to, 1))
    };
    assert!(manifest("\"version\": 1", "\"version\": 2").contains("version 2 is not one this build reads"));
    assert!(
        manifest("events-00000000000000000001", "../events-0000000000000001").contains("does not follow")
    );
    let size = format!("\"size\": {},\n    \"root\": \"", done.manifest.last);
    let told = edited("manifest.json", &|lines| {
        let text = lines.concat();
        let at = text.find(&size).unwrap() + size.len();
        let other = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
        format!("{}{other}{}", &text[..at], &text[at + 1..])
    });
    assert_eq!(told, "manifest.json: its tree head is not that of the events");
    for (name, bytes) in &whole {
        fs::write(there.folder.join(name), bytes).unwrap();
    }
    let kept = |expected| {
        verify_files(&there.folder, &expected, |_| {}).map(drop).map_err(|error| error.to_string())
    };
    let (root, manifest_sha256) = (Some(done.manifest.after.root), Some(done.manifest_sha256));
    assert_eq!(kept(Expected { root, manifest_sha256 }), Ok(()));
    let told = kept(Expected { root: Some([9; 32]), manifest_sha256 }).unwrap_err();
    assert!(told.contains("is not the expected one"), "{told}");
    let told = kept(Expected { root, manifest_sha256: Some([9; 32]) }).unwrap_err();
    assert_eq!(told, "manifest.json: its SHA-256 is not the expected one");
    there.close().await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn only_an_empty_installation_with_the_same_keys_takes_a_ledger_in(pool: PgPool) {
    filled(&pool).await;
    let there = Elsewhere::open(&pool).await;
    let nothing =
        exported(&there.pool, &there.request(Encoding::Ndjson), usize::MAX).await.unwrap().unwrap_err();
    assert_eq!(nothing.to_string(), "the ledger is empty");
    exported(&pool, &there.request(Encoding::Ndjson), usize::MAX).await.unwrap().unwrap();
    let again = exported(&pool, &there.request(Encoding::Ndjson), usize::MAX).await.unwrap().unwrap_err();
    assert!(again.to_string().contains("holds a finished export already"), "{again}");
    let verified = verify_files(&there.folder, &Expected::default(), |_| {}).unwrap();
    let into = async |pool: &PgPool, own: Option<&Fingerprints>| {
        import(pool, &there.folder, &verified, own, noon(), |_| {}).await.unwrap_err().to_string()
    };
    let told = into(&there.pool, Some(&keys("two"))).await;
    assert!(told.contains("keys.pseudonym_key is not the source's"), "{told}");
    let told = into(&pool, Some(&keys("one"))).await;
    assert!(told.contains("this installation is not empty, it has events"), "{told}");

    let rest = Elsewhere { folder: there.folder.with_extension("rest"), ..Elsewhere::open(&pool).await };
    let request = ExportRequest { first: Some(500), last: Some(700), ..rest.request(Encoding::Ndjson) };
    let part = exported(&pool, &request, usize::MAX).await.unwrap().unwrap().manifest;
    assert!(part.first <= 500 && part.last >= 700, "sets are whole: {} to {}", part.first, part.last);
    assert_eq!(part.before.size, part.first - 1);
    let verified = verify_files(&rest.folder, &Expected::default(), |_| {}).unwrap();
    let told = import(&rest.pool, &rest.folder, &verified, None, noon(), |_| {}).await.unwrap_err();
    assert!(told.to_string().contains("only one from the first event can be imported"), "{told}");
    rest.close().await;
    there.close().await;
}

#[sqlx::test(migrations = "../../migrations")]
async fn a_ledger_that_differs_from_its_hashes_is_not_exported(pool: PgPool) {
    filled(&pool).await;
    let there = Elsewhere::open(&pool).await;
    let mut tx = pool.begin().await.unwrap();
    for statement in [
        "SET LOCAL session_replication_role = replica",
        "UPDATE events SET payload = replace(payload::text, ':', ': ')::json WHERE position = 777",
    ] {
        sqlx::query(statement).execute(&mut *tx).await.unwrap();
    }
    tx.commit().await.unwrap();
    let told = exported(&pool, &there.request(Encoding::Ndjson), usize::MAX).await.unwrap().unwrap_err();
    assert!(matches!(told, TransferError::Ledger { position: 777, .. }), "{told}");
    there.close().await;
}
