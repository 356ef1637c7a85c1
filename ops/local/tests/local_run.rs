//! Real services, started by the real binary, stopped in every way a person or a machine does.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use botledger_local::supervise::{is_alive, signal_pid};
use rustix::process::Signal;
use serde_json::Value;
use sqlx::{Connection, PgConnection};

const PATIENCE: Duration = Duration::from_secs(60);

/// A project folder of its own; whatever still runs in it ends with the test.
struct Project(PathBuf);

impl Project {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("botledger-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_botledger-services"));
        command.args(arguments).args(["--root".as_ref(), self.0.as_os_str()]);
        // Those of the test run itself are not meant.
        command.env_remove("DATABASE_URL").env_remove("REDIS_URL").stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Starts holding services in the background and waits until they are ready.
    fn hold(&self) -> Held {
        let log = fs::File::create(self.0.join("up.out")).unwrap();
        let mut command = self.command(&["services"]);
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut held = Held { child, services: Vec::new() };
        wait_for("services to be ready", || {
            assert!(held.child.try_wait().unwrap().is_none(), "{}", self.output());
            self.status()["ready"] == true
        });
        held.services = self.services();
        assert_eq!(held.services.len(), 2);
        held
    }

    fn status(&self) -> Value {
        serde_json::from_slice(&self.run(&["status", "--json"]).stdout).unwrap()
    }

    fn services(&self) -> Vec<u32> {
        let status = self.status();
        let children = status["children"].as_array().unwrap();
        children.iter().map(|child| u32::try_from(child["pid"].as_u64().unwrap()).unwrap()).collect()
    }

    fn output(&self) -> String {
        fs::read_to_string(self.0.join("up.out")).unwrap_or_default()
    }

    /// What the box says under `label`.
    fn row(&self, label: &str) -> String {
        let output = self.output();
        let line = output.lines().find(|line| line.starts_with(&format!("│ {label} "))).unwrap();
        line.trim_matches(['│', ' ']).split_whitespace().nth(1).unwrap().to_owned()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        self.run(&["down"]);
        self.run(&["reset", "--yes"]);
        fs::remove_dir_all(&self.0).ok();
    }
}

struct Held {
    child: std::process::Child,
    services: Vec<u32>,
}

impl Held {
    fn assert_all_gone(&self) {
        for pid in &self.services {
            wait_for("a service to end", || !is_alive(*pid));
        }
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run_async<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_killed_holder_leaves_no_orphan_and_the_next_one_starts_on_its_data() {
    let project = Project::new("killed");
    let mut held = project.hold();
    signal_pid(held.child.id(), Signal::KILL);
    held.child.wait().unwrap();
    held.assert_all_gone();
    assert_eq!(project.status()["running"], false);

    // At once, on the lock file that the killed one left.
    let again = project.hold();
    assert!(!project.output().contains("made a private"), "the data must be kept:\n{}", project.output());
    assert!(project.output().contains("schema in step"), "{}", project.output());
    drop(again);
}

#[test]
fn terminate_and_interrupt_stop_everything_in_order() {
    let project = Project::new("signals");
    for signal in [Signal::TERM, Signal::INT] {
        let mut held = project.hold();
        signal_pid(held.child.id(), signal);
        assert_eq!(held.child.wait().unwrap().code(), Some(0), "{}", project.output());
        held.assert_all_gone();
        assert!(!project.0.join(".local/up.json").exists());
        let log = fs::read_to_string(project.0.join(".local/logs/postgres.log")).unwrap();
        assert!(log.trim_end().ends_with("database system is shut down"), "{log}");
    }
}

#[test]
fn the_second_one_finds_the_first_and_down_stops_it() {
    let project = Project::new("second");
    let mut held = project.hold();
    let second = project.run(&["services"]);
    assert!(second.status.success(), "{}", text(&second.stderr));
    let shown = text(&second.stdout);
    assert!(!shown.is_empty() && project.output().contains(&shown), "not the same box:\n{shown}");
    assert!(text(&second.stderr).contains("already running"));

    let refused = project.run(&["reset", "--yes"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("ops/down"));

    assert!(project.run(&["down"]).status.success());
    assert_eq!(held.child.wait().unwrap().code(), Some(0));
    held.assert_all_gone();
    assert!(project.run(&["down"]).status.success(), "stopping what does not run is no error");
    assert_eq!(project.run(&["status"]).status.code(), Some(1));
}

#[test]
fn a_service_that_dies_is_started_again() {
    let project = Project::new("revived");
    let held = project.hold();
    let url = project.row("DATABASE_URL");
    for pid in &held.services {
        signal_pid(*pid, Signal::KILL);
    }
    wait_for("redis and postgresql to be back", || {
        run_async(async { PgConnection::connect(&url).await.is_ok() })
            && run_async(botledger_local::redis::ping(&project.row("REDIS_URL"))).is_ok()
    });
    drop(held);
}

#[test]
fn the_product_connects_as_a_role_that_cannot_touch_the_ledger() {
    let project = Project::new("role");
    let _held = project.hold();
    run_async(async {
        let mut connection = PgConnection::connect(&project.row("DATABASE_URL")).await.unwrap();
        let superuser: bool =
            sqlx::query_scalar("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
                .fetch_one(&mut connection)
                .await
                .unwrap();
        assert!(!superuser);
        sqlx::query("SELECT count(*) FROM events").execute(&mut connection).await.unwrap();
        for forbidden in
            ["DELETE FROM events", "UPDATE events SET position = 1", "TRUNCATE events", "DROP TABLE events"]
        {
            let error = sqlx::query(forbidden).execute(&mut connection).await.unwrap_err();
            assert_eq!(
                error.as_database_error().unwrap().code().as_deref(),
                Some("42501"),
                "{forbidden}: {error}"
            );
        }
    });
}

#[test]
fn a_command_gets_services_of_its_own_and_its_exit_code_comes_back() {
    let project = Project::new("throwaway");
    let mut command = project.command(&["services", "--migrate"]);
    let script = "echo \"$DATABASE_URL\"; exit 7";
    let output = command.args(["--", "/bin/sh", "-c", script]).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    let url = shown.trim();
    assert!(url.starts_with("postgres://"), "{shown}");
    assert!(run_async(PgConnection::connect(url)).is_err(), "the server must be gone");
    assert!(!project.0.join(".local").exists(), "throwaway services leave nothing");
}

#[test]
fn killing_a_throwaway_run_ends_its_servers_and_its_command() {
    let project = Project::new("throwaway-killed");
    let note = project.0.join("pids");
    let script = format!(
        "head -1 \"$DATA/postmaster.pid\" > {0}.new; echo $$ >> {0}.new; mv {0}.new {0}; exec sleep 600",
        note.display()
    );
    let mut command = project.command(&["services"]);
    // The data folder is named after the process id, which we only know afterwards.
    let script = format!("DATA=$(ls -d \"$CARGO_TARGET_DIR\"/services-*/pg); {script}");
    let scratch = project.0.join("tmp");
    fs::create_dir(&scratch).unwrap();
    command.env("CARGO_TARGET_DIR", &scratch).args(["--", "/bin/sh", "-c", &script]);
    let mut child = command.spawn().unwrap();
    wait_for("the command to run", || note.exists());
    let pids: Vec<u32> =
        fs::read_to_string(&note).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    signal_pid(child.id(), Signal::KILL);
    child.wait().unwrap();
    for pid in pids {
        wait_for("a child to end", || !is_alive(pid));
    }
}

#[test]
fn data_of_another_major_version_is_refused_with_the_way_out() {
    let project = Project::new("major");
    let data = project.0.join(".local/pg13");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("PG_VERSION"), "13\n").unwrap();
    let output = project.run(&["services"]);
    let message = text(&output.stderr);
    assert!(!output.status.success());
    assert!(message.contains("PostgreSQL 13") && message.contains("ops/reset"), "{message}");
    assert_eq!(list(&project.0.join(".local")), ["lock", "logs", "pg13", "secrets"]);
}

fn list(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
