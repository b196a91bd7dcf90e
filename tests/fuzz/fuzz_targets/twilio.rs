//! A phone line: one JSON message a line, its tracks put in order, mu-law to samples.
#![no_main]

use hearken::audio::intake::{Format, Intake};
use hearken::protocol::twilio::{self, Direction, Message, Track};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut tracks = [Track::default(), Track::default()];
    let mut intakes = [Intake::new(Format::Ulaw), Intake::new(Format::Ulaw)];
    for line in text.lines() {
        if let Ok(Message::Media(media)) = twilio::parse(line) {
            let party = usize::from(media.track == Direction::Outbound);
            let (mut bytes, mut sound) = (Vec::new(), Vec::new());
            if tracks[party].push(media.chunk, media.timestamp, media.payload, &mut bytes).is_err() {
                return;
            }
            assert!(intakes[party].push(&bytes, &mut sound).is_ok(), "any byte is mu-law");
        }
    }
    for mut track in tracks {
        let _ = track.finish(&mut Vec::new());
    }
});
