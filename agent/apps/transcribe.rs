//! A file to its words: cut at the pauses, each utterance read on its own, so that memory does not grow with the file.
//!
//! ```text
//!  bytes -> decoder -> voice detector -> utterances of at most one segment -> (a queue of two) -> engine -> words
//! ```

use tokio::sync::mpsc;

use crate::audio::file::{self, FileError};
use crate::audio::vad::{Gate, GateConfig, detector};
use crate::audio::{RATE, samples, samples_ms};
use crate::config::Voice;
use crate::engine::{
    Calling, Caption, Content, Ending, Engine, EngineError, Event, Feed, Item, Listen, Listening, Pace, Request, Role,
    Sampling, SessionId, Tenant, Thinking, Turn,
};
use crate::session::segment::{Ear, Heard};

/// What a model without an ear for words is asked; nano was trained on this very line.
const ASKED: &str = "\nTranscribe the speech.";
/// Tokens that a segment's words may take: 25 s of fast speech are about 120.
const MOST_WORDS: usize = 256;
/// Silence behind each utterance, seconds: an ear that was trained on windows of 30 s begins anew when the sound ends with the last word.
const SILENCE: f32 = 3.0;
/// Utterances that may wait for the engine.
pub const AHEAD: usize = 2;

/// A stretch of speech.
#[derive(Debug, Clone, PartialEq)]
pub struct Utterance {
    /// Where it begins, seconds into the file.
    pub start: f64,
    /// Where it ends.
    pub end: f64,
    /// 16 kHz samples.
    pub sound: Vec<f32>,
}

fn seconds(position: u64) -> f64 {
    position as f64 / f64::from(RATE)
}

/// Cuts a stream into utterances.
struct Cutter {
    ear: Ear,
    start: u64,
    found: Vec<Heard>,
}

impl Cutter {
    fn new(voice: &Voice) -> Self {
        let config = GateConfig::new(voice.threshold, voice.min_speech_ms, voice.silence_duration_ms);
        let gate = Gate::new(detector(voice.detector), config);
        let most = samples(voice.max_segment_seconds);
        let mut ear = Ear::new(Some(gate), samples_ms(voice.prefix_padding_ms), most);
        ear.trail = samples_ms(voice.pause_ms.min(voice.silence_duration_ms)) as u64;
        Self { ear, start: 0, found: Vec::new() }
    }

    /// Takes samples; `false` when an utterance is not wanted.
    fn push(&mut self, samples: &[f32], mut out: impl FnMut(Utterance) -> bool) -> bool {
        self.ear.push(samples, &mut self.found);
        self.found.drain(..).all(|heard| match heard {
            Heard::Started(at) => {
                self.start = at;
                true
            }
            Heard::Ended { at, sound, .. } => out(Utterance { start: seconds(self.start), end: seconds(at), sound }),
            Heard::Paused(_) | Heard::Resumed => true,
        })
    }
}

/// Decodes a file and sends its utterances on; returns its length in seconds. It waits for the receiver, so it belongs on a thread that may block, and
/// ends early when the receiver is dropped.
///
/// # Errors
/// [`FileError`], perhaps after some utterances.
pub fn utterances(
    bytes: Vec<u8>,
    voice: &Voice,
    limit_seconds: f32,
    out: &mpsc::Sender<Utterance>,
) -> Result<f64, FileError> {
    let mut cutter = Cutter::new(voice);
    let length = file::stream(bytes, limit_seconds, &mut |samples| {
        cutter.push(samples, |utterance| out.blocking_send(utterance).is_ok())
    })?;
    // What is still being said when the file ends, as if silence followed, and long enough for a detector that lets go slowly. No utterance is
    // longer than the file.
    let silence = vec![0.0; samples_ms(voice.silence_duration_ms) + RATE as usize];
    let whole = seconds(length as u64);
    cutter.push(&silence, |utterance| {
        let end = utterance.end.min(whole);
        out.blocking_send(Utterance { end, ..utterance }).is_ok()
    });
    Ok(whole)
}

/// Opens an ear for an utterance that is still being spoken.
///
/// # Errors
/// As [`Engine::listen`].
pub fn open(engine: &dyn Engine, session: SessionId, tenant: Tenant) -> Result<Listening, EngineError> {
    let conversation = user(vec![Content::Sound(Vec::new().into())]);
    engine.listen(Listen { session, tenant, conversation, tools: String::new(), captions: true })
}

/// The utterance has ended: the rest of it is read.
pub fn end(ear: &dyn Feed) {
    // What finds no room in the segment is not needed.
    ear.push(&vec![0.0; samples(SILENCE)]);
    ear.finish();
}

/// The words of one utterance on their way: from the checkpoint's ear for words, or, where it has none, as the model itself tells them.
pub struct Words<'a> {
    engine: &'a dyn Engine,
    session: SessionId,
    tenant: Tenant,
    sound: &'a [f32],
    source: Source,
    is_begun: bool,
}

enum Source {
    Ear(mpsc::Receiver<Caption>),
    Model(Turn),
    Over,
}

impl<'a> Words<'a> {
    /// Begins to read.
    ///
    /// # Errors
    /// As [`Engine::listen`].
    pub fn begin(
        engine: &'a dyn Engine,
        session: SessionId,
        tenant: Tenant,
        sound: &'a [f32],
    ) -> Result<Self, EngineError> {
        let (ear, captions) = open(engine, session, tenant)?.split();
        ear.push(sound);
        end(&*ear);
        Ok(Self { engine, session, tenant, sound, source: Source::Ear(captions), is_begun: false })
    }

    /// The next piece, never taken back; `None` when all is read.
    ///
    /// # Errors
    /// As [`Engine::respond`], and the model's.
    pub async fn next(&mut self) -> Result<Option<String>, EngineError> {
        loop {
            let piece = match &mut self.source {
                Source::Over => return Ok(None),
                Source::Ear(captions) => match captions.recv().await {
                    Some(caption) => {
                        if caption.is_last {
                            self.source = Source::Over;
                        }
                        caption.committed
                    }
                    // It has an ear, which was lost in the middle.
                    None if self.is_begun => {
                        return Err(EngineError::Model("the words were not read to their end".into()));
                    }
                    None => {
                        self.source = Source::Model(self.ask()?);
                        continue;
                    }
                },
                Source::Model(turn) => match turn.next().await {
                    Some(Event::Reply(text)) => text,
                    Some(Event::Done { .. }) => return Ok(None),
                    Some(Event::Failed(error)) => return Err(error),
                    Some(_) => continue,
                    None => return Err(EngineError::Stopped),
                },
            };
            if !piece.is_empty() {
                self.is_begun = true;
                return Ok(Some(piece));
            }
        }
    }

    fn ask(&self) -> Result<Turn, EngineError> {
        self.engine.respond(Request {
            session: self.session,
            tenant: self.tenant,
            conversation: user(vec![Content::Sound(self.sound.into()), Content::Text(ASKED.into())]),
            tools: String::new(),
            calling: Calling::May,
            thinking: Thinking::Off,
            thinking_budget: 0,
            pace: Pace::ThinkBefore,
            max_reply_tokens: MOST_WORDS,
            sampling: Sampling::greedy(),
            words: false,
            ending: Ending::Known,
        })
    }
}

fn user(content: Vec<Content>) -> Vec<Item> {
    vec![Item::Message { role: Role::User, content }]
}
