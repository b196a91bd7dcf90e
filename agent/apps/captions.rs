//! Captions of a stream, whose sender cannot ask for anything: after each turn the model is asked how it sounded, for no reply, and the turn is taken out of
//! its conversation, so that hours of captions need no more memory than a minute. What web/captions.js does for a microphone.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// How the session tells that it refuses a question.
const QUESTION: &str = "note";

/// Whoever asks: events of a session in, and out what it is to be asked. Of turns that were followed at once by another, only the words are kept.
#[derive(Debug, Default)]
pub struct Notes {
    /// Turns about which nothing was asked yet.
    spoken: Vec<String>,
    /// The turn that is asked about.
    about: Option<String>,
    is_speaking: bool,
}

/// What is looked at of an event.
#[derive(Deserialize)]
struct Seen {
    #[serde(rename = "type")]
    kind: String,
    item_id: Option<String>,
    response: Option<Answer>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Answer {
    metadata: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Refusal {
    event_id: Option<String>,
}

impl Notes {
    /// An event as its client is sent it; what is asked now, as a client asks it.
    pub fn see(&mut self, frame: &str) -> Vec<String> {
        let Ok(seen) = serde_json::from_str::<Seen>(frame) else { return Vec::new() };
        let mut asked = Vec::new();
        match (&seen.kind[..], seen.item_id) {
            ("input_audio_buffer.speech_started", _) => self.is_speaking = true,
            ("input_audio_buffer.cleared", _) => self.is_speaking = false,
            ("input_audio_buffer.committed", Some(item)) => {
                self.is_speaking = false;
                self.spoken.push(item);
            }
            ("response.done", _) => {
                let about = seen.response.and_then(|response| response.metadata?.remove("about"));
                self.answered(about.as_ref().is_some_and(|item| item.as_str() == self.about.as_deref()), &mut asked);
            }
            ("error", _) => {
                let refused = seen.error.and_then(|error| error.event_id);
                self.answered(refused.as_deref() == Some(QUESTION), &mut asked);
            }
            _ => return asked,
        }
        self.ask(&mut asked);
        asked
    }

    fn answered(&mut self, is_it: bool, asked: &mut Vec<String>) {
        asked.extend(self.about.take_if(|_| is_it).map(|item| delete(&item)));
    }

    fn ask(&mut self, asked: &mut Vec<String>) {
        if self.about.is_some() || self.is_speaking {
            return;
        }
        let Some(newest) = self.spoken.pop() else { return };
        asked.extend(self.spoken.drain(..).map(|item| delete(&item)));
        let input = json!([{"type": "item_reference", "id": newest}]);
        let response = json!({
            "conversation": "none", "input": input, "metadata": {"about": newest}, "max_output_tokens": 1,
        });
        asked.push(json!({"type": "response.create", "event_id": QUESTION, "response": response}).to_string());
        self.about = Some(newest);
    }
}

fn delete(item: &str) -> String {
    json!({"type": "conversation.item.delete", "item_id": item}).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What is asked after these events: the type, and the item.
    fn asked(notes: &mut Notes, events: &[Value]) -> Vec<(String, String)> {
        let all = events.iter().flat_map(|event| notes.see(&event.to_string())).collect::<Vec<_>>();
        all.iter()
            .map(|text| {
                let event: Value = serde_json::from_str(text).unwrap();
                let item = event.get("item_id").unwrap_or(&event["response"]["metadata"]["about"]);
                (event["type"].as_str().unwrap().to_owned(), item.as_str().unwrap().to_owned())
            })
            .collect()
    }

    fn pair(kind: &str, item: &str) -> (String, String) {
        (kind.to_owned(), item.to_owned())
    }

    const CREATE: &str = "response.create";
    const DELETE: &str = "conversation.item.delete";

    #[test]
    fn each_turn_is_asked_about_once_nobody_speaks_and_then_leaves_the_conversation() {
        let (started, committed) = (
            json!({"type": "input_audio_buffer.speech_started", "item_id": "x"}),
            |item: &str| json!({"type": "input_audio_buffer.committed", "item_id": item}),
        );
        let done = |item: &str| json!({"type": "response.done", "response": {"metadata": {"about": item}}});
        let mut notes = Notes::default();
        assert_eq!(asked(&mut notes, &[started.clone(), committed("a")]), [pair(CREATE, "a")]);
        // Two more are said meanwhile, and a third begins: all the same nothing is asked while one is being answered.
        let meanwhile = [started.clone(), committed("b"), started.clone(), committed("c"), started.clone()];
        assert_eq!(asked(&mut notes, &meanwhile), []);
        assert_eq!(asked(&mut notes, &[json!({"type": "response.done", "response": {"metadata": null}})]), []);
        assert_eq!(asked(&mut notes, &[done("a")]), [pair(DELETE, "a")], "somebody speaks");
        let wanted = [pair(DELETE, "b"), pair(DELETE, "c"), pair(CREATE, "d")];
        assert_eq!(
            asked(&mut notes, &[committed("d")]),
            wanted,
            "of those that were spoken over, the words are enough"
        );
        // Refused, it is not waited for.
        assert_eq!(asked(&mut notes, &[json!({"type": "error", "error": {"event_id": null}})]), []);
        assert_eq!(asked(&mut notes, &[json!({"type": "error", "error": {"event_id": "note"}})]), [pair(DELETE, "d")]);
        assert_eq!(asked(&mut notes, &[committed("e")]), [pair(CREATE, "e")]);
        assert_eq!(notes.see("no event"), Vec::<String>::new());
    }
}
