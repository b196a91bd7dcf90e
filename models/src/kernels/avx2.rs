//! AVX2, with 8-bit dot products (AVX-VNNI) where there are any: one vector holds four columns of half a panel's rows.
//!
//! Without them `vpmaddubsw` multiplies unsigned by signed bytes and adds pairs in 16 bits. As long as the weights have few bits, several
//! such sums fit: 15 · 127 · 2 · 8, 31 · 127 · 2 · 4 and 63 · 127 · 2 · 2 all stay below 32,768. Eight bits do not, so there the weight gives its
//! absolute value and the activation takes its sign: 128 · 127 · 2 = 32,512.

#![allow(clippy::needless_range_loop, reason = "several arrays go by one index, and stay in registers")]

use std::arch::x86_64::{
    __m256, __m256i, _mm_loadl_epi64, _mm_loadu_si128, _mm256_abs_epi8, _mm256_add_epi16, _mm256_add_epi32,
    _mm256_and_si256, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtph_ps,
    _mm256_dpbusd_avx_epi32, _mm256_fmadd_ps, _mm256_load_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sign_epi8, _mm256_slli_epi16, _mm256_srli_epi16, _mm256_storeu_ps,
    _mm256_xor_si256,
};

use super::activations::{Sums, Tile};
use super::pack::{PANEL, Panel, SUPER, Scheme, Type};

/// Vectors of one block of half a panel: 32 columns by fours.
const GROUPS: usize = 8;
/// Rows of one vector.
const LANES: usize = 8;

/// The kernel, compiled once with and once without the dot products.
macro_rules! kernel {
    ($name:ident, $rows:ident, $block:ident, $vnni:literal, $fours:path, $features:literal) => {
        /// All rows of a tile with all rows of a panel.
        ///
        /// # Safety
        /// The processor must have AVX2, FMA and F16C, and what the name says.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(kind: Type, panel: Panel<'_>, x: Tile<'_>, sums: &mut Sums) {
            match kind {
                Type::Q4_0 => $rows::<0>(panel, x, sums),
                Type::Q5_0 => $rows::<1>(panel, x, sums),
                Type::Q8_0 => $rows::<2>(panel, x, sums),
                Type::Q4K => $rows::<3>(panel, x, sums),
                Type::Q5K => $rows::<4>(panel, x, sums),
                Type::Q6K => $rows::<5>(panel, x, sums),
            }
        }

        /// Four rows at a time, then what is left: no more sums fit the registers.
        #[target_feature(enable = $features)]
        fn $rows<const KIND: u8>(panel: Panel<'_>, x: Tile<'_>, sums: &mut Sums) {
            for half in 0..PANEL / LANES {
                let mut c = 0;
                while c < x.rows {
                    match x.rows - c {
                        1 => $block::<KIND, 1>(panel, half, x, c, sums),
                        2 => $block::<KIND, 2>(panel, half, x, c, sums),
                        3 => $block::<KIND, 3>(panel, half, x, c, sums),
                        _ => $block::<KIND, 4>(panel, half, x, c, sums),
                    }
                    c += 4;
                }
            }
        }

        /// Rows `first..first + C` of a tile with half of a panel's rows.
        #[target_feature(enable = $features)]
        fn $block<const KIND: u8, const C: usize>(
            panel: Panel<'_>,
            half: usize,
            x: Tile<'_>,
            first: usize,
            sums: &mut Sums,
        ) {
            let (scheme, bits) = (const { kind(KIND).scheme() }, const { kind(KIND).bits() });
            let blocks = x.blocks;
            let halves = scheme == Scheme::Halves;
            assert!(half < PANEL / LANES && first + C <= x.rows);
            assert!(x.quants.len() == blocks * x.rows && x.scales.len() == blocks * x.rows);
            assert!(panel.lines.len() == blocks * bits);
            assert!(if halves { x.half_starts.len() } else { x.starts.len() } == blocks * x.rows);
            let (scales, factors) = match scheme {
                Scheme::Plain => (blocks, 0),
                Scheme::Minimum => (blocks / SUPER * 2, 2 * blocks),
                Scheme::Halves => (blocks / SUPER, 2 * blocks),
            };
            assert!(panel.scales.len() == scales * PANEL && panel.factors.len() == factors * PANEL);
            assert!(scheme == Scheme::Plain || blocks.is_multiple_of(SUPER));
            let offset = half * LANES;
            let half_floats = |i: usize| {
                // SAFETY: as with all reads below, block `b` of `blocks`, in slices whose lengths were asserted above.
                let halves = unsafe { _mm_loadu_si128(panel.scales.as_ptr().add(i * PANEL + offset).cast()) };
                _mm256_cvtph_ps(halves)
            };
            // SAFETY: as above.
            let eight = |i: usize| unsafe { _mm_loadl_epi64(panel.factors.as_ptr().add(i * PANEL + offset).cast()) };
            let ones = _mm256_set1_epi16(1);
            let mut out = [_mm256_setzero_ps(); C];
            let (mut d, mut least) = (_mm256_setzero_ps(), _mm256_setzero_ps());
            for b in 0..blocks {
                // SAFETY: as above; a line has two halves, and is aligned by its type.
                let mut w = unsafe { integers::<KIND>(panel.lines.as_ptr().add(b * bits).cast::<__m256i>().add(half)) };
                let mut absolute = w;
                if bits == 8 && !$vnni {
                    for g in 0..GROUPS {
                        w[g] = _mm256_xor_si256(w[g], _mm256_set1_epi8(-128));
                        absolute[g] = _mm256_abs_epi8(w[g]);
                    }
                }
                let (scale, other) = match scheme {
                    Scheme::Plain => (half_floats(b), _mm256_setzero_ps()),
                    Scheme::Minimum => {
                        if b % SUPER == 0 {
                            (d, least) = (half_floats(b / SUPER * 2), half_floats(b / SUPER * 2 + 1));
                        }
                        let factor = |i: usize| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight(2 * b + i)));
                        (_mm256_mul_ps(d, factor(0)), _mm256_mul_ps(least, factor(1)))
                    }
                    Scheme::Halves => {
                        if b % SUPER == 0 {
                            d = half_floats(b / SUPER);
                        }
                        let factor = |i: usize| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight(2 * b + i)));
                        (_mm256_mul_ps(d, factor(0)), _mm256_mul_ps(d, factor(1)))
                    }
                };
                for c in 0..C {
                    let at = b * x.rows + first + c;
                    // SAFETY: as above.
                    let four = |g: usize| unsafe {
                        _mm256_set1_epi32(x.quants.as_ptr().add(at).cast::<i32>().add(g).read_unaligned())
                    };
                    let dot = |mut sum: __m256i, from: usize, to: usize| {
                        if $vnni {
                            for g in from..to {
                                sum = $fours(sum, w[g], four(g));
                            }
                            return sum;
                        }
                        if bits == 8 {
                            // These weights are signed: there is nothing to take away.
                            sum = _mm256_setzero_si256();
                            for g in from..to {
                                let pairs = _mm256_maddubs_epi16(absolute[g], _mm256_sign_epi8(four(g), w[g]));
                                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
                            }
                            return sum;
                        }
                        let together = 128 >> bits;
                        let mut g = from;
                        while g < to {
                            let mut pairs = _mm256_maddubs_epi16(w[g], four(g));
                            for g in g + 1..to.min(g + together) {
                                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[g], four(g)));
                            }
                            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
                            g += together;
                        }
                        sum
                    };
                    // SAFETY: as above.
                    let start = |i: usize| unsafe {
                        _mm256_set1_epi32(if halves {
                            x.half_starts.get_unchecked(at)[i]
                        } else {
                            *x.starts.get_unchecked(at)
                        })
                    };
                    let whole = match scheme {
                        Scheme::Plain => _mm256_mul_ps(_mm256_cvtepi32_ps(dot(start(0), 0, GROUPS)), scale),
                        Scheme::Minimum => {
                            let sum = _mm256_cvtepi32_ps(dot(_mm256_setzero_si256(), 0, GROUPS));
                            _mm256_fmadd_ps(_mm256_cvtepi32_ps(start(0)), other, _mm256_mul_ps(sum, scale))
                        }
                        Scheme::Halves => {
                            let first = _mm256_cvtepi32_ps(dot(start(0), 0, GROUPS / 2));
                            let second = _mm256_cvtepi32_ps(dot(start(1), GROUPS / 2, GROUPS));
                            _mm256_fmadd_ps(second, other, _mm256_mul_ps(first, scale))
                        }
                    };
                    // SAFETY: as above.
                    let scale_x = unsafe { _mm256_set1_ps(*x.scales.get_unchecked(at)) };
                    out[c] = _mm256_fmadd_ps(whole, scale_x, out[c]);
                }
            }
            for c in 0..C {
                store(&mut sums[first + c], half, out[c]);
            }
        }
    };
}

kernel!(with_vnni, rows_with, block_with, true, _mm256_dpbusd_avx_epi32, "avx2,fma,f16c,avxvnni");
kernel!(without_vnni, rows_without, block_without, false, not_here, "avx2,fma,f16c");

/// What the kernel without dot products has in their place, in a branch that is not compiled.
fn not_here(sum: __m256i, _: __m256i, _: __m256i) -> __m256i {
    sum
}

const fn kind(number: u8) -> Type {
    const ALL: [Type; 6] = [Type::Q4_0, Type::Q5_0, Type::Q8_0, Type::Q4K, Type::Q5K, Type::Q6K];
    ALL[number as usize]
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(to: &mut [f32; PANEL], half: usize, from: __m256) {
    // SAFETY: eight numbers of either half.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr().add(half * LANES), from) }
}

/// Half a block's integers, a byte each.
///
/// # Safety
/// `at` must be the first half of as many lines as the type has bits.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn integers<const KIND: u8>(at: *const __m256i) -> [__m256i; GROUPS] {
    let bits = const { kind(KIND).bits() };
    let mut w = [_mm256_setzero_si256(); GROUPS];
    // SAFETY: `i` is below the number of lines wherever this is called, and a line is two vectors.
    let line = |i: usize| unsafe { _mm256_load_si256(at.add(2 * i)) };
    if bits == 8 {
        for (g, w) in w.iter_mut().enumerate() {
            *w = line(g);
        }
        return w;
    }
    let low = _mm256_set1_epi8(15);
    for i in 0..GROUPS / 2 {
        let nibbles = line(i);
        w[i] = _mm256_and_si256(nibbles, low);
        w[i + GROUPS / 2] = _mm256_and_si256(_mm256_srli_epi16::<4>(nibbles), low);
    }
    let join = |a: __m256i, b: __m256i, mask: __m256i| _mm256_or_si256(a, _mm256_and_si256(b, mask));
    if bits == 5 {
        // Bit g of a byte of the fifth line is the highest of that byte in group g.
        let (plane, mask) = (line(4), _mm256_set1_epi8(16));
        w[0] = join(w[0], _mm256_slli_epi16::<4>(plane), mask);
        w[1] = join(w[1], _mm256_slli_epi16::<3>(plane), mask);
        w[2] = join(w[2], _mm256_slli_epi16::<2>(plane), mask);
        w[3] = join(w[3], _mm256_slli_epi16::<1>(plane), mask);
        w[4] = join(w[4], plane, mask);
        w[5] = join(w[5], _mm256_srli_epi16::<1>(plane), mask);
        w[6] = join(w[6], _mm256_srli_epi16::<2>(plane), mask);
        w[7] = join(w[7], _mm256_srli_epi16::<3>(plane), mask);
    } else if bits == 6 {
        // Two bits a group, four groups a line.
        let mask = _mm256_set1_epi8(48);
        for half in 0..2 {
            let (plane, w) = (line(4 + half), &mut w[4 * half..4 * half + 4]);
            w[0] = join(w[0], _mm256_slli_epi16::<4>(plane), mask);
            w[1] = join(w[1], _mm256_slli_epi16::<2>(plane), mask);
            w[2] = join(w[2], plane, mask);
            w[3] = join(w[3], _mm256_srli_epi16::<2>(plane), mask);
        }
    }
    w
}
