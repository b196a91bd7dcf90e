//! Matrices that may be dense or quantised, and the linear layer made of one, with an optional low-rank update applied apart.

use std::sync::Arc;

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};

use crate::Result;
use crate::kernels::{self, QMatrix};

/// A weight `[rows, cols]`.
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    Dense(Tensor),
    /// For our kernels, CPU.
    Packed(Arc<QMatrix>),
    /// For candle's kernels, GPU.
    Quantised(Arc<QTensor>),
}

impl Matrix {
    /// `x [n, cols]` times the transpose: `[n, rows]`.
    pub(crate) fn product(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Dense(w) => x.matmul(&w.t()?),
            Self::Packed(w) => kernels::product(w, x),
            // candle's quantised kernels take and give f32.
            Self::Quantised(w) => QMatMul::from_arc(w.clone())?.forward(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype()),
        }
    }

    /// Rows `ids`, all inside the matrix: `[n, cols]`.
    pub(crate) fn rows(&self, ids: &[u32], device: &Device, dtype: DType) -> candle_core::Result<Tensor> {
        let at = || Tensor::new(ids, device);
        match self {
            Self::Dense(w) => w.index_select(&at()?, 0),
            Self::Packed(w) => {
                let values: Vec<f32> = ids.iter().flat_map(|id| w.values(*id as usize)).collect();
                Tensor::from_vec(values, (ids.len(), w.shape().1), device)?.to_dtype(dtype)
            }
            Self::Quantised(w) => w.embedding(&at()?)?.to_dtype(dtype),
        }
    }
}

/// `y = x Wᵀ + b + s · (x Aᵀ) Bᵀ`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
    /// `A [rank, in]` and `s · B [out, rank]`. Kept apart, because adding them to a quantised weight would round them away.
    update: Option<(Tensor, Tensor)>,
}

impl Linear {
    pub(crate) fn new(weight: Matrix, bias: Option<Tensor>) -> Self {
        Self { weight, bias, update: None }
    }

    /// Adds a low-rank update.
    pub(crate) fn update(&mut self, a: Tensor, b: &Tensor, scale: f64) -> Result<()> {
        self.update = Some((a, (b * scale)?));
        Ok(())
    }

    /// `x [n, in]` to `[n, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let mut y = self.weight.product(x)?;
        if let Some((a, b)) = &self.update {
            y = (y + x.matmul(&a.t()?)?.matmul(&b.t()?)?)?;
        }
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}
