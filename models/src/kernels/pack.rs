//! How a quantised matrix lies in memory, and its exact repacking from GGUF blocks: the file's own integers and scales, nothing rounded.
//!
//! [`PANEL`] weight rows are interleaved, so that one vector holds the same four columns of each of them, and a product needs no sum across
//! lanes. Integers are unsigned (what they are too large by is taken away through the activations' sums) and keep nearly the bits that the
//! file has, because decoding is bound by how fast weights come from memory. Source of the file's layouts: ggml-quants.c
//! (`dequantize_row_*`).

use candle_core::quantized::GgmlDType;
use half::f16;
use rayon::prelude::*;

use super::BLOCK;

/// Weight rows that are interleaved.
pub(super) const PANEL: usize = 16;
/// Blocks under one f16 scale of the K types.
pub(super) const SUPER: usize = 8;

/// A vector's worth of bytes, where a vector likes it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// The types that have kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Q4_0,
    Q5_0,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// How a block's integers become numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// An f16 scale a block: `scales [block, row]`.
    Plain,
    /// An f16 scale and an f16 minimum for [`SUPER`] blocks, `scales [super, 2, row]`, and of each block a 6-bit factor for either, `factors
    /// [block, 2, row]`.
    Minimum,
    /// An f16 scale for [`SUPER`] blocks, `scales [super, row]`, and a signed factor for each half block, `factors [block, 2, row]`.
    Halves,
}

impl Type {
    fn of(dtype: GgmlDType) -> Option<Self> {
        Some(match dtype {
            GgmlDType::Q4_0 => Self::Q4_0,
            GgmlDType::Q5_0 => Self::Q5_0,
            GgmlDType::Q8_0 => Self::Q8_0,
            GgmlDType::Q4K => Self::Q4K,
            GgmlDType::Q5K => Self::Q5K,
            GgmlDType::Q6K => Self::Q6K,
            _ => return None,
        })
    }

    pub(super) const fn bits(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4K => 4,
            Self::Q5_0 | Self::Q5K => 5,
            Self::Q6K => 6,
            Self::Q8_0 => 8,
        }
    }

    pub(super) const fn scheme(self) -> Scheme {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => Scheme::Plain,
            Self::Q4K | Self::Q5K => Scheme::Minimum,
            Self::Q6K => Scheme::Halves,
        }
    }

    /// What the stored integers are too large by.
    pub(super) const fn offset(self) -> i32 {
        match self.scheme() {
            Scheme::Minimum => 0,
            _ => 1 << (self.bits() - 1),
        }
    }

    /// Scales of `blocks` blocks of a panel.
    const fn scales(self, blocks: usize) -> usize {
        PANEL
            * match self.scheme() {
                Scheme::Plain => blocks,
                Scheme::Minimum => 2 * blocks / SUPER,
                Scheme::Halves => blocks / SUPER,
            }
    }

    /// Factors of `blocks` blocks of a panel.
    const fn factors(self, blocks: usize) -> usize {
        match self.scheme() {
            Scheme::Plain => 0,
            _ => 2 * PANEL * blocks,
        }
    }
}

/// A quantised weight matrix `[rows, cols]`, ready for the kernels.
pub(crate) struct QMatrix {
    pub(super) kind: Type,
    rows: usize,
    cols: usize,
    /// As many lines a block and panel as an integer has bits: nibbles first, then what is above them.
    lines: Vec<Line>,
    /// f16, as bits.
    scales: Vec<u16>,
    factors: Vec<u8>,
}

impl std::fmt::Debug for QMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QMatrix [{}, {}] of {:?}", self.rows, self.cols, self.kind)
    }
}

/// [`PANEL`] rows of a matrix; rows that it does not have are zero.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    pub(super) lines: &'a [Line],
    pub(super) scales: &'a [u16],
    pub(super) factors: &'a [u8],
}

impl QMatrix {
    /// Rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    pub(super) fn blocks(&self) -> usize {
        self.cols / BLOCK
    }

    pub(super) fn panel(&self, p: usize) -> Panel<'_> {
        let blocks = self.blocks();
        let (lines, scales, factors) = (blocks * self.kind.bits(), self.kind.scales(blocks), self.kind.factors(blocks));
        Panel {
            lines: &self.lines[p * lines..(p + 1) * lines],
            scales: &self.scales[p * scales..(p + 1) * scales],
            factors: &self.factors[p * factors..(p + 1) * factors],
        }
    }

    /// Row `i` in f32.
    pub(crate) fn values(&self, i: usize) -> Vec<f32> {
        let (panel, row) = (self.panel(i / PANEL), i % PANEL);
        let mut out = Vec::with_capacity(self.cols);
        for (b, lines) in panel.lines.chunks_exact(self.kind.bits()).enumerate() {
            let (scales, minimum) = panel.scale(self.kind, b, row);
            for j in 0..BLOCK {
                let q = i32::from(integer(lines, row, j)) - self.kind.offset();
                out.push(scales[j / (BLOCK / 2)] * q as f32 - minimum);
            }
        }
        out
    }
}

impl Panel<'_> {
    /// A row's scales in both halves of block `b`, and its minimum.
    pub(super) fn scale(&self, kind: Type, b: usize, row: usize) -> ([f32; 2], f32) {
        let scale = |i: usize| f16::from_bits(self.scales[i * PANEL + row]).to_f32();
        let factor = |i: usize| self.factors[(2 * b + i) * PANEL + row];
        match kind.scheme() {
            Scheme::Plain => ([scale(b); 2], 0.0),
            Scheme::Minimum => {
                let [d, least] = [scale(2 * (b / SUPER)), scale(2 * (b / SUPER) + 1)];
                ([d * f32::from(factor(0)); 2], least * f32::from(factor(1)))
            }
            Scheme::Halves => {
                let d = scale(b / SUPER);
                ([0, 1].map(|i| d * f32::from(factor(i) as i8)), 0.0)
            }
        }
    }
}

/// The integer of `row` in column `j` of a block's lines.
pub(super) fn integer(lines: &[Line], row: usize, j: usize) -> u8 {
    let (group, byte) = (j / 4, 4 * row + j % 4);
    let nibble = || lines[group % 4].0[byte] >> (4 * (group / 4)) & 15;
    match lines.len() {
        4 => nibble(),
        5 => nibble() | (lines[4].0[byte] >> group & 1) << 4,
        6 => nibble() | (lines[4 + group / 4].0[byte] >> (2 * (group % 4)) & 3) << 4,
        _ => lines[group].0[byte],
    }
}

/// Puts a block of a row's integers there, four columns at a time; the lines were zero.
fn place(lines: &mut [Line], row: usize, block: &[u8; BLOCK]) {
    let kept = lines.len();
    let mut or = |line: usize, four: u32| {
        let to: &mut [u8; 4] = (&mut lines[line].0[4 * row..4 * row + 4]).try_into().expect("four bytes");
        *to = (u32::from_le_bytes(*to) | four).to_le_bytes();
    };
    for (group, four) in block.as_chunks::<4>().0.iter().enumerate() {
        let four = u32::from_le_bytes(*four);
        if kept == 8 {
            or(group, four);
            continue;
        }
        or(group % 4, (four & 0x0f0f_0f0f) << (4 * (group / 4)));
        match kept {
            5 => or(4, (four >> 4 & 0x0101_0101) << group),
            6 => or(4 + group / 4, (four >> 4 & 0x0303_0303) << (2 * (group % 4))),
            _ => {}
        }
    }
}

/// Repacks a matrix stored as `dtype` blocks; `Err` says what the blocks hold that no trained model does.
pub(crate) fn repack(bytes: &[u8], dtype: GgmlDType, rows: usize, cols: usize) -> Result<QMatrix, String> {
    let Some(kind) = Type::of(dtype) else { return Err(format!("type {dtype:?} has no quantised kernel")) };
    if cols == 0
        || !cols.is_multiple_of(dtype.block_size())
        || bytes.len() != rows * cols / dtype.block_size() * dtype.type_size()
    {
        return Err(format!("{} bytes are not a {rows} × {cols} matrix of {dtype:?}", bytes.len()));
    }
    let (blocks, panels) = (cols / BLOCK, rows.div_ceil(PANEL));
    let sizes = [blocks * kind.bits(), kind.scales(blocks), kind.factors(blocks)];
    let mut lines = vec![Line([0; 64]); panels * sizes[0]];
    let mut scales = vec![0u16; panels * sizes[1]];
    let mut factors = vec![0u8; panels * sizes[2]];
    let row_bytes = cols / dtype.block_size() * dtype.type_size();
    let pack = |(p, panel): (usize, Packing<'_>)| {
        let own = &bytes[p * PANEL * row_bytes..rows.min((p + 1) * PANEL) * row_bytes];
        for (row, own) in own.chunks_exact(row_bytes).enumerate() {
            for (i, block) in own.chunks_exact(dtype.type_size()).enumerate() {
                let per = dtype.block_size() / BLOCK;
                let lines = &mut panel.lines[i * per * kind.bits()..(i + 1) * per * kind.bits()];
                unpack(kind, block, i, row, Packing { lines, scales: panel.scales, factors: panel.factors });
            }
        }
    };
    let mut factor_parts = factors.chunks_exact_mut(sizes[2].max(1));
    let parts = lines.chunks_exact_mut(sizes[0]).zip(scales.chunks_exact_mut(sizes[1])).map(|(lines, scales)| {
        // Some types have no factors.
        Packing { lines, scales, factors: factor_parts.next().unwrap_or_default() }
    });
    parts.collect::<Vec<_>>().into_par_iter().enumerate().for_each(pack);
    if scales.iter().any(|s| !f16::from_bits(*s).is_finite()) {
        return Err("holds scales that are not finite".into());
    }
    Ok(QMatrix { kind, rows, cols, lines, scales, factors })
}

/// Where one file block of a panel's row goes: its own lines, the whole panel's scales and factors.
struct Packing<'a> {
    lines: &'a mut [Line],
    scales: &'a mut [u16],
    factors: &'a mut [u8],
}

/// File block `i` of a row.
fn unpack(kind: Type, block: &[u8], i: usize, row: usize, to: Packing<'_>) {
    let half_at = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    match kind {
        Type::Q4_0 | Type::Q5_0 | Type::Q8_0 => to.scales[i * PANEL + row] = half_at(0),
        Type::Q4K | Type::Q5K => {
            to.scales[2 * i * PANEL + row] = half_at(0);
            to.scales[(2 * i + 1) * PANEL + row] = half_at(2);
            for j in 0..SUPER {
                let (scale, least) = scale_min(j, &block[4..16]);
                to.factors[2 * (i * SUPER + j) * PANEL + row] = scale;
                to.factors[(2 * (i * SUPER + j) + 1) * PANEL + row] = least;
            }
        }
        Type::Q6K => {
            to.scales[i * PANEL + row] = half_at(208);
            for (j, scale) in block[192..208].iter().enumerate() {
                to.factors[(2 * i * SUPER + j) * PANEL + row] = *scale;
            }
        }
    }
    let mut numbers = [0u8; BLOCK * SUPER];
    let mut put = |j: usize, q: u8| numbers[j] = q;
    match kind {
        Type::Q8_0 => block[2..].iter().enumerate().for_each(|(j, q)| put(j, q ^ 128)),
        Type::Q4_0 => {
            for (j, q) in block[2..].iter().enumerate() {
                put(j, q & 15);
                put(j + 16, q >> 4);
            }
        }
        Type::Q5_0 => {
            let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
            let fifth = |bit: usize| ((high >> bit & 1) << 4) as u8;
            for (j, q) in block[6..].iter().enumerate() {
                put(j, q & 15 | fifth(j));
                put(j + 16, q >> 4 | fifth(j + 16));
            }
        }
        Type::Q4K => {
            for (j, q) in block[16..].iter().enumerate() {
                put(j / 32 * 64 + j % 32, q & 15);
                put(j / 32 * 64 + 32 + j % 32, q >> 4);
            }
        }
        Type::Q5K => {
            let fifth = |j: usize, bit: usize| (block[16 + j % 32] >> bit & 1) << 4;
            for (j, q) in block[48..].iter().enumerate() {
                put(j / 32 * 64 + j % 32, q & 15 | fifth(j, j / 32 * 2));
                put(j / 32 * 64 + 32 + j % 32, q >> 4 | fifth(j, j / 32 * 2 + 1));
            }
        }
        Type::Q6K => {
            for (j, q) in block[..128].iter().enumerate() {
                let (n, k) = (j / 64, j % 64);
                let high = |part: usize| (block[128 + 32 * n + k % 32] >> (2 * part) & 3) << 4;
                put(128 * n + k, q & 15 | high(k / 32));
                put(128 * n + 64 + k, q >> 4 | high(2 + k / 32));
            }
        }
    }
    for (lines, block) in to.lines.chunks_exact_mut(kind.bits()).zip(numbers.as_chunks::<BLOCK>().0) {
        place(lines, row, block);
    }
}

/// The 6-bit scale and minimum number `i` of a K block's 12 bytes.
fn scale_min(i: usize, packed: &[u8]) -> (u8, u8) {
    if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        ((packed[i + 4] & 15) | (packed[i - 4] >> 6 << 4), (packed[i + 4] >> 4) | (packed[i] >> 6 << 4))
    }
}
