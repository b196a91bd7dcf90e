//! A small hub: listing, metadata headers, redirects of large files to a storage host, ranges; and every fault we fear.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One file of the one repository, `some/model`.
#[derive(Clone)]
pub(super) struct Remote {
    pub(super) name: &'static str,
    pub(super) bytes: Vec<u8>,
    /// Large files are stored elsewhere and named by their SHA-256.
    pub(super) large: bool,
}

/// What goes wrong. Counters count down at each large file's answer.
#[derive(Clone, Default)]
pub(super) struct Faults {
    /// Answers that end in the middle.
    pub(super) cuts: usize,
    /// Answers with status 503.
    pub(super) busy: usize,
    /// Answers with one wrong byte.
    pub(super) corrupt: usize,
    /// Ranges are ignored.
    pub(super) no_ranges: bool,
    /// The listing has names only, as some mirrors have it.
    pub(super) bare_listing: bool,
    /// Without this token nothing is shown.
    pub(super) token: Option<&'static str>,
}

/// What a client asked: path, Range, whether with a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) token: bool,
}

pub(super) struct Hub {
    pub(super) url: String,
    state: Arc<Mutex<State>>,
}

struct State {
    files: Vec<Remote>,
    faults: Faults,
    asked: Vec<Asked>,
    storage: String,
}

impl Hub {
    pub(super) fn start(files: Vec<Remote>, faults: Faults) -> Self {
        let front = TcpListener::bind("127.0.0.1:0").expect("a free port");
        // Another host name, so that a token that leaks to storage shows.
        let back = TcpListener::bind("localhost:0").expect("a free port");
        let port = |l: &TcpListener| l.local_addr().expect("bound").port();
        let storage = format!("http://localhost:{}", port(&back));
        let url = format!("http://127.0.0.1:{}", port(&front));
        let state = Arc::new(Mutex::new(State { files, faults, asked: Vec::new(), storage }));
        for listener in [front, back] {
            let state = state.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    thread::spawn(move || answer(stream, &state));
                }
            });
        }
        Self { url, state }
    }

    pub(super) fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state.lock().expect("no test thread panics here").faults);
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.state.lock().expect("no test thread panics here").asked.clone()
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

pub(super) fn git_blob(bytes: &[u8]) -> String {
    let mut state = Sha1::new();
    state.update(format!("blob {}\0", bytes.len()));
    state.update(bytes);
    state.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut range, mut token) = (None, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((key, value)) = header.trim().split_once(": ") else { break };
        match &*key.to_lowercase() {
            "range" => range = Some(value.to_owned()),
            "authorization" => token = Some(value.to_owned()),
            _ => {}
        }
    }
    let reply = {
        let mut state = state.lock().expect("no test thread panics here");
        state.asked.push(Asked { path: path.clone(), range: range.clone(), token: token.is_some() });
        state.reply(&path, range.as_deref(), token.as_deref())
    };
    let head = format!("HTTP/1.1 {}\r\nConnection: close\r\n{}\r\n", reply.status, reply.headers);
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&reply.body)).ok()
}

struct Reply {
    status: &'static str,
    headers: String,
    body: Vec<u8>,
}

impl Reply {
    fn plain(status: &'static str, headers: String, body: Vec<u8>) -> Self {
        Self { status, headers: format!("Content-Length: {}\r\n{headers}", body.len()), body }
    }
}

impl State {
    fn reply(&mut self, path: &str, range: Option<&str>, token: Option<&str>) -> Reply {
        let path = path.split('?').next().unwrap_or(path);
        if let Some(name) = path.strip_prefix("/storage/") {
            return self.stored(name, range);
        }
        if let Some(wanted) = self.faults.token
            && token != Some(&format!("Bearer {wanted}"))
        {
            return Reply::plain("401 Unauthorized", String::new(), b"{}".to_vec());
        }
        if path.starts_with("/api/models/some/model/revision/") {
            return Reply::plain("200 OK", String::new(), self.listing());
        }
        let name =
            path.strip_prefix("/some/model/resolve/").and_then(|rest| rest.split_once('/')).map(|(_, name)| name);
        let Some(file) = self.files.iter().find(|f| Some(f.name) == name).cloned() else {
            return Reply::plain("404 Not Found", String::new(), b"Entry not found".to_vec());
        };
        let commit = format!("X-Repo-Commit: {COMMIT}\r\n");
        if !file.large {
            return send(&file.bytes, range, format!("{commit}ETag: \"{}\"\r\n", git_blob(&file.bytes)));
        }
        let linked = format!("X-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\n", sha256(&file.bytes), file.bytes.len());
        let location = format!("Location: {}/storage/{}\r\n", self.storage, file.name);
        Reply::plain("302 Found", format!("{commit}{linked}{location}"), Vec::new())
    }

    fn stored(&mut self, name: &str, range: Option<&str>) -> Reply {
        let Some(mut file) = self.files.iter().find(|f| f.name == name).cloned() else {
            return Reply::plain("404 Not Found", String::new(), Vec::new());
        };
        if take(&mut self.faults.busy) {
            return Reply::plain("503 Slow Down", String::new(), Vec::new());
        }
        if take(&mut self.faults.corrupt) {
            *file.bytes.last_mut().expect("test files are not empty") ^= 1;
        }
        let range = range.filter(|_| !self.faults.no_ranges);
        let mut reply = send(&file.bytes, range, "ETag: \"storage's own\"\r\n".into());
        if range != Some("bytes=0-0") && take(&mut self.faults.cuts) {
            reply.body.truncate(reply.body.len() / 2);
        }
        reply
    }

    fn listing(&self) -> Vec<u8> {
        let sibling = |f: &Remote| match (self.faults.bare_listing, f.large) {
            (true, _) => json!({"rfilename": f.name}),
            (_, false) => json!({"rfilename": f.name, "size": f.bytes.len(), "blobId": git_blob(&f.bytes)}),
            (_, true) => json!({"rfilename": f.name, "size": f.bytes.len(), "blobId": git_blob(b"a pointer"),
                "lfs": {"sha256": sha256(&f.bytes), "size": f.bytes.len(), "pointerSize": 134}}),
        };
        let siblings: Vec<_> = self.files.iter().map(sibling).collect();
        json!({"id": "some/model", "sha": COMMIT, "siblings": siblings}).to_string().into_bytes()
    }
}

fn take(counter: &mut usize) -> bool {
    let left = *counter > 0;
    *counter -= usize::from(left);
    left
}

fn send(bytes: &[u8], range: Option<&str>, headers: String) -> Reply {
    let Some((start, end)) = range.and_then(|r| r.strip_prefix("bytes=")?.split_once('-')) else {
        return Reply::plain("200 OK", headers, bytes.to_vec());
    };
    let start: usize = start.parse().expect("our client asks well-formed ranges");
    let end = end.parse().map_or(bytes.len(), |end: usize| (end + 1).min(bytes.len()));
    if start >= bytes.len() {
        return Reply::plain("416 Range Not Satisfiable", headers, Vec::new());
    }
    let range = format!("Content-Range: bytes {start}-{}/{}\r\n", end - 1, bytes.len());
    Reply::plain("206 Partial Content", headers + &range, bytes[start..end].to_vec())
}
