//! Opus packets, each decoded, recovered from or concealed after.
#![no_main]

use hearken::audio::opus::OpusDecoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut decoder = OpusDecoder::default();
    let mut rest = data;
    while let [how, length, after @ ..] = rest {
        let (packet, next) = after.split_at(after.len().min(usize::from(*length)));
        let sound = match how % 4 {
            0 | 1 => decoder.decode(packet).unwrap_or_default(),
            2 => decoder.recover(packet, usize::from(*how) * 40).unwrap_or_default(),
            _ => decoder.conceal((how % 8 == 3).then_some(usize::from(*how) * 40)),
        };
        assert!(sound.iter().all(|x| x.is_finite()));
        assert!(sound.len() <= 16_000, "a packet holds 120 ms");
        rest = next;
    }
});
