//! One session as a machine without sockets, clock or threads: [`Input`] goes in with the time, [`Output`] comes out.
//!
//! ```text
//!  client events ─┐                      ┌─> events to the client
//!  samples, 16 kHz ─> Session::handle ───┼─> turns to start and cancel at the engine
//!  engine events ─┤     (now passed in)  └─> close
//!  ticks ─────────┘
//! ```
//!
//! Because it does all things in one place and one at a time, the races of live speech are decided here and nowhere else: a response is given up the
//! moment speech begins or the client says so, its [`TurnId`] is never used again, and what the engine still says about it is passed over. So a
//! cancel followed at once by a create works, and a late token never reaches the next turn.
//!
//! A session that ended can be built again from the events that its client was sent: [`Session::resume`].
//!
//! Parts: [`segment`] finds where turns begin and end, [`conversation`] keeps what was said, `turn` tells one response, `commands` obeys the client.

mod commands;
pub mod conversation;
mod rate;
mod resumed;
pub mod segment;
mod spoken;
mod turn;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::audio::intake::Format;
use crate::audio::vad::{Gate, GateConfig, detector};
use crate::audio::{RATE, samples, samples_ms};
use crate::config::Config;
use crate::engine::{
    self, Caption, Content, Ending, EngineError, Event, Listen, Request, Role, SessionId, Tenant, Thinking,
};
use crate::protocol::openai::{
    ErrorBody, Incoming, InputItem, Refusal, ResponseParams, Seconds, ServerEvent, Settings, Status, tools_json,
};
use conversation::{Body, Conversation, Entry, Piece, Where};
use rate::Rate;
use segment::{Ear, Heard};
use spoken::{Ahead, Spoken, Told};
use turn::{End, Opening, Running};

/// A client that sends nothing for so long while somebody speaks has muted its microphone or lost it: the turn is over.
const STALL: Duration = Duration::from_secs(2);

/// Names one turn at the engine. Never used twice in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TurnId(pub u64);

/// Names one open ear at the engine. Never used twice in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EarId(pub u64);

/// What happens to a session.
#[derive(Debug)]
pub enum Input<'a> {
    /// The client asks. (`Append` is not for here: its sound comes as [`Input::Sound`].)
    Client(Incoming),
    /// What the client sent was refused before it got here: malformed, or sound that cannot be decoded.
    Refused(Refusal),
    /// The next samples of its stream, 16 kHz mono, and how many were lost before them.
    Sound {
        /// −1..1.
        samples: &'a [f32],
        /// Dropped, so that times stay true.
        lost: u64,
    },
    /// The engine says something about a turn.
    Engine(TurnId, Event),
    /// The engine says nothing more about a turn. Without a `Done` before, it has failed.
    EngineEnded(TurnId),
    /// What an ear makes of what it hears.
    Caption(EarId, Caption),
    /// This ear says nothing more.
    CaptionsEnded(EarId),
    /// Time has passed; see [`Session::deadline`].
    Tick,
}

/// What a session wants done.
#[derive(Debug)]
pub enum Output {
    /// Tell the client.
    Send {
        /// Unique in the conversation.
        event_id: String,
        /// The same as a number that grows with each event, and leaves some out.
        number: u64,
        /// What.
        event: Box<ServerEvent>,
    },
    /// Start a turn, and report what the engine says about it. A refusal is reported as [`Event::Failed`].
    Start(TurnId, Box<Request>),
    /// Drop this turn.
    Cancel(TurnId),
    /// Open an ear at the engine and report its captions. A refusal is no error: the turn goes without. One is open at a time.
    Listen(EarId, Box<Listen>),
    /// The next samples for the open ear.
    Hear(Vec<f32>),
    /// The ear that was opened last has heard all: report the captions that are left, and that no more come. If it is not there (it was
    /// refused, or fell behind), none come.
    EndOfSound(EarId),
    /// Drop the open ear.
    Unlisten,
    /// End the connection: nothing was heard from the client for too long.
    CloseIdle,
}

/// What waits to be done, and the source of names.
#[derive(Debug)]
pub(crate) struct Outbox {
    queue: VecDeque<Output>,
    /// One count for events and names, so that whoever knows the last event of a conversation can go on with it and never gives a name twice.
    count: u64,
    suffix: String,
}

impl Outbox {
    pub(crate) fn send(&mut self, event: ServerEvent) {
        self.count += 1;
        let event_id = format!("event_{}_{}", self.suffix, self.count);
        self.queue.push_back(Output::Send { event_id, number: self.count, event: Box::new(event) });
    }

    fn error(&mut self, error: ErrorBody) {
        self.send(ServerEvent::Error { error });
    }

    /// All the words of a sound. With `segments` they come with their speaker, of whom one stream has one, and their time in the sound, too.
    pub(crate) fn words(&mut self, item_id: String, content_index: usize, text: String, seconds: f64, segments: bool) {
        if segments && !text.is_empty() {
            let (id, speaker) = (self.name("seg"), "A".into());
            let (item_id, text) = (item_id.clone(), text.clone());
            self.send(ServerEvent::Segment { item_id, content_index, id, text, speaker, start: 0.0, end: seconds });
        }
        self.send(ServerEvent::Transcribed { item_id, content_index, transcript: text, usage: Seconds(seconds) });
    }

    /// A new name, such as `item_…`.
    pub(crate) fn name(&mut self, kind: &str) -> String {
        self.count += 1;
        format!("{kind}_{}_{}", self.suffix, self.count)
    }
}

/// Who a session is, and what it begins with.
#[derive(Debug)]
pub struct Birth {
    /// Its name towards the engine.
    pub id: SessionId,
    /// Makes its names unique among sessions.
    pub suffix: String,
    /// With whom it may share what they have in common.
    pub tenant: Tenant,
    /// What holds in it.
    pub settings: Settings,
}

/// One client's conversation.
pub struct Session {
    id: SessionId,
    tenant: Tenant,
    name: String,
    model: String,
    config: Arc<Config>,
    settings: Settings,
    ear: Ear,
    conversation: Conversation,
    running: Option<Running>,
    spoken: Option<Spoken>,
    told: Vec<Told>,
    ahead: Option<Ahead>,
    /// The item that the speech under way will become.
    speech: Option<String>,
    /// Samples of silence after which the turn that is to be answered was over.
    silence: Option<u64>,
    /// A turn ended while a response ran that may not be interrupted; it is answered next.
    unanswered: bool,
    /// Client's position less ours, samples: what was dropped before it got here, less the silence that we put in.
    offset: i64,
    last_sound: Duration,
    /// The client knows that its buffer is full.
    told_full: bool,
    /// Turns started at the engine.
    turns: u64,
    /// Ears opened at the engine.
    ears: u64,
    /// Responses begun.
    responses: u64,
    /// Responses that may be begun; `None` is any number.
    rate: Option<Rate>,
    now: Duration,
    last_word: Duration,
    /// Since when nobody speaks after a response, for the idle timeout.
    quiet: Option<Duration>,
    out: Outbox,
}

impl Session {
    /// A session that is yet to be [greeted with](Session::greet).
    pub fn new(birth: Birth, model: &str, config: Arc<Config>, now: Duration) -> Self {
        let Birth { id, suffix, tenant, settings } = birth;
        let per_minute = config.limits.responses_per_minute;
        let voice = &config.voice;
        let ear = Ear::new(None, samples_ms(voice.prefix_padding_ms), samples(config.limits.buffered_seconds));
        let mut this = Self {
            id,
            tenant,
            name: format!("sess_{suffix}"),
            model: model.to_owned(),
            conversation: Conversation::new(config.limits.clone()),
            settings,
            ear,
            running: None,
            spoken: None,
            told: Vec::new(),
            ahead: None,
            speech: None,
            silence: None,
            unanswered: false,
            offset: 0,
            last_sound: now,
            told_full: false,
            turns: 0,
            ears: 0,
            responses: 0,
            rate: (per_minute > 0).then(|| Rate::new(per_minute, now)),
            now,
            last_word: now,
            quiet: None,
            out: Outbox { queue: VecDeque::new(), count: 0, suffix },
            config,
        };
        this.listen();
        this
    }

    /// What a client's sound comes in.
    pub fn format(&self) -> Format {
        self.settings.format
    }

    /// Tells a client that has come, the first one or another, what holds. `format` is what its sound begins in, `resume` how it can come back.
    pub fn greet(&mut self, format: Format, resume: Option<Value>) {
        self.settings.format = format;
        let mut session = self.settings.show(&self.name, &self.model);
        if let Some(resume) = resume {
            session["resume"] = resume;
        }
        self.out.send(ServerEvent::SessionCreated { session });
    }

    /// Takes one input. `now` is the time since any fixed moment and never goes back.
    pub fn handle(&mut self, input: Input<'_>, now: Duration) {
        self.now = now;
        if !matches!(input, Input::Tick) {
            self.last_word = now;
        }
        match input {
            Input::Client(incoming) => self.client(incoming),
            Input::Refused(refusal) => self.out.error(refusal),
            Input::Sound { samples, lost } => {
                self.offset += lost as i64;
                self.last_sound = now;
                self.sound(samples);
            }
            Input::Engine(turn, event) => self.engine(turn, event),
            Input::EngineEnded(turn) => self.engine(turn, Event::Failed(EngineError::Stopped)),
            Input::Caption(ear, caption) => self.caption(ear, caption),
            Input::CaptionsEnded(ear) => self.captions_ended(ear),
            Input::Tick => self.tick(now),
        }
        // Quiet begins when nobody speaks and nothing is computed, and only after something was said.
        match (self.ear.in_turn() || self.running.is_some(), self.quiet) {
            (true, _) => self.quiet = None,
            (false, None) if self.responses > 0 => self.quiet = Some(now),
            _ => {}
        }
    }

    /// The next thing to be done, in order.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.queue.pop_front()
    }

    /// When it wants a [`Input::Tick`] at the latest.
    pub fn deadline(&self) -> Duration {
        let idle = self.last_word + Duration::from_secs(self.config.limits.idle_seconds);
        let stall = self.ear.in_turn().then_some(self.last_sound + STALL);
        idle.min(stall.unwrap_or(idle)).min(self.timeout().map_or(idle, |(at, _)| at))
    }

    /// The conversation's name on the wire.
    pub fn conversation_id(&self) -> String {
        format!("conv_{}", self.out.suffix)
    }

    /// The session's name on the wire.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When a long silence makes the model speak up, and how long that is.
    fn timeout(&self) -> Option<(Duration, Duration)> {
        let ms = self.settings.turn_detection.as_ref()?.idle_timeout_ms?;
        let silence = Duration::from_millis(ms.into());
        Some((self.quiet? + silence, silence))
    }

    /// Milliseconds in the client's stream.
    fn ms(&self, position: u64) -> u64 {
        position.saturating_add_signed(self.offset) * 1000 / u64::from(RATE)
    }

    /// Sets the ear up as the settings say.
    fn listen(&mut self) {
        let Some(turns) = self.settings.turn_detection else {
            if self.ear.gate().is_some() {
                self.ear.set_gate(None);
                self.forget_ear();
                self.speech = None;
            }
            return;
        };
        let config = GateConfig::new(turns.threshold, self.config.voice.min_speech_ms, turns.silence_duration_ms);
        self.ear.padding = samples_ms(turns.prefix_padding_ms) as u64;
        self.ear.trail = samples_ms(self.config.voice.pause_ms.min(turns.silence_duration_ms)) as u64;
        match self.ear.gate() {
            Some(gate) => gate.configure(config),
            None => {
                self.ear.set_gate(Some(Gate::new(detector(self.config.voice.detector), config)));
                self.forget_ear();
                self.speech = None;
            }
        }
    }

    fn sound(&mut self, samples: &[f32]) {
        let mut found = Vec::new();
        let no_room = self.ear.push(samples, &mut found);
        if no_room > 0 && !self.told_full {
            self.told_full = true;
            let message =
                format!("The input buffer holds {} s. Commit or clear it.", self.config.limits.buffered_seconds);
            self.out.error(ErrorBody::invalid("input_audio_buffer_full", message));
        }
        for heard in found {
            self.heard(heard);
        }
        self.feed_certain();
    }

    fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Started(at) => self.speech_started(at),
            Heard::Paused(sound) => self.think_ahead(sound),
            Heard::Resumed => self.drop_ahead(),
            Heard::Ended { at, sound, silence } => {
                self.silence = Some(silence);
                self.speech_ended(at, &sound);
            }
        }
    }

    fn speech_started(&mut self, at: u64) {
        self.forget_ear();
        let item_id = self.out.name("item");
        self.speech = Some(item_id.clone());
        self.out.send(ServerEvent::SpeechStarted { audio_start_ms: self.ms(at), item_id });
        if self.settings.turn_detection.is_some_and(|t| t.interrupt_response) {
            self.unanswered = false;
            self.cancel("turn_detected");
        }
    }

    fn speech_ended(&mut self, at: u64, sound: &[f32]) {
        let item_id = match &self.speech {
            Some(id) => id.clone(),
            None => self.out.name("item"),
        };
        self.out.send(ServerEvent::SpeechStopped { audio_end_ms: self.ms(at), item_id: item_id.clone() });
        let answers = self.settings.answers();
        self.close_ear(sound, answers);
        self.speech = None;
        let ahead = self.take_ahead(sound);
        let is_kept = self.commit(item_id, sound).is_ok();
        match ahead {
            Some(ahead) if is_kept && answers => self.adopt(ahead),
            Some((turn, _)) => self.out.queue.push_back(Output::Cancel(turn)),
            None if is_kept && answers => self.answer(),
            None => {}
        }
    }

    /// What was thought at the pause before the turn's end is its response.
    fn adopt(&mut self, (turn, events): (TurnId, Vec<Event>)) {
        self.begin(turn, &ResponseParams::default(), newest_unheard(self.conversation.entries()));
        for event in events {
            self.engine(turn, event);
        }
    }

    /// A user's sound becomes an item. A conversation that is full says so, and the sound is gone.
    fn commit(&mut self, item_id: String, sound: &[f32]) -> Result<(), ()> {
        self.compact();
        let piece = Piece::sound(sound, samples(self.config.voice.max_segment_seconds), None);
        let entry =
            Entry { id: item_id.clone(), status: Status::Completed, body: Body::Message(Role::User, vec![piece]) };
        let item = entry.show();
        let previous_item_id =
            self.conversation.insert(entry, &Where::End).map_err(|full| self.out.error(full.into()))?;
        self.out.send(ServerEvent::Committed { previous_item_id: previous_item_id.clone(), item_id });
        self.out.send(ServerEvent::ItemAdded { previous_item_id: previous_item_id.clone(), item: item.clone() });
        self.out.send(ServerEvent::ItemDone { previous_item_id, item });
        Ok(())
    }

    /// Answers a spoken turn, now or when the running response is over.
    fn answer(&mut self) {
        if self.running.is_some() {
            self.unanswered = true;
        } else if let Err(refusal) = self.respond(ResponseParams::default()) {
            self.out.error(refusal);
        }
    }

    /// Begins a response; nothing runs.
    fn respond(&mut self, mut params: ResponseParams) -> Result<(), Refusal> {
        debug_assert!(self.running.is_none(), "callers look first");
        if !params.out_of_band {
            self.conversation.room()?;
        }
        let choice = params.tool_choice.as_ref().unwrap_or(&self.settings.tool_choice);
        choice.check(params.tools.as_ref().unwrap_or(&self.settings.tools), "response.tool_choice")?;
        let written;
        let entries = match params.input.take() {
            None => self.conversation.entries(),
            Some(input) => {
                written = self.written(input)?;
                &written[..]
            }
        };
        let hears = newest_unheard(entries);
        let request = self.request(&params, entries);
        let turn = self.next_turn();
        let is_allowed = self.is_allowed();
        self.begin(turn, &params, hears);
        if !is_allowed {
            self.finish(End::Limited);
            return Ok(());
        }
        self.out.queue.push_back(Output::Start(turn, Box::new(request)));
        Ok(())
    }

    /// Whether the session may ask for a response now.
    fn is_allowed(&mut self) -> bool {
        self.rate.as_mut().is_none_or(|rate| rate.allows(self.now))
    }

    fn next_turn(&mut self) -> TurnId {
        self.turns += 1;
        TurnId(self.turns)
    }

    /// What the model is told: instructions and items.
    fn prompt(&self, entries: &[Entry], instructions: Option<&String>) -> Vec<engine::Item> {
        let instructions = instructions.unwrap_or(&self.settings.instructions);
        let mut conversation = Vec::new();
        if !instructions.is_empty() {
            let content = vec![Content::Text(instructions.clone())];
            conversation.push(engine::Item::Message { role: Role::System, content });
        }
        conversation.extend(self.conversation.for_engine(entries));
        conversation
    }

    fn request(&self, params: &ResponseParams, entries: &[Entry]) -> Request {
        let (s, thinking) = (&self.settings, &self.config.thinking);
        let budget = thinking.budget(params.effort.unwrap_or(s.effort));
        Request {
            session: self.id,
            tenant: self.tenant,
            conversation: self.prompt(entries, params.instructions.as_ref()),
            tools: tools_json(
                params.tools.as_ref().unwrap_or(&s.tools),
                params.tool_choice.as_ref().unwrap_or(&s.tool_choice),
            ),
            calling: params.tool_choice.as_ref().unwrap_or(&s.tool_choice).calling(),
            thinking: if budget.is_some() { Thinking::On } else { Thinking::Off },
            thinking_budget: budget.unwrap_or(0),
            pace: thinking.pace,
            max_reply_tokens: params.max_output_tokens.unwrap_or(s.max_output_tokens).within(thinking.max_reply_tokens),
            sampling: self.config.sampling.for_turn(self.responses),
            // Told or not: of sound that is no longer heard they are all that is left.
            words: true,
            ending: Ending::Known,
        }
    }

    /// Tells the client of a response and makes its turn the running one.
    fn begin(&mut self, turn: TurnId, params: &ResponseParams, hears: Option<(String, usize)>) {
        self.responses += 1;
        let s = &self.settings;
        let opening = Opening {
            turn,
            response_id: self.out.name("resp"),
            conversation_id: self.conversation_id(),
            out_of_band: params.out_of_band,
            metadata: params.metadata.clone(),
            max_output_tokens: params.max_output_tokens.unwrap_or(s.max_output_tokens),
            hears,
            paced: self.config.thinking.pace != engine::Pace::ThinkBefore,
            tells_words: s.transcription.is_some(),
            tells_segments: s.tells_segments(),
            tells_reasoning: s.includes("reasoning.text"),
            tells_timings: s.includes("hearken.timings"),
            silence_ms: self.silence.take().map(|silence| (silence * 1000) as f64 / f64::from(RATE)),
        };
        self.running = Some(Running::begin(opening, &mut self.out));
        if let Some(rate) = &mut self.rate {
            let rate_limits = [rate.take(self.now)];
            self.out.send(ServerEvent::RateLimits { rate_limits });
        }
    }

    /// Keeps a long conversation within what is heard and remembered; whether that changed it.
    fn compact(&mut self) -> bool {
        let (changed, gone) = self.conversation.compact();
        for item_id in gone {
            self.out.send(ServerEvent::ItemDeleted { item_id });
        }
        changed
    }

    /// Has the engine take in what the conversation has become, while nobody speaks.
    fn prepare(&mut self) {
        if self.spoken.is_none() {
            self.listen_to(self.prompt(self.conversation.entries(), None), false);
            self.out.queue.push_back(Output::Unlisten);
        }
    }

    /// Opens an ear at the engine.
    fn listen_to(&mut self, conversation: Vec<engine::Item>, captions: bool) -> EarId {
        let tools = tools_json(&self.settings.tools, &self.settings.tool_choice);
        let listen = Listen { session: self.id, tenant: self.tenant, conversation, tools, captions };
        self.ears += 1;
        let ear = EarId(self.ears);
        self.out.queue.push_back(Output::Listen(ear, Box::new(listen)));
        ear
    }

    /// The entries of a response's own input.
    fn written(&mut self, input: Vec<InputItem>) -> Result<Vec<Entry>, Refusal> {
        let one = |item| match item {
            InputItem::New(item) => self.entry(item),
            InputItem::Reference(id) => self.conversation.get(&id).cloned().ok_or_else(|| {
                ErrorBody::invalid("invalid_value", format!("There is no item `{id}`.")).at("response.input")
            }),
        };
        input.into_iter().map(one).collect()
    }

    fn engine(&mut self, turn: TurnId, event: Event) {
        if let Some(ahead) = self.ahead.as_mut().filter(|ahead| ahead.turn == turn) {
            return match event {
                Event::Finished(chance) => self.judged(chance),
                event => ahead.events.push(event),
            };
        }
        // Of a turn that was given up: too late.
        let Some(running) = self.running.as_mut().filter(|r| r.opening.turn == turn) else { return };
        let told = match (&event, &running.opening.hears) {
            (Event::Heard(_), Some((item_id, _))) => spoken::take_told(&mut self.told, item_id),
            _ => String::new(),
        };
        if let Some(end) = running.event(event, &told, &mut self.conversation, &mut self.out) {
            self.finish(end);
        }
    }

    /// Gives the running response up. What was sent of it stays.
    fn cancel(&mut self, reason: &'static str) -> bool {
        let Some(running) = &self.running else { return false };
        self.out.queue.push_back(Output::Cancel(running.opening.turn));
        self.finish(End::Cancelled(reason));
        true
    }

    fn finish(&mut self, end: End) {
        if let Some(mut running) = self.running.take() {
            let unheard = running.opening.hears.take().filter(|_| running.opening.tells_words);
            running.end(end, &mut self.conversation, &mut self.out);
            if let Some((item_id, content_index)) = unheard {
                self.read_again(item_id, content_index);
            }
            if self.compact() {
                self.prepare();
            }
        }
        if std::mem::take(&mut self.unanswered) {
            self.answer();
        }
    }

    fn tick(&mut self, now: Duration) {
        if let Some(turns) =
            self.settings.turn_detection.filter(|_| self.ear.in_turn() && now >= self.last_sound + STALL)
        {
            // As the detector would have heard it, had the client gone on sending silence.
            let longest = turns.longest_wait_ms().unwrap_or(0).max(turns.silence_duration_ms);
            let silence = vec![0.0; samples_ms(longest) + RATE as usize / 2];
            self.sound(&silence);
            self.offset -= silence.len() as i64;
            self.last_sound = now;
        }
        if let Some((_, silence)) = self.timeout().filter(|(at, _)| *at <= now) {
            let (start, sound) = self.ear.recent();
            let item_id = self.out.name("item");
            let audio_end_ms = self.ms(self.ear.position());
            let audio_start_ms = audio_end_ms.saturating_sub(silence.as_millis() as u64).min(self.ms(start));
            self.out.send(ServerEvent::TimeoutTriggered { audio_start_ms, audio_end_ms, item_id: item_id.clone() });
            self.quiet = None;
            if self.commit(item_id, &sound).is_ok() {
                self.answer();
            }
        }
        if now >= self.last_word + Duration::from_secs(self.config.limits.idle_seconds) {
            self.out.queue.push_back(Output::CloseIdle);
        }
    }
}

/// The part whose words the engine will tell: the sound of the user's newest message, unless they are known.
fn newest_unheard(entries: &[Entry]) -> Option<(String, usize)> {
    let is_user = |entry: &&Entry| matches!(entry.body, Body::Message(Role::User, _));
    let entry = entries.iter().rfind(is_user)?;
    let Body::Message(_, pieces) = &entry.body else { return None };
    let index = pieces.iter().rposition(|piece| matches!(piece, Piece::Sound { .. }))?;
    matches!(pieces[index], Piece::Sound { transcript: None, .. }).then(|| (entry.id.clone(), index))
}
