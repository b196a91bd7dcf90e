//! What is said on the wires: one module a protocol, types and parsing alone. Nothing here knows a socket or a model.

pub mod chat;
pub mod openai;
pub mod sdp;
pub mod transcription;
pub mod twilio;
