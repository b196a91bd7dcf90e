//! A turn while it is spoken: the engine hears it as it comes, and its words are known as they are committed.
//!
//! ```text
//!  Live: sound that surely belongs to it -> Mouth -> the engine's ear -> captions -> Work: words, told at once
//!                                             └──────── its end ───────────────────> Work: the rest of them, its note
//! ```

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::{Ended, Turn};
use crate::apps::transcribe;
use crate::engine::{Caption, Engine, Feed, Listening, SessionId, Tenant};

/// A turn before it has a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) party: usize,
    /// Where its sound begins, samples into the call.
    pub(super) start: u64,
}

/// A turn on its way to whoever reads it.
pub(super) struct Spoken {
    /// What is read of it meanwhile; absent where it is read in one piece once it is over.
    pub(super) captions: Option<(Begun, mpsc::Receiver<Caption>)>,
    /// Comes when it is over, or not at all.
    pub(super) ended: oneshot::Receiver<Ended>,
}

impl Spoken {
    /// A turn that is over already.
    pub(super) fn over(turn: Ended) -> Self {
        let (tell, ended) = oneshot::channel();
        // Its receiver is still here.
        drop(tell.send(turn));
        Self { captions: None, ended }
    }
}

/// The end of a turn that takes its sound.
pub(super) struct Mouth {
    pub(super) begun: Begun,
    /// The engine's ear; `None` when there is none for it.
    ear: Option<Box<dyn Feed>>,
    /// Samples that it was given.
    fed: usize,
    ended: oneshot::Sender<Ended>,
}

impl Mouth {
    /// A turn that has begun.
    pub(super) fn open(engine: &dyn Engine, session: SessionId, tenant: Tenant, begun: Begun) -> (Self, Spoken) {
        let (tell, ended) = oneshot::channel();
        // Refused, it is read when it is over.
        let (ear, captions) = transcribe::open(engine, session, tenant).ok().map(Listening::split).unzip();
        let captions = captions.map(|captions| (begun, captions));
        (Self { begun, ear, fed: 0, ended: tell }, Spoken { captions, ended })
    }

    /// Samples that were said.
    pub(super) fn fed(&self) -> usize {
        self.fed
    }

    /// The next samples.
    pub(super) fn say(&mut self, sound: &[f32]) {
        self.fed += sound.len();
        if let Some(ear) = &self.ear {
            ear.push(sound);
        }
    }

    /// The turn is over; whether somebody still wants it.
    pub(super) fn end(self, turn: Ended) -> bool {
        if let Some(ear) = &self.ear {
            ear.push(turn.sound.get(self.fed..).unwrap_or_default());
            transcribe::end(&**ear);
        }
        self.ended.send(turn).is_ok()
    }
}

/// What a party is saying, as far as it is read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Saying {
    pub(super) party: String,
    /// Where its sound begins, seconds into the call.
    pub(super) start: f64,
    /// Never taken back.
    pub(super) words: String,
    /// What seems to follow.
    pub(super) tentative: String,
    /// The turn that it has become, while the last words of that are read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) turn: Option<usize>,
}

impl Saying {
    /// Nothing yet.
    pub(super) fn new(party: String, start: f64) -> Self {
        Self { party, start, words: String::new(), tentative: String::new(), turn: None }
    }

    /// Whether there is something to be shown.
    pub(super) fn is_told(&self) -> bool {
        !(self.words.is_empty() && self.tentative.is_empty())
    }
}

/// The same in the journal, one for each party, for the case that the program ends before the turn does.
#[derive(Serialize, Deserialize)]
pub(super) struct KeptSaying {
    pub(super) party: usize,
    pub(super) start: f64,
    pub(super) words: String,
}

impl KeptSaying {
    /// Puts the words into their turn, if that has ended without them; gives them back if it has not ended.
    pub(super) fn settle(self, turns: &mut [Turn]) -> Option<Self> {
        let its = turns.iter_mut().find(|turn| turn.party == self.party && turn.end > self.start);
        match its {
            Some(turn) => {
                turn.words.get_or_insert(self.words);
                None
            }
            None => Some(self).filter(|saying| !saying.words.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::calls::measure::measure;

    #[test]
    fn what_was_being_said_goes_into_its_turn_or_is_given_back() {
        let turn = |party, start, end, words: Option<&str>| Turn {
            id: 0,
            party,
            start,
            end,
            interrupts: false,
            measures: measure(&[]),
            words: words.map(str::to_owned),
            note: None,
        };
        let saying = |start, words: &str| KeptSaying { party: 0, start, words: words.into() };
        let mut turns = [turn(0, 1.0, 2.0, Some("whole.")), turn(1, 2.5, 4.0, None), turn(0, 3.0, 4.0, None)];
        assert!(saying(0.8, "who").settle(&mut turns).is_none());
        assert_eq!(turns[0].words.as_deref(), Some("whole."), "its words are known better");
        assert!(saying(2.8, "half").settle(&mut turns).is_none());
        assert_eq!((turns[1].words.as_deref(), turns[2].words.as_deref()), (None, Some("half")));
        assert_eq!(saying(4.0, "cut").settle(&mut turns).map(|saying| saying.words), Some("cut".into()));
        assert!(saying(4.0, "").settle(&mut turns).is_none());
    }
}
