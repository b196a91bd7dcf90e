//! A request that is no session: it takes a place as sessions do, brings a body of bounded size, and may ask the engine for one turn.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::extract::multipart::MultipartError;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest as _, FromRequestParts, Multipart, Query};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;

use super::App;
use super::http::refuse;
use crate::engine::{EngineError, Event, Request, SessionId, Turn};
use crate::metrics::count;
use crate::protocol::openai::{ErrorBody, Refusal};

/// When to come again, seconds.
const LATER: &str = "5";
/// A body is all here by then, or its sender is gone.
pub(super) const BODY: Duration = Duration::from_secs(120);

/// A request that is turned away, in OpenAI's shape.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    error: ErrorBody,
}

impl Refused {
    pub(super) fn new(status: StatusCode, error: ErrorBody) -> Self {
        Self { status, error }
    }

    /// The `error` object.
    pub(super) fn error(&self) -> &ErrorBody {
        &self.error
    }

    /// The body did not come, or is too large.
    pub(super) fn body(status: StatusCode, message: String) -> Self {
        let code = if status == StatusCode::PAYLOAD_TOO_LARGE { "request_too_large" } else { "invalid_body" };
        Self::new(status, ErrorBody::invalid(code, message))
    }

    /// The body took too long.
    pub(super) fn slow() -> Self {
        Self::body(StatusCode::REQUEST_TIMEOUT, format!("The request was not here after {} s.", BODY.as_secs()))
    }
}

impl From<BytesRejection> for Refused {
    fn from(rejection: BytesRejection) -> Self {
        Self::body(rejection.status(), rejection.body_text())
    }
}

/// A query string; what is wrong in it is refused as all else is, in JSON.
#[derive(Debug)]
pub(super) struct Queried<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Queried<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let Query(asked) = Query::from_request_parts(parts, state)
            .await
            .map_err(|e| Refused::new(e.status(), ErrorBody::invalid("invalid_value", e.body_text())))?;
        Ok(Self(asked))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let refusal = refuse(self.status, &self.error);
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => ([(header::RETRY_AFTER, LATER)], refusal).into_response(),
            _ => refusal.into_response(),
        }
    }
}

impl From<Refusal> for Refused {
    fn from(error: Refusal) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }
}

impl From<EngineError> for Refused {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Overloaded { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorBody::server("overloaded", message))
            }
            EngineError::ContextFull { .. } => ErrorBody::invalid("context_length_exceeded", message).into(),
            EngineError::Empty(_) => ErrorBody::invalid("empty_conversation", message).into(),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorBody::server("server_error", message)),
        }
    }
}

/// One of the server's places, or when to come again.
pub(super) fn place(app: &Arc<App>) -> Result<OwnedSemaphorePermit, Refused> {
    let unavailable =
        |code, message: String| Refused::new(StatusCode::SERVICE_UNAVAILABLE, ErrorBody::server(code, message));
    if *app.ending.borrow() {
        return Err(unavailable("draining", "The server is ending.".into()));
    }
    app.places.clone().try_acquire_owned().map_err(|_| {
        count(&app.metrics.refused_busy);
        let message = format!("All {} places are taken. Try again later.", app.config.server.max_sessions);
        unavailable("overloaded", message)
    })
}

/// A place and a name at the engine. When it is dropped, the engine forgets it.
pub(super) struct Visit {
    pub(super) app: Arc<App>,
    pub(super) session: SessionId,
    /// Unique, for ids.
    pub(super) suffix: String,
    _place: OwnedSemaphorePermit,
}

impl Visit {
    /// Takes a place.
    pub(super) fn begin(app: Arc<App>) -> Result<Self, Refused> {
        let place = place(&app)?;
        let (session, suffix) = app.next_session();
        count(&app.metrics.sessions);
        app.metrics.sessions_active.fetch_add(1, Relaxed);
        Ok(Self { app, session, suffix, _place: place })
    }

    /// Asks the engine.
    pub(super) fn ask(&self, request: Request) -> Result<Asked, Refused> {
        count(&self.app.metrics.turns);
        match self.app.engine.respond(request) {
            Ok(turn) => Ok(Asked { app: self.app.clone(), turn, is_over: false }),
            Err(error) => {
                count(&self.app.metrics.turns_failed);
                Err(error.into())
            }
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.app.engine.close(self.session);
        self.app.metrics.sessions_active.fetch_sub(1, Relaxed);
    }
}

/// A turn under way. Dropping it cancels it.
pub(super) struct Asked {
    app: Arc<App>,
    turn: Turn,
    is_over: bool,
}

impl Asked {
    /// The next event; the last one is `Done` or `Failed`, and comes always.
    pub(super) async fn next(&mut self) -> Event {
        let event = self.turn.next().await.unwrap_or(Event::Failed(EngineError::Stopped));
        self.is_over |= matches!(event, Event::Done { .. } | Event::Failed(_));
        if matches!(event, Event::Failed(_)) {
            count(&self.app.metrics.turns_failed);
        }
        event
    }

    /// Nothing more is wanted of it but its `Done`.
    pub(super) fn cancel(&self) {
        self.turn.cancel();
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.is_over {
            count(&self.app.metrics.turns_cancelled);
        }
    }
}

/// Pieces of an answer that may wait for a slow reader; and how long one may keep them waiting. The engine waits with a turn that is not read, and its place and
/// memory with it.
const PIECES: usize = 64;
const STALLED: Duration = Duration::from_secs(20);

/// Where the pieces of a streamed answer go.
pub(super) struct Pieces(mpsc::Sender<String>);

impl Pieces {
    /// Whether somebody still reads.
    pub(super) async fn tell(&self, piece: String) -> bool {
        self.0.send_timeout(piece, STALLED).await.is_ok()
    }
}

/// Ends the work with the response.
struct Working(JoinHandle<()>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A streamed answer: `work` makes its pieces, until it is done or nobody reads.
pub(super) fn streamed<W: Future<Output = ()> + Send + 'static>(work: impl FnOnce(Pieces) -> W) -> Response {
    let (pieces, queue) = mpsc::channel(PIECES);
    let working = Working(tokio::spawn(work(Pieces(pieces))));
    let events = stream::unfold((queue, working), |(mut queue, working)| async {
        let piece: String = queue.recv().await?;
        Some((Ok::<_, Infallible>(sse::Event::default().data(piece)), (queue, working)))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// A form with a file: its bytes; each other field is handed to `field`.
pub(super) async fn upload(
    request: axum::extract::Request,
    mut field: impl FnMut(&str, &str) -> Result<(), Refusal> + Send,
) -> Result<Vec<u8>, Refused> {
    let broken = |e: MultipartError| Refused::body(e.status(), e.body_text());
    let form = Multipart::from_request(request, &()).await;
    let mut form = form.map_err(|rejection| Refused::body(rejection.status(), rejection.body_text()))?;
    let mut file = None;
    while let Some(part) = form.next_field().await.map_err(broken)? {
        match part.name().unwrap_or_default().to_owned() {
            name if name == "file" => file = Some(part.bytes().await.map_err(broken)?.to_vec()),
            name => field(&name, &part.text().await.map_err(broken)?)?,
        }
    }
    let missing = ErrorBody::invalid("missing_required_parameter", "The sound comes as a form field `file`.");
    Ok(file.ok_or_else(|| missing.at("file"))?)
}
