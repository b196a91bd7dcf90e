//! The items of one session, in order and bounded: full is a typed refusal.

use std::sync::Arc;

use crate::audio::RATE;
use crate::config::Limits;
use crate::engine::{self, Content, Role};
use crate::protocol::openai::{ErrorBody, Item, ItemKind, Object, Part, PastItem, Status};

/// One item with what the engine needs of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Unique in the session.
    pub id: String,
    /// How far it is.
    pub status: Status,
    /// What it is.
    pub body: Body,
}

/// What an item is.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Something said.
    Message(Role, Vec<Piece>),
    /// A function's call.
    Call {
        /// Joins it with its output.
        call_id: String,
        /// Which.
        name: String,
        /// JSON text.
        arguments: String,
    },
    /// A function's output.
    Output {
        /// Which call.
        call_id: String,
        /// Text.
        output: String,
    },
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text.
    Text(String),
    /// Sound, in segments that the encoder can take.
    Sound {
        /// 16 kHz samples, each at most one segment; none when only the words are kept.
        segments: Vec<Arc<[f32]>>,
        /// How many samples it had.
        length: usize,
        /// The words, once known.
        transcript: Option<String>,
    },
}

impl Piece {
    /// Cuts a turn's sound into segments of at most `longest` samples.
    pub fn sound(samples: &[f32], longest: usize, transcript: Option<String>) -> Self {
        Self::Sound {
            segments: samples.chunks(longest.max(1)).map(Arc::from).collect(),
            length: samples.len(),
            transcript,
        }
    }

    /// Seconds of sound.
    pub fn seconds(&self) -> f64 {
        let length = if let Self::Sound { length, .. } = self { *length } else { 0 };
        length as f64 / f64::from(RATE)
    }

    /// What stands for a sound that is no longer kept.
    fn words(&self) -> String {
        match self {
            Self::Sound { transcript: Some(words), .. } if !words.is_empty() => words.clone(),
            _ => format!("(a sound of {:.0} s)", self.seconds()),
        }
    }

    fn samples(&self) -> usize {
        match self {
            Self::Text(_) => 0,
            Self::Sound { segments, .. } => segments.iter().map(|s| s.len()).sum(),
        }
    }
}

impl Entry {
    /// An item of which its client's view is all that is left: its sound is known by its words.
    pub fn of_past(past: PastItem) -> Self {
        let length = (past.seconds * f64::from(RATE)) as usize;
        let piece = |part| match part {
            Part::InputText { text } | Part::OutputText { text } => Piece::Text(text),
            Part::InputAudio { transcript } => Piece::Sound { segments: Vec::new(), length, transcript },
        };
        let Item { id, status, kind, .. } = past.item;
        let body = match kind {
            ItemKind::Message { role, content } => Body::Message(role, content.into_iter().map(piece).collect()),
            ItemKind::FunctionCall { call_id, name, arguments } => Body::Call { call_id, name, arguments },
            ItemKind::FunctionCallOutput { call_id, output } => Body::Output { call_id, output },
        };
        Self { id, status, body }
    }

    /// As a client sees it.
    pub fn show(&self) -> Item {
        let kind = match &self.body {
            Body::Message(role, pieces) => {
                let part = |piece: &Piece| match (piece, role) {
                    (Piece::Text(text), Role::Assistant) => Part::OutputText { text: text.clone() },
                    (Piece::Text(text), _) => Part::InputText { text: text.clone() },
                    (Piece::Sound { transcript, .. }, _) => Part::InputAudio { transcript: transcript.clone() },
                };
                ItemKind::Message { role: *role, content: pieces.iter().map(part).collect() }
            }
            Body::Call { call_id, name, arguments } => {
                ItemKind::FunctionCall { call_id: call_id.clone(), name: name.clone(), arguments: arguments.clone() }
            }
            Body::Output { call_id, output } => {
                ItemKind::FunctionCallOutput { call_id: call_id.clone(), output: output.clone() }
            }
        };
        Item { id: self.id.clone(), object: Object, status: self.status, kind }
    }

    fn samples(&self) -> usize {
        match &self.body {
            Body::Message(_, pieces) => pieces.iter().map(Piece::samples).sum(),
            _ => 0,
        }
    }

    fn bytes(&self) -> usize {
        match &self.body {
            Body::Message(_, pieces) => {
                let text = |piece: &Piece| match piece {
                    Piece::Text(text) => text.len(),
                    Piece::Sound { transcript, .. } => transcript.as_ref().map_or(0, String::len),
                };
                pieces.iter().map(text).sum()
            }
            Body::Call { call_id, name, arguments } => call_id.len() + name.len() + arguments.len(),
            Body::Output { call_id, output } => call_id.len() + output.len(),
        }
    }
}

impl Entry {
    /// Tokens, about: 12.5 for a second of sound, one for three bytes of text, a few for the markers around it.
    fn tokens(&self) -> usize {
        self.samples() * 25 / (2 * RATE as usize) + self.bytes() / 3 + 6
    }

    /// Keeps the words of its sound alone.
    fn forget_sound(&mut self) {
        if let Body::Message(_, pieces) = &mut self.body {
            for piece in pieces {
                if let Piece::Sound { segments, .. } = piece {
                    segments.clear();
                }
            }
        }
    }
}

/// Why an item is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Full {
    /// Too many items.
    #[error("the conversation holds {0} items and no more; delete some")]
    Items(usize),
    /// Too much sound.
    #[error("the conversation holds {0} s of sound and no more; delete some")]
    Sound(u64),
    /// Too much text.
    #[error("the conversation holds {0} bytes of text and no more; delete some")]
    Text(usize),
    /// The name is taken.
    #[error("there is an item `{0}` already")]
    Duplicate(String),
    /// There is no such item to put it after.
    #[error("there is no item `{0}` to put it after")]
    UnknownPrevious(String),
}

impl From<Full> for ErrorBody {
    fn from(full: Full) -> Self {
        let (code, param) = match full {
            Full::Items(_) | Full::Sound(_) | Full::Text(_) => ("conversation_full", None),
            Full::Duplicate(_) => ("item_create_duplicate_item_id", Some("item.id")),
            Full::UnknownPrevious(_) => ("item_create_invalid_previous_item_id", Some("previous_item_id")),
        };
        let body = ErrorBody::invalid(code, full.to_string());
        match param {
            Some(param) => body.at(param),
            None => body,
        }
    }
}

/// Where to put an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    /// After all.
    End,
    /// Before all.
    Root,
    /// After this one.
    After(String),
}

/// A session's items.
#[derive(Debug)]
pub struct Conversation {
    entries: Vec<Entry>,
    limits: Limits,
}

impl Conversation {
    /// An empty one.
    pub fn new(limits: Limits) -> Self {
        Self { entries: Vec::new(), limits }
    }

    /// Puts an item in; returns the name of the one before it.
    ///
    /// # Errors
    /// [`Full`], and nothing changed.
    pub fn insert(&mut self, entry: Entry, place: &Where) -> Result<Option<String>, Full> {
        if self.get(&entry.id).is_some() {
            return Err(Full::Duplicate(entry.id));
        }
        let index = match place {
            Where::End => self.entries.len(),
            Where::Root => 0,
            Where::After(id) => 1 + self.index(id).ok_or_else(|| Full::UnknownPrevious(id.clone()))?,
        };
        let l = &self.limits;
        if self.entries.len() >= l.conversation_items {
            return Err(Full::Items(l.conversation_items));
        }
        let samples: usize = self.entries.iter().map(Entry::samples).sum::<usize>() + entry.samples();
        if samples > crate::audio::samples(l.conversation_seconds) {
            return Err(Full::Sound(l.conversation_seconds as u64));
        }
        let bytes: usize = self.entries.iter().map(Entry::bytes).sum::<usize>() + entry.bytes();
        if bytes > l.conversation_bytes {
            return Err(Full::Text(l.conversation_bytes));
        }
        self.entries.insert(index, entry);
        Ok(self.before(index))
    }

    /// Makes a long conversation short again: of its older sound the words are kept, and when it is too long even so, its oldest items go.
    /// Down to half of what is allowed, so that the prefix the engine remembers stays good for many turns. Whether anything changed, and the
    /// names of the items that went.
    pub fn compact(&mut self) -> (bool, Vec<String>) {
        let l = &self.limits;
        let mut changed = false;
        let heard = |entries: &[Entry]| entries.iter().map(Entry::samples).sum::<usize>();
        let most = crate::audio::samples(l.heard_seconds.min(l.conversation_seconds));
        if heard(&self.entries) > most {
            changed = true;
            let mut left = heard(&self.entries);
            // The newest turn is still to be answered, or asked about again.
            let newest = self.entries.iter().rposition(|e| e.samples() > 0).unwrap_or(0);
            for entry in &mut self.entries[..newest] {
                if left <= most / 2 {
                    break;
                }
                left -= entry.samples();
                entry.forget_sound();
            }
        }
        let size = |entries: &[Entry]| -> (usize, usize, usize) {
            let sum = |of: fn(&Entry) -> usize| entries.iter().map(of).sum();
            (sum(Entry::tokens), entries.len(), sum(Entry::bytes))
        };
        let (tokens, items, bytes) = size(&self.entries);
        let allowed = (l.conversation_tokens, l.conversation_items * 3 / 4, l.conversation_bytes * 3 / 4);
        if tokens <= allowed.0 && items <= allowed.1.max(1) && bytes <= allowed.2 {
            return (changed, Vec::new());
        }
        let fits = |entries: &[Entry]| {
            let (tokens, items, bytes) = size(entries);
            tokens <= allowed.0 / 2 && items <= (allowed.1 / 2).max(1) && bytes <= allowed.2 / 2
        };
        let newest = self.entries.len().saturating_sub(1);
        let gone = (0..newest).find(|from| fits(&self.entries[*from..])).unwrap_or(newest);
        // Instructions stay, wherever a client has put them.
        let oldest = self.entries.extract_if(..gone, |entry| !matches!(entry.body, Body::Message(Role::System, _)));
        let names: Vec<String> = oldest.map(|entry| entry.id).collect();
        (changed || !names.is_empty(), names)
    }

    /// Whether a reply may be added.
    ///
    /// # Errors
    /// [`Full`]
    pub fn room(&self) -> Result<(), Full> {
        let bytes: usize = self.entries.iter().map(Entry::bytes).sum();
        match &self.limits {
            l if self.entries.len() >= l.conversation_items => Err(Full::Items(l.conversation_items)),
            l if bytes >= l.conversation_bytes => Err(Full::Text(l.conversation_bytes)),
            _ => Ok(()),
        }
    }

    /// Puts the model's own item at the end, limits or not: what it may write is bounded already, and a reply is not to be lost.
    pub fn append(&mut self, entry: Entry) -> Option<String> {
        self.entries.push(entry);
        self.before(self.entries.len() - 1)
    }

    fn index(&self, id: &str) -> Option<usize> {
        self.entries.iter().position(|e| e.id == id)
    }

    fn before(&self, index: usize) -> Option<String> {
        index.checked_sub(1).map(|i| self.entries[i].id.clone())
    }

    /// The item before this one.
    pub fn previous(&self, id: &str) -> Option<String> {
        self.before(self.index(id)?)
    }

    /// The last item's name.
    pub fn last(&self) -> Option<String> {
        self.entries.last().map(|e| e.id.clone())
    }

    /// One item.
    pub fn get(&self, id: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.id == id)
    }

    /// One item, to change it.
    pub fn get_mut(&mut self, id: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|e| e.id == id)
    }

    /// Takes one item out.
    pub fn remove(&mut self, id: &str) -> Option<Entry> {
        self.index(id).map(|i| self.entries.remove(i))
    }

    /// All of them, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// As the engine takes them. A function's output names its function, which only its call knows.
    pub fn for_engine(&self, entries: &[Entry]) -> Vec<engine::Item> {
        let name_of = |id: &str| {
            let calls = self.entries.iter().chain(entries);
            let mut names = calls.filter_map(|e| match &e.body {
                Body::Call { call_id, name, .. } if call_id == id => Some(name.clone()),
                _ => None,
            });
            names.next().unwrap_or_else(|| id.to_owned())
        };
        let mut items = Vec::with_capacity(entries.len());
        for entry in entries {
            match &entry.body {
                Body::Message(role, pieces) => {
                    let mut content = Vec::new();
                    for piece in pieces {
                        match piece {
                            Piece::Text(text) if text.is_empty() => {}
                            Piece::Text(text) => content.push(Content::Text(text.clone())),
                            Piece::Sound { segments, .. } if segments.is_empty() => {
                                content.push(Content::Text(piece.words()));
                            }
                            Piece::Sound { segments, .. } => {
                                content.extend(segments.iter().cloned().map(Content::Sound))
                            }
                        }
                    }
                    // A reply that was interrupted before its first word was never said.
                    if !content.is_empty() {
                        items.push(engine::Item::Message { role: *role, content });
                    }
                }
                // A call that was cut off was never made.
                Body::Call { .. } if entry.status != Status::Completed => {}
                Body::Call { name, arguments, .. } => {
                    items.push(engine::Item::ToolCall { name: name.clone(), arguments: arguments.clone() });
                }
                Body::Output { call_id, output } => {
                    items.push(engine::Item::ToolResult { name: name_of(call_id), output: output.clone() });
                }
            }
        }
        items
    }
}
