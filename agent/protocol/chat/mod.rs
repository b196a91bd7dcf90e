//! Chat completions: one request holds the whole conversation, sound included; one answer, or its chunks.
//!
//! # What a client may send
//! `messages` with roles `system`, `developer`, `user`, `assistant`, `tool`; a user's content is text or parts `text` and `input_audio`
//! `{data: base64, format}`, where `pcm16` is 24 kHz mono without a header and anything else is a file (wav, mp3, flac, ogg, recognised by its
//! bytes). `stream`, `stream_options.include_usage`, `temperature`, `top_p`, `seed`, `stop` (up to four), `tools`, `tool_choice`,
//! `reasoning_effort`. `max_tokens` bounds the reply; `max_completion_tokens` bounds reasoning and reply together, of which the reasoning has at most half.
//! `model` is accepted whatever it says, and so are fields without effect here (`user`, `store`, `modalities`, …). `n` above 1, `logprobs`, images
//! and a `response_format` other than text are refused, because an answer without them would not be what was asked for.
//!
//! # What it gets
//! The shapes of OpenAI's, and the reasoning in a field beside `content`, whose name the configuration says (`http.reasoning_field`). Errors are
//! `{"error": {message, type, param, code}}`; one that comes after the first chunk is such an object in the stream.

mod answer;
mod request;
mod stop;

pub use answer::{Answer, Delta};
pub use request::Chat;
