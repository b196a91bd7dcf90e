//! The encoder on the CPU over plain rows of f32, `[position, state]`: what `super` does with tensors, without a tensor for each step.
//!
//! Convolutions are products with windows of their input; norms and GELUs are made on the way into the products they belong to.

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::LayerNorm;

use super::{Block, Encoder};
use crate::kernels::{Affine, Chunk, DMatrix, Input, Packed, attend, forward, gelu_all};
use crate::mel::Mel;
use crate::{Error, Result};

/// What the plain pass needs besides the blocks.
#[derive(Debug)]
pub(super) struct Plain {
    conv1: Affine,
    conv2: Affine,
    positions: Vec<f32>,
    norms: Vec<[Norm; 2]>,
}

#[derive(Debug)]
struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Norm {
    fn new(norm: &LayerNorm) -> candle_core::Result<Self> {
        let bias = norm.bias().map(Tensor::to_vec1).transpose()?;
        Ok(Self { weight: norm.weight().to_vec1()?, bias: bias.unwrap_or_default() })
    }

    fn of<'a>(&'a self, x: &'a [f32]) -> Input<'a> {
        Input::Centred { x, weight: &self.weight, bias: &self.bias, epsilon: 1e-5 }
    }
}

/// Keys and values of a layer that the next block may see, a chunk of each block before it. A clone shares them.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen(VecDeque<Arc<Chunk>>);

impl Seen {
    /// Lets go of all but the last `left` positions.
    fn keep(&mut self, left: usize) {
        let mut rows: usize = self.0.iter().map(|chunk| chunk.rows()).sum();
        while let Some(oldest) = self.0.front_mut().filter(|_| rows > left) {
            let others = rows - oldest.rows();
            if others < left {
                *oldest = Arc::new(oldest.last(left - others));
                return;
            }
            self.0.pop_front();
            rows = others;
        }
    }
}

impl Plain {
    /// `None` where the blocks are not packed.
    pub(super) fn of(encoder: &Encoder) -> Result<Option<Self>> {
        let packed = |block: &Block| Packs::of(block).is_some();
        if encoder.blocks.is_empty() || !encoder.blocks.iter().all(packed) {
            return Ok(None);
        }
        // A window holds its three frames one after the other.
        let conv = |(weight, bias): &(Tensor, Tensor)| -> candle_core::Result<Affine> {
            let (out, input, taps) = weight.dims3()?;
            let rows: Vec<f32> = weight.transpose(1, 2)?.flatten_all()?.to_vec1()?;
            let matrix = DMatrix::new(&rows, out, taps * input);
            Ok(Affine::new(Arc::new(Packed::Dense(matrix)), Some(&bias.flatten_all()?.to_vec1()?)).in_integers())
        };
        let norms = encoder.blocks.iter().map(|block| Ok([Norm::new(&block.attn_ln)?, Norm::new(&block.mlp_ln)?]));
        Ok(Some(Self {
            conv1: conv(&encoder.conv1)?,
            conv2: conv(&encoder.conv2)?,
            positions: encoder.positions.flatten_all()?.to_vec1()?,
            norms: norms.collect::<candle_core::Result<_>>()?,
        }))
    }

    /// Both convolutions of a mel, with zeros before it where it begins a segment and behind it where it ends one.
    fn convolve(&self, mel: &Mel, begins: bool, ends: bool) -> Vec<f32> {
        let edges = |x: Vec<f32>, width: usize| {
            let mut out = vec![0.0; if begins { width } else { 0 }];
            out.extend(x);
            out.resize(out.len() + if ends { width } else { 0 }, 0.0);
            out
        };
        let bins = mel.n_mels;
        let mut frames = vec![0f32; mel.data.len()];
        for (bin, row) in mel.data.chunks_exact(mel.frames.max(1)).enumerate() {
            row.iter().enumerate().for_each(|(t, x)| frames[t * bins + bin] = *x);
        }
        let conv = |layer: &Affine, x: Vec<f32>, width: usize, stride: usize| {
            let x = edges(x, width);
            gelu_all(&layer.forward(Input::Windows { x: &x, step: stride * width }))
        };
        let x = conv(&self.conv1, frames, bins, 1);
        conv(&self.conv2, x, self.conv1.shape().0, 2)
    }
}

/// The packed layers of a block.
struct Packs<'a> {
    query: &'a Affine,
    key: &'a Affine,
    value: &'a Affine,
    out: &'a Affine,
    up: &'a Affine,
    down: &'a Affine,
}

impl<'a> Packs<'a> {
    fn of(block: &'a Block) -> Option<Self> {
        Some(Self {
            query: block.query.packed()?,
            key: block.key.packed()?,
            value: block.value.packed()?,
            out: block.out.packed()?,
            up: block.up.packed()?,
            down: block.down.packed()?,
        })
    }
}

impl Encoder {
    /// One whole segment alone: `[positions, state]`.
    pub(super) fn hidden_plain(&self, plain: &Plain, mel: &Mel, positions: usize) -> Result<Tensor> {
        let x = plain.convolve(mel, true, true);
        self.through(plain, x, 0, positions, None)
    }

    /// A segment's next positions, which also see what is in `seen`: `[positions, state]`.
    pub(super) fn block_plain(
        &self,
        plain: &Plain,
        mel: &Mel,
        first: usize,
        positions: usize,
        seen: (&mut Vec<Seen>, usize),
    ) -> Result<Tensor> {
        let x = plain.convolve(mel, first == 0, false);
        self.through(plain, x, first, positions, Some(seen))
    }

    fn through(
        &self,
        plain: &Plain,
        mut x: Vec<f32>,
        first: usize,
        count: usize,
        mut seen: Option<(&mut Vec<Seen>, usize)>,
    ) -> Result<Tensor> {
        if count == 0 {
            return self.nothing();
        }
        let state = self.state;
        if x.len() < count * state {
            return Err(Error::Input(format!("a mel of {} positions, where {count} were to be", x.len() / state)));
        }
        x.truncate(count * state);
        x.iter_mut().zip(&plain.positions[first * state..]).for_each(|(x, p)| *x += p);
        if let Some((seen, _)) = &mut seen {
            seen.resize_with(self.blocks.len(), Seen::default);
        }
        for (i, (block, [before, between])) in self.blocks.iter().zip(&plain.norms).enumerate() {
            let packs = Packs::of(block).expect("asked for where all are packed");
            let [q, k, v] = forward([packs.query, packs.key, packs.value], before.of(&x));
            let mixed = match &mut seen {
                None => attend(&q, &[&Chunk::new(&k, &v, state, block.heads)]),
                Some((seen, left)) => {
                    seen[i].0.push_back(Arc::new(Chunk::new(&k, &v, state, block.heads)));
                    let mixed = attend(&q, &seen[i].0.iter().map(AsRef::as_ref).collect::<Vec<_>>());
                    seen[i].keep(*left);
                    mixed
                }
            };
            packs.out.add(Input::Plain(&mixed), &mut x);
            let inner = packs.up.forward(between.of(&x));
            packs.down.add(Input::Gelu(&inner), &mut x);
        }
        Ok(Tensor::from_vec(x, (count, state), self.positions.device())?)
    }
}
