//! Twilio Media Streams: JSON text frames that carry one or both tracks of a phone call. Source: Twilio's "Media Streams - WebSocket Messages".
//!
//! Numbers come as strings, there and here; a client that sends numbers is understood as well. [`Track`] puts a track's chunks in order.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::openai::decode_base64;

/// Samples a second of a phone line.
const RATE: u64 = 8_000;
/// Chunks that wait for one that is late: 200 ms in the usual pieces.
const WAITING: usize = 10;
/// A chunk is 20 ms; nobody sends more than this in one.
const LARGEST: usize = 16_000;
/// A gap of the clock that is filled with silence, samples: a longer one is no stream.
const LONGEST_GAP: u64 = 60 * RATE;
/// How far a track may fall behind the stream's clock before it is taken to be silent, samples.
const PATIENCE: u64 = 2 * RATE;
/// µ-law silence.
const SILENCE: u8 = 0xff;

/// What is wrong with a frame. The connection ends with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TwilioError {
    /// Not JSON, or not of the shape of its event.
    #[error("not a message of a media stream: {0}")]
    Malformed(String),
    /// Another encoding, rate or number of channels.
    #[error("only audio/x-mulaw at 8000 Hz, one channel, is taken")]
    Format,
    /// No base64.
    #[error("the payload is no base64")]
    Payload,
    /// More than a chunk holds.
    #[error("a chunk holds at most {LARGEST} bytes")]
    TooLarge,
    /// The clock leaps.
    #[error("the timestamp leaps by more than a minute")]
    Leap,
}

/// One frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first word.
    Connected,
    /// What the stream is.
    Start(Start),
    /// Sound.
    Media(Media),
    /// A key was pressed. Which one is not told: it may be of a secret number.
    Dtmf,
    /// The other side has come to a mark.
    Mark(String),
    /// The last word.
    Stop,
    /// An event that is not known here.
    Other,
}

/// What a stream is.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// The stream's name.
    pub stream: String,
    /// The call's name.
    pub call: String,
    /// `inbound`, `outbound`, or both, in this order.
    pub tracks: Vec<Direction>,
    /// What the caller of the stream wrote beside it.
    pub parameters: Map<String, Value>,
}

impl Start {
    /// One of the parameters.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).and_then(Value::as_str)
    }
}

/// Which side of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Who called.
    Inbound,
    /// Who was called.
    Outbound,
}

/// A piece of sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Media {
    /// Of which side.
    pub track: Direction,
    /// Its number, from 1.
    pub chunk: u64,
    /// Milliseconds since the stream began.
    pub timestamp: u64,
    /// µ-law bytes.
    pub payload: Vec<u8>,
}

#[derive(Deserialize)]
struct StartWire {
    #[serde(rename = "streamSid")]
    stream: String,
    #[serde(rename = "callSid", default)]
    call: String,
    #[serde(default)]
    tracks: Vec<Direction>,
    #[serde(rename = "mediaFormat")]
    format: FormatWire,
    #[serde(rename = "customParameters", default)]
    parameters: Map<String, Value>,
}

#[derive(Deserialize)]
struct FormatWire {
    encoding: String,
    #[serde(rename = "sampleRate")]
    rate: Number,
    channels: Option<Number>,
}

#[derive(Deserialize)]
struct MediaWire {
    track: Option<Direction>,
    chunk: Number,
    timestamp: Number,
    payload: String,
}

#[derive(Deserialize)]
struct MarkWire {
    name: String,
}

/// `"160"` or `160`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
struct Number(u64);

impl TryFrom<Value> for Number {
    type Error = &'static str;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
        number.map(Self).ok_or("a number, as a string")
    }
}

/// Reads one text frame.
///
/// # Errors
/// [`TwilioError`]
pub fn parse(text: &str) -> Result<Message, TwilioError> {
    let malformed = |e: serde_json::Error| TwilioError::Malformed(e.to_string());
    let mut value: Value = serde_json::from_str(text).map_err(malformed)?;
    let event = value.get("event").and_then(Value::as_str).unwrap_or_default().to_owned();
    let body = value.get_mut(&event).map(Value::take).unwrap_or_default();
    Ok(match event.as_str() {
        "" => return Err(TwilioError::Malformed("`event` is missing".into())),
        "connected" => Message::Connected,
        "start" => {
            let wire: StartWire = serde_json::from_value(body).map_err(malformed)?;
            let format = &wire.format;
            if format.encoding != "audio/x-mulaw" || format.rate.0 != RATE || format.channels.is_some_and(|n| n.0 != 1)
            {
                return Err(TwilioError::Format);
            }
            let mut tracks = wire.tracks;
            tracks.sort_unstable();
            tracks.dedup();
            if tracks.is_empty() {
                tracks.push(Direction::Inbound);
            }
            Message::Start(Start { stream: wire.stream, call: wire.call, tracks, parameters: wire.parameters })
        }
        "media" => {
            let wire: MediaWire = serde_json::from_value(body).map_err(malformed)?;
            let payload = decode_base64(&wire.payload, "payload").map_err(|_| TwilioError::Payload)?;
            if payload.len() > LARGEST {
                return Err(TwilioError::TooLarge);
            }
            let track = wire.track.unwrap_or(Direction::Inbound);
            Message::Media(Media { track, chunk: wire.chunk.0, timestamp: wire.timestamp.0, payload })
        }
        "dtmf" => Message::Dtmf,
        "mark" => Message::Mark(serde_json::from_value::<MarkWire>(body).map_err(malformed)?.name),
        "stop" => Message::Stop,
        _ => Message::Other,
    })
}

/// One track's chunks, in order and in time: late ones are waited for, lost ones become silence, what is older than what was heard is dropped.
#[derive(Debug, Default)]
pub struct Track {
    /// The number of the next chunk; `None` before the first.
    next: Option<u64>,
    /// Samples given.
    given: u64,
    waiting: BTreeMap<u64, (u64, Vec<u8>)>,
    /// Chunks that never came.
    pub lost: u64,
    /// Chunks that came too late, or twice.
    pub late: u64,
}

impl Track {
    /// Takes a chunk; appends what is in order now to `out`, as µ-law bytes from the stream's beginning without a gap.
    ///
    /// # Errors
    /// [`TwilioError::Leap`]
    pub fn push(&mut self, chunk: u64, timestamp: u64, payload: Vec<u8>, out: &mut Vec<u8>) -> Result<(), TwilioError> {
        let next = *self.next.get_or_insert(chunk);
        if chunk < next || self.waiting.contains_key(&chunk) {
            self.late += 1;
            return Ok(());
        }
        self.waiting.insert(chunk, (timestamp, payload));
        while let Some(first) = self.waiting.first_entry() {
            let next = self.next.unwrap_or(0);
            if *first.key() != next && self.waiting.len() <= WAITING {
                break;
            }
            self.give(out)?;
        }
        Ok(())
    }

    /// The stream's clock, in milliseconds, as another track has it. Some senders leave silence out, and a party on hold sends nothing: what is missing up to
    /// two seconds ago is silence, appended to `out`, so that the last words end their turn while the other party goes on.
    pub fn wait(&mut self, clock: u64, out: &mut Vec<u8>) {
        let gap = clock.saturating_mul(RATE / 1000).saturating_sub(PATIENCE).saturating_sub(self.given);
        if gap > 0 && gap <= LONGEST_GAP && self.waiting.is_empty() {
            out.resize(out.len() + gap as usize, SILENCE);
            self.given += gap;
        }
    }

    /// No more chunks will come: what waits is heard with its gaps.
    ///
    /// # Errors
    /// [`TwilioError::Leap`]
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), TwilioError> {
        while !self.waiting.is_empty() {
            self.give(out)?;
        }
        Ok(())
    }

    fn give(&mut self, out: &mut Vec<u8>) -> Result<(), TwilioError> {
        let Some((chunk, (timestamp, payload))) = self.waiting.pop_first() else { return Ok(()) };
        self.lost += chunk - self.next.unwrap_or(chunk);
        self.next = Some(chunk.saturating_add(1));
        let due = timestamp.saturating_mul(RATE / 1000);
        // Clocks tremble by less than a chunk; more is a hole, whether a chunk is missing or none was sent.
        let gap = due.saturating_sub(self.given);
        if gap > LONGEST_GAP {
            return Err(TwilioError::Leap);
        }
        if gap >= payload.len().max(80) as u64 {
            out.resize(out.len() + gap as usize, SILENCE);
            self.given += gap;
        }
        self.given += payload.len() as u64;
        out.extend(payload);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn chunk(n: u64) -> Vec<u8> {
        vec![n as u8; 160]
    }

    proptest! {
        /// Whatever order chunks come in within the wait, and whichever of them are lost, each sample stands at its time.
        #[test]
        fn chunks_find_their_places(lost in prop::collection::btree_set(2_u64..60, 0..6), swaps in prop::collection::vec((1_usize..59, 1_usize..4), 0..3)) {
            let mut order: Vec<u64> = (1..=60).filter(|n| !lost.contains(n)).collect();
            for (at, by) in swaps {
                let (at, to) = (at.min(order.len() - 1), (at + by).min(order.len() - 1));
                // The first says where the numbers begin.
                if at > 0 {
                    order.swap(at, to);
                }
            }
            let (mut track, mut out) = (Track::default(), Vec::new());
            for n in &order {
                track.push(*n, (n - 1) * 20, chunk(*n), &mut out).unwrap();
                // Twice is once.
                track.push(*n, (n - 1) * 20, chunk(*n), &mut out).unwrap();
            }
            track.finish(&mut out).unwrap();
            for n in 1..=order.iter().copied().max().unwrap() {
                let expected = if lost.contains(&n) { SILENCE } else { n as u8 };
                prop_assert!(out[(n as usize - 1) * 160..n as usize * 160].iter().all(|byte| *byte == expected), "{}", n);
            }
            prop_assert_eq!(track.late, order.len() as u64);
        }

        #[test]
        fn i8_no_frame_panics(text in ".{0,200}", event in "(start|media|mark|dtmf|stop|connected)", body in "[{}\\[\\]\":,a-z0-9]{0,60}") {
            drop(parse(&text));
            drop(parse(&format!("{{\"event\":\"{event}\",\"{event}\":{body}}}")));
        }

        #[test]
        fn i8_no_number_panics(chunks in prop::collection::vec((any::<u64>(), any::<u64>(), 0_usize..400), 0..40)) {
            let (mut track, mut out) = (Track::default(), Vec::new());
            for (chunk, timestamp, n) in chunks {
                drop(track.push(chunk, timestamp, vec![0; n], &mut out));
            }
            drop(track.finish(&mut out));
        }
    }

    #[test]
    fn a_track_that_begins_later_is_silent_until_then() {
        let (mut track, mut out) = (Track::default(), Vec::new());
        track.push(1, 1000, chunk(7), &mut out).unwrap();
        assert_eq!((out.len(), out[7_999], out[8_000]), (8_160, SILENCE, 7));
        // A clock that trembles opens no hole.
        track.push(2, 1021, chunk(8), &mut out).unwrap();
        assert_eq!(out.len(), 8_320);
        assert_eq!(track.push(3, 99_000_000, chunk(9), &mut out), Err(TwilioError::Leap));
    }

    #[test]
    fn a_track_that_sends_no_silence_is_silent_by_the_clock_of_the_other() {
        let (mut track, mut out) = (Track::default(), Vec::new());
        track.push(1, 0, chunk(7), &mut out).unwrap();
        track.wait(2_020, &mut out);
        assert_eq!(out.len(), 160, "nothing is missing yet");
        for seconds in 3..120 {
            track.wait(1000 * seconds, &mut out);
        }
        assert_eq!((out.len(), out[160]), (117 * 8_000, SILENCE));
        // It comes back after two minutes, longer than a hole may be.
        track.push(2, 120_000, chunk(8), &mut out).unwrap();
        assert_eq!((out.len(), out[120 * 8_000 - 1], out[120 * 8_000]), (120 * 8_000 + 160, SILENCE, 8));
        // A clock from nowhere fills no memory.
        track.wait(u64::MAX, &mut out);
        assert_eq!(out.len(), 120 * 8_000 + 160);
    }

    #[test]
    fn frames_as_the_documentation_shows_them() {
        let start = r#"{"event":"start","sequenceNumber":"1","start":{"accountSid":"AC1","streamSid":"MZ1","callSid":"CA1",
            "tracks":["outbound","inbound"],"mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1},
            "customParameters":{"token":"t"}},"streamSid":"MZ1"}"#;
        let Message::Start(start) = parse(start).unwrap() else { panic!() };
        assert_eq!(
            (start.tracks.as_slice(), start.parameter("token")),
            (&[Direction::Inbound, Direction::Outbound][..], Some("t"))
        );
        let media = r#"{"event":"media","sequenceNumber":"3","media":{"track":"outbound","chunk":"2","timestamp":"20","payload":"/////w=="},"streamSid":"MZ1"}"#;
        let media = parse(media).unwrap();
        assert_eq!(
            media,
            Message::Media(Media { track: Direction::Outbound, chunk: 2, timestamp: 20, payload: vec![255; 4] })
        );
        let other = r#"{"event":"start","start":{"streamSid":"a","mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":"16000"}}}"#;
        assert_eq!(parse(other), Err(TwilioError::Format));
        assert!(matches!(parse(r#"{"event":"media","media":{"chunk":"x"}}"#), Err(TwilioError::Malformed(_))));
    }
}
