//! From any sound on any wire to 16 kHz mono samples, and the question whether somebody speaks.
//!
//! Nothing here waits, and nothing panics on what came from outside: bad packets and files are typed errors.

pub mod file;
pub mod g711;
pub mod intake;
pub mod jitter;
pub mod ogg;
pub mod opus;
pub mod resample;
pub mod ring;
pub mod rtp;
pub mod vad;

/// The rate that every model hears, samples a second.
pub const RATE: u32 = 16_000;

/// Why sound is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AudioError {
    /// PCM16 with half a sample at its end.
    #[error("16-bit sound has an even number of bytes; this has {0}")]
    OddLength(usize),
    /// An Opus packet of no bytes, which would mean loss to the decoder.
    #[error("the Opus packet is empty")]
    EmptyPacket,
    /// Not Opus.
    #[error("not an Opus packet: {0}")]
    BadOpus(&'static str),
    /// A rate we do not resample from.
    #[error("sound at {0} samples a second is not taken; 8000 to 192000 are")]
    Rate(u32),
}

/// Seconds as samples at [`RATE`].
pub fn samples(seconds: f32) -> usize {
    (f64::from(seconds) * f64::from(RATE)).round() as usize
}

/// Milliseconds as samples at [`RATE`].
pub fn samples_ms(ms: u32) -> usize {
    ms as usize * (RATE as usize / 1000)
}
