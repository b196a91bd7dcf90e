//! An echo over the server's own WebSocket library, for the conformance cases that need an answer. No part of the product.

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::get;
use tokio::net::TcpListener;

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if matches!(message, Message::Text(_) | Message::Binary(_)) && socket.send(message).await.is_err() {
            return;
        }
    }
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let upgrade = |upgrade: WebSocketUpgrade| async {
        upgrade.max_message_size(64 << 20).max_frame_size(64 << 20).on_upgrade(echo)
    };
    axum::serve(listener, Router::new().route("/", get(upgrade))).await
}
