//! One file over HTTP into a partial file: resumed, retried, measured and hashed.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode};

use super::digest::Digest;
use super::place;
use super::{FetchError, FetchOptions, Progress};

/// How often a transfer may fail without a single new byte before it is given up.
const TRIES: u32 = 5;
/// A host that does not pick up in this time is taken for unreachable.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// The longest wait for an answer, and for the next byte of one.
pub(super) const SILENCE: Duration = Duration::from_secs(30);

/// What a file must be, known before its first byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) digest: Digest,
}

impl Expected {
    /// Checks size and hash; a file that fails is removed.
    pub(super) fn check(&self, path: &Path, origin: &str) -> Result<(), FetchError> {
        let bytes = fs::metadata(path).map_err(FetchError::disk(path))?.len();
        if bytes != self.bytes {
            place::remove(path)?;
            return Err(self.wrong(origin, format!("{bytes} bytes")));
        }
        let found = self.digest.of_same_kind(path).map_err(FetchError::disk(path))?;
        if found == self.digest {
            return Ok(());
        }
        place::remove(path)?;
        Err(self.wrong(origin, found.to_string()))
    }

    fn wrong(&self, origin: &str, found: String) -> FetchError {
        let expected = format!("{} bytes, {}", self.bytes, self.digest);
        FetchError::WrongFile { file: self.name.clone(), origin: origin.into(), expected, found }
    }
}

/// Why one attempt ended early.
enum Cut {
    /// Asking again may help.
    Retry(FetchError),
    /// The partial file does not fit what the server has.
    Restart,
    /// Asking again is no use.
    Final(FetchError),
}

/// An HTTP client that never waits for ever.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    token: Option<String>,
    retry_wait: Duration,
}

impl Client {
    pub(super) fn new(options: &FetchOptions) -> Self {
        let agent = Agent::config_builder()
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .http_status_as_error(false)
            // Byte counts are those of the file, not of its compressed form.
            .accept_encoding("identity")
            // The hub hands large files to a storage host, which must not see the token.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .build()
            .into();
        Self { agent, token: options.token.clone(), retry_wait: options.retry_wait }
    }

    /// Downloads `url` into `part`, going on where an earlier attempt stopped. On success `part` has the expected bytes.
    pub(super) fn download(
        &self,
        url: &str,
        expected: &Expected,
        part: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), FetchError> {
        place::make_parent(part)?;
        let inherited = length(part) > 0;
        let result = self.fill(url, expected, part, progress).and_then(|()| expected.check(part, &host(url)));
        match result {
            // The bytes of an earlier run may be what is wrong: begin anew, once.
            Err(FetchError::WrongFile { .. }) if inherited => {
                progress
                    .note(&format!("{}: the part from an earlier attempt does not fit; starting over", expected.name));
                self.fill(url, expected, part, progress)?;
                expected.check(part, &host(url))
            }
            other => other,
        }
    }

    /// Asks until `part` is as long as it should be.
    fn fill(&self, url: &str, expected: &Expected, part: &Path, progress: &mut dyn Progress) -> Result<(), FetchError> {
        let (mut failures, mut arrived) = (0, false);
        loop {
            let before = length(part);
            if before == expected.bytes && before > 0 {
                return Ok(());
            }
            let cut = match self.attempt(url, expected, part, progress) {
                Ok(()) => return Ok(()),
                Err(cut) => cut,
            };
            let error = match cut {
                Cut::Final(error) => return Err(error),
                // A host that has never answered is not asked twice: there may be another source.
                Cut::Retry(error @ FetchError::Unreachable { .. }) if !arrived && length(part) == before => {
                    return Err(error);
                }
                Cut::Retry(error) => error,
                Cut::Restart => {
                    place::remove(part)?;
                    expected.wrong(&host(url), "a part that cannot be continued".into())
                }
            };
            let moved = length(part) > before;
            (failures, arrived) = (if moved { 0 } else { failures + 1 }, arrived || moved);
            if failures >= TRIES {
                return Err(error);
            }
            progress.note(&format!("{}: interrupted ({error}); going on", expected.name));
            thread::sleep(self.retry_wait * 2u32.pow(failures.min(5)));
        }
    }

    fn attempt(&self, url: &str, expected: &Expected, part: &Path, progress: &mut dyn Progress) -> Result<(), Cut> {
        let mut have = length(part);
        if have > expected.bytes {
            return Err(Cut::Restart);
        }
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
        }
        let response = request.call().map_err(|error| Cut::Retry(unreachable(url, &error)))?;
        let status = response.status();
        match status {
            StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(have) => {}
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => return Err(Cut::Restart),
            // A server without ranges sends all of it again.
            StatusCode::OK => have = 0,
            _ => return Err(refused(url, &expected.name, status)),
        }
        // A file of another length is another file; better to know before half a gigabyte.
        if let Some(left) = header(&response, "content-length").and_then(|v| v.parse::<u64>().ok())
            && have + left != expected.bytes
        {
            return Err(Cut::Final(expected.wrong(&host(url), format!("{} bytes", have + left))));
        }
        let disk = |error| Cut::Final(FetchError::disk(part)(error));
        let mut file = File::options().create(true).append(true).open(part).map_err(disk)?;
        if have == 0 {
            // Not `truncate(true)` above: the file may hold what we go on from.
            file.set_len(0).or_else(ignore_special).map_err(disk)?;
        }
        progress.start(&expected.name, expected.bytes, have);
        let copied = copy(response.into_body().into_reader(), &mut file, expected.bytes - have, progress);
        progress.finish();
        match copied {
            Ok(0) => Ok(()),
            Ok(missing) => Err(Cut::Retry(remote(url, format!("the connection ended {missing} bytes early")))),
            Err(Copy::Read(error)) => Err(Cut::Retry(remote(url, error.to_string()))),
            Err(Copy::Write(error)) => Err(disk(error)),
        }
    }
}

/// Which side of a copy failed.
enum Copy {
    Read(io::Error),
    Write(io::Error),
}

/// Copies at most `left` bytes and returns how many are missing.
fn copy(mut from: impl Read, to: &mut File, mut left: u64, progress: &mut dyn Progress) -> Result<u64, Copy> {
    let mut buffer = vec![0; 256 << 10];
    while left > 0 {
        let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match from.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(n) => {
                to.write_all(&buffer[..n]).map_err(Copy::Write)?;
                left -= n as u64;
                progress.advance(n as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Copy::Read(error)),
        }
    }
    Ok(left)
}

/// A device cannot be shortened, and need not be.
fn ignore_special(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::InvalidInput { Ok(()) } else { Err(error) }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

fn header<'a, B>(response: &'a Response<B>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// `bytes 100-199/200` → 100
fn range_start<B>(response: &Response<B>) -> Option<u64> {
    header(response, "content-range")?.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

fn refused(url: &str, what: &str, status: StatusCode) -> Cut {
    match status.as_u16() {
        408 | 429 | 500..=599 => Cut::Retry(remote(url, format!("HTTP {status}"))),
        code => Cut::Final(status_error(url, what, code)),
    }
}

/// The error for an HTTP status that is a refusal.
pub(super) fn status_error(url: &str, what: &str, status: u16) -> FetchError {
    match status {
        401 | 403 => FetchError::Unauthorized { repo: what.into(), status },
        404 | 410 => FetchError::NotFound(what.into()),
        other => remote(url, format!("HTTP {other} for {what}")),
    }
}

/// The error for a request that got no answer.
pub(super) fn unreachable(url: &str, error: &ureq::Error) -> FetchError {
    FetchError::Unreachable { host: host(url), reason: error.to_string() }
}

/// The error for an answer that is no use.
pub(super) fn remote(url: &str, reason: String) -> FetchError {
    FetchError::Remote { host: host(url), reason }
}

/// Host and port of a URL, for messages.
fn host(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest).into()
}
