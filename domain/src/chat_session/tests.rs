use proptest::prelude::*;

use super::*;
use crate::test_support::{id, noon, sealed};

fn open() -> ChatSessionCommand {
    ChatSessionCommand::Open { conversation: id(4), bot: id(3), subject: id(5) }
}

fn ensure() -> ChatSessionCommand {
    ChatSessionCommand::Ensure { conversation: id(4), bot: id(3), subject: id(5) }
}

fn after(commands: Vec<ChatSessionCommand>) -> ChatSession {
    let mut chat = ChatSession::default();
    for command in commands {
        for event in chat.decide(command, noon()).expect("allowed") {
            chat.record(event);
        }
    }
    chat
}

#[test]
fn the_first_message_opens_session_one_and_the_second_finds_it() {
    assert_eq!(after(vec![ensure(), ensure()]).current, 1);
}

#[test]
fn new_sessions_count_up_and_old_ones_can_be_taken_up_again() {
    let chat = after(vec![ensure(), open(), open(), ChatSessionCommand::Switch { session: 2 }]);
    assert_eq!((chat.current, chat.sessions.len()), (2, 3));
}

#[test]
fn a_session_nobody_opened_cannot_be_taken_up() {
    let chat = after(vec![ensure()]);
    assert_eq!(
        chat.decide(ChatSessionCommand::Switch { session: 7 }, noon()),
        Err(ChatSessionError::UnknownSession { session: 7 })
    );
}

#[test]
fn clearing_the_context_raises_the_epoch_of_the_current_session_only() {
    let chat = after(vec![ensure(), open(), ChatSessionCommand::ClearContext]);
    assert_eq!((chat.sessions[&1].context_epoch, chat.sessions[&2].context_epoch), (0, 1));
}

#[test]
fn the_number_of_sessions_is_bounded() {
    let chat = after((0..MAX_SESSIONS).map(|_| open()).collect());
    assert_eq!(chat.decide(open(), noon()), Err(ChatSessionError::TooManySessions { limit: MAX_SESSIONS }));
}

proptest! {
    #[test]
    fn exactly_one_session_is_current(steps in prop::collection::vec(0u32..8, 1..40)) {
        let commands: Vec<_> = steps.into_iter().map(|step| match step {
            0 => ensure(),
            1 => open(),
            2 => ChatSessionCommand::ClearContext,
            3 => ChatSessionCommand::Rename { session: 1, title: sealed(5) },
            session => ChatSessionCommand::Switch { session: session - 3 },
        }).collect();
        crate::laws::hold::<ChatSession>(commands, |_, after| {
            assert!(after.current().is_some() || after.sessions.is_empty());
        }, |command| matches!(command, ChatSessionCommand::Ensure { .. } | ChatSessionCommand::Switch { .. }
            | ChatSessionCommand::Rename { .. }));
    }
}
