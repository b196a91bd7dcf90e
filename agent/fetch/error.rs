//! Why a checkpoint could not be brought or used, in words that say what to do next.

use std::io;
use std::path::PathBuf;

/// Why a checkpoint could not be fetched or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Neither a name we know, nor an id, nor a path.
    #[error(
        "\"{0}\" is no model: give nano, step-audio-r1, step-audio-r1.1, step-audio-2-mini, a Hugging Face id (owner/name) or a path"
    )]
    UnknownModel(String),
    /// [`locate`](super::locate) found nothing, or not all of it.
    #[error("{model} is not ready on this machine ({reason}); run: hearken fetch {model}")]
    NotHere {
        /// The model, spelled as `hearken fetch` takes it.
        model: String,
        /// What is missing.
        reason: String,
    },
    /// A directory that is no complete checkpoint.
    #[error("{path} is not a complete checkpoint: {reason}")]
    Incomplete {
        /// The directory or file.
        path: PathBuf,
        /// What is missing or cut.
        reason: String,
    },
    /// The bytes are not the right ones. The file has been removed.
    #[error("{file} from {origin} is refused and was removed: expected {expected}, found {found}")]
    WrongFile {
        /// The file's name.
        file: String,
        /// Where the bytes came from.
        origin: String,
        /// What they should have been.
        expected: String,
        /// What they were.
        found: String,
    },
    /// The hub wants to know who asks.
    #[error("{repo} refuses access (HTTP {status}): accept its terms on its page if it has any, then set HF_TOKEN")]
    Unauthorized {
        /// The repository.
        repo: String,
        /// 401 or 403.
        status: u16,
    },
    /// No such repository, revision or file.
    #[error("{0} does not exist on the hub (HTTP 404); check the spelling")]
    NotFound(String),
    /// No answer at all.
    #[error("{host} cannot be reached: {reason}")]
    Unreachable {
        /// Host and port.
        host: String,
        /// What the network said.
        reason: String,
    },
    /// An answer that is no use.
    #[error("{host} failed: {reason}")]
    Remote {
        /// Host and port.
        host: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// HF_HUB_OFFLINE is set and something is missing.
    #[error("{0} would have to be downloaded, but HF_HUB_OFFLINE is set")]
    Offline(String),
    /// The package route failed.
    #[error("the package route failed: {0}")]
    Packages(String),
    /// Every known source of one file failed.
    #[error("{file} could not be fetched; tried {}", .tried.join("; then "))]
    NoSource {
        /// The file.
        file: String,
        /// One line for each source.
        tried: Vec<String>,
    },
    /// The disk is full.
    #[error("no space left for {path}; free some and run the same command again, it goes on where it stopped")]
    DiskFull {
        /// The file being written.
        path: PathBuf,
    },
    /// Anything else on the disk.
    #[error("{path}: {source}")]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FetchError {
    /// For `map_err`: an error of the file system at `path`.
    pub(super) fn disk(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Disk { path, source },
        }
    }
}
