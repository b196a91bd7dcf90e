//! Linear layers over packed weights: products of one input with several matrices, their biases and low-rank updates, in one go.

use std::sync::Arc;

use super::activations::{Activations, Columns, Slots, Sums, TILE};
use super::dense::DMatrix;
use super::fine::{FineActivations, FineMatrix};
use super::pack::{PANEL, QMatrix, Type};
use super::rows::Input;
use super::{BLOCK, Level, threads};

/// A weight matrix `[rows, cols]` for the kernels.
#[derive(Debug)]
pub(crate) enum Packed {
    /// Of a GGUF type.
    Quantised(QMatrix),
    /// f32.
    Dense(DMatrix),
    /// 16-bit integers.
    Fine(FineMatrix),
}

impl Packed {
    /// Rows and columns.
    pub(crate) fn shape(&self) -> (usize, usize) {
        match self {
            Self::Quantised(w) => w.shape(),
            Self::Dense(w) => w.shape(),
            Self::Fine(w) => w.shape(),
        }
    }

    /// Row `i` in f32.
    pub(crate) fn values(&self, i: usize) -> Vec<f32> {
        match self {
            Self::Quantised(w) => w.values(i),
            Self::Dense(w) => w.values(i),
            Self::Fine(w) => w.values(i),
        }
    }

    fn panels(&self) -> usize {
        self.shape().0.div_ceil(PANEL)
    }

    /// Bytes that a panel's weights take, roughly.
    fn panel_bytes(&self) -> usize {
        match self {
            Self::Quantised(w) => w.shape().1 * w.kind.bits() * 2,
            Self::Dense(w) => w.shape().1 * PANEL * 4,
            Self::Fine(w) => w.shape().1 * PANEL * 2,
        }
    }
}

/// `y = x Wᵀ + b + (x Aᵀ) Bᵀ`.
#[derive(Debug)]
pub(crate) struct Affine {
    weight: Arc<Packed>,
    /// Whole panels of it.
    bias: Option<Vec<f32>>,
    /// `A [rank, cols]` and `B [rows, rank]`. Apart, because adding them to a quantised weight would round them away.
    update: Option<(DMatrix, DMatrix)>,
}

/// Bytes of weights that are worth a task of their own: with few activation rows, and with many, which pass them while they stay in the
/// second-level cache.
const TASK: [usize; 2] = [1 << 15, 1 << 18];
/// Tasks of a layer that keep all threads busy to the end.
const SHARES: usize = 8;
/// Activation rows that are made ready together.
const READY: usize = 4;

impl Affine {
    pub(crate) fn new(weight: Arc<Packed>, bias: Option<&[f32]>) -> Self {
        let whole = weight.panels() * PANEL;
        let bias = bias.map(|bias| bias.iter().copied().chain(std::iter::repeat(0.0)).take(whole).collect());
        Self { weight, bias, update: None }
    }

    /// Adds a low-rank update, `a [rank, cols]` and `b [rows, rank]`.
    pub(crate) fn update(&mut self, a: &[f32], b: &[f32]) {
        let (rows, cols) = self.weight.shape();
        let rank = a.len() / cols;
        self.update = Some((DMatrix::new(a, rank, cols), DMatrix::new(b, rows, rank)));
    }

    /// With its weight in 16-bit integers, where the machine is faster with them and its columns are whole blocks.
    pub(crate) fn in_integers(self) -> Self {
        let (rows, cols) = self.weight.shape();
        if !matches!(*self.weight, Packed::Dense(_)) || !cols.is_multiple_of(BLOCK) || Level::best() != Level::Avx512 {
            return self;
        }
        let values: Vec<f32> = (0..rows).flat_map(|i| self.weight.values(i)).collect();
        Self { weight: Arc::new(Packed::Fine(FineMatrix::new(&values, rows, cols))), ..self }
    }

    /// Rows and columns of its weight.
    pub(crate) fn shape(&self) -> (usize, usize) {
        self.weight.shape()
    }

    /// The layer's result for `x`, `[n, rows]`.
    pub(crate) fn forward(&self, x: Input<'_>) -> Vec<f32> {
        let [out] = forward([self], x);
        out
    }

    /// Adds the layer's result for `x` to `out [n, rows]`.
    pub(crate) fn add(&self, x: Input<'_>, out: &mut [f32]) {
        products(&[self], x, &mut [out], true, Level::best());
    }
}

/// The results of several layers for one input, `[n, rows]` each.
pub(crate) fn forward<const N: usize>(layers: [&Affine; N], x: Input<'_>) -> [Vec<f32>; N] {
    let n = x.rows(layers[0].shape().1);
    let mut outs = layers.map(|layer| vec![0f32; n * layer.shape().0]);
    let mut parts: Vec<&mut [f32]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
    products(&layers, x, &mut parts, false, Level::best());
    outs
}

/// What the kernels read of the input.
struct Ready {
    quantised: Vec<(Type, Activations)>,
    dense: Option<Columns>,
    fine: Option<FineActivations>,
    /// `x Aᵀ` of each layer that has an update.
    low: Vec<Option<Columns>>,
}

/// Some panels of a layer with some tiles of rows.
struct Task {
    layer: usize,
    panels: std::ops::Range<usize>,
    tiles: std::ops::Range<usize>,
}

/// The tasks of `n` rows.
fn tasks(layers: &[&Affine], n: usize) -> Vec<Task> {
    let tiles = n.div_ceil(TILE);
    let mut out = Vec::new();
    for (layer, affine) in layers.iter().enumerate() {
        let panels = affine.weight.panels();
        let few = tiles < 2;
        let per =
            (TASK[usize::from(!few)] / affine.weight.panel_bytes()).clamp(1, panels.div_ceil(if few { 4 } else { 2 }));
        let groups = panels.div_ceil(per);
        let chunk = tiles.div_ceil(SHARES.div_ceil(groups)).max(1);
        for first in (0..panels).step_by(per) {
            let panels = first..panels.min(first + per);
            let chunks = (0..tiles).step_by(chunk).map(|from| from..tiles.min(from + chunk));
            out.extend(chunks.map(|tiles| Task { layer, panels: panels.clone(), tiles }));
        }
    }
    out
}

/// Writes each layer's result to its `out [n, rows]`, or adds it to what is there.
///
/// # Panics
/// If the shapes do not fit.
pub(super) fn products(layers: &[&Affine], x: Input<'_>, outs: &mut [&mut [f32]], add: bool, level: Level) {
    let cols = layers[0].shape().1;
    let n = x.rows(cols);
    for (layer, out) in layers.iter().zip(&*outs) {
        let (rows, own) = layer.shape();
        assert!(own == cols && out.len() == n * rows, "{n} rows of {cols} for [{rows}, {own}], to {}", out.len());
    }
    if n == 0 {
        return;
    }
    let ready = ready(layers, x, n, cols, level);
    let tasks = tasks(layers, n);
    let slots: Vec<Slots<f32>> = outs.iter_mut().map(|out| Slots::new(out)).collect();
    threads::run(tasks.len(), |task| {
        let Task { layer: i, panels, tiles } = &tasks[task];
        let layer = layers[*i];
        let mut sums = [[0f32; PANEL]; TILE];
        for tile in tiles.clone() {
            for p in panels.clone() {
                let rows = layer.panel(p, tile, *i, &ready, &mut sums, level);
                for (c, sums) in sums[..rows].iter().enumerate() {
                    let all = layer.shape().0;
                    let width = PANEL.min(all - p * PANEL);
                    // SAFETY: `outs` is borrowed until all tasks are done, and a panel's columns in a tile's rows, which these are, belong to one task.
                    let out = unsafe { slots[*i].part((tile * TILE + c) * all + p * PANEL, width) };
                    if add {
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                    } else {
                        out.copy_from_slice(&sums[..width]);
                    }
                }
            }
        }
    });
}

impl Affine {
    /// Panel `p` with a tile of rows; how many these are. The layer is number `i` of those that `ready` was made for.
    fn panel(&self, p: usize, tile: usize, i: usize, ready: &Ready, sums: &mut Sums, level: Level) -> usize {
        let rows = match &*self.weight {
            Packed::Quantised(w) => {
                let found = ready.quantised.iter().find(|(kind, _)| *kind == w.kind);
                let x = found.expect("made ready for every type").1.tile(tile);
                w.tile(p, x, sums, level);
                x.rows
            }
            Packed::Dense(w) => {
                let (x, rows) = ready.dense.as_ref().expect("made ready for dense weights").tile(tile);
                sums[..rows].fill([0.0; PANEL]);
                w.add(p, x, rows, sums, level);
                rows
            }
            Packed::Fine(w) => {
                let x = ready.fine.as_ref().expect("made ready for fine weights").tile(tile);
                w.tile(p, x, sums, level);
                x.rows
            }
        };
        if let Some(bias) = &self.bias {
            let bias = &bias[p * PANEL..(p + 1) * PANEL];
            for sums in &mut sums[..rows] {
                sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
            }
        }
        if let (Some((_, b)), Some(low)) = (&self.update, &ready.low[i]) {
            let (x, rows) = low.tile(tile);
            b.add(p, x, rows, sums, level);
        }
        rows
    }
}

/// Makes the input ready, a few rows a task.
fn ready(layers: &[&Affine], x: Input<'_>, n: usize, cols: usize, level: Level) -> Ready {
    let mut out = Ready { quantised: Vec::new(), dense: None, fine: None, low: Vec::new() };
    for layer in layers {
        match &*layer.weight {
            Packed::Quantised(w) if out.quantised.iter().all(|(kind, _)| *kind != w.kind) => {
                out.quantised.push((w.kind, Activations::new(n, cols, w.kind)));
            }
            Packed::Fine(_) if out.fine.is_none() => out.fine = Some(FineActivations::new(n, cols)),
            Packed::Dense(_) if out.dense.is_none() => out.dense = Some(Columns::new(n, cols)),
            _ => {}
        }
        out.low.push(layer.update.as_ref().map(|(a, _)| Columns::new(n, a.shape().0)));
    }
    let quantised: Vec<_> = out.quantised.iter_mut().map(|(_, activations)| activations.filling()).collect();
    let dense = out.dense.as_mut().map(Columns::slots);
    let fine = out.fine.as_mut().map(FineActivations::filling);
    let low: Vec<_> = out.low.iter_mut().map(|low| low.as_mut().map(Columns::slots)).collect();
    let together = if dense.is_some() { TILE } else { READY };
    threads::run(n.div_ceil(together), |task| {
        let rows = task * together..n.min((task + 1) * together);
        let mut buffer = Vec::new();
        let x = x.make(rows.clone(), cols, &mut buffer, level);
        if let Some(to) = &dense {
            // SAFETY: `out` lives until all tasks are done, and each tile belongs to one task.
            unsafe { Columns::fill_tile(to, rows.clone(), n, cols, |i| &x[(i - rows.start) * cols..]) };
        }
        for (row, x) in rows.clone().zip(x.chunks_exact(cols)) {
            // SAFETY: as above, and each row belongs to one task.
            unsafe {
                quantised.iter().for_each(|to| to.fill(row, x, level));
                if let Some(to) = &fine {
                    to.fill(row, x, level);
                }
            }
        }
        for (layer, to) in layers.iter().zip(&low) {
            let (Some((a, _)), Some(to)) = (&layer.update, to) else { continue };
            for (row, low) in rows.clone().zip(a.narrow(x, level)) {
                // SAFETY: as above.
                unsafe { Columns::fill(to, row, n, &low) };
            }
        }
    });
    out
}
