//! Between any live wire and its session: the ears take what the client sends, the session's task does what the session wants.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use axum::extract::ws::close_code;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::App;
use super::auth::Access;
use super::websocket::Goodbye;
use crate::audio::intake::Intake;
use crate::audio::ring::{Reader, Writer, ring};
use crate::audio::{AudioError, samples};
use crate::engine::{self, Event, SessionId, Tenant, Turn};
use crate::metrics::count;
use crate::protocol::openai::{ClientEvent, ErrorBody, Incoming, Kind, Refusal, Settings, parse};
use crate::session::{Birth, EarId, Input, Output, Session, TurnId};

/// Events that may wait for the session. It takes them in microseconds; a client that sends more at once waits for itself alone.
const EVENTS: usize = 64;

/// An event and the position in the sound at which it was sent.
type Marked = (u64, Result<Incoming, Refusal>);

/// The session is over.
#[derive(Debug)]
pub(super) struct Over;

/// Takes in what one client sends.
pub(super) struct Ears {
    app: Arc<App>,
    intake: Intake,
    ring: Writer,
    sound: Arc<Notify>,
    events: mpsc::Sender<Marked>,
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

/// A new session: its ears, and the task that is to run until they are dropped. Frames are what the client is to be sent.
pub(super) fn session(
    app: Arc<App>,
    tenant: Tenant,
    settings: Settings,
    frames: mpsc::Sender<String>,
) -> (Ears, impl Future<Output = Goodbye> + Send + 'static) {
    let (writer, reader) = ring(samples(app.config.limits.ring_seconds));
    let sound = Arc::new(Notify::new());
    let (events, queue) = mpsc::channel(EVENTS);
    let ears = Ears {
        app: app.clone(),
        intake: Intake::new(settings.format),
        ring: writer,
        sound: sound.clone(),
        events,
        fresh: Vec::new(),
    };
    let (id, suffix) = app.next_session();
    let birth = Birth { id, suffix, tenant, settings };
    (ears, run(app, birth, reader, sound, queue, frames))
}

impl Ears {
    /// A text frame: an event.
    pub(super) async fn text(&mut self, text: &str) -> Result<(), Over> {
        match parse(text) {
            Ok(Incoming { event_id, event: ClientEvent::Append(bytes) }) => self.bytes(&bytes, event_id).await,
            Ok(incoming) => {
                match &incoming.event {
                    // What the resampler still holds was sent before this event and belongs before it.
                    ClientEvent::Commit | ClientEvent::Clear => self.flush().await,
                    ClientEvent::SessionUpdate(update) => {
                        if let Some(format) = update.format().filter(|f| *f != self.intake.format()) {
                            self.flush().await;
                            self.intake = Intake::new(format);
                        }
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

    async fn event(&mut self, event: Result<Incoming, Refusal>) -> Result<(), Over> {
        self.events.send((self.ring.position(), event)).await.map_err(|_| Over)
    }
}

/// Gives the engine's memory back and keeps the count, however the session ends.
struct Presence {
    app: Arc<App>,
    id: SessionId,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.app.engine.close(self.id);
        self.app.metrics.sessions_active.fetch_sub(1, Relaxed);
    }
}

/// What the session's task holds.
struct Task {
    app: Arc<App>,
    session: Session,
    born: Instant,
    ring: Reader,
    samples: Vec<f32>,
    frames: mpsc::Sender<String>,
    turn: Option<(TurnId, Turn)>,
    listening: engine::ears::Ears<EarId>,
}

async fn run(
    app: Arc<App>,
    birth: Birth,
    ring: Reader,
    sound: Arc<Notify>,
    mut events: mpsc::Receiver<Marked>,
    frames: mpsc::Sender<String>,
) -> Goodbye {
    count(&app.metrics.sessions);
    app.metrics.sessions_active.fetch_add(1, Relaxed);
    let _presence = Presence { app: app.clone(), id: birth.id };
    let born = Instant::now();
    let session = Session::new(birth, app.engine.model(), app.config.clone(), born.elapsed());
    tracing::info!(session = session.name(), "session begins");
    let mut ending = app.ending.clone();
    let mut task =
        Task { app, session, born, ring, samples: Vec::new(), frames, turn: None, listening: Default::default() };
    let goodbye = loop {
        if let Err(goodbye) = task.obey() {
            break goodbye;
        }
        let deadline = task.born + task.session.deadline();
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => task.event(event),
                None => break Goodbye::new(close_code::NORMAL, ""),
            },
            (turn, event) = next(&mut task.turn) => task.engine(turn, event),
            (ear, caption) = task.listening.next() => match caption {
                Some(caption) => task.input(Input::Caption(ear, caption)),
                None => task.input(Input::CaptionsEnded(ear)),
            },
            () = sound.notified() => {
                // Events that were sent between two stretches of sound are obeyed between them: all that were sent before `heard` are queued by now.
                let heard = task.ring.written();
                while let Ok(event) = events.try_recv() {
                    task.event(event);
                }
                task.hear(heard);
            }
            () = tokio::time::sleep_until(deadline) => task.input(Input::Tick),
            _ = ending.wait_for(|ending| *ending) => break Goodbye::new(close_code::AWAY, "the server is ending"),
        }
    };
    if task.turn.is_some() {
        count(&task.app.metrics.turns_cancelled);
    }
    tracing::info!(session = task.session.name(), code = goodbye.code, reason = goodbye.reason, "session ends");
    goodbye
}

/// The running turn's next event; for ever when there is none.
async fn next(turn: &mut Option<(TurnId, Turn)>) -> (TurnId, Option<Event>) {
    match turn {
        Some((id, turn)) => (*id, turn.next().await),
        None => std::future::pending().await,
    }
}

impl Task {
    fn input(&mut self, input: Input<'_>) {
        if matches!(input, Input::Refused(_)) {
            count(&self.app.metrics.client_errors);
        }
        self.session.handle(input, self.born.elapsed());
    }

    fn hear(&mut self, until: u64) {
        let mut samples = std::mem::take(&mut self.samples);
        let lost = self.ring.read(until, &mut samples);
        if !samples.is_empty() || lost > 0 {
            self.input(Input::Sound { samples: &samples, lost });
        }
        self.samples = samples;
    }

    fn event(&mut self, (position, event): Marked) {
        self.hear(position);
        match event {
            Ok(incoming) => self.input(Input::Client(incoming)),
            Err(refusal) => self.input(Input::Refused(refusal)),
        }
    }

    fn engine(&mut self, turn: TurnId, event: Option<Event>) {
        if matches!(event, None | Some(Event::Done { .. } | Event::Failed(_))) {
            self.turn = None;
        }
        if matches!(event, None | Some(Event::Failed(_))) {
            count(&self.app.metrics.turns_failed);
        }
        match event {
            Some(event) => self.input(Input::Engine(turn, event)),
            None => self.input(Input::EngineEnded(turn)),
        }
    }

    /// Does what the session wants, until it wants nothing.
    fn obey(&mut self) -> Result<(), Goodbye> {
        while let Some(output) = self.session.poll() {
            match output {
                Output::Send { event_id, event } => match self.frames.try_send(event.to_json(&event_id)) {
                    Ok(()) => {}
                    Err(TrySendError::Closed(_)) => return Err(Goodbye::new(close_code::NORMAL, "")),
                    Err(TrySendError::Full(_)) => {
                        count(&self.app.metrics.slow_clients);
                        let goodbye = Goodbye::new(close_code::POLICY, "you read too slowly");
                        return Err(Goodbye { drain: false, ..goodbye });
                    }
                },
                Output::Start(id, request) => {
                    count(&self.app.metrics.turns);
                    match self.app.engine.respond(*request) {
                        Ok(turn) => self.turn = Some((id, turn)),
                        Err(error) => self.engine(id, Some(Event::Failed(error))),
                    }
                }
                Output::Cancel(id) => {
                    if self.turn.take_if(|(running, _)| *running == id).is_some() {
                        count(&self.app.metrics.turns_cancelled);
                    }
                }
                Output::Listen(ear, listen) => {
                    let opened = self.app.engine.listen(*listen).inspect_err(|e| tracing::debug!(%e, "no ear"));
                    self.listening.open(ear, opened.ok());
                }
                Output::Hear(samples) => self.listening.hear(&samples),
                Output::EndOfSound(ear) => {
                    if !self.listening.finish() {
                        self.input(Input::CaptionsEnded(ear));
                    }
                }
                Output::Unlisten => self.listening.close(),
                Output::CloseIdle => return Err(Goodbye::new(close_code::NORMAL, "nothing was heard from you")),
            }
        }
        Ok(())
    }
}
