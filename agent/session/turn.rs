//! One response, from the engine's events to the client's, in the order that the protocol promises.
//!
//! A response owns its text until it closes an item. Whatever ends it (the model, a limit, the client, speech) closes what is open with exactly
//! the text that was sent, and says why in `response.done`.

use serde_json::{Map, Value};

use super::conversation::{Body, Conversation, Entry, Piece};
use super::spoken::complete;
use super::{Outbox, TurnId};
use crate::engine::{EngineError, Event, Finish, Role, Timings, Usage};
use crate::protocol::openai::{
    BufferedText, ErrorBody, Item, MaxTokens, Place, Response, ResponseStatus, ServerEvent, Status, StatusDetails,
    TimingsMs,
};

/// What is fixed when a response begins.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) turn: TurnId,
    pub(super) response_id: String,
    pub(super) conversation_id: String,
    pub(super) out_of_band: bool,
    pub(super) metadata: Option<Map<String, Value>>,
    pub(super) max_output_tokens: MaxTokens,
    /// The item and part whose words [`Event::Heard`] tells, if the newest sound has none yet.
    pub(super) hears: Option<(String, usize)>,
    /// Whether reasoning may go on beside the reply.
    pub(super) paced: bool,
    pub(super) tells_words: bool,
    pub(super) tells_segments: bool,
    pub(super) tells_reasoning: bool,
    pub(super) tells_timings: bool,
    /// How long the spoken turn's end was waited for.
    pub(super) silence_ms: Option<f64>,
}

/// Why a response ends.
#[derive(Debug)]
pub(super) enum End {
    Done(Finish, Usage, Timings),
    Cancelled(&'static str),
    Failed(EngineError),
    /// The session has asked for too many.
    Limited,
}

#[derive(Debug)]
struct OpenMessage {
    id: String,
    text: String,
}

#[derive(Debug)]
struct OpenCall {
    item_id: String,
    call_id: String,
    name: String,
    arguments: String,
}

impl OpenCall {
    fn entry(&self, status: Status) -> Entry {
        let (call_id, name, arguments) = (self.call_id.clone(), self.name.clone(), self.arguments.clone());
        Entry { id: self.item_id.clone(), status, body: Body::Call { call_id, name, arguments } }
    }
}

/// A response under way.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) opening: Opening,
    /// Finished items.
    output: Vec<Item>,
    open: Option<OpenMessage>,
    /// A call being written.
    call: Option<OpenCall>,
    /// The name kept for the item that the reasoning leads to.
    reserved: Option<String>,
    /// The item it belongs to, and its text so far.
    reasoning: Option<(String, String)>,
}

impl Running {
    /// Begins, and says so before anything is computed.
    pub(super) fn begin(opening: Opening, out: &mut Outbox) -> Self {
        let this = Self { opening, output: Vec::new(), open: None, call: None, reserved: None, reasoning: None };
        let response = this.show(ResponseStatus::InProgress, None, None, None);
        out.send(ServerEvent::ResponseCreated { response });
        this
    }

    fn show(
        &self,
        status: ResponseStatus,
        status_details: Option<StatusDetails>,
        usage: Option<Usage>,
        timings: Option<Timings>,
    ) -> Response {
        let o = &self.opening;
        Response {
            object: "realtime.response",
            id: o.response_id.clone(),
            status,
            status_details,
            output: self.output.clone(),
            conversation_id: (!o.out_of_band).then(|| o.conversation_id.clone()),
            output_modalities: ["text"],
            max_output_tokens: o.max_output_tokens,
            metadata: o.metadata.clone(),
            usage: usage.map(Into::into),
            timings_ms: timings
                .filter(|_| o.tells_timings)
                .map(|t| TimingsMs { voice_activity: o.silence_ms, ..TimingsMs::from(t) }),
        }
    }

    fn place(&self, item_id: &str) -> Place {
        Place {
            response_id: self.opening.response_id.clone(),
            item_id: item_id.to_owned(),
            output_index: self.output.len(),
            content_index: 0,
        }
    }

    /// Tells the client of one engine event; of the words, some may have been `told` while they were spoken. Returns how the response ends,
    /// if it does.
    pub(super) fn event(
        &mut self,
        event: Event,
        told: &str,
        items: &mut Conversation,
        out: &mut Outbox,
    ) -> Option<End> {
        match event {
            Event::Heard(words) => self.heard(&words, told, items, out),
            Event::Reasoning(delta) => self.reasoning(delta, out),
            Event::Reply(delta) => self.reply(delta, items, out),
            Event::CallDelta { name, delta } => self.call_delta(&name, delta, items, out),
            Event::ToolCall { name, arguments } => self.tool_call(name, arguments, items, out),
            // The turn was over before that was known.
            Event::Finished(_) => {}
            Event::Done { finish, usage, timings } => return Some(End::Done(finish, usage, timings)),
            Event::Failed(error) => return Some(End::Failed(error)),
        }
        None
    }

    fn heard(&mut self, words: &str, told: &str, items: &mut Conversation, out: &mut Outbox) {
        let Some((id, index)) = self.opening.hears.take() else { return };
        // The item may have been deleted meanwhile.
        let Some(Body::Message(_, pieces)) = items.get_mut(&id).map(|e| &mut e.body) else { return };
        let Some(piece @ Piece::Sound { .. }) = pieces.get_mut(index) else { return };
        let seconds = piece.seconds();
        let (words, rest) = complete(told, words);
        match piece {
            // The ear was sooner.
            Piece::Sound { transcript: Some(_), .. } => return,
            Piece::Sound { transcript, .. } => *transcript = Some(words.clone()),
            Piece::Text(_) => {}
        }
        if self.opening.tells_words {
            if !told.is_empty() && !rest.is_empty() {
                let item_id = id.clone();
                out.send(ServerEvent::TranscriptDelta { item_id, content_index: index, delta: rest });
            }
            out.words(id, index, words, seconds, self.opening.tells_segments);
        }
    }

    fn reasoning(&mut self, delta: String, out: &mut Outbox) {
        if !self.opening.tells_reasoning || delta.is_empty() {
            return;
        }
        // Reasoning that goes on beside the reply belongs to the reply's item.
        let id = match (&self.open, &self.reasoning) {
            (_, Some((id, _))) => id.clone(),
            (Some(open), None) => open.id.clone(),
            (None, None) => self.reserved.get_or_insert_with(|| out.name("item")).clone(),
        };
        let place = self.place(&id);
        self.reasoning.get_or_insert_with(|| (id, String::new())).1.push_str(&delta);
        out.send(ServerEvent::ReasoningDelta { place, delta });
    }

    fn end_reasoning(&mut self, out: &mut Outbox) {
        if let Some((id, text)) = self.reasoning.take() {
            out.send(ServerEvent::ReasoningDone { place: self.place(&id), text });
        }
    }

    fn reply(&mut self, delta: String, items: &mut Conversation, out: &mut Outbox) {
        if delta.is_empty() {
            return;
        }
        if !self.opening.paced {
            self.end_reasoning(out);
        }
        if self.open.is_none() {
            let id = self.reserved.take().unwrap_or_else(|| out.name("item"));
            let entry =
                Entry { id: id.clone(), status: Status::InProgress, body: Body::Message(Role::Assistant, Vec::new()) };
            self.add(entry, items, out);
            out.send(ServerEvent::PartAdded { place: self.place(&id), part: BufferedText(String::new()) });
            self.open = Some(OpenMessage { id, text: String::new() });
        }
        let open = self.open.as_mut().expect("opened above");
        open.text.push_str(&delta);
        let id = open.id.clone();
        out.send(ServerEvent::TextDelta { place: self.place(&id), delta });
    }

    /// More of a call's arguments; the first of them open its item.
    fn call_delta(&mut self, name: &str, delta: String, items: &mut Conversation, out: &mut Outbox) {
        if self.call.is_none() {
            self.end_reasoning(out);
            self.close_message(Status::Completed, items, out);
            let item_id = self.reserved.take().unwrap_or_else(|| out.name("item"));
            let call = OpenCall { item_id, call_id: out.name("call"), name: name.to_owned(), arguments: String::new() };
            self.add(call.entry(Status::InProgress), items, out);
            self.call = Some(call);
        }
        let call = self.call.as_mut().expect("opened above");
        call.arguments.push_str(&delta);
        out.send(ServerEvent::ArgumentsDelta {
            response_id: self.opening.response_id.clone(),
            item_id: call.item_id.clone(),
            output_index: self.output.len(),
            call_id: call.call_id.clone(),
            delta,
        });
    }

    fn tool_call(&mut self, name: String, arguments: String, items: &mut Conversation, out: &mut Outbox) {
        let told = self.call.as_ref().map_or(0, |call| call.arguments.len());
        // An engine that told of it on the way has told all of it.
        if told == 0 {
            self.call_delta(&name, arguments, items, out);
        }
        let Some(call) = self.call.take() else { return };
        out.send(ServerEvent::ArgumentsDone {
            response_id: self.opening.response_id.clone(),
            item_id: call.item_id.clone(),
            output_index: self.output.len(),
            call_id: call.call_id.clone(),
            name,
            arguments: call.arguments.clone(),
        });
        self.finish(call.entry(Status::Completed), items, out);
    }

    /// A new output item begins.
    fn add(&self, entry: Entry, items: &mut Conversation, out: &mut Outbox) {
        let item = entry.show();
        out.send(ServerEvent::OutputItemAdded {
            response_id: self.opening.response_id.clone(),
            output_index: self.output.len(),
            item: item.clone(),
        });
        if !self.opening.out_of_band {
            let previous_item_id = items.append(entry);
            out.send(ServerEvent::ItemAdded { previous_item_id, item });
        }
    }

    /// An output item is what it will stay.
    fn finish(&mut self, entry: Entry, items: &mut Conversation, out: &mut Outbox) {
        let item = entry.show();
        out.send(ServerEvent::OutputItemDone {
            response_id: self.opening.response_id.clone(),
            output_index: self.output.len(),
            item: item.clone(),
        });
        self.output.push(item.clone());
        // Deleted while it was written: then it stays deleted.
        if let Some(slot) = items.get_mut(&entry.id) {
            *slot = entry;
            let previous_item_id = items.previous(&item.id);
            out.send(ServerEvent::ItemDone { previous_item_id, item });
        }
    }

    fn close_message(&mut self, status: Status, items: &mut Conversation, out: &mut Outbox) {
        let Some(OpenMessage { id, text }) = self.open.take() else { return };
        let place = self.place(&id);
        out.send(ServerEvent::TextDone { place: place.clone(), text: text.clone() });
        out.send(ServerEvent::PartDone { place, part: BufferedText(text.clone()) });
        let body = Body::Message(Role::Assistant, vec![Piece::Text(text)]);
        self.finish(Entry { id, status, body }, items, out);
    }

    /// Closes what is open and says how it ended.
    pub(super) fn end(mut self, end: End, items: &mut Conversation, out: &mut Outbox) {
        self.end_reasoning(out);
        let detail = |kind, reason, error| Some(StatusDetails { kind, reason, error });
        let (status, details, usage, timings) = match end {
            End::Done(Finish::Stop, usage, timings) => (ResponseStatus::Completed, None, Some(usage), Some(timings)),
            End::Done(Finish::Length, usage, timings) => {
                let details = detail(ResponseStatus::Incomplete, Some("max_output_tokens"), None);
                (ResponseStatus::Incomplete, details, Some(usage), Some(timings))
            }
            End::Done(Finish::Cancelled, usage, timings) => {
                let details = detail(ResponseStatus::Cancelled, None, None);
                (ResponseStatus::Cancelled, details, Some(usage), Some(timings))
            }
            // The engine counts on for a token or so; what it did for nobody is not told.
            End::Cancelled(reason) => {
                (ResponseStatus::Cancelled, detail(ResponseStatus::Cancelled, Some(reason), None), None, None)
            }
            End::Failed(error) => {
                let details = detail(ResponseStatus::Failed, None, Some(failure(&error)));
                (ResponseStatus::Failed, details, None, None)
            }
            End::Limited => {
                let error = ErrorBody::invalid("rate_limit_exceeded", "This session has asked for too many responses.");
                (ResponseStatus::Failed, detail(ResponseStatus::Failed, None, Some(error)), None, None)
            }
        };
        let whole = status == ResponseStatus::Completed;
        if let Some(call) = self.call.take() {
            self.finish(call.entry(Status::Incomplete), items, out);
        }
        self.close_message(if whole { Status::Completed } else { Status::Incomplete }, items, out);
        let response = self.show(status, details, Some(usage.unwrap_or_default()), timings);
        out.send(ServerEvent::ResponseDone { response });
    }
}

fn failure(error: &EngineError) -> ErrorBody {
    let message = error.to_string();
    match error {
        EngineError::Overloaded { .. } => ErrorBody::server("overloaded", message),
        EngineError::ContextFull { .. } => ErrorBody::invalid("context_length_exceeded", message),
        EngineError::Empty(_) => ErrorBody::invalid("empty_conversation", message),
        _ => ErrorBody::server("server_error", message),
    }
}
