//! The jitter buffer in virtual time: whatever the network does, each packet is decoded at most once and in order, what is missing is made up in its
//! length, and nothing waits longer than it may.

use std::collections::BTreeMap;
use std::time::Duration;

use hearken::audio::jitter::{Jitter, LEAST_WAIT, MOST_WAIT, STALL, Step};
use hearken::audio::rtp::RtpIntake;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

/// 20 ms of Opus that carries a number: configuration 9 (wideband SILK, 20 ms), one frame.
fn packet(number: u16) -> Vec<u8> {
    let mut bytes = vec![9 << 3];
    bytes.extend(number.to_be_bytes());
    bytes
}

fn number(payload: &[u8]) -> u16 {
    u16::from_be_bytes([payload[1], payload[2]])
}

/// What came out: packets by number with the time, and made-up sound.
#[derive(Debug, Default)]
struct Out {
    decoded: Vec<(u16, Duration)>,
    recovered: Vec<u16>,
    made_up: usize,
}

impl Out {
    fn drain(&mut self, jitter: &mut Jitter, now: Duration) {
        while let Some(step) = jitter.poll(now) {
            match step {
                Step::Decode(payload) => self.decoded.push((number(payload), now)),
                Step::Recover(payload, samples) => {
                    assert_eq!(samples, 320);
                    self.recovered.push(number(payload).wrapping_sub(1));
                }
                Step::Conceal(samples) => self.made_up += samples,
            }
        }
    }

    /// Lets time pass until `until`, obeying deadlines.
    fn pass(&mut self, jitter: &mut Jitter, until: Duration) {
        let mut turns = 0;
        while let Some(deadline) = jitter.deadline().filter(|d| *d <= until) {
            self.drain(jitter, deadline);
            turns += 1;
            assert!(turns < 100_000, "deadlines that nothing happens at");
        }
    }

    fn samples(&self) -> usize {
        (self.decoded.len() + self.recovered.len()) * 320 + self.made_up
    }
}

/// What the network does to one packet: lost, or how late it comes, and whether twice.
#[derive(Debug, Clone, Copy)]
struct Fate {
    is_lost: bool,
    delay: u64,
    is_twice: bool,
    /// The sender pauses before it, so many packets long.
    pause: u32,
    is_padding: bool,
}

fn fate(loss: f64, delay: u64) -> impl Strategy<Value = Fate> {
    let weighted = prop::bool::weighted;
    (weighted(loss), 0..=delay, weighted(0.05), prop_oneof![20 => Just(0_u32), 1 => 1..40_u32], weighted(0.03))
        .prop_map(|(is_lost, delay, is_twice, pause, is_padding)| Fate { is_lost, delay, is_twice, pause, is_padding })
}

/// Plays a stream through the buffer; what came out, when each packet arrived, and how long the stream is in packets.
fn play(fates: &[Fate], first: (u16, u32)) -> (Out, BTreeMap<u16, Duration>, Jitter, usize) {
    let (mut time, mut timestamp) = (0_u32, first.1);
    let mut arrivals = Vec::new();
    for (i, fate) in fates.iter().enumerate() {
        let sequence = first.0.wrapping_add(i as u16);
        time += fate.pause;
        timestamp = timestamp.wrapping_add(fate.pause * 960);
        if !fate.is_lost {
            let at = (u64::from(time) * 20 + fate.delay) as u32 * MS;
            let payload = if fate.is_padding { vec![] } else { packet(i as u16) };
            for copy in 0..=u32::from(fate.is_twice) {
                arrivals.push((at + copy * 7 * MS, i, sequence, timestamp, payload.clone()));
            }
        }
        if !fate.is_padding {
            time += 1;
            timestamp = timestamp.wrapping_add(960);
        }
    }
    arrivals.sort_by_key(|(at, i, ..)| (*at, *i));
    let (mut jitter, mut out, mut arrived) = (Jitter::default(), Out::default(), BTreeMap::new());
    for (at, i, sequence, timestamp, payload) in arrivals {
        out.pass(&mut jitter, at);
        jitter.push(at, sequence, timestamp, &payload);
        if !payload.is_empty() {
            arrived.entry(i as u16).or_insert(at);
        }
        out.drain(&mut jitter, at);
    }
    let end = time * 20 * MS + 2 * MOST_WAIT;
    out.pass(&mut jitter, end);
    (out, arrived, jitter, time as usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Loss, reordering, duplicates, pauses, padding and numbers that wrap, all at once.
    #[test]
    fn any_network(
        fates in prop::collection::vec(fate(0.1, 90), 1..300),
        sequence in prop_oneof![any::<u16>(), 65_400_u16..],
        timestamp in prop_oneof![any::<u32>(), (u32::MAX - 200_000)..],
    ) {
        let (out, arrived, jitter, length) = play(&fates, (sequence, timestamp));
        prop_assert!(out.decoded.windows(2).all(|w| w[0].0 < w[1].0), "in order, each once: {out:?}");
        for (number, at) in &out.decoded {
            let waited = *at - arrived[number];
            prop_assert!(waited <= MOST_WAIT, "{number} waited {waited:?}");
        }
        // Nobody was lost here: each packet was decoded, or came too late.
        let stats = jitter.stats();
        prop_assert_eq!(out.decoded.len() + stats.late as usize >= arrived.len(), true, "{:?} of {}", stats, arrived.len());
        // All that is missing before the last packet is made up, no more than twice over where pauses were filled as they passed.
        if let Some((last, _)) = out.decoded.last() {
            let first = out.decoded[0].0;
            let real = out.decoded.len() + out.recovered.len();
            let span: usize = fates[usize::from(first) + 1..=usize::from(*last)]
                .iter().map(|f| f.pause as usize + usize::from(!f.is_padding)).sum::<usize>() + 1;
            prop_assert!(out.samples() >= span.min(real + 200) * 320, "{} of {span} packets", out.samples() / 320);
            prop_assert!(out.samples() <= (length + 100) * 320);
        }
    }

    /// On a link that keeps the order, nothing waits, whatever its delay; and sound is exactly as long as was spoken.
    #[test]
    fn a_clean_link_costs_no_delay(count in 1_usize..200, delay in 0_u64..100, sequence: u16, timestamp: u32) {
        let fates = vec![Fate { is_lost: false, delay, is_twice: false, pause: 0, is_padding: false }; count];
        let (out, arrived, jitter, _) = play(&fates, (sequence, timestamp));
        prop_assert_eq!(out.decoded.len(), count);
        prop_assert!(out.decoded.iter().all(|(n, at)| arrived[n] == *at));
        prop_assert_eq!(out.made_up, 0);
        prop_assert_eq!(jitter.stats().waited, Duration::ZERO);
    }

    /// I8, I5: packets out of nowhere.
    #[test]
    fn no_packets_make_it_panic_or_grow(
        packets in prop::collection::vec((any::<u16>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..40), 0_u64..200), 0..200)
    ) {
        let (mut intake, mut now, mut sound) = (RtpIntake::default(), Duration::ZERO, Vec::new());
        let bytes = packets.len();
        for (sequence, timestamp, payload, wait) in packets {
            now += Duration::from_millis(wait);
            intake.push(now, sequence, timestamp, &payload, &mut sound);
            if let Some(deadline) = intake.deadline().filter(|d| *d <= now) {
                intake.pull(deadline.max(now), &mut sound);
            }
        }
        // 120 ms a packet at most, and no more made up than time has passed, and the credit.
        let most = bytes * 1920 * 2 + ((now.as_secs_f64() + 4.1) * 16_000.0) as usize;
        prop_assert!(sound.len() <= most, "{} of {most}", sound.len());
        prop_assert!(sound.iter().all(|x| x.abs() <= 1.0));
    }
}

const CLEAN: Fate = Fate { is_lost: false, delay: 30, is_twice: false, pause: 0, is_padding: false };

#[test]
fn a_lost_packet_comes_from_the_copy_in_the_next() {
    let mut fates = vec![CLEAN; 50];
    fates[20].is_lost = true;
    fates[30].is_lost = true;
    fates[31].is_lost = true;
    let (out, arrived, jitter, _) = play(&fates, (0, 0));
    assert_eq!(out.recovered, [20, 31], "of two in a row, the second");
    assert_eq!((out.made_up, out.samples()), (320, 50 * 320));
    assert_eq!(jitter.stats().concealed, 320);
    let waited = |n: u16| out.decoded.iter().find(|(m, _)| *m == n).unwrap().1 - arrived[&n];
    assert!(waited(21) >= LEAST_WAIT && waited(21) <= 3 * LEAST_WAIT, "{:?}", waited(21));
    assert_eq!(waited(25), Duration::ZERO, "the delay is spent and gone");
}

#[test]
fn the_wait_grows_with_reordering_and_shrinks_without() {
    let mut fates = vec![CLEAN; 4000];
    for fate in fates[..1000].iter_mut().step_by(10) {
        fate.delay = 150;
    }
    let (out, _, jitter, _) = play(&fates[..1000], (0, 0));
    assert!(jitter.wait() > 100 * MS, "{:?}", jitter.wait());
    let late = jitter.stats().late;
    assert!(late <= 3, "{late} came too late before the buffer had learnt");
    assert_eq!(out.decoded.len() + late as usize, 1000);
    let (_, _, jitter, _) = play(&fates, (0, 0));
    assert_eq!(jitter.wait(), LEAST_WAIT);
}

#[test]
fn a_pause_is_as_long_as_its_timestamps_say() {
    let mut fates = vec![CLEAN; 40];
    fates[20].pause = 15;
    let (out, ..) = play(&fates, (7, 7));
    assert_eq!((out.made_up, out.decoded.len()), (15 * 320, 40));
}

#[test]
fn a_pause_that_is_announced_is_heard_while_it_lasts() {
    let (mut jitter, mut out) = (Jitter::default(), Out::default());
    jitter.push(Duration::ZERO, 0, 0, &packet(0));
    out.drain(&mut jitter, Duration::ZERO);
    // Two bytes: the sender pauses.
    jitter.push(20 * MS, 1, 960, &[9 << 3, 0]);
    assert_eq!(jitter.poll(20 * MS), Some(Step::Decode(&[9 << 3, 0])));
    out.pass(&mut jitter, 420 * MS);
    let heard = out.made_up / 16;
    assert!((300..=400).contains(&heard), "{heard} ms of 380");
    // The next packet after 400 ms: the rest of the pause is made up, and no more.
    jitter.push(420 * MS, 2, 960 * 21, &packet(2));
    out.drain(&mut jitter, 420 * MS);
    assert_eq!(out.made_up, 19 * 320);
}

#[test]
fn a_stalled_link_is_waited_for_and_what_comes_late_is_heard() {
    let (mut jitter, mut out) = (Jitter::default(), Out::default());
    for i in 0..10 {
        jitter.push(u32::from(i) * 20 * MS, i, u32::from(i) * 960, &packet(i));
        out.drain(&mut jitter, u32::from(i) * 20 * MS);
    }
    out.pass(&mut jitter, 180 * MS + STALL);
    assert_eq!(out.made_up, 0, "nothing says that the sender pauses");
    out.pass(&mut jitter, 3 * STALL);
    assert!(out.made_up >= 2 * 16_000, "but whoever waits for an end hears silence");
    let before = out.made_up;
    for i in 10..20 {
        jitter.push(3 * STALL, i, u32::from(i) * 960, &packet(i));
        out.drain(&mut jitter, 3 * STALL);
    }
    assert_eq!((out.decoded.len(), out.made_up), (20, before), "all of it, and nothing made up");
}

#[test]
fn another_stream_is_believed_at_its_second_packet() {
    let (mut jitter, mut out) = (Jitter::default(), Out::default());
    for (i, (sequence, timestamp)) in
        [(0, 0), (1, 960), (30_000, 5), (2, 1920), (40_000, 99), (40_001, 1059)].into_iter().enumerate()
    {
        jitter.push(i as u32 * 20 * MS, sequence, timestamp, &packet(sequence));
        out.drain(&mut jitter, i as u32 * 20 * MS);
    }
    let numbers: Vec<u16> = out.decoded.iter().map(|(n, _)| *n).collect();
    assert_eq!((numbers, out.made_up), (vec![0, 1, 2, 40_001], 0));
}

/// Real Opus with its copies: 10 % loss, heard nearly as it was said.
#[test]
fn copies_make_up_for_loss() {
    let clip = crate::harness::speech("jfk.wav");
    let hear = |fec: bool| {
        let mut encoder = opus::Encoder::new(16_000, opus::Channels::Mono, opus::Application::Voip).unwrap();
        encoder.set_bitrate(opus::Bitrate::Bits(32_000)).unwrap();
        encoder.set_inband_fec(fec).unwrap();
        encoder.set_packet_loss_perc(if fec { 10 } else { 0 }).unwrap();
        let (mut intake, mut sound) = (RtpIntake::default(), Vec::new());
        for (i, frame) in clip.chunks_exact(320).enumerate() {
            let packet = encoder.encode_vec_float(frame, 1500).unwrap();
            if i % 10 != 5 {
                intake.push(i as u32 * 20 * MS, i as u16, i as u32 * 960, &packet, &mut sound);
            }
        }
        intake.pull(20 * STALL, &mut sound);
        sound.truncate(clip.len());
        crate::webrtc::likeness(&crate::webrtc::envelope(&clip), &crate::webrtc::envelope(&sound))
    };
    let (with, without) = (hear(true), hear(false));
    println!("likeness of envelopes at 10 % loss: {with:.4} with copies, {without:.4} without");
    assert!(with > 0.985 && with > without, "{with} {without}");
}
