//! The live path, from a client's bytes to the engine trait and back, with an engine whose every word the test decides.
//!
//! One binary, because each links the whole library; one module a behaviour. Nothing here measures time: sessions are driven in virtual time, sockets
//! by waiting for what must come.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod admission;
mod audio;
mod bad_input;
mod calls;
mod chat;
mod config;
mod crash;
mod desk;
mod ending;
mod files;
mod harness;
mod http;
mod interruption;
mod jitter;
mod journal;
mod listening;
mod load;
mod network;
mod phone;
mod realtime;
mod recording;
mod relay;
mod semantic;
mod session;
mod spoken_turn;
mod telephony;
mod text_turn;
mod transcriptions;
mod webrtc;
mod websocket;
