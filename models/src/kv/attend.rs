//! Attention over block tables on the CPU, without gathering: each block is read where it lies, by all query heads that share it.
//!
//! Online softmax (Milakov & Gimelshein 2018; FlashAttention): one pass over the blocks with a running maximum. A query row's sums are made in
//! the same order whatever stands beside it, so that its result depends on neither its chunk nor its batch (invariants I2 and I4).

use super::store::{LANES, Shape, Store};
use super::{BLOCK, Inner};
use crate::kernels::threads;

/// Query tokens of one task: their group's heads read a block together while it is in the first-level cache.
const TOKENS: usize = 16;

/// One sequence's queries.
pub(super) struct Queries<'a> {
    /// The sequence's blocks.
    pub(super) table: &'a [u32],
    /// Tokens before the first query's own.
    pub(super) past: usize,
    /// `[tokens, heads · head]`, rotated.
    pub(super) q: &'a [f32],
}

/// Attends: `[tokens, heads · head]` of all queries together.
pub(super) fn attend(pool: &Inner, layer: usize, heads: usize, all: &[Queries<'_>]) -> Vec<f32> {
    let shape = pool.shape;
    let width = heads * shape.head;
    let mut tasks = Vec::new();
    for queries in all {
        for (n, q) in queries.q.chunks(TOKENS * width).enumerate() {
            let task = |kv_head| Task {
                store: &pool.store,
                shape,
                layer,
                kv_head,
                group: heads / shape.kv_heads,
                table: queries.table,
                past: queries.past + n * TOKENS,
                q,
            };
            tasks.extend((0..shape.kv_heads).map(task));
        }
    }
    let parts: Vec<Vec<f32>> = threads::map(tasks.len(), |i| tasks[i].run());
    let mut out = Vec::with_capacity(all.iter().map(|queries| queries.q.len()).sum());
    // The heads of a token stand side by side again.
    for parts in parts.chunks_exact(shape.kv_heads) {
        let stretch = width / shape.kv_heads;
        for token in 0..parts[0].len() / stretch {
            parts.iter().for_each(|part| out.extend_from_slice(&part[token * stretch..(token + 1) * stretch]));
        }
    }
    out
}

/// Up to [`TOKENS`] queries of one sequence, the heads that share one head of keys and values.
struct Task<'a> {
    store: &'a Store,
    shape: Shape,
    layer: usize,
    kv_head: usize,
    group: usize,
    table: &'a [u32],
    /// Tokens before the first query's own.
    past: usize,
    /// `[tokens, heads · head]`.
    q: &'a [f32],
}

/// How far a query row of one head is.
#[derive(Clone, Copy)]
struct Row {
    peak: f32,
    sum: f32,
}

impl Task<'_> {
    /// `[tokens, group · head]`.
    fn run(&self) -> Vec<f32> {
        let (head, group, padded) = (self.shape.head, self.group, self.shape.padded());
        let width = self.shape.kv_heads * group * head;
        let scale = (head as f32).powf(-0.5);
        // Scaled once here instead of every score later.
        let own = |token: &[f32]| token[self.kv_head * group * head..][..group * head].to_vec();
        let q: Vec<f32> = self.q.chunks_exact(width).flat_map(own).map(|x| x * scale).collect();
        let count = q.len() / head;
        let mut rows = vec![Row { peak: f32::NEG_INFINITY, sum: 0.0 }; count];
        let mut mixed = vec![0f32; count * padded];
        let mut scratch = [Vec::new(), Vec::new()];
        let longest = self.past + count / group;
        for (b, block) in self.table[..longest.div_ceil(BLOCK)].iter().enumerate() {
            let planes = self.store.planes(*block, self.layer, self.kv_head, self.shape, &mut scratch);
            let visible = |row: usize| (self.past + row / group + 1).saturating_sub(b * BLOCK).min(BLOCK);
            // Rows of earlier tokens end before this block.
            let mut r = (b * BLOCK).saturating_sub(self.past) * group;
            while r < count {
                let (q, mixed) = (&q[r * head..], &mut mixed[r * padded..]);
                if count - r >= 2 {
                    step::<2>(head, q, planes, [visible(r), visible(r + 1)], &mut rows[r..r + 2], mixed);
                } else {
                    step::<1>(head, q, planes, [visible(r)], &mut rows[r..=r], mixed);
                }
                r += 2;
            }
        }
        let finished = |(row, mixed): (&Row, &[f32])| mixed[..head].iter().map(|m| m / row.sum).collect::<Vec<_>>();
        rows.iter().zip(mixed.chunks_exact(padded)).flat_map(finished).collect()
    }
}

/// One block for `R` rows, with the best instructions this machine has.
fn step<const R: usize>(
    head: usize,
    q: &[f32],
    planes: [&[f32]; 2],
    visible: [usize; R],
    rows: &mut [Row],
    mixed: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { avx512(head, q, planes, visible, rows, mixed) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return unsafe { avx2(head, q, planes, visible, rows, mixed) };
        }
    }
    body::<R, false>(head, q, planes, visible, rows, mixed);
}

/// # Safety
/// The processor must have AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const R: usize>(
    head: usize,
    q: &[f32],
    planes: [&[f32]; 2],
    visible: [usize; R],
    rows: &mut [Row],
    mixed: &mut [f32],
) {
    body::<R, true>(head, q, planes, visible, rows, mixed);
}

/// # Safety
/// The processor must have AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const R: usize>(
    head: usize,
    q: &[f32],
    planes: [&[f32]; 2],
    visible: [usize; R],
    rows: &mut [Row],
    mixed: &mut [f32],
) {
    body::<R, true>(head, q, planes, visible, rows, mixed);
}

/// Scores, softmax so far, mixture so far. Plain Rust in lanes, compiled once for each instruction set.
#[inline(always)]
fn body<const R: usize, const FUSED: bool>(
    head: usize,
    q: &[f32],
    planes: [&[f32]; 2],
    visible: [usize; R],
    rows: &mut [Row],
    mixed: &mut [f32],
) {
    let [keys, values] = planes;
    let padded = values.len() / BLOCK;
    let mut scores = [[0f32; LANES]; R];
    let coefficients: [&[f32]; R] = std::array::from_fn(|r| &q[r * head..(r + 1) * head]);
    accumulate::<R, FUSED>(coefficients, keys, BLOCK, head, &mut scores);
    for r in 0..R {
        let scores = &mut scores[r];
        // Beyond the row's own token lies the future, and memory that nobody has written yet.
        scores[visible[r]..].fill(f32::NEG_INFINITY);
        let row = &mut rows[r];
        let peak = scores.iter().fold(row.peak, |a, b| a.max(*b));
        if peak == f32::NEG_INFINITY {
            scores.fill(0.0);
            continue;
        }
        let fade = exp(row.peak - peak);
        for s in scores.iter_mut() {
            *s = exp(*s - peak);
        }
        row.peak = peak;
        row.sum = row.sum * fade + tree_sum(scores);
        mixed[r * padded..(r + 1) * padded].iter_mut().for_each(|m| *m *= fade);
    }
    let most = visible.iter().copied().max().unwrap_or(0);
    let weights: [&[f32]; R] = std::array::from_fn(|r| &scores[r][..]);
    for from in (0..padded).step_by(LANES) {
        let place = |r: usize| r * padded + from..r * padded + from + LANES;
        let mut sums: [[f32; LANES]; R] = std::array::from_fn(|r| mixed[place(r)].try_into().expect("LANES of them"));
        accumulate::<R, FUSED>(weights, &values[from..], padded, most, &mut sums);
        (0..R).for_each(|r| mixed[place(r)].copy_from_slice(&sums[r]));
    }
}

/// `sums[r] += Σ_i coefficients[r][i] · matrix[i, 0..LANES]`.
#[inline(always)]
fn accumulate<const R: usize, const FUSED: bool>(
    coefficients: [&[f32]; R],
    matrix: &[f32],
    stride: usize,
    n: usize,
    sums: &mut [[f32; LANES]; R],
) {
    let mut local = *sums;
    for i in 0..n {
        let line: &[f32; LANES] = matrix[i * stride..i * stride + LANES].try_into().expect("LANES of them");
        for r in 0..R {
            let c = coefficients[r][i];
            for l in 0..LANES {
                local[r][l] = if FUSED { line[l].mul_add(c, local[r][l]) } else { local[r][l] + line[l] * c };
            }
        }
    }
    *sums = local;
}

/// Pairwise, so that the compiler may use lanes and the order is still fixed.
#[inline(always)]
fn tree_sum(x: &[f32; LANES]) -> f32 {
    let mut x = *x;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            x[i] += x[i + half];
        }
        half /= 2;
    }
    x[0]
}

/// e^x for x ≤ 0 to about two units in the last place; 0 below −87. Source: Cephes `expf`, here without branches for the lanes' sake.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let inside = if x > -87.0 { x } else { -87.0 };
    // Adding and taking away 1.5 · 2^23 rounds to the nearest integer.
    let n = (inside * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = inside - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 0.166_666_66) * r
        + 0.5;
    let y = (p * r) * r + r + 1.0;
    let scaled = f32::from_bits((y.to_bits() as i32).wrapping_add((n as i32) << 23) as u32);
    if x > -87.0 { scaled } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_is_right_from_zero_to_nothing() {
        for i in 0..100_000 {
            let x = -90.0 * i as f32 / 100_000.0;
            let (ours, right) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours - right).abs() <= right * 3e-7 + 2e-38, "e^{x}: {ours} against {right}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }
}
