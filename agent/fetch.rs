//! Brings checkpoints to this machine and finds them again: what `hearken fetch MODEL` does.
//!
//! A checkpoint is a directory. [`locate`] only looks; [`fetch`] downloads what is missing and hashes everything, old and
//! new. Nothing gets its final name before its bytes are known to be right, so an interrupted, cut or tampered file can be
//! resumed or replaced but never be loaded.
//!
//! | module | what it knows |
//! |---|---|
//! | `hub` | Hugging Face repositories, in the cache layout that the Python tools share |
//! | `nano` | the default model: our own weights out of the binary, two pinned base models from outside |
//! | `packages` | the second way to the base models: Python packages, for machines that cannot reach the hub |
//! | `transfer` | one file over HTTP: resume, retry, size, hash |
//! | `checkpoint` | whether a directory holds all that a model needs |
//!
//! Blocking on purpose: it runs before there is anything to serve.

mod checkpoint;
mod digest;
mod error;
mod hub;
mod nano;
mod options;
mod packages;
mod place;
mod progress;
#[cfg(test)]
mod tests;
mod transfer;

use std::path::{Path, PathBuf};

pub use error::FetchError;
pub use options::FetchOptions;
pub use progress::{Progress, Silent, terminal};

/// Makes sure that `model` is here, complete and unaltered, and returns its directory.
///
/// `model` is `nano`, a short name (`step-audio-r1`, `step-audio-r1.1`, `step-audio-2-mini`), a Hugging Face id
/// (`owner/name`, or `owner/name@revision`), or the path of a checkpoint, which is only checked.
///
/// # Errors
/// See [`FetchError`]; each one says what to do next.
pub fn fetch(model: &str, options: &FetchOptions, progress: &mut dyn Progress) -> Result<PathBuf, FetchError> {
    match Model::parse(model)? {
        Model::Nano => nano::fetch(&nano::Manifest::embedded(), options, progress),
        Model::Hub(repo) => hub::fetch(&repo, options, progress),
        Model::Path(path) => checkpoint::check(&path).map(|()| path),
    }
}

/// Finds a checkpoint that is already here. Never touches the network, never writes.
///
/// # Errors
/// [`FetchError::NotHere`] names the command that brings it.
pub fn locate(model: &str, options: &FetchOptions) -> Result<PathBuf, FetchError> {
    match Model::parse(model)? {
        Model::Nano => nano::locate(&nano::Manifest::embedded(), options),
        Model::Hub(repo) => hub::locate(&repo, options),
        Model::Path(path) => checkpoint::check(&path).map(|()| path),
    }
}

/// What a user may mean by MODEL.
#[derive(Debug, PartialEq, Eq)]
enum Model {
    Nano,
    Hub(hub::Id),
    Path(PathBuf),
}

impl Model {
    fn parse(text: &str) -> Result<Self, FetchError> {
        let id = match text {
            "nano" => return Ok(Self::Nano),
            "step-audio-r1" => "stepfun-ai/Step-Audio-R1",
            "step-audio-r1.1" => "stepfun-ai/Step-Audio-R1.1",
            "step-audio-2-mini" => "stepfun-ai/Step-Audio-2-mini",
            // As everywhere in this ecosystem, a path that exists wins over an id of the same spelling.
            other if looks_like_path(other) || Path::new(other).exists() => return Ok(Self::Path(other.into())),
            other => other,
        };
        hub::Id::parse(id).map(Self::Hub).ok_or_else(|| FetchError::UnknownModel(text.into()))
    }
}

fn looks_like_path(text: &str) -> bool {
    text.starts_with(['/', '.', '~']) || text.ends_with(".gguf")
}
