//! The schema as it is committed.

use botledger_api::Api;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schema.graphql");

#[test]
fn the_committed_schema_is_the_served_one() {
    let served = Api::sdl();
    if std::env::var_os("BOTLEDGER_BLESS").is_some() {
        std::fs::write(GOLDEN, &served).unwrap();
    }
    let committed = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    assert!(committed == served, "api/schema.graphql is not in step; BOTLEDGER_BLESS=1 renews it");
}

#[test]
fn everything_in_the_schema_is_described_or_speaks_for_itself() {
    // Types, root fields and inputs need words; fields whose name says it all do not.
    let schema = Api::sdl();
    let lines: Vec<&str> = schema.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let is_type =
            ["type ", "input ", "enum ", "interface ", "scalar "].iter().any(|kind| line.starts_with(kind));
        let generated = line.contains("Connection")
            || line.contains("Edge")
            || line.starts_with("type Query")
            || line.starts_with("type Mutation")
            || line.starts_with("type Subscription");
        if is_type && !generated {
            assert!(index > 0 && lines[index - 1].trim() == "\"\"\"", "no description: {line}");
        }
    }
}

#[test]
fn the_schema_names_no_machine() {
    let schema = Api::sdl();
    for trace in [env!("CARGO_MANIFEST_DIR"), "localhost", "127.0.0.1"] {
        assert!(!schema.contains(trace), "{trace}");
    }
}
