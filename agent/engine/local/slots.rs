//! What the engine remembers of each session between turns: its keys and values, and what they stand for.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use hearken_models::kv::KvCache;

use crate::engine::SessionId;

/// What one cached token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// A token id.
    Token(u32),
    /// The n-th token of the sound with this hash of its samples.
    Sound(u64, u32),
}

/// The hash of a sound's samples: sound is known by what it is, never by its placeholders.
pub(super) fn sound_hash(samples: &Arc<[f32]>) -> u64 {
    let mut hasher = DefaultHasher::new();
    samples.len().hash(&mut hasher);
    for sample in samples.iter() {
        sample.to_bits().hash(&mut hasher);
    }
    hasher.finish()
}

/// One session's prefix. `units` and `cache` have the same length, but for rows that are on their way through the decoder.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) cache: KvCache,
    pub(super) units: Vec<Unit>,
    /// Words the word ear heard in sounds of this session, so that a second answer to one sound does not listen again.
    pub(super) words: HashMap<u64, String>,
}

impl Slot {
    /// Whether rows are on their way that the cache has not taken yet.
    pub(super) fn is_behind(&self) -> bool {
        self.cache.len() < self.units.len()
    }

    /// Keeps what `wanted` begins with and forgets the rest; how much was kept.
    pub(super) fn reuse(&mut self, wanted: &[Unit]) -> usize {
        // The last token is always computed again: its logits are what the turn begins with.
        let limit = wanted.len().saturating_sub(1);
        let same = self.units.iter().zip(&wanted[..limit]).take_while(|(a, b)| a == b).count();
        self.units.truncate(same);
        self.cache.truncate(same);
        same
    }
}

/// All sessions that have no live turn.
#[derive(Debug)]
pub(super) struct Slots {
    idle: HashMap<SessionId, (u64, Slot)>,
    /// Counts uses, so that the least recently used is known without a clock.
    uses: u64,
    tokens: usize,
}

impl Slots {
    /// Remembers at most `tokens` tokens in all.
    pub(super) fn new(tokens: usize) -> Self {
        Self { idle: HashMap::new(), uses: 0, tokens }
    }

    pub(super) fn take(&mut self, session: SessionId) -> Option<Slot> {
        self.idle.remove(&session).map(|(_, slot)| slot)
    }

    /// Puts a slot back and forgets the least recently used ones that no longer fit.
    pub(super) fn put(&mut self, session: SessionId, slot: Slot) {
        self.uses += 1;
        self.idle.insert(session, (self.uses, slot));
        while self.idle.values().map(|(_, s)| s.units.len()).sum::<usize>() > self.tokens {
            let oldest = self.idle.iter().min_by_key(|(_, (used, _))| *used).map(|(id, _)| *id);
            let Some(oldest) = oldest else { break };
            self.idle.remove(&oldest);
        }
    }

    pub(super) fn forget(&mut self, session: SessionId) {
        self.idle.remove(&session);
    }
}
