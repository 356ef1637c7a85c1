//! Which turn is worked on next: in order within a conversation, side by side between them, cheap
//! commands before questions to a model.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use botledger_domain::{ConversationId, TurnId, turn::Lane};
use tokio::{sync::Notify, time::Instant};
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
    /// For a turn that asked to stop: whether there was something to end.
    pub(crate) stopped_something: bool,
    /// Messages of its answer that arrived before it had to wait.
    pub(crate) sent: Vec<i64>,
}

struct Mailbox {
    waiting: VecDeque<Started>,
    running: Option<CancellationToken>,
}

#[derive(Default)]
struct State {
    known: HashSet<TurnId>,
    mailboxes: HashMap<ConversationId, Mailbox>,
    high: VecDeque<ConversationId>,
    normal: VecDeque<ConversationId>,
    /// Conversations whose next turn may not begin before a moment.
    parked: BinaryHeap<Reverse<(Instant, ConversationId)>>,
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
        let mut stopped_something = false;
        if work.stops {
            // What is being written, and questions that stand before this one in line.
            let questions = mailbox.waiting.iter().filter(|waiting| waiting.work.lane == Lane::Normal);
            for stop in mailbox.running.iter().chain(questions.map(|waiting| &waiting.stop)) {
                stop.cancel();
                stopped_something = true;
            }
        }
        mailbox.waiting.push_back(Started {
            work,
            stop: CancellationToken::new(),
            stopped_something,
            sent: Vec::new(),
        });
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
            .map(|waiting| waiting.work.lane)
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
            let (started, wake) = self.try_next(lane, Instant::now());
            if let Some(started) = started {
                return started;
            }
            match wake {
                Some(at) => drop(tokio::time::timeout_at(at, notify.notified()).await),
                None => notify.notified().await,
            }
        }
    }

    /// The next turn of a lane, and when the next parked one may begin.
    fn try_next(&self, lane: Lane, now: Instant) -> (Option<Started>, Option<Instant>) {
        let mut state = self.lock();
        while let Some(&Reverse((at, conversation))) = state.parked.peek() {
            if now < at {
                break;
            }
            state.parked.pop();
            self.make_ready(&mut state, conversation);
        }
        let wake = state.parked.peek().map(|Reverse((at, _))| *at);
        (Self::pop(&mut state, lane), wake)
    }

    fn pop(state: &mut State, lane: Lane) -> Option<Started> {
        let conversation = match lane {
            Lane::High => state.high.pop_front(),
            Lane::Normal => state.normal.pop_front(),
        }?;
        let mailbox = state.mailboxes.get_mut(&conversation)?;
        let started = mailbox.waiting.pop_front()?;
        mailbox.running = Some(started.stop.clone());
        state.waiting -= 1;
        Some(started)
    }

    /// Puts a turn back at the head of its conversation, not to go on before a moment.
    pub(crate) fn park(&self, started: Started, until: Instant) {
        let mut state = self.lock();
        let conversation = started.work.conversation;
        let Some(mailbox) = state.mailboxes.get_mut(&conversation) else { return };
        mailbox.running = None;
        mailbox.waiting.push_front(started);
        state.waiting += 1;
        state.parked.push(Reverse((until, conversation)));
        // Both lanes wait until the moment they knew of before.
        self.high.notify_one();
        self.normal.notify_one();
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

    fn next(dispatcher: &Dispatcher, lane: Lane) -> Option<Started> {
        dispatcher.try_next(lane, Instant::now()).0
    }

    #[test]
    fn a_conversation_keeps_its_order_and_others_go_beside_it() {
        let dispatcher = Dispatcher::default();
        for (turn, conversation) in [(1, 1), (2, 1), (3, 2)] {
            assert!(dispatcher.submit(work(turn, conversation, Lane::Normal)));
        }
        let first = next(&dispatcher, Lane::Normal).expect("turn 1");
        assert_eq!(first.work.turn.uuid().as_u128(), 1);
        let second = next(&dispatcher, Lane::Normal).expect("turn 3, beside it");
        assert_eq!(second.work.turn.uuid().as_u128(), 3);
        assert!(next(&dispatcher, Lane::Normal).is_none(), "turn 2 waits for turn 1");
        dispatcher.finish(&first.work);
        assert_eq!(next(&dispatcher, Lane::Normal).expect("turn 2").work.turn.uuid().as_u128(), 2);
    }

    #[test]
    fn a_turn_is_taken_in_once_until_it_is_done() {
        let dispatcher = Dispatcher::default();
        assert!(dispatcher.submit(work(1, 1, Lane::Normal)));
        assert!(!dispatcher.submit(work(1, 1, Lane::Normal)));
        let started = next(&dispatcher, Lane::Normal).expect("turn 1");
        assert!(!dispatcher.submit(work(1, 1, Lane::Normal)));
        dispatcher.finish(&started.work);
        assert_eq!(dispatcher.open(), 0);
    }

    #[test]
    fn stop_cancels_what_runs_in_its_own_conversation() {
        let dispatcher = Dispatcher::default();
        dispatcher.submit(work(1, 1, Lane::Normal));
        dispatcher.submit(work(2, 2, Lane::Normal));
        let one = next(&dispatcher, Lane::Normal).expect("turn 1");
        let two = next(&dispatcher, Lane::Normal).expect("turn 2");
        dispatcher.submit(Work { stops: true, ..work(3, 1, Lane::High) });
        assert!(one.stop.is_cancelled() && !two.stop.is_cancelled());
        dispatcher.finish(&one.work);
        let stop = next(&dispatcher, Lane::High).expect("the stop itself");
        assert!(stop.stopped_something);
    }

    #[test]
    fn stop_reaches_questions_that_wait_before_it_and_none_after_it() {
        let dispatcher = Dispatcher::default();
        for turn in [1, 2] {
            dispatcher.submit(work(turn, 1, Lane::Normal));
        }
        dispatcher.submit(Work { stops: true, ..work(3, 1, Lane::High) });
        dispatcher.submit(work(4, 1, Lane::Normal));
        for (lane, stopped) in
            [(Lane::Normal, true), (Lane::Normal, true), (Lane::High, false), (Lane::Normal, false)]
        {
            let started = next(&dispatcher, lane).expect("in order");
            assert_eq!(started.stop.is_cancelled(), stopped, "{:?}", started.work.turn);
            assert_eq!(started.stopped_something, started.work.stops);
            dispatcher.finish(&started.work);
        }
    }

    #[test]
    fn a_parked_turn_keeps_its_place_and_its_progress_and_holds_up_nobody_else() {
        let dispatcher = Dispatcher::default();
        for (turn, conversation) in [(1, 1), (2, 1), (3, 2)] {
            dispatcher.submit(work(turn, conversation, Lane::Normal));
        }
        let mut first = next(&dispatcher, Lane::Normal).expect("turn 1");
        first.sent.push(77);
        let until = Instant::now() + std::time::Duration::from_secs(600);
        dispatcher.park(first, until);
        assert_eq!((dispatcher.waiting(), dispatcher.open()), (3, 3));
        assert!(!dispatcher.submit(work(1, 1, Lane::Normal)), "it is here already");
        let other = next(&dispatcher, Lane::Normal).expect("turn 3");
        assert_eq!(other.work.turn.uuid().as_u128(), 3);
        let (none, wake) = dispatcher.try_next(Lane::Normal, Instant::now());
        assert_eq!((none.map(|started| started.work.turn), wake), (None, Some(until)));
        let (again, wake) = dispatcher.try_next(Lane::Normal, until);
        let again = again.expect("turn 1");
        assert_eq!((again.work.turn.uuid().as_u128(), again.sent.as_slice()), (1, [77].as_slice()));
        assert_eq!(wake, None);
        dispatcher.finish(&again.work);
        assert_eq!(next(&dispatcher, Lane::Normal).expect("turn 2").work.turn.uuid().as_u128(), 2);
    }
}
