//! Matrices in 16-bit integers, where f32 would do: the encoder's.
//!
//! Per 32 columns of a row both weights and activations have 15 bits; a quarter of these columns is summed in 32 bits (16,383² · 8 < 2³¹), the
//! quarters in f32. What this rounds away is less than what f16 weights have lost already, and integer dot products do twice what f32 does in
//! a cycle.

#![allow(clippy::needless_range_loop, reason = "several arrays go by one index, and stay in registers")]

use super::activations::{Slots, Sums, TILE, place, stretch};
use super::pack::PANEL;
use super::{BLOCK, Level};

/// The largest integer.
const MOST: f32 = 16_383.0;
/// Pairs of columns in a block.
const PAIRS: usize = BLOCK / 2;
/// Of those whose products are summed in integers.
const QUARTER: usize = PAIRS / 4;

/// A pair of columns of all rows of a panel.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Pair([[i16; 2]; PANEL]);

/// A weight matrix `[rows, cols]`.
pub(crate) struct FineMatrix {
    rows: usize,
    cols: usize,
    /// `[panel, block, pair]`.
    pairs: Vec<Pair>,
    /// `[panel, block]`.
    scales: Vec<[f32; PANEL]>,
}

impl std::fmt::Debug for FineMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FineMatrix [{}, {}]", self.rows, self.cols)
    }
}

/// What a block's numbers are divided by to become integers, and the inverse.
#[inline(always)]
fn scale(block: &[f32; BLOCK]) -> (f32, f32) {
    let mut peaks = [0f32; BLOCK / 2];
    for (i, peak) in peaks.iter_mut().enumerate() {
        let (a, b) = (block[i].abs(), block[i + BLOCK / 2].abs());
        *peak = if a > b { a } else { b };
    }
    let peak = peaks.iter().fold(0f32, |a, b| if a > *b { a } else { *b });
    let scale = peak / MOST;
    (scale, if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 })
}

/// Rounds half to even, without a call; no NaN becomes more than 16 bits.
#[inline(always)]
fn rounded(x: f32) -> i16 {
    (x + 12_582_912.0).to_bits() as i16
}

impl FineMatrix {
    /// Packs `values [rows, cols]`; `cols` must be whole blocks.
    pub(crate) fn new(values: &[f32], rows: usize, cols: usize) -> Self {
        assert!(
            values.len() == rows * cols && cols.is_multiple_of(BLOCK),
            "whole blocks of as many values as the shape says"
        );
        let (panels, blocks) = (rows.div_ceil(PANEL), cols / BLOCK);
        let mut pairs = vec![Pair([[0; 2]; PANEL]); panels * blocks * PAIRS];
        let mut scales = vec![[0f32; PANEL]; panels * blocks];
        for (i, row) in values.chunks_exact(cols.max(1)).enumerate() {
            for (b, block) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
                let at = i / PANEL * blocks + b;
                let (scale, inverse) = scale(block);
                scales[at][i % PANEL] = scale;
                for (pair, values) in pairs[at * PAIRS..].iter_mut().zip(block.as_chunks::<2>().0) {
                    pair.0[i % PANEL] = values.map(|v| rounded(v * inverse));
                }
            }
        }
        Self { rows, cols, pairs, scales }
    }

    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Row `i`.
    pub(crate) fn values(&self, i: usize) -> Vec<f32> {
        let blocks = self.cols / BLOCK;
        let value = |j: usize| {
            let at = i / PANEL * blocks + j / BLOCK;
            let pair = &self.pairs[at * PAIRS + j % BLOCK / 2];
            f32::from(pair.0[i % PANEL][j % 2]) * self.scales[at][i % PANEL]
        };
        (0..self.cols).map(value).collect()
    }

    /// Panel `p` with a tile of rows.
    pub(super) fn tile(&self, p: usize, x: FineTile<'_>, sums: &mut Sums, level: Level) {
        let blocks = self.cols / BLOCK;
        let scales = &self.scales[p * blocks..(p + 1) * blocks];
        let pairs = &self.pairs[p * blocks * PAIRS..(p + 1) * blocks * PAIRS];
        assert!(x.quants.len() == blocks * x.rows && x.scales.len() == blocks * x.rows);
        match level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a level is only made where the processor has what it names.
            Level::Avx512 => unsafe { avx512::tile(pairs, scales, x, sums) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2 | Level::AvxVnni => unsafe { avx2(pairs, scales, x, sums) },
            _ => body(pairs, scales, x, sums),
        }
    }
}

/// # Safety
/// The processor must have AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(pairs: &[Pair], scales: &[[f32; PANEL]], x: FineTile<'_>, sums: &mut Sums) {
    body(pairs, scales, x, sums);
}

/// Plain Rust in lanes, compiled once for each instruction set.
#[inline(always)]
fn body(pairs: &[Pair], scales: &[[f32; PANEL]], x: FineTile<'_>, sums: &mut Sums) {
    for (c, sums) in sums[..x.rows].iter_mut().enumerate() {
        *sums = [0.0; PANEL];
        for (b, (pairs, scales)) in pairs.chunks_exact(PAIRS).zip(scales).enumerate() {
            let at = b * x.rows + c;
            let mut quarters = [[0i32; PANEL]; 4];
            for (i, (pair, x)) in pairs.iter().zip(x.quants[at].as_chunks::<2>().0).enumerate() {
                for (l, sum) in quarters[i / QUARTER].iter_mut().enumerate() {
                    *sum += i32::from(pair.0[l][0]) * i32::from(x[0]) + i32::from(pair.0[l][1]) * i32::from(x[1]);
                }
            }
            for l in 0..PANEL {
                let [a, b, c, d] = quarters.map(|quarter| quarter[l] as f32);
                sums[l] += ((a + b) + (c + d)) * scales[l] * x.scales[at];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_dpwssd_epi32, _mm512_fmadd_ps, _mm512_load_si512, _mm512_loadu_ps,
        _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps,
    };

    use super::{FineTile, PAIRS, PANEL, Pair, QUARTER, Sums};

    /// # Safety
    /// The processor must have AVX-512 F, BW and VNNI.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) unsafe fn tile(pairs: &[Pair], scales: &[[f32; PANEL]], x: FineTile<'_>, sums: &mut Sums) {
        let mut c = 0;
        // Sixteen vectors of weights leave room for eight rows.
        while c < x.rows {
            match x.rows - c {
                1 => some::<1>(pairs, scales, x, c, sums),
                2 => some::<2>(pairs, scales, x, c, sums),
                3 => some::<3>(pairs, scales, x, c, sums),
                4 => some::<4>(pairs, scales, x, c, sums),
                5 => some::<5>(pairs, scales, x, c, sums),
                6 => some::<6>(pairs, scales, x, c, sums),
                7 => some::<7>(pairs, scales, x, c, sums),
                _ => some::<8>(pairs, scales, x, c, sums),
            }
            c += 8;
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn some<const C: usize>(pairs: &[Pair], scales: &[[f32; PANEL]], x: FineTile<'_>, first: usize, sums: &mut Sums) {
        assert!(first + C <= x.rows && pairs.len() == scales.len() * PAIRS);
        assert!(x.quants.len() == scales.len() * x.rows && x.scales.len() == x.quants.len());
        let mut local = [_mm512_setzero_ps(); C];
        for (b, scales) in scales.iter().enumerate() {
            let mut w = [_mm512_setzero_si512(); PAIRS];
            for (i, w) in w.iter_mut().enumerate() {
                // SAFETY: block `b` has so many, and they are aligned by their type.
                *w = unsafe { _mm512_load_si512(pairs.as_ptr().add(b * PAIRS + i).cast()) };
            }
            // SAFETY: sixteen numbers.
            let scale = unsafe { _mm512_loadu_ps(scales.as_ptr()) };
            for c in 0..C {
                let at = b * x.rows + first + c;
                // SAFETY: below the lengths asserted above.
                let (quants, scale_x) =
                    unsafe { (x.quants.as_ptr().add(at).cast::<i32>(), _mm512_set1_ps(*x.scales.get_unchecked(at))) };
                let mut quarters = [_mm512_setzero_si512(); 4];
                for (i, w) in w.iter().enumerate() {
                    // SAFETY: a block of a row has so many pairs.
                    let pair = unsafe { _mm512_set1_epi32(quants.add(i).read_unaligned()) };
                    quarters[i / QUARTER] = _mm512_dpwssd_epi32(quarters[i / QUARTER], *w, pair);
                }
                let halves =
                    [0, 2].map(|i| _mm512_add_ps(_mm512_cvtepi32_ps(quarters[i]), _mm512_cvtepi32_ps(quarters[i + 1])));
                let whole = _mm512_add_ps(halves[0], halves[1]);
                local[c] = _mm512_fmadd_ps(_mm512_mul_ps(whole, scale), scale_x, local[c]);
            }
        }
        for c in 0..C {
            // SAFETY: sixteen numbers.
            unsafe { _mm512_storeu_ps(sums[first + c].as_mut_ptr(), local[c]) };
        }
    }
}

/// Activation rows for it, in the order of [`super::activations`].
pub(super) struct FineActivations {
    rows: usize,
    blocks: usize,
    quants: Vec<[i16; BLOCK]>,
    scales: Vec<f32>,
}

/// A tile of them.
#[derive(Clone, Copy)]
pub(super) struct FineTile<'a> {
    pub(super) rows: usize,
    quants: &'a [[i16; BLOCK]],
    scales: &'a [f32],
}

/// [`FineActivations`] to be filled.
pub(super) struct FineFilling {
    rows: usize,
    quants: Slots<[i16; BLOCK]>,
    scales: Slots<f32>,
}

impl FineActivations {
    pub(super) fn new(rows: usize, cols: usize) -> Self {
        let blocks = cols / BLOCK;
        Self { rows, blocks, quants: vec![[0; BLOCK]; rows * blocks], scales: vec![0.0; rows * blocks] }
    }

    pub(super) fn filling(&mut self) -> FineFilling {
        FineFilling { rows: self.rows, quants: Slots::new(&mut self.quants), scales: Slots::new(&mut self.scales) }
    }

    pub(super) fn tile(&self, i: usize) -> FineTile<'_> {
        let (range, rows) = stretch(i, self.rows, self.blocks);
        debug_assert!(rows <= TILE);
        FineTile { rows, quants: &self.quants[range.clone()], scales: &self.scales[range] }
    }
}

impl FineFilling {
    /// Quantises row `row`.
    ///
    /// # Safety
    /// The activations must still be there, and no other thread may fill this row.
    pub(super) unsafe fn fill(&self, row: usize, x: &[f32], level: Level) {
        match level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a level is only made where the processor has what it names; the rest is the caller's promise.
            Level::Avx512 => unsafe { fill_avx512(self, row, x) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2 | Level::AvxVnni => unsafe { fill_avx2(self, row, x) },
            // SAFETY: as above.
            _ => unsafe { fill(self, row, x) },
        }
    }
}

/// # Safety
/// As for [`FineFilling::fill`], and the processor must have AVX-512 F and BW.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn fill_avx512(to: &FineFilling, row: usize, x: &[f32]) {
    // SAFETY: the caller's promise.
    unsafe { fill(to, row, x) }
}

/// # Safety
/// As for [`FineFilling::fill`], and the processor must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn fill_avx2(to: &FineFilling, row: usize, x: &[f32]) {
    // SAFETY: the caller's promise.
    unsafe { fill(to, row, x) }
}

/// Compiled once for each instruction set.
///
/// # Safety
/// As for [`FineFilling::fill`].
#[inline(always)]
unsafe fn fill(to: &FineFilling, row: usize, x: &[f32]) {
    let (first, stride) = place(row, to.rows, x.len() / BLOCK);
    for (b, block) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        let (scale, inverse) = scale(block);
        let mut quants = [0i16; BLOCK];
        for (q, v) in quants.iter_mut().zip(block) {
            *q = rounded(v * inverse);
        }
        // SAFETY: places of this row alone.
        unsafe {
            to.quants.put(first + b * stride, quants);
            to.scales.put(first + b * stride, scale);
        }
    }
}
