//! Realtime events, one JSON text a line, into a session without an engine; a line that is no event is sound, an engine's word, or time.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use hearken::config::{Config, Detector};
use hearken::engine::{Caption, Event, SessionId, Tenant};
use hearken::protocol::openai::{Settings, parse};
use hearken::session::{Birth, Input, Output, Session};
use libfuzzer_sys::fuzz_target;

static CONFIG: LazyLock<Arc<Config>> = LazyLock::new(|| {
    let mut config = Config::default();
    config.voice.detector = Detector::Energy;
    config.limits.buffered_seconds = 5.0;
    Arc::new(config)
});

fuzz_target!(|data: &[u8]| {
    let settings = Settings::new(&CONFIG);
    let birth = Birth { id: SessionId(1), suffix: "f".into(), tenant: Tenant::default(), settings };
    let mut session = Session::new(birth, "m", CONFIG.clone(), Duration::ZERO);
    let (mut now, mut turn, mut ear) = (Duration::ZERO, None, None);
    for line in data.split(|b| *b == b'\n') {
        let Ok(text) = std::str::from_utf8(line) else { continue };
        if text.starts_with('{') {
            match parse(text) {
                Ok(incoming) => session.handle(Input::Client(incoming), now),
                Err(refusal) => session.handle(Input::Refused(refusal), now),
            }
        } else {
            for (i, byte) in text.bytes().enumerate().take(64) {
                match byte {
                    b'a'..=b'm' => {
                        let loud = if byte % 2 == 0 { 0.3 } else { 0.0003 };
                        let sample = |n: usize| if n * 7919 % 13 > 6 { loud } else { -loud };
                        let samples: Vec<f32> = (0..usize::from(byte - b'a') * 800).map(sample).collect();
                        now += Duration::from_micros(samples.len() as u64 * 1_000_000 / 16_000);
                        session.handle(Input::Sound { samples: &samples, lost: 0 }, now);
                    }
                    b'T' => {
                        now = now.max(session.deadline());
                        session.handle(Input::Tick, now);
                    }
                    _ => {
                        let Some(turn) = turn else { continue };
                        let event = match byte {
                            b'R' => Event::Reasoning(text[i..].chars().take(9).collect()),
                            b'S' => Event::Reply(text.into()),
                            b'H' => Event::Heard(text.into()),
                            b'0'..=b'9' => Event::Finished(f32::from(byte - b'0') / 9.0),
                            b'C' => Event::ToolCall { name: "f".into(), arguments: text.into() },
                            b'D' => Event::CallDelta { name: "f".into(), delta: text.into() },
                            b'K' => {
                                let committed = text.into();
                                let caption = Caption { committed, tentative: String::new(), is_last: i % 2 == 0 };
                                if let Some(ear) = ear {
                                    session.handle(Input::Caption(ear, caption), now);
                                }
                                continue;
                            }
                            _ => {
                                session.handle(Input::EngineEnded(turn), now);
                                continue;
                            }
                        };
                        session.handle(Input::Engine(turn, event), now);
                    }
                }
                settle(&mut session, &mut turn, &mut ear);
            }
        }
        settle(&mut session, &mut turn, &mut ear);
    }
});

fn settle(
    session: &mut Session,
    turn: &mut Option<hearken::session::TurnId>,
    ear: &mut Option<hearken::session::EarId>,
) {
    while let Some(output) = session.poll() {
        match output {
            Output::Send { event_id, event, .. } => {
                let told = event.to_json(&event_id);
                assert!(serde_json::from_str::<serde_json::Value>(&told).is_ok(), "{told}");
            }
            Output::Start(id, _) => *turn = Some(id),
            Output::Listen(id, _) => *ear = Some(id),
            _ => {}
        }
    }
}
