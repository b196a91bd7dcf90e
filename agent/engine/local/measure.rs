//! The model's works one by one, to be timed: what `hearken bench` runs.

use std::path::Path;
use std::time::{Duration, Instant};

use hearken_models::checkpoint::{Checkpoint, Options};
use hearken_models::decoder::Share;
use hearken_models::kv::KvType;
use hearken_models::prompt::{Content, Item, Piece, Role, Thinking};
use hearken_models::{DType, Error, Result, Tensor};

/// One work that can be timed.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Its name.
    pub name: &'static str,
    /// What is done, a second.
    pub unit: &'static str,
    /// How much of it a run does.
    pub amount: f64,
    /// Tokens in the cache before it begins.
    context: usize,
    /// Tokens of one pass.
    tokens: usize,
    /// Sequences side by side.
    streams: usize,
    /// Passes of one run.
    passes: usize,
}

const fn decoder(name: &'static str, context: usize, tokens: usize, streams: usize, passes: usize) -> Measured {
    let amount = (tokens * streams * passes) as f64;
    Measured { name, unit: "tokens/s", amount, context, tokens, streams, passes }
}

const fn encoder(name: &'static str, seconds: usize) -> Measured {
    Measured { name, unit: "× real time", amount: seconds as f64, context: 0, tokens: 0, streams: seconds, passes: 0 }
}

/// A fork of so many tokens, and the copy of its last block when it writes.
const fn fork(name: &'static str, context: usize) -> Measured {
    Measured { name, unit: "forks/s", amount: 1.0, context, tokens: 0, streams: 1, passes: 1 }
}

const WORKS: [Measured; 12] = [
    encoder("encoder 30 s (with mel)", 30),
    encoder("encoder 5 s (with mel)", 5),
    encoder("hear 5 s (mel, encoder, adaptor)", 5),
    encoder("hear 25 s", 25),
    decoder("prefill 512", 0, 512, 1, 1),
    decoder("prefill 13 at 500", 500, 13, 1, 4),
    decoder("prefill 13 at 1500", 1500, 13, 1, 4),
    decoder("decode at 128", 128, 1, 1, 16),
    decoder("decode at 2048", 2048, 1, 1, 16),
    decoder("decode 8 streams at 128", 128, 1, 8, 8),
    encoder("words of 5 s", 5),
    fork("fork of 2000 tokens", 2000),
];

/// A model to be measured.
#[derive(Debug)]
pub struct Meter {
    checkpoint: Checkpoint,
}

impl Meter {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// Whatever is wrong with it or the device.
    pub fn open(path: &Path, device: &str, words: bool) -> Result<Self> {
        let device = hearken_models::device(device)?;
        Ok(Self { checkpoint: Checkpoint::open(path, &Options { device, words })? })
    }

    /// What can be measured here.
    pub fn works(&self) -> Vec<Measured> {
        let here = |work: &&Measured| self.checkpoint.words.is_some() || !work.name.starts_with("words");
        WORKS.iter().filter(here).copied().collect()
    }

    /// Does the named work once and says how long it took.
    ///
    /// # Errors
    /// An unknown name, or the model's.
    pub fn run(&mut self, name: &str) -> Result<Duration> {
        let work = WORKS.iter().find(|w| w.name == name).ok_or_else(|| Error::Input(format!("no work {name}")))?;
        if work.passes == 0 {
            // A chirp: digital silence would let a lazy path cheat.
            let chirp = |i: usize| ((i * i % 65_536) as f32 / 10_430.0).sin() * 0.3;
            let sound: Vec<f32> = (0..work.streams * 16_000).map(chirp).collect();
            let begun = Instant::now();
            if work.name.starts_with("encoder") {
                self.checkpoint.ear.whisper_hidden(&sound, sound.len())?;
            } else if work.name.starts_with("words") {
                self.checkpoint.words(&sound, || true)?;
            } else {
                self.checkpoint.hear(&sound)?;
            }
            return Ok(begun.elapsed());
        }
        if work.tokens == 0 {
            return self.fork(work.context);
        }
        self.decode(work)
    }

    /// What is asked to find out whether the speaker of a message has finished that is nothing but these samples: the words in it, the decoder's state
    /// behind the question, and the chance that it tells.
    ///
    /// # Errors
    /// The model's.
    pub fn finished(&self, samples: &[f32]) -> Result<(String, Vec<f32>, f32)> {
        let model = &self.checkpoint;
        let words = model.words(samples, || true)?;
        let item = Item::Message { role: Role::User, content: vec![Content::Sound(samples.into())] };
        let mut pieces = model.format.render(&[item], "", Thinking::On);
        pieces.truncate(pieces.iter().rposition(|piece| matches!(piece, Piece::Sound(_))).map_or(0, |at| at + 1));
        pieces.extend(model.finish.question(model.format, words.as_deref()));
        let mut rows = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Control(_) | Piece::Text(_) => rows.push(model.decoder.embed(&model.tokenizer.ids(&piece)?)?),
                Piece::Sound(sound) => rows.extend(model.hear(&sound)?.into_iter().map(|heard| heard.embeddings)),
            }
        }
        let rows = Tensor::cat(&rows, 0)?;
        let tokens = rows.dims()[0];
        let mut sequence = model.decoder.pool(tokens + 64, KvType::F32)?.sequence();
        let hidden = model.decoder.forward(&rows, &mut [Share { sequence: &mut sequence, tokens }])?;
        let last = hidden.narrow(0, tokens - 1, 1)?;
        let flat = |row: &Tensor| Ok::<_, Error>(row.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
        let (state, logits) = (flat(&last)?, flat(&model.decoder.logits(&last)?)?);
        let chance = model.finish.chance(if model.finish.reads_state() { &state } else { &logits });
        Ok((words.unwrap_or_default(), state, chance))
    }

    fn fork(&self, tokens: usize) -> Result<Duration> {
        let decoder = &self.checkpoint.decoder;
        let pool = decoder.pool(tokens + 64, KvType::F32)?;
        let mut sequence = pool.sequence();
        let ids: Vec<u32> = (0..tokens).map(|i| (i * 37 % 500 + 100) as u32).collect();
        decoder.forward(&decoder.embed(&ids)?, &mut [Share { sequence: &mut sequence, tokens }])?;
        let used = pool.fill().used;
        let begun = Instant::now();
        let mut fork = sequence.fork();
        fork.reserve(1)?;
        let spent = begun.elapsed();
        let copied = pool.fill().used - used;
        if copied > 1 {
            return Err(Error::Input(format!("a fork took {copied} blocks")));
        }
        Ok(spent)
    }

    /// The decoder's perplexity on a text of at least two tokens: how surprised it is by each token but the first.
    ///
    /// # Errors
    /// Too short a text, or the model's.
    pub fn perplexity(&self, ids: &[u32]) -> Result<f64> {
        if ids.len() < 2 {
            return Err(Error::Input("a text of one token surprises nobody".into()));
        }
        let decoder = &self.checkpoint.decoder;
        let mut sequence = decoder.pool(ids.len() + 64, KvType::F32)?.sequence();
        let shares = &mut [Share { sequence: &mut sequence, tokens: ids.len() }];
        let hidden = decoder.forward(&decoder.embed(ids)?, shares)?;
        let mut surprise = 0f64;
        for (i, next) in ids[1..].iter().enumerate() {
            let logits = decoder.logits(&hidden.narrow(0, i, 1)?)?.flatten_all()?.to_vec1::<f32>()?;
            let peak = logits.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let sum: f64 = logits.iter().map(|x| f64::from(x - peak).exp()).sum();
            surprise += sum.ln() + f64::from(peak - logits[*next as usize]);
        }
        Ok((surprise / (ids.len() - 1) as f64).exp())
    }

    fn decode(&self, work: &Measured) -> Result<Duration> {
        let decoder = &self.checkpoint.decoder;
        let ids = |n: usize| (0..n).map(|i| (i * 37 % 500 + 100) as u32).collect::<Vec<_>>();
        let pool = decoder.pool((work.context + work.tokens * work.passes + 64) * work.streams, KvType::F32)?;
        let mut sequences = Vec::new();
        for _ in 0..work.streams {
            let mut sequence = pool.sequence();
            if work.context > 0 {
                let x = decoder.embed(&ids(work.context))?;
                decoder.forward(&x, &mut [Share { sequence: &mut sequence, tokens: work.context }])?;
            }
            sequences.push(sequence);
        }
        let x = decoder.embed(&ids(work.tokens * work.streams))?;
        let begun = Instant::now();
        for _ in 0..work.passes {
            let mut shares: Vec<Share<'_>> = Vec::new();
            for sequence in &mut sequences {
                shares.push(Share { sequence, tokens: work.tokens });
            }
            let hidden = decoder.forward(&x, &mut shares)?;
            let last: Vec<u32> = (1..=work.streams).map(|s| (s * work.tokens - 1) as u32).collect();
            let last = Tensor::new(last, hidden.device())?;
            decoder.logits(&hidden.index_select(&last, 0)?)?.to_vec2::<f32>()?;
        }
        Ok(begun.elapsed())
    }
}
