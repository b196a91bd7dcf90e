//! A session without a server: what goes in and what comes out, in virtual time.

use std::sync::Arc;
use std::time::Duration;

use hearken::config::Config;
use hearken::engine::{Caption, Content, Event, Finish, Item, Listen, Request, SessionId, Tenant, Timings, Usage};
use hearken::protocol::openai::{Incoming, Settings, parse};
use hearken::session::{Birth, EarId, Input, Output, Session, TurnId};
use serde_json::Value;

/// A session and all that it did.
pub struct Desk {
    pub session: Session,
    pub now: Duration,
    pub told: Vec<Value>,
    pub started: Vec<(TurnId, Request)>,
    pub cancelled: Vec<TurnId>,
    pub ears: Vec<OpenEar>,
    pub closed: bool,
}

/// An ear as the session opened it, and what it did with it.
pub struct OpenEar {
    pub id: EarId,
    pub listen: Listen,
    pub heard: Vec<f32>,
    /// No more sound will come.
    pub ended: bool,
    /// It was dropped.
    pub dropped: bool,
}

impl Desk {
    pub fn new(config: Config) -> Self {
        let settings = Settings::new(&config);
        Self::begin(config, settings)
    }

    /// A session that begins with these settings.
    pub fn begin(config: Config, settings: Settings) -> Self {
        let birth = Birth { id: SessionId(1), suffix: "t".into(), tenant: Tenant::default(), settings };
        let session = Session::new(birth, "m", Arc::new(config), Duration::ZERO);
        let mut this = Self {
            session,
            now: Duration::ZERO,
            told: vec![],
            started: vec![],
            cancelled: vec![],
            ears: vec![],
            closed: false,
        };
        this.settle();
        this.told.clear();
        this
    }

    pub fn settle(&mut self) {
        while let Some(output) = self.session.poll() {
            match output {
                Output::Send { event_id, event, .. } => {
                    self.told.push(serde_json::from_str(&event.to_json(&event_id)).unwrap());
                }
                Output::Start(turn, request) => self.started.push((turn, *request)),
                Output::Cancel(turn) => self.cancelled.push(turn),
                Output::Listen(id, listen) => {
                    self.ears.push(OpenEar { id, listen: *listen, heard: vec![], ended: false, dropped: false });
                }
                Output::Hear(samples) => {
                    let ear = self.ears.last_mut().expect("an ear is opened before it hears");
                    assert!(!ear.ended && !ear.dropped && !samples.is_empty());
                    ear.heard.extend(samples);
                }
                Output::EndOfSound(id) => {
                    let ear = self.ears.last_mut().unwrap();
                    assert_eq!(ear.id, id);
                    ear.ended = true;
                }
                Output::Unlisten => self.ears.last_mut().unwrap().dropped = true,
                Output::CloseIdle => self.closed = true,
            }
        }
    }

    pub fn give(&mut self, input: Input<'_>) {
        self.session.handle(input, self.now);
        self.settle();
    }

    pub fn client(&mut self, event: Value) {
        let incoming: Incoming = parse(&event.to_string()).unwrap();
        self.give(Input::Client(incoming));
    }

    pub fn hear(&mut self, samples: &[f32]) {
        self.now += Duration::from_micros(samples.len() as u64 * 1_000_000 / 16_000);
        self.give(Input::Sound { samples, lost: 0 });
    }

    pub fn engine(&mut self, event: Event) {
        let turn = self.started.last().unwrap().0;
        self.give(Input::Engine(turn, event));
    }

    pub fn caption(&mut self, committed: &str, tentative: &str) {
        let caption = Caption { committed: committed.into(), tentative: tentative.into(), is_last: false };
        self.give(Input::Caption(self.ears.last().unwrap().id, caption));
    }

    /// All that the `ear`-th ear still has to say.
    pub fn last_caption_of(&mut self, ear: usize, committed: &str) {
        let caption = Caption { committed: committed.into(), is_last: true, ..Caption::default() };
        let id = self.ears[ear].id;
        self.give(Input::Caption(id, caption));
        self.give(Input::CaptionsEnded(id));
    }

    pub fn captions_ended(&mut self) {
        self.give(Input::CaptionsEnded(self.ears.last().unwrap().id));
    }

    pub fn last_caption(&mut self, committed: &str) {
        self.last_caption_of(self.ears.len() - 1, committed);
    }

    pub fn done(&mut self) {
        self.engine(Event::Done { finish: Finish::Stop, usage: Usage::default(), timings: Timings::default() });
    }

    pub fn sounds(&self) -> Vec<Vec<f32>> {
        let (_, request) = self.started.last().unwrap();
        let Some(Item::Message { content, .. }) = request.conversation.last() else { panic!() };
        content.iter().map(|c| if let Content::Sound(s) = c { s.to_vec() } else { panic!() }).collect()
    }

    /// All that was told of this kind.
    pub fn all(&self, kind: &str) -> Vec<&Value> {
        self.told.iter().filter(|event| event["type"] == kind).collect()
    }

    pub fn kinds(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told).iter().map(|e| e["type"].as_str().unwrap().to_owned()).collect()
    }
}
