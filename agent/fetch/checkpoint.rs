//! Whether a directory holds all that a model needs. Cheap: it reads names, small JSON files and the headers of the
//! weights, which tell how long a whole file must be. Hashing is [`super::fetch`]'s work, before a file gets its name.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::FetchError;

const INDEX: &str = "model.safetensors.index.json";
/// safetensors' own limit; a larger header is an attack or noise.
const MAX_HEADER: u64 = 100_000_000;
/// No JSON file that we read here is nearly so long.
const MAX_JSON: u64 = 64_000_000;

/// Whether a repository's file belongs to a checkpoint: weights, configuration, tokenizer; no code, pictures, subfolders.
pub(super) fn wanted(name: &str) -> bool {
    let plain = !name.contains(['/', '\\']) && !name.starts_with('.');
    plain
        && (name.ends_with(".safetensors")
            || name.ends_with(".json")
            || matches!(name, "merges.txt" | "tokenizer.model" | "chat_template.jinja"))
}

/// The shards that the index names; `None` for a checkpoint in one file.
pub(super) fn shards(dir: &Path) -> Result<Option<BTreeSet<String>>, FetchError> {
    if !dir.join(INDEX).exists() {
        return Ok(None);
    }
    let index = json(dir, INDEX)?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| incomplete(dir, format!("{INDEX} has no weight_map")))?;
    let names: BTreeSet<_> = map.values().filter_map(Value::as_str).map(String::from).collect();
    match names.iter().find(|name| !wanted(name)) {
        Some(bad) => Err(incomplete(dir, format!("{INDEX} names \"{bad}\", which is no shard"))),
        None if names.is_empty() => Err(incomplete(dir, format!("{INDEX} names no shard"))),
        None => Ok(Some(names)),
    }
}

/// Checks a checkpoint: a directory in the official layout or nano's, or one GGUF file.
pub(super) fn check(path: &Path) -> Result<(), FetchError> {
    if path.is_file() {
        return gguf(path, path);
    }
    if !path.is_dir() {
        return Err(incomplete(path, "no such file or directory".into()));
    }
    let dir = path;
    json(dir, "config.json")?;
    let ggufs = names(dir)?.into_iter().filter(|name| name.ends_with(".gguf")).collect::<Vec<_>>();
    if !ggufs.is_empty() {
        // A GGUF brings its tokenizer along.
        return ggufs.iter().try_for_each(|name| gguf(dir, &dir.join(name)));
    }
    let weights = shards(dir)?.unwrap_or_else(|| BTreeSet::from(["model.safetensors".into()]));
    let missing: Vec<_> = weights.iter().filter(|name| !dir.join(name).exists()).map(String::as_str).collect();
    if !missing.is_empty() {
        return Err(incomplete(
            dir,
            format!("{} of {} weight files missing: {}", missing.len(), weights.len(), missing.join(", ")),
        ));
    }
    weights.iter().try_for_each(|name| safetensors(dir, name))?;
    let tokenizer = [&["tokenizer.json"][..], &["vocab.json", "merges.txt"]];
    if !tokenizer.iter().any(|files| files.iter().all(|name| dir.join(name).exists())) {
        return Err(incomplete(dir, "tokenizer.json is missing, and so are vocab.json and merges.txt".into()));
    }
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<String>, FetchError> {
    let entries = fs::read_dir(dir).map_err(FetchError::disk(dir))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

fn json(dir: &Path, name: &str) -> Result<Value, FetchError> {
    let path = dir.join(name);
    let file = File::open(&path).map_err(|_| incomplete(dir, format!("{name} is missing")))?;
    let mut text = Vec::new();
    file.take(MAX_JSON).read_to_end(&mut text).map_err(FetchError::disk(path))?;
    serde_json::from_slice(&text).map_err(|error| incomplete(dir, format!("{name} is cut or no JSON ({error})")))
}

/// The header says where the last tensor ends, and so how long the file must be.
fn safetensors(dir: &Path, name: &str) -> Result<(), FetchError> {
    let path = dir.join(name);
    let mut file = File::open(&path).map_err(FetchError::disk(&path))?;
    let bytes = file.metadata().map_err(FetchError::disk(&path))?.len();
    let expected =
        whole_length(&mut file, bytes).ok_or_else(|| incomplete(dir, format!("{name} has no valid header")))?;
    match bytes == expected {
        true => Ok(()),
        false => Err(incomplete(dir, format!("{name} has {bytes} bytes where its header says {expected}"))),
    }
}

fn whole_length(file: &mut File, bytes: u64) -> Option<u64> {
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length > bytes {
        return None;
    }
    let mut header = vec![0; usize::try_from(length).ok()?];
    file.read_exact(&mut header).ok()?;
    let header: Value = serde_json::from_slice(&header).ok()?;
    let ends = header.as_object()?.values().filter_map(|t| t.get("data_offsets")?.get(1)?.as_u64());
    ends.max().unwrap_or(0).checked_add(8 + length)
}

fn gguf(checkpoint: &Path, path: &Path) -> Result<(), FetchError> {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    match read {
        Ok(()) if &magic == b"GGUF" => Ok(()),
        _ => Err(incomplete(checkpoint, format!("{} is no GGUF", path.file_name().unwrap_or_default().display()))),
    }
}

fn incomplete(path: &Path, reason: String) -> FetchError {
    FetchError::Incomplete { path: path.into(), reason }
}
