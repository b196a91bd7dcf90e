//! Items of a conversation, as they are shown to a client.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::engine::Role;

/// How far an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Being written.
    InProgress,
    /// Whole.
    Completed,
    /// Cut off.
    Incomplete,
}

/// One item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Unique in the conversation.
    pub id: String,
    /// Always `realtime.item`.
    pub object: Object,
    /// How far it is.
    pub status: Status,
    /// What it is.
    #[serde(flatten)]
    pub kind: ItemKind,
}

/// The constant `realtime.item`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Object;

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("realtime.item")
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// What an item is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ItemKind {
    /// Something said, heard or typed.
    Message {
        /// By whom.
        role: Role,
        /// In parts.
        content: Vec<Part>,
    },
    /// The model calls a function.
    FunctionCall {
        /// Joins it with its output.
        call_id: String,
        /// Which.
        name: String,
        /// JSON text.
        arguments: String,
    },
    /// What it gave.
    FunctionCallOutput {
        /// Which call.
        call_id: String,
        /// Text.
        output: String,
    },
}

/// A part of a message. Sound is not sent back; its transcript is, `null` until its words are known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part {
    /// Typed, by a user or the system.
    InputText {
        /// The text.
        text: String,
    },
    /// Heard.
    InputAudio {
        /// Its words.
        transcript: Option<String>,
    },
    /// Written by the model.
    OutputText {
        /// The text.
        text: String,
    },
}
