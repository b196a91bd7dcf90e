//! Tests against a small server that behaves, and misbehaves, like the hub.

mod hub;
mod nano;
mod places;
mod server;

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{FetchOptions, Progress};

/// Options that see nothing of this machine's environment.
fn options(root: &Path, endpoint: Option<&str>) -> FetchOptions {
    let root = root.display().to_string();
    let mut options = FetchOptions::from_lookup(|key| match key {
        "HEARKEN_HOME" => Some(format!("{root}/hearken")),
        "HF_HOME" => Some(format!("{root}/hf")),
        "HF_ENDPOINT" => endpoint.map(String::from),
        _ => None,
    });
    options.retry_wait = Duration::from_millis(1);
    options
}

/// Remembers what was said.
#[derive(Default)]
struct Heard {
    notes: Vec<String>,
    /// File, and how much of it was here before.
    starts: Vec<(String, u64)>,
}

impl Progress for Heard {
    fn note(&mut self, line: &str) {
        self.notes.push(line.into());
    }
    fn start(&mut self, file: &str, _: u64, have: u64) {
        self.starts.push((file.into(), have));
    }
    fn advance(&mut self, _: u64) {}
    fn finish(&mut self) {}
}

/// A file that holds `bytes`, and the directories above it.
fn put(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("not the root")).expect("a temporary directory can be written");
    fs::write(path, bytes).expect("a temporary directory can be written");
}

/// `len` bytes without a pattern that hides a wrong offset.
fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}
