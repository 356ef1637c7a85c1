//! The wire contract of events: a schema per aggregate and a payload per event and stored version.
//!
//! A changed schema is a diff to discuss: `BOTLEDGER_BLESS=1 cargo nextest run -p botledger-domain --test golden`
//! writes it anew. Payload files are only ever added; an existing one must decode for ever.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use botledger_domain::{catalog, upcast};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn blessing() -> bool {
    std::env::var_os("BOTLEDGER_BLESS").is_some()
}

#[test]
fn event_schemas_equal_the_committed_ones() {
    for aggregate in catalog::aggregates() {
        let path = golden(&format!("{}_event.schema.json", aggregate.aggregate_type));
        let mut schema = serde_json::to_value((aggregate.event_schema)()).expect("a schema is JSON");
        // Whether JSON keeps its order depends on the features that other crates of a build ask for.
        schema.sort_all_objects();
        let schema = serde_json::to_string_pretty(&schema).expect("a schema is JSON") + "\n";
        if blessing() {
            fs::write(&path, &schema).expect("the golden folder is writable");
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            committed, schema,
            "the events of `{}` changed; if that is meant: BOTLEDGER_BLESS=1 cargo nextest run -p botledger-domain --test golden",
            aggregate.aggregate_type
        );
    }
}

/// Wire names of an aggregate's events, read from its schema.
fn event_names(schema: &serde_json::Value) -> BTreeSet<String> {
    schema["oneOf"]
        .as_array()
        .expect("an event enum is a oneOf")
        .iter()
        .map(|variant| variant["properties"]["type"]["const"].as_str().expect("tagged by type").to_owned())
        .collect()
}

fn payloads_of(aggregate: &str, event: &str) -> Vec<(String, String)> {
    let prefix = format!("{aggregate}.{event}.");
    let mut found: Vec<_> = fs::read_dir(golden(""))
        .expect("the golden folder exists")
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let version = name.strip_prefix(&prefix)?.strip_suffix(".json")?.to_owned();
            Some((version, fs::read_to_string(golden(&name)).ok()?))
        })
        .collect();
    found.sort();
    found
}

#[test]
fn every_event_has_a_payload_of_every_version_and_each_decodes() {
    fn check<A: cqrs_es::Aggregate>(schema: &serde_json::Value) {
        for event in event_names(schema) {
            let payloads = payloads_of(A::TYPE, &event);
            assert!(!payloads.is_empty(), "tests/golden/{}.{event}.1.0.json is missing: add one", A::TYPE);
            let mut newest = false;
            for (version, text) in payloads {
                let decoded = upcast::decode::<A::Event>(&event, &version, &text).unwrap_or_else(|error| {
                    panic!("{}.{event}.{version}.json does not decode: {error}", A::TYPE)
                });
                assert_eq!(cqrs_es::DomainEvent::event_type(&decoded), event);
                // What an older version says is kept in the newest one's words.
                newest |= version == cqrs_es::DomainEvent::event_version(&decoded);
                if version == cqrs_es::DomainEvent::event_version(&decoded) {
                    let again: serde_json::Value = serde_json::to_value(&decoded).expect("events serialise");
                    let stored: serde_json::Value = serde_json::from_str(&text).expect("payloads are JSON");
                    assert_eq!(again, stored, "{}.{event}.{version}.json loses something", A::TYPE);
                }
            }
            assert!(newest, "{}.{event} has no payload of its present version: add one", A::TYPE);
        }
    }
    for aggregate in catalog::aggregates() {
        let schema = serde_json::to_value((aggregate.event_schema)()).expect("a schema is JSON");
        match aggregate.aggregate_type {
            "access_list" => check::<botledger_domain::access_list::AccessList>(&schema),
            "bot" => check::<botledger_domain::bot::Bot>(&schema),
            "budget" => check::<botledger_domain::budget::Budget>(&schema),
            "budget_share" => check::<botledger_domain::budget_share::BudgetShare>(&schema),
            "chat_session" => check::<botledger_domain::chat_session::ChatSession>(&schema),
            "operator" => check::<botledger_domain::operator::Operator>(&schema),
            "policy" => check::<botledger_domain::policy::Policy>(&schema),
            "quota" => check::<botledger_domain::quota::Quota>(&schema),
            "rate_override" => check::<botledger_domain::rate_limit::RateOverride>(&schema),
            "standing" => check::<botledger_domain::standing::Standing>(&schema),
            "subject" => check::<botledger_domain::subject::Subject>(&schema),
            "turn" => check::<botledger_domain::turn::Turn>(&schema),
            "workspace" => check::<botledger_domain::workspace::Workspace>(&schema),
            other => panic!("aggregate {other} has no golden check: add its line here"),
        }
    }
}

#[test]
fn a_stored_version_without_a_path_is_an_error() {
    let error =
        upcast::decode::<botledger_domain::bot::BotEvent>("bot_started", "9.0", "{}").expect_err("no path");
    assert!(error.to_string().contains("bot_started 9.0"), "{error}");
}
