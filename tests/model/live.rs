//! The whole product: nano behind a real WebSocket, a spoken question at the pace at which it is spoken.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use hearken::config::{Config, Layers};
use hearken::engine::local::{Local, LocalOptions};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

/// Serves nano on a free port, greedy, and gives the address of its WebSocket.
async fn serve() -> String {
    let flags = vec![("sampling.temperature".into(), "0".into()), ("journal.enabled".into(), "false".into())];
    let config = Config::load(&Layers { flags, ..Layers::default() }).unwrap();
    let options = LocalOptions {
        path: crate::nano_directory(),
        device: "cpu".into(),
        words: true,
        turns: 2,
        remembered_tokens: 4096,
        kv: Default::default(),
        batched: true,
    };
    let engine = tokio::task::spawn_blocking(|| Local::start(options)).await.unwrap().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(hearken::transport::serve(listener, Arc::new(config), Arc::new(engine), std::future::pending()));
    format!("ws://{address}/v1/realtime")
}

/// PCM16 at 16 kHz of the question, with silence behind it so that the turn ends.
fn question() -> Vec<u8> {
    let mut samples = hearken::audio::file::read(&crate::tests("browser/question.wav"), 30.0).unwrap();
    samples.extend(vec![0.0; 24_000]);
    samples.iter().flat_map(|s| ((s * 32_767.0) as i16).to_le_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoken_question_is_heard_thought_about_and_answered() {
    let (socket, _) = connect_async(serve().await).await.unwrap();
    let (mut out, mut events) = socket.split();
    let update = json!({"type": "session.update", "session": {"type": "realtime", "include": ["reasoning.text", "hearken.timings"],
        "audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}}});
    out.send(Message::text(update.to_string())).await.unwrap();
    tokio::spawn(async move {
        // 40 ms of sound every 40 ms.
        let mut tick = tokio::time::interval(Duration::from_millis(40));
        for frame in question().chunks(1280) {
            tick.tick().await;
            out.send(Message::binary(frame.to_vec())).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    let (mut order, mut reasoning, mut reply, mut heard) =
        (Vec::<String>::new(), String::new(), String::new(), String::new());
    let whole_turn = async {
        while let Some(Ok(message)) = events.next().await {
            let Message::Text(text) = message else { continue };
            let event: Value = serde_json::from_str(&text).unwrap();
            let kind = event["type"].as_str().unwrap().to_owned();
            match kind.as_str() {
                "response.reasoning_text.delta" => reasoning += event["delta"].as_str().unwrap(),
                "response.output_text.delta" => reply += event["delta"].as_str().unwrap(),
                "conversation.item.input_audio_transcription.completed" => {
                    heard = event["transcript"].as_str().unwrap().into()
                }
                "error" => panic!("{event}"),
                _ => {}
            }
            if order.last() != Some(&kind) {
                order.push(kind.clone());
            }
            if kind == "response.done" {
                return event;
            }
        }
        panic!("the socket closed before the reply was done; until then: {order:?}");
    };
    // A guard against hanging, not a measurement.
    let done = tokio::time::timeout(Duration::from_secs(240), whole_turn).await.expect("a reply within minutes");
    assert_eq!(done["response"]["status"], "completed");
    assert!(done["response"]["timings_ms"]["encode"].as_f64().unwrap() > 0.0);
    let milestones = [
        "session.created",
        "session.updated",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "response.created",
        "response.reasoning_text.delta",
        "response.output_text.delta",
        "response.done",
    ];
    let mut kinds = order.iter();
    for milestone in milestones {
        assert!(kinds.any(|kind| kind == milestone), "{milestone} comes in its turn: {order:?}");
    }
    assert!(heard.to_lowercase().contains("capital of france"), "heard {heard:?}");
    assert!(reasoning.contains("The words: What is the capital of France?"), "{reasoning:?}");
    assert!(reply.contains("Paris"), "{reply:?}");
}
