//! What a conversation has become, read back from the events that its client was sent: the other side of [`ServerEvent`](super::ServerEvent).
//!
//! The events say everything that counts: items as they were added, changed and deleted, the words of each sound, the settings that held. So a
//! session that ended in whatever way can be built again from them, and what was told stays told.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{Item, ItemKind, Part, SessionUpdate, Status};
use crate::engine::Role;

/// A conversation to go on with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Past {
    /// In order; what was being written is as far as it got.
    pub items: Vec<PastItem>,
    /// What held last.
    pub settings: Option<SessionUpdate>,
    /// The number of the last event.
    pub number: u64,
    /// A response that was begun and not ended.
    pub response: Option<PastResponse>,
    /// A turn that was being spoken: its item, and the words that were told.
    pub speech: Option<(String, String)>,
}

/// An item and, where it is sound, how long that was.
#[derive(Debug, Clone, PartialEq)]
pub struct PastItem {
    /// As its client knows it.
    pub item: Item,
    /// Seconds of sound.
    pub seconds: f64,
}

/// A response that was begun.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PastResponse {
    /// Its name.
    pub id: String,
    /// The items that it had added.
    pub output: Vec<String>,
    /// What its client gave to be echoed.
    pub metadata: Option<Map<String, Value>>,
}

impl Past {
    /// Reads events in the order in which they were sent. What cannot be read is passed over: a journal may be older than this program.
    pub fn of<'a>(frames: impl IntoIterator<Item = (u64, &'a str)>) -> Self {
        let mut reading = Reading::default();
        for (number, frame) in frames {
            reading.past.number = number;
            if let Ok(event) = serde_json::from_str::<Value>(frame) {
                reading.event(&event);
            }
        }
        reading.end()
    }
}

#[derive(Default)]
struct Reading {
    past: Past,
    /// Words and replies that are known by their pieces so far.
    pieces: HashMap<String, String>,
    /// Milliseconds at which speech began.
    begun: HashMap<String, f64>,
    /// Seconds of speech.
    seconds: HashMap<String, f64>,
    /// The item that somebody is speaking.
    open: Option<String>,
}

impl Reading {
    fn event(&mut self, event: &Value) {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let item_id = text("item_id");
        match event["type"].as_str().unwrap_or_default() {
            "session.created" | "session.updated" => {
                let session = event["session"].clone();
                self.past.settings = serde_json::from_value(session).ok().or(self.past.settings.take());
            }
            "input_audio_buffer.speech_started" => {
                self.begun.insert(item_id.clone(), event["audio_start_ms"].as_f64().unwrap_or_default());
                self.open = Some(item_id);
            }
            "input_audio_buffer.speech_stopped" => {
                if let Some(begun) = self.begun.remove(&item_id) {
                    let ms = event["audio_end_ms"].as_f64().unwrap_or_default() - begun;
                    self.seconds.insert(item_id, ms.max(0.0) / 1000.0);
                }
            }
            "input_audio_buffer.cleared" | "input_audio_buffer.committed" => self.open = None,
            "conversation.item.input_audio_transcription.delta" => {
                if self.find(&item_id).is_none() {
                    self.open.get_or_insert_with(|| item_id.clone());
                }
                self.pieces.entry(item_id).or_default().push_str(&text("delta"));
            }
            "conversation.item.input_audio_transcription.completed" => {
                let words = text("transcript");
                if let Some(part) = self.find(&item_id).and_then(|past| sound(&mut past.item)) {
                    *part = Some(words);
                }
            }
            "conversation.item.added" => {
                if let Ok(item) = serde_json::from_value::<Item>(event["item"].clone()) {
                    let index = match event["previous_item_id"].as_str() {
                        // After what has been forgotten since is after all.
                        Some(id) => self.past.items.iter().position(|p| p.item.id == id).map_or(usize::MAX, |i| i + 1),
                        None => 0,
                    };
                    let index = index.min(self.past.items.len());
                    let seconds = self.seconds.remove(&item.id).unwrap_or_default();
                    self.past.items.insert(index, PastItem { item, seconds });
                }
            }
            "conversation.item.done" => {
                if let Ok(item) = serde_json::from_value::<Item>(event["item"].clone())
                    && let Some(past) = self.find(&item.id)
                {
                    past.item = item;
                }
            }
            "conversation.item.deleted" => self.past.items.retain(|past| past.item.id != item_id),
            "response.created" => {
                let response = &event["response"];
                let id = response["id"].as_str().unwrap_or_default().to_owned();
                let metadata = response["metadata"].as_object().cloned();
                self.past.response = Some(PastResponse { id, output: Vec::new(), metadata });
            }
            "response.output_item.added" => {
                if let (Some(response), Some(id)) = (&mut self.past.response, event["item"]["id"].as_str()) {
                    response.output.push(id.to_owned());
                }
            }
            "response.output_text.delta" => self.pieces.entry(item_id).or_default().push_str(&text("delta")),
            "response.done" => self.past.response = None,
            _ => {}
        }
    }

    fn find(&mut self, id: &str) -> Option<&mut PastItem> {
        self.past.items.iter_mut().find(|past| past.item.id == id)
    }

    fn end(mut self) -> Past {
        for PastItem { item, .. } in &mut self.past.items {
            let Some(text) = self.pieces.remove(&item.id) else { continue };
            match &mut item.kind {
                ItemKind::Message { role: Role::Assistant, content } if item.status == Status::InProgress => {
                    *content = vec![Part::OutputText { text }];
                }
                _ => {
                    if let Some(words @ None) = sound(item) {
                        *words = Some(text);
                    }
                }
            }
            if item.status == Status::InProgress {
                item.status = Status::Incomplete;
            }
        }
        let open = self.open.take().map(|id| (self.pieces.remove(&id).unwrap_or_default(), id));
        self.past.speech = open.map(|(words, id)| (id, words));
        self.past
    }
}

/// The words of an item's sound.
fn sound(item: &mut Item) -> Option<&mut Option<String>> {
    let ItemKind::Message { content, .. } = &mut item.kind else { return None };
    content.iter_mut().find_map(|part| if let Part::InputAudio { transcript } = part { Some(transcript) } else { None })
}
