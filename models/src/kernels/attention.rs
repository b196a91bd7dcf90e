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

/// Keys and values of consecutive rows, in the order in which the products read them: packed once, attended to often.
#[derive(Debug)]
pub(crate) struct Chunk {
    rows: usize,
    /// Numbers of a head.
    head: usize,
    heads: Vec<Head>,
}

/// Keys and values of one head.
#[derive(Debug)]
struct Head {
    keys: Columns,
    /// `[head / PANEL, keys]`, what a head lacks of a panel zero.
    values: Vec<Column>,
}

impl Chunk {
    /// Packs `k` and `v [n, heads · head]`, `width` numbers a row.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub(crate) fn new(k: &[f32], v: &[f32], width: usize, heads: usize) -> Self {
        let (rows, head) = (k.len() / width, width / heads);
        assert!(k.len() == rows * width && v.len() == k.len() && head * heads == width);
        Self::of(rows, head, heads, |h, i| {
            let own = i * width + h * head..i * width + (h + 1) * head;
            (&k[own.clone()], &v[own])
        })
    }

    /// `row` gives key and value of a head and a row.
    fn of<'a>(
        rows: usize,
        head: usize,
        heads: usize,
        row: impl Fn(usize, usize) -> (&'a [f32], &'a [f32]) + Sync,
    ) -> Self {
        let heads = threads::map(heads, |h| {
            let mut keys = Columns::new(rows, head);
            let slots = keys.slots();
            for first in (0..rows).step_by(TILE) {
                let own = first..rows.min(first + TILE);
                // SAFETY: `keys` is here, and this thread's alone.
                unsafe { Columns::fill_tile(&slots, own, rows, head, |i| row(h, i).0) };
            }
            let mut values = vec![Column([0.0; PANEL]); head.div_ceil(PANEL) * rows];
            for i in 0..rows {
                for (p, part) in row(h, i).1.chunks(PANEL).enumerate() {
                    values[p * rows + i].0[..part.len()].copy_from_slice(part);
                }
            }
            Head { keys, values }
        });
        Self { rows, head, heads }
    }

    /// How many rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Its last `n` rows alone.
    pub(crate) fn last(&self, n: usize) -> Self {
        let skip = self.rows - n;
        let rows: Vec<Vec<(Vec<f32>, Vec<f32>)>> = threads::map(self.heads.len(), |h| {
            let Head { keys, values } = &self.heads[h];
            let value = |i: usize| values.chunks_exact(self.rows).flat_map(|p| p[i].0).take(self.head).collect();
            (skip..self.rows).map(|i| (keys.row(i), value(i))).collect()
        });
        Self::of(n, self.head, self.heads.len(), |h, i| (&rows[h][i].0, &rows[h][i].1))
    }
}

/// `q [n, heads · head]` over all rows of `chunks`, in order: `[n, heads · head]`. How they are cut makes no difference.
///
/// # Panics
/// If the shapes do not fit, or there are no keys.
pub(crate) fn attend(q: &[f32], chunks: &[&Chunk]) -> Vec<f32> {
    attend_at(q, chunks, Level::best())
}

fn attend_at(q: &[f32], chunks: &[&Chunk], level: Level) -> Vec<f32> {
    let m: usize = chunks.iter().map(|chunk| chunk.rows).sum();
    assert!(m > 0, "there is something to attend to");
    let (heads, head) = (chunks[0].heads.len(), chunks[0].head);
    let width = heads * head;
    let n = q.len() / width;
    assert!(q.len() == n * width && chunks.iter().all(|chunk| (chunk.heads.len(), chunk.head) == (heads, head)));
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
        let mut rest = &mut scores[..];
        for chunk in chunks {
            for i in 0..chunk.rows.div_ceil(TILE) {
                let (keys, count) = chunk.heads[h].keys.tile(i);
                let mut sums = [[0f32; PANEL]; TILE];
                add(&panel, keys, count, &mut sums, level);
                let (own, later) = rest.split_at_mut(count);
                own.copy_from_slice(&sums[..count]);
                rest = later;
            }
        }
        let sums = softmax(&mut scores, level);
        for p in 0..head.div_ceil(PANEL) {
            let mut mixed = [[0f32; PANEL]; TILE];
            let mut from = 0;
            for chunk in chunks.iter().filter(|chunk| chunk.rows > 0) {
                let values = &chunk.heads[h].values[p * chunk.rows..(p + 1) * chunk.rows];
                add(values, scores[from..from + chunk.rows].as_flattened(), TILE, &mut mixed, level);
                from += chunk.rows;
            }
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
            let whole = Chunk::new(&k, &v, width, heads);
            for level in Level::all() {
                let ours = attend_at(&q, &[&whole], level);
                for cut in [0, 1, m / 2].into_iter().filter(|cut| *cut < m) {
                    let (first, rest) = (&k[..cut * width], &k[cut * width..]);
                    let first = Chunk::new(first, &v[..cut * width], width, heads);
                    let rest = Chunk::new(rest, &v[cut * width..], width, heads);
                    assert_eq!(attend_at(&q, &[&first, &rest], level), ours, "cut at {cut}");
                    assert_eq!(attend_at(&q, &[&whole.last(m - cut)], level), attend_at(&q, &[&rest], level));
                }
                for (i, ours) in ours.chunks(width).enumerate() {
                    let own = &q[i * width..(i + 1) * width];
                    assert_eq!(attend_at(own, &[&whole], level), ours);
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
