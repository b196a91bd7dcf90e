//! What of a frame may be kept: all of it, all but what is redacted, or none of its words.

use std::borrow::Cow;

use regex::Regex;
use serde::Serialize;
use serde_json::Value;

use super::JournalError;
use super::events::{Kind, kind};
use crate::config;
use crate::protocol::openai::ServerEvent;

/// The keys under which frames, and parts of calls, carry what somebody said or wrote.
const SAID: [&str; 10] =
    ["text", "transcript", "delta", "arguments", "output", "instructions", "message", "words", "reasoning", "summary"];
/// Stands for what was blotted out.
const BLOT: &str = "▇";

/// The rules, made once.
pub(super) struct Keep {
    words: bool,
    redact: Vec<Regex>,
}

impl Keep {
    pub(super) fn new(config: &config::Journal) -> Result<Self, JournalError> {
        let redact = config.redact.iter().map(|pattern| Regex::new(pattern)).collect::<Result<_, _>>()?;
        Ok(Self { words: config.words, redact })
    }

    pub(super) fn words(&self) -> bool {
        self.words
    }

    /// The frame as it is kept, if it is.
    pub(super) fn frame(&self, event: &ServerEvent, frame: &str) -> Option<String> {
        if self.words && self.redact.is_empty() {
            return Some(frame.to_owned());
        }
        // What is to be blotted out may lie across pieces; the whole text follows them.
        if matches!(kind(event), Kind::Written | Kind::Heard) {
            return None;
        }
        let mut value: Value = serde_json::from_str(frame).ok()?;
        self.blot(&mut value, false);
        Some(value.to_string())
    }

    /// Something else as it is kept: JSON.
    pub(super) fn json(&self, what: &impl Serialize) -> String {
        let mut value = serde_json::to_value(what).expect("what is kept is plain maps with string keys");
        if !self.words || !self.redact.is_empty() {
            self.blot(&mut value, false);
        }
        value.to_string()
    }

    /// A text as it is kept.
    pub(super) fn text(&self, text: String) -> String {
        if !self.words {
            return String::new();
        }
        self.redact.iter().fold(text, |text, pattern| match pattern.replace_all(&text, BLOT) {
            Cow::Owned(changed) => changed,
            Cow::Borrowed(_) => text,
        })
    }

    fn blot(&self, value: &mut Value, said: bool) {
        match value {
            Value::String(text) if said => *text = self.text(std::mem::take(text)),
            Value::Array(list) => list.iter_mut().for_each(|value| self.blot(value, said)),
            Value::Object(map) => {
                for (key, value) in map {
                    let said = value.is_string() && SAID.contains(&key.as_str());
                    self.blot(value, said);
                }
            }
            _ => {}
        }
    }
}
