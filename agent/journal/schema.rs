//! The file: its tables, its versions, and what is swept out of it.

use std::fs::OpenOptions;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::events::Kind;
use super::{JournalError, PATIENCE};

/// Each brings the file one version on. Never change one that was published: add the next.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE seal (bytes BLOB NOT NULL);
    INSERT INTO seal VALUES (randomblob(32));
    CREATE TABLE conversations (
        id TEXT PRIMARY KEY,
        tenant INTEGER NOT NULL,
        kind TEXT NOT NULL,
        model TEXT NOT NULL,
        title TEXT NOT NULL DEFAULT '',
        created INTEGER NOT NULL, -- milliseconds since 1970
        updated INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX newest ON conversations (tenant, updated);
    CREATE TABLE events (
        conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
        number INTEGER NOT NULL,
        at INTEGER NOT NULL, -- milliseconds since 1970
        kind INTEGER NOT NULL, -- events::Kind
        frame TEXT NOT NULL, -- as the client was sent it
        PRIMARY KEY (conversation, number)
    ) WITHOUT ROWID;
    CREATE TABLE words (
        conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
        item TEXT NOT NULL,
        words TEXT NOT NULL,
        PRIMARY KEY (conversation, item)
    ) WITHOUT ROWID;
",
    "
    CREATE TABLE calls (
        id TEXT PRIMARY KEY,
        tenant INTEGER NOT NULL,
        created INTEGER NOT NULL, -- milliseconds since 1970
        updated INTEGER NOT NULL,
        head TEXT NOT NULL -- JSON
    ) WITHOUT ROWID;
    CREATE TABLE call_parts (
        call TEXT NOT NULL REFERENCES calls ON DELETE CASCADE,
        kind TEXT NOT NULL,
        number INTEGER NOT NULL,
        part TEXT NOT NULL, -- JSON; the newest of its kind and number holds
        PRIMARY KEY (call, kind, number)
    ) WITHOUT ROWID;
",
];

/// Pieces of replies older than this are not needed any more: whoever was being told them has come back or never will.
const PIECES_MS: i64 = 3_600_000;
const DAY_MS: i64 = 86_400_000;

/// Opens the file for its writer and brings it to the newest version. Only its owner may read it, from its first byte on.
pub(super) fn open(path: &Path) -> Result<Connection, JournalError> {
    let failed = |source| JournalError::Open { path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    // SQLite gives its log and shared memory the same permissions.
    options.open(path).map_err(failed)?;
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // What is deleted is to be gone from the file as well.
    connection.pragma_update(None, "secure_delete", true)?;
    migrate(&mut connection)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection) -> Result<(), JournalError> {
    // Another process may be doing the same.
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = MIGRATIONS.len() as i64;
    let Some(missing) = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..)) else {
        return Err(JournalError::Newer { found, known });
    };
    for migration in missing {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    Ok(transaction.commit()?)
}

/// Opens the file for reading alone.
pub(super) fn reader(path: &Path) -> Result<Connection, JournalError> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(PATIENCE)?;
    Ok(connection)
}

/// With what the tokens of this journal are sealed.
pub(super) fn seal(connection: &Connection) -> Result<[u8; 32], JournalError> {
    Ok(connection.query_row("SELECT bytes FROM seal", [], |row| row.get(0))?)
}

/// Deletes conversations past their days, those begun and never used, and pieces of old texts. Calls have their own limits, which `apps::calls` keeps.
pub(super) fn sweep(connection: &mut Connection, days: u32, now: i64) -> Result<(), JournalError> {
    let transaction = connection.transaction()?;
    if days > 0 {
        let oldest = now - i64::from(days) * DAY_MS;
        transaction.execute("DELETE FROM conversations WHERE updated < ?1", [oldest])?;
    }
    let empty =
        "DELETE FROM conversations WHERE updated < ?1 AND NOT EXISTS (SELECT 1 FROM words WHERE conversation = id)
                 AND NOT EXISTS (SELECT 1 FROM events WHERE conversation = id AND kind <> ?2)";
    transaction.execute(empty, (now - DAY_MS, Kind::Greets as i64))?;
    // Of what was heard they are kept: the times at which they were told are the times of the captions.
    let pieces = "DELETE FROM events WHERE kind = ?2 AND at < ?1 AND number <
                      (SELECT max(number) FROM events AS end WHERE end.conversation = events.conversation AND end.kind = ?3)
                  AND conversation IN (SELECT id FROM conversations WHERE updated < ?1)";
    transaction.execute(pieces, (now - PIECES_MS, Kind::Written as i64, Kind::Ends as i64))?;
    transaction.commit()?;
    // Else what was deleted stays readable in the log beside the file.
    Ok(connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?)
}
