//! Attention of rows to all of some others, in f32: the encoder's.
//!
//! Scores are made transposed, a key's with sixteen queries side by side. So the softmax runs along lanes and needs no sum across them, and its
//! result already lies as the product with the values wants it. Both products are those of [`super::dense`].

use super::Level;
use super::activations::{Columns, Slots, TILE};
use super::dense::{Column, add};
use super::pack::PANEL;
use super::rows::exp;
use super::threads;

/// Keys and values of one head.
struct Head {
    keys: Columns,
    /// `[head / PANEL, keys]`, what a head lacks of a panel zero.
    values: Vec<Column>,
}

/// `q [n, heads · head]` over `k` and `v [m, heads · head]`, every row over all of them: `[n, heads · head]`.
///
/// # Panics
/// If the shapes do not fit, or there are no keys.
pub(crate) fn attend(q: &[f32], k: &[f32], v: &[f32], width: usize, heads: usize) -> Vec<f32> {
    attend_at(q, k, v, width, heads, Level::best())
}

fn attend_at(q: &[f32], k: &[f32], v: &[f32], width: usize, heads: usize, level: Level) -> Vec<f32> {
    let (n, m, head) = (q.len() / width, k.len() / width, width / heads);
    assert!(q.len() == n * width && k.len() == m * width && v.len() == k.len() && head * heads == width && m > 0);
    let panels = head.div_ceil(PANEL);
    let packed = threads::map(heads, |h| {
        let mut keys = Columns::new(m, head);
        let slots = keys.slots();
        let mut values = vec![Column([0.0; PANEL]); panels * m];
        for (i, (k, v)) in k.chunks_exact(width).zip(v.chunks_exact(width)).enumerate() {
            // SAFETY: `keys` is here, and this thread's alone.
            unsafe { Columns::fill(&slots, i, m, &k[h * head..(h + 1) * head]) };
            for (p, part) in v[h * head..(h + 1) * head].chunks(PANEL).enumerate() {
                values[p * m + i].0[..part.len()].copy_from_slice(part);
            }
        }
        Head { keys, values }
    });
    let mut out = vec![0f32; q.len()];
    let slots = Slots::new(&mut out);
    let tiles = n.div_ceil(TILE);
    let scale = (head as f32).powf(-0.5);
    threads::run(heads * tiles, |task| {
        let (h, tile) = (task / tiles, task % tiles);
        let rows = TILE.min(n - tile * TILE);
        let mut panel = vec![Column([0.0; PANEL]); head];
        for r in 0..rows {
            let own = &q[(tile * TILE + r) * width + h * head..][..head];
            panel.iter_mut().zip(own).for_each(|(column, q)| column.0[r] = q * scale);
        }
        let mut scores = vec![[0f32; PANEL]; m];
        for (i, scores) in scores.chunks_mut(TILE).enumerate() {
            let (keys, count) = packed[h].keys.tile(i);
            let mut sums = [[0f32; PANEL]; TILE];
            add(&panel, keys, count, &mut sums, level);
            scores.copy_from_slice(&sums[..count]);
        }
        let sums = softmax(&mut scores, level);
        for (p, values) in packed[h].values.chunks_exact(m).enumerate() {
            let mut mixed = [[0f32; PANEL]; TILE];
            add(values, scores.as_flattened(), TILE, &mut mixed, level);
            let lanes = PANEL.min(head - p * PANEL);
            for (r, mixed) in mixed[..rows].iter().enumerate() {
                // SAFETY: `out` is here, and a tile of a head is one task's.
                let out = unsafe { slots.part((tile * TILE + r) * width + h * head + p * PANEL, lanes) };
                out.iter_mut().zip(mixed).for_each(|(out, x)| *out = x / sums[r]);
            }
        }
    });
    out
}

/// e to each score less its lane's largest; gives the lanes' sums.
fn softmax(scores: &mut [[f32; PANEL]], level: Level) -> [f32; PANEL] {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level is only made where the processor has what it names.
        Level::Avx512 => unsafe { avx512(scores) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 | Level::AvxVnni => unsafe { avx2(scores) },
        _ => body(scores),
    }
}

/// # Safety
/// The processor must have AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(scores: &mut [[f32; PANEL]]) -> [f32; PANEL] {
    body(scores)
}

/// # Safety
/// The processor must have AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(scores: &mut [[f32; PANEL]]) -> [f32; PANEL] {
    body(scores)
}

#[inline(always)]
fn body(scores: &mut [[f32; PANEL]]) -> [f32; PANEL] {
    let mut peaks = [f32::NEG_INFINITY; PANEL];
    for row in scores.iter() {
        for (peak, s) in peaks.iter_mut().zip(row) {
            *peak = if *s > *peak { *s } else { *peak };
        }
    }
    let mut sums = [0f32; PANEL];
    for row in scores.iter_mut() {
        for l in 0..PANEL {
            row[l] = exp(row[l] - peaks[l]);
            sums[l] += row[l];
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn attention_agrees_with_f64_and_a_row_with_itself_alone() {
        let mut rng = StdRng::seed_from_u64(1);
        for (n, m, heads, head) in [(1, 1, 1, 1), (3, 5, 2, 8), (17, 33, 3, 20), (40, 64, 2, 64)] {
            let width = heads * head;
            let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-2.0..2.0)).collect() };
            let (q, k, v) = (numbers(n * width), numbers(m * width), numbers(m * width));
            for level in Level::all() {
                let ours = attend_at(&q, &k, &v, width, heads, level);
                for (i, ours) in ours.chunks(width).enumerate() {
                    let own = &q[i * width..(i + 1) * width];
                    assert_eq!(attend_at(own, &k, &v, width, heads, level), ours);
                    for h in 0..heads {
                        let part = |x: &[f32], i: usize, d: usize| f64::from(x[i * width + h * head + d]);
                        let score = |j: usize| (0..head).map(|d| part(&q, i, d) * part(&k, j, d)).sum::<f64>();
                        let weights: Vec<f64> = (0..m).map(|j| (score(j) / (head as f64).sqrt()).exp()).collect();
                        let sum: f64 = weights.iter().sum();
                        for d in 0..head {
                            let right: f64 = (0..m).map(|j| weights[j] / sum * part(&v, j, d)).sum();
                            assert!((f64::from(ours[h * head + d]) - right).abs() < 1e-5, "{level:?}");
                        }
                    }
                }
            }
        }
    }
}
