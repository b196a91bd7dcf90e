//! What the engine remembers of each session between turns.

use std::collections::HashMap;

use hearken_models::kv::{Pool, Unit};

use super::prompt::{Ears, Names};
use super::track::Track;
use crate::engine::SessionId;

/// Sounds of a session whose words are known: a turn cut into segments, and a second answer to it.
const READ: usize = 16;

/// One session's memory.
#[derive(Debug)]
pub(super) struct Memory {
    /// The conversation as far as it went through the decoder; `None` while its blocks are needed elsewhere.
    pub(super) track: Option<Track>,
    /// The newest segment, which may still go on.
    pub(super) ears: Option<Ears>,
    /// Words of the newest sounds, by the sounds' names.
    read: Vec<(Unit, String)>,
    pub(super) names: Names,
    used: u64,
}

impl Memory {
    pub(super) fn words(&self, name: Unit) -> Option<&str> {
        self.read.iter().find(|(known, _)| *known == name).map(|(_, words)| words.as_str())
    }

    pub(super) fn remember_words(&mut self, name: Unit, words: String) {
        if self.words(name).is_none() {
            self.read.push((name, words));
            let old = self.read.len().saturating_sub(READ);
            self.read.drain(..old);
        }
    }
}

/// All sessions.
#[derive(Debug, Default)]
pub(super) struct Memories {
    sessions: HashMap<SessionId, Memory>,
    /// Counts uses, so that the least recently used is known without a clock.
    uses: u64,
}

impl Memories {
    /// A session's memory, which counts as used now.
    pub(super) fn of(&mut self, session: SessionId) -> &mut Memory {
        self.uses += 1;
        let empty = || Memory { track: None, ears: None, read: Vec::new(), names: Names::default(), used: 0 };
        let memory = self.sessions.entry(session).or_insert_with(empty);
        memory.used = self.uses;
        memory
    }

    pub(super) fn forget(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    /// Makes sure that `blocks` can be taken from the pool beyond what is promised to others, by forgetting the least recently used
    /// conversations; `false` if that is not enough. What the prefix index alone remembers goes by itself.
    pub(super) fn make_room(&mut self, pool: &Pool, blocks: usize, promised: usize) -> bool {
        loop {
            let fill = pool.fill();
            if fill.limit - (fill.used - fill.remembered) >= blocks + promised {
                return true;
            }
            let held = self.sessions.values_mut().filter(|memory| memory.track.is_some());
            let Some(oldest) = held.min_by_key(|memory| memory.used) else { return false };
            oldest.track = None;
        }
    }
}
