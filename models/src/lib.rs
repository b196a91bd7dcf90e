//! The model.
pub mod prompt;
