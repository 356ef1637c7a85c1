//! Reads a document before the parser does, and once more before it is executed.
//!
//! The parser overflows the stack on deeply nested literals, and the library walks fragments without
//! memory before its own limits apply. One linear scan makes both impossible; what the parser then
//! gives is bounded and can be looked at leisurely.

use std::collections::{HashMap, HashSet};

use async_graphql::{
    Name, Positioned,
    parser::types::{ExecutableDocument, FragmentDefinition, OperationType, Selection, SelectionSet},
};
use botledger_domain::operator::{Permission, Role};

use crate::graphql::error::ApiError;

const MAX_BYTES: usize = 16 * 1_024;
const MAX_NESTING: usize = 24;
const MAX_TOKENS: usize = 1_000;
const MAX_SPREADS: usize = 20;
const MAX_FRAGMENTS: usize = 10;
const MAX_DIRECTIVES: usize = 15;
const MAX_NAME: usize = 128;
const MAX_OPERATIONS: usize = 5;
const MAX_ROOT_FIELDS: usize = 60;
const MAX_DEPTH: usize = 10;
/// The standard introspection query is 15 deep.
const MAX_INTROSPECTION_DEPTH: usize = 16;
/// Lists of the schema below one another: each multiplies the answer by dozens. The standard query
/// has one.
const MAX_INTROSPECTION_LISTS: usize = 2;
/// Nesting of variables.
const MAX_VALUE_DEPTH: usize = 24;

/// A document that may be executed.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) document: ExecutableDocument,
    /// Of the operation that will run.
    pub(crate) kind: OperationType,
    /// Names of the fields it asks the root for.
    pub(crate) roots: Vec<String>,
}

fn refuse(reason: &'static str, message: String) -> ApiError {
    metrics::counter!("botledger_api_refused_total", "reason" => reason).increment(1);
    ApiError::bad_input(message)
}

fn too_many(what: &'static str, limit: usize) -> ApiError {
    refuse("document", format!("the document has too many {what}; at most {limit} are allowed"))
}

/// Scans, parses, picks the operation and checks all limits that do not need the schema.
pub(crate) fn prepare(source: &str, operation_name: Option<&str>) -> Result<Prepared, ApiError> {
    scan(source)?;
    let document = async_graphql::parser::parse_query(source).map_err(|error| {
        let place = error
            .positions()
            .next()
            .map_or_else(String::new, |pos| format!(" at {}:{}", pos.line, pos.column));
        refuse("syntax", format!("the document is not GraphQL: syntax error{place}"))
    })?;
    if document.operations.iter().count() > MAX_OPERATIONS {
        return Err(too_many("operations", MAX_OPERATIONS));
    }
    let mut walk = Walk { fragments: &document.fragments, depths: HashMap::new(), open: HashSet::new() };
    for (_, operation) in document.operations.iter() {
        walk.check_operation(&operation.node.selection_set.node)?;
    }
    let named = operation_name.filter(|name| !name.is_empty());
    let chosen = match named {
        Some(name) => document.operations.iter().find(|(own, _)| own.is_some_and(|own| own.as_str() == name)),
        None if document.operations.iter().count() == 1 => document.operations.iter().next(),
        None => return Err(refuse("operation", "operationName must pick one of the operations".to_owned())),
    };
    let Some((_, operation)) = chosen else {
        return Err(refuse("operation", "the document has no operation of that name".to_owned()));
    };
    let kind = operation.node.ty;
    let mut roots = Vec::new();
    walk.roots(&operation.node.selection_set.node, &mut roots)?;
    Ok(Prepared { kind, roots, document })
}

/// Introspection is for those who build on the API.
pub(crate) fn check_introspection(prepared: &Prepared, role: Option<Role>) -> Result<(), ApiError> {
    if !prepared.roots.iter().any(|name| name == "__schema" || name == "__type") {
        return Ok(());
    }
    match role {
        None => Err(ApiError::unauthenticated()),
        Some(role) if role.may(Permission::ReadLedger) || role.may(Permission::ManageBots) => Ok(()),
        Some(_) => Err(ApiError::forbidden("the schema is shown to owners, admins and auditors")),
    }
}

/// Variables that are nested without end are as bad as literals.
pub(crate) fn check_variables(value: &serde_json::Value) -> Result<(), ApiError> {
    fn deeper_than(value: &serde_json::Value, left: usize) -> bool {
        match value {
            serde_json::Value::Array(items) => {
                left == 0 || items.iter().any(|item| deeper_than(item, left - 1))
            }
            serde_json::Value::Object(map) => {
                left == 0 || map.values().any(|item| deeper_than(item, left - 1))
            }
            _ => false,
        }
    }
    if deeper_than(value, MAX_VALUE_DEPTH) {
        return Err(refuse("variables", format!("variables are nested deeper than {MAX_VALUE_DEPTH}")));
    }
    Ok(())
}

fn scan(source: &str) -> Result<(), ApiError> {
    if source.len() > MAX_BYTES {
        return Err(refuse("document", format!("the document is longer than {MAX_BYTES} bytes")));
    }
    let bytes = source.as_bytes();
    let (mut at, mut nesting) = (0, 0_usize);
    let (mut tokens, mut spreads, mut fragments, mut directives) = (0, 0, 0, 0);
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        at += 1;
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' | b',' | 0xef | 0xbb | 0xbf => continue,
            b'#' => {
                while bytes.get(at).is_some_and(|byte| !matches!(byte, b'\n' | b'\r')) {
                    at += 1;
                }
                continue;
            }
            b'"' => {
                at = end_of_string(bytes, start).ok_or_else(|| {
                    refuse("syntax", "the document is not GraphQL: a string does not end".to_owned())
                })?
            }
            b'{' | b'[' | b'(' => {
                nesting += 1;
                if nesting > MAX_NESTING {
                    return Err(refuse(
                        "nesting",
                        format!("the document is nested deeper than {MAX_NESTING}"),
                    ));
                }
            }
            b'}' | b']' | b')' => nesting = nesting.saturating_sub(1),
            b'@' => directives += 1,
            b'.' if bytes[start..].starts_with(b"...") => {
                at = start + 3;
                spreads += 1;
            }
            b'A'..=b'Z' | b'a'..=b'z' | b'_' => {
                while bytes.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_') {
                    at += 1;
                }
                if at - start > MAX_NAME {
                    return Err(refuse("document", format!("a name is longer than {MAX_NAME} characters")));
                }
                if nesting == 0 && &bytes[start..at] == b"fragment" {
                    fragments += 1;
                }
            }
            b'0'..=b'9' | b'-' => {
                while bytes.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
                {
                    at += 1;
                }
            }
            _ => {}
        }
        tokens += 1;
        for (count, what, limit) in [
            (tokens, "tokens", MAX_TOKENS),
            (spreads, "fragment spreads", MAX_SPREADS),
            (fragments, "fragments", MAX_FRAGMENTS),
            (directives, "directives", MAX_DIRECTIVES),
        ] {
            if count > limit {
                return Err(too_many(what, limit));
            }
        }
    }
    Ok(())
}

/// Just behind the string that begins here.
fn end_of_string(bytes: &[u8], start: usize) -> Option<usize> {
    if bytes[start..].starts_with(b"\"\"\"") {
        let mut at = start + 3;
        loop {
            let rest = bytes.get(at..)?;
            if rest.starts_with(b"\\\"\"\"") {
                at += 4;
            } else if rest.starts_with(b"\"\"\"") {
                return Some(at + 3);
            } else if rest.is_empty() {
                return None;
            } else {
                at += 1;
            }
        }
    }
    let mut at = start + 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\n' | b'\r' => return None,
            b'\\' if matches!(bytes.get(at + 1), Some(b'\n' | b'\r') | None) => return None,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

type Fragments = HashMap<Name, Positioned<FragmentDefinition>>;

struct Walk<'a> {
    fragments: &'a Fragments,
    /// Depth of each fragment by the present weights, once known.
    depths: HashMap<&'a str, usize>,
    /// Fragments being looked into: meeting one again is a cycle.
    open: HashSet<&'a str>,
}

impl<'a> Walk<'a> {
    fn check_operation(&mut self, set: &'a SelectionSet) -> Result<(), ApiError> {
        let mut roots = Vec::new();
        self.depths.clear();
        let depth = self.depth(set)?;
        self.roots(set, &mut roots)?;
        let introspective = roots.iter().any(|name| name == "__schema" || name == "__type");
        let limit = if introspective { MAX_INTROSPECTION_DEPTH } else { MAX_DEPTH };
        if depth > limit {
            return Err(refuse(
                "depth",
                format!("the operation is {depth} fields deep; at most {limit} are allowed"),
            ));
        }
        // Introspection may be deep where it asks for one thing each; nothing else may hide behind it.
        if introspective && self.lists(set)? > MAX_INTROSPECTION_LISTS {
            return Err(refuse("depth", "introspection asks for lists of lists of lists".to_owned()));
        }
        if introspective && roots.iter().any(|name| !name.starts_with("__")) {
            return Err(refuse("depth", "introspection goes into an operation of its own".to_owned()));
        }
        Ok(())
    }

    /// Fields above one another.
    fn depth(&mut self, set: &'a SelectionSet) -> Result<usize, ApiError> {
        self.deepest(set, |_| 1)
    }

    /// Lists of types and fields above one another.
    fn lists(&mut self, set: &'a SelectionSet) -> Result<usize, ApiError> {
        self.depths.clear();
        self.deepest(set, |name| {
            usize::from(matches!(name, "fields" | "inputFields" | "interfaces" | "possibleTypes"))
        })
    }

    /// The greatest sum of the fields' weights from top to bottom.
    fn deepest(&mut self, set: &'a SelectionSet, weight: fn(&str) -> usize) -> Result<usize, ApiError> {
        let mut deepest = 0;
        for selection in &set.items {
            let depth = match &selection.node {
                Selection::Field(field) => {
                    weight(field.node.name.node.as_str())
                        + self.deepest(&field.node.selection_set.node, weight)?
                }
                Selection::InlineFragment(inline) => self.deepest(&inline.node.selection_set.node, weight)?,
                Selection::FragmentSpread(spread) => {
                    self.fragment(spread.node.fragment_name.node.as_str(), weight)?
                }
            };
            deepest = deepest.max(depth);
        }
        Ok(deepest)
    }

    fn fragment(&mut self, name: &'a str, weight: fn(&str) -> usize) -> Result<usize, ApiError> {
        if let Some(depth) = self.depths.get(name) {
            return Ok(*depth);
        }
        // An unknown fragment is for the validation to complain about.
        let Some(fragment) = self.fragments.get(name) else { return Ok(0) };
        if !self.open.insert(name) {
            return Err(refuse("cycle", "a fragment spreads itself".to_owned()));
        }
        let depth = self.deepest(&fragment.node.selection_set.node, weight)?;
        self.open.remove(name);
        self.depths.insert(name, depth);
        Ok(depth)
    }

    /// Root fields with repetition. Cycles were refused before.
    fn roots(&self, set: &SelectionSet, found: &mut Vec<String>) -> Result<(), ApiError> {
        for selection in &set.items {
            match &selection.node {
                Selection::Field(field) => {
                    found.push(field.node.name.node.to_string());
                    if found.len() > MAX_ROOT_FIELDS {
                        return Err(too_many("root fields", MAX_ROOT_FIELDS));
                    }
                }
                Selection::InlineFragment(inline) => self.roots(&inline.node.selection_set.node, found)?,
                Selection::FragmentSpread(spread) => {
                    if let Some(fragment) = self.fragments.get(spread.node.fragment_name.node.as_str()) {
                        self.roots(&fragment.node.selection_set.node, found)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
