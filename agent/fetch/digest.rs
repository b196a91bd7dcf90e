//! What a file's bytes must be, and whether they are.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// The hub names a large file by the SHA-256 of its bytes, a small one by git's blob hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Digest {
    Sha256(String),
    GitBlob(String),
}

impl Digest {
    /// From an ETag or a blob's file name; `None` when it is neither kind of hash.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let hex = name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match name.len() {
            64 if hex => Some(Self::Sha256(name.into())),
            40 if hex => Some(Self::GitBlob(name.into())),
            _ => None,
        }
    }

    /// The bare hash: the name of the blob in the hub's cache.
    pub(super) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// The same kind of hash over the bytes of a file.
    pub(super) fn of_same_kind(&self, path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        match self {
            Self::Sha256(_) => hash(Sha256::new(), &mut file).map(Self::Sha256),
            Self::GitBlob(_) => {
                let mut state = Sha1::new();
                state.update(format!("blob {}\0", file.metadata()?.len()));
                hash(state, &mut file).map(Self::GitBlob)
            }
        }
    }

    /// Whether the file at `path` has these bytes.
    pub(super) fn matches(&self, path: &Path) -> io::Result<bool> {
        Ok(self.of_same_kind(path)? == *self)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "sha256 {hex}"),
            Self::GitBlob(hex) => write!(f, "git blob {hex}"),
        }
    }
}

fn hash<H: sha2::Digest>(mut state: H, file: &mut File) -> io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(state.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => state.update(&buffer[..n]),
        }
    }
}
