//! A speaker in this process: a session with an engine behind it, driven in real time as a wire drives it, and the times of what happens.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::audio::vad::{FRAME, detector};
use crate::audio::{RATE, file};
use crate::config::Config;
use crate::engine::ears::Ears;
use crate::engine::{Engine, Event, Role, SessionId, Tenant, Timings, Turn, Usage};
use crate::protocol::openai::{ClientEvent, Incoming, NewItem, NewKind, NewPart, ServerEvent, Settings};
use crate::session::{Birth, EarId, Input, Output, Session, TurnId};

/// Samples of one packet: 20 ms.
const PACKET: usize = RATE as usize / 50;
/// Silence before a turn: 500 ms, of which the session keeps what its config says.
const BEFORE: usize = RATE as usize / 2;
/// The end of a turn is told in real time, however hasty the talker.
const REAL_TIME: usize = 5 * RATE as usize / 2;
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(120);

/// When what happened in the newest turn.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::cli) struct Marks {
    /// The last sample with voice in it was handed over.
    pub(in crate::cli) said: Option<Instant>,
    /// Thinking began, at a pause or at the turn's end.
    pub(in crate::cli) begun: Option<Instant>,
    /// The turn was found to be over.
    pub(in crate::cli) over: Option<Instant>,
    /// The engine gave the first token of its reasoning.
    pub(in crate::cli) reasoning: Option<Instant>,
    /// And the first of its reply.
    pub(in crate::cli) reply: Option<Instant>,
    /// What the engine says of it.
    pub(in crate::cli) done: Option<(Usage, Timings)>,
}

/// What was said in the newest turn.
#[derive(Debug, Clone, Default)]
pub(in crate::cli) struct Said {
    /// The words that an ear heard.
    pub(in crate::cli) heard: String,
    pub(in crate::cli) reasoning: String,
    pub(in crate::cli) reply: String,
    pub(in crate::cli) reasoning_tokens: usize,
}

pub(in crate::cli) struct Talker<'a> {
    engine: &'a dyn Engine,
    id: SessionId,
    session: Session,
    born: Instant,
    turn: Option<(TurnId, Turn)>,
    listening: Ears<EarId>,
    pub(in crate::cli) marks: Marks,
    /// Samples handed over, and how many there were when each turn was found to be over.
    handed: usize,
    pub(in crate::cli) ends: Vec<usize>,
    said: Said,
    /// How much faster than it was spoken the beginning of a long turn is told: an engine that keeps up is at the same point in the end.
    haste: u32,
    /// Items of the conversation, in order.
    items: Vec<String>,
    failure: Option<String>,
}

impl Drop for Talker<'_> {
    fn drop(&mut self) {
        self.engine.close(self.id);
    }
}

impl<'a> Talker<'a> {
    pub(in crate::cli) fn new(engine: &'a dyn Engine, config: &Arc<Config>, id: u64, haste: u32) -> Self {
        Self::wishing(engine, config, id, haste, Settings::new(config))
    }

    /// One whose client has wishes of its own.
    pub(in crate::cli) fn wishing(
        engine: &'a dyn Engine,
        config: &Arc<Config>,
        id: u64,
        haste: u32,
        settings: Settings,
    ) -> Self {
        let id = SessionId(id);
        let birth = Birth { id, suffix: format!("bench{}", id.0), tenant: Tenant::default(), settings };
        let session = Session::new(birth, engine.model(), config.clone(), Duration::ZERO);
        let mut this = Self {
            engine,
            id,
            session,
            born: Instant::now(),
            turn: None,
            listening: Ears::default(),
            marks: Marks::default(),
            handed: 0,
            ends: Vec::new(),
            said: Said::default(),
            haste,
            items: Vec::new(),
            failure: None,
        };
        this.obey();
        this
    }

    /// Says `speech` and falls silent, until the answer is there to its end.
    pub(in crate::cli) async fn converse(&mut self, speech: &[f32]) -> Result<Marks> {
        self.marks = Marks::default();
        let mut at = Instant::now();
        // Nobody speaks the moment a microphone opens: without something before it, a first turn would be shorter than all later ones.
        for _ in 0..BEFORE / PACKET {
            at += Duration::from_millis(20) / self.haste;
            self.wait(at).await;
            self.input(Input::Sound { samples: &[0.0; PACKET], lost: 0 });
        }
        for (i, packet) in speech.chunks(PACKET).enumerate() {
            let hasty = speech.len() - i * PACKET > REAL_TIME;
            at += Duration::from_millis(20) / if hasty { self.haste } else { 1 };
            self.wait(at).await;
            self.input(Input::Sound { samples: packet, lost: 0 });
        }
        self.marks.said = Some(Instant::now());
        let (silence, patience) = ([0.0; PACKET], Instant::now() + PATIENCE);
        while self.marks.over.is_none() && Instant::now() < patience {
            at += Duration::from_millis(20);
            self.wait(at).await;
            self.input(Input::Sound { samples: &silence, lost: 0 });
        }
        while self.marks.done.is_none() && self.failure.is_none() {
            let next = timeout_at(patience, self.next()).await;
            next.context("the engine did not answer in time")?;
        }
        match self.failure.take() {
            None => Ok(self.marks),
            Some(failure) => anyhow::bail!("the turn failed: {failure}"),
        }
    }

    /// Says `speech`, if any, as fast as it is taken in, and `question` after it in writing; commits, and gives what came of it, and after how
    /// long the reply began.
    pub(in crate::cli) async fn commit(&mut self, speech: &[f32], question: Option<&str>) -> Result<(Said, Duration)> {
        (self.marks, self.said) = (Marks::default(), Said::default());
        for packet in speech.chunks(PACKET) {
            self.input(Input::Sound { samples: packet, lost: 0 });
            // The engine tells nothing that must be waited for; it hears beside this.
            tokio::task::yield_now().await;
        }
        let ask = Instant::now();
        if !speech.is_empty() {
            self.client(ClientEvent::Commit);
        }
        if let Some(question) = question {
            let kind = NewKind::Message(Role::User, vec![NewPart::Text(question.to_owned())]);
            let item = Box::new(NewItem { id: None, kind });
            self.client(ClientEvent::ItemCreate { previous_item_id: None, item });
        }
        self.client(ClientEvent::ResponseCreate(Box::default()));
        let patience = Instant::now() + PATIENCE;
        while self.marks.done.is_none() && self.failure.is_none() {
            let next = timeout_at(patience, self.next()).await;
            next.context("the engine did not answer in time")?;
        }
        anyhow::ensure!(self.failure.is_none(), "the turn failed: {}", self.failure.take().unwrap_or_default());
        self.said.reasoning_tokens = self.marks.done.map_or(0, |(usage, _)| usage.reasoning_tokens);
        let began = self.marks.reply.unwrap_or_else(Instant::now);
        Ok((std::mem::take(&mut self.said), began.saturating_duration_since(ask)))
    }

    fn client(&mut self, event: ClientEvent) {
        self.input(Input::Client(Incoming { event_id: None, event }));
    }

    /// Takes back the newest `count` items.
    pub(in crate::cli) fn forget(&mut self, count: usize) {
        for id in self.items.split_off(self.items.len().saturating_sub(count)) {
            self.client(ClientEvent::ItemDelete(id));
        }
    }

    /// Items of the conversation.
    pub(in crate::cli) fn items(&self) -> usize {
        self.items.len()
    }

    /// Lets things happen until then.
    pub(in crate::cli) async fn wait(&mut self, until: Instant) {
        loop {
            tokio::select! {
                biased;
                () = sleep_until(until) => return,
                () = self.next() => {}
            }
        }
    }

    /// The next thing that the engine says.
    async fn next(&mut self) {
        tokio::select! {
            (id, event) = next_event(&mut self.turn) => self.engine(id, event),
            (ear, caption) = self.listening.next() => match caption {
                Some(caption) => self.input(Input::Caption(ear, caption)),
                None => self.input(Input::CaptionsEnded(ear)),
            },
        }
    }

    /// Says `sound` in real time, as a microphone would, or at once.
    pub(in crate::cli) async fn say(&mut self, sound: &[f32], in_real_time: bool) {
        let mut at = Instant::now();
        for packet in sound.chunks(PACKET) {
            if in_real_time {
                at += Duration::from_millis(20);
                self.wait(at).await;
            }
            self.input(Input::Sound { samples: packet, lost: 0 });
        }
    }

    fn input(&mut self, input: Input<'_>) {
        if let Input::Sound { samples, .. } = &input {
            self.handed += samples.len();
        }
        self.session.handle(input, self.born.elapsed());
        self.obey();
    }

    fn engine(&mut self, id: TurnId, event: Option<Event>) {
        let now = Some(Instant::now());
        match &event {
            Some(Event::Heard(words)) => self.said.heard.clone_from(words),
            Some(Event::Reasoning(text)) => self.said.reasoning.push_str(text),
            Some(Event::Reply(text)) => self.said.reply.push_str(text),
            _ => {}
        }
        match &event {
            Some(Event::Reasoning(_)) => self.marks.reasoning = self.marks.reasoning.or(now),
            Some(Event::Reply(_)) => self.marks.reply = self.marks.reply.or(now),
            Some(Event::Done { usage, timings, .. }) => self.marks.done = Some((*usage, *timings)),
            Some(Event::Failed(error)) => self.failure = Some(error.to_string()),
            None => self.failure = Some("the engine has stopped".into()),
            _ => {}
        }
        if matches!(event, None | Some(Event::Done { .. } | Event::Failed(_))) {
            self.turn = None;
        }
        self.input(event.map_or(Input::EngineEnded(id), |event| Input::Engine(id, event)));
    }

    fn obey(&mut self) {
        while let Some(output) = self.session.poll() {
            match output {
                Output::Send { event, .. } => match &*event {
                    ServerEvent::SpeechStopped { .. } => {
                        self.marks.over = Some(Instant::now());
                        self.ends.push(self.handed);
                    }
                    ServerEvent::ItemAdded { item, .. } => self.items.push(item.id.clone()),
                    ServerEvent::ItemDeleted { item_id } => self.items.retain(|id| id != item_id),
                    ServerEvent::Error { error } => self.failure = Some(error.message.clone()),
                    _ => {}
                },
                Output::Start(id, request) => {
                    self.marks = Marks { said: self.marks.said, over: self.marks.over, ..Marks::default() };
                    self.marks.begun = Some(Instant::now());
                    match self.engine.respond(*request) {
                        Ok(turn) => self.turn = Some((id, turn)),
                        Err(error) => self.engine(id, Some(Event::Failed(error))),
                    }
                }
                Output::Cancel(id) => drop(self.turn.take_if(|(running, _)| *running == id)),
                Output::Listen(ear, listen) => self.listening.open(ear, self.engine.listen(*listen).ok()),
                Output::Hear(samples) => self.listening.hear(&samples),
                Output::EndOfSound(ear) => {
                    if !self.listening.finish() {
                        self.input(Input::CaptionsEnded(ear));
                    }
                }
                Output::Unlisten => self.listening.close(),
                Output::CloseIdle => {}
            }
        }
    }
}

async fn next_event(turn: &mut Option<(TurnId, Turn)>) -> (TurnId, Option<Event>) {
    match turn {
        Some((id, turn)) => (*id, turn.next().await),
        None => std::future::pending().await,
    }
}

/// Speech without pauses, as long as is asked for: what a detector finds of voice in a file, again and again.
pub(in crate::cli) struct Speech(Vec<f32>);

impl Speech {
    pub(in crate::cli) fn open(path: &std::path::Path, config: &Config) -> Result<Self> {
        let sound = file::read(path, 600.0).with_context(|| format!("{} cannot be heard", path.display()))?;
        let mut ears = detector(config.voice.detector);
        let mut speech = Vec::new();
        for frame in sound.as_chunks::<FRAME>().0 {
            if ears.voice(frame) >= config.voice.threshold {
                speech.extend_from_slice(frame);
            }
        }
        anyhow::ensure!(speech.len() > RATE as usize, "there is no speech in {}", path.display());
        Ok(Self(speech))
    }

    /// So many seconds of it, beginning elsewhere for each `n`: no two turns are alike.
    pub(in crate::cli) fn seconds(&self, seconds: f32, n: usize) -> Vec<f32> {
        let from = n * 7919 % self.0.len();
        self.0.iter().cycle().skip(from).take((seconds * RATE as f32) as usize).copied().collect()
    }
}
