//! What the model is asked about a call: a note on each turn, and a summary at the end.

use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::Config;
use crate::engine::{
    Calling, Content, Ending, Engine, EngineError, Event, Item, Pace, Request, Role, SessionId, Tenant, Thinking,
};

/// Moods that a note may name.
pub const MOODS: [&str; 9] =
    ["angry", "annoyed", "afraid", "sad", "confused", "surprised", "pleased", "calm", "unclear"];
/// Risks, the gravest first.
pub const RISKS: [&str; 3] = ["high", "low", "none"];
/// Earlier turns that the model is told, as words.
const BEFORE: usize = 40;
/// Tokens of a note and of a summary.
const NOTE: usize = 64;
const SUMMARY: usize = 160;

const SYSTEM: &str = "You listen to a call and note how each turn is said. Judge by the voice as much as by the words.";
const ASKED: &str = "\nName the speaker's mood in one word (angry, annoyed, afraid, sad, confused, surprised, pleased or calm), \
                     what in the voice shows it, what the speaker wants, and whether the risk is none, low or high.";
const SUM: &str =
    "The call is over. Sum it up in two or three sentences: what was wanted, what was agreed, what is open.";

/// One of [`MOODS`] or [`RISKS`]. (By a name of its own, because a reference in a struct would be read as borrowed from what is read.)
pub type Known = &'static str;

/// The model's note on a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// One of [`MOODS`]: the first that the note names.
    #[serde(deserialize_with = "known")]
    pub mood: Known,
    /// One of [`RISKS`].
    #[serde(deserialize_with = "known")]
    pub risk: Known,
    /// The note as it was written.
    pub text: String,
    /// What was thought before it.
    pub reasoning: String,
}

/// One of the words that a note may use.
fn known<'de, D: Deserializer<'de>>(from: D) -> Result<Known, D::Error> {
    let word = String::deserialize(from)?;
    let all = MOODS.iter().chain(&RISKS);
    all.copied().find(|known| *known == word).ok_or_else(|| D::Error::custom("neither a mood nor a risk"))
}

impl Note {
    /// Finds mood and risk in what was written.
    pub fn read(reasoning: String, text: String) -> Self {
        let words = |text: &str| -> Vec<String> {
            text.split(|c: char| !c.is_alphabetic()).map(str::to_lowercase).filter(|w| !w.is_empty()).collect()
        };
        let written = words(&text);
        let first = |words: &[String], known: &[&'static str]| {
            words.iter().find_map(|word| known.iter().find(|each| *each == word).copied())
        };
        let mood = first(&written, &MOODS).or_else(|| first(&words(&reasoning), &MOODS)).unwrap_or("unclear");
        // "the risk is high" and "high risk" both: the grade nearest to the word.
        let risk = written.iter().position(|word| word.starts_with("risk")).and_then(|at| {
            let near = written.iter().enumerate().filter_map(|(i, word)| {
                let grade = RISKS.iter().find(|each| *each == word)?;
                (i.abs_diff(at) <= 4).then_some((i.abs_diff(at), *grade))
            });
            near.min_by_key(|(distance, _)| *distance).map(|(_, grade)| grade)
        });
        Self { mood, risk: risk.unwrap_or("none"), text: text.trim().into(), reasoning: reasoning.trim().into() }
    }
}

/// One who is asked: the engine, as one call's mind.
#[derive(Clone)]
pub struct Mind {
    /// Who computes.
    pub engine: Arc<dyn Engine>,
    /// The mind's own prefix.
    pub session: SessionId,
    /// With whom it is shared.
    pub tenant: Tenant,
    /// Budgets and sampling.
    pub config: Arc<Config>,
}

impl Mind {
    /// A note on a turn that sounds like this and comes after those, each `party: words`.
    ///
    /// # Errors
    /// The engine's.
    pub async fn note(&self, before: &[String], party: &str, sound: Arc<[f32]>) -> Result<Note, EngineError> {
        let turn = vec![Content::Text(format!("{party}: ")), Content::Sound(sound), Content::Text(ASKED.into())];
        let (reasoning, text) = self.ask(before, turn, NOTE).await?;
        Ok(Note::read(reasoning, text))
    }

    /// A summary of all turns.
    ///
    /// # Errors
    /// The engine's.
    pub async fn summary(&self, turns: &[String]) -> Result<String, EngineError> {
        let (_, text) = self.ask(turns, vec![Content::Text(SUM.into())], SUMMARY).await?;
        Ok(text.trim().to_owned())
    }

    async fn ask(
        &self,
        before: &[String],
        content: Vec<Content>,
        most: usize,
    ) -> Result<(String, String), EngineError> {
        let message = |role, content| Item::Message { role, content };
        let mut conversation = vec![message(Role::System, vec![Content::Text(SYSTEM.into())])];
        let said = &before[before.len().saturating_sub(BEFORE)..];
        conversation.extend(said.iter().map(|line| message(Role::User, vec![Content::Text(line.clone())])));
        conversation.push(message(Role::User, content));
        let thinking = &self.config.thinking;
        let budget = thinking.budget(thinking.effort);
        let mut turn = self.engine.respond(Request {
            session: self.session,
            tenant: self.tenant,
            conversation,
            tools: String::new(),
            calling: Calling::May,
            thinking: if budget.is_some() { Thinking::On } else { Thinking::Off },
            thinking_budget: budget.unwrap_or(0),
            pace: Pace::ThinkBefore,
            max_reply_tokens: most,
            sampling: self.config.sampling.clone(),
            words: false,
            ending: Ending::Known,
        })?;
        let (mut reasoning, mut text) = (String::new(), String::new());
        loop {
            match turn.next().await {
                Some(Event::Reasoning(more)) => reasoning.push_str(&more),
                Some(Event::Reply(more)) => text.push_str(&more),
                Some(Event::Done { .. }) => return Ok((reasoning, text)),
                Some(Event::Failed(error)) => return Err(error),
                Some(_) => {}
                None => return Err(EngineError::Stopped),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mood_and_risk_are_found_where_models_write_them() {
        for (text, mood, risk) in [
            ("Angry: loud and fast. Wants a refund. The risk is high.", "angry", "high"),
            ("mood: calm; evidence: slow; intent: a new date; risk: none", "calm", "none"),
            ("The speaker sounds pleased, with low risk.", "pleased", "low"),
            ("I cannot tell.", "unclear", "none"),
            ("", "unclear", "none"),
        ] {
            let note = Note::read(String::new(), text.into());
            assert_eq!((note.mood, note.risk), (mood, risk), "{text}");
        }
        assert_eq!(Note::read("She sounds sad.".into(), "Help her.".into()).mood, "sad");
    }
}
