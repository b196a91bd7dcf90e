//! Session descriptions: offers, fragments, and the answer that goes out.
#![no_main]

use std::io::Cursor;

use hearken::protocol::sdp::{self, Offer};
use libfuzzer_sys::fuzz_target;
use rtc::sdp::SessionDescription;

fuzz_target!(|data: &[u8]| {
    if let Ok(Some(restart)) = sdp::fragment(data)
        && let Ok(offer) = Offer::parse(data)
    {
        let restarted = offer.restarted(&restart);
        assert_eq!(sdp::credentials(restarted.text()), Some(restart), "what was asked for is what stands there");
    }
    if let Ok(offer) = Offer::parse(data) {
        // As the WebRTC crate reads it.
        let _ = SessionDescription::unmarshal(&mut Cursor::new(offer.text()));
        let answer = sdp::answer(offer.text(), &[("192.0.2.1".into(), 9), ("2001:db8::1".into(), 9)]);
        let _ = sdp::restart_answer(&answer);
    }
});
