//! Session descriptions: offers, fragments, and the answer that goes out.
#![no_main]

use std::io::Cursor;

use hearken::protocol::sdp::{self, Candidate, Offer};
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
        let candidate = |ip: &str, is_tcp| Candidate { ip: ip.into(), port: 9, is_tcp };
        let candidates = [candidate("192.0.2.1", false), candidate("2001:db8::1", true)];
        let answer = sdp::answer(offer.text(), &candidates);
        let _ = sdp::restart_answer(&answer);
    }
});
