//! GGUF files, read from a memory map with every length checked against the file before it is believed.
//!
//! Source: ggml's `gguf.md` (versions 2 and 3, little endian). candle has a reader too, but it allocates what the file claims; this one
//! refuses a huge header, an offset past the end or a cut file by name.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;

use super::cursor::{Cursor, Parsed};
use crate::{Error, Result};

/// A metadata value; only what a model needs is kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Int(i64),
    Float(f64),
    Text(String),
    Texts(Vec<String>),
    Ints(Vec<i64>),
    /// Something we have no use for.
    Other,
}

struct Entry {
    /// Row-major shape, outermost first (GGUF stores it innermost first).
    shape: Vec<usize>,
    dtype: GgmlDType,
    start: usize,
    end: usize,
}

/// An open GGUF file.
pub(crate) struct Gguf {
    path: PathBuf,
    map: Mmap,
    metadata: HashMap<String, Value>,
    entries: HashMap<String, Entry>,
}

impl Gguf {
    /// Maps and checks a file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::file(path, e))?;
        // SAFETY: the mapping is read-only; a file changed under a running process is the operator's doing, as with any mapped library.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::file(path, e))?;
        let (metadata, entries) = parse(&map).map_err(|reason| Error::file(path, reason))?;
        Ok(Self { path: path.to_owned(), map, metadata, entries })
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The entry under its official name, or under the name llama.cpp's converter gives it.
    fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name).or_else(|| self.entries.get(&llama_name(name)?))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    pub(crate) fn is_quantised(&self, name: &str) -> bool {
        self.entry(name).is_some_and(|e| !matches!(e.dtype, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16))
    }

    /// Raw blocks of a tensor with their type and row-major shape.
    pub(crate) fn blocks(&self, name: &str) -> Result<(&[u8], GgmlDType, &[usize])> {
        let entry = self.entry(name).ok_or_else(|| Error::tensor(name, "is missing from the checkpoint"))?;
        Ok((&self.map[entry.start..entry.end], entry.dtype, &entry.shape))
    }

    /// The tensor as candle's quantised type on `device`.
    pub(crate) fn quantised(&self, name: &str, device: &Device) -> Result<QTensor> {
        let (bytes, dtype, shape) = self.blocks(name)?;
        Ok(QTensor::new(QStorage::from_data(bytes.into(), device, dtype)?, shape)?)
    }

    /// The tensor dequantised to f32 (or as stored, when it is f16 or bf16), on the CPU.
    pub(crate) fn dense(&self, name: &str) -> Result<Tensor> {
        let (bytes, dtype, shape) = self.blocks(name)?;
        let plain = match dtype {
            GgmlDType::F32 => Some(DType::F32),
            GgmlDType::F16 => Some(DType::F16),
            GgmlDType::BF16 => Some(DType::BF16),
            _ => None,
        };
        match plain {
            Some(dtype) => Ok(Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu)?),
            None => Ok(self.quantised(name, &Device::Cpu)?.dequantize(&Device::Cpu)?),
        }
    }
}

/// llama.cpp's name for an official decoder tensor name.
fn llama_name(name: &str) -> Option<String> {
    let name = match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => name.strip_prefix("model.layers.")?,
    };
    let (layer, rest) = name.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.{kind}"))
}

/// GGUF's own shapes, on the plain cursor.
impl Cursor<'_> {
    /// A count of items that take at least `least` bytes each: more than fit into the rest of the file is a lie.
    fn count(&mut self, what: &str, least: usize) -> Parsed<usize> {
        let count = self.u64()?;
        let room = (self.bytes.len() - self.at) / least;
        usize::try_from(count)
            .ok()
            .filter(|&c| c <= room)
            .ok_or_else(|| format!("claims {count} {what}; {room} would fit"))
    }

    fn text(&mut self) -> Parsed<String> {
        let length = self.count("bytes of text", 1)?;
        // Vocabularies hold stray bytes; a lossy reading keeps the file usable.
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    fn value(&mut self, kind: u32) -> Parsed<Value> {
        Ok(match kind {
            0 => Value::Int(self.u8()?.into()),
            1 => Value::Int(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Int(self.u16()?.into()),
            3 => Value::Int(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Int(self.u32()?.into()),
            5 => Value::Int(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Int((self.u8()? != 0).into()),
            8 => Value::Text(self.text()?),
            9 => self.list()?,
            10 => Value::Int(self.u64()?.try_into().unwrap_or(i64::MAX)),
            11 => Value::Int(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(format!("metadata of unknown type {kind}")),
        })
    }

    fn list(&mut self) -> Parsed<Value> {
        let kind = self.u32()?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            8 | 10 | 11 | 12 => 8,
            9 => return Err("nested lists in metadata are not supported".into()),
            _ => 4,
        };
        let count = self.count("list items", least)?;
        match kind {
            8 => Ok(Value::Texts((0..count).map(|_| self.text()).collect::<Parsed<_>>()?)),
            0..=5 | 7 | 10 | 11 => {
                let int = |value| if let Value::Int(i) = value { i } else { 0 };
                Ok(Value::Ints((0..count).map(|_| self.value(kind).map(int)).collect::<Parsed<_>>()?))
            }
            _ => {
                for _ in 0..count {
                    self.value(kind)?;
                }
                Ok(Value::Other)
            }
        }
    }
}

fn dtype(code: u32) -> Parsed<GgmlDType> {
    Ok(match code {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        6 => GgmlDType::Q5_0,
        8 => GgmlDType::Q8_0,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => {
            return Err(format!(
                "tensor type {code} is not supported (F32, F16, BF16, Q4_0, Q5_0, Q8_0, Q4_K, Q5_K, Q6_K are)"
            ));
        }
    })
}

fn parse(bytes: &[u8]) -> Parsed<(HashMap<String, Value>, HashMap<String, Entry>)> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4)? != b"GGUF" {
        return Err("is not a GGUF file".into());
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF version {version} is not supported (2 and 3 are)"));
    }
    let tensors = cursor.count("tensors", 24)?;
    let pairs = cursor.count("metadata pairs", 12)?;
    let mut metadata = HashMap::new();
    for _ in 0..pairs {
        let key = cursor.text()?;
        let kind = cursor.u32()?;
        metadata.insert(key, cursor.value(kind)?);
    }
    let mut found = Vec::new();
    for _ in 0..tensors {
        let name = cursor.text()?;
        let rank = cursor.u32()?;
        if rank == 0 || rank > 4 {
            return Err(format!("tensor {name} has rank {rank}"));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            shape.insert(0, usize::try_from(cursor.u64()?).map_err(|_| format!("tensor {name} has no sane shape"))?);
        }
        let dtype = dtype(cursor.u32()?).map_err(|e| format!("tensor {name}: {e}"))?;
        found.push((name, shape, dtype, cursor.u64()?));
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Int(a)) if (8..=4096).contains(a) && a % 8 == 0 => *a as usize,
        Some(_) => return Err("general.alignment is not a sane number".into()),
    };
    let data = cursor.at.next_multiple_of(alignment);
    let mut entries = HashMap::new();
    for (name, shape, dtype, offset) in found {
        let entry = place(shape, dtype, data, offset, bytes.len()).map_err(|e| format!("tensor {name} {e}"))?;
        if !entry.start.is_multiple_of(alignment) {
            return Err(format!("tensor {name} begins at byte {}, which is no multiple of {alignment}", entry.start));
        }
        entries.insert(name, entry);
    }
    Ok((metadata, entries))
}

/// Where a tensor's bytes lie, or why they cannot lie there.
fn place(shape: Vec<usize>, dtype: GgmlDType, data: usize, offset: u64, file: usize) -> Parsed<Entry> {
    let row = *shape.last().expect("rank is at least 1");
    if !row.is_multiple_of(dtype.block_size()) {
        return Err(format!("has rows of {row}, not a multiple of its block of {}", dtype.block_size()));
    }
    let extent = || {
        let elements = shape.iter().try_fold(1usize, |a, &b| a.checked_mul(b))?;
        let size = (elements / dtype.block_size()).checked_mul(dtype.type_size())?;
        let start = data.checked_add(usize::try_from(offset).ok()?)?;
        Some((start, start.checked_add(size)?))
    };
    match extent() {
        Some((start, end)) if end <= file => Ok(Entry { shape, dtype, start, end }),
        Some((_, end)) => Err(format!("ends at byte {end}, the file has {file}")),
        None => Err(format!("of shape {shape:?} at offset {offset} cannot exist")),
    }
}
