//! What the Realtime API promises beyond a turn: transcription sessions, client secrets, tenants, limits.

use std::time::Duration;

use hearken::config::Secret;
use hearken::engine::{Event, Tenant};
use hearken::protocol::openai::{Kind, Settings};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error;

use crate::desk::Desk;
use crate::harness::{Client, config, noise_f32, serve, syllables};

const WORDS: &str = "conversation.item.input_audio_transcription.completed";

fn transcription() -> Desk {
    let config = config();
    let settings = Settings { kind: Kind::Transcription, ..Settings::new(&config) };
    Desk::begin(config, settings)
}

fn hear_in_packets(desk: &mut Desk, sound: &[f32]) {
    sound.chunks(320).for_each(|packet| desk.hear(packet));
}

#[tokio::test]
async fn a_transcription_session_says_what_it_is_and_answers_nothing() {
    let server = serve(config()).await;
    let mut client = server.connect_to("intent=transcription", &[]).await.unwrap();
    let session = client.expect("session.created").await["session"].clone();
    assert_eq!(
        (&session["type"], &session["object"]),
        (&json!("transcription"), &json!("realtime.transcription_session"))
    );
    assert!(session.get("instructions").is_none());
    let input =
        json!({"transcription": {"model": "any-model", "language": "en"}, "turn_detection": {"threshold": 0.4}});
    let session = client.update(json!({"type": "transcription", "audio": {"input": input}})).await;
    assert_eq!(session["audio"]["input"]["transcription"], json!({"model": "any-model", "language": "en"}));
    let turns = json!({"type": "server_vad", "threshold": 0.4, "prefix_padding_ms": 300, "silence_duration_ms": 500});
    assert_eq!(session["audio"]["input"]["turn_detection"], turns);
    client.send(json!({"type": "response.create"})).await;
    assert_eq!(client.expect("error").await["error"]["code"], "invalid_value");
    client.send(json!({"type": "session.update", "session": {"type": "realtime"}})).await;
    assert_eq!(client.expect("error").await["error"]["param"], "session.type");
    let Err(Error::Http(refused)) = server.connect_to("intent=mischief", &[]).await else { panic!("there is none") };
    assert_eq!(refused.status().as_u16(), 400);
}

#[test]
fn each_turn_of_a_transcription_keeps_its_words_though_the_next_one_has_begun() {
    let mut desk = transcription();
    hear_in_packets(&mut desk, &noise_f32(2.3, |t| (0.5..1.5).contains(&t) && syllables(t)));
    // The ear still reads the first turn when the second begins.
    hear_in_packets(&mut desk, &noise_f32(1.0, |t| t > 0.2 && syllables(t)));
    assert!(desk.started.is_empty());
    assert_eq!(desk.ears.len(), 2);
    desk.last_caption_of(0, "The first.");
    desk.caption("The", "");
    hear_in_packets(&mut desk, &noise_f32(0.8, |_| false));
    desk.last_caption_of(1, " second.");
    let items: Vec<Value> =
        desk.all("input_audio_buffer.committed").iter().map(|event| event["item_id"].clone()).collect();
    let told: Vec<(Value, Value)> =
        desk.all(WORDS).iter().map(|event| (event["item_id"].clone(), event["transcript"].clone())).collect();
    assert_eq!(told, [(items[0].clone(), json!("The first.")), (items[1].clone(), json!("The second."))]);
}

#[test]
fn a_turn_of_many_segments_has_all_its_words() {
    let mut desk = transcription();
    hear_in_packets(&mut desk, &noise_f32(31.8, |t| (0.5..31.0).contains(&t) && syllables(t)));
    assert_eq!(desk.ears.len(), 2);
    assert!(desk.ears.iter().all(|ear| ear.ended && !ear.dropped));
    desk.last_caption_of(0, "Much was said");
    assert!(desk.all(WORDS).is_empty(), "half of it");
    desk.last_caption_of(1, "and heard.");
    assert_eq!(desk.all(WORDS)[0]["transcript"], "Much was said and heard.");
}

#[test]
fn segments_come_to_who_asks_for_speakers() {
    for (model, count) in [("gpt-4o-transcribe", 0), ("gpt-4o-transcribe-diarize", 1)] {
        let mut desk = transcription();
        let input = json!({"transcription": {"model": model}});
        desk.client(json!({"type": "session.update", "session": {"audio": {"input": input}}}));
        hear_in_packets(&mut desk, &noise_f32(2.3, |t| (0.5..1.5).contains(&t)));
        desk.last_caption("All of it.");
        let segments = desk.all("conversation.item.input_audio_transcription.segment");
        assert_eq!(segments.len(), count, "{model}");
        for segment in segments {
            let seconds = desk.all(WORDS)[0]["usage"]["seconds"].clone();
            assert_eq!(
                (&segment["text"], &segment["start"], &segment["end"]),
                (&json!("All of it."), &json!(0.0), &seconds)
            );
            assert!(segment["id"].is_string() && segment["speaker"].is_string());
        }
    }
}

#[test]
fn detection_is_off_for_clients_that_cannot_say_null() {
    let mut desk = Desk::new(config());
    desk.client(json!({"type": "session.update", "session": {"audio": {"input": {"turn_detection": false}}}}));
    assert_eq!(desk.told[0]["session"]["audio"]["input"]["turn_detection"], json!(null));
}

#[test]
fn output_sound_that_is_not_there_is_cleared_without_a_word() {
    let mut desk = Desk::new(config());
    desk.client(json!({"type": "output_audio_buffer.clear"}));
    assert!(desk.told.is_empty());
    desk.client(json!({"type": "response.cancel", "event_id": "mine"}));
    let error = &desk.told[0]["error"];
    assert_eq!((&error["code"], &error["event_id"]), (&json!("response_cancel_not_active"), &json!("mine")));
    assert!(error["message"].as_str().unwrap().starts_with("Cancellation failed"), "a client looks for these words");
}

#[test]
fn a_session_that_asks_too_often_is_told_and_earns_more_with_time() {
    let mut config = config();
    config.limits.responses_per_minute = 2;
    let mut desk = Desk::new(config);
    for remaining in [1, 0] {
        desk.client(json!({"type": "response.create"}));
        let told = desk.all("rate_limits.updated").last().unwrap()["rate_limits"][0].clone();
        assert_eq!(
            (&told["name"], &told["limit"], &told["remaining"]),
            (&json!("requests"), &json!(2), &json!(remaining))
        );
        desk.done();
    }
    desk.client(json!({"type": "response.create"}));
    assert_eq!(desk.started.len(), 2, "the third is not computed");
    let ended = desk.all("response.done").last().unwrap()["response"].clone();
    assert_eq!(
        (&ended["status"], &ended["status_details"]["error"]["code"]),
        (&json!("failed"), &json!("rate_limit_exceeded"))
    );
    desk.now += Duration::from_secs(30);
    desk.client(json!({"type": "response.create"}));
    assert_eq!(desk.started.len(), 3);
}

/// What the engine is told of who asks.
async fn tenant(server: &mut crate::harness::Server, token: &str) -> Tenant {
    let mut client = server.connect_with(&[("authorization", &format!("Bearer {token}"))]).await.unwrap();
    client.expect("session.created").await;
    client.say("Who am I?").await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    let tenant = asked.request.tenant;
    asked.done().await;
    tenant
}

#[tokio::test]
async fn two_tokens_never_share_a_prefix() {
    let mut config = config();
    config.server.api_tokens = vec![Secret::new("one"), Secret::new("two")];
    let mut server = serve(config).await;
    let (one, again, two) =
        (tenant(&mut server, "one").await, tenant(&mut server, "one").await, tenant(&mut server, "two").await);
    assert_eq!(one, again);
    assert_ne!(one, two);
    // A key minted with a token belongs to its tenant.
    let (status, minted) = server.post("/v1/realtime/client_secrets", "Authorization: Bearer two\r\n", json!({})).await;
    assert_eq!(status, 200, "{minted}");
    assert_eq!(tenant(&mut server, minted["value"].as_str().unwrap()).await, two);
}

#[tokio::test]
async fn a_client_secret_opens_sessions_with_the_settings_it_is_bound_to() {
    let mut config = config();
    config.server.api_tokens = vec![Secret::new("sesame")];
    let mut server = serve(config).await;
    let path = "/v1/realtime/client_secrets";
    let input = json!({"format": {"type": "audio/pcmu"}, "turn_detection": null});
    let session = json!({"type": "realtime", "model": "gpt-realtime", "instructions": "Be brief.",
        "audio": {"input": input, "output": {"voice": "marin"}}});
    let wish = json!({"expires_after": {"anchor": "created_at", "seconds": 60}, "session": session});
    assert_eq!(server.post(path, "", wish.clone()).await.0, 401);
    let (status, minted) = server.post(path, "Authorization: Bearer sesame\r\n", wish).await;
    assert_eq!(status, 200, "{minted}");
    let key = minted["value"].as_str().unwrap().to_owned();
    assert!(key.starts_with("ek_") && minted["expires_at"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(
        (&minted["session"]["type"], &minted["session"]["instructions"]),
        (&json!("realtime"), &json!("Be brief."))
    );

    // As browsers bring it.
    let protocols = format!("realtime, openai-insecure-api-key.{key}");
    let mut client = server.connect_with(&[("sec-websocket-protocol", &protocols)]).await.unwrap();
    let created = client.expect("session.created").await;
    assert_eq!(created["session"]["instructions"], "Be brief.");
    assert_eq!(created["session"]["audio"]["input"]["format"], json!({"type": "audio/pcmu"}));
    spoken_in_ulaw(&mut client).await;
    assert!(server.asked().await.request.conversation.len() == 2, "the instructions and the sound");

    // It opens sessions, and no more: a leaked one must end.
    let (status, refused) = server.post(path, &format!("Authorization: Bearer {key}\r\n"), json!({})).await;
    assert_eq!((status, &refused["error"]["code"]), (403, &json!("client_secret_not_allowed")));
    // Nor is what others said on the phone for those who hold one.
    for path in ["/v1/calls", "/v1/calls/call_1", "/v1/calls/call_1/events", "/v1/calls/call_1/sound"] {
        let (status, _, refused) = server.get(path, &format!("Authorization: Bearer {key}\r\n")).await;
        assert!(status == 403 && refused.contains("client_secret_not_enough"), "{path}: {status} {refused}");
    }
    assert!(matches!(
        server.connect_with(&[("authorization", "Bearer ek_made_up")]).await,
        Err(Error::Http(refused)) if refused.status().as_u16() == 401
    ));
}

#[tokio::test]
async fn a_refused_update_leaves_the_format_as_it_was() {
    let server = serve(config()).await;
    let mut client = server.connect().await;
    client.manual().await;
    let ulaw = json!({"input": {"format": {"type": "audio/pcmu"}}});
    let nobody = json!({"type": "function", "name": "nobody"});
    let session = json!({"type": "realtime", "tool_choice": nobody, "audio": ulaw});
    client.send(json!({"type": "session.update", "session": session})).await;
    client.expect("error").await;
    // In µ-law these would be whole samples.
    client.raw(tokio_tungstenite::tungstenite::Message::binary(vec![0; 1601])).await;
    assert_eq!(client.expect("error").await["error"]["code"], "invalid_audio");
    client.update(json!({"type": "realtime", "audio": ulaw})).await;
    spoken_in_ulaw(&mut client).await;
}

/// The key's format holds from the first byte on.
async fn spoken_in_ulaw(client: &mut Client) {
    client.raw(tokio_tungstenite::tungstenite::Message::binary(vec![0x7f; 1601])).await;
    client.send(json!({"type": "input_audio_buffer.commit"})).await;
    client.expect_all(&["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]).await;
    client.send(json!({"type": "response.create"})).await;
    client.expect("response.created").await;
}

#[test]
fn a_response_that_ends_early_has_its_usage_too() {
    let mut desk = Desk::new(config());
    desk.client(json!({"type": "response.create"}));
    desk.engine(Event::Reply("half".into()));
    desk.client(json!({"type": "response.cancel"}));
    let usage = &desk.all("response.done")[0]["response"]["usage"];
    for field in ["total_tokens", "input_tokens", "output_tokens", "input_token_details", "output_token_details"] {
        assert!(usage.get(field).is_some(), "{field}");
    }
}
