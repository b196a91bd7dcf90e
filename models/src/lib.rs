//! Step-Audio-R1's architecture in candle: candle and maths only, no sockets and no clock.
//!
//! ```text
//! samples (16 kHz) ─ mel ─ encoder (25 Hz) ─ adaptor (12.5 Hz) ─┐
//! text ─ tokenizer ─────────────────────────────────────────────┴─ decoder over kv ─ sampler ─ splitter ─ reasoning, reply
//! ```
//!
//! [`checkpoint::Checkpoint`] opens a model and owns all of it; [`prompt`] says what a conversation looks like to it.

pub mod adaptor;
pub mod checkpoint;
pub mod decoder;
mod device;
pub mod ear;
pub mod encoder;
mod error;
pub mod finish;
mod kernels;
pub mod kv;
mod linear;
pub mod mel;
pub mod prompt;
pub mod sampler;
pub mod splitter;
pub mod tokenizer;
mod weights;
pub mod words;

pub use candle_core::{DType, Device, Tensor};
pub use device::device;
pub use error::{Error, Result};
pub use kernels::use_level;

/// All tensors of a safetensors file, on the CPU.
///
/// # Errors
/// A file that is missing or is not safetensors.
pub fn tensors(path: &std::path::Path) -> Result<std::collections::HashMap<String, Tensor>> {
    candle_core::safetensors::load(path, &Device::Cpu).map_err(|e| Error::file(path, e))
}
