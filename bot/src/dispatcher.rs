//! Which turn is worked on next: in order within a conversation, side by side between them, cheap
//! commands before questions to a model.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use botledger_domain::{ConversationId, TurnId, turn::Lane};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A turn that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) turn: TurnId,
    pub(crate) conversation: ConversationId,
    pub(crate) lane: Lane,
    /// Whether it asks to stop what is being written in its conversation.
    pub(crate) stops: bool,
    /// Its entry in the Redis stream, to be removed when it is done.
    pub(crate) entry: Option<String>,
}

/// A turn whose time has come.
#[derive(Clone, Debug)]
pub(crate) struct Started {
    pub(crate) work: Work,
    /// Cancelled when the person says stop.
    pub(crate) stop: CancellationToken,
    /// For a turn that asked to stop: whether something was being written.
    pub(crate) stopped_something: bool,
}

struct Mailbox {
    waiting: VecDeque<(Work, bool)>,
    running: Option<CancellationToken>,
}

#[derive(Default)]
struct State {
    known: HashSet<TurnId>,
    mailboxes: HashMap<ConversationId, Mailbox>,
    high: VecDeque<ConversationId>,
    normal: VecDeque<ConversationId>,
    waiting: usize,
}

/// The dispatcher of one bot. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Dispatcher {
    state: Arc<Mutex<State>>,
    high: Arc<Notify>,
    normal: Arc<Notify>,
}

impl Dispatcher {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a turn waits or is being worked on.
    pub(crate) fn knows(&self, turn: TurnId) -> bool {
        self.lock().known.contains(&turn)
    }

    /// Takes a turn in; false when it is here already.
    pub(crate) fn submit(&self, work: Work) -> bool {
        let mut state = self.lock();
        if !state.known.insert(work.turn) {
            return false;
        }
        state.waiting += 1;
        let conversation = work.conversation;
        let mailbox = state
            .mailboxes
            .entry(conversation)
            .or_insert_with(|| Mailbox { waiting: VecDeque::new(), running: None });
        let stopped = match (&mailbox.running, work.stops) {
            (Some(running), true) => {
                running.cancel();
                true
            }
            _ => false,
        };
        mailbox.waiting.push_back((work, stopped));
        let is_next = mailbox.running.is_none() && mailbox.waiting.len() == 1;
        if is_next {
            self.make_ready(&mut state, conversation);
        }
        true
    }

    fn make_ready(&self, state: &mut State, conversation: ConversationId) {
        let Some(lane) = state
            .mailboxes
            .get(&conversation)
            .and_then(|mailbox| mailbox.waiting.front())
            .map(|(work, _)| work.lane)
        else {
            return;
        };
        match lane {
            Lane::High => {
                state.high.push_back(conversation);
                self.high.notify_one();
            }
            Lane::Normal => {
                state.normal.push_back(conversation);
                self.normal.notify_one();
            }
        }
    }

    /// The next turn of a lane; waits until there is one. One caller a lane.
    pub(crate) async fn next(&self, lane: Lane) -> Started {
        let notify = match lane {
            Lane::High => &self.high,
            Lane::Normal => &self.normal,
        };
        loop {
            if let Some(started) = self.try_next(lane) {
                return started;
            }
            notify.notified().await;
        }
    }

    fn try_next(&self, lane: Lane) -> Option<Started> {
        let mut state = self.lock();
        let conversation = match lane {
            Lane::High => state.high.pop_front(),
            Lane::Normal => state.normal.pop_front(),
        }?;
        let mailbox = state.mailboxes.get_mut(&conversation)?;
        let (work, stopped_something) = mailbox.waiting.pop_front()?;
        let stop = CancellationToken::new();
        mailbox.running = Some(stop.clone());
        state.waiting -= 1;
        Some(Started { work, stop, stopped_something })
    }

    /// The turn is done, or was given up for now: the next of its conversation may begin.
    pub(crate) fn finish(&self, work: &Work) {
        let mut state = self.lock();
        state.known.remove(&work.turn);
        let Some(mailbox) = state.mailboxes.get_mut(&work.conversation) else { return };
        mailbox.running = None;
        if mailbox.waiting.is_empty() {
            state.mailboxes.remove(&work.conversation);
        } else {
            self.make_ready(&mut state, work.conversation);
        }
    }

    /// Turns that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// Turns that wait or are being worked on.
    pub(crate) fn open(&self) -> usize {
        self.lock().known.len()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn work(turn: u128, conversation: u128, lane: Lane) -> Work {
        Work {
            turn: TurnId(Uuid::from_u128(turn)),
            conversation: ConversationId(Uuid::from_u128(conversation)),
            lane,
            stops: false,
            entry: None,
        }
    }

    #[test]
    fn a_conversation_keeps_its_order_and_others_go_beside_it() {
        let dispatcher = Dispatcher::default();
        for (turn, conversation) in [(1, 1), (2, 1), (3, 2)] {
            assert!(dispatcher.submit(work(turn, conversation, Lane::Normal)));
        }
        let first = dispatcher.try_next(Lane::Normal).expect("turn 1");
        assert_eq!(first.work.turn.uuid().as_u128(), 1);
        let second = dispatcher.try_next(Lane::Normal).expect("turn 3, beside it");
        assert_eq!(second.work.turn.uuid().as_u128(), 3);
        assert!(dispatcher.try_next(Lane::Normal).is_none(), "turn 2 waits for turn 1");
        dispatcher.finish(&first.work);
        assert_eq!(dispatcher.try_next(Lane::Normal).expect("turn 2").work.turn.uuid().as_u128(), 2);
    }

    #[test]
    fn a_turn_is_taken_in_once_until_it_is_done() {
        let dispatcher = Dispatcher::default();
        assert!(dispatcher.submit(work(1, 1, Lane::Normal)));
        assert!(!dispatcher.submit(work(1, 1, Lane::Normal)));
        let started = dispatcher.try_next(Lane::Normal).expect("turn 1");
        assert!(!dispatcher.submit(work(1, 1, Lane::Normal)));
        dispatcher.finish(&started.work);
        assert_eq!(dispatcher.open(), 0);
    }

    #[test]
    fn stop_cancels_what_runs_in_its_own_conversation() {
        let dispatcher = Dispatcher::default();
        dispatcher.submit(work(1, 1, Lane::Normal));
        dispatcher.submit(work(2, 2, Lane::Normal));
        let one = dispatcher.try_next(Lane::Normal).expect("turn 1");
        let two = dispatcher.try_next(Lane::Normal).expect("turn 2");
        dispatcher.submit(Work { stops: true, ..work(3, 1, Lane::High) });
        assert!(one.stop.is_cancelled() && !two.stop.is_cancelled());
        dispatcher.finish(&one.work);
        let stop = dispatcher.try_next(Lane::High).expect("the stop itself");
        assert!(stop.stopped_something);
    }
}
