//! Quantised matrix products on the CPU, chosen at run time.
//!
//! All GGUF types are repacked at load into one form ([`QMatrix`]): signed 8-bit integers with an f32 scale per 16 or 32 of them and, for
//! the K types with a minimum, an f32 minimum per 32. The repacking is exact: the integers are the file's own, the scales its products.
//! Activations are quantised per 32 values of a row ([`Activations`]), each row by itself, so that a row's result never depends on the
//! rows beside it (invariant I4).

mod repack;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

pub(crate) use repack::repack;

/// Values that share one activation scale.
const BLOCK: usize = 32;
/// Weight rows a task works on before it moves to the next: their integers stay in the first-level cache.
const ROWS: usize = 16;

/// A quantised weight matrix `[rows, cols]`, ready for the kernels.
pub(crate) struct QMatrix {
    rows: usize,
    cols: usize,
    /// `rows × cols` integers.
    quants: Vec<i8>,
    /// Two scales per block, for its first and its second 16 values.
    scales: Vec<[f32; 2]>,
    /// One minimum per block, subtracted; empty when the type has none.
    minima: Vec<f32>,
}

impl std::fmt::Debug for QMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QMatrix [{}, {}]", self.rows, self.cols)
    }
}

/// The instruction sets that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Plain Rust.
    Portable,
    /// AVX2 with FMA.
    Avx2,
}

impl Level {
    /// The best this machine has.
    fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Self::Avx2;
        }
        Self::Portable
    }
}

/// Activation rows quantised to 8 bits.
struct Activations {
    rows: usize,
    cols: usize,
    quants: Vec<i8>,
    /// One scale per block.
    scales: Vec<f32>,
    /// Sum of a block's dequantised values: what a minimum is multiplied by.
    sums: Vec<f32>,
}

impl Activations {
    fn new(x: &[f32], cols: usize) -> Self {
        let mut quants = vec![0i8; x.len()];
        let (mut scales, mut sums) = (Vec::with_capacity(x.len() / BLOCK), Vec::with_capacity(x.len() / BLOCK));
        for (from, to) in x.chunks_exact(BLOCK).zip(quants.chunks_exact_mut(BLOCK)) {
            let peak = from.iter().fold(0f32, |a, v| a.max(v.abs()));
            let scale = peak / 127.0;
            let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
            let mut sum = 0i32;
            for (v, q) in from.iter().zip(to) {
                // Adding and taking away 1.5 · 2^23 rounds half to even on any processor, without a call; `as` maps NaN to 0.
                *q = ((v * inverse + 12_582_912.0) - 12_582_912.0) as i8;
                sum += i32::from(*q);
            }
            scales.push(scale);
            sums.push(scale * sum as f32);
        }
        Self { rows: x.len() / cols, cols, quants, scales, sums }
    }

    fn row(&self, i: usize) -> Row<'_> {
        let blocks = self.cols / BLOCK;
        Row {
            quants: &self.quants[i * self.cols..(i + 1) * self.cols],
            scales: &self.scales[i * blocks..(i + 1) * blocks],
            sums: &self.sums[i * blocks..(i + 1) * blocks],
        }
    }
}

/// One activation row.
#[derive(Clone, Copy)]
struct Row<'a> {
    quants: &'a [i8],
    scales: &'a [f32],
    sums: &'a [f32],
}

/// One weight row.
#[derive(Clone, Copy)]
struct Weight<'a> {
    quants: &'a [i8],
    scales: &'a [[f32; 2]],
    minima: &'a [f32],
}

impl QMatrix {
    /// Rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Row `i` in f32.
    pub(crate) fn values(&self, i: usize) -> Vec<f32> {
        let row = self.row(i);
        let value = |(j, q): (usize, &i8)| {
            let minimum = row.minima.get(j / BLOCK).copied().unwrap_or(0.0);
            row.scales[j / BLOCK][j % BLOCK / 16] * f32::from(*q) - minimum
        };
        row.quants.iter().enumerate().map(value).collect()
    }

    fn row(&self, i: usize) -> Weight<'_> {
        let blocks = self.cols / BLOCK;
        Weight {
            quants: &self.quants[i * self.cols..(i + 1) * self.cols],
            scales: &self.scales[i * blocks..(i + 1) * blocks],
            minima: if self.minima.is_empty() { &[] } else { &self.minima[i * blocks..(i + 1) * blocks] },
        }
    }

    /// `x [n, cols]` times the transpose of this matrix: `[n, rows]`, row-major.
    ///
    /// # Panics
    /// If `x` is not a whole number of rows: the caller has checked its shape.
    fn product(&self, x: &[f32], level: Level) -> Vec<f32> {
        assert_eq!(x.len() % self.cols, 0, "activations are whole rows");
        let acts = Activations::new(x, self.cols);
        let n = acts.rows;
        if n == 0 {
            return Vec::new();
        }
        // Computed transposed, [rows, n], so that tasks write disjoint stretches.
        let mut transposed = vec![0f32; self.rows * n];
        let stripe = |(task, out): (usize, &mut [f32])| self.stripe(task * ROWS, &acts, out, level);
        transposed.par_chunks_mut(ROWS * n).enumerate().for_each(stripe);
        if n == 1 {
            return transposed;
        }
        let mut out = vec![0f32; self.rows * n];
        out.par_chunks_mut(ROWS * self.rows).enumerate().for_each(|(task, out)| {
            for (i, column) in transposed.chunks_exact(n).enumerate() {
                for (j, v) in column[task * ROWS..].iter().take(ROWS).enumerate() {
                    out[j * self.rows + i] = *v;
                }
            }
        });
        out
    }

    /// Up to [`ROWS`] weight rows from `first` against all activation rows: `out [weight rows, n]`.
    fn stripe(&self, first: usize, acts: &Activations, out: &mut [f32], level: Level) {
        let n = acts.rows;
        let rows = out.len() / n;
        for r in (0..rows).step_by(2) {
            let out = &mut out[r * n..];
            let mut c = 0;
            while c < n {
                match (rows - r >= 2, n - c >= 4) {
                    (true, true) => self.tile::<2, 4>(first + r, c, acts, out, level),
                    (true, false) => self.tile::<2, 1>(first + r, c, acts, out, level),
                    (false, true) => self.tile::<1, 4>(first + r, c, acts, out, level),
                    (false, false) => self.tile::<1, 1>(first + r, c, acts, out, level),
                }
                c += if n - c >= 4 { 4 } else { 1 };
            }
        }
    }

    /// Weight rows `r..r + R` against activation rows `c..c + C`, written to columns `c..` of the first R rows of `out`.
    fn tile<const R: usize, const C: usize>(
        &self,
        r: usize,
        c: usize,
        acts: &Activations,
        out: &mut [f32],
        level: Level,
    ) {
        let weights: [Weight<'_>; R] = std::array::from_fn(|i| self.row(r + i));
        let rows: [Row<'_>; C] = std::array::from_fn(|j| acts.row(c + j));
        let sums = match level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Level::Avx2` is only made where the processor has AVX2 and FMA.
            Level::Avx2 => unsafe { x86::tile(weights, rows) },
            _ => weights.map(|w| rows.map(|x| dot(w, x))),
        };
        for (i, (sums, weight)) in sums.iter().zip(weights).enumerate() {
            for (j, (sum, row)) in sums.iter().zip(rows).enumerate() {
                let minimum = if weight.minima.is_empty() { 0.0 } else { minimum(weight.minima, row.sums) };
                out[i * acts.rows + c + j] = sum - minimum;
            }
        }
    }
}

/// The portable kernel: lanes in the order of the vector ones, so that they differ by rounding alone.
fn dot(weight: Weight<'_>, row: Row<'_>) -> f32 {
    let mut sum = 0f32;
    for (b, (w, x)) in weight.quants.chunks_exact(BLOCK).zip(row.quants.chunks_exact(BLOCK)).enumerate() {
        for (half, scale) in weight.scales[b].iter().enumerate() {
            let range = half * 16..half * 16 + 16;
            let whole: i32 = w[range.clone()].iter().zip(&x[range]).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
            sum += whole as f32 * (scale * row.scales[b]);
        }
    }
    sum
}

/// What the minima take away.
fn minimum(minima: &[f32], sums: &[f32]) -> f32 {
    // Eight sums at a time: the order is fixed, and the compiler may use vectors.
    let mut lanes = [0f32; 8];
    for (m, s) in minima.chunks(8).zip(sums.chunks(8)) {
        for ((lane, m), s) in lanes.iter_mut().zip(m).zip(s) {
            *lane += m * s;
        }
    }
    lanes.iter().sum()
}

/// [`QMatrix::product`] as a candle operation: `x [.., cols]` to `[.., rows]`.
struct Product(Arc<QMatrix>);

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "quantised product"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, cols) = self.0.shape();
        let mut dims = layout.dims().to_vec();
        if dims.last() != Some(&cols) {
            candle_core::bail!("a product with [{rows}, {cols}] was given {dims:?}");
        }
        let x = storage.as_slice::<f32>()?;
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a quantised product needs contiguous activations");
        };
        let out = self.0.product(&x[start..end], Level::best());
        *dims.last_mut().expect("checked above") = rows;
        Ok((CpuStorage::F32(out), dims.into()))
    }
}

/// `x [.., cols]` times the transpose of `matrix`, in f32 on the CPU.
pub(crate) fn product(matrix: &Arc<QMatrix>, x: &Tensor) -> candle_core::Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Product(matrix.clone()))
}
