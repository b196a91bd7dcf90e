//! The sessions that a client may come back to, by the names of their conversations.
//!
//! A name is taken from before its session reads its past until after its last word is written down, so that one conversation is never
//! two sessions. Sessions whose client is away are few: one too many, and the one that has waited longest ends.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// `T` is what a client that comes back hands over.
pub(super) struct Live<T> {
    sessions: Mutex<Sessions<T>>,
    /// So many may be waiting for their clients.
    most_waiting: usize,
}

struct Sessions<T> {
    /// `None`: it is ending.
    doors: HashMap<String, Option<Door<T>>>,
    waiting: VecDeque<String>,
}

/// A session notices when its door is gone, and ends.
struct Door<T> {
    to: mpsc::Sender<T>,
    /// Whether anybody may come in.
    is_open: bool,
}

impl<T> Sessions<T> {
    fn move_in(&mut self, name: &str, is_open: bool) -> mpsc::Receiver<T> {
        let (to, visits) = mpsc::channel(1);
        self.doors.insert(name.to_owned(), Some(Door { to, is_open }));
        visits
    }
}

/// What becomes of a visit.
pub(super) enum Visit<T> {
    /// The session has it.
    Let,
    /// There is no such session: the name is the caller's now. Later visits come through the receiver; its end means that the session is to end.
    Yours(T, Resident<T>, mpsc::Receiver<T>),
    /// The session is ending, or another visitor stands in its door this very moment.
    Later(T),
}

/// Keeps a name taken.
pub(super) struct Resident<T> {
    live: Arc<Live<T>>,
    name: String,
}

impl<T> Live<T> {
    pub(super) fn new(most_waiting: usize) -> Arc<Self> {
        let sessions = Mutex::new(Sessions { doors: HashMap::new(), waiting: VecDeque::new() });
        Arc::new(Self { sessions, most_waiting })
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions<T>> {
        // No panic leaves these maps half changed.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands `visit` to the session of that name, if there is one.
    pub(super) fn visit(self: &Arc<Self>, name: &str, visit: T) -> Visit<T> {
        let mut sessions = self.sessions();
        match sessions.doors.get(name) {
            None => {
                let visits = sessions.move_in(name, true);
                Visit::Yours(visit, Resident { live: self.clone(), name: name.to_owned() }, visits)
            }
            Some(None | Some(Door { is_open: false, .. })) => Visit::Later(visit),
            Some(Some(door)) => match door.to.try_send(visit) {
                Ok(()) => {
                    sessions.waiting.retain(|waiting| waiting != name);
                    Visit::Let
                }
                Err(TrySendError::Full(visit) | TrySendError::Closed(visit)) => Visit::Later(visit),
            },
        }
    }

    /// Takes the name of a session that nobody may come to. Nothing comes through the receiver; its end means that the session is to end.
    pub(super) fn hold(self: &Arc<Self>, name: &str) -> (Resident<T>, mpsc::Receiver<T>) {
        let visits = self.sessions().move_in(name, false);
        (Resident { live: self.clone(), name: name.to_owned() }, visits)
    }

    /// Ends the session of that name, if there is one.
    pub(super) fn end(&self, name: &str) {
        if let Some(door) = self.sessions().doors.get_mut(name) {
            *door = None;
        }
    }
}

impl<T> Resident<T> {
    /// The client is away.
    pub(super) fn wait(&self) {
        let mut sessions = self.live.sessions();
        sessions.waiting.push_back(self.name.clone());
        if sessions.waiting.len() > self.live.most_waiting
            && let Some(oldest) = sessions.waiting.pop_front()
            && let Some(door) = sessions.doors.get_mut(&oldest)
        {
            *door = None;
        }
    }

    /// The client is there again. It may have been at the door before it was missed.
    pub(super) fn is_back(&self) {
        self.live.sessions().waiting.retain(|waiting| *waiting != self.name);
    }
}

impl<T> Drop for Resident<T> {
    fn drop(&mut self) {
        let mut sessions = self.live.sessions();
        sessions.doors.remove(&self.name);
        sessions.waiting.retain(|waiting| *waiting != self.name);
    }
}
