//! The session's ear: it keeps the sound of the turn being spoken, and little else.
//!
//! With voice detection the sound before a turn is forgotten but for the prefix padding, so silence costs nothing. Without, all sound is
//! kept until the client commits it. All positions are samples since the start of the stream; none depends on packet sizes.

use crate::audio::vad::{FRAME, Gate, GateEvent};

/// What the ear found.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// A turn began; its sound starts at this position, padding included.
    Started(u64),
    /// Nobody has spoken for a while; if it stays so, the turn is over and this is its sound.
    Paused(Vec<f32>),
    /// Somebody speaks again in the same turn.
    Resumed,
    /// The turn is over. Its sound ends at this position.
    Ended {
        /// Position after the last sample.
        at: u64,
        /// All of it.
        sound: Vec<f32>,
        /// How long it took to be sure of that, samples from its last voice.
        silence: u64,
    },
}

/// Listens to one stream.
pub struct Ear {
    /// `None`: the client says when a turn is over.
    gate: Option<Gate>,
    buffer: Vec<f32>,
    /// Position of the buffer's first sample.
    origin: u64,
    /// Position up to which frames were judged.
    judged: u64,
    /// Sound before this belongs to earlier turns.
    floor: u64,
    /// The start of the turn being spoken.
    turn: Option<u64>,
    /// Whether it pauses.
    paused: bool,
    /// Kept before the first voice, samples.
    pub padding: u64,
    /// Kept after the last, samples: a pause so long is told.
    pub trail: u64,
    /// The longest turn, samples.
    most: usize,
}

impl Ear {
    /// An ear at position 0. `most` bounds its memory: a longer turn is ended there (or, without a gate, takes in no more).
    pub fn new(gate: Option<Gate>, padding: usize, most: usize) -> Self {
        let (buffer, most) = (Vec::new(), most.max(4 * FRAME));
        Self {
            gate,
            buffer,
            origin: 0,
            judged: 0,
            floor: 0,
            turn: None,
            paused: false,
            padding: padding as u64,
            trail: padding as u64,
            most,
        }
    }

    /// Whether somebody speaks.
    pub fn in_turn(&self) -> bool {
        self.turn.is_some()
    }

    /// The gate, to configure it.
    pub fn gate(&mut self) -> Option<&mut Gate> {
        self.gate.as_mut()
    }

    /// Changes between detecting and being told. What was heard so far is forgotten.
    pub fn set_gate(&mut self, mut gate: Option<Gate>) {
        let now = self.position();
        self.buffer.clear();
        (self.origin, self.judged, self.floor, self.turn) = (now, now, now, None);
        if let Some(gate) = &mut gate {
            gate.start_at(now);
        }
        self.gate = gate;
    }

    /// Position after the newest sample.
    pub fn position(&self) -> u64 {
        self.origin + self.buffer.len() as u64
    }

    /// Takes samples; tells what they began or ended, and how many found no room.
    pub fn push(&mut self, samples: &[f32], found: &mut Vec<Heard>) -> usize {
        if self.gate.is_none() {
            let room = self.most.saturating_sub(self.buffer.len()).min(samples.len());
            self.buffer.extend_from_slice(&samples[..room]);
            return samples.len() - room;
        }
        // In pieces, so that one huge packet needs no more memory than many small ones.
        for piece in samples.chunks(64 * FRAME) {
            self.buffer.extend_from_slice(piece);
            while self.position() - self.judged >= FRAME as u64 {
                self.judge(found);
            }
        }
        0
    }

    fn judge(&mut self, found: &mut Vec<Heard>) {
        let from = (self.judged - self.origin) as usize;
        let frame = self.buffer[from..from + FRAME].try_into().expect("a slice of FRAME samples");
        self.judged += FRAME as u64;
        let gate = self.gate.as_mut().expect("only an ear with a gate judges");
        match gate.push(frame) {
            Some(GateEvent::Started(since)) => {
                let start = since.saturating_sub(self.padding).max(self.floor);
                self.forget(start);
                (self.turn, self.paused) = (Some(start), false);
                found.push(Heard::Started(start));
            }
            Some(GateEvent::Stopped(last)) => {
                let end = (last + self.trail).min(self.judged);
                found.push(self.end(end, self.judged - last));
            }
            None if self.turn.is_some() && (self.judged - self.origin) as usize + FRAME > self.most => {
                gate.close();
                found.push(self.end(self.judged, 0));
            }
            None if self.turn.is_none() => {
                let since = gate.rising_since().unwrap_or(self.judged);
                // Lazily: each removal moves what stays.
                let keep = since.saturating_sub(self.padding);
                if keep > self.origin + 16 * FRAME as u64 {
                    self.forget(keep);
                }
            }
            None => self.pause(found),
        }
    }

    /// Tells of pauses inside a turn.
    fn pause(&mut self, found: &mut Vec<Heard>) {
        let Some(last) = self.gate.as_ref().and_then(Gate::last_voice) else { return };
        let paused = self.judged >= last + self.trail.max(1);
        if paused && !self.paused {
            found.push(Heard::Paused(self.certain().to_vec()));
        } else if self.paused && !paused {
            found.push(Heard::Resumed);
        }
        self.paused = paused;
    }

    /// What will surely belong to the turn being spoken (without a gate: to the next commit), from its start.
    pub fn certain(&self) -> &[f32] {
        let Some(gate) = &self.gate else { return &self.buffer };
        let (Some(start), Some(last)) = (self.turn, gate.last_voice()) else { return &[] };
        let end = (last + self.trail).min(self.judged);
        &self.buffer[(start - self.origin) as usize..(end.max(start) - self.origin) as usize]
    }

    /// The turn that pauses is over, as somebody else has found.
    pub fn finish(&mut self) -> Option<Heard> {
        let gate = self.gate.as_mut().filter(|_| self.turn.is_some() && self.paused)?;
        let last = gate.last_voice()?;
        gate.close();
        Some(self.end((last + self.trail).min(self.judged), self.judged - last))
    }

    fn end(&mut self, at: u64, silence: u64) -> Heard {
        let sound = self.buffer.drain(..(at - self.origin) as usize).collect();
        self.origin = at;
        self.floor = at;
        self.turn = None;
        Heard::Ended { at, sound, silence }
    }

    fn forget(&mut self, before: u64) {
        let n = before.saturating_sub(self.origin).min(self.buffer.len() as u64);
        self.buffer.drain(..n as usize);
        self.origin += n;
    }

    /// The client ends the turn here: what was said since its start (or, without a gate, since the last commit).
    pub fn commit(&mut self) -> Vec<f32> {
        let sound = if self.gate.is_some() && self.turn.is_none() { Vec::new() } else { self.buffer.clone() };
        self.clear();
        sound
    }

    /// The last of what was heard outside of turns, at most the padding.
    pub fn recent(&mut self) -> (u64, Vec<f32>) {
        let start = self.position().saturating_sub(self.padding).max(self.origin);
        let sound = self.buffer[(start - self.origin) as usize..].to_vec();
        self.clear();
        (start, sound)
    }

    /// Forgets the turn and its sound.
    pub fn clear(&mut self) {
        let now = self.position();
        // Frames keep their places: a gate knows only whole ones, so what is left of a frame is judged with the next sound.
        let whole = self.judged.max(self.origin);
        let keep = if self.gate.is_some() { (now - whole) as usize } else { 0 };
        self.buffer.drain(..self.buffer.len() - keep);
        self.origin = now - keep as u64;
        (self.floor, self.turn) = (now, None);
        if let Some(gate) = &mut self.gate {
            gate.close();
        } else {
            self.judged = now;
        }
    }
}
