//! The adaptor: encoder frames at 25 Hz to decoder embeddings at 12.5 Hz.
//!
//! Source: MODEL "Shape": convolution (kernel 3, stride 2, padding 1), GELU, linear, ReLU, linear.

use candle_core::Tensor;

use crate::Result;
use crate::encoder::Config;
use crate::linear::Linear;
use crate::weights::Weights;

/// The adaptor's weights.
#[derive(Debug)]
pub struct Adaptor {
    weight: Tensor,
    bias: Tensor,
    linear1: Linear,
    linear2: Linear,
    padding: usize,
    stride: usize,
    out: usize,
}

/// The frame before the next ones; none at a segment's beginning.
#[derive(Debug, Clone, Default)]
pub(crate) struct Carry(Option<Tensor>);

impl Adaptor {
    pub(crate) fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let d = config.n_audio_state;
        // Width between the two linear layers: 2048 in every published checkpoint, told by no config.
        let hidden = weights.length("adapter.linear1.bias")?;
        if hidden == 0 {
            return Err(crate::Error::tensor("adapter.linear1.bias", "is empty"));
        }
        Ok(Self {
            weight: weights.tensor("adapter.conv.weight", &[d, d, config.kernel_size])?,
            bias: weights.tensor("adapter.conv.bias", &[d])?.reshape((1, d, 1))?,
            linear1: weights.linear("adapter.linear1", hidden, d, true)?,
            linear2: weights.linear("adapter.linear2", config.llm_dim, hidden, true)?,
            padding: config.kernel_size / 2,
            stride: config.adapter_stride,
            out: config.llm_dim,
        })
    }

    /// One segment `[frames, state]` to `[ceil(frames / 2), llm_dim]`. What lies past its end counts as zero.
    pub fn forward(&self, frames: &Tensor) -> Result<Tensor> {
        if frames.dim(0)? == 0 {
            return Ok(Tensor::zeros((0, self.out), frames.dtype(), frames.device())?);
        }
        self.convolved(frames, self.padding)
    }

    /// The next frames of a segment, an even number of them unless they are its last. Kernel 3 and stride 2 only.
    pub(crate) fn next(&self, frames: &Tensor, carry: &mut Carry) -> Result<Tensor> {
        let (n, state) = frames.dims2()?;
        if n == 0 {
            return self.forward(frames);
        }
        let zero = || Tensor::zeros((1, state), frames.dtype(), frames.device());
        let before = carry.0.take().map_or_else(zero, Ok)?;
        carry.0 = Some(frames.narrow(0, n - 1, 1)?);
        let mut seen = vec![before, frames.clone()];
        if n % 2 == 1 {
            seen.push(zero()?);
        }
        self.convolved(&Tensor::cat(&seen, 0)?, 0)
    }

    fn convolved(&self, frames: &Tensor, padding: usize) -> Result<Tensor> {
        let x = frames.t()?.unsqueeze(0)?.contiguous()?.conv1d(&self.weight, padding, self.stride, 1, 1)?;
        let x = x.broadcast_add(&self.bias)?.gelu_erf()?.squeeze(0)?.t()?.contiguous()?;
        Ok(self.linear2.forward(&self.linear1.forward(&x)?.relu()?)?)
    }
}
