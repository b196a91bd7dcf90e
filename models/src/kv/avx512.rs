//! Attention over one block with AVX-512: keys and values are read as they are stored, each once for up to eight query rows.
//!
//! A row's scores, and its mixture's numbers, are chains of fused multiply-adds in the order of dimensions and of tokens, however many rows go
//! side by side: so a row still depends on neither its chunk nor its batch.

#![allow(clippy::needless_range_loop, reason = "several arrays go by one index, and stay in registers")]

use std::arch::x86_64::{
    __m512, _mm_loadu_si128, _mm256_loadu_si256, _mm512_add_ps, _mm512_castsi512_ps, _mm512_cvtepi8_epi32,
    _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_ps,
    _mm512_mask_blend_ps, _mm512_max_ps, _mm512_mul_ps, _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_scalef_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_sub_ps,
};

use half::{bf16, f16};

use super::BLOCK;
use super::attend::{Row, exp};
use super::store::{GROUP, LANES, Plane};

/// Numbers of a vector.
const WIDE: usize = 16;

/// A plane's numbers, two vectors at a time.
///
/// # Safety of all of it
/// The processor must have AVX-512F, and `at..at + LANES` must lie within the plane.
trait Numbers: Copy {
    /// One dimension of the keys of all tokens of the block.
    unsafe fn keys(self, dimension: usize) -> [__m512; 2];

    /// [`LANES`] dimensions from `from` on of one token's values, of `padded` in all.
    unsafe fn values(self, token: usize, from: usize, padded: usize) -> [__m512; 2];
}

/// The same for types that convert number by number.
macro_rules! plain {
    ($number:ty, $at:ident => $load:expr) => {
        impl Numbers for &[$number] {
            #[inline]
            #[target_feature(enable = "avx512f")]
            unsafe fn keys(self, dimension: usize) -> [__m512; 2] {
                // SAFETY: the caller's promise.
                unsafe { self.values(0, dimension * BLOCK, 0) }
            }

            #[inline]
            #[target_feature(enable = "avx512f")]
            unsafe fn values(self, token: usize, from: usize, padded: usize) -> [__m512; 2] {
                let first = token * padded + from;
                [first, first + WIDE].map(|i| {
                    // SAFETY: the caller's promise.
                    let $at = unsafe { self.as_ptr().add(i) };
                    // SAFETY: sixteen numbers of the plane.
                    unsafe { $load }
                })
            }
        }
    };
}

plain!(f32, at => _mm512_loadu_ps(at));
plain!(f16, at => _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())));
plain!(bf16, at => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast())))));

/// 8-bit integers and their scales.
#[derive(Clone, Copy)]
struct Eight<'a> {
    quants: &'a [i8],
    scales: &'a [f32],
}

impl Eight<'_> {
    /// # Safety
    /// As for [`Numbers`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn integers(self, at: usize) -> __m512 {
        // SAFETY: the caller's promise.
        let bytes = unsafe { _mm_loadu_si128(self.quants.as_ptr().add(at).cast()) };
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
    }
}

impl Numbers for Eight<'_> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn keys(self, dimension: usize) -> [__m512; 2] {
        [0, WIDE].map(|i| {
            // SAFETY: the caller's promise; a group's scales are one a token.
            let (integers, scale) = unsafe {
                let scale = self.scales.as_ptr().add(dimension / GROUP * BLOCK + i);
                (self.integers(dimension * BLOCK + i), _mm512_loadu_ps(scale))
            };
            _mm512_mul_ps(integers, scale)
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn values(self, token: usize, from: usize, padded: usize) -> [__m512; 2] {
        let at = token * padded + from;
        // SAFETY: the caller's promise; a group of a token's numbers has one scale, and these are a group.
        let scale = unsafe { _mm512_set1_ps(*self.scales.get_unchecked(at / GROUP)) };
        // SAFETY: as above.
        [0, WIDE].map(|i| unsafe { _mm512_mul_ps(self.integers(at + i), scale) })
    }
}

const _: () = assert!(LANES == 2 * WIDE && BLOCK == LANES && GROUP == LANES);

/// As [`super::attend`] says: one block for all these rows.
///
/// # Safety
/// The processor must have AVX-512F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn over(
    head: usize,
    planes: [Plane<'_>; 2],
    visible: impl Fn(usize) -> usize,
    rows: &mut [Row],
    q: &[f32],
    mixed: &mut [f32],
) {
    match planes {
        [Plane::F32(keys), Plane::F32(values)] => groups(head, keys, values, values.len(), visible, rows, q, mixed),
        [Plane::F16(keys), Plane::F16(values)] => groups(head, keys, values, values.len(), visible, rows, q, mixed),
        [Plane::Bf16(keys), Plane::Bf16(values)] => groups(head, keys, values, values.len(), visible, rows, q, mixed),
        [Plane::Q8 { quants, scales }, Plane::Q8 { quants: values, scales: value_scales }] => {
            let (keys, plane) = (Eight { quants, scales }, values.len());
            groups(head, keys, Eight { quants: values, scales: value_scales }, plane, visible, rows, q, mixed)
        }
        _ => unreachable!("a block stores both alike"),
    }
}

/// Up to eight rows at a time. `plane`: numbers of a plane.
#[expect(clippy::too_many_arguments, reason = "a block and the rows over it")]
#[target_feature(enable = "avx512f")]
fn groups<N: Numbers>(
    head: usize,
    keys: N,
    values: N,
    plane: usize,
    visible: impl Fn(usize) -> usize,
    rows: &mut [Row],
    q: &[f32],
    mixed: &mut [f32],
) {
    let padded = plane / BLOCK;
    assert!(padded * BLOCK == plane && padded.is_multiple_of(LANES) && head <= padded);
    assert!(q.len() == rows.len() * head && mixed.len() == rows.len() * padded);
    let mut r = 0;
    while r < rows.len() {
        let n = (rows.len() - r).min(8);
        let (rows, q, mixed) = (&mut rows[r..r + n], &q[r * head..], &mut mixed[r * padded..]);
        macro_rules! some {
            ($($n:literal),*) => {
                match n {
                    $($n => {
                        let visible: [usize; $n] = std::array::from_fn(|i| visible(r + i));
                        // SAFETY: the planes are of this shape, as asserted above, and the slices hold so many rows.
                        unsafe { some::<$n, N>(head, padded, keys, values, visible, rows, q, mixed) }
                    })*
                    _ => unreachable!("one to eight"),
                }
            };
        }
        some!(1, 2, 3, 4, 5, 6, 7, 8);
        r += n;
    }
}

/// Scores, softmax so far, mixture so far.
///
/// # Safety
/// `keys` and `values` must be planes of `padded` times [`BLOCK`] numbers, and `rows`, `q` and `mixed` hold at least `R` rows.
#[expect(clippy::too_many_arguments, reason = "a block and the rows over it")]
#[target_feature(enable = "avx512f")]
unsafe fn some<const R: usize, N: Numbers>(
    head: usize,
    padded: usize,
    keys: N,
    values: N,
    visible: [usize; R],
    rows: &mut [Row],
    q: &[f32],
    mixed: &mut [f32],
) {
    let mut scores = [[_mm512_setzero_ps(); 2]; R];
    for d in 0..head {
        // SAFETY: a dimension of the head; the query rows have as many.
        let keys = unsafe { keys.keys(d) };
        for r in 0..R {
            // SAFETY: as above.
            let q = unsafe { _mm512_set1_ps(*q.get_unchecked(r * head + d)) };
            scores[r] = [_mm512_fmadd_ps(keys[0], q, scores[r][0]), _mm512_fmadd_ps(keys[1], q, scores[r][1])];
        }
    }
    let mut weights = [[0f32; BLOCK]; R];
    let mut fades = [1f32; R];
    for r in 0..R {
        // Beyond the row's own token lies the future, and memory that nobody has written yet.
        let seen = 1u64.unbounded_shl(visible[r] as u32).wrapping_sub(1);
        let nothing = _mm512_set1_ps(f32::NEG_INFINITY);
        let low = _mm512_mask_blend_ps(seen as u16, nothing, scores[r][0]);
        let high = _mm512_mask_blend_ps((seen >> WIDE) as u16, nothing, scores[r][1]);
        let row = &mut rows[r];
        let peak = _mm512_reduce_max_ps(_mm512_max_ps(low, high)).max(row.peak);
        if peak == f32::NEG_INFINITY {
            continue;
        }
        if peak > row.peak {
            fades[r] = exp(row.peak - peak);
        }
        let peaks = _mm512_set1_ps(peak);
        let (low, high) = (exps(_mm512_sub_ps(low, peaks)), exps(_mm512_sub_ps(high, peaks)));
        row.peak = peak;
        row.sum = row.sum * fades[r] + _mm512_reduce_add_ps(_mm512_add_ps(low, high));
        // SAFETY: two times sixteen numbers.
        unsafe {
            _mm512_storeu_ps(weights[r].as_mut_ptr(), low);
            _mm512_storeu_ps(weights[r].as_mut_ptr().add(WIDE), high);
        }
    }
    let most = visible.iter().copied().max().unwrap_or(0).min(BLOCK);
    for from in (0..padded).step_by(LANES) {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        for r in 0..R {
            // SAFETY: row `r` of the mixtures has `padded` numbers.
            let at = unsafe { mixed.as_ptr().add(r * padded + from) };
            // SAFETY: as above.
            sums[r] = [0, WIDE].map(|i| unsafe { _mm512_mul_ps(_mm512_loadu_ps(at.add(i)), _mm512_set1_ps(fades[r])) });
        }
        for token in 0..most {
            // SAFETY: a token of the block.
            let values = unsafe { values.values(token, from, padded) };
            for r in 0..R {
                // SAFETY: as above.
                let weight = unsafe { _mm512_set1_ps(*weights[r].get_unchecked(token)) };
                sums[r] =
                    [_mm512_fmadd_ps(values[0], weight, sums[r][0]), _mm512_fmadd_ps(values[1], weight, sums[r][1])];
            }
        }
        for r in 0..R {
            // SAFETY: as above.
            let at = unsafe { mixed.as_mut_ptr().add(r * padded + from) };
            // SAFETY: as above.
            unsafe {
                _mm512_storeu_ps(at, sums[r][0]);
                _mm512_storeu_ps(at.add(WIDE), sums[r][1]);
            }
        }
    }
}

/// [`exp`] of sixteen numbers.
#[inline]
#[target_feature(enable = "avx512f")]
fn exps(x: __m512) -> __m512 {
    let c = |x: f32| _mm512_set1_ps(x);
    let x = _mm512_max_ps(x, c(-104.0));
    let magic = c(12_582_912.0);
    let n = _mm512_sub_ps(_mm512_fmadd_ps(x, c(std::f32::consts::LOG2_E), magic), magic);
    let r = _mm512_fmadd_ps(n, c(2.121_944_4e-4), _mm512_fnmadd_ps(n, c(0.693_359_4), x));
    let mut p = c(1.987_569_1e-4);
    for next in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = _mm512_fmadd_ps(p, r, c(next));
    }
    let y = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, r), r, r), c(1.0));
    // Below the smallest numbers it becomes zero by itself.
    _mm512_scalef_ps(y, n)
}
