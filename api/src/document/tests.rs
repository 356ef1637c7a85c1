use super::*;

fn refused(source: &str) -> String {
    prepare(source, None)
        .err()
        .unwrap_or_else(|| panic!("should be refused: {source:.60}"))
        .message()
        .to_owned()
}

#[test]
fn nested_literals_never_reach_the_parser() {
    for (open, close) in [("[", "]"), ("{a:", "}")] {
        let source = format!("{{ a(x: {}1{}) }}", open.repeat(2_000), close.repeat(2_000));
        assert!(refused(&source).contains("nested deeper"));
        let default = format!("query($x: [Int] = {}1{}) {{ a }}", open.repeat(2_000), close.repeat(2_000));
        assert!(refused(&default).contains("nested deeper"));
    }
}

#[test]
fn brackets_in_strings_and_comments_do_not_count() {
    let many = "[".repeat(500);
    for source in [
        format!("{{ a(x: \"{many}\") }}"),
        format!("{{ a(x: \"\\\"{many}\") }}"),
        format!("{{ a(x: \"\"\"{many} \\\"\"\" \" {many}\"\"\") }}"),
        format!("# {many}\n{{ a }}"),
        format!("{{ a # \"{many}\r b }}"),
    ] {
        assert!(prepare(&source, None).is_ok(), "{source:.40}");
    }
}

#[test]
fn a_string_cannot_hide_brackets_from_the_scan() {
    let many = "[".repeat(2_000);
    for source in [
        format!("{{ a(x: \"\" y: {many}"),
        format!("{{ a(x: \"\"\"\"\"\" y: {many}"),
        format!("{{ a(x: \"\"\"\\\\\"\"\" y: {many}"),
        format!("# \"\n{{ a(x: {many}"),
        format!("{{ a(x: \"\n{many}\") }}"),
        format!("{{ a(x: \"\\\n{many}\") }}"),
        format!("{{ a(x: \"\"\"{many}"),
    ] {
        refused(&source);
    }
}

#[test]
fn a_fragment_bomb_is_refused_or_cheap() {
    let mut wide = String::from("{ ...f0 }");
    for level in 0..8 {
        let spreads = format!("...f{} ", level + 1).repeat(10);
        wide.push_str(&format!(" fragment f{level} on Query {{ {spreads} }}"));
    }
    wide.push_str(" fragment f8 on Query { a }");
    assert!(refused(&wide).contains("spreads"));

    let mut doubling = String::from("{ ...f0 }");
    for level in 0..9 {
        doubling.push_str(&format!(" fragment f{level} on Query {{ b {{ ...f{0} ...f{0} }} }}", level + 1));
    }
    doubling.push_str(" fragment f9 on Query { a }");
    assert!(prepare(&doubling, None).is_ok(), "19 spreads, 10 fragments, depth 10: as much as is allowed");
}

#[test]
fn fragment_cycles_are_refused() {
    assert!(
        refused("{ ...a } fragment a on Query { x { ...b } } fragment b on Query { y { ...a } }")
            .contains("itself")
    );
    assert!(refused("query p { x } query q { ...a } fragment a on Query { ...a }").contains("itself"));
}

#[test]
fn floods_are_refused() {
    assert!(refused(&format!("{{ {} }}", "__typename ".repeat(1_000))).contains("tokens"));
    assert!(refused(&format!("{{ {} }}", "a ".repeat(61))).contains("root fields"));
    assert!(refused(&format!("{{ {} }}", "x".repeat(129))).contains("name"));
    assert!(refused(&"x".repeat(1_000_000)).contains("longer"));
    assert!(refused(&format!("{{ a {} }}", "@skip(if: true) ".repeat(16))).contains("directives"));
    assert!(
        refused("{ a { a { a { a { a { a { a { a { a { a { a } } } } } } } } } } }")
            .contains("11 fields deep")
    );
    assert!(
        refused("query a {x} query b {x} query c {x} query d {x} query e {x} query f {x}")
            .contains("operations")
    );
    assert!(refused("{ __schema { a } bots { b } }").contains("operation of its own"));
}

#[test]
fn the_operation_is_picked_by_name() {
    let source = "query a { x } mutation b { y }";
    assert_eq!(prepare(source, Some("b")).expect("fits").kind, OperationType::Mutation);
    assert_eq!(prepare(source, Some("a")).expect("fits").roots, ["x"]);
    assert!(prepare(source, None).is_err());
    assert!(prepare(source, Some("c")).is_err());
    assert!(prepare("{ x }", Some("c")).is_err());
}

#[test]
fn errors_repeat_nothing_of_the_document() {
    assert!(!refused("{ secret( }").contains("secret"));
}

#[test]
fn deep_variables_are_refused() {
    let nest = |depth: usize| (0..depth).fold(serde_json::json!(1), |inner, _| serde_json::json!([inner]));
    assert!(check_variables(&nest(MAX_VALUE_DEPTH)).is_ok());
    assert!(check_variables(&nest(MAX_VALUE_DEPTH + 1)).is_err());
}
