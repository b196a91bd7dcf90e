//! The decoder: Qwen2.5. Takes embeddings at any position; keeps its cache outside the layers.
//!
//! Source: transformers `Qwen2ForCausalLM`; layout of candle-transformers' `voxtral_llama`. A forward pass takes the next tokens of *many*
//! sequences as one `[n, hidden]` matrix: every matrix product runs once for all of them, only attention goes sequence by sequence.

mod attention;
mod config;
mod plain;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, RmsNorm};

pub use config::Config;

use crate::kv::{self, KvType, Pool, Sequence};
use crate::linear::{Linear, Matrix};
use crate::weights::Weights;
use crate::{Error, Result};
use attention::{Attention, Rotary};

#[derive(Debug)]
struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A norm, for tensors and for plain rows.
#[derive(Debug)]
struct Norm {
    tensors: RmsNorm,
    weight: Vec<f32>,
    epsilon: f32,
}

#[derive(Debug)]
struct Layer {
    input_norm: Norm,
    attention: Attention,
    post_norm: Norm,
    mlp: Mlp,
}

/// The decoder's weights.
#[derive(Debug)]
pub struct Decoder {
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Norm,
    /// `None`: the embedding serves as head, too.
    head: Option<Linear>,
    rotary: Rotary,
    config: Config,
    device: Device,
    dtype: DType,
}

/// One sequence's share of a forward pass.
#[derive(Debug)]
pub struct Share<'a> {
    /// Where its past is kept and its new keys and values go. All shares of a pass are of one pool.
    pub sequence: &'a mut Sequence,
    /// How many rows of the input are its next tokens.
    pub tokens: usize,
}

impl Decoder {
    pub(crate) fn load(weights: &Weights, config: &Config) -> Result<Self> {
        let d = config.hidden_size;
        let norm = |name: &str| -> Result<Norm> {
            let weight = weights.tensor(name, &[d])?;
            let tensors = RmsNorm::new(weight.clone(), config.rms_norm_eps);
            Ok(Norm { tensors, weight: weight.to_dtype(DType::F32)?.to_vec1()?, epsilon: config.rms_norm_eps as f32 })
        };
        let layer = |n: usize| -> Result<Layer> {
            let name = |part: &str| format!("model.layers.{n}.{part}");
            let ffn = config.intermediate_size;
            Ok(Layer {
                input_norm: norm(&name("input_layernorm.weight"))?,
                attention: Attention::load(weights, &name("self_attn"), n, config)?,
                post_norm: norm(&name("post_attention_layernorm.weight"))?,
                mlp: Mlp {
                    gate: weights.linear(&name("mlp.gate_proj"), ffn, d, false)?,
                    up: weights.linear(&name("mlp.up_proj"), ffn, d, false)?,
                    down: weights.linear(&name("mlp.down_proj"), d, ffn, false)?,
                },
            })
        };
        // A head of its own counts even where the config calls the embedding tied: the weights are right.
        let tied = config.tie_word_embeddings && !weights.has("lm_head.weight");
        let head = if tied { None } else { Some(weights.linear("lm_head", config.vocab_size, d, false)?) };
        let table = "model.embed_tokens.weight";
        let embedding = match weights.quantised(table, config.vocab_size, d)? {
            Some(quantised) => quantised,
            None => Matrix::dense(weights.tensor(table, &[config.vocab_size, d])?)?,
        };
        Ok(Self {
            embedding,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            norm: norm("model.norm.weight")?,
            head,
            rotary: Rotary::new(config),
            config: config.clone(),
            device: weights.device().clone(),
            dtype: weights.dtype(),
        })
    }

    /// The linear layer `name` as the official checkpoint calls it (`model.layers.3.self_attn.q_proj`), for low-rank updates.
    pub(crate) fn linear_mut(&mut self, name: &str) -> Option<&mut Linear> {
        let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let layer = self.layers.get_mut(layer.parse::<usize>().ok()?)?;
        Some(match part {
            "self_attn.q_proj" => &mut layer.attention.query,
            "self_attn.k_proj" => &mut layer.attention.key,
            "self_attn.v_proj" => &mut layer.attention.value,
            "self_attn.o_proj" => &mut layer.attention.out,
            "mlp.gate_proj" => &mut layer.mlp.gate,
            "mlp.up_proj" => &mut layer.mlp.up,
            "mlp.down_proj" => &mut layer.mlp.down,
            _ => return None,
        })
    }

    /// Its shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A pool for the keys and values of `tokens` tokens of this decoder's sequences. `kind` is for the CPU; a GPU stores what it computes with.
    ///
    /// # Errors
    /// No memory.
    pub fn pool(&self, tokens: usize, kind: KvType) -> Result<Pool> {
        let c = &self.config;
        let shape = kv::Shape { layers: c.num_hidden_layers, kv_heads: c.num_key_value_heads, head: c.head() };
        let on = (!self.device.is_cpu()).then_some((&self.device, self.dtype));
        Pool::new(shape, tokens, kind, on)
    }

    /// As [`Decoder::pool`], stored as on a GPU wherever the decoder is: its tables can be tested without one.
    ///
    /// # Errors
    /// No memory.
    pub fn tensor_pool(&self, tokens: usize) -> Result<Pool> {
        let c = &self.config;
        let shape = kv::Shape { layers: c.num_hidden_layers, kv_heads: c.num_key_value_heads, head: c.head() };
        Pool::new(shape, tokens, KvType::F32, Some((&self.device, self.dtype)))
    }

    /// Embeddings `[n, hidden]` of token ids.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.config.vocab_size) {
            return Err(Error::Input(format!("token {id} is outside the vocabulary of {}", self.config.vocab_size)));
        }
        Ok(self.embedding.rows(ids, &self.device, self.dtype)?)
    }

    /// Runs the next tokens of each share, `x [sum of tokens, hidden]` in their order, and gives the normalised hidden states, same shape.
    /// Every sequence then holds its new tokens; on an error none does.
    ///
    /// # Errors
    /// More tokens than the context or the pool holds, or candle's.
    pub fn forward(&self, x: &Tensor, shares: &mut [Share<'_>]) -> Result<Tensor> {
        if !shares.windows(2).all(|pair| pair[0].sequence.is_beside(pair[1].sequence)) {
            return Err(Error::Input("sequences of different pools in one pass".into()));
        }
        let limit = self.config.max_position_embeddings;
        for share in shares.iter_mut() {
            let needed = share.sequence.len() + share.tokens;
            if needed > limit {
                return Err(Error::Input(format!("{needed} tokens; the decoder's context holds {limit}")));
            }
            share.sequence.reserve(share.tokens)?;
        }
        let positions = shares.iter().flat_map(|s| s.sequence.len()..s.sequence.len() + s.tokens);
        #[cfg_attr(not(feature = "flash-attn"), expect(unused_mut, reason = "tables are added to them"))]
        let mut angles = self.rotary.angles(positions);
        if self.is_plain(shares) && x.dtype() == DType::F32 {
            let rows = self.forward_plain(x.flatten_all()?.to_vec1()?, shares, &angles);
            for share in shares {
                share.sequence.advance(share.tokens);
            }
            return Ok(Tensor::from_vec(rows, x.shape(), x.device())?);
        }
        #[cfg(feature = "flash-attn")]
        if self.device.is_cuda() && matches!(x.dtype(), DType::BF16 | DType::F16) {
            let all = shares.iter().map(|share| (&*share.sequence, share.tokens));
            angles.paging = Some(kv::Paging::of(all, &self.device)?);
        }
        let mut x = x.clone();
        for layer in &self.layers {
            x = (&x + layer.attention.forward(&layer.input_norm.tensors.forward(&x)?, shares, &angles)?)?;
            let heard = layer.post_norm.tensors.forward(&x)?;
            let inner = (layer.mlp.gate.forward(&heard)?.silu()? * layer.mlp.up.forward(&heard)?)?;
            x = (&x + layer.mlp.down.forward(&inner)?)?;
        }
        for share in shares {
            share.sequence.advance(share.tokens);
        }
        Ok(self.norm.tensors.forward(&x)?)
    }

    /// Logits `[n, vocab]` in f32 of hidden states `[n, hidden]`.
    ///
    /// # Errors
    /// candle's.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = match &self.head {
            Some(head) => head.forward(hidden)?,
            None => self.embedding.product(hidden)?,
        };
        Ok(logits.to_dtype(DType::F32)?)
    }
}
