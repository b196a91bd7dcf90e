//! How connections end: cleanly, each for its reason, and none because of another.

use std::sync::atomic::Ordering;

use futures_util::{SinkExt as _, StreamExt as _};
use hearken::engine::Event;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::harness::{config, serve, soon};

#[tokio::test]
async fn at_shutdown_every_client_is_told_1001_and_serve_returns() {
    let mut server = serve(config()).await;
    let mut clients = [server.connect().await, server.connect().await];
    clients[0].say("Long.").await;
    clients[0].send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    server.stop.take().unwrap().send(()).unwrap();
    for client in &mut clients {
        assert_eq!(client.close_frame().await.unwrap().code, CloseCode::Away);
        assert!(soon("the end", client.socket.next()).await.is_none(), "a clean close");
    }
    asked.dropped().await;
    soon("serve to return", server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_may_close_and_is_answered() {
    let mut server = serve(config()).await;
    let mut client = server.connect().await;
    let bye = CloseFrame { code: CloseCode::Normal, reason: "bye".into() };
    client.socket.close(Some(bye)).await.unwrap();
    assert_eq!(client.close_frame().await.unwrap().code, CloseCode::Normal);
    assert!(soon("the end", client.socket.next()).await.is_none(), "a clean close");
    soon("the session's end", server.closed.recv()).await;
}

#[tokio::test]
async fn i6_a_session_that_panics_ends_alone() {
    let mut server = serve(config()).await;
    let mut unlucky = server.connect().await;
    let mut other = server.connect().await;
    server.engine.panics.store(true, Ordering::Release);
    unlucky.say("Boom.").await;
    unlucky.send(json!({"type": "response.create"})).await;
    unlucky.expect("response.created").await;
    assert_eq!(unlucky.close_frame().await.unwrap().code, CloseCode::Error);
    server.engine.panics.store(false, Ordering::Release);
    soon("its memory to be given back", server.closed.recv()).await;
    other.say("Still here?").await;
    other.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    asked.say(Event::Reply("Yes.".into())).await;
    asked.done().await;
    let (_, _, metrics) = server.get("/metrics", "").await;
    assert!(metrics.contains("hearken_session_panics_total 1\n"));
}

#[tokio::test]
async fn i5_a_client_that_does_not_read_is_disconnected() {
    let mut config = config();
    config.limits.send_queue = 16;
    let mut server = serve(config).await;
    let mut client = server.connect().await;
    client.say("Flood me.").await;
    client.send(json!({"type": "response.create"})).await;
    let asked = server.asked().await;
    // Large enough to fill the kernel's buffers as well, in whatever size they are.
    let word = "x".repeat(1 << 20);
    for _ in 0..4096 {
        if asked.events.send(Event::Reply(word.clone())).await.is_err() {
            break;
        }
    }
    soon("the session's end", server.closed.recv()).await;
    let (_, _, metrics) = server.get("/metrics", "").await;
    assert!(metrics.contains("hearken_slow_clients_total 1\n"), "{metrics}");
    // Whoever reads on at last finds what was sent and then an end, by close frame or by the connection.
    let _ = client.socket.send(Message::Ping(Default::default())).await;
    while let Some(Ok(message)) = soon("the end", client.socket.next()).await {
        if let Message::Close(Some(frame)) = message {
            assert_eq!(frame.code, CloseCode::Policy);
        }
    }
}

#[tokio::test]
async fn a_silent_client_is_let_go() {
    let mut config = config();
    config.limits.idle_seconds = 1;
    let server = serve(config).await;
    let mut client = server.connect().await;
    let close = client.close_frame().await.unwrap();
    assert_eq!((close.code, close.reason.as_str()), (CloseCode::Normal, "nothing was heard from you"));
}
