//! Any rate to 16 kHz, as a stream, with nothing lost at either end.
//!
//! The filter's delay is cut off at the start and pushed out at the end, so that n samples in give n × 16000 / rate out, at the same
//! place in time. Chunks are cut here, so the result does not depend on how the sound was packed.

use std::cell::RefCell;
use std::collections::VecDeque;

use rubato::audioadapter_buffers::direct::SequentialSlice;
use rubato::{Fft, FixedSync, Resampler as _};

use super::{AudioError, RATE};

/// A rate that is no multiple of this is taken for the nearest that is, at most a sixth of a percent away; no recorder makes one. The filter is as long as
/// the rate has no measure in common with ours: for a prime one a second of sound, and half a second's work to make, which any file could ask for.
const MEASURE: u32 = 25;

/// Resamples one mono stream.
pub struct Resampler {
    rate: u32,
    /// `None` at 16 kHz, where there is nothing to do.
    inner: Option<Inner>,
}

thread_local! {
    /// Filters whose streams are over, the oldest first.
    static SPARE: RefCell<VecDeque<(u32, Fft<f32>)>> = const { RefCell::new(VecDeque::new()) };
}

/// So many a thread.
const SPARES: usize = 4;

/// One stream's filter. To make one takes 0.2 to 2 ms, so that those of streams that are over are used again.
struct Filter {
    rate: u32,
    fft: Option<Fft<f32>>,
}

impl Filter {
    fn new(rate: u32) -> Result<Self, AudioError> {
        let spare = SPARE.with_borrow_mut(|spare| {
            let at = spare.iter().position(|(other, _)| *other == rate)?;
            spare.remove(at)
        });
        let fft = match spare {
            Some((_, fft)) => fft,
            // About 20 ms a chunk: short enough to be live, long enough for a sharp filter.
            None => Fft::new(rate as usize, RATE as usize, rate as usize / 50, 1, FixedSync::Both)
                .map_err(|_| AudioError::Rate(rate))?,
        };
        Ok(Self { rate, fft: Some(fft) })
    }

    fn fft(&mut self) -> &mut Fft<f32> {
        self.fft.as_mut().expect("it is there until the end")
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        let Some(mut fft) = self.fft.take() else { return };
        fft.reset();
        // A thread that ends keeps nothing.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() == SPARES {
                spare.pop_front();
            }
            spare.push_back((self.rate, fft));
        });
    }
}

struct Inner {
    filter: Filter,
    /// Input not yet a whole chunk.
    pending: Vec<f32>,
    chunk: usize,
    out: Vec<f32>,
    /// Output samples of the filter's delay that are still to be cut off.
    skip: usize,
    taken: u64,
    given: u64,
}

impl std::fmt::Debug for Resampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resampler").field("rate", &self.rate).finish_non_exhaustive()
    }
}

impl Resampler {
    /// From `rate` samples a second.
    ///
    /// # Errors
    /// [`AudioError::Rate`] outside 8000..=192000.
    pub fn new(rate: u32) -> Result<Self, AudioError> {
        if !(8_000..=192_000).contains(&rate) {
            return Err(AudioError::Rate(rate));
        }
        let rate = (rate + MEASURE / 2) / MEASURE * MEASURE;
        let inner = (rate != RATE).then(|| Inner::new(rate)).transpose()?;
        Ok(Self { rate, inner })
    }

    /// Takes samples, appends what is ready to `out`.
    pub fn push(&mut self, samples: &[f32], out: &mut Vec<f32>) {
        match &mut self.inner {
            None => out.extend_from_slice(samples),
            Some(inner) => inner.push(samples, out),
        }
    }

    /// Ends the stream: appends the tail that the filter still held. The next push begins a new stream.
    pub fn flush(&mut self, out: &mut Vec<f32>) {
        if let Some(inner) = &mut self.inner {
            inner.flush(self.rate, out);
        }
    }
}

impl Inner {
    fn new(rate: u32) -> Result<Self, AudioError> {
        let mut filter = Filter::new(rate)?;
        let fft = filter.fft();
        let (chunk, most) = (fft.input_frames_max(), fft.output_frames_max());
        let skip = fft.output_delay();
        Ok(Self { filter, pending: Vec::with_capacity(chunk), chunk, out: vec![0.0; most], skip, taken: 0, given: 0 })
    }

    fn push(&mut self, mut samples: &[f32], out: &mut Vec<f32>) {
        self.taken += samples.len() as u64;
        while !samples.is_empty() {
            let n = samples.len().min(self.chunk - self.pending.len());
            self.pending.extend_from_slice(&samples[..n]);
            samples = &samples[n..];
            if self.pending.len() == self.chunk {
                self.step(u64::MAX, out);
            }
        }
    }

    /// One whole chunk through the filter; at most `limit` samples are given out.
    fn step(&mut self, limit: u64, out: &mut Vec<f32>) {
        let from = SequentialSlice::new(&self.pending[..], 1, self.chunk).expect("the chunk is whole");
        let room = self.out.len();
        let mut to = SequentialSlice::new_mut(&mut self.out[..], 1, room).expect("one channel of its own length");
        let (_, n) =
            self.filter.fft().process_into_buffer(&from, &mut to, None).expect("buffers of the sizes it asked for");
        self.pending.clear();
        let cut = self.skip.min(n);
        self.skip -= cut;
        let kept = ((n - cut) as u64).min(limit) as usize;
        out.extend_from_slice(&self.out[cut..cut + kept]);
        self.given += kept as u64;
    }

    fn flush(&mut self, rate: u32, out: &mut Vec<f32>) {
        let due = (self.taken * u64::from(RATE)).div_ceil(u64::from(rate));
        while self.given < due {
            self.pending.resize(self.chunk, 0.0);
            self.step(due - self.given, out);
        }
        let fft = self.filter.fft();
        fft.reset();
        self.pending.clear();
        (self.skip, self.taken, self.given) = (fft.output_delay(), 0, 0);
    }
}
