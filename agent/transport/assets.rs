//! The page, embedded: one file to copy, nothing to install.
//!
//! A file in web/ is served when its name is in the table below; a test sees to it that none is forgotten.

use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

/// Scripts, styles, sounds and sockets of our own only; nobody frames the page.
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data: blob:; media-src 'self' blob:; \
                      worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

struct Asset {
    name: &'static str,
    bytes: &'static [u8],
    /// Of the content, so that a new build is seen at once and an old one is not sent twice.
    etag: String,
}

macro_rules! embed {
    ($($name:literal),* $(,)?) => {
        vec![$(asset($name, include_bytes!(concat!("../../web/", $name)))),*]
    };
}

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    embed![
        "index.html",
        "app.css",
        "app.js",
        "call.js",
        "calls.css",
        "calls.html",
        "calls.js",
        "captions.css",
        "captions.html",
        "captions.js",
        "conversation.js",
        "favicon.svg",
        "history.js",
        "log.js",
        "meter.js",
        "microphone.js",
        "pipes.js",
        "realtime.js",
        "save.js",
        "soundfile.js",
        "speech.js",
        "sse.js",
        "timeline.js",
        "words.js",
        "worklet.js",
    ]
});

fn asset(name: &'static str, bytes: &'static [u8]) -> Asset {
    let digest = Sha256::digest(bytes);
    let hex: String = digest.iter().take(12).map(|b| format!("{b:02x}")).collect();
    Asset { name, bytes, etag: format!("\"{hex}\"") }
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("ico") => "image/x-icon",
        Some("json" | "webmanifest") => "application/json",
        Some("woff2") => "font/woff2",
        Some("wasm") => "application/wasm",
        _ => "text/plain; charset=utf-8",
    }
}

/// The file at this path, if there is one.
pub(super) fn serve(path: &str, headers: &HeaderMap) -> Option<Response> {
    let name = match path.trim_start_matches('/') {
        "" => "index.html",
        "captions" => "captions.html",
        "calls" => "calls.html",
        name => name,
    };
    let asset = ASSETS.iter().find(|a| a.name == name)?;
    let fixed: [(HeaderName, &str); 7] = [
        (header::CONTENT_TYPE, content_type(asset.name)),
        (header::ETAG, &asset.etag),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("permissions-policy"), "microphone=(self), display-capture=(self)"),
    ];
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    if known.is_some_and(|tags| tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == asset.etag)) {
        return Some((StatusCode::NOT_MODIFIED, fixed).into_response());
    }
    Some((fixed, asset.bytes).into_response())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::{Path, PathBuf};

    use super::*;

    fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, into) } else { into.push(path) }
        }
    }

    #[test]
    fn every_file_of_the_page_is_served() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("web");
        let mut files = Vec::new();
        walk(&root, &mut files);
        for file in files {
            let name = file.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
            assert!(serve(&format!("/{name}"), &HeaderMap::new()).is_some(), "web/{name} is not in the table");
        }
    }

    #[test]
    fn an_unchanged_file_is_not_sent_again() {
        let first = serve("/", &HeaderMap::new()).unwrap();
        let tag = first.headers()[header::ETAG].clone();
        let again = serve("/", &HeaderMap::from_iter([(header::IF_NONE_MATCH, tag)])).unwrap();
        assert_eq!((first.status(), again.status()), (StatusCode::OK, StatusCode::NOT_MODIFIED));
        assert!(serve("/../Cargo.toml", &HeaderMap::new()).is_none());
    }
}
