//! A conversation as people read it: who said what, when, and how it went.

use serde::Serialize;
use serde_json::Value;

use super::reader::{Head, Row};

/// Who said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// The person.
    User,
    /// The model.
    Agent,
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Turn {
    /// The item's name, or the response's.
    pub id: String,
    /// Whose it is.
    pub who: Who,
    /// Whether it was spoken, and not typed.
    pub spoken: bool,
    /// What was said.
    pub words: String,
    /// What the model thought of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reasoning: String,
    /// Milliseconds since the conversation began.
    pub begins_ms: i64,
    /// Milliseconds since the conversation began.
    pub ends_ms: i64,
    /// Of a response: `completed`, `cancelled`, `incomplete`, `failed`, or `in_progress` when its end was never told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Why it is not whole.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub status_details: Value,
    /// Where its time went, for those who had asked for it.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub timings_ms: Value,
    /// The words in the pieces in which they were told, each with its time.
    #[serde(skip)]
    pub pieces: Vec<(i64, String)>,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Story {
    /// What the list says of it.
    #[serde(flatten)]
    pub head: Head,
    /// The number of its last event.
    pub last_event: u64,
    /// When the sound began whose clock `audio_start_ms` is, milliseconds since the conversation began: of the last session, if any was heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sound_ms: Option<i64>,
    /// In the order in which they began.
    pub turns: Vec<Turn>,
}

/// Milliseconds by which what is told of a sound may come late; beyond, its clock has stood still.
const DRIFT: i64 = 1000;

impl Story {
    pub(super) fn of(head: Head, rows: &[Row]) -> Self {
        let origin = rows.first().map_or(head.created_ms, |row| row.at);
        let mut story =
            Self { head, last_event: rows.last().map_or(0, |row| row.number), turns: Vec::new(), sound_ms: None };
        for row in rows {
            // Older or newer programs may have written what this one does not know.
            if let Ok(event) = serde_json::from_str::<Value>(&row.frame) {
                story.event(&event, row.at - origin);
            }
        }
        story.turns.retain(|turn| !turn.words.is_empty() || !turn.reasoning.is_empty() || turn.spoken);
        for turn in &mut story.turns {
            // Of what was never over, no more is known than that it began.
            turn.ends_ms = turn.ends_ms.max(turn.begins_ms);
            turn.words = turn.words.trim().to_owned();
            turn.reasoning = turn.reasoning.trim().to_owned();
        }
        story
    }

    fn turn(&mut self, who: Who, id: &str, at: i64) -> &mut Turn {
        let index = self.turns.iter().rposition(|turn| turn.id == id).unwrap_or_else(|| {
            self.turns.push(Turn {
                id: id.to_owned(),
                who,
                spoken: false,
                words: String::new(),
                reasoning: String::new(),
                begins_ms: at,
                ends_ms: at,
                status: None,
                status_details: Value::Null,
                timings_ms: Value::Null,
                pieces: Vec::new(),
            });
            self.turns.len() - 1
        });
        &mut self.turns[index]
    }

    fn spoken(&mut self, id: &str, at: i64) -> &mut Turn {
        let turn = self.turn(Who::User, id, at);
        turn.spoken = true;
        turn
    }

    fn event(&mut self, event: &Value, at: i64) {
        let text = |key: &str| event[key].as_str().unwrap_or_default();
        let (item_id, response_id) = (text("item_id"), text("response_id"));
        match text("type") {
            "input_audio_buffer.speech_started" => {
                let started = event["audio_start_ms"].as_i64().unwrap_or_default();
                // How far turns are apart the clock of their sound tells best, and whoever watches sees that one. It stands still while no sound comes, and
                // begins anew with each session.
                let now = at - started;
                let sound = self.sound_ms.filter(|sound| (now - sound).abs() < DRIFT).unwrap_or(now);
                self.sound_ms = Some(sound);
                let turn = self.spoken(item_id, at);
                turn.begins_ms = (sound + started).max(0);
                // Until it is over, where that clock began; then where the turn ends.
                turn.ends_ms = sound;
            }
            "input_audio_buffer.speech_stopped" => {
                let stopped = event["audio_end_ms"].as_i64().unwrap_or_default();
                let turn = self.spoken(item_id, at);
                // A clock may have been set back in between.
                turn.ends_ms = (turn.ends_ms + stopped).min(at).max(turn.begins_ms);
            }
            "conversation.item.input_audio_transcription.delta" => {
                let turn = self.spoken(item_id, at);
                turn.pieces.push((at, text("delta").to_owned()));
                turn.words.push_str(text("delta"));
            }
            "conversation.item.input_audio_transcription.completed" => {
                self.spoken(item_id, at).words = text("transcript").to_owned();
            }
            "conversation.item.added" | "conversation.item.done" => self.item(&event["item"], at),
            "response.created" => {
                let id = event["response"]["id"].as_str().unwrap_or_default();
                self.turn(Who::Agent, id, at).status = Some("in_progress".to_owned());
            }
            "response.reasoning_text.delta" => self.turn(Who::Agent, response_id, at).reasoning += text("delta"),
            "response.reasoning_text.done" => {
                self.turn(Who::Agent, response_id, at).reasoning = text("text").to_owned();
            }
            "response.output_text.delta" => {
                let turn = self.turn(Who::Agent, response_id, at);
                turn.pieces.push((at, text("delta").to_owned()));
                turn.words += text("delta");
            }
            "response.done" => {
                let response = &event["response"];
                let turn = self.turn(Who::Agent, response["id"].as_str().unwrap_or_default(), at);
                turn.ends_ms = at;
                turn.status = response["status"].as_str().map(str::to_owned);
                turn.status_details = response["status_details"].clone();
                turn.timings_ms = response["timings_ms"].clone();
                let parts = response["output"].as_array().into_iter().flatten();
                let said = parts.flat_map(|item| item["content"].as_array().into_iter().flatten());
                let said: Vec<&str> = said.filter_map(|part| part["text"].as_str()).collect();
                if !said.is_empty() {
                    turn.words = said.join("\n\n");
                }
            }
            _ => {}
        }
    }

    /// A person's item; the model's are told with its responses.
    fn item(&mut self, item: &Value, at: i64) {
        if item["role"] != "user" {
            return;
        }
        let id = item["id"].as_str().unwrap_or_default();
        for part in item["content"].as_array().into_iter().flatten() {
            match (part["type"].as_str(), part["text"].as_str().or(part["transcript"].as_str())) {
                (Some("input_audio"), words) => {
                    let turn = self.spoken(id, at);
                    if let Some(words) = words {
                        turn.words = words.to_owned();
                    }
                }
                (_, Some(words)) => self.turn(Who::User, id, at).words = words.to_owned(),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_as_far_apart_as_their_sound_unless_its_clock_stood_still() {
        let head = Head {
            id: "conv_1".into(),
            object: "conversation",
            kind: "captions".into(),
            model: "nano".into(),
            title: String::new(),
            created_ms: 0,
            updated_ms: 0,
        };
        let said = |n: u64, at: i64, kind: &str, key: &str, ms: i64| {
            let frame = format!(
                r#"{{"type": "input_audio_buffer.speech_{kind}", "item_id": "item_{}", "{key}": {ms}}}"#,
                n / 2
            );
            Row { number: n, at, frame }
        };
        let rows = [
            said(0, 10_300, "started", "audio_start_ms", 1000),
            said(1, 12_900, "stopped", "audio_end_ms", 3000),
            // Told a little later than the first one.
            said(2, 15_600, "started", "audio_start_ms", 6000),
            said(3, 17_000, "stopped", "audio_end_ms", 7000),
            // For a minute nobody sent any sound.
            said(4, 80_000, "started", "audio_start_ms", 9000),
            said(5, 81_500, "stopped", "audio_end_ms", 10_000),
        ];
        let story = Story::of(head, &rows);
        let times: Vec<(i64, i64)> = story.turns.iter().map(|turn| (turn.begins_ms, turn.ends_ms)).collect();
        assert_eq!(times, [(0, 2000), (5000, 6000), (69_700, 70_700)]);
    }
}
