//! Grouped-query attention of one layer, over keys and values that belong to the sequences.

use candle_core::{D, DType, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_nn::rotary_emb::rope;

use super::{Config, Share};
use crate::Result;
use crate::kv;
use crate::linear::Linear;
use crate::weights::Weights;

/// Rotary angles, always computed in f32: bf16 positions are exact only up to 256.
#[derive(Debug)]
pub(super) struct Rotary {
    frequencies: Vec<f32>,
}

/// Cosines and sines `[n, head / 2]` of a forward pass's positions.
pub(super) struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Where the pass's keys and values lie, for a kernel that reads them there.
    #[cfg(feature = "flash-attn")]
    pub(super) paging: Option<kv::Paging>,
}

impl Rotary {
    pub(super) fn new(config: &Config) -> Self {
        let head = config.head();
        let frequency = |i: usize| 1.0 / (config.rope_theta as f32).powf((2 * i) as f32 / head as f32);
        Self { frequencies: (0..head / 2).map(frequency).collect() }
    }

    pub(super) fn angles(&self, positions: impl Iterator<Item = usize>) -> Angles {
        let angles: Vec<f32> = positions.flat_map(|p| self.frequencies.iter().map(move |f| p as f32 * f)).collect();
        Angles {
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
            #[cfg(feature = "flash-attn")]
            paging: None,
        }
    }
}

impl Angles {
    /// Turns `x [n, heads, head]`: each number of a head's first half with its partner in the second (GPT-NeoX's order).
    pub(super) fn turn(&self, x: &mut [f32], head: usize) {
        let half = head / 2;
        let Some(rows) = self.cos.len().checked_div(half).filter(|n| *n > 0) else { return };
        let width = x.len() / rows;
        for ((row, cos), sin) in
            x.chunks_exact_mut(width).zip(self.cos.chunks_exact(half)).zip(self.sin.chunks_exact(half))
        {
            for head in row.chunks_exact_mut(head) {
                let (a, b) = head.split_at_mut(half);
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }

    /// The same for tensors `[heads, n, head]`.
    fn turn_tensor(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let n = x.dim(1)?;
        let part = |y: &[f32]| Tensor::from_slice(y, (n, y.len() / n.max(1)), x.device())?.to_dtype(x.dtype());
        rope(&x.unsqueeze(0)?, &part(&self.cos)?, &part(&self.sin)?)?.squeeze(0)
    }
}

#[derive(Debug)]
pub(super) struct Attention {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) out: Linear,
    pub(super) layer: usize,
    pub(super) heads: usize,
    kv_heads: usize,
    pub(super) head: usize,
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
    pub(super) fn forward(&self, x: &Tensor, shares: &[Share<'_>], angles: &Angles) -> Result<Tensor> {
        let (q, k, v) = (self.query.forward(x)?, self.key.forward(x)?, self.value.forward(x)?);
        let in_blocks = shares.first().is_none_or(|share| share.sequence.is_in_blocks());
        let mixed = if in_blocks {
            self.over_blocks(&q, &k, &v, shares, angles)?
        } else {
            self.over_tensors(&q, &k, &v, shares, angles)?
        };
        Ok(self.out.forward(&mixed)?)
    }

    /// On the CPU: all shares at once, each over its blocks where they lie.
    fn over_blocks(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        shares: &[Share<'_>],
        angles: &Angles,
    ) -> candle_core::Result<Tensor> {
        let numbers = |x: &Tensor| x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (mut q_rows, mut k_rows) = (numbers(q)?, numbers(k)?);
        angles.turn(&mut q_rows, self.head);
        angles.turn(&mut k_rows, self.head);
        let shares: Vec<_> = shares.iter().map(|share| (&*share.sequence, share.tokens)).collect();
        let mixed = kv::step(&shares, self.layer, self.heads, &q_rows, &k_rows, &numbers(v)?);
        Tensor::from_vec(mixed, q.shape(), q.device())?.to_dtype(q.dtype())
    }

    /// On a GPU: share by share, over what its rows gather.
    fn over_tensors(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        shares: &[Share<'_>],
        angles: &Angles,
    ) -> candle_core::Result<Tensor> {
        let n = q.dim(0)?;
        let split = |y: &Tensor, heads: usize| y.reshape((n, heads, self.head))?.transpose(0, 1)?.contiguous();
        let q = angles.turn_tensor(&split(q, self.heads)?)?;
        let k = angles.turn_tensor(&split(k, self.kv_heads)?)?.transpose(0, 1)?.contiguous()?;
        let v = v.reshape((n, self.kv_heads, self.head))?;
        #[cfg(feature = "flash-attn")]
        if let Some(paging) = &angles.paging {
            let q = q.transpose(0, 1)?.contiguous()?;
            let all = shares.iter().map(|share| (&*share.sequence, share.tokens));
            return paging.attend(all, self.layer, [&q, &k, &v])?.reshape((n, self.heads * self.head));
        }
        let mut mixed = Vec::with_capacity(shares.len());
        let mut from = 0;
        for share in shares {
            let part = |y: &Tensor| y.narrow(0, from, share.tokens);
            let (keys, values) = kv::gather(share.sequence, self.layer, &part(&k)?, &part(&v)?)?;
            let by_head = |y: Tensor| y.transpose(0, 1)?.contiguous();
            mixed.push(self.attend(&q.narrow(1, from, share.tokens)?, &by_head(keys)?, &by_head(values)?)?);
            from += share.tokens;
        }
        if mixed.len() == 1 { Ok(mixed.remove(0)) } else { Tensor::cat(&mixed, 0) }
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
