//! What reads and notes a call, beside those who hear it.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::Ended;
use super::live::{END, End, Hub, NOTES, Record, TURNS, lock, now};
use super::note::Mind;
use super::rules::Sign;
use super::spoken::Spoken;
use crate::apps::transcribe::Words;
use crate::engine::{EngineError, SessionId, Tenant};

/// What reads and notes a call.
pub(super) struct Work {
    pub(super) hub: Arc<Hub>,
    pub(super) record: Arc<Record>,
    pub(super) tenant: Tenant,
    pub(super) sessions: Vec<SessionId>,
    /// Hears when all of the sound is written, where it is kept.
    pub(super) written: Option<oneshot::Receiver<()>>,
    pub(super) is_patient: bool,
}

impl Drop for Work {
    /// Also when it is dropped in the middle: the engine forgets it and the call counts as over, once that is safe in the journal.
    fn drop(&mut self) {
        self.sessions.iter().for_each(|session| self.hub.engine.close(*session));
        let ended = now();
        let end = {
            let inner = lock(&self.record.inner);
            End { ended, seconds: inner.call.seconds(), skipped: inner.skipped, summary: inner.summary.clone() }
        };
        let record = self.record.clone();
        let is_safe = move || {
            lock(&record.inner).ended = Some(ended);
            record.tell(&json!({"type": "call.ended", "call": record.show()}));
        };
        match &self.record.journal {
            Some(journal) => journal.keep_part(&self.record.id, END, 0, &end, is_safe),
            None => is_safe(),
        }
    }
}

impl Work {
    pub(super) async fn run(mut self, turns: mpsc::Receiver<Spoken>) {
        let written = self.written.take();
        let (notes, mut waiting) = mpsc::channel::<Ended>(NOTES);
        // Parties may speak at once; a file waits until what was said before is read.
        let at_once = if self.is_patient { 1 } else { TURNS };
        let turns = stream::unfold(turns, |mut turns| async move { Some((turns.recv().await?, turns)) });
        let mut read = Box::pin(turns.map(|turn| self.read(turn)).buffer_unordered(at_once));
        let read = async {
            while let Some(ended) = read.next().await {
                let Some(ended) = ended.filter(|_| self.hub.config.calls.notes) else { continue };
                let taken =
                    if self.is_patient { notes.send(ended).await.is_ok() } else { notes.try_send(ended).is_ok() };
                if !taken {
                    lock(&self.record.inner).skipped += 1;
                }
            }
            drop(notes);
        };
        let note = async {
            while let Some(ended) = waiting.recv().await {
                self.note(ended).await;
            }
        };
        tokio::join!(read, note);
        if self.hub.config.calls.notes {
            self.sum_up().await;
        }
        // An error means that nothing more will be.
        if let Some(written) = written {
            let _ = written.await;
        }
    }

    /// Reads a turn as it is spoken, and to its end; `None` if it never ended.
    async fn read(&self, Spoken { captions, ended }: Spoken) -> Option<Ended> {
        let (mut words, mut is_read) = (String::new(), false);
        let begun = captions.as_ref().map(|(begun, _)| *begun);
        if let Some((begun, mut captions)) = captions {
            while !is_read && let Some(caption) = captions.recv().await {
                words.push_str(&self.redacted(&caption.committed));
                is_read = caption.is_last;
                let tentative = self.redacted(&caption.tentative);
                self.record.tell_saying(begun, |saying| {
                    (saying.words, saying.tentative) = (words.trim().to_owned(), tentative.trim().to_owned());
                });
            }
        }
        let ended = ended.await.ok()?;
        let read = match is_read {
            true => Ok(words),
            // What was told stays, even where the rest of it was lost.
            false if !words.is_empty() => {
                self.skip("last words", &EngineError::Model("the words were not read to their end".into()));
                Ok(words)
            }
            false => self.whole(&ended).await,
        };
        match read {
            Ok(words) => {
                let words = words.trim();
                self.record.set_words(ended.turn, begun, words);
                self.hub.see_turn(&self.record, ended.turn, &Sign::Words(words));
            }
            Err(error) => self.skip("words", &error),
        }
        Some(ended)
    }

    /// The words of a turn that is over.
    async fn whole(&self, Ended { party, sound, .. }: &Ended) -> Result<String, EngineError> {
        let mut words = Words::begin(&*self.hub.engine, self.sessions[*party], self.tenant, sound)?;
        let mut text = String::new();
        while let Some(piece) = words.next().await? {
            text.push_str(&piece);
        }
        Ok(self.redacted(&text))
    }

    fn redacted(&self, words: &str) -> String {
        let blot = |c: char| if c.is_numeric() { '•' } else { c };
        if self.hub.config.calls.redact { words.chars().map(blot).collect() } else { words.to_owned() }
    }

    fn skip(&self, what: &str, error: &EngineError) {
        tracing::warn!(call = %self.record.id, %error, "a turn goes without its {what}");
        lock(&self.record.inner).skipped += 1;
    }

    fn mind(&self) -> Mind {
        let session = *self.sessions.last().expect("the mind has a session");
        Mind { engine: self.hub.engine.clone(), session, tenant: self.tenant, config: self.hub.config.clone() }
    }

    async fn note(&self, Ended { turn, party, sound, .. }: Ended) {
        let (before, name) = {
            let inner = lock(&self.record.inner);
            (inner.call.said(Some(turn)), inner.call.names()[party].clone())
        };
        match self.mind().note(&before, &name, sound).await {
            Ok(mut note) => {
                (note.text, note.reasoning) = (self.redacted(&note.text), self.redacted(&note.reasoning));
                lock(&self.record.inner).call.set_note(turn, note.clone());
                self.record.tell_turn(turn);
                self.hub.see_turn(&self.record, turn, &Sign::Note(&note));
            }
            Err(error) => self.skip("note", &error),
        }
    }

    async fn sum_up(&self) {
        let said = lock(&self.record.inner).call.said(None);
        if said.is_empty() {
            return;
        }
        match self.mind().summary(&said).await {
            Ok(summary) => lock(&self.record.inner).summary = Some(self.redacted(&summary)),
            Err(error) => self.skip("summary", &error),
        }
    }
}
