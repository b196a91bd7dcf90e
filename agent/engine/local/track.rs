//! A sequence, and what waits to go into it.

use std::collections::VecDeque;

use hearken_models::checkpoint::Checkpoint;
use hearken_models::kv::{Pool, Salt, Sequence, Unit};
use hearken_models::{Result, Tensor};

/// Rows waiting for the decoder: embeddings `[n, hidden]` and what each stands for.
#[derive(Debug, Clone)]
struct Rows {
    rows: Tensor,
    units: Vec<Unit>,
}

/// A sequence with the names of its tokens. Rows that are on their way through the decoder are named already.
#[derive(Debug)]
pub(super) struct Track {
    pub(super) sequence: Sequence,
    pub(super) units: Vec<Unit>,
    waiting: VecDeque<Rows>,
}

impl Track {
    pub(super) fn new(pool: &Pool) -> Self {
        Self { sequence: pool.sequence(), units: Vec::new(), waiting: VecDeque::new() }
    }

    /// A second one with the same past; what waits stays behind.
    pub(super) fn fork(&self) -> Self {
        let sequence = self.sequence.fork();
        Self { units: self.units[..sequence.len()].to_vec(), sequence, waiting: VecDeque::new() }
    }

    /// A second one with the same past and the same rows waiting.
    pub(super) fn fork_with_waiting(&self) -> Self {
        Self { waiting: self.waiting.clone(), ..self.fork() }
    }

    /// Nothing more goes in.
    pub(super) fn stop(&mut self) {
        self.waiting.clear();
    }

    /// How much of `wanted` it begins with.
    pub(super) fn common(&self, wanted: &[Unit]) -> usize {
        self.units[..self.sequence.len()].iter().zip(wanted).take_while(|(a, b)| a == b).count()
    }

    /// Keeps what `wanted` begins with, goes on with what the prefix index knows of it, and says how much it then has.
    pub(super) fn keep(&mut self, salt: Salt, wanted: &[Unit]) -> usize {
        self.waiting.clear();
        self.sequence.truncate(self.common(wanted));
        let kept = self.sequence.adopt(salt, wanted);
        self.units.clear();
        self.units.extend_from_slice(&wanted[..kept]);
        kept
    }

    /// Forgets all tokens from `length` on.
    pub(super) fn truncate(&mut self, length: usize) {
        self.waiting.clear();
        self.sequence.truncate(length);
        self.units.truncate(length);
    }

    /// Lets others who begin alike find what is here.
    pub(super) fn publish(&self, salt: Salt) {
        self.sequence.publish(salt, &self.units);
    }

    pub(super) fn push(&mut self, rows: Tensor, units: Vec<Unit>) {
        debug_assert_eq!(rows.dims()[0], units.len(), "each row has a name");
        if !units.is_empty() {
            self.waiting.push_back(Rows { rows, units });
        }
    }

    pub(super) fn push_tokens(&mut self, model: &Checkpoint, ids: &[u32]) -> Result<()> {
        if !ids.is_empty() {
            self.push(model.decoder.embed(ids)?, ids.iter().map(|id| Unit::Token(*id)).collect());
        }
        Ok(())
    }

    /// Rows that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.iter().map(|rows| rows.units.len()).sum()
    }

    /// Blocks for the rows that wait or are on their way, and `more`.
    pub(super) fn blocks(&self, more: usize) -> usize {
        self.sequence.blocks_for(self.units.len() - self.sequence.len() + self.waiting() + more)
    }

    /// Whether rows are on their way that the sequence has not taken yet.
    pub(super) fn is_behind(&self) -> bool {
        self.sequence.len() < self.units.len()
    }

    /// Takes up to `most` rows for the next forward pass.
    pub(super) fn take(&mut self, most: usize) -> Result<Option<Tensor>> {
        let (mut taken, mut room) = (Vec::new(), most);
        while let Some(mut next) = self.waiting.pop_front().filter(|_| room > 0) {
            let all = next.units.len();
            let count = all.min(room);
            taken.push(next.rows.narrow(0, 0, count)?);
            self.units.extend(next.units.drain(..count));
            room -= count;
            if count < all {
                next.rows = next.rows.narrow(0, count, all - count)?;
                self.waiting.push_front(next);
            }
        }
        match taken.len() {
            0 => Ok(None),
            1 => Ok(taken.pop()),
            _ => Ok(Some(Tensor::cat(&taken, 0)?)),
        }
    }
}
