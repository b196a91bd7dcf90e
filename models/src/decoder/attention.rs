//! Grouped-query attention of one layer, over caches that belong to the sequences.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_nn::rotary_emb::rope;

use super::{Config, Share};
use crate::Result;
use crate::linear::Linear;
use crate::weights::Weights;

/// Rotary angles, always computed in f32: bf16 positions are exact only up to 256.
#[derive(Debug)]
pub(super) struct Rotary {
    frequencies: Vec<f32>,
}

/// Cosines and sines `[n, head / 2]` of a forward pass's positions.
pub(super) struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    pub(super) fn new(config: &Config) -> Self {
        let head = config.head();
        let frequency = |i: usize| 1.0 / (config.rope_theta as f32).powf((2 * i) as f32 / head as f32);
        Self { frequencies: (0..head / 2).map(frequency).collect() }
    }

    pub(super) fn angles(
        &self,
        positions: impl Iterator<Item = usize>,
        device: &Device,
        dtype: DType,
    ) -> Result<Angles> {
        let angles: Vec<f32> = positions.flat_map(|p| self.frequencies.iter().map(move |f| p as f32 * f)).collect();
        let half = self.frequencies.len();
        let angles = Tensor::from_vec(angles.clone(), (angles.len() / half, half), device)?;
        Ok(Angles { cos: angles.cos()?.to_dtype(dtype)?, sin: angles.sin()?.to_dtype(dtype)? })
    }
}

#[derive(Debug)]
pub(super) struct Attention {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) out: Linear,
    layer: usize,
    heads: usize,
    kv_heads: usize,
    head: usize,
}

impl Attention {
    pub(super) fn load(weights: &Weights, name: &str, layer: usize, config: &Config) -> Result<Self> {
        let (d, head) = (config.hidden_size, config.head());
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        Ok(Self {
            query: weights.linear(&format!("{name}.q_proj"), heads * head, d, true)?,
            key: weights.linear(&format!("{name}.k_proj"), kv_heads * head, d, true)?,
            value: weights.linear(&format!("{name}.v_proj"), kv_heads * head, d, true)?,
            out: weights.linear(&format!("{name}.o_proj"), d, heads * head, false)?,
            layer,
            heads,
            kv_heads,
            head,
        })
    }

    /// `x [n, hidden]` to `[n, hidden]`.
    pub(super) fn forward(&self, x: &Tensor, shares: &mut [Share<'_>], angles: &Angles) -> Result<Tensor> {
        let n = x.dim(0)?;
        let split = |y: Tensor, heads: usize| y.reshape((n, heads, self.head))?.transpose(0, 1)?.contiguous();
        let turn = |y: Tensor| rope(&y.unsqueeze(0)?, &angles.cos, &angles.sin)?.squeeze(0);
        let q = turn(split(self.query.forward(x)?, self.heads)?)?;
        let k = turn(split(self.key.forward(x)?, self.kv_heads)?)?;
        let v = split(self.value.forward(x)?, self.kv_heads)?;
        let mut mixed = Vec::with_capacity(shares.len());
        let mut from = 0;
        for share in shares.iter_mut() {
            let part = |y: &Tensor| y.narrow(1, from, share.tokens);
            let (keys, values) = share.cache.write(self.layer, &part(&k)?, &part(&v)?)?;
            mixed.push(self.attend(&part(&q)?, &keys, &values)?);
            from += share.tokens;
        }
        let mixed = if mixed.len() == 1 { mixed.remove(0) } else { Tensor::cat(&mixed, 0)? };
        Ok(self.out.forward(&mixed)?)
    }

    /// `q [heads, n, head]` over `k` and `v [kv_heads, all, head]`, the last n of which are q's own, to `[n, heads · head]`.
    /// The heads of a group share their keys as further rows of one product, so that nothing is repeated in memory.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> candle_core::Result<Tensor> {
        let (n, all) = (q.dim(1)?, k.dim(1)?);
        let group = self.heads / self.kv_heads;
        let q = (q.contiguous()?.reshape((self.kv_heads, group * n, self.head))? * (self.head as f64).powf(-0.5))?;
        let mut scores = q.matmul(&k.transpose(D::Minus2, D::Minus1)?)?.to_dtype(DType::F32)?;
        if n > 1 {
            let hidden = |i: usize| (0..all).map(move |j| if j + n <= all + i { 0f32 } else { f32::NEG_INFINITY });
            let mask = Tensor::from_iter((0..n).flat_map(hidden), q.device())?.reshape((1, 1, n, all))?;
            let grouped = scores.reshape((self.kv_heads, group, n, all))?;
            scores = grouped.broadcast_add(&mask)?.reshape((self.kv_heads, group * n, all))?;
        }
        let mixed = softmax_last_dim(&scores)?.to_dtype(v.dtype())?.matmul(v)?;
        mixed.reshape((self.heads, n, self.head))?.transpose(0, 1)?.reshape((n, self.heads * self.head))
    }
}
