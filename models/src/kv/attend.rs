//! Attention over block tables on the CPU, without gathering: each block is read where it lies, by all query heads that share it.
//!
//! Online softmax (Milakov & Gimelshein 2018; FlashAttention): one pass over the blocks with a running maximum. A query row's sums are made in
//! the same order whatever stands beside it, so that its result depends on neither its chunk nor its batch (invariants I2 and I4).

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::store::{LANES, Plane, Shape, Store};
use super::{BLOCK, Inner};
use crate::kernels::{Level, Slots, threads};

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
    attend_at(pool, layer, heads, all, Level::best())
}

fn attend_at(pool: &Inner, layer: usize, heads: usize, all: &[Queries<'_>], level: Level) -> Vec<f32> {
    let shape = pool.shape;
    let width = heads * shape.head;
    let mut out = vec![0f32; all.iter().map(|queries| queries.q.len()).sum()];
    let slots = Slots::new(&mut out);
    let mut tasks = Vec::new();
    let mut token = 0;
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
                to: token,
                level,
            };
            tasks.extend((0..shape.kv_heads).map(task));
            token += q.len() / width;
        }
    }
    threads::run(tasks.len(), |i| tasks[i].run(&slots));
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
    /// The first of its tokens in the result.
    to: usize,
    level: Level,
}

/// How far a query row of one head is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) peak: f32,
    pub(super) sum: f32,
}

impl Task<'_> {
    /// Writes its heads' part of `[tokens, heads · head]`.
    fn run(&self, out: &Slots<f32>) {
        let (head, group, padded) = (self.shape.head, self.group, self.shape.padded());
        let (width, own) = (self.shape.kv_heads * group * head, group * head);
        let scale = (head as f32).powf(-0.5);
        let tokens = self.q.len() / width;
        let mut q = Vec::with_capacity(tokens * own);
        for token in self.q.chunks_exact(width) {
            // Scaled once here instead of every score later.
            q.extend(token[self.kv_head * own..][..own].iter().map(|x| x * scale));
        }
        let count = tokens * group;
        let mut rows = vec![Row { peak: f32::NEG_INFINITY, sum: 0.0 }; count];
        let mut mixed = vec![0f32; count * padded];
        let mut scratch = [Vec::new(), Vec::new()];
        let longest = self.past + tokens;
        for (b, block) in self.table[..longest.div_ceil(BLOCK)].iter().enumerate() {
            let planes = self.store.planes(*block, self.layer, self.kv_head, self.shape);
            let visible = |row: usize| (self.past + row / group + 1).saturating_sub(b * BLOCK).min(BLOCK);
            // Rows of earlier tokens end before this block.
            let first = (b * BLOCK).saturating_sub(self.past) * group;
            let (rows, q, mixed) = (&mut rows[first..], &q[first * head..], &mut mixed[first * padded..]);
            over(head, planes, |row| visible(first + row), (rows, q, mixed), &mut scratch, self.level);
        }
        for (token, (rows, mixed)) in rows.chunks_exact(group).zip(mixed.chunks_exact(group * padded)).enumerate() {
            // SAFETY: the result is borrowed until all tasks are done, and a token's heads of one group belong to one task.
            let out = unsafe { out.part((self.to + token) * width + self.kv_head * own, own) };
            for ((out, mixed), row) in out.chunks_exact_mut(head).zip(mixed.chunks_exact(padded)).zip(rows) {
                out.iter_mut().zip(mixed).for_each(|(out, m)| *out = m / row.sum);
            }
        }
    }
}

/// One block for all rows that see some of it: their states, their queries `[rows, head]` and mixtures `[rows, padded head]`.
fn over(
    head: usize,
    planes: [Plane<'_>; 2],
    visible: impl Fn(usize) -> usize,
    (rows, q, mixed): (&mut [Row], &[f32], &mut [f32]),
    scratch: &mut [Vec<f32>; 2],
    level: Level,
) {
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx512 {
        // SAFETY: a level is only made where the processor has what it names.
        return unsafe { avx512::over(head, planes, visible, rows, q, mixed) };
    }
    let [keys, values] = scratch;
    let planes = [planes[0].widened(0, keys), planes[1].widened(1, values)];
    let padded = planes[1].len() / BLOCK;
    let mut r = 0;
    while r < rows.len() {
        let (q, mixed) = (&q[r * head..], &mut mixed[r * padded..]);
        if rows.len() - r >= 2 {
            step::<2>(head, q, planes, [visible(r), visible(r + 1)], &mut rows[r..r + 2], mixed, level);
        } else {
            step::<1>(head, q, planes, [visible(r)], &mut rows[r..=r], mixed, level);
        }
        r += 2;
    }
}

/// One block for `R` rows.
fn step<const R: usize>(
    head: usize,
    q: &[f32],
    planes: [&[f32]; 2],
    visible: [usize; R],
    rows: &mut [Row],
    mixed: &mut [f32],
    level: Level,
) {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level is only made where the processor has what it names.
        Level::Avx2 | Level::AvxVnni => unsafe { avx2(head, q, planes, visible, rows, mixed) },
        _ => body::<R, false>(head, q, planes, visible, rows, mixed),
    }
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
pub(super) fn exp(x: f32) -> f32 {
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
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::super::{KvType, Pool};
    use super::*;

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

    /// Attention as it is written down, in f64.
    fn plain(shape: Shape, heads: usize, past: usize, [q, k, v]: [&[f32]; 3]) -> Vec<f64> {
        let (head, narrow, wide) = (shape.head, shape.kv_heads * shape.head, heads * shape.head);
        let mut out = Vec::new();
        for (t, q) in q.chunks_exact(wide).enumerate() {
            for (h, q) in q.chunks_exact(head).enumerate() {
                let at =
                    |x: &[f32], j: usize, d: usize| f64::from(x[j * narrow + h * shape.kv_heads / heads * head + d]);
                let score = |j| (0..head).map(|d| f64::from(q[d]) * at(k, j, d)).sum::<f64>() / (head as f64).sqrt();
                let scores: Vec<f64> = (0..=past + t).map(score).collect();
                let peak = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - peak).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let mix = |d| weights.iter().enumerate().map(|(j, w)| w * at(v, j, d)).sum::<f64>() / sum;
                out.extend((0..head).map(mix));
            }
        }
        out
    }

    #[test]
    fn every_level_and_storage_agrees_with_f64() {
        let mut rng = StdRng::seed_from_u64(4);
        for (heads, kv_heads, head) in [(14, 2, 64), (4, 4, 40), (8, 1, 128), (3, 1, 8)] {
            let shape = Shape { layers: 2, kv_heads, head };
            for (past, tokens) in [(0, 1), (0, 37), (31, 1), (32, 3), (95, 17), (260, 1)] {
                let mut numbers =
                    |n: usize, size: f32| (0..n).map(|_| rng.random_range(-size..size)).collect::<Vec<f32>>();
                let all = past + tokens;
                // A few huge dimensions, as Qwen's keys have.
                let mut k = numbers(all * kv_heads * head, 2.0);
                k.iter_mut().step_by(17).for_each(|k| *k *= 40.0);
                let (q, v) = (numbers(tokens * heads * head, 1.0), numbers(all * kv_heads * head, 3.0));
                let right = plain(shape, heads, past, [&q, &k, &v]);
                for (kind, slack) in [(KvType::F32, 2e-5), (KvType::F16, 0.1), (KvType::Bf16, 0.8), (KvType::Q8, 1.5)] {
                    let pool = Pool::new(shape, all + BLOCK, kind, None).expect("a little memory");
                    let mut sequence = pool.sequence();
                    sequence.reserve(all).expect("there is room");
                    let mut inner = pool.lock();
                    for (at, (k, v)) in k.chunks_exact(kv_heads * head).zip(v.chunks_exact(kv_heads * head)).enumerate()
                    {
                        inner.store.write(sequence.table[at / BLOCK], at % BLOCK, 1, shape, k, v);
                    }
                    let queries = [Queries { table: &sequence.table, past, q: &q }];
                    let portable = attend_at(&inner, 1, heads, &queries, Level::Portable);
                    for level in Level::all() {
                        let ours = attend_at(&inner, 1, heads, &queries, level);
                        for (i, (ours, right)) in ours.iter().zip(&right).enumerate() {
                            let far = (f64::from(*ours) - right).abs();
                            assert!(
                                far <= slack,
                                "{level:?} {kind:?} {shape:?} {past}+{tokens}, {i}: {ours} for {right}"
                            );
                        }
                        // Whatever the storage has lost, all levels read the same.
                        for (ours, portable) in ours.iter().zip(&portable) {
                            assert!(
                                (ours - portable).abs() <= 3e-5 * 3.0,
                                "{level:?} {kind:?}: {ours}, portable {portable}"
                            );
                        }
                        // And the last token alone gives what it gave in company.
                        let last = (tokens - 1) * heads * head;
                        let alone = [Queries { table: &sequence.table, past: all - 1, q: &q[last..] }];
                        assert_eq!(attend_at(&inner, 1, heads, &alone, level), ours[last..], "{level:?} {kind:?}");
                    }
                }
            }
        }
    }
}
