//! Reading: lists, searches, one conversation. SQLite is asked on threads that may wait.

use std::sync::MutexGuard;

use rusqlite::{Connection, OptionalExtension as _};
use serde::Serialize;
use tokio::sync::oneshot;

use super::events::Kind;
use super::writer::Record;
use super::{Journal, JournalError, Story};
use crate::engine::Tenant;

/// A conversation in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Its name.
    pub id: String,
    /// Always `conversation`.
    pub object: &'static str,
    /// `chat`, `captions` or `call`.
    pub kind: String,
    /// Which model listened.
    pub model: String,
    /// Its first words.
    pub title: String,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    /// Milliseconds since 1970.
    pub updated_ms: i64,
}

/// Which conversations.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// Holding this text, in any case of its letters from A to Z.
    pub text: Option<String>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Those behind this one in the list.
    pub after: Option<String>,
    /// So many.
    pub limit: u32,
}

/// One event as it was kept.
pub(super) struct Row {
    pub(super) number: u64,
    pub(super) at: i64,
    pub(super) frame: String,
}

impl Journal {
    pub(super) fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic in a reader leaves nothing half done.
        self.shared.reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, JournalError> {
        let this = self.clone();
        let result = tokio::task::spawn_blocking(move || read(&this.connection())).await;
        Ok(result.map_err(|_| JournalError::Stopped)??)
    }

    /// A tenant's conversations, the newest first; those in which nothing was said are left out.
    ///
    /// # Errors
    /// [`JournalError`]
    pub async fn list(&self, tenant: Tenant, search: Search) -> Result<Vec<Head>, JournalError> {
        self.read(move |connection| {
            let sql = "SELECT id, kind, model, title, created, updated FROM conversations
                       WHERE tenant = ?1 AND (?2 IS NULL OR (updated, id) < (SELECT updated, id FROM conversations WHERE id = ?2)) AND (?3 IS NULL OR kind = ?3)
                       AND EXISTS (SELECT 1 FROM words WHERE conversation = id AND (?4 IS NULL OR words LIKE ?4 ESCAPE '\\'))
                       ORDER BY updated DESC, id DESC LIMIT ?5";
            let pattern = search.text.map(|text| {
                let escaped = text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
                format!("%{escaped}%")
            });
            let mut query = connection.prepare_cached(sql)?;
            let values = (tenant.0 as i64, search.after, search.kind, pattern, search.limit);
            query.query_map(values, Head::read)?.collect()
        })
        .await
    }

    /// Whether the tenant has such a conversation.
    ///
    /// # Errors
    /// [`JournalError`]
    pub async fn has(&self, tenant: Tenant, id: &str) -> Result<bool, JournalError> {
        let id = id.to_owned();
        self.read(move |connection| Ok(head(connection, tenant, &id)?.is_some())).await
    }

    /// The events after one number, oldest first, as their client was sent them; pieces of replies that were told whole since are left out.
    /// `None`: the tenant has no such conversation.
    ///
    /// # Errors
    /// [`JournalError`]
    pub async fn events(
        &self,
        tenant: Tenant,
        id: &str,
        after: u64,
    ) -> Result<Option<Vec<(u64, String)>>, JournalError> {
        self.frames(tenant, id, after, &[Kind::Written]).await
    }

    /// As [`Journal::events`], for somebody who comes back and will be greeted anew.
    ///
    /// # Errors
    /// [`JournalError`]
    pub async fn missed(
        &self,
        tenant: Tenant,
        id: &str,
        after: u64,
    ) -> Result<Option<Vec<(u64, String)>>, JournalError> {
        self.frames(tenant, id, after, &[Kind::Written, Kind::Greets]).await
    }

    async fn frames(
        &self,
        tenant: Tenant,
        id: &str,
        after: u64,
        without: &'static [Kind],
    ) -> Result<Option<Vec<(u64, String)>>, JournalError> {
        let id = id.to_owned();
        let rows = self.read(move |connection| rows(connection, tenant, &id, after, without)).await?;
        Ok(rows.map(|rows| rows.into_iter().map(|row| (row.number, row.frame)).collect()))
    }

    /// All that was said in one conversation.
    ///
    /// # Errors
    /// [`JournalError`]
    pub async fn story(&self, tenant: Tenant, id: &str) -> Result<Option<Story>, JournalError> {
        let id = id.to_owned();
        self.read(move |connection| {
            let Some(head) = head(connection, tenant, &id)? else { return Ok(None) };
            let rows = rows(connection, tenant, &id, 0, &[])?.unwrap_or_default();
            Ok(Some(Story::of(head, &rows)))
        })
        .await
    }

    /// Deletes a conversation for good. Whether there was one.
    ///
    /// # Errors
    /// [`JournalError`]
    pub async fn delete(&self, tenant: Tenant, id: &str) -> Result<bool, JournalError> {
        let (done, deleted) = oneshot::channel();
        let record = Record::Delete { id: id.to_owned(), tenant: tenant.0 as i64, done };
        // Whoever deletes may wait.
        self.shared.queue.send(record).await.map_err(|_| JournalError::Stopped)?;
        Ok(deleted.await.map_err(|_| JournalError::Stopped)??)
    }
}

impl Head {
    /// Of `id, kind, model, title, created, updated`.
    fn read(row: &rusqlite::Row<'_>) -> Result<Self, rusqlite::Error> {
        Ok(Self {
            id: row.get(0)?,
            object: "conversation",
            kind: row.get(1)?,
            model: row.get(2)?,
            title: row.get(3)?,
            created_ms: row.get(4)?,
            updated_ms: row.get(5)?,
        })
    }
}

fn head(connection: &Connection, tenant: Tenant, id: &str) -> Result<Option<Head>, rusqlite::Error> {
    let sql = "SELECT id, kind, model, title, created, updated FROM conversations WHERE id = ?1 AND tenant = ?2";
    connection.prepare_cached(sql)?.query_row((id, tenant.0 as i64), Head::read).optional()
}

/// Without greetings if these are named; without pieces of finished replies if those are.
fn rows(
    connection: &Connection,
    tenant: Tenant,
    id: &str,
    after: u64,
    without: &[Kind],
) -> Result<Option<Vec<Row>>, rusqlite::Error> {
    if head(connection, tenant, id)?.is_none() {
        return Ok(None);
    }
    let sql = "SELECT number, at, frame FROM events WHERE conversation = ?1 AND number > ?2 AND kind IS NOT ?3
               AND (kind IS NOT ?4 OR number > (SELECT coalesce(max(number), 0) FROM events WHERE conversation = ?1 AND kind = ?5))
               ORDER BY number";
    let named = |kind: Kind| without.contains(&kind).then_some(kind as i64);
    let mut query = connection.prepare_cached(sql)?;
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let values = (id, after, named(Kind::Greets), named(Kind::Written), Kind::Ends as i64);
    let found = query.query_map(values, |row| {
        Ok(Row { number: row.get::<_, i64>(0)? as u64, at: row.get(1)?, frame: row.get(2)? })
    })?;
    found.collect::<Result<_, _>>().map(Some)
}
