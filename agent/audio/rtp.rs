//! The ingest end of one RTP stream of Opus: packets in any order to 16 kHz samples in the right one.

use std::time::Duration;

use super::jitter::{Jitter, Stats, Step};
use super::opus::OpusDecoder;

/// Decodes one stream.
#[derive(Debug, Default)]
pub struct RtpIntake {
    jitter: Jitter,
    decoder: OpusDecoder,
}

impl RtpIntake {
    /// Takes a packet and appends to `out` all sound that is due.
    pub fn push(&mut self, now: Duration, sequence: u16, timestamp: u32, payload: &[u8], out: &mut Vec<f32>) {
        self.jitter.push(now, sequence, timestamp, payload);
        self.pull(now, out);
    }

    /// Appends to `out` all sound that is due without a further packet.
    pub fn pull(&mut self, now: Duration, out: &mut Vec<f32>) {
        while let Some(step) = self.jitter.poll(now) {
            let sound = match step {
                Step::Decode(packet) => self.decoder.decode(packet),
                Step::Recover(packet, samples) => self.decoder.recover(packet, samples),
                Step::Conceal(samples) => {
                    conceal(&mut self.decoder, samples, out);
                    continue;
                }
            };
            // A packet that is no Opus is as good as lost, and has no length of its own.
            match sound {
                Ok(sound) => out.extend_from_slice(sound),
                Err(error) => tracing::debug!(%error, "a packet is not decoded"),
            }
        }
    }

    /// When to [`RtpIntake::pull`] if no packet comes before.
    pub fn deadline(&self) -> Option<Duration> {
        self.jitter.deadline()
    }

    /// What has happened to the stream.
    pub fn stats(&self) -> Stats {
        self.jitter.stats()
    }
}

/// Makes up so many samples: the decoder lets the last sound die away, or goes on with its noise in a pause.
fn conceal(decoder: &mut OpusDecoder, samples: usize, out: &mut Vec<f32>) {
    let end = out.len() + samples;
    while out.len() < end {
        let made_up = decoder.conceal(Some(end - out.len()));
        let n = made_up.len().min(end - out.len());
        out.extend_from_slice(&made_up[..n]);
    }
}
