//! Sound files: each container, and what only pretends to be one.

use hearken::audio::file::{FileError, read, read_bytes};
use proptest::prelude::*;

fn wav(rate: u32, channels: u16, samples: &[i16]) -> Vec<u8> {
    let data: Vec<u8> = samples.iter().flat_map(|s| s.to_le_bytes()).collect();
    let mut out = Vec::new();
    out.extend(b"RIFF");
    out.extend((36 + data.len() as u32).to_le_bytes());
    out.extend(b"WAVEfmt ");
    out.extend(16_u32.to_le_bytes());
    out.extend(1_u16.to_le_bytes());
    out.extend(channels.to_le_bytes());
    out.extend(rate.to_le_bytes());
    out.extend((rate * u32::from(channels) * 2).to_le_bytes());
    out.extend((channels * 2).to_le_bytes());
    out.extend(16_u16.to_le_bytes());
    out.extend(b"data");
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    out
}

/// One Ogg page (RFC 3533) that holds whole packets.
fn page(serial: u32, sequence: u32, flags: u8, granule: u64, packets: &[Vec<u8>]) -> Vec<u8> {
    let mut lacing = Vec::new();
    for packet in packets {
        lacing.extend(std::iter::repeat_n(255, packet.len() / 255));
        lacing.push((packet.len() % 255) as u8);
    }
    let mut out = b"OggS\0".to_vec();
    out.push(flags);
    out.extend(granule.to_le_bytes());
    out.extend(serial.to_le_bytes());
    out.extend(sequence.to_le_bytes());
    out.extend([0; 4]);
    out.push(lacing.len() as u8);
    out.extend(&lacing);
    packets.iter().for_each(|p| out.extend(p));
    let crc = out.iter().fold(0_u32, |crc, byte| {
        (0..8).fold(crc ^ (u32::from(*byte) << 24), |c, _| if c >> 31 == 1 { (c << 1) ^ 0x04c1_1db7 } else { c << 1 })
    });
    out[22..26].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Ogg Opus (RFC 7845) of a 440 Hz tone, 20 ms a packet.
fn ogg_opus(seconds: usize) -> Vec<u8> {
    let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, opus::Application::Audio).unwrap();
    let pre_skip = 312_u16;
    let mut head = b"OpusHead\x01\x01".to_vec();
    head.extend(pre_skip.to_le_bytes());
    head.extend(48_000_u32.to_le_bytes());
    head.extend([0, 0, 0]);
    let tags = [b"OpusTags".as_slice(), &4_u32.to_le_bytes(), b"test", &0_u32.to_le_bytes()].concat();
    let mut out = page(9, 0, 2, 0, &[head]);
    out.extend(page(9, 1, 0, 0, &[tags]));
    let total = seconds * 48_000;
    // One packet more, so that what the encoder delays is out.
    let packets = total / 960 + 1;
    for n in 0..packets {
        let tone = |i: usize| ((n * 960 + i) as f32 / 48_000.0 * 440.0 * std::f32::consts::TAU).sin() * 0.5;
        let sound: Vec<f32> = (0..960).map(tone).collect();
        let packet = encoder.encode_vec_float(&sound, 4000).unwrap();
        let last = n + 1 == packets;
        // The last page's position says where the sound ends: the rest is padding.
        let granule = if last { total + usize::from(pre_skip) } else { (n + 1) * 960 };
        out.extend(page(9, 2 + n as u32, if last { 4 } else { 0 }, granule as u64, &[packet]));
    }
    out
}

#[test]
fn wav_of_any_rate_is_mixed_down_to_16_khz_mono() {
    let stereo: Vec<i16> = (0..44_100).flat_map(|_| [8_192, -4_096]).collect();
    let sound = read_bytes(wav(44_100, 2, &stereo), 10.0).unwrap();
    assert_eq!(sound.len(), 16_000);
    assert!((sound[8_000] - 0.0625).abs() < 1e-3, "the mean of both channels");
    let mono = read_bytes(wav(16_000, 1, &[16_384; 1234]), 10.0).unwrap();
    assert_eq!(mono, vec![0.5; 1234]);
}

#[test]
fn ogg_opus_is_read_with_its_warm_up_and_padding_cut_off() {
    let sound = read_bytes(ogg_opus(2), 10.0).unwrap();
    assert!(sound.len().abs_diff(32_000) <= 1, "{}", sound.len());
    let power = sound[1_000..31_000].iter().map(|x| x * x).sum::<f32>() / 30_000.0;
    assert!((power - 0.125).abs() < 0.02, "{power}");
}

/// 0.4 s of 440 Hz at half of full scale, 44.1 kHz stereo, as other programs have written it (tests/audio/README.md).
fn tone(extension: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/audio/tone.{extension}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn flac_vorbis_and_mp3_of_other_programs_are_read() {
    for (extension, slack) in [("flac", 2), ("ogg", 2), ("mp3", 1_600)] {
        let sound = read_bytes(tone(extension), 10.0).unwrap();
        // mp3 frames are padded, and what an encoder delays is not cut off by everybody.
        assert!(sound.len().abs_diff(6_400) <= slack, "{extension}: {}", sound.len());
        let middle = &sound[1_600..4_800];
        let power = middle.iter().map(|x| x * x).sum::<f32>() / middle.len() as f32;
        assert!((power - 0.125).abs() < 0.02, "{extension}: {power}");
        let crossings = middle.windows(2).filter(|w| (w[0] < 0.0) != (w[1] < 0.0)).count();
        assert!(crossings.abs_diff(176) <= 1, "{extension}: {crossings} crossings are not 440 Hz");
    }
}

#[test]
fn a_compressed_file_that_is_too_long_is_refused_too() {
    for extension in ["flac", "ogg", "mp3"] {
        assert!(matches!(read_bytes(tone(extension), 0.2), Err(FileError::TooLong { .. })), "{extension}");
    }
}

#[test]
fn what_is_no_sound_is_refused_by_kind() {
    for bytes in [vec![], vec![0; 100_000], b"hello, this is text\n".repeat(500), b"RIFF".to_vec(), b"OggS".to_vec()] {
        let error = read_bytes(bytes, 10.0).unwrap_err();
        assert!(matches!(error, FileError::NotAudio(_)), "{error:?}");
    }
    assert!(matches!(read_bytes(wav(16_000, 1, &[]), 10.0), Err(FileError::Empty)));
    assert!(matches!(read_bytes(wav(16_000, 1, &[0; 32_000]), 1.0), Err(FileError::TooLong { .. })));
    assert!(matches!(read_bytes(ogg_opus(2), 1.0), Err(FileError::TooLong { .. })));
    assert!(matches!(read("no/such/file.wav".as_ref(), 1.0), Err(FileError::Io(_))));
    assert!(matches!(read(".".as_ref(), 1.0), Err(FileError::Io(_) | FileError::NotAudio(_))));
}

#[test]
fn ten_hours_are_refused_before_they_fill_the_memory() {
    // 8 kHz, and a header that promises it all; the bytes end early, the limit is met first.
    let mut long = wav(8_000, 1, &vec![0; 8_000 * 30]);
    let promised = 8_000_u32 * 2 * 36_000;
    long[4..8].copy_from_slice(&(promised + 36).to_le_bytes());
    long[40..44].copy_from_slice(&promised.to_le_bytes());
    let error = read_bytes(long, 20.0).map(|s| s.len()).unwrap_err();
    assert!(matches!(error, FileError::TooLong { .. }), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn i8_a_damaged_file_is_an_error_or_a_sound_and_never_a_panic(
        kind in 0..5,
        cut in 0.0_f64..1.0,
        damage in prop::collection::vec((0.0_f64..1.0, any::<u8>()), 0..12),
    ) {
        let mut bytes = match kind {
            0 => ogg_opus(1),
            1 => wav(24_000, 2, &[99; 4_800]),
            2 => tone("flac"),
            3 => tone("ogg"),
            _ => tone("mp3"),
        };
        // Headers are short: half of the damage falls there.
        for (i, (at, value)) in damage.iter().enumerate() {
            let most = if i % 2 == 0 { bytes.len() } else { 64 };
            bytes[(at * most as f64) as usize] = *value;
        }
        bytes.truncate((bytes.len() as f64 * (1.0 - cut * cut)) as usize);
        if let Ok(sound) = read_bytes(bytes, 100.0) {
            prop_assert!(sound.iter().all(|x| x.abs() <= 1.0));
        }
    }
}
