//! `hearken bench voice`: the two voice detectors on the same sound, clean, in noise, and on noise alone.

use anyhow::Result;

use super::talker::Speech;
use crate::audio::vad::{FRAME, Gate, GateConfig, GateEvent, detector};
use crate::config::{Config, Detector};

/// Samples a second.
const RATE: usize = crate::audio::RATE as usize;
/// Seconds of speech and of silence after it, and how often.
const SPEECH: f32 = 4.0;
const SILENCE: f32 = 2.0;
const TURNS: usize = 20;

/// Noises that people speak in.
#[derive(Debug, Clone, Copy)]
enum Noise {
    /// Flat, as of a fan or a bad line.
    White,
    /// Falling by 6 dB an octave, as of traffic.
    Brown,
    /// A mains hum and its overtones.
    Hum,
    /// Strokes of a keyboard, eight a second.
    Keys,
}

impl Noise {
    /// So many samples of it, at a power of 1.
    fn samples(self, count: usize) -> Vec<f32> {
        let mut state = 1_u32;
        let mut white = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut low = 0.0;
        let mut sound: Vec<f32> = (0..count)
            .map(|i| match self {
                Self::White => white(),
                Self::Brown => {
                    low = 0.98 * low + white();
                    low
                }
                Self::Hum => {
                    (1..8).map(|n| (i as f32 * 50.0 * n as f32 / RATE as f32 * std::f32::consts::TAU).sin()).sum()
                }
                // No two strokes at the same distance.
                Self::Keys => white() * (-((i % (RATE / 8 + i / RATE % 7 * 90)) as f32) / 200.0).exp(),
            })
            .collect();
        let scale = power(&sound).sqrt().recip();
        sound.iter_mut().for_each(|x| *x *= scale);
        sound
    }
}

fn power(sound: &[f32]) -> f32 {
    sound.iter().map(|x| x * x).sum::<f32>() / sound.len().max(1) as f32
}

/// What a gate over a detector made of a sound.
#[derive(Default)]
struct Found {
    /// Parts of the spoken, and of the silent, frames that were inside a turn.
    spoken: f64,
    silent: f64,
    turns: usize,
}

fn found(kind: Detector, config: &Config, sound: &[f32], is_spoken: impl Fn(usize) -> bool) -> Found {
    let v = &config.voice;
    let gate = GateConfig::new(v.threshold, v.min_speech_ms, v.silence_duration_ms);
    let mut gate = Gate::new(detector(kind), gate);
    let (mut begun, mut spans, mut turns) = (None, Vec::new(), 0);
    for frame in sound.as_chunks::<FRAME>().0 {
        match gate.push(frame) {
            Some(GateEvent::Started(at)) => (begun, turns) = (Some(at as usize), turns + 1),
            Some(GateEvent::Stopped(at)) => spans.extend(begun.take().map(|from| from..at as usize)),
            None => {}
        }
    }
    spans.extend(begun.map(|from| from..sound.len()));
    let share = |wanted: bool| {
        let frames: Vec<usize> = (0..sound.len()).step_by(FRAME).filter(|at| is_spoken(*at) == wanted).collect();
        let inside = frames.iter().filter(|at| spans.iter().any(|span| span.contains(at))).count();
        inside as f64 / frames.len().max(1) as f64
    };
    Found { spoken: share(true), silent: share(false), turns }
}

/// Prints the table.
pub(super) fn run(config: &Config, speech: &Speech) -> Result<()> {
    let (spoken, silent) = ((SPEECH * RATE as f32) as usize, (SILENCE * RATE as f32) as usize);
    let mut clean = Vec::new();
    for n in 0..TURNS {
        clean.resize(clean.len() + silent, 0.0);
        clean.extend(speech.seconds(SPEECH, n));
    }
    clean.resize(clean.len() + silent, 0.0);
    let is_spoken = |at: usize| at % (spoken + silent) >= silent && at + silent < clean.len();
    let loudness = power(&clean) * clean.len() as f32 / (TURNS * spoken) as f32;
    println!("| sound | detector | speech inside a turn | silence inside a turn | turns found, of {TURNS} |");
    println!("|---|---|---|---|---|");
    let row = |name: &str, sound: &[f32], expects: bool| {
        for kind in [Detector::Neural, Detector::Energy] {
            let found = found(kind, config, sound, |at| expects && is_spoken(at));
            let inside = if expects { format!("{:.1} %", found.spoken * 100.0) } else { "–".into() };
            let of = if expects { "" } else { " of 0" };
            println!("| {name} | {kind:?} | {inside} | {:.1} % | {}{of} |", found.silent * 100.0, found.turns);
        }
    };
    row("clean", &clean, true);
    for noise in [Noise::White, Noise::Brown, Noise::Hum, Noise::Keys] {
        let added = noise.samples(clean.len());
        for db in [20.0, 10.0, 0.0_f32] {
            let scale = (loudness / 10_f32.powf(db / 10.0)).sqrt();
            let mixed: Vec<f32> = clean.iter().zip(&added).map(|(s, n)| (s + n * scale).clamp(-1.0, 1.0)).collect();
            row(&format!("{noise:?} noise at {db} dB"), &mixed, true);
        }
        let alone: Vec<f32> = added.iter().map(|n| (n * (loudness / 10.0).sqrt()).clamp(-1.0, 1.0)).collect();
        row(&format!("{noise:?} noise alone"), &alone, false);
    }
    Ok(())
}
