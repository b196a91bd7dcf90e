//! The turn that is being spoken, as the engine hears it: an open ear, captions, and a mind that begins at a pause.
//!
//! The ear is fed what will surely belong to the turn, so that the request which follows finds its sound heard already. At a short pause the
//! request is made as if the turn were over, and its events are held back: when speech goes on they are dropped, and when the turn ends with
//! that very sound they are told at once.

use super::conversation::{Body, Entry, Piece};
use super::{Output, Session, TurnId};
use crate::audio::samples;
use crate::engine::{self, Caption, Content, Event, Role};
use crate::protocol::openai::{ErrorBody, ResponseParams, Seconds, ServerEvent, Status};

/// What the engine hears of the turn.
#[derive(Debug)]
pub(super) struct Spoken {
    /// Samples of the turn that were handed over.
    fed: usize,
}

/// The words of a turn as they were told.
#[derive(Debug)]
pub(super) struct Told {
    item_id: String,
    text: String,
    /// Samples, once the turn is over and nobody else tells its words.
    ends: Option<usize>,
}

/// A response that nobody has asked for yet.
#[derive(Debug)]
pub(super) struct Ahead {
    pub(super) turn: TurnId,
    /// The sound it answers.
    sound: Vec<f32>,
    pub(super) events: Vec<Event>,
}

impl Session {
    /// Opens the engine's ear for a turn of which it has `begun` so much in whole segments.
    fn open_ear(&mut self, begun: &[f32]) {
        let longest = samples(self.config.voice.max_segment_seconds);
        let mut content: Vec<Content> = begun.chunks(longest).map(|s| Content::Sound(s.into())).collect();
        content.push(Content::Sound(Vec::new().into()));
        let mut conversation = self.prompt(self.conversation.entries(), None);
        conversation.push(engine::Item::Message { role: Role::User, content });
        let listen = self.listen_to(conversation, self.settings.transcription.is_some());
        self.out.queue.push_back(Output::Listen(Box::new(listen)));
    }

    /// Hands over what is new of the turn's sound, `sound` from its start on. Each segment is a sound of its own.
    pub(super) fn feed(&mut self, sound: &[f32]) {
        if sound.is_empty() {
            return;
        }
        if self.spoken.is_none() {
            // A reply that goes on while this is spoken will stand before it: what would be heard now would not be found again.
            if self.running.is_some() {
                return;
            }
            let item_id = match &self.speech {
                Some(id) => id.clone(),
                None => self.out.name("item"),
            };
            self.speech = Some(item_id.clone());
            self.told = Some(Told { item_id, text: String::new(), ends: None });
            self.spoken = Some(Spoken { fed: 0 });
            self.open_ear(&[]);
        }
        let longest = samples(self.config.voice.max_segment_seconds);
        while let Some(spoken) = &mut self.spoken
            && spoken.fed < sound.len()
        {
            let (from, begun) = (spoken.fed, spoken.fed / longest * longest);
            let to = sound.len().min(begun + longest);
            spoken.fed = to;
            if from == begun && begun > 0 {
                self.open_ear(&sound[..begun]);
            }
            self.out.queue.push_back(Output::Hear(sound[from..to].to_vec()));
        }
    }

    /// The turn is over and its sound is all there. Whoever answers it tells the words; else the ear does, to the end.
    pub(super) fn close_ear(&mut self, sound: &[f32], is_answered: bool) {
        self.feed(sound);
        if self.spoken.take().is_none() {
            return;
        }
        if is_answered {
            self.out.queue.push_back(Output::Unlisten);
        } else if let Some(told) = &mut self.told {
            told.ends = Some(sound.len());
            self.out.queue.push_back(Output::EndOfSound);
        }
    }

    /// The turn was thrown away.
    pub(super) fn forget_ear(&mut self) {
        self.drop_ahead();
        self.told = None;
        if self.spoken.take().is_some() {
            self.out.queue.push_back(Output::Unlisten);
        }
    }

    pub(super) fn caption(&mut self, caption: Caption) {
        let Some(told) = self.told.as_mut().filter(|_| self.settings.transcription.is_some()) else { return };
        let (item_id, content_index) = (told.item_id.clone(), 0);
        if !caption.committed.is_empty() {
            let delta = told.add(&caption.committed);
            self.out.send(ServerEvent::TranscriptDelta { item_id: item_id.clone(), content_index, delta });
        }
        if self.settings.includes("hearken.captions.tentative") {
            self.out.send(ServerEvent::Tentative { item_id, content_index, text: caption.tentative });
        }
        if caption.is_last {
            self.all_told();
        }
    }

    /// All words of a turn are told, unless its answer was sooner.
    fn all_told(&mut self) {
        let Some(Told { item_id, text, ends: Some(samples) }) = self.told.take_if(|told| told.ends.is_some()) else {
            return;
        };
        let Some(Body::Message(_, pieces)) = self.conversation.get_mut(&item_id).map(|entry| &mut entry.body) else {
            return;
        };
        if let Some(Piece::Sound { transcript: transcript @ None, .. }) = pieces.first_mut() {
            *transcript = Some(text.clone());
            let usage = Seconds(samples as f64 / f64::from(crate::audio::RATE));
            self.out.send(ServerEvent::Transcribed { item_id, content_index: 0, transcript: text, usage });
        }
    }

    /// The ear says nothing more. If it has not said all and nobody else will, the client is told.
    pub(super) fn captions_ended(&mut self) {
        let is_answered = |item_id: &str| {
            let hears = self.running.as_ref().and_then(|running| running.opening.hears.as_ref());
            hears.is_some_and(|(id, _)| id == item_id)
        };
        let lost = self.told.take_if(|told| told.ends.is_some() && !is_answered(&told.item_id));
        if let Some(Told { item_id, .. }) = lost.filter(|_| self.settings.transcription.is_some()) {
            let message =
                "The words of this turn could not be read while it was spoken; a response to it will tell them.";
            let error = ErrorBody::server("transcription_failed", message);
            self.out.send(ServerEvent::TranscriptionFailed { item_id, content_index: 0, error });
        }
    }

    /// A pause: begins to think, as if the turn ended here.
    pub(super) fn think_ahead(&mut self, sound: Vec<f32>) {
        let answers = self.settings.turn_detection.is_some_and(|turns| turns.create_response);
        if !answers || !self.config.thinking.speculate || self.running.is_some() || self.conversation.room().is_err() {
            return;
        }
        self.drop_ahead();
        self.feed(&sound);
        let piece = Piece::sound(&sound, samples(self.config.voice.max_segment_seconds), None);
        let entry =
            Entry { id: String::new(), status: Status::Completed, body: Body::Message(Role::User, vec![piece]) };
        let mut entries = self.conversation.entries().to_vec();
        entries.push(entry);
        let request = self.request(&ResponseParams::default(), &entries);
        let turn = self.next_turn();
        self.ahead = Some(Ahead { turn, sound, events: Vec::new() });
        self.out.queue.push_back(Output::Start(turn, Box::new(request)));
    }

    /// What was thought too early is nobody's.
    pub(super) fn drop_ahead(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            self.out.queue.push_back(Output::Cancel(ahead.turn));
        }
    }

    /// What was thought of just this sound, if it is sound.
    pub(super) fn take_ahead(&mut self, sound: &[f32]) -> Option<(TurnId, Vec<Event>)> {
        let ahead = self.ahead.take()?;
        if ahead.sound == sound && !ahead.events.iter().any(|event| matches!(event, Event::Failed(_))) {
            return Some((ahead.turn, ahead.events));
        }
        self.out.queue.push_back(Output::Cancel(ahead.turn));
        None
    }
}

/// What was told of an item's words so far. Its answer knows them all: nobody else tells of them any more.
pub(super) fn take_told(told: &mut Option<Told>, item_id: &str) -> String {
    told.take_if(|told| told.item_id == item_id).map(|told| told.text).unwrap_or_default()
}

impl Told {
    /// Adds what was committed; gives it as it is told. Segments are joined by a space.
    fn add(&mut self, committed: &str) -> String {
        let space = if self.text.is_empty() || committed.starts_with(char::is_whitespace) { "" } else { " " };
        let delta = format!("{space}{committed}");
        self.text.push_str(&delta);
        delta
    }
}

/// All the words of a turn, beginning with those that were told (invariant I7), and what is new of them. A last reading that sees words
/// told otherwise goes on behind as many words as were told.
pub(super) fn complete(told: &str, words: &str) -> (String, String) {
    if let Some(rest) = words.strip_prefix(told) {
        return (words.to_owned(), rest.to_owned());
    }
    let rest: Vec<&str> = words.split_whitespace().skip(told.split_whitespace().count()).collect();
    let rest = if rest.is_empty() { String::new() } else { format!(" {}", rest.join(" ")) };
    (format!("{told}{rest}"), rest)
}

#[cfg(test)]
mod tests {
    use super::complete;

    #[test]
    fn i7_what_was_told_stays_told() {
        assert_eq!(complete("", "all of it"), ("all of it".into(), "all of it".into()));
        assert_eq!(complete("I asked", "I asked you"), ("I asked you".into(), " you".into()));
        assert_eq!(complete("I asked not", "I ask not what"), ("I asked not what".into(), " what".into()));
        assert_eq!(complete("I asked not", "I ask"), ("I asked not".into(), String::new()));
    }
}
