//! nano: Whisper base as encoder, our adaptor, Qwen2.5-Coder-0.5B with our low-rank updates.
//!
//! The two base models are files that `hearken fetch nano` brings; what we trained is part of this crate (`models/nano/`), unless the
//! directory brings its own `config.json`, `adaptor.safetensors` and `lora.safetensors`.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use candle_core::DType;

use super::gguf::Gguf;
use super::{Checkpoint, Config, Lora, Options, Words, ct2};
use crate::device;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;
use crate::words::WordEar;
use crate::{Error, Result};

/// Whisper base, CTranslate2 form.
pub const WHISPER: &str = "model.bin";
/// Whisper's tokenizer.
pub const WHISPER_TOKENIZER: &str = "tokenizer.json";
/// Qwen2.5-Coder-0.5B-Instruct.
pub const QWEN: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";

const CONFIG: &str = include_str!("../../nano/config.json");
const ADAPTOR: &[u8] = include_bytes!("../../nano/adaptor.safetensors");
const LORA: &[u8] = include_bytes!("../../nano/lora.safetensors");
const FINISH: &[u8] = include_bytes!("../../nano/finish.safetensors");

/// Whether a directory holds nano's base models.
pub(super) fn is_base(directory: &Path) -> bool {
    directory.join(WHISPER).exists() && directory.join(QWEN).exists()
}

/// Opens nano. A directory with a config of its `own` brings what is trained as well.
pub(super) fn open(directory: &Path, own: Option<Config>, options: &Options) -> Result<Checkpoint> {
    let is_built_in = own.is_none();
    let trained = |name: &str, built_in: &'static [u8]| -> Result<Cow<'static, [u8]>> {
        if is_built_in {
            return Ok(Cow::Borrowed(built_in));
        }
        let path = directory.join(name);
        Ok(Cow::Owned(std::fs::read(&path).map_err(|e| Error::file(&path, e))?))
    };
    let adaptor = trained("adaptor.safetensors", ADAPTOR)?;
    let lora = trained("lora.safetensors", LORA);
    let config = own.map_or_else(|| Config::parse(CONFIG), Ok)?;
    let whisper = ct2::read(&directory.join(WHISPER))?;
    let gguf = Gguf::open(&directory.join(QWEN))?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let mut weights = Weights::new(&options.device, device::dtype(&options.device));
    weights.add_tensors(ct2::encoder(&whisper)?);
    weights.add_safetensors_bytes(Path::new("adaptor.safetensors"), &adaptor)?;
    weights.add_gguf(gguf);
    let mut checkpoint = Checkpoint::assemble("nano".into(), &weights, &config, tokenizer)?;
    if let Some(Lora { scale }) = config.lora {
        update(&mut checkpoint, &weights, &lora?, scale)?;
    }
    if options.words && config.words == Words::Beside {
        let mut weights = Weights::new(&options.device, DType::F32);
        weights.add_tensors(ct2::decoder(&whisper)?);
        let tokenizer = directory.join(WHISPER_TOKENIZER);
        checkpoint.words = Some(Arc::new(WordEar::load(&weights, &tokenizer, &config.audio_encoder_config)?));
        // It was trained with that ear's words beside the sound. A checkpoint of one's own may have none; then the question is asked in words.
        if is_built_in || directory.join("finish.safetensors").exists() {
            let head = trained("finish.safetensors", FINISH)?;
            checkpoint.finish = checkpoint.finish.with_head(&head, config.text_config.hidden_size)?;
        }
    }
    Ok(checkpoint)
}

/// Adds `NAME.lora_A.weight [rank, in]` and `NAME.lora_B.weight [out, rank]` to the linear layer NAME.
fn update(checkpoint: &mut Checkpoint, weights: &Weights, bytes: &[u8], scale: f64) -> Result<()> {
    let path = Path::new("lora.safetensors");
    let tensors = candle_core::safetensors::load_buffer(bytes, weights.device()).map_err(|e| Error::file(path, e))?;
    for (name, tensor) in &tensors {
        if !crate::weights::finite(tensor)? {
            return Err(Error::tensor(name, "holds values that are not finite"));
        }
    }
    for (name, a) in &tensors {
        let Some(layer) = name.strip_suffix(".lora_A.weight") else { continue };
        let b = tensors.get(&format!("{layer}.lora_B.weight"));
        let b = b.ok_or_else(|| Error::tensor(name, "has no lora_B beside it"))?;
        let linear = checkpoint
            .decoder
            .linear_mut(layer)
            .ok_or_else(|| Error::tensor(name, "updates no layer of the decoder"))?;
        linear.update(a.to_dtype(weights.dtype())?, &b.to_dtype(weights.dtype())?, scale)?;
    }
    Ok(())
}
