//! Phone lines: Twilio Media Streams on a WebSocket at /v1/telephony/twilio. Each track is a party of a call.
//!
//! Twilio sets no headers, so the token comes as the stream's parameter `token`, in its first message but one; until then the connection may do nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::{IntoResponse as _, Response};
use tokio::time::timeout;

use super::App;
use super::http::refuse;
use super::visit::{Refused, Visit};
use super::websocket::{GONE, GOODBYE, Goodbye};
use crate::apps::calls::live::{Live, Opening};
use crate::audio::intake::{Format, Intake};
use crate::metrics::count;
use crate::protocol::openai::ErrorBody;
use crate::protocol::twilio::{self, Direction, Start, Track, TwilioError};

/// The door leaves this path to the stream's own token.
pub(super) const PATH: &str = "/v1/telephony/twilio";
/// A stream says what it is by then.
const HELLO: Duration = Duration::from_secs(10);
/// A message holds 20 ms of sound; nobody needs more than this.
const LARGEST: usize = 64 << 10;

pub(super) async fn upgrade(
    State(app): State<Arc<App>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Refused> {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => {
            let error = ErrorBody::invalid("websocket_expected", rejection.body_text());
            return Ok(refuse(rejection.status(), &error).into_response());
        }
    };
    let visit = Visit::begin(app)?;
    Ok(upgrade.max_message_size(LARGEST).max_frame_size(LARGEST).on_upgrade(|socket| stream(socket, visit)))
}

async fn stream(mut socket: WebSocket, visit: Visit) {
    let app = visit.app.clone();
    let goodbye = match timeout(HELLO, hello(&mut socket, &app)).await {
        Err(_) => Goodbye::new(close_code::POLICY, "the stream has not started"),
        Ok(Err(goodbye)) => goodbye,
        Ok(Ok((start, tenant))) => {
            let name = |track: &Direction| match track {
                Direction::Inbound => start.parameter("inbound").unwrap_or("customer").to_owned(),
                Direction::Outbound => start.parameter("outbound").unwrap_or("agent").to_owned(),
            };
            let opening = Opening {
                id: format!("call_{}", visit.suffix),
                source: "twilio",
                tenant,
                names: start.tracks.iter().map(name).collect(),
                sessions: (0..=start.tracks.len()).map(|_| app.next_session().0).collect(),
                is_patient: false,
            };
            let (live, work) = app.hub.open(opening);
            tracing::info!(call = live.record().id(), stream = start.stream, "a phone line begins");
            tokio::spawn(async move {
                work.await;
                drop(visit);
            });
            let mut ending = app.ending.clone();
            tokio::select! {
                goodbye = Line::new(start, live).listen(&mut socket) => goodbye,
                _ = ending.wait_for(|ending| *ending) => Goodbye::new(close_code::AWAY, "the server is ending"),
            }
        }
    };
    if goodbye.code != close_code::NORMAL {
        count(&app.metrics.client_errors);
    }
    let frame = CloseFrame { code: goodbye.code, reason: goodbye.reason.into() };
    let _ = timeout(GOODBYE, async {
        socket.send(Message::Close(Some(frame))).await.ok();
        // The peer's own close; until then the close is not clean.
        while let Some(Ok(_)) = socket.recv().await {}
    })
    .await;
}

/// The next text frame; how the connection ends when there is none.
async fn text(socket: &mut WebSocket) -> Result<twilio::Message, Goodbye> {
    loop {
        match timeout(GONE, socket.recv()).await {
            Err(_) => return Err(Goodbye::new(close_code::AWAY, "nothing was heard from you")),
            Ok(None | Some(Ok(Message::Close(_)))) => return Err(Goodbye::new(close_code::NORMAL, "")),
            Ok(Some(Err(_))) => return Err(Goodbye::new(close_code::PROTOCOL, "the connection broke")),
            Ok(Some(Ok(Message::Text(text)))) => return twilio::parse(text.as_str()).map_err(|e| broken(&e)),
            Ok(Some(Ok(Message::Binary(_)))) => {
                return Err(Goodbye::new(close_code::UNSUPPORTED, "a media stream is text frames"));
            }
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
        }
    }
}

fn broken(error: &TwilioError) -> Goodbye {
    tracing::info!(%error, "a phone line is refused");
    Goodbye::new(
        close_code::INVALID,
        match error {
            TwilioError::Format => "only audio/x-mulaw at 8000 Hz is taken",
            TwilioError::Leap => "the timestamp leaps",
            TwilioError::TooLarge => "the chunk is too large",
            _ => "not a message of a media stream",
        },
    )
}

/// Waits for the start, and asks for its token.
async fn hello(socket: &mut WebSocket, app: &App) -> Result<(Start, crate::engine::Tenant), Goodbye> {
    loop {
        match text(socket).await? {
            twilio::Message::Connected | twilio::Message::Other => {}
            twilio::Message::Start(start) => {
                let access = app.guard.access(start.parameter("token").into_iter()).map_err(|_| {
                    count(&app.metrics.refused_auth);
                    Goodbye::new(close_code::POLICY, "the parameter `token` is missing or wrong")
                })?;
                return Ok((start, access.tenant));
            }
            twilio::Message::Stop => return Err(Goodbye::new(close_code::NORMAL, "")),
            _ => return Err(Goodbye::new(close_code::POLICY, "the stream has not started")),
        }
    }
}

/// A stream that has started.
struct Line {
    directions: Vec<Direction>,
    tracks: Vec<(Track, Intake)>,
    live: Live,
    bytes: Vec<u8>,
    samples: Vec<f32>,
}

impl Line {
    fn new(start: Start, live: Live) -> Self {
        let tracks = start.tracks.iter().map(|_| (Track::default(), Intake::new(Format::Ulaw))).collect();
        Self { directions: start.tracks, tracks, live, bytes: Vec::new(), samples: Vec::new() }
    }

    /// Hears it to its end.
    async fn listen(mut self, socket: &mut WebSocket) -> Goodbye {
        let goodbye = loop {
            match text(socket).await {
                Ok(twilio::Message::Media(media)) => {
                    // A track that was not announced is nobody's.
                    let Some(party) = self.directions.iter().position(|track| *track == media.track) else { continue };
                    let (track, _) = &mut self.tracks[party];
                    if let Err(e) = track.push(media.chunk, media.timestamp, media.payload, &mut self.bytes) {
                        break broken(&e);
                    }
                    if !self.hear(party, false) || !self.wait(party, media.timestamp) {
                        break Goodbye::new(close_code::POLICY, "the call is too long");
                    }
                }
                Ok(twilio::Message::Mark(name)) => self.live.mark(&name),
                Ok(twilio::Message::Dtmf) => self.live.mark("a key was pressed"),
                Ok(twilio::Message::Stop) => break Goodbye::new(close_code::NORMAL, ""),
                Ok(twilio::Message::Start(_)) => {
                    break Goodbye::new(close_code::POLICY, "the stream has started already");
                }
                Ok(twilio::Message::Connected | twilio::Message::Other) => {}
                Err(goodbye) => break goodbye,
            }
        };
        for party in 0..self.tracks.len() {
            // A clock that leaps at the very end leaves nothing out that was heard.
            drop(self.tracks[party].0.finish(&mut self.bytes));
            self.hear(party, true);
        }
        let (lost, late) = self.tracks.iter().fold((0, 0), |sum, (track, _)| (sum.0 + track.lost, sum.1 + track.late));
        tracing::info!(call = self.live.record().id(), lost, late, "a phone line ends");
        goodbye
    }

    /// The clock that `party` shows goes for all: who sends nothing meanwhile is silent.
    fn wait(&mut self, party: usize, clock: u64) -> bool {
        (0..self.tracks.len()).filter(|other| *other != party).all(|other| {
            self.tracks[other].0.wait(clock, &mut self.bytes);
            self.bytes.is_empty() || self.hear(other, false)
        })
    }

    fn hear(&mut self, party: usize, is_last: bool) -> bool {
        let (_, intake) = &mut self.tracks[party];
        self.samples.clear();
        // µ-law is what any byte is.
        drop(intake.push(&self.bytes, &mut self.samples));
        if is_last {
            intake.flush(&mut self.samples);
        }
        self.bytes.clear();
        self.live.hear(party, &self.samples)
    }
}
