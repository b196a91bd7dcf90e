//! Forms with an offer and the session's settings.
#![no_main]

use futures_util::FutureExt as _;
use hearken::transport::fuzz::form;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first line is the header's.
    let at = data.iter().position(|b| *b == b'\n').unwrap_or(data.len());
    let (head, body) = (&data[..at], data.get(at + 1..).unwrap_or_default());
    // All of it is there: nothing is waited for. Lines may come out a byte longer, with a carriage return.
    let read = form(&String::from_utf8_lossy(head), body.to_vec()).now_or_never();
    assert!(read.expect("a body in memory is read at once").is_none_or(|length| length <= 2 * body.len()));
});
