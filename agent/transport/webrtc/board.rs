//! What a session has said lately, for any number of readers, each at its own pace: the data channel is one, every stream of server-sent events another.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The last events of one session.
pub(super) struct Board {
    most: usize,
    events: Mutex<VecDeque<Arc<str>>>,
    /// How many were ever put up, and whether that was all.
    state: watch::Sender<(u64, bool)>,
}

/// What a reader who has seen so many events finds next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The event, and how many the reader has seen with it.
    Event(u64, Arc<str>),
    /// What came next is gone: the reader is too slow. The number is that of the oldest still there, less one.
    Gone(u64),
    /// There will be no more.
    End,
}

impl Board {
    /// Keeps at most so many events.
    pub(super) fn new(most: usize) -> Self {
        Self { most, events: Mutex::default(), state: watch::Sender::new((0, false)) }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<str>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an event up; the oldest makes room.
    pub(super) fn put(&self, event: String) {
        let mut events = self.lock();
        if events.len() == self.most {
            events.pop_front();
        }
        events.push_back(event.into());
        self.state.send_modify(|(count, _)| *count += 1);
    }

    /// There will be no more.
    pub(super) fn end(&self) {
        self.state.send_modify(|(_, ended)| *ended = true);
    }

    /// Waits for what follows the first `seen` events.
    pub(super) async fn next(&self, seen: u64) -> Next {
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        let _ = state.wait_for(|(count, ended)| *count > seen || *ended).await;
        let events = self.lock();
        let count = self.state.borrow().0;
        let oldest = count - events.len() as u64;
        if seen < oldest {
            return Next::Gone(oldest);
        }
        match events.get((seen - oldest) as usize) {
            Some(event) => Next::Event(seen + 1, event.clone()),
            None => Next::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readers_see_all_that_is_kept_and_are_told_of_what_is_not() {
        let board = Board::new(2);
        board.put("a".into());
        board.put("b".into());
        assert_eq!(board.next(0).await, Next::Event(1, "a".into()));
        board.put("c".into());
        assert_eq!(board.next(0).await, Next::Gone(1));
        assert_eq!(board.next(1).await, Next::Event(2, "b".into()));
        assert_eq!(board.next(2).await, Next::Event(3, "c".into()));
        let (next, ()) = tokio::join!(board.next(3), async { board.put("d".into()) });
        assert_eq!(next, Next::Event(4, "d".into()));
        board.end();
        assert_eq!(board.next(3).await, Next::Event(4, "d".into()));
        assert_eq!(board.next(4).await, Next::End);
        assert_eq!(board.next(9).await, Next::End);
    }
}
