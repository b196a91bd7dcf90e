//! Hearing as the sound comes in: mel, encoder and adaptor over one segment, step by step.
//!
//! A checkpoint's config says how its encoder attends ([`Attention`]), and with it when an embedding is final:
//! - *full*: every position sees the whole segment, so all of it is encoded when the segment ends. A fork that is flushed earlier hears
//!   provisionally what there is.
//! - *block*: a position sees its own block and cached left context, so a block is final as soon as it is complete, and costs the same
//!   wherever in the segment it lies.
//!
//! Offline hearing is the same code fed in one go: what a stream hears is bit-equal to it, whatever its packets were (invariant I1).

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::sync::{Arc, OnceLock};

use candle_core::Tensor;
use serde::Deserialize;

use crate::adaptor::{self, Adaptor};
use crate::encoder::{self, Encoder};
use crate::kv::Unit;
use crate::mel::{HOP, Lengths, LogMel, SAMPLE_RATE, TAIL};
use crate::weights::Weights;
use crate::{Error, Result};

/// Samples of the longest segment: the reference client cuts at 25 s.
pub const SEGMENT: usize = 25 * SAMPLE_RATE;
/// Samples that Whisper's encoder has positions for: a segment, and silence behind it.
const LONGEST: usize = 30 * SAMPLE_RATE;
/// Samples behind a mel frame's place that it still sees: half a window.
const AHEAD: usize = 200;

/// How a checkpoint's encoder attends: `"full"`, or `{"block": {…}}`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attention {
    /// Every position to the whole segment.
    #[default]
    Full,
    /// Every position to its block and to what lies before it.
    Block(Blocks),
}

/// Block attention with cached left context.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blocks {
    /// Positions (50 a second) of a block; a multiple of 4, so that it makes whole tokens.
    pub positions: usize,
    /// Positions before a block that it sees.
    pub left: usize,
    /// The log10-mel maximum that stands for a segment's own, which a stream cannot know.
    pub log_mel_peak: f32,
}

impl Attention {
    /// Refuses what no encoder of these shapes can do.
    pub(crate) fn check(&self, encoder: &encoder::Config) -> Result<()> {
        let Self::Block(blocks) = self else { return Ok(()) };
        let sane = (4..=encoder.n_audio_ctx).contains(&blocks.positions)
            && blocks.positions.is_multiple_of(4)
            && blocks.left <= encoder.n_audio_ctx
            && blocks.log_mel_peak.is_finite()
            && (encoder.kernel_size, encoder.adapter_stride) == (3, 2);
        if sane { Ok(()) } else { Err(Error::Config(format!("no encoder attends so: {self:?}"))) }
    }
}

/// Mel, encoder and adaptor of a checkpoint.
#[derive(Debug)]
pub struct Ear {
    mel: LogMel,
    encoder: Encoder,
    adaptor: Adaptor,
    attention: Attention,
    width: usize,
}

/// What was heard and is final.
#[derive(Debug, Clone)]
pub struct Heard {
    /// For the decoder: `[tokens, llm_dim]`, 12.5 a second.
    pub embeddings: Tensor,
    /// The encoder's hidden states `[positions, state]` at 50 Hz, before pooling and norm.
    pub hidden: Tensor,
}

/// One segment, heard as it comes.
pub trait Hearing: Send + std::fmt::Debug {
    /// Takes the next 16 kHz samples, any number of them, and gives what became final by them; often nothing.
    ///
    /// # Errors
    /// A segment of more than 30 s, or candle's.
    fn step(&mut self, samples: &[f32]) -> Result<Heard>;

    /// The segment ends here: gives the rest of it, and is ready for the next.
    ///
    /// # Errors
    /// candle's.
    fn flush(&mut self) -> Result<Heard>;

    /// Forgets the segment so far.
    fn reset(&mut self);

    /// A second one that has heard the same. Flushing it hears provisionally what would be final if the segment ended here.
    fn fork(&self) -> Box<dyn Hearing>;
}

impl Ear {
    pub(crate) fn load(weights: &Weights, config: &encoder::Config, attention: Attention) -> Result<Self> {
        Ok(Self {
            mel: LogMel::new(config.n_mels),
            encoder: Encoder::load(weights, config)?,
            adaptor: Adaptor::load(weights, config)?,
            attention,
            width: config.llm_dim,
        })
    }

    /// How the encoder attends.
    pub fn attention(&self) -> Attention {
        self.attention
    }

    /// Begins to hear a segment, in the way of the checkpoint.
    pub fn hearing(self: &Arc<Self>) -> Box<dyn Hearing> {
        match self.attention {
            Attention::Full => Box::new(Whole { ear: self.clone(), samples: Vec::new() }),
            Attention::Block(blocks) => Box::new(Blockwise::new(self.clone(), blocks)),
        }
    }

    /// Begins to name a segment's tokens, as far as [`Hearing`] makes them final.
    pub fn naming(&self) -> Naming {
        static KEYS: OnceLock<[RandomState; 2]> = OnceLock::new();
        let keys = KEYS.get_or_init(Default::default);
        let blocks = if let Attention::Block(blocks) = self.attention { Some(blocks) } else { None };
        Naming { blocks, hashers: keys.each_ref().map(BuildHasher::build_hasher), samples: 0, tokens: 0 }
    }

    /// Hears several segments of at most 25 s with full attention, in one padded batch.
    pub(crate) fn whole(&self, segments: &[&[f32]]) -> Result<Vec<Heard>> {
        let mels: Vec<_> = segments.iter().map(|s| (self.mel.segment(s), Lengths::of(s.len()).at_50hz)).collect();
        let hear = |hidden: Tensor| -> Result<Heard> {
            Ok(Heard { embeddings: self.adaptor.forward(&self.encoder.pool(&hidden)?)?, hidden })
        };
        self.encoder.hidden(&mels)?.into_iter().map(hear).collect()
    }

    /// The encoder's output `[frames, state]` at 25 Hz, which goes into the adaptor.
    ///
    /// # Errors
    /// candle's.
    pub fn frames(&self, heard: &Heard) -> Result<Tensor> {
        self.encoder.pool(&heard.hidden)
    }

    /// Hidden states normalised as Whisper's own decoder wants them: `[positions, state]` at 50 Hz.
    ///
    /// # Errors
    /// candle's.
    pub fn norm(&self, hidden: &Tensor) -> Result<Tensor> {
        self.encoder.norm(hidden)
    }

    /// Whisper's own view of a segment: normalised hidden states `[length / 320, state]` at 50 Hz, with full attention, of the samples and
    /// silence up to `length` of them, at most 30 s.
    ///
    /// # Errors
    /// candle's.
    pub fn whisper_hidden(&self, samples: &[f32], length: usize) -> Result<Tensor> {
        let mel = self.mel.padded(samples, length.min(30 * SAMPLE_RATE));
        let positions = mel.frames.div_ceil(2);
        self.encoder.norm(&self.encoder.hidden(&[(mel, positions)])?.remove(0))
    }

    fn nothing(&self) -> Result<Heard> {
        let hidden = self.encoder.nothing()?;
        Ok(Heard { embeddings: Tensor::zeros((0, self.width), hidden.dtype(), hidden.device())?, hidden })
    }
}

fn check_room(have: usize, more: usize) -> Result<()> {
    if have + more > LONGEST {
        return Err(Error::Input(format!("a segment of {} samples; the encoder takes {LONGEST}", have + more)));
    }
    Ok(())
}

/// Full attention: all at the end.
#[derive(Debug)]
struct Whole {
    ear: Arc<Ear>,
    samples: Vec<f32>,
}

impl Hearing for Whole {
    fn step(&mut self, samples: &[f32]) -> Result<Heard> {
        check_room(self.samples.len(), samples.len())?;
        self.samples.extend_from_slice(samples);
        self.ear.nothing()
    }

    fn flush(&mut self) -> Result<Heard> {
        let samples = std::mem::take(&mut self.samples);
        Ok(self.ear.whole(&[&samples])?.remove(0))
    }

    fn reset(&mut self) {
        self.samples.clear();
    }

    fn fork(&self) -> Box<dyn Hearing> {
        Box::new(Self { ear: self.ear.clone(), samples: self.samples.clone() })
    }
}

/// Block attention. A clone shares the cached tensors, which nobody writes into.
#[derive(Debug, Clone)]
struct Blockwise {
    ear: Arc<Ear>,
    blocks: Blocks,
    /// The end of the segment so far: what the next block still needs.
    samples: Vec<f32>,
    /// The place of `samples[0]` in the segment.
    from: usize,
    past: encoder::Past,
    /// The last 25 Hz frame before the next block: the adaptor looks back by one.
    carry: adaptor::Carry,
}

impl Blockwise {
    fn new(ear: Arc<Ear>, blocks: Blocks) -> Self {
        Self {
            ear,
            blocks,
            samples: Vec::new(),
            from: 0,
            past: encoder::Past::default(),
            carry: adaptor::Carry::default(),
        }
    }

    /// Encodes the next `positions`.
    fn encode(&mut self, positions: usize) -> Result<Heard> {
        let first = self.past.positions();
        // The convolutions reach two mel frames back and one ahead of a position's own two.
        let frames = (2 * first).saturating_sub(2)..2 * (first + positions) + 1;
        let (samples, from) = (&self.samples, self.from);
        let sample = |at: usize| at.checked_sub(from).and_then(|i| samples.get(i)).copied().unwrap_or(0.0);
        let mel = self.ear.mel.constant(frames, sample, self.blocks.log_mel_peak);
        let hidden = self.ear.encoder.block(&mel, positions, &mut self.past, self.blocks.left)?;
        let embeddings = self.ear.adaptor.next(&self.ear.encoder.pool(&hidden)?, &mut self.carry)?;
        // What the next block's first mel frame sees, and nothing older.
        let keep = (2 * self.past.positions()).saturating_sub(2) * HOP;
        let gone = keep.saturating_sub(AHEAD + self.from).min(self.samples.len());
        self.samples.drain(..gone);
        self.from += gone;
        Ok(Heard { embeddings, hidden })
    }
}

impl Hearing for Blockwise {
    fn step(&mut self, samples: &[f32]) -> Result<Heard> {
        check_room(self.from + self.samples.len(), samples.len())?;
        self.samples.extend_from_slice(samples);
        let mut all: Vec<Heard> = Vec::new();
        while self.from + self.samples.len() >= complete(self.blocks, self.past.positions() / self.blocks.positions) {
            all.push(self.encode(self.blocks.positions)?);
        }
        match all.len() {
            0 => self.ear.nothing(),
            1 => Ok(all.remove(0)),
            _ => {
                let cat = |part: fn(&Heard) -> &Tensor| Tensor::cat(&all.iter().map(part).collect::<Vec<_>>(), 0);
                Ok(Heard { embeddings: cat(|h| &h.embeddings)?, hidden: cat(|h| &h.hidden)? })
            }
        }
    }

    fn flush(&mut self) -> Result<Heard> {
        let rest = Lengths::of(self.from + self.samples.len()).at_50hz - self.past.positions();
        let heard = if rest == 0 { self.ear.nothing()? } else { self.encode(rest)? };
        self.reset();
        Ok(heard)
    }

    fn reset(&mut self) {
        *self = Self::new(self.ear.clone(), self.blocks);
    }

    fn fork(&self) -> Box<dyn Hearing> {
        Box::new(self.clone())
    }
}

/// How many samples of a segment make its block number `block` final.
fn complete(blocks: Blocks, block: usize) -> usize {
    (block + 1) * blocks.positions * 2 * HOP + AHEAD
}

/// Names the tokens of one segment by what they were heard from: a final token by the samples that its block sees, the rest by the whole
/// segment and its end. So a turn that is still growing is recognised by what of it is final.
#[derive(Debug, Clone)]
pub struct Naming {
    blocks: Option<Blocks>,
    hashers: [DefaultHasher; 2],
    samples: usize,
    tokens: usize,
}

impl Naming {
    /// Takes the next samples and names the tokens that became final by them.
    pub fn step(&mut self, samples: &[f32]) -> Vec<Unit> {
        let mut units = Vec::new();
        let mut rest = samples;
        while let Some(blocks) = self.blocks {
            let tokens = blocks.positions / 4;
            let missing = complete(blocks, self.tokens / tokens) - self.samples;
            let Some((own, later)) = rest.split_at_checked(missing) else { break };
            self.hash(own);
            rest = later;
            units.extend(self.name(tokens));
        }
        self.hash(rest);
        units
    }

    /// Names the rest of the segment, as if it ended here.
    pub fn flush(&self) -> Vec<Unit> {
        let mut end = self.clone();
        end.hashers.iter_mut().for_each(|hasher| hasher.write_u8(u8::MAX));
        let rest = Lengths::of(self.samples).tokens - self.tokens;
        end.name(rest)
    }

    fn hash(&mut self, samples: &[f32]) {
        self.samples += samples.len();
        for hasher in &mut self.hashers {
            // In stretches: a hasher is several times faster on many bytes than on four.
            let mut bytes = [0; 1024];
            for stretch in samples.chunks(bytes.len() / 4) {
                let (filled, _) = bytes.split_at_mut(4 * stretch.len());
                for (to, x) in filled.chunks_exact_mut(4).zip(stretch) {
                    to.copy_from_slice(&x.to_bits().to_le_bytes());
                }
                hasher.write(filled);
            }
        }
    }

    fn name(&mut self, tokens: usize) -> Vec<Unit> {
        let [high, low] = self.hashers.each_ref().map(Hasher::finish);
        let hash = u128::from(high) << 64 | u128::from(low);
        let first = self.tokens;
        self.tokens += tokens;
        (first..self.tokens).map(|n| Unit::Sound(hash, n as u32)).collect()
    }
}

// The reference's padding reaches further than any frame of a valid position sees, so zeros behind the last sample stand for it.
const _: () = assert!(TAIL >= 2 * AHEAD);
