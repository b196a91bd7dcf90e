//! RTP in any order, and RTCP: headers as the WebRTC crate reads them, then our jitter buffer and decoder.
#![no_main]

use std::time::Duration;

use hearken::audio::rtp::RtpIntake;
use libfuzzer_sys::fuzz_target;
use rtc::shared::marshal::Unmarshal as _;

fuzz_target!(|data: &[u8]| {
    let (mut intake, mut now, mut out, mut sequence, mut timestamp) =
        (RtpIntake::default(), Duration::ZERO, Vec::new(), 0_u16, 0_u32);
    let mut rest = data;
    // Each: what it is, how much time has passed, how long; behind it leaps of number and clock, or a whole packet.
    while let [kind, wait, length, after @ ..] = rest {
        let (bytes, next) = after.split_at(after.len().min(usize::from(*length)));
        rest = next;
        now += Duration::from_millis(u64::from(*wait) * u64::from(*kind >> 4));
        match kind % 4 {
            0 => {
                if let Ok(packet) = rtc::rtp::Packet::unmarshal(&mut &*bytes) {
                    let header = &packet.header;
                    intake.push(now, header.sequence_number, header.timestamp, &packet.payload, &mut out);
                }
            }
            1 => drop(rtc::rtcp::packet::unmarshal(&mut &*bytes)),
            2 => {
                (sequence, timestamp) = (sequence.wrapping_add(1), timestamp.wrapping_add(960));
                intake.push(now, sequence, timestamp, bytes, &mut out);
            }
            _ => {
                if let [a, b, c, d, payload @ ..] = bytes {
                    sequence = sequence.wrapping_add(i16::from_be_bytes([*a, *b]).cast_unsigned());
                    timestamp = timestamp.wrapping_add((i32::from(i16::from_be_bytes([*c, *d])) * 960).cast_unsigned());
                    intake.push(now, sequence, timestamp, payload, &mut out);
                }
            }
        }
        if intake.deadline().is_some_and(|due| due <= now) {
            intake.pull(now, &mut out);
        }
    }
    // A second of packets makes no hour of sound.
    let most = 16_000 * (now.as_secs() as usize + 10) + 2_000 * data.len();
    assert!(out.len() <= most, "{} samples of {} bytes in {now:?}", out.len(), data.len());
    assert!(out.iter().all(|x| x.is_finite()), "sound is finite");
});
