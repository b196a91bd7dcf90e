//! The one thread that writes: whatever waits goes into one transaction.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use rusqlite::{Connection, Transaction};
use tokio::sync::{mpsc, oneshot, watch};

use super::calls::{CallRecord, Then};
use super::events::{Kind, Words};
use super::{Opening, calls, now, schema};
use crate::metrics::Metrics;

/// Records in one transaction, at most.
const BATCH: usize = 512;
/// How often what is past its days is looked for, milliseconds.
const SWEEP_MS: i64 = 3_600_000;
/// Letters of a title.
const TITLE: usize = 80;

pub(super) enum Record {
    Begin {
        at: i64,
        opening: Opening,
    },
    Event {
        id: Arc<str>,
        number: u64,
        at: i64,
        kind: Kind,
        frame: String,
        words: Option<Words>,
        committed: watch::Sender<u64>,
    },
    Call(CallRecord),
    ForgetCall {
        id: String,
        done: oneshot::Sender<Result<(), rusqlite::Error>>,
    },
    /// A record, and what is to be done once it is written or cannot be.
    Then(Box<Self>, Then),
    /// Only wakes the thread, so that it looks for what is past its days.
    Tick,
    /// Tells whether there was such a conversation.
    Delete {
        id: String,
        tenant: i64,
        done: oneshot::Sender<Result<bool, rusqlite::Error>>,
    },
}

/// Starts the thread. It ends when the last [`Journal`](super::Journal) is dropped.
pub(super) fn start(
    mut connection: Connection,
    mut records: mpsc::Receiver<Record>,
    metrics: Arc<Metrics>,
    days: u32,
    sounds: PathBuf,
) {
    let work = move || {
        let mut batch = Vec::with_capacity(BATCH);
        let (mut swept, mut is_failing) = (now(), false);
        while records.blocking_recv_many(&mut batch, BATCH) > 0 {
            let begun = Instant::now();
            let written = write(&mut connection, &batch);
            metrics.journal_commits.fetch_add(1, Relaxed);
            metrics.journal_commit_micros.fetch_add(begun.elapsed().as_micros() as u64, Relaxed);
            match &written {
                Ok(()) => {
                    metrics.journal_records.fetch_add(batch.len() as u64, Relaxed);
                    is_failing = false;
                }
                Err(error) => {
                    metrics.journal_lost.fetch_add(batch.len() as u64, Relaxed);
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::error!(%error, "the journal cannot be written: conversations go on and are not kept");
                    }
                }
            }
            for record in batch.drain(..) {
                match record {
                    Record::Begin { .. } | Record::Call(_) | Record::Tick => {}
                    // Kept or not: a client is not left waiting for what a full disk cannot give.
                    Record::Event { number, committed, .. } => drop(committed.send_replace(number)),
                    Record::Delete { id, tenant, done } => drop(done.send(delete(&connection, &id, tenant))),
                    Record::Then(_, then) => then(),
                    Record::ForgetCall { id, done } => {
                        let forgotten = calls::forget(&connection, &sounds, &id);
                        if let Err(error) = &forgotten {
                            tracing::error!(%error, "a call could not be deleted from the journal");
                        }
                        let _ = done.send(forgotten);
                    }
                }
            }
            if now() - swept > SWEEP_MS {
                swept = now();
                if let Err(error) = schema::sweep(&mut connection, days, swept) {
                    tracing::warn!(%error, "the journal could not be swept");
                }
            }
        }
    };
    let started = std::thread::Builder::new().name("journal".into()).spawn(work);
    drop(started.expect("a thread can be started while the program begins"));
}

fn write(connection: &mut Connection, batch: &[Record]) -> Result<(), rusqlite::Error> {
    let transaction = connection.transaction()?;
    for record in batch {
        // What comes after is done when all is committed.
        let record = if let Record::Then(record, _) = record { &**record } else { record };
        match record {
            Record::Begin { at, opening } => begin(&transaction, *at, opening)?,
            Record::Event { id, number, at, kind, frame, words, .. } => {
                // A conversation that was deleted while it went on is not kept any more.
                let insert = "INSERT OR REPLACE INTO events SELECT ?1, ?2, ?3, ?4, ?5
                              WHERE EXISTS (SELECT 1 FROM conversations WHERE id = ?1)";
                let mut insert = transaction.prepare_cached(insert)?;
                if insert.execute((&**id, *number as i64, at, *kind as i64, frame))? > 0
                    && let Some(words) = words
                {
                    note(&transaction, id, *at, words)?;
                }
            }
            Record::Call(record) => calls::write(&transaction, record)?,
            Record::Delete { .. } | Record::ForgetCall { .. } | Record::Then(..) | Record::Tick => {}
        }
    }
    transaction.commit()
}

fn begin(transaction: &Transaction<'_>, at: i64, opening: &Opening) -> Result<(), rusqlite::Error> {
    let insert = "INSERT INTO conversations (id, tenant, kind, model, created, updated) VALUES (?1, ?2, ?3, ?4, ?5, ?5)
                  ON CONFLICT DO NOTHING";
    let Opening { id, tenant, model, kind } = opening;
    transaction.prepare_cached(insert)?.execute((id, tenant.0 as i64, kind, model, at)).map(|_| ())
}

fn note(transaction: &Transaction<'_>, id: &str, at: i64, said: &Words) -> Result<(), rusqlite::Error> {
    let words = "INSERT OR REPLACE INTO words VALUES (?1, ?2, ?3)";
    transaction.prepare_cached(words)?.execute((id, &said.item, &said.words))?;
    let title: String = if said.by_user { said.words.trim().chars().take(TITLE).collect() } else { String::new() };
    let touch =
        "UPDATE conversations SET updated = ?2, title = CASE title WHEN '' THEN ?3 ELSE title END WHERE id = ?1";
    transaction.prepare_cached(touch)?.execute((id, at, title)).map(|_| ())
}

fn delete(connection: &Connection, id: &str, tenant: i64) -> Result<bool, rusqlite::Error> {
    let gone = connection.execute("DELETE FROM conversations WHERE id = ?1 AND tenant = ?2", (id, tenant))? > 0;
    // The log holds it until it is taken over; a reader in the middle of something puts that off to the next time.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(gone)
}
