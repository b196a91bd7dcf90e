//! Quantised matrix products on the CPU, chosen at run time.
//!
//! Weights are repacked at load ([`QMatrix`]); activations are quantised per 32 values of a row ([`Activations`]), each row by itself. A
//! number of the result is one chain of fused multiply-adds over the blocks of its row, block after block, whatever stands beside it: so a
//! row's result never depends on the rows that share its pass (invariant I4), and one row takes the same way as five hundred.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod pack;
mod portable;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use activations::{Activations, TILE};
use pack::PANEL;
pub(crate) use pack::{QMatrix, repack};

/// Values that share one activation scale.
const BLOCK: usize = 32;

/// The instruction sets that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Plain Rust.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// The same with 8-bit dot products.
    AvxVnni,
    /// AVX-512 F, BW and VNNI.
    Avx512,
}

impl Level {
    /// Those this machine has, the best last.
    fn all() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                all.push(Self::Avx2);
                if is_x86_feature_detected!("avxvnni") {
                    all.push(Self::AvxVnni);
                }
            }
            let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            if has && is_x86_feature_detected!("avx512vnni") && all.contains(&Self::Avx2) {
                all.push(Self::Avx512);
            }
        }
        all
    }

    /// The best this machine has.
    fn best() -> Self {
        static BEST: std::sync::OnceLock<Level> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| Self::all().pop().expect("plain Rust is everywhere"))
    }
}

/// Some of a result's rows, to be written by several tasks: each writes the columns of its own panels.
#[derive(Clone, Copy)]
struct Out {
    at: *mut f32,
    /// Rows and columns of the result.
    shape: (usize, usize),
}

// SAFETY: tasks write disjoint columns (`Out::put` is given a panel's, and each panel belongs to one task).
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// Writes what belongs to panel `p` of row `row`.
    ///
    /// # Safety
    /// No other thread writes this panel's columns.
    unsafe fn put(self, row: usize, p: usize, values: &[f32; PANEL]) {
        let (rows, cols) = self.shape;
        let n = PANEL.min(cols - p * PANEL);
        assert!(row < rows);
        // SAFETY: row and columns lie inside the result, as just checked, and are this thread's alone.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.at.add(row * cols + p * PANEL), n) }
    }
}

/// Bytes of weights that are worth a task of their own.
const TASK: usize = 1 << 16;

impl QMatrix {
    /// `x [n, cols]` times the transpose of this matrix: `[n, rows]`, row-major.
    ///
    /// # Panics
    /// If `x` is not a whole number of rows: the caller has checked its shape.
    fn product(&self, x: &[f32], level: Level) -> Vec<f32> {
        let (rows, cols) = self.shape();
        assert_eq!(x.len() % cols, 0, "activations are whole rows");
        let acts = Activations::new(x, cols, self.kind, level);
        let mut out = vec![0f32; acts.rows * rows];
        let to = Out { at: out.as_mut_ptr(), shape: (acts.rows, rows) };
        // With many activation rows a task's panels stay in the second-level cache while all of them pass.
        let per = (TASK / (cols * self.kind.bits() * 2)).clamp(1, self.panels().div_ceil(4).max(1));
        (0..self.panels().div_ceil(per)).into_par_iter().for_each(|task| {
            let panels = task * per..self.panels().min((task + 1) * per);
            for tile in 0..acts.tiles() {
                for p in panels.clone() {
                    self.tile(p, &acts, tile, to, level);
                }
            }
        });
        out
    }

    /// One panel against one tile of activation rows.
    fn tile(&self, p: usize, acts: &Activations, tile: usize, to: Out, level: Level) {
        let panel = self.panel(p);
        let view = acts.tile(tile);
        let mut sums = [[0f32; PANEL]; TILE];
        match level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a level is only made where the processor has what it names.
            Level::Avx512 => unsafe { avx512::tile(self.kind, panel, view, &mut sums) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::AvxVnni => unsafe { avx2::with_vnni(self.kind, panel, view, &mut sums) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2 => unsafe { avx2::without_vnni(self.kind, panel, view, &mut sums) },
            _ => portable::tile(self.kind, panel, view, &mut sums),
        }
        for (i, sums) in sums[..view.rows].iter().enumerate() {
            // SAFETY: panel `p` is worked on by the caller's task alone.
            unsafe { to.put(tile * TILE + i, p, sums) }
        }
    }
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
