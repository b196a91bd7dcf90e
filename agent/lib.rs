//! Hearken.
pub mod engine;
