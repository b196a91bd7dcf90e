//! Whether a speaker has finished or merely pauses: what a checkpoint is asked behind the sound, and how the answer is read.
//!
//! Any checkpoint can be asked in words, and answers with the chance of *Yes* against *No*. A young model's yes is worth little, so a checkpoint may bring
//! a head of its own: one row of weights over the decoder's state behind the sound and its words, as small models for turn ends have it (LiveKit's
//! turn-detector reads the chance of the token that ends a turn from the same place, after training).

use std::path::Path;

use candle_core::{DType, Device};

use crate::prompt::{Piece, PromptFormat};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Words that are repeated to a head: the last ones tell.
const WORDS: usize = 24;

/// What is asked in words.
const QUESTION: &str = "\nHas the speaker finished the sentence? Answer Yes or No.";

/// How a checkpoint tells whether a speaker has finished.
#[derive(Debug, Clone)]
pub struct Finish {
    head: Option<Head>,
    yes: Vec<u32>,
    no: Vec<u32>,
}

/// Weights over a state of the decoder.
#[derive(Debug, Clone)]
struct Head {
    weight: Vec<f32>,
    bias: f32,
}

impl Finish {
    /// Asks in words.
    pub(crate) fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let first = |words: [&str; 4]| -> Result<Vec<u32>> {
            let all = words.iter().map(|word| Ok(tokenizer.text(word)?.first().copied()));
            Ok(all.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        };
        Ok(Self { head: None, yes: first(["Yes", "yes", " Yes", " yes"])?, no: first(["No", "no", " No", " no"])? })
    }

    /// Reads the state by these weights: `weight [hidden]` and `bias [1]`, safetensors in f32.
    pub(crate) fn with_head(self, bytes: &[u8], hidden: usize) -> Result<Self> {
        let path = Path::new("finish.safetensors");
        let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(|e| Error::file(path, e))?;
        let read = |name: &str, length: usize| {
            let tensor = tensors.get(name).ok_or_else(|| Error::tensor(name, "is missing"))?;
            if tensor.dims() != [length] {
                return Err(Error::tensor(name, format!("has the shape {:?}, not [{length}]", tensor.dims())));
            }
            if !crate::weights::finite(tensor)? {
                return Err(Error::tensor(name, "holds values that are not finite"));
            }
            Ok(tensor.to_dtype(DType::F32)?.to_vec1::<f32>()?)
        };
        Ok(Self { head: Some(Head { weight: read("weight", hidden)?, bias: read("bias", 1)?[0] }), ..self })
    }

    /// Whether [`Finish::chance`] takes the decoder's state `[hidden]` instead of its logits `[vocab]`.
    pub fn reads_state(&self) -> bool {
        self.head.is_some()
    }

    /// What stands behind a message's last sound to ask for it, where `words` were heard in that sound if any are known.
    pub fn question(&self, format: PromptFormat, words: Option<&str>) -> Vec<Piece> {
        if self.head.is_none() {
            return format.question(QUESTION);
        }
        let words: Vec<&str> = words.unwrap_or_default().split_whitespace().collect();
        // As the head was trained: a recogniser ends every sentence with a mark, finished or not.
        let last = words[words.len().saturating_sub(WORDS)..].join(" ").to_lowercase();
        vec![Piece::Text(format!("\n{}\n", last.trim_end_matches(['.', '?', '!', ',', '-', '…', ' '])))]
    }

    /// The chance, 0..=1, that the speaker has finished, from the last row behind the question.
    pub fn chance(&self, row: &[f32]) -> f32 {
        let odds = match &self.head {
            Some(head) => head.bias + head.weight.iter().zip(row).map(|(w, x)| w * x).sum::<f32>(),
            None => {
                let best = |ids: &[u32]| {
                    let of = ids.iter().filter_map(|id| row.get(*id as usize).copied());
                    of.fold(f32::NEG_INFINITY, f32::max)
                };
                best(&self.yes) - best(&self.no)
            }
        };
        1.0 / (1.0 + (-odds).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::{Finish, Head};
    use crate::prompt::{Piece, PromptFormat};

    #[test]
    fn a_yes_is_weighed_against_a_no_and_a_head_reads_the_state() {
        let mut finish = Finish { head: None, yes: vec![1, 9], no: vec![2] };
        assert!((finish.chance(&[0.0, 3.0, 3.0, 8.0]) - 0.5).abs() < 1e-6);
        assert!(finish.chance(&[0.0, 5.0, 3.0, 8.0]) > 0.85);
        let asked = finish.question(PromptFormat::Step, Some("so"));
        assert!(matches!(&asked[0], Piece::Control(end) if end == "<audio_end>"), "{asked:?}");
        finish.head = Some(Head { weight: vec![1.0, -1.0], bias: 0.0 });
        assert!(finish.reads_state() && finish.chance(&[2.0, 0.0]) > 0.85 && finish.chance(&[0.0, 2.0]) < 0.15);
        let asked = finish.question(PromptFormat::ChatMl, Some("What is the Capital of?"));
        assert_eq!(asked, [Piece::Text("\nwhat is the capital of\n".into())]);
        assert_eq!(finish.question(PromptFormat::ChatMl, None), [Piece::Text("\n\n".into())]);
    }
}
