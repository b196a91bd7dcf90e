//! A call of one or two parties: each is heard by an ear of its own, and all its turns make one conversation in which every turn names its party.
//!
//! ```text
//!  samples of each party -> its ear -> turns, measured from the signal ─┬─> words ─┬─> report, events, alerts
//!                                      (two at once are two turns)      └─> note  ─┘
//! ```
//! [`Call`] is a machine without clock and engine: samples in, turns out, and a [`Report`] at any time. `live` runs it: it has each turn's words read, of a
//! phone line while they are spoken, and its note written (`work`), in bounded queues, and tells whoever watches.

pub mod live;
pub mod measure;
pub mod note;
pub mod report;
pub mod rules;
mod spoken;
mod tape;
mod work;

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::audio::vad::{Gate, GateConfig, detector};
use crate::audio::{RATE, samples, samples_ms};
use crate::config::Voice;
use crate::session::segment::{Ear, Heard};
use measure::{Measures, extent, measure};
use note::Note;
pub use report::Report;

/// An overlap shorter than this is a turn taken a little early, seconds.
const EARLY: f64 = 0.3;
/// Speech shorter than this is a sign of listening ("mhm"), no interruption.
const AGREEING: f64 = 0.7;
/// Who goes on after so short a pause was not silent.
const GOES_ON: f64 = 1.0;

/// One turn of one party. Times are seconds into the call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// From 0, in the order in which turns ended.
    pub id: usize,
    /// Which party, as an index of the call's names.
    #[serde(skip)]
    pub party: usize,
    /// The first voice.
    pub start: f64,
    /// The last voice.
    pub end: f64,
    /// It broke into another party's turn.
    pub interrupts: bool,
    /// How it sounds.
    #[serde(flatten)]
    pub measures: Measures,
    /// What was said, once it is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<String>,
    /// What the model noted, once it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<Note>,
}

/// A turn that has just ended, with its sound: it is to be read and noted.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// Which.
    pub turn: usize,
    /// Its party.
    pub party: usize,
    /// 16 kHz, with a little before and after.
    pub sound: Arc<[f32]>,
    /// Turns that are known to be interruptions only now; this one among them, perhaps.
    pub interruptions: Vec<usize>,
}

/// One party's line.
struct Line {
    ear: Ear,
    start: u64,
    /// Where a turn that grew too long was cut: the voice goes on there.
    cut: Option<u64>,
    found: Vec<Heard>,
}

/// A call.
pub struct Call {
    names: Vec<String>,
    lines: Vec<Line>,
    turns: Vec<Turn>,
    padding: u64,
    trail: u64,
    silence: usize,
    /// How long it was, once it is over.
    length: Option<f64>,
}

fn seconds(position: u64) -> f64 {
    position as f64 / f64::from(RATE)
}

impl Call {
    /// A call of these parties.
    pub fn new(names: Vec<String>, voice: &Voice) -> Self {
        let (padding, trail) = (samples_ms(voice.prefix_padding_ms), samples_ms(voice.pause_ms));
        let line = |_: &String| {
            let config = GateConfig::new(voice.threshold, voice.min_speech_ms, voice.silence_duration_ms);
            let gate = Gate::new(detector(voice.detector), config);
            let mut ear = Ear::new(Some(gate), padding, samples(voice.max_segment_seconds));
            ear.trail = trail as u64;
            Line { ear, start: 0, cut: None, found: Vec::new() }
        };
        let lines = names.iter().map(line).collect();
        let silence = samples_ms(voice.silence_duration_ms) + RATE as usize;
        Self { names, lines, turns: Vec::new(), padding: padding as u64, trail: trail as u64, silence, length: None }
    }

    /// A call that is over, from what is known of it. It hears nothing more.
    pub fn past(names: Vec<String>, turns: Vec<Turn>, seconds: f64) -> Self {
        Self { names, lines: Vec::new(), turns, padding: 0, trail: 0, silence: 0, length: Some(seconds) }
    }

    /// Whether this party is speaking now.
    pub fn speaks(&self, party: usize) -> bool {
        self.length.is_none() && self.lines.get(party).is_some_and(|line| line.ear.in_turn())
    }

    /// Where the turns under way began, seconds.
    pub fn under_way(&self) -> impl Iterator<Item = f64> + '_ {
        (0..self.lines.len()).filter(|party| self.speaks(*party)).map(|party| seconds(self.lines[party].start))
    }

    /// What this party is saying: where that begins, samples into the call, and what surely belongs to it so far.
    fn saying(&self, party: usize) -> Option<(u64, &[f32])> {
        let line = self.lines.get(party).filter(|_| self.speaks(party))?;
        Some((line.start, line.ear.certain()))
    }

    /// The parties' names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// All turns that have ended, in that order.
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// How long it has lasted, seconds.
    pub fn seconds(&self) -> f64 {
        let now = self.lines.iter().map(|line| seconds(line.ear.position())).fold(0.0, f64::max);
        self.length.unwrap_or(now)
    }

    /// For how long nobody has spoken.
    pub fn silent_for(&self) -> f64 {
        if self.lines.iter().any(|line| line.ear.in_turn()) {
            return 0.0;
        }
        let last = self.turns.iter().map(|turn| turn.end).fold(0.0, f64::max);
        (self.seconds() - last).max(0.0)
    }

    /// The next samples of one party; the turns that ended in them. A party that is not there says nothing.
    pub fn hear(&mut self, party: usize, samples: &[f32]) -> Vec<Ended> {
        let Some(line) = self.lines.get_mut(party) else { return Vec::new() };
        line.ear.push(samples, &mut line.found);
        let mut ended = Vec::new();
        for heard in std::mem::take(&mut line.found) {
            match heard {
                Heard::Started(at) => line.start = at,
                Heard::Ended { at, sound, silence } => {
                    // Around a voice lies what is kept before it and what the detector took for voice after it; not where it was cut.
                    let begins_here = line.start > 0 && line.cut != Some(line.start);
                    let first = line.start + if begins_here { self.padding } else { 0 };
                    let last = if silence == 0 { at } else { at.saturating_sub(self.trail) };
                    line.cut = (silence == 0).then_some(at);
                    ended.push((line.start, first..last, sound));
                }
                Heard::Paused(_) | Heard::Resumed => {}
            }
        }
        ended.into_iter().map(|(start, voice, sound)| self.end_turn(party, start, voice, &sound)).collect()
    }

    /// The call is over: what is still being said has been said.
    pub fn hang_up(&mut self) -> Vec<Ended> {
        let silence = vec![0.0; self.silence];
        let (all, parties) = (self.seconds(), 0..self.lines.len());
        self.length = Some(all);
        let ended: Vec<Ended> = parties.flat_map(|party| self.hear(party, &silence)).collect();
        self.turns.iter_mut().for_each(|turn| turn.end = turn.end.min(all));
        ended
    }

    fn end_turn(&mut self, party: usize, start: u64, voice: Range<u64>, sound: &[f32]) -> Ended {
        let (from, to) = extent(sound);
        let first = (start + from as u64).max(voice.start);
        let last = (start + to as u64).min(voice.end);
        let id = self.turns.len();
        let turn = Turn {
            id,
            party,
            start: seconds(first.min(last)),
            end: seconds(last),
            interrupts: false,
            measures: measure(sound),
            words: None,
            note: None,
        };
        self.turns.push(turn);
        let interruptions = self.interruptions(id);
        interruptions.iter().for_each(|turn| self.turns[*turn].interrupts = true);
        Ended { turn: id, party, sound: sound.into(), interruptions }
    }

    /// Who broke into whom, of this turn and those of others that overlap it.
    fn interruptions(&self, id: usize) -> Vec<usize> {
        let turn = &self.turns[id];
        let others = self.turns[..id].iter().filter(|other| other.party != turn.party);
        let mut found: Vec<usize> = others
            .filter_map(|other| {
                let (first, second) = if other.start <= turn.start { (other, turn) } else { (turn, other) };
                let breaks_in = second.start + EARLY < first.end && first.start + EARLY < second.start;
                let speaks = |turn: &Turn| turn.end - turn.start >= AGREEING;
                let goes_on = self.turns[..=id].iter().any(|before| {
                    before.party == second.party
                        && before.id != second.id
                        && before.end <= second.start
                        && second.start - before.end < GOES_ON
                });
                (breaks_in && speaks(first) && speaks(second) && !goes_on).then_some(second.id)
            })
            .filter(|turn| !self.turns[*turn].interrupts)
            .collect();
        found.dedup();
        found
    }

    /// A turn's words are read.
    pub fn set_words(&mut self, turn: usize, words: String) {
        if let Some(turn) = self.turns.get_mut(turn) {
            turn.words = Some(words);
        }
    }

    /// A turn's note is written.
    pub fn set_note(&mut self, turn: usize, note: Note) {
        if let Some(turn) = self.turns.get_mut(turn) {
            turn.note = Some(note);
        }
    }

    /// What was said before a turn began, as `party: words`, in order of speech; `None` is all.
    pub fn said(&self, before: Option<usize>) -> Vec<String> {
        let until = before.and_then(|id| self.turns.get(id)).map_or(f64::INFINITY, |turn| turn.start);
        let mut said: Vec<&Turn> =
            self.turns.iter().filter(|turn| turn.start < until && Some(turn.id) != before).collect();
        said.sort_by(|a, b| a.start.total_cmp(&b.start));
        let line = |turn: &Turn| {
            let words = turn.words.as_deref().map(str::trim).filter(|words| !words.is_empty())?;
            Some(format!("{}: {words}", self.names[turn.party]))
        };
        said.into_iter().filter_map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Detector};

    /// Noise that is loud and quiet four times a second, as syllables are.
    fn talk(seconds: usize) -> Vec<f32> {
        let mut state = 1_u32;
        let mut next = |n: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let loud = if n % 4000 < 2800 { 0.2 } else { 0.001 };
            loud * ((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        (0..seconds * RATE as usize).map(&mut next).collect()
    }

    #[test]
    fn a_monologue_is_talk_from_its_beginning_to_its_end_and_while_it_lasts() {
        let mut voice = Config::default().voice;
        voice.detector = Detector::Energy;
        let mut call = Call::new(vec!["customer".into(), "agent".into()], &voice);
        let hear = |call: &mut Call, sound: &[f32]| {
            for packet in sound.chunks(320) {
                call.hear(0, packet);
                call.hear(1, &vec![0.0; packet.len()]);
            }
        };
        hear(&mut call, &[0.0; 16_000]);
        hear(&mut call, &talk(60));
        // Turns of 25 s are over, and the next one is under way.
        let now = report::Report::of(&call);
        assert!(now.turns.len() == 2 && now.silence.longest_seconds < 1.5, "{now:#?}");
        hear(&mut call, &[0.0; 48_000]);
        call.hang_up();
        let after = report::Report::of(&call);
        assert_eq!(after.turns.len(), 3);
        let talked = after.parties[0].talk_seconds;
        assert!((talked - 60.0).abs() < 0.6, "{talked}");
        for pair in after.turns.windows(2) {
            let gap = pair[1].turn.start - pair[0].turn.end;
            assert!(gap.abs() < 0.26, "a cut is no pause: {gap}");
        }
    }
}
