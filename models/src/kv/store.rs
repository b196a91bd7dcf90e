//! Where a block's keys and values lie, and in which form.
//!
//! On a CPU every block is one allocation of its own, so that a block given back is memory given back. A head's keys lie transposed,
//! `[head, BLOCK]`, its values straight, `[BLOCK, head]`: both products of attention then run along contiguous lanes and need no sum across
//! them. On other devices a block is [`BLOCK`] rows of one tensor a layer, `[blocks · BLOCK, kv_heads, head]`, and attention gathers by row.

use candle_core::{DType, Device, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::BLOCK;
use crate::Result;

/// Numbers that share a scale in 8-bit storage. Qwen's key bias makes a few dimensions of a head huge: a scale for the whole head would
/// drown the others (MODEL.md, "Numbers to plan with").
pub(super) const GROUP: usize = 32;
/// What the lanes of [`super::attend`] work on at once; a head's width is padded to a multiple of it.
pub(super) const LANES: usize = 32;

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// 4 bytes a number.
    #[default]
    F32,
    /// 2 bytes. Qwen's keys stay far below its largest number, 65,504.
    F16,
    /// 2 bytes, less exact than f16.
    Bf16,
    /// 1 byte, and a scale for each 32 numbers of a token's head.
    Q8,
}

/// What one token's keys and values look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head: usize,
}

impl Shape {
    /// A head's width in memory.
    pub(super) fn padded(self) -> usize {
        self.head.next_multiple_of(LANES)
    }

    /// Numbers of one head's keys (or values) in one block.
    pub(super) fn plane(self) -> usize {
        self.padded() * BLOCK
    }

    /// The first number of a plane. `side`: 0 for keys, 1 for values.
    fn at(self, layer: usize, head: usize, side: usize) -> usize {
        ((layer * self.kv_heads + head) * 2 + side) * self.plane()
    }

    fn numbers(self) -> usize {
        self.layers * self.kv_heads * 2 * self.plane()
    }
}

/// One block on the CPU.
#[derive(Debug, Clone)]
pub(super) enum Data {
    F32(Box<[f32]>),
    F16(Box<[f16]>),
    Bf16(Box<[bf16]>),
    Q8 { quants: Box<[i8]>, scales: Box<[f32]> },
}

impl Data {
    fn new(kind: KvType, numbers: usize) -> Self {
        match kind {
            KvType::F32 => Self::F32(vec![0.0; numbers].into()),
            KvType::F16 => Self::F16(vec![f16::ZERO; numbers].into()),
            KvType::Bf16 => Self::Bf16(vec![bf16::ZERO; numbers].into()),
            KvType::Q8 => Self::Q8 { quants: vec![0; numbers].into(), scales: vec![0.0; numbers / GROUP].into() },
        }
    }
}

/// All blocks of a pool.
#[derive(Debug)]
pub(super) enum Store {
    /// `None`: a block that is not in use.
    Cpu { kind: KvType, blocks: Vec<Option<Data>> },
    /// Keys and values of each layer.
    Device(Vec<(Tensor, Tensor)>),
}

impl Store {
    pub(super) fn new(shape: Shape, kind: KvType, blocks: usize, on: Option<(&Device, DType)>) -> Result<Self> {
        let Some((device, dtype)) = on else {
            return Ok(Self::Cpu { kind, blocks: Vec::new() });
        };
        let rows = || Tensor::zeros((blocks * BLOCK, shape.kv_heads, shape.head), dtype, device);
        Ok(Self::Device((0..shape.layers).map(|_| Ok((rows()?, rows()?))).collect::<Result<_>>()?))
    }

    /// Gives the block memory.
    pub(super) fn allocate(&mut self, block: u32, shape: Shape) {
        if let Self::Cpu { kind, blocks } = self {
            if blocks.len() <= block as usize {
                blocks.resize_with(block as usize + 1, || None);
            }
            blocks[block as usize] = Some(Data::new(*kind, shape.numbers()));
        }
    }

    /// Takes its memory back.
    pub(super) fn release(&mut self, block: u32) {
        if let Self::Cpu { blocks, .. } = self {
            blocks[block as usize] = None;
        }
    }

    /// Gives `to` what `from` holds.
    pub(super) fn copy(&mut self, from: u32, to: u32) -> Result<()> {
        match self {
            Self::Cpu { blocks, .. } => blocks[to as usize] = blocks[from as usize].clone(),
            Self::Device(layers) => {
                for (k, v) in layers {
                    for rows in [k, v] {
                        let part = rows.narrow(0, from as usize * BLOCK, BLOCK)?.copy()?;
                        rows.slice_set(&part, 0, to as usize * BLOCK)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes one token's keys and values of one layer, `[kv_heads · head]` each, to place `slot` of a block on the CPU.
    pub(super) fn write(&mut self, block: u32, slot: usize, layer: usize, shape: Shape, k: &[f32], v: &[f32]) {
        let Self::Cpu { blocks, .. } = self else { unreachable!("tensors are written by rows") };
        let data = blocks[block as usize].as_mut().expect("a block of a table has memory");
        for (h, (k, v)) in k.chunks_exact(shape.head).zip(v.chunks_exact(shape.head)).enumerate() {
            let keys = (0..shape.head).map(|d| shape.at(layer, h, 0) + d * BLOCK + slot);
            let values = (0..shape.head).map(|d| shape.at(layer, h, 1) + slot * shape.padded() + d);
            match data {
                Data::F32(to) => {
                    keys.zip(k).for_each(|(i, x)| to[i] = *x);
                    values.zip(v).for_each(|(i, x)| to[i] = *x);
                }
                Data::F16(to) => {
                    keys.zip(k).for_each(|(i, x)| to[i] = f16::from_f32(*x));
                    values.zip(v).for_each(|(i, x)| to[i] = f16::from_f32(*x));
                }
                Data::Bf16(to) => {
                    keys.zip(k).for_each(|(i, x)| to[i] = bf16::from_f32(*x));
                    values.zip(v).for_each(|(i, x)| to[i] = bf16::from_f32(*x));
                }
                Data::Q8 { quants, scales } => {
                    let groups = shape.padded() / GROUP;
                    let scale_at = |side: usize| shape.at(layer, h, side) / GROUP;
                    let key_scales = (0..groups).map(|g| scale_at(0) + g * BLOCK + slot);
                    let value_scales = (0..groups).map(|g| scale_at(1) + slot * groups + g);
                    quantise(k, quants, keys, scales, key_scales);
                    quantise(v, quants, values, scales, value_scales);
                }
            }
        }
    }

    /// One head's keys `[head, BLOCK]` and values `[BLOCK, head]` of a block as they are stored, padded.
    pub(super) fn planes(&self, block: u32, layer: usize, head: usize, shape: Shape) -> [Plane<'_>; 2] {
        let Self::Cpu { blocks, .. } = self else { unreachable!("tensors are read by rows") };
        let data = blocks[block as usize].as_ref().expect("a block of a table has memory");
        [0, 1].map(|side| {
            let range = shape.at(layer, head, side)..shape.at(layer, head, side) + shape.plane();
            match data {
                Data::F32(numbers) => Plane::F32(&numbers[range]),
                Data::F16(numbers) => Plane::F16(&numbers[range]),
                Data::Bf16(numbers) => Plane::Bf16(&numbers[range]),
                Data::Q8 { quants, scales } => {
                    let scales = &scales[range.start / GROUP..range.end / GROUP];
                    Plane::Q8 { quants: &quants[range], scales }
                }
            }
        })
    }
}

/// One head's keys or values in one block.
#[derive(Debug, Clone, Copy)]
pub(super) enum Plane<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    /// Scales: of keys `[head / GROUP, BLOCK]`, of values `[BLOCK, head / GROUP]`.
    Q8 {
        quants: &'a [i8],
        scales: &'a [f32],
    },
}

impl<'a> Plane<'a> {
    /// Numbers in it.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(numbers) => numbers.len(),
            Self::F16(numbers) => numbers.len(),
            Self::Bf16(numbers) => numbers.len(),
            Self::Q8 { quants, .. } => quants.len(),
        }
    }

    /// In f32; `side` 0 for keys, 1 for values. `scratch` is used where they are stored otherwise.
    pub(super) fn widened<'b>(self, side: usize, scratch: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        if let Self::F32(numbers) = self {
            return numbers;
        }
        scratch.resize(self.len(), 0.0);
        match self {
            Self::F32(_) => unreachable!("read in place"),
            Self::F16(numbers) => numbers.convert_to_f32_slice(scratch),
            Self::Bf16(numbers) => numbers.convert_to_f32_slice(scratch),
            Self::Q8 { quants, scales } if side == 0 => {
                // Rows are dimensions: a group of rows shares a row of scales, one a token.
                let rows = quants.chunks_exact(BLOCK).zip(scratch.chunks_exact_mut(BLOCK));
                for (d, (q, out)) in rows.enumerate() {
                    let scales = &scales[d / GROUP * BLOCK..][..BLOCK];
                    out.iter_mut().zip(q).zip(scales).for_each(|((o, q), s)| *o = f32::from(*q) * s);
                }
            }
            Self::Q8 { quants, scales } => {
                let groups = quants.chunks_exact(GROUP).zip(scratch.chunks_exact_mut(GROUP)).zip(scales);
                for ((q, out), s) in groups {
                    out.iter_mut().zip(q).for_each(|(o, q)| *o = f32::from(*q) * s);
                }
            }
        }
        scratch
    }
}

fn quantise(
    x: &[f32],
    quants: &mut [i8],
    mut places: impl Iterator<Item = usize>,
    scales: &mut [f32],
    scale_places: impl Iterator<Item = usize>,
) {
    for (group, at) in x.chunks(GROUP).zip(scale_places) {
        let peak = group.iter().fold(0f32, |peak, x| peak.max(x.abs()));
        scales[at] = peak / 127.0;
        let inverse = if scales[at] > f32::MIN_POSITIVE { 1.0 / scales[at] } else { 0.0 };
        for (x, place) in group.iter().zip(&mut places) {
            quants[place] = (x * inverse).round() as i8;
        }
    }
}
