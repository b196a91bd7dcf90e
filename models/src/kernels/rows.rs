//! What is done to rows on their way into a product: norms and gates, so that no pass over memory is made for them alone.

use super::{Level, threads};

/// The rows of a product's left side, and how they are made.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// As they are.
    Plain(&'a [f32]),
    /// Divided by their root mean square, times a weight for each column.
    Normed { x: &'a [f32], weight: &'a [f32], epsilon: f32 },
    /// Less their mean, divided by their standard deviation, times a weight and plus a bias for each column.
    Centred { x: &'a [f32], weight: &'a [f32], bias: &'a [f32], epsilon: f32 },
    /// SiLU of the one times the other.
    Gated { gate: &'a [f32], up: &'a [f32] },
    /// GELU, the exact one.
    Gelu(&'a [f32]),
    /// Row i begins at number `step · i`: the windows of a convolution.
    Windows { x: &'a [f32], step: usize },
}

impl<'a> Input<'a> {
    /// How many rows of `cols` numbers there are.
    ///
    /// # Panics
    /// If there are numbers left.
    pub(super) fn rows(&self, cols: usize) -> usize {
        let (Self::Plain(x)
        | Self::Normed { x, .. }
        | Self::Centred { x, .. }
        | Self::Gated { gate: x, .. }
        | Self::Gelu(x)
        | Self::Windows { x, .. }) = self;
        if let Self::Windows { step, .. } = self {
            return if x.len() < cols { 0 } else { (x.len() - cols) / step + 1 };
        }
        assert_eq!(x.len() % cols, 0, "activations are whole rows");
        x.len() / cols
    }

    /// Rows `rows` of `cols` numbers, made in `buffer` where they are not there already.
    pub(super) fn make<'b>(
        &self,
        rows: std::ops::Range<usize>,
        cols: usize,
        buffer: &'b mut Vec<f32>,
        level: Level,
    ) -> &'b [f32]
    where
        'a: 'b,
    {
        let range = rows.start * cols..rows.end * cols;
        if let Self::Plain(x) = self {
            return &x[range];
        }
        buffer.resize(range.len(), 0.0);
        match level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a level is only made where the processor has what it names.
            Level::Avx512 => unsafe { avx512(self, range, cols, buffer) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2 | Level::AvxVnni => unsafe { avx2(self, range, cols, buffer) },
            _ => body(self, range, cols, buffer),
        }
        buffer
    }
}

/// A norm's rows, for what is no product.
pub(crate) fn normed(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let mut out = Vec::new();
    Input::Normed { x, weight, epsilon }.make(0..x.len() / weight.len(), weight.len(), &mut out, Level::best());
    out
}

/// GELU of each.
pub(crate) fn gelu_all(x: &[f32]) -> Vec<f32> {
    const PART: usize = 1 << 14;
    let parts = threads::map(x.len().div_ceil(PART), |i| {
        let mut out = Vec::new();
        let range = i * PART..x.len().min((i + 1) * PART);
        Input::Gelu(x).make(range, 1, &mut out, Level::best());
        out
    });
    parts.concat()
}

/// # Safety
/// The processor must have AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(input: &Input<'_>, range: std::ops::Range<usize>, cols: usize, out: &mut [f32]) {
    body(input, range, cols, out);
}

/// # Safety
/// The processor must have AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(input: &Input<'_>, range: std::ops::Range<usize>, cols: usize, out: &mut [f32]) {
    body(input, range, cols, out);
}

/// Plain Rust in lanes, compiled once for each instruction set.
#[inline(always)]
fn body(input: &Input<'_>, range: std::ops::Range<usize>, cols: usize, out: &mut [f32]) {
    match input {
        Input::Plain(x) => out.copy_from_slice(&x[range]),
        Input::Normed { x, weight, epsilon } => {
            for (x, out) in x[range].chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
                let scale = 1.0 / (total(x, |x| x * x) / cols as f32 + epsilon).sqrt();
                for ((to, x), w) in out.iter_mut().zip(x).zip(*weight) {
                    *to = x * scale * w;
                }
            }
        }
        Input::Centred { x, weight, bias, epsilon } => {
            for (x, out) in x[range].chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
                let mean = total(x, |x| x) / cols as f32;
                let scale = 1.0 / (total(x, |x| (x - mean) * (x - mean)) / cols as f32 + epsilon).sqrt();
                for (((to, x), w), b) in out.iter_mut().zip(x).zip(*weight).zip(*bias) {
                    *to = (x - mean) * scale * w + b;
                }
            }
        }
        Input::Gelu(x) => {
            for (to, x) in out.iter_mut().zip(&x[range]) {
                *to = gelu(*x);
            }
        }
        Input::Windows { x, step } => {
            for (i, out) in (range.start / cols..).zip(out.chunks_exact_mut(cols)) {
                out.copy_from_slice(&x[i * step..i * step + cols]);
            }
        }
        Input::Gated { gate, up } => {
            for ((to, g), u) in out.iter_mut().zip(&gate[range.clone()]).zip(&up[range]) {
                *to = g / (1.0 + exp(-g)) * u;
            }
        }
    }
}

/// The sum of `f`, in a fixed order.
#[inline(always)]
fn total(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    const LANES: usize = 32;
    let mut lanes = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for l in 0..LANES {
            lanes[l] += f(x[l]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(*x);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// x · Φ(x). The error function to 1.5 · 10⁻⁷: Abramowitz and Stegun 7.1.26.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let p = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    // What the bell has left beyond |x|, twice.
    let tail = p * exp(-z * z);
    let area = if x > 0.0 { 1.0 - 0.5 * tail } else { 0.5 * tail };
    x * area
}

/// e^x to about two units in the last place, within the range of f32. Source: Cephes `expf`, here without branches for the lanes' sake.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let inside = if x > -87.0 { x } else { -87.0 };
    let inside = if inside < 88.0 { inside } else { 88.0 };
    // Adding and taking away 1.5 · 2^23 rounds to the nearest integer.
    let n = (inside * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = inside - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 0.166_666_66) * r
        + 0.5;
    let y = (p * r) * r + r + 1.0;
    // The exponent of n is what the low bits of the shifted sum say; no branch, no call.
    let exponent = (n + 12_582_912.0).to_bits().wrapping_sub(12_582_912f32.to_bits());
    f32::from_bits(y.to_bits().wrapping_add(exponent << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_over_its_range() {
        for i in 0..200_000 {
            let x = -87.0 + 175.0 * i as f32 / 200_000.0;
            let (ours, right) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours - right).abs() <= right * 3e-7, "e^{x}: {ours} against {right}");
        }
        assert!(exp(1e9).is_finite() && exp(-1e9) < 1e-37);
    }

    #[test]
    fn rows_are_made_alike_at_every_level() {
        let x: Vec<f32> = (0..3 * 70).map(|i| ((i * 37 % 101) as f32 - 50.0) / 10.0).collect();
        let weight: Vec<f32> = (0..70).map(|i| 1.0 + i as f32 / 70.0).collect();
        for level in Level::all() {
            let mut out = Vec::new();
            Input::Normed { x: &x, weight: &weight, epsilon: 1e-6 }.make(1..3, 70, &mut out, level);
            for (i, out) in out.iter().enumerate() {
                let row = &x[70 + i / 70 * 70..][..70];
                let mean: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 70.0;
                let right = f64::from(row[i % 70]) / (mean + 1e-6).sqrt() * f64::from(weight[i % 70]);
                assert!((f64::from(*out) - right).abs() < 1e-5, "{level:?}");
            }
            let bias: Vec<f32> = weight.iter().map(|w| w * 0.5).collect();
            Input::Centred { x: &x, weight: &weight, bias: &bias, epsilon: 1e-5 }.make(0..3, 70, &mut out, level);
            for (i, out) in out.iter().enumerate() {
                let row = &x[i / 70 * 70..][..70];
                let mean: f64 = row.iter().map(|x| f64::from(*x)).sum::<f64>() / 70.0;
                let variance: f64 = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / 70.0;
                let right = (f64::from(row[i % 70]) - mean) / (variance + 1e-5).sqrt() + 0.5;
                assert!((f64::from(*out) - right * f64::from(weight[i % 70])).abs() < 1e-5, "{level:?}");
            }
            Input::Windows { x: &x, step: 3 }.make(2..4, 7, &mut out, level);
            assert_eq!(out[..7], x[6..13]);
            assert_eq!(out[7..], x[9..16]);
            Input::Gelu(&[-30.0, -3.0, -0.5, 0.0, 1.0, 30.0]).make(0..1, 6, &mut out, level);
            for (out, right) in out.iter().zip([0.0, -0.004_049_7, -0.154_268_8, 0.0, 0.841_344_7, 30.0]) {
                assert!((out - right).abs() < 2e-6, "{level:?}: {out} for {right}");
            }
            Input::Gated { gate: &x, up: &x }.make(0..1, 70, &mut out, level);
            for (out, x) in out.iter().zip(&x) {
                let x = f64::from(*x);
                let right = x / (1.0 + (-x).exp()) * x;
                assert!((f64::from(*out) - right).abs() < 1e-5, "{level:?}");
            }
        }
    }
}
