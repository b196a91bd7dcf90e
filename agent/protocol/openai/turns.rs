//! How a session finds where turns end: `audio.input.turn_detection`.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::{ErrorBody, Refusal};
use crate::config::Voice;

/// How soon `semantic_vad` answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Eagerness {
    Low,
    Medium,
    High,
    #[default]
    Auto,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum TurnWire {
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

/// `null` is off, and so is the `false` of clients that leave out every `null`. Without a `type`, silence decides.
pub(super) fn off_or_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<TurnWire>>, D::Error> {
    let mut value = Value::deserialize(deserializer)?;
    if value.is_null() || value == false {
        return Ok(Some(None));
    }
    if let Some(map) = value.as_object_mut() {
        map.entry("type").or_insert_with(|| "server_vad".into());
    }
    serde_json::from_value(value).map(|wire| Some(Some(wire))).map_err(serde::de::Error::custom)
}

impl TurnWire {
    /// Whether it can be obeyed.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let Self::ServerVad { threshold, prefix_padding_ms, silence_duration_ms, idle_timeout_ms, .. } = self else {
            return Ok(());
        };
        let bad = |field: &str, message: &str| {
            let param = format!("session.audio.input.turn_detection.{field}");
            Err(ErrorBody::invalid("invalid_value", message).at(param))
        };
        if threshold.is_some_and(|t| !(0.0..=1.0).contains(&t)) {
            return bad("threshold", "A threshold is between 0 and 1.");
        }
        if prefix_padding_ms.is_some_and(|ms| ms > 5_000) {
            return bad("prefix_padding_ms", "At most 5000 ms are kept from before the speech.");
        }
        if silence_duration_ms.is_some_and(|ms| !(50..=20_000).contains(&ms)) {
            return bad("silence_duration_ms", "A silence lasts 50 to 20000 ms.");
        }
        if idle_timeout_ms.is_some_and(|ms| !(1_000..=600_000).contains(&ms)) {
            return bad("idle_timeout_ms", "An idle timeout lasts 1000 to 600000 ms.");
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

impl Eagerness {
    /// The longest wait of the API, milliseconds.
    fn longest_wait_ms(self) -> u32 {
        match self {
            Self::Low => 8_000,
            Self::Medium | Self::Auto => 4_000,
            Self::High => 2_000,
        }
    }
}

impl TurnDetection {
    /// Where the model is asked if a turn is over: how long it is waited for, milliseconds, when it is sure that it is not.
    pub fn longest_wait_ms(&self) -> Option<u32> {
        self.semantic.map(Eagerness::longest_wait_ms)
    }

    /// What a session begins with.
    pub(super) fn of(voice: &Voice) -> Self {
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

    pub(super) fn from_wire(wire: &TurnWire, voice: &Voice) -> Self {
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
                    // Where the model is not sure.
                    silence_duration_ms: match eagerness {
                        Eagerness::Low => 1500,
                        Eagerness::Medium | Eagerness::Auto => 700,
                        Eagerness::High => 500,
                    },
                    create_response: create_response.unwrap_or(true),
                    interrupt_response: interrupt_response.unwrap_or(true),
                    semantic: Some(eagerness),
                    ..base
                }
            }
        }
    }

    /// As the session object shows it; a session that `answers` says what its turns do.
    pub(super) fn show(&self, answers: bool) -> Value {
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
        if answers {
            if let (Some(ms), None) = (self.idle_timeout_ms, self.semantic) {
                shown["idle_timeout_ms"] = ms.into();
            }
            shown["create_response"] = self.create_response.into();
            shown["interrupt_response"] = self.interrupt_response.into();
        }
        shown
    }
}
