//! The model and the live path on it: against code nobody here wrote, against hostile files, and over a real socket.
#![allow(clippy::unwrap_used, missing_docs)]

mod calls;
mod ear;
mod hostile;
mod kv;
mod listening;
mod live;
mod nano;
mod parity;

use std::path::{Path, PathBuf};

/// A path below tests/.
fn tests(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// Where nano's base models lie; these tests cannot do without.
fn nano_directory() -> PathBuf {
    hearken::fetch::locate("nano", &hearken::fetch::FetchOptions::from_env()).expect("scripts/test fetches nano first")
}
