//! Nonsense from outside is answered and survived.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::harness::{Client, config, noise, serve};

/// The connection still works.
async fn alive(client: &mut Client) {
    client.update(json!({})).await;
}

#[tokio::test]
async fn malformed_and_unknown_events_are_errors_and_the_connection_stays() {
    let server = serve(config()).await;
    let mut client = server.connect().await;
    for text in ["", "{", "null", "[]", "7", "{\"type\":7}", "{\"type\":\"session.update\"", &"[".repeat(100_000)] {
        client.raw(Message::text(text)).await;
        let error = client.expect("error").await;
        assert_eq!(error["error"]["type"], "invalid_request_error", "{text:.40}");
    }
    client.send(json!({"type": "no.such.event", "event_id": "mine"})).await;
    let error = client.expect("error").await;
    assert_eq!((&error["error"]["param"], &error["error"]["event_id"]), (&json!("type"), &json!("mine")));
    alive(&mut client).await;
}

#[tokio::test]
async fn wrong_values_are_named() {
    let server = serve(config()).await;
    let mut client = server.connect().await;
    let session = |session| json!({"type": "session.update", "session": session});
    let input = |input| session(json!({"audio": {"input": input}}));
    for (event, param) in [
        (json!({"type": "session.update"}), "."),
        (session(json!({"type": "dream"})), "session.type"),
        (session(json!({"tool_choice": "perhaps"})), "session.tool_choice"),
        (session(json!({"tools": [{"type": "mcp", "server_label": "x"}]})), "session.tools[0].type"),
        (session(json!({"tools": [{"type": "function", "name": "no spaces"}]})), "session.tools[0].name"),
        (input(json!({"transcription": {"prompt": "x".repeat(20_000)}})), "session.audio.input.transcription"),
        (session(json!({"turn_detection": null})), "session.turn_detection"),
        (session(json!({"max_output_tokens": -1})), "session.max_output_tokens"),
        (session(json!({"reasoning": {"effort": "heroic"}})), "session.reasoning.effort"),
        (input(json!({"format": {"type": "audio/pcm", "rate": 1}})), "session.audio.input.format.rate"),
        (input(json!({"format": {"type": "audio/mp3"}})), "session.audio.input.format"),
        (input(json!({"turn_detection": {"type": "server_vad", "threshold": 7}})), "threshold"),
        (input(json!({"turn_detection": {"type": "psychic"}})), "turn_detection"),
        (json!({"type": "input_audio_buffer.append"}), "."),
        (json!({"type": "input_audio_buffer.append", "audio": "%%%"}), "audio"),
        (json!({"type": "conversation.item.create", "item": {"type": "message"}}), "item.role"),
        (json!({"type": "conversation.item.create", "item": {"type": "dream"}}), "item.type"),
        (
            json!({"type": "conversation.item.create", "item": {"type": "message", "role": "user",
                   "content": [{"type": "input_image", "image_url": "x"}]}}),
            "item.content[0]",
        ),
        (json!({"type": "response.create", "response": {"conversation": "all"}}), "response.conversation"),
        (
            json!({"type": "response.create", "response": {"input": [{"type": "item_reference", "id": "x"}]}}),
            "response.input",
        ),
    ] {
        client.send(event.clone()).await;
        let error = client.expect("error").await;
        let named = error["error"]["param"].as_str().unwrap_or_default();
        assert!(named.contains(param), "{event} should name {param}: {error}");
    }
    client.send(json!({"type": "response.cancel"})).await;
    assert_eq!(client.expect("error").await["error"]["code"], "response_cancel_not_active");
    alive(&mut client).await;
}

#[tokio::test]
async fn sound_may_come_before_anything_else_and_may_be_broken() {
    let server = serve(config()).await;
    let mut client = server.connect().await;
    client.raw(Message::binary(vec![0; 960])).await;
    client.raw(Message::binary(vec![0; 961])).await;
    assert_eq!(client.expect("error").await["error"]["code"], "invalid_audio");
    client.raw(Message::binary(vec![])).await;
    alive(&mut client).await;

    client.update(json!({"audio": {"input": {"format": {"type": "audio/opus"}}}})).await;
    for garbage in [vec![], vec![0xff], vec![0xff; 2000], b"OggS, not a packet".to_vec()] {
        client.raw(Message::binary(garbage.clone())).await;
        // Any bytes may happen to be a packet; what matters is an answer or none, and life after it.
        client.send(json!({"type": "input_audio_buffer.clear"})).await;
        let event = client.event().await;
        if event["type"] == "error" {
            assert_eq!(event["error"]["code"], "invalid_opus");
            client.expect("input_audio_buffer.cleared").await;
        } else {
            assert!(!garbage.is_empty() && event["type"] == "input_audio_buffer.cleared", "{event}");
        }
    }
}

#[tokio::test]
async fn what_is_too_long_is_refused() {
    let mut config = config();
    config.limits.ring_seconds = 2.0;
    config.limits.buffered_seconds = 3.0;
    config.limits.max_message_bytes = 200_000;
    let server = serve(config).await;
    let mut client = server.connect().await;
    client.manual().await;
    client.raw(Message::binary(noise(2.5, |_| true))).await;
    assert_eq!(client.expect("error").await["error"]["code"], "input_audio_too_long");
    // One at a time, or the ring would drop what the session has not yet taken.
    for told in [false, false, true, false] {
        client.raw(Message::binary(noise(1.5, |_| true))).await;
        if told {
            assert_eq!(client.expect("error").await["error"]["code"], "input_audio_buffer_full");
        }
        client.update(json!({})).await;
    }
    client.raw(Message::binary(vec![0; 200_002])).await;
    let close = client.close_frame().await.unwrap();
    assert_eq!(close.code, CloseCode::Size);
}

#[tokio::test]
async fn a_full_conversation_says_so() {
    let mut config = config();
    config.limits.conversation_items = 2;
    let mut server = serve(config).await;
    let mut client = server.connect().await;
    client.say("one").await;
    client.send(json!({"type": "response.create"})).await;
    server.asked().await.done().await;
    client.expect_all(&["response.created", "response.done"]).await;
    client.say("two").await;
    let content = json!([{"type": "input_text", "text": "three"}]);
    client.send(json!({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}})).await;
    assert_eq!(client.expect("error").await["error"]["code"], "conversation_full");
    client.send(json!({"type": "response.create"})).await;
    assert_eq!(client.expect("error").await["error"]["code"], "conversation_full");
}

#[tokio::test]
async fn a_head_that_does_not_come_holds_no_connection() {
    let server = serve(config()).await;
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow:").await.unwrap();
    let mut told = Vec::new();
    // Half a minute, and some for a busy machine.
    let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut told)).await;
    assert!(ended.is_ok(), "{:?}", String::from_utf8_lossy(&told));
    assert_eq!(server.get("/health", "").await.0, 200);
}

#[tokio::test]
async fn what_is_wrong_in_a_query_or_too_large_is_told_in_json() {
    let server = serve(config()).await;
    for path in ["/v1/conversations?limit=ten", "/v1/conversations/x/events?after=first"] {
        let (status, _, body) = server.get(path, "").await;
        let body: serde_json::Value = serde_json::from_str(&body).expect(&body);
        assert_eq!((status, &body["error"]["code"]), (400, &json!("invalid_value")), "{path}");
    }
    let large = " ".repeat(100_000);
    let headers = format!("Content-Length: {}\r\n", large.len());
    let (status, _, body) = server.request("POST", "/v1/realtime/client_secrets", &headers, &large).await;
    let body: serde_json::Value = serde_json::from_str(&body).expect(&body);
    assert_eq!((status, &body["error"]["code"]), (413, &json!("request_too_large")));
}
