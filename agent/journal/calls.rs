//! Calls of phone lines and files: each part as it becomes known, the newest of each standing for those before it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, Transaction};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;

use super::writer::Record;
use super::{Journal, JournalError, now};
use crate::engine::Tenant;

/// How the names of sound files end.
const SOUND: &str = "ogg";

/// What is done once a part is safe, or cannot be made so.
pub(super) type Then = Box<dyn FnOnce() + Send>;

/// A call as it was kept.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptCall {
    /// Its name.
    pub id: String,
    /// Whose it is.
    pub tenant: Tenant,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    /// Milliseconds since 1970.
    pub updated_ms: i64,
    /// What was known when it began.
    pub head: Value,
    /// Kind, number and what is known of it; by kind, and then by number.
    pub parts: Vec<(String, u64, Value)>,
}

/// What the writer does about calls.
pub(super) enum CallRecord {
    Begin { id: Arc<str>, tenant: i64, at: i64, head: String },
    Part { id: Arc<str>, kind: &'static str, number: u64, at: i64, part: String },
}

impl Journal {
    /// Begins a call.
    pub fn begin_call(&self, id: &str, tenant: Tenant, head: &impl Serialize) {
        let head = self.shared.keep.json(head);
        self.put(Record::Call(CallRecord::Begin { id: id.into(), tenant: tenant.0 as i64, at: now(), head }));
    }

    /// Keeps a part of a call in the place of what was known of it, and then does `then`; at once when it cannot be kept (counted).
    pub fn keep_part(
        &self,
        id: &Arc<str>,
        kind: &'static str,
        number: u64,
        part: &impl Serialize,
        then: impl FnOnce() + Send + 'static,
    ) {
        let part = self.shared.keep.json(part);
        let then: Then = Box::new(then);
        self.put_then(Record::Call(CallRecord::Part { id: id.clone(), kind, number, at: now(), part }), then);
    }

    /// Where the sound of a call is, if it is kept.
    pub fn sound(&self, id: &str) -> PathBuf {
        sound(&self.shared.sounds, id)
    }

    /// Deletes a call and its sound for good.
    ///
    /// # Errors
    /// [`JournalError`]: it is still there.
    pub async fn forget_call(&self, id: &str) -> Result<(), JournalError> {
        let (done, gone) = oneshot::channel();
        let record = Record::ForgetCall { id: id.to_owned(), done };
        // Whoever deletes may wait.
        self.shared.queue.send(record).await.map_err(|_| JournalError::Stopped)?;
        Ok(gone.await.map_err(|_| JournalError::Stopped)??)
    }

    /// Deletes a call whose time is over, soon.
    pub fn drop_call(&self, id: &str) {
        self.put(Record::ForgetCall { id: id.to_owned(), done: oneshot::channel().0 });
    }

    /// All calls, the oldest first. It waits for the disk: for the beginning of a program.
    ///
    /// # Errors
    /// [`JournalError`]
    pub fn calls(&self) -> Result<Vec<KeptCall>, JournalError> {
        let connection = self.connection();
        let mut query =
            connection.prepare("SELECT id, tenant, created, updated, head FROM calls ORDER BY created, id")?;
        let calls = query.query_map([], |row| {
            let head: String = row.get(4)?;
            Ok(KeptCall {
                id: row.get(0)?,
                tenant: Tenant(row.get::<_, i64>(1)? as u64),
                created_ms: row.get(2)?,
                updated_ms: row.get(3)?,
                // What another program wrote and this one cannot read is nothing.
                head: serde_json::from_str(&head).unwrap_or_default(),
                parts: Vec::new(),
            })
        })?;
        let mut calls = calls.collect::<Result<Vec<KeptCall>, _>>()?;
        let mut query =
            connection.prepare("SELECT kind, number, part FROM call_parts WHERE call = ?1 ORDER BY kind, number")?;
        for call in &mut calls {
            let parts = query.query_map([&call.id], |row| {
                let part: String = row.get(2)?;
                Ok((row.get(0)?, row.get::<_, i64>(1)? as u64, serde_json::from_str(&part).unwrap_or_default()))
            })?;
            call.parts = parts.collect::<Result<_, _>>()?;
        }
        Ok(calls)
    }
}

pub(super) fn write(transaction: &Transaction<'_>, record: &CallRecord) -> Result<(), rusqlite::Error> {
    match record {
        CallRecord::Begin { id, tenant, at, head } => {
            let insert = "INSERT INTO calls (id, tenant, created, updated, head) VALUES (?1, ?2, ?3, ?3, ?4)
                          ON CONFLICT DO NOTHING";
            transaction.prepare_cached(insert)?.execute((&**id, tenant, at, head))?;
        }
        CallRecord::Part { id, kind, number, at, part } => {
            // Of a call that was forgotten meanwhile nothing is kept.
            let insert = "INSERT OR REPLACE INTO call_parts SELECT ?1, ?2, ?3, ?4
                          WHERE EXISTS (SELECT 1 FROM calls WHERE id = ?1)";
            transaction.prepare_cached(insert)?.execute((&**id, kind, *number as i64, part))?;
            transaction.prepare_cached("UPDATE calls SET updated = ?2 WHERE id = ?1")?.execute((&**id, at))?;
        }
    }
    Ok(())
}

fn sound(folder: &Path, id: &str) -> PathBuf {
    folder.join(id).with_extension(SOUND)
}

/// Deletes the sound of calls that are not there any more.
pub(super) fn tidy(connection: &Connection, sounds: &Path) -> Result<(), JournalError> {
    let failed = |source| JournalError::Open { path: sounds.to_owned(), source };
    let files = match std::fs::read_dir(sounds) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        files => files.map_err(failed)?,
    };
    let mut known = connection.prepare("SELECT 1 FROM calls WHERE id = ?1")?;
    for file in files {
        let path = file.map_err(failed)?.path();
        let is_sound = path.extension().is_some_and(|extension| extension == SOUND);
        let id = path.file_stem().filter(|_| is_sound).and_then(|name| name.to_str());
        if let Some(id) = id
            && !known.exists([id])?
        {
            std::fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}

pub(super) fn forget(connection: &Connection, sounds: &Path, id: &str) -> Result<(), rusqlite::Error> {
    // First, so that no sound is left without its call.
    match std::fs::remove_file(sound(sounds, id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!(%error, call = id, "the sound of a call could not be deleted");
            return Err(rusqlite::Error::ToSqlConversionFailure(Box::new(error)));
        }
        _ => {}
    }
    connection.execute("DELETE FROM calls WHERE id = ?1", [id])?;
    // The log holds it until it is taken over.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}
