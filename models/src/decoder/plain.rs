//! The forward pass on the CPU over plain rows of f32: what [`super::Decoder::forward`] does with tensors, without a tensor for each step.
//!
//! Norms and gates are made on the way into the products they belong to, and the residual sums on the way out.

use super::attention::{Angles, Attention};
use super::{Decoder, Layer, Norm, Share};
use crate::kernels::{Affine, Input, forward, normed};
use crate::kv;

/// The packed layers of one decoder layer.
struct Packed<'a> {
    query: &'a Affine,
    key: &'a Affine,
    value: &'a Affine,
    out: &'a Affine,
    gate: &'a Affine,
    up: &'a Affine,
    down: &'a Affine,
}

impl<'a> Packed<'a> {
    fn of(layer: &'a Layer) -> Option<Self> {
        Some(Self {
            query: layer.attention.query.packed()?,
            key: layer.attention.key.packed()?,
            value: layer.attention.value.packed()?,
            out: layer.attention.out.packed()?,
            gate: layer.mlp.gate.packed()?,
            up: layer.mlp.up.packed()?,
            down: layer.mlp.down.packed()?,
        })
    }
}

impl Norm {
    fn of<'a>(&'a self, x: &'a [f32]) -> Input<'a> {
        Input::Normed { x, weight: &self.weight, epsilon: self.epsilon }
    }
}

impl Decoder {
    /// Whether the shares can go this way.
    pub(super) fn is_plain(&self, shares: &[Share<'_>]) -> bool {
        self.device.is_cpu()
            && self.layers.iter().all(|layer| Packed::of(layer).is_some())
            && shares.first().is_some_and(|share| share.sequence.is_in_blocks())
    }

    /// Hidden states after the last norm, of embeddings `x [n, hidden]`.
    pub(super) fn forward_plain(&self, mut x: Vec<f32>, shares: &[Share<'_>], angles: &Angles) -> Vec<f32> {
        let shares: Vec<_> = shares.iter().map(|share| (&*share.sequence, share.tokens)).collect();
        for layer in &self.layers {
            let packed = Packed::of(layer).expect("asked for where all are packed");
            let Attention { layer: number, heads, head, .. } = layer.attention;
            let [mut q, mut k, v] = forward([packed.query, packed.key, packed.value], layer.input_norm.of(&x));
            angles.turn(&mut q, head);
            angles.turn(&mut k, head);
            let mixed = kv::step(&shares, number, heads, &q, &k, &v);
            packed.out.add(Input::Plain(&mixed), &mut x);
            let [gate, up] = forward([packed.gate, packed.up], layer.post_norm.of(&x));
            packed.down.add(Input::Gated { gate: &gate, up: &up }, &mut x);
        }
        normed(&x, &self.norm.weight, self.norm.epsilon)
    }
}
