//! nano's second ear: Whisper's own text decoder on the encoder's output.
//!
//! A crutch, meant to be outgrown: it hears words only. The Step-Audio checkpoints have none. Source: OpenAI Whisper `decoding.py` (greedy,
//! no timestamps, `suppress_tokens`, no-speech probability), faster-whisper's defaults.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{D, DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::whisper::Config;
use candle_transformers::models::whisper::model::{TextDecoder, Whisper};

use crate::encoder;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Tokens a second that no speaker exceeds; more is a loop.
const TOKENS_A_SECOND: usize = 8;
/// Above this probability of no speech, and below this mean log probability of a token, nothing was said. Whisper has 0.6 and −1; its "you"
/// in two seconds of silence has 0.91 and −0.75, the clips of tests/audio all have less than 0.05 and more than −0.2.
const NO_SPEECH: f32 = 0.6;
const UNSURE: f32 = -0.5;
/// Symbols that are no speech, from the checkpoint's `suppress_ids`: brackets, notes, dashes at a start and their like.
const SYMBOLS: [u32; 82] = [
    1, 2, 7, 8, 9, 10, 14, 25, 26, 27, 28, 29, 31, 58, 59, 60, 61, 62, 63, 90, 91, 92, 93, 359, 503, 522, 542, 873,
    893, 902, 918, 922, 931, 1350, 1853, 1982, 2460, 2627, 3246, 3253, 3268, 3536, 3846, 3961, 4183, 4667, 6585, 6647,
    7273, 9061, 9383, 10428, 10929, 11938, 12033, 12331, 12562, 13793, 14157, 14635, 15265, 15618, 16553, 16604, 18362,
    18956, 20075, 21675, 22520, 26130, 26161, 26435, 28279, 29464, 31650, 32302, 32470, 36865, 42863, 47425, 49870,
    50254,
];

/// The word ear.
pub struct WordEar {
    decoder: TextDecoder,
    tokenizer: Tokenizer,
    prompt: [u32; 4],
    end: u32,
    no_speech: u32,
    /// Added to the logits: −∞ for what must not be written.
    suppress: Tensor,
    context: usize,
    device: Device,
}

impl std::fmt::Debug for WordEar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WordEar").finish_non_exhaustive()
    }
}

impl WordEar {
    /// From tensors under Hugging Face's names and Whisper's tokenizer.
    pub(crate) fn load(
        tensors: HashMap<String, Tensor>,
        tokenizer: &Path,
        config: &encoder::Config,
        device: &Device,
    ) -> Result<Self> {
        let tokenizer = Tokenizer::from_file(tokenizer)?;
        let id = |token: &str| tokenizer.id(token).ok_or_else(|| Error::Tokenizer(format!("Whisper's lacks {token}")));
        let table = tensors.get("model.decoder.embed_tokens.weight");
        let vocab = table.ok_or_else(|| Error::tensor("decoder/embeddings", "is missing"))?.dim(0)?;
        let positions = tensors.get("model.decoder.embed_positions.weight");
        let context = positions.ok_or_else(|| Error::tensor("decoder/position_encodings", "is missing"))?.dim(0)?;
        let shape = Config {
            num_mel_bins: config.n_mels,
            max_source_positions: config.n_audio_ctx,
            d_model: config.n_audio_state,
            encoder_attention_heads: config.n_audio_head,
            encoder_layers: config.n_audio_layer,
            vocab_size: vocab,
            max_target_positions: context,
            decoder_attention_heads: config.n_audio_head,
            decoder_layers: config.n_audio_layer,
            suppress_tokens: Vec::new(),
        };
        let whisper = Whisper::load(&VarBuilder::from_tensors(tensors, DType::F32, device), shape)?;
        let end = id("<|endoftext|>")?;
        let silent = |i: u32| i > end || SYMBOLS.contains(&i);
        let suppress = (0..vocab as u32).map(|i| if silent(i) { f32::NEG_INFINITY } else { 0.0 });
        Ok(Self {
            decoder: whisper.decoder,
            prompt: [id("<|startoftranscript|>")?, id("<|en|>")?, id("<|transcribe|>")?, id("<|notimestamps|>")?],
            end,
            no_speech: id("<|nospeech|>").or_else(|_| id("<|nocaptions|>"))?,
            suppress: Tensor::from_iter(suppress, device)?,
            tokenizer,
            context,
            device: device.clone(),
        })
    }

    /// The words of one segment from its normalised hidden states `[frames, state]` at 50 Hz; empty when nobody speaks.
    ///
    /// `keep_on` is asked before each token: `false` ends the listening and gives what there is.
    pub fn words(&mut self, hidden: &Tensor, mut keep_on: impl FnMut() -> bool) -> Result<String> {
        let frames = hidden.dim(0)?;
        if frames == 0 {
            return Ok(String::new());
        }
        let sound = hidden.to_dtype(DType::F32)?.unsqueeze(0)?.contiguous()?;
        let limit = (self.context / 2).min(8 + frames * TOKENS_A_SECOND / 50);
        let mut ids = self.prompt.to_vec();
        let mut sum = 0f32;
        let mut silence = 0f32;
        self.decoder.reset_kv_cache();
        while ids.len() < self.prompt.len() + limit && keep_on() {
            let x = Tensor::new(ids.as_slice(), &self.device)?.unsqueeze(0)?;
            let first = ids.len() == self.prompt.len();
            let y = self.decoder.forward(&x, &sound, first)?;
            if first {
                // How likely Whisper thinks silence is stands behind the very first token of the prompt.
                let start = self.decoder.final_linear(&y.i((..1, ..1))?)?.i((0, 0))?;
                silence = candle_nn::ops::softmax(&start, D::Minus1)?.i(self.no_speech as usize)?.to_scalar()?;
            }
            let last = y.i((..1, ids.len() - 1..))?;
            let logits = (self.decoder.final_linear(&last)?.i((0, 0))? + &self.suppress)?;
            let logits = candle_nn::ops::log_softmax(&logits, D::Minus1)?.to_vec1::<f32>()?;
            let allowed = logits.iter().enumerate().filter(|(i, _)| !first || (*i as u32 != self.end && *i != 220));
            let Some((best, logprob)) = allowed.max_by(|a, b| a.1.total_cmp(b.1)) else { break };
            sum += logprob;
            if best as u32 == self.end {
                break;
            }
            ids.push(best as u32);
            if loops(&ids[self.prompt.len()..]) {
                break;
            }
        }
        let written = &ids[self.prompt.len()..];
        if silence > NO_SPEECH && sum / (written.len() + 1) as f32 <= UNSURE {
            return Ok(String::new());
        }
        Ok(self.tokenizer.decode(written)?.trim().to_owned())
    }
}

/// Whether the end repeats itself four times over.
fn loops(ids: &[u32]) -> bool {
    (1..=8).any(|n| {
        let tail = |k: usize| ids.len().checked_sub(k * n).map(|start| &ids[start..start + n]);
        n * 4 <= ids.len() && (2..=4).all(|k| tail(k) == tail(1)) && n * 4 >= 6
    })
}
