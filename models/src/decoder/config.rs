//! `text_config` of a checkpoint.

use serde::Deserialize;

use crate::{Error, Result};

/// The decoder's shape, with Qwen2.5's names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Config {
    /// Width.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of the feed-forward.
    pub intermediate_size: usize,
    /// Tokens known.
    pub vocab_size: usize,
    /// Tokens a sequence may have.
    pub max_position_embeddings: usize,
    /// Base of the rotary angles.
    #[serde(default = "default_theta")]
    pub rope_theta: f64,
    /// Epsilon of the norms.
    #[serde(default = "default_eps")]
    pub rms_norm_eps: f64,
    /// Whether the embedding is the head.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Width of a head where it is not `hidden_size / num_attention_heads`.
    #[serde(default)]
    pub head_dim: Option<usize>,
}

fn default_theta() -> f64 {
    1e6
}

fn default_eps() -> f64 {
    1e-6
}

impl Config {
    /// Width of an attention head.
    pub fn head(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Refuses what no decoder can be.
    pub(crate) fn check(&self) -> Result<()> {
        let sane = (1..=65_536).contains(&self.hidden_size)
            && (1..=512).contains(&self.num_hidden_layers)
            && (1..=512).contains(&self.num_attention_heads)
            && self.num_key_value_heads > 0
            && self.num_attention_heads.is_multiple_of(self.num_key_value_heads)
            && (self.head_dim.is_some() || self.hidden_size.is_multiple_of(self.num_attention_heads))
            && (2..=1024).contains(&self.head())
            && self.head().is_multiple_of(2)
            && (1..=1 << 20).contains(&self.intermediate_size)
            && (1..=1 << 22).contains(&self.vocab_size)
            && (1..=1 << 22).contains(&self.max_position_embeddings)
            && self.rope_theta.is_finite()
            && self.rope_theta > 1.0
            && (0.0..1.0).contains(&self.rms_norm_eps);
        if sane { Ok(()) } else { Err(Error::Config(format!("text_config makes no decoder: {self:?}"))) }
    }
}
