//! Where a model runs.

use candle_core::{DType, Device};

use crate::{Error, Result};

/// The device that `auto`, `cpu`, `cuda:N` or `metal` names. `auto` takes a GPU this build can use and falls back to the CPU.
///
/// # Errors
/// A name that is none of these, or a device that this build or this machine has not.
pub fn device(name: &str) -> Result<Device> {
    let missing = |e: candle_core::Error| Error::Config(format!("device {name}: {e}"));
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" if candle_core::utils::cuda_is_available() => Ok(Device::new_cuda(0).unwrap_or(Device::Cpu)),
        "auto" if candle_core::utils::metal_is_available() => Ok(Device::new_metal(0).unwrap_or(Device::Cpu)),
        "auto" => Ok(Device::Cpu),
        "metal" => Device::new_metal(0).map_err(missing),
        _ => {
            let number = name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
            let number =
                number.ok_or_else(|| Error::Config(format!("device {name:?} is not auto, cpu, cuda:N or metal")))?;
            Device::new_cuda(number).map_err(missing)
        }
    }
}

/// What dense weights and KV are kept in on a device: bf16 on a GPU, f32 on a CPU (which has no bf16 arithmetic to gain from).
pub(crate) fn dtype(device: &Device) -> DType {
    if device.is_cpu() { DType::F32 } else { DType::BF16 }
}
