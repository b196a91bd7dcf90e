//! Activation rows in the order in which the kernels read them: quantised to 8 bits, or as they are.

use super::pack::{PANEL, Scheme, Type};
use super::{BLOCK, Level};

/// Activation rows that pass a panel together.
pub(super) const TILE: usize = 16;
/// Values of half a block: what shares a factor in the finest type.
const HALF: usize = BLOCK / 2;

/// What a kernel gives: the sums of a tile's rows with a panel's.
pub(super) type Sums = [[f32; PANEL]; TILE];

/// Memory that several tasks fill, each its own places.
pub(crate) struct Slots<T> {
    at: *mut T,
    len: usize,
}

// SAFETY: whoever writes promises to be alone at its place.
unsafe impl<T: Send> Send for Slots<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Slots<T> {}

impl<T: Copy> Slots<T> {
    pub(crate) fn new(memory: &mut [T]) -> Self {
        Self { at: memory.as_mut_ptr(), len: memory.len() }
    }

    /// The places `from..from + n`.
    ///
    /// # Safety
    /// The memory must still be borrowed by whom it was taken from, and nobody else may use these places as long as they are used here.
    #[expect(clippy::mut_from_ref, reason = "that is what it is for, and why it is unsafe")]
    pub(crate) unsafe fn part(&self, from: usize, n: usize) -> &mut [T] {
        assert!(from <= self.len && n <= self.len - from);
        // SAFETY: inside the memory, as just checked; alone there, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(from), n) }
    }

    /// Writes `value` to place `i`.
    ///
    /// # Safety
    /// As for [`Slots::part`].
    #[inline(always)]
    pub(super) unsafe fn put(&self, i: usize, value: T) {
        assert!(i < self.len);
        // SAFETY: inside the memory, as just checked; alone there, as the caller promises.
        unsafe { self.at.add(i).write(value) }
    }
}

/// Rows by tiles of [`TILE`], the last with what is left; in a tile column by column (or block by block), in a column row by row: a kernel
/// walks straight through memory whatever the number of rows. This is where number 0 of a row is, and how far the next one.
pub(super) fn place(row: usize, rows: usize, columns: usize) -> (usize, usize) {
    let tile = row / TILE;
    let stride = TILE.min(rows - tile * TILE);
    (tile * TILE * columns + row % TILE, stride)
}

/// The place of a tile, and its rows.
pub(super) fn stretch(tile: usize, rows: usize, columns: usize) -> (std::ops::Range<usize>, usize) {
    let own = TILE.min(rows - tile * TILE);
    (tile * TILE * columns..(tile * TILE + own) * columns, own)
}

/// f32 rows.
#[derive(Debug)]
pub(super) struct Columns {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl Columns {
    pub(super) fn new(rows: usize, cols: usize) -> Self {
        Self { rows, cols, values: vec![0.0; rows * cols] }
    }

    pub(super) fn slots(&mut self) -> Slots<f32> {
        Slots::new(&mut self.values)
    }

    /// Puts row `row` where it belongs.
    ///
    /// # Safety
    /// `slots` must be those of a `Columns` of `rows` rows, still there, and no other thread may write this row.
    pub(super) unsafe fn fill(slots: &Slots<f32>, row: usize, rows: usize, x: &[f32]) {
        let (first, stride) = place(row, rows, x.len());
        for (k, x) in x.iter().enumerate() {
            // SAFETY: places of this row alone.
            unsafe { slots.put(first + k * stride, *x) };
        }
    }

    /// Puts a whole tile, the rows `rows` of `cols` numbers, where it belongs: written straight through, which row by row it is not.
    ///
    /// # Safety
    /// As for [`Columns::fill`], for all of the tile's rows; `rows` of `all` must be a tile.
    pub(super) unsafe fn fill_tile<'a>(
        slots: &Slots<f32>,
        rows: std::ops::Range<usize>,
        all: usize,
        cols: usize,
        row: impl Fn(usize) -> &'a [f32],
    ) {
        let (range, own) = stretch(rows.start / TILE, all, cols);
        assert!(rows.start.is_multiple_of(TILE) && rows.len() == own);
        // SAFETY: places of this tile alone.
        let out = unsafe { slots.part(range.start, range.len()) };
        let mut sources: [&[f32]; TILE] = [&[]; TILE];
        sources.iter_mut().zip(rows).for_each(|(to, i)| *to = &row(i)[..cols]);
        for (k, out) in out.chunks_exact_mut(own).enumerate() {
            out.iter_mut().zip(&sources).for_each(|(to, row)| *to = row[k]);
        }
    }

    /// Row `i`.
    pub(super) fn row(&self, i: usize) -> Vec<f32> {
        let (first, stride) = place(i, self.rows, self.cols);
        (0..self.cols).map(|k| self.values[first + k * stride]).collect()
    }

    /// The tile's `[cols, rows]`, and its rows.
    pub(super) fn tile(&self, i: usize) -> (&[f32], usize) {
        let (range, rows) = stretch(i, self.rows, self.cols);
        (&self.values[range], rows)
    }
}

/// Quantised rows.
pub(super) struct Activations {
    rows: usize,
    blocks: usize,
    quants: Vec<[i8; BLOCK]>,
    /// One scale a block.
    scales: Vec<f32>,
    /// What a block's integer product begins with: minus the sum of its integers times what the weights' are too large by. With
    /// [`Scheme::Minimum`], minus the plain sum.
    starts: Vec<i32>,
    /// The same for each half, with [`Scheme::Halves`].
    half_starts: Vec<[i32; 2]>,
    offset: i32,
}

/// A tile of them.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) rows: usize,
    pub(super) blocks: usize,
    /// `[block, row]`, as all of these.
    pub(super) quants: &'a [[i8; BLOCK]],
    pub(super) scales: &'a [f32],
    pub(super) starts: &'a [i32],
    pub(super) half_starts: &'a [[i32; 2]],
}

/// [`Activations`] to be filled.
pub(super) struct Filling {
    rows: usize,
    quants: Slots<[i8; BLOCK]>,
    scales: Slots<f32>,
    starts: Slots<i32>,
    half_starts: Slots<[i32; 2]>,
    offset: i32,
}

impl Activations {
    /// Room for `rows` rows of `cols` numbers, for products with a matrix of type `kind`.
    pub(super) fn new(rows: usize, cols: usize, kind: Type) -> Self {
        let blocks = cols / BLOCK;
        let all = rows * blocks;
        let halves = kind.scheme() == Scheme::Halves;
        Self {
            rows,
            blocks,
            quants: vec![[0; BLOCK]; all],
            scales: vec![0.0; all],
            starts: vec![0; if halves { 0 } else { all }],
            half_starts: vec![[0; 2]; if halves { all } else { 0 }],
            offset: if kind.scheme() == Scheme::Minimum { 1 } else { kind.offset() },
        }
    }

    pub(super) fn filling(&mut self) -> Filling {
        Filling {
            rows: self.rows,
            quants: Slots::new(&mut self.quants),
            scales: Slots::new(&mut self.scales),
            starts: Slots::new(&mut self.starts),
            half_starts: Slots::new(&mut self.half_starts),
            offset: self.offset,
        }
    }

    pub(super) fn tile(&self, i: usize) -> Tile<'_> {
        let (range, rows) = stretch(i, self.rows, self.blocks);
        Tile {
            rows,
            blocks: self.blocks,
            quants: &self.quants[range.clone()],
            scales: &self.scales[range.clone()],
            starts: if self.starts.is_empty() { &[] } else { &self.starts[range.clone()] },
            half_starts: if self.half_starts.is_empty() { &[] } else { &self.half_starts[range] },
        }
    }
}

impl Filling {
    /// Quantises row `row`.
    ///
    /// # Safety
    /// The activations must still be there, and no other thread may fill this row.
    pub(super) unsafe fn fill(&self, row: usize, x: &[f32], level: Level) {
        match level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a level is only made where the processor has what it names; the rest is the caller's promise.
            Level::Avx512 => unsafe { avx512(self, row, x) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2 | Level::AvxVnni => unsafe { avx2(self, row, x) },
            // SAFETY: as above.
            _ => unsafe { body(self, row, x) },
        }
    }
}

/// What `body` does, in whole vectors: left to the compiler, the maximum of a block and its sums took five times as long.
///
/// # Safety
/// As for [`Filling::fill`], and the processor must have AVX-512 F, BW and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn avx512(to: &Filling, row: usize, x: &[f32]) {
    use std::arch::x86_64::{
        _mm_storeu_si128, _mm512_abs_ps, _mm512_add_epi32, _mm512_add_ps, _mm512_castps_si512, _mm512_cvtepi32_epi8,
        _mm512_loadu_ps, _mm512_max_ps, _mm512_mul_ps, _mm512_reduce_add_epi32, _mm512_reduce_max_ps, _mm512_set1_ps,
        _mm512_slli_epi32, _mm512_srai_epi32,
    };
    let (first, stride) = place(row, to.rows, x.len() / BLOCK);
    for (b, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        let at = first + b * stride;
        // SAFETY: two times sixteen numbers.
        let halves = [0, HALF].map(|i| unsafe { _mm512_loadu_ps(x.as_ptr().add(i)) });
        let peak = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(halves[0]), _mm512_abs_ps(halves[1])));
        let scale = peak / 127.0;
        let inverse = _mm512_set1_ps(if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 });
        // As in `body`.
        let integers = halves.map(|x| {
            let sum = _mm512_add_ps(_mm512_mul_ps(x, inverse), _mm512_set1_ps(12_582_912.0));
            _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(_mm512_castps_si512(sum)))
        });
        let mut bytes = [0i8; BLOCK];
        for (to, integers) in bytes.chunks_exact_mut(HALF).zip(integers) {
            // SAFETY: sixteen bytes.
            unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(integers)) };
        }
        // SAFETY: places of this row alone.
        unsafe {
            to.quants.put(at, bytes);
            to.scales.put(at, scale);
            if to.half_starts.len == 0 {
                let sum = _mm512_reduce_add_epi32(_mm512_add_epi32(integers[0], integers[1]));
                to.starts.put(at, -to.offset * sum);
            } else {
                to.half_starts.put(at, integers.map(|half| -to.offset * _mm512_reduce_add_epi32(half)));
            }
        }
    }
}

/// # Safety
/// As for [`Filling::fill`], and the processor must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(to: &Filling, row: usize, x: &[f32]) {
    // SAFETY: the caller's promise.
    unsafe { body(to, row, x) }
}

/// Plain Rust in lanes, compiled once for each instruction set: all give the same integers.
///
/// # Safety
/// As for [`Filling::fill`].
#[inline(always)]
unsafe fn body(to: &Filling, row: usize, x: &[f32]) {
    let (first, stride) = place(row, to.rows, x.len() / BLOCK);
    for (b, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        let at = first + b * stride;
        let mut peaks = [0f32; HALF];
        for (i, peak) in peaks.iter_mut().enumerate() {
            let (a, b) = (x[i].abs(), x[i + HALF].abs());
            *peak = if a > b { a } else { b };
        }
        let mut half = HALF / 2;
        while half > 0 {
            for i in 0..half {
                peaks[i] = if peaks[i] > peaks[i + half] { peaks[i] } else { peaks[i + half] };
            }
            half /= 2;
        }
        let scale = peaks[0] / 127.0;
        let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
        let mut integers = [0i32; BLOCK];
        for (q, v) in integers.iter_mut().zip(x) {
            // Adding 1.5 · 2^23 rounds half to even, and leaves the integer in the low bits of the sum; no NaN becomes more than 8 bits.
            *q = (((v * inverse + 12_582_912.0).to_bits() << 24) as i32) >> 24;
        }
        let mut bytes = [0i8; BLOCK];
        for (to, q) in bytes.iter_mut().zip(&integers) {
            *to = *q as i8;
        }
        let sum = |half: &[i32]| -> i32 { half.iter().sum() };
        let sums = [sum(&integers[..HALF]), sum(&integers[HALF..])];
        // SAFETY: places of this row alone.
        unsafe {
            to.quants.put(at, bytes);
            to.scales.put(at, scale);
            if to.half_starts.len == 0 {
                to.starts.put(at, -to.offset * (sums[0] + sums[1]));
            } else {
                to.half_starts.put(at, sums.map(|s| -to.offset * s));
            }
        }
    }
}
