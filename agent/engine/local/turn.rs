//! One live turn: what it still has to put through the decoder, and what becomes of the tokens it draws.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hearken_models::checkpoint::Checkpoint;
use hearken_models::prompt::Piece;
use hearken_models::sampler::Sampler;
use hearken_models::splitter::{Part, Splitter};
use hearken_models::tokenizer::Detokenizer;
use hearken_models::{Result, Tensor};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::Job;
use super::slots::{Slot, Unit, sound_hash};
use crate::engine::{EngineError, Event, Finish, Request, SessionId, Thinking, Timings, Usage};

/// How nano writes what the word ear heard into its reasoning.
const WORDS: &str = "The words:";
/// If the reasoning has not come to [`WORDS`] by itself after so many tokens, it is told.
const PATIENCE: usize = 48;
/// What is told when the word ear heard nobody.
const NO_WORDS: &str = "(none)";

/// Rows waiting for the decoder: embeddings `[n, hidden]` and what each stands for.
struct Input {
    rows: Tensor,
    units: Vec<Unit>,
}

/// Where the turn is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Prefill,
    Think,
    Reply,
}

/// A live turn.
pub(super) struct Live {
    pub(super) session: SessionId,
    pub(super) slot: Slot,
    events: mpsc::Sender<Event>,
    cancel: Arc<AtomicBool>,
    /// Events the reader was not ready for.
    outbox: VecDeque<Event>,
    inputs: VecDeque<Input>,
    request: Request,
    sampler: Sampler,
    splitter: Splitter,
    detokenizer: Detokenizer,
    /// The end of the reasoning so far, as far as [`WORDS`] is looked for in it.
    tail: String,
    /// Words that are still to be written into the reasoning.
    words: Option<String>,
    phase: Phase,
    since: Instant,
    usage: Usage,
    timings: Timings,
    pub(super) finish: Option<Finish>,
}

impl Live {
    /// Renders and hears the request: all that comes before the decoder.
    pub(super) fn begin(job: Job, slot: Slot, checkpoint: &mut Checkpoint) -> std::result::Result<Self, Refused> {
        let Job { request, events, cancel, since } = job;
        let begun = Instant::now();
        let turn = Self {
            session: request.session,
            events,
            cancel,
            outbox: VecDeque::new(),
            inputs: VecDeque::new(),
            sampler: Sampler::new(request.sampling.clone()),
            splitter: Splitter::new(request.thinking == Thinking::On),
            detokenizer: Detokenizer::default(),
            tail: String::new(),
            words: None,
            phase: Phase::Prefill,
            since: begun,
            usage: Usage::default(),
            timings: Timings { queued: begun - since, ..Timings::default() },
            finish: None,
            slot,
            request,
        };
        turn.prepare(checkpoint)
    }

    fn prepare(mut self, checkpoint: &mut Checkpoint) -> std::result::Result<Self, Refused> {
        let Request { conversation, tools, thinking, .. } = &self.request;
        let mut pieces = checkpoint.format.render(conversation, tools, *thinking);
        let spoken = checkpoint.words.is_some() && pieces.iter().any(|p| matches!(p, Piece::Sound(_)));
        // Without thinking, the words are all the reasoning there is: it is opened here, and closed once they are known.
        let words_alone = spoken && *thinking == Thinking::Off;
        if words_alone {
            pieces = checkpoint.format.render(conversation, tools, Thinking::On);
        }
        let units = match wanted(checkpoint, &pieces) {
            Ok(units) => units,
            Err(e) => return Err(self.refuse(e)),
        };
        self.usage.sound_tokens = units.iter().filter(|u| matches!(u, Unit::Sound(..))).count();
        self.usage.text_tokens = units.len() - self.usage.sound_tokens;
        let (tokens, limit) = (
            units.len() + self.request.thinking_budget + self.request.max_reply_tokens,
            checkpoint.decoder.config().max_position_embeddings,
        );
        if tokens > limit {
            return Err(self.fail(EngineError::ContextFull { tokens, limit }));
        }
        let kept = self.slot.reuse(&units);
        self.usage.cached_tokens = kept;
        let mut filled = self.fill(checkpoint, &pieces, &units, kept);
        if filled.is_ok() && words_alone {
            filled = self.reason_in_words_alone(checkpoint);
        }
        match filled {
            Ok(()) => Ok(self),
            Err(e) => Err(self.refuse(e)),
        }
    }

    /// Embeds everything from unit `kept` on, hearing the sounds in it; then listens for the newest sound's words.
    fn fill(&mut self, checkpoint: &mut Checkpoint, pieces: &[Piece], units: &[Unit], kept: usize) -> Result<()> {
        let started = Instant::now();
        let mut at = 0;
        for piece in pieces {
            let count = match piece {
                Piece::Sound(samples) => Checkpoint::sound_tokens(samples.len()),
                // Neighbouring texts are one stretch of tokens, which the first of them covers.
                _ => units[at..].iter().position(|u| matches!(u, Unit::Sound(..))).unwrap_or(units.len() - at),
            };
            let range = at.max(kept)..(at + count).max(kept);
            if !range.is_empty() {
                match piece {
                    Piece::Sound(samples) => {
                        let heard = checkpoint.hear(samples)?;
                        let rows: Vec<_> = heard.iter().map(|h| &h.embeddings).collect();
                        let rows = Tensor::cat(&rows, 0)?.narrow(0, range.start - at, range.len())?;
                        self.inputs.push_back(Input { rows, units: units[range].to_vec() });
                    }
                    _ => self.push_tokens(checkpoint, &units[range])?,
                }
            }
            at += count;
        }
        self.timings.encode = started.elapsed();
        let newest = pieces.iter().rev().find_map(|p| if let Piece::Sound(samples) = p { Some(samples) } else { None });
        if let Some(samples) = newest {
            self.listen(checkpoint, samples)?;
        }
        Ok(())
    }

    /// Finds the newest sound's words, where the checkpoint has an ear for them.
    fn listen(&mut self, checkpoint: &mut Checkpoint, samples: &Arc<[f32]>) -> Result<()> {
        let started = Instant::now();
        let hash = sound_hash(samples);
        let cancel = self.cancel.clone();
        let words = match self.slot.words.get(&hash) {
            Some(words) => Some(words.clone()),
            None => checkpoint.words(samples, || !cancel.load(Ordering::Acquire))?,
        };
        self.timings.words = started.elapsed();
        if let Some(words) = words {
            if !self.is_cancelled() {
                self.slot.words = [(hash, words.clone())].into();
            }
            self.outbox.push_back(Event::Heard(words.clone()));
            self.words = Some(if words.is_empty() { NO_WORDS.into() } else { words });
        }
        Ok(())
    }

    /// Writes the words and closes the reasoning.
    fn reason_in_words_alone(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let words = self.words.take().unwrap_or_default();
        // The line break belongs to the words' last token, as in training: "?\n" is one token.
        let mut tokens = checkpoint.tokenizer.text(&format!("{WORDS} {words}\n"))?;
        tokens.extend(checkpoint.tokenizer.control(checkpoint.format.end_of_thinking().trim_start())?);
        self.push_ids(checkpoint, &tokens)
    }

    fn push_ids(&mut self, checkpoint: &Checkpoint, ids: &[u32]) -> Result<()> {
        self.push_tokens(checkpoint, &ids.iter().map(|id| Unit::Token(*id)).collect::<Vec<_>>())
    }

    fn push_tokens(&mut self, checkpoint: &Checkpoint, units: &[Unit]) -> Result<()> {
        let id = |unit: &Unit| if let Unit::Token(id) = unit { Some(*id) } else { None };
        let ids: Vec<u32> = units.iter().filter_map(id).collect();
        if !ids.is_empty() {
            let rows = checkpoint.decoder.embed(&ids)?;
            self.inputs.push_back(Input { rows, units: units.to_vec() });
        }
        Ok(())
    }

    /// Whether nobody wants this turn any more.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Acquire) || self.events.is_closed()
    }

    /// Gives the reader what it has room for; `false` while it lags behind.
    pub(super) fn flush(&mut self) -> bool {
        while let Some(event) = self.outbox.pop_front() {
            if let Err(TrySendError::Full(event)) = self.events.try_send(event) {
                self.outbox.push_front(event);
                return false;
            }
        }
        true
    }

    /// Whether it is decoding, so that its rows are few and its reader is waiting for each.
    pub(super) fn is_decoding(&self) -> bool {
        self.phase != Phase::Prefill
    }

    /// Takes up to `most` rows for the next forward pass.
    pub(super) fn take_rows(&mut self, most: usize) -> Result<Option<Tensor>> {
        let (mut rows, mut room) = (Vec::new(), most);
        while let Some(mut input) = self.inputs.pop_front() {
            let all = input.units.len();
            let count = all.min(room);
            rows.push(input.rows.narrow(0, 0, count)?);
            self.slot.units.extend(input.units.drain(..count));
            room -= count;
            if count < all {
                input.rows = input.rows.narrow(0, count, all - count)?;
                self.inputs.push_front(input);
            }
            if room == 0 {
                break;
            }
        }
        match rows.len() {
            0 => Ok(None),
            1 => Ok(rows.pop()),
            _ => Ok(Some(Tensor::cat(&rows, 0)?)),
        }
    }

    /// Whether the rows just computed end in the place where the next token is drawn.
    pub(super) fn wants_logits(&self) -> bool {
        self.inputs.is_empty()
    }

    /// Draws the next token and says what follows from it.
    pub(super) fn draw(&mut self, checkpoint: &Checkpoint, logits: &mut [f32]) -> Result<()> {
        if self.phase == Phase::Prefill {
            self.enter(if self.splitter.is_reasoning() { Phase::Think } else { Phase::Reply });
        }
        let token = self.sampler.draw(logits);
        if token == checkpoint.stop && self.splitter.is_reasoning() {
            // A turn that ends inside its reasoning has answered nothing: the reasoning is over, the reply is still due.
            return self.steer(checkpoint, true);
        }
        if token == checkpoint.stop {
            self.finish = Some(Finish::Stop);
            return Ok(());
        }
        if self.splitter.is_reasoning() {
            self.usage.reasoning_tokens += 1;
        } else {
            self.usage.reply_tokens += 1;
        }
        self.push_ids(checkpoint, &[token])?;
        let text = checkpoint.tokenizer.stream(&mut self.detokenizer, token)?;
        self.write(&text);
        if self.splitter.is_reasoning() {
            self.steer(checkpoint, self.usage.reasoning_tokens >= self.request.thinking_budget)?;
        } else if self.usage.reply_tokens >= self.request.max_reply_tokens {
            self.finish = Some(Finish::Length);
        }
        Ok(())
    }

    /// Puts the ear's words where the reasoning asks for them, and closes a reasoning that is `over`.
    fn steer(&mut self, checkpoint: &Checkpoint, over: bool) -> Result<()> {
        let asked = self.tail.trim_end().ends_with(WORDS);
        let mut end = checkpoint.format.end_of_thinking();
        let due = asked || over || self.usage.reasoning_tokens >= PATIENCE;
        if let Some(words) = self.words.take_if(|_| due) {
            let lead = if asked { String::new() } else { format!("\n{WORDS}") };
            // With the line break, for "?\n" is one token and stands so in the training.
            self.force(checkpoint, &format!("{lead} {words}\n"), false)?;
            end = end.trim_start();
        }
        if over {
            self.force(checkpoint, end, true)?;
        }
        Ok(())
    }

    /// Writes text as if the model had.
    fn force(&mut self, checkpoint: &Checkpoint, text: &str, control: bool) -> Result<()> {
        let ids = if control { checkpoint.tokenizer.control(text)? } else { checkpoint.tokenizer.text(text)? };
        ids.iter().for_each(|id| self.sampler.observe(*id));
        self.push_ids(checkpoint, &ids)?;
        self.detokenizer = Detokenizer::default();
        self.write(text);
        Ok(())
    }

    fn write(&mut self, text: &str) {
        if self.words.is_some() {
            self.tail.push_str(text);
        }
        for part in self.splitter.push(text) {
            self.part(part);
        }
    }

    fn part(&mut self, part: Part) {
        self.outbox.push_back(match part {
            Part::Reasoning(text) => Event::Reasoning(text),
            Part::Reply(text) => Event::Reply(text),
            Part::ToolCall { name, arguments } => Event::ToolCall { name, arguments },
            Part::EndOfReasoning => return self.enter(Phase::Reply),
        });
    }

    /// Books the time of the phase that ends.
    fn enter(&mut self, phase: Phase) {
        let spent = self.since.elapsed();
        match self.phase {
            // The phase began with the turn; what went into hearing is booked there.
            Phase::Prefill => self.timings.prefill = spent.saturating_sub(self.timings.encode + self.timings.words),
            Phase::Think => self.timings.think = spent,
            Phase::Reply => self.timings.reply = spent,
        }
        (self.phase, self.since) = (phase, Instant::now());
    }

    /// Ends the turn: the last events go out, the slot comes back for the next turn.
    pub(super) fn end(mut self, finish: Finish) -> (SessionId, Slot) {
        let splitter = std::mem::replace(&mut self.splitter, Splitter::new(false));
        for part in splitter.finish() {
            self.part(part);
        }
        self.enter(Phase::Reply);
        self.outbox.push_back(Event::Done { finish, usage: self.usage, timings: self.timings });
        self.deliver();
        (self.session, self.slot)
    }

    /// Ends the turn with an error. Its slot is dropped: whether the cache is whole is not known.
    pub(super) fn fail(mut self, error: EngineError) -> Refused {
        self.outbox.push_back(Event::Failed(error));
        self.deliver();
        Refused
    }

    pub(super) fn refuse(self, error: impl ToString) -> Refused {
        self.fail(EngineError::Model(error.to_string()))
    }

    /// Delivers what is left without holding up the compute thread: a reader that lags is served from a task of its own.
    fn deliver(&mut self) {
        if self.flush() || self.events.is_closed() {
            return;
        }
        let (events, outbox) = (self.events.clone(), std::mem::take(&mut self.outbox));
        let deliver = move || outbox.into_iter().try_for_each(|event| events.blocking_send(event).map_err(drop));
        // Ends with the reader: when it has read all, or is gone.
        drop(std::thread::Builder::new().name("deliver".into()).spawn(deliver));
    }
}

/// A turn that was ended with an error.
pub(super) struct Refused;

/// What each token of a rendered prompt stands for.
fn wanted(checkpoint: &Checkpoint, pieces: &[Piece]) -> Result<Vec<Unit>> {
    let mut units = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Control(text) => units.extend(checkpoint.tokenizer.control(text)?.into_iter().map(Unit::Token)),
            Piece::Text(text) => units.extend(checkpoint.tokenizer.text(text)?.into_iter().map(Unit::Token)),
            Piece::Sound(samples) => {
                let hash = sound_hash(samples);
                units.extend((0..Checkpoint::sound_tokens(samples.len()) as u32).map(|n| Unit::Sound(hash, n)));
            }
        }
    }
    Ok(units)
}
