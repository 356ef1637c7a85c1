//! One stream as a story: what every event changed in its aggregate, and what lies between two moments.
//! States are those of the aggregate itself, as JSON; what is sealed in them stays sealed.

use std::sync::Arc;

use botledger_domain::{
    Decide, DecodeError, Position, RecordedEvent, access_list::AccessList, bot::Bot, budget::Budget,
    budget_share::BudgetShare, chat_session::ChatSession, operator::Operator, policy::Policy, quota::Quota,
    rate_limit::RateOverride, standing::Standing, subject::Subject, turn::Turn, workspace::Workspace,
};
use serde::Serialize;
use serde_json::Value;

use crate::{EventFilter, LogReader, Page, ProjectionError};

/// Events folded at once.
const PAGE: i64 = 2_000;

/// One value that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ValueChange {
    /// Where in the state, for example `account.reserved`; lists are compared whole.
    pub path: String,
    /// Absent when there was nothing.
    pub before: Option<Value>,
    /// Absent when there is nothing any more.
    pub after: Option<Value>,
}

/// An event and what it changed.
#[derive(Clone, Debug)]
pub struct Step {
    /// What happened, who did it and when.
    pub event: Arc<RecordedEvent>,
    /// In the aggregate's state, by path.
    pub changes: Vec<ValueChange>,
}

/// What lies between two moments of one stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Between {
    /// Events of the stream after the first moment, up to the second.
    pub events: u64,
    /// From the state at the first to that at the second, by path.
    pub changes: Vec<ValueChange>,
}

/// An aggregate that can be told step by step.
trait Told: Send {
    fn apply(&mut self, event: &RecordedEvent) -> Result<(), DecodeError>;
    fn state(&self) -> Value;
}

struct Fold<A>(A);

impl<A: Decide + Default + Serialize + Send> Told for Fold<A> {
    fn apply(&mut self, event: &RecordedEvent) -> Result<(), DecodeError> {
        if let Some(fact) = event.decode::<A>()? {
            self.0.apply(fact);
        }
        Ok(())
    }

    fn state(&self) -> Value {
        serde_json::to_value(&self.0).expect("states have text keys and finite numbers")
    }
}

fn told(aggregate_type: &str) -> Option<Box<dyn Told>> {
    fn of<A: Decide + Default + Serialize + Send + 'static>() -> Option<Box<dyn Told>> {
        Some(Box::new(Fold(A::default())))
    }
    match aggregate_type {
        "access_list" => of::<AccessList>(),
        "bot" => of::<Bot>(),
        "budget" => of::<Budget>(),
        "budget_share" => of::<BudgetShare>(),
        "chat_session" => of::<ChatSession>(),
        "operator" => of::<Operator>(),
        "policy" => of::<Policy>(),
        "quota" => of::<Quota>(),
        "rate_override" => of::<RateOverride>(),
        "standing" => of::<Standing>(),
        "subject" => of::<Subject>(),
        "turn" => of::<Turn>(),
        "workspace" => of::<Workspace>(),
        _ => None,
    }
}

fn stream(aggregate_type: &str, id: &str) -> EventFilter {
    EventFilter {
        aggregate_type: Some(aggregate_type.to_owned()),
        aggregate_id: Some(id.to_owned()),
        ..EventFilter::default()
    }
}

/// Folds a stream's events after one position, up to another; how many there were.
async fn fold(
    log: &LogReader,
    mut filter: EventFilter,
    state: &mut dyn Told,
    after: Position,
    upto: Position,
) -> Result<u64, ProjectionError> {
    (filter.after, filter.upto) = (Some(after), Some(upto));
    let mut folded = 0;
    loop {
        let events = log.page(&filter, Page::oldest(PAGE)).await?;
        let Some(last) = events.last().map(|event| event.position) else { return Ok(folded) };
        for event in &events {
            state.apply(event)?;
        }
        folded += events.len() as u64;
        filter.after = Some(last);
    }
}

/// A page of a stream's events up to a position, each with what it changed. Nothing when there are no
/// streams of that type.
///
/// # Errors
/// When the database fails or an event does not decode.
pub async fn history(
    log: &LogReader,
    aggregate_type: &str,
    id: &str,
    upto: Position,
    page: Page,
) -> Result<Option<Vec<Step>>, ProjectionError> {
    let Some(mut story) = Story::of(aggregate_type, id, upto) else { return Ok(None) };
    story.page(log, page).await.map(Some)
}

/// A stream up to a position, told page by page. The state behind a page is kept: pages that go forwards
/// fold every event once, however many there are.
pub struct Story {
    stream: EventFilter,
    state: Box<dyn Told>,
    /// Folded so far.
    at: Position,
}

impl Story {
    /// Nothing when there are no streams of that type.
    #[must_use]
    pub fn of(aggregate_type: &str, id: &str, upto: Position) -> Option<Self> {
        let stream = EventFilter { upto: Some(upto), ..stream(aggregate_type, id) };
        Some(Self { stream, state: told(aggregate_type)?, at: Position(0) })
    }

    /// A page of its events, each with what it changed.
    ///
    /// # Errors
    /// When the database fails or an event does not decode.
    pub async fn page(&mut self, log: &LogReader, page: Page) -> Result<Vec<Step>, ProjectionError> {
        let mut events = log.page(&self.stream, page).await?;
        let Some(first) = events.iter().map(|event| event.position).min() else { return Ok(vec![]) };
        if first <= self.at {
            // Backwards there is no way but from the beginning.
            let kind = self.stream.aggregate_type.as_deref().unwrap_or_default();
            (self.state, self.at) = (told(kind).expect("told once already"), Position(0));
        }
        let before = Position(first.0 - 1);
        fold(log, self.stream.clone(), self.state.as_mut(), self.at, before).await?;
        self.at = before;
        let newest_first =
            events.first().map(|event| event.position) > events.last().map(|event| event.position);
        if newest_first {
            events.reverse();
        }
        let mut steps = Vec::with_capacity(events.len());
        let mut before = self.state.state();
        for event in events {
            self.state.apply(&event)?;
            self.at = event.position;
            let after = self.state.state();
            steps.push(Step { event: Arc::new(event), changes: differences(&before, &after) });
            before = after;
        }
        if newest_first {
            steps.reverse();
        }
        Ok(steps)
    }
}

/// What changed in a stream after one position, up to another. Nothing when there are no streams of that
/// type.
///
/// # Errors
/// When the database fails or an event does not decode.
pub async fn changes_between(
    log: &LogReader,
    aggregate_type: &str,
    id: &str,
    from: Position,
    to: Position,
) -> Result<Option<Between>, ProjectionError> {
    let Some(mut state) = told(aggregate_type) else { return Ok(None) };
    let filter = stream(aggregate_type, id);
    fold(log, filter.clone(), state.as_mut(), Position(0), from).await?;
    let before = state.state();
    let events = fold(log, filter, state.as_mut(), from, to).await?;
    Ok(Some(Between { events, changes: differences(&before, &state.state()) }))
}

fn differences(before: &Value, after: &Value) -> Vec<ValueChange> {
    let mut changes = Vec::new();
    compare(String::new(), Some(before), Some(after), &mut changes);
    changes
}

fn compare(path: String, before: Option<&Value>, after: Option<&Value>, changes: &mut Vec<ValueChange>) {
    if before == after {
        return;
    }
    // Null and absent are the same to a reader.
    let thing = |value: Option<&Value>| value.filter(|value| !value.is_null()).cloned();
    let (Some(Value::Object(was)), Some(Value::Object(is))) = (before, after) else {
        let (before, after) = (thing(before), thing(after));
        if before != after {
            changes.push(ValueChange { path, before, after });
        }
        return;
    };
    let keys: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    for key in keys {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        compare(path, was.get(key), is.get(key), changes);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_aggregate_can_be_told() {
        for kind in botledger_domain::catalog::aggregates() {
            let state =
                told(kind.aggregate_type).unwrap_or_else(|| panic!("{}", kind.aggregate_type)).state();
            assert!(!state.is_null(), "{}", kind.aggregate_type);
        }
        assert!(told("nothing").is_none());
    }

    #[test]
    fn changes_are_told_by_their_paths() {
        let before =
            json!({"plan": "free", "account": {"used": 1, "holds": {"a": 5}}, "list": [1], "gone": null});
        let after = json!({"plan": "free", "account": {"used": 2, "holds": {}}, "list": [1, 2], "new": true});
        let change = |path: &str, before: Value, after: Value| {
            let some = |value: Value| (!value.is_null()).then_some(value);
            ValueChange { path: path.to_owned(), before: some(before), after: some(after) }
        };
        assert_eq!(
            differences(&before, &after),
            [
                change("account.holds.a", json!(5), Value::Null),
                change("account.used", json!(1), json!(2)),
                change("list", json!([1]), json!([1, 2])),
                change("new", Value::Null, json!(true)),
            ]
        );
        assert_eq!(differences(&after, &after), []);
    }
}
