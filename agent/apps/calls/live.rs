//! Calls as they go on: each turn is read and noted, watched for alerts, and told to whoever looks.
//!
//! ```text
//!  Live::hear -> turns (bounded) -> words -> notes (bounded) -> summary
//!                turns of a phone line are passed on as they begin, those of a file as they end
//!  full queues: a live call goes on without that turn's words or note, counted; a file waits
//! ```

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};

use super::report::Line;
use super::rules::{Alert, Sign, Watches};
use super::spoken::{Begun, KeptSaying, Mouth, Saying, Spoken};
use super::tape::Tape;
use super::work::Work;
use super::{Call, Ended, Report, Turn, seconds};
use crate::config::Config;
use crate::engine::{Engine, SessionId, Tenant};
use crate::journal::{Journal, JournalError, KeptCall};

/// Turns that may wait to be read, and as many that may be read at once.
pub(super) const TURNS: usize = 32;
/// Turns that may wait for their note: more would be noted long after they matter.
pub(super) const NOTES: usize = 8;
/// Events that a watcher may be behind; then it is told the whole call again.
const EVENTS: usize = 256;
/// Marks and alerts that are kept of one call.
const MARKS: usize = 1024;

/// The kinds of parts that the journal keeps of a call.
const TURN: &str = "turn";
const ALERT: &str = "alert";
/// Whether the alert of that number is still to be posted.
const OWED: &str = "owed";
const MARK: &str = "mark";
const SAYING: &str = "saying";
pub(super) const END: &str = "end";

/// What begins a call.
pub struct Opening {
    /// Unique.
    pub id: String,
    /// `twilio` or `file`.
    pub source: &'static str,
    /// Whose call it is: nobody else sees it.
    pub tenant: Tenant,
    /// One for each party, in the order of the tracks.
    pub names: Vec<String>,
    /// One for each party's ear, and the last for the mind.
    pub sessions: Vec<SessionId>,
    /// Whether the sound waits for the engine: a file does, a person does not.
    pub is_patient: bool,
}

/// Something that the wire marked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Mark {
    at: f64,
    name: String,
}

/// What the journal keeps of a call when it begins.
#[derive(Serialize, Deserialize)]
struct Head {
    source: String,
    names: Vec<String>,
    /// Whether its sound is kept.
    #[serde(default)]
    recorded: bool,
}

/// A turn in the journal: two parties may have one name.
#[derive(Serialize, Deserialize)]
struct KeptTurn {
    party: usize,
    #[serde(flatten)]
    turn: Turn,
}

/// What the journal keeps of a call when it is over.
#[derive(Serialize, Deserialize)]
pub(super) struct End {
    /// Seconds since 1970.
    pub(super) ended: u64,
    pub(super) seconds: f64,
    pub(super) skipped: u64,
    pub(super) summary: Option<String>,
}

/// A call that is or was.
pub struct Record {
    pub(super) id: Arc<str>,
    source: String,
    tenant: Tenant,
    began: u64,
    is_recorded: bool,
    pub(super) inner: Mutex<Inner>,
    events: broadcast::Sender<Told>,
    pub(super) journal: Option<Journal>,
}

/// An event as watchers are told it.
#[derive(Debug, Clone)]
pub struct Told {
    /// A JSON object.
    pub text: Arc<str>,
    /// Nothing comes after it.
    pub is_last: bool,
}

pub(super) struct Inner {
    pub(super) call: Call,
    watches: Watches,
    alerts: Vec<Alert>,
    marks: Vec<Mark>,
    /// What each party is saying.
    saying: Vec<Option<Saying>>,
    pub(super) summary: Option<String>,
    pub(super) ended: Option<u64>,
    /// Turns whose words or note were left out.
    pub(super) skipped: u64,
    silent: f64,
}

impl Inner {
    /// What is being said in this turn, if it is still the last of its party.
    fn saying(&mut self, begun: Begun) -> Option<&mut Saying> {
        let saying = self.saying.get_mut(begun.party)?.as_mut()?;
        (saying.start == seconds(begun.start)).then_some(saying)
    }
}

/// An alert for the receiver that the configuration names.
pub struct Post {
    /// `call.alert`.
    pub event: Value,
    call: Arc<str>,
    number: usize,
    journal: Option<Journal>,
}

impl Post {
    /// It is not to be posted again, after a restart either.
    pub fn settle(&self) {
        if let Some(journal) = &self.journal {
            journal.keep_part(&self.call, OWED, self.number as u64, &false, || ());
        }
    }
}

pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// All calls of a server.
pub struct Hub {
    pub(super) config: Arc<Config>,
    pub(super) engine: Arc<dyn Engine>,
    records: Mutex<VecDeque<Arc<Record>>>,
    /// Where alerts go beside the events.
    webhook: Option<mpsc::Sender<Post>>,
    journal: Option<Journal>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Remembers the calls of the journal, if there is one, and keeps there what comes. Alerts are handed to `webhook` if there is one, first those
    /// that no [`Post::settle`] came for before the program ended. When it is full they wait in the journal for the next start, and without one are dropped.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn new(
        config: Arc<Config>,
        engine: Arc<dyn Engine>,
        webhook: Option<mpsc::Sender<Post>>,
        journal: Option<Journal>,
    ) -> Result<Self, JournalError> {
        let kept = journal.as_ref().map(Journal::calls).transpose()?.unwrap_or_default();
        let mut owed = Vec::new();
        let mut records = VecDeque::new();
        for call in kept {
            let is_owed = |part: &&(String, u64, Value)| part.0 == OWED && part.2 == true;
            let numbers: Vec<usize> = call.parts.iter().filter(is_owed).map(|part| part.1 as usize).collect();
            let record = Arc::new(Record::past(call, &config, journal.clone()));
            owed.extend(numbers.into_iter().map(|number| (record.clone(), number)));
            records.push_back(record);
        }
        let hub = Self { config, engine, records: Mutex::new(records), webhook, journal };
        hub.tidy();
        for (record, number) in owed {
            let is_kept = lock(&hub.records).iter().any(|kept| Arc::ptr_eq(kept, &record));
            let alert = lock(&record.inner).alerts.get(number).cloned();
            if let Some(alert) = alert.filter(|_| is_kept) {
                hub.post(&record, number, record.alerted(&alert));
            }
        }
        Ok(hub)
    }

    /// Forgets what is past its time. To be called now and then: nobody may ask for calls for days.
    pub fn tidy(&self) {
        self.sweep(&mut lock(&self.records));
        if let Some(journal) = &self.journal {
            journal.tidy();
        }
    }

    /// A new call: what hears it, and what is to run until all of it is read and noted.
    pub fn open(self: &Arc<Self>, opening: Opening) -> (Live, impl Future<Output = ()> + Send + 'static) {
        let Opening { id, source, tenant, mut names, sessions, is_patient } = opening;
        // Who is told apart by name needs one of their own.
        for later in 1..names.len() {
            if names[..later].contains(&names[later]) {
                names[later].push_str(" 2");
            }
        }
        let (mouths, saying) = (names.iter().map(|_| None).collect(), vec![None; names.len()]);
        let inner = Inner {
            call: Call::new(names, &self.config.voice),
            watches: Watches::new(&self.config.calls.alerts),
            alerts: Vec::new(),
            marks: Vec::new(),
            saying,
            summary: None,
            ended: None,
            skipped: 0,
            silent: 0.0,
        };
        let (events, _) = broadcast::channel(EVENTS);
        let (id, source, journal): (Arc<str>, _, _) = (Arc::from(id), source.to_owned(), self.journal.clone());
        let place = journal.as_ref().filter(|_| self.config.calls.record).map(|journal| journal.sound(&id));
        let tape = place.and_then(|place| {
            let begun = Tape::begin(&place, inner.call.names().len());
            begun.inspect_err(|error| tracing::error!(call = %id, %error, "this call is not recorded")).ok()
        });
        let (tape, written) = tape.unzip();
        let is_recorded = tape.is_some();
        if let Some(journal) = &journal {
            let names = inner.call.names().to_vec();
            journal.begin_call(&id, tenant, &Head { source: source.clone(), names, recorded: is_recorded });
        }
        let (began, inner) = (now(), Mutex::new(inner));
        let record = Arc::new(Record { id, source, tenant, began, is_recorded, inner, events, journal });
        {
            let mut records = lock(&self.records);
            records.push_back(record.clone());
            self.sweep(&mut records);
        }
        let (turns, queue) = mpsc::channel(TURNS);
        let (hub, heard_by) = (self.clone(), sessions.clone());
        let work = Work { hub, record: record.clone(), tenant, sessions, written, is_patient };
        let live =
            Live { hub: self.clone(), record, sessions: heard_by, turns, mouths, tape, is_patient, is_over: false };
        (live, work.run(queue))
    }

    fn sweep(&self, records: &mut VecDeque<Arc<Record>>) {
        let seconds = (self.config.calls.hours * 3600.0) as u64;
        let now = now();
        let is_past = |record: &Record| lock(&record.inner).ended.is_some_and(|ended| ended + seconds <= now);
        while let Some(at) = records.iter().position(|record| seconds > 0 && is_past(record)) {
            self.drop_at(records, at);
        }
        while records.len() > self.config.calls.kept {
            // A call that goes on is not forgotten before one that is over.
            let oldest = records.iter().position(|record| record.is_over()).unwrap_or(0);
            self.drop_at(records, oldest);
        }
    }

    fn drop_at(&self, records: &mut VecDeque<Arc<Record>>, at: usize) {
        if let (Some(record), Some(journal)) = (records.remove(at), &self.journal) {
            journal.drop_call(&record.id);
        }
    }

    /// This tenant's calls, the newest first.
    pub fn list(&self, tenant: Tenant) -> Vec<Arc<Record>> {
        let mut records = lock(&self.records);
        self.sweep(&mut records);
        records.iter().rev().filter(|record| record.tenant == tenant).cloned().collect()
    }

    /// One of this tenant's calls.
    pub fn find(&self, tenant: Tenant, id: &str) -> Option<Arc<Record>> {
        self.list(tenant).into_iter().find(|record| *record.id == *id)
    }

    /// Takes back a call that turned out to be none.
    pub fn discard(&self, record: &Arc<Record>) {
        let mut records = lock(&self.records);
        if let Some(at) = records.iter().position(|known| Arc::ptr_eq(known, record)) {
            self.drop_at(&mut records, at);
        }
    }

    /// Forgets a call that is over, and waits until it is gone from the journal; whether there was one.
    ///
    /// # Errors
    /// [`JournalError`]: it is still there.
    pub async fn forget(&self, tenant: Tenant, id: &str) -> Result<bool, JournalError> {
        let is_it = |record: &Arc<Record>| record.tenant == tenant && *record.id == *id && record.is_over();
        let found = lock(&self.records).iter().any(is_it);
        if let Some(journal) = self.journal.as_ref().filter(|_| found) {
            journal.forget_call(id).await?;
        }
        lock(&self.records).retain(|record| !is_it(record));
        Ok(found)
    }
}

impl Record {
    /// One of the journal. A call that was not over when the program ended is over now.
    fn past(kept: KeptCall, config: &Config, journal: Option<Journal>) -> Self {
        let unknown = Head { source: "unknown".into(), names: Vec::new(), recorded: false };
        let Head { source, names, recorded } = serde_json::from_value(kept.head).unwrap_or(unknown);
        let (mut turns, mut alerts, mut marks, mut saying, mut end) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), None);
        for (kind, _, part) in kept.parts {
            // What another version wrote and this one cannot read is left out.
            match kind.as_str() {
                TURN => turns
                    .extend(serde_json::from_value(part).ok().map(|KeptTurn { party, turn }| Turn { party, ..turn })),
                ALERT => alerts.extend(serde_json::from_value::<Alert>(part).ok()),
                MARK => marks.extend(serde_json::from_value::<Mark>(part).ok()),
                SAYING => saying.extend(serde_json::from_value::<KeptSaying>(part).ok()),
                END => end = serde_json::from_value::<End>(part).ok(),
                _ => {}
            }
        }
        turns.retain(|turn| turn.party < names.len());
        let end = end.unwrap_or_else(|| {
            let cut: Vec<_> = saying.into_iter().filter_map(|saying| saying.settle(&mut turns)).collect();
            let all = turns.iter().map(|turn| turn.end).chain(cut.iter().map(|saying| saying.start));
            let seconds = all.fold(0.0, f64::max);
            let said = cut.iter().filter_map(|saying| {
                let name = format!("{} was saying: {}", names.get(saying.party)?, saying.words);
                Some(Mark { at: saying.start, name })
            });
            marks.extend(said);
            marks.push(Mark { at: seconds, name: "the server was restarted here".into() });
            End { ended: kept.updated_ms as u64 / 1000, seconds, skipped: 0, summary: None }
        });
        let inner = Inner {
            call: Call::past(names, turns, end.seconds),
            watches: Watches::new(&config.calls.alerts),
            alerts,
            marks,
            saying: Vec::new(),
            summary: end.summary,
            ended: Some(end.ended),
            skipped: end.skipped,
            silent: 0.0,
        };
        Self {
            id: kept.id.into(),
            source,
            tenant: kept.tenant,
            began: kept.created_ms as u64 / 1000,
            is_recorded: recorded,
            inner: Mutex::new(inner),
            events: broadcast::channel(1).0,
            journal,
        }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether all of it is heard, read and noted.
    pub fn is_over(&self) -> bool {
        lock(&self.inner).ended.is_some()
    }

    /// Where its sound is, if that is kept: Ogg Opus, a channel for each party. While the call goes on it grows.
    pub fn sound(&self) -> Option<PathBuf> {
        self.journal.as_ref().filter(|_| self.is_recorded).map(|journal| journal.sound(&self.id))
    }

    /// What is known of it.
    pub fn report(&self) -> Report {
        Report::of(&lock(&self.inner).call)
    }

    /// The call as a JSON object.
    pub fn show(&self) -> Value {
        let report = self.report();
        let mut shown = self.head(&report);
        shown["speaking"] = json!(self.speakers());
        let inner = lock(&self.inner);
        shown["silence"] = json!(report.silence);
        shown["turns"] = json!(report.turns);
        let saying = inner.saying.iter().flatten().filter(|saying| inner.ended.is_none() && saying.is_told());
        shown["saying"] = json!(saying.collect::<Vec<_>>());
        shown["alerts"] = json!(inner.alerts);
        shown["marks"] = json!(inner.marks);
        shown["skipped"] = json!(inner.skipped);
        shown["summary"] = json!(inner.summary);
        shown
    }

    /// The call as a line of a list.
    pub fn show_short(&self) -> Value {
        let mut shown = self.head(&self.report());
        let inner = lock(&self.inner);
        (shown["turns"], shown["alerts"]) = (json!(inner.call.turns().len()), json!(inner.alerts.len()));
        shown
    }

    fn head(&self, report: &Report) -> Value {
        let state = if self.is_over() { "ended" } else { "live" };
        json!({
            "id": *self.id, "object": "call", "source": self.source, "state": state, "created": self.began,
            "seconds": report.seconds, "parties": report.parties, "recorded": self.is_recorded,
        })
    }

    fn alerted(&self, alert: &Alert) -> Value {
        json!({"type": "call.alert", "call": *self.id, "alert": alert})
    }

    /// The names of those who are speaking now.
    fn speakers(&self) -> Vec<String> {
        let call = &lock(&self.inner).call;
        let speaking = call.names().iter().enumerate().filter(|(party, _)| call.speaks(*party));
        speaking.map(|(_, name)| name.clone()).collect()
    }

    /// The whole call now, and all that comes after.
    pub fn watch(&self) -> (Value, broadcast::Receiver<Told>) {
        // Subscribed first: what happens between is told twice rather than never.
        let events = self.events.subscribe();
        (self.show(), events)
    }

    pub(super) fn tell(&self, event: &Value) {
        // Nobody may be watching.
        drop(self.events.send(Told::of(event)));
    }

    /// Tells what is kept in the journal first, where there is one.
    fn keep(&self, kind: &'static str, number: usize, part: &impl Serialize, event: &Value) {
        let Some(journal) = &self.journal else { return self.tell(event) };
        let (events, told) = (self.events.clone(), Told::of(event));
        journal.keep_part(&self.id, kind, number as u64, part, move || drop(events.send(told)));
    }

    /// A turn's words are known; of one that was read while it was spoken, nothing more is to come.
    pub(super) fn set_words(&self, turn: usize, begun: Option<Begun>, words: &str) {
        let mut inner = lock(&self.inner);
        inner.call.set_words(turn, words.to_owned());
        if let Some(begun) = begun.filter(|begun| inner.saying(*begun).is_some()) {
            inner.saying[begun.party] = None;
        }
        drop(inner);
        self.tell_turn(turn);
    }

    /// Changes what is known of a turn that is being spoken, and tells it; unless its party has begun another meanwhile.
    pub(super) fn tell_saying(&self, begun: Begun, change: impl FnOnce(&mut Saying)) {
        let mut inner = lock(&self.inner);
        let Some(saying) = inner.saying(begun) else { return };
        change(saying);
        if !saying.is_told() {
            return;
        }
        let kept = KeptSaying { party: begun.party, start: saying.start, words: saying.words.clone() };
        let event = json!({"type": "call.words", "saying": saying});
        drop(inner);
        self.keep(SAYING, begun.party, &kept, &event);
    }

    pub(super) fn tell_turn(&self, turn: usize) {
        let inner = lock(&self.inner);
        let Some(known) = inner.call.turns().get(turn) else { return };
        let kept = KeptTurn { party: known.party, turn: known.clone() };
        let Report { seconds, parties, silence, .. } = Report::of(&inner.call);
        let event = json!({
            "type": "call.turn", "turn": Line::of(&inner.call, known),
            "seconds": seconds, "parties": parties, "silence": silence,
        });
        drop(inner);
        self.keep(TURN, turn, &kept, &event);
    }
}

impl Told {
    fn of(event: &Value) -> Self {
        Self { text: event.to_string().into(), is_last: event["type"] == "call.ended" }
    }
}

/// Hears a call. Dropping it hangs up.
pub struct Live {
    hub: Arc<Hub>,
    record: Arc<Record>,
    sessions: Vec<SessionId>,
    turns: mpsc::Sender<Spoken>,
    /// The turns that are being spoken, one for each party.
    mouths: Vec<Option<Mouth>>,
    tape: Option<Tape>,
    is_patient: bool,
    is_over: bool,
}

/// Hands a turn on.
type Pass = fn(&mpsc::Sender<Spoken>, Spoken) -> bool;

impl Live {
    /// The call that is heard.
    pub fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// The next samples of a party; `false` when the call has become too long. It never waits.
    pub fn hear(&mut self, party: usize, samples: &[f32]) -> bool {
        self.push(party, samples, |turns, turn| turns.try_send(turn).is_ok())
    }

    /// As [`Live::hear`], from a thread that may block: it waits for the engine.
    pub fn hear_patiently(&mut self, party: usize, samples: &[f32]) -> bool {
        self.push(party, samples, |turns, turn| turns.blocking_send(turn).is_ok())
    }

    fn push(&mut self, party: usize, samples: &[f32], pass: Pass) -> bool {
        if let Some(tape) = &mut self.tape {
            tape.hear(party, samples, self.is_patient);
        }
        let record = self.record.clone();
        let mut inner = lock(&record.inner);
        let spoke = inner.call.speaks(party);
        let ended = inner.call.hear(party, samples);
        let speaks = inner.call.speaks(party);
        let (before, silent) = (inner.silent, inner.call.silent_for());
        inner.silent = silent;
        let (seconds, lasts) =
            (inner.call.seconds(), inner.call.seconds() < f64::from(self.hub.config.calls.max_seconds));
        // Nobody waits for the words of a file, whose sound comes much faster than it was spoken.
        let saying = if self.is_patient { None } else { inner.call.saying(party) };
        let known = self.mouths.get(party).and_then(Option::as_ref).filter(|_| ended.is_empty());
        let fresh = saying.map(|(start, said)| (Begun { party, start }, said[known.map_or(0, Mouth::fed)..].to_vec()));
        drop(inner);
        if speaks != spoke {
            self.record.tell(&json!({"type": "call.speaking", "speaking": self.record.speakers(), "at": seconds}));
        }
        if silent > before {
            self.hub.see(&self.record, seconds, None, &Sign::Silence(before, silent));
        }
        ended.into_iter().for_each(|ended| self.ended(ended, pass));
        if let Some((begun, said)) = fresh.filter(|(_, said)| !said.is_empty()) {
            self.say(begun, &said, pass);
        }
        lasts
    }

    /// More of a turn that is being spoken.
    fn say(&mut self, begun: Begun, said: &[f32], pass: Pass) {
        let party = begun.party;
        if self.mouths[party].is_none() {
            let (mouth, spoken) = Mouth::open(&*self.hub.engine, self.sessions[party], self.record.tenant, begun);
            let mut inner = lock(&self.record.inner);
            inner.saying[party] = Some(Saying::new(inner.call.names()[party].clone(), seconds(begun.start)));
            drop(inner);
            // Not taken, it is counted when it ends.
            pass(&self.turns, spoken);
            self.mouths[party] = Some(mouth);
        }
        if let Some(mouth) = &mut self.mouths[party] {
            mouth.say(said);
        }
    }

    fn ended(&mut self, ended: Ended, pass: Pass) {
        let mouth = self.mouths[ended.party].take();
        if let Some(mouth) = &mouth {
            self.record.tell_saying(mouth.begun, |saying| saying.turn = Some(ended.turn));
        }
        self.record.tell_turn(ended.turn);
        for turn in &ended.interruptions {
            self.record.tell_turn(*turn);
            self.hub.see_turn(&self.record, *turn, &Sign::Interruption);
        }
        let taken = match mouth {
            Some(mouth) => mouth.end(ended),
            None => pass(&self.turns, Spoken::over(ended)),
        };
        if !taken {
            lock(&self.record.inner).skipped += 1;
        }
    }

    /// The wire marks this moment.
    pub fn mark(&self, name: &str) {
        let mut inner = lock(&self.record.inner);
        if inner.marks.len() < MARKS {
            let mark = Mark { at: inner.call.seconds(), name: name.chars().take(64).collect() };
            inner.marks.push(mark.clone());
            let number = inner.marks.len() - 1;
            drop(inner);
            self.record.keep(MARK, number, &mark, &json!({"type": "call.mark", "mark": mark}));
        }
    }

    /// The call is over; from a thread that may block.
    pub fn hang_up_patiently(mut self) {
        self.hang_up(|turns, turn| turns.blocking_send(turn).is_ok());
    }

    fn hang_up(&mut self, pass: Pass) {
        if !std::mem::replace(&mut self.is_over, true) {
            let last = lock(&self.record.inner).call.hang_up();
            last.into_iter().for_each(|ended| self.ended(ended, pass));
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.hang_up(|turns, turn| turns.try_send(turn).is_ok());
    }
}

impl Hub {
    pub(super) fn see_turn(&self, record: &Record, turn: usize, sign: &Sign<'_>) {
        let inner = lock(&record.inner);
        let Some((at, party)) = inner.call.turns().get(turn).map(|turn| (turn.start, turn.party)) else { return };
        let party = inner.call.names()[party].clone();
        drop(inner);
        self.see(record, at, Some(&party), sign);
    }

    fn see(&self, record: &Record, at: f64, party: Option<&str>, sign: &Sign<'_>) {
        let mut inner = lock(&record.inner);
        let met = inner.watches.see(at, party, sign);
        let first = inner.alerts.len();
        inner.alerts.extend(met.iter().take(MARKS.saturating_sub(first)).cloned());
        drop(inner);
        for (number, alert) in met.iter().enumerate() {
            let (number, event) = (first + number, record.alerted(alert));
            if number < MARKS {
                record.keep(ALERT, number, alert, &event);
                if let Some(journal) = record.journal.as_ref().filter(|_| self.webhook.is_some()) {
                    journal.keep_part(&record.id, OWED, number as u64, &true, || ());
                }
            } else {
                record.tell(&event);
            }
            self.post(record, number, event);
        }
    }

    fn post(&self, record: &Record, number: usize, event: Value) {
        let Some(webhook) = &self.webhook else { return };
        let journal = record.journal.clone().filter(|_| number < MARKS);
        if webhook.try_send(Post { event, call: record.id.clone(), number, journal }).is_err() {
            tracing::warn!(call = %record.id, "the webhook does not keep up: an alert is not posted now");
        }
    }
}
