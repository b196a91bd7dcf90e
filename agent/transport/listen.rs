//! Between any live wire and its session: the ears take what the client sends, the session's [`task`](super::task) does what the session wants.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use axum::extract::ws::close_code;
use tokio::sync::{Notify, mpsc, oneshot};

use super::auth::Access;
use super::line::Line;
use super::websocket::Goodbye;
use super::{App, task};
use crate::audio::intake::{Format, Intake};
use crate::audio::ring::{Writer, ring};
use crate::audio::{AudioError, samples};
use crate::engine::Tenant;
use crate::metrics::count;
use crate::protocol::openai::{ClientEvent, ErrorBody, Incoming, Kind, Refusal, Settings, parse};

/// Events that may wait for the session. It takes them in microseconds; a client that sends more at once waits for itself alone.
const EVENTS: usize = 64;

/// An event and the position in the sound at which it was sent; and who is to be told which format the session takes after it.
pub(super) type Marked = (u64, Result<Incoming, Refusal>, Option<oneshot::Sender<Format>>);

/// The session is over.
#[derive(Debug)]
pub(super) struct Over;

/// Who comes, and what for.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Whose conversations these are.
    pub(super) tenant: Tenant,
    /// What its session begins with.
    pub(super) settings: Settings,
    /// For the list of conversations: `chat`, `captions` or `call`.
    pub(super) kind: String,
    pub(super) resume: Resume,
}

impl Caller {
    /// Somebody who comes once.
    pub(super) fn new(tenant: Tenant, settings: Settings) -> Self {
        let kind = if settings.kind == Kind::Transcription { "captions" } else { "chat" };
        Self { tenant, settings, kind: kind.to_owned(), resume: Resume::Never }
    }
}

/// Whether a client can come back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Resume {
    /// Its session ends with its connection.
    #[default]
    Never,
    /// It will be told how.
    New,
    /// It does: to the conversation of this name, of which it has the events up to a number.
    Again(String, u64),
}

/// Takes in what one client sends.
pub(super) struct Ears {
    app: Arc<App>,
    /// The name of the conversation that it goes into.
    pub(super) conversation: String,
    intake: Intake,
    ring: Writer,
    sound: Arc<Notify>,
    events: mpsc::Sender<Marked>,
    said_goodbye: Arc<AtomicBool>,
    fresh: Vec<f32>,
}

/// What a session of this kind begins with: the server's settings, and what its key was bound to.
pub(super) fn settings(app: &App, access: &Access, kind: Kind) -> Settings {
    let mut settings = Settings { kind, ..Settings::new(&app.config) };
    if let Some(update) = &access.session {
        settings.apply(update.as_ref().clone(), &app.config.voice);
    }
    settings
}

/// A client's session: its ears, and how its connection is to be ended once it is over. Frames are what the client is to be sent.
pub(super) fn session(
    app: Arc<App>,
    caller: Caller,
    frames: mpsc::Sender<String>,
) -> (Ears, impl Future<Output = Goodbye> + Send + 'static) {
    let (writer, ring) = ring(samples(app.config.limits.ring_seconds));
    let (sound, said_goodbye) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let (events, queue) = mpsc::channel(EVENTS);
    let (goodbye, told) = oneshot::channel();
    let format = caller.settings.format;
    let line = Line::new(ring, sound.clone(), queue, said_goodbye.clone(), frames, goodbye, format);
    let conversation = task::begin(app.clone(), line, caller);
    let ears = Ears {
        app: app.clone(),
        conversation,
        intake: Intake::new(format),
        ring: writer,
        sound,
        events,
        said_goodbye,
        fresh: Vec::new(),
    };
    let ended = async move {
        told.await.unwrap_or_else(|_| {
            count(&app.metrics.session_panics);
            tracing::error!("a session ended by a panic, which is a bug");
            Goodbye::new(close_code::ERROR, "internal error")
        })
    };
    (ears, ended)
}

impl Ears {
    /// The client has ended the conversation itself: nobody waits for it to come back.
    pub(super) fn goodbye(&self) {
        self.said_goodbye.store(true, Relaxed);
    }

    /// A text frame: an event.
    pub(super) async fn text(&mut self, text: &str) -> Result<(), Over> {
        match parse(text) {
            Ok(Incoming { event_id, event: ClientEvent::Append(bytes) }) => self.bytes(&bytes, event_id).await,
            Ok(incoming) => {
                match &incoming.event {
                    // What the resampler still holds was sent before this event and belongs before it.
                    ClientEvent::Commit | ClientEvent::Clear => self.flush().await,
                    ClientEvent::SessionUpdate(update)
                        if update.format().is_some_and(|format| format != self.intake.format()) =>
                    {
                        return self.reformat(incoming).await;
                    }
                    _ => {}
                }
                self.event(Ok(incoming)).await
            }
            Err(refusal) => self.event(Err(refusal)).await,
        }
    }

    /// A binary frame: sound.
    pub(super) async fn binary(&mut self, bytes: &[u8]) -> Result<(), Over> {
        self.bytes(bytes, None).await
    }

    /// Sound that is decoded already: 16 kHz samples.
    pub(super) async fn sound(&mut self, samples: &[f32]) {
        self.fresh.extend_from_slice(samples);
        self.store().await;
    }

    async fn bytes(&mut self, bytes: &[u8], event_id: Option<String>) -> Result<(), Over> {
        let refused = |code, message| Err(ErrorBody { event_id, ..ErrorBody::invalid(code, message) });
        let most = self.app.config.limits.ring_seconds;
        if self.intake.format().most_samples(bytes.len()) > samples(most) as u64 {
            let message = format!("At most {most} s of sound are taken at once. Send it in pieces.");
            return self.event(refused("input_audio_too_long", message)).await;
        }
        match self.intake.push(bytes, &mut self.fresh) {
            Ok(()) => self.store().await,
            Err(error) => {
                let code = if matches!(error, AudioError::OddLength(_)) { "invalid_audio" } else { "invalid_opus" };
                return self.event(refused(code, error.to_string())).await;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) {
        self.intake.flush(&mut self.fresh);
        self.store().await;
    }

    async fn store(&mut self) {
        let (_, dropped) = self.ring.push(&self.fresh);
        self.app.metrics.samples.fetch_add(self.fresh.len() as u64, Relaxed);
        self.app.metrics.samples_dropped.fetch_add(dropped, Relaxed);
        self.fresh.clear();
        self.sound.notify_one();
        if self.ring.is_half_full() {
            // Faster than real time: let the session have the processor for a moment. This does not wait for it.
            tokio::task::yield_now().await;
        }
    }

    /// An update that wants another format. The session may refuse it, and then what follows is still in the old one.
    async fn reformat(&mut self, incoming: Incoming) -> Result<(), Over> {
        self.flush().await;
        let (tell, holds) = oneshot::channel();
        self.events.send((self.ring.position(), Ok(incoming), Some(tell))).await.map_err(|_| Over)?;
        let format = holds.await.map_err(|_| Over)?;
        if format != self.intake.format() {
            self.intake = Intake::new(format);
        }
        Ok(())
    }

    async fn event(&mut self, event: Result<Incoming, Refusal>) -> Result<(), Over> {
        self.events.send((self.ring.position(), event, None)).await.map_err(|_| Over)
    }
}
