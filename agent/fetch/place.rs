//! Putting files in their place: one writer at a time, and a final name only for a finished file.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use super::{FetchError, Progress};

/// Held while a checkpoint is written; the system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held for its drop")] File);

impl Lock {
    /// Waits for another fetch of the same checkpoint, and says so.
    pub(super) fn take(path: &Path, progress: &mut dyn Progress) -> Result<Self, FetchError> {
        make_parent(path)?;
        let file =
            File::options().create(true).truncate(false).write(true).open(path).map_err(FetchError::disk(path))?;
        match file.try_lock() {
            Ok(()) => return Ok(Self(file)),
            Err(TryLockError::WouldBlock) => progress.note("another fetch of this model is running; waiting for it"),
            Err(TryLockError::Error(source)) => return Err(FetchError::disk(path)(source)),
        }
        file.lock().map_err(FetchError::disk(path))?;
        Ok(Self(file))
    }
}

/// Creates the directories above `path`.
pub(super) fn make_parent(path: &Path) -> Result<(), FetchError> {
    let parent = path.parent().expect("every path here is inside a cache directory");
    fs::create_dir_all(parent).map_err(FetchError::disk(parent))
}

/// Removes a file that may be missing.
pub(super) fn remove(path: &Path) -> Result<(), FetchError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(FetchError::disk(path)(error)),
        _ => Ok(()),
    }
}

/// Gives a finished, checked file its final name: on the disk before, atomic, and replacing what was there.
pub(super) fn publish(part: &Path, path: &Path) -> Result<(), FetchError> {
    File::open(part).and_then(|file| file.sync_all()).map_err(FetchError::disk(part))?;
    make_parent(path)?;
    fs::rename(part, path).map_err(FetchError::disk(path))
}

/// Writes a small file at once or not at all.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), FetchError> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    make_parent(path)?;
    fs::write(part, bytes).map_err(FetchError::disk(part))?;
    publish(part, path)
}
