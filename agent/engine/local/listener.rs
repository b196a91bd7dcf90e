//! A turn that is still being spoken: its sound goes into the session's track while it comes in, and its words are read beside it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use hearken_models::checkpoint::{Checkpoint, SEGMENT};
use hearken_models::kv::{Salt, Unit};
use hearken_models::prompt::{Piece, Thinking};
use hearken_models::words::Guess;
use hearken_models::{Result, Tensor};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::Command;
use super::prompt::{self, Ears, Filling, Names, SLICE, Unread};
use super::reader::{Agreement, Reader};
use super::track::Track;
use crate::engine::{Caption, Feed, Listen, SessionId};

/// New samples after which the words are read again: by the word ear, and by the decoder, which with full attention hears the segment anew
/// for it, provisionally.
const TICK: usize = 16_000;
const SLOW_TICK: usize = 32_000;

/// The way of the samples from a session to the compute thread.
#[derive(Debug)]
pub(super) struct Inlet {
    samples: Mutex<Vec<f32>>,
    /// Samples that may still come: a segment's worth in all, so that what waits is bounded.
    room: Mutex<usize>,
    closed: AtomicBool,
    /// Whether the compute thread knows that something is here.
    told: AtomicBool,
    commands: Sender<Command>,
}

impl Inlet {
    pub(super) fn new(commands: Sender<Command>, room: usize) -> Self {
        Self {
            samples: Mutex::default(),
            room: Mutex::new(room),
            closed: AtomicBool::new(false),
            told: AtomicBool::new(false),
            commands,
        }
    }

    fn tell(&self) {
        if !self.told.swap(true, Ordering::AcqRel) {
            // A thread that has stopped hears nothing.
            drop(self.commands.send(Command::Wake));
        }
    }

    fn is_empty(&self) -> bool {
        self.samples.lock().expect("no panic while it is held").is_empty()
    }

    fn take(&self) -> Vec<f32> {
        self.told.store(false, Ordering::Release);
        std::mem::take(&mut *self.samples.lock().expect("no panic while it is held"))
    }
}

/// The session's end of an inlet.
#[derive(Debug)]
pub(super) struct Outside(pub(super) Arc<Inlet>);

impl Feed for Outside {
    fn push(&self, samples: &[f32]) -> usize {
        let mut room = self.0.room.lock().expect("no panic while it is held");
        let taken = samples.len().min(*room);
        *room -= taken;
        drop(room);
        self.0.samples.lock().expect("no panic while it is held").extend_from_slice(&samples[..taken]);
        self.0.tell();
        samples.len() - taken
    }

    fn finish(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.tell();
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The captions of a listener on their way out.
#[derive(Debug)]
struct Captions {
    out: mpsc::Sender<Caption>,
    /// What the reader had no room for.
    due: Option<Caption>,
}

impl Captions {
    fn flush(&mut self) {
        if let Some(caption) = self.due.take()
            && let Err(TrySendError::Full(caption)) = self.out.try_send(caption)
        {
            self.due = Some(caption);
        }
    }
}

/// An open ear.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) session: SessionId,
    pub(super) salt: Salt,
    pub(super) track: Track,
    inlet: Arc<Inlet>,
    incoming: VecDeque<f32>,
    filling: Filling,
    /// The segment that is being spoken; `None` when only a prefix is prepared.
    ears: Option<Ears>,
    /// Tokens of the conversation before it.
    prefix: usize,
    /// Tokens of the segment that the track had when listening began.
    skip: usize,
    guess: Option<Guess>,
    /// The same by the decoder.
    pub(super) reader: Option<Reader>,
    agreement: Agreement,
    /// Samples heard when the last guess began.
    guessed: usize,
    /// Whether the guess is the last one, of the whole segment.
    ends: bool,
    /// All words of the segment, when it was closed and read to its end.
    last_words: Option<String>,
    captions: Option<Captions>,
    /// Where no captions are wanted: an end that is closed would tell its holder that the ear is gone.
    _silent: Option<mpsc::Sender<Caption>>,
}

impl Listener {
    /// Goes on from `track`, which may hold anything, and from `heard`, which may have heard the segment's beginning.
    pub(super) fn begin(
        model: &Checkpoint,
        listen: &Listen,
        mut track: Track,
        heard: Option<&Ears>,
        names: &mut Names,
        (inlet, captions): (Arc<Inlet>, mpsc::Sender<Caption>),
    ) -> Result<Self> {
        let mut pieces = model.format.render(&listen.conversation, &listen.tools, Thinking::On);
        // What comes behind the growing sound is not known yet.
        let last = pieces.iter().rposition(|piece| matches!(piece, Piece::Sound(_)));
        let is_spoken = listen.conversation.last().is_some_and(prompt::has_sound);
        let growing = if is_spoken { last } else { None };
        let mut begun = None;
        if let Some(last) = growing {
            pieces.truncate(last + 1);
            if let Some(Piece::Sound(samples)) = pieces.pop() {
                begun = Some(samples);
            }
        }
        let salt = Salt(listen.tenant.0);
        let parts = prompt::parts(model, &listen.conversation, &pieces, names)?;
        let before = prompt::units(&parts);
        let mut wanted = before.clone();
        if let Some(samples) = &begun {
            wanted.extend(model.ear.naming().step(samples.get(..SEGMENT).unwrap_or(samples)));
        }
        let kept = track.keep(salt, &wanted);
        tracing::debug!(session = listen.session.0, known = kept, prefix = before.len(), "an ear opens");
        let skip = kept.saturating_sub(before.len());
        let mut ears = None;
        let mut incoming = VecDeque::new();
        if let Some(samples) = &begun {
            let known = prompt::begun(heard, samples, skip).unwrap_or_else(|| Ears::new(model));
            incoming.extend(&samples[known.heard()..]);
            ears = Some(known);
        }
        // Words of what was said before are not wanted here.
        let filling = Filling::new(model, parts, kept.min(before.len()), None, |_| true);
        let (out, _silent) =
            if listen.captions { (Some(Captions { out: captions, due: None }), None) } else { (None, Some(captions)) };
        let guessed = ears.as_ref().map_or(0, Ears::heard);
        let session = listen.session;
        Ok(Self {
            session,
            salt,
            track,
            inlet,
            incoming,
            filling,
            ears,
            prefix: before.len(),
            skip,
            guess: None,
            reader: None,
            agreement: Agreement::default(),
            guessed,
            ends: false,
            last_words: None,
            captions: out,
            _silent,
        })
    }

    /// Takes in what has come.
    pub(super) fn receive(&mut self) {
        self.incoming.extend(self.inlet.take());
        if let Some(captions) = &mut self.captions {
            captions.flush();
        }
    }

    /// Whether nothing is left of what has come.
    pub(super) fn is_drained(&self) -> bool {
        let heard = self.incoming.is_empty() && self.inlet.is_empty();
        heard && self.filling.is_done() && self.track.waiting() == 0 && !self.track.is_behind()
    }

    fn is_closed(&self) -> bool {
        self.inlet.closed.load(Ordering::Acquire)
    }

    /// Whether somebody still waits for captions.
    fn is_read(&self) -> bool {
        self.captions.as_ref().is_some_and(|captions| !captions.out.is_closed())
    }

    /// Whether its session has closed it and it has done what was left: nothing comes after the closing, so that is looked at first.
    pub(super) fn is_over(&self) -> bool {
        let told = self.last_words.is_some() && self.captions.as_ref().is_none_or(|captions| captions.due.is_none());
        self.is_closed() && self.is_drained() && (told || self.ears.is_none() || !self.is_read())
    }

    /// No more sound will come.
    pub(super) fn close(&self) {
        self.inlet.closed.store(true, Ordering::Release);
    }

    /// Blocks that its prefix takes.
    pub(super) fn blocks(&self) -> usize {
        self.track.sequence.blocks_for(self.prefix.saturating_sub(self.track.sequence.len()))
    }

    /// Whether there is something to be heard.
    pub(super) fn has_sound(&self) -> bool {
        !self.filling.is_done() || !self.incoming.is_empty()
    }

    /// Hears one slice.
    pub(super) fn hear(&mut self, model: &Checkpoint) -> Result<()> {
        if !self.filling.is_done() {
            return self.filling.step(model, &mut self.track, &mut VecDeque::<Unread>::new());
        }
        let count = self.incoming.len().min(SLICE);
        let samples: Vec<f32> = self.incoming.drain(..count).collect();
        match &mut self.ears {
            // Beyond a segment nothing is heard here; the turn brings all of it.
            Some(ears) => {
                let room = SEGMENT.saturating_sub(ears.heard()).min(samples.len());
                ears.step(model, &samples[..room], self.skip, &mut self.track)
            }
            None => Ok(()),
        }
    }

    /// Goes on reading the words; `false` when there is nothing to read now.
    pub(super) fn read(&mut self, model: &Checkpoint) -> Result<bool> {
        let Some(ear) = &model.words else { return self.ask(model) };
        // Looked at first: nothing comes after the closing. What came just before it may still be on its way, and the last reading waits for that.
        let closed = self.is_closed();
        let is_due = self.is_due(TICK) && (!closed || self.inlet.is_empty());
        let Some(ears) = &mut self.ears else { return Ok(false) };
        let Some(guess) = &mut self.guess else {
            if !is_due {
                return Ok(false);
            }
            self.guessed = ears.heard();
            self.guess = ears.guess(model)?;
            self.ends = closed;
            return Ok(true);
        };
        if ear.step(guess)? {
            return Ok(true);
        }
        if let (Some(words), Some(guess)) = (ears.words(), self.guess.take()) {
            let reading = ear.settle(words, &guess, self.ends)?;
            if self.ends {
                self.last_words = Some(ear.said(words)?);
            }
            self.tell(&reading.committed, reading.tentative);
        }
        Ok(true)
    }

    /// Whether the words are to be read again, `tick` samples after the last time. No sooner than all that has come is heard.
    fn is_due(&self, tick: usize) -> bool {
        let Some(ears) = &self.ears else { return false };
        let new = ears.heard() >= self.guessed + tick;
        let due = if self.is_closed() { self.is_read() && self.last_words.is_none() } else { new };
        due && self.incoming.is_empty()
    }

    fn tell(&mut self, committed: &str, tentative: String) {
        if let Some(captions) = &mut self.captions {
            let mut due = captions.due.take().unwrap_or_default();
            due.committed.push_str(committed);
            due.tentative = tentative;
            due.is_last = self.ends;
            captions.due = Some(due);
            captions.flush();
        }
    }

    /// Asks the decoder for the words, on a fork that hears the segment as if it ended here. It reads with the passes that follow.
    fn ask(&mut self, model: &Checkpoint) -> Result<bool> {
        let closed = self.is_closed();
        let is_due = self.reader.is_none() && self.is_read() && self.is_due(SLOW_TICK);
        let Some(ears) = self.ears.as_ref().filter(|_| is_due && self.is_drained()) else { return Ok(false) };
        self.guessed = ears.heard();
        self.ends = closed;
        let (sound, mut track) = (ears.tokens(), self.track.fork());
        if sound == 0 {
            self.last_words = self.ends.then(String::new);
            self.tell("", String::new());
            return Ok(false);
        }
        ears.finish(self.skip, &mut track)?;
        self.reader = Some(Reader::new(model, track, sound, &self.agreement.committed)?);
        Ok(true)
    }

    /// Draws the next token of the words.
    pub(super) fn spell(&mut self, model: &Checkpoint, logits: &mut [f32]) -> Result<()> {
        if let Some(reader) = &mut self.reader
            && reader.draw(model, logits)?
        {
            let (committed, tentative) = self.agreement.settle(reader.text(), self.ends);
            self.reader = None;
            if self.ends {
                self.last_words = Some(self.agreement.committed.clone());
            }
            self.tell(&committed, tentative);
        }
        Ok(())
    }

    /// The segment as far as it was heard.
    pub(super) fn ears(&self) -> Option<&Ears> {
        self.ears.as_ref()
    }

    /// The rows of its next pass.
    pub(super) fn take(&mut self, most: usize) -> Result<Option<Tensor>> {
        self.track.take(most)
    }

    /// What is left of it for the session's next turn.
    pub(super) fn end(self) -> (Track, Option<Ears>, Option<(Unit, String)>) {
        let name = self.ears.as_ref().and_then(Ears::name);
        (self.track, self.ears, name.zip(self.last_words))
    }
}
