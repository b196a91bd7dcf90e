//! Where checkpoints live and how they may be fetched, from the environment or given by a test.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use hf_hub::Cache;

/// Where to look, where to ask, and what is allowed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FetchOptions {
    /// Our own cache; nano lives in `nano/` under it.
    pub home: PathBuf,
    /// The hub's cache (`models--owner--name/…`), shared with the Python tools.
    pub hub_cache: PathBuf,
    /// Another hub than the default one.
    pub endpoint: Option<String>,
    /// Sent to the hub alone, never to where it redirects.
    pub token: Option<String>,
    /// Use what is here, never the network.
    pub offline: bool,
    /// The interpreter of the package route.
    pub python: PathBuf,
    /// The wait before the first retry; it doubles each time.
    pub retry_wait: Duration,
}

impl FetchOptions {
    /// Reads HEARKEN_HOME, XDG_CACHE_HOME, HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and HEARKEN_PYTHON.
    pub fn from_env() -> Self {
        Self::from_lookup(|key| env::var(key).ok().filter(|value| !value.is_empty()))
    }

    pub(super) fn from_lookup(var: impl Fn(&str) -> Option<String>) -> Self {
        let user = env::home_dir().unwrap_or_default();
        let cache = var("XDG_CACHE_HOME").map_or_else(|| user.join(".cache"), PathBuf::from);
        let hub_home = var("HF_HOME").map_or_else(|| cache.join("huggingface"), PathBuf::from);
        let hub_cache = var("HF_HUB_CACHE").map_or_else(|| hub_home.join("hub"), PathBuf::from);
        // hf-hub knows the token file alone; the variable, which everyone's guide tells to set, comes first.
        let token = var("HF_TOKEN").or_else(|| Cache::new(hub_home.join("hub")).token());
        Self {
            home: var("HEARKEN_HOME").map_or_else(|| cache.join("hearken"), PathBuf::from),
            hub_cache,
            endpoint: var("HF_ENDPOINT").map(|url| url.trim_end_matches('/').into()),
            token: token.map(|t| t.trim().into()),
            offline: var("HF_HUB_OFFLINE").is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&&*v.to_uppercase())),
            python: var("HEARKEN_PYTHON").map_or_else(|| "python3".into(), PathBuf::from),
            retry_wait: Duration::from_secs(1),
        }
    }
}
