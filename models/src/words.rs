//! nano's second ear: Whisper's own text decoder on the encoder's output, while the sound is still coming in.
//!
//! A crutch, meant to be outgrown: it hears words only. The Step-Audio checkpoints have none. Source: OpenAI Whisper `decoding.py` (greedy,
//! no timestamps, `suppress_tokens`, no-speech probability), faster-whisper's defaults. Streaming: LocalAgreement-2 (Liu et al. 2020;
//! whisper_streaming): what two guesses in a row begin with is committed, word by word, and never taken back. Keys and values of committed
//! words and of final sound are kept, so that a guess costs what is new.

use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::{log_softmax, softmax, softmax_last_dim};
use candle_nn::{LayerNorm, Module};

use crate::encoder;
use crate::kernels;
use crate::linear::{Linear, Matrix};
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;
use crate::{Error, Result};

/// Tokens a second that no speaker exceeds; more is a loop.
const TOKENS_A_SECOND: usize = 8;
/// Tokens of a sentence that is looked for when it is said over and over.
const LONGEST_LOOP: usize = 32;
/// Above this probability of no speech, and below this mean log probability of a token, nothing was said. Whisper has 0.6 and −1; its "you"
/// in two seconds of silence has 0.91 and −0.75, the clips of tests/audio all have less than 0.05 and more than −0.2.
const NO_SPEECH: f32 = 0.6;
const UNSURE: f32 = -0.5;
/// A space alone, which Whisper never begins with.
const BLANK: u32 = 220;
/// Symbols that are no speech, from the checkpoint's `suppress_ids`: brackets, notes, dashes at a start and their like.
const SYMBOLS: [u32; 82] = [
    1, 2, 7, 8, 9, 10, 14, 25, 26, 27, 28, 29, 31, 58, 59, 60, 61, 62, 63, 90, 91, 92, 93, 359, 503, 522, 542, 873,
    893, 902, 918, 922, 931, 1350, 1853, 1982, 2460, 2627, 3246, 3253, 3268, 3536, 3846, 3961, 4183, 4667, 6585, 6647,
    7273, 9061, 9383, 10428, 10929, 11938, 12033, 12331, 12562, 13793, 14157, 14635, 15265, 15618, 16553, 16604, 18362,
    18956, 20075, 21675, 22520, 26130, 26161, 26435, 28279, 29464, 31650, 32302, 32470, 36865, 42863, 47425, 49870,
    50254,
];

/// Keys and values of one attention, `[heads, tokens, head]`.
type Kv = (Tensor, Tensor);

#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm: LayerNorm,
    heads: usize,
}

#[derive(Debug)]
struct Layer {
    own: Attention,
    sound: Attention,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
}

/// The word ear.
#[derive(Debug)]
pub struct WordEar {
    embedding: Matrix,
    positions: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
    tokenizer: Tokenizer,
    prompt: [u32; 4],
    end: u32,
    no_speech: u32,
    /// Added to the logits: −∞ for what must not be written.
    suppress: Tensor,
    context: usize,
    device: Device,
}

/// The words of one segment as far as they are known.
#[derive(Debug, Clone, Default)]
pub struct Words {
    /// Of each layer, for the final sound.
    sound: Vec<Kv>,
    frames: usize,
    /// Of each layer, for the prompt and all committed tokens but the last.
    past: Vec<Kv>,
    committed: Vec<u32>,
    /// What the last guess had behind them.
    before: Vec<u32>,
}

/// One reading of a segment, from its committed words on. Made token by token, so that its maker can do other things between.
#[derive(Debug)]
pub struct Guess {
    sound: Vec<Kv>,
    past: Vec<Kv>,
    /// Prompt, committed and guessed tokens.
    ids: Vec<u32>,
    /// How many of them are in `past`.
    done: usize,
    /// How many are not guessed.
    given: usize,
    limit: usize,
    /// Log probability of all guessed tokens together.
    sum: f32,
    silence: f32,
}

/// What a guess brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// Committed by it: to be put behind what was committed before.
    pub committed: String,
    /// What seems to follow.
    pub tentative: String,
}

impl Attention {
    fn load(weights: &Weights, name: &str, norm: &str, d: usize, heads: usize) -> Result<Self> {
        let linear = |part: &str, bias| linear(weights, &format!("{name}.{part}"), d, d, bias);
        Ok(Self {
            query: linear("q_proj", true)?,
            key: linear("k_proj", false)?,
            value: linear("v_proj", true)?,
            out: linear("out_proj", true)?,
            norm: layer_norm(weights, norm, d)?,
            heads,
        })
    }

    /// `x [n, d]` to `[heads, n, head]`.
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (n, d) = x.dims2()?;
        Ok(x.reshape((n, self.heads, d / self.heads))?.transpose(0, 1)?.contiguous()?)
    }

    fn keys_and_values(&self, x: &Tensor) -> Result<Kv> {
        Ok((self.split(&self.key.forward(x)?)?, self.split(&self.value.forward(x)?)?))
    }

    /// Normalised `x [n, d]` over `kv`; `causal`: the last n of them are its own.
    fn attend(&self, x: &Tensor, (k, v): &Kv, causal: bool) -> Result<Tensor> {
        let (n, d) = x.dims2()?;
        let q = (self.split(&self.query.forward(x)?)? * ((d / self.heads) as f64).powf(-0.5))?;
        let mut scores = q.matmul(&k.transpose(D::Minus2, D::Minus1)?)?;
        if causal && n > 1 {
            let all = k.dim(1)?;
            let seen = |i: usize| (0..all).map(move |j| if j + n <= all + i { 0f32 } else { f32::NEG_INFINITY });
            let mask = Tensor::from_iter((0..n).flat_map(seen), x.device())?.reshape((1, n, all))?;
            scores = scores.broadcast_add(&mask)?;
        }
        let mixed = softmax_last_dim(&scores)?.matmul(v)?.transpose(0, 1)?.reshape((n, d))?;
        Ok(self.out.forward(&mixed)?)
    }
}

impl WordEar {
    /// From tensors under Hugging Face's names and Whisper's tokenizer.
    pub(crate) fn load(weights: &Weights, tokenizer: &Path, config: &encoder::Config) -> Result<Self> {
        let tokenizer = Tokenizer::from_file(tokenizer)?;
        let id = |token: &str| tokenizer.id(token).ok_or_else(|| Error::Tokenizer(format!("Whisper's lacks {token}")));
        let (d, heads) = (config.n_audio_state, config.n_audio_head);
        let (vocab, _) = weights.shape2("model.decoder.embed_tokens.weight")?;
        let (context, _) = weights.shape2("model.decoder.embed_positions.weight")?;
        let layer = |n: usize| -> Result<Layer> {
            let name = |part: &str| format!("model.decoder.layers.{n}.{part}");
            let attention =
                |part: &str| Attention::load(weights, &name(part), &name(&format!("{part}_layer_norm")), d, heads);
            Ok(Layer {
                own: attention("self_attn")?,
                sound: attention("encoder_attn")?,
                up: linear(weights, &name("fc1"), 4 * d, d, true)?,
                down: linear(weights, &name("fc2"), d, 4 * d, true)?,
                norm: layer_norm(weights, &name("final_layer_norm"), d)?,
            })
        };
        let end = id("<|endoftext|>")?;
        let silent = |i: u32| i > end || SYMBOLS.contains(&i);
        let suppress = (0..vocab as u32).map(|i| if silent(i) { f32::NEG_INFINITY } else { 0.0 });
        let no_speech = id("<|nospeech|>").or_else(|_| id("<|nocaptions|>"))?;
        if [end, no_speech, BLANK].into_iter().any(|id| id as usize >= vocab) {
            return Err(Error::Tokenizer(format!("Whisper's has ids beyond its decoder's {vocab}")));
        }
        Ok(Self {
            embedding: eight_bit(weights.tensor("model.decoder.embed_tokens.weight", &[vocab, d])?)?,
            positions: weights.tensor("model.decoder.embed_positions.weight", &[context, d])?,
            layers: (0..config.n_audio_layer).map(layer).collect::<Result<_>>()?,
            norm: layer_norm(weights, "model.decoder.layer_norm", d)?,
            prompt: [id("<|startoftranscript|>")?, id("<|en|>")?, id("<|transcribe|>")?, id("<|notimestamps|>")?],
            end,
            no_speech,
            suppress: Tensor::from_iter(suppress, weights.device())?,
            tokenizer,
            context,
            device: weights.device().clone(),
        })
    }

    /// Takes normalised hidden states `[frames, state]` at 50 Hz that are final.
    ///
    /// # Errors
    /// candle's.
    pub fn hear(&self, words: &mut Words, hidden: &Tensor) -> Result<()> {
        words.sound = self.with(&words.sound, hidden)?;
        words.frames += hidden.dim(0)?;
        Ok(())
    }

    /// Keys and values of the sound with more of it.
    fn with(&self, sound: &[Kv], hidden: &Tensor) -> Result<Vec<Kv>> {
        if hidden.dim(0)? == 0 {
            return Ok(sound.to_vec());
        }
        let hidden = hidden.to_dtype(DType::F32)?;
        let layers = self.layers.iter().enumerate();
        layers.map(|(n, layer)| joined(sound.get(n), layer.sound.keys_and_values(&hidden)?)).collect()
    }

    /// Begins to read a segment that goes on with `tail [frames, state]`, which need not be final, and ends with it.
    ///
    /// # Errors
    /// candle's.
    pub fn guess(&self, words: &Words, tail: &Tensor) -> Result<Guess> {
        let frames = words.frames + tail.dim(0)?;
        let ids: Vec<u32> = self.prompt.iter().chain(&words.committed).copied().collect();
        let most = self.prompt.len() + (8 + frames * TOKENS_A_SECOND / 50).min(self.context / 2);
        Ok(Guess {
            sound: self.with(&words.sound, tail)?,
            past: words.past.clone(),
            done: if words.past.is_empty() { 0 } else { ids.len() - 1 },
            given: ids.len(),
            limit: if frames == 0 { 0 } else { most },
            ids,
            sum: 0.0,
            silence: 0.0,
        })
    }

    /// Adds a token to a guess; `false` when it is complete.
    ///
    /// # Errors
    /// candle's.
    pub fn step(&self, guess: &mut Guess) -> Result<bool> {
        if guess.ids.len() >= guess.limit {
            self.cut(guess, true);
            return Ok(false);
        }
        let first = guess.ids.len() == self.prompt.len();
        let y = self.forward(guess)?;
        if first {
            // How likely Whisper thinks silence is stands behind the very first token of the prompt.
            let start = softmax(&self.embedding.product(&y.narrow(0, 0, 1)?)?, D::Minus1)?;
            guess.silence = start.flatten_all()?.get(self.no_speech as usize)?.to_scalar()?;
        }
        let logits = self.embedding.product(&y.narrow(0, y.dim(0)? - 1, 1)?)?.flatten_all()?;
        let logits = log_softmax(&(logits + &self.suppress)?, D::Minus1)?.to_vec1::<f32>()?;
        let allowed = logits.iter().zip(0u32..).filter(|(_, i)| !first || (*i != self.end && *i != BLANK));
        let Some((logprob, best)) = allowed.max_by(|a, b| a.0.total_cmp(b.0)) else { return Ok(false) };
        guess.sum += logprob;
        if best == self.end {
            return Ok(false);
        }
        guess.ids.push(best);
        Ok(!self.cut(guess, false))
    }

    /// Leaves once what the end of a guess says over and over; whether it does. What was told stays told.
    fn cut(&self, guess: &mut Guess, is_too_long: bool) -> bool {
        let Some(keep) = looped(&guess.ids[self.prompt.len()..], is_too_long) else { return false };
        guess.ids.truncate((self.prompt.len() + keep).max(guess.given));
        true
    }

    /// Puts the tokens through that are not in the past yet: normalised `[n, d]`.
    fn forward(&self, guess: &mut Guess) -> Result<Tensor> {
        let (from, n) = (guess.done, guess.ids.len() - guess.done);
        let mut x = self.embedding.rows(&guess.ids[from..], &self.device, DType::F32)?;
        x = (x + self.positions.narrow(0, from, n)?)?;
        for (i, (layer, sound)) in self.layers.iter().zip(&guess.sound).enumerate() {
            let heard = layer.own.norm.forward(&x)?;
            let kv = joined(guess.past.get(i), layer.own.keys_and_values(&heard)?)?;
            x = (&x + layer.own.attend(&heard, &kv, true)?)?;
            if i < guess.past.len() {
                guess.past[i] = kv;
            } else {
                guess.past.push(kv);
            }
            x = (&x + layer.sound.attend(&layer.sound.norm.forward(&x)?, sound, false)?)?;
            let inner = layer.up.forward(&layer.norm.forward(&x)?)?.gelu_erf()?;
            x = (&x + layer.down.forward(&inner)?)?;
        }
        guess.done = guess.ids.len();
        Ok(self.norm.forward(&x)?)
    }

    /// What a guess brought: all of it if the segment `ended` there, else what it and the one before it begin with, up to a word's end.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn settle(&self, words: &mut Words, guess: &Guess, ended: bool) -> Result<Reading> {
        let guessed = &guess.ids[guess.given..];
        let unsure = guess.sum / (guessed.len() + 1) as f32 <= UNSURE;
        if words.committed.is_empty() && guess.silence > NO_SPEECH && unsure {
            words.before.clear();
            return Ok(Reading::default());
        }
        let agreed = if ended {
            guessed.len()
        } else {
            let same = words.before.iter().zip(guessed).take_while(|(a, b)| a == b).count();
            // A word ends where the next begins: with a space.
            let begins = |at: usize| self.tokenizer.decode(&guessed[at..=at]).is_ok_and(|text| text.starts_with(' '));
            (1..=same.min(guessed.len().saturating_sub(1))).rev().find(|at| begins(*at)).unwrap_or(0)
        };
        let before = self.text(&words.committed)?;
        words.committed.extend(&guessed[..agreed]);
        words.before = guessed[agreed..].to_vec();
        if agreed > 0 {
            let keep = self.prompt.len() + words.committed.len() - 1;
            let cut = |(k, v): &Kv| Ok((k.narrow(1, 0, keep)?.copy()?, v.narrow(1, 0, keep)?.copy()?));
            words.past = guess.past.iter().map(cut).collect::<Result<_>>()?;
        }
        let committed = self.text(&words.committed)?;
        let all: Vec<u32> = words.committed.iter().chain(&words.before).copied().collect();
        let tentative = self.text(&all)?;
        let new = |longer: &str, shorter: &str| longer.strip_prefix(shorter).unwrap_or_default().to_owned();
        Ok(Reading { tentative: new(&tentative, &committed), committed: new(&committed, &before) })
    }

    /// All committed words.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn said(&self, words: &Words) -> Result<String> {
        self.text(&words.committed)
    }

    fn text(&self, ids: &[u32]) -> Result<String> {
        Ok(self.tokenizer.decode(ids)?.trim_start().to_owned())
    }
}

/// More keys and values behind those there are.
fn joined(before: Option<&Kv>, (k, v): Kv) -> Result<Kv> {
    Ok(match before {
        Some((past_k, past_v)) => (Tensor::cat(&[past_k, &k], 1)?, Tensor::cat(&[past_v, &v], 1)?),
        None => (k, v),
    })
}

/// Reading is bound by memory, and 8 bits lose no word.
fn eight_bit(weight: Tensor) -> Result<Matrix> {
    let (rows, cols) = weight.dims2()?;
    if !weight.device().is_cpu() {
        return Ok(Matrix::Dense(weight));
    }
    let quantised = QTensor::quantize(&weight, GgmlDType::Q8_0)?;
    let packed = kernels::repack(&quantised.data()?, GgmlDType::Q8_0, rows, cols);
    Ok(Matrix::repacked(packed.map_err(|e| Error::tensor("of the word ear", e))?))
}

fn linear(weights: &Weights, name: &str, out: usize, input: usize, bias: bool) -> Result<Linear> {
    let weight = eight_bit(weights.tensor(&format!("{name}.weight"), &[out, input])?)?;
    let bias = if bias { Some(weights.tensor(&format!("{name}.bias"), &[out])?) } else { None };
    Linear::new(weight, bias)
}

fn layer_norm(weights: &Weights, name: &str, d: usize) -> Result<LayerNorm> {
    let tensor = |part: &str| weights.tensor(&format!("{name}.{part}"), &[d]);
    Ok(LayerNorm::new(tensor("weight")?, tensor("bias")?, 1e-5))
}

/// If the end says the same over and over, as nobody does: how many tokens are left when it is said once. A few words may be said three times, a
/// sentence twice; and in more tokens than anybody says in that time, nothing twice.
fn looped(ids: &[u32], is_too_long: bool) -> Option<usize> {
    let loops = |n: usize| {
        // Since where each token is the one that comes n later.
        let since = (0..ids.len().saturating_sub(n)).rev().take_while(|i| ids[*i] == ids[i + n]).last()?;
        let times = if is_too_long { 2 } else { 3 + usize::from(n < 6) };
        (times * n >= 6 && ids.len() - since >= times * n).then_some(since + n)
    };
    (1..=LONGEST_LOOP).find_map(loops)
}

#[cfg(test)]
mod tests {
    use super::looped;

    #[test]
    fn what_is_said_over_and_over_is_kept_once() {
        let looped_in_time = |ids: &[u32]| looped(ids, false);
        assert_eq!(looped_in_time(&[7, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3]), Some(4));
        assert_eq!(looped_in_time(&[7, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]), None);
        assert_eq!(looped_in_time(&[5, 5, 5, 5]), None, "a short word may be");
        assert_eq!(looped_in_time(&[5; 8]), Some(2));
        // "Ask what you can do for your country." is nine tokens.
        let sentence: Vec<u32> = (0..27).map(|i| i % 9).collect();
        assert_eq!((looped_in_time(&sentence), looped_in_time(&sentence[..26])), (Some(9), None));
        assert_eq!(looped(&sentence[..20], true), Some(9), "the second time is not whole, and the time is over");
        assert_eq!(looped(&sentence[..17], true), None);
        assert_eq!(looped(&[], true), None);
    }
}
