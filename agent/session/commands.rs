//! What a client may ask, obeyed or refused whole.

use super::Session;
use super::conversation::{Body, Entry, Piece, Where};
use crate::audio::{RATE, samples};
use crate::protocol::openai::{
    ClientEvent, ErrorBody, Incoming, Kind, NewItem, NewKind, NewPart, Refusal, ServerEvent, Status,
};

/// Shorter sound is no turn, as in the API.
const LEAST_MS: usize = 100;

impl Session {
    pub(super) fn client(&mut self, Incoming { event_id, event }: Incoming) {
        if let Err(mut refusal) = self.obey(event) {
            refusal.event_id = event_id;
            self.out.error(refusal);
        }
    }

    fn obey(&mut self, event: ClientEvent) -> Result<(), Refusal> {
        if !matches!(event, ClientEvent::Append(_) | ClientEvent::ItemRetrieve(_) | ClientEvent::OutputClear) {
            // What was thought ahead was thought of what is being changed.
            self.drop_ahead();
        }
        match event {
            ClientEvent::SessionUpdate(update) => {
                self.settings.accepts(&update)?;
                self.settings.apply(*update, &self.config.voice);
                self.listen();
                self.out.send(ServerEvent::SessionUpdated { session: self.settings.show(&self.name, &self.model) });
            }
            // Its sound takes another way and is here already.
            ClientEvent::Append(_) => {}
            ClientEvent::Commit => self.commit_input()?,
            ClientEvent::Clear => {
                self.ear.clear();
                self.forget_ear();
                (self.speech, self.told_full) = (None, false);
                self.out.send(ServerEvent::Cleared);
            }
            ClientEvent::ItemCreate { previous_item_id, item } => self.create_item(previous_item_id, *item)?,
            ClientEvent::ItemRetrieve(id) => {
                let item = self.conversation.get(&id).map(Entry::show);
                let item = item.ok_or_else(|| no_item("item_retrieve_invalid_item_id", &id))?;
                self.out.send(ServerEvent::ItemRetrieved { item });
            }
            ClientEvent::ItemDelete(id) => {
                self.conversation.remove(&id).ok_or_else(|| no_item("item_delete_invalid_item_id", &id))?;
                self.out.send(ServerEvent::ItemDeleted { item_id: id });
            }
            ClientEvent::ItemTruncate { item_id, content_index, audio_end_ms } => {
                // A reply is text: there is no sound of it that could have been played to some point only.
                self.conversation.get(&item_id).ok_or_else(|| no_item("item_truncate_invalid_item_id", &item_id))?;
                self.out.send(ServerEvent::ItemTruncated { item_id, content_index, audio_end_ms });
            }
            ClientEvent::ResponseCreate(_) if self.settings.kind == Kind::Transcription => {
                let message = "A transcription session gives no responses.";
                return Err(ErrorBody::invalid("invalid_value", message).at("type"));
            }
            ClientEvent::ResponseCreate(params) => {
                if let Some(running) = &self.running {
                    let message = format!(
                        "The conversation has an active response already: {}. Wait until it is done, or cancel it.",
                        running.opening.response_id
                    );
                    return Err(ErrorBody::invalid("conversation_already_has_active_response", message));
                }
                self.respond(*params)?;
            }
            ClientEvent::OutputClear => {}
            ClientEvent::ResponseCancel(id) => {
                let other = |running: &super::Running| id.as_ref().is_some_and(|id| *id != running.opening.response_id);
                if self.running.as_ref().is_none_or(other) || !self.cancel("client_cancelled") {
                    // The words that clients look for.
                    let message = "Cancellation failed: no active response found";
                    return Err(ErrorBody::invalid("response_cancel_not_active", message));
                }
            }
        }
        Ok(())
    }

    fn commit_input(&mut self) -> Result<(), Refusal> {
        let sound = self.ear.commit();
        self.told_full = false;
        let ms = sound.len() * 1000 / RATE as usize;
        if ms < LEAST_MS {
            self.forget_ear();
            self.speech = None;
            let message = if self.settings.turn_detection.is_some() {
                format!("There is no speech to commit: {ms} ms were heard, at least {LEAST_MS} ms are needed.")
            } else {
                format!("The buffer is too small: it holds {ms} ms, at least {LEAST_MS} ms are needed.")
            };
            return Err(ErrorBody::invalid("input_audio_buffer_commit_empty", message));
        }
        // Whether it is answered, the client says later.
        self.close_ear(&sound, false);
        let speech = self.speech.take();
        let item_id = speech.unwrap_or_else(|| self.out.name("item"));
        // A full conversation was told of by `commit`.
        let _ = self.commit(item_id, &sound);
        Ok(())
    }

    fn create_item(&mut self, previous: Option<String>, item: NewItem) -> Result<(), Refusal> {
        let entry = self.entry(item)?;
        let place = match previous {
            None => Where::End,
            Some(id) if id == "root" => Where::Root,
            Some(id) => Where::After(id),
        };
        let item = entry.show();
        let previous_item_id = self.conversation.insert(entry, &place)?;
        self.out.send(ServerEvent::ItemAdded { previous_item_id: previous_item_id.clone(), item: item.clone() });
        self.out.send(ServerEvent::ItemDone { previous_item_id, item });
        Ok(())
    }

    /// A client's item as we keep it, its sound decoded.
    pub(super) fn entry(&mut self, item: NewItem) -> Result<Entry, Refusal> {
        let body = match item.kind {
            NewKind::Message(role, parts) => {
                Body::Message(role, parts.into_iter().map(|part| self.piece(part)).collect::<Result<_, _>>()?)
            }
            NewKind::Call { call_id, name, arguments } => Body::Call { call_id, name, arguments },
            NewKind::Output { call_id, output } => Body::Output { call_id, output },
        };
        let id = item.id.unwrap_or_else(|| self.out.name("item"));
        Ok(Entry { id, status: Status::Completed, body })
    }

    fn piece(&self, part: NewPart) -> Result<Piece, Refusal> {
        match part {
            NewPart::Text(text) => Ok(Piece::Text(text)),
            NewPart::Audio { bytes, transcript } => {
                let bad = |message: String| ErrorBody::invalid("invalid_audio", message).at("item.content");
                let sound = self.settings.format.clip(&bytes).map_err(|e| bad(e.to_string()))?;
                if sound.is_empty() {
                    return Err(bad("There is no sound in it.".into()));
                }
                Ok(Piece::sound(&sound, samples(self.config.voice.max_segment_seconds), transcript))
            }
        }
    }
}

fn no_item(code: &'static str, id: &str) -> Refusal {
    ErrorBody::invalid(code, format!("There is no item `{id}`.")).at("item_id")
}
