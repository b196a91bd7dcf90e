//! What a voice does in one turn, measured from the signal: loudness, pitch, syllables.

use serde::{Deserialize, Serialize};

use crate::audio::RATE;

/// 32 ms, so that the lowest voice has two periods in it.
const FRAME: usize = 512;
/// 16 ms.
const HOP: usize = 256;
/// Frames this much quieter than the loud ones are pauses, dB.
const PAUSE: f32 = 25.0;
/// The rate at which pitch is looked for.
const HALF: f32 = RATE as f32 / 2.0;
/// The pitch of voices: 400 Hz to 60 Hz, in samples at that rate.
const LAGS: std::ops::RangeInclusive<usize> = (RATE as usize / 800)..=(RATE as usize / 120);
/// A frame repeats itself at least so well, or it has no pitch.
const CLARITY: f32 = 0.6;
/// Between two syllables the loudness falls so far, dB. Source: de Jong and Wempe 2009, syllable nuclei, which has 2 for clean speech.
const DIP: f32 = 2.5;

/// One turn's voice.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Mean power of the speech in it, dB below full scale.
    pub loudness_db: f32,
    /// The median pitch; absent where nothing was voiced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pitch_hz: Option<f32>,
    /// Syllables a second, pauses included.
    pub syllables_per_second: f32,
}

/// Measures one turn of 16 kHz sound.
pub fn measure(sound: &[f32]) -> Measures {
    let loudness: Vec<f32> = frames(sound).map(|frame| decibels(power(frame))).collect();
    let loud = percentile(&loudness, 0.95);
    let speech = |db: &f32| *db >= loud - PAUSE;
    let powers: Vec<f32> = loudness.iter().filter(|db| speech(db)).map(|db| 10f32.powf(db / 10.0)).collect();
    let mean = powers.iter().sum::<f32>() / powers.len().max(1) as f32;
    let pitches: Vec<f32> = frames(sound)
        .zip(&loudness)
        .step_by(2)
        .filter(|(_, db)| speech(db))
        .filter_map(|(frame, _)| pitch(frame))
        .collect();
    let seconds = sound.len() as f32 / RATE as f32;
    Measures {
        loudness_db: decibels(mean),
        pitch_hz: (pitches.len() >= 3).then(|| percentile(&pitches, 0.5)),
        syllables_per_second: if seconds > 0.0 { syllables(&loudness, loud) as f32 / seconds } else { 0.0 },
    }
}

/// Where the speech in a turn's sound begins and ends, samples. A voice detector needs a while to notice that a voice has gone; the signal does not.
pub fn extent(sound: &[f32]) -> (usize, usize) {
    let loudness: Vec<f32> = frames(sound).map(|frame| decibels(power(frame))).collect();
    let loud = percentile(&loudness, 0.95);
    let is_speech = |db: &f32| *db >= loud - PAUSE;
    match (loudness.iter().position(is_speech), loudness.iter().rposition(is_speech)) {
        (Some(first), Some(last)) => (first * HOP, (last * HOP + FRAME).min(sound.len())),
        _ => (0, sound.len()),
    }
}

fn frames(sound: &[f32]) -> impl Iterator<Item = &[f32]> {
    sound.windows(FRAME).step_by(HOP)
}

fn power(frame: &[f32]) -> f32 {
    frame.iter().map(|x| x * x).sum::<f32>() / frame.len() as f32
}

fn decibels(power: f32) -> f32 {
    10.0 * (power + 1e-10).log10()
}

/// The value below which the `share` of all lie; of none, silence.
fn percentile(values: &[f32], share: f32) -> f32 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let at = (share * sorted.len().saturating_sub(1) as f32).round() as usize;
    sorted.get(at).copied().unwrap_or(-100.0)
}

/// By normalised autocorrelation at half the rate, which has all of a voice's pitch. Of lags that are about as good, the shortest: its multiples fit
/// as well.
fn pitch(frame: &[f32]) -> Option<f32> {
    let half: Vec<f32> = frame.chunks_exact(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
    let mut sums = vec![0.0_f32];
    sums.extend(half.iter().scan(0.0, |sum, x| {
        *sum += x * x;
        Some(*sum)
    }));
    let n = half.len();
    let correlation = |lag: usize| {
        let product: f32 = half[..n - lag].iter().zip(&half[lag..]).map(|(x, y)| x * y).sum();
        product / (sums[n - lag] * (sums[n] - sums[lag])).max(1e-12).sqrt()
    };
    let found: Vec<f32> = LAGS.map(correlation).collect();
    let best = found.iter().copied().fold(0.0, f32::max);
    if best < CLARITY {
        return None;
    }
    let mut peaks = (1..found.len() - 1).filter(|i| found[*i] >= found[i - 1] && found[*i] > found[i + 1]);
    let first = peaks.find(|i| found[*i] >= 0.9 * best)?;
    // The top of the parabola through the peak and its neighbours lies between samples.
    let (a, b, c) = (found[first - 1], found[first], found[first + 1]);
    let shift = 0.5 * (a - c) / (a - 2.0 * b + c).min(-1e-6);
    Some(HALF / ((LAGS.start() + first) as f32 + shift))
}

/// Peaks of the smoothed loudness with a dip before each.
fn syllables(loudness: &[f32], loud: f32) -> usize {
    let smooth: Vec<f32> = loudness.windows(5).map(|w| w.iter().sum::<f32>() / 5.0).collect();
    let (mut count, mut valley, mut peak) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    let mut rising = false;
    for db in smooth {
        if rising {
            peak = peak.max(db);
            if peak - db >= DIP {
                count += usize::from(peak >= loud - PAUSE);
                (rising, valley) = (false, db);
            }
        } else {
            valley = if valley == f32::NEG_INFINITY { db } else { valley.min(db) };
            if db - valley >= DIP {
                (rising, peak) = (true, db);
            }
        }
    }
    count + usize::from(rising && peak >= loud - PAUSE)
}

/// The slope of `values` over `minutes` by least squares; `None` for fewer than three.
pub fn trend(points: &[(f64, f64)]) -> Option<f64> {
    if points.len() < 3 {
        return None;
    }
    let n = points.len() as f64;
    let (mx, my) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let spread: f64 = points.iter().map(|p| (p.0 - mx).powi(2)).sum();
    (spread > 1e-9).then(|| points.iter().map(|p| (p.0 - mx) * (p.1 - my)).sum::<f64>() / spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buzz with harmonics, as a voice has, swelling `rate` times a second.
    fn voice(hz: f32, seconds: f32, rate: f32, gain: f32) -> Vec<f32> {
        let wave = |i: usize| {
            let t = i as f32 / RATE as f32;
            let tone: f32 = (1..=6).map(|k| (std::f32::consts::TAU * hz * k as f32 * t).sin() / k as f32).sum();
            let swell = 0.55 - 0.45 * (std::f32::consts::TAU * rate * t).cos();
            gain * swell * tone
        };
        (0..(seconds * RATE as f32) as usize).map(wave).collect()
    }

    #[test]
    fn pitch_loudness_and_syllables_of_a_made_voice() {
        for hz in [80.0, 120.0, 210.0, 330.0] {
            let found = measure(&voice(hz, 3.0, 4.0, 0.2));
            assert!((found.pitch_hz.unwrap_or(0.0) / hz - 1.0).abs() < 0.03, "{hz}: {found:?}");
            assert!((found.syllables_per_second - 4.0).abs() < 0.7, "{found:?}");
        }
        let (quiet, loud) = (measure(&voice(120.0, 2.0, 4.0, 0.02)), measure(&voice(120.0, 2.0, 4.0, 0.2)));
        assert!((loud.loudness_db - quiet.loudness_db - 20.0).abs() < 0.5);
    }

    #[test]
    fn noise_and_silence_have_no_pitch_and_nothing_panics() {
        let mut state = 1_u32;
        let noise: Vec<f32> = (0..16_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            })
            .collect();
        assert_eq!(measure(&noise).pitch_hz, None);
        assert_eq!(measure(&vec![0.0; 16_000]).pitch_hz, None);
        assert_eq!(measure(&[]).pitch_hz, None);
        assert_eq!(measure(&[0.5; 100]).syllables_per_second, 0.0);
    }

    #[test]
    fn speech_is_found_between_what_is_no_speech() {
        let mut sound = vec![0.0; 8000];
        sound.extend(voice(120.0, 1.0, 4.0, 0.2));
        sound.extend([0.0; 6000]);
        let (first, last) = extent(&sound);
        // The made voice swells from a tenth of its loudness.
        assert!((7500..8600).contains(&first) && (23_300..24_500).contains(&last), "{first} {last}");
        assert_eq!(extent(&[]), (0, 0));
        assert_eq!(extent(&[0.1; 100]), (0, 100));
    }

    #[test]
    fn a_trend_is_a_slope() {
        assert_eq!(trend(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]), Some(2.0));
        assert_eq!(trend(&[(0.0, 1.0), (1.0, 3.0)]), None);
        assert_eq!(trend(&[(1.0, 1.0), (1.0, 3.0), (1.0, 2.0)]), None);
    }
}
