//! The Realtime API, general-availability shape, as JSON text frames on a WebSocket at `/v1/realtime`.
//!
//! # What a client may send
//! `session.update`, `input_audio_buffer.append|commit|clear`, `conversation.item.create|retrieve|truncate|delete`,
//! `response.create|cancel`, `output_audio_buffer.clear` (there is no output sound: nothing comes of it). Anything else, and anything malformed, is answered with `error` and the connection stays. A refused
//! event changes nothing.
//!
//! # What it gets
//! `session.created` first. A spoken turn: `input_audio_buffer.speech_started`, `…speech_stopped`, `…committed`,
//! `conversation.item.added`, `conversation.item.done`, then a response. A response, always in this order: `response.created` (before any
//! computing), `conversation.item.input_audio_transcription.completed` (when the checkpoint has an ear for words; it may come for any
//! sound that was not yet transcribed), `response.output_item.added`, `conversation.item.added`, `response.content_part.added`,
//! `response.output_text.delta`*, `response.output_text.done`, `response.content_part.done`, `response.output_item.done`,
//! `conversation.item.done`, `response.done` with usage. A call of a function takes an output item of its own:
//! `response.output_item.added`, `conversation.item.added`, `response.function_call_arguments.delta`, `….done`,
//! `response.output_item.done`, `conversation.item.done`. Fields without a value are left out, except where `null` says something: a user
//! part's `transcript`, `previous_item_id` (the beginning), `status_details`, and of the session what is off.
//!
//! `rate_limits.updated` follows `response.created` where the server sets a limit (`limits.responses_per_minute`), and
//! `input_audio_buffer.timeout_triggered` a long silence where an `idle_timeout_ms` holds. `….input_audio_transcription.segment` comes before
//! `….completed` where the model asked for in `audio.input.transcription` has `diarize` in its name.
//!
//! `/v1/realtime?intent=transcription`, or the session type `transcription`, is a session that tells the words it hears and answers nothing.
//!
//! Replies are text: a wish for spoken output is answered with `"output_modalities": ["text"]`, and a voice's name is accepted
//! and without effect. Under `semantic_vad` the model itself is asked at each pause whether the turn is over.
//!
//! # What is ours, and only for those who ask
//! - `audio.input.format`: `{"type":"audio/pcm","rate":24000}` (the default), and beyond the API the rates 8000, 16000, 44100, 48000 and
//!   `{"type":"audio/opus"}`; `audio/pcmu` and `audio/pcma` as there.
//! - *Binary frames* carry sound in that format without base64: any even number of bytes of PCM16, any number of G.711 bytes, exactly
//!   one packet of Opus. Beside Opus the sound of `conversation.item.create` is PCM16 at 24000. They may come at any time, also before the first `session.update`.
//! - `session.include` with `"reasoning.text"`: `response.reasoning_text.delta {response_id, item_id, output_index, content_index, delta}`
//!   as it thinks and `response.reasoning_text.done {…, text}` when it stops. Both come before the output item that they name is added.
//! - `session.include` with `"hearken.captions.tentative"`: `hearken.input_audio_transcription.tentative {item_id, content_index, text}` while
//!   somebody speaks: what seems to follow the words of `conversation.item.input_audio_transcription.delta`, which are never taken back.
//! - `session.include` with `"hearken.timings"`: `response.done` carries `response.timings_ms {queued, encode, words, prefill, think, reply}`,
//!   milliseconds on the compute thread, and for a spoken turn `voice_activity`: from its last voice until it was sure that it was over.
//! - *Coming back*: a client that connects with `?resume=` (empty) finds `session.resume {token, conversation_id, seconds}` in `session.created`. After a
//!   lost connection, or after a restart of the server, it connects with `?resume=TOKEN&after=EVENT_ID`, where that is the last event that it has: it is
//!   sent what it missed, then `session.created`, and goes on. For so many seconds the session itself goes on without it; later it is built again
//!   from what was told, its sound known by its words. Pieces of a reply are not told again where its whole text is. Events are numbered by the end of
//!   their `event_id`, which grows and leaves numbers out. The sound of each connection begins in the default format.
//! - `reasoning.effort` may also be set for one response, in `response.create`.
//!
//! # Errors
//! `{"type":"error","event_id":…,"error":{"type","code","message","param","event_id"}}`; `type` is `invalid_request_error` or `server_error`. A turn
//! that the engine refuses or fails is told by `response.done` with status `failed` and no `error`, because clients end at an `error`.

mod client;
mod item;
mod past;
mod server;
mod settings;
mod tools;
mod turns;

pub(crate) use client::decode as decode_base64;
pub use client::{ClientEvent, Incoming, InputItem, NewItem, NewKind, NewPart, ResponseParams, parse, parse_session};
pub use item::{Item, ItemKind, Object, Part, Status};
pub use past::{Past, PastItem, PastResponse};
pub use server::{
    BufferedText, CachedDetails, ErrorBody, Place, RateLimit, Response, ResponseStatus, Seconds, ServerEvent,
    StatusDetails, TimingsMs, TokenDetails, Usage,
};
pub use settings::{Kind, MaxTokens, SessionUpdate, Settings};
pub use tools::ToolChoice;
pub(crate) use tools::tools_json;
pub use turns::TurnDetection;

/// An event that is refused: the `error` object that its client is sent.
pub type Refusal = ErrorBody;
