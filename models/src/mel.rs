//! Log-mel features, exactly as Whisper and Step-Audio compute them.
//!
//! Source: OpenAI Whisper `audio.py`; step-audio2 1.0.0 `utils.py` (`log_mel_spectrogram`). STFT with n_fft 400, hop 160, periodic Hann,
//! centred with reflect padding, last frame dropped; Slaney mel filters; log10 clamped at 1e-10 and at 8 below the segment's maximum.

use std::f32::consts::PI;
use std::ops::Range;
use std::sync::Arc;

use realfft::{RealFftPlanner, RealToComplex};

/// Samples a second of every sound in this crate.
pub const SAMPLE_RATE: usize = 16_000;
/// Samples between two mel frames (10 ms).
pub const HOP: usize = 160;
/// Zeros the reference client puts after a segment.
pub const TAIL: usize = 479;
/// Mel frames made of those zeros: seen by the convolutions, hidden from attention, never a token.
pub const PAD_FRAMES: usize = 2;

const N_FFT: usize = 400;
const BINS: usize = N_FFT / 2 + 1;

/// A mel spectrogram, row-major `[n_mels, frames]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Mel {
    /// Values, about −1..1.5.
    pub data: Vec<f32>,
    /// Rows.
    pub n_mels: usize,
    /// Columns, 100 a second.
    pub frames: usize,
}

/// The front end for one number of mel bins.
pub struct LogMel {
    n_mels: usize,
    /// For each bin the first spectral line it weighs, and its weights.
    filters: Vec<(usize, Vec<f32>)>,
    window: Vec<f32>,
    fft: Arc<dyn RealToComplex<f32>>,
}

impl std::fmt::Debug for LogMel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogMel").field("n_mels", &self.n_mels).finish_non_exhaustive()
    }
}

impl LogMel {
    /// A front end of `n_mels` bins (80 for Whisper base, 128 for Step-Audio).
    pub fn new(n_mels: usize) -> Self {
        let window = (0..N_FFT).map(|i| 0.5 - 0.5 * (2.0 * PI * i as f32 / N_FFT as f32).cos()).collect();
        Self { n_mels, filters: slaney(n_mels), window, fft: RealFftPlanner::new().plan_fft_forward(N_FFT) }
    }

    /// Features of one segment with the reference's tail of [`TAIL`] zeros: `(samples + 479) / 160` frames.
    pub fn segment(&self, samples: &[f32]) -> Mel {
        self.padded(samples, samples.len() + TAIL)
    }

    /// Features of `samples` followed by zeros up to `length` samples in all, as Whisper's own decoder was trained on (30 s).
    pub fn padded(&self, samples: &[f32], length: usize) -> Mel {
        let length = length.max(samples.len());
        let sample = |at: usize| samples.get(reflect_right(at, length)).copied().unwrap_or(0.0);
        let mut mel = self.logarithms(0..length / HOP, sample);
        let peak = mel.data.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        mel.scale(peak);
        mel
    }

    /// Features of some frames of a segment that is still growing, with a constant in place of its maximum. `sample` gives the samples by
    /// their place in the segment, zeros past its end.
    pub(crate) fn constant(&self, frames: Range<usize>, sample: impl Fn(usize) -> f32, peak: f32) -> Mel {
        let mut mel = self.logarithms(frames, sample);
        mel.scale(peak);
        mel
    }

    /// log10 of each frame's energies, at least −10.
    fn logarithms(&self, frames: Range<usize>, sample: impl Fn(usize) -> f32) -> Mel {
        let count = frames.len();
        let mut data = vec![0f32; self.n_mels * count];
        let mut scratch = self.fft.make_scratch_vec();
        let (mut frame, mut lines) = (vec![0f32; N_FFT], self.fft.make_output_vec());
        let mut power = [0f32; BINS];
        for (column, t) in frames.enumerate() {
            for (i, (x, w)) in frame.iter_mut().zip(&self.window).enumerate() {
                // Mirrored left of the segment; its first sample is not repeated.
                *x = w * sample((t * HOP + i).abs_diff(N_FFT / 2));
            }
            self.fft.process_with_scratch(&mut frame, &mut lines, &mut scratch).expect("buffers come from the plan");
            for (p, c) in power.iter_mut().zip(&lines) {
                *p = c.norm_sqr();
            }
            for (m, (start, weights)) in self.filters.iter().enumerate() {
                let energy: f32 = weights.iter().zip(&power[*start..]).map(|(w, p)| w * p).sum();
                // A NaN sample counts as silence: `max` returns its other operand.
                data[m * count + column] = energy.max(1e-10).log10();
            }
        }
        Mel { data, n_mels: self.n_mels, frames: count }
    }
}

impl Mel {
    /// Nothing counts that lies more than 8 below the maximum; about −1..1.5 comes out.
    fn scale(&mut self, peak: f32) {
        for x in &mut self.data {
            *x = (x.max(peak - 8.0) + 4.0) / 4.0;
        }
    }
}

/// Index of a sample right of the signal, mirrored at its end (the last one is not repeated).
fn reflect_right(at: usize, length: usize) -> usize {
    let last = length.saturating_sub(1);
    if at > last { (2 * last).saturating_sub(at) } else { at }
}

/// Slaney-style mel filterbank with Slaney area norm, 0 to 8 kHz (librosa's default, which Whisper stores).
fn slaney(n_mels: usize) -> Vec<(usize, Vec<f32>)> {
    let log_step = 6.4f64.ln() / 27.0;
    let to_mel = |hz: f64| if hz < 1000.0 { hz * 3.0 / 200.0 } else { 15.0 + (hz / 1000.0).ln() / log_step };
    let to_hz = |mel: f64| if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * ((mel - 15.0) * log_step).exp() };
    let top = to_mel(SAMPLE_RATE as f64 / 2.0);
    let edge = |i: usize| to_hz(top * i as f64 / (n_mels + 1) as f64);
    let line = |k: usize| k as f64 * SAMPLE_RATE as f64 / N_FFT as f64;
    (0..n_mels)
        .map(|m| {
            let (low, mid, high) = (edge(m), edge(m + 1), edge(m + 2));
            let weight = |k: usize| {
                let rise = (line(k) - low) / (mid - low);
                let fall = (high - line(k)) / (high - mid);
                (rise.min(fall).max(0.0) * 2.0 / (high - low)) as f32
            };
            let inside: Vec<usize> = (0..BINS).filter(|&k| weight(k) > 0.0).collect();
            match (inside.first(), inside.last()) {
                (Some(&a), Some(&b)) => (a, (a..=b).map(weight).collect()),
                _ => (0, Vec::new()),
            }
        })
        .collect()
}

/// How long a segment of `samples` is at every stage of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Mel frames, the two of padding included.
    pub mel: usize,
    /// Valid encoder positions, 50 a second.
    pub at_50hz: usize,
    /// Encoder output frames after pooling, 25 a second.
    pub at_25hz: usize,
    /// Decoder tokens, 12.5 a second.
    pub tokens: usize,
}

impl Lengths {
    /// Source: step-audio2 1.0.0 `utils.py` (`compute_token_num`).
    pub fn of(samples: usize) -> Self {
        let mel = (samples + TAIL) / HOP;
        let at_50hz = (mel - PAD_FRAMES).div_ceil(2);
        let at_25hz = at_50hz / 2;
        Self { mel, at_50hz, at_25hz, tokens: at_25hz.div_ceil(2) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_25_seconds() {
        assert_eq!(Lengths::of(400_000), Lengths { mel: 2502, at_50hz: 1250, at_25hz: 625, tokens: 313 });
        assert_eq!(Lengths::of(0).tokens, 0);
    }

    #[test]
    fn nan_and_infinity_make_no_nan() {
        let mel = LogMel::new(80).segment(&[f32::NAN, f32::INFINITY, 1.0, 0.5]);
        assert!(mel.data.iter().all(|x| !x.is_nan()));
    }
}
