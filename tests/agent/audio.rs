//! Resampling, the ring, Opus, and voice activity on real speech.

use hearken::audio::AudioError;
use hearken::audio::opus::OpusDecoder;
use hearken::audio::resample::Resampler;
use hearken::audio::ring::ring;
use hearken::audio::vad::{FRAME, Gate, GateConfig, GateEvent, detector};
use hearken::config::Detector;
use proptest::prelude::*;

use crate::harness::{noise_f32, speech};

fn tone(rate: u32, seconds: f64, hz: f64) -> Vec<f32> {
    let n = (f64::from(rate) * seconds) as usize;
    (0..n).map(|i| (i as f64 / f64::from(rate) * hz * std::f64::consts::TAU).sin() as f32 * 0.5).collect()
}

fn resample(rate: u32, sound: &[f32], packet: usize) -> Vec<f32> {
    let mut resampler = Resampler::new(rate).unwrap();
    let mut out = Vec::new();
    for piece in sound.chunks(packet) {
        resampler.push(piece, &mut out);
    }
    resampler.flush(&mut out);
    out
}

#[test]
fn no_tail_is_lost_and_nothing_moves() {
    for rate in [8_000, 24_000, 44_100, 48_000, 96_000] {
        // A length that is no whole number of chunks.
        let sound = tone(rate, 0.7531, 440.0);
        let out = resample(rate, &sound, 999);
        let due = (sound.len() as f64 * 16_000.0 / f64::from(rate)).ceil() as usize;
        assert_eq!(out.len(), due, "{rate}");
        // The same tone at the same place, but for the edges, where the filter sees the silence around it.
        let ideal = tone(16_000, 1.0, 440.0);
        let worst = (400..out.len() - 400).map(|i| (out[i] - ideal[i]).abs()).fold(0.0, f32::max);
        assert!(worst < 5e-3, "{rate}: {worst}");
        let last = &out[out.len() - 160..];
        assert!(last.iter().any(|x| x.abs() > 0.1), "{rate}: the tail is silent");
    }
    assert_eq!(Resampler::new(7_999).unwrap_err(), AudioError::Rate(7_999));
}

#[test]
fn an_odd_rate_is_taken_for_the_nearest_that_is_not() {
    for (odd, even) in [(44_101, 44_100), (8_012, 8_000), (8_013, 8_025), (191_999, 192_000)] {
        let sound = tone(even, 0.2, 440.0);
        assert_eq!(resample(odd, &sound, 100), resample(even, &sound, 100), "{odd}");
    }
}

#[test]
fn a_filter_that_another_stream_had_remembers_nothing_of_it() {
    let sound = tone(24_000, 0.1, 300.0);
    let alone = std::thread::spawn({
        let sound = sound.clone();
        move || resample(24_000, &sound, 100)
    });
    for rate in [8_000, 24_000, 24_000, 44_100, 48_000, 96_000, 24_000] {
        let mut resampler = Resampler::new(rate).unwrap();
        resampler.push(&noise_f32(0.11, |_| true), &mut Vec::new());
    }
    assert_eq!(resample(24_000, &sound, 100), alone.join().unwrap());
}

#[test]
fn a_flush_begins_a_new_stream() {
    let sound = tone(24_000, 0.1, 300.0);
    let mut resampler = Resampler::new(24_000).unwrap();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for out in [&mut first, &mut second] {
        resampler.push(&sound, out);
        resampler.flush(out);
    }
    assert_eq!(first, second);
    resampler.flush(&mut second);
    assert_eq!(first.len(), second.len(), "an empty stream has no tail");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn i1_packets_do_not_change_resampling(packet in 1_usize..3000, rate in prop::sample::select(vec![8_000_u32, 24_000, 44_100, 48_000])) {
        let sound = noise_f32(0.3, |_| true);
        prop_assert_eq!(resample(rate, &sound, packet), resample(rate, &sound, sound.len()));
    }

    /// I5: the ring keeps the newest, counts the rest, and never gives or forgets one silently.
    #[test]
    fn i5_the_ring_loses_only_the_oldest_and_counts_it(
        program in prop::collection::vec((0_usize..40, prop::option::of(0_u64..30)), 1..60)
    ) {
        let (mut writer, mut reader) = ring(64);
        let (mut next, mut expected, mut lost_told, mut lost_read) = (0_u64, 0_u64, 0, 0);
        let mut out = Vec::new();
        for (push, read) in program {
            let samples: Vec<f32> = (0..push).map(|i| (next + i as u64) as f32).collect();
            let (position, dropped) = writer.push(&samples);
            next += push as u64;
            lost_told += dropped;
            prop_assert_eq!(position, next);
            if let Some(short) = read {
                let until = next.saturating_sub(short);
                let lost = reader.read(until, &mut out);
                lost_read += lost;
                expected += lost;
                for x in &out {
                    prop_assert_eq!(*x, expected as f32);
                    expected += 1;
                }
                prop_assert!(expected >= until, "all up to the mark is out");
            }
        }
        let lost = reader.read(next, &mut out);
        prop_assert_eq!(lost_read + lost, lost_told);
        prop_assert_eq!(expected + lost + out.len() as u64, next);
    }

    #[test]
    fn i8_no_bytes_make_the_opus_decoder_panic(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..40)) {
        let mut decoder = OpusDecoder::default();
        for packet in packets {
            match decoder.decode(&packet) {
                Ok(sound) => prop_assert!(sound.len() <= 1920 && sound.iter().all(|x| x.abs() <= 1.0)),
                Err(AudioError::EmptyPacket) => prop_assert!(packet.is_empty()),
                Err(e) => prop_assert!(matches!(e, AudioError::BadOpus(_))),
            }
            prop_assert!(decoder.conceal(None).len() <= 1920);
        }
    }
}

#[test]
fn lost_packets_are_made_up_in_their_length() {
    let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, opus::Application::Voip).unwrap();
    let mut decoder = OpusDecoder::default();
    let packet = encoder.encode_vec_float(&tone(48_000, 0.04, 200.0), 4000).unwrap();
    assert_eq!(decoder.decode(&packet).unwrap().len(), 640);
    assert_eq!(decoder.conceal(None).len(), 640, "as long as the last");
    assert_eq!(decoder.conceal(Some(321)).len(), 320, "in steps of 2.5 ms");
    assert_eq!(decoder.conceal(Some(1_000_000)).len(), 1920, "at most 120 ms");
}

fn events(kind: Detector, sound: &[f32]) -> Vec<GateEvent> {
    let mut gate = Gate::new(detector(kind), GateConfig::new(0.5, 100, 500));
    let frames = sound.chunks_exact(FRAME).map(|f| f.try_into().unwrap());
    frames.filter_map(|f: &[f32; FRAME]| gate.push(f)).collect()
}

#[test]
fn short_noises_do_not_open_the_gate_and_short_pauses_do_not_close_it() {
    let click = noise_f32(2.0, |t| (1.0..1.05).contains(&t));
    assert_eq!(events(Detector::Energy, &click), []);
    let words = noise_f32(4.0, |t| (1.0..1.5).contains(&t) || (1.8..2.3).contains(&t));
    let found = events(Detector::Energy, &words);
    let [GateEvent::Started(start), GateEvent::Stopped(stop)] = found[..] else { panic!("{found:?}") };
    assert!(start.abs_diff(16_000) <= 256 && stop.abs_diff(36_800) <= 256, "{start} {stop}");
}

/// jfk.wav: 11 s, one sentence with pauses.
#[test]
fn both_detectors_find_real_speech() {
    let silence = noise_f32(5.0, |_| false);
    assert_eq!(events(Detector::Neural, &silence), []);
    let mut sound = speech("jfk.wav");
    let spoken = sound.len();
    sound.resize(spoken + 16_000, 0.0);
    for kind in [Detector::Neural, Detector::Energy] {
        let found = events(kind, &sound);
        println!(
            "{kind:?}: {:?}",
            found
                .iter()
                .map(|e| match e {
                    GateEvent::Started(at) => format!("from {:.2}", *at as f64 / 16_000.0),
                    GateEvent::Stopped(at) => format!("to {:.2}", *at as f64 / 16_000.0),
                })
                .collect::<Vec<_>>()
        );
        assert!(matches!(found.first(), Some(GateEvent::Started(at)) if *at < 16_000));
        assert!(matches!(found.last(), Some(GateEvent::Stopped(at)) if at.abs_diff(spoken as u64) < 16_000));
    }
}

/// What goes on for ever is no voice, however much the network takes it for one.
#[test]
fn a_hum_or_a_fan_does_not_keep_a_turn_open() {
    let clip = speech("jfk.wav");
    let loudness = (clip.iter().map(|x| x * x).sum::<f32>() / clip.len() as f32).sqrt();
    let hum = |i: usize| (1..8).map(|n| (i as f32 * 0.0196 * n as f32).sin()).sum::<f32>() / 1.9;
    let fan = noise_f32(20.0, |_| true);
    for (name, noise) in
        [("hum", (0..20 * 16_000).map(hum).collect::<Vec<_>>()), ("fan", fan.iter().map(|x| x * 5.8).collect())]
    {
        // Two seconds of it, the sentence in it 10 dB louder, and seven seconds of it.
        let mut sound: Vec<f32> = noise.iter().map(|x| x * loudness * 0.32).collect();
        sound[32_000..].iter_mut().zip(&clip).for_each(|(x, s)| *x += s);
        let found = events(Detector::Neural, &sound);
        let (first, last) = (found.first(), found.last());
        assert!(found.len() <= 12, "{name}: {found:?}");
        assert!(matches!(last, Some(GateEvent::Stopped(at)) if *at < 16_000 * 15), "{name}: {found:?}");
        assert!(matches!(first, Some(GateEvent::Started(_))), "{name}: {found:?}");
    }
}
