//! The Realtime API on a WebSocket: three tasks a connection, joined by bounded queues.
//!
//! ```text
//!  socket -> read: parse, decode, resample -> ring (sound) ┐
//!                                          -> queue (events)┴-> session task <-> engine
//!  socket <- write <- queue (frames) <----------------------------┘
//! ```
//! The reader never waits for the session's thinking, because the session never waits for anything: it takes an input, says what is to be done, and goes
//! on. When the queue of frames is full, the client reads too slowly and is disconnected. When the ring is full, the oldest sound goes, counted. A panic
//! in one session ends that task alone; its client is told 1011.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::auth::Access;
use super::conversations::Back;
use super::http::refuse;
use super::listen::Caller;
use super::visit::Queried;
use super::{App, listen, visit};
use crate::protocol::openai::{ErrorBody, Kind};

/// A ping each, so that proxies keep the connection and a vanished peer is noticed.
const PING: Duration = Duration::from_secs(20);
/// Without any frame, a pong included, for so long, the peer is gone.
pub(super) const GONE: Duration = Duration::from_secs(75);
/// How long a goodbye may take.
pub(super) const GOODBYE: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
pub(super) struct Params {
    intent: Option<String>,
    #[serde(flatten)]
    back: Back,
}

/// Why a connection ends, as its close frame says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Goodbye {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    /// Whether what is still queued is sent first.
    pub(super) drain: bool,
}

impl Goodbye {
    pub(super) const fn new(code: u16, reason: &'static str) -> Self {
        Self { code, reason, drain: true }
    }
}

pub(super) async fn upgrade(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    Queried(params): Queried<Params>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => {
            return refuse(rejection.status(), &ErrorBody::invalid("websocket_expected", rejection.body_text()))
                .into_response();
        }
    };
    let kind = match params.intent.as_deref() {
        None | Some("conversation") => Kind::Realtime,
        Some("transcription") => Kind::Transcription,
        Some(_) => {
            let error =
                ErrorBody::invalid("invalid_value", "An intent is `conversation` or `transcription`.").at("intent");
            return refuse(StatusCode::BAD_REQUEST, &error).into_response();
        }
    };
    let caller = Caller::new(access.tenant, listen::settings(&app, &access, kind));
    let caller = match params.back.caller(&app, caller).await {
        Ok(caller) => caller,
        Err(refused) => return refused.into_response(),
    };
    // The place is taken before the upgrade, so that a refusal is plain HTTP that every client can read.
    let place = match visit::place(&app) {
        Ok(place) => place,
        Err(refused) => return refused.into_response(),
    };
    let most = app.config.limits.max_message_bytes;
    upgrade
        .protocols(["realtime"])
        .max_message_size(most)
        .max_frame_size(most)
        .on_upgrade(async move |socket| {
            connection(socket, app, caller).await;
            drop(place);
        })
        .into_response()
}

async fn connection(socket: WebSocket, app: Arc<App>, caller: Caller) {
    let (sink, mut stream) = socket.split();
    let (frames, queue) = mpsc::channel(app.config.limits.send_queue);
    let (hang_up, hung_up) = oneshot::channel();
    let (ears, session) = listen::session(app, caller, frames);
    let writer = tokio::spawn(write(sink, queue, hung_up));
    tokio::pin!(session);
    let goodbye = tokio::select! {
        ended = &mut session => ended,
        goodbye = read(&mut stream, ears) => {
            // Reading is over, and with it the session's input: it ends by itself and gives its turn up, or waits for its client to come back.
            let ended = session.await;
            if ended.code == close_code::ERROR { ended } else { goodbye }
        }
    };
    let _ = hang_up.send(goodbye);
    // The peer's own close comes back through the reader; until then the close is not clean.
    let _ = timeout(GOODBYE, async { while let Some(Ok(_)) = stream.next().await {} }).await;
    let _ = timeout(GOODBYE, writer).await;
}

/// Takes frames until the peer closes, vanishes or breaks the protocol.
async fn read(stream: &mut SplitStream<WebSocket>, mut ears: listen::Ears) -> Goodbye {
    loop {
        let frame = match timeout(GONE, stream.next()).await {
            Err(_) => return Goodbye::new(close_code::AWAY, "nothing was heard from you"),
            Ok(None) => return Goodbye::new(close_code::NORMAL, ""),
            Ok(Some(Err(error))) => return broken(&error),
            Ok(Some(Ok(frame))) => frame,
        };
        let heard = match frame {
            Message::Text(text) => ears.text(text.as_str()).await,
            Message::Binary(bytes) => ears.binary(&bytes).await,
            Message::Ping(_) | Message::Pong(_) => Ok(()),
            Message::Close(frame) => {
                // A page that is left or reloaded says 1001.
                if frame.is_none_or(|frame| matches!(frame.code, close_code::NORMAL | close_code::STATUS)) {
                    ears.goodbye();
                }
                return Goodbye::new(close_code::NORMAL, "");
            }
        };
        if heard.is_err() {
            // The session has ended; its own goodbye is on the way.
            std::future::pending::<()>().await;
        }
    }
}

fn broken(error: &axum::Error) -> Goodbye {
    let text = error.to_string();
    if text.contains("too long") || text.contains("too big") || text.contains("exceed") {
        Goodbye::new(close_code::SIZE, "the message is too large")
    } else if text.to_ascii_lowercase().contains("utf-8") {
        Goodbye::new(close_code::INVALID, "text frames are UTF-8")
    } else {
        Goodbye::new(close_code::PROTOCOL, "the connection broke")
    }
}

/// Sends frames until it is told to hang up or the peer is gone.
async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    mut queue: mpsc::Receiver<String>,
    mut hung_up: oneshot::Receiver<Goodbye>,
) {
    let mut ping = tokio::time::interval_at(Instant::now() + PING, PING);
    let goodbye = loop {
        let message = tokio::select! {
            goodbye = &mut hung_up => break goodbye,
            Some(frame) = queue.recv() => Message::Text(frame.into()),
            _ = ping.tick() => Message::Ping(Default::default()),
        };
        tokio::select! {
            // Sending first: once it has been polled the frame is in the sink, which sends it before what comes next.
            biased;
            sent = sink.send(message) => if sent.is_err() { return },
            goodbye = &mut hung_up => break goodbye,
        }
    };
    let Ok(goodbye) = goodbye else { return };
    let last = async {
        while let Some(frame) = queue.recv().await.filter(|_| goodbye.drain) {
            sink.send(Message::Text(frame.into())).await?;
        }
        let frame = CloseFrame { code: goodbye.code, reason: goodbye.reason.into() };
        sink.send(Message::Close(Some(frame))).await?;
        sink.close().await
    };
    // An error means that the peer has closed already.
    let _ = timeout(GOODBYE, last).await;
}
