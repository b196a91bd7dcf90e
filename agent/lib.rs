//! Hearken: a live listening agent. It hears the sound itself, reasons, and streams its reasoning and reply.
//!
//! ```text
//!  browser · phone · program
//!     | PCM16, G.711 or Opus over a WebSocket; Opus by WebRTC; files over HTTP
//!     v
//!  transport   speaks a wire, knows no model          http, websocket, webrtc, telephony, auth
//!     v        what products ask beyond one session     apps: transcribe, calls
//!  audio       decode, resample to 16 kHz mono, ring  intake, rtp, jitter, opus, g711, resample, ring, vad, file
//!     v        of fixed size: the oldest sound is dropped and counted
//!  session     a machine without clock and sockets    segment, spoken, conversation, turn, commands
//!     v        turns, voice activity, barge-in         (the sound goes on while it is spoken)
//!  engine      one trait; behind it, one compute thread: an open ear writes the sound into the prefix, turns are forks of it
//!     v
//!  models      mel, encoder, adaptor, decoder         crate hearken-models
//!     |
//!     +-> tokens -> session -> protocol events -> journal -> transport -> client
//! ```
//!
//! Each layer uses only those below it; [`config`] and [`metrics`] are leaves that all may use, and only [`engine`] names the models. Start reading at
//! [`session::Session`] for what the product does, at [`protocol::openai`] for what is said on the wire, at [`transport::serve`] for how it runs.

pub mod apps;
pub mod audio;
pub mod cli;
pub mod config;
pub mod engine;
pub mod fetch;
pub mod journal;
pub mod metrics;
pub mod protocol;
pub mod session;
pub mod transport;
