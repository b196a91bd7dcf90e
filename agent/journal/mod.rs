//! What was said, on disk: each event that a client is sent is written here first.
//!
//! ```text
//!  session task ──> Book::write ──> bounded queue ──> one writer thread: all that waits in one transaction ──> committed
//!       └────────── the frame waits for `committed` (microseconds), then goes to the client ◄──────────────────────┘
//! ```
//! SQLite with a write-ahead log and `synchronous = NORMAL`: a commit is handed to the system and not waited for on the disk, so that what a
//! client was told survives the end of this process by any signal. A power cut may cost the last moments, and never the file. Nobody waits
//! for the journal: a queue that is full or a disk that fails costs the record, counted (`hearken_journal_lost_total`), and not the conversation.
//!
//! A call of a phone line or a file is its parts (`calls`), each kept as it becomes known. Its sound, where that is kept, is a file beside this one, which
//! goes when the call goes.
//!
//! A conversation is its events; everything else is read out of them: [`Past`](crate::protocol::openai::Past) for a session to go on with,
//! [`Story`] for people.

mod calls;
mod events;
mod export;
mod keep;
mod reader;
mod schema;
mod story;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};

pub use calls::KeptCall;
pub use export::{Form, cues};
pub use reader::{Head, Search};
pub use story::{Story, Turn, Who};

use crate::config;
use crate::engine::Tenant;
use crate::metrics::{Metrics, count};
use crate::protocol::openai::ServerEvent;
use calls::Then;
use keep::Keep;
use writer::Record;

/// Records that may wait for the writer: some seconds of a busy server.
const QUEUE: usize = 8192;

/// Why there is no journal, or no answer from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The folder cannot be made, or the file not opened.
    #[error("the journal {path} cannot be opened: {source}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// SQLite refuses.
    #[error("the journal cannot be used: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A newer program has written it.
    #[error("the journal is of version {found}, this program knows {known}: use a newer one, or another journal.path")]
    Newer {
        /// The file's.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// `journal.redact` holds no regular expression.
    #[error("journal.redact: {0}")]
    Pattern(#[from] regex::Error),
    /// There is no folder for it.
    #[error("journal.path is not set, and there is neither HEARKEN_HOME nor HOME to put it in")]
    NoPlace,
    /// The writer has ended.
    #[error("the journal has stopped")]
    Stopped,
}

/// An open journal. Clones are one journal.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

struct Shared {
    queue: mpsc::Sender<Record>,
    reader: Mutex<rusqlite::Connection>,
    seal: [u8; 32],
    keep: Keep,
    /// The folder of what calls sounded like.
    sounds: PathBuf,
    metrics: Arc<Metrics>,
}

/// What is noted of a conversation when it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Its name, `conv_…`.
    pub id: String,
    /// Whose it is.
    pub tenant: Tenant,
    /// Which model listens.
    pub model: String,
    /// `chat`, `captions` or `call`.
    pub kind: String,
}

/// One conversation's pages.
pub struct Book {
    id: Arc<str>,
    journal: Journal,
    committed: watch::Sender<u64>,
}

/// Milliseconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// Where the journal is when the configuration does not say.
///
/// # Errors
/// [`JournalError::NoPlace`]
pub fn place(config: &config::Journal) -> Result<PathBuf, JournalError> {
    if let Some(path) = &config.path {
        return Ok(path.clone());
    }
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let state =
        || Some(folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?.join("hearken"));
    let home = folder("HEARKEN_HOME").or_else(state).ok_or(JournalError::NoPlace)?;
    Ok(home.join("journal.sqlite"))
}

impl Journal {
    /// Opens the file, brings it to this program's version, deletes what is past its days, and starts the writer.
    ///
    /// # Errors
    /// [`JournalError`]
    pub fn open(path: &Path, config: &config::Journal, metrics: Arc<Metrics>) -> Result<Self, JournalError> {
        let keep = Keep::new(config)?;
        let mut connection = schema::open(path)?;
        let seal = schema::seal(&connection)?;
        schema::sweep(&mut connection, config.retention_days, now())?;
        let reader = schema::reader(path)?;
        let sounds = path.with_extension("sounds");
        calls::tidy(&connection, &sounds)?;
        let (queue, records) = mpsc::channel(QUEUE);
        writer::start(connection, records, metrics.clone(), config.retention_days, sounds.clone());
        let reader = Mutex::new(reader);
        Ok(Self { shared: Arc::new(Shared { queue, reader, seal, keep, sounds, metrics }) })
    }

    /// Begins a conversation, or goes on with one of that name.
    pub fn begin(&self, opening: Opening) -> Book {
        let id = Arc::from(opening.id.as_str());
        self.put(Record::Begin { at: now(), opening });
        Book { id, journal: self.clone(), committed: watch::Sender::new(0) }
    }

    /// Whether what was said is kept, so that it can be gone on with.
    pub fn can_resume(&self) -> bool {
        self.shared.keep.words()
    }

    /// What opens a conversation again: its name, sealed so that nobody can make one up.
    pub fn token(&self, id: &str) -> String {
        let inner = Sha256::new().chain_update(self.shared.seal).chain_update(id).finalize();
        let outer = Sha256::new().chain_update(self.shared.seal).chain_update(inner).finalize();
        let seal: String = outer.iter().take(16).map(|b| format!("{b:02x}")).collect();
        format!("{id}.{seal}")
    }

    /// The name in a token, if we have sealed it.
    pub fn name_in<'a>(&self, token: &'a str) -> Option<&'a str> {
        let (id, _) = token.rsplit_once('.')?;
        // Both sides hashed, so that the comparison takes the same time for any wrong token.
        (Sha256::digest(self.token(id)) == Sha256::digest(token)).then_some(id)
    }

    fn put(&self, record: Record) -> bool {
        let put = self.shared.queue.try_send(record).is_ok();
        if !put {
            count(&self.shared.metrics.journal_lost);
        }
        put
    }

    /// Deletes what is past its days, soon.
    pub fn tidy(&self) {
        self.put(Record::Tick);
    }

    /// As [`Journal::put`]; and then, once it is written or cannot be, does something.
    fn put_then(&self, record: Record, then: Then) {
        if let Err(full) = self.shared.queue.try_send(Record::Then(Box::new(record), then)) {
            count(&self.shared.metrics.journal_lost);
            if let Record::Then(_, then) = full.into_inner() {
                then();
            }
        }
    }
}

impl Book {
    /// Notes what the client is about to be sent. `true`: wait until [`Book::committed`] has come to `number`, then send it. `false`: there is
    /// nothing to wait for, because it is not of the kind that is kept (a guess that the next one replaces) or could not be taken (counted).
    pub fn write(&self, number: u64, event: &ServerEvent, frame: &str) -> bool {
        if matches!(event, ServerEvent::Tentative { .. }) {
            return false;
        }
        let Some(frame) = self.journal.shared.keep.frame(event, frame) else { return false };
        let words = self.journal.shared.keep.words().then(|| events::words(event)).flatten().map(|mut said| {
            said.words = self.journal.shared.keep.text(said.words);
            said
        });
        let kind = events::kind(event);
        self.journal.put(Record::Event {
            id: self.id.clone(),
            number,
            at: now(),
            kind,
            frame,
            words,
            committed: self.committed.clone(),
        })
    }

    /// The number of the newest event that will survive whatever happens to this process.
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.committed.subscribe()
    }
}

/// How long a transaction may wait for another process's.
const PATIENCE: Duration = Duration::from_secs(5);
