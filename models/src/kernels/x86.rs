//! AVX2 dot products of 8-bit rows.
//!
//! `vpmaddubsw` multiplies unsigned by signed bytes, so the weight gives its absolute value and the activation takes its sign. Pairs stay
//! below 2 · 128 · 127 = 32,512, inside 16 bits.

use std::arch::x86_64::{
    __m256, __m256i, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehdup_ps, _mm_movehl_ps, _mm_set1_ps,
    _mm256_abs_epi8, _mm256_broadcast_ss, _mm256_castps256_ps128, _mm256_cvtepi32_ps, _mm256_extractf128_ps,
    _mm256_fmadd_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set_m128,
    _mm256_set1_epi16, _mm256_setzero_ps, _mm256_sign_epi8,
};

use super::{BLOCK, Row, Weight};

/// A weight row against one activation row.
///
/// # Safety
/// The processor must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dot1(weight: Weight<'_>, row: Row<'_>) -> f32 {
    let mut sum = _mm256_setzero_ps();
    let blocks =
        weight.quants.chunks_exact(BLOCK).zip(weight.scales).zip(row.quants.chunks_exact(BLOCK)).zip(row.scales);
    for (((w, scale), x), scale_x) in blocks {
        let w = load(w);
        sum = step(sum, w, _mm256_abs_epi8(w), spread(scale), x, scale_x);
    }
    total(sum)
}

/// A weight row against four activation rows: the weight is loaded once for all.
///
/// # Safety
/// The processor must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dot4(weight: Weight<'_>, rows: [Row<'_>; 4]) -> [f32; 4] {
    let mut sums = [_mm256_setzero_ps(); 4];
    let blocks = weight.scales.len();
    // One length for all rows lets the compiler drop the bounds checks in the loop.
    let rows = rows.map(|r| (&r.quants[..blocks * BLOCK], &r.scales[..blocks]));
    for (b, (w, scale)) in weight.quants.chunks_exact(BLOCK).zip(weight.scales).enumerate() {
        let (w, scale) = (load(w), spread(scale));
        let size = _mm256_abs_epi8(w);
        for (sum, (quants, scales)) in sums.iter_mut().zip(rows) {
            *sum = step(*sum, w, size, scale, &quants[b * BLOCK..(b + 1) * BLOCK], &scales[b]);
        }
    }
    sums.map(|s| total(s))
}

/// Adds one block's scaled product to `sum`; lanes 0..4 hold its first 16 values, 4..8 its second.
#[target_feature(enable = "avx2,fma")]
fn step(sum: __m256, w: __m256i, size: __m256i, scale: __m256, x: &[i8], scale_x: &f32) -> __m256 {
    let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(load(x), w));
    let whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    _mm256_fmadd_ps(whole, _mm256_mul_ps(scale, _mm256_broadcast_ss(scale_x)), sum)
}

#[target_feature(enable = "avx2,fma")]
fn spread(scale: &[f32; 2]) -> __m256 {
    _mm256_set_m128(_mm_set1_ps(scale[1]), _mm_set1_ps(scale[0]))
}

#[target_feature(enable = "avx2,fma")]
fn load(block: &[i8]) -> __m256i {
    debug_assert_eq!(block.len(), BLOCK);
    // SAFETY: the slice is BLOCK = 32 bytes long, as chunks_exact and the range above make it; the load needs no alignment.
    unsafe { _mm256_loadu_si256(block.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,fma")]
fn total(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}
