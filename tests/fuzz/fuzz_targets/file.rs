//! Sound files of every kind that is read.
#![no_main]

use hearken::audio::file::{read_bytes, stream_two};
use libfuzzer_sys::fuzz_target;

/// Seconds: a file that says it is longer is refused.
const LIMIT: f32 = 4.0;

fuzz_target!(|data: &[u8]| {
    if let Ok(sound) = read_bytes(data.to_vec(), LIMIT) {
        assert!(sound.len() <= (LIMIT * 16_000.0) as usize + 16_000);
        assert!(sound.iter().all(|x| !x.is_nan()));
    }
    let _ = stream_two(data.to_vec(), LIMIT, &mut |left, right| left.len() == right.len());
});
