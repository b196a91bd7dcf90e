//! The turn that is being spoken, as the engine hears it: an open ear, captions, and a mind that begins at a pause.
//!
//! The ear is fed what will surely belong to the turn, so that the request which follows finds its sound heard already. At a short pause the
//! request is made as if the turn were over, and its events are held back: when speech goes on they are dropped, and when the turn ends with
//! that very sound they are told at once.

use super::conversation::{Body, Entry, Piece};
use super::{EarId, Output, Session, TurnId};
use crate::audio::{samples, samples_ms};
use crate::engine::{self, Caption, Content, Ending, Event, Role};
use crate::protocol::openai::{ErrorBody, ResponseParams, ServerEvent, Status};

/// What the engine hears of the turn.
#[derive(Debug)]
pub(super) struct Spoken {
    /// Samples of the turn that were handed over.
    fed: usize,
    /// The ear that hears it.
    ear: EarId,
}

/// The words of a turn as they were told.
#[derive(Debug)]
pub(super) struct Told {
    item_id: String,
    text: String,
    /// The ears that hear it, one a segment: the first and the last so far.
    ears: (EarId, EarId),
    /// Samples, once the turn is over and nobody else tells its words.
    ends: Option<usize>,
    /// What was told before its sound was read once more from the beginning.
    before: Option<String>,
    /// The newest ear that has told all of its segment, and whether one has not.
    last: Option<EarId>,
    is_lost: bool,
}

/// A response that nobody has asked for yet.
#[derive(Debug)]
pub(super) struct Ahead {
    pub(super) turn: TurnId,
    /// The sound it answers.
    sound: Vec<f32>,
    /// Whether it is an answer, or tells only if the turn is over.
    is_answer: bool,
    pub(super) events: Vec<Event>,
}

impl Session {
    /// Opens the engine's ear for a turn of which it has `begun` so much in whole segments.
    fn open_ear(&mut self, begun: &[f32]) -> EarId {
        let longest = samples(self.config.voice.max_segment_seconds);
        let mut content: Vec<Content> = begun.chunks(longest).map(|s| Content::Sound(s.into())).collect();
        content.push(Content::Sound(Vec::new().into()));
        let mut conversation = self.prompt(self.conversation.entries(), None);
        conversation.push(engine::Item::Message { role: Role::User, content });
        self.listen_to(conversation, self.settings.transcription.is_some())
    }

    /// Hands over what is new of the sound that surely belongs to the turn. Of a long turn no more is copied than that, for this is done for every
    /// packet; all of it is only where an ear is opened.
    pub(super) fn feed_certain(&mut self) {
        let certain = self.ear.certain();
        let longest = samples(self.config.voice.max_segment_seconds);
        match &mut self.spoken {
            Some(spoken) if certain.len() <= spoken.fed => {}
            Some(spoken) if spoken.fed % longest != 0 && spoken.fed / longest == (certain.len() - 1) / longest => {
                self.out.queue.push_back(Output::Hear(certain[spoken.fed..].to_vec()));
                spoken.fed = certain.len();
            }
            None if self.running.is_some() => {}
            _ => {
                let certain = certain.to_vec();
                self.feed(&certain);
            }
        }
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
            let ear = self.open_ear(&[]);
            self.told.push(Told::new(item_id, ear));
            self.spoken = Some(Spoken { fed: 0, ear });
        }
        let longest = samples(self.config.voice.max_segment_seconds);
        while let Some(spoken) = &mut self.spoken
            && spoken.fed < sound.len()
        {
            let (from, begun) = (spoken.fed, spoken.fed / longest * longest);
            let to = sound.len().min(begun + longest);
            spoken.fed = to;
            if from == begun && begun > 0 {
                // The segment that is full is read to its end while the next one is heard.
                let full = spoken.ear;
                self.out.queue.push_back(Output::EndOfSound(full));
                let ear = self.open_ear(&sound[..begun]);
                if let (Some(spoken), Some(told)) = (&mut self.spoken, self.told.last_mut()) {
                    (spoken.ear, told.ears.1) = (ear, ear);
                }
            }
            self.out.queue.push_back(Output::Hear(sound[from..to].to_vec()));
        }
    }

    /// The turn is over and its sound is all there. Whoever answers it tells the words; else the ear does, to the end.
    pub(super) fn close_ear(&mut self, sound: &[f32], is_answered: bool) {
        self.feed(sound);
        let Some(Spoken { ear, .. }) = self.spoken.take() else { return };
        if is_answered {
            self.out.queue.push_back(Output::Unlisten);
        } else if let Some(told) = self.told.iter_mut().find(|told| told.ears.1 == ear) {
            told.ends = Some(sound.len());
            self.out.queue.push_back(Output::EndOfSound(ear));
        }
    }

    /// The turn was thrown away.
    pub(super) fn forget_ear(&mut self) {
        self.drop_ahead();
        // Of turns that are over, the words are still to come.
        let answered = self.answered().map(str::to_owned);
        self.told.retain(|told| told.ends.is_some() || answered.as_ref() == Some(&told.item_id));
        if self.spoken.take().is_some() {
            self.out.queue.push_back(Output::Unlisten);
        }
    }

    pub(super) fn caption(&mut self, ear: EarId, caption: Caption) {
        let told = self.told.iter_mut().find(|told| (told.ears.0..=told.ears.1).contains(&ear));
        let Some(told) = told.filter(|_| self.settings.transcription.is_some()) else { return };
        let (item_id, content_index) = (told.item_id.clone(), 0);
        if caption.is_last {
            told.last = Some(ear);
        }
        let (is_again, is_lost) = (told.before.is_some(), told.is_lost);
        if !caption.committed.is_empty() {
            let delta = told.add(&caption.committed);
            if !is_again {
                self.out.send(ServerEvent::TranscriptDelta { item_id: item_id.clone(), content_index, delta });
            }
        }
        if self.settings.includes("hearken.captions.tentative") && !is_again {
            self.out.send(ServerEvent::Tentative { item_id, content_index, text: caption.tentative });
        }
        if caption.is_last && !is_lost {
            self.all_told(ear);
        }
    }

    /// A turn that is over and whose last ear this was, if its answer was not sooner.
    fn last_of(&mut self, ear: EarId) -> Option<Told> {
        let at = self.told.iter().position(|told| told.ears.1 == ear && told.ends.is_some())?;
        Some(self.told.remove(at))
    }

    /// An ear has told all words of its segment, and with the last one all of the turn's are told.
    fn all_told(&mut self, ear: EarId) {
        let Some(Told { item_id, text, ends: Some(samples), before, .. }) = self.last_of(ear) else { return };
        let Some(Body::Message(_, pieces)) = self.conversation.get_mut(&item_id).map(|entry| &mut entry.body) else {
            return;
        };
        if let Some(Piece::Sound { transcript: transcript @ None, .. }) = pieces.first_mut() {
            let (text, rest) = before.map_or((text.clone(), String::new()), |before| complete(&before, &text));
            *transcript = Some(text.clone());
            if !rest.is_empty() {
                let item_id = item_id.clone();
                self.out.send(ServerEvent::TranscriptDelta { item_id, content_index: 0, delta: rest });
            }
            let seconds = samples as f64 / f64::from(crate::audio::RATE);
            self.out.words(item_id, 0, text, seconds, self.settings.tells_segments());
        }
    }

    /// An ear says nothing more. If it has not said all and nobody else will, the client is told.
    pub(super) fn captions_ended(&mut self, ear: EarId) {
        let answered = self.answered().map(str::to_owned);
        if let Some(told) = self.told.iter_mut().find(|told| (told.ears.0..=told.ears.1).contains(&ear)) {
            told.is_lost |= told.last != Some(ear);
            if told.ears.1 == ear && answered.as_ref() == Some(&told.item_id) {
                // From here on its answer alone tells them.
                told.ends = None;
                return;
            }
        }
        let lost = self.last_of(ear);
        if let Some(Told { item_id, .. }) = lost.filter(|_| self.settings.transcription.is_some()) {
            self.words_failed(item_id, 0);
        }
    }

    /// The item whose words the running response is about to tell.
    fn answered(&self) -> Option<&str> {
        let hears = self.running.as_ref().and_then(|running| running.opening.hears.as_ref());
        hears.map(|(item_id, _)| item_id.as_str())
    }

    /// A response has ended before it told the words of what it answers: an ear reads them, from the beginning on.
    pub(super) fn read_again(&mut self, item_id: String, content_index: usize) {
        if self.told.iter().any(|told| told.item_id == item_id && told.ends.is_some()) {
            return;
        }
        let before = take_told(&mut self.told, &item_id);
        let entries = self.conversation.entries();
        let Some(at) = entries.iter().position(|entry| entry.id == item_id) else { return };
        let Body::Message(_, pieces) = &entries[at].body else { return };
        if matches!(pieces.get(content_index), Some(Piece::Sound { transcript: Some(_), .. })) {
            return;
        }
        // An ear hears one segment, and one ear is open at a time.
        let length = match &pieces[..] {
            [Piece::Sound { segments, length, .. }] if segments.len() == 1 && self.spoken.is_none() => *length,
            _ => return self.words_failed(item_id, content_index),
        };
        let ends = Some(length);
        let ear = self.listen_to(self.prompt(&entries[..=at], None), true);
        self.out.queue.push_back(Output::EndOfSound(ear));
        self.told.push(Told { ends, before: Some(before), ..Told::new(item_id, ear) });
    }

    fn words_failed(&mut self, item_id: String, content_index: usize) {
        let message = "The words of this turn could not be read; a response to it will tell them.";
        let error = ErrorBody::server("transcription_failed", message);
        self.out.send(ServerEvent::TranscriptionFailed { item_id, content_index, error });
    }

    /// A pause: begins to think, as if the turn ended here, and where the client wishes so asks the model whether it does.
    pub(super) fn think_ahead(&mut self, sound: Vec<f32>) {
        let asks = self.settings.turn_detection.is_some_and(|turns| turns.longest_wait_ms().is_some());
        let wanted = self.settings.answers() && self.config.thinking.speculate;
        let is_answer = wanted && self.conversation.room().is_ok() && self.is_allowed();
        if self.running.is_some() || !(is_answer || asks) {
            return;
        }
        self.drop_ahead();
        self.feed(&sound);
        let piece = Piece::sound(&sound, samples(self.config.voice.max_segment_seconds), None);
        let entry =
            Entry { id: String::new(), status: Status::Completed, body: Body::Message(Role::User, vec![piece]) };
        let mut entries = self.conversation.entries().to_vec();
        entries.push(entry);
        let mut request = self.request(&ResponseParams::default(), &entries);
        if asks {
            request.ending = if is_answer { Ending::Asked } else { Ending::AskedAlone };
        }
        let turn = self.next_turn();
        self.ahead = Some(Ahead { turn, sound, is_answer, events: Vec::new() });
        self.out.queue.push_back(Output::Start(turn, Box::new(request)));
    }

    /// How likely it is that the turn which pauses is over, as the model has it.
    pub(super) fn judged(&mut self, chance: f32) {
        let longest = self.settings.turn_detection.and_then(|turns| turns.longest_wait_ms());
        let Some(longest) = longest else { return };
        let voice = &self.config.voice;
        if chance >= voice.finished_above {
            if let Some(ended) = self.ear.finish() {
                self.heard(ended);
            }
        } else if chance <= voice.unfinished_below
            && let Some(gate) = self.ear.gate()
        {
            gate.wait(samples_ms(longest));
        }
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
        if ahead.is_answer
            && ahead.sound == sound
            && !ahead.events.iter().any(|event| matches!(event, Event::Failed(_)))
        {
            return Some((ahead.turn, ahead.events));
        }
        self.out.queue.push_back(Output::Cancel(ahead.turn));
        None
    }
}

/// What was told of an item's words so far. Its answer knows them all: nobody else tells of them any more.
pub(super) fn take_told(told: &mut Vec<Told>, item_id: &str) -> String {
    let at = told.iter().position(|told| told.item_id == item_id);
    at.map(|at| told.remove(at).text).unwrap_or_default()
}

impl Told {
    fn new(item_id: String, ear: EarId) -> Self {
        Self { item_id, text: String::new(), ears: (ear, ear), ends: None, before: None, last: None, is_lost: false }
    }

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
