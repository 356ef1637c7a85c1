//! Laws every aggregate keeps, for property tests.

use std::fmt::Debug;

use crate::{Decide, test_support::later};

/// Runs commands one second apart and checks: a decision never panics; the same question gets the
/// same answer; recording an event twice in a row changes nothing; what was decided, replayed from
/// its stored text, gives the same state; a command in `idempotent`, repeated, adds nothing.
pub(crate) fn hold<A>(
    commands: Vec<A::Command>,
    step: impl Fn(&A, &A),
    idempotent: impl Fn(&A::Command) -> bool,
) where
    A: Decide + Clone + PartialEq + Debug,
    A::Command: Clone + Debug,
    A::Event: Clone + PartialEq + Debug,
    A::Error: PartialEq,
{
    let mut state = A::default();
    let mut history: Vec<A::Event> = Vec::new();
    for (second, command) in commands.into_iter().enumerate() {
        let now = later(i64::try_from(second).expect("few commands"));
        let answer = state.decide(command.clone(), now);
        assert_eq!(answer.as_ref().ok(), state.decide(command.clone(), now).as_ref().ok(), "{command:?}");
        let Ok(events) = answer else { continue };
        let before = state.clone();
        let moved = !events.is_empty();
        for event in events {
            state.apply(event.clone());
            let once = state.clone();
            state.apply(event.clone());
            assert_eq!(once, state, "{event:?} applied twice differs");
            history.push(event);
        }
        if moved {
            step(&before, &state);
        }
        if idempotent(&command) {
            let again =
                state.decide(command.clone(), now).unwrap_or_else(|error| panic!("{command:?}: {error}"));
            assert!(again.is_empty(), "{command:?} repeated adds {again:?}");
        }
    }
    let mut replayed = A::default();
    for event in history {
        let text = serde_json::to_string(&event).expect("events serialise");
        replayed.apply(serde_json::from_str(&text).expect("events decode"));
    }
    assert_eq!(state, replayed);
}
