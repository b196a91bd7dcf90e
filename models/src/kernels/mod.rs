//! Quantised matrix products on the CPU, chosen at run time.
//!
//! Weights are repacked at load ([`QMatrix`]); activations are quantised per 32 values of a row ([`Activations`]), each row by itself. A
//! number of the result is one chain of fused multiply-adds over the blocks of its row, block after block, whatever stands beside it: so a
//! row's result never depends on the rows that share its pass (invariant I4), and one row takes the same way as five hundred.

// Loops over registers, which have numbers and no iterators.
#![allow(clippy::needless_range_loop)]

mod activations;
mod affine;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dense;
mod fine;
mod pack;
mod portable;
mod rows;
#[cfg(test)]
mod tests;
pub(crate) mod threads;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

pub(crate) use activations::Slots;
use activations::{Sums, Tile};
pub(crate) use affine::{Affine, Packed, forward};
pub(crate) use attention::{Chunk, attend};
pub(crate) use dense::DMatrix;
pub(crate) use pack::{QMatrix, repack};
pub(crate) use rows::{Input, gelu_all, normed};

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
    /// AVX-512 F, BW, VL and VNNI.
    Avx512,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
        }
    }

    /// Those this machine has, the best last.
    pub(crate) fn all() -> Vec<Self> {
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
            let has = has && is_x86_feature_detected!("avx512vl");
            if has && is_x86_feature_detected!("avx512vnni") && all.contains(&Self::Avx2) {
                all.push(Self::Avx512);
            }
        }
        all
    }

    /// The best this machine has, or what [`use_level`] has said.
    pub(crate) fn best() -> Self {
        *LEVEL.get_or_init(|| Self::all().pop().expect("plain Rust is everywhere"))
    }
}

static LEVEL: std::sync::OnceLock<Level> = std::sync::OnceLock::new();

/// Has all of the process go without what lies above a level, `portable`, `avx2`, `avx-vnni` or `avx512`: for measurements, and where a
/// processor's own are at fault. To be said before a model is loaded.
///
/// # Errors
/// A name that is none, a level that this machine does not have, or kernels that run already.
pub fn use_level(name: &str) -> crate::Result<()> {
    let (named, all) = (|level: &Level| level.name() == name, Level::all());
    let wrong = |what: &str| crate::Error::Input(format!("kernels {name}: {what}"));
    let Some(level) = all.iter().find(|level| named(level)) else {
        let here: Vec<&str> = all.iter().map(|level| level.name()).collect();
        return Err(wrong(&format!("this machine has {}", here.join(", "))));
    };
    LEVEL.set(*level).map_err(|_| wrong("others are in use already"))
}

impl QMatrix {
    /// One panel with one tile of activation rows.
    fn tile(&self, p: usize, x: Tile<'_>, sums: &mut Sums, level: Level) {
        let panel = self.panel(p);
        match level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a level is only made where the processor has what it names.
            Level::Avx512 => unsafe { avx512::tile(self.kind, panel, x, sums) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::AvxVnni => unsafe { avx2::with_vnni(self.kind, panel, x, sums) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2 => unsafe { avx2::without_vnni(self.kind, panel, x, sums) },
            _ => portable::tile(self.kind, panel, x, sums),
        }
    }
}

/// [`Affine::forward`] as a candle operation: `x [.., cols]` to `[.., rows]`.
struct Forward<'a>(&'a Affine);

impl CustomOp1 for Forward<'_> {
    fn name(&self) -> &'static str {
        "packed linear layer"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, cols) = self.0.shape();
        let mut dims = layout.dims().to_vec();
        if dims.last() != Some(&cols) {
            candle_core::bail!("a product with [{rows}, {cols}] was given {dims:?}");
        }
        let x = storage.as_slice::<f32>()?;
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a packed layer needs contiguous activations");
        };
        let out = self.0.forward(Input::Plain(&x[start..end]));
        *dims.last_mut().expect("checked above") = rows;
        Ok((CpuStorage::F32(out), dims.into()))
    }
}

/// The layer's result for `x [.., cols]`, in f32 on the CPU.
pub(crate) fn apply(layer: &Affine, x: &Tensor) -> candle_core::Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Forward(layer))
}
