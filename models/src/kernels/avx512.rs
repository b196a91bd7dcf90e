//! AVX-512 VNNI: one vector holds four columns of all sixteen rows of a panel.

#![allow(clippy::needless_range_loop, reason = "several arrays go by one index, and stay in registers")]

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_loadu_si256, _mm512_and_si512,
    _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtph_ps, _mm512_dpbusd_epi32,
    _mm512_fmadd_ps, _mm512_load_si512, _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi16, _mm512_srli_epi16, _mm512_storeu_ps,
    _mm512_ternarylogic_epi32,
};

use super::activations::{Sums, Tile};
use super::pack::{PANEL, Panel, SUPER, Scheme, Type};

/// Vectors of one block of a panel: 32 columns by fours.
const GROUPS: usize = 8;

/// Up to so many rows memory is what a product waits for. It then pays to fetch weights [`AHEAD`] lines before their turn: the processor's
/// own prefetcher begins anew with every page.
const FEW: usize = 16;
const AHEAD: usize = 48;

/// All rows of a tile with all rows of a panel.
///
/// # Safety
/// The processor must have AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn tile(kind: Type, panel: Panel<'_>, x: Tile<'_>, sums: &mut Sums) {
    const Q4_0: u8 = Type::Q4_0 as u8;
    const Q5_0: u8 = Type::Q5_0 as u8;
    const Q8_0: u8 = Type::Q8_0 as u8;
    const Q4K: u8 = Type::Q4K as u8;
    const Q5K: u8 = Type::Q5K as u8;
    const Q6K: u8 = Type::Q6K as u8;
    match kind {
        Type::Q4_0 => rows::<Q4_0>(panel, x, sums),
        Type::Q5_0 => rows::<Q5_0>(panel, x, sums),
        Type::Q8_0 => rows::<Q8_0>(panel, x, sums),
        Type::Q4K => rows::<Q4K>(panel, x, sums),
        Type::Q5K => rows::<Q5K>(panel, x, sums),
        Type::Q6K => rows::<Q6K>(panel, x, sums),
    }
}

/// Chooses the kernel of exactly as many rows as the tile has.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn rows<const KIND: u8>(panel: Panel<'_>, x: Tile<'_>, sums: &mut Sums) {
    match x.rows {
        1 => block::<KIND, 1>(panel, x, sums),
        2 => block::<KIND, 2>(panel, x, sums),
        3 => block::<KIND, 3>(panel, x, sums),
        4 => block::<KIND, 4>(panel, x, sums),
        5 => block::<KIND, 5>(panel, x, sums),
        6 => block::<KIND, 6>(panel, x, sums),
        7 => block::<KIND, 7>(panel, x, sums),
        8 => block::<KIND, 8>(panel, x, sums),
        9 => block::<KIND, 9>(panel, x, sums),
        10 => block::<KIND, 10>(panel, x, sums),
        11 => block::<KIND, 11>(panel, x, sums),
        12 => block::<KIND, 12>(panel, x, sums),
        13 => block::<KIND, 13>(panel, x, sums),
        14 => block::<KIND, 14>(panel, x, sums),
        15 => block::<KIND, 15>(panel, x, sums),
        _ => block::<KIND, 16>(panel, x, sums),
    }
}

const fn kind(number: u8) -> Type {
    const ALL: [Type; 6] = [Type::Q4_0, Type::Q5_0, Type::Q8_0, Type::Q4K, Type::Q5K, Type::Q6K];
    ALL[number as usize]
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn block<const KIND: u8, const C: usize>(panel: Panel<'_>, x: Tile<'_>, sums: &mut Sums) {
    let (scheme, bits) = (const { kind(KIND).scheme() }, const { kind(KIND).bits() });
    let blocks = x.blocks;
    let halves = scheme == Scheme::Halves;
    assert!(x.rows == C && x.quants.len() == blocks * C && x.scales.len() == blocks * C);
    assert!(panel.lines.len() == blocks * bits);
    assert!(if halves { x.half_starts.len() } else { x.starts.len() } == blocks * C);
    let (scales, factors) = match scheme {
        Scheme::Plain => (blocks, 0),
        Scheme::Minimum => (blocks / SUPER * 2, 2 * blocks),
        Scheme::Halves => (blocks / SUPER, 2 * blocks),
    };
    assert!(panel.scales.len() == scales * PANEL && panel.factors.len() == factors * PANEL);
    assert!(scheme == Scheme::Plain || blocks.is_multiple_of(SUPER));
    let half_floats = |i: usize| {
        // SAFETY: as with all reads below, block `b` of `blocks`, in slices whose lengths were asserted above.
        let halves = unsafe { _mm256_loadu_si256(panel.scales.as_ptr().add(i * PANEL).cast()) };
        _mm512_cvtph_ps(halves)
    };
    // SAFETY: as above.
    let sixteen = |i: usize| unsafe { _mm_loadu_si128(panel.factors.as_ptr().add(i * PANEL).cast()) };
    let mut out = [_mm512_setzero_ps(); C];
    let (mut d, mut least) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    for b in 0..blocks {
        if C <= FEW {
            for line in 0..bits {
                // What lies that far behind is this task's next panel, mostly; a prefetch of what nobody owns does nothing.
                _mm_prefetch::<_MM_HINT_T0>(panel.lines.as_ptr().wrapping_add(b * bits + line + AHEAD).cast());
            }
        }
        // SAFETY: as above; lines are aligned by their type.
        let w = unsafe { integers::<KIND>(panel.lines.as_ptr().add(b * bits).cast()) };
        let (scale, other) = match scheme {
            Scheme::Plain => (half_floats(b), _mm512_setzero_ps()),
            Scheme::Minimum => {
                if b % SUPER == 0 {
                    (d, least) = (half_floats(b / SUPER * 2), half_floats(b / SUPER * 2 + 1));
                }
                let factor = |i: usize| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(sixteen(2 * b + i)));
                (_mm512_mul_ps(d, factor(0)), _mm512_mul_ps(least, factor(1)))
            }
            Scheme::Halves => {
                if b % SUPER == 0 {
                    d = half_floats(b / SUPER);
                }
                let factor = |i: usize| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen(2 * b + i)));
                (_mm512_mul_ps(d, factor(0)), _mm512_mul_ps(d, factor(1)))
            }
        };
        for c in 0..C {
            let at = b * C + c;
            // SAFETY: as above.
            let four = |g: usize| unsafe {
                _mm512_set1_epi32(x.quants.as_ptr().add(at).cast::<i32>().add(g).read_unaligned())
            };
            let dot = |mut sum: __m512i, from: usize, to: usize| {
                for g in from..to {
                    sum = _mm512_dpbusd_epi32(sum, w[g], four(g));
                }
                sum
            };
            // SAFETY: as above.
            let start = |i: usize| unsafe {
                _mm512_set1_epi32(if halves { x.half_starts.get_unchecked(at)[i] } else { *x.starts.get_unchecked(at) })
            };
            let whole = match scheme {
                Scheme::Plain => _mm512_mul_ps(_mm512_cvtepi32_ps(dot(start(0), 0, GROUPS)), scale),
                Scheme::Minimum => {
                    let sum = _mm512_cvtepi32_ps(dot(_mm512_setzero_si512(), 0, GROUPS));
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(start(0)), other, _mm512_mul_ps(sum, scale))
                }
                Scheme::Halves => {
                    let first = _mm512_cvtepi32_ps(dot(start(0), 0, GROUPS / 2));
                    let second = _mm512_cvtepi32_ps(dot(start(1), GROUPS / 2, GROUPS));
                    _mm512_fmadd_ps(second, other, _mm512_mul_ps(first, scale))
                }
            };
            // SAFETY: as above.
            let scale_x = unsafe { _mm512_set1_ps(*x.scales.get_unchecked(at)) };
            out[c] = _mm512_fmadd_ps(whole, scale_x, out[c]);
        }
    }
    for c in 0..C {
        store(&mut sums[c], out[c]);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(to: &mut [f32; PANEL], from: __m512) {
    // SAFETY: sixteen numbers.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), from) }
}

/// A block's integers, a byte each.
///
/// # Safety
/// `at` must be the first of as many lines as the type has bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn integers<const KIND: u8>(at: *const __m512i) -> [__m512i; GROUPS] {
    let bits = const { kind(KIND).bits() };
    let mut w = [_mm512_setzero_si512(); GROUPS];
    // SAFETY: `i` is below the number of lines wherever this is called.
    let line = |i: usize| unsafe { _mm512_load_si512(at.add(i)) };
    if bits == 8 {
        for (g, w) in w.iter_mut().enumerate() {
            *w = line(g);
        }
        return w;
    }
    let low = _mm512_set1_epi8(15);
    for i in 0..GROUPS / 2 {
        let nibbles = line(i);
        w[i] = _mm512_and_si512(nibbles, low);
        w[i + GROUPS / 2] = _mm512_and_si512(_mm512_srli_epi16::<4>(nibbles), low);
    }
    // `a | (b & mask)`
    let join = |a: __m512i, b: __m512i, mask: __m512i| _mm512_ternarylogic_epi32::<0xf8>(a, b, mask);
    if bits == 5 {
        // Bit g of a byte of the fifth line is the highest of that byte in group g.
        let (plane, mask) = (line(4), _mm512_set1_epi8(16));
        w[0] = join(w[0], _mm512_slli_epi16::<4>(plane), mask);
        w[1] = join(w[1], _mm512_slli_epi16::<3>(plane), mask);
        w[2] = join(w[2], _mm512_slli_epi16::<2>(plane), mask);
        w[3] = join(w[3], _mm512_slli_epi16::<1>(plane), mask);
        w[4] = join(w[4], plane, mask);
        w[5] = join(w[5], _mm512_srli_epi16::<1>(plane), mask);
        w[6] = join(w[6], _mm512_srli_epi16::<2>(plane), mask);
        w[7] = join(w[7], _mm512_srli_epi16::<3>(plane), mask);
    } else if bits == 6 {
        // Two bits a group, four groups a line.
        let mask = _mm512_set1_epi8(48);
        for half in 0..2 {
            let (plane, w) = (line(4 + half), &mut w[4 * half..4 * half + 4]);
            w[0] = join(w[0], _mm512_slli_epi16::<4>(plane), mask);
            w[1] = join(w[1], _mm512_slli_epi16::<2>(plane), mask);
            w[2] = join(w[2], plane, mask);
            w[3] = join(w[3], _mm512_srli_epi16::<2>(plane), mask);
        }
    }
    w
}
