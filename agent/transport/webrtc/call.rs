//! One call: a peer's sound and events go into a session, and what the session says goes onto the call's board.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::ws::close_code;
use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use webrtc::data_channel::{DataChannel, DataChannelEvent};
use webrtc::media_stream::track_remote::{TrackRemote, TrackRemoteEvent};
use webrtc::peer_connection::RTCPeerConnectionState;

use super::board::{Board, Next};
use super::peer::{Events, Opened, Peer};
use crate::apps::captions::Notes;
use crate::audio::jitter::{STALL, Stats};
use crate::audio::rtp::RtpIntake;
use crate::engine::Tenant;
use crate::metrics::count;
use crate::protocol::sdp::Offer;
use crate::transport::listen::Caller;
use crate::transport::websocket::Goodbye;
use crate::transport::{App, listen};

/// The channel that carries events, by the name that clients give it.
const CHANNEL: &str = "oai-events";
/// The channel of nudges; clients need not look at it.
const NUDGES: &str = "hearken-nudges";
/// One so long after the last event, and the next so long after it.
const NUDGE: Duration = Duration::from_millis(25);
/// So many: three are needed, and one may be lost too.
const TIMES: u32 = 4;
/// Questions about what was said that may wait: two or three come of a turn.
const QUESTIONS: usize = 8;
/// How long the last events may take to arrive.
const GOODBYE: Duration = Duration::from_secs(2);

/// One call, as its handlers know it.
pub(super) struct Call {
    pub(super) id: String,
    /// The path under which it is known, `/v1/realtime/calls/…` or `/v1/whip/…`.
    pub(super) location: String,
    /// Whose it is: nobody else finds it in the list.
    pub(super) tenant: Tenant,
    /// `chat`, `captions` or `call`.
    pub(super) kind: String,
    /// Whether the model is asked how each turn sounded.
    pub(super) is_noted: bool,
    /// Its conversation in the journal, if there is one, once its session has begun.
    pub(super) conversation: OnceLock<String>,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) peer: Peer,
    pub(super) board: Arc<Board>,
    /// What was last agreed on, and how often.
    pub(super) offer: Mutex<(Offer, u32)>,
    /// Told when the client hangs up.
    pub(super) hang_up: Notify,
    /// Told when it has not read what is gone from the board.
    pub(super) too_slow: Notify,
}

/// Serves a call to its end, and then closes its connection.
pub(super) async fn serve(app: Arc<App>, call: Arc<Call>, events: Events, caller: Caller, place: OwnedSemaphorePermit) {
    let (frames, queue) = mpsc::channel(app.config.limits.send_queue);
    let (ears, session) = listen::session(app.clone(), caller, frames);
    if app.journal.is_some() {
        // It is set here alone.
        let _ = call.conversation.set(ears.conversation.clone());
    }
    let (ask, questions) = mpsc::channel(QUESTIONS);
    let writer = tokio::spawn(write(call.clone(), queue, ask));
    let (open, opened) = watch::channel(None);
    let mut talker = tokio::spawn(talk(app.clone(), call.clone(), opened));
    tokio::pin!(session);
    let goodbye = tokio::select! {
        ended = &mut session => ended,
        goodbye = hear(&app, &call, ears, events, questions, &open) => {
            let ended = session.await;
            if ended.code == close_code::ERROR { ended } else { goodbye }
        }
    };
    tracing::info!(call = call.id, code = goodbye.code, reason = goodbye.reason, "call ends");
    let _ = writer.await;
    drop(open);
    if goodbye.drain {
        let _ = timeout(GOODBYE, &mut talker).await;
    }
    // What a peer that is gone never acknowledges would be waited for without end.
    talker.abort();
    call.peer.close().await;
    app.calls.forget(&call.id);
    drop(place);
}

/// Puts up what the session says, until it says no more; and asks what is to be asked about it.
async fn write(call: Arc<Call>, mut queue: mpsc::Receiver<String>, ask: mpsc::Sender<String>) {
    let mut notes = call.is_noted.then(Notes::default);
    while let Some(frame) = queue.recv().await {
        let asked = notes.as_mut().map(|notes| notes.see(&frame)).unwrap_or_default();
        call.board.put(frame);
        for question in asked {
            // Nobody hears it when the call is ending.
            let _ = ask.send(question).await;
        }
    }
    call.board.end();
}

/// The next event of a track, or of nothing, never.
async fn next_packet(track: Option<&Arc<dyn TrackRemote>>) -> Option<TrackRemoteEvent> {
    match track {
        Some(track) => track.poll().await,
        None => std::future::pending().await,
    }
}

async fn next_message(channel: Option<&Arc<dyn DataChannel>>) -> Option<DataChannelEvent> {
    match channel {
        Some(channel) => channel.poll().await,
        None => std::future::pending().await,
    }
}

/// Takes in sound and events until the peer hangs up, closes, vanishes or does not come.
async fn hear(
    app: &App,
    call: &Call,
    mut ears: listen::Ears,
    mut events: Events,
    mut questions: mpsc::Receiver<String>,
    open: &watch::Sender<Option<Arc<dyn DataChannel>>>,
) -> Goodbye {
    let born = Instant::now();
    let gone = Duration::from_secs(app.config.webrtc.gone_seconds);
    let mut intake = RtpIntake::default();
    let (mut sound, mut told) = (Vec::new(), Stats::default());
    let mut track: Option<Arc<dyn TrackRemote>> = None;
    let mut channel: Option<Arc<dyn DataChannel>> = None;
    let (mut is_connected, mut last) = (false, Duration::ZERO);
    let mut heard = Ok(());
    loop {
        if heard.is_err() {
            // The session has ended; its own goodbye is on the way.
            std::future::pending::<()>().await;
        }
        let fill = intake.deadline().map_or(born + Duration::from_secs(86_400), |at| born + at);
        tokio::select! {
            // Events first: what was said by text is not to wait behind a flood of sound.
            biased;
            () = call.hang_up.notified() => {
                ears.goodbye();
                return Goodbye::new(close_code::NORMAL, "the client hung up");
            }
            // As on a WebSocket: its session waits for it to come back.
            () = call.too_slow.notified() => {
                return Goodbye { drain: false, ..Goodbye::new(close_code::POLICY, "you read too slowly") };
            }
            changed = events.state.changed() => {
                let state = *events.state.borrow();
                tracing::debug!(call = call.id, %state, "connection");
                match state {
                    RTCPeerConnectionState::Connected => is_connected = true,
                    RTCPeerConnectionState::Failed => return Goodbye::new(close_code::AWAY, "the peer has vanished"),
                    _ if state == RTCPeerConnectionState::Closed || changed.is_err() => {
                        return Goodbye::new(close_code::NORMAL, "the peer has closed");
                    }
                    _ => {}
                }
            }
            Some(opened) = events.opened.recv() => match opened {
                // The crate does not tell that a track has ended: a new one takes over from one that is silent.
                Opened::Track(opened) if track.is_none() || born.elapsed() > last + STALL => {
                    if let Some(before) = track.replace(opened) {
                        Opened::Track(before).ignore();
                    }
                }
                Opened::Channel(opened) if channel.is_none() => {
                    if opened.label().await.is_ok_and(|label| label == CHANNEL) {
                        open.send_replace(Some(opened.clone()));
                        channel = Some(opened);
                    } else {
                        Opened::Channel(opened).ignore();
                    }
                }
                // One voice, and one channel of events.
                other => other.ignore(),
            },
            message = next_message(channel.as_ref()) => match message {
                Some(DataChannelEvent::OnMessage(message)) => {
                    heard = ears.text(&String::from_utf8_lossy(&message.data)).await;
                }
                None | Some(DataChannelEvent::OnClose) => {
                    return Goodbye::new(close_code::NORMAL, "the client closed its channel");
                }
                Some(_) => {}
            },
            Some(question) = questions.recv() => heard = ears.text(&question).await,
            packet = next_packet(track.as_ref()) => match packet {
                Some(TrackRemoteEvent::OnRtpPacket(packet)) => {
                    let (header, now) = (&packet.header, born.elapsed());
                    last = now;
                    intake.push(now, header.sequence_number, header.timestamp, &packet.payload, &mut sound);
                }
                None | Some(TrackRemoteEvent::OnEnded) => track = None,
                Some(_) => {}
            },
            () = sleep_until(fill) => intake.pull(born.elapsed(), &mut sound),
            () = sleep_until(born + gone), if !is_connected => {
                return Goodbye::new(close_code::AWAY, "the peer did not come");
            }
        }
        if !sound.is_empty() {
            ears.sound(&sound).await;
            sound.clear();
            tell(app, &mut told, intake.stats());
        }
    }
}

/// Adds what has happened to a stream since it was last told.
fn tell(app: &App, told: &mut Stats, now: Stats) {
    let add = |counter: &AtomicU64, now: u64, told: u64| counter.fetch_add(now - told, Relaxed);
    add(&app.metrics.rtp_packets, now.packets, told.packets);
    add(&app.metrics.rtp_late, now.late, told.late);
    add(&app.metrics.rtp_waited, now.waited.as_micros() as u64, told.waited.as_micros() as u64);
    add(&app.metrics.rtp_recovered, now.recovered, told.recovered);
    add(&app.metrics.rtp_concealed, now.concealed, told.concealed);
    *told = now;
}

/// Sends what is on the board by the data channel, from its first event on, once that is open.
///
/// Each event is followed by a few nudges on a channel of their own. SCTP sends a lost message again after a second, or as soon as the peer reports three
/// later ones; and after the last word of a reply, which everybody waits for, nothing comes that could be reported.
async fn talk(app: Arc<App>, call: Arc<Call>, mut opened: watch::Receiver<Option<Arc<dyn DataChannel>>>) {
    let Ok(channel) = opened.wait_for(Option::is_some).await.map(|channel| channel.clone()) else { return };
    let Some(channel) = channel else { return };
    let nudge = call.peer.open_unreliable(NUDGES).await.inspect_err(|error| tracing::debug!(%error, "no nudges")).ok();
    if let Some(nudge) = nudge.clone() {
        // What it tells of itself, an acknowledgement for each nudge, would fill its queue; then the crate hands on no message of any channel.
        Opened::Channel(nudge).ignore();
    }
    let (mut seen, mut nudges) = (0, 0);
    loop {
        let next = call.board.next(seen);
        let next = match nudge.as_ref().filter(|_| nudges > 0) {
            Some(nudge) => match timeout(NUDGE, next).await {
                Ok(next) => next,
                Err(_) => {
                    nudges -= 1;
                    let _ = nudge.send_text("").await;
                    continue;
                }
            },
            None => next.await,
        };
        match next {
            Next::Event(now_seen, event) => {
                if channel.send_text(&event).await.is_err() {
                    return;
                }
                (seen, nudges) = (now_seen, TIMES);
            }
            Next::Gone(_) => {
                count(&app.metrics.slow_clients);
                call.too_slow.notify_one();
                return;
            }
            Next::End => break,
        }
    }
    while channel.outstanding_bytes().await.is_ok_and(|bytes| bytes > 0) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
