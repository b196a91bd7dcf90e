//! A sequence's keys and values: append, truncate, fork.
//!
//! Simple on purpose: one growing buffer a layer, written in place, so that a step copies only its own tokens. A fork copies what is
//! there; it shares nothing, so neither side can ever see the other's writes.

use candle_core::{DType, Device, Tensor};

use crate::Result;

/// Tokens by which a buffer grows at least.
const GROW: usize = 256;

/// Keys and values of one sequence.
#[derive(Debug)]
pub struct KvCache {
    /// A layer's keys and values, `[kv_heads, capacity, head]` each.
    layers: Vec<(Tensor, Tensor)>,
    shape: (usize, usize),
    dtype: DType,
    device: Device,
    length: usize,
    capacity: usize,
}

impl KvCache {
    pub(crate) fn new(layers: usize, kv_heads: usize, head: usize, dtype: DType, device: &Device) -> Result<Self> {
        let empty = Tensor::zeros((kv_heads, 0, head), dtype, device)?;
        let layers = (0..layers).map(|_| (empty.clone(), empty.clone())).collect();
        Ok(Self { layers, shape: (kv_heads, head), dtype, device: device.clone(), length: 0, capacity: 0 })
    }

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
    }

    /// An independent copy.
    ///
    /// # Errors
    /// No memory.
    pub fn fork(&self) -> Result<Self> {
        let mut fork =
            Self { layers: self.layers.clone(), device: self.device.clone(), capacity: self.capacity, ..*self };
        fork.resize(self.length.next_multiple_of(GROW))?;
        Ok(fork)
    }

    /// Makes room for `more` tokens.
    pub(crate) fn reserve(&mut self, more: usize) -> Result<()> {
        let needed = self.length + more;
        if needed > self.capacity {
            // By half as much again, so that a long decode copies its past a few times and not at each block.
            self.resize((needed + needed / 2).next_multiple_of(GROW))?;
        }
        Ok(())
    }

    fn resize(&mut self, capacity: usize) -> Result<()> {
        let (heads, head) = self.shape;
        let moved = |old: &Tensor| -> Result<Tensor> {
            let new = Tensor::zeros((heads, capacity, head), self.dtype, &self.device)?;
            if self.length > 0 {
                new.slice_set(&old.narrow(1, 0, self.length)?.contiguous()?, 1, 0)?;
            }
            Ok(new)
        };
        self.layers = self.layers.iter().map(|(k, v)| Ok((moved(k)?, moved(v)?))).collect::<Result<_>>()?;
        self.capacity = capacity;
        Ok(())
    }

    /// Writes `k` and `v`, `[kv_heads, n, head]`, behind what is held, and gives views of all, `[kv_heads, len + n, head]`.
    /// The tokens count once [`KvCache::advance`] is called, when every layer has written its own.
    pub(crate) fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
        let (keys, values) = &self.layers[layer];
        keys.slice_set(&k.contiguous()?, 1, self.length)?;
        values.slice_set(&v.contiguous()?, 1, self.length)?;
        let all = self.length + k.dim(1)?;
        Ok((keys.narrow(1, 0, all)?, values.narrow(1, 0, all)?))
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
        debug_assert!(self.length <= self.capacity, "reserve came before write");
    }
}
