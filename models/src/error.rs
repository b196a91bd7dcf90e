//! What can go wrong below the engine, in words the sender of a file or a request can act on.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of a checkpoint is missing, cut, swapped or hostile.
    #[error("{path}: {reason}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint's config asks for something that cannot be.
    #[error("config: {0}")]
    Config(String),
    /// A tensor is missing or is not what the config says.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// Its name in the checkpoint.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer cannot be built or cannot encode.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// An input is outside what the model can take.
    #[error("input: {0}")]
    Input(String),
    /// The KV pool has no block left that nobody holds.
    #[error("the KV pool is full: all {blocks} blocks are in use")]
    KvFull {
        /// All there are.
        blocks: usize,
    },
    /// candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn file(path: &std::path::Path, reason: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn tensor(name: &str, reason: impl std::fmt::Display) -> Self {
        Self::Tensor { name: name.to_owned(), reason: reason.to_string() }
    }
}
