//! Ogg Opus as it is written (RFC 3533, RFC 7845): pages that stand by themselves, so that a file which ends anywhere plays up to there.
//!
//! Each lane is an Opus stream of its own, since two that were coded together would be heard through each other.

use opus::{Application, Bitrate, MSEncoder};

use super::{AudioError, RATE};

/// Samples of each lane in a packet: 60 ms.
pub const FRAME: usize = RATE as usize * 60 / 1000;
/// Packets in a page: so much is lost when a program ends in the middle of one.
const PACKETS: usize = 16;
/// Bits a second of each lane.
const BITS: i32 = 24_000;
/// Of what libopus can do, half is not heard in a voice at this rate and costs most of the time.
const COMPLEXITY: i32 = 5;
/// The most bytes of a lane's packet.
const MOST: usize = 1500;
/// Opus counts at 48 kHz, whatever it codes.
const TICKS: u64 = 48_000 / RATE as u64;

/// Flags of the first page and of the last.
const BEGINS: u8 = 2;
const ENDS: u8 = 4;

/// An Ogg Opus stream.
#[derive(Debug)]
pub struct OggOpus {
    encoder: MSEncoder,
    lanes: usize,
    serial: u32,
    /// Pages so far.
    pages: u32,
    /// Samples before the first that counts, which warm a decoder up.
    skip: u64,
    /// Samples that were coded.
    coded: u64,
    /// Packets that wait for their page: how long each is, as Ogg has it, and what they hold.
    lacing: Vec<u8>,
    body: Vec<u8>,
    packets: usize,
}

impl OggOpus {
    /// A stream of so many lanes, and its first bytes.
    ///
    /// # Errors
    /// Lanes that Opus does not have: 1 to 255 it has.
    pub fn begin(lanes: usize, serial: u32, out: &mut Vec<u8>) -> Result<Self, AudioError> {
        let bad = |e: opus::Error| AudioError::BadOpus(e.code().description());
        let count = u8::try_from(lanes).map_err(|_| AudioError::BadOpus("too many lanes"))?;
        let places: Vec<u8> = (0..count).collect();
        let mut encoder = MSEncoder::new(RATE, count, 0, &places, Application::Voip).map_err(bad)?;
        encoder.set_bitrate(Bitrate::Bits(BITS * i32::from(count))).map_err(bad)?;
        encoder.set_complexity(COMPLEXITY).map_err(bad)?;
        let skip = encoder.get_lookahead().map_err(bad)? as u64;
        let mut this =
            Self { encoder, lanes, serial, pages: 0, skip, coded: 0, lacing: Vec::new(), body: Vec::new(), packets: 0 };
        let mut head = b"OpusHead\x01".to_vec();
        head.push(count);
        head.extend(((skip * TICKS) as u16).to_le_bytes());
        head.extend(RATE.to_le_bytes());
        head.extend([0, 0]);
        // One lane is the plain case, two are left and right, more have no meaning.
        head.push(match count {
            1 => 0,
            2 => 1,
            _ => 255,
        });
        if count > 1 {
            head.extend([count, 0]);
            head.extend(&places);
        }
        this.put(&head);
        this.page(BEGINS, 0, out);
        let mut tags = b"OpusTags\x07\0\0\0hearken".to_vec();
        tags.extend([0; 4]);
        this.put(&tags);
        this.page(0, 0, out);
        Ok(this)
    }

    /// The next [`FRAME`] samples of each lane, interleaved. Now and then a page is added to `out`.
    ///
    /// # Errors
    /// Not so many samples.
    pub fn push(&mut self, frame: &[f32], out: &mut Vec<u8>) -> Result<(), AudioError> {
        let coded = self.encoder.encode_vec_float(frame, MOST * self.lanes);
        let packet = coded.map_err(|e| AudioError::BadOpus(e.code().description()))?;
        if self.lacing.len() + packet.len() / 255 + 1 > 255 {
            self.page(0, self.coded, out);
        }
        self.put(&packet);
        self.coded += FRAME as u64;
        if self.packets == PACKETS {
            self.page(0, self.coded, out);
        }
        Ok(())
    }

    /// The end, of which so many samples of each lane count.
    ///
    /// # Errors
    /// As [`OggOpus::push`].
    pub fn end(mut self, samples: u64, out: &mut Vec<u8>) -> Result<(), AudioError> {
        // A decoder gives the last of them only when it is given more.
        while self.coded < samples + self.skip {
            self.push(&vec![0.0; FRAME * self.lanes], out)?;
        }
        self.page(ENDS, samples + self.skip, out);
        Ok(())
    }

    fn put(&mut self, packet: &[u8]) {
        self.lacing.extend(std::iter::repeat_n(255, packet.len() / 255));
        self.lacing.push((packet.len() % 255) as u8);
        self.body.extend(packet);
        self.packets += 1;
    }

    /// The packets that wait become a page; `until` are the samples that are coded at its end.
    fn page(&mut self, flags: u8, until: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend(b"OggS\0");
        out.push(flags);
        out.extend((until * TICKS).to_le_bytes());
        out.extend(self.serial.to_le_bytes());
        out.extend(self.pages.to_le_bytes());
        out.extend([0; 4]);
        out.push(self.lacing.len() as u8);
        out.append(&mut self.lacing);
        out.append(&mut self.body);
        let sum = checksum(&out[start..]);
        out[start + 22..start + 26].copy_from_slice(&sum.to_le_bytes());
        self.pages += 1;
        self.packets = 0;
    }
}

/// The remainder of each byte, by the polynomial of RFC 3533.
const REMAINDERS: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut rest = (byte as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            rest = if rest & 0x8000_0000 == 0 { rest << 1 } else { (rest << 1) ^ 0x04c1_1db7 };
            bit += 1;
        }
        table[byte] = rest;
        byte += 1;
    }
    table
};

fn checksum(page: &[u8]) -> u32 {
    page.iter().fold(0, |sum, byte| (sum << 8) ^ REMAINDERS[((sum >> 24) as u8 ^ byte) as usize])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::audio::file;

    fn tone(hz: f32, seconds: f32) -> Vec<f32> {
        let wave = |i: usize| 0.3 * (std::f32::consts::TAU * hz * i as f32 / RATE as f32).sin();
        (0..(seconds * RATE as f32) as usize).map(wave).collect()
    }

    /// How much of a tone is in a sound, as its amplitude.
    fn share(hz: f32, sound: &[f32]) -> f32 {
        let angle = |i: usize| std::f32::consts::TAU * hz * i as f32 / RATE as f32;
        let (mut re, mut im) = (0.0, 0.0);
        for (i, x) in sound.iter().enumerate() {
            re += x * angle(i).cos();
            im += x * angle(i).sin();
        }
        2.0 * re.hypot(im) / sound.len() as f32
    }

    fn written(lanes: &[Vec<f32>]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut ogg = OggOpus::begin(lanes.len(), 7, &mut out).unwrap();
        for at in (0..lanes[0].len()).step_by(FRAME) {
            let sample = |i: usize, lane: &Vec<f32>| lane.get(at + i).copied().unwrap_or(0.0);
            let frame: Vec<f32> = (0..FRAME).flat_map(|i| lanes.iter().map(move |lane| sample(i, lane))).collect();
            ogg.push(&frame, &mut out).unwrap();
        }
        ogg.end(lanes[0].len() as u64, &mut out).unwrap();
        out
    }

    fn two(bytes: Vec<u8>) -> (Vec<f32>, Vec<f32>) {
        let (mut left, mut right) = (Vec::new(), Vec::new());
        file::stream_two(bytes, 60.0, &mut |l, r| {
            left.extend_from_slice(l);
            right.extend_from_slice(r);
            true
        })
        .unwrap();
        (left, right)
    }

    #[test]
    fn two_lanes_come_back_each_by_itself_and_as_long_as_they_were() {
        let lanes = [tone(440.0, 3.01), tone(1000.0, 3.01)];
        let bytes = written(&lanes);
        assert!(bytes.len() < 30_000, "{} bytes of 3 s", bytes.len());
        let (left, right) = two(bytes);
        assert_eq!((left.len(), right.len()), (lanes[0].len(), lanes[1].len()));
        let (left, right) = (&left[8000..40_000], &right[8000..40_000]);
        assert!((share(440.0, left) - 0.3).abs() < 0.05 && (share(1000.0, right) - 0.3).abs() < 0.05);
        assert!(share(1000.0, left) < 0.001 && share(440.0, right) < 0.001, "one is heard through the other");
    }

    #[test]
    fn two_lanes_read_as_one_are_their_mean() {
        let heard = file::read_bytes(written(&[tone(440.0, 3.0), tone(1000.0, 3.0)]), 60.0).unwrap();
        let heard = &heard[8000..40_000];
        assert!((share(440.0, heard) - 0.15).abs() < 0.03 && (share(1000.0, heard) - 0.15).abs() < 0.03);
        assert!(share(620.0, heard) < 0.001, "noise");
    }

    #[test]
    fn one_lane_is_a_plain_file_and_in_its_place() {
        let mut sound = vec![0.0; RATE as usize];
        sound.extend(tone(440.0, 1.0));
        let heard = file::read_bytes(written(&[sound.clone()]), 60.0).unwrap();
        assert_eq!(heard.len(), sound.len());
        let first = heard.iter().position(|x| x.abs() > 0.1).unwrap();
        assert!(first.abs_diff(RATE as usize) < 160, "it begins at {first}");
    }

    #[test]
    fn a_file_that_is_cut_anywhere_plays_up_to_there() {
        let lanes = [tone(440.0, 5.0), tone(1000.0, 5.0)];
        let bytes = written(&lanes);
        for cut in [bytes.len() / 2, bytes.len() * 3 / 4, bytes.len() - 1] {
            let (left, _) = two(bytes[..cut].to_vec());
            let wanted = 5.0 * cut as f32 / bytes.len() as f32;
            let seconds = left.len() as f32 / RATE as f32;
            assert!((wanted - 1.3..=wanted + 0.3).contains(&seconds), "{seconds} of {wanted}");
        }
    }
}
