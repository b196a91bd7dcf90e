//! Checkpoints: one loader for the official Step-Audio layout, for a GGUF of the same names, and for nano.
//!
//! A directory with `config.json` (`StepAudio2ForCausalLM`), `tokenizer.json` and either safetensors (one file, or shards with their index) or
//! one `.gguf`; or nano's directory, which holds its two base models and gets what we trained from this crate (see [`nano`]).

mod ct2;
mod cursor;
pub(crate) mod gguf;
pub mod nano;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use crate::decoder::{self, Decoder};
use crate::device;
pub use crate::ear::SEGMENT;
use crate::ear::{Attention, Ear, Heard, Hearing};
use crate::encoder;
use crate::finish::Finish;
use crate::kv::Unit;
use crate::mel::{Lengths, SAMPLE_RATE};
use crate::prompt::PromptFormat;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;
use crate::words::{WordEar, Words as Read};
use crate::{Error, Result};
use gguf::Gguf;

/// Silence that the word ear hears after a segment. Half a second ends the repetitions; two cost it little more and it hears better.
const EAR_SILENCE: usize = SAMPLE_RATE / 2;

/// A config larger than this is no config.
const CONFIG_LIMIT: u64 = 4 << 20;

/// `config.json`, as far as we need it.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    #[serde(default)]
    architectures: Vec<String>,
    text_config: decoder::Config,
    audio_encoder_config: encoder::Config,
    /// Absent in the official layout, which speaks its own format.
    #[serde(default = "step")]
    prompt_format: PromptFormat,
    #[serde(default)]
    lora: Option<Lora>,
    #[serde(default)]
    calls: Option<CallsConfig>,
    /// How the encoder attends.
    #[serde(default)]
    attention: Attention,
    /// Whether the word ear's words stand beside the sound; the one switch of a checkpoint that has such an ear.
    #[serde(default)]
    words: Words,
}

/// What becomes of the word ear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Words {
    /// Its words stand beside the sound.
    Beside,
    /// There is none, or it is not used.
    #[default]
    None,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Lora {
    scale: f64,
}

/// How a model that was not trained to call still shows that it would.
#[derive(Debug, Clone, Deserialize)]
struct CallsConfig {
    /// What its call may begin with.
    openings: Vec<String>,
    /// Natural logarithm of the chance of those at which it is taken for one.
    threshold: f32,
}

fn step() -> PromptFormat {
    PromptFormat::Step
}

impl Config {
    fn read(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(|e| Error::file(path, e))?.len();
        if size > CONFIG_LIMIT {
            return Err(Error::file(path, format!("has {size} bytes, which no config has")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
        Self::parse(&text).map_err(|e| Error::file(path, e))
    }

    fn parse(text: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(text).map_err(|e| Error::Config(e.to_string()))?;
        config.text_config.check()?;
        config.audio_encoder_config.check()?;
        config.attention.check(&config.audio_encoder_config)?;
        let (ours, theirs) = (config.audio_encoder_config.llm_dim, config.text_config.hidden_size);
        if ours != theirs {
            return Err(Error::Config(format!("the adaptor's llm_dim is {ours}, the decoder's hidden_size {theirs}")));
        }
        Ok(config)
    }
}

/// How to open a checkpoint.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to run it.
    pub device: Device,
    /// Whether to load the word ear, where there is one.
    pub words: bool,
}

/// See [`Checkpoint::calls`].
#[derive(Debug, Clone)]
pub struct Calls {
    /// First tokens of a call.
    openings: Vec<u32>,
    /// At or above this [`Calls::chance`] it is one.
    pub threshold: f32,
}

impl Calls {
    /// Natural logarithm of the chance that the token drawn from these logits opens a call.
    pub fn chance(&self, logits: &[f32]) -> f32 {
        let sum = |ids: &mut dyn Iterator<Item = f32>, peak: f32| ids.map(|x| (x - peak).exp()).sum::<f32>().ln();
        let peak = logits.iter().copied().filter(|x| !x.is_nan()).fold(f32::NEG_INFINITY, f32::max);
        let mut openings = self.openings.iter().filter_map(|id| logits.get(*id as usize).copied());
        sum(&mut openings, peak) - sum(&mut logits.iter().copied().filter(|x| !x.is_nan()), peak)
    }
}

/// A model, ready to run.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its name, for people.
    pub name: String,
    /// How it is spoken to.
    pub format: PromptFormat,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its decoder.
    pub decoder: Decoder,
    /// Its word ear, where it has one and it was wanted.
    pub words: Option<Arc<WordEar>>,
    /// The token that ends a turn.
    pub stop: u32,
    /// How it shows at the beginning of a reply that it would rather call a function; `None` for one that was trained to write calls.
    pub calls: Option<Calls>,
    /// How it tells whether a speaker has finished.
    pub finish: Finish,
    /// Its mel, encoder and adaptor.
    pub ear: Arc<Ear>,
}

impl Checkpoint {
    /// Opens the checkpoint at `path`: a directory, or a `.gguf` beside its config and tokenizer.
    ///
    /// # Errors
    /// What is missing, cut, swapped or hostile, by name.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let (directory, gguf) = match path.extension() {
            Some(extension) if extension == "gguf" => (path.parent().unwrap_or(Path::new(".")), Some(path.to_owned())),
            _ => (path, None),
        };
        let config_path = directory.join("config.json");
        if !config_path.exists() && nano::is_base(directory) {
            return nano::open(directory, None, options);
        }
        let config = Config::read(&config_path)?;
        match config.architectures.first().map(String::as_str) {
            Some("StepAudio2ForCausalLM") => Self::official(directory, gguf, &config, options),
            Some("HearkenNano") => nano::open(directory, Some(config), options),
            other => Err(Error::file(&config_path, format!("describes {other:?}, not a StepAudio2ForCausalLM"))),
        }
    }

    fn official(directory: &Path, gguf: Option<PathBuf>, config: &Config, options: &Options) -> Result<Self> {
        let mut weights = Weights::new(&options.device, device::dtype(&options.device));
        match gguf.or(single_gguf(directory)?) {
            Some(path) => weights.add_gguf(Gguf::open(&path)?),
            None => weights.add_safetensors(&shards(directory)?)?,
        }
        let tokenizer = Tokenizer::from_file(&directory.join("tokenizer.json"))?;
        let name = directory.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
        Self::assemble(name, &weights, config, tokenizer)
    }

    fn assemble(name: String, weights: &Weights, config: &Config, tokenizer: Tokenizer) -> Result<Self> {
        let format = config.prompt_format;
        let stop = tokenizer.id(format.stop());
        let stop = stop.ok_or_else(|| Error::Tokenizer(format!("has no {}, which ends a turn", format.stop())))?;
        if stop as usize >= config.text_config.vocab_size {
            return Err(Error::Tokenizer(format!("{} is outside the decoder's vocabulary", format.stop())));
        }
        let calls = config.calls.as_ref().map(|calls| {
            let first = |opening: &String| Ok(tokenizer.text(opening)?.first().copied());
            let openings =
                calls.openings.iter().filter_map(|opening| first(opening).transpose()).collect::<Result<_>>()?;
            Ok::<_, Error>(Calls { openings, threshold: calls.threshold })
        });
        Ok(Self {
            name,
            format,
            calls: calls.transpose()?,
            finish: Finish::new(&tokenizer)?,
            tokenizer,
            stop,
            words: None,
            ear: Arc::new(Ear::load(weights, &config.audio_encoder_config, config.attention)?),
            decoder: Decoder::load(weights, &config.text_config)?,
        })
    }

    /// Hears 16 kHz mono samples, cut into segments of 25 s, each for itself.
    ///
    /// # Errors
    /// candle's.
    pub fn hear(&self, samples: &[f32]) -> Result<Vec<Heard>> {
        let mut hearing = self.ear.hearing();
        let mut hear = |segment: &[f32]| -> Result<Heard> {
            let (final_, rest) = (hearing.step(segment)?, hearing.flush()?);
            let cat = |a: &Tensor, b: &Tensor| Tensor::cat(&[a, b], 0);
            Ok(Heard {
                embeddings: cat(&final_.embeddings, &rest.embeddings)?,
                hidden: cat(&final_.hidden, &rest.hidden)?,
            })
        };
        samples.chunks(SEGMENT).map(&mut hear).collect()
    }

    /// Hears several segments of at most 25 s with full attention, in one padded batch.
    ///
    /// # Errors
    /// A segment longer than the encoder's context, or candle's.
    pub fn hear_batch(&self, segments: &[&[f32]]) -> Result<Vec<Heard>> {
        self.ear.whole(segments)
    }

    /// How many tokens [`Checkpoint::hear`] makes of so many samples.
    pub fn sound_tokens(samples: usize) -> usize {
        samples / SEGMENT * Lengths::of(SEGMENT).tokens + Lengths::of(samples % SEGMENT).tokens
    }

    /// What each of those tokens stands for in a prefix.
    pub fn sound_units(&self, samples: &[f32]) -> Vec<Unit> {
        let name = |segment: &[f32]| {
            let mut naming = self.ear.naming();
            let mut units = naming.step(segment);
            units.extend(naming.flush());
            units
        };
        samples.chunks(SEGMENT).flat_map(name).collect()
    }

    /// The words in 16 kHz mono samples, segment by segment, read when each has ended; `None` where there is no word ear. `keep_on` is asked
    /// before each word piece.
    ///
    /// # Errors
    /// candle's.
    pub fn words(&self, samples: &[f32], mut keep_on: impl FnMut() -> bool) -> Result<Option<String>> {
        let Some(ear) = &self.words else { return Ok(None) };
        let mut all = Vec::new();
        let mut hearing = self.ear.hearing();
        for segment in samples.chunks(SEGMENT) {
            let mut words = Read::default();
            ear.hear(&mut words, &self.ear.norm(&hearing.step(segment)?.hidden)?)?;
            let mut guess = ear.guess(&words, &self.ear_tail(hearing.as_ref())?)?;
            while keep_on() && ear.step(&mut guess)? {}
            all.push(ear.settle(&mut words, &guess, true)?.committed);
            hearing.reset();
        }
        all.retain(|w| !w.is_empty());
        Ok(Some(all.join(" ")))
    }

    /// What the word ear hears of a segment that ends here, behind what is final: with silence, for on a segment that ends with its last
    /// word, Whisper's decoder, which was trained on 30 s windows, finds no end and says everything over again.
    ///
    /// # Errors
    /// candle's.
    pub fn ear_tail(&self, hearing: &dyn Hearing) -> Result<Tensor> {
        let mut ended = hearing.fork();
        let after = ended.step(&[0.0; EAR_SILENCE])?.hidden;
        self.ear.norm(&Tensor::cat(&[after, ended.flush()?.hidden], 0)?)
    }
}

/// The one `.gguf` of a directory; `None` without any.
fn single_gguf(directory: &Path) -> Result<Option<PathBuf>> {
    let entries = std::fs::read_dir(directory).map_err(|e| Error::file(directory, e))?;
    let paths = entries.filter_map(|e| Some(e.ok()?.path()));
    let mut found: Vec<_> = paths.filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect();
    match found.len() {
        0 | 1 => Ok(found.pop()),
        n => Err(Error::file(directory, format!("holds {n} .gguf files; name the one to use"))),
    }
}

/// The safetensors files of a directory: those of the index, or the single one.
fn shards(directory: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::HashMap<String, String>,
    }
    let index = directory.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![directory.join("model.safetensors")]);
    }
    let text = std::fs::read_to_string(&index).map_err(|e| Error::file(&index, e))?;
    let parsed: Index = serde_json::from_str(&text).map_err(|e| Error::file(&index, e))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if let Some(name) = names.iter().find(|n| Path::new(n).components().count() != 1 || n.starts_with('.')) {
        return Err(Error::file(&index, format!("points outside its directory: {name}")));
    }
    if names.is_empty() {
        return Err(Error::file(&index, "names no shard"));
    }
    Ok(names.into_iter().map(|n| directory.join(n)).collect())
}
