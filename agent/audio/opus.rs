//! Opus packets to 16 kHz mono. libopus resamples by itself, four times cheaper than 48 kHz and a resampler.

use opus::{Channels, Decoder};

use super::{AudioError, RATE};

/// The longest packet that Opus has, 120 ms, in samples at [`RATE`].
pub(super) const LONGEST: usize = RATE as usize * 120 / 1000;
/// Concealment without a known duration makes up one usual packet, 20 ms.
const USUAL: usize = RATE as usize * 20 / 1000;

/// Decodes one stream. Packets depend on those before them, so each stream needs its own.
#[derive(Debug)]
pub struct OpusDecoder {
    decoder: Decoder,
    buffer: Vec<f32>,
    last: usize,
}

impl Default for OpusDecoder {
    fn default() -> Self {
        let decoder = Decoder::new(RATE, Channels::Mono).expect("libopus decodes at 16 kHz, mono");
        Self { decoder, buffer: vec![0.0; LONGEST], last: USUAL }
    }
}

impl OpusDecoder {
    /// One packet to its samples, in −1..1; stereo is mixed down.
    ///
    /// # Errors
    /// An empty packet, or bytes that are no Opus packet. The decoder stays usable.
    pub fn decode(&mut self, packet: &[u8]) -> Result<&[f32], AudioError> {
        if packet.is_empty() {
            return Err(AudioError::EmptyPacket);
        }
        let n = self.decoder.decode_float(packet, &mut self.buffer, false);
        self.last = n.map_err(|e| AudioError::BadOpus(e.code().description()))?;
        Ok(self.cleaned(self.last))
    }

    /// What the last successful [`OpusDecoder::decode`] gave.
    pub fn latest(&self) -> &[f32] {
        &self.buffer[..self.last]
    }

    /// What was lost before this packet, `samples` of it (at most 120 ms), from the coarser copy that the packet carries; made up if it carries none.
    ///
    /// # Errors
    /// An empty packet, or bytes that are no Opus packet. The decoder stays usable.
    pub fn recover(&mut self, packet: &[u8], samples: usize) -> Result<&[f32], AudioError> {
        if packet.is_empty() {
            return Err(AudioError::EmptyPacket);
        }
        let wanted = whole(samples);
        let n = self.decoder.decode_float(packet, &mut self.buffer[..wanted], true);
        let n = n.map_err(|e| AudioError::BadOpus(e.code().description()))?;
        Ok(self.cleaned(n))
    }

    /// Makes up what was lost: `samples` of it (at most 120 ms), or as much as the last packet held when `None`.
    pub fn conceal(&mut self, samples: Option<usize>) -> &[f32] {
        let wanted = whole(samples.unwrap_or(self.last));
        let n = self.decoder.decode_float(&[], &mut self.buffer[..wanted], false).unwrap_or_else(|_| {
            self.buffer[..wanted].fill(0.0);
            wanted
        });
        self.cleaned(n)
    }

    fn cleaned(&mut self, n: usize) -> &[f32] {
        clean(&mut self.buffer[..n]);
        &self.buffer[..n]
    }
}

/// The float decoder may overshoot; detectors and models expect −1..1.
pub(super) fn clean(samples: &mut [f32]) {
    samples.iter_mut().for_each(|x| *x = if x.is_finite() { x.clamp(-1.0, 1.0) } else { 0.0 });
}

/// libopus makes up whole multiples of 2.5 ms.
fn whole(samples: usize) -> usize {
    let quantum = RATE as usize / 400;
    samples.clamp(quantum, LONGEST) / quantum * quantum
}
