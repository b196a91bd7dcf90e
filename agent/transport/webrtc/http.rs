//! How calls begin, change and end: an offer is posted, an answer comes back, and `Location` names the call from then on.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, FromRequest as _, Multipart, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use futures_util::stream::{self, Stream};
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify};
use tokio::time::timeout;

use super::board::{Board, Next};
use super::call::{self, Call};
use super::peer::{Events, Peer};
use crate::config::Effort;
use crate::metrics::count;
use crate::protocol::openai::{ErrorBody, Kind, Refusal, SessionUpdate, parse_session};
use crate::protocol::sdp::{self, Offer, SdpError};
use crate::transport::auth::Access;
use crate::transport::conversations::{self, Back};
use crate::transport::listen::Caller;
use crate::transport::visit::{Queried, Refused};
use crate::transport::{App, listen, visit};

/// An offer, a session's settings with all tools, and what multipart adds.
const MOST_BODY: usize = 2 << 20;
const SDP: &str = "application/sdp";
const WHIP: &str = "/v1/whip";
const FRAGMENT: &str = "application/trickle-ice-sdpfrag";

/// /v1/realtime/calls and /v1/whip: the same calls, by the names and manners of either.
pub(in crate::transport) fn routes() -> [(&'static str, MethodRouter<Arc<App>>); 7] {
    let start = |base| post(move |app, access, back, request| begin(base, app, access, back, request)).options(options);
    let call = || delete(hang_up).patch(change).options(options);
    let bounded = |methods: MethodRouter<Arc<App>>| methods.layer(DefaultBodyLimit::max(MOST_BODY));
    [
        ("/v1/realtime/calls", bounded(start("/v1/realtime/calls")).get(list)),
        ("/v1/realtime/calls/{id}", bounded(call())),
        ("/v1/realtime/calls/{id}/hangup", post(hang_up)),
        ("/v1/realtime/calls/{id}/events", get(events)),
        (WHIP, bounded(start(WHIP))),
        ("/v1/whip/{id}", bounded(call())),
        ("/v1/whip/{id}/events", get(events)),
    ]
}

fn bad(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refused {
    Refused::new(status, ErrorBody::invalid(code, message))
}

impl From<SdpError> for Refused {
    fn from(error: SdpError) -> Self {
        let status = match error {
            SdpError::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            _ if error.is_unmet() => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::BAD_REQUEST,
        };
        bad(status, "invalid_sdp", error.to_string())
    }
}

fn unknown() -> Refused {
    bad(StatusCode::NOT_FOUND, "not_found", "There is no such call, or it has ended.")
}

fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// The offer, and what it says of the session.
async fn offered(request: Request) -> Result<(Bytes, Option<SessionUpdate>), Refused> {
    match content_type(request.headers()).to_ascii_lowercase().as_str() {
        SDP => Ok((Bytes::from_request(request, &()).await?, None)),
        "multipart/form-data" => parts(request).await,
        _ => {
            let message = "Send application/sdp, or multipart/form-data with sdp and session.";
            Err(bad(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
        }
    }
}

async fn parts(request: Request) -> Result<(Bytes, Option<SessionUpdate>), Refused> {
    let broken = |status, text: String| bad(status, "invalid_multipart", text);
    let mut form = Multipart::from_request(request, &()).await.map_err(|e| broken(e.status(), e.body_text()))?;
    let (mut offer, mut session) = (None, None);
    while let Some(field) = form.next_field().await.map_err(|e| broken(e.status(), e.body_text()))? {
        let name = field.name().unwrap_or_default().to_owned();
        let bytes = field.bytes().await.map_err(|e| broken(e.status(), e.body_text()))?;
        match name.as_str() {
            "sdp" => offer = Some(bytes),
            "session" => session = Some(bytes),
            _ => {}
        }
    }
    let offer = offer.ok_or_else(|| broken(StatusCode::BAD_REQUEST, "The form has no field `sdp`.".into()))?;
    Ok((offer, session.map(|session| settings(&session)).transpose()?))
}

/// Reads a form with an offer and settings, as POST does; the length of what stood in it. For tests/fuzz.
#[doc(hidden)]
pub async fn form(content_type: &str, body: Vec<u8>) -> Option<usize> {
    let request = Request::builder().header(header::CONTENT_TYPE, content_type).body(body.into()).ok()?;
    let (offer, _) = offered(request).await.ok()?;
    Offer::parse(&offer).ok().map(|offer| offer.text().len())
}

fn settings(session: &[u8]) -> Result<SessionUpdate, Refusal> {
    let invalid = |e: serde_json::Error| ErrorBody::invalid("invalid_json", e.to_string()).at("session");
    parse_session(serde_json::from_slice(session).map_err(invalid)?)
}

/// POST: a call begins.
async fn begin(
    base: &'static str,
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    Queried(back): Queried<Back>,
    request: Request,
) -> Result<Response, Refused> {
    let place = visit::place(&app)?;
    let (offer, update) = timeout(visit::BODY, offered(request)).await.map_err(|_| Refused::slow())??;
    let offer = Offer::parse(&offer)?;
    let mut settings = listen::settings(&app, &access, Kind::Realtime);
    if back.is_captions() {
        // Studio software cannot say what it wants but by the address that it is given.
        settings.include.push("hearken.captions.tentative".into());
        settings.turn_detection.iter_mut().for_each(|detection| detection.create_response = false);
    }
    // Nobody asks on behalf of a stream.
    let is_noted = base == WHIP && back.is_noted();
    if is_noted {
        settings.include.push("reasoning.text".into());
        settings.effort = Effort::Low;
    }
    if let Some(update) = update {
        settings.apply(update, &app.config.voice);
    }
    let caller = match back.caller(&app, Caller::new(access.tenant, settings)).await {
        Ok(caller) => caller,
        Err(refused) => return Ok(refused.into_response()),
    };
    // A task of its own: a client that goes away in the middle ends this request, and must not leave half a connection behind.
    let begun = tokio::spawn(async move {
        let (call, events, answer) = open(&app, offer, base, &caller, is_noted).await?;
        let mut headers = HeaderMap::new();
        set(&mut headers, header::LOCATION, &call.location);
        set(&mut headers, header::ETAG, &etag(0));
        set(&mut headers, HeaderName::from_static("accept-patch"), &format!("{FRAGMENT}, {SDP}"));
        set(&mut headers, header::CONTENT_TYPE, SDP);
        link(&mut headers, &app, Some(&call.location));
        tokio::spawn(call::serve(app, call, events, caller, place));
        Ok((StatusCode::CREATED, headers, answer).into_response())
    });
    begun.await.unwrap_or_else(|panic| {
        tracing::error!(%panic, "a call's beginning ended by a panic, which is a bug");
        Err(failed("The server failed to answer the offer."))
    })
}

fn failed(message: &str) -> Refused {
    Refused::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorBody::server("server_error", message))
}

/// A connection for an offer, and its answer.
async fn open(
    app: &App,
    offer: Offer,
    base: &str,
    caller: &Caller,
    is_noted: bool,
) -> Result<(Arc<Call>, Events, String), Refused> {
    let port = app.calls.port.as_ref().ok_or_else(|| {
        bad(StatusCode::NOT_FOUND, "not_found", "WebRTC is not served here: webrtc.enabled is false.")
    })?;
    let gone = Duration::from_secs(app.config.webrtc.gone_seconds);
    let (peer, events) = Peer::new(port, &offer, gone).await.map_err(|error| {
        tracing::error!(%error, "no peer connection");
        failed("The server could not open a connection.")
    })?;
    let answer = match peer.answer(&offer).await {
        Ok(answer) => answer,
        Err(error) => {
            peer.close().await;
            return Err(unanswerable(&error));
        }
    };
    let board = Arc::new(Board::new(app.config.limits.send_queue));
    let (id, kind) = (name(), caller.kind.clone());
    let call = Arc::new(Call {
        location: format!("{base}/{id}"),
        id,
        tenant: caller.tenant,
        kind,
        is_noted,
        conversation: OnceLock::new(),
        created: app.now(),
        peer,
        board,
        offer: Mutex::new((offer, 0)),
        hang_up: Notify::new(),
        too_slow: Notify::new(),
    });
    app.calls.remember(&call);
    count(&app.metrics.calls);
    Ok((call, events, answer))
}

fn unanswerable(error: &webrtc::error::Error) -> Refused {
    bad(StatusCode::UNPROCESSABLE_ENTITY, "invalid_sdp", format!("the offer cannot be answered: {error}"))
}

/// A name that nobody guesses.
fn name() -> String {
    format!("rtc_{:032x}", rand::rng().random::<u128>())
}

fn etag(version: u32) -> String {
    format!("\"{version}\"")
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // The configuration has been checked for what a header cannot carry.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.append(name, value);
    }
}

/// Where the text is, and the servers that a client may reach us by (RFC 9725, 4.6).
fn link(headers: &mut HeaderMap, app: &App, location: Option<&str>) {
    if let Some(location) = location {
        let events = format!("<{location}/events>; rel=\"urn:ietf:params:whip:ext:core:server-sent-events\"");
        set(headers, header::LINK, &events);
    }
    for server in &app.config.webrtc.ice_servers {
        for url in &server.urls {
            let mut link = format!("<{url}>; rel=\"ice-server\"");
            if let (Some(username), Some(credential)) = (&server.username, &server.credential) {
                let (username, credential) = (quoted(username), quoted(credential.expose()));
                let _ = write!(
                    link,
                    "; username=\"{username}\"; credential=\"{credential}\"; credential-type=\"password\""
                );
            }
            set(headers, header::LINK, &link);
        }
    }
}

fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// GET: the calls that go on, so that somebody else can read along: captions of a stream that studio software sends, for one.
async fn list(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
) -> Result<Json<Value>, conversations::Refused> {
    let shown = |call: &Arc<Call>| {
        let (location, events) = (&call.location, format!("{}/events", call.location));
        json!({
            "id": call.id, "object": "realtime.call", "kind": call.kind, "created": call.created,
            "location": location, "events": events, "conversation_id": call.conversation.get(),
        })
    };
    let data: Vec<Value> = app.calls.list(conversations::reader(&access)?).iter().map(shown).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

async fn options(State(app): State<Arc<App>>) -> Response {
    let mut headers = HeaderMap::new();
    set(&mut headers, header::ALLOW, "DELETE, OPTIONS, PATCH, POST");
    set(&mut headers, HeaderName::from_static("accept-post"), SDP);
    link(&mut headers, &app, None);
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// DELETE, or POST to hangup.
async fn hang_up(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<(), Refused> {
    app.calls.find(&id).ok_or_else(unknown)?.hang_up.notify_one();
    Ok(())
}

/// PATCH: candidates, of which none are needed; or ICE begins anew, by a fragment or by a whole offer.
async fn change(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refused> {
    let (call, body) = (app.calls.find(&id).ok_or_else(unknown)?, body?);
    // A task of its own, as in `begin`: a client that goes away in the middle must not leave half an agreement.
    tokio::spawn(agree(call, headers, body)).await.unwrap_or_else(|panic| {
        tracing::error!(%panic, "a change of a call ended by a panic, which is a bug");
        Err(failed("The server failed to answer the offer."))
    })
}

async fn agree(call: Arc<Call>, headers: HeaderMap, body: Bytes) -> Result<Response, Refused> {
    let mut agreed = call.offer.lock().await;
    let (offer, version) = &mut *agreed;
    let matched = headers.get(header::IF_MATCH).map(|v| v.to_str().unwrap_or_default());
    if matched.is_some_and(|tag| tag != "*" && tag != etag(*version)) {
        let message = "ICE has begun anew since: this belongs to an earlier answer.";
        return Err(bad(StatusCode::PRECONDITION_FAILED, "precondition_failed", message));
    }
    let (next, is_fragment) = match content_type(&headers) {
        FRAGMENT => match sdp::fragment(&body)? {
            None => return Ok(StatusCode::NO_CONTENT.into_response()),
            Some(restart) => (offer.restarted(&restart), true),
        },
        SDP => (Offer::parse(&body)?, false),
        _ => {
            let message = format!("Send {FRAGMENT} or {SDP}.");
            return Err(bad(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
        }
    };
    let answer = call.peer.answer(&next).await.map_err(|error| unanswerable(&error))?;
    (*offer, *version) = (next, *version + 1);
    let mut headers = HeaderMap::new();
    set(&mut headers, header::ETAG, &etag(*version));
    set(&mut headers, header::CONTENT_TYPE, if is_fragment { FRAGMENT } else { SDP });
    let answer = if is_fragment { sdp::restart_answer(&answer) } else { answer };
    Ok((StatusCode::OK, headers, answer).into_response())
}

/// GET …/events: what the session says, as server-sent events. `Last-Event-ID` goes on where a reader stopped.
async fn events(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Refused> {
    let call = app.calls.find(&id).ok_or_else(unknown)?;
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()?.parse().ok()).unwrap_or(0);
    count(&app.metrics.event_streams);
    let stream = Sse::new(read(call.board.clone(), last)).keep_alive(KeepAlive::default());
    Ok(([(header::CACHE_CONTROL, "no-store"), (HeaderName::from_static("x-accel-buffering"), "no")], stream))
}

fn read(board: Arc<Board>, seen: u64) -> impl Stream<Item = Result<Event, std::convert::Infallible>> {
    stream::unfold((board, seen), |(board, mut seen)| async move {
        loop {
            match board.next(seen).await {
                Next::Event(now_seen, event) => {
                    let event = Event::default().id(now_seen.to_string()).data(event);
                    return Some((Ok(event), (board, now_seen)));
                }
                // A reader that comes late begins with the oldest that is kept.
                Next::Gone(oldest) => seen = oldest,
                Next::End => return None,
            }
        }
    })
}
