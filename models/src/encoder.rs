//! The audio encoder: Whisper's, as Qwen2-Audio and Step-Audio use it. 100 mel frames a second in, 25 vectors a second out.
//!
//! Source: MODEL "Front end, exactly"; transformers `Qwen2AudioEncoder`; step-audio2 1.0.0. Two convolutions (the second halves the rate),
//! learned positions, pre-norm layers that attend to the whole segment or block by block (crate::ear), average pool by 2, layer norm.

mod plain;

use candle_core::{D, DType, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_nn::{LayerNorm, Module};
use serde::Deserialize;

use crate::linear::Linear;
use crate::mel::Mel;
use crate::weights::Weights;
use crate::{Error, Result};
use plain::{Plain, Seen};

/// `audio_encoder_config` of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Config {
    /// Mel bins.
    pub n_mels: usize,
    /// Positions, 50 a second.
    pub n_audio_ctx: usize,
    /// Width.
    pub n_audio_state: usize,
    /// Attention heads.
    pub n_audio_head: usize,
    /// Blocks.
    pub n_audio_layer: usize,
    /// Width of the decoder behind the adaptor.
    pub llm_dim: usize,
    /// Of the adaptor's convolution.
    pub kernel_size: usize,
    /// Of the adaptor's convolution: frames a token.
    pub adapter_stride: usize,
}

impl Config {
    /// Refuses what no encoder can be.
    pub(crate) fn check(&self) -> Result<()> {
        let state = self.n_audio_state;
        let sane = (1..=1024).contains(&self.n_mels)
            && (2..=100_000).contains(&self.n_audio_ctx)
            && (1..=16_384).contains(&state)
            && self.n_audio_head > 0
            && state.is_multiple_of(self.n_audio_head)
            && (1..=256).contains(&self.n_audio_layer)
            && (1..=65_536).contains(&self.llm_dim)
            && (1..=31).contains(&self.kernel_size)
            && self.kernel_size % 2 == 1
            // Every length in `crate::mel::Lengths` says so.
            && self.adapter_stride == 2;
        if sane { Ok(()) } else { Err(Error::Config(format!("audio_encoder_config makes no encoder: {self:?}"))) }
    }
}

#[derive(Debug)]
struct Block {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    attn_ln: LayerNorm,
    up: Linear,
    down: Linear,
    mlp_ln: LayerNorm,
    heads: usize,
}

/// Keys and values `[1, heads, positions, head]`.
type Kv = (Tensor, Tensor);

/// Where a segment is that is encoded block by block.
#[derive(Debug, Clone, Default)]
pub(crate) struct Past {
    layers: Vec<Option<Kv>>,
    /// The same for plain rows.
    plain: Vec<Seen>,
    positions: usize,
}

impl Past {
    /// Positions encoded so far.
    pub(crate) fn positions(&self) -> usize {
        self.positions
    }
}

/// The encoder's weights.
#[derive(Debug)]
pub struct Encoder {
    conv1: (Tensor, Tensor),
    conv2: (Tensor, Tensor),
    positions: Tensor,
    blocks: Vec<Block>,
    after_norm: LayerNorm,
    state: usize,
    context: usize,
    /// For the CPU.
    plain: Option<Plain>,
}

impl Encoder {
    pub(crate) fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let d = config.n_audio_state;
        let conv = |name: &str, input: usize| -> Result<(Tensor, Tensor)> {
            let weight = weights.tensor(&format!("encoder.{name}.weight"), &[d, input, 3])?;
            Ok((weight, weights.tensor(&format!("encoder.{name}.bias"), &[d])?.reshape((1, d, 1))?))
        };
        let blocks = (0..config.n_audio_layer).map(|n| Block::load(weights, n, d, config.n_audio_head));
        let mut encoder = Self {
            conv1: conv("conv1", config.n_mels)?,
            conv2: conv("conv2", d)?,
            positions: weights.tensor("encoder.positional_embedding.weight", &[config.n_audio_ctx, d])?,
            blocks: blocks.collect::<Result<_>>()?,
            after_norm: layer_norm(weights, "encoder.after_norm", d)?,
            state: d,
            context: config.n_audio_ctx,
            plain: None,
        };
        encoder.plain = Plain::of(&encoder)?;
        Ok(encoder)
    }

    /// Hidden states `[valid, state]` at 50 Hz of each segment, before pooling and norm.
    ///
    /// `mels` come with the number of positions that count; what the mel holds beyond them is seen by the convolutions alone. Segments of
    /// different lengths go through in one padded batch, and none sees another's padding.
    ///
    /// # Errors
    /// A segment of more positions than the encoder has.
    pub fn hidden(&self, mels: &[(Mel, usize)]) -> Result<Vec<Tensor>> {
        let Some(longest) = mels.iter().map(|(_, valid)| *valid).max() else { return Ok(Vec::new()) };
        if longest > self.context {
            return Err(Error::Input(format!("a segment of {longest} positions; the encoder has {}", self.context)));
        }
        let (device, dtype) = (self.positions.device(), self.positions.dtype());
        if longest == 0 {
            return Ok(vec![self.nothing()?; mels.len()]);
        }
        if let Some(plain) = &self.plain {
            let one = |(mel, valid): &(Mel, usize)| match valid {
                0 => self.nothing(),
                _ => self.hidden_plain(plain, mel, *valid),
            };
            return mels.iter().map(one).collect();
        }
        let frames = mels.iter().map(|(mel, _)| mel.frames).max().unwrap_or(0);
        let rows = mels.iter().map(|(mel, _)| {
            let mel_tensor = Tensor::from_slice(&mel.data, (mel.n_mels, mel.frames), device)?.to_dtype(dtype)?;
            mel_tensor.pad_with_zeros(1, 0, frames - mel.frames)
        });
        let x = Tensor::stack(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let x = conv(&x, &self.conv1, 1, 1)?;
        let x = conv(&x, &self.conv2, 2, 1)?;
        let x = x.narrow(2, 0, longest)?.transpose(1, 2)?.contiguous()?;
        let mut x = x.broadcast_add(&self.positions.narrow(0, 0, longest)?)?;
        let mask = key_mask(mels, longest, &x)?;
        for block in &self.blocks {
            x = block.forward(&x, mask.as_ref(), None)?;
        }
        let cut = |(i, (_, valid)): (usize, &(Mel, usize))| Ok(x.get(i)?.narrow(0, 0, *valid)?);
        mels.iter().enumerate().map(cut).collect()
    }

    /// Hidden states `[positions, state]` of a segment's next positions, which see each other and up to `left` positions before them.
    ///
    /// `mel` has the frames from two before the first position's own (as far as there are any) to one behind the last one's.
    ///
    /// # Errors
    /// More positions than the encoder has.
    pub(crate) fn block(&self, mel: &Mel, positions: usize, past: &mut Past, left: usize) -> Result<Tensor> {
        let (first, end) = (past.positions, past.positions + positions);
        if end > self.context {
            return Err(Error::Input(format!("a segment of {end} positions; the encoder has {}", self.context)));
        }
        if let Some(plain) = &self.plain {
            let hidden = self.block_plain(plain, mel, first, positions, (&mut past.plain, left))?;
            past.positions = end;
            return Ok(hidden);
        }
        let (device, dtype) = (self.positions.device(), self.positions.dtype());
        let x = Tensor::from_slice(&mel.data, (1, mel.n_mels, mel.frames), device)?.to_dtype(dtype)?;
        // At a segment's beginning each convolution sees a zero where nothing was; later, what was.
        let edge = |x: Tensor| if first == 0 { x.pad_with_zeros(2, 1, 0) } else { Ok(x) };
        let x = conv(&edge(x)?, &self.conv1, 1, 0)?;
        let x = conv(&edge(x)?, &self.conv2, 2, 0)?;
        let x = x.transpose(1, 2)?.contiguous()?;
        let mut x = x.broadcast_add(&self.positions.narrow(0, first, positions)?)?;
        past.layers.resize_with(self.blocks.len(), || None);
        for (block, cached) in self.blocks.iter().zip(&mut past.layers) {
            x = block.forward(&x, None, Some((cached, left)))?;
        }
        past.positions = end;
        Ok(x.squeeze(0)?)
    }

    /// Hidden states of nothing.
    pub(crate) fn nothing(&self) -> Result<Tensor> {
        Ok(Tensor::zeros((0, self.state), self.positions.dtype(), self.positions.device())?)
    }

    /// Pools hidden states by 2 and normalises them: `[valid / 2, state]` at 25 Hz. An odd last position is dropped.
    pub fn pool(&self, hidden: &Tensor) -> Result<Tensor> {
        let (frames, state) = hidden.dims2()?;
        let pairs = hidden.narrow(0, 0, frames / 2 * 2)?.reshape((frames / 2, 2, state))?;
        if frames < 2 {
            return Ok(Tensor::zeros((0, state), hidden.dtype(), hidden.device())?);
        }
        Ok(self.after_norm.forward(&pairs.mean(1)?)?)
    }

    /// Normalises hidden states without pooling, as Whisper's own decoder wants them.
    pub fn norm(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.after_norm.forward(hidden)?)
    }
}

impl Block {
    fn load(weights: &Weights, n: usize, d: usize, heads: usize) -> Result<Self> {
        let name = |part: &str| format!("encoder.blocks.{n}.{part}");
        let linear = |part: &str, out, input, bias| weights.linear(&name(part), out, input, bias);
        Ok(Self {
            query: linear("attn.query", d, d, true)?,
            key: linear("attn.key", d, d, false)?,
            value: linear("attn.value", d, d, true)?,
            out: linear("attn.out", d, d, true)?,
            attn_ln: layer_norm(weights, &name("attn_ln"), d)?,
            up: linear("mlp.0", 4 * d, d, true)?,
            // Alone of them: behind the others Whisper's outliers, which share their scale with 31 smaller numbers, would cost a hundredth.
            down: linear("mlp.2", d, 4 * d, true)?.in_integers(),
            mlp_ln: layer_norm(weights, &name("mlp_ln"), d)?,
            heads,
        })
    }

    /// `cached` are the keys and values before `x`; the last so many positions of them and its own are kept for what follows.
    fn forward(&self, x: &Tensor, mask: Option<&Tensor>, cached: Option<(&mut Option<Kv>, usize)>) -> Result<Tensor> {
        let (batch, frames, state) = x.dims3()?;
        let heard = self.attn_ln.forward(x)?.reshape((batch * frames, state))?;
        let scale = (state as f64 / self.heads as f64).powf(-0.25);
        let split =
            |y: Tensor| y.reshape((batch, frames, self.heads, state / self.heads))?.transpose(1, 2)?.contiguous();
        let q = split((self.query.forward(&heard)? * scale)?)?;
        let mut k = split((self.key.forward(&heard)? * scale)?)?;
        let mut v = split(self.value.forward(&heard)?)?;
        if let Some((cached, left)) = cached {
            if let Some((before_k, before_v)) = cached.take() {
                (k, v) = (Tensor::cat(&[&before_k, &k], 2)?, Tensor::cat(&[&before_v, &v], 2)?);
            }
            let all = k.dim(2)?;
            let kept = all.min(left);
            // A copy, so that what is older goes.
            let last = |y: &Tensor| y.narrow(2, all - kept, kept)?.copy();
            *cached = if kept == 0 { None } else { Some((last(&k)?, last(&v)?)) };
        }
        let mut scores = q.matmul(&k.transpose(D::Minus2, D::Minus1)?)?;
        if let Some(mask) = mask {
            scores = scores.broadcast_add(mask)?;
        }
        let mixed = softmax_last_dim(&scores.to_dtype(DType::F32)?)?.to_dtype(v.dtype())?.matmul(&v)?;
        let mixed = mixed.transpose(1, 2)?.reshape((batch * frames, state))?;
        let x = (x.reshape((batch * frames, state))? + self.out.forward(&mixed)?)?;
        let inner = self.up.forward(&self.mlp_ln.forward(&x)?)?.gelu_erf()?;
        Ok((&x + self.down.forward(&inner)?)?.reshape((batch, frames, state))?)
    }
}

/// Hides the positions past each segment's end; `None` when all are equally long.
fn key_mask(mels: &[(Mel, usize)], longest: usize, like: &Tensor) -> Result<Option<Tensor>> {
    if mels.iter().all(|(_, valid)| *valid == longest) {
        return Ok(None);
    }
    let hide = |valid: usize| (0..longest).map(move |i| if i < valid { 0f32 } else { f32::NEG_INFINITY });
    // A segment without any position keeps its first key, or its softmax would be 0/0; its rows are cut off anyway.
    let mask: Vec<f32> = mels.iter().flat_map(|(_, valid)| hide((*valid).max(1))).collect();
    let mask = Tensor::from_vec(mask, (mels.len(), 1, 1, longest), like.device())?;
    Ok(Some(mask.to_dtype(like.dtype())?))
}

fn conv(x: &Tensor, (weight, bias): &(Tensor, Tensor), stride: usize, padding: usize) -> Result<Tensor> {
    Ok(x.conv1d(weight, padding, stride, 1, 1)?.broadcast_add(bias)?.gelu_erf()?)
}

/// Layer norm with Whisper's epsilon.
fn layer_norm(weights: &Weights, name: &str, d: usize) -> Result<LayerNorm> {
    let weight = weights.tensor(&format!("{name}.weight"), &[d])?;
    Ok(LayerNorm::new(weight, weights.tensor(&format!("{name}.bias"), &[d])?, 1e-5))
}
