//! Hearken.
pub mod engine;
pub mod fetch;
