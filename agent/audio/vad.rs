//! Whether somebody speaks: a detector's probability for each 16 ms, and a gate with hysteresis that makes starts and stops of it.
//!
//! Both see whole frames only, cut here, so what they find does not depend on how the sound was packed.

use super::samples_ms;

/// Samples of one frame: 16 ms.
pub const FRAME: usize = 256;

/// Judges frames, in order.
pub trait Detector: Send {
    /// The probability, 0..=1, that this frame of [`FRAME`] samples in −1..1 holds voice.
    fn voice(&mut self, frame: &[f32; FRAME]) -> f32;

    /// Forgets what it heard.
    fn reset(&mut self);
}

/// The detector that a configuration names.
pub fn detector(kind: crate::config::Detector) -> Box<dyn Detector> {
    match kind {
        crate::config::Detector::Neural => Box::new(Neural::new()),
        crate::config::Detector::Energy => Box::new(Energy::default()),
    }
}

/// Earshot's network, which knows voice from most other noise, where the sound stands out of its background: a hum or a fan that the network
/// takes for a voice goes on for ever, and no turn would end.
struct Neural {
    network: Box<earshot::Detector>,
    /// The last sample and what the filter made of it.
    last: [f32; 2],
    loudness: f32,
    floor: Floor,
}

/// How fast the loudness follows, a frame: over about 100 ms, so that noise by itself hardly moves it.
const FOLLOW: f32 = 0.15;
/// 4 s: nobody speaks so long without a breath.
const BACKGROUND: u32 = 250;

impl Neural {
    fn new() -> Self {
        Self {
            network: earshot::Detector::default_boxed(),
            last: [0.0; 2],
            loudness: 0.0,
            floor: Floor::new(BACKGROUND),
        }
    }
}

impl Detector for Neural {
    fn voice(&mut self, frame: &[f32; FRAME]) -> f32 {
        // Out-of-range input is a debug panic there; sound from files may be anything.
        let clean = frame.map(|x| if x.is_finite() { x.clamp(-1.0, 1.0) } else { 0.0 });
        let power = power(&clean.map(|x| {
            // From about 270 Hz on: traffic and wind rumble below, and swell as speech does.
            self.last = [x, x - self.last[0] + 0.9 * self.last[1]];
            self.last[1]
        }));
        // It rises at once.
        self.loudness += (power - self.loudness) * if power > self.loudness { 0.5 } else { FOLLOW };
        let over = self.floor.over(self.loudness);
        self.network.predict_f32(&clean).min(((over - 1.5) / 2.0).clamp(0.0, 1.0))
    }

    fn reset(&mut self) {
        *self = Self::new();
    }
}

fn power(frame: &[f32; FRAME]) -> f32 {
    frame.iter().map(|x| x * x).sum::<f32>() / FRAME as f32
}

/// The noise floor: the quietest frame of the last two windows.
#[derive(Debug, Clone)]
struct Floor {
    /// The quietest of the window before and of this one, dB.
    quietest: [f32; 2],
    frames: u32,
    window: u32,
}

impl Floor {
    fn new(window: u32) -> Self {
        Self { quietest: [-50.0; 2], frames: 0, window }
    }

    /// How far a frame of this power is above the floor, dB.
    fn over(&mut self, power: f32) -> f32 {
        let db = (10.0 * (power + 1e-9).log10()).max(-70.0);
        if self.frames == self.window {
            (self.frames, self.quietest) = (0, [self.quietest[1], f32::INFINITY]);
        }
        self.frames += 1;
        self.quietest[1] = self.quietest[1].min(db);
        db - self.quietest[0].min(self.quietest[1])
    }
}

/// Loudness over the noise floor: 6 dB over it is nothing, 18 dB is voice. It takes any sound that comes and goes for voice, and needs no more
/// than a few operations a sample.
#[derive(Debug, Clone)]
pub struct Energy(Floor);

impl Default for Energy {
    fn default() -> Self {
        // 1.5 s: speech pauses for breath or between syllables at least once in two of these.
        Self(Floor::new(94))
    }
}

impl Detector for Energy {
    fn voice(&mut self, frame: &[f32; FRAME]) -> f32 {
        ((self.0.over(power(frame)) - 6.0) / 12.0).clamp(0.0, 1.0)
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// When the gate opens and closes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateConfig {
    /// At or above, a frame is voice; it stays voice down to 0.15 below.
    pub threshold: f32,
    /// Voice that opens the gate, samples.
    pub min_speech: usize,
    /// Silence that closes it, samples.
    pub silence: usize,
}

impl GateConfig {
    /// From milliseconds.
    pub fn new(threshold: f32, min_speech_ms: u32, silence_ms: u32) -> Self {
        Self { threshold, min_speech: samples_ms(min_speech_ms), silence: samples_ms(silence_ms) }
    }
}

/// What the gate did. Positions are samples since the start of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateEvent {
    /// Somebody speaks since this sample.
    Started(u64),
    /// Nobody speaks since this sample; it took `silence` more to be sure.
    Stopped(u64),
}

/// Hysteresis over a detector.
pub struct Gate {
    detector: Box<dyn Detector>,
    config: GateConfig,
    state: State,
    /// Silence that closes it this once, samples.
    patience: Option<u64>,
    /// Position after the last frame.
    heard: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Silent,
    /// Voice since here, not yet long enough.
    Rising(u64),
    /// Speech; the last voice ended here.
    Open(u64),
}

impl Gate {
    /// A closed gate at position 0.
    pub fn new(detector: Box<dyn Detector>, config: GateConfig) -> Self {
        Self { detector, config, state: State::Silent, patience: None, heard: 0 }
    }

    /// The next frame begins at this position.
    pub fn start_at(&mut self, position: u64) {
        self.heard = position;
        self.state = State::Silent;
    }

    /// New settings from the next frame on.
    pub fn configure(&mut self, config: GateConfig) {
        (self.config, self.patience) = (config, None);
    }

    /// The silence that there is now closes it after so many samples. Of the next one that is not said.
    pub fn wait(&mut self, silence: usize) {
        self.patience = self.is_open().then_some(silence as u64);
    }

    /// Whether somebody speaks now.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Where the last voice ended, while the gate is open.
    pub fn last_voice(&self) -> Option<u64> {
        if let State::Open(last) = self.state { Some(last) } else { None }
    }

    /// Where voice began that is not yet long enough, if so.
    pub fn rising_since(&self) -> Option<u64> {
        if let State::Rising(since) = self.state { Some(since) } else { None }
    }

    /// Closes the gate without a word: its turn was committed or thrown away by somebody else. The next voice opens it anew.
    pub fn close(&mut self) {
        self.state = State::Silent;
    }

    /// Judges the next frame.
    pub fn push(&mut self, frame: &[f32; FRAME]) -> Option<GateEvent> {
        let p = self.detector.voice(frame);
        let begin = self.heard;
        self.heard += FRAME as u64;
        let bar = if self.state == State::Silent { self.config.threshold } else { self.config.threshold - 0.15 };
        let voice = p >= bar.max(0.01);
        if voice || !self.is_open() {
            self.patience = None;
        }
        match self.state {
            State::Silent | State::Rising(_) if voice => {
                let since = self.rising_since().unwrap_or(begin);
                if self.heard - since < self.config.min_speech as u64 {
                    self.state = State::Rising(since);
                    return None;
                }
                self.state = State::Open(self.heard);
                Some(GateEvent::Started(since))
            }
            State::Silent | State::Rising(_) => {
                self.state = State::Silent;
                None
            }
            State::Open(_) if voice => {
                self.state = State::Open(self.heard);
                None
            }
            State::Open(last) if self.heard - last >= self.patience.unwrap_or(self.config.silence as u64) => {
                self.state = State::Silent;
                Some(GateEvent::Stopped(last))
            }
            State::Open(_) => None,
        }
    }
}
