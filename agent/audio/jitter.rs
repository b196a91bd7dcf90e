//! Puts the packets of one Opus stream in order, and says what to make up where one is missing.
//!
//! An ear is no loudspeaker: it needs no even pace, only the right order. So a packet that is next passes at once, and delay is spent only where one is
//! missing. How long a missing one is waited for follows from how late such packets came lately: nothing is gained by waiting on a link that never
//! reorders, and on one that does, the wait grows to what it needs, between [`LEAST_WAIT`] and [`MOST_WAIT`].
//!
//! What is missing is measured by timestamps, not by counting packets: a pause in which the sender sent nothing (discontinuous transmission) is as long
//! as its timestamps say, and a packet of padding alone has a sequence number and no time. In such a pause nothing arrives that could tell how long it
//! is, so it is filled as it passes: whoever waits for the end of a turn must hear the silence. A link that stalls in the middle of speech looks alike
//! but for the last packet, and is filled only after [`STALL`]; what comes late after all is heard whole.
//!
//! Time is passed in. Memory is bounded by [`MOST_HELD`] packets, and sound that is made up by the time that passed: no timestamps from outside can ask
//! for more than [`CREDIT`] of it at once.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::RATE;

/// A missing packet is waited for at least so long, once a later one is here.
pub const LEAST_WAIT: Duration = Duration::from_millis(20);
/// And at most so long.
pub const MOST_WAIT: Duration = Duration::from_millis(200);
/// Without a packet for so long, other than in a pause that the sender announced, silence is heard.
pub const STALL: Duration = Duration::from_secs(1);
/// Packets that wait for one before them.
pub const MOST_HELD: usize = 64;
/// At most so much sound is made up ahead of the time that passes.
pub const CREDIT: Duration = Duration::from_secs(4);

/// Ticks of an RTP timestamp in one sample: Opus counts at 48 kHz whatever it carries (RFC 7587, 4.1).
const TICKS: u32 = 48_000 / RATE;
/// Pauses are filled in steps of so many samples, 20 ms.
const STEP: u64 = RATE as u64 / 50;
/// Sequence numbers further ahead or behind than so many, 10 s, belong to another stream.
const FAR: i16 = 500;
/// Packets of at most so many bytes say that the sender pauses.
const PAUSE_BYTES: usize = 2;
/// Holes that were given up and whose packets may still come.
const REMEMBERED: usize = 64;

/// What to do next for the stream to go on.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Decode this packet.
    Decode(&'a [u8]),
    /// The packet before this one is lost: decode so many samples from the copy that this one carries (forward error correction). It comes again
    /// itself.
    Recover(&'a [u8], usize),
    /// Make up so many samples.
    Conceal(usize),
}

/// What has happened to a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets taken in, duplicates and late ones included.
    pub packets: u64,
    /// Packets that were there before.
    pub duplicates: u64,
    /// Packets that came after they were given up.
    pub late: u64,
    /// Packets that came after a later one and in time.
    pub reordered: u64,
    /// Holes that were given up.
    pub holes: u64,
    /// Samples decoded from packets.
    pub decoded: u64,
    /// Samples recovered by forward error correction.
    pub recovered: u64,
    /// Samples made up because of loss.
    pub concealed: u64,
    /// Samples made up in pauses of the sender.
    pub paused: u64,
    /// The sum of what packets waited here.
    pub waited: Duration,
    /// The longest that one waited.
    pub longest_wait: Duration,
}

#[derive(Debug)]
struct Held {
    timestamp: u32,
    payload: Vec<u8>,
    arrived: Duration,
}

/// Where the stream stands.
#[derive(Debug)]
struct Position {
    /// The next packet's number, counted on beyond 16 bits.
    sequence: u64,
    /// Its timestamp, if nothing is missing.
    timestamp: u32,
    /// When it is due, if it is sent without a pause.
    due: Duration,
    /// Samples made up already since the last packet.
    filled: u64,
    /// Whether the last packet said that a pause begins.
    pausing: bool,
}

/// The buffer of one stream.
#[derive(Debug)]
pub struct Jitter {
    held: BTreeMap<u64, Held>,
    position: Option<Position>,
    /// The number of the first packet that came.
    first: u64,
    /// When the first packet behind a hole came, if the next one is missing.
    hole: Option<Duration>,
    /// Holes given up: the first and the last number, and when the hole was seen.
    given_up: VecDeque<(u64, u64, Duration)>,
    /// How late packets came after a later one, lately, seconds; forgotten slowly.
    lateness: f64,
    /// A number from another stream; the one after it makes it believed.
    stray: Option<u16>,
    /// Sound that may be made up.
    credit: Duration,
    refilled: Duration,
    /// The packet that is being decoded.
    current: Vec<u8>,
    stats: Stats,
}

impl Default for Jitter {
    fn default() -> Self {
        Self {
            held: BTreeMap::new(),
            position: None,
            first: 0,
            hole: None,
            given_up: VecDeque::new(),
            lateness: 2.0 * LEAST_WAIT.as_secs_f64(),
            stray: None,
            credit: CREDIT,
            refilled: Duration::ZERO,
            current: Vec::new(),
            stats: Stats::default(),
        }
    }
}

impl Jitter {
    /// Takes a packet: its sequence number, timestamp and payload. One without a payload is padding.
    pub fn push(&mut self, now: Duration, sequence: u16, timestamp: u32, payload: &[u8]) {
        self.stats.packets += 1;
        let packet = Held { timestamp, payload: payload.to_vec(), arrived: now };
        let Some(position) = &self.position else {
            return self.restart(now, sequence, packet);
        };
        let ahead = sequence.wrapping_sub(position.sequence as u16).cast_signed();
        if ahead.unsigned_abs() > FAR.unsigned_abs() {
            if self.stray == Some(sequence.wrapping_sub(1)) {
                return self.restart(now, sequence, packet);
            }
            self.stray = Some(sequence);
            return;
        }
        self.stray = None;
        let number = position.sequence.wrapping_add_signed(ahead.into());
        if ahead < 0 {
            match self.given_up.iter_mut().find(|(first, last, _)| (*first..=*last).contains(&number)) {
                Some((_, _, seen)) => {
                    let by = now.saturating_sub(*seen);
                    self.stats.late += 1;
                    self.came_late(by);
                }
                // From before the first that came.
                None if number < self.first => self.stats.late += 1,
                None => self.stats.duplicates += 1,
            }
            return;
        }
        if self.held.contains_key(&number) {
            self.stats.duplicates += 1;
            return;
        }
        if let Some(seen) = self.hole
            && self.held.keys().next_back().is_some_and(|last| number < *last)
        {
            self.stats.reordered += 1;
            self.came_late(now.saturating_sub(seen));
        } else {
            // Forgotten to the half in some 7 s of speech.
            self.lateness *= 0.998;
        }
        self.held.insert(number, packet);
        self.look_for_hole();
    }

    /// The next step, if there is one now. Call it until there is none.
    pub fn poll(&mut self, now: Duration) -> Option<Step<'_>> {
        self.refill(now);
        loop {
            let wait = self.wait();
            let full = self.held.len() > MOST_HELD;
            let position = self.position.as_mut()?;
            let Some((&number, head)) = self.held.first_key_value() else {
                return self.fill(now);
            };
            let gap = head.timestamp.wrapping_sub(position.timestamp).cast_signed().max(0).cast_unsigned();
            let missing = u64::from(gap / TICKS).saturating_sub(position.filled);
            if number == position.sequence {
                if head.payload.is_empty() {
                    position.sequence += 1;
                    self.held.pop_first();
                    self.look_for_hole();
                    continue;
                }
                // Nothing is lost where no number is missing: the sender has paused.
                if let Some(pause) = self.spend(missing) {
                    return self.conceal(pause);
                }
                return self.decode(now);
            }
            let seen = *self.hole.get_or_insert(now);
            if now < seen + wait && !full {
                return None;
            }
            // Given up. What the next packet carries a copy of comes last.
            let copied = u64::from(ticks(&head.payload) / TICKS);
            let made_up = if copied > 0 && missing >= copied { missing - copied } else { missing };
            if let Some(lost) = self.spend(made_up) {
                return self.conceal(lost);
            }
            return self.give_up(now, seen, number, missing);
        }
    }

    /// When to [`Jitter::poll`] again if no packet comes before.
    pub fn deadline(&self) -> Option<Duration> {
        let position = self.position.as_ref()?;
        match self.hole {
            Some(seen) => Some(seen + self.wait()),
            None => Some(self.next_fill(position)),
        }
    }

    /// How long a missing packet is waited for, now.
    pub fn wait(&self) -> Duration {
        Duration::from_secs_f64(self.lateness * 1.25).clamp(LEAST_WAIT, MOST_WAIT)
    }

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// A first packet, or the first of another stream.
    fn restart(&mut self, now: Duration, sequence: u16, packet: Held) {
        // Far from zero, so that what comes late has a number too.
        let sequence = u64::from(sequence) + (1 << 32);
        let (timestamp, due) = (packet.timestamp, now);
        self.position = Some(Position { sequence, timestamp, due, filled: 0, pausing: false });
        self.first = sequence;
        self.held.clear();
        self.given_up.clear();
        (self.hole, self.stray) = (None, None);
        self.held.insert(sequence, packet);
    }

    fn came_late(&mut self, by: Duration) {
        self.lateness = self.lateness.max(by.as_secs_f64()).min(MOST_WAIT.as_secs_f64());
    }

    /// Whether the next packet is missing, and since when that is known: all that are held come after it.
    fn look_for_hole(&mut self) {
        let next = self.position.as_ref().map(|p| p.sequence);
        let is_hole = self.held.keys().next().is_some_and(|first| Some(*first) != next);
        self.hole = self.held.values().map(|h| h.arrived).min().filter(|_| is_hole);
    }

    fn refill(&mut self, now: Duration) {
        self.credit = (self.credit + now.saturating_sub(self.refilled)).min(CREDIT);
        self.refilled = self.refilled.max(now);
    }

    /// As many samples of `wanted` as may be made up, or `None` for none.
    fn spend(&mut self, wanted: u64) -> Option<u64> {
        let samples = wanted.min((self.credit.as_secs_f64() * f64::from(RATE)) as u64);
        self.credit = self.credit.saturating_sub(Duration::from_secs_f64(samples as f64 / f64::from(RATE)));
        (samples > 0).then_some(samples)
    }

    /// Samples that are made up before the next packet.
    fn conceal(&mut self, samples: u64) -> Option<Step<'_>> {
        self.position.as_mut()?.filled += samples;
        Some(Step::Conceal(samples as usize))
    }

    /// The head of the queue, which is next.
    fn decode(&mut self, now: Duration) -> Option<Step<'_>> {
        let position = self.position.as_mut()?;
        let (number, head) = self.held.pop_first()?;
        let length = ticks(&head.payload);
        self.stats.paused += position.filled;
        *position = Position {
            sequence: number + 1,
            timestamp: head.timestamp.wrapping_add(length),
            due: now + Duration::from_secs_f64(f64::from(length) / 48_000.0),
            filled: 0,
            pausing: head.payload.len() <= PAUSE_BYTES,
        };
        let waited = now.saturating_sub(head.arrived);
        self.stats.decoded += u64::from(length / TICKS);
        self.stats.waited += waited;
        self.stats.longest_wait = self.stats.longest_wait.max(waited);
        self.current = head.payload;
        self.look_for_hole();
        Some(Step::Decode(&self.current))
    }

    /// Goes on behind a hole whose length has been made up, but for what the packet behind it carries a copy of.
    fn give_up(&mut self, now: Duration, seen: Duration, number: u64, missing: u64) -> Option<Step<'_>> {
        let position = self.position.as_mut()?;
        if self.given_up.len() == REMEMBERED {
            self.given_up.pop_front();
        }
        self.given_up.push_back((position.sequence, number - 1, seen));
        self.stats.holes += 1;
        position.sequence = number;
        let head = self.held.get(&number)?;
        // Whatever is still missing of the gap is more than may be made up.
        position.timestamp = head.timestamp;
        // Whatever it was taken for while it lasted.
        self.stats.concealed += std::mem::take(&mut position.filled);
        self.hole = None;
        let copied = u64::from(ticks(&head.payload) / TICKS);
        if copied == 0 || missing < copied {
            // Nothing is copied: straight on to the packet itself, or past it if it is padding.
            if !head.payload.is_empty() {
                return self.decode(now);
            }
            self.held.pop_first();
            position.sequence += 1;
            self.look_for_hole();
            return self.poll(now);
        }
        self.stats.recovered += copied;
        self.current.clone_from(&head.payload);
        Some(Step::Recover(&self.current, copied as usize))
    }

    /// When the next stretch of a pause is to be filled.
    fn next_fill(&self, position: &Position) -> Duration {
        let filled = Duration::from_secs_f64((position.filled + STEP) as f64 / f64::from(RATE));
        let fill = position.due + self.wait() + filled;
        if position.pausing || position.filled > 0 { fill } else { fill.max(position.due + STALL) }
    }

    /// Samples of silence that have passed, while nothing comes.
    fn fill(&mut self, now: Duration) -> Option<Step<'_>> {
        let position = self.position.as_ref()?;
        if now < self.next_fill(position) {
            return None;
        }
        let passed = now.saturating_sub(position.due + self.wait());
        let samples = (passed.as_secs_f64() * f64::from(RATE)) as u64;
        let steps = samples.saturating_sub(position.filled) / STEP;
        // Rounding may hold the deadline a hair before the sample.
        let samples = self.spend(steps.max(1) * STEP)?;
        self.conceal(samples)
    }
}

/// How long a packet is, in ticks; 0 if it is no Opus packet, which then fails to decode.
fn ticks(payload: &[u8]) -> u32 {
    let samples = opus::packet::get_nb_samples(payload, 48_000).unwrap_or(0);
    // RFC 6716 allows 120 ms.
    u32::try_from(samples).unwrap_or(0).min(5_760)
}
