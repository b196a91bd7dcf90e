//! What the journal makes of an event beside keeping it.

use crate::engine::Role;
use crate::protocol::openai::{Item, ItemKind, Part, ServerEvent};

/// Words for the list of conversations and its search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words {
    /// Which item.
    pub(super) item: String,
    /// Whether the person said them, and not the model.
    pub(super) by_user: bool,
    pub(super) words: String,
}

/// What the event says, where it says something whole.
pub(super) fn words(event: &ServerEvent) -> Option<Words> {
    match event {
        ServerEvent::Transcribed { item_id, transcript, .. } => {
            Some(Words { item: item_id.clone(), by_user: true, words: transcript.clone() })
        }
        ServerEvent::ItemDone { item, .. } => spoken(item),
        _ => None,
    }
    .filter(|said| !said.words.trim().is_empty())
}

fn spoken(item: &Item) -> Option<Words> {
    let ItemKind::Message { role, content } = &item.kind else { return None };
    let by_user = match role {
        Role::User => true,
        Role::Assistant => false,
        _ => return None,
    };
    let text = |part: &Part| match part {
        Part::InputText { text } | Part::OutputText { text } => Some(text.clone()),
        Part::InputAudio { transcript } => transcript.clone(),
    };
    let words: Vec<String> = content.iter().filter_map(text).collect();
    Some(Words { item: item.id.clone(), by_user, words: words.join(" ") })
}

/// Whether an event can be done without later. The numbers are those in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Tells something once.
    Whole = 0,
    /// A piece of what the model writes, told whole when it is done.
    Written = 1,
    /// A piece of what was heard.
    Heard = 2,
    /// The end of a response, and of all its pieces.
    Ends = 3,
    /// What holds, told anew to each client that comes.
    Greets = 4,
}

pub(super) fn kind(event: &ServerEvent) -> Kind {
    match event {
        ServerEvent::TranscriptDelta { .. } => Kind::Heard,
        ServerEvent::TextDelta { .. } | ServerEvent::ReasoningDelta { .. } | ServerEvent::ArgumentsDelta { .. } => {
            Kind::Written
        }
        ServerEvent::ResponseDone { .. } => Kind::Ends,
        ServerEvent::SessionCreated { .. } | ServerEvent::SessionUpdated { .. } => Kind::Greets,
        _ => Kind::Whole,
    }
}
