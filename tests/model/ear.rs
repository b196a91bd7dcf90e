//! Hearing step by step: the same bits as offline, whatever the packets (I1), and the same names for the same sound.

use std::path::Path;
use std::sync::Arc;

use hearken_models::checkpoint::{Checkpoint, Options};
use hearken_models::ear::{Attention, Ear, SEGMENT};
use hearken_models::kv::Unit;
use hearken_models::{Device, Error, Tensor};
use proptest::prelude::*;

fn bits(parts: &[Tensor]) -> Vec<u32> {
    parts.iter().flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).map(f32::to_bits).collect()
}

fn noise(samples: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    // Loud and soft stretches, so that a maximum taken from the whole would show.
    (0..samples).map(|i| next() * if i / 9000 % 2 == 0 { 0.9 } else { 0.01 }).collect()
}

/// What a stream in these packets hears, and how it names it.
fn streamed(ear: &Arc<Ear>, samples: &[f32], packets: &[usize]) -> (Vec<u32>, Vec<Unit>) {
    let (mut hearing, mut naming) = (ear.hearing(), ear.naming());
    let (mut parts, mut units) = (Vec::new(), Vec::new());
    let mut rest = samples;
    for packet in packets.iter().cycle() {
        let (now, later) = rest.split_at((*packet).min(rest.len()));
        let heard = hearing.step(now).unwrap();
        let named = naming.step(now);
        assert_eq!(heard.embeddings.dim(0).unwrap(), named.len(), "what is final has a name");
        units.extend(named);
        parts.push(heard.embeddings);
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    units.extend(naming.flush());
    parts.push(hearing.flush().unwrap().embeddings);
    (bits(&parts), units)
}

/// The tiny checkpoint with another way to attend.
fn tiny(attention: &str) -> Checkpoint {
    let scratch = tempfile::tempdir().unwrap();
    copy(&crate::tests("golden/tiny"), scratch.path());
    let path = scratch.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["attention"] = serde_json::from_str(attention).unwrap();
    std::fs::write(&path, config.to_string()).unwrap();
    Checkpoint::open(scratch.path(), &Options { device: Device::Cpu, words: false }).unwrap()
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

const BLOCK: &str = r#"{"block": {"positions": 24, "left": 48, "log_mel_peak": 1.5}}"#;

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn i1_a_stream_is_bit_equal_to_offline(length in 1usize..90_000, packets in prop::collection::vec(1usize..9_000, 1..12)) {
        let samples = noise(length);
        for attention in ["\"full\"", BLOCK] {
            let tiny = tiny(attention);
            let offline: Vec<_> = tiny.hear(&samples).unwrap().into_iter().map(|heard| heard.embeddings).collect();
            let (heard, units) = streamed(&tiny.ear, &samples, &packets);
            prop_assert_eq!(&heard, &bits(&offline));
            prop_assert_eq!(units, tiny.sound_units(&samples));
        }
    }

    #[test]
    fn i1_what_is_final_stays_and_hearing_early_changes_nothing(length in 1_000usize..60_000, cut in 0.0..1.0f64) {
        let tiny = tiny(BLOCK);
        let samples = noise(length);
        let (begin, rest) = samples.split_at((length as f64 * cut) as usize);
        let mut hearing = tiny.ear.hearing();
        let mut parts = vec![hearing.step(begin).unwrap().embeddings];
        // A provisional end, as at a pause: what it hears is what offline hears of so much.
        let mut early = parts.clone();
        early.push(hearing.fork().flush().unwrap().embeddings);
        let offline = |samples: &[f32]| bits(&tiny.hear(samples).unwrap().into_iter().map(|heard| heard.embeddings).collect::<Vec<_>>());
        prop_assert_eq!(bits(&early), offline(begin));
        parts.push(hearing.step(rest).unwrap().embeddings);
        parts.push(hearing.flush().unwrap().embeddings);
        prop_assert_eq!(bits(&parts), offline(&samples));
        // The names of what was final are a prefix of the whole's.
        let mut naming = tiny.ear.naming();
        let known = naming.step(begin);
        prop_assert_eq!(&known[..], &tiny.sound_units(&samples)[..known.len()]);
    }
}

#[test]
fn i1_nano_streams_real_speech_bit_equal_to_offline() {
    let nano = Checkpoint::open(&crate::nano_directory(), &Options { device: Device::Cpu, words: false }).unwrap();
    assert!(matches!(nano.ear.attention(), Attention::Block(_)));
    let samples = hearken::audio::file::read(&crate::tests("audio/jfk.wav"), 60.0).unwrap();
    let offline: Vec<_> = nano.hear(&samples).unwrap().into_iter().map(|heard| heard.embeddings).collect();
    for packets in [vec![640], vec![320, 1, 4_801, 70_000]] {
        let (heard, units) = streamed(&nano.ear, &samples, &packets);
        assert_eq!(heard, bits(&offline));
        assert_eq!(units, nano.sound_units(&samples));
        assert_eq!(units.len(), Checkpoint::sound_tokens(samples.len()));
    }
}

#[test]
fn different_sounds_have_different_names() {
    let tiny = tiny(BLOCK);
    let samples = noise(40_000);
    let mut other = samples.clone();
    other[39_999] += 0.1;
    let (a, b) = (tiny.sound_units(&samples), tiny.sound_units(&other));
    let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    // All that ended before the difference is shared, and nothing behind it.
    assert!(same > 0 && same < a.len());
    assert!(a[same..].iter().zip(&b[same..]).all(|(a, b)| a != b));
    assert_ne!(tiny.sound_units(&samples[..39_000]).last(), a.last());
}

#[test]
fn a_segment_has_an_end() {
    let tiny = tiny(BLOCK);
    let mut hearing = tiny.ear.hearing();
    hearing.step(&vec![0.1; SEGMENT]).unwrap();
    assert!(matches!(hearing.step(&vec![0.1; SEGMENT]), Err(Error::Input(_))));
    hearing.reset();
    hearing.step(&[0.1]).unwrap();
}

#[test]
fn a_config_that_no_encoder_can_follow_is_refused() {
    for attention in [
        r#"{"block": {"positions": 7, "left": 4, "log_mel_peak": 1.5}}"#,
        r#"{"block": {"positions": 0, "left": 4, "log_mel_peak": 1.5}}"#,
        r#"{"block": {"positions": 8, "left": 4, "log_mel_peak": 1.5, "right": 3}}"#,
        "\"causal\"",
    ] {
        let scratch = tempfile::tempdir().unwrap();
        copy(&crate::tests("golden/tiny"), scratch.path());
        let path = scratch.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["attention"] = serde_json::from_str(attention).unwrap();
        std::fs::write(&path, config.to_string()).unwrap();
        let refused = Checkpoint::open(scratch.path(), &Options { device: Device::Cpu, words: false });
        assert!(refused.is_err(), "{attention}");
    }
}
