//! The fixed buffer between a socket and its session: the socket never waits, and memory never grows (I5).
//!
//! Full means that the oldest sound goes, counted. Dropping the oldest moves the reader's end, which a lock-free queue allows only
//! to the reader; so a lock is held on each side for the time of one copy, microseconds, and neither side keeps it across anything else.
//!
//! Every sample has a position since the start of the stream. An event that was sent after some sound carries the position at which
//! it was sent, so that the session can hear up to there, and no further, before it obeys.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringbuf::LocalRb;
use ringbuf::storage::Heap;
use ringbuf::traits::Observer;

struct Shared {
    samples: LocalRb<Heap<f32>>,
    /// Position after the newest sample.
    written: u64,
    /// Samples dropped that the reader has not been told of.
    lost: u64,
}

/// The socket's end.
pub struct Writer(Arc<Mutex<Shared>>);

/// The session's end.
pub struct Reader(Arc<Mutex<Shared>>);

/// A ring for `capacity` samples.
pub fn ring(capacity: usize) -> (Writer, Reader) {
    let samples = LocalRb::new(capacity.max(1));
    let shared = Arc::new(Mutex::new(Shared { samples, written: 0, lost: 0 }));
    (Writer(shared.clone()), Reader(shared))
}

/// A panic elsewhere cannot leave the ring half-written: all that happens under the lock is a copy.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// Puts samples in, the oldest making room; returns the position after them and how many were dropped.
    pub fn push(&mut self, samples: &[f32]) -> (u64, u64) {
        let mut shared = lock(&self.0);
        let over = (shared.samples.occupied_len() + samples.len()).saturating_sub(shared.samples.capacity().get());
        shared.samples.push_slice_overwrite(samples);
        shared.written += samples.len() as u64;
        shared.lost += over as u64;
        (shared.written, over as u64)
    }

    /// Whether more than half is waiting.
    pub fn is_half_full(&self) -> bool {
        let shared = lock(&self.0);
        shared.samples.occupied_len() * 2 > shared.samples.capacity().get()
    }

    /// The position after the newest sample.
    pub fn position(&self) -> u64 {
        lock(&self.0).written
    }
}

impl Reader {
    /// The position after the newest sample.
    pub fn written(&self) -> u64 {
        lock(&self.0).written
    }

    /// Moves samples up to the position `until` into `out`, which is cleared first, and returns how many were lost before them.
    pub fn read(&mut self, until: u64, out: &mut Vec<f32>) -> u64 {
        let mut shared = lock(&self.0);
        let held = shared.samples.occupied_len();
        let beyond = shared.written.saturating_sub(until).min(held as u64) as usize;
        out.clear();
        out.resize(held - beyond, 0.0);
        let n = shared.samples.pop_slice(out);
        debug_assert_eq!(n, out.len(), "nobody else reads");
        std::mem::take(&mut shared.lost)
    }
}
