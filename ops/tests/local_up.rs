//! The product as `up` runs it, with a stub in its place that only has to stay alive: what answers
//! `/readyz` is this test.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use botledger_local::progress::Progress;
use botledger_local::state;
use botledger_local::{Application, Layout};
use botledger_ops::cli::up::Product;
use botledger_ops::config::Sources;

/// A stub program that writes down its arguments and the settings it was given, and stays.
fn stub(folder: &Path) -> PathBuf {
    let path = folder.join("stub");
    let script = "#!/bin/sh\nnote=$(dirname \"$0\")/$1.note\n(echo \"$@\"; env | grep ^BOTLEDGER_) > \"$note.new\"\nmv \"$note.new\" \"$note\"\nexec sleep 600\n";
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited too long for {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_passed_on_and_a_second_up_waits_until_the_first_is_ready() {
    tokio::task::LocalSet::new().run_until(first_and_second()).await;
}

async fn first_and_second() {
    let folder = std::env::temp_dir().join(format!("botledger-up-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = listener.local_addr().unwrap();
    let ready = Arc::new(AtomicBool::new(false));

    // The admin address is taken by the test's own server once the plan was made.
    drop(listener);
    let environment = vec![
        ("BOTLEDGER_HTTP__ADMIN_LISTEN".to_owned(), admin.to_string()),
        ("BOTLEDGER_HTTP__LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
        ("BOTLEDGER_TELEGRAM__API_URL".to_owned(), "http://telegram.test".to_owned()),
        ("BOTLEDGER_OLLAMA__URL".to_owned(), "http://ollama.test".to_owned()),
    ];
    let sources = Sources { environment, ..Sources::default() };
    let product = Arc::new(Product::new(stub(&folder), Vec::new(), sources, false).unwrap());
    let layout = Layout::discover(Some(&folder)).unwrap();

    let up = |product: Arc<Product>, layout: Layout| async move {
        botledger_local::up::up(layout, false, product.as_ref() as &dyn Application, Progress::silent()).await
    };
    let first = tokio::task::spawn_local(up(Arc::clone(&product), layout.clone()));
    let note = folder.join("serve.note");
    wait_for("the program to run", || note.exists() || first.is_finished()).await;
    let note = fs::read_to_string(&note).unwrap();
    for part in [
        "serve\n",
        "BOTLEDGER_DATABASE__URL=postgres://botledger_app:",
        "BOTLEDGER_DATABASE__MIGRATE_URL=postgres://botledger_owner:",
        "BOTLEDGER_REDIS__URL=redis+unix://",
        "/secrets/master_key\n",
        &format!("BOTLEDGER_HTTP__ADMIN_LISTEN={admin}\n"),
    ] {
        assert!(note.contains(part), "{part} is missing");
    }

    let answering = Arc::clone(&ready);
    let router = Router::new().route(
        "/readyz",
        get(move || async move {
            if answering.load(Ordering::SeqCst) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
        }),
    );
    let listener = tokio::net::TcpListener::bind(admin).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });

    let second = tokio::task::spawn_local(up(Arc::clone(&product), layout.clone()));
    wait_for("the first to be known", || state::read(&layout).unwrap().is_some()).await;
    assert!(!second.is_finished() && !first.is_finished(), "nobody may call it ready yet");
    ready.store(true, Ordering::SeqCst);
    assert_eq!(second.await.unwrap().unwrap(), 0);
    let told = state::read(&layout).unwrap().unwrap();
    assert_eq!(told.phase, state::Phase::Ready);
    let names: Vec<&str> = told.children.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["postgres", "redis", "botledger"]);
    assert!(told.rows.iter().any(|(label, value)| label == "Telegram" && value == "http://telegram.test"));

    botledger_local::supervise::signal_pid(std::process::id(), rustix::process::Signal::TERM);
    assert_eq!(first.await.unwrap().unwrap(), 0);
    for (name, pid) in told.children {
        assert!(!botledger_local::supervise::is_alive(pid), "{name} still runs");
    }
    fs::remove_dir_all(&folder).unwrap();
    fs::remove_dir_all(&layout.run).ok();
}

#[tokio::test]
async fn without_partners_their_stand_ins_are_chosen() {
    let product = |environment: &[(&str, &str)], demo| {
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let sources = Sources { environment, ..Sources::default() };
        Product::new(PathBuf::new(), Vec::new(), sources, demo).unwrap()
    };
    let real = [("BOTLEDGER_TELEGRAM__API_URL", "http://t"), ("BOTLEDGER_OLLAMA__URL", "http://o")];
    let chosen = product(&real, false).stand_ins().await;
    assert!(!chosen.telegram && !chosen.ollama);
    let chosen = product(&real, true).stand_ins().await;
    assert!(chosen.telegram && chosen.ollama, "--demo plays everything");
    assert!(product(&[], false).stand_ins().await.telegram);
}
