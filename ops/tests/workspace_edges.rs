//! Who may depend on whom inside the workspace (STYLE section 1). A wrong edge is named.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Each crate and the crates of ours it may use. The binary may use all.
const ALLOWED: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("journal", &["domain"]),
    ("llm", &[]),
    ("scoring", &[]),
    ("commands", &["domain", "journal", "llm", "scoring"]),
    ("projections", &["domain"]),
    // The tail and the leases of the read models; a crate of its own because gRPC comes with it.
    ("relay", &["domain", "projections"]),
    ("api", &["domain", "commands", "projections"]),
    ("bot", &["domain", "commands", "projections", "llm"]),
    ("local", &[]),
    ("sim", &[]),
];
/// Tests may also use the stand-ins and private services, and open the ledger themselves.
const FOR_TESTS: &[&str] = &["sim", "local", "domain", "journal"];
/// Crates from outside that a layer must not use: `api` and `bot` hold no SQL, `domain` only data.
const FORBIDDEN_OUTSIDE: &[(&str, &[&str])] = &[
    ("domain", &["tokio", "sqlx", "reqwest", "redis", "axum", "teloxide", "rand", "tracing"]),
    ("llm", &["sqlx", "redis", "teloxide"]),
    ("scoring", &["tokio", "sqlx", "redis", "reqwest", "teloxide", "rand", "tracing"]),
    ("projections", &["redis", "reqwest", "teloxide", "axum", "eventstore"]),
    ("relay", &["redis", "reqwest", "teloxide", "axum"]),
    ("api", &["sqlx", "redis", "teloxide"]),
    ("bot", &["sqlx", "axum"]),
];

struct Edge {
    from: String,
    to: String,
    for_tests: bool,
}

fn wrong_edges(edges: &[Edge]) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let outside: BTreeMap<&str, &[&str]> = FORBIDDEN_OUTSIDE.iter().copied().collect();
    let mut wrong = Vec::new();
    for Edge { from, to, for_tests } in edges {
        if from == "ops" {
            continue;
        }
        match to.strip_prefix("botledger-") {
            Some(to) => match allowed.get(from.as_str()) {
                None => {
                    wrong.push(format!("{from} is not in the table of this test: say what it may depend on"))
                }
                Some(allowed) if allowed.contains(&to) || (*for_tests && FOR_TESTS.contains(&to)) => {}
                Some(allowed) => {
                    wrong.push(format!(
                        "{from} -> {to} is not allowed; {from} may depend on: {}",
                        allowed.join(", ")
                    ));
                }
            },
            None if !for_tests
                && outside.get(from.as_str()).is_some_and(|names| names.contains(&to.as_str())) =>
            {
                wrong.push(format!("{from} -> {to} is not allowed: that belongs into another layer"));
            }
            None => {}
        }
    }
    wrong
}

fn packages() -> Vec<Value> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path", manifest])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::from_value(metadata["packages"].take()).unwrap()
}

fn edges_of_the_workspace() -> Vec<Edge> {
    let mut edges = Vec::new();
    for package in packages() {
        let from = package["name"].as_str().unwrap().trim_start_matches("botledger-");
        for dependency in package["dependencies"].as_array().unwrap() {
            edges.push(Edge {
                from: from.to_owned(),
                to: dependency["name"].as_str().unwrap().to_owned(),
                for_tests: dependency["kind"] == "dev",
            });
        }
    }
    edges
}

#[test]
fn every_dependency_points_the_right_way() {
    let edges = edges_of_the_workspace();
    assert!(
        edges.iter().any(|edge| edge.from == "commands" && edge.to == "botledger-domain"),
        "nothing was read"
    );
    assert_eq!(wrong_edges(&edges), Vec::<String>::new());
}

#[test]
fn a_wrong_edge_is_named() {
    let edge = |from: &str, to: &str, for_tests| Edge { from: from.to_owned(), to: to.to_owned(), for_tests };
    let wrong = wrong_edges(&[
        edge("commands", "botledger-projections", false),
        edge("api", "sqlx", false),
        edge("api", "sqlx", true),
        edge("bot", "botledger-sim", true),
        edge("newcomer", "botledger-domain", false),
        edge("ops", "botledger-api", false),
    ]);
    assert_eq!(wrong.len(), 3, "{wrong:?}");
    assert!(wrong[0].starts_with("commands -> projections"));
    assert!(wrong[1].starts_with("api -> sqlx"));
    assert!(wrong[2].starts_with("newcomer"));
}

/// All Rust text below a folder.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            text.push_str(&sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
    text
}

/// Builds are what costs: a dependency that nobody names any more goes.
#[test]
fn every_dependency_is_used() {
    let mut unused = Vec::new();
    for package in packages() {
        let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
        let product = sources(&folder.join("src"));
        let tests = sources(&folder.join("tests"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = dependency["name"].as_str().unwrap();
            let word = name.replace('-', "_");
            let named = |text: &str| {
                text.match_indices(&word).any(|(at, _)| {
                    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
                    !is_word(text[..at].chars().next_back())
                        && !is_word(text[at + word.len()..].chars().next())
                })
            };
            let for_tests = dependency["kind"] == "dev";
            if !(named(&product) || for_tests && named(&tests)) {
                unused.push(format!("{} does not use {name}", package["name"].as_str().unwrap()));
            }
        }
    }
    assert_eq!(unused, Vec::<String>::new());
}
