//! Keys and values of all sequences: blocks of [`BLOCK`] tokens in one pool, and a table of blocks for each sequence.
//!
//! A sequence can be appended to, truncated and forked. A fork shares all blocks with its origin; the first of the two that writes into the
//! last, half-full block takes a copy of that one block. Full blocks can be published in a prefix index, where any sequence of the same salt
//! that begins with the same content finds them ([`Sequence::adopt`]). Dropping a sequence gives its blocks back; a block that nobody holds
//! gives its memory back at once. Source: Kwon et al. 2023 (PagedAttention), with the prefix index of vLLM.

mod attend;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod index;
mod store;

use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};
use attend::{Queries, attend};
use index::Index;
pub use index::{Salt, Unit};
pub use store::KvType;
pub(crate) use store::Shape;
use store::Store;

/// Tokens of one block: 2.5 s of sound. Smaller blocks share a little more; larger ones keep the attention in lanes longer.
pub const BLOCK: usize = 32;

#[derive(Debug)]
struct Inner {
    shape: Shape,
    store: Store,
    /// Holders of each block that was ever used: sequences, and the index.
    holders: Vec<u32>,
    free: Vec<u32>,
    limit: usize,
    index: Index,
}

impl Inner {
    /// A block held once.
    fn take(&mut self) -> Result<u32> {
        if self.free.is_empty() && self.holders.len() >= self.limit {
            // The least recently used of what only the index remembers.
            let Some(block) = self.index.evict(|block| self.holders[block as usize] == 1) else {
                return Err(Error::KvFull { blocks: self.limit });
            };
            self.release(block);
        }
        let block = self.free.pop().unwrap_or_else(|| {
            self.holders.push(0);
            self.holders.len() as u32 - 1
        });
        self.store.allocate(block, self.shape);
        self.holders[block as usize] = 1;
        Ok(block)
    }

    fn hold(&mut self, block: u32) {
        self.holders[block as usize] += 1;
    }

    fn release(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        *holders -= 1;
        if *holders == 0 {
            self.store.release(block);
            self.free.push(block);
        }
    }
}

/// How many blocks a pool has, and what they are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// All there may be.
    pub limit: usize,
    /// In use.
    pub used: usize,
    /// Of those in use, how many only the prefix index holds: they go when others need the room.
    pub remembered: usize,
}

/// The memory of all sequences. Clones are handles to the same pool.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Mutex<Inner>>);

impl Pool {
    /// Room for `tokens` tokens. On a CPU memory is taken block by block as it is needed, in the form `kind`; a GPU takes it at once and
    /// stores what it computes with.
    pub(crate) fn new(shape: Shape, tokens: usize, kind: KvType, on: Option<(&Device, DType)>) -> Result<Self> {
        let limit = tokens.div_ceil(BLOCK);
        let store = Store::new(shape, kind, limit, on)?;
        let inner = Inner { shape, store, holders: Vec::new(), free: Vec::new(), limit, index: Index::default() };
        Ok(Self(Arc::new(Mutex::new(inner))))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic while the pool is held: the process would have ended")
    }

    /// An empty sequence.
    pub fn sequence(&self) -> Sequence {
        Sequence { pool: self.clone(), table: Vec::new(), length: 0 }
    }

    /// Tokens it has room for.
    pub fn tokens(&self) -> usize {
        self.lock().limit * BLOCK
    }

    /// What the pool holds now.
    pub fn fill(&self) -> Fill {
        let inner = self.lock();
        let remembered = inner.index.blocks().filter(|block| inner.holders[*block as usize] == 1).count();
        Fill { limit: inner.limit, used: inner.holders.len() - inner.free.len(), remembered }
    }

    /// Forgets what only the prefix index holds.
    pub fn forget(&self) {
        let mut inner = self.lock();
        for block in inner.index.clear() {
            inner.release(block);
        }
    }
}

/// One sequence of tokens: its keys and values in every layer.
#[derive(Debug)]
pub struct Sequence {
    pool: Pool,
    table: Vec<u32>,
    length: usize,
}

impl Sequence {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Forgets all tokens from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
        let mut inner = self.pool.lock();
        for block in self.table.drain(self.length.div_ceil(BLOCK)..) {
            inner.release(block);
        }
    }

    /// A second sequence with the same past. Neither sees what the other does from now on.
    pub fn fork(&self) -> Self {
        // Not the blocks that were made room with and never filled: they have one writer.
        let table = self.table[..self.length.div_ceil(BLOCK)].to_vec();
        let mut inner = self.pool.lock();
        table.iter().for_each(|block| inner.hold(*block));
        drop(inner);
        Self { pool: self.pool.clone(), table, length: self.length }
    }

    /// Goes on from as much as the prefix index knows of `units`, which begin with what this sequence holds; how many tokens it then has.
    ///
    /// Only whole blocks are known, so a half-full last block of its own gives way to a known one.
    pub fn adopt(&mut self, salt: Salt, units: &[Unit]) -> usize {
        let mut inner = self.pool.lock();
        let known = inner.index.find(salt, units);
        if known.len() * BLOCK > self.length {
            known.iter().for_each(|block| inner.hold(*block));
            self.length = known.len() * BLOCK;
            for block in std::mem::replace(&mut self.table, known) {
                inner.release(block);
            }
        }
        self.length
    }

    /// Publishes this sequence's full blocks, which hold `units`, in the prefix index.
    ///
    /// # Panics
    /// If there are fewer units than tokens.
    pub fn publish(&self, salt: Salt, units: &[Unit]) {
        assert!(units.len() >= self.length, "every token is known");
        let mut inner = self.pool.lock();
        let full = self.length / BLOCK;
        for block in inner.index.insert(salt, &units[..full * BLOCK], &self.table[..full]) {
            inner.hold(block);
        }
    }

    /// Blocks that appending `more` tokens takes from the pool at most: those it lacks, and a copy of its last one if that is shared.
    pub fn blocks_for(&self, more: usize) -> usize {
        (self.length + more).div_ceil(BLOCK) - self.length / BLOCK
    }

    /// Makes room for `more` tokens, of which nobody else can see anything.
    ///
    /// # Errors
    /// [`Error::KvFull`]; then nothing has changed.
    pub fn reserve(&mut self, more: usize) -> Result<()> {
        if more == 0 {
            return Ok(());
        }
        let mut inner = self.pool.lock();
        let last = self.length / BLOCK;
        // Copy on write: of the shared blocks only the last, half-full one is ever written into.
        let shared = !self.length.is_multiple_of(BLOCK) && inner.holders[self.table[last] as usize] > 1;
        let new = (self.length + more).div_ceil(BLOCK).saturating_sub(self.table.len());
        let mut taken = Vec::with_capacity(new + 1);
        for _ in 0..new + usize::from(shared) {
            match inner.take() {
                Ok(block) => taken.push(block),
                Err(e) => {
                    taken.into_iter().for_each(|block| inner.release(block));
                    return Err(e);
                }
            }
        }
        if let Some(own) = taken.pop_if(|_| shared) {
            if let Err(e) = inner.store.copy(self.table[last], own) {
                taken.into_iter().chain([own]).for_each(|block| inner.release(block));
                return Err(e);
            }
            let left = std::mem::replace(&mut self.table[last], own);
            inner.release(left);
        }
        self.table.extend(taken);
        Ok(())
    }

    /// Whether its keys and values are plain numbers in blocks, and not rows of a device's tensors.
    pub(crate) fn is_in_blocks(&self) -> bool {
        matches!(self.pool.lock().store, Store::Cpu { .. })
    }

    /// Whether both are of one pool.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pool.0, &other.pool.0)
    }

    /// Row of a token in the tensors of a device's store.
    fn rows(&self, tokens: std::ops::Range<usize>) -> Vec<u32> {
        tokens.map(|t| self.table[t / BLOCK] * BLOCK as u32 + (t % BLOCK) as u32).collect()
    }

    /// The tokens count once every layer has written its own.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
        debug_assert!(self.length <= self.table.len() * BLOCK, "reserve came before write");
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

/// One layer's step on the CPU for all sequences at once: writes the new keys and values behind each sequence's past and attends.
///
/// `shares` are sequences of one pool with their number of new tokens; `q [tokens, heads · head]`, `k` and `v [tokens, kv_heads · head]` are all
/// their rows one after the other, rotated. Gives `[tokens, heads · head]`.
pub(crate) fn step(
    shares: &[(&Sequence, usize)],
    layer: usize,
    heads: usize,
    q: &[f32],
    k: &[f32],
    v: &[f32],
) -> Vec<f32> {
    let Some((first, _)) = shares.first() else { return Vec::new() };
    let mut inner = first.pool.lock();
    let shape = inner.shape;
    let (narrow, wide) = (shape.kv_heads * shape.head, heads * shape.head);
    let mut all = Vec::with_capacity(shares.len());
    let mut row = 0;
    for (sequence, tokens) in shares {
        for t in 0..*tokens {
            let at = sequence.length + t;
            let own = (row + t) * narrow..(row + t + 1) * narrow;
            inner.store.write(sequence.table[at / BLOCK], at % BLOCK, layer, shape, &k[own.clone()], &v[own]);
        }
        let q = &q[row * wide..(row + tokens) * wide];
        all.push(Queries { table: &sequence.table, past: sequence.length, q });
        row += tokens;
    }
    attend(&inner, layer, heads, &all)
}

/// What a device's kernel needs to read blocks where they lie, for all sequences of a pass.
#[cfg(feature = "flash-attn")]
#[derive(Debug)]
pub(crate) struct Paging {
    /// `[sequences, most blocks]`.
    table: Tensor,
    /// Where each sequence's queries, and its keys, begin and end when they are counted through: `[sequences + 1]`.
    ends: [Tensor; 2],
    longest: [usize; 2],
}

#[cfg(feature = "flash-attn")]
impl Paging {
    /// Of sequences, made room in already, with their number of new tokens.
    pub(crate) fn of<'a>(
        shares: impl Iterator<Item = (&'a Sequence, usize)> + Clone,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let lengths = |keys: bool| shares.clone().map(move |(s, new)| if keys { s.length + new } else { new });
        let ends = |keys: bool| -> candle_core::Result<Tensor> {
            let sum = lengths(keys).scan(0, |sum, n| {
                *sum += n as u32;
                Some(*sum)
            });
            Tensor::new(std::iter::once(0).chain(sum).collect::<Vec<u32>>(), device)
        };
        let most = shares.clone().map(|(s, _)| s.table.len()).max().unwrap_or(0);
        // A shorter table is filled up with any block: nobody reads it.
        let table = shares.clone().flat_map(|(s, _)| s.table.iter().copied().chain(std::iter::repeat(0)).take(most));
        Ok(Self {
            table: Tensor::from_vec(table.collect(), (shares.clone().count(), most), device)?,
            ends: [ends(false)?, ends(true)?],
            longest: [false, true].map(|keys| lengths(keys).max().unwrap_or(0)),
        })
    }

    /// Writes `k` and `v [tokens, kv_heads, head]` behind the sequences' pasts and attends with `q [tokens, heads, head]`, rotated: as many.
    pub(crate) fn attend<'a>(
        &self,
        shares: impl Iterator<Item = (&'a Sequence, usize)>,
        layer: usize,
        [q, k, v]: [&Tensor; 3],
    ) -> candle_core::Result<Tensor> {
        let mut from = 0;
        let mut planes = None;
        for (sequence, tokens) in shares {
            let inner = sequence.pool.lock();
            let Store::Device(layers) = &inner.store else { unreachable!("made for devices only") };
            write(sequence, &layers[layer], &k.narrow(0, from, tokens)?, &v.narrow(0, from, tokens)?)?;
            from += tokens;
            planes.get_or_insert_with(|| layers[layer].clone());
        }
        let Some((keys, values)) = planes else { return q.zeros_like() };
        let (rows, kv_heads, head) = keys.dims3()?;
        let blocks = |x: &Tensor| x.reshape((rows / BLOCK, BLOCK, kv_heads, head));
        candle_flash_attn::flash_attn_varlen_paged_windowed(
            q,
            &blocks(&keys)?,
            &blocks(&values)?,
            &self.ends[0],
            &self.ends[1],
            &self.table,
            None,
            self.longest[0],
            self.longest[1],
            (head as f32).powf(-0.5),
            None,
            Some(0),
            BLOCK,
            None,
        )
    }
}

/// Writes `k` and `v [tokens, kv_heads, head]` behind the sequence's past into a device's tensors of one layer.
fn write(sequence: &Sequence, (keys, values): &(Tensor, Tensor), k: &Tensor, v: &Tensor) -> candle_core::Result<()> {
    let tokens = k.dim(0)?;
    let mut t = 0;
    while t < tokens {
        // As far as the block goes.
        let at = sequence.length + t;
        let n = (BLOCK - at % BLOCK).min(tokens - t);
        let row = sequence.table[at / BLOCK] as usize * BLOCK + at % BLOCK;
        keys.slice_set(&k.narrow(0, t, n)?.contiguous()?, 0, row)?;
        values.slice_set(&v.narrow(0, t, n)?.contiguous()?, 0, row)?;
        t += n;
    }
    Ok(())
}

/// The same for a device: writes `k` and `v [tokens, kv_heads, head]` behind the sequence's past and gathers all of its keys and values,
/// `[len + tokens, kv_heads, head]` each.
pub(crate) fn gather(
    sequence: &Sequence,
    layer: usize,
    k: &Tensor,
    v: &Tensor,
) -> candle_core::Result<(Tensor, Tensor)> {
    let inner = sequence.pool.lock();
    let Store::Device(layers) = &inner.store else { unreachable!("asked for on devices only") };
    write(sequence, &layers[layer], k, v)?;
    let (keys, values) = &layers[layer];
    let rows = Tensor::new(sequence.rows(0..sequence.length + k.dim(0)?), keys.device())?;
    Ok((keys.index_select(&rows, 0)?, values.index_select(&rows, 0)?))
}
