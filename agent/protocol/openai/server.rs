//! Events to the client. Each is an object with `type` and, added when it is sent, `event_id`.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::Item;

/// What a client is told.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type")]
#[allow(missing_docs, reason = "the names are the API's own, see its reference")]
pub enum ServerEvent {
    #[serde(rename = "error")]
    Error { error: ErrorBody },
    #[serde(rename = "session.created")]
    SessionCreated { session: Value },
    #[serde(rename = "session.updated")]
    SessionUpdated { session: Value },
    #[serde(rename = "input_audio_buffer.committed")]
    Committed {
        /// `null` is the beginning of the conversation.
        previous_item_id: Option<String>,
        item_id: String,
    },
    #[serde(rename = "input_audio_buffer.cleared")]
    Cleared,
    #[serde(rename = "input_audio_buffer.speech_started")]
    SpeechStarted { audio_start_ms: u64, item_id: String },
    #[serde(rename = "input_audio_buffer.speech_stopped")]
    SpeechStopped { audio_end_ms: u64, item_id: String },
    #[serde(rename = "input_audio_buffer.timeout_triggered")]
    TimeoutTriggered { audio_start_ms: u64, audio_end_ms: u64, item_id: String },
    #[serde(rename = "conversation.item.added")]
    ItemAdded {
        /// `null` is the beginning of the conversation.
        previous_item_id: Option<String>,
        item: Item,
    },
    #[serde(rename = "conversation.item.done")]
    ItemDone {
        /// `null` is the beginning of the conversation.
        previous_item_id: Option<String>,
        item: Item,
    },
    #[serde(rename = "conversation.item.retrieved")]
    ItemRetrieved { item: Item },
    #[serde(rename = "conversation.item.truncated")]
    ItemTruncated { item_id: String, content_index: usize, audio_end_ms: u64 },
    #[serde(rename = "conversation.item.deleted")]
    ItemDeleted { item_id: String },
    #[serde(rename = "conversation.item.input_audio_transcription.completed")]
    Transcribed { item_id: String, content_index: usize, transcript: String, usage: Seconds },
    #[serde(rename = "conversation.item.input_audio_transcription.delta")]
    TranscriptDelta { item_id: String, content_index: usize, delta: String },
    #[serde(rename = "conversation.item.input_audio_transcription.failed")]
    TranscriptionFailed { item_id: String, content_index: usize, error: ErrorBody },
    #[serde(rename = "conversation.item.input_audio_transcription.segment")]
    Segment { item_id: String, content_index: usize, id: String, text: String, speaker: String, start: f64, end: f64 },
    /// Ours: what seems to follow the deltas; the next one replaces it.
    #[serde(rename = "hearken.input_audio_transcription.tentative")]
    Tentative { item_id: String, content_index: usize, text: String },
    #[serde(rename = "response.created")]
    ResponseCreated { response: Response },
    #[serde(rename = "response.done")]
    ResponseDone { response: Response },
    #[serde(rename = "rate_limits.updated")]
    RateLimits { rate_limits: [RateLimit; 1] },
    #[serde(rename = "response.output_item.added")]
    OutputItemAdded { response_id: String, output_index: usize, item: Item },
    #[serde(rename = "response.output_item.done")]
    OutputItemDone { response_id: String, output_index: usize, item: Item },
    #[serde(rename = "response.content_part.added")]
    PartAdded {
        #[serde(flatten)]
        place: Place,
        part: BufferedText,
    },
    #[serde(rename = "response.content_part.done")]
    PartDone {
        #[serde(flatten)]
        place: Place,
        part: BufferedText,
    },
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        #[serde(flatten)]
        place: Place,
        delta: String,
    },
    #[serde(rename = "response.output_text.done")]
    TextDone {
        #[serde(flatten)]
        place: Place,
        text: String,
    },
    #[serde(rename = "response.reasoning_text.delta")]
    ReasoningDelta {
        #[serde(flatten)]
        place: Place,
        delta: String,
    },
    #[serde(rename = "response.reasoning_text.done")]
    ReasoningDone {
        #[serde(flatten)]
        place: Place,
        text: String,
    },
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta { response_id: String, item_id: String, output_index: usize, call_id: String, delta: String },
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone {
        response_id: String,
        item_id: String,
        output_index: usize,
        call_id: String,
        name: String,
        arguments: String,
    },
}

impl ServerEvent {
    /// The JSON text of one frame.
    pub fn to_json(&self, event_id: &str) -> String {
        #[derive(Serialize)]
        struct Frame<'a> {
            event_id: &'a str,
            #[serde(flatten)]
            event: &'a ServerEvent,
        }
        serde_json::to_string(&Frame { event_id, event: self }).expect("events are plain maps with string keys")
    }
}

/// Where in a response a text belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Which response.
    pub response_id: String,
    /// Which item.
    pub item_id: String,
    /// Which item of the response, from 0.
    pub output_index: usize,
    /// Which part of the item, from 0.
    pub content_index: usize,
}

/// A content part, whose type is `text` here though the finished item says `output_text`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BufferedText(pub String);

impl Serialize for BufferedText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("type", "text")?;
        map.serialize_entry("text", &self.0)?;
        map.end()
    }
}

/// What a transcription cost: the sound's length.
#[derive(Debug, Clone, PartialEq)]
pub struct Seconds(pub f64);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("type", "duration")?;
        map.serialize_entry("seconds", &self.0)?;
        map.end()
    }
}

/// How many requests are left.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RateLimit {
    /// Always `requests`.
    pub name: &'static str,
    /// The most there can be.
    pub limit: u32,
    /// How many there are.
    pub remaining: u32,
    /// Until there are as many as there can be.
    pub reset_seconds: f64,
}

/// The `error` object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// `invalid_request_error` or `server_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// Which parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// Which client event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
}

impl ErrorBody {
    /// The client's mistake.
    pub fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self { kind: "invalid_request_error", code, message: message.into(), param: None, event_id: None }
    }

    /// Our trouble.
    pub fn server(code: &'static str, message: impl Into<String>) -> Self {
        Self { kind: "server_error", ..Self::invalid(code, message) }
    }

    /// Names the parameter.
    #[must_use]
    pub fn at(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }
}

/// How far a response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseStatus {
    /// Being computed.
    InProgress,
    /// Whole.
    Completed,
    /// Given up by the client or by speech.
    Cancelled,
    /// Ended at a limit.
    Incomplete,
    /// Not computed.
    Failed,
}

/// Why a response is not whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatusDetails {
    /// The status again.
    #[serde(rename = "type")]
    pub kind: ResponseStatus,
    /// `turn_detected`, `client_cancelled` or `max_output_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// What failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// A response as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Response {
    /// Always `realtime.response`.
    pub object: &'static str,
    /// Unique in the session.
    pub id: String,
    /// How far it is.
    pub status: ResponseStatus,
    /// `null` when all is well.
    pub status_details: Option<StatusDetails>,
    /// Its items.
    pub output: Vec<Item>,
    /// Which conversation it is part of, unless it is out of band.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<String>,
    /// Always text.
    pub output_modalities: [&'static str; 1],
    /// Its limit.
    pub max_output_tokens: super::MaxTokens,
    /// What the client gave to be echoed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
    /// Its cost, when it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Its times, when it is done and the client opted in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings_ms: Option<TimingsMs>,
}

/// What a response cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// Both.
    pub total_tokens: usize,
    /// Prompt.
    pub input_tokens: usize,
    /// Written, reasoning included.
    pub output_tokens: usize,
    /// Of the prompt.
    pub input_token_details: TokenDetails,
    /// Of what was written.
    pub output_token_details: TokenDetails,
}

/// What tokens were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct TokenDetails {
    /// Text.
    pub text_tokens: usize,
    /// Sound.
    pub audio_tokens: usize,
    /// Of both, found in the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<usize>,
    /// Of those, how many of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_tokens_details: Option<CachedDetails>,
    /// Of the text, reasoning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<usize>,
}

/// What cached tokens were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct CachedDetails {
    /// Text.
    pub text_tokens: usize,
    /// Sound.
    pub audio_tokens: usize,
}

impl From<crate::engine::Usage> for Usage {
    fn from(u: crate::engine::Usage) -> Self {
        let (input, output) = (u.text_tokens + u.sound_tokens, u.reasoning_tokens + u.reply_tokens);
        Self {
            total_tokens: input + output,
            input_tokens: input,
            output_tokens: output,
            input_token_details: TokenDetails {
                text_tokens: u.text_tokens,
                audio_tokens: u.sound_tokens,
                cached_tokens: Some(u.cached_tokens),
                cached_tokens_details: Some(CachedDetails {
                    text_tokens: u.cached_tokens - u.cached_sound_tokens.min(u.cached_tokens),
                    audio_tokens: u.cached_sound_tokens,
                }),
                reasoning_tokens: None,
            },
            output_token_details: TokenDetails {
                text_tokens: output,
                audio_tokens: 0,
                cached_tokens: None,
                cached_tokens_details: None,
                reasoning_tokens: Some(u.reasoning_tokens),
            },
        }
    }
}

/// Where a response's time went, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "each is the field of that name in engine::Timings")]
pub struct TimingsMs {
    /// Of a spoken turn: from its last voice until the detector was sure that it was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub voice_activity: Option<f64>,
    pub queued: f64,
    pub encode: f64,
    pub words: f64,
    pub prefill: f64,
    pub think: f64,
    pub reply: f64,
}

impl From<crate::engine::Timings> for TimingsMs {
    fn from(t: crate::engine::Timings) -> Self {
        // Microseconds are enough, and short in JSON.
        let ms = |d: std::time::Duration| d.as_micros() as f64 / 1000.0;
        Self {
            voice_activity: None,
            queued: ms(t.queued),
            encode: ms(t.encode),
            words: ms(t.words),
            prefill: ms(t.prefill),
            think: ms(t.think),
            reply: ms(t.reply),
        }
    }
}
