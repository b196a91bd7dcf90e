//! f32 matrices in the same panels: low-rank updates, dense weights, the encoder. A number of a result is one chain of multiply-adds over the
//! columns, as with quantised weights, so that it does not depend on the rows beside its own.

#![allow(clippy::needless_range_loop, reason = "several arrays go by one index, and stay in registers")]

use super::Level;
use super::activations::{Sums, TILE};
use super::pack::PANEL;

/// The columns of [`PANEL`] rows, one after the other; where a vector likes them.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Column(pub(super) [f32; PANEL]);

/// A weight matrix `[rows, cols]` in f32.
pub(crate) struct DMatrix {
    rows: usize,
    cols: usize,
    columns: Vec<Column>,
}

impl std::fmt::Debug for DMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DMatrix [{}, {}]", self.rows, self.cols)
    }
}

impl DMatrix {
    /// Packs `values [rows, cols]`.
    pub(crate) fn new(values: &[f32], rows: usize, cols: usize) -> Self {
        assert_eq!(values.len(), rows * cols, "as many values as the shape says");
        let mut columns = vec![Column([0.0; PANEL]); rows.div_ceil(PANEL) * cols];
        for (i, row) in values.chunks_exact(cols.max(1)).enumerate() {
            let panel = &mut columns[i / PANEL * cols..][..cols];
            panel.iter_mut().zip(row).for_each(|(column, v)| column.0[i % PANEL] = *v);
        }
        Self { rows, cols, columns }
    }

    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Row `i`.
    pub(crate) fn values(&self, i: usize) -> Vec<f32> {
        self.panel(i / PANEL).iter().map(|column| column.0[i % PANEL]).collect()
    }

    fn panel(&self, p: usize) -> &[Column] {
        &self.columns[p * self.cols..(p + 1) * self.cols]
    }

    /// Each row of `x [n, cols]` times the transpose: for matrices of few rows, where one row at a time is enough.
    pub(super) fn narrow(&self, x: &[f32], level: Level) -> Vec<Vec<f32>> {
        let row = |x: &[f32]| -> Vec<f32> {
            let panels = (0..self.panels()).flat_map(|p| {
                let panel = self.panel(p);
                match level {
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: a level is only made where the processor has what it names.
                    Level::Avx512 => unsafe { avx512::one(panel, x) },
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: as above.
                    Level::Avx2 | Level::AvxVnni => unsafe { avx2_one(panel, x) },
                    _ => one::<false>(panel, x),
                }
            });
            panels.take(self.rows).collect()
        };
        x.chunks_exact(self.cols).map(row).collect()
    }

    /// Adds the products of a panel with up to [`TILE`] rows, `x [cols, rows]`: a column of all rows, then the next.
    pub(super) fn add(&self, p: usize, x: &[f32], rows: usize, sums: &mut Sums, level: Level) {
        add(self.panel(p), x, rows, sums, level);
    }
}

/// [`DMatrix::add`] for any panel.
pub(super) fn add(panel: &[Column], x: &[f32], rows: usize, sums: &mut Sums, level: Level) {
    assert!(rows <= TILE && x.len() == panel.len() * rows);
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level is only made where the processor has what it names.
        Level::Avx512 => unsafe { avx512::add(panel, x, rows, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 | Level::AvxVnni => unsafe { avx2(panel, x, rows, sums) },
        _ => body::<false>(panel, x, rows, sums),
    }
}

/// # Safety
/// The processor must have AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(panel: &[Column], x: &[f32], rows: usize, sums: &mut Sums) {
    body::<true>(panel, x, rows, sums);
}

/// # Safety
/// The processor must have AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_one(panel: &[Column], x: &[f32]) -> [f32; PANEL] {
    one::<true>(panel, x)
}

/// One row. A chain of sums waits for itself at every step, so there are four, a quarter of the columns each.
#[inline(always)]
fn one<const FUSED: bool>(panel: &[Column], x: &[f32]) -> [f32; PANEL] {
    const CHAINS: usize = 4;
    let n = x.len() / CHAINS;
    let part = |i: usize| (&panel[i * n..(i + 1) * n], &x[i * n..(i + 1) * n]);
    let parts: [(&[Column], &[f32]); CHAINS] = std::array::from_fn(part);
    let mut chains = [[0f32; PANEL]; CHAINS];
    let step = |chain: &mut [f32; PANEL], w: &Column, x: f32| {
        for l in 0..PANEL {
            chain[l] = if FUSED { w.0[l].mul_add(x, chain[l]) } else { chain[l] + w.0[l] * x };
        }
    };
    for k in 0..n {
        for (chain, (w, x)) in chains.iter_mut().zip(&parts) {
            step(chain, &w[k], x[k]);
        }
    }
    for k in CHAINS * n..x.len() {
        step(&mut chains[0], &panel[k], x[k]);
    }
    let [a, b, c, d] = chains;
    std::array::from_fn(|l| (a[l] + b[l]) + (c[l] + d[l]))
}

/// Plain Rust in lanes, compiled once for each instruction set.
#[inline(always)]
fn body<const FUSED: bool>(panel: &[Column], x: &[f32], rows: usize, sums: &mut Sums) {
    let mut c = 0;
    while c < rows {
        match rows - c {
            1 => some::<1, FUSED>(panel, x, rows, c, sums),
            2 | 3 => some::<2, FUSED>(panel, x, rows, c, sums),
            _ => some::<4, FUSED>(panel, x, rows, c, sums),
        }
        c += match rows - c {
            1 => 1,
            2 | 3 => 2,
            _ => 4,
        };
    }
}

#[inline(always)]
fn some<const C: usize, const FUSED: bool>(panel: &[Column], x: &[f32], rows: usize, first: usize, sums: &mut Sums) {
    let mut local: [[f32; PANEL]; C] = std::array::from_fn(|c| sums[first + c]);
    for (w, x) in panel.iter().zip(x.chunks_exact(rows)) {
        let x: &[f32; C] = x[first..first + C].try_into().expect("C of them");
        for c in 0..C {
            for l in 0..PANEL {
                local[c][l] = if FUSED { w.0[l].mul_add(x[c], local[c][l]) } else { local[c][l] + w.0[l] * x[c] };
            }
        }
    }
    sums[first..first + C].copy_from_slice(&local);
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        _mm512_fmadd_ps, _mm512_load_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{Column, PANEL, Sums};

    /// # Safety
    /// The processor must have AVX-512F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn one(panel: &[Column], x: &[f32]) -> [f32; PANEL] {
        super::one::<true>(panel, x)
    }

    /// # Safety
    /// The processor must have AVX-512F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn add(panel: &[Column], x: &[f32], rows: usize, sums: &mut Sums) {
        match rows {
            0 => {}
            1 => some::<1>(panel, x, sums),
            2 => some::<2>(panel, x, sums),
            3 => some::<3>(panel, x, sums),
            4 => some::<4>(panel, x, sums),
            5 => some::<5>(panel, x, sums),
            6 => some::<6>(panel, x, sums),
            7 => some::<7>(panel, x, sums),
            8 => some::<8>(panel, x, sums),
            9 => some::<9>(panel, x, sums),
            10 => some::<10>(panel, x, sums),
            11 => some::<11>(panel, x, sums),
            12 => some::<12>(panel, x, sums),
            13 => some::<13>(panel, x, sums),
            14 => some::<14>(panel, x, sums),
            15 => some::<15>(panel, x, sums),
            _ => some::<16>(panel, x, sums),
        }
    }

    #[target_feature(enable = "avx512f")]
    fn some<const C: usize>(panel: &[Column], x: &[f32], sums: &mut Sums) {
        assert!(x.len() == panel.len() * C);
        let mut local = [_mm512_setzero_ps(); C];
        for c in 0..C {
            // SAFETY: sixteen numbers.
            local[c] = unsafe { _mm512_loadu_ps(sums[c].as_ptr()) };
        }
        for (k, column) in panel.iter().enumerate() {
            // SAFETY: sixteen numbers, aligned by their type.
            let w = unsafe { _mm512_load_ps(column.0.as_ptr()) };
            for c in 0..C {
                // SAFETY: `x` has C numbers for each column, as asserted above.
                let x = unsafe { _mm512_set1_ps(*x.get_unchecked(k * C + c)) };
                local[c] = _mm512_fmadd_ps(w, x, local[c]);
            }
        }
        for c in 0..C {
            // SAFETY: sixteen numbers.
            unsafe { _mm512_storeu_ps(sums[c].as_mut_ptr(), local[c]) };
        }
    }
}
