//! Whisper in CTranslate2's form: the file nano's ear comes in.
//!
//! Source: CTranslate2 `python/ctranslate2/specs/model_spec.py` (`_serialize`), binary version 6.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;

use super::cursor::{Cursor, Parsed};
use crate::{Error, Result};

/// Reads all f16 and f32 tensors of a file, under CTranslate2's names. Small tensors of other types are settings we do not need.
pub(super) fn read(path: &Path) -> Result<HashMap<String, Tensor>> {
    let file = File::open(path).map_err(|e| Error::file(path, e))?;
    // SAFETY: the mapping is read-only; a file changed under a running process is the operator's doing, as with any mapped library.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::file(path, e))?;
    parse(&map).map_err(|reason| Error::file(path, reason))
}

fn text(cursor: &mut Cursor<'_>) -> Parsed<String> {
    let length = cursor.u16()?;
    let bytes = cursor.take(length.into())?;
    // The length counts the closing zero.
    Ok(String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned())
}

fn parse(bytes: &[u8]) -> Parsed<HashMap<String, Tensor>> {
    let mut cursor = Cursor { bytes, at: 0 };
    let version = cursor.u32()?;
    if version != 6 {
        return Err(format!("is not a CTranslate2 model of binary version 6 (it says {version})"));
    }
    let spec = text(&mut cursor)?;
    if spec != "WhisperSpec" {
        return Err(format!("holds a {spec}, not a WhisperSpec"));
    }
    let _revision = cursor.u32()?;
    let count = cursor.u32()?;
    let mut tensors = HashMap::new();
    for _ in 0..count {
        let name = text(&mut cursor)?;
        let rank = cursor.u8()?;
        let shape: Vec<usize> = (0..rank).map(|_| Ok(cursor.u32()? as usize)).collect::<Parsed<_>>()?;
        let code = cursor.u8()?;
        let size = cursor.u32()? as usize;
        let data = cursor.take(size)?;
        let dtype = match code {
            0 => DType::F32,
            4 => DType::F16,
            _ => continue,
        };
        let elements = shape.iter().try_fold(1usize, |a, &b| a.checked_mul(b));
        if elements.and_then(|e| e.checked_mul(dtype.size_in_bytes())) != Some(size) {
            return Err(format!("{name} has {size} bytes, not the {shape:?} it claims"));
        }
        let tensor = Tensor::from_raw_buffer(data, dtype, &shape, &Device::Cpu);
        tensors.insert(name, tensor.map_err(|e| e.to_string())?);
    }
    Ok(tensors)
}

/// A layer's number and the rest of its tensor's name; `None` for what belongs to no layer (`layer_norm` among it).
fn numbered(name: &str) -> Option<(usize, &str, &str)> {
    let (layer, part) = name.strip_prefix("layer_")?.split_once('/')?;
    let (module, kind) = part.rsplit_once('/')?;
    Some((layer.parse().ok()?, module, kind))
}

/// The tensors of one side (`encoder`, `decoder`) under other names: `top` names what belongs to no layer from its module and kind,
/// `parts` the modules of a layer below `layers`, several where CTranslate2 has fused them. What gets no name is left out.
fn renamed(
    tensors: &HashMap<String, Tensor>,
    side: &str,
    top: impl Fn(&str, &str) -> String,
    layers: &str,
    parts: impl Fn(&str) -> &'static [&'static str],
) -> Result<HashMap<String, Tensor>> {
    let mut out = HashMap::new();
    for (name, tensor) in tensors {
        let Some(name) = name.strip_prefix(side).and_then(|n| n.strip_prefix('/')) else { continue };
        if let Some((layer, module, kind)) = numbered(name) {
            let parts = parts(module);
            for (part, tensor) in parts.iter().zip(tensor.chunk(parts.len().max(1), 0)?) {
                out.insert(format!("{layers}.{layer}.{part}.{}", plain(kind)), tensor);
            }
        } else if let Some((module, kind)) = name.split_once('/') {
            out.insert(top(module, plain(kind)), tensor.clone());
        }
    }
    Ok(out)
}

/// The encoder under the official Step-Audio names.
pub(super) fn encoder(tensors: &HashMap<String, Tensor>) -> Result<HashMap<String, Tensor>> {
    let top = |module: &str, kind: &str| match module {
        "position_encodings" => "encoder.positional_embedding.weight".into(),
        "layer_norm" => format!("encoder.after_norm.{kind}"),
        _ => format!("encoder.{module}.{kind}"),
    };
    renamed(tensors, "encoder", top, "encoder.blocks", |module| match module {
        "self_attention/layer_norm" => &["attn_ln"],
        "self_attention/linear_0" => &["attn.query", "attn.key", "attn.value"],
        "self_attention/linear_1" => &["attn.out"],
        "ffn/layer_norm" => &["mlp_ln"],
        "ffn/linear_0" => &["mlp.0"],
        "ffn/linear_1" => &["mlp.2"],
        _ => &[],
    })
}

/// The text decoder under Hugging Face's names.
pub(super) fn decoder(tensors: &HashMap<String, Tensor>) -> Result<HashMap<String, Tensor>> {
    let top = |module: &str, kind: &str| match module {
        "embeddings" => "model.decoder.embed_tokens.weight".into(),
        "position_encodings" => "model.decoder.embed_positions.weight".into(),
        _ => format!("model.decoder.{module}.{kind}"),
    };
    renamed(tensors, "decoder", top, "model.decoder.layers", |module| match module {
        "self_attention/linear_0" => &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "self_attention/linear_1" => &["self_attn.out_proj"],
        "self_attention/layer_norm" => &["self_attn_layer_norm"],
        "attention/linear_0" => &["encoder_attn.q_proj"],
        "attention/linear_1" => &["encoder_attn.k_proj", "encoder_attn.v_proj"],
        "attention/linear_2" => &["encoder_attn.out_proj"],
        "attention/layer_norm" => &["encoder_attn_layer_norm"],
        "ffn/layer_norm" => &["final_layer_norm"],
        "ffn/linear_0" => &["fc1"],
        "ffn/linear_1" => &["fc2"],
        _ => &[],
    })
}

/// CTranslate2's names for a norm's two tensors, or a name as it is.
fn plain(kind: &str) -> &str {
    match kind {
        "gamma" => "weight",
        "beta" => "bias",
        other => other,
    }
}
