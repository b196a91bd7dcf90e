//! Matrices that may be dense or quantised, and the linear layer made of one, with an optional low-rank update applied apart.

use std::sync::Arc;

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};

use crate::kernels::{self, Affine, DMatrix, Packed, QMatrix};
use crate::{Error, Result};

/// A weight `[rows, cols]`.
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    Dense(Tensor),
    /// For our kernels, CPU.
    Packed(Arc<Packed>),
    /// For candle's kernels, GPU.
    Quantised(Arc<QTensor>),
}

impl Matrix {
    /// One that [`kernels::repack`] has made.
    pub(crate) fn repacked(matrix: QMatrix) -> Self {
        Self::Packed(Arc::new(Packed::Quantised(matrix)))
    }

    /// A dense one: packed for our kernels where they can take it.
    pub(crate) fn dense(w: Tensor) -> candle_core::Result<Self> {
        if !w.device().is_cpu() || w.dtype() != DType::F32 {
            return Ok(Self::Dense(w));
        }
        let (rows, cols) = w.dims2()?;
        let packed = DMatrix::new(&w.flatten_all()?.to_vec1()?, rows, cols);
        Ok(Self::Packed(Arc::new(Packed::Dense(packed))))
    }

    /// `x [n, cols]` times the transpose: `[n, rows]`.
    pub(crate) fn product(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Dense(w) => x.matmul(&w.t()?),
            Self::Packed(w) => kernels::apply(&Affine::new(w.clone(), None), x),
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
pub(crate) enum Linear {
    /// For our kernels.
    Packed(Affine),
    /// For candle's.
    Tensors {
        weight: Matrix,
        bias: Option<Tensor>,
        /// `A [rank, in]` and `s · B [out, rank]`. Kept apart, because adding them to a quantised weight would round them away.
        update: Option<(Tensor, Tensor)>,
    },
}

impl Linear {
    pub(crate) fn new(weight: Matrix, bias: Option<Tensor>) -> Result<Self> {
        let weight = if let Matrix::Dense(w) = weight { Matrix::dense(w)? } else { weight };
        let Matrix::Packed(weight) = weight else { return Ok(Self::Tensors { weight, bias, update: None }) };
        let bias = bias.map(|bias| bias.to_vec1::<f32>()).transpose()?;
        Ok(Self::Packed(Affine::new(weight, bias.as_deref())))
    }

    /// Adds a low-rank update.
    pub(crate) fn update(&mut self, a: Tensor, b: &Tensor, scale: f64) -> Result<()> {
        let b = (b * scale)?;
        let ((rank, input), (output, own)) = (a.dims2()?, b.dims2()?);
        let fits = |rows, cols| (output, input, own) == (rows, cols, rank);
        match self {
            Self::Packed(layer) if !fits(layer.shape().0, layer.shape().1) => {
                let shapes = format!("[{rank}, {input}] and [{output}, {own}] for {:?}", layer.shape());
                return Err(Error::Config(format!("a low-rank update that does not fit its layer: {shapes}")));
            }
            Self::Packed(layer) => layer.update(&a.flatten_all()?.to_vec1()?, &b.flatten_all()?.to_vec1()?),
            Self::Tensors { update, .. } => *update = Some((a, b)),
        }
        Ok(())
    }

    /// `x [n, in]` to `[n, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (weight, bias, update) = match self {
            Self::Packed(layer) => return kernels::apply(layer, x),
            Self::Tensors { weight, bias, update } => (weight, bias, update),
        };
        let mut y = weight.product(x)?;
        if let Some((a, b)) = update {
            y = (y + x.matmul(&a.t()?)?.matmul(&b.t()?)?)?;
        }
        match bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// See [`Affine::in_integers`].
    pub(crate) fn in_integers(self) -> Self {
        match self {
            Self::Packed(layer) => Self::Packed(layer.in_integers()),
            other => other,
        }
    }

    /// The layer for our kernels, where it is one.
    pub(crate) fn packed(&self) -> Option<&Affine> {
        match self {
            Self::Packed(layer) => Some(layer),
            Self::Tensors { .. } => None,
        }
    }
}
