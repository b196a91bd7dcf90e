//! Activation rows quantised to 8 bits, in the order in which the kernels read them.

use super::pack::{PANEL, Scheme, Type};
use super::{BLOCK, Level};

/// Activation rows that pass a panel together.
pub(super) const TILE: usize = 16;
/// Values of half a block: what shares a factor in the finest type.
const HALF: usize = BLOCK / 2;
/// Tiles that are worth more threads than one.
const MANY: usize = 3;

/// Quantised rows. Tiles of [`TILE`] rows, the last with what is left; in a tile block by block, in a block row by row, so that a kernel
/// walks straight through memory whatever the number of rows.
pub(super) struct Activations {
    pub(super) rows: usize,
    blocks: usize,
    quants: Vec<[i8; BLOCK]>,
    /// One scale a block.
    scales: Vec<f32>,
    /// What a block's integer product begins with: minus the sum of its integers times what the weights' are too large by. With
    /// [`Scheme::Minimum`], minus the plain sum.
    starts: Vec<i32>,
    /// The same for each half, with [`Scheme::Halves`].
    half_starts: Vec<[i32; 2]>,
}

/// A tile of them.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) rows: usize,
    pub(super) blocks: usize,
    /// `[block, row]`, as all of these.
    pub(super) quants: &'a [[i8; BLOCK]],
    pub(super) scales: &'a [f32],
    pub(super) starts: &'a [i32],
    pub(super) half_starts: &'a [[i32; 2]],
}

/// What a kernel gives: the sums of a tile's rows with a panel's.
pub(super) type Sums = [[f32; PANEL]; TILE];

impl Activations {
    /// Quantises `x [n, cols]` for products with a matrix of type `kind`.
    pub(super) fn new(x: &[f32], cols: usize, kind: Type, level: Level) -> Self {
        let (rows, blocks) = (x.len() / cols, cols / BLOCK);
        let all = rows * blocks;
        let halves = kind.scheme() == Scheme::Halves;
        let mut out = Self {
            rows,
            blocks,
            quants: vec![[0; BLOCK]; all],
            scales: vec![0.0; all],
            starts: vec![0; if halves { 0 } else { all }],
            half_starts: vec![[0; 2]; if halves { all } else { 0 }],
        };
        let offset = if kind.scheme() == Scheme::Minimum { 1 } else { kind.offset() };
        let one = |tile: usize, part: Part<'_>| {
            let x = &x[tile * TILE * cols..rows.min((tile + 1) * TILE) * cols];
            quantise(x, cols, offset, part, level);
        };
        if out.tiles() < MANY {
            out.parts().into_iter().enumerate().for_each(|(tile, part)| one(tile, part));
        } else {
            use rayon::prelude::*;
            out.parts().into_par_iter().enumerate().for_each(|(tile, part)| one(tile, part));
        }
        out
    }

    pub(super) fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    pub(super) fn tile(&self, i: usize) -> Tile<'_> {
        let rows = TILE.min(self.rows - i * TILE);
        let range = i * TILE * self.blocks..(i * TILE + rows) * self.blocks;
        Tile {
            rows,
            blocks: self.blocks,
            quants: &self.quants[range.clone()],
            scales: &self.scales[range.clone()],
            starts: if self.starts.is_empty() { &[] } else { &self.starts[range.clone()] },
            half_starts: if self.half_starts.is_empty() { &[] } else { &self.half_starts[range] },
        }
    }

    fn parts(&mut self) -> Vec<Part<'_>> {
        let tiles = self.tiles();
        let size = TILE * self.blocks;
        let mut starts = self.starts.chunks_mut(size);
        let mut halves = self.half_starts.chunks_mut(size);
        let parts = self.quants.chunks_mut(size).zip(self.scales.chunks_mut(size)).map(|(quants, scales)| Part {
            quants,
            scales,
            starts: starts.next().unwrap_or_default(),
            half_starts: halves.next().unwrap_or_default(),
        });
        let parts: Vec<_> = parts.collect();
        debug_assert_eq!(parts.len(), tiles);
        parts
    }
}

/// A tile to be filled.
struct Part<'a> {
    quants: &'a mut [[i8; BLOCK]],
    scales: &'a mut [f32],
    starts: &'a mut [i32],
    half_starts: &'a mut [[i32; 2]],
}

/// Quantises the rows of one tile.
fn quantise(x: &[f32], cols: usize, offset: i32, part: Part<'_>, level: Level) {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level is only made where the processor has what it names.
        Level::Avx512 => unsafe { avx512(x, cols, offset, part) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 | Level::AvxVnni => unsafe { avx2(x, cols, offset, part) },
        _ => body(x, cols, offset, part),
    }
}

/// # Safety
/// The processor must have AVX-512 F and BW.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn avx512(x: &[f32], cols: usize, offset: i32, part: Part<'_>) {
    body(x, cols, offset, part);
}

/// # Safety
/// The processor must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(x: &[f32], cols: usize, offset: i32, part: Part<'_>) {
    body(x, cols, offset, part);
}

/// Plain Rust in lanes, compiled once for each instruction set: all give the same integers.
#[inline(always)]
fn body(x: &[f32], cols: usize, offset: i32, part: Part<'_>) {
    let rows = x.len() / cols;
    for (row, x) in x.chunks_exact(cols).enumerate() {
        for (b, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
            let at = b * rows + row;
            let mut peaks = [0f32; HALF];
            for (i, peak) in peaks.iter_mut().enumerate() {
                let (a, b) = (x[i].abs(), x[i + HALF].abs());
                *peak = if a > b { a } else { b };
            }
            let mut half = HALF / 2;
            while half > 0 {
                for i in 0..half {
                    peaks[i] = if peaks[i] > peaks[i + half] { peaks[i] } else { peaks[i + half] };
                }
                half /= 2;
            }
            let scale = peaks[0] / 127.0;
            let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
            let mut integers = [0i32; BLOCK];
            for (q, v) in integers.iter_mut().zip(x) {
                // Adding 1.5 · 2^23 rounds half to even, and leaves the integer in the low bits of the sum; no NaN becomes more than 8 bits.
                *q = i32::from(((v * inverse + 12_582_912.0).to_bits() & 0xff) as u8 as i8);
            }
            for (to, q) in part.quants[at].iter_mut().zip(&integers) {
                *to = *q as i8;
            }
            let sum = |half: &[i32]| -> i32 { half.iter().sum() };
            let sums = [sum(&integers[..HALF]), sum(&integers[HALF..])];
            part.scales[at] = scale;
            if part.half_starts.is_empty() {
                part.starts[at] = -offset * (sums[0] + sums[1]);
            } else {
                part.half_starts[at] = sums.map(|s| -offset * s);
            }
        }
    }
}
