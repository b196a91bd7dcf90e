//! A session's settings: what `session.update` may say, what holds then, and how it is shown.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use super::tools::check_tools;
use super::turns::{TurnDetection, TurnWire, off_or_wire};
use super::{ErrorBody, Refusal, ToolChoice};
use crate::audio::intake::Format;
use crate::config::{Config, Effort, Voice};

/// Instructions and tools go before every conversation; these many bytes are more than any model holds.
const MOST_TEXT: usize = 1 << 20;
/// What a client says of its transcription is shown back to it.
const MOST_HINTS: usize = 1 << 14;

/// A limit of written tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxTokens {
    /// No more than these.
    Count(usize),
    /// As many as the server allows.
    Infinite,
}

impl<'de> Deserialize<'de> for MaxTokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(s) if s == "inf" => Ok(Self::Infinite),
            Value::Number(n) if n.as_u64().is_some_and(|n| n > 0) => {
                Ok(Self::Count(usize::try_from(n.as_u64().unwrap_or(u64::MAX)).unwrap_or(usize::MAX)))
            }
            _ => Err(serde::de::Error::custom("a number of tokens above 0, or \"inf\"")),
        }
    }
}

impl Serialize for MaxTokens {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(n) => serializer.serialize_u64(*n as u64),
            Self::Infinite => serializer.serialize_str("inf"),
        }
    }
}

impl MaxTokens {
    /// The limit, where the server allows `most`.
    pub fn within(self, most: usize) -> usize {
        match self {
            Self::Count(n) => n.min(most),
            Self::Infinite => most,
        }
    }
}

/// `{"effort": …}`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Reasoning {
    pub(super) effort: Option<Effort>,
}

/// What a session is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A conversation.
    #[default]
    Realtime,
    /// Captions alone: nothing is answered.
    Transcription,
}

/// `session.update`: absent means unchanged; for the two that can be switched off, `null` means off.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SessionUpdate {
    #[serde(rename = "type")]
    kind: Option<Kind>,
    instructions: Option<String>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<ToolChoice>,
    max_output_tokens: Option<MaxTokens>,
    reasoning: Option<Reasoning>,
    include: Option<Vec<String>>,
    audio: Option<AudioUpdate>,
    /// All else. Most of it (voices, tracing) has no effect here; what belongs to the closed beta is refused, because a client that
    /// sends it expects another protocol.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct AudioUpdate {
    input: Option<InputUpdate>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct InputUpdate {
    format: Option<FormatWire>,
    #[serde(deserialize_with = "nullable")]
    transcription: Option<Option<Map<String, Value>>>,
    #[serde(deserialize_with = "off_or_wire")]
    turn_detection: Option<Option<TurnWire>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type")]
enum FormatWire {
    #[serde(rename = "audio/pcm")]
    Pcm { rate: Option<u32> },
    #[serde(rename = "audio/pcmu")]
    Ulaw,
    #[serde(rename = "audio/pcma")]
    Alaw,
    #[serde(rename = "audio/opus")]
    Opus,
}

/// Tells `null` (the inner `None`) from absence (the outer one, by `default`).
fn nullable<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

impl SessionUpdate {
    /// The input format that it asks for.
    pub fn format(&self) -> Option<Format> {
        let wire = self.audio.as_ref()?.input.as_ref()?.format.as_ref()?;
        Some(match wire {
            FormatWire::Pcm { rate } => Format::Pcm16(rate.unwrap_or(24_000)),
            FormatWire::Ulaw => Format::Ulaw,
            FormatWire::Alaw => Format::Alaw,
            FormatWire::Opus => Format::Opus,
        })
    }

    /// Whether it can be obeyed. After this, it is obeyed whole.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let bad = |param: &str, message: &str| Err(ErrorBody::invalid("invalid_value", message).at(param));
        let tools = match &self.tools {
            Some(tools) => check_tools(tools, "session.tools")?,
            None => 0,
        };
        if self.instructions.as_ref().map_or(0, String::len) + tools > MOST_TEXT {
            return bad("session.instructions", "Instructions and tools together have at most 1 MiB.");
        }
        if self.include.as_ref().is_some_and(|i| i.len() > 32 || i.iter().any(|s| s.len() > 128)) {
            return bad("session.include", "At most 32 short names are included.");
        }
        let transcription = self.audio.as_ref().and_then(|a| a.input.as_ref()?.transcription.as_ref()?.as_ref());
        if transcription.is_some_and(|t| Value::from(t.clone()).to_string().len() > MOST_HINTS) {
            return bad("session.audio.input.transcription", "Hints for the transcription have at most 16 KiB.");
        }
        const BETA: [&str; 7] = [
            "modalities",
            "input_audio_format",
            "output_audio_format",
            "input_audio_transcription",
            "input_audio_noise_reduction",
            "turn_detection",
            "max_response_output_tokens",
        ];
        if let Some(key) = BETA.iter().find(|key| self.rest.contains_key(**key)) {
            let message = format!("`{key}` belongs to the beta of this API; the shape in use has it under `audio`.");
            return Err(ErrorBody::invalid("unknown_parameter", message).at(format!("session.{key}")));
        }
        if let Some(Format::Pcm16(rate)) = self.format()
            && ![8_000, 16_000, 24_000, 44_100, 48_000].contains(&rate)
        {
            let message = "PCM comes at 24000, or at 8000, 16000, 44100 or 48000 samples a second.";
            return bad("session.audio.input.format.rate", message);
        }
        let turn = self.audio.as_ref().and_then(|a| a.input.as_ref()).and_then(|i| i.turn_detection.as_ref());
        if let Some(Some(turn)) = turn {
            turn.check()?;
        }
        Ok(())
    }
}

/// What holds in a session now.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What it is for.
    pub kind: Kind,
    /// Told to the model before the conversation.
    pub instructions: String,
    /// Function schemas.
    pub tools: Vec<Value>,
    /// Whether they may, must or must not be called.
    pub tool_choice: ToolChoice,
    /// A reply's limit.
    pub max_output_tokens: MaxTokens,
    /// How hard it thinks.
    pub effort: Effort,
    /// What the client opted into.
    pub include: Vec<String>,
    /// What its sound is.
    pub format: Format,
    /// Whether words that were heard are told.
    pub transcription: Option<Map<String, Value>>,
    /// `None`: the client says itself when a turn is over.
    pub turn_detection: Option<TurnDetection>,
}

impl Settings {
    /// What a session begins with.
    pub fn new(config: &Config) -> Self {
        Self {
            kind: Kind::Realtime,
            instructions: config.thinking.instructions.clone(),
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            max_output_tokens: MaxTokens::Infinite,
            effort: config.thinking.effort,
            include: Vec::new(),
            format: Format::default(),
            transcription: Some(Map::new()),
            turn_detection: Some(TurnDetection::of(&config.voice)),
        }
    }

    /// Whether an update may be applied to a session that is what it is.
    ///
    /// # Errors
    /// A session that only listens stays so.
    pub fn accepts(&self, update: &SessionUpdate) -> Result<(), Refusal> {
        if self.kind == Kind::Transcription && update.kind == Some(Kind::Realtime) {
            let message = "A transcription session gives no responses. Open another without intent=transcription.";
            return Err(ErrorBody::invalid("invalid_value", message).at("session.type"));
        }
        let choice = update.tool_choice.as_ref().unwrap_or(&self.tool_choice);
        choice.check(update.tools.as_ref().unwrap_or(&self.tools), "session.tool_choice")
    }

    /// Takes over what an update says.
    pub fn apply(&mut self, update: SessionUpdate, voice: &Voice) {
        if let Some(format) = update.format() {
            self.format = format;
        }
        self.kind = update.kind.unwrap_or(self.kind);
        let set = |slot: &mut String, value: Option<String>| {
            if let Some(value) = value {
                *slot = value;
            }
        };
        set(&mut self.instructions, update.instructions);
        self.tools = update.tools.unwrap_or_else(|| std::mem::take(&mut self.tools));
        self.tool_choice = update.tool_choice.unwrap_or_else(|| std::mem::take(&mut self.tool_choice));
        self.max_output_tokens = update.max_output_tokens.unwrap_or(self.max_output_tokens);
        self.effort = update.reasoning.and_then(|r| r.effort).unwrap_or(self.effort);
        self.include = update.include.unwrap_or_else(|| std::mem::take(&mut self.include));
        let Some(input) = update.audio.and_then(|a| a.input) else { return };
        if let Some(transcription) = input.transcription {
            self.transcription = transcription;
        }
        if let Some(turn) = input.turn_detection {
            self.turn_detection = turn.map(|wire| TurnDetection::from_wire(&wire, voice));
        }
    }

    /// Whether the client opted into something.
    pub fn includes(&self, what: &str) -> bool {
        self.include.iter().any(|i| i == what)
    }

    /// Whether a turn's end begins a response.
    pub fn answers(&self) -> bool {
        self.kind == Kind::Realtime && self.turn_detection.is_some_and(|turns| turns.create_response)
    }

    /// Whether words come with their speaker and times: to who asks for a model that tells speakers apart.
    pub fn tells_segments(&self) -> bool {
        let model = self.transcription.as_ref().and_then(|t| t.get("model")?.as_str());
        model.is_some_and(|model| model.contains("diarize"))
    }

    /// The session object of `session.created` and `session.updated`: what holds, whatever was asked for.
    pub fn show(&self, id: &str, model: &str) -> Value {
        let is_conversation = self.kind == Kind::Realtime;
        let input = json!({
            "format": match self.format {
                Format::Pcm16(rate) => json!({"type": "audio/pcm", "rate": rate}),
                Format::Ulaw => json!({"type": "audio/pcmu"}),
                Format::Alaw => json!({"type": "audio/pcma"}),
                Format::Opus => json!({"type": "audio/opus"}),
            },
            "transcription": self.transcription,
            "noise_reduction": null,
            "turn_detection": self.turn_detection.as_ref().map(|turns| turns.show(is_conversation)),
        });
        if !is_conversation {
            return json!({
                "type": "transcription",
                "object": "realtime.transcription_session",
                "id": id,
                "include": self.include,
                "audio": {"input": input},
            });
        }
        json!({
            "type": "realtime",
            "object": "realtime.session",
            "id": id,
            "model": model,
            "output_modalities": ["text"],
            "instructions": self.instructions,
            "tools": self.tools,
            "tool_choice": self.tool_choice,
            "max_output_tokens": self.max_output_tokens,
            "reasoning": {"effort": self.effort},
            "include": self.include,
            "truncation": "auto",
            "tracing": null,
            "prompt": null,
            "audio": {"input": input},
        })
    }
}
