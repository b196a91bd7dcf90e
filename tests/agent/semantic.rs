//! `semantic_vad`: at a pause the model is asked whether the turn is over, and silence decides only where it is not sure.

use std::time::Duration;

use hearken::engine::{Ending, Event};
use hearken::session::Input;
use serde_json::{Value, json};

use crate::desk::Desk;
use crate::harness::{config, noise_f32, serve, syllables};

const STOPPED: &str = "input_audio_buffer.speech_stopped";

fn turns(eagerness: &str, create_response: bool) -> Value {
    let turns = json!({"type": "semantic_vad", "eagerness": eagerness, "create_response": create_response});
    json!({"type": "session.update", "session": {"audio": {"input": {"turn_detection": turns}}}})
}

/// A session whose speaker has spoken for a second and a half and is silent for 400 ms: the model has been asked.
fn paused(eagerness: &str) -> Desk {
    let mut desk = Desk::new(config());
    desk.client(turns(eagerness, true));
    speak(&mut desk);
    desk
}

fn speak(desk: &mut Desk) {
    in_packets(desk, &noise_f32(1.9, |t| t < 1.5 && syllables(t)));
}

fn in_packets(desk: &mut Desk, sound: &[f32]) {
    sound.chunks(320).for_each(|packet| desk.hear(packet));
}

/// Silence until the turn is over, and how long that took, ms.
fn silent_until_over(desk: &mut Desk) -> u64 {
    for n in 0.. {
        if !desk.all(STOPPED).is_empty() {
            return n * 20;
        }
        assert!(n < 1000, "it never ends");
        desk.hear(&noise_f32(0.02, |_| false));
    }
    unreachable!()
}

#[tokio::test]
async fn the_session_shows_the_eagerness_that_was_asked_for() {
    let server = serve(config()).await;
    let mut client = server.connect().await;
    for eagerness in ["low", "medium", "high", "auto"] {
        let asked = json!({"type": "semantic_vad", "eagerness": eagerness});
        let session = client.update(json!({"type": "realtime", "audio": {"input": {"turn_detection": asked}}})).await;
        let shown = json!({"type": "semantic_vad", "eagerness": eagerness, "create_response": true, "interrupt_response": true});
        assert_eq!(session["audio"]["input"]["turn_detection"], shown);
    }
    let bare = json!({"type": "realtime", "audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}});
    assert_eq!(client.update(bare).await["audio"]["input"]["turn_detection"]["eagerness"], "auto");
    let odd = json!({"type": "semantic_vad", "eagerness": "very"});
    client.send(json!({"type": "session.update", "session": {"audio": {"input": {"turn_detection": odd}}}})).await;
    assert_eq!(client.expect("error").await["error"]["type"], "invalid_request_error");
}

#[test]
fn a_turn_that_is_surely_over_ends_at_once_with_what_was_thought_ahead() {
    let mut desk = paused("low");
    assert_eq!(desk.started.len(), 1);
    assert_eq!(desk.started[0].1.ending, Ending::Asked);
    assert!(desk.all(STOPPED).is_empty());
    desk.engine(Event::Reasoning("It is over.".into()));
    desk.engine(Event::Finished(0.97));
    assert_eq!(desk.all(STOPPED).len(), 1, "without another sample");
    assert_eq!(desk.all("response.created").len(), 1);
    desk.engine(Event::Reply("Paris.".into()));
    desk.done();
    assert_eq!(desk.all("response.done")[0]["response"]["status"], "completed");
    assert_eq!((desk.started.len(), desk.cancelled.len()), (1, 0));
    // And the next one begins as any other.
    desk.kinds();
    in_packets(&mut desk, &noise_f32(0.5, |_| false));
    speak(&mut desk);
    assert_eq!(desk.started.len(), 2);
    let waited = silent_until_over(&mut desk);
    assert!((1000..=1300).contains(&waited), "1.5 s of silence, of which 0.4 had passed: {waited}");
}

#[test]
fn a_turn_that_is_surely_not_over_is_waited_for_as_long_as_the_client_s_eagerness_allows() {
    for (eagerness, ms) in [("low", 8000), ("medium", 4000), ("high", 2000), ("auto", 4000)] {
        let mut desk = paused(eagerness);
        desk.engine(Event::Finished(0.02));
        let waited = silent_until_over(&mut desk);
        assert!(waited.abs_diff(ms - 400) <= 150, "{eagerness}: {waited}");
        assert_eq!((desk.started.len(), desk.cancelled.len()), (1, 0), "what was thought at the pause is told");
    }
}

#[test]
fn between_the_two_and_without_a_word_from_the_model_silence_decides() {
    for verdict in [Some(0.5), Some(f32::NAN), None] {
        for (eagerness, ms) in [("low", 1500), ("medium", 700), ("auto", 700), ("high", 500)] {
            let mut desk = paused(eagerness);
            if let Some(chance) = verdict {
                desk.engine(Event::Finished(chance));
            }
            let waited = silent_until_over(&mut desk);
            assert!((waited + 400).abs_diff(ms) <= 150, "{eagerness}, {verdict:?}: {waited}");
        }
    }
}

#[test]
fn who_speaks_on_is_asked_again_and_an_old_verdict_counts_no_more() {
    let mut desk = paused("auto");
    desk.engine(Event::Finished(0.02));
    in_packets(&mut desk, &noise_f32(2.0, |_| false));
    assert!(desk.all(STOPPED).is_empty());
    let (old, _) = desk.started[0];
    speak(&mut desk);
    assert_eq!(desk.cancelled, [old]);
    assert_eq!(desk.started.len(), 2, "the second pause");
    desk.give(Input::Engine(old, Event::Finished(0.99)));
    assert!(desk.all(STOPPED).is_empty(), "a verdict on what was said before");
    let waited = silent_until_over(&mut desk);
    assert!((waited + 400).abs_diff(700) <= 150, "{waited}");
    assert_eq!(desk.sounds().concat().len() / 16_000, 5, "one turn, its long pause within");
}

#[test]
fn where_nobody_answers_the_model_is_asked_all_the_same() {
    let mut desk = Desk::new(config());
    desk.client(turns("auto", false));
    speak(&mut desk);
    assert_eq!(desk.started[0].1.ending, Ending::AskedAlone);
    desk.engine(Event::Finished(0.9));
    desk.done();
    let kinds = desk.kinds();
    assert!(kinds.contains(&STOPPED.to_owned()) && kinds.contains(&"input_audio_buffer.committed".to_owned()));
    assert!(!kinds.iter().any(|kind| kind.starts_with("response.")), "{kinds:?}");
    // A client that then asks is answered anew.
    desk.client(json!({"type": "response.create"}));
    assert_eq!((desk.started.len(), desk.started[1].1.ending), (2, Ending::Known));
}

#[test]
fn silence_alone_asks_nobody() {
    let mut desk = Desk::new(config());
    speak(&mut desk);
    assert_eq!(desk.started[0].1.ending, Ending::Known);
    desk.engine(Event::Finished(0.99));
    assert!(desk.all(STOPPED).is_empty());
}

#[test]
fn a_client_that_sends_nothing_more_is_not_waited_for() {
    let mut desk = paused("low");
    desk.engine(Event::Finished(0.02));
    desk.now += Duration::from_secs(2);
    desk.give(Input::Tick);
    assert_eq!(desk.all(STOPPED).len(), 1);
    assert_eq!((desk.started.len(), desk.cancelled.len()), (1, 0));
}

#[test]
fn settings_that_change_during_the_wait_hold_at_once() {
    let mut desk = paused("low");
    desk.engine(Event::Finished(0.02));
    let turns = json!({"type": "server_vad", "silence_duration_ms": 600});
    desk.client(json!({"type": "session.update", "session": {"audio": {"input": {"turn_detection": turns}}}}));
    let waited = silent_until_over(&mut desk);
    assert!((waited + 400).abs_diff(600) <= 150, "{waited}");
}
