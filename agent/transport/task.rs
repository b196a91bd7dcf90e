//! A session's task: it does what the session wants, and outlives its client's connection if that client may come back.
//!
//! An event is written to the journal and then waits, in its order, until it is safe there; then it goes to the client. Nothing else waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::extract::ws::close_code;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::App;
use super::line::{Line, Said};
use super::listen::{Caller, Marked, Resume};
use super::live::{Resident, Visit};
use super::websocket::Goodbye;
use crate::engine::{self, Event, SessionId, Turn};
use crate::journal::{Book, Journal, Opening};
use crate::metrics::count;
use crate::protocol::openai::{Past, ServerEvent};
use crate::session::{Birth, EarId, Input, Output, Session, TurnId};

/// How long the last events of a session may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Events that a client may have been told of since the last one that the journal holds: what seemed to follow, of a turn or two.
const UNKEPT: u64 = 4096;

/// Gives a line to its session, or begins one; the name of its conversation.
pub(super) fn begin(app: Arc<App>, mut line: Line, caller: Caller) -> String {
    let (id, suffix) = app.next_session();
    let again = match &caller.resume {
        Resume::Again(name, _) => Some(name.clone()),
        _ => None,
    };
    let name = again.unwrap_or_else(|| format!("conv_{suffix}"));
    let can_resume = app.journal.as_ref().is_some_and(Journal::can_resume);
    if caller.resume == Resume::Never || !can_resume {
        // Else whoever finds it among the kept conversations would go on with it beside this one, or delete it under its feet.
        let door = can_resume.then(|| app.live.hold(&name));
        tokio::spawn(run(app, id, name.clone(), line, caller, door));
        return name;
    }
    if let Resume::Again(_, after) = caller.resume {
        line.after = Some(after);
        count(&app.metrics.sessions_resumed);
    }
    match app.live.visit(&name, line) {
        Visit::Let => {}
        Visit::Later(line) => line.end(Goodbye::new(close_code::RESTART, "the session is ending; connect again")),
        Visit::Yours(line, resident, door) => {
            drop(tokio::spawn(run(app, id, name.clone(), line, caller, Some((resident, door)))))
        }
    }
    name
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

/// What is to be told, once it is safe.
struct Told {
    number: u64,
    frame: String,
    /// Its record is on its way into the journal.
    is_kept: bool,
}

/// What the session's task holds.
struct Task {
    app: Arc<App>,
    session: Session,
    born: Instant,
    /// The client, if it is there.
    line: Option<Line>,
    /// Until when a client that is away is waited for.
    patience: Option<Instant>,
    samples: Vec<f32>,
    book: Option<Book>,
    committed: watch::Receiver<u64>,
    /// Not told yet.
    waiting: VecDeque<Told>,
    /// The client could not be told, and why its connection ends.
    lost: Option<Goodbye>,
    turn: Option<(TurnId, Turn)>,
    listening: engine::ears::Ears<EarId>,
    caller: Caller,
    name: String,
}

/// `door`: where its client comes back, if it may, and whose end is the session's.
async fn run(
    app: Arc<App>,
    id: SessionId,
    name: String,
    line: Line,
    caller: Caller,
    door: Option<(Resident<Line>, mpsc::Receiver<Line>)>,
) {
    count(&app.metrics.sessions);
    app.metrics.sessions_active.fetch_add(1, Relaxed);
    let _presence = Presence { app: app.clone(), id };
    let (resident, mut door) = door.unzip();
    let (resident, held) = if caller.resume == Resume::Never { (None, resident) } else { (resident, None) };
    let born = Instant::now();
    let suffix = name.strip_prefix("conv_").unwrap_or(&name).to_owned();
    let birth = Birth { id, suffix, tenant: caller.tenant, settings: caller.settings.clone() };
    let mut session = Session::new(birth, app.engine.model(), app.config.clone(), born.elapsed());
    if let (Resume::Again(_, after), Some(journal)) = (&caller.resume, &app.journal) {
        match journal.events(caller.tenant, &name, 0).await {
            Ok(frames) => {
                let frames = frames.unwrap_or_default();
                let past = Past::of(frames.iter().map(|(number, frame)| (*number, frame.as_str())));
                // What was told and is not kept has numbers, too: they are not given again. A client cannot claim any number.
                let number = past.number.max((*after).min(past.number.saturating_add(UNKEPT)));
                session.resume(Past { number, ..past });
            }
            Err(error) => {
                tracing::error!(%error, "a conversation cannot be read");
                return line.end(Goodbye::new(close_code::ERROR, "the conversation cannot be read"));
            }
        }
    }
    tracing::info!(session = session.name(), "session begins");
    let (model, kind) = (app.engine.model().to_owned(), caller.kind.clone());
    let opening = Opening { id: name.clone(), tenant: caller.tenant, model, kind };
    let book = app.journal.as_ref().map(|journal| journal.begin(opening));
    let committed = book.as_ref().map_or_else(|| watch::channel(0).1, Book::committed);
    let mut ending = app.ending.clone();
    let mut task = Task {
        app,
        session,
        born,
        line: None,
        patience: None,
        samples: Vec::new(),
        book,
        committed,
        waiting: VecDeque::new(),
        lost: None,
        turn: None,
        listening: Default::default(),
        caller,
        name,
    };
    task.welcome(line, resident.is_some());
    let goodbye = loop {
        if let Err(goodbye) = task.obey() {
            break goodbye;
        }
        task.tell();
        if let Some(goodbye) = task.lost.take() {
            match &resident {
                Some(resident) => task.wait(resident, goodbye),
                None => break goodbye,
            }
        }
        let deadline = task.born + task.session.deadline();
        tokio::select! {
            said = Line::next(&mut task.line) => match said {
                Said::Event(event) => task.event(event),
                Said::Sound => task.sound(),
                Said::Gone { said_goodbye } => match &resident {
                    Some(resident) if !said_goodbye => task.wait(resident, Goodbye::new(close_code::NORMAL, "")),
                    _ => break Goodbye::new(close_code::NORMAL, ""),
                },
                // That is not told again.
                Said::HasRead(last) => task.waiting.retain(|told| !told.is_kept || told.number > last),
                Said::Nothing => {}
            },
            visit = visit(&mut door) => match visit {
                Some(line) => {
                    task.welcome(line, true);
                    resident.iter().for_each(Resident::is_back);
                }
                None => break Goodbye::new(close_code::NORMAL, "the conversation has ended"),
            },
            (turn, event) = next(&mut task.turn) => task.engine(turn, event),
            (ear, caption) = task.listening.next() => match caption {
                Some(caption) => task.input(Input::Caption(ear, caption)),
                None => task.input(Input::CaptionsEnded(ear)),
            },
            _ = task.committed.changed(), if task.waiting.front().is_some_and(|told| told.is_kept) => {}
            () = tokio::time::sleep_until(task.patience.unwrap_or(deadline).min(deadline)) => {
                if task.patience.is_some_and(|until| until <= Instant::now()) {
                    break Goodbye::new(close_code::NORMAL, "");
                }
                task.input(Input::Tick);
            }
            _ = ending.wait_for(|ending| *ending) => break Goodbye::new(close_code::AWAY, "the server is ending"),
        }
    };
    if task.turn.is_some() {
        count(&task.app.metrics.turns_cancelled);
    }
    tracing::info!(session = task.session.name(), code = goodbye.code, reason = goodbye.reason, "session ends");
    task.end(goodbye).await;
    // Nobody comes in any more; whoever came in the last moment finds the conversation in the journal.
    drop((resident, held));
    while let Some(Ok(line)) = door.as_mut().map(mpsc::Receiver::try_recv) {
        line.end(Goodbye::new(close_code::RESTART, "the session is ending; connect again"));
    }
}

/// The next client at the door; for ever where there is none.
async fn visit(door: &mut Option<mpsc::Receiver<Line>>) -> Option<Line> {
    match door {
        Some(door) => door.recv().await,
        None => std::future::pending().await,
    }
}

/// The running turn's next event; for ever when there is none.
async fn next(turn: &mut Option<(TurnId, Turn)>) -> (TurnId, Option<Event>) {
    match turn {
        Some((id, turn)) => (*id, turn.next().await),
        None => std::future::pending().await,
    }
}

impl Task {
    /// A client is there: it is told what it has missed, and then what holds.
    fn welcome(&mut self, mut line: Line, can_resume: bool) {
        if let Some(before) = self.line.take() {
            before.end(Goodbye::new(close_code::NORMAL, "the conversation goes on in another place"));
        }
        self.patience = None;
        self.lost = None;
        let resume = self.app.journal.as_ref().filter(|_| can_resume).map(|journal| {
            line.catch_up(journal, self.caller.tenant, &self.name);
            let seconds = self.app.config.journal.resume_seconds;
            json!({"token": journal.token(&self.name), "conversation_id": self.name, "seconds": seconds})
        });
        self.session.greet(line.format, resume);
        self.line = Some(line);
    }

    /// The client is away, and may come back.
    fn wait(&mut self, resident: &Resident<Line>, goodbye: Goodbye) {
        if let Some(line) = self.line.take() {
            line.end(goodbye);
        }
        self.patience = Some(Instant::now() + Duration::from_secs(self.app.config.journal.resume_seconds));
        resident.wait();
    }

    fn input(&mut self, input: Input<'_>) {
        if matches!(input, Input::Refused(_)) {
            count(&self.app.metrics.client_errors);
        }
        self.session.handle(input, self.born.elapsed());
    }

    fn sound(&mut self) {
        let Some(heard) = self.line.as_ref().map(|line| line.ring.written()) else { return };
        // Events that were sent between two stretches of sound are obeyed between them: all that were sent before `heard` are queued by now.
        while let Some(event) = self.line.as_mut().and_then(Line::queued) {
            self.event(event);
        }
        self.hear(heard);
    }

    fn hear(&mut self, until: u64) {
        let Some(line) = &mut self.line else { return };
        let mut samples = std::mem::take(&mut self.samples);
        let lost = line.ring.read(until, &mut samples);
        if !samples.is_empty() || lost > 0 {
            self.input(Input::Sound { samples: &samples, lost });
        }
        self.samples = samples;
    }

    fn event(&mut self, (position, event, tell): Marked) {
        self.hear(position);
        match event {
            Ok(incoming) => self.input(Input::Client(incoming)),
            Err(refusal) => self.input(Input::Refused(refusal)),
        }
        if let Some(tell) = tell {
            // Ears that are gone need not know.
            let _ = tell.send(self.session.format());
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
                Output::Send { event_id, number, event } => self.write(&event_id, number, &event),
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

    fn write(&mut self, event_id: &str, number: u64, event: &ServerEvent) {
        let frame = event.to_json(event_id);
        let is_kept = self.book.as_ref().is_some_and(|book| book.write(number, event, &frame));
        self.waiting.push_back(Told { number, frame, is_kept });
        self.tell();
    }

    /// Sends what is safe to be sent.
    fn tell(&mut self) {
        let safe = *self.committed.borrow_and_update();
        while let Some(told) = self.waiting.front() {
            if self.lost.is_some() || self.line.as_ref().is_some_and(|line| !line.is_up_to_date()) {
                break;
            }
            if told.is_kept && told.number > safe {
                if self.waiting.len() <= self.app.config.limits.send_queue {
                    break;
                }
                // The disk is stuck: better told and perhaps lost than not told.
                count(&self.app.metrics.journal_late);
            }
            let Some(Told { frame, .. }) = self.waiting.pop_front() else { break };
            match self.line.as_ref().map(|line| line.send(frame)) {
                None | Some(Ok(())) => {}
                Some(Err(TrySendError::Closed(_))) => self.lost = Some(Goodbye::new(close_code::NORMAL, "")),
                Some(Err(TrySendError::Full(_))) => self.too_slow(),
            }
        }
        // Somebody who takes long over what was missed is told no more of what is new than anybody else.
        if self.lost.is_none() && self.waiting.len() > 2 * self.app.config.limits.send_queue {
            self.too_slow();
        }
    }

    fn too_slow(&mut self) {
        count(&self.app.metrics.slow_clients);
        self.lost = Some(Goodbye { drain: false, ..Goodbye::new(close_code::POLICY, "you read too slowly") });
    }

    /// Says the last words, once they are safe.
    async fn end(&mut self, goodbye: Goodbye) {
        if let Some(last) = self.waiting.iter().rfind(|told| told.is_kept).map(|told| told.number) {
            drop(timeout(LAST_WORDS, self.committed.wait_for(|safe| *safe >= last)).await);
        }
        if goodbye.drain {
            self.tell();
        }
        let goodbye = self.lost.take().unwrap_or(goodbye);
        if let Some(line) = self.line.take() {
            line.end(goodbye);
        }
    }
}
