//! A spoken turn: sound in any of its forms becomes an item and a request to the engine.

use base64::Engine as _;
use hearken::engine::{Caption, Content, Event, Item, Role};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Asked, Client, config, listening, noise, serve, soon, speech};

const COMMITTED: [&str; 3] = ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"];

/// The segments of the last item, in samples.
fn sounds(asked: &Asked) -> Vec<usize> {
    let Some(Item::Message { role: Role::User, content }) = asked.request.conversation.last() else {
        panic!("the last item is a user's");
    };
    let sound = |c: &Content| if let Content::Sound(s) = c { s.len() } else { panic!("{c:?} is no sound") };
    content.iter().map(sound).collect()
}

async fn append(client: &mut Client, bytes: &[u8]) {
    let audio = base64::engine::general_purpose::STANDARD.encode(bytes);
    client.send(json!({"type": "input_audio_buffer.append", "audio": audio})).await;
}

#[tokio::test]
async fn speech_is_found_committed_and_answered() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    assert_eq!(client.session["audio"]["input"]["turn_detection"]["type"], "server_vad");
    client.update(json!({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}})).await;
    // Half a second of silence, one second of noise, one of silence; in packets of 20 ms.
    for packet in noise(2.5, |t| (0.5..1.5).contains(&t)).chunks(640) {
        append(&mut client, packet).await;
    }
    let started = client.expect("input_audio_buffer.speech_started").await;
    let stopped = client.expect("input_audio_buffer.speech_stopped").await;
    let ms = |v: &serde_json::Value, k: &str| v[k].as_u64().unwrap();
    // 300 ms of padding before it, 200 ms behind, frames of 16 ms.
    assert!((180..=220).contains(&ms(&started, "audio_start_ms")), "{started}");
    assert!((1680..=1730).contains(&ms(&stopped, "audio_end_ms")), "{stopped}");
    let committed = client.expect_all(&COMMITTED).await;
    assert_eq!(started["item_id"], committed[1]["item"]["id"]);
    assert_eq!(committed[1]["item"]["content"], json!([{"type": "input_audio", "transcript": null}]));
    assert_eq!(committed[0].get("previous_item_id"), Some(&json!(null)), "nothing stands before it");
    client.expect("response.created").await;
    let asked = server.asked().await;
    let length = (ms(&stopped, "audio_end_ms") - ms(&started, "audio_start_ms")) as usize * 16;
    assert!(sounds(&asked)[0].abs_diff(length) <= 32);

    asked.say(Event::Heard("the words".into())).await;
    let words = client.expect("conversation.item.input_audio_transcription.completed").await;
    assert_eq!((&words["transcript"], &words["item_id"]), (&json!("the words"), &started["item_id"]));
    client.send(json!({"type": "conversation.item.retrieve", "item_id": started["item_id"]})).await;
    let item = client.expect("conversation.item.retrieved").await;
    assert_eq!(item["item"]["content"][0]["transcript"], "the words");
    asked.say(Event::Reply("Heard.".into())).await;
    asked.done().await;
    let added = client.expect_all(&["response.output_item.added", "conversation.item.added"]).await;
    assert_eq!(added[1]["previous_item_id"], started["item_id"]);
}

#[tokio::test]
async fn words_come_while_they_are_spoken() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    let format = json!({"type": "audio/pcm", "rate": 16000});
    client.update(json!({"include": ["hearken.captions.tentative"], "audio": {"input": {"format": format}}})).await;
    client.raw(Message::binary(noise(1.5, |t| t > 0.5))).await;
    let started = client.expect("input_audio_buffer.speech_started").await;
    let ear = server.opened().await;
    assert!(ear.listen.captions);
    let caption = |committed: &str, tentative: &str| Caption {
        committed: committed.into(),
        tentative: tentative.into(),
        is_last: false,
    };
    ear.captions.send(caption("I was", "saying")).await.unwrap();
    let delta = client.expect("conversation.item.input_audio_transcription.delta").await;
    assert_eq!((&delta["delta"], &delta["item_id"]), (&json!("I was"), &started["item_id"]));
    let tentative = client.expect("hearken.input_audio_transcription.tentative").await;
    assert_eq!((&tentative["text"], &tentative["item_id"]), (&json!("saying"), &started["item_id"]));
    client.raw(Message::binary(noise(1.0, |_| false))).await;
    client.expect("input_audio_buffer.speech_stopped").await;
    let asked = server.asked().await;
    assert_eq!(sounds(&asked), [ear.fed.samples.lock().unwrap().len()], "what it heard is the turn");
    soon("the ear to be dropped", ear.captions.closed()).await;
    assert!(!ear.fed.is_finished.load(std::sync::atomic::Ordering::Acquire), "the answer tells the words");
}

#[tokio::test]
async fn without_detection_the_client_commits() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    client.manual().await;
    client.send(json!({"type": "input_audio_buffer.commit"})).await;
    assert_eq!(client.expect("error").await["error"]["code"], "input_audio_buffer_commit_empty");
    append(&mut client, &noise(0.7, |_| true)).await;
    client.send(json!({"type": "input_audio_buffer.clear"})).await;
    client.expect("input_audio_buffer.cleared").await;
    append(&mut client, &noise(1.0, |_| true)).await;
    client.send(json!({"type": "input_audio_buffer.commit"})).await;
    // What comes after a commit belongs to the next one, though it is here before the commit is obeyed.
    append(&mut client, &noise(0.5, |_| true)).await;
    client.send(json!({"type": "input_audio_buffer.commit"})).await;
    client.expect_all(&COMMITTED).await;
    client.expect_all(&COMMITTED).await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    assert_eq!((asked.request.conversation.len(), sounds(&asked)), (2, vec![8_000]));
}

#[tokio::test]
async fn every_format_arrives_whole_at_16_khz() {
    let mut server = serve(config()).await;
    for (format, bytes, samples) in [
        (json!({"type": "audio/pcm", "rate": 24000}), 48_000, 16_000),
        (json!({"type": "audio/pcm"}), 48_000, 16_000),
        (json!({"type": "audio/pcm", "rate": 48000}), 96_000, 16_000),
        (json!({"type": "audio/pcm", "rate": 44100}), 88_200, 16_000),
        (json!({"type": "audio/pcmu"}), 8_000, 16_000),
        (json!({"type": "audio/pcma"}), 8_000, 16_000),
    ] {
        let mut client = server.connect().await;
        client.update(json!({"audio": {"input": {"format": format, "turn_detection": null}}})).await;
        // Binary frames and base64 are one stream.
        let sound = vec![0x55; bytes];
        client.raw(Message::binary(sound[..bytes / 4].to_vec())).await;
        append(&mut client, &sound[bytes / 4..]).await;
        client.send(json!({"type": "input_audio_buffer.commit"})).await;
        client.expect_all(&COMMITTED).await;
        client.send(json!({"type": "response.create"})).await;
        assert_eq!(sounds(&server.asked().await), [samples], "{format}");
    }
}

#[tokio::test]
async fn opus_packets_come_one_a_frame() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    client.update(json!({"audio": {"input": {"format": {"type": "audio/opus"}, "turn_detection": null}}})).await;
    let mut encoder = opus::Encoder::new(48_000, opus::Channels::Stereo, opus::Application::Voip).unwrap();
    for _ in 0..50 {
        let packet = encoder.encode_vec_float(&[0.1; 1920], 4000).unwrap();
        client.raw(Message::binary(packet)).await;
    }
    client.send(json!({"type": "input_audio_buffer.commit"})).await;
    client.expect_all(&COMMITTED).await;
    client.send(json!({"type": "response.create"})).await;
    assert_eq!(sounds(&server.asked().await), [16_000]);
}

#[tokio::test]
async fn typed_and_spoken_turns_mix() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    client.manual().await;
    client.say("What is this sound?").await;
    let audio = base64::engine::general_purpose::STANDARD.encode(noise(26.0, |_| true));
    let content = json!([{"type": "input_audio", "audio": audio}]);
    let item = json!({"type": "message", "role": "user", "content": content});
    client.send(json!({"type": "conversation.item.create", "item": item})).await;
    client.expect_all(&["conversation.item.added", "conversation.item.done"]).await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    assert_eq!(asked.request.conversation.len(), 2);
    assert_eq!(sounds(&asked), [400_000, 16_000], "one turn, cut where the encoder ends");
}

#[tokio::test]
async fn real_speech_in_opus_packets_is_found_by_the_network() {
    let mut sound = speech("jfk.wav");
    let spoken_ms = sound.len() as u64 / 16;
    sound.resize(sound.len() + 16_000, 0.0);
    let server = serve(listening()).await;
    let mut client = server.connect().await;
    let turns = json!({"type": "server_vad", "silence_duration_ms": 1000, "create_response": false});
    client.update(json!({"audio": {"input": {"format": {"type": "audio/opus"}, "turn_detection": turns}}})).await;
    let mut encoder = opus::Encoder::new(16_000, opus::Channels::Mono, opus::Application::Voip).unwrap();
    for packet in sound.chunks_exact(320) {
        client.raw(Message::binary(encoder.encode_vec_float(packet, 4000).unwrap())).await;
    }
    // All four phrases in one turn, or in a few: pauses are about a second long.
    loop {
        client.expect("input_audio_buffer.speech_started").await;
        let stopped = client.expect("input_audio_buffer.speech_stopped").await;
        client.expect_all(&COMMITTED).await;
        if stopped["audio_end_ms"].as_u64().unwrap() + 500 > spoken_ms {
            break;
        }
    }
}
