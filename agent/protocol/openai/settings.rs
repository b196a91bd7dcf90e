//! A session's settings: what `session.update` may say, what holds then, and how it is shown.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use super::{ErrorBody, Refusal};
use crate::audio::intake::Format;
use crate::config::{Config, Effort, Voice};

/// Instructions and tools go before every conversation; these many bytes are more than any model holds.
const MOST_TEXT: usize = 1 << 20;

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

/// `session.update`: absent means unchanged; for the three that can be switched off, `null` means off.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SessionUpdate {
    #[serde(rename = "type")]
    kind: Option<String>,
    instructions: Option<String>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
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
    #[serde(deserialize_with = "nullable")]
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

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Eagerness {
    Low,
    Medium,
    High,
    #[default]
    Auto,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum TurnWire {
    ServerVad {
        threshold: Option<f32>,
        prefix_padding_ms: Option<u32>,
        silence_duration_ms: Option<u32>,
        idle_timeout_ms: Option<u32>,
        create_response: Option<bool>,
        interrupt_response: Option<bool>,
    },
    SemanticVad {
        eagerness: Option<Eagerness>,
        create_response: Option<bool>,
        interrupt_response: Option<bool>,
    },
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
        if self.kind.as_deref().is_some_and(|kind| kind != "realtime") {
            return bad("session.type", "Sessions of type `realtime` are served here.");
        }
        let tools = self.tools.as_ref().map_or(0, |tools| tools_json(tools, &Value::Null).len());
        if self.instructions.as_ref().map_or(0, String::len) + tools > MOST_TEXT {
            return bad("session.instructions", "Instructions and tools together have at most 1 MiB.");
        }
        if self.include.as_ref().is_some_and(|i| i.len() > 32 || i.iter().any(|s| s.len() > 128)) {
            return bad("session.include", "At most 32 short names are included.");
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
        if let Some(Some(TurnWire::ServerVad {
            threshold,
            prefix_padding_ms,
            silence_duration_ms,
            idle_timeout_ms,
            ..
        })) = turn
        {
            let at = |field: &str| format!("session.audio.input.turn_detection.{field}");
            if threshold.is_some_and(|t| !(0.0..=1.0).contains(&t)) {
                return bad(&at("threshold"), "A threshold is between 0 and 1.");
            }
            if prefix_padding_ms.is_some_and(|ms| ms > 5_000) {
                return bad(&at("prefix_padding_ms"), "At most 5000 ms are kept from before the speech.");
            }
            if silence_duration_ms.is_some_and(|ms| !(50..=20_000).contains(&ms)) {
                return bad(&at("silence_duration_ms"), "A silence lasts 50 to 20000 ms.");
            }
            if idle_timeout_ms.is_some_and(|ms| !(1_000..=600_000).contains(&ms)) {
                return bad(&at("idle_timeout_ms"), "An idle timeout lasts 1000 to 600000 ms.");
            }
        }
        Ok(())
    }
}

/// How turns are found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TurnDetection {
    /// See [`Voice`].
    pub threshold: f32,
    /// See [`Voice`].
    pub prefix_padding_ms: u32,
    /// See [`Voice`].
    pub silence_duration_ms: u32,
    /// See [`Voice`]; `None` is never.
    pub idle_timeout_ms: Option<u32>,
    /// A turn's end begins a response.
    pub create_response: bool,
    /// Speech ends a response.
    pub interrupt_response: bool,
    semantic: Option<Eagerness>,
}

impl TurnDetection {
    fn of(voice: &Voice) -> Self {
        Self {
            threshold: voice.threshold,
            prefix_padding_ms: voice.prefix_padding_ms,
            silence_duration_ms: voice.silence_duration_ms,
            idle_timeout_ms: (voice.idle_timeout_ms > 0).then_some(voice.idle_timeout_ms),
            create_response: true,
            interrupt_response: true,
            semantic: None,
        }
    }

    fn from_wire(wire: &TurnWire, voice: &Voice) -> Self {
        let base = Self::of(voice);
        match *wire {
            TurnWire::ServerVad {
                threshold,
                prefix_padding_ms,
                silence_duration_ms,
                idle_timeout_ms,
                create_response,
                interrupt_response,
            } => Self {
                threshold: threshold.unwrap_or(base.threshold),
                prefix_padding_ms: prefix_padding_ms.unwrap_or(base.prefix_padding_ms),
                silence_duration_ms: silence_duration_ms.unwrap_or(base.silence_duration_ms),
                idle_timeout_ms: idle_timeout_ms.or(base.idle_timeout_ms),
                create_response: create_response.unwrap_or(true),
                interrupt_response: interrupt_response.unwrap_or(true),
                semantic: None,
            },
            TurnWire::SemanticVad { eagerness, create_response, interrupt_response } => {
                let eagerness = eagerness.unwrap_or_default();
                Self {
                    silence_duration_ms: match eagerness {
                        Eagerness::Low => 1500,
                        Eagerness::Medium | Eagerness::Auto => 700,
                        Eagerness::High => 350,
                    },
                    create_response: create_response.unwrap_or(true),
                    interrupt_response: interrupt_response.unwrap_or(true),
                    semantic: Some(eagerness),
                    ..base
                }
            }
        }
    }

    fn show(&self) -> Value {
        let mut shown = match self.semantic {
            Some(eagerness) => json!({"type": "semantic_vad", "eagerness": eagerness}),
            None => json!({
                "type": "server_vad",
                // As short as it was written: 0.5 and not 0.5000000001.
                "threshold": (f64::from(self.threshold) * 1e4).round() / 1e4,
                "prefix_padding_ms": self.prefix_padding_ms,
                "silence_duration_ms": self.silence_duration_ms,
            }),
        };
        if let (Some(ms), None) = (self.idle_timeout_ms, self.semantic) {
            shown["idle_timeout_ms"] = ms.into();
        }
        shown["create_response"] = self.create_response.into();
        shown["interrupt_response"] = self.interrupt_response.into();
        shown
    }
}

/// What holds in a session now.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Told to the model before the conversation.
    pub instructions: String,
    /// Function schemas.
    pub tools: Vec<Value>,
    /// `"none"` hides them.
    pub tool_choice: Value,
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
            instructions: config.thinking.instructions.clone(),
            tools: Vec::new(),
            tool_choice: "auto".into(),
            max_output_tokens: MaxTokens::Infinite,
            effort: config.thinking.effort,
            include: Vec::new(),
            format: Format::default(),
            transcription: Some(Map::new()),
            turn_detection: Some(TurnDetection::of(&config.voice)),
        }
    }

    /// Takes over what an update says.
    pub fn apply(&mut self, update: SessionUpdate, voice: &Voice) {
        if let Some(format) = update.format() {
            self.format = format;
        }
        let set = |slot: &mut String, value: Option<String>| {
            if let Some(value) = value {
                *slot = value;
            }
        };
        set(&mut self.instructions, update.instructions);
        self.tools = update.tools.unwrap_or_else(|| std::mem::take(&mut self.tools));
        self.tool_choice = update.tool_choice.unwrap_or_else(|| self.tool_choice.take());
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

    /// The session object of `session.created` and `session.updated`.
    pub fn show(&self, id: &str, model: &str) -> Value {
        let format = match self.format {
            Format::Pcm16(rate) => json!({"type": "audio/pcm", "rate": rate}),
            Format::Ulaw => json!({"type": "audio/pcmu"}),
            Format::Alaw => json!({"type": "audio/pcma"}),
            Format::Opus => json!({"type": "audio/opus"}),
        };
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
            "audio": {"input": {
                "format": format,
                "transcription": self.transcription,
                "turn_detection": self.turn_detection.as_ref().map(TurnDetection::show),
            }},
        })
    }
}

/// Tools as the engine takes them: a JSON array, or nothing when there are none or they are not to be used.
pub(crate) fn tools_json(tools: &[Value], choice: &Value) -> String {
    if tools.is_empty() || choice == "none" { String::new() } else { Value::from(tools.to_vec()).to_string() }
}
