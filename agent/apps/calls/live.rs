//! Calls as they go on: each turn is read and noted, watched for alerts, and told to whoever looks.
//!
//! ```text
//!  Live::hear -> turns (bounded) -> words -> notes (bounded) -> summary
//!  full queues: a live call goes on without that turn's words or note, counted; a file waits
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};

use super::note::Mind;
use super::report::Line;
use super::rules::{Alert, Sign, Watches};
use super::{Call, Ended, Report};
use crate::apps::transcribe::Words;
use crate::config::Config;
use crate::engine::{Engine, EngineError, SessionId, Tenant};

/// Turns that may wait to be read.
const TURNS: usize = 32;
/// Turns that may wait for their note: more would be noted long after they matter.
const NOTES: usize = 8;
/// Events that a watcher may be behind; then it is told the whole call again.
const EVENTS: usize = 256;
/// Marks and alerts that are kept of one call.
const MARKS: usize = 1024;

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
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Mark {
    at: f64,
    name: String,
}

/// A call that is or was.
pub struct Record {
    id: String,
    source: &'static str,
    tenant: Tenant,
    began: u64,
    inner: Mutex<Inner>,
    events: broadcast::Sender<Told>,
}

/// An event as watchers are told it.
#[derive(Debug, Clone)]
pub struct Told {
    /// A JSON object.
    pub text: Arc<str>,
    /// Nothing comes after it.
    pub is_last: bool,
}

struct Inner {
    call: Call,
    watches: Watches,
    alerts: Vec<Alert>,
    marks: Vec<Mark>,
    summary: Option<String>,
    ended: Option<u64>,
    /// Turns whose words or note were left out.
    skipped: u64,
    silent: f64,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// All calls of a server.
pub struct Hub {
    config: Arc<Config>,
    engine: Arc<dyn Engine>,
    records: Mutex<VecDeque<Arc<Record>>>,
    /// Where alerts go beside the events.
    webhook: Option<mpsc::Sender<Value>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Remembers no call yet. Alerts are handed to `webhook` if there is one; when it is full they are dropped.
    pub fn new(config: Arc<Config>, engine: Arc<dyn Engine>, webhook: Option<mpsc::Sender<Value>>) -> Self {
        Self { config, engine, records: Mutex::default(), webhook }
    }

    /// A new call: what hears it, and what is to run until all of it is read and noted.
    pub fn open(self: &Arc<Self>, opening: Opening) -> (Live, impl Future<Output = ()> + Send + 'static) {
        let Opening { id, source, tenant, names, sessions, is_patient } = opening;
        let inner = Inner {
            call: Call::new(names, &self.config.voice),
            watches: Watches::new(&self.config.calls.alerts),
            alerts: Vec::new(),
            marks: Vec::new(),
            summary: None,
            ended: None,
            skipped: 0,
            silent: 0.0,
        };
        let (events, _) = broadcast::channel(EVENTS);
        let record = Arc::new(Record { id, source, tenant, began: now(), inner: Mutex::new(inner), events });
        {
            let mut records = lock(&self.records);
            self.sweep(&mut records);
            if records.len() >= self.config.calls.kept {
                // A call that goes on is not forgotten before one that is over.
                let oldest = records.iter().position(|record| record.is_over()).unwrap_or(0);
                records.remove(oldest);
            }
            records.push_back(record.clone());
        }
        let (turns, queue) = mpsc::channel(TURNS);
        let work = Work { hub: self.clone(), record: record.clone(), tenant, sessions, is_patient };
        (Live { hub: self.clone(), record, turns, is_over: false }, work.run(queue))
    }

    fn sweep(&self, records: &mut VecDeque<Arc<Record>>) {
        let seconds = (self.config.calls.hours * 3600.0) as u64;
        let now = now();
        if seconds > 0 {
            records.retain(|record| lock(&record.inner).ended.is_none_or(|ended| ended + seconds > now));
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
        self.list(tenant).into_iter().find(|record| record.id == id)
    }

    /// Takes back a call that turned out to be none.
    pub fn discard(&self, record: &Arc<Record>) {
        lock(&self.records).retain(|known| !Arc::ptr_eq(known, record));
    }

    /// Forgets a call that is over; whether there was one.
    pub fn forget(&self, tenant: Tenant, id: &str) -> bool {
        let mut records = lock(&self.records);
        let before = records.len();
        records.retain(|record| !(record.tenant == tenant && record.id == id && record.is_over()));
        records.len() < before
    }
}

impl Record {
    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether all of it is heard, read and noted.
    pub fn is_over(&self) -> bool {
        lock(&self.inner).ended.is_some()
    }

    /// What is known of it.
    pub fn report(&self) -> Report {
        Report::of(&lock(&self.inner).call)
    }

    /// The call as a JSON object.
    pub fn show(&self) -> Value {
        let report = self.report();
        let mut shown = self.head(&report);
        let inner = lock(&self.inner);
        shown["silence"] = json!(report.silence);
        shown["turns"] = json!(report.turns);
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
            "id": self.id, "object": "call", "source": self.source, "state": state, "created": self.began,
            "seconds": report.seconds, "parties": report.parties,
        })
    }

    /// The whole call now, and all that comes after.
    pub fn watch(&self) -> (Value, broadcast::Receiver<Told>) {
        // Subscribed first: what happens between is told twice rather than never.
        let events = self.events.subscribe();
        (self.show(), events)
    }

    fn tell(&self, event: &Value) {
        // Nobody may be watching.
        let is_last = event["type"] == "call.ended";
        drop(self.events.send(Told { text: event.to_string().into(), is_last }));
    }

    fn tell_turn(&self, turn: usize) {
        let inner = lock(&self.inner);
        let Some(turn) = inner.call.turns().get(turn) else { return };
        let event = json!({"type": "call.turn", "turn": Line::of(&inner.call, turn)});
        drop(inner);
        self.tell(&event);
    }
}

/// Hears a call. Dropping it hangs up.
pub struct Live {
    hub: Arc<Hub>,
    record: Arc<Record>,
    turns: mpsc::Sender<Ended>,
    is_over: bool,
}

impl Live {
    /// The call that is heard.
    pub fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// The next samples of a party; `false` when the call has become too long. It never waits.
    pub fn hear(&self, party: usize, samples: &[f32]) -> bool {
        self.push(party, samples, |turns, ended| turns.try_send(ended).is_ok())
    }

    /// As [`Live::hear`], from a thread that may block: it waits for the engine.
    pub fn hear_patiently(&self, party: usize, samples: &[f32]) -> bool {
        self.push(party, samples, |turns, ended| turns.blocking_send(ended).is_ok())
    }

    fn push(&self, party: usize, samples: &[f32], pass: fn(&mpsc::Sender<Ended>, Ended) -> bool) -> bool {
        let mut inner = lock(&self.record.inner);
        let ended = inner.call.hear(party, samples);
        let (before, silent) = (inner.silent, inner.call.silent_for());
        inner.silent = silent;
        let (seconds, lasts) =
            (inner.call.seconds(), inner.call.seconds() < f64::from(self.hub.config.calls.max_seconds));
        drop(inner);
        if silent > before {
            self.hub.see(&self.record, seconds, None, &Sign::Silence(before, silent));
        }
        ended.into_iter().for_each(|ended| self.ended(ended, pass));
        lasts
    }

    fn ended(&self, ended: Ended, pass: fn(&mpsc::Sender<Ended>, Ended) -> bool) {
        self.record.tell_turn(ended.turn);
        for turn in &ended.interruptions {
            self.record.tell_turn(*turn);
            self.hub.see_turn(&self.record, *turn, &Sign::Interruption);
        }
        if !pass(&self.turns, ended) {
            lock(&self.record.inner).skipped += 1;
        }
    }

    /// The wire marks this moment.
    pub fn mark(&self, name: &str) {
        let mut inner = lock(&self.record.inner);
        if inner.marks.len() < MARKS {
            let mark = Mark { at: inner.call.seconds(), name: name.chars().take(64).collect() };
            inner.marks.push(mark.clone());
            drop(inner);
            self.record.tell(&json!({"type": "call.mark", "mark": mark}));
        }
    }

    /// The call is over; from a thread that may block.
    pub fn hang_up_patiently(mut self) {
        self.hang_up(|turns, ended| turns.blocking_send(ended).is_ok());
    }

    fn hang_up(&mut self, pass: fn(&mpsc::Sender<Ended>, Ended) -> bool) {
        if !std::mem::replace(&mut self.is_over, true) {
            let last = lock(&self.record.inner).call.hang_up();
            last.into_iter().for_each(|ended| self.ended(ended, pass));
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.hang_up(|turns, ended| turns.try_send(ended).is_ok());
    }
}

impl Hub {
    fn see_turn(&self, record: &Record, turn: usize, sign: &Sign<'_>) {
        let inner = lock(&record.inner);
        let Some((at, party)) = inner.call.turns().get(turn).map(|turn| (turn.start, turn.party)) else { return };
        let party = inner.call.names()[party].clone();
        drop(inner);
        self.see(record, at, Some(&party), sign);
    }

    fn see(&self, record: &Record, at: f64, party: Option<&str>, sign: &Sign<'_>) {
        let mut inner = lock(&record.inner);
        let met = inner.watches.see(at, party, sign);
        let room = MARKS.saturating_sub(inner.alerts.len());
        inner.alerts.extend(met.iter().take(room).cloned());
        drop(inner);
        for alert in met {
            let event = json!({"type": "call.alert", "call": record.id, "alert": alert});
            record.tell(&event);
            if self.webhook.as_ref().is_some_and(|webhook| webhook.try_send(event).is_err()) {
                tracing::warn!(call = record.id, "the webhook does not keep up: an alert was not posted");
            }
        }
    }
}

/// What reads and notes a call.
struct Work {
    hub: Arc<Hub>,
    record: Arc<Record>,
    tenant: Tenant,
    sessions: Vec<SessionId>,
    is_patient: bool,
}

impl Drop for Work {
    /// Also when it is dropped in the middle: the engine forgets it and the call counts as over.
    fn drop(&mut self) {
        self.sessions.iter().for_each(|session| self.hub.engine.close(*session));
        lock(&self.record.inner).ended.get_or_insert_with(now);
        self.record.tell(&json!({"type": "call.ended", "call": self.record.show()}));
    }
}

impl Work {
    async fn run(self, mut turns: mpsc::Receiver<Ended>) {
        let (notes, mut waiting) = mpsc::channel::<Ended>(NOTES);
        let read = async {
            while let Some(ended) = turns.recv().await {
                self.read(&ended).await;
                if !self.hub.config.calls.notes {
                    continue;
                }
                let taken =
                    if self.is_patient { notes.send(ended).await.is_ok() } else { notes.try_send(ended).is_ok() };
                if !taken {
                    lock(&self.record.inner).skipped += 1;
                }
            }
            drop(notes);
        };
        let note = async {
            while let Some(ended) = waiting.recv().await {
                self.note(ended).await;
            }
        };
        tokio::join!(read, note);
        if self.hub.config.calls.notes {
            self.sum_up().await;
        }
    }

    async fn read(&self, Ended { turn, party, sound, .. }: &Ended) {
        let words = async {
            let mut words = Words::begin(&*self.hub.engine, self.sessions[*party], self.tenant, sound)?;
            let mut text = String::new();
            while let Some(piece) = words.next().await? {
                text.push_str(&piece);
            }
            Ok::<_, EngineError>(text)
        };
        match words.await {
            Ok(words) => {
                let mut words = words.trim().to_owned();
                if self.hub.config.calls.redact {
                    words = words.chars().map(|c| if c.is_numeric() { '•' } else { c }).collect();
                }
                lock(&self.record.inner).call.set_words(*turn, words.clone());
                self.record.tell_turn(*turn);
                self.hub.see_turn(&self.record, *turn, &Sign::Words(&words));
            }
            Err(error) => self.skip("words", &error),
        }
    }

    fn skip(&self, what: &str, error: &EngineError) {
        tracing::warn!(call = self.record.id, %error, "a turn goes without its {what}");
        lock(&self.record.inner).skipped += 1;
    }

    fn mind(&self) -> Mind {
        let session = *self.sessions.last().expect("the mind has a session");
        Mind { engine: self.hub.engine.clone(), session, tenant: self.tenant, config: self.hub.config.clone() }
    }

    async fn note(&self, Ended { turn, party, sound, .. }: Ended) {
        let (before, name) = {
            let inner = lock(&self.record.inner);
            (inner.call.said(Some(turn)), inner.call.names()[party].clone())
        };
        match self.mind().note(&before, &name, sound).await {
            Ok(note) => {
                lock(&self.record.inner).call.set_note(turn, note.clone());
                self.record.tell_turn(turn);
                self.hub.see_turn(&self.record, turn, &Sign::Note(&note));
            }
            Err(error) => self.skip("note", &error),
        }
    }

    async fn sum_up(&self) {
        let said = lock(&self.record.inner).call.said(None);
        if said.is_empty() {
            return;
        }
        match self.mind().summary(&said).await {
            Ok(summary) => lock(&self.record.inner).summary = Some(summary),
            Err(error) => self.skip("summary", &error),
        }
    }
}
