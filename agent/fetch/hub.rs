//! Hugging Face repositories, kept in the layout of the hub's own cache: `blobs/<hash>`, `snapshots/<commit>/<name>` that
//! point to them, `refs/<revision>` that names the commit. Other tools on the machine share these files with us.
//!
//! hf-hub supplies the host, the listing and the layout; the bytes go through [`super::transfer`], because a blob may
//! only get its name after it has been hashed. The reference is written last: a commit is found when it is complete.

use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde::Deserialize;

use super::digest::Digest;
use super::transfer::{self, Client, Expected};
use super::{FetchError, FetchOptions, Progress, checkpoint, place};

/// A repository at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) name: String,
    pub(super) revision: String,
}

impl Id {
    /// `owner/name` or `owner/name@revision`. These words become paths, so the alphabet is narrow.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let word = |w: &str| {
            !w.is_empty()
                && !w.starts_with('.')
                && !w.contains("..")
                && w.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, repo) = name.split_once('/')?;
        [owner, repo, revision].into_iter().all(word).then(|| Self { name: name.into(), revision: revision.into() })
    }

    fn spelled(&self) -> String {
        if self.revision == "main" { self.name.clone() } else { format!("{}@{}", self.name, self.revision) }
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.name.clone(), RepoType::Model, revision.into())
    }
}

/// hf-hub's view of the hub, with our settings.
pub(super) fn api(options: &FetchOptions) -> Result<Api, FetchError> {
    let mut builder = ApiBuilder::from_cache(Cache::new(options.hub_cache.clone()))
        .with_token(options.token.clone())
        .with_user_agent("hearken", env!("CARGO_PKG_VERSION"))
        .with_progress(false);
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    builder.build().map_err(|error| transfer::remote("the hub's client", error.to_string()))
}

/// The directory of a complete snapshot that is already here.
pub(super) fn locate(id: &Id, options: &FetchOptions) -> Result<PathBuf, FetchError> {
    let not_here = |reason: String| FetchError::NotHere { model: id.spelled(), reason };
    let snapshot = snapshot(id, options).ok_or_else(|| not_here("never fetched".into()))?;
    match checkpoint::check(&snapshot) {
        Ok(()) => Ok(snapshot),
        Err(FetchError::Incomplete { reason, .. }) => Err(not_here(reason)),
        Err(other) => Err(other),
    }
}

/// Brings a repository's checkpoint files, and hashes those that are here already.
pub(super) fn fetch(id: &Id, options: &FetchOptions, progress: &mut dyn Progress) -> Result<PathBuf, FetchError> {
    let lock = options.hub_cache.join(".locks").join(id.at("main").folder_name()).join("hearken.lock");
    let _lock = place::Lock::take(&lock, progress)?;
    if options.offline {
        return kept(id, options, progress).map_err(|error| match error {
            FetchError::NotHere { .. } => FetchError::Offline(id.spelled()),
            other => other,
        });
    }
    let api = api(options)?;
    let listing = match list(&api.repo(id.at(&id.revision)), id) {
        Err(unreachable @ FetchError::Unreachable { .. }) => {
            progress.note(&format!("{unreachable}; looking at what is here"));
            return kept(id, options, progress).map_err(|kept| match kept {
                FetchError::NotHere { .. } => unreachable,
                other => other,
            });
        }
        other => other?,
    };
    download(id, &listing, &api, options, progress)
}

/// A snapshot that is here, every byte of it hashed against the name of its blob.
fn kept(id: &Id, options: &FetchOptions, progress: &mut dyn Progress) -> Result<PathBuf, FetchError> {
    let dir = locate(id, options)?;
    progress.note(&format!("checking {}", dir.display()));
    for entry in fs::read_dir(&dir).map_err(FetchError::disk(&dir))? {
        let link = entry.map_err(FetchError::disk(&dir))?.path();
        let blob = fs::canonicalize(&link).map_err(FetchError::disk(&link))?;
        let Some(digest) = blob.file_name().and_then(|n| n.to_str()).and_then(Digest::from_name) else { continue };
        let name = link.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let bytes = fs::metadata(&blob).map_err(FetchError::disk(&blob))?.len();
        Expected { name, bytes, digest }.check(&blob, "the cache")?;
    }
    Ok(dir)
}

/// What the hub says of a repository, as far as we need it.
#[derive(Debug, Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

/// Names, sizes and hashes of all files, in one request.
fn list(repo: &ApiRepo, id: &Id) -> Result<Listing, FetchError> {
    let request = repo.info_request().query("blobs", "true").config().http_status_as_error(false);
    let request = request.timeout_resolve(Some(transfer::CONNECT)).timeout_connect(Some(transfer::CONNECT));
    let url = repo.url("");
    let mut response =
        request.timeout_global(Some(transfer::SILENCE)).build().call().map_err(|e| transfer::unreachable(&url, &e))?;
    if response.status() != 200 {
        return Err(transfer::status_error(&url, &id.spelled(), response.status().as_u16()));
    }
    let listing: Listing = response
        .body_mut()
        .read_json()
        .map_err(|error| transfer::remote(&url, format!("the listing of {} makes no sense: {error}", id.spelled())))?;
    // It becomes a directory's name.
    match Digest::from_name(&listing.sha) {
        Some(Digest::GitBlob(_)) => Ok(listing),
        _ => Err(transfer::remote(&url, format!("\"{}\" is no commit", listing.sha))),
    }
}

fn download(
    id: &Id,
    listing: &Listing,
    api: &Api,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf, FetchError> {
    // The commit, not the branch: it may move while gigabytes flow.
    let repo = api.repo(id.at(&listing.sha));
    let cache = Cache::new(options.hub_cache.clone()).repo(id.at(&id.revision));
    let snapshot = cache.pointer_path(&listing.sha);
    let client = Client::new(options);
    let (weights, small): (Vec<_>, Vec<_>) = listing
        .siblings
        .iter()
        .filter(|s| checkpoint::wanted(&s.rfilename))
        .partition(|s| s.rfilename.ends_with(".safetensors"));
    for sibling in small {
        one(&expected(sibling, &repo, api)?, &repo, &client, &cache, &snapshot, progress)?;
    }
    // The index, just fetched, tells which shards belong to the model: some repositories carry other weights beside it.
    let shards = checkpoint::shards(&snapshot)?;
    for sibling in weights.into_iter().filter(|s| shards.as_ref().is_none_or(|names| names.contains(&s.rfilename))) {
        one(&expected(sibling, &repo, api)?, &repo, &client, &cache, &snapshot, progress)?;
    }
    checkpoint::check(&snapshot)?;
    cache.create_ref(&listing.sha).map_err(FetchError::disk(&snapshot))?;
    Ok(snapshot)
}

/// Brings one file and links it into the snapshot.
fn one(
    expected: &Expected,
    repo: &ApiRepo,
    client: &Client,
    cache: &CacheRepo,
    snapshot: &Path,
    progress: &mut dyn Progress,
) -> Result<(), FetchError> {
    let blob = cache.blob_path(expected.digest.hex());
    if blob.exists() {
        match expected.check(&blob, "the cache") {
            Ok(()) => return link(&blob, &snapshot.join(&expected.name)),
            Err(wrong @ FetchError::WrongFile { .. }) => progress.note(&format!("{wrong}; fetching it again")),
            Err(other) => return Err(other),
        }
    }
    // The Python tools call it so too, and go on from it.
    let part = blob.with_extension("incomplete");
    client.download(&repo.url(&expected.name), expected, &part, progress)?;
    place::publish(&part, &blob)?;
    link(&blob, &snapshot.join(&expected.name))
}

/// Size and hash of a file, from the listing, or from the headers where a mirror's listing lacks them.
fn expected(sibling: &Sibling, repo: &ApiRepo, api: &Api) -> Result<Expected, FetchError> {
    let name = sibling.rfilename.clone();
    let url = repo.url(&name);
    let (bytes, hash) = match sibling {
        Sibling { lfs: Some(lfs), .. } => (lfs.size, lfs.sha256.clone()),
        Sibling { size: Some(size), blob_id: Some(id), .. } => (*size, id.clone()),
        _ => {
            let meta = api.metadata(&url).map_err(|error| transfer::remote(&url, format!("{name}: {error}")))?;
            (meta.size() as u64, meta.etag().to_owned())
        }
    };
    let digest = Digest::from_name(&hash)
        .ok_or_else(|| transfer::remote(&url, format!("{name} has no hash that could be checked, but \"{hash}\"")))?;
    Ok(Expected { name, bytes, digest })
}

/// The snapshot directory that the revision names, complete or not.
fn snapshot(id: &Id, options: &FetchOptions) -> Option<PathBuf> {
    let cache = Cache::new(options.hub_cache.clone()).repo(id.at(&id.revision));
    let reference = options.hub_cache.join(id.at("main").folder_name()).join("refs").join(&id.revision);
    let commit = fs::read_to_string(reference).unwrap_or_else(|_| id.revision.clone());
    let dir = matches!(Digest::from_name(commit.trim()), Some(Digest::GitBlob(_)))
        .then(|| cache.pointer_path(commit.trim()))?;
    dir.is_dir().then_some(dir)
}

/// Makes `name` lead to `blob`, whatever it led to before.
fn link(blob: &Path, name: &Path) -> Result<(), FetchError> {
    place::make_parent(name)?;
    place::remove(name)?;
    #[cfg(unix)]
    {
        let file = blob.file_name().expect("a blob has a name");
        let target = Path::new("../../blobs").join(file);
        std::os::unix::fs::symlink(target, name).map_err(FetchError::disk(name))
    }
    // Links need a privilege elsewhere; a hard link does as well on one disk.
    #[cfg(not(unix))]
    {
        fs::hard_link(blob, name).map_err(FetchError::disk(name))
    }
}
