//! AVX2 dot products of 8-bit rows.
//!
//! `vpmaddubsw` multiplies unsigned by signed bytes, so the weight gives its absolute value and the activation takes its sign. Pairs stay
//! below 2 · 128 · 127 = 32,512, inside 16 bits.

use std::arch::x86_64::{
    __m256, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehdup_ps, _mm_movehl_ps, _mm_set1_ps, _mm256_abs_epi8,
    _mm256_broadcast_ss, _mm256_castps256_ps128, _mm256_cvtepi32_ps, _mm256_extractf128_ps, _mm256_fmadd_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set_m128, _mm256_set1_epi16,
    _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sign_epi8,
};

use super::{BLOCK, Row, Weight};

/// `R` weight rows against `C` activation rows, all of one length: each block is loaded once for the whole tile.
///
/// A row's sums are made in the same order whatever the tile, so that its result does not depend on its company.
///
/// # Safety
/// The processor must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn tile<const R: usize, const C: usize>(
    weights: [Weight<'_>; R],
    rows: [Row<'_>; C],
) -> [[f32; C]; R] {
    let blocks = weights[0].scales.len();
    let whole = |quants: &[i8], scales: usize| quants.len() == blocks * BLOCK && scales == blocks;
    assert!(
        weights.iter().all(|w| whole(w.quants, w.scales.len())) && rows.iter().all(|x| whole(x.quants, x.scales.len()))
    );
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[_mm256_setzero_ps(); C]; R];
    for b in 0..blocks {
        let mut w = [_mm256_setzero_si256(); R];
        let mut scale = [_mm256_setzero_ps(); R];
        for r in 0..R {
            // SAFETY: block b of a row of `blocks` blocks, as asserted above; the load needs no alignment.
            unsafe {
                w[r] = _mm256_loadu_si256(weights[r].quants.as_ptr().add(b * BLOCK).cast());
                let [first, second] = *weights[r].scales.get_unchecked(b);
                // Lanes 0..4 hold a block's first 16 values, 4..8 its second.
                scale[r] = _mm256_set_m128(_mm_set1_ps(second), _mm_set1_ps(first));
            }
        }
        for c in 0..C {
            // SAFETY: as above.
            let (x, scale_x) = unsafe {
                let x = _mm256_loadu_si256(rows[c].quants.as_ptr().add(b * BLOCK).cast());
                (x, _mm256_broadcast_ss(rows[c].scales.get_unchecked(b)))
            };
            for r in 0..R {
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[r]), _mm256_sign_epi8(x, w[r]));
                let fours = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
                sums[r][c] = _mm256_fmadd_ps(fours, _mm256_mul_ps(scale[r], scale_x), sums[r][c]);
            }
        }
    }
    let mut out = [[0f32; C]; R];
    for r in 0..R {
        for c in 0..C {
            out[r][c] = total(sums[r][c]);
        }
    }
    out
}

#[target_feature(enable = "avx2,fma")]
fn total(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}
