//! Sound files to 16 kHz mono: wav, flac, mp3, Ogg Vorbis, Ogg Opus, recognised by their bytes and not by their names.
//!
//! symphonia reads the containers and every codec but Opus, whose packets go to libopus. Memory is bounded by the length limit, or for [`stream`]
//! by what the listener keeps.

use std::io::{Read, Seek};
use std::ops::Range;
use std::path::Path;

use opus::MSDecoder;
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions, well_known::CODEC_ID_OPUS};
use symphonia::core::errors::Error as Symphonia;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::packet::Packet;

use super::opus::{LONGEST, OpusDecoder, clean};
use super::resample::Resampler;
use super::{AudioError, RATE, samples};

/// Why a file cannot be heard.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// It cannot be opened or read.
    #[error("cannot read it: {0}")]
    Io(#[from] std::io::Error),
    /// No container or codec that we know.
    #[error("this is no sound that can be read here (wav, flac, mp3, Ogg Vorbis and Ogg Opus can): {0}")]
    NotAudio(String),
    /// It begins well and is broken inside.
    #[error("the sound is broken: {0}")]
    Broken(String),
    /// Not one sample.
    #[error("there is no sound in it")]
    Empty,
    /// Two channels were wanted.
    #[error("a file of two channels is needed, one for each party")]
    NotTwo,
    /// Longer than allowed.
    #[error("it is longer than {limit_seconds} s")]
    TooLong {
        /// The limit.
        limit_seconds: f32,
    },
    /// Its sound is of a kind that is not taken.
    #[error(transparent)]
    Audio(#[from] AudioError),
}

/// Reads a file as 16 kHz mono samples in −1..1, at most `limit_seconds` of it.
///
/// # Errors
/// [`FileError`]; a file that is longer is refused, not cut.
pub fn read(path: &Path, limit_seconds: f32) -> Result<Vec<f32>, FileError> {
    whole(std::fs::File::open(path)?, limit_seconds)
}

/// As [`read`], from bytes in memory.
///
/// # Errors
/// [`FileError`]
pub fn read_bytes(bytes: Vec<u8>, limit_seconds: f32) -> Result<Vec<f32>, FileError> {
    whole(std::io::Cursor::new(bytes), limit_seconds)
}

/// As [`read_bytes`], but the samples are handed over in pieces as they are decoded, until `listener` returns `false`. Returns how many it was given.
///
/// # Errors
/// [`FileError`], perhaps after some pieces.
pub fn stream(bytes: Vec<u8>, limit_seconds: f32, listener: &mut Listener<'_>) -> Result<usize, FileError> {
    decode(std::io::Cursor::new(bytes), limit_seconds, 1, &mut |lanes| listener(&lanes[0]))
}

/// As [`stream`], of a file whose two channels are two voices: pieces of equal length of either.
///
/// # Errors
/// [`FileError`], perhaps after some pieces.
pub fn stream_two(
    bytes: Vec<u8>,
    limit_seconds: f32,
    listener: &mut dyn FnMut(&[f32], &[f32]) -> bool,
) -> Result<usize, FileError> {
    decode(std::io::Cursor::new(bytes), limit_seconds, 2, &mut |lanes| listener(&lanes[0], &lanes[1]))
}

/// Takes the next samples; `false` when no more are wanted.
pub type Listener<'a> = dyn FnMut(&[f32]) -> bool + 'a;
/// The same for lanes of equal length.
type Lanes<'a> = dyn FnMut(&[Vec<f32>]) -> bool + 'a;

fn whole<S: MediaSource + Read + Seek + 'static>(source: S, limit_seconds: f32) -> Result<Vec<f32>, FileError> {
    let mut all = Vec::new();
    decode(source, limit_seconds, 1, &mut |lanes| {
        all.extend_from_slice(&lanes[0]);
        true
    })?;
    Ok(all)
}

fn decode<S: MediaSource + Read + Seek + 'static>(
    source: S,
    limit_seconds: f32,
    lanes: usize,
    listener: &mut Lanes<'_>,
) -> Result<usize, FileError> {
    let stream = MediaSourceStream::new(Box::new(source), Default::default());
    let mut format = symphonia::default::get_probe()
        .probe(&Hint::new(), stream, FormatOptions::default(), MetadataOptions::default())
        .map_err(|e| match e {
            // A file that ends before its container is recognised is simply not one.
            Symphonia::IoError(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => FileError::Io(e),
            e => FileError::NotAudio(e.to_string()),
        })?;
    let track = format.default_track(TrackType::Audio).ok_or_else(|| FileError::NotAudio("no sound track".into()))?;
    let id = track.id;
    let params = track.codec_params.as_ref().and_then(|p| p.audio());
    let params = params.ok_or_else(|| FileError::NotAudio("no codec is named".into()))?;
    let limit = samples(limit_seconds);
    let out = vec![Vec::new(); lanes];
    let mut sink = Sink { listener, out, given: 0, is_wanted: true, resamplers: None, limit, limit_seconds };
    if params.codec == CODEC_ID_OPUS {
        let padding = Padding { skip: track.delay.unwrap_or(0) as usize / 3 };
        let head = params.extra_data.clone().unwrap_or_default();
        // The decoder of one lane mixes down, but of several streams in a packet (any mapping but 0) it makes noise.
        if lanes == 1 && head.get(18).is_none_or(|mapping| *mapping == 0) {
            opus(&mut *format, id, padding, &mut sink)?
        } else {
            opus_lanes(&mut *format, id, padding, &head, &mut sink)?
        }
    } else {
        let decoder = symphonia::default::get_codecs()
            .make_audio_decoder(params, &AudioDecoderOptions::default())
            .map_err(|e| FileError::NotAudio(e.to_string()))?;
        packets(&mut *format, id, decoder, &mut sink)?;
    }
    sink.finish()
}

/// The next packet of our track; `None` at the end. A cut file ends where it was cut.
fn next(format: &mut dyn FormatReader, id: u32) -> Result<Option<Packet>, FileError> {
    loop {
        match format.next_packet() {
            Ok(Some(packet)) if packet.track_id == id => return Ok(Some(packet)),
            Ok(Some(_)) => {}
            // A chained Ogg file begins anew here; its first stream is what we read.
            Ok(None) | Err(Symphonia::ResetRequired) => return Ok(None),
            Err(Symphonia::IoError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(Symphonia::IoError(e)) => return Err(e.into()),
            Err(e) => return Err(FileError::Broken(e.to_string())),
        }
    }
}

fn packets(
    format: &mut dyn FormatReader,
    id: u32,
    mut decoder: Box<dyn AudioDecoder>,
    sink: &mut Sink<'_>,
) -> Result<(), FileError> {
    let mut interleaved = Vec::<f32>::new();
    let mut lanes = vec![Vec::new(); sink.out.len()];
    while let Some(packet) = next(format, id)?.filter(|_| sink.is_wanted) {
        let decoded = match decoder.decode(&packet) {
            Ok(decoded) => decoded,
            // One bad packet is a click, not the end.
            Err(Symphonia::DecodeError(_)) => continue,
            Err(e) => return Err(FileError::Broken(e.to_string())),
        };
        let (rate, channels) = (decoded.spec().rate(), decoded.spec().channels().count().max(1));
        interleaved.clear();
        decoded.copy_to_vec_interleaved(&mut interleaved);
        part(&interleaved, channels, &mut lanes)?;
        sink.push(rate, &lanes)?;
    }
    Ok(())
}

/// Takes interleaved channels apart, each into its lane; one lane is the mean of all of them.
fn part(interleaved: &[f32], channels: usize, lanes: &mut [Vec<f32>]) -> Result<(), FileError> {
    lanes.iter_mut().for_each(Vec::clear);
    let frames = interleaved.chunks_exact(channels);
    if let [mono] = lanes {
        mono.extend(frames.map(|frame| frame.iter().sum::<f32>() / channels as f32));
    } else if channels != lanes.len() {
        return Err(FileError::NotTwo);
    } else {
        let place = |(n, lane): (usize, &mut Vec<f32>)| lane.extend(frames.clone().map(|frame| frame[n]));
        lanes.iter_mut().enumerate().for_each(place);
    }
    Ok(())
}

/// What of an Opus stream does not count (RFC 7845): the first samples warm the decoder up, and the last page says how much of the end is padding. Both are
/// counted at 48 kHz.
struct Padding {
    /// Samples still to be skipped.
    skip: usize,
}

impl Padding {
    /// What counts of the next packet's `n` samples.
    fn cut(&mut self, packet: &Packet, n: usize) -> Range<usize> {
        let from = self.skip.min(n);
        self.skip -= from;
        from..n.saturating_sub(packet.trim_end.get() as usize / 3).max(from)
    }
}

fn opus(format: &mut dyn FormatReader, id: u32, mut padding: Padding, sink: &mut Sink<'_>) -> Result<(), FileError> {
    let mut decoder = OpusDecoder::default();
    while let Some(packet) = next(format, id)?.filter(|_| sink.is_wanted) {
        // A packet that cannot be decoded is a hole of the usual length.
        let heard = if decoder.decode(&packet.data).is_ok() { decoder.latest() } else { decoder.conceal(None) };
        sink.push(RATE, &[&heard[padding.cut(&packet, heard.len())]])?;
    }
    Ok(())
}

/// As [`opus`], channel by channel, by the identification header; one lane is the mean of all channels.
fn opus_lanes(
    format: &mut dyn FormatReader,
    id: u32,
    mut padding: Padding,
    head: &[u8],
    sink: &mut Sink<'_>,
) -> Result<(), FileError> {
    let lanes = sink.out.len();
    // RFC 7845, 5.1: the channels, and which streams make them up.
    let (channels, mapping) = (head.get(9).copied().unwrap_or(0), head.get(18).copied().unwrap_or(0));
    let channels = usize::from(channels);
    if lanes > 1 && channels != lanes {
        return Err(FileError::NotTwo);
    }
    let broken = |what: &str| FileError::Broken(what.to_owned());
    let (streams, coupled, places) = match (mapping, head.get(19..)) {
        // Left and right, coded together.
        (0, _) => (1, 1, &[0, 1][..]),
        (_, Some([streams, coupled, places @ ..])) => (*streams, *coupled, places),
        _ => return Err(broken("the Opus header is too short")),
    };
    let places = places.get(..channels).ok_or_else(|| broken("the Opus header is too short"))?;
    let mut decoder = MSDecoder::new(RATE, streams, coupled, places).map_err(|e| broken(e.code().description()))?;
    let mut buffer = vec![0.0; channels * LONGEST];
    let mut heard = vec![Vec::new(); lanes];
    let mut usual = 0;
    while let Some(packet) = next(format, id)?.filter(|_| sink.is_wanted) {
        // A packet that cannot be decoded is a hole as long as the one before it.
        let decoded =
            if packet.data.is_empty() { None } else { decoder.decode_float(&packet.data, &mut buffer, false).ok() };
        match decoded {
            Some(n) => usual = n,
            None => buffer[..usual * channels].fill(0.0),
        }
        clean(&mut buffer[..usual * channels]);
        let Range { start, end } = padding.cut(&packet, usual);
        part(&buffer[start * channels..end * channels], channels, &mut heard)?;
        sink.push(RATE, &heard)?;
    }
    Ok(())
}

/// Resamples, counts, and hands over.
struct Sink<'a> {
    listener: &'a mut Lanes<'a>,
    /// What is ready of each lane.
    out: Vec<Vec<f32>>,
    given: usize,
    is_wanted: bool,
    resamplers: Option<(u32, Vec<Resampler>)>,
    limit: usize,
    limit_seconds: f32,
}

impl Sink<'_> {
    fn push(&mut self, rate: u32, lanes: &[impl AsRef<[f32]>]) -> Result<(), FileError> {
        if self.resamplers.as_ref().is_none_or(|(now, _)| *now != rate) {
            self.flush();
            let fresh = lanes.iter().map(|_| Resampler::new(rate)).collect::<Result<_, _>>()?;
            self.resamplers = Some((rate, fresh));
        }
        let (_, resamplers) = self.resamplers.as_mut().expect("set above");
        for ((resampler, lane), out) in resamplers.iter_mut().zip(lanes).zip(&mut self.out) {
            resampler.push(lane.as_ref(), out);
        }
        self.give()
    }

    /// What the resamplers still hold.
    fn flush(&mut self) {
        if let Some((_, resamplers)) = &mut self.resamplers {
            resamplers.iter_mut().zip(&mut self.out).for_each(|(resampler, out)| resampler.flush(out));
        }
    }

    fn give(&mut self) -> Result<(), FileError> {
        // Float files may hold anything, NaN included.
        let clean = |x: &mut f32| *x = if x.is_finite() { x.clamp(-1.0, 1.0) } else { 0.0 };
        self.out.iter_mut().flatten().for_each(clean);
        self.given += self.out[0].len();
        if self.given > self.limit {
            return Err(FileError::TooLong { limit_seconds: self.limit_seconds });
        }
        self.is_wanted = self.is_wanted && (self.listener)(&self.out);
        self.out.iter_mut().for_each(Vec::clear);
        Ok(())
    }

    fn finish(mut self) -> Result<usize, FileError> {
        self.flush();
        self.give()?;
        if self.given == 0 { Err(FileError::Empty) } else { Ok(self.given) }
    }
}
