//! Barge-in, cancel, and clients that vanish: a turn that nobody wants stops, and what was sent of it stays.

use hearken::engine::{Content, Event, Item, Role};
use serde_json::json;

use crate::harness::{config, noise, serve, soon};

#[tokio::test]
async fn a_client_that_vanishes_mid_turn_cancels_it() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    client.say("Tell me a long story.").await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    asked.say(Event::Reply("Once".into())).await;
    drop(client);
    asked.dropped().await;
    let closed = soon("the engine to hear of it", server.closed.recv()).await.unwrap();
    assert_eq!(closed, asked.request.session);
    // And the server is there for others.
    server.connect().await;
}

#[tokio::test]
async fn cancel_then_create_at_once_begins_a_new_turn() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    client.say("Hello.").await;
    client.send(json!({"type": "response.create"})).await;
    let first = server.asked().await;
    client.expect("response.created").await;
    // All three in one go; the answer to each is certain.
    client.send(json!({"type": "response.create", "event_id": "too early"})).await;
    client.send(json!({"type": "response.cancel"})).await;
    client.send(json!({"type": "response.create"})).await;
    let error = client.expect("error").await;
    assert_eq!(error["error"]["code"], "conversation_already_has_active_response");
    assert_eq!(error["error"]["event_id"], "too early");
    let cancelled = client.expect("response.done").await;
    assert_eq!(cancelled["response"]["status_details"], json!({"type": "cancelled", "reason": "client_cancelled"}));
    let second = client.expect("response.created").await;
    first.dropped().await;
    // A late word of the first turn has nowhere to go.
    assert!(first.events.send(Event::Reply("late".into())).await.is_err());
    let asked = server.asked().await;
    asked.say(Event::Reply("new".into())).await;
    client.expect_all(&["response.output_item.added", "conversation.item.added", "response.content_part.added"]).await;
    let delta = client.expect("response.output_text.delta").await;
    assert_eq!((&delta["delta"], &delta["response_id"]), (&json!("new"), &second["response"]["id"]));
    client.send(json!({"type": "response.cancel", "response_id": cancelled["response"]["id"]})).await;
    assert_eq!(client.expect("error").await["error"]["code"], "response_cancel_not_active");
}

#[tokio::test]
async fn speech_interrupts_and_exactly_what_was_sent_is_kept() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    client.update(json!({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}})).await;
    client.say("Go on.").await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    asked.say(Event::Reply("This is ".into())).await;
    asked.say(Event::Reply("a long".into())).await;
    client.expect_all(&["response.created", "response.output_item.added", "conversation.item.added"]).await;
    client
        .expect_all(&["response.content_part.added", "response.output_text.delta", "response.output_text.delta"])
        .await;

    client.raw(tokio_tungstenite::tungstenite::Message::binary(noise(2.5, |t| (0.5..1.5).contains(&t)))).await;
    client.expect("input_audio_buffer.speech_started").await;
    let end = client
        .expect_all(&[
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "conversation.item.done",
            "response.done",
        ])
        .await;
    assert_eq!((&end[0]["text"], &end[3]["item"]["status"]), (&json!("This is a long"), &json!("incomplete")));
    assert_eq!(end[4]["response"]["status"], "cancelled");
    assert_eq!(end[4]["response"]["status_details"]["reason"], "turn_detected");
    asked.dropped().await;

    client.expect("input_audio_buffer.speech_stopped").await;
    let next = server.asked().await;
    let kept = Item::Message { role: Role::Assistant, content: vec![Content::Text("This is a long".into())] };
    assert_eq!(next.request.conversation[1], kept);
}

#[tokio::test]
async fn speech_that_may_not_interrupt_is_answered_afterwards() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    let turns = json!({"type": "server_vad", "interrupt_response": false});
    let input = json!({"format": {"type": "audio/pcm", "rate": 16000}, "turn_detection": turns});
    client.update(json!({"audio": {"input": input}})).await;
    client.say("Go on.").await;
    client.send(json!({"type": "response.create"})).await;
    let first = server.asked().await;
    client.expect("response.created").await;
    client.raw(tokio_tungstenite::tungstenite::Message::binary(noise(2.5, |t| (0.5..1.5).contains(&t)))).await;
    client.expect_all(&["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"]).await;
    client.expect_all(&["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]).await;
    first.done().await;
    client.expect_all(&["response.done", "response.created"]).await;
    assert_eq!(server.asked().await.request.conversation.len(), 2);
}
