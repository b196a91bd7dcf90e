//! Several minds on one prefix: at high effort the same turn is thought several times over, and what most of them reply is the reply.
//!
//! Each mind is a fork of what was heard, so that the sound costs nothing more; their tokens share the engine's passes. Nothing of a reply can be
//! told before the vote, and the reasoning that is told is the winner's. Source: self-consistency (Wang et al. 2022, arXiv 2203.11171).

use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::mpsc;

use super::{Engine, EngineError, Event, Listen, Listening, Request, SessionId, Turn, Usage};
use crate::config::Thinking;

/// Drawn by minds beside the first one, which draws as it was asked to: minds that all take the likeliest token are one mind.
const TEMPERATURE: f32 = 0.7;

/// An engine whose turns of high effort are voted on.
pub struct Minds {
    engine: Arc<dyn Engine>,
    minds: usize,
    /// The least thinking budget that is thought by several.
    from: usize,
}

impl Minds {
    /// As `thinking` says; with one mind nothing changes.
    pub fn new(engine: Arc<dyn Engine>, thinking: &Thinking) -> Self {
        Self { engine, minds: thinking.minds, from: thinking.high }
    }
}

impl Engine for Minds {
    fn model(&self) -> &str {
        self.engine.model()
    }

    fn respond(&self, request: Request) -> Result<Turn, EngineError> {
        let is_answered = request.ending != super::Ending::AskedAlone && request.thinking != super::Thinking::Off;
        if self.minds < 2 || request.thinking_budget < self.from || !is_answered {
            return self.engine.respond(request);
        }
        let mut turns = Vec::with_capacity(self.minds);
        for n in 0..self.minds {
            let mut request = request.clone();
            if n > 0 {
                request.sampling.temperature = request.sampling.temperature.max(TEMPERATURE);
                request.sampling.seed = request.sampling.seed.wrapping_add(n as u64 * 0x9e37_79b9_7f4a_7c15);
                (request.words, request.ending) = (false, super::Ending::Known);
            }
            match self.engine.respond(request) {
                Ok(turn) => turns.push(turn),
                // Fewer minds are better than none.
                Err(_) if n > 0 => break,
                Err(error) => return Err(error),
            }
        }
        let (turn, events, _) = Turn::channel(AHEAD);
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.map_err(|e| EngineError::Model(format!("nobody can count the votes: {e}")))?;
        // A thread of its own, so that it serves callers outside a runtime too.
        let counting = std::thread::Builder::new().name("minds".into());
        let counted = counting.spawn(move || runtime.block_on(count(turns, events)));
        counted.map_err(|e| EngineError::Model(format!("nobody can count the votes: {e}")))?;
        Ok(turn)
    }

    fn listen(&self, listen: Listen) -> Result<Listening, EngineError> {
        self.engine.listen(listen)
    }

    fn close(&self, session: SessionId) {
        self.engine.close(session);
    }
}

/// Events the counting may be ahead of its reader.
const AHEAD: usize = 64;

/// Waits for all minds, and tells the winner's events. When nobody wants them any more, the minds are given up.
async fn count(turns: Vec<Turn>, events: mpsc::Sender<Event>) {
    let collect = |(n, turn)| collect(turn, (n == 0).then(|| events.clone()));
    let minds = tokio::select! {
        () = events.closed() => return,
        minds = join_all(turns.into_iter().enumerate().map(collect)) => minds,
    };
    let winner = vote(&minds.iter().map(|mind| reply(mind)).collect::<Vec<_>>());
    let spent = minds.iter().flatten().filter_map(|event| match event {
        Event::Done { usage, .. } => Some(*usage),
        _ => None,
    });
    let spent: Vec<Usage> = spent.collect();
    let sum = |of: fn(&Usage) -> usize| spent.iter().map(of).sum();
    for mut event in minds.into_iter().nth(winner).unwrap_or_default() {
        if let Event::Done { usage, .. } = &mut event {
            // What all of them wrote was paid for.
            (usage.reasoning_tokens, usage.reply_tokens) = (sum(|u| u.reasoning_tokens), sum(|u| u.reply_tokens));
        }
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// All events of a mind but what is told of the sound, which the first one tells at once.
async fn collect(mut turn: Turn, heard: Option<mpsc::Sender<Event>>) -> Vec<Event> {
    let mut all = Vec::new();
    while let Some(event) = turn.next().await {
        match (&event, &heard) {
            (Event::Heard(_) | Event::Finished(_), Some(to)) => drop(to.send(event).await),
            (Event::Heard(_) | Event::Finished(_), None) => {}
            _ => all.push(event),
        }
    }
    all
}

/// What a mind answers, as far as it counts: a tool's call is an answer, too. `None` when it failed.
fn reply(events: &[Event]) -> Option<String> {
    let mut text = String::new();
    for event in events {
        match event {
            Event::Reply(part) => text.push_str(part),
            Event::ToolCall { name, arguments } => text.push_str(&format!(" {name} {arguments}")),
            Event::Failed(_) => return None,
            _ => {}
        }
    }
    let letters = |c: char| if c.is_alphanumeric() { c.to_lowercase().collect() } else { String::from(" ") };
    let plain: String = text.chars().map(letters).collect();
    Some(plain.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Whose reply most minds share; of equals the first.
fn vote(replies: &[Option<String>]) -> usize {
    let shared = |reply: &Option<String>| match reply {
        None => 0,
        Some(_) => replies.iter().filter(|other| *other == reply).count(),
    };
    let most = replies.iter().map(shared).max().unwrap_or(0);
    replies.iter().position(|reply| shared(reply) == most).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{reply, vote};
    use crate::engine::{EngineError, Event};

    #[test]
    fn most_minds_win_and_the_first_of_equals() {
        let said = |text: &str| reply(&[Event::Reasoning("…".into()), Event::Reply(text.into())]);
        assert_eq!(said("It is  Paris."), Some("it is paris".into()));
        assert_eq!(vote(&[said("Rome."), said("Paris"), said("paris!")]), 1);
        assert_eq!(vote(&[said("Rome."), said("Paris")]), 0);
        let failed = || reply(&[Event::Failed(EngineError::Stopped)]);
        assert_eq!(vote(&[failed(), said("Paris")]), 1);
        assert_eq!(vote(&[failed(), failed()]), 0);
    }
}
