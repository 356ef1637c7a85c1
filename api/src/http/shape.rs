//! Brings answers into the form that GraphQL asks for: the library leaves fields that failed out
//! instead of making them null, stops a null at the field above whatever its type, and tells fields
//! in the order in which they were ready.

use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

use async_graphql::{
    Name, PathSegment, Positioned, Response, Value,
    indexmap::IndexMap,
    parser::types::{
        BaseType, Directive, ExecutableDocument, FragmentDefinition, OperationDefinition, OperationType,
        Selection, SelectionSet, Type, TypeKind, TypeSystemDefinition,
    },
};

use crate::graphql;

/// An object of the schema.
struct Object {
    interfaces: HashSet<Name>,
    fields: HashMap<Name, Type>,
}

static OBJECTS: LazyLock<HashMap<Name, Object>> = LazyLock::new(|| {
    let schema = async_graphql::parser::parse_schema(graphql::sdl()).expect("the library wrote it");
    let types = schema.definitions.into_iter().filter_map(|definition| match definition {
        TypeSystemDefinition::Type(definition) => Some(definition.node),
        _ => None,
    });
    let objects = types.filter_map(|definition| match definition.kind {
        TypeKind::Object(object) => {
            let fields = object.fields.into_iter().map(|field| (field.node.name.node, field.node.ty.node));
            let interfaces = object.implements.into_iter().map(|name| name.node).collect();
            Some((definition.name.node, Object { interfaces, fields: fields.collect() }))
        }
        _ => None,
    });
    objects.collect()
});

/// What was asked for.
pub(super) struct Shape {
    operation: OperationDefinition,
    fragments: HashMap<Name, Positioned<FragmentDefinition>>,
    variables: serde_json::Map<String, serde_json::Value>,
}

/// A field as it was asked for, perhaps in several places.
struct Asked<'a> {
    name: &'a Name,
    sets: Vec<&'a SelectionSet>,
}

impl Shape {
    /// Nothing when no operation of that name is there.
    pub(super) fn of(
        document: &ExecutableDocument,
        name: Option<&str>,
        variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Option<Self> {
        let name = name.filter(|name| !name.is_empty());
        let mut operations = document.operations.iter();
        let (_, operation) =
            operations.find(|(own, _)| name.is_none() || own.map(|own| own.as_str()) == name)?;
        Some(Self {
            operation: operation.node.clone(),
            fragments: document.fragments.clone(),
            variables: variables.clone(),
        })
    }

    /// The same answer in due form. An answer to a request that was not executed stays as it is.
    pub(super) fn apply(&self, mut response: Response) -> Response {
        let failed: Vec<&[PathSegment]> = response.errors.iter().map(|error| error.path.as_slice()).collect();
        let executed = failed.is_empty() || failed.iter().any(|path| !path.is_empty());
        if !executed {
            return response;
        }
        let root = match self.operation.ty {
            OperationType::Query => "Query",
            OperationType::Mutation => "Mutation",
            OperationType::Subscription => "Subscription",
        };
        let fields = match std::mem::take(&mut response.data) {
            Value::Object(fields) => fields,
            _ => IndexMap::new(),
        };
        let sets = [&self.operation.selection_set.node];
        let data = self.object(root, &sets, fields, &failed, 0);
        response.data = data.unwrap_or_default();
        response
    }

    /// An object with all its fields; nothing when one that must not be null is. `failed` are the errors
    /// at or below it, and `depth` is how much of their paths leads here.
    fn object(
        &self,
        name: &str,
        sets: &[&SelectionSet],
        mut found: IndexMap<Name, Value>,
        failed: &[&[PathSegment]],
        depth: usize,
    ) -> Option<Value> {
        let Some(object) = OBJECTS.get(name) else { return Some(Value::Object(found)) };
        let mut asked = IndexMap::new();
        for set in sets {
            self.collect(name, object, set, &mut asked);
        }
        let mut fields = IndexMap::with_capacity(asked.len());
        for (key, Asked { name, sets }) in asked {
            let value = found.shift_remove(key);
            let value = match object.fields.get(name) {
                Some(kind) => {
                    let below = below(
                        failed,
                        depth,
                        |segment| matches!(segment, PathSegment::Field(field) if field.as_str() == key.as_str()),
                    );
                    self.value(kind, &sets, value.unwrap_or_default(), &below, depth + 1)?
                }
                // Introspection.
                None => value.unwrap_or_default(),
            };
            fields.insert(key.clone(), value);
        }
        Some(Value::Object(fields))
    }

    fn value(
        &self,
        kind: &Type,
        sets: &[&SelectionSet],
        value: Value,
        failed: &[&[PathSegment]],
        depth: usize,
    ) -> Option<Value> {
        // An object of which every field failed is told as null.
        let below = failed.iter().any(|path| path.len() > depth);
        let value = match (&kind.base, value) {
            (BaseType::List(inner), Value::List(items)) => {
                let items = items.into_iter().enumerate().map(|(index, item)| {
                    let below = below_index(failed, depth, index);
                    self.value(inner, sets, item, &below, depth + 1)
                });
                items.collect::<Option<Vec<Value>>>().map(Value::List)
            }
            (BaseType::Named(name), Value::Object(fields)) => self.object(name, sets, fields, failed, depth),
            (BaseType::Named(name), Value::Null) if below && OBJECTS.contains_key(name) => {
                self.object(name, sets, IndexMap::new(), failed, depth)
            }
            (_, value) => Some(value),
        };
        let value = value.unwrap_or_default();
        (kind.nullable || value != Value::Null).then_some(value)
    }

    fn collect<'a>(
        &'a self,
        name: &str,
        object: &Object,
        set: &'a SelectionSet,
        into: &mut IndexMap<&'a Name, Asked<'a>>,
    ) {
        let fits = |condition: &Name| condition.as_str() == name || object.interfaces.contains(condition);
        for selection in set.items.iter().map(|item| &item.node) {
            if self.is_left_out(selection.directives()) {
                continue;
            }
            match selection {
                Selection::Field(field) => {
                    let asked = into
                        .entry(&field.node.response_key().node)
                        .or_insert_with(|| Asked { name: &field.node.name.node, sets: Vec::new() });
                    asked.sets.push(&field.node.selection_set.node);
                }
                Selection::InlineFragment(fragment) => {
                    let condition = fragment.node.type_condition.as_ref();
                    if condition.is_none_or(|condition| fits(&condition.node.on.node)) {
                        self.collect(name, object, &fragment.node.selection_set.node, into);
                    }
                }
                Selection::FragmentSpread(spread) => {
                    if let Some(fragment) = self.fragments.get(&spread.node.fragment_name.node)
                        && fits(&fragment.node.type_condition.node.on.node)
                    {
                        self.collect(name, object, &fragment.node.selection_set.node, into);
                    }
                }
            }
        }
    }

    /// Whether `@skip` or `@include` says so.
    fn is_left_out(&self, directives: &[Positioned<Directive>]) -> bool {
        directives.iter().any(|directive| {
            let wanted = match directive.node.name.node.as_str() {
                "skip" => true,
                "include" => false,
                _ => return false,
            };
            let condition = directive.node.get_argument("if").map(|value| value.node.clone());
            let condition =
                condition.and_then(|value| value.into_const_with(|name| self.variable(&name)).ok());
            condition == Some(Value::Boolean(wanted))
        })
    }

    fn variable(&self, name: &Name) -> Result<Value, std::convert::Infallible> {
        let definitions = &self.operation.variable_definitions;
        let default = || definitions.iter().find(|definition| definition.node.name.node == *name);
        let default = || default()?.node.default_value.as_ref().map(|value| value.node.clone());
        let given = self.variables.get(name.as_str()).and_then(|value| Value::from_json(value.clone()).ok());
        Ok(given.or_else(default).unwrap_or_default())
    }
}

fn below<'a>(
    failed: &[&'a [PathSegment]],
    depth: usize,
    leads: impl Fn(&PathSegment) -> bool,
) -> Vec<&'a [PathSegment]> {
    failed.iter().copied().filter(|path| path.get(depth).is_some_and(&leads)).collect()
}

fn below_index<'a>(failed: &[&'a [PathSegment]], depth: usize, index: usize) -> Vec<&'a [PathSegment]> {
    below(failed, depth, |segment| matches!(segment, PathSegment::Index(at) if *at == index))
}
