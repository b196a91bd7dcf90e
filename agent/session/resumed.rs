//! A conversation that goes on after its session is gone: what was told is taken over, and what was left open is closed.

use super::Session;
use super::conversation::{Body, Entry, Piece, Where};
use crate::engine::Role;
use crate::protocol::openai::{
    ErrorBody, MaxTokens, Past, PastResponse, Response, ResponseStatus, Seconds, ServerEvent, Status, StatusDetails,
    Usage,
};

impl Session {
    /// Goes on with a conversation. To be called on a new session before it is greeted. Its items are known by their words; a response that was
    /// under way has failed, and words that were told of a turn being spoken are a turn.
    pub fn resume(&mut self, past: Past) {
        self.out.count = past.number;
        if let Some(settings) = past.settings {
            self.settings.apply(settings, &self.config.voice);
            self.listen();
        }
        for item in past.items {
            self.conversation.append(Entry::of_past(item));
        }
        if let Some((item_id, words)) = past.speech {
            self.close_speech(item_id, words);
        }
        if let Some(response) = past.response {
            self.close_response(response);
        }
        if self.compact() {
            self.prepare();
        }
    }

    fn close_speech(&mut self, item_id: String, words: String) {
        if words.trim().is_empty() {
            return self.out.send(ServerEvent::Cleared);
        }
        let words = words.trim().to_owned();
        let piece = Piece::Sound { segments: Vec::new(), length: 0, transcript: Some(words.clone()) };
        let entry =
            Entry { id: item_id.clone(), status: Status::Completed, body: Body::Message(Role::User, vec![piece]) };
        let item = entry.show();
        match self.conversation.insert(entry, &Where::End) {
            Err(full) => self.out.error(full.into()),
            Ok(previous_item_id) => {
                let previous = previous_item_id.clone();
                self.out.send(ServerEvent::Committed { previous_item_id: previous.clone(), item_id: item_id.clone() });
                self.out.send(ServerEvent::ItemAdded { previous_item_id: previous, item: item.clone() });
                self.out.send(ServerEvent::ItemDone { previous_item_id, item });
                let (content_index, usage) = (0, Seconds(0.0));
                self.out.send(ServerEvent::Transcribed { item_id, content_index, transcript: words, usage });
            }
        }
    }

    fn close_response(&mut self, PastResponse { id, output, metadata }: PastResponse) {
        let mut items = Vec::new();
        for name in output {
            let Some(item) = self.conversation.get(&name).map(Entry::show) else { continue };
            let previous_item_id = self.conversation.previous(&name);
            self.out.send(ServerEvent::ItemDone { previous_item_id, item: item.clone() });
            items.push(item);
        }
        let message = "The server ended in the middle of this response. What had been said of it is kept; ask again for the rest.";
        let error = Some(ErrorBody::server("server_restarted", message));
        self.out.send(ServerEvent::ResponseDone {
            response: Response {
                object: "realtime.response",
                id,
                status: ResponseStatus::Failed,
                status_details: Some(StatusDetails { kind: ResponseStatus::Failed, reason: None, error }),
                output: items,
                conversation_id: Some(self.conversation_id()),
                output_modalities: ["text"],
                max_output_tokens: MaxTokens::Infinite,
                metadata,
                usage: Some(Usage::default()),
                timings_ms: None,
            },
        });
    }
}
