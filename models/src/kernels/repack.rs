//! GGUF blocks to [`QMatrix`]: the file's own integers and the products of its scales, nothing rounded.
//!
//! Source of the layouts: ggml-quants.c (`dequantize_row_*`).

use candle_core::quantized::GgmlDType;
use half::f16;

use super::{BLOCK, QMatrix};

/// Repacks a matrix stored as `dtype` blocks; `Err` says what the blocks hold that no trained model does.
pub(crate) fn repack(bytes: &[u8], dtype: GgmlDType, rows: usize, cols: usize) -> Result<QMatrix, String> {
    let blocks = rows * cols / BLOCK;
    let mut out = QMatrix {
        rows,
        cols,
        quants: Vec::with_capacity(rows * cols),
        scales: Vec::with_capacity(blocks),
        minima: Vec::new(),
    };
    let unpack: fn(&[u8], &mut QMatrix) = match dtype {
        GgmlDType::Q4_0 => q4_0,
        GgmlDType::Q5_0 => q5_0,
        GgmlDType::Q8_0 => q8_0,
        GgmlDType::Q4K => q4_k,
        GgmlDType::Q5K => q5_k,
        GgmlDType::Q6K => q6_k,
        other => return Err(format!("type {other:?} has no quantised kernel")),
    };
    if !cols.is_multiple_of(dtype.block_size()) || bytes.len() != rows * cols / dtype.block_size() * dtype.type_size() {
        return Err(format!("{} bytes are not a {rows} × {cols} matrix of {dtype:?}", bytes.len()));
    }
    for block in bytes.chunks_exact(dtype.type_size()) {
        unpack(block, &mut out);
    }
    let finite = out.scales.iter().flatten().chain(&out.minima).all(|s| s.is_finite());
    if finite { Ok(out) } else { Err("holds scales that are not finite".into()) }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q4_0(block: &[u8], out: &mut QMatrix) {
    let nibbles = &block[2..];
    out.quants.extend(nibbles.iter().map(|q| (q & 15) as i8 - 8));
    out.quants.extend(nibbles.iter().map(|q| (q >> 4) as i8 - 8));
    out.scales.push([half_at(block, 0); 2]);
}

fn q5_0(block: &[u8], out: &mut QMatrix) {
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let fifth = |bit: usize| ((high >> bit & 1) << 4) as i8;
    let nibbles = &block[6..];
    out.quants.extend(nibbles.iter().enumerate().map(|(i, q)| ((q & 15) as i8 | fifth(i)) - 16));
    out.quants.extend(nibbles.iter().enumerate().map(|(i, q)| ((q >> 4) as i8 | fifth(i + 16)) - 16));
    out.scales.push([half_at(block, 0); 2]);
}

fn q8_0(block: &[u8], out: &mut QMatrix) {
    out.quants.extend(block[2..].iter().map(|q| *q as i8));
    out.scales.push([half_at(block, 0); 2]);
}

/// The 6-bit scale and minimum number `i` of a K block's 12 bytes.
fn scale_min(i: usize, packed: &[u8]) -> (f32, f32) {
    let (scale, min) = if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        ((packed[i + 4] & 15) | (packed[i - 4] >> 6 << 4), (packed[i + 4] >> 4) | (packed[i] >> 6 << 4))
    };
    (f32::from(scale), f32::from(min))
}

fn k_scales(block: &[u8], out: &mut QMatrix) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for i in 0..8 {
        let (scale, min) = scale_min(i, &block[4..16]);
        out.scales.push([d * scale; 2]);
        out.minima.push(dmin * min);
    }
}

fn q4_k(block: &[u8], out: &mut QMatrix) {
    k_scales(block, out);
    for nibbles in block[16..].chunks_exact(32) {
        out.quants.extend(nibbles.iter().map(|q| (q & 15) as i8));
        out.quants.extend(nibbles.iter().map(|q| (q >> 4) as i8));
    }
}

fn q5_k(block: &[u8], out: &mut QMatrix) {
    k_scales(block, out);
    let high = &block[16..48];
    for (j, nibbles) in block[48..].chunks_exact(32).enumerate() {
        let fifth = |i: usize, bit: usize| ((high[i] >> bit & 1) << 4) as i8;
        out.quants.extend(nibbles.iter().enumerate().map(|(i, q)| (q & 15) as i8 | fifth(i, 2 * j)));
        out.quants.extend(nibbles.iter().enumerate().map(|(i, q)| (q >> 4) as i8 | fifth(i, 2 * j + 1)));
    }
}

fn q6_k(block: &[u8], out: &mut QMatrix) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for n in 0..2 {
        let (low, high) = (&low[64 * n..64 * n + 64], &high[32 * n..32 * n + 32]);
        for part in 0..4 {
            let nibbles = &low[32 * (part % 2)..][..32];
            out.quants.extend(nibbles.iter().zip(high).map(|(l, h)| {
                let l = if part < 2 { l & 15 } else { l >> 4 };
                (l | (h >> (2 * part) & 3) << 4) as i8 - 32
            }));
            let scale = |half: usize| d * f32::from(scales[8 * n + 2 * part + half] as i8);
            out.scales.push([scale(0), scale(1)]);
        }
    }
}
