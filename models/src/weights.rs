//! Where a checkpoint's tensors come from: one look-up by the official names over safetensors, GGUF or tensors made at load.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};

use crate::checkpoint::gguf::Gguf;
use crate::kernels;
use crate::linear::{Linear, Matrix};
use crate::{Error, Result};

enum Source {
    Safetensors(MmapedSafetensors),
    Gguf(Gguf),
    Memory(HashMap<String, Tensor>),
}

/// A checkpoint's tensors, looked up by name in the order the sources were added.
pub(crate) struct Weights {
    sources: Vec<Source>,
    device: Device,
    dtype: DType,
}

impl Weights {
    /// No sources yet. Dense tensors are given out as `dtype` on `device`.
    pub(crate) fn new(device: &Device, dtype: DType) -> Self {
        Self { sources: Vec::new(), device: device.clone(), dtype }
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn add_safetensors(&mut self, paths: &[PathBuf]) -> Result<()> {
        for path in paths {
            // SAFETY: the mapping is read-only; a file changed under a running process is the operator's doing, as with any mapped library.
            let file = unsafe { MmapedSafetensors::new(path) }.map_err(|e| Error::file(path, e))?;
            self.sources.push(Source::Safetensors(file));
        }
        Ok(())
    }

    pub(crate) fn add_safetensors_bytes(&mut self, name: &Path, bytes: &[u8]) -> Result<()> {
        let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(|e| Error::file(name, e))?;
        self.add_tensors(tensors);
        Ok(())
    }

    pub(crate) fn add_gguf(&mut self, gguf: Gguf) {
        self.sources.push(Source::Gguf(gguf));
    }

    pub(crate) fn add_tensors(&mut self, tensors: HashMap<String, Tensor>) {
        self.sources.push(Source::Memory(tensors));
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.sources.iter().any(|s| match s {
            Source::Safetensors(f) => f.get(name).is_ok(),
            Source::Gguf(f) => f.has(name),
            Source::Memory(f) => f.contains_key(name),
        })
    }

    /// A tensor as it is stored (quantised ones dequantised), on the CPU.
    fn stored(&self, name: &str) -> Result<Tensor> {
        let found = self.sources.iter().find_map(|s| match s {
            Source::Safetensors(f) => f.get(name).is_ok().then(|| f.load(name, &Device::Cpu).map_err(Error::from)),
            Source::Gguf(f) => f.has(name).then(|| f.dense(name)),
            Source::Memory(f) => f.get(name).map(|t| Ok(t.clone())),
        });
        found.ok_or_else(|| Error::tensor(name, "is missing from the checkpoint"))?
    }

    /// A vector's length, where the config does not tell it.
    pub(crate) fn length(&self, name: &str) -> Result<usize> {
        self.stored(name)?.dims1().map_err(|e| Error::tensor(name, e))
    }

    /// A matrix's shape, where the config does not tell it.
    pub(crate) fn shape2(&self, name: &str) -> Result<(usize, usize)> {
        self.stored(name)?.dims2().map_err(|e| Error::tensor(name, e))
    }

    /// A dense tensor of exactly `shape`, all of it finite.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.stored(name)?;
        if tensor.dims() != shape {
            return Err(Error::tensor(name, format!("has shape {:?}, the config says {shape:?}", tensor.dims())));
        }
        if !finite(&tensor)? {
            return Err(Error::tensor(name, "holds values that are not finite"));
        }
        Ok(tensor.to_dtype(self.dtype)?.to_device(&self.device)?)
    }

    /// The linear layer `name` with weights `[out, input]`; quantised weights stay quantised.
    pub(crate) fn linear(&self, name: &str, out: usize, input: usize, bias: bool) -> Result<Linear> {
        let weight = format!("{name}.weight");
        let bias = if bias { Some(self.tensor(&format!("{name}.bias"), &[out])?) } else { None };
        let weight = match self.quantised(&weight, out, input)? {
            Some(quantised) => quantised,
            None => Matrix::Dense(self.tensor(&weight, &[out, input])?),
        };
        Linear::new(weight, bias)
    }

    /// The quantised matrix `name` of exactly `[rows, cols]`; `None` where it is stored dense.
    pub(crate) fn quantised(&self, name: &str, rows: usize, cols: usize) -> Result<Option<Matrix>> {
        let gguf = self.sources.iter().find_map(|s| match s {
            Source::Gguf(f) if f.is_quantised(name) => Some(f),
            _ => None,
        });
        let Some(gguf) = gguf else { return Ok(None) };
        let (bytes, dtype, shape) = gguf.blocks(name)?;
        if shape != [rows, cols] {
            return Err(Error::tensor(name, format!("has shape {shape:?}, the config says [{rows}, {cols}]")));
        }
        // Packing checks the scales, and is what the CPU needs anyway.
        let packed = kernels::repack(bytes, dtype, rows, cols).map_err(|e| Error::tensor(name, e))?;
        Ok(Some(if self.device.is_cpu() {
            Matrix::repacked(packed)
        } else {
            Matrix::Quantised(Arc::new(gguf.quantised(name, &self.device)?))
        }))
    }
}

/// Whether every value is finite.
pub(crate) fn finite(tensor: &Tensor) -> Result<bool> {
    if !tensor.dtype().is_float() {
        return Ok(true);
    }
    let flat = tensor.flatten_all()?;
    Ok(match flat.dtype() {
        DType::F32 => flat.to_vec1::<f32>()?.iter().all(|x| x.is_finite()),
        DType::F16 => flat.to_vec1::<half::f16>()?.iter().all(|x| x.is_finite()),
        DType::BF16 => flat.to_vec1::<half::bf16>()?.iter().all(|x| x.is_finite()),
        _ => flat.to_dtype(DType::F32)?.to_vec1::<f32>()?.iter().all(|x| x.is_finite()),
    })
}
