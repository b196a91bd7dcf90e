//! The prefix index: which full block holds which content behind which past.
//!
//! A block's key chains its parent's with what its tokens stand for: token ids, and for sound a hash of the samples that each token was heard
//! from, never the placeholder. Keys are 128 bits of SipHash with keys drawn anew by each process, salted per tenant.
//! Source: vLLM's automatic prefix caching; mistral.rs `block_hash.rs` for the media hash.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};

use super::BLOCK;

/// What one token of a sequence stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// A token id.
    Token(u32),
    /// A piece of sound, named by the samples that it depends on, and its place among the tokens of those.
    Sound(u128, u32),
}

/// Keeps tenants apart: equal content of different salts is never shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Salt(pub u64);

#[derive(Debug)]
struct Entry {
    block: u32,
    /// When it was used last, counted in uses. A parent's is always later than its children's, so children go first.
    used: u64,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<u128, Entry>,
    hashers: [RandomState; 2],
    uses: u64,
}

impl Index {
    fn keys(&self, salt: Salt, units: &[Unit]) -> Vec<u128> {
        let mut parent = 0u128;
        let chain = units.chunks_exact(BLOCK).map(|units| {
            let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one((salt, parent, units)));
            parent = u128::from(high) << 64 | u128::from(low);
            parent
        });
        chain.collect()
    }

    /// The blocks that hold the beginning of `units`.
    pub(super) fn find(&mut self, salt: Salt, units: &[Unit]) -> Vec<u32> {
        let keys = self.keys(salt, units);
        let known: Vec<u32> = keys.iter().map_while(|key| self.entries.get(key).map(|entry| entry.block)).collect();
        self.touch(&keys[..known.len()]);
        known
    }

    /// Remembers that `blocks` hold `units`; gives those that were not known, which the index holds from now on.
    pub(super) fn insert(&mut self, salt: Salt, units: &[Unit], blocks: &[u32]) -> Vec<u32> {
        let keys = self.keys(salt, units);
        let mut new = Vec::new();
        for (key, block) in keys.iter().zip(blocks) {
            self.entries.entry(*key).or_insert_with(|| {
                new.push(*block);
                Entry { block: *block, used: 0 }
            });
        }
        self.touch(&keys);
        new
    }

    fn touch(&mut self, keys: &[u128]) {
        for key in keys.iter().rev() {
            self.uses += 1;
            if let Some(entry) = self.entries.get_mut(key) {
                entry.used = self.uses;
            }
        }
    }

    /// Forgets the least recently used block among those that may go.
    pub(super) fn evict(&mut self, may_go: impl Fn(u32) -> bool) -> Option<u32> {
        let candidates = self.entries.iter().filter(|(_, entry)| may_go(entry.block));
        let (key, _) = candidates.min_by_key(|(_, entry)| entry.used)?;
        let key = *key;
        self.entries.remove(&key).map(|entry| entry.block)
    }

    /// All blocks that it holds.
    pub(super) fn blocks(&self) -> impl Iterator<Item = u32> {
        self.entries.values().map(|entry| entry.block)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) -> Vec<u32> {
        self.entries.drain().map(|(_, entry)| entry.block).collect()
    }
}
