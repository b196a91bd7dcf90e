//! The ingest end of one connection: bytes in the client's format to 16 kHz samples.

use super::{AudioError, g711, opus::OpusDecoder, resample::Resampler};

/// What a client's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// 16-bit little-endian, mono, at this rate.
    Pcm16(u32),
    /// G.711 µ-law, 8 kHz.
    Ulaw,
    /// G.711 A-law, 8 kHz.
    Alaw,
    /// One Opus packet at a time.
    Opus,
}

impl Default for Format {
    fn default() -> Self {
        Self::Pcm16(24_000)
    }
}

impl Format {
    /// Samples a second, as they arrive. Opus is decoded straight to 16 kHz.
    pub fn rate(self) -> u32 {
        match self {
            Self::Pcm16(rate) => rate,
            Self::Ulaw | Self::Alaw => 8_000,
            Self::Opus => super::RATE,
        }
    }

    /// At most how many 16 kHz samples so many bytes can become.
    pub fn most_samples(self, bytes: usize) -> u64 {
        let at_rate = match self {
            Self::Pcm16(_) => bytes as u64 / 2,
            Self::Ulaw | Self::Alaw => bytes as u64,
            Self::Opus => return 1920,
        };
        (at_rate * u64::from(super::RATE)).div_ceil(u64::from(self.rate()))
    }

    /// One clip, whole, to 16 kHz samples. Beside a stream of Opus, whose packets have no bounds of their own, clips are PCM16 in the default rate.
    ///
    /// # Errors
    /// Half a sample at the end.
    pub fn clip(self, bytes: &[u8]) -> Result<Vec<f32>, AudioError> {
        let mut intake = Intake::new(if self == Self::Opus { Self::default() } else { self });
        let mut out = Vec::new();
        intake.push(bytes, &mut out)?;
        intake.flush(&mut out);
        Ok(out)
    }
}

/// Decodes and resamples one stream.
#[derive(Debug)]
pub struct Intake {
    format: Format,
    opus: Option<OpusDecoder>,
    resampler: Resampler,
    raw: Vec<f32>,
}

impl Intake {
    /// For a stream of this format.
    pub fn new(format: Format) -> Self {
        let resampler = Resampler::new(format.rate()).expect("formats have rates that are resampled");
        let opus = (format == Format::Opus).then(OpusDecoder::default);
        Self { format, opus, resampler, raw: Vec::new() }
    }

    /// The stream's format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Takes the next bytes, appends 16 kHz samples to `out`. PCM16 may come in pieces of any even length.
    ///
    /// # Errors
    /// Nothing is appended then, and the stream goes on with the next bytes.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<f32>) -> Result<(), AudioError> {
        if let Some(opus) = &mut self.opus {
            out.extend_from_slice(opus.decode(bytes)?);
            return Ok(());
        }
        self.raw.clear();
        match self.format {
            Format::Ulaw => self.raw.extend(bytes.iter().map(|&b| g711::ulaw(b))),
            Format::Alaw => self.raw.extend(bytes.iter().map(|&b| g711::alaw(b))),
            _ if bytes.len() % 2 == 1 => return Err(AudioError::OddLength(bytes.len())),
            _ => {
                let sample = |b: &[u8]| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32768.0;
                self.raw.extend(bytes.chunks_exact(2).map(sample));
            }
        }
        self.resampler.push(&self.raw, out);
        Ok(())
    }

    /// Ends a stretch of sound: appends what the resampler still held.
    pub fn flush(&mut self, out: &mut Vec<f32>) {
        self.resampler.flush(out);
    }
}
