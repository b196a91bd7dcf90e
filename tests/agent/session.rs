//! The session in virtual time: hours pass at once, and no chance has a part in it.

use std::time::Duration;

use hearken::engine::Event;
use hearken::session::Input;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::desk::Desk;
use crate::harness::{config, noise_f32, syllables};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// I1: however the same samples are packed, the same segments come out, to the bit, at the same places.
    #[test]
    fn i1_packets_do_not_change_segments(sizes in prop::collection::vec(1_usize..5_000, 1..40)) {
        let sound = noise_f32(6.0, |t| (0.4..1.1).contains(&t) || (2.2..3.0).contains(&t) || t > 5.0);
        let mut whole = Desk::new(config());
        whole.hear(&sound);
        let mut packed = Desk::new(config());
        let (mut rest, mut sizes) = (&sound[..], sizes.into_iter().cycle());
        while !rest.is_empty() {
            let (packet, after) = rest.split_at(sizes.next().unwrap().min(rest.len()));
            packed.hear(packet);
            rest = after;
        }
        prop_assert_eq!(whole.started.len(), 2);
        prop_assert_eq!(&whole.told, &packed.told);
        prop_assert_eq!(&whole.started.iter().map(|s| &s.1.conversation).collect::<Vec<_>>(),
                        &packed.started.iter().map(|s| &s.1.conversation).collect::<Vec<_>>());
    }

    /// I8: any order of events and sound is survived, at most one response runs, and every one that began ends once.
    #[test]
    fn i8_any_order_of_inputs_is_survived(program in prop::collection::vec(0_u8..16, 1..80)) {
        let mut desk = Desk::new(config());
        let loud = noise_f32(0.7, |_| true);
        let quiet = noise_f32(0.9, |_| false);
        for step in program {
            match step {
                0 => desk.hear(&loud),
                1 => desk.hear(&quiet),
                2 => desk.client(json!({"type": "response.create"})),
                3 => desk.client(json!({"type": "response.cancel"})),
                4 => desk.client(json!({"type": "input_audio_buffer.commit"})),
                5 => desk.client(json!({"type": "input_audio_buffer.clear"})),
                6 => desk.client(json!({"type": "session.update", "session": {"audio": {"input": {"turn_detection": null}}}})),
                7 => desk.client(json!({"type": "session.update", "session": {"audio": {"input": {"turn_detection":
                        {"type": "server_vad", "interrupt_response": false, "idle_timeout_ms": 2000}}}}})),
                8 if !desk.started.is_empty() => desk.engine(Event::Reply("word ".into())),
                9 if !desk.started.is_empty() => desk.engine(Event::ToolCall { name: "f".into(), arguments: "{}".into() }),
                10 if !desk.started.is_empty() => desk.done(),
                11 => { desk.now += Duration::from_secs(3); desk.give(Input::Tick); }
                12 => {
                    let item = desk.told.iter().rev().find_map(|e| e["item"]["id"].as_str().map(str::to_owned));
                    if let Some(id) = item { desk.client(json!({"type": "conversation.item.delete", "item_id": id})); }
                }
                13 => desk.hear(&loud[..77]),
                14 => desk.client(json!({"type": "session.update", "session": {"audio": {"input": {"turn_detection":
                        {"type": "semantic_vad", "eagerness": "high", "create_response": desk.started.len().is_multiple_of(2)}}}}})),
                15 if !desk.started.is_empty() => desk.engine(Event::Finished(desk.told.len() as f32 % 11.0 / 10.0)),
                _ => {}
            }
        }
        let mut running: Option<Value> = None;
        for event in &desk.told {
            if event["type"] == "response.created" {
                prop_assert!(running.replace(event["response"]["id"].clone()).is_none());
            } else if event["type"] == "response.done" {
                prop_assert_eq!(running.take(), Some(event["response"]["id"].clone()));
            }
        }
    }
}

#[test]
fn a_long_turn_is_cut_into_segments_of_25_s() {
    let mut desk = Desk::new(config());
    desk.hear(&noise_f32(62.0, |t| (1.0..60.0).contains(&t) && syllables(t)));
    let lengths: Vec<usize> = desk.sounds().iter().map(Vec::len).collect();
    assert_eq!(lengths[..2], [400_000, 400_000]);
    // 59 s less the last pause, and the padding before and behind.
    let total: usize = lengths.iter().sum();
    assert!(total.abs_diff(16_000 * 59 - 1_200 + 4_800 + 3_200) <= 512, "{total}");
}

#[test]
fn an_endless_turn_is_committed_when_its_buffer_is_full() {
    let mut config = config();
    config.limits.buffered_seconds = 10.0;
    let mut desk = Desk::new(config);
    for _ in 0..25 {
        desk.hear(&noise_f32(1.0, syllables));
    }
    let ended = desk.told.iter().filter(|e| e["type"] == "input_audio_buffer.speech_stopped").count();
    assert_eq!(ended, 2);
    assert!(desk.sounds().iter().map(Vec::len).sum::<usize>() <= 160_000);
}

#[test]
fn times_stay_true_when_sound_was_lost() {
    let mut desk = Desk::new(config());
    desk.hear(&noise_f32(1.0, |_| false));
    desk.give(Input::Sound { samples: &[], lost: 160_000 });
    desk.hear(&noise_f32(1.0, |t| t > 0.5));
    let started = desk.told.iter().find(|e| e["type"] == "input_audio_buffer.speech_started").unwrap();
    assert!(started["audio_start_ms"].as_u64().unwrap().abs_diff(11_200) <= 32, "{started}");
}

#[test]
fn a_microphone_that_falls_silent_mid_word_ends_the_turn() {
    let mut desk = Desk::new(config());
    desk.hear(&noise_f32(2.0, |t| t > 1.0 && syllables(t)));
    assert_eq!(desk.kinds(), ["input_audio_buffer.speech_started"]);
    assert_eq!(desk.session.deadline(), Duration::from_secs(4));
    desk.now = Duration::from_secs(4);
    desk.give(Input::Tick);
    assert_eq!(desk.told[0]["type"], "input_audio_buffer.speech_stopped");
    assert_eq!(desk.started.len(), 1);
    desk.kinds();
    // The silence was ours: the client's clock goes on where it was.
    desk.done();
    desk.hear(&noise_f32(2.0, |t| t > 1.0));
    let started = desk.told.iter().find(|e| e["type"] == "input_audio_buffer.speech_started").unwrap();
    assert!(started["audio_start_ms"].as_u64().unwrap().abs_diff(2_700) <= 32, "{started}");
}

#[test]
fn a_late_event_of_a_dropped_turn_is_passed_over() {
    let mut desk = Desk::new(config());
    desk.client(json!({"type": "response.create"}));
    desk.engine(Event::Reply("first".into()));
    desk.client(json!({"type": "response.cancel"}));
    desk.client(json!({"type": "response.create"}));
    let (old, _) = desk.started[0];
    assert_eq!(desk.cancelled, [old]);
    desk.kinds();
    desk.give(Input::Engine(old, Event::Reply("late".into())));
    desk.give(Input::EngineEnded(old));
    assert_eq!(desk.kinds(), Vec::<String>::new());
    assert_ne!(desk.started[1].0, old);
}

#[test]
fn a_long_silence_after_a_reply_is_answered_when_the_client_wishes() {
    let mut desk = Desk::new(config());
    let turns = json!({"type": "server_vad", "idle_timeout_ms": 5000});
    desk.client(json!({"type": "session.update", "session": {"audio": {"input": {"turn_detection": turns}}}}));
    desk.now = Duration::from_secs(60);
    desk.give(Input::Tick);
    assert!(desk.started.is_empty(), "nothing was said yet");
    desk.client(json!({"type": "response.create"}));
    desk.done();
    desk.kinds();
    assert_eq!(desk.session.deadline(), Duration::from_secs(65));
    desk.hear(&noise_f32(4.9, |_| false));
    desk.give(Input::Tick);
    assert_eq!(desk.kinds(), Vec::<String>::new());
    desk.hear(&noise_f32(0.2, |_| false));
    desk.give(Input::Tick);
    let kinds = desk.kinds();
    assert_eq!(kinds[0], "input_audio_buffer.timeout_triggered");
    assert_eq!(kinds.last().unwrap(), "response.created");
}

#[test]
fn a_session_is_let_go_when_nothing_comes_but_not_while_it_speaks() {
    let mut desk = Desk::new(config());
    desk.now = Duration::from_secs(599);
    desk.give(Input::Tick);
    assert!(!desk.closed);
    desk.client(json!({"type": "response.create"}));
    desk.now = Duration::from_secs(1100);
    desk.engine(Event::Reply("still here".into()));
    desk.now = Duration::from_secs(1650);
    desk.give(Input::Tick);
    assert!(!desk.closed);
    desk.now = desk.session.deadline();
    desk.give(Input::Tick);
    assert!(desk.closed);
}

#[test]
fn an_item_deleted_while_it_is_written_stays_deleted() {
    let mut desk = Desk::new(config());
    desk.client(json!({"type": "response.create"}));
    desk.engine(Event::Reply("half".into()));
    let added = desk.told.iter().find(|e| e["type"] == "conversation.item.added").unwrap();
    desk.client(json!({"type": "conversation.item.delete", "item_id": added["item"]["id"]}));
    desk.done();
    let kinds = desk.kinds();
    assert!(!kinds.contains(&"conversation.item.done".to_owned()) && kinds.last().unwrap() == "response.done");
    desk.client(json!({"type": "response.create"}));
    assert_eq!(desk.started.last().unwrap().1.conversation, []);
}

#[test]
fn a_spoken_turns_timings_tell_how_long_its_end_was_waited_for() {
    let mut desk = Desk::new(config());
    desk.client(json!({"type": "session.update", "session": {"include": ["hearken.timings"]}}));
    desk.hear(&noise_f32(2.5, |t| t < 1.5 && syllables(t)));
    desk.done();
    let waited = desk.all("response.done")[0]["response"]["timings_ms"]["voice_activity"].as_f64().unwrap();
    assert!((500.0..700.0).contains(&waited), "{waited}");
    desk.client(json!({"type": "response.create"}));
    desk.done();
    assert!(desk.all("response.done")[1]["response"]["timings_ms"].get("voice_activity").is_none());
}

#[test]
fn beside_a_stream_of_opus_a_clip_is_pcm() {
    let mut desk = Desk::new(config());
    desk.client(json!({"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/opus"}}}}}));
    let audio = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, vec![0_u8; 48_000]);
    let content = json!([{"type": "input_audio", "audio": audio}]);
    desk.client(
        json!({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}),
    );
    desk.client(json!({"type": "response.create"}));
    assert_eq!(desk.sounds()[0].len(), 16_000, "a second of it");
}
